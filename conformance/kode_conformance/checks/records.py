"""VAL-1, TC-1: records in the caller's hands: lists inside them, later changes to them, and arguments that are no
records.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from copy import deepcopy
from typing import Any

import msgspec

from kode_conformance.context import Context
from kode_conformance.dimensions import Dimension
from kode_conformance.registry import check
from kode_conformance.values import samples
from kode_conformance.values.free_form_fields import FIELD_USES, Holds
from kode_core.errors import InvalidArgumentError
from kode_core.model import (
    Message,
    TextBlock,
    TodoItem,
    TodoSnapshot,
    ToolCallAuditEntry,
    ToolResultBlock,
)
from kode_core.protocols import ExtendedStore


@check("VAL-1", under=(Dimension.EQUALS,))
async def records_are_the_callers(ctx: Context) -> None:
    """A change inside a record after it was saved, or after it was loaded, does not change the stored record."""
    for number, place in enumerate(place for place in FIELD_USES if place.holds is not Holds.TEXT):
        value: dict[str, Any] = {"list": [1], "dict": {"x": 0}}
        wanted = [place.record(deepcopy(value))]
        await place.save(ctx.store, f"a{number}", place.record(value))
        _spoil(value)
        found = await place.load(ctx.store, f"a{number}")
        ctx.equal(found, wanted, f"{place.name}, after the value that was saved was changed")
        _spoil(found[0])
        found = await place.load(ctx.store, f"a{number}")
        ctx.equal(found, wanted, f"{place.name}, after the record that was loaded was changed")


def _spoil(value: Any) -> None:
    """Change every list and dict inside."""
    if isinstance(value, msgspec.Struct):
        inside = [getattr(value, field) for field in value.__struct_fields__]
    elif isinstance(value, dict):
        inside = list(value.values())
        value["spoiled"] = True
    elif isinstance(value, (list, tuple)):
        inside = list(value)
        if isinstance(value, list):
            value.append("spoiled")
    else:
        return
    for part in inside:
        _spoil(part)


@check("VAL-1", under=(Dimension.ORDERS, Dimension.EQUALS))
async def lists_inside_records_keep_their_order(ctx: Context) -> None:
    """Lists inside records keep their order and what they hold twice: trails, todos, windows, snapshots, blocks."""
    store = ctx.store
    trail = [ToolCallAuditEntry(state, at, note) for state, at, note in (("B", 9, ""), ("A", 5, "x"), ("A", 5, None))]
    calls = [samples.tool_call(0, audit_trail=[*trail, trail[0]])]
    await store.save_tool_call_records("a", calls)
    ctx.equal(await store.load_tool_call_records("a"), calls, "a call whose trail goes back in time")
    items = [TodoItem(id=i, title=i * 2, created_at=at, updated_at=at) for i, at in (("b", 5), ("a", 9), ("c", 1))]
    todos = TodoSnapshot(todos=[*items, items[0].replace(title="again"), items[1]], updated_at=1)
    await store.save_todos("a", todos)
    ctx.equal(await store.load_todos("a"), todos, "todos whose ids are in no order, and repeat")
    texts = [samples.message(i) for i in (1, 0, 1)]
    window = samples.window().replace(messages=texts, events=[samples.event(seq) for seq in (2, 1, 2)])
    await store.save_history_window("a", window)
    ctx.equal(await store.load_history_windows("a"), [window], "a window whose events go back")
    snapshot = samples.snapshot().replace(messages=texts)
    await store.save_snapshot("a", snapshot)
    ctx.equal(await store.list_snapshots("a"), [snapshot], "a snapshot with a message twice")
    record = samples.compression().replace(recovered_files=["b", "a", "b"])
    await store.save_compression_record("a", record)
    ctx.equal(await store.load_compression_records("a"), [record], "a compression with a file twice")
    blocks: list[Any] = [TextBlock("b"), TextBlock("a"), ToolResultBlock("c", [3, 1, 3]), TextBlock("b")]
    await store.save_messages("a", [Message("user", blocks)])
    ctx.equal(await store.load_messages("a"), [Message("user", blocks)], "a message with a block twice")
    info = samples.info("a", lineage=["z", "b", "z"])
    await store.save_info("a", info)
    ctx.equal(await store.load_info("a"), info.replace(message_count=1), "an info whose lineage is in no order")


@check("TC-1", "MSG-1", under=(Dimension.LOOKALIKES,))
async def wrong_records_are_refused(ctx: Context) -> None:
    """Every method that takes records refuses an argument that is no list of the right records, or no record of the
    right kind, and writes nothing.
    """
    await ctx.store.save_messages("a", samples.messages(1))
    for bad in ("text", 5, None, {"role": "user"}, [{"role": "user", "content": "x"}], [samples.tool_call()]):
        await ctx.raises(InvalidArgumentError, ctx.store.save_messages("a", bad), f"save_messages({bad!r:.40})")  # type: ignore[arg-type]
    for wrong in (Message(5, "x"), Message("user", [b"x"]), Message("user", [TextBlock(5)])):  # type: ignore[arg-type, list-item]
        await ctx.raises(InvalidArgumentError, ctx.store.save_messages("a", [wrong]), f"{wrong!r:.60}")
    for none in ("text", 5, None, {}, {"id": "x"}, samples.message()):
        for name, save in _saves(ctx.store, none).items():
            await ctx.raises(InvalidArgumentError, save(), f"{name} of {none!r:.40}")
    ctx.equal(await ctx.store.load_messages("a"), samples.messages(1), "the messages")
    ctx.equal((await ctx.store.list(), await ctx.store.load_todos("b")), ([], None), "agents and todos")


def _saves(store: ExtendedStore, bad: Any) -> dict[str, Callable[[], Awaitable[object]]]:
    """A call of every method that takes records of another kind than *bad*."""
    return {
        "save_tool_call_records": lambda: store.save_tool_call_records("b", [bad]),
        "upsert_tool_call_records": lambda: store.upsert_tool_call_records("b", [bad]),
        "save_turn": lambda: store.save_turn("b", tool_calls=[bad]),
        "append_event": lambda: store.append_event("b", bad),
        "append_events": lambda: store.append_events("b", [bad]),
        "save_todos": lambda: store.save_todos("b", bad),
        "save_history_window": lambda: store.save_history_window("b", bad),
        "save_compression_record": lambda: store.save_compression_record("b", bad),
        "save_recovered_file": lambda: store.save_recovered_file("b", bad),
        "save_media_cache": lambda: store.save_media_cache("b", [bad]),
        "save_snapshot": lambda: store.save_snapshot("b", bad),
        "save_info": lambda: store.save_info("b", bad),
    }
