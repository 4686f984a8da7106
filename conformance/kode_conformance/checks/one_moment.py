"""OPS-13: several calls of one method to one agent at one moment, of which one is refused or cancelled."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from kode_conformance.calls.methods import calls_of, drive
from kode_conformance.checks.isolation import troubled
from kode_conformance.checks.lifecycle import fill
from kode_conformance.context import Context
from kode_conformance.dimensions import Dimension
from kode_conformance.harness import keeps_documents
from kode_conformance.instruments.layering import Trouble
from kode_conformance.instruments.pace import in_time
from kode_conformance.instruments.yielding import turns_pass
from kode_conformance.registry import Capability, check
from kode_conformance.values import samples
from kode_conformance.values.many import all_of
from kode_core.errors import InvalidArgumentError
from kode_core.model import AgentEvent, AgentInfo, Message, PutDocument, Timeline, ToolCallRecord

_E: Final = Capability.EXTENDED
_NAN: Final = float("nan")


def _of_one_moment(store: Any) -> dict[str, Callable[[Any], Awaitable[Any]]]:
    """A call of each method that writes to one agent; it takes a value, which is somewhere in what it writes."""

    def put(value: Any) -> PutDocument:
        return PutDocument("c", f"{value}", {"deep": [value]})

    def message(value: Any) -> Message:
        return samples.message(text=f"{value}").replace(metadata={"deep": [value]})

    def call(value: Any) -> ToolCallRecord:
        return samples.tool_call(0, id=f"{value}", result={"deep": [value]})

    def event(value: Any) -> Timeline:
        return samples.event(0 if value is _NAN else value, deep=[value])

    def info(value: Any) -> AgentInfo:
        return samples.info("a", metadata={"deep": [value]})

    calls: dict[str, Callable[[Any], Awaitable[Any]]] = {
        "save_messages": lambda value: store.save_messages("a", [message(value)]),
        "append_messages": lambda value: store.append_messages("a", [message(value)]),
        "replace_message": lambda value: store.replace_message("a", 0, message(value)),
        "save_tool_call_records": lambda value: store.save_tool_call_records("a", [call(value)]),
        "upsert_tool_call_records": lambda value: store.upsert_tool_call_records("a", [call(value)]),
        "save_info": lambda value: store.save_info("a", info(value)),
        "update_info": lambda value: store.update_info("a", {f"{value}": value}),
        "append_event": lambda value: store.append_event("a", event(value)),
        "append_events": lambda value: store.append_events("a", [event(value)]),
        "emit": lambda value: store.emit("a", "tick", {"deep": value}),
        "emit_many": lambda value: store.emit_many("a", [AgentEvent("progress", "tick", {"deep": value})]),
        "save_snapshot": lambda value: store.save_snapshot(
            "a", samples.snapshot(f"{value}").replace(metadata={"deep": value})
        ),
        "save_history_window": lambda value: store.save_history_window(
            "a", samples.window(f"{value}").replace(messages=[message(value)])
        ),
        "save_todos": lambda value: store.save_todos("a", samples.todos("x").replace(version=value)),
        "save_media_cache": lambda value: store.save_media_cache("a", [samples.media().replace(size_bytes=value)]),
        "save_recovered_file": lambda value: store.save_recovered_file(
            "a", samples.recovered(f"{value}").replace(mtime=value)
        ),
        "save_compression_record": lambda value: store.save_compression_record(
            "a", samples.compression(f"{value}", value)
        ),
        "save_turn": lambda value: store.save_turn("a", append=[message(value)], upsert_tool_calls=[call(value)]),
    }
    if keeps_documents():
        calls["put_document"] = lambda value: store.put_document("a", "c", f"{value}", {"deep": value})
        calls["write_documents"] = lambda value: store.write_documents("a", [put(value)])
        calls["append_messages_once"] = lambda value: store.append_messages_once("a", {f"{value}": message(value)})
    return calls


_ADDED: Final[Mapping[str, Callable[[Any], Awaitable[Any]]]] = {
    "append_messages": lambda store: store.load_messages("a"),
    "append_messages_once": lambda store: store.load_messages("a"),
    "save_turn": lambda store: store.load_messages("a"),
    "upsert_tool_call_records": lambda store: store.load_tool_call_records("a"),
    "append_event": lambda store: all_of(store.read_events("a")),
    "append_events": lambda store: all_of(store.read_events("a")),
    "emit": lambda store: all_of(store.read_events("a")),
    "emit_many": lambda store: all_of(store.read_events("a")),
    "save_snapshot": lambda store: store.list_snapshots("a"),
    "save_history_window": lambda store: store.load_history_windows("a"),
    "save_recovered_file": lambda store: store.load_recovered_files("a"),
    "save_compression_record": lambda store: store.load_compression_records("a"),
    "put_document": lambda store: all_of(store.iter_documents("a", "c")),
    "write_documents": lambda store: all_of(store.iter_documents("a", "c")),
}
"""The records that the agent has after calls that add some, by the method that adds."""


_MOMENTS: Final = ((0, "no JSON"), (2, "no JSON"), (4, "no JSON"), (0, "cancelled"), (2, "cancelled"))
"""Which one of five calls ends otherwise than the others, and how."""


@check(
    *("OPS-13", "INFO-5", "EVT-8", "OPS-9"),
    needs=_E,
    under=(Dimension.COMPANY, Dimension.ORDERS, Dimension.INTERRUPTIONS),
)
async def a_bad_one_of_one_moment_fails_alone(ctx: Context) -> None:
    """Several calls of one method to one agent at one moment, by every method that writes: the first, the last or one
    in between writes a value that is no JSON, or is cancelled. That call alone is refused, and all others are stored.
    """
    stores = (ctx.store, await ctx.another())
    names = [*_of_one_moment(ctx.store)]
    for number, name in enumerate(in_time(ctx, ctx.rng.sample(names, len(names)))):
        for bad, how in _MOMENTS:
            await ctx.store.delete("a")
            await ctx.store.save_info("a", samples.info("a", metadata={}))
            if name == "replace_message":
                await ctx.store.save_messages("a", samples.messages(1))
            call = _of_one_moment(stores[number % 2])[name]
            values = [_NAN if how == "no JSON" and i == bad else i + 1 for i in range(5)]
            calls = [asyncio.ensure_future(call(value)) for value in values]
            if how == "cancelled":
                await turns_pass(ctx.rng.randrange(1, 9))
                calls[bad].cancel()
            what = f"{name}, five calls of one moment, of which number {bad + 1} is {how}"
            ctx.true(await ctx.ended(calls), f"{what}: they must end")
            await stores[number % 2].exists("a")  # waits for a cancelled one that goes on
            for i, done in enumerate(calls):
                error = asyncio.CancelledError() if done.cancelled() else done.exception()
                if i != bad:
                    ctx.true(error is None, f"{what}: number {i + 1} raised {error!r:.200}")
                elif how == "no JSON":
                    ctx.true(isinstance(error, InvalidArgumentError), f"{what}: that one raised {error!r:.200}")
            fewest = 4 if how == "no JSON" or calls[bad].cancelled() else 5
            if name in _ADDED:
                found = len(await _ADDED[name](stores[bad % 4 // 2]))
                ctx.true(found in (fewest, 5 if how == "cancelled" else 4), f"{what}: then there are {found} records")
            if name == "update_info":
                info = await ctx.store.load_info("a")
                keys = {f"{value}" for i, value in enumerate(values) if i != bad}
                missing = keys - (info.metadata if info else {}).keys()
                ctx.equal(sorted(missing), [], f"{what}: the keys that sound updates set and that are missing")


_READS: Final = (
    *("load_", "list", "exists", "last_", "get_snapshot", "get_document", "read_"),
    *("iter_", "query_", "count_", "aggregate_", "group_"),
)
_NO_READS: Final = ("iter_consistency",)


@check("OPS-13", "OPS-9", needs=_E, under=(Dimension.COMPANY, Dimension.INTERRUPTIONS))
async def a_read_that_is_cancelled_takes_no_other_along(ctx: Context) -> None:
    """When three equal reads are under way at once, by any method that reads, and the first or the second of them is
    cancelled, the others give what there is.
    """
    await fill(ctx.store, "a")
    store, trouble = await troubled(ctx)
    calls = calls_of(store, "a")
    names = [name for name in calls if name.startswith(_READS) and name not in _NO_READS]
    plain = calls_of(ctx.store, "a")
    for name, number in itertools.product(names, (0, 1)):
        wanted = await drive(*plain[name])
        trouble.let_go.clear()
        trouble.hanging, trouble.hangs_searches = {"a"}, True
        reads = [asyncio.ensure_future(drive(*calls[name])) for _ in range(3)]
        try:
            await ctx.eventually(partial(_hang_or_ended, trouble, reads), f"{name} must reach the engine")
            await turns_pass(10)
            reads[number].cancel()
            await turns_pass(10)
        finally:
            trouble.hanging, trouble.hangs_searches = set(), False
            trouble.let_go.set()
        what = f"{name} next to two equal ones, of which number {number + 1} was cancelled,"
        ctx.true(await ctx.ended(reads), f"{what} must end")
        for i, read in enumerate(reads):
            if i != number:
                ctx.true(not read.cancelled(), f"{what} was cancelled, too")
                ctx.true(read.exception() is None, f"{what} raised {read.exception()!r:.200}")
                ctx.equal(read.result(), wanted, what)


async def _hang_or_ended(trouble: Trouble, reads: Sequence[asyncio.Future[Any]]) -> bool:
    return trouble.under_way > 0 or all(read.done() for read in reads)
