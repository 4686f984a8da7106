"""LIFE-2, ID-2, EVT-5, QRY-4: every text and every number means itself as an argument, alone and with others."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, get_type_hints

from kode_conformance.calls.ways import brief, first
from kode_conformance.checks.lifecycle import fill
from kode_conformance.context import Context
from kode_conformance.dimensions import INTEGERS, LOOKALIKES, Dimension, twins
from kode_conformance.histories.answers import PAGING, matches
from kode_conformance.instruments.logs import Asked, Log
from kode_conformance.instruments.pace import in_time
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_conformance.values.many import at_once, same
from kode_core.model import Message, TextBlock, UnknownBlock
from kode_core.protocols import ExtendedStore
from kode_core.query import MessageFilter, SessionFilter, ToolCallFilter

_D: Final = Dimension
_Q: Final = Capability.QUERYABLE


def _is_legal(agent_id: str) -> bool:
    """ID-1."""
    sound = "\0" not in agent_id and not any("\ud800" <= c <= "\udfff" for c in agent_id)
    return sound and 0 < len(agent_id.encode("utf-8", "replace")) <= 256


_TEXTS: Final = [text for text in LOOKALIKES if _is_legal(text)]
_SPECIAL: Final = ("\ue000", "\ue000a", "\uffffa", "\U0010ffffa", "😀a", "~a", "\x7fa", "x" * 256, "é" * 128)


# --- texts ------------------------------------------------------------------------------------------------------------


@check("LIFE-2", under=(_D.LOOKALIKES, _D.LENGTHS, _D.INSTANCES))
async def every_prefix_means_itself(ctx: Context) -> None:
    """list gives for any prefix, a pattern, a path, an escape, a whole id, one character more than it, or the first of
    it, the ids that begin with just these characters, by code point, and for one longer than any id nothing.
    """
    stores, ids = (ctx.store, await ctx.another()), sorted({*_TEXTS, *_SPECIAL})
    await at_once((ctx.store.save_info(one, samples.info(one)) for one in ids), 20)
    prefixes = [*ids, *(one[:1] for one in ids), *(one[:2] for one in ids), *(f"{one}x" for one in ids[::7])]
    prefixes += [
        "",
        "x" * 257,
        "x" * 5000,
        "é" * 129,
        "%%",
        "__",
        "**",
        "[a-z]",
        "\\%",
        "\\_",
        "a\\",
        "?",
        "\U0010ffff",
    ]
    for number, prefix in enumerate(in_time(ctx, dict.fromkeys(prefixes))):
        wanted = [one for one in ids if one.startswith(prefix)]
        found = list(await stores[number % 2].list(prefix))
        more, less = [one for one in found if one not in wanted], [one for one in wanted if one not in found]
        ctx.true(not more, f"list({brief(prefix)}) gives {[*map(brief, more[:5])]}, which do not begin with it")
        ctx.true(not less, f"list({brief(prefix)}) does not give {[*map(brief, less[:5])]}")
        same(ctx, found, wanted, f"list({brief(prefix)})")


@check("ID-2", "INFO-3", "ID-4", "SNAP-1", under=(_D.LOOKALIKES, _D.TWINS))
async def no_text_finds_another_name(ctx: Context) -> None:
    """Whatever text is given as the id of an agent or a snapshot, loads, counts and queries find nothing unless it is
    exactly the id of one, and leave nothing behind.
    """
    names = ("Ab", "Ab-c", "Zz/9")
    for name in names:
        await fill(ctx.store, name)
        await ctx.store.save_snapshot("Ab", samples.snapshot(name))
    texts = [
        text for text in dict.fromkeys([*_TEXTS, *twins(), "A", "Ab-", "Ab-c ", "Z", "z" * 256]) if _is_legal(text)
    ]
    always, *others = reads = [*_reads(ctx.store, queries="QUERYABLE" not in ctx.harness.lacks).items()]
    turn = 3 if ctx.settings.tier is Tier.QUICK else len(others)
    for number, text in enumerate(in_time(ctx, [text for text in texts if text not in names])):
        for name, read in (always, *(others[(number * 3 + i) % len(others)] for i in range(turn))):
            found = await read(text)
            ctx.true(not found, f"{name} with {text!a} gives {found!a:.200}, where there are only {names}")
    ctx.equal(sorted(await ctx.store.list()), sorted(names), "the agents after all of these were asked for")
    for name in names:
        found = [await read(name) for _, read in reads]
        empty = [read for (read, _), one in zip(reads, found, strict=True) if not one]
        ctx.equal(empty, [], f"the reads that do not find {name!a}")


def _reads(store: Any, *, queries: bool) -> Mapping[str, Any]:
    """Every read, by its name, as a function of an agent's or a snapshot's id."""

    async def events(name: str) -> Any:
        return [event async for event in store.read_events(name)]

    async def counted(name: str) -> Any:
        stats = await store.aggregate_stats(name)
        return stats.total_messages + stats.total_tool_calls + stats.total_snapshots

    of_agent = ("exists", "load_info", "load_messages", "load_tool_call_records", "load_todos", "load_media_cache")
    more = ("load_history_windows", "load_compression_records", "load_recovered_files", "list_snapshots")
    reads: dict[str, Any] = {"load_snapshot('Ab', …)": lambda name: store.load_snapshot("Ab", name)}
    reads |= {method: getattr(store, method) for method in (*of_agent, *more, "last_bookmark")}
    reads["read_events"] = events
    if queries:
        reads["aggregate_stats"] = counted
        for kind in ("sessions", "messages", "tool_calls"):
            reads[f"query_{kind}(agent_id=)"] = lambda name, kind=kind: getattr(store, f"query_{kind}")(agent_id=name)
    return reads


# --- numbers ----------------------------------------------------------------------------------------------------------


@check("EVT-5", "EVT-7", under=(_D.NUMBERS, _D.ORDERS, _D.INSTANCES))
async def events_from_every_number_on(ctx: Context) -> None:
    """Reading and following begin exactly at the offset or seq that is given, together and with a channel: negative, 0,
    the number of an event, one less and one more, and the edges of 32, 53 and 63 bits.
    """
    other, log = await ctx.another(), Log()
    seqs = [*INTEGERS[::2], 5, 5, 2**63 - 2]
    entries = [samples.event(seq, ("progress", "control")[i % 2], cursor=i) for i, seq in enumerate(seqs)]
    await log.append(ctx, ctx.store, entries)
    start, middle, last = log.offsets[0], log.offsets[len(entries) // 2], log.last
    offsets = (None, -(2**63), -1, 0, start - 1, start, middle - 1, middle, last - 1, last, last + 1, 2**62, 2**63 - 1)
    sinces = (None, -(2**63), -1, 0, 5, 2**31, 2**53, 2**53 + 1, 2**63 - 3, 2**63 - 1)
    every = [Asked(s, o, c) for s, o, c in itertools.product(sinces, offsets, (None, "control"))]
    step = 2 if ctx.settings.tier is Tier.QUICK else 1
    for number, asked in enumerate(in_time(ctx, every[ctx.rng.randrange(step) :: step])):
        await log.see(ctx, (ctx.store, other)[number % 2], asked)
        wanted = log.part(asked)
        if asked.after_offset is not None and wanted and number % (4 * step) == 0:
            how = f"follow_events({asked})"
            stream = other.follow_events("a", **asked.arguments())
            log.compare(ctx, await first(ctx, stream, len(wanted), how), wanted, how)


# --- all together -----------------------------------------------------------------------------------------------------

_HINTS: Final[Mapping[str, Any]] = {"sessions": SessionFilter, "messages": MessageFilter, "tool_calls": ToolCallFilter}
_SORTS: Final = ("created_at", "updated_at", "message_count")
_GROUPS: Final = {"sessions": "template_id", "messages": "role", "tool_calls": "state"}
_AGENTS: Final = 15


async def _save(store: ExtendedStore, i: int) -> None:
    agent = f"a{(i * 4) % _AGENTS:02d}"
    info = samples.info(
        agent,
        template_id=f"t{i % 2}",
        created_at=samples.T0 + i // 3,
        metadata={"userId": f"u{i % 3}", "k": [i % 2], "n": i % 4},
    )
    messages = [
        Message(
            ("user", "tool")[(i + j) % 2],
            [TextBlock(f"Ä{j}"), UnknownBlock({"type": f"x{j}"})],
            metadata={"k": [j % 2], "n": i % 4},
        )
        for j in range(1 + i % 3)
    ]
    make = (samples.tool_call, samples.approved_call)
    calls = [
        make[(i + j) % 2](j).replace(
            name=f"n{j % 2}",
            state=("FAILED", "SEALED")[i % 2],
            is_error=(i + j) % 3 == 0,
            created_at=samples.T0 + i // 4,
        )
        for j in range(2)
    ]
    await store.save_turn(agent, info=info, messages=messages, tool_calls=calls)


def _filters(kind: str, every: Sequence[Any]) -> dict[str, Any]:
    """A value for each filter of a kind, which some of the records have."""
    middle = every[len(every) // 2]
    known = {
        "agent_id": middle.agent_id,
        "template_id": "t1",
        "user_id": "u1",
        "metadata": {"k": [0], "n": 2},
        "role": "tool",
        "content_type": "x1",
        "contains": "ä1",
        "tool_name": "n1",
        "state": "SEALED",
        "is_error": False,
        "has_approval": True,
        "created_after": middle.created_at,
        "created_before": max(record.created_at for record in every),
        "updated_after": getattr(middle, "updated_at", 0),
        "updated_before": max(getattr(record, "updated_at", 0) for record in every),
    }
    return {name: known[name] for name in get_type_hints(_HINTS[kind]) if name not in PAGING}


def _asked(ctx: Context, kind: str, every: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """Nothing, each filter, each two of them, and each three; in quick runs some threes."""
    known = _filters(kind, every)
    for size in (0, 1, 2, 3):
        step = 4 if size == 3 and ctx.settings.tier is Tier.QUICK else 1
        for names in itertools.islice(itertools.combinations(known, size), ctx.rng.randrange(step), None, step):
            yield {name: known[name] for name in names}


@check(
    *("QRY-5", "QRY-4", "QRY-1", "QRY-3", "QRY-6", "QRY-10", "QRY-11"),
    needs=_Q,
    under=(_D.ORDERS, _D.EQUALS, _D.ITEMS, _D.INSTANCES),
)
async def filters_pages_and_orders_together(ctx: Context) -> None:
    """Each filter, and each two or three of them, gives with every order, with limits and offsets, from cursor to
    cursor and by the iterator just the part of the whole, and in its order, that they say; so do counts and groups.
    """
    other = await ctx.another()
    for i in range(_AGENTS):
        await _save(ctx.store, i)
    for kind in _HINTS:
        sorts = [{"sort_by": key} for key in _SORTS] if kind == "sessions" else [dict[str, str]()]
        wholes = [list(await getattr(other, f"query_{kind}")(order="asc", limit=1000, **sort)) for sort in sorts]
        ctx.true(len(wholes[0]) >= _AGENTS, f"query_{kind} gives {len(wholes[0])} records of {_AGENTS} agents")
        for number, filters in enumerate(in_time(ctx, _asked(ctx, kind, wholes[0]))):
            sort, every = sorts[number % len(sorts)], wholes[number % len(sorts)]
            order = ("asc", "desc")[number // len(sorts) % 2]
            wanted = [record for record in every if matches(kind, record, filters)]
            asked = {**filters, **sort, "order": order}
            counted = await getattr((other, ctx.store)[number % 2], f"count_{kind}")(**filters)
            ctx.equal(counted, len(wanted), f"count_{kind} by {filters}")
            groups = await getattr((ctx.store, other)[number % 2], f"group_{kind}")(_GROUPS[kind], **filters)
            found = {group.values[_GROUPS[kind]]: group.count for group in groups}
            numbers = Counter(getattr(record, _GROUPS[kind]) for record in wanted)
            ctx.equal(found, dict(sorted(numbers.items())), f"group_{kind}({_GROUPS[kind]!r}) by {filters}")
            await _see_parts(
                ctx, (ctx.store, other)[number % 2], kind, asked, wanted[:: 1 if order == "asc" else -1], number
            )


async def _see_parts(
    ctx: Context, store: ExtendedStore, kind: str, asked: dict[str, Any], wanted: Sequence[Any], number: int
) -> None:
    query, shown = getattr(store, f"query_{kind}"), ", ".join(f"{name}={value!r}" for name, value in asked.items())
    size, n = 1 + number % 3, len(wanted)
    for paging in (
        {"limit": size, "offset": (0, 1, 2, n // 2, max(0, n - 2))[number % 5]},
        (
            *({"offset": n // 2}, {"limit": n}, {"limit": n + 1}, {"limit": 0}, {"limit": max(1, n - 1)}),
            *({"offset": n}, {"offset": n + 1, "limit": 1}),
        )[number % 7],
    ):
        page = await query(**asked, **paging)
        begin = paging.get("offset", 0)
        end = begin + paging.get("limit", 100)
        what = f"query_{kind}({shown}, {', '.join(f'{name}={value}' for name, value in paging.items())})"
        same(ctx, list(page), list(wanted[begin:end]), what)
        if paging.get("limit") and end < n:
            ctx.true(page.next_cursor is not None, f"{what} has no cursor, though {n - end} more match")
    found: list[Any] = []
    cursor: dict[str, str] = {}
    while True:
        page = await query(**asked, limit=3 * size, **cursor)
        found += page
        if page.next_cursor is None or len(found) > n:
            break
        ctx.equal(len(page), 3 * size, f"how many query_{kind}({shown}, limit={3 * size}) gives where more follow")
        cursor = {"cursor": page.next_cursor}
    same(ctx, found, list(wanted), f"query_{kind}({shown}) in pages of {3 * size}")
    if number % 3 == 0:
        streamed = [record async for record in getattr(store, f"iter_{kind}")(**asked)]
        same(ctx, streamed, list(wanted), f"iter_{kind}({shown})")
