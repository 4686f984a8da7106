"""Create agents as copies of others, and delete them."""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from kode_core.batch import Child, Fence
from kode_core.errors import AgentNotFoundError, InvalidArgumentError, StoreBusyError
from kode_core.ids import new_agent_id, quoted
from kode_core.large import decode_in_slices
from kode_core.model import AgentInfo
from kode_core.pace import Pace
from kode_core.store.context import Context
from kode_core.store.events import EventAppender
from kode_core.store.list_memory import ListMemory
from kode_core.store.rows import info_of

__all__ = ["Forks"]

_MAX_FORKS: Final = 10_000
_ATTEMPTS: Final = 20


class Forks:
    """Forks and deletes agents."""

    def __init__(self, context: Context, memory: ListMemory, appender: EventAppender) -> None:
        self._context = context
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
            parent = await decode_in_slices(AgentInfo, summary.info.body, f"the info of agent {agent_id!r}", pace)
            children = [await _child(agent_id, parent, now, pace) for _ in range(count)]
            if not children:
                return []
            fork = self._context.called(engine.fork(agent_id, children, summary.info.body, now))
            if await self._context.underway.finish((agent_id,), fork):
                return [child.agent_id for child in children]
        raise StoreBusyError(f"agent {agent_id!r}: its info kept changing while it was forked; nothing was written")

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


async def _child(agent_id: str, parent: AgentInfo, now: int, pace: Pace) -> Child:
    await pace.yield_to_loop()
    child_id = new_agent_id()
    info = replace(
        parent,
        agent_id=child_id,
        lineage=(*parent.lineage, agent_id),
        created_at=now,
        last_bookmark=None,  # the fork has an event log of its own
    )
    return Child(child_id, await info_of(child_id, info))
