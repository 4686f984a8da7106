"""JSON files: a damaged agent can be deleted, and nothing but a delete removes it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from kode_conformance.values import samples

from kode_core import CorruptRecordError, LockLostError, create_extended_store

FILE = Path("store/a.jsonl")


async def damaged(at: int) -> int:
    """Make an agent whose file is damaged at a byte, and one that is sound; returns the last offset of the first."""
    async with create_extended_store("json:///store") as store:
        await store.save_info("a", samples.info("a"))
        offsets = await store.append_events("a", samples.events(30))
        await store.append_messages("a", samples.messages(3))
        await store.append_messages("b", samples.messages(1))
    raw = bytearray(FILE.read_bytes())
    raw[at : at + 40] = bytes(40)
    FILE.write_bytes(raw)
    return offsets[-1]


@pytest.mark.parametrize("at", [0, 300, 3000])
async def test_a_damaged_agent_can_be_deleted(at: int, caplog: pytest.LogCaptureFixture) -> None:
    """A delete removes the file, the log says so, the id begins anew, and no offset comes again (LIFE-3, EVT-2)."""
    last = await damaged(at)
    async with create_extended_store("json:///store") as store:
        with pytest.raises(CorruptRecordError):
            await store.append_messages("a", samples.messages(1))
        with caplog.at_level(logging.WARNING, "kode_core.json"):
            await store.delete("a")
        assert "a.jsonl was damaged, and was removed" in caplog.text
        assert not FILE.exists()
        assert await store.load_messages("a") == []
        assert await store.append_event("a", samples.event(0)) > last
        assert await store.load_messages("b") == samples.messages(1)
        assert (await store.check_consistency()).consistent


async def test_a_damaged_agent_is_not_deleted_under_a_lease_that_ended() -> None:
    """A delete with a fence that does not hold leaves the damaged file as it is (LOCK-5)."""
    await damaged(3000)
    before = FILE.read_bytes()
    async with create_extended_store("json:///store") as store:
        lease = await store.acquire_agent_lock("a")
        await lease.release()
        with pytest.raises((CorruptRecordError, LockLostError)):
            await store.delete("a", fence=lease)
        assert FILE.read_bytes() == before


async def test_a_copy_of_another_agent_is_not_deleted() -> None:
    """A file with the name of one agent and the records of another is left to a person."""
    await damaged(3000)
    FILE.write_bytes(Path("store/b.jsonl").read_bytes())
    before = FILE.read_bytes()
    async with create_extended_store("json:///store") as store:
        with pytest.raises(CorruptRecordError):
            await store.delete("a")
        assert FILE.read_bytes() == before
