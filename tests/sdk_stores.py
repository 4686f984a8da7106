"""Writes stores as the KODE SDK 2.7 does: the folder of a ``JSONStore``, and the tables of its databases."""

from __future__ import annotations

import copy
import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from tests.test_foreign import TABLES

CREATED: Final = 1767258000000
ISO: Final = "2026-01-01T09:00:00.000Z"


def info(agent_id: str, **fields: Any) -> dict[str, Any]:
    return {
        "agentId": agent_id,
        "templateId": "airline",
        "createdAt": ISO,
        "lineage": [],
        "configVersion": "v2.7.0",
        "messageCount": 2,
        "lastSfpIndex": 1,
        "lastBookmark": {"seq": 1, "timestamp": CREATED + 9_000},
        "metadata": {"taskId": 1},
        **fields,
    }


def of_an_agent(agent_id: str, users: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    """The info that the SDK's ``Agent`` writes, with the caller's metadata inside of its own."""
    own = {
        "agentId": agent_id,
        "templateId": "airline",
        "tools": [{"name": "look"}],
        "createdAt": ISO,
        "updatedAt": "2026-01-01T10:00:00.000Z",
        "configVersion": "v2.7.0",
        "metadata": dict(users),
        "lineage": [],
        "breakpoint": "READY",
    }
    return info(agent_id, metadata=own, **fields)


MESSAGES: Final[list[dict[str, Any]]] = [
    {"role": "user", "content": [{"type": "text", "text": "Where is my bag?\u2028\U0001f600 \ud800"}]},
    {"role": "assistant", "content": [{"type": "tool_use", "id": "c-1", "name": "look", "input": {"n": 1.5}}]},
]
CALL: Final[dict[str, Any]] = {
    "id": "c-1",
    "name": "look",
    "input": {"n": 1.5},
    "state": "FAILED",
    "approval": {"required": False},
    "result": {"rows": []},
    "error": "no bag",
    "isError": True,
    "startedAt": CREATED + 3_000,
    "completedAt": CREATED + 4_000,
    "durationMs": 1000,
    "createdAt": CREATED + 3_000,
    "updatedAt": CREATED + 4_000,
    "auditTrail": [{"state": "PENDING", "timestamp": CREATED + 3_000}],
}


def snapshot(snapshot_id: str, messages: Sequence[Any] = MESSAGES, created: str = ISO) -> dict[str, Any]:
    mark = {"seq": 1, "timestamp": CREATED}
    fields = {"lastSfpIndex": 1, "lastBookmark": mark, "createdAt": created}
    return {"id": snapshot_id, "messages": list(messages), **fields}


def event(seq: int, kind: str, channel: str = "progress", **fields: Any) -> dict[str, Any]:
    mark = {"seq": seq, "timestamp": CREATED + seq * 1000}
    return {"cursor": seq, "bookmark": mark, "event": {"channel": channel, "type": kind, **fields, "bookmark": mark}}


def text(value: Any) -> bytes:
    """JSON as ``JSON.stringify`` has it: characters as they are, halves of characters as escapes."""
    return json.dumps(value, ensure_ascii=False, indent=2).encode("utf-8", "surrogatepass")


def lines(*entries: Any) -> bytes:
    return b"".join(json.dumps(entry, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n" for entry in entries)


def write(folder: Path, files: Mapping[str, bytes | Any]) -> None:
    """Files of one agent; what is not bytes is written as JSON."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else text(content))


def agent_files(agent_id: str, **fields: Any) -> dict[str, Any]:
    """An agent with a record of each kind."""
    window = {"id": "w-1", "messages": MESSAGES, "events": [event(0, "text_chunk")], "timestamp": CREATED + 5_000}
    stats = {"messageCount": 2, "tokenCount": 9, "eventCount": 1}
    return copy.deepcopy(
        {
            "meta.json": info(agent_id, **fields),
            "runtime/messages.json": MESSAGES,
            "runtime/tool-calls.json": [CALL],
            "runtime/todos.json": {"todos": [], "version": 2, "updatedAt": CREATED},
            "runtime/media-cache.json": [
                {"key": "k", "provider": "openai", "mimeType": "image/png", "sizeBytes": 3, "createdAt": CREATED}
            ],
            "events/progress.log": lines(event(0, "text_chunk", text="a\u2028b\x85c"), event(3, "done")),
            "events/monitor.log": lines(event(1, "state_changed", "monitor"), event(2, "token_usage", "monitor")),
            f"history/windows/{CREATED}.json": {**window, "stats": stats},
            f"history/compressions/{CREATED}.json": {
                "id": "c-1",
                "windowId": "w-1",
                "config": {"model": "m", "prompt": "p", "threshold": 1},
                "summary": "short",
                "ratio": 0.25,
                "recoveredFiles": ["a/b.md"],
                "timestamp": CREATED + 5_000,
            },
            f"history/recovered/a_b.md_{CREATED}.txt": (
                f"# Recovered: a/b.md\n# Timestamp: {CREATED}\n# Mtime: 1767258000000.25\n\nline\n\nline"
            ).encode(),
            "snapshots/sfp-1.json": snapshot("sfp-1"),
        }
    )


def rows(table: str, agent_id: str, records: Sequence[Mapping[str, Any]], mark: Callable[[int], str]) -> Any:
    """The statement that the SDK inserts rows with, and their values."""
    made = [_ROW[table](agent_id, i, record) for i, record in enumerate(records)]
    marks = ", ".join(mark(i) for i in range(len(made[0]))) if made else ""
    return f"INSERT INTO {table} VALUES ({marks})", made


def _stored(value: Any) -> Any:
    return None if value is None else json.dumps(value)


def _agent(agent_id: str, i: int, one: Mapping[str, Any]) -> list[Any]:
    return [
        agent_id,
        one["templateId"],
        one["createdAt"],
        one["configVersion"],
        _stored(one["lineage"]),
        one["messageCount"],
        one["lastSfpIndex"],
        _stored(one.get("lastBookmark")),
        one.get("breakpoint"),
        _stored(one["metadata"]),
    ]


def _message(agent_id: str, i: int, one: Mapping[str, Any]) -> list[Any]:
    content = _stored(one["content"])
    return [f"msg_{agent_id}_{i}", agent_id, one["role"], content, i, _stored(one.get("metadata")), CREATED + 8_000]


def _call(agent_id: str, i: int, one: Mapping[str, Any]) -> list[Any]:
    names = ("startedAt", "completedAt", "durationMs", "createdAt", "updatedAt")
    return [
        f"{agent_id}-{one['id']}",
        agent_id,
        one["name"],
        _stored(one["input"]),
        one["state"],
        _stored(one["approval"]),
        _stored(one.get("result")),
        one.get("error"),
        one["isError"],
        *(one.get(name) for name in names),
        _stored(one["auditTrail"]),
    ]


def _snapshot(agent_id: str, i: int, one: Mapping[str, Any]) -> list[Any]:
    mark = _stored(one["lastBookmark"])
    return [agent_id, one["id"], _stored(one["messages"]), one["lastSfpIndex"], mark, one["createdAt"], None]


_ROW: Final[Mapping[str, Callable[[str, int, Mapping[str, Any]], list[Any]]]] = {
    "agents": _agent,
    "messages": _message,
    "tool_calls": _call,
    "snapshots": _snapshot,
}


def make_tables(path: Path, agents: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> None:
    """A database of the SDK's ``SqliteStore`` with the rows of some agents."""
    with closing(sqlite3.connect(path)) as db:
        for statement in TABLES:
            db.execute(statement)
        for agent_id, tables in agents.items():
            for table, records in tables.items():
                statement, values = rows(table, agent_id, records, lambda _: "?")
                db.executemany(statement, values)
        db.commit()
