"""What is measured: a backend, how it is opened, and the floor below it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

from kode_core import ExtendedStore, create_extended_store

__all__ = ["BEDS", "Bed", "Floor"]


class Floor(Protocol):
    """The tables of a backend and none of its code: the same rows in the same commits, bodies made beforehand."""

    async def messages(self, agent: str, bodies: Sequence[str]) -> None:
        """Append messages and update the head."""

    async def call(self, agent: str, position: int, body: str) -> None:
        """Append a tool call and update the head."""

    async def info(self, agent: str, body: str, metadata: Sequence[tuple[str, str]]) -> None:
        """Replace the info and the metadata that changes."""

    async def events(self, agent: str, bodies: Sequence[str]) -> None:
        """Append events in one transaction."""

    async def turn(
        self, agent: str, messages: Sequence[str], call: tuple[int, str], info: str, events: Sequence[str]
    ) -> None:
        """A whole turn in one transaction."""

    async def close(self) -> None:
        """Let go of it."""


class Bed(NamedTuple):
    """A backend to measure.

    Attributes:
        title: what it is, at its default durability.
        driver: what the floor is written on.
        place: the address of a new, empty store of that name.
        floor: opens the floor in such a place.
        appends_most: how much a turn at 8,000 messages may cost, in turns at 100.
        events_least: how many events a second 100 agents should get.
        follow_most: after how many milliseconds a follower in another process should have an event.
        writes_files: whether this process writes the files, so that the bytes can be counted.
    """

    title: str
    driver: str
    place: Callable[[Path, str], Awaitable[str]]
    floor: Callable[[str], Awaitable[Floor]]
    appends_most: float
    events_least: int
    writes_files: bool
    follow_most: float | None = None

    @asynccontextmanager
    async def store(self, folder: Path, name: str) -> AsyncIterator[ExtendedStore]:
        """A new store."""
        async with create_extended_store(await self.place(folder, name)) as store:
            yield store

    async def new_floor(self, folder: Path, name: str) -> Floor:
        """A new floor."""
        return await self.floor(await self.place(folder, name))


async def _sqlite_place(folder: Path, name: str) -> str:
    return f"sqlite:///{folder}/{name}.db"


async def _sqlite_floor(place: str) -> Floor:
    from tests.benchmarks.floor_sqlite import SqliteFloor

    return await SqliteFloor.open(Path(place.removeprefix("sqlite://")))


async def _postgres_place(folder: Path, name: str) -> str:
    from kode_postgres.servers import shared_server

    server = shared_server()
    database = f"bench_{name.replace('-', '_')}"
    await server.execute(f"DROP DATABASE IF EXISTS {database} WITH (FORCE)", f"CREATE DATABASE {database}")
    return server.url(database)


async def _postgres_floor(place: str) -> Floor:
    from tests.benchmarks.floor_postgres import PostgresFloor

    return await PostgresFloor.open(place)


BEDS = {
    "sqlite": Bed(
        title="SQLite (WAL, synchronous=FULL)",
        driver="aiosqlite",
        place=_sqlite_place,
        floor=_sqlite_floor,
        appends_most=1.2,
        events_least=40_000,
        writes_files=True,
    ),
    "postgres": Bed(
        title="PostgreSQL (fsync=on, synchronous_commit=on)",
        driver="asyncpg",
        place=_postgres_place,
        floor=_postgres_floor,
        appends_most=1.3,
        events_least=20_000,
        writes_files=False,
        follow_most=50,
    ),
}
