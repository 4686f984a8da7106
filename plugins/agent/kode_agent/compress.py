"""Compression: older messages go into a history window, and a summary stands in their place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from kode_agent.asking import ask
from kode_agent.errors import ProviderError
from kode_agent.journal import Journal, event
from kode_agent.provider import Provider, name_of
from kode_agent.template import Compression, Template
from kode_core import (
    CompressionConfig,
    CompressionRecord,
    HistoryStats,
    HistoryWindow,
    Message,
    ToolResultBlock,
    new_agent_id,
    to_dict,
    to_json,
)

__all__ = ["compress", "context_tokens", "cut_of"]

_CHARACTERS: Final = 4  # of a token, about
_HEADING: Final = "Summary of the conversation so far:\n\n"


def cut_of(messages: Sequence[Message], keep: int) -> int:
    """How many messages to compress: the rest are *keep*, or more, and do not begin with the results of tools."""
    at = max(len(messages) - keep, 0)
    while at > 0 and any(isinstance(block, ToolResultBlock) for block in messages[at].content):
        at -= 1
    return at


async def compress(journal: Journal, provider: Provider, template: Template, wanted: Compression) -> None:
    """Replace the older messages by a summary, if there are enough of them.

    The window is stored first, then its record, then the messages are replaced in one commit: a crash in between leaves
    a window that nothing refers to, and the whole conversation. If the provider fails, the conversation stays as it is.
    """
    cut = cut_of(journal.messages, wanted.keep_messages)
    if cut < 2:
        return
    old, kept = journal.messages[:cut], journal.messages[cut:]
    tokens = context_tokens(journal)
    await journal.commit(event("monitor", "context_compression", phase="start"))
    try:
        answer = await ask(provider, template, journal, [*old, Message.user(wanted.prompt)])
        summary = answer.message.text
        if not summary:
            raise ProviderError("the model wrote no summary")
    except ProviderError as exc:
        told = event("monitor", "error", severity="warn", phase="system", message=f"the compression failed: {exc}")
        await journal.commit(told)
        return
    window_id, store, agent_id = f"window-{new_agent_id()}", journal.store, journal.agent_id
    ratio = round(len(summary) / max(_size(old), 1), 4)
    stats = HistoryStats(message_count=len(old), token_count=tokens)
    await store.save_history_window(
        agent_id, HistoryWindow(id=window_id, messages=old, stats=stats), fence=journal.lease
    )
    model = getattr(provider, "model", None)
    config = CompressionConfig(
        model=model if isinstance(model, str) else name_of(provider),
        prompt=wanted.prompt,
        threshold=wanted.threshold_tokens,
    )
    record = CompressionRecord(
        id=f"compression-{new_agent_id()}", window_id=window_id, config=config, summary=summary, ratio=ratio
    )
    await store.save_compression_record(agent_id, record, fence=journal.lease)
    first = Message.user(_HEADING + summary).replace(metadata={"summaryOf": window_id})
    await journal.commit(
        event("monitor", "context_compression", phase="end", summary=summary, ratio=ratio, windowId=window_id),
        messages=[first, *kept],
        usage=answer.usage,
    )


def context_tokens(journal: Journal) -> int:
    """The tokens of the last request and its answer; a guess where the server does not count them."""
    return journal.numbers.get("contextTokens") or _size(journal.messages) // _CHARACTERS


def _size(messages: Sequence[Message]) -> int:
    return sum(len(to_json(to_dict(message))) for message in messages)
