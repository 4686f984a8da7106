"""Checks that each tool use has its result, and each result its use."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from kode_core.model import Message, ToolResultBlock, ToolUseBlock

__all__ = ["Pairing", "Problem"]


class Problem(NamedTuple):
    """A problem with a pair; ``code`` is as in ``ConsistencyIssue``."""

    code: str
    message: str


class Pairing:
    """The tool uses and results of messages, added one message after the other.

    Attributes:
        messages: the number of messages so far.
    """

    def __init__(self) -> None:
        self.messages = 0
        self._open: Counter[str] = Counter()
        self._answered: set[str] = set()
        self._problems: dict[str, Problem] = {}

    def add(self, position: int, message: Message) -> None:
        """Add the next message."""
        self.messages += 1
        for block in message.content:
            if isinstance(block, ToolUseBlock):
                self._open[block.id] += 1
            elif isinstance(block, ToolResultBlock):
                self._answer(position, block.tool_use_id)

    def _answer(self, position: int, call_id: str) -> None:
        if self._open[call_id] > 0:
            self._open[call_id] -= 1
            self._answered.add(call_id)
            return
        if call_id in self._answered:
            text = f"the tool call {call_id!r:.80} was answered twice, the second time in message {position}"
        else:
            text = f"message {position} has a result of the call {call_id!r:.80}, which was not asked for"
        self._problems.setdefault(f"result {call_id}", Problem("result_without_use", text))

    def problems(self) -> dict[str, Problem]:
        """The problems of these messages, by a key that stays the same when messages move."""
        left = sorted(call_id for call_id, count in self._open.items() if count > 0)
        text = "the tool call {!r:.80} has no result"
        uses = {f"use {call_id}": Problem("use_without_result", text.format(call_id)) for call_id in left}
        return {**self._problems, **uses}
