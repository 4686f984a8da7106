"""``kode show``: a conversation at a glance."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer
from rich.text import Text

from kode_core.cli.folded import calls_of, folded
from kode_core.cli.known import require_agent
from kode_core.cli.opening import JsonOption, StoreOption, open_store
from kode_core.cli.options import AgentArgument
from kode_core.cli.output import count, is_whole, print_json, print_note, show, visible, wire
from kode_core.cli.queries import run
from kode_core.cli.times import LocalOption, moment, zone
from kode_core.errors import InvalidArgumentError
from kode_core.model import AgentInfo, StoredMessage, ToolCallRecord, ToolUseBlock

__all__ = ["EXAMPLES", "show_agent"]

EXAMPLES: Final = (
    "kode show tau-000-0",
    "kode show tau-000-0 --last 200 --local",
    "kode show tau-000-0 --before 40",
    "kode show tau-000-0 --json | jq '.calls[] | select(.mark == \"FAILED\")'",
)

_MOST: Final = 10_000


def show_agent(
    agent: AgentArgument,
    last: Annotated[int, typer.Option("--last", "-n", metavar="N", help="The last N messages.")] = 50,
    before: Annotated[
        int | None, typer.Option("--before", metavar="POSITION", help="Only messages before that one: the page before.")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Show texts, arguments and results unshortened.")] = False,
    local: LocalOption = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the end of AGENT's conversation, with each call of a tool and its result in one row.

    Errors, denied calls and calls that wait for an approval are marked. A terminal gets the
    beginnings of long texts and values unless --full is given. A note says how to get the page before.
    """
    if not 1 <= last <= _MOST:
        raise InvalidArgumentError(f"--last must be from 1 to {_MOST:,}, got {last}")
    info, page, records = run(_load(store, agent, last, before))
    if as_json:
        calls = [
            {"position": position, **plain}
            for (position, _), call in calls_of(page, records).items()
            if isinstance(plain := {name: value for name, value in call._asdict().items() if name != "style"}, dict)
        ]
        print_json({"agentId": agent, "messages": [wire(one) for one in page], "calls": _camel(calls)})
        return
    show(_head(agent, info), *folded(page, records, full=full))
    first = page[0].position if page else 0
    note = count(len(page), "message")
    if first:
        note += f"; {first:,} before: --before {first}, or a larger --last"
    print_note(note if is_whole(full) else f"{note}; --full shows long ones in full")


def _camel(calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"durationMs" if name == "duration_ms" else name: value for name, value in one.items()} for one in calls]


async def _load(
    target: str | None, agent_id: str, last: int, before: int | None
) -> tuple[AgentInfo | None, list[StoredMessage], list[ToolCallRecord]]:
    """The page, in order, and the records of the calls in it: no more than a page of messages is held."""
    async with open_store(target) as store:
        info = await store.load_info(agent_id)
        page: list[StoredMessage] = []
        async for message in store.read_messages(agent_id, before=before, reverse=True):
            page.append(message)
            if len(page) == last:
                break
        if not page and info is None:
            await require_agent(store, agent_id)
        page.reverse()
        requested = {block.id for message in page for block in message.content if isinstance(block, ToolUseBlock)}
        records = (
            [record async for record in store.iter_tool_calls(agent_id=agent_id, order="asc") if record.id in requested]
            if requested
            else []
        )
        return info, page, list(records)


def _head(agent_id: str, info: AgentInfo | None) -> Text:
    head = Text(visible(agent_id), "bold")
    if info is not None:
        parts = [info.template_id, f"created {moment(info.created_at)} {zone()}", count(info.message_count, "message")]
        if info.breakpoint:
            parts.append(info.breakpoint)
        if info.lineage:
            parts.append(f"forked from {info.lineage[-1]}")
        head.append(f"  {visible(', '.join(parts))}", "dim")
    return head
