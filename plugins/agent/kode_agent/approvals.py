"""``kode approvals``, ``kode approve``, ``kode deny``: calls of tools that wait for a decision."""

from __future__ import annotations

import getpass
from collections.abc import Sequence
from typing import Annotated, Any, Final

import typer
from rich.console import RenderableType

from kode_agent.control import Decision, decide, open_questions
from kode_agent.errors import ApprovalError
from kode_agent.finding import unknown_agent
from kode_core import ExtendedStore, ToolCallRecord
from kode_core.cli.conversation import arguments
from kode_core.cli.opening import JsonOption, StoreOption, open_store
from kode_core.cli.options import AgentArgument, AllOption, CursorOption, LimitOption, OptionalAgent, given
from kode_core.cli.output import one_line, print_json, show, utc, visible
from kode_core.cli.queries import fetch, report, run
from kode_core.cli.tables import table
from kode_core.model import StoredToolCall
from kode_core.query import Page

__all__ = ["EXAMPLES", "approvals", "approve", "deny"]

EXAMPLES: Final = {
    "approvals": ("kode approvals", "kode approvals support-1 --json"),
    "approve": ("kode approve support-1", "kode approve support-1 call_7 --by ann --note 'the customer asked for it'"),
    "deny": ("kode deny support-1", "kode deny support-1 call_7 --note 'too expensive: find a cheaper flight'"),
}
_SHOWN: Final = 5

CallArgument = Annotated[
    str | None, typer.Argument(metavar="CALL", help="The id of the call; needed if several calls wait.")
]
ByOption = Annotated[str | None, typer.Option("--by", metavar="NAME", help="Who decides; your login name otherwise.")]
NoteOption = Annotated[
    str | None, typer.Option("--note", metavar="TEXT", help="Why; after a denial the model reads it.")
]


def approvals(
    agent: OptionalAgent = None,
    limit: LimitOption = None,
    cursor: CursorOption = None,
    everything: AllOption = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the calls that wait for a decision, of AGENT or of all agents, oldest first.

    [bold]kode approve[/] and [bold]kode deny[/] decide.
    """
    wanted = {"state": "APPROVAL_REQUIRED", "order": "asc"}
    filters = given(agent_id=agent, limit=limit, cursor=cursor) | wanted
    page = run(_fetch(store, filters, everything))
    report(page, "open question", "approvals", as_json, _table, "--all, --limit or --cursor")


async def _fetch(target: str | None, filters: dict[str, Any], everything: bool) -> Page[StoredToolCall]:
    async with open_store(target) as store:
        page = await fetch(store.query_tool_calls, store.iter_tool_calls, filters, everything)
        if not page and "agent_id" in filters:
            await _see_agent(store, filters["agent_id"])
        return page


async def _see_agent(store: ExtendedStore, agent_id: str) -> None:
    if not await store.exists(agent_id):
        raise await unknown_agent(store, agent_id)


def _table(page: Sequence[StoredToolCall]) -> RenderableType:
    rows = (
        (visible(call.agent_id), visible(call.id), utc(call.created_at), f"{visible(call.name)}({_input(call)})")
        for call in page
    )
    return table(("AGENT", "CALL", "ASKED (UTC)", "MAY RUN?"), rows, optional=("ASKED (UTC)",))


def _input(call: ToolCallRecord) -> str:
    return one_line(arguments(call.input))


def approve(
    agent: AgentArgument,
    call: CallArgument = None,
    by: ByOption = None,
    note: NoteOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a call of AGENT that waits for a decision run. The first decision counts."""
    _decided(store, agent, call, "allow", by, note, as_json)


def deny(
    agent: AgentArgument,
    call: CallArgument = None,
    by: ByOption = None,
    note: NoteOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Refuse a call of AGENT that waits for a decision. The first decision counts."""
    _decided(store, agent, call, "deny", by, note, as_json)


def _decided(
    target: str | None,
    agent: str,
    call: str | None,
    decision: Decision,
    by: str | None,
    note: str | None,
    as_json: bool,
) -> None:
    record = run(_decide(target, agent, call, decision, _login() if by is None else by, note))
    if as_json:
        print_json({"agentId": agent, "callId": record.id, "decision": decision})
        return
    done = "may run" if decision == "allow" else "is denied"
    show(f"{visible(record.name)}({_input(record)}) of {visible(agent)} {done}")


async def _decide(
    target: str | None, agent: str, call: str | None, decision: Decision, by: str | None, note: str | None
) -> ToolCallRecord:
    async with open_store(target) as store:
        waiting = await open_questions(store, agent)
        if not waiting:
            await _see_agent(store, agent)
        record = _chosen(agent, waiting, call)
        await decide(store, agent, record.id, decision, by=by, note=note)
        return record


def _chosen(agent: str, waiting: Sequence[ToolCallRecord], call: str | None) -> ToolCallRecord:
    """The call that is meant.

    Raises:
        ApprovalError: none waits, or several do and none of them is named.
    """
    if call is not None:
        found = [record for record in waiting if record.id == call]
        if found:
            return found[-1]
        raise ApprovalError(
            f"agent {agent!r}: no call {call!r:.80} waits for a decision; kode approvals lists the others"
        )
    if not waiting:
        raise ApprovalError(f"agent {agent!r}: no call waits for a decision")
    if len(waiting) > 1:
        names = ", ".join(f"{record.id!r:.80} ({record.name!r:.40})" for record in waiting[:_SHOWN])
        raise ApprovalError(f"agent {agent!r}: {len(waiting)} calls wait for a decision, name one of them: {names}")
    return waiting[0]


def _login() -> str | None:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # an account without a name, as in containers
        return None
