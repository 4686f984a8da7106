"""Append messages once: each has a key of the caller's, and a key that the agent has seen stores nothing (MSG-12).

The keys are documents of the core (``CORE_KEYS``), whose time is the position of their message. One commit writes the
messages and the keys; it demands that no such key exists, and the engine adds the positions. So a call of new keys
reads nothing, and waits for no other writer. The keys are read once the engine has found one of them.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from typing import Any, Final

from kode_core.authoring.parallel import each
from kode_core.batch import ABSENT_DOC, CORE_KEYS, Applied, Doc, DocKind, DocWrite, Fence
from kode_core.codec import Body
from kode_core.engine import check_documents
from kode_core.errors import CorruptRecordError, InvalidArgumentError, OutcomeUnknownError, StoreBusyError
from kode_core.ids import check_document_key
from kode_core.large import decode_in_slices, write_body
from kode_core.metadata import mapping_of
from kode_core.model import AppendedMessage, Message
from kode_core.model.documents import StoredDocument
from kode_core.pace import Pace
from kode_core.store.context import Context
from kode_core.store.rows import check_class
from kode_core.store.writer import Writer, until_written

__all__ = ["KeyedAppends", "check_key_document", "imported_keys", "key_name", "position_of_key"]

_BEFORE_KEY: Final = f"{CORE_KEYS}messages/"
_POSITIONS: Final = range(2**61)
_CONFLICTS: Final = 50
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
        body = await _new_body()

        async def attempt(conflicts: int) -> dict[str, AppendedMessage] | None:
            known = await self._stored(agent_id, given) if conflicts else {}
            placed = {key: AppendedMessage(doc.time, False) for key, doc in known.items()}
            new = [key for key in given if key not in known]
            if not new:
                await self._writer.check_held(agent_id, fence)
                return placed
            docs = [*_new_keys(new, body), *_still(known)]
            outcome = await self._writer.append(agent_id, [given[key] for key in new], tuple(docs), fence)
            if isinstance(outcome, Applied):
                return placed | await self._placed(agent_id, new, outcome)
            if conflicts >= _CONFLICTS:  # the engine reads others than it compares
                raise StoreBusyError(f"agent {agent_id!r}: its keys of messages kept changing; nothing was written")
            return None

        async with self._writer.in_turn(agent_id):
            found = await until_written(attempt)
        return [found[key] for key in given]

    async def _placed(self, agent_id: str, keys: list[str], outcome: Applied) -> dict[str, AppendedMessage]:
        """The positions of keys that were written, in order."""
        head = outcome.messages
        if head.version:
            return {key: AppendedMessage(i, True) for i, key in enumerate(keys, head.count - len(keys))}
        stored = await self._stored(agent_id, keys)  # an earlier attempt wrote them
        if len(stored) < len(keys):
            raise OutcomeUnknownError(f"the messages were appended, and agent {agent_id!r} was deleted since")
        return {key: AppendedMessage(doc.time, True) for key, doc in stored.items()}

    async def _stored(self, agent_id: str, keys: Iterable[str]) -> dict[str, Doc]:
        """The documents of those keys that the agent has seen."""
        engine, pace = self._context.engine, Pace()

        async def stored(key: str) -> Doc | None:
            name = _BEFORE_KEY + key
            for doc in await engine.docs(agent_id, DocKind.DOCUMENTS, name):
                if doc.key != name:
                    raise CorruptRecordError(key_name(agent_id, name), "another document stands in its place")
                await position_of_key(agent_id, doc, pace)
                return doc
            return None

        wanted, found = tuple(keys), dict[str, Doc]()
        for first in range(0, len(wanted), _AT_ONCE):
            some = wanted[first : first + _AT_ONCE]
            docs = zip(some, await each(stored, some), strict=True)
            found.update({key: doc for key, doc in docs if doc is not None})
            await pace.yield_to_loop()
        return found


async def _new_body() -> Body:
    """The body of the keys of one call."""
    nonce = StoredDocument(value=None, nonce=secrets.token_hex(8))
    return await write_body(StoredDocument, nonce, "message key", Pace())


async def position_of_key(agent_id: str, doc: Doc, pace: Pace) -> tuple[str, int]:
    """The key of a message and its position, as they are stored.

    Raises:
        CorruptRecordError: the document is damaged.
    """
    await decode_in_slices(StoredDocument, doc.body, key_name(agent_id, doc.key), pace)
    check_key_document(agent_id, doc)
    return doc.key.removeprefix(_BEFORE_KEY), doc.time


async def imported_keys(given: Any) -> list[DocWrite]:
    """The writes of the keys of an import; raises for wrong ones."""
    what = "records.message_keys"
    pace, body, writes = Pace(), await _new_body(), list[DocWrite]()
    for key, position in mapping_of(given, what, "a mapping of keys to positions").items():
        check_document_key(key, f"a key of {what}")
        if type(position) is not int or position not in _POSITIONS:
            raise InvalidArgumentError(f"{what}[{key!r:.80}] must be a position of a message, an int from 0 on")
        name = _BEFORE_KEY + key
        writes.append(DocWrite(DocKind.DOCUMENTS, name, Doc(name, position, body)))
        await pace.yield_to_loop()
    return writes


async def _checked(messages: Any) -> dict[str, Message]:
    """The messages of a call, because the caller's mapping may change meanwhile."""
    pace, given = Pace(), dict[str, Message]()
    for key, message in mapping_of(messages, "messages", "a mapping of keys to messages").items():
        check_document_key(key, "message key")
        check_class(Message, message, f"messages[{key!r:.80}]")
        given[key] = message
        await pace.yield_to_loop()
    return given


def _new_keys(keys: Iterable[str], body: Body) -> Iterable[DocWrite]:
    """The writes of keys that must be new, whose messages are appended in their order."""
    for at, key in enumerate(keys):
        name = _BEFORE_KEY + key
        yield DocWrite(DocKind.DOCUMENTS, name, Doc(name, 0, body), ABSENT_DOC, at)


def _still(known: Mapping[str, Doc]) -> tuple[DocWrite, ...]:
    """The demand that the agent was not deleted since these keys were read: the first one is stored as it is."""
    first = list(known.values())[:1]
    return tuple(DocWrite(DocKind.DOCUMENTS, doc.key, doc, Body("", doc.body.digest)) for doc in first)


def key_name(agent_id: str, engine_key: str) -> str:
    """The name of a key in errors."""
    return f"message key {engine_key.removeprefix(_BEFORE_KEY)!r:.80} of agent {agent_id!r}"


def check_key_document(agent_id: str, doc: Doc) -> None:
    """Raise CorruptRecordError for a document of the core that is not the key of a message."""
    name = key_name(agent_id, doc.key)
    if type(doc.time) is not int or doc.time < 0:
        raise CorruptRecordError(name, "it says no position of a message")
    if not doc.key.startswith(_BEFORE_KEY):
        raise CorruptRecordError(name, "the core has no such documents")
    try:
        check_document_key(doc.key.removeprefix(_BEFORE_KEY), "message key")
    except InvalidArgumentError as exc:
        raise CorruptRecordError(name, f"it is under no key that a message may have: {exc}") from None
