"""A pool of connections; each call on one has a deadline, is tried again, and fails with a typed error."""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

import asyncpg

from kode_core.engine import opening_within
from kode_core.errors import (
    ConfigurationError,
    KodeError,
    OutcomeUnknownError,
    StoreBusyError,
    StoreTimeoutError,
    StoreUnavailableError,
)
from kode_core.server_options import password_of
from kode_postgres.dsn import read_dsn
from kode_postgres.errors import is_conflict, is_lost, is_starting, to_kode_error
from kode_postgres.foreign import refuse_foreign
from kode_postgres.migrations import migrate, version_of
from kode_postgres.options import PostgresOptions
from kode_postgres.schema import Tables
from kode_postgres.session import Doubt, ServerClock, Session, limits
from kode_postgres.statements import NOW
from kode_postgres.trouble import LostError, Trouble

__all__ = ["Connections", "has_tables", "open_connections"]

T = TypeVar("T")

_APPLICATION: Final = "kode"
_CANCEL_S: Final = 2.0
"""How long the server may take to say that it ended a statement."""
_OLDEST: Final = 130000
_CHECKS_CLIENTS: Final = 140000
_CACHED_STATEMENTS: Final = 256
_MISTAKES: Final = (AttributeError, NameError, TypeError, LookupError, AssertionError)
"""What no driver raises: mistakes of this package, which must not look like trouble with the server."""
_MODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")


class _Connection(asyncpg.Connection):  # type: ignore[misc]
    """A connection whose session is never changed, so that there is nothing to undo when it is given back."""

    def get_reset_query(self) -> str:
        return ""


Call: TypeAlias = Callable[[Session], Awaitable[T]]
Connect: TypeAlias = Callable[[], Awaitable[Any]]


class Found(NamedTuple):
    """Facts about the other end: the server's clock, whether a pooler is in between, and the settings of sessions."""

    clock: ServerClock
    pooled: bool
    settings: Mapping[str, str]


class Connections:
    """A pool and the rules of its use.

    A call whose connection breaks is made again on another one: reads can be, and writes know themselves again.
    A write that is still in doubt in the end raises OutcomeUnknownError. An abandoned statement is cancelled on the
    server, too.
    Calls get connections in the order in which they asked.

    Attributes:
        clock: the server's.
        pooled: whether another pooler is in between, which gives each transaction another session.
        connect: opens a connection outside the pool; None where that is of no use.
        answer_s: how long an answer is waited for.
    """

    def __init__(self, pool: Any, options: PostgresOptions, found: Found, *, connect: Connect | None = None) -> None:
        self.pool = pool
        self.connect = connect
        self.clock = found.clock
        self.pooled = found.pooled
        self.place = options.place
        self.max: int = pool.get_max_size()
        self.answer_s = options.command_timeout_millis / 1000
        self._owned = options.pool is None
        self._connect_s = options.connection_timeout_millis / 1000
        self._wait_s = max(self.answer_s, self._connect_s)
        self._slots = asyncio.Semaphore(self.max)
        self._giving_back: set[asyncio.Task[None]] = set()

    async def read(self, call: Call[T], seconds: float | None = None) -> T:
        """Make a call that changes nothing; its answer may take *seconds*."""
        trouble = Trouble(self.answer_s, self._connect_s, writes=False)
        return await self._run(call, trouble, Doubt(), seconds)

    async def write(
        self, call: Call[T], seconds: float | None = None, *, doubt: Doubt | None = None, waits: bool = True
    ) -> T:
        """Make a call that may be made again although it was applied; its answer may take *seconds*.

        *doubt* holds the unknown outcomes of earlier attempts at the same, and of this one. Without *waits* the call
        ends when a row is locked, or when there was no answer in time; with it, both are tried again for a while.
        """
        trouble = Trouble(self.answer_s, self._connect_s, writes=True, waits=waits)
        return await self._run(call, trouble, doubt or Doubt(), seconds)

    async def probe(self, call: Call[T]) -> T:
        """Make a call once."""
        try:
            return await self._attempt(call, Doubt(), min(self.answer_s, 4.0))
        except Exception as exc:  # noqa: BLE001 - turned into one of this library's
            error = self._error(exc)
            raise error from (exc if error is not exc else None)

    async def _run(self, call: Call[T], trouble: Trouble, doubt: Doubt, seconds: float | None) -> T:
        while True:
            try:
                return await self._attempt(call, doubt, seconds or self.answer_s)
            except _MISTAKES:
                raise
            except Exception as exc:
                pause = trouble.note(exc)
                if pause is None:
                    error = self._error(exc)
                    if trouble.writes and doubt.since is not None and not isinstance(error, OutcomeUnknownError):
                        raise OutcomeUnknownError(f"{error}; it may have been written, or not: read first") from exc
                    raise error from (exc if error is not exc else None)
            await asyncio.sleep(pause)

    async def _attempt(self, call: Call[T], doubt: Doubt, seconds: float) -> T:
        con = await self._acquire()
        session = Session(con, self.clock, doubt, pooled=self.pooled, seconds=seconds)
        try:
            async with asyncio.timeout(seconds):
                result = await self._called(call, session, seconds)
        except BaseException as exc:
            # What goes on on the server is ended there, and the connection may not answer: the caller has gone by then.
            broken = not isinstance(exc, (asyncpg.PostgresError, KodeError)) or is_lost(exc)
            self._in_background(self._ended(con) if broken else self._release(con))
            if isinstance(exc, Exception) and is_lost(exc):
                if session.may_have_written:
                    doubt.note(session.sent)
                raise LostError from exc
            raise
        await self._release(con)
        return result

    async def _called(self, call: Call[T], session: Session, seconds: float) -> T:
        """Call; where it may take longer than others it stands in a transaction, which says so to the server."""
        if seconds <= self.answer_s:
            return await call(session)
        async with session.transaction():
            return await call(session)

    # --- connections from the pool

    async def _acquire(self) -> Any:
        try:
            async with asyncio.timeout(self._wait_s):
                await self._slots.acquire()
        except TimeoutError as exc:
            raise self._too_few() from exc
        # One that has to be opened first is opened although its caller is cancelled: it is the next caller's.
        asked = asyncio.ensure_future(self.pool.acquire(timeout=self._wait_s))
        try:
            return await asyncio.shield(asked)
        except asyncio.CancelledError:
            self._in_background(self._unwanted(asked))
            raise
        except BaseException as exc:
            self._slots.release()
            if isinstance(exc, TimeoutError) and self.pool.get_size() == self.max and not self.pool.get_idle_size():
                raise self._too_few() from exc
            raise

    def _too_few(self) -> StoreBusyError:
        return StoreBusyError(f"{self.place}: all {self.max} connections were in use for {self._wait_s:g} s; raise max")

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._giving_back.add(task)
        task.add_done_callback(self._giving_back.discard)

    async def _unwanted(self, asked: asyncio.Future[Any]) -> None:
        """Give back a connection whose caller is gone."""
        try:
            con = await asked
        except Exception:  # noqa: BLE001 - there is none to give back
            self._slots.release()
        else:
            await self._release(con)

    async def _ended(self, con: Any) -> None:
        """End the statement of a caller that is gone; if the server does not answer, the connection is dropped.

        The driver asks the server to cancel a statement whose caller stopped waiting, and lets nothing else happen on
        the connection before the server has said that it did.
        """
        try:
            async with asyncio.timeout(_CANCEL_S):
                await con.execute("")  # waits for that
                if con.is_in_transaction():
                    await con.execute("ROLLBACK")
        except BaseException:  # noqa: BLE001 - whatever it is, the connection is of no use
            with suppress(asyncpg.InterfaceError):  # the pool has dropped it already
                con.terminate()
        await self._release(con)

    async def _release(self, con: Any) -> None:
        try:
            with suppress(Exception):  # it was terminated
                await self.pool.release(con, timeout=_CANCEL_S)
        finally:
            self._slots.release()

    def _error(self, exc: BaseException) -> KodeError:
        if not isinstance(exc, LostError) or exc.__cause__ is None:
            return to_kode_error(exc, self.place)
        if isinstance(exc.__cause__, TimeoutError):
            limit = f"command_timeout_millis ({self.answer_s * 1000:g})"
            return StoreTimeoutError(f"{self.place}: no answer within {limit}; check the network and the load")
        return to_kode_error(exc.__cause__, self.place)

    async def close(self) -> None:
        """Close the pool, unless it is the caller's."""
        while self._giving_back:
            await asyncio.wait(self._giving_back)
        if not self._owned:
            return
        try:
            async with asyncio.timeout(self.answer_s):
                await self.pool.close()
        except TimeoutError:
            self.pool.terminate()


# --- Opening ----------------------------------------------------------------------------------------------------------


async def open_connections(options: PostgresOptions, tables: Tables) -> Connections:
    """Connect, see what is at the other end, and bring the tables to this version.

    Raises:
        StorageError: it cannot be reached or used; says why.
    """
    deadline = time.monotonic() + options.connection_timeout_millis / 1000
    while True:
        try:
            return await _open(options, tables)
        except KodeError:
            raise
        except Exception as exc:
            transient = is_starting(exc) or is_conflict(exc)
            if not transient or time.monotonic() > deadline:
                raise to_kode_error(exc, options.place) from exc
        await asyncio.sleep(random.uniform(0.05, 0.15))  # noqa: S311


async def _open(options: PostgresOptions, tables: Tables) -> Connections:
    if options.pool is not None:
        async with options.pool.acquire(timeout=options.connection_timeout_millis / 1000) as con:
            return Connections(options.pool, options, await _prepare(con, options, tables))
    arguments = _arguments(options)
    con = await asyncpg.connect(**arguments, statement_cache_size=0)
    try:
        found = await _prepare(con, options, tables)
    finally:
        con.terminate()
    pooled = found.pooled
    arguments["server_settings"] = {**arguments["server_settings"], **found.settings}
    cached = options.statement_cache_size
    pool = await asyncpg.create_pool(
        **arguments,
        statement_cache_size=(0 if pooled else _CACHED_STATEMENTS) if cached is None else cached,
        max_cached_statement_lifetime=60,  # a plan that was right for empty tables is soon made anew
        max_cacheable_statement_size=0,
        connection_class=_Connection,
        min_size=0,
        max_size=options.max,
        max_inactive_connection_lifetime=options.idle_timeout_millis / 1000,
    )
    if pooled:
        return Connections(pool, options, found._replace(pooled=not cached))
    answer_s = options.command_timeout_millis / 1000
    return Connections(pool, options, found, connect=lambda: asyncpg.connect(**arguments, command_timeout=answer_s))


async def _prepare(con: Any, options: PostgresOptions, tables: Tables) -> Found:
    """Make the tables, and learn about the other end.

    With a pooler in between the server's process is not the one that answered.
    """
    async with opening_within(max(options.command_timeout_millis, 20_000) / 1000):
        async with con.transaction(isolation="read_committed"):
            process, encoding, version, now = await con.fetchrow(
                "SELECT pg_backend_pid(), current_setting('server_encoding'),"
                f" current_setting('server_version_num')::int, {NOW}"
            )
        clock = ServerClock(now)
        if version < _OLDEST:
            raise StoreUnavailableError(f"{options.place}: kode-postgres needs PostgreSQL 13 or later, not {version}")
        if encoding != "UTF8":
            raise ConfigurationError(
                f"{options.place}: the database's encoding is {encoding}, which cannot hold every text; "
                "make one with: createdb --encoding=UTF8 --template=template0"
            )
        await refuse_foreign(con, options, tables)
        await migrate(con, tables, options.place, create=options.create)
        pooled = bool(process != con.get_server_pid())
        settings = {} if pooled or options.pool is not None else await _settings(con, options, version)
    return Found(clock, pooled, settings)


async def _settings(con: Any, options: PostgresOptions, version: int) -> dict[str, str]:
    """The settings of the pool's sessions, with which the server ends abandoned statements."""
    settings = {**limits(options.command_timeout_millis / 1000), "default_transaction_isolation": "read committed"}
    if version >= _CHECKS_CLIENTS:
        with suppress(asyncpg.PostgresError):  # not every system can tell
            await con.execute("SET client_connection_check_interval = '1s'")
            settings["client_connection_check_interval"] = "1s"
    return settings


async def has_tables(options: PostgresOptions) -> bool:
    """True if kode's tables exist, or if that cannot be determined."""
    options = options.resolved()
    try:
        con = await asyncpg.connect(**_arguments(options), statement_cache_size=0)
        try:
            async with con.transaction(), asyncio.timeout(options.command_timeout_millis / 1000):
                return await version_of(con, Tables(options)) > 0
        finally:
            con.terminate()
    except Exception:  # noqa: BLE001 - an open will say it better
        return True


def _arguments(options: PostgresOptions) -> dict[str, Any]:
    dsn = None if options.dsn is None else read_dsn(options.dsn)
    application = dsn.application_name if dsn else None
    given = {
        "dsn": dsn and dsn.for_driver,
        "host": options.host and options.host.split(","),
        "port": options.port,
        "database": options.database,
        "user": options.user,
        "password": partial(password_of, options.password) if callable(options.password) else options.password,
        "ssl": _ssl(options.ssl),
    }
    return {
        **{name: value for name, value in given.items() if value is not None},
        "timeout": options.connection_timeout_millis / 1000,
        "server_settings": {"application_name": application or _APPLICATION},
    }


def _ssl(wanted: Any) -> Any:
    """What asyncpg takes."""
    if wanted is None or isinstance(wanted, (bool, ssl.SSLContext)):
        return wanted
    if isinstance(wanted, str) and wanted.lower() in ("true", "false", "1", "0"):
        return wanted.lower() in ("true", "1")
    if isinstance(wanted, str) and wanted in _MODES:
        return wanted
    if isinstance(wanted, str) and Path(wanted).expanduser().is_file():
        try:
            return ssl.create_default_context(cafile=str(Path(wanted).expanduser()))
        except ssl.SSLError as exc:
            raise ConfigurationError(f"the file of the option ssl holds no certificates: {exc.reason}") from exc
    raise ConfigurationError(
        f"the option ssl is true, false, one of {', '.join(_MODES)}, a file of certificates or an ssl.SSLContext"
    )
