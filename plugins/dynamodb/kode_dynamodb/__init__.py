"""The DynamoDB backend of kode-core.

When it is installed, kode-core finds it by name: ``create_extended_store("dynamodb://eu-central-1/kode_agents")``.
:class:`DynamoDBStore` is for direct use.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

from kode_core.factory import BackendStore
from kode_dynamodb.keywords import DynamoDBKeywords
from kode_dynamodb.options import DynamoDBOptions
from kode_dynamodb.plugin import kode_store_backend

__all__ = ["DynamoDBOptions", "DynamoDBStore"]


class DynamoDBStore(BackendStore):
    """An ExtendedStore in a table of DynamoDB.

    *connection* is the table's name or a mapping with ``table``, ``region``, ``endpoint_url`` and so on. You may give
    *session*, an ``aioboto3.Session``, or *client*, a DynamoDB client of your own, which stays open. With
    *file_store_base_dir*, the store keeps events, todos, history and media in that folder; without it, everything is
    in the table. :class:`DynamoDBOptions` and :class:`kode_core.config.StoreOptions` list the other options.
    """

    def __init__(
        self,
        connection: str | Mapping[str, Any] | None = None,
        file_store_base_dir: str | None = None,
        *,
        session: Any = None,
        client: Any = None,
        **options: Unpack[DynamoDBKeywords],
    ) -> None:
        given = dict(connection) if isinstance(connection, Mapping) else connection
        super().__init__(
            kode_store_backend(),
            connection=given,
            file_store_base_dir=file_store_base_dir,
            session=session,
            client=client,
            **options,
        )
