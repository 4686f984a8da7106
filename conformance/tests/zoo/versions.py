"""Stores with faults in versions, and in agents that are made or changed next to others (VER, INFO-4, INFO-5, …)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from kode_conformance.context import Context
from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import MemoryLayer, mutant
from conformance.tests.zoo.witnesses import seen, talk
from kode_core.batch import ListKind
from kode_core.errors import AgentNotFoundError, ConflictError
from kode_core.model import AgentInfo, Message, ToolUseBlock
from kode_core.query import Session
from kode_core.store import EngineStore


async def _edited(ctx: Context) -> object:
    await ctx.store.save_messages("a", talk("1"))
    before = await ctx.store.load_version("a")
    await ctx.store.save_messages("a", talk("2"))
    return before == await ctx.store.load_version("a")


@mutant(
    "VER-1",
    killed_by="versions_change_with_every_write_and_never_return",
    source="an ETag of the number of messages",
    witness=_edited,
)
class VersionIsTheLength(EngineStore):
    """Takes the number of messages for the version."""

    async def load_version(self, agent_id: str) -> str:
        return f"{len(await self.load_messages(agent_id))}"


async def _locked(ctx: Context) -> object:
    await ctx.store.save_messages("a", talk("1"))
    before = await ctx.store.load_version("a")
    await (await ctx.store.acquire_agent_lock("a")).release()
    return before == await ctx.store.load_version("a")


@mutant(
    "VER-1",
    killed_by="calls_that_write_nothing_leave_the_version",
    source="UPDATE agents SET locked_by = ?, version = version + 1 WHERE id = ?: one row has the lock and the version",
    witness=_locked,
)
class LocksMoveTheVersion(MemoryLayer):
    """Changes the version of an agent when its lock is taken."""

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> Any:
        token = await super().acquire_lease(agent_id, owner, ttl_ms)
        state = self.space.states.get(agent_id)
        if token is not None and state is not None and state.lists[ListKind.MESSAGES].version:
            state.lists[ListKind.MESSAGES].version += 1
        return token


@mutant(
    "VER-1",
    killed_by="a_session_is_that_of_a_query",
    source="a count that was copied from the line above",
    witness=seen(
        lambda s: s.save_turn("a", info=samples.info("a", created_at=1), tool_calls=[samples.tool_call()]),
        lambda s: _count(s),
    ),
)
class CountsMessagesTwice(EngineStore):
    """Gives the number of messages as the number of tool calls."""

    async def load_session(self, agent_id: str) -> Session | None:
        found = await super().load_session(agent_id)
        return None if found is None else replace(found, tool_call_count=found.message_count)


async def _count(store: Any) -> int:
    return int((await store.load_session("a")).tool_call_count)


async def _save_an_old_info(ctx: Context) -> object:
    version = await ctx.store.load_version("a")
    await ctx.store.append_messages("a", talk("1"))
    try:
        await ctx.store.save_info("a", samples.info("a"), expect=version)
    except ConflictError:
        return "refused"
    return "written"


@mutant(
    "VER-2",
    killed_by="a_write_that_demands_an_older_version_is_refused",
    source="If-Match that is looked at for one kind of write only",
    witness=_save_an_old_info,
)
class InfosDemandNothing(EngineStore):
    """Saves an info whatever version the write demands."""

    async def save_info(self, agent_id: str, info: AgentInfo, *, expect: str | None = None, fence: Any = None) -> None:
        await super().save_info(agent_id, info, fence=fence)


async def _two_at_once(ctx: Context) -> object:
    version = await ctx.store.load_version("a")
    other = await ctx.another()
    calls = [store.save_turn("a", append=talk("x"), expect=version) for store in (ctx.store, other)]
    return sum(isinstance(one, ConflictError) for one in await asyncio.gather(*calls, return_exceptions=True))


@mutant(
    "VER-2",
    killed_by="one_of_those_that_demand_a_version_wins",
    source="SELECT version, compare, UPDATE: without a condition in the UPDATE",
    witness=_two_at_once,
)
class ComparesBeforeItWrites(EngineStore):
    """Compares the version before the write of a turn, and not in it."""

    async def save_turn(self, agent_id: str, *, expect: str | None = None, **given: Any) -> Any:
        found = await self.load_version(agent_id)
        if type(expect) is str and found != expect and expect.isalnum():
            raise ConflictError(agent_id, found, "another version")
        for _ in range(5):
            await asyncio.sleep(0)
        is_version = type(expect) is str and expect.isalnum()
        return await super().save_turn(agent_id, expect=None if is_version else expect, **given)


async def _create_twice(ctx: Context) -> object:
    other = await ctx.another()
    calls = [store.create_agent("a", samples.info("a", created_at=1)) for store in (ctx.store, other)]
    return sum(isinstance(one, ConflictError) for one in await asyncio.gather(*calls, return_exceptions=True))


@mutant(
    "INFO-4",
    killed_by="one_of_several_creators_wins",
    source="if not exists: save",
    witness=_create_twice,
)
class CreatesByLookingFirst(EngineStore):
    """Looks whether the agent exists, and saves its info then."""

    async def create_agent(self, agent_id: str, info: AgentInfo, *, fence: Any = None) -> None:
        if await self.exists(agent_id):
            raise ConflictError(agent_id, await self.load_version(agent_id), "it exists")
        for _ in range(5):
            await asyncio.sleep(0)
        await self.save_info(agent_id, info, fence=fence)


async def _update_twice(ctx: Context) -> object:
    other = await ctx.another()
    await ctx.store.save_info("a", samples.info("a", created_at=1, metadata={}))
    await asyncio.gather(ctx.store.update_info("a", {"x": 1}), other.update_info("a", {"y": 1}))
    info = await ctx.store.load_info("a")
    return sorted(info.metadata) if info is not None else None


@mutant(
    "INFO-5",
    killed_by="updates_of_the_info_lose_nothing",
    source="KODE SDK: metadata is read, changed and saved whole",
    witness=_update_twice,
)
class UpdatesByLoadAndSave(EngineStore):
    """Loads the info, changes it and saves it, over the change of another."""

    async def update_info(
        self, agent_id: str, metadata: Mapping[str, Any], *, remove: Sequence[str] = (), fence: Any = None
    ) -> AgentInfo:
        found = await self.load_info(agent_id)
        if found is None or not isinstance(metadata, dict) or not isinstance(remove, (list, tuple)):
            return await super().update_info(agent_id, metadata, remove=remove, fence=fence)
        for _ in range(5):
            await asyncio.sleep(0)
        kept = {key: value for key, value in found.metadata.items() if key not in remove}
        changed = replace(found, metadata={**kept, **metadata})
        await self.save_info(agent_id, changed, fence=fence)
        return changed


@mutant(
    "SNAP-2",
    killed_by="a_snapshot_can_be_deleted",
    source="a collation without case in the WHERE of a DELETE",
    witness=seen(
        lambda s: s.save_snapshot("a", samples.snapshot("s")), lambda s: s.save_snapshot("a", samples.snapshot("S")),
        lambda s: s.delete_snapshot("a", "S"), lambda s: s.list_snapshots("a"),
    ),
)  # fmt: skip
class DeletesTheTwin(EngineStore):
    """Deletes all snapshots whose ids differ from the given one in case alone."""

    async def delete_snapshot(self, agent_id: str, snapshot_id: str, *, fence: Any = None) -> None:
        await super().delete_snapshot(agent_id, snapshot_id, fence=fence)
        for found in await self.list_snapshots(agent_id):
            if found.id.lower() == snapshot_id.lower():
                await super().delete_snapshot(agent_id, found.id, fence=fence)


async def _calls_of_a_short_fork(ctx: Context) -> object:
    messages = [samples.message(0), Message("assistant", [ToolUseBlock("x", "t", {})])]
    info = samples.info("p", created_at=1)
    await ctx.store.save_turn("p", info=info, messages=messages, tool_calls=[samples.tool_call(0, id="x")])
    await ctx.store.fork("p", "c", length=1)
    return await ctx.store.load_tool_call_records("c")


@mutant(
    "FORK-4",
    killed_by="a_fork_begins_where_it_is_told",
    source="a fork at a point that cuts the messages and copies the rest whole",
    witness=_calls_of_a_short_fork,
)
class ForksAllCalls(EngineStore):
    """Takes every tool call along, also those of messages behind the fork's end."""

    async def fork(
        self,
        agent_id: str,
        new_id: str | None = None,
        *,
        length: int | None = None,
        snapshot_id: str | None = None,
        documents: bool = False,
    ) -> str:
        child = await super().fork(agent_id, new_id, length=length, snapshot_id=snapshot_id, documents=documents)
        await self.save_tool_call_records(child, await self.load_tool_call_records(agent_id))
        return child


async def _fork_over(ctx: Context) -> object:
    for name in ("p", "there"):
        await ctx.store.save_info(name, samples.info(name, created_at=1))
    try:
        return await ctx.store.fork("p", "there")
    except (ConflictError, AgentNotFoundError) as exc:
        return type(exc).__name__


@mutant("FORK-4", killed_by="a_fork_replaces_nothing", source="INSERT OR REPLACE … SELECT", witness=_fork_over)
class ForksOverAnother(EngineStore):
    """Removes the agent that has the id of the fork."""

    async def fork(
        self,
        agent_id: str,
        new_id: str | None = None,
        *,
        length: int | None = None,
        snapshot_id: str | None = None,
        documents: bool = False,
    ) -> str:
        try:
            return await super().fork(agent_id, new_id, length=length, snapshot_id=snapshot_id, documents=documents)
        except ConflictError:
            assert new_id is not None
            await self.delete(new_id)
            return await super().fork(agent_id, new_id, length=length, snapshot_id=snapshot_id, documents=documents)
