"""Stores that are copied, exported and imported, next to the database's own copy of the same data."""

from __future__ import annotations

import asyncio
import io
import itertools
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import asyncpg

from kode_core import ExtendedStore, copy_store, export_archive, import_archive
from kode_core.formats.openai_chat import ChatConverter, import_conversation, read_conversations
from tests.benchmarks.backends import Backend, Options, opened
from tests.benchmarks.measure import Report, Row, interleaved

ROUNDS = 3
AGENTS = 100
RUNS = Path(__file__).parents[2] / "docs/examples/tau-airline/gpt-4o-airline.json.gz"


async def run(report: Report, backend: Backend) -> None:
    """Measure agents and megabytes a second; each round writes into a new place."""
    report.title(f"{AGENTS} recorded runs, copied into another place")
    with tempfile.TemporaryDirectory() as name:
        async with backend.space() as options, opened(options) as store:
            converter = ChatConverter("tau-airline", "tau")
            for raw in itertools.islice(read_conversations(RUNS), AGENTS):
                await import_conversation(store, converter.convert(raw))
            await _measure(report, backend, options, store, Path(name))


async def _measure(report: Report, backend: Backend, options: Options, store: ExtendedStore, folder: Path) -> None:
    first = folder / "first.jsonl"
    size = (await export_archive(store, first)).size

    async def copied(_: int) -> None:
        async with backend.space() as place, opened(place) as target:
            assert (await copy_store(store, target)).is_whole

    async def exported(i: int) -> None:
        await export_archive(store, folder / f"{i}.jsonl")

    async def imported(_: int) -> None:
        async with backend.space() as place, opened(place) as target:
            assert (await import_archive(target, first)).is_whole

    async def floor(i: int) -> None:
        await _floor(backend, options, folder / f"floor-{i}")

    given: dict[str, Any] = {"copy": copied, "export": exported, "import": imported}
    times = await interleaved(ROUNDS, **given, **({"floor": floor} if backend.floors else {}))
    of = "the floor" if backend.floors else ""
    for what, time in times.items():
        own = "the floor: .dump and its script" if backend.name == "sqlite" else "the floor: COPY"
        ratio = times[what] / times["floor"] if backend.floors and what != "floor" else None
        report.add(
            Row(own if what == "floor" else f"kode {what}", AGENTS / time, "agents/s", ratio, of if ratio else "")
        )
        report.add(Row("  the same", size / time / 1e6, "MB/s"))


async def _floor(backend: Backend, options: Options, place: Path) -> None:
    """Copy the same data with the database's own means, into a new place."""
    if backend.name == "sqlite":
        await asyncio.to_thread(_dumped, options["db_path"], place)
        return
    one, other = await asyncpg.connect(options["dsn"]), await asyncpg.connect(options["dsn"])
    try:
        async with backend.space() as new:
            where = "SELECT tablename FROM pg_tables WHERE schemaname = $1"
            for (table,) in await one.fetch(where, options["schema"]):
                await other.execute(
                    f'CREATE TABLE "{new["schema"]}"."{table}" (LIKE "{options["schema"]}"."{table}" INCLUDING ALL)'
                )
                file = io.BytesIO()
                await one.copy_from_table(table, schema_name=options["schema"], output=file, format="binary")
                file.seek(0)
                await other.copy_to_table(table, schema_name=new["schema"], source=file, format="binary")
    finally:
        await one.close()
        await other.close()


def _dumped(source: str, target: Path) -> None:
    with closing(sqlite3.connect(source)) as one, closing(sqlite3.connect(target)) as other:
        other.executescript("PRAGMA journal_mode = WAL;" + "\n".join(one.iterdump()))
