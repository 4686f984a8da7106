"""``kode sessions``: the agents of a store."""

from __future__ import annotations

from typing import Annotated, Any, Final

from rich.console import RenderableType

from kode_core.cli.groups import SortOption, UtcOffsetOption, by_option, report_groups
from kode_core.cli.opening import JsonOption, StoreOption, open_store
from kode_core.cli.options import (
    AgentsOption,
    AllOption,
    CountOption,
    CreatedAfter,
    CreatedBefore,
    CursorOption,
    FullOption,
    LimitOption,
    MetadataOption,
    OffsetOption,
    OrderOption,
    PrefixOption,
    TemplatesOption,
    UsersOption,
    given,
    metadata_filter,
    paging_option,
    time_option,
)
from kode_core.cli.output import is_whole, one_line, printed
from kode_core.cli.queries import fetch_known, report, report_count, run
from kode_core.cli.tables import table
from kode_core.cli.times import LocalOption, SinceOption, UntilOption, between, moment, zone
from kode_core.model import Json
from kode_core.query import Page, SessionInfo, Within

__all__ = ["EXAMPLES", "session_table", "sessions"]

_VALUE_SHOWN: Final = 60

EXAMPLES: Final = (
    "kode sessions --template tau-airline --metadata reward=1.0",
    "kode sessions --prefix support- --limit 20",
    "kode sessions --since yesterday --sort-by updated_at --local",
    "kode sessions --all --json | jq -r '.sessions\\[].agentId'",
)


def sessions(
    agent: AgentsOption = None,
    prefix: PrefixOption = None,
    template: TemplatesOption = None,
    user: UsersOption = None,
    metadata: MetadataOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    created_after: CreatedAfter = None,
    created_before: CreatedBefore = None,
    updated_after: Annotated[int | None, time_option("--updated-after", "Changed then or later.")] = None,
    updated_before: Annotated[int | None, time_option("--updated-before", "Last changed earlier than that.")] = None,
    sort_by: Annotated[
        str | None, paging_option(metavar="KEY", help="created_at, which is the default, updated_at or message_count.")
    ] = None,
    order: OrderOption = None,
    limit: LimitOption = None,
    offset: OffsetOption = None,
    cursor: CursorOption = None,
    everything: AllOption = False,
    count: CountOption = False,
    by: Annotated[list[str] | None, by_option("template_id or day")] = None,
    utc_offset: UtcOffsetOption = None,
    sort: SortOption = None,
    full: FullOption = False,
    local: LocalOption = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """List agents, newest first.

    --since and --until find the agents that were in use between two times: changed since the first, and created before
    the second.
    """
    filters = given(
        agent_id=_whose(agent, prefix),
        template_id=template,
        user_id=user,
        metadata=metadata_filter(metadata),
        created_after=created_after,
        created_before=created_before,
        updated_after=updated_after,
        updated_before=updated_before,
        sort_by=sort_by,
        order=order,
        limit=limit,
        offset=offset,
        cursor=cursor,
    )
    between(filters, since, until, "updated_after")
    grouped = given(utc_offset_minutes=utc_offset)
    if by or grouped or sort:
        report_groups(store, lambda s: s.group_sessions, by or [], {**filters, **grouped}, as_json, sort)
        return
    if count:
        report_count(store, lambda s: s.count_sessions, filters, as_json)
        return
    page = run(_fetch(store, filters, everything))
    report(page, "session", "sessions", as_json, lambda found: session_table(found, full=full))


def _whose(agents: list[str] | None, prefix: str | None) -> Within | tuple[str, ...] | None:
    """The filter of agents; a prefix that none of the named ones has finds nothing."""
    if not prefix:
        return tuple(agents) if agents else None
    if agents:
        return tuple(one for one in agents if one.startswith(prefix))
    return Within(prefix)


async def _fetch(target: str | None, filters: dict[str, Any], everything: bool) -> Page[SessionInfo]:
    async with open_store(target) as store:
        return await fetch_known(store, store.query_sessions, store.iter_sessions, filters, everything)


def session_table(page: list[SessionInfo], *, full: bool = True) -> RenderableType:
    """Sessions as a table; the metadata takes the rest of the terminal's width, and may be cut.

    Unless *full*, a terminal gets shortened values of the metadata, and a narrow one shortened ids, too.
    """
    rows = (
        (
            session.agent_id,
            session.template_id,
            f"{session.message_count:,}",
            moment(session.created_at),
            moment(session.updated_at),
            ", ".join(f"{key}={_value(value, full)}" for key, value in session.metadata.items()),
        )
        for session in page
    )
    columns = ("AGENT", "TEMPLATE", "MESSAGES", f"CREATED ({zone()})", f"UPDATED ({zone()})", "METADATA")
    optional = (f"UPDATED ({zone()})", "METADATA", "TEMPLATE")
    return table(columns, rows, right=("MESSAGES",), optional=optional, shorten=not full)


def _value(value: Json, full: bool) -> str:
    """A value of the metadata. In a terminal, unless *full*, long texts are cut, long objects and lists not shown."""
    text = printed(value)
    if is_whole(full) or len(text) <= _VALUE_SHOWN:
        return text
    return "{…}" if isinstance(value, dict) else "[…]" if isinstance(value, list) else one_line(text, _VALUE_SHOWN)
