"""A process that is killed at any moment leaves an agent that the next one can run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

KILLED = Path(__file__).with_name("killed.py")


def killed_at(url: str, folder: Path, first: int, step: int) -> int:
    done = subprocess.run(
        (sys.executable, str(KILLED), url, str(folder), str(first), str(step)),
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["faults"] == []
    return int(found["last"])


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes are forked")


@needs_fork
@pytest.mark.parametrize("backend", ["sqlite", "json"])
def test_killed_at_some_moments(backend: str, tmp_path: Path) -> None:
    """Killed at every ninth moment, the agent is sealed, answers, and has run no call twice."""
    assert killed_at(f"{backend}:///{tmp_path}/store", tmp_path, 4, 9) > 60


@needs_fork
@pytest.mark.parametrize("backend", ["sqlite", "json"])
def test_killed_at_every_moment(backend: str, tmp_path: Path) -> None:
    """Killed at the beginning and the end of every call of the store, in a tool before and after its effect."""
    assert killed_at(f"{backend}:///{tmp_path}/store", tmp_path, 1, 1) > 60
