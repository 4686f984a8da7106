"""Stores that report the past as the present, lose count, or reveal one caller to another (OPS-1, OPS-3, OPS-12)."""

from __future__ import annotations

import asyncio
from typing import Any

from kode_conformance.context import Context
from kode_conformance.values import samples
from kode_conformance.values.canaries import CANARY, told_by
from msgspec.structs import replace

from conformance.tests.zoo.base import mutant
from kode_core.model import TodoSnapshot
from kode_core.report import StoreHealthStatus, StoreMetrics
from kode_core.store import EngineStore


async def _after_a_refusal(ctx: Context) -> object:
    await asyncio.gather(ctx.store.load_todos(""), return_exceptions=True)
    lease = await ctx.store.acquire_agent_lock("a")
    await lease.release()
    await asyncio.gather(ctx.store.append_messages("a", samples.messages(1), fence=lease), return_exceptions=True)
    return (await ctx.store.health_check()).healthy


@mutant(
    "OPS-1",
    killed_by="a_failure_that_ended_is_no_illness",
    witness=_after_a_refusal,
    source="a health endpoint that shows the last error",
)
class IsIllUntilAWriteSucceeds(EngineStore):
    """Says that it is not healthy when the last append failed, whatever for."""

    _last: Exception | None = None

    async def append_messages(self, agent_id: str, messages: Any, *, fence: Any = None) -> None:
        self._last = None
        try:
            await super().append_messages(agent_id, messages, fence=fence)
        except Exception as exc:
            self._last = exc
            raise

    async def health_check(self) -> StoreHealthStatus:
        status = await super().health_check()
        return status if self._last is None else replace(status, healthy=False, problem="the last append failed")


async def _many_refused(ctx: Context) -> object:
    before = (await ctx.store.get_metrics()).operations.errors
    for _ in range(1200):
        await asyncio.gather(ctx.store.load_todos(""), return_exceptions=True)
    return (await ctx.store.get_metrics()).operations.errors - before


@mutant(
    "OPS-3",
    killed_by="thousands_of_calls_are_counted",
    witness=_many_refused,
    source="len() of a deque(maxlen=1000) of the calls",
)
class CountsTheLastThousand(EngineStore):
    """Counts no more than a thousand errors."""

    async def get_metrics(self) -> StoreMetrics:
        metrics = await super().get_metrics()
        return replace(metrics, operations=replace(metrics.operations, errors=min(metrics.operations.errors, 1000)))


async def _slowest_after_many(ctx: Context) -> object:
    held = await ctx.store.acquire_agent_lock("a")
    waiter = asyncio.ensure_future(ctx.store.acquire_agent_lock("a", wait_ms=5_000).__aenter__())
    await asyncio.sleep(0.2)
    await held.release()
    await waiter
    for _ in range(1200):
        await ctx.store.load_todos("a")
    return (await ctx.store.get_metrics()).performance.max_latency_ms > 150


@mutant(
    "OPS-3",
    killed_by="thousands_of_calls_are_counted",
    witness=_slowest_after_many,
    source="the maximum of a deque(maxlen=1000) of the latencies",
)
class ForgetsTheLongest(EngineStore):
    """Takes the longest of the last thousand calls for the longest of all."""

    async def get_metrics(self) -> StoreMetrics:
        metrics = await super().get_metrics()
        recent = max([*self._context.call_metrics._recent][-1000:], default=0.0) * 1000
        return replace(metrics, performance=replace(metrics.performance, max_latency_ms=recent))


async def _told_of_another(ctx: Context) -> object:
    lease = await ctx.store.acquire_agent_lock("a")
    await lease.release()
    todos = samples.todos(CANARY)
    sound = ctx.store.save_todos("b", todos)
    _, error = await asyncio.gather(sound, ctx.store.save_todos("a", todos, fence=lease), return_exceptions=True)
    return isinstance(error, Exception) and CANARY in told_by(error)


@mutant(
    "OPS-12",
    killed_by="errors_at_once_tell_nothing_of_each_other",
    witness=_told_of_another,
    source="executemany: the error of the driver shows the parameters of the whole batch",
)
class TellsWhatElseWasWritten(EngineStore):
    """Tells in the error of one write which others it was with."""

    _under_way: tuple[TodoSnapshot, ...] = ()

    async def save_todos(self, agent_id: str, snapshot: TodoSnapshot, *, fence: Any = None) -> None:
        others = self._under_way
        self._under_way = (*others, snapshot)
        try:
            await super().save_todos(agent_id, snapshot, fence=fence)
        except Exception as exc:
            if others:
                exc.add_note(f"written together with {others!r}")
            raise
        finally:
            self._under_way = ()
