"""Commits of the record engine: the batches of an agent in their order, those of different agents side by side."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, Final, TypeVar

from msgspec.structs import replace

from kode_core.authoring.waiting import waited_for
from kode_core.batch import Batch, Fence, ListKind, Outcome, Refused
from kode_core.engine import CALLER
from kode_core.engines.recent import Recent
from kode_core.engines.record.batches import (
    IN_DOUBT,
    Until,
    UnwantedError,
    Waiting,
    can_take_over,
    check_indexes,
    check_wanted,
    is_forgotten,
    may_supplant,
    not_written,
    take,
    together,
    together_with,
)
from kode_core.engines.record.debts import RecordDebts
from kode_core.engines.record.io import MovedError, RecordIO
from kode_core.engines.record.names import known_events
from kode_core.engines.record.plan import Plan
from kode_core.engines.record.state import AgentHead, Overlay, Step, info_key, is_of_log, row_span
from kode_core.engines.record.store import HeadRecord, Item
from kode_core.engines.record.sweep import RecordSweep
from kode_core.engines.record.turns import Turn, Turns
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
"""The same where one writer appends events, which are not searched for: the next one comes soon, and says it, too."""
_DOUBT_SECONDS: Final = 30.0
_GIVEN_UP: Final = "nobody waited for the write any more when its turn came; nothing was written"


class RecordWriter:
    """Commits batches: one after the other for one agent, side by side for different agents (OPS-13)."""

    def __init__(self, io: RecordIO, debts: RecordDebts, sweep: RecordSweep) -> None:
        self._io = io
        self._debts = debts
        self._sweep = sweep
        self._queues: dict[str, deque[Waiting]] = {}
        self._jobs: set[asyncio.Task[Any]] = set()
        self._closing = asyncio.Event()
        self._heads = Recent[str, AgentHead](_CACHED)
        self._newest = Recent[str, tuple[int, str]](_CACHED)
        self._turns = Turns()

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        """The outcomes of the batches."""
        loop = asyncio.get_running_loop()
        now = time.monotonic()
        waiting = [Waiting(batch, CALLER.get(), now, loop.create_future()) for batch in batches]
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
        """Run something that ``close`` waits for."""
        task: asyncio.Task[Any] = asyncio.get_running_loop().create_task(job)
        self._jobs.add(task)
        task.add_done_callback(self._jobs.discard)
        return task

    async def close(self) -> None:
        """Wait for what was accepted."""
        self._closing.set()
        while self._jobs:
            await asyncio.wait(self._jobs)

    def forget(self, agent_id: str) -> None:
        """Somebody else wrote the head."""
        self._heads.pop(agent_id, None)

    # --- groups

    async def _drain(self, agent_id: str) -> None:
        queue = self._queues[agent_id]
        group: list[Waiting] = []
        try:
            while queue:
                group = take(queue)
                CALLER.set(together(group))  # of this task alone
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
        except Exception as exc:  # noqa: BLE001 - whatever it is, it is for those who wait
            if len(group) == 1 or (isinstance(exc, KodeError) and exc.retry is not Retry.NEVER):
                return [exc] * len(group)
        return [outcome for one in group for outcome in await self._outcomes(agent_id, [one])]

    async def _write(self, agent_id: str, group: Sequence[Waiting]) -> Sequence[Outcome]:
        """Swap the head for one with the batches in it, until nobody else was faster."""
        batches, fence = [one.batch for one in group], group[0].batch.fence
        doubt: int | None = None
        doubted_at = 0.0
        was_lost = False
        turn, until = self._turns.of(agent_id), Until.of(group)
        for attempt in range(_ATTEMPTS):
            if doubt is None and attempt and time.monotonic() > until.turn:
                break
            try:
                old, is_fresh = await self._head(agent_id, batches, turn, until, in_doubt=doubt is not None)
                known = await self._known_events(old, batches)
                plan = Plan(agent_id, old, known, await self._latest(old, batches))
            except MovedError:
                await _pause(attempt)
                continue
            except CorruptRecordError:
                if not may_supplant(batches):
                    raise
                if not await self._is_held(agent_id, fence, in_doubt=doubt is not None):
                    return [Refused("fence")]
                await self._io.supplant(agent_id, fence)
                continue
            except StorageError as exc:
                if doubt is not None:
                    raise OutcomeUnknownError(IN_DOUBT) from exc
                if isinstance(exc, OutcomeUnknownError):
                    raise not_written(exc) from exc
                raise
            if doubt is not None and old is not None and any(is_forgotten(old, batch, doubt) for batch in batches):
                raise OutcomeUnknownError("the connection broke, and others wrote so much since that nobody can tell")
            outcomes: list[Outcome] = [plan.add(batch) for batch in batches]
            if not is_fresh and (not plan.is_changed or any(isinstance(outcome, Refused) for outcome in outcomes)):
                self.forget(agent_id)
                continue
            if not plan.is_changed:
                is_held = await self._is_held(agent_id, fence, in_doubt=doubt is not None)
                return outcomes if is_held else [Refused("fence")] * len(batches)
            check_wanted(group, in_doubt=doubt is not None)
            began = time.monotonic()
            try:
                if await self._swap(old, plan, group, turn):
                    turn.won(old, time.monotonic() - began)
                    return outcomes
                turn.lost(old, time.monotonic() - began)
            except OutcomeUnknownError:
                now = time.monotonic()
                if doubt is None:  # of a first head nobody knows where its revisions begin
                    doubt, doubted_at = 0 if old is None else plan.rev, now
                if now - doubted_at > _DOUBT_SECONDS:
                    raise
            except StorageError as exc:
                if doubt is None:
                    raise
                raise OutcomeUnknownError(IN_DOUBT) from exc
            self.forget(agent_id)
            if not await self._is_held(agent_id, fence, in_doubt=doubt is not None):
                if doubt is None or was_lost:
                    return [Refused("fence")] * len(batches)
                was_lost = True  # what is in doubt may have come before that: look once more
            if old is None or doubt is not None:
                await _pause(attempt)
        if doubt is not None:
            raise OutcomeUnknownError(IN_DOUBT)
        raise StoreBusyError(f"agent {agent_id!r}: other writers kept changing it; nothing was written")

    async def _is_held(self, agent_id: str, fence: Fence | None, *, in_doubt: bool) -> bool:
        """Whether the write's lease is held, if it has one; *in_doubt* when the write may have been applied already."""
        try:
            return fence is None or await self._io.store.holds_lease(agent_id, fence)
        except StorageError as exc:
            if in_doubt:
                raise OutcomeUnknownError(IN_DOUBT) from exc
            raise

    async def _head(
        self, agent_id: str, batches: Sequence[Batch], turn: Turn, until: Until, *, in_doubt: bool
    ) -> tuple[AgentHead | None, bool]:
        """The head to build on, and whether it was just read; readers and other writers are waited for.

        It is settled, or the swap can take over what is pending. For a delete alone it need not be: all that is pending
        goes with the epoch, also what cannot be applied.
        """
        known = self._heads.get(agent_id)
        if known is not None and turn.goes_on(known):
            self._heads.move_to_end(agent_id)
            return known, False
        self.forget(agent_id)
        head = await self._awaited(agent_id, turn, until)
        if head is not None:
            self._newest[agent_id] = head.record.rev, head.record.epoch
        is_delete = len(batches) == 1 and batches[0].delete
        if is_delete and (head is None or not head.record.is_used):
            return await self._swept(agent_id, head), True
        if head is None or (is_delete and not head.state.reserved):
            return head, True
        if not in_doubt and can_take_over(head, batches):
            return head, True
        return await self._io.settle(head), True

    async def _awaited(self, agent_id: str, turn: Turn, until: Until) -> AgentHead | None:
        """The agent's head, once it is the writer's turn."""
        while True:
            pause, rest = turn.pause(), until.turn - time.monotonic()
            if pause:
                await asyncio.sleep(max(min(pause, rest), 0))
            head = await self._io.thawed(agent_id, until.readers)
            if head is None or turn.may_swap(head) or pause >= rest:
                return head

    async def _swept(self, agent_id: str, head: AgentHead | None) -> AgentHead | None:
        """The head of an agent that was deleted, and is deleted again: what is left of it goes at once (LIFE-3)."""
        if head is not None:
            await self._io.settle(head)
        await self._sweep.sweep_agent(agent_id)
        head = await self._io.head(agent_id)
        return None if head is None else await self._io.settle(head)

    async def _known_events(self, old: AgentHead | None, batches: Sequence[Batch]) -> Mapping[tuple[int, bytes], int]:
        """The offsets of those events that are stored; only those of a seq that was there can be."""
        events = [event for batch in batches for event in batch.events]
        if old is None or old.state.last_seq is None:
            return {}
        names = {(event.seq, event.body.digest) for event in events if event.seq <= old.state.last_seq}
        return await known_events(self._io.store, old, names) if names else {}

    async def _latest(self, old: AgentHead | None, batches: Sequence[Batch]) -> int | None:
        """The greatest time of a message, where something is appended that may be older and the head does not say it.

        Heads say it, but not those that were written before they did, or after a message was edited or cut off.
        """
        if old is None or not old.record.messages.count:
            return None
        writes = [batch.messages for batch in batches if batch.messages is not None and batch.messages.is_blind]
        state, oldest = old.state, min((time for write in writes for time in write.times()), default=None)
        if oldest is None or (state.latest is not None and (state.is_latest or oldest >= state.latest)):
            return None
        span = row_span(ListKind.MESSAGES, last=old.record.messages.count - 1, bodies=False)
        items = [item for item in await self._io.store.items(old.record.place, span) if item.rev <= old.record.rev]
        return max((item.time for item in Overlay(old.state.pending).over(items, span)), default=None)

    # --- one swap

    async def _swap(self, old: AgentHead | None, plan: Plan, group: Sequence[Waiting], turn: Turn) -> bool:
        io, changes, fence = self._io, plan.changes, group[0].batch.fence
        taken = old.state.pending if old is not None and old.record.epoch == plan.head.epoch else ()
        check_indexes(changes)
        large = any(isinstance(change, Item) and io.is_large(change.body.text) for change in changes)
        state = replace(plan.state, has_parts=plan.state.has_parts or large, **turn.said(old))
        head = await self._before_swap(io.with_info_beside(plan.result(state)))
        before = None if old is None else old.record
        is_replacing_info = old is not None and old.state.info is not None and plan.info_body is not None
        if is_replacing_info:
            await self._before_swap(io.note(head.record.place))
        together = together_with(changes, io.store.together, io.store.part_bytes) if not state.has_parts else None
        if together is not None and not (state.doomed or taken):
            if not await io.store.swap(before, head.record, fence, together):
                return False
            self._remember(head)
        else:
            pending, changes = await self._before_swap(self._with_pending(head, changes, old, taken))
            is_wanted = any(one.caller.is_waiting() for one in group)  # a stash takes time
            if not (is_wanted and await io.store.swap(before, pending.record, fence, ())):
                await self._unstash(pending)
                return False
            await self._finish(pending, changes)
        if is_replacing_info:
            await self._forget_info(head)
        return True

    async def _before_swap(self, preparation: Awaitable[T]) -> T:
        """What is kept beside a head commits nothing: when that is in doubt, the write is not."""
        try:
            return await preparation
        except OutcomeUnknownError as exc:
            raise not_written(exc) from exc

    async def _with_pending(
        self, head: AgentHead, changes: Sequence[Step], old: AgentHead | None, taken: Sequence[Step]
    ) -> tuple[AgentHead, tuple[Step, ...]]:
        """The head with its changes pending, and with those of the old one that it takes over; and what is pending."""
        steps = (*taken, *changes)
        if not steps:
            return head, steps
        pending = head.with_state(replace(head.state, pending=steps))
        if len(pending.record.state) <= self._io.store.inline_bytes:
            return pending, steps
        if taken and old is not None:
            await self._io.settle(old)
            return await self._with_pending(head, changes, old, ())
        stash = await self._io.stash(head.record.place, head.record.rev, steps)
        return head.with_state(replace(head.state, stash=stash)), steps

    async def _unstash(self, head: AgentHead) -> None:
        stash, rev = head.state.stash, head.record.rev
        if stash is not None:
            await self._io.store.drop_parts(head.record.place, stash.key, stash.key, rev + 1)

    async def _finish(self, head: AgentHead, changes: Sequence[Step]) -> None:
        """Do what is pending. It is committed already: when this fails it is tried again soon, here or elsewhere."""
        record, state = head.record, head.state
        try:
            if changes:
                await self._io.apply(record.place, changes, has_parts=state.has_parts)
            done = head.with_state(replace(state, pending=(), stash=None, doomed=()))
            if state.doomed or state.stash is not None:
                await self._io.settled(head)
            else:
                self.spawn(self._settle(done, self._pause_after(record, changes)))
            self._remember(done)
        except (KodeError, MovedError):
            self.forget(record.agent_id)
            self._debts.owe(head)
            self.spawn(self._debts.repeat(record.agent_id, self._closing))

    def _pause_after(self, record: HeadRecord, changes: Sequence[Step]) -> float:
        """How long the mark that a swap's changes are applied waits for the next swap."""
        known = self._heads.get(record.agent_id)
        is_alone = known is not None and known.record.rev == record.rev - 1  # others would have to apply them again
        is_log = all(isinstance(change, Item) and is_of_log(change.key) for change in changes)
        return _SETTLE_EVENTS_SECONDS if is_alone and is_log else _SETTLE_SECONDS

    async def _settle(self, head: AgentHead, seconds: float) -> None:
        """Say that all is done, unless more is written soon: the next swap says it, too.

        It does not say so when it is of another epoch and others came between: then what was applied may have come too
        late to be removed with the old epoch.
        """
        await waited_for(self._closing, seconds)
        rev, epoch = self._newest.get(head.record.agent_id, (0, ""))
        is_said = rev > head.record.rev and (epoch == head.record.epoch or rev == head.record.rev + 1)
        try:
            if not is_said:
                await self._io.tell(head.record)
        except StorageError:
            return  # it stays to be done again, which changes nothing

    async def _forget_info(self, head: AgentHead) -> None:
        """Remove the info that a swap replaced, and all before it."""
        try:
            await self._io.store.drop_parts(head.record.place, info_key(""), info_key("~"), head.record.rev)
        except StorageError:
            return

    def _remember(self, head: AgentHead) -> None:
        agent_id, record = head.record.agent_id, head.record
        self.forget(agent_id)
        self._newest[agent_id] = record.rev, record.epoch
        if len(record.state) + (len(record.info.body.text) if record.info else 0) <= _CACHED_BYTES:
            self._heads[agent_id] = head


async def _pause(attempt: int) -> None:
    await asyncio.sleep(random.uniform(0, min(attempt + 1, 40)) / 1000)  # noqa: S311
