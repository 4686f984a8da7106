"""Replace the last items of a session in one commit: for the SDK's ``OpenAIResponsesCompactionSession``."""

from __future__ import annotations

from collections.abc import Callable
from itertools import dropwhile
from typing import Any, Final

from agents.memory.session import _CompactionSnapshot

from kode_core import ConflictError, CorruptRecordError, Message
from kode_openai_agents.calls import Calls, settled
from kode_openai_agents.items import item_of, message_of

_ATTEMPTS: Final = 20


async def snapshot_of(
    call: Calls, limit: int, prune_prefix: Callable[[Any], bool] | None
) -> _CompactionSnapshot | None:
    """The latest *limit* items of a session; None if one of them is damaged or they kept changing."""
    for _ in range(_ATTEMPTS):
        stored = await call("load_session")
        try:
            tail: list[Message] = await call("load_messages", last=limit)
        except CorruptRecordError:
            return None
        if stored is None:
            return _CompactionSnapshot([], True, _Replacement(call, tail, prune_prefix))
        if await call("load_version") == stored.version:
            is_whole = stored.message_count <= limit
            items = [item_of(message) for message in tail]
            return _CompactionSnapshot(items, is_whole, _Replacement(call, tail, prune_prefix))
    return None


class _Replacement:
    """Replaces the items of a snapshot from one of them on, if they are still the last ones of the session."""

    def __init__(self, call: Calls, tail: list[Message], prune_prefix: Callable[[Any], bool] | None) -> None:
        self._call = call
        self._tail = tail
        self._prune_prefix = prune_prefix

    async def __call__(self, start: int, output: list[Any]) -> bool:
        """True if it was done. The items in front stay, but for those with which *prune_prefix* lets the list begin."""
        expected = self._tail[start:]
        new = [message_of(item) for item in output]
        return bool(expected) and await settled(self._replace(expected, new))

    async def _replace(self, expected: list[Message], new: list[Message]) -> bool:
        call = self._call
        for _ in range(_ATTEMPTS):
            version = await call("load_version")
            try:
                whole: list[Message] = await call("load_messages")
            except CorruptRecordError:
                return False  # the list cannot be written without it
            if whole[-len(expected) :] != expected:
                return False
            kept = whole[: -len(expected)]
            kept = list(dropwhile(self._is_pruned, kept))
            try:
                await call("save_messages", [*kept, *new], expect=version)
            except ConflictError:
                continue
            return True
        return False

    def _is_pruned(self, message: Message) -> bool:
        return self._prune_prefix is not None and self._prune_prefix(item_of(message))
