"""What ``kode conformance`` prints."""

from __future__ import annotations

from collections import defaultdict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kode_conformance.clauses import clauses
from kode_conformance.explain import checks_of, finding_lines, look_at
from kode_conformance.harness import StoreHarness
from kode_conformance.results import Report, Result, Status, Verdict
from kode_conformance.settings import Settings

__all__ = ["Screen", "print_clause", "print_clauses"]


class Screen:
    """Tells how the run goes, and what it found."""

    def __init__(self, harness: StoreHarness, settings: Settings, total: int, target: str) -> None:
        self._console = Console(highlight=False, markup=False, emoji=False)
        self._command = f"kode conformance {target}"
        self._results: list[Result] = []
        self._total = total
        self._console.print(f"{harness.name}   tier {settings.tier.name.lower()}   seed {settings.seed}")

    def note(self, result: Result) -> None:
        """A check has ended."""
        self._results.append(result)
        if self._console.is_terminal:
            self._console.print(f"{len(self._results)}/{self._total} {result.check}", end="\r", overflow="crop")

    def finish(self, report: Report) -> None:
        """Everything, at the end."""
        by_area: defaultdict[str, list[Result]] = defaultdict(list)
        for result in report.results:
            by_area[result.check.partition("-")[0]].append(result)
        for area, results in by_area.items():
            passed = sum(result.status is Status.PASS for result in results)
            self._console.print(f"  {area:8} {passed}/{len(results)}")
        for result in report.failures():
            self._console.print(Text(f"{result.status.upper()} {result.check}", style="bold red"))
            for label, text in finding_lines(result, self._command):
                self._console.print(f"    {label}: {text}")
        counts = ", ".join(f"{count} {status}" for status, count in sorted(report.counts().items()))
        good = report.verdict in (Verdict.CONFORMANT, Verdict.WITH_DEVIATIONS)
        self._console.print(Text(f"{report.verdict}: {counts}", style="green" if good else "red"))


def print_clause(clause_id: str) -> None:
    """One clause, its checks, and where to look."""
    console = Console(highlight=False, markup=False, emoji=False)
    clause = clauses()[clause_id]
    console.print(f"{clause.id}  {clause.text}")
    hint = look_at([clause_id])
    if hint:
        console.print(f"look first at: {hint}")
    for check in checks_of(clause_id):
        console.print(f"  {check.id}: {check.claim}")
    if clause.untested:
        console.print(f"not checked: {clause.untested}")


def print_clauses() -> None:
    """All clauses with their checks."""
    console = Console(highlight=False, markup=False, emoji=False)
    grid = Table.grid(padding=(0, 2))
    for clause in clauses().values():
        names = [check.name for check in checks_of(clause.id)]
        grid.add_row(clause.id, ", ".join(names) or f"not checked: {clause.untested}")
    console.print(grid)
