"""JSON documents out of a file, one at a time: a JSON list, JSON Lines, or a single value, plain or gzipped."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from kode_core.authoring.encodings import gunzipped, unmarked
from kode_core.authoring.lines import MAX_TEXT, BoundedLines, Line, LongTextError
from kode_core.errors import InvalidArgumentError
from kode_core.jsonvalue import decode_json
from kode_core.model import Json

__all__ = ["SQLITE", "Document", "first_lines", "read_documents"]

SQLITE: Final = b"SQLite format 3\0"
"""The beginning of a file of SQLite."""
_HEAD: Final = 1 << 20


class Document(NamedTuple):
    """One document of a file, not parsed yet, so that a broken document does not affect the others.

    Attributes:
        number: its place in the file, from 1.
        total: the number of documents in the file; None if it is only known at the end.
        problem: the reason why it was not read.
    """

    number: int
    text: bytes
    total: int | None
    problem: str = ""

    def value(self) -> Json:
        """The parsed document; raises InvalidArgumentError if it was not read, or is not JSON."""
        if self.problem:
            raise InvalidArgumentError(self.problem)
        if self.text.startswith(SQLITE):
            raise InvalidArgumentError(
                "this is an SQLite database, not JSON: --from says what wrote it, as in kode import --from langgraph"
            )
        try:
            return decode_json(self.text.decode())
        except (ValueError, RecursionError) as exc:
            raise InvalidArgumentError(f"this is not JSON: {exc}") from None


def read_documents(path: Path, is_part: Callable[[Json], bool]) -> Iterator[Document]:
    """The documents of a file, read on demand: JSON Lines are never in memory as a whole.

    *is_part* gets the first item of a list, and returns True if the list is a single document that the item is a part
    of. A line, and a file that is no JSON Lines, has at most ``MAX_TEXT`` bytes.

    Raises:
        InvalidArgumentError: the file cannot be read or unpacked, is neither JSON nor JSON Lines, or is one text that
            is too long. A line that is too long is a document with a problem.
    """
    lines = _lines(path)
    head = list(islice(lines, 2))
    if len(head) == 2 and _is_json(head[0].text):
        yield from _documents(chain(head, lines))
        return
    held, is_whole = _held(chain(head, lines))
    text = b"".join(line.text for line in held) if is_whole else b""
    if len(held) > 1 and _is_json(held[1].text) and not _is_json(text):
        yield from _documents(chain(held, lines))  # JSON Lines whose first line is broken
        return
    if not is_whole:
        raise InvalidArgumentError(
            f"{path}: line {held[0].number}: it begins no JSON Lines, and as one JSON text the file is "
            f"{LongTextError(MAX_TEXT)}; write each conversation on a line of its own"
        )
    held.clear()
    found = _split(path, text, is_part) if text else ()
    for number, one in enumerate(found, 1):
        yield Document(number, bytes(one), len(found))


def first_lines(path: Path, number: int) -> list[bytes]:
    """The first whole lines of a file, unpacked, up to a megabyte of them; none if it cannot be read."""
    try:
        with path.open("rb") as packed, gunzipped(packed) as file:
            return unmarked(file.read(_HEAD)).splitlines()[:number]
    except (UnicodeError, OSError, EOFError, zlib.error):
        return []


def _documents(lines: Iterable[Line]) -> Iterator[Document]:
    for number, line in enumerate(lines, 1):
        problem = f"line {line.number:,} is {line.problem}" if line.problem is not None else ""
        yield Document(number, line.text, None, problem)


def _lines(path: Path) -> Iterator[Line]:
    """The lines that are not blank."""
    try:
        with path.open("rb") as packed, gunzipped(packed) as file:
            for line in BoundedLines(file, MAX_TEXT):
                text = unmarked(line.text) if line.number == 1 else line.text
                if line.problem is not None or text.strip():
                    yield line._replace(text=text)
    except UnicodeError as exc:
        raise InvalidArgumentError(f"{path} cannot be read: {exc}") from None
    except (OSError, EOFError, zlib.error) as exc:
        raise InvalidArgumentError(f"{path} cannot be read: {getattr(exc, 'strerror', None) or exc}") from exc


def _held(lines: Iterator[Line]) -> tuple[list[Line], bool]:
    """The first two lines and more, up to ``MAX_TEXT`` bytes, and whether these are all."""
    held, size, is_long = list[Line](), 0, False
    for line in lines:
        held.append(line)
        size += len(line.text)
        is_long = is_long or line.problem is not None or size > MAX_TEXT
        if is_long and len(held) > 1:
            break
    return held, not is_long


def _is_json(text: bytes) -> bool:
    try:
        decode_json(text.decode())
    except (ValueError, RecursionError):
        return False
    return True


def _split(path: Path, text: bytes, is_part: Callable[[Json], bool]) -> Sequence[bytes]:
    """The documents of a file that is one text."""
    if not text.lstrip().startswith(b"["):
        return [text]
    try:
        items = _items(text)
    except (ValueError, RecursionError) as exc:
        raise InvalidArgumentError(f"{path} is neither JSON nor JSON Lines: {exc}") from None
    return [text] if items and _first_is_part(bytes(items[0]), is_part) else items


def _first_is_part(text: bytes, is_part: Callable[[Json], bool]) -> bool:
    try:
        return is_part(decode_json(text.decode()))
    except (ValueError, RecursionError):  # its problem is reported when its turn comes
        return False


def _items(text: bytes) -> Sequence[bytes]:
    try:
        return msgspec.json.decode(text, type=list[msgspec.Raw])
    except msgspec.DecodeError:  # an escaped lone surrogate, or no JSON at all
        return [json.dumps(item).encode() for item in json.loads(text)]
