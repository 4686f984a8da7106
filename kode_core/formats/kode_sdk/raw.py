"""One agent as the SDK stored it, before any conversion, with remarks on its state."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import Any, Final, NoReturn, Protocol

import msgspec

from kode_core.formats.importing import Found
from kode_core.jsonslices import LARGE_TEXT, batches, split_list, split_object
from kode_core.jsonslices import joined as slices_joined
from kode_core.jsonvalue import type_name

__all__ = ["Damage", "Found", "RawAgent", "Source", "bookmark_of", "joined", "parsed"]

_PAIR: Final = re.compile("[\ud800-\udbff][\udc00-\udfff]")

_MARK: Final = "\ufeff".encode()


class Damage(Exception):
    """A stored text is not the JSON that it should be."""


class RawAgent(msgspec.Struct):
    """The parts of one agent as plain JSON values, each with the place where it was found.

    Attributes:
        message_times: the time of each message's last save, in milliseconds; None from a store that keeps none.
        saved_at: when the file of the messages was last written, in milliseconds; for agents that tell no other time.
    """

    agent_id: str
    info: tuple[str, Any] | None = None
    messages: list[tuple[str, Any]] = []
    message_times: list[Any] | None = None
    tool_calls: list[tuple[str, Any]] = []
    snapshots: list[tuple[str, Any]] = []
    todos: tuple[str, Any] | None = None
    media: list[tuple[str, Any]] = []
    windows: list[tuple[str, Any]] = []
    compressions: list[tuple[str, Any]] = []
    recovered: list[tuple[str, Any]] = []
    events: list[tuple[str, Any]] = []
    saved_at: int | None = None
    found: Found = msgspec.field(default_factory=Found)

    @property
    def is_empty(self) -> bool:
        """True if nothing was found but an info, or not even that."""
        parts = (self.messages, self.tool_calls, self.snapshots, self.media, self.windows, self.compressions)
        return not (any(parts) or self.todos or self.recovered or self.events)


class Source(Protocol):
    """A store of the SDK that is open for reading."""

    def agent_ids(self) -> AsyncIterator[str]:
        """Every id once, also of forks."""
        ...

    async def read(self, agent_id: str) -> RawAgent:
        """Everything that is stored for one agent."""
        ...

    @property
    def remarks(self) -> Counter[str]:
        """Remarks on things that belong to no agent."""
        ...


def bookmark_of(entry: Any) -> Mapping[str, Any]:
    """The bookmark of an entry of an event log, whatever stands there; empty without one."""
    mark = entry.get("bookmark") if isinstance(entry, dict) else None
    return mark if isinstance(mark, dict) else {}


def joined(text: str) -> str:
    """*text* with the halves of characters put together that JavaScript stored one by one."""
    return _PAIR.sub(lambda pair: pair[0].encode("utf-16-le", "surrogatepass").decode("utf-16-le"), text)


def parsed(raw: object) -> Any:
    """The JSON value of a text, as bytes or str.

    JavaScript's lone surrogates are kept, in escapes and in bytes.

    A large text is read in parts: one call of the decoder would hold the interpreter's lock, and with it the event
    loop, also from another thread.

    Raises:
        Damage: it is no JSON.
    """
    if not isinstance(raw, bytes | str):
        raise Damage(f"no JSON text but {type_name(type(raw))}")
    if len(raw) > LARGE_TEXT:
        with suppress(ValueError, RecursionError):  # damage has the place that the whole text gives it
            return _in_parts(raw if isinstance(raw, bytes) else raw.encode("utf-8", "surrogatepass"))
    return _whole(raw)


def _in_parts(raw: msgspec.Raw | bytes) -> Any:
    """The value of a text whose lists and objects are read member by member, where they are large.

    Raises:
        ValueError: it is no JSON, or has an escaped half of a character outside of a small part.
    """
    text = bytes(raw).removeprefix(_MARK).lstrip(b" \t\r\n")
    if len(text) <= LARGE_TEXT or text[:1] not in b"{[":
        return json.loads(joined(text.decode("utf-8", "surrogatepass")), parse_constant=_refused)
    if text[:1] == b"{":
        return {joined(key): _in_parts(value) for key, value in split_object(text).items()}
    values = list[Any]()
    for batch in batches(split_list(text)):
        values += [_in_parts(batch[0])] if len(batch) == 1 else _in_parts(slices_joined(batch))
    return values


def _whole(raw: bytes | str) -> Any:
    try:
        text = raw if isinstance(raw, str) else raw.decode("utf-8", "surrogatepass")
        return json.loads(joined(text.removeprefix("\ufeff")), parse_constant=_refused)
    except (ValueError, RecursionError) as exc:
        what = "it nests too deeply" if isinstance(exc, RecursionError) else str(exc)
        raise Damage(f"no JSON: {what:.200}" if raw.strip() else "empty") from None


def _refused(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")
