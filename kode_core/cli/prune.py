"""``kode prune``: remove the parts of agents that are no longer needed."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, Final

import typer
from rich.text import Text

from kode_core.cli.messages import require_agent
from kode_core.cli.opening import JsonOption, StoreOption, open_store
from kode_core.cli.options import given, time_option
from kode_core.cli.output import count, print_json, print_note, show, visible, watched, wire
from kode_core.cli.queries import run
from kode_core.errors import InvalidArgumentError
from kode_core.model import Bookmark
from kode_core.protocols import ExtendedStore
from kode_core.query import AgentStats
from kode_core.report import PruneResult

__all__ = ["EXAMPLES", "prune"]

EXAMPLES: Final = (
    "kode prune tau-000-0 --events-before 30d --keep-snapshots 10 --dry-run",
    "kode prune tau-000-0 tau-000-1 --keep-snapshots 10 --yes",
    "kode prune tau-000-0 --events-before-offset 5000 --yes --json",
)

_KINDS: Final = (
    ("events", "event"),
    ("snapshots", "snapshot"),
    ("history_windows", "history window"),
    ("compression_records", "compression record"),
    ("recovered_files", "recovered file"),
)


def _keep(name: str, what: str) -> Any:
    return typer.Option(name, metavar="N", min=0, help=f"Keep the newest N {what}, and remove the others.")


def prune(
    agents: Annotated[list[str], typer.Argument(metavar="AGENT...", help="Ids of agents.")],
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
    always stays. Messages, tool calls, todos and the info stay as they are.
    """
    wanted = given(
        events_before_offset=events_before_offset,
        events_before=events_before,
        keep_snapshots=keep_snapshots,
        keep_history_windows=keep_history_windows,
        keep_compression_records=keep_compression_records,
        keep_recovered_files=keep_recovered_files,
    )
    if not wanted:
        raise InvalidArgumentError("say what to remove, such as --events-before 30d or --keep-snapshots 10")
    agents = list(dict.fromkeys(agents))
    if dry_run or not yes:
        counted = run(_count(store, agents, wanted))
        if dry_run:
            _show(counted, "would be removed", as_json=as_json)
            return
        _ask(sum(map(_total, counted.values())))
    _show(run(_prune(store, agents, wanted)), "removed", as_json=as_json)


def _total(result: PruneResult) -> int:
    return sum(getattr(result, name) for name, _ in _KINDS)


def _show(results: dict[str, PruneResult], verb: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"agents": [{"agentId": agent_id, **wire(result)} for agent_id, result in results.items()]})
        return
    for agent_id, result in results.items():
        counts = [count(number, noun) for name, noun in _KINDS if (number := getattr(result, name))]
        show(Text(f"{visible(agent_id)}: {', '.join(counts) or 'nothing'}"))
    print_note(f"{count(sum(map(_total, results.values())), 'record')} {verb}")


def _ask(number: int) -> None:
    if not sys.stdin.isatty():
        raise InvalidArgumentError(
            "stdin is not a terminal, so the command cannot ask: give --yes to remove, or --dry-run to count"
        )
    typer.confirm(f"Remove {count(number, 'record')}?", abort=True, err=True)


async def _count(target: str | None, agents: Sequence[str], wanted: dict[str, Any]) -> dict[str, PruneResult]:
    """What a prune would remove now."""
    async with open_store(target) as store:
        return {agent_id: await _count_one(store, agent_id, wanted) for agent_id in agents}


async def _require(store: ExtendedStore, agent_id: str) -> None:
    """Raise AgentNotFoundError unless something is stored for the agent."""
    if await store.last_bookmark(agent_id) is None and await store.aggregate_stats(agent_id) == AgentStats():
        await require_agent(store, agent_id)


async def _count_one(store: ExtendedStore, agent_id: str, wanted: dict[str, Any]) -> PruneResult:
    await _require(store, agent_id)
    loads: dict[str, Callable[[str], Awaitable[Sequence[Any]]]] = {
        "snapshots": store.list_snapshots,
        "history_windows": store.load_history_windows,
        "compression_records": store.load_compression_records,
        "recovered_files": store.load_recovered_files,
    }
    counts = {
        name: max(len(await load(agent_id)) - wanted[f"keep_{name}"], 0)
        for name, load in loads.items()
        if f"keep_{name}" in wanted
    }
    return PruneResult(events=await _count_events(store, agent_id, wanted), **counts)


async def _count_events(store: ExtendedStore, agent_id: str, wanted: dict[str, Any]) -> int:
    offset, time = wanted.get("events_before_offset"), wanted.get("events_before")
    last = await store.last_bookmark(agent_id)
    if last is None or (offset is None and time is None):
        return 0
    kept = -1
    async for event in store.read_events(agent_id, since=Bookmark(last.seq - 1, 0)):
        kept = event.offset
    number = 0
    async for event in store.read_events(agent_id, after_offset=0):
        if (offset is not None and event.offset >= offset) or (time is not None and event.bookmark.timestamp >= time):
            break
        number += event.offset != kept
    return number


async def _prune(target: str | None, agents: Sequence[str], wanted: dict[str, Any]) -> dict[str, PruneResult]:
    async with open_store(target) as store:
        for agent_id in agents:
            await _require(store, agent_id)
        results = {}
        for agent_id in agents:
            with watched(f"{visible(agent_id)}: removed") as progress:
                results[agent_id] = await store.prune(agent_id, **wanted, progress=progress)
        return results
