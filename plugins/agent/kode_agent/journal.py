"""An agent's state as the worker with its lease has it, and the commits that change it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final, Self

from kode_agent.provider import Usage
from kode_core import (
    AgentChannel,
    AgentEvent,
    AgentInfo,
    AgentNotFoundError,
    Bookmark,
    ConflictError,
    ExtendedStore,
    Json,
    Lease,
    Message,
    Timeline,
    ToolCallRecord,
    now_ms,
)

__all__ = ["Journal", "event"]

_TRIES: Final = 10
_KEPT: Final = "agent"  # the key of the info's metadata that is the runtime's


def event(channel: AgentChannel, kind: str, **data: Json) -> AgentEvent:
    """An event, by the fields of its type."""
    return AgentEvent(channel, kind, data)


class Journal:
    """The agent's messages and info, and one commit for each step.

    Each commit is fenced by the lease, and demands the version of the one before: an agent that was deleted meanwhile
    is not written again, and what others write into its info stays.

    Attributes:
        messages: the conversation; changed by commits only.
        offset: of the newest event that this worker wrote or has seen.
    """

    def __init__(self, store: ExtendedStore, agent_id: str, lease: Lease) -> None:
        self.store = store
        self.agent_id = agent_id
        self.lease = lease
        self.info: AgentInfo
        self.messages: list[Message] = []
        self.offset = 0
        self._version = ""
        self._last: Bookmark | None = None
        self._one = asyncio.Lock()

    @classmethod
    async def load(cls, store: ExtendedStore, agent_id: str, lease: Lease) -> Self:
        """The agent as it is stored; raises AgentNotFoundError."""
        self = cls(store, agent_id, lease)
        await self.reload()
        return self

    async def reload(self) -> None:
        """Read the agent anew."""
        session, info = await self.store.load_session(self.agent_id), await self.store.load_info(self.agent_id)
        if session is None or info is None:
            raise AgentNotFoundError(self.agent_id)
        self.info, self._version = info, session.version
        self.messages = await self.store.load_messages(self.agent_id)
        self._last = await self.store.last_bookmark(self.agent_id)

    @property
    def numbers(self) -> dict[str, int]:
        """The runtime's counts of the agent: inputTokens, outputTokens, steps, contextTokens."""
        kept = self.info.metadata.get(_KEPT)
        return {k: v for k, v in kept.items() if type(v) is int} if type(kept) is dict else {}

    @property
    def next_seq(self) -> int:
        """The seq of the next commit's first event."""
        return 0 if self._last is None else self._last.seq + 1

    def seen(self, bookmark: Bookmark, offset: int) -> None:
        """Note an event of another writer, behind which the next ones are numbered."""
        self.offset = max(self.offset, offset)
        if self._last is None or bookmark.seq > self._last.seq:
            self._last = bookmark

    async def commit(
        self,
        *events: AgentEvent,
        append: Sequence[Message] = (),
        messages: Sequence[Message] | None = None,
        calls: Sequence[ToolCallRecord] = (),
        breakpoint: str | None = None,  # noqa: A002 - as the field of AgentInfo
        usage: Usage | None = None,
    ) -> Sequence[int]:
        """Write all of it in one commit, and return the offsets of *events*."""
        async with self._one:
            if breakpoint is not None and breakpoint != self.info.breakpoint:
                change = {"previous": self.info.breakpoint, "current": breakpoint, "timestamp": now_ms()}
                events = (*events, event("monitor", "breakpoint_changed", **change))
            entries = self._numbered(events)
            for _ in range(_TRIES):
                info = self._changed(append, messages, breakpoint, usage)
                try:
                    offsets = await self.store.save_turn(
                        self.agent_id,
                        append=append,
                        messages=messages,
                        upsert_tool_calls=calls,
                        info=info,
                        events=entries,
                        expect=self._version,
                        fence=self.lease,
                    )
                except ConflictError:
                    await self._look_again()
                    continue
                self.messages = [*(self.messages if messages is None else messages), *append]
                self.info = info or self.info
                self.offset = max([self.offset, *offsets])
                if append or calls or info is not None or messages is not None:
                    await self._look_again()
                return offsets
            raise ConflictError(self.agent_id, self._version, "others kept writing to it while it ran; send again")

    def _numbered(self, events: Sequence[AgentEvent]) -> list[Timeline]:
        entries: list[Timeline] = []
        for each in events:
            entry = Timeline.after(self._last, each)
            self._last = entry.bookmark
            entries.append(entry)
        return entries

    def _changed(
        self,
        append: Sequence[Message],
        messages: Sequence[Message] | None,
        breakpoint: str | None,  # noqa: A002
        usage: Usage | None,
    ) -> AgentInfo | None:
        """The info to write, if the commit changes it."""
        if breakpoint is None and usage is None:
            return None
        changes: dict[str, Any] = {"last_bookmark": self._last}
        if breakpoint is not None:
            changes["breakpoint"] = breakpoint
        if breakpoint == "READY":
            changes["last_sfp_index"] = len(self.messages if messages is None else messages) + len(append) - 1
        if usage is not None:
            old = self.numbers
            counted = {
                "inputTokens": old.get("inputTokens", 0) + usage.input_tokens,
                "outputTokens": old.get("outputTokens", 0) + usage.output_tokens,
                "steps": old.get("steps", 0) + 1,
                "contextTokens": usage.total_tokens,
            }
            changes["metadata"] = {**self.info.metadata, _KEPT: counted}
        return self.info.replace(**changes)

    async def _look_again(self) -> None:
        """The version and the metadata as they are now; raises if another writer changed the agent's messages."""
        session = await self.store.load_session(self.agent_id)
        if session is None or session.created_at != self.info.created_at:
            raise AgentNotFoundError(self.agent_id)
        if session.message_count != len(self.messages):
            raise ConflictError(
                self.agent_id, session.version, "another writer changed its messages while it ran; send again"
            )
        self._version = session.version
        self.info = self.info.replace(metadata=session.metadata)
