"""Tests of a record store with documents of the caller's own: long keys in order, pages, and writes with demands."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias, cast

import pytest

from kode_core.batch import ListHead
from kode_core.codec import Body
from kode_core.engines.record.doc_keys import own_key, own_keys
from kode_core.engines.record.engine import RecordEngine
from kode_core.engines.record.store import Change, Cut, DocIndex, HeadRecord, Item, ItemsPlace, RecordStore
from kode_core.engines.record.terms import DocSearch, FindsDocItems, finds_doc_items
from kode_core.errors import ConflictError
from kode_core.model import ABSENT, DeleteDocument, PutDocument
from kode_core.store import EngineStore

__all__ = ["TRICKY_KEYS", "OpenRecords", "RecordDocTests"]

OpenRecords: TypeAlias = Callable[[], Awaitable[RecordStore]]

_PLACE: Final = ItemsPlace("a", "0" * 16)
_PLAIN: Final = (" ", "!", '"', "/", "0", "a", "a/", "{", "|", "}", "~")
_STEMS: Final = (*_PLAIN, "\x01", "\x7f", "é", "\uffff", "😀", "\U0010ffff")
TRICKY_KEYS: Final = (*_STEMS, *(one + other for one in _STEMS for other in ("!", "~", "é")), "x" * 400, "😀" * 100)
"""Keys at the borders of an escape, keys that begin with other keys, and the longest ones."""


def _doc(key: str, rev: int = 1, text: str = "1", terms: tuple[str, ...] = ()) -> Item:
    index = DocIndex("documents", key, terms)
    return Item(key=own_key(key), rev=rev, body=Body(text, text.encode()[:16]), index=index, time=7)


def _head(place: ItemsPlace) -> HeadRecord:
    empty: dict[str, Any] = {"info": None, "messages": ListHead(), "tool_calls": ListHead()}
    return HeadRecord(
        **empty,
        agent_id=place.agent_id,
        epoch=place.epoch,
        rev=9,
        updated_at=1,
        is_used=True,
        is_settled=True,
        state=b"",
    )


def _term(name: str) -> str:
    return f"{name:0>32}"


async def _found(records: RecordStore, *names: str, **given: Any) -> list[tuple[str, str, int]]:
    """The agents, keys and revisions of the documents with one of some terms."""
    search = DocSearch(terms=tuple(map(_term, names)), **{"limit": 1000, **given})
    found = await cast(FindsDocItems, records).find_docs(search)
    return [(one.place.agent_id, cast(DocIndex, one.item.index).key, one.item.rev) for one in found]


class RecordDocTests:
    """The tests of ``RecordStoreTests`` that are about documents of the caller's own."""

    many_documents = 2_000
    """How many documents one agent has in the test of pages."""

    async def test_documents_stand_in_the_order_of_their_keys(self, records: RecordStore) -> None:
        """Whatever the caller's keys are, in both directions, and up to the longest ones."""
        collection = "c" * 64
        keys = sorted(f"{collection}/{key}" for key in TRICKY_KEYS)
        docs = [_doc(key) for key in keys]
        await records.apply(_PLACE, docs)
        assert list(await records.items(_PLACE, own_keys())) == docs
        assert list(await records.items(_PLACE, own_keys(descending=True))) == docs[::-1]
        assert list(await records.items(_PLACE, own_keys(keys[3], keys[-3]))) == docs[3:-3]

    async def test_parts_of_a_document_are_those_of_no_other(self, records: RecordStore) -> None:
        """One key may begin with another one, and go on as keys of parts do."""
        keys = [own_key(f"c/{key}") for key in ("k", "k!", "k0", f"k/{1:019d}", f"k/{1:019d}/000000", "😀" * 100)]
        for key in keys:
            await records.put_parts(_PLACE, key, 1, [key[-40:].encode(), b"2"])
        for key in keys:
            assert list(await records.parts(_PLACE, key, 1)) == [key[-40:].encode(), b"2"]
            assert list(await records.part_keys(_PLACE, key, key)) == [(key, 1)]
        await records.drop_parts(_PLACE, keys[0], keys[0], 2)
        assert list(await records.parts(_PLACE, keys[0], 1)) == []
        assert sorted(await records.part_keys(_PLACE, "a", "z")) == sorted((key, 1) for key in keys[1:])

    async def test_documents_are_found_by_their_terms(self, records: RecordStore) -> None:
        """Over all agents or of one, in both orders, page by page, also where keys are the longest ones."""
        if not finds_doc_items(records):
            pytest.skip("the store finds no documents by terms")
        agents = ["a", "a!", "b", "é" * 128, "\U0010ffff" * 64]
        keys = [f"c/{key}" for key in (*TRICKY_KEYS[::3], "😀" * 99 + "a", "😀" * 99 + "b")]
        for agent_id in agents:
            place = ItemsPlace(agent_id, "0" * 16)
            assert await records.swap(None, _head(place), None, ())
            docs = [_doc(key, terms=(_term("all"), _term(f"n{n % 3}"))) for n, key in enumerate(keys)]
            await records.apply(place, [*docs, _doc("c/none of them")])
        every = [(agent_id, key, 1) for agent_id in sorted(agents) for key in sorted(keys)]
        assert await _found(records, "all") == every
        assert await _found(records, "all", descending=True) == every[::-1]
        assert await _found(records, "n0", "n1", "n2", "x") == every
        one = {key for n, key in enumerate(keys) if n % 3 == 1}
        assert await _found(records, "n1") == [place for place in every if place[1] in one]
        for agent_id in agents:
            mine = [place for place in every if place[0] == agent_id]
            assert await _found(records, "n0", "n1", "n2", agent_id=agent_id) == mine
        assert await _found(records, "all", agent_id="nobody") == await _found(records, "x") == []
        for descending, given in itertools.product((False, True), ({}, {"agent_id": "b"})):
            wanted = [place for place in every if place[0] == given.get("agent_id", place[0])]
            seen, after = list[tuple[str, str, int]](), None
            while page := await _found(records, "n0", "n1", "n2", descending=descending, after=after, limit=7, **given):
                seen += page
                after = (page[-1][0], own_key(page[-1][1]), "0" * 16)
            assert seen == (wanted[::-1] if descending else wanted)
        (whole,) = await cast(FindsDocItems, records).find_docs(DocSearch(terms=(_term("all"),), limit=1))
        (bare,) = await cast(FindsDocItems, records).find_docs(DocSearch(terms=(_term("all"),), limit=1, bodies=False))
        assert (whole.item.body.text, bare.item.body.text, bare.item.body.digest) == ("1", "", b"1")

    @pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
    async def test_terms_follow_their_document(self, records: RecordStore, order: tuple[int, ...]) -> None:
        """A document is found by the terms that it has, in whatever order its changes come, and however often."""
        if not finds_doc_items(records):
            pytest.skip("the store finds no documents by terms")
        assert await records.swap(None, _head(_PLACE), None, ())
        changes: list[list[Change]] = [
            [_doc("c/k", 1, terms=(_term("a"), _term("b"), _term("c"))), _doc("c/l", 1, terms=(_term("a"),))],
            [_doc("c/k", 2, terms=(_term("b"),))],
            [_doc("c/k", 3, terms=(_term("c"), _term("d"))), Cut(first=own_key("c/l"), last=own_key("c/l"), rev=3)],
        ]
        await records.apply(_PLACE, changes[0])  # a cut is newer than every put before it
        for number in (*order, 0, 1, 2, 0):
            await records.apply(_PLACE, changes[number])
        found = {name: await _found(records, name) for name in "abcd"}
        kept = [("a", "c/k", 3)]
        assert found == {"a": [], "b": [], "c": kept, "d": kept}
        await records.apply(_PLACE, [Cut(first=own_key("c/k"), last=own_key("c/k"), rev=4)])
        assert await _found(records, *"abcd") == await _found(records, *"abcd", agent_id="a") == []
        await records.apply(_PLACE, [_doc("c/l", 5, terms=(_term("a"),))])
        assert await _found(records, "a") == [("a", "c/l", 5)]
        await records.drop(_PLACE)
        assert await _found(records, *"abcd") == []

    async def test_documents_are_listed_by_prefix(self, records: RecordStore) -> None:
        """Each key is a prefix, too, and finds the keys that begin with it."""
        async with _store(records) as store:
            await store.write_documents("a", [PutDocument("c", key, 1) for key in TRICKY_KEYS])
            await store.put_document("a", "c-", "other", 1)
            await store.put_document("a", "c.c", "other", 1)
            assert await store.list_document_keys("a", "c", limit=1000) == sorted(TRICKY_KEYS)
            for prefix in TRICKY_KEYS:
                found = await store.list_document_keys("a", "c", prefix=prefix, reverse=True, limit=1000)
                assert found == sorted((key for key in TRICKY_KEYS if key.startswith(prefix)), reverse=True)
            assert (await store.aggregate_stats("a")).total_documents == len(TRICKY_KEYS) + 2

    async def test_pages_are_full_although_documents_were_deleted(self, records: RecordStore) -> None:
        """Every second one, and a long run of them: pages leave out the deleted ones and nothing else."""
        keys = [f"k{n:05}" for n in range(self.many_documents)]
        run = keys[self.many_documents // 2 : self.many_documents * 3 // 4]
        gone = {*keys[::2], *run}
        left = [key for key in keys if key not in gone]
        large = "x" * min(records.part_bytes + 1, 400_000)  # one text of several parts
        async with _store(records) as store:
            await store.write_documents("a", [PutDocument("c", key, n) for n, key in enumerate(keys)])
            await store.write_documents("a", [DeleteDocument("c", key) for key in keys if key in gone])
            await store.put_document("a", "c", left[3], large)
            for reverse in (False, True):
                seen, cursor, wanted = list[str](), None, left[::-1] if reverse else left
                while cursor is not None or not seen:
                    page = await store.list_document_keys("a", "c", limit=97, reverse=reverse, cursor=cursor)
                    assert len(page) == 97 or page.next_cursor is None
                    cursor = page.next_cursor
                    seen += page
                assert seen == wanted
                whole = [doc async for doc in store.iter_documents("a", "c", reverse=reverse)]
                assert [doc.key for doc in whole] == wanted
                assert {doc.value for doc in whole if type(doc.value) is str} == {large}
            assert (await store.aggregate_stats("a")).total_documents == len(left)

    async def test_one_of_several_puts_if_absent_succeeds(self, records: RecordStore, another: OpenRecords) -> None:
        """From two stores at once, several times in a row; the losers learn the winner's version."""
        async with _store(records) as one, _store(await another()) as other:
            for round_ in range(4):
                calls = [
                    store.put_document("a", "c", f"k{round_}", n, expect=ABSENT)
                    for n, store in enumerate([one, other] * 4)
                ]
                results = await asyncio.gather(*calls, return_exceptions=True)
                (won,) = [result for result in results if isinstance(result, str)]
                lost = [result for result in results if isinstance(result, ConflictError)]
                assert [exc.version for exc in lost] == [won] * 7
                found = await other.load_document("a", "c", f"k{round_}")
                assert found is not None
                assert (found.version, found.value) == (won, results.index(won))

    async def test_counters_lose_no_step(self, records: RecordStore, another: OpenRecords) -> None:
        """Two stores count in one document, each step demanding the version that it read."""

        async def count(store: EngineStore) -> None:
            for _ in range(4):
                while True:
                    found = await store.load_document("a", "c", "n")
                    value, version = (0, ABSENT) if found is None else (found.value, found.version)
                    try:
                        await store.put_document("a", "c", "n", value + 1, expect=version)
                    except ConflictError:
                        continue
                    break

        async with _store(records) as one, _store(await another()) as other:
            await asyncio.gather(*(count(store) for store in [one, other] * 2))
            found = await one.load_document("a", "c", "n")
            assert found is not None
            assert found.value == 16


def _store(records: Any) -> EngineStore:
    async def engine() -> RecordEngine:
        return RecordEngine(records)

    return EngineStore(engine)
