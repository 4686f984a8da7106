"""An agent whose writes hang holds up no other, and an append that was given up is told truly (OPS-9, OPS-13)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from kode_conformance.values import samples

from kode_core import OutcomeUnknownError, StoreTimeoutError
from kode_core.backends.memory.engine import MemoryEngine
from kode_core.batch import Batch, Outcome
from kode_core.engine import Engine, Progress, unwatched
from kode_core.layers import Layer
from kode_core.store import EngineStore
from kode_core.store.underway import is_in_doubt


class Gate(Layer):
    """Holds back every commit that is for the agent "held" as long as it is shut."""

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner)
        self.opened = asyncio.Event()
        self.opened.set()

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        if any(batch.agent_id == "held" for batch in batches):
            await self.opened.wait()
        return await super().commit(batches)

    async def backup(self, target: Path, progress: Progress = unwatched) -> Sequence[Path]:
        target.write_text("a copy")
        return [target]


@asynccontextmanager
async def held_store(timeout_ms: int) -> AsyncIterator[tuple[EngineStore, Gate]]:
    """A store of three agents, and the gate that holds back writes of the one named "held"."""
    gate = Gate(MemoryEngine())

    async def opener() -> Engine:
        return gate

    async with EngineStore(opener) as unhurried:
        for agent_id in ("free", "held", "other"):
            await unhurried.save_turn(agent_id, append=samples.messages(1), info=samples.info(agent_id))
    async with EngineStore(opener, timeout_ms=timeout_ms) as store:
        try:
            yield store, gate
        finally:
            gate.opened.set()


async def test_delete_many_deletes_the_others() -> None:
    """Sessions that are found together with one whose delete hangs are deleted, counted, and free for later calls."""
    async with held_store(timeout_ms=300) as (store, gate):
        gate.opened.clear()
        with pytest.raises(OutcomeUnknownError, match="2 sessions were deleted before") as caught:
            await store.delete_many(created_after=0)
        assert caught.value.deleted == 2
        assert await store.load_messages("free") == []
        await store.append_messages("other", samples.messages(1))
        gate.opened.set()
        assert await store.load_messages("held") == []


async def test_delete_many_deletes_the_others_of_an_agent_that_appends() -> None:
    """A session whose append hangs is not deleted, and the error says that of it alone."""
    async with held_store(timeout_ms=300) as (store, gate):
        gate.opened.clear()
        append = asyncio.ensure_future(store.append_event("held", samples.event(0)))
        await asyncio.sleep(0.01)
        with pytest.raises(StoreTimeoutError, match="2 sessions were deleted before"):
            await store.delete_many(created_after=0)
        with pytest.raises(OutcomeUnknownError):
            await append
        gate.opened.set()
        assert await store.load_messages("held") == samples.messages(1)
        assert await store.list() == ["held"]


async def test_a_backup_waits_no_longer_than_a_second_for_an_append(tmp_path: Path) -> None:
    """A backup is made while an event of one agent is not written in time."""
    async with held_store(timeout_ms=3_000) as (store, gate):
        gate.opened.clear()
        append = asyncio.ensure_future(store.append_event("held", samples.event(0)))
        await asyncio.sleep(0.01)
        assert await store.backup(tmp_path / "copy") == [tmp_path / "copy"]
        assert not append.done()
        gate.opened.set()
        assert await append == 1


@pytest.mark.parametrize("turns", range(12))
async def test_an_append_is_in_doubt_unless_it_was_taken_back(turns: int) -> None:
    """Wherever an append is given up, also when its write has just ended, the error knows of it."""

    async def opener() -> Engine:
        return Gate(MemoryEngine())

    async with EngineStore(opener) as store:
        await store.open()
        append = asyncio.ensure_future(store.append_event("a", samples.event(0)))
        for _ in range(turns):
            await asyncio.sleep(0)
        append.cancel()
        try:
            is_known = await append == 1
        except asyncio.CancelledError as exc:
            is_known = is_in_doubt(exc)
        assert is_known or [event async for event in store.read_events("a")] == []
