"""The PostgreSQL engine: group commit over a few connections, and one statement for each read."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from kode_core.authoring.closing import close_all
from kode_core.authoring.reading import verb_of
from kode_core.batch import Batch, Child, DocQuery, Fence, Outcome
from kode_core.codec import Body
from kode_core.engine import Medium, Progress, Watch, unwatched
from kode_core.errors import CorruptRecordError, OutcomeUnknownError, UnsupportedError
from kode_core.query import RowQuery, SessionQuery
from kode_core.report import ConnectionUse
from kode_core.rewriting import EventBody
from kode_postgres.arguments import Statements
from kode_postgres.commits import Committer
from kode_postgres.connection import Connections
from kode_postgres.doubts import Doubts, Never
from kode_postgres.forks import Forks
from kode_postgres.indexing import Indexing
from kode_postgres.leases import Leases
from kode_postgres.migrations import probe
from kode_postgres.opening import open_connections
from kode_postgres.options import PostgresOptions
from kode_postgres.reads import Reads
from kode_postgres.schema import Tables
from kode_postgres.session import Session
from kode_postgres.text_tables import see_texts
from kode_postgres.texts import TextsSeen
from kode_postgres.watch import Listener

__all__ = ["PostgresEngine"]

P = ParamSpec("P")
T = TypeVar("T")

_FORK_SECONDS = 60.0


def _of_agent(agent_id: str | None, *_: object, **__: object) -> str | None:
    return agent_id


def _of_query(query: SessionQuery | RowQuery | DocQuery, *_: object) -> str | None:
    return query.agent_id if isinstance(query.agent_id, str) else None


def _of_all(*_: object, **__: object) -> None:
    return None


def _verb(
    read: Callable[Concatenate[Reads, Session, P], Awaitable[T]], whose: Callable[P, str | None]
) -> Callable[Concatenate[PostgresEngine, P], Coroutine[Any, Any, T]]:
    """The verb that does *read*, when no write for the agent is in doubt."""

    @verb_of(read, given=2)
    async def verb(self: PostgresEngine, /, *args: P.args, **kwargs: P.kwargs) -> T:
        await self._doubts.resolve(whose(*args, **kwargs))
        return await self.connections.read(lambda session: read(self.reads, session, *args, **kwargs))

    return verb


class PostgresEngine:
    """See :class:`kode_core.engine.Engine`."""

    name = "postgres"
    keeps_documents = True
    checks_demands = True
    drops_events = rewrites_events = True
    finds_any_of = True
    finds_within = True
    finds_docs = finds_text = True
    can_count = can_group = True

    def __init__(self, connections: Connections, tables: Tables, *, durable: bool) -> None:
        self.tables = tables
        self.connections = connections
        self.reads = Reads(tables, TextsSeen(has=connections.has_texts))
        self.indexing = Indexing(connections, tables, self.reads)
        self._doubts = Doubts(connections)
        self._doubtful_leases = Doubts(connections)
        self._committer = Committer(connections, Statements(tables, durable=durable), self._doubts)
        self._forks = Forks(tables, durable=durable)
        self._leases = Leases(tables, durable=durable)
        self._listener = None if connections.connect is None else Listener(connections.connect, tables)

    def __repr__(self) -> str:
        return self.connections.address

    @classmethod
    async def open(cls, options: PostgresOptions) -> PostgresEngine:
        """Connect, create missing tables, and bring the tables to this version."""
        options = options.resolved()
        tables = Tables(options)
        connections = await open_connections(options, tables)
        engine = cls(connections, tables, durable=options.durability == "full")
        if options.text_index:
            try:
                if connections.has_texts:
                    await connections.read(lambda session: see_texts(session, tables, connections.address))
                else:
                    await engine.indexing.add(create=options.create)
            except BaseException:
                await asyncio.shield(engine.close())
                raise
        return engine

    # --- writing

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        outcomes = await self._committer.commit(batches)
        if any(batch.messages is not None for batch in batches):
            self.indexing.written()
        return [self._named(batch, outcome) for batch, outcome in zip(batches, outcomes, strict=True)]

    def _named(self, batch: Batch, outcome: Outcome) -> Outcome:
        """The outcome, with the agent's name in damage that the server met while it wrote."""
        if isinstance(outcome, CorruptRecordError) and outcome.record == self.connections.address:
            return CorruptRecordError(f"agent {batch.agent_id!r}", str(outcome))
        return outcome

    async def _write(
        self,
        call: Callable[[Session], Awaitable[T]],
        agent_id: str,
        doubts: Doubts,
        never: Never,
        seconds: float | None,
    ) -> T:
        """Write; a write that stays in doubt is noted with the statement that keeps it from being applied later."""
        await doubts.resolve(agent_id)
        try:
            return await self.connections.write(call, seconds)
        except OutcomeUnknownError:
            doubts.add(agent_id, never)
            raise

    async def fork(self, agent_id: str, children: Sequence[Child], expect: Body, now: int) -> bool:
        def call(session: Session) -> Awaitable[bool]:
            return self._forks.fork(session, agent_id, children, expect, now)

        done = await self._write(call, agent_id, self._doubts, self._forks.never(children), _FORK_SECONDS)
        self.indexing.written()
        return done

    async def rewrite_events(self, agent_id: str, changes: Sequence[EventBody]) -> None:
        if not changes:
            return
        columns = [list(column) for column in zip(*((one.offset, one.expect) for one in changes), strict=True)]
        bodies = [list(column) for column in zip(*(one.body for one in changes), strict=True)]
        statement = (
            f"UPDATE {self.tables.events} e SET body = n.body::json, digest = n.digest FROM"
            " unnest($2::bigint[], $3::bytea[], $4::text[], $5::bytea[]) n (place, expect, body, digest)"
            ' WHERE e.agent_id = $1 AND e."offset" = n.place AND e.digest = n.expect'
        )
        await self._doubts.resolve(agent_id)
        await self.connections.write(lambda session: session.fetch(statement, agent_id, *columns, *bodies))

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        def call(session: Session) -> Awaitable[int | None]:
            return self._leases.acquire(session, agent_id, owner, ttl_ms)

        return await self._write(call, agent_id, self._doubtful_leases, self._leases.never(agent_id, owner), None)

    async def renew_lease(self, agent_id: str, fence: Fence, ttl_ms: int) -> bool:
        return await self.connections.write(lambda s: self._leases.renew(s, agent_id, fence, ttl_ms))

    async def release_lease(self, agent_id: str, fence: Fence) -> None:
        await self.connections.write(lambda s: self._leases.release(s, agent_id, fence))

    # --- reading

    summary = _verb(Reads.summary, _of_agent)
    rows = _verb(Reads.rows, _of_agent)
    rows_at = _verb(Reads.rows_at, _of_agent)
    outline = _verb(Reads.outline, _of_agent)
    docs = _verb(Reads.docs, _of_agent)
    docs_in = _verb(Reads.docs_in, _of_agent)
    events = _verb(Reads.events, _of_agent)
    last_event = _verb(Reads.last_event, _of_agent)
    agent_ids = _verb(Reads.agent_ids, _of_all)
    stored_ids = _verb(Reads.stored_ids, _of_all)
    find_sessions = _verb(Reads.find_sessions, _of_query)
    find_rows = _verb(Reads.find_rows, _of_query)
    find_docs = _verb(Reads.find_docs, _of_query)
    count = _verb(Reads.count, _of_query)
    group = _verb(Reads.group, _of_query)
    stats = _verb(Reads.stats, _of_agent)
    totals = _verb(Reads.totals, _of_all)
    inspect = _verb(Reads.inspect, _of_agent)

    # --- operations

    def watch(self, agent_id: str, wake: Callable[[], None]) -> Watch | None:
        """None behind a pooler in transaction mode, which forwards no notifications, and with a caller's pool."""
        return None if self._listener is None else self._listener.watch(agent_id, wake)

    def connection_use(self) -> ConnectionUse:
        """The counts now; the connection that listens for events comes on top of the connections for calls."""
        used, listens = self.connections, self._listener is not None and self._listener.is_connected
        return ConnectionUse(
            most=used.max,
            open=used.pool.get_size() + listens,
            busy=used.busy,
            waiting=used.waiting,
            retries=used.retries,
        )

    def probes(self) -> Sequence[tuple[Medium, Callable[[], Awaitable[None]]]]:
        return [("database", self._ping)]

    async def _ping(self) -> None:
        await self.connections.probe(lambda session: probe(session, self.tables, self.connections.address))

    async def backup(self, target: Path, progress: Progress = unwatched) -> list[Path]:
        raise UnsupportedError(
            f"a PostgreSQL database is not copied by this store; run: pg_dump --format=custom --file={target} DATABASE"
        )

    async def close(self) -> None:
        await close_all(
            self.indexing.close,
            None if self._listener is None else self._listener.close,
            self._committer.close,
            self._doubts.close,
            self._doubtful_leases.close,
            self.connections.close,
        )
