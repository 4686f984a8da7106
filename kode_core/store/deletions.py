"""Deleting all sessions that match a filter, in steps (LIFE-5, OPS-16)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Final

from kode_core.batch import Applied, Batch, Outcome, Refused
from kode_core.engine import Progress
from kode_core.errors import CorruptRecordError, InvalidArgumentError, KodeError, StoreBusyError
from kode_core.query import Page, SessionInfo
from kode_core.store.context import Context, settled
from kode_core.store.events import EventAppender
from kode_core.store.list_memory import ListMemory
from kode_core.store.locks import Locks
from kode_core.store.ops import OPS
from kode_core.store.steps import Steps

__all__ = ["Deletions"]

log = logging.getLogger("kode_core")

_ATTEMPTS: Final = 20
_FOUND_AT_ONCE: Final = 200
_DELETED_AT_ONCE: Final = 5
"""How many sessions one write deletes: few, so that others can write in between."""


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
        """Delete the sessions that match, each only if it still is as it was found; look again at those that changed.

        Those that cannot be read are left, and named in the log.
        """
        if not filters:
            raise InvalidArgumentError("delete_many needs a filter: without one it would delete every agent")
        for name in ("limit", "offset", "cursor", "order", "sort_by"):
            if name in filters:
                raise InvalidArgumentError(f"delete_many deletes everything that matches and takes no {name}")
        return await _Deletion(self._context, self._delete_unchanged, progress).run(query, filters)

    async def _delete_unchanged(self, sessions: Sequence[SessionInfo]) -> Sequence[Outcome]:
        """Delete each that is as it was found."""
        for session in sessions:
            await self._appender.drain(session.agent_id)
        with ExitStack() as held:
            batches = [
                self._context.batch(
                    session.agent_id,
                    fence=held.enter_context(self._locks.fencing(session.agent_id, None)),
                    delete=True,
                    expect_updated_at=session.updated_at,
                )
                for session in sessions
            ]
            outcomes = await self._context.commit_all(batches)
        for session in sessions:
            self._memory.forget(session.agent_id)
        return [_settled(batch, outcome) for batch, outcome in zip(batches, outcomes, strict=True)]


def _settled(batch: Batch, outcome: Outcome) -> Outcome:
    """The outcome, with the error of a lost lease for what its fence refused."""
    try:
        return settled(batch, outcome)
    except KodeError as exc:
        return exc


class _Deletion:
    """One ``delete_many``, in steps: a page of sessions is found, and deleted in small groups.

    Attributes:
        deleted: how many sessions were deleted so far.
    """

    def __init__(
        self,
        context: Context,
        delete: Callable[[Sequence[SessionInfo]], Awaitable[Sequence[Outcome]]],
        progress: Progress,
    ) -> None:
        self.deleted = 0
        self._steps = Steps(context, OPS["delete_many"])
        self._delete = delete
        self._progress = progress

    async def run(self, query: Callable[[Any], Awaitable[Page[SessionInfo]]], filters: Mapping[str, Any]) -> int:
        """Delete until a search finds nothing that was changed meanwhile; an error says how many were deleted."""
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
        """Delete all that are found now; how many had changed meanwhile."""
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
        """Delete a group; how many had changed."""
        outcomes = await self._steps(self._delete, sessions)
        self.deleted += sum(isinstance(outcome, Applied) for outcome in outcomes)
        for outcome in outcomes:
            if isinstance(outcome, CorruptRecordError):
                log.error("%s is damaged and was not deleted", outcome.record)
            elif isinstance(outcome, KodeError):
                raise outcome
        self._progress(self.deleted, None)
        return sum(isinstance(outcome, Refused) for outcome in outcomes)
