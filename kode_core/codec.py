"""Records to their stored form and back (VAL-1, VAL-2, VAL-6).

The stored form of a record is its JSON text, with a digest of that text. Large records are better encoded and decoded
in slices, by :mod:`kode_core.large`.
"""

from __future__ import annotations

import functools
import threading
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from typing import Any, Final, TypeVar, cast

import msgspec

from kode_core.errors import CorruptRecordError, InvalidArgumentError, InvalidValueError
from kode_core.jsonvalue import Problem, check_json, decode_json, dump, is_too_deep
from kode_core.model import AgentInfo, Json, Record, Snapshot, Timeline
from kode_core.model.base import time_of_iso
from kode_core.shapes import read_list, read_struct, shape_of, write_list, write_struct

__all__ = [
    "UNREADABLE",
    "Body",
    "Unreadable",
    "decode",
    "decode_list",
    "decode_run",
    "decoder_of",
    "digest",
    "encode",
    "encode_list",
    "from_dict",
    "is_intact",
    "mismatch",
    "refuse_unreadable",
    "sealed_text",
    "to_dict",
]

R = TypeVar("R", bound=Record)

_making = threading.Lock()

UNREADABLE: Final = (msgspec.MsgspecError, RecursionError)
"""The errors of a decoder: the text is not what it is for, or nests too deeply for the stack."""


class Body(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A record as it is stored: its JSON text and the digest of that text."""

    text: str
    digest: bytes

    def __iter__(self) -> Iterator[Any]:
        return iter((self.text, self.digest))


class Unreadable(Body, frozen=True, gc=False):
    """The body of a record that a layer cannot read: the store reports the record with *problem*.

    Its text is empty, and its digest, by which calls that look before they write name it, fits no empty text.
    """

    problem: str
    error: type[CorruptRecordError] = CorruptRecordError


def refuse_unreadable(body: Body, label: str) -> None:
    """Raise the error of a body that a layer could not read."""
    if isinstance(body, Unreadable):
        raise body.error(label, body.problem)


def digest(raw: bytes) -> bytes:
    """16 bytes that stand for *raw*, to find changes and to check that stored text is still the written text."""
    return blake2b(raw, digest_size=16).digest()


_SEAL: Final = b'"kode:'
_SEALED_FROM: Final = len(_SEAL) + 17


def sealed_text(rest: str) -> str:
    """The text that a layer stores instead of a record's own: JSON, with a checksum of *rest*.

    The digest of such a body is the digest of the record, or hides it. Engines and layers that look for damage without
    knowing the layer call :func:`is_intact`. *rest* is ASCII without quotes and backslashes.
    """
    return f'"kode:{_checksum(rest.encode())}:{rest}"'


def _checksum(rest: bytes) -> str:
    return urlsafe_b64encode(blake2b(rest, digest_size=12).digest()).decode()


def is_intact(raw: bytes, found: bytes) -> bool:
    """Whether stored text is the text that was written, whose body has the digest *found*."""
    if raw.startswith(_SEAL) and raw.endswith(b'"'):
        return raw[len(_SEAL) : _SEALED_FROM] == f"{_checksum(raw[_SEALED_FROM:-1])}:".encode()
    return digest(raw) == found


def mismatch(text: str) -> str:
    """The problem of a stored text whose digest is another one."""
    if text.startswith(_SEAL.decode()):
        return "it is encrypted or compressed, and the store was opened without that layer"
    return "the stored text does not match its checksum"


def encode(cls: type[Record], record: Record, label: str) -> Body:
    """The stored form of *record*.

    Raises:
        InvalidValueError: *record* is not a *cls*, a field has the wrong type, or a free-form value is not exact JSON;
            the error names *label* and the path.
    """
    try:
        raw = dump(write_struct(cls, record, None))
    except Problem as problem:
        raise InvalidValueError(label, f"${problem.path}", problem.what) from None
    return Body(raw.decode(), digest(raw))


def encode_list(cls: type[Record], records: Sequence[Record], label: str) -> Body:
    """The stored form of a list of records that is kept as one text."""
    try:
        raw = dump(write_list(shape_of(cls), records, None))
    except Problem as problem:
        raise InvalidValueError(label, f"${problem.path}", problem.what) from None
    return Body(raw.decode(), digest(raw))


@functools.cache
def decoder_of(shape: Any) -> Callable[[bytes | str], Any]:
    """Return a function that reads JSON text as values of *shape*.

    Decoders are made one at a time: msgspec publishes its notes about a class before they are complete, and a decoder
    that another thread makes from incomplete notes reads memory that is not its own.
    """
    with _making:
        return msgspec.json.Decoder(shape).decode


def decode(cls: type[R], body: Body, label: str) -> R:
    """The record that :func:`encode` stored.

    Raises:
        CorruptRecordError: the text is not the text that was written.
    """
    return cast(R, _decode(cls, functools.partial(read_struct, cls), body, label))


def decode_run(cls: type[R], bodies: Sequence[Body]) -> list[R] | None:
    """The records of several small bodies in one pass, at a third of the cost of decoding them one by one.

    None if :func:`decode` has to look at one of them, because it is damaged or contains fields that this version does
    not know.
    """
    texts = [body.text for body in bodies]
    if [digest(text.encode()) for text in texts] != [body.digest for body in bodies]:
        return None
    try:
        records: list[R] = decoder_of(list[cls])(f"[{','.join(texts)}]")  # type: ignore[valid-type]
    except UNREADABLE:
        return None
    return records if len(records) == len(bodies) else None


def decode_list(cls: type[R], body: Body, label: str) -> list[R]:
    """The records that :func:`encode_list` stored; raises as :func:`decode` does."""
    return list(_decode(list[cls], functools.partial(read_list, shape_of(cls)), body, label))  # type: ignore[valid-type]


def _decode(shape: type, read: Callable[[Any], Any], body: Body, label: str) -> Any:
    refuse_unreadable(body, label)
    if digest(body.text.encode()) != body.digest:
        raise CorruptRecordError(label, mismatch(body.text))
    if shape is not Timeline:  # an event's fields are always spread
        try:
            return decoder_of(shape)(body.text)
        except UNREADABLE:
            pass
    return read_wire(read, body.text, label)


def read_wire(read: Callable[[Any], Any], text: str, label: str) -> Any:
    """The value that *read* makes from JSON text; raises as :func:`decode` does."""
    try:
        return read(decode_json(text))
    except Problem as problem:
        raise CorruptRecordError(label, f"${problem.path}: {problem.what}") from None
    except ValueError as exc:
        raise CorruptRecordError(label, f"not JSON: {exc}") from None
    except RecursionError:
        if not is_too_deep(text):
            raise  # the caller's own stack is nearly at its end
        raise CorruptRecordError(label, "it nests more deeply than what a store writes") from None


def from_dict(cls: type[R], wire: Json, label: str = "") -> R:
    """A record from a dict in the KODE SDK's JSON shape; errors call it *label*, or the name of the class without one.

    The SDK writes ``createdAt`` of an info and of a snapshot as an ISO text, which is read as milliseconds; a text
    without a time zone is in UTC.

    Raises:
        InvalidValueError: the dict does not fit *cls*.
    """
    try:
        check_json(wire)
        if cls in (AgentInfo, Snapshot):
            wire = _dated(wire)
        return cast(R, read_struct(cls, wire))
    except Problem as problem:
        raise InvalidValueError(label or cls.__name__, f"${problem.path}", problem.what) from None


def _dated(wire: Json) -> Json:
    """The dict of an info or a snapshot, with the time that the SDK writes as a text."""
    if type(wire) is not dict or type(text := wire.get("createdAt")) is not str:
        return wire
    try:
        return {**wire, "createdAt": time_of_iso(text)}
    except ValueError:
        raise Problem("a time is milliseconds as int, or a text in ISO format", ".createdAt") from None


def to_dict(record: Record) -> dict[str, Json]:
    """*record* as a dict in the KODE SDK's JSON shape; raises as :func:`encode` does.

    ``to_jsonable`` and ``to_json`` take lists and pages of records as well.
    """
    cls = type(record)
    if not isinstance(record, msgspec.Struct):
        raise InvalidArgumentError(
            f"to_dict takes one record, got {cls.__name__}; to_jsonable takes lists, pages and dicts of records"
        )
    try:
        return cast("dict[str, Json]", write_struct(cls, record, None))
    except Problem as problem:
        raise InvalidValueError(cls.__name__, f"${problem.path}", problem.what) from None
