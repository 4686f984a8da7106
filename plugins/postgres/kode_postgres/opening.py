"""Open a store: inspect the server, create the tables, and make a pool that fits."""

from __future__ import annotations

import asyncio
import os
import random
import time
from contextlib import suppress
from functools import partial
from typing import Any, Final

import asyncpg

from kode_core.errors import ConfigurationError, KodeError, StoreUnavailableError
from kode_postgres.connection import Connect, Connections, ServerFacts
from kode_postgres.errors import NO_NAMES, is_conflict, is_starting, to_kode_error
from kode_postgres.foreign import refuse_foreign
from kode_postgres.migrations import migrate, version_of
from kode_postgres.options import PostgresOptions
from kode_postgres.reach import Reach
from kode_postgres.schema import Tables
from kode_postgres.session import ServerClock, limits
from kode_postgres.statements import NOW
from kode_postgres.target import target_of
from kode_postgres.texts import looked_up

__all__ = ["has_tables", "open_connections"]

_OLDEST: Final = 130000
_CHECKS_CLIENTS: Final = 140000
_CACHED_STATEMENTS: Final = 256


class _Connection(asyncpg.Connection):  # type: ignore[misc]
    """A connection whose session is never changed, so that nothing has to be reset when it is returned."""

    def get_reset_query(self) -> str:
        return ""


async def open_connections(options: PostgresOptions, tables: Tables) -> Connections:
    """Connect, inspect the server, and bring the tables to this version.

    Raises:
        StorageError: the server cannot be reached or used; the message says why.
    """
    reach = None
    if options.pool is None:
        target = target_of(options, os.environ)
        options, reach = target.options, Reach(target)
    deadline = time.monotonic() + options.connection_timeout_millis / 1000
    while True:
        try:
            return await _open(options, tables, reach)
        except KodeError:
            raise
        except Exception as exc:
            transient = is_starting(exc) or is_conflict(exc)
            if not transient or time.monotonic() > deadline:
                raise to_kode_error(exc, options.address) from exc
        await asyncio.sleep(random.uniform(0.05, 0.15))  # noqa: S311


async def _open(options: PostgresOptions, tables: Tables, reach: Reach | None) -> Connections:
    if reach is None:
        async with options.pool.acquire(timeout=options.connection_timeout_millis / 1000) as con:
            found = await _prepare(con, options, tables)
        if found.pooled:
            await _see_names(options.pool, options)
        return Connections(options.pool, options, found)
    con = await reach.connect(statement_cache_size=0)
    try:
        found = await _prepare(con, options, tables)
    finally:
        con.terminate()
    pooled = found.pooled
    settings = {**reach.settings, **found.settings}
    cached = options.statement_cache_size
    pool = await asyncpg.create_pool(
        connect=_of_a_pool(reach),
        server_settings=settings,
        statement_cache_size=(0 if pooled else _CACHED_STATEMENTS) if cached is None else cached,
        max_cached_statement_lifetime=60,  # a plan that was right for empty tables is soon replaced
        max_cacheable_statement_size=0,
        connection_class=_Connection,
        min_size=0,
        max_size=options.max,
        max_inactive_connection_lifetime=options.idle_timeout_millis / 1000,
    )
    if pooled and cached:
        try:
            await _see_names(pool, options)
        except BaseException:
            pool.terminate()
            raise
    if pooled:
        return Connections(pool, options, found._replace(pooled=not cached))
    answer_s = options.command_timeout_millis / 1000
    connect = partial(reach.connect, server_settings=settings, command_timeout=answer_s)
    return Connections(pool, options, found, connect=connect)


def _of_a_pool(reach: Reach) -> Connect:
    """The pool's connect function; it ignores the pool's URL, which is None."""

    async def connect(_: None = None, **arguments: Any) -> Any:
        return await reach.connect(**arguments)

    return connect


async def _prepare(con: Any, options: PostgresOptions, tables: Tables) -> ServerFacts:
    """Create the tables, and inspect the server.

    Behind a pooler, the server's process is not the one that answered at first.
    """
    seconds = max(options.command_timeout_millis, 20_000) / 1000
    async with asyncio.timeout(seconds):
        async with con.transaction(isolation="read_committed"):
            process, encoding, version, isolation, now = await con.fetchrow(
                "SELECT pg_backend_pid(), current_setting('server_encoding'),"
                " current_setting('server_version_num')::int, current_setting('default_transaction_isolation'),"
                f" {NOW}"
            )
        clock = ServerClock(now)
        if version < _OLDEST:
            raise StoreUnavailableError(f"{options.address}: kode-postgres needs PostgreSQL 13 or later, not {version}")
        if encoding != "UTF8":
            raise ConfigurationError(
                f"{options.address}: the database's encoding is {encoding}, which cannot hold every text; "
                "make one with: createdb --encoding=UTF8 --template=template0"
            )
        await refuse_foreign(con, options, tables)
    await migrate(con, tables, options.address, create=options.create, seconds=seconds)
    async with asyncio.timeout(seconds):
        pooled = bool(process != con.get_server_pid())
        async with con.transaction(isolation="read_committed"):
            has_texts = await looked_up(con, tables)
        if options.pool is not None:  # its sessions stay unchanged
            return ServerFacts(clock, pooled or isolation != "read committed", {}, has_texts)
        return ServerFacts(clock, pooled, {} if pooled else await _settings(con, options, version), has_texts)


async def _see_names(pool: Any, options: PostgresOptions) -> None:
    """Check that the pool's prepared statements work behind a pooler.

    They do not if the pooler forwards their names and gives each transaction another session. If that cannot be
    detected at once, as with a pool of one connection, the first statement that is not found raises the same error.

    Raises:
        ConfigurationError: the prepared statements do not work.
    """
    answer_s = min(options.command_timeout_millis, options.connection_timeout_millis) / 1000
    try:
        async with asyncio.timeout(answer_s), pool.acquire() as con:
            if await _passes_names(con) and pool.get_max_size() > 1 and await _is_shared(con, pool):
                raise ConfigurationError(f"{options.address}: {NO_NAMES}")
    except TimeoutError:
        return  # no other transaction ended meanwhile


async def _passes_names(con: Any) -> bool:
    """True if the server knows a statement by the name that the driver gave it."""
    looked = f"kode {random.getrandbits(64):x}"
    async with con.transaction(isolation="read_committed"):
        found = await con.fetch(f"SELECT name FROM pg_prepared_statements WHERE statement LIKE '%{looked}%'")
    return any(row[0].startswith("__asyncpg") for row in found)


async def _is_shared(con: Any, pool: Any) -> bool:
    """True if another connection gets the session that this one has just used."""
    process = "SELECT pg_backend_pid()"
    for _ in range(3):
        mine = await con.fetchval(process)
        async with pool.acquire() as other, other.transaction(isolation="read_committed"):
            if await other.fetchval(process) == mine or await con.fetchval(process) != mine:
                return True
    return False


async def _settings(con: Any, options: PostgresOptions, version: int) -> dict[str, str]:
    """The settings of the pool's sessions, which let the server end abandoned statements."""
    settings = {**limits(options.command_timeout_millis / 1000), "default_transaction_isolation": "read committed"}
    if version >= _CHECKS_CLIENTS:
        with suppress(asyncpg.PostgresError):  # not supported on every system
            await con.execute("SET client_connection_check_interval = '1s'")
            settings["client_connection_check_interval"] = "1s"
    return settings


async def has_tables(options: PostgresOptions) -> bool:
    """True if kode's tables exist, or if that cannot be determined."""
    options = options.resolved()
    try:
        con = await Reach(target_of(options, os.environ)).connect(statement_cache_size=0)
        try:
            async with con.transaction(), asyncio.timeout(options.command_timeout_millis / 1000):
                return await version_of(con, Tables(options)) > 0
        finally:
            con.terminate()
    except Exception:  # noqa: BLE001 - opening the store reports it better
        return True
