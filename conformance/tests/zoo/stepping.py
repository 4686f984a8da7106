"""Stores that believe the clock, and stores that share their process with others (INFO-2, VAL-5, OPS-3, OPS-5)."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any
from unittest import mock

from kode_conformance.checks.clocks import in_zone
from kode_conformance.checks.closing import another_place
from kode_conformance.context import Context
from kode_conformance.instruments.clock import clock_off
from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import MemoryLayer, OnSqlite, Wrapper, mutant
from conformance.tests.zoo.locks import _take
from conformance.tests.zoo.witnesses import talk
from kode_core.batch import Batch, Outcome, SessionRow
from kode_core.errors import StoreClosedError
from kode_core.layers import Layer
from kode_core.model import now_ms
from kode_core.query import SessionQuery
from kode_core.store import EngineStore
from kode_core.store.metrics import CallMetrics


async def _saved_an_hour_ago(ctx: Context) -> object:
    found = []
    for off in (0, -3600):
        with clock_off(off):
            await ctx.store.save_info("a", samples.info("a"))
        found += [session.updated_at for session in await ctx.store.query_sessions()]
    return found[1] > found[0]


@mutant(
    "INFO-2",
    killed_by="updated_at_only_grows_under_any_clock",
    source="updated_at = now() in the statement that saves the info",
    witness=_saved_an_hour_ago,
)
class InfosAreOfTheClock(MemoryLayer):
    """Gives a session whose info is saved the time of the clock, though it was later already."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        outcomes = await super().commit(batches)
        for batch in batches:
            if batch.info is not None:
                self.space.state(batch.agent_id).updated_at = batch.now
        return outcomes


async def _saved_whole_an_hour_ago(ctx: Context) -> object:
    messages = talk("1", "2", "3")
    for count, off in ((1, 3600), (2, 0), (3, -3600)):
        with clock_off(off):
            await ctx.store.save_messages("a", messages[:count])
    return [m.position for m in await ctx.store.query_messages(order="asc")]


@mutant(
    "MSG-4",
    killed_by="new_messages_are_never_older_under_any_clock",
    source="created_at DEFAULT now()",
    witness=_saved_whole_an_hour_ago,
)
class WholeListsAreOfTheClock(Layer):
    """Gives what a save of the whole list adds the time of the clock."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        return await super().commit([self._stamped(batch) for batch in batches])

    def _stamped(self, batch: Batch) -> Batch:
        if batch.messages is None or batch.messages.expect is None:
            return batch
        rows = tuple(replace(row, created_at=batch.now) for row in batch.messages.append)
        return replace(batch, messages=replace(batch.messages, append=rows))


async def _health_under_a_step(ctx: Context) -> object:
    health = asyncio.ensure_future(ctx.store.health_check())
    await asyncio.sleep(0)
    with clock_off(-3600):
        status = await health
    return status.database is not None and (status.database.latency_ms or 0) >= 0


@mutant(
    "OPS-3",
    killed_by="calls_under_way_heed_no_clock_that_is_set",
    on=OnSqlite,
    source="Date.now() before and after the call",
    witness=_health_under_a_step,
)
class HealthByTheWallClock(Wrapper):
    """Measures the latency of a health check by a clock that can be set."""

    async def health_check(self) -> Any:
        begun = time.time()
        status = await self.inner.health_check()
        if status.database is None:
            return status
        return replace(status, database=replace(status.database, latency_ms=(time.time() - begun) * 1000))


async def _updated_in_a_zone(ctx: Context) -> object:
    with in_zone("EAST-14"):
        await ctx.store.save_info("a", samples.info("a"))
        (session,) = await ctx.store.query_sessions()
    return abs(session.updated_at - time.time() * 1000) < 60_000


@mutant(
    "VAL-5",
    killed_by="nothing_depends_on_the_zone",
    source="datetime.fromtimestamp of a time that is taken for UTC",
    witness=_updated_in_a_zone,
)
class SessionsInLocalTime(Layer):
    """Tells when a session was updated in the time of its zone."""

    async def find_sessions(self, query: SessionQuery) -> Sequence[SessionRow]:
        off = time.localtime().tm_gmtoff * 1000
        return [replace(row, updated_at=row.updated_at + off) for row in await super().find_sessions(query)]


async def _forked_by_two(ctx: Context) -> object:
    other = await ctx.another()
    await ctx.store.save_info("a", samples.info("a"))
    (first,) = await ctx.store.batch_fork("a", 1)
    await asyncio.sleep(0.005)
    (second,) = await other.batch_fork("a", 1)
    return second > first


_countdown = itertools.count(99_999_999, -1)


@mutant(
    "FORK-1",
    killed_by="forks_are_named_in_the_order_of_time",
    source="ids of the second, the node and a counter: those of one second are in the order of the nodes",
    witness=_forked_by_two,
)
class ForksByInstance(EngineStore):
    """Names the forks of one second in the order of instances."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._node, self._numbers = next(_countdown), itertools.count()

    def _name(self) -> str:
        return f"agt-{int(time.time()) // 1000:08d}{self._node:08d}{next(self._numbers):08d}"

    async def batch_fork(self, agent_id: str, count: int) -> list[str]:
        with mock.patch("kode_core.store.forks.new_agent_id", self._name):
            return await super().batch_fork(agent_id, count)


# --- closing, and other places ----------------------------------------------------------------------------------------


async def _sessions_after_close(ctx: Context) -> object:
    for i in range(300):
        await ctx.store.save_info(f"a{i}", samples.info(f"a{i}"))
    store = await ctx.another()
    sessions = store.iter_sessions()
    await anext(sessions)
    await store.close()

    async def rest() -> int:
        return len([session async for session in sessions])

    try:
        async with asyncio.timeout(0.5):
            return await rest()
    except (StoreClosedError, TimeoutError) as exc:
        return type(exc).__name__


@mutant(
    "OPS-5",
    killed_by="all_that_is_under_way_ends_when_a_store_is_closed",
    source="a client that tries again until there is a connection",
    witness=_sessions_after_close,
)
class ReadersWaitForTheNextOpen(EngineStore):
    """Lets one who follows events, or reads sessions, when it is closed wait for it to be opened again."""

    async def iter_sessions(self, **filters: Any) -> AsyncIterator[Any]:  # type: ignore[override]
        async for session in self._patiently(super().iter_sessions(**filters)):
            yield session

    async def follow_events(self, agent_id: str, **how: Any) -> AsyncIterator[Any]:  # type: ignore[override]
        async for event in self._patiently(super().follow_events(agent_id, **how)):
            yield event

    async def _patiently(self, items: AsyncIterator[Any]) -> AsyncIterator[Any]:
        has_begun = not self._context.is_closed
        try:
            async for item in items:
                yield item
        except StoreClosedError:
            if not has_begun:
                raise
            await asyncio.Event().wait()


async def _events_after_close(ctx: Context) -> object:
    await ctx.store.append_events("a", samples.events(700))
    store = await ctx.another()
    events = store.read_events("a")
    await anext(events)
    await store.close()
    try:
        return 1 + len([event async for event in events])
    except StoreClosedError as exc:
        return type(exc).__name__


@mutant(
    "OPS-5",
    killed_by="what_was_begun_before_close_is_over",
    source="while (!this.closed) in a reader of pages",
    witness=_events_after_close,
)
class ReadersEndAtClose(EngineStore):
    """Ends the reading of events when it is closed, as if there were no more."""

    async def read_events(self, agent_id: str, **how: Any) -> AsyncIterator[Any]:  # type: ignore[override]
        self._context.check_open()
        try:
            async for event in super().read_events(agent_id, **how):
                yield event
        except StoreClosedError:
            return


async def _locked_while_another_closes(ctx: Context) -> object:
    await ctx.store.acquire_agent_lock("a")
    await (await ctx.another()).close()
    return await _take(ctx.store)


@mutant(
    "OPS-5",
    killed_by="a_closed_instance_takes_nothing_along",
    source="KODE SDK: close clears the map of locks, which is of the module",
    witness=_locked_while_another_closes,
)
class CloseFreesAllLocks(MemoryLayer):
    """Frees the locks of all instances when one is closed."""

    async def close(self) -> None:
        self.space.leases.clear()
        await super().close()


async def _counted_elsewhere(ctx: Context) -> object:
    async with another_place(ctx) as place:
        before = (await place.store.get_metrics()).operations.saves
        await ctx.store.save_messages("a", talk("1"))
        return (await place.store.get_metrics()).operations.saves - before


_book = CallMetrics()


@mutant(
    "OPS-3",
    killed_by="ID-2.two_stores_share_nothing",
    source="counters of the module",
    witness=_counted_elsewhere,
)
class CountsForAllStores(EngineStore):
    """Counts the calls of all stores of the process together."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._context.call_metrics = _book


async def _times_of_two(ctx: Context) -> object:
    times = []
    for i in range(3):
        await ctx.store.append_messages("a", [samples.message(i)])
        await asyncio.sleep(0.02)
        times = [message.created_at for message in await ctx.store.query_messages(agent_id="a")]
    return len(set(times))


@mutant(
    "QRY-2",
    killed_by="times_of_messages_and_of_changes",
    source="DATETIME of MySQL without (3), and dates of HTTP, count seconds",
    witness=_times_of_two,
)
class CountsSeconds(EngineStore):
    """Takes its times from a clock that counts seconds."""

    def __init__(self, opener: Any, *, clock: Callable[[], int] = now_ms, **options: Any) -> None:
        super().__init__(opener, clock=lambda: clock() // 1000 * 1000, **options)
