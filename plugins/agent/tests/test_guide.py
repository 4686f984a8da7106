"""The examples of the README and of the guide are programs: each runs as a file of its own, also a second time."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGES = ("plugins/agent/README.md", "docs/guides/running-agents.md")
EXAMPLES = [
    pytest.param(text, id=f"{page}-{number}")
    for page in PAGES
    for number, text in enumerate(re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL))
]


@pytest.mark.parametrize("text", EXAMPLES)
def test_an_example_is_a_program(text: str, tmp_path: Path) -> None:
    """Nothing of an example is defined elsewhere on its page, and nothing is awaited outside of a function."""
    (tmp_path / "example.py").write_text(text)
    for _ in range(2):
        done = subprocess.run(
            (sys.executable, "-W", "error", "example.py"),
            capture_output=True,
            text=True,
            timeout=60,
            cwd=tmp_path,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout or "asyncio.run" not in text
