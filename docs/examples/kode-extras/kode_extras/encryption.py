"""Encryption at rest: a layer that encrypts every body before the engine sees it.

Each body becomes a JSON string, ``"ID:BASE64"``: the id of the key, and a nonce with the AES-256-GCM text. Columns that
queries use (roles, tool names, states, times, template, metadata) stay readable, or nothing could be found by them.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from msgspec.structs import replace

from kode_core.batch import (
    AgentSummary,
    Batch,
    Child,
    Doc,
    DocKind,
    DocSpan,
    EventRange,
    EventRow,
    Found,
    FoundRow,
    Info,
    ListKind,
    ListRows,
    Outcome,
    Outline,
    SessionRow,
    with_bodies,
)
from kode_core.codec import Body
from kode_core.engine import Engine
from kode_core.errors import ConfigurationError
from kode_core.hybrid.engine import HybridEngine
from kode_core.layers import Layer
from kode_core.plugins import EngineLayer, hookimpl
from kode_core.query import RowQuery, SessionQuery

VARIABLE = "AGENT_KEYS"
_ID = re.compile("[A-Za-z0-9._-]{1,64}")  # an id stands in the stored text, before a colon
_KEY_BYTES = 32
_DIGEST_BYTES = 16
HasBody = TypeVar("HasBody", Doc, EventRow, FoundRow, Info)


class Keys:
    """The keys: ``digest_key``, which never changes, and by id the keys of bodies, the first of which writes."""

    def __init__(self, digest_key: bytes, keys: Mapping[str, bytes]) -> None:
        if not keys or not all(map(_ID.fullmatch, keys)):
            raise ConfigurationError("give keys of bodies, by ids of letters, digits, '.', '_' and '-'")
        if {*map(len, keys.values()), len(digest_key)} != {_KEY_BYTES}:
            raise ConfigurationError(f"a key of AES-256 has {_KEY_BYTES} bytes, and one that was given has not")
        self._block = Cipher(algorithms.AES(digest_key), modes.ECB())
        self._keys = {key_id: AESGCM(key) for key_id, key in keys.items()}
        self._writes = next(iter(keys))

    def hidden(self, digest: bytes) -> bytes:
        """A digest that only the owner of the key can tell from noise: equal ones stay equal.

        Its 16 bytes are one block of AES, which is a permutation: :meth:`shown` leads back.
        """
        encryptor = self._block.encryptor()
        return encryptor.update(digest) + encryptor.finalize()

    def shown(self, digest: bytes) -> bytes:
        """The digest again; a damaged one of another length is given on, and fits no text either."""
        if len(digest) != _DIGEST_BYTES:
            return digest
        decryptor = self._block.decryptor()
        return decryptor.update(digest) + decryptor.finalize()

    def closed(self, body: Body) -> Body:
        """*body* encrypted."""
        nonce = os.urandom(12)
        data = nonce + self._keys[self._writes].encrypt(nonce, body.text.encode(), self._writes.encode())
        return Body(f'"{self._writes}:{base64.b64encode(data).decode()}"', self.hidden(body.digest))

    def opened(self, body: Body) -> Body:
        """*body* decrypted.

        One that cannot be (a key that is not there, a changed byte, a record from before the encryption) is given on as
        it is. Its digest fits no text then, and the store raises CorruptRecordError with the record's name.
        """
        key_id, _, data = body.text[1:-1].partition(":")
        key = self._keys.get(key_id)
        try:
            raw = base64.b64decode(data, validate=True)
            is_whole = body.text == f'"{key_id}:{base64.b64encode(raw).decode()}"'  # base64 has idle bits at its end
            if key is None or not is_whole:
                return Body(body.text, bytes(16))
            text = key.decrypt(raw[:12], raw[12:], key_id.encode()).decode()
        except (InvalidTag, ValueError):
            return Body(body.text, bytes(16))
        return Body(text, self.shown(body.digest))


def inside(engine: Engine) -> Iterator[Engine]:
    """The engine, and the engines inside it."""
    yield engine
    while isinstance(engine, Layer):
        engine = engine.inner
        yield engine


class Encryption(Layer):
    """Encrypts bodies on their way in and decrypts them on their way out, in every verb that has any."""

    def __init__(self, inner: Engine, keys: Keys) -> None:
        super().__init__(inner)
        if inner.name == "json" or any(isinstance(engine, HybridEngine) for engine in inside(inner)):
            raise ConfigurationError(f"{VARIABLE}: JSON files compare digests with the stored texts; use a database")
        self._keys = keys

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        return await super().commit([with_bodies(batch, self._keys.closed) for batch in batches])

    async def fork(self, agent_id: str, children: Sequence[Child], expect: Body, now: int) -> bool:
        """The engine compares stored texts, and no two encryptions are alike: it gets the one that is stored."""
        summary = await self.inner.summary(agent_id)
        if summary is None or summary.info is None or self._keys.opened(summary.info.body) != expect:
            return False
        closed = [
            replace(child, info=replace(child.info, body=self._keys.closed(child.info.body))) for child in children
        ]
        return await super().fork(agent_id, closed, summary.info.body, now)

    async def summary(self, agent_id: str) -> AgentSummary | None:
        summary = await super().summary(agent_id)
        return summary if summary is None or summary.info is None else replace(summary, info=self._opened(summary.info))

    async def rows(self, agent_id: str, kind: ListKind) -> ListRows:
        return self._list(await super().rows(agent_id, kind))

    async def rows_at(self, agent_id: str, kind: ListKind, start: int, limit: int) -> ListRows:
        return self._list(await super().rows_at(agent_id, kind, start, limit))

    async def outline(self, agent_id: str, kind: ListKind, keys: Sequence[str] | None = None) -> Outline:
        found = await super().outline(agent_id, kind, keys)
        rows = [(position, self._keys.shown(digest), time, key) for position, digest, time, key in found.rows]
        return replace(found, rows=rows)

    async def docs(self, agent_id: str, kind: DocKind, key: str | None = None) -> Sequence[Doc]:
        return [self._opened(doc) for doc in await super().docs(agent_id, kind, key)]

    async def docs_in(self, agent_id: str, span: DocSpan) -> Sequence[Doc]:
        found = await super().docs_in(agent_id, span)
        if span.bodies:
            return [self._opened(doc) for doc in found]
        return [replace(doc, body=Body("", self._keys.shown(doc.body.digest))) for doc in found]

    async def events(self, agent_id: str, span: EventRange) -> Sequence[EventRow]:
        return [self._opened(event) for event in await super().events(agent_id, span)]

    async def last_event(self, agent_id: str) -> EventRow | None:
        event = await super().last_event(agent_id)
        return None if event is None else self._opened(event)

    async def find_sessions(self, query: SessionQuery) -> Sequence[SessionRow]:
        found = await super().find_sessions(query)
        rows = [replace(row, info=self._keys.opened(row.info)) for row in found]
        return Found(rows, getattr(found, "left_out", ()))

    async def find_rows(self, query: RowQuery) -> Sequence[FoundRow]:
        found = await super().find_rows(query)
        return Found(map(self._opened, found), getattr(found, "left_out", ()))

    def _list(self, rows: ListRows) -> ListRows:
        return replace(rows, rows=[(self._keys.opened(body), time) for body, time in rows.rows])

    def _opened(self, value: HasBody) -> HasBody:
        return replace(value, body=self._keys.opened(value.body))


def encrypted(keys: Keys) -> EngineLayer:
    """The layer for one store, as in ``create_extended_store(url, layers=[encrypted(keys)])``."""
    return lambda engine: Encryption(engine, keys)


class EncryptionPlugin:
    """Puts the layer around every engine; the innermost, so that other layers see plain bodies."""

    kode_layer_order = -100

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    @hookimpl
    def kode_engine_layers(self, options: msgspec.Struct) -> EngineLayer:
        return encrypted(self._keys)


class FromEnvironment:
    """The plugin of the entry point: keys from the environment, and nothing without them."""

    kode_layer_order = EncryptionPlugin.kode_layer_order

    @hookimpl
    def kode_engine_layers(self, options: msgspec.Struct) -> EngineLayer | None:
        given = os.environ.get(VARIABLE)
        if given is None:
            return None
        return encrypted(keys_of(given))


from_environment = FromEnvironment()


def keys_of(text: str) -> Keys:
    """The keys of a JSON text: ``{"digests": BASE64, "keys": {ID: BASE64, …}}``, each of 32 bytes."""
    try:
        given = json.loads(text)
        keys = {key_id: base64.b64decode(key) for key_id, key in given["keys"].items()}
        return Keys(base64.b64decode(given["digests"]), keys)
    except ConfigurationError as exc:
        raise ConfigurationError(f"{VARIABLE}: {exc}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ConfigurationError(f"{VARIABLE} is not the JSON of a digest key and of keys, in base64") from None
