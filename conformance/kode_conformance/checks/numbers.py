"""MSG, TC, HIS, MED, SNAP, VAL-4: lists and documents of any number, and changes at the n-th place."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

from kode_conformance.context import Context
from kode_conformance.dimensions import Dimension, counts
from kode_conformance.histories.model import StoreModel
from kode_conformance.instruments.pace import in_time, sizes_in_time
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_conformance.values.many import DOCUMENTS, LISTS, Documents, Listing, at_once, same, views

_LONG: Final = 10_001
_FAST_S: Final = 1.0
"""A store that writes the second largest number of records in this time also gets the largest one at quick."""


def _numbers(ctx: Context, *, fast: bool = False) -> Iterator[int]:
    """The numbers of items to write, as far as there is time for them; the largest at quick where a store is *fast*."""
    numbers = counts(ctx.settings.tier, most=_LONG)
    if ctx.settings.tier is Tier.QUICK and fast:
        numbers = [*numbers, _LONG]
    started = time.monotonic()
    for number in sizes_in_time(ctx, numbers):
        if number >= _LONG and ctx.settings.tier is Tier.QUICK and time.monotonic() - started > _FAST_S:
            return
        yield number


# --- lists ------------------------------------------------------------------------------------------------------------


@check(
    *("MSG-1", "MSG-2", "TC-1", "TC-2", "MED-1", "VAL-4"),
    under=(Dimension.ITEMS, Dimension.EQUALS, Dimension.CHANGES, Dimension.INSTANCES),
)
async def lists_of_any_length_are_replaced(ctx: Context) -> None:
    """Whatever call replaces a list, with however many records, all of them are loaded in their order, in any instance;
    so are the records of the next list, which is longer, of other contents, shorter, one long, or empty, though
    hundreds of them have the id or the contents of others.
    """
    stores = [ctx.store, await ctx.another()]
    ways = [(listing, name, call) for listing in LISTS for name, call in listing.replaces.items()]
    for n, number in enumerate(_numbers(ctx)):
        for way, (listing, name, call) in enumerate(ways):
            make = (listing.items, listing.repeated)[(n + way) % 2]
            wanted = make(number, "!" if (n + way) // 2 % 2 else "")
            await call(stores[way % 2], name, wanted)
            found = await listing.load(stores[n % 2], name)
            same(ctx, found, wanted, f"the {listing.name} after {name} of {number}")
    for n, (listing, name, call) in enumerate(ways):
        before = await listing.load(ctx.store, name)
        for keep in (len(before) - 1, (101, 100, 1)[n % 3], 0):
            if 0 <= keep <= len(before):
                await call(ctx.store, name, before[:keep])
                what = f"the {listing.name} after {name} of {keep} on top of more"
                same(ctx, await listing.load(ctx.store, name), before[:keep], what)


@check("MSG-3", "TC-3", "TURN-1", "VAL-4", tier=Tier.STANDARD, under=(Dimension.ITEMS, Dimension.INSTANCES))
async def lists_grow_to_any_length(ctx: Context) -> None:
    """Whatever call adds to a list, one record or as many as each usual limit, the old records stay and the new ones
    are behind them, in their order.
    """
    other = await ctx.another()
    ways = [(listing, name, call) for listing in LISTS for name, call in listing.adds.items()]
    for number in _numbers(ctx, fast=True):
        for listing, name, call in ways[:1] if number > 1001 and ctx.settings.tier is Tier.QUICK else ways:
            agent, records = f"{name} {number}", listing.items(number + 2)
            for store, part in ((ctx.store, records[:1]), (other, records[1:-1]), (ctx.store, records[-1:])):
                await call(store, agent, part)
            found = await listing.load(other, agent)
            same(ctx, found, records, f"the {listing.name} after {name} of one, of {number} at once, and of one")


_LEFT: Final = (1000, 512, 500, 300, 256, 200, 128, 100, 64, 50, 25, 10, 1, 0)
"""Lengths that pages, batches and buckets of messages end at, descending."""


@check("MSG-11", "VAL-4", needs=Capability.EXTENDED, under=(Dimension.ITEMS, Dimension.CHANGES, Dimension.INSTANCES))
async def lists_are_cut_to_any_length(ctx: Context) -> None:
    """Truncate and pop remove just the messages behind the length that is to stay, and return their number, or all of
    them: more than five thousand in one call, and to each length that batches and buckets end at.
    """
    stores, is_slow = (ctx.store, await ctx.another()), ctx.harness.patience > 1
    for name, there in (("truncate_messages", 601 if is_slow else 6102), ("pop_messages", 301 if is_slow else 1101)):
        every = samples.messages(there)
        await ctx.store.save_messages(name, every)
        for n, left in enumerate(in_time(ctx, (left for left in _LEFT if left < len(every)))):
            what = f"{name} of {there} messages, of which {left} are left,"
            if name == "pop_messages":
                popped = list(await stores[n % 2].pop_messages(name, there - left))
                same(ctx, popped, every[left:there], f"what {what} returned")
            else:
                ctx.equal(await stores[n % 2].truncate_messages(name, left), there - left, f"what {what} returned")
            same(ctx, await stores[n // 2 % 2].load_messages(name), every[:left], f"the messages after {what}")
            there = left


_PLACES: Final = (0, 1, 100, 500, 1000)


@check("MSG-1", "TC-1", tier=Tier.STANDARD, under=(Dimension.ITEMS, Dimension.CHANGES))
async def one_is_changed_among_many(ctx: Context) -> None:
    """In a list of 1,001 one record is replaced, inserted, removed or moved to the end, at the first place, at the
    last, and around each usual limit: the others stay where they are, and so does their order.
    """
    for listing in LISTS[:2]:
        was, calls = listing.items(1001), list(listing.replaces.items())
        await calls[0][1](ctx.store, "a", was)
        for n, place in enumerate(in_time(ctx, _PLACES)):
            name, call = calls[n % 2]
            for i, (change, wanted) in enumerate(_changed(listing, was, place).items()):
                if place == 1000 or i in (n % 4, 2 * (n % 2)):
                    await call(ctx.store, "a", wanted)
                    found = await listing.load(ctx.store, "a")
                    same(ctx, found, wanted, f"{listing.name} after {name} with number {place + 1} {change}")


def _changed(listing: Listing, was: list[Any], place: int) -> dict[str, list[Any]]:
    new, before, behind = listing.item(5000 + place), was[:place], was[place + 1 :]
    return {
        "replaced": [*before, new, *behind],
        "inserted": [*before, new, *was[place:]],
        "removed": [*before, *behind],
        "moved to the end": [*before, *behind, was[place]],
    }


@check("TC-3", "TURN-1", under=(Dimension.ITEMS, Dimension.EQUALS, Dimension.INSTANCES))
async def upserts_find_the_last_of_an_id_among_many(ctx: Context) -> None:
    """Among 1,001 tool calls, whose ids repeat far apart, an upsert replaces the last call of an id at whatever place
    it is, adds calls with new ids, and does both in one call of hundreds.
    """
    model, other = StoreModel(), await ctx.another()
    calls = [samples.tool_call(i % 700 if i % 3 else i, audit_trail=[], result=i) for i in range(1001)]
    await ctx.store.save_tool_call_records("a", calls)
    model.save_tool_call_records("a", calls)
    single = [samples.tool_call(i, audit_trail=[], result=f"alone {i}") for i in (0, 1, 299, 300, 699, 999, 5000)]
    many = [samples.tool_call((i * 7) % 1100, audit_trail=[], result=f"many {i}") for i in range(501)]
    twice = [samples.tool_call(n, audit_trail=[], result=f"twice {n} {i}") for i in range(2) for n in (1, 5001, 999)]
    groups: list[list[Any]] = [*([call] for call in single), many, twice]
    for i, group in enumerate(in_time(ctx, groups)):
        store = (ctx.store, other)[i % 2]
        if i % 3 == 2:
            await store.save_turn("a", upsert_tool_calls=group)
        else:
            await store.upsert_tool_call_records("a", group)
        model.upsert_tool_call_records("a", group)
        what = f"the tool calls after an upsert of {len(group)}, the first being {group[0].id}"
        same(ctx, await ctx.store.load_tool_call_records("a"), model.agents["a"].tool_calls, what)


# --- documents --------------------------------------------------------------------------------------------------------


@check(
    "HIS-1",
    "HIS-2",
    "SNAP-1",
    tier=Tier.STANDARD,
    under=(Dimension.ITEMS, Dimension.ORDERS, Dimension.EQUALS, Dimension.INSTANCES),
)
async def documents_of_any_number(ctx: Context) -> None:
    """However many windows, compressions, recovered files and snapshots there are, all are loaded in their order,
    though hundreds have one time; so they are after some were saved again.
    """
    other = await ctx.another()
    pending = {documents.name: iter(documents.items(1001)) for documents in DOCUMENTS}
    there: dict[str, list[Any]] = {documents.name: [] for documents in DOCUMENTS}
    for number in sizes_in_time(ctx, (0, 1, 101, 501, 1001)):
        for documents in DOCUMENTS:
            known = there[documents.name]
            new = [next(pending[documents.name]) for _ in range(number - len(known))]
            await at_once(documents.save(ctx.store, "a", record) for record in new)
            known += new
            await _see_documents(ctx, documents, other, known, f"after {number} were saved")
    for documents in DOCUMENTS:
        again = there[documents.name][::100]
        await at_once(documents.save(ctx.store, "a", record) for record in again)
    async for where, store in views(ctx, other):
        for documents in DOCUMENTS:
            await _see_documents(ctx, documents, store, there[documents.name], f"after some were saved again{where}")
    for snapshot in there["snapshots"][:: max(1, len(there["snapshots"]) // 7)]:
        found = await ctx.store.load_snapshot("a", snapshot.id)
        ctx.equal(found, snapshot, f"the snapshot {snapshot.id} of {len(there['snapshots'])}")


async def _see_documents(ctx: Context, documents: Documents, store: Any, saved: Sequence[Any], when: str) -> None:
    found = await documents.load(store, "a")
    same(ctx, found, sorted(saved, key=documents.order), f"the {documents.name} of an agent {when}")


@check("HIS-1", "HIS-2", "SNAP-1", under=(Dimension.ITEMS, Dimension.CHANGES))
async def a_document_moves_among_many(ctx: Context) -> None:
    """When one of 101 documents is saved again with another time, it is at its new place, once: before all others,
    behind all, or among the documents of the same time.
    """
    for documents in in_time(ctx, DOCUMENTS):
        known = {documents.order(record)[-1]: record for record in documents.items(101)}
        if documents.name == "recovered files":  # their time is part of their key
            known = {(file.path, file.timestamp): file for file in documents.items(101)}
        await at_once(documents.save(ctx.store, "a", record) for record in known.values())
        for i, (key, record) in enumerate(list(known.items())[:100:12]):
            if documents.name == "recovered files":
                known[key] = record.replace(content=f"again {i}")
            else:
                name = "created_at" if documents.name == "snapshots" else "timestamp"
                known[key] = record.replace(**{name: samples.T0 + (-9, 99, 3)[i % 3]})
            await documents.save(ctx.store, "a", known[key])
            await _see_documents(ctx, documents, ctx.store, list(known.values()), f"after {key} was saved again")
