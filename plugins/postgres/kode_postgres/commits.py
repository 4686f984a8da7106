"""Group commit: batches gather while others are written, and go in few statements, each a transaction."""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from msgspec.structs import replace

from kode_core.batch import Applied, Batch, Fence, ListWrite, Outcome
from kode_core.errors import KodeError, OutcomeUnknownError, Retry, StorageError, StoreBusyError
from kode_postgres.connection import Connections, Session
from kode_postgres.errors import is_locked_out
from kode_postgres.writes import Head, Statements, applied, is_unseen, needs_lock, offsets_of, op_number

__all__ = ["Committer"]

_LANES: Final = 4
_AT_ONCE: Final = 500
_LOCKED_AT_ONCE: Final = 50
_BYTES_AT_ONCE: Final = 8 * 2**20
_ATTEMPTS: Final = 50


class _Item:
    """A batch that waits, and who waits for it. What became of it is an outcome or an error to raise."""

    __slots__ = ("batch", "done", "is_settled", "size")

    def __init__(self, batch: Batch, done: asyncio.Future[Outcome | Exception]) -> None:
        self.batch = batch
        self.done = done
        self.size = _size(batch)
        self.is_settled = False

    def settle(self, outcome: Outcome | Exception) -> None:
        self.is_settled = True
        if not self.done.done():
            self.done.set_result(outcome)


def _size(batch: Batch) -> int:
    size = sum(len(event.body.text) for event in batch.events)
    size += sum(len(write.doc.body.text) for write in batch.docs if write.doc is not None)
    for write in (batch.messages, batch.tool_calls):
        if write is not None:
            size += sum(len(row.body.text) for _, row in write.put) + sum(len(row.body.text) for row in write.append)
    return size


class Committer:
    """Writes batches over a few connections at once.

    Each is written to its end, whatever becomes of its caller. Batches of one agent are written in their order, one
    after the other: two at once would wait for one lock.
    """

    def __init__(self, connections: Connections, statements: Statements) -> None:
        self._connections = connections
        self._statements = statements
        self._waiting: deque[_Item] = deque()
        self._busy: set[str] = set()
        self._lanes: set[asyncio.Task[None]] = set()
        self._left_alone: set[_Item] = set()
        self._most = max(1, min(_LANES, connections.max - 1))

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        """The outcomes of the batches."""
        loop = asyncio.get_running_loop()
        items = [_Item(batch, loop.create_future()) for batch in batches]
        self._waiting.extend(items)
        self._start()
        outcomes: list[Outcome] = []
        try:
            for item in items:
                outcome = await asyncio.shield(item.done)
                if isinstance(outcome, Exception) and not isinstance(outcome, StorageError):
                    raise outcome
                outcomes.append(outcome)
        except asyncio.CancelledError:
            self._left_alone.update(item for item in items if not item.done.done())
            raise
        return outcomes

    async def settled(self, agent_id: str | None) -> None:
        """Wait for writes of the agent, or of any, whose callers were cancelled: a read then sees how they ended."""
        self._left_alone = {item for item in self._left_alone if not item.done.done()}
        under_way = [item.done for item in self._left_alone if agent_id in (None, item.batch.agent_id)]
        if under_way:
            await asyncio.wait(under_way)

    async def close(self) -> None:
        """Wait for what was accepted."""
        while self._lanes:
            await asyncio.wait(self._lanes)

    # --- lanes

    def _start(self) -> None:
        while len(self._lanes) < self._most and (group := self._take()):
            lane = asyncio.get_running_loop().create_task(self._lane(group))
            self._lanes.add(lane)
            lane.add_done_callback(self._lanes.discard)  # for one that never began

    def _take(self) -> list[_Item]:
        """The next batches that can be written together: of different agents, and of one way to be written."""
        group: list[_Item] = []
        left: deque[_Item] = deque()
        skipped, size, locking = set(self._busy), 0, False
        while self._waiting:
            item = self._waiting.popleft()
            locks = needs_lock(item.batch)
            fits = not group or (locks == locking and size + item.size <= _BYTES_AT_ONCE)
            if item.batch.agent_id in skipped or not fits:
                left.append(item)
            else:
                locking, size = locks, size + item.size
                group.append(item)
            skipped.add(item.batch.agent_id)
            if len(group) == (_LOCKED_AT_ONCE if locking else _AT_ONCE):
                break
        left.extend(self._waiting)
        self._waiting = left
        self._busy.update(item.batch.agent_id for item in group)
        return group

    async def _lane(self, group: list[_Item]) -> None:
        try:
            while group:
                try:
                    await self._write(group)
                finally:
                    lost = OutcomeUnknownError("the event loop was shut down while this was written")
                    self._settle([item for item in group if not item.is_settled], lost)
                group = self._take()
        finally:  # in the same turn as the last look: what comes from now on finds one lane fewer, and begins one
            lane = asyncio.current_task()
            assert lane is not None
            self._lanes.discard(lane)

    async def _write(self, group: list[_Item]) -> None:
        locking = needs_lock(group[0].batch)
        try:
            outcomes = await self._written([item.batch for item in group], locking=locking)
        except Exception as exc:  # noqa: BLE001 - whatever it is, it is for those who wait
            if len(group) == 1 or _concerns_all(exc):
                outcomes = [exc] * len(group)
            else:
                await asyncio.gather(*(self._write([item]) for item in group))
                return
        for item, outcome in zip(group, outcomes, strict=True):
            self._settle([item], outcome)
        self._start()  # others may have waited for these agents

    def _settle(self, items: Sequence[_Item], outcome: Outcome | Exception) -> None:
        for item in items:
            item.settle(outcome)
            self._busy.discard(item.batch.agent_id)

    # --- groups

    async def _written(self, batches: Sequence[Batch], *, locking: bool) -> list[Any]:
        """Outcomes of batches for different agents; repeats those that neither were applied nor can be refused.

        What was appended unseen is repeated under the lock: nobody comes in between then.
        """
        outcomes: dict[int, Outcome] = {}
        for attempt in range(_ATTEMPTS):
            places = [i for i in range(len(batches)) if i not in outcomes]
            if not places:
                break
            some = [batches[i] for i in places]
            is_locking = locking or (attempt > 0 and any(map(is_unseen, some)))
            call = functools.partial(self._with_locks if is_locking else self._at_once, batches=some)
            with suppress(_AgainError):
                found = await self._connections.write(call)
                outcomes.update((places[i], outcome) for i, outcome in found.items())
        busy = StoreBusyError("other writers kept changing the agent; nothing was written")
        return [outcomes.get(i, busy) for i in range(len(batches))]

    async def _at_once(self, session: Session, batches: Sequence[Batch]) -> dict[int, Outcome]:
        outcomes = await self._apply(session, batches)
        missing = [i for i in range(len(batches)) if i not in outcomes]
        if missing:
            some = [batches[i] for i in missing]
            heads = await self._heads(session, some, self._statements.heads)
            found = await self._explained(session, some, heads, self._statements.leases)
            outcomes |= {missing[i]: outcome for i, outcome in found.items()}
        return outcomes

    async def _apply(self, session: Session, batches: Sequence[Batch]) -> dict[int, Outcome]:
        """Outcomes of those that were applied."""
        text, arguments = self._statements.write(batches, is_retry=session.is_retry, age_ms=session.age_ms)
        rows = await session.fetch(text, *arguments)
        done = [(row[0] - 1, row) for row in rows]
        wanted = sum(len(batches[i].events) for i, _ in done)
        offsets = None
        if done and done[0][1][7] != wanted:
            offsets = await self._offsets(session, [batches[i] for i, _ in done])
        return {i: applied(batches[i], row, offsets) for i, row in done}

    async def _offsets(self, session: Session, batches: Sequence[Batch]) -> dict[Any, int]:
        events = [(batch.agent_id, event) for batch in batches for event in batch.events]
        rows = await session.fetch(
            self._statements.offsets,
            [agent_id for agent_id, _ in events],
            [event.seq for _, event in events],
            [event.body.digest for _, event in events],
        )
        return {(row[0], row[1], row[2]): row[3] for row in rows}

    async def _heads(self, session: Session, batches: Sequence[Batch], statement: str) -> dict[str, Head]:
        rows = await session.fetch(statement, [batch.agent_id for batch in batches])
        return {row[0]: Head(row) for row in rows}

    async def _explained(
        self, session: Session, batches: Sequence[Batch], heads: Mapping[str, Head], leases: str
    ) -> dict[int, Outcome]:
        """What became of batches: those that were applied before, and those with a precondition that does not hold."""
        fences = [(batch.agent_id, batch.fence) for batch in batches if batch.fence is not None]
        held: set[tuple[str, Fence]] = set()
        if fences:
            columns = [a for a, _ in fences], [f.owner for _, f in fences], [f.token for _, f in fences]
            held = {(row[0], Fence(row[1], row[2])) for row in await session.fetch(leases, *columns)}
        outcomes: dict[int, Outcome] = {}
        for i, batch in enumerate(batches):
            head = heads.get(batch.agent_id) or Head(None)
            is_held = batch.fence is None or (batch.agent_id, batch.fence) in held
            outcome = await self._known(session, batch, head) or head.refusal(batch, is_held=is_held)
            if outcome is not None:
                outcomes[i] = outcome
        return outcomes

    async def _known(self, session: Session, batch: Batch, head: Head) -> Outcome | None:
        """The outcome of a batch that was applied already."""
        if not batch.is_touching and not batch.delete:
            return None
        if head.knows(op_number(batch.op_id)):
            offsets = await self._offsets(session, [batch]) if batch.events else {}
            return Applied(head.messages, head.tool_calls, offsets_of(batch, offsets))
        if session.is_retry and head.may_have_forgotten(session.age_ms):
            return OutcomeUnknownError("the connection broke, and others wrote so much since that nobody can tell")
        return None

    # --- with locks

    async def _with_locks(self, session: Session, batches: Sequence[Batch]) -> dict[int, Outcome]:
        """Deletes, and lists that are replaced whatever they are: what is removed is looked for under the lock."""
        statements = self._statements
        async with session.transaction():
            await session.fetch(statements.begin)
            heads = await self._heads(session, batches, statements.lock_heads)
            outcomes = await self._explained(session, batches, heads, statements.lock_leases)
            todo = {i: batch for i, batch in enumerate(batches) if i not in outcomes}
            # What has no head has nothing else, and nothing that would keep others from making it meanwhile.
            deletes = [batch for batch in todo.values() if batch.delete and batch.agent_id in heads]
            if deletes:
                await self._delete(session, deletes)
            outcomes |= {i: Applied() for i, batch in todo.items() if batch.is_empty}
            rest = {i: _unconditional(batch) for i, batch in todo.items() if not (batch.is_empty)}
            if rest:
                found = await self._apply(session, list(rest.values()))
                outcomes |= {i: found[k] for k, i in enumerate(rest) if k in found}
                if len(found) < len(rest):
                    raise _AgainError
        return outcomes

    async def _delete(self, session: Session, batches: Sequence[Batch]) -> None:
        ids = [batch.agent_id for batch in batches]
        for statement in self._statements.empty:
            await session.fetch(statement, ids)
        ops = [op_number(batch.op_id) if batch.is_empty else None for batch in batches]
        await session.fetch(self._statements.bury, ids, ops)


class _AgainError(StoreBusyError):
    """A head was made by another session in the middle; nothing was written, and the next attempt finds it."""


def _concerns_all(exc: Exception) -> bool:
    """Whether the batches of a group fail together, not each for itself."""
    if is_locked_out(exc.__cause__):
        return False
    return isinstance(exc, OutcomeUnknownError) or (isinstance(exc, KodeError) and exc.retry is Retry.LATER)


def _unconditional(batch: Batch) -> Batch:
    """The batch without what was checked under the lock; what it expects of lists is still so, unless they are gone."""

    def free(write: ListWrite | None) -> ListWrite | None:
        return replace(write, expect=None) if write is not None and batch.delete else write

    return replace(
        batch,
        fence=None,
        expect_updated_at=None,
        delete=False,
        messages=free(batch.messages),
        tool_calls=free(batch.tool_calls),
    )
