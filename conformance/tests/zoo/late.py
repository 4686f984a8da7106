"""Stores that lose what waits, or copy a parent again and again (EVT-7, FORK-1)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from kode_conformance.context import Context
from kode_conformance.values import samples

from conformance.tests.zoo.base import mutant
from kode_core.errors import StoreTimeoutError
from kode_core.model import StoredEvent
from kode_core.store import EngineStore


async def _late(ctx: Context) -> object:
    await ctx.store.append_event("a", samples.event(0))
    stream: Any = ctx.store.follow_events("a")
    await anext(stream)
    for start in (1, 1001):
        await ctx.store.append_events("a", samples.events(1000, start))
        await asyncio.sleep(0.05)
    found = await anext(stream)
    await stream.aclose()
    return found.bookmark.seq


@mutant(
    "EVT-7",
    killed_by="nothing_is_dropped_for_who_comes_late",
    source="a queue of a thousand events between the reader and the follower, which drops the oldest",
    witness=_late,
    slow=True,
)
class DropsTheOldest(EngineStore):
    """Keeps a thousand events for a follower that does not come, and drops those before."""

    async def follow_events(self, agent_id: str, **asked: Any) -> AsyncIterator[StoredEvent]:  # type: ignore[override]
        waiting: list[StoredEvent] = []
        came = asyncio.Event()

        async def read() -> None:
            async for event in EngineStore.follow_events(self, agent_id, **asked):
                waiting.append(event)
                del waiting[:-1000]
                came.set()

        reading = asyncio.ensure_future(read())
        try:
            while True:
                came.clear()
                while waiting:
                    yield waiting.pop(0)
                await came.wait()
        finally:
            reading.cancel()


async def _forked(ctx: Context) -> object:
    await ctx.store.save_info("p", samples.info("p"))
    forking = asyncio.ensure_future(ctx.store.batch_fork("p", 30))
    while not forking.done():
        await ctx.store.append_messages("p", samples.messages(1))
    return len({len(await ctx.store.load_messages(fork)) for fork in await forking}) == 1


@mutant(
    "FORK-1",
    killed_by="all_forks_of_a_call_are_of_one_instant",
    source="transactions of 25 items",
    witness=_forked,
)
class ForksByTwentyFive(EngineStore):
    """Makes 25 forks at a time, each time of what the parent is then."""

    async def batch_fork(self, agent_id: str, count: int) -> list[str]:
        forks: list[str] = []
        for start in range(0, count, 25):
            forks += await super().batch_fork(agent_id, min(25, count - start))
            await asyncio.sleep(0.01)
        return forks


async def _reads_slowly(ctx: Context) -> object:
    store = await ctx.another(timeout_ms=1_000)
    await store.append_messages("a", samples.messages(3))
    found = []
    try:
        async for message in store.read_messages("a"):
            found.append(message.position)
            await asyncio.sleep(0.6)
    except StoreTimeoutError:
        found.append(-1)
    return found


@mutant(
    "OPS-9",
    killed_by="the_pauses_of_a_reader_count_for_nothing",
    source="async with asyncio.timeout(…) around the loop of an async generator, which yields inside it",
    witness=_reads_slowly,
)
class TimesTheReaderOfMessages(EngineStore):
    """Ends the stream of messages once its reader has taken longer than the deadline of a call."""

    async def read_messages(self, agent_id: str, **part: Any) -> AsyncIterator[Any]:  # type: ignore[override]
        start = time.monotonic()
        async with aclosing(super().read_messages(agent_id, **part)) as stream:  # type: ignore[type-var]
            async for message in stream:
                if time.monotonic() - start > self._context.timeout:
                    raise StoreTimeoutError("the stream was not done in time")
                yield message
