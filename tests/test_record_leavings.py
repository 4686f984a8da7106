"""The record engine after failures: what is needed stays, and what nobody needs goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest
from kode_conformance.kills.writes import FORK, WRITES, Write, expected, portrait, seed, write_on
from kode_conformance.suite.record_tests import Held
from kode_conformance.values import samples
from msgspec.structs import replace

from kode_core import OutcomeUnknownError, StoreUnavailableError
from kode_core.batch import Fence
from kode_core.engines.record.engine import RecordEngine
from kode_core.engines.record.state import OpenedHead
from kode_core.engines.record.store import Change, HeadRecord, Item, ItemsPlace, Note
from kode_core.store import EngineStore
from tests.memory_records import Contents, MemoryRecords, StopsAt
from tests.test_record_engine import OPTIONS, opened, stops, unsettle

ROOMY = {"inline_bytes": 4_000_000, "part_bytes": 8_000_000}
LARGE = samples.message(text="y" * 5_000)
LEFT = "kode_core.engines.record.io.LEFT_SECONDS"


def needless(contents: Contents) -> list[object]:
    """All that no head refers to, given that all heads are settled."""
    heads = {head.place: OpenedHead(head) for head in contents.heads.values()}
    found: list[object] = [(place, sorted(items)) for place, items in contents.items.items() if place not in heads]
    found = [one for one in found if one[1]]  # type: ignore[index]
    for place, parts in contents.parts.items():
        for key, rev in parts:
            head, item = heads.get(place), contents.items[place].get(key)
            named = head is not None and head.state.info is not None and key == f"i/{head.state.info[0]}"
            if head is None or not (named or (item is not None and item.parts and item.rev == rev)):
                found.append((place, key, rev))
    return found


async def settled(contents: Contents) -> None:
    """Wait until all heads are settled."""
    async with asyncio.timeout(20):
        while not all(head.is_settled for head in contents.heads.values()):
            await asyncio.sleep(0.01)


async def sweep(contents: Contents, **options: Any) -> None:
    """As the engine does some minutes later."""
    engine = RecordEngine(MemoryRecords(contents, **options))
    await engine.sweep()
    await engine.close()


# --- Redo -------------------------------------------------------------------------------------------------------------


class Members(MemoryRecords):
    """Several members: at the n-th call the one is lost that alone has what need not last."""

    def __init__(self, contents: Contents, n: int, **options: Any) -> None:
        super().__init__(contents, **options)
        self.left = n
        self.lasting = dict(contents.heads)
        self.is_counting = True

    async def step(self) -> None:
        self.left -= self.is_counting
        if self.is_counting and self.left == 0:
            self.contents.heads.clear()
            self.contents.heads.update(self.lasting)
        await super().step()

    async def swap(self, old: HeadRecord | None, new: HeadRecord, fence: Fence | None, items: Sequence[Item]) -> bool:
        await self.step()
        self.is_counting = False
        swapped = await super().swap(old, new, fence, items)
        self.is_counting = True
        self.lasting = dict(self.contents.heads)
        return swapped

    async def settle(self, head: HeadRecord, *, lasting: bool = False) -> bool:
        settled = await super().settle(head, lasting=lasting)
        if lasting:
            self.lasting = dict(self.contents.heads)
        return settled


@pytest.mark.parametrize("write", [*WRITES, FORK], ids=lambda write: write.name)
async def test_a_settle_that_is_lost_takes_nothing_with_it(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """At whatever call of a write a member is lost with its settles: agents are read and written as before."""
    monkeypatch.setattr("kode_core.engines.record.writer._SETTLE_SECONDS", 0)
    monkeypatch.setattr("kode_core.engines.record.writer._SETTLE_EVENTS_SECONDS", 0)
    async with await opened(MemoryRecords(Contents())) as store:
        allowed = await expected(store, write)
    for n in range(1, 10_000):
        contents = Contents()
        async with await opened(MemoryRecords(contents)) as store:
            await seed(store, "a")
        members = Members(contents, n)
        async with await opened(members) as store:
            await write.act(store, "a")
        async with await opened(MemoryRecords(contents)) as store:
            assert await store.query_sessions(limit=0) == []
            problem = allowed.problem(await portrait(store, "a"), done=True)
            assert problem is None, f"a member was lost at call {n}: {problem}"
            await write_on(store, "a", 1000)
        assert all(head.is_settled for head in contents.heads.values())
        if members.left > 0:
            break
    else:
        raise AssertionError("it never ended")


# --- Late writers -----------------------------------------------------------------------------------------------------


async def test_a_late_writer_that_writes_again_leaves_nothing() -> None:
    """Its puts arrive after a delete, and its next write at another epoch comes before it says that it is done."""
    contents = Contents()
    slow = Held(MemoryRecords(contents, **ROOMY), "apply")
    async with await opened(MemoryRecords(contents, **ROOMY)) as other:
        await other.append_messages("x", samples.messages(2))
        await settled(contents)
        async with await opened(slow) as late:
            writing = asyncio.ensure_future(late.append_messages("x", samples.messages(2)))
            await slow.reached.wait()
            await other.delete("x")
            slow.let_go.set()
            await writing
            await late.append_messages("x", samples.messages(1))
        assert len(await other.load_messages("x")) == 1
    assert needless(contents) == []


class Stale(MemoryRecords):
    """Reads heads once as they were some time ago."""

    stale: list[HeadRecord] | None = None

    async def heads(self, agent_ids: Sequence[str]) -> list[HeadRecord]:
        stale, self.stale = self.stale, None
        return await super().heads(agent_ids) if stale is None else stale


@pytest.mark.parametrize("how", ["there was none", "it was of an older epoch"])
async def test_a_head_that_is_read_late_removes_nothing(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that is behind another looks whether the agent was deleted, and reads a head of a moment ago."""
    for name in ("_SETTLE_SECONDS", "_SETTLE_EVENTS_SECONDS"):
        monkeypatch.setattr(f"kode_core.engines.record.writer.{name}", 600)  # it looks when it is closed
    contents = Contents()
    records = Stale(contents, **ROOMY)
    async with await opened(MemoryRecords(contents, **ROOMY)) as other:
        await other.append_messages("x", samples.messages(2))
        before = [] if how == "there was none" else [contents.heads["x"]]
        await other.delete("x")
        async with await opened(records) as late:
            await late.append_messages("x", samples.messages(2))
            await other.append_messages("x", samples.messages(2))
            records.stale = before
        assert records.stale is None
        assert len(await other.load_messages("x")) == 4


# --- Notes and the sweep ----------------------------------------------------------------------------------------------


async def deleted_too_soon(contents: Contents, store: EngineStore) -> ItemsPlace:
    """Delete the agent ``x``; what a writer that was killed had on its way arrives after that. The place of it."""
    await store.append_messages("x", samples.messages(3))
    await settled(contents)
    place = contents.heads["x"].place
    late = dict(contents.items[place])
    await store.delete("x")
    assert needless(contents) == []
    contents.items[place] = late
    return place


async def test_what_arrives_after_a_delete_is_found_and_swept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check of the agent and that of the store say so; some minutes later it is gone, and so is the note of it."""
    contents = Contents()
    async with await opened(MemoryRecords(contents, **ROOMY)) as store:
        await deleted_too_soon(contents, store)
        for report in (await store.check_consistency("x"), await store.check_consistency()):
            assert [issue.code for issue in report.issues if issue.code != "unknown_agent"] == ["half_done_delete"]
        await sweep(contents)
        assert needless(contents) != []
        assert contents.notes
        monkeypatch.setattr(LEFT, 0)
        await sweep(contents)
        assert (await store.check_consistency()).issues == ()
    assert needless(contents) == []
    assert not contents.notes


async def test_what_arrives_after_a_delete_goes_with_the_next() -> None:
    """Whoever deletes the agent again does not wait for the sweep; the note stays for what is later still."""
    contents = Contents()
    async with await opened(MemoryRecords(contents, **ROOMY)) as store:
        place = await deleted_too_soon(contents, store)
        await store.delete("x")
    assert needless(contents) == []
    assert [note.place for note in contents.notes] == [place]


async def test_the_sweep_goes_on_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first call of an engine on, round after round, until it is closed."""
    for name in ("sweep._FIRST_SECONDS", "sweep._ROUND_SECONDS", "recovery._RECOVER_SECONDS"):
        monkeypatch.setattr(f"kode_core.engines.record.{name}", 0.01)
    monkeypatch.setattr(LEFT, 0)
    contents = Contents()
    async with await opened(MemoryRecords(contents, **ROOMY)) as store, asyncio.timeout(20):
        for _ in range(2):
            await store.append_messages("x", samples.messages(2))
            await settled(contents)
            await store.delete("x")
            while contents.notes:
                await asyncio.sleep(0.01)
            unsettle(contents)
            while not contents.heads["x"].is_settled or contents.notes:
                await asyncio.sleep(0.01)
    note = Note(ItemsPlace("x", "0" * 16), 0)
    contents.notes.add(note)
    await asyncio.sleep(0.1)
    assert contents.notes == {note}


async def test_a_note_that_cannot_be_swept_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is made anew, and so comes after the others."""
    monkeypatch.setattr(LEFT, 0)
    monkeypatch.setattr("kode_core.engines.record.sweep._AT_ONCE", 1)
    contents = Contents()

    class Stuck(MemoryRecords):
        async def drop(self, place: ItemsPlace) -> None:
            if place.agent_id == "stuck":
                raise StoreUnavailableError("not now")
            await super().drop(place)

    contents.notes.update({Note(ItemsPlace("stuck", "0" * 16), 1), Note(ItemsPlace("x", "0" * 16), 2)})
    engine = RecordEngine(Stuck(contents))
    async with asyncio.timeout(20):
        while Note(ItemsPlace("x", "0" * 16), 2) in contents.notes:
            await engine.sweep()
    assert {note.place.agent_id for note in contents.notes} == {"stuck"}
    await engine.close()


@pytest.mark.filterwarnings("ignore:.*was not closed:ResourceWarning")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("write", [*WRITES, FORK], ids=lambda write: write.name)
async def test_a_writer_that_is_killed_leaves_nothing_that_is_not_swept(
    write: Write, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between whichever two calls, with what it had put beside the head; and the sweep takes nothing that is needed."""
    monkeypatch.setattr(LEFT, 0)
    async with await opened(MemoryRecords(Contents(), **options)) as store:
        allowed = await expected(store, write)

    async def swept(contents: Contents) -> None:
        await sweep(contents, **options)
        assert not contents.notes

    async for n, contents, done in stops(write, options, monkeypatch, swept):
        async with await opened(MemoryRecords(contents, **options)) as store:
            await store.query_sessions()
            await sweep(contents, **options)
            assert needless(contents) == [], f"stopped at call {n}"
            assert not contents.notes
            problem = allowed.problem(await portrait(store, "a"), done=done)
            assert problem is None, f"stopped at call {n}: {problem}"


class Waits(StopsAt):
    """Waits at the n-th call until it is let go."""

    def __init__(self, contents: Contents, n: int, **options: Any) -> None:
        super().__init__(contents, n, **options)
        self.let_go = asyncio.Event()

    async def step(self) -> None:
        self.left -= 1
        if self.left == -1:
            self.stopped.set()
            await self.let_go.wait()
        await asyncio.sleep(0)


async def slow_writers(
    write: Write, monkeypatch: pytest.MonkeyPatch, meet: Callable[[Contents], Awaitable[object]]
) -> AsyncIterator[tuple[int, Contents]]:
    """A write that waits at each of its calls while *meet* is done: the call's number, and the contents afterwards."""
    monkeypatch.setattr("kode_core.engines.record.writer._SETTLE_SECONDS", 0)
    monkeypatch.setattr("kode_core.engines.record.writer._SETTLE_EVENTS_SECONDS", 0)
    for n in range(10_000):
        contents = Contents()
        async with await opened(MemoryRecords(contents)) as store:
            await seed(store, "a")
        waits = Waits(contents, n)
        async with await opened(waits) as store:
            writing = asyncio.ensure_future(write.act(store, "a"))
            stopped = asyncio.ensure_future(waits.stopped.wait())
            await asyncio.wait([writing, stopped], return_when=asyncio.FIRST_COMPLETED)
            await meet(contents)
            waits.let_go.set()
            await writing
            stopped.cancel()
        yield n, contents
        if waits.left >= 0:
            return
    raise AssertionError("it never ended")


@pytest.mark.parametrize("write", [*WRITES, FORK], ids=lambda write: write.name)
async def test_a_sweep_harms_no_writer_that_is_slow(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes between whichever two calls of a write, much too soon: what is acknowledged is there, and whole."""
    async with await opened(MemoryRecords(Contents())) as store:
        allowed = await expected(store, write)
    monkeypatch.setattr(LEFT, 0)
    async for n, contents in slow_writers(write, monkeypatch, sweep):
        async with await opened(MemoryRecords(contents)) as store:
            await store.query_sessions()
            problem = allowed.problem(await portrait(store, "a"), done=True)
            assert problem is None, f"swept at call {n}: {problem}"
            await sweep(contents)
            assert needless(contents) == [], f"swept at call {n}"
            await write_on(store, "a", 1000)


async def test_parts_of_writers_that_were_killed_are_told_of_when_nobody_sweeps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not while their note is young, since the write may go on."""
    contents = Contents()
    stuck = Held(MemoryRecords(contents), "swap")
    async with await opened(MemoryRecords(contents)) as store:
        await store.append_messages("x", samples.messages(1))
        dying = await opened(stuck)
        writing = asyncio.ensure_future(dying.append_messages("x", [LARGE] * 3))
        await stuck.reached.wait()
        await store.append_messages("x", samples.messages(1))
        assert (await store.check_consistency("x")).issues == ()
        monkeypatch.setattr(LEFT, 0)
        assert [issue.code for issue in (await store.check_consistency("x")).issues] == ["orphaned_records"]
        await sweep(contents)
        assert (await store.check_consistency("x")).issues == ()
        stuck.let_go.set()
        await writing
        await dying.close()
        assert len(await store.load_messages("x")) == 5


class KeepsParts(MemoryRecords):
    """Removes no part, as when the process was killed just before."""

    async def drop_parts(self, place: ItemsPlace, first: str, last: str, rev: int) -> None:
        raise StoreUnavailableError("not now")


async def test_an_info_that_was_replaced_is_swept(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long ago it was saved: the write that replaces it makes a note of its own."""
    contents = Contents()
    async with await opened(MemoryRecords(contents, inline_bytes=4_000)) as store:
        await store.save_info("x", samples.info("x", metadata={"long": "y" * 5_000}))
    contents.notes.clear()
    async with await opened(KeepsParts(contents, inline_bytes=4_000)) as store:
        await store.save_info("x", samples.info("x", metadata={}))
        assert needless(contents) != []
    monkeypatch.setattr(LEFT, 0)
    await sweep(contents)
    assert needless(contents) == []


async def test_many_large_writes_are_noted_once() -> None:
    """A note covers what is begun soon after it."""
    contents = Contents()
    async with await opened(MemoryRecords(contents)) as store:
        for _ in range(5):
            await store.append_messages("x", [LARGE] * 3)
    assert len(contents.notes) == 1


# --- Forks ------------------------------------------------------------------------------------------------------------


class Zombie(MemoryRecords):
    """The answer to one swap is lost, and it lands only after its head was read."""

    at = 0
    late: tuple[HeadRecord | None, HeadRecord] | None = None

    async def swap(self, old: HeadRecord | None, new: HeadRecord, fence: Fence | None, items: Sequence[Item]) -> bool:
        self.at -= 1
        if self.at == 0:
            self.late = old, new
            raise OutcomeUnknownError("the connection broke")
        return await super().swap(old, new, fence, items)

    async def heads(self, agent_ids: Sequence[str]) -> list[HeadRecord]:
        found = await super().heads(agent_ids)
        if self.late is not None:
            (old, new), self.late = self.late, None
            assert await super().swap(old, new, None, ())
        return found

    async def drop(self, place: ItemsPlace) -> None:
        assert place not in {head.place for head in self.contents.heads.values()}
        await super().drop(place)


@pytest.mark.parametrize("at", [1, 2], ids=["it is reserved", "it is done"])
async def test_a_fork_that_lands_late_is_whole(at: int) -> None:
    """It seemed not to be there: nothing of it is removed unless another head says that it never will be."""
    contents = Contents()
    records = Zombie(contents, **ROOMY)
    async with await opened(records) as store:
        await store.save_turn("a", messages=samples.messages(5), info=samples.info("a"))
        records.at = at
        (child,) = await store.batch_fork("a", 1)
        assert await store.load_messages(child) == samples.messages(5)
        assert sorted(await store.list()) == sorted(["a", child])
    assert needless(contents) == []


async def test_a_fork_in_place_of_another_that_is_given_up_leaves_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its head names the epoch that it was to replace until that is removed."""
    monkeypatch.setattr("kode_core.engines.record.recovery.FORK_DEAD_SECONDS", 0)
    contents = Contents()
    async with await opened(MemoryRecords(contents, **ROOMY)) as store:
        await store.append_messages("x", samples.messages(2))
        await settled(contents)
        old = OpenedHead(contents.heads["x"])
        state = replace(old.state, reserved=True, doomed=(old.record.epoch,))
        record = replace(old.record, rev=old.record.rev + 1, epoch="f" * 16, is_used=False)
        contents.heads["x"] = OpenedHead.sealed(record, state).record
        contents.items[record.place] = dict(contents.items[old.record.place])
        await store.query_sessions()
    assert contents.heads["x"].is_settled
    assert needless(contents) == []


# --- What could not be applied ----------------------------------------------------------------------------------------


class Refuses(MemoryRecords):
    """Applies nothing for a while."""

    left = 0

    async def apply(self, place: ItemsPlace, changes: Sequence[Change], *, fresh: bool = False) -> None:
        self.left -= 1
        if self.left >= 0:
            raise StoreUnavailableError("not now")
        await super().apply(place, changes, fresh=fresh)


@pytest.mark.parametrize("options", [{}, ROOMY], ids=["beside the head", "in the head"])
@pytest.mark.parametrize("how", [{"agent_id": "x"}, {}], ids=["of one agent", "of all"])
async def test_an_acknowledged_message_is_found_at_once(how: dict[str, Any], options: dict[str, Any]) -> None:
    """By the next query of the same store, although it could not be applied when it was committed."""
    records = Refuses(Contents(), **options)
    async with await opened(records) as store:
        await store.append_messages("x", samples.messages(1))
        assert len(await store.query_messages()) == 1
        records.left = 1
        await store.append_messages("x", [LARGE])
        assert len(await store.query_messages(**how)) == 2


@pytest.mark.parametrize("meanwhile", ["nothing", "a write", "a delete"])
async def test_a_writer_applies_by_itself_what_it_could_not(meanwhile: str) -> None:
    """No other call has to come; what others did since stays as it is."""
    contents = Contents()
    records = Refuses(contents, **ROOMY)
    async with await opened(records) as store, await opened(MemoryRecords(contents, **ROOMY)) as other:
        await store.append_messages("x", samples.messages(1))
        records.left = 3
        await store.append_messages("x", [samples.message(1)])
        assert not contents.heads["x"].is_settled
        acts: dict[str, Callable[[], Awaitable[object]]] = {
            "nothing": lambda: asyncio.sleep(0),
            "a write": lambda: other.save_messages("x", [samples.message(7)]),
            "a delete": lambda: other.delete("x"),
        }
        await acts[meanwhile]()
        async with asyncio.timeout(20):
            while records.left >= 0 and meanwhile == "nothing":
                await asyncio.sleep(0.01)
            while not contents.heads["x"].is_settled:
                await asyncio.sleep(0.01)
        wanted = {"nothing": samples.messages(2), "a write": [samples.message(7)], "a delete": []}
        assert await store.load_messages("x") == wanted[meanwhile]
    assert needless(contents) == []


class AnswersTooLate(MemoryRecords):
    """Applies changes after others did something, and loses the answer."""

    meanwhile: Callable[[], Awaitable[object]] | None = None

    async def apply(self, place: ItemsPlace, changes: Sequence[Change], *, fresh: bool = False) -> None:
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            await meanwhile()
        await super().apply(place, changes, fresh=fresh)
        if meanwhile is not None:
            raise OutcomeUnknownError("the connection broke")


@pytest.mark.parametrize("then", ["nothing", "a write"])
async def test_what_was_applied_too_late_is_removed_although_nobody_said_that_it_was(then: str) -> None:
    """The agent was deleted before, and perhaps written again."""
    contents = Contents()
    records = AnswersTooLate(contents, **ROOMY)
    async with await opened(records) as store, await opened(MemoryRecords(contents, **ROOMY)) as other:
        await store.append_messages("x", samples.messages(1))
        await settled(contents)

        async def meanwhile() -> None:
            await other.delete("x")
            if then == "a write":
                await other.append_messages("x", samples.messages(1))

        records.meanwhile = meanwhile
        await store.append_messages("x", [samples.message(1)])
        assert needless(contents) != []
        async with asyncio.timeout(20):
            while needless(contents):
                await asyncio.sleep(0.01)
        assert len(await store.load_messages("x")) == (then == "a write")
