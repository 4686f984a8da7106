"""Tests of documents of the caller's own with several stores at once, for every engine: subclass, name the harness."""

from __future__ import annotations

import asyncio
import itertools
import json
import secrets
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final, cast

import pytest
from kode_conformance import Handle, Space, StoreHarness
from kode_conformance.values import samples
from msgspec.structs import replace

from kode_core import ABSENT, ConflictError, DeleteDocument, PutDocument
from kode_core.batch import DocKind, DocWrite
from kode_core.codec import Body, digest
from kode_core.docs import Doc, DocSpan
from kode_core.engine import docs_in
from kode_core.store import EngineStore

Open = Callable[[], Awaitable[EngineStore]]
"""Opens one more store of the same place."""

KEYS: Final = (
    *(" ", "!", "%", "%%", "A", "AB", "Z", "\\", "_", "_a", "a", "a%", "a%b", "a/b", "a_", "a_b", "aa", "b", "~"),
    *("\x7f", "\u0080", "e\u0301", "\u00e9", "\u00e9a", "\ud7ff", "\ue000", "\uffff", "\U00010000", "\U0001f600"),
    *("\U0010ffff", "k" * 400, "\u00e9" * 200, "\U0001f600" * 100),
)
"""Keys that a collation, UTF-16, LIKE or an escape would bring into another order."""

COUNT: Final = """
import asyncio, sys
from kode_core import ConflictError, create_extended_store

async def main():
    async with await create_extended_store(__import__("json").loads(sys.argv[1])) as store:
        for _ in range(int(sys.argv[2])):
            while True:
                found = await store.load_document("a", "c", "count")
                try:
                    await store.put_document("a", "c", "count", found.value + 1, expect=found.version)
                    break
                except ConflictError:
                    pass

asyncio.run(main())
"""
"""A process that adds to a number so many times."""


def body_of(n: int) -> Body:
    """The body of a document that an engine gets."""
    text = f'{{"value":{n}}}'
    return Body(text, digest(text.encode()))


async def count_up(store: EngineStore, times: int) -> None:
    """Add to a number so many times, and again after each conflict."""
    for _ in range(times):
        while True:
            found = await store.load_document("a", "c", "count")
            assert found is not None
            try:
                await store.put_document("a", "c", "count", found.value + 1, expect=found.version)
            except ConflictError:
                continue
            break


async def keys_of(store: EngineStore, **span: Any) -> list[str]:
    """The keys of a collection, by pages of seven."""
    page = await store.list_document_keys("a", "c", limit=7, **span)
    keys = list(page)
    while page.next_cursor is not None:
        page = await store.list_document_keys("a", "c", limit=7, cursor=page.next_cursor, **span)
        keys += page
    return keys


class OwnDocuments:
    """``harness`` is of the engine that is tested, and ``backend`` is its name for another process."""

    harness: StoreHarness
    backend: str
    rounds = 50

    @pytest.fixture
    async def handle(self, tmp_path: Path) -> AsyncIterator[Handle]:
        handle = await self.harness.provision(Space(f"t{secrets.token_hex(6)}", tmp_path))
        yield handle
        await self.harness.destroy(handle)

    @pytest.fixture
    async def opened(self, handle: Handle) -> AsyncIterator[Open]:
        stores = []

        async def opened() -> EngineStore:
            stores.append(cast(EngineStore, await self.harness.open(handle)))
            return stores[-1]

        yield opened
        for store in stores:
            await store.close()

    async def test_one_of_twenty_creates(self, opened: Open) -> None:
        """Of twenty that create a document at once, over two stores, one succeeds, and its value is stored.

        Some agents are new, some exist, and some were deleted just before.
        """
        stores = [await opened(), await opened()]
        for n in range(self.rounds):
            agent_id = f"a{n}"
            if n % 3:
                await stores[0].save_turn(agent_id, append=samples.messages(1), todos=samples.todos())
            if n % 3 == 2:
                await stores[1].put_document(agent_id, "c", "k", "old")
                await stores[1].delete(agent_id)
            calls = (stores[i % 2].put_document(agent_id, "c", "k", i, expect=ABSENT) for i in range(20))
            ends = await asyncio.gather(*calls, return_exceptions=True)
            versions = [end for end in ends if isinstance(end, str)]
            assert len(versions) == 1, (agent_id, ends)
            assert {type(end) for end in ends} == {str, ConflictError}
            found = await stores[1].load_document(agent_id, "c", "k")
            assert found is not None
            assert (found.version, found.value) == (versions[0], ends.index(versions[0]))
            refused = [end for end in ends if isinstance(end, ConflictError)]
            assert {end.version for end in refused} == {versions[0]}

    async def test_no_increment_is_lost(self, opened: Open, handle: Handle) -> None:
        """Ten writers over three stores count up, and so does another process; messages are written in between."""
        stores = [await opened() for _ in range(3)]
        await stores[0].put_document("a", "c", "count", 0, expect=ABSENT)
        await self._with_others(stores, handle, 12)

    async def _with_others(self, stores: list[EngineStore], handle: Handle, times: int) -> None:
        config = json.dumps({"type": self.backend, **handle}, default=str)
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", COUNT, config, str(times))
        writers = [count_up(store, times) for store, _ in zip(itertools.cycle(stores), range(10))]
        appends = (stores[0].append_messages("a", samples.messages(1)) for _ in range(5))
        await asyncio.gather(*writers, *appends)
        assert await process.wait() == 0
        found = await stores[0].load_document("a", "c", "count")
        assert found is not None
        assert found.value == 11 * times
        assert len(await stores[1].load_messages("a")) == 5

    async def test_all_or_nothing_at_once(self, opened: Open) -> None:
        """Moves of one unit between accounts, from stores at once, keep the sum; refused ones change nothing."""
        stores = [await opened() for _ in range(3)]
        accounts = [f"n{n}" for n in range(4)]
        await stores[0].write_documents("a", [PutDocument("c", name, 100) for name in accounts])

        async def move(n: int) -> None:
            store, (one, other) = stores[n % 3], (accounts[n % 4], accounts[(n + 1 + n % 3) % 4])
            while True:
                page = await store.list_documents("a", "c")
                found = {doc.key: doc for doc in page}
                assert sum(doc.value for doc in page) == 400
                puts = [
                    PutDocument("c", name, found[name].value + more, expect=found[name].version)
                    for name, more in ((one, -1), (other, 1))
                ]
                try:
                    await store.write_documents("a", puts)
                except ConflictError:
                    continue
                return

        await asyncio.gather(*map(move, range(24)))
        assert sum(doc.value for doc in await stores[0].list_documents("a", "c")) == 400

    async def test_a_turn_that_demands_a_document(self, opened: Open) -> None:
        """Turns at once that demand one version of a document: one is written, with its messages and events."""
        stores = [await opened(), await opened()]
        version = await stores[0].put_document("a", "c", "k", 0)

        async def turn(n: int) -> Any:
            return await stores[n % 2].save_turn(
                "a",
                append=samples.messages(1, n),
                events=samples.events(1, n + 1),
                documents=[PutDocument("c", "k", n, expect=version), PutDocument("c", f"own {n}", n)],
            )

        ends = await asyncio.gather(*map(turn, range(12)), return_exceptions=True)
        (won,) = [n for n, end in enumerate(ends) if not isinstance(end, ConflictError)]
        assert isinstance(ends[won], list | tuple), ends[won]
        assert await stores[1].load_messages("a") == samples.messages(1, won)
        assert [event.offset async for event in stores[1].read_events("a")] == list(ends[won])
        assert await stores[0].list_document_keys("a", "c") == ["k", f"own {won}"]

    async def test_a_fenced_write(self, opened: Open) -> None:
        """A lease and the version of a document are demanded together."""
        store = await opened()
        async with store.acquire_agent_lock("a"):
            version = await store.put_document("a", "c", "k", 1, expect=ABSENT)
            with pytest.raises(ConflictError):
                await store.put_document("a", "c", "k", 2, expect=ABSENT)
            await store.delete_document("a", "c", "k", expect=version)
        assert await store.load_document("a", "c", "k") is None

    async def test_order_and_ranges(self, opened: Open) -> None:
        """Keys come by code point, in both directions; a prefix is literal; neighbours and other kinds stay out."""
        store = await opened()
        await store.write_documents("a", [PutDocument("c", key, key) for key in KEYS])
        await store.write_documents("a", [PutDocument(name, "x", 0) for name in ("b", "c-", "c0", "C", "cc")])
        await store.put_document("b", "c", "x", 0)
        await store.save_turn("a", info=samples.info("a"), todos=samples.todos())
        await store.save_snapshot("a", samples.snapshot("c/a"))
        expected = sorted(KEYS)
        assert await keys_of(store) == expected
        assert await keys_of(store, reverse=True) == expected[::-1]
        for prefix in ("%", "_", "a", "a%", "a_", "\\", "\u00e9", "\U0001f600", "\uffff", "\U0010ffff", "nothing"):
            some = [key for key in expected if key.startswith(prefix)]
            assert await keys_of(store, prefix=prefix) == some, prefix
            assert await keys_of(store, prefix=prefix, reverse=True) == some[::-1], prefix
        for start, stop in (("A", "a"), ("a", "\U0001f600"), ("\uffff", "\U0010ffff"), ("b", "a")):
            some = [key for key in expected if start <= key < stop]
            assert await keys_of(store, start=start, stop=stop) == some
        found = [doc async for doc in store.iter_documents("a", "c")]
        assert [(doc.key, doc.value) for doc in found] == [(key, key) for key in expected]
        for key in KEYS:
            loaded = await store.load_document("a", "c", key)
            assert loaded in found
        assert (await store.aggregate_stats("a")).total_documents == len(KEYS) + 5
        assert (await store.aggregate_stats("b")).total_documents == 1
        assert (await store.check_consistency()).consistent

    async def test_many_writes_in_one_call(self, opened: Open) -> None:
        """Puts and deletes of thousands of documents are one write, and each demand among them counts."""
        store = await opened()
        versions = await store.write_documents("a", [PutDocument("c", f"{n:04}", n) for n in range(2500)])
        writes: list[Any] = [DeleteDocument("c", f"{n:04}", expect=versions[n]) for n in range(0, 2500, 2)]
        writes += [PutDocument("c", f"{n:04}", -n, expect=versions[n]) for n in range(1, 2500, 2)]
        with pytest.raises(ConflictError):
            await store.write_documents("a", [*writes, PutDocument("c", "new", 1, expect=versions[0])])
        assert len(await store.list_document_keys("a", "c", limit=1000)) == 1000
        await store.write_documents("a", writes)
        values = [doc.value async for doc in store.iter_documents("a", "c")]
        assert values == [-n for n in range(1, 2500, 2)]
        await store.save_info("a", samples.info("a"))
        copy = await store.fork("a", documents=True)
        assert [doc.value async for doc in store.iter_documents(copy, "c")] == values
        await store.delete("a")
        assert await store.list_document_keys("a", "c") == []
        assert (await store.aggregate_stats(copy)).total_documents == len(values)

    async def test_digests_without_texts(self, opened: Open) -> None:
        """A page without bodies has the keys, times and digests of the documents, and no text."""
        store = await opened()
        await store.write_documents("a", [PutDocument("c", f"{n}", "x" * 1000) for n in range(5)])
        engine = store._context.engine
        span = DocSpan(start="c/", stop="c0", limit=3, descending=True)
        whole = await docs_in(engine, "a", span)
        bare = await docs_in(engine, "a", replace(span, bodies=False))
        assert [doc.key for doc in whole] == ["c/4", "c/3", "c/2"]
        assert {doc.body.text for doc in bare} == {""}
        assert [(d.key, d.time, d.body.digest) for d in bare] == [(d.key, d.time, d.body.digest) for d in whole]

    async def test_a_batch_that_writes_a_document_twice(self, opened: Open) -> None:
        """The last of several writes of one document in a batch counts."""
        store = await opened()
        context = store._context
        docs = {n: Doc("k", n, body_of(n)) for n in range(3)}
        for order in itertools.product((0, 1, None), repeat=2):
            writes = tuple(DocWrite(DocKind.MEDIA, "k", None if n is None else docs[n]) for n in order)
            await context.engine.commit([context.batch("a", docs=writes)])
            found = await context.engine.docs("a", DocKind.MEDIA, "k")
            assert list(found) == ([] if order[-1] is None else [docs[order[-1]]])
