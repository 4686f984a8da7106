"""``kode import --from``: the agents of a store of the KODE SDK for TypeScript, or of another program."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partial
from pathlib import Path
from typing import IO, Any, Final, TypeVar

import typer
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from kode_core.cli.opening import open_store
from kode_core.cli.output import console, count, new_report, show, visible
from kode_core.cli.queries import run
from kode_core.formats.importing import Imported, Importer, import_foreign
from kode_core.formats.kode_sdk import import_agents, open_source
from kode_core.jsonable import to_json
from kode_core.protocols import ExtendedStore

__all__ = ["import_others", "import_store"]

T = TypeVar("T")

_SHOWN: Final = 20
"""Agents that are shown one by one for each kind of trouble; ``--report`` has all of them."""
_UNITS: Final = {
    "messages": "message",
    "toolCalls": "tool call",
    "events": "event",
    "snapshots": "snapshot",
}


_DONE: Final = ("imported", "replaced", "importable")


class _Report:
    """Adds up the outcomes of all agents, and writes each to a file."""

    def __init__(self, file: IO[bytes] | None, progress: Progress) -> None:
        self._file = file
        self._progress = progress
        self._shown = Counter[str]()
        self.outcomes = Counter[str]()
        self.counts = Counter[str]()
        self.changed = Counter[str]()
        self.left_out = Counter[str]()
        self.lossy = 0

    def add(self, one: Imported) -> None:
        if self._file is not None:
            self._file.write(to_json(one) + b"\n")
        self.outcomes[one.outcome] += 1
        if one.outcome in _DONE:
            self.counts.update(one.counts)
        self.changed.update(_without_places(one.changed))
        self.left_out.update(_without_places(one.left_out))
        self.lossy += any("messages" in remark for remark in one.lost)
        if one.outcome == "refused":
            self._show("red", f"refused {one.agent_id}: {one.reason}", one.damaged)
        elif one.damaged:
            self._show("yellow", f"{one.agent_id}: some records cannot be read and are missing", one.damaged)
        if one.lost and one.outcome != "known":
            self._show("yellow", f"{one.agent_id}: the SDK has lost records", one.lost)

    def _show(self, style: str, line: str, details: Iterable[str]) -> None:
        self._shown[style] += 1
        if self._shown[style] <= _SHOWN:
            self._progress.console.print(Text(visible(line), style), soft_wrap=True)
            for detail in list(details)[:3]:
                self._progress.console.print(Text(f"  {visible(detail)}"), soft_wrap=True)
        elif self._shown[style] == _SHOWN + 1:
            self._progress.console.print(Text("… and more; --report FILE has all of them", style))


def _without_places(remarks: dict[str, int]) -> Counter[str]:
    """Remarks without the file or row that they begin with, to be added up over agents."""
    added = Counter[str]()
    for remark, times in remarks.items():
        added[remark.partition(": ")[2] if remark.count(": ") > 1 else remark] += times
    return added


def import_store(
    source: str,
    target: str | None,
    files: Path | None,
    report: Path | None,
    *,
    without_files: bool,
    dry_run: bool,
    how: dict[str, bool],
) -> None:
    """Import the agents, and print the outcome; *how* has the options of ``import_agents``."""
    opened = open_source(source, files, without_files=without_files)
    found = run(_import(opened, lambda read, store: import_agents(read, store, **how), target, report, dry_run))
    _end(found, dry_run=dry_run)
    if found.lossy and not how["recover_from_snapshots"]:
        show(Text("--recover-from-snapshots takes the newest snapshot for messages that the SDK has lost", "yellow"))
    _fail_if_refused(found)


def import_others(
    importer: Importer,
    source: str,
    target: str | None,
    report: Path | None,
    *,
    dry_run: bool,
    skip_damaged: bool,
    replace: bool,
) -> None:
    """Import the agents that an importer reads, and print the outcome."""
    opened = importer(source)
    import_all = partial(import_foreign, skip_damaged=skip_damaged, replace=replace)
    found = run(_import(opened, import_all, target, report, dry_run))
    _end(found, dry_run=dry_run)
    _fail_if_refused(found)


def _end(found: _Report, *, dry_run: bool) -> None:
    """Print the numbers."""
    parts = [count(found.counts[name], unit) for name, unit in _UNITS.items() if found.counts[name]]
    verb = "would import" if dry_run else "imported"
    known, done = found.outcomes["known"], sum(found.outcomes[name] for name in _DONE)
    there = f"; {count(known, 'agent')} {'was' if known == 1 else 'were'} there already" if known else ""
    show(Text(f"{verb} {', '.join([count(done, 'agent'), *parts])}{there}"))
    for title, remarks in (("changed", found.changed), ("left out", found.left_out)):
        for remark, times in remarks.most_common(_SHOWN):
            show(Text(f"{title}, {times:,} times: {visible(remark)}"))


def _fail_if_refused(found: _Report) -> None:
    if found.outcomes["refused"]:
        show(Text(f"refused {count(found.outcomes['refused'], 'agent')}, see above", "red"))
        raise typer.Exit(1)


async def _import(
    opened: AbstractAsyncContextManager[T],
    import_all: Callable[[T, ExtendedStore | None], AsyncIterator[Imported]],
    target: str | None,
    report: Path | None,
    dry_run: bool,
) -> _Report:
    async with AsyncExitStack() as stack:
        source = await stack.enter_async_context(opened)
        file = stack.enter_context(new_report(report)) if report is not None else None
        store: Any = None if dry_run else await stack.enter_async_context(open_store(target, create=True))
        columns = (SpinnerColumn(), TextColumn("importing"), MofNCompleteColumn(), TimeElapsedColumn())
        progress = stack.enter_context(
            Progress(*columns, console=console(sys.stderr), transient=True, disable=not sys.stderr.isatty())
        )
        found, task = _Report(file, progress), progress.add_task("importing", total=None)
        async for one in import_all(source, store):
            found.add(one)
            progress.advance(task)
        found.left_out.update(getattr(source, "remarks", ()))
        return found
