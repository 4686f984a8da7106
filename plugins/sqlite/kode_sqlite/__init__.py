"""The SQLite backend of kode-core.

Once installed, it is found by name: ``create_extended_store("sqlite:///agents.db")``. :class:`SqliteStore` is for
direct use.
"""

from __future__ import annotations

from typing import Unpack

from kode_core.factory import BackendStore
from kode_sqlite.keywords import SqliteKeywords
from kode_sqlite.options import SqliteOptions
from kode_sqlite.plugin import kode_store_backend

__all__ = ["SqliteOptions", "SqliteStore"]


class SqliteStore(BackendStore):
    """An ExtendedStore in the SQLite database at *db_path*.

    With *file_store_base_dir*, events, todos, history and media are kept in that folder; without it, everything is in
    the database. The other options are the fields of :class:`SqliteOptions` and :class:`kode_core.config.StoreOptions`.
    """

    def __init__(self, db_path: str, file_store_base_dir: str | None = None, **options: Unpack[SqliteKeywords]) -> None:
        super().__init__(kode_store_backend(), db_path=db_path, file_store_base_dir=file_store_base_dir, **options)
