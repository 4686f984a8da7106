"""VAL-4, QRY-5, MSG-3: large records in the place of small ones, on pages, and written by several at once."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from kode_conformance import samples
from kode_conformance.context import Context
from kode_conformance.dimensions import Dimension
from kode_conformance.fields import Field, Holds, fields_of, full, put
from kode_conformance.kinds import kinds
from kode_conformance.pace import in_time
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.ways import changes_come_back

_D: Final = Dimension
_SIZES: Final = (10, 2**20 + 1, 11)
"""Small, then more than caches, items and packets take, then small again: what did not fit must not remain."""
_MORE: Final = (65_536, 10, 400_001, 2**24, 12)
_HEADROOM: Final = 4096
"""What the rest of a record takes."""


def _rooms(root: type[Any]) -> list[Field]:
    """The fields of the record that take a text of any length, as it is or in a dict."""
    return [f for f in fields_of(root) if f.holds in (Holds.TEXT, Holds.JSON, Holds.DICT)]


def _filled(root: type[Any], field: Field, size: int) -> Any:
    text = "x" * size
    return put(full(root), field, {"k": text} if field.holds is Holds.DICT else text)


@check(
    *("VAL-4", "MSG-1", "TC-1", "TODO-1", "HIS-1", "HIS-2", "MED-1", "SNAP-1", "INFO-2", "QRY-8"),
    under=(_D.LENGTHS, _D.CHANGES, _D.INSTANCES, _D.ORDERS),
)
async def every_size_replaces_another(ctx: Context) -> None:
    """A small record takes the place of a large one and a large one that of a small one, of every kind and by every
    method, whichever field is large: another instance loads the new one, never the one from before.
    """
    most = (ctx.harness.limits.max_payload_bytes or 2**40) - _HEADROOM
    sizes = _SIZES if ctx.settings.tier is Tier.QUICK else (*_SIZES, *_MORE)
    large = {root: ctx.rng.choice(_rooms(root)) for root in kinds()}
    phases = [{root: [_filled(root, field, min(size, most))] for root, field in large.items()} for size in sizes]
    await changes_come_back(ctx, phases, turning=True)


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
    for what, query in (("messages", ctx.store.query_messages), ("tool calls", ctx.store.query_tool_calls)):
        pages: list[list[int]] = []
        cursor: str | None = None
        while len(pages) <= count:
            page: Any = await query(agent_id="a", order="asc", limit=limit, cursor=cursor)
            pages.append([record.position for record in page])
            cursor = page.next_cursor
            if cursor is None:
                break
        wanted = [list(range(limit)), [limit, limit + 1]]
        ctx.equal([one for one in pages if one], wanted, f"positions in pages of {limit} {what} of {size:,} characters")


@check("MSG-3", "TC-3", "EVT-1", "TURN-1", "DUR-3", under=(_D.LENGTHS, _D.COMPANY, _D.INSTANCES))
async def large_records_at_once_stay_together(ctx: Context) -> None:
    """The records of a call that are megabytes together are there in one piece, however many instances write at once,
    by whatever method that adds.
    """
    size = min(_LARGE_TEXT, (ctx.harness.limits.max_payload_bytes or 2**40) // 4)
    stores, per_call = (ctx.store, await ctx.another()), 3 if ctx.harness.patience <= 1 else 2

    def parts(who: int) -> dict[str, Any]:
        numbers = range(who * 10, who * 10 + per_call)
        return {
            "append": [samples.message(text=f"{n}".ljust(size)) for n in numbers],
            "upsert_tool_calls": [samples.tool_call(n, result=f"{n}".ljust(size), audit_trail=[]) for n in numbers],
            "events": [samples.event(n, text=f"{n}".ljust(size)) for n in numbers],
        }

    async def write(store: Any, who: int) -> None:
        given = parts(who)
        await store.append_messages("a", given["append"])
        await store.upsert_tool_call_records("a", given["upsert_tool_calls"])
        await store.append_events("a", given["events"])
        await store.save_turn("b", **given)

    await asyncio.gather(*(write(stores[who % 2], who) for who in range(3)))
    for agent in in_time(ctx, ("a", "b")):
        for what, numbers in (
            ("messages", [int(message.text) for message in await ctx.store.load_messages(agent)]),
            ("tool calls", [int(call.result) for call in await ctx.store.load_tool_call_records(agent)]),
            ("events", [e.bookmark.seq async for e in ctx.store.read_events(agent, after_offset=0)]),
        ):
            order = list(dict.fromkeys(number // 10 for number in numbers))
            wanted = [who * 10 + k for who in order for k in range(per_call)]
            ctx.equal(sorted(order), [0, 1, 2], f"the writers of which there are {what}")
            ctx.equal(numbers, wanted, f"the {what} of three writers, of {size:,} characters each, in one piece")
