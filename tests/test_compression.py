"""Compression: smaller records, bounded memory, and damage that is named."""

from __future__ import annotations

import sqlite3
from base64 import b64encode
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from kode_core import ConfigurationError, CorruptRecordError, Message, create_extended_store
from kode_core.codec import sealed_text
from kode_core.layers.compression import MAX_TEXT, _zstd, compressed
from kode_core.layers.encryption import encrypted


async def test_large_bodies_are_smaller_and_others_stay(tmp_path: Path) -> None:
    """Stored texts were measured; random ones, and small ones, are as they were."""
    url, noise = f"sqlite:///{tmp_path}/a.db", "".join(chr(33 + i * 7919 % 90) for i in range(50))
    texts = ["word " * 10_000, "short", noise]
    async with create_extended_store(url, layers=[compressed()]) as store:
        await store.save_messages("a", [Message.user(text) for text in texts])
        assert [m.text for m in await store.load_messages("a")] == texts
        (child,) = [await store.fork("a")] if await store.exists("a") else [None]
        assert child is None
    with closing(sqlite3.connect(tmp_path / "a.db")) as db:
        sizes = [size for (size,) in db.execute("SELECT length(body) FROM kode_messages ORDER BY position")]
        bodies = [body for (body,) in db.execute("SELECT body FROM kode_messages ORDER BY position")]
    assert sizes[0] < 1000
    assert bodies[0].startswith('"kode:')
    assert "short" in bodies[1]
    with pytest.raises(ConfigurationError, match="has compressed records: give compression_min_bytes"):
        await create_extended_store(url)
    with closing(sqlite3.connect(tmp_path / "a.db")) as db, db:  # as versions without the note left it
        db.execute("DELETE FROM kode_docs WHERE agent_id LIKE 'kode.%'")
    async with create_extended_store(url) as store:
        with pytest.raises(CorruptRecordError, match="message 0 of agent 'a'.* encrypted or compressed"):
            await store.load_messages("a")
    async with create_extended_store(url, layers=[compressed(min_bytes=10**6)]) as store:
        assert [m.text for m in await store.load_messages("a")] == texts


def bomb(size: int, said: int) -> str:
    return sealed_text(f"z1:{said}:{b64encode(_zstd().compress(b' ' * size)).decode()}")


@pytest.mark.parametrize(
    "text",
    [
        bomb(10**8, 100),
        bomb(10**8, MAX_TEXT + 1),
        bomb(100, 10**8),
        bomb(100, 0),
        sealed_text("z1:100:AAAA"),
        sealed_text("z1:-1:AAAA"),
        sealed_text("z1:100"),
        sealed_text("z1:" + "9" * 5000 + ":AAAA"),
        sealed_text("z1:1:!!!"),
        bomb(100, 100)[:-20] + '"',
    ],
)
async def test_bombs_and_damage_are_named(text: str, tmp_path: Path) -> None:
    """No more is decompressed than the record says, and it cannot say more than the limit."""
    url = f"sqlite:///{tmp_path}/a.db"
    async with create_extended_store(url, layers=[compressed(min_bytes=10)]) as store:
        await store.save_messages("a", [Message.user("x" * 1000), Message.user("y" * 1000)])
        with closing(sqlite3.connect(tmp_path / "a.db")) as db, db:
            db.execute("UPDATE kode_messages SET body = ? WHERE position = 0", (text,))
        with pytest.raises(CorruptRecordError, match="message 0 of agent 'a'"):
            await store.load_messages("a", last=2)
        assert [m.text for m in await store.load_messages("a", on_corrupt="skip")] == ["y" * 1000]


async def test_texts_are_compressed_before_they_are_encrypted(tmp_path: Path) -> None:
    """Ciphertexts do not compress; a text that was compressed is not put into base64 twice."""
    sizes: dict[str, int] = {}
    layers: dict[str, list[Any]] = {
        "both": [encrypted({"k": b"k" * 32}), compressed()],
        "zstd": [compressed()],
        "none": [],
    }
    for name, some in layers.items():
        async with create_extended_store(f"sqlite:///{tmp_path}/{name}.db", layers=some) as store:
            await store.append_messages("a", [Message.user(" ".join(str(i * i) for i in range(20_000)))])
        with closing(sqlite3.connect(tmp_path / f"{name}.db")) as db:
            ((sizes[name],),) = db.execute("SELECT length(body) FROM kode_messages").fetchall()
    assert sizes["both"] < sizes["zstd"] + 200 < sizes["none"]


@pytest.mark.parametrize("size", [-1, 1.5, "10", None, True])
def test_a_wrong_size_is_refused(size: Any) -> None:
    with pytest.raises(ConfigurationError, match="min_bytes"):
        compressed(min_bytes=size)
