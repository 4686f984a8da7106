"""``kode conformance``: tells whether a store is right."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final

import typer

from kode_conformance.harness import StoreHarness, find_harness
from kode_conformance.results import Status, Verdict
from kode_conformance.runner import run_suite, selected
from kode_conformance.settings import Settings, Tier, fresh_seed

__all__ = ["EXAMPLES", "conformance"]

EXAMPLES: Final = {
    "conformance": (
        "kode conformance sqlite",
        "kode conformance my_store/testing.py:MyHarness --tier quick",
        "kode conformance sqlite --tier thorough --report out --badge conformance.svg",
        "kode conformance --explain MSG-4",
    ),
}

_REPLAY: Final = re.compile(r"(?P<check>[A-Z]+-\d+\.\w+)(@seed=(?P<seed>\d+))?")
_EXIT: Final = {Verdict.CONFORMANT: 0, Verdict.WITH_DEVIATIONS: 0, Verdict.NOT_CONFORMANT: 1, Verdict.INCOMPLETE: 3}


def conformance(
    store: Annotated[
        str | None, typer.Argument(metavar="STORE", help="A harness: its name, module:Class, or file.py:Class.")
    ] = None,
    tier: Annotated[str, typer.Option(metavar="TIER", help="quick, standard or thorough.")] = "standard",
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="TEXT", help="Clauses, or parts of the names of checks.")
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Where random values come from.")] = None,
    report: Annotated[Path | None, typer.Option(metavar="DIR", help="Write the report as JSON and Markdown.")] = None,
    badge: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a badge (SVG).")] = None,
    replay: Annotated[
        str | None, typer.Option(metavar="CHECK@seed=N", help="Run one check again, as a report names it.")
    ] = None,
    list_all: Annotated[bool, typer.Option("--list", help="List the clauses and their checks.")] = False,
    explain: Annotated[
        str | None, typer.Option(metavar="CLAUSE", help="Print a clause, its checks and where to look.")
    ] = None,
) -> None:
    """Judge a store by what the contract says.

    Ends with 0 for a store that is right, 1 for one that is not, 2 when the question was wrong, 3 when checks were
    left out or could not run.
    """
    from kode_conformance import terminal

    if explain is not None:
        terminal.print_clause(_checked(explain))
        return
    if list_all:
        terminal.print_clauses()
        return
    harness = _harness(store)
    settings = Settings(_tier(tier), fresh_seed() if seed is None else seed)
    if replay is not None:
        match = _REPLAY.fullmatch(replay)
        if match is None:
            raise typer.BadParameter(f"{replay!r} is not as in MSG-1.save_replaces_the_whole_list@seed=7")
        only = [match["check"]]
        settings = settings._replace(
            seed=int(match["seed"] or 0), tier=Tier.THOROUGH if tier == "standard" else settings.tier
        )
    chosen, _ = selected(settings.tier, only or ())
    if not chosen:
        raise typer.BadParameter(f"no check matches {', '.join(only or ())}; kode conformance --list shows them all")
    screen = terminal.Screen(harness, settings, len(chosen), store or "")
    found = run_suite(harness, settings, only or (), screen.note)
    screen.finish(found)
    if report is not None or badge is not None:
        from kode_conformance import documents

        documents.write(found, report, badge)
    ran = {result.status for result in found.results if result.status is not Status.NOT_RUN}
    if only and not ran & {Status.FAIL, Status.STALE_DEVIATION, Status.HARNESS_ERROR}:
        return
    raise typer.Exit(_EXIT[found.verdict])


def _tier(name: str) -> Tier:
    if name.upper() not in Tier.__members__:
        raise typer.BadParameter(f"there is no tier {name!r}: quick, standard, thorough")
    return Tier[name.upper()]


def _harness(store: str | None) -> StoreHarness:
    if store is None:
        raise typer.BadParameter("which store? Give the name of a harness, module:Class, or file.py:Class")
    try:
        return find_harness(store)
    except (LookupError, ImportError, AttributeError, TypeError, OSError) as exc:
        raise typer.BadParameter(f"{store}: {exc}") from exc


def _checked(clause: str) -> str:
    from kode_conformance.explain import find_clause

    try:
        return find_clause(clause)
    except ValueError as exc:
        raise typer.BadParameter(str(exc)) from exc
