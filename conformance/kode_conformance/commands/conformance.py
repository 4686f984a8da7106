"""``kode conformance``: tells whether a store is right."""

from __future__ import annotations

import logging
import math
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import typer

from kode_conformance.clauses import clauses
from kode_conformance.commands.lookup import harness_named
from kode_conformance.harness import StoreHarness
from kode_conformance.registry import load_checks
from kode_conformance.reports import coverage as coverages
from kode_conformance.reports import files as documents
from kode_conformance.reports import listing, terminal
from kode_conformance.reports.explain import find_clauses
from kode_conformance.results import BAD, Report, Verdict
from kode_conformance.running.replay import read_replay
from kode_conformance.running.runner import run_suite, selected
from kode_conformance.settings import Settings, Tier, fresh_seed
from kode_core.cli.opening import JsonOption
from kode_core.cli.output import print_json, print_note
from kode_core.errors import ConfigurationError, InvalidArgumentError

__all__ = ["EXAMPLES", "conformance"]

EXAMPLES: Final = {
    "conformance": (
        "kode conformance sqlite",
        "kode conformance kode_acme/testing/harness.py:AcmeHarness --tier quick",
        "kode conformance sqlite --tier thorough --report out --badge conformance.svg",
        "kode conformance sqlite --only MSG --only DUR-1",
        "kode conformance --list --only MSG",
        "kode conformance --explain MSG-4",
        "kode conformance --coverage",
    ),
}

_EXIT: Final = {
    Verdict.CONFORMANT: 0,
    Verdict.WITH_DEVIATIONS: 0,
    Verdict.PART_PASSED: 0,
    Verdict.NOT_CONFORMANT: 1,
    Verdict.INCOMPLETE: 3,
}
_REPLAY_S: Final = 60.0
_INTERRUPTED: Final = 130


class _Files(NamedTuple):
    """Where the report goes."""

    folder: Path | None
    badge: Path | None


def conformance(
    store: Annotated[
        str | None, typer.Argument(metavar="STORE", help="A harness: its name, module:Class, or file.py:Class.")
    ] = None,
    tier: Annotated[
        str | None, typer.Option(metavar="TIER", help="quick, standard or thorough.", show_default="standard")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="TEXT", help="Run only an area, a clause, or checks with this in their name."),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(metavar="N", help="Where random values come from.", show_default="another each time"),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(metavar="S", help="How long each random check goes on at most.", show_default="15, 60 or 600"),
    ] = None,
    report: Annotated[Path | None, typer.Option(metavar="DIR", help="Write the report as JSON and Markdown.")] = None,
    badge: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a badge (SVG).")] = None,
    replay: Annotated[
        str | None, typer.Option(metavar="CHECK", help="Run one check again, as a report names it.")
    ] = None,
    list_all: Annotated[
        bool, typer.Option("--list", help="List clauses and their checks: all, or those of --only.")
    ] = False,
    explain: Annotated[
        str | None, typer.Option(metavar="CLAUSE", help="Print a clause or an area, its checks and where to look.")
    ] = None,
    coverage: Annotated[
        bool, typer.Option("--coverage", help="Print which clause is checked under which conditions.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Test a store against the contract.

    The exit code is 0 if the store is correct, 1 if it is not, 2 if the arguments were wrong, and 3 if too little could
    run to decide. If only a part was selected, 0 means that all of this part passed.
    """
    if coverage:
        print_json(coverages.as_json()) if as_json else coverages.print_coverage()
        return
    if list_all or explain is not None:
        _tell(explain, [*(only or []), *_meant(store)], as_json)
        return
    harness = harness_named(store)
    settings, patterns = _asked(tier, seed, only or [], replay)
    if seconds is not None:
        settings = settings._replace(seconds=_positive(seconds))
    command = f"kode conformance {shlex.quote(store or '')}"
    patience = (seconds or _REPLAY_S) if replay is not None and _depends_on_timing(patterns) else 0.0
    _judge(harness, settings, patterns, _Files(report, badge), command, as_json=as_json, patience=patience)


def _meant(store: str | None) -> list[str]:
    """The area or the clause that stands where a store does, as in ``--list MSG``."""
    try:
        return [store] if store is not None and find_clauses(store) else []
    except ValueError:
        return []


def _tell(explain: str | None, only: Sequence[str], as_json: bool) -> None:
    """Print the requested clauses; a list without a request has all of them."""
    try:
        wanted = only if explain is None else [explain]
        found = {clause_id for name in wanted for clause_id in find_clauses(name)}
        ids = [clause_id for clause_id in clauses() if clause_id in found or not wanted]
    except ValueError as exc:
        raise InvalidArgumentError(str(exc)) from None
    if as_json:
        print_json(listing.as_json(ids))
    elif explain is None:
        listing.print_list(ids)
    else:
        listing.print_clauses(ids)


# --- What was asked ---------------------------------------------------------------------------------------------------


def _asked(tier: str | None, seed: int | None, only: Sequence[str], replay: str | None) -> tuple[Settings, list[str]]:
    """How to run, and which checks; none for all of them."""
    if seed is not None and seed < 0:
        raise InvalidArgumentError(f"a seed is 0 or more, not {seed}")
    if replay is None:
        settings = Settings(_tier(tier or "standard"), fresh_seed() if seed is None else seed)
        for pattern in only:
            _refuse_unmatched(settings.tier, pattern)
        return settings, list(only)
    if only:
        raise InvalidArgumentError("--replay names one check, so that --only has nothing to add")
    return _again(replay, tier, seed)


def _again(text: str, tier: str | None, seed: int | None) -> tuple[Settings, list[str]]:
    """The settings and checks of a replay, unless another tier or seed was given with it."""
    known = {check.id: check for check in load_checks()}
    try:
        wanted = read_replay(text)
    except ValueError as exc:
        raise InvalidArgumentError(f"--replay: {exc}; {_near_ids(text.partition('@')[0], known)}") from None
    if wanted.check not in known:
        raise InvalidArgumentError(f"--replay: there is no check {wanted.check}; {_near_ids(wanted.check, known)}")
    usual = max(Tier.STANDARD, known[wanted.check].tier)
    asked = _tier(tier) if tier else usual if wanted.tier is None else wanted.tier
    _refuse_unmatched(asked, wanted.check)
    first = fresh_seed() if wanted.seed is None else wanted.seed
    return Settings(asked, first if seed is None else seed), [wanted.check]


def _positive(seconds: float) -> float:
    if not 0 < seconds < math.inf:
        raise InvalidArgumentError(f"--seconds is a number above 0, not {seconds}")
    return seconds


def _tier(name: str) -> Tier:
    if name.upper() not in Tier.__members__:
        raise InvalidArgumentError(f"there is no tier {name!r}; there are quick, standard and thorough")
    return Tier[name.upper()]


def _refuse_unmatched(tier: Tier, pattern: str) -> None:
    if pattern and selected(tier, [pattern])[0]:
        return
    later = selected(Tier.THOROUGH, [pattern])[0] if pattern else []
    if later:
        first = min(check.tier for check in later).name.lower()
        raise InvalidArgumentError(f"{pattern} is checked with --tier {first}, not with --tier {tier.name.lower()}")
    raise InvalidArgumentError(f"no check matches {pattern!r}; {_near(pattern)}")


def _near(wanted: str) -> str:
    """A hint that names checks and clauses like *wanted*."""
    names = dict.fromkeys(name for check in load_checks() for name in (check.id, check.name, *check.clauses))
    return _hint(get_close_matches(wanted, names, n=2, cutoff=0.7))


def _near_ids(wanted: str, ids: Iterable[str]) -> str:
    """A hint that names checks whose ids contain *wanted*, are similar to it, or belong to its clause."""
    known = list(ids)
    having = [check_id for check_id in known if wanted and wanted.lower() in check_id.lower()]
    of_clause = [check_id for check_id in known if check_id.startswith(f"{wanted.upper().partition('.')[0]}.")]
    return _hint((having or get_close_matches(wanted, known, n=2, cutoff=0.7) or of_clause)[:2])


def _hint(near: Sequence[str]) -> str:
    return f"did you mean {' or '.join(near)}?" if near else "kode conformance --list shows them all"


# --- The run ----------------------------------------------------------------------------------------------------------


def _judge(
    harness: StoreHarness,
    settings: Settings,
    patterns: list[str],
    files: _Files,
    command: str,
    *,
    as_json: bool,
    patience: float,
) -> None:
    try:
        documents.prepare(*files)
    except OSError as exc:
        raise ConfigurationError(f"the report cannot be written: {exc}") from exc
    if not as_json:
        terminal.print_header(harness, settings)
    found = _run(harness, settings, patterns)
    if patience:
        found = _until_it_shows(found, lambda: _run(harness, settings, patterns), patience)
    if as_json:
        sys.stdout.buffer.write(documents.as_json(found))
    else:
        terminal.print_report(found, command)
    for path in documents.write(found, *files, command):
        print_note(f"written: {path}")
    raise typer.Exit(_EXIT[found.verdict])


def _depends_on_timing(patterns: Sequence[str]) -> bool:
    return any(check.depends_on_timing for check in load_checks() if check.id in patterns)


def _until_it_shows(first: Report, again: Callable[[], Report], seconds: float) -> Report:
    """The first report with a failure, or the last one in *seconds*: a fault that depends on timing shows only
    sometimes.
    """
    found, runs, until = first, 1, time.monotonic() + seconds
    while not found.failures() and time.monotonic() < until:
        found, runs = again(), runs + 1
    shown = "it failed in run" if found.failures() else "it did not fail in"
    print_note(f"this check depends on timing: {shown} {runs}{'' if found.failures() else f' runs, {seconds:g} s'}")
    return found


def _run(harness: StoreHarness, settings: Settings, patterns: Sequence[str]) -> Report:
    checks, _ = selected(settings.tier, patterns)
    logging.getLogger().addHandler(logging.NullHandler())  # checks provoke warnings of the store; these are no findings
    with terminal.Progress(checks) as progress:
        try:
            return run_suite(harness, settings, patterns, progress.note)
        except KeyboardInterrupt:
            pass
    failures = [result.check for result in progress.results if result.status in BAD]
    print_note(f"interrupted after {len(progress.results)} of {len(checks)} checks")
    if failures:
        print_note(f"failed so far: {', '.join(failures)}")
    raise typer.Exit(_INTERRUPTED)
