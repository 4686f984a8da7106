"""Stores that forget, after some time, what they need for repeats and for the next agent (MSG-12, EVT-4, LIFE-3)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from kode_conformance.context import Context
from kode_conformance.instruments.clock import clock_off
from kode_conformance.values import samples

from conformance.tests.zoo.base import CommittingLayer, mutant
from conformance.tests.zoo.witnesses import happened
from kode_core.model import AppendedMessage, Message
from kode_core.store import EngineStore

_DAY_S: Final = 86_400


async def _a_key_a_month_later(ctx: Context) -> object:
    found = await ctx.store.append_messages_once("a", {"k": samples.message()})
    with clock_off(30 * _DAY_S):
        found += await ctx.store.append_messages_once("a", {"k": samples.message()})
    return [one.is_new for one in found]


@mutant(
    "MSG-12",
    killed_by="repeats_are_known_however_late",
    source="a TTL index of seven days on the collection of idempotency keys",
    witness=_a_key_a_month_later,
)
class ForgetsKeysAfterAWeek(EngineStore):
    """Appends a message again under a key that is older than a week."""

    def __init__(self, opener: Any, **options: Any) -> None:
        super().__init__(opener, **options)
        self._first: dict[tuple[str, str], float] = {}

    async def append_messages_once(
        self, agent_id: str, messages: Mapping[str, Message], **how: Any
    ) -> list[AppendedMessage]:
        found = await super().append_messages_once(agent_id, messages, **how)
        for i, (key, message) in enumerate(messages.items()):
            first = self._first.setdefault((agent_id, key), time.time())
            if not found[i].is_new and time.time() - first > 7 * _DAY_S:
                await self.append_messages(agent_id, [message])
                count = len(await self.load_messages(agent_id))
                found[i] = AppendedMessage(count - 1, True)
        return found


async def _an_entry_ten_minutes_later(ctx: Context) -> object:
    first = await ctx.store.append_event("a", samples.event(1))
    with clock_off(600):
        return await ctx.store.append_event("a", samples.event(1)) == first


@mutant(
    "EVT-4",
    killed_by="MSG-12.repeats_are_known_however_late",
    source="a queue with content-based deduplication, which compares a message with those of the last five minutes",
    witness=_an_entry_ten_minutes_later,
)
class ComparesEntriesForFiveMinutes(CommittingLayer):
    """Stores an entry again that is appended a second time more than five minutes later."""

    def committing(self, batch: Any, commit: Callable[[Any], Any]) -> Any:
        begun: dict[str, int] = vars(self.space).setdefault("begun", {})
        state = self.space.states.get(batch.agent_id)
        old = batch.now - begun.setdefault(batch.agent_id, batch.now) > 300_000
        if state is None or not batch.events or not old:
            return commit(batch)
        log = state.log
        known = type(log).find
        kind = type("Forgetful", (type(log),), {"__slots__": (), "find": lambda self, seq, digest: None})
        log.__class__ = kind
        try:
            return commit(batch)
        finally:
            log.__class__ = next(base for base in kind.__mro__[1:] if base.find is known)


async def _the_next_agent_a_month_later(ctx: Context) -> object:
    offsets = list(await ctx.store.append_events("a", happened(1, 2, 3)))
    await ctx.store.delete("a")
    with clock_off(30 * _DAY_S):
        return await ctx.store.append_event("a", samples.event(1)) > offsets[-1]


@mutant(
    "LIFE-3",
    killed_by="the_next_agent_goes_on_however_late",
    source="Cassandra: gc_grace_seconds, ten days, after which a tombstone is gone",
    witness=_the_next_agent_a_month_later,
)
class SweepsTheCountsOfTheDeleted(CommittingLayer):
    """Forgets, after ten days, which offsets and tokens deleted agents had."""

    def committing(self, batch: Any, commit: Callable[[Any], Any]) -> Any:
        last = vars(self.space).get("last_commit", batch.now)
        if batch.now - last > 10 * _DAY_S * 1000:
            self.space.counter = 0
        vars(self.space)["last_commit"] = batch.now
        return commit(batch)
