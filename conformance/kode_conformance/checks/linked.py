"""MSG-8, LIFE-4, OPS-13, TURN-1: kinds that refer to each other, deletes under other clocks, refusals, whole turns."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, cast

from kode_conformance.calls.methods import drive
from kode_conformance.context import Context
from kode_conformance.dimensions import Dimension
from kode_conformance.harness import keeps_documents
from kode_conformance.instruments.clock import clock_off
from kode_conformance.instruments.pace import in_time
from kode_conformance.kills.writes import WRITES, missing_kinds, overwrite, portrait, write_named
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_conformance.values.fields import Holds, fields_of, full, of_agent, put
from kode_conformance.values.kinds import Kind, WriteMethod, kinds
from kode_core.errors import InvalidValueError, KodeError
from kode_core.model import (
    ABSENT,
    AgentInfo,
    Bookmark,
    DeleteDocument,
    FileBlock,
    ImageBlock,
    Message,
    PutDocument,
    TextBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from kode_core.protocols import ExtendedStore, Store

_NAN: Final = float("nan")


# --- kinds that refer to each other -----------------------------------------------------------------------------------


def _talk() -> list[Message]:
    """Messages that name tool calls, media and files that the agent has records for."""
    talk = [Message.user("go")]
    for i in range(3):
        talk += [
            Message("assistant", [ToolUseBlock(f"call_{i}", "search", {"path": f"f{i}"})]),
            Message(
                "user", [ToolResultBlock(f"call_{i}", f"f{i}"), ImageBlock(file_id=f"k{i}"), FileBlock(url=f"f{i}")]
            ),
            Message("assistant", [TextBlock(f"message {i}")]),
        ]
    return talk


async def _link(store: Store, agent: str) -> None:
    """Make an agent whose records of all kinds name one another."""
    await store.save_turn(
        agent,
        messages=_talk(),
        tool_calls=[samples.tool_call(i) for i in range(3)],
        todos=samples.todos(*(f"call_{i}" for i in range(3))),
        info=samples.info(agent, last_bookmark=Bookmark(2, samples.T0 + 2), breakpoint="call_1"),
        events=[samples.event(i, cursor=i, id=f"call_{i}") for i in range(3)],
    )
    for i in range(3):
        window = samples.window(f"w{i}", i).replace(messages=_talk()[: 3 * i + 1])
        compression = samples.compression(f"c{i}", i).replace(window_id=f"w{i}", recovered_files=[f"f{i}"])
        await store.save_history_window(agent, window)
        await store.save_compression_record(agent, compression)
        await store.save_recovered_file(agent, samples.recovered(f"f{i}", i))
        await store.save_snapshot(agent, samples.snapshot(f"s{i}", i).replace(messages=_talk()[: 3 * i + 1]))
    await store.save_media_cache(agent, [samples.media(f"k{i}") for i in range(3)])
    if keeps_documents():
        await cast(ExtendedStore, store).put_document(agent, "c", "k0", {"key": "k1", "id": "call_1", "path": "f1"})


_CHANGES: Final[Mapping[str, tuple[str, Callable[[Store], Awaitable[object]]]]] = {
    "the first messages are gone": ("messages", lambda s: s.save_messages("a", _talk()[4:])),
    "the last messages are gone": ("messages", lambda s: s.save_messages("a", _talk()[4:7])),
    "a message is another": ("messages", lambda s: s.save_messages("a", samples.messages(3, 50))),
    "all messages are gone": ("messages", lambda s: s.save_messages("a", [])),
    "a turn replaces the messages": ("messages", lambda s: s.save_turn("a", messages=_talk()[:1])),
    "tool calls are gone": ("tool calls", lambda s: s.save_tool_call_records("a", [samples.tool_call(1)])),
    "all tool calls are gone": ("tool calls", lambda s: s.save_tool_call_records("a", [])),
    "media are gone": ("media", lambda s: s.save_media_cache("a", [samples.media("k1")])),
    "all media are gone": ("media", lambda s: s.save_media_cache("a", [])),
    "the todos are done": ("todos", lambda s: s.save_todos("a", samples.todos())),
    "the info names nothing": ("info", lambda s: s.save_info("a", samples.info("a", last_bookmark=None, metadata={}))),
    "a snapshot is empty": ("snapshots", lambda s: s.save_snapshot("a", samples.snapshot("s2", 2, count=0))),
    "a window is empty": (
        "windows",
        lambda s: s.save_history_window("a", samples.window("w2", 2).replace(messages=[])),
    ),
    "a compression names no file": (
        "compressions",
        lambda s: s.save_compression_record("a", samples.compression("c2", 2).replace(recovered_files=[])),
    ),
    "a file is another": (
        "recovered files",
        lambda s: s.save_recovered_file("a", samples.recovered("f2", 2, content="")),
    ),
    "an event comes": ("events", lambda s: s.append_event("a", samples.event(9, id="call_1"))),
}


@check("MSG-8", "INFO-1", under=(Dimension.CHANGES, Dimension.EQUALS, Dimension.INSTANCES))
async def kinds_that_refer_to_each_other_are_apart(ctx: Context) -> None:
    """Where messages, tool calls, media, files, windows, snapshots, events and info name one another, a change of one
    kind, above all of a kind that others name, leaves all others as they are.
    """
    other = await ctx.another()
    await _link(ctx.store, "a")
    before = await portrait(ctx.store, "a")
    ctx.equal(missing_kinds(before), [], "the kinds without records")
    for n, (what, (kind, change)) in enumerate(in_time(ctx, _CHANGES.items())):
        await change((ctx.store, other)[n % 2])
        after = await portrait((other, ctx.store)[n % 2], "a")
        for name, records in before.items():
            if name != kind and not (kind == "messages" and name == "info"):
                ctx.equal(after[name], records, f"the {name} when {what}")
        before = after


_WORDED: Final = (Holds.TEXT, Holds.KEY)


def _worded(kind: Kind, number: int) -> Any:
    """A record whose every field that can name something holds the same word, and every number the same number."""
    word = f"w{number}"
    record = full(kind.record, number)
    for field in fields_of(kind.record):
        if field.holds in _WORDED:
            record = put(record, field, word)
        elif field.holds is Holds.DICT:
            record = put(record, field, {word: word})
        elif field.holds is Holds.WHOLE:
            record = put(record, field, 1000 * number + 1)
    return of_agent(record, "a")


async def _give(store: Any, writer: WriteMethod, records: Sequence[Any]) -> None:
    given = [list(records)] if writer.many else records
    for value in given:
        await getattr(store, writer.method)("a", **{writer.parameter: value})


async def _of_each_kind(store: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for kind in kinds().values():
        found[kind.record.__name__] = await drive(getattr(store, kind.whole.method), {"agent_id": "a"})
    found[AgentInfo.__name__] = found[AgentInfo.__name__].replace(message_count=0)
    return found


@check("MSG-8", "INFO-1", "MED-1", under=(Dimension.CHANGES, Dimension.EQUALS, Dimension.INSTANCES))
async def one_word_in_every_field_links_no_kinds(ctx: Context) -> None:
    """Where every text of every record is the same word, and every number the same number, so that any field could name
    any record of another kind or be a copy of it, a record that goes or changes leaves all other kinds as they are, by
    every method.
    """
    stores = (ctx.store, await ctx.another())
    for kind in kinds().values():
        await _give(ctx.store, kind.writers[0], [_worded(kind, n) for n in range(1 if kind.is_single else 3)])
    before = await _of_each_kind(ctx.store)
    writers = [(kind, writer) for kind in kinds().values() for writer in kind.writers]
    changes = [(kind, writer, number) for number in ((1, 2), None, ()) for kind, writer in writers]
    for n, (kind, writer, given) in enumerate(in_time(ctx, changes)):
        numbers = (10 + n,) if given is None else given  # a number above all that were there
        if not (numbers or writer.many):
            continue
        await _give(stores[n % 2], writer, [_worded(kind, number) for number in numbers])
        after = await _of_each_kind(stores[1 - n % 2])
        before[kind.record.__name__] = after[kind.record.__name__]
        case = f"after {writer.method}({writer.parameter}=) of the records {numbers}"
        for name, records in before.items():
            ctx.equal(after[name], records, f"the records of {name} {case}")


# --- deletes under other clocks ---------------------------------------------------------------------------------------


@check("LIFE-4", "LIFE-3", "MSG-1", under=(Dimension.CLOCKS, Dimension.CHANGES, Dimension.INSTANCES))
async def writes_behind_the_clock_of_a_delete_are_there(ctx: Context) -> None:
    """Each write to an agent that was deleted is stored, and the delete removes everything before it, though the clock
    of the delete was ahead of the writers' clock, or behind it, and whichever instance made which.
    """
    stores = (ctx.store, await ctx.another())
    for n, (write, (deleted, written)) in enumerate(
        in_time(ctx, itertools.product(WRITES, ((3600.0, 0.0), (0.0, -3600.0), (-3600.0, 0.0))))
    ):
        if write.name in ("delete", "batch_fork"):
            continue
        agent, store = f"{write.name}-{n}", stores[n % 2]
        await write.prepare(ctx.store, agent)
        with clock_off(deleted):
            await store.delete(agent)
        with clock_off(written):
            await write.act(stores[n // 2 % 2], agent)
        await write.act(ctx.store, f"{agent} steady")
        wanted, found = await portrait(ctx.store, f"{agent} steady"), await portrait(stores[n // 3 % 2], agent)
        ctx.true(any(wanted.values()), f"the agent holds nothing after {write.name}")
        clocks = f"the delete was made with the clock off by {deleted:g} s, and the write by {written:g} s"
        ctx.equal(found, wanted, f"an agent after delete and {write.name}, when {clocks}")


# --- refusals ---------------------------------------------------------------------------------------------------------

_BAD: Final = Message.user("x").replace(metadata={"x": _NAN})
_REFUSED: Final[Mapping[str, Callable[[Store, str], Awaitable[object]]]] = {
    "save_messages": lambda s, a: s.save_messages(a, [_BAD]),
    "append_messages": lambda s, a: s.append_messages(a, [_BAD]),
    "save_tool_call_records": lambda s, a: s.save_tool_call_records(a, [samples.tool_call(result=_NAN)]),
    "upsert_tool_call_records": lambda s, a: s.upsert_tool_call_records(a, [samples.tool_call(result=_NAN)]),
    "save_turn": lambda s, a: s.save_turn(a, events=[samples.event(70, x=_NAN)]),
    "save_info": lambda s, a: s.save_info(a, samples.info(a, metadata={"x": _NAN})),
    "save_snapshot": lambda s, a: s.save_snapshot(a, samples.snapshot().replace(metadata={"x": _NAN})),
    "append_event": lambda s, a: s.append_event(a, samples.event(70, x=_NAN)),
    "append_events": lambda s, a: s.append_events(a, [samples.event(70, x=_NAN)]),
    "save_todos": lambda s, a: s.save_todos(a, samples.todos("x").replace(extra={"x": _NAN})),
    "save_history_window": lambda s, a: s.save_history_window(a, samples.window().replace(extra={"x": _NAN})),
    "save_compression_record": lambda s, a: s.save_compression_record(a, samples.compression().replace(ratio=_NAN)),
    "save_recovered_file": lambda s, a: s.save_recovered_file(a, samples.recovered().replace(mtime=_NAN)),
    "save_media_cache": lambda s, a: s.save_media_cache(a, [samples.media().replace(extra={"x": _NAN})]),
}
_REFUSED_DOCUMENTS: Final[Mapping[str, Callable[[Any, str], Awaitable[object]]]] = {
    "put_document": lambda s, a: s.put_document(a, "c", "nan", _NAN),
    "write_documents": lambda s, a: s.write_documents(a, [PutDocument("c", "nan", _NAN)]),
    "append_messages_once": lambda s, a: s.append_messages_once(a, {"n": _BAD}),
}


@check("OPS-13", "VAL-2", under=(Dimension.COMPANY, Dimension.ORDERS, Dimension.INSTANCES))
async def a_refused_write_fails_alone(ctx: Context) -> None:
    """When writes by one method are made at once, for one agent and for others, a refused one fails alone, whether it
    is the first, between others or the last: all others are done.
    """
    other = await ctx.another()
    calls_refused = {**_REFUSED, **(_REFUSED_DOCUMENTS if keeps_documents() else {})}
    for n, (name, refused) in enumerate(in_time(ctx, calls_refused.items())):
        write, store = write_named(name), (ctx.store, other)[n % 2]
        await write.act(ctx.store, f"{name} wanted")
        wanted = await portrait(ctx.store, f"{name} wanted")
        ctx.true(any(wanted.values()), f"the agent holds nothing after {name}")
        for place in range(3):
            agents = [f"{name}-{place}-{i}" for i in range(2)]
            calls = [write.act(store, agent) for agent in agents]
            calls.insert(place, refused(store, agents[place % 2]))
            results = await asyncio.gather(*calls, return_exceptions=True)
            errors = [result for result in results if isinstance(result, BaseException)]
            expected = len(errors) == 1 and isinstance(errors[0], InvalidValueError)
            ctx.true(
                expected, f"of three calls of {name} the one with NaN must be refused and no other, got {errors!r:.300}"
            )
            for agent in agents:
                ctx.equal(await portrait(other, agent), wanted, f"what {name} wrote next to a call that was refused")


# --- whole turns ------------------------------------------------------------------------------------------------------


async def _has_events(store: Store, agent: str) -> bool:
    return await store.last_bookmark(agent) is not None


_SEEN: Final[Mapping[str, Callable[[Store, str], Awaitable[object]]]] = {
    "messages": lambda s, a: s.load_messages(a),
    "tool calls": lambda s, a: s.load_tool_call_records(a),
    "events": _has_events,
    "todos": lambda s, a: s.load_todos(a),
    "info": lambda s, a: s.load_info(a),
}


@check("TURN-1", "MSG-1", tier=Tier.STANDARD, under=(Dimension.COMPANY, Dimension.ITEMS, Dimension.INSTANCES))
async def a_turn_is_seen_whole_in_all_its_kinds(ctx: Context) -> None:
    """A reader that sees one kind of a turn while it is saved sees every other kind of it afterwards, however many
    records it has of each.
    """
    reader = await ctx.another()
    sizes = ((1, 1), (60, 60), (30, 101), (501, 3))
    cases = list(itertools.product(itertools.permutations(_SEEN, 2), sizes))
    if ctx.settings.tier is Tier.QUICK:  # each pair of kinds with one size, each size with every fourth pair
        cases = [case for i, case in enumerate(cases) if i % len(sizes) == i // len(sizes) % len(sizes)]
    for n, ((first, second), size) in enumerate(in_time(ctx, cases)):
        agent = f"a{n}"
        saving = asyncio.ensure_future(
            ctx.store.save_turn(
                agent,
                append=samples.messages(size[0]),
                upsert_tool_calls=[samples.tool_call(i) for i in range(size[1])],
                events=samples.events(size[0]),
                todos=samples.todos("x"),
                info=samples.info(agent),
            )
        )
        try:
            while not saving.done():
                seen = await _SEEN[first](reader, agent)
                then = await _SEEN[second](reader, agent)
                ctx.true(
                    not seen or then, f"the {first} of a turn were there, and then its {second} were not, of {size}"
                )
                await asyncio.sleep(0)
        finally:
            await asyncio.wait({saving})
        await saving
        ctx.equal(len(await reader.load_messages(agent)), size[0], "how many messages of a turn there are")


def _whole_turn(agent: str, mark: int) -> dict[str, Any]:
    """Every part that a turn can have."""
    turn: dict[str, Any] = {
        "append": samples.messages(2, mark),
        "upsert_tool_calls": [samples.tool_call(0, result=mark), samples.tool_call(mark)],
        "todos": samples.todos(f"todo {mark}"),
        "info": samples.info(agent, template_id=f"t{mark}"),
        "events": samples.events(2, mark),
    }
    return {**turn, "documents": [PutDocument("c", f"k{mark}", mark)]} if keeps_documents() else turn


async def _demands(store: ExtendedStore, other: ExtendedStore, agent: str) -> dict[str, dict[str, Any]]:
    """Parts of a turn that are sound by themselves, and that the state of the store refuses."""
    await other.save_info("others", samples.info("others"))
    lease = await store.acquire_agent_lock(agent)
    await lease.release()
    refused: dict[str, dict[str, Any]] = {
        "another version of the agent is demanded": {"expect": await other.load_version("others")},
        "its lease has ended": {"fence": lease},
    }
    if keeps_documents():
        version = await other.put_document("others", "c", "k0", 1)
        await other.put_document(agent, "c", "there", 1)
        for kind, one in {
            "a document's": PutDocument("c", "there", 2, expect=version),
            "an absent document's": PutDocument("c", "never", 2, expect=version),
            "a deleted document's": DeleteDocument("c", "there", version),
        }.items():
            refused[f"another version is demanded, {kind}"] = {"documents": [PutDocument("c", "k1", 1), one]}
        there = PutDocument("c", "there", 2, ABSENT)
        refused["a document must be absent"] = {"documents": [PutDocument("c", "k1", 1), there]}
        refused["two writes are of one document"] = {"documents": [PutDocument("c", "k1", 1)] * 2}
    return refused


@check(
    *("TURN-1", "DOC-3", "VER-2", "LOCK-5", "VAL-2", "EVT-4"),
    needs=Capability.EXTENDED,
    under=(Dimension.ORDERS, Dimension.CHANGES, Dimension.INSTANCES),
)
async def a_whole_turn_is_refused_whole(ctx: Context) -> None:
    """A turn with every part that it can have is refused whole, for whatever reason: its version, its lease, a demand
    or a value of one of its parts, in an agent that has records of every kind and in one that has few. The agent stays
    as it was, with its version.
    """
    store, other = ctx.store, await ctx.another()
    await overwrite(store, "full")
    ctx.equal(missing_kinds(await portrait(store, "full")), [], "the kinds without records")
    number = 0
    for agent in ("full", "new"):
        refused = await _demands(store, other, agent)
        twice = samples.event(3)
        refused["an event stands in it twice"] = {"events": [twice, samples.event(4), twice]}
        refused["the info is that of another agent"] = {"info": samples.info("others")}
        refused["an event has NaN"] = {"events": [samples.event(5), samples.event(6, x=_NAN)]}
        refused["a call has NaN"] = {"upsert_tool_calls": [samples.tool_call(5), samples.tool_call(6, result=_NAN)]}
        refused["the todos have NaN"] = {"todos": samples.todos("x").replace(extra={"x": _NAN})}
        before, version = await portrait(other, agent), await store.load_version(agent)
        for why, parts in refused.items():
            number += 1
            one, two = (store, other) if number % 2 else (other, store)
            turn = {**_whole_turn(agent, 20 * number), **parts}
            await ctx.raises(KodeError, one.save_turn(agent, **turn), f"a turn of which {why}")
            ctx.equal(await portrait(two, agent), before, f"the agent after a turn was refused, since {why}")
            ctx.equal(await two.load_version(agent), version, f"the version after a turn was refused, since {why}")
        await store.save_turn(agent, **_whole_turn(agent, 5), expect=version)
        ctx.equal((await other.load_messages(agent))[-2:], samples.messages(2, 5), "the turn that was not refused")


# --- instances that close late ----------------------------------------------------------------------------------------


@check(
    "QRY-8",
    "DUR-1",
    "OPS-5",
    needs=Capability.PERSISTENT,
    tier=Tier.STANDARD,
    under=(Dimension.ORDERS, Dimension.INSTANCES, Dimension.CHANGES),
)
async def an_instance_that_closes_late_takes_nothing_back(ctx: Context) -> None:
    """Writes and deletes of one instance hold for all instances, open now or opened later, also when another instance
    with an older view of the agent is closed afterwards, and the writer is not closed at all.
    """
    writer = ctx.store
    for n, write in enumerate(in_time(ctx, WRITES)):
        if write.name == "batch_fork":
            continue
        agent, early = f"{write.name}-{n}", await ctx.another()
        await write.prepare(early if n % 2 else writer, agent)
        before = await portrait(early, agent)
        await write.act(writer, agent)
        wanted = await portrait(writer, agent)
        ctx.true(before != wanted, f"{write.name} must change what is loaded")
        if n % 3 == 0:
            await portrait(early, agent)
        await ctx.close(early)
        late = await ctx.another()
        ctx.equal(await portrait(late, agent), wanted, f"what {write.name} wrote, once an older instance was closed")
        ctx.equal(await portrait(writer, agent), wanted, f"what {write.name} wrote, for the instance that wrote it")
        await overwrite(late, agent)
        await ctx.close(late)
        await write.act(writer, agent)
        last = await ctx.another()
        found, wanted = await portrait(last, agent), await portrait(writer, agent)
        ctx.equal(found, wanted, f"what {write.name} wrote after an instance that wrote before was closed")
        await ctx.close(last)
