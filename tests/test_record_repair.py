"""Repair of the record engine by hand: all that the dead left goes at once, and nothing that somebody needs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from kode_conformance.kills.writes import FORK, WRITES, Write, expected, portrait, write_on
from kode_conformance.suite.record_tests import Held
from kode_conformance.values import samples

from kode_core import CorruptRecordError, RepairResult, StoreUnavailableError, create_extended_store
from kode_core.engines.record.engine import RecordEngine
from kode_core.engines.record.store import HeadRecord, ItemsPlace, Note
from kode_core.layers import Layer
from kode_core.store import EngineStore
from kode_core.store.repairs import Repairable
from tests.memory_records import Contents, MemoryRecords
from tests.test_record_engine import OPTIONS, opened, stops
from tests.test_record_leavings import LARGE, ROOMY, deleted_too_soon, needless, settled, slow_writers

LEFT = "kode_core.engines.record.io.LEFT_SECONDS"
DEAD = "kode_core.engines.record.recovery.FORK_DEAD_SECONDS"


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for those who are dead."""
    monkeypatch.setattr("kode_core.engines.record.repair._LOOK_AGAIN_S", 0.001)
    monkeypatch.setattr("kode_core.store.consistency._LOOK_AGAIN_S", (0.001, 0.001))


async def codes(store: EngineStore) -> list[str]:
    """The codes of what a check of everything finds."""
    return [issue.code for issue in (await store.check_consistency()).issues]


@pytest.mark.filterwarnings("ignore:.*was not closed:ResourceWarning")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("write", [*WRITES, FORK], ids=lambda write: write.name)
async def test_what_a_killed_writer_left_is_removed_at_once(
    write: Write, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between whichever two calls it was killed; however young that is; and no note is forgotten before its time."""
    async with await opened(MemoryRecords(Contents(), **options)) as store:
        allowed = await expected(store, write)

    async def nothing(contents: Contents) -> None:
        return

    async for n, contents, done in stops(write, options, monkeypatch, nothing):
        async with await opened(MemoryRecords(contents, **options)) as store:
            notes = set(contents.notes)
            result = await store.repair()
            assert result.left == 0, f"stopped at call {n}"
            assert needless(contents) == [], f"stopped at call {n}"
            assert all(head.is_settled for head in contents.heads.values()), f"stopped at call {n}"
            assert notes <= contents.notes
            assert await store.repair() == RepairResult()
            problem = allowed.problem(await portrait(store, "a"), done=done)
            assert problem is None, f"stopped at call {n}: {problem}"
            monkeypatch.setattr(LEFT, 0)
            assert (await store.check_consistency()).issues == ()
            monkeypatch.setattr(LEFT, 600.0)


async def killed(
    contents: Contents, name: str, act: Callable[[EngineStore], Awaitable[object]], **options: Any
) -> None:
    """Let a process end in its first call of that name: what it does from then on is seen nowhere."""
    records = MemoryRecords(contents, **options)
    held = Held(records, name)
    async with await opened(held) as store:
        task = asyncio.ensure_future(act(store))
        await held.reached.wait()
        records.contents = Contents()
        held.let_go.set()
        await task


async def test_what_is_found_is_what_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check names what was left of a delete, of a fork and of a large write; the repair counts it."""
    contents = Contents()
    async with await opened(MemoryRecords(contents, **ROOMY)) as store:
        await store.save_turn("a", messages=samples.messages(3), info=samples.info("a"))
        await settled(contents)
        await deleted_too_soon(contents, store)
    await killed(contents, "swap", lambda dying: dying.append_messages("a", [LARGE] * 3))
    await killed(contents, "apply", lambda dying: dying.batch_fork("a", 1), **ROOMY)
    async with await opened(MemoryRecords(contents, **ROOMY)) as store:
        assert await codes(store) == ["half_done_delete"]  # the rest is young, and may go on
        monkeypatch.setattr(LEFT, 0)
        monkeypatch.setattr(DEAD, 0)
        assert sorted(await codes(store)) == ["half_done_delete", "half_done_fork", "orphaned_records"]
        monkeypatch.setattr(LEFT, 600.0)
        seen = list[tuple[int, int | None]]()
        result = await store.repair(progress=lambda done, total: seen.append((done, total)))
        assert result == RepairResult(finished=1, removed=2)
        assert seen[-1][0] == seen[-1][1] == 3
        monkeypatch.setattr(LEFT, 0)
        assert await codes(store) == []
        assert await store.load_messages("a") == samples.messages(3)
        assert await store.list() == ["a"]
    assert needless(contents) == []


async def test_the_repair_of_one_agent_leaves_the_others() -> None:
    """What is left of another one stays, and is named still."""
    contents = Contents()
    async with await opened(MemoryRecords(contents, **ROOMY)) as store:
        place = await deleted_too_soon(contents, store)
        other = ItemsPlace("y", place.epoch)
        contents.items[other] = dict(contents.items[place])
        contents.notes.add(Note(other, 7))
        assert await store.repair("x") == RepairResult(removed=1)
        assert [issue.agent_id for issue in (await store.check_consistency()).issues] == ["y"]
        assert await store.repair("y") == RepairResult(removed=1)
        assert await store.repair("nobody") == RepairResult()
    assert needless(contents) == []


async def test_what_nobody_noted_is_removed_where_an_index_shows_it() -> None:
    """As one of MongoDB does: the place has no note."""
    contents = Contents()

    class Indexed(MemoryRecords):
        async def notes_of(self, agent_id: str) -> list[Note]:
            places = [place for place, items in contents.items.items() if place.agent_id == agent_id and items]
            return [*await super().notes_of(agent_id), *(Note(place, 0) for place in places)]

    async with await opened(Indexed(contents, **ROOMY)) as store:
        await deleted_too_soon(contents, store)
        await store.append_messages("x", samples.messages(1))
        await settled(contents)
        contents.notes.clear()
        assert await codes(store) == ["half_done_delete"]
        assert await store.repair() == RepairResult(removed=1)
        assert await codes(store) == []
        assert await store.load_messages("x") == samples.messages(1)


@pytest.mark.parametrize("write", [*WRITES, FORK], ids=lambda write: write.name)
async def test_a_repair_harms_no_writer(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes between whichever two calls of a write that goes on: what is acknowledged is there, and whole."""

    async def repair(contents: Contents) -> None:
        async with await opened(MemoryRecords(contents)) as other:
            await other.repair()

    async with await opened(MemoryRecords(Contents())) as store:
        allowed = await expected(store, write)
    async for n, contents in slow_writers(write, monkeypatch, repair):
        async with await opened(MemoryRecords(contents)) as store:
            problem = allowed.problem(await portrait(store, "a"), done=True)
            assert problem is None, f"repaired at call {n}: {problem}"
            await write_on(store, "a", 1000)
            await settled(contents)
            await store.repair()
            assert needless(contents) == [], f"repaired at call {n}"


async def test_a_fork_that_gave_a_sign_is_left_alone() -> None:
    """It may go on: the repair says that something was not its business."""
    contents = Contents()
    held = Held(MemoryRecords(contents, **ROOMY), "apply")
    async with await opened(MemoryRecords(contents, **ROOMY)) as store, await opened(held) as forking_store:
        await store.save_turn("a", messages=samples.messages(3), info=samples.info("a"))
        await settled(contents)
        forking = asyncio.ensure_future(forking_store.batch_fork("a", 1))
        await held.reached.wait()
        assert await codes(store) == []
        assert await store.repair() == RepairResult(left=1)
        held.let_go.set()
        (child,) = await forking
        assert await store.load_messages(child) == samples.messages(3)


async def test_damage_is_left_and_named() -> None:
    """A repair changes nothing of an agent that is damaged, and goes on with the others."""
    contents = Contents()
    async with await opened(MemoryRecords(contents, **ROOMY)) as store:
        await store.append_messages("a", samples.messages(1))
        await settled(contents)
        await deleted_too_soon(contents, store)
        damaged = HeadRecord(
            **{**{f: getattr(contents.heads["a"], f) for f in HeadRecord.__struct_fields__}, "state": b""}
        )
        contents.heads["a"] = damaged
        result = await store.repair()
        assert (result.finished, result.removed, result.left) == (0, 1, 1)
        assert contents.heads["a"] == damaged
        with pytest.raises(CorruptRecordError):
            await store.load_messages("a")


async def test_a_repair_takes_longer_than_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """To remove a long agent may: each step tells that it goes on (OPS-16)."""
    monkeypatch.setattr("kode_core.engines.record.repair._SIGN_S", 0.02)
    contents = Contents()

    class SlowDrops(MemoryRecords):
        async def drop(self, place: ItemsPlace) -> None:
            await asyncio.sleep(1.5)
            await super().drop(place)

    async with await opened(MemoryRecords(contents, **ROOMY)) as store:
        await deleted_too_soon(contents, store)

    async def engine() -> RecordEngine:
        return RecordEngine(SlowDrops(contents, **ROOMY))

    async with EngineStore(engine, timeout_ms=500) as slow:
        assert await slow.repair() == RepairResult(removed=1)


async def test_a_repair_that_is_cancelled_can_be_made_again() -> None:
    """It ends what it was doing before it raises, and what is left then is found by the next one."""
    contents = Contents()
    async with await opened(MemoryRecords(contents, **ROOMY)) as store:
        await deleted_too_soon(contents, store)
    held = Held(MemoryRecords(contents, **ROOMY), "drop")
    async with await opened(held) as store:
        repairing = asyncio.ensure_future(store.repair())
        await held.reached.wait()
        repairing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await repairing
        held.let_go.set()
        assert needless(contents) != []
        assert await store.repair() == RepairResult(removed=1)
    assert needless(contents) == []


async def test_a_server_that_is_away_ends_a_repair() -> None:
    """It is no matter of one place: the error says so, and it can be begun anew."""
    contents = Contents()

    class Away(MemoryRecords):
        async def drop(self, place: ItemsPlace) -> None:
            raise StoreUnavailableError("not now")

    async with await opened(MemoryRecords(contents, **ROOMY)) as store:
        await deleted_too_soon(contents, store)
    async with await opened(Away(contents, **ROOMY)) as away:
        with pytest.raises(StoreUnavailableError):
            await away.repair()
    async with await opened(MemoryRecords(contents, **ROOMY)) as store:
        assert await store.repair() == RepairResult(removed=1)


@pytest.mark.parametrize("url", ["memory:", "json:///agents", "sqlite:///agents.db"])
async def test_engines_that_leave_nothing_say_so(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those whose database undoes by itself what was not finished."""
    monkeypatch.chdir(tmp_path)
    async with create_extended_store(url) as store:
        assert isinstance(store, Repairable)
        await store.append_messages("a", samples.messages(1))
        assert await store.repair() == await store.repair("a") == RepairResult()
        assert await store.load_messages("a") == samples.messages(1)


async def test_a_layer_passes_a_repair_on() -> None:
    """Whatever stands over the engine."""
    contents = Contents()
    async with await opened(MemoryRecords(contents, **ROOMY)) as store:
        await deleted_too_soon(contents, store)

    async def engine() -> Layer:
        return Layer(Layer(RecordEngine(MemoryRecords(contents, **ROOMY))))

    async with EngineStore(engine) as store:
        assert await store.repair() == RepairResult(removed=1)
    assert needless(contents) == []
