"""Agents loaded, imported and pruned whole, and infos merged, next to the same rows by a bare driver.

The agent has what a long conversation leaves: messages, tool calls, events, documents and an info with twenty tools. A
load is also compared with one load of each kind, and a merge with a save of the whole info.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from kode_core import AgentRecords, ExtendedStore, PutDocument, create_extended_store
from kode_core.codec import encode
from tests.benchmarks.backends import Backend
from tests.benchmarks.bare import Bare, bare_at
from tests.benchmarks.measure import Report, Row, interleaved
from tests.benchmarks.workload import Agent, an_info

_ROUNDS: Final = 5
_MESSAGES: Final = 1_000
_EVENTS: Final = 2_000
_DOCUMENTS: Final = 100
_MERGES: Final = 40
_COLLECTION: Final = "notes"
_KINDS: Final = ("message", "call", "event", "document", "info")

Call = Callable[[int], Awaitable[object]]


async def run(report: Report, backend: Backend) -> None:
    """Milliseconds of each, and ratios to the floor and to what would be done without it."""
    report.title(f"An agent of {_MESSAGES:,} messages, {_EVENTS:,} events and {_DOCUMENTS} documents, whole")
    async with (
        backend.space() as options,
        backend.space() as place,
        create_extended_store(dict(options)) as store,
        bare_at(place) as bare,
    ):
        records = await _stored(store)
        if bare is not None:
            await _make(bare)
            await _insert(bare, "whole", _rows(records))
        for one in (options, place):
            await backend.settle(one)
        await _loads(report, store, bare)
        await _imports(report, store, bare, records)
        await _prunes(report, store, bare, records)
        await _merges(report, store, bare)


async def _stored(store: ExtendedStore) -> AgentRecords:
    agent = Agent(store, "whole", _MESSAGES)
    await agent.start()
    await store.append_events(agent.id, agent.events(_EVENTS))
    value = {"text": "x" * 400}
    await store.write_documents(
        agent.id, [PutDocument(_COLLECTION, f"{number:04}", value) for number in range(_DOCUMENTS)]
    )
    records = await store.load_agent(agent.id)
    assert records is not None
    return records


# --- The floor --------------------------------------------------------------------------------------------------------


async def _make(bare: Bare) -> None:
    binary = 'text COLLATE "C"' if bare.driver == "asyncpg" else "text"
    await bare.make(
        f"CREATE TABLE records (agent {binary}, kind {binary}, place bigint, body text,"
        " PRIMARY KEY (agent, kind, place))",
        f"CREATE TABLE infos (agent {binary} PRIMARY KEY, body {'jsonb' if bare.driver == 'asyncpg' else 'text'})",
    )


def _rows(records: AgentRecords) -> list[tuple[str, int, str]]:
    """Kind, place and body of each record, made beforehand."""
    assert records.info is not None
    of_kinds: Sequence[Sequence[Any]] = (
        records.messages,
        records.tool_calls,
        records.events,
        records.documents,
        [records.info],
    )
    return [
        (kind, place, encode(type(record), record, "").text)
        for kind, some in zip(_KINDS, of_kinds, strict=True)
        for place, record in enumerate(some)
    ]


async def _insert(bare: Bare, agent: str, rows: Sequence[tuple[str, int, str]]) -> None:
    await bare.write(("INSERT INTO records VALUES ($1, $2, $3, $4)", [(agent, *row) for row in rows]))


# --- Measurements -----------------------------------------------------------------------------------------------------


def _add(report: Report, bare: Bare | None, name: str, found: dict[str, float], each: int = 1) -> None:
    """A row with the ratio to each of the others."""
    names = {"bare": "" if bare is None else bare.driver}
    for other, taken in found.items():
        if other != "ours":
            ratio = found["ours"] / taken
            report.add(Row(name, found["ours"] / each * 1e3, "ms", ratio, names.get(other, other.replace("_", " "))))
    if len(found) == 1:
        report.add(Row(name, found["ours"] / each * 1e3, "ms"))


async def _loads(report: Report, store: ExtendedStore, bare: Bare | None) -> None:
    async def one_by_one(_: int) -> None:
        await store.load_info("whole")
        await store.load_messages("whole")
        await store.load_tool_call_records("whole")
        await store.list_documents("whole", _COLLECTION, limit=_DOCUMENTS)
        assert len([event async for event in store.read_events("whole")]) == _EVENTS

    contestants: dict[str, Call] = {"ours": lambda _: store.load_agent("whole"), "a_load_of_each_kind": one_by_one}
    if bare is not None:

        async def rows(_: int) -> None:
            found = await bare.read("SELECT body FROM records WHERE agent = $1 ORDER BY kind, place", "whole")
            assert len([json.loads(body) for (body,) in found]) > _MESSAGES + _EVENTS

        contestants["bare"] = rows
    _add(report, bare, "load_agent", await interleaved(_ROUNDS, **contestants))


async def _imports(report: Report, store: ExtendedStore, bare: Bare | None, records: AgentRecords) -> None:
    async def imported(i: int) -> None:
        await store.import_agent(f"imported-{i}", records)

    contestants: dict[str, Call] = {"ours": imported}
    if bare is not None:
        rows = _rows(records)
        contestants["bare"] = lambda i: _insert(bare, f"imported-{i}", rows)
    _add(report, bare, "import_agent", await interleaved(_ROUNDS, **contestants))


async def _prunes(report: Report, store: ExtendedStore, bare: Bare | None, records: AgentRecords) -> None:
    """All events but the last hundred, of the agents that were imported."""
    keep = 100
    logs = {i: [event.offset async for event in store.read_events(f"imported-{i}")][-keep] for i in range(_ROUNDS)}

    async def pruned(i: int) -> None:
        removed = await store.prune(f"imported-{i}", events_before_offset=logs[i])
        assert removed.events == _EVENTS - keep

    contestants: dict[str, Call] = {"ours": pruned}
    if bare is not None:
        statement = "DELETE FROM records WHERE agent = $1 AND kind = 'event' AND place < $2"
        contestants["bare"] = lambda i: bare.write((statement, [(f"imported-{i}", _EVENTS - keep)]))
    _add(report, bare, f"prune of {_EVENTS - keep:,} events", await interleaved(_ROUNDS, **contestants))


async def _merges(report: Report, store: ExtendedStore, bare: Bare | None) -> None:
    """One key of an info with twenty tools is changed."""
    await store.save_info("merged", an_info("merged", 0))
    await store.save_info("saved", an_info("saved", 0))

    async def merged(i: int) -> None:
        for n in range(_MERGES):
            await store.update_info("merged", {"step": i * _MERGES + n})

    async def saved(i: int) -> None:
        info = an_info("saved", 0)
        for n in range(_MERGES):
            step = {**info.metadata, "step": i * _MERGES + n}
            await store.save_info("saved", info.replace(metadata=step))

    contestants: dict[str, Call] = {"ours": merged, "save_info": saved}
    if bare is not None:
        body = encode(type(an_info("merged", 0)), an_info("merged", 0), "").text
        await bare.write(("INSERT INTO infos VALUES ($1, $2)", [("merged", body)]))
        patch = "json_patch(body, $2)" if bare.driver == "aiosqlite" else "body || $2::jsonb"

        async def patched(i: int) -> None:
            for n in range(_MERGES):
                change = json.dumps({"step": i * _MERGES + n})
                await bare.write((f"UPDATE infos SET body = {patch} WHERE agent = $1", [("merged", change)]))

        contestants["bare"] = patched
    _add(report, bare, "update_info of one key", await interleaved(_ROUNDS, **contestants), _MERGES)
