"""``kode locks``: whether agents are held by a worker."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer
from rich.text import Text

from kode_core.cli.opening import JsonOption, StoreOption, open_store
from kode_core.cli.options import agent_argument
from kode_core.cli.output import count, print_json, print_note, show, visible
from kode_core.cli.queries import run
from kode_core.cli.tables import table
from kode_core.errors import LockUnavailableError
from kode_core.ids import check_agent_id
from kode_core.protocols import ExtendedStore

__all__ = ["EXAMPLES", "locks"]

EXAMPLES: Final = (
    "kode locks tau-000-0",
    "kode locks tau-000-0 tau-000-1 --json | jq '.locks[] | select(.held)'",
    "kode locks tau-000-0 --wait 60",
)
_TTL_MS: Final = 2_000
"""A process that is killed while it looks holds the lock no longer."""
_LONGEST_WAIT_S: Final = 86_400


def locks(
    agents: Annotated[list[str], agent_argument("The ids of agents.")],
    wait: Annotated[
        int,
        typer.Option("--wait", min=0, max=_LONGEST_WAIT_S, metavar="SECONDS", help="Wait so long for each lock."),
    ] = 0,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say of each AGENT whether a worker holds its lock.

    A store tells no owner and no end of a lock. The command takes each lock and releases it at once: a worker that asks
    for it in that moment, and does not wait, is refused. TOKEN is the fencing token that the command got; the tokens of
    later holders are greater. The status is 1 if a lock is held.
    """
    for agent in agents:
        check_agent_id(agent)
    found = run(_looked(store, list(dict.fromkeys(agents)), wait * 1000))
    held = [one for one in found if one["held"]]
    if as_json:
        print_json({"locks": found})
    else:
        rows = [
            (Text(visible(one["agentId"])), "held" if one["held"] else "free", str(one["token"] or ""), _exists(one))
            for one in found
        ]
        show(table(("AGENT", "LOCK", "TOKEN", "AGENT IS"), rows, right=("TOKEN",)))
        print_note(f"{count(len(held), 'lock')} held")
    if held:
        raise typer.Exit(1)


def _exists(one: dict[str, Any]) -> str:
    return "stored" if one["exists"] else "unknown"


async def _looked(target: str | None, agents: list[str], wait_ms: int) -> list[dict[str, Any]]:
    async with open_store(target) as store:
        return [await _look(store, agent, wait_ms) for agent in agents]


async def _look(store: ExtendedStore, agent_id: str, wait_ms: int) -> dict[str, Any]:
    token = None
    try:
        lease = await store.acquire_agent_lock(agent_id, ttl_ms=_TTL_MS, wait_ms=wait_ms)
    except LockUnavailableError:
        pass
    else:
        token = lease.token
        await lease.release()
    return {"agentId": agent_id, "held": token is None, "token": token, "exists": await store.exists(agent_id)}
