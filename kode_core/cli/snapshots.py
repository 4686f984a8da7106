"""``kode snapshots``: list the snapshots of an agent, from which it can be forked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.console import RenderableType

from kode_core.cli.known import require_agent
from kode_core.cli.opening import JsonOption, StoreOption, open_store
from kode_core.cli.options import AgentArgument
from kode_core.cli.output import count, one_line, print_json, print_note, printed, show, utc, visible
from kode_core.cli.queries import run
from kode_core.cli.tables import table
from kode_core.model import Json, Snapshot

__all__ = ["EXAMPLES", "snapshots"]

EXAMPLES: Final = ("kode snapshots tau-000-0", "kode snapshots tau-000-0 --json | jq '.snapshots\\[].id'")


def snapshots(
    agent: AgentArgument,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the snapshots of AGENT, newest first, each with its number of messages."""
    found = run(_fetch(store, agent))
    if as_json:
        print_json({"agentId": agent, "snapshots": [_plain(one) for one in found]})
        return
    if found:
        show(_table(found))
    print_note(count(len(found), "snapshot"))


async def _fetch(target: str | None, agent_id: str) -> Sequence[Snapshot]:
    async with open_store(target) as store:
        found = await store.list_snapshots(agent_id)
        if not found:
            await require_agent(store, agent_id)
        return found


def _plain(snapshot: Snapshot) -> Json:
    """A snapshot without its messages, which may be a whole conversation each time."""
    return {
        "id": snapshot.id,
        "createdAt": snapshot.created_at,
        "messageCount": len(snapshot.messages),
        "lastSfpIndex": snapshot.last_sfp_index,
        "metadata": snapshot.metadata,
    }


def _table(found: Sequence[Snapshot]) -> RenderableType:
    rows = (
        (visible(one.id), utc(one.created_at), f"{len(one.messages):,}", one_line(printed(one.metadata or {})))
        for one in found
    )
    return table(
        ("SNAPSHOT", "CREATED (UTC)", "MESSAGES", "METADATA"), rows, right=("MESSAGES",), optional=("METADATA",)
    )
