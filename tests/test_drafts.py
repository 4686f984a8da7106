"""Drafts of exports: a killed process leaves one, and the next export of that name removes it, and no living one."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kode_core import Message, create_extended_store, export_archive
from kode_core.authoring.drafts import draft_of, remove_dead_drafts

pytestmark = pytest.mark.skipif(os.name != "posix", reason="locks of POSIX, and kill")

_WAITS = """
import sys, time
from pathlib import Path
from kode_core.authoring.drafts import draft_of
make = {"file": lambda draft: draft.write_bytes(b"x"), "folder": lambda draft: (draft.mkdir(), (draft / "f").touch())}
with draft_of(Path(sys.argv[1]), make[sys.argv[2]]) as draft:
    print(draft, flush=True)
    time.sleep(600)
"""


@contextmanager
def waiting(path: Path, kind: str) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process with a draft of *path*."""
    command = (sys.executable, "-c", _WAITS, str(path), kind)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, Path(process.stdout.readline().strip())
        finally:
            process.kill()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_the_draft_of_a_killed_process_is_removed_and_a_living_one_stays(kind: str, tmp_path: Path) -> None:
    """Files of other names, also similar ones, are never touched."""
    path, other = tmp_path / "a.jsonl", tmp_path / "a.jsonl.zst"
    kept = [tmp_path / name for name in (".a.jsonl.part", ".a.jsonl.0123456g.part", "a.jsonl.01234567.part")]
    for one in kept:
        one.touch()
    with waiting(path, kind) as (_, living), waiting(path, kind) as (dying, dead), waiting(other, kind) as (last, lost):
        for process in (dying, last):
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert dead.exists()
        with draft_of(path, Path.touch) as draft:
            assert not dead.exists()
            assert living.exists()
            assert lost.exists()
            remove_dead_drafts(path)
            assert draft.exists()
        assert not draft.exists()
        assert living.exists()
    assert all(one.exists() for one in kept)


async def test_an_export_removes_what_a_killed_export_of_the_file_left(tmp_path: Path) -> None:
    """And a link of that name, or a folder with a lock of another process, does no harm."""
    path = tmp_path / "a.jsonl"
    with waiting(path, "file") as (process, dead):
        process.send_signal(signal.SIGKILL)
        process.wait()
    victim = tmp_path / "victim"
    victim.write_text("kept")
    link = tmp_path / ".a.jsonl.89abcdef.part"
    link.symlink_to(victim)
    async with create_extended_store("memory:") as store:
        await store.append_messages("a", [Message.user("x")])
        await export_archive(store, path)
    assert not dead.exists()
    assert link.is_symlink()
    assert victim.read_text() == "kept"


async def test_exports_of_one_name_at_once_remove_no_draft_of_each_other(tmp_path: Path) -> None:
    """One of them makes the file, the others say that it exists by now."""
    async with create_extended_store("memory:") as store:
        for i in range(30):
            await store.append_messages(f"a-{i}", [Message.user("x")])
        many = [export_archive(store, tmp_path / "a.jsonl") for _ in range(8)]
        outcomes = await asyncio.gather(*many, return_exceptions=True)
    problems = [str(one) for one in outcomes if isinstance(one, BaseException)]
    assert len(problems) == 7
    assert all("does not overwrite" in problem for problem in problems)
    assert [one.name for one in tmp_path.iterdir()] == ["a.jsonl"]
