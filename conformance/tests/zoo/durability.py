"""Stores that acknowledge a write before it is made (DUR clauses)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from kode_conformance.context import Context
from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import OnJson, mutant
from conformance.tests.zoo.witnesses import happened, seen, talk
from kode_core.batch import Applied, Batch, EventRange, EventRow, ListWrite, Outcome
from kode_core.engine import Engine
from kode_core.layers import Layer


async def _read_elsewhere(ctx: Context) -> object:
    other = await ctx.another()
    await ctx.store.save_info("a", samples.info("a"))
    return await other.exists("a")


@mutant(
    "DUR-1",
    killed_by="single_saves_survive_a_kill",
    on=OnJson,
    source="write-behind caches",
    witness=_read_elsewhere,
)
class AcknowledgesFirst(Layer):
    """Says that an info is saved, and saves it 30 ms later."""

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner)
        self._later: set[asyncio.Task[Any]] = set()

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        if any(b.info is None or b.messages or b.tool_calls or b.docs or b.events for b in batches):
            return await super().commit(batches)
        task = asyncio.ensure_future(self._write(batches))
        self._later.add(task)
        task.add_done_callback(self._later.discard)
        return [Applied() for _ in batches]

    async def _write(self, batches: Sequence[Batch]) -> None:
        await asyncio.sleep(0.03)
        await self.inner.commit(batches)

    async def close(self) -> None:
        await asyncio.gather(*self._later)
        await super().close()


async def _count_meanwhile(ctx: Context) -> object:
    other = await ctx.another()
    await ctx.store.save_messages("a", talk("1", "2"))
    save = asyncio.ensure_future(ctx.store.save_messages("a", talk("3", "4")))
    lengths = set()
    while not save.done():
        lengths.add(len(await other.load_messages("a")))
        await asyncio.sleep(0)
    return 0 in lengths


@mutant(
    "DUR-3",
    killed_by="DUR-1.single_saves_survive_a_kill",
    on=OnJson,
    source="KODE SDK JSONStore: meta.json, todos and windows are truncated, and then written anew",
    witness=_count_meanwhile,
    also=("DUR-3.lists_and_info_killed_at_their_calls",),
)
class TruncatesThenWrites(Layer):
    """Empties a list before it writes the new one."""

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner)
        self._known: dict[str, list[Any]] = {}

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        outcomes: list[Outcome] = []
        for batch in batches:
            if batch.messages is not None:
                whole = await self._emptied(batch)
                await asyncio.sleep(0.01)
                batch = replace(batch, messages=whole)
            outcomes += await super().commit([batch])
        return outcomes

    async def _emptied(self, batch: Batch) -> ListWrite:
        """Empty the list, and return the write that makes it whole."""
        assert batch.messages is not None
        rows = list(self._known.get(batch.agent_id, ()))
        write = batch.messages
        if write.length is not None:
            del rows[write.length :]
        for position, row in write.put:
            rows[position : position + 1] = [row]
        rows += write.append
        self._known[batch.agent_id] = rows
        await self.inner.commit(
            [replace(batch, op_id=f"{batch.op_id}t", messages=ListWrite(length=0), events=(), docs=())]
        )
        return ListWrite(append=tuple(rows))


class _Predicts(Layer):
    """Acknowledges events with the offsets that they will have, and writes them 50 ms later."""

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner)
        self._buffer: list[Batch] = []
        self._next: dict[str, int] = {}
        self._timer: asyncio.Task[None] | None = None

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        if any(b.messages or b.tool_calls or b.info or b.docs or b.delete or b.fence for b in batches):
            await self._flush()
            return await super().commit(batches)
        self._buffer += batches
        if self._timer is None:
            self._timer = asyncio.ensure_future(self._later())
        return [Applied(offsets=tuple([await self._offset(b.agent_id) for _ in b.events])) for b in batches]

    async def _offset(self, agent_id: str) -> int:
        if agent_id not in self._next:
            known = await self.inner.events(agent_id, EventRange(order="offset", limit=10**6))
            self._next[agent_id] = known[-1].offset + 1 if known else 1
        self._next[agent_id] += 1
        return self._next[agent_id] - 1

    async def _later(self) -> None:
        await asyncio.sleep(0.05)
        await self._flush()

    async def _flush(self) -> None:
        self._timer = None
        batches, self._buffer = self._buffer, []
        if batches:
            await self.inner.commit(batches)

    async def events(self, agent_id: str, span: EventRange) -> Sequence[EventRow]:
        await self._flush()
        return await super().events(agent_id, span)

    async def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        await self._flush()
        await super().close()


@mutant(
    "DUR-1",
    killed_by="acknowledged_events_survive_a_kill",
    on=OnJson,
    source="KODE SDK JSONStore: events are in memory for 50 ms, and what a crash leaves of them is overwritten",
    witness=seen(
        lambda s, t: s.append_events("a", happened(0)),
        lambda s, t: t.read_events("a"),
    ),
    also=("DUR-3.events_and_documents_killed_at_their_calls", "DUR-1.one_of_several_writers_is_killed"),
)
class FlushesLater(_Predicts):
    """Says that an event is stored, and stores it 50 ms later."""
