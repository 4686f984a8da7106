"""Records that differ from an original in a single field, to see that a change of one field changes nothing else.

Names are as in histories: ``c.state`` is the tool call ``c.`` in another state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from kode_conformance.values import samples
from kode_core.model import (
    AgentInfo,
    Bookmark,
    CompressionConfig,
    HistoryStats,
    ImageBlock,
    Message,
    Record,
    TextBlock,
    ToolCallApproval,
    ToolCallAuditEntry,
    ToolUseBlock,
)

__all__ = ["KEYS", "ORIGINALS", "VARIANTS", "names_of"]

_T: Final = samples.T0

ORIGINALS: Final[Mapping[str, Record]] = {
    "m": Message("assistant", [TextBlock("look"), ToolUseBlock("c0", "t", {"q": 1})], metadata={"k": 0}),
    "c": samples.tool_call(5, created_at=_T + 5),
    "t": samples.todos("one", "two"),
    "w": samples.window("w.", _T + 5),
    "p": samples.compression("p.", _T + 5),
    "r": samples.recovered("r./a", _T + 5),
    "d": samples.media("d."),
    "s": samples.snapshot("s.", _T + 5),
    "i": AgentInfo(
        agent_id="",
        template_id="t0",
        created_at=_T + 5,
        lineage=["z"],
        config_version="1",
        last_sfp_index=2,
        last_bookmark=Bookmark(7, _T),
        breakpoint="READY",
        metadata={"userId": "u", "n": 0, "one": 1, "list": [1, {"a": None}], "text": "1"},
    ),
}
"""A record of each kind, by its letter; it is called ``c.`` for ``c``."""

KEYS: Final[Mapping[str, Sequence[str]]] = {
    "m": (),
    "c": ("id",),
    "t": (),
    "w": ("id",),
    "p": ("id",),
    "r": ("path", "timestamp"),
    "d": (),
    "s": ("id",),
    "i": ("agent_id", "message_count"),
}
"""Fields by which a record is found, or that the store keeps: changing one makes another record."""

_METADATA: Final = ORIGINALS["i"].metadata  # type: ignore[attr-defined]
_OTHERS: Final[Mapping[str, Mapping[str, Sequence[Any]]]] = {
    "m": {
        "role": ["user"],
        "content": [
            [TextBlock("look")],
            [ImageBlock(url="u")],
            [ToolUseBlock("c0", "t", {"q": 1}), TextBlock("look")],
            [],
        ],
        "metadata": [None, {"k": False}],
    },
    "c": {
        "name": ["Search", ""],
        "input": [None],
        "state": ["FAILED", "completed"],
        "approval": [ToolCallApproval(required=True), ToolCallApproval(required=True, decision="allow")],
        "result": [None],
        "error": [""],
        "is_error": [True, None],
        "started_at": [None],
        "completed_at": [0],
        "duration_ms": [0.5],
        "created_at": [_T - 1, _T + 99],
        "updated_at": [0],
        "audit_trail": [[ToolCallAuditEntry("FAILED", 0)]],
    },
    "t": {"todos": [samples.todos("two", "one").todos], "version": [0], "updated_at": [0]},
    "w": {
        "messages": [samples.messages(1)],
        "events": [[]],
        "stats": [HistoryStats()],
        "timestamp": [_T - 1, _T + 99],
    },
    "p": {
        "window_id": ["w0"],
        "config": [CompressionConfig()],
        "summary": [""],
        "ratio": [0],
        "recovered_files": [[]],
        "timestamp": [_T - 1, _T + 99],
    },
    "r": {"content": [""], "mtime": [0]},
    "d": {
        "key": ["D."],
        "provider": [""],
        "mime_type": [""],
        "size_bytes": [0],
        "file_id": [None],
        "file_uri": [""],
        "created_at": [0],
    },
    "s": {
        "messages": [samples.messages(1)],
        "last_sfp_index": [-1],
        "last_bookmark": [None],
        "created_at": [_T - 1, _T + 99],
        "metadata": [None],
    },
    "i": {
        "template_id": ["t1", "T0"],
        "created_at": [_T - 1, _T + 99],
        "lineage": [[]],
        "config_version": [""],
        "last_sfp_index": [-1],
        "last_bookmark": [None, Bookmark(0, 0)],
        "breakpoint": [None],
        "metadata": [
            {},
            {**_METADATA, "userId": "U"},
            {**_METADATA, "userId": 5},
            {key: value for key, value in _METADATA.items() if key != "userId"},
            {**_METADATA, "n": False, "one": True},
            {**_METADATA, "n": 0.0, "one": 1.0},
            {**_METADATA, "one": "1", "text": 1},
            {**_METADATA, "list": [1, {"a": 0}], "more": None},
            dict(reversed(_METADATA.items())),
        ],
    },
}


def _made() -> dict[str, Record]:
    found: dict[str, Record] = {f"{letter}.": record for letter, record in ORIGINALS.items()}
    for letter, fields in _OTHERS.items():
        for field, values in fields.items():
            for i, value in enumerate(values):
                changed = ORIGINALS[letter].replace(**{field: value})
                found[f"{letter}.{field}{i + 1 if len(values) > 1 else ''}"] = changed
    return found


VARIANTS: Final[Mapping[str, Record]] = _made()
"""All variants and the originals."""


def names_of(letter: str) -> list[str]:
    """The variants of a kind, without the original."""
    return [name for name in VARIANTS if name.startswith(f"{letter}.") and name != f"{letter}."]
