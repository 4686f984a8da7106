"""MSG-4, TC-2, EVT-3, EVT-4, QRY-3: records with equal contents that must still be told apart."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any, Final

from kode_conformance.checks.many_reads import in_pages
from kode_conformance.checks.times import by_time
from kode_conformance.context import Context
from kode_conformance.dimensions import Dimension
from kode_conformance.instruments.logs import Asked, Log
from kode_conformance.registry import Capability, check
from kode_conformance.values import samples
from kode_conformance.values.fields import full
from kode_conformance.values.kinds import Gives, kinds
from kode_conformance.values.many import DOCUMENTS, at_once, same, views
from kode_core.model import AgentEvent, Bookmark, Message, Timeline

_Q = Capability.QUERYABLE
_ORDERS: Final = ("asc", "desc")


# --- messages ---------------------------------------------------------------------------------------------------------


async def _stamps(ctx: Context, messages: list[Message], what: str) -> list[int]:
    """The times of the messages, which must be these, and must not fall along their positions."""
    found = sorted(await by_time(ctx.store), key=lambda message: message.position)
    same(ctx, found, messages, f"the messages {what}")
    times = [message.created_at for message in found]
    ctx.equal(times, sorted(times), f"the times {what}, along the positions")
    return times


@check("MSG-4", "MSG-1", needs=_Q, under=(Dimension.EQUALS, Dimension.CHANGES, Dimension.INSTANCES))
async def equal_messages_keep_each_their_time(ctx: Context) -> None:
    """Messages of one text keep each its own time when the list is saved again with more of that text at its end, with
    the first of them gone, or with one between them replaced; so do those behind them.
    """
    yes, other = samples.message(text="yes"), await ctx.another()
    talk: list[Message] = []
    for i in range(4):  # yes, question 0, yes, question 1, …
        talk += [yes, samples.message(text=f"question {i}")]
        await (ctx.store, other)[i % 2].save_messages("a", talk)
        await asyncio.sleep(0.004)
    before = await _stamps(ctx, talk, "at first")
    ctx.true(len(set(before[::2])) == 4, f"messages of different saves must have different times, got {before}")
    await asyncio.sleep(0.004)
    talk += [yes, yes]
    await other.save_messages("a", talk)
    grown = await _stamps(ctx, talk, "after two more of one text were added")
    ctx.equal(grown[:8], before, "the times of what was there, after two more of one text were added")
    ctx.true(min(grown[8:]) > before[7], f"new messages must get a time of their own, whatever their text: {grown}")
    await asyncio.sleep(0.004)
    talk[3] = samples.message(text="another question")
    await ctx.store.save_messages("a", talk)
    edited = await _stamps(ctx, talk, "after one between equal ones was replaced")
    ctx.equal(edited, grown, "the times after one between equal ones was replaced")
    await asyncio.sleep(0.004)
    for gone in (1, 1, 3):
        talk, grown = talk[gone:], grown[gone:]
        await other.save_messages("a", talk)
        left = await _stamps(ctx, talk, "after the first was gone")
        unique = [i for i, message in enumerate(talk) if message.text != "yes"]
        ctx.equal([left[i] for i in unique], [grown[i] for i in unique], "the times of those that only moved")
        ctx.true(left[-1] <= grown[-1], "the last of equal messages must not get a new time when the first is gone")
        grown = left


@check("MSG-1", "MSG-3", "MSG-6", "TC-2", "TC-1", under=(Dimension.EQUALS, Dimension.CHANGES, Dimension.INSTANCES))
async def equal_records_are_all_kept(ctx: Context) -> None:
    """All messages, tool calls, media and todos that are equal in every field are kept, however they are written, and
    one fewer after one was taken away.
    """
    other = await ctx.another()
    message, call, medium = samples.message(), samples.tool_call(), samples.media()
    todo = samples.todos("x").todos[0]
    for count in (2, 3, 101, 100, 1):
        await other.save_messages("a", [message] * count)
        await other.save_tool_call_records("a", [call] * count)
        await other.save_media_cache("a", [medium] * count)
        await other.save_todos("a", samples.todos().replace(todos=[todo] * count))
        what = f"of {count} that are equal"
        same(ctx, await ctx.store.load_messages("a"), [message] * count, f"the messages {what}")
        same(ctx, await ctx.store.load_tool_call_records("a"), [call] * count, f"the tool calls {what}")
        same(ctx, await ctx.store.load_media_cache("a"), [medium] * count, f"the media {what}")
        todos = await ctx.store.load_todos("a")
        same(ctx, list(todos.todos) if todos else [], [todo] * count, f"the todos {what}")
    for store in (ctx.store, other):
        await store.append_messages("a", [message, message])
        await store.save_turn("a", append=[message], upsert_tool_calls=[call])
    await ctx.store.save_info("a", samples.info("a"))
    same(ctx, await other.load_messages("a"), [message] * 7, "equal messages that were appended again and again")
    same(ctx, await other.load_tool_call_records("a"), [call], "a tool call that was upserted as it was")
    info = await other.load_info("a")
    ctx.equal(info and info.message_count, 7, "message_count of equal messages")


@check("TC-2", "TC-3", "QRY-3", "QRY-7", needs=_Q, under=(Dimension.EQUALS, Dimension.CHANGES, Dimension.INSTANCES))
async def equal_calls_are_found_each(ctx: Context) -> None:
    """Tool calls that are equal in every field, within an agent and among agents, are found each at its place, one by
    one, counted each, and an upsert replaces the last of them alone.
    """
    other, call = await ctx.another(), samples.tool_call(created_at=samples.T0)
    for agent in ("a", "b", "B"):
        await ctx.store.save_tool_call_records(agent, [call] * 4)
    changed = call.replace(result="changed")
    await other.upsert_tool_call_records("b", [changed])
    wanted = [(agent, i) for agent in ("B", "a", "b") for i in range(4)]
    for order, size in itertools.product(_ORDERS, (1, 2, 100)):
        found = await in_pages(ctx.store, "query_tool_calls", order=order, limit=size)
        step = 1 if order == "asc" else -1
        same(ctx, [(c.agent_id, c.position) for c in found], wanted[::step], f"equal calls in pages of {size}, {order}")
        results = [c.result for c in found][::step]
        ctx.equal(results, [call.result] * 11 + ["changed"], f"their results in pages of {size}, {order}")
    async for where, store in views(ctx, other):
        stats = await store.aggregate_stats("b")
        counted = (stats.total_tool_calls, stats.tool_calls_by_name, stats.tool_calls_by_state)
        ctx.equal(counted, (4, {"search": 4}, {"COMPLETED": 4}), f"the statistics of four equal calls{where}")
        same(ctx, await store.load_tool_call_records("b"), [call] * 3 + [changed], f"equal calls{where}")


# --- events -----------------------------------------------------------------------------------------------------------


_NEAR_TEXTS: Final = ("?", "\ud83d", "\ud83e", "\udc00", "\ufffd", "\\ud83d", "\u00e9", "e\u0301", "\0", "\\0")
"""Texts that an encoder, a hash or a normal form takes for equal, some of them."""


def _almost_equal() -> list[Timeline]:
    """Entries that each differ from the first in one thing."""
    data: dict[str, Any] = {"n": 1, "text": "x", "list": [1, {"deep": None}]}
    keys: list[dict[str, Any]] = [{text: 0} for text in _NEAR_TEXTS]

    def entry(
        cursor: int = 3, seq: int = 7, time: int = samples.T0, channel: Any = "progress", kind: str = "t", **more: Any
    ) -> Timeline:
        return Timeline(cursor, Bookmark(seq, time), AgentEvent(channel, kind, {**data, **more}))

    return [
        entry(),
        *(entry(cursor=4), entry(cursor=-3), entry(seq=8), entry(seq=-7), entry(time=samples.T0 + 1), entry(time=0)),
        *(entry(channel="control"), entry(channel="monitor"), entry(kind="T"), entry(kind="t "), entry(kind="")),
        *(entry(n=1.0), entry(n=True), entry(n="1"), entry(n=2), entry(text="X"), entry(text="x "), entry(more=None)),
        *(entry(text=text) for text in _NEAR_TEXTS),
        *(entry(**key) for key in keys),
        *(entry(kind=text) for text in _NEAR_TEXTS),
        *(entry(list=[1, {"deep": False}]), entry(list=[{"deep": None}, 1]), entry(list=[1])),
        Timeline(3, Bookmark(7, samples.T0), AgentEvent("progress", "t", dict(reversed(data.items())))),
    ]


@check("EVT-4", "EVT-3", "EVT-2", "LIFE-4", under=(Dimension.EQUALS, Dimension.CHANGES, Dimension.INSTANCES))
async def almost_equal_events_are_all_kept(ctx: Context) -> None:
    """Events that differ in seq, cursor, timestamp, channel, type, or anything in their data, are all kept; each again
    is none more; and another agent, or the next one of that id, may have the very same.
    """
    other, entries, log = await ctx.another(), _almost_equal(), Log()
    half = len(entries) // 2
    await log.append(ctx, ctx.store, entries[:half])
    for entry in entries[half:]:
        log.note(ctx, [await other.append_event("a", entry)], [entry])
    await log.see(ctx, other, Asked(after_offset=log.offsets[0] - 1))
    await other.append_events("b", entries)
    async for where, store in views(ctx, other):
        for i, (offset, entry) in enumerate(log.entries):
            again = await store.append_event("a", entry)
            ctx.equal(again, offset, f"the offset of event {i + 1} when it is appended again{where}")
        for given, wanted in ((entries, log.offsets), (entries[::-1], log.offsets[::-1])):
            ctx.equal(list(await store.append_events("a", given)), wanted, f"the offsets of all of them again{where}")
        await log.see(ctx, store, Asked(), where)
        others = [event async for event in store.read_events("b", after_offset=0)]
        same(ctx, others, entries, f"the same events of another agent{where}")
    gone, log = log.last, Log()
    await ctx.store.delete("a")
    offsets = await log.append(ctx, ctx.store, entries)
    ctx.true(offsets[0] > gone, f"offset {offsets[0]} of the next agent of that id must be above {gone}")
    await log.see(ctx, ctx.store, Asked(), " after the same were deleted")


# --- equal times and ids ----------------------------------------------------------------------------------------------


@check("QRY-3", "QRY-5", needs=_Q, under=(Dimension.EQUALS, Dimension.ORDERS, Dimension.COMPANY))
async def messages_of_one_time_over_agents(ctx: Context) -> None:
    """Messages of many agents that were saved at once, and have a few times together, are in a total order by time,
    agent and position, whatever the pages, and the other way round it is the exact reverse.
    """
    agents = ["B", "a", "a!", "a0", "b", "é", "😀", "Z", "\uffff", "10", "9", "_"]
    await at_once(ctx.store.save_messages(agent, [samples.message()] * 3) for agent in agents)
    every = {order: list(await ctx.store.query_messages(order=order)) for order in ("asc", "desc")}
    ctx.equal(len(every["asc"]), 3 * len(agents), "how many messages there are")
    places = [(message.created_at, message.agent_id, message.position) for message in every["asc"]]
    same(ctx, places, sorted(places), "messages by time, agent and position")
    same(ctx, every["desc"], every["asc"][::-1], "messages in descending order")
    for order, size in (("asc", 1), ("desc", 1), ("asc", 5), ("desc", 7)):
        pages = await in_pages(ctx.store, "query_messages", order=order, limit=size)
        found = [(message.agent_id, message.position) for message in pages]
        wanted = [(message.agent_id, message.position) for message in every[order]]
        same(ctx, found, wanted, f"messages of one time in pages of {size}, {order}")


@check("HIS-1", "HIS-2", "SNAP-1", "MED-1", "LIFE-3", under=(Dimension.EQUALS, Dimension.CHANGES))
async def the_same_keys_in_every_agent_and_kind(ctx: Context) -> None:
    """Documents of one key in several agents and in every kind, of one time and equal contents, do not share: saving
    one again, or deleting an agent, changes no other.
    """
    agents = ("a", "b", "aa")
    for agent in agents:
        await ctx.store.save_history_window(agent, samples.window("k", 1))
        await ctx.store.save_compression_record(agent, samples.compression("k", 1))
        await ctx.store.save_recovered_file(agent, samples.recovered("k", 1))
        await ctx.store.save_snapshot(agent, samples.snapshot("k", 1))
        await ctx.store.save_media_cache(agent, [samples.media("k")])
    wanted = {
        agent: {documents.name: await documents.load(ctx.store, agent) for documents in DOCUMENTS} for agent in agents
    }
    for name, kept in wanted["a"].items():
        ctx.equal(len(kept), 1, f"how many {name} of one key there are")
    for documents in DOCUMENTS:
        key = "path" if documents.name == "recovered files" else "id"
        changed = documents.item(0, 1).replace(**{key: "k"})
        await documents.save(ctx.store, "b", changed)
        wanted["b"][documents.name] = [changed]
        for agent in agents:
            found = {one.name: await one.load(ctx.store, agent) for one in DOCUMENTS}
            what = f"the documents of {agent} after that of b among the {documents.name} was saved again"
            ctx.equal(found, wanted[agent], what)
    await ctx.store.delete("a")
    for agent, number in (("a", 0), ("b", 1), ("aa", 1)):
        for documents in DOCUMENTS:
            left = await documents.load(ctx.store, agent)
            ctx.equal(len(left), number, f"how many {documents.name} of {agent} are left after a was deleted")
        ctx.equal(len(await ctx.store.load_media_cache(agent)), number, f"the media of {agent} after a was deleted")


_SHARING: Final = 130


@check("HIS-1", "HIS-2", "SNAP-1", "TC-2", "EVT-3", "MED-1", under=(Dimension.EQUALS, Dimension.ITEMS))
async def many_share_what_is_not_their_key(ctx: Context) -> None:
    """Each record is kept when more than a hundred of an agent share one value that is not their whole key: a path, a
    time, another record's id, a name or a seq.
    """
    store, n = ctx.store, range(_SHARING)
    paths = [samples.recovered("one path", i) for i in n]
    times = [samples.recovered(f"p{i:03}", 10_000) for i in n]
    windows = [samples.window(f"w{i:03}", 5).replace(messages=[], events=[]) for i in n]
    compressions = [samples.compression(f"c{i:03}", 5).replace(window_id="one window") for i in n]
    snapshots = [samples.snapshot(f"s{i:03}", count=1, created_at=7) for i in n]
    await at_once(store.save_recovered_file("a", file) for file in (*paths, *times))
    await at_once(store.save_history_window("a", window) for window in windows)
    await at_once(store.save_compression_record("a", record) for record in compressions)
    await at_once(store.save_snapshot("a", snapshot) for snapshot in snapshots)
    calls = [samples.tool_call(7, result=f"{i}", audit_trail=[]) for i in n]
    media = [samples.media(f"k{i}").replace(file_id="one file") for i in n]
    events = [samples.event(3, number=i) for i in n]
    await store.save_turn("a", tool_calls=calls, events=events)
    await store.save_media_cache("a", media)
    async for where, seen in views(ctx, await ctx.another()):
        same(ctx, await seen.load_recovered_files("a"), [*paths, *times], f"files of one path or one time{where}")
        same(ctx, await seen.load_history_windows("a"), windows, f"windows of one time{where}")
        same(ctx, await seen.load_compression_records("a"), compressions, f"compressions of one window{where}")
        same(ctx, await seen.list_snapshots("a"), snapshots, f"snapshots of one time{where}")
        same(ctx, await seen.load_tool_call_records("a"), calls, f"tool calls of one id{where}")
        same(ctx, await seen.load_media_cache("a"), media, f"media of one file{where}")
        found = [event.event.data["number"] async for event in seen.read_events("a")]
        same(ctx, found, list(n), f"events of one seq{where}")


@check("MSG-2", "TC-1", "MED-1", "TODO-1", under=(Dimension.ORDERS, Dimension.EQUALS))
async def lists_stay_in_the_order_given(ctx: Context) -> None:
    """A list comes back in the order in which it was given, whatever its records hold: no field of them sorts it, and
    none groups it.
    """
    numbers = (3, 1, 2, 1, 3, 2, 0, 3)
    for kind in kinds().values():
        for writer in (writer for writer in kind.writers if writer.many and not kind.is_single):
            given = [full(kind.record, number) for number in numbers]
            reader = next((reader for reader in kind.readers if reader.gives is Gives.LIST), None)
            if reader is None or writer.parameter == "upsert_tool_calls" or "upsert" in writer.method:
                continue
            agent = f"{writer.method} {writer.parameter}"
            await getattr(ctx.store, writer.method)(agent, **{writer.parameter: given})
            ctx.equal(await getattr(ctx.store, reader.method)(agent), given, f"{reader.method} after {agent}")
    todos = samples.todos(*(f"{number}" for number in numbers))
    await ctx.store.save_todos("todos", todos)
    ctx.equal(await ctx.store.load_todos("todos"), todos, "the todos")
