"""Messages of LangChain as messages and tool calls of kode-core, for queries, commands and statistics.

They are made in addition to the values that LangGraph gets back, which are kept as they were given.
"""

from __future__ import annotations

from langchain_core.messages import BaseMessage, RemoveMessage

from kode_core.formats.langchain import Calls, message_of
from kode_core.formats.langgraph import Said

__all__ = ["Calls", "is_message", "message_of"]


def is_message(value: object) -> bool:
    """True for a message that a conversation has; a RemoveMessage is an order to the reducer."""
    if isinstance(value, Said):
        return value.is_said
    return isinstance(value, BaseMessage) and not isinstance(value, RemoveMessage)
