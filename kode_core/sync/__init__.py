"""Stores for synchronous code: scripts, threads, notebooks, Flask, Django and Celery.

::

    from kode_core import Message
    from kode_core.sync import open_store

    with open_store("sqlite:///agents.db") as store:
        store.append_messages("agt-1", [Message.user("Hello!")])

A :class:`SyncStore` has every method of :class:`~kode_core.ExtendedStore`, with the same names and arguments. Streams
are plain iterators, and locks are used with ``with``. A call blocks its thread until it is done; a coroutine awaits an
async store instead, so that its event loop serves others meanwhile.
"""

from __future__ import annotations

from kode_core.sync.iterators import SyncIterator
from kode_core.sync.locks import SyncAgentLock, SyncLease
from kode_core.sync.store import SyncStore, open_store

__all__ = ["SyncAgentLock", "SyncIterator", "SyncLease", "SyncStore", "open_store"]
