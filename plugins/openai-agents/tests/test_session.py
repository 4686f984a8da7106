"""The contract of a session, on every backend."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import pytest
from agents.memory import Session, SessionSettings
from kode_openai_agents import KodeSession

from kode_core import (
    ConfigurationError,
    InvalidArgumentError,
    InvalidValueError,
    Message,
    StoreClosedError,
    create_extended_store,
)
from kode_core.sync import open_store

CALL: Any = {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "look", "arguments": '{"at": [1, 2.0]}'}
OUTPUT: Any = {"type": "function_call_output", "call_id": "c1", "output": "sunny"}
ITEMS: list[Any] = [
    {"role": "user", "content": "Hello"},
    {"content": "the other order", "role": "user"},
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_image", "image_url": "data:,x"}]},
    CALL,
    OUTPUT,
    {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "Hm."}], "encrypted_content": None},
    {
        "id": "m",
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "It is sunny.", "annotations": [], "logprobs": []}],
    },
    {"type": "compaction", "id": "cmp", "encrypted_content": "x" * 1_000},
    {"role": "user", "content": "\0 \ud800 \U0001f600", "__proto__": {"$set": 1, "a.b": -0.0, "": None}},
    {},
]


def user(text: object) -> Any:
    return {"role": "user", "content": str(text)}


async def test_items_come_back_exactly_as_given(store: Any) -> None:
    session = KodeSession("user-1", store=store)
    assert isinstance(session, Session)
    await session.add_items(ITEMS)
    found = await session.get_items()
    assert repr(found) == repr(ITEMS)  # the order of keys, and -0.0
    await session.add_items([])
    assert await KodeSession("user-1", store=store).get_items(3) == ITEMS[-3:]


async def test_limits(store: Any) -> None:
    session = KodeSession("user-1", store=store, session_settings={"limit": 2})
    items = [user(n) for n in range(5)]
    await session.add_items(items)
    assert await session.get_items() == items[-2:]
    assert await session.get_items(limit=4) == items[-4:]
    assert await session.get_items(limit=0) == []
    assert await session.get_items(limit=-1) == await session.get_items(limit=99) == items
    session.session_settings = SessionSettings()
    assert await session.get_items() == items


async def test_a_batch_with_a_bad_item_writes_nothing(store: Any) -> None:
    session = KodeSession("user-1", store=store)
    loop: list[Any] = []
    loop.append(loop)
    for bad in (object(), float("nan"), {1: 2}, (1,), b"x", loop, "\ud83d\ude00"):
        with pytest.raises(InvalidValueError):
            await session.add_items([user(1), {"role": "user", "content": bad}])
    for items in ([user(1), "text"], [user(1), None], "text", {"role": "user"}, 7):
        with pytest.raises(InvalidArgumentError):
            await session.add_items(items)  # type: ignore[arg-type]
    assert await session.get_items() == []
    assert not await store.exists(session.agent_id)


async def test_items_are_ordinary_messages_and_tool_calls(store: Any) -> None:
    session = KodeSession("user-1", store=store)
    await session.add_items(ITEMS)
    messages = await store.load_messages(session.agent_id)
    assert [m.role for m in messages[:8]] == [
        "user", "user", "developer", "user", "assistant", "user", "assistant", "assistant"
    ]  # fmt: skip
    assert messages[7].text == "It is sunny."
    (page,) = await store.query_sessions(template_id="openai-agents", metadata={"sessionId": "user-1"})
    assert (page.agent_id, page.message_count) == (session.agent_id, len(ITEMS))
    (record,) = await store.load_tool_call_records(session.agent_id)
    assert (record.id, record.name, record.input) == ("c1", "look", {"at": [1, 2.0]})
    assert (record.state, record.result, record.is_error) == ("COMPLETED", "sunny", False)
    found = await store.query_messages(agent_id=session.agent_id, content_type="tool_result")
    assert [one.position for one in found] == [5]


async def test_failed_and_denied_calls(store: Any) -> None:
    session = KodeSession("user-1", store=store, is_failure=lambda item: "oops" in str(item.get("output")))
    default = KodeSession("user-2", store=store)
    for one in (session, default):
        for n, output in enumerate(("oops", "An error occurred while running the tool.", "Error: no", "fine")):
            await one.add_items([{**CALL, "call_id": f"c{n}"}])
            records = await store.load_tool_call_records(one.agent_id)
            assert (records[-1].state, len(records)) == ("EXECUTING", n + 1)
            await one.add_items([{"type": "function_call_output", "call_id": f"c{n}", "output": output}])
        await one.add_items(
            [{**CALL, "call_id": "c9"}, {**OUTPUT, "call_id": "c9", "output": "Tool execution was not approved."}]
        )
    failed = await store.query_tool_calls(is_error=True, agent_id=session.agent_id)
    assert [one.id for one in failed] == ["c0"]
    failed = await store.query_tool_calls(is_error=True, agent_id=default.agent_id)
    assert sorted(one.error for one in failed) == ["An error occurred while running the tool.", "Error: no"]
    assert {one.name for one in failed} == {"look"}
    assert [one.id for one in await store.query_tool_calls(state="DENIED")] == ["c9", "c9"]


async def test_calls_that_the_provider_ran(store: Any) -> None:
    session = KodeSession("user-1", store=store)
    await session.add_items(
        [
            {"type": "web_search_call", "id": "ws", "status": "completed", "action": {"query": "x"}},
            {"type": "mcp_call", "id": "mcp", "name": "ask", "arguments": "{", "error": "down", "output": None},
            {"type": "shell_call_output", "call_id": "lost", "output": [{"type": "text", "text": "Error"}]},
            {"type": "function_call", "call_id": "", "name": "no id", "arguments": "NaN"},
            {"type": "function_call", "call_id": "deep", "name": "n", "arguments": "[" * 99 + "]" * 99},
            {"type": "function_call", "call_id": "big", "name": "n", "arguments": "1e999"},
        ]
    )
    records = {one.id: one for one in await store.load_tool_call_records(session.agent_id)}
    assert (records["ws"].name, records["ws"].state, records["ws"].input) == (
        "web_search", "COMPLETED", {"action": {"query": "x"}}
    )  # fmt: skip
    assert (records["mcp"].state, records["mcp"].input, records["mcp"].is_error) == ("FAILED", "{", True)
    assert (records["lost"].name, records["lost"].is_error) == ("unknown", True)
    assert records["deep"].input == "[" * 99 + "]" * 99
    assert records["big"].input == "1e999"
    assert len(records) == 5


async def test_pop_and_clear(store: Any) -> None:
    session = KodeSession("user-1", store=store)
    assert await session.pop_item() is None
    await session.clear_session()
    assert not await store.list(include_without_info=True)
    await session.add_items(ITEMS)
    popped = [await session.pop_item() for _ in ITEMS]
    assert popped == ITEMS[::-1]
    assert await session.pop_item() is None
    await session.add_items(ITEMS)
    await session.clear_session()
    assert await session.get_items() == []
    assert await store.load_tool_call_records(session.agent_id) == []
    await session.add_items([user("again")])
    assert await session.get_items() == [user("again")]


async def test_different_ids_are_different_conversations(store: Any) -> None:
    ids = ["", "a", "A", "a:b", "a%3Ab", "a/b", "../a", "a\0", "\ud800", "x" * 300, "x" * 301, "😀", "*", " ", "#1"]
    sessions = [KodeSession(one, store=store) for one in ids]
    for n, session in enumerate(sessions):
        await session.add_items([user(n)])
    for n, session in enumerate(sessions):
        assert await session.get_items() == [user(n)]
        assert (await store.load_info(session.agent_id)).metadata["sessionId"] == ids[n]
    await sessions[3].clear_session()
    assert [await session.get_items() for session in sessions].count([]) == 1
    for wrong in (None, 1.5, b"x"):
        with pytest.raises(InvalidArgumentError):
            KodeSession(wrong, store=store)  # type: ignore[arg-type]


async def test_appends_of_many_tasks_and_pops(store: Any) -> None:
    """Each batch is in one piece, and each popped item is popped once."""
    session = KodeSession("user-1", store=store)

    async def write(task: int) -> None:
        for n in range(5):
            await KodeSession("user-1", store=store).add_items([user(f"{task}-{n}-{i}") for i in range(3)])

    await asyncio.gather(*(write(task) for task in range(6)))
    items = [item["content"] for item in await session.get_items()]
    assert len(items) == len(set(items)) == 90
    assert all(items[i].rsplit("-", 1)[0] == items[i + 2].rsplit("-", 1)[0] for i in range(0, 90, 3))
    popped = await asyncio.gather(*(KodeSession("user-1", store=store).pop_item() for _ in range(20)), write(9))
    left = [item["content"] for item in await session.get_items()]
    taken = [item["content"] for item in popped[:-1] if item]
    assert len(taken) == len(set(taken)) == 20
    assert not set(taken) & set(left)
    assert len(taken) + len(left) == 105


async def test_a_message_of_something_else_is_an_item(store: Any) -> None:
    session = KodeSession("user-1", store=store)
    await session.add_items([user(1)])
    await store.append_messages(session.agent_id, [Message.assistant("from elsewhere"), Message("odd", "role")])
    assert await session.get_items() == [user(1), {"role": "assistant", "content": "from elsewhere"}, user("role")]


# --- Compaction


async def test_the_last_items_are_replaced_in_one_commit(store: Any) -> None:
    session, items = KodeSession("user-1", store=store), [user(n) for n in range(6)]
    empty: Any = await session._get_compaction_snapshot(3)
    assert (empty.items, empty.complete, await empty.replace_suffix(0, [user("x")])) == ([], True, False)
    await session.add_items(items)
    partial: Any = await session._get_compaction_snapshot(5)
    whole: Any = await session._get_compaction_snapshot(6)
    assert (partial.items, partial.complete) == (items[1:], False)
    assert (whole.items, whole.complete) == (items, True)
    await store.update_info(session.agent_id, {"title": "changes the version, but no item"})
    assert await partial.replace_suffix(2, [user("sum")])
    assert await session.get_items() == [*items[:3], user("sum")]
    assert not await whole.replace_suffix(2, [user("late")])
    assert await session.get_items() == [*items[:3], user("sum")]
    pruned: Any = await session._get_compaction_snapshot(1, prune_prefix=lambda item: item["content"] in "01")
    assert await pruned.replace_suffix(0, [])
    assert await session.get_items() == [user(2)]


async def test_a_subclass_with_another_view_has_no_snapshot(url: str) -> None:
    class Named(KodeSession):
        pass

    class Other(KodeSession):
        async def get_items(self, limit: int | None = None, *, wrapper: Any = None) -> list[Any]:
            return []

    with Named("user-1", url) as named, Other("user-1", url) as other:
        assert await named._get_compaction_snapshot(3) is not None
        assert await other._get_compaction_snapshot(3) is None


# --- Damage


@pytest.fixture
async def damaged(url: str) -> Any:
    """A function that damages items of session ``user-1`` by their positions."""

    async def damage(*positions: int) -> None:
        path = url.removeprefix("sqlite:///")
        with closing(sqlite3.connect(path)) as db, db:
            for position in positions:
                done = db.execute(
                    "UPDATE kode_messages SET body = replace(body, 'text', 'tixt') WHERE position = ?", [position]
                )
                assert done.rowcount == 1

    return damage


async def test_damaged_items_hide_no_others(url: str, damaged: Any, caplog: pytest.LogCaptureFixture) -> None:
    with KodeSession("user-1", url) as session:
        items = [user(n) for n in range(10)]
        await session.add_items(items)
        await damaged(2, 7, 9)
        good = [items[n] for n in (0, 1, 3, 4, 5, 6, 8)]
        assert await session.get_items() == good
        for limit in range(1, 12):
            assert await session.get_items(limit) == good[-limit:]
        assert "message 9" in caplog.text
        assert await session._get_compaction_snapshot(2) is None
        await session.add_items([user("new")])
        assert await session.get_items(2) == [user(8), user("new")]
        assert [await session.pop_item() for _ in range(9)] == [user("new"), *good[::-1], None]
        assert await session.get_items() == []


async def test_only_damaged_items_are_left(url: str, damaged: Any) -> None:
    with KodeSession("user-1", url) as session:
        await session.add_items([user(n) for n in range(3)])
        await damaged(0, 1, 2)
        assert await session.get_items() == await session.get_items(1) == []
        assert await session.pop_item() is None
        await session.add_items([user("new")])
        assert await session.get_items() == [user("new")]


# --- Ownership and event loops


async def test_a_session_closes_only_what_it_owns(url: str, tmp_path: Path) -> None:
    async with create_extended_store(url) as given:
        async with KodeSession("user-1", store=given) as session:
            await session.add_items([user(1)])
        with pytest.raises(StoreClosedError):
            await session.add_items([])
        with pytest.raises(StoreClosedError):
            await session.get_items()
        assert len(await given.load_messages(session.agent_id)) == 1
    with open_store(f"sqlite:///{tmp_path}/b.db") as shared:
        with KodeSession("user-1", store=shared) as session:
            await session.add_items([user(1)])
        assert len(shared.load_messages(session.agent_id)) == 1
    owner = KodeSession("user-1", url)
    assert await owner.get_items() == [user(1)]
    owner.close()
    owner.close()
    for method in (owner.get_items, owner.pop_item, owner.clear_session):
        with pytest.raises(StoreClosedError):
            await method()


async def test_wrong_configurations(url: str) -> None:
    async with create_extended_store(url) as given:
        with pytest.raises(InvalidArgumentError):
            KodeSession("a", url, store=given)
        with pytest.raises(InvalidArgumentError):
            KodeSession("a", store=given, durability="fast")
    with pytest.raises(ConfigurationError):
        KodeSession("a", "sqlight:///a.db")
    with pytest.raises(ConfigurationError):
        KodeSession("a", url, durabilty="fast")


def test_a_session_with_a_url_works_in_any_loop(url: str) -> None:
    with KodeSession("user-1", url) as session:
        for n in range(3):
            asyncio.run(session.add_items([user(n)]))
        assert asyncio.run(session.get_items()) == [user(n) for n in range(3)]


@pytest.mark.parametrize("kind", ["owned", "given"])
async def test_a_cancelled_write_is_settled_first(url: str, kind: str) -> None:
    """A caller that is cancelled, twice even, sees an outcome that does not change any more."""
    async with create_extended_store(url) as given:
        session = KodeSession("user-1", url) if kind == "owned" else KodeSession("user-1", store=given)
        for n in range(20):
            task = asyncio.ensure_future(session.add_items([user(n)]))
            await asyncio.sleep(n / 10_000)
            is_cancelled = task.cancel()
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError) if is_cancelled else nullcontext():
                await task
            seen = await session.get_items()
            await asyncio.sleep(0.02)
            assert await session.get_items() == seen
        session.close()
