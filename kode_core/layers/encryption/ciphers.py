"""The cryptography of the layer: it seals texts, hides digests, and makes tokens of indexed values.

A sealed text is JSON, ``"kode:CHECKSUM:e1:KEY ID:BASE64"``. The base64 holds the tag of the agent under whose key the
text was sealed, 8 bytes; a random nonce, 12 bytes; and the AES-256-GCM ciphertext with its tag. Each agent has a key of
its own, derived from the ring's. The associated data are the kind and the key of the record, and the id of the key: a
ciphertext that was moved to another agent, kind or key does not open.
"""

from __future__ import annotations

import hmac
import os
from base64 import b64decode, b64encode, urlsafe_b64decode, urlsafe_b64encode
from collections import OrderedDict
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from kode_core.codec import sealed_text
from kode_core.errors import ConfigurationError
from kode_core.layers.bodies import Place
from kode_core.layers.compression import packed, unpacked
from kode_core.layers.encryption.keys import KeyRing
from kode_core.pace import Pace

__all__ = ["SealedText", "Sealer", "Secrets", "parsed", "pieces"]

_FORM: Final = "e1"
_TAG: Final = 8
_NONCE: Final = 12
_GCM: Final = 16
_AGENTS: Final = 2048
SLICE: Final = 3 * 2**18
"""Bytes that are worked on in one go: a multiple of 3, so that the base64 of slices is the base64 of the whole."""


def _crypto() -> tuple[Any, tuple[type[Exception], ...]]:
    """The library's ciphers and the errors of a text that does not open; imported only for an encrypted store."""
    try:
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers import aead
    except ImportError:
        raise ConfigurationError(
            "encryption needs the package cryptography; install it with: pip install 'kode-core[crypto]'"
        ) from None
    return aead, (InvalidTag, ValueError)


class SealedText(NamedTuple):
    """The parts of a sealed text."""

    key_id: str
    origin: bytes
    nonce: bytes
    ciphertext: bytes


class _AgentKey(NamedTuple):
    aead: Any
    tag: bytes
    raw: bytes


def parsed(text: str) -> SealedText | None:
    """The parts of a sealed text; None if *text* is no sealed text, as plain text is none."""
    if not text.startswith('"kode:') or not text.endswith('"'):
        return None
    form, _, rest = text[23:-1].partition(":")
    key_id, _, encoded = rest.partition(":")
    if form != _FORM:
        return None
    try:
        raw = b64decode(encoded, validate=True)
    except ValueError:
        raw = b""
    return SealedText(key_id, raw[:_TAG], raw[_TAG : _TAG + _NONCE], raw[_TAG + _NONCE :])


class Sealer:
    """Seals and opens texts with the keys of a ring."""

    def __init__(self, ring: KeyRing) -> None:
        self.ring = ring
        self._aead, self._refusals = _crypto()
        self._agents: OrderedDict[tuple[str, str], _AgentKey] = OrderedDict()

    def _agent(self, key_id: str, agent_id: str) -> _AgentKey:
        name = (key_id, agent_id)
        found = self._agents.get(name)
        if found is None:
            master = self.ring.key(key_id)
            assert master is not None
            derived = hmac.digest(master, b"kode-core e1 agent\0" + agent_id.encode(), "sha512")
            found = _AgentKey(self._aead.AESGCM(derived[:32]), derived[32 : 32 + _TAG], derived[:32])
            self._agents[name] = found
            if len(self._agents) > _AGENTS:
                self._agents.popitem(last=False)
        else:
            self._agents.move_to_end(name)
        return found

    def tag(self, key_id: str, agent_id: str) -> bytes:
        """The tag of an agent's key: it tells whose key sealed a text, and is noise without the ring."""
        return self._agent(key_id, agent_id).tag

    def seal(self, place: Place, text: str) -> str:
        """The sealed form of *text*."""
        key_id = self.ring.writes
        key, nonce = self._agent(key_id, place.agent_id), os.urandom(_NONCE)
        raw = key.tag + nonce + key.aead.encrypt(nonce, packed(text), _bound_to(place, key_id))
        return sealed_text(f"{_FORM}:{key_id}:{b64encode(raw).decode()}")

    def open(self, place: Place, sealed: SealedText) -> str | None:
        """The text that was sealed at *place*; None if it was changed, or sealed elsewhere or under another key."""
        if len(sealed.ciphertext) < _GCM or sealed.key_id not in self.ring:
            return None
        key = self._agent(sealed.key_id, place.agent_id)
        try:
            raw = key.aead.decrypt(sealed.nonce, sealed.ciphertext, _bound_to(place, sealed.key_id))
            return unpacked(raw)
        except self._refusals:
            return None

    async def seal_in_slices(self, place: Place, text: str, pace: Pace) -> str:
        """:meth:`seal` for a large text, while other tasks get their turn."""
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

        key_id = self.ring.writes
        key, nonce, plain = self._agent(key_id, place.agent_id), os.urandom(_NONCE), packed(text)
        work = Cipher(algorithms.AES(key.raw), modes.GCM(nonce)).encryptor()
        work.authenticate_additional_data(_bound_to(place, key_id))
        raw = bytearray(key.tag + nonce)
        for piece in pieces(plain):
            raw += work.update(piece)
            await pace.yield_to_loop()
        raw += work.finalize() + work.tag
        encoded = []
        for piece in pieces(raw):
            encoded.append(b64encode(piece).decode())
            await pace.yield_to_loop()
        return sealed_text(f"{_FORM}:{key_id}:{''.join(encoded)}")

    async def open_in_slices(self, place: Place, sealed: SealedText, pace: Pace) -> str | None:
        """:meth:`open` for a large text."""
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

        if len(sealed.ciphertext) < _GCM or sealed.key_id not in self.ring:
            return None
        key, data = self._agent(sealed.key_id, place.agent_id), memoryview(sealed.ciphertext)
        mode = modes.GCM(sealed.nonce, bytes(data[-_GCM:]))
        work = Cipher(algorithms.AES(key.raw), mode).decryptor()
        work.authenticate_additional_data(_bound_to(place, sealed.key_id))
        plain = bytearray()
        for piece in pieces(data[:-_GCM]):
            plain += work.update(piece)
            await pace.yield_to_loop()
        try:
            work.finalize()
            return unpacked(bytes(plain))
        except self._refusals:
            return None


def pieces(raw: bytes | bytearray | memoryview) -> Iterator[memoryview]:
    """*raw* in slices."""
    view = memoryview(raw)
    for start in range(0, len(view), SLICE):
        yield view[start : start + SLICE]


def _bound_to(place: Place, key_id: str) -> bytes:
    """The associated data: no two places have the same, because a kind and an id have no U+0000."""
    return f"{place.kind}\0{key_id}\0{place.key}".encode("utf-8", "surrogatepass")


class Secrets:
    """Hides digests and makes tokens with the store's secret, which no rotation changes."""

    SALTED: Final = 24
    FIXED: Final = 17

    def __init__(self, secret: bytes) -> None:
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

        block = Cipher(algorithms.AES(_derived(secret, b"digests")[:32]), modes.ECB())  # noqa: S305 - one block, with a tweak
        self._hides, self._shows = block.encryptor(), block.decryptor()
        self._tweaks = _derived(secret, b"tweaks")
        self._terms = _derived(secret, b"terms")
        aead, self._refusals = _crypto()
        self._names = aead.AESSIV(_derived(secret, b"names"))

    def _tweak(self, what: bytes) -> int:
        return int.from_bytes(blake2b(what, digest_size=16, key=self._tweaks).digest(), "big")

    def _permuted(self, cipher: Any, digest: bytes, tweak: int) -> bytes:
        """One block of AES between two additions of the tweak: a permutation for each tweak."""
        mixed = (int.from_bytes(digest, "big") ^ tweak).to_bytes(16, "big")
        block = cipher.update(mixed)
        return (int.from_bytes(block, "big") ^ tweak).to_bytes(16, "big")

    def salted(self, digest: bytes) -> bytes:
        """A digest that no engine compares: two of the same text have nothing in common."""
        salt = os.urandom(8)
        return self._permuted(self._hides, digest, self._tweak(salt)) + salt

    def fixed(self, digest: bytes, bound_to: str) -> bytes:
        """A digest that engines compare: equal for equal texts in one place, and for no others."""
        return self._permuted(self._hides, digest, self._tweak(bound_to.encode("utf-8", "surrogatepass")))

    def shown(self, hidden: bytes, bound_to: str) -> bytes:
        """The digest that was hidden. A damaged one is given on, and fits no text."""
        if len(hidden) == self.SALTED:
            return self._permuted(self._shows, hidden[:16], self._tweak(hidden[16:]))
        if len(hidden) in (16, self.FIXED):
            return self._permuted(self._shows, hidden[:16], self._tweak(bound_to.encode("utf-8", "surrogatepass")))
        return hidden

    def term(self, term: str) -> str:
        """The keyed form of a term of a document's tags, which is a hash that anyone could compute."""
        return blake2b(term.encode(), digest_size=16, key=self._terms).hexdigest()

    def value(self, key: str, text: str) -> str:
        """The token of a metadata value: equal ones stay equal under one key."""
        raw = key.encode() + b"\0" + text.encode()
        return f"~{blake2b(raw, digest_size=16, key=self._terms).hexdigest()}"

    def name(self, column: str, text: str) -> str:
        """The token of a name, which :meth:`named` turns back."""
        return f"~{urlsafe_b64encode(self._names.encrypt(text.encode(), [column.encode()])).decode().rstrip('=')}"

    def named(self, column: str, token: str) -> str:
        """The name of a token; a text that is no token is given on, as it was stored before names were blinded."""
        if not token.startswith("~"):
            return token
        try:
            raw = urlsafe_b64decode(token[1:] + "=" * (-len(token[1:]) % 4))
            found: bytes = self._names.decrypt(raw, [column.encode()])
            return found.decode()
        except self._refusals:
            return token


def _derived(secret: bytes, purpose: bytes) -> bytes:
    return hmac.digest(secret, b"kode-core e1 " + purpose, "sha512")
