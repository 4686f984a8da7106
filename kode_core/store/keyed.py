"""Append messages once: each has a key of the caller's, and a key that the agent has seen stores nothing (MSG-12).

The keys are documents of the core (``CORE_KEYS``), each with the position of its message. One commit writes messages
and keys. It demands that no key exists yet, and that the agent is as its summary says, so that the positions are exact.
A call of new keys reads only the summary; the keys are read once the engine has found one of them.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from typing import Any, Final

from kode_core.authoring.parallel import each
from kode_core.batch import ABSENT_DOC, CORE_KEYS, Applied, Doc, DocKind, DocWrite, Fence, ListKind
from kode_core.engine import check_documents
from kode_core.errors import CorruptRecordError, InvalidArgumentError, StoreBusyError
from kode_core.ids import check_document_key
from kode_core.jsonvalue import type_name
from kode_core.large import decode_in_slices, write_body
from kode_core.model import AppendedMessage, Message
from kode_core.model.documents import StoredDocument
from kode_core.pace import Pace
from kode_core.store.context import Context
from kode_core.store.rows import INT64, check_class
from kode_core.store.versions import head_of
from kode_core.store.writer import Writer, until_written

__all__ = ["KeyedAppends", "check_key_document", "key_name"]

_BEFORE_KEY: Final = f"{CORE_KEYS}messages/"
_KEY_CONFLICTS: Final = 50
_AT_ONCE: Final = 500
"""How many keys are read before the event loop is given way."""


class KeyedAppends:
    """Appends messages under keys."""

    def __init__(self, context: Context, writer: Writer) -> None:
        self._context = context
        self._writer = writer

    async def append(
        self, agent_id: str, fence: Fence | None, messages: Mapping[str, Message]
    ) -> list[AppendedMessage]:
        """Append the messages with new keys; returns for each key the position of its message."""
        check_documents(self._context.engine)
        given = await _checked(messages)
        conflicts = 0

        async def attempt(_: int) -> dict[str, AppendedMessage] | None:
            nonlocal conflicts
            summary = await self._context.engine.summary(agent_id)
            found = await self._found(agent_id, given) if conflicts else {}
            new = {key: message for key, message in given.items() if key not in found}
            if not new:
                await self._writer.check_held(agent_id, fence)
                return found
            start = head_of(summary, ListKind.MESSAGES).count
            docs = await self._docs(new, start)
            outcome = await self._writer.append_at(agent_id, tuple(new.values()), docs, summary, fence)
            if isinstance(outcome, Applied):
                return found | {key: AppendedMessage(i, True) for i, key in enumerate(new, start)}
            conflicts += outcome.by == "docs"
            if conflicts > _KEY_CONFLICTS:  # the engine reads others than it compares
                raise StoreBusyError(f"agent {agent_id!r}: its keys of messages kept changing; nothing was written")
            return None

        async with self._writer.in_turn(agent_id):
            placed = await until_written(attempt)
        return [placed[key] for key in given]

    async def _docs(self, keys: Iterable[str], start: int) -> tuple[DocWrite, ...]:
        """The documents of new keys, whose messages follow each other from position *start* on."""
        now, nonce, pace, writes = self._context.now(), secrets.token_hex(8), Pace(), []
        for position, key in enumerate(keys, start):
            body = await write_body(StoredDocument, StoredDocument(value=position, nonce=nonce), "message key", pace)
            name = _BEFORE_KEY + key
            writes.append(DocWrite(DocKind.DOCUMENTS, name, Doc(name, now, body), ABSENT_DOC))
            await pace.yield_to_loop()
        return tuple(writes)

    async def _found(self, agent_id: str, keys: Iterable[str]) -> dict[str, AppendedMessage]:
        """The keys that the agent has seen, with the positions of their messages."""
        engine, pace = self._context.engine, Pace()

        async def position(key: str) -> int | None:
            name = _BEFORE_KEY + key
            for doc in await engine.docs(agent_id, DocKind.DOCUMENTS, name):
                if doc.key != name:
                    raise CorruptRecordError(key_name(agent_id, name), "another document stands in its place")
                what = key_name(agent_id, name)
                return _position(what, await decode_in_slices(StoredDocument, doc.body, what, pace))
            return None

        wanted, found = tuple(keys), dict[str, AppendedMessage]()
        for first in range(0, len(wanted), _AT_ONCE):
            some = wanted[first : first + _AT_ONCE]
            places = zip(some, await each(position, some), strict=True)
            found.update({key: AppendedMessage(place, False) for key, place in places if place is not None})
            await pace.yield_to_loop()
        return found


async def _checked(messages: Any) -> dict[str, Message]:
    """The messages of a call, because the caller's mapping may change meanwhile."""
    if not isinstance(messages, Mapping):
        raise InvalidArgumentError(f"messages must be a mapping of keys to messages, got {type_name(type(messages))}")
    pace, given = Pace(), dict[str, Message]()
    for key, message in tuple(messages.items()):
        check_document_key(key, "message key")
        check_class(Message, message, f"messages[{key!r:.80}]")
        given[key] = message
        await pace.yield_to_loop()
    return given


def key_name(agent_id: str, engine_key: str) -> str:
    """The name of a key in errors."""
    return f"message key {engine_key.removeprefix(_BEFORE_KEY)!r:.80} of agent {agent_id!r}"


def check_key_document(agent_id: str, engine_key: str, stored: StoredDocument) -> bool:
    """Whether a document of the core may be stored under this key of an engine.

    Raises:
        CorruptRecordError: it names no position.
        InvalidArgumentError: it is under no key that a message may have.
    """
    _position(key_name(agent_id, engine_key), stored)
    return engine_key.startswith(_BEFORE_KEY) and bool(check_document_key(engine_key.removeprefix(_BEFORE_KEY)))


def _position(what: str, stored: StoredDocument) -> int:
    position = stored.value
    if type(position) is not int or position < 0 or position not in INT64:
        raise CorruptRecordError(what, "its value is no position of a message")
    return position
