"""Agents to move: of every kind of record, with hostile values and ids."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from kode_conformance.values import samples
from kode_conformance.values.payloads import PAYLOADS

from kode_core import (
    AgentRecords,
    Document,
    ExtendedStore,
    Message,
    TextBlock,
    Timeline,
    ToolCallRecord,
    ToolUseBlock,
)
from kode_core.model import AgentEvent, Bookmark
from kode_core.moving.lines import agent_lines, fingerprint

T0: Final = 1_735_689_600_000
HOSTILE_IDS: Final = ("a/../b", "new\nline", "nul-free \x01", "😀", "%_*[", '"quoted"\\', "é", "e\u0301", "x" * 256)
VALUES: Final = [one.value for one in PAYLOADS if one.is_json and len(json.dumps(one.value)) < 100_000]
HUGE: Final = '"\n\0😀\ud800' * 500_000


def full(agent_id: str, **changes: Any) -> AgentRecords:
    """An agent with records of every kind."""
    fields: dict[str, Any] = {
        "agent_id": agent_id,
        "info": samples.info(agent_id, lineage=["p", "q"], last_bookmark=Bookmark(9, T0)),
        "updated_at": T0 + 99,
        "messages": samples.rich_messages(),
        "message_times": [T0 + i for i in range(len(samples.rich_messages()))],
        "tool_calls": [samples.tool_call(1), samples.approved_call(2), samples.tool_call(1)],
        "todos": samples.todos("one", "two"),
        "history_windows": [samples.window("w2", T0), samples.window("w1", T0), samples.window("w0", T0 - 5)],
        "compression_records": [samples.compression("c2"), samples.compression("c1")],
        "recovered_files": [samples.recovered("b.md"), samples.recovered("a.md"), samples.recovered("a.md", T0 + 1)],
        "media_cache": [samples.media("m1"), samples.media("m0"), samples.media("m1")],
        "snapshots": [samples.snapshot("s1"), samples.snapshot("s2"), samples.snapshot("s0", T0 + 1)],
        "documents": [document("notes", "z"), document("notes", "a", tags={"run": "r1", "a": "é"}), document("b", "k")],
        "events": [samples.event(5), samples.event(3), samples.event(5, "monitor", cursor=8, text="again")],
    }
    return AgentRecords(**(fields | changes))


def document(collection: str, key: str, value: Any = None, *, tags: dict[str, str] | None = None) -> Document:
    return Document(
        collection=collection, key=key, value=[key, value], version="0", updated_at=T0 + len(key), tags=tags or {}
    )


def hostile(agent_id: str) -> AgentRecords:
    """An agent whose free-form values are all that JSON can carry, and whose typed ones are extreme."""
    inputs = [ToolCallRecord(id=f"c{i}", name="", input=value) for i, value in enumerate(VALUES)]
    blocks = [ToolUseBlock(f"u{i}", "\0", value) for i, value in enumerate(VALUES) if type(value) is dict]
    events = [
        Timeline(2**63 - 1, Bookmark(-(2**63), 2**63 - 1), AgentEvent("control", "", {"v": value})) for value in VALUES
    ]
    return full(
        agent_id,
        messages=[
            Message("assistant", blocks),
            Message("user", "\ud800"),
            Message("user", HUGE),
            Message("user", [TextBlock("")]),
        ],
        message_times=[0, -5, -5, 2**60],
        tool_calls=inputs,
        documents=[document("v", f"{i}", value) for i, value in enumerate(VALUES)],
        events=[one.replace(cursor=i) for i, one in enumerate(events)],
        updated_at=2**60,
    )


def agents(count: int) -> Iterator[AgentRecords]:
    """Small agents with records of every kind."""
    for i in range(count):
        yield full(f"agt-{i:04}")


async def fill(store: ExtendedStore, *records: AgentRecords) -> None:
    for one in records:
        await store.import_agent(one.agent_id, one)


async def digests(store: ExtendedStore) -> dict[str, str]:
    """The digest of each agent."""
    found = {}
    for agent_id in await store.list(include_without_info=True):
        records = await store.load_agent(agent_id)
        assert records is not None
        found[agent_id] = (await fingerprint(records)).digest
    return found


async def text_of(records: AgentRecords) -> bytes:
    return b"".join([line async for _, line in agent_lines(records)])
