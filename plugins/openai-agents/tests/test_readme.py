"""The examples of the README run, against the scripted server."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kode_agent.testing import Reply, Request

README = Path(__file__).parents[1] / "README.md"


def count(request: Request) -> Reply:
    given = request.body["input"]
    return Reply(f"{len(given) if isinstance(given, list) else 1} items")


def test_the_examples(served: Callable[[Any], Any], tmp_path: Path) -> None:
    served(count)
    first, second = re.findall(r"```python.*\n((?s:.*?))```", README.read_text())

    def run(example: str) -> str:
        command = [sys.executable, "-c", example]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        assert not done.stderr
        return done.stdout

    assert run(first) == "1 items\n"
    assert run(first) == "3 items\n"
    assert run(second) == "user-1 5 items\nuser-2 1 items\n"
