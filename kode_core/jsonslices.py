"""Convert large JSON values to text and back in slices, each of a millisecond or two.

A C library turns 10 MB into text, or text into objects, in one call that holds the interpreter's lock, so a thread
would not help. So a large value is split at the commas of its lists and dicts.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Final, Protocol, TypeAlias, TypeVar

import msgspec

from kode_core.jsonvalue import (
    MAX_DEPTH,
    NODES,
    NOT_ENCODABLE,
    Problem,
    escaped,
    exact_bytes,
    exact_text,
    problem_of,
    to_json,
    walk_through,
    weight,
)
from kode_core.model.base import Json

__all__ = ["LARGE_TEXT", "Hash", "JsonWriter", "batches", "joined", "read_json", "split_list", "split_object"]

LARGE_TEXT: Final = 2**18
"""JSON text of more bytes is read in slices."""
_BATCH: Final = 2**16
_ITEMS: Final = 512
_CHARS: Final = 2**17
_NULL: Final = len(b"null}")

T = TypeVar("T")


class Hash(Protocol):
    """A hash that takes exact bytes."""

    def update(self, data: bytes, /) -> None: ...


class _NoHash:
    def update(self, data: bytes, /) -> None:
        pass


class JsonWriter:
    """Writes large values, and passes the exact bytes of the written values to *proof*.

    A value that changes meanwhile is written partly in its old and partly in its new form, and so are its exact bytes.

    Args:
        is_silent: only the exact bytes are wanted.
        form: converts each piece before it is written; the members of dicts are then in order of keys.
    """

    def __init__(
        self, proof: Hash | None = None, *, is_silent: bool = False, form: Callable[[Json], Json] | None = None
    ) -> None:
        self._proof = proof or _NoHash()
        self._is_silent = is_silent
        self._form = form

    def write(self, value: Json, depth: int = 0) -> Iterator[bytes]:
        """The pieces of the text of a string, list or dict.

        Raises:
            Problem: the value is not exact JSON; the path of the problem is not set.
        """
        if type(value) is str:
            yield from self._write_text(value)
        elif depth >= MAX_DEPTH:
            raise Problem(f"nested deeper than {MAX_DEPTH} levels")
        elif type(value) is dict:
            self._proof.update(b"{")
            yield b"{"
            yield from self._write_members(list(value.items()), depth)
            self._proof.update(b"}")
            yield b"}"
        else:
            self._proof.update(b"[")
            yield b"["
            yield from self._write_items(list(value), depth)
            self._proof.update(b"]")
            yield b"]"

    def members(self, value: dict[str, Json]) -> Iterator[bytes]:
        """The pieces of the text of a dict without its braces; raises as :meth:`write` does."""
        return self._write_members(list(value.items()), 0)

    def _write_items(self, items: list[Json], depth: int) -> Iterator[bytes]:
        for i, (chunk, is_one) in enumerate(_chunks(items, lambda chunk: chunk)):
            if i:
                yield b","
            if is_one:
                yield from self.write(chunk[0], depth + 1)
            else:
                yield self._piece(chunk, depth)[1:-1]

    def _write_members(self, members: list[tuple[str, Json]], depth: int) -> Iterator[bytes]:
        if self._form is not None:
            members = sorted(members, key=lambda member: member[0])
        for i, (chunk, is_one) in enumerate(_chunks(members, lambda chunk: [value for _, value in chunk])):
            if i:
                yield b","
            if is_one:
                key, value = chunk[0]
                yield self._piece({key: None}, depth)[1:-_NULL]
                yield from self.write(value, depth + 1)
            else:
                yield self._piece(dict(chunk), depth)[1:-1]

    def _piece(self, value: Json, depth: int) -> bytes:
        if self._is_silent:
            self._proof.update(exact_bytes(value))
            return b""
        if self._form is not None:
            value = self._form(value)
        exact = exact_text(value, MAX_DEPTH - depth)
        if exact is None:
            walk_through(value, MAX_DEPTH - depth)
            exact = escaped(value), exact_bytes(value)
        text, proven = exact
        self._proof.update(proven)
        return text

    def _write_text(self, value: str) -> Iterator[bytes]:
        yield b'"'
        start = 0
        while start < len(value):
            end = start + _CHARS
            while "\ud800" <= value[end - 1 : end] <= "\udbff":  # the other half of a pair may follow
                end += 1
            yield self._text_piece(value[start:end])[1:-1]
            start = end
        yield b'"'

    def _text_piece(self, part: str) -> bytes:
        self._proof.update(exact_bytes(part))
        if self._is_silent:
            return b""
        try:
            return to_json(part)
        except NOT_ENCODABLE:
            problem = problem_of(part)
            if problem is not None:
                raise Problem(problem) from None
            return escaped(part)


def _chunks(items: list[T], values: Callable[[list[T]], list[Json]]) -> Iterator[tuple[list[T], bool]]:
    """Runs of items that are not large, and single large items; the second value is True for a large one."""
    for start in range(0, len(items), _ITEMS):
        yield from _halves(items[start : start + _ITEMS], values)


def _halves(items: list[T], values: Callable[[list[T]], list[Json]]) -> Iterator[tuple[list[T], bool]]:
    if weight(values(items)) <= NODES:
        yield items, False
    elif len(items) == 1:
        yield items, True
    else:
        middle = len(items) // 2
        yield from _halves(items[:middle], values)
        yield from _halves(items[middle:], values)


# --- Reading ----------------------------------------------------------------------------------------------------------

Raw: TypeAlias = msgspec.Raw | bytes

_split_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_split_list = msgspec.json.Decoder(list[msgspec.Raw]).decode


def split_object(text: Raw) -> dict[str, msgspec.Raw]:
    """The members of an object, undecoded; raises msgspec.DecodeError for other text, or an escaped lone surrogate."""
    return _split_object(text)


def split_list(text: Raw) -> list[msgspec.Raw]:
    """The items of a list, undecoded; raises as :func:`split_object` does."""
    return _split_list(text)


def batches(items: Sequence[msgspec.Raw]) -> Iterator[Sequence[msgspec.Raw]]:
    """Runs of items that are small together, and large ones alone."""
    start, size = 0, 0
    for i, item in enumerate(items):
        if size and size + len(item) > _BATCH:
            yield items[start:i]
            start, size = i, 0
        size += len(item)
    if size:
        yield items[start:]


def joined(items: Sequence[msgspec.Raw]) -> bytes:
    """The text of a list of *items*."""
    return b"[" + b",".join(items) + b"]"


def read_json(text: Raw) -> Generator[None, None, Json]:
    """The value of JSON text; yields between slices.

    Raises:
        ValueError: it is not JSON, or has an escaped lone surrogate, which can only be read in one piece.
    """
    first = bytes(memoryview(text)[:1])
    if len(text) > _BATCH and first == b"{":
        members = split_object(text)
        yield
        return dict(zip(members, (yield from _read_items(list(members.values()))), strict=True))
    if len(text) > _BATCH and first == b"[":
        items = split_list(text)
        yield
        return (yield from _read_items(items))
    return msgspec.json.decode(text)


def _read_items(items: Sequence[msgspec.Raw]) -> Generator[None, None, list[Json]]:
    values: list[Json] = []
    for batch in batches(items):
        if len(batch) == 1:
            values.append((yield from read_json(batch[0])))
        else:
            values.extend(msgspec.json.decode(joined(batch)))
        yield
    return values
