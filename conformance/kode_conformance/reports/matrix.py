"""Several stores next to each other, as a table for a README."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from kode_conformance.reports.markdown import cell, table
from kode_conformance.reports.tally import AREAS, Tally, by_area, level_of
from kode_conformance.results import Report, Status, Verdict

__all__ = ["matrix_lines"]

_VERDICTS: Final = {
    Verdict.CONFORMANT: "conformant",
    Verdict.WITH_DEVIATIONS: "with deviations",
    Verdict.NOT_CONFORMANT: "**not conformant**",
    Verdict.PART_PASSED: "a part passed",
    Verdict.INCOMPLETE: "incomplete",
}
_LEGEND: Final = (
    "✓ all passed; otherwise how many passed of those that were judged; – does not apply; ? not verified or not run. "
)


def matrix_lines(reports: Sequence[Report]) -> Iterator[str]:
    """The lines: a row for each area that any report has, a column for each report."""
    tallies = [by_area(report) for report in reports]
    areas = [area for area in AREAS if any(area in numbers for numbers in tallies)]
    areas += sorted({area for numbers in tallies for area in numbers} - set(areas))
    rows = [
        [AREAS.get(area, cell(area)), *(_cell(numbers.get(area)) for numbers in tallies)]
        for area in areas
        if area != "HARNESS"
    ]
    totals = ["**verdict**", *(_verdict(report) for report in reports)]
    yield from table(["", *_titles(reports)], [*rows, totals])
    yield ""
    yield f"{_LEGEND}{_of(reports)}"


def _titles(reports: Sequence[Report]) -> list[str]:
    """The names of the stores; equal names are numbered."""
    names = [cell(report.store) for report in reports]
    seen: Counter[str] = Counter()
    titles = []
    for name in names:
        seen[name] += 1
        titles.append(f"{name} ({seen[name]})" if names.count(name) > 1 else name)
    return titles


def _cell(numbers: Tally | None) -> str:
    if numbers is None:
        return "?"
    if not numbers.eligible:
        return "–" if set(numbers.counts) == {Status.NOT_APPLICABLE} else "?"
    share = f"{numbers.passed}/{numbers.eligible}"
    if numbers.bad:
        return f"**{share}**"
    return f"✓ {share}" if numbers.passed == numbers.eligible else share


def _verdict(report: Report) -> str:
    partial = ", in part" if report.partial else ""
    return f"{_VERDICTS[report.verdict]}, {level_of(report)}{partial}"


def _of(reports: Sequence[Report]) -> str:
    contracts, tiers = ({getattr(report, name) for report in reports} for name in ("contract", "tier"))
    summary = f"Contract {', '.join(sorted(contracts))}, tier {', '.join(sorted(tiers))}."
    return summary if len({report.manifest for report in reports}) == 1 else f"{summary} Not all ran the same checks."
