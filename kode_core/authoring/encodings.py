"""The texts of files that users write: editors and shells of Windows put byte order marks at their beginning."""

from __future__ import annotations

import codecs

__all__ = ["decoded", "unmarked"]


def unmarked(raw: bytes) -> bytes:
    """The bytes of a text in UTF-8 without its byte order mark, of which programs that join files may put several.

    Raises:
        UnicodeError: they begin with the mark of UTF-16. The error says what to do, and quotes nothing.
    """
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UnicodeError("it is UTF-16; save it as UTF-8")
    while raw.startswith(codecs.BOM_UTF8):
        raw = raw.removeprefix(codecs.BOM_UTF8)
    return raw


def decoded(raw: bytes) -> str:
    """The text of a file in UTF-8, with a byte order mark or without.

    Raises:
        UnicodeError: it has another encoding. The error says what to do, and quotes nothing.
    """
    try:
        return unmarked(raw).decode()
    except UnicodeDecodeError:
        raise UnicodeError("it is not UTF-8") from None
