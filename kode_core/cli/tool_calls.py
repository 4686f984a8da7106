"""``kode tool-calls``: list tool calls, of all agents or one."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer
from rich.console import RenderableType

from kode_core.cli.conversation import arguments
from kode_core.cli.opening import JsonOption, StoreOption, open_store
from kode_core.cli.options import (
    AllOption,
    CountOption,
    CreatedAfter,
    CreatedBefore,
    CursorOption,
    LimitOption,
    OffsetOption,
    OrderOption,
    filter_option,
    given,
)
from kode_core.cli.output import one_line, printed, state_text, utc
from kode_core.cli.queries import fetch, report, report_count, run
from kode_core.cli.tables import table
from kode_core.model import StoredToolCall
from kode_core.query import Page

__all__ = ["EXAMPLES", "tool_calls"]

EXAMPLES: Final = (
    "kode tool-calls --errors",
    "kode tool-calls --state FAILED --state DENIED --count",
    "kode tool-calls tau-000-0 --order asc",
    "kode tool-calls --tool book_reservation --state COMPLETED --json",
)


def tool_calls(
    agent: Annotated[str | None, typer.Argument(metavar="AGENT", help="The id of an agent.")] = None,
    tool: Annotated[
        list[str] | None, filter_option(metavar="NAME", help="Only calls of this tool. May be repeated.")
    ] = None,
    state: Annotated[
        list[str] | None,
        filter_option(metavar="STATE", help="COMPLETED, FAILED, PENDING, … as stored. May be repeated."),
    ] = None,
    errors: Annotated[
        bool | None, filter_option("--errors/--no-errors", help="Only calls that failed, or did not.")
    ] = None,
    approval: Annotated[
        bool | None, filter_option("--approval/--no-approval", help="Only calls that needed a decision, or did not.")
    ] = None,
    created_after: CreatedAfter = None,
    created_before: CreatedBefore = None,
    order: OrderOption = None,
    limit: LimitOption = None,
    offset: OffsetOption = None,
    cursor: CursorOption = None,
    everything: AllOption = False,
    count: CountOption = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """List tool calls of AGENT or of all agents, newest first."""
    filters = given(
        agent_id=agent,
        tool_name=tool,
        state=state,
        is_error=errors,
        has_approval=approval,
        created_after=created_after,
        created_before=created_before,
        order=order,
        limit=limit,
        offset=offset,
        cursor=cursor,
    )
    if count:
        report_count(run(_count(store, filters)), as_json)
        return
    page = run(_fetch(store, filters, everything))
    report(page, "tool call", "toolCalls", as_json, _table)


async def _count(target: str | None, filters: dict[str, Any]) -> int:
    async with open_store(target) as store:
        return await store.count_tool_calls(**filters)


async def _fetch(target: str | None, filters: dict[str, Any], everything: bool) -> Page[StoredToolCall]:
    async with open_store(target) as store:
        return await fetch(store.query_tool_calls, store.iter_tool_calls, filters, everything)


def _table(page: Page[StoredToolCall]) -> RenderableType:
    rows = ((call.agent_id, utc(call.created_at), call.name, state_text(call.state), _outcome(call)) for call in page)
    return table(("AGENT", "CREATED (UTC)", "TOOL", "STATE", "RESULT"), rows, optional=("CREATED (UTC)", "STATE"))


def _outcome(call: StoredToolCall) -> str:
    """The error or the result; the call's arguments if it has neither."""
    if call.error is not None:
        return one_line(call.error)
    if call.result is not None:
        return one_line(printed(call.result))
    return one_line(f"({arguments(call.input)})")
