"""Stores that are wrong at a limit, under load, or in their messages (VAL-4, OPS-9, OPS-12 and OPS-14 clauses)."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from kode_conformance.context import Context
from kode_conformance.harness import Limits

from conformance.tests.zoo.base import OnMemory, mutant
from conformance.tests.zoo.witnesses import happened, seen, talk
from kode_core.batch import Batch, ListKind, ListRows, Outcome
from kode_core.engine import Engine
from kode_core.layers import Layer
from kode_core.model import StoredEvent
from kode_core.store import EngineStore


class Limited(OnMemory):
    """Says that records have at most 64 KB."""

    limits = Limits(max_payload_bytes=65_536)


@mutant(
    "VAL-4",
    killed_by="a_stated_limit_is_where_it_is_said_to_be",
    on=Limited,
    source="KODE SDK Mongo example: limits that nobody looks at",
    witness=lambda ctx: _states_a_limit(ctx),
)
class LimitsNothing(EngineStore):
    """Takes records that are larger than it says."""


async def _states_a_limit(ctx: Context) -> object:
    (saved,) = await asyncio.gather(ctx.store.save_messages("a", talk("x" * 70_000)), return_exceptions=True)
    return ctx.harness.limits.max_payload_bytes is not None and not isinstance(saved, Exception)


class Secretive(OnMemory):
    """Opens with a password."""

    secrets = ("hunter2",)


@mutant(
    "OPS-12",
    killed_by="no_secret_is_told",
    on=Secretive,
    source="connection strings in a repr",
    witness=lambda ctx: _repr(ctx),
)
class TellsItsPassword(EngineStore):
    """Shows its password in its repr."""

    def __repr__(self) -> str:
        return "<Store at postgres://kode:hunter2@db/agents>"


async def _repr(ctx: Context) -> object:
    return "hunter2" in repr(ctx.store)


@mutant(
    "VAL-4",
    killed_by="ten_thousand_messages",
    source="pages that are not followed",
    witness=seen(
        lambda s: s.save_messages("a", talk(*map(str, range(5001)))),
        lambda s: _length(s),
    ),
)
class LoadsFiveThousand(Layer):
    """Loads the first 5,000 messages of a list."""

    async def rows(self, agent_id: str, kind: ListKind) -> ListRows:
        found = await super().rows(agent_id, kind)
        return ListRows(found.version, found.rows[:5000])


async def _length(store: Any) -> int:
    return len(await store.load_messages("a"))


async def _first_pause(ctx: Context) -> object:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    ticker = asyncio.ensure_future(tick())
    await asyncio.sleep(0.015)
    before, start = ticks, time.monotonic()
    await ctx.store.save_messages("a", talk("x" * 2**20))
    ticker.cancel()
    return time.monotonic() - start > 0.25 and ticks - before < 3


@mutant(
    "OPS-9",
    killed_by="a_large_save_does_not_stop_the_loop",
    source="KODE SDK SqliteStore: a synchronous driver",
    witness=_first_pause,
)
class BlocksTheLoop(Layer):
    """Lets nobody else do anything while it writes something large."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        for batch in batches:
            if batch.messages and sum(len(row.body.text) for _, row in batch.messages.put) > 2**19:
                time.sleep(0.3)
            if batch.messages and sum(len(row.body.text) for row in batch.messages.append) > 2**19:
                time.sleep(0.3)
        return await super().commit(batches)


async def _held_while_read(ctx: Context) -> object:
    await ctx.store.append_events("a", happened(*range(1200)))
    calls = 0
    async for _ in ctx.store.read_events("a"):
        calls = (await ctx.store.get_metrics()).operations.loads
        break
    return calls


@mutant(
    "EVT-5",
    killed_by="a_long_log_is_read_in_little_memory",
    source="KODE SDK JSONStore: reads whole files",
    witness=_held_while_read,
)
class ReadsTheWholeLog(EngineStore):
    """Reads the whole log before it gives the first event."""

    async def read_events(self, agent_id: str, **how: Any) -> AsyncIterator[StoredEvent]:
        everything = [event async for event in super().read_events(agent_id, **how)]
        for event in everything:
            yield event


async def _threads(ctx: Context) -> object:
    before = threading.active_count()
    store = await ctx.another()
    await ctx.close(store)
    return threading.active_count() - before


@mutant(
    "OPS-5",
    killed_by="opening_and_closing_leaves_nothing",
    source="KODE SDK SqliteStore: close does not stop the timers of the locks",
    witness=_threads,
)
class LeavesThreads(Layer):
    """Leaves a thread behind that close does not end."""

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner)
        self._timer = threading.Timer(120, lambda: None)
        self._timer.daemon = True
        self._timer.start()
