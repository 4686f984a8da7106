"""``kode compare``: the changes between two reports, or a table of several stores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import typer
from rich.text import Text

from kode_conformance.commands.into import write_into
from kode_conformance.reports.matrix import matrix_lines
from kode_conformance.reports.tally import counts_text
from kode_conformance.results import BAD, Report, Result, Status, Verdict, read_report
from kode_core.cli.output import count, one_line, show, visible
from kode_core.errors import InvalidArgumentError

__all__ = ["EXAMPLES", "Change", "Comparison", "compare", "compared"]

EXAMPLES: Final = {
    "compare": (
        "kode compare before/sqlite.json after/sqlite.json",
        "kode compare --matrix out/memory.json out/json.json out/sqlite.json",
        "kode compare --into README.md out/memory.json out/json.json out/sqlite.json",
    ),
}

_BEST_FIRST: Final = (
    Verdict.CONFORMANT,
    Verdict.WITH_DEVIATIONS,
    Verdict.PART_PASSED,
    Verdict.INCOMPLETE,
    Verdict.NOT_CONFORMANT,
)


class Change(NamedTuple):
    """A check that both reports have, and that ended otherwise."""

    before: Result
    after: Result


class Comparison(NamedTuple):
    """The differences between two reports.

    Attributes:
        remarks: what makes the two hard to compare, in sentences.
        failing: fail now, and did not.
        weaker: passed, and now are excused, not applicable or not verified.
        passing: failed or were not verified, and pass now.
        other: ended otherwise in any other way.
        new: results only the second report has.
        gone: results only the first report has.
    """

    before: Report
    after: Report
    remarks: Sequence[str]
    failing: Sequence[Change]
    weaker: Sequence[Change]
    passing: Sequence[Change]
    other: Sequence[Change]
    new: Sequence[Result]
    gone: Sequence[Result]

    @property
    def worse(self) -> bool:
        """True if something got worse: a check, or the verdict."""
        verdicts = (_BEST_FIRST.index(report.verdict) for report in (self.before, self.after))
        return bool(self.failing or self.weaker) or next(verdicts) < next(verdicts)


def compare(
    reports: Annotated[list[Path], typer.Argument(metavar="REPORT", help="Reports in JSON, the older first.")],
    matrix: Annotated[
        bool, typer.Option("--matrix", help="Print a Markdown table: a row for each area, a column for each report.")
    ] = False,
    into: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the table into a file, between the lines that mark its place."),
    ] = None,
) -> None:
    """Tell what changed between two reports of the conformance suite.

    The exit code is 0 when nothing got worse, 1 when something did, and 2 when a file is no report.
    """
    found = [_read(path) for path in reports]
    if into is not None:
        write_into(into, "kode matrix", list(matrix_lines(found)))
        return
    if matrix:
        show(*(Text(line) for line in matrix_lines(found)))
        return
    if len(found) != 2:
        raise InvalidArgumentError(f"two reports are compared, the older first; given {count(len(found), 'report')}")
    comparison = compared(*found)
    _print(comparison)
    raise typer.Exit(1 if comparison.worse else 0)


def _read(path: Path) -> Report:
    try:
        return read_report(path.read_bytes())
    except (OSError, ValueError) as exc:
        problem = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        raise InvalidArgumentError(f"{path}: {problem}") from None


# --- What differs -----------------------------------------------------------------------------------------------------


def compared(before: Report, after: Report) -> Comparison:
    """All that differs. Checks that were left out of a run do not differ."""
    old, new = ({one.check: one for one in report.results} for report in (before, after))
    common = [Change(old[check], new[check]) for check in old if check in new]
    changes = [
        change
        for change in common
        if change.before.status is not change.after.status and Status.NOT_RUN is not change.after.status
    ]
    failing = [one for one in changes if one.after.status in BAD and one.before.status not in BAD]
    passing = [one for one in changes if one.after.status is Status.PASS and one.before.status is not Status.NOT_RUN]
    weaker = [one for one in changes if one.before.status is Status.PASS and one.after.status not in BAD]
    told_already = {*failing, *passing, *weaker}
    return Comparison(
        before,
        after,
        list(_remarks(before, after)),
        failing,
        weaker,
        passing,
        [one for one in changes if one not in told_already],
        [result for check, result in new.items() if check not in old],
        [result for check, result in old.items() if check not in new],
    )


def _remarks(before: Report, after: Report) -> Iterator[str]:
    pairs = {
        "stores": (before.store, after.store),
        "contracts": (before.contract, after.contract),
        "tiers": (before.tier, after.tier),
        "checks (manifests)": (before.manifest, after.manifest),
    }
    for name, (old, new) in pairs.items():
        if old != new:
            yield f"different {name}: {old}, then {new}"
    for which, report in (("first", before), ("second", after)):
        if report.partial:
            yield f"the {which} report is of a part of the checks"
    for name in sorted({*before.versions, *after.versions}):
        old, new = (report.versions.get(name, "none") for report in (before, after))
        if old != new:
            yield f"{name}: {old}, then {new}"


# --- What is printed --------------------------------------------------------------------------------------------------


def _print(found: Comparison) -> None:
    for name, report in (("before", found.before), ("after", found.after)):
        seed = f"{report.tier}, seed {report.seed}"
        show(Text(visible(f"{name:<7} {report.store} ({seed})  {report.verdict}: {counts_text(report.counts())}")))
    for remark in found.remarks:
        show(Text(visible(f"note: {remark}"), "yellow"))
    groups = (
        ("newly failing", "bold red", found.failing),
        ("no longer passing", "red", found.weaker),
        ("newly passing", "green", found.passing),
        ("otherwise changed", "yellow", found.other),
    )
    for title, style, changes in groups:
        _print_group(title, style, [(one.after, f"{one.before.status} → {one.after.status}") for one in changes])
    _print_group("new checks", "bold", [(one, one.status.value) for one in found.new])
    _print_group("gone checks", "bold", [(one, one.status.value) for one in found.gone])
    changed = any((found.failing, found.weaker, found.passing, found.other, found.new, found.gone))
    show(
        Text(), Text("worse", "bold red") if found.worse else Text("not worse" if changed else "the same", "bold green")
    )


def _print_group(title: str, style: str, rows: Sequence[tuple[Result, str]]) -> None:
    if not rows:
        return
    show(Text(), Text(f"{title} ({len(rows)})", style))
    width = max(len(visible(result.check)) for result, _ in rows)
    for result, status in rows:
        show(Text.assemble(f"  {visible(result.check):<{width}}  ", (status, "dim")))
        found, _, _ = result.message.partition("\n")
        if result.status in BAD:
            show(Text(f"      {one_line(found)}", "dim"))
