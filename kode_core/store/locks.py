"""Leases: at most one holder of an agent at a time, and writes that fail when they come too late (LOCK clauses)."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Callable, Coroutine, Generator, Mapping
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Final, TypeVar

from kode_core.batch import Fence
from kode_core.errors import InvalidArgumentError, LockLostError, LockUnavailableError, StorageError
from kode_core.protocols import Lease
from kode_core.store.context import Context
from kode_core.store.ops import OPS

__all__ = ["HeldLease", "LeaseContext", "Locks"]

T = TypeVar("T")

_MIN_TTL_MS: Final = 10
_MAX_TTL_MS: Final = 24 * 3600 * 1000
_POLL_S: Final = 0.02

_NONE_HELD: Final[Mapping[tuple[int, str], Fence]] = {}
_held: ContextVar[Mapping[tuple[int, str], Fence]] = ContextVar("kode_leases", default=_NONE_HELD)


class HeldLease:
    """See :class:`kode_core.protocols.Lease`; ``ttl_ms`` is for how long it is held without renewal."""

    def __init__(self, locks: Locks, agent_id: str, fence: Fence, ttl_ms: int) -> None:
        self._locks = locks
        self.agent_id = agent_id
        self.fence = fence
        self.ttl_ms = ttl_ms
        self.is_lost = False

    @property
    def token(self) -> int:
        return self.fence.token

    def __repr__(self) -> str:
        return f"<Lease of agent {self.agent_id!r}, token {self.token}{', lost' if self.is_lost else ''}>"

    async def renew(self) -> None:
        if not await self._locks.renew(self):
            self.is_lost = True
            raise LockLostError(self.agent_id, "the lease has ended and cannot be renewed")

    async def release(self) -> None:
        await self._locks.release(self)


class LeaseContext:
    """What ``acquire_agent_lock`` returns: await it for a :class:`HeldLease`, or use ``async with``.

    ``async with`` renews the lease as long as the block runs, fences the writes of its task and its children, and
    releases at the end.
    """

    def __init__(self, locks: Locks, agent_id: str, ttl_ms: int, wait_ms: int) -> None:
        self._locks = locks
        self._acquire: Callable[[], Any] = lambda: locks.acquire(agent_id, ttl_ms, wait_ms)
        self._lease: HeldLease | None = None
        self._renewer: asyncio.Task[None] | None = None
        self._outer: Mapping[tuple[int, str], Fence] = _NONE_HELD

    def __await__(self) -> Generator[Any, None, HeldLease]:
        return self._acquire().__await__()  # type: ignore[no-any-return]

    async def __aenter__(self) -> HeldLease:
        lease = self._lease = await self
        self._outer = _held.get()
        _held.set({**self._outer, self._locks.key(lease.agent_id): lease.fence})
        self._renewer = asyncio.get_running_loop().create_task(_keep(lease))
        return lease

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._lease is not None
        assert self._renewer is not None
        _held.set(self._outer)
        self._renewer.cancel()
        await asyncio.shield(asyncio.ensure_future(self._lease.release()))


async def _keep(lease: HeldLease) -> None:
    """Renew at a third of the time, until the lease is lost. An attempt that fails is repeated while there is time."""
    held_until = time.monotonic() + lease.ttl_ms / 1000
    while True:
        await asyncio.sleep(lease.ttl_ms / 3000)
        started = time.monotonic()
        try:
            await lease.renew()
        except LockLostError:
            return
        except StorageError:
            if started > held_until:
                lease.is_lost = True
                return
        else:
            held_until = started + lease.ttl_ms / 1000


class Locks:
    """Takes, renews and releases the leases of one store."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def key(self, agent_id: str) -> tuple[int, str]:
        """Under which the lease of this store for that agent stands in the task's context."""
        return id(self._context), agent_id

    def fence(self, agent_id: str, lease: Lease | None) -> Fence | None:
        """The fence of a write: the lease that was given, or the one whose block the task is in (LOCK-5)."""
        if lease is None:
            held = _held.get()
            return held.get(self.key(agent_id)) if held else None
        if not isinstance(lease, HeldLease):
            raise InvalidArgumentError(f"fence must be a Lease, got {type(lease).__name__}")
        if lease.agent_id != agent_id:
            raise InvalidArgumentError(f"the lease is for agent {lease.agent_id!r}, the write for {agent_id!r}")
        return lease.fence

    def lock(self, agent_id: str, ttl_ms: int, wait_ms: int) -> LeaseContext:
        for name, value, low, high in (
            ("ttl_ms", ttl_ms, _MIN_TTL_MS, _MAX_TTL_MS),
            ("wait_ms", wait_ms, 0, _MAX_TTL_MS),
        ):
            if type(value) is not int:
                raise InvalidArgumentError(f"{name} must be an int, got {type(value).__name__}")
            if not low <= value <= high:
                raise InvalidArgumentError(f"{name} must be from {low} to {high}, got {value}")
        return LeaseContext(self, agent_id, ttl_ms, wait_ms)

    async def acquire(self, agent_id: str, ttl_ms: int, wait_ms: int) -> HeldLease:
        op = OPS["acquire_agent_lock"]._replace(extra_seconds=wait_ms / 1000)
        return await self._context.run(op, agent_id, self._acquire, agent_id, ttl_ms, wait_ms)

    async def _acquire(self, agent_id: str, ttl_ms: int, wait_ms: int) -> HeldLease:
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
            await asyncio.sleep(min(left, pause * random.uniform(0.5, 1.0)))  # noqa: S311
            pause = min(pause * 1.5, 0.25)

    async def _take(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        """Ask the engine; a caller that is cancelled meanwhile leaves no lease behind that nobody knows of."""
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

        return await self._context.run(OPS[name], agent_id, finish)
