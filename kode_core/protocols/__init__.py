"""The public interface of stores, in layers: Store, QueryableStore, DocumentStore, AgentStore, ExtendedStore.

``create_store`` and ``create_extended_store`` return an object that implements all of it. A store of your own may
implement one of these protocols directly, or be an :class:`kode_core.engine.Engine`, from which the core makes a
complete ExtendedStore. A subclass of a protocol that leaves out one of its methods cannot be instantiated; a class that
only has the methods is a store as well. Clause numbers refer to ``docs/contract.md``.

Rules for every method:

- Bad arguments raise InvalidArgumentError, values that JSON cannot carry raise InvalidValueError; nothing is written.
- A closed store raises StoreClosedError. Failing storage raises a subclass of StorageError, never the driver's own.
- When an awaited write returns, it is durable (DUR-1). A cancelled write happened completely or not at all (OPS-9).
- Loads of records that do not exist return an empty list or None, and leave no trace.
- ``fence`` takes the lease that protects a write: if the lease has ended, the write raises LockLostError and
  changes nothing. Inside ``async with store.acquire_agent_lock(...)`` this happens automatically (LOCK-5).
"""

from __future__ import annotations

from kode_core.protocols.agents import AgentStore
from kode_core.protocols.documents import DocumentStore
from kode_core.protocols.extended import ExtendedStore
from kode_core.protocols.following import EventStream, Heartbeat
from kode_core.protocols.locks import AgentLock, Lease
from kode_core.protocols.queryable import QueryableStore
from kode_core.protocols.scopes import ScopedStore
from kode_core.protocols.store import Store

__all__ = [
    "AgentLock",
    "AgentStore",
    "DocumentStore",
    "EventStream",
    "ExtendedStore",
    "Heartbeat",
    "Lease",
    "QueryableStore",
    "ScopedStore",
    "Store",
]
