"""DOC-2 and DOC-3: versions of documents, the writes that demand one, and writes of several."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from kode_conformance.calls.documents import count_up
from kode_conformance.checks.lifecycle import fill
from kode_conformance.checks.messages import dump
from kode_conformance.checks.own_documents import documents_of
from kode_conformance.context import Context
from kode_conformance.dimensions import Dimension
from kode_conformance.instruments.pace import in_time, sizes_in_time
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_core.errors import ConflictError, InvalidArgumentError
from kode_core.model import ABSENT, DeleteDocument, DocumentWrite, PutDocument
from kode_core.protocols import ExtendedStore

_N = Capability.EXTENDED | Capability.DOCUMENTS
_D = Dimension
_RIVALS: Final = 6
_EACH: Final = {Tier.QUICK: 4, Tier.STANDARD: 20, Tier.THOROUGH: 60}


@check("DOC-2", needs=_N, under=(_D.EQUALS, _D.CHANGES, _D.INSTANCES))
async def versions_of_documents_never_return(ctx: Context) -> None:
    """Each put, also of an equal value, gives the document a version that no document had before: not after a delete,
    and not after the agent was deleted. Each method returns it, and every instance loads it.
    """
    stores, seen = [ctx.store, await ctx.another()], {ABSENT: "none"}

    async def see(version: str, key: str, what: str) -> None:
        ctx.true(version not in seen, f"{what} and {seen.get(version)} have one version")
        seen[version] = what
        for store in stores:
            found = await store.load_document("a", "c", key)
            ctx.equal(found and found.version, version, f"the loaded version of {what}")

    for round_ in range(4):
        one, two = stores[round_ % 2], stores[1 - round_ % 2]
        for again in range(3):
            for key in ("k", "l"):
                told = f"put {again} of {key}, in round {round_}"
                await see(await one.put_document("a", "c", key, {"same": 1}), key, told)
        first, last = PutDocument("c", "k", {"same": 1}), PutDocument("c", "m", {"same": 1})
        puts: list[DocumentWrite] = [first, DeleteDocument("c", "l"), last]
        versions = await two.write_documents("a", puts)
        ctx.equal(versions[1], ABSENT, "the version that a delete returns")
        await see(versions[0], "k", f"the first of a list, in round {round_}")
        await see(versions[2], "m", f"the last of a list, in round {round_}")
        await two.save_turn("a", documents=[PutDocument("c", "k", {"same": 1})])
        found = await one.load_document("a", "c", "k")
        assert found is not None
        await see(found.version, "k", f"a turn, in round {round_}")
        if round_ % 2:
            await one.delete("a")
        else:
            await one.delete_document("a", "c", "k")
        ctx.equal(await two.load_document("a", "c", "k"), None, f"the document after the delete of round {round_}")


async def _write_one(store: ExtendedStore, method: str, write: DocumentWrite, mark: str = "") -> None:
    """Make a write with the method of that name."""
    side: Sequence[DocumentWrite] = [PutDocument("c", f"side {mark}", 1)]
    if method == "write_documents":
        await store.write_documents("a", [*side, write])
    elif method == "save_turn":
        message = samples.message(text=mark)
        await store.save_turn("a", append=[message], documents=[write, *side])
    elif isinstance(write, PutDocument):
        await store.put_document("a", write.collection, write.key, write.value, expect=write.expect)
    else:
        await store.delete_document("a", write.collection, write.key, expect=write.expect)


_METHODS: Final = ("the document's own method", "write_documents", "save_turn")


@check("DOC-2", "DOC-3", needs=_N, under=(_D.CHANGES, _D.INSTANCES, _D.ORDERS, _D.EQUALS))
async def a_document_of_another_version_is_not_written(ctx: Context) -> None:
    """Each way to put or delete a document refuses a version that the document does not have. The error has the present
    version, and nothing is written. With the present version the write is done.
    """
    stores = [ctx.store, await ctx.another()]
    await fill(ctx.store, "a")
    twin = await ctx.store.put_document("a", "c", "twin", "same")
    number = 0
    for method in _METHODS:
        for kind in (PutDocument, DeleteDocument):
            for state in ("present", "put again", "deleted", "never there"):
                number += 1
                one, two, key = stores[number % 2], stores[1 - number % 2], f"k{number}"
                stale = twin if state == "never there" else await one.put_document("a", "c", key, "same")
                present = ABSENT if state in ("deleted", "never there") else stale
                if state == "put again":
                    present = await two.put_document("a", "c", key, "same")
                if state == "deleted":
                    await two.delete_document("a", "c", key)
                before = await dump(ctx, "a")
                wrong = {stale, twin, ABSENT} - {present}
                for expect in sorted(wrong):
                    write = kind("c", key, "new", expect) if kind is PutDocument else kind("c", key, expect)
                    told = f"a {kind.__name__} by {method} of a document that is {state}, with {expect}"
                    error = await ctx.raises(ConflictError, _write_one(one, method, write, f"{number}"), told)
                    ctx.equal(getattr(error, "version", None), present, f"the version in the error of {told}")
                    ctx.equal(await dump(ctx, "a"), before, f"the agent after {told}")
                write = kind("c", key, "new", present) if kind is PutDocument else kind("c", key, present)
                await _write_one(two, method, write, f"{number}")
                found = await one.load_document("a", "c", key)
                ctx.equal(found and found.value, "new" if kind is PutDocument else None, f"{state}, after {method}")
    for wrong_version in ("", "x y", 7, b"0", True):
        call = ctx.store.put_document("a", "c", "twin", 1, expect=wrong_version)  # type: ignore[arg-type]
        await ctx.raises(InvalidArgumentError, call, f"expect={wrong_version!r}")
        call_of_many = ctx.store.write_documents("a", [DeleteDocument("c", "twin", wrong_version)])  # type: ignore[arg-type]
        await ctx.raises(InvalidArgumentError, call_of_many, f"write_documents with expect={wrong_version!r}")


@check("DOC-2", "DOC-3", needs=_N, under=(_D.COMPANY, _D.INSTANCES, _D.CHANGES, _D.ORDERS))
async def one_of_those_that_demand_a_document_wins(ctx: Context) -> None:
    """If several writes by several instances and methods demand one version of a document, or that it does not exist,
    exactly one succeeds, and the others are refused.
    """
    stores = [ctx.store, await ctx.another(), await ctx.another()]
    version = ABSENT
    for round_ in in_time(ctx, range(2 * _EACH[ctx.settings.tier])):

        async def rival(number: int, round_: int = round_, expect: str = version) -> bool:
            method = _METHODS[(number + round_) % 3]
            is_delete = round_ % 4 == 3 and number % 2
            write: DocumentWrite = PutDocument("c", "k", [round_, number], expect)
            if is_delete and expect != ABSENT:
                write = DeleteDocument("c", "k", expect)
            try:
                await _write_one(stores[number % 3], method, write, f"{round_} {number}")
            except ConflictError:
                return False
            return True

        results = await asyncio.gather(*map(rival, range(_RIVALS)))
        ctx.equal(sum(results), 1, f"how many of {_RIVALS} writes that demand {version} succeed, in round {round_}")
        winner = results.index(True)
        found = await stores[round_ % 3].load_document("a", "c", "k")
        ctx.true(found is None or found.value == [round_, winner], f"round {round_}: {winner} won, stored is {found}")
        sides = list(await stores[0].list_document_keys("a", "c", prefix=f"side {round_} "))
        with_side = _METHODS[(winner + round_) % 3] != _METHODS[0]
        ctx.equal(sides, [f"side {round_} {winner}"] * with_side, f"what was written with it in round {round_}")
        version = ABSENT if found is None else found.version


@check("DOC-2", needs=_N, under=(_D.COMPANY, _D.INSTANCES, _D.ITEMS))
async def counters_by_compare_and_set_lose_nothing(ctx: Context) -> None:
    """Instances that each load a counter, add one and put it with the version that they loaded count every success."""
    stores, each = [ctx.store, await ctx.another()], 3 * _EACH[ctx.settings.tier]
    await ctx.store.put_document("a", "c", "n", 0)
    done = await asyncio.gather(*(count_up(stores[i % 2], "a", each) for i in range(4)))
    found = await ctx.store.load_document("a", "c", "n")
    ctx.equal(found and found.value, sum(done), "the counter, after so many successes")


@check("DOC-2", needs=_N | Capability.CROSS_PROCESS, tier=Tier.STANDARD, under=(_D.PROCESSES, _D.COMPANY))
async def processes_count_by_compare_and_set(ctx: Context) -> None:
    """Processes that count one counter up by compare and set, next to this one, lose no success, and each sees what the
    others put.
    """
    each, gate = 5 * _EACH[ctx.settings.tier], ctx.folder / "gate"
    await ctx.store.put_document("a", "c", "n", 0)
    processes = [await ctx.process("count_documents", "a", each, str(gate)) for _ in range(2)]
    for process in processes:
        await process.line()
    gate.touch()
    mine = await count_up(ctx.store, "a", each)
    done = [mine, *[(await process.lines())[-1]["done"] for process in processes]]
    found = await ctx.store.load_document("a", "c", "n")
    ctx.equal(found and found.value, sum(done), f"the counter, after {done} successes")
    ctx.true(min(done) >= 0, f"a process did not find the counter: {done}")


# --- several at once --------------------------------------------------------------------------------------------------


@check("DOC-3", "TURN-1", needs=_N, under=(_D.ITEMS, _D.ORDERS, _D.CHANGES, _D.INSTANCES))
async def documents_are_written_together_or_not_at_all(ctx: Context) -> None:
    """However many documents a call puts and deletes, they are all written; if one demand among them fails, wherever it
    stands, or the turn demands another version of the agent, nothing is, of the turn either.
    """
    other = await ctx.another()
    await fill(ctx.store, "a")
    for number, count in enumerate(sizes_in_time(ctx, (1, 2, 25, 26, 101, 501, 1000))):
        one, two = (ctx.store, other) if number % 2 else (other, ctx.store)
        collection, there = f"c{count}", [PutDocument(f"c{count}", f"k{i:04}", "old") for i in range(0, count, 2)]
        versions = await one.write_documents("a", there)
        news: list[DocumentWrite] = [PutDocument(collection, f"k{i:04}", [i]) for i in range(count)]
        news[::5] = [DeleteDocument(collection, f"k{i:04}") for i in range(0, count, 5)]
        before = await dump(ctx, "a"), await documents_of(two, "a", collection)
        for at in sorted({0, count // 2, count - 1}):
            bad = list(news)
            bad[at] = PutDocument(collection, f"k{at:04}", "new", versions[0] if at else ABSENT)
            told = f"{count} documents, of which {at} demands another version"
            await ctx.raises(ConflictError, one.write_documents("a", bad), told)
            turn = two.save_turn("a", append=samples.messages(1), todos=samples.todos(told), documents=bad)
            await ctx.raises(ConflictError, turn, f"a turn with {told}")
            ctx.equal((await dump(ctx, "a"), await documents_of(two, "a", collection)), before, f"after {told}")
        stale = await one.load_version("a")
        await two.append_messages("a", samples.messages(1, count))
        turn = one.save_turn("a", append=samples.messages(1), documents=news, expect=stale)
        await ctx.raises(ConflictError, turn, f"a turn of another version of the agent, with {count} documents")
        ctx.equal(await documents_of(two, "a", collection), before[1], "the documents after it")
        if number % 2:
            given = await one.write_documents("a", news)
            wanted = {(one.collection, one.key): v for one, v in zip(news, given, strict=True) if v != ABSENT}
            found = await documents_of(two, "a", collection)
            ctx.equal({name: doc.version for name, doc in found.items()}, wanted, f"the versions of {count} documents")
            ctx.equal([v == ABSENT for v in given], [isinstance(w, DeleteDocument) for w in news], "which are deleted")
        else:
            await one.save_turn("a", append=samples.messages(1, 7 * count), documents=news)
            ctx.equal((await two.load_messages("a"))[-1:], samples.messages(1, 7 * count), "the turn's message")
        keys = [f"k{i:04}" for i in range(count) if i % 5]
        left = await two.list_document_keys("a", collection, limit=2000)
        ctx.equal(list(left), keys, f"the keys after {count} writes")
    again: list[DocumentWrite] = [PutDocument("c", "k", 1), PutDocument("d", "k", 1), DeleteDocument("c", "k")]
    before_again = await documents_of(ctx.store, "a", "c", "d")
    await ctx.raises(InvalidArgumentError, ctx.store.write_documents("a", again), "two writes of one document")
    await ctx.raises(InvalidArgumentError, ctx.store.save_turn("a", documents=again), "two in a turn")
    ctx.equal(await documents_of(ctx.store, "a", "c", "d"), before_again, "the documents after two writes of one")
    ctx.equal(await ctx.store.write_documents("a", []), [], "the versions of no documents")


@check("DOC-3", needs=_N, under=(_D.COMPANY, _D.INSTANCES))
async def no_one_sees_a_part_of_a_write(ctx: Context) -> None:
    """While an instance puts a number in several documents of several collections at once, another one that loads them
    in turn never finds an older number than in the one before.
    """
    other, names = await ctx.another(), [(f"c{i % 2}", f"k{i}") for i in range(4)]
    ended = asyncio.Event()

    async def write() -> None:
        for n in range(1, 5 * _EACH[ctx.settings.tier]):
            puts = [PutDocument(collection, key, n) for collection, key in names]
            if n % 2:
                await ctx.store.write_documents("a", puts)
            else:
                await ctx.store.save_turn("a", append=samples.messages(1), documents=puts)
        ended.set()

    async def look() -> None:
        n = 0
        while not ended.is_set():
            for collection, key in names:
                found = await other.load_document("a", collection, key)
                got = 0 if found is None else found.value
                ctx.true(
                    isinstance(got, int) and isinstance(n, int) and got >= n, f"{key} has {got} after {n} was seen"
                )
                n = got
            await asyncio.sleep(0)

    await asyncio.gather(write(), look())
    last = 5 * _EACH[ctx.settings.tier] - 1
    found = await documents_of(other, "a", "c0", "c1")
    ctx.equal([one.value for one in found.values()], [last] * 4, "the documents in the end")
