"""The MongoDB backend of kode-core.

When it is installed, kode-core finds it by name: ``create_extended_store("mongodb://localhost/kode_agents")``.
:class:`MongoStore` is for direct use.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

from kode_core.factory import BackendStore
from kode_mongo.keywords import MongoKeywords
from kode_mongo.options import MongoOptions
from kode_mongo.plugin import kode_store_backend

__all__ = ["MongoOptions", "MongoStore"]


class MongoStore(BackendStore):
    """An ExtendedStore in a MongoDB database.

    *connection* is a URL or a mapping with ``host``, ``port``, ``database``, ``user``, ``password`` and so on. Or give
    *client*, an ``AsyncIOMotorClient`` or ``AsyncMongoClient`` of your own, which stays open. With
    *file_store_base_dir*, the store keeps events, todos, history and media in that folder; without it, everything is
    in the database. :class:`MongoOptions` and :class:`kode_core.config.StoreOptions` list the other options.
    """

    def __init__(
        self,
        connection: str | Mapping[str, Any] | None = None,
        file_store_base_dir: str | None = None,
        *,
        client: Any = None,
        **options: Unpack[MongoKeywords],
    ) -> None:
        given = dict(connection) if isinstance(connection, Mapping) else connection
        super().__init__(
            kode_store_backend(), connection=given, file_store_base_dir=file_store_base_dir, client=client, **options
        )
