"""The interface between the core and a storage engine.

An :class:`Engine` moves bytes: about twenty primitives, values in, values out. It does not validate, parse bodies,
measure, retry or read the clock; the core does that once for all engines. The values are in :mod:`kode_core.batch`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Final, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

from kode_core.batch import (
    Batch,
    Child,
    Doc,
    DocKind,
    EngineIssue,
    EventRange,
    EventRow,
    Fence,
    FoundRow,
    Head,
    ListKind,
    ListRows,
    Outcome,
    Outline,
    SessionRow,
    Totals,
)
from kode_core.codec import Body
from kode_core.query import AgentStats, RowQuery, SessionQuery
from kode_core.report import ConnectionUse, RepairResult

__all__ = [
    "CALLER",
    "Caller",
    "Connects",
    "Engine",
    "Medium",
    "Notifies",
    "Progress",
    "Repairs",
    "Watch",
    "connection_use",
    "idle_poll_ms",
    "repair",
    "unwatched",
    "watch",
]

Medium: TypeAlias = Literal["database", "file_system"]

Progress: TypeAlias = Callable[[int, int | None], object]
"""Called in the event loop after each step of a long call: how much is done, and of how much, None where unknown.

An error that it raises ends the call, and is raised by it.
"""


class Caller(NamedTuple):
    """Who waits for a commit.

    Attributes:
        is_waiting: whether somebody waits for the outcome still. A batch that was not sent when nobody does need not be
            sent: then its outcome is a StoreTimeoutError.
        patience: for how many seconds the caller waits; an engine that makes a write wait for others keeps to a part.
        goes_on: called after each step of a delete or a fork that takes as long as the agent is large: the caller's
            deadline begins anew.
    """

    is_waiting: Callable[[], bool] = lambda: True
    patience: float = 30.0
    goes_on: Callable[[], None] = lambda: None


CALLER: Final = ContextVar("CALLER", default=Caller())  # noqa: B039 - a tuple
"""Who waits for what is committed or forked in this context."""


def unwatched(done: int, total: int | None) -> None:
    """Ignore the progress of a call."""


@runtime_checkable
class Engine(Protocol):
    """What a backend implements to get a complete ``ExtendedStore`` from the core.

    Every method may raise the subclasses of ``StorageError``, and PayloadTooLargeError for what the backend cannot
    hold; no other exception of its driver's. Reads see every write that was acknowledged before they began, by any
    process, and each sees one instant. Reads of what is not there return None or nothing and leave no trace.
    Arguments are checked already: ids are legal, filters are known, bodies are JSON text. Engines are not asked to
    survive use after ``close``.
    """

    name: str
    """The backend's name, as in ``sqlite``."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        """Apply each batch atomically, in order, and return an outcome for each once all are durable.

        Batches stand for themselves: one that is refused or fails takes no other with it. The outcome of one that
        fails is its error. ``CALLER`` says who waits for them, for an engine that lets writes wait for others.
        """
        ...

    async def head(self, agent_id: str) -> Head | None:
        """The agent's head, None when nothing but events or documents was ever saved for it."""
        ...

    async def rows(self, agent_id: str, kind: ListKind) -> ListRows:
        """A whole list."""
        ...

    async def rows_at(self, agent_id: str, kind: ListKind, start: int, limit: int) -> ListRows:
        """At most *limit* rows of a list, those from position *start* on; fewer only where the list ends.

        Costs what it returns, however long the list is.
        """
        ...

    async def outline(self, agent_id: str, kind: ListKind, keys: Sequence[str] | None = None) -> Outline:
        """A list's outline; with *keys*, only the last row of each of these call ids."""
        ...

    async def docs(self, agent_id: str, kind: DocKind, key: str | None = None) -> Sequence[Doc]:
        """The agent's documents of a kind, in any order, or the one with *key*."""
        ...

    async def events(self, agent_id: str, span: EventRange) -> Sequence[EventRow]:
        """At most ``span.limit`` events."""
        ...

    async def last_event(self, agent_id: str) -> EventRow | None:
        """The event that is last by (seq, offset)."""
        ...

    async def agent_ids(self, prefix: str, after: str | None, limit: int) -> Sequence[str]:
        """Ids of agents with info that begin with *prefix*, in code point order, those behind *after*."""
        ...

    async def stored_ids(self, after: str | None, limit: int) -> Sequence[str]:
        """Ids under which anything at all is stored, in code point order, those behind *after*.

        Also agents without info, and what is left of an agent that lost its head. What layers keep for themselves
        does not count.
        """
        ...

    async def find_sessions(self, query: SessionQuery) -> Sequence[SessionRow]:
        """Agents with info that match, in the query's order."""
        ...

    async def find_rows(self, query: RowQuery) -> Sequence[FoundRow]:
        """List rows that match, in the query's order."""
        ...

    async def stats(self, agent_id: str) -> AgentStats:
        """Counts for one agent; names and states in the form of the index."""
        ...

    async def totals(self) -> Totals:
        """Counts over all agents."""
        ...

    async def fork(self, agent_id: str, children: Sequence[Child], expect: Body, now: int) -> bool:
        """Copy one instant of the agent's lists and ``FORKED_DOCS`` to each child, and give it its info.

        Returns False, with nothing written, when the agent's info is no longer *expect*.
        """
        ...

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        """Take the lease unless it is held, and return its token, greater than any before; None when held."""
        ...

    async def renew_lease(self, agent_id: str, fence: Fence, ttl_ms: int) -> bool:
        """Prolong a lease that is still held; False when it ended."""
        ...

    async def release_lease(self, agent_id: str, fence: Fence) -> None:
        """End a lease; does nothing when it ended already, whoever holds it now (LOCK-4)."""
        ...

    def probes(self) -> Sequence[tuple[Medium, Callable[[], Awaitable[None]]]]:
        """Calls that prove, with the least possible work, that each medium can be read and written, or raise."""
        ...

    async def inspect(self, agent_id: str | None, progress: Progress = unwatched) -> Sequence[EngineIssue]:
        """Problems in the engine's own structures, of one agent or, for None, of what belongs to no agent.

        Leftovers of a half-done delete, repeated offsets, counts that disagree. It changes nothing, and holds up no
        writer. The store's deadline begins anew with each *progress* (OPS-16).
        """
        ...

    async def backup(self, target: Path, progress: Progress = unwatched) -> Sequence[Path]:
        """Copy one instant of everything to *target*, which must not exist, and return what was made.

        It holds up no writer. When it fails or is cancelled, it removes what it made. The store's deadline begins
        anew with each *progress* (OPS-16), which is first called when the instant is fixed.

        Raises:
            UnsupportedError: this engine cannot.
            InvalidArgumentError: there is something at *target*, or no file or folder can be made there.
        """
        ...

    async def close(self) -> None:
        """Finish what was accepted and give back what the engine opened."""
        ...


class Watch(Protocol):
    """Somebody who waits for events of an agent, as the engine knows of it."""

    @property
    def is_live(self) -> bool:
        """True while the engine reports appends. Otherwise followers must poll often."""
        ...

    def close(self) -> None:
        """End it."""
        ...


@runtime_checkable
class Notifies(Protocol):
    """An optional part of an engine: it reports events that any process appends, so that followers need not poll."""

    def watch(self, agent_id: str, wake: Callable[[], None]) -> Watch | None:
        """Call *wake* after events of the agent were committed, sometimes also without any; None when it cannot now.

        It wakes in vain rather than not at all, and still may miss one: followers look now and then by themselves.
        """
        ...


def watch(engine: Engine, agent_id: str, wake: Callable[[], None]) -> Watch | None:
    """A watch of *engine*, if it has such a thing."""
    return engine.watch(agent_id, wake) if isinstance(engine, Notifies) else None


def idle_poll_ms(engine: Engine) -> int | None:
    """How long an idle follower waits at most between two looks; None where a look costs nothing.

    The optional attribute ``idle_poll_ms`` of an engine whose looks are paid for says it.
    """
    found: int | None = getattr(engine, "idle_poll_ms", None)
    return found


@runtime_checkable
class Connects(Protocol):
    """An optional part of an engine: its calls share connections to a server, which it counts."""

    def connection_use(self) -> ConnectionUse | None:
        """The counts now; None when there are none."""
        ...


def connection_use(engine: Engine) -> ConnectionUse | None:
    """The counts of *engine*'s connections, if it has such a thing."""
    return engine.connection_use() if isinstance(engine, Connects) else None


@runtime_checkable
class Repairs(Protocol):
    """An optional part of an engine: processes that died may have left something behind, which it can remove.

    An engine whose database undoes by itself what was not finished does without.
    """

    async def repair(self, agent_id: str | None, progress: Progress = unwatched) -> RepairResult:
        """End or remove what was left of one agent, or of all; next to writers, and as often as anybody likes.

        Nothing that can be read is changed. The store's deadline begins anew with each *progress* (OPS-16).
        """
        ...


async def repair(engine: Engine, agent_id: str | None, progress: Progress = unwatched) -> RepairResult:
    """Repair what *engine* can; nothing where nothing is ever left."""
    return await engine.repair(agent_id, progress) if isinstance(engine, Repairs) else RepairResult()
