"""The interface between the core and a storage engine.

An :class:`Engine` moves bytes: about twenty primitives, values in, values out. It does not validate, parse bodies,
measure, retry or read the clock; the core does that once for all engines. The values are in :mod:`kode_core.batch`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Final, Literal, NamedTuple, Protocol, TypeAlias, cast, runtime_checkable

from kode_core.batch import (
    AgentSummary,
    Batch,
    Child,
    Doc,
    DocKind,
    DocSpan,
    EngineIssue,
    EventRange,
    EventRow,
    Fence,
    FoundRow,
    ListKind,
    ListRows,
    Outcome,
    Outline,
    SessionRow,
    Totals,
)
from kode_core.codec import Body
from kode_core.errors import UnsupportedError
from kode_core.query import AgentStats, RowQuery, SessionQuery, Within, lists_values
from kode_core.report import ConnectionUse, RepairResult

__all__ = [
    "CALLER",
    "Caller",
    "Connects",
    "Engine",
    "Medium",
    "Notifies",
    "Progress",
    "RangesDocs",
    "Repairs",
    "Watch",
    "check_any_of",
    "check_documents",
    "check_drops",
    "checks_demands",
    "connection_use",
    "docs_in",
    "drops_events",
    "finds_any_of",
    "finds_within",
    "idle_poll_ms",
    "keeps_documents",
    "repair",
    "unwatched",
    "watch",
]

Medium: TypeAlias = Literal["database", "file_system"]

Progress: TypeAlias = Callable[[int, int | None], object]
"""Called in the event loop after each step of a long call: the amount done, and the total, None if unknown.

An exception that it raises ends the call and propagates to the call's caller.
"""


class Caller(NamedTuple):
    """The caller that waits for a commit.

    Attributes:
        is_waiting: returns True while the caller still waits for the outcome. A batch that was not sent by the time the
            caller gave up need not be sent: its outcome is then a StoreTimeoutError.
        patience: for how many seconds the caller waits; an engine that makes a write wait for others uses only a part
            of it.
        goes_on: called after each step of a delete or a fork that takes as long as the agent is large: the caller's
            deadline begins anew.
    """

    is_waiting: Callable[[], bool] = lambda: True
    patience: float = 30.0
    goes_on: Callable[[], None] = lambda: None


CALLER: Final = ContextVar("CALLER", default=Caller())  # noqa: B039 - a tuple
"""The caller that waits for the batches that are committed, or the forks that are made, in this context."""


def unwatched(done: int, total: int | None) -> None:
    """Ignore the progress of a call."""


@runtime_checkable
class Engine(Protocol):
    """The interface of a backend, from which the core makes a complete ``ExtendedStore``.

    Every method may raise the subclasses of ``StorageError``, and PayloadTooLargeError for values that the backend
    cannot hold; it raises no other exception of its driver. Reads see every write that was acknowledged before they
    began, by any process, and each sees one instant. A read of something that does not exist returns None or nothing
    and leaves no trace. Arguments are checked already: ids are legal, filters are known, bodies are JSON text. Engines
    need not work after ``close``.
    """

    name: str
    """The backend's name, as in ``sqlite``."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        """Apply each batch atomically, in order, and return an outcome for each once all are durable.

        Batches are independent: a batch that is refused or fails does not affect the others. The outcome of a batch
        that fails is its error. ``CALLER`` holds the waiting caller, for an engine that lets writes wait for others.
        """
        ...

    async def summary(self, agent_id: str) -> AgentSummary | None:
        """The agent without its lists; None if only events or documents were ever saved for it."""
        ...

    async def rows(self, agent_id: str, kind: ListKind) -> ListRows:
        """A whole list."""
        ...

    async def rows_at(self, agent_id: str, kind: ListKind, start: int, limit: int) -> ListRows:
        """At most *limit* rows of a list from position *start* on; fewer only at the end of the list.

        The cost depends on the rows that are returned, not on the length of the list.
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
        """Ids of agents with info that begin with *prefix* and follow *after*, in code point order."""
        ...

    async def stored_ids(self, after: str | None, limit: int) -> Sequence[str]:
        """All ids under which anything is stored and that follow *after*, in code point order.

        They include agents without info, and the remains of an agent that lost its head. Documents that layers keep for
        themselves do not count.
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
        """Copy one instant of the agent's lists and ``FORKED_DOCS`` to each child, and give each child its own info.

        Returns False, with nothing written, when the agent's info is no longer *expect*.
        """
        ...

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        """Take the lease unless it is held, and return its token, greater than any before; None if it is held."""
        ...

    async def renew_lease(self, agent_id: str, fence: Fence, ttl_ms: int) -> bool:
        """Prolong a lease that is still held; False if it ended."""
        ...

    async def release_lease(self, agent_id: str, fence: Fence) -> None:
        """End a lease; does nothing if it already ended, even if another owner holds the lease now (LOCK-4)."""
        ...

    def probes(self) -> Sequence[tuple[Medium, Callable[[], Awaitable[None]]]]:
        """Calls that prove cheaply that each medium can be read and written; they raise if it cannot."""
        ...

    async def inspect(self, agent_id: str | None, progress: Progress = unwatched) -> Sequence[EngineIssue]:
        """Problems in the engine's own structures, of one agent or, for None, of the parts that belong to no agent.

        Examples are leftovers of an incomplete delete, repeated offsets, and counts that disagree. It changes nothing
        and delays no writer. The store's deadline starts again with each *progress* (OPS-16).
        """
        ...

    async def backup(self, target: Path, progress: Progress = unwatched) -> Sequence[Path]:
        """Copy one instant of everything to *target*, which must not exist, and return the files that were made.

        It delays no writer. If it fails or is cancelled, it removes the files it made. The store's deadline starts
        again with each *progress* (OPS-16), which is first called when the instant is fixed.

        Raises:
            UnsupportedError: this engine cannot make backups.
            InvalidArgumentError: *target* exists, or no file or folder can be created there.
        """
        ...

    async def close(self) -> None:
        """Finish the accepted writes and release the engine's resources."""
        ...


class Watch(Protocol):
    """A subscription to the events of an agent."""

    @property
    def is_live(self) -> bool:
        """True while the engine reports appends. Otherwise followers must poll often."""
        ...

    def close(self) -> None:
        """End the subscription."""
        ...


@runtime_checkable
class Notifies(Protocol):
    """An optional interface of an engine: it reports events that any process appends, so followers need not poll."""

    def watch(self, agent_id: str, wake: Callable[[], None]) -> Watch | None:
        """Call *wake* after events of the agent were committed, and sometimes without; None if it cannot now.

        The engine prefers a needless wake to a missed one, but may still miss one: followers also poll now and then.
        """
        ...


def watch(engine: Engine, agent_id: str, wake: Callable[[], None]) -> Watch | None:
    """A watch of *engine*; None if the engine has no watches."""
    return engine.watch(agent_id, wake) if isinstance(engine, Notifies) else None


def idle_poll_ms(engine: Engine) -> int | None:
    """How long an idle follower waits at most between two looks; None where a look costs nothing.

    The optional attribute ``idle_poll_ms`` of an engine whose looks are paid for says it.
    """
    found: int | None = getattr(engine, "idle_poll_ms", None)
    return found


@runtime_checkable
class Connects(Protocol):
    """An optional interface of an engine: its calls share connections to a server, and it counts their use."""

    def connection_use(self) -> ConnectionUse | None:
        """The present counts; None if there are none."""
        ...


def connection_use(engine: Engine) -> ConnectionUse | None:
    """The counts of *engine*'s connections; None if the engine does not support it."""
    return engine.connection_use() if isinstance(engine, Connects) else None


@runtime_checkable
class Repairs(Protocol):
    """An optional part of an engine: processes that died may have left something behind, which it can remove.

    An engine over a database with transactions does without.
    """

    async def repair(self, agent_id: str | None, progress: Progress = unwatched) -> RepairResult:
        """End or remove the leftovers of one agent, or of all, while others write.

        Nothing that can be read is changed. The store's deadline begins anew with each *progress* (OPS-16).
        """
        ...


async def repair(engine: Engine, agent_id: str | None, progress: Progress = unwatched) -> RepairResult:
    """Repair what *engine* can; nothing where nothing is ever left."""
    return await engine.repair(agent_id, progress) if isinstance(engine, Repairs) else RepairResult()


class RangesDocs(Protocol):
    """An optional interface of an engine: it keeps documents of the caller's own (DOC clauses).

    ``commit`` then checks ``DocWrite.expect`` in the same atomic step as the write, and refuses a batch by ``docs``; in
    that step it also gives the documents with ``DocWrite.at`` their positions, by :func:`~kode_core.batch.placed_docs`.
    """

    keeps_documents: bool
    """True; a layer says what the engine inside it says."""

    async def docs_in(self, agent_id: str, span: DocSpan) -> Sequence[Doc]:
        """The agent's documents of a range, in its order.

        The cost depends on the documents that are returned, not on the number of the agent's documents.
        """
        ...


def keeps_documents(engine: Engine) -> bool:
    """Whether *engine* has the interface :class:`RangesDocs`."""
    return bool(getattr(engine, "keeps_documents", False))


def check_documents(engine: Engine) -> None:
    """Raise UnsupportedError if *engine* keeps no documents of the caller's own: it would ignore what writes demand."""
    if not keeps_documents(engine):
        raise UnsupportedError(f"the backend {engine.name} keeps no documents of the caller's own")


async def docs_in(engine: Engine, agent_id: str, span: DocSpan) -> Sequence[Doc]:
    """The documents of a range.

    Raises:
        UnsupportedError: *engine* keeps no documents of the caller's own.
    """
    check_documents(engine)
    return await cast(RangesDocs, engine).docs_in(agent_id, span)


def drops_events(engine: Engine) -> bool:
    """Whether *engine* applies ``Batch.drop_events``; its optional attribute of this name says so.

    It checks the precondition and removes the events in the same atomic step, and refuses the batch by ``events``. A
    layer says what the engine inside it says.
    """
    return bool(getattr(engine, "drops_events", False))


def check_drops(engine: Engine) -> None:
    """Raise UnsupportedError if *engine* would ignore ``Batch.drop_events``."""
    if not drops_events(engine):
        raise UnsupportedError(f"the backend {engine.name} cannot remove a part of an agent's events")


def checks_demands(engine: Engine) -> bool:
    """Whether *engine* checks ``Batch.expect_nothing``, and ``DocWrite.expect`` for documents of every kind.

    Its optional attribute of this name says so. It checks them in the same atomic step as the write, and refuses the
    batch by ``contents`` or ``docs``. A layer says what the engine inside it says.
    """
    return bool(getattr(engine, "checks_demands", False))


def finds_any_of(engine: Engine) -> bool:
    """Whether *engine* takes filters with several values; its optional attribute of this name says so."""
    return bool(getattr(engine, "finds_any_of", False))


def finds_within(engine: Engine) -> bool:
    """Whether *engine* takes queries of a range of agents (``Within``); its optional attribute of this name says so."""
    return bool(getattr(engine, "finds_within", False))


def check_any_of(engine: Engine, query: SessionQuery | RowQuery) -> None:
    """Raise UnsupportedError if *engine* does not know a filter of *query*: several values, or a range of agents."""
    if isinstance(query.agent_id, Within) and not finds_within(engine):
        raise UnsupportedError(f"the backend {engine.name} does not find agents by the beginning of their ids")
    if lists_values(query) and not finds_any_of(engine):
        raise UnsupportedError(f"the backend {engine.name} takes one value for each filter; query each value by itself")
