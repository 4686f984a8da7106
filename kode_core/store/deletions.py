"""Deleting all sessions that match a filter, in steps (LIFE-5, OPS-16)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from kode_core.batch import Applied
from kode_core.engine import Progress
from kode_core.errors import CorruptRecordError, InvalidArgumentError, KodeError, StoreBusyError
from kode_core.pace import Pace
from kode_core.query import Page, SessionInfo
from kode_core.store.context import Context
from kode_core.store.events import EventAppender
from kode_core.store.list_memory import ListMemory
from kode_core.store.locks import Locks
from kode_core.store.methods import METHODS
from kode_core.store.reader import session_in
from kode_core.store.steps import Steps
from kode_core.store.underway import is_in_doubt, put_in_doubt
from kode_core.store.versions import unchanged

__all__ = ["Deletions"]

log = logging.getLogger("kode_core")

_ATTEMPTS: Final = 20
_FOUND_AT_ONCE: Final = 200
_DELETED_AT_ONCE: Final = 5
"""The number of sessions that are deleted at once: few, so that others can write in between."""


class Deletions:
    """Deletes many agents."""

    def __init__(self, context: Context, memory: ListMemory, appender: EventAppender, locks: Locks) -> None:
        self._context = context
        self._memory = memory
        self._appender = appender
        self._locks = locks

    async def delete_many(
        self, query: Callable[[Any], Awaitable[Page[SessionInfo]]], filters: Mapping[str, Any], progress: Progress
    ) -> int:
        """Delete the matching sessions, each only if it is unchanged since it was found; look again at changed ones.

        Sessions that cannot be read stay, and the log names them.
        """
        # An empty metadata={} matches every agent.
        if all(isinstance(given, Mapping) and not given for given in filters.values()):
            raise InvalidArgumentError("delete_many needs a filter: without one it would delete every agent")
        for name in ("limit", "offset", "cursor", "order", "sort_by"):
            if name in filters:
                raise InvalidArgumentError(f"delete_many deletes everything that matches and takes no {name}")
        return await _Deletion(self._context, self._delete_unchanged, progress).run(query, filters)

    async def _delete_unchanged(self, session: SessionInfo) -> bool:
        """Delete a session if it has not changed since it was found; True if it was deleted."""
        agent_id = session.agent_id
        await self._appender.drain(agent_id)
        with self._locks.fencing(agent_id, None) as fence:
            summary = await self._context.engine.summary(agent_id)
            is_of_that_time = summary is not None and summary.updated_at == session.updated_at
            if is_of_that_time and await session_in(summary, Pace()) != session:  # another agent with its time
                return False
            demands = {**unchanged(summary), "expect_updated_at": session.updated_at}
            batch = self._context.batch(agent_id, fence=fence, delete=True, **demands)
            try:
                return isinstance(await self._context.commit(batch), Applied)
            finally:
                self._memory.forget(agent_id)
                self._appender.deleted(agent_id)


class _Deletion:
    """One ``delete_many``, in steps: a page of sessions is found, and deleted in small groups.

    Attributes:
        deleted: the number of sessions that were deleted so far.
    """

    def __init__(
        self,
        context: Context,
        delete: Callable[[SessionInfo], Awaitable[bool]],
        progress: Progress,
    ) -> None:
        self.deleted = 0
        self._steps = Steps(context, METHODS["delete_many"])
        self._delete = delete
        self._progress = progress

    async def run(self, query: Callable[[Any], Awaitable[Page[SessionInfo]]], filters: Mapping[str, Any]) -> int:
        """Delete until a search finds no session that changed meanwhile; an error has the number of deleted ones."""
        try:
            for attempt in range(_ATTEMPTS):
                if not await self._pass(query, filters):
                    return self.deleted
                await asyncio.sleep(min(attempt, 10) / 100)
        except KodeError as exc:
            if self.deleted:
                exc.deleted = self.deleted
                exc.args = (f"{exc}; {self._so_far()}", *exc.args[1:])
            raise
        except BaseException as exc:
            exc.add_note(self._so_far())
            raise
        busy = StoreBusyError(f"some sessions kept changing while they were deleted, and stay; {self._so_far()}")
        busy.deleted = self.deleted
        raise busy

    def _so_far(self) -> str:
        return f"{self.deleted} session{' was' if self.deleted == 1 else 's were'} deleted before"

    async def _pass(self, query: Callable[[Any], Awaitable[Page[SessionInfo]]], filters: Mapping[str, Any]) -> int:
        """Delete all sessions that are found now; return how many had changed meanwhile."""
        changed, cursor = 0, None
        while True:
            page = await self._steps(query, {**filters, "limit": _FOUND_AT_ONCE, "cursor": cursor})
            for name in page.left_out:
                log.error("%s is damaged and was not deleted", name)
            for i in range(0, len(page), _DELETED_AT_ONCE):
                changed += await self._group(page[i : i + _DELETED_AT_ONCE])
            cursor = page.next_cursor
            if cursor is None:
                return changed

    async def _group(self, sessions: Sequence[SessionInfo]) -> int:
        """Delete a group, each session by a separate write: none waits for another (OPS-13).

        Returns the number of sessions that had changed.
        """
        changed: list[SessionInfo] = []
        in_doubt: list[SessionInfo] = []

        async def delete(session: SessionInfo) -> None:
            try:
                if await self._delete(session):
                    self.deleted += 1
                else:
                    changed.append(session)
            except CorruptRecordError as exc:
                log.error("%s is damaged and was not deleted", exc.record)
            except asyncio.CancelledError as exc:
                if is_in_doubt(exc):
                    in_doubt.append(session)
                raise

        async def delete_all() -> None:
            calls = [asyncio.ensure_future(delete(session)) for session in sessions]
            try:
                await asyncio.wait(calls)
            except asyncio.CancelledError as exc:
                for call in calls:
                    call.cancel()
                await asyncio.wait(calls)  # immediately: the writes continue without them
                if in_doubt:
                    put_in_doubt(exc)
                raise
            for error in [call.exception() for call in calls]:
                if error is not None:
                    raise error

        await self._steps(delete_all)
        self._progress(self.deleted, None)
        return len(changed)
