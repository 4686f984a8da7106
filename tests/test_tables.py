"""The tables of the commands, in a pipe."""

from __future__ import annotations

import io
import sys

import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kode_core.cli.tables import table


def drawn(rows: list[tuple[str, str, str]]) -> str:
    """The table as rich draws it on a wide page, without the spaces at the ends of lines."""
    grid = Table(box=None, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("AGENT", "MESSAGES", "CONTENT"):
        grid.add_column(name, justify="right" if name == "MESSAGES" else "left", no_wrap=True)
    for row in rows:
        grid.add_row(*map(Text, row))
    out = io.StringIO()
    Console(file=out, width=10_000, highlight=False, markup=False, emoji=False).print(grid)
    return "".join(f"{line.rstrip()}\n" for line in out.getvalue().splitlines())


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [("a", "1", "x")],
        [
            ("agent with a long name", "12,345,678,901", "é"),
            ("日本語", "7", "🙂 wide"),
            ("", "", ""),
            ("b", "1", "  in"),
        ],
        [(f"agent {i}", str(i), "x" * i) for i in range(600)],
    ],
    ids=["empty", "one", "wide", "long"],
)
def test_a_pipe_gets_the_table_that_rich_draws(
    rows: list[tuple[str, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Columns stand where rich puts them, by the width of their characters; nothing is cut."""
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    made = table(("AGENT", "MESSAGES", "CONTENT"), rows, right=("MESSAGES",))
    assert isinstance(made, str)
    assert f"{made}\n" == drawn(rows)


def test_a_pipe_gets_no_escape(monkeypatch: pytest.MonkeyPatch) -> None:
    """Text of agents is shown escaped, one line for each row."""
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    made = table(("AGENT", "CONTENT"), [("a\nb", "\x1b[31mred"), ("c\r", Text("plain"))])
    assert made == "AGENT  CONTENT\na\\nb   \\x1b[31mred\nc\\r    plain"
