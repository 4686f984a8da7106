"""Stores that are unusual, and keep the contract in every point."""

from __future__ import annotations

import time
from typing import Any

from conformance.tests.zoo.angels import Offsets, angel
from conformance.tests.zoo.base import OnMemory, cursor_after
from kode_core.query import message_query, session_query, tool_call_query
from kode_core.store import EngineStore


@angel(OnMemory)
class OffsetsAreFarApart(Offsets):
    """Gives offsets that are a million apart, as a log does that has the segment in the upper bits of an offset."""

    # EVT-2: an offset grows and never comes again, and "there may be gaps"; nothing says that the first one is 1, nor
    # that there are events at offset + 1. Any integer may be given as after_offset, also one between two offsets.

    factor = 2**20


@angel(OnMemory)
class LastPageMayBeEmpty(EngineStore):
    """Gives a cursor with every full page, as DynamoDB does, so that the last page may be an empty one."""

    # QRY-5: following cursors gives each record exactly once: an empty page at the end adds nothing. A service
    # that reads `limit` records does not know whether there are more.

    async def query_sessions(self, **filters: Any) -> Any:
        return _with_cursor(await super().query_sessions(**filters), session_query, filters)

    async def query_messages(self, **filters: Any) -> Any:
        return _with_cursor(await super().query_messages(**filters), message_query, filters)

    async def query_tool_calls(self, **filters: Any) -> Any:
        return _with_cursor(await super().query_tool_calls(**filters), tool_call_query, filters)


def _with_cursor(page: Any, parse: Any, filters: Any) -> Any:
    query = parse(filters)
    if page and page.next_cursor is None and len(page) == query.limit:
        last = page[-1]
        sort_by = getattr(query, "sort_by", "created_at")
        place = (last.position,) if hasattr(last, "position") else ()
        page.next_cursor = cursor_after(query, (getattr(last, sort_by), last.agent_id, *place))
    return page


@angel(OnMemory)
class ServerClockIsAhead(EngineStore):
    """Takes its times from a server whose clock is 90 s ahead of the one of the machine it is used on."""

    # MSG-4 and INFO-2: the time of a message, and when a session was updated, is "the time that the store gave it";
    # VAL-5 asks for milliseconds since the epoch in UTC. Nothing says whose clock it is, and servers' clocks differ.

    def __init__(self, opener: Any, **options: Any) -> None:
        options.setdefault("clock", lambda: time.time_ns() // 1_000_000 + 90_000)
        super().__init__(opener, **options)
