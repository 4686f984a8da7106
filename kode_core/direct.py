"""The stores of the built-in backends, for direct use, as ``SqliteStore`` of kode-sqlite is."""

from __future__ import annotations

import os
from typing import Literal, Unpack

from kode_core.backends.json_files import plugin as json_files
from kode_core.backends.memory import plugin as memory
from kode_core.factory import BackendStore, StoreKeywords

__all__ = ["JsonStore", "MemoryStore"]


class _MemoryKeywords(StoreKeywords, total=False):
    file_store_base_dir: str | None


class _JsonKeywords(StoreKeywords, total=False):
    durability: Literal["full", "fast"]
    lock_wait_ms: int
    file_mode: str
    file_store_base_dir: str | None


class JsonStore(BackendStore):
    """An ExtendedStore in the folder *base_dir*, one file for each agent.

    The other options are the fields of ``JsonOptions`` and :class:`kode_core.config.StoreOptions`.
    """

    def __init__(self, base_dir: str | os.PathLike[str], **options: Unpack[_JsonKeywords]) -> None:
        super().__init__(json_files.kode_store_backend(), base_dir=base_dir, **options)


class MemoryStore(BackendStore):
    """An ExtendedStore in this process; stores of one *name* share their contents, a store without a name is alone."""

    def __init__(self, name: str | None = None, **options: Unpack[_MemoryKeywords]) -> None:
        super().__init__(memory.kode_store_backend(), name=name, **options)
