"""Making agents from others, and making them go away."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from msgspec.structs import replace

from kode_core.batch import Applied, Child, Fence
from kode_core.codec import decode
from kode_core.errors import AgentNotFoundError, InvalidArgumentError, StoreBusyError
from kode_core.ids import new_agent_id
from kode_core.model import AgentInfo
from kode_core.query import Page, SessionInfo
from kode_core.store.context import Context, settled
from kode_core.store.events import EventAppender
from kode_core.store.locks import Locks
from kode_core.store.ops import OPS
from kode_core.store.rows import info_of

__all__ = ["Forks"]

_MAX_FORKS: Final = 10_000
_ATTEMPTS: Final = 20
_DELETED_AT_ONCE: Final = 200


class Forks:
    """Forks and deletes agents."""

    def __init__(self, context: Context, appender: EventAppender, locks: Locks) -> None:
        self._context = context
        self._appender = appender
        self._locks = locks

    async def fork(self, agent_id: str, count: int) -> list[str]:
        """Copy the agent *count* times."""
        if type(count) is not int:
            raise InvalidArgumentError(f"count must be an int, got {type(count).__name__}")
        if not 0 <= count <= _MAX_FORKS:
            raise InvalidArgumentError(f"count must be from 0 to {_MAX_FORKS}, got {count}")
        engine = self._context.engine
        for _ in range(_ATTEMPTS):
            head = await engine.head(agent_id)
            if head is None or head.info is None:
                raise AgentNotFoundError(agent_id)
            now = self._context.now()
            parent = decode(AgentInfo, head.info.body, f"the info of agent {agent_id!r}")
            children = [_child(agent_id, parent, now) for _ in range(count)]
            if not children:
                return []
            fork = engine.fork(agent_id, children, head.info.body, now)
            if await self._context.underway.finish((agent_id,), fork):
                return [child.agent_id for child in children]
        raise StoreBusyError(f"agent {agent_id!r}: its info kept changing while it was forked; nothing was written")

    async def delete(self, agent_id: str, fence: Fence | None) -> None:
        """Remove an agent. Appends that were accepted before go first, so that none brings it back (LIFE-3)."""
        await self._appender.drain(agent_id)
        await self._context.commit(self._context.batch(agent_id, fence=fence, delete=True))

    async def delete_many(self, query: Callable[..., Awaitable[Page[SessionInfo]]], filters: Mapping[str, Any]) -> int:
        """Delete the sessions that match, each only if it still is as it was found; look again until none is left."""
        if not filters:
            raise InvalidArgumentError("delete_many needs a filter: without one it would delete every agent")
        for name in ("limit", "offset", "cursor", "order", "sort_by"):
            if name in filters:
                raise InvalidArgumentError(f"delete_many deletes everything that matches and takes no {name}")
        deleted = 0
        while sessions := await query(**filters, limit=_DELETED_AT_ONCE):
            deleted += await self._context.run(OPS["delete_many"], None, self._delete_unchanged, sessions)
        return deleted

    async def _delete_unchanged(self, sessions: Page[SessionInfo]) -> int:
        for session in sessions:
            await self._appender.drain(session.agent_id)
        batches = [
            self._context.batch(
                session.agent_id,
                fence=self._locks.fence(session.agent_id, None),
                delete=True,
                expect_updated_at=session.updated_at,
            )
            for session in sessions
        ]
        outcomes = await self._context.commit_all(batches)
        settled_ones = [settled(batch, outcome) for batch, outcome in zip(batches, outcomes, strict=True)]
        return sum(isinstance(outcome, Applied) for outcome in settled_ones)


def _child(agent_id: str, parent: AgentInfo, now: int) -> Child:
    child_id = new_agent_id()
    info = replace(
        parent,
        agent_id=child_id,
        lineage=(*parent.lineage, agent_id),
        created_at=now,
        last_bookmark=None,  # the fork has an event log of its own
    )
    return Child(child_id, info_of(child_id, info))
