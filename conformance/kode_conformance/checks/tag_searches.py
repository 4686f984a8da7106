"""DOC-8: searches for documents by their tags."""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Final

from kode_conformance.checks.damage import damaging
from kode_conformance.checks.document_ranges import put_all
from kode_conformance.checks.tags import found_by
from kode_conformance.context import Context
from kode_conformance.dimensions import LOOKALIKES, Dimension, counts, twins
from kode_conformance.instruments.costs import memory_of
from kode_conformance.instruments.pace import in_time, sizes_in_time
from kode_conformance.processes.remote import another_process
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_core.errors import InvalidArgumentError
from kode_core.ids import check_agent_id, check_document_key
from kode_core.model import DeleteDocument, DocumentWrite, PutDocument

_N = Capability.EXTENDED | Capability.DOCUMENTS | Capability.TAGS
_D = Dimension
_VALUES: Final[Mapping[str, Sequence[str]]] = {"run": ("r1", "r2", "R1", ""), "user": ("r1", "r2"), "é": ("1", "é")}


def _is_sound(check: Any, text: str) -> bool:
    try:
        return bool(check(text))
    except InvalidArgumentError:
        return False


def _matches(tags: Mapping[str, str], wanted: Mapping[str, Any]) -> bool:
    return all(
        name in tags and tags[name] in ([some] if isinstance(some, str) else some) for name, some in wanted.items()
    )


def _filters() -> list[dict[str, Any]]:
    every = [{name: value} for name, values in _VALUES.items() for value in values]
    pairs = [{**one, **two} for one, two in itertools.combinations(every, 2) if one.keys() != two.keys()]
    lists: list[dict[str, Any]] = [
        {"run": ["r1", "r2"]},
        {"run": ("r2",)},
        {"run": {"r1", "", "R1"}, "user": "r1"},
        {"run": frozenset(_VALUES["run"]), "user": ["r2", "r1", "r1"], "é": ["é", "1", "nothing"]},
        {"run": [], "user": "r1"},
        {"user": [f"r{i}" for i in range(100)]},
        {"run": "nothing"},
        {"run": "r1", "nothing": "r1"},
    ]
    return [*every, *pairs, *lists]


@check("DOC-8", needs=_N, under=(_D.ORDERS, _D.TWINS, _D.LOOKALIKES, _D.INSTANCES))
async def documents_are_found_by_all_their_tags(ctx: Context) -> None:
    """Any combination of tags and lists of values finds the documents of the collection that have them, over all agents
    and of one, in the order of agents and keys by code point, in both directions and in pages of any limit.
    """
    stores = [ctx.store, await ctx.another()]
    agents = [one for one in (*twins("a"), *LOOKALIKES, "\uffff", "\U00010000") if _is_sound(check_agent_id, one)]
    agents = sorted([*ctx.rng.sample(sorted(set(agents)), 6), "a"])
    keys = [one for one in (*twins("k"), "k/", "k/a", "\uffff", "\U00010000") if _is_sound(check_document_key, one)]
    kept: dict[tuple[str, str], dict[str, str]] = {}
    for agent_id in dict.fromkeys(agents):
        writes = list[DocumentWrite]()
        for key in dict.fromkeys(keys):
            names = ctx.rng.sample(sorted(_VALUES), ctx.rng.randint(0, 3))
            tags = kept[agent_id, key] = {name: ctx.rng.choice(_VALUES[name]) for name in names}
            writes.append(PutDocument("c", key, [agent_id, key], tags=tags))
            writes.append(PutDocument("C", key, "of another collection", tags={"run": "r1", "user": "r1", "é": "é"}))
        await stores[len(kept) % 2].write_documents(agent_id, writes)
    for number, tags in enumerate(in_time(ctx, _filters())):
        wanted = sorted(place for place, its in kept.items() if _matches(its, tags))
        for reverse in (False, True):
            told, store = f"{tags}, reverse={reverse}", stores[(number + reverse) % 2]
            way = wanted[::-1] if reverse else wanted
            page = await store.query_documents("c", tags, reverse=reverse, limit=10_000)
            shown = [(one.agent_id, one.key, one.collection, one.value, one.tags) for one in page]
            ctx.equal(shown, [(a, k, "c", [a, k], kept[a, k]) for a, k in way], f"the documents with {told}")
            for limit in (1, 7) if len(way) < 20 else ((2, 7)[number % 2],):
                ctx.equal(await found_by(store, tags, reverse=reverse, limit=limit), way, f"pages of {limit}, {told}")
            mine = [place for place in way if place[0] == "a"]
            ctx.equal(
                await found_by(store, tags, reverse=reverse, agent_id="a", limit=3), mine, f"of one agent, {told}"
            )
    one = (await ctx.store.query_documents("c", {"run": list(_VALUES["run"])}, limit=1))[0]
    loaded = await stores[1].load_document(one.agent_id, "c", one.key)
    ctx.equal(
        loaded and (loaded.version, loaded.updated_at), (one.version, one.updated_at), "a document that was found"
    )
    bare = (await ctx.store.query_documents("c", {"run": list(_VALUES["run"])}, limit=1, values=False))[0]
    shown_bare = (bare.version, bare.updated_at, bare.value, bare.tags)
    ctx.equal(shown_bare, (one.version, one.updated_at, None, None), "a document without its value")


@check("DOC-8", "QRY-4", needs=_N, under=(_D.ITEMS, _D.NUMBERS, _D.INSTANCES))
async def pages_of_tags_give_every_document_once(ctx: Context) -> None:
    """However many documents there are, pages of any limit, continued in another instance, give each once; all but the
    last are as long as the limit; a limit of 0 gives none. Several tags find exactly the documents that have each of
    them, however many have one of them alone.
    """
    other, put = await ctx.another(), 0
    for count in sizes_in_time(ctx, counts(ctx.settings.tier, most=1025)):
        news = [
            PutDocument("c", f"k{i:05}", i, tags={"run": "r1", "n": str(i % 2), "i": str(i)}) for i in range(put, count)
        ]
        for start in range(0, len(news), 100):
            await ctx.store.write_documents(f"a{start // 300}", news[start : start + 100])
        put = max(put, count)
        whole = await ctx.store.query_documents("c", {"run": "r1"}, limit=10_000)
        ctx.equal((len(whole), whole.next_cursor), (count, None), f"a page of {count}")
        places = [(one.agent_id, one.key) for one in whole]
        ctx.equal(places, sorted(places), f"the order of {count}")
        for limit in sorted({max(1, count - 1), max(1, count), count + 1, 7, 100}):
            if count > 300 and limit < 100:
                continue
            found, cursor, stores = list[Any](), None, itertools.cycle((ctx.store, other))
            while True:
                page = await next(stores).query_documents("c", {"run": ("r1", "r2")}, limit=limit, cursor=cursor)
                found += page
                cursor = page.next_cursor
                ctx.true(len(page) == limit or cursor is None, f"a page of {len(page)}, and the limit is {limit}")
                if cursor is None or len(found) > count:
                    break
            ctx.equal([(one.agent_id, one.key) for one in found], places, f"pages of {limit} of {count}")
        odd = [place for place in places if int(place[1][1:]) % 2]
        ctx.equal(await found_by(other, {"n": "1"}), odd, f"half of {count}")
        if count > 25:
            await _see_several_tags(ctx, places)
        none = await ctx.store.query_documents("c", {"run": "r1"}, limit=0)
        ctx.equal((list(none), none.next_cursor), ([], None), f"a page of limit 0 of {count}")


async def _see_several_tags(ctx: Context, places: Sequence[tuple[str, str]]) -> None:
    """Two and three of the tags of the first, a middle and the last document, in every order, find it, or half of all,
    over all agents and of one.
    """
    count = len(places)
    for at, reverse in in_time(ctx, itertools.product((0, count // 2, count - 1), (False, True))):
        number = int(places[at][1][1:])
        every = [("run", "r1"), ("n", str(number % 2)), ("i", str(number))]
        for turn, tags in enumerate([*itertools.permutations(every, 2), *itertools.permutations(every)]):
            asked: dict[str, Any] = {name: [value, "none"] if turn % 2 else value for name, value in tags}
            half = [one for one in places if int(one[1][1:]) % 2 == number % 2]
            wanted = places[at : at + 1] if every[2] in tags else half
            for given in ({}, {"agent_id": places[at][0]}):
                mine = [one for one in wanted if one[0] == given.get("agent_id", one[0])]
                found = await found_by(ctx.store, asked, limit=10_000, reverse=reverse, **given)
                what = f"{asked} among {count}, of {given or 'all agents'}, reverse={reverse}"
                ctx.equal(found, mine[::-1] if reverse else mine, what)


@check("DOC-8", "OPS-17", needs=_N, under=(_D.NUMBERS, _D.LOOKALIKES, _D.LENGTHS))
async def wrong_searches_are_refused(ctx: Context) -> None:
    """Tags, limits, agents and cursors that are none, no tags at all, too many combinations, and the cursor of another
    query are refused.
    """
    puts = [PutDocument("c", f"k{i}", i, tags={"run": "r1", "n": "1"}) for i in range(9)]
    await ctx.store.write_documents("a", puts)
    query = ctx.store.query_documents
    many = [str(i) for i in range(101)]
    wrong: list[Any] = [
        *({}, None, "run", {"run": None}, {"run": 1}, {"run": [1]}, {"run": b"r1"}, {"run": iter(["r1"])}, {"": "x"}),
        *({"run": "x" * 257}, {"run": ["x" * 257]}, {"run": "\ud800"}, {"n" * 65: "x"}, dict.fromkeys("abcde", "x")),
        *({"run": many}, {"a": many[:10], "b": many[:11]}, {"a": many[:5], "b": many[:5], "c": many[:5]}),
    ]
    for tags in wrong:
        await ctx.raises(InvalidArgumentError, query("c", tags), f"a search with the tags {tags!r:.60}")
    right: Any = {"run": "r1"}
    arguments: list[dict[str, Any]] = [
        *({"limit": limit} for limit in (-1, 10_001, None, "5", 1.0, True)),
        *({"cursor": cursor} for cursor in ("", "x", 5, b"x")),
        *({"agent_id": one} for one in ("", 5, "a\0", "\ud800", "x" * 257, ["a"])),
        *({"reverse": one} for one in (None, 1, "yes")),
        *({"values": one} for one in (None, 1, "yes")),
    ]
    for given in arguments:
        await ctx.raises(InvalidArgumentError, query("c", right, **given), f"a search with {given!r:.60}")
    for collection in ("", "a/b", "é", "x" * 65, None, 5):
        await ctx.raises(InvalidArgumentError, query(collection, right), f"a search of {collection!r:.60}")  # type: ignore[arg-type]
    cursor = (await query("c", right, limit=3)).next_cursor or ""
    ctx.true(cursor, "a page of 3 of 9 must have a cursor")
    others: list[tuple[str, Any, dict[str, Any]]] = [
        ("d", right, {}),
        ("c", {"run": "r2"}, {}),
        ("c", {"run": ["r1", "r2"]}, {}),
        ("c", {"run": "r1", "n": "1"}, {}),
        ("c", right, {"reverse": True}),
        ("c", right, {"agent_id": "a"}),
    ]
    for collection, tags, given in others:
        call = query(collection, tags, cursor=cursor, **given)
        await ctx.raises(InvalidArgumentError, call, f"a cursor of another query than {collection} {tags} {given}")
    for forged in (cursor[:-1], cursor[1:], cursor * 2, cursor[::-1], cursor.swapcase(), f"{cursor}é"):
        await ctx.raises(InvalidArgumentError, query("c", right, cursor=forged), "a forged cursor")
    again = await query("c", {"run": ["r1", "r1"]}, limit=10, cursor=cursor)
    ctx.equal([one.key for one in again], [f"k{i}" for i in range(3, 9)], "the cursor of the same query")


@check("DOC-8", needs=_N, tier=Tier.STANDARD, under=(_D.COMPANY, _D.CHANGES, _D.INSTANCES))
async def pages_of_tags_while_others_write_have_no_gaps(ctx: Context) -> None:
    """While others put and delete documents and their tags before, at and behind the place of a page, in either
    direction, each document that stays is given once and in order.
    """
    other, agents = await ctx.another(), ("a", "b", "c")
    stays = [(agent_id, f"k{i:03}") for agent_id in agents for i in range(0, 40, 2)]
    for limit, reverse in in_time(ctx, itertools.product((5, 2, 17), (False, True))):
        for agent_id in agents:
            mine = [key for one, key in stays if one == agent_id]
            staying = [PutDocument("c", key, 1, tags={"run": "r1"}) for key in mine]
            passing = [PutDocument("c", f"{key}x", 1, tags={"run": "r1"}) for key in mine[::3]]
            await ctx.store.write_documents(agent_id, [*staying, *passing])
        found, cursor, number = list[tuple[str, str]](), None, 0
        while True:
            page = await ctx.store.query_documents("c", {"run": "r1"}, limit=limit, reverse=reverse, cursor=cursor)
            found += [(one.agent_id, one.key) for one in page]
            cursor, number = page.next_cursor, number + 1
            if cursor is None or number > 400:
                break
            for agent_id in agents if number < 60 else ():
                at = found[-1][1]
                gone = {key for one, key in found[-limit:] if one == agent_id and (one, key) not in stays}
                news = (f"{at[:4]}\x01{number}", f"z{number}", stays[number % 20][1])
                writes = {key: PutDocument("c", key, number, tags={"run": "r1", "n": str(number)}) for key in news}
                gone -= writes.keys()
                await other.write_documents(
                    agent_id, [*writes.values(), *(DeleteDocument("c", key) for key in sorted(gone))]
                )
        told = f"pages of {limit}, reverse={reverse}"
        ctx.equal(found, sorted(set(found), reverse=reverse), f"the order of {told}")
        left = [place for place in found if place in stays]
        ctx.equal(left, stays[::-1] if reverse else stays, f"what stays in {told}")


@check("DOC-8", "DOC-7", needs=_N, under=(_D.COMPANY, _D.INSTANCES, _D.CHANGES))
async def writers_at_once_leave_the_tags_of_the_last(ctx: Context) -> None:
    """After several instances wrote the same documents at once, each document is found by the tags that it has, and by
    no others; while they write, a search gives no document that never had the tag.
    """
    stores, wrong = [ctx.store, await ctx.another(), await ctx.another()], list[object]()
    runs, looks = [f"r{i}" for i in range(5)], 0

    async def write(number: int) -> None:
        turn = 0
        while turn < 12 or (
            looks < 20 and turn < 500
        ):  # a store that waits for nothing writes all before a search ends
            run = runs[(number + turn) % 5]
            key = f"k{turn * (number + 1) % 3}"
            if turn % 4 == 3:
                await stores[number].delete_document("a", "c", key)
            else:
                await stores[number].put_document("a", "c", key, run, tags={"run": run, "by": str(number)})
            turn += 1
            await asyncio.sleep(0)

    async def look(writers: asyncio.Future[Any]) -> None:
        nonlocal looks
        while not writers.done():
            run = runs[looks % 5]
            page = await stores[looks % 3].query_documents("c", {"run": run})
            wrong.extend(one for one in page if one.value != run or (one.tags or {}).get("run") != run)
            looks += 1
            await asyncio.sleep(0)
        await writers

    await ctx.store.put_document("a", "c", "stays", "it", tags={"run": "it", "by": "none"})
    for _ in in_time(ctx, range(4)):
        looks = 0
        await look(asyncio.gather(*map(write, range(3))))
        ctx.equal(await found_by(stores[2], {"run": "it"}), [("a", "stays")], "the document that nothing changes")
        ctx.equal(wrong, [], "documents that were found by tags that they do not have")
        kept = {one.key: one.tags async for one in stores[1].iter_documents("a", "c")}
        for run in runs:
            wanted = [("a", key) for key, tags in kept.items() if tags["run"] == run]
            for store in stores:
                ctx.equal(await found_by(store, {"run": run}), wanted, f"the documents with run={run} in the end")
        for number in range(3):
            wanted = [("a", key) for key, tags in kept.items() if tags["by"] == str(number)]
            ctx.equal(await found_by(ctx.store, {"by": str(number)}), wanted, "the documents by their writers")
    ctx.equal((await ctx.store.check_consistency()).issues, (), "the issues in the end")


@check(
    *("DOC-8", "DOC-7", "QRY-8"),
    needs=_N | Capability.CROSS_PROCESS | Capability.PERSISTENT,
    tier=Tier.STANDARD,
    under=(_D.PROCESSES, _D.CHANGES),
)
async def another_process_finds_the_same(ctx: Context) -> None:
    """A document is found by its tags in another process as soon as the write has returned, and the other way round."""
    remote: Any = await another_process(ctx.harness, ctx.handle)
    try:
        for turn in range(12):
            writer, reader = (ctx.store, remote) if turn % 2 else (remote, ctx.store)
            await writer.put_document("a", "c", "k", turn, tags={"turn": str(turn)})
            ctx.equal(await found_by(reader, {"turn": str(turn)}), [("a", "k")], "a document of another process")
            ctx.equal(await found_by(reader, {"turn": str(turn - 1)}), [], "the tags that another process replaced")
        await remote.delete("a")
        ctx.equal(await found_by(ctx.store, {"turn": "11"}), [], "the tags of an agent that another process deleted")
    finally:
        await remote.close()


@check("DOC-8", "QRY-9", "OPS-4", needs=_N, under=(_D.DAMAGE,))
async def a_damaged_document_is_left_out_of_searches(ctx: Context) -> None:
    """A search leaves damaged documents out, names them, and gives others in their place; it finds them without their
    values.
    """
    for agent_id in ("a", "b"):
        puts = [PutDocument("c", f"k{i}", {"text": "sound"}, tags={"run": "r1"}) for i in range(3)]
        await ctx.store.write_documents(agent_id, puts)
    store, layer = await damaging(ctx)
    layer.verbs = frozenset({"find_docs"})  # it damages the documents of agent a
    page = await store.query_documents("c", {"run": "r1"}, limit=2)
    ctx.equal([(one.agent_id, one.key) for one in page], [("b", "k0"), ("b", "k1")], "a page with damaged documents")
    ctx.equal(len(page.left_out), 3, f"how many a page left out: {page.left_out}")
    named = [f"k{i}" in name and "'a'" in name for i, name in enumerate(page.left_out)]
    ctx.equal(named, [True] * 3, f"what a page left out: {page.left_out}")
    rest = await store.query_documents("c", {"run": "r1"}, limit=2, cursor=page.next_cursor)
    ctx.equal([(one.agent_id, one.key) for one in rest], [("b", "k2")], "the page after it")
    every = [(agent_id, f"k{i}") for agent_id in ("a", "b") for i in range(3)]
    ctx.equal(await found_by(store, {"run": "r1"}), every, "the documents without their values")


_LONG: Final = {Tier.QUICK: 600, Tier.STANDARD: 3000, Tier.THOROUGH: 20_000}
_TRIES: Final = 4
_WAIT_S: Final = 0.5


@check("DOC-8", needs=_N, under=(_D.COSTS, _D.ITEMS))
async def a_page_of_tags_costs_what_it_contains(ctx: Context) -> None:
    """A page of a tag that many documents have takes no more memory than one of a tag that few have."""
    many, size = _LONG[ctx.settings.tier], 4000
    for run, count in (("few", 100), ("many", many)):
        puts = [PutDocument("c", f"{run}{i:05}", "x" * size, tags={"run": run, "all": "1"}) for i in range(count)]
        for start in range(0, count, 100):
            await ctx.store.write_documents(f"{run}-{start // 1000}", puts[start : start + 100])
    await put_all(ctx.store, "plain", "c", [f"k{i:05}" for i in range(300)], "x" * size)
    whole, fresh = many * size, await ctx.another()

    async def read(run: str, **given: Any) -> None:
        page = await fresh.query_documents("c", {"run": run, "all": "1"}, limit=20, **given)
        ctx.equal((len(page), page.next_cursor is None), (20, False), f"a page of {run} documents")

    for given in ({}, {"reverse": True}, {"values": False}):
        await read("few", **given)
        await read("many", **given)
        for _ in range(_TRIES):
            short, long = [await memory_of(functools.partial(read, run, **given)) for run in ("few", "many")]
            if long <= short + whole // 4:
                break
            await asyncio.sleep(_WAIT_S)
        told = f"a page with {given} takes {short:,} bytes of memory of a rare tag, and {long:,} of a common one"
        ctx.true(long <= short + whole // 4, told)
