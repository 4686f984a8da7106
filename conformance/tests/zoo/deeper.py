"""Stores with faults that show under cancellation, kills, outages and load (OPS, FORK-3, DUR and VAL-4 clauses)."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from kode_conformance.context import Context
from kode_conformance.values import samples

from conformance.tests.zoo.base import OnJson, mutant
from conformance.tests.zoo.witnesses import happened, talk
from kode_core.backends.json_files.folder import FORMAT, Folder, Stripe
from kode_core.backends.json_files.journal import Journal
from kode_core.batch import Applied, Batch, Child, Outcome
from kode_core.codec import Body
from kode_core.errors import StorageError, StoreClosedError, StoreUnavailableError
from kode_core.layers import Layer
from kode_core.model import StoredEvent
from kode_core.report import StoreHealthStatus
from kode_core.store import EngineStore

# --- cancellation -----------------------------------------------------------------------------------------------------


async def _forks_cancelled(ctx: Context) -> object:
    await ctx.store.save_turn("p", messages=talk("1"), info=samples.info("p"))
    halves = set()
    for steps in range(8):
        fork = asyncio.ensure_future(ctx.store.batch_fork("p", 1))
        for _ in range(steps):
            await asyncio.sleep(0)
        fork.cancel()
        await asyncio.gather(fork, return_exceptions=True)
        await asyncio.sleep(0.01)
        halves |= {len(await ctx.store.load_messages(agent)) for agent in await ctx.store.list("agt-")}
    return 0 in halves


class _InfoFirst(Layer):
    pause = 0.0

    async def fork(self, agent_id: str, children: Sequence[Child], expect: Body, now: int) -> bool:
        summary = await self.inner.summary(agent_id)
        if summary is None or summary.info is None or summary.info.body != expect:
            return False
        for child in children:
            made = Batch(agent_id=child.agent_id, op_id=f"fork-{child.agent_id}", now=now, info=child.info)
            await self.inner.commit([made])
        await asyncio.sleep(self.pause)
        return await self.inner.fork(agent_id, children, expect, now)


@mutant(
    "FORK-3",
    killed_by="OPS-9.a_fork_cancelled_at_any_step",
    source="KODE SDK: a fork is made, and its messages are saved afterwards",
    witness=_forks_cancelled,
)
class ForksInSteps(EngineStore):
    """Makes a fork with its info first, and copies into it afterwards."""

    async def batch_fork(self, agent_id: str, count: int) -> Any:
        made = await super().batch_fork(agent_id, count)
        messages = await self.load_messages(agent_id)
        for fork in made:
            await self.save_messages(fork, [])
        for fork in made:
            await self.save_messages(fork, messages)
        return made


async def _fork_seen_half(ctx: Context) -> object:
    other = await ctx.another()
    await ctx.store.save_turn("p", messages=talk("1"), info=samples.info("p"))
    fork = asyncio.ensure_future(ctx.store.batch_fork("p", 1))
    half = False
    while not fork.done():
        half |= any([not await other.load_messages(agent) for agent in await other.list("agt-")])
    return half


@mutant(
    "FORK-3",
    killed_by="a_fork_killed_at_its_calls",
    on=OnJson,
    source="KODE SDK: a fork is made, and its messages are saved afterwards",
    witness=_fork_seen_half,
)
class ForksInStepsInFiles(_InfoFirst):
    """Makes the file of a fork with its info first, and copies into it afterwards."""

    pause = 0.01


async def _reads_cancelled(ctx: Context) -> object:
    for _ in range(12):
        read = asyncio.ensure_future(ctx.store.load_messages("a"))
        await asyncio.sleep(0)
        read.cancel()
        await asyncio.gather(read, return_exceptions=True)
    return await asyncio.gather(ctx.store.exists("a"), return_exceptions=True)


@mutant(
    "OPS-9",
    killed_by="a_read_cancelled_at_any_step",
    source="a connection that is given back without a `finally`",
    witness=_reads_cancelled,
    raises="the pool",
)
class LosesConnections(Layer):
    """Loses a connection of its pool with each call that is cancelled."""

    _free = 5

    async def around(self, verb: str, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        if self._free == 0 and verb != "close":
            raise StoreUnavailableError("the pool has no connection left")
        self._free -= verb != "close"
        await asyncio.sleep(0)
        try:
            found = await call(*args, **kwargs)
        except Exception:
            self._free += 1
            raise
        self._free += 1
        return found


async def _abandoned(ctx: Context) -> object:
    await ctx.store.append_events("a", happened(0, 1))
    for _ in range(12):
        async for _ in ctx.store.read_events("a"):
            break
    return await asyncio.gather(ctx.store.append_events("a", happened(2)), return_exceptions=True)


@mutant(
    "EVT-5",
    killed_by="iterators_given_up_midway",
    source="cursors that stay open until they are read to their end",
    witness=_abandoned,
    raises="too many open cursors",
)
class CursorsStayOpen(EngineStore):
    """Fails when too many iterators were not read to their end."""

    _open = 0

    async def read_events(self, agent_id: str, **how: Any) -> AsyncIterator[StoredEvent]:
        self._open += 1
        async for event in super().read_events(agent_id, **how):
            yield event
        self._open -= 1

    async def append_events(self, agent_id: str, timelines: Sequence[Any], *, fence: Any = None) -> Sequence[int]:
        if self._open > 5:
            raise StorageError("too many open cursors")
        return await super().append_events(agent_id, timelines, fence=fence)

    async def append_event(self, agent_id: str, timeline: Any, *, fence: Any = None) -> int:
        return (await self.append_events(agent_id, [timeline], fence=fence))[0]


async def _followed_to_the_close(ctx: Context) -> object:
    store = await ctx.another()

    async def follow() -> None:
        async for _ in store.follow_events("a"):
            pass

    follower = asyncio.ensure_future(follow())
    await asyncio.sleep(0.02)
    await store.close()
    (result,) = await asyncio.gather(follower, return_exceptions=True)
    return type(result).__name__


@mutant(
    "OPS-5",
    killed_by="close_ends_what_waits",
    source="KODE SDK SqliteStore: calls after close raise the error of the driver",
    witness=_followed_to_the_close,
)
class FollowersFailAtClose(EngineStore):
    """Raises an error of the driver in those who follow when it is closed."""

    async def follow_events(self, agent_id: str, **how: Any) -> AsyncIterator[StoredEvent]:
        try:
            async for event in super().follow_events(agent_id, **how):
                yield event
        except StoreClosedError:
            raise TypeError("The database connection is not open") from None


# --- outages ----------------------------------------------------------------------------------------------------------


async def _well_again(ctx: Context) -> object:
    await ctx.store.save_messages("a", talk("1"))
    await ctx.harness.break_backend(ctx.handle)
    during = await asyncio.gather(ctx.store.load_messages("a"), ctx.store.health_check(), return_exceptions=True)
    await ctx.harness.heal_backend(ctx.handle)
    (after,) = await asyncio.gather(ctx.store.load_messages("a"), return_exceptions=True)
    told = getattr(during[1], "healthy", None)
    return isinstance(during[0], Exception), told, isinstance(after, Exception)


@mutant(
    "OPS-6",
    killed_by="OPS-1.an_outage_is_told_and_ends",
    on=OnJson,
    source="KODE SDK PostgresStore: a store whose start failed fails for good",
    witness=_well_again,
    raises="the connection was lost",
)
class OnceDownAlwaysDown(Layer):
    """Does not work again after the backend failed once."""

    _down = False

    async def around(self, verb: str, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        if self._down and verb != "close":
            raise StoreUnavailableError("the connection was lost")
        try:
            return await call(*args, **kwargs)
        except StorageError:
            self._down = True
            raise


@mutant(
    "OPS-1",
    killed_by="an_outage_is_told_and_ends",
    on=OnJson,
    source="health that is cached",
    witness=_well_again,
)
class HealthyInAnOutage(EngineStore):
    """Says that it is healthy while its files are gone."""

    async def health_check(self) -> StoreHealthStatus:
        return StoreHealthStatus(healthy=True, checked_at=0)


async def _save_in_an_outage(ctx: Context) -> object:
    await ctx.store.save_messages("a", talk("1"))
    await ctx.harness.break_backend(ctx.handle)
    (saved,) = await asyncio.gather(ctx.store.save_todos("a", samples.todos("x")), return_exceptions=True)
    await ctx.harness.heal_backend(ctx.handle)
    return isinstance(saved, Exception)


@mutant(
    "OPS-10",
    killed_by="nothing_is_lost_or_doubled_in_outages",
    on=OnJson,
    source="KODE SDK JSONStore: errors of writing events are swallowed",
    witness=_save_in_an_outage,
)
class SwallowsFailures(Layer):
    """Says that a write succeeded that failed."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        found = await super().commit(batches)
        done = [Applied(offsets=tuple(range(1, len(batch.events) + 1))) for batch in batches]
        return [d if isinstance(o, StorageError) else o for d, o in zip(done, found, strict=True)]


# --- files on the disk ------------------------------------------------------------------------------------------------


async def _newer(ctx: Context) -> object:
    await ctx.close(ctx.store)
    await ctx.harness.raise_version(ctx.handle)
    (opened,) = await asyncio.gather(ctx.another(), return_exceptions=True)
    return isinstance(opened, Exception)


@mutant(
    "OPS-8",
    killed_by="a_newer_version_is_refused",
    on=OnJson,
    source="KODE SDK: no store has a version",
    witness=_newer,
)
class KnowsNoVersions(Folder):
    """Opens what a newer version wrote."""

    def open(self) -> None:
        mark = self.base / ".kode" / "format"
        if mark.exists():
            mark.write_text(f"{FORMAT}\n")
        super().open()


@mutant(
    "OPS-7",
    killed_by="a_first_open_killed_at_its_calls",
    on=OnJson,
    source="files that are made empty first",
    witness=lambda ctx: _opened_on_an_empty_mark(ctx),
)
class MarksInSteps(Folder):
    """Makes the file with its version empty first, and cannot open a folder in which it stayed so."""

    def open(self) -> None:
        mark = self.base / ".kode" / "format"
        mark.parent.mkdir(parents=True, exist_ok=True)
        if not mark.exists():
            mark.touch()
            time.sleep(0.02)
            mark.write_text(f"{FORMAT}\n")
        super().open()


async def _opened_on_an_empty_mark(ctx: Context) -> object:
    """True if the version's file was ever empty, as another process sees it."""
    base = ctx.folder / "fresh"
    mark = base / ".kode" / "format"
    sizes: set[int] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            if mark.exists():
                sizes.add(mark.stat().st_size)

    watcher = threading.Thread(target=watch)
    watcher.start()
    store: Any = await ctx.harness.open({"base_dir": str(base)})
    done.set()
    watcher.join()
    await store.close()
    return 0 in sizes


async def _raw_after_delete(ctx: Context) -> object:
    await ctx.store.save_messages("a", talk("a secret"))
    await ctx.store.delete("a")
    return "a secret" in await ctx.harness.raw_dump(ctx.handle)


@mutant(
    "LIFE-3",
    killed_by="nothing_of_a_deleted_agent_is_stored",
    on=OnJson,
    source="bins, and rows with a mark `deleted`",
    witness=_raw_after_delete,
)
class KeepsABin(Folder):
    """Keeps the file of an agent that was deleted, under another name."""

    def tidy(self, stripe: Stripe, journal: Journal, *, replaced: bool) -> None:
        if journal.state.is_empty and journal.path.exists():
            (self.base / f"{journal.path.name}.deleted").write_bytes(journal.path.read_bytes())
        super().tidy(stripe, journal, replaced=replaced)


async def _size_of_the_same(ctx: Context) -> object:
    for i in range(40):
        await ctx.store.save_todos("a", samples.todos(f"{i}" + "x" * 100_000))
    return len(await ctx.harness.raw_dump(ctx.handle)) > 3_500_000


@mutant(
    "MSG-5",
    killed_by="the_same_again_does_not_pile_up",
    on=OnJson,
    source="KODE SDK JSONStore: 2,000 appends of 0.3 MB leave a log of 9 MB",
    witness=_size_of_the_same,
)
class NeverCompacts(Folder):
    """Keeps everything that was ever written."""

    def tidy(self, stripe: Stripe, journal: Journal, *, replaced: bool) -> None:
        if journal.state.is_empty:
            super().tidy(stripe, journal, replaced=replaced)
