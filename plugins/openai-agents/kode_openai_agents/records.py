"""Tool call records of the items of a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import repeat
from typing import Any, Final

from agents.tool import DEFAULT_APPROVAL_REJECTION_MESSAGE

from kode_core import ToolCallApproval, ToolCallAuditEntry, ToolCallRecord, now_ms
from kode_openai_agents.items import call_id, input_of, is_call, is_output, is_settled, name_of, text_of

_UNKNOWN: Final = "unknown"
"""The name of the tool in the record of an output whose call is not found."""


def unanswered(items: Iterable[dict[str, Any]]) -> set[str]:
    """The ids of the outputs among *items* whose calls are not among them."""
    called, wanted = set[str](), set[str]()
    for item in items:
        named = call_id(item)
        if named is not None and is_call(item):
            called.add(named)
        elif named is not None and named not in called:
            wanted.add(named)
    return wanted


def records_of(
    items: Iterable[dict[str, Any]],
    stored: Mapping[str, ToolCallRecord],
    is_failure: Callable[[dict[str, Any]], bool],
    times: Iterable[int] | None = None,
) -> list[ToolCallRecord]:
    """The records of the calls and outputs among *items*; *stored* are the records of calls of earlier batches.

    *times* has the time of each item, in milliseconds; without it all are of now.
    """
    found = dict[str, ToolCallRecord]()
    for item, now in zip(items, repeat(now_ms()) if times is None else times, strict=False):
        named = call_id(item)
        if named is None:
            continue
        if is_output(item):
            record = found.get(named) or stored.get(named) or _called(named, _UNKNOWN, None, now)
            found[named] = _answered(record, item.get("output"), is_failure(item), now)
            continue
        record = _called(named, name_of(item), input_of(item), now)
        if is_settled(item):
            record = _answered(record, item.get("output"), is_failure(item), now)
        found[named] = record
    return list(found.values())


def _called(named: str, tool: str, given: Any, now: int) -> ToolCallRecord:
    return ToolCallRecord(
        id=named,
        name=tool,
        input=given,
        state="EXECUTING",
        started_at=now,
        created_at=now,
        updated_at=now,
        audit_trail=(ToolCallAuditEntry("EXECUTING", now),),
    )


def _answered(record: ToolCallRecord, output: Any, failed: bool, now: int) -> ToolCallRecord:
    denied = text_of(output) == DEFAULT_APPROVAL_REJECTION_MESSAGE
    state = "DENIED" if denied else "FAILED" if failed else "COMPLETED"
    return record.replace(
        state=state,
        result=None if failed else output,
        error=text_of(output) or "failed" if failed else None,
        is_error=failed,
        approval=ToolCallApproval(required=True, decision="deny", decided_at=now) if denied else record.approval,
        completed_at=now,
        duration_ms=None if record.started_at is None else max(0, now - record.started_at),
        updated_at=now,
        audit_trail=(*record.audit_trail, ToolCallAuditEntry(state, now)),
    )
