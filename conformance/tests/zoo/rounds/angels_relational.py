"""Stores on relational databases that do nothing wrong in unusual ways."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

from msgspec.structs import replace

from conformance.tests.zoo.angels import Offsets, angel
from conformance.tests.zoo.base import OnMemory, Wrapper
from kode_core.batch import Fence
from kode_core.layers import Layer


@angel(OnMemory)
class StepsOffsetsAsAGaleraNode(Offsets):
    """Gives offsets in steps of seven and beginning at ten, as MySQL does with auto_increment_increment=7 and
    auto_increment_offset=3 on a node of a cluster."""

    # EVT-2: an offset grows in the order of commit and never comes again; "there may be gaps".

    factor = 7
    start = 3


_JUMP = 1000


@angel(OnMemory)
class JumpsTokensAsAnIdentityColumn(Layer):
    """Gives the leases tokens that are a thousand apart, as an IDENTITY column of SQL Server goes on a thousand further
    after a restart, and a sequence of Oracle behind what was cached."""

    # LOCK-5: "Each lease has a token that only grows"; by how much is not said, nor that the first is 1.

    @staticmethod
    def _inner(fence: Fence) -> Fence:
        return replace(fence, token=fence.token // _JUMP)

    async def commit(self, batches: Sequence[Any]) -> Any:
        return await super().commit(
            [batch if batch.fence is None else replace(batch, fence=self._inner(batch.fence)) for batch in batches]
        )

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        token = await super().acquire_lease(agent_id, owner, ttl_ms)
        return None if token is None else token * _JUMP

    async def renew_lease(self, agent_id: str, fence: Fence, ttl_ms: int) -> bool:
        return await super().renew_lease(agent_id, self._inner(fence), ttl_ms)

    async def release_lease(self, agent_id: str, fence: Fence) -> None:
        await super().release_lease(agent_id, self._inner(fence))


def _seal(salt: str, cursor: str) -> str:
    return blake2b(f"{salt}.{cursor}".encode(), digest_size=8).hexdigest()


@angel(OnMemory)
class SaltsItsCursors(Wrapper):
    """Gives a cursor that is another text each time for the same place, as web frameworks that sign and encrypt the key
    of a keyset page do."""

    # QRY-5 says what following a cursor gives, and nothing of its text: two pages that end at one place may have
    # different ones, and one that was altered is refused as by every store (QRY-1).

    __slots__ = ()

    async def _page(self, name: str, filters: dict[str, Any]) -> Any:
        cursor = filters.get("cursor")
        if type(cursor) is str:
            salt, _, rest = cursor.partition(".")
            seal, _, inner = rest.partition(".")
            try:
                is_ours = bool(inner) and seal == _seal(salt, inner)
            except UnicodeEncodeError:
                is_ours = False
            filters = {**filters, "cursor": inner if is_ours else "altered"}
        page = await getattr(self.inner, name)(**filters)
        if page.next_cursor is not None:
            salt = secrets.token_urlsafe(12)
            page.next_cursor = f"{salt}.{_seal(salt, page.next_cursor)}.{page.next_cursor}"
        return page

    async def query_sessions(self, **filters: Any) -> Any:
        return await self._page("query_sessions", filters)

    async def query_messages(self, **filters: Any) -> Any:
        return await self._page("query_messages", filters)

    async def query_tool_calls(self, **filters: Any) -> Any:
        return await self._page("query_tool_calls", filters)
