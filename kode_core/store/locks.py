"""Leases: at most one holder of an agent at a time, and writes that fail once their lease has ended (LOCK clauses)."""

from __future__ import annotations

import asyncio
import contextvars
import random
import secrets
import time
from collections.abc import Callable, Collection, Coroutine, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from kode_core.authoring.waiting import waited_for
from kode_core.batch import Fence
from kode_core.errors import InvalidArgumentError, LockLostError, LockUnavailableError, StorageError, StoreClosedError
from kode_core.ids import quoted
from kode_core.protocols import Lease
from kode_core.store.context import Context
from kode_core.store.methods import METHODS

__all__ = ["ENTERED", "HeldLease", "LeaseContext", "Locks"]

T = TypeVar("T")

_MIN_TTL_MS: Final = 10
_MAX_TTL_MS: Final = 24 * 3600 * 1000
_POLL_S: Final = 0.02
_STEPS_OF_A_FINALIZER: Final = 4
"""The turns that the event loop needs to start closing an async generator that was dropped."""
_NO_FENCE: Final = nullcontext[Fence | None]()

ENTERED: ContextVar[tuple[HeldLease, ...]] = ContextVar("kode_leases", default=())
"""The leases of the blocks that this context is in, innermost last. A task that is started inside gets a copy."""


class HeldLease:
    """See :class:`kode_core.protocols.Lease`; ``ttl_ms`` is how long it is held without renewal."""

    def __init__(self, locks: Locks, agent_id: str, fence: Fence, ttl_ms: int) -> None:
        self.locks = locks
        self.agent_id = agent_id
        self.fence = fence
        self.ttl_ms = ttl_ms
        self.is_released = False
        self.is_left = False
        """True if its block was left: tasks that still have it in their context were started inside."""
        self.writes: set[asyncio.Future[None]] = set()
        """A future for each running write that the lease fences, done when the write has ended."""
        self._is_lost = False

    @property
    def token(self) -> int:
        return self.fence.token

    @property
    def is_lost(self) -> bool:
        return self._is_lost or (self.locks.is_closed and not self.is_released)

    def lose(self) -> None:
        """Note that the lease has ended, or that it is no longer known to be held."""
        self._is_lost = True

    def __repr__(self) -> str:
        return f"<Lease of agent {self.agent_id!r}, token {self.token}{', lost' if self.is_lost else ''}>"

    async def renew(self) -> None:
        if not await self.locks.renew(self):
            self.lose()
            raise LockLostError(self.agent_id, "the lease has ended and cannot be renewed")

    async def release(self) -> None:
        self.is_released = True
        await self.locks.release(self)


class LeaseContext:
    """The result of ``acquire_agent_lock``: await it for a :class:`HeldLease`, or use ``async with``.

    ``async with`` renews the lease while the block runs, fences the writes of its task and of the tasks that are
    started inside, and releases the lease at the end (LOCK-5, LOCK-7).

    No context is ever reset to an earlier state: a block that ends removes only its own lease from the context of the
    task that entered it and of the task that leaves it. For an async generator these may be two tasks. Tasks that were
    started inside keep it, so that their late writes are refused. Leaving waits for writes that began before: a task
    that dropped its generator may still write while another task closes it.
    """

    def __init__(self, locks: Locks, agent_id: str, ttl_ms: int, wait_ms: int) -> None:
        self._acquire: Callable[[], Any] = lambda: locks.acquire(agent_id, ttl_ms, wait_ms)
        self._is_entered = False
        self._lease: HeldLease | None = None
        self._renewer: asyncio.Task[None] | None = None
        self._where: contextvars.Context | None = None

    def __await__(self) -> Generator[Any, None, HeldLease]:
        return self._acquire().__await__()  # type: ignore[no-any-return]

    async def __aenter__(self) -> HeldLease:
        if self._is_entered:
            raise InvalidArgumentError("this lock was entered already: call acquire_agent_lock for each async with")
        self._is_entered = True
        try:
            self._where = await _own_context()
            lease: HeldLease = await self
        except BaseException:
            self._is_entered = False
            raise
        self._lease = lease
        ENTERED.set((*(held for held in ENTERED.get() if not _is_replaced(held, lease)), lease))
        self._renewer = asyncio.get_running_loop().create_task(_keep(lease))
        return lease

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        lease, renewer, where = self._lease, self._renewer, self._where
        assert lease is not None
        assert renewer is not None
        self._lease = self._renewer = self._where = None
        self._is_entered = False
        lease.is_left = True
        _take_out(lease)
        if where is not None:
            with suppress(RuntimeError):  # it is this one
                where.run(_take_out, lease)
        try:
            await asyncio.shield(lease.locks.begin_release(lease, renewer))
        except StorageError:
            if exc is None:  # otherwise the error of the block counts; the lease ends by itself
                raise


class _Asked(asyncio.Future[None]):
    """A future that is done at once and records the context of the task that awaits it."""

    context: contextvars.Context | None = None

    def add_done_callback(self, fn: Callable[[Self], object], /, *, context: contextvars.Context | None = None) -> None:
        super().add_done_callback(fn, context=context)
        if not self.done():
            self.context = context
            self.set_result(None)


async def _own_context() -> contextvars.Context | None:
    """The context in which this task runs; ``copy_context`` returns only a copy."""
    asked = _Asked()
    await asked
    return asked.context


def _take_out(lease: HeldLease) -> None:
    """Remove the lease's block from this context."""
    held = ENTERED.get()
    if lease in held:
        ENTERED.set(tuple(other for other in held if other is not lease))


def _is_replaced(old: HeldLease, new: HeldLease) -> bool:
    """True if a task that enters the block of *new* may forget *old*, an inherited lease that has ended."""
    is_same = old.locks is new.locks and old.agent_id == new.agent_id
    return old.is_left and (is_same or old.locks.is_closed)


async def _keep(lease: HeldLease) -> None:
    """Renew the lease each time a third of its time has passed, until it is lost.

    A failed attempt is repeated while there is time.
    """
    held_until = time.monotonic() + lease.ttl_ms / 1000
    while not lease.is_lost:
        await asyncio.sleep(lease.ttl_ms / 3000)
        started = time.monotonic()
        try:
            async with asyncio.timeout(max(held_until - started, lease.ttl_ms / 3000)):
                await lease.renew()
        except (LockLostError, StoreClosedError):
            lease.lose()
        except Exception:  # noqa: BLE001 - whatever an engine raises, the lease was not renewed
            if time.monotonic() > held_until:
                lease.lose()
        else:
            held_until = started + lease.ttl_ms / 1000


class Locks:
    """Takes, renews and releases the leases of one store."""

    def __init__(self, context: Context) -> None:
        self._context = context

    @property
    def is_closed(self) -> bool:
        """True if the store was closed: its leases are no longer renewed."""
        return self._context.is_closed

    def _inside(self, agent_id: str) -> HeldLease | None:
        """The lease of this store and agent whose block is the innermost that this task is in."""
        entered = ENTERED.get()
        if not entered:
            return None
        held = reversed(entered)
        return next((lease for lease in held if lease.agent_id == agent_id and lease.locks is self), None)

    def fence(self, agent_id: str, lease: Lease | None) -> Fence | None:
        """The fence of a write: from the given lease, or from the lease whose block the task is in (LOCK-5)."""
        if lease is None:
            entered = self._inside(agent_id)
            return None if entered is None else entered.fence
        if not isinstance(lease, HeldLease):
            raise InvalidArgumentError(f"fence must be a Lease, got {type(lease).__name__}")
        if lease.agent_id != agent_id:
            raise InvalidArgumentError(f"the lease is for agent {lease.agent_id!r}, the write for {agent_id!r}")
        return lease.fence

    def fencing(self, agent_id: str, lease: Lease | None) -> AbstractContextManager[Fence | None]:
        """The fence of a write that is made inside; leaving the lease's block waits for the end of that write."""
        fence = self.fence(agent_id, lease)
        held = self._inside(agent_id) if lease is None and fence is not None else lease
        if fence is None or not isinstance(held, HeldLease):
            return _NO_FENCE
        return self._fenced(held, fence)

    @contextmanager
    def _fenced(self, held: HeldLease, fence: Fence) -> Iterator[Fence]:
        ended = asyncio.get_running_loop().create_future()
        held.writes.add(ended)
        try:
            yield fence
        finally:
            held.writes.discard(ended)
            ended.set_result(None)

    def lock(self, agent_id: str, ttl_ms: int, wait_ms: int) -> LeaseContext:
        for name, value, low, high in (
            ("ttl_ms", ttl_ms, _MIN_TTL_MS, _MAX_TTL_MS),
            ("wait_ms", wait_ms, 0, _MAX_TTL_MS),
        ):
            if type(value) is not int:
                raise InvalidArgumentError(f"{name} must be an int, got {type(value).__name__}")
            if not low <= value <= high:
                raise InvalidArgumentError(f"{name} must be from {low} to {high}, got {quoted(value)}")
        return LeaseContext(self, agent_id, ttl_ms, wait_ms)

    async def acquire(self, agent_id: str, ttl_ms: int, wait_ms: int) -> HeldLease:
        method = METHODS["acquire_agent_lock"]._replace(extra_seconds=wait_ms / 1000)
        return await self._context.run(method, agent_id, self._acquire, agent_id, ttl_ms, wait_ms)

    async def _acquire(self, agent_id: str, ttl_ms: int, wait_ms: int) -> HeldLease:
        entered = self._inside(agent_id)
        if entered is not None and await self._is_held(entered):
            problem = f"this task is inside the block of its lease, token {entered.token}, or was started there"
            raise LockUnavailableError(agent_id, f"{problem}; use that one")
        owner = secrets.token_hex(16)
        deadline = time.monotonic() + wait_ms / 1000
        pause = _POLL_S
        while True:
            token = await self._take(agent_id, owner, ttl_ms)
            if token is not None:
                return HeldLease(self, agent_id, Fence(owner, token), ttl_ms)
            left = deadline - time.monotonic()
            if left <= 0:
                waited = f"still, after {wait_ms} ms" if wait_ms else "now; give wait_ms to wait for it"
                raise LockUnavailableError(agent_id, f"another holder has the lock {waited}")
            await self._pause(min(left, pause * random.uniform(0.5, 1.0)))  # noqa: S311
            pause = min(pause * 1.5, 0.25)

    async def _pause(self, seconds: float) -> None:
        """Wait a moment; return at once when the store is closed."""
        await waited_for(self._context.closing, seconds)
        self._context.check_open()

    async def _is_held(self, lease: HeldLease) -> bool:
        """True if this lease's block and the lease itself are still going on; asks the engine unless it is known."""
        for _ in range(_STEPS_OF_A_FINALIZER):
            await asyncio.sleep(0)
        if lease.is_left or lease.is_released or lease.is_lost:
            return False
        renewal = self._context.engine.renew_lease(lease.agent_id, lease.fence, lease.ttl_ms)
        if await self._context.underway.finish((lease.agent_id,), renewal):
            return True
        lease.lose()
        return False

    async def _take(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        """Ask the engine for the lease; a lease that arrives after the caller was cancelled is released."""
        engine, underway = self._context.engine, self._context.underway
        is_wanted = True
        tokens: list[int] = []

        async def give_back() -> None:
            for token in tokens:
                await engine.release_lease(agent_id, Fence(owner, token))

        async def take() -> int | None:
            token = await engine.acquire_lease(agent_id, owner, ttl_ms)
            if token is not None:
                tokens.append(token)
                if not is_wanted:
                    await give_back()
            return token

        try:
            return await underway.finish((agent_id,), take())
        except asyncio.CancelledError as exc:
            is_wanted = False
            if tokens:
                underway.leave((agent_id,), underway.begin(give_back()), exc)
            raise

    def begin_release(self, lease: HeldLease, renewer: asyncio.Task[None]) -> asyncio.Task[None]:
        """Release the lease once the running writes have ended, even if the caller is cancelled."""

        async def release(writes: Collection[asyncio.Future[None]]) -> None:
            if writes:
                await asyncio.wait(writes)
            renewer.cancel()
            await lease.release()

        return self._context.underway.begin(release(tuple(lease.writes)))

    async def renew(self, lease: HeldLease) -> bool:
        def write() -> Coroutine[Any, Any, bool]:
            return self._context.engine.renew_lease(lease.agent_id, lease.fence, lease.ttl_ms)

        return await self._run("renew_agent_lock", lease.agent_id, write)

    async def release(self, lease: HeldLease) -> None:
        if self._context.is_closed:
            return  # it ends by itself

        def write() -> Coroutine[Any, Any, None]:
            return self._context.engine.release_lease(lease.agent_id, lease.fence)

        await self._run("release_agent_lock", lease.agent_id, write)

    async def _run(self, name: str, agent_id: str, write: Callable[[], Coroutine[Any, Any, T]]) -> T:
        async def finish() -> T:
            return await self._context.underway.finish((agent_id,), write())

        return await self._context.run(METHODS[name], agent_id, finish)
