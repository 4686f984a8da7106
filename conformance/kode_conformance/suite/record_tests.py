"""Tests of a record store: the guarantees that the engine over it relies on, piece by piece.

.. code-block:: python

    class TestRecords(RecordStoreTests):
        @pytest.fixture
        def another(self) -> OpenRecords:
            return lambda: open_records(options)

A store that fails the suite for no visible reason often fails one of these, which says where.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, cast

import pytest

from kode_conformance.suite.record_doc_tests import OpenRecords, RecordDocTests
from kode_conformance.values import samples
from kode_core.batch import Fence, Info, ListHead, MessageIndex, ToolCallIndex
from kode_core.codec import Body
from kode_core.engines.record.engine import RecordEngine
from kode_core.engines.record.log import ErasesItems, erases_items
from kode_core.engines.record.store import (
    Change,
    Cut,
    EventIndex,
    HeadRecord,
    Item,
    ItemsPlace,
    KeyRange,
    Note,
    RecordStore,
    removed,
)
from kode_core.errors import PayloadTooLargeError
from kode_core.model import UnknownBlock
from kode_core.store import EngineStore

__all__ = ["PLACE", "Held", "OpenRecords", "RecordStoreTests", "a_head", "a_message"]

PLACE: Final = ItemsPlace("a", "0" * 16)
"""Where the items of the tests are."""
MESSAGES: Final = KeyRange(first="m/", last="m/~")


def a_head(rev: int = 1, **fields: Any) -> HeadRecord:
    """The head of the agent ``a``."""
    empty = {"info": None, "messages": ListHead(), "tool_calls": ListHead(), "is_used": True, "is_settled": True}
    how = {**empty, "agent_id": "a", "epoch": PLACE.epoch, "updated_at": 5, "state": b"s", **fields}
    return HeadRecord(rev=rev, **how)


def a_message(position: int, rev: int, text: str = "t") -> Item:
    """A message at a position."""
    return _item(f"m/{position:012d}", rev, text, index=MessageIndex("user", ("text",)))


def _item(key: str, rev: int, text: str, **fields: Any) -> Item:
    return Item(key=key, rev=rev, body=Body(text, text.encode()[:16]), time=7, **fields)


async def _fence(records: RecordStore) -> Fence:
    token = await records.acquire_lease("a", "me", 60_000)
    assert token is not None
    return Fence("me", token)


class Held:
    """A record store with one call that waits until it is let go: tests make a writer or reader slow with it."""

    def __init__(self, records: RecordStore, name: str) -> None:
        self._records = records
        self._name = name
        self.reached, self.let_go = asyncio.Event(), asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._records, name)
        return self._waiting(value) if name == self._name else value

    def _waiting(self, call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def late(*arguments: Any, **how: Any) -> Any:
            self.reached.set()
            await self.let_go.wait()
            return await call(*arguments, **how)

        return late


def _store(records: Any) -> EngineStore:
    async def engine() -> RecordEngine:
        return RecordEngine(records)

    return EngineStore(engine)


class RecordStoreTests(RecordDocTests):
    """Subclass it, and give it the fixture ``another``, which opens the same place as often as it is called."""

    @pytest.fixture
    async def records(self, another: OpenRecords) -> AsyncIterator[RecordStore]:
        """A store that is empty."""
        opened = await another()
        yield opened
        await opened.close()

    # --- one record at a time

    async def test_a_head_is_swapped_only_for_its_successor(self, records: RecordStore) -> None:
        """One of several swaps from the same revision wins; a lease next to the head stays; a fence must be held."""
        assert await records.swap(None, a_head(1), None, [])
        assert not await records.swap(None, a_head(1), None, [])
        fence = await _fence(records)
        done = await asyncio.gather(*(records.swap(a_head(1), a_head(2), None, []) for _ in range(4)))
        assert sorted(done) == [False, False, False, True]
        assert await records.heads(["a", "b"]) == [a_head(2)]
        assert await records.holds_lease("a", fence)
        assert await records.swap(a_head(2), a_head(3), fence, [])
        await records.release_lease("a", fence)
        assert not await records.swap(a_head(3), a_head(4), fence, [])

    async def test_a_head_is_settled_unless_it_was_swapped(self, records: RecordStore) -> None:
        """A pending head is found until then."""
        info = Info(Body("{}", b"d"), "t", 3, (("k", "v"),))
        head = a_head(1, is_settled=False, info=info, messages=ListHead(9, 2))
        assert await records.swap(None, head, None, [])
        assert list(await records.unsettled()) == ["a"]
        assert not await records.settle(a_head(2))
        assert not await records.settle(a_head(2), lasting=True)
        done = a_head(1, info=info, messages=ListHead(9, 2), state=b"new")
        assert await records.settle(done)
        async with asyncio.timeout(10):  # it may be listed before it is durable, and so before it is read
            while list(await records.heads(["a"])) != [done] or list(await records.unsettled()):
                await asyncio.sleep(0.01)

    async def test_a_lasting_settle_is_read_at_once(self, records: RecordStore) -> None:
        """No reader needs the changes of a head once its lasting settle is written."""
        for rev in range(1, 20):
            assert await records.swap(None if rev == 1 else a_head(rev - 1), a_head(rev, is_settled=False), None, [])
            assert await records.settle(a_head(rev), lasting=True)
            assert list(await records.heads(["a"])) == [a_head(rev)]

    async def test_items_are_written_with_the_head_or_not_at_all(self, records: RecordStore) -> None:
        """As many as the store says that it can."""
        items = [a_message(n, 1) for n in range(records.swap_items)]
        assert await records.swap(None, a_head(1), None, items)
        assert not await records.swap(None, a_head(1), None, [a_message(50, 1)][: len(items)])
        assert list(await records.items(PLACE, MESSAGES)) == items

    async def test_everybody_of_whom_something_is_stored(self, records: RecordStore) -> None:
        """Agents with info or without, in the order of their ids, page by page, without deleted agents."""
        info = Info(Body("{}", b"d"), "t", 3)
        for agent_id, has_info, is_used in (
            ("b", False, True),
            ("a", True, True),
            ("gone", False, False),
            ("é", False, True),
        ):
            head = a_head(1, agent_id=agent_id, info=info if has_info else None, is_used=is_used)
            assert await records.swap(None, head, None, [])
        await records.acquire_lease("leased", "me", 60_000)
        found: list[str] = []
        async with asyncio.timeout(10):  # an index may lag behind
            while found != ["a", "b", "é"]:
                found = list(await records.stored_ids(None, 10))
        assert list(await records.stored_ids(None, 2)) == ["a", "b"]
        assert list(await records.stored_ids("a", 1)) == ["b"]
        assert list(await records.stored_ids("b", 10)) == ["é"]
        assert list(await records.stored_ids("é", 10)) == []

    async def test_a_lease_alone_is_no_head(self, records: RecordStore) -> None:
        """An agent can be locked before anything is stored of it; tokens grow."""
        first = await _fence(records)
        assert list(await records.heads(["a"])) == []
        assert await records.acquire_lease("a", "you", 60_000) is None
        assert await records.swap(None, a_head(1), first, [])
        await records.release_lease("a", first)
        assert (await _fence(records)).token > first.token

    @pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
    async def test_changes_may_come_late_and_in_any_order(self, records: RecordStore, order: tuple[int, ...]) -> None:
        """Only a greater revision replaces an item; a cut removes only older items, and they stay removed."""
        changes: list[list[Change]] = [
            [a_message(0, 1), a_message(1, 1), a_message(2, 1)],
            [a_message(0, 2, "second"), Cut(first="m/000000000001", last="m/~", rev=2), a_message(1, 2, "second")],
            [a_message(1, 3, "third")],
        ]
        for number in (*order, 1, 2, 0):  # whatever came first, all older ones were put before a cut
            await records.apply(PLACE, changes[number])
        found = {one.key: (one.rev, one.body.text) for one in await records.items(PLACE, MESSAGES)}
        assert found["m/000000000000"] == (2, "second")
        assert found["m/000000000001"] == (3, "third")
        last = [one for one in await records.items(PLACE, MESSAGES) if one.key == "m/000000000002"]
        assert last == [removed("m/000000000002", 2)]

    async def test_a_head_is_read_as_it_is_now(self, another: OpenRecords, records: RecordStore) -> None:
        """By whichever process it was swapped; a lease alone is none."""
        other = await another()
        assert await records.head_now("a") is None
        await _fence(other)
        assert await records.head_now("a") is None
        head = a_head()
        assert await other.swap(None, head, None, ())
        assert await records.head_now("a") == head
        newer = a_head(2)
        assert await other.swap(head, newer, None, ())
        assert await records.head_now("a") == newer
        assert await records.head_now("b") is None
        await other.close()

    async def test_a_fresh_place_is_filled(self, records: RecordStore) -> None:
        """By hundreds of items at a time; they are guarded as others are afterwards."""
        items = [a_message(n, 5) for n in range(120)]
        await records.apply(PLACE, items, fresh=True)
        await records.apply(PLACE, [a_message(0, 4, "late"), a_message(1, 6, "new")])
        assert list(await records.items(PLACE, MESSAGES)) == [items[0], a_message(1, 6, "new"), *items[2:]]
        await records.drop(PLACE)
        assert list(await records.items(PLACE, MESSAGES)) == []

    async def test_items_are_erased_without_a_trace(self, records: RecordStore) -> None:
        """Of a range, both ends inclusive, older revisions go, and leave no tombstone."""
        if not erases_items(records):
            pytest.skip("the store cannot erase items")
        await records.swap(None, a_head(1), None, ())
        await records.apply(PLACE, [a_message(i, 1 + i % 2) for i in range(10)])
        await cast(ErasesItems, records).erase(PLACE, "m/000000000002", "m/000000000006", 2)
        found = [item.key for item in await records.items(PLACE, MESSAGES)]
        assert found == [f"m/{i:012d}" for i in (0, 1, 3, 5, 7, 8, 9)]
        await cast(ErasesItems, records).erase(PLACE, "m/000000000003", "m/000000000003", 3)
        await records.apply(PLACE, [a_message(4, 1)])
        found = [item.key for item in await records.items(PLACE, MESSAGES)]
        assert found == [f"m/{i:012d}" for i in (0, 1, 4, 5, 7, 8, 9)]

    async def test_spans_of_items(self, records: RecordStore) -> None:
        """By either key, in either order, so many at most, with texts or without, of one channel."""
        calls = [
            _item(
                f"t/{n:012d}", 1, f"call {n}", index=ToolCallIndex("i", "n", "s", False, False), alt=f"t/h{n % 2}/{n}"
            )
            for n in range(6)
        ]
        events = [
            _item(f"e/{n:019d}", 1, f"event {n}", index=EventIndex(9 - n, "abc"[n % 3]), alt=f"e/{9 - n:020d}/{n}")
            for n in range(9)
        ]
        await records.apply(PLACE, [a_message(0, 1), *calls, *events])

        async def texts(first: str, last: str, **how: Any) -> list[str]:
            return [one.body.text for one in await records.items(PLACE, KeyRange(first=first, last=last, **how))]

        assert await texts("t/", "t/~") == [f"call {n}" for n in range(6)]
        assert await texts("t/h1/", "t/h1/~", by_alt=True) == ["call 1", "call 3", "call 5"]
        assert await texts("t/h1/", "t/h1/~", by_alt=True, descending=True, limit=1) == ["call 5"]
        found = await records.items(PLACE, KeyRange(first="t/", last="t/~", bodies=False))
        assert [(one.key, one.body.digest) for one in found] == [(call.key, call.body.digest) for call in calls]
        assert await texts("e/", "e/~", by_alt=True, limit=3) == ["event 8", "event 7", "event 6"]
        assert await texts("e/", "e/~", channel="b") == ["event 1", "event 4", "event 7"]
        assert await texts("e/", "e/~", channel="b", descending=True, limit=2) == ["event 7", "event 4"]
        assert await texts("e/", "e/~", by_alt=True, channel="c", limit=2) == ["event 8", "event 5"]
        assert await texts("e/1", "e/0") == []

    async def test_parts_are_kept_by_revision_until_they_are_dropped(self, records: RecordStore) -> None:
        """Parts of other keys and of newer revisions stay."""
        for key, rev in (("m/1", 1), ("m/1", 2), ("m/2", 1)):
            await records.put_parts(PLACE, key, rev, [b"x" * 10, key.encode(), b"\0\xff"])
        await records.drop_parts(PLACE, "m/1", "m/1", 2)
        assert list(await records.parts(PLACE, "m/1", 1)) == []
        assert list(await records.parts(PLACE, "m/1", 2)) == [b"x" * 10, b"m/1", b"\0\xff"]
        assert len(await records.parts(PLACE, "m/2", 1)) == 3
        await records.drop(PLACE)
        assert list(await records.parts(PLACE, "m/2", 1)) == []

    async def test_the_keys_of_parts(self, records: RecordStore) -> None:
        """Each key of a span is given once, with its revision."""
        for key, rev in (("i/a", 3), ("p/1", 1), ("p/2", 2), ("p/2", 5)):
            await records.put_parts(PLACE, key, rev, [b"1", b"2"])
        assert sorted(await records.part_keys(PLACE, "p/", "p/~")) == [("p/1", 1), ("p/2", 2), ("p/2", 5)]
        assert list(await records.part_keys(PLACE, "i/a", "i/a")) == [("i/a", 3)]
        assert len(await records.part_keys(PLACE, "a", "z")) == 4
        assert list(await records.part_keys(PLACE, "m/", "m/~")) == []
        assert list(await records.part_keys(ItemsPlace("b", PLACE.epoch), "a", "z")) == []

    async def test_notes_are_found_by_time_and_by_agent(self, records: RecordStore) -> None:
        """The oldest first, so many at most, until they are forgotten; whatever an agent is called."""
        names = ["b", "a", "a/b", "é#~", "x" * 100]
        notes = [Note(ItemsPlace(name, f"{n:016x}"), 1_700_000_000_000 + n) for n, name in enumerate(names)]
        assert list(await records.notes(2_000_000_000_000, 10)) == []
        for note in (*reversed(notes), notes[0]):
            await records.note(note)
        assert list(await records.notes(2_000_000_000_000, 10)) == notes
        assert list(await records.notes(notes[2].at, 10)) == notes[:3]
        assert list(await records.notes(2_000_000_000_000, 2)) == notes[:2]
        assert list(await records.notes_of("a")) == [notes[1]]
        await records.forget(notes[1])
        await records.forget(notes[1])
        assert list(await records.notes_of("a")) == []
        again = notes[2]._replace(at=notes[2].at + 5)
        await records.note(again)
        await records.forget(notes[2])
        assert list(await records.notes_of("a/b")) == [again]

    # --- the engine over a slow record store

    async def test_a_late_writer_leaves_nothing_of_a_deleted_agent(
        self, records: RecordStore, another: OpenRecords
    ) -> None:
        """One that was slow between commit and apply, while another store deleted the agent, cleans up after itself."""
        inner = await another()
        inner.swap_items = 0  # or there would be nothing between
        slow = Held(inner, "apply")
        async with _store(records) as other:
            async with _store(slow) as late:
                writing = asyncio.ensure_future(late.append_messages("a", samples.messages(3)))
                await slow.reached.wait()
                await other.delete("a")
                slow.let_go.set()
                await writing
            assert await other.load_messages("a") == []
            for head in await records.heads(["a"]):
                assert list(await records.items(head.place, MESSAGES)) == []

    async def test_a_slow_reader_finds_the_parts_of_one_instant(
        self, records: RecordStore, another: OpenRecords
    ) -> None:
        """The parts that it is about to read are removed by a writer: it reads what came in their place."""
        slow = Held(await another(), "parts")
        async with _store(slow) as reader, _store(records) as writer:
            size = records.part_bytes + 1000
            await writer.save_messages("a", [samples.message(0, "x" * size)])
            reading = asyncio.ensure_future(reader.load_messages("a"))
            await slow.reached.wait()
            await writer.save_messages("a", [samples.message(1, "y" * size)])
            slow.let_go.set()
            assert await reading == [samples.message(1, "y" * size)]

    async def test_a_slow_writer_does_not_commit_what_was_removed(
        self, records: RecordStore, another: OpenRecords
    ) -> None:
        """Its parts are removed, as another writer was faster: its swap fails, and it writes the parts again."""
        slow = Held(await another(), "swap")
        async with _store(slow) as store, _store(records) as other:
            size = records.part_bytes + records.inline_bytes
            await other.append_messages("a", samples.messages(3))
            writing = asyncio.ensure_future(store.append_messages("a", [samples.message(7, "x" * size)]))
            await slow.reached.wait()
            await other.append_messages("a", [samples.message(3, "y" * size)])
            slow.let_go.set()
            await writing
            found = await other.load_messages("a")
            assert found == [*samples.messages(3), samples.message(3, "y" * size), samples.message(7, "x" * size)]

    async def test_what_cannot_be_applied_is_not_committed(self, records: RecordStore) -> None:
        """A message with more search values than fit next to it is refused, and the agent can still be written."""
        many = samples.message().replace(content=[UnknownBlock({"type": f"{n:0>20}"}) for n in range(5_000)])
        async with _store(records) as store:
            with pytest.raises(PayloadTooLargeError, match="so many types"):
                await store.append_messages("a", [many])
            await store.append_messages("a", samples.messages(1))
            assert await store.load_messages("a") == samples.messages(1)
