"""The modes and the owners of the files of JSON stores."""

from __future__ import annotations

import errno
import os
import stat
import sys
import tempfile
from pathlib import Path

import pytest
from kode_conformance.values import samples

from kode_core import (
    ConfigurationError,
    Message,
    StoreReadOnlyError,
    StoreUnavailableError,
    TodoSnapshot,
    create_extended_store,
)
from kode_core.authoring.modes import create_folders
from kode_core.backends.json_files.journal import COMPACT_FROM
from kode_core.direct import JsonStore

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="modes of POSIX")

OTHER = 1234


async def filled(base: Path | str, **options: str) -> None:
    """A store with a file of each kind, and a backup of it."""
    async with create_extended_store(f"json:///{base}", **options) as store:
        await store.save_turn("a", append=samples.messages(1), info=samples.info("a"), todos=TodoSnapshot())
        async with store.acquire_agent_lock("a", 1000):
            await store.append_event("a", samples.event(1))
            await store.backup(f"{base}.copies/copy")


def modes(*folders: Path) -> set[tuple[bool, int]]:
    found = [path for folder in folders for path in (folder, *folder.rglob("*"))]
    return {(path.is_dir(), stat.S_IMODE(path.stat().st_mode)) for path in found}


@pytest.mark.parametrize("mask", [0, 0o022, 0o077])
@pytest.mark.parametrize(
    ("given", "file", "folder"),
    [({}, 0o600, 0o700), ({"file_mode": "0644"}, 0o644, 0o755), ({"file_mode": "0660"}, 0o660, 0o770)],
)
async def test_who_may_read_what_is_made(mask: int, given: dict[str, str], file: int, folder: int) -> None:
    """Their owner alone, or whom file_mode names, whatever the umask; also of a backup."""
    before = os.umask(mask)
    try:
        await filled("store", **given)
    finally:
        os.umask(before)
    assert modes(Path("store"), Path("store.copies/copy")) == {(False, file), (True, folder)}
    assert stat.S_IMODE(Path("store.copies").stat().st_mode) == 0o700


async def test_new_files_in_a_folder_that_all_may_enter() -> None:
    """A folder that somebody made before keeps its mode, and what the store makes in it is its owner's alone."""
    Path("store").mkdir()
    Path("store").chmod(0o755)
    await filled("store")
    assert stat.S_IMODE(Path("store").stat().st_mode) == 0o755
    made = {stat.S_IMODE(path.stat().st_mode) for path in Path("store").rglob("*") if path.is_file()}
    assert made == {0o600}


async def test_a_file_that_is_written_anew_keeps_its_mode() -> None:
    """Compaction and what else replaces a file shut nobody out who could read it before."""
    await filled("store")
    path = Path("store/a.jsonl")
    path.chmod(0o640)
    before = path.stat().st_ino
    async with create_extended_store("json:///store") as store:
        for n in range(4):
            await store.save_messages("a", [samples.message(text=f"{n}" * COMPACT_FROM)])
    assert path.stat().st_ino != before
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files to others")
async def test_what_root_makes_in_a_store_belongs_to_its_owner() -> None:
    """A tool that root runs leaves no lock, lease, journal or folder that the service cannot use any more."""
    await filled("store")
    for path in (Path("store"), *Path("store").rglob("*")):
        os.chown(path, OTHER, OTHER)
    Path("store/.kode/locks/00").unlink()
    Path("store/.kode/copies").rmdir()
    async with create_extended_store("json:///store") as store:
        for n in range(100):
            await store.save_messages(f"b{n}", samples.messages(1))
        async with store.acquire_agent_lock("a", 1000):
            await store.backup("copy")
            found = {path: path.stat() for path in Path("store").rglob("*")}
    assert {(each.st_uid, each.st_gid) for each in found.values()} == {(OTHER, OTHER)}
    assert found.keys() >= {Path("store/.kode/copies"), Path("store/.kode/leases/a.json"), Path("store/.kode/locks/00")}
    assert {path.stat().st_uid for path in Path("copy").rglob("*")} == {0}


async def test_a_folder_that_only_can_be_read(unprivileged: Path) -> None:
    """A store on a read-only medium is read; writes are refused, and nothing is made."""
    base = unprivileged / "store"
    await filled(base)
    for path in (*base.rglob("*"), base):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = sorted(base.rglob("*"))
    try:
        async with create_extended_store(f"json:///{base}") as store:
            assert await store.load_messages("a") == samples.messages(1)
            assert await store.list() == ["a"]
            with pytest.raises(StoreReadOnlyError):
                await store.append_messages("a", samples.messages(1))
        assert sorted(base.rglob("*")) == before
    finally:
        for path in (base, *base.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)


@pytest.mark.parametrize("mode", ["0777", "600 ", "", "rw"])
async def test_a_mode_that_is_none(mode: str) -> None:
    """It is refused by the option's name, with an example, and nothing is made."""
    with pytest.raises(ConfigurationError, match="file_mode.*a mode such as 0600, 0640 or 0660"):
        await create_extended_store("json:///store", file_mode=mode)
    assert os.listdir() == []


def test_folders_that_cannot_all_be_made() -> None:
    """Folders that were made before the one that could not be are gone again."""
    with pytest.raises(OSError, match="too long"):
        create_folders(Path("one/two") / ("x" * 300))
    assert os.listdir() == []
    assert create_folders(Path("one/two")) == [Path("one"), Path("one/two")]
    assert create_folders(Path("one/two")) == []


@pytest.mark.parametrize(
    "url", ["json:///{}", "json:///{}/store", "sqlite:///{}/a.db", "sqlite:///a.db?file_store_base_dir={}"]
)
@pytest.mark.parametrize("name", ["file", "link"])
async def test_something_else_where_a_folder_should_be(url: str, name: str, tmp_path: Path) -> None:
    """The error names it, and says what to do; it stays as it is."""
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(StoreUnavailableError, match=f"{name} is no folder; move it away, or give another path"):
        await create_extended_store(url.format(name))
    assert (tmp_path / "file").read_text() == "mine" and os.readlink("link") == "nowhere"


async def test_no_folder_that_is_made_can_vanish_with_what_is_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first write is acknowledged the name of each new folder is synced, in the folder above it."""
    synced: list[int] = []
    fsync = os.fsync

    def noted(fd: int) -> None:
        synced.append(os.fstat(fd).st_ino)
        fsync(fd)

    monkeypatch.setattr(os, "fsync", noted)
    async with JsonStore("one/two/store") as store:
        await store.append_messages("a", [Message.user("x")])
        above = [Path(), Path("one"), Path("one/two"), Path("one/two/store"), Path("one/two/store/.kode")]
        assert {path.stat().st_ino for path in above} <= set(synced)
        synced.clear()
        await store.backup("copies/of/store/now")
        assert {path.stat().st_ino for path in (Path(), Path("copies"), Path("copies/of"))} <= set(synced)


def test_a_folder_above_that_only_can_be_entered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the folder above cannot be read or synced the new one is made all the same; a device that fails is told."""
    for number, is_told in ((errno.EACCES, False), (errno.EINVAL, False), (errno.EIO, True)):

        def fails(fd: int, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        place = Path(f"n{number}/inner")
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fails)
            if is_told:
                with pytest.raises(OSError, match=os.strerror(number)):
                    create_folders(place)
            else:
                create_folders(place)
        assert place.parent.exists() is not is_told


@pytest.mark.parametrize("mask", [0o777, 0o700, 0o500])
async def test_a_umask_that_lets_nobody_read(mask: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who is not root can make and use a store with any umask."""
    is_root = os.geteuid() == 0
    with tempfile.TemporaryDirectory(dir="/tmp") as place:  # every user can enter the folders above it
        monkeypatch.chdir(place)
        before = os.umask(mask)
        try:
            if is_root:
                os.chown(place, 65_534, -1)
                os.seteuid(65_534)
            await filled("outer/store")
            async with JsonStore("outer/store") as store:
                assert await store.list() == ["a"]
        finally:
            if is_root:
                os.seteuid(0)
            os.umask(before)
        assert modes(Path("outer")) == {(False, 0o600), (True, 0o700)}
        monkeypatch.undo()
