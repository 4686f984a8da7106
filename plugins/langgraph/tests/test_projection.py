"""Messages of LangChain of every form are messages and tool calls of the store."""

from __future__ import annotations

from typing import Any

import pytest
from kode_langgraph import KodeSaver
from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, HumanMessage, SystemMessage, ToolMessage

from kode_core import ReasoningBlock, TextBlock, ToolResultBlock, ToolUseBlock, UnknownBlock
from kode_core.sync import open_store
from plugins.langgraph.tests.graphs import chat, configured
from plugins.langgraph.tests.test_saver import put

DEEP: Any = None
for _ in range(200):
    DEEP = [DEEP]

MESSAGES: list[BaseMessage] = [
    SystemMessage("Be kind.", id="1"),
    HumanMessage(
        [
            {"type": "text", "text": "Look"},
            "at this",
            {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}},
        ],
        id="2",
        name="ada",
    ),
    AIMessage(
        [
            {"type": "thinking", "thinking": "Hm."},
            {"type": "text", "text": "Let me look."},
            {"type": "tool_use", "id": "c1"},
        ],
        id="3",
        tool_calls=[
            {"name": "look", "args": {"x": float("nan")}, "id": "c1"},
            {"name": "deep", "args": {"x": DEEP}, "id": ""},
            {"name": "none", "args": {}, "id": None},
        ],
        invalid_tool_calls=[{"name": "odd", "args": "{", "id": "c2", "error": "no JSON", "type": "invalid_tool_call"}],
        usage_metadata={"input_tokens": 1, "output_tokens": 2, "total_tokens": 3},
        response_metadata={"model_name": "m-1"},
    ),
    ToolMessage([{"type": "text", "text": "seen"}], tool_call_id="c1", id="4"),
    ToolMessage("It broke.", tool_call_id="unknown", id="5", status="error", name="late"),
    ChatMessage("As you like.", role="critic", id="6"),
    AIMessage("", id="7"),
]


def test_each_form_is_projected(saver: KodeSaver, sqlite: dict[str, Any]) -> None:
    """What JSON cannot express is a text there, and the checkpoint has the messages as they were."""
    config = put(saver, configured("t", checkpoint_ns=""), "1", {"messages": MESSAGES})
    found = saver.get_tuple(config)
    assert found and len(found.checkpoint["channel_values"]["messages"]) == len(MESSAGES)
    with open_store(**sqlite) as store:
        messages = store.load_messages("langgraph:t")
        calls = {call.id: call for call in store.load_tool_call_records("langgraph:t")}
    assert [message.role for message in messages] == [
        "system", "user", "assistant", "user", "user", "critic", "assistant",
    ]  # fmt: skip
    assert [type(block) for block in messages[1].content] == [TextBlock, TextBlock, UnknownBlock]
    assert len(repr(messages[1])) < 2_000
    assert [type(block) for block in messages[2].content] == [ReasoningBlock, TextBlock, *[ToolUseBlock] * 4]
    about: Any = messages[2].metadata
    assert about["langgraph"]["usage"]["total_tokens"] == 3 and about["langgraph"]["model"] == "m-1"
    assert isinstance(messages[4].content[0], ToolResultBlock) and messages[4].content[0].is_error
    assert {call_id: call.state for call_id, call in calls.items()} == {
        "c1": "COMPLETED",
        "3:1": "PENDING",
        "3:2": "PENDING",
        "c2": "FAILED",
        "unknown": "FAILED",
    }
    assert calls["c1"].input == {"x": "NaN"} and calls["c1"].name == "look"
    assert calls["c2"].error == "no JSON" and calls["unknown"].error == "It broke."


def test_another_channel_or_none(sqlite: dict[str, Any]) -> None:
    with KodeSaver.from_url(**sqlite, messages="talk") as saver:
        put(
            saver,
            configured("t", checkpoint_ns=""),
            "1",
            {"talk": [HumanMessage("a", id="1")], "messages": [AIMessage("b")]},
        )
    with KodeSaver.from_url(**sqlite, messages=None) as saver:
        put(saver, configured("u", checkpoint_ns=""), "1", {"messages": [AIMessage("b", id="1")]})
    with open_store(**sqlite) as store:
        assert [message.text for message in store.load_messages("langgraph:t")] == ["a"]
        assert store.load_messages("langgraph:u") == []


def test_a_result_in_a_later_process_ends_the_call(sqlite: dict[str, Any]) -> None:
    """The record keeps the name and the input of the message that asked."""
    for stop in (["tool"], None):
        with KodeSaver.from_url(**sqlite) as saver:
            app = chat().compile(checkpointer=saver, interrupt_before=stop)
            app.invoke({"messages": [HumanMessage("?")]} if stop else None, configured("t"))
            with open_store(**sqlite) as store:
                (call,) = store.load_tool_call_records("langgraph:t")
        assert (call.state, call.name, call.input["n"]) == ("PENDING" if stop else "COMPLETED", "bash", 1)


@pytest.mark.parametrize("value", [7, None, "text", {"a": 1}, [1, 2], [], [["x" * 600]]])
def test_other_values_of_the_channel_are_kept(saver: KodeSaver, value: Any) -> None:
    found = saver.get_tuple(put(saver, configured("t", checkpoint_ns=""), "1", {"messages": value}))
    assert found and found.checkpoint["channel_values"] == {"messages": value}
