"""JSON files that are put back from a backup while a store is open: the store notices, whatever others wrote since."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from kode_core import Message, create_extended_store
from kode_core.backends.json_files import journal, signatures

FILE = Path("store") / "a.jsonl"


def opened(**options: Any) -> Any:
    return create_extended_store(type="json", base_dir="store", **options)


async def written_by_another(text: str, size: int, how: str) -> None:
    """Put the file back and append in another store, until the file has that size: lengths of digests differ by one."""
    while True:
        put_back(how)
        async with opened() as other:
            await other.append_messages("a", [Message.user(text)])
        if FILE.stat().st_size == size:
            return


def put_back(how: str) -> None:
    """The file from the backup, in the place of the present one: into the same file, or as another file."""
    if how == "into":
        FILE.write_bytes(Path("backup").read_bytes())
    else:
        shutil.copy2("backup", "back")
        os.replace("back", FILE)


@pytest.mark.parametrize("how", ["into", "replaced"])
@pytest.mark.parametrize("settles", [0, -(10**18), 10**18], ids=["soon settled", "settled", "never settled"])
async def test_an_open_store_has_what_is_in_the_file(how: str, settles: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another store appends to the older state: the file has the size, the marks and the generation of before."""
    monkeypatch.setattr(signatures, "_SETTLED_NS", settles)
    async with opened() as store:
        await store.append_messages("a", [Message.user("first")])
        shutil.copy2(FILE, "backup")
        await store.append_messages("a", [Message.user("one")])
        assert len(await store.load_messages("a")) == 2
        before = FILE.stat().st_size
        await written_by_another("two", before, how)
        assert [message.text for message in await store.load_messages("a")] == ["first", "two"]
        await written_by_another("six", before, how)
        await store.append_messages("a", [Message.user("more")])
        async with opened() as other:
            for one in (store, other):
                assert [message.text for message in await one.load_messages("a")] == ["first", "six", "more"]
                assert (await one.check_consistency()).consistent


async def test_a_store_that_only_reads_notices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its state is of frames that another store wrote, and that it read at two times."""
    async with opened() as store, opened() as writer:
        await writer.append_messages("a", [Message.user("first")])
        assert len(await store.load_messages("a")) == 1
        shutil.copy2(FILE, "backup")
        await writer.append_messages("a", [Message.user("one")])
        assert len(await store.load_messages("a")) == 2
        await written_by_another("two", FILE.stat().st_size, "into")
        assert [message.text for message in await store.load_messages("a")] == ["first", "two"]


async def test_the_files_of_a_database_are_seen_too() -> None:
    """The last frame of a file next to a database says only that the batch before it counts."""
    files = Path("files")
    url = "sqlite:///agents.db?file_store_base_dir=files"
    async with create_extended_store(url) as store:
        await store.emit("a", "token_usage", {})
        (file,) = files.glob("a*.jsonl")
        shutil.copy2(file, "backup")
        await store.emit("a", "state_one", {})
        assert [one.event.type async for one in store.read_events("a")] == ["token_usage", "state_one"]
        file.write_bytes(Path("backup").read_bytes())
        async with create_extended_store(url) as other:
            await other.emit("a", "state_two", {})
        assert [one.event.type async for one in store.read_events("a")] == ["token_usage", "state_two"]


async def test_a_read_of_a_settled_file_costs_what_it_did(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of which the file system says that it is the same is not looked into again; others cost one small read."""
    places: list[tuple[int, int]] = []
    read_at = journal.read_at

    def counted(fd: int, size: int, offset: int) -> bytes:
        places.append((size, offset))
        return read_at(fd, size, offset)

    async with opened() as store:
        await store.append_messages("a", [Message.user("x" * 10_000)])
        monkeypatch.setattr(journal, "read_at", counted)
        for settles, most in ((-(10**18), 0), (10**18, 1)):
            monkeypatch.setattr(signatures, "_SETTLED_NS", settles)
            await store.load_messages("a")
            places.clear()
            await store.load_messages("a")
            assert len(places) == most and all(size <= 64 for size, _ in places)
