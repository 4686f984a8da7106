"""Repair of the record engine by hand: what the sweep does with time, at once, and wherever something is found."""

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
"""What is unfinished as long as that, and the same, is nobody's who is about to finish it."""
_SIGN_S: Final = 5.0
_IDS_AT_ONCE: Final = 200
_AT_ONCE: Final = 4
_NOT_NOW: Final = (MovedError, CorruptRecordError, OutcomeUnknownError, PayloadTooLargeError, StoreBusyError)


class RecordRepair:
    """Ends what the dead began, and removes what no head refers to; safe at any time, as each step is.

    No note is forgotten before its time: what arrives late at a place that is repaired is swept later.
    """

    def __init__(self, io: RecordIO, inspection: RecordInspection, sweep: RecordSweep) -> None:
        self._io = io
        self._inspection = inspection
        self._sweep = sweep

    async def repair(self, agent_id: str | None, progress: Progress) -> RepairResult:
        """Repair one agent, or all; each step of it is told."""
        run = _Run(progress)
        unsettled = await run.tell(self._io.store.unsettled())
        await self._finish(run, [one for one in unsettled if agent_id in (None, one)])
        if agent_id is not None:
            await self._clean(run, [agent_id])
            return run.result
        run.total = (await run.tell(self._io.store.totals())).agents
        known = set(await run.tell(self._inspection.noted()))
        await self._clean(run, [*known])  # those that were deleted are not among the following
        after: str | None = None
        while page := await run.tell(self._io.store.stored_ids(after, _IDS_AT_ONCE)):
            after = page[-1]
            await self._clean(run, [one for one in page if one not in known])
        await run.tell(self._sweep.sweep())
        return run.result

    async def _finish(self, run: _Run, agent_ids: list[str]) -> None:
        """Settle the heads that nobody settles."""
        before, damaged = await run.tell(self._io.sound(agent_ids))
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
                await self._io.settle(head)
                run.finished += 1
            except _NOT_NOW:
                run.left += 1

        await run.tell(each(finish, revs, at_once=_AT_ONCE))

    async def _clean(self, run: _Run, agent_ids: list[str]) -> None:
        """Remove what is left of these agents, however young it is: after the fence a slow writer begins anew."""

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
    """How far one repair is."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.finished = self.removed = self.left = self.done = 0
        self.total: int | None = None

    @property
    def result(self) -> RepairResult:
        """What was done so far."""
        return RepairResult(finished=self.finished, removed=self.removed, left=self.left)

    async def tell(self, call: Awaitable[T]) -> T:
        """Await a call, and tell while it lasts that it goes on: to remove a long agent may take minutes."""
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
