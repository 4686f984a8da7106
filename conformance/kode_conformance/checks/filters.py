"""QRY-2, QRY-3, EVT-5: filters and orders by names and values that comparisons, columns and indexes get wrong."""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from kode_conformance.calls.ways import at_once, brief, first
from kode_conformance.context import Context
from kode_conformance.dimensions import FRACTIONS, INTEGERS, LOOKALIKES, TIMES, Dimension, lengths, twins
from kode_conformance.instruments.pace import in_time
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_core.errors import InvalidArgumentError
from kode_core.model import Bookmark, Message, UnknownBlock

_D = Dimension
_Q = Capability.QUERYABLE

_FILTERS: Final = (
    ("query_sessions", lambda name: {"template_id": name}),
    ("query_messages", lambda name: {"role": name}),
    ("query_tool_calls", lambda name: {"tool_name": name}),
    ("query_sessions", lambda name: {"user_id": name}),
    ("query_messages", lambda name: {"content_type": name}),
    ("query_tool_calls", lambda name: {"state": name}),
    ("query_sessions", lambda name: {"metadata": {name: "x"}}),
    ("query_sessions", lambda name: {"metadata": {"a list": [name]}}),
)


def _long_names(tier: Tier) -> list[str]:
    """Two of each length that differ in their last character."""
    known = lengths(up_to=8193) if tier > Tier.QUICK else (64, 128, 255, 256, 257, 1024, 1025, 2705, 3073, 8193)
    return [f"{'n' * (length - 1)}{end}" for length in known if length for end in ("x", "é")]


@check("QRY-2", "QRY-1", "QRY-7", needs=_Q, under=(_D.TWINS, _D.LENGTHS, _D.LOOKALIKES))
async def each_name_is_found_by_itself_alone(ctx: Context) -> None:
    """Of many names that differ in what comparisons overlook, or in the last of many characters, a filter finds each
    by itself: templates, users, keys and values of metadata, roles, block types, tools and states.
    """
    names = list(dict.fromkeys([*twins(), *_long_names(ctx.settings.tier), *LOOKALIKES]))
    ctx.rng.shuffle(names)
    await at_once(
        ctx.store.save_turn(
            f"{i}",
            info=samples.info(f"{i}", template_id=name, metadata={"userId": name, name: "x", "a list": [name]}),
            messages=[Message(name, [UnknownBlock({"type": name, "n": i})])],
            tool_calls=[samples.tool_call(i, name=name, state=name)],
        )
        for i, name in enumerate(names)
    )
    every = 1 if ctx.settings.tier > Tier.QUICK else 4
    for i, name in in_time(ctx, list(enumerate(names))):
        for method, filters in _FILTERS[i % every :: every]:
            found = {record.agent_id for record in await getattr(ctx.store, method)(**filters(name))}
            if found != {f"{i}"}:
                others = ", ".join(brief(names[int(other)]) for other in sorted(found, key=int)[:5]) or "nothing"
                by = next(iter(filters(name)))
                ctx.true(False, f"{method}({by}=…) of {brief(name)} finds {others}")


@check("QRY-2", needs=_Q, under=(_D.LOOKALIKES,))
async def types_of_blocks_are_whole_names(ctx: Context) -> None:
    """A message is found by the whole type of each of its blocks, and not by parts of one, whatever joins the parts."""
    joints = (" ", ",", ", ", "|", "\n", "\t", ";", ":", "/", "\0", "\x1f", "\\", '"', '","', "'", "[", "%", "_", "é")
    types = [f"Ab{joint}Cd" for joint in joints]
    await ctx.store.save_messages("a", [Message("user", [UnknownBlock({"type": one}) for one in types])])
    for one in (*types, "Ab", "Cd", "A", "ab Cd", f"{types[0]},{types[1]}", "[", '"', "%", ",", ""):
        found = len(await ctx.store.query_messages(content_type=one))
        ctx.equal(found, int(one in types), f"how many messages content_type={one!a} finds")


_MOST_KEYS: Final = 500


@check("QRY-2", "QRY-1", needs=_Q, under=(_D.ITEMS, _D.ORDERS))
async def a_filter_of_many_keys(ctx: Context) -> None:
    """A filter of metadata heeds each of its keys, up to 500 of them in any order and next to a user; one of more keys
    raises InvalidArgumentError.
    """
    whole = {f"key {i}": i for i in range(_MOST_KEYS)}
    for i in (0, *ctx.rng.sample(range(1, _MOST_KEYS - 1), 3), _MOST_KEYS - 1):
        other = {**whole, f"key {i}": -1, "userId": "u"}
        await ctx.store.save_info(f"all but {i}", samples.info(f"all but {i}", metadata=other))
    await ctx.store.save_info("whole", samples.info("whole", metadata={**whole, "userId": "u", "more": True}))
    shuffled = ctx.rng.sample([*whole.items()], _MOST_KEYS)
    for wanted in (whole, dict(reversed(whole.items())), dict(shuffled)):
        found = await ctx.store.query_sessions(metadata=wanted, user_id="u")
        ctx.equal([one.agent_id for one in found], ["whole"], f"sessions with {_MOST_KEYS} equal values and the user")
        found = await ctx.store.query_sessions(metadata=wanted, user_id="v")
        ctx.equal([one.agent_id for one in found], [], "sessions of another user")
    beyond = {**whole, "more": True}
    what = f"a filter of {_MOST_KEYS + 1} keys"
    for method in ("query_sessions", "delete_many"):
        await ctx.raises(InvalidArgumentError, getattr(ctx.store, method)(metadata=beyond), what)
    await ctx.raises(InvalidArgumentError, anext(ctx.store.iter_sessions(metadata=beyond)), what)
    ctx.true(await ctx.store.exists("whole"), "delete_many that is refused deletes nothing")


_LONGEST: Final = 65_537


@check("QRY-7", needs=_Q, under=(_D.TWINS, _D.LOOKALIKES, _D.LENGTHS))
async def statistics_tell_names_apart(ctx: Context) -> None:
    """Statistics count each tool and each state under its own name, as it was written, however long it is."""
    longest = min(_LONGEST, (ctx.harness.limits.max_payload_bytes or 2**40) // 8)
    long = [f"{head}{'x' * (length - 1)}" for head in "é\n" for length in lengths(up_to=longest) if length]
    names = list(dict.fromkeys([*twins(), *LOOKALIKES, *long, f"{long[-1][:-1]}y"]))
    calls = [samples.tool_call(i, name=name, state=names[-1 - i]) for i, name in enumerate(names)]
    await ctx.store.save_tool_call_records("a", [*calls, calls[0]])
    stats = await ctx.store.aggregate_stats("a")
    for what, found, twice in (
        ("tool_calls_by_name", stats.tool_calls_by_name, names[0]),
        ("tool_calls_by_state", stats.tool_calls_by_state, names[-1]),
    ):
        for name in names:
            ctx.equal(found.get(name), 1 + (name == twice), f"{what}[{brief(name)}]")
        ctx.equal(len(found), len(names), f"how many names {what} has")


# --- metadata ---------------------------------------------------------------------------------------------------------

VALUES: Final[tuple[Any, ...]] = (
    *INTEGERS,
    *(value for value in FRACTIONS if not value.is_integer() or abs(value) > 2**63),
    *(math.nextafter(0.1, 1), math.nextafter(1e300, 0), 1e300, 10**22 + 1, 10**40, 10**40 + 1, -(10**40), 2**53 + 2),
    *(None, True, False, "", "0", "1", "1.0", "true", "True", "false", "null", "None", "[]", "{}", "[1]", '"1"'),
    *([], {}, [1], [2], ["1"], [True], [None], [[1]], [1, 2], [2, 1], [1, 2, 3], [{}], [{"a": 1}], [0.1], [0.1 + 0.2]),
    *({"a": 1}, {"a": True}, {"a": "1"}, {"a": None}, {"a": [1]}, {"a": {"b": 1}}, {"a": {"b": 1, "c": 2}}),
    *({"a.b": 1}, {"a": 1, "b": 2}, {"b": 2}, {"": 1}, {"$gt": 0}, {"A": 1}, {"a\0": 1}),
    *("x" * 3000 + "a", "x" * 3000 + "b", ["x" * 3000, "a"], ["x" * 3000, "b"], {"x" * 3000: 1}, {"x" * 3000: 2}),
    *("y" * length for length in lengths(up_to=8193) if length > 1),
    *("z" * length + end for length in (254, 255, 256, 766, 1023, 2703, 8190) for end in "ab"),
    *({"n": [[i] for i in range(300)]}, {"n": [[i] for i in range(299)]}, "1767258000000", "2026-01-01T09:00:00Z"),
    *([{"a": 1, "b": 2}], [{"a": 2, "b": 1}], {"a": [{"b": 1, "c": {"d": [{"e": 0, "f": -1}], "g": 2}}], "h": None}),
)
"""All are different by value: 1.0 is not among them, for it is 1."""


def equals(value: Any) -> Iterator[Any]:
    """The value, and others that are equal to it: with the keys of its dicts in the reverse order at every level, or at
    every level but the first, and with other numbers that are the same by value.
    """
    yield value
    if (other := _turned(value)) is not value:
        yield other
        if type(value) is dict:
            yield {key: other[key] for key in value}
    if type(value) is int and int(float(value)) == value:
        yield float(value)
    if type(value) is float and value.is_integer() and abs(value) < 1e25:
        yield int(value)
    if type(value) is int and value == 0:
        yield -0.0


def _turned(value: Any) -> Any:
    """The value with the keys of all its dicts in the reverse order; itself if it has no two keys in one dict."""
    if type(value) is list:
        items = [_turned(item) for item in value]
        return value if all(map(operator.is_, items, value)) else items
    if type(value) is not dict:
        return value
    pairs = {key: _turned(item) for key, item in reversed(value.items())}
    return value if len(value) < 2 and all(pairs[key] is value[key] for key in value) else pairs


@check("QRY-2", "VAL-1", needs=_Q, under=(_D.NUMBERS, _D.LOOKALIKES, _D.LENGTHS))
async def metadata_is_compared_by_value(ctx: Context) -> None:
    """A filter of metadata finds exactly the sessions whose value is equal, to the last bit and the last item: numbers
    by value, whole or not, booleans and texts never as numbers, lists and dicts as wholes. So does a filter of the
    user, which is a text.
    """
    values = list(VALUES)
    ctx.rng.shuffle(values)
    await at_once(
        ctx.store.save_info(
            f"{i}", samples.info(f"{i}", metadata={"v": value, "userId": value, "a": {"b": i}, "a.b": -i})
        )
        for i, value in enumerate(values)
    )
    await ctx.store.save_info("without", samples.info("without", metadata={"w": 1}))
    for i, value in in_time(ctx, list(enumerate(values))):
        for equal in equals(value):
            await _finds(ctx, {"v": equal}, [f"{i}"])
        text = value if isinstance(value, str) else json.dumps(value)
        found = [session.agent_id for session in await ctx.store.query_sessions(user_id=text)]
        ctx.equal(
            found, [f"{k}" for k, one in enumerate(values) if one == text], f"who is found by user_id={text!a:.100}"
        )
    for filters, wanted in (
        ({"a": {"b": 3}}, ["3"]),
        ({"a.b": -3}, ["3"]),
        ({"a.b": 3}, []),
        ({"a": {"b": 3}, "a.b": -4}, []),
        ({"v.0": 1}, []),
        ({"v": "unheard of"}, []),
        ({"v": {"a": {}}}, []),
        ({"W": 1}, []),
        ({"w": True}, []),
        ({"w": "1"}, []),
        ({"w": [1]}, []),
        ({"w": 1.0}, ["without"]),
    ):
        await _finds(ctx, filters, wanted)


async def _finds(ctx: Context, metadata: dict[str, Any], wanted: Sequence[str]) -> None:
    found = await ctx.store.query_sessions(metadata=metadata)
    if sorted(session.agent_id for session in found) != list(wanted):
        shown = [session.metadata.get(next(iter(metadata)), "none") for session in found]
        ctx.true(False, f"query_sessions(metadata={metadata!a:.100}) finds {len(found)}, of {shown!a:.300}")


# --- numbers ----------------------------------------------------------------------------------------------------------

_ALL_TIMES: Final = sorted({*TIMES, *INTEGERS})
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@check("QRY-2", "QRY-3", "QRY-5", "VAL-5", needs=_Q, under=(_D.NUMBERS,))
async def any_time_is_ordered_and_bounded(ctx: Context) -> None:
    """Sessions and tool calls are ordered and bounded by times as numbers: before 1970, in far years and at the edges
    of 64 bits, given as milliseconds or as a datetime, also from page to page.
    """
    order = list(enumerate(_ALL_TIMES))
    for i, time in ctx.rng.sample(order, len(order)):
        call = samples.tool_call(i, created_at=time)
        await ctx.store.save_turn(f"{i:02}", info=samples.info(f"{i:02}", created_at=time), tool_calls=[call])
    for method in ("query_sessions", "query_tool_calls"):
        query = getattr(ctx.store, method)
        for way in ("asc", "desc"):
            wanted = _ALL_TIMES[:: 1 if way == "asc" else -1]
            ctx.equal([one.created_at for one in await query(order=way)], wanted, f"{method}(order={way!r})")
            found: list[int] = []
            cursor = None
            for _ in range(0, len(_ALL_TIMES), 7):
                page = await query(order=way, limit=7, cursor=cursor)
                found += [one.created_at for one in page]
                cursor = page.next_cursor
            ctx.equal(found, wanted, f"{method}(order={way!r}) in pages of 7")
        for time in in_time(ctx, _ALL_TIMES):
            for given in (time, *_as_datetime(time)):
                after = [one.created_at for one in await query(order="asc", created_after=given)]
                ctx.equal(after, [t for t in _ALL_TIMES if t >= time], f"{method}(created_after={given})")
                before = [one.created_at for one in await query(order="asc", created_before=given)]
                ctx.equal(before, [t for t in _ALL_TIMES if t < time], f"{method}(created_before={given})")


def _as_datetime(time: int) -> Sequence[datetime]:
    """The same time, where a datetime can be it."""
    try:
        return [_EPOCH + timedelta(milliseconds=time)]
    except OverflowError:
        return []


@check("EVT-5", "EVT-3", "EVT-6", "EVT-7", under=(_D.NUMBERS, _D.ORDERS, _D.INSTANCES))
async def any_seq_is_ordered_and_bounded(ctx: Context) -> None:
    """Events are read in the order of seq, and since a given seq, for every seq of 64 bits, negative ones too; the last
    bookmark is the one with the highest seq, whatever came last.
    """
    seqs, other = sorted(INTEGERS), await ctx.another()
    for name, order in (("up", seqs), ("down", seqs[::-1]), ("mixed", ctx.rng.sample(seqs, len(seqs)))):
        await ctx.store.append_events(name, [samples.event(seq, cursor=i) for i, seq in enumerate(order)])
        found = [event.bookmark.seq async for event in other.read_events(name)]
        ctx.equal(found, seqs, f"the seqs of events that were appended in the order {name}")
        last = await other.last_bookmark(name)
        ctx.equal(last and last.seq, seqs[-1], f"the seq of last_bookmark, appended in the order {name}")
        for since in in_time(ctx, seqs):
            found = [event.bookmark.seq async for event in other.read_events(name, since=Bookmark(since, 0))]
            ctx.equal(
                found, [seq for seq in seqs if seq > since], f"the seqs since {since}, appended in the order {name}"
            )
    for seq in (2**53, 2**53 + 2, 2**62, 2**63 - 2, -(2**53) - 2):
        await ctx.store.append_events(f"near {seq}", [samples.event(seq + 1), samples.event(seq)])
        last = await other.last_bookmark(f"near {seq}")
        ctx.equal(last and last.seq, seq + 1, f"the seq of last_bookmark, of {seq + 1} and then {seq}")
    what = "following since -1, in the order of commit"
    wanted = [seq for seq in order if seq > -1]
    events = await first(ctx, other.follow_events("mixed", since=Bookmark(-1, 0)), len(wanted), what)
    ctx.equal([event.bookmark.seq for event in events], wanted, what)


@check("QRY-2", "VAL-5", "MSG-4", "INFO-2", needs=_Q, under=(_D.NUMBERS,))
async def what_the_store_dates_is_bounded_by_any_time(ctx: Context) -> None:
    """Messages and changes of sessions, which the store dates itself, are after every time that has passed and before
    every later time: 0, times before 1970, far years and the edges of 64 bits.
    """
    await ctx.store.save_turn("a", info=samples.info("a"), messages=samples.messages(3))
    passed = [time for time in _ALL_TIMES if time < samples.T0]
    to_come = [time for time in _ALL_TIMES if time > 4 * samples.T0]
    for method, name, count in (("query_sessions", "updated", 1), ("query_messages", "created", 3)):
        for time in in_time(ctx, [*passed, *to_come]):
            for given in (time, *_as_datetime(time)):
                after = len(await getattr(ctx.store, method)(**{f"{name}_after": given}))
                before = len(await getattr(ctx.store, method)(**{f"{name}_before": given}))
                wanted = (count, 0) if time in passed else (0, count)
                ctx.equal((after, before), wanted, f"how many {method} finds with {name}_after and _before={given}")
