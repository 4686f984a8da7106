"""Processes that work on one session at once, and processes that are killed."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

from kode_openai_agents import KodeSession

from kode_core.sync import open_store

WORKER = Path(__file__).with_name("worker.py")


def begin(url: str, *args: object) -> subprocess.Popen[str]:
    command = [sys.executable, WORKER, url, "user-1", *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def lines(process: subprocess.Popen[str]) -> list[list[str]]:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    return [line.split() for line in output.splitlines()]


def marks(url: str) -> list[str]:
    with KodeSession("user-1", url) as session:
        return [item["mark"] for item in asyncio.run(session.get_items())]


def test_two_processes_append_batches_in_one_piece(place: str) -> None:
    processes = [begin(place, "append", name, 10) for name in ("a", "b")]
    for process in processes:
        assert len(lines(process)) == 10
    found = marks(place)
    assert len(found) == 2 * 10 * 4
    batches = [found[i : i + 4] for i in range(0, len(found), 4)]
    assert all(batch == [f"{batch[0][:-2]}/{n}" for n in range(4)] for batch in batches)
    for name in ("a", "b"):
        assert [batch[0] for batch in batches if batch[0].startswith(name)] == [f"{name}-{n}/0" for n in range(10)]
    with open_store(place) as store:
        assert len(list(store.iter_tool_calls(is_error=True))) == 20
        assert [one.message_count for one in store.query_sessions()] == [80]


def test_pops_lose_no_appends_of_other_processes(place: str) -> None:
    writers = [begin(place, "append", name, 10) for name in ("a", "b")]
    poppers = [begin(place, "pop", name, 15) for name in ("c", "d")]
    added = [f"{mark}/{n}" for process in writers for _, mark in lines(process) for n in range(4)]
    popped = [mark for process in poppers for _, mark in lines(process) if mark != "None"]
    assert Counter(popped) + Counter(marks(place)) == Counter(added)


def test_a_kill_leaves_whole_batches(place: str) -> None:
    acknowledged: list[str] = []
    for turn in range(2):
        process = begin(place, "append", f"k{turn}", 1_000)
        assert process.stdout is not None
        for _ in range(3 + turn * 6):
            acknowledged.append(process.stdout.readline().split()[1])
        process.send_signal(signal.SIGKILL)
        acknowledged += [line.split()[1] for line in process.stdout.read().splitlines() if line.count("-")]
        process.wait()
        process.stdout.close()
    found = marks(place)
    batches = [found[i : i + 4] for i in range(0, len(found), 4)]
    assert all(batch == [f"{batch[0][:-2]}/{n}" for n in range(4)] for batch in batches)
    assert set(acknowledged) <= {batch[0][:-2] for batch in batches}
    assert len(batches) <= len(acknowledged) + 2  # one unacknowledged write for each kill
    with open_store(place) as store:
        assert len(list(store.iter_tool_calls(is_error=True))) == len(batches)
        assert not store.check_consistency().issues
