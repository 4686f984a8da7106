"""A store for synchronous code, and its opening."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Final, Self
from weakref import WeakSet

from kode_core.engine import Progress
from kode_core.errors import StoreClosedError, UnsupportedError
from kode_core.factory import Extension, Target, open_planned, plan_of
from kode_core.model import now_ms
from kode_core.operation import Observer
from kode_core.plugins import EngineLayer
from kode_core.protocols import ExtendedStore, ScopedStore
from kode_core.report import RepairResult, StoreHealthStatus
from kode_core.store.repairs import Repairable
from kode_core.sync import thread
from kode_core.sync.locks import SyncAgentLock
from kode_core.sync.methods.extended_store import ExtendedStoreMethods
from kode_core.sync.thread import LoopThread

__all__ = ["SyncStore", "open_store"]


class SyncStore(ExtendedStoreMethods):
    """Every method of :class:`~kode_core.ExtendedStore`, for code without an event loop.

    :func:`open_store` makes one from a URL or other configuration. The store runs in an event loop of its own, in a
    thread that the first call starts. Any number of threads may use it at once. Ctrl-C cancels the call that it
    interrupts, as cancelling a task does (OPS-9).

    A process that is forked opens the store anew at its own first call. With SQLite the fork must come before the
    store's first use: afterwards the forked process gets a KodeError, since SQLite would lose writes.

    Args:
        opener: opens the store, in the thread's event loop: for stores over an engine, pool or client of your own.
    """

    def __init__(self, opener: Callable[[], Awaitable[ExtendedStore]]) -> None:
        self._opener = opener
        self._is_closed = False
        self._living: LoopThread | None = None
        self._starting = threading.Lock()
        _stores.add(self)

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else "not open yet" if self._living is None else repr(self._living)
        return f"<{type(self).__name__} {state}>"

    def __del__(self) -> None:
        living = getattr(self, "_living", None)
        if living is not None and not self._is_closed and not living.is_over:
            warnings.warn(
                f"{self!r} was not closed; use 'with' or 'store.close()'", ResourceWarning, stacklevel=2, source=self
            )
            living.close_soon()

    def _running(self) -> LoopThread:
        with self._starting:
            if self._is_closed:
                raise StoreClosedError("this store is closed; open a new one")
            if self._living is None:
                self._living = LoopThread(self._opener)
            return self._living

    def _forked(self) -> None:
        """Begin anew in a process that was just forked: neither the thread nor the holders of locks are in it."""
        if self._living is not None:
            _elsewhere.append(self._living)
        self._living = None
        self._starting = threading.Lock()

    # --- opening and closing

    def open(self) -> Self:
        """Open the store now instead of at its first use, and return it.

        Raises:
            StorageError: the store cannot be opened.
        """

        async def opened(store: ExtendedStore) -> None:
            open_now = getattr(store, "open", None)
            if open_now is not None:
                await open_now()

        self._call(opened)
        return self

    def close(self) -> None:
        """Finish the accepted writes, release the store's resources and end its thread (OPS-5)."""
        with self._starting:
            living = self._living
            if living is not None:
                living.refuse_own()
            self._is_closed = True
        if living is not None:
            living.close()

    def __enter__(self) -> Self:
        try:
            return self.open()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- methods of another form

    def scoped(self, tenant: str) -> SyncStore:
        """A view that sees the agents of one tenant and nothing else, through every method (SCOPE-1).

        It uses the thread and the connections of this store, and need not be closed; see
        :meth:`kode_core.ScopedStore.scoped`.

        Raises:
            InvalidArgumentError: *tenant* cannot name a tenant (SCOPE-2).
            UnsupportedError: this store is such a view itself, or has no views.
        """

        async def check(store: ExtendedStore) -> None:
            _scoped(store, tenant)

        self._call(check)
        return _View(self, tenant)

    def health_check(self) -> StoreHealthStatus:
        """Check whether the store can be used now. This never raises (OPS-1).

        SQL backends name tables that were dropped, at no further cost.
        """
        try:
            return super().health_check()
        except Exception as exc:  # noqa: BLE001 - a health check reports, whatever it is
            return StoreHealthStatus(healthy=False, problem=f"{type(exc).__name__}: {exc}", checked_at=now_ms())

    def acquire_agent_lock(self, agent_id: str, ttl_ms: int = 30_000, wait_ms: int = 0) -> SyncAgentLock:
        """Take the lock of an agent: at most one holder over all threads, processes and machines (LOCK-1).

        Use ``with``, which renews the lease every third of *ttl_ms* in the background and fences the writes inside::

            with store.acquire_agent_lock("agt-1", wait_ms=5_000):
                store.append_messages("agt-1", [Message.user("Hello!")])

        The ``acquire`` method of the result takes a lease that ends after *ttl_ms* unless ``renew()`` is called.

        The writes of this thread are fenced while it is in the block. A thread or task that was started inside with a
        copy of the context, as ``asyncio.to_thread`` does, is fenced for its whole life (LOCK-7). Another thread is not
        fenced: it passes ``fence=lease`` to its writes. So does a block that is entered in one thread and left in
        another, as by a generator of a dependency in FastAPI.

        Raises:
            LockUnavailableError: it was still held after *wait_ms*; or, at once, this thread is inside the block of
                this lock, or was started there.
            StoreClosedError: the store was closed while the call waited.
        """
        return self._lock(agent_id, ttl_ms, wait_ms)

    def repair(self, agent_id: str | None = None, *, progress: Progress | None = None) -> RepairResult:
        """Remove the leftovers of dead processes at once, of one agent or of all; they go by themselves minutes later.

        Changes nothing that can be read, and mends no damage. Safe at any time, next to readers and writers of other
        processes. The deadline applies to each step, not to the whole (OPS-16); *progress* is called with the number
        of examined agents and their approximate total.

        Raises:
            UnsupportedError: the store has no such method.
        """

        async def repaired(store: ExtendedStore) -> RepairResult:
            if not isinstance(store, Repairable):
                raise UnsupportedError(f"{type(store).__name__} has no method repair")
            return await store.repair(agent_id, progress=progress)

        return self._call(repaired)


class _View(SyncStore):
    """A view of one tenant, in the thread of another store."""

    def __init__(self, whole: SyncStore, tenant: str) -> None:
        self._whole = whole
        self._tenant = tenant
        self._is_closed = False
        self._seen: tuple[ExtendedStore, ExtendedStore] | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} closed>" if self._is_closed else f"<tenant {self._tenant!r} of {self._whole!r}>"

    def __del__(self) -> None:
        """It needs no close: the thread is another store's."""

    def _running(self) -> LoopThread:
        if self._is_closed:
            raise StoreClosedError("this store is closed; open a new one")
        return self._whole._running()

    async def _store(self, thread: LoopThread) -> ExtendedStore:
        """The view of the store that is open now: after a fork of the process it is another one."""
        whole = await thread.store()
        if self._seen is None or self._seen[0] is not whole:
            self._seen = whole, _scoped(whole, self._tenant)
        return self._seen[1]

    def close(self) -> None:
        """Finish the accepted writes of this view; the other store stays open (SCOPE-5)."""
        if self._is_closed:
            return
        seen = self._seen
        if seen is not None and not self._whole._is_closed:

            async def close(_: ExtendedStore) -> None:
                await seen[1].close()

            self._call(close)
        self._is_closed = True


def _scoped(whole: ExtendedStore, tenant: str) -> ExtendedStore:
    if not isinstance(whole, ScopedStore):
        raise UnsupportedError(f"{type(whole).__name__} has no views of tenants")
    return whole.scoped(tenant)


def open_store(
    target: Target | ExtendedStore = None,
    /,
    *,
    layers: Sequence[EngineLayer] = (),
    observers: Sequence[Observer] = (),
    **options: Any,
) -> SyncStore:
    """A store for synchronous code. Takes what :func:`kode_core.create_extended_store` takes, and checks it at once.

    The store opens at its first use, or at ``with``, which also closes it::

        store = open_store("sqlite:///agents.db")

        with open_store("sqlite:///agents.db") as store:
            store.append_messages("agt-1", [Message.user("Hello!")])

    *target* may also be an async store that was made from a configuration, such as ``SqliteStore("agents.db")``: the
    result is another store with the same configuration, and the async one is left alone.

    Raises:
        ConfigurationError: the configuration is wrong; the message says what to change.
    """
    return SyncStore(partial(open_planned, plan_of(target, options, Extension.checked(layers, observers))))


_stores: Final[WeakSet[SyncStore]] = WeakSet()
"""The stores of this process, which a fork finds."""
_elsewhere: Final[list[LoopThread]] = []
"""The threads of processes from which this one was forked, kept: to finalize their connections would use them."""


def _forked() -> None:
    _elsewhere.extend(thread.forget())
    for store in list(_stores):
        store._forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
