"""Record the terminal that the README shows, from commands that run now.

    python docs/images/record.py [FILE]

It makes the store of ``make demo`` in a temporary folder, runs ``kode`` on it in a terminal of its own, and writes what
they printed to ``terminal.svg``, or to FILE. Lines that are left out are marked. Linux and macOS only.
"""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

HERE = Path(__file__).parent
COLUMNS = 96
DEMO = (sys.executable, str(HERE.parent / "examples" / "demo.py"), "data/demo.db")
KODE = (str(Path(sys.executable).with_name("kode")), "--store", "sqlite:///data/demo.db")
COMMANDS = (("tool-calls", "--errors", "--limit", "3"), ("doctor",))
SECTIONS_OF_THE_DEMO = (0, 2)
"""The tables of ``make demo`` that are shown: what the store holds, and the tools that fail most."""


def main(target: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        shown = Text("\n").join([*demo(folder), *(kode(folder, *arguments) for arguments in COMMANDS)])
    target.write_text(svg(shown))
    print(f"{target}: {len(shown.plain.splitlines())} lines")


def demo(folder: str) -> list[Text]:
    """The prompt, the first line and some tables of ``make demo``."""
    printed = run(folder, *DEMO)
    first, *sections = re.split(r"\n\n(?=[A-Z])", printed)  # the title of a table begins with a capital letter
    chosen = [f"{sections[i].rstrip()}\n" for i in SECTIONS_OF_THE_DEMO]
    left_out = Text("… (three more questions)\n", "dim")
    return [prompt("make demo"), Text.from_ansi(first + "\n"), *map(Text.from_ansi, chosen), left_out]


def kode(folder: str, *arguments: str) -> Text:
    """The prompt and the output of a command, as in a terminal."""
    line = prompt(" ".join(("kode", *KODE[1:], *arguments)))
    return line + Text("\n") + Text.from_ansi(run(folder, *KODE, *arguments))


def prompt(command: str) -> Text:
    return Text.assemble(("$ ", "bold green"), (command, "bold"))


def run(folder: str, *command: str) -> str:
    """The output of a command: results to a terminal, then its notes; the progress that it would show is not wanted."""
    env = {**os.environ, "COLUMNS": str(COLUMNS), "LINES": "60", "TERM": "xterm-256color", "FORCE_COLOR": "1"}
    for name in [name for name in env if name == "NO_COLOR" or name.startswith("KODE_")]:
        del env[name]
    if command == DEMO:  # it shows its progress on stdout
        return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=True).stdout
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, cwd=folder, env=env, stdout=theirs, stderr=subprocess.PIPE, text=True)
    os.close(theirs)
    out = read(ours)
    _, notes = process.communicate()
    if process.returncode:
        raise SystemExit(f"{command}: exit code {process.returncode}\n{out}{notes}")
    return out.replace("\r\n", "\n") + notes


def read(terminal: int) -> str:
    parts = []
    try:
        while part := os.read(terminal, 65_536):
            parts.append(part)
    except OSError:  # on Linux the end of a terminal is an error
        pass
    os.close(terminal)
    return b"".join(parts).decode()


def svg(shown: Text) -> str:
    """The text as an SVG image that fetches nothing: the font is the reader's own."""
    with Path(os.devnull).open("w") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere, force_terminal=True, color_system="truecolor")
        console.print(shown)
    drawn = console.export_svg(title="kode", unique_id="kode")
    drawn = re.sub(r"\s*@font-face \{.*?\}", "", drawn, flags=re.DOTALL)  # these name a server
    drawn = drawn.replace("font-family: Fira Code, monospace", "font-family: ui-monospace, Menlo, Consolas, monospace")
    return re.sub(r"[ \t]+$", "", drawn, flags=re.MULTILINE)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "terminal.svg")
