"""Processes that append to one session at once, and processes that are killed."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from claude_agent_sdk import fold_session_summary
from kode_claude_agent import KodeSessionStore

from kode_core.sync import open_store

WORKER = Path(__file__).with_name("worker.py")
KEY: Any = {"project_key": "-home-ada", "session_id": "5d1f"}


def begin(url: str, name: str, count: int) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, WORKER, url, name, str(count)], stdout=subprocess.PIPE, text=True)


def checked(url: str) -> list[str]:
    """The uuids of the session, whose batches are whole, and whose summary and tool calls are those of its entries."""
    with KodeSessionStore(url) as sessions:
        entries: Any = asyncio.run(sessions.load(KEY))
        (summary,) = asyncio.run(sessions.list_session_summaries("-home-ada"))
    uuids = [entry["uuid"] for entry in entries]
    assert len(uuids) == len(set(uuids))
    starts = [n for n, uuid in enumerate(uuids) if uuid.endswith("/0")]
    assert all(uuids[n + i] == f"{uuids[n][:-1]}{i}" for n in starts for i in range(3))
    assert summary["data"] == fold_session_summary(None, KEY, entries)["data"]
    with open_store(url) as store:
        assert store.count_tool_calls(is_error=True) == len(starts)
        assert not store.check_consistency().issues
    return uuids


def test_two_processes_append_to_one_session(place: str) -> None:
    processes = [begin(place, name, 12) for name in ("a", "b")]
    for process in processes:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0
        assert len(output.splitlines()) == 12
    uuids = checked(place)
    assert set(uuids) == {f"{name}-{n}/{i}" for name in "ab" for n in range(12) for i in range(3)} | {
        f"all-{n}" for n in range(12)
    }
    for name in "ab":
        assert [uuid for uuid in uuids if uuid[:2] == f"{name}-"] == [
            f"{name}-{n}/{i}" for n in range(12) for i in range(3)
        ]


def test_a_killed_process_leaves_whole_batches_and_goes_on(place: str) -> None:
    for turn in range(2):
        process = begin(place, "k", 1_000)
        assert process.stdout is not None
        for _ in range(4 + turn * 4):
            last = process.stdout.readline().strip()
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert f"{last}/0" in checked(place)
    process = begin(place, "k", 20)  # the same batches again, from the first
    process.communicate(timeout=300)
    uuids = checked(place)
    assert {f"k-{n}/{i}" for n in range(20) for i in range(3)} <= set(uuids)
