"""The examples of the README and of the guide run, and print what the pages say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
EXAMPLES = Path(__file__).parent / "examples"


def printed(name: str, folder: Path) -> str:
    command = [sys.executable, str(EXAMPLES / f"{name}.py")]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=120).stdout


def test_hello_is_durable(tmp_path: Path) -> None:
    assert printed("hello", tmp_path) == "{'text': 'ab'}\n"
    assert (tmp_path / "data" / "agents.db").exists()


def test_the_memory_and_the_messages(tmp_path: Path) -> None:
    assert printed("memory", tmp_path) == "1 memory, 1 message\n"
    assert printed("look", tmp_path) == "user Hello\nassistant 1 memory, 1 message\n"


@pytest.mark.parametrize("page", ["plugins/langgraph/README.md", "docs/guides/langgraph.md"])
def test_pages_quote_the_examples(page: str) -> None:
    quoted = [block.split("\n```")[0] for block in (ROOT / page).read_text().split("\n```python from ")[1:]]
    assert quoted
    for block in quoted:
        path, _, text = block.partition("\n")
        assert path.startswith("plugins/langgraph/tests/examples/")
        assert text in (ROOT / path).read_text()
