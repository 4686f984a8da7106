"""Observers around the calls of a store, and the counts of the records that pass in each call."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Final, ParamSpec, TypeVar

from msgspec.structs import force_setattr

from kode_core.batch import Applied, Batch, Refused
from kode_core.codec import Body
from kode_core.engine import Engine
from kode_core.layers.base import Layer
from kode_core.operation import Guard, Load, Manager, Observer, OpenStore, Operation, WatchedSteps, checked_observers
from kode_core.pace import Pace
from kode_core.store.iterating import Iterated

__all__ = ["TALLY", "Observed", "Observing", "Tally"]

log = logging.getLogger("kode_core")

P = ParamSpec("P")
T = TypeVar("T")

_AT_ONCE: Final = 128
_SLICE: Final = 1 << 18


class Tally:
    """The records that passed between the store and its engine in one call, and the writes that were refused."""

    __slots__ = ("_is_known", "bytes", "conflicts", "rows")

    def __init__(self) -> None:
        self.rows: int | None = None
        self.bytes: int | None = None
        self.conflicts = 0
        self._is_known = True

    def give_up(self) -> None:
        """Note that the call concerns records that are not counted."""
        self._is_known = False
        self.rows = self.bytes = None

    async def add(self, bodies: Iterable[Body], *, without: int = 0) -> None:
        """Count these bodies, and records *without* one. Text that is not ASCII is measured in slices (OPS-15)."""
        rows, size, pace = without, 0, Pace()
        for rows, body in enumerate(bodies, without + 1):
            text = body.text
            if text.isascii():
                size += len(text)
            else:
                for start in range(0, len(text), _SLICE):
                    size += len(text[start : start + _SLICE].encode("utf-8", "surrogatepass"))
                    await pace.yield_to_loop()
            if not rows % _AT_ONCE:
                await pace.yield_to_loop()
        if self._is_known:
            self.rows = (self.rows or 0) + rows
            self.bytes = (self.bytes or 0) + size


TALLY: Final[ContextVar[Tally | None]] = ContextVar("TALLY", default=None)
"""The tally of the call that goes on in this context."""


class _Counting(Layer):
    """Counts what passes, for the call in whose context it passes."""

    def __repr__(self) -> str:
        return repr(self.inner)

    async def around(self, verb: str, call: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        result = await call(*args, **kwargs)
        tally = TALLY.get()
        if tally is not None:
            try:
                await _count(tally, verb, args, result)
            except Exception:  # noqa: BLE001 - what a faulty engine gave is the store's to judge
                tally.give_up()
        return result


async def _count(tally: Tally, verb: str, args: Sequence[Any], result: Any) -> None:
    if verb in _UNCOUNTED:
        tally.give_up()
    elif verb == "commit":
        await _count_batches(tally, args[0], result)
    elif verb == "agent_ids":
        await tally.add((), without=len(result))
    elif verb in _BODIES:
        await tally.add(_BODIES[verb](result))


_UNCOUNTED: Final = frozenset({"fork", "inspect", "repair", "backup"})

_BODIES: Final[Mapping[str, Callable[[Any], Iterable[Body]]]] = {
    "summary": lambda summary: () if summary is None or summary.info is None else (summary.info.body,),
    "rows": lambda found: (body for body, _ in found.rows),
    "rows_at": lambda found: (body for body, _ in found.rows),
    "docs": lambda docs: (doc.body for doc in docs),
    "docs_in": lambda docs: (doc.body for doc in docs),
    "events": lambda events: (event.body for event in events),
    "last_event": lambda event: () if event is None else (event.body,),
    "find_sessions": lambda found: (row.info for row in found),
    "find_rows": lambda found: (row.body for row in found),
}
"""By verb, the bodies of its result."""


async def _count_batches(tally: Tally, batches: Sequence[Batch], outcomes: Sequence[Any]) -> None:
    for batch, outcome in zip(batches, outcomes, strict=False):
        if isinstance(outcome, Refused) and outcome.by != "fence":
            tally.conflicts += 1
        if batch.delete:
            tally.give_up()
        else:
            await tally.add(_bodies(batch) if isinstance(outcome, Applied) else ())


def _bodies(batch: Batch) -> Iterator[Body]:
    if batch.info is not None:
        yield batch.info.body
    for write in batch.lists.values():
        for _, row in write.put:
            yield row.body
        for row in write.append:
            yield row.body
    for doc in batch.docs:
        if doc.doc is not None:
            yield doc.doc.body
    for event in batch.events:
        yield event.body


class Observed:
    """A call that observers surround."""

    __slots__ = ("_before", "_entered", "_operation", "_tally")

    def __init__(self, operation: Operation, guards: Sequence[Guard]) -> None:
        self._operation = operation
        self._entered: list[tuple[Guard, Manager]] = []
        self._tally = Tally()
        self._before = TALLY.get()
        try:
            for guard in guards:
                manager = guard.enter(operation)
                if manager is not None:
                    self._entered.append((guard, manager))
        except BaseException as exc:
            self._leave(exc)
            raise
        TALLY.set(self._tally)

    def end(self, seconds: float, error: BaseException | None, backend: str, store: str) -> None:
        """Fill in the outcome, and leave the observers, the last one first."""
        TALLY.set(self._before)
        operation = self._operation
        for name, value in (
            ("duration_ms", seconds * 1000),
            ("error", None if error is None else type(error).__name__),
            ("backend", backend),
            ("store", store),
            ("rows", self._tally.rows),
            ("bytes", self._tally.bytes),
            ("conflicts", self._tally.conflicts),
        ):
            force_setattr(operation, name, value)
        self._leave(error)

    def _leave(self, error: BaseException | None) -> None:
        while self._entered:
            guard, manager = self._entered.pop()
            try:
                guard.leave(manager, error)
            except BaseException:  # such as KeyboardInterrupt, which is raised after the others were left
                self._leave(error)
                raise


class Observing:
    """The observers of a store."""

    def __init__(self, observers: Sequence[Observer], tenant: str | None = None) -> None:
        self._tenant = tenant
        self._guards = tuple(map(Guard, checked_observers(observers)))
        self._backend = self._store = ""

    def opened(self, engine: Engine, load: Callable[[], Load | None]) -> Engine:
        """Note the engine, one whose repr fails with an empty place; the result counts what passes.

        Observers that want to know of it get *load*.
        """
        self._backend = engine.name
        try:
            self._store = repr(engine)
        except Exception:
            log.exception("the repr of the engine %s failed; observers get no place of the contents", engine.name)
        for guard in self._guards:
            guard.opened(OpenStore(self._backend, self._store, load))
        return _Counting(engine)

    def begin(self, name: str, agent_id: object, seconds: float) -> Observed:
        """Enter the observers of a call of the method *name*, which took *seconds* already."""
        return Observed(self._operation(name, agent_id, seconds), self._guards)

    def _operation(self, name: str, agent_id: object, seconds: float) -> Operation:
        text = agent_id if type(agent_id) is str else None
        return Operation(
            name=name,
            agent_id=text,
            tenant=self._tenant,
            duration_ms=seconds * 1000,
            backend=self._backend,
            store=self._store,
        )

    def iterated(self, name: str, agent_id: object, inner: AsyncIterator[T]) -> AsyncIterator[T]:
        """*inner* as observers see it that want to know of iterators; itself if there are none."""
        guards = [guard for guard in self._guards if guard.sees_iterators]
        if not guards:
            return inner
        operation = self._operation(name, agent_id, 0.0)
        steps = [WatchedSteps(guard, operation) for guard in guards]
        return Iterated(inner, operation, steps, lambda: (self._backend, self._store))

    def end(self, observed: Observed, seconds: float, error: BaseException | None) -> None:
        """Leave the observers of the call, which then have its outcome."""
        observed.end(seconds, error, self._backend, self._store)
