"""MSG, TC and TURN: the two lists of an agent, and a whole turn in one write."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from kode_conformance.context import Context
from kode_conformance.dimensions import Dimension
from kode_conformance.harness import keeps_documents
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_core.errors import InvalidArgumentError
from kode_core.model import Message, ToolCallRecord, ToolUseBlock


@check("MSG-1", "MSG-2", under=(Dimension.CHANGES, Dimension.ORDERS))
async def save_replaces_the_whole_list(ctx: Context) -> None:
    """Saving replaces the whole list: shorter, longer, changed, reordered, empty; order is kept."""
    m = samples.messages(6)
    for wanted in (m[:3], m[:5], m[:2], [m[1], m[0]], [m[0], m[5], m[2]], [m[0], m[0], m[0]], [], m, list(reversed(m))):
        await ctx.store.save_messages("a", wanted)
        ctx.equal(await ctx.store.load_messages("a"), wanted, f"after saving {len(wanted)} messages")


@check("MSG-1", needs=Capability.PERSISTENT, under=(Dimension.INSTANCES, Dimension.CHANGES))
async def lists_survive_a_restart(ctx: Context) -> None:
    """Saved lists are complete and in order after the store was closed and opened again, and can be changed further."""
    m = samples.messages(5)
    await ctx.store.save_messages("a", m[:4])
    await ctx.store.save_tool_call_records("a", [samples.tool_call(i) for i in range(3)])
    await ctx.reopen()
    loaded = await ctx.store.load_messages("a")
    ctx.equal(loaded, m[:4], "the messages")
    ctx.equal(await ctx.store.load_tool_call_records("a"), [samples.tool_call(i) for i in range(3)], "the tool calls")
    await ctx.store.save_messages("a", [*loaded, m[4]])
    await ctx.reopen()
    ctx.equal(await ctx.store.load_messages("a"), m, "the messages after a save on top of a load")


@check("MSG-1", under=(Dimension.EQUALS,))
async def callers_keep_their_lists(ctx: Context) -> None:
    """The store does not change its arguments, and the caller may change what it returns."""
    given = samples.messages(2)
    await ctx.store.save_messages("a", given)
    ctx.equal(given, samples.messages(2), "the list that was given")
    given.append(samples.message(9))
    loaded = await ctx.store.load_messages("a")
    loaded.clear()
    ctx.equal(await ctx.store.load_messages("a"), samples.messages(2), "the stored list")


@check("MSG-1", needs=Capability.CROSS_PROCESS, tier=Tier.STANDARD, under=(Dimension.COMPANY, Dimension.INSTANCES))
async def readers_see_the_old_list_or_the_new_one(ctx: Context) -> None:
    """A reader in any process sees a whole list at any time, never a mixture."""
    reader = await ctx.another()
    writers = [await ctx.process("replace_messages", "a", tag, 40, length) for tag, length in (("x", 7), ("y", 13))]
    tasks = [asyncio.ensure_future(writer.lines()) for writer in writers]
    while not all(task.done() for task in tasks):
        texts = {message.text for message in await reader.load_messages("a")}
        ctx.true(len(texts) <= 1, f"a list must be of one save, got {sorted(texts)}")
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    final = await reader.load_messages("a")
    ctx.true(len({m.text for m in final}) == 1 and len(final) in (7, 13), "the last list must be whole")


@check("MSG-3", under=(Dimension.COMPANY, Dimension.INSTANCES))
async def concurrent_appends_are_both_kept(ctx: Context) -> None:
    """All concurrent appends are kept, each in one piece."""
    other = await ctx.another()
    stores = [ctx.store, other]
    groups = [[samples.message(text=f"{i} {half}") for half in "abc"] for i in range(20)]
    await asyncio.gather(*(stores[i % 2].append_messages("a", group) for i, group in enumerate(groups)))
    texts = [m.text.split() for m in await ctx.store.load_messages("a")]
    ctx.equal(len(texts), 60, "how many messages there are")
    for i in range(0, 60, 3):
        ctx.equal([half for _, half in texts[i : i + 3]], ["a", "b", "c"], f"the group at {i}")
        ctx.equal(len({number for number, _ in texts[i : i + 3]}), 1, f"how many groups the one at {i} is of")


@check("MSG-3", needs=Capability.CROSS_PROCESS, tier=Tier.STANDARD, under=(Dimension.PROCESSES, Dimension.COMPANY))
async def appends_of_several_processes_are_kept(ctx: Context) -> None:
    """All appends of several processes are kept, each in one piece."""
    processes = [await ctx.process("append_messages", "a", tag, 25) for tag in ("p", "q", "r")]
    await asyncio.gather(*(process.lines() for process in processes))
    texts = [m.text.split() for m in await ctx.store.load_messages("a")]
    ctx.equal(len(texts), 150, "how many messages there are")
    ctx.true(all(texts[i][:2] == texts[i + 1][:2] for i in range(0, 150, 2)), "each pair must be in one piece")
    for tag in ("p", "q", "r"):
        numbers = [int(n) for t, n, half in texts if t == tag and half == "first"]
        ctx.equal(numbers, list(range(25)), f"the order of what process {tag} appended")


@check("MSG-3", under=(Dimension.ORDERS, Dimension.INSTANCES))
async def saves_and_appends_follow_each_other(ctx: Context) -> None:
    """A save after an append, and an append after a save, build on the stored list, in every instance."""
    other = await ctx.another()
    m = samples.messages(8)
    await ctx.store.save_messages("a", m[:2])
    await other.append_messages("a", m[2:4])
    await ctx.store.append_messages("a", m[4:5])
    ctx.equal(await other.load_messages("a"), m[:5], "after appends of two instances")
    await ctx.store.save_messages("a", m[:6])
    ctx.equal(await other.load_messages("a"), m[:6], "after a save by an instance that did not see an append")
    await other.save_messages("a", m[:1])
    await ctx.store.append_messages("a", m[7:])
    ctx.equal(await other.load_messages("a"), [m[0], m[7]], "after a cut by the other")
    await ctx.store.append_messages("a", [])
    ctx.equal(await ctx.store.load_messages("a"), [m[0], m[7]], "after appending nothing")
    for store, wanted in ((ctx.store, m[:2]), (other, m[4:7]), (ctx.store, m[:3]), (other, m[4:8]), (ctx.store, m[:4])):
        await store.save_messages("a", wanted)
        ctx.equal(await other.load_messages("a"), wanted, "after two instances took turns to save lists that grow")


@check("MSG-4", needs=Capability.QUERYABLE, under=(Dimension.CHANGES,))
async def messages_keep_their_first_time(ctx: Context) -> None:
    """Saving a list again with more at the end, or with some gone at the start, does not restamp what stays."""
    m = samples.messages(6)
    await ctx.store.save_messages("a", m[:3])
    first = await _times(ctx)
    await asyncio.sleep(0.02)
    await ctx.store.save_messages("a", m[:5])
    second = await _times(ctx)
    ctx.equal({t: second[t] for t in first}, first, "the times of the first three")
    ctx.true(second["message 4"] > first["message 0"], "a new message must get a time of its own")
    await asyncio.sleep(0.02)
    await ctx.store.save_messages("a", [samples.message(text="summary"), *m[2:6]])
    third = await _times(ctx)
    for text in ("message 2", "message 3", "message 4"):
        ctx.equal(third[text], second[text], f"the time of {text}, which only moved")
    other = await ctx.another()
    await other.save_messages("a", [samples.message(text="summary"), *samples.messages(6, 2)])
    fourth = await _times(ctx)
    ctx.equal({t: fourth[t] for t in third}, third, "the times after a save by another instance")


async def _times(ctx: Context) -> dict[str, int]:
    return {m.text: m.created_at for m in await ctx.store.query_messages(agent_id="a", order="asc")}


@check("MSG-6", "MSG-8", under=(Dimension.CHANGES, Dimension.ORDERS))
async def the_store_counts_messages(ctx: Context) -> None:
    """message_count is the number of stored messages, whatever save_info says, before and after."""

    async def count() -> int | None:
        info = await ctx.store.load_info("a")
        return info.message_count if info else None

    await ctx.store.save_info("a", samples.info("a", message_count=99))
    ctx.equal(await count(), 0, "message_count of an agent without messages")
    await ctx.store.save_messages("a", samples.messages(4))
    ctx.equal(await count(), 4, "message_count after a save of four")
    await ctx.store.save_info("a", samples.info("a", message_count=1))
    await ctx.store.append_messages("a", samples.messages(2))
    ctx.equal(await count(), 6, "message_count after an append of two")
    await ctx.store.save_messages("a", samples.messages(1))
    ctx.equal(await count(), 1, "message_count after a shorter save")


@check("MSG-6", needs=Capability.QUERYABLE, under=(Dimension.CHANGES,))
async def sessions_count_messages(ctx: Context) -> None:
    """message_count of a session is the number of stored messages."""
    await ctx.store.save_messages("a", samples.messages(3))
    await ctx.store.save_info("a", samples.info("a", message_count=50))
    ctx.equal([s.message_count for s in await ctx.store.query_sessions()], [3], "message_count of the session")
    await ctx.store.append_messages("a", samples.messages(1))
    ctx.equal([s.message_count for s in await ctx.store.query_sessions()], [4], "message_count after an append")


@check("MSG-7", "LIFE-1", under=(Dimension.ORDERS,))
async def any_order_of_saves_works(ctx: Context) -> None:
    """Saving anything before save_info works and loses nothing; the agent exists once its info is saved."""
    await ctx.store.append_event("a", samples.event(0))
    await ctx.store.save_snapshot("a", samples.snapshot())
    await ctx.store.save_tool_call_records("a", [samples.tool_call()])
    await ctx.store.save_todos("a", samples.todos("x"))
    await ctx.store.save_messages("a", samples.messages(2))
    await ctx.store.save_media_cache("a", [samples.media()])
    ctx.equal(await ctx.store.exists("a"), False, "exists before save_info")
    await ctx.store.save_info("a", samples.info("a"))
    ctx.equal(await ctx.store.exists("a"), True, "exists after save_info")
    ctx.equal(await ctx.store.load_messages("a"), samples.messages(2), "the messages")
    ctx.equal(await ctx.store.load_tool_call_records("a"), [samples.tool_call()], "the tool calls")
    ctx.equal(await ctx.store.load_todos("a"), samples.todos("x"), "the todos")
    ctx.equal(await ctx.store.list_snapshots("a"), [samples.snapshot()], "the snapshots")
    ctx.equal(await ctx.store.load_media_cache("a"), [samples.media()], "the media cache")
    ctx.equal([e async for e in ctx.store.read_events("a")], [samples.event(0)], "the events")


@check("MSG-8", "INFO-1", under=(Dimension.CHANGES, Dimension.ORDERS))
async def no_save_changes_another_kind(ctx: Context) -> None:
    """Saving one kind, twice and in any order, leaves every other kind as it was."""
    saves: dict[str, Callable[[int], Awaitable[object]]] = {
        "messages": lambda i: ctx.store.save_messages("a", samples.messages(2 + i)),
        "tool calls": lambda i: ctx.store.save_tool_call_records("a", [samples.tool_call(i)]),
        "todos": lambda i: ctx.store.save_todos("a", samples.todos(f"todo {i}")),
        "info": lambda i: ctx.store.save_info("a", samples.info("a", metadata={"i": i})),
        "snapshot": lambda i: ctx.store.save_snapshot("a", samples.snapshot(count=i + 1)),
        "window": lambda i: ctx.store.save_history_window("a", samples.window(timestamp=i)),
        "compression": lambda i: ctx.store.save_compression_record("a", samples.compression(timestamp=i)),
        "recovered": lambda i: ctx.store.save_recovered_file("a", samples.recovered(content=str(i))),
        "media": lambda i: ctx.store.save_media_cache("a", [samples.media(f"k{i}")]),
        "event": lambda i: ctx.store.append_event("a", samples.event(i)),
    }
    for save in saves.values():
        await save(0)
    for name, save in saves.items():
        before = await dump(ctx)
        await save(1)
        after = await dump(ctx)
        changed = {kind for kind in before if before[kind] != after[kind]}
        ctx.equal(sorted(changed), [name], f"the kinds that saving {name} changed")


async def dump(ctx: Context, agent: str = "a") -> dict[str, object]:
    """Everything of an agent, by kind."""
    store = ctx.store
    info = await store.load_info(agent)
    documents = {"documents": [one async for one in store.iter_documents(agent, "c")]} if keeps_documents() else {}
    return {
        "messages": await store.load_messages(agent),
        "tool calls": await store.load_tool_call_records(agent),
        "todos": await store.load_todos(agent),
        "info": info and info.replace(message_count=0),
        "snapshot": await store.list_snapshots(agent),
        "window": await store.load_history_windows(agent),
        "compression": await store.load_compression_records(agent),
        "recovered": await store.load_recovered_files(agent),
        "media": await store.load_media_cache(agent),
        "event": [event async for event in store.read_events(agent)],
        **documents,
    }


# --- tool calls -------------------------------------------------------------------------------------------------------


@check("TC-1", under=(Dimension.ORDERS, Dimension.CHANGES))
async def tool_calls_are_a_list_in_order(ctx: Context) -> None:
    """Saving tool calls replaces the whole list; order is as given, whatever their times."""
    calls = [samples.tool_call(i, created_at=samples.T0 - i) for i in range(5)]
    for wanted in (calls[:3], calls, calls[:1], [calls[2], calls[0]], [], calls[1:4]):
        await ctx.store.save_tool_call_records("a", wanted)
        ctx.equal(await ctx.store.load_tool_call_records("a"), wanted, f"after saving {len(wanted)} calls")


@check("TC-1", under=(Dimension.LOOKALIKES,))
async def every_state_and_the_audit_trail(ctx: Context) -> None:
    """Every state, the approval and the audit trail come back as they were."""
    states = ("PENDING", "APPROVAL_REQUIRED", "APPROVED", "EXECUTING", "COMPLETED", "FAILED", "DENIED", "SEALED")
    calls = [samples.tool_call(i, state=state) for i, state in enumerate(states)]
    calls.append(samples.approved_call(9))
    calls.append(ToolCallRecord(id="bare", name="x", created_at=1, updated_at=2))
    await ctx.store.save_tool_call_records("a", calls)
    ctx.equal(await ctx.store.load_tool_call_records("a"), calls, "calls in every state")


@check("TC-2", under=(Dimension.EQUALS,))
async def call_ids_repeat(ctx: Context) -> None:
    """The same call id may stand in two agents, and twice in one."""
    twice = [samples.tool_call(0), samples.tool_call(0, name="other"), samples.tool_call(0)]
    await ctx.store.save_tool_call_records("a", twice)
    await ctx.store.save_tool_call_records("b", [samples.tool_call(0, result="b's")])
    ctx.equal(await ctx.store.load_tool_call_records("a"), twice, "the calls of a")
    ctx.equal((await ctx.store.load_tool_call_records("b"))[0].result, "b's", "the result of b's call")


@check("TC-3", under=(Dimension.EQUALS, Dimension.CHANGES))
async def upsert_replaces_the_last_of_the_id(ctx: Context) -> None:
    """Upsert replaces the last record of the same id and appends others; of two with one id the last stays."""
    calls = [samples.tool_call(0), samples.tool_call(1), samples.tool_call(0, name="second")]
    await ctx.store.save_tool_call_records("a", calls)
    done = samples.tool_call(0, state="FAILED", is_error=True)
    new = samples.tool_call(7)
    for store in (ctx.store, await ctx.another()):
        await store.upsert_tool_call_records("a", [done, new])
        ctx.equal(await ctx.store.load_tool_call_records("a"), [calls[0], calls[1], done, new], "after an upsert")
    newer = [samples.tool_call(8, name="x"), samples.tool_call(8, name="y"), samples.tool_call(1, name="z")]
    await ctx.store.upsert_tool_call_records("a", newer)
    wanted = [calls[0], newer[2], done, new, newer[1]]
    ctx.equal(await ctx.store.load_tool_call_records("a"), wanted, "after an upsert of one id twice")
    await ctx.store.upsert_tool_call_records("b", [new])
    ctx.equal(await ctx.store.load_tool_call_records("b"), [new], "an upsert for a new agent")


@check("TC-3", under=(Dimension.COMPANY, Dimension.INSTANCES))
async def concurrent_upserts_are_all_kept(ctx: Context) -> None:
    """Concurrent upserts of several instances lose nothing."""
    stores = [ctx.store, await ctx.another()]
    await asyncio.gather(*(stores[i % 2].upsert_tool_call_records("a", [samples.tool_call(i)]) for i in range(20)))
    ids = [call.id for call in await ctx.store.load_tool_call_records("a")]
    ctx.equal(sorted(ids), sorted(f"call_{i}" for i in range(20)), "the call ids")


# --- turns ------------------------------------------------------------------------------------------------------------


@check("TURN-1", under=(Dimension.ORDERS, Dimension.CHANGES))
async def a_turn_writes_all_it_is_given(ctx: Context) -> None:
    """save_turn writes messages, tool calls, todos, info and events, and leaves every kind alone that is not given."""
    await ctx.store.save_messages("a", samples.messages(1))
    await ctx.store.save_tool_call_records("a", [samples.tool_call(0)])
    use = Message("assistant", [ToolUseBlock("call_1", "search", {})])
    await ctx.store.save_turn(
        "a",
        append=[use],
        upsert_tool_calls=[samples.tool_call(1)],
        todos=samples.todos("next"),
        info=samples.info("a"),
        events=samples.events(3),
    )
    ctx.equal(await ctx.store.load_messages("a"), [samples.message(0), use], "the messages")
    ctx.equal([c.id for c in await ctx.store.load_tool_call_records("a")], ["call_0", "call_1"], "the tool calls")
    ctx.equal(await ctx.store.load_todos("a"), samples.todos("next"), "the todos")
    ctx.equal([e async for e in ctx.store.read_events("a")], samples.events(3), "the events")
    info = await ctx.store.load_info("a")
    ctx.equal(info and info.message_count, 2, "message_count")
    await ctx.store.save_turn("a", messages=samples.messages(5), tool_calls=[], events=samples.events(3))
    ctx.equal(await ctx.store.load_messages("a"), samples.messages(5), "the messages after a turn that replaces")
    ctx.equal(await ctx.store.load_tool_call_records("a"), [], "the tool calls after a turn that empties")
    ctx.equal(len([e async for e in ctx.store.read_events("a")]), 3, "the events, given again")
    await ctx.store.save_turn("a")
    ctx.equal(await ctx.store.load_messages("a"), samples.messages(5), "the messages after an empty turn")


@check("TURN-1", absence_ok=True, under=(Dimension.ORDERS,))
async def a_turn_that_is_refused_writes_nothing(ctx: Context) -> None:
    """When one part of a turn cannot be stored, no part is."""
    bad_call = samples.tool_call(1, result=float("nan"))
    parts = {"append": samples.messages(2), "todos": samples.todos("x"), "info": samples.info("a")}
    for bad in (
        {**parts, "upsert_tool_calls": [bad_call]},
        {**parts, "tool_calls": [bad_call]},
        {**parts, "events": [samples.event(0, value={1, 2})]},
        {**parts, "info": samples.info("b")},
        {**parts, "messages": samples.messages(1)},
    ):
        await ctx.raises(InvalidArgumentError, ctx.store.save_turn("a", **bad), "a turn with a bad part")  # type: ignore[arg-type]
    found = await dump(ctx)
    ctx.true(not any(found.values()), f"nothing must be stored, got {[k for k, v in found.items() if v]}")
