"""Stores that get the list of tool calls wrong (TC clauses)."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from kode_conformance.context import Context
from kode_conformance.values import samples

from conformance.tests.zoo.base import mutant
from conformance.tests.zoo.witnesses import seen, talk, the
from kode_core.errors import StorageError
from kode_core.model import Message, ToolCallRecord
from kode_core.store import EngineStore

# --- tool calls -------------------------------------------------------------------------------------------------------


@mutant(
    "TC-1",
    killed_by="tool_calls_are_a_list_in_order",
    source="KODE SDK SqliteStore and PostgresStore: ORDER BY created_at",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(2), samples.tool_call(1)]),
        lambda s: the("id", s.load_tool_call_records("a")),
    ),
)
class OrdersCallsByTime(EngineStore):
    """Loads tool calls by their created_at."""

    async def load_tool_call_records(self, agent_id: str) -> list[ToolCallRecord]:
        return sorted(await super().load_tool_call_records(agent_id), key=lambda call: call.created_at)


@mutant(
    "TC-1",
    killed_by="every_state_and_the_audit_trail",
    source="enumerations in the database",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(state="SEALED")]),
        lambda s: the("state", s.load_tool_call_records("a")),
    ),
)
class KnowsFewStates(EngineStore):
    """Stores FAILED for states that it has no name for."""

    async def save_tool_call_records(
        self, agent_id: str, records: Sequence[ToolCallRecord], *, fence: Any = None
    ) -> None:
        known = [r.replace(state="FAILED") if r.state in ("DENIED", "SEALED") else r for r in records]
        await super().save_tool_call_records(agent_id, known, fence=fence)


@mutant(
    "TC-1",
    killed_by="every_state_and_the_audit_trail",
    source="KODE SDK SqliteStore: `input: undefined` fails on NOT NULL",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(input=None)]),
        lambda s: s.load_tool_call_records("a"),
    ),
    raises="NOT NULL constraint failed",
)
class WantsAnInput(EngineStore):
    """Fails on a tool call without input."""

    async def save_tool_call_records(
        self, agent_id: str, records: Sequence[ToolCallRecord], *, fence: Any = None
    ) -> None:
        if any(record.input is None for record in records):
            raise StorageError("NOT NULL constraint failed: tool_calls.input")
        await super().save_tool_call_records(agent_id, records, fence=fence)


@mutant(
    "TC-2",
    killed_by="call_ids_repeat",
    source="KODE SDK SqliteStore and PostgresStore: tool_calls.id is a primary key over all agents",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call()]),
        lambda s: s.save_tool_call_records("b", [samples.tool_call()]),
    ),
    raises="UNIQUE constraint failed",
)
class CallIdsAreUnique(EngineStore):
    """Fails on a call id that another agent has."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._owners: defaultdict[str, set[str]] = defaultdict(set)

    async def save_tool_call_records(
        self, agent_id: str, records: Sequence[ToolCallRecord], *, fence: Any = None
    ) -> None:
        for record in records:
            self._owners[record.id].add(agent_id)
            if len(self._owners[record.id]) > 1:
                raise StorageError("UNIQUE constraint failed: tool_calls.id")
        await super().save_tool_call_records(agent_id, records, fence=fence)


@mutant(
    "TC-2",
    killed_by="call_ids_repeat",
    source="dicts by id",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(), samples.tool_call(name="x")]),
        lambda s: the("name", s.load_tool_call_records("a")),
    ),
)
class KeepsOneCallOfAnId(EngineStore):
    """Keeps the last of two calls of one id."""

    async def save_tool_call_records(
        self, agent_id: str, records: Sequence[ToolCallRecord], *, fence: Any = None
    ) -> None:
        once = {record.id: record for record in records}
        await super().save_tool_call_records(agent_id, list(once.values()), fence=fence)


class _UpsertsByHand(EngineStore):
    """Upserts by loading the list and saving it."""

    def order(self, places: list[int]) -> list[int]:
        return places

    async def upsert_tool_call_records(
        self, agent_id: str, records: Sequence[ToolCallRecord], *, fence: Any = None
    ) -> None:
        calls = await self.load_tool_call_records(agent_id)
        for record in records:
            places = self.order([i for i, call in enumerate(calls) if call.id == record.id])
            if places:
                calls[places[-1]] = record
            else:
                calls.append(record)
        await self.save_tool_call_records(agent_id, calls, fence=fence)


@mutant(
    "TC-3",
    killed_by="upsert_replaces_the_last_of_the_id",
    source="UPDATE … WHERE id = ? LIMIT 1",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(), samples.tool_call()]),
        lambda s: s.upsert_tool_call_records("a", [samples.tool_call(name="x")]),
        lambda s: the("name", s.load_tool_call_records("a")),
    ),
)
class UpsertsTheFirst(_UpsertsByHand):
    """Replaces the first record of an id, not the last."""

    def order(self, places: list[int]) -> list[int]:
        return places[::-1]


async def _upsert_at_once(ctx: Context) -> object:
    other = await ctx.another()
    calls = [samples.tool_call(1)], [samples.tool_call(2)]
    stores = (ctx.store, other)
    await asyncio.gather(*(s.upsert_tool_call_records("a", c) for s, c in zip(stores, calls, strict=True)))
    return len(await ctx.store.load_tool_call_records("a"))


@mutant("TC-3", killed_by="concurrent_upserts_are_all_kept", source="stores with no upsert", witness=_upsert_at_once)
class UpsertsByReadAndWrite(_UpsertsByHand):
    """Upserts by loading the list and saving it."""


@mutant(
    "TC-1",
    killed_by="wrong_records_are_refused",
    source="duck typing",
    witness=seen(
        lambda s: s.save_messages("a", talk("1")),
        lambda s: s.save_messages("a", "text"),
        lambda s: s.load_messages("a"),
    ),
)
class TakesWhatIsAMessage(EngineStore):
    """Saves the messages among what it is given, whatever that is."""

    async def save_messages(self, agent_id: str, messages: Sequence[Message], *, fence: Any = None) -> None:
        given = [m for m in messages or () if isinstance(m, Message)]
        await super().save_messages(agent_id, given, fence=fence)
