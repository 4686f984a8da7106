"""The calls of stores, as observers see them, and the observers."""

from __future__ import annotations

import inspect
import logging
from asyncio import CancelledError
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Final, Protocol, TypeAlias

import msgspec

from kode_core.errors import ConfigurationError
from kode_core.report import ConnectionUse

__all__ = [
    "Guard",
    "Load",
    "Observer",
    "OpenStore",
    "Operation",
    "Steps",
    "Surrounds",
    "WatchedSteps",
    "checked_observers",
    "observers_of",
]

_log = logging.getLogger("kode_core")


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """A call of a store. It holds no contents of records.

    An observer that surrounds the call gets it at the start, when the call's outcome is not known; the store fills in
    ``duration_ms``, ``error``, ``rows`` and ``bytes`` before the observer is left.

    Attributes:
        name: the method, as in ``save_messages``.
        duration_ms: from the call to its end, without the time that observers took; 0 until the end. A call that is
            seen only at its end, such as ``iter_consistency``, has it from the start.
        error: the class name of the exception that ended it; None if it succeeded.
        agent_id: the agent that the call was for, as the caller gave it; None if it concerned many, or was no text.
        tenant: the tenant of a store that sees one tenant alone; None otherwise.
        backend: the name of the backend, as in ``sqlite``; empty until the store is open.
        store: the place of the contents, without secrets, as in ``sqlite at data/agents.db``; empty as above, or if the
            engine's repr fails.
        rows: how many records were read from the engine or written to it; None until the end, and for calls whose
            records do not pass through the store: deletes, forks, statistics, locks, maintenance.
        bytes: of the bodies of these records, in UTF-8; None as above.
        conflicts: how often the engine refused a write of this call because another writer had come first; the store
            tries most of them again. 0 until the end.
    """

    name: str
    duration_ms: float = 0.0
    error: str | None = None
    agent_id: str | None = None
    tenant: str | None = None
    backend: str = ""
    store: str = ""
    rows: int | None = None
    bytes: int | None = None
    conflicts: int = 0


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """The work of an open store at one moment.

    Attributes:
        calls: the calls that are running; one that began before the store was open is counted from then on.
        writes: the writes that the engine is doing, also for callers that left.
        appends: the calls whose events wait for the next group commit.
        followers: the iterators that follow events.
        connections: the use of connections; None if the backend has no pool, or does not count its use.
    """

    calls: int
    writes: int
    appends: int
    followers: int
    connections: ConnectionUse | None


class OpenStore:
    """An open store, for an observer that reads its load now and then, in any thread. It does not keep the store alive.

    Attributes:
        backend: the name of the backend.
        store: the place of the contents, without secrets.
    """

    __slots__ = ("_load", "backend", "store")

    def __init__(self, backend: str, store: str, load: Callable[[], Load | None]) -> None:
        self.backend = backend
        self.store = store
        self._load = load

    def load(self) -> Load | None:
        """The load at this moment, without a call of the database; None once the store is closed, or was forgotten."""
        return self._load()


class Surrounds(Protocol):
    """An observer that surrounds calls, for example with a span."""

    def around(self, operation: Operation, /) -> AbstractContextManager[object] | None:
        """Return a context manager around the call; it is left with the exception that ended the call, if any.

        It is entered and left in the task of the call, so that the call and its driver see the context variables that
        it sets. None leaves this call alone.
        """
        ...


class Steps(Protocol):
    """Around each step of an iterator: the same object is entered and left in the task of each step."""

    def __enter__(self) -> object: ...

    def __exit__(self, *_: object) -> object: ...

    def ended(self, *, is_complete: bool) -> object:
        """The iterator is over; *is_complete* is False if its reader left it, which may be noticed in any thread."""
        ...


Observer: TypeAlias = Callable[[Operation], object] | Surrounds
"""An object with :meth:`Surrounds.around`, or a plain function that is called after every call.

An object with a method ``opened`` gets an :class:`OpenStore` when a store that it observes has opened.

An object with a method ``iterating`` gets the :class:`Operation` of each iterator at its first step, such as one of
``iter_messages`` or ``follow_events``, and returns :class:`Steps`, or None. At the end, ``rows`` is the number of
records that the iterator gave, and ``duration_ms`` and ``error`` are filled in. The calls for its pages are observed as
ever.

An exception that it raises is logged, the first one only, and changes nothing for the call. ``KeyboardInterrupt`` and
other exceptions that are no ``Exception`` are raised.
"""


class _Afterwards:
    """Surrounds a call, and does nothing but call a function with it at its end."""

    __slots__ = ("_function", "_operation")

    def __init__(self, function: Callable[[Operation], object], operation: Operation) -> None:
        self._function = function
        self._operation = operation

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._function(self._operation)


Manager: TypeAlias = AbstractContextManager[object]


class Guard:
    """An observer of one store: its faults are logged once, and none reaches the call.

    Raises:
        ConfigurationError: *observer* cannot be one.
    """

    __slots__ = ("_around", "_is_reported", "_iterating", "_name", "_opened")

    def __init__(self, observer: Observer) -> None:
        around: Any = getattr(observer, "around", None)
        problem = _problem(observer, around)
        if problem:
            raise ConfigurationError(f"observers: {problem}")
        function: Any = observer
        self._around: Callable[[Operation], Manager | None] = (
            partial(_Afterwards, function) if around is None else around
        )
        opened: Any = getattr(observer, "opened", None)
        self._opened: Callable[[OpenStore], object] | None = opened if callable(opened) else None
        iterating: Any = getattr(observer, "iterating", None)
        self._iterating: Callable[[Operation], Steps | None] | None = iterating if callable(iterating) else None
        self._name = getattr(observer, "__qualname__", type(observer).__qualname__)
        self._is_reported = False

    def opened(self, store: OpenStore) -> None:
        """Tell it that a store has opened, if it wants to know."""
        if self._opened is not None:
            try:
                self._opened(store)
            except (Exception, SystemExit, CancelledError):  # noqa: BLE001 - an observer's code
                self._report()

    @property
    def sees_iterators(self) -> bool:
        """True if it wants to know of iterators."""
        return self._iterating is not None

    def iterating(self, operation: Operation) -> Steps | None:
        """Tell it that an iterator takes its first step."""
        try:
            return None if self._iterating is None else self._iterating(operation)
        except (Exception, SystemExit, CancelledError):  # noqa: BLE001 - an observer's code
            self._report()
            return None

    def tried(self, call: Callable[[], object]) -> bool:
        """Call it; False if it failed."""
        try:
            call()
        except (Exception, SystemExit, CancelledError):  # noqa: BLE001 - an observer's code
            self._report()
            return False
        return True

    def enter(self, operation: Operation) -> Manager | None:
        """Enter it; the result is for :meth:`leave`, None if nothing was entered."""
        try:
            manager = self._around(operation)
            if manager is not None:
                manager.__enter__()
            return manager
        except (Exception, SystemExit, CancelledError):  # noqa: BLE001 - an observer's code
            self._report()
            return None

    def leave(self, manager: Manager, error: BaseException | None) -> None:
        """Leave it. The call keeps its error, whatever the observer returns."""
        try:
            if error is None:
                manager.__exit__(None, None, None)
            else:
                manager.__exit__(type(error), error, error.__traceback__)
        except BaseException as exc:
            if exc is error:  # it only lets the call's own error through
                return
            if not isinstance(exc, (Exception, SystemExit, CancelledError)):
                raise
            self._report()

    def _report(self) -> None:
        if not self._is_reported:
            self._is_reported = True
            _log.exception("the observer %s failed; further failures of it are not reported", self._name)


class WatchedSteps:
    """The steps of an iterator as one observer sees them, whose faults reach nobody."""

    __slots__ = ("_guard", "_is_entered", "_operation", "_steps")

    def __init__(self, guard: Guard, operation: Operation) -> None:
        self._guard = guard
        self._operation = operation
        self._steps: Steps | None = None
        self._is_entered = False

    def begin(self) -> None:
        """Ask the observer for what is entered."""
        self._steps = self._guard.iterating(self._operation)

    def __enter__(self) -> None:
        if self._steps is not None:
            steps = self._steps
            self._is_entered = self._guard.tried(lambda: steps.__enter__())

    def __exit__(self, *_: object) -> None:
        if self._is_entered and self._steps is not None:
            steps, self._is_entered = self._steps, False
            self._guard.tried(lambda: steps.__exit__(None, None, None))

    def ended(self, *, is_complete: bool) -> None:
        """Tell the observer that the iterator is over."""
        if self._steps is not None:
            steps, self._steps = self._steps, None
            self._guard.tried(lambda: steps.ended(is_complete=is_complete))


def observers_of(store: object) -> Sequence[Observer]:
    """The observers of a store that was given some, or whose plugins have some: for libraries above stores."""
    found = getattr(store, "_observers", ())
    return tuple(found) if isinstance(found, (list, tuple)) else ()


def checked_observers(observers: object) -> Sequence[Observer]:
    """The observers that a caller gave, as a tuple.

    Raises:
        ConfigurationError: it is no list, or has a member that cannot observe.
    """
    if not isinstance(observers, (list, tuple)):
        raise ConfigurationError(f"observers must be a list, got {type(observers).__name__}")
    for observer in observers:
        Guard(observer)
    return tuple(observers)


_ASYNC: Final = "is called in the event loop and must not be async"


def _problem(observer: object, around: object) -> str | None:
    """The reason why this cannot be an observer."""
    name = type(observer).__name__
    if isinstance(observer, type):
        return f"{observer.__name__} is a class; give an object of it"
    if around is None and not callable(observer):
        return f"{name} is neither a function nor has it a method around"
    if around is not None and not callable(around):
        return f"around of {name} is no method"
    function: Any = observer if around is None else around
    if not inspect.isroutine(function) and not isinstance(function, partial):
        function = type(function).__call__
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(inspect.unwrap(function)):
        return f"{name} {_ASYNC}" if around is None else f"around of {name} {_ASYNC}"
    if inspect.isgeneratorfunction(function):
        return f"{name} is a generator function; decorate a method around with contextlib.contextmanager"
    return None
