"""Stores for the tests: ordinary conversations, and hostile ones."""

from __future__ import annotations

from typing import Final

from kode_core import (
    AgentInfo,
    ExtendedStore,
    FileBlock,
    ImageBlock,
    Message,
    ReasoningBlock,
    Snapshot,
    TextBlock,
    TodoItem,
    TodoSnapshot,
    ToolCallApproval,
    ToolCallRecord,
    ToolResultBlock,
    ToolUseBlock,
    UnknownBlock,
)

MARKUP: Final = '<script>window.hacked=1</script><img src=x onerror="window.hacked=1">\'">{{ 7*7 }}'
BIDI: Final = "\u202eevil\u202c אבג \x07\x1b[31m\u0000"[:-1]
PNG: Final = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
HOSTILE_IDS: Final = (f"{MARKUP}/../?&#%00", BIDI, "a b/../%2e?x=1&y#z+", "l" * 256, "..", "javascript:alert(1)")


async def conversation(store: ExtendedStore, agent_id: str, *, template: str = "travel") -> None:
    """A conversation with a call that failed, one that went well, one that waits, a snapshot and events."""
    await store.save_turn(
        agent_id,
        append=[
            Message.system("You sell flights."),
            Message.user("I need a seat to Oslo"),
            Message("assistant", [ToolUseBlock(id="c1", name="search", input={"to": "OSL", "n": [1, 2]})]),
            Message("user", [ToolResultBlock(tool_use_id="c1", content="no seats", is_error=True)]),
            Message("assistant", [ToolUseBlock(id="c1", name="search", input={"to": "BGO"})]),
            Message("user", [ToolResultBlock(tool_use_id="c1", content={"seats": 3})]),
            Message.assistant("There are three to Bergen."),
        ],
        upsert_tool_calls=[
            ToolCallRecord(id="c1", name="search", input={"to": "BGO"}, state="COMPLETED", duration_ms=340),
            ToolCallRecord(id="c2", name="book", state="APPROVAL_REQUIRED", approval=ToolCallApproval(required=True)),
            ToolCallRecord(id="c3", name="pay", state="FAILED", is_error=True, error="card refused", duration_ms=1200),
        ],
        info=AgentInfo(agent_id=agent_id, template_id=template, metadata={"userId": "u-7", "reward": 1.0}),
        todos=TodoSnapshot(todos=[TodoItem(id="1", title="book the seat")]),
    )
    await store.save_snapshot(agent_id, Snapshot(id="first", messages=(await store.load_messages(agent_id))[:2]))
    await store.emit(agent_id, "text_chunk", {"delta": "There"})
    await store.emit(agent_id, "tool_failed", {"callId": "c1"}, channel="monitor")


async def hostile(store: ExtendedStore, agent_id: str) -> None:
    """Every text of the agent is markup, or hides, or is huge."""
    await store.save_turn(
        agent_id,
        append=[
            Message.system(MARKUP),
            Message.user(MARKUP * 50 + BIDI),
            Message(
                "assistant",
                [
                    TextBlock(MARKUP),
                    ReasoningBlock(reasoning=MARKUP),
                    ImageBlock(base64=PNG, mime_type="image/png"),
                    ImageBlock(url="javascript:window.hacked=1"),
                    ImageBlock(base64="PHN2Zz4=", mime_type="image/svg+xml"),
                    FileBlock(url=f"http://evil.example/{'x' * 900}", filename=MARKUP),
                    ToolUseBlock(
                        id=MARKUP,
                        name=MARKUP,
                        input={MARKUP: MARKUP, "deep": [[[[[[[[[[[[[[[1]]]]]]]]]]]]]]], "long": "w" * 90_000},
                    ),
                ],
            ),
            Message("user", [ToolResultBlock(tool_use_id=MARKUP, content=MARKUP, is_error=True)]),
            Message("we<b>ird", [UnknownBlock({"type": MARKUP, "a": [MARKUP] * 2_000})], metadata={MARKUP: MARKUP}),
            Message.assistant("x" * 60_000),
            Message.user("\ud800 alone, \u2028 and \x85"),
        ],
        upsert_tool_calls=[
            ToolCallRecord(
                id=MARKUP,
                name=MARKUP,
                input={MARKUP: MARKUP},
                state=f"FAILED{MARKUP}",
                is_error=True,
                error=MARKUP,
                duration_ms=1e300,
                approval=ToolCallApproval(required=True, decision="allow", decided_by=MARKUP, note=MARKUP),
            )
        ],
        info=AgentInfo(
            agent_id=agent_id,
            template_id=MARKUP,
            created_at=2**62,
            metadata={MARKUP: MARKUP, "userId": MARKUP, "big": 10**400, "half": "\ud800", "w": "w" * 5_000},
            breakpoint=MARKUP,
        ),
        todos=TodoSnapshot(todos=[TodoItem(id="1", title=MARKUP)]),
    )
    await store.emit(agent_id, MARKUP, {MARKUP: MARKUP, "b": BIDI, "half": "\ud800"})
    await store.save_snapshot(agent_id, Snapshot(id=MARKUP, messages=[Message.user(MARKUP)], metadata={MARKUP: MARKUP}))
    child = await store.fork(agent_id)
    await store.fork(child)
