"""Run a query of a store for a command, and print its results."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from typing import Any, TypeVar

import typer
from rich.console import RenderableType

from kode_core.cli.known import require_agents
from kode_core.cli.opening import open_store
from kode_core.cli.output import count, print_json, print_note, show, wire
from kode_core.model import StoredMessage, StoredToolCall
from kode_core.protocols import ExtendedStore
from kode_core.query import Page, SessionInfo

__all__ = ["fetch", "fetch_known", "report", "report_count", "run"]

T = TypeVar("T")
R = TypeVar("R", SessionInfo, StoredMessage, StoredToolCall)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run *work* to its end, on an event loop of its own; Ctrl-C ends the command without a message."""
    results: list[T] = []

    async def keep() -> None:
        results.append(await work)

    try:
        asyncio.run(keep())  # it takes the repr of the coroutine's result: seconds, for a large store
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    return results[0]


async def fetch(
    query: Callable[..., Awaitable[Page[T]]],
    iterate: Callable[..., AsyncIterator[T]],
    filters: Mapping[str, Any],
    everything: bool,
) -> Page[T]:
    """One page of results, or all results."""
    if everything:
        return Page([record async for record in iterate(**filters)])
    return await query(**filters)


async def fetch_known(
    store: ExtendedStore,
    query: Callable[..., Awaitable[Page[R]]],
    iterate: Callable[..., AsyncIterator[R]],
    filters: Mapping[str, Any],
    everything: bool,
) -> Page[R]:
    """As :func:`fetch`; AgentNotFoundError if nothing is stored for an agent that the filters name."""
    page = await fetch(query, iterate, filters, everything)
    await require_agents(store, filters.get("agent_id", ()), {record.agent_id for record in page})
    return page


def report(
    page: Page[T],
    noun: str,
    key: str,
    as_json: bool,
    draw: Callable[[Page[T]], RenderableType],
    following: str = "--all, --limit or --offset",
    plain: Callable[[T], Any] = wire,
) -> None:
    """Print a page: as JSON under *key*, or drawn as a table with a note of the number of results.

    Records that could not be read are named on stderr, and in the JSON as ``leftOut``. *following* names the options
    that lead to the rest, and *plain* makes a result plain JSON.
    """
    for name in page.left_out:
        print_note(f"{name} cannot be read; kode doctor says more")
    if as_json:
        left_out = {"leftOut": page.left_out} if page.left_out else {}
        print_json({key: [plain(record) for record in page], "nextCursor": page.next_cursor, **left_out})
        return
    if page:
        show(draw(page))
    more = f"; there are more: {following}" if page.next_cursor else ""
    print_note(f"{count(len(page), noun)}{more}")


def report_count(
    target: str | None,
    count: Callable[[ExtendedStore], Callable[..., Awaitable[int]]],
    filters: Mapping[str, Any],
    as_json: bool,
) -> None:
    """Print the number of results that a method of the store gives.

    Raises:
        AgentNotFoundError: nothing is stored for an agent that the filters name.
    """

    async def counted() -> int:
        async with open_store(target) as store:
            await require_agents(store, filters.get("agent_id", ()))
            return await count(store)(**filters)

    number = run(counted())
    if as_json:
        print_json({"count": number})
    else:
        show(f"{number}")
