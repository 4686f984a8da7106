"""OPS, DUR, VAL-4, LIFE-3: checks that need a hook of the harness: outages, server crashes, limits, raw contents."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, NamedTuple

from kode_conformance.checks.lifecycle import fill
from kode_conformance.context import Context, Unverified, Violation
from kode_conformance.dimensions import Dimension
from kode_conformance.instruments.patience import within
from kode_conformance.kills.writes import missing_kinds, portrait
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_core.codec import encode
from kode_core.errors import PayloadTooLargeError, Retry, SchemaVersionError, StorageError
from kode_core.model import Message, RecoveredFile, ToolUseBlock
from kode_core.protocols import ExtendedStore

_E = Capability.EXTENDED
_SECONDS: Final = 40.0
"""A call's own deadline is 30 s unless configured (OPS-9)."""
_LARGEST: Final = 64 * 2**20
"""A larger limit is not tried out."""


def _need(ctx: Context, *hooks: str) -> None:
    for hook in hooks:
        if not ctx.harness.has(hook):
            raise Unverified(f"the harness has no hook {hook}")


async def _in_time(call: Awaitable[object], what: str, seconds: float = _SECONDS) -> object:
    """The result of *call*, which may raise, and must do so in time."""
    try:
        async with within(seconds):
            return await call
    except StorageError:
        raise  # of the store, which may be a TimeoutError, too
    except TimeoutError as exc:
        raise Violation(f"{what} did not end within {seconds:g} s") from exc


# --- Outages ----------------------------------------------------------------------------------------------------------


@check("OPS-1", "OPS-6", needs=_E, under=(Dimension.DAMAGE,))
async def an_outage_is_told_and_ends(ctx: Context) -> None:
    """While the backend cannot be used the store says so within 5 s, and afterwards it is well again by itself."""
    _need(ctx, "break_backend", "heal_backend")
    await fill(ctx.store, "a")
    reads = _reads(ctx)
    before = {name: await read() for name, read in reads.items()}
    await ctx.harness.break_backend(ctx.handle)
    try:
        status = await _in_time(ctx.store.health_check(), "health_check during an outage", 6.0)
        ctx.equal(getattr(status, "healthy", None), False, f"healthy during an outage, of {status}")
        await _see_refusals(ctx, reads, before)
    finally:
        await ctx.harness.heal_backend(ctx.handle)

    async def is_well() -> bool:
        return (await ctx.store.health_check()).healthy

    await ctx.eventually(is_well, "healthy after the outage", 30.0)
    for name, read in reads.items():
        ctx.equal(await read(), before[name], f"{name} after the outage")
    await ctx.store.append_messages("a", samples.messages(1, 3))
    ctx.equal(await ctx.store.load_messages("a"), samples.messages(4), "a write after the outage")


@check("OPS-7", "OPS-6", under=(Dimension.DAMAGE, Dimension.COMPANY))
async def many_open_a_place_that_comes_back(ctx: Context) -> None:
    """Stores that open an empty place at once while it cannot be used all fail with an error of this library that may
    be tried again; when it can be used again, stores that open it at once all succeed, in the same process.
    """
    _need(ctx, "break_backend", "heal_backend")
    await ctx.close(ctx.store)
    await ctx.harness.break_backend(ctx.handle)
    try:
        ends = await asyncio.gather(*(_opened(ctx) for _ in range(_OPEN_AT_ONCE)), return_exceptions=True)
    finally:
        await ctx.harness.heal_backend(ctx.handle)
    for end in ends:
        case = "opening at once with others, during an outage, and loading"
        ctx.true(isinstance(end, StorageError) and end.retry is not Retry.NEVER, f"{case} gave {end!r}")
    stores = await asyncio.gather(*(ctx.another() for _ in range(_OPEN_AT_ONCE)), return_exceptions=True)
    for number, store in enumerate(stores):
        if isinstance(store, BaseException):
            raise Violation(f"opening at once with others, after the outage, raised {store!r}") from store
        await store.append_messages("a", samples.messages(1, number))
    ctx.store = await ctx.another()
    ctx.equal(await ctx.store.load_messages("a"), samples.messages(_OPEN_AT_ONCE), "what stores wrote after an outage")


_OPEN_AT_ONCE: Final = 5


def _reads(ctx: Context) -> dict[str, Callable[[], Awaitable[object]]]:
    """A call of every method that reads and has an answer of its own; where queries lag behind, without them."""
    store = ctx.store

    async def events() -> object:
        return [(event.offset, event.event) async for event in store.read_events("a")]

    reads: dict[str, Callable[[], Awaitable[object]]] = {
        "load_messages": lambda: store.load_messages("a"),
        "load_tool_call_records": lambda: store.load_tool_call_records("a"),
        "load_todos": lambda: store.load_todos("a"),
        "load_info": lambda: store.load_info("a"),
        "exists": lambda: store.exists("a"),
        "load_history_windows": lambda: store.load_history_windows("a"),
        "load_compression_records": lambda: store.load_compression_records("a"),
        "load_recovered_files": lambda: store.load_recovered_files("a"),
        "load_media_cache": lambda: store.load_media_cache("a"),
        "load_snapshot": lambda: store.load_snapshot("a", "sfp-1"),
        "list_snapshots": lambda: store.list_snapshots("a"),
        "last_bookmark": lambda: store.last_bookmark("a"),
        "read_events": events,
    }
    if not ctx.harness.has("wait_until_queries_see_all"):
        reads["list"] = lambda: store.list()
        reads["query_sessions"] = lambda: store.query_sessions()
        reads["query_messages"] = lambda: store.query_messages()
        reads["query_tool_calls"] = lambda: store.query_tool_calls()
        reads["aggregate_stats"] = lambda: store.aggregate_stats("a")
    return reads


async def _see_refusals(
    ctx: Context, reads: Mapping[str, Callable[[], Awaitable[object]]], before: Mapping[str, object]
) -> None:
    """Check that writes, and opening, raise errors of this library; reads do too, or return the stored records."""
    store = ctx.store
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "append_messages": lambda: store.append_messages("a", samples.messages(1)),
        "append_event": lambda: store.append_event("a", samples.event(1)),
        "save_info": lambda: store.save_info("a", samples.info("a", template_id="other")),
        "delete": lambda: store.delete("a"),
        "batch_fork": lambda: store.batch_fork("a", 1),
        "acquire_agent_lock": lambda: _locked(store),
        "opening another": lambda: _opened(ctx),
    }
    for name, call in calls.items():
        error = await ctx.raises(StorageError, _in_time(call(), name), f"{name} during an outage")
        ctx.true(error.retry is not Retry.NEVER, f"{name} during an outage may be tried again; it raised {error!r}")
    pending = (_in_time(read(), f"{name} during an outage") for name, read in reads.items())
    for name, found in zip(reads, await asyncio.gather(*pending, return_exceptions=True), strict=True):
        if isinstance(found, Violation):
            raise found
        if isinstance(found, BaseException):
            ctx.true(isinstance(found, StorageError), f"{name} during an outage raised {found!r}")
        else:
            ctx.equal(found, before[name], f"what {name} told during an outage, without an error")


async def _locked(store: ExtendedStore) -> None:
    await store.acquire_agent_lock("a")


async def _opened(ctx: Context) -> None:
    store = await ctx.another()
    await store.load_messages("a")


class _Count(NamedTuple):
    """The outcomes of calls that each write a text of their own."""

    done: set[str]
    in_doubt: set[str]
    refused: set[str]


async def _write_while(
    ctx: Context, agent_id: str, disturb: Callable[[], Awaitable[None]], write: Callable[[str], Awaitable[object]]
) -> _Count:
    """Write, a call at a time in each of four tasks, before, while and after *disturb* is at work."""
    found = _Count(set(), set(), set())
    stop = False

    async def work(task: int) -> None:
        n = 0
        while not stop:
            text = f"{agent_id} {task} {n}"
            n += 1
            try:
                await _in_time(write(text), "a write")
                found.done.add(text)
            except StorageError as exc:
                (found.in_doubt if exc.retry is Retry.CHECK else found.refused).add(text)
                await asyncio.sleep(0.002)
            await asyncio.sleep(0)

    workers = [asyncio.ensure_future(work(task)) for task in range(4)]
    try:
        await asyncio.sleep(ctx.rng.uniform(0.005, 0.03))
        await disturb()
        await ctx.eventually(lambda: _grows(found, len(found.done)), "writes that succeed afterwards", 60.0)
    finally:
        stop = True
        await asyncio.gather(*workers)
    return found


async def _grows(found: _Count, than: int) -> bool:
    await asyncio.sleep(0.05)
    return len(found.done) > than


def _judge_count(ctx: Context, found: _Count, stored: list[str], what: str) -> None:
    """Check that each acknowledged text is stored once, no refused text is stored, and none is stored twice."""
    counts = Counter(stored)
    for texts, problem in (
        (found.done - set(counts), "were acknowledged and are lost"),
        (found.refused & set(counts), "are there, though the error says that nothing was written"),
        ({text for text, count in counts.items() if count > 1}, "are there twice"),
    ):
        ctx.true(not texts, f"{len(texts)} {what} {problem}, such as {min(texts, default='')!r}")


async def _see_nothing_lost(ctx: Context, disturb: Callable[[], Awaitable[None]]) -> None:
    """Messages and events that are written while *disturb* is at work."""
    for round_number in range(max(2, ctx.effort.kills // 5)):
        agent_id = f"a{round_number}"

        async def append(text: str, agent_id: str = agent_id) -> None:
            await ctx.store.append_messages(agent_id, [samples.message(text=text)])

        found = await _write_while(ctx, agent_id, disturb, append)
        store = await ctx.another()
        messages = [message.text for message in await store.load_messages(agent_id)]
        _judge_count(ctx, found, messages, "messages")

        async def emit(text: str, agent_id: str = agent_id) -> None:
            await ctx.store.append_event(agent_id, samples.event(0, text=text))

        found = await _write_while(ctx, agent_id, disturb, emit)
        events = [str(event.event.data["text"]) async for event in store.read_events(agent_id)]
        _judge_count(ctx, found, events, "events")
        await ctx.close(store)


@check(
    "OPS-10",
    "OPS-6",
    "DUR-1",
    tier=Tier.STANDARD,
    stochastic=True,
    under=(Dimension.DAMAGE, Dimension.COMPANY, Dimension.INTERRUPTIONS),
)
async def nothing_is_lost_or_doubled_in_outages(ctx: Context) -> None:
    """Of the writes before, in and after an outage, each acknowledged one is stored once, no refused one is stored, and
    none in doubt is stored twice.
    """
    _need(ctx, "break_backend", "heal_backend")

    async def outage() -> None:
        await ctx.harness.break_backend(ctx.handle)
        await asyncio.sleep(ctx.rng.uniform(0.01, 0.1))
        await ctx.harness.heal_backend(ctx.handle)

    await _see_nothing_lost(ctx, outage)


@check("DUR-1", "OPS-6", "OPS-10", tier=Tier.STANDARD, stochastic=True, under=(Dimension.CRASHES, Dimension.DAMAGE))
async def acknowledged_writes_survive_a_crash_of_the_server(ctx: Context) -> None:
    """When the server is killed under load and comes back, each acknowledged write is stored, once, and the store that
    was open goes on.
    """
    _need(ctx, "crash_backend")

    async def crash() -> None:
        await ctx.harness.crash_backend(ctx.handle)

    await _see_nothing_lost(ctx, crash)


# --- Limits, versions, raw contents -----------------------------------------------------------------------------------


@check("VAL-4", tier=Tier.STANDARD, under=(Dimension.LENGTHS,))
async def a_stated_limit_is_where_it_is_said_to_be(ctx: Context) -> None:
    """A record of the largest size that the backend states is kept; a record one byte larger is refused, and the
    previous record stays.
    """
    limit = ctx.harness.limits.max_payload_bytes
    if limit is None:
        raise Unverified("the harness states no limits.max_payload_bytes, so that there is none to find")
    if limit > _LARGEST:
        raise Unverified(f"limits.max_payload_bytes is {limit}, which is too large to be tried out")
    largest, larger = _message_of(limit), _message_of(limit + 1)
    await ctx.store.save_messages("a", [largest])
    ctx.equal(await ctx.store.load_messages("a"), [largest], f"a message of {limit} bytes")
    await ctx.raises(PayloadTooLargeError, ctx.store.save_messages("a", [larger]), f"a message of {limit + 1} bytes")
    await ctx.raises(PayloadTooLargeError, ctx.store.append_messages("a", [larger]), "appending it")
    ctx.equal(await ctx.store.load_messages("a"), [largest], "the messages after one was refused")
    await ctx.store.save_recovered_file("a", _file_of(limit))
    await ctx.raises(PayloadTooLargeError, ctx.store.save_recovered_file("a", _file_of(limit + 1)), "a larger file")
    ctx.equal(await ctx.store.load_recovered_files("a"), [_file_of(limit)], "the files after one was refused")


def _message_of(size: int) -> Message:
    rest = len(encode(Message, samples.message(text=""), "a message").text.encode())
    return samples.message(text="x" * (size - rest))


def _file_of(size: int) -> RecoveredFile:
    rest = len(encode(RecoveredFile, samples.recovered(content=""), "a file").text.encode())
    return samples.recovered(content="x" * (size - rest))


@check("OPS-8", needs=Capability.PERSISTENT, under=(Dimension.CHANGES,))
async def a_newer_version_is_refused(ctx: Context) -> None:
    """A store that a newer version has written is not opened: the error says so, and nothing in it is changed."""
    _need(ctx, "raise_version")
    await ctx.store.save_messages("a", samples.messages(2))
    await ctx.close(ctx.store)
    await ctx.harness.raise_version(ctx.handle)
    before = await ctx.harness.raw_dump(ctx.handle) if ctx.harness.has("raw_dump") else ""
    error = await ctx.raises(SchemaVersionError, _opened(ctx), "opening what a newer version wrote")
    ctx.true("upgrade" in str(error), f"the error must say what to upgrade: {error}")
    after = await ctx.harness.raw_dump(ctx.handle) if ctx.harness.has("raw_dump") else ""
    ctx.equal(after, before, "what is stored, after it was refused")


@check("INFO-1", "OPS-2", needs=_E, under=(Dimension.ORDERS,))
async def looking_changes_nothing(ctx: Context) -> None:
    """Loads, queries, checks and metrics, of an agent that exists or not, leave the stored data exactly as it was."""
    store = ctx.store
    await fill(store, "a")
    await store.save_messages("dangling", [Message("assistant", [ToolUseBlock("c", "x", {})])])
    before = {agent_id: await portrait(store, agent_id) for agent_id in ("a", "dangling")}
    ctx.true(not missing_kinds(before["a"]), "there must be something of every kind to look at")
    raw = await _raw_at_rest(ctx)
    await store.check_consistency()
    await store.get_metrics()
    for agent_id in (*before, "nobody"):
        await store.check_consistency(agent_id)
        await store.load_snapshot(agent_id, "none")
        await store.last_bookmark(agent_id)
        await store.aggregate_stats(agent_id)
        found = await portrait(store, agent_id)
        ctx.true(agent_id in before or not any(found.values()), "nothing may be there of nobody")
        ctx.equal(found, before.get(agent_id, found), f"agent {agent_id!r} after it was looked at")
    for query in (store.query_sessions, store.query_messages, store.query_tool_calls):
        await query()
    was, now = Counter(raw.splitlines()), Counter((await _raw(ctx)).splitlines())
    changed = sorted(((now - was) + (was - now)).elements())
    ctx.true(not changed, f"what is stored differs after it was only looked at: {changed[:3]!r:.300}")
    _need(ctx, "raw_dump")


async def _raw(ctx: Context) -> str:
    return await ctx.harness.raw_dump(ctx.handle) if ctx.harness.has("raw_dump") else ""


async def _raw_at_rest(ctx: Context) -> str:
    """The stored data once the store has tidied up behind its writes."""
    raw = await _raw(ctx)
    for _ in range(20):
        await asyncio.sleep(0.1)
        was, raw = raw, await _raw(ctx)
        if raw == was:
            break
    return raw


@check("LIFE-3", absence_ok=True, under=(Dimension.CHANGES,))
async def nothing_of_a_deleted_agent_is_stored(ctx: Context) -> None:
    """After delete nothing that the agent said is left anywhere in the storage, of whatever kind."""
    _need(ctx, "raw_dump")
    marks = {kind: f"mark{number}x{ctx.rng.getrandbits(40):010x}" for number, kind in enumerate(_KINDS)}
    await _fill_with(ctx.store, "gone", marks)
    await _fill_with(ctx.store, "kept", {kind: f"stays{number}" for number, kind in enumerate(_KINDS)})
    raw = await ctx.harness.raw_dump(ctx.handle)
    unseen = [kind for kind, mark in marks.items() if mark not in raw]
    await ctx.store.delete("gone")
    raw = await ctx.harness.raw_dump(ctx.handle)
    await ctx.close(ctx.store)
    raw += await ctx.harness.raw_dump(ctx.handle)
    left = [kind for kind, mark in marks.items() if mark in raw]
    ctx.true(not left, f"after delete, the storage still holds: {', '.join(left)}")
    if unseen:
        raise Unverified(f"raw_dump does not show the texts that were saved, in {', '.join(unseen)}")


_KINDS: Final = ("message", "tool call", "todo", "info", "event", "window", "compression", "file", "media", "snapshot")


async def _fill_with(store: ExtendedStore, agent_id: str, marks: dict[str, str]) -> None:
    """Save every kind, each with its mark in it."""
    await store.save_turn(
        agent_id,
        messages=[samples.message(text=marks["message"])],
        tool_calls=[samples.tool_call(input={"q": marks["tool call"]})],
        todos=samples.todos(marks["todo"]),
        info=samples.info(agent_id, metadata={"userId": marks["info"]}),
        events=[samples.event(0, text=marks["event"])],
    )
    window = samples.window().replace(messages=[samples.message(text=marks["window"])])
    await store.save_history_window(agent_id, window)
    await store.save_compression_record(agent_id, samples.compression().replace(summary=marks["compression"]))
    await store.save_recovered_file(agent_id, samples.recovered(content=marks["file"]))
    await store.save_media_cache(agent_id, [samples.media(marks["media"])])
    await store.save_snapshot(agent_id, samples.snapshot().replace(messages=[samples.message(text=marks["snapshot"])]))
