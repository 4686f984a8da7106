"""Stores that remember too much, or work on much in one piece (OPS-14, OPS-15)."""

from __future__ import annotations

import json
import tracemalloc
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import msgspec
from kode_conformance.checks.turns import beaten, reference_of
from kode_conformance.context import Context
from kode_conformance.values import samples

from conformance.tests.zoo.base import OnSqlite, mutant
from conformance.tests.zoo.witnesses import talk
from kode_core.model import Message, StoredMessage
from kode_core.store import EngineStore

# --- memory -----------------------------------------------------------------------------------------------------------


async def _held(ctx: Context, *, deleted: bool) -> object:
    """True if more than 4 MB are held of 8 MB that were written."""
    store = await ctx.another(memory_limit_bytes=2**20) if not deleted else ctx.store
    tracemalloc.start()
    try:
        for i in range(8):
            await store.save_messages(f"a{i}", talk(f"{i}" * 2**20))
        for i in range(8 if deleted else 0):
            await store.delete(f"a{i}")
        return tracemalloc.get_traced_memory()[0] > 4 * 2**20
    finally:
        tracemalloc.stop()


class _Remembers(EngineStore):
    """Remembers the messages of agents, up to ``limit`` characters."""

    limit = 64 * 2**20
    forgets = True

    def __init__(self, opener: Any, **options: Any) -> None:
        super().__init__(opener, **options)
        self._remembered: OrderedDict[str, list[Message]] = OrderedDict()
        self._bound = min(self.limit, options.get("memory_limit_bytes", self.limit))

    async def save_messages(self, agent_id: str, messages: Sequence[Any], *, fence: Any = None) -> None:
        await super().save_messages(agent_id, messages, fence=fence)
        self._remembered[agent_id] = list(messages)
        while sum(len(m.text) for found in self._remembered.values() for m in found) > self._bound:
            self._remembered.popitem(last=False)

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        await super().delete(agent_id, fence=fence)
        if self.forgets:
            self._remembered.pop(agent_id, None)

    async def delete_many(self, **filters: Any) -> int:
        if self.forgets and filters:
            self._remembered.clear()
        return await super().delete_many(**filters)


@mutant(
    "OPS-14",
    killed_by="what_is_remembered_is_bounded",
    on=OnSqlite,
    witness=lambda ctx: _held(ctx, deleted=False),
    source="a cache with a limit of 200,000 entries, whatever their size",
)
class RemembersEverything(_Remembers):
    """Remembers all messages that it ever saved, however large."""

    def __init__(self, opener: Any, **options: Any) -> None:
        super().__init__(opener, **options)
        self._bound = 2**40


@mutant(
    "OPS-14",
    killed_by="what_was_deleted_is_forgotten",
    on=OnSqlite,
    witness=lambda ctx: _held(ctx, deleted=True),
    source="a cache that knows nothing of delete",
)
class RemembersTheDeleted(_Remembers):
    """Remembers the messages of agents that were deleted."""

    forgets = False


async def _streamed(ctx: Context) -> object:
    for i in range(8):
        await ctx.store.save_messages(f"a{i}", [samples.message(text="x" * 2000) for _ in range(500)])
    tracemalloc.start()
    try:
        async for _ in ctx.store.iter_messages():
            pass
        return tracemalloc.get_traced_memory()[1] > 6 * 2**20
    finally:
        tracemalloc.stop()


@mutant(
    "OPS-14",
    killed_by="iterators_hold_a_page",
    on=OnSqlite,
    witness=_streamed,
    source="fetchall()",
)
class IteratesOverAList(EngineStore):
    """Reads everything before it gives the first message."""

    async def iter_messages(self, **filters: Any) -> AsyncIterator[StoredMessage]:  # type: ignore[override]
        for message in [message async for message in super().iter_messages(**filters)]:
            yield message


# --- turns ------------------------------------------------------------------------------------------------------------


async def _turns(ctx: Context) -> object:
    """True if the event loop was kept for four times the work that it takes to write the list as JSON."""
    messages = [samples.message(i) for i in range(20_000)]
    return await _least_beat(lambda n: ctx.store.save_messages(f"a{n}", messages)) > 4 * reference_of(messages)


async def _least_beat(call: Callable[[int], Awaitable[object]]) -> float:
    """The longest that the call keeps the loop, at its best of three: a machine may be busy with other things."""
    return min([(await beaten(call(n))).longest for n in range(3)])


@mutant(
    "OPS-15",
    killed_by="long_lists_leave_the_loop_free",
    witness=_turns,
    source="json.dumps of a history, in the event loop",
)
class EncodesInOnePiece(EngineStore):
    """Encodes a whole list again and again before it is saved, and lets nobody have a turn."""

    async def save_messages(self, agent_id: str, messages: Sequence[Any], *, fence: Any = None) -> None:
        for _ in range(10 if len(messages) > 1000 else 0):
            json.dumps(msgspec.to_builtins(messages))
        await super().save_messages(agent_id, messages, fence=fence)


async def _value(ctx: Context) -> object:
    rows = [{"id": i} for i in range(60_000)]
    least = await _least_beat(lambda n: ctx.store.append_event(f"a{n}", samples.event(1, rows=rows)))
    return least > 4 * reference_of(rows)


@mutant(
    "OPS-15",
    killed_by="large_values_leave_the_loop_free",
    witness=_value,
    source="a walk over every value, in the language and in the event loop",
)
class WalksLargeValues(EngineStore):
    """Looks at each part of the data of an event, several times, and lets nobody have a turn."""

    async def append_event(self, agent_id: str, timeline: Any, *, fence: Any = None) -> int:
        for _ in range(12 if "rows" in (getattr(getattr(timeline, "event", None), "data", None) or ()) else 0):
            json.dumps(timeline.event.data)
        return await super().append_event(agent_id, timeline, fence=fence)
