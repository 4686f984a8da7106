"""Witnesses: short stories of calls, and their results."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from kode_conformance.context import Context
from kode_conformance.values import samples

from conformance.tests.zoo.base import Witness
from kode_core.model import Timeline

Call = Callable[..., Any]


def restart() -> None:
    """In a story: close every instance, and open as many again."""


def seen(*calls: Call) -> Witness:
    """A witness of the results of several calls, one after the other.

    A call is given as many instances of the store as it has parameters. Its result is awaited, or read to its end; an
    error counts as its class.
    """
    instances = max(len(inspect.signature(call).parameters) for call in calls)

    async def witness(ctx: Context) -> object:
        stores = [ctx.store, *[await ctx.another() for _ in range(instances - 1)]]
        results = []
        for call in calls:
            if call is restart:
                for store in stores:
                    await ctx.close(store)
                stores = [await ctx.another() for _ in stores]
                ctx.store = stores[0]
            else:
                results.append(await _outcome(call, stores))
        return results

    return witness


async def _outcome(call: Call, stores: list[Any]) -> object:
    try:
        value = call(*stores[: len(inspect.signature(call).parameters)])
        if hasattr(value, "__aiter__"):
            return [item async for item in value]
        return await value if inspect.isawaitable(value) else value
    except Exception as exc:
        return type(exc).__name__


def call_with(value: Any) -> Witness:
    """A witness of a value as the result of a tool call."""
    return seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(result=value)]),
        lambda s: s.load_tool_call_records("a"),
    )


async def the(name: str, records: Awaitable[Iterable[Any]]) -> list[Any]:
    """One attribute of each record."""
    return [getattr(record, name) for record in await records]


async def each(*calls: Awaitable[Any]) -> list[Any]:
    """The results of calls, one after the other."""
    return [await call for call in calls]


def talk(*texts: str) -> list[Any]:
    """A user's messages."""
    return [samples.message(text=text) for text in texts]


def happened(*seqs: int) -> list[Timeline]:
    """Events with these seqs."""
    return [samples.event(seq) for seq in seqs]
