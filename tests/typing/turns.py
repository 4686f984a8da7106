"""Saving and loading what an agent keeps."""

from __future__ import annotations

from typing import assert_type

from kode_core import (
    AgentInfo,
    ExtendedStore,
    Message,
    TextBlock,
    TodoSnapshot,
    ToolCallRecord,
    ToolResultBlock,
    ToolUseBlock,
)


async def saved(store: ExtendedStore) -> None:
    asked = Message.user("Book me a flight")
    called = Message.assistant("One moment", ToolUseBlock(id="call-1", name="search", input={"to": "OSL", "seats": 2}))
    answered = Message("user", [ToolResultBlock(tool_use_id="call-1", content="no seats", is_error=True)])
    await store.save_messages("agt-1", [asked, called])
    await store.append_messages("agt-1", (answered,))
    await store.save_turn(
        "agt-1",
        append=[Message("assistant", "When?"), Message("system", [TextBlock("Be brief")])],
        upsert_tool_calls=[ToolCallRecord(id="call-1", name="search", state="COMPLETED")],
        info=AgentInfo(agent_id="agt-1", template_id="travel", metadata={"userId": "u-7"}),
    )

    await store.save_messages("agt-1", asked)  # refused: arg-type
    await store.save_messages("agt-1", ["Book me a flight"])  # refused: list-item
    await store.append_messages(["agt-1"], [asked])  # refused: arg-type
    await store.save_turn("agt-1", [asked])  # refused: call-arg
    await store.save_turn("agt-1", appended=[asked])  # refused: call-arg
    await store.save_todos("agt-1", [])  # refused: arg-type


async def loaded(store: ExtendedStore) -> None:
    for message in await store.load_messages("agt-1"):
        assert_type(message, Message)
        assert_type(message.text, str)
        for block in message.content:
            if isinstance(block, ToolUseBlock):
                print(block.name, block.input)
        message.role = "user"  # refused: misc
        message.content[0] = TextBlock("another")  # refused: index
        print(message.created_at)  # refused: attr-defined
    info = await store.load_info("agt-1")
    print(info.template_id)  # refused: union-attr
    if info is not None:
        assert_type(info.message_count, int)
    assert_type(await store.load_todos("agt-1"), TodoSnapshot | None)
    for waited in store.load_messages("agt-1"):  # refused: attr-defined
        print(waited)


def made() -> None:
    Message("user")  # refused: call-arg
    Message("user", 7)  # refused: arg-type
    Message.user(TextBlock("hi"))  # refused: arg-type
    AgentInfo("agt-1", "travel")  # refused: call-arg
    AgentInfo(agent_id="agt-1")  # refused: call-arg
    ToolCallRecord(id="call-1", name="search", state="COMPLETED", is_error="no")  # refused: arg-type
