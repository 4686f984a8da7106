"""QRY-1, QRY-2, QRY-5, QRY-10, LIFE-5: filters that list values, and counts of what filters match."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, get_type_hints

from kode_conformance.context import Context
from kode_conformance.dimensions import Dimension, twins
from kode_conformance.histories.answers import content_types, matches
from kode_conformance.instruments.pace import in_time
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_conformance.values.many import at_once, same
from kode_core.errors import InvalidArgumentError
from kode_core.model import Message, TextBlock, UnknownBlock
from kode_core.query import MAX_VALUES, AnyOf, MessageConditions, SessionConditions, ToolCallConditions

_D: Final = Dimension
_Q: Final = Capability.QUERYABLE
_L: Final = Capability.QUERYABLE | Capability.ANY_OF

_HINTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "sessions": get_type_hints(SessionConditions),
    "messages": get_type_hints(MessageConditions),
    "tool_calls": get_type_hints(ToolCallConditions),
}
LISTED: Final[Mapping[str, Sequence[str]]] = {
    kind: [name for name, hint in hints.items() if hint == AnyOf] for kind, hints in _HINTS.items()
}
"""The filters that take lists, as their types say, by the kind of record."""

_AGENTS: Final = 16
_NONE: Final = ("none", "None", "")
_FORMS: Final[Sequence[Callable[[Sequence[str]], Any]]] = (list, tuple, set, frozenset, lambda v: [*v, *reversed(v)])
"""The ways to write one list of values; the last has each value twice."""


async def _save(store: Any, i: int) -> None:
    agent = f"a{(i * 5) % _AGENTS:02d}"
    info = samples.info(
        agent, template_id=f"t{i % 4}", created_at=samples.T0 + i // 3, metadata={"userId": f"u{i % 5}", "k": i % 2}
    )
    types = ("video", "image", "hologram")
    messages = [
        Message(
            ("user", "system", "critic")[(i + j) % 3],
            [
                TextBlock(("a Word of it", "none")[i // 2 % 2]),
                *(UnknownBlock({"type": one}) for one in types[j : i % 4]),
            ],
            metadata={"k": (i + j) // 4 % 2},
        )
        for j in range(2)
    ]
    calls = [
        samples.tool_call(j).replace(
            name=f"n{(i + j) % 3}",
            state=("COMPLETED", "FAILED", "PENDING", "DENIED")[(i + j) % 4],
            is_error=i % 2 == 0,
            created_at=samples.T0 + i // 4,
        )
        for j in range(3)
    ]
    await store.save_turn(agent, info=info, messages=messages, tool_calls=calls)


async def _everything(store: Any, kind: str) -> list[Any]:
    return list(await getattr(store, f"query_{kind}")(order="asc", limit=1000))


def _values(kind: str, name: str, every: Sequence[Any]) -> list[str]:
    """The values that records have, as the filter names them."""
    known: Mapping[str, Callable[[Any], Sequence[str]]] = {
        "user_id": lambda record: [record.metadata["userId"]],
        "content_type": lambda record: sorted(content_types(record)),
        "tool_name": lambda record: [record.name],
    }
    if name in known:
        return sorted({value for record in every for value in known[name](record)})
    return sorted({getattr(record, name) for record in every})


def _lists(values: Sequence[str], turn: int) -> Iterator[Sequence[str]]:
    """Lists of some of the values and of others that no record has: none, one, several, all, and as many as can be."""
    yield values[turn % len(values) :][:2] or values[:2]
    yield (values[turn % len(values)], *_NONE)
    yield [*values, *(f"no {i}" for i in range(MAX_VALUES - len(values)))]
    yield values
    yield _NONE[:2]
    yield values[:1]
    yield ()


def _asked(kind: str, every: Sequence[Any], turn: int) -> Iterator[dict[str, Any]]:
    """Each filter with each list, and pairs of filters of which one or both have one; of messages, also three."""
    values = {name: _values(kind, name, every) for name in LISTED[kind]}
    for name, known in values.items():
        for number, wanted in enumerate(_lists(known, turn)):
            # "" is no agent's id
            yield {name: _FORMS[(turn + number) % len(_FORMS)]([one for one in wanted if one or name != "agent_id"])}
    middle = every[len(every) // 2].created_at
    last = every[len(every) * 3 // 4].created_at
    more: dict[str, Any] = {"created_after": middle, "metadata": {"k": 1}, "is_error": True}
    more |= {"contains": "WORD", "created_before": last}
    for one, two in itertools.combinations(values, 2):
        yield {one: values[one][turn % 2 : 4], two: values[two][:2]}
        yield {one: values[one][-3:], two: values[two][turn % len(values[two])]}
    others = {other: value for other, value in more.items() if other in _HINTS[kind]}
    for name, (other, value) in itertools.product(values, others.items()):
        yield {name: values[name][turn % 2 : 3], other: value}
    if kind == "messages":
        for name, (one, two) in itertools.product(values, itertools.combinations(others, 2)):
            yield {name: values[name][:2], one: others[one], two: others[two]}
        for one, two in itertools.combinations(values, 2):
            yield {one: values[one][:3], two: values[two][:2], "contains": more["contains"]}


@check("QRY-2", "QRY-3", "QRY-5", "QRY-6", needs=_L, under=(_D.ORDERS, _D.ITEMS, _D.EQUALS, _D.INSTANCES))
async def a_list_finds_what_each_value_finds(ctx: Context) -> None:
    """A filter with a list finds each record that has one of the values once and in the order of all, alone and with
    other filters, whole, in parts, from cursor to cursor and by the iterator; an empty list finds nothing.
    """
    other = await ctx.another()
    for i in range(_AGENTS):
        await _save(ctx.store, i)
    for kind in _HINTS:
        every = await _everything(other, kind)
        for number, filters in enumerate(in_time(ctx, _asked(kind, every, ctx.rng.randrange(4)))):
            order = ("asc", "desc")[number % 2]
            wanted = [record for record in every if matches(kind, record, filters)][:: 1 if order == "asc" else -1]
            store, shown = (ctx.store, other)[number % 2], ", ".join(f"{k}={v!r:.80}" for k, v in filters.items())
            query, what = getattr(store, f"query_{kind}"), f"query_{kind}({shown}, order={order!r}"
            same(ctx, list(await query(**filters, order=order, limit=1000)), wanted, f"{what})")
            part = await query(**filters, order=order, limit=3, offset=2)
            same(ctx, list(part), wanted[2:5], f"{what}, limit=3, offset=2)")
            await _see_cursors(ctx, query, {**filters, "order": order}, wanted, f"{what}) in pages of 2")
            if number % 3 == 0:
                streamed = [record async for record in getattr(store, f"iter_{kind}")(**filters, order=order)]
                same(ctx, streamed, wanted, f"iter_{kind}({shown}, order={order!r})")


async def _see_cursors(
    ctx: Context, query: Any, asked: dict[str, Any], wanted: Sequence[Any], what: str, *, limit: int = 2
) -> None:
    """Follow the cursors, each time with the values in another order, and some of them twice."""
    found: list[Any] = []
    cursor: str | None = None
    while True:
        again = {name: _shuffled(ctx, value) for name, value in asked.items()}
        page = await query(**again, limit=limit, cursor=cursor)
        found += page
        cursor = page.next_cursor
        if cursor is None or len(found) > len(wanted):
            break
    same(ctx, found, wanted, what)


def _shuffled(ctx: Context, value: Any) -> Any:
    if not isinstance(value, (list, tuple, set, frozenset)):
        return value
    values = sorted(value)
    return ctx.rng.sample([*values, *values[:1]], len(values) + len(values[:1]))


_SPREAD: Final = MAX_VALUES + 7
_LONG: Final = (100, 26, 31, 51)


@check("QRY-3", "QRY-2", "QRY-4", "QRY-5", "QRY-10", needs=_L, under=(_D.ITEMS, _D.ORDERS, _D.EQUALS, _D.INSTANCES))
async def long_lists_keep_the_order_of_all(ctx: Context) -> None:
    """A filter with a list of up to a hundred values, each of which some record has, gives these records in the order
    of all, by each sort key, whole, from an offset on and from cursor to cursor, and counts them.
    """
    other, places = await ctx.another(), [*range(_SPREAD)]
    ctx.rng.shuffle(places)
    for i, place in enumerate(places):
        name, at = f"v{place:03}", samples.T0 + i // 2
        info = samples.info(name, template_id=name, created_at=at, metadata={"userId": name})
        messages = [Message(name, [UnknownBlock({"type": name})])] * (1 + i % 3)
        calls = [samples.tool_call(i, name=name, state=name, created_at=at, audit_trail=[])]
        await ctx.store.save_turn(name, info=info, messages=messages, tool_calls=calls)
    number, sizes = 0, _LONG[:1] if ctx.settings.tier is Tier.QUICK else _LONG
    for kind, names in LISTED.items():
        for name, size in in_time(ctx, itertools.product(names, sizes)):
            store, order, number = (ctx.store, other)[number % 2], ("asc", "desc")[number // 2 % 2], number + 1
            sort = {"sort_by": ("created_at", "updated_at", "message_count")[number % 3]} if kind == "sessions" else {}
            query, values = getattr(store, f"query_{kind}"), sorted(ctx.rng.sample([f"v{p:03}" for p in places], size))
            every = await query(order=order, limit=1000, **sort)
            wanted = [one for one in every if matches(kind, one, {name: values})]
            what = f"query_{kind}({name}={size} values, order={order!r}, {sort}"
            ctx.true(
                len(wanted) >= size, f"each of {size} values of {name} must find something, got {len(wanted)} records"
            )
            asked = {name: values, "order": order, **sort}
            same(ctx, list(await query(**asked, limit=1000)), wanted, f"{what})")
            part = await query(**asked, limit=9, offset=size - 15)
            same(ctx, list(part), wanted[size - 15 : size - 6], f"{what}, limit=9, offset={size - 15})")
            await _see_cursors(ctx, query, asked, wanted, f"{what}) in pages of 23", limit=23)
            found = await getattr(store, f"count_{kind}")(**{name: values})
            ctx.equal(found, len(wanted), f"count_{kind}({name}={size} values)")


@check("QRY-2", "LIFE-5", needs=_L, under=(_D.TWINS, _D.ITEMS))
async def lists_tell_names_apart(ctx: Context) -> None:
    """A list finds its own names alone, also next to names that differ in what comparisons overlook."""
    names = [*dict.fromkeys(twins())]
    ctx.rng.shuffle(names)
    await at_once(
        (
            ctx.store.save_turn(
                f"{i}",
                info=samples.info(f"{i}", template_id=name, metadata={"userId": name}),
                messages=[Message(name, [UnknownBlock({"type": name, "n": i})])],
                tool_calls=[samples.tool_call(i, name=name, state=name)],
            )
            for i, name in enumerate(names)
        ),
        20,
    )
    step = 3 if ctx.settings.tier is Tier.QUICK else 1
    for start in in_time(ctx, range(0, len(names), 7 * step)):
        some = names[start : start + 7]
        wanted = sorted(f"{i}" for i in range(start, start + len(some)))
        for kind, filters in LISTED.items():
            for name in filters:
                if name == "agent_id":
                    continue
                found = await getattr(ctx.store, f"query_{kind}")(**{name: some}, limit=1000)
                ctx.equal(sorted(one.agent_id for one in found), wanted, f"who is found by {name}={some!a:.200}")


_BAD: Final[Sequence[Any]] = (
    *(["a", 1], ["a", None], [b"a"], [["a"]], ("a", True), {"a", 1.5}, frozenset({1}), [None]),
    *({"a": 1}, iter(["a"]), b"a", bytearray(b"a"), range(3), 5, 1.5, object()),
)


@check("QRY-1", "QRY-2", "LIFE-5", needs=_L, under=(_D.ITEMS, _D.LENGTHS))
async def lists_are_checked(ctx: Context) -> None:
    """A list with a value of another type, another collection, or more than 100 different values raises
    InvalidArgumentError, by queries, counts, iterators and delete_many; one of 100, however often repeated, is taken.
    So does each wrong argument next to an empty list, by which nothing can be found, before it and behind it.
    """
    await ctx.store.save_info("a", samples.info("a"))
    many = [f"x{i}" for i in range(MAX_VALUES)]
    for kind, name in ((kind, name) for kind, names in LISTED.items() for name in names):
        calls = [getattr(ctx.store, f"query_{kind}"), getattr(ctx.store, f"count_{kind}")]
        calls += [ctx.store.delete_many] if kind == "sessions" else []
        for call in calls:
            for bad in (*_BAD, [*many, "y"], {*many, "y"}):
                await ctx.raises(InvalidArgumentError, call(**{name: bad}), f"{call.__name__}({name}={bad!r:.60})")
            ctx.true(not await call(**{name: many * 2}), f"{call.__name__} takes {MAX_VALUES} values, each twice")
        refused = anext(getattr(ctx.store, f"iter_{kind}")(**{name: [*many, "y"]}))
        await ctx.raises(InvalidArgumentError, refused, f"iter_{kind}({name}=) of {MAX_VALUES + 1} values")
        await _see_empty(ctx, kind, name)
    await ctx.raises(InvalidArgumentError, ctx.store.query_sessions(agent_id=["a", ""]), "a list with no agent's id")
    ctx.true(await ctx.store.exists("a"), "delete_many that is refused deletes nothing")


async def _see_empty(ctx: Context, kind: str, name: str) -> None:
    """Whatever is wrong next to an empty list of this filter is refused, by every method that takes the filter."""
    query, count, iterate, group = (
        getattr(ctx.store, f"{verb}_{kind}") for verb in ("query", "count", "iter", "group")
    )
    by = _GROUPED[kind][0]
    calls: dict[str, Callable[..., Any]] = {
        f"query_{kind}": query,
        f"count_{kind}": count,
        f"iter_{kind}": lambda **given: anext(iterate(**given)),
        f"group_{kind}": lambda **given: group(by, **given),
    }
    calls |= {"delete_many": ctx.store.delete_many} if kind == "sessions" else {}
    wrong: list[dict[str, Any]] = [{other: bad} for other in LISTED[kind] for bad in (5, None, ["a", 1])]
    wrong += [{"unknown": []}, {"contians": "x"}, {"created_after": "x"}, {"created_before": None}]
    wrong += [{"metadata": []}, {"contains": ""}, {"is_error": "true"}, {"agent_id": ""}]
    for call in calls:
        for bad in wrong:
            if name not in bad:
                for given in ({name: [], **bad}, {**bad, name: ()}):
                    await ctx.raises(InvalidArgumentError, calls[call](**given), f"{call}({given})")
    for given in ({"limit": -1}, {"offset": -1}, {"order": "up"}, {"cursor": "x"}, {"sort_by": "x"}):
        await ctx.raises(InvalidArgumentError, query(**{name: []}, **given), f"query_{kind}({name}=[], {given})")
        await ctx.raises(InvalidArgumentError, count(**{name: []}, **given), f"count_{kind}({name}=[], {given})")
    await ctx.raises(InvalidArgumentError, group("unknown", **{name: []}), f"group_{kind}('unknown', {name}=[])")


@check("LIFE-5", "QRY-2", needs=_L | Capability.EXTENDED, under=(_D.ITEMS, _D.INSTANCES))
async def delete_many_takes_lists(ctx: Context) -> None:
    """delete_many deletes the sessions that have one of the values and no other; by an empty list it deletes none."""
    for i in range(12):
        await ctx.store.save_info(
            f"a{i:02}", samples.info(f"a{i:02}", template_id=f"t{i % 4}", metadata={"userId": f"u{i % 3}"})
        )
    left = {f"a{i:02}": (f"t{i % 4}", f"u{i % 3}") for i in range(12)}
    other = await ctx.another()
    for filters, is_found in (
        ({"template_id": []}, lambda *_: False),
        ({"agent_id": ()}, lambda *_: False),
        ({"user_id": set(), "template_id": "t1"}, lambda *_: False),
        ({"agent_id": ["a00", "a01", "none"]}, lambda one, *_: one in ("a00", "a01")),
        ({"template_id": ("t1", "t2"), "user_id": ["u0", "u1"]}, lambda _, t, u: t in ("t1", "t2") and u != "u2"),
        ({"user_id": frozenset({"u2", "none"})}, lambda _, __, u: u == "u2"),
    ):
        gone = [one for one, (template, user) in left.items() if is_found(one, template, user)]
        ctx.equal(await other.delete_many(**filters), len(gone), f"how many were deleted by {filters}")
        for one in gone:
            del left[one]
        ctx.equal(await ctx.store.list(), sorted(left), f"who is left after delete_many({filters})")


# --- counts -----------------------------------------------------------------------------------------------------------


def _counted(kind: str, every: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """Nothing, each filter, and each two."""
    middle, last = every[len(every) // 2], every[-1]
    known: dict[str, Any] = {name: _values(kind, name, every)[-1] for name in LISTED[kind]}
    known |= {"created_after": middle.created_at, "created_before": last.created_at, "metadata": {"k": 1}}
    known |= {"updated_after": middle.created_at, "updated_before": 0, "is_error": True, "has_approval": False}
    for size in (0, 1, 2):
        for names in itertools.combinations([name for name in _HINTS[kind] if name in known], size):
            yield {name: known[name] for name in names}


@check("QRY-10", "QRY-1", needs=_Q, under=(_D.ITEMS, _D.EQUALS, _D.INSTANCES, _D.CHANGES))
async def counts_are_of_what_is_found(ctx: Context) -> None:
    """A count by each filter and by each two is the number of the records that a query finds by them, also after
    changes and deletes, and in another instance; a store with nothing counts 0.
    """
    other = await ctx.another()
    for kind in _HINTS:
        ctx.equal(await getattr(other, f"count_{kind}")(), 0, f"count_{kind} of an empty store")
    for i in range(_AGENTS):
        await _save(ctx.store, i)
    await ctx.store.save_messages("without info", samples.messages(2))
    for turn in range(2):
        for kind in _HINTS:
            every = await _everything(other, kind)
            for number, filters in enumerate(in_time(ctx, _counted(kind, every))):
                store, wanted = (ctx.store, other)[number % 2], sum(matches(kind, one, filters) for one in every)
                what = f"count_{kind}({', '.join(f'{name}={value!r}' for name, value in filters.items())})"
                ctx.equal(await getattr(store, f"count_{kind}")(**filters), wanted, what)
        if turn == 0:
            await ctx.store.delete("a01")
            await ctx.store.delete_many(agent_id="a05")
            await ctx.store.delete_many(template_id="t2", user_id="u1")
            await ctx.store.append_messages("a02", samples.messages(3))
            await ctx.store.save_messages("a03", [])
            await ctx.store.upsert_tool_call_records("a04", [samples.tool_call(0, name="n9", state="SEALED")])


@check("QRY-10", "QRY-2", needs=_L, under=(_D.ITEMS, _D.EQUALS))
async def counts_by_lists(ctx: Context) -> None:
    """A count by lists, with whatever other filters, is the number of the records that a query finds by them, and so is
    the sum of its groups: one with two of the values counts once, and an empty list counts 0.
    """
    for i in range(_AGENTS):
        await _save(ctx.store, i)
    for kind in _HINTS:
        every = await _everything(ctx.store, kind)
        for filters in in_time(ctx, _asked(kind, every, ctx.rng.randrange(4))):
            wanted = sum(matches(kind, one, filters) for one in every)
            shown = ", ".join(f"{name}={value!r:.80}" for name, value in filters.items())
            ctx.equal(await getattr(ctx.store, f"count_{kind}")(**filters), wanted, f"count_{kind}({shown})")
            by, attribute = _GROUPED[kind]
            groups = await getattr(ctx.store, f"group_{kind}")(by, **filters)
            found = collections.Counter(getattr(one, attribute) for one in every if matches(kind, one, filters))
            counted = {group.values[by]: group.count for group in groups}
            ctx.equal(dict(sorted(counted.items())), dict(sorted(found.items())), f"group_{kind}({by!r}, {shown})")


_GROUPED: Final = {
    "sessions": ("template_id", "template_id"),
    "messages": ("role", "role"),
    "tool_calls": ("tool_name", "name"),
}
"""By the kind of record, what its groups are made by, and the attribute that has it."""


@check("QRY-10", "QRY-1", needs=_Q, under=(_D.ITEMS,))
async def counts_go_beyond_a_page(ctx: Context) -> None:
    """A count has no limit, counts records of one time, and refuses what chooses a page, an order or a wrong filter."""
    await ctx.store.save_messages("m", samples.messages(1203))
    await ctx.store.save_tool_call_records("m", [samples.tool_call(i, created_at=samples.T0) for i in range(210)])
    await at_once((ctx.store.save_info(f"{i}", samples.info(f"{i}", created_at=samples.T0)) for i in range(130)), 20)
    for kind, wanted in (("sessions", 130), ("messages", 1203), ("tool_calls", 210)):
        count = getattr(ctx.store, f"count_{kind}")
        ctx.equal(await count(), wanted, f"count_{kind}()")
        for bad in (
            *({"limit": 5}, {"offset": 0}, {"cursor": None}, {"order": "asc"}, {"sort_by": "created_at"}),
            *({"agent_id": None}, {"unknown": "x"}, {"created_after": "x"}, {"agent_id": 5}),
        ):
            await ctx.raises(InvalidArgumentError, count(**bad), f"count_{kind}({bad})")
