"""The layer that encrypts."""

from __future__ import annotations

import json
import secrets
from base64 import b64decode, b64encode
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from time import monotonic
from typing import Final, Literal, TypeAlias, cast, get_args

from msgspec.structs import replace

from kode_core.batch import (
    ABSENT_DOC,
    Batch,
    Child,
    Doc,
    DocKind,
    DocWrite,
    EventRange,
    ListKind,
)
from kode_core.codec import Body, Unreadable, digest
from kode_core.engine import Engine, checks_demands
from kode_core.errors import ConfigurationError, DecryptionError, KodeError, StorageError
from kode_core.layers.bodies import EVENTS, INFO, Place
from kode_core.layers.encryption.blinding import Blinding
from kode_core.layers.encryption.ciphers import SLICE, SealedText, Sealer, Secrets, parsed, pieces
from kode_core.layers.encryption.keys import KeyRing, Keys, ring_of
from kode_core.layers.required import ENCRYPTION, NOTES, refuse_plain
from kode_core.model import Json
from kode_core.pace import Pace

__all__ = ["Encryption", "Plaintext", "encrypted"]

Plaintext: TypeAlias = Literal["refuse", "read"]
"""Whether records that are stored as plain text are refused or read."""

_KEY: Final = ENCRYPTION.key
_SECRET_BYTES: Final = 32
_AGENTS: Final = 2048
_EVENTS: Final = 50
_LOOK_AGAIN_S: Final = 5.0
_SALTED: Final = frozenset((*ListKind, DocKind.TODOS, DocKind.MEDIA))
"""The kinds whose digests no engine has to compare, or which a fork takes along without a key of their own."""


class Encryption(Blinding):
    """Encrypts bodies on their way in and decrypts them on their way out; see the guide for what stays readable."""

    required = ENCRYPTION

    def __init__(self, inner: Engine, keys: Keys, *, plaintext: Plaintext = "refuse", blind: bool = False) -> None:
        super().__init__(inner, is_blind=blind, is_mixed=plaintext == "read")
        self._keys = keys
        self._is_mixed = plaintext == "read"
        self._sealer: Sealer | None = None
        self._asked_at = 0.0
        self._origins: OrderedDict[str, tuple[str, ...]] = OrderedDict()

    def __repr__(self) -> str:
        return f"Encryption over {self.inner!r}"

    # --- keys

    async def check_store(self) -> None:
        """Get the keys and the store's secret, if it has one, so that a wrong key is reported when a store is opened.

        Raises:
            ConfigurationError: there are no keys, the store is encrypted under others, or it is plain.
        """
        await self._sealers()
        if await self.known_secrets() is None and not self._is_mixed:
            await refuse_plain(self.inner)

    def described(self) -> dict[str, Json]:
        """The ids of the keys, the first of which writes, and the options; for reports."""
        ring = self.ring or ()
        return {
            "keys": list(ring),
            "plaintext": "read" if self._is_mixed else "refuse",
            "blind": self._is_blind,
        }

    async def _sealers(self) -> Sealer:
        if self._sealer is None:
            self._sealer = Sealer(await ring_of(self._keys))
        return self._sealer

    async def _learn(self, key_id: str) -> None:
        """Ask the function that gives the keys again, for a key that was added since; not more than now and then."""
        sealer = await self._sealers()
        if key_id in sealer.ring or not callable(self._keys) or monotonic() - self._asked_at < _LOOK_AGAIN_S:
            return
        self._asked_at = monotonic()
        self._sealer = Sealer(await ring_of(self._keys))

    @property
    def ring(self) -> KeyRing | None:
        """The keys, when they are known."""
        return None if self._sealer is None else self._sealer.ring

    # --- the store's secret

    async def needed_secrets(self) -> Secrets:
        """The secret of digests and tokens, which is made at the first write."""
        while True:
            found = await self.known_secrets()
            if found is not None:
                return found
            await self._write_secret(secrets.token_bytes(_SECRET_BYTES), ABSENT_DOC)

    async def _write_secret(self, secret: bytes, expect: Body) -> None:
        doc = await self._own_doc(NOTES, b64encode(secret).decode())
        write = DocWrite(DocKind.LAYER, _KEY, doc, expect if checks_demands(self.inner) else None)
        batch = Batch(agent_id=NOTES, op_id=secrets.token_hex(16), now=0, docs=(write,))
        (outcome,) = await self.inner.commit([batch])
        if isinstance(outcome, KodeError):
            raise outcome

    async def known_secrets(self) -> Secrets | None:
        if self.secrets is None:
            for doc in await self.inner.docs(NOTES, DocKind.LAYER, _KEY):
                self.secrets = Secrets(b64decode(await self._secret_text(doc)))
        return self.secrets

    async def _secret_text(self, doc: Doc) -> str:
        sealed = parsed(doc.body.text)
        if sealed is not None:
            await self._learn(sealed.key_id)
        sealer = await self._sealers()
        if sealed is None:
            raise DecryptionError("the note about the encryption of this store", "it is damaged")
        if sealed.key_id not in sealer.ring:
            raise ConfigurationError(
                f"this store is encrypted under the key {sealed.key_id!r}, which is not among the given keys"
            )
        text = sealer.open(Place(NOTES, DocKind.LAYER, _KEY), sealed)
        if text is None:
            raise ConfigurationError(
                f"the key {sealed.key_id!r} is another one than the key of this id that this store is encrypted under"
            )
        return text

    async def rewrap(self) -> bool:
        """Put the store's secret under the first key; False if it is, or if there is none."""
        sealer = await self._sealers()
        for doc in await self.inner.docs(NOTES, DocKind.LAYER, _KEY):
            sealed = parsed(doc.body.text)
            if sealed is None or sealed.key_id != sealer.ring.writes:
                await self._write_secret(b64decode(await self._secret_text(doc)), doc.body)
                return True
        return False

    async def reseal_note(self, agent_id: str) -> None:
        """Put the note that names a fork's ancestors under the first key."""
        place = Place(agent_id, DocKind.LAYER, _KEY)
        for doc in await self.inner.docs(agent_id, DocKind.LAYER, _KEY):
            await self._sealers()
            text = self._own_text(place, doc.body)
            if text is not None:
                expect = Body("", doc.body.digest) if checks_demands(self.inner) else None
                write = DocWrite(DocKind.LAYER, _KEY, await self._own_doc(agent_id, text), expect)
                await self.inner.commit([Batch(agent_id=agent_id, op_id=secrets.token_hex(16), now=0, docs=(write,))])

    async def key_of(self, body: Body) -> str | None:
        """The id of the key that a stored body is under, if it is not the first one; empty for plain text."""
        sealed = parsed(body.text)
        if sealed is None:
            return ""
        return None if sealed.key_id == (await self._sealers()).ring.writes else sealed.key_id

    async def _own_doc(self, agent_id: str, text: str) -> Doc:
        sealed = (await self._sealers()).seal(Place(agent_id, DocKind.LAYER, _KEY), text)
        return Doc(_KEY, 0, Body(sealed, digest(sealed.encode())))

    # --- digests

    def _bound_to(self, place: Place) -> str:
        agent_id = "" if place.kind == DocKind.SNAPSHOTS else place.agent_id  # a fork takes snapshots along
        return f"{place.kind}\0{agent_id}\0{place.key}"

    def _hidden(self, known: Secrets, place: Place, plain: bytes) -> bytes:
        if place.kind in _SALTED:
            return known.salted(plain)
        if place.kind == EVENTS:  # their engines have room for 16 bytes
            return known.fixed(plain, f"{place.kind}\0{place.agent_id}")
        return known.fixed(plain, self._bound_to(place)) + b"\1"

    def shown(self, place: Place, digest: bytes) -> bytes:
        if self.secrets is None or len(digest) == 16:  # stored as plain text; events come with their texts
            return digest
        return self.secrets.shown(digest, self._bound_to(place))

    def _shown_with_text(self, place: Place, digest: bytes) -> bytes:
        if self.secrets is None or place.kind != EVENTS:
            return self.shown(place, digest)
        return self.secrets.shown(digest, f"{place.kind}\0{place.agent_id}")

    async def _demanded(self, known: Secrets, place: Place, body: Body) -> Body:
        """The digest that the stored record must have, which is looked up where it cannot be computed."""
        if place.kind not in _SALTED and not self._is_mixed:
            return Body("", self._hidden(known, place, body.digest))
        if place.kind == INFO:
            summary = await self.inner.summary(place.agent_id)
            stored = [] if summary is None or summary.info is None else [summary.info.body]
        else:
            docs = await self.inner.docs(place.agent_id, cast(DocKind, place.kind), place.key)
            stored = [doc.body for doc in docs]
        for one in stored:
            if self.shown(place, one.digest) == body.digest:
                return Body("", one.digest)
        return Body("", self._hidden(known, place, body.digest))

    # --- bodies

    async def put_on(self, bodies: Sequence[tuple[Place, Body]]) -> Sequence[Body]:
        if not bodies:
            return []
        known, sealer, pace = await self.needed_secrets(), await self._sealers(), Pace()
        changed: list[Body] = []
        for place, body in bodies:
            if place.is_demand:
                changed.append(await self._demanded(known, place, body))
                continue
            if len(body.text) > SLICE:
                text = await sealer.seal_in_slices(place, body.text, pace)
            else:
                text = sealer.seal(place, body.text)
            changed.append(Body(text, self._hidden(known, place, body.digest)))
            await pace.yield_to_loop()
        return changed

    async def take_off(self, bodies: Sequence[tuple[Place, Body]]) -> Sequence[Body]:
        if not bodies:
            return []
        sealer, pace = await self._sealers(), Pace()
        await self.known_secrets()
        sealed = [None if isinstance(body, Unreadable) else parsed(body.text) for _, body in bodies]
        for key_id in {one.key_id for one in sealed if one is not None} - {*sealer.ring}:
            await self._learn(key_id)
        sealer, opened = await self._sealers(), list[Body]()
        looked: set[str] = set()
        for (place, body), one in zip(bodies, sealed, strict=True):
            if one is None:
                opened.append(self._plain(place, body))
            else:
                opened.append(await self._opened(sealer, place, body, one, looked, pace))
            await pace.yield_to_loop()
        return opened

    def _plain(self, place: Place, body: Body) -> Body:
        if isinstance(body, Unreadable) or (self._is_mixed and len(body.digest) == 16):
            return body
        problem = "it is stored as plain text, or damaged; open the store with plaintext='read' to read plain text"
        return Unreadable("", self.shown(place, body.digest), problem, DecryptionError)

    async def _opened(
        self, sealer: Sealer, place: Place, body: Body, sealed: SealedText, looked: set[str], pace: Pace
    ) -> Body:
        if sealed.key_id not in sealer.ring:
            problem = f"it is encrypted under the key {sealed.key_id[:64]!r}, which is not among the given keys"
            return Unreadable("", self.shown(place, body.digest), problem, DecryptionError)
        whose = place
        if sealed.origin != sealer.tag(sealed.key_id, place.agent_id):
            origin = await self._origin(sealer, place.agent_id, sealed, looked)
            whose = place._replace(agent_id=origin or place.agent_id)
        if len(sealed.ciphertext) > SLICE:
            text = await sealer.open_in_slices(whose, sealed, pace)
        else:
            text = sealer.open(whose, sealed)
        if text is None:
            problem = "it does not decrypt: it was changed or moved, or the key of its id is another one"
            return Unreadable("", self.shown(place, body.digest), problem, DecryptionError)
        if text.startswith('"kode:') and self.secrets is not None:  # of a layer around this one: it has its own digest
            return Body(text, self._shown_with_text(place, body.digest))
        return Body(text, await _digest_of(text, pace))  # the text is authentic, whatever the stored digest is

    # --- events that are repeated

    async def stored(self, batch: Batch) -> Batch:
        """*batch* as the engine gets it; an event that it has as plain text stays so, to be known again (EVT-4)."""
        plain = (
            await self._stored_plain(batch)
            if self._is_mixed and batch.events and not batch.delete
            else frozenset[tuple[int, bytes]]()
        )
        changed = await super().stored(batch)
        if not plain:
            return changed
        pairs = zip(batch.events, changed.events, strict=True)
        events = tuple(old if (old.seq, old.body.digest) in plain else new for old, new in pairs)
        return replace(changed, events=events)

    async def _stored_plain(self, batch: Batch) -> frozenset[tuple[int, bytes]]:
        """The seqs and digests of those events of *batch* that are stored as plain text."""
        seqs = {event.seq for event in batch.events}
        last = await self.inner.last_event(batch.agent_id)
        if last is None or last.seq < min(seqs):
            return frozenset()
        found: set[tuple[int, bytes]] = set()
        for seq in sorted(seqs):
            after: tuple[int, int] | None = (seq, -1)
            while after is not None:
                span = EventRange(order="seq", after=after, limit=_EVENTS)
                rows = await self.inner.events(batch.agent_id, span)
                mine = [row for row in rows if row.seq == seq]
                found |= {(seq, row.body.digest) for row in mine if parsed(row.body.text) is None}
                after = (seq, mine[-1].offset) if len(mine) == _EVENTS else None
        return frozenset(found)

    # --- forks

    async def fork(self, agent_id: str, children: Sequence[Child], expect: Body, now: int) -> bool:
        """Fork; the forks have rows that were sealed with the keys of their ancestors, and a note that names these."""
        if not await super().fork(agent_id, children, expect, now):
            return False
        ancestors = json.dumps([*await self._ancestors(agent_id), agent_id])
        batches = []
        for child in children:
            write = DocWrite(DocKind.LAYER, _KEY, await self._own_doc(child.agent_id, ancestors))
            batches.append(Batch(agent_id=child.agent_id, op_id=secrets.token_hex(16), now=0, docs=(write,)))
        if batches:
            with suppress(StorageError):  # the lineage in the fork's info makes up for a note that was not written
                await self.inner.commit(batches)
        return True

    async def _origin(self, sealer: Sealer, agent_id: str, sealed: SealedText, looked: set[str]) -> str | None:
        """The ancestor with whose key a row of *agent_id* was sealed; None if it was moved there."""
        known = self._origins.get(agent_id, ())
        for attempt in (known, None):
            if attempt is None:
                if agent_id in looked:  # once for each page, however many rows were moved
                    return None
                looked.add(agent_id)
                attempt = await self._ancestors(agent_id)
            for one in reversed(attempt):
                if sealer.tag(sealed.key_id, one) == sealed.origin:
                    return one
        return None

    async def _ancestors(self, agent_id: str) -> tuple[str, ...]:
        """The agents from which the rows of *agent_id* may come, by its note, or else by the lineage of its info."""
        found: Iterable[object] = ()
        docs = await self.inner.docs(agent_id, DocKind.LAYER, _KEY)
        if docs:
            text = self._own_text(Place(agent_id, DocKind.LAYER, _KEY), docs[0].body)
            found = [] if text is None else json.loads(text)
        else:
            summary = await self.inner.summary(agent_id)
            if summary is not None and summary.info is not None:
                text = self._own_text(Place(agent_id, INFO), summary.info.body)
                info = json.loads(text) if text is not None and text.startswith("{") else {}
                found = info.get("lineage", ()) if isinstance(info, Mapping) else ()
        ancestors = tuple(cast(str, one) for one in found if _is_id(one))
        self._origins[agent_id] = ancestors
        self._origins.move_to_end(agent_id)
        if len(self._origins) > _AGENTS:
            self._origins.popitem(last=False)
        return ancestors

    def _own_text(self, place: Place, body: Body) -> str | None:
        sealed, sealer = parsed(body.text), self._sealer
        return None if sealed is None or sealer is None else sealer.open(place, sealed)


async def _digest_of(text: str, pace: Pace) -> bytes:
    raw = text.encode()
    if len(raw) <= SLICE:
        return digest(raw)
    seen = blake2b(digest_size=16)
    for piece in pieces(raw):
        seen.update(piece)
        await pace.yield_to_loop()
    return seen.digest()


def _is_id(value: object) -> bool:
    if type(value) is not str:
        return False
    try:
        return bool(value.encode())
    except UnicodeEncodeError:
        return False


def encrypted(keys: Keys, *, plaintext: Plaintext = "refuse", blind: bool = False) -> Callable[[Engine], Engine]:
    """The layer for one store, as in ``create_extended_store(url, layers=[encrypted(keys)])``.

    It stands first in the list: other layers then see plain bodies.

    Args:
        keys: a :class:`KeyRing`, keys by their ids, or a function that gives one of these, async or not.
        plaintext: whether records that are stored as plain text are refused or read.
        blind: whether the indexed names of tools and values of metadata are stored as tokens.

    Raises:
        ConfigurationError: an argument is of another kind, or the package is not installed.
    """
    if plaintext not in get_args(Plaintext):
        raise ConfigurationError("plaintext is 'refuse' or 'read'")
    if type(blind) is not bool:
        raise ConfigurationError("blind is True or False")
    if isinstance(keys, Mapping):
        keys = KeyRing(keys)
    if not (isinstance(keys, KeyRing) or callable(keys)):
        raise ConfigurationError(
            f"keys are a KeyRing, a dict of keys, or a function that gives one of these, not {type(keys).__name__}"
        )
    return lambda engine: Encryption(engine, keys, plaintext=plaintext, blind=blind)
