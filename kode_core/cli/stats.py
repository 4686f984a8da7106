"""``kode stats``: counts for one agent, or for the store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Final

import typer
from rich.console import RenderableType
from rich.text import Text

from kode_core.cli.messages import require_agent
from kode_core.cli.opening import JsonOption, StoreOption, open_store
from kode_core.cli.output import count, holdings, print_json, show, state_text, visible, wire
from kode_core.cli.queries import run
from kode_core.cli.tables import table
from kode_core.query import AgentStats
from kode_core.report import StorageSize

__all__ = ["EXAMPLES", "stats"]

EXAMPLES: Final = ("kode stats", "kode stats tau-000-0", "kode stats tau-000-0 --json | jq .toolCallsByState")


def stats(
    agent: Annotated[str | None, typer.Argument(metavar="AGENT", help="The id of an agent.")] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Count the messages, tool calls, snapshots and documents of AGENT; without AGENT, print the store's totals."""
    if agent is None:
        size = run(_size(store))
        if as_json:
            print_json(wire(size))
        else:
            show(Text(holdings(size)))
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


async def _size(target: str | None) -> StorageSize:
    async with open_store(target) as store:
        return (await store.get_metrics()).storage


def _counts(title: str, counts: Mapping[str, int], label: Callable[[str], Text]) -> RenderableType:
    by_count = sorted(counts, key=lambda name: (-counts[name], name))
    return table((title, "CALLS"), [(label(name), f"{counts[name]:,}") for name in by_count], right=("CALLS",))
