"""Commits of the record engine: the batches of an agent in their order, different agents in parallel.

Only the swap commits, so a process may die between any two steps::

    read the head -> plan -> put notes, parts, stash -> SWAP -> apply pending changes -> settle the head
          ^                                              |
          +----------- another writer was faster --------+

After a crash before the swap, a sweep removes the parts. After a later crash, the next writer or query finds the
pending changes in the head and applies them.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from contextvars import copy_context
from typing import Any, Final, TypeVar

from msgspec.structs import replace

from kode_core.authoring.contexts import adopt
from kode_core.authoring.waiting import waited_for
from kode_core.batch import Batch, Fence, Outcome, Refused
from kode_core.engine import CALLER
from kode_core.engines.recent import Recent
from kode_core.engines.record.batches import (
    FORGOTTEN,
    IN_DOUBT,
    Until,
    UnwantedError,
    Waiting,
    can_take_over,
    check_indexes,
    check_wanted,
    group_caller,
    is_forgotten,
    latest_time,
    may_supplant,
    not_written,
    swap_items_of,
    take,
)
from kode_core.engines.record.debts import RecordDebts
from kode_core.engines.record.docs import demanded_digests, has_more
from kode_core.engines.record.io import MovedError, RecordIO
from kode_core.engines.record.log import erase_dropped
from kode_core.engines.record.names import known_of_batches
from kode_core.engines.record.plan import Plan
from kode_core.engines.record.state import OpenedHead, Step, info_key, is_of_log
from kode_core.engines.record.store import Item
from kode_core.engines.record.sweep import RecordSweep
from kode_core.engines.record.turns import AllTurns, WriterTurns
from kode_core.errors import (
    CorruptRecordError,
    KodeError,
    OutcomeUnknownError,
    Retry,
    StorageError,
    StoreBusyError,
    StoreTimeoutError,
)

__all__ = ["RecordWriter"]

T = TypeVar("T")
_ATTEMPTS: Final = 200
_CACHED: Final = 512
_CACHED_BYTES: Final = 64 * 1024
_SETTLE_SECONDS: Final = 0.05
_SETTLE_EVENTS_SECONDS: Final = 1.0
"""The same for a lone writer of events, which no query searches: its next swap comes soon and settles them."""
_DOUBT_SECONDS: Final = 30.0
_GIVEN_UP: Final = "the caller had stopped waiting when the write's turn came; nothing was written"


class RecordWriter:
    """Commits batches: one after the other for one agent, in parallel for different agents (OPS-13)."""

    def __init__(self, io: RecordIO, debts: RecordDebts, sweep: RecordSweep) -> None:
        self._io = io
        self._debts = debts
        self._sweep = sweep
        self._queues: dict[str, deque[Waiting]] = {}
        self._jobs: set[asyncio.Task[Any]] = set()
        self._closing = asyncio.Event()
        self._heads = Recent[str, OpenedHead](_CACHED)
        self._newest = Recent[str, tuple[int, str]](_CACHED)
        self._turns = AllTurns()

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        """The outcomes of the batches."""
        loop, now = asyncio.get_running_loop(), time.monotonic()
        waiting = [Waiting(batch, CALLER.get(), now, loop.create_future(), copy_context()) for batch in batches]
        for one in waiting:
            agent_id = one.batch.agent_id
            if agent_id in self._queues:
                self._queues[agent_id].append(one)
            else:
                self._queues[agent_id] = deque([one])
                self.spawn(self._drain(agent_id))
        outcomes: list[Outcome] = []
        for one in waiting:
            outcome = await asyncio.shield(one.done)
            if isinstance(outcome, Exception) and not isinstance(outcome, KodeError):
                raise outcome
            outcomes.append(outcome)
        return outcomes

    # --- jobs

    def spawn(self, job: Any) -> asyncio.Task[Any]:
        """Run a job in the background; ``close`` waits for it."""
        task: asyncio.Task[Any] = asyncio.get_running_loop().create_task(job)
        self._jobs.add(task)
        task.add_done_callback(self._jobs.discard)
        return task

    async def close(self) -> None:
        """Wait until all accepted batches and background jobs are done."""
        self._closing.set()
        while self._jobs:
            await asyncio.wait(self._jobs)

    def forget(self, agent_id: str) -> None:
        """Drop the cached head, because another writer may have changed it."""
        self._heads.pop(agent_id, None)

    # --- groups

    async def _drain(self, agent_id: str) -> None:
        queue = self._queues[agent_id]
        group: list[Waiting] = []
        try:
            while queue:
                group = take(queue)
                adopt(group[0].context)
                CALLER.set(group_caller(group))  # the context of this task alone
                outcomes = await self._outcomes(agent_id, group)
                for one, outcome in zip(group, outcomes, strict=True):
                    if not one.done.done():
                        one.done.set_result(outcome)
        finally:
            del self._queues[agent_id]
            for one in (*group, *queue):
                if not one.done.done():
                    one.done.set_result(OutcomeUnknownError("the event loop was shut down while this was written"))

    async def _outcomes(self, agent_id: str, group: Sequence[Waiting]) -> Sequence[Outcome | Exception]:
        wanted = [one for one in group if one.caller.is_waiting()]
        if len(wanted) < len(group):
            done = {id(one): o for one, o in zip(wanted, await self._outcomes(agent_id, wanted), strict=True)}
            return [done.get(id(one), StoreTimeoutError(_GIVEN_UP)) for one in group]
        try:
            return await self._write(agent_id, group) if group else []
        except UnwantedError:
            return await self._outcomes(agent_id, group)
        except Exception as exc:  # noqa: BLE001 - every error goes to the waiting callers
            if len(group) == 1 or (isinstance(exc, KodeError) and exc.retry is not Retry.NEVER):
                return [exc] * len(group)
        return [outcome for one in group for outcome in await self._outcomes(agent_id, [one])]

    async def _write(self, agent_id: str, group: Sequence[Waiting]) -> Sequence[Outcome]:
        """Swap the head for one with the batches in it; start over when another writer was faster.

        *doubt* is the revision of a swap whose answer was lost. From then on "nothing was written" would be a guess:
        the loop ends with an outcome that the head proves by the batch's operation id, or with OutcomeUnknownError.
        """
        batches, fence = [one.batch for one in group], group[0].batch.fence
        doubt: int | None = None
        doubted_at, was_lost = 0.0, False
        turns, until = self._turns.of(agent_id), Until.of(group)
        for attempt in range(_ATTEMPTS):
            if doubt is None and attempt and time.monotonic() > until.turn:
                break  # busy: the caller learns in time that nothing was written
            try:
                old, is_fresh = await self._head(agent_id, batches, turns, until, in_doubt=doubt is not None)
                known = await known_of_batches(self._io.store, old, batches)
                digests = await demanded_digests(self._io, old, batches)
                more = await has_more(self._io, old, batches)
                latest = await latest_time(self._io, old, batches)
                plan = Plan(agent_id, old, known, latest, digests, has_more=more)
            except MovedError:
                self.forget(agent_id)
                await _pause(attempt)
                continue
            except CorruptRecordError:  # a delete needs nothing from the head, so it may replace a damaged one
                if not may_supplant(batches):
                    raise
                if not await self._is_held(agent_id, fence, in_doubt=doubt is not None):
                    return [Refused("fence")]
                await self._io.supplant(agent_id, fence)
                continue
            except StorageError as exc:
                if doubt is not None:
                    raise OutcomeUnknownError(IN_DOUBT) from exc
                if isinstance(exc, OutcomeUnknownError):  # settling an earlier write is in doubt, not this write
                    raise not_written(exc) from exc
                raise
            # A head remembers few operations. If later writes pushed ours out, its absence proves nothing.
            if doubt is not None and old is not None and any(is_forgotten(old, batch, doubt) for batch in batches):
                raise OutcomeUnknownError(FORGOTTEN)
            outcomes: list[Outcome] = [plan.add(batch) for batch in batches]
            # A cached head may be outdated. A swap notices that; a refusal, or a write of nothing, would not.
            if not is_fresh and (not plan.is_changed or any(isinstance(outcome, Refused) for outcome in outcomes)):
                self.forget(agent_id)
                continue
            if not plan.is_changed:
                is_held = await self._is_held(agent_id, fence, in_doubt=doubt is not None)
                return outcomes if is_held else [Refused("fence")] * len(batches)
            check_wanted(group, in_doubt=doubt is not None)
            began = time.monotonic()
            try:
                if await self._swap(old, plan, group, turns):
                    turns.won(old, time.monotonic() - began)
                    return outcomes
                turns.lost(old, time.monotonic() - began)
            except OutcomeUnknownError:
                now = time.monotonic()
                if doubt is None:  # a first head may have begun at another writer's random revision
                    doubt, doubted_at = 0 if old is None else plan.rev, now
                if now - doubted_at > _DOUBT_SECONDS:  # until then, look for the operation in the head, and write again
                    raise
            except StorageError as exc:
                if doubt is None:
                    raise
                raise OutcomeUnknownError(IN_DOUBT) from exc

            self.forget(agent_id)
            if not await self._is_held(agent_id, fence, in_doubt=doubt is not None):
                if doubt is None or was_lost:
                    return [Refused("fence")] * len(batches)
                was_lost = True  # the swap in doubt may have come first: look once more
            if old is None or doubt is not None:
                await _pause(attempt)
        if doubt is not None:
            raise OutcomeUnknownError(IN_DOUBT)
        raise StoreBusyError(f"agent {agent_id!r}: other writers kept changing it; nothing was written")

    async def _is_held(self, agent_id: str, fence: Fence | None, *, in_doubt: bool) -> bool:
        """Whether the write has no lease or holds its lease. With *in_doubt*, a failure leaves the write in doubt."""
        try:
            return fence is None or await self._io.store.holds_lease(agent_id, fence)
        except StorageError as exc:
            if in_doubt:
                raise OutcomeUnknownError(IN_DOUBT) from exc
            raise

    async def _head(
        self, agent_id: str, batches: Sequence[Batch], turns: WriterTurns, until: Until, *, in_doubt: bool
    ) -> tuple[OpenedHead | None, bool]:
        """The head to plan on, and whether it was just read. This waits for readers and for the writer's turn.

        The head is settled, or the swap can take over its pending changes. A delete alone accepts any pending changes,
        even damaged ones, because they go with the epoch.
        """
        known = self._heads.get(agent_id)
        if known is not None and turns.goes_on(known):
            self._heads.move_to_end(agent_id)
            return known, False
        self.forget(agent_id)
        head = await self._awaited(agent_id, turns, until)
        if head is not None:
            self._newest[agent_id] = head.record.rev, head.record.epoch
        is_delete = len(batches) == 1 and batches[0].delete
        if is_delete and (head is None or not head.record.is_used):
            return await self._swept(agent_id, head), True
        if head is None or (is_delete and not head.state.reserved):
            return head, True
        if not in_doubt and can_take_over(head, batches):
            return head, True
        return await self._io.redo(head), True

    async def _awaited(self, agent_id: str, turns: WriterTurns, until: Until) -> OpenedHead | None:
        """The agent's head, when it is the writer's turn."""
        while True:
            pause, rest = turns.pause(), until.turn - time.monotonic()
            if pause:
                await asyncio.sleep(max(min(pause, rest), 0))
            head = await self._io.thawed(agent_id, until.readers)
            if head is None or turns.may_swap(head) or pause >= rest:
                return head

    async def _swept(self, agent_id: str, head: OpenedHead | None) -> OpenedHead | None:
        """The head of a deleted agent that is deleted again: its leavings are removed at once (LIFE-3)."""
        if head is not None:
            await self._io.redo(head)
        await self._sweep.sweep_agent(agent_id)
        head = await self._io.head(agent_id)
        return None if head is None else await self._io.redo(head)

    # --- one swap

    async def _swap(self, old: OpenedHead | None, plan: Plan, group: Sequence[Waiting], turns: WriterTurns) -> bool:
        """Swap *old* for the plan's head and apply its changes. False if another writer was faster.

        Few and small changes are written with the head. Others are pending in the head or a stash until applied.
        """
        io, changes, fence = self._io, plan.changes, group[0].batch.fence
        taken = old.state.pending if old is not None and old.record.epoch == plan.head.epoch else ()
        check_indexes(changes)
        large = any(isinstance(change, Item) and io.is_large(change.body.text) for change in changes)
        state = replace(plan.state, has_parts=plan.state.has_parts or large, **turns.head_fields(old))
        head = await self._before_swap(io.with_info_beside(plan.result(state)))
        before = None if old is None else old.record
        is_replacing_info = old is not None and old.state.info is not None and plan.info_body is not None
        if is_replacing_info or plan.is_dropping:
            await self._before_swap(io.note_place(head.record.place))
        is_plain = not (state.has_parts or state.has_terms)  # else more records may have to change than the items
        items = swap_items_of(changes, io.store.swap_items, io.store.part_bytes) if is_plain else None
        if items is not None and not (state.doomed or taken):
            if not await io.store.swap(before, head.record, fence, items):
                return False
            self._remember(head)
        else:
            pending, changes = await self._before_swap(self._with_pending(head, changes, old, taken))
            is_wanted = any(one.caller.is_waiting() for one in group)  # a stash takes time: the callers may have left
            if not (is_wanted and await io.store.swap(before, pending.record, fence, ())):
                await self._unstash(pending)
                return False
            await self._finish(pending, changes)
        if is_replacing_info:
            await self._forget_info(head)
        if plan.is_dropping:
            await self._erase_dropped(head)
        return True

    async def _before_swap(self, preparation: Awaitable[T]) -> T:
        """Await a step that commits nothing: when it is in doubt, the write itself is not."""
        try:
            return await preparation
        except OutcomeUnknownError as exc:
            raise not_written(exc) from exc

    async def _with_pending(
        self, head: OpenedHead, changes: Sequence[Step], old: OpenedHead | None, taken: Sequence[Step]
    ) -> tuple[OpenedHead, tuple[Step, ...]]:
        """The head with its pending changes, and these: the ones taken over from the old head, and its own."""
        steps = (*taken, *changes)
        if not steps:
            return head, steps
        pending = head.with_state(replace(head.state, pending=steps))
        if len(pending.record.state) <= self._io.store.inline_bytes:
            return pending, steps
        if taken and old is not None:
            await self._io.redo(old)
            return await self._with_pending(head, changes, old, ())
        stash = await self._io.stash(head.record.place, head.record.rev, steps)
        return head.with_state(replace(head.state, stash=stash)), steps

    async def _unstash(self, head: OpenedHead) -> None:
        stash, rev = head.state.stash, head.record.rev
        if stash is not None:
            await self._io.store.drop_parts(head.record.place, stash.key, stash.key, rev + 1)

    async def _finish(self, head: OpenedHead, changes: Sequence[Step]) -> None:
        """Apply committed changes. A failure is no failure of the write: this or another process tries again soon."""
        record, state = head.record, head.state
        try:
            if changes:
                await self._io.apply(record.place, changes, has_parts=state.has_parts)
            done = head.with_state(replace(state, pending=(), stash=None, doomed=()))
            if state.doomed or state.stash is not None:
                await self._io.finish_redo(head)
            else:
                self.spawn(self._settle(done, self._pause_after(head, changes)))
            self._remember(done)
        except (KodeError, MovedError):
            self.forget(record.agent_id)
            self._debts.owe(head)
            self.spawn(self._debts.repeat(record.agent_id, self._closing))

    def _pause_after(self, head: OpenedHead, changes: Sequence[Step]) -> float:
        """How many seconds to wait for the next swap before a head is marked settled in a write of its own."""
        record, known = head.record, self._heads.get(head.record.agent_id)
        is_alone = known is not None and known.record.rev == record.rev - 1  # others would repeat our changes
        is_log = all(isinstance(change, Item) and is_of_log(change.key) for change in changes)
        least = _SETTLE_EVENTS_SECONDS if is_alone and is_log else _SETTLE_SECONDS
        return max(least, self._turns.of(record.agent_id).settle_after(head))

    async def _settle(self, head: OpenedHead, seconds: float) -> None:
        """Settle a head, unless the next swap comes first and does it for free.

        A swap to another epoch does so only if no other writer came between: otherwise the changes may have been
        applied too late to be removed with the old epoch. Settling the head itself finds that out.
        """
        await waited_for(self._closing, seconds)
        rev, epoch = self._newest.get(head.record.agent_id, (0, ""))
        is_said = rev > head.record.rev and (epoch == head.record.epoch or rev == head.record.rev + 1)
        with suppress(StorageError):  # it stays unsettled: applying the changes again is harmless
            if not is_said:
                await self._io.settle(head.record)

    async def _erase_dropped(self, head: OpenedHead) -> None:
        """Erase removed events. After a failure a sweep does it: the place is noted."""
        with suppress(StorageError):
            await erase_dropped(self._io, head)

    async def _forget_info(self, head: OpenedHead) -> None:
        """Remove the parts of the info that a swap replaced, and of all before it."""
        try:
            await self._io.store.drop_parts(head.record.place, info_key(""), info_key("~"), head.record.rev)
        except StorageError:
            return

    def _remember(self, head: OpenedHead) -> None:
        agent_id, record = head.record.agent_id, head.record
        self.forget(agent_id)
        self._newest[agent_id] = record.rev, record.epoch
        if len(record.state) + (len(record.info.body.text) if record.info else 0) <= _CACHED_BYTES:
            self._heads[agent_id] = head


async def _pause(attempt: int) -> None:
    await asyncio.sleep(random.uniform(0, min(attempt + 1, 40)) / 1000)  # noqa: S311
