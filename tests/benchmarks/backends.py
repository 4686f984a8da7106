"""The backends that are measured. Each brings how it is opened and its floor; the workload is the same for all."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
from kode_postgres.testing.servers import DSN_VARIABLE, LocalServer, NoServerError, Server

from kode_core import ExtendedStore, create_extended_store
from tests.benchmarks.floor import Floor, SqliteFloor
from tests.benchmarks.floor_postgres import PostgresFloor

__all__ = ["BACKENDS", "Backend", "NoServerError", "Options", "Targets", "floor_at", "opened"]

Options = Mapping[str, Any]
"""What ``create_extended_store`` takes; another process opens the same store with it."""


@dataclass
class Targets:
    """What a backend should reach.

    Attributes:
        growth: a turn with 8,000 messages stored to one with 100, where it is saved by appends.
        events_a_second: acknowledged ones, of 100 agents.
    """

    growth: float
    events_a_second: float


class Backend(ABC):
    """A backend that can be measured now.

    Attributes:
        title: with what matters of its durability.
        driver: the module that the floors use, and nothing else.
        floors: what they are called; the last one is the fastest.
        bare: a fresh process that opens and closes a connection of the driver; ``OPTIONS`` are those of a space.
        written: what ``bytes_written`` counts.
    """

    name: str
    title: str
    driver: str
    floors: Sequence[str]
    bare: str
    written: str
    targets: Targets
    version: str

    @classmethod
    @abstractmethod
    def available(cls) -> AbstractAsyncContextManager[Backend]:
        """The backend, ready to be used.

        Raises:
            NoServerError: it cannot be had here, and what to do about that.
        """

    @abstractmethod
    def space(self) -> AbstractAsyncContextManager[Options]:
        """A new and empty place, which is removed afterwards."""

    @abstractmethod
    async def bytes_written(self) -> int | None:
        """How much was written so far; None where nobody counts it."""

    async def settle(self, options: Options) -> None:
        """What the server does by itself within a minute after many rows came."""

    @asynccontextmanager
    async def pair(self) -> AsyncIterator[tuple[ExtendedStore, Mapping[str, Floor]]]:
        """A store and its floors by what they are called, each in a place of its own."""
        async with AsyncExitStack() as stack:
            store = await stack.enter_async_context(opened(await stack.enter_async_context(self.space())))
            floors = {}
            for name in self.floors:
                options = await stack.enter_async_context(self.space())
                floors[name] = await stack.enter_async_context(floor_at(options, name))
            yield store, floors


class Sqlite(Backend):
    """Files in a temporary folder."""

    name = "sqlite"
    title = "SQLite, default durability (WAL, synchronous=FULL)"
    driver = "aiosqlite"
    floors = ("bare aiosqlite",)
    bare = """
    async with aiosqlite.connect(OPTIONS["db_path"]) as db:
        await db.execute("PRAGMA journal_mode = WAL")
        await (await db.execute("SELECT count(*) FROM sqlite_master")).fetchone()
"""
    written = "bytes written"
    targets = Targets(growth=1.2, events_a_second=40_000)
    version = sqlite3.sqlite_version

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    @asynccontextmanager
    async def available(cls) -> AsyncIterator[Backend]:
        with tempfile.TemporaryDirectory(prefix="kode-bench-") as folder:
            yield cls(Path(folder))

    @asynccontextmanager
    async def space(self) -> AsyncIterator[Options]:
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            yield {"type": "sqlite", "db_path": f"{folder}/agents.db"}

    async def bytes_written(self) -> int | None:
        try:
            lines = Path("/proc/self/io").read_text().splitlines()
        except OSError:
            return None
        return next(int(line.split()[1]) for line in lines if line.startswith("wchar"))


class JsonFiles(Sqlite):
    """Folders in a temporary folder. A driver that could be a floor does not exist."""

    name = "json"
    title = "JSON files, default durability (every write is synced)"
    floors = ()
    version = "layout 2"

    @asynccontextmanager
    async def space(self) -> AsyncIterator[Options]:
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            yield {"type": "json", "base_dir": folder}


class Postgres(Backend):
    """Schemas on a server that is started here, or on the one that the environment names."""

    name = "postgres"
    title = "PostgreSQL, default durability (synchronous_commit=on)"
    driver = "asyncpg"
    floors = ("bare asyncpg", "asyncpg in one statement")
    bare = """
    con = await asyncpg.connect(OPTIONS["dsn"])
    await con.fetchval("SELECT count(*) FROM pg_class")
    await con.close()
"""
    written = "bytes of the server's log (WAL)"
    targets = Targets(growth=1.3, events_a_second=20_000)

    def __init__(self, server: Server, version: str) -> None:
        self._server = server
        self.version = version

    @classmethod
    @asynccontextmanager
    async def available(cls) -> AsyncIterator[Backend]:
        with _server() as server:
            try:
                version = (await server.execute("SHOW server_version"))[0][0]
            except (OSError, asyncpg.PostgresError) as exc:
                raise NoServerError(f"the server does not answer: {exc}", f"see what is in {DSN_VARIABLE}") from exc
            yield cls(server, version)

    @asynccontextmanager
    async def space(self) -> AsyncIterator[Options]:
        async with self._server.schema() as schema:
            yield {"type": "postgres", "dsn": self._server.dsn, "schema": schema, "max": CONNECTIONS}

    async def bytes_written(self) -> int | None:
        try:
            rows = await self._server.execute("SELECT (pg_current_wal_lsn() - '0/0')::bigint")
        except asyncpg.PostgresError:  # some services have another log
            return None
        return int(rows[0][0])

    async def settle(self, options: Options) -> None:
        tables = await self._server.execute(
            f"SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname = '{options['schema']}'"
        )
        await self._server.execute(*(f"ANALYZE {name}" for (name,) in tables))


CONNECTIONS = 10
"""Of the store's pool, its default, and of the floor's."""

BACKENDS: Mapping[str, type[Backend]] = {"sqlite": Sqlite, "postgres": Postgres, "json": JsonFiles}


def opened(options: Options) -> AbstractAsyncContextManager[ExtendedStore]:
    """The store of a place."""
    return create_extended_store(options)


def floor_at(options: Options, name: str) -> AbstractAsyncContextManager[Floor]:
    """The floor of that name in a place."""
    if options["type"] == "sqlite":
        return SqliteFloor.open(Path(options["db_path"]))
    usual = name == Postgres.floors[0]
    return PostgresFloor.open(options["dsn"], options["schema"], most=CONNECTIONS, usual=usual)


# What initdb writes for segments of 16 MB, which are the default, and PostgreSQL's default for its buffers.
_DEFAULTS = {"shared_buffers": "128MB", "min_wal_size": "80MB", "max_wal_size": "1GB"}


@contextmanager
def _server() -> Iterator[Server]:
    given = os.environ.get(DSN_VARIABLE)
    if given:
        yield Server(given)
        return
    with LocalServer(settings=_DEFAULTS) as server:
        yield server
