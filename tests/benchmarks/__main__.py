"""``make bench``: all measurements on all backends, or those that are named in ``ARGS``.

The parts startup, turns, loads, workers, streams, follow, searches, forks and dashboards, documents by tags and rows
in groups, measure sqlite and postgres next to bare drivers; heartbeat, how long a call holds the event loop, and
memory, what a process holds of many agents (``agents=200`` for fewer than 2,000), measure json, too, and so do
observers, what they cost a call, otel, what kode-otel costs a call, layers, what encryption and compression cost,
parts, the last messages of long lists, documents, their puts, pages and counters, moving, copies, exports and imports
of whole stores, and whole, agents that are loaded, imported and pruned whole, and merges into an info; matrix is a
table of all backends, emulators marked as such (``ARGS="matrix sqlite mongo"`` for some of them; the others have
nothing else, and with matrix, memory is the backend of that name). contention measures all backends that several
processes can use: stores and processes that all write one agent (``ARGS="contention mongo"`` for one of them). costs
are counts of what calls ask of MongoDB and DynamoDB, which go alone, and are put into their guides (``ARGS="costs
mongo"`` for one of them). peers, other projects that keep conversations, are measured only when they are named; and so
is million, what searches touch in a store of a million messages, which takes minutes and goes alone. text, searches
for texts with an index of them and without, goes alone, too (``ARGS="text messages=1000000 characters=500"`` for
another store).
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from types import ModuleType

from tests.benchmarks import (
    contention,
    costs,
    dashboards,
    documents,
    follow,
    forks,
    heartbeat,
    layers,
    loads,
    matrix,
    memory,
    million,
    moving,
    observers,
    otel,
    parts,
    peers,
    searches,
    startup,
    streams,
    text,
    turns,
    whole,
    workers,
)
from tests.benchmarks.backends import BACKENDS, NoServerError
from tests.benchmarks.measure import Report

PARTS = {
    "startup": startup,
    "turns": turns,
    "loads": loads,
    "workers": workers,
    "streams": streams,
    "follow": follow,
    "searches": searches,
    "forks": forks,
    "heartbeat": heartbeat,
    "memory": memory,
    "observers": observers,
    "layers": layers,
    "otel": otel,
    "parts": parts,
    "documents": documents,
    "moving": moving,
    "dashboards": dashboards,
    "whole": whole,
}
WITHOUT_FLOOR = (heartbeat, layers, memory, observers, otel, parts, documents, moving, whole)
EXTRAS = {"peers": peers}
TABLES = ("matrix", "contention")
AGENTS_OPTION = "agents="


async def main(names: list[str]) -> int:
    known = {**PARTS, **EXTRAS}
    is_matrix = "matrix" in names or "contention" in names
    places = [name for name in names if name in matrix.PLACES and (is_matrix or name not in known)]
    parts = [name for name in names if name in known and name not in places]
    has_contention = not names or "contention" in names
    alone = any(name not in BACKENDS for name in places) and not has_contention
    has_matrix = not names or "matrix" in names or alone
    report = Report()
    print("Ratios tell; milliseconds are this machine's, today.")
    if parts or not (has_matrix or has_contention) or not names:
        await _beside_floors(report, [known[part] for part in parts or PARTS], [n for n in places if n in BACKENDS])
    if has_matrix:
        await matrix.run(report, places)
    if has_contention:
        await contention.run(report, places)
    if not report.rows:
        return 1
    report.save(Path("bench/results.json"))
    missed = [f"{row.backend}: {row.name.strip()}" for row in report.rows if row.met is False]
    print(f"targets missed: {'; '.join(missed) or 'none'}")
    return 0


async def _beside_floors(report: Report, parts: list[ModuleType], chosen: list[str]) -> None:
    """The parts on the backends that have a floor."""
    for name in chosen or BACKENDS:
        try:
            async with BACKENDS[name].available() as backend:
                report.backend = name
                report.versions[name] = backend.version
                print(f"\n{backend.title}, {backend.version}")
                for part in parts:
                    if backend.floors or part in WITHOUT_FLOOR:
                        await part.run(report, backend)
        except NoServerError as exc:
            if chosen:
                sys.exit(f"{name}: {exc}")
            print(f"\n{name} is left out: {exc}")


if __name__ == "__main__":
    names = [name for name in sys.argv[1:] if not name.startswith(AGENTS_OPTION)]
    for option in sys.argv[1:]:
        if option not in names:
            memory.AGENTS = int(option.removeprefix(AGENTS_OPTION))
    if names[:1] == ["text"] and all(one in text.PLACES or one.startswith(text.OPTIONS) for one in names[1:]):
        sys.exit(asyncio.run(text.run(names[1:])))
    if names == ["million"]:
        sys.exit(asyncio.run(million.run()))
    if names[:1] == ["costs"] and costs.METERS.keys() >= {*names[1:]}:
        sys.exit(asyncio.run(costs.run(names[1:])))
    unknown = [name for name in names if name not in {*PARTS, *EXTRAS, *BACKENDS, *matrix.PLACES, *TABLES}]
    if unknown:
        sys.exit(f"no such part: {unknown[0]}; there are {', '.join([*matrix.PLACES, *PARTS, *TABLES, *EXTRAS])}")
    sys.exit(asyncio.run(main(names)))
