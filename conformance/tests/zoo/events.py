"""Stores that get the event log wrong (EVT clauses)."""

from __future__ import annotations

from collections.abc import Sequence

from kode_conformance.context import Context
from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import MemoryLayer, OnSqlite, mutant
from conformance.tests.zoo.bodies import body
from conformance.tests.zoo.witnesses import happened, restart, seen
from kode_core.backends.memory.engine import MemoryEngine
from kode_core.batch import Applied, Batch, EventRange, EventRow, EventWrite, Outcome
from kode_core.engine import Engine
from kode_core.engines.event_log import EventLog
from kode_core.layers import Layer


class Events(Layer):
    """Writes other events than it was given, and returns as many offsets as are expected."""

    def written(self, batch: Batch) -> Sequence[EventWrite]:
        raise NotImplementedError

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        written = [replace(b, events=tuple(self.written(b))) if b.events else b for b in batches]
        outcomes = await super().commit(written)
        return [_filled(o, len(b.events)) for b, o in zip(batches, outcomes, strict=True)]


def _filled(outcome: Outcome, count: int) -> Outcome:
    if not isinstance(outcome, Applied):
        return outcome
    return replace(outcome, offsets=(*outcome.offsets, *[1] * count)[:count])


def again(event: EventWrite, spaces: int = 1) -> EventWrite:
    """The same event as another row: white space behind JSON means nothing."""
    return replace(event, body=body(event.body.text + " " * spaces))


# --- keeping ----------------------------------------------------------------------------------------------------------


@mutant(
    "EVT-1",
    killed_by="concurrent_appends_lose_nothing",
    source="KODE SDK JSONStore: a timer and a read flush one buffer at once, and 300 appends become 362 lines",
    witness=seen(lambda s: s.append_events("a", happened(*range(10))), lambda s: s.read_events("a")),
    also=("EVT-1.concurrent_appends_make_one_log",),
)
class FlushesTwice(Events):
    """Writes some events twice."""

    def written(self, batch: Batch) -> Sequence[EventWrite]:
        return [*batch.events, *(again(event) for event in batch.events if event.seq % 7 == 3)]


@mutant(
    "EVT-1",
    killed_by="concurrent_appends_lose_nothing",
    source="buffers of a fixed size",
    witness=seen(lambda s: s.append_events("a", happened(*range(60))), lambda s: s.read_events("a")),
)
class BuffersFifty(Events):
    """Keeps the last fifty events of a burst."""

    def written(self, batch: Batch) -> Sequence[EventWrite]:
        return batch.events[-50:]


@mutant(
    "EVT-1",
    killed_by="concurrent_appends_lose_nothing",
    source="KODE SDK PostgresStore: events, todos, history and media are on the disk of one worker",
    witness=seen(lambda s, t: s.append_events("a", happened(0)), lambda s, t: t.read_events("a")),
)
class EventsStayOnTheNode(Layer):
    """Keeps events to the instance that wrote them."""

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner)
        self._own = MemoryEngine()

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        shared = await super().commit([replace(batch, events=()) for batch in batches])
        own = await self._own.commit(
            [Batch(agent_id=b.agent_id, op_id=b.op_id, now=0, events=b.events) for b in batches]
        )
        return [
            replace(s, offsets=o.offsets) if isinstance(s, Applied) else s for s, o in zip(shared, own, strict=True)
        ]

    async def events(self, agent_id: str, span: EventRange) -> Sequence[EventRow]:
        return await self._own.events(agent_id, span)


@mutant(
    "EVT-1",
    killed_by="events_survive_a_restart",
    source="KODE SDK JSONStore: an append right after the start overwrites the log that was not recovered yet",
    witness=seen(
        lambda s: s.append_events("a", happened(0, 1)),
        restart,
        lambda s: s.append_events("a", happened(2)),
        lambda s: s.read_events("a"),
    ),
)
class StartsTheLogAnew(MemoryLayer):
    """Loses what was there when an instance appends for the first time."""

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner)
        self._known: set[str] = set()

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        for batch in batches:
            state = self.space.states.get(batch.agent_id)
            if batch.events and state is not None and batch.agent_id not in self._known:
                state.log = EventLog(state.log.next_offset)
            self._known.add(batch.agent_id)
        return await super().commit(batches)


@mutant(
    "EVT-1",
    killed_by="events_survive_a_restart",
    source="KODE SDK JSONStore: a second instance recovers the live log of the first",
    witness=seen(lambda s: s.append_events("a", happened(0, 1)), restart, lambda s: s.read_events("a")),
)
class RecoversALiveLog(MemoryLayer):
    """Appends the last event again whenever an instance is opened."""

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner)
        for state in self.space.states.values():
            if len(state.log):
                last = again(state.log.write_of(len(state.log) - 1))
                state.log.apply([last], state.log.offsets_for([last]))


async def _told_and_stored(ctx: Context) -> object:
    other = await ctx.another()
    told = [await store.append_event("a", samples.event(i)) for i, store in enumerate((ctx.store, other) * 2)]
    return told == [event.offset async for event in ctx.store.read_events("a")]


@mutant(
    "EVT-2",
    killed_by="EVT-1.appends_of_several_processes",
    on=OnSqlite,
    source="KODE SDK: cursors and seqs are counted in memory",
    witness=_told_and_stored,
)
class TellsOffsetsOfItsOwn(Layer):
    """Tells offsets that the process counts itself."""

    _count = 0

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        return [self._told(outcome) for outcome in await super().commit(batches)]

    def _told(self, outcome: Outcome) -> Outcome:
        if not isinstance(outcome, Applied):
            return outcome
        start = self._count
        self._count += len(outcome.offsets)
        return replace(outcome, offsets=tuple(range(start + 1, self._count + 1)))


# --- offsets ----------------------------------------------------------------------------------------------------------


@mutant(
    "EVT-2",
    killed_by="offsets_grow_and_never_come_again",
    source="max(offset) + 1",
    witness=seen(
        lambda s: s.append_events("a", happened(0, 1)),
        lambda s: s.delete("a"),
        lambda s: s.append_events("a", happened(0, 1)),
    ),
)
class OffsetsStartAgain(MemoryLayer):
    """Gives the offsets of a deleted agent again."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        outcomes = await super().commit(batches)
        if any(batch.delete for batch in batches):
            self.space.counter = 0
        return outcomes


@mutant(
    "EVT-2",
    killed_by="offsets_go_on_after_a_restart",
    source="KODE SDK: the counter of offsets is in memory",
    witness=seen(
        lambda s: s.append_events("a", happened(0, 1)),
        lambda s: s.delete("a"),
        restart,
        lambda s: s.append_events("a", happened(0, 1)),
    ),
)
class ForgetsItsCounter(MemoryLayer):
    """Counts anew when an instance is opened."""

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner)
        self.space.counter = 0


@mutant(
    "EVT-2",
    killed_by="who_saw_an_offset_missed_nothing_below",
    source="sequences of PostgreSQL: numbers are given before the commit, and transactions overtake each other",
    witness=seen(
        lambda s: s.append_events("a", happened(*range(9))),
        lambda s: s.read_events("a", after_offset=0),
    ),
)
class OffsetsOvertake(Layer):
    """Shows some events later than others that came after them."""

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner)
        self._shown: set[int] = set()

    async def events(self, agent_id: str, span: EventRange) -> Sequence[EventRow]:
        found = await super().events(agent_id, span)
        late = {row.offset for row in found[:-1] if row.offset % 5 == 3} - self._shown
        self._shown |= late
        return [row for row in found if row.offset not in late]


# --- repetitions ------------------------------------------------------------------------------------------------------


@mutant(
    "EVT-3",
    killed_by="seq_may_repeat",
    source="a primary key on (agent, seq)",
    witness=seen(
        lambda s: s.append_events("a", [samples.event(4, delta="one"), samples.event(4, delta="two")]),
        lambda s: s.read_events("a"),
    ),
    also=("MSG-8.random_histories_follow_the_model",),
)
class DropsRepeatedSeq(Layer):
    """Keeps one event of each seq."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        kept = []
        for batch in batches:
            known = {row.seq for row in await self.inner.events(batch.agent_id, EventRange(limit=10**6))}
            first = {event.seq: event for event in reversed(batch.events) if event.seq not in known}
            kept.append(replace(batch, events=tuple(reversed(first.values()))))
        outcomes = await super().commit(kept)
        return [_filled(o, len(b.events)) for b, o in zip(batches, outcomes, strict=True)]


@mutant(
    "EVT-4",
    killed_by="the_identical_entry_again_is_stored_once",
    source="KODE SDK: a resumed agent stores the seqs of its last events twice",
    witness=seen(lambda s: s.append_events("a", happened(0)), lambda s: s.append_events("a", happened(0))),
)
class StoresRepeats(Events):
    """Stores an event again that it has."""

    _count = 0

    def written(self, batch: Batch) -> Sequence[EventWrite]:
        self._count += 1
        return [again(event, self._count * 100 + i) for i, event in enumerate(batch.events)]


@mutant(
    "EVT-4",
    killed_by="a_repeat_after_a_restart_is_stored_once",
    source="caches of what was sent",
    witness=seen(
        lambda s: s.append_events("a", happened(0)),
        restart,
        lambda s: s.append_events("a", happened(0)),
    ),
)
class RemembersWhatItStored(Events):
    """Knows only the repeats of what the same instance wrote."""

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner)
        self._mark = id(self) % 1000 + 1

    def written(self, batch: Batch) -> Sequence[EventWrite]:
        return [again(event, self._mark) for event in batch.events]
