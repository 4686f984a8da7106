"""The options of ``SqliteStore`` as typed keywords."""

from __future__ import annotations

from typing import Literal

from kode_core.factory import StoreKeywords

__all__ = ["SqliteKeywords"]


class SqliteKeywords(StoreKeywords, total=False):
    """The options of :class:`SqliteOptions` and of every store as keywords, for type checkers."""

    durability: Literal["full", "fast"]
    busy_timeout_ms: int
    readers: int
    file_mode: str
    text_index: bool
