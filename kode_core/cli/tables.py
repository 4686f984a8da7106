"""Tables that fit the terminal."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from typing import Final

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from kode_core.cli.output import is_whole, visible

__all__ = ["table"]

_GAP: Final = 2
_LEAST_FIRST: Final = 12
_USUAL_ID: Final = 36
_LEAST_SHORTENED: Final = 20
_LEAST_LAST: Final = 19  # a time is whole


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str | Text]],
    *,
    right: Sequence[str] = (),
    optional: Sequence[str] = (),
    wrap: bool = False,
    shorten: bool = False,
) -> Table | Text | str:
    """A table; strings in *rows* are shown as they are, safely.

    In a terminal that is too narrow, *shorten* first shortens the first column, which has the ids: longer ids than a
    UUID keep their beginning and their end. Then the columns of *optional* are left out, in that order, and then the
    ids are folded into several lines. The last column takes the rest of the width: cut short, or with *wrap* in several
    lines. If nothing of that helps, each cell has a line of its own. Into a pipe everything is printed in full.
    """
    if is_whole():
        return _lines(columns, rows, right)
    names, cells = list(columns), [[_text(cell) for cell in row] for row in rows]
    whole = [list(row) for row in cells]
    widths = [max([len(name), *(row[i].cell_len for row in cells)]) for i, name in enumerate(names)]
    available = shutil.get_terminal_size().columns
    longest = widths[0]
    shorten = shorten and longest > _USUAL_ID
    least = _LEAST_SHORTENED if shorten else min(longest, max(_USUAL_ID, available // 2))
    for name in optional:
        if least + _least(widths) - longest <= available:
            break
        _drop(names.index(name), names, widths, cells)
    if _smallest(widths) > available:
        return _stacked(columns, whole)
    widths[0] = max(least, min(longest, longest + available - _least(widths))) if shorten else least
    _squeeze(widths, available)
    if shorten:
        for row in cells:
            row[0] = _shortened(row[0], widths[0])
    return _drawn(names, widths, cells, right, wrap)


def _lines(columns: Sequence[str], rows: Iterable[Sequence[str | Text]], right: Sequence[str]) -> str:
    """The table for a pipe, in full: rich takes minutes for the 100,000 rows that a pipe may get."""
    cells = [columns, *([cell.plain if isinstance(cell, Text) else visible(cell) for cell in row] for row in rows)]
    last = len(columns) - 1
    padded = [name in right or i < last for i, name in enumerate(columns)]  # the last one ends its line
    sizes = [[cell_len(cell) if pad else 0 for cell, pad in zip(row, padded, strict=True)] for row in cells]
    widths = [max(column) for column in zip(*sizes, strict=True)]
    lines = []
    for row, size in zip(cells, sizes, strict=True):
        gaps = [" " * (width - taken) for width, taken in zip(widths, size, strict=True)]
        line = [gap + cell if name in right else cell + gap for name, cell, gap in zip(columns, row, gaps, strict=True)]
        lines.append((" " * _GAP).join(line).rstrip())
    return "\n".join(lines)


def _text(cell: str | Text) -> Text:
    return cell.copy() if isinstance(cell, Text) else Text(visible(cell))


def _shortened(text: Text, width: int) -> Text:
    """The beginning and the end of a text that is wider than *width*, with an ellipsis between them."""
    if text.cell_len <= width:
        return text
    plain = text.plain
    end = _fitting(plain[::-1], width // 2)[::-1]
    return Text(f"{_fitting(plain, width - 1 - width // 2)}…{end}")


def _fitting(text: str, width: int) -> str:
    """The longest beginning of *text* that is not wider than *width*."""
    for i, char in enumerate(text):
        width -= cell_len(char)
        if width < 0:
            return text[:i]
    return text


def _least(widths: Sequence[int]) -> int:
    """The smallest width in which no column but the last one is cut."""
    return sum(widths[:-1]) + min(widths[-1], _LEAST_LAST) + _GAP * (len(widths) - 1)


def _smallest(widths: Sequence[int]) -> int:
    """The smallest width in which the columns have any use."""
    ends = min(widths[0], _LEAST_FIRST) + min(widths[-1], _LEAST_LAST)
    return ends + sum(widths[1:-1]) + _GAP * (len(widths) - 1)


def _stacked(names: Sequence[str], cells: Iterable[Sequence[Text]]) -> Text:
    """Each row below the others, its cells in lines of their own, for a terminal that is too narrow for columns."""
    lines: list[Text] = []
    for first, *rest in cells:
        lines.append(first)
        lines += [
            Text.assemble(f"  {name.lower()}: " if name else "  ", cell)
            for name, cell in zip(names[1:], rest, strict=True)
            if cell.plain.strip()
        ]
    return Text("\n").join(lines)


def _drop(index: int, names: list[str], widths: list[int], cells: list[list[Text]]) -> None:
    del names[index], widths[index]
    for row in cells:
        del row[index]


def _squeeze(widths: list[int], room: int) -> None:
    """Make the first and the last column smaller, so that all columns fit into *room* if possible."""
    missing = _least(widths) - room
    if missing > 0:
        widths[0] = max(min(widths[0], _LEAST_FIRST), widths[0] - missing)
    left = room - sum(widths[:-1]) - _GAP * (len(widths) - 1)
    widths[-1] = max(min(widths[-1], _LEAST_LAST), min(widths[-1], left))


def _drawn(
    names: Sequence[str], widths: Sequence[int], cells: Iterable[Sequence[Text]], right: Sequence[str], wrap: bool
) -> Table:
    drawn = Table(box=None, show_edge=False, pad_edge=False, padding=(0, _GAP, 0, 0))
    last = len(names) - 1
    for i, (name, width) in enumerate(zip(names, widths, strict=True)):
        several_lines = i == 0 or (wrap and i == last)
        drawn.add_column(
            name,
            justify="right" if name in right else "left",
            width=width,
            no_wrap=not several_lines,
            overflow="fold" if several_lines else "ellipsis",
        )
    for row in cells:
        drawn.add_row(*row)
    return drawn
