"""Stores that prune wrongly (LIFE-6)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from kode_conformance.context import Context
from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import MemoryLayer, mutant
from conformance.tests.zoo.witnesses import seen
from kode_core.batch import Applied, Batch, Doc, DocKind, EventDrop, EventRow, Outcome
from kode_core.engine import Progress, unwatched
from kode_core.errors import InvalidArgumentError
from kode_core.layers import Layer
from kode_core.model import Snapshot
from kode_core.protocols import ExtendedStore
from kode_core.report import PruneResult
from kode_core.store import EngineStore


async def _appended(store: ExtendedStore) -> list[int]:
    return list(await store.append_events("a", samples.events(200)))


async def _snapshots(store: ExtendedStore) -> None:
    for i in range(3):
        await store.save_snapshot("a", samples.snapshot(f"s{i}", samples.T0 + i))


async def _offsets(store: ExtendedStore) -> list[int]:
    return [event.offset async for event in store.read_events("a", after_offset=0)]


async def _left_after_the_fifth(ctx: Context) -> object:
    offsets = await _appended(ctx.store)
    await ctx.store.prune("a", events_before_offset=offsets[5])
    return await _offsets(ctx.store)


# --- kinds ------------------------------------------------------------------------------------------------------------


@mutant(
    "LIFE-6",
    killed_by="a_prune_of_nothing_is_refused",
    source="`if not kinds: return`",
    witness=seen(lambda s: s.prune("a")),
)
class PruneOfNothingSucceeds(EngineStore):
    """Accepts a prune that names nothing."""

    async def prune(self, agent_id: str, **wanted: Any) -> PruneResult:
        if agent_id and all(value is None for value in wanted.values()):
            return PruneResult()
        return await super().prune(agent_id, **wanted)


@mutant(
    "LIFE-6",
    killed_by="the_newest_of_each_kind_stay",
    source="`sorted(…)[-n:]` of a list that is newest first",
    witness=seen(_snapshots, lambda s: s.prune("a", keep_snapshots=1), lambda s: s.list_snapshots("a")),
)
class KeepsTheOldestSnapshots(EngineStore):
    """Keeps the last snapshots of ``list_snapshots``, which are the oldest."""

    async def prune(self, agent_id: str, *, keep_snapshots: Any = None, **wanted: Any) -> PruneResult:
        if type(keep_snapshots) is not int or keep_snapshots < 0 or any(v is not None for v in wanted.values()):
            return await super().prune(agent_id, keep_snapshots=keep_snapshots, **wanted)
        found: list[Snapshot] = await self.list_snapshots(agent_id)
        gone = found[: max(len(found) - keep_snapshots, 0)]
        for snapshot in gone:
            await self.delete_snapshot(agent_id, snapshot.id)
        return PruneResult(snapshots=len(gone))


async def _progress(ctx: Context) -> object:
    await _snapshots(ctx.store)
    await ctx.store.save_history_window("a", samples.window())
    steps: list[int] = []
    await ctx.store.prune(
        "a", keep_snapshots=0, keep_history_windows=0, progress=lambda done, total: steps.append(done)
    )
    return steps


@mutant("LIFE-6", killed_by="all_kinds_are_pruned_at_once", source="one call for each kind", witness=_progress)
class CountsEachKindAnew(EngineStore):
    """Reports the progress of each kind from 0."""

    async def prune(self, agent_id: str, *, progress: Any = None, **wanted: Any) -> PruneResult:
        kinds = {name: value for name, value in wanted.items() if name.startswith("keep") and value is not None}
        if len(kinds) < 2 or not callable(progress):
            return await super().prune(agent_id, progress=progress, **wanted)
        results = []
        for name, value in kinds.items():
            results.append(await super().prune(agent_id, progress=progress, **{name: value}))
        names = ("events", "snapshots", "history_windows", "compression_records", "recovered_files")
        return PruneResult(**{name: sum(getattr(result, name) for result in results) for name in names})


# --- events -----------------------------------------------------------------------------------------------------------


@mutant(
    "LIFE-6",
    killed_by="events_before_an_offset_go",
    source='`DELETE … WHERE "offset" <= ?`',
    witness=_left_after_the_fifth,
)
class BoundGoesToo(EngineStore):
    """Removes the event at the bound, too."""

    async def prune(self, agent_id: str, *, events_before_offset: Any = None, **wanted: Any) -> PruneResult:
        if type(events_before_offset) is int and 0 < events_before_offset < 2**61:
            events_before_offset += 1
        return await super().prune(agent_id, events_before_offset=events_before_offset, **wanted)


@mutant(
    "LIFE-6",
    killed_by="events_before_an_offset_go",
    source='`DELETE … WHERE "offset" < ?`, and no more',
    witness=seen(_appended, lambda s: s.prune("a", events_before_offset=2**62), lambda s: s.last_bookmark("a")),
)
class LastBookmarkGoes(MemoryLayer):
    """Removes the event of the last bookmark, too."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        outcomes = await super().commit(batches)
        for batch, outcome in zip(batches, outcomes, strict=True):
            if batch.drop_events is not None and isinstance(outcome, Applied):
                self.space.state(batch.agent_id).log.drop(EventDrop(batch.drop_events.before, -1))
        return outcomes


async def _left_after_a_time(ctx: Context) -> object:
    await _appended(ctx.store)
    times = [event.bookmark.timestamp async for event in ctx.store.read_events("a")]
    await ctx.store.prune("a", events_before=times[5])
    return len(await _offsets(ctx.store))


@mutant("LIFE-6", killed_by="events_before_a_time_go", source="`timestamp <= cutoff`", witness=_left_after_a_time)
class TimeIsInclusive(EngineStore):
    """Removes the events of the time itself, too."""

    async def prune(self, agent_id: str, *, events_before: Any = None, **wanted: Any) -> PruneResult:
        if type(events_before) is int:
            events_before += 1
        return await super().prune(agent_id, events_before=events_before, **wanted)


async def _numbers_afterwards(ctx: Context) -> object:
    offsets = await _appended(ctx.store)
    await ctx.store.prune("a", events_before_offset=2**62)
    return (await ctx.store.emit("a", "x")).offset - offsets[-1]


@mutant(
    "LIFE-6",
    killed_by="producers_go_on_after_a_prune",
    source="`offset = len(log) + 1`",
    witness=_numbers_afterwards,
)
class OffsetsFromTheLength(MemoryLayer):
    """Gives the next event of a pruned log the offset after the number of those that are left."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        outcomes = await super().commit(batches)
        for batch in batches:
            log = self.space.state(batch.agent_id).log
            if batch.drop_events is not None:
                log.next_offset = len(log) + 1
        return outcomes


async def _followed(ctx: Context) -> object:
    offsets = await _appended(ctx.store)
    follower = ctx.store.follow_events("a")
    for _ in range(3):
        await anext(follower)
    await ctx.store.prune("a", events_before_offset=offsets[190])
    seen_last = 0
    try:
        while seen_last != offsets[-1]:
            seen_last = (await asyncio.wait_for(anext(follower), 30)).offset
    except Exception as exc:
        return type(exc).__name__
    finally:
        await follower.aclose()
    return "all"


@mutant(
    "LIFE-6",
    killed_by="followers_go_on_after_a_prune",
    source="a follower that knows its agent by the last event that it read",
    witness=_followed,
    raises="AgentDeletedError",
)
class PruneEndsFollowers(Layer):
    """Keeps no mark of a prune, so that followers take it for a delete."""

    async def docs(self, agent_id: str, kind: DocKind, key: str | None = None) -> Sequence[Doc]:
        return [] if kind is DocKind.LAYER and key == "pruned" else await super().docs(agent_id, kind, key)


async def _appended_meanwhile(ctx: Context) -> object:
    for start in range(0, 3000, 1000):
        await ctx.store.append_events("a", samples.events(1000, start))
    bound = (await _offsets(ctx.store))[2900]

    async def write() -> None:
        for i in range(200):
            await ctx.store.append_events("a", samples.events(5, 10_000 + 5 * i))

    await asyncio.gather(write(), ctx.store.prune("a", events_before_offset=bound))
    return len(await _offsets(ctx.store))


@mutant(
    "LIFE-6",
    killed_by="writers_and_readers_go_on_meanwhile",
    source="a log that is read, cut and written back",
    witness=_appended_meanwhile,
)
class DropsWhatCameMeanwhile(Layer):
    """Drops the events, too, that were appended since the drop was planned."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self._newest: dict[str, int] = {}

    async def last_event(self, agent_id: str) -> EventRow | None:
        self._newest.pop(agent_id, None)
        return await super().last_event(agent_id)

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        if any(batch.drop_events for batch in batches):
            await asyncio.sleep(0.01)
        outcomes = await super().commit([self._wider(batch) for batch in batches])
        for batch, outcome in zip(batches, outcomes, strict=True):
            if isinstance(outcome, Applied) and outcome.offsets:
                self._newest[batch.agent_id] = max(outcome.offsets)
        return outcomes

    def _wider(self, batch: Batch) -> Batch:
        newest = self._newest.get(batch.agent_id)
        if batch.drop_events is None or newest is None:
            return batch
        return replace(batch, drop_events=EventDrop(newest + 1, batch.drop_events.keep))


async def _steps(ctx: Context) -> object:
    for start in range(0, 3000, 1000):
        await ctx.store.append_events("a", samples.events(1000, start))
    steps: list[int] = []
    await ctx.store.prune("a", events_before_offset=2**62, progress=lambda done, total: steps.append(done))
    return len(steps)


@mutant(
    "LIFE-6",
    killed_by="a_prune_that_ends_early_leaves_the_newer_part",
    source="one DELETE for the whole log",
    witness=_steps,
)
class PrunesWithoutSteps(EngineStore):
    """Removes everything before it reports any progress."""

    async def prune(self, agent_id: str, *, progress: Progress | None = None, **wanted: Any) -> PruneResult:
        if progress is not None and not callable(progress):
            raise InvalidArgumentError("progress must be a function")
        result = await super().prune(agent_id, **wanted)
        (progress or unwatched)(result.events, None)
        return result


async def _left_of_many(ctx: Context) -> object:
    for start in range(0, 12_000, 1000):
        await ctx.store.append_events("a", samples.events(1000, start))
    await ctx.store.prune("a", events_before_offset=2**62)
    return len(await _offsets(ctx.store))


@mutant(
    "LIFE-6",
    killed_by="a_long_log_is_pruned",
    source="`for _ in range(limit)` around the steps",
    witness=_left_of_many,
)
class GivesUpAfterSomeSteps(Layer):
    """Drops nothing any more after eight steps of one agent."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self._drops: dict[str, int] = {}

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        return await super().commit([self._limited(batch) for batch in batches])

    def _limited(self, batch: Batch) -> Batch:
        if batch.drop_events is None:
            return batch
        count = self._drops[batch.agent_id] = self._drops.get(batch.agent_id, 0) + 1
        return batch if count <= 8 else replace(batch, drop_events=None)
