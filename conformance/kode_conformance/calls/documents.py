"""Calls with documents of the caller's own that checks and their processes share."""

from __future__ import annotations

import asyncio

from kode_core.errors import ConflictError
from kode_core.protocols import ExtendedStore

__all__ = ["count_up"]


async def count_up(store: ExtendedStore, agent_id: str, tries: int) -> int:
    """Add one to a counter by compare and set, so many times; returns how often it succeeded."""
    done = 0
    for _ in range(tries):
        found = await store.load_document(agent_id, "c", "n")
        await asyncio.sleep(0)
        if found is None or type(found.value) is not int:
            return -1
        try:
            await store.put_document(agent_id, "c", "n", found.value + 1, expect=found.version)
            done += 1
        except ConflictError:
            continue
    return done
