"""Stores that are right with the usual deadline and limit of memory, and not with others (OPS-9, OPS-14)."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from kode_conformance.context import Context
from kode_conformance.instruments.clock import clock_off
from kode_conformance.values import samples

from conformance.tests.zoo.base import OnSqlite, mutant
from conformance.tests.zoo.witnesses import talk
from kode_core.errors import StoreTimeoutError
from kode_core.model import Message
from kode_core.store import EngineStore


async def _with_weeks(ctx: Context) -> object:
    store = await ctx.another(timeout_ms=2**31 - 1)
    (end,) = await asyncio.gather(store.save_todos("a", samples.todos("x")), return_exceptions=True)
    return type(end).__name__


@mutant(
    "OPS-9",
    killed_by="deadlines_of_a_millisecond_and_of_weeks",
    witness=_with_weeks,
    source="a C int of microseconds: a deadline of weeks is one of the past",
)
class DeadlinesAreMicrosecondsInAnInt(EngineStore):
    """Gives up at once where the deadline in microseconds needs more than 32 bits."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        micros = int(self._context.timeout * 1_000_000) & 0xFFFFFFFF
        self._is_over = micros >= 2**31

    async def save_todos(self, agent_id: str, snapshot: Any, *, fence: Any = None) -> None:
        if self._is_over:
            raise StoreTimeoutError("save_todos was not done in time; nothing was written")
        await super().save_todos(agent_id, snapshot, fence=fence)


class _Remembers(EngineStore):
    """Remembers the lists that it saved, to save only what changed."""

    def __init__(self, *args: Any, memory_limit_bytes: int = 2**26, **options: Any) -> None:
        super().__init__(*args, memory_limit_bytes=memory_limit_bytes, **options)
        self._limit = memory_limit_bytes
        self._lists: dict[str, tuple[float, list[Message]]] = {}

    def _remember(self, agent_id: str, messages: Any) -> None:
        self._lists[agent_id] = (time.time(), [*messages])


async def _with_nothing(ctx: Context) -> object:
    store = await ctx.another(memory_limit_bytes=0)
    await store.save_messages("a", talk("1", "2"))
    await store.save_messages("a", talk("1"))
    return len(await store.load_messages("a"))


@mutant(
    "OPS-14",
    killed_by="a_limit_of_memory_changes_no_answer",
    witness=_with_nothing,
    source="`if self._cache:` for whether the list is known: an empty cache, and one that is off, are alike",
)
class TakesNoMemoryForNoList(_Remembers):
    """Takes a list for a new one, of which nothing need be removed, where it may remember nothing."""

    async def save_messages(self, agent_id: str, messages: Any, *, fence: Any = None) -> None:
        if self._limit == 0 and messages:
            stored = await self.load_messages(agent_id)
            messages = [*messages, *stored[len(messages) :]]
        await super().save_messages(agent_id, messages, fence=fence)


async def _after_the_clock_stepped(ctx: Context) -> object:
    store = await ctx.another(memory_limit_bytes=2**20)
    with clock_off(3600):
        await store.save_messages("a", talk("x" * 2**20))
    await store.save_messages("b", talk("1"))
    return "a" in getattr(store, "_lists", {})


@mutant(
    "OPS-14",
    killed_by="memory_is_bounded_under_any_clock",
    on=OnSqlite,
    witness=_after_the_clock_stepped,
    source="entries that expire by the time of day",
)
class ForgetsByTheTimeOfDay(_Remembers):
    """Forgets lists that it used before now, which a list of the future was not."""

    async def save_messages(self, agent_id: str, messages: Any, *, fence: Any = None) -> None:
        await super().save_messages(agent_id, messages, fence=fence)
        now = time.time()
        self._lists = {name: entry for name, entry in self._lists.items() if entry[0] > now}
        self._remember(agent_id, messages)
