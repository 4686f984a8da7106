"""QRY-8: another instance changes what a list holds, and its length stays."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from kode_conformance.context import Context
from kode_conformance.dimensions import Dimension
from kode_conformance.instruments.pace import in_time
from kode_conformance.registry import Capability, check
from kode_conformance.values import samples
from kode_core.model import DeleteDocument, PutDocument
from kode_core.protocols import ExtendedStore

_E: Final = Capability.EXTENDED
_D: Final = Dimension
_A: Final = "a"

Write = Callable[[Any, int], Awaitable[object]]
Read = Callable[[Any], Awaitable[Any]]


class _List(NamedTuple):
    """A list of one agent, or of the store.

    Attributes:
        changes: by a number, they replace records of the list, and keep its length.
        reads: give it, or something of it.
    """

    begin: Write
    changes: Mapping[str, Write]
    reads: Mapping[str, Read]


def _keyed(save: Callable[[Any, str, int], Awaitable[object]], reads: Mapping[str, Read]) -> _List:
    """A list of records with keys, of which saves of known keys replace one."""

    async def begin(store: Any, number: int) -> None:
        for key in "xyz":
            await save(store, key, number)

    return _List(begin, {"the second one is saved anew": lambda s, n: save(s, "y", n)}, reads)


async def _all(stream: Any) -> list[Any]:
    return [item async for item in stream]


def _snapshot(key: str, number: int) -> Any:
    return samples.snapshot(key).replace(messages=samples.messages(2, number))


async def _other_snapshot(store: Any, number: int) -> None:
    await store.delete_snapshot(_A, "x" if number == 1 else f"x{number - 1}")
    await store.save_snapshot(_A, _snapshot(f"x{number}", number))


async def _pop_and_append(store: Any, number: int) -> None:
    await store.pop_messages(_A)
    await store.append_messages(_A, samples.messages(1, 100 + number))


_CALLS: Final = {"audit_trail": [], "created_at": samples.T0}


async def _save_calls(store: Any, number: int) -> None:
    await store.save_tool_call_records(_A, [samples.tool_call(i, result=number, **_CALLS) for i in range(3)])


async def _upsert_call(store: Any, number: int) -> None:
    await store.upsert_tool_call_records(_A, [samples.tool_call(1, result=f"{number}", **_CALLS)])


async def _other_event(store: Any, number: int) -> None:
    await store.append_event(_A, samples.event(number + 10))
    left = [event.offset for event in await _all(store.read_events(_A))]
    await store.prune(_A, events_before_offset=left[-3])


async def _other_agent(store: Any, number: int) -> None:
    await store.delete(f"b{number - 1}")
    await store.save_info(f"b{number}", samples.info(f"b{number}"))


def _lists(lacks: Sequence[str]) -> Iterator[tuple[str, _List]]:
    queries = "QUERYABLE" not in lacks

    def queried(kind: str) -> dict[str, Read]:
        if not queries:
            return {}
        names = (f"query_{kind}", f"iter_{kind}")
        return {
            names[0]: lambda s: getattr(s, names[0])(agent_id=_A),
            names[1]: lambda s: _all(getattr(s, names[1])(agent_id=_A, order="asc")),
        }

    yield "snapshots", _keyed(lambda s, key, n: s.save_snapshot(_A, _snapshot(key, n)), _SNAPSHOTS)
    yield "snapshots", _List(_nothing, {"one is deleted, another saved": _other_snapshot}, _SNAPSHOTS)
    yield (
        "history windows",
        _keyed(
            lambda s, key, n: s.save_history_window(_A, samples.window(key).replace(messages=samples.messages(2, n))),
            {"load_history_windows": lambda s: s.load_history_windows(_A)},
        ),
    )
    yield (
        "compression records",
        _keyed(
            lambda s, key, n: s.save_compression_record(_A, samples.compression(key).replace(summary=f"{n}")),
            {"load_compression_records": lambda s: s.load_compression_records(_A)},
        ),
    )
    yield (
        "recovered files",
        _keyed(
            lambda s, key, n: s.save_recovered_file(_A, samples.recovered(key, content=f"{n}")),
            {"load_recovered_files": lambda s: s.load_recovered_files(_A)},
        ),
    )
    yield "todos", _single(lambda s, n: s.save_todos(_A, samples.todos(f"{n}")), load_todos=lambda s: s.load_todos(_A))
    yield (
        "media",
        _single(
            lambda s, n: s.save_media_cache(_A, [samples.media(f"k{n}"), samples.media("last")]),
            load_media_cache=lambda s: s.load_media_cache(_A),
        ),
    )
    yield (
        "messages",
        _List(
            lambda s, n: s.save_messages(_A, samples.messages(3)),
            {
                "all are saved": lambda s, n: s.save_messages(_A, samples.messages(3, 10 * n)),
                "one is replaced": lambda s, n: s.replace_message(_A, 1, samples.message(text=f"{n}")),
                "one is popped, another appended": _pop_and_append,
            },
            {
                "load_messages": lambda s: s.load_messages(_A),
                "load_messages(last=2)": lambda s: s.load_messages(_A, last=2),
                "read_messages": lambda s: _all(s.read_messages(_A)),
                **queried("messages"),
            },
        ),
    )
    yield (
        "tool calls",
        _List(
            _save_calls,
            {"all are saved": _save_calls, "one is saved anew": _upsert_call},
            {"load_tool_call_records": lambda s: s.load_tool_call_records(_A), **queried("tool_calls")},
        ),
    )
    if "PRUNING" not in lacks:
        yield (
            "events",
            _List(
                lambda s, n: s.append_events(_A, samples.events(3)),
                {"one is pruned, another appended": _other_event},
                {
                    "read_events": lambda s: _all(s.read_events(_A)),
                    "read_events(after_offset=)": lambda s: _all(s.read_events(_A, after_offset=0)),
                    "last_bookmark": lambda s: s.last_bookmark(_A),
                },
            ),
        )
    yield (
        "agents",
        _List(
            lambda s, n: s.save_info("b0", samples.info("b0")),
            {
                "one is deleted, another saved": _other_agent,
                "an info is saved anew": lambda s, n: s.save_info(_A, samples.info(_A, template_id=f"t{n}")),
                "an info is updated": lambda s, n: s.update_info(_A, {"k": n}),
            },
            {
                "list": lambda s: s.list(),
                "load_info": lambda s: s.load_info(_A),
                "load_session": lambda s: s.load_session(_A),
                **({"query_sessions": lambda s: s.query_sessions(sort_by="created_at")} if queries else {}),
                **({"iter_sessions": lambda s: _all(s.iter_sessions(sort_by="created_at"))} if queries else {}),
            },
        ),
    )
    if "DOCUMENTS" not in lacks:
        yield "documents", _documents(tags="TAGS" not in lacks)


async def _nothing(store: Any, number: int) -> None:
    pass


def _single(save: Write, **reads: Read) -> _List:
    return _List(save, {"it is saved anew": save}, reads)


_SNAPSHOTS: Final[Mapping[str, Read]] = {
    "list_snapshots": lambda s: s.list_snapshots(_A),
    "load_snapshot": lambda s: s.load_snapshot(_A, "y"),
}


def _documents(*, tags: bool) -> _List:
    def put(key: str, number: int) -> PutDocument:
        return PutDocument("c", key, number, tags={"run": f"r{number % 2}", "of": "all"} if tags else None)

    async def begin(store: Any, number: int) -> None:
        await store.write_documents(_A, [put(key, number) for key in ("d0", "k", "z")])

    async def other(store: Any, number: int) -> None:
        await store.write_documents(_A, [DeleteDocument("c", f"d{number - 1}"), put(f"d{number}", number)])

    found: dict[str, Read] = {
        "list_documents": lambda s: s.list_documents(_A, "c"),
        "list_document_keys": lambda s: s.list_document_keys(_A, "c"),
        "iter_documents": lambda s: _all(s.iter_documents(_A, "c")),
        "load_document": lambda s: s.load_document(_A, "c", "k"),
    }
    if tags:
        found |= {
            "query_documents": lambda s: s.query_documents("c", {"of": "all"}),
            "query_documents(agent_id=)": lambda s: s.query_documents("c", {"run": "r1"}, agent_id=_A),
        }
    return _List(
        begin,
        {
            "one is put anew": lambda s, n: s.write_documents(_A, [put("k", n)]),
            "one is deleted, another put": other,
        },
        found,
    )


@check(
    *("QRY-8", "SNAP-1", "HIS-1", "HIS-2", "MED-1", "TODO-1", "DOC-4"),
    needs=_E,
    under=(_D.CHANGES, _D.EQUALS, _D.INSTANCES),
)
async def lists_are_current_though_their_length_stays(ctx: Context) -> None:
    """Each list that an instance has read before is current, by each method that gives it, when another instance has
    replaced a record, or removed one and added another, again and again.
    """
    stores: tuple[ExtendedStore, ...] = (ctx.store, await ctx.another())
    await ctx.store.save_info(_A, samples.info(_A))
    for name, one in in_time(ctx, _lists(tuple(ctx.harness.lacks))):
        await one.begin(ctx.store, 0)
        for how, change in one.changes.items():
            for number in (1, 2):
                reader, writer = stores[number % 2], stores[1 - number % 2]
                before = {method: await read(reader) for method, read in one.reads.items()}
                await change(writer, number)
                wanted = {method: await read(writer) for method, read in one.reads.items()}
                what = f"of {name} in one instance, when in another {how}"
                ctx.true(before != wanted, f"what is read {what} is as before")
                for method, read in one.reads.items():
                    ctx.equal(await read(reader), wanted[method], f"{method} {what}")
