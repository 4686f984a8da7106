"""The contract of a session store, on every backend."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from claude_agent_sdk import (
    delete_session_via_store,
    fold_session_summary,
    fork_session_via_store,
    get_session_messages_from_store,
    list_sessions_from_store,
    list_subagents_from_store,
    project_key_for_directory,
    rename_session_via_store,
    tag_session_via_store,
)
from claude_agent_sdk.testing import run_session_store_conformance
from kode_claude_agent import KodeSessionStore

from kode_core import (
    CorruptRecordError,
    InvalidArgumentError,
    InvalidValueError,
    Message,
    StoreClosedError,
    create_extended_store,
)
from kode_core.sync import open_store

KEY: Any = {"project_key": "-home-ada", "session_id": "5d1f"}
SUB: Any = {**KEY, "subpath": "subagents/agent-1"}
TIME = "2025-06-30T12:00:0{}.500Z"


def user(n: object, **more: Any) -> Any:
    return {"type": "user", "uuid": f"u{n}", "message": {"role": "user", "content": f"question {n}"}, **more}


def call(n: object, name: str = "Bash") -> Any:
    blocks = [
        {"type": "thinking", "thinking": "Hm.", "signature": "s"},
        {"type": "text", "text": "One moment."},
        {"type": "tool_use", "id": f"toolu_{n}", "name": name, "input": {"command": "ls", "n": 1.0}},
    ]
    message = {"id": "msg", "role": "assistant", "content": blocks, "stop_sequence": None, "usage": {"input_tokens": 1}}
    return {"parentUuid": None, "type": "assistant", "uuid": f"c{n}", "timestamp": TIME.format(1), "message": message}


def result(n: object, content: Any = "a.txt", **more: Any) -> Any:
    block = {"tool_use_id": f"toolu_{n}", "type": "tool_result", "content": content, **more}
    message = {"role": "user", "content": [block]}
    return {"type": "user", "uuid": f"r{n}", "timestamp": TIME.format(3), "message": message, "toolUseResult": content}


ENTRIES: list[Any] = [
    {"type": "custom-title", "customTitle": "Files", "sessionId": "5d1f"},
    user(1),
    call(1),
    result(1),
    {"type": "system", "uuid": "s1", "content": "compacted", "isMeta": True},
    {"type": "file-history-snapshot", "snapshot": {"$set": 1, "a.b": -0.0, "": None, "\0": "\ud800"}},
    {"type": "custom-title", "customTitle": "Files", "sessionId": "5d1f"},
    user(2, message={"content": [{"type": "image", "source": {"type": "base64", "data": "x"}}, 7], "role": "user"}),
    {"uuid": "no type"},
]


async def test_the_suite_of_the_sdk(stores: Any) -> None:
    async def make() -> KodeSessionStore:
        return KodeSessionStore(store=await stores())

    await run_session_store_conformance(make)


async def test_entries_come_back_exactly_as_given(store: Any) -> None:
    sessions = KodeSessionStore(store=store)
    await sessions.append(KEY, ENTRIES)
    assert repr(await sessions.load(KEY)) == repr(ENTRIES)  # the order of keys, and -0.0


async def test_entries_are_ordinary_messages_and_tool_calls(store: Any) -> None:
    sessions = KodeSessionStore(store=store)
    await sessions.append(KEY, ENTRIES)
    agent = sessions.agent_id(KEY)
    messages = await store.load_messages(agent)
    assert [m.role for m in messages] == [
        "custom-title", "user", "assistant", "user", "system", "file-history-snapshot", "custom-title", "user", "entry"
    ]  # fmt: skip
    assert messages[1].text == "question 1"
    assert [block.__class__.__name__ for block in messages[2].content] == [
        "ReasoningBlock",
        "TextBlock",
        "ToolUseBlock",
    ]
    (record,) = await store.load_tool_call_records(agent)
    assert (record.name, record.input, record.result) == ("Bash", {"command": "ls", "n": 1.0}, "a.txt")
    assert (record.state, record.is_error, record.duration_ms) == ("COMPLETED", False, 2_000)
    assert record.created_time.isoformat() == "2025-06-30T12:00:01.500000+00:00"
    (info,) = await store.query_sessions(metadata={"projectKey": "-home-ada", "sessionId": "5d1f"})
    assert (info.template_id, info.message_count) == ("claude-agent", len(ENTRIES))


async def test_failed_calls_are_found(store: Any) -> None:
    sessions = KodeSessionStore(store=store)
    await sessions.append(KEY, [call(1)])
    (record,) = await store.load_tool_call_records(sessions.agent_id(KEY))
    assert record.state == "EXECUTING"
    await sessions.append(KEY, [call(2), result(1, [{"type": "text", "text": "no such file"}], is_error=True)])
    await sessions.append(SUB, [call(3, "Read"), result(3, None, is_error=True), result("lost", {"type": "a_error"})])
    found = await store.query_tool_calls(is_error=True)
    assert {(one.agent_id, one.name, one.error) for one in found} == {
        (sessions.agent_id(KEY), "Bash", "no such file"),
        (sessions.agent_id(SUB), "Read", "failed"),
        (sessions.agent_id(SUB), "unknown", "failed"),
    }


async def test_a_uuid_is_stored_once(store: Any) -> None:
    sessions = KodeSessionStore(store=store)
    hostile = [user(0, uuid=one) for one in ("", "x" * 500, "x" * 501, "a\0", "\ud800", "ä/%:", "a", "A")]
    batch = [*ENTRIES, *hostile, user(1, changed=True)]
    await sessions.append(KEY, batch)
    once = batch[:-1]
    assert await sessions.load(KEY) == once
    before = await sessions.list_sessions("-home-ada")
    await sessions.append(KEY, [user(1), *hostile])
    assert await sessions.load(KEY) == once
    assert await sessions.list_sessions("-home-ada") == before
    title = {"type": "custom-title", "customTitle": "again"}
    await sessions.append(KEY, [user(2), title, user(3), title])
    assert await sessions.load(KEY) == [*once, title, user(3), title]
    await sessions.append(SUB, [user(1)])  # a transcript of its own
    assert await sessions.load(SUB) == [user(1)]
    numbers = [user(0, uuid=one) for one in (1, 1, None, True)]
    await sessions.append(SUB, numbers)
    assert await sessions.load(SUB) == [user(1), *numbers]


async def test_a_bad_batch_writes_nothing(store: Any) -> None:
    sessions = KodeSessionStore(store=store)
    for bad in (object(), float("nan"), {1: 2}, (1,)):
        with pytest.raises(InvalidValueError):
            await sessions.append(KEY, [user(1), user(2, bad=bad)])
    for entries in ([user(1), "text"], [None]):
        with pytest.raises(InvalidArgumentError):
            await sessions.append(KEY, entries)  # type: ignore[list-item]
    for key in ({}, {"project_key": "a"}, {"project_key": 1, "session_id": "s"}, {**KEY, "subpath": 7}, None):
        with pytest.raises(InvalidArgumentError):
            await sessions.append(key, [user(1)])  # type: ignore[arg-type]
    assert await sessions.load(KEY) is None
    assert not await store.list(include_without_info=True)


async def test_hostile_keys_are_apart(store: Any) -> None:
    sessions = KodeSessionStore(store=store)
    parts = ["a", "a:b", "b", "a/b", "", "..", "\0", "\ud800", "x" * 200, "x" * 300, "claude", "%", "#1"]
    keys: list[Any] = [{"project_key": a, "session_id": b} for a in parts for b in parts[:6]]
    keys += [{**KEY, "subpath": part} for part in parts if part]
    for n, key in enumerate(keys):
        await sessions.append(key, [user(n)])
    for n, key in enumerate(keys):
        assert await sessions.load(key) == [user(n)]
    for part in parts:
        assert sorted(one["session_id"] for one in await sessions.list_sessions(part)) == sorted(parts[:6])
    assert sorted(await sessions.list_subkeys(KEY)) == sorted(part for part in parts if part)


async def test_summaries_are_what_the_sdk_folds(store: Any) -> None:
    sessions = KodeSessionStore(store=store)
    for n in range(0, len(ENTRIES), 2):
        await sessions.append(KEY, ENTRIES[n : n + 2])
    await sessions.append(KEY, ENTRIES)  # those without a uuid again
    await sessions.append(SUB, [user(1, customTitle="of a subagent")])
    await store.update_info(sessions.agent_id(KEY), {"label": "an operator's"})
    await sessions.append(KEY, [{"type": "tag", "tag": "later"}])
    entries: Any = await sessions.load(KEY)
    (summary,) = await sessions.list_session_summaries("-home-ada")
    assert summary["data"] == fold_session_summary(None, KEY, entries)["data"]
    assert summary["data"]["tag"] == "later"
    assert [summary["mtime"]] == [one["mtime"] for one in await sessions.list_sessions("-home-ada")]
    assert (await store.load_info(sessions.agent_id(KEY))).metadata["label"] == "an operator's"


async def test_delete_takes_the_subpaths_along(store: Any) -> None:
    sessions = KodeSessionStore(store=store)
    for key in (KEY, SUB, {**KEY, "subpath": "subagents/agent-2"}, {**KEY, "session_id": "other"}):
        await sessions.append(key, ENTRIES)
    await sessions.delete(SUB)
    assert await sessions.list_subkeys(KEY) == ["subagents/agent-2"]
    await sessions.delete(KEY)
    assert await store.list(include_without_info=True) == [sessions.agent_id({**KEY, "session_id": "other"})]
    await sessions.delete(KEY)
    await sessions.append(KEY, [user(1)])  # its uuid is forgotten
    assert await sessions.load(KEY) == [user(1)]


async def test_a_fork_is_no_session_of_the_sdk(store: Any) -> None:
    sessions = KodeSessionStore(store=store)
    await sessions.append(KEY, ENTRIES)
    await sessions.append(SUB, ENTRIES)
    await store.fork(sessions.agent_id(KEY), "branch")
    await store.fork(sessions.agent_id(SUB), "branch-2")
    await store.append_messages(sessions.agent_id(KEY), [Message.user("from elsewhere")])
    assert [one["session_id"] for one in await sessions.list_sessions("-home-ada")] == ["5d1f"]
    assert await sessions.list_subkeys(KEY) == ["subagents/agent-1"]
    assert await sessions.load(KEY) == ENTRIES
    await sessions.delete(KEY)
    assert await store.list() == ["branch", "branch-2"]


async def test_appends_of_one_process_keep_their_order(store: Any) -> None:
    sessions = KodeSessionStore(store=store)
    batches = [[user(f"{n}-{i}") for i in range(3)] for n in range(12)]
    await asyncio.gather(*(sessions.append(KEY, batch) for batch in batches))
    assert await sessions.load(KEY) == [entry for batch in batches for entry in batch]


async def test_appends_of_several_stores(store: Any) -> None:
    """As of several processes: all that differ are kept, each batch in one piece, and equal uuids once."""
    many = [KodeSessionStore(store=store) for _ in range(4)]

    async def write(one: KodeSessionStore, name: int) -> None:
        for n in range(4):
            await one.append(KEY, [user(f"{name}-{n}-{i}") for i in range(3)])
            await one.append(KEY, [user(f"all-{n}"), user(f"all-{n}-b")])

    await asyncio.gather(*(write(one, name) for name, one in enumerate(many)))
    entries: Any = await many[0].load(KEY)
    uuids = [entry["uuid"] for entry in entries]
    assert len(uuids) == len(set(uuids)) == 4 * 4 * 3 + 4 * 2
    starts = [n for n, uuid in enumerate(uuids) if uuid.endswith("-0") and uuid.count("-") == 2]
    assert all(uuids[n + i] == f"{uuids[n][:-1]}{i}" for n in starts for i in range(3))
    (summary,) = await many[0].list_session_summaries("-home-ada")
    assert summary["data"] == fold_session_summary(None, KEY, entries)["data"]


async def test_a_large_batch(store: Any, request: pytest.FixtureRequest) -> None:
    """As many entries as the SDK sends at once, and more; fewer on the slow stand-in for DynamoDB."""
    sessions, turns = KodeSessionStore(store=store), 40 if "dynamodb" in request.node.name else 250
    batch = [one for n in range(turns) for one in (user(n), call(n), result(n), {"type": "mode", "mode": "plan"})]
    await sessions.append(KEY, batch)
    assert await sessions.load(KEY) == batch
    await sessions.append(KEY, [entry for entry in batch if "uuid" in entry])
    assert await sessions.load(KEY) == batch
    assert await store.count_tool_calls(agent_id=sessions.agent_id(KEY), state="COMPLETED") == turns


async def test_the_functions_of_the_sdk(url: str, tmp_path: Path) -> None:
    project = project_key_for_directory(tmp_path)
    session = "7e6b1b1e-5a0b-4a6b-9d0b-0d6f6b1c5a52"
    key: Any = {"project_key": project, "session_id": session}
    with KodeSessionStore(url) as sessions:
        one = "11111111-1111-4111-8111-111111111111"
        first = user(1, uuid=one, parentUuid=None, sessionId=session, timestamp=TIME.format(0), cwd=str(tmp_path))
        await sessions.append(key, [first])
        await sessions.append({**key, "subpath": "subagents/agent-a1"}, [{**first, "isSidechain": True}])
        await rename_session_via_store(sessions, session, "Files", directory=str(tmp_path))
        await tag_session_via_store(sessions, session, "work", directory=str(tmp_path))
        (shown,) = await list_sessions_from_store(sessions, directory=str(tmp_path))
        assert (shown.session_id, shown.summary, shown.tag) == (session, "Files", "work")
        (message,) = await get_session_messages_from_store(sessions, session, directory=str(tmp_path))
        assert message.uuid == one
        assert await list_subagents_from_store(sessions, session, directory=str(tmp_path)) == ["a1"]
        forked = await fork_session_via_store(sessions, session, directory=str(tmp_path))
        assert len(await sessions.list_sessions(project)) == 2
        await delete_session_via_store(sessions, session, directory=str(tmp_path))
        assert [one["session_id"] for one in await sessions.list_sessions(project)] == [forked.session_id]


async def test_a_store_closes_only_what_it_owns(url: str) -> None:
    async with create_extended_store(url) as given:
        async with KodeSessionStore(store=given) as sessions:
            await sessions.append(KEY, [user(1)])
        assert await given.exists(sessions.agent_id(KEY))
        with pytest.raises(InvalidArgumentError):
            KodeSessionStore(url, store=given)
    owner = KodeSessionStore(url)
    assert await owner.load(KEY) == [user(1)]
    owner.close()
    owner.close()
    with pytest.raises(StoreClosedError):
        await owner.load(KEY)
    with open_store(url) as shared:
        assert await KodeSessionStore(store=shared).list_sessions("-home-ada")


def test_a_store_with_a_url_works_in_any_loop(url: str) -> None:
    with KodeSessionStore(url) as sessions:
        for n in range(3):
            asyncio.run(sessions.append(KEY, [user(n)]))
        assert asyncio.run(sessions.load(KEY)) == [user(n) for n in range(3)]


@pytest.mark.parametrize("kind", ["owned", "given"])
async def test_a_batch_is_repeated_after_a_cancelled_append(url: str, kind: str) -> None:
    async with create_extended_store(url) as given:
        sessions = KodeSessionStore(url) if kind == "owned" else KodeSessionStore(store=given)
        for n in range(20):
            batch = [user(f"{n}-{i}") for i in range(3)]
            task = asyncio.ensure_future(sessions.append(KEY, batch))
            await asyncio.sleep(n / 5_000)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await sessions.append(KEY, batch)
        assert await sessions.load(KEY) == [user(f"{n}-{i}") for n in range(20) for i in range(3)]
        sessions.close()


async def test_a_damaged_entry_is_no_gap(url: str) -> None:
    with KodeSessionStore(url) as sessions:
        await sessions.append(KEY, [user(n) for n in range(3)])
        await sessions.append(SUB, [user(1)])
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as db, db:
            agent = [sessions.agent_id(KEY)]
            change = (
                "UPDATE kode_messages SET body = replace(body, 'question', 'quest') WHERE agent_id = ? AND position = 1"
            )
            assert db.execute(change, agent).rowcount == 1
        with pytest.raises(CorruptRecordError, match="message 1"):
            await sessions.load(KEY)
        await sessions.append(KEY, [user(3)])
        assert await sessions.load(SUB) == [user(1)]
        assert [one["session_id"] for one in await sessions.list_sessions("-home-ada")] == ["5d1f"]
        await sessions.delete(KEY)
        assert await sessions.load(KEY) is None
