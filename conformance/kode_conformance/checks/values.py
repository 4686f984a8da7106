"""VAL: values come back exactly, or are refused before anything is written."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

from kode_conformance.calls.ways import come_back
from kode_conformance.context import Context, Violation, difference
from kode_conformance.dimensions import Dimension
from kode_conformance.instruments.pace import in_time
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_conformance.values.fields import Field, Holds
from kode_conformance.values.free_form_fields import FIELD_USES, FieldUse
from kode_conformance.values.free_form_fields import Holds as Takes
from kode_conformance.values.payloads import PAYLOADS, Payload
from kode_core.errors import InvalidValueError
from kode_core.model import (
    AgentEvent,
    Bookmark,
    Message,
    TextBlock,
    Timeline,
    ToolUseBlock,
    UnknownBlock,
)
from kode_core.protocols import Store

_SMALL = [payload for payload in PAYLOADS if "huge" not in payload.name and "100k" not in payload.name]
_LARGE = [payload for payload in PAYLOADS if payload not in _SMALL]
_RESULT = next(place for place in FIELD_USES if place.name == "ToolCallRecord.result")


async def _round_trip(
    ctx: Context, place: FieldUse, payload: Payload, agent: str, *, reader: Store | None = None
) -> None:
    record = place.record(payload.value)
    await place.save(ctx.store, agent, record)
    found = difference(await place.load(reader or ctx.store, agent), [record])
    if found is not None:
        raise Violation(f"{payload.name} in {place.name}: {found}")


async def _refusal(ctx: Context, place: FieldUse, payload: Payload, agent: str) -> None:
    old = [place.record({"old": [1, 2.0, None]})] if place.replaces else []
    for record in old:
        await place.save(ctx.store, agent, record)
    what = f"{payload.name} in {place.name} must be refused"
    error = await ctx.raises(InvalidValueError, place.save(ctx.store, agent, place.record(payload.value)), what)
    ctx.true(error.path.startswith("$"), f"{what} with the path to it, got {error.path!r}")
    ctx.true(len(str(error)) < 2000, f"{what} in a readable sentence, got {len(str(error))} characters")
    found = await place.load(ctx.store, agent)
    ctx.equal(found, old, f"after {payload.name} was refused in {place.name}, what is there")


_FEW = 5_000
"""Characters of values that stand in all fields of a record at a time."""


@check("VAL-1", under=(Dimension.LOOKALIKES, Dimension.NUMBERS, Dimension.INSTANCES))
async def any_json_value_comes_back_exactly(ctx: Context) -> None:
    """Any JSON value comes back exactly as given, types and key order included, from every free-form field."""
    values = [payload.value for payload in _SMALL if payload.is_json and len(repr(payload.value)) < _FEW]

    def of_field(field: Field) -> Sequence[Any]:
        if field.holds is Holds.JSON:
            return values
        if field.holds is Holds.SPREAD:
            return [{"newer": value} for value in values]
        return [value for value in values if type(value) is dict] if field.holds is Holds.DICT else ()

    await come_back(ctx, of_field, shares=True)


@check(
    "VAL-1",
    needs=Capability.PERSISTENT,
    under=(Dimension.LOOKALIKES, Dimension.NUMBERS, Dimension.LENGTHS, Dimension.INSTANCES),
)
async def exact_values_survive_a_restart(ctx: Context) -> None:
    """Exact values come back exactly after the store was closed and opened again."""
    payloads = [p for p in _SMALL if p.is_json]
    for payload in payloads:
        await _RESULT.save(ctx.store, payload.name, _RESULT.record(payload.value))
    await ctx.reopen()
    for payload in payloads:
        ctx.equal(await _RESULT.load(ctx.store, payload.name), [_RESULT.record(payload.value)], payload.name)


@check("VAL-1", under=(Dimension.LOOKALIKES,))
async def hostile_text_in_typed_fields(ctx: Context) -> None:
    """Strings of typed fields carry U+0000, astral characters, lone surrogates and separators, too."""
    for i, text in enumerate(
        ("a\0b", "\ud83d", "x\udc00", "😀𝒳", "\u2028\u2029\r\n\x1b[1m", "", "\ufeff", "'; DROP TABLE x")
    ):
        message = Message("user", [TextBlock(text)])
        await ctx.store.save_messages(f"m{i}", [message])
        ctx.equal(await ctx.store.load_messages(f"m{i}"), [message], f"the text {text!a}")
        call = samples.tool_call(name=text or "empty", error=text, state=text or "NEW")
        await ctx.store.save_tool_call_records(f"t{i}", [call])
        ctx.equal(await ctx.store.load_tool_call_records(f"t{i}"), [call], f"the tool call with {text!a}")
        file = samples.recovered(content=text)
        await ctx.store.save_recovered_file(f"r{i}", file)
        ctx.equal(await ctx.store.load_recovered_files(f"r{i}"), [file], f"the file with {text!a}")


@check("VAL-2", under=(Dimension.NUMBERS, Dimension.LOOKALIKES))
async def what_json_cannot_carry_is_refused(ctx: Context) -> None:
    """A value that cannot be stored exactly is refused with the record and the path, and the old value stays."""
    refused = [payload for payload in _SMALL if not payload.is_json]
    every = 1 if ctx.settings.tier > Tier.QUICK else 8
    for p, place in in_time(ctx, list(enumerate(place for place in FIELD_USES if place.holds is not Takes.TEXT))):
        for i, payload in enumerate(refused[p % every :: every]):
            await _refusal(ctx, place, payload, f"{p}-{i}")


@check("VAL-2", absence_ok=True, under=(Dimension.NUMBERS, Dimension.LOOKALIKES))
async def a_refused_event_leaves_no_trace(ctx: Context) -> None:
    """An event that cannot be stored exactly is refused, alone or among others, and none of them is appended."""
    for payload in (p for p in _SMALL if not p.is_json):
        bad = Timeline(1, Bookmark(1, 1), AgentEvent("progress", "x", {"value": payload.value}))
        await ctx.raises(InvalidValueError, ctx.store.append_event("a", bad), payload.name)
        await ctx.raises(InvalidValueError, ctx.store.append_events("a", [samples.event(0), bad]), payload.name)
    ctx.equal([e async for e in ctx.store.read_events("a")], [], "the event log")


@check("VAL-2", under=(Dimension.ITEMS,))
async def one_bad_message_among_many(ctx: Context) -> None:
    """One message in a hundred that cannot be stored leaves the whole old list as it was, and is named."""
    old = samples.messages(3)
    await ctx.store.save_messages("a", old)
    bad = samples.messages(100)
    bad[57] = Message("assistant", [ToolUseBlock("c", "t", {"rows": [1, {"x": float("nan")}]})])
    error = await ctx.raises(InvalidValueError, ctx.store.save_messages("a", bad), "a NaN in message 57")
    ctx.true("57" in str(error) and "rows[1].x" in str(error), f"the error names message and path, got: {error}")
    ctx.equal(await ctx.store.load_messages("a"), old, "the old list")


@check("VAL-2", "MSG-1", under=(Dimension.CHANGES,))
async def a_change_inside_a_saved_message_is_seen(ctx: Context) -> None:
    """A value changed in place inside a message that was saved before is saved, or refused, as any other."""
    content: dict[str, Any] = {"n": None}
    messages = [samples.message(0), Message("assistant", [ToolUseBlock("c", "t", content)]), samples.message(2)]
    await ctx.store.save_messages("a", messages)
    content["n"] = [1]
    await ctx.store.save_messages("a", messages)
    loaded = await ctx.store.load_messages("a")
    ctx.equal(loaded[1], Message("assistant", [ToolUseBlock("c", "t", {"n": [1]})]), "after a change in place")
    for bad in (float("nan"), {1, 2}, b"x"):
        content["n"] = bad
        await ctx.raises(InvalidValueError, ctx.store.save_messages("a", messages), f"{bad!r} put in place")
    ctx.equal(await ctx.store.load_messages("a"), loaded, "after refusals")


@check("VAL-3", under=(Dimension.NUMBERS,))
async def falsy_is_not_absent(ctx: Context) -> None:
    """0, False, "" and empty containers are values; only None is absent."""
    for i, value in enumerate((0, 0.0, -0.0, False, "", [], {})):
        call = samples.tool_call(result=value, input=value, error="", started_at=0, completed_at=0, duration_ms=0)
        await ctx.store.save_tool_call_records(f"a{i}", [call])
        ctx.equal(await ctx.store.load_tool_call_records(f"a{i}"), [call], f"a call with {value!r}")
    call = samples.tool_call(result=None, error=None, is_error=None, started_at=None, duration_ms=None)
    await ctx.store.save_tool_call_records("none", [call])
    ctx.equal(await ctx.store.load_tool_call_records("none"), [call], "a call with None")


@check("VAL-4", "QRY-8", under=(Dimension.LENGTHS, Dimension.INSTANCES))
async def a_megabyte_in_any_field(ctx: Context) -> None:
    """A string of one megabyte is stored in every free-form field; once the write has ended, every instance has it."""
    other = await ctx.another()
    places = ctx.rng.sample(FIELD_USES, 12 if ctx.settings.tier is Tier.QUICK else len(FIELD_USES))
    for i, place in enumerate(in_time(ctx, places)):
        value = {"s": "x" * 1_000_000} if place.holds is Takes.DICT else "y" * 1_000_000
        await _round_trip(ctx, place, Payload("one megabyte", value), f"{i}", reader=other if i % 3 else ctx.store)
    file = samples.recovered(content="z" * 1_000_000)
    await ctx.store.save_recovered_file("a", file)
    ctx.equal(await other.load_recovered_files("a"), [file], "a recovered file of one megabyte, in another instance")


@check("VAL-4", tier=Tier.STANDARD, under=(Dimension.ITEMS, Dimension.LENGTHS))
async def large_values_come_back(ctx: Context) -> None:
    """Values of twenty megabytes and of a hundred thousand elements are stored."""
    for payload in _LARGE:
        await _round_trip(ctx, _RESULT, payload, payload.name)


@check("VAL-4", tier=Tier.STANDARD, under=(Dimension.LENGTHS,))
async def a_list_of_twenty_megabytes(ctx: Context) -> None:
    """A message list of twenty megabytes is saved and loaded."""
    big = [samples.message(text=f"{i} " + "x" * 200_000) for i in range(100)]
    await ctx.store.save_messages("a", big)
    ctx.equal(await ctx.store.load_messages("a"), big, "twenty megabytes of messages")


@check("VAL-5", under=(Dimension.CLOCKS,))
async def times_are_exact_milliseconds(ctx: Context) -> None:
    """Times are kept to the millisecond, whatever the time zone of the process."""
    before = os.environ.get("TZ")
    try:
        for zone in ("America/New_York", "Asia/Kolkata", "UTC"):
            os.environ["TZ"] = zone
            time.tzset()
            agent = f"a-{zone.lower().replace('/', '-')}"
            await ctx.store.save_info(agent, samples.info(agent, created_at=samples.T0 + 1))
            info = await ctx.store.load_info(agent)
            ctx.equal(info and info.created_at, samples.T0 + 1, f"created_at in {zone}")
    finally:
        os.environ.pop("TZ", None)
        if before is not None:
            os.environ["TZ"] = before
        time.tzset()


@check("VAL-6", under=(Dimension.CHANGES,))
async def unknown_fields_and_types_survive(ctx: Context) -> None:
    """Fields, content blocks and event types of a newer version survive a load and a save."""
    messages = [
        Message("user", [TextBlock("hi", extra={"cache_control": {"ttl": 0}})], extra={"priority": [1, None]}),
        Message("assistant", [UnknownBlock({"payload": {"z": 1}, "type": "hologram", "a": None})]),
        Message("tool", [TextBlock("a role of tomorrow")]),
    ]
    await ctx.store.save_messages("a", messages)
    loaded = await ctx.store.load_messages("a")
    ctx.equal(loaded, messages, "messages of a newer version")
    await ctx.store.save_messages("b", loaded)
    ctx.equal(await ctx.store.load_messages("b"), messages, "the same, saved again")
    event = Timeline(0, Bookmark(0, 1), AgentEvent("monitor", "quantum_leap", {"bookmark": {"seq": 0}, "": []}))
    await ctx.store.append_event("a", event)
    ctx.equal([e async for e in ctx.store.read_events("a")], [event], "an event of a newer version")
    info = samples.info("a", extra={"quota": {"tokens": 5}})
    await ctx.store.save_info("a", info)
    ctx.equal((await ctx.store.load_info("a")), info.replace(message_count=3), "info of a newer version")


@check("VAL-6", under=(Dimension.CHANGES, Dimension.ORDERS))
async def every_block_type_comes_back(ctx: Context) -> None:
    """A block of every type of the SDK comes back as it was, also in the place of another."""
    messages = samples.rich_messages()
    for what in ("messages with every block type", "the same in the reverse order, each in the place of another"):
        await ctx.store.save_messages("a", messages)
        ctx.equal(await ctx.store.load_messages("a"), messages, what)
        messages = messages[::-1]
