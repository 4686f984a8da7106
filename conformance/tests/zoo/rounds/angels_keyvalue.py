"""Stores that are unusual as key-value systems are, and keep the contract."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from msgspec.structs import replace

from conformance.tests.zoo.angels import angel
from conformance.tests.zoo.base import OnMemory, Wrapper, cursor_after
from kode_core.batch import Batch, Fence
from kode_core.layers import Layer
from kode_core.query import message_query, session_query, tool_call_query


@angel(OnMemory)
class TokensAreRevisions(Layer):
    """Gives leases tokens that are far apart and begin above 2^40, as the revision of etcd counts every write."""

    # LOCK-5: "Each lease has a token that only grows"; not by how much, nor from where

    @staticmethod
    def _told(token: int) -> int:
        return 2**40 + token * 1_000

    @staticmethod
    def _real(fence: Fence) -> Fence:
        token, rest = divmod(fence.token - 2**40, 1_000)
        return Fence(fence.owner, -1 if rest else token)

    async def commit(self, batches: Sequence[Batch]) -> Any:
        return await super().commit([b if b.fence is None else replace(b, fence=self._real(b.fence)) for b in batches])

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        token = await super().acquire_lease(agent_id, owner, ttl_ms)
        return None if token is None else self._told(token)

    async def renew_lease(self, agent_id: str, fence: Fence, ttl_ms: int) -> bool:
        return await super().renew_lease(agent_id, self._real(fence), ttl_ms)

    async def release_lease(self, agent_id: str, fence: Fence) -> None:
        await super().release_lease(agent_id, self._real(fence))


@angel(OnMemory)
class EndsWithAnEmptyPage(Wrapper):
    """Gives a cursor with every full page, also when nothing is left behind it: the next page is empty and the last, as
    with DynamoDB's LastEvaluatedKey."""

    # QRY-5: "The result is a list with next_cursor. Following cursors gives each record … exactly once"; the contract
    # does not say that a page with a cursor has another record behind it

    __slots__ = ()

    async def query_sessions(self, **filters: Any) -> Any:
        page = await self.inner.query_sessions(**filters)
        sort_by = filters.get("sort_by", "created_at")
        return _with_cursor(page, session_query, filters, lambda s: (getattr(s, sort_by), s.agent_id))

    async def query_messages(self, **filters: Any) -> Any:
        page = await self.inner.query_messages(**filters)
        return _with_cursor(page, message_query, filters, _place)

    async def query_tool_calls(self, **filters: Any) -> Any:
        page = await self.inner.query_tool_calls(**filters)
        return _with_cursor(page, tool_call_query, filters, _place)


def _place(record: Any) -> tuple[int, str, int]:
    return record.created_at, record.agent_id, record.position


def _with_cursor(page: Any, checked: Callable[[Any], Any], filters: Any, key: Callable[[Any], tuple[Any, ...]]) -> Any:
    query = checked(filters)
    if page.next_cursor is None and page and len(page) == query.limit:
        page.next_cursor = cursor_after(query, key(page[-1]))
    return page
