"""``kode documents``: documents of the caller's own, of one agent by key or of all agents by tag."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final, TypeVar

import typer
from rich.console import RenderableType

from kode_core.cli.known import require_agent, require_agents
from kode_core.cli.opening import JsonOption, StoreOption, open_store
from kode_core.cli.options import (
    AllOption,
    CursorOption,
    LimitOption,
    agent_argument,
    filter_option,
    given,
    paging_option,
)
from kode_core.cli.output import one_line, printed, utc
from kode_core.cli.queries import report, run
from kode_core.cli.tables import table
from kode_core.errors import InvalidArgumentError
from kode_core.model import Document, FoundDocument, Json
from kode_core.query import MAX_LIMIT, Page

__all__ = ["EXAMPLES", "documents"]

T = TypeVar("T")

EXAMPLES: Final = (
    "kode documents tau-000-0 notes",
    "kode documents tau-000-0 notes --prefix 2025- --reverse --limit 20",
    "kode documents notes --tag run=r1 --tag run=r2 --tag state=done",
    "kode documents tau-000-0 notes --all --json | jq '.documents\\[].value'",
)

_PAGING: Final = "--all, --limit or --cursor"


def documents(
    agent: Annotated[str, agent_argument("The id of the agent; with --tag it may be left out, for all agents.")],
    collection: Annotated[
        str | None, typer.Argument(metavar="COLLECTION", help="The name of a collection; it has to be given.")
    ] = None,
    tag: Annotated[
        list[str] | None,
        filter_option(metavar="NAME=VALUE", help="Only documents with this tag. May be repeated: any of one name's."),
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

    With --tag it lists documents of all agents, or of AGENT, that have the tags. A document that cannot be read is
    named on stderr, and left out.
    """
    if everything and (limit is not None or cursor is not None):
        raise InvalidArgumentError("--all lists every document: leave --limit and --cursor out")
    if tag:
        if prefix is not None or start is not None or stop is not None:
            raise InvalidArgumentError("--tag finds documents by their tags: leave --prefix, --start and --stop out")
        whose = {} if collection is None else {"agent_id": agent}
        found = {"collection": agent if collection is None else collection, "tags": _tags(tag), **whose}
        filters = given(reverse=reverse, limit=limit, cursor=cursor)
        tagged = run(_fetch_tagged(store, found | filters, everything))
        report(
            tagged, "document", "documents", as_json, _tagged_table, "--all, --limit or --cursor", plain=_plain_tagged
        )
        return
    if collection is None:
        raise InvalidArgumentError(
            "give a collection, as in: kode documents AGENT COLLECTION, or kode documents COLLECTION --tag NAME=VALUE;"
            " stores do not list the names of collections"
        )
    filters = given(prefix=prefix, start=start, stop=stop, reverse=reverse, limit=limit, cursor=cursor)
    page = run(_fetch(store, agent, collection, filters, everything))
    report(page, "document", "documents", as_json, _table, _PAGING, plain=_plain)


async def _fetch(
    target: str | None, agent_id: str, collection: str, filters: dict[str, Any], everything: bool
) -> Page[Document]:
    async with open_store(target) as store:
        filters |= {"agent_id": agent_id, "collection": collection}
        page = await _pages(store.list_documents, filters, everything)
        if not page:
            await require_agent(store, agent_id)
        return page


async def _pages(query: Callable[..., Awaitable[Page[T]]], filters: dict[str, Any], everything: bool) -> Page[T]:
    """One page, or all pages as one; what was left out of them is named."""
    page = await query(**(filters | {"limit": MAX_LIMIT} if everything else filters))
    while everything and page.next_cursor is not None:
        more = await query(**filters, limit=MAX_LIMIT, cursor=page.next_cursor)
        page.extend(more)
        page.next_cursor, page.left_out = more.next_cursor, (*page.left_out, *more.left_out)
    return page


def _plain(document: Document) -> dict[str, Json]:
    """A document for programs: with its value, which may be null."""
    return {
        "collection": document.collection,
        "key": document.key,
        "value": document.value,
        "version": document.version,
        "updatedAt": document.updated_at,
        **({"tags": document.tags} if document.tags else {}),
    }


def _table(page: Page[Document]) -> RenderableType:
    rows = ((document.key, utc(document.updated_at), one_line(printed(document.value))) for document in page)
    return table(("KEY", "UPDATED (UTC)", "VALUE"), rows, optional=("UPDATED (UTC)",))


# --- by tag -----------------------------------------------------------------------------------------------------------


def _tags(pairs: list[str]) -> dict[str, list[str]]:
    """The tags that ``--tag name=value`` options describe: of one name, any of the values."""
    found: dict[str, list[str]] = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator:
            raise InvalidArgumentError(f"--tag {pair!r:.80} has no '='; write it as --tag run=r1")
        found.setdefault(name, []).append(value)
    return found


async def _fetch_tagged(target: str | None, filters: dict[str, Any], everything: bool) -> Page[FoundDocument]:
    async with open_store(target) as store:
        page = await _pages(store.query_documents, filters, everything)
        if not page:
            await require_agents(store, filters.get("agent_id", ()))
        return page


def _plain_tagged(document: FoundDocument) -> dict[str, Json]:
    return {
        "agentId": document.agent_id,
        "collection": document.collection,
        "key": document.key,
        "value": document.value,
        "version": document.version,
        "updatedAt": document.updated_at,
        "tags": document.tags,
    }


def _tagged_table(page: Page[FoundDocument]) -> RenderableType:
    def row(found: FoundDocument) -> tuple[str, str, str, str]:
        tags = ", ".join(f"{name}={value}" for name, value in (found.tags or {}).items())
        return found.agent_id, found.key, tags, one_line(printed(found.value))

    return table(("AGENT", "KEY", "TAGS", "VALUE"), map(row, page), optional=("TAGS",))
