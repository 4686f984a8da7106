"""The context that all parts of a store share: the engine, the clock, the deadline, and the metrics of calls."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Final, ParamSpec, Self, TypeVar, cast
from weakref import WeakSet

from kode_core.authoring.closing import ended, ends_within
from kode_core.authoring.opening import hearing
from kode_core.batch import Applied, Batch, Fence, Outcome, Refused
from kode_core.cursors import SCOPE
from kode_core.engine import CALLER, Caller, Engine, connection_use
from kode_core.errors import (
    KodeError,
    OutcomeUnknownError,
    StorageError,
    StoreClosedError,
    StoreTimeoutError,
)
from kode_core.operation import Observer
from kode_core.report import StoreMetrics
from kode_core.store.deadlines import Deadline, Deadlines
from kode_core.store.home import Home
from kode_core.store.loads import load_of
from kode_core.store.metrics import CallMetrics, Method
from kode_core.store.scope import scoped
from kode_core.store.underway import Underway, applied_or_raise, is_in_doubt

__all__ = ["Context", "Opener"]

P = ParamSpec("P")
T = TypeVar("T")

Opener = Callable[[], Awaitable[Engine]]

log = logging.getLogger("kode_core")

_LAST_SECOND = 1.0
"""The time for the engine to close if the accepted writes took the whole deadline."""


class Context:
    """One store's engine and metrics; every public call runs through :meth:`run`.

    Attributes:
        closing: set when the store starts to close, so that waiting calls can end.
        on_closing: called at that moment.
        underway: the engine's writes that are running.
        event_load: gives the number of waiting appends and of followers.
        tenant, parent: as of :class:`~kode_core.store.base.StoreBase`.
        drain: waits for the accepted writes; the store sets it.
    """

    drain: Callable[[], Awaitable[None]]

    def __init__(
        self,
        opener: Opener,
        *,
        timeout_ms: int,
        clock: Callable[[], int],
        observers: Sequence[Observer],
        tenant: str | None = None,
        parent: Context | None = None,
    ) -> None:
        self.timeout, self.now = timeout_ms / 1000, clock
        self.tenant, self.parent = tenant, parent
        self._views: WeakSet[Context] = WeakSet()
        if parent is not None:
            parent._views.add(self)
        self.call_metrics = CallMetrics(observers, tenant)
        self.underway = Underway()
        self.closing = asyncio.Event()
        self.on_closing: list[Callable[[], None]] = []
        self.event_load: Callable[[], tuple[int, int]] = lambda: (0, 0)
        self._home = Home()
        self._opener = opener
        self._engine: Engine | None = None
        self._bare: Engine | None = None  # as it is for views
        self._opening: asyncio.Task[Engine] | None = None
        self._is_unhurried = False
        self._deadlines: Deadlines = Deadlines() if parent is None else parent._deadlines
        self._opened_for: set[Deadline] = set()
        self._closed: asyncio.Task[None] | None = None
        self._active, self._idle = 0, asyncio.Event()
        self._op_ids = itertools.count()

    def __repr__(self) -> str:
        if self.is_closed:
            return "closed"
        return "not open yet" if self._engine is None else repr(self._engine)

    async def metrics(self) -> StoreMetrics:
        """The counts of calls, the size of the contents, and the use of connections."""
        return self.call_metrics.metrics(await self.engine.totals(), connection_use(self.engine), self.now())

    # --- opening and closing

    @property
    def engine(self) -> Engine:
        """The engine that :meth:`open` has opened."""
        assert self._engine is not None
        return self._engine

    async def open(self) -> Engine:
        """Open the engine unless it is open; concurrent calls open it once.

        Raises:
            StoreTimeoutError: the engine was not open within the deadline.
        """
        self.check_open()
        return await self._opened()

    async def _opened(self) -> Engine:
        if self._engine is None:
            if self._opening is None:
                self._opening = self._home.enter().create_task(self._open())
                self._opening.add_done_callback(self._open_ended)
            self._engine = await asyncio.shield(self._opening)
        return self._engine

    async def open_for_view(self) -> Engine:
        """The engine for a view of this store, whose calls are not counted as calls of this store."""
        await self.open()
        return cast(Engine, self._bare)

    @asynccontextmanager
    async def closed_if_cancelled(self, close: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
        """Close the store if an ``async with`` is cancelled while it opens: ``__aexit__`` is not called then, and the
        opening goes on for callers that never come.
        """
        try:
            yield
        except asyncio.CancelledError:
            await ended(self._opening)
            await asyncio.shield(close())
            raise

    async def _open(self) -> Engine:
        """Runs as a task of its own: a cancelled call still opens the store for later calls."""
        try:
            deadline = Deadline(self._deadlines, self.timeout)
            with deadline, self._waiting(deadline), hearing(self._without_deadline):
                self._bare = await scoped(await self._opener(), self.tenant, is_view=self.parent is not None)
            return self.call_metrics.opened(self._bare, load_of(self))
        except TimeoutError as exc:
            if isinstance(exc, KodeError):
                raise
            raise StoreTimeoutError(f"the store was not open after {self.timeout:g} s; nothing was written") from exc
        except asyncio.CancelledError:
            if self.is_closed:
                raise StoreClosedError("this store was closed while it was opened") from None
            raise

    @contextmanager
    def _waiting(self, deadline: Deadline) -> Iterator[None]:
        """Suspend *deadline* while the opening has none."""
        self._opened_for.add(deadline)
        if self._is_unhurried:
            deadline.rest()
        try:
            yield
        finally:
            self._opened_for.discard(deadline)

    @contextmanager
    def _without_deadline(self) -> Iterator[None]:
        """See :func:`kode_core.authoring.opening.without_deadline`."""
        self.check_open()
        self._set_unhurried(True)
        try:
            yield
        finally:
            self._set_unhurried(False)

    def _set_unhurried(self, is_unhurried: bool) -> None:
        self._is_unhurried = is_unhurried
        for deadline in self._opened_for:
            if is_unhurried:
                deadline.rest()
            else:
                deadline.begin_anew()

    def _open_ended(self, opening: asyncio.Task[Engine]) -> None:
        """Let the next call open the engine again after a failure, even if no caller was left to see it."""
        if opening.cancelled() or opening.exception() is not None:
            self._opening = None

    def check_open(self) -> None:
        """Raise unless the store can be used in this process and event loop."""
        if self.is_closed:
            raise StoreClosedError("this store is closed; open a new one")
        self._home.check()
        if self.parent is not None:
            self.parent.check_open()

    async def close(self) -> None:
        """Close the views, wait for the accepted writes, close the engine. A second call waits for the first.

        Writes that are still running at the deadline are abandoned, and the log names the store. Their callers already
        know that the outcome is unknown.
        """
        if self._closed is None:
            if self.parent is None or not self.parent.is_closed:
                self.check_open()
            self.closing.set()
            if self._is_unhurried and self._opening is not None:
                self._opening.cancel()
            for call in self.on_closing:
                call()
            self._closed = asyncio.get_running_loop().create_task(self._close())
        await asyncio.shield(self._closed)

    async def _close(self) -> None:
        """Runs as a task of its own: a cancelled caller does not stop it half-way."""
        deadline = asyncio.get_running_loop().time() + self.timeout
        is_late = False
        try:
            async with asyncio.timeout_at(deadline):
                await asyncio.gather(*(view.close() for view in list(self._views)))
                await self._quiet()
        except TimeoutError:
            is_late = True
        if self._engine is not None:
            left = max(deadline - asyncio.get_running_loop().time(), _LAST_SECOND)
            is_late = not await ends_within(self._engine.close(), left) or is_late
        if is_late:
            log.warning(
                "%r was not closed after %g s: calls of its engine are still under way, and the last writes are there "
                "whole, or not at all",
                self._engine,
                self.timeout,
            )

    async def _quiet(self) -> None:
        """Wait until nothing is running."""
        while self._active:
            self._idle.clear()
            await self._idle.wait()
        await self.drain()
        await self.underway.ended()
        if self._opening is not None:
            with suppress(Exception):
                self._engine = await self._opening

    @property
    def running(self) -> tuple[int, Engine | None]:
        """The number of running calls, and the engine if it is open."""
        return self._active, self._engine

    @property
    def is_closed(self) -> bool:
        """True if the store was closed, or is being closed."""
        return self.closing.is_set()

    def warn_if_open(self) -> None:
        """Called when the store is garbage collected: an open store is a leak."""
        if self._engine is not None and not self.is_closed and self.parent is None:
            warnings.warn(
                f"a {self._engine.name} store was not closed; use 'async with' or 'await store.close()'",
                ResourceWarning,
                stacklevel=2,
            )

    # --- running calls

    async def run(
        self,
        method: Method,
        agent_id: str | None,
        call: Callable[P, Awaitable[T]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run the call of a public method: open the store, keep the deadline, record the call.

        *agent_id* is the agent that the call is for; None if it concerns many. The call first waits for writes whose
        callers left.
        """
        self.check_open()
        observed = self.call_metrics.begin(method, agent_id)
        start = time.perf_counter()
        error: BaseException | None = None
        outer, _ = SCOPE.get(), SCOPE.set(self.tenant)
        try:
            if method.in_steps:
                await self.step(method, self.begin, agent_id)
                return await call(*args, **kwargs)
            with _Step(self, self._deadlines, method) as step:
                _STEP.set(step)
                if self._engine is None:
                    await self._open_within(step)
                if self.underway.is_any_left:
                    await self.underway.wait_for_left(agent_id)
                return await call(*args, **kwargs)
        except BaseException as exc:
            error = exc
            raise
        finally:
            SCOPE.set(outer)
            self.call_metrics.enter(method, time.perf_counter() - start, error, observed)

    async def begin(self, agent_id: str | None) -> None:
        """Wait for writes whose callers left, as every call does first once the engine is open."""
        if self.underway.is_any_left:
            await self.underway.wait_for_left(agent_id)

    async def step(self, method: Method, call: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a step of a call within the deadline; closing the store waits for it."""
        self.check_open()
        with _Step(self, self._deadlines, method) as step:
            _STEP.set(step)
            if self._engine is None:
                await self._open_within(step)
            return await call(*args, **kwargs)

    async def _open_within(self, step: Deadline) -> None:
        with self._waiting(step):
            await self._opened()

    def enter(self) -> None:
        """Count a call that begins; closing the store waits for its end."""
        self._active += 1

    def leave(self) -> None:
        """Count a call that has ended."""
        self._active -= 1
        if not self._active:
            self._idle.set()

    def overdue(self, method: Method, exc: TimeoutError) -> StorageError:
        """The error of a call whose deadline has passed."""
        what = f"a step of {method.name}" if method.in_steps else method.name
        after = f"{what} was not done after {self.timeout + method.extra_seconds:g} s"
        if is_in_doubt(exc.__cause__):
            return OutcomeUnknownError(
                f"{after}, in the middle of a write: it is there whole, or not at all; read first"
            )
        return StoreTimeoutError(after if method.in_steps else f"{after}; nothing was written")

    # --- writing

    def batch(self, agent_id: str, *, fence: Fence | None = None, **contents: Any) -> Batch:
        """A batch with the present time."""
        op_id = f"{self._home.name}-{next(self._op_ids)}"
        return Batch(agent_id=agent_id, op_id=op_id, now=self.now(), fence=fence, **contents)

    async def commit(self, batch: Batch) -> Applied | Refused:
        """Commit one batch and finish it even if the caller leaves; a batch that was not sent by then need not be sent.

        A lost lease and a storage error are raised, other refusals are returned.
        """
        is_waiting = True
        write = self.called(self._engine_commit(batch), lambda: is_waiting)
        try:
            outcome = await self.underway.finish([batch.agent_id], write)
        except asyncio.CancelledError:
            is_waiting = False
            raise
        return applied_or_raise(batch, outcome)

    async def _engine_commit(self, batch: Batch) -> Outcome:
        (outcome,) = await self.engine.commit([batch])
        return outcome

    def called(
        self, call: Coroutine[Any, Any, T], is_waiting: Callable[[], bool] = lambda: True
    ) -> Coroutine[Any, Any, T]:
        """A call of the engine, for a task of its own, that knows its caller."""
        step = _STEP.get()
        caller = Caller(is_waiting, self.timeout, Caller().goes_on if step is None else step.goes_on)

        async def called() -> T:
            CALLER.set(caller)  # of this task alone
            return await call

        return called()


_STEP: Final[ContextVar[Deadline | None]] = ContextVar("STEP", default=None)
"""The call, or the step of one, that goes on in this context."""


class _Step(Deadline):
    """A call, or a step of one, with its deadline, which raises an error of this library."""

    __slots__ = ("_context", "_method")

    def __init__(self, context: Context, deadlines: Deadlines, method: Method) -> None:
        super().__init__(deadlines, context.timeout + method.extra_seconds)
        self._context = context
        self._method = method

    def __enter__(self) -> Self:
        super().__enter__()
        self._context.enter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._context.leave()
        try:
            super().__exit__(kind, exc, trace)
        except TimeoutError as late:
            raise self._context.overdue(self._method, late) from exc
        if isinstance(exc, TimeoutError) and not isinstance(exc, KodeError):
            raise self._context.overdue(self._method, exc) from exc.__cause__
