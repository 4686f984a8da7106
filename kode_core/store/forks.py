"""Create agents as copies of others, and delete them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from msgspec.structs import replace

from kode_core.batch import (
    ABSENT_DOC,
    FORKED_DOCS,
    AgentSummary,
    Child,
    Doc,
    DocKind,
    DocWrite,
    Fence,
    ListKind,
)
from kode_core.errors import AgentNotFoundError, InvalidArgumentError, StoreBusyError
from kode_core.ids import check_agent_id, check_key, new_agent_id, quoted
from kode_core.model import AgentInfo, Message, ToolUseBlock
from kode_core.pace import Pace
from kode_core.store.context import Context
from kode_core.store.documents import name_of, stored_documents
from kode_core.store.events import EventAppender
from kode_core.store.kinds import SNAPSHOTS
from kode_core.store.list_memory import ListMemory
from kode_core.store.parts import checked_number
from kode_core.store.reader import Reader, decoded_info
from kode_core.store.rows import info_of
from kode_core.store.steps import checked_flag
from kode_core.store.tags import tagged
from kode_core.store.versions import version_of
from kode_core.store.whole import new_list, own_are_still, state_of, write_new

__all__ = ["ForkCut", "Forks"]

_MAX_FORKS: Final = 10_000
_ATTEMPTS: Final = 20


class ForkCut(NamedTuple):
    """The id of a fork, and the part of the agent that it takes.

    Attributes:
        new_id: the id of the fork.
        length: only so many messages from the beginning.
        snapshot_id: the messages of this snapshot instead.
        documents: also the documents of the caller's own.
    """

    new_id: str
    length: int | None = None
    snapshot_id: str | None = None
    documents: bool = False

    @classmethod
    def of(cls, agent_id: str, new_id: Any, length: Any, snapshot_id: Any, documents: Any) -> ForkCut:
        """The checked arguments of a call."""
        child = new_agent_id() if new_id is None else check_agent_id(new_id)
        if child == agent_id:
            raise InvalidArgumentError(f"new_id is the id of the agent itself, {agent_id!r:.80}")
        if length is not None and snapshot_id is not None:
            raise InvalidArgumentError("give length or snapshot_id, not both: each says which messages the fork takes")
        if snapshot_id is not None:
            check_key(snapshot_id, "snapshot id")
        return cls(child, checked_number(length, "length"), snapshot_id, checked_flag(documents, "documents"))

    @property
    def is_whole(self) -> bool:
        """True if the fork takes all messages."""
        return self.length is None and self.snapshot_id is None


class Forks:
    """Forks and deletes agents."""

    def __init__(self, context: Context, reader: Reader, memory: ListMemory, appender: EventAppender) -> None:
        self._context = context
        self._reader = reader
        self._memory = memory
        self._appender = appender

    async def fork(self, agent_id: str, count: int) -> list[str]:
        """Copy the agent *count* times."""
        if type(count) is not int:
            raise InvalidArgumentError(f"count must be an int, got {type(count).__name__}")
        if not 0 <= count <= _MAX_FORKS:
            raise InvalidArgumentError(f"count must be from 0 to {_MAX_FORKS}, got {quoted(count)}")
        engine = self._context.engine
        for _ in range(_ATTEMPTS):
            summary = await engine.summary(agent_id)
            if summary is None or summary.info is None:
                raise AgentNotFoundError(agent_id)
            now = self._context.now()
            pace = Pace()
            parent = await decoded_info(agent_id, summary.info.body, pace)
            children = [await _child(agent_id, parent, now, pace) for _ in range(count)]
            if not children:
                return []
            fork = self._context.called(engine.fork(agent_id, children, summary.info.body, now))
            if await self._context.underway.finish((agent_id,), fork):
                return [child.agent_id for child in children]
        raise StoreBusyError(f"agent {agent_id!r}: its info kept changing while it was forked; nothing was written")

    async def fork_to(self, agent_id: str, cut: ForkCut, fence: Fence | None) -> str:
        """Copy the agent, or the beginning of its conversation, to one new agent, in one commit."""
        context, engine = self._context, self._context.engine
        await context.underway.wait_for_left(cut.new_id)
        for _ in range(_ATTEMPTS):
            summary = await engine.summary(agent_id)
            if summary is None or summary.info is None:
                raise AgentNotFoundError(agent_id)
            copied = await self._copied(agent_id, summary, cut)
            if copied is None or (cut.documents and not await own_are_still(engine, agent_id, _own(copied["docs"]))):
                continue  # these reads are of more than one instant
            if version_of(await engine.summary(agent_id)) != version_of(summary):
                continue
            if await write_new(context, context.batch(cut.new_id, fence=fence, **copied), "fork"):
                return cut.new_id
            raise StoreBusyError(f"agent {cut.new_id!r} kept changing while a fork was to be made there")
        raise StoreBusyError(f"agent {agent_id!r} kept changing while it was forked; nothing was written")

    async def _docs(self, agent_id: str) -> dict[DocKind, Sequence[Doc]] | None:
        """The documents that a fork copies, as they were when the last kind was read; None if others changed then.

        The snapshots are read last, and once, since they are the largest.
        """
        engine = self._context.engine
        found = {kind: await engine.docs(agent_id, kind) for kind in FORKED_DOCS}
        for kind in FORKED_DOCS[:-1]:
            if state_of(await engine.docs(agent_id, kind)) != state_of(found[kind]):
                return None
        return found

    async def _copied(self, agent_id: str, summary: AgentSummary, cut: ForkCut) -> dict[str, Any] | None:
        """The contents of the child's batch; None if the parent's documents changed while they were read."""
        assert summary.info is not None
        pace, own = Pace(), list[Doc]()
        if cut.documents:  # before the rest, which is read between the two readings of them
            stored = stored_documents(self._context.engine, agent_id)
            own = [await tagged(name_of(agent_id, doc.key), doc, pace) async for doc in stored]
        docs = await self._docs(agent_id)
        if docs is None:
            return None
        parent = await decoded_info(agent_id, summary.info.body, pace)
        messages, times = await self._messages(agent_id, summary, cut, docs[DocKind.SNAPSHOTS])
        calls = await self._reader.load_list(agent_id, ListKind.TOOL_CALLS)
        info = _child_info(agent_id, parent, cut.new_id, self._context.now())
        if not cut.is_whole:
            used = {block.id for message in messages for block in message.content if isinstance(block, ToolUseBlock)}
            calls = [call for call in calls if call.id in used]
            info = replace(info, last_sfp_index=min(info.last_sfp_index, len(messages) - 1), breakpoint=None)
        return {
            "info": await info_of(cut.new_id, info),
            "messages": await new_list(ListKind.MESSAGES, messages, times, self._context.now()),
            "tool_calls": await new_list(ListKind.TOOL_CALLS, calls, (), self._context.now()) if calls else None,
            "docs": (
                *(DocWrite(kind, doc.key, doc) for kind, some in docs.items() for doc in some),
                # no document is replaced that another writer puts under the fork's id meanwhile
                *(DocWrite(DocKind.DOCUMENTS, doc.key, doc, ABSENT_DOC) for doc in own),
            ),
        }

    async def _messages(
        self, agent_id: str, summary: AgentSummary, cut: ForkCut, snapshots: Sequence[Doc]
    ) -> tuple[Sequence[Message], Sequence[int]]:
        """The messages of the fork, and the times that the first of them have in the parent."""
        engine, kind = self._context.engine, ListKind.MESSAGES
        if cut.length is not None and cut.length > summary.messages.count:
            raise InvalidArgumentError(
                f"length is {cut.length} and agent {agent_id!r} has {summary.messages.count} messages"
            )
        snapshot = None
        length = summary.messages.count if cut.length is None else cut.length
        if cut.snapshot_id is not None:
            snapshot = await self._reader.decoded_doc(agent_id, SNAPSHOTS, snapshots, cut.snapshot_id)
            if snapshot is None:
                raise InvalidArgumentError(f"agent {agent_id!r} has no snapshot {cut.snapshot_id!r:.80}")
            length = min(length, len(snapshot.messages))
        rows = (await engine.rows_at(agent_id, kind, 0, length)).rows if length else ()
        messages = await self._reader.decoded(agent_id, kind, rows, 0)
        times = [created_at for _, created_at in rows]
        if snapshot is None:
            return messages, times
        pairs = zip(snapshot.messages, messages, strict=False)
        same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        return snapshot.messages, times[:same]

    async def delete(self, agent_id: str, fence: Fence | None) -> None:
        """Remove an agent.

        Appends that were accepted before are written first, so that none of them brings the agent back (LIFE-3).
        """
        await self._appender.drain(agent_id)
        try:
            await self._context.commit(self._context.batch(agent_id, fence=fence, delete=True))
            self._memory.forget(agent_id)
        finally:
            self._appender.deleted(agent_id)


def _own(writes: Sequence[DocWrite]) -> list[Doc]:
    return [write.doc for write in writes if write.kind is DocKind.DOCUMENTS and write.doc is not None]


async def _child(agent_id: str, parent: AgentInfo, now: int, pace: Pace) -> Child:
    await pace.yield_to_loop()
    child_id = new_agent_id()
    return Child(child_id, await info_of(child_id, _child_info(agent_id, parent, child_id, now)))


def _child_info(agent_id: str, parent: AgentInfo, child_id: str, now: int) -> AgentInfo:
    """The info of a fork of the agent, whose own info is *parent*."""
    return replace(
        parent,
        agent_id=child_id,
        lineage=(*parent.lineage, agent_id),
        created_at=now,
        last_bookmark=None,  # the fork has an event log of its own
    )
