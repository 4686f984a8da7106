"""Values as JSON: a large value is an item of the thread's log, kept once; lists and dicts refer to their items.

A packed value is one of

- ``["v", kind, base64]``: the value itself, as the serializer made it;
- ``["i", position]``: an item of the log;
- ``["l", [part, …]]``: a list. A part is ``[first, last]``, positions in the log, or ``[kind, base64]``, an element;
- ``["d", [[key, packed], …]]``: a dict;
- ``["s", packed]``: a snapshot of a ``DeltaChannel``.
"""

from __future__ import annotations

import asyncio
import binascii
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any, Final, Protocol, TypeAlias

from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.types import _DeltaSnapshot

from kode_core import CorruptRecordError, InvalidValueError, KodeError

__all__ = ["Found", "Log", "Packed", "Raw", "Serial", "digest_of", "guard", "pace", "pack", "positions", "unpack"]

Packed: TypeAlias = list[Any]
Raw: TypeAlias = tuple[str, bytes]
"""A value as the serializer makes it, not encrypted: a kind, and bytes."""
Found: TypeAlias = Mapping[int, Raw]

_INLINE: Final = 512
_SMALL_ELEMENT: Final = 16
_DEPTH: Final = 3
_TURN: Final = 256


class Serial:
    """A serializer, with its cipher apart: equal values are found to be equal before they are encrypted."""

    def __init__(self, serde: SerializerProtocol) -> None:
        self.encrypts = isinstance(serde, EncryptedSerializer)
        self._serde = serde.serde if isinstance(serde, EncryptedSerializer) else serde
        self._cipher = serde.cipher if isinstance(serde, EncryptedSerializer) else None

    def raw(self, value: object) -> Raw:
        """The value, not encrypted.

        Raises:
            InvalidValueError: the serializer cannot express it.
        """
        try:
            return self._serde.dumps_typed(value)
        except Exception as exc:  # a serializer raises any error
            problem = f"the serializer of LangGraph refuses it: {type(exc).__name__}: {exc!s:.200}"
            raise InvalidValueError(f"a value of type {type(value).__name__}", "$", problem) from exc

    def seal(self, raw: Raw) -> list[str]:
        """The JSON of a value, encrypted if the serializer does that."""
        kind, data = raw
        if self._cipher is not None:
            name, data = self._cipher.encrypt(data)
            kind = f"{kind}+{name}"
        return [kind, binascii.b2a_base64(data, newline=False).decode()]

    def open(self, sealed: Any) -> Raw:
        """The argument of ``seal``."""
        kind, text = sealed
        data = binascii.a2b_base64(text, strict_mode=True)
        if "+" in kind:
            kind, _, name = kind.partition("+")
            if self._cipher is None:
                raise ValueError("the value is encrypted, and the serializer has no key")
            data = self._cipher.decrypt(name, data)
        return kind, data

    def value(self, raw: Raw) -> Any:
        """The value itself."""
        return self._serde.loads_typed(raw)

    def whole(self, value: object) -> Packed:
        """A value that is packed whole, whatever its size."""
        return ["v", *self.seal(self.raw(value))]

    def read(self, packed: Any, record: str) -> Any:
        """The argument of ``whole``.

        Raises:
            CorruptRecordError: it cannot be read; the error names *record*.
        """
        with guard(record):
            return self.value(self.open(packed[1:]))


class Log(Protocol):
    """Where items go."""

    def place(self, digest: bytes, raw: Raw, value: object) -> int | None:
        """The position of an item, which may be new; None if the log takes no new ones."""
        ...


async def pack(value: Any, serial: Serial, log: Log, *, always: bool = False, depth: int = _DEPTH) -> Packed:
    """The packed form of a value; *always* puts the elements of a list into the log, however small they are."""
    if isinstance(value, _DeltaSnapshot):
        return ["s", await pack(value.value, serial, log, always=always, depth=depth)]
    if type(value) is list and value and depth:
        parts = await _list_parts(value, serial, log, always=always)
        if parts is not None:
            return ["l", parts]
    raw = serial.raw(value)
    if len(raw[1]) <= _INLINE:
        return ["v", *serial.seal(raw)]
    if type(value) is dict and depth and all(type(key) is str for key in value):
        return ["d", [[key, await pack(each, serial, log, depth=depth - 1)] for key, each in value.items()]]
    position = log.place(digest_of(raw), raw, value)
    return ["v", *serial.seal(raw)] if position is None else ["i", position]


async def _list_parts(value: list[Any], serial: Serial, log: Log, *, always: bool) -> list[Any] | None:
    """The parts of a list; None if it is so small, or its elements are, that it is better packed whole."""
    raws: list[Raw] = []
    size = 0
    for element in value:
        raw = serial.raw(element)
        size += len(raw[1])
        raws.append(raw)
        if len(raws) % _TURN == 0:
            await asyncio.sleep(0)
    if not always and (size <= _INLINE or size < _SMALL_ELEMENT * len(raws)):
        return None
    parts: list[Any] = []
    last: list[int] = [-2, -2]
    for element, raw in zip(value, raws, strict=True):
        position = log.place(digest_of(raw), raw, element)
        if position is None:
            parts.append(serial.seal(raw))
            last = [-2, -2]
        elif position == last[1] + 1:
            last[1] = position
        else:
            last = [position, position]
            parts.append(last)
    return parts


async def unpack(packed: Any, serial: Serial, found: Found) -> Any:
    """The value of a packed form, whose items have been found."""
    kind = packed[0]
    if kind == "v":
        return serial.value(serial.open(packed[1:]))
    if kind == "i":
        return serial.value(found[packed[1]])
    if kind == "d":
        return {key: await unpack(each, serial, found) for key, each in packed[1]}
    if kind == "s":
        return _DeltaSnapshot(await unpack(packed[1], serial, found))
    if kind != "l":
        raise ValueError(f"a packed value of the unknown form {kind!r}")
    value: list[Any] = []
    for part in packed[1]:
        if type(part[0]) is not int:
            value.append(serial.value(serial.open(part)))
            continue
        for position in range(part[0], part[1] + 1):
            value.append(serial.value(found[position]))
            if position % _TURN == 0:
                await asyncio.sleep(0)
    return value


def positions(packed: Any) -> Iterator[tuple[int, int]]:
    """The first and last position of each run of items that a packed value refers to."""
    kind = packed[0]
    if kind == "i":
        yield packed[1], packed[1]
    elif kind == "l":
        yield from ((part[0], part[1]) for part in packed[1] if type(part[0]) is int)
    elif kind == "d":
        for _, each in packed[1]:
            yield from positions(each)
    elif kind == "s":
        yield from positions(packed[1])


@contextmanager
def guard(record: str) -> Iterator[None]:
    """Whatever the body raises is a CorruptRecordError that names *record*, but for errors of the store."""
    try:
        yield
    except KodeError:
        raise
    except Exception as exc:  # a serializer raises any error
        raise CorruptRecordError(record, f"it cannot be read: {type(exc).__name__}: {exc!s:.200}") from exc


def digest_of(raw: Raw) -> bytes:
    """Names an item by its content."""
    return blake2b(raw[1], digest_size=16).digest() + raw[0].encode()


async def pace(i: int) -> None:
    """Give way to the event loop now and then."""
    if i % _TURN == _TURN - 1:
        await asyncio.sleep(0)
