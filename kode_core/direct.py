"""The stores of the built-in backends, for direct use, as ``SqliteStore`` of kode-sqlite is."""

from __future__ import annotations

import os
from typing import Any

from kode_core.backends.json_files import plugin as json_files
from kode_core.backends.memory import plugin as memory
from kode_core.factory import BackendStore

__all__ = ["JsonStore", "MemoryStore"]


class JsonStore(BackendStore):
    """An ExtendedStore in the folder *base_dir*, one file for each agent.

    The other options are the fields of ``JsonOptions`` and :class:`kode_core.config.StoreOptions`.
    """

    def __init__(self, base_dir: str | os.PathLike[str], **options: Any) -> None:
        super().__init__(json_files.kode_store_backend(), base_dir=base_dir, **options)


class MemoryStore(BackendStore):
    """An ExtendedStore in this process; stores of one *name* share their contents, a store without a name is alone."""

    def __init__(self, name: str | None = None, **options: Any) -> None:
        super().__init__(memory.kode_store_backend(), name=name, **options)
