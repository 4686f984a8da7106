"""Messages of OpenAI's chat completions, and the same messages as records: lossless, or refused.

``Message.from_openai`` and ``Message.to_openai`` are these functions for one message. A message of theirs is one
message here; a message here with several tool results is several of theirs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kode_core.formats.notes import (
    Losses,
    Lossy,
    checked,
    given_list,
    raised_as,
    without_nulls,
    write_checked,
)
from kode_core.formats.openai_reading import NOTE, read
from kode_core.formats.openai_writing import write
from kode_core.jsonable import to_jsonable
from kode_core.model import (
    Json,
    Message,
)

__all__ = ["messages_from_openai", "messages_to_openai", "read_openai", "write_openai"]


def messages_from_openai(messages: Sequence[object]) -> list[Message]:
    """The records of a list of OpenAI's messages, one for each; raises as ``Message.from_openai`` does."""
    return [_read_checked(raw, f"message {i}") for i, raw in enumerate(given_list(messages, "messages"))]


def messages_to_openai(messages: Iterable[Message], *, lossy: Lossy = False) -> list[dict[str, Json]]:
    """OpenAI's messages for a list of records, several for one with several tool results.

    Raises:
        InvalidArgumentError: as ``Message.to_openai`` does.
    """
    losses = Losses(lossy)
    return [raw for i, message in enumerate(messages) for raw in _write_checked(message, losses, f"message {i}")]


def read_openai(raw: object) -> Message:
    """The record of one message; see ``Message.from_openai``."""
    return _read_checked(to_jsonable(raw, name="message"), "message")


def write_openai(message: Message, lossy: Lossy) -> list[dict[str, Json]]:
    """The messages of one record; see ``Message.to_openai``."""
    return _write_checked(message, Losses(lossy), "message")


def _read_checked(raw: Json, name: str) -> Message:
    with raised_as(name):
        return checked(raw, read, _write_one, _normal)


def _write_one(message: Message) -> Json:
    (raw,) = write(message, Losses(False))
    return raw


def _write_checked(message: Message, losses: Losses, name: str) -> list[dict[str, Json]]:
    return write_checked(message, losses, name, write, lambda written: [read(raw) for raw in written], NOTE)


def _normal(raw: Json) -> Json:
    """*raw* without null fields, which mean the same as absent ones."""
    fields = without_nulls(raw)
    if type(fields.get("content")) is list and fields.get("role") not in ("tool", "function"):
        fields["content"] = [_deeper(part, *part) for part in fields["content"]]
    if type(fields.get("tool_calls")) is list:
        fields["tool_calls"] = [_deeper(call, "function", "custom") for call in fields["tool_calls"]]
    return _deeper(fields, "function_call")


def _deeper(value: Json, *names: str) -> Json:
    if type(value) is not dict:
        return value
    return {name: without_nulls(item) if name in names else item for name, item in without_nulls(value).items()}
