"""A provider that needs no network: it says what a script says."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, TypeAlias

from kode_agent.errors import ProviderError
from kode_agent.provider import Answer, Delta, Usage
from kode_agent.tools import ToolSchema
from kode_core import Message, TextBlock, ToolUseBlock

__all__ = ["Line", "ScriptedProvider", "call"]

Line: TypeAlias = str | ToolUseBlock | Sequence[str | ToolUseBlock] | Exception
"""A turn of the model: a text, a call, several of them, or an error to raise."""


def call(tool: str, /, **arguments: Any) -> ToolUseBlock:
    """A call of a tool for a script."""
    return ToolUseBlock(f"call_{secrets.token_hex(8)}", tool, arguments)


class ScriptedProvider:
    """Says the lines of a script, one for each request: for tests and examples, and without a network.

    Args:
        script: the lines in their order, or a function that gets the messages and returns one.
        delay: seconds before each word.
    """

    name = "scripted"

    def __init__(self, script: Sequence[Line] | Callable[[Sequence[Message]], Line], *, delay: float = 0.0) -> None:
        self._say: Callable[[Sequence[Message]], Line]
        if callable(script):
            self._say = script
        else:
            lines = iter(list(script))
            self._say = lambda _: next(lines, ProviderError("the script has no more lines"))
        self._delay = delay

    async def stream(
        self, system: str, messages: Sequence[Message], tools: Sequence[ToolSchema]
    ) -> AsyncIterator[Delta | Answer]:
        """Say the next line, word by word."""
        line = self._say(messages)
        if isinstance(line, Exception):
            raise line
        parts = [line] if isinstance(line, str | ToolUseBlock) else list(line)
        for part in parts:
            for word in re.findall(r"\S+\s*|\s+", part) if isinstance(part, str) else ():
                if self._delay:
                    await asyncio.sleep(self._delay)
                yield Delta(word)
        blocks = [TextBlock(part) if isinstance(part, str) else part for part in parts]
        said = sum(len(block.text) for block in blocks if isinstance(block, TextBlock))
        asked = len(system) + sum(len(message.text) for message in messages)
        stop = "tool_use" if any(isinstance(block, ToolUseBlock) for block in blocks) else "end_turn"
        yield Answer(Message("assistant", blocks), Usage(asked // 4 + 1, said // 4 + 1), stop)
