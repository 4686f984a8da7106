"""Events for browsers: stored ones, then live ones, with heartbeats, until the chat or the server ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from enum import Enum

from kode_core import AgentInfo, Bookmark, Store, StoredEvent


class Sign(Enum):
    """Items of a stream that are not events."""

    HEARTBEAT = "the connection is alive"
    GONE = "the chat was deleted"


async def follow(
    store: Store, info: AgentInfo, after_offset: int, *, heartbeat_s: float, stopping: asyncio.Event
) -> AsyncGenerator[StoredEvent | Sign, None]:
    """Yield each event of the chat once, a heartbeat after each quiet interval, and GONE once the chat is deleted.

    The wait for the next event is never cancelled: a cancelled follower has ended.
    """
    events = store.follow_events(info.agent_id, after_offset=after_offset)
    upcoming = asyncio.ensure_future(anext(events))
    stopped = asyncio.ensure_future(stopping.wait())
    try:
        while True:
            await asyncio.wait([upcoming, stopped], timeout=heartbeat_s, return_when=asyncio.FIRST_COMPLETED)
            if stopped.done():
                return  # the browser reconnects, to another worker, and sends the last offset
            if upcoming.done():
                yield upcoming.result()
                upcoming = asyncio.ensure_future(anext(events))
            elif await is_same(store, info):
                yield Sign.HEARTBEAT
            else:
                yield Sign.GONE
                return
    finally:
        upcoming.cancel()
        stopped.cancel()
        await asyncio.gather(upcoming, stopped, return_exceptions=True)


async def is_same(store: Store, info: AgentInfo) -> bool:
    """False if the chat was deleted, even if a new chat has its name."""
    now = await store.load_info(info.agent_id)
    return now is not None and now.created_at == info.created_at


async def event_stream(followed: AsyncGenerator[StoredEvent | Sign, None]) -> AsyncIterator[str]:
    """The text of server-sent events. The id of each is its offset, which the browser sends when it reconnects."""
    async with aclosing(followed):
        yield "retry: 500\n\n"
        async for item in followed:
            if item is Sign.HEARTBEAT:
                yield ": heartbeat\n\n"
            elif isinstance(item, StoredEvent):
                yield f"id: {item.offset}\nevent: {item.event.type}\ndata: {json.dumps(item.event.data)}\n\n"
            else:
                yield "event: gone\ndata: {}\n\n"


async def some_offset(store: Store, chat: str) -> int:
    """The offset of the chat's newest events: all later events come after it."""
    last = await store.last_bookmark(chat)
    if last is None:
        return 0
    return max([e.offset async for e in store.read_events(chat, since=Bookmark(last.seq - 1, 0))], default=0)
