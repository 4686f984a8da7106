"""MSG-9, MSG-10, DOC-4, DOC-8, EVT-5, LIFE-2 and OPS-21: the optional arguments of reads, by twos, threes and more.

The arguments are found in the signatures of the protocols. Each has a few values that leave a part of the records, and
a part that no other argument leaves: where two arguments meet, forgetting one of them shows.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from kode_conformance.calls.methods import DOCUMENT_METHODS, TAG_METHODS, drive
from kode_conformance.calls.ways import first
from kode_conformance.context import Context
from kode_conformance.dimensions import Dimension
from kode_conformance.harness import keeps_documents, keeps_tags
from kode_conformance.histories.answers import keys_of_range
from kode_conformance.instruments.pace import in_time
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_core.model import Bookmark, PutDocument
from kode_core.protocols import ExtendedStore

_D: Final = Dimension
_E: Final = Capability.EXTENDED
_COUNT: Final = 12
_MORE: Final = 30
"""So many combinations of more than three arguments in a quick run, of each method."""

Given = Mapping[str, Any]


class _Kind(NamedTuple):
    """Methods that give parts of the same records.

    Attributes:
        required: the arguments that each call has.
        whole: all of the records, as the methods show them.
        values: values of each optional argument.
        part: gives the records that are left by the arguments, in their order.
        shown: a record that a method gave, as in *whole*.
    """

    methods: Sequence[str]
    required: Given
    whole: Sequence[Any]
    values: Mapping[str, Sequence[Any]]
    part: Callable[..., list[Any]]
    shown: Callable[[Any], Any]


_ELSEWHERE: Final = frozenset({"fence", "progress", "cursor", "heartbeat_ms", "filters", "ttl_ms", "wait_ms"})
"""Arguments that select nothing, or, as filters, are put together by another check."""
_READING: Final = ("load_", "read_", "follow_", "list", "iter_", "query_")


def optional_of(method: str) -> list[str]:
    """The optional arguments of a method that select what it gives."""
    parameters = inspect.signature(getattr(ExtendedStore, method)).parameters
    return [name for name, one in parameters.items() if one.default is not one.empty and name not in _ELSEWHERE]


def methods_together() -> list[str]:
    """The methods that read and take several optional arguments."""
    names = (name for name in dir(ExtendedStore) if name.startswith(_READING))
    return [name for name in names if name != "iter_consistency" and len(optional_of(name)) > 1]


def _combinations(ctx: Context, kind: _Kind, method: str) -> list[Given]:
    """All values of each two and three arguments, and of more, in quick runs some of these, in an order of the seed."""
    every: list[list[Given]] = [[], []]
    names = optional_of(method)
    for size in range(2, len(names) + 1):
        for chosen in itertools.combinations(names, size):
            values = itertools.product(*(kind.values[name] for name in chosen))
            every[size > 3] += [dict(zip(chosen, one, strict=True)) for one in values]
    for found in every:
        ctx.rng.shuffle(found)
    few, more = every
    return [*few, *more[: _MORE if ctx.settings.tier is Tier.QUICK else None]]


# --- lists ------------------------------------------------------------------------------------------------------------


def _part(
    records: Sequence[Any],
    *,
    last: int | None = None,
    after: int | None = None,
    before: int | None = None,
    reverse: bool = False,
    on_corrupt: str = "raise",
) -> list[Any]:
    part = list(records[0 if after is None else after + 1 : before])
    part = part if last is None else part[max(0, len(part) - last) :]
    return part[::-1] if reverse else part


def _as_it_is(record: Any) -> Any:
    return record


_PLACES: Final[Mapping[str, Sequence[Any]]] = {
    "last": (2, 5, 0, _COUNT + 1),
    "after": (3, 0, _COUNT - 2),
    "before": (8, 5, 1, _COUNT + 3),
    "on_corrupt": ("skip", "raise"),
    "reverse": (True, False),
}


async def _lists(store: ExtendedStore) -> list[_Kind]:
    messages, calls = samples.messages(_COUNT), [samples.tool_call(i % 9, result=i) for i in range(_COUNT)]
    await store.save_turn("lists", messages=messages, tool_calls=calls)
    agent: Given = {"agent_id": "lists"}
    return [
        _Kind(("load_messages",), agent, messages, _PLACES, _part, _as_it_is),
        _Kind(("load_tool_call_records",), agent, calls, _PLACES, _part, _as_it_is),
        _Kind(
            ("read_messages",),
            agent,
            [(i, message.text) for i, message in enumerate(messages)],
            _PLACES,
            _part,
            lambda one: (one.position, one.text),
        ),
    ]


# --- agents and documents ---------------------------------------------------------------------------------------------


def _listed(whole: Sequence[tuple[str, bool]], *, prefix: str = "", include_without_info: bool = False) -> list[Any]:
    return [one for one in whole if one[0].startswith(prefix) and (one[1] or include_without_info)]


async def _agents(store: ExtendedStore) -> list[_Kind]:
    whole = [(f"{name}{i}", i % 2 == 0) for name in ("x", "xy", "y") for i in range(3)]
    for agent_id, has_info in whole:
        await store.save_todos(agent_id, samples.todos("x"))
        if has_info:
            await store.save_info(agent_id, samples.info(agent_id))
    whole = sorted([*whole, ("lists", False), ("log", False), *((one, False) for one in _OWNERS if keeps_documents())])
    known = dict(whole)
    values = {"prefix": ("x", "xy", "l", "", "z"), "include_without_info": (True, False)}
    return [_Kind(("list",), {}, whole, values, _listed, lambda one: (one, known.get(one)))]


_KEYS: Final = ("a", "a/", "a/b", "a1", "ab", "b", "b/1", "b/2", "b1", "b2", "ba", "c", "c/1", "d", "é", "😀")


_RANGES: Final[Mapping[str, Sequence[Any]]] = {
    "prefix": ("b", "b/", "a", ""),
    "start": ("a1", "b/1", "c"),
    "stop": ("d", "b2", "b"),
    "reverse": (True, False),
    "limit": (3, 1, 100),
}

_OWNERS: Final = ("docs", "docs 2", "other")


def _found(
    whole: Sequence[tuple[str, str, Any]],
    *,
    agent_id: str | None = None,
    values: bool = True,
    reverse: bool = False,
    limit: int | None = None,
) -> list[Any]:
    found = [(owner, key, value if values else None) for owner, key, value in whole if agent_id in (None, owner)]
    return (found[::-1] if reverse else found)[:limit]


async def _documents(store: ExtendedStore) -> list[_Kind]:
    tags: Any = {"tags": {"run": "r1"}} if keeps_tags() else {}
    for agent_id in _OWNERS:
        await store.write_documents(agent_id, [PutDocument("c", key, f"{agent_id} {key}", **tags) for key in _KEYS])
        await store.write_documents(agent_id, [PutDocument("other", key, 0) for key in _KEYS])
    place: Given = {"agent_id": "docs", "collection": "c"}
    whole = [(owner, key, f"{owner} {key}") for owner in _OWNERS for key in _KEYS]
    values = {"agent_id": ("docs 2", "docs", "none"), "values": (False, True)}
    return [
        _Kind(("list_documents", "iter_documents"), place, _KEYS, _RANGES, keys_of_range, lambda one: one.key),
        _Kind(("list_document_keys",), place, _KEYS, _RANGES, keys_of_range, _as_it_is),
        _Kind(
            ("query_documents",),
            {"collection": "c", "tags": {"run": "r1"}},
            whole,
            {**values, "reverse": (True, False), "limit": (20, 3)},
            _found,
            lambda one: (one.agent_id, one.key, one.value),
        ),
    ]


# --- events -----------------------------------------------------------------------------------------------------------

_CHANNELS: Final = ("progress", "control", "monitor")


def _logged(
    whole: Sequence[Any], *, since: Bookmark | None = None, after_offset: int | None = None, channel: str | None = None
) -> list[Any]:
    found = [
        one
        for one in whole
        if (since is None or one[1] > since.seq)
        and (after_offset is None or one[0] > after_offset)
        and channel in (None, one[2])
    ]
    return found if after_offset is not None else sorted(found, key=lambda one: (one[1], one[0]))


def _followed(whole: Sequence[Any], *, after_offset: int = 0, **given: Any) -> list[Any]:
    return _logged(whole, after_offset=after_offset, **given)


async def _events(store: ExtendedStore) -> list[_Kind]:
    """A log whose seqs do not ascend along it; its last events are of each channel, so that followers have an end."""
    seqs = [*(i * 7 % _COUNT for i in range(_COUNT)), *(_COUNT + 1 for _ in _CHANNELS)]
    entries = [samples.event(seq, _CHANNELS[i % 3], cursor=i) for i, seq in enumerate(seqs)]
    offsets = list(await store.append_events("log", entries))
    whole = [(offset, e.bookmark.seq, e.event.channel) for offset, e in zip(offsets, entries, strict=True)]
    values: Mapping[str, Sequence[Any]] = {
        "since": [Bookmark(seq, 0) for seq in (4, 0, _COUNT - 1)],
        "after_offset": (offsets[4], 0, offsets[-4]),
        "channel": _CHANNELS,
    }

    def shown(one: Any) -> Any:
        return one.offset, one.bookmark.seq, one.event.channel

    agent: Given = {"agent_id": "log"}
    return [
        _Kind(("read_events",), agent, whole, values, _logged, shown),
        _Kind(("follow_events",), agent, whole, values, _followed, shown),
    ]


# --- together ---------------------------------------------------------------------------------------------------------


async def kinds_of_parts(store: ExtendedStore) -> dict[str, _Kind]:
    """The kind of each method; saves its records."""
    found = [*await _lists(store), *await _events(store)]
    if keeps_documents():
        found += await _documents(store)
    found += await _agents(store)
    return {method: kind for kind in found for method in kind.methods}


@check(
    *("MSG-9", "MSG-10", "TC-1", "OPS-21", "DOC-4", "DOC-8", "EVT-5", "EVT-7", "LIFE-2"),
    needs=_E,
    under=(_D.ORDERS, _D.NUMBERS, _D.INSTANCES),
)
async def optional_arguments_hold_together(ctx: Context) -> None:
    """Each two, three or more of the optional arguments of a method that reads, of every method that takes several,
    leave just the records that each of them leaves; and so do the pages that follow.
    """
    stores, of_method = (ctx.store, await ctx.another()), await kinds_of_parts(ctx.store)
    methods = [name for name in methods_together() if name in of_method and _is_kept(name)]
    cases = [(name, _combinations(ctx, of_method[name], name)) for name in methods]
    rounds = itertools.zip_longest(*([(name, given) for given in every] for name, every in cases))
    for number, case in enumerate(in_time(ctx, rounds)):
        for name, given in filter(None, case):
            await _see(ctx, stores[number % 2], name, of_method[name], given)


def _is_kept(method: str) -> bool:
    """True unless the store may refuse the method."""
    return (keeps_documents() or method not in DOCUMENT_METHODS) and (keeps_tags() or method not in TAG_METHODS)


async def _see(ctx: Context, store: ExtendedStore, name: str, kind: _Kind, given: Given) -> None:
    method, what = getattr(store, name), f"{name}({', '.join(f'{key}={value!r}' for key, value in given.items())})"
    wanted = kind.part(kind.whole, **given)
    if name.startswith("follow_"):  # it does not end by itself
        found = await first(ctx, method(**kind.required, **given), len(wanted), what)
        ctx.equal([*map(kind.shown, found)], wanted, what)
        return
    page = await drive(method, {**kind.required, **given})
    ctx.equal([*map(kind.shown, page)], wanted, what)
    if given.get("on_corrupt") == "skip":
        ctx.equal(page.left_out, (), f"what {what} left out of sound records")
    if given.get("limit") is None:
        return
    rest = {key: value for key, value in given.items() if key != "limit"}
    every, pages = list(page), [page]
    while pages[-1].next_cursor is not None and len(every) <= len(kind.whole):
        pages.append(await method(**kind.required, **given, cursor=pages[-1].next_cursor))
        every += pages[-1]
    ctx.equal([*map(kind.shown, every)], kind.part(kind.whole, **rest), f"the pages of {what}")
