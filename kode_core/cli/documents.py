"""``kode documents``: the documents of the caller's own that an agent has in a collection."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer
from rich.console import RenderableType

from kode_core.cli.messages import require_agent
from kode_core.cli.opening import JsonOption, StoreOption, open_store
from kode_core.cli.options import (
    AgentArgument,
    AllOption,
    CursorOption,
    LimitOption,
    filter_option,
    given,
    paging_option,
)
from kode_core.cli.output import one_line, printed, utc
from kode_core.cli.queries import report, run
from kode_core.cli.tables import table
from kode_core.errors import InvalidArgumentError
from kode_core.model import Document, Json
from kode_core.query import MAX_LIMIT, AgentStats, Page

__all__ = ["EXAMPLES", "documents"]

EXAMPLES: Final = (
    "kode documents tau-000-0 notes",
    "kode documents tau-000-0 notes --prefix 2025- --reverse --limit 20",
    "kode documents tau-000-0 notes --all --json | jq '.documents\\[].value'",
)


def documents(
    agent: AgentArgument,
    collection: Annotated[
        str | None, typer.Argument(metavar="COLLECTION", help="The name of a collection; it has to be given.")
    ] = None,
    prefix: Annotated[str | None, filter_option(metavar="TEXT", help="Only keys that begin with it.")] = None,
    start: Annotated[str | None, filter_option(metavar="KEY", help="Only this key and those above it.")] = None,
    stop: Annotated[str | None, filter_option(metavar="KEY", help="Only keys below this one.")] = None,
    reverse: Annotated[bool, paging_option("--reverse", help="From the last key to the first.")] = False,
    limit: LimitOption = None,
    cursor: CursorOption = None,
    everything: AllOption = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the documents of AGENT in COLLECTION, in the order of their keys.

    A document that cannot be read is named on stderr, and left out.
    """
    if collection is None:
        raise InvalidArgumentError(
            "give a collection, as in: kode documents AGENT COLLECTION; stores do not list the names of collections"
        )
    if everything and (limit is not None or cursor is not None):
        raise InvalidArgumentError("--all lists every document: leave --limit and --cursor out")
    filters = given(prefix=prefix, start=start, stop=stop, reverse=reverse, limit=limit, cursor=cursor)
    page = run(_fetch(store, agent, collection, filters, everything))
    report(page, "document", "documents", as_json, _table, "--all, --limit or --cursor", plain=_plain)


async def _fetch(
    target: str | None, agent_id: str, collection: str, filters: dict[str, Any], everything: bool
) -> Page[Document]:
    async with open_store(target) as store:
        filters |= {"agent_id": agent_id, "collection": collection}
        page = await store.list_documents(**(filters | {"limit": MAX_LIMIT} if everything else filters))
        while everything and page.next_cursor is not None:
            more = await store.list_documents(**filters, limit=MAX_LIMIT, cursor=page.next_cursor)
            page.extend(more)
            page.next_cursor, page.left_out = more.next_cursor, (*page.left_out, *more.left_out)
        if not page and await store.aggregate_stats(agent_id) == AgentStats():
            await require_agent(store, agent_id)
        return page


def _plain(document: Document) -> dict[str, Json]:
    """A document for programs: with its value, which may be null."""
    return {
        "collection": document.collection,
        "key": document.key,
        "value": document.value,
        "version": document.version,
        "updatedAt": document.updated_at,
    }


def _table(page: Page[Document]) -> RenderableType:
    rows = ((document.key, utc(document.updated_at), one_line(printed(document.value))) for document in page)
    return table(("KEY", "UPDATED (UTC)", "VALUE"), rows, optional=("UPDATED (UTC)",))
