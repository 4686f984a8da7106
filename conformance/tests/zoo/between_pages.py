"""Stores whose pages go on at the wrong place when the place itself has changed (QRY-5, QRY-6)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, ClassVar

from kode_conformance.context import Context
from kode_conformance.values import samples

from conformance.tests.zoo.base import mutant
from kode_core.query import Page
from kode_core.store import EngineStore


class _ByPlace(EngineStore):
    """Has cursors that name an agent, which the next page looks for."""

    _names: ClassVar[dict[str, str]] = {}

    async def query_sessions(self, **filters: Any) -> Any:
        cursor = filters.get("cursor")
        page = await super().query_sessions(**filters)
        if cursor in self._names and not await self.exists(self._names[cursor]):
            page = Page(list(page)[1:], page.next_cursor, page.left_out)
        if page.next_cursor is not None and page:
            self._names[page.next_cursor] = page[-1].agent_id
        return page


async def _deleted_between(ctx: Context) -> object:
    for agent in "abcd":
        await ctx.store.save_info(agent, samples.info(agent))
    page = await ctx.store.query_sessions(limit=2, order="asc")
    await ctx.store.delete("b")
    return [s.agent_id for s in await ctx.store.query_sessions(limit=2, order="asc", cursor=page.next_cursor)]


@mutant(
    "QRY-5",
    killed_by="writes_at_the_end_of_a_page",
    source="a cursor that is the id of the last row, and a skip of one behind it",
    witness=_deleted_between,
)
class SkipsOneForTheDeleted(_ByPlace):
    """Skips the next session when the one that the page ended with is gone."""


async def _streamed(ctx: Context) -> object:
    for i in range(110):
        await ctx.store.save_info(f"{i:03d}", samples.info(f"{i:03d}"))
    seen = []
    async for session in ctx.store.iter_sessions(order="asc"):
        seen.append(session.agent_id)
        if len(seen) == 100:
            await ctx.store.delete("000")
    return len(seen)


@mutant(
    "QRY-6",
    killed_by="writes_at_the_pages_of_a_stream",
    source="LIMIT 100 OFFSET 100 * page",
    witness=_streamed,
)
class StreamsByOffset(EngineStore):
    """Reads the sessions of an iterator by offset and limit, a hundred at a time."""

    async def iter_sessions(self, **filters: Any) -> AsyncIterator[Any]:  # type: ignore[override]
        for start in range(0, 10_000, 100):
            page = await self.query_sessions(limit=100, offset=start, **filters)
            for session in page:
                yield session
            if len(page) < 100:
                return
