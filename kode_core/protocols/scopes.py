"""Stores of which a part, one tenant, can be seen as a store."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from kode_core.protocols.extended import ExtendedStore

__all__ = ["ScopedStore"]


@runtime_checkable
class ScopedStore(ExtendedStore, Protocol):
    """A store that gives views of single tenants. Every store over an engine is one."""

    def scoped(self, tenant: str) -> ExtendedStore:
        """A view that sees the agents of one tenant and nothing else, through every method (SCOPE-1).

        Two tenants may use the same agent ids. The view has ids without the tenant; this store sees all agents, those
        of tenants under their full ids, such as ``@acme/alice`` (SCOPE-3). A view uses the connections and the memory
        of this store. It need not be closed: it can be used until it, or this store, is closed (SCOPE-5)::

            acme = store.scoped("acme")
            await acme.append_messages("alice", [Message.user("Hello!")])

        Raises:
            InvalidArgumentError: *tenant* cannot name a tenant (SCOPE-2).
            UnsupportedError: this store is such a view itself. The calls of a view raise it if the backend cannot
                search a part of its agents.
        """
        ...
