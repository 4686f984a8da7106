"""The tool calls of a chat: the matching of answers to requests, and the record of each call."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from kode_core.errors import InvalidArgumentError
from kode_core.formats.chat_messages import ChatMessage, Key, ToolRequest, content_text
from kode_core.model import Json, ToolCallAuditEntry, ToolCallRecord

__all__ = ["ChatCall", "call_record", "is_failure", "match_calls"]


class ChatCall(NamedTuple):
    """A call: the request, the index of its message, and the index of the answer, None if there is no answer."""

    request: ToolRequest
    asked: int
    answered: int | None


def match_calls(messages: Sequence[ChatMessage]) -> list[ChatCall]:
    """The calls in the order of their requests.

    Ids repeat, even in one conversation, so order decides: read from the end, each request takes the last answer behind
    it that no other took. That also finds the request that never got an answer among several of one id.

    Raises:
        InvalidArgumentError: an answer belongs to no call.
    """
    _refuse_surplus(messages)
    free: defaultdict[Key, list[int]] = defaultdict(list)
    calls: list[ChatCall] = []
    for i in range(len(messages) - 1, -1, -1):
        result = messages[i].result
        if result is not None:
            free[result.key].append(i)
        for request in reversed(messages[i].requests):
            answers = free[request.key]
            calls.append(ChatCall(request, i, answers.pop(0) if answers else None))
    return calls[::-1]


def _refuse_surplus(messages: Sequence[ChatMessage]) -> None:
    waiting: Counter[Key] = Counter()
    for i, message in enumerate(messages):
        if message.result is not None:
            kind, name = message.result.key
            if not waiting[message.result.key]:
                raise InvalidArgumentError(
                    f"message {i}: a result for {kind} {name!r:.80}, and no call before it waits for one"
                )
            waiting[message.result.key] -= 1
        waiting.update(request.key for request in message.requests)


def is_failure(content: Json) -> bool:
    """True if a tool's answer reports a failure.

    The format has no field for that; by convention the text begins with "Error".
    """
    return content_text(content).startswith("Error")


def call_record(call: ChatCall, messages: Sequence[ChatMessage], times: Sequence[int]) -> ToolCallRecord:
    """The record of a call, given the time of each message."""
    asked = times[call.asked]
    record = ToolCallRecord(
        id=call.request.id,
        name=call.request.name,
        input=call.request.input,
        created_at=asked,
        updated_at=asked,
        audit_trail=(ToolCallAuditEntry("PENDING", asked),),
    )
    result = None if call.answered is None else messages[call.answered].result
    if call.answered is None or result is None:
        return record
    return _settled(record, result.content, times[call.answered])


def _settled(record: ToolCallRecord, content: Json, answered: int) -> ToolCallRecord:
    asked, failed = record.created_at, is_failure(content)
    state = "FAILED" if failed else "COMPLETED"
    return record.replace(
        state=state,
        result=None if failed else content,
        error=content_text(content) if failed else None,
        is_error=failed,
        started_at=asked,
        completed_at=answered,
        duration_ms=answered - asked,
        updated_at=answered,
        audit_trail=(
            *record.audit_trail,
            ToolCallAuditEntry("EXECUTING", asked),
            ToolCallAuditEntry(state, answered),
        ),
    )
