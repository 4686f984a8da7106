"""``kode messages``: read a conversation, or list messages of many agents."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer
from rich.console import RenderableType
from rich.text import Text

from kode_core.cli.conversation import brief, conversation_texts
from kode_core.cli.groups import SortOption, UtcOffsetOption, by_option, report_groups
from kode_core.cli.known import require_agent
from kode_core.cli.opening import JsonOption, StoreOption, open_store
from kode_core.cli.options import (
    AllOption,
    CountOption,
    CreatedAfter,
    CreatedBefore,
    CursorOption,
    LimitOption,
    OffsetOption,
    OptionalAgent,
    OrderOption,
    filter_option,
    given,
    metadata_filter,
)
from kode_core.cli.output import print_json, show
from kode_core.cli.queries import fetch_known, report, report_count, run
from kode_core.cli.tables import table
from kode_core.cli.times import LocalOption, SinceOption, UntilOption, between, moment, zone
from kode_core.model import Message, StoredMessage
from kode_core.protocols import QueryableStore
from kode_core.query import DEFAULT_LIMIT, Page

__all__ = ["EXAMPLES", "messages"]

EXAMPLES: Final = (
    "kode messages tau-000-0",
    "kode messages tau-000-0 --full",
    "kode messages --role assistant --content-type tool_use --limit 20",
    "kode messages --contains 'no seats' --created-after 7d",
)


def messages(
    agent: OptionalAgent = None,
    role: Annotated[
        list[str] | None, filter_option(metavar="ROLE", help="user, assistant or system. May be repeated.")
    ] = None,
    content_type: Annotated[
        list[str] | None,
        filter_option(
            metavar="TYPE", help="With a block of that type: text, tool_use, tool_result, … May be repeated."
        ),
    ] = None,
    contains: Annotated[
        str | None,
        filter_option(metavar="TEXT", help="With this text, in upper or lower case, also in results of tools."),
    ] = None,
    metadata: Annotated[
        list[str] | None,
        filter_option(
            "--metadata", metavar="KEY=VALUE", help="With this metadata; VALUE is JSON, or else text. May be repeated."
        ),
    ] = None,
    since: SinceOption = None,
    until: UntilOption = None,
    created_after: CreatedAfter = None,
    created_before: CreatedBefore = None,
    order: OrderOption = None,
    limit: LimitOption = None,
    offset: OffsetOption = None,
    cursor: CursorOption = None,
    everything: AllOption = False,
    count: CountOption = False,
    by: Annotated[list[str] | None, by_option("agent_id, role or day")] = None,
    utc_offset: UtcOffsetOption = None,
    sort: SortOption = None,
    full: Annotated[bool, typer.Option("--full", help="Show conversations, and ids in lists, unshortened.")] = False,
    local: LocalOption = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the conversation of AGENT, with the time at which each message was stored.

    With a filter, or without AGENT, list the messages that match instead, newest first.
    """
    filters = given(
        role=role,
        content_type=content_type,
        contains=contains,
        metadata=metadata_filter(metadata),
        created_after=created_after,
        created_before=created_before,
        order=order,
        limit=limit,
        offset=offset,
        cursor=cursor,
    )
    between(filters, since, until)
    grouped = given(utc_offset_minutes=utc_offset)
    if by or grouped or sort:
        asked = {**given(agent_id=agent), **filters, **grouped}
        report_groups(store, lambda s: s.group_messages, by or [], asked, as_json, sort)
        return
    if count:
        report_count(store, lambda s: s.count_messages, {**given(agent_id=agent), **filters}, as_json)
        return
    if agent is not None and not filters and not everything:
        _show_conversation(agent, run(_load(store, agent)), full, as_json)
        return
    page = run(_fetch(store, {**given(agent_id=agent), **filters}, everything))
    report(page, "message", "messages", as_json, lambda found: _table(found, full=full))


def _show_conversation(agent_id: str, found: list[Message], full: bool, as_json: bool) -> None:
    if as_json:
        print_json({"agentId": agent_id, "messages": found})
    else:
        show(*conversation_texts(found, full=full))


async def _load(target: str | None, agent_id: str) -> list[Message]:
    async with open_store(target) as store:
        found = await store.load_messages(agent_id)
        if not found:
            await require_agent(store, agent_id)
        await _add_times(store, agent_id, found)
        return found


async def _add_times(store: QueryableStore, agent_id: str, found: list[Message]) -> None:
    """Put in each message's place the one that queries return, with its time.

    The list is of one instant, which the pages of a query are not: one that a query does not find yet, or no more,
    stays without a time.
    """
    async for message in store.iter_messages(agent_id=agent_id):
        place = message.position
        if place < len(found) and message == found[place]:
            found[place] = message


async def _fetch(target: str | None, filters: dict[str, Any], everything: bool) -> Page[StoredMessage]:
    async with open_store(target) as store:
        page = await fetch_known(store, store.query_messages, store.iter_messages, filters, everything)
        limit = filters.get("limit", DEFAULT_LIMIT)
        asked = {name: value for name, value in filters.items() if name != "offset"}
        while page.next_cursor is not None and len(page) < limit:  # one call reads a bounded number (QRY-12)
            rest = await store.query_messages(**{**asked, "limit": limit - len(page), "cursor": page.next_cursor})
            page = Page([*page, *rest], rest.next_cursor, (*page.left_out, *rest.left_out))
        return page


def _table(page: Page[StoredMessage], *, full: bool) -> RenderableType:
    rows = (
        (message.agent_id, str(message.position), moment(message.created_at), message.role, Text(brief(message)))
        for message in page
    )
    columns = ("AGENT", "#", f"STORED ({zone()})", "ROLE", "CONTENT")
    return table(columns, rows, right=("#",), optional=(f"STORED ({zone()})",), shorten=not full)
