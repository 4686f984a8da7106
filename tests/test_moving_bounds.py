"""Memory of moves: a small multiple of one agent, and bounded for archives that expand to anything."""

from __future__ import annotations

import io
import json
import tracemalloc
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest

import kode_core.moving.exporting
import kode_core.moving.reading
from kode_core import (
    ArchiveError,
    ExtendedStore,
    Message,
    copy_store,
    create_extended_store,
    export_archive,
    import_archive,
    verify_copy,
)
from kode_core.layers.compression import import_zstd

LONG = 1_000
"""Characters of a message."""
COUNT = 4_000


async def peak(call: Awaitable[Any]) -> float:
    """The greatest memory during the call, as a multiple of the agent's size."""
    tracemalloc.start()
    try:
        await call
        return tracemalloc.get_traced_memory()[1] / (LONG * COUNT)
    finally:
        tracemalloc.stop()


async def test_a_large_agent_takes_a_small_multiple_of_its_size(tmp_path: Path) -> None:
    """Its records once, and once more in the form in which they are written or compared; never both stores twice."""
    small: dict[str, Any] = {"memory_limit_bytes": 2**20}
    async with (
        create_extended_store(f"sqlite:///{tmp_path}/a.db", **small) as source,
        create_extended_store(f"sqlite:///{tmp_path}/b.db", **small) as target,
        create_extended_store(f"sqlite:///{tmp_path}/c.db", **small) as other,
    ):
        await source.save_messages("a", [Message.user(f"{i:0{LONG}}") for i in range(COUNT)])
        assert await peak(source.load_agent("a")) < 1.8
        assert await peak(export_archive(source, tmp_path / "a.jsonl")) < 3.2
        assert await peak(copy_store(source, target)) < 3.2
        assert await peak(copy_store(source, target)) < 3.2
        assert await peak(verify_copy(source, target)) < 1.9
        assert await peak(import_archive(other, tmp_path / "a.jsonl")) < 3.2
        assert (await verify_copy(source, other)).is_equal


def zipped(raw: bytes) -> bytes:
    packed: bytes = import_zstd().compress(raw)
    return packed


async def archive_of(*agent_ids: str) -> bytes:
    file = io.BytesIO()
    async with create_extended_store("memory:") as store:
        for agent_id in agent_ids:
            await store.append_messages(agent_id, [Message.user(f"{agent_id} {i}") for i in range(20)])
        await export_archive(store, file)
    return file.getvalue()


async def refused(raw: bytes, store: ExtendedStore) -> str:
    with pytest.raises(ArchiveError) as caught:
        await import_archive(store, io.BytesIO(raw))
    return str(caught.value)


async def test_a_bomb_of_a_hundred_gigabytes_is_refused() -> None:
    """In place of a header; nothing of it is kept beyond the first megabyte."""
    frame = zipped(b" " * 2**26)
    bomb = frame * (100 * 2**30 // 2**26)
    assert len(bomb) < 20_000_000
    async with create_extended_store("memory:") as store:
        tracemalloc.start()
        told = await refused(bomb, store)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert "line 1 of the archive: it is no header" in told
        assert most < 40_000_000
        assert await store.list(include_without_info=True) == []


async def test_an_agent_that_never_ends_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its bytes and by the number of its records, in imports and in exports; the agents before it are imported."""
    sound = (await archive_of("a", "b")).splitlines(keepends=True)
    monkeypatch.setattr(kode_core.moving.reading, "MAX_AGENT", 40_000)
    begin = sound[: next(i for i, line in enumerate(sound) if b'"kind":"end"' in line) + 1]
    begin.append(b'{"kind":"agent","agentId":"b","updatedAt":1}\n')
    event = {"cursor": 1, "bookmark": {"seq": 1, "timestamp": 1}, "event": {"channel": "progress", "type": "x"}}

    def lines(size: int) -> bytes:
        found = list[bytes]()
        for i in range(40_000 // size):
            body = {**event, "event": {**event["event"], "x": "y" * size}}  # type: ignore[dict-item]
            line = {"kind": "event", "agentId": "b", "position": i, "body": body}
            found.append(json.dumps(line).encode() + b"\n")
        return b"".join(found)

    for size in (4_000, 1):
        async with create_extended_store("memory:") as store:
            assert "the agent 'b' has more than 40,000 bytes" in await refused(b"".join(begin) + lines(size), store)
            assert await store.list(include_without_info=True) == ["a"]
    async with create_extended_store("memory:") as store:
        report = await import_archive(store, io.BytesIO(b"".join(sound)))
        assert report.outcomes == {"copied": 2}
        monkeypatch.setattr(kode_core.moving.exporting, "MAX_AGENT", 1_000)
        report = await export_archive(store, io.BytesIO())
        assert report.outcomes == {"refused": 2}
        assert "it has more than 1,000 bytes, which no archive takes" in report.troubles[0].reason


@pytest.mark.parametrize("place", [b'"body":', b'"tags":', b'{"kind":"archive"'])
async def test_a_line_that_nests_too_deeply_is_damage(place: bytes) -> None:
    """In a record, in another field, and in the header; the library's own error reaches no caller."""
    sound = (await archive_of("a", "b")).splitlines(keepends=True)
    deep = b"[" * 100_000 + b"]" * 100_000
    if place.startswith(b"{"):
        sound[0] = sound[0][:-2] + b',"x":' + deep + b"}\n"
        at = 0
    else:
        at = next(i for i, line in enumerate(sound) if b'"message"' in line)
        head = sound[at][: sound[at].index(b'"body":')]
        sound[at] = head + place + deep + b"}\n"
    async with create_extended_store("memory:") as store:
        assert f"line {at + 1} of the archive" in await refused(b"".join(sound), store)
        if at:
            report = await import_archive(store, io.BytesIO(b"".join(sound)), skip_damaged=True)
            assert report.outcomes == {"damaged": 1, "copied": 1}
