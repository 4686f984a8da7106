"""Documents of the caller's own: puts and pages next to a bare table, and counters that twenty writers change at once.

The floor is a table of agents, keys and bodies in the same database, and nothing else: no digests, no versions, no
heads of agents. SQLite's is called by ``sqlite3`` itself, without a thread in between.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, closing
from typing import Any, Final

import asyncpg

from kode_core import ABSENT, AgentInfo, ConflictError, ExtendedStore, PutDocument, create_extended_store
from kode_core.engine import keeps_documents
from tests.benchmarks.backends import Backend, Options
from tests.benchmarks.measure import Report, Row, interleaved

_ROUNDS: Final = 5
_MANY: Final = 1_000
_SIZES: Final = (1_000, 100_000)
_SLICE: Final = 5_000
_PAGE: Final = 20
_CALLS: Final = 50
_WRITERS: Final = 20
_FLAT: Final = 1.5
_VALUE: Final = {"text": "x" * 400, "tags": ["a", "b"], "score": 1.5}


# --- Floors -----------------------------------------------------------------------------------------------------------


class _Floor(ABC):
    """A table of documents, by the bare driver."""

    name: str

    @abstractmethod
    async def put(self, agent_id: str, keys: Sequence[str], body: str) -> None:
        """Insert or replace documents in one transaction, at the durability that the store has by default."""

    @abstractmethod
    async def page(self, agent_id: str, start: str) -> list[Any]:
        """The keys and values of a page."""


class _Sqlite(_Floor):
    name = "sqlite3"

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("CREATE TABLE docs (agent TEXT, key TEXT, body TEXT, PRIMARY KEY (agent, key)) WITHOUT ROWID")

    async def put(self, agent_id: str, keys: Sequence[str], body: str) -> None:
        with self._db:
            self._db.executemany("REPLACE INTO docs VALUES (?, ?, ?)", [(agent_id, key, body) for key in keys])

    async def page(self, agent_id: str, start: str) -> list[Any]:
        rows = self._db.execute(
            "SELECT key, body FROM docs WHERE agent = ? AND key >= ? ORDER BY key LIMIT ?", (agent_id, start, _PAGE)
        )
        return [(key, json.loads(body)) for key, body in rows]


class _Postgres(_Floor):
    name = "asyncpg"

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection

    async def put(self, agent_id: str, keys: Sequence[str], body: str) -> None:
        await self._connection.execute(
            "INSERT INTO docs SELECT $1, unnest($2::text[]), $3 ON CONFLICT (agent, key) DO UPDATE SET body = $3",
            agent_id,
            keys,
            body,
        )

    async def page(self, agent_id: str, start: str) -> list[Any]:
        rows = await self._connection.fetch(
            "SELECT key, body FROM docs WHERE agent = $1 AND key >= $2 ORDER BY key LIMIT $3", agent_id, start, _PAGE
        )
        return [(key, json.loads(body)) for key, body in rows]


@asynccontextmanager
async def _floor_at(options: Options) -> AsyncIterator[_Floor | None]:
    """The floor in a place; None where no driver could be one."""
    if options["type"] == "sqlite":
        with closing(sqlite3.connect(options["db_path"])) as db:
            yield _Sqlite(db)
    elif options["type"] == "postgres":
        connection = await asyncpg.connect(options["dsn"], server_settings={"search_path": options["schema"]})
        try:
            await connection.execute(
                'CREATE TABLE docs (agent text, key text COLLATE "C", body text, PRIMARY KEY (agent, key))'
            )
            yield _Postgres(connection)
        finally:
            await connection.close()
    else:
        yield None


# --- Measurements -----------------------------------------------------------------------------------------------------


async def run(report: Report, backend: Backend) -> None:
    """Milliseconds of a put, a page and an update, and ratios to the floor, to the short page and to one writer."""
    report.title("Documents")
    async with (
        backend.space() as options,
        backend.space() as place,
        _floor_at(place) as floor,
        create_extended_store(dict(options)) as store,
    ):
        if not keeps_documents(store._context.engine):  # type: ignore[attr-defined]
            print("left out: it keeps no documents")
            return
        await _puts(report, store, floor)
        await _pages(report, backend, store, floor, (options, place))
        await _counters(report, store)


def _key(number: int) -> str:
    return f"{number:07}"


async def _puts(report: Report, store: ExtendedStore, floor: _Floor | None) -> None:
    keys, body = [_key(number) for number in range(_MANY)], json.dumps(_VALUE)

    async def one_by_one(i: int) -> None:
        for key in keys:
            await store.put_document(f"puts-{i}", "c", key, _VALUE)

    async def at_once(i: int) -> None:
        await asyncio.gather(*(store.put_document(f"once-{i}", "c", key, _VALUE) for key in keys))

    async def together(i: int) -> None:
        await store.write_documents(f"many-{i}", [PutDocument("c", key, _VALUE) for key in keys])

    async def bare_one_by_one(i: int) -> None:
        for key in keys:
            await floor.put(f"puts-{i}", [key], body)  # type: ignore[union-attr]

    async def bare_together(i: int) -> None:
        await floor.put(f"many-{i}", keys, body)  # type: ignore[union-attr]

    bare = {} if floor is None else {"bare_one": bare_one_by_one, "bare_many": bare_together}
    found = await interleaved(_ROUNDS, one=one_by_one, once=at_once, many=together, **bare)
    for name, which, what in (
        ("1,000 puts one by one", "one", "bare_one"),
        ("1,000 puts at once", "once", "bare_one"),
        ("1,000 in one write_documents", "many", "bare_many"),
    ):
        bare_seconds = found.get(what)
        ratio = None if bare_seconds is None else found[which] / bare_seconds
        of = "" if floor is None else f"{floor.name}, {'one by one' if what == 'bare_one' else 'in one'}"
        report.add(Row(f"{name}, each", found[which] / _MANY * 1e3, "ms", ratio, of))


async def _pages(
    report: Report, backend: Backend, store: ExtendedStore, floor: _Floor | None, places: Sequence[Options]
) -> None:
    for size in _SIZES:
        for start in range(0, size, _SLICE):
            keys = [_key(number) for number in range(start, min(size, start + _SLICE))]
            await store.write_documents(f"a{size}", [PutDocument("c", key, _VALUE) for key in keys])
            if floor is not None:
                await floor.put(f"a{size}", keys, json.dumps(_VALUE))
    for options in places:
        await backend.settle(options)

    def of(size: int, page: Callable[[str, str], Awaitable[Sequence[Any]]]) -> Callable[[int], Awaitable[None]]:
        async def pages(i: int) -> None:
            for call in range(_CALLS):
                start = _key((i * 7919 + call * 104_729) % (size - _PAGE))
                assert len(await page(f"a{size}", start)) == _PAGE

        return pages

    async def stored(agent_id: str, start: str) -> Sequence[Any]:
        return await store.list_documents(agent_id, "c", start=start, limit=_PAGE)

    contestants = {f"{size}": of(size, stored) for size in _SIZES}
    if floor is not None:
        contestants |= {f"bare {size}": of(size, floor.page) for size in _SIZES}
    found = await interleaved(2 * _ROUNDS + 1, **contestants)
    for size in _SIZES:
        taken, name = found[f"{size}"] / _CALLS * 1e3, f"a page of {_PAGE} out of {size:,}"
        if floor is not None:
            report.add(Row(name, taken, "ms", found[f"{size}"] / found[f"bare {size}"], floor.name))
        if size != _SIZES[0]:
            ratio = found[f"{size}"] / found[f"{_SIZES[0]}"]
            target = None if floor is None else _FLAT  # JSON files read an agent anew that others drove out of memory
            report.add(Row(name, taken, "ms", ratio, f"out of {_SIZES[0]:,}", target))


async def _counters(report: Report, store: ExtendedStore) -> None:
    """Twenty writers of one info and of one document, next to one writer; every increment is kept."""
    await store.create_agent("info", AgentInfo(agent_id="info", template_id="t"))
    await store.put_document("info", "counters", "n", 0)
    done, attempts = {"info": [0] * _WRITERS, "document": [0]}, [0]
    together = [0]

    async def update(number: int) -> None:
        done["info"][number] += 1
        await store.update_info("info", {f"{number}": done["info"][number]})

    async def increment(_: int) -> None:
        done["document"][0] += 1
        while True:
            attempts[0] += 1
            found = await store.load_document("info", "counters", "n")
            value, version = (found.value, found.version) if found else (0, ABSENT)
            try:
                await store.put_document("info", "counters", "n", value + 1, expect=version)
            except ConflictError:
                continue
            return

    for name, call in (("update_info", update), ("compare and set of one document", increment)):

        async def one(_: int, call: Callable[[int], Awaitable[None]] = call) -> None:
            for number in range(_WRITERS):
                await call(number)

        async def many(_: int, call: Callable[[int], Awaitable[None]] = call) -> None:
            before = attempts[0]
            await asyncio.gather(*map(call, range(_WRITERS)))
            together[0] += attempts[0] - before

        found = await interleaved(_ROUNDS, one=one, many=many)
        ratio, taken = found["many"] / found["one"], found["many"] / _WRITERS * 1e3
        report.add(Row(f"{name}, {_WRITERS} writers at once, each", taken, "ms", ratio, "one after another"))
        if together[0]:
            report.add(Row("attempts of each writer, on average", together[0] / (_ROUNDS * _WRITERS), ""))
    info, counter = await store.load_info("info"), await store.load_document("info", "counters", "n")
    assert info is not None and counter is not None
    assert [info.metadata[f"{number}"] for number in range(_WRITERS)] == done["info"], "an update was lost"
    assert counter.value == done["document"][0], "an increment was lost"
