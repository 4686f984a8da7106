"""All backends side by side: one table, with what each costs beside SQLite in the same run."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import kode_dynamodb.testing.servers as emulators
import kode_mongo.testing.servers as mongo
from kode_conformance.servers import NoServerError

from kode_core import ExtendedStore, create_extended_store
from tests.benchmarks.backends import BACKENDS, Options
from tests.benchmarks.measure import Report, Row, interleaved
from tests.benchmarks.workload import Agent, an_event, an_info

__all__ = ["PLACES", "run"]

ROUNDS = 15
_BASE = "sqlite"
_PAGE = 100


class Place(NamedTuple):
    """Where a backend keeps its data for a while.

    Attributes:
        title: as it stands in the table.
        options: gives the store's options, and takes the place away again.
        scale: the part of the usual amount that it is filled with: an emulator writes some 200 items a second.
    """

    title: str
    options: Callable[[], AbstractAsyncContextManager[Options]]
    scale: float = 1.0


@asynccontextmanager
async def _in_memory() -> AsyncIterator[Options]:
    yield {"type": "memory"}


@asynccontextmanager
async def _in_files() -> AsyncIterator[Options]:
    with tempfile.TemporaryDirectory(prefix="kode-bench-") as folder:
        yield {"type": "json", "base_dir": folder}


@asynccontextmanager
async def _of(name: str) -> AsyncIterator[Options]:
    async with BACKENDS[name].available() as backend, backend.space() as options:
        yield options


@asynccontextmanager
async def _on_mongo() -> AsyncIterator[Options]:
    with mongo.LocalServer() as server:
        yield {"type": "mongo", "uri": server.uri}


@asynccontextmanager
async def _on_emulator(kind: type[emulators.MotoServer | emulators.LocalServer]) -> AsyncIterator[Options]:
    keys = {"access_key_id": emulators.KEY, "secret_access_key": emulators.SECRET, "region": "us-east-1"}
    with kind() as server:
        patient = {"timeout_ms": 600_000, "command_timeout_millis": 60_000}
        yield {"type": "dynamodb", "endpoint_url": server.endpoint_url, **keys, **patient}


PLACES: Mapping[str, Place] = {
    "memory": Place("memory", _in_memory),
    "json": Place("JSON files", _in_files),
    "sqlite": Place("SQLite", lambda: _of("sqlite")),
    "postgres": Place("PostgreSQL", lambda: _of("postgres")),
    "mongo": Place("MongoDB", _on_mongo),
    "dynamodb": Place("moto (emulator)", lambda: _on_emulator(emulators.MotoServer), 0.1),
    "dynamodb-local": Place("DynamoDB Local (emulator)", lambda: _on_emulator(emulators.LocalServer), 0.1),
}


class _Measured(NamedTuple):
    """Of one backend; times in milliseconds."""

    turn: float
    long_turn: float
    events: float
    page: float
    fork: float


async def _measure(store: ExtendedStore, scale: float) -> _Measured:
    short, long = Agent(store, "agt-short", 100), Agent(store, "agt-long", int(8_000 * scale))
    for agent in (short, long):
        await agent.start()
    turns = await interleaved(ROUNDS, short=short.in_one_write, long=long.in_one_write)
    events = await _events(store, int(40_000 * scale * scale))
    agents = int(1_000 * scale)
    for start in range(0, agents, 50):
        ids = [f"agt-page-{n}" for n in range(start, min(start + 50, agents))]
        await asyncio.gather(*(store.save_info(agent_id, an_info(agent_id, 0)) for agent_id in ids))
    page = await _median(lambda: store.query_sessions(limit=_PAGE))
    parent = Agent(store, "agt-parent", 1_000)
    await parent.start()
    fork = await _median(lambda: store.batch_fork(parent.id, 1), 5)
    return _Measured(turns["short"] * 1000, turns["long"] * 1000, events, page, fork)


async def _median(call: Callable[[], Awaitable[object]], rounds: int = ROUNDS) -> float:
    async def one(_: int) -> None:
        await call()

    return (await interleaved(rounds, one=one))["one"] * 1000


async def _events(store: ExtendedStore, count: int) -> float:
    """Acknowledged events a second, of 100 agents that each have 40 appends in flight."""
    each = max(count // 100, 1)

    async def agent(name: str) -> None:
        for start in range(0, each, 40):
            seqs = range(start, min(start + 40, each))
            await asyncio.gather(*(store.append_event(name, an_event(seq)) for seq in seqs))

    begun = time.perf_counter()
    await asyncio.gather(*(agent(f"agt-events-{n}") for n in range(100)))
    return each * 100 / (time.perf_counter() - begun)


async def run(report: Report, names: list[str]) -> None:
    """Measure these backends, and write the table to ``bench/matrix.md``."""
    found: dict[str, _Measured] = {}
    for name in names or PLACES:
        place = PLACES[name]
        report.backend = name
        print(f"{place.title} …", flush=True)
        try:
            async with place.options() as options, create_extended_store(options) as store:
                found[name] = await _measure(store, place.scale)
        except NoServerError as exc:
            print(f"{place.title} is left out: {exc}")
    for name, measured in found.items():
        report.backend = name
        for what, value in measured._asdict().items():
            unit = "ev/s" if what == "events" else "ms"
            base = getattr(found[_BASE], what) if _BASE in found else None
            report.add(Row(f"matrix: {what}", value, unit, None if base is None else value / base, _BASE))
    table = _table(found)
    print(f"\n{table}")
    Path("bench").mkdir(exist_ok=True)
    Path("bench/matrix.md").write_text(table)


def _table(found: Mapping[str, _Measured]) -> str:
    header = (
        "",
        "a turn at 100 messages",
        "at 8,000",
        "events a second",
        f"a page of {_PAGE} sessions",
        "a fork of 1,000 messages",
    )
    lines = [header, ("---",) * len(header)]
    for name, measured in found.items():
        base = found.get(_BASE)
        cells = [_cell(what, value, base) for what, value in measured._asdict().items()]
        lines.append((PLACES[name].title, *cells))
    small = [place.title for name, place in PLACES.items() if name in found and place.scale < 1]
    note = f"\n{' and '.join(small)}: at 800 messages, of 100 sessions; they say nothing about AWS.\n" if small else ""
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n" + note


def _cell(what: str, value: float, base: _Measured | None) -> str:
    shown = f"{value:,.0f}" if what == "events" else f"{value:,.1f} ms"
    if base is None:
        return shown
    ratio = value / getattr(base, what)
    return f"{shown} ({ratio:,.0f} x)" if ratio >= 10 else f"{shown} ({ratio:.2g} x)"
