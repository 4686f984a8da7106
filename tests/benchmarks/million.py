"""``make bench ARGS=million``: what searches touch in a store of a million messages, 100,000 tool calls and 10,000
agents, on SQLite and on PostgreSQL, next to one of a tenth of that.

SQLite counts the steps of its machine; on PostgreSQL each statement that the store sends is explained, and its pages
are counted. Whatever grows with the store is marked. The documentation has the table, ``bench/million.json`` all of it.
"""

from __future__ import annotations

import functools
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import asyncpg
from kode_postgres.session import Session
from kode_sqlite.engine import SqliteEngine
from kode_sqlite.options import SqliteOptions

from kode_core import ExtendedStore
from kode_core.store import EngineStore
from plugins.postgres.tests.plans import explained, touched
from tests.benchmarks.backends import BACKENDS, Backend, Options, opened
from tests.benchmarks.measure import seconds
from tests.benchmarks.million_store import AGENTS, Search, at_last, combined, fill, named

__all__ = ["pages", "run", "steps"]

PLACES: Final = ("sqlite", "postgres")
_SHARES: Final = (10, 1)
"""Of the whole store, the smaller one first."""
_ROUNDS: Final = 5
_GROWS: Final = 3.0
"""How much more of ten times the rows is growth: not one level of an index more, and not what is left of a page."""
_BOUNDED: Final = {"sqlite": 8_000, "postgres": 1_700}
"""Up to that a page of a hundred may cost: some dozens of steps for a row, or pages of several tables."""

Ask = Callable[[ExtendedStore], Awaitable[object]]


@dataclass
class Cost:
    """The cost of one search.

    Attributes:
        work: steps or pages, in the smaller store and in the whole one.
        found: how many records were found in each.
        millis: in the whole one, the median.
    """

    name: str
    group: str
    place: str
    work: tuple[int, ...] = ()
    found: tuple[int, ...] = ()
    millis: float = 0.0

    @property
    def grows(self) -> bool:
        """Whether it does more where there is more, and not because it finds more."""
        if not self.work:
            return False
        more_found = max(1.0, self.found[-1] / max(1, self.found[0]))
        return self.work[-1] > max(_BOUNDED[self.place], _GROWS * more_found * self.work[0])


# --- counting ---------------------------------------------------------------------------------------------------------


class _Counted(SqliteEngine):
    """Counts the steps of all its connections."""

    steps = 0
    _AT_ONCE: Final = 10

    async def _new_reader(self) -> Any:
        reader = await super()._new_reader()
        await reader.run(self._count)
        return reader

    def _count(self, db: Any) -> None:
        db.set_progress_handler(self._step, self._AT_ONCE)

    def _step(self) -> int:
        self.steps += self._AT_ONCE
        return 0


@asynccontextmanager
async def steps(options: Options) -> AsyncIterator[Callable[[Ask], Awaitable[int]]]:
    """Counts the steps of a call."""
    settings = SqliteOptions(db_path=options["db_path"])
    async with EngineStore(functools.partial(_Counted.open, settings)) as store:
        engine: Any = store._context.engine

        async def count(ask: Ask) -> int:
            engine.steps = 0
            await ask(store)
            return int(engine.steps)

        yield count


@contextmanager
def _heard() -> Iterator[list[tuple[str, Sequence[Any]]]]:
    """The statements that stores send and that give rows."""
    sent: list[tuple[str, Sequence[Any]]] = []
    fetch = Session.fetch

    async def hear(session: Session, statement: str, *args: Any) -> Sequence[Any]:
        sent.append((statement, args))
        return await fetch(session, statement, *args)

    Session.fetch = hear  # type: ignore[method-assign]
    try:
        yield sent
    finally:
        Session.fetch = fetch  # type: ignore[method-assign]


@asynccontextmanager
async def pages(options: Options) -> AsyncIterator[Callable[[Ask], Awaitable[int]]]:
    """Counts the pages of a call."""
    con = await asyncpg.connect(options["dsn"])
    try:
        async with opened(options) as store:

            async def count(ask: Ask) -> int:
                with _heard() as sent:
                    await ask(store)
                pages = 0
                for statement, args in sent:
                    pages += touched(await explained(con, statement, args))
                    await con.execute("DEALLOCATE asked")
                return pages

            yield count
    finally:
        await con.close()


async def _settle(backend: Backend, options: Options) -> None:
    """Do what a server does by itself in time."""
    await backend.settle(options)
    if options["type"] == "postgres":
        con = await asyncpg.connect(options["dsn"])
        try:
            for (table,) in await con.fetch(
                "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname = $1", options["schema"]
            ):
                await con.execute(f"VACUUM (ANALYZE) {table}")
        finally:
            await con.close()


# --- measuring --------------------------------------------------------------------------------------------------------


async def _measured(backend: Backend) -> list[Cost]:
    """Everything, on stores of both sizes."""
    costs: dict[tuple[str, str], Cost] = {}
    for share in _SHARES:
        agents = AGENTS // share
        async with backend.space() as options:
            async with opened({**options, "durability": "fast"}) as store:
                await fill(store, agents, f"{backend.name}, {agents * 100:,} messages")
            await _settle(backend, options)
            async with opened(options) as store:
                asked = [("", search) for search in await named(store, agents)] + list(combined(agents))
                asked += [("", search) for search in at_last()]
                counting = steps if backend.name == "sqlite" else pages
                async with counting(options) as count:
                    for i, (group, search) in enumerate(asked):
                        cost = costs.setdefault((group, search.name), Cost(search.name, group, backend.name))
                        await _measure(cost, search, store, count)
                        sys.stderr.write(f"\r{backend.name}: {i + 1} of {len(asked)} searches ")
                        sys.stderr.flush()
            sys.stderr.write("\n")
    return list(costs.values())


async def _measure(cost: Cost, search: Search, store: ExtendedStore, count: Callable[[Ask], Awaitable[int]]) -> None:
    if search.once:
        start = time.perf_counter()
        await search.ask(store)
        cost.millis = 1000 * (time.perf_counter() - start)
        return
    await count(search.ask)  # connections are made, and statistics of them looked up
    cost.work = (*cost.work, await count(search.ask))
    found = await search.ask(store)
    cost.found = (*cost.found, len(found) if isinstance(found, list) else 1)
    cost.millis = await _millis(store, search)


async def _millis(store: ExtendedStore, search: Search) -> float:
    async def ask(_: int) -> None:
        await search.ask(store)

    return 1000 * statistics.median([await seconds(ask) for _ in range(_ROUNDS)])


# --- the table --------------------------------------------------------------------------------------------------------


def _cells(cost: Cost) -> list[str]:
    if not cost.work:
        return ["–", "–", f"{cost.millis:,.0f}"]
    small, large = cost.work
    return [f"{small:,}", f"{large:,}" + (" **grows**" if cost.grows else ""), f"{cost.millis:,.1f}"]


def _table(first: str, rows: Sequence[tuple[str, Sequence[str]]]) -> Iterator[str]:
    head = [first, "SQLite: steps of a tenth", "steps", "ms", "PostgreSQL: pages of a tenth", "pages", "ms"]
    yield f"| {' | '.join(head)} |"
    yield f"|---|{'---:|' * 6}"
    for name, cells in rows:
        yield f"| {name} | {' | '.join(cells)} |"


def _lines(costs: Sequence[Cost]) -> Iterator[str]:
    by_name: defaultdict[str, dict[str, Cost]] = defaultdict(dict)
    by_group: defaultdict[str, defaultdict[str, list[Cost]]] = defaultdict(lambda: defaultdict(list))
    for cost in costs:
        if cost.group:
            by_group[cost.group][cost.place].append(cost)
        else:
            by_name[cost.name][cost.place] = cost
    rows = [(name, [cell for place in PLACES for cell in _cells(found[place])]) for name, found in by_name.items()]
    yield from _table("search", rows)
    yield ""
    yield "Every filter, and every two of them, in each order: how many there are, and the one that touches most."
    yield ""
    most = []
    for group, found in by_group.items():
        highest = [max(found[place], key=lambda cost: cost.work[-1]) for place in PLACES]
        names = " / ".join(dict.fromkeys(cost.name for cost in highest))
        grow = sum(cost.grows for place in PLACES for cost in found[place])
        growing = f"; {grow} grow" if grow else ""
        cells = [cell for cost in highest for cell in _cells(cost)]
        most.append((f"{group}: {len(found[PLACES[0]])}{growing}: {names}", cells))
    yield from _table("searches, and the dearest", most)


async def run() -> int:
    """Measure and print the tables."""
    costs, versions = [], []
    for name in PLACES:
        async with BACKENDS[name].available() as backend:
            versions.append(f"{name} {backend.version}")
            costs += await _measured(backend)
    print(f"{', '.join(versions)}, {time.strftime('%Y-%m-%d')}\n")
    print("\n".join(_lines(costs)))
    growing = [cost for cost in costs if cost.grows]
    print(f"\n{len(growing)} of {len(costs)} grow with the store")
    for cost in growing:
        print(f"{cost.place}: {cost.group} {cost.name}: {cost.work[0]:,}, {cost.work[1]:,}")
    path = Path("bench/million.json")
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"versions": versions, "costs": [asdict(cost) for cost in costs]}, indent=1) + "\n")
    return 0
