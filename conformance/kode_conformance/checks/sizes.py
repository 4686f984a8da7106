"""VAL-4, QRY-5, MSG-3: large records in the place of small ones, on pages, and written by several at once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from kode_conformance.calls.ways import changes_come_back
from kode_conformance.checks.many_reads import in_pages
from kode_conformance.context import Context
from kode_conformance.dimensions import Dimension
from kode_conformance.instruments.pace import in_time
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_conformance.values.fields import Field, Holds, fields_of, full, put
from kode_conformance.values.kinds import kinds
from kode_conformance.values.many import see_pieces

_D: Final = Dimension
_SIZES: Final = (10, 2**22 + 1, 11)
"""Small, then more than caches, items and packets take, then small again: the large record must not remain."""
_MORE: Final = (65_536, 10, 400_001, 2**24, 12)
_HEADROOM: Final = 4096
"""The room that the rest of a record takes."""


def _rooms(root: type[Any]) -> list[Field]:
    """The fields of the record that take a text of any length, as it is or in a dict."""
    return [f for f in fields_of(root) if f.holds in (Holds.TEXT, Holds.JSON, Holds.DICT)]


def _filled(root: type[Any], field: Field, size: int) -> Any:
    text = "x" * size
    return put(full(root), field, {"k": text} if field.holds is Holds.DICT else text)


@check(
    *("VAL-4", "MSG-1", "TC-1", "TODO-1", "HIS-1", "HIS-2", "MED-1", "SNAP-1", "INFO-2", "QRY-8"),
    tier=Tier.STANDARD,
    under=(_D.LENGTHS, _D.CHANGES, _D.INSTANCES, _D.ORDERS),
)
async def every_size_replaces_another(ctx: Context) -> None:
    """A small record replaces a large one and a large one a small one, of every kind, by every method and whichever
    field is large: another instance loads the new record, never the old one.
    """
    most = (ctx.harness.limits.max_payload_bytes or 2**40) - _HEADROOM
    sizes = _SIZES if ctx.settings.tier is Tier.QUICK else (*_SIZES, *_MORE)
    large = {root: ctx.rng.choice(_rooms(root)) for root in kinds()}
    phases = [{root: [_filled(root, field, min(size, most))] for root, field in large.items()} for size in sizes]
    await changes_come_back(ctx, phases, turning=True, large=True)


_LARGE_TEXT: Final = 600_000
_PAGE: Final = 10


@check("QRY-5", "QRY-4", "QRY-6", "VAL-4", needs=Capability.QUERYABLE, under=(_D.LENGTHS, _D.ITEMS))
async def pages_of_large_records_are_full(ctx: Context) -> None:
    """A page is as long as its limit says however large its records are, and the last one alone is shorter."""
    size = min(_LARGE_TEXT, (ctx.harness.limits.max_payload_bytes or 2**40) // 2)
    count = _PAGE + 2 if ctx.harness.patience <= 1 else 3
    limit = count - 2
    texts = [f"{i}".ljust(size, "x") for i in range(count)]
    await ctx.store.save_messages("a", [samples.message(text=text) for text in texts])
    calls = [samples.tool_call(i, result=text, audit_trail=[]) for i, text in enumerate(texts)]
    await ctx.store.save_tool_call_records("a", calls)
    for what in ("messages", "tool_calls"):
        found = await in_pages(ctx.store, f"query_{what}", agent_id="a", order="asc", limit=limit)
        places = [record.position for record in found]
        ctx.equal(places, list(range(count)), f"positions in pages of {limit} {what} of {size:,} characters")


@check("MSG-3", "TC-3", "EVT-1", "TURN-1", "DUR-3", under=(_D.LENGTHS, _D.COMPANY, _D.INSTANCES))
async def large_records_at_once_stay_together(ctx: Context) -> None:
    """A call's records stay together though they are megabytes, however many instances write at once, by every method
    that adds.
    """
    size = min(_LARGE_TEXT, (ctx.harness.limits.max_payload_bytes or 2**40) // 4)
    stores, per_call = (ctx.store, await ctx.another()), 3 if ctx.harness.patience <= 1 else 2
    pieces = [range(who * 10, who * 10 + per_call) for who in range(3)]

    def parts(numbers: Sequence[int]) -> dict[str, Any]:
        return {
            "append": [samples.message(text=f"{n}".ljust(size)) for n in numbers],
            "upsert_tool_calls": [samples.tool_call(n, result=f"{n}".ljust(size), audit_trail=[]) for n in numbers],
            "events": [samples.event(n, text=f"{n}".ljust(size)) for n in numbers],
        }

    async def write(store: Any, numbers: Sequence[int]) -> None:
        given = parts(numbers)
        await store.append_messages("a", given["append"])
        await store.upsert_tool_call_records("a", given["upsert_tool_calls"])
        await store.append_events("a", given["events"])
        await store.save_turn("b", **given)

    await asyncio.gather(*(write(stores[who % 2], piece) for who, piece in enumerate(pieces)))
    for agent in in_time(ctx, ("a", "b")):
        for what, numbers in (
            ("messages", [int(message.text) for message in await ctx.store.load_messages(agent)]),
            ("tool calls", [int(call.result) for call in await ctx.store.load_tool_call_records(agent)]),
            ("events", [e.bookmark.seq async for e in ctx.store.read_events(agent, after_offset=0)]),
        ):
            see_pieces(ctx, numbers, pieces, f"{what} of {size:,} characters, of three calls at once")
