"""The saver next to LangGraph's own, in one run: ``.venv-frameworks/bin/python -m plugins.langgraph.bench``.

A turn is one run of a real graph with a call of a tool: four messages of 600 characters, five checkpoints. It is
measured on threads that have 100, 1,000 and 8,000 messages before; then the latest checkpoint is loaded. The savers
take turns. PostgreSQL is measured if ``langgraph-checkpoint-postgres`` and ``psycopg`` are installed.

- SQLite: bytes are those of the process's writes. Both savers sync each commit.
- PostgreSQL: bytes are those of the write-ahead log.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kode_langgraph import KodeSaver
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

from plugins.langgraph.tests.graphs import chat, configured, question

WHAT = ("turn_ms", "turn_cpu_ms", "turn_kb", "load_ms", "load_cpu_ms")
Written = Callable[[], Awaitable[int]]


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", default="100,1000,8000")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the results there, too")
    args = parser.parse_args()
    lengths = [int(each) for each in args.lengths.split(",")]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        places = [("sqlite", sqlite_savers(Path(folder)))]
        if find_spec("langgraph.checkpoint.postgres") and find_spec("psycopg"):
            places.append(("postgres", postgres_savers()))
        for place, opened in places:
            async with opened as (savers, written):
                for length in lengths:
                    found = await measured(savers, written, length, args.turns)
                    rows += [
                        {"place": place, "saver": name, "messages": length, **each} for name, each in found.items()
                    ]
                    show(rows[-2:])
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


async def measured(savers: dict[str, Any], written: Written, length: int, turns: int) -> dict[str, dict[str, float]]:
    """The medians of each saver, on a thread of a length."""
    apps = {name: chat().compile(checkpointer=saver) for name, saver in savers.items()}
    said = [HumanMessage(f"{n} {secrets.token_hex(300)}", id=f"m{n}") for n in range(length)]
    config = configured(f"t{length}-{secrets.token_hex(4)}")
    taken: dict[str, dict[str, list[float]]] = {name: {what: [] for what in WHAT} for name in apps}
    for app in apps.values():
        await app.aupdate_state(config, {"messages": said})
        await app.ainvoke(question(), config)
    for n in range(turns):
        for name, app in apps.items():
            before, begun, cpu = await written(), time.perf_counter(), time.process_time()
            await app.ainvoke(question(n), config)
            taken[name]["turn_ms"].append((time.perf_counter() - begun) * 1000)
            taken[name]["turn_cpu_ms"].append((time.process_time() - cpu) * 1000)
            taken[name]["turn_kb"].append((await written() - before) / 1000)
            begun, cpu = time.perf_counter(), time.process_time()
            assert await savers[name].aget_tuple(config)
            taken[name]["load_ms"].append((time.perf_counter() - begun) * 1000)
            taken[name]["load_cpu_ms"].append((time.process_time() - cpu) * 1000)
    states = [(await app.aget_state(config)).values["messages"] for app in apps.values()]
    assert [len(state) for state in states] == [length + 4 * turns + 4] * len(states)
    return {name: {what: statistics.median(each) for what, each in of.items()} for name, of in taken.items()}


@asynccontextmanager
async def sqlite_savers(folder: Path) -> AsyncIterator[tuple[dict[str, Any], Written]]:
    async with AsyncExitStack() as stack:
        theirs = await stack.enter_async_context(AsyncSqliteSaver.from_conn_string(str(folder / "theirs.db")))
        await theirs.setup()
        await theirs.conn.execute("PRAGMA synchronous = FULL")  # as ours: an acknowledged commit survives a power cut
        ours = await stack.enter_async_context(KodeSaver.from_url(f"sqlite:///{folder / 'ours.db'}"))
        yield {"ours": ours, "theirs": theirs}, process_bytes


async def process_bytes() -> int:
    """What this process wrote so far."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["wchar"])


@asynccontextmanager
async def postgres_savers() -> AsyncIterator[tuple[dict[str, Any], Written]]:
    import psycopg
    from kode_postgres.testing.servers import shared_server
    from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver

    server = shared_server()
    schema = f"lg_{secrets.token_hex(6)}"
    await server.execute(f'CREATE SCHEMA "{schema}_ours"', f'CREATE SCHEMA "{schema}_theirs"')
    sign = "&" if "?" in server.dsn else "?"
    where = f"{server.dsn}{sign}options=-c%20search_path%3D{schema}_theirs"
    async with AsyncExitStack() as stack:
        theirs = await stack.enter_async_context(AsyncPostgresSaver.from_conn_string(where))
        await theirs.setup()
        ours = await stack.enter_async_context(
            KodeSaver.from_url(type="postgres", dsn=server.dsn, schema=f"{schema}_ours")
        )
        meter = await stack.enter_async_context(await psycopg.AsyncConnection.connect(server.dsn, autocommit=True))

        async def written() -> int:
            found = await (await meter.execute("SELECT pg_current_wal_insert_lsn() - '0/0'")).fetchone()
            assert found
            return int(found[0])

        yield {"ours": ours, "theirs": theirs}, written
    await server.execute(f'DROP SCHEMA "{schema}_ours" CASCADE', f'DROP SCHEMA "{schema}_theirs" CASCADE')


def show(rows: list[dict[str, Any]]) -> None:
    ours, theirs = rows
    parts = [
        f"{what}: {ours[what]:,.1f} (theirs {theirs[what]:,.1f}, {ours[what] / theirs[what]:.2f}x)" for what in WHAT
    ]
    sys.stdout.write(f"{ours['place']:9}{ours['messages']:6,} messages  " + "  ".join(parts) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.stdout.write(f"SQLite {sqlite3.sqlite_version}, Python {sys.version.split()[0]}\n")
    asyncio.run(main())
