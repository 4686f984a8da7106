"""Parts that the formats of chats share: notes, losses that a caller allows, and proofs that nothing else is lost.

A *note* stands under the name of the format in a block's ``meta`` or a message's ``metadata``. It holds the fields that
the record does not have, so that the message can be written again unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, Literal, TypeAlias, TypeVar, cast, get_args

from kode_core.codec import to_dict
from kode_core.errors import InvalidArgumentError, InvalidValueError
from kode_core.jsonable import to_jsonable
from kode_core.jsonvalue import Problem, encode_json, type_name
from kode_core.model import ContentBlock, Json, Message, Record, UnknownBlock
from kode_core.shapes import write_struct

__all__ = [
    "Fields",
    "Loss",
    "Losses",
    "Lossy",
    "checked",
    "content_of",
    "given_list",
    "is_same",
    "kept",
    "note_of",
    "object_of",
    "optional_text",
    "raised_as",
    "required_text",
    "rest",
    "text_of_json",
    "under",
    "with_note",
    "without_notes",
    "without_nulls",
    "write_checked",
]

Loss: TypeAlias = Literal["blocks", "is_error", "json", "metadata", "order", "reasoning"]
"""The losses that a conversion can have, each of which its caller may allow."""
Lossy: TypeAlias = bool | Collection[Loss]
Fields: TypeAlias = dict[str, Json]
T = TypeVar("T")

_LOSSES: Final[tuple[str, ...]] = get_args(Loss)


class Losses:
    """The losses that a caller allows."""

    def __init__(self, lossy: Lossy) -> None:
        if lossy is True or lossy is False:
            self._allowed: Collection[str] = _LOSSES if lossy else ()
            return
        if isinstance(lossy, str) or not isinstance(lossy, Collection):
            raise InvalidArgumentError(f"lossy must be True, False or a list of losses, got {type_name(type(lossy))}")
        for loss in lossy:
            if loss not in _LOSSES:
                raise InvalidArgumentError(f"lossy takes {', '.join(map(repr, _LOSSES))}; another value was given")
        self._allowed = lossy

    def __bool__(self) -> bool:
        return bool(self._allowed)

    def accept(self, loss: Loss, what: str) -> None:
        """Return if *loss* is allowed; raise Problem otherwise."""
        if loss not in self._allowed:
            raise Problem(f"{what}; change it, or accept the loss: lossy=[{loss!r}]")


@contextmanager
def under(*keys: str | int) -> Iterator[None]:
    """Add *keys* to the path of a Problem from inside."""
    try:
        yield
    except Problem as problem:
        for key in reversed(keys):
            problem = problem.under(key)
        raise problem from None


@contextmanager
def raised_as(record: str) -> Iterator[None]:
    """Raise a Problem from inside as InvalidValueError of *record*."""
    try:
        yield
    except Problem as problem:
        raise InvalidValueError(record, f"${problem.path}", problem.what) from None


def checked(raw: object, read: Callable[[Fields], T], write: Callable[[T], Json], normal: Callable[[Json], Json]) -> T:
    """The record that *read* makes of *raw*, proved exact: *write* makes the same of it again."""
    fields = object_of(raw)
    record = read(fields)
    if not is_same(normal(write(record)), normal(fields)):
        raise Problem("it has a form that cannot be kept exactly; write it as the format's documentation does")
    return record


def given_list(raw: object, what: str) -> list[Json]:
    """A list of messages as JSON; objects of a provider's library become dicts."""
    if isinstance(raw, str | bytes | Mapping) or not isinstance(raw, Sequence):
        raise InvalidArgumentError(f"{what} must be a list of messages, got {type_name(type(raw))}")
    return cast("list[Json]", to_jsonable(list(raw), name=what))


def is_same(one: Json, other: Json) -> bool:
    """True if two JSON values are the same, types included, whatever the order of keys."""
    first, second = (json.dumps(value, sort_keys=True) for value in (one, other))
    return first == second


def write_checked(
    message: object,
    losses: Losses,
    name: str,
    write: Callable[[Message, Losses], T],
    read: Callable[[T], Sequence[Message]],
    note: str,
) -> T:
    """The result of *write*, which *read* makes the same message again unless losses are allowed."""
    if not isinstance(message, Message):
        raise InvalidArgumentError(f"{name} must be a Message, got {type(message).__name__}")
    with raised_as(name):
        write_struct(Message, message, None)  # refuses values that no record can have
        written = write(message, losses)
        if not losses:
            kept(message, read(written), note)
    return written


def kept(message: Message, back: Sequence[Message], note: str) -> None:
    """Raise Problem unless *back*, which was read from the written form, has all of *message*."""
    content = [block for one in back for block in one.content]
    roles = {one.role for one in back} or {message.role}
    whole = Message(message.role, content, back[0].metadata if len(back) == 1 else message.metadata)
    first, second = (to_dict(without_notes(one, note)) for one in (message, whole))
    if roles != {message.role} or not is_same(first, second):
        raise Problem("the format cannot carry this message exactly; accept the losses: lossy=True")


def without_notes(message: Message, note: str) -> Message:
    """*message* as its own type, without the notes of a format, and without is_error=False."""

    def bare(block: ContentBlock) -> ContentBlock:
        if isinstance(block, UnknownBlock):
            return block
        changes: dict[str, Any] = {"meta": _less(block.meta, note)}
        if getattr(block, "is_error", None) is False:
            changes["is_error"] = None
        return block.replace(**changes)

    return Message(
        message.role, [bare(block) for block in message.content], _less(message.metadata, note), extra=message.extra
    )


def _less(fields: Fields | None, note: str) -> Fields | None:
    return {name: value for name, value in (fields or {}).items() if name != note} or None


def note_of(record: Record, fields: Fields | None, note: str, losses: Losses, where: str, *own: str) -> Fields:
    """The note of a record, apart from which its *fields* have only those named *own*."""
    fields = fields or {}
    if not set(fields) <= {note, *own}:
        with under(where):
            losses.accept("metadata", f"the format has no other {where}")
    if record.extra:
        losses.accept("metadata", "the format has no extra fields")
    found = fields.get(note, {})
    if type(found) is not dict or not all(type(found.get(name, {})) is dict for name in ("fields", "nested")):
        with under(where, note):
            raise Problem("this is not what the conversion wrote; remove it")
    return found


def with_note(note: str, **given: Json) -> Fields | None:
    """The ``meta`` with a note of all that is *given* and not empty; None without any."""
    fields = {name: value for name, value in given.items() if value is not None and value != {} and value is not False}
    return {note: fields} if fields else None


def content_of(blocks: Sequence[Json], is_list: bool) -> Json:
    """The content of written *blocks*: a text if it is one block of text alone, unless it was a list."""
    if len(blocks) == 1 and not is_list and set(blocks[0]) == {"type", "text"} and blocks[0]["type"] == "text":
        return blocks[0]["text"]
    return list(blocks)


def object_of(value: object) -> Fields:
    """*value* if it is a dict, else a Problem."""
    if type(value) is not dict:
        raise Problem(f"expected an object, got {type_name(type(value))}")
    return value


def required_text(fields: Fields, name: str) -> str:
    """The text of a field that has to be there."""
    value = fields.get(name)
    if value is None:
        raise Problem(f"{name!r} is missing")
    if type(value) is not str:
        with under(name):
            raise Problem(f"expected a string, got {type_name(type(value))}")
    return value


def optional_text(fields: Fields, name: str) -> str | None:
    """The text of a field, or None."""
    return None if fields.get(name) is None else required_text(fields, name)


def rest(fields: Fields, *known: str) -> Fields:
    """The fields that are neither null nor *known*."""
    return {name: value for name, value in fields.items() if name not in known and value is not None}


def without_nulls(value: Json) -> Json:
    """*value* without its null fields; null fields of objects inside stay."""
    return {name: item for name, item in value.items() if item is not None} if type(value) is dict else value


def text_of_json(value: Json) -> str:
    """The JSON text of a tool's result, for formats that take only texts."""
    return encode_json(value, "result")
