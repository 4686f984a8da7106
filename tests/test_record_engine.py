"""The engine over record stores: every check, and what happens when a writer or reader stops between any two calls."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import msgspec
import pytest
from kode_conformance.kills.writes import FORK, WRITES, Portrait, Write, expected, overwrite, portrait, seed, write_on
from kode_conformance.suite.record_tests import Held, OpenRecords, RecordStoreTests
from kode_conformance.testclass import StoreConformance, beyond
from kode_conformance.values import samples

from kode_core import CorruptRecordError, OutcomeUnknownError, PayloadTooLargeError, StoreUnavailableError
from kode_core.batch import Fence
from kode_core.engine import Engine
from kode_core.engines.record.engine import RecordEngine
from kode_core.engines.record.state import OpenedHead
from kode_core.engines.record.store import Change, FoundItem, HeadRecord, Item, ItemsPlace
from kode_core.query import RowQuery
from kode_core.store import EngineStore
from tests.memory_records import Contents, MemoryRecords, RecordsHarness, StopsAt, TogetherHarness

OPTIONS: dict[str, dict[str, Any]] = {
    "tight": {},
    "together": dict(TogetherHarness.options),
    "roomy": {"inline_bytes": 100_000, "part_bytes": 350_000},
}


class TestRecords(StoreConformance):
    harness = RecordsHarness()


class TestTogether(StoreConformance):
    harness = TogetherHarness()
    later = beyond(2)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
class TestPieces(RecordStoreTests):
    @pytest.fixture
    def another(self, options: dict[str, Any]) -> OpenRecords:
        contents = Contents()

        async def open_records() -> MemoryRecords:
            return MemoryRecords(contents, **options)

        return open_records


async def opened(records: Any) -> EngineStore:
    async def engine() -> RecordEngine:
        return RecordEngine(records)

    return await EngineStore(engine).open()


_LEFT: list[EngineStore] = []
"""The stores of processes that were killed."""


async def interrupted(records: StopsAt, write: Write) -> bool:
    """Let a write run until it stops; whether it ended before."""
    store = await opened(records)
    _LEFT.append(store)
    task = asyncio.ensure_future(write.act(store, "a"))
    stopped = asyncio.ensure_future(records.stopped.wait())
    await asyncio.wait([task, stopped], return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    return task.done()


async def abandon() -> None:
    """End all that a killed process would have taken with it, the warning that its store was not closed included."""
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    while _LEFT:
        _LEFT.pop()._context.closing.set()


async def stops(
    write: Write,
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    begin: Callable[[Contents], Awaitable[object]] | None = None,
) -> AsyncIterator[tuple[int, Contents, bool]]:
    """A process that dies at each call of a write: the call's number, what is stored then, and whether it had ended."""
    monkeypatch.setattr("kode_core.engines.record.writer._SETTLE_SECONDS", 0)
    monkeypatch.setattr("kode_core.engines.record.writer._SETTLE_EVENTS_SECONDS", 0)
    monkeypatch.setattr("kode_core.engines.record.recovery.FORK_DEAD_SECONDS", 0)
    for n in range(10_000):
        contents = Contents()
        async with await opened(MemoryRecords(contents, **options)) as store:
            await seed(store, "a")
        if begin is not None:
            await begin(contents)
        done = await interrupted(StopsAt(contents, n, **options), write)
        await abandon()
        yield n, contents, done
        if done:
            gc.collect()  # the stores that were left warn here, and not while other tests run
            return
    raise AssertionError("it never ended")


@pytest.mark.filterwarnings("ignore:.*was not closed:ResourceWarning")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("write", [*WRITES, FORK], ids=lambda write: write.name)
async def test_a_writer_that_stops_between_any_two_calls(
    write: Write, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it wrote is there whole or not at all, for those who come after it, and nothing of it stays behind."""
    async with await opened(MemoryRecords(Contents(), **options)) as store:
        allowed = await expected(store, write)
    async for n, contents, done in stops(write, options, monkeypatch):
        async with await opened(MemoryRecords(contents, **options)) as store:
            assert await store.query_sessions(limit=0) == []
            problem = allowed.problem(await portrait(store, "a"), done=done)
            assert problem is None, f"stopped at call {n}: {problem}"
            for agent_id in [session.agent_id for session in await store.query_sessions()]:
                messages = await store.query_messages(agent_id=agent_id)
                assert len(messages) == len(await store.load_messages(agent_id))
                found = await store.query_tool_calls(agent_id=agent_id)
                assert sorted(c.id for c in found) == sorted(c.id for c in await store.load_tool_call_records(agent_id))
                await write_on(store, agent_id, 1000)
            report = await store.check_consistency()
            assert report.issues == (), f"stopped at call {n}"
        assert all(head.is_settled for head in contents.heads.values())
        places = {head.place for head in contents.heads.values()}
        assert {place for place, items in contents.items.items() if items} <= places


class Doubtful(MemoryRecords):
    """The answer to a swap is lost now and then: sometimes it was done, sometimes it was not."""

    def __init__(self, contents: Contents, lose: Callable[[int], str], **options: Any) -> None:
        super().__init__(contents, **options)
        self.lose = lose
        self.swaps = 0

    async def swap(self, old: HeadRecord | None, new: HeadRecord, fence: Fence | None, items: Sequence[Item]) -> bool:
        self.swaps += 1
        how = self.lose(self.swaps)
        if how == "before":
            raise OutcomeUnknownError("the connection broke")
        swapped = await super().swap(old, new, fence, items)
        if how == "after":
            raise OutcomeUnknownError("the connection broke")
        return swapped


@pytest.mark.parametrize("how", ["before", "after"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
async def test_a_swap_in_doubt_is_done_once(how: str, options: dict[str, Any]) -> None:
    contents = Contents()
    lossy = Doubtful(contents, lambda n: how if n % 2 else "", **options)
    async with await opened(lossy) as store, await opened(MemoryRecords(contents, **options)) as other:
        offsets = []
        for i in range(10):
            await store.append_messages("a", [samples.message(i)])
            offsets.append(await store.append_event("a", samples.event(i)))
            await other.upsert_tool_call_records("a", [samples.tool_call(i)])
            await store.upsert_tool_call_records("a", [samples.tool_call(i, state="SEALED")])
        assert await other.load_messages("a") == samples.messages(10)
        assert [call.state for call in await other.load_tool_call_records("a")] == ["SEALED"] * 10
        assert [event.offset async for event in other.read_events("a")] == offsets
    assert lossy.swaps >= 30


async def test_a_doubt_that_nobody_can_end_is_said() -> None:
    """Others wrote so much meanwhile that the head does not remember."""
    contents = Contents()
    others = await opened(MemoryRecords(contents))

    class Overtaken(Doubtful):
        async def swap(self, *args: Any) -> bool:
            try:
                return await super().swap(*args)
            except OutcomeUnknownError:
                for i in range(20):
                    await others.append_messages("a", [samples.message(100 + i)])
                raise

    async with others, await opened(Overtaken(contents, lambda n: "before")) as store:
        with pytest.raises(OutcomeUnknownError, match="pushed its id out"):
            await store.append_messages("a", [samples.message(0)])
        assert len(await others.load_messages("a")) == 20


async def test_readers_get_their_turn() -> None:
    """However fast somebody rewrites a list, another one reads it, and what it reads is of one instant."""
    contents = Contents()
    async with await opened(MemoryRecords(contents)) as writer, await opened(MemoryRecords(contents)) as reader:
        await writer.save_messages("a", [samples.message(0, "0")] * 30)

        async def write() -> None:
            nonlocal written
            while written < 20:
                written += 1
                await writer.save_messages("a", [samples.message(0, str(written))] * 30)

        writing = asyncio.ensure_future(write())
        written = 0
        while written < 20:
            found = await reader.load_messages("a")
            assert len(found) == 30
            assert len(set(map(str, found))) == 1
        await writing


async def freeze(contents: Contents) -> OpenedHead:
    """As a reader does that others were too fast for."""
    io = RecordEngine(MemoryRecords(contents)).io
    head = await io.head("a")
    assert head is not None
    return await io.freeze(head)


async def test_a_reader_ends_its_own_freeze_alone() -> None:
    contents = Contents()
    async with await opened(MemoryRecords(contents)) as store:
        await store.append_messages("a", samples.messages(1))
        frozen = await freeze(contents)
        assert await store.load_messages("a") == samples.messages(1)
        assert contents.heads["a"] == frozen.record


async def test_a_reader_that_died_holds_nobody_up_for_long() -> None:
    contents = Contents()
    async with await opened(MemoryRecords(contents)) as store:
        await store.append_messages("a", samples.messages(1))
    await freeze(contents)
    async with await opened(MemoryRecords(contents)) as store, asyncio.timeout(30):
        assert await store.load_messages("a") == samples.messages(1)
        await store.append_messages("a", [samples.message(1)])
        assert await store.load_messages("a") == samples.messages(2)


class Halfway(MemoryRecords):
    """Waits in the middle of what it applies."""

    gate: asyncio.Event | None = None

    async def apply(self, place: ItemsPlace, changes: Sequence[Change], *, fresh: bool = False) -> None:
        await super().apply(place, changes[:-1], fresh=fresh)
        if self.gate is not None:
            await self.gate.wait()
        await super().apply(place, changes[-1:], fresh=fresh)


async def test_what_is_written_again_is_never_missing() -> None:
    """A reader that looked at the head before finds the old text or looks again, also where there are parts."""
    contents = Contents()
    slow, gated = Halfway(contents), Held(MemoryRecords(contents), "items")
    async with await opened(slow) as writer, await opened(gated) as reader:
        await writer.save_media_cache("a", [samples.media()] * 40)
        await writer.save_media_cache("a", [samples.media()] * 41)
        reading = asyncio.ensure_future(reader.load_media_cache("a"))
        await gated.reached.wait()
        slow.gate = asyncio.Event()
        writing = asyncio.ensure_future(writer.save_media_cache("a", [samples.media()] * 42))
        await asyncio.sleep(0.02)
        gated.let_go.set()
        await asyncio.wait([reading], timeout=1)
        slow.gate.set()
        await writing
        assert len(await reading) in (41, 42)


async def test_two_thousand_writers_of_one_agent() -> None:
    """Batches that wait are written together, each with an outcome of its own."""
    contents = Contents()
    records = Doubtful(contents, lambda n: "", **OPTIONS["roomy"])
    async with await opened(records) as store:
        offsets = await asyncio.gather(*(store.append_event("a", samples.event(i)) for i in range(2000)))
        assert sorted(offsets) == list(range(1, 2001))
        assert records.swaps < 200


async def test_a_doubt_that_lasts_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads can be read, and no swap is ever answered, as when a majority is away: nobody waits behind it for long."""
    monkeypatch.setattr("kode_core.engines.record.writer._DOUBT_SECONDS", 0.05)
    lossy = Doubtful(Contents(), lambda n: "before")
    async with await opened(lossy) as store:
        with pytest.raises(OutcomeUnknownError):
            await store.append_messages("a", samples.messages(1))
    assert 1 < lossy.swaps < 150


class LosesTouch(Doubtful):
    """The answer to the first swap is lost, and with it the connection for one more call."""

    is_away = False

    async def swap(self, *args: Any) -> bool:
        try:
            return await super().swap(*args)
        except OutcomeUnknownError:
            self.is_away = True
            raise

    async def holds_lease(self, agent_id: str, fence: Fence) -> bool:
        if self.is_away:
            self.is_away = False
            raise StoreUnavailableError("the connection broke")
        return await super().holds_lease(agent_id, fence)


class LosesHeads(Doubtful):
    """The answer to a swap is lost, and the head cannot be read just then."""

    is_away = False

    async def swap(self, *args: Any) -> bool:
        try:
            return await super().swap(*args)
        except OutcomeUnknownError:
            self.is_away = True
            raise

    async def heads(self, agent_ids: Sequence[str]) -> list[HeadRecord]:
        if self.is_away:
            self.is_away = False
            raise StoreUnavailableError("the connection broke")
        return await super().heads(agent_ids)


async def test_a_fork_whose_head_cannot_be_read_is_in_doubt() -> None:
    """A fork may be there when its last answer was lost: the error is no plain failure."""
    lossy = LosesHeads(Contents(), lambda n: "")
    async with await opened(lossy) as store:
        await store.save_info("a", samples.info("a"))
        last = lossy.swaps + 2  # the first reserves the head
        lossy.lose = lambda n: "after" if n == last else ""
        with pytest.raises(OutcomeUnknownError):
            await store.batch_fork("a", 1)
        assert len(await store.list()) == 2


@pytest.mark.parametrize("records", [Doubtful, LosesHeads])
@pytest.mark.parametrize("how", ["before", "after"])
async def test_a_lost_answer_to_a_reader_is_no_damage(
    records: type[Doubtful], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that asks writers to wait, and gets no answer, asks again."""
    lossy = records(Contents(), lambda n: "")
    async with await opened(lossy) as store:
        await store.append_messages("a", samples.messages(3))
        monkeypatch.setattr("kode_core.engines.record.reads._OPTIMISTIC", 0)
        last = lossy.swaps + 1
        lossy.lose = lambda n: how if n == last else ""
        assert await store.load_messages("a") == samples.messages(3)
        assert lossy.swaps >= last


async def test_a_lease_that_cannot_be_asked_for_leaves_a_write_in_doubt() -> None:
    """A fenced write that may have been applied is in doubt, whatever fails after it: it was, and nothing says no."""
    lossy = LosesTouch(Contents(), lambda n: "after" if n == 1 else "")
    async with await opened(lossy) as store, store.acquire_agent_lock("a"):
        with pytest.raises(OutcomeUnknownError):
            await store.append_messages("a", samples.messages(1))
        assert len(await store.load_messages("a")) == 1


# --- Forks and what the dead left -------------------------------------------------------------------------------------


class Slow(MemoryRecords):
    """Fills fresh places slowly."""

    fills = 0

    async def apply(self, place: ItemsPlace, changes: Sequence[Change], *, fresh: bool = False) -> None:
        if fresh:
            self.fills += 1
            await asyncio.sleep(0.05)
        await super().apply(place, changes, fresh=fresh)


async def test_queries_leave_forks_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fork may take longer than others need to look twice: as long as it shows that it goes on nobody removes it."""
    monkeypatch.setattr("kode_core.engines.record.recovery._RECOVER_SECONDS", 0)
    monkeypatch.setattr("kode_core.engines.record.recovery.FORK_DEAD_SECONDS", 0.3)
    monkeypatch.setattr("kode_core.engines.record.forks._SIGN_SECONDS", 0.05)
    contents = Contents()
    slow = Slow(contents, **OPTIONS["roomy"])
    async with await opened(slow) as store, await opened(MemoryRecords(contents)) as other:
        await store.save_turn("a", messages=samples.messages(3000), info=samples.info("a"))
        forking = asyncio.ensure_future(store.batch_fork("a", 1))
        while not forking.done():
            await other.query_sessions()
            await asyncio.sleep(0.01)
        assert await forking
        assert slow.fills == 6
        (child,) = await forking
        assert await other.load_messages(child) == samples.messages(3000)
        assert await other.query_messages(agent_id=child, limit=5000) != []


class TooLarge(MemoryRecords):
    """Has no room left for an agent's items, and says so when it is too late."""

    is_full = False

    async def apply(self, place: ItemsPlace, changes: Sequence[Change], *, fresh: bool = False) -> None:
        if self.is_full and place.agent_id == "a":
            raise PayloadTooLargeError("more than 10 GB")
        await super().apply(place, changes, fresh=fresh)


async def test_an_agent_that_takes_nothing_more_can_be_deleted() -> None:
    """What was committed is not refused; others go on; and a delete needs nothing to be applied before."""
    records = TooLarge(Contents())
    async with await opened(records) as store:
        await store.append_messages("a", samples.messages(1))
        records.is_full = True
        await store.append_messages("a", [samples.message(1)])
        assert await store.load_messages("a") == samples.messages(2)
        with pytest.raises(PayloadTooLargeError):
            await store.append_messages("a", [samples.message(2)])
        await store.save_turn("b", messages=samples.messages(1), info=samples.info("b"))
        assert [session.agent_id for session in await store.query_sessions()] == ["b"]
        await store.delete("a")
        assert await store.load_messages("a") == []
        assert all(head.is_settled for head in records.contents.heads.values())


def unsettle(contents: Contents) -> None:
    """As writers leave agents that died while they removed what was before a delete."""
    for agent_id, record in contents.heads.items():
        head = OpenedHead(record)
        contents.heads[agent_id] = head.with_state(msgspec.structs.replace(head.state, doomed=("0" * 16,))).record


async def test_a_query_does_not_wait_for_all_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kode_core.engines.record.recovery._RECOVER_PATIENCE", 0.05)
    contents = Contents()
    async with await opened(MemoryRecords(contents)) as store:
        await store.append_messages("a", samples.messages(1))
    unsettle(contents)
    stuck = Held(MemoryRecords(contents), "drop")
    async with await opened(stuck) as other, asyncio.timeout(30):
        assert await other.query_sessions() == []
        assert stuck.reached.is_set()


async def test_offsets_do_not_come_again_however_long_ago_a_delete_was() -> None:
    """What is left of an agent may be forgotten after a day, unless events were numbered."""
    contents = Contents()
    async with await opened(MemoryRecords(contents)) as store:
        await store.append_messages("a", samples.messages(1))
        await store.append_event("b", samples.event(0))
        await store.delete("a")
        await store.delete("b")
    assert contents.heads["a"].is_tombstone
    assert not contents.heads["b"].is_tombstone


class Damaged(MemoryRecords):
    """The head of ``a`` cannot be read."""

    async def heads(self, agent_ids: Sequence[str]) -> list[HeadRecord]:
        if "a" in agent_ids:
            raise CorruptRecordError("agent 'a'", "its head is damaged")
        return await super().heads(agent_ids)


async def test_a_damaged_head_spoils_no_query_of_others() -> None:
    contents = Contents()
    async with await opened(MemoryRecords(contents)) as store:
        await store.append_messages("a", samples.messages(1))
        await store.save_turn("b", messages=samples.messages(1), info=samples.info("b"))
    unsettle(contents)
    async with await opened(Damaged(contents)) as store:
        assert [session.agent_id for session in await store.query_sessions()] == ["b"]
    assert contents.heads["b"].is_settled


class SlowDrops(MemoryRecords):
    """Removes what a delete left when it is told to."""

    def __init__(self, contents: Contents) -> None:
        super().__init__(contents, inline_bytes=4_000_000, part_bytes=8_000_000)
        self.until = asyncio.Event()

    async def drop(self, place: ItemsPlace) -> None:
        await self.until.wait()
        await super().drop(place)


async def test_slow_deletes_hold_up_no_other_agent() -> None:
    """However many deletes are slow, an append to another agent is done."""
    records = SlowDrops(Contents())

    async def opener() -> Engine:
        return RecordEngine(records)

    async with EngineStore(opener) as store:
        for i in range(40):
            await store.append_messages(f"a{i}", samples.messages(1))
        deletes = [asyncio.ensure_future(store.delete(f"a{i}")) for i in range(40)]
        await asyncio.sleep(0.01)
        await store.append_messages("other", samples.messages(1))
        assert not any(delete.done() for delete in deletes)
        records.until.set()
        await asyncio.gather(*deletes)


class Overtaken(Doubtful):
    """Loses the answer to one swap that was done, and lets others write before anything is made again."""

    def __init__(self, contents: Contents, meanwhile: Callable[[], Awaitable[object]], **options: Any) -> None:
        super().__init__(contents, lambda n: "", **options)
        self.meanwhile = meanwhile
        self.is_armed = False

    async def swap(self, old: HeadRecord | None, new: HeadRecord, fence: Fence | None, items: Sequence[Item]) -> bool:
        if not self.is_armed:
            return await super().swap(old, new, fence, items)
        self.is_armed = False
        assert await super().swap(old, new, fence, items)
        await self.meanwhile()
        raise OutcomeUnknownError("the connection broke")


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.name)
@pytest.mark.parametrize("what", ["replaces", "deletes"])
async def test_a_write_whose_answer_is_lost_undoes_nothing(what: str, write: Write, options: dict[str, Any]) -> None:
    """What others wrote or deleted since a write was applied stays so, whatever kind of write it was."""
    contents = Contents()
    others = await opened(MemoryRecords(contents, **options))

    seen: list[Portrait] = []

    async def meanwhile() -> None:
        await (others.delete("a") if what == "deletes" else overwrite(others, "a"))
        seen.append(await portrait(others, "a"))

    records = Overtaken(contents, meanwhile, **options)
    async with others, await opened(records) as store:
        await seed(store, "a")
        records.is_armed = True
        await write.act(store, "a")
        assert [await portrait(others, "a")] == seen
        assert [await portrait(store, "a")] == seen


class Between(MemoryRecords):
    """Lets somebody else write between what a query finds and what it asks of the heads."""

    meanwhile: Callable[[], Awaitable[object]] | None = None

    async def find_items(self, query: RowQuery) -> list[FoundItem]:
        found = await super().find_items(query)
        if self.meanwhile is not None:
            meanwhile, self.meanwhile = self.meanwhile, None
            await meanwhile()
        return found


class LateMarks(Between):
    """Acknowledges a settle three reads before it is seen.

    MongoDB does so: one member acknowledges the settle, and a read gives what a majority has.
    """

    def __init__(self, contents: Contents, **options: Any) -> None:
        super().__init__(contents, **options)
        self.settles = dict[str, tuple[HeadRecord, int]]()

    async def settle(self, head: HeadRecord, *, lasting: bool = False) -> bool:
        if lasting:
            return await super().settle(head, lasting=True)
        if self.contents.heads[head.agent_id].rev != head.rev:
            return False
        self.settles[head.agent_id] = head, 3
        return True

    async def heads(self, agent_ids: Sequence[str]) -> list[HeadRecord]:
        for agent_id, (head, left) in list(self.settles.items()):
            self.settles[agent_id] = head, left - 1
            if not left:
                await self._show(agent_id)
        return await super().heads(agent_ids)

    async def drop_parts(self, place: ItemsPlace, first: str, last: str, rev: int) -> None:
        await self._show(place.agent_id)  # a majority acknowledges it, and has all that came before
        await super().drop_parts(place, first, last, rev)

    async def _show(self, agent_id: str) -> None:
        if agent_id in self.settles:
            await super().settle(self.settles.pop(agent_id)[0])


@pytest.mark.parametrize("reads", [Between, LateMarks], ids=["marks seen at once", "marks seen late"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
async def test_a_query_of_an_agent_shows_no_part_of_a_write(options: dict[str, Any], reads: type[Between]) -> None:
    """A query gives the whole list, old or new, while another process replaces it or has stopped in the middle."""
    old, new = samples.messages(3), [samples.message(text=f"new {i}") for i in range(9)]
    allowed = [[one.text for one in some] for some in (old, new)]
    for n in range(2, 12):
        assert await _queried(old, new, n, reads, options) in allowed, f"stopped at call {n}"


async def _queried(old: list[Any], new: list[Any], n: int, reads: type[Between], options: dict[str, Any]) -> list[str]:
    """The texts that a query gives while another process replaces the list and stops at its n-th call."""
    contents = Contents()
    records, stopping = reads(contents, **options), StopsAt(contents, n, **options)
    writer = await opened(stopping)

    async def replace() -> None:
        saving = asyncio.ensure_future(writer.save_messages("a", new))
        stopped = asyncio.ensure_future(stopping.stopped.wait())
        await asyncio.wait([saving, stopped], return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()

    async with await opened(records) as store:
        await store.save_messages("a", old)
        await store.query_messages(agent_id="a")  # which looks for what the dead left
        records.meanwhile = replace
        found = await store.query_messages(agent_id="a", limit=100)
    await abandon()
    stopping.left = 10_000
    await writer.close()
    return [one.text for one in sorted(found, key=lambda one: one.position)]
