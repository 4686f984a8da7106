"""Ends the servers that tests have started when the process that started them is gone, however it ended.

Runs by itself, as ``python -I -S guardian.py FOLDER``, in a session of its own. Its standard input names each server
that starts, ``+ pid signal``, and each one that has ended, ``- pid``. When the input ends, as it does even when the
other process was killed, each server that still runs gets its signal, then SIGKILL, and the folder is removed.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path


def tree(pid: int) -> Iterator[int]:
    """*pid* and the processes below it."""
    yield pid
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        if Path("/proc/self/task").exists() or not shutil.which("pgrep"):
            return
        text = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout  # noqa: S603, S607
    for child in text.split():
        yield from tree(int(child))


def is_alive(pid: int) -> bool:
    """True if the process runs. A zombie, which has ended without being waited for, does not run."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except ProcessLookupError:
        return False
    except (OSError, IndexError):
        return Path(f"/proc/{pid}").exists() or not Path("/proc/self").exists()
    return state not in "ZX"


def send(pids: Iterator[int] | list[int], number: int) -> None:
    """Send a signal to the processes that still exist."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError):
            continue


def wait_gone(pids: list[int], seconds: float) -> bool:
    """True if all have ended within *seconds*."""
    end = time.monotonic() + seconds
    while any(is_alive(pid) for pid in pids):
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def main(folder: str) -> None:
    """Listen until the input ends, then clean up."""
    servers: dict[int, int] = {}
    for line in sys.stdin:
        what, pid, *number = line.split()
        if what == "+":
            servers[int(pid)] = int(number[0])
        else:
            servers.pop(int(pid), None)
    everything = [process for pid in servers for process in tree(pid)]
    for pid, number in servers.items():
        send([pid], number)
    send(everything, signal.SIGCONT)
    if not wait_gone(everything, 5):
        send(everything, signal.SIGKILL)
        wait_gone(everything, 5)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1])
