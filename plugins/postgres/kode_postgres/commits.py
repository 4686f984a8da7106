"""Group commit: batches gather while others are written, and go in few statements, each of them a transaction."""

from __future__ import annotations

import asyncio
import functools
import itertools
import random
import time
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, Final

from msgspec.structs import replace

from kode_core.authoring.contexts import adopt
from kode_core.batch import ABSENT_DOC, Applied, Batch, DocKind, Fence, Outcome, Refused
from kode_core.errors import (
    KodeError,
    OutcomeUnknownError,
    Retry,
    StoreBusyError,
    StoreTimeoutError,
    StoreUnavailableError,
)
from kode_postgres.arguments import (
    HeadAfterRefusal,
    Statements,
    Stored,
    applied,
    has_demands,
    is_unseen,
    key_hash,
    needs_lock,
    offsets_of,
    op_number,
    unconditional,
)
from kode_postgres.connection import Connections
from kode_postgres.doubts import Doubts, Never
from kode_postgres.errors import is_conflict, is_locked_out
from kode_postgres.queues import QueuedBatch, Queues
from kode_postgres.session import Doubt, Session
from kode_postgres.trouble import LONGEST_PAUSE_S, AgainError, timed_out

__all__ = ["Committer"]

_LANES: Final = 4
_UNANSWERED: Final = 2
_ATTEMPTS_WITHOUT_LOCK: Final = 3
"""The attempts after which a distant writer locks the agent first.

While its statement is on its way, others may write so much that the head could have forgotten it.
"""

_LATE: Final = (
    "the connection broke, and something exists that the write demands to be absent or another: the write is refused,"
    " but its first request may arrive after that was deleted or changed; read before you repeat it"
)


class Committer:
    """Writes batches over a few connections at once.

    Batches of one agent are written one after the other, in order: two at once would wait for one lock. Agents do not
    wait for one another (OPS-13): a batch that cannot be written with its group, because its agent is locked or it
    fails, is written again alone, and the lane continues::

        queues, one an agent     lanes, up to four           alone
        A: a1 a2                 [ a1 b1 c1 ] -> a1, c1
        B: b1              ->                    b1 locked -> [ b1 ] ... again, until the agent is free
        C: c1                    [ a2 ]       -> the lane goes on meanwhile
    """

    def __init__(self, connections: Connections, statements: Statements, doubts: Doubts) -> None:
        self._connections = connections
        self._statements = statements
        self._doubts = doubts
        self._queues = Queues()
        self._tasks: set[asyncio.Task[None]] = set()
        self._lanes = self._heavy = 0
        self._most = max(1, min(_LANES, connections.max - 1))
        self._alone = asyncio.Semaphore(self._most)

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        """The outcomes of the batches."""
        loop = asyncio.get_running_loop()
        items = [QueuedBatch(batch, loop.create_future()) for batch in batches]
        for item in items:
            self._queues.accept(item)
        self._start()
        outcomes: list[Outcome] = []
        for item in items:
            outcome = await item.done
            if isinstance(outcome, Exception) and not isinstance(outcome, KodeError):
                raise outcome
            outcomes.append(outcome)
        return outcomes

    async def close(self) -> None:
        """Wait for the accepted batches."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    # --- lanes

    def _finish(self, item: QueuedBatch, outcome: Outcome | Exception) -> None:
        agent_id = item.batch.agent_id
        if isinstance(outcome, OutcomeUnknownError):
            self._doubts.add(agent_id, Never(self._statements.never, (agent_id, op_number(item.batch.op_id))))
        item.finish(outcome)
        if self._queues.next_after(item):
            self._start()

    def _take(self) -> list[QueuedBatch]:
        """The next group. One lane is reserved for batches that are written quickly."""
        group = self._queues.take(heavy=self._heavy < max(1, self._most - 1))
        self._heavy += bool(group) and group[0].is_heavy
        return group

    def _start(self) -> None:
        while self._lanes < self._most and (group := self._take()):
            self._lanes += 1
            self._do(self._lane(group))

    def _do(self, work: Coroutine[Any, Any, None], context: Any = None) -> None:
        task = asyncio.get_running_loop().create_task(work, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _lane(self, group: list[QueuedBatch]) -> None:
        try:
            while group:
                try:
                    await self._write(group)
                finally:
                    self._heavy -= group[0].is_heavy
                group = self._take()
        except asyncio.CancelledError:
            self._shut_down(group)
            raise
        finally:
            self._lanes -= 1

    async def _write(self, group: list[QueuedBatch]) -> None:
        adopt(group[0].context)
        unanswered: list[Exception] = []
        # An agent with an open doubt goes alone: its earlier write has to be found or ruled out first.
        together = [item for item in group if item.batch.agent_id not in self._doubts]
        doubt = Doubt()
        found: dict[int, Outcome | Exception] = {}
        try:
            if together:
                found |= await self._attempt([item.batch for item in together], doubt)
        except Exception as exc:  # noqa: BLE001 - whatever it is, the waiting callers get it
            # An error of the server or the connection is everybody's. Any other may be the fault of one batch.
            if _concerns_all(exc) or (len(together) == 1 and not _may_be_of_others(exc)):
                found = dict.fromkeys(range(len(together)), exc)
        outcomes = {together[i]: outcome for i, outcome in found.items()}
        for item in group:
            if item in outcomes:
                self._finish(item, outcomes[item])
            else:
                own = Doubt()
                own.since = doubt.since  # the group's statement may still be applied
                self._do(self._write_alone(item, own, unanswered), item.context)

    async def _write_alone(self, item: QueuedBatch, doubt: Doubt, unanswered: list[Exception]) -> None:
        try:
            outcome = await self._outcome_alone(item.batch, doubt, unanswered)
        except asyncio.CancelledError:
            self._shut_down([item])
            raise
        self._finish(item, outcome)

    async def _outcome_alone(self, batch: Batch, doubt: Doubt, unanswered: list[Exception]) -> Outcome | Exception:
        """The outcome of a batch that was left out when its group was written.

        While other sessions lock its agent, the batch is tried again and again; it holds no connection between two
        tries. *unanswered* has the errors of other batches of the group: after two without an answer, the server is not
        asked again.
        """
        try:
            await self._doubts.resolve(batch.agent_id)
        except Exception as exc:  # noqa: BLE001 - whatever it is, the caller gets it
            return exc
        end, pause = time.monotonic() + self._connections.locked_s, 0.002
        is_looking = is_unseen(batch) or has_demands(batch)  # under the lock no writer comes in between
        without_lock = 0 if is_looking else _ATTEMPTS_WITHOUT_LOCK
        for attempt in itertools.count():
            async with self._alone:
                if len(unanswered) >= _UNANSWERED:
                    return unanswered[0]
                self._connections.retries += 1
                try:
                    found = await self._attempt([batch], doubt, locks=attempt >= without_lock)
                    if found:
                        return found[0]
                    error: Exception = StoreBusyError("other writers kept changing the agent; nothing was written")
                except Exception as exc:  # noqa: BLE001 - whatever it is, the waiting caller gets it
                    is_over = not is_locked_out(exc.__cause__) or time.monotonic() > end
                    if is_over:
                        if timed_out(exc) or is_locked_out(exc.__cause__):
                            unanswered.append(exc)
                        return exc
                    error = exc
            if time.monotonic() > end:
                return error
            await asyncio.sleep(random.uniform(0.3, 1) * pause)  # noqa: S311
            pause = min(2 * pause, LONGEST_PAUSE_S)
        raise AssertionError("an outcome was found")

    def _shut_down(self, items: Sequence[QueuedBatch]) -> None:
        """Give every caller an outcome, because the event loop ends."""
        self._most = 0
        begun = OutcomeUnknownError("the event loop was shut down while this was written")
        for item in items:
            item.finish(begun)
        never = StoreUnavailableError("the event loop was shut down before this was written")
        for item in self._queues.drain():
            item.finish(never)

    # --- statements

    async def _attempt(self, batches: Sequence[Batch], doubt: Doubt, *, locks: bool = False) -> dict[int, Outcome]:
        """The outcomes of batches for different agents, except for agents that others have locked or just changed."""
        if not (locks or needs_lock(batches[0])):
            call = functools.partial(self._at_once, batches=batches)
        else:
            call = functools.partial(self._with_locks, batches=batches, decided={})
        return await self._connections.write(call, doubt=doubt, waits=False)

    async def _at_once(self, session: Session, batches: Sequence[Batch]) -> dict[int, Outcome]:
        outcomes = await self._apply(session, batches)
        missing = [i for i in range(len(batches)) if i not in outcomes]
        if missing:
            some = [batches[i] for i in missing]
            # Before the heads: if those do not know an operation, these rows are not its own.
            stored = await self._stored(session, some)
            heads = await self._heads(session, some, self._statements.heads)
            found = await self._explained(session, some, heads, stored, self._statements.leases)
            outcomes |= {missing[i]: outcome for i, outcome in found.items()}
        return outcomes

    async def _apply(self, session: Session, batches: Sequence[Batch]) -> dict[int, Outcome]:
        """The outcomes of the batches that were applied."""
        text, arguments = self._statements.write(batches, session.since, session.until)
        rows = await session.fetch(text, *arguments)
        session.clock.heard(rows[0][7])
        return {row[0] - 1: applied(batches[row[0] - 1], row) for row in rows if row[0] is not None}

    async def _heads(self, session: Session, batches: Sequence[Batch], statement: str) -> dict[str, HeadAfterRefusal]:
        rows = await session.fetch(statement, [batch.agent_id for batch in batches])
        if rows:
            session.clock.heard(rows[-1][8])
        return {row[0]: HeadAfterRefusal(row) for row in rows}

    async def _stored(self, session: Session, batches: Sequence[Batch]) -> list[Stored]:
        """For each batch, the rows that it demands something of."""
        stored = [Stored({}) for _ in batches]
        places = [i for i, batch in enumerate(batches) if batch.expect_info is not None or batch.expect_nothing]
        if places:
            ids = [batches[i].agent_id for i in places]
            for i, info, more in await session.fetch(self._statements.contents, places, ids):
                stored[i] = Stored({}, info, more)
        demanded = [(i, *name) for i, batch in enumerate(batches) for name in batch.demanded_docs]
        if demanded:
            numbers, keys = [i for i, _, _ in demanded], [key for _, _, key in demanded]
            kinds = [kind.value for _, kind, _ in demanded]
            names = [batches[i].agent_id for i in numbers], kinds, list(map(key_hash, keys)), keys
            for i, kind, key, found in await session.fetch(self._statements.digests, numbers, *names):
                if found is not None:
                    stored[i].digests[DocKind(kind), key] = found
        return stored

    async def _explained(
        self,
        session: Session,
        batches: Sequence[Batch],
        heads: Mapping[str, HeadAfterRefusal],
        stored: Sequence[Stored],
        leases: str,
    ) -> dict[int, Outcome]:
        """The outcomes of batches that were applied before, and of batches with a precondition that fails."""
        fences = [(batch.agent_id, batch.fence) for batch in batches if batch.fence is not None]
        held: set[tuple[str, Fence]] = set()
        if fences:
            columns = [a for a, _ in fences], [f.owner for _, f in fences], [f.token for _, f in fences]
            held = {(row[0], Fence(row[1], row[2])) for row in await session.fetch(leases, *columns)}
        outcomes: dict[int, Outcome] = {}
        for i, batch in enumerate(batches):
            head = heads.get(batch.agent_id) or HeadAfterRefusal(None)
            is_held = batch.fence is None or (batch.agent_id, batch.fence) in held
            outcome = await self._known(session, batch, head) or head.refusal(batch, stored[i], is_held=is_held)
            if session.is_retry and isinstance(outcome, Refused) and _may_hold_later(batch, outcome, stored[i]):
                outcome = OutcomeUnknownError(_LATE)
            if outcome is not None:
                outcomes[i] = outcome
        return outcomes

    async def _known(self, session: Session, batch: Batch, head: HeadAfterRefusal) -> Outcome | None:
        """The outcome of a batch that was or may have been applied already, else None.

        For a known one it makes a write of its own, whose commit waits as others do.

        The attempt that applied the batch may have been abandoned while it waited for a standby: the batch is then on
        the primary alone.
        """
        is_known = head.knows(op_number(batch.op_id))
        is_forgotten = session.is_retry and head.may_have_forgotten(session.since)
        if not (is_known or is_forgotten):
            return None
        old = await self._offsets(session, batch) if batch.events else {}
        if is_known:
            is_gone = len(old) < len({(event.seq, event.body.digest) for event in batch.events})  # deleted since
            skipped = len(batch.events) if is_gone else 0
            last = await session.fetchrow(self._statements.confirm, batch.agent_id, skipped)
            messages, tool_calls = head.messages, head.tool_calls
            if not head.is_last(op_number(batch.op_id)):
                messages, tool_calls = replace(messages, version=0), replace(tool_calls, version=0)
            return Applied(messages, tool_calls, offsets_of(batch, last[0] - skipped + 1, old))
        return OutcomeUnknownError("the connection broke, and others wrote so much since that nobody can tell")

    async def _offsets(self, session: Session, batch: Batch) -> dict[tuple[str, int, bytes], int]:
        seqs, digests = [event.seq for event in batch.events], [event.body.digest for event in batch.events]
        rows = await session.fetch(self._statements.offsets, batch.agent_id, seqs, digests)
        return {(batch.agent_id, row[0], row[1]): row[2] for row in rows}

    # --- with locks

    async def _with_locks(
        self, session: Session, batches: Sequence[Batch], decided: dict[int, Outcome]
    ) -> dict[int, Outcome]:
        """Delete agents and replace lists without a precondition: the rows to remove are found under the lock.

        Outcomes that need no write are noted in *decided*: they stay valid even if the connection breaks afterwards.
        """
        statements = self._statements
        places = [i for i in range(len(batches)) if i not in decided]
        some = [batches[i] for i in places]
        async with session.transaction():
            [begun] = await session.fetch(statements.begin)
            session.clock.heard(begun[-1])
            heads = await self._heads(session, some, statements.lock_heads if len(some) > 1 else statements.lock_head)
            if len(some) > 1:
                others = (await self._heads(session, some, statements.heads)).keys() - heads.keys()
                places = [i for i in places if batches[i].agent_id not in others]
                some = [batches[i] for i in places]
            stored = await self._stored(session, some)  # after the lock, so that they are the last ones
            explained = await self._explained(session, some, heads, stored, statements.lock_leases)
            known = {places[i]: outcome for i, outcome in explained.items() if isinstance(outcome, Applied)}
            decided |= {places[i]: outcome for i, outcome in explained.items() if places[i] not in known}
            # An agent without a head has nothing else, and no lock that would keep others from creating it meanwhile.
            undecided = [i for i in places if i not in decided and i not in known]
            decided |= {i: Applied() for i in undecided if batches[i].is_empty and batches[i].agent_id not in heads}
            decided |= await self._without_kept(session, {i: batches[i] for i in undecided if i not in decided})
            todo = {i: batches[i] for i in undecided if i not in decided}
            session.begin_now()
            outcomes = decided | known | await self._write_locked(session, todo, heads)
        return outcomes

    async def _without_kept(self, session: Session, todo: Mapping[int, Batch]) -> dict[int, Outcome]:
        """The refusals of batches that drop events, for agents without the event that they keep."""
        drops = {i: batch.drop_events for i, batch in todo.items() if batch.drop_events is not None}
        if not drops:
            return {}
        columns = [todo[i].agent_id for i in drops], [drop.keep for drop in drops.values()]
        found = {row[0] for row in await session.fetch(self._statements.kept, *columns)}
        return {i: Refused("events") for i in drops if todo[i].agent_id not in found}

    async def _write_locked(
        self, session: Session, todo: Mapping[int, Batch], heads: Mapping[str, HeadAfterRefusal]
    ) -> dict[int, Outcome]:
        deletes = [batch for batch in todo.values() if batch.delete and batch.agent_id in heads]
        if deletes:
            await self._delete(session, deletes)
        drops = [(batch.agent_id, batch.drop_events) for batch in todo.values() if batch.drop_events is not None]
        if drops:
            columns = [a for a, _ in drops], [drop.keep for _, drop in drops], [drop.before for _, drop in drops]
            await session.fetch(self._statements.drop, *columns)
        outcomes: dict[int, Outcome] = {i: Applied() for i, batch in todo.items() if batch.is_empty}
        rest = {i: unconditional(batch) for i, batch in todo.items() if not batch.is_empty}
        if rest:
            found = await self._apply(session, list(rest.values()))
            if len(found) < len(rest):
                raise AgainError("a head was made by another session in the middle")
            outcomes |= {i: found[k] for k, i in enumerate(rest)}
        return outcomes

    async def _delete(self, session: Session, batches: Sequence[Batch]) -> None:
        ids = [batch.agent_id for batch in batches]
        for statement in self._statements.empty:
            await session.fetch(statement, ids)
        ops = [op_number(batch.op_id) if batch.is_empty else None for batch in batches]
        await session.fetch(self._statements.bury, ids, ops)


def _may_be_of_others(exc: Exception) -> bool:
    """True if the same batch may well succeed alone, and at once."""
    return timed_out(exc) or is_locked_out(exc.__cause__) or is_conflict(exc.__cause__)


def _may_hold_later(batch: Batch, refused: Refused, stored: Stored) -> bool:
    """Whether what refuses the batch may be otherwise later.

    A document that must be absent may be deleted, and another kind than ``DOCUMENTS`` may have its digest again. No
    version of a document comes back.
    """
    if refused.by != "docs":
        return refused.by == "contents"
    return all(
        digest in (ABSENT_DOC.digest, stored.digests.get(name)) or name[0] is not DocKind.DOCUMENTS
        for name, digest in batch.demanded_docs.items()
    )


def _concerns_all(exc: Exception) -> bool:
    """True if the batches of a group fail together, not each for itself."""
    if _may_be_of_others(exc) or isinstance(exc, StoreTimeoutError):
        return False
    return isinstance(exc, OutcomeUnknownError) or (isinstance(exc, KodeError) and exc.retry is Retry.LATER)
