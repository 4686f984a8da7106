"""Convert records to their stored form and back while other tasks get their turn (OPS-15).

The text is the one that :mod:`kode_core.codec` makes. Small records, which most are, take that module's short way. In a
large record, the large parts are written and read in slices. With the text comes a *proof*, which later shows whether
the dicts and lists in the record changed. The text and the proof of a part are taken at the same time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any, Final, TypeVar, cast

import msgspec

from kode_core.codec import UNREADABLE, Body, decode, decode_list, decode_run, decoder_of, digest, mismatch, read_wire
from kode_core.errors import CorruptRecordError, InvalidValueError
from kode_core.fingerprint import fingerprint_of
from kode_core.jsonslices import LARGE_TEXT, JsonWriter, Raw, batches, joined, read_json, split_list, split_object
from kode_core.jsonvalue import Problem, dump, exact_bytes, path_step, walk
from kode_core.model import Json, Record, Timeline
from kode_core.pace import Pace
from kode_core.shapes import (
    Shape,
    class_of_block,
    from_wire,
    plan_of,
    shape_of,
    write_list,
    write_struct,
)
from kode_core.sink import PLACEHOLDER, SPREAD, Later, Sink

__all__ = [
    "Proof",
    "Written",
    "decode_in_slices",
    "decode_list_in_slices",
    "decode_run_in_slices",
    "is_unchanged",
    "write",
    "write_body",
    "write_list_of",
    "write_small",
]

R = TypeVar("R", bound=Record)

_LONG_TEXT: Final = 2**20
_PLACEHOLDER_TEXT: Final = f'"{PLACEHOLDER}"'.encode()
_SPREAD_TEXT: Final = f'"{SPREAD}":'.encode()


class Proof(msgspec.Struct, frozen=True, gc=False):
    """Shows whether the dicts and lists in a record, which can change, still are as they were written.

    Attributes:
        digest: the digest of their contents; None if it was never taken, so that any contents are possible.
        parts: the dict or list, or a tuple of several; None for a large record, which is checked in slices.
    """

    digest: bytes | None
    parts: Any


class Written(msgspec.Struct, frozen=True, gc=False):
    """A record as it is stored, and its proof, which is None if nothing in the record can change."""

    body: Body
    proof: Proof | None


_hash = functools.partial(blake2b, digest_size=16)


def _proof(parts: Sequence[Any]) -> Proof | None:
    if not parts:
        return None
    taken = parts[0] if len(parts) == 1 else tuple(parts)  # a tuple would be one more object for the garbage collector
    return Proof(fingerprint_of(taken), taken)


# --- Writing ----------------------------------------------------------------------------------------------------------


async def write(cls: type[Record], record: Record, label: str, pace: Pace) -> Written:
    """The stored form of *record* and its proof; raises as :func:`kode_core.codec.encode` does."""
    body, sink, digest = await _write(functools.partial(write_struct, cls, record), label, pace)
    if not (digest or sink.later):
        return Written(body, _proof(sink.parts))
    return Written(body, None if digest is None else Proof(digest, None))


def write_small(cls: type[Record], record: Record, label: str) -> Body | None:
    """The stored form of a small record; None for a large one, which is written in slices."""
    sink = Sink()
    try:
        raw = dump(write_struct(cls, record, sink))
    except Problem as problem:
        raise InvalidValueError(label, f"${problem.path}", problem.what) from None
    return None if sink.later or len(raw) > _LONG_TEXT else Body(raw.decode(), digest(raw))


async def write_body(cls: type[Record], record: Record, label: str, pace: Pace) -> Body:
    """The stored form of *record*."""
    return (await _write(functools.partial(write_struct, cls, record), label, pace))[0]


async def write_list_of(cls: type[Record], records: Sequence[Record], label: str, pace: Pace) -> Body:
    """The stored form of a list of records that is kept as one text."""
    return (await _write(functools.partial(write_list, shape_of(cls), records), label, pace))[0]


async def _write(make: Callable[[Sink], Json], label: str, pace: Pace) -> tuple[Body, Sink, bytes | None]:
    """The stored form, the notes taken while it was made, and a digest if it had to be taken in slices."""
    sink = Sink()
    try:
        wire = make(sink)
        raw = dump(wire)
        if not sink.later and len(raw) <= _LONG_TEXT:
            return Body(raw.decode(), digest(raw)), sink, None
        writer = _SliceEncoder(pace)
        await writer.wire(wire, sink, raw)
        return writer.body(), sink, writer.proof()
    except Problem as problem:
        raise InvalidValueError(label, f"${problem.path}", problem.what) from None


async def is_unchanged(cls: type[Record], record: Record, digest: bytes, pace: Pace) -> bool:
    """True if the dicts and lists in a large record are as they were when *digest* was taken."""
    sink = Sink()
    writer = _SliceEncoder(pace, is_silent=True)
    try:
        await writer.wire(write_struct(cls, record, sink), sink, b"")
    except (Problem, ValueError):  # a value that is not JSON was put in
        return False
    return writer.proof() == digest


class _SliceEncoder:
    """Writes the wire form of one record in slices. If it is silent, it makes only the proof."""

    def __init__(self, pace: Pace, *, is_silent: bool = False) -> None:
        self._pace = pace
        self._is_silent = is_silent
        self._digest = _hash()
        self._proof = _hash()
        self._has_parts = False
        self._pieces: list[str] = []

    def body(self) -> Body:
        return Body("".join(self._pieces), self._digest.digest())

    def proof(self) -> bytes | None:
        """The digest of everything that can change; None if nothing can."""
        return self._proof.digest() if self._has_parts else None

    async def wire(self, wire: Json, sink: Sink, raw: bytes) -> None:
        """Write *wire*, whose text is *raw*; *sink* has the deferred parts."""
        self._note(sink.parts)  # before other tasks run, so that the proof covers the values of the text
        texts = raw.split(_PLACEHOLDER_TEXT) if sink.later and raw else [raw] * (len(sink.later) + 1)
        for i, later in enumerate(sink.later):
            await self._put(texts[i].removesuffix(_SPREAD_TEXT))
            try:
                await self._later(later)
            except Problem as problem:
                raise Problem(problem.what, f"{_places(wire)[i]}{problem.path}") from None
        await self._put(texts[-1])

    def _note(self, parts: Sequence[Any]) -> None:
        if parts:
            self._has_parts = True
            self._proof.update(exact_bytes(parts))

    async def _put(self, piece: bytes) -> None:
        if len(piece) <= _LONG_TEXT:
            self._digest.update(piece)
        else:
            for start in range(0, len(piece), _LONG_TEXT):
                self._digest.update(memoryview(piece)[start : start + _LONG_TEXT])
                await self._pace.yield_to_loop()
        self._pieces.append(piece.decode())
        await self._pace.yield_to_loop()

    async def _later(self, later: Later) -> None:
        if later.item is not None:
            await self._items(later.item, later.value)
            return
        self._has_parts = self._has_parts or type(later.value) is not str
        writer = JsonWriter(self._proof, is_silent=self._is_silent)
        try:
            for piece in writer.members(later.value) if later.is_spread else writer.write(later.value):
                await self._put(piece)
        except Problem:
            for _ in walk(later.value):  # the same error for a value in slices as for one in a piece
                await self._pace.yield_to_loop()
            raise

    async def _items(self, shape: Shape, items: Sequence[Any]) -> None:
        await self._put(b"[")
        for i, item in enumerate(items):
            sink = Sink()
            try:
                wire = item if type(item) in shape.plain else shape.write(item, sink)
                raw = b"" if self._is_silent else dump(wire)
                await self.wire(wire, sink, b"," + raw if i and raw else raw)
            except Problem as problem:
                raise problem.under(i) from None
        await self._put(b"]")


def _places(wire: Json) -> list[str]:
    """The paths of the placeholders in *wire*, in order."""
    if type(wire) is str:
        return [""] if wire == PLACEHOLDER else []
    if type(wire) is dict:
        members = ((("" if key == SPREAD else path_step(key)), value) for key, value in wire.items())
    elif type(wire) is list:
        members = ((path_step(i), value) for i, value in enumerate(wire))
    else:
        return []
    return [prefix + path for prefix, value in members for path in _places(value)]


# --- Reading ----------------------------------------------------------------------------------------------------------


async def decode_in_slices(cls: type[R], body: Body, label: str, pace: Pace) -> R:
    """The record that was stored as *body*; raises as :func:`kode_core.codec.decode` does."""
    await pace.yield_to_loop()
    if len(body.text) <= LARGE_TEXT:
        return decode(cls, body, label)
    return cast(R, await _decode(shape_of(cls), body, label, pace))


async def decode_run_in_slices(
    cls: type[R], bodies: Sequence[Body], label: Callable[[int], str], pace: Pace
) -> list[R]:
    """The records of several small bodies, or of a single one; *label* names each by its place among them."""
    await pace.yield_to_loop()
    records = decode_run(cls, bodies) if len(bodies) > 1 else None
    if records is None:
        records = [await decode_in_slices(cls, body, label(i), pace) for i, body in enumerate(bodies)]
    return records


async def decode_list_in_slices(cls: type[R], body: Body, label: str, pace: Pace) -> list[R]:
    """The records of a list that is kept as one text."""
    await pace.yield_to_loop()
    if len(body.text) <= LARGE_TEXT:
        return decode_list(cls, body, label)
    return list(await _decode(shape_of(Sequence[cls]), body, label, pace))  # type: ignore[valid-type]


async def _decode(shape: Shape, body: Body, label: str, pace: Pace) -> Any:
    raw = body.text.encode()
    seen = _hash()
    for start in range(0, len(raw), _LONG_TEXT):
        await pace.yield_to_loop()
        seen.update(memoryview(raw)[start : start + _LONG_TEXT])
    if seen.digest() != body.digest:
        raise CorruptRecordError(label, mismatch(body.text))
    try:
        return await _SliceDecoder(pace).read(shape, raw)
    except UNREADABLE:  # an escaped lone surrogate, or no JSON at all
        return read_wire(shape.read, body.text, label)
    except Problem as problem:
        raise CorruptRecordError(label, f"${problem.path}: {problem.what}") from None


class _SliceDecoder:
    """Reads the text of one record in slices."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace

    async def read(self, shape: Shape, text: Raw) -> Any:
        """A value of *shape*."""
        await self._pace.yield_to_loop()
        first = bytes(memoryview(text)[:1])
        if len(text) > LARGE_TEXT:
            if shape.item is not None and first == b"[":
                return await self._read_list(shape.item, text)
            if shape.is_record and first == b"{":
                return await self._read_record(shape, text)
        return shape.read(await self._json(text))

    async def _json(self, text: Raw) -> Json:
        reading = read_json(text)
        while True:
            try:
                next(reading)
            except StopIteration as end:
                return end.value
            await self._pace.yield_to_loop()

    async def _read_record(self, shape: Shape, text: Raw) -> Any:
        members = split_object(text)
        cls = shape.cls
        if cls is None:
            cls = class_of_block(await self._json(members.get("type", b"null")))
        if cls is None:
            return shape.read(await self._json(text))
        plan = plan_of(cls)
        shapes = {field.wire: field.shape for field in plan.fields}
        ready: dict[str, Any] = {}
        wire: dict[str, Any] = {}
        for name, member in members.items():
            if name in shapes and len(member) > LARGE_TEXT:
                try:
                    ready[name] = await self.read(shapes[name], member)
                except Problem as problem:
                    raise problem.under(name) from None
            else:
                wire[name] = await self._json(member)
        return from_wire(plan, wire, ready)

    async def _read_list(self, shape: Shape, text: Raw) -> tuple[Any, ...]:
        records: list[Any] = []
        for batch in batches(split_list(text)):
            await self._pace.yield_to_loop()
            try:
                if len(batch) == 1:
                    records.append(await self.read(shape, batch[0]))
                else:
                    records.extend(_read_batch(shape, joined(batch)))
            except Problem as problem:
                raise problem.under(len(records)) from None
        return tuple(records)


def _read_batch(shape: Shape, text: bytes) -> Sequence[Any]:
    if shape.hint is not None and shape.cls is not Timeline:  # an event's fields are always spread
        try:
            return cast("list[Any]", decoder_of(list[shape.hint])(text))  # type: ignore[name-defined]
        except UNREADABLE:
            pass
    return [shape.read(item) for item in msgspec.json.decode(text)]
