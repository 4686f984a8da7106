"""kode_core: the persistence layer for AI agents.

::

    from kode_core import Message, create_extended_store

    async with create_extended_store("sqlite:///agents.db") as store:
        await store.save_messages("agt-1", [Message.user("Hello!")])

What is in ``__all__`` here is for users of stores. Authors of backends use :mod:`kode_core.engine`,
:mod:`kode_core.batch`, :mod:`kode_core.protocols`, :mod:`kode_core.plugins`, :mod:`kode_core.errors` and
:mod:`kode_core.layers`.
"""

from __future__ import annotations

from kode_core import errors, model
from kode_core.codec import from_dict, to_dict
from kode_core.errors import *  # noqa: F403
from kode_core.factory import create_extended_store, create_store
from kode_core.ids import new_agent_id
from kode_core.model import *  # noqa: F403
from kode_core.protocols import ExtendedStore, Lease, QueryableStore, Store
from kode_core.query import AgentStats, MessageFilter, Page, SessionFilter, SessionInfo, ToolCallFilter
from kode_core.report import ConsistencyCheckResult, ConsistencyIssue, StoreHealthStatus, StoreMetrics

__all__ = [
    *errors.__all__,
    *model.__all__,
    "AgentStats",
    "ConsistencyCheckResult",
    "ConsistencyIssue",
    "ExtendedStore",
    "Lease",
    "MessageFilter",
    "Page",
    "QueryableStore",
    "SessionFilter",
    "SessionInfo",
    "Store",
    "StoreHealthStatus",
    "StoreMetrics",
    "ToolCallFilter",
    "create_extended_store",
    "create_store",
    "from_dict",
    "new_agent_id",
    "to_dict",
]


def __getattr__(name: str) -> str:
    if name == "__version__":
        from importlib.metadata import version

        return version("kode-core")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
