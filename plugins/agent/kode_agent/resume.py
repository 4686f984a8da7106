"""Sealing: after a crash or an interruption every tool use gets a result, which says how far it came."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from kode_agent.journal import Journal, event
from kode_agent.results import result_of
from kode_core import (
    Message,
    ToolCallAuditEntry,
    ToolCallRecord,
    ToolResultBlock,
    ToolUseBlock,
    now_ms,
)

__all__ = ["open_uses", "seal", "waits_for_answer"]

_ENDED: Final = frozenset({"COMPLETED", "FAILED", "DENIED", "SEALED"})
_RECENT: Final = 200


def open_uses(messages: Sequence[Message]) -> dict[int, list[ToolUseBlock]]:
    """The tool uses without a result in the message after them, by the position of their message."""
    found: dict[int, list[ToolUseBlock]] = {}
    for position, message in enumerate(messages):
        uses = [block for block in message.content if isinstance(block, ToolUseBlock)]
        if uses and message.role == "assistant":
            after = messages[position + 1].content if position + 1 < len(messages) else ()
            done = {block.tool_use_id for block in after if isinstance(block, ToolResultBlock)}
            if missing := [block for block in uses if block.id not in done]:
                found[position] = missing
    return found


def waits_for_answer(messages: Sequence[Message]) -> bool:
    """Whether the model has not answered the last message."""
    return bool(messages) and messages[-1].role == "user"


async def seal(journal: Journal, because: str, *, limit: int) -> list[str]:
    """Give each open tool use a result, in one commit, and return the ids of the calls.

    A call whose result was stored gets that result. A call that was running may have taken effect: its result says so
    to the model, and its record is SEALED. The runtime never runs it again.

    Args:
        journal: the agent's state, which the commit changes.
        because: why the calls did not end, as in ``the process ended``.
        limit: of the characters of a result.
    """
    gaps = open_uses(journal.messages)
    if not gaps:
        return []
    count = sum(map(len, gaps.values()))
    stored = await journal.store.load_tool_call_records(journal.agent_id, last=max(_RECENT, 2 * count))
    records = {record.id: record for record in stored}
    sealed: list[ToolCallRecord] = []
    messages = list(journal.messages)
    for position in sorted(gaps, reverse=True):
        blocks: list[ToolResultBlock] = []
        for use in gaps[position]:
            record = records.get(use.id) or ToolCallRecord(id=use.id, name=use.name, input=use.input)
            if record.state not in _ENDED:
                record = _sealed(record, because)
                sealed.append(record)
            blocks.append(result_of(record, limit))
        _insert(messages, position, blocks)
    ids = [record.id for record in reversed(sealed)]
    told = event("monitor", "agent_sealed", calls=ids, reason=because)
    size = len(journal.messages)
    if messages[:size] == journal.messages:
        await journal.commit(told, append=messages[size:], calls=sealed)
    else:
        await journal.commit(told, messages=messages, calls=sealed)
    return ids


def _insert(messages: list[Message], position: int, blocks: list[ToolResultBlock]) -> None:
    """Put results behind their uses: into the message that has other results, or into a new one."""
    following = messages[position + 1] if position + 1 < len(messages) else None
    if following is not None and any(isinstance(block, ToolResultBlock) for block in following.content):
        messages[position + 1] = following.replace(content=(*blocks, *following.content))
    else:
        messages.insert(position + 1, Message("user", blocks))


def _sealed(record: ToolCallRecord, because: str) -> ToolCallRecord:
    if record.state == "EXECUTING":
        note = (
            f"The tool had been started when {because}, and its result is lost. It may have taken effect: check before "
            "you call it again."
        )
    else:
        note = f"The tool was not run: {because} before."
    at = now_ms()
    trail = (*record.audit_trail, ToolCallAuditEntry("SEALED", at, because))
    return record.replace(state="SEALED", is_error=True, error=note, completed_at=at, updated_at=at, audit_trail=trail)
