"""Compression: a layer that stores large bodies as zstd (``pip install 'kode-core[zstd]'`` before Python 3.14).

A compressed text is JSON, ``"kode:CHECKSUM:z1:SIZE:BASE64"``; the size counts its bytes in UTF-8. No more bytes than
that are decompressed, and no text is compressed that is larger than the limit, so that a size beyond it is damage.
"""

from __future__ import annotations

import asyncio
import sys
from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from typing import Any, Final

from kode_core.codec import Body, Unreadable, sealed_text
from kode_core.engine import Engine
from kode_core.errors import ConfigurationError
from kode_core.layers.bodies import BodyLayer, Place
from kode_core.layers.required import COMPRESSION, note_required
from kode_core.model import Json
from kode_core.pace import Pace

__all__ = ["MAX_TEXT", "MIN_TEXT", "Compression", "compressed", "import_zstd", "packed", "unpacked"]

MIN_TEXT: Final = 1024
"""The size in UTF-8 from which texts are compressed, unless a caller says another."""
MAX_TEXT: Final = 2**28
"""Texts that are larger than this are stored as they are."""

_FORM: Final = "z1"
_LEVEL: Final = 3
_IN_LOOP: Final = 2**17
"""Larger texts are compressed in a thread; zstd does not hold the interpreter's lock."""
_NUMBER: Final = 10


def import_zstd() -> Any:
    """The module for Zstandard: of the standard library from Python 3.14 on; ImportError without one."""
    if sys.version_info >= (3, 14):
        from compression import zstd  # type: ignore[import-not-found,unused-ignore]
    else:
        from backports import zstd
    return zstd


def _zstd() -> Any:
    """The module, imported only by a store that compresses."""
    try:
        return import_zstd()
    except ImportError:
        raise ConfigurationError(
            "compression needs the package backports.zstd; install it with: pip install 'kode-core[zstd]'"
        ) from None


def _parsed(text: str) -> tuple[int, bytes] | None:
    """The size and the bytes of a compressed text, both empty if it is damaged; None if *text* is none."""
    if not text.startswith('"kode:') or not text.endswith('"'):
        return None
    form, _, rest = text[23:-1].partition(":")
    if form != _FORM:
        return None
    size, _, encoded = rest.partition(":")
    try:
        raw = b64decode(encoded, validate=True)
    except ValueError:
        raw = b""
    is_number = size.isascii() and size.isdecimal() and len(size) <= _NUMBER
    return (int(size), raw) if is_number else (0, b"")


def _text(size: int, raw: bytes) -> str:
    return sealed_text(f"{_FORM}:{size}:{b64encode(raw).decode()}")


def packed(text: str) -> bytes:
    """*text* as bytes for a cipher; a compressed text loses its base64."""
    found = _parsed(text)
    return b"\0" + text.encode() if found is None else b"\1%d:%b" % found


def unpacked(raw: bytes) -> str:
    """The text of :func:`packed`; raises ValueError."""
    if raw[:1] == b"\1":
        size = raw[1 : _NUMBER + 2].partition(b":")[0]
        return _text(int(size), raw[len(size) + 2 :])
    return raw[1:].decode()


class Compression(BodyLayer):
    """Compresses large bodies on their way in. Digests stay as they are, and plain texts are read, too."""

    required = COMPRESSION

    def __init__(self, inner: Engine, min_bytes: int = MIN_TEXT) -> None:
        super().__init__(inner)
        self._zstd = _zstd()
        self._min_bytes = min_bytes
        self._is_noted = False

    def described(self) -> dict[str, Json]:
        """The size in bytes from which bodies are compressed; for reports."""
        return {"minBytes": self._min_bytes}

    async def put_on(self, bodies: Sequence[tuple[Place, Body]]) -> Sequence[Body]:
        pace, changed = Pace(), list[Body]()
        for place, body in bodies:
            raw = body.text.encode() if not place.is_demand and len(body.text) * 4 >= self._min_bytes else b""
            if self._min_bytes <= len(raw) <= MAX_TEXT:
                data = await self._worked(self._zstd.compress, raw, _LEVEL)
                if len(data) * 4 // 3 + 64 < len(raw):
                    await self._note()
                    body = Body(_text(len(raw), data), body.digest)
            changed.append(body)
            await pace.yield_to_loop()
        return changed

    async def _note(self) -> None:
        """Note before the first compressed record that there are some."""
        if not self._is_noted:
            await note_required(self.inner, COMPRESSION)
            self._is_noted = True

    async def take_off(self, bodies: Sequence[tuple[Place, Body]]) -> Sequence[Body]:
        pace, changed = Pace(), list[Body]()
        for _, body in bodies:
            found = None if isinstance(body, Unreadable) else _parsed(body.text)
            if found is not None:
                body = await self._taken_off(*found, body.digest)
            changed.append(body)
            await pace.yield_to_loop()
        return changed

    async def _taken_off(self, size: int, data: bytes, digest: bytes) -> Body:
        if not 0 < size <= MAX_TEXT:
            return Unreadable("", digest, f"its compressed text says that it has {size} bytes, and cannot")
        try:
            raw = await self._worked(self._decompressed, data, size, scale=size)
            return Body(raw.decode(), digest)
        except (self._zstd.ZstdError, EOFError, ValueError):
            return Unreadable("", digest, "its compressed text cannot be decompressed: it was changed")

    def _decompressed(self, data: bytes, size: int) -> bytes:
        """The text of *data*, for which no more memory is taken than for *size* bytes."""
        work = self._zstd.ZstdDecompressor()
        raw: bytes = work.decompress(data, max_length=size)
        more = b"" if work.eof else work.decompress(b"", max_length=1)
        if len(raw) != size or more or not work.eof or work.unused_data:
            raise ValueError("it has another size")
        return raw

    async def _worked(self, call: Callable[..., bytes], raw: bytes, number: int, *, scale: int | None = None) -> bytes:
        if (len(raw) if scale is None else scale) <= _IN_LOOP:
            return call(raw, number)
        return await asyncio.to_thread(call, raw, number)


def compressed(*, min_bytes: int = MIN_TEXT) -> Callable[[Engine], Engine]:
    """The layer for one store, as in ``create_extended_store(url, layers=[compressed()])``.

    Bodies of at least *min_bytes* bytes are compressed, if that makes them smaller. With encryption, it stands behind
    it in the list: ``layers=[encrypted(keys), compressed()]``, so that texts are compressed first.

    Raises:
        ConfigurationError: *min_bytes* is not a number of bytes, or the package is not installed.
    """
    if type(min_bytes) is not int or min_bytes < 0:
        raise ConfigurationError("min_bytes is the size in bytes from which texts are compressed, 0 or more")
    _zstd()
    return lambda engine: Compression(engine, min_bytes)
