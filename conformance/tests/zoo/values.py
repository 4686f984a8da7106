"""Stores that change values, or take values that they cannot keep (VAL clauses)."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from kode_conformance.context import Context
from kode_conformance.values import samples

from conformance.tests.zoo.base import mutant
from conformance.tests.zoo.witnesses import call_with, seen
from kode_core.errors import InvalidValueError
from kode_core.model import AgentInfo, Message, ToolCallApproval, ToolCallRecord, ToolUseBlock
from kode_core.store import EngineStore


class _ChangesCalls(EngineStore):
    def changed(self, value: Any) -> Any:
        raise NotImplementedError

    async def save_tool_call_records(
        self, agent_id: str, records: Sequence[ToolCallRecord], *, fence: Any = None
    ) -> None:
        changed = [r.replace(input=self.changed(r.input), result=self.changed(r.result)) for r in records]
        await super().save_tool_call_records(agent_id, changed, fence=fence)


@mutant(
    "VAL-2",
    killed_by="what_json_cannot_carry_is_refused",
    source="json.dumps(value, default=str)",
    witness=call_with({"at": datetime(2025, 1, 1, tzinfo=UTC)}),
)
class StringifiesWhatItDoesNotKnow(_ChangesCalls):
    """Stores a date as a string, a tuple as a list and a key of 1 as "1"."""

    def changed(self, value: Any) -> Any:
        try:
            return json.loads(json.dumps(value, default=str))
        except (ValueError, RecursionError):
            return value


@mutant(
    "VAL-2",
    killed_by="what_json_cannot_carry_is_refused",
    source="msgspec and JSON.stringify write null for NaN",
    witness=call_with(math.nan),
)
class NullForNan(_ChangesCalls):
    """Stores None instead of NaN and the infinities."""

    def changed(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {k: self.changed(v) for k, v in value.items()}
        return None if isinstance(value, float) and not math.isfinite(value) else value


@mutant(
    "VAL-2",
    killed_by="a_refused_event_leaves_no_trace",
    source="lists that are written one by one",
    witness=seen(
        lambda s: s.append_events("a", [samples.event(0), samples.event(1, value=math.nan)]),
        lambda s: s.read_events("a"),
    ),
)
class AppendsOneByOne(EngineStore):
    """Appends the events before the one that it refuses."""

    async def append_events(self, agent_id: str, timelines: Sequence[Any], *, fence: Any = None) -> Sequence[int]:
        return [await self.append_event(agent_id, timeline, fence=fence) for timeline in timelines]


_ONE_BAD = [samples.message(0), Message("assistant", [ToolUseBlock("c", "t", {"x": math.nan})])]


@mutant(
    "VAL-2",
    killed_by="one_bad_message_among_many",
    source="encoders that skip what they cannot encode",
    witness=seen(lambda s: s.save_messages("a", _ONE_BAD), lambda s: s.load_messages("a")),
)
class SkipsBadMessages(EngineStore):
    """Saves the messages that can be saved, and says nothing of the others."""

    async def save_messages(self, agent_id: str, messages: Sequence[Message], *, fence: Any = None) -> None:
        good = [m for m in messages if not any(_is_nan(getattr(b, "input", None)) for b in m.content)]
        await super().save_messages(agent_id, good, fence=fence)


def _is_nan(value: Any) -> bool:
    return "nan" in repr(value)


@mutant(
    "VAL-2",
    killed_by="one_bad_message_among_many",
    source="KODE SDK SqliteStore: delete all, insert all; here without the transaction",
    witness=seen(
        lambda s: s.save_messages("a", samples.messages(2)),
        lambda s: s.save_messages("a", _ONE_BAD),
        lambda s: s.load_messages("a"),
    ),
)
class DeletesThenInserts(EngineStore):
    """Empties the list before it looks at the new one."""

    async def save_messages(self, agent_id: str, messages: Sequence[Message], *, fence: Any = None) -> None:
        await super().save_messages(agent_id, [], fence=fence)
        await super().save_messages(agent_id, messages, fence=fence)


async def _changed_in_place(ctx: Context) -> object:
    value = {"n": 1}
    messages = [Message("assistant", [ToolUseBlock("c", "t", value)])]
    await ctx.store.save_messages("a", messages)
    value["n"] = 2
    await ctx.store.save_messages("a", messages)
    return await ctx.store.load_messages("a")


@mutant(
    "VAL-2",
    killed_by="a_change_inside_a_saved_message_is_seen",
    source="caches that compare by identity",
    witness=_changed_in_place,
)
class TrustsIdentity(EngineStore):
    """Does not save a list again when its messages are the same objects."""

    _saved: tuple[Message, ...] = ()

    async def save_messages(self, agent_id: str, messages: Sequence[Message], *, fence: Any = None) -> None:
        if len(messages) == len(self._saved) and all(a is b for a, b in zip(messages, self._saved, strict=True)):
            return
        await super().save_messages(agent_id, messages, fence=fence)
        self._saved = tuple(messages)


@mutant(
    "VAL-2",
    killed_by="what_json_cannot_carry_is_refused",
    source="validation with the first write already under way",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(0)]),
        lambda s: s.save_tool_call_records("a", [samples.tool_call(1, result=math.nan)]),
        lambda s: s.load_tool_call_records("a"),
    ),
)
class RefusesTooLate(EngineStore):
    """Refuses a bad value when all but the value is written."""

    async def save_tool_call_records(
        self, agent_id: str, records: Sequence[ToolCallRecord], *, fence: Any = None
    ) -> None:
        try:
            await super().save_tool_call_records(agent_id, records, fence=fence)
        except InvalidValueError:
            blank = [record.replace(input=None, result=None, approval=ToolCallApproval(meta={})) for record in records]
            await super().save_tool_call_records(agent_id, blank, fence=fence)
            raise


@mutant(
    "VAL-4",
    killed_by="a_megabyte_in_any_field",
    source="TEXT columns of 64 KB",
    witness=seen(
        lambda s: s.save_recovered_file("a", samples.recovered(content="x" * 70_000)),
        lambda s: s.load_recovered_files("a"),
    ),
)
class CutsAt64Kilobytes(EngineStore):
    """Cuts a recovered file at 64 KB."""

    async def save_recovered_file(self, agent_id: str, file: Any, *, fence: Any = None) -> None:
        await super().save_recovered_file(agent_id, file.replace(content=file.content[:65_536]), fence=fence)


# --- times ------------------------------------------------------------------------------------------------------------


async def _in_new_york(ctx: Context) -> object:
    before = os.environ.get("TZ")
    try:
        os.environ["TZ"] = "America/New_York"
        time.tzset()
        await ctx.store.save_info("a", samples.info("a"))
        return await ctx.store.load_info("a")
    finally:
        os.environ.pop("TZ", None)
        if before is not None:
            os.environ["TZ"] = before
        time.tzset()


class _ChangesCreatedAt(EngineStore):
    def read(self, created_at: int) -> Any:
        raise NotImplementedError

    async def load_info(self, agent_id: str) -> AgentInfo | None:
        info = await super().load_info(agent_id)
        return info and info.replace(created_at=self.read(info.created_at))


@mutant(
    "VAL-5",
    killed_by="times_are_exact_milliseconds",
    source="KODE SDK PostgresStore: TIMESTAMP without a time zone, shifted by the zone of the host",
    witness=_in_new_york,
)
class LocalTimes(_ChangesCreatedAt):
    """Reads a stored time as one of the host's time zone."""

    def read(self, created_at: int) -> Any:
        naive = datetime.fromtimestamp(created_at / 1000, UTC).replace(tzinfo=None)
        return round(naive.timestamp() * 1000)


@mutant(
    "VAL-5",
    killed_by="times_are_exact_milliseconds",
    source="DATETIME columns",
    witness=seen(lambda s: s.save_info("a", samples.info("a", created_at=1001)), lambda s: s.load_info("a")),
)
class WholeSeconds(_ChangesCreatedAt):
    """Keeps times to the second."""

    def read(self, created_at: int) -> Any:
        return created_at // 1000 * 1000


@mutant(
    "VAL-5",
    killed_by="times_are_exact_milliseconds",
    source="KODE SDK PostgresStore: BIGINT comes back as a string",
    witness=seen(lambda s: s.save_info("a", samples.info("a")), lambda s: s.load_info("a")),
)
class TimesAsStrings(_ChangesCreatedAt):
    """Gives times as strings."""

    def read(self, created_at: int) -> Any:
        return str(created_at)


@mutant(
    "VAL-1",
    killed_by="VAL-1.fractions_of_typed_numbers",
    source="KODE SDK PostgresStore: duration_ms INTEGER fails on 1.5; here it rounds",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(duration_ms=1.5)]),
        lambda s: s.load_tool_call_records("a"),
    ),
)
class WholeDurations(EngineStore):
    """Keeps durations in whole milliseconds."""

    async def load_tool_call_records(self, agent_id: str) -> list[ToolCallRecord]:
        calls = await super().load_tool_call_records(agent_id)
        return [call.replace(duration_ms=call.duration_ms and int(call.duration_ms)) for call in calls]
