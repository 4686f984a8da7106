"""Connections: a pool of them, and how every call on one is bounded, tried again and told of when it fails."""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

import asyncpg

from kode_core.errors import ConfigurationError, KodeError, OutcomeUnknownError, StoreBusyError, StoreUnavailableError
from kode_core.server_options import password_of
from kode_postgres.dsn import read_dsn
from kode_postgres.errors import is_conflict, is_lost, is_starting, to_kode_error
from kode_postgres.foreign import refuse_foreign
from kode_postgres.options import PostgresOptions
from kode_postgres.schema import Tables, migrate, version_of

__all__ = ["Connections", "Session", "has_tables", "open_connections"]

T = TypeVar("T")

_APPLICATION: Final = "kode"
_OLDEST: Final = 130000
_CONFLICTS: Final = 20
_CACHED_STATEMENTS: Final = 256
_MISTAKES: Final = (AttributeError, NameError, TypeError, LookupError, AssertionError)
"""What no driver raises: mistakes of this package, which must not look like trouble with the server."""
_MODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")


class _Connection(asyncpg.Connection):  # type: ignore[misc]
    """A connection whose session is never changed, so that there is nothing to undo when it is given back."""

    def get_reset_query(self) -> str:
        return ""


class Session:
    """A connection while one call uses it.

    Attributes:
        is_retry: whether an attempt before may have been applied, or may be yet.
        age_ms: how long ago the first attempt began.
    """

    def __init__(self, con: Any, *, pooled: bool, is_retry: bool, age_ms: int) -> None:
        self.con = con
        self.is_retry = is_retry
        self.age_ms = age_ms
        self._pooled = pooled

    async def fetch(self, statement: str, *args: Any) -> Sequence[Any]:
        """One statement, and a transaction by itself unless one was begun.

        Behind a pooler it stands in a transaction always: otherwise its parts may come to two servers.
        """
        if self._pooled and not self.con.is_in_transaction():
            async with self.con.transaction(isolation="read_committed"):
                found: Sequence[Any] = await self.con.fetch(statement, *args)
                return found
        found = await self.con.fetch(statement, *args)
        return found

    async def fetchrow(self, statement: str, *args: Any) -> Any:
        """The first row of a statement, None when there is none."""
        found = await self.fetch(statement, *args)
        return found[0] if found else None

    def transaction(self) -> Any:
        """A transaction over several statements, each of which sees what was committed before it."""
        return self.con.transaction(isolation="read_committed")


Call: TypeAlias = Callable[[Session], Awaitable[T]]
Connect: TypeAlias = Callable[[], Awaitable[Any]]


class Connections:
    """A pool and the rules of its use.

    A call whose connection breaks is made again on another one: reads can be, and writes know themselves again.
    What is still in doubt in the end raises OutcomeUnknownError.

    Attributes:
        pooled: whether another pooler is in between, which gives each transaction another session.
        connect: opens a connection beside the pool; None where that is of no use.
    """

    def __init__(self, pool: Any, options: PostgresOptions, *, pooled: bool, connect: Connect | None = None) -> None:
        self.pool = pool
        self.connect = connect
        self.pooled = pooled
        self.place = options.place
        self.max: int = pool.get_max_size()
        self._owned = options.pool is None
        self._answer_s = options.command_timeout_millis / 1000
        self._connect_s = options.connection_timeout_millis / 1000
        self._wait_s = max(self._answer_s, self._connect_s)
        self._opening: set[asyncio.Future[Any]] = set()

    async def read(self, call: Call[T]) -> T:
        """Make a call that changes nothing."""
        return await self._run(call, writes=False)

    async def write(self, call: Call[T], seconds: float | None = None) -> T:
        """Make a call that may be made again although it was applied; its answer may take *seconds*."""
        return await self._run(call, writes=True, seconds=seconds)

    async def probe(self, call: Call[T]) -> T:
        """Make a call once."""
        try:
            return await self._attempt(call, min(self._answer_s, 4.0))
        except Exception as exc:  # noqa: BLE001 - turned into one of this library's
            error = self._error(exc)
            raise error from (exc if error is not exc else None)

    async def _run(self, call: Call[T], *, writes: bool, seconds: float | None = None) -> T:
        start = time.monotonic()
        trouble = _Trouble(self._answer_s, self._connect_s)
        while True:
            age_ms = int((time.monotonic() - start) * 1000)
            try:
                return await self._attempt(call, seconds or self._answer_s, age_ms, is_retry=trouble.in_doubt)
            except _MISTAKES:
                raise
            except Exception as exc:
                pause = trouble.note(exc)
                if pause is None:
                    error = self._error(exc)
                    if writes and trouble.in_doubt and not isinstance(error, OutcomeUnknownError):
                        raise OutcomeUnknownError(f"{error}; it may have been written, or not: read first") from exc
                    raise error from (exc if error is not exc else None)
            await asyncio.sleep(pause)

    async def _attempt(self, call: Call[T], seconds: float, age_ms: int = 0, *, is_retry: bool = False) -> T:
        con = await self._acquire()
        try:
            async with asyncio.timeout(seconds):
                result = await call(Session(con, pooled=self.pooled, is_retry=is_retry, age_ms=age_ms))
        except BaseException as exc:
            # A connection in the middle of something is dropped: to end that in order can take for ever (a server that
            # does not answer does not answer a cancellation either).
            if not isinstance(exc, (asyncpg.PostgresError, KodeError)) or is_lost(exc) or _is_dirty(con):
                with suppress(asyncpg.InterfaceError):  # the pool has dropped it already
                    con.terminate()
            if isinstance(exc, Exception) and is_lost(exc):
                raise _LostError from exc
            raise
        finally:
            await self._release(con)
        return result

    async def _acquire(self) -> Any:
        try:
            if self.pool.get_idle_size():
                return await self.pool.acquire(timeout=self._wait_s)
            return await self._acquired_new()
        except TimeoutError as exc:
            if self.pool.get_size() == self.max and not self.pool.get_idle_size():
                raise StoreBusyError(
                    f"{self.place}: all {self.max} connections were in use for {self._wait_s:g} s; raise max"
                ) from exc
            raise

    async def _acquired_new(self) -> Any:
        """A connection that may have to be opened first, which goes on without a caller that is cancelled."""
        asked = asyncio.ensure_future(self.pool.acquire(timeout=self._wait_s))
        try:
            return await asyncio.shield(asked)
        except asyncio.CancelledError:
            self._opening.add(asked)
            asked.add_done_callback(self._give_back)
            raise

    def _give_back(self, asked: asyncio.Future[Any]) -> None:
        self._opening.discard(asked)
        if not asked.cancelled() and not asked.exception():
            released = asyncio.ensure_future(self._release(asked.result()))
            self._opening.add(released)
            released.add_done_callback(self._opening.discard)

    async def _release(self, con: Any) -> None:
        with suppress(Exception):  # it was terminated
            await self.pool.release(con, timeout=self._answer_s)

    def _error(self, exc: BaseException) -> KodeError:
        cause = exc.__cause__ if isinstance(exc, _LostError) and exc.__cause__ else exc
        return to_kode_error(cause, self.place)

    async def close(self) -> None:
        """Close the pool, unless it is the caller's."""
        while self._opening:
            await asyncio.wait(self._opening)
        if not self._owned:
            return
        try:
            async with asyncio.timeout(self._answer_s):
                await self.pool.close()
        except TimeoutError:
            self.pool.terminate()


def _is_dirty(con: Any) -> bool:
    """Whether a transaction is open on the connection."""
    try:
        return bool(con.is_in_transaction())
    except asyncpg.InterfaceError:  # the pool has dropped it already
        return False


class _LostError(Exception):
    """The connection broke while a statement was under way; the cause says how."""


class _Trouble:
    """What went wrong with a call so far, and whether to try again."""

    def __init__(self, answer_s: float, connect_s: float) -> None:
        self.in_doubt = False
        self._answer_s = answer_s
        self._connect_s = connect_s
        self._since: float | None = None
        self._lost = 0
        self._conflicts = 0

    def note(self, exc: Exception) -> float | None:
        """How long to wait before the next attempt, in seconds; None when there shall be none."""
        if is_conflict(exc):
            self._conflicts += 1
            return random.uniform(0, 0.005 * self._conflicts) if self._conflicts < _CONFLICTS else None  # noqa: S311
        now = time.monotonic()
        if isinstance(exc, _LostError):
            self.in_doubt = True
            self._lost += 1
            if isinstance(exc.__cause__, TimeoutError) and self._lost > 1:
                return None
        elif not is_starting(exc):
            return None
        self._since = now if self._since is None else self._since
        if now - self._since > self._connect_s:
            return None
        return random.uniform(0.01, 0.03) if self._lost < 5 else random.uniform(0.05, 0.2)  # noqa: S311


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
            return Connections(options.pool, options, pooled=await _prepare(con, options, tables))
    arguments = _arguments(options)
    con = await asyncpg.connect(**arguments, statement_cache_size=0)
    try:
        pooled = await _prepare(con, options, tables)
    finally:
        con.terminate()
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
        return Connections(pool, options, pooled=not cached)
    answer_s = options.command_timeout_millis / 1000
    return Connections(
        pool, options, pooled=False, connect=lambda: asyncpg.connect(**arguments, command_timeout=answer_s)
    )


async def _prepare(con: Any, options: PostgresOptions, tables: Tables) -> bool:
    """Make the tables; whether there is a pooler in between: then the server's process is not the one that answered."""
    async with asyncio.timeout(max(options.command_timeout_millis, 20_000) / 1000):
        async with con.transaction(isolation="read_committed"):
            process, encoding, version = await con.fetchrow(
                "SELECT pg_backend_pid(), current_setting('server_encoding'),"
                " current_setting('server_version_num')::int"
            )
        if version < _OLDEST:
            raise StoreUnavailableError(f"{options.place}: kode-postgres needs PostgreSQL 13 or later, not {version}")
        if encoding != "UTF8":
            raise ConfigurationError(
                f"{options.place}: the database's encoding is {encoding}, which cannot hold every text; "
                "make one with: createdb --encoding=UTF8 --template=template0"
            )
        await refuse_foreign(con, options, tables)
        await migrate(con, tables, options.place, create=options.create)
    return bool(process != con.get_server_pid())


async def has_tables(options: PostgresOptions) -> bool:
    """Whether there are tables of kode, or nobody who could say."""
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
