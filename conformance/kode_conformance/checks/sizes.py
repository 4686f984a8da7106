"""VAL-4, QRY-5, MSG-3: large records in the place of small ones, on pages, and written by several at once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from kode_conformance.calls.ways import all_come_back, changes_come_back
from kode_conformance.checks.many_reads import in_pages
from kode_conformance.context import Context
from kode_conformance.dimensions import Dimension
from kode_conformance.instruments.pace import in_time
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_conformance.values.fields import Field, Holds, fields_of, full, of_agent, put
from kode_conformance.values.kinds import Gives, Kind, kinds
from kode_conformance.values.many import same, see_pieces
from kode_core.model import (
    AgentInfo,
    MediaCacheRecord,
    Message,
    Record,
    Snapshot,
    Timeline,
    TodoSnapshot,
    ToolCallRecord,
)

_D: Final = Dimension
_SIZES: Final = (10, 5_001, 11)
"""Small, then more than columns take, then small again: the large record must not remain."""
_ALIKE: Final = 70_001
"""More than lines and compressed parts take."""
_MORE: Final = (2**22 + 1, 11, 65_536, 10, 400_001, 2**24, 12)
"""More than caches, items and packets take."""
_HEADROOM: Final = 4096
"""The room that the rest of a record takes."""


def _rooms(root: type[Any]) -> list[Field]:
    """The fields of the record that take a text of any length, as it is or in a dict."""
    return [f for f in fields_of(root) if f.holds in (Holds.TEXT, Holds.JSON, Holds.DICT)]


def _put(record: Any, field: Field, text: str) -> Any:
    return put(record, field, {"k": text} if field.holds is Holds.DICT else text)


_HALVES: Final = ("\ud83d!", "\0\r\n\udc80")
"""Halves of pairs and other characters that some ways to store a text do not take, at its beginning and its end."""


def _of_size(size: int) -> str:
    begin, end = _HALVES
    return f"{begin}{'x' * (size - len(begin) - len(end))}{end}"


def _texts(tier: Tier, most: int) -> Iterator[str]:
    """Texts of many sizes, and long ones of one size that differ at the end, in the middle or at the beginning; all
    begin and end with characters that some ways to store a text do not take.
    """
    yield from (_of_size(min(size, most)) for size in _SIZES)
    whole = _of_size(min(_ALIKE, most))
    yield whole
    yield from (f"{whole[:place]}y{whole[place + 1 :]}" for place in (len(whole) - 1, len(whole) // 2, 0))
    yield from (_of_size(min(size, most)) for size in (12, *(_MORE if tier > Tier.QUICK else ())))


@check(
    *("VAL-4", "MSG-1", "TC-1", "TODO-1", "HIS-1", "HIS-2", "MED-1", "SNAP-1", "INFO-2", "QRY-8", "EVT-4"),
    under=(_D.LENGTHS, _D.CHANGES, _D.INSTANCES, _D.ORDERS, _D.EQUALS),
)
async def every_size_replaces_another(ctx: Context) -> None:
    """A small record replaces a large one and a large one a small one, of every kind, by every method and whichever
    field is large, and so does a large one that differs in its last, its middle or its first character alone: another
    instance loads the new record, never the old one. Such events are all kept.
    """
    most = (ctx.harness.limits.max_payload_bytes or 2**40) - _HEADROOM
    large = {root: ctx.rng.choice(_rooms(root)) for root in kinds()}
    texts = _texts(ctx.settings.tier, most)
    phases = [{root: [_put(full(root), field, text)] for root, field in large.items()} for text in texts]
    await changes_come_back(ctx, phases, turning=True, large=True)


# --- large and alike --------------------------------------------------------------------------------------------------

_ITEM: Final = 400_001
"""Characters that an item or a cell of some databases does not take; three of them are more than a page of 1 MiB."""
_AGENTS: Final = ("p", "q")


def _alike(ctx: Context, kind: Kind) -> list[Any]:
    """Large records, of which two are equal, but for a key that must differ, and the third differs at its end; large is
    each field that takes any result, or one of the others.
    """
    rooms = _rooms(kind.record)
    large = [field for field in rooms if field.holds is Holds.JSON and len(field.path) == 1] or [ctx.rng.choice(rooms)]
    size = min(_ITEM, (ctx.harness.limits.max_payload_bytes or 2**40) // (4 * len(large)))
    found = []
    for end in "0" if kind.is_single else "012" if kind.record is Timeline else "001":  # the same event twice is one
        record = full(kind.record)
        for field in large:
            record = _put(record, field, f"{'x' * (size - 1)}{end}")
        found.append(record)
    return [put(record, _key(kind), f"k{i}") for i, record in enumerate(found)] if _is_keyed(kind) else found


def _key(kind: Kind) -> Field:
    return next(field for field in fields_of(kind.record) if field.holds is Holds.KEY)


def _is_keyed(kind: Kind) -> bool:
    """True if a record replaces another one of its key alone."""
    return not kind.is_single and not any(writer.many for writer in kind.writers)


async def _write(store: Any, kind: Kind, agent_id: str, records: Sequence[Any], turn: int = 0) -> None:
    """Write the records by one of the methods that take them as they are."""
    ways = [writer for writer in kind.writers if writer.many or _is_keyed(kind) or kind.is_single]
    ways = [way for way in ways if "upsert" not in f"{way.method}{way.parameter}"]
    way = [way for way in ways if "append" not in f"{way.method}{way.parameter}" or kind.record is Timeline][-turn]
    for given in [list(records)] if way.many else [of_agent(record, agent_id) for record in records]:
        await getattr(store, way.method)(agent_id, **{way.parameter: given})


async def _read(store: Any, kind: Kind, agent_id: str) -> list[Any]:
    if kind.whole.gives is Gives.STREAM:
        return [event async for event in store.read_events(agent_id)]
    found = await getattr(store, kind.whole.method)(agent_id)
    if kind.record is AgentInfo:
        return [found.replace(message_count=0)]  # the store counts
    return [found] if kind.is_single else list(found)


@check(
    *("VAL-4", "VAL-1", "MSG-1", "TC-1", "TC-2", "EVT-1", "TODO-1", "HIS-1", "HIS-2", "MED-1", "SNAP-1", "SNAP-2"),
    *("FORK-2", "LIFE-3"),
    needs=Capability.EXTENDED,
    under=(_D.LENGTHS, _D.EQUALS, _D.ITEMS, _D.CHANGES, _D.INSTANCES),
)
async def large_records_share_nothing(ctx: Context) -> None:
    """Large records of every kind that are equal, have one id, or differ at their ends alone, come back as they are,
    together more than a page of bytes, of one agent, of another one that has the same, and of a fork. When some are
    replaced or removed, or an agent is deleted, the others stay.
    """
    stores, every = (ctx.store, await ctx.another()), dict[Kind, list[Any]]()
    info, *others = sorted(kinds().values(), key=lambda kind: kind.record is not AgentInfo)
    for kind in in_time(ctx, [info, *ctx.rng.sample(others, len(others))]):
        every[kind] = _alike(ctx, kind)
        for turn, agent_id in enumerate(_AGENTS):
            await _write(stores[turn], kind, agent_id, every[kind], turn)
    child = await stores[1].fork("p")
    wanted = {agent_id: dict(every) for agent_id in _AGENTS}
    wanted[child] = {kind: records for kind, records in every.items() if kind.record in _FORKED}
    await _see(ctx, wanted, "at first")
    for kind, records in every.items():
        if kind.record is not Timeline:
            small = put(full(kind.record), _key(kind), "k0") if _is_keyed(kind) else full(kind.record)
            wanted["q"][kind] = [small, *records[1:]]
            await _write(ctx.store, kind, "q", [small] if _is_keyed(kind) else wanted["q"][kind])
    if kinds()[Snapshot] in every:
        await ctx.store.delete_snapshot(child, "k0")
        wanted[child][kinds()[Snapshot]] = every[kinds()[Snapshot]][1:]
    await _see(ctx, wanted, "after the first of another agent were replaced by small ones, and one of a fork removed")
    await stores[1].delete("q")
    await ctx.store.delete(child)
    await _see(ctx, {"p": wanted["p"]}, "after the other agent and the fork were deleted")


_FORKED: Final = (Message, ToolCallRecord, TodoSnapshot, MediaCacheRecord, Snapshot)


async def _see(ctx: Context, wanted: Mapping[str, Mapping[Kind, Sequence[Any]]], when: str) -> None:
    for agent_id, of_kinds in wanted.items():
        for kind, records in of_kinds.items():
            owned = [of_agent(record, agent_id) for record in records]
            same(ctx, await _read(ctx.store, kind, agent_id), owned, f"{kind.whole.method} of {agent_id!r} {when}")


_STEPS: Final = (409_601, 10, 70_001, 11, 262_145, 12, 5_001)
"""Sizes of records that follow one another: more than items, cells, lines and pages of some databases take."""


@check(
    *("HIS-1", "HIS-2", "SNAP-1", "MSG-1", "TC-1", "MED-1", "EVT-5", "VAL-4"),
    under=(_D.LENGTHS, _D.ORDERS, _D.INSTANCES),
)
async def large_records_keep_their_places(ctx: Context) -> None:
    """Lists of every kind in which large records stand between small ones, some of them so large that a store may keep
    them elsewhere, are in their order, by every method that gives them: by time and key, or as they were saved.
    """
    most = (ctx.harness.limits.max_payload_bytes or 2**40) - _HEADROOM
    sizes = [min(size, most) for size in _STEPS]
    every = dict[type[Record], list[Any]]()
    for record, kind in kinds().items():
        if not kind.is_single:
            field = ctx.rng.choice(_rooms(record))
            every[record] = [_put(full(record, i), field, "x" * size) for i, size in enumerate(sizes)]
    await all_come_back(ctx, every, once=ctx.settings.tier is Tier.QUICK, much="places ")


_LARGE_TEXT: Final = 600_000
_PAGE: Final = 10


@check("QRY-5", "QRY-4", "QRY-6", "VAL-4", needs=Capability.QUERYABLE, under=(_D.LENGTHS, _D.ITEMS))
async def pages_of_large_records_are_full(ctx: Context) -> None:
    """A page is as long as its limit says however large its records are, and the last one alone is shorter."""
    size = min(_LARGE_TEXT, (ctx.harness.limits.max_payload_bytes or 2**40) // 2)
    count = _PAGE + 2 if ctx.harness.patience <= 1 else 3
    limit = count - 2
    texts = [f"{i}".ljust(size, "x") for i in range(count)]
    await ctx.store.save_messages("a", [samples.message(text=text) for text in texts])
    calls = [samples.tool_call(i, result=text, audit_trail=[]) for i, text in enumerate(texts)]
    await ctx.store.save_tool_call_records("a", calls)
    for what in ("messages", "tool_calls"):
        found = await in_pages(ctx.store, f"query_{what}", agent_id="a", order="asc", limit=limit)
        places = [record.position for record in found]
        ctx.equal(places, list(range(count)), f"positions in pages of {limit} {what} of {size:,} characters")


@check("MSG-3", "TC-3", "EVT-1", "TURN-1", "DUR-3", under=(_D.LENGTHS, _D.COMPANY, _D.INSTANCES))
async def large_records_at_once_stay_together(ctx: Context) -> None:
    """A call's records stay together though they are megabytes, however many instances write at once, by every method
    that adds.
    """
    size = min(_LARGE_TEXT, (ctx.harness.limits.max_payload_bytes or 2**40) // 4)
    stores, per_call = (ctx.store, await ctx.another()), 3 if ctx.harness.patience <= 1 else 2
    pieces = [range(who * 10, who * 10 + per_call) for who in range(3)]

    def parts(numbers: Sequence[int]) -> dict[str, Any]:
        return {
            "append": [samples.message(text=f"{n}".ljust(size)) for n in numbers],
            "upsert_tool_calls": [samples.tool_call(n, result=f"{n}".ljust(size), audit_trail=[]) for n in numbers],
            "events": [samples.event(n, text=f"{n}".ljust(size)) for n in numbers],
        }

    async def write(store: Any, numbers: Sequence[int]) -> None:
        given = parts(numbers)
        await store.append_messages("a", given["append"])
        await store.upsert_tool_call_records("a", given["upsert_tool_calls"])
        await store.append_events("a", given["events"])
        await store.save_turn("b", **given)

    await asyncio.gather(*(write(stores[who % 2], piece) for who, piece in enumerate(pieces)))
    for agent in in_time(ctx, ("a", "b")):
        for what, numbers in (
            ("messages", [int(message.text) for message in await ctx.store.load_messages(agent)]),
            ("tool calls", [int(call.result) for call in await ctx.store.load_tool_call_records(agent)]),
            ("events", [e.bookmark.seq async for e in ctx.store.read_events(agent, after_offset=0)]),
        ):
            see_pieces(ctx, numbers, pieces, f"{what} of {size:,} characters, of three calls at once")
