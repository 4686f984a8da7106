"""Stores are closed when the event loop ends before the writes do."""

from __future__ import annotations

import asyncio

import pytest
from kode_conformance.values import samples

from kode_core.authoring.closing import close_all
from kode_core.engines.record.engine import RecordEngine
from kode_core.store import EngineStore
from tests.memory_records import Contents, StopsAt


async def test_each_part_is_closed_whatever_becomes_of_the_others() -> None:
    """The parts close in their order, one that fails and one that is cancelled among them."""
    closed: list[str] = []

    async def fails() -> None:
        closed.append("fails")
        raise OSError("gone")

    async def waits() -> None:
        closed.append("waits")
        await asyncio.sleep(3600)

    async def ends() -> None:
        closed.append("ends")

    with pytest.raises(OSError, match="gone"):
        await close_all(fails, ends)
    closing = asyncio.ensure_future(close_all(waits, ends))
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert closed == ["fails", "ends", "waits", "ends"]


def test_a_connection_is_closed_when_the_loop_ends_before_a_write_does() -> None:
    """A server never answers a write: the close of the store gives up, and the loop's end closes the connection."""
    closed = 0

    class Records(StopsAt):
        async def close(self) -> None:
            nonlocal closed
            closed += 1

    async def work() -> None:
        records = Records(Contents(), 0)

        async def engine() -> RecordEngine:
            return RecordEngine(records)

        store = EngineStore(engine, timeout_ms=200)
        writing = asyncio.ensure_future(store.append_messages("a", [samples.message()]))
        await records.stopped.wait()
        await store.close()
        assert closed == 0
        await asyncio.gather(writing, return_exceptions=True)

    asyncio.run(work())
    assert closed == 1
