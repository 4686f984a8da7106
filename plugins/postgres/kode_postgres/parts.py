"""The parts of the write statement, and the columns of its arguments."""

from __future__ import annotations

from enum import Flag, auto
from typing import Final, NamedTuple

from kode_core.batch import ListKind

__all__ = ["INPUT", "LISTS", "ONE", "PUTS", "ROWS", "Column", "Part"]


class Part(Flag):
    """A kind of contents of a group."""

    SEVERAL = auto()
    FENCE = auto()
    AGE = auto()
    TOUCH = auto()
    MESSAGES = auto()
    MESSAGES_PUT = auto()
    TOOL_CALLS = auto()
    TOOL_CALLS_PUT = auto()
    INFO = auto()
    DOCS = auto()
    TERMS = auto()
    EVENTS = auto()
    UNSEEN = auto()
    DEMANDS = auto()


class Column(NamedTuple):
    """A column of the input arrays."""

    name: str
    type: str


def _list_columns(one: str) -> tuple[Column, ...]:
    """The input columns of a list in a batch.

    They are the version before the first, NULL if the list is not written; the addition to the version; the expected
    version; and the new length and the number of appended rows.

    ``least`` is the least length of the list after rows were put.
    """
    return (
        Column(f"{one}_first", "bigint"),
        Column(f"{one}_step", "bigint"),
        Column(f"{one}_expect", "bigint"),
        Column(f"{one}_length", "bigint"),
        Column(f"{one}_least", "bigint"),
        Column(f"{one}_append", "bigint"),
    )


INPUT: Final[dict[Part | None, tuple[Column, ...]]] = {
    None: (Column("agent_id", "text"), Column("op", "bigint"), Column("since", "bigint")),
    Part.FENCE: (Column("fence_owner", "text"), Column("fence_token", "bigint")),
    Part.AGE: (
        Column("expect_updated_at", "bigint"),
        Column("expect_messages", "bigint"),
        Column("expect_tool_calls", "bigint"),
    ),
    Part.TOUCH: (Column("now", "bigint"),),
    Part.MESSAGES: _list_columns("message"),
    Part.TOOL_CALLS: _list_columns("tool_call"),
    Part.INFO: (Column("has_info", "boolean"), Column("template_id", "text"), Column("created_at", "bigint")),
    Part.EVENTS: (Column("events", "bigint"),),
    Part.UNSEEN: (Column("message_oldest", "bigint"),),
    Part.DEMANDS: (Column("has_demands", "boolean"), Column("expect_info", "bytea"), Column("is_new", "boolean")),
}
"""The input columns of each batch, by the part that needs them.

``since`` is when the first attempt that may have been applied was sent, by the server's clock, and never later than it
was.
"""

_ROW: Final = (Column("n", "bigint"), Column("position", "bigint"), Column("created_at", "bigint"))
_BODY: Final = (Column("digest", "bytea"), Column("body", "text"))
ROWS: Final[dict[Part, tuple[Column, ...]]] = {
    Part.MESSAGES: (*_ROW, Column("role", "text"), Column("content_types", "text"), *_BODY),
    Part.TOOL_CALLS: (
        *_ROW,
        Column("call_id", "text"),
        Column("tool_name", "text"),
        Column("state", "text"),
        Column("is_error", "boolean"),
        Column("has_approval", "boolean"),
        *_BODY,
    ),
    Part.INFO: (Column("n", "bigint"), Column("metadata", "text"), *_BODY),
    Part.DOCS: (
        Column("n", "bigint"),
        Column("place", "bigint"),
        Column("kind", "text"),
        Column("key_hash", "bytea"),
        Column("key", "text"),
        Column("time", "bigint"),
        *_BODY,
    ),
    Part.TERMS: (
        Column("n", "bigint"),
        Column("key", "text"),
        Column("term", "text"),
        Column("key_hash", "bytea"),
        Column("digest", "bytea"),
    ),
    Part.EVENTS: (
        Column("n", "bigint"),
        Column("k", "bigint"),
        Column("seq", "bigint"),
        Column("channel", "text"),
        *_BODY,
    ),
    Part.DEMANDS: (
        Column("n", "bigint"),
        Column("kind", "text"),
        Column("key_hash", "bytea"),
        Column("key", "text"),
        Column("digest", "bytea"),
    ),
}
"""The rows for each table, and the documents that are demanded; ``n`` is the number of the batch, from 1.

The terms of documents come after the documents, which they refer to.

A position below 0 belongs to an appended row: -1 is the first of them.
"""

LISTS: Final = {ListKind.MESSAGES: Part.MESSAGES, ListKind.TOOL_CALLS: Part.TOOL_CALLS}
PUTS: Final = {Part.MESSAGES: Part.MESSAGES_PUT, Part.TOOL_CALLS: Part.TOOL_CALLS_PUT}
ONE: Final = {Part.MESSAGES: "message", Part.TOOL_CALLS: "tool_call"}
