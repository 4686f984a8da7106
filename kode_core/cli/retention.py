"""``kode prune`` without agents: the policies of retention that ``kode.toml`` has for the store."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

import typer
from rich.console import RenderableType
from rich.text import Text

from kode_core.cli.opening import configured_store, open_store
from kode_core.cli.output import count, fail, print_json, print_note, show, visible, watched, wire
from kode_core.cli.queries import run
from kode_core.cli.tables import table
from kode_core.errors import ConfigurationError, InvalidArgumentError
from kode_core.report import PruneResult
from kode_core.retention import Retained, RetentionPolicy, RetentionReport, apply_retention

__all__ = ["KINDS", "apply_policies", "ask", "total"]

KINDS: Final = (
    ("events", "event"),
    ("snapshots", "snapshot"),
    ("history_windows", "history window"),
    ("compression_records", "compression record"),
    ("recovered_files", "recovered file"),
)
_SHOWN: Final = 20
_LEFT: Final = (("locked", "by a lock that is held"), ("changed", "changed meanwhile"), ("damaged", "damaged"))


def total(result: PruneResult) -> int:
    """The number of records of all kinds."""
    return sum(getattr(result, name) for name, _ in KINDS)


def ask(question: str) -> None:
    """Ask before records are removed."""
    if not sys.stdin.isatty():
        raise InvalidArgumentError(
            "stdin is not a terminal, so the command cannot ask: give --yes to remove, or --dry-run to count"
        )
    typer.confirm(question, abort=True, err=True)


def apply_policies(target: str | None, *, yes: bool, dry_run: bool, as_json: bool) -> None:
    """Apply the policies, or count; fails with exit code 1 if agents cannot be read."""
    configured = configured_store(target)
    if not configured.retention:
        raise ConfigurationError(
            f"the store from {configured.source} has no policies of retention: write [[stores.NAME.retention]] for it "
            "in kode.toml and name it, or name the agents to prune"
        )
    if dry_run or not yes:
        report, doomed = run(_apply(target, configured.retention, dry_run=True))
        if dry_run:
            _show(report, doomed, as_json=as_json)
            return
        agents, records = _sums(report)
        ask(f"Delete {count(agents, 'agent')}, and remove {count(records, 'record')} of others?")
    report, doomed = run(_apply(target, configured.retention, dry_run=False))
    _show(report, doomed, as_json=as_json)


async def _apply(
    target: str | None, policies: Sequence[RetentionPolicy], *, dry_run: bool
) -> tuple[RetentionReport, list[Retained]]:
    """The report, and the first agents that were deleted."""
    doomed: list[Retained] = []

    def keep(one: Retained) -> None:
        if one.outcome == "deleted" and len(doomed) < _SHOWN:
            doomed.append(one)

    async with open_store(target) as store:
        with watched("agents looked at") as progress:
            report = await apply_retention(store, policies, dry_run=dry_run, progress=progress, on_agent=keep)
    return report, doomed


def _sums(report: RetentionReport) -> tuple[int, int]:
    policies = report.policies
    return sum(policy.deleted for policy in policies), sum(total(policy.removed) for policy in policies)


def _show(report: RetentionReport, doomed: Sequence[Retained], *, as_json: bool) -> None:
    agents, records = _sums(report)
    if as_json:
        print_json(wire(report))
    else:
        for one in doomed:
            show(Text(f"{visible(one.agent_id)}: deleted by {visible(one.policy)}"))
        if agents > len(doomed):
            show(Text(f"… and {count(agents - len(doomed), 'agent')} more"))
        show(_table(report))
        verb = "would be" if report.dry_run else "were"
        print_note(f"{count(agents, 'agent')} {verb} deleted, and {count(records, 'record')} of others removed")
        for name, what in _LEFT:
            if number := sum(getattr(policy, name) for policy in report.policies):
                print_note(f"{count(number, 'agent')} left: {what}")
    for problem in report.problems:
        fail(problem)
    if report.damaged:
        raise typer.Exit(1)


def _table(report: RetentionReport) -> RenderableType:
    kinds = [name for name, _ in KINDS if any(getattr(policy.removed, name) for policy in report.policies)]
    rows = (
        (
            visible(policy.name),
            *(f"{getattr(policy, name):,}" for name in ("agents", "deleted", "pruned")),
            *(f"{getattr(policy.removed, name):,}" for name in kinds),
            *(f"{getattr(policy, name):,}" for name, _ in _LEFT),
        )
        for policy in report.policies
    )
    numbers = ("AGENTS", "DELETED", "PRUNED", *(name.replace("_", " ").upper() for name in kinds))
    left = tuple(name.upper() for name, _ in _LEFT)
    return table(("POLICY", *numbers, *left), rows, right=(*numbers, *left), optional=left)
