"""``kode prune``: remove the parts of agents that are no longer needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final, NamedTuple

import typer
from rich.text import Text

from kode_core.cli.known import require_agents
from kode_core.cli.opening import JsonOption, StoreOption, open_store
from kode_core.cli.options import agent_argument, given, time_option
from kode_core.cli.output import count, fail, print_json, print_note, show, visible, watched, wire
from kode_core.cli.queries import run
from kode_core.cli.retention import KINDS, apply_policies, ask, total
from kode_core.errors import CorruptRecordError, InvalidArgumentError, KodeError
from kode_core.report import PruneResult

__all__ = ["EXAMPLES", "prune"]

EXAMPLES: Final = (
    "kode prune --dry-run",
    "kode prune tau-000-0 --events-before 30d --keep-snapshots 10 --dry-run",
    "kode prune tau-000-0 tau-000-1 --keep-snapshots 10 --yes",
    "kode prune tau-000-0 --events-before-offset 5000 --yes --json",
)


def _keep(name: str, what: str) -> Any:
    return typer.Option(name, metavar="N", min=0, help=f"Keep the newest N {what}, and remove the others.")


def prune(
    agents: Annotated[
        list[str] | None, agent_argument("Ids of agents; without any the policies count.", "AGENT...")
    ] = None,
    events_before_offset: Annotated[
        int | None,
        typer.Option("--events-before-offset", metavar="OFFSET", min=0, help="Remove events with a lesser offset."),
    ] = None,
    events_before: Annotated[
        int | None,
        time_option("--events-before", "Remove events up to the first one that is not earlier, as in 30d.", None),
    ] = None,
    keep_snapshots: Annotated[int | None, _keep("--keep-snapshots", "snapshots")] = None,
    keep_history_windows: Annotated[int | None, _keep("--keep-history-windows", "history windows")] = None,
    keep_compression_records: Annotated[int | None, _keep("--keep-compression-records", "compression records")] = None,
    keep_recovered_files: Annotated[int | None, _keep("--keep-recovered-files", "recovered files")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count the records, and remove nothing.")] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove events, snapshots and history of agents that are no longer needed.

    The command counts the records first, and asks before it removes them. The last event, from which producers go on,
    always stays. Messages, tool calls, todos and the info stay as they are. An agent with a damaged record is reported,
    with exit code 1, and the others are pruned.

    Without agents the command applies the policies of retention that kode.toml has for the store, by which agents are
    deleted, too. Agents whose lock a worker holds, and agents that change meanwhile, are left and counted.
    """
    wanted = given(
        events_before_offset=events_before_offset,
        events_before=events_before,
        keep_snapshots=keep_snapshots,
        keep_history_windows=keep_history_windows,
        keep_compression_records=keep_compression_records,
        keep_recovered_files=keep_recovered_files,
    )
    if not agents:
        if wanted:
            raise InvalidArgumentError("name the agents to prune; without them kode.toml says what to remove")
        apply_policies(store, yes=yes, dry_run=dry_run, as_json=as_json)
        return
    if not wanted:
        raise InvalidArgumentError("say what to remove, such as --events-before 30d or --keep-snapshots 10")
    agents = list(dict.fromkeys(agents))
    if dry_run or not yes:
        counted = run(_prune(store, agents, wanted, dry_run=True))
        if dry_run:
            _show(counted, "would be removed", as_json=as_json)
            return
        ask(f"Remove {count(sum(map(total, counted.results.values())), 'record')}?")
    _show(run(_prune(store, agents, wanted, dry_run=False)), "removed", as_json=as_json)


class _Pruned(NamedTuple):
    """The agents that were pruned or counted, and the errors of the others."""

    results: dict[str, PruneResult]
    errors: dict[str, KodeError]


def _show(pruned: _Pruned, verb: str, *, as_json: bool) -> None:
    """Print the numbers, and then the errors, with which the command fails."""
    results, errors = pruned
    if as_json:
        shown = {"agents": [{"agentId": agent_id, **wire(result)} for agent_id, result in results.items()]}
        failed = [{"agentId": agent_id, "error": _text_of(error)} for agent_id, error in errors.items()]
        print_json({**shown, "failed": failed} if failed else shown)
    else:
        for agent_id, result in results.items():
            counts = [count(number, noun) for name, noun in KINDS if (number := getattr(result, name))]
            show(Text(f"{visible(agent_id)}: {', '.join(counts) or 'nothing'}"))
        print_note(f"{count(sum(map(total, results.values())), 'record')} {verb}")
    for agent_id, error in errors.items():
        fail(f"{agent_id}: {_text_of(error)}")
    if errors:
        raise typer.Exit(1)


def _text_of(error: KodeError) -> str:
    return "; ".join([str(error), *getattr(error, "__notes__", ())])


async def _prune(target: str | None, agents: Sequence[str], wanted: dict[str, Any], *, dry_run: bool) -> _Pruned:
    """Prune the agents, or count; one that is damaged does not keep the others from it, any other error ends it."""
    pruned = _Pruned({}, {})
    async with open_store(target) as store:
        await require_agents(store, agents)
        for agent_id in agents:
            try:
                with watched(f"{visible(agent_id)}: {'counted' if dry_run else 'removed'}") as progress:
                    pruned.results[agent_id] = await store.prune(agent_id, **wanted, dry_run=dry_run, progress=progress)
            except KodeError as exc:
                pruned.errors[agent_id] = exc
                if not isinstance(exc, CorruptRecordError):
                    break
    return pruned
