"""The texts of files that users write: with byte order marks, as on Windows, or compressed."""

from __future__ import annotations

import codecs
from typing import Any, Final

__all__ = ["OtherEncodingError", "decoded", "gunzipped", "unmarked"]

_GZIP: Final = b"\x1f\x8b"


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


def gunzipped(file: Any) -> Any:
    """A file that reads *file*, which has ``peek``, unpacked if it is compressed with gzip."""
    if not file.peek(len(_GZIP)).startswith(_GZIP):
        return file
    import gzip  # few files are compressed

    return gzip.GzipFile(fileobj=file)
