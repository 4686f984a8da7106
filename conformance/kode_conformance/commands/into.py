"""Tables that are made by a command and stand in a page, between two lines that mark their place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kode_core.errors import InvalidArgumentError

__all__ = ["write_into"]


def write_into(path: Path, name: str, lines: Sequence[str]) -> None:
    """Put *lines* between ``<!-- name -->`` and ``<!-- end of name -->``, in place of the lines between them.

    Raises:
        InvalidArgumentError: the file has no such marks, or cannot be read or written.
    """
    first, last = f"<!-- {name} -->", f"<!-- end of {name} -->"
    try:
        before, begin, rest = path.read_text("utf-8").partition(first)
        _, end, after = rest.partition(last)
        if not (begin and end):
            raise InvalidArgumentError(f"{path}: mark the table's place with a line {first} and a line {last}")
        path.write_text("\n".join([f"{before}{first}", *lines, f"{last}{after}"]), "utf-8")
    except OSError as exc:
        raise InvalidArgumentError(f"{path}: {exc.strerror}") from None
