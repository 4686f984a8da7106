"""Stores that do large calls in pieces, or look less closely at them (VAL-2, LOCK-5, OPS-9, MSG-3)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from kode_conformance.context import Context
from kode_conformance.values import samples
from kode_conformance.values.large import runs

from conformance.tests.zoo.base import OnSqlite, mutant
from kode_core.errors import KodeError
from kode_core.store import EngineStore


async def _refused(ctx: Context) -> object:
    bad = samples.message().replace(metadata={"x": float("nan")})
    with suppress(KodeError):
        await ctx.store.append_messages("a", [*samples.messages(1000), bad])
    return len(await ctx.store.load_messages("a"))


@mutant(
    "VAL-2",
    killed_by="the_last_of_many_is_refused_with_all",
    source="executemany() of a thousand rows at a time, each in a transaction of its own",
    witness=_refused,
)
class AppendsThousands(EngineStore):
    """Appends a thousand messages at a time, and sees what cannot be stored when it comes to it."""

    async def append_messages(self, agent_id: str, messages: Sequence[Any], *, fence: Any = None) -> None:
        for start in range(0, max(1, len(messages)), 1000):
            await super().append_messages(agent_id, messages[start : start + 1000], fence=fence)


async def _fenced(ctx: Context) -> object:
    lease = await ctx.store.acquire_agent_lock("a")
    await lease.release()
    with suppress(KodeError):
        await ctx.store.upsert_tool_call_records("a", [samples.tool_call(i) for i in range(501)], fence=lease)
    return len(await ctx.store.load_tool_call_records("a"))


@mutant(
    "LOCK-5",
    killed_by="nothing_of_a_large_call_under_a_lost_lease",
    source="a bulk path with no room for the condition on the lease",
    witness=_fenced,
)
class FencesSmallUpserts(EngineStore):
    """Has another path for more than five hundred tool calls, which knows no fence."""

    async def upsert_tool_call_records(self, agent_id: str, records: Sequence[Any], *, fence: Any = None) -> None:
        await super().upsert_tool_call_records(agent_id, records, fence=fence if len(records) <= 500 else None)


async def _cancelled(ctx: Context) -> object:
    task = asyncio.ensure_future(ctx.store.save_media_cache("a", [samples.media(f"k {i}") for i in range(301)]))
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.wait([task])
    return len(await ctx.store.load_media_cache("a"))


@mutant(
    "OPS-9",
    killed_by="a_large_call_that_is_cancelled",
    source="a loop of puts, one for each hundred",
    witness=_cancelled,
)
class SavesMediaByHundreds(EngineStore):
    """Saves media a hundred at a time, so that a cancelled call leaves some of them."""

    async def save_media_cache(self, agent_id: str, records: Sequence[Any], *, fence: Any = None) -> None:
        for end in range(100, len(records), 100):
            await super().save_media_cache(agent_id, records[:end], fence=fence)
            await asyncio.sleep(0.02)
        await super().save_media_cache(agent_id, records, fence=fence)


async def _at_once(ctx: Context) -> object:
    both = ([samples.event(i, name=f"{tag} {i}") for i in range(200)] for tag in "xy")
    await asyncio.gather(*(ctx.store.append_events("a", events) for events in both))
    found = [event.event.data["name"] async for event in ctx.store.read_events("a", after_offset=0)]
    return runs(found).count(",")


@mutant(
    "EVT-1",
    killed_by="MSG-1.two_large_calls_at_once",
    source="a producer that sends batches of a hundred",
    witness=_at_once,
)
class AppendsEventsByHundreds(EngineStore):
    """Appends a hundred events at a time, between which others get in."""

    async def append_events(self, agent_id: str, timelines: Sequence[Any], *, fence: Any = None) -> Sequence[int]:
        offsets: list[int] = []
        for start in range(0, len(timelines), 100):
            offsets += await super().append_events(agent_id, timelines[start : start + 100], fence=fence)
            await asyncio.sleep(0.001)
        return offsets


async def _polled(ctx: Context) -> object:
    task = asyncio.ensure_future(ctx.store.save_tool_call_records("a", [samples.tool_call(i) for i in range(1101)]))
    seen = set()
    while not task.done():
        seen.add(len(await ctx.store.load_tool_call_records("a")))
        await asyncio.sleep(0)
    return sorted(seen - {0, 1101})


@mutant(
    "TC-1",
    killed_by="MSG-1.more_than_a_thousand_are_seen_whole",
    source="bulk requests of a thousand actions",
    on=OnSqlite,
    witness=_polled,
)
class SavesCallsByThousands(EngineStore):
    """Saves a thousand tool calls, and then the others."""

    async def save_tool_call_records(self, agent_id: str, records: Sequence[Any], *, fence: Any = None) -> None:
        await super().save_tool_call_records(agent_id, records[:1000], fence=fence)
        if records[1000:]:
            await asyncio.sleep(0.05)
            await super().save_tool_call_records(agent_id, records, fence=fence)
