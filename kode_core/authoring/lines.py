"""Lines of files that other programs wrote, none of which fills the memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

__all__ = ["MAX_TEXT", "BoundedLines", "Line", "LongTextError", "read_bounded"]

MAX_TEXT: Final = 2**28
"""The longest JSON text that importers take, in bytes, unpacked: a line, or a file that is one text."""
_BATCH: Final = 2**20
_PIECE: Final = 2**20


class LongTextError(ValueError):
    """A text is longer than its bound."""

    def __init__(self, most: int) -> None:
        super().__init__(f"longer than {most:,} bytes")


class Line(NamedTuple):
    """A line of a file.

    Attributes:
        number: its number in the file, from 1.
        text: its bytes with the line feed, which the last one may lack; empty with a problem.
        problem: the reason why it was not read.
    """

    number: int
    text: bytes
    problem: LongTextError | None = None


class BoundedLines(Iterator[Line]):
    """The lines of a binary file. One that is longer than *most* bytes is passed over in pieces.

    Args:
        first: the bound of the first line, if it has one of its own.
    """

    def __init__(self, file: IO[bytes] | Any, most: int = MAX_TEXT, first: int | None = None) -> None:
        self._file = file
        self._most = most
        self._bound = most if first is None else first
        self._is_within = False
        self._number = 0
        self._failed: Exception | None = None

    def __next__(self) -> Line:
        while self._is_within:
            piece = self._file.readline(_PIECE)
            self._is_within = bool(piece) and not piece.endswith(b"\n")
        bound, self._bound = self._bound, self._most
        text = self._file.readline(bound + 1)
        if not text:
            raise StopIteration
        self._number += 1
        if len(text) > bound:
            self._is_within = not text.endswith(b"\n")
            return Line(self._number, b"", LongTextError(bound))
        return Line(self._number, text)

    def batch(self) -> list[Line]:
        """The next lines, of about a megabyte together; none at the end.

        An error of the file is raised once the lines before it were given, and again from then on.
        """
        found, held = list[Line](), 0
        while held < _BATCH and self._failed is None:
            try:
                line = next(self, None)
            except Exception as exc:  # noqa: BLE001 - of a decompressor, too
                self._failed = exc
                break
            if line is None:
                break
            found.append(line)
            held += len(line.text) + 1
            if line.problem is not None:
                break
        if self._failed is not None and not found:
            raise self._failed
        return found


def read_bounded(path: Path, most: int = MAX_TEXT) -> bytes:
    """The contents of a file.

    Raises:
        LongTextError: it has more than *most* bytes.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        found = file.read(most + 1)
    if len(found) > most:
        raise LongTextError(most)
    return found
