"""Keys of encryption: by id, from a text, an environment variable, a file, or a function of the program."""

from __future__ import annotations

import base64
import os
import re
import secrets
import stat
from collections.abc import Awaitable, Callable, Iterator, Mapping
from inspect import isawaitable
from typing import Any, Final, TypeAlias

from kode_core.authoring.encodings import decoded
from kode_core.authoring.paths import local_path
from kode_core.errors import ConfigurationError, KodeError

__all__ = ["KeyRing", "Keys", "new_key", "ring_of"]

KEY_BYTES: Final = 32
_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_MOST_TEXT: Final = 1 << 20
_LIKE_A_KEY: Final = re.compile(r"[A-Za-z0-9+/_-]{40,43}=|[0-9A-Fa-f]{64}|[A-Za-z0-9._-]+:[A-Za-z0-9+/_-]{16,}=*\Z")
"""A key in base64 or hexadecimal, or an id with a part of one: errors quote no name that is perhaps a key."""
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,39}")
_FORM: Final = "each key is ID:BASE64 with 32 bytes in base64, one a line, and the first of them writes"


class KeyRing:
    """The keys of a store by their ids. The first writes; all of them read.

    An id has 1 to 64 letters, digits, ``.``, ``_`` and ``-``, and stands readable in the stored records. A key has 32
    bytes. Neither ``repr`` nor an error shows a key.
    """

    __slots__ = ("_keys",)

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        if not isinstance(keys, Mapping):
            raise ConfigurationError(f"keys of encryption are given by their ids, not as {type(keys).__name__}")
        given = dict(keys)
        if not given:
            raise ConfigurationError("there is no key of encryption: give at least one")
        for key_id, key in given.items():
            if type(key_id) is not str or not _ID.fullmatch(key_id):
                raise ConfigurationError("the id of a key has 1 to 64 letters, digits, '.', '_' and '-'")
            if type(key) is not bytes or len(key) != KEY_BYTES:
                raise ConfigurationError(f"the key {key_id!r} is not {KEY_BYTES} bytes; kode_core's new_key makes one")
        self._keys = given

    def __repr__(self) -> str:
        return f"<KeyRing of {', '.join(self._keys)}>"

    def __reduce__(self) -> Any:
        raise TypeError("a key ring is not pickled: its keys would be written somewhere")

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __contains__(self, key_id: object) -> bool:
        return key_id in self._keys

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def writes(self) -> str:
        """The id of the key that encrypts."""
        return next(iter(self._keys))

    def key(self, key_id: str) -> bytes | None:
        """The key of that id; None if the ring does not have it."""
        return self._keys.get(key_id)

    @classmethod
    def from_text(cls, text: str, source: str = "the text") -> KeyRing:
        """The keys of a text: ``ID:BASE64``, one a line or separated by commas; ``#`` begins a comment.

        Raises:
            ConfigurationError: it has another form. The error names *source* and quotes nothing.
        """
        keys: dict[str, bytes] = {}
        for line in text.splitlines():
            for part in line.partition("#")[0].replace(",", " ").split():
                key_id, colon, encoded = part.partition(":")
                try:
                    key = base64.b64decode(encoded, validate=True)
                except ValueError:
                    key = b""
                if not colon or not _ID.fullmatch(key_id) or len(key) != KEY_BYTES:
                    raise ConfigurationError(f"{source}: entry {len(keys) + 1} is no key: {_FORM}")
                if key_id in keys:
                    raise ConfigurationError(f"{source}: the id {key_id!r} is there twice")
                keys[key_id] = key
        if not keys:
            raise ConfigurationError(f"{source} has no key: {_FORM}")
        return cls(keys)

    @classmethod
    def from_environment(cls, name: str) -> KeyRing:
        """The keys of an environment variable, in the form of :meth:`from_text`."""
        text = os.environ.get(name)
        if text is None:
            shown = name if _VARIABLE.fullmatch(name) else "that was named"
            raise ConfigurationError(f"the environment variable {shown} is not set; it has the keys of encryption")
        return cls.from_text(text, f"the environment variable {name}")

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> KeyRing:
        """The keys of a file, in the form of :meth:`from_text`.

        Raises:
            ConfigurationError: the file cannot be read, has another form, or others than its owner can read it.
        """
        place = local_path(path, "the file with keys of encryption")
        try:
            with place.open("rb") as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise ConfigurationError(f"{place} is no regular file; it should have the keys of encryption")
                if os.name == "posix" and status.st_mode & 0o077:
                    raise ConfigurationError(
                        f"{place} has keys of encryption, and its mode {stat.S_IMODE(status.st_mode):o} lets others "
                        f"use it; run: chmod 600 {place}"
                    )
                text = decoded(file.read(_MOST_TEXT))
        except UnicodeError as exc:
            raise ConfigurationError(f"the keys of encryption cannot be read from {place}: {exc}") from None
        except OSError as exc:
            is_key = _LIKE_A_KEY.search(str(place).removeprefix(place.drive))
            shown = "a file whose name looks like a key itself" if is_key else place
            raise ConfigurationError(f"the keys of encryption cannot be read from {shown}: {exc.strerror}") from None
        return cls.from_text(text, str(place))


Keys: TypeAlias = KeyRing | Mapping[str, bytes] | Callable[[], Any]
"""A ring, keys by their ids, or a function that returns one of these, which may be a coroutine function.

A function is called when the store is opened, and again when a record has a key that the ring does not have.
"""


def new_key() -> str:
    """A new random key in base64, for the right side of ``ID:BASE64``."""
    return base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode()


async def ring_of(keys: Keys) -> KeyRing:
    """The ring that *keys* stands for.

    Raises:
        ConfigurationError: it is none, or its function failed; the failure is not quoted, since it may hold a key.
    """
    found: Any = keys
    if not isinstance(keys, (KeyRing, Mapping)):
        try:
            found = keys()
            if isawaitable(found):
                found = await _awaited(found)
        except KodeError:
            raise
        except Exception as exc:  # noqa: BLE001 - the program's function
            problem = type(exc).__name__
        else:
            problem = ""
        if problem:
            raise ConfigurationError(f"the function that gives the keys of encryption failed: {problem}")
    return found if isinstance(found, KeyRing) else KeyRing(found)


async def _awaited(found: Awaitable[Any]) -> Any:
    return await found
