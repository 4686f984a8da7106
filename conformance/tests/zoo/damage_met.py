"""Stores that meet damage well in one search, one instance or one call, and not in another (OPS-4, QRY-9)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

from kode_conformance.checks.damage import damaging
from kode_conformance.context import Context
from kode_conformance.values import samples

from conformance.tests.zoo.base import OnJson, OnSqlite, mutant
from kode_core.errors import CorruptRecordError
from kode_core.model import Message, TextBlock, TodoSnapshot
from kode_core.query import Page
from kode_core.store import EngineStore


async def _backwards(ctx: Context) -> object:
    for agent_id in "ab":
        await ctx.store.save_tool_call_records(agent_id, [samples.tool_call()])
    store, damage = await damaging(ctx)
    damage.verbs = frozenset({"find_rows"})
    return len((await store.query_tool_calls(order="asc")).left_out)


@mutant(
    "QRY-9",
    killed_by="every_order_and_filter_leaves_out_what_is_damaged",
    witness=_backwards,
    source="a second statement for the other order, whose errors are passed over",
)
class LeavesOutSilentlyInAscendingOrder(EngineStore):
    """Names the damaged tool calls that it left out of a page, but not of one in ascending order."""

    async def query_tool_calls(self, **filters: Any) -> Any:
        page = await super().query_tool_calls(**filters)
        return Page(page, page.next_cursor) if filters.get("order") == "asc" else page


async def _read_twice(ctx: Context) -> object:
    await ctx.store.save_messages("a", samples.messages(2))
    store, damage = await damaging(ctx)
    await store.load_messages("a")
    damage.verbs = frozenset({"rows"})
    return await _outcome(store.load_messages("a"))


async def _outcome(call: Awaitable[Any]) -> object:
    (found,) = await asyncio.gather(call, return_exceptions=True)
    return type(found).__name__


@mutant(
    "OPS-4",
    killed_by="who_read_before_meets_the_damage_too",
    witness=_read_twice,
    source="checksums that are compared at the first read of a page and not again",
)
class ComparesDigestsOnce(EngineStore):
    """Takes damaged messages for right ones where it has read the list before."""

    _read: dict[str, list[Message]] | None = None

    async def load_messages(self, agent_id: str) -> list[Message]:
        self._read = {} if self._read is None else self._read
        try:
            found = self._read[agent_id] = await super().load_messages(agent_id)
        except CorruptRecordError:
            if agent_id not in self._read:
                raise
            first, *rest = self._read[agent_id]
            return [first.replace(content=[TextBlock("mxssage 0")]), *rest]
        return found


async def _made_anew(ctx: Context) -> object:
    await ctx.store.save_messages("a", samples.messages(2))
    await ctx.reopen()
    await ctx.harness.corrupt(ctx.handle, "a")
    await ctx.store.query_messages()
    await ctx.store.delete("a")
    await ctx.store.save_messages("a", samples.messages(2))
    return len(await ctx.store.query_messages())


@mutant(
    "QRY-9",
    killed_by="what_replaces_the_damaged_is_found",
    on=OnSqlite,
    witness=_made_anew,
    source="a list of bad blocks, which grows",
)
class RemembersTheDamaged(EngineStore):
    """Leaves out for ever what it found damaged once, though it was replaced since."""

    _bad: dict[tuple[str, int], str] | None = None

    async def query_messages(self, **filters: Any) -> Any:
        bad = self._bad = self._bad or {}
        page = await super().query_messages(**filters)
        for name in page.left_out:
            bad[name.split("'")[1], int(name.split()[1])] = name
        found = [one for one in page if (one.agent_id, one.position) not in bad]
        also = [bad[one.agent_id, one.position] for one in page if (one.agent_id, one.position) in bad]
        return Page(found, page.next_cursor, (*page.left_out, *also))


async def _at_once(ctx: Context) -> object:
    for agent_id in "ab":
        await ctx.store.save_todos(agent_id, samples.todos("x"))
    store, damage = await damaging(ctx)
    damage.verbs, damage.kind = frozenset({"docs"}), "todos"
    calls = (store.load_todos("a"), store.load_todos("b"))
    return [type(result).__name__ for result in await asyncio.gather(*calls, return_exceptions=True)]


@mutant(
    "OPS-4",
    killed_by="what_is_called_next_to_damage_succeeds",
    witness=_at_once,
    source="a data loader: keys that are asked for in one turn of the loop go into one statement",
)
class DamageFailsTheWholeGroup(EngineStore):
    """Fails all loads of todos that were called at one time when one of them is for a damaged agent."""

    _group: tuple[asyncio.Future[Any], ...] = ()

    async def load_todos(self, agent_id: str) -> TodoSnapshot | None:
        mine = asyncio.ensure_future(super().load_todos(agent_id))
        self._group = (*self._group, mine)
        await asyncio.sleep(0)
        ended = await asyncio.gather(*self._group, return_exceptions=True)
        self._group = tuple(one for one in self._group if one is not mine)
        for result in ended:
            if isinstance(result, CorruptRecordError):
                raise result
        return await mine


async def _shared(ctx: Context) -> object:
    for agent_id in "ab":
        await ctx.store.save_turn(agent_id, messages=samples.messages(2), info=samples.info(agent_id))
    await ctx.harness.corrupt(ctx.handle, "a")
    return await _outcome((await ctx.another()).load_messages("b"))


@mutant(
    "OPS-4",
    killed_by="corrupt_records_are_named",
    on=OnJson,
    witness=_shared,
    source="bodies kept once under their digest, for all agents that have them",
    raises="CorruptRecordError",
)
class KeepsEqualBodiesOnce(EngineStore):
    """Cannot read a sound agent when another one, whose messages are equal, is damaged."""

    async def load_messages(self, agent_id: str) -> list[Message]:
        mine = await super().load_messages(agent_id)
        for other in await self.list():
            if other < agent_id:
                await super().load_messages(other)
        return mine
