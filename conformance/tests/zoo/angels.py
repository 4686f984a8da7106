"""Angels: stores that do everything right in an unusual way, and must pass."""

from __future__ import annotations

import asyncio
import inspect
import random
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final

from kode_sqlite.engine import SqliteEngine
from kode_sqlite.options import SqliteOptions
from msgspec.structs import replace

from conformance.tests.zoo.base import OnJson, OnMemory, OnSqlite, Wrapper, ZooHarness
from kode_core.backends.json_files.folder import Folder, Stripe
from kode_core.backends.json_files.journal import Journal
from kode_core.batch import Applied, Batch, Doc, EventRange, EventRow, ListRows, Outcome, Refused
from kode_core.engine import Engine
from kode_core.errors import KodeError
from kode_core.layers import Layer
from kode_core.store import EngineStore

ANGELS: Final[dict[str, type[ZooHarness]]] = {}


def angel(base: type[ZooHarness], **settings: Any) -> Callable[[type], type]:
    """Register a class as the odd part of a store; ``patches`` are constants to change, ``without`` leaves checks
    out that would take minutes."""

    def register(part: type) -> type:
        name = part.__name__
        names = {"__module__": part.__module__, "__qualname__": f"{name}.Harness", "part": part, "name": name}
        ANGELS[name] = type("Harness", (base,), {"patches": {}, "without": (), **names, **settings})
        part.Harness = ANGELS[name]  # type: ignore[attr-defined]
        return part

    return register


_AT_EACH_STEP = ("cancel", "in_doubt", "holds_up_no_other", "fails_no_other", "damage_of_any")
_MANY_CALLS = (
    *(
        "after_each",
        "unusual_calls",
        "any_json_value",
        "what_json_cannot",
        "thousands_are",
        "a_thousand_locks",
        "random_",
        "every_legal_id",
    ),
    *_AT_EACH_STEP,
)


@angel(OnMemory, without=_MANY_CALLS)
class Slow(Layer):
    """Takes up to 20 ms for each call of the engine."""

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner)
        self._random = random.Random(1)

    async def around(self, verb: str, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        await asyncio.sleep(self._random.random() ** 3 * 0.02)
        return await call(*args, **kwargs)


@angel(OnMemory)
class YieldsEverywhere(Layer):
    """Gives others their turn before and after each call, a different number of times."""

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner)
        self._random = random.Random(2)

    async def around(self, verb: str, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        for _ in range(self._random.randrange(4)):
            await asyncio.sleep(0)
        found = await call(*args, **kwargs)
        for _ in range(self._random.randrange(4)):
            await asyncio.sleep(0)
        return found


@angel(OnMemory)
class GivesTuples(Layer):
    """Gives tuples wherever the engine's protocol says Sequence."""

    async def around(self, verb: str, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        found = await call(*args, **kwargs)
        if isinstance(found, ListRows):
            return replace(found, rows=tuple(found.rows))
        return tuple(found) if isinstance(found, list) else found


@angel(OnMemory)
class OffsetsInArrays(EngineStore):
    """Gives the offsets of events as an array, which is a Sequence."""

    async def append_events(self, agent_id: str, timelines: Sequence[Any], *, fence: Any = None) -> Sequence[int]:
        return array("q", await super().append_events(agent_id, timelines, fence=fence))


class _Intercepts(Wrapper):
    """Sees every call of the store that it wraps."""

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.inner, name)
        return self._seen(name, found) if inspect.ismethod(found) else found

    def _seen(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        raise NotImplementedError


_SUBCLASSES: dict[type, type] = {}


@angel(OnMemory, without=("each_call_is_seen_once",))
class ErrorsOfItsOwn(_Intercepts):
    """Raises subclasses of the errors; the observers of the store inside see the errors themselves."""

    def _seen(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        async def awaited(*args: Any, **kwargs: Any) -> Any:
            try:
                return await method(*args, **kwargs)
            except KodeError as exc:
                raise self._own(exc) from exc.__cause__

        def called(*args: Any, **kwargs: Any) -> Any:
            try:
                return method(*args, **kwargs)
            except KodeError as exc:
                raise self._own(exc) from exc.__cause__

        return awaited if inspect.iscoroutinefunction(method) else called

    def _own(self, exc: KodeError) -> KodeError:
        kind = type(exc)
        if kind not in _SUBCLASSES.values():
            own = _SUBCLASSES.setdefault(kind, type(f"Angelic{kind.__name__}", (kind,), {}))
            exc.__class__ = own  # type: ignore[assignment]
        return exc


@angel(OnMemory)
class CountsCalls(_Intercepts):
    """Counts every call, and leaves it to the store inside."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.counts: Counter[str] = Counter()

    def _seen(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        self.counts[name] += 1
        return method


@angel(OnMemory)
class HasSlots(Wrapper):
    """Has no dict of attributes."""

    __slots__ = ()


class Offsets(Layer):
    """Gives events other offsets than the engine inside."""

    factor = 1
    start = 0

    def outer(self, offset: int) -> int:
        return offset * self.factor + self.start

    def inner_of(self, offset: int) -> int:
        return (offset - self.start) // self.factor

    def inner_drop(self, batch: Batch) -> Batch:
        drop = batch.drop_events
        if drop is None:
            return batch
        before = -(-(drop.before - self.start) // self.factor)
        return replace(batch, drop_events=replace(drop, before=before, keep=self.inner_of(drop.keep)))

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        found = await super().commit([self.inner_drop(batch) for batch in batches])
        return [replace(o, offsets=tuple(map(self.outer, o.offsets))) if isinstance(o, Applied) else o for o in found]

    async def events(self, agent_id: str, span: EventRange) -> Sequence[EventRow]:
        after = None if span.after is None else (span.after[0], max(-(2**62), self.inner_of(span.after[1])))
        found = await super().events(agent_id, replace(span, after=after))
        return [replace(row, offset=self.outer(row.offset)) for row in found]

    async def last_event(self, agent_id: str) -> EventRow | None:
        row = await super().last_event(agent_id)
        return row and replace(row, offset=self.outer(row.offset))


@angel(OnMemory)
class OffsetsWithGaps(Offsets):
    """Gives every tenth offset."""

    factor = 10


@angel(OnMemory)
class OffsetsStartHigh(Offsets):
    """Starts its offsets beyond 2**53."""

    start = 2**53 + 1


@angel(OnMemory)
class DocumentsInAnyOrder(Layer):
    """Gives documents in a different order each time."""

    async def docs(self, agent_id: str, kind: Any, key: str | None = None) -> Sequence[Doc]:
        found = list(await super().docs(agent_id, kind, key))
        random.Random(len(found)).shuffle(found)
        return found


@angel(OnMemory)
class RefusesNowAndThen(Layer):
    """Says of every third write to a list that another was faster."""

    _count = 0

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        for batch in batches:
            for kind in ("messages", "tool_calls"):
                write = getattr(batch, kind)
                if write is not None and write.expect is not None:
                    self._count += 1
                    if self._count % 3 == 0:
                        return [Refused(kind) for _ in batches]  # type: ignore[arg-type]
        return await super().commit(batches)


@angel(OnMemory)
class OneAtATime(Layer):
    """Does one call of the engine after the other."""

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner)
        self._lock = asyncio.Lock()

    async def around(self, verb: str, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        async with self._lock:
            return await call(*args, **kwargs)


@angel(
    OnMemory,
    patches={
        "kode_core.store.events.FIRST_PAGE": 3,
        "kode_core.store.reader.FIRST_PAGE": 3,
        "kode_core.store.pages._MOST": 3,
        "kode_core.store.events._MOST_EVENTS": 2,
        "kode_core.store.list_pages._FIRST_PAGE": 2,
        "kode_core.store.list_pages._LARGEST_PAGE": 3,
    },
    without=("long_logs", "a_sound_agent", "iterators_give", "writes_at_the_pages"),
)
class SmallPages(Layer):
    """Reads and writes a few records at a time."""


@angel(OnMemory)
class RemembersNothing(EngineStore):
    """Reads the outline of a list anew for each write."""

    def __init__(self, opener: Any, **options: Any) -> None:
        super().__init__(opener, **{**options, "memory_limit_bytes": 0})


@angel(OnJson, without=("thousands_are", *_AT_EACH_STEP))
class CompactsAlways(Folder):
    """Rewrites a file after every write to it."""

    def tidy(self, stripe: Stripe, journal: Journal) -> None:
        super().tidy(stripe, journal)
        if 0 < journal.live_bytes < 50_000:
            journal.compact(durable=False)


@angel(OnSqlite)
class OneReader(SqliteEngine):
    """Reads through one connection, and syncs every commit."""

    @classmethod
    async def open(cls, options: SqliteOptions) -> SqliteEngine:
        return await super().open(replace(options, readers=1, durability="full"))


@angel(OnSqlite)
class OneConnection(SqliteEngine):
    """Reads and writes through one connection."""

    async def _read(self, call: Callable[..., Any], **how: Any) -> Any:
        return await self._writer.run(call)
