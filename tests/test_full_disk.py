"""Exports to a disk without room: a typed error that says so, and nothing left, neither the file nor a draft of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kode_core import Message, StoreFullError, create_extended_store, export_archive

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows bounds no file of a process")

_EXPORT = """
import asyncio, os, resource, sys
from kode_core import Message, StoreFullError, create_extended_store, export_archive
from kode_core.formats.parquet import export_parquet

async def main(target, most):
    async with create_extended_store("memory:") as store:
        for i in range(12):
            await store.append_messages(f"a{i:02}", [Message.user(os.urandom(50_000).hex())])
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        try:
            await (export_archive if ".jsonl" in target else export_parquet)(store, target)
        except StoreFullError as exc:
            print(exc)

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


@pytest.mark.parametrize("name", ["tables", "agents.jsonl", "agents.jsonl.zst"])
@pytest.mark.parametrize("most", [0, 3, 600_000], ids=["nothing", "the begin", "a half"])
def test_an_export_leaves_nothing(name: str, most: int, tmp_path: Path) -> None:
    """The limit is met by the first byte, in the begin of a file, and behind parts that were written whole."""
    target = tmp_path / "out" / name
    target.parent.mkdir()
    done = subprocess.run(
        (sys.executable, "-c", _EXPORT, str(target), str(most)),
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, "")
    written = "the archive" if ".jsonl" in name else "the tables in"
    assert done.stdout == f"{written} {target} cannot be written: File too large\n"
    assert list(target.parent.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
async def test_an_open_file_without_room() -> None:
    """It stays open, and the error is of this library."""
    async with create_extended_store("memory:") as store:
        await store.append_messages("a", [Message.user("x")])
        with Path("/dev/full").open("wb", buffering=0) as full:
            with pytest.raises(StoreFullError, match="the archive cannot be written: No space left on device"):
                await export_archive(store, full)
            assert not full.closed


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
async def test_a_command_says_so() -> None:
    """In one line, with exit code 2."""
    async with create_extended_store("json:///store") as store:
        await store.append_messages("a", [Message.user("x")])
    kode = (sys.executable, "-m", "kode_core.cli", "export", "-", "--store", "json:///store")
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(kode, stdout=full, stderr=subprocess.PIPE, encoding="utf-8", check=False, timeout=300)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "cannot be written: No space left on device" in done.stderr
