"""``make demo``: it works as printed, and a second run adds nothing."""

from __future__ import annotations

import html
import re
import shlex
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"


def demo(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, EXAMPLES / "demo.py", *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def totals(out: str) -> dict[str, tuple[str, str]]:
    """The counts before and after, by what was counted."""
    rows = re.findall(r"^(agents|messages|tool calls|events) +([\d,]+) +([\d,]+)$", out, re.MULTILINE)
    return {name: (before, after) for name, before, after in rows}


def test_demo_imports_once_and_answers() -> None:
    """The second run finds the runs of the first, adds nothing and says so; the answers are the same."""
    first, second = demo(), demo()

    held = {"agents": "200", "messages": "5,308", "tool calls": "1,164", "events": "6,362"}
    assert totals(first) == {name: ("0", count) for name, count in held.items()}
    assert totals(second) == {name: (count, count) for name, count in held.items()}
    assert "nothing was stored twice" in second and "nothing was stored twice" not in first
    assert Path("data/demo.db").is_file()
    answers = "The longest of 200 sessions"
    assert first.split(answers)[1] == second.split(answers)[1]


def test_demo_says_what_the_file_holds() -> None:
    """73 of the tool calls failed, and 84 of the runs had a reward of 1.0."""
    out = demo("other.db")

    assert "73 of 1,164 calls failed" in out
    assert re.search(r"^book_reservation +53 +30 +57%$", out, re.MULTILINE)
    assert re.search(r"^template tau-airline +200 +84 +42%$", out, re.MULTILINE)
    assert len(re.findall(r"^trial [0-3] +50 ", out, re.MULTILINE)) == 4


def test_commands_of_the_demo_work_as_printed() -> None:
    """Also when the path is awkward; each prints something and ends well."""
    out = demo("some data/50%?.db")
    commands = [line.strip() for line in out.splitlines() if line.startswith("  ") and " --store " in line]

    assert len(commands) == 4
    for command in commands:
        done = subprocess.run(shlex.split(command), capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout


def test_demo_needs_only_the_store() -> None:
    """Without rich it prints the same things more plainly."""
    blocked = "import sys, runpy; sys.modules['rich'] = None; sys.argv = sys.argv[1:]"
    script = f"{blocked}; runpy.run_path(sys.argv[0], run_name='__main__')"

    done = subprocess.run(
        [sys.executable, "-c", script, EXAMPLES / "demo.py", "plain.db"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert totals(done.stdout)["messages"] == ("0", "5,308")


def test_licence_of_the_data_is_beside_it() -> None:
    """The data are MIT-licensed by Sierra, and their README says where they are from."""
    folder = EXAMPLES / "tau-airline"

    assert "Copyright (c) 2024 Sierra" in (folder / "LICENSE").read_text()
    assert "59a200c" in (folder / "README.md").read_text()


def recorded(image: Path) -> list[str]:
    """The texts of a recording, without numbers that differ from run to run."""
    texts = re.findall(r"<text [^>]*>(.*?)</text>", image.read_text(), re.DOTALL)
    return [re.sub(r"[\d.]+\s(s|ms|MB)\b", r"… \1", html.unescape(text)) for text in texts if text.strip()]


def test_the_recording_is_what_commands_print(tmp_path: Path) -> None:
    """docs/images/terminal.svg is what its script makes today, and the image fetches nothing."""
    kept, made = EXAMPLES.parent / "images" / "terminal.svg", tmp_path / "made.svg"

    subprocess.run([sys.executable, kept.with_name("record.py"), made], check=True, timeout=300)

    assert len(recorded(kept)) > 20
    assert recorded(kept) == recorded(made)
    assert not re.search(r"@import|@font-face|<image|<script|href|url\(['\"]?(?!#)", kept.read_text())
