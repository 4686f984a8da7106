"""The ground of the public store: its parts, how a call runs, opening and closing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from kode_core.batch import DocWrite, Fence
from kode_core.ids import check_agent_id
from kode_core.model import (
    now_ms,
)
from kode_core.operation import Observer
from kode_core.protocols import Lease
from kode_core.store.context import Context, Opener
from kode_core.store.counts import Counting
from kode_core.store.deletions import Deletions
from kode_core.store.documents import Documents
from kode_core.store.edits import MessageEdits
from kode_core.store.emitting import Emitter
from kode_core.store.events import EventAppender, EventReader
from kode_core.store.followers import Followers
from kode_core.store.forks import Forks
from kode_core.store.groups import GroupCounts
from kode_core.store.keyed import KeyedAppends
from kode_core.store.list_memory import ListMemory
from kode_core.store.locks import Locks
from kode_core.store.message_search import MessageSearch
from kode_core.store.methods import METHODS
from kode_core.store.parts import Parts
from kode_core.store.pruning import Pruning
from kode_core.store.reader import Reader
from kode_core.store.sessions import Sessions
from kode_core.store.tag_search import TaggedDocuments
from kode_core.store.whole import Wholes
from kode_core.store.writer import Rest, TurnWrites, Writer
from kode_core.tenants import check_tenant, prefix_of

__all__ = ["StoreBase"]

P = ParamSpec("P")
T = TypeVar("T")


class StoreBase:
    """The ground of an ExtendedStore over any engine.

    Args:
        opener: opens the engine; called once, on first use or by :meth:`open`.
        timeout_ms: the deadline of every call (OPS-9).
        follow_poll_ms: how often ``follow_events`` looks for events of other processes.
        memory_limit_bytes: the most that remembered lists may take (OPS-14).
        clock: gives milliseconds since the epoch.
        observers: surround calls, or are called after them; see :data:`~kode_core.operation.Observer` (OPS-20).
        tenant: the tenant whose agents are all that the store sees (SCOPE-1); None for everything.
        parent: the store of which this is a view; its engine and its memory are used.
    """

    _context: Context
    _appender: EventAppender

    def __init__(
        self,
        opener: Opener,
        *,
        timeout_ms: int = 30_000,
        follow_poll_ms: int = 100,
        memory_limit_bytes: int = 64 * 2**20,
        clock: Callable[[], int] = now_ms,
        observers: Sequence[Observer] = (),
        tenant: str | None = None,
        parent: StoreBase | None = None,
    ) -> None:
        self._settings: Any = {"timeout_ms": timeout_ms, "follow_poll_ms": follow_poll_ms, "clock": clock}
        self._settings["observers"] = self._observers = observers
        self._parent = parent  # a view keeps it: the engine is the parent's
        self._tenant = None if tenant is None else check_tenant(tenant)
        above: Context | None = None if parent is None else parent._context
        settings: Any = {"timeout_ms": timeout_ms, "clock": clock, "observers": observers}
        context: Context = Context(opener, tenant=tenant, parent=above, **settings)
        self._context = context
        memory, followers = ListMemory(memory_limit_bytes), Followers()
        self._memory = memory
        if parent is not None and tenant is not None:
            prefix = prefix_of(tenant)
            memory, followers = parent._memory.scoped(prefix), parent._appender.followers.scoped(prefix)
        self._appender = EventAppender(context, followers)
        context.drain = self._appender.drain
        self._events = EventReader(context)
        self._follow_poll_s = follow_poll_ms / 1000
        self._locks = Locks(context)
        self._emitter = Emitter(context, self._appender, self._locks)
        self._writer = Writer(context, memory, self._appender)
        self._reader = Reader(context, memory)
        self._search = MessageSearch(context)
        self._counting = Counting(context)
        self._grouping = GroupCounts(context)
        self._list_parts = Parts(context, self._reader)
        self._edits = MessageEdits(context, self._reader, self._writer)
        self._documents = Documents(context, self._writer)
        self._tagged = TaggedDocuments(context)
        self._sessions = Sessions(context, self._writer)
        self._keyed = KeyedAppends(context, self._writer)
        self._forks = Forks(context, self._reader, memory, self._appender)
        self._wholes = Wholes(context, self._reader, self._writer, self._appender)
        self._deletions = Deletions(context, memory, self._appender, self._locks)
        self._pruning = Pruning(context, self._appender, self._writer)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._context!r}>"

    def __del__(self) -> None:
        context = getattr(self, "_context", None)
        if context is not None:
            context.warn_if_open()

    async def _run(self, name: str, call: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._context.run(METHODS[name], None, call, *args, **kwargs)

    async def _save(
        self, name: str, agent_id: str, fence: Lease | None, build: Callable[[], TurnWrites]
    ) -> Sequence[int]:
        """Write, and return the offsets of the events."""

        async def write() -> Sequence[int]:
            check_agent_id(agent_id)
            with self._locks.fencing(agent_id, fence) as held:
                return await self._writer.write(agent_id, build, held)

        return await self._context.run(METHODS[name], agent_id, write)

    async def _fenced(
        self,
        name: str,
        agent_id: str,
        fence: Lease | None,
        call: Callable[Concatenate[str, Fence | None, P], Awaitable[T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run a write that reads first, under its lease."""

        async def write() -> T:
            with self._locks.fencing(check_agent_id(agent_id), fence) as held:
                return await call(agent_id, held, *args, **kwargs)

        return await self._context.run(METHODS[name], agent_id, write)

    async def _save_doc(
        self, name: str, agent_id: str, fence: Lease | None, make: Callable[[Any], Awaitable[DocWrite]], given: Any
    ) -> None:
        async def rest() -> Rest:
            return Rest(docs=(await make(given),))

        await self._save(name, agent_id, fence, lambda: TurnWrites(encode_rest=rest))

    async def _load(
        self,
        name: str,
        agent_id: str,
        call: Callable[Concatenate[str, P], Awaitable[T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        async def load() -> T:
            return await call(check_agent_id(agent_id), *args, **kwargs)

        return await self._context.run(METHODS[name], agent_id, load)

    async def _query(self, name: str, search: Callable[[Any], Awaitable[T]], filters: Any) -> T:
        agents = filters.get("agent_id")
        return await self._context.run(METHODS[name], agents if type(agents) is str else None, search, filters)

    def _iterated(self, name: str, agent_id: object, inner: AsyncIterator[T]) -> AsyncIterator[T]:
        return self._context.call_metrics.iterated(name, agent_id, inner)

    # --- opening and closing

    async def open(self) -> Self:
        """Open the store now instead of on first use."""
        await self._context.open()
        return self

    async def close(self) -> None:
        await self._context.close()

    async def __aenter__(self) -> Self:
        async with self._context.closed_if_cancelled(self.close):
            return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
