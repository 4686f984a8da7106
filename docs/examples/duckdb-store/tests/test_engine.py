"""Tests outside the conformance suite: files, other processes, and groups of writes of which one fails."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

from kode_duckdb import DuckdbOptions
from kode_duckdb.engine import DuckdbEngine

from kode_core import AgentInfo, Message, create_extended_store
from kode_core.batch import Applied, Batch, EventRange, EventWrite
from kode_core.codec import Body, digest
from kode_core.errors import StorageError


def test_a_backup_is_a_store(tmp_path: Path) -> None:
    """A copy made while the store is in use can be opened, and has the records of that instant."""

    async def run() -> list[Message]:
        wanted = [Message.user(f"message {i}") for i in range(5)]
        async with create_extended_store(f"duckdb:///{tmp_path}/it's.duckdb") as store:
            await store.save_turn("a", messages=wanted, info=AgentInfo(agent_id="a", template_id="t"))
            (copy,) = await store.backup(tmp_path / "copies" / "it's another.duckdb")
            await store.append_messages("a", [Message.user("too late")])
        async with create_extended_store(type="duckdb", db_path=str(copy)) as store:
            assert await store.load_messages("a") == wanted
            assert (await store.check_consistency()).consistent
            await store.append_messages("a", [Message.user("more")])
            return await store.load_messages("a")

    assert len(asyncio.run(run())) == 6
    assert [path.name for path in (tmp_path / "copies").iterdir()] == ["it's another.duckdb"]


def test_another_process_is_refused(tmp_path: Path) -> None:
    """While one process has the database open, another one gets an error that says so."""
    script = f"""
import asyncio
from kode_core import StoreUnavailableError, create_extended_store

async def main():
    try:
        await create_extended_store(type="duckdb", db_path={str(tmp_path / "agents.duckdb")!r})
    except StoreUnavailableError as exc:
        print(exc)

asyncio.run(main())
"""

    async def run() -> str:
        async with create_extended_store(type="duckdb", db_path=str(tmp_path / "agents.duckdb")) as store:
            await store.append_messages("a", [Message.user("hi")])
            done = await asyncio.to_thread(
                subprocess.run, [sys.executable, "-c", script], capture_output=True, text=True, check=True
            )
            return done.stdout

    assert "another process has it" in asyncio.run(run())


def _event(agent_id: str, seq: int) -> Batch:
    text = f'{{"seq":{seq}}}'
    event = EventWrite(seq, "monitor", Body(text, digest(text.encode())))
    return Batch(agent_id=agent_id, op_id=f"{agent_id}-{seq}", now=1, events=(event,))


def test_a_batch_that_fails_takes_no_other_with_it(tmp_path: Path) -> None:
    """Batches are written together; if one of them fails, the others are still written, once."""

    async def run() -> None:
        engine = await DuckdbEngine.open(DuckdbOptions(db_path=str(tmp_path / "agents.duckdb")))
        good, bad, last = await engine.commit([_event("a", 1), _event("a", 2**70), _event("a", 2)])
        assert isinstance(good, Applied)
        assert isinstance(bad, StorageError)
        assert isinstance(last, Applied)
        assert good.offsets < last.offsets
        assert [row.seq for row in await engine.events("a", EventRange())] == [1, 2]
        await engine.close()

    asyncio.run(run())
