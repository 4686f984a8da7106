"""JSON files: a damaged agent can be deleted, and nothing but a delete removes it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from kode_conformance.values import samples

from kode_core import CorruptRecordError, ExtendedStore, LockLostError, copy_store, create_extended_store
from kode_core.backends.json_files import journal as journals

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


HYBRID = "sqlite:///store/main.db?file_store_base_dir=store/files"


async def replaced(url: str, count: int) -> None:
    """Replace agent *a*, which says "secret" in every kind, by one of another store that has *count* messages."""
    async with create_extended_store("memory:") as source, create_extended_store(url) as store:
        await say(store, "a", "secret")
        await say(store, "b", "kept")
        await source.append_messages("a", samples.messages(count))
        await source.append_events("a", samples.events(count))
        await copy_store(source, store, existing="replace")
        assert await store.load_messages("a") == samples.messages(count)
        last = 1 if url == HYBRID else 4
        assert await store.append_event("a", samples.event(count)) > last


async def say(store: ExtendedStore, agent_id: str, text: str) -> None:
    await store.save_messages(agent_id, [samples.message(text=text)])
    await store.append_events(agent_id, [samples.event(n, text=text) for n in range(4)])
    await store.save_todos(agent_id, samples.todos(text))
    await store.save_recovered_file(agent_id, samples.recovered(content=text))
    await store.put_document(agent_id, "notes", "n", text)


@pytest.mark.parametrize("url", ["json:///store", HYBRID])
@pytest.mark.parametrize("count", [1, 3000])
async def test_nothing_of_a_replaced_agent_is_stored(url: str, count: int, tmp_path: Path) -> None:
    """An agent that a copy replaces is gone from the files at once, as a deleted one is, with bytes cut off them."""
    base = tmp_path / "store" if url.startswith("json") else tmp_path / "store" / "files"
    async with create_extended_store(url) as store:
        await say(store, "a", "secret")
    with (base / "a.jsonl").open("ab") as file:
        file.write(b'{"half a frame": "secret')
    await replaced(url, count)
    files = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert [path for path in files if b"kept" in path.read_bytes()]
    assert [path for path in files if b"secret" in path.read_bytes() and ".db" not in path.name] == []
    async with create_extended_store(url) as store:
        assert await store.load_messages("a") == samples.messages(count)
        assert (await store.check_consistency()).issues == ()


@pytest.mark.parametrize("reopened", [False, True])
async def test_a_replaced_agent_goes_with_a_later_write(reopened: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later write, of any process, compacts the file if that failed or the process was killed."""

    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    async with create_extended_store("memory:") as source, create_extended_store("json:///store") as store:
        await say(store, "a", "secret")
        await source.append_messages("a", samples.messages(1))
        with monkeypatch.context() as patch:
            patch.setattr(journals, "write_state", fail)
            await copy_store(source, store, existing="replace")
        assert b"secret" in FILE.read_bytes()
        for _ in range(0 if reopened else 8):
            await store.append_messages("a", samples.messages(1))
    async with create_extended_store("json:///store") as store:
        await store.append_messages("a", samples.messages(1))
        assert len(await store.load_messages("a")) == (2 if reopened else 10)
    assert b"secret" not in FILE.read_bytes()


async def test_replaces_again_and_again_do_not_grow_the_file() -> None:
    """The passes of a copy leave a file of the size of one."""
    sizes = []
    async with create_extended_store("memory:") as source, create_extended_store("json:///store") as store:
        for n in range(5):
            await source.save_messages("a", [samples.message(text=f"{n}"), *samples.messages(500)])
            await copy_store(source, store, existing="replace")
            sizes.append(FILE.stat().st_size)
    assert max(sizes) < 1.1 * min(sizes)
