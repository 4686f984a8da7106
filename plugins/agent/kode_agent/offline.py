"""The template and the provider of ``kode chat`` without a model: they show what an agent does."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from kode_agent.providers.scripted import Line, ScriptedProvider, call
from kode_agent.template import Template
from kode_agent.tools import ToolContext, tool
from kode_core import Message, ToolResultBlock

__all__ = ["TEMPLATE", "offline"]


def clock() -> datetime:
    """The present time, in UTC."""
    return datetime.now(UTC)


@tool(needs_approval=True)
async def note(text: str, context: ToolContext) -> str:
    """Keep a note in the agent's documents."""
    await context.store.put_document(context.agent_id, "notes", context.call_id, text)
    return "noted"


TEMPLATE: Final = Template("chat", "You are a helpful assistant.", [clock, note])


def offline() -> ScriptedProvider:
    """A provider that calls ``clock`` when asked for the time, ``note`` for a note, and otherwise repeats."""
    return ScriptedProvider(_say, delay=0.02)


def _say(messages: Sequence[Message]) -> Line:
    results = [block for block in messages[-1].content if isinstance(block, ToolResultBlock)]
    if results and not messages[-1].text:
        return f"The tool says: {results[-1].content}"
    said = messages[-1].text.strip()
    if said.lower().startswith("note "):
        return call("note", text=said[5:])
    if "time" in said.lower():
        return ["I look at the clock. ", call("clock")]
    return f"You said: {said}\nAsk me for the time, or write: note followed by a text."
