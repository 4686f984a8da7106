"""QRY, LIFE-5, EVT-7, INFO-2: every filter, order and page of every query, also for values hard to search for."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping
from operator import attrgetter
from typing import Any, Final

from kode_conformance.context import Context
from kode_conformance.dimensions import Dimension
from kode_conformance.registry import Capability, check
from kode_conformance.values import samples
from kode_core.errors import InvalidArgumentError
from kode_core.model import Bookmark, Message, UnknownBlock
from kode_core.query import Order, Page, SortBy

_Q = Capability.QUERYABLE
_QUERIES: Final = ("query_sessions", "query_messages", "query_tool_calls")

_TEXTS: Final = (
    *("", " a", "a ", "A", "a", "null", "0", "a.b", "$gt", "%", "_", "\\", "[0]", "'", '"', "a'b\"c"),
    *("x'; DROP TABLE agents; --", "a\0b", "\ud83d", "😀", "é", "e\u0301", "x" * 5000, "x" * 4999 + "y"),
)
"""Texts that queries are built from and compared with in many ways; all are different."""


@check("QRY-2", "QRY-1", needs=_Q, under=(Dimension.LOOKALIKES, Dimension.TWINS, Dimension.LENGTHS))
async def any_text_can_be_searched_for(ctx: Context) -> None:
    """Whatever a template, a user, a key of metadata, a role, a block type, a tool or a state is called, its filter
    finds it and no other.
    """
    for i, text in enumerate(_TEXTS):
        await ctx.store.save_turn(
            f"{i}",
            info=samples.info(f"{i}", template_id=text, metadata={"userId": text, text: i, "v": {text: [text]}}),
            messages=[Message(text, [UnknownBlock({"type": text, "x": 1})])],
            tool_calls=[samples.tool_call(i, name=text, state=text)],
        )
    for i, text in enumerate(_TEXTS):
        for name, filters in (
            ("query_sessions", {"template_id": text}),
            ("query_sessions", {"user_id": text}),
            ("query_sessions", {"metadata": {text: i}}),
            ("query_sessions", {"metadata": {"v": {text: [text]}}}),
            ("query_messages", {"role": text}),
            ("query_messages", {"content_type": text}),
            ("query_tool_calls", {"tool_name": text}),
            ("query_tool_calls", {"state": text}),
        ):
            found = {record.agent_id for record in await getattr(ctx.store, name)(**filters)}
            ctx.equal(sorted(found), [f"{i}"], f"the agents of {name}({filters!a:.60})")


@check("QRY-4", needs=_Q, under=(Dimension.ITEMS,))
async def every_query_can_be_paged(ctx: Context) -> None:
    """limit and offset mean the same for sessions, messages and tool calls, and are refused for the same reasons."""
    await ctx.store.save_messages("m", samples.messages(13))
    calls = [samples.tool_call(i, created_at=samples.T0 + i // 3) for i in range(13)]
    await ctx.store.save_tool_call_records("m", calls)
    for i in range(13):
        await ctx.store.save_info(f"a{i:02d}", samples.info(f"a{i:02d}", created_at=samples.T0 + i // 3))
    for name in _QUERIES:
        query = getattr(ctx.store, name)
        every = list(await query(order="asc", limit=10_000))
        ctx.equal(len(every), 13, f"how many {name} finds")
        ctx.equal(list(await query(limit=0)), [], f"{name} with limit 0")
        ctx.equal(list(await query(order="asc", offset=9)), every[9:], f"{name} with an offset alone")
        ctx.equal(list(await query(order="asc", offset=3, limit=2)), every[3:5], f"{name} with offset and limit")
        ctx.equal(list(await query(offset=500)), [], f"{name} with an offset beyond all")
        for bad in ({"limit": -1}, {"limit": 10_001}, {"offset": -5}):
            await ctx.raises(InvalidArgumentError, query(**bad), f"{name}({bad})")


@check("QRY-4", needs=_Q, under=(Dimension.ITEMS,))
async def a_large_limit_is_not_cut(ctx: Context) -> None:
    """A limit of more than a thousand gives that many, where there are so many."""
    await ctx.store.save_messages("m", samples.messages(1201))
    ctx.equal(len(await ctx.store.query_messages(limit=1200)), 1200, "how many messages limit=1200 gives")


_KEYS: Final[tuple[SortBy, ...]] = ("created_at", "updated_at", "message_count")
_ORDERS: Final[tuple[Order, ...]] = ("asc", "desc")


@check("QRY-5", "QRY-3", needs=_Q, under=(Dimension.ORDERS, Dimension.EQUALS, Dimension.ITEMS))
async def cursors_in_every_order(ctx: Context) -> None:
    """Sessions come whole in every order and both ways: in one page, in small ones, and by the iterator."""
    for i in range(11):
        agent_id = f"a{(i * 7) % 11:02d}"
        info = samples.info(agent_id, created_at=samples.T0 + i % 4)
        await ctx.store.save_turn(agent_id, info=info, messages=samples.messages(i % 3))
        if i % 4 == 3:
            await asyncio.sleep(0.003)
    for key, order in itertools.product(_KEYS, _ORDERS):
        every = list(await ctx.store.query_sessions(sort_by=key, order=order))
        ctx.equal(len(every), 11, "how many sessions there are")
        wanted = sorted(every, key=attrgetter(key, "agent_id"), reverse=order == "desc")
        ctx.equal(every, wanted, f"sessions by {key}, {order}")
        found = [session async for session in ctx.store.iter_sessions(sort_by=key, order=order)]
        ctx.equal(found, wanted, f"iter_sessions by {key}, {order}")
        for size in (1, 2, 4):
            pages = await _pages(ctx, sort_by=key, order=order, limit=size)
            ctx.equal(pages, wanted, f"sessions by {key}, {order}, in pages of {size}")


async def _pages(ctx: Context, **filters: Any) -> list[Any]:
    page: Page[Any] = await ctx.store.query_sessions(**filters)
    found = list(page)
    while page.next_cursor is not None and len(found) < 100:
        page = await ctx.store.query_sessions(**filters, cursor=page.next_cursor)
        found += page
    return found


@check("QRY-2", "VAL-5", needs=_Q, under=(Dimension.NUMBERS,))
async def times_of_messages_and_of_changes(ctx: Context) -> None:
    """updated_* of sessions and created_* of messages bound to the millisecond: after is inclusive, before is not."""
    for i in range(3):
        await ctx.store.save_info(f"a{i}", samples.info(f"a{i}"))
        await ctx.store.append_messages("m", samples.messages(1, i))
        await asyncio.sleep(0.01)
    changed = [session.updated_at for session in await ctx.store.query_sessions(sort_by="updated_at", order="asc")]
    created = [message.created_at for message in await ctx.store.query_messages(order="asc")]
    for name, key, known in (("query_sessions", "updated", changed), ("query_messages", "created", created)):
        ctx.equal(len(set(known)), 3, f"how many times of {key}_at there are")
        for time in (known[0], known[1], known[1] + 1, known[2] + 1):
            query = getattr(ctx.store, name)
            after = sorted(getattr(r, f"{key}_at") for r in await query(**{f"{key}_after": time}))
            before = sorted(getattr(r, f"{key}_at") for r in await query(**{f"{key}_before": time}))
            ctx.equal(after, [t for t in known if t >= time], f"{name} with {key}_after")
            ctx.equal(before, [t for t in known if t < time], f"{name} with {key}_before")


_SESSIONS: Final[tuple[Mapping[str, Any], ...]] = (
    {"agent_id": "a1"},
    {"template_id": "t1"},
    {"user_id": "u1"},
    {"metadata": {"n": 1}},
    {"created_after": samples.T0 + 3},
    {"created_before": samples.T0 + 2},
)
_CALLS: Final[tuple[Mapping[str, Any], ...]] = (
    {"agent_id": "a1"},
    {"tool_name": "n1"},
    {"state": "FAILED"},
    {"is_error": True},
    {"created_after": samples.T0 + 3},
)


async def _six_agents(ctx: Context) -> None:
    for i in range(6):
        call = samples.tool_call(i, name=f"n{i % 2}", state=("FAILED", "DONE")[i % 2], is_error=i % 2 == 0)
        metadata = {"userId": f"u{i % 3}", "n": i % 2}
        info = samples.info(f"a{i}", template_id=f"t{i % 2}", created_at=samples.T0 + i, metadata=metadata)
        await ctx.store.save_turn(f"a{i}", info=info, messages=samples.messages(1), tool_calls=[call])


@check("QRY-6", needs=_Q, under=(Dimension.ORDERS,))
async def iterators_know_every_filter(ctx: Context) -> None:
    """Iterators give the same records as the query with the same filter, for each filter."""
    await _six_agents(ctx)
    for kind, all_filters in (("sessions", _SESSIONS), ("tool_calls", _CALLS)):
        for filters in all_filters:
            wanted = list(await getattr(ctx.store, f"query_{kind}")(**filters))
            ctx.true(0 < len(wanted) < 6, f"query_{kind}({filters}) must find some and not all")
            found = [record async for record in getattr(ctx.store, f"iter_{kind}")(**filters)]
            ctx.equal(found, wanted, f"iter_{kind}({filters})")


@check("LIFE-5", needs=_Q, under=(Dimension.ORDERS, Dimension.COMPANY))
async def delete_many_knows_every_filter(ctx: Context) -> None:
    """For each filter delete_many deletes the sessions that the query finds, also of agents that others have locked,
    and leaves all others.
    """
    other = await ctx.another()
    for number, filters in enumerate(_SESSIONS):
        await _six_agents(ctx)
        matching = {session.agent_id for session in await ctx.store.query_sessions(**filters)}
        ctx.true(0 < len(matching) < 6, f"query_sessions({filters}) must find some and not all")
        locked = (
            sorted(matching)[-1 - number % len(matching)]
            if number % 2 and hasattr(other, "acquire_agent_lock")
            else None
        )
        lease = await other.acquire_agent_lock(locked, ttl_ms=600_000) if locked is not None else None
        told = f"what delete_many({filters}) returns, while another store has the lock of {locked}"
        ctx.equal(await ctx.store.delete_many(**filters), len(matching), told)
        left = [f"a{i}" for i in range(6) if f"a{i}" not in matching]
        ctx.equal(list(await ctx.store.list()), left, f"who is left after delete_many({filters})")
        if lease is not None:
            await lease.release()


@check("EVT-7", under=(Dimension.ORDERS, Dimension.COMPANY))
async def following_since(ctx: Context) -> None:
    """Following since a bookmark gives only events with a greater seq, stored ones and new ones."""
    await ctx.store.append_events("a", [samples.event(seq) for seq in (5, 1, 4, 2)])
    seen: list[int] = []
    async with ctx.within():
        async for event in ctx.store.follow_events("a", since=Bookmark(2, 0)):
            seen.append(event.bookmark.seq)
            if len(seen) == 2:
                await ctx.store.append_events("a", [samples.event(seq) for seq in (0, 9)])
            if len(seen) == 3:
                break
    ctx.equal(seen, [5, 4, 9], "the seqs that were followed since 2")


@check("INFO-2", needs=_Q, under=(Dimension.CHANGES, Dimension.INSTANCES, Dimension.CLOCKS))
async def every_change_moves_updated_at(ctx: Context) -> None:
    """Each of many changes in a row, made by two instances within the same milliseconds, moves updated_at forward."""
    other = await ctx.another()
    await ctx.store.save_info("a", samples.info("a"))
    before = 0
    for i in range(40):
        store = (ctx.store, other)[i % 2]
        if i % 3 == 0:
            await store.save_info("a", samples.info("a", metadata={"n": i}))
        else:
            await store.append_messages("a", samples.messages(1, i))
        (session,) = await store.query_sessions(agent_id="a")
        ctx.true(
            session.updated_at > before, f"updated_at was {before}, and after change {i + 1} it is the same or less"
        )
        before = session.updated_at
