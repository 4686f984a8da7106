"""TURN-1: the cost of a turn, in commits."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from typing import Any, Final

from kode_conformance.context import Context, Unverified
from kode_conformance.dimensions import Dimension
from kode_conformance.instruments.costs import Counting, counted
from kode_conformance.instruments.pace import in_time
from kode_conformance.registry import check
from kode_conformance.settings import Tier
from kode_conformance.values import samples

_MANY: Final = {Tier.QUICK: 101, Tier.STANDARD: 501, Tier.THOROUGH: 1001}
"""More records of each kind than a batch of some databases takes."""
_ENGINE: Final = "the engine"
_TRIES: Final = 3


@check("TURN-1", under=(Dimension.COSTS, Dimension.ITEMS, Dimension.CHANGES))
async def a_turn_is_one_commit(ctx: Context) -> None:
    """save_turn costs one commit whatever is in it: for a new agent and one with lists, for few records and many, for
    additions and replacements.
    """
    store, layer = await counted(ctx)
    await store.save_turn("a", append=samples.messages(1))
    counts = await _commits_of(ctx, layer)
    if not counts:
        raise Unverified("commits cannot be counted from outside: the harness has no hook costs that counts them")
    most = _MANY[ctx.settings.tier]
    for count in in_time(ctx, (1, 3, most)):
        for name, turn in _turns(count).items():
            for counter, commits in counts.items():
                tries = 1 if counter == _ENGINE else _TRIES
                needed = [await _needed(commits, lambda: store.save_turn("a", **turn())) for _ in range(tries)]  # noqa: B023
                fewest = min((one for one in needed if one >= 0), default=1)
                ctx.equal(fewest, 1, f"how many commits {counter} counted for {name}, {count} of each kind")
    stored = len(await store.load_messages("a"))
    ctx.equal(stored, count, "how many messages there are in the end")
    ctx.equal(len(await store.load_tool_call_records("a")), stored, "how many tool calls there are in the end")


async def _needed(commits: Callable[[], Awaitable[int]], call: Callable[[], Awaitable[object]]) -> int:
    """The number of commits that a call makes; others that use the same server add to it, and a log may begin anew."""
    before = await commits()
    await call()
    return await commits() - before


async def _commits_of(ctx: Context, layer: Counting | None) -> dict[str, Callable[[], Awaitable[int]]]:
    """Counters of the commits for the agent ``a``, by name."""
    found: dict[str, Callable[[], Awaitable[int]]] = {}
    if layer is not None:

        async def batches() -> int:
            return layer.commits["a"]

        found[_ENGINE] = batches
    harness = ctx.harness

    async def transactions() -> int:
        return (await ctx.costs()).commits or 0

    if harness.has("costs") and (await ctx.costs()).commits is not None:
        found["the backend"] = transactions
    return found


def _turns(count: int) -> dict[str, Callable[[], dict[str, Any]]]:
    """The arguments of turns, by name; each call of one makes new records."""
    numbers = itertools.count(1000 * count)

    def added() -> dict[str, Any]:
        start = count * next(numbers)
        return {
            "append": samples.messages(count, start),
            "upsert_tool_calls": [samples.tool_call(start + i) for i in range(count)],
            "todos": samples.todos(*(f"{start + i}" for i in range(count))),
            "info": samples.info("a", metadata={"n": start}),
            "events": samples.events(count, start),
        }

    def replaced() -> dict[str, Any]:
        calls = [samples.tool_call(i, result=next(numbers)) for i in range(count)]
        given = {**added(), "messages": samples.messages(count), "tool_calls": calls}
        return {name: part for name, part in given.items() if name not in ("append", "upsert_tool_calls")}

    def parts() -> dict[str, Any]:
        given = added()
        return {"append": given["append"], "events": given["events"]}

    return {"a turn that adds": added, "a turn of messages and events": parts, "a turn that replaces": replaced}
