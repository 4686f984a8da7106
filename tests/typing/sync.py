"""Synchronous stores: their methods have the types of the async ones."""

from __future__ import annotations

from typing import assert_type

from kode_core import AgentInfo, Message, Page, ScopedStore, SessionInfo, StoredEvent, StoredMessage, lazy_store
from kode_core.sync import SyncIterator, SyncLease, SyncStore, open_store

store = open_store("sqlite:///agents.db", durability="fast")
assert_type(store, SyncStore)
assert_type(lazy_store("memory:"), ScopedStore)
assert_type(store.load_messages("a"), list[Message])
assert_type(store.load_info("a"), AgentInfo | None)
assert_type(store.query_sessions(template_id="t"), Page[SessionInfo])
assert_type(store.iter_messages(role="user"), SyncIterator[StoredMessage])
assert_type(store.list("prefix"), list[str])
with store.follow_events("a", after_offset=3) as events:
    assert_type(events.next(timeout=1.5), StoredEvent)
with store as opened, opened.acquire_agent_lock("a", wait_ms=100) as lease:
    assert_type(lease, SyncLease)
    opened.append_messages("a", [Message.user("hi")], fence=lease)
opened.append_messages("a", "hi")  # refused: arg-type
opened.append_messages("a", [], fenc=lease)  # refused: call-arg
opened.query_sessions(templat_id="t")  # refused: call-arg
opened.load_message("a")  # refused: attr-defined
