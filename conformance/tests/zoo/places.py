"""Stores in which the place of a record in its list is that of its time (MSG-9, MSG-11, TC-3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kode_conformance.values import samples

from conformance.tests.zoo.base import mutant
from conformance.tests.zoo.witnesses import seen, talk
from kode_core.model import AgentRecords, Message, ToolCallRecord
from kode_core.store import EngineStore


def _calls(*times: int, **changes: Any) -> list[ToolCallRecord]:
    return [samples.tool_call(i, created_at=samples.T0 + time, **changes) for i, time in enumerate(times)]


@mutant(
    "MSG-9",
    killed_by="parts_are_what_the_whole_list_has_there",
    source="ORDER BY created_at DESC LIMIT ?",
    witness=seen(
        lambda s: s.save_tool_call_records("a", _calls(3, 1, 2)), lambda s: s.load_tool_call_records("a", last=1)
    ),
)
class TheLastCallsAreTheNewest(EngineStore):
    """Gives the newest tool calls as the last ones of the list."""

    async def load_tool_call_records(self, agent_id: str, *, last: Any = None, **bounds: Any) -> Any:
        found = await super().load_tool_call_records(agent_id, **bounds)
        if type(last) is not int or last < 0:
            return await super().load_tool_call_records(agent_id, last=last, **bounds)
        newest = sorted(range(len(found)), key=lambda i: (found[i].created_at, i))[max(0, len(found) - last) :]
        return [found[i] for i in sorted(newest)]


@mutant(
    "TC-3",
    killed_by="MSG-9.places_are_positions_and_not_times",
    source="UPDATE … WHERE rowid = (SELECT rowid … WHERE call_id = ? ORDER BY created_at DESC LIMIT 1)",
    witness=seen(
        lambda s: s.save_tool_call_records("a", _calls(2, 1, id="c")),
        lambda s: s.upsert_tool_call_records("a", _calls(3, id="c")),
        lambda s: s.load_tool_call_records("a"),
    ),
)
class UpsertsTheNewestOfTheId(EngineStore):
    """Replaces the newest record of an id, where the last one of the list is older."""

    async def upsert_tool_call_records(self, agent_id: str, records: Sequence[Any], **how: Any) -> None:
        known = await self.load_tool_call_records(agent_id)
        if len(records) == 1:
            places = [i for i, call in enumerate(known) if call.id == records[0].id]
            newest = max(places, key=lambda i: (known[i].created_at, i), default=None)
            if newest is not None and newest != places[-1]:
                known[newest] = records[0]
                await self.save_tool_call_records(agent_id, known, **how)
                return
        await super().upsert_tool_call_records(agent_id, records, **how)


async def _import(store: Any, *times: int) -> None:
    talk_of_three = talk(*map(str, range(len(times))))
    await store.import_agent("a", AgentRecords(agent_id="a", messages=talk_of_three, message_times=times))


@mutant(
    "MSG-11",
    killed_by="MSG-9.places_are_positions_and_not_times",
    source="DELETE … WHERE id = (SELECT id … ORDER BY created_at DESC LIMIT 1) RETURNING body",
    witness=seen(lambda s: _import(s, 3, 1, 2), lambda s: s.pop_messages("a"), lambda s: s.load_messages("a")),
)
class PopsTheNewestMessage(EngineStore):
    """Pops the newest message, where the last one of the list is older."""

    async def pop_messages(self, agent_id: str, count: int = 1, **how: Any) -> list[Message]:
        stored = [message async for message in self.read_messages(agent_id)] if count == 1 else []
        newest = max(stored, key=lambda message: (message.created_at, message.position), default=None)
        if newest is None or newest.position == len(stored) - 1:
            return await super().pop_messages(agent_id, count, **how)
        messages = await self.load_messages(agent_id)
        popped = messages.pop(newest.position)
        await self.save_messages(agent_id, messages, **how)
        return [popped]
