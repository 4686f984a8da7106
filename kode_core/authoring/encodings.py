"""The texts of files that users write: editors and shells of Windows put byte order marks at their beginning."""

from __future__ import annotations

import codecs

__all__ = ["OtherEncodingError", "decoded", "unmarked"]


class OtherEncodingError(UnicodeError):
    """A text is not UTF-8. The error says what to do, and quotes nothing, as errors of Python do."""


def unmarked(raw: bytes) -> bytes:
    """The bytes of a text in UTF-8 without its byte order mark, of which programs that join files may put several.

    Raises:
        OtherEncodingError: they begin with the mark of UTF-16.
    """
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise OtherEncodingError("it is UTF-16; save it as UTF-8")
    while raw.startswith(codecs.BOM_UTF8):
        raw = raw.removeprefix(codecs.BOM_UTF8)
    return raw


def decoded(raw: bytes) -> str:
    """The text of a file in UTF-8, with a byte order mark or without.

    Raises:
        OtherEncodingError: it has another encoding.
    """
    try:
        return unmarked(raw).decode()
    except UnicodeDecodeError:
        raise OtherEncodingError("it is not UTF-8") from None
