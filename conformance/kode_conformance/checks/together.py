"""QRY-8, TURN-1, TC-3, VAL-5: streams that are read half, turns at once, upserts of whole lists, other time zones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Any, Final

from kode_conformance.checks.lifecycle import fill
from kode_conformance.checks.messages import dump
from kode_conformance.context import Context
from kode_conformance.dimensions import Dimension
from kode_conformance.harness import keeps_documents
from kode_conformance.instruments.pace import in_time
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_conformance.values.many import see_pieces, views
from kode_core.model import AgentRecords, Bookmark, Timeline
from kode_core.protocols import ExtendedStore

_STREAMS: Final[Mapping[str, Callable[[ExtendedStore], AsyncIterator[Any]]]] = {
    "read_events": lambda s: s.read_events("a"),
    "read_events by offset": lambda s: s.read_events("a", after_offset=0),
    "follow_events": lambda s: s.follow_events("a"),
    "iter_sessions": lambda s: s.iter_sessions(),
    "iter_messages": lambda s: s.iter_messages(agent_id="a"),
    "iter_tool_calls": lambda s: s.iter_tool_calls(agent_id="a"),
    "iter_consistency": lambda s: s.iter_consistency(),
}


@check("QRY-8", "EVT-5", "QRY-6", needs=Capability.EXTENDED, under=(Dimension.COMPANY, Dimension.INSTANCES))
async def streams_that_are_read_half_hide_nothing(ctx: Context) -> None:
    """While any stream of a store is read half, its loads give what another instance writes meanwhile, of every kind,
    and so do its queries.
    """
    other = await ctx.another()
    await fill(ctx.store, "a")
    await ctx.store.append_messages("b", samples.messages(1, 90))
    calls = [samples.tool_call(i) for i in range(3)]
    await ctx.store.save_tool_call_records("a", calls)
    for n, (name, stream) in enumerate(in_time(ctx, _STREAMS.items()), 1):
        open_stream = stream(ctx.store)
        try:
            async with ctx.within():
                await anext(open_stream, None)
            before = await dump(ctx)
            await _change(other, n)
            after = await dump(ctx)
            same = [kind for kind in before if before[kind] == after[kind]]
            ctx.equal(same, [], f"the kinds that were changed and are loaded as they were while {name} is read half")
            found = await ctx.store.query_sessions(agent_id="a")
            templates = [session.template_id for session in found]
            ctx.equal(templates, [f"t{n}"], f"the template that a query finds while {name} is read half")
        finally:
            await open_stream.aclose()  # type: ignore[attr-defined]


async def _change(store: ExtendedStore, n: int) -> None:
    """Change every kind of the agent."""
    await store.save_info("a", samples.info("a", template_id=f"t{n}"))
    await store.save_messages("a", samples.messages(3, n))
    await store.save_tool_call_records("a", [samples.tool_call(n), samples.tool_call(n + 1), samples.tool_call(0)])
    await store.save_todos("a", samples.todos(f"todo {n}"))
    await store.append_event("a", samples.event(100 + n))
    await store.save_history_window("a", samples.window(timestamp=n))
    await store.save_compression_record("a", samples.compression(timestamp=n))
    await store.save_recovered_file("a", samples.recovered(content=f"{n}"))
    await store.save_media_cache("a", [samples.media(f"k{n}")])
    await store.save_snapshot("a", samples.snapshot(created_at=n))
    if keeps_documents():
        await store.put_document("a", "c", "k", n)


@check(
    "TURN-1",
    "EVT-1",
    "MSG-3",
    "TC-3",
    tier=Tier.STANDARD,
    under=(Dimension.COMPANY, Dimension.INSTANCES, Dimension.ITEMS),
)
async def turns_at_once_lose_nothing(ctx: Context) -> None:
    """When several instances save turns for one agent at once, every message, tool call and event is stored, and the
    records of a turn are next to each other.
    """
    stores, rounds = (ctx.store, await ctx.another(), await ctx.another()), 8
    for n in in_time(ctx, range(rounds)):
        agent = f"a{n}"
        await ctx.store.save_messages(agent, samples.messages(1, 999))
        if n % 2:
            await ctx.store.save_info(agent, samples.info(agent))
        sizes = [(i * 7 + n) % 5 + 1 for i in range(12)]
        turns = [
            stores[i % 3].save_turn(
                agent,
                append=samples.messages(size, 100 * i),
                upsert_tool_calls=[samples.tool_call(100 * i + k) for k in range(size)],
                events=samples.events(size, 100 * i),
                todos=samples.todos(f"{i}") if i % 2 else None,
            )
            for i, size in enumerate(sizes)
        ]
        if n % 2:  # each instance one after the other, so that their commits meet in other ways
            await asyncio.gather(*(_one_by_one(turns[i::3]) for i in range(3)))
        else:
            await asyncio.gather(*turns)
        pieces = [[100 * i + k for k in range(size)] for i, size in enumerate(sizes)]
        for store in stores[:2]:
            texts = [int(message.text.removeprefix("message ")) for message in await store.load_messages(agent)][1:]
            calls = [int(call.id.removeprefix("call_")) for call in await store.load_tool_call_records(agent)]
            by_offset = [event.bookmark.seq async for event in store.read_events(agent, after_offset=0)]
            for what, found in (("messages", texts), ("tool calls", calls), ("events, by offset,", by_offset)):
                see_pieces(ctx, found, pieces, f"{what} of twelve turns at once")


async def _one_by_one(calls: Sequence[Awaitable[object]]) -> None:
    for call in calls:
        await call


@check("TC-3", under=(Dimension.ITEMS, Dimension.INSTANCES))
async def upserts_of_all_that_is_there(ctx: Context) -> None:
    """An upsert of every tool call of a long list, in another order, by an instance that wrote the list, read it or
    never saw it, replaces each where it is and adds none.
    """
    other = await ctx.another()
    for n, size in enumerate(in_time(ctx, (101, 501, 1101))):
        calls = [samples.tool_call(i, audit_trail=[]) for i in range(size)]
        await ctx.store.save_tool_call_records("a", calls)
        if n % 2:
            await other.load_tool_call_records("a")
        for store, what in ((other, "another instance"), (ctx.store, "the one that wrote it")):
            changed = [call.replace(error=f"{what} {i}") for i, call in enumerate(calls)]
            await store.upsert_tool_call_records("a", changed[::-1])
            found = await (await ctx.another()).load_tool_call_records("a")
            ctx.equal(found, changed, f"{size} tool calls that {what} has upserted, all of them in one call")


class _EndOfSummer(tzinfo):
    """The hour that comes twice, in which ``fold`` says which of the two it is."""

    def utcoffset(self, moment: datetime | None) -> timedelta:
        return timedelta(hours=1 if moment is not None and moment.fold else 2)

    def dst(self, moment: datetime | None) -> timedelta:
        return self.utcoffset(moment) - timedelta(hours=1)

    def tzname(self, _: datetime | None) -> str:
        return "the end of summer"

    def fromutc(self, moment: datetime) -> datetime:
        return (moment + timedelta(hours=1)).replace(fold=1)


_ZONES: Final = (
    UTC,
    *(timezone(timedelta(hours=hours)) for hours in (2, -8, 14, -12)),
    timezone(timedelta(hours=5, minutes=45)),
    timezone(-timedelta(hours=9, minutes=30)),
    _EndOfSummer(),
)


@check("VAL-5", "QRY-2", needs=Capability.QUERYABLE, under=(Dimension.CLOCKS, Dimension.NUMBERS))
async def filters_take_times_of_every_zone(ctx: Context) -> None:
    """Each filter of times, of each query and iterator, takes one moment in any zone for the same moment."""
    store, step = ctx.store, 3_600_000
    for i in range(4):
        await store.save_info(f"a{i}", samples.info(f"a{i}", created_at=samples.T0 + i * step))
    calls = [samples.tool_call(i, created_at=samples.T0 + i * step) for i in range(4)]
    await store.save_tool_call_records("a0", calls)
    now = (await store.query_sessions(agent_id="a0"))[0].updated_at
    await store.save_messages("a0", samples.messages(2))
    for at, names in ((samples.T0 + step, ("sessions", "tool_calls")), (now, ("messages",))):
        for name in names:
            for zone in in_time(ctx, _ZONES):
                moment = datetime.fromtimestamp(at / 1000, UTC).replace(microsecond=at % 1000 * 1000).astimezone(zone)
                for bound in ("created_after", "created_before"):
                    await _same_moment(ctx, name, bound, at, moment)
    for zone in in_time(ctx, _ZONES):
        moment = datetime.fromtimestamp(now / 1000, UTC).replace(microsecond=now % 1000 * 1000).astimezone(zone)
        for bound in ("updated_after", "updated_before"):
            await _same_moment(ctx, "sessions", bound, now, moment)


async def _same_moment(ctx: Context, name: str, bound: str, at: int, moment: datetime) -> None:
    query: Callable[..., Awaitable[list[Any]]] = getattr(ctx.store, f"query_{name}")
    stream: Callable[..., AsyncIterator[Any]] = getattr(ctx.store, f"iter_{name}")
    wanted = list(await query(**{bound: at}))
    ctx.equal(list(await query(**{bound: moment})), wanted, f"query_{name}({bound}={moment}), as for {at}")
    streamed = [record async for record in stream(**{bound: moment})]
    ctx.equal(streamed, wanted, f"iter_{name}({bound}={moment}), as for {at}")


_SEQS: Final = ((3, 9, 9, 5, 9, 2), (9, 3, 2), (2, 9, 3), (2, 3, 9), (-(2**63), 5, -1), (9, 9, 2**40), (2**40, 9, 9))
"""The seqs of events in the order in which they are appended: the highest one first, last, between, and several."""


async def _one_by_one_in_turns(stores: Sequence[Any], agent_id: str, entries: Sequence[Timeline]) -> None:
    for n, entry in enumerate(entries):
        await stores[n % 2].append_event(agent_id, entry)


_APPENDS: Final[Mapping[str, Callable[[Sequence[Any], str, Sequence[Timeline]], Awaitable[object]]]] = {
    "append_event": _one_by_one_in_turns,
    "append_events": lambda stores, agent_id, entries: stores[0].append_events(agent_id, entries),
    "save_turn": lambda stores, agent_id, entries: stores[0].save_turn(agent_id, events=entries),
    "import_agent": lambda stores, agent_id, entries: stores[0].import_agent(
        agent_id, AgentRecords(agent_id=agent_id, events=entries)
    ),
}


@check("EVT-6", "EVT-3", "LIFE-8", under=(Dimension.EQUALS, Dimension.ORDERS, Dimension.INSTANCES))
async def the_last_bookmark_of_equal_seqs(ctx: Context) -> None:
    """Whatever way events come, and wherever in the list the one with the highest seq is, it has the last bookmark, of
    several the one that was appended last; in every instance, after a reopening, and after another event of a lesser
    seq.
    """
    other, wanted = await ctx.another(), dict[str, tuple[Bookmark, int]]()
    for way, append in _APPENDS.items():
        if way == "import_agent" and "EXTENDED" in ctx.harness.lacks:
            continue
        for n, seqs in enumerate(_SEQS):
            agent_id = f"{way} {', '.join(map(str, seqs))}"
            entries = [
                samples.event(seq, cursor=i % 3).replace(bookmark=Bookmark(seq, samples.T0 - i))
                for i, seq in enumerate(seqs)
            ]
            await append((ctx.store, other) if n % 2 else (other, ctx.store), agent_id, entries)
            last = max(range(len(seqs)), key=lambda i, seqs=seqs: (seqs[i], i))  # type: ignore[misc]
            wanted[agent_id] = entries[last].bookmark, min(seqs)
    async for where, store in views(ctx, other):
        for agent_id, (bookmark, _) in wanted.items():
            ctx.equal(await store.last_bookmark(agent_id), bookmark, f"the last bookmark of {agent_id}{where}")
    for agent_id, (bookmark, least) in wanted.items():
        await ctx.store.append_event(agent_id, samples.event(least, cursor=7))
        ctx.equal(await ctx.store.last_bookmark(agent_id), bookmark, f"the last bookmark of {agent_id}, {least}")
