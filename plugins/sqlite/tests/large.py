"""A database of many rows, made with SQL: bodies are none that the store would write, and nothing reads them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Any, Final

__all__ = ["AGENTS", "BUSY", "CALLS", "EPOCH", "EVENTS", "NEWEST", "fill", "name"]

AGENTS: Final = 20_000
MESSAGES: Final = 80_000
CALLS: Final = 20_000
EVENTS: Final = 40_000
EPOCH: Final = 1_750_000_000_000
NEWEST: Final = EPOCH + MESSAGES
BUSY: Final = "agt-000007"
"""An agent with most of the events, and a long list."""

_BODY: Final = ("{}", b"\0" * 16)


def name(i: int) -> str:
    return f"agt-{i:06d}"


def _heads() -> Iterator[tuple[Any, ...]]:
    """Agents of the first half were used last, so that the orders by both times have nothing in common."""
    for i in range(AGENTS):
        updated = EPOCH + (i + AGENTS // 2) % AGENTS
        yield name(i), 1, MESSAGES // AGENTS, 1, CALLS // AGENTS, updated, "", f"template-{i % 5}", EPOCH + i


def _metadata() -> Iterator[tuple[str, str, str]]:
    for i in range(AGENTS):
        yield name(i), "userId", f'"u-{i % 2000}"'
        yield name(i), "plan", '"gold"' if i % 3 else '"free"'
        if i < AGENTS // 4:  # common, and none of the newest has it
            yield name(i), "campaign", '"first"'


def _messages() -> Iterator[tuple[Any, ...]]:
    """Half of them are one agent's, and of one moment."""
    for i in range(MESSAGES):
        role = "system" if i == 5 else ("user", "assistant")[i % 2]
        types = "\nvideo\n" if i == 9 else ("\ntext\n", "\ntool_use\n")[i % 2]
        agent_id, position, time = (BUSY, i, EPOCH) if i < MESSAGES // 2 else (name(i % AGENTS), i, EPOCH + i)
        yield agent_id, position, time, role, types, *_BODY


def _calls() -> Iterator[tuple[Any, ...]]:
    for i in range(CALLS):
        state = {3: "PENDING", 4: "FAILED"}.get(i, "COMPLETED")
        yield name(i % AGENTS), i, EPOCH + i, f"c{i}", f"tool-{i % 20}", state, i == 4, i == 3, *_BODY


def _events() -> Iterator[tuple[Any, ...]]:
    """Most are progress of one agent; every hundredth is another's, and few are of another channel."""
    for i in range(1, EVENTS + 1):
        digest = i.to_bytes(16)
        if i % 100 == 0:
            yield i, name(8), i, "progress", "{}", digest
        else:
            yield i, BUSY, i, "monitor" if i in (50, EVENTS - 50) else "progress", "{}", digest


_FILLED: Final = (
    (
        "INSERT INTO kode_agents (agent_id, message_version, message_count, tool_call_version, tool_call_count,"
        " updated_at, last_op, template_id, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        _heads,
    ),
    ("INSERT INTO kode_metadata (agent_id, key, value) VALUES (?, ?, ?)", _metadata),
    ("INSERT INTO kode_messages VALUES (?, ?, ?, ?, ?, ?, ?)", _messages),
    ("INSERT INTO kode_tool_calls VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", _calls),
    ("INSERT INTO kode_events VALUES (?, ?, ?, ?, ?, ?)", _events),
)


def fill(db: sqlite3.Connection) -> None:
    """Fill tables of this or of an older version."""
    with db:
        for statement, rows in _FILLED:
            db.executemany(statement, rows())
        db.execute("INSERT INTO kode_infos SELECT agent_id, '{}', x'00' FROM kode_agents")
