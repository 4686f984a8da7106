"""Questions over all agents."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import assert_type

from kode_core import AgentStats, ExtendedStore, Group, Page, SessionFilter, SessionInfo
from kode_core.model import StoredMessage, StoredToolCall


async def pages(store: ExtendedStore) -> None:
    page = await store.query_sessions(user_id="u-7", sort_by="updated_at", order="asc", limit=20)
    assert_type(page, Page[SessionInfo])
    assert_type(page.next_cursor, str | None)
    for session in page:
        assert_type(session.message_count, int)
    await store.query_sessions(cursor=page.next_cursor, metadata={"tier": "gold", "seats": 2})
    for message in await store.query_messages(role="user", created_after=datetime.now(UTC)):
        assert_type(message, StoredMessage)
        print(message.agent_id, message.created_at, message.text)
    for call in await store.query_tool_calls(is_error=True, tool_name="search", created_before=1_735_689_600_000):
        assert_type(call, StoredToolCall)
        print(call.agent_id, call.error)
    await store.query_messages(role=["user", "system"], agent_id={"a", "b"}, content_type=("text",))
    assert_type(await store.count_messages(role=["user", "system"]), int)
    assert_type(await store.count_sessions(template_id=frozenset({"travel"}), metadata={"tier": "gold"}), int)
    assert_type(await store.count_tool_calls(state="FAILED", is_error=True), int)
    for group in await store.group_tool_calls(["tool_name", "is_error"], durations=True, created_after=0):
        assert_type(group, Group)
        assert_type(group.values["tool_name"], str | bool)
        print(group.count, group.durations and group.durations.mean_ms)
    await store.group_sessions("day", utc_offset_minutes=60, template_id="travel")
    await store.group_messages(("role", "day"))
    given: SessionFilter = {"template_id": "travel", "limit": 5}
    await store.query_sessions(**given)

    await store.query_sessions(user="u-7")  # refused: call-arg
    await store.query_sessions(user_id=None)  # refused: arg-type
    await store.query_sessions(user_id=[1])  # refused: list-item
    await store.count_sessions(limit=5)  # refused: call-arg
    await store.group_sessions("role")  # refused: arg-type
    await store.group_sessions("day", durations=True)  # refused: call-arg
    await store.query_sessions(order="up")  # refused: arg-type
    await store.query_sessions(sort_by="name")  # refused: arg-type
    await store.query_messages(created_after="2025-01-01")  # refused: arg-type
    await store.query_tool_calls(is_error="yes")  # refused: arg-type
    wrong: SessionFilter = {"tool_name": "search"}  # refused: typeddict-unknown-key
    print(wrong, page.cursor)  # refused: attr-defined


async def everything(store: ExtendedStore) -> None:
    async for session in store.iter_sessions(template_id="travel"):
        print(session.agent_id)
    async for call in store.iter_tool_calls(state="FAILED"):
        print(call.name)
    assert_type(await store.aggregate_stats("agt-1"), AgentStats)
    assert_type(await store.delete_many(template_id="travel"), int)
    assert_type(await store.list("agt-"), list[str])

    for message in store.iter_messages():  # refused: attr-defined
        print(message)
    await store.iter_messages()  # refused: misc
    await store.delete_many("agt-1")  # refused: call-arg
