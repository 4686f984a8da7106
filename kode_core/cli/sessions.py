"""``kode sessions``: the agents of a store."""

from __future__ import annotations

from typing import Annotated, Any, Final

from rich.console import RenderableType

from kode_core.cli.opening import JsonOption, StoreOption, open_store
from kode_core.cli.options import (
    AgentsOption,
    AllOption,
    CountOption,
    CreatedAfter,
    CreatedBefore,
    CursorOption,
    LimitOption,
    MetadataOption,
    OffsetOption,
    OrderOption,
    TemplatesOption,
    UsersOption,
    given,
    metadata_filter,
    paging_option,
    time_option,
)
from kode_core.cli.output import printed, utc
from kode_core.cli.queries import fetch, report, report_count, run
from kode_core.cli.tables import table
from kode_core.query import Page, SessionInfo

__all__ = ["EXAMPLES", "session_table", "sessions"]

EXAMPLES: Final = (
    "kode sessions --template tau-airline --metadata reward=1.0",
    "kode sessions --updated-after 7d --sort-by updated_at",
    "kode sessions --all --json | jq -r '.sessions\\[].agentId'",
)


def sessions(
    agent: AgentsOption = None,
    template: TemplatesOption = None,
    user: UsersOption = None,
    metadata: MetadataOption = None,
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
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """List agents, newest first."""
    filters = given(
        agent_id=agent,
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
    if count:
        report_count(run(_count(store, filters)), as_json)
        return
    page = run(_fetch(store, filters, everything))
    report(page, "session", "sessions", as_json, session_table)


async def _count(target: str | None, filters: dict[str, Any]) -> int:
    async with open_store(target) as store:
        return await store.count_sessions(**filters)


async def _fetch(target: str | None, filters: dict[str, Any], everything: bool) -> Page[SessionInfo]:
    async with open_store(target) as store:
        return await fetch(store.query_sessions, store.iter_sessions, filters, everything)


def session_table(page: list[SessionInfo]) -> RenderableType:
    """Sessions as a table; the metadata takes the rest of the terminal's width, and may be cut."""
    rows = (
        (
            session.agent_id,
            session.template_id,
            f"{session.message_count:,}",
            utc(session.created_at),
            utc(session.updated_at),
            ", ".join(f"{key}={printed(value)}" for key, value in session.metadata.items()),
        )
        for session in page
    )
    columns = ("AGENT", "TEMPLATE", "MESSAGES", "CREATED (UTC)", "UPDATED (UTC)", "METADATA")
    return table(columns, rows, right=("MESSAGES",), optional=("UPDATED (UTC)", "TEMPLATE", "METADATA"))
