"""The clauses and their checks, to read and for scripts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from kode_conformance.clauses import CONTRACT, Clause, clauses
from kode_conformance.registry import Capability, Check, load_checks
from kode_conformance.reports.coverage import lines_of
from kode_conformance.reports.explain import beginning, checks_of
from kode_conformance.reports.tally import AREAS
from kode_conformance.running.runner import manifest
from kode_conformance.settings import Tier
from kode_core.cli.output import count, show

__all__ = ["as_json", "print_clauses", "print_list"]


def print_list(ids: Sequence[str]) -> None:
    """Clauses, each with its checks below it."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column()
    area = ""
    for clause in map(clauses().__getitem__, ids):
        if clause.area != area:
            area = clause.area
            grid.add_row(Text(area, "bold"), Text(AREAS.get(area, ""), "bold"))
        for index, line in enumerate(_lines(clause)):
            grid.add_row("" if index else f"  {clause.id}", line)
    checks = [check for check in load_checks() if set(check.clauses) & set(ids)]
    show(grid, Text())
    tiers = ", ".join(f"{sum(check.tier <= tier for check in checks)} with --tier {tier.name.lower()}" for tier in Tier)
    show(Text(f"{count(len(ids), 'clause')} of contract {CONTRACT}, {count(len(checks), 'check')}: {tiers}"))


def _lines(clause: Clause) -> Iterator[Text]:
    yield Text(beginning(clause.text), "italic")
    for check in checks_of(clause.id):
        yield Text.assemble(check.name, (_conditions(check), "dim"))
    if not checks_of(clause.id):
        yield Text(f"not checked: {clause.untested}", "dim")


def _conditions(check: Check) -> str:
    """The requirements of a check, in brackets; empty when every run meets them."""
    said = [] if check.tier is Tier.QUICK else [f"--tier {check.tier.name.lower()}"]
    said += [f"needs {' and '.join(_needs(check))}"] if check.needs else []
    return f"  ({', '.join(said)})" if said else ""


def _needs(check: Check) -> list[str]:
    return [one.name or "" for one in Capability.ALL if one in check.needs]


def print_clauses(ids: Iterable[str]) -> None:
    """Clauses in full: their wording, where to look first, and their checks."""
    for clause_id in ids:
        clause = clauses()[clause_id]
        show(Text.assemble((clause.id, "bold"), f"  {clause.text}"))
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column()
        if clause.look_at:
            grid.add_row("  look first at", clause.look_at)
        for check in checks_of(clause_id):
            grid.add_row("  check", Text.assemble((check.id, "bold"), (_conditions(check), "dim")))
            grid.add_row("", check.claim)
        for label, text in lines_of(clause_id):
            grid.add_row(f"  {label}", text)
        if clause.untested:
            grid.add_row("  not checked", clause.untested)
        show(grid, Text())


def as_json(ids: Iterable[str]) -> dict[str, Any]:
    """The same for scripts."""
    return {
        "contract": CONTRACT,
        "manifest": manifest(load_checks()),
        "clauses": [_clause(clauses()[clause_id]) for clause_id in ids],
    }


def _clause(clause: Clause) -> dict[str, Any]:
    return {
        "id": clause.id,
        "area": clause.area,
        "text": clause.text,
        "lookAt": clause.look_at,
        "untested": clause.untested,
        "checks": [_check(check) for check in checks_of(clause.id)],
    }


def _check(check: Check) -> dict[str, Any]:
    return {
        "id": check.id,
        "claim": check.claim,
        "tier": check.tier.name.lower(),
        "needs": _needs(check),
        "stochastic": check.stochastic,
        "under": [dimension.value for dimension in check.under],
    }
