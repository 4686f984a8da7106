"""Stores that are hard to operate (OPS clauses)."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from kode_conformance.context import Context
from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import OnJson, OnSqlite, mutant
from conformance.tests.zoo.witnesses import happened, seen, talk
from kode_core.batch import ListKind, ListRows
from kode_core.codec import digest
from kode_core.errors import CorruptRecordError, KodeError
from kode_core.layers import Layer
from kode_core.model import Message, ToolUseBlock
from kode_core.report import ConsistencyCheckResult, StoreHealthStatus, StoreMetrics
from kode_core.store import EngineStore

# --- health -----------------------------------------------------------------------------------------------------------


async def _health_after_close(ctx: Context) -> object:
    store = await ctx.another()
    await store.close()
    return (await store.health_check()).healthy


@mutant(
    "OPS-1", killed_by="health_tells_and_never_raises", source="`return {healthy: true}`", witness=_health_after_close
)
class AlwaysHealthy(EngineStore):
    """Says that it is healthy, whatever is the case."""

    async def health_check(self) -> StoreHealthStatus:
        return StoreHealthStatus(healthy=True, checked_at=0)


async def _health(ctx: Context) -> object:
    store = await ctx.another()
    await store.close()
    try:
        return (await store.health_check()).healthy
    except KodeError:
        return "raised"


@mutant(
    "OPS-1",
    killed_by="health_tells_and_never_raises",
    source="SELECT 1 without a try",
    witness=_health,
    raises="StoreClosedError",
)
class HealthRaises(EngineStore):
    """Raises when it is asked how it is after it was closed."""

    async def health_check(self) -> StoreHealthStatus:
        await self.exists("a")
        return await super().health_check()


async def _healths(ctx: Context) -> object:
    found = await asyncio.gather(*(ctx.store.health_check() for _ in range(3)))
    return [status.healthy for status in found]


@mutant(
    "OPS-1",
    killed_by="health_is_told_to_many_at_once",
    source="KODE SDK SqliteStore: all processes write and remove one file .health-check",
    witness=_healths,
)
class HealthChecksCollide(EngineStore):
    """Is not healthy while it is being asked."""

    _asking = False

    async def health_check(self) -> StoreHealthStatus:
        if self._asking:
            return StoreHealthStatus(healthy=False, problem="ENOENT: .health-check", checked_at=0)
        self._asking = True
        await asyncio.sleep(0)
        self._asking = False
        return await super().health_check()


# --- consistency ------------------------------------------------------------------------------------------------------

_DANGLING = [Message("assistant", [ToolUseBlock("c", "x", {})])]


async def _consistency(ctx: Context) -> object:
    await ctx.store.save_messages("a", _DANGLING)
    return (await ctx.store.check_consistency("a")).consistent


@mutant(
    "OPS-2",
    killed_by="dangling_tool_uses_are_found",
    source="KODE SDK SqliteStore: checks two columns that cannot be null, and files not at all",
    witness=_consistency,
)
class AlwaysConsistent(EngineStore):
    """Finds nothing wrong, ever."""

    async def check_consistency(self, agent_id: str | None = None, **more: Any) -> ConsistencyCheckResult:
        found = await super().check_consistency(agent_id, **more)
        return replace(found, consistent=True, issues=())


async def _check_and_read(ctx: Context) -> object:
    await ctx.store.append_events("a", happened(0))
    await ctx.store.save_messages("a", _DANGLING)
    await ctx.store.check_consistency("a")
    return len(await ctx.store.load_messages("a")), [e async for e in ctx.store.read_events("a")]


@mutant(
    "OPS-2",
    killed_by="a_sound_agent_is_consistent",
    source="fsck -y",
    witness=_check_and_read,
)
class RepairsWithoutAsking(EngineStore):
    """Deletes an agent's events and makes it anew when it is to be checked."""

    async def check_consistency(self, agent_id: str | None = None, **more: Any) -> ConsistencyCheckResult:
        found = await super().check_consistency(agent_id, **more)
        info = agent_id and await self.load_info(agent_id)
        if agent_id is not None:
            messages = await self.load_messages(agent_id)
            await self.delete(agent_id)
            await self.save_turn(agent_id, messages=messages, info=info or None)
        return found


@mutant(
    "OPS-2",
    killed_by="a_sound_agent_is_consistent",
    source="checks that take gaps of offsets for losses",
    witness=seen(
        lambda s: s.append_events("a", happened(0)),
        lambda s: s.save_messages("a", talk("1")),
        lambda s: _issues(s),
    ),
)
class CriesWolf(EngineStore):
    """Takes a media cache and a snapshot for orphans."""

    async def check_consistency(self, agent_id: str | None = None, **more: Any) -> ConsistencyCheckResult:
        found = await super().check_consistency(agent_id, **more)
        return replace(found, consistent=False)


async def _issues(store: Any) -> bool:
    return bool((await store.check_consistency("a")).consistent)


# --- metrics ----------------------------------------------------------------------------------------------------------


async def _saves_and_errors(ctx: Context) -> object:
    await ctx.store.save_messages("a", talk("1"))
    with suppress(KodeError):
        await ctx.store.save_messages("", talk("1"))
    operations = (await ctx.store.get_metrics()).operations
    return operations.saves, operations.errors


@mutant(
    "OPS-3",
    killed_by="metrics_count_what_happened",
    source="KODE SDK SqliteStore and PostgresStore: counters that nobody moves",
    witness=_saves_and_errors,
)
class NeverCounts(EngineStore):
    """Has metrics that are always 0."""

    async def get_metrics(self) -> StoreMetrics:
        metrics = await super().get_metrics()
        return replace(metrics, operations=replace(metrics.operations, saves=0, loads=0, queries=0, deletes=0))


@mutant(
    "OPS-3",
    killed_by="metrics_count_what_happened",
    source="counters that move in a `finally`",
    witness=_saves_and_errors,
)
class CountsFailuresAsSaves(EngineStore):
    """Counts a save that failed as a save, too."""

    async def get_metrics(self) -> StoreMetrics:
        metrics = await super().get_metrics()
        counts = metrics.operations
        return replace(metrics, operations=replace(counts, saves=counts.saves + counts.errors))


# --- damage -----------------------------------------------------------------------------------------------------------


async def _damaged(ctx: Context) -> object:
    await ctx.store.save_turn("a", messages=samples.messages(2), info=samples.info("a"))
    await ctx.harness.corrupt(ctx.handle, "a")
    try:
        return [message.text for message in await (await ctx.another()).load_messages("a")]
    except CorruptRecordError:
        return "corrupt"


@mutant(
    "OPS-4",
    killed_by="corrupt_records_are_named",
    on=OnJson,
    source="KODE SDK JSONStore: every error of reading is an empty result, and the next save overwrites",
    witness=_damaged,
)
class DamageIsNothing(EngineStore):
    """Loads an empty list where a record is damaged."""

    async def load_messages(self, agent_id: str) -> list[Message]:
        try:
            return await super().load_messages(agent_id)
        except CorruptRecordError:
            return []


@mutant(
    "OPS-4",
    killed_by="corrupt_records_are_named",
    on=OnSqlite,
    source="stores without checksums",
    witness=_damaged,
)
class BelievesTheDisk(Layer):
    """Does not look whether a record is what was written."""

    async def rows(self, agent_id: str, kind: ListKind) -> ListRows:
        found = await super().rows(agent_id, kind)
        believed = [(replace(body, digest=digest(body.text.encode())), at) for body, at in found.rows]
        return replace(found, rows=believed)
