"""Values of every kind, refused ones, and their messages and tool calls in the store."""

from __future__ import annotations

import math
import subprocess
import sys
from datetime import UTC, datetime
from typing import Any

import pytest
from kode_pydantic_ai import KodeConversationStore
from pydantic_ai.conversation import Conversation
from pydantic_ai.conversation_store import ConversationEntry, ConversationRecord
from pydantic_ai.messages import (
    BinaryImage,
    DocumentUrl,
    ImageUrl,
    ModelMessage,
    ModelRequest,
    ModelResponse,
    SystemPromptPart,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.usage import RequestUsage

from kode_core import (
    InvalidArgumentError,
    InvalidValueError,
    StoreClosedError,
    ToolResultBlock,
    ToolUseBlock,
    create_extended_store,
)

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
IMAGE = BinaryImage(data=b"\x00\xff" * 1000, media_type="image/png", _identifier="x")
MESSAGES: list[ModelMessage] = [
    ModelRequest(parts=[SystemPromptPart("Be kind.", timestamp=NOW)], instructions="a\x00b", run_id="r"),
    ModelRequest(
        parts=[
            UserPromptPart(
                ["\ud800", IMAGE, ImageUrl("http://x/y.png"), DocumentUrl("http://x/y.pdf"), "\U0001f600"],
                timestamp=NOW,
            )
        ]
    ),
    ModelResponse(
        parts=[
            ThinkingPart("…", signature="AP8="),
            TextPart("I look."),
            ToolCallPart("weather", '{"city": "Zürich"}', tool_call_id="c1"),
            ToolCallPart("weather", {"city": 1.0, "n": 2**80}, tool_call_id="c2"),
            ToolCallPart("broken", '{"x": NaN', tool_call_id="c3"),
            ToolCallPart("deep", "[" * 150 + "]" * 150, tool_call_id="c4"),
        ],
        usage=RequestUsage(input_tokens=3),
        timestamp=NOW,
        provider_details={"a": [None, 1.0, 1, True, ""]},
    ),
    ModelRequest(
        parts=[
            ToolReturnPart("weather", {"sun": True, "t": 21.0}, tool_call_id="c1", timestamp=NOW),
            ToolReturnPart("weather", "no such city", tool_call_id="c2", timestamp=NOW, outcome="failed"),
            ToolReturnPart("broken", "not now", tool_call_id="c3", timestamp=NOW, outcome="denied"),
        ]
    ),
    ModelRequest(parts=[ToolReturnPart("deep", None, tool_call_id="c4", timestamp=NOW)]),
    ModelRequest(parts=[]),
]


async def test_messages_come_back_as_they_were(store: KodeConversationStore) -> None:
    await store.save(Conversation(messages=list(MESSAGES), conversation_id="c"))
    loaded = await store.load("c")
    assert loaded is not None
    assert loaded.messages == MESSAGES


async def test_they_are_ordinary_messages_and_tool_calls(store: KodeConversationStore) -> None:
    """Also when a result comes with a later save than its call."""
    conversation = Conversation(messages=MESSAGES[:3], conversation_id="c")
    await store.save(conversation)
    agent = store.agent_id("c")
    assert {call.state for call in await store.store.load_tool_call_records(agent)} == {"PENDING"}
    conversation.messages.extend(MESSAGES[3:])
    await store.save(conversation)

    messages = await store.store.load_messages(agent)
    assert [message.role for message in messages] == ["system", "user", "assistant", "user", "user", "user"]
    assert messages[0].text == "Be kind."
    assert [block.id for block in messages[2].content if isinstance(block, ToolUseBlock)] == ["c1", "c2", "c3", "c4"]
    assert [block.is_error for block in messages[3].content if isinstance(block, ToolResultBlock)] == [None, True, None]
    calls = await store.store.load_tool_call_records(agent)
    assert [(call.id, call.name, call.state, call.is_error) for call in calls] == [
        ("c1", "weather", "COMPLETED", False),
        ("c2", "weather", "FAILED", True),
        ("c3", "broken", "DENIED", False),
        ("c4", "deep", "COMPLETED", False),
    ]
    assert calls[0].input == {"city": "Zürich"}
    assert calls[0].result == {"sun": True, "t": 21.0}
    assert calls[0].created_at == int(NOW.timestamp() * 1000)
    assert calls[1].input == {"city": 1.0, "n": 2**80}
    assert calls[1].error == "no such city"
    assert calls[2].input == '{"x": NaN'
    assert (await store.store.check_consistency()).issues == ()


async def test_operators_find_failed_calls(shared_url: str) -> None:
    async with KodeConversationStore(shared_url) as store:
        await store.save(Conversation(messages=list(MESSAGES), conversation_id="c"))
    command = [sys.executable, "-m", "kode_core.cli", "tool-calls", "--errors", "--json", "--store", shared_url]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "no such city" in found
    assert "21.0" not in found


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize(
    "content", [math.nan, {"a": math.inf}, "\ud83d\ude00", {"k" * 3: object()}, {"deep": None}, {1: {2: object()}}]
)
async def test_a_value_that_cannot_be_kept_is_refused(store: KodeConversationStore, content: Any) -> None:
    """With an error of the store that names it, and nothing is written."""
    if content == {"deep": None}:
        for _ in range(200):
            content = [content]
    bad = ConversationEntry(parent_id=None, message=ModelRequest(parts=[ToolReturnPart("f", content, "c1")]))
    good = ConversationEntry(parent_id=None, message=ModelRequest(parts=[UserPromptPart("hi")]))
    record = ConversationRecord(conversation_id="c", head_id=bad.id)
    with pytest.raises(InvalidValueError):
        await store.write_record(record, new_entries=[good, bad], expected_revision=None)
    for agent_id in await store.store.list(include_without_info=True):
        assert await store.store.load_agent(agent_id) is None
    with pytest.raises(KeyError):
        await store.read_entry(good.id)


async def test_wrong_arguments(store: KodeConversationStore) -> None:
    with pytest.raises(InvalidArgumentError):
        await store.read_record(None)  # type: ignore[arg-type]
    with pytest.raises(KeyError):
        await store.read_entry("none")
    assert await store.read_history(None) == []
    assert await store.read_record("none") is None
    assert await store.store.list(include_without_info=True) == []


async def test_what_others_put_into_the_info_stays(store: KodeConversationStore) -> None:
    conversation = Conversation(messages=MESSAGES[:1], conversation_id="c")
    await store.save(conversation, scope="ada")
    await store.store.update_info(store.agent_id("c"), {"title": "Weather", "userId": "ada"})
    conversation.messages.extend(MESSAGES[1:])
    await store.save(conversation)
    info = await store.store.load_info(store.agent_id("c"))
    assert info is not None
    assert (info.metadata["title"], info.metadata["scope"]) == ("Weather", "ada")
    assert len(await store.store.query_sessions(user_id="ada", metadata={"scope": "ada"})) == 1


async def test_a_given_store_stays_open_and_an_own_one_is_closed(url: Any) -> None:
    async with create_extended_store(url) as opened:
        async with KodeConversationStore(opened) as given:
            await given.save(Conversation(messages=[], conversation_id="c"))
        assert await given.read_record("c") is not None
    with pytest.raises(StoreClosedError):
        await given.read_record("c")
    own = KodeConversationStore(url)
    await own.close()
    with pytest.raises(StoreClosedError):
        await own.read_entry("x")
