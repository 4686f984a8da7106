"""Parts that are tested one by one elsewhere, used together: encryption, tenants, texts, tags and copies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kode_core import (
    ExtendedStore,
    Message,
    UnsupportedError,
    copy_store,
    create_extended_store,
    export_archive,
    import_archive,
)
from kode_core.layers.compression import compressed
from kode_core.layers.encryption import KeyRing, encrypted, new_key
from kode_core.rekeying import rekey

RING = KeyRing.from_text(f"now:{new_key()}")
SECRET = "the safe opens at noon"


def opened(backend: str, path: Path, **options: Any) -> Any:
    place = {"sqlite": f"sqlite:///{path}.db", "json": f"json:///{path}"}.get(backend, "memory:")
    return create_extended_store(place, layers=[encrypted(RING), compressed(min_bytes=100)], **options)


async def fill(store: ExtendedStore) -> None:
    for name in ("alice", "bob"):
        await store.append_messages(name, [Message.user(f"{SECRET}, {name}"), Message.user("x" * 1000)])
        await store.put_document(name, "notes", "k", {"text": SECRET}, tags={"run": "r1"})


async def found(store: ExtendedStore) -> list[str]:
    page = await store.query_messages(contains="SAFE OPENS")
    documents = await store.query_documents("notes", tags={"run": "r1"})
    return sorted([m.agent_id for m in page] + [d.agent_id for d in documents])


@pytest.mark.parametrize("backend", ["memory", "sqlite", "json"])
async def test_tenants_of_an_encrypted_store(backend: str, tmp_path: Path) -> None:
    """A view finds its own texts and tags, and no plain text is stored."""
    async with opened(backend, tmp_path / "store") as store:
        one, other = store.scoped("one"), store.scoped("other")
        await fill(one)
        await other.append_messages("alice", [Message.user(f"{SECRET} elsewhere")])
        assert await found(one) == ["alice", "alice", "bob", "bob"]
        assert await found(other) == ["alice"]
        assert (await store.check_consistency()).issues == ()
        with pytest.raises(UnsupportedError, match="without a tenant"):
            await rekey(one)
        assert (await rekey(store)).left == {}
        assert await found(one) == ["alice", "alice", "bob", "bob"]
    stored = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"safe opens" not in stored


async def test_an_index_of_texts_next_to_encryption(tmp_path: Path) -> None:
    """The database cannot index what it cannot read: the store reads the messages, and the index holds no text."""
    async with opened("sqlite", tmp_path / "store", text_index=True) as store:
        await fill(store)
        assert await found(store) == ["alice", "alice", "bob", "bob"]
        assert (await store.check_consistency()).issues == ()
    assert b"noon" not in b"".join(path.read_bytes() for path in tmp_path.iterdir() if path.is_file())


async def test_tenants_search_texts_by_the_index(tmp_path: Path) -> None:
    async with create_extended_store(f"sqlite:///{tmp_path}/a.db", text_index=True) as store:
        await fill(store.scoped("one"))
        await fill(store)
        assert await found(store.scoped("one")) == ["alice", "alice", "bob", "bob"]
        assert await found(store.scoped("two")) == []
        assert await found(store) == sorted(2 * ["@one/alice", "@one/bob", "alice", "bob"])


async def test_a_tenant_leaves_an_encrypted_store(tmp_path: Path) -> None:
    """A view is copied, exported and imported like a store, under the ids that it knows."""
    async with (
        opened("sqlite", tmp_path / "from") as source,
        create_extended_store(f"json:///{tmp_path}/to") as target,
        create_extended_store("memory:") as third,
    ):
        await fill(source.scoped("one"))
        await fill(source.scoped("two"))
        report = await copy_store(source.scoped("one"), target, verify=True)
        assert report.is_equal
        assert await found(target) == ["alice", "alice", "bob", "bob"]
        await export_archive(source.scoped("two"), tmp_path / "two.jsonl")
        await import_archive(third.scoped("new"), tmp_path / "two.jsonl")
        assert await found(third) == sorted(2 * ["@new/alice", "@new/bob"])
    assert SECRET.encode() in (tmp_path / "two.jsonl").read_bytes()
