"""LIFE-7 and LIFE-8: one agent whole, loaded at one instant, and imported with its times."""

from __future__ import annotations

import asyncio
import time
import typing
from collections.abc import Sequence
from typing import Any, Final

from kode_conformance.checks.damage import damage_each_part
from kode_conformance.checks.every_field import number_values, text_values
from kode_conformance.checks.lifecycle import fill
from kode_conformance.checks.times import WAYS
from kode_conformance.context import Context, Violation
from kode_conformance.dimensions import INTEGERS, LOOKALIKES, TIMES, Dimension
from kode_conformance.harness import keeps_documents
from kode_conformance.histories.looks import all_pages
from kode_conformance.instruments.pace import in_time
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_conformance.values.fields import Field, Holds, Values, of_agent, rows
from kode_conformance.values.many import views
from kode_core.codec import from_dict, to_dict
from kode_core.errors import (
    ConflictError,
    CorruptRecordError,
    StoreBusyError,
)
from kode_core.model import ABSENT, AgentInfo, AgentRecords, Document, PutDocument, Record
from kode_core.protocols import ExtendedStore

_E = Capability.EXTENDED
_Q = Capability.EXTENDED | Capability.QUERYABLE
_D = Dimension
_UPDATED: Final = (1, samples.T0, 5, 2**53 + 1, 2**61 - 1, samples.T0)
_NUMBERS: Final = ("message_times", "event_offsets", "message_keys")


def unplaced(records: AgentRecords) -> AgentRecords:
    """The records without their id, offsets and versions of documents, which are new in another place."""
    info = records.info and records.info.replace(agent_id="it")
    documents = [changed(one, version="") for one in records.documents]
    return records.replace(agent_id="it", info=info, documents=documents, event_offsets=())


def changed(document: Document, **changes: Any) -> Document:
    """A copy of a document."""
    fields = {name: getattr(document, name) for name in Document.__struct_fields__}
    return Document(**{**fields, **changes})


# --- every value of every kind ----------------------------------------------------------------------------------------


def _values(tables: Sequence[Values]) -> Values:
    """All values of several tables."""

    def values(field: Field) -> Sequence[Any]:
        if field.root is AgentInfo and field.holds is Holds.COUNT:
            return ()
        return [value for table in tables for value in table(field)]

    return values


def _many(hint: Any, values: Values) -> list[Any]:
    """Records, texts or numbers for a field of ``AgentRecords``, found by its annotation."""
    (kind,) = [arg for arg in typing.get_args(hint) or (hint,) if arg is not type(None)]
    if kind is Document:
        given = [record.extra for record in rows(AgentInfo, values)]
        return [
            Document(collection="cCd"[i % 3], key=f"k{i // 3}", value=value, version=ABSENT, updated_at=at)
            for i, (value, at) in enumerate(zip(given, (*TIMES, *INTEGERS) * len(given), strict=False))
        ]
    if not (isinstance(kind, type) and issubclass(kind, Record)):
        raise Violation(f"AgentRecords has a field of {kind!r}, which this check does not know")
    return rows(kind, values, thin=True)


def _agents(ctx: Context, values: Values) -> list[AgentRecords]:
    """Agents that have together each value in each field of each record; where time is short some of the values."""
    hints = {
        name: hint for name, hint in typing.get_type_hints(AgentRecords).items() if name not in Record.__annotations__
    }
    parts = {n: _many(h, values) for n, h in hints.items() if n not in ("agent_id", "updated_at", *_NUMBERS)}
    if not keeps_documents():
        parts["documents"] = []
    most = {Tier.QUICK: 50, Tier.STANDARD: 120}.get(ctx.settings.tier)
    parts = {
        name: found if most is None or len(found) <= most else _some(ctx, found, most) for name, found in parts.items()
    }
    singles = [name for name, hint in hints.items() if type(None) in typing.get_args(hint) and name in parts]
    count = max(len(parts[name]) for name in singles)
    count = min(count, {Tier.QUICK: 6, Tier.STANDARD: 20}.get(ctx.settings.tier, count))
    agents = []
    for i in range(count):
        given: dict[str, Any] = {name: found[i::count] for name, found in parts.items() if name not in singles}
        given |= {name: ctx.rng.choice(parts[name]) if count < len(parts[name]) else parts[name][i] for name in singles}
        times = [((*TIMES, *INTEGERS) * 9)[(i + j) % 200] for j in range(len(given["messages"]))]
        if keeps_documents():
            given["message_keys"] = {f"{i} \u00e9/{at:016}": at for at in (*range(i), 2**53 + 1)}
        agent_id = f"agent {i}"
        info = of_agent(given.pop("info"), agent_id).replace(message_count=len(times))
        agents.append(
            AgentRecords(
                agent_id=agent_id, info=info, updated_at=_UPDATED[i % len(_UPDATED)], message_times=times, **given
            )
        )
    return agents


def _some(ctx: Context, records: list[Any], most: int) -> list[Any]:
    """So many of the records at random, in their order."""
    return [records[i] for i in sorted(ctx.rng.sample(range(len(records)), most))]


async def _see_by_other_reads(ctx: Context, store: ExtendedStore, agent_id: str, wanted: AgentRecords) -> None:
    """Compare an agent with *wanted* by the methods that read one kind."""
    what = f"of {agent_id!r}"
    messages = [one async for one in store.read_messages(agent_id)]
    ctx.equal([one.created_at for one in messages], list(wanted.message_times), f"times of messages {what}")
    ctx.equal(await store.load_messages(agent_id), list(wanted.messages), f"messages {what}")
    ctx.equal(await store.load_tool_call_records(agent_id), list(wanted.tool_calls), f"tool calls {what}")
    ctx.equal(await store.load_todos(agent_id), wanted.todos, f"todos {what}")
    ctx.equal(await store.load_info(agent_id), wanted.info, f"info {what}")
    ctx.equal(await store.load_media_cache(agent_id), list(wanted.media_cache), f"media {what}")
    ctx.equal(await store.load_history_windows(agent_id), list(wanted.history_windows), f"windows {what}")
    ctx.equal(await store.load_compression_records(agent_id), list(wanted.compression_records), f"compressions {what}")
    ctx.equal(await store.load_recovered_files(agent_id), list(wanted.recovered_files), f"recovered files {what}")
    ctx.equal(await store.list_snapshots(agent_id), list(wanted.snapshots), f"snapshots {what}")
    events = [one async for one in store.read_events(agent_id, after_offset=-(2**62))]
    ctx.equal(events, list(wanted.events), f"events {what}")
    ctx.equal([one.offset for one in events], list(wanted.event_offsets), f"offsets {what}")
    for collection in sorted({one.collection for one in wanted.documents}):
        mine = [one for one in wanted.documents if one.collection == collection]
        ctx.equal([one async for one in store.iter_documents(agent_id, collection)], mine, f"documents {what}")
    session = await store.load_session(agent_id)
    ctx.equal(session and session.updated_at, wanted.updated_at if wanted.info else None, f"updated_at {what}")


async def _see_agents_come_back(ctx: Context, values: Values) -> None:
    other, agents = await ctx.another(), list[AgentRecords]()
    for records in in_time(ctx, _agents(ctx, values)):
        await (ctx.store, other)[len(agents) % 2].import_agent(records.agent_id, records)
        agents.append(records)
    async for where, store in views(ctx, other):
        for records in agents:
            found = await store.load_agent(records.agent_id)
            if found is None:
                raise Violation(f"the imported agent {records.agent_id!r} is not there")
            ordered = records.replace(
                history_windows=sorted(records.history_windows, key=lambda one: (one.timestamp, one.id)),
                compression_records=sorted(records.compression_records, key=lambda one: (one.timestamp, one.id)),
                recovered_files=sorted(records.recovered_files, key=lambda one: (one.timestamp, one.path)),
                snapshots=sorted(records.snapshots, key=lambda one: (-one.created_at, one.id)),
                documents=sorted(records.documents, key=lambda one: (one.collection, one.key)),
            )
            for name in AgentRecords.__struct_fields__:
                if name not in ("documents", "event_offsets"):
                    ctx.equal(getattr(found, name), getattr(ordered, name), f"{name} of {records.agent_id!r}{where}")
            ctx.equal(unplaced(found), unplaced(ordered), f"all of {records.agent_id!r}")
            ctx.equal(list(found.event_offsets), sorted(set(found.event_offsets)), "the offsets, which ascend")
            ctx.equal(len(found.event_offsets), len(records.events), "the number of offsets")
            await _see_by_other_reads(ctx, store, records.agent_id, found)
    pages = await all_pages(ctx.store.query_sessions, sort_by="updated_at", order="asc", limit=100)
    sessions = [one.updated_at for one in pages]
    ctx.equal(sessions, sorted(one.updated_at or 0 for one in agents), "the sessions in the order of updated_at")
    for records in agents[:3]:
        again = from_dict(AgentRecords, to_dict(records))
        ctx.equal(again, records, f"{records.agent_id!r} as JSON and back")


@check("LIFE-8", "LIFE-7", "VAL-1", needs=_E, under=(_D.NUMBERS, _D.LOOKALIKES, _D.INSTANCES, _D.ITEMS))
async def every_value_is_imported_and_loaded_whole(ctx: Context) -> None:
    """Numbers and times at the edges of their types, and texts that look like something else, come back from an import
    in every field of every kind: by load_agent, by the methods that load one kind, and from JSON.
    """
    await _see_agents_come_back(ctx, _values((number_values, text_values(LOOKALIKES))))


# --- moves ------------------------------------------------------------------------------------------------------------


async def _live(store: ExtendedStore, agent_id: str) -> None:
    """Make an agent by turns, edits, puts and emits, as one that works does."""
    await fill(store, agent_id)
    for i in range(4):
        more: Any = {"documents": [PutDocument("turns", f"{i}", i)]} if keeps_documents() else {}
        await store.save_turn(agent_id, append=samples.messages(2, 10 * i), **more)
        await store.emit(agent_id, "turn", {"i": i})
        await asyncio.sleep(0.003)
    messages = await store.load_messages(agent_id)
    await store.save_messages(agent_id, [*messages[2:5], messages[8], *messages[5:8], messages[0]])
    await store.save_messages(agent_id, [*await store.load_messages(agent_id), samples.message(0), samples.message(0)])
    await store.append_events(agent_id, [samples.event(2), samples.event(-(2**63)), samples.event(2**40)])
    await store.save_snapshot(agent_id, samples.snapshot("later", samples.T0 + 5))


@check(
    "LIFE-8", "LIFE-7", "MSG-4", "INFO-2", needs=_E, under=(_D.CHANGES, _D.INSTANCES, _D.EQUALS, _D.ORDERS, _D.CLOCKS)
)
async def a_moved_agent_goes_on(ctx: Context) -> None:
    """An agent that was made by turns and edits is the same under another id, with its times and updated_at. It goes on
    there: times of messages stay, seqs ascend, a repeated event is stored once; forks, deletes and a second move work.
    """
    other = await ctx.another()
    await _live(ctx.store, "p")
    before = await other.load_agent("p")
    if before is None:
        raise Violation("load_agent gives None for an agent that has everything")
    await _see_by_other_reads(ctx, ctx.store, "p", before)
    await asyncio.sleep(0.003)
    await other.load_messages("q")
    await other.import_agent("q", before)
    found = await ctx.store.load_agent("q")
    ctx.equal(found and unplaced(found), unplaced(before), "the moved agent")
    mine, its = await ctx.store.load_session("p"), await other.load_session("q")
    ctx.equal(its and its.__class__ and its.updated_at, mine and mine.updated_at, "updated_at of the session")
    ctx.equal(await ctx.store.load_agent("p"), before, "the first agent after its move")
    for store in (ctx.store, other):
        again = await store.append_events("q", list(before.events)[:3])
        ctx.equal(list(again), list((found or before).event_offsets)[:3], "the offsets of events that were there")
    times = list(before.message_times)
    await other.save_messages("q", [*before.messages, samples.message(99)])
    stored = [one.created_at async for one in ctx.store.read_messages("q")]
    ctx.equal(stored[:-1], times, "the times of messages that stay")
    await ctx.store.append_messages("q", samples.messages(2, 100))
    stored = [one.created_at async for one in other.read_messages("q")]
    ctx.true(stored[-1] >= max(stored), f"an appended message must not be older than those before it: {stored}")
    ctx.equal(
        await ctx.store.load_messages("q"), [*before.messages, samples.message(99), *samples.messages(2, 100)], "q"
    )
    highest = max(event.bookmark.seq for event in before.events)
    emitted = await other.emit("q", "on", {})
    ctx.true(emitted.bookmark.seq > highest, f"the seq {emitted.bookmark.seq} must follow {highest}")
    moved = await ctx.store.load_session("q")
    ctx.true(moved is not None and its is not None and moved.updated_at > its.updated_at, "updated_at must move on")
    child = await other.fork("q", documents=keeps_documents())
    ctx.equal(await ctx.store.load_messages(child), await other.load_messages("q"), "a fork of the moved agent")
    last = emitted.offset
    await ctx.store.delete("q")
    ctx.equal(await other.load_agent("q"), None, "the moved agent after delete")
    await other.import_agent("q", before)
    whole = await ctx.store.load_agent("q")
    ctx.equal(whole and unplaced(whole), unplaced(before), "the agent that was moved again")
    ctx.true(whole is not None and min(whole.event_offsets) > last, "offsets must never be given twice")
    ctx.equal((await ctx.store.check_consistency("q")).issues, (), "the issues of the moved agent")


_AHEAD: Final = 4_102_444_800_000
"""The year 2100, in milliseconds."""


@check("MSG-4", "LIFE-8", "INFO-2", "FORK-1", needs=_Q, under=(_D.CLOCKS, _D.CHANGES, _D.ORDERS, _D.INSTANCES))
async def an_imported_agent_goes_on_behind_its_times(ctx: Context) -> None:
    """Messages that are added to an imported agent, or to its fork, by whatever way, are not older than those before
    them, though these are of a year to come, and the newest of them may not be the last. These keep their times, and
    updated_at of the session moves forward.
    """
    stores = (ctx.store, await ctx.another())
    for n, (name, (takes_all, write)) in enumerate(in_time(ctx, WAYS.items())):
        times = [_AHEAD + 5, _AHEAD + 9, _AHEAD] if n % 2 else [_AHEAD, _AHEAD, _AHEAD + 5]
        info, messages = samples.info(name), samples.messages(3)
        records = AgentRecords(
            agent_id=name, info=info, messages=messages, message_times=times, updated_at=_AHEAD + 50 * n
        )
        await stores[n % 2].import_agent(name, records)
        fork = await stores[1 - n % 2].fork(name)
        for number, agent_id in enumerate((name, fork) * 2, 3):
            store, session = stores[number // 2 % 2], await ctx.store.load_session(agent_id)
            stored = [one.created_at async for one in store.read_messages(agent_id)]
            new = samples.message(number)
            await write(store, agent_id, [*await store.load_messages(agent_id), new] if takes_all else [new])
            found = [one.created_at async for one in ctx.store.read_messages(agent_id)]
            what = f"of {'a fork of ' * (agent_id == fork)}an imported agent"
            ctx.equal((found[:-1], stored[:3]), (stored, times), f"the times of messages that stay {what}, by {name}")
            ctx.true(
                found[-1] >= max(stored), f"the message that {name} added to those {what} has an old time: {found}"
            )
            now = await stores[n % 2].load_session(agent_id)
            ctx.true(now and session and now.updated_at > session.updated_at, f"updated_at {what} after {name}")


_PARTS: Final[tuple[dict[str, Any], ...]] = (
    {"todos": samples.todos("x")},
    {"events": samples.events(3)},
    {"messages": samples.messages(2), "message_times": [9, 3], "updated_at": 12},
    {"tool_calls": [samples.tool_call(1)], "updated_at": 13},
    {"snapshots": [samples.snapshot()]},
    {"media_cache": [samples.media()]},
    {"history_windows": [samples.window()]},
    {"compression_records": [samples.compression()], "recovered_files": [samples.recovered()]},
    {"info": samples.info("a"), "updated_at": 14},
)


@check("LIFE-7", "LIFE-8", "INFO-3", needs=_E, under=(_D.CHANGES, _D.INSTANCES))
async def an_agent_of_one_kind_is_whole_too(ctx: Context) -> None:
    """An agent that has records of one kind alone, without info, is loaded and imported like others. Nothing stored is
    None, also after a delete, and leaves no trace.
    """
    other = await ctx.another()
    ctx.equal(await ctx.store.load_agent("nobody"), None, "an agent that never was")
    parts = list(_PARTS)
    if keeps_documents():
        parts.append({"documents": [Document(collection="c", key="k", value=0, version=ABSENT, updated_at=3)]})
    for number, part in enumerate(parts):
        agent_id = f"b{number}"
        records = AgentRecords(agent_id="a", **part)
        await ctx.store.import_agent(agent_id, records)
        found = await other.load_agent(agent_id)
        wanted = records if records.info is None else records.replace(info=records.info.replace(message_count=0))
        ctx.equal(found and unplaced(found), unplaced(wanted), f"an agent with {', '.join(part)}")
        await ctx.raises(ConflictError, other.import_agent(agent_id, records), f"an import over {', '.join(part)}")
        await other.delete(agent_id)
        ctx.equal(await ctx.store.load_agent(agent_id), None, f"an agent with {', '.join(part)} after delete")
    ctx.equal(await other.list(include_without_info=True), [], "the ids that are left")


# --- one instant ------------------------------------------------------------------------------------------------------


def _turns_of(found: AgentRecords) -> dict[str, object]:
    """The turn that each kind shows."""
    shown: dict[str, object] = {
        "todos": int(found.todos.todos[0].title) if found.todos else 0,
        "events": len(found.events),
        "tool calls": len(found.tool_calls),
        "messages": len(found.messages),
    }
    if keeps_documents():
        shown["documents"] = found.documents[0].value if found.documents else 0
    return shown


@check("LIFE-7", needs=_E, stochastic=True, under=(_D.COMPANY, _D.INSTANCES, _D.ITEMS))
async def an_agent_is_loaded_at_one_instant(ctx: Context) -> None:
    """load_agent gives one state of an agent that another instance writes turn by turn, with all kinds of a turn, or
    without messages: never a part of a turn, and no turn without those before it.
    """
    other = await ctx.another()
    await _look_while_it_is_written(ctx, other, "lists", has_lists=True)
    await _look_while_it_is_written(ctx, other, "no lists", has_lists=False)


async def _look_while_it_is_written(ctx: Context, other: ExtendedStore, agent_id: str, *, has_lists: bool) -> None:
    for n in range(1, 4):
        await _turn(other, agent_id, n, has_lists=has_lists)
    start = time.perf_counter()
    await ctx.store.load_agent(agent_id)
    pause, stop, last = 3 * (time.perf_counter() - start), asyncio.Event(), 3

    async def write() -> None:
        nonlocal last
        while not stop.is_set():
            for _ in range(3):
                last += 1
                await _turn(other, agent_id, last, has_lists=has_lists)
            await asyncio.sleep(ctx.rng.uniform(0, pause))

    writer, seen, until = asyncio.ensure_future(write()), 0, time.monotonic() + ctx.settings.pace
    try:
        for _ in range({Tier.QUICK: 10, Tier.STANDARD: 40}.get(ctx.settings.tier, 200)):
            known = last - 1
            try:
                found = await ctx.store.load_agent(agent_id)
            except StoreBusyError:
                pause *= 2  # a load next to a writer takes longer on a busy machine
                continue
            seen += 1
            assert found is not None
            shown = _turns_of(found)
            turn: Any = shown["todos"]
            expected = {kind: turn if has_lists or kind not in ("messages", "tool calls") else 0 for kind in shown}
            ctx.equal(shown, expected, f"the turn that each kind shows at turn {turn}")
            ctx.true(turn >= known, f"turn {turn} was loaded after turn {known} had ended")
            if seen > 2 and time.monotonic() > until:
                break
    finally:
        stop.set()
    await writer
    ctx.true(seen > 0, "all loads ended in StoreBusyError, although the writer pauses")


async def _turn(store: ExtendedStore, agent_id: str, n: int, *, has_lists: bool) -> None:
    more: dict[str, Any] = {"documents": [PutDocument("c", "k", n)]} if keeps_documents() else {}
    if has_lists:
        more |= {"append": samples.messages(1, n), "upsert_tool_calls": [samples.tool_call(n)]}
    await store.save_turn(agent_id, todos=samples.todos(str(n)), events=samples.events(1, n), **more)


@check("LIFE-7", "OPS-4", needs=_E, under=(_D.DAMAGE,))
async def a_damaged_part_is_named_by_load_agent(ctx: Context) -> None:
    """Whichever part of an agent is damaged, load_agent raises CorruptRecordError, and other agents are loaded."""
    for agent_id in ("a", "b"):
        await fill(ctx.store, agent_id)
    sound = await ctx.store.load_agent("b")
    async for part, store in damage_each_part(ctx):
        error = await ctx.raises(CorruptRecordError, store.load_agent("a"), f"load_agent with damaged {part}")
        ctx.true("'a'" in error.record, f"the error must name the agent, got {error.record!r}")
        ctx.equal(await store.load_agent("b"), sound, f"another agent next to damaged {part}")
