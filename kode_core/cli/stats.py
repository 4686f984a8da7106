"""``kode stats``: counts for one agent, or for the store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final

import typer
from rich.console import RenderableType
from rich.text import Text

from kode_core.cli.known import require_agent
from kode_core.cli.opening import JsonOption, StoreOption, open_store
from kode_core.cli.options import OptionalAgent
from kode_core.cli.output import count, holdings, print_json, show, state_text, visible, wire
from kode_core.cli.overview import Overview, drawn, overview, plain
from kode_core.cli.queries import run
from kode_core.cli.tables import table
from kode_core.cli.times import LocalOption
from kode_core.errors import InvalidArgumentError
from kode_core.query import AgentStats
from kode_core.report import StorageSize

__all__ = ["EXAMPLES", "stats"]

EXAMPLES: Final = (
    "kode stats",
    "kode stats --days 90 --durations",
    "kode stats tau-000-0",
    "kode stats tau-000-0 --json | jq .toolCallsByState",
)
_MOST_DAYS: Final = 366


def stats(
    agent: OptionalAgent = None,
    days: Annotated[
        int | None, typer.Option("--days", metavar="N", help="Without AGENT: the days of the curves; 30 by default.")
    ] = None,
    durations: Annotated[
        bool, typer.Option("--durations", help="Without AGENT: how long the tools took; reads each call.")
    ] = False,
    local: LocalOption = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Count the messages, tool calls, snapshots and documents of AGENT; without AGENT, what the store holds.

    Tables show the tools of the store with their failures, and the templates. Curves show the agents, messages and tool
    calls of each day. --json has the totals alone unless --days or --durations is given.
    """
    if agent is None:
        number = 30 if days is None else days
        if not 1 <= number <= _MOST_DAYS:
            raise InvalidArgumentError(f"--days must be from 1 to {_MOST_DAYS}, got {number}")
        is_whole = not as_json or days is not None or durations
        size, seen = run(_store(store, number if is_whole else None, durations))
        if as_json:
            totals: Any = wire(size)
            print_json({**totals, **({} if seen is None else plain(seen))})
        else:
            show(Text(holdings(size)), *(() if seen is None or not size.total_agents else drawn(seen)))
        return
    found = run(_stats(store, agent))
    if as_json:
        print_json({"agentId": agent, **wire(found)})
        return
    totals = (
        count(found.total_messages, "message"),
        count(found.total_tool_calls, "tool call"),
        count(found.total_snapshots, "snapshot"),
        count(found.total_documents, "document"),
    )
    show(Text(f"{visible(agent)}: {', '.join(totals)}"))
    if found.total_tool_calls:
        tools = _counts("TOOL", found.tool_calls_by_name, lambda name: Text(visible(name)))
        show(Text(), tools, Text(), _counts("STATE", found.tool_calls_by_state, state_text))


async def _stats(target: str | None, agent_id: str) -> AgentStats:
    async with open_store(target) as store:
        found = await store.aggregate_stats(agent_id)
        if found == AgentStats():
            await require_agent(store, agent_id)
        return found


async def _store(target: str | None, days: int | None, durations: bool) -> tuple[StorageSize, Overview | None]:
    async with open_store(target) as store:
        size = (await store.get_metrics()).storage
        return size, None if days is None else await overview(store, days, durations=durations)


def _counts(title: str, counts: Mapping[str, int], label: Callable[[str], Text]) -> RenderableType:
    by_count = sorted(counts, key=lambda name: (-counts[name], name))
    return table((title, "CALLS"), [(label(name), f"{counts[name]:,}") for name in by_count], right=("CALLS",))
