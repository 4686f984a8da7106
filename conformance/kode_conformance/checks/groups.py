"""QRY-11, QRY-1, QRY-2: numbers of records by values that they have in common."""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta, timezone
from fractions import Fraction
from random import Random
from typing import Any, Final

from kode_conformance.context import Context
from kode_conformance.dimensions import Dimension, twins
from kode_conformance.harness import finds_any_of
from kode_conformance.histories.answers import matches
from kode_conformance.instruments.pace import in_time, sizes_in_time
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_conformance.values.many import at_once
from kode_core.errors import InvalidArgumentError
from kode_core.model import Message, ToolCallRecord, UnknownBlock
from kode_core.query import MAX_GROUPS, Durations, Group

_D: Final = Dimension
_Q: Final = Capability.QUERYABLE

_BY: Final[Mapping[str, Sequence[str]]] = {
    "sessions": ("template_id", "day"),
    "messages": ("agent_id", "role", "day"),
    "tool_calls": ("agent_id", "tool_name", "state", "is_error", "has_approval", "day"),
}
_DAY: Final = 86_400_000
_AGENTS: Final = 12
_OFFSETS: Final = (0, 0, 60, -330, 1439, -1439)


async def _save(store: Any, i: int) -> None:
    agent = f"a{(i * 5) % _AGENTS:02d}"
    created_at = samples.T0 + (i - 4) * _DAY // 3
    info = samples.info(agent, template_id=f"t{i % 4}", created_at=created_at, metadata={"userId": f"u{i % 3}"})
    messages = [
        Message(("user", "system", "critic")[(i + j) % 3], [UnknownBlock({"type": ("video", "image")[j % 2]})])
        for j in range(i % 4)
    ]
    calls = [
        samples.tool_call(j).replace(
            name=f"n{(i + j) % 3}",
            state=("COMPLETED", "FAILED", "PENDING", "DENIED")[(i + j) % 4],
            is_error=(None, False, True)[(i + j) % 3],
            approval=samples.tool_call().approval.replace(required=(i * j) % 2 == 1),
            created_at=created_at + j * _DAY // 4,
        )
        for j in range(4)
    ]
    await store.save_turn(agent, info=info, messages=messages, tool_calls=calls)


def _value(record: Any, by: str, offset: int) -> Any:
    if by == "day":
        zone = timezone(timedelta(minutes=offset))
        return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=record.created_at)).astimezone(zone).date()
    if by == "tool_name":
        return record.name
    if by == "is_error":
        return record.is_error is True
    return record.approval.required if by == "has_approval" else getattr(record, by)


def _groups(every: Sequence[Any], by: Sequence[str], offset: int = 0) -> list[Group]:
    """The groups of these records."""
    found = Counter(tuple(_value(record, one, offset) for one in by) for record in every)
    shown = (
        ({n: v.isoformat() if n == "day" else v for n, v in zip(by, key, strict=True)}, key) for key in sorted(found)
    )
    return [Group(values=values, count=found[key]) for values, key in shown]


def _filters(kind: str, every: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """Filters of each form, also such as find nothing."""
    middle = every[len(every) // 2].created_at
    yield {}
    yield {"created_after": middle}
    yield {"created_after": middle - _DAY, "created_before": middle + _DAY}
    yield {"agent_id": every[-1].agent_id}
    yield {"agent_id": "none"}
    several: dict[str, dict[str, Any]] = {
        "sessions": {"template_id": ["t1", "t2", "none"], "user_id": ("u0", "u1")},
        "messages": {"role": ["user", "critic"], "content_type": {"video", "image"}, "agent_id": ["a01", "a02"]},
        "tool_calls": {"tool_name": ["n0", "n2"], "state": ("FAILED", "DENIED"), "agent_id": ["a01", "a02"]},
    }
    for name, wanted in several[kind].items():
        yield {name: min(wanted)}
        if finds_any_of():
            yield {name: wanted}
            yield {name: wanted, "created_after": middle}
    if kind == "sessions":
        yield {"metadata": {"userId": "u1"}, "template_id": "t1"}
    if kind == "tool_calls":
        yield {"is_error": True}
        yield {"has_approval": False, "state": "PENDING"}


@check("QRY-11", "QRY-1", needs=_Q, under=(_D.ITEMS, _D.EQUALS, _D.ORDERS, _D.INSTANCES, _D.CHANGES))
async def groups_are_of_what_is_found(ctx: Context) -> None:
    """The groups by each name and by several, in any order of them, have the records that a query finds by the same
    filters, also after changes and deletes, and in another instance; a store with nothing has none.
    """
    other = await ctx.another()
    for kind, names in _BY.items():
        for name in names:
            ctx.equal(await getattr(other, f"group_{kind}")(name), [], f"group_{kind}({name!r}) of an empty store")
    for i in range(_AGENTS):
        await _save(ctx.store, i)
    await ctx.store.save_messages("without info", samples.messages(2))
    for turn in range(2):
        for kind, names in _BY.items():
            every = list(await getattr(other, f"query_{kind}")(order="asc", limit=1000))
            orders = [order for size in (1, 2, len(names)) for order in itertools.permutations(names, size)]
            ctx.rng.shuffle(orders)
            for number, filters in enumerate(in_time(ctx, _filters(kind, every))):
                for by in (*itertools.islice(itertools.cycle(orders), number * 4, number * 4 + 4), names[-1:]):
                    offset = ctx.rng.choice(_OFFSETS) if "day" in by else 0
                    wanted = _groups([record for record in every if matches(kind, record, filters)], by, offset)
                    asked = {**filters, "utc_offset_minutes": offset} if offset else filters
                    given: Any = by[0] if len(by) == 1 and number % 2 else (list, tuple)[number % 2](by)
                    what = f"group_{kind}({given!r}, {', '.join(f'{name}={value!r}' for name, value in asked.items())})"
                    store = (ctx.store, other)[number % 2]
                    ctx.equal(await getattr(store, f"group_{kind}")(given, **asked), wanted, what)
        if turn == 0:
            await ctx.store.delete("a01")
            await ctx.store.append_messages("a02", samples.messages(3))
            await ctx.store.save_messages("a03", [])
            await ctx.store.upsert_tool_call_records("a04", [samples.tool_call(0, name="n9", state="SEALED")])


@check("QRY-11", needs=_Q, under=(_D.TWINS, _D.LENGTHS))
async def groups_tell_names_apart(ctx: Context) -> None:
    """Names that differ in what comparisons overlook, and long ones that differ at their ends, are groups of their own,
    whole and in the order of code points.
    """
    long = "ab" * 700
    names = [*twins(), "a\0b", "\udfff\ud800", "\\0000", "\\#", "'", '"', "%", "_", "x" * 1024, "x" * 1025]
    names += [f"{long}d", "é" * 600, "é" * 601, f"{long}\0"]
    ctx.rng.shuffle(names)
    most = 30 if ctx.settings.tier is Tier.QUICK else len(names)
    names = [*dict.fromkeys([*names[:most], "Ab", "ab", long, f"{long}c", "\ud800", "\0", ""])]
    await at_once(
        (
            ctx.store.save_turn(
                f"{i}",
                info=samples.info(f"{i}", template_id=name),
                messages=[Message(name, [UnknownBlock({"type": "t", "n": i})])] * (1 + i % 2),
                tool_calls=[samples.tool_call(i, name=name, state=name)],
            )
            for i, name in enumerate(names)
        ),
        20,
    )
    for kind, by, most in (
        ("sessions", "template_id", 1),
        ("messages", "role", 2),
        ("tool_calls", "tool_name", 1),
        ("tool_calls", "state", 1),
    ):
        wanted = [(name, 1 + names.index(name) % most) for name in sorted(names)]
        found = [(one.values[by], one.count) for one in await getattr(ctx.store, f"group_{kind}")(by)]
        ctx.equal(found, wanted, f"the groups by {by}")
    for name in names[-6:]:
        groups = await ctx.store.group_tool_calls("tool_name", state=name)
        alone = [Group(values={"tool_name": name}, count=1)]
        ctx.equal(groups, alone, f"the groups with the state {name!a:.80}")


_EDGES: Final[Sequence[tuple[int, int, str]]] = (
    (0, 0, "1970-01-01"),
    (-1, 0, "1969-12-31"),
    (_DAY - 1, 0, "1970-01-01"),
    (_DAY, 0, "1970-01-02"),
    (-_DAY, 0, "1969-12-31"),
    (-_DAY - 1, 0, "1969-12-30"),
    (0, -1, "1969-12-31"),
    (-60_000, 1, "1970-01-01"),
    (-60_001, 1, "1969-12-31"),
    (_DAY - 1, 1439, "1970-01-02"),
    (0, -1439, "1969-12-31"),
    (951_782_400_000, 0, "2000-02-29"),
    (951_868_800_000, 0, "2000-03-01"),
    (951_868_799_999, 0, "2000-02-29"),
    (951_868_800_000, -300, "2000-02-29"),
    (253_402_300_799_999, 0, "9999-12-31"),
    (253_402_300_800_000, 0, "+010000-01-01"),
    (-62_167_219_200_000, 0, "0000-01-01"),
    (-62_167_219_200_001, 0, "-000001-12-31"),
    (2**53 + 1, 0, "+287396-10-12"),
    (2**63 - 1, 0, "+292278994-08-17"),
    (2**63 - 1, 1439, "+292278994-08-18"),
    (-(2**63), 0, "-292275055-05-16"),
    (-(2**63), -1439, "-292275055-05-15"),
)
"""A time, an offset in minutes, and the date."""


@check("QRY-11", needs=_Q, under=(_D.NUMBERS,))
async def days_are_dates_at_the_offset(ctx: Context) -> None:
    """Times before and after the ends of days, before 1970 and as far away as 64 bits reach have the dates of their
    days, at any offset, and are in the order of time.
    """
    times = sorted({time for time, _, _ in _EDGES})
    calls = [samples.tool_call(i, created_at=time) for i, time in enumerate(times)]
    await ctx.store.save_turn(
        "a", info=samples.info("a", created_at=-1), tool_calls=calls, messages=samples.messages(1)
    )
    for time, offset, day in _EDGES:
        asked: dict[str, Any] = {"created_after": time, "utc_offset_minutes": offset}
        asked |= {"created_before": time + 1} if time < 2**63 - 1 else {}
        found = await ctx.store.group_tool_calls("day", **asked)
        ctx.equal(found, [Group(values={"day": day}, count=1)], f"the days of {time} at {offset} minutes")
    found = await ctx.store.group_tool_calls(["day"])
    wanted = Counter(next(day for t, offset, day in (*_EDGES, *_AT_ZERO) if (t, offset) == (time, 0)) for time in times)
    ctx.equal([(one.values["day"], one.count) for one in found], [*wanted.items()], "all days, by time")
    found = await ctx.store.group_sessions("day", utc_offset_minutes=-1)
    ctx.equal(found, [Group(values={"day": "1969-12-31"}, count=1)], "the day of an info")


_AT_ZERO: Final = ((-60_000, 0, "1969-12-31"), (-60_001, 0, "1969-12-31"))

_DURATIONS: Final[Sequence[Sequence[int | float | None]]] = (
    (None, None),
    (0, None),
    (5, 7, None, 1),
    (0.1,) * 10,
    (1e16, 1.0, -1e16, 1.0),
    (2**62, 2**62, 2**62 - 1),
    (2**53 + 1, 0.5, -0.5),
    (1e308, 1e308),
    (5e-324, 5e-324, 1.5),
    (-3, -2.5),
    (2**53 + 1, 0.25, 0.25),
    (2**53 + 1, 2**53 + 1, 0.5),
    (2**53 + 1, 2**53, -1, 0.5, None),
    (-(2**53) - 1, -(2**53) - 1, -0.5),
    (2**62 + 1, -(2**62), 0.1),
    (2**63 - 1, 2**63 - 1, 1e-3, 0.5),
    (2**53 + 1, 1e308),
)


def _any_durations(rng: Random) -> Sequence[int | float]:
    """Whole numbers around a power of two, most of which floats would round, next to fractions."""
    bits = rng.choice((3, 31, 52, 53, 54, 60))
    whole = [rng.choice((1, -1)) * (2**bits + rng.randrange(-3, 4)) for _ in range(rng.randrange(1, 6))]
    return [*whole, *(rng.choice((0.1, 0.25, 0.5, 1.5, -0.5, 0.7 * 2**bits)) for _ in range(rng.randrange(1, 4)))]


@check("QRY-11", needs=_Q, under=(_D.NUMBERS, _D.ITEMS, _D.INSTANCES))
async def durations_are_summed_exactly(ctx: Context) -> None:
    """Each group has the number, the sum and the greatest of the durations of its calls, of one agent or of several;
    a sum of fractions, and of fractions and whole numbers that no float has, is rounded once; a group without durations
    has none.
    """
    other = await ctx.another()
    cases = [*_DURATIONS, *(_any_durations(ctx.rng) for _ in range(12))]
    agents: list[list[ToolCallRecord]] = [[], [], [], []]  # the sums of the last one are beyond all floats
    for i, durations in enumerate(cases):
        for j, one in enumerate(durations):
            number = 3 if 1e308 in durations else j % 3 if i % 2 else 0
            call = samples.tool_call(j, name=f"n{i}", duration_ms=one, audit_trail=[])
            agents[number].append(call.replace(created_at=samples.T0 - _DAY * (number // 3)))
    for number, calls in enumerate(agents):
        ctx.rng.shuffle(calls)
        await ctx.store.save_tool_call_records(f"a{number}", calls)
    many = [samples.tool_call(j, name="x", duration_ms=j, created_at=samples.T0 + _DAY) for j in range(700)]
    await ctx.store.save_tool_call_records("many", many)
    groups = await other.group_tool_calls("tool_name", durations=True)
    found = {one.values["tool_name"]: (one.count, one.durations) for one in groups}
    ctx.equal(len(found), len(cases) + 1, "the number of groups")
    for i, durations in enumerate(cases):
        wanted = len(durations), _of_calls([call for calls in agents for call in calls if call.name == f"n{i}"])
        ctx.equal(found[f"n{i}"], wanted, f"the calls that took {durations}")
        if i in (2, 12):
            groups = await other.group_tool_calls(["state", "day"], tool_name=f"n{i}", durations=True)
            ctx.equal([(one.count, one.durations) for one in groups], [wanted], f"by state and day, {durations}")
    ctx.equal(found["x"], (700, _summed(range(700))), "700 calls")
    wholes = {f"a{number}": _of_calls(calls) for number, calls in enumerate(agents[:3])} | {"many": _of_calls(many)}
    groups = await ctx.store.group_tool_calls("agent_id", durations=True, created_after=samples.T0)
    ctx.equal({one.values["agent_id"]: one.durations for one in groups}, wholes, "all durations by agent")
    without = [one.durations for one in await ctx.store.group_tool_calls("agent_id")]
    ctx.equal(without, [None] * (len(agents) + 1), "durations that were not asked for")


def _of_calls(calls: Sequence[ToolCallRecord]) -> Durations | None:
    return _summed([call.duration_ms for call in calls if call.duration_ms is not None])


def _summed(known: Sequence[int | float]) -> Durations | None:
    if not known:
        return None
    total = sum(map(Fraction, known), Fraction(0))
    is_whole = all(type(one) is int for one in known) or abs(total) > Fraction(sys.float_info.max)
    return Durations(count=len(known), total_ms=int(total) if is_whole else float(total), max_ms=max(known))


_NO_NAMES: Final[Sequence[Any]] = (
    *((), [], None, "", "nothing", ["day", "day"], ["day", 1], [["day"]], {"day"}, 5, b"day"),
    *("DAY", "created_at", "day ", iter(["day"]), {"day": 1}, "id", "content_type"),
)
_NO_OFFSETS: Final[Sequence[Any]] = (1440, -1440, 2**70, 60.0, True, "60", None, [])
_WRONG: Final[Sequence[Mapping[str, Any]]] = (
    *({"by": one} for one in _NO_NAMES),
    *({"by": "day", "utc_offset_minutes": one} for one in _NO_OFFSETS),
    {"by": "template_id", "utc_offset_minutes": 60},
    {"by": "role", "utc_offset_minutes": 60},
    {"by": "tool_name", "utc_offset_minutes": 60},
    *({"by": "day", **one} for one in ({"limit": 5}, {"offset": 0}, {"cursor": None}, {"order": "asc"})),
    *({"by": "day", **one} for one in ({"agent_id": None}, {"unknown": "x"}, {"created_after": "x"}, {"agent_id": 5})),
)


@check("QRY-11", "QRY-1", needs=_Q, under=(_D.ITEMS,))
async def groupings_are_checked(ctx: Context) -> None:
    """A grouping without a name, by an unknown name, by one name twice, with an offset of a day or without a day, with
    a wrong filter or with a page is refused.
    """
    await ctx.store.save_turn(
        "a", info=samples.info("a"), messages=samples.messages(1), tool_calls=[samples.tool_call()]
    )
    for kind in _BY:
        for given in _WRONG:
            await ctx.raises(InvalidArgumentError, getattr(ctx.store, f"group_{kind}")(**given), f"{kind}: {given}")
    for kind, name in (("sessions", "role"), ("sessions", "agent_id"), ("messages", "state"), ("tool_calls", "role")):
        await ctx.raises(InvalidArgumentError, getattr(ctx.store, f"group_{kind}")(name), f"{kind} by {name}")
    bads: tuple[Any, ...] = (1, "yes", None)
    for bad in bads:
        await ctx.raises(InvalidArgumentError, ctx.store.group_tool_calls("day", durations=bad), f"durations={bad!r}")
    for kind in _BY:
        found = await getattr(ctx.store, f"group_{kind}")(["day"], utc_offset_minutes=-1439)
        ctx.equal([one.count for one in found], [1], f"the groups of one of the {kind}")


@check("QRY-11", needs=_Q, tier=Tier.STANDARD, under=(_D.ITEMS,))
async def more_than_ten_thousand_groups_are_refused(ctx: Context) -> None:
    """10,000 groups are given, and one more is refused, however it is asked for."""
    for number in sizes_in_time(ctx, (600, MAX_GROUPS + 1)):
        calls = [samples.tool_call(i, name=f"n{i:05}", created_at=samples.T0 + i) for i in range(number)]
        await ctx.store.save_tool_call_records("a", calls)
        asked: tuple[Any, ...] = ("tool_name", ["day", "tool_name"])
        for by in asked:
            found = await ctx.store.group_tool_calls(by, created_after=samples.T0 + 1)
            names = [one.values["tool_name"] for one in found]
            ctx.equal(names, [f"n{i:05}" for i in range(1, number)], f"the groups of {number - 1} names")
            ctx.equal({one.count for one in found}, {1}, "the numbers of calls")
            if number > MAX_GROUPS:
                for is_timed in (False, True):
                    refused = ctx.store.group_tool_calls(by, durations=is_timed)
                    what = f"{number} groups by {by}, durations={is_timed}"
                    await ctx.raises(InvalidArgumentError, refused, what)
