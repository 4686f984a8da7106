"""The tutorial is true: its files are written, its commands typed, and what they print is what the page says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_docs import ROOT, Block, blocks

PAGE = ROOT / "docs" / "tutorial.md"
ENV_PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


@pytest.mark.slow
def test_the_tutorial_happens_as_it_says(tmp_path: Path) -> None:
    """Typed from top to bottom in an empty folder, each step prints what the page prints."""
    reader = Reader(tmp_path)
    for block, before in with_words_before(PAGE):
        if block.language == "python":
            (tmp_path / Path(block.source).name).write_text(block.text)
        elif block.language == "console" and not block.skip:
            in_background = "second terminal" in before
            for command, expected in typed(block):
                if in_background:
                    reader.start(command)
                else:
                    reader.expect(f"{PAGE}:{block.line}: {command}", expected, reader.run(command))
        elif block.language == "" and "prints" in before:
            reader.expect(f"{PAGE}:{block.line}", block.text, reader.background())


class Reader:
    """Someone who types what the page says, in two terminals."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {**os.environ, "PATH": ENV_PATH, "COLUMNS": "120"}
        self.printed = ""
        self._second: subprocess.Popen[str] | None = None

    def run(self, command: str) -> str:
        """Type *command*; a cursor that the page shows is the reader's own."""
        own = re.search(r"failures\.py (\S+)\n", self.printed)
        if own is not None:
            command = re.sub(r"(failures\.py) \S+", rf"\1 {own[1]}", command)
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert "Error" not in done.stderr, done.stderr
        self.printed = self.words_of(command, done)
        return self.printed

    def words_of(self, command: str, done: subprocess.CompletedProcess[str]) -> str:
        """What the terminal shows: kode prints the count of a list to the other stream."""
        return done.stdout + (done.stderr if command.startswith("kode") else "")

    def start(self, command: str) -> None:
        self._second = subprocess.Popen(
            ["bash", "-c", f"exec {command}"], cwd=self.folder, env=self.env, stdout=subprocess.PIPE, text=True
        )

    def background(self) -> str:
        assert self._second is not None
        out, _ = self._second.communicate(timeout=60)
        return out

    def expect(self, where: str, expected: str, printed: str) -> None:
        is_a_race = " & " in where and "answered" in expected
        assert alike(printed, is_a_race) == alike(expected, is_a_race), where


def alike(text: str, is_a_race: bool) -> list[str]:
    """The lines, without what differs from run to run: times, cursors, and who of two workers was first."""
    text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "TIME", text)
    text = re.sub(r"[\d.]+ ms", "N ms", text)
    text = re.sub(r"failures\.py \S+", "failures.py CURSOR", text)
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    if is_a_race:
        return sorted(re.sub(r"^(one|two) ", "a worker ", line) for line in lines)
    return lines


def typed(block: Block) -> Iterator[tuple[str, str]]:
    """(command, output) of a block."""
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        yield command, output


def with_words_before(page: Path) -> Iterator[tuple[Block, str]]:
    lines = page.read_text().splitlines()
    for block in blocks(page):
        yield block, " ".join(lines[max(0, block.line - 4) : block.line - 1])
