"""QRY-8, LIFE-6, SNAP-2, DOC-1, MSG-11: records that were read, and removed since by any call."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from kode_conformance.context import Context
from kode_conformance.dimensions import Dimension
from kode_conformance.harness import keeps_documents, keeps_tags, prunes_events
from kode_conformance.instruments.pace import in_time
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_core.errors import AgentNotFoundError, InvalidArgumentError
from kode_core.model import DeleteDocument, PutDocument

_D: Final = Dimension
_WORD: Final = re.compile(r"(?:gone|stays)-[a-z]+")
_T: Final = samples.T0

Write = Callable[[Any, str], Awaitable[object]]


# --- writes -----------------------------------------------------------------------------------------------------------


def _two(word: str) -> tuple[tuple[str, int], tuple[str, int]]:
    """The names and times of a record that is removed, the older one, and of one that stays."""
    return (f"gone-{word}", _T), (f"stays-{word}", _T + 1)


def _each(save: Callable[[Any, str, str, int], Awaitable[object]], word: str) -> Write:
    async def begin(store: Any, agent_id: str) -> None:
        for name, time in _two(word):
            await save(store, agent_id, name, time)

    return begin


def _talk(*names: str) -> list[Any]:
    return [samples.message(text=name) for name in names]


def _calls(*names: str) -> list[Any]:
    return [samples.tool_call(i, result=name) for i, name in enumerate(names)]


async def _put(store: Any, agent_id: str) -> None:
    tags: dict[str, Any] = {"tags": {"run": "r"}} if keeps_tags() else {}
    await store.write_documents(agent_id, [PutDocument("c", name, name, **tags) for name, _ in _two("documents")])


_STAYS, _BOTH = {word: f"stays-{word}" for word in ("messages", "calls", "todos", "media")}, ("stays", "gone")


def _both(word: str) -> list[str]:
    return [f"{which}-{word}" for which in _BOTH]


def _begins() -> Mapping[str, Write]:
    """The writes of each kind."""
    begins: dict[str, Write] = {
        "messages": lambda s, a: s.save_messages(a, _talk(*_both("messages"))),
        "calls": lambda s, a: s.save_tool_call_records(a, _calls(*_both("calls"))),
        "todos": lambda s, a: s.save_todos(a, samples.todos(*_both("todos"))),
        "media": lambda s, a: s.save_media_cache(a, [samples.media(name) for name in _both("media")]),
        "snapshots": _each(
            lambda s, a, name, time: s.save_snapshot(a, samples.snapshot(name, time).replace(messages=_talk(name))),
            "snapshots",
        ),
        "windows": _each(lambda s, a, name, time: s.save_history_window(a, samples.window(name, time)), "windows"),
        "compressions": _each(
            lambda s, a, name, time: s.save_compression_record(a, samples.compression(name, time)), "compressions"
        ),
        "files": _each(lambda s, a, name, time: s.save_recovered_file(a, samples.recovered(name, time, name)), "files"),
        "events": lambda s, a: s.append_events(
            a, [samples.event(i, text=name) for i, (name, _) in enumerate(_two("events"))]
        ),
    }
    return {**begins, **({"documents": _put} if keeps_documents() else {})}


# --- removals ---------------------------------------------------------------------------------------------------------


class _Removal(NamedTuple):
    """A call that removes one record of each of these kinds; with *all*, the agent."""

    name: str
    call: Write
    kinds: Sequence[str]
    all: bool = False


async def _prune_events(store: Any, agent_id: str, *, by_time: bool) -> None:
    """Remove the events in front of the last one."""
    last = [event async for event in store.read_events(agent_id, after_offset=0)][-1]
    bound = {"events_before": last.bookmark.timestamp} if by_time else {"events_before_offset": last.offset}
    await store.prune(agent_id, **bound)


_KEPT: Final = {
    "keep_snapshots": "snapshots",
    "keep_history_windows": "windows",
    "keep_compression_records": "compressions",
    "keep_recovered_files": "files",
}


def _pruned(*names: str) -> _Removal:
    kept = dict.fromkeys(names, 1)
    told = ", ".join(f"{name}=1" for name in names)
    return _Removal(f"prune({told})", lambda s, a: s.prune(a, **kept), [_KEPT[name] for name in names])


def _saved(method: str, parameter: str, word: str, records: Any) -> _Removal:
    return _Removal(f"{method}({parameter}=)", lambda s, a: getattr(s, method)(a, **{parameter: records}), [word])


def _removals() -> Iterator[_Removal]:
    """Every call that removes something."""
    talk, calls, todos = _talk(_STAYS["messages"]), _calls(_STAYS["calls"]), samples.todos(_STAYS["todos"])
    yield from map(_pruned, _KEPT)
    yield _pruned(*_KEPT)
    if prunes_events():
        yield _Removal("prune(events_before_offset=)", lambda s, a: _prune_events(s, a, by_time=False), ["events"])
        yield _Removal("prune(events_before=)", lambda s, a: _prune_events(s, a, by_time=True), ["events"])
    yield _Removal("delete_snapshot", lambda s, a: s.delete_snapshot(a, "gone-snapshots"), ["snapshots"])
    yield _Removal("pop_messages", lambda s, a: s.pop_messages(a), ["messages"])
    yield _Removal("truncate_messages", lambda s, a: s.truncate_messages(a, 1), ["messages"])
    yield _Removal("replace_message", lambda s, a: s.replace_message(a, 1, samples.message()), ["messages"])
    yield _saved("save_messages", "messages", "messages", talk)
    yield _saved("save_turn", "messages", "messages", talk)
    yield _saved("save_tool_call_records", "records", "calls", calls)
    yield _saved("save_turn", "tool_calls", "calls", calls)
    yield _saved("upsert_tool_call_records", "records", "calls", [samples.tool_call(1)])
    yield _saved("save_turn", "upsert_tool_calls", "calls", [samples.tool_call(1)])
    yield _saved("save_todos", "snapshot", "todos", todos)
    yield _saved("save_turn", "todos", "todos", todos)
    yield _saved("save_media_cache", "records", "media", [samples.media(_STAYS["media"])])
    if keeps_documents():
        gone = [DeleteDocument("c", "gone-documents")]
        yield _Removal("delete_document", lambda s, a: s.delete_document(a, "c", "gone-documents"), ["documents"])
        yield _saved("write_documents", "documents", "documents", gone)
        yield _saved("save_turn", "documents", "documents", gone)
    yield _Removal("delete", lambda s, a: s.delete(a), [*_begins()], all=True)
    yield _Removal("delete_many", lambda s, a: s.delete_many(agent_id=a), [*_begins()], all=True)


# --- reads ------------------------------------------------------------------------------------------------------------


async def _all(stream: Any) -> list[Any]:
    return [item async for item in stream]


async def _forked(store: Any, agent_id: str) -> object:
    """The messages of a fork from the removed snapshot; None where the snapshot or the agent is absent."""
    try:
        fork = await store.fork(agent_id, snapshot_id="gone-snapshots")
    except (AgentNotFoundError, InvalidArgumentError):
        return None
    found = await store.load_messages(fork)
    await store.delete(fork)
    return found


def _looks(lacks: Sequence[str]) -> Iterator[tuple[str, str, Write]]:
    """A kind, a call that gives its records, and the call itself."""
    yield "messages", "load_messages", lambda s, a: s.load_messages(a)
    yield "messages", "load_messages(last=2)", lambda s, a: s.load_messages(a, last=2)
    yield "messages", "load_messages(after=0)", lambda s, a: s.load_messages(a, after=0)
    yield "messages", "read_messages", lambda s, a: _all(s.read_messages(a))
    yield "messages", "read_messages(reverse=True)", lambda s, a: _all(s.read_messages(a, reverse=True))
    yield "calls", "load_tool_call_records", lambda s, a: s.load_tool_call_records(a)
    yield "calls", "load_tool_call_records(last=2)", lambda s, a: s.load_tool_call_records(a, last=2)
    if "QUERYABLE" not in lacks:
        yield "messages", "query_messages", lambda s, a: s.query_messages(agent_id=a)
        yield "messages", "iter_messages", lambda s, a: _all(s.iter_messages(agent_id=a, order="asc"))
        yield "messages", "query_messages(contains=)", lambda s, a: s.query_messages(agent_id=a, contains="gone-")
        yield "calls", "query_tool_calls", lambda s, a: s.query_tool_calls(agent_id=a)
        yield "calls", "iter_tool_calls", lambda s, a: _all(s.iter_tool_calls(agent_id=a, order="asc"))
    yield "snapshots", "load_snapshot", lambda s, a: s.load_snapshot(a, "gone-snapshots")
    yield "snapshots", "list_snapshots", lambda s, a: s.list_snapshots(a)
    yield "snapshots", "fork(snapshot_id=)", _forked
    yield "windows", "load_history_windows", lambda s, a: s.load_history_windows(a)
    yield "compressions", "load_compression_records", lambda s, a: s.load_compression_records(a)
    yield "files", "load_recovered_files", lambda s, a: s.load_recovered_files(a)
    yield "todos", "load_todos", lambda s, a: s.load_todos(a)
    yield "media", "load_media_cache", lambda s, a: s.load_media_cache(a)
    yield "events", "read_events", lambda s, a: _all(s.read_events(a))
    yield "events", "read_events(after_offset=)", lambda s, a: _all(s.read_events(a, after_offset=0))
    yield "events", "read_events(channel=)", lambda s, a: _all(s.read_events(a, channel="progress"))
    if keeps_documents():
        yield "documents", "load_document", lambda s, a: s.load_document(a, "c", "gone-documents")
        yield "documents", "list_documents", lambda s, a: s.list_documents(a, "c")
        yield "documents", "list_document_keys", lambda s, a: s.list_document_keys(a, "c")
        yield "documents", "iter_documents", lambda s, a: _all(s.iter_documents(a, "c"))
    if keeps_tags():
        yield "documents", "query_documents", lambda s, a: s.query_documents("c", {"run": "r"}, agent_id=a)
    yield "", "load_agent", lambda s, a: s.load_agent(a)


def _words(value: Any) -> Iterator[str]:
    """The names of records in an answer, wherever they stand."""
    if isinstance(value, str):
        yield from _WORD.findall(value)
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            yield from _words(getattr(value, name))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _words(item)
    elif isinstance(value, dict):
        yield from _words([*value, *value.values()])


# --- the check --------------------------------------------------------------------------------------------------------


@check(
    *("QRY-8", "LIFE-6", "SNAP-2", "SNAP-1", "DOC-1", "MSG-11", "MSG-1", "TC-1", "TC-3", "TODO-1", "MED-1", "LIFE-3"),
    needs=Capability.EXTENDED,
    under=(_D.CHANGES, _D.INSTANCES, _D.ORDERS),
)
async def what_was_read_before_its_removal_is_gone(ctx: Context) -> None:
    """A call that removes a record removes it for two instances that read it before, by each method that gives it:
    prunes, cuts, pops, deletes, and saves of the other records. Those stay, and a record that is saved again is given
    again.
    """
    stores = (ctx.store, await ctx.another())
    begins, looks = _begins(), [*_looks(tuple(ctx.harness.lacks))]
    every = [*_removals()]
    for number, removal in enumerate(in_time(ctx, ctx.rng.sample(every, len(every)))):
        agent_id = f"a{number}"
        await ctx.store.save_info(agent_id, samples.info(agent_id))
        neighbour = [*begins][number % len(begins)]  # another kind that stays, if it is not this one
        for kind in dict.fromkeys([*removal.kinds, neighbour]):
            await begins[kind](ctx.store, agent_id)
        reads_whole = number % 3 == 0 or removal.all or ctx.settings.tier > Tier.QUICK
        mine = [(name, look) for kind, name, look in looks if kind in removal.kinds or (reads_whole and not kind)]

        async def see(mine: Any = mine, agent_id: str = agent_id) -> dict[tuple[str, str], set[str]]:
            places = [*zip(("", " in another instance"), stores, strict=True)]
            return {(name, w): {*_words(await look(s, agent_id))} for w, s in places for name, look in mine}

        before, gone = await see(), {f"gone-{kind}" for kind in removal.kinds}
        for (name, where), found in before.items():
            ctx.true(found & gone, f"{name}{where} must give {sorted(gone)} before {removal.name}: {sorted(found)}")
        remover = number // 2 % 2
        await removal.call(stores[remover], agent_id)
        by = f"{removal.name} by {('this instance', 'the other instance')[remover]}"
        for (name, where), found in (await see()).items():
            wanted = set() if removal.all else before[name, where] - gone
            ctx.equal(sorted(found), sorted(wanted), f"{name}{where}, which gave {sorted(gone)} before {by}")
        if removal.all:
            await stores[1 - remover].save_info(agent_id, samples.info(agent_id))
        for kind in removal.kinds:
            await begins[kind](stores[1 - remover], agent_id)
        for (name, where), found in (await see()).items():
            told = f"{name}{where}, when what was removed by {by} was saved again"
            ctx.equal(sorted(found), sorted(before[name, where]), told)
