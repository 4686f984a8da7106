"""Events that the store numbers: what is read for it, and what is known after failures."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from kode_conformance.values import samples

from kode_core import AgentEvent, create_extended_store
from kode_core.backends.memory.engine import MemoryEngine
from kode_core.batch import Applied, Batch, EventRow, Outcome
from kode_core.engine import Engine
from kode_core.errors import (
    CorruptRecordError,
    InvalidArgumentError,
    InvalidValueError,
    LockLostError,
    OutcomeUnknownError,
    StoreClosedError,
    StoreFullError,
    StoreTimeoutError,
)
from kode_core.layers.base import Layer
from kode_core.store import numbers
from kode_core.store.facade import EngineStore


class Troubled(Layer):
    """Counts the looks at last events, and fails writes on request."""

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner)
        self.looks = 0
        self.fails: Exception | None = None
        self.commit_fails: Exception | None = None  # before anything is written
        self.gate = asyncio.Event()
        self.gate.set()

    async def last_event(self, agent_id: str) -> EventRow | None:
        self.looks += 1
        return await super().last_event(agent_id)

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        await self.gate.wait()
        lost, self.commit_fails = self.commit_fails, None
        if lost is not None:
            return [lost for _ in batches]
        outcomes = await super().commit(batches)
        fails, self.fails = self.fails, None
        return [fails for _ in batches] if fails is not None else outcomes


def opened(engine: Engine, **options: Any) -> EngineStore:
    async def opener() -> Engine:
        return engine

    return EngineStore(opener, **options)


async def seqs(store: Any, agent_id: str = "a") -> list[int]:
    return [event.bookmark.seq async for event in store.read_events(agent_id, after_offset=0)]


async def test_the_last_event_is_read_once_for_many_emits() -> None:
    """A thousand emits at once read it once; a store that appended meanwhile is seen a second later."""
    engine, loop = Troubled(MemoryEngine()), asyncio.get_running_loop()
    begun = loop.time()
    async with opened(engine) as store, opened(engine) as other:
        await asyncio.gather(*(store.emit("a", "delta", {"n": n}) for n in range(1_000)))
        await store.append_event("a", samples.event(5_000))
        await store.emit("a", "delta")
        looks = engine.looks
        assert 1 <= looks <= 1 + (loop.time() - begun)
        assert await seqs(store) == [*range(1_000), 5_000, 5_001]
        await other.append_event("a", samples.event(6_000))
        await asyncio.sleep(1.05)
        assert (await store.emit("a", "delta")).bookmark.seq == 6_001
        assert engine.looks == looks + 1


async def test_an_emit_of_unknown_outcome_can_be_appended_again() -> None:
    """The error has the entry that was sent; to append it again stores it once, whatever the caller changed since."""
    engine = Troubled(MemoryEngine())
    async with opened(engine) as store:
        await store.emit("a", "first")
        engine.fails = OutcomeUnknownError("the connection broke")
        data: dict[str, Any] = {"words": ["one"]}
        with pytest.raises(OutcomeUnknownError, match="the connection broke.*append the timelines") as caught:
            await store.emit("a", "second", data)
        data["words"].append("two")
        (entry,) = caught.value.timelines
        assert entry.bookmark.seq == 1
        assert await store.append_events("a", caught.value.timelines) == (2,)
        assert (await store.emit("a", "third")).bookmark.seq == 2
        events = [event async for event in store.read_events("a")]
        assert [event.event.data for event in events] == [{}, {"words": ["one"]}, {}]


async def test_each_caller_of_a_group_has_its_own_entries() -> None:
    """Emits that were written together, and whose outcome is unknown, do not share an error."""
    engine = Troubled(MemoryEngine())
    async with opened(engine) as store:
        await store.emit("a", "first")
        engine.fails = OutcomeUnknownError("the connection broke")
        engine.gate.clear()
        calls = [asyncio.ensure_future(store.emit("a", "x", {"n": n})) for n in range(3)]
        await asyncio.sleep(0.05)
        engine.gate.set()
        found = await asyncio.gather(*calls, return_exceptions=True)
        lost = {i: error.timelines for i, error in enumerate(found) if isinstance(error, OutcomeUnknownError)}
        assert lost
        assert all([entry.event.data for entry in entries] == [{"n": i}] for i, entries in lost.items())


async def test_a_deadline_in_the_middle_of_a_write_gives_the_entries() -> None:
    """The outcome is unknown then, too; the store's own deadline is enough."""
    engine = Troubled(MemoryEngine())
    async with opened(engine, timeout_ms=200) as store, opened(engine) as unhurried:
        await unhurried.emit("a", "first")
        engine.gate.clear()
        with pytest.raises((OutcomeUnknownError, StoreTimeoutError)) as caught:
            await store.emit("a", "second")
        engine.gate.set()
        if isinstance(caught.value, OutcomeUnknownError):
            await unhurried.append_events("a", caught.value.timelines)
            assert await seqs(unhurried) == [0, 1]


async def test_a_failed_emit_leaves_no_number_to_be_given_twice() -> None:
    """After failures, cancelled calls and refusals, seqs stay distinct and ascend."""
    engine = Troubled(MemoryEngine())
    async with opened(engine) as store:
        await store.emit("a", "x")
        engine.fails = StoreFullError("the disk is full")
        with pytest.raises(StoreFullError):
            await store.emit("a", "x")
        calls = [asyncio.ensure_future(store.emit("a", "x", {"n": n})) for n in range(50)]
        await asyncio.sleep(0)
        for call in calls[::3]:
            call.cancel()
        with pytest.raises(InvalidValueError):
            await store.emit("a", "x", {"n": float("nan")})
        await asyncio.gather(*calls, return_exceptions=True)
        await store.emit("a", "x")
        found = await seqs(store)
        assert found == sorted(set(found))
        assert len(found) >= 1 + 33 + 1


async def test_the_numbers_of_writes_that_never_were_are_given_again() -> None:
    """After a refused and a cancelled emit the first seq is 0; a caller that has its entries keeps their numbers."""
    engine = Troubled(MemoryEngine())
    async with opened(engine) as store:
        lease = await store.acquire_agent_lock("a")
        await lease.release()
        with pytest.raises(LockLostError):
            await store.emit_many("a", [AgentEvent("progress", "x")] * 3, fence=lease)
        call = asyncio.ensure_future(store.emit("a", "x"))
        await asyncio.sleep(0)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        assert (await store.emit("a", "x")).bookmark.seq == 0
        engine.commit_fails = OutcomeUnknownError("the connection broke")
        with pytest.raises(OutcomeUnknownError) as caught:
            await store.emit("a", "y")
        await asyncio.sleep(1.05)
        assert (await store.emit("a", "z")).bookmark.seq == 2
        await store.append_events("a", caught.value.timelines)
        assert sorted(await seqs(store)) == [0, 1, 2]


async def test_a_deleted_agent_begins_at_0_again(tmp_path: Path) -> None:
    """Also when another store deleted it: the numbers of its former life are forgotten within a second."""
    url = f"sqlite:///{tmp_path / 'agents.db'}"
    async with create_extended_store(url) as store, create_extended_store(url) as other:
        await store.emit_many("a", [AgentEvent("progress", "x")] * 5)
        await other.delete("a")
        await asyncio.sleep(1.05)
        assert (await store.emit("a", "x")).bookmark.seq == 0


async def test_numbers_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store forgets the numbers of the agents that it emitted for least recently, but none that are in use."""
    monkeypatch.setattr(numbers, "_MOST_AGENTS", 10)
    engine = Troubled(MemoryEngine())
    async with opened(engine) as store:
        engine.gate.clear()
        waiting = asyncio.ensure_future(store.emit("kept", "x"))
        await asyncio.sleep(0.01)
        engine.gate.set()
        for n in range(50):
            await store.emit(f"a{n}", "x")
        await waiting
        await store.emit("kept", "x")
        assert await seqs(store, "kept") == [0, 1]
        assert len(store._appender.numbers._numbers) <= 11


async def test_emits_are_fenced_and_closed() -> None:
    """An ended lease and a closed store refuse emits."""
    store = opened(MemoryEngine())
    lease = await store.acquire_agent_lock("a")
    await store.emit("a", "x", fence=lease)
    await lease.release()
    with pytest.raises(LockLostError):
        await store.emit("a", "x", fence=lease)
    with pytest.raises(InvalidArgumentError, match="must be a list of AgentEvent, got dict"):
        await store.emit_many("a", {})  # type: ignore[arg-type]
    assert list(await store.emit_many("a", [AgentEvent("monitor", "y")])) == [
        event async for event in store.read_events("a", channel="monitor")
    ]
    await store.close()
    with pytest.raises(StoreClosedError):
        await store.emit("a", "x")


async def test_a_damaged_last_event_fails_an_emit() -> None:
    """No number is guessed: others may be above it."""

    class Damaged(Layer):
        async def last_event(self, agent_id: str) -> EventRow | None:
            raise CorruptRecordError("event 7 of agent 'a'", "its digest differs")

    async with opened(Damaged(MemoryEngine())) as store:
        with pytest.raises(CorruptRecordError):
            await store.emit("a", "x")
        assert await seqs(store) == []


_EMITTER = """
import asyncio, sys
from kode_core import create_extended_store

async def main():
    async with create_extended_store(sys.argv[1]) as store:
        for _ in range(60):
            async with store.acquire_agent_lock("locked", wait_ms=60_000):
                await store.emit("locked", "word", {})
            await store.emit("free", "word", {})

asyncio.run(main())
"""


async def test_processes_that_emit_at_once_lose_nothing(tmp_path: Path) -> None:
    """Equal events of three processes are all kept; under the lock their seqs ascend without a gap."""
    url = f"sqlite:///{tmp_path / 'agents.db'}"
    processes = [subprocess.Popen([sys.executable, "-c", _EMITTER, url]) for _ in range(3)]
    assert [await asyncio.to_thread(process.wait, 120) for process in processes] == [0, 0, 0]
    async with create_extended_store(url) as store:
        assert await seqs(store, "locked") == list(range(180))
        assert len(await seqs(store, "free")) == 180


async def test_a_turn_checks_what_the_engine_gives() -> None:
    """An engine that gives too few offsets for a turn is found out."""

    class Few(Layer):
        async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
            return [Applied() if isinstance(o, Applied) else o for o in await super().commit(batches)]

    async with opened(Few(MemoryEngine())) as store:
        with pytest.raises(Exception, match="the engine gave 0 offsets for 2 events"):
            await store.save_turn("a", events=samples.events(2))
