"""The output of ``kode conformance`` about a run."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from textwrap import wrap
from typing import Final, Self

from rich import progress
from rich.table import Column, Table
from rich.text import Text

from kode_conformance.clauses import CONTRACT
from kode_conformance.harness import StoreHarness
from kode_conformance.histories.programs import RULER
from kode_conformance.registry import Check
from kode_conformance.reports.explain import conditions_line, finding_lines, grouped, higher_tiers, search_line
from kode_conformance.reports.tally import AREAS, Tally, by_area, counts_text, tier_text
from kode_conformance.results import BAD, Report, Result, Status, Verdict
from kode_conformance.running.runner import versions_of
from kode_conformance.settings import Settings
from kode_core.cli.output import console, count, one_line, print_note, show, show_line, visible

__all__ = ["Progress", "print_header", "print_report"]

_STYLES: Final = {"━": "green", "#": "green", "x": "bold red", "~": "yellow"}
_VERDICT_STYLES: Final = {
    Verdict.CONFORMANT: "bold green",
    Verdict.WITH_DEVIATIONS: "bold yellow",
    Verdict.NOT_CONFORMANT: "bold red",
    Verdict.PART_PASSED: "bold green",
    Verdict.INCOMPLETE: "bold yellow",
}
TELLS_EVERY_S: Final = 60.0
_MOST_NAMES: Final = 10
_LABEL_WIDTH: Final = len("  look first at")
_PROSE: Final = frozenset({"contract", "checked", "seen before", "look first at"})
_USUAL_WIDTH: Final = 120
_MANY: Final = 4
"""The number of findings from which they are listed once more in short."""
_LONG_S: Final = 60.0
_SLOWEST: Final = 3


class Progress:
    """On a terminal: the progress of a run, the current check, and the number of failures. Elsewhere at most a line a
    minute.

    Attributes:
        results: the results so far.
    """

    def __init__(self, checks: Sequence[Check]) -> None:
        self.results: list[Result] = []
        self._fresh: list[str] = []
        self._told = time.monotonic()
        self._names = [check.id for check in checks]
        self._display = progress.Progress(
            progress.MofNCompleteColumn(),
            progress.BarColumn(20, complete_style="green"),
            progress.TimeElapsedColumn(),
            progress.TextColumn("{task.fields[failures]}", style="bold red"),
            progress.TextColumn("{task.description}", style="dim", table_column=Column(no_wrap=True)),
            console=console(sys.stderr),
            transient=True,
            disable=not sys.stderr.isatty(),
        )
        self._task = self._display.add_task("a look at the harness", total=len(checks), failures="")

    def __enter__(self) -> Self:
        self._display.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._display.stop()

    def note(self, result: Result) -> None:
        """A check has ended."""
        self.results.append(result)
        done = len(self.results)
        failures = sum(one.status in BAD for one in self.results)
        self._fresh += [result.check] if result.status in BAD else []
        is_late = time.monotonic() - self._told > TELLS_EVERY_S
        if is_late and self._display.disable and done <= len(self._names):
            found = f"; failed: {', '.join(self._fresh)}" if self._fresh else ""
            print_note(f"{done} of {len(self._names)} checks{found}")
            self._fresh, self._told = [], time.monotonic()
        self._display.update(
            self._task,
            completed=min(done, len(self._names)),
            description=self._names[done] if done < len(self._names) else "",
            failures=count(failures, "failure") if failures else "",
        )


def print_header(harness: StoreHarness, settings: Settings) -> None:
    """Print the store, its versions and the settings of the run."""
    name, tier = visible(harness.name), tier_text(settings.tier.name.lower(), settings.seconds)
    versions = [(part, number) for part, number in versions_of(harness).items() if part != "platform"]
    show(
        Text(f"{name}   contract {CONTRACT}   tier {tier}   seed {settings.seed}", "bold"),
        Text(visible(", ".join(f"{part} {number}" for part, number in versions)), "dim"),
        Text(),
    )


def print_report(report: Report, command: str) -> None:
    """Print all findings of a run; *command* is the command that runs it again."""
    if set(report.counts()) != {Status.HARNESS_ERROR}:
        show(_areas(report), Text())
    groups = grouped(report.failures())
    printed: set[str] = set()
    for group in groups:
        _print_failure(group, command, printed)
    for result in report.results:
        if result.status is Status.DEVIATION:
            reason, _, found = result.message.partition("\n")
            _print_finding(Text("DEVIATION", "bold yellow"), result, [("because", reason), ("found", found)])
    notes = list(_notes(report))
    if notes:
        show(*notes, Text())
    if len(groups) >= _MANY:
        _print_in_short(groups)
    show(_verdict(report))


# --- Areas ------------------------------------------------------------------------------------------------------------


def _areas(report: Report) -> Table:
    counts = Column(justify="right", no_wrap=True)
    grid = _grid(*(Column(no_wrap=True) for _ in range(3)), counts, Column(style="dim"))
    for area, numbers in by_area(report).items():
        if not numbers.eligible and not numbers.apart(ran=True):
            continue
        passed = f"{numbers.passed}/{numbers.eligible}" if numbers.eligible else "-"
        left_out, number = numbers.counts[Status.NOT_RUN], numbers.counts.total()
        part = f"({number - left_out} of {number})" if left_out else ""
        apart = "  ".join(filter(None, (part, numbers.apart(ran=True))))
        grid.add_row(f"  {area}", AREAS.get(area, ""), _bar(numbers, _bar_width()), passed, apart)
    return grid


def _bar_width() -> int:
    return 30 if sys.stdout.isatty() and shutil.get_terminal_size().columns >= 100 else 12


def _bar(numbers: Tally, width: int) -> Text:
    """A cell for each share of the checks; whatever failed has at least one."""
    if not numbers.eligible:
        return Text()
    share = width / numbers.eligible
    deviations = numbers.counts[Status.DEVIATION]
    failed = max(1, round(numbers.bad * share)) if numbers.bad else 0
    deviated = max(1, round(deviations * share)) if deviations else 0
    full = "━" if (sys.stdout.encoding or "").lower().startswith("utf") else "#"
    parts = {full: width - failed - deviated, "~": deviated, "x": failed}
    return Text.assemble(*((cell * number, _STYLES[cell]) for cell, number in parts.items() if number > 0))


# --- Findings ---------------------------------------------------------------------------------------------------------


def _print_failure(group: Sequence[Result], command: str, printed: set[str]) -> None:
    """Print a finding. Its clause is printed in full unless it is in *printed*, and is added to *printed*."""
    first = group[0]
    lines = finding_lines(first, command, printed)
    if first.status is Status.HARNESS_ERROR:
        lines = [line for line in lines if line[0] in ("found", "run it again")]
    else:
        printed.update(first.clauses[:1])
    if len(group) > 1:
        lines.insert(-1, ("the same in", _names(group[1:])))
    _print_finding(Text(first.status.upper(), "bold red"), first, lines)


def _print_finding(title: Text, result: Result, lines: Sequence[tuple[str, str]]) -> None:
    seconds = f"   {result.seconds:.1f} s" if result.seconds >= 1 else ""
    show(Text.assemble(title, "  ", (visible(result.check), "bold"), (seconds, "dim")))
    for label, text in lines:
        first, *rest = visible(text, lines=True).split("\n")
        if first and label != "run it again":
            grid = _grid(Column(style="dim", no_wrap=True, min_width=_LABEL_WIDTH), Column())
            grid.add_row(f"  {label}", Text(_wrapped(first) if label in _PROSE else first))
            show(grid)
        _print_below(rest)
    replay = dict(lines).get("run it again")
    if replay:
        _print_whole(Text.assemble((f"{'  run it again':<{_LABEL_WIDTH + 2}}", "dim"), visible(replay)))
    show(Text())


def _print_below(lines: Sequence[str]) -> None:
    """The other lines of a finding; a program flush left, so that it can be pasted with its rulers or without."""
    in_program = False
    for line in lines:
        is_ruler = line == RULER
        _print_whole(Text(line if in_program or is_ruler else f"    {line}".rstrip()))
        in_program ^= is_ruler


def _wrapped(text: str) -> str:
    """Words of the suite, wrapped to the width of the terminal, or to the usual width without one."""
    width = max(shutil.get_terminal_size((_USUAL_WIDTH, 24)).columns - _LABEL_WIDTH - 2, _LABEL_WIDTH)
    return "\n".join(wrap(text, width, break_long_words=False, break_on_hyphens=False))


def _print_in_short(groups: Sequence[Sequence[Result]]) -> None:
    """Many failures once more, each in a line."""
    width = max(len(visible(group[0].check)) for group in groups)
    show(Text(f"{len(groups)} findings in short", "bold"))
    for group in groups:
        first = group[0]
        more = f" (and {len(group) - 1} more)" if len(group) > 1 else ""
        found = one_line(first.message.partition("\n")[0])
        line = Text.assemble(f"  {visible(first.check):<{width}}  ", (f"{found}{more}", "dim"))
        line.truncate(shutil.get_terminal_size((_USUAL_WIDTH, 24)).columns, overflow="ellipsis")
        show_line(line)
    show(Text())


def _grid(*columns: Column) -> Table:
    grid = Table.grid(*columns, padding=(0, 2, 0, 0))
    grid.pad_edge = False
    return grid


def _names(results: Sequence[Result]) -> str:
    names = [result.check for result in results[:_MOST_NAMES]]
    more = [f"{len(results) - _MOST_NAMES} more"] if len(results) > _MOST_NAMES else []
    return visible(", ".join(names + more))


def _print_whole(line: Text) -> None:
    """A line to be copied: the terminal may break it, but no break is written."""
    if sys.stdout.isatty():
        console(sys.stdout).print(line, soft_wrap=True)
    else:
        show(line)


# --- The end ----------------------------------------------------------------------------------------------------------


def _notes(report: Report) -> Iterator[Table | Text]:
    grid = _grid(Column(no_wrap=True), Column(justify="right", no_wrap=True), Column())
    for status in (Status.NOT_APPLICABLE, Status.UNVERIFIED):
        for group in grouped(result for result in report.results if result.status is status):
            names = f": {_names(group)}" if status is Status.UNVERIFIED else ""
            grid.add_row(status.value, str(len(group)), visible(group[0].message) + names)
    if grid.row_count:
        yield grid
    for line in (conditions_line(report), search_line(report), higher_tiers(report)):
        if line and not report.partial:
            yield Text(line)
    if report.seconds > _LONG_S:
        slowest = sorted(report.results, key=lambda result: -result.seconds)[:_SLOWEST]
        yield Text("slowest: " + visible(", ".join(f"{one.check} {one.seconds:.1f} s" for one in slowest)))


def _verdict(report: Report) -> Text:
    ran = report.counts()
    left_out = ran.pop(Status.NOT_RUN, 0)
    numbers = counts_text(ran)
    if left_out:
        numbers += f"   (a part: {left_out} more {'check was' if left_out == 1 else 'checks were'} left out)"
    took = f"{report.seconds:.1f} s, {report.cpu:.1f} s of CPU"
    return Text.assemble((report.verdict.value, _VERDICT_STYLES[report.verdict]), f"   {numbers}   {took}")
