"""Many of a kind: how they are made and written, the reads that give them back, and a comparison that names the place.

The tables list every kind of record that an agent can have many of, and every call that writes some.
"""

from __future__ import annotations

import asyncio
import operator
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from kode_conformance.context import Context, Violation, difference
from kode_conformance.values import samples
from kode_core.model import Message, ToolCallRecord
from kode_core.protocols import ExtendedStore, Store

__all__ = ["DOCUMENTS", "LISTS", "Documents", "Listing", "all_of", "at_once", "same", "views"]

Write = Callable[[ExtendedStore, str, Sequence[Any]], Awaitable[object]]


# --- comparing --------------------------------------------------------------------------------------------------------


def same(ctx: Context, got: Sequence[Any], want: Sequence[Any], what: str) -> None:
    """*got* must be *want*, as :meth:`Context.equal` compares; a finding names the place before the number."""
    if not want or type(got) is not list or _plain(got, type(want[0])) != _plain(want, type(want[0])):
        problem = _first_fault(got, want)
        if problem is not None:
            raise Violation(f"{what}: {problem}")
        ctx.equal(list(got), list(want), what)


_ENCODER: Final = msgspec.json.Encoder()


def _plain(records: Iterable[Any], kind: type) -> object:
    """The fields of *kind* of each record as JSON, which compares fast and tells 1 from 1.0."""
    names = getattr(kind, "__struct_fields__", ())
    if not names:
        return [(type(record), record) for record in records]
    try:
        return _ENCODER.encode(list(map(operator.attrgetter(*names), records)))
    except (AttributeError, UnicodeEncodeError):
        return object()


def _first_fault(got: Sequence[Any], want: Sequence[Any]) -> str | None:
    for i, (one, wanted) in enumerate(zip(got, want, strict=False), 1):
        found = difference(one, wanted)
        if found is not None:
            return f"number {i} of {len(want)} is another ({len(got)} came): {found}"
    if len(got) < len(want):
        return f"number {len(got) + 1} of {len(want)} is missing, and all behind it: {len(got)} came"
    if len(got) > len(want):
        return f"{len(got)} came, and there are {len(want)}: number {len(want) + 1} is {got[len(want)]!a:.200}"
    return None


async def all_of(stream: AsyncIterator[Any]) -> list[Any]:
    """The items of a stream."""
    return [record async for record in stream]


async def views(ctx: Context, other: ExtendedStore) -> AsyncIterator[tuple[str, ExtendedStore]]:
    """The store, *another* instance that was open before, and, where a store keeps things, the store opened again."""
    yield "", ctx.store
    yield ", in another instance", other
    if "PERSISTENT" not in ctx.harness.lacks:
        yield ", opened again", await ctx.reopen()


def see_pieces(ctx: Context, found: Sequence[int], pieces: Sequence[Sequence[int]], what: str) -> None:
    """Check that the numbers are the numbers of all *pieces*, in any order of the pieces; each piece must be together
    and in order.
    """
    piece_of = {number: i for i, piece in enumerate(pieces) for number in piece}
    order = list(dict.fromkeys(piece_of.get(number, -1) for number in found))
    ctx.equal(sorted(order), list(range(len(pieces))), f"the calls of which there are {what}")
    ctx.equal(list(found), [number for i in order for number in pieces[i]], f"the {what}, each call's in one piece")


async def at_once(calls: Iterable[Awaitable[object]], most: int = 50) -> None:
    """Make the calls, so many at a time."""
    waiting = list(calls)
    for start in range(0, len(waiting), most):
        await asyncio.gather(*waiting[start : start + most])


# --- lists ------------------------------------------------------------------------------------------------------------


class Listing(NamedTuple):
    """A kind of record that an agent has a list of.

    Attributes:
        item: the record of that number; another *text* makes another record of it.
        again: the record of the first number with the id, key or contents of the second one.
        replaces: the calls that replace the list, by name.
        adds: the calls that add at its end.
    """

    name: str
    item: Callable[..., Any]
    again: Callable[[int, int, str], Any]
    load: Callable[[Store, str], Awaitable[list[Any]]]
    replaces: Mapping[str, Write]
    adds: Mapping[str, Write]

    def items(self, count: int, text: str = "") -> list[Any]:
        """So many records."""
        return [self.item(i, text) for i in range(count)]

    def repeated(self, count: int, text: str = "") -> list[Any]:
        """So many records, most of which have the id, key or contents of others, next to them or far away."""
        return [self.again(i, i // 2 if i % 3 else i % 97, text) for i in range(count)]


def _message(i: int, text: str = "") -> Message:
    return samples.message(text=f"message {i}{text}")


def _call(i: int, text: str = "") -> ToolCallRecord:
    return samples.tool_call(i, audit_trail=[], result=f"result {i}{text}")


LISTS: Final[tuple[Listing, ...]] = (
    Listing(
        "messages",
        _message,
        lambda i, of, text: _message(of, text),
        lambda s, a: s.load_messages(a),
        {
            "save_messages": lambda s, a, records: s.save_messages(a, records),
            "save_turn(messages=…)": lambda s, a, records: s.save_turn(a, messages=records),
        },
        {
            "append_messages": lambda s, a, records: s.append_messages(a, records),
            "save_turn(append=…)": lambda s, a, records: s.save_turn(a, append=records),
        },
    ),
    Listing(
        "tool calls",
        _call,
        lambda i, of, text: _call(i, text).replace(id=f"call_{of}"),
        lambda s, a: s.load_tool_call_records(a),
        {
            "save_tool_call_records": lambda s, a, records: s.save_tool_call_records(a, records),
            "save_turn(tool_calls=…)": lambda s, a, records: s.save_turn(a, tool_calls=records),
        },
        {
            "upsert_tool_call_records": lambda s, a, records: s.upsert_tool_call_records(a, records),
            "save_turn(upsert_tool_calls=…)": lambda s, a, records: s.save_turn(a, upsert_tool_calls=records),
        },
    ),
    Listing(
        "media",
        lambda i, text="": samples.media(f"key {i}{text}"),
        lambda i, of, text: samples.media(f"key {of}{text}").replace(size_bytes=i),
        lambda s, a: s.load_media_cache(a),
        {"save_media_cache": lambda s, a, records: s.save_media_cache(a, records)},
        {},
    ),
)
"""Every list of an agent."""


# --- documents --------------------------------------------------------------------------------------------------------


class Documents(NamedTuple):
    """A kind of record that an agent has many of, each under a key.

    Attributes:
        item: the record of that number, at that time.
        order: the sort key of loads.
    """

    name: str
    item: Callable[[int, int], Any]
    save: Callable[[Store, str, Any], Awaitable[object]]
    load: Callable[[Store, str], Awaitable[list[Any]]]
    order: Callable[[Any], Any]

    def items(self, count: int) -> list[Any]:
        """So many records, several at each time, sorted neither by time nor by key."""
        numbers = sorted(range(count), key=lambda i: (i * 7919) % 1009)
        return [self.item(i, samples.T0 + i % 5) for i in numbers]


DOCUMENTS: Final[tuple[Documents, ...]] = (
    Documents(
        "history windows",
        lambda i, time: samples.window(f"w{i}", time).replace(messages=[samples.message(i)], events=[]),
        lambda s, a, record: s.save_history_window(a, record),
        lambda s, a: s.load_history_windows(a),
        lambda window: (window.timestamp, window.id),
    ),
    Documents(
        "compression records",
        lambda i, time: samples.compression(f"c{i}", time).replace(summary=f"summary {i}"),
        lambda s, a, record: s.save_compression_record(a, record),
        lambda s, a: s.load_compression_records(a),
        lambda record: (record.timestamp, record.id),
    ),
    Documents(
        "recovered files",
        lambda i, time: samples.recovered(f"p/{i // 2}", time, f"content {i}"),
        lambda s, a, record: s.save_recovered_file(a, record),
        lambda s, a: s.load_recovered_files(a),
        lambda file: (file.timestamp, file.path),
    ),
    Documents(
        "snapshots",
        lambda i, time: samples.snapshot(f"s{i}", time, count=1).replace(metadata={"n": i}),
        lambda s, a, record: s.save_snapshot(a, record),
        lambda s, a: s.list_snapshots(a),
        lambda snapshot: (-snapshot.created_at, snapshot.id),
    ),
)
"""Every kind of documents."""
