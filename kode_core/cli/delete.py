"""``kode delete``: delete agents that are no longer needed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any, Final, NamedTuple

import typer
from rich.text import Text

from kode_core.cli.known import require_agent
from kode_core.cli.opening import StoreOption, open_store
from kode_core.cli.options import (
    MetadataOption,
    TemplatesOption,
    UsersOption,
    agent_argument,
    given,
    metadata_filter,
    time_option,
)
from kode_core.cli.output import count, is_whole, print_note, show, visible, watched
from kode_core.cli.queries import run
from kode_core.cli.sessions import session_table
from kode_core.errors import InvalidArgumentError
from kode_core.protocols import ExtendedStore
from kode_core.query import SessionInfo

__all__ = ["EXAMPLES", "delete"]

EXAMPLES: Final = (
    "kode delete tau-000-0 tau-000-1",
    "kode delete --older-than 90d --template tau-airline --dry-run",
    "kode delete --older-than 90d --yes",
)

_SHOWN: Final = 20


def delete(
    agents: Annotated[list[str] | None, agent_argument("Ids of agents.")] = None,
    older_than: Annotated[
        int | None,
        time_option(
            "--older-than",
            "Only agents whose messages, tool calls and info last changed (updated_at) before that, as in 90d.",
        ),
    ] = None,
    template: TemplatesOption = None,
    user: UsersOption = None,
    metadata: MetadataOption = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the agents, and delete nothing.")] = False,
    store: StoreOption = None,
) -> None:
    """Delete agents and everything that belongs to them.

    The agents are the named ones, or the ones that match every filter. They are shown first, and the command asks
    before it deletes them. Nothing else is deleted: an agent that changes meanwhile, so that the filter no longer
    matches it, stays.
    """
    filters = given(updated_before=older_than, template_id=template, user_id=user, metadata=metadata_filter(metadata))
    if bool(agents) == bool(filters):
        raise InvalidArgumentError(
            "name the agents to delete, or give filters such as --older-than 90d; one of the two"
        )
    found = run(_find(store, agents or [], filters))
    _show(found)
    if not found or dry_run:
        print_note(f"{count(len(found), 'agent')} would be deleted" if dry_run else "nothing to delete")
        return
    if not yes:
        _ask(len(found))
    deleted = run(_delete(store, [session.agent_id for session in found], filters))
    print_note(f"{count(deleted, 'agent')} deleted")


class _Doomed(NamedTuple):
    """An agent to delete; it may have records and no info."""

    agent_id: str
    session: SessionInfo | None


async def _find(target: str | None, agents: Sequence[str], filters: dict[str, Any]) -> list[_Doomed]:
    async with open_store(target) as store:
        if filters:
            return [_Doomed(session.agent_id, session) async for session in store.iter_sessions(**filters)]
        return [await _named(store, agent_id) for agent_id in dict.fromkeys(agents)]


async def _named(store: ExtendedStore, agent_id: str) -> _Doomed:
    sessions = await store.query_sessions(agent_id=agent_id)
    if sessions:
        return _Doomed(agent_id, sessions[0])
    await require_agent(store, agent_id)
    return _Doomed(agent_id, None)


def _show(found: Sequence[_Doomed]) -> None:
    shown = found if is_whole() else found[:_SHOWN]
    sessions = [doomed.session for doomed in shown if doomed.session is not None]
    if sessions:
        show(session_table(sessions))
    for doomed in shown:
        if doomed.session is None:
            show(Text(f"{visible(doomed.agent_id)} (has records, but no info)"))
    if len(found) > len(shown):
        show(Text(f"… and {count(len(found) - len(shown), 'agent')} more"))


def _ask(number: int) -> None:
    if not sys.stdin.isatty():
        raise InvalidArgumentError(
            "stdin is not a terminal, so the command cannot ask: give --yes to delete, or --dry-run to look"
        )
    typer.confirm(f"Delete {count(number, 'agent')} with everything that belongs to them?", abort=True, err=True)


async def _delete(target: str | None, agent_ids: Sequence[str], filters: dict[str, Any]) -> int:
    deleted = 0
    async with open_store(target) as store:
        try:
            with watched("deleted") as progress:
                for done, agent_id in enumerate(agent_ids, 1):
                    deleted += await _delete_one(store, agent_id, filters)
                    progress(done, len(agent_ids))
        except BaseException:
            print_note(f"{count(deleted, 'agent')} deleted before that")
            raise
    return deleted


async def _delete_one(store: ExtendedStore, agent_id: str, filters: dict[str, Any]) -> int:
    if filters:
        return await store.delete_many(agent_id=agent_id, **filters)
    await store.delete(agent_id)
    return 1
