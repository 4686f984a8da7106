"""Stores that fork wrongly (FORK clauses)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from kode_conformance.context import Context
from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import MemoryLayer, mutant
from conformance.tests.zoo.bodies import body
from conformance.tests.zoo.witnesses import talk
from kode_core.batch import Child, ListKind
from kode_core.codec import Body
from kode_core.errors import AgentNotFoundError, StorageError
from kode_core.model import Bookmark
from kode_core.store import EngineStore


class _Forks(MemoryLayer):
    """Does something to the children after they were made."""

    def spoil(self, parent_id: str, child_id: str) -> None:
        raise NotImplementedError

    async def fork(self, agent_id: str, children: Sequence[Child], expect: Body, now: int) -> bool:
        made = await super().fork(agent_id, children, expect, now)
        for child in children if made else ():
            self.spoil(agent_id, child.agent_id)
        return made


async def _fork(ctx: Context) -> Any:
    """A story of a parent with something of every kind, and of its fork."""
    await ctx.store.save_turn("p", messages=talk("1"), tool_calls=[samples.tool_call()], todos=samples.todos("x"))
    await ctx.store.save_info("p", samples.info("p", last_bookmark=Bookmark(1, 1), lineage=["g"]))
    (fork,) = await ctx.store.batch_fork("p", 1)
    info = await ctx.store.load_info(fork)
    assert info is not None
    return (
        await ctx.store.load_messages(fork),
        await ctx.store.load_tool_call_records(fork),
        await ctx.store.load_todos(fork),
        (info.lineage, info.last_bookmark, info.created_at > samples.T0),
    )


@mutant(
    "FORK-1",
    killed_by="forks_have_what_the_parent_has",
    source="KODE SDK SqliteStore and PostgresStore: todos, snapshots and media are not copied",
    witness=_fork,
)
class ForksWithoutDocuments(_Forks):
    """Copies messages and tool calls only."""

    def spoil(self, parent_id: str, child_id: str) -> None:
        self.space.state(child_id).docs.clear()


@mutant(
    "FORK-1",
    killed_by="forks_have_what_the_parent_has",
    source="KODE SDK SqliteStore and PostgresStore: call ids get `_fork_i`, and no longer match the messages",
    witness=_fork,
)
class ForksRenameCalls(_Forks):
    """Gives the tool calls of a fork new ids."""

    def spoil(self, parent_id: str, child_id: str) -> None:
        rows = self.space.state(child_id).lists[ListKind.TOOL_CALLS].rows
        rows[:] = [replace(row, body=body(row.body.text.replace('"call_', '"fork_call_'))) for row in rows]


@mutant(
    "FORK-1",
    killed_by="forks_have_what_the_parent_has",
    source="KODE SDK SqliteStore: metadata.lineage stays the parent's, and resume reads it",
    witness=_fork,
)
class ForksKeepTheLineage(_Forks):
    """Leaves a fork with the lineage of its parent."""

    def spoil(self, parent_id: str, child_id: str) -> None:
        state = self.space.state(child_id)
        assert state.info is not None
        state.info = replace(state.info, body=body(state.info.body.text.replace(f',"{parent_id}"]', "]")))


@mutant(
    "FORK-1",
    killed_by="a_fork_starts_without_a_bookmark",
    source="KODE SDK SqliteStore and PostgresStore: lastBookmark is copied without the events",
    witness=_fork,
)
class ForksKeepTheBookmark(EngineStore):
    """Leaves a fork with the bookmark of its parent."""

    async def batch_fork(self, agent_id: str, count: int) -> list[str]:
        made = await super().batch_fork(agent_id, count)
        parent = await self.load_info(agent_id) if made else None
        for fork in made:
            info = await self.load_info(fork)
            assert info is not None
            assert parent is not None
            await self.save_info(fork, info.replace(last_bookmark=parent.last_bookmark))
        return made


@mutant(
    "FORK-2",
    killed_by="forks_are_independent",
    source="KODE SDK SqliteStore and PostgresStore: the ids of a second batch are those of the first",
    witness=lambda ctx: _fork_twice(ctx),
    raises="UNIQUE constraint failed",
)
class ForksOnce(EngineStore):
    """Fails when an agent is forked for the second time."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._forked: set[str] = set()

    async def batch_fork(self, agent_id: str, count: int) -> list[str]:
        if agent_id in self._forked:
            raise StorageError("UNIQUE constraint failed: agents.agent_id")
        made = await super().batch_fork(agent_id, count)
        self._forked.add(agent_id)
        return made


async def _fork_twice(ctx: Context) -> object:
    await ctx.store.save_info("p", samples.info("p"))
    await ctx.store.batch_fork("p", 1)
    (second,) = await asyncio.gather(ctx.store.batch_fork("p", 1), return_exceptions=True)
    return isinstance(second, Exception)


async def _append_to_the_fork(ctx: Context) -> object:
    await ctx.store.save_turn("p", messages=talk("1"), info=samples.info("p"))
    (fork,) = await ctx.store.batch_fork("p", 1)
    await ctx.store.append_messages(fork, talk("2"))
    return await ctx.store.load_messages("p")


@mutant(
    "FORK-2",
    killed_by="forks_are_independent",
    source="shallow copies",
    witness=_append_to_the_fork,
    also=("FORK-2.random_histories_with_forks",),
)
class ForksShareRows(_Forks):
    """Gives a fork the parent's list itself."""

    def spoil(self, parent_id: str, child_id: str) -> None:
        parent, child = self.space.state(parent_id), self.space.state(child_id)
        child.lists[ListKind.MESSAGES].rows = parent.lists[ListKind.MESSAGES].rows


async def _delete_the_parent(ctx: Context) -> object:
    await ctx.store.save_info("p", samples.info("p"))
    (fork,) = await ctx.store.batch_fork("p", 1)
    await ctx.store.delete("p")
    return await ctx.store.exists(fork)


@mutant(
    "FORK-2",
    killed_by="forks_are_independent",
    source="KODE SDK JSONStore: a fork lives in a folder inside its parent's, and goes with it",
    witness=_delete_the_parent,
)
class ForksLiveInTheParent(EngineStore):
    """Deletes the forks of an agent that is deleted."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._children: dict[str, list[str]] = {}

    async def batch_fork(self, agent_id: str, count: int) -> list[str]:
        made = await super().batch_fork(agent_id, count)
        self._children.setdefault(agent_id, []).extend(made)
        return made

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        for child in self._children.pop(agent_id, ()):
            await self.delete(child)
        await super().delete(agent_id, fence=fence)


async def _fork_nobody(ctx: Context) -> object:
    try:
        return await ctx.store.batch_fork("nobody", 1)
    except AgentNotFoundError:
        return "not found"


@mutant("FORK-1", killed_by="bad_forks_are_refused", source="INSERT … SELECT of no rows", witness=_fork_nobody)
class ForksNobody(EngineStore):
    """Makes no forks of an agent that is not there, and says nothing."""

    async def batch_fork(self, agent_id: str, count: int) -> list[str]:
        try:
            return await super().batch_fork(agent_id, count)
        except AgentNotFoundError:
            return []


async def _fork_amid_writes(ctx: Context) -> object:
    await ctx.store.save_turn("p", info=samples.info("p"), todos=samples.todos("0"))
    fork = asyncio.ensure_future(ctx.store.batch_fork("p", 1))
    for n in range(1, 20):
        await ctx.store.save_turn("p", append=talk(str(n)), todos=samples.todos(str(n)))
    (made,) = await fork
    todos = await ctx.store.load_todos(made)
    assert todos is not None
    return len(await ctx.store.load_messages(made)) == int(todos.todos[0].title)


@mutant(
    "FORK-1",
    killed_by="a_fork_is_of_one_instant",
    source="KODE SDK PostgresStore: the parent is read outside the transaction",
    witness=_fork_amid_writes,
)
class TornForks(MemoryLayer):
    """Copies documents a moment after the lists."""

    async def fork(self, agent_id: str, children: Sequence[Child], expect: Body, now: int) -> bool:
        made = await super().fork(agent_id, children, expect, now)
        for _ in range(10):
            await asyncio.sleep(0)
        for child in children if made else ():
            self.space.state(child.agent_id).docs = dict(self.space.state(agent_id).docs)
        return made


async def _fork_a_long_one(ctx: Context) -> object:
    await ctx.store.save_turn("p", messages=talk(*map(str, range(150))), info=samples.info("p"))
    (fork,) = await ctx.store.batch_fork("p", 1)
    return len(await ctx.store.load_messages(fork))


@mutant(
    "FORK-1",
    killed_by="many_forks_of_a_long_agent",
    source="copies through a query with a default limit",
    witness=_fork_a_long_one,
)
class ForksOnePage(_Forks):
    """Copies the first hundred messages."""

    def spoil(self, parent_id: str, child_id: str) -> None:
        del self.space.state(child_id).lists[ListKind.MESSAGES].rows[100:]
