"""Events for browsers: stored ones, then live ones, with heartbeats, until the chat or the server ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing

from kode_core import AgentDeletedError, Bookmark, EventStream, Heartbeat, Store, StoredEvent


async def event_stream(events: EventStream[StoredEvent | Heartbeat], stopping: asyncio.Event) -> AsyncIterator[str]:
    """The text of server-sent events. The id of each is its offset, which the browser sends when it reconnects."""
    closing = asyncio.ensure_future(closed_when(stopping, events))
    try:
        async with aclosing(events):
            yield "retry: 500\n\n"
            async for item in events:
                if isinstance(item, Heartbeat):
                    yield ": heartbeat\n\n"
                else:
                    yield f"id: {item.offset}\nevent: {item.event.type}\ndata: {json.dumps(item.event.data)}\n\n"
    except AgentDeletedError:
        yield "event: gone\ndata: {}\n\n"
    finally:
        closing.cancel()


async def closed_when(stopping: asyncio.Event, events: EventStream[object]) -> None:
    """End the stream when the server stops: the browser reconnects, to another worker, and sends the last offset."""
    await stopping.wait()
    await events.aclose()


async def some_offset(store: Store, chat: str) -> int:
    """The offset of the chat's newest events: all later events come after it."""
    last = await store.last_bookmark(chat)
    if last is None:
        return 0
    return max([e.offset async for e in store.read_events(chat, since=Bookmark(last.seq - 1, 0))], default=0)
