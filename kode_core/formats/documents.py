"""JSON documents out of a file, one at a time: a JSON list, JSON Lines, or a single value, plain or gzipped."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from io import BufferedIOBase, BufferedReader
from itertools import chain, islice
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from kode_core.errors import InvalidArgumentError
from kode_core.jsonvalue import decode_json
from kode_core.model import Json

__all__ = ["SQLITE", "Document", "first_lines", "read_documents"]

_GZIP: Final = b"\x1f\x8b"
SQLITE: Final = b"SQLite format 3\0"
"""The beginning of a file of SQLite."""
_HEAD: Final = 1 << 20
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


class Document(NamedTuple):
    """One document of a file, not parsed yet, so that a broken document does not affect the others.

    Attributes:
        number: its place in the file, from 1.
        total: the number of documents in the file; None if it is only known at the end.
    """

    number: int
    text: bytes
    total: int | None

    def value(self) -> Json:
        """The parsed document; raises InvalidArgumentError if it is not JSON."""
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
    of.

    Raises:
        InvalidArgumentError: the file cannot be read or unpacked, or is neither JSON nor JSON Lines.
    """
    lines = _lines(path)
    head = list(islice(lines, 2))
    if len(head) == 2 and _is_json(head[0]):
        texts: Iterator[bytes] = chain(head, lines)
        total = None
    else:
        found = _split(path, [*head, *lines], is_part)
        texts, total = iter(found), len(found)
    for number, text in enumerate(texts, 1):
        yield Document(number, bytes(text), total)


def first_lines(path: Path, number: int) -> list[bytes]:
    """The first whole lines of a file, unpacked, up to a megabyte of them; none if it cannot be read."""
    try:
        with path.open("rb") as packed, _unpacked(packed) as file:
            return file.read(_HEAD).removeprefix(_BYTE_ORDER_MARK).splitlines()[:number]
    except (OSError, EOFError, zlib.error):
        return []


def _lines(path: Path) -> Iterator[bytes]:
    """The lines that are not blank."""
    try:
        with path.open("rb") as packed, _unpacked(packed) as file:
            for number, line in enumerate(file):
                text = line.removeprefix(_BYTE_ORDER_MARK) if number == 0 else line
                if text.strip():
                    yield text
    except (OSError, EOFError, zlib.error) as exc:
        raise InvalidArgumentError(f"{path} cannot be read: {getattr(exc, 'strerror', None) or exc}") from exc


def _unpacked(file: BufferedReader) -> BufferedIOBase:
    return gzip.GzipFile(fileobj=file) if file.peek(2)[:2] == _GZIP else file


def _is_json(text: bytes) -> bool:
    try:
        decode_json(text.decode())
    except (ValueError, RecursionError):
        return False
    return True


def _split(path: Path, lines: Sequence[bytes], is_part: Callable[[Json], bool]) -> Sequence[bytes]:
    """The documents of a file whose first line is not one."""
    text = b"".join(lines)
    if len(lines) > 1 and _is_json(lines[1]) and not _is_json(text):
        return lines  # JSON Lines whose first line is broken
    if not text.lstrip().startswith(b"["):
        return [text] if text else []
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
