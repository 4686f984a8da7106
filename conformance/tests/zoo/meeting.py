"""Stores that are right for a single user: readers, writers, forks and deletes that meet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from kode_conformance.context import Context
from kode_conformance.values import samples

from conformance.tests.zoo.base import OnSqlite, mutant
from kode_core.query import Page
from kode_core.store import EngineStore

# --- in pieces --------------------------------------------------------------------------------------------------------


async def _while_appending(ctx: Context) -> object:
    """The numbers of messages, or of tool calls, seen while 300 are appended."""
    other = await ctx.another()
    both = (
        (ctx.store.append_messages("a", samples.messages(300)), other.load_messages),
        (
            ctx.store.upsert_tool_call_records("a", [samples.tool_call(i) for i in range(300)]),
            other.load_tool_call_records,
        ),
    )
    seen = set()
    for call, load in both:
        task = asyncio.ensure_future(call)
        while not task.done():
            seen.add(len(await load("a")))
            await asyncio.sleep(0)
        await task
    return seen <= {0, 300}


@mutant(
    "MSG-3",
    killed_by="MSG-1.a_large_call_is_seen_whole_or_not_at_all",
    source="a commit for each batch of a hundred",
    witness=_while_appending,
)
class CommitsInPieces(EngineStore):
    """Appends batches of a hundred messages, each in a commit of its own."""

    async def append_messages(self, agent_id: str, messages: Sequence[Any], *, fence: Any = None) -> None:
        if type(messages) is not list or len(messages) <= 100:
            return await super().append_messages(agent_id, messages, fence=fence)
        for start in range(0, len(messages), 100):
            await super().append_messages(agent_id, messages[start : start + 100], fence=fence)
            await asyncio.sleep(0)


@mutant(
    "TC-3",
    killed_by="MSG-1.large_calls_of_a_process_are_seen_whole",
    on=OnSqlite,
    source="a commit for each batch of twenty-five",
    witness=_while_appending,
    slow=True,
)
class UpsertsInPieces(EngineStore):
    """Upserts batches of twenty-five tool calls, each in a commit of its own."""

    async def upsert_tool_call_records(self, agent_id: str, records: Sequence[Any], *, fence: Any = None) -> None:
        if type(records) is not list or len(records) <= 25:
            return await super().upsert_tool_call_records(agent_id, records, fence=fence)
        for start in range(0, len(records), 25):
            await super().upsert_tool_call_records(agent_id, records[start : start + 25], fence=fence)
            await asyncio.sleep(0.001)


async def _while_forking(ctx: Context) -> object:
    other = await ctx.another()
    await ctx.store.save_turn("p", messages=samples.messages(200), info=samples.info("p"))
    forking = asyncio.ensure_future(ctx.store.batch_fork("p", 2))
    seen = set()
    while not forking.done():
        seen |= {len(await other.load_messages(agent)) for agent in await other.list()}
        await asyncio.sleep(0)
    await forking
    return seen <= {200}


@mutant("FORK-3", killed_by="many_agents_in_one_call_are_whole", source="the info first", witness=_while_forking)
class ForksInPieces(EngineStore):
    """Gives a fork its info first, and then its messages."""

    async def batch_fork(self, agent_id: str, count: int) -> list[str]:
        forks = await super().batch_fork(agent_id, count)
        for fork in forks:
            messages = await self.load_messages(fork)
            await self.save_messages(fork, messages[:100])
            await asyncio.sleep(0.002)
            await self.save_messages(fork, messages)
        return forks


# --- read, think, write -----------------------------------------------------------------------------------------------


async def _two_kinds(ctx: Context) -> object:
    other = await ctx.another()
    await ctx.store.save_media_cache("a", [samples.media("old")])
    both = (ctx.store.save_todos("a", samples.todos("x")), other.save_media_cache("a", [samples.media("new")]))
    await asyncio.gather(*both)
    return await other.load_media_cache("a")


@mutant(
    "MSG-8",
    killed_by="writers_of_all_kinds_at_once",
    source="one document for all small things of an agent",
    witness=_two_kinds,
)
class WritesNeighboursBack(EngineStore):
    """Writes the media cache back that it read before, whenever it saves todos."""

    async def save_todos(self, agent_id: str, snapshot: Any, *, fence: Any = None) -> None:
        media = await self.load_media_cache(agent_id)
        await asyncio.sleep(0.002)
        await super().save_todos(agent_id, snapshot, fence=fence)
        await super().save_media_cache(agent_id, media)


async def _upserts_at_once(ctx: Context) -> object:
    stores = [ctx.store, await ctx.another()]
    await asyncio.gather(*(store.upsert_tool_call_records("a", [samples.tool_call(1)]) for store in stores))
    return len(await ctx.store.load_tool_call_records("a"))


@mutant(
    "TC-3",
    killed_by="upserts_of_one_id_at_once",
    source="`SELECT` and then `UPDATE` or `INSERT`",
    witness=_upserts_at_once,
)
class UpsertsByLooking(EngineStore):
    """Looks whether the id of a tool call is there, and appends or replaces then."""

    _turn = 0

    async def upsert_tool_call_records(self, agent_id: str, records: Sequence[Any], *, fence: Any = None) -> None:
        known = {call.id for call in await self.load_tool_call_records(agent_id)}
        await asyncio.sleep(0.002)
        new = [record for record in records if getattr(record, "id", None) not in known]
        old = [record for record in records if record not in new]
        if old or not new:
            await super().upsert_tool_call_records(agent_id, old or records, fence=fence)
        for record in new:  # under a name that is not there, so that it is appended
            UpsertsByLooking._turn += 1
            stand_in = record.replace(id=f"new {self._turn}")
            await super().upsert_tool_call_records(agent_id, [stand_in], fence=fence)
            calls = [record if call == stand_in else call for call in await self.load_tool_call_records(agent_id)]
            await super().save_tool_call_records(agent_id, calls, fence=fence)


# --- forks and deletes ------------------------------------------------------------------------------------------------


async def _fork_and_write(ctx: Context) -> object:
    other = await ctx.another()
    await ctx.store.save_info("p", samples.info("p"))
    forking = asyncio.ensure_future(ctx.store.batch_fork("p", 1))
    await asyncio.sleep(0.0005)
    while not forking.done():
        await other.save_media_cache("p", [samples.media()])
        await asyncio.sleep(0.0005)
    (fork,) = await forking
    media = len(await ctx.store.load_media_cache(fork))
    return media == 0


@mutant(
    "FORK-1",
    killed_by="a_fork_is_a_cut_through_all_kinds",
    source="a copy of each kind after the other",
    witness=_fork_and_write,
)
class ForksMediaLater(EngineStore):
    """Copies the media cache of the parent after all the rest."""

    async def batch_fork(self, agent_id: str, count: int) -> list[str]:
        forks = await super().batch_fork(agent_id, count)
        await asyncio.sleep(0.02)
        media = await self.load_media_cache(agent_id)
        for fork in forks:
            await self.save_media_cache(fork, media)
        return forks


async def _delete_and_write(ctx: Context) -> object:
    await ctx.store.save_todos("a", samples.todos("old"))
    await asyncio.gather(ctx.store.delete("a"), ctx.store.save_info("a", samples.info("a")))
    await asyncio.sleep(0.01)
    return await ctx.store.load_todos("a")


@mutant(
    "LIFE-3",
    killed_by="a_delete_among_writers_of_all_kinds",
    source="a cache that is written back",
    witness=_delete_and_write,
)
class DeletesBringTodosBack(EngineStore):
    """Brings the todos back when the agent is written while it is deleted."""

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        todos = await self.load_todos(agent_id)
        await super().delete(agent_id, fence=fence)
        await asyncio.sleep(0.005)
        if todos is not None and await self.exists(agent_id):
            await super().save_todos(agent_id, todos)


# --- cursors ----------------------------------------------------------------------------------------------------------


async def _stream_and_write(ctx: Context) -> object:
    for i in range(9):
        await ctx.store.save_info(f"a{i}", samples.info(f"a{i}", created_at=i))
    seen = []
    async for session in ctx.store.iter_sessions():
        seen.append(session.agent_id)
        if len(seen) == 1:
            await ctx.store.save_info("new", samples.info("new", created_at=99))
    return seen


@mutant(
    "QRY-6",
    killed_by="QRY-5.pages_while_agents_come_and_go",
    source="pages by offset",
    witness=_stream_and_write,
)
class IteratesByOffset(EngineStore):
    """Iterates over sessions in pages of five, by offset."""

    async def iter_sessions(self, **filters: Any) -> AsyncIterator[Any]:  # type: ignore[override]
        if {"limit", "offset", "cursor"} & set(filters):
            async for session in super().iter_sessions(**filters):
                yield session
        given = 0
        while page := await self.query_sessions(**filters, limit=5, offset=given):
            for session in page:
                yield session
            given += len(page)


async def _pages_and_writes(ctx: Context) -> object:
    await ctx.store.save_tool_call_records("a", [samples.tool_call(i) for i in range(6)])
    first = await ctx.store.query_tool_calls(limit=2)
    await ctx.store.upsert_tool_call_records("a", [samples.tool_call(9)])
    second = await ctx.store.query_tool_calls(limit=2, cursor=first.next_cursor)
    return [call.position for call in (*first, *second)]


@mutant("QRY-5", killed_by="pages_while_a_list_grows", source="pages by offset", witness=_pages_and_writes)
class CursorsCountCalls(EngineStore):
    """Counts how many tool calls it gave, and goes on behind as many."""

    async def query_tool_calls(self, **filters: Any) -> Any:
        cursor = filters.pop("cursor", None)
        if cursor is not None:
            filters["offset"] = int(cursor)
        page = await super().query_tool_calls(**filters)
        following = None if page.next_cursor is None else str(filters.get("offset", 0) + len(page))
        return Page(page, following)
