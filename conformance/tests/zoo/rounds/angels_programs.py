"""Stores that are unusual and keep the contract."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from conformance.tests.zoo.angels import angel
from conformance.tests.zoo.base import MemoryLayer, OnMemory, Wrapper, cursor_after
from kode_core.query import message_query, session_query, tool_call_query

_STEP = 1_000


class _Stepped:
    """A stream of events and heartbeats with other offsets."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.aclose = stream.aclose

    def __aiter__(self) -> Any:
        return self

    async def __anext__(self) -> Any:
        return msgspec.structs.replace(item := await anext(self._stream), offset=item.offset * _STEP)


@angel(OnMemory)
class GivesEveryThousandthOffset(Wrapper):
    """Gives offsets in steps of a thousand, as a log does that gives the byte or the page where an event stands."""

    # EVT-2: offsets grow, "there may be gaps"; `after_offset` may be any number, also one that no event has.

    @staticmethod
    def _before(after_offset: Any) -> Any:
        is_offset = type(after_offset) is int and -(2**63) <= after_offset < 2**63
        return after_offset // _STEP if is_offset else after_offset  # a value that is no offset is refused as it is

    async def append_event(self, agent_id: str, timeline: Any, *, fence: Any = None) -> int:
        return await self.inner.append_event(agent_id, timeline, fence=fence) * _STEP

    async def append_events(self, agent_id: str, timelines: Any, *, fence: Any = None) -> Any:
        return [offset * _STEP for offset in await self.inner.append_events(agent_id, timelines, fence=fence)]

    async def save_turn(self, agent_id: str, **parts: Any) -> Any:
        return [offset * _STEP for offset in await self.inner.save_turn(agent_id, **parts)]

    async def emit(self, agent_id: str, *args: Any, **given: Any) -> Any:
        event = await self.inner.emit(agent_id, *args, **given)
        return event.replace(offset=event.offset * _STEP)

    async def emit_many(self, agent_id: str, events: Any, **given: Any) -> Any:
        found = await self.inner.emit_many(agent_id, events, **given)
        return [event.replace(offset=event.offset * _STEP) for event in found]

    async def load_agent(self, agent_id: str, **given: Any) -> Any:
        found = await self.inner.load_agent(agent_id, **given)
        return found and found.replace(event_offsets=[offset * _STEP for offset in found.event_offsets])

    async def prune(self, agent_id: str, *, events_before_offset: Any = None, **given: Any) -> Any:
        before = events_before_offset
        is_offset = type(before) is int and 0 <= before < 2**63  # another one is refused as it is
        step = -(-before // _STEP) if is_offset else before
        return await self.inner.prune(agent_id, events_before_offset=step, **given)

    def read_events(self, agent_id: str, *, after_offset: Any = None, **filters: Any) -> Any:
        return self._stepped(self.inner.read_events(agent_id, after_offset=self._before(after_offset), **filters))

    def follow_events(self, agent_id: str, *, after_offset: Any = 0, **filters: Any) -> Any:
        return _Stepped(self.inner.follow_events(agent_id, after_offset=self._before(after_offset), **filters))

    @staticmethod
    async def _stepped(events: Any) -> Any:
        try:
            async for event in events:
                yield event.replace(offset=event.offset * _STEP)
        finally:
            await events.aclose()


@angel(OnMemory)
class GivesACursorWithEveryFullPage(Wrapper):
    """Gives a cursor with a full page that is the last, and an empty page for it, as DynamoDB does."""

    # QRY-5: "a full one may be the last and still have a cursor, to an empty page".

    async def query_sessions(self, **filters: Any) -> Any:
        page = await self.inner.query_sessions(**filters)
        query = session_query(filters)  # type: ignore[arg-type]
        return self._go_on(page, query, lambda last: (getattr(last, query.sort_by), last.agent_id))

    async def query_messages(self, **filters: Any) -> Any:
        page = await self.inner.query_messages(**filters)
        return self._go_on(page, message_query(filters), self._place)  # type: ignore[arg-type]

    async def query_tool_calls(self, **filters: Any) -> Any:
        page = await self.inner.query_tool_calls(**filters)
        return self._go_on(page, tool_call_query(filters), self._place)  # type: ignore[arg-type]

    @staticmethod
    def _place(last: Any) -> tuple[Any, ...]:
        return last.created_at, last.agent_id, last.position

    @staticmethod
    def _go_on(page: Any, query: Any, place: Any) -> Any:
        if page and page.next_cursor is None and len(page) == query.limit:
            page.next_cursor = cursor_after(query, place(page[-1]))
        return page


@angel(OnMemory)
class CountsByTheClock(MemoryLayer):
    """Takes the microseconds since 1970 for tokens, and for the first offsets of an agent, unless those before are as
    high.

    So tokens and offsets have sixteen digits and large gaps, and an agent's first offset is nowhere near 1.
    """

    # LOCK-5: "a token that only grows for its agent"; EVT-2: "there may be gaps". Nothing says where either begins.

    def _wind(self) -> None:
        self.space.counter = max(self.space.counter, time.time_ns() // 1_000)

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        self._wind()
        return await super().acquire_lease(agent_id, owner, ttl_ms)

    async def commit(self, batches: Any) -> Any:
        self._wind()
        return await super().commit(batches)

    async def fork(self, agent_id: str, children: Any, expect: Any, now: int) -> bool:
        self._wind()
        return await super().fork(agent_id, children, expect, now)
