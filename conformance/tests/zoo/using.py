"""Stores that change when they are read, closed or locked (INFO-1, LOCK, OPS clauses)."""

from __future__ import annotations

import asyncio
import contextvars
import math
from collections.abc import Awaitable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, cast

from kode_conformance.context import Context
from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import OnJson, Wrapper, mutant
from conformance.tests.zoo.witnesses import restart, seen, talk
from kode_core.backends.json_files.engine import JsonFilesEngine
from kode_core.batch import ListKind, ListRows
from kode_core.errors import LockLostError, StorageError
from kode_core.layers import Layer
from kode_core.model import AgentInfo, Message, TodoSnapshot, ToolUseBlock
from kode_core.report import ConsistencyCheckResult, StoreMetrics
from kode_core.store import EngineStore
from kode_core.store.locks import HeldLease

T = TypeVar("T")

# --- looking ----------------------------------------------------------------------------------------------------------


@mutant(
    "INFO-1",
    killed_by="looking_changes_nothing",
    on=OnJson,
    source="get_or_create",
    witness=lambda ctx: _stored_after_a_load(ctx),
)
class LoadsMakeFiles(Layer):
    """Makes a file for an agent of which it finds nothing."""

    async def rows(self, agent_id: str, kind: ListKind) -> ListRows:
        found = await super().rows(agent_id, kind)
        if not found.rows:
            engine = cast(JsonFilesEngine, self.inner)
            Path(engine.folder.base, f"{agent_id}.empty").touch()
        return found


async def _stored_after_a_load(ctx: Context) -> object:
    await ctx.store.load_messages("a")
    return ".empty" in await ctx.harness.raw_dump(ctx.handle)


_DANGLING = [Message("assistant", [ToolUseBlock("c", "x", {})])]


async def _checked(store: Any) -> bool:
    return bool((await store.check_consistency("a")).consistent)


@mutant(
    "OPS-2",
    killed_by="INFO-1.looking_changes_nothing",
    source="checks that repair what they find",
    witness=seen(lambda s: s.save_messages("a", _DANGLING), lambda s: _checked(s), lambda s: s.load_messages("a")),
)
class CheckDropsDangling(EngineStore):
    """Drops messages with a tool use without result when it is asked whether there are any."""

    async def check_consistency(self, agent_id: str | None = None, **more: Any) -> ConsistencyCheckResult:
        found = await super().check_consistency(agent_id, **more)
        for issue in found.issues:
            if issue.code == "use_without_result":
                await self.save_messages(issue.agent_id, [])
        return found


# --- metrics ----------------------------------------------------------------------------------------------------------


async def _average(store: Any) -> bool:
    return math.isfinite((await store.get_metrics()).performance.avg_latency_ms)


@mutant("OPS-3", killed_by="metrics_of_little", source="0 / 0 in JavaScript", witness=seen(_average))
class AverageOfNothing(EngineStore):
    """Has an average latency of NaN before its first call."""

    async def get_metrics(self) -> StoreMetrics:
        metrics = await super().get_metrics()
        counts = metrics.operations
        if counts.saves or counts.loads or counts.queries or counts.deletes:
            return metrics
        return replace(metrics, performance=replace(metrics.performance, avg_latency_ms=math.nan))


async def _messages(store: Any) -> int:
    return int((await store.get_metrics()).storage.total_messages)


@mutant(
    "OPS-3",
    killed_by="metrics_of_little",
    source="totals that are added up, and never counted again",
    witness=seen(lambda s: s.save_messages("a", talk("1")), _messages, lambda s: s.delete("a"), _messages),
)
class CountsTheDeleted(EngineStore):
    """Counts messages up, and not down again when their agent is deleted."""

    _most = 0

    async def get_metrics(self) -> StoreMetrics:
        metrics = await super().get_metrics()
        self._most = max(self._most, metrics.storage.total_messages)
        return replace(metrics, storage=replace(metrics.storage, total_messages=self._most))


# --- outages ----------------------------------------------------------------------------------------------------------


async def _todos_in_an_outage(ctx: Context) -> object:
    await ctx.store.save_todos("a", samples.todos("x"))
    await ctx.harness.break_backend(ctx.handle)
    try:
        return await ctx.store.load_todos("a") is None
    except StorageError:
        return "an error"
    finally:
        await ctx.harness.heal_backend(ctx.handle)


@mutant(
    "OPS-1",
    killed_by="an_outage_is_told_and_ends",
    on=OnJson,
    source="KODE SDK JSONStore: every error of reading is an empty result",
    witness=_todos_in_an_outage,
)
class NothingInAnOutage(EngineStore):
    """Loads no todos and no info while its files are gone."""

    async def _quiet(self, load: Awaitable[T]) -> T | None:
        try:
            return await load
        except StorageError:
            return None

    async def load_todos(self, agent_id: str) -> TodoSnapshot | None:
        return await self._quiet(super().load_todos(agent_id))

    async def load_info(self, agent_id: str) -> AgentInfo | None:
        return await self._quiet(super().load_info(agent_id))


# --- closing ----------------------------------------------------------------------------------------------------------


async def _cancel_a_block(ctx: Context) -> object:
    store = await ctx.another()

    async def block() -> None:
        async with store:
            await asyncio.sleep(60)

    task = asyncio.ensure_future(block())
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.wait([task])
    try:
        return await store.load_messages("a")
    except Exception as exc:
        return type(exc).__name__


@mutant("OPS-5", killed_by="async_with_closes", source="`except Exception` around the block", witness=_cancel_a_block)
class StaysOpenOnCancel(EngineStore):
    """Is not closed when the block of its `async with` is cancelled."""

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or issubclass(kind, Exception):
            await super().__aexit__(kind, exc, trace)


async def _close_twice(ctx: Context) -> object:
    store: Any = await ctx.harness.open(ctx.handle)
    await store.save_messages("a", talk("1"))
    first = asyncio.ensure_future(store.close())
    await asyncio.sleep(0)
    first.cancel()
    second = asyncio.ensure_future(store.close())
    await asyncio.wait([first, second])
    return second.cancelled()


@mutant(
    "OPS-5",
    killed_by="a_cancelled_close_can_be_called_again",
    source="a task that is kept, awaited without asyncio.shield",
    witness=_close_twice,
)
class ClosesOnce(EngineStore):
    """Is not closed, and never can be, once a caller of close was cancelled."""

    _once: asyncio.Future[None] | None = None

    async def close(self) -> None:
        if self._once is None:
            self._once = asyncio.ensure_future(self._close())
        await self._once

    async def _close(self) -> None:
        await asyncio.sleep(0)
        await super().close()


@mutant(
    "OPS-5",
    killed_by="every_call_after_close_raises",
    source="methods that are written by what they are called, and not by their parameters",
    witness=seen(lambda s: s.load_messages(agent_id="a")),
    raises="load_messages must take its arguments by the protocol's names: agent_id",
)
class OtherNames(EngineStore):
    """Has parameters with names of its own."""

    async def load_messages(self, agent: str) -> list[Message]:  # type: ignore[override]
        return await super().load_messages(agent)


# --- locks ------------------------------------------------------------------------------------------------------------


async def _write_after_the_loss(ctx: Context) -> object:
    other = await ctx.another()
    await ctx.store.save_info("a", samples.info("a"))
    found = []
    async with ctx.store.acquire_agent_lock("a") as lease:
        await lease.release()
        await other.acquire_agent_lock("a")
        writes = (lambda: ctx.store.save_todos("a", samples.todos("x")), lambda: ctx.store.delete_many(agent_id="a"))
        for write in writes:
            try:
                found.append(await write() is not LockLostError)
            except LockLostError:
                found.append("refused")
    return found


class _Unfenced(Wrapper):
    """Does some writes outside the block of the lease that they are in."""

    unfenced: frozenset[str] = frozenset()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.inner, name)
        if name not in self.unfenced:
            return method

        def outside(*args: Any, **kwargs: Any) -> Any:
            if kwargs.get("fence") is not None:
                return method(*args, **kwargs)
            return asyncio.get_running_loop().create_task(method(*args, **kwargs), context=contextvars.Context())

        return outside


@mutant(
    "LOCK-5",
    killed_by="every_write_inside_async_with_is_fenced",
    source="fences that are looked at in the one table that had them first",
    witness=_write_after_the_loss,
)
class FencesListsOnly(_Unfenced):
    """Inside a block, fences messages, tool calls and events, and no other kind."""

    unfenced = frozenset(
        {
            "save_todos",
            "save_history_window",
            "save_compression_record",
            "save_recovered_file",
            "save_media_cache",
            "save_snapshot",
            "save_info",
        }
    )


@mutant(
    "LOCK-5",
    killed_by="every_write_inside_async_with_is_fenced",
    source="kode-core before its first release",
    witness=_write_after_the_loss,
)
class DeletesManyUnfenced(_Unfenced):
    """Inside a block, fences every write but delete_many."""

    unfenced = frozenset({"delete_many"})


async def _told_of_the_loss(ctx: Context) -> object:
    lease = await ctx.store.acquire_agent_lock("a")
    await lease.release()
    with suppress(LockLostError):
        await lease.renew()
    return lease.is_lost


class _Forgets(HeldLease):
    async def renew(self) -> None:
        try:
            await super().renew()
        finally:
            self._is_lost = False


@mutant(
    "LOCK-3",
    killed_by="a_lost_lease_says_so",
    source="leases that raise, and do not remember",
    witness=_told_of_the_loss,
)
class NeverSaysLost(EngineStore):
    """Has leases that never say that they are lost."""

    def acquire_agent_lock(self, *args: Any, **how: Any) -> Any:
        lock = super().acquire_agent_lock(*args, **how)
        acquire = lock._acquire

        async def acquired() -> Any:
            lease = await acquire()
            lease.__class__ = _Forgets
            return lease

        lock._acquire = acquired
        return lock


@mutant(
    "LIFE-1",
    killed_by="LIFE-2.agents_without_info_are_listed_when_asked_for",
    source="a script of repair that is run at each start: an agent with todos must have been made once",
    witness=seen(
        lambda s: s.save_todos("a", samples.todos("x")),
        lambda s: s.exists("a"),
        restart,
        lambda s: s.exists("a"),
    ),
)
class RepairsInfosWhenItOpens(EngineStore):
    """Saves an info of its own making for each agent that has todos and none, when the store is opened."""

    async def open(self) -> None:
        await super().open()
        for agent_id in await super().list(include_without_info=True):
            if await super().load_todos(agent_id) is not None and not await super().exists(agent_id):
                await super().save_info(agent_id, AgentInfo(agent_id=agent_id, template_id="?", created_at=0))
