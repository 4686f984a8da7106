"""Tool call records of the entries of a batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from itertools import repeat
from typing import Any, Final

from kode_claude_agent.entries import is_call, is_failure, is_result, parts_of, text_of
from kode_core import ToolCallAuditEntry, ToolCallRecord, now_ms

_UNKNOWN: Final = "unknown"
"""The name of the tool in the record of a result whose call is not found."""
_LATEST: Final = 2**53


def unanswered(entries: Iterable[dict[str, Any]]) -> set[str]:
    """The ids of the results among *entries* whose calls are not among them."""
    called, wanted = set[str](), set[str]()
    for part in (part for entry in entries for part in parts_of(entry)):
        if is_call(part):
            called.add(part["id"])
        elif is_result(part) and part["tool_use_id"] not in called:
            wanted.add(part["tool_use_id"])
    return wanted


def records_of(
    entries: Iterable[dict[str, Any]], stored: Mapping[str, ToolCallRecord], times: Iterable[int] | None = None
) -> list[ToolCallRecord]:
    """The records of the calls and results in *entries*; *stored* are the records of calls of earlier batches.

    *times* has the time of each entry, in milliseconds; without it an entry that has none is of now.
    """
    found: dict[str, ToolCallRecord] = {}
    for entry, given in zip(entries, repeat(None) if times is None else times, strict=False):
        time = given if given is not None else _time_or_now(entry)
        for part in parts_of(entry):
            if is_call(part):
                found[part["id"]] = _called(part["id"], part["name"], part.get("input"), time)
            elif is_result(part):
                named = part["tool_use_id"]
                record = found.get(named) or stored.get(named) or _called(named, _UNKNOWN, None, time)
                found[named] = _answered(record, part, time)
    return list(found.values())


def time_of(entry: dict[str, Any]) -> int | None:
    """The time of an entry in milliseconds; None if it has none."""
    text = entry.get("timestamp")
    try:
        moment = datetime.fromisoformat(text) if type(text) is str else None
        time = None if moment is None or moment.tzinfo is None else int(moment.timestamp() * 1000)
    except (ValueError, OverflowError):
        return None
    return time if time is not None and 0 <= time < _LATEST else None


def _time_or_now(entry: dict[str, Any]) -> int:
    time = time_of(entry)
    return now_ms() if time is None else time


def _called(named: str, tool: str, given: Any, time: int) -> ToolCallRecord:
    return ToolCallRecord(
        id=named,
        name=tool,
        input=given,
        state="EXECUTING",
        started_at=time,
        created_at=time,
        updated_at=time,
        audit_trail=(ToolCallAuditEntry("EXECUTING", time),),
    )


def _answered(record: ToolCallRecord, part: dict[str, Any], time: int) -> ToolCallRecord:
    content, failed = part.get("content"), is_failure(part)
    state = "FAILED" if failed else "COMPLETED"
    return record.replace(
        state=state,
        result=None if failed else content,
        error=(text_of(content) or "failed") if failed else None,
        is_error=failed,
        completed_at=time,
        duration_ms=None if record.started_at is None else max(0, time - record.started_at),
        updated_at=time,
        audit_trail=(*record.audit_trail, ToolCallAuditEntry(state, time)),
    )
