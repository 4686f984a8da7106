"""Tags of documents over a record store: killed writers, deleted agents, old places, and pages of damaged records."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from kode_conformance.values import samples
from msgspec.structs import replace

from kode_core.batch import Found, SessionRow
from kode_core.engines.record.engine import RecordEngine
from kode_core.engines.record.store import FoundItem, ItemsPlace
from kode_core.engines.record.terms import DocSearch
from kode_core.errors import StoreUnavailableError, UnsupportedError
from kode_core.model import DeleteDocument, PutDocument
from kode_core.query import SessionQuery
from kode_core.store import EngineStore
from tests.memory_records import Contents, MemoryRecords, StopsAt

ROOMY = {"inline_bytes": 100_000, "part_bytes": 100_000}


def store_over(records: MemoryRecords) -> EngineStore:
    async def engine() -> RecordEngine:
        return RecordEngine(records)

    return EngineStore(engine)


async def keys_with(store: EngineStore, **tags: str) -> list[tuple[str, str]]:
    return [(one.agent_id, one.key) for one in await store.query_documents("c", tags, limit=1000)]


@pytest.mark.parametrize("swap_items", [0, 9])
async def test_a_writer_that_stops_leaves_no_torn_tags(swap_items: int) -> None:
    """Killed between any two calls of a write that changes, adds and removes tags: before it or after it, for all."""
    before = {("r1",): ["k", "l"], ("r2",): []}
    after = {("r1",): [], ("r2",): ["k", "m"]}
    for n in range(40):
        contents = Contents()
        async with store_over(MemoryRecords(contents, swap_items=swap_items)) as store:
            await store.write_documents("a", [PutDocument("c", key, 1, tags={"run": "r1"}) for key in "kl"])
        stopping = StopsAt(contents, n, swap_items=swap_items)
        killed = await store_over(stopping).open()
        puts = [PutDocument("c", key, "x" * 900, tags={"run": "r2", "n": key}) for key in "km"]
        writing = asyncio.ensure_future(killed.write_documents("a", [*puts, DeleteDocument("c", "l")]))
        stopped = asyncio.ensure_future(stopping.stopped.wait())
        await asyncio.wait([writing, stopped], return_when=asyncio.FIRST_COMPLETED)
        is_done = writing.done()
        async with store_over(MemoryRecords(contents, swap_items=swap_items)) as store:
            found = {(run,): [key for _, key in await keys_with(store, run=run)] for run in ("r1", "r2")}
            assert found in ((after,) if is_done else (before, after)), n
            for run in ("r1", "r2"):
                page = await store.query_documents("c", {"run": run}, agent_id="a")
                assert [one.key for one in page] == found[run,]
                assert all(one.tags is not None and one.tags["run"] == run for one in page)
            assert not (await store.check_consistency()).issues
            await store.delete("a")
            assert await keys_with(store, run="r1") == await keys_with(store, run="r2") == []
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:  # all that a killed process would have taken with it
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        killed._context.closing.set()
        if is_done:
            return
    raise AssertionError("the write takes more calls than were tried")


async def test_documents_of_old_places_hide_none() -> None:
    """The items of deleted agents may lie before or behind the ones of today under the same key, at pages' borders."""
    contents = Contents()
    async with store_over(MemoryRecords(contents, **ROOMY)) as store:
        await store.write_documents("a", [PutDocument("c", f"k{n}", n, tags={"run": "r1"}) for n in range(5)])
        (place,) = contents.items
        for epoch in ("0" * 16, "f" * 16, "e" * 16):
            contents.items[ItemsPlace("a", epoch)] = dict(contents.items[place])
        for reverse in (False, True):
            seen, cursor = list[str](), None
            while cursor is not None or not seen:
                page = await store.query_documents("c", {"run": "r1"}, limit=1, reverse=reverse, cursor=cursor)
                seen += [one.key for one in page]
                cursor = page.next_cursor
            assert seen == sorted((f"k{n}" for n in range(5)), reverse=reverse)


async def test_a_store_without_terms_refuses_tags() -> None:
    """The records of a third party that have no such index: nothing is written, and documents without tags work."""

    class Plain(MemoryRecords):
        find_docs: Any = None

    async with store_over(Plain(Contents())) as store:
        with pytest.raises(UnsupportedError, match="keeps no tags"):
            await store.put_document("a", "c", "k", 1, tags={"run": "r1"})
        with pytest.raises(UnsupportedError, match="keeps no tags"):
            await store.query_documents("c", {"run": "r1"})
        await store.put_document("a", "c", "k", 1)
        assert not (await store.check_consistency()).issues


async def test_lost_terms_are_found_by_the_check() -> None:
    """A document that its index has lost is named, and putting it again mends it."""
    contents = Contents()
    async with store_over(MemoryRecords(contents, **ROOMY)) as store:
        await store.write_documents("a", [PutDocument("c", key, 1, tags={"run": "r1"}) for key in "kl"])
        (items,) = contents.items.values()
        (key,) = [key for key in items if key.endswith("/k")]
        items[key] = replace(items[key], index=replace(items[key].index, terms=()))
        report = await store.check_consistency()
        assert [issue.agent_id for issue in report.issues] == ["a"]
        assert "document 'c/k'" in report.issues[0].message
        await store.put_document("a", "c", "k", 1, tags={"run": "r1"})
        assert not (await store.check_consistency()).issues


class Damaged(MemoryRecords):
    """Leaves damaged records out and names them, as stores do that read the records of a page."""

    names: Any = ()

    async def find_sessions(self, query: SessionQuery) -> list[SessionRow]:
        found = await super().find_sessions(query)
        return Found([one for one in found if one.agent_id not in self.names], self._names(found))

    async def find_docs(self, search: DocSearch) -> list[FoundItem]:
        found = await super().find_docs(search)
        return Found([one for one in found if one.place.agent_id not in self.names], self._names(found))

    def _names(self, found: Sequence[Any]) -> list[str]:
        ids = [getattr(one, "agent_id", None) or one.place.agent_id for one in found]
        return [f"agent {one!r}" for one in ids if one in self.names]


@pytest.mark.parametrize("is_large", [False, True])
async def test_a_page_of_damaged_sessions_is_not_the_last(is_large: bool) -> None:
    """In place of sessions that cannot be read others are read, whether the page finds out or a later read."""
    contents = Contents()
    records = Damaged(contents, **({} if is_large else ROOMY))
    ids = [f"a{n:03}" for n in range(60)]
    bad = {*ids[3:6], *ids[10:55]}
    async with store_over(records) as store:
        for agent_id in ids:
            await store.save_info(agent_id, samples.info(agent_id, metadata={"x": "y" * (2000 if is_large else 1)}))
        if is_large:
            for place, parts in contents.parts.items():
                if place.agent_id in bad:
                    contents.parts[place] = {key: [b"no", *rest] for key, (_, *rest) in parts.items()}
        else:
            records.names = bad
        seen, left_out, cursor = list[str](), set[str](), None
        while cursor is not None or not seen:
            page = await store.query_sessions(sort_by="created_at", order="asc", limit=5, cursor=cursor)
            assert len(page) == 5 or page.next_cursor is None
            seen += [one.agent_id for one in page]
            left_out |= set(page.left_out)
            cursor = page.next_cursor
        assert seen == [one for one in ids if one not in bad]
        assert len(left_out) == len(bad)


async def test_a_page_of_damaged_documents_is_not_the_last() -> None:
    """More damaged documents than a page asks for at once."""
    records = Damaged(Contents(), **ROOMY)
    async with store_over(records) as store:
        for n in range(60):
            await store.put_document(f"a{n:03}", "c", "k", n, tags={"run": "r1"})
        records.names = {f"a{n:03}" for n in range(2, 55)}
        page = await store.query_documents("c", {"run": "r1"}, limit=4)
        assert [one.value for one in page] == [0, 1, 55, 56]
        assert len(page.left_out) == 53
        rest = await store.query_documents("c", {"run": "r1"}, limit=4, cursor=page.next_cursor)
        assert ([one.value for one in rest], rest.next_cursor) == ([57, 58, 59], None)


async def test_a_failed_write_of_tags_is_told() -> None:
    """The error of a store that cannot be reached reaches the caller as it is; what was committed is found later."""

    class Failing(MemoryRecords):
        fails = False

        async def apply(self, place: ItemsPlace, changes: Sequence[Any], *, fresh: bool = False) -> None:
            if self.fails:
                raise StoreUnavailableError("down")
            await super().apply(place, changes, fresh=fresh)

    contents = Contents()
    records = Failing(contents, **ROOMY)
    async with store_over(records) as store:
        records.fails = True
        await store.put_document("a", "c", "k", 1, tags={"run": "r1"})
        records.fails = False
        assert await keys_with(store, run="r1") == [("a", "k")]
