"""``kode tool-calls``: list tool calls, of all agents or one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final

from rich.console import RenderableType

from kode_core.cli.conversation import arguments
from kode_core.cli.groups import SortOption, UtcOffsetOption, by_option, report_groups
from kode_core.cli.opening import JsonOption, StoreOption, open_store
from kode_core.cli.options import (
    AllOption,
    CountOption,
    CreatedAfter,
    CreatedBefore,
    CursorOption,
    FullOption,
    LimitOption,
    OffsetOption,
    OptionalAgent,
    OrderOption,
    filter_option,
    given,
    paging_option,
)
from kode_core.cli.output import one_line, print_note, printed, state_text
from kode_core.cli.queries import fetch_known, report, report_count, run
from kode_core.cli.tables import table
from kode_core.cli.templates import grouped_calls
from kode_core.cli.times import LocalOption, SinceOption, UntilOption, between, moment, zone
from kode_core.model import StoredToolCall
from kode_core.query import Page

__all__ = ["EXAMPLES", "tool_calls"]

_STATES: Final = (
    "PENDING", "APPROVAL_REQUIRED", "APPROVED", "EXECUTING", "COMPLETED", "FAILED", "DENIED", "SEALED",
)  # fmt: skip

EXAMPLES: Final = (
    "kode tool-calls --errors",
    "kode tool-calls --errors --since 1d",
    "kode tool-calls --state FAILED --state DENIED --count",
    "kode tool-calls --by tool_name --by is_error --durations",
    "kode tool-calls --errors --by tool_name --sort count --limit 5",
    "kode tool-calls --by template_id --by is_error",
    "kode tool-calls tau-000-0 --order asc",
    "kode tool-calls --tool book_reservation --state COMPLETED --json",
)


def tool_calls(
    agent: OptionalAgent = None,
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
    by: Annotated[
        list[str] | None, by_option("agent_id, template_id, tool_name, state, is_error, has_approval or day")
    ] = None,
    utc_offset: UtcOffsetOption = None,
    sort: SortOption = None,
    durations: Annotated[
        bool | None, paging_option("--durations", help="With --by: how long the calls took; reads each of them.")
    ] = None,
    full: FullOption = False,
    local: LocalOption = False,
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
    _see_states(state or ())
    between(filters, since, until)
    grouped = given(utc_offset_minutes=utc_offset, durations=durations)
    if by or grouped or sort:
        report_groups(store, grouped_calls, by or [], {**filters, **grouped}, as_json, sort)
        return
    if count:
        report_count(store, lambda s: s.count_tool_calls, filters, as_json)
        return
    page = run(_fetch(store, filters, everything))
    report(page, "tool call", "toolCalls", as_json, lambda found: _table(found, full=full))


def _see_states(states: Sequence[str]) -> None:
    """Say which state was probably meant: any text can be one, and capitals count."""
    for state in states:
        if state not in _STATES and state.upper() in _STATES:
            print_note(f"the state {state!r} is not {state.upper()!r}: capitals count; write --state {state.upper()}")


async def _fetch(target: str | None, filters: dict[str, Any], everything: bool) -> Page[StoredToolCall]:
    async with open_store(target) as store:
        return await fetch_known(store, store.query_tool_calls, store.iter_tool_calls, filters, everything)


def _table(page: Page[StoredToolCall], *, full: bool) -> RenderableType:
    rows = (
        (call.agent_id, moment(call.created_at), call.name, state_text(call.state), _outcome(call)) for call in page
    )
    columns = ("AGENT", f"CREATED ({zone()})", "TOOL", "STATE", "RESULT")
    return table(columns, rows, optional=(f"CREATED ({zone()})", "RESULT"), shorten=not full)


def _outcome(call: StoredToolCall) -> str:
    """The error or the result; the call's arguments if it has neither."""
    if call.error is not None:
        return one_line(call.error)
    if call.result is not None:
        return one_line(printed(call.result))
    return one_line(f"({arguments(call.input)})")
