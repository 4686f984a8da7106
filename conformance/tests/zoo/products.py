"""Stores that do right by each method, value and number, and wrong where two of them meet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from kode_conformance.values import samples
from kode_conformance.values.fields import full
from kode_conformance.values.spoiling import spoil
from msgspec.structs import replace

from conformance.tests.zoo.base import mutant
from conformance.tests.zoo.witnesses import seen
from kode_core.model import AgentInfo, MediaCacheRecord, Snapshot, TodoSnapshot, ToolCallApproval, ToolCallRecord
from kode_core.query import AgentStats
from kode_core.store import EngineStore

_LONG = 10**1001


@mutant(
    "QRY-7",
    killed_by="statistics_tell_names_apart",
    source="counts that are grouped by an index column, which has no long texts",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(name="x" * 1025)]),
        lambda s: s.aggregate_stats("a"),
    ),
)
class CutsNamesInStatistics(EngineStore):
    """Counts tool calls by the first 1,024 characters of a name."""

    async def aggregate_stats(self, agent_id: str) -> AgentStats:
        stats = await super().aggregate_stats(agent_id)
        by_name: dict[str, int] = {}
        for name, count in stats.tool_calls_by_name.items():
            by_name[name[:1024]] = by_name.get(name[:1024], 0) + count
        return replace(stats, tool_calls_by_name=by_name)


async def _spoil_snapshot(store: Any) -> str:
    found = await store.load_snapshot("a", full(Snapshot).id)
    before = repr(found)
    spoil(found)
    return before


@mutant(
    "VAL-1",
    killed_by="what_was_saved_or_loaded_is_the_callers",
    source="caches of loaded documents",
    witness=seen(lambda s: s.save_snapshot("a", full(Snapshot)), _spoil_snapshot, _spoil_snapshot),
)
class GivesTheSameSnapshot(EngineStore):
    """Gives the snapshot that it gave before, until it is saved again."""

    _given: ClassVar[dict[Any, Snapshot]] = {}

    async def load_snapshot(self, agent_id: str, snapshot_id: str) -> Snapshot | None:
        key = id(self), agent_id, snapshot_id
        found = await super().load_snapshot(agent_id, snapshot_id)
        if found is not None:
            found = self._given.setdefault(key, found)
        return found

    async def save_snapshot(self, agent_id: str, snapshot: Snapshot, *, fence: Any = None) -> None:
        self._given.clear()
        await super().save_snapshot(agent_id, snapshot, fence=fence)


async def _info_again(store: Any) -> Any:
    info = samples.info("a")
    await store.save_info("a", info)
    spoil(info)
    await store.save_info("a", info)
    return await store.load_info("a")


@mutant(
    "VAL-1",
    killed_by="records_changed_in_place_are_saved",
    source="writes that are spared when the object is the one of last time",
    witness=seen(_info_again),
)
class SparesTheSameInfo(EngineStore):
    """Saves an info that is the very object that it saved last no second time."""

    _last: Any = None

    async def save_info(self, agent_id: str, info: AgentInfo, *, fence: Any = None) -> None:
        if info is not self._last:
            await super().save_info(agent_id, info, fence=fence)
        self._last = info


async def _stats_spoilt(store: Any) -> Any:
    spoil(await store.aggregate_stats("a"))
    return await store.aggregate_stats("a")


@mutant(
    "VAL-1",
    killed_by="every_answer_is_the_callers",
    source="answers that are kept for as long as nothing is written",
    witness=seen(lambda s: s.save_tool_call_records("a", [samples.tool_call()]), _stats_spoilt),
)
class KeepsStatistics(EngineStore):
    """Gives the statistics that it gave before while the totals are the same."""

    _kept: AgentStats | None = None

    async def aggregate_stats(self, agent_id: str) -> AgentStats:
        found = await super().aggregate_stats(agent_id)
        if self._kept is None or self._kept.total_tool_calls != found.total_tool_calls:
            self._kept = found
        return self._kept


@mutant(
    "VAL-1",
    killed_by="odd_json_in_every_field",
    source="decoders with a limit of digits, and a second path for audit trails",
    witness=seen(
        lambda s: s.upsert_tool_call_records("a", [samples.tool_call(approval=ToolCallApproval(meta={"n": _LONG}))]),
        lambda s: s.load_tool_call_records("a"),
    ),
)
class RoundsInApprovals(EngineStore):
    """Keeps whole numbers of more than 1,000 digits as text, in the meta of an approval that is upserted."""

    async def upsert_tool_call_records(
        self, agent_id: str, records: Sequence[ToolCallRecord], *, fence: Any = None
    ) -> None:
        await super().upsert_tool_call_records(agent_id, [self._rounded(call) for call in records], fence=fence)

    def _rounded(self, call: ToolCallRecord) -> ToolCallRecord:
        meta = call.approval.meta and {key: self._text_of(value) for key, value in call.approval.meta.items()}
        return call.replace(approval=call.approval.replace(meta=meta))

    @staticmethod
    def _text_of(value: Any) -> Any:
        return str(value) if type(value) is int and abs(value) > 10**1000 else value


@mutant(
    "VAL-1",
    killed_by="every_value_replaces_another",
    source="updates that write the fields which are true",
    witness=seen(
        lambda s: s.save_turn("a", todos=full(TodoSnapshot, 3)),
        lambda s: s.save_turn("a", todos=full(TodoSnapshot, 3).replace(version=0)),
        lambda s: s.load_todos("a"),
    ),
)
class KeepsVersions(EngineStore):
    """Keeps the version of a todo list that a turn replaces by one with the version 0."""

    async def save_turn(self, agent_id: str, **parts: Any) -> None:
        todos = parts.get("todos")
        if todos is not None and not todos.version:
            old = await self.load_todos(agent_id)
            parts["todos"] = todos.replace(version=old.version) if old is not None else todos
        await super().save_turn(agent_id, **parts)


@mutant(
    "QRY-7",
    killed_by="MSG-6.ten_thousand_in_one_turn",
    source="search engines, which count up to 10,000 hits and no further unless they are asked to",
    witness=seen(
        lambda s: s.save_turn("a", messages=samples.messages(10_001)),
        lambda s: s.aggregate_stats("a"),
    ),
)
class CountsTenThousandHits(EngineStore):
    """Counts no more than 10,000 messages in statistics."""

    async def aggregate_stats(self, agent_id: str) -> AgentStats:
        stats = await super().aggregate_stats(agent_id)
        return replace(stats, total_messages=min(stats.total_messages, 10_000))


@mutant(
    "VAL-4",
    killed_by="megabytes_of_every_kind",
    source="answers of a server that end at a megabyte",
    witness=seen(
        lambda s: s.save_media_cache("a", [samples.media(f"{i}").replace(file_uri="x" * 300_000) for i in range(5)]),
        lambda s: s.load_media_cache("a"),
    ),
)
class LoadsOneMegabyteOfMedia(EngineStore):
    """Gives of a media cache what is in its first megabyte."""

    async def load_media_cache(self, agent_id: str) -> list[MediaCacheRecord]:
        found, size = [], 0
        for record in await super().load_media_cache(agent_id):
            size += len(repr(record))
            if size > 2**20:
                break
            found.append(record)
        return found
