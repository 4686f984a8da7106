"""Stores that are unusual, as services are, and keep the contract in every point."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from conformance.tests.zoo.angels import angel
from conformance.tests.zoo.base import MemoryLayer, OnMemory, cursor_after
from kode_core.batch import Batch
from kode_core.layers import Layer
from kode_core.query import message_query, session_query, tool_call_query
from kode_core.store import EngineStore

__all__ = ["EndsWithACursor", "HasSnowflakeOffsets", "IsAcrossTheNetwork"]


# EVT-2: an offset grows in the order of commit and never comes again; "there may be gaps". LOCK-5: a token only grows.
# On OnMemory.
@angel(OnMemory)
class HasSnowflakeOffsets(MemoryLayer):
    """Makes offsets and tokens of the time, as Snowflake ids and Redis streams do: they begin beyond 2**60, do not fit
    a double, and have large gaps."""

    def _advance(self, agent_id: str) -> None:
        space = self.space
        space.counter = max(space.counter, (time.time_ns() // 1_000_000) << 20)  # never back with the clock
        state = space.states.get(agent_id)
        if state is not None:
            state.log.next_offset = max(state.log.next_offset, space.counter + 1)

    async def commit(self, batches: Sequence[Batch]) -> Any:
        for agent_id in {batch.agent_id for batch in batches if batch.events}:
            self._advance(agent_id)
        return await super().commit(batches)

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        self._advance(agent_id)
        return await super().acquire_lease(agent_id, owner, ttl_ms)


# QRY-5: next_cursor "is None when nothing follows; where it is not, the next page may still be empty". On OnMemory,
# OnJson or OnSqlite.
@angel(OnMemory)
class EndsWithACursor(EngineStore):
    """Gives a full page a cursor also when nothing follows it, as DynamoDB gives a LastEvaluatedKey."""

    @staticmethod
    def _with_cursor(page: Any, query: Any, key: Callable[[Any], tuple[Any, ...]]) -> Any:
        if page and page.next_cursor is None and len(page) == query.limit and not page.left_out:
            page.next_cursor = cursor_after(query, key(page[-1]))
        return page

    async def query_sessions(self, **filters: Any) -> Any:
        page = await super().query_sessions(**filters)
        query = session_query(filters)  # type: ignore[arg-type]
        return self._with_cursor(page, query, lambda found: (getattr(found, query.sort_by), found.agent_id))

    async def query_messages(self, **filters: Any) -> Any:
        page = await super().query_messages(**filters)
        query = message_query(filters)  # type: ignore[arg-type]
        return self._with_cursor(page, query, lambda found: (found.created_at, found.agent_id, found.position))

    async def query_tool_calls(self, **filters: Any) -> Any:
        page = await super().query_tool_calls(**filters)
        query = tool_call_query(filters)  # type: ignore[arg-type]
        return self._with_cursor(page, query, lambda found: (found.created_at, found.agent_id, found.position))


# OPS-9 gives every call 30 s, and no clause orders calls that are in flight at once, beyond what each says (MSG-3,
# EVT-1, EVT-2). On OnMemory, OnJson or OnSqlite.
@angel(OnMemory)
class IsAcrossTheNetwork(Layer):
    """Takes up to 2 ms for the way to the database and again for the way back, so that calls overtake one another."""

    async def around(self, verb: str, call: Callable[..., Awaitable[Any]], /, *args: Any, **kwargs: Any) -> Any:
        if verb == "close":
            return await call(*args, **kwargs)
        await asyncio.sleep(random.uniform(0, 0.002))
        result = await call(*args, **kwargs)
        await asyncio.sleep(random.uniform(0, 0.002))
        return result
