"""Stores that remember deleted agents, or trust the clock (LIFE-4, MSG-4, MSG-8)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, ClassVar

from kode_conformance.context import Context
from kode_conformance.instruments.clock import clock_off
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import mutant
from conformance.tests.zoo.witnesses import seen
from kode_core.query import Page
from kode_core.store import EngineStore


@mutant(
    "LIFE-4",
    killed_by="every_write_is_new_after_every_delete",
    tier=Tier.STANDARD,  # each write meets one of the ways to delete in the tier quick, and all of them here
    source="a cache of the last value that was written, cleared by delete and not by delete_many",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: s.save_recovered_file("a", samples.recovered()),
        lambda s: s.delete_many(agent_id="a"),
        lambda s: s.save_recovered_file("a", samples.recovered()),
        lambda s: s.load_recovered_files("a"),
    ),
)
class SavesFilesThatDiffer(EngineStore):
    """Does not save a recovered file that it saved before, though delete_many deleted the agent."""

    def __init__(self, opener: Any, **options: Any) -> None:
        super().__init__(opener, **options)
        self._saved: dict[str, list[Any]] = {}

    async def save_recovered_file(self, agent_id: str, file: Any, *, fence: Any = None) -> None:
        saved = self._saved.setdefault(agent_id, [])
        if file not in saved:
            await super().save_recovered_file(agent_id, file, fence=fence)
            saved.append(file)

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        self._saved.pop(agent_id, None)
        await super().delete(agent_id, fence=fence)


async def _times(ctx: Context) -> object:
    with clock_off(-7200):
        await ctx.store.append_messages("a", samples.messages(1))
    await ctx.store.delete("a")
    await ctx.store.append_messages("a", samples.messages(1))
    await ctx.store.save_messages("b", samples.messages(1))
    return [
        message.agent_id for message in await ctx.store.query_messages(created_after=time.time_ns() // 10**6 - 10**6)
    ]


@mutant(
    "MSG-4",
    killed_by="LIFE-4.messages_have_new_times_after_every_delete",
    source="a table of times by agent and hash of the text, which nothing deletes from",
    witness=_times,
)
class KeepsTimesOfTexts(EngineStore):
    """Gives a message the time at which its agent had that text first, though the agent was deleted since."""

    def __init__(self, opener: Any, **options: Any) -> None:
        super().__init__(opener, **options)
        self._times: dict[tuple[str, str], int] = {}

    async def append_messages(self, agent_id: str, messages: Sequence[Any], *, fence: Any = None) -> None:
        await super().append_messages(agent_id, messages, fence=fence)
        for message in await super().query_messages(agent_id=agent_id):
            self._times.setdefault((agent_id, message.text), message.created_at)

    async def query_messages(self, **filters: Any) -> Any:
        page = await super().query_messages(**filters)
        known = [replace(m, created_at=self._times.get((m.agent_id, m.text), m.created_at)) for m in page]
        since = filters.get("created_after", 0)
        return Page([m for m in known if m.created_at >= since], page.next_cursor, page.left_out)


async def _stepped(ctx: Context) -> object:
    await ctx.store.save_history_window("a", samples.window(timestamp=1))
    with clock_off(-60):
        await ctx.store.save_history_window("a", samples.window(timestamp=2))
    return [window.timestamp for window in await ctx.store.load_history_windows("a")]


@mutant(
    "MSG-8",
    killed_by="MSG-4.no_write_is_lost_under_any_clock",
    source="the last writer wins, by the clock of the writer",
    witness=_stepped,
)
class TheLatestClockWins(EngineStore):
    """Keeps a history window from being saved by somebody whose clock is behind."""

    _latest: ClassVar[dict[str, float]] = {}

    async def save_history_window(self, agent_id: str, window: Any, *, fence: Any = None) -> None:
        now = time.time()
        if now >= self._latest.get(agent_id, 0):
            self._latest[agent_id] = now
            await super().save_history_window(agent_id, window, fence=fence)
