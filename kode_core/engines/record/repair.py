"""Repair of the record engine on request: sweeps at once, and every place, where the sweep waits for due notes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Final, TypeVar

from kode_core.authoring.closing import ended
from kode_core.authoring.parallel import each
from kode_core.engine import Progress
from kode_core.engines.record.inspection import RecordInspection
from kode_core.engines.record.io import MovedError, RecordIO
from kode_core.engines.record.recovery import is_dead_fork
from kode_core.engines.record.sweep import RecordSweep
from kode_core.errors import CorruptRecordError, OutcomeUnknownError, PayloadTooLargeError, StoreBusyError
from kode_core.report import RepairResult

__all__ = ["RecordRepair"]

T = TypeVar("T")

_LOOK_AGAIN_S: Final = 1.0
"""A head that stays unsettled and unchanged this long has no live writer."""
_SIGN_S: Final = 5.0
_IDS_AT_ONCE: Final = 200
_AT_ONCE: Final = 4
_NOT_NOW: Final = (MovedError, CorruptRecordError, OutcomeUnknownError, PayloadTooLargeError, StoreBusyError)


class RecordRepair:
    """Finishes writes of dead processes, and removes records that no head refers to. Safe at any time.

    Notes stay until they are due, so that a sweep removes records that arrive late at a repaired place.
    """

    def __init__(self, io: RecordIO, inspection: RecordInspection, sweep: RecordSweep) -> None:
        self._io = io
        self._inspection = inspection
        self._sweep = sweep

    async def repair(self, agent_id: str | None, progress: Progress) -> RepairResult:
        """Repair one agent, or all. *progress* is called after each step, and during long ones."""
        run = _Run(progress)
        unsettled = await run.tell(self._io.store.unsettled())
        await self._finish(run, [one for one in unsettled if agent_id in (None, one)])
        if agent_id is not None:
            await self._clean(run, [agent_id])
            return run.result
        run.total = (await run.tell(self._io.store.totals())).agents
        known = set(await run.tell(self._inspection.noted()))
        await self._clean(run, [*known])  # deleted agents are not among the stored ids
        after: str | None = None
        while page := await run.tell(self._io.store.stored_ids(after, _IDS_AT_ONCE)):
            after = page[-1]
            await self._clean(run, [one for one in page if one not in known])
        await run.tell(self._sweep.sweep())
        return run.result

    async def _finish(self, run: _Run, agent_ids: list[str]) -> None:
        """Settle the heads that have no live writer."""
        before, damaged = await run.tell(self._io.readable_heads(agent_ids))
        run.left += len(damaged)
        left = [head for head in before if not head.record.is_settled]
        if not left:
            return
        await asyncio.sleep(_LOOK_AGAIN_S)
        revs = {head.record.agent_id: head.record.rev for head in left}

        async def finish(agent_id: str) -> None:
            try:
                head = await self._io.head(agent_id)
                if head is None or head.record.is_settled or head.record.rev != revs[agent_id]:
                    return
                if head.state.reserved and not is_dead_fork(head):
                    run.left += 1
                    return
                await self._io.redo(head)
                run.finished += 1
            except _NOT_NOW:
                run.left += 1

        await run.tell(each(finish, revs, at_once=_AT_ONCE))

    async def _clean(self, run: _Run, agent_ids: list[str]) -> None:
        """Remove these agents' leavings at any age. The barrier makes a slow writer start over."""

        async def clean(agent_id: str) -> None:
            try:
                if await self._inspection.leavings(agent_id, at_any_age=True):
                    await asyncio.sleep(_LOOK_AGAIN_S)
                    for leaving in await self._inspection.leavings(agent_id, at_any_age=True):
                        await self._sweep.sweep_place(leaving.place)
                        run.removed += 1
            except _NOT_NOW:
                run.left += 1
            run.done += 1

        await run.tell(each(clean, agent_ids, at_once=_AT_ONCE))


class _Run:
    """The progress of one repair."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.finished = self.removed = self.left = self.done = 0
        self.total: int | None = None

    @property
    def result(self) -> RepairResult:
        """The result so far."""
        return RepairResult(finished=self.finished, removed=self.removed, left=self.left)

    async def tell(self, call: Awaitable[T]) -> T:
        """Await a call and report progress meanwhile: removing a long agent may take minutes."""
        task = asyncio.ensure_future(call)
        try:
            while not (await asyncio.wait([task], timeout=_SIGN_S))[0]:
                self._sign()
        finally:
            await ended(task)
        self._sign()
        return task.result()

    def _sign(self) -> None:
        self._progress(self.done, None if self.total is None else max(self.total, self.done))
