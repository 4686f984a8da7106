"""The checks of each clause under each dimension, and the reasons why a dimension is not varied."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any, Final, NamedTuple

from rich.table import Column, Table
from rich.text import Text

from kode_conformance.clauses import CONTRACT, clauses
from kode_conformance.commands.into import write_into
from kode_conformance.dimensions import MEANINGS, Dimension
from kode_conformance.registry import Check, load_checks
from kode_conformance.reports.explain import checks_of
from kode_conformance.reports.tally import AREAS
from kode_conformance.running.runner import manifest
from kode_conformance.settings import Tier
from kode_core.cli.output import count, show

__all__ = ["Cell", "as_json", "cells", "lines_of", "notes_of_today", "print_coverage", "share", "table_lines"]

_MARKS: Final = {Tier.QUICK: "q", Tier.STANDARD: "s", Tier.THOROUGH: "t"}
_NOT: Final = "·"
_OPEN: Final = "?"
_YET: Final = "not varied yet"
_WIDE: Final = 118


class Cell(NamedTuple):
    """A clause under a dimension.

    Attributes:
        checks: the checks of the clause that vary the dimension.
        reason: why the dimension says nothing about the clause, or is varied elsewhere; a reason that begins with ``not
            varied yet`` names the missing check. Empty where there are checks.
    """

    checks: Sequence[Check]
    reason: str

    @property
    def mark(self) -> str:
        """The letter of the first tier that looks; a dot where none has to; a question mark where one could."""
        if self.checks:
            return _MARKS[min(check.tier for check in self.checks)]
        return _OPEN if self.is_open else _NOT

    @property
    def is_open(self) -> bool:
        """True if checks could vary the dimension, and none does."""
        return not self.checks and (not self.reason or self.reason.startswith(_YET))


def cells(clause_id: str) -> Mapping[Dimension, Cell]:
    """A clause under every dimension."""
    reasons = clauses()[clause_id].without
    checks = checks_of(clause_id)
    return {
        dimension: Cell([check for check in checks if dimension in check.under], reasons.get(dimension, ""))
        for dimension in Dimension
    }


def share() -> tuple[int, int]:
    """The number of cells that are checked, and of all that a clause could be checked under."""
    found = [cell for clause_id in clauses() for cell in cells(clause_id).values()]
    return sum(bool(cell.checks) for cell in found), sum(bool(cell.checks) or cell.is_open for cell in found)


def print_coverage() -> None:
    """The table: a line for each clause, a column for each dimension."""
    columns = [Column(_code(dimension), no_wrap=True) for dimension in Dimension]
    grid = Table(Column(no_wrap=True), *columns, box=None, padding=(0, 1, 0, 0), header_style="bold")
    area = ""
    for clause in clauses().values():
        if clause.area != area:
            area = clause.area
            grid.add_row(Text(f"{area} {AREAS.get(area, '')}", "bold"))
        grid.add_row(f"  {clause.id}", *(cell.mark for cell in cells(clause.id).values()))
    grid.add_row(*(Text(name, "bold") for name in ("", *map(_code, Dimension))))
    show(
        grid,
        Text(),
        Text("q, s, t: varied with --tier quick, standard, thorough.  ·: not varied, for a reason; ?: not yet."),
        Text(),
    )
    legend = Table.grid(padding=(0, 2, 0, 0))
    for dimension in Dimension:
        legend.add_row(f"  {_code(dimension)}", dimension.value, MEANINGS[dimension])
    show(legend, Text())
    checked, possible = share()
    show(
        Text("kode conformance --explain CLAUSE gives the reasons."),
        Text(f"{checked} of {count(possible, 'pair')} of a clause and a dimension that can be varied are."),
    )


def _code(dimension: Dimension) -> str:
    return dimension.value[:3]


def lines_of(clause_id: str) -> Iterator[tuple[str, str]]:
    """(label, text) for each dimension that is varied, and for each reason why others are not."""
    found = cells(clause_id)
    varied = [dimension.value for dimension, cell in found.items() if cell.checks]
    if varied:
        yield "varied", ", ".join(varied)
    reasons: dict[str, list[str]] = {}
    for dimension, cell in found.items():
        if not cell.checks and cell.reason:
            reasons.setdefault(cell.reason, []).append(dimension.value)
    for reason, dimensions in reasons.items():
        missing = reason.removeprefix(f"{_YET}: ")
        yield "not varied" if missing == reason else "not yet", f"{', '.join(dimensions)}: {missing}"


def as_json() -> dict[str, Any]:
    """The same for scripts."""
    found = [
        {
            "clause": clause_id,
            "dimensions": {
                dimension.value: {"checks": [check.id for check in cell.checks], "reason": cell.reason}
                for dimension, cell in cells(clause_id).items()
            },
        }
        for clause_id in clauses()
    ]
    return {"contract": CONTRACT, "manifest": manifest(load_checks()), "clauses": found}


def table_lines() -> list[str]:
    """The table as Markdown."""
    head = f"| clause | {' | '.join(dimension.value for dimension in Dimension)} |"
    rows = (f"| {one} | {' | '.join(cell.mark for cell in cells(one).values())} |" for one in clauses())
    return ["", head, f"| --- |{' :-: |' * len(Dimension)}", *rows, ""]


_SECTION: Final = re.compile(r"^(?=\[[A-Z]+-\d+(?:\.because)?\]$)", re.MULTILINE)
_NOT_VARIED: Final = re.compile(r"\nnot_varied = \[.*?\]", re.DOTALL)


def notes_of_today(text: str) -> str:
    """``clauses.toml`` with the dimensions that no check of each clause varies, as it is now; all else stays."""
    head, *sections = (part.strip() for part in _SECTION.split(text))
    notes = {section[1 : section.index("]")]: section for section in sections}
    parts = [head]
    for clause_id in clauses():
        missing = [dimension.value for dimension, cell in cells(clause_id).items() if not cell.checks]
        note = _NOT_VARIED.sub("", notes.get(clause_id, f"[{clause_id}]"))
        parts += [f"{note}\n{_toml(missing)}"] if missing else [note]
        if f"{clause_id}.because" in notes:
            title, *reasons = notes[f"{clause_id}.because"].splitlines()
            kept = [reason for reason in reasons if reason.partition(" ")[0] in missing]
            parts += ["\n".join([title, *kept])] if kept else []
    return "\n\n".join(parts) + "\n"


def _toml(names: Sequence[str]) -> str:
    """As in ``not_varied = ["items"]``, on several lines where one is too short."""
    listed = ", ".join(f'"{name}"' for name in names)
    if len(listed) < _WIDE - len("not_varied = []"):
        return f"not_varied = [{listed}]"
    lines = wrap(f"{listed},", _WIDE, initial_indent="  ", subsequent_indent="  ")
    return "\n".join(["not_varied = [", *lines, "]"])


if __name__ == "__main__":  # python -m kode_conformance.reports.coverage …/clauses.toml docs/guides/conditions.md
    for path in map(Path, sys.argv[1:]):
        if path.suffix == ".toml":
            path.write_text(notes_of_today(path.read_text("utf-8")), "utf-8")
            clauses.cache_clear()
        else:
            write_into(path, "coverage", table_lines())
