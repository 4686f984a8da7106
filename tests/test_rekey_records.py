"""A rekey over the record engine, which never changes a stored event: only bodies of events stay under the old key."""

from __future__ import annotations

from pathlib import Path

import pytest

from kode_core import (
    AgentInfo,
    ExtendedStore,
    Message,
    ToolCallRecord,
    copy_store,
    create_extended_store,
)
from kode_core.engine import Engine
from kode_core.engines.record.engine import RecordEngine
from kode_core.errors import DecryptionError
from kode_core.layers.encryption import Encryption, KeyRing, encrypted
from kode_core.model import AgentEvent, Bookmark, Timeline
from kode_core.rekeying import rekey
from kode_core.store import EngineStore
from tests.memory_records import Contents, MemoryRecords

OLD, NEW = b"\1" * 32, b"\2" * 32


def opened(contents: Contents, keys: dict[str, bytes]) -> ExtendedStore:
    async def engine() -> Engine:
        return Encryption(RecordEngine(MemoryRecords(contents)), KeyRing(keys))

    return EngineStore(engine)


def event(seq: int) -> Timeline:
    return Timeline(seq, Bookmark(seq, seq), AgentEvent("progress", "text_chunk", {"delta": f"{seq}"}))


async def seqs(store: ExtendedStore) -> list[int]:
    return [one.bookmark.seq async for one in store.read_events("a")]


async def test_the_old_key_reads_bodies_of_old_events_and_nothing_else(tmp_path: Path) -> None:
    """``left`` counts them; a copy into another store leaves none, and needs the old key no more."""
    contents = Contents()
    call = ToolCallRecord(id="c", name="n", input={"a": 1})
    async with opened(contents, {"old": OLD}) as store:
        info = AgentInfo(agent_id="a", template_id="t")
        await store.save_turn("a", append=[Message.user("x")], info=info, tool_calls=[call], events=[event(1)])
        await store.append_messages_once("a", {"key": Message.user("y")})
        await store.put_document("a", "c", "k", {"v": 1}, tags={"t": "1"})
    async with opened(contents, {"new": NEW, "old": OLD}) as store:
        await store.append_event("a", event(2))
        result = await rekey(store)
        assert (result.left, result.unreadable) == ({"old": 1}, ())
        assert (await rekey(store)).left == {"old": 1}
        target = f"sqlite:///{tmp_path}/moved.db"
        async with create_extended_store(target, layers=[encrypted({"new": NEW})]) as moved:
            assert (await copy_store(store, moved, verify=True)).is_whole
            assert (await rekey(moved, dry_run=True)).left == {}
            assert await seqs(moved) == [1, 2]
    async with opened(contents, {"new": NEW}) as store:
        assert [one.text for one in await store.load_messages("a")] == ["x", "y"]
        assert [one.input for one in await store.load_tool_call_records("a")] == [{"a": 1}]
        assert (await store.load_info("a")) is not None
        document = await store.load_document("a", "c", "k")
        assert document is not None
        assert document.value == {"v": 1}
        with pytest.raises(DecryptionError, match="under the key 'old'"):
            await seqs(store)
