"""A report as a page of Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Final

from kode_conformance.clauses import clauses
from kode_conformance.reports.explain import (
    beginning,
    conditions_line,
    finding_lines,
    grouped,
    higher_tiers,
    search_line,
    why_not_run,
)
from kode_conformance.reports.tally import AREAS, by_area, counts_text, level_of, tier_text
from kode_conformance.results import BAD, Report, Result, Status, Verdict
from kode_core.cli.output import count, visible

__all__ = ["cell", "name", "report_page", "table"]

_SPECIAL: Final = str.maketrans({char: f"\\{char}" for char in "\\`*_[]<>|#~&"})
_PLAIN: Final = re.compile(r"[\w.@=,-]+", re.ASCII)


def cell(text: str) -> str:
    """*text* so that Markdown shows it as it is, in one line and within one cell of a table."""
    return visible(" ".join(text.split())).translate(_SPECIAL)


def name(text: str) -> str:
    """The name of a check, as code where that can be."""
    return f"`{text}`" if _PLAIN.fullmatch(text) else cell(text)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str] = ()) -> Iterator[str]:
    """The lines of a table whose cells are Markdown already."""
    yield f"| {' | '.join(columns)} |"
    yield f"|{'|'.join(' ---: ' if column in right else ' --- ' for column in columns)}|"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def report_page(report: Report, command: str) -> str:
    """The whole page; *command* is what runs the suite again."""
    sections = (
        _head(report),
        _areas(report),
        _failures(report, command),
        _deviations(report),
        _apart(report),
        _clauses(report),
    )
    return "\n\n".join("\n".join(lines) for section in sections if (lines := list(section))) + "\n"


def _head(report: Report) -> Iterator[str]:
    yield f"# Conformance of {cell(report.store)}"
    yield ""
    took = f"{report.seconds:.1f} s, {report.cpu:.1f} s of CPU"
    yield f"**{_headline(report)}**: {counts_text(report.counts())}, in {took}."
    if report.partial:
        yield "Checks were left out of this run, so that it says nothing about the whole."
    yield ""
    when = datetime.fromtimestamp(report.started_at / 1000, UTC)
    rows = {
        "contract": f"{report.contract} {level_of(report)}",
        "tier": tier_text(report.tier, report.pace),
        "seed": str(report.seed),
        "started": f"{when:%Y-%m-%d %H:%M:%S} UTC",
        **report.versions,
        "checks": f"manifest {report.manifest}",
        "lacks": ", ".join(one for one, has in report.capabilities.items() if not has) or "nothing",
    }
    yield from table(("", ""), ((label, cell(text)) for label, text in rows.items()))
    notes = [
        line
        for line in (conditions_line(report), search_line(report), higher_tiers(report))
        if line and not report.partial
    ]
    for note in notes:
        yield from ("", f"{note[0].upper()}{note[1:]}.")


def _headline(report: Report) -> str:
    part = report.partial and report.verdict is not Verdict.PART_PASSED
    return f"{report.verdict}, by a part of the checks" if part else report.verdict.value


def _areas(report: Report) -> Iterator[str]:
    yield from ("## Areas", "")
    rows = (
        (area, AREAS.get(area, ""), f"{numbers.passed}/{numbers.eligible}", numbers.apart())
        for area, numbers in by_area(report).items()
    )
    yield from table(("area", "about", "passed", "not judged"), rows, right=("passed",))


def _failures(report: Report, command: str) -> Iterator[str]:
    groups = grouped(report.failures())
    if not groups:
        return
    yield "## Failures"
    for group in groups:
        first = group[0]
        yield from ("", f"### {first.status}: {name(first.check)}", "")
        for label, text in finding_lines(first, command):
            if first.status is Status.HARNESS_ERROR and label not in ("found", "run it again"):
                continue
            yield from _entry(label, text)
        if len(group) > 1:
            yield f"- the same in: {', '.join(name(one.check) for one in group[1:])}"


def _entry(label: str, text: str) -> Iterator[str]:
    """A line for an entry; findings and commands are shown as code."""
    if label not in ("found", "run it again"):
        yield f"- {label}: {_contract(text) if label == 'contract' else cell(text)}"
        return
    fence = "```" if "```" not in text else "~~~"
    yield from (f"- {label}:", "", f"  {fence}text")
    yield from (f"  {line}" for line in visible(text, lines=True).splitlines())
    yield from (f"  {fence}", "")


def _deviations(report: Report) -> Iterator[str]:
    found = [result for result in report.results if result.status is Status.DEVIATION]
    if not found:
        return
    yield from ("## Deviations", "", "The store is known to fail these checks.", "")
    rows = ((name(one.check), *(cell(part) for part in _reason_and_finding(one))) for one in found)
    yield from table(("check", "because", "found"), rows)


def _reason_and_finding(result: Result) -> tuple[str, str]:
    reason, _, found = result.message.partition("\n")
    return reason, found


def _apart(report: Report) -> Iterator[str]:
    groups = grouped(one for one in report.results if one.status in (Status.NOT_APPLICABLE, Status.UNVERIFIED))
    if not groups:
        return
    yield from ("## Not judged", "")
    rows = (
        (group[0].status.value, cell(group[0].message), str(len(group)), ", ".join(name(one.check) for one in group))
        for group in groups
    )
    yield from table(("status", "because", "checks", "which"), rows, right=("checks",))


def _clauses(report: Report) -> Iterator[str]:
    yield from ("## Clauses", "")
    yield from table(("clause", "says", "status", "checks"), _clause_rows(report))


def _clause_rows(report: Report) -> Iterator[tuple[str, str, str, str]]:
    statuses, results = report.clause_statuses(), report.by_clause()
    for clause in clauses().values():
        if clause.id in statuses:
            status, checks = statuses[clause.id].value, count(len(results[clause.id]), "check")
        else:
            status, checks = why_not_run(clause.id)
        if statuses.get(clause.id) in BAD:
            status = f"**{status}**"
        yield clause.id, _contract(beginning(clause.text)), status, cell(checks)


def _contract(text: str) -> str:
    """Words of the contract, which are Markdown, within one cell."""
    return text.replace("|", "\\|")
