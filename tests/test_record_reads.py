"""Reads of the record engine in company: late writes, slow readers, and costs that do not grow."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from kode_conformance.suite.damage_tests import check_damaged_heads
from kode_conformance.values import samples
from msgspec.structs import replace

from kode_core import CorruptRecordError, OutcomeUnknownError, StoreBusyError, StoreTimeoutError
from kode_core.batch import Applied, Batch, Doc, DocKind, DocWrite, Fence, Info, ListHead, Refused
from kode_core.codec import Body, digest
from kode_core.engines.record.engine import RecordEngine
from kode_core.engines.record.state import UNNAMED, OpenedHead
from kode_core.engines.record.store import Change, HeadRecord, Item, ItemsPlace, KeyRange, removed
from kode_core.store import EngineStore
from tests.memory_records import Contents, MemoryRecords

ROOMY: dict[str, Any] = {"inline_bytes": 4_000_000, "part_bytes": 8_000_000}


async def opened(records: Any, **how: Any) -> EngineStore:
    async def engine() -> RecordEngine:
        return RecordEngine(records)

    return await EngineStore(engine, **how).open()


async def settled(contents: Contents) -> None:
    """Wait until the head of ``a`` says that all is done."""
    while not contents.heads["a"].is_settled:
        await asyncio.sleep(0.01)


class Gated(MemoryRecords):
    """Holds the next call of one name until it is let go."""

    def __init__(self, contents: Contents, **options: Any) -> None:
        super().__init__(contents, **{**ROOMY, **options})
        self.held: str | None = None
        self.reached, self.let_go = asyncio.Event(), asyncio.Event()

    def hold(self, name: str) -> None:
        self.held, self.reached, self.let_go = name, asyncio.Event(), asyncio.Event()

    async def _gate(self, name: str) -> None:
        if self.held == name:
            self.held = None
            self.reached.set()
            await self.let_go.wait()

    async def apply(self, place: ItemsPlace, changes: Sequence[Change], *, fresh: bool = False) -> None:
        await self._gate("apply")
        await super().apply(place, changes, fresh=fresh)

    async def put_parts(self, place: ItemsPlace, key: str, rev: int, parts: Sequence[bytes]) -> None:
        await self._gate("put_parts")
        await super().put_parts(place, key, rev, parts)

    async def items(self, place: ItemsPlace, keys: KeyRange) -> list[Item]:
        await self._gate("items")
        return await super().items(place, keys)

    async def swap(self, old: HeadRecord | None, new: HeadRecord, fence: Fence | None, items: Sequence[Item]) -> bool:
        await self._gate("swap")
        return await super().swap(old, new, fence, items)


# --- What was removed stays removed -----------------------------------------------------------------------------------


async def test_a_late_put_is_no_part_of_a_list() -> None:
    """A put of an old revision that lands where a row was cut off meanwhile is never read."""
    contents = Contents()
    late, gated = Gated(contents), Gated(contents)
    old, new = [samples.message(0), samples.message(1, "v2"), samples.message(2, "NEW")], samples.messages(2)
    async with (
        await opened(late) as slow,
        await opened(MemoryRecords(contents, **ROOMY)) as other,
        await opened(gated) as reader,
    ):
        await other.save_messages("a", samples.messages(2))
        await settled(contents)
        late.hold("apply")
        writing = asyncio.ensure_future(slow.append_messages("a", [samples.message(2, "OLD")]))
        await late.reached.wait()
        await other.save_messages("a", old)
        await settled(contents)
        gated.hold("items")
        reading = asyncio.ensure_future(reader.load_messages("a"))
        await gated.reached.wait()
        await other.save_messages("a", new)
        late.let_go.set()
        await writing
        gated.let_go.set()
        assert await reading in (old, new)
        assert await reader.load_messages("a") == new
    assert [
        item.body.text for item in contents.items[contents.heads["a"].place].values() if "OLD" in item.body.text
    ] == []


async def test_a_late_put_brings_no_document_back() -> None:
    """A document that was removed stays removed, and one that is put again is the new one."""
    contents = Contents()
    late = Gated(contents)
    slow, other = RecordEngine(late), RecordEngine(MemoryRecords(contents, **ROOMY))

    async def write(engine: RecordEngine, name: str, text: str | None) -> None:
        doc = None if text is None else Doc("k", 0, Body(text, digest(text.encode())))
        batch = Batch(agent_id="a", op_id=name, now=1, docs=(DocWrite(DocKind.LAYER, "k", doc),))
        assert all(isinstance(outcome, Applied) for outcome in await engine.commit([batch]))

    async def texts() -> list[str]:
        return [doc.body.text for doc in await other.docs("a", DocKind.LAYER)]

    late.hold("apply")
    writing = asyncio.ensure_future(write(slow, "1", "old"))
    await late.reached.wait()
    await write(other, "2", None)
    await settled(contents)
    late.let_go.set()
    await writing
    assert await texts() == []
    await write(other, "3", "new")
    assert await texts() == ["new"]
    for engine in (slow, other):
        await engine.close()


async def test_a_list_that_is_replaced_costs_no_removals() -> None:
    """Rows that are put again are not cut; of a list that becomes shorter those behind its end are."""
    contents = Contents()
    async with await opened(MemoryRecords(contents, **ROOMY)) as store:
        await store.save_messages("a", samples.messages(5))
        await store.save_messages("a", [samples.message(n, f"new {n}") for n in range(5)])
        items = contents.items[contents.heads["a"].place]
        assert not any(item.is_removed for item in items.values())
        await store.save_messages("a", [samples.message(n, f"new {n}") for n in range(3)])
        rev = contents.heads["a"].rev
        tombstones = [item for item in items.values() if item.is_removed]
        assert tombstones == [removed(f"m/{n:012d}", rev) for n in (3, 4)]
        await store.save_messages("a", samples.messages(1))
        assert [item.rev for item in items.values() if item.is_removed] == [rev + 1, rev + 1, rev, rev]
        assert await store.load_messages("a") == samples.messages(1)
        assert len(await store.query_messages(agent_id="a")) == 1


# --- Slow readers -----------------------------------------------------------------------------------------------------


class SlowReads(MemoryRecords):
    """Takes many times as long for a list as writers wait for a reader without a sign."""

    def __init__(self, contents: Contents, seconds: float) -> None:
        super().__init__(contents, **ROOMY)
        self.seconds = seconds
        self.lists = self.signs = 0

    async def items(self, place: ItemsPlace, keys: KeyRange) -> list[Item]:
        if keys.bodies and keys.first.startswith("t/"):
            self.lists += 1
            await asyncio.sleep(self.seconds)
        return await super().items(place, keys)

    async def settle(self, head: HeadRecord, *, lasting: bool = False) -> bool:
        self.signs += OpenedHead(head).state.frozen is not None
        return await super().settle(head, lasting=lasting)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let seconds pass faster."""
    monkeypatch.setattr("kode_core.engines.record.io._FROZEN_SECONDS", 0.4)
    monkeypatch.setattr("kode_core.engines.record.reads._OPTIMISTIC_SECONDS", 0.0)


async def test_a_slow_reader_ends_beside_a_fast_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its second attempt is its last one: writers wait as long as it gives signs."""
    monkeypatch.setattr("kode_core.engines.record.reads._OPTIMISTIC_SECONDS", 0.0)
    for longer in (1, 10):  # a process that stands still gives no sign in time
        monkeypatch.setattr("kode_core.engines.record.io._FROZEN_SECONDS", 0.4 * longer)
        slow = await _read_beside_a_writer(1.5 * longer)
        if slow.lists == 2:
            break
    assert slow.lists == 2
    assert slow.signs >= 3


async def _read_beside_a_writer(seconds: float) -> SlowReads:
    contents = Contents()
    slow = SlowReads(contents, seconds)
    async with await opened(MemoryRecords(contents, **ROOMY)) as writer, await opened(slow) as reader:
        await writer.upsert_tool_call_records("a", [samples.tool_call(n) for n in range(20)])
        is_read = False
        written = 0

        async def write() -> None:
            nonlocal written
            while not is_read:
                await writer.upsert_tool_call_records("a", [samples.tool_call(written % 20, result=written)])
                written += 1

        writing = asyncio.ensure_future(write())
        found = await reader.load_tool_call_records("a")
        before, is_read = written, True
        await writing
        assert len(found) == 20
        assert before > 0
        assert written > before
        assert OpenedHead(contents.heads["a"]).state.frozen is None
        return slow


@pytest.mark.usefixtures("soon")
async def test_a_reader_that_never_ends_holds_no_writer_up() -> None:
    """Whatever signs it gives, a writer ends within its deadline."""
    contents = Contents()
    slow = SlowReads(contents, 600)
    async with await opened(MemoryRecords(contents, **ROOMY), timeout_ms=6000) as writer:
        await writer.upsert_tool_call_records("a", [samples.tool_call(0)])
        io = RecordEngine(slow).io
        head = await io.head("a")
        assert head is not None
        async with io.frozen(await io.redo(head)):
            await writer.upsert_tool_call_records("a", [samples.tool_call(1)])
            assert slow.signs >= 3
        assert len(await writer.load_tool_call_records("a")) == 2


async def test_a_reader_that_has_ended_is_waited_for_by_nobody() -> None:
    """Its last sign does not come after its end."""
    contents = Contents()
    records = SlowReads(contents, 0)
    async with await opened(records) as store:
        await store.append_messages("a", samples.messages(1))
        io = RecordEngine(records).io
        head = await io.head("a")
        assert head is not None
        async with io.frozen(head) as frozen:
            assert OpenedHead(contents.heads["a"]).state.frozen == frozen.state.frozen is not None
        assert OpenedHead(contents.heads["a"]).state.frozen is None


# --- Writes that nobody waits for -------------------------------------------------------------------------------------


class Counted(Gated):
    """Counts swaps, and can let others be faster."""

    swaps = 0
    rival: RecordEngine | None = None

    async def swap(self, old: HeadRecord | None, new: HeadRecord, fence: Fence | None, items: Sequence[Item]) -> bool:
        self.swaps += 1
        if self.rival is not None:
            batch = Batch(agent_id="a", op_id=f"rival {self.swaps}", now=1, docs=(_a_doc(self.swaps),))
            await self.rival.commit([batch])
        return await super().swap(old, new, fence, items)


def _a_doc(n: int) -> DocWrite:
    text = str(n)
    return DocWrite(DocKind.LAYER, "k", Doc("k", 0, Body(text, digest(text.encode()))))


async def test_what_was_queued_when_its_caller_left_is_not_sent() -> None:
    """A write behind another one, whose caller is told that it is in doubt, never lands."""
    contents = Contents()
    records = Counted(contents)
    async with await opened(records) as store:
        records.hold("swap")
        first = asyncio.ensure_future(store.append_messages("a", [samples.message(0)]))
        await records.reached.wait()
        second = asyncio.ensure_future(store.append_messages("a", [samples.message(1)]))
        third = asyncio.ensure_future(store.append_event("a", samples.event(0)))
        await asyncio.sleep(0.01)
        for one in (second, third):
            one.cancel()
            with pytest.raises(asyncio.CancelledError):
                await one
        records.let_go.set()
        await first
        assert await store.load_messages("a") == [samples.message(0)]
        assert records.swaps == 1
    assert OpenedHead(contents.heads["a"]).state.next_offset == 1


async def test_what_is_put_down_before_a_commit_is_taken_up_again() -> None:
    """A large change is not committed when its caller left while it was put next to the head; nothing of it stays."""
    contents = Contents()
    records = Counted(contents, inline_bytes=100)
    async with await opened(records) as store:
        records.hold("put_parts")
        writing = asyncio.ensure_future(store.append_messages("a", samples.messages(50)))
        await records.reached.wait()
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        records.let_go.set()
        assert await store.load_messages("a") == []
        assert records.swaps == 0
    assert not any(contents.parts.values())


async def test_a_write_that_lost_to_others_is_not_tried_again_without_its_caller() -> None:
    """A deadline that passes in contention ends the attempts: nothing lands later than what was sent."""
    contents = Contents()
    records, rival = Counted(contents), RecordEngine(MemoryRecords(contents, **ROOMY))
    records.rival = rival
    async with await opened(records, timeout_ms=300) as store:
        with pytest.raises((OutcomeUnknownError, StoreBusyError, StoreTimeoutError)):
            await store.append_messages("a", [samples.message(0)])
        assert records.swaps > 1
        await store.load_messages("a")  # waits for what the store was in the middle of
        sent = records.swaps
        records.rival = None
        await asyncio.sleep(0.2)
        assert records.swaps == sent
        assert await store.load_messages("a") == []
    await rival.close()


# --- Heads that somebody damaged --------------------------------------------------------------------------------------


async def test_every_field_of_a_head_is_under_its_seal() -> None:
    """A value that may be there, but was not written, is no less damaged than one that cannot be read."""
    contents = Contents()

    def changed(**fields: Any) -> Callable[[str], Awaitable[object]]:
        async def damage(agent_id: str) -> None:
            head = contents.heads[agent_id]
            state = fields.get("state", lambda state: state)(head.state)
            contents.heads[agent_id] = replace(head, **{**fields, "state": state})

        return damage

    a_list, info = ListHead(7, 2), Info(Body("{}", b"d"), "t", 3)
    values = {
        "epoch": "f" * 16, "rev": 5, "info": info, "updated_at": 7, "messages": a_list, "tool_calls": a_list,
        "is_used": False, "is_settled": False, "is_numbered": False,
    }  # fmt: skip
    states: list[Callable[[bytes], bytes]] = [
        lambda state: b"",
        lambda state: b"\x80",
        lambda state: b"\xc1junk",
        lambda state: state[:-1],
        lambda state: state[:20] + bytes([state[20] ^ 1]) + state[21:],
    ]
    damages = [(name, changed(**{name: value})) for name, value in values.items()]
    damages += [(f"state {n}", changed(state=state)) for n, state in enumerate(states)]
    damages.append(("info", changed(info=None)))
    store = MemoryRecords(contents, **ROOMY)
    unread = await check_damaged_heads(lambda: _Opening(store), damages)
    assert unread == [name for name, _ in damages]


class _Opening:
    """A store that is opened and closed by ``async with``."""

    def __init__(self, records: MemoryRecords) -> None:
        self._records = records

    async def __aenter__(self) -> EngineStore:
        self._store = await opened(self._records)
        return self._store

    async def __aexit__(self, *exc: object) -> None:
        await self._store.close()


async def test_a_damaged_head_is_deleted_by_its_holder_alone() -> None:
    """A delete under a lease that has ended changes nothing, damaged or not."""
    contents = Contents()
    engine = RecordEngine(MemoryRecords(contents, **ROOMY))
    async with await opened(MemoryRecords(contents, **ROOMY)) as store:
        await store.append_messages("a", samples.messages(1))
    contents.heads["a"] = damaged = replace(contents.heads["a"], state=b"\xc1junk")
    token = await engine.acquire_lease("a", "me", 60_000)
    assert token is not None
    for fence, outcome in ((Fence("you", token), Refused("fence")), (Fence("me", token), Applied())):
        assert contents.heads["a"] == damaged
        (done,) = await engine.commit([Batch(agent_id="a", op_id=fence.owner, now=1, fence=fence, delete=True)])
        assert done == outcome
    assert not contents.heads["a"].is_used
    assert not any(contents.items.values())
    await engine.close()


# --- Heads that are read late ----------------------------------------------------------------------------------------


class LateHeads(MemoryRecords):
    """Reads heads as they were, so many times; and counts how often it is asked for what is true now."""

    def __init__(self, contents: Contents, **options: Any) -> None:
        super().__init__(contents, **{**ROOMY, **options})
        self.late: dict[str, HeadRecord] = {}
        self.left = self.asked = 0

    def later(self, times: int) -> None:
        """Answer with what is there now, so many times."""
        self.late, self.left = dict(self.contents.heads), times

    async def heads(self, agent_ids: Sequence[str]) -> list[HeadRecord]:
        self.left -= 1
        if self.left < 0:
            return await super().heads(agent_ids)
        return [self.late[agent_id] for agent_id in agent_ids if agent_id in self.late]

    async def head_now(self, agent_id: str) -> HeadRecord | None:
        self.asked += 1
        return await super().head_now(agent_id)


@pytest.mark.parametrize("times", [1, 2, 3, 4])
@pytest.mark.parametrize("how", ["a delete", "a stash that is done"])
async def test_a_head_that_is_read_late_again_and_again_is_no_damage(how: str, times: int) -> None:
    """What it names is gone; that it is lost is said only once a read that is never late shows the same head."""
    contents = Contents()
    small = {"inline_bytes": 100, "part_bytes": 100} if how == "a stash that is done" else {}
    records = LateHeads(contents, **small)
    options = {**ROOMY, **small}
    async with await opened(MemoryRecords(contents, **options)) as other, await opened(records) as reader:
        await other.append_messages("a", samples.messages(3))
        if how == "a stash that is done":
            gated = Gated(contents, **options)
            async with await opened(gated) as slow:
                gated.hold("apply")
                writing = asyncio.ensure_future(slow.append_messages("a", [samples.message(3)]))
                await gated.reached.wait()
                assert OpenedHead(contents.heads["a"]).state.stash is not None
                records.later(times)
                gated.let_go.set()
                await writing
                await settled(contents)
            wanted = samples.messages(4)
        else:
            await settled(contents)
            records.later(times)
            await other.delete("a")
            wanted = []
        assert await reader.load_messages("a") == wanted
        assert records.asked >= 1


async def test_what_is_lost_is_named_by_readers_that_may_not_write_and_that_wait() -> None:
    """A read alone says so; and one that made writers wait says it no later."""
    contents = Contents()

    class ReadOnly(LateHeads):
        async def swap(self, *args: Any) -> bool:
            raise AssertionError("nothing may be written")

        settle = swap  # type: ignore[assignment]

    async with await opened(MemoryRecords(contents, **ROOMY)) as store:
        await store.append_messages("a", samples.messages(3))
        await settled(contents)
        del contents.items[contents.heads["a"].place]["m/000000000001"]
    records = ReadOnly(contents)
    async with await opened(records) as reader:
        with pytest.raises(CorruptRecordError, match="no other process removed it"):
            await reader.load_messages("a")
        assert records.asked == 1
        assert await reader.query_messages() != []


@pytest.mark.usefixtures("soon")
async def test_what_is_lost_is_named_although_writers_had_to_wait_for_it() -> None:
    """A freeze makes a revision of its own: that nobody wrote since is seen by that one."""
    contents = Contents()

    class Overtaken(LateHeads):
        reads = 0

        async def items(self, place: ItemsPlace, keys: KeyRange) -> list[Item]:
            self.reads += 1
            found = await super().items(place, keys)
            if self.reads > 2:
                return found[1:]
            await asyncio.sleep(0.01)
            return [replace(found[0], rev=found[0].rev + 9), *found[1:]]

    async with await opened(MemoryRecords(contents, **ROOMY)) as store:
        await store.append_messages("a", samples.messages(3))
        await settled(contents)
    records = Overtaken(contents)
    async with await opened(records) as reader:
        with pytest.raises(CorruptRecordError, match="no other process removed it"):
            await reader.load_messages("a")
        assert records.reads == 4


# --- Costs ------------------------------------------------------------------------------------------------------------


class CountedItems(MemoryRecords):
    """Counts the calls and the items that they gave."""

    calls = given = 0

    async def items(self, place: ItemsPlace, keys: KeyRange) -> list[Item]:
        found = await super().items(place, keys)
        self.calls += 1
        self.given += len(found)
        return found


async def test_events_of_one_seq_cost_the_same_however_many_there_are() -> None:
    """Each reads so many items at most, and one that is stored already is found wherever it is (EVT-4)."""
    contents = Contents()
    records = CountedItems(contents, **ROOMY)
    events = [samples.event(0, cursor=n) for n in range(300)]
    async with await opened(records) as store:
        offsets = []
        for event in events:
            calls, given = records.calls, records.given
            offsets.append(await store.append_event("a", event))
            assert records.calls - calls <= 2
            assert records.given - given <= UNNAMED
        assert offsets == list(range(1, 301))
    async with await opened(MemoryRecords(contents, **ROOMY)) as other:
        again = [await other.append_event("a", event) for event in events]
        assert again == offsets
        assert await other.append_events("a", [samples.event(0, cursor=301), events[200], events[3]]) == (301, 201, 4)
        assert [found.offset async for found in other.read_events("a")] == list(range(1, 302))


async def test_many_seqs_that_come_again_are_read_at_once() -> None:
    """A call that was made again after a lost answer costs a read or two, and finds all of its events."""
    contents = Contents()
    records = CountedItems(contents, **ROOMY)
    events = [samples.event(n // 3, cursor=n) for n in range(120)]
    async with await opened(records) as store:
        offsets = await store.append_events("a", events)
        assert await store.append_events("a", events) == offsets
        assert records.calls == 2  # with the head that it had, and once more with the newest
        await store.append_events("a", [samples.event(7, cursor=n) for n in range(1000, 1400)])
        assert await store.append_events("a", events) == offsets


async def test_events_from_before_they_had_names_are_found() -> None:
    """A head of an earlier version says nothing of names: all of a seq is read, as it did."""
    contents = Contents()
    events = [samples.event(0, cursor=n) for n in range(40)]
    async with await opened(MemoryRecords(contents, **ROOMY)) as store:
        for event in events:
            await store.append_event("a", event)
    place = contents.heads["a"].place
    for key in [key for key in contents.items[place] if key.startswith("x/")]:
        del contents.items[place][key]
    head = OpenedHead(contents.heads["a"])
    state = type(head.state)(next_offset=head.state.next_offset, last_seq=head.state.last_seq)
    contents.heads["a"] = head.with_state(state).record
    async with await opened(MemoryRecords(contents, **ROOMY)) as store:
        assert [await store.append_event("a", event) for event in events] == list(range(1, 41))
        assert await store.append_event("a", samples.event(0, cursor=40)) == 41
        assert await store.append_event("a", samples.event(0, cursor=40)) == 41
        assert [await store.append_event("a", event) for event in events] == list(range(1, 41))


# --- Reads that come late ---------------------------------------------------------------------------------------------


class Late(MemoryRecords):
    """Reads some records as they were before anything was written, so often: another member answers by now."""

    late = 0

    async def items(self, place: ItemsPlace, keys: KeyRange) -> list[Item]:
        found = await super().items(place, keys)
        self.late -= 1
        return [] if self.late >= 0 else found

    async def parts(self, place: ItemsPlace, key: str, rev: int) -> list[bytes]:
        found = await super().parts(place, key, rev)
        self.late -= 1
        return [] if self.late >= 0 else found


@pytest.mark.parametrize("messages", [samples.messages(3), [samples.message(0, "y" * 5000)]], ids=["rows", "parts"])
async def test_a_read_that_is_late_once_is_no_damage(messages: list[Any]) -> None:
    """After a failover the rows may be read as they were before the head that was just read; twice is damage."""
    contents = Contents()
    async with await opened(MemoryRecords(contents)) as store:
        await store.save_messages("a", messages)
    await settled(contents)
    records = Late(contents)
    async with await opened(records) as store:
        records.late = 1
        assert await store.load_messages("a") == messages
        assert records.late < 0
        records.late = 100
        with pytest.raises(CorruptRecordError, match="a record of it is missing"):
            await store.load_messages("a")
