"""kode_core: the persistence layer for AI agents.

::

    from kode_core import Message, create_extended_store

    async with create_extended_store("sqlite:///agents.db") as store:
        await store.save_messages("agt-1", [Message.user("Hello!")])

``__all__`` lists the names for users of stores. ``SqliteStore``, ``PostgresStore``, ``MongoStore`` and
``DynamoDBStore`` belong to them too, and can be imported from here when their distributions are installed. Authors of
backends begin with :mod:`kode_core.engine` and :mod:`kode_core.plugins`; the architecture page lists all modules that
they may import.
"""

from __future__ import annotations

import importlib.util
import typing

from kode_core import errors, model
from kode_core.codec import from_dict, to_dict
from kode_core.errors import *  # noqa: F403
from kode_core.factory import create_extended_store, create_store, lazy_store
from kode_core.ids import new_agent_id
from kode_core.jsonable import to_json, to_jsonable
from kode_core.keys import agent_key, agent_key_prefix
from kode_core.model import *  # noqa: F403
from kode_core.protocols import (
    AgentStore,
    DocumentStore,
    EventStream,
    ExtendedStore,
    Heartbeat,
    Lease,
    QueryableStore,
    ScopedStore,
    Store,
)
from kode_core.query import (
    AgentStats,
    Durations,
    Group,
    MessageFilter,
    Page,
    Session,
    SessionFilter,
    SessionInfo,
    ToolCallFilter,
)
from kode_core.report import (
    ConsistencyCheckResult,
    ConsistencyIssue,
    PruneResult,
    RepairResult,
    StoreHealthStatus,
    StoreMetrics,
)
from kode_core.tenants import full_agent_id, tenant_of

__all__ = [
    *errors.__all__,
    *model.__all__,
    "AgentStats",
    "AgentStore",
    "ConsistencyCheckResult",
    "ConsistencyIssue",
    "CopyReport",
    "DocumentStore",
    "Durations",
    "EventStream",
    "ExtendedStore",
    "Group",
    "Heartbeat",
    "JsonStore",
    "Lease",
    "MemoryStore",
    "MessageFilter",
    "MovedAgent",
    "Page",
    "PolicyReport",
    "PassReport",
    "QueryableStore",
    "PruneResult",
    "RepairResult",
    "Retained",
    "RetentionPolicy",
    "RetentionReport",
    "ScopedStore",
    "Session",
    "SessionFilter",
    "SessionInfo",
    "Store",
    "StoreHealthStatus",
    "StoreMetrics",
    "ToolCallFilter",
    "agent_key",
    "agent_key_prefix",
    "apply_retention",
    "copy_store",
    "create_extended_store",
    "create_store",
    "export_archive",
    "from_dict",
    "full_agent_id",
    "import_archive",
    "lazy_store",
    "new_agent_id",
    "retention_policies",
    "tenant_of",
    "to_dict",
    "to_json",
    "to_jsonable",
    "verify_copy",
]


_STORES: typing.Final = {
    "JsonStore": ("kode_core.direct", "kode-core"),
    "MemoryStore": ("kode_core.direct", "kode-core"),
    "SqliteStore": ("kode_sqlite", "kode-sqlite"),
    "PostgresStore": ("kode_postgres", "kode-postgres"),
    "MongoStore": ("kode_mongo", "kode-mongo"),
    "DynamoDBStore": ("kode_dynamodb", "kode-dynamodb"),
}
"""Stores for direct use: the module of each store, and the distribution that contains it."""

_LATER: typing.Final = {
    "CopyReport": "kode_core.moving",
    "MovedAgent": "kode_core.moving",
    "PassReport": "kode_core.moving",
    "PolicyReport": "kode_core.retention",
    "Retained": "kode_core.retention",
    "RetentionPolicy": "kode_core.retention",
    "RetentionReport": "kode_core.retention",
    "apply_retention": "kode_core.retention",
    "copy_store": "kode_core.moving",
    "export_archive": "kode_core.moving",
    "import_archive": "kode_core.moving",
    "retention_policies": "kode_core.config",
    "verify_copy": "kode_core.moving",
}
"""Names of maintenance, which most programs do not use: the module of each, which is imported on first access."""

if typing.TYPE_CHECKING:
    from kode_dynamodb import DynamoDBStore as DynamoDBStore
    from kode_mongo import MongoStore as MongoStore
    from kode_postgres import PostgresStore as PostgresStore
    from kode_sqlite import SqliteStore as SqliteStore

    from kode_core.config import retention_policies
    from kode_core.direct import JsonStore, MemoryStore
    from kode_core.moving import (
        CopyReport,
        MovedAgent,
        PassReport,
        copy_store,
        export_archive,
        import_archive,
        verify_copy,
    )
    from kode_core.retention import PolicyReport, Retained, RetentionPolicy, RetentionReport, apply_retention

    __version__: str
else:

    def __getattr__(name: str) -> object:
        """Return the version, or a store for direct use; a store is imported on first access.

        Raises:
            BackendImportError: the store's distribution is not installed; an ImportError.
        """
        if name == "__version__":
            from importlib.metadata import version

            return version("kode-core")
        if name in _LATER:
            return getattr(importlib.import_module(_LATER[name]), name)
        if name not in _STORES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module, distribution = _STORES[name]
        try:
            return getattr(importlib.import_module(module), name)
        except ModuleNotFoundError as exc:
            if exc.name != module:
                raise
        raise errors.BackendImportError(
            f"{name} comes with {distribution}, which is not installed; pip install {distribution}"
        )

    def __dir__() -> list[str]:
        """List the names of this module, and the stores whose distributions are installed."""
        there = [name for name, (module, _) in _STORES.items() if importlib.util.find_spec(module)]
        return sorted({*globals(), *_LATER, *there})
