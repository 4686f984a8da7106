"""``kode events``: print the event log of an agent, and follow it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from typing import Annotated, Any, Final

import typer
from rich.text import Text

from kode_core.cli.conversation import arguments
from kode_core.cli.messages import require_agent
from kode_core.cli.opening import JsonOption, StoreOption, open_store
from kode_core.cli.options import AgentArgument, given
from kode_core.cli.output import (
    count,
    one_line,
    print_json_line,
    print_json_rows,
    print_note,
    printed,
    show_line,
    utc,
    visible,
)
from kode_core.cli.queries import run
from kode_core.errors import AgentDeletedError
from kode_core.model import Bookmark, Json, StoredEvent

__all__ = ["EXAMPLES", "events"]

EXAMPLES: Final = (
    "kode events tau-000-0 --channel monitor",
    "kode events tau-000-0 --follow",
    "kode events tau-000-0 --follow --after-offset 48 --json",
)

_WIDE: Final = 90
"""In a terminal of fewer columns the time would leave no room for the data."""
_CHANNEL_STYLES: Final = {"progress": "green", "control": "yellow", "monitor": "cyan"}


def events(
    agent: AgentArgument,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what any process appends, until Ctrl-C or a delete.")
    ] = False,
    since: Annotated[int | None, typer.Option(metavar="SEQ", help="Only events with a greater seq.")] = None,
    after_offset: Annotated[int | None, typer.Option(metavar="N", help="Only events with a greater offset.")] = None,
    channel: Annotated[str | None, typer.Option(metavar="CHANNEL", help="progress, control or monitor.")] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the events of AGENT; with --follow, also the events that are appended later.

    They come in the order of their seq; with --follow or --after-offset in the order in which they were stored. The
    columns are offset, seq, time in UTC, channel, type and data; a terminal of fewer than 90 columns shows no time.
    With --follow, --json prints JSON Lines, and the command ends with a note when AGENT is deleted.
    """
    wanted: dict[str, Any] = given(
        since=None if since is None else Bookmark(since, 0), after_offset=after_offset, channel=channel
    )
    if follow:
        run(_follow(store, agent, wanted, as_json))
    else:
        run(_read(store, agent, wanted, as_json))


async def _read(target: str | None, agent_id: str, wanted: dict[str, Any], as_json: bool) -> None:
    async with open_store(target) as store:
        found = store.read_events(agent_id, **wanted)
        if await store.last_bookmark(agent_id) is None:
            await require_agent(store, agent_id)
        if as_json:
            await print_json_rows({"agentId": agent_id}, "events", found)
            return
        shown = 0
        async for event in found:
            show_line(_line(event))
            shown += 1
        print_note(count(shown, "event"))


async def _follow(target: str | None, agent_id: str, wanted: dict[str, Any], as_json: bool) -> None:
    async with open_store(target) as store:
        if await store.last_bookmark(agent_id) is None and not await store.exists(agent_id):
            print_note(f"nothing is stored of agent {agent_id!r} yet; waiting for its first event, until Ctrl-C")
        try:
            async for event in store.follow_events(agent_id, **wanted):
                if as_json:
                    print_json_line(event)
                else:
                    show_line(_line(event))
        except AgentDeletedError:
            print_note(f"agent {agent_id!r} was deleted")


def _line(event: StoredEvent) -> Text:
    what = event.event
    is_narrow = sys.stdout.isatty() and shutil.get_terminal_size().columns < _WIDE
    return Text.assemble(
        f"{event.offset:>6} {event.bookmark.seq:>6}  ",
        "" if is_narrow else f"{utc(event.bookmark.timestamp)}  ",
        (f"{visible(what.channel):<8}  ", _CHANNEL_STYLES.get(what.channel, "")),
        f"{visible(what.type):<15}  {one_line(_shown_data(what.data))}",
    )


def _shown_data(data: Mapping[str, Json]) -> str:
    """The fields of an event without its bookmark, which is already shown; of a tool call only the name."""
    rest = {name: value for name, value in data.items() if name != "bookmark"}
    call = rest.get("call")
    if isinstance(call, dict) and "name" in call:
        del rest["call"]
        return f"{printed(call['name'])} {arguments(rest)}"
    return arguments(rest)
