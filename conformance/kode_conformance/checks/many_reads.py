"""QRY, LIFE-2, LIFE-5, FORK-1, QRY-7: methods that give many records give all of them, in pages of any size."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Sequence
from operator import attrgetter
from typing import Any, Final

from kode_conformance.context import Context, Violation
from kode_conformance.dimensions import Dimension
from kode_conformance.instruments.pace import in_time, sizes_in_time
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_conformance.values.many import all_of, at_once, same, views
from kode_core.model import ToolCallRecord
from kode_core.protocols import ExtendedStore

_Q = Capability.QUERYABLE
_MANY: Final = 1001
_SIZES: Final = (None, 99, 100, 101, 1000, 10_000)
_ORDERS: Final = ("asc", "desc")


async def in_pages(store: ExtendedStore, name: str, **filters: Any) -> list[Any]:
    """All that a query finds, page after page."""
    limit = filters.get("limit", 100)
    found: list[Any] = []
    cursor: dict[str, str] = {}
    for _ in itertools.count():
        page = await getattr(store, name)(**filters, **cursor)
        if len(page) > limit:
            raise Violation(f"{name} with limit={limit} gave a page of {len(page)}")
        found += page
        if page.next_cursor is None:
            return found
        if len(found) > 20_000 or page.next_cursor == cursor.get("cursor"):
            raise Violation(f"the cursors of {name}({filters}) come to no end: {len(found)} records up to now")
        if len(page) < limit:
            raise Violation(f"{name} with limit={limit} gave a page of {len(page)}, and a cursor to another one")
        cursor = {"cursor": page.next_cursor}
    raise AssertionError


def _paging(limit: int | None) -> dict[str, int]:
    return {} if limit is None else {"limit": limit}


def _calls() -> list[tuple[str, int, ToolCallRecord]]:
    """Tool calls of three agents, hundreds of one time, as (agent, position, call); 27 have a rare name."""
    calls = []
    for i in range(_MANY):
        name = "rare" if i % 38 == 5 else "often"
        call = samples.tool_call(i, name=name, created_at=samples.T0 + (i * 31) % 4, audit_trail=[])
        calls.append((f"c{i % 3}", i // 3, call))
    return calls


async def _fill(ctx: Context) -> tuple[list[Any], list[Any]]:
    """Save 1,001 messages of one agent and 1,001 tool calls of three; return the messages, and the calls in ascending
    order with their sort keys.
    """
    messages = samples.messages(_MANY)
    await ctx.store.save_messages("m", messages)
    calls = _calls()
    for agent in ("c0", "c1", "c2"):
        await ctx.store.save_tool_call_records(agent, [call for of, _, call in calls if of == agent])
    return messages, sorted(calls, key=lambda one: (one[2].created_at, *one[:2]))


def _see_messages(ctx: Context, found: Sequence[Any], wanted: Sequence[Any], order: str, what: str) -> None:
    same(ctx, list(found), list(wanted), what)
    places = [message.position for message in found]
    ctx.true(places == sorted(places, reverse=order == "desc"), f"{what}: the positions must be in order, got {places}")


def _see_calls(ctx: Context, found: Sequence[Any], wanted: Sequence[Any], what: str) -> None:
    same(ctx, [(call.agent_id, call.position) for call in found], [one[:2] for one in wanted], f"{what}, their places")
    same(ctx, list(found), [call for _, _, call in wanted], what)


@check("QRY-5", "QRY-3", "QRY-4", needs=_Q, under=(Dimension.ITEMS, Dimension.EQUALS, Dimension.INSTANCES))
async def pages_of_any_size(ctx: Context) -> None:
    """1,001 messages, and 1,001 tool calls with hundreds of one time, are found in pages of any size, by cursor after
    cursor, each once and in order, and so are the few among them that a filter selects.
    """
    messages, calls = await _fill(ctx)
    stores = itertools.cycle((ctx.store, await ctx.another()))
    for limit, order in in_time(ctx, itertools.product(_SIZES, _ORDERS)):
        step, store = 1 if order == "asc" else -1, next(stores)
        what = f"in pages of {limit or 'the default size'}, {order}"
        if limit != 101:
            found = await in_pages(store, "query_messages", agent_id="m", order=order, **_paging(limit))
            _see_messages(ctx, found, messages[::step], order, f"1,001 messages {what}")
        if limit != 99:
            found = await in_pages(store, "query_tool_calls", order=order, **_paging(limit))
            _see_calls(ctx, found, calls[::step], f"1,001 tool calls {what}")
    rare = [one for one in calls if one[2].name == "rare"]
    for limit, order in in_time(ctx, itertools.product((1, 2, 26, 27, 28), _ORDERS)):
        wanted = rare[:: 1 if order == "asc" else -1]
        found = await in_pages(ctx.store, "query_tool_calls", tool_name="rare", order=order, limit=limit)
        _see_calls(ctx, found, wanted, f"27 tool calls of a rare name among 1,001, in pages of {limit}, {order}")


_OFFSETS: Final = (0, 1, 99, 100, 101, 499, 500, 900, 901, 902, 999, 1000, 1001, 1002)
_LIMITS: Final = (1, 100, None, 101, 2, 1000, 99, 10_000, 102)


@check("QRY-4", "QRY-3", needs=_Q, under=(Dimension.ITEMS, Dimension.EQUALS))
async def offsets_and_limits_at_every_edge(ctx: Context) -> None:
    """An offset and a limit select exactly their part of 1,001 messages, and of 1,001 tool calls, wherever it begins
    and ends.
    """
    messages, calls = await _fill(ctx)
    for i, offset in enumerate(in_time(ctx, _OFFSETS)):
        for limit, order in zip((_LIMITS[i % 9], _LIMITS[(i + 5) % 9]), _ORDERS, strict=True):
            part = slice(offset, offset + (100 if limit is None else limit))
            step, paging = 1 if order == "asc" else -1, {"order": order, "offset": offset, **_paging(limit)}
            page = await ctx.store.query_messages(agent_id="m", **paging)  # type: ignore[arg-type]
            _see_messages(ctx, page, messages[::step][part], order, f"messages with {paging}")
            page = await ctx.store.query_tool_calls(**paging)  # type: ignore[arg-type, assignment]
            _see_calls(ctx, page, calls[::step][part], f"tool calls with {paging}")
            more = offset + len(page) < _MANY
            ctx.true(
                not (len(page) and more and page.next_cursor is None), f"there are more tool calls behind {paging}"
            )


@check("QRY-6", "QRY-7", needs=_Q, under=(Dimension.ITEMS, Dimension.EQUALS, Dimension.INSTANCES))
async def iterators_and_statistics_of_many(ctx: Context) -> None:
    """Iterators give all of 1,001 messages and tool calls both ways, and the few that a filter wants; statistics count
    each of them, by hundreds of names and states, in every instance.
    """
    messages, calls = await _fill(ctx)
    other = await ctx.another()
    for order, step in (("asc", 1), ("desc", -1)):
        stream: AsyncIterator[Any] = ctx.store.iter_messages(agent_id="m", order=order)  # type: ignore[arg-type]
        _see_messages(ctx, await all_of(stream), messages[::step], order, f"iter_messages, {order}")
        stream = other.iter_tool_calls(order=order)  # type: ignore[arg-type]
        _see_calls(ctx, await all_of(stream), calls[::step], f"iter_tool_calls, {order}")
        stream = ctx.store.iter_tool_calls(tool_name="rare", order=order)  # type: ignore[arg-type]
        wanted = [one for one in calls[::step] if one[2].name == "rare"]
        _see_calls(ctx, await all_of(stream), wanted, f"iter_tool_calls of a rare name, {order}")
    named = [samples.tool_call(i, name=f"n{i % 501}", state=f"s{i % 101}", audit_trail=[]) for i in range(_MANY)]
    await ctx.store.save_turn("m", tool_calls=named)
    await at_once(ctx.store.save_snapshot("m", samples.snapshot(f"s{i}", count=1)) for i in range(101))
    async for where, store in views(ctx, other):
        stats = await store.aggregate_stats("m")
        ctx.equal(
            (stats.total_messages, stats.total_tool_calls, stats.total_snapshots),
            (_MANY, _MANY, 101),
            f"the totals of messages, tool calls and snapshots{where}",
        )
        by_name = {f"n{i}": 2 if i < _MANY - 501 else 1 for i in range(501)}
        ctx.equal(dict(sorted(stats.tool_calls_by_name.items())), dict(sorted(by_name.items())), f"by name{where}")
        by_state = {f"s{i}": 10 if i < 92 else 9 for i in range(101)}
        ctx.equal(dict(sorted(stats.tool_calls_by_state.items())), dict(sorted(by_state.items())), f"by state{where}")


# --- many agents ------------------------------------------------------------------------------------------------------

_AGENTS: Final = (101, 501, 1001, 1101)


def _info(i: int) -> Any:
    kinds = {"template_id": "old" if i % 11 else "kept", "created_at": samples.T0 + i % 3}
    return samples.info(f"a{i:04d}", metadata={"userId": "rare" if i % 97 == 0 else "often", "n": i}, **kinds)


@check(
    *("QRY-5", "LIFE-2", "LIFE-5", "QRY-3", "QRY-4", "QRY-6"),
    needs=_Q,
    tier=Tier.STANDARD,
    under=(Dimension.ITEMS, Dimension.EQUALS, Dimension.INSTANCES),
)
async def many_agents(ctx: Context) -> None:
    """More than a thousand agents, hundreds of one time, are listed, found in pages of any size and by the few that a
    filter wants, and streamed; delete_many deletes all that match, however many, and leaves the others.
    """
    other, infos = await ctx.another(), [_info(i) for i in range(_AGENTS[-1])]
    there = 0
    for number in sizes_in_time(ctx, _AGENTS):
        await at_once((ctx.store.save_info(info.agent_id, info) for info in infos[there:number]), 100)
        there = number
    infos = infos[:there]
    for store in (ctx.store, other):
        same(ctx, await store.list(), [info.agent_id for info in infos], f"list() of {there} agents")
    await _page_sessions(ctx, other, sorted(infos, key=attrgetter("created_at", "agent_id")))
    kept = [info.agent_id for info in infos if info.template_id == "kept"]
    deleted = await ctx.store.delete_many(template_id="old")
    same(ctx, await other.list(), kept, f"the agents that delete_many left of {there}")
    ctx.equal(deleted, there - len(kept), f"how many of {there} delete_many says it deleted")


async def _page_sessions(ctx: Context, other: ExtendedStore, infos: list[Any]) -> None:
    rare = [info for info in infos if info.metadata["userId"] == "rare"]
    for limit, order in zip((None, 99, 1000, 101), _ORDERS * 2, strict=True):
        wanted = infos[:: 1 if order == "asc" else -1]
        found = await in_pages(other, "query_sessions", order=order, **_paging(limit))
        _see_sessions(ctx, found, wanted, f"sessions in pages of {limit or 'the default size'}, {order}")
    for order, step in zip(_ORDERS, (1, -1), strict=True):
        stream = ctx.store.iter_sessions(order=order)  # type: ignore[arg-type]
        _see_sessions(ctx, await all_of(stream), infos[::step], f"iter_sessions, {order}")
        found = await in_pages(ctx.store, "query_sessions", user_id="rare", order=order, limit=1)
        _see_sessions(ctx, found, rare[::step], f"sessions of a user who has few among many, one by one, {order}")
    for offset, limit in ((99, 2), (100, 101), (999, 3), (1000, 100), (1, 1000), (len(infos) - 1, 5)):
        page = await ctx.store.query_sessions(order="asc", offset=offset, limit=limit)
        _see_sessions(ctx, page, infos[offset : offset + limit], f"sessions with offset={offset}, limit={limit}")


def _see_sessions(ctx: Context, found: Sequence[Any], wanted: Sequence[Any], what: str) -> None:
    same(ctx, [(s.agent_id, s.metadata["n"]) for s in found], [(i.agent_id, i.metadata["n"]) for i in wanted], what)
