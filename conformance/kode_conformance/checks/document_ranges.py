"""DOC-4: ranges and pages of documents."""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from kode_conformance.checks.own_documents import is_key
from kode_conformance.context import Context
from kode_conformance.dimensions import LOOKALIKES, Dimension, counts, twins
from kode_conformance.histories.answers import keys_of_range
from kode_conformance.instruments.costs import memory_of
from kode_conformance.instruments.pace import in_time, sizes_in_time
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_core.errors import InvalidArgumentError
from kode_core.model import DeleteDocument, DocumentWrite, PutDocument
from kode_core.protocols import ExtendedStore

_N = Capability.EXTENDED | Capability.DOCUMENTS
_D = Dimension
_LAST: Final = "\U0010ffff"
_PAGES: Final = 3000


async def put_all(store: ExtendedStore, agent_id: str, collection: str, keys: Iterable[str], value: Any = None) -> None:
    """Put a document under each key; its value is the key unless it is given."""
    puts = [PutDocument(collection, key, key if value is None else value) for key in keys]
    for start in range(0, len(puts), 100):
        await store.write_documents(agent_id, puts[start : start + 100])


async def pages_of(
    ctx: Context, listing: Callable[..., Awaitable[Any]], limit: int, told: str, **given: Any
) -> AsyncIterator[list[Any]]:
    """One page after the other; all but the last are as long as the limit."""
    cursor: str | None = None
    for _ in range(_PAGES):
        page = await listing("a", "c", limit=limit, cursor=cursor, **given)
        cursor = page.next_cursor
        ctx.true(len(page) == limit or (cursor is None and len(page) < limit), f"{told}: a page of {len(page)}")
        ctx.equal(page.left_out, (), f"{told}: what a page left out")
        yield list(page)
        if cursor is None:
            return
    ctx.true(False, f"{told}: the pages do not end")


# --- ranges -----------------------------------------------------------------------------------------------------------

_ORDERED: Final = (
    *("a", "a\x01", "a ", "a/", "a/b", "a/b/c", "a0", "aa", "ab", "a~", "a\x7f", "a\x80", "aé", "a\u07ff", "a\u0800"),
    *("a\ud7ff", "a\ue000", "a\uffff", "a\U00010000", "a😀", f"a{_LAST}", f"a{_LAST}{_LAST}", f"a{_LAST}b", "b"),
    *("\x01", " ", "!", "/", "0", "~", "\x7f", "\x80", "é", "e\u0301", "\uffff", "😀", _LAST, f"{_LAST}a", _LAST * 3),
)
"""Keys that orders by UTF-16, by a collation or by separators put elsewhere."""


def _ranges() -> Iterator[dict[str, Any]]:
    """Arguments of ranges, each alone and combined."""
    bounds = ("a", "a/", "a\uffff", "a😀", "b", "\uffff", _LAST, "\x01", "A", "zz")
    prefixes = ("", "a", "a/", "a/b", "\uffff", "😀", _LAST, f"a{_LAST}", "aé", "e", "%", "_", "nothing")
    yield {}
    yield from ({"prefix": prefix} for prefix in prefixes)
    yield from ({"start": bound} for bound in bounds)
    yield from ({"stop": bound} for bound in bounds)
    yield from ({"start": start, "stop": stop} for start, stop in itertools.product(bounds[::2], bounds))
    for prefix, bound in itertools.product(prefixes[:8], bounds):
        yield from ({"prefix": prefix, "start": bound}, {"prefix": prefix, "stop": bound})
    yield {"prefix": "a", "start": "a/", "stop": "a😀"}


@check("DOC-4", needs=_N, under=(_D.LOOKALIKES, _D.TWINS, _D.ORDERS, _D.INSTANCES, _D.ITEMS))
async def ranges_are_by_code_point(ctx: Context) -> None:
    """The documents, their keys and the stream of a range are in the order of code points, or in reverse, in every
    instance. Collections and agents with similar names add nothing.
    """
    stores = [ctx.store, await ctx.another()]
    keys = sorted({key for key in (*_ORDERED, *twins("a"), *LOOKALIKES) if is_key(key)})
    for agent_id, collection in (("b", "c"), ("a", "C"), ("a", "c."), ("a", "c-"), ("a", "cc"), ("a", "b")):
        await put_all(ctx.store, agent_id, collection, ("a", "aa", "a/b", _LAST), "of another")
    shuffled = list(keys)
    ctx.rng.shuffle(shuffled)
    await put_all(ctx.store, "a", "c", shuffled)
    every = 3 if ctx.settings.tier is Tier.QUICK else 1
    for number, given in enumerate(in_time(ctx, itertools.islice(_ranges(), 0, None, every))):
        for reverse in (False, True):
            store, wanted = stores[(number + reverse) % 2], keys_of_range(keys, **given, reverse=bool(reverse))
            told = f"{given}, reverse={reverse}"
            how = {**given, "reverse": reverse}
            ctx.equal(list(await store.list_document_keys("a", "c", limit=5000, **how)), wanted, f"keys of {told}")
            found = await store.list_documents("a", "c", limit=5000, **how)
            pairs = [(key, key) for key in wanted]
            ctx.equal([(one.key, one.value) for one in found], pairs, f"documents of {told}")
            streamed = [(one.key, one.value) async for one in store.iter_documents("a", "c", **how)]
            ctx.equal(streamed, pairs, f"the stream of {told}")
            paged = [key async for page in pages_of(ctx, store.list_document_keys, 7, told, **how) for key in page]
            ctx.equal(paged, wanted, f"pages of {told}")


@check("DOC-4", "QRY-4", needs=_N, under=(_D.ITEMS, _D.NUMBERS, _D.INSTANCES))
async def pages_give_every_document_once(ctx: Context) -> None:
    """However many documents a collection has, pages of any limit, in both directions and continued in another
    instance, give each once, with the version and time of a load; a limit of 0 gives none.
    """
    other = await ctx.another()
    put = 0
    for count in sizes_in_time(ctx, counts(ctx.settings.tier, most=1025)):
        keys = [f"k{i:05}" for i in range(count)]
        await put_all(ctx.store, "a", "c", keys[put:])
        put = max(put, count)
        for limit in sorted({max(1, count - 1), max(1, count), count + 1, 7, 100, 10_000}):
            if count > 300 and limit < 100:
                continue
            for reverse in (False, True):
                told, found = f"pages of {limit} of {count}, reverse={reverse}", list[Any]()
                listing = functools.partial(_alternating, itertools.cycle((ctx.store, other)))
                async for page in pages_of(ctx, listing, limit, told, reverse=reverse):
                    found += page
                ctx.equal([one.key for one in found], keys[:: -1 if reverse else 1], told)
        streamed = [one async for one in other.iter_documents("a", "c")]
        ctx.equal(streamed, found[::-1], f"the stream of {count}")
        for one in streamed[:: max(1, count // 3)]:
            ctx.equal(await ctx.store.load_document("a", "c", one.key), one, f"{one.key} in a list and alone")
        none = await ctx.store.list_documents("a", "c", limit=0)
        ctx.equal((list(none), none.next_cursor), ([], None), f"a page of limit 0 of {count}")


async def _alternating(stores: Iterator[ExtendedStore], *args: Any, **given: Any) -> Any:
    return await next(stores).list_documents(*args, **given)


@check("DOC-4", "OPS-17", needs=_N, under=(_D.NUMBERS, _D.LOOKALIKES, _D.CHANGES))
async def wrong_ranges_are_refused(ctx: Context) -> None:
    """A limit, bound, direction or cursor that is none, and the cursor of another range, are refused."""
    await put_all(ctx.store, "a", "c", [f"k{i}" for i in range(10)])
    for listing in (ctx.store.list_documents, ctx.store.list_document_keys):
        wrong: list[dict[str, Any]] = [
            *({"limit": limit} for limit in (-1, 10_001, None, "5", 1.0, True)),
            *({"cursor": cursor} for cursor in ("", "x", "k5", 5, b"x")),
            *({"start": bound} for bound in ("", 5, "\ud800", "a\0", "x" * 401)),
            *({"stop": bound} for bound in ("", 5, "\ud800", "a\0", "x" * 401)),
            *({"prefix": prefix} for prefix in (None, 5, "\ud800", "a\0", "x" * 401)),
            *({"reverse": reverse} for reverse in (None, 1, "yes")),
        ]
        for given in wrong:
            await ctx.raises(InvalidArgumentError, listing("a", "c", **given), f"{listing.__name__} with {given}")
        cursor = (await listing("a", "c", limit=3)).next_cursor or ""
        ctx.true(cursor, "a page of 3 of 10 must have a cursor")
        for other in ({"prefix": "k"}, {"reverse": True}, {"start": "k1"}, {"stop": "k9"}):
            call = listing("a", "c", limit=3, cursor=cursor, **other)
            await ctx.raises(InvalidArgumentError, call, f"a cursor without {other}")
        for forged in (cursor[:-1], cursor[1:], cursor * 2, cursor[::-1], cursor.swapcase(), f"{cursor}é"):
            await ctx.raises(InvalidArgumentError, listing("a", "c", limit=3, cursor=forged), "a forged cursor")
        await ctx.raises(InvalidArgumentError, listing("a", "d", cursor=cursor), "the cursor of another collection")
        await ctx.raises(InvalidArgumentError, listing("b", "c", cursor=cursor), "the cursor of another agent")


@check("DOC-4", needs=_N, tier=Tier.STANDARD, under=(_D.COMPANY, _D.CHANGES, _D.INSTANCES))
async def pages_while_others_write_have_no_gaps(ctx: Context) -> None:
    """While others put and delete documents before, at and behind the place of a page, in either direction, each
    document that stays is given once and in order, by pages and by streams.
    """
    other = await ctx.another()
    stays = [f"k{i:03}" for i in range(0, 120, 2)]
    for limit, reverse in in_time(ctx, itertools.product((7, 2, 40), (False, True))):
        await put_all(ctx.store, "a", "c", stays)
        await put_all(ctx.store, "a", "c", [f"k{i:03}x" for i in range(0, 120, 3)])
        found = list[str]()
        async for page in pages_of(ctx, ctx.store.list_document_keys, limit, "pages", reverse=reverse):
            found += page
            at = found[-1] if found else stays[0]
            gone = [key for key in (*page, f"k{len(found):03}x", f"k{119 - len(found):03}x") if key not in stays]
            news = [f"{at[:4]}\x01{len(found)}", f"a{len(found)}", f"z{len(found)}", f"{at[:3]}{len(found)}n"]
            writes: list[DocumentWrite] = [DeleteDocument("c", key) for key in dict.fromkeys(gone)]
            writes += [PutDocument("c", key, 1) for key in dict.fromkeys(news) if key not in gone]
            if len(found) < 200:
                await other.write_documents("a", [*writes, PutDocument("c", stays[len(found) % 60], "again")])
        told = f"pages of {limit}, reverse={reverse}"
        ctx.equal(found, sorted(set(found), reverse=reverse), f"the order of {told}")
        ctx.equal([key for key in found if key in stays], stays[:: -1 if reverse else 1], f"what stays in {told}")
    for reverse in (False, True):
        streamed = list[str]()
        async for one in ctx.store.iter_documents("a", "c", prefix="k", reverse=reverse):
            streamed.append(one.key)
            if len(streamed) % 15 == 0:
                await other.put_document("a", "c", f"{one.key[:4]}\x02", 1)
                await other.delete_document("a", "c", f"{one.key[:4]}\x01")
        ctx.equal(streamed, sorted(set(streamed), reverse=reverse), f"the order of a stream, reverse={reverse}")
        left = [key for key in streamed if key in stays]
        ctx.equal(left, stays[:: -1 if reverse else 1], f"what stays in a stream, reverse={reverse}")


_TRIES: Final = 4
_WAIT_S: Final = 0.5
_LONG: Final = {Tier.QUICK: 600, Tier.STANDARD: 3000, Tier.THOROUGH: 20_000}
_READS: Final[Mapping[str, Callable[[ExtendedStore, str], Awaitable[object]]]] = {
    "load_document": lambda store, agent_id: store.load_document(agent_id, "c", "k00050"),
    "list_documents": lambda store, agent_id: store.list_documents(agent_id, "c", limit=5, start="k00050"),
    "list_documents in reverse": lambda store, agent_id: store.list_documents(agent_id, "c", limit=5, reverse=True),
    "list_documents of a prefix": lambda store, agent_id: store.list_documents(agent_id, "c", prefix="k0005"),
    "list_document_keys": lambda store, agent_id: store.list_document_keys(agent_id, "c", limit=90),
    "put_document": lambda store, agent_id: store.put_document(agent_id, "c", "k00051", 1),
    "delete_document": lambda store, agent_id: store.delete_document(agent_id, "c", "k00052"),
    "iter_documents to its first": lambda store, agent_id: _first_of(store, agent_id),
}
"""Calls that need a few documents of a collection, or their keys alone."""


async def _first_of(store: ExtendedStore, agent_id: str) -> None:
    stream: Any = store.iter_documents(agent_id, "c", start="k00040")
    await anext(stream, None)
    await stream.aclose()


@check("DOC-4", "DOC-1", needs=_N, under=(_D.COSTS, _D.ITEMS, _D.INSTANCES))
async def a_page_of_documents_costs_what_it_contains(ctx: Context) -> None:
    """A page of a long collection, the first document of its stream, and a load, a put or a delete of one take no more
    memory than of a short one, in an instance that has not read the collection before.
    """
    many, size = _LONG[ctx.settings.tier], 4000
    for agent_id, count in (("warm", 60), ("short", 100), ("long", many)):
        await put_all(ctx.store, agent_id, "c", [f"k{i:05}" for i in range(count)], "x" * size)
    whole = many * size
    for name, call in _READS.items():
        fresh = await ctx.another()
        await call(fresh, "warm")
        for _ in range(_TRIES):  # a store may finish a large write in the background, or at the first read
            short, long = [await memory_of(functools.partial(call, fresh, agent_id)) for agent_id in ("short", "long")]
            if long <= short + whole // 4:
                break
            await asyncio.sleep(_WAIT_S)
        told = (
            f"{name} takes {short:,} bytes of memory among 100 documents, and {long:,} among {many:,}, {whole:,} bytes"
        )
        ctx.true(long <= short + whole // 4, told)
        await ctx.close(fresh)
    left = await ctx.store.list_document_keys("long", "c", limit=10_000, stop="k00100")
    ctx.equal(list(left), [f"k{i:05}" for i in range(100) if i != 52], "the first keys in the end")
