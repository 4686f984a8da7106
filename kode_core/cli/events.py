"""``kode events``: print the event log of an agent or of all agents, and follow it."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any, Final, NamedTuple

import typer
from rich.text import Text

from kode_core.cli.conversation import arguments
from kode_core.cli.following import follow_all
from kode_core.cli.known import require_agent
from kode_core.cli.opening import JsonOption, StoreOption, open_store
from kode_core.cli.options import OptionalAgent, given
from kode_core.cli.output import (
    count,
    one_line,
    print_json_line,
    print_json_rows,
    print_note,
    printed,
    show_line,
    visible,
    wire,
)
from kode_core.cli.queries import run
from kode_core.cli.times import LocalOption, UntilOption, clock, moment, read_time
from kode_core.errors import AgentDeletedError, InvalidArgumentError
from kode_core.model import Bookmark, Json, StoredEvent
from kode_core.protocols import ExtendedStore

__all__ = ["EXAMPLES", "events"]

EXAMPLES: Final = (
    "kode events tau-000-0 --channel monitor",
    "kode events tau-000-0 --follow",
    "kode events tau-000-0 --follow --after-offset 48 --json",
    "kode events --all --since 1h",
    "kode events --all --follow --local",
)

_WIDE: Final = 90
"""In a terminal of fewer columns the date would leave no room for the data; all agents' events show the time alone."""
_MOST: Final = 1_000
_CHANNEL_STYLES: Final = {"progress": "green", "control": "yellow", "monitor": "cyan"}


class Since(NamedTuple):
    """The value of ``--since``: a seq, or a time in milliseconds."""

    seq: int | None = None
    time: int | None = None


def _read_since(text: str) -> Since:
    if re.fullmatch(r"-?[0-9]{1,8}", text):
        return Since(seq=int(text))
    return Since(time=read_time(text))


class _Wanted(NamedTuple):
    """The events to print: the arguments of the store's methods, and the times, which no method filters by."""

    filters: dict[str, Any]
    since: int | None
    until: int | None

    def has(self, event: StoredEvent) -> bool:
        at = event.bookmark.timestamp
        return (self.since is None or at >= self.since) and (self.until is None or at < self.until)


def events(
    agent: OptionalAgent = None,
    everything: Annotated[
        bool, typer.Option("--all", help="The events of all agents; with --follow, of the agents that changed last.")
    ] = False,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what any process appends, until Ctrl-C or a delete.")
    ] = False,
    since: Annotated[
        Since | None,
        typer.Option(
            parser=_read_since, metavar="SEQ|TIME", help="Only events with a greater seq, or from that time on."
        ),
    ] = None,
    until: UntilOption = None,
    after_offset: Annotated[int | None, typer.Option(metavar="N", help="Only events with a greater offset.")] = None,
    channel: Annotated[str | None, typer.Option(metavar="CHANNEL", help="progress, control or monitor.")] = None,
    most: Annotated[
        int, typer.Option("--agents", metavar="N", help="With --all --follow: the most agents that are followed.")
    ] = 100,
    local: LocalOption = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the events of AGENT, or of --all agents; with --follow, also the events that are appended later.

    They come in the order of their seq; with --follow or --after-offset in the order in which they were stored. The
    columns are offset, seq, time in UTC, channel, type and data; a terminal of fewer than 90 columns shows no time.
    With --follow, --json prints JSON Lines, and the command ends with a note when AGENT is deleted.

    With --all, agents come one after the other, and with --follow the events from now on, or from --since on, as they
    are stored. Only the --agents that changed last are followed at a time; agents that appear or change take the places
    of others.
    """
    if (agent is None) is not everything:
        raise InvalidArgumentError("name an agent, or give --all, and not both")
    seq, time = since or Since()
    filters: dict[str, Any] = given(
        since=None if seq is None else Bookmark(seq, 0), after_offset=after_offset, channel=channel
    )
    wanted = _Wanted(filters, time, until)
    if agent is not None:
        run((_follow if follow else _read)(store, agent, wanted, as_json))
        return
    if seq is not None or after_offset is not None:
        raise InvalidArgumentError("a seq and an offset are of one agent; with --all give --since a time")
    if not 1 <= most <= _MOST:
        raise InvalidArgumentError(f"--agents must be from 1 to {_MOST:,}, got {most}")
    run(_follow_all(store, wanted, as_json, most) if follow else _read_all(store, wanted, as_json))


async def _read(target: str | None, agent_id: str, wanted: _Wanted, as_json: bool) -> None:
    async with open_store(target) as store:
        found = _those(store.read_events(agent_id, **wanted.filters), wanted)
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


async def _those(found: AsyncIterator[StoredEvent], wanted: _Wanted) -> AsyncIterator[StoredEvent]:
    async for event in found:
        if wanted.has(event):
            yield event


async def _follow(target: str | None, agent_id: str, wanted: _Wanted, as_json: bool) -> None:
    async with open_store(target) as store:
        if await store.last_bookmark(agent_id) is None and not await store.exists(agent_id):
            print_note(f"nothing is stored of agent {agent_id!r} yet; waiting for its first event, until Ctrl-C")
        try:
            async for event in _those(store.follow_events(agent_id, **wanted.filters), wanted):
                if as_json:
                    print_json_line(event)
                else:
                    show_line(_line(event))
        except AgentDeletedError:
            print_note(f"agent {agent_id!r} was deleted")


# --- all agents -------------------------------------------------------------------------------------------------------


async def _read_all(target: str | None, wanted: _Wanted, as_json: bool) -> None:
    async with open_store(target) as store:
        found = _of_all(store, wanted)
        if as_json:
            await print_json_rows({"agents": "all"}, "events", _as_json(found))
            return
        shown = 0
        async for agent_id, event in found:
            show_line(_line(event, agent_id))
            shown += 1
        print_note(count(shown, "event"))


async def _as_json(found: AsyncIterator[tuple[str, StoredEvent]]) -> AsyncIterator[Json]:
    """The events with the ids of their agents."""
    async for agent_id, event in found:
        yield _with_agent(agent_id, event)


async def _of_all(store: ExtendedStore, wanted: _Wanted) -> AsyncIterator[tuple[str, StoredEvent]]:
    """The events of all agents, one agent after the other; one that is deleted meanwhile ends early."""
    for agent_id in await store.list():
        async for event in _those(store.read_events(agent_id, **wanted.filters), wanted):
            yield agent_id, event


async def _follow_all(target: str | None, wanted: _Wanted, as_json: bool, most: int) -> None:
    async with open_store(target) as store:
        async for agent_id, event in follow_all(store, most, wanted.since, wanted.filters):
            if not wanted.has(event):
                continue
            if as_json:
                print_json_line(_with_agent(agent_id, event))
            else:
                show_line(_line(event, agent_id))


def _with_agent(agent_id: str, event: StoredEvent) -> Json:
    plain: Any = wire(event)
    return {"agentId": agent_id, **plain}


# --- lines ------------------------------------------------------------------------------------------------------------


def _line(event: StoredEvent, agent_id: str | None = None) -> Text:
    what = event.event
    is_narrow = sys.stdout.isatty() and shutil.get_terminal_size().columns < _WIDE
    if agent_id is None:
        place = f"{event.offset:>6} {event.bookmark.seq:>6}  "
        at = "" if is_narrow else f"{moment(event.bookmark.timestamp)}  "
    else:
        place = f"{one_line(agent_id, 12 if is_narrow else 36):<12}  "
        at = f"{(clock if is_narrow else moment)(event.bookmark.timestamp)}  "
    return Text.assemble(
        place,
        at,
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
