"""QRY: searching over all agents."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

from kode_conformance.context import Context
from kode_conformance.dimensions import Dimension
from kode_conformance.registry import Capability, check
from kode_conformance.values import samples
from kode_core.errors import InvalidArgumentError
from kode_core.model import Message, TextBlock, ToolCallApproval, ToolResultBlock, ToolUseBlock
from kode_core.query import AgentStats

_Q = Capability.QUERYABLE


async def _sessions(ctx: Context) -> list[dict[str, Any]]:
    """Sessions that differ in everything that can be asked for; returned as plain facts."""
    facts = []
    for i in range(12):
        agent = f"agt-{i % 5}-{i:02d}"
        fact: dict[str, Any] = {
            "agent_id": agent,
            "template_id": ("chat", "chat_", "c%")[i % 3],
            "created_at": samples.T0 + i // 2,
            "message_count": i % 4,
            "metadata": {"userId": f"u{i % 2}", "n": i % 3, "deep": {"a": [i % 2, None]}},
        }
        info = samples.info(agent, **{k: v for k, v in fact.items() if k not in ("agent_id", "message_count")})
        await ctx.store.save_turn(agent, info=info, messages=samples.messages(fact["message_count"]))
        facts.append(fact)
    return facts


@check("QRY-2", "QRY-1", needs=_Q, under=(Dimension.ORDERS,))
async def session_filters_select(ctx: Context) -> None:
    """Each filter of sessions, and each pair of them, gives exactly the sessions that match."""
    facts = await _sessions(ctx)
    t = samples.T0
    filters: list[tuple[dict[str, Any], Callable[[dict[str, Any]], bool]]] = [
        ({"agent_id": "agt-1-01"}, lambda f: f["agent_id"] == "agt-1-01"),
        ({"template_id": "chat_"}, lambda f: f["template_id"] == "chat_"),
        ({"template_id": "c%"}, lambda f: f["template_id"] == "c%"),
        ({"user_id": "u1"}, lambda f: f["metadata"]["userId"] == "u1"),
        ({"metadata": {"n": 2}}, lambda f: f["metadata"]["n"] == 2),
        (
            {"metadata": {"n": 2.0, "userId": "u0"}},
            lambda f: f["metadata"]["n"] == 2 and f["metadata"]["userId"] == "u0",
        ),
        ({"metadata": {"deep": {"a": [1, None]}}}, lambda f: f["metadata"]["deep"]["a"][0] == 1),
        ({"metadata": {"n": True}}, lambda f: False),
        ({"metadata": {"n": "2"}}, lambda f: False),
        ({"metadata": {"missing": None}}, lambda f: False),
        ({"created_after": t + 3}, lambda f: f["created_at"] >= t + 3),
        ({"created_before": t + 3}, lambda f: f["created_at"] < t + 3),
        ({"created_after": 0}, lambda f: True),
        ({"created_before": 0}, lambda f: False),
        ({"created_after": t + 4, "created_before": t + 2}, lambda f: False),
        ({"updated_after": t}, lambda f: True),
        ({"updated_before": t}, lambda f: False),
    ]
    for (one, holds), (two, also) in itertools.combinations_with_replacement(filters, 2):
        if set(one) & set(two) and one != two:
            continue
        wanted = {f["agent_id"] for f in facts if holds(f) and also(f)}
        found = await ctx.store.query_sessions(**{**one, **two})
        ctx.equal(sorted(s.agent_id for s in found), sorted(wanted), f"sessions for {one} and {two}")


@check("QRY-2", needs=_Q, under=(Dimension.CHANGES,))
async def a_session_tells_what_is_known(ctx: Context) -> None:
    """A session has the info's fields, the stored number of messages and the time of the last change."""
    await ctx.store.save_messages("a", samples.messages(2))
    await ctx.store.save_info("a", samples.info("a", lineage=["p"]))
    (session,) = await ctx.store.query_sessions()
    info = samples.info("a", lineage=["p"])
    for name in ("agent_id", "template_id", "created_at", "last_sfp_index", "last_bookmark", "breakpoint", "metadata"):
        ctx.equal(getattr(session, name), getattr(info, name), f"the session's {name}")
    ctx.equal((session.lineage, session.message_count), (("p",), 2), "lineage and message_count")
    ctx.true(session.updated_at > samples.T0, "updated_at must be the time of the save")


@check("QRY-3", "QRY-2", needs=_Q, under=(Dimension.EQUALS, Dimension.ORDERS))
async def sessions_in_a_total_order(ctx: Context) -> None:
    """Sessions sort by each key both ways, newest first by default; ties break on the id; asc is the exact reverse."""
    facts = await _sessions(ctx)
    for key in ("created_at", "message_count"):
        wanted = [f["agent_id"] for f in sorted(facts, key=lambda f: (f[key], f["agent_id"]))]
        found = [s.agent_id for s in await ctx.store.query_sessions(sort_by=key, order="asc")]
        ctx.equal(found, wanted, f"sessions by {key}, ascending")
        found = [s.agent_id for s in await ctx.store.query_sessions(sort_by=key)]
        ctx.equal(found, wanted[::-1], f"sessions by {key}, descending")
    ctx.equal(
        [s.agent_id for s in await ctx.store.query_sessions()],
        [s.agent_id for s in await ctx.store.query_sessions(sort_by="created_at", order="desc")],
        "the default order",
    )
    await asyncio.sleep(0.005)
    await ctx.store.save_info("agt-0-00", samples.info("agt-0-00"))
    newest = (await ctx.store.query_sessions(sort_by="updated_at"))[0].agent_id
    ctx.equal(newest, "agt-0-00", "the session that was updated last")


@check("QRY-1", needs=_Q, absence_ok=True, under=(Dimension.NUMBERS, Dimension.LOOKALIKES))
async def wrong_filters_are_refused(ctx: Context) -> None:
    """An unknown filter or sort key, a wrong type, a naive time or None is refused: a filter is never ignored."""
    naive = datetime(2025, 1, 1)
    both: list[dict[str, Any]] = [
        {"agentId": "a"},
        {"agent_id": 5},
        {"agent_id": None},
        {"agent_id": ""},
        {"created_after": "2025-01-01"},
        {"created_after": naive},
        {"created_before": 1.5},
        {"created_after": True},
        {"limit": "10"},
        {"limit": 1.0},
        {"limit": True},
        {"offset": -1},
        {"order": "descending"},
        {"order": "desc; DROP TABLE kode_agents"},
        {"where": "1=1"},
        {"start_date": 5},
    ]
    own: dict[str, list[dict[str, Any]]] = {
        "query_sessions": [
            {"template_id": 5},
            {"template_id": {"$gt": ""}},
            {"metadata": "x"},
            {"metadata": {"n": float("nan")}},
            {"sort_by": "agent_id"},
            {"sort_by": "created_at; DROP TABLE kode_agents"},
            {"role": "user"},
            {"user_id": 5},
        ],
        "query_messages": [{"role": 5}, {"content_type": [5]}, {"template_id": "x"}, {"sort_by": "created_at"}],
        "query_tool_calls": [{"is_error": "yes"}, {"is_error": 1}, {"has_approval": None}, {"tool": "x"}, {"state": 1}],
    }
    for method, filters in own.items():
        ctx.equal(len(await getattr(ctx.store, method)(agent_id="a", limit=5)), 0, f"{method} with good filters")
        for bad in (*both, *filters):
            for given in (bad, {"limit": 0, **bad}):
                await ctx.raises(InvalidArgumentError, getattr(ctx.store, method)(**given), f"{method}({given})")


@check("QRY-2", "QRY-1", needs=_Q, under=(Dimension.ORDERS,))
async def message_filters_select(ctx: Context) -> None:
    """Each filter of messages gives exactly the messages that match, each with its agent and position."""
    talk = [
        Message.system("s"),
        Message.user("u"),
        Message("assistant", [TextBlock("t"), ToolUseBlock("c", "x", {}), ToolUseBlock("e", "x", {})]),
        Message("user", [ToolResultBlock("c", "r")]),
        Message("assistant", [ToolUseBlock("d", "x", {})]),
        Message("User", [TextBlock("other case"), TextBlock("again")]),
    ]
    await ctx.store.save_messages("a", talk)
    await ctx.store.save_messages("b", talk[:3])
    for filters, positions in (
        ({"agent_id": "a"}, [0, 1, 2, 3, 4, 5]),
        ({"agent_id": "a", "role": "assistant"}, [2, 4]),
        ({"agent_id": "a", "role": "user"}, [1, 3]),
        ({"agent_id": "a", "role": "User"}, [5]),
        ({"agent_id": "a", "content_type": "tool_use"}, [2, 4]),
        ({"agent_id": "a", "content_type": "tool_use", "role": "user"}, []),
        ({"agent_id": "a", "content_type": "text"}, [0, 1, 2, 5]),
        ({"agent_id": "a", "content_type": "tool"}, []),
        ({"agent_id": "zzz"}, []),
    ):
        found = await ctx.store.query_messages(**filters, order="asc")  # type: ignore[arg-type]
        ctx.equal([m.position for m in found], positions, f"the positions for {filters}")
        ctx.equal(list(found), [talk[i] for i in positions], f"the messages for {filters}")
    both = await ctx.store.query_messages(content_type="tool_use", order="asc")
    ctx.equal([(m.agent_id, m.position) for m in both], [("a", 2), ("a", 4), ("b", 2)], "tool uses of all agents")


@check("QRY-2", "QRY-1", needs=_Q, under=(Dimension.ORDERS,))
async def tool_call_filters_select(ctx: Context) -> None:
    """Each filter of tool calls, and each pair of them, gives exactly the calls that match."""
    calls = [
        samples.tool_call(
            i,
            name=("bash", "bash_run", "ba%")[i % 3],
            state=("COMPLETED", "FAILED")[i % 2],
            is_error=(True, False, None)[i % 3],
            approval=ToolCallApproval(required=i % 4 == 0),
            created_at=samples.T0 + i // 3,
        )
        for i in range(24)
    ]
    await ctx.store.save_tool_call_records("a", calls[:14])
    await ctx.store.save_tool_call_records("b", calls[14:])
    t = samples.T0
    filters: list[tuple[dict[str, Any], Callable[[Any], bool]]] = [
        ({"tool_name": "bash"}, lambda c: c.name == "bash"),
        ({"tool_name": "ba%"}, lambda c: c.name == "ba%"),
        ({"state": "FAILED"}, lambda c: c.state == "FAILED"),
        ({"state": "failed"}, lambda c: False),
        ({"is_error": True}, lambda c: c.is_error is True),
        ({"is_error": False}, lambda c: c.is_error is not True),
        ({"has_approval": True}, lambda c: c.approval.required),
        ({"has_approval": False}, lambda c: not c.approval.required),
        ({"created_after": t + 5}, lambda c: c.created_at >= t + 5),
        ({"created_before": t + 2}, lambda c: c.created_at < t + 2),
        ({"agent_id": "a"}, lambda c: c in calls[:14]),
    ]
    for (one, holds), (two, also) in itertools.combinations_with_replacement(filters, 2):
        if set(one) & set(two) and one != two:
            continue
        wanted = sorted(c.id for c in calls if holds(c) and also(c))
        found = await ctx.store.query_tool_calls(**{**one, **two})
        ctx.equal(sorted(c.id for c in found), wanted, f"calls for {one} and {two}")
        ctx.true(
            all(c == calls[int(c.id[5:])] for c in found), "a call that is found must equal the one that was saved"
        )


@check("QRY-2", "VAL-5", needs=_Q, under=(Dimension.NUMBERS, Dimension.CLOCKS))
async def times_bound_to_the_millisecond(ctx: Context) -> None:
    """After is inclusive and before exclusive, to the millisecond, for numbers and for aware datetimes of any zone."""
    for i in range(3):
        await ctx.store.save_info(f"a{i}", samples.info(f"a{i}", created_at=samples.T0 + i))
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=samples.T0 + 1)
    for time in (samples.T0 + 1, moment, moment.astimezone(timezone(timedelta(hours=-5, minutes=-30)))):
        after = [s.agent_id for s in await ctx.store.query_sessions(created_after=time, order="asc")]
        before = [s.agent_id for s in await ctx.store.query_sessions(created_before=time, order="asc")]
        ctx.equal((after, before), (["a1", "a2"], ["a0"]), f"sessions from and before {time}")
    between = moment + timedelta(microseconds=1)
    ctx.equal(len(await ctx.store.query_sessions(created_after=between)), 1, "from just after a millisecond on")
    ctx.equal(len(await ctx.store.query_sessions(created_before=between)), 2, "before just after a millisecond")


@check("QRY-3", needs=_Q, under=(Dimension.EQUALS, Dimension.ORDERS))
async def rows_in_a_total_order(ctx: Context) -> None:
    """Rows are newest first; rows of one time are ordered by agent and position; asc is the exact reverse."""
    for agent in ("b", "a", "c"):
        await ctx.store.save_tool_call_records(agent, [samples.tool_call(i, created_at=samples.T0) for i in range(5)])
    wanted = [(agent, i) for agent in "abc" for i in range(5)]
    found = [(c.agent_id, c.position) for c in await ctx.store.query_tool_calls(order="asc")]
    ctx.equal(found, wanted, "calls of one time, ascending")
    found = [(c.agent_id, c.position) for c in await ctx.store.query_tool_calls()]
    ctx.equal(found, wanted[::-1], "calls of one time, by default")
    await ctx.store.save_messages("m", samples.messages(7))
    positions = [m.position for m in await ctx.store.query_messages(agent_id="m")]
    ctx.equal(positions, list(range(6, -1, -1)), "messages of one save, newest first")


@check("QRY-4", needs=_Q, under=(Dimension.ITEMS, Dimension.NUMBERS))
async def limit_and_offset(ctx: Context) -> None:
    """limit defaults to 100; 0 gives nothing; negative and over 10,000 are refused; offset works with and without."""
    await ctx.store.save_messages("a", samples.messages(130))

    async def positions(**paging: Any) -> list[int]:
        return [m.position for m in await ctx.store.query_messages(agent_id="a", order="asc", **paging)]

    ctx.equal(await positions(), list(range(100)), "without a limit")
    ctx.equal(await positions(limit=0), [], "limit 0")
    ctx.equal(await positions(limit=1), [0], "limit 1")
    ctx.equal(await positions(limit=10_000), list(range(130)), "limit 10,000")
    ctx.equal(await positions(offset=95), list(range(95, 130)), "offset without a limit")
    ctx.equal(await positions(offset=3, limit=2), [3, 4], "offset with a limit")
    ctx.equal(await positions(offset=500), [], "offset beyond the end")
    for bad in ({"limit": -1}, {"limit": 10_001}, {"offset": -5}, {"offset": 2**80}):
        await ctx.raises(InvalidArgumentError, positions(**bad), f"{bad}")
    pages = [await positions(limit=50, offset=i) for i in range(0, 150, 50)]
    ctx.equal([p for page in pages for p in page], list(range(130)), "pages by offset")


@check("QRY-5", needs=_Q, under=(Dimension.ITEMS, Dimension.EQUALS, Dimension.INSTANCES))
async def cursors_give_everything_once(ctx: Context) -> None:
    """Following cursors gives each record once, for any page size and order, ties or not, also in a new instance."""
    await _sessions(ctx)
    for agent in ("x", "y"):
        await ctx.store.save_tool_call_records(agent, [samples.tool_call(i, created_at=samples.T0) for i in range(9)])
    await ctx.store.save_messages("z", samples.messages(9))
    for method in ("query_sessions", "query_messages", "query_tool_calls"):
        for order, size in itertools.product(("asc", "desc"), (1, 2, 5, 100)):
            query = getattr(ctx.store, method)
            everything = list(await query(order=order, limit=1000))
            ctx.true(len(everything) > 5, f"{method} must find what was saved")
            pages, cursor = [], None
            while True:
                page = await query(order=order, limit=size, cursor=cursor)
                pages.extend(page)
                cursor = page.next_cursor
                if cursor is None or len(pages) > len(everything):  # cursors that lead back have no end
                    break
                query = getattr(await ctx.another() if size == 5 else ctx.store, method)
            ctx.equal(pages, everything, f"{method} in pages of {size}, {order}")


@check("QRY-5", needs=_Q, under=(Dimension.COMPANY,))
async def cursors_while_others_write(ctx: Context) -> None:
    """Following cursors gives each record that exists throughout once, whatever is written and deleted meanwhile."""
    for i in range(40):
        await ctx.store.save_info(f"a{i:02d}", samples.info(f"a{i:02d}", created_at=samples.T0 + i // 4))
    seen: list[str] = []
    cursor, n = None, 0
    while True:
        page = await ctx.store.query_sessions(limit=7, cursor=cursor)
        seen.extend(s.agent_id for s in page)
        cursor = page.next_cursor
        if cursor is None or len(seen) > 200:
            break
        await ctx.store.save_info(f"new{n}", samples.info(f"new{n}", created_at=samples.T0 + 100 * n))
        await ctx.store.delete(f"a{n:02d}")
        await ctx.store.delete(seen[0])
        await ctx.store.save_messages(f"a{20 + n}", samples.messages(3))
        n += 1
    stayed = {f"a{i:02d}" for i in range(40)} - {f"a{i:02d}" for i in range(n)} - {seen[0]}
    ctx.equal(sorted(a for a in seen if a in stayed), sorted(stayed), "the sessions that were there throughout")
    await ctx.store.save_messages("m", samples.messages(30))
    page_one = await ctx.store.query_messages(agent_id="m", limit=10)
    await ctx.store.append_messages("m", samples.messages(5))
    page_two = await ctx.store.query_messages(agent_id="m", limit=100, cursor=page_one.next_cursor)
    positions = [m.position for m in (*page_one, *page_two)]
    ctx.equal(positions, list(range(29, -1, -1)), "the messages that were there throughout")


@check("QRY-5", needs=_Q, under=(Dimension.LOOKALIKES,))
async def cursors_are_checked(ctx: Context) -> None:
    """A cursor that was changed, made up, or belongs to another query is refused."""
    await ctx.store.save_messages("a", samples.messages(5))
    cursor = (await ctx.store.query_messages(limit=2)).next_cursor
    assert cursor is not None
    swapped = cursor[:-3] + ("A" if cursor[-3] != "A" else "B") + cursor[-2:]
    for bad in ("", "x", "{}", cursor[:-4], swapped, cursor + "AAAA", "é"):
        await ctx.raises(InvalidArgumentError, ctx.store.query_messages(cursor=bad), f"the cursor {bad!a:.30}")
    await ctx.raises(InvalidArgumentError, ctx.store.query_messages(cursor=5), "a cursor that is no text")  # type: ignore[arg-type]
    await ctx.raises(InvalidArgumentError, ctx.store.query_tool_calls(cursor=cursor), "a cursor of another kind")
    other = ctx.store.query_messages(cursor=cursor, role="user")
    await ctx.raises(InvalidArgumentError, other, "a cursor of other filters")
    await ctx.raises(InvalidArgumentError, ctx.store.query_messages(cursor=cursor, offset=1), "a cursor with an offset")
    ctx.equal(len(await ctx.store.query_messages(cursor=cursor)), 3, "what follows the sound cursor")


@check("QRY-6", needs=_Q, under=(Dimension.ITEMS,))
async def iterators_give_everything(ctx: Context) -> None:
    """Iterators give everything that matches, however much, and refuse paging."""
    await ctx.store.save_messages("a", samples.messages(1203))
    await ctx.store.save_tool_call_records("a", [samples.tool_call(i) for i in range(3)])
    await ctx.store.save_info("a", samples.info("a"))
    positions = [m.position async for m in ctx.store.iter_messages(agent_id="a", order="asc")]
    ctx.equal(positions, list(range(1203)), "the messages")
    ctx.equal([c.position async for c in ctx.store.iter_tool_calls()], [2, 1, 0], "the tool calls")
    ctx.equal([s.agent_id async for s in ctx.store.iter_sessions(template_id="assistant")], ["a"], "the sessions")

    async def paged() -> None:
        async for _ in ctx.store.iter_messages(limit=5):
            pass

    await ctx.raises(InvalidArgumentError, paged(), "an iterator with a limit")


@check("QRY-7", needs=_Q, under=(Dimension.EQUALS,))
async def stats_count_what_is_there(ctx: Context) -> None:
    """Statistics count the stored records, by name and state as stored, with zeros for an unknown agent."""
    ctx.equal(await ctx.store.aggregate_stats("nobody"), AgentStats(), "the statistics of nobody")
    names = ("bash", "__proto__", "constructor", "", "a\0b", "x\\y", "\ud83d")
    calls = [samples.tool_call(i, name=names[i % 7], state=("COMPLETED", "FAILED")[i % 3 == 0]) for i in range(21)]
    await ctx.store.save_tool_call_records("a", calls)
    await ctx.store.save_messages("a", samples.messages(4))
    await ctx.store.save_snapshot("a", samples.snapshot("1"))
    await ctx.store.save_snapshot("a", samples.snapshot("2"))
    stats = await ctx.store.aggregate_stats("a")
    totals = (stats.total_messages, stats.total_tool_calls, stats.total_snapshots)
    ctx.equal(totals, (4, 21, 2), "the totals")
    ctx.equal(stats.tool_calls_by_name == dict.fromkeys(names, 3), True, f"by name: {stats.tool_calls_by_name!a}")
    ctx.equal(
        stats.tool_calls_by_state == {"COMPLETED": 14, "FAILED": 7}, True, f"by state: {stats.tool_calls_by_state}"
    )
    await ctx.store.save_tool_call_records("a", calls[:1])
    await ctx.store.delete("b")
    ctx.equal(
        (await ctx.store.aggregate_stats("a")).tool_calls_by_name == {"bash": 1}, True, "by name after a shorter save"
    )
    await ctx.store.delete("a")
    ctx.equal(await ctx.store.aggregate_stats("a"), AgentStats(), "the statistics after delete")


@check("QRY-8", needs=_Q, under=(Dimension.INSTANCES,))
async def every_instance_is_current(ctx: Context) -> None:
    """Records that one instance wrote are loaded, listed and found by another at once."""
    other = await ctx.another()
    for i in range(5):
        await ctx.store.save_turn(
            "a", messages=samples.messages(i), info=samples.info("a", metadata={"userId": f"u{i}"})
        )
        ctx.equal(len(await other.load_messages("a")), i, "the messages another instance loads")
        ctx.equal(len(await other.query_sessions(user_id=f"u{i}")), 1, "the sessions another instance finds")
        ctx.equal(len(await other.query_messages(agent_id="a")), i, "the messages another instance finds")
    await other.delete("a")
    ctx.equal(await ctx.store.list(), [], "what the first instance lists after the other deleted")
