"""Appending, reading and following events."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from typing import assert_type

from kode_core import AgentEvent, Bookmark, ExtendedStore, Heartbeat, StoredEvent, Timeline, now_ms


async def appended(store: ExtendedStore) -> None:
    event = AgentEvent("monitor", "tool_failed", {"callId": "call-1"})
    entry = Timeline(cursor=1, bookmark=Bookmark(1, now_ms()), event=event)
    assert_type(await store.append_event("agt-1", entry), int)
    assert_type(await store.append_events("agt-1", [entry]), Sequence[int])
    assert_type(await store.last_bookmark("agt-1"), Bookmark | None)
    assert_type(await store.emit("agt-1", "tool_failed", {"callId": "call-1"}, channel="monitor"), StoredEvent)
    assert_type(await store.emit_many("agt-1", [event]), Sequence[StoredEvent])
    assert_type(await store.save_turn("agt-1", events=[entry]), Sequence[int])

    await store.append_event("agt-1", event)  # refused: arg-type
    await store.append_event("agt-1", [entry])  # refused: arg-type
    await store.emit("agt-1", "done", channel="debug")  # refused: arg-type
    await store.emit_many("agt-1", [entry])  # refused: list-item
    AgentEvent("debug", "tool_failed", {})  # refused: arg-type
    Timeline(cursor=1, bookmark=1, event=event)  # refused: arg-type


async def read(store: ExtendedStore) -> None:
    async for stored in store.read_events("agt-1", since=Bookmark(1, 0), channel="monitor"):
        assert_type(stored, StoredEvent)
        assert_type(stored.offset, int)
        print(stored.event.type, stored.event.data)
    async for stored in store.follow_events("agt-1", after_offset=7):
        assert_type(stored, StoredEvent)
    async with aclosing(store.follow_events("agt-1", heartbeat_ms=15_000)) as following:
        async for item in following:
            assert_type(item, StoredEvent | Heartbeat)
    assert_type(await anext(store.follow_events("agt-1")), StoredEvent)

    await store.read_events("agt-1")  # refused: misc
    store.read_events("agt-1", since=1)  # refused: arg-type
    store.read_events("agt-1", channel="all")  # refused: arg-type
    store.follow_events("agt-1", after_offset=None)  # refused: call-overload
