"""Write records: every save of a store is one batch, built here and committed once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar
from weakref import WeakValueDictionary

from kode_core.batch import (
    AgentSummary,
    Applied,
    DocWrite,
    EventWrite,
    Fence,
    Info,
    ListHead,
    ListKind,
    ListWrite,
    Refused,
)
from kode_core.errors import ConflictError, StoreBusyError
from kode_core.store.context import Context
from kode_core.store.events import EventAppender, offsets_of
from kode_core.store.list_memory import ListMemory
from kode_core.store.lists import Append, Replace, Upsert
from kode_core.store.remembered import Remembered
from kode_core.store.rows import LISTS
from kode_core.store.versions import check_version, demanded_by, document_conflict, head_of

__all__ = ["ListEdit", "ListHow", "PlannedEdit", "Rest", "TurnWrites", "Writer", "until_written"]

_CONFLICTS_BEFORE_WHOLE: Final = 4
_DOC_CONFLICTS: Final = 50

T = TypeVar("T")

Change: TypeAlias = Replace | Append | Upsert
ListHow: TypeAlias = type[Replace] | type[Append] | type[Upsert]


class ListEdit(NamedTuple):
    """The change that a call makes to one list."""

    how: ListHow
    records: Sequence[Any]


class Rest(NamedTuple):
    """The documents, info and events that one call writes besides its lists."""

    info: Info | None = None
    docs: tuple[DocWrite, ...] = ()
    events: tuple[EventWrite, ...] = ()


async def until_written(attempt: Callable[[int], Awaitable[T | None]]) -> T:
    """Make an attempt, given the number of conflicts before it, until its result is not None.

    After a conflict it waits for a moment, longer after more of them, so that writers of one agent come apart.
    """
    conflicts = 0
    while (result := await attempt(conflicts)) is None:
        conflicts += 1
        await asyncio.sleep(random.uniform(0, min(conflicts, 20)) / 1000)  # noqa: S311
    return result


async def _nothing() -> Rest:
    return Rest()


class TurnWrites(NamedTuple):
    """The writes of one call; *encode_rest* encodes everything but the lists."""

    lists: dict[ListKind, ListEdit] = {}  # noqa: RUF012 - never changed
    encode_rest: Callable[[], Awaitable[Rest]] = _nothing
    expect: str | None = None
    """The version that the agent must have."""


class PlannedEdit(NamedTuple):
    """The plan of a call for a list with its present head.

    Attributes:
        result: the result of the call.
        write: the change; None if there is nothing to do.
        note: makes the same change to the remembered list, once it is written.
    """

    result: Any
    write: ListWrite | None = None
    note: Callable[[Remembered], None] | None = None


EditPlan: TypeAlias = Callable[[ListHead, Remembered | None], Awaitable[PlannedEdit | None]]
"""Plans a change; None if the list was found changed, so that the plan has to be made again."""


class Writer:
    """Commits turns. Calls that change lists of one agent run one after the other, in the order of the calls."""

    def __init__(self, context: Context, memory: ListMemory, appender: EventAppender) -> None:
        self._context = context
        self._memory = memory
        self._appender = appender
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def write(self, agent_id: str, build: Callable[[], TurnWrites], fence: Fence | None) -> Sequence[int]:
        """Commit the turn that *build* makes from the arguments of a call; returns the offsets of its events."""
        turn = build()
        check_version(turn.expect)
        async with AsyncExitStack() as stack:
            if turn.lists:
                await stack.enter_async_context(self.in_turn(agent_id))
            rest = await turn.encode_rest()

            async def attempt(conflicts: int) -> Sequence[int] | None:
                return await self._attempt(agent_id, turn, rest, fence, conflicts)

            offsets = await until_written(attempt)
        self._appender.stored(agent_id, rest.events)
        return offsets

    @asynccontextmanager
    async def in_turn(self, agent_id: str) -> AsyncIterator[None]:
        """Wait for the calls of this store that change the agent and came before."""
        lock = self._locks.setdefault(agent_id, asyncio.Lock())
        async with lock:
            await self._context.underway.wait_for_left(agent_id)  # the call before may have been cancelled
            yield

    async def edit(
        self, agent_id: str, kind: ListKind, plan: EditPlan, fence: Fence | None, expect: str | None = None
    ) -> Any:
        """Commit the change of a list that *plan* makes from its present head, and make it anew after a conflict.

        Raises:
            ConflictError: the agent has another version than *expect*.
        """
        check_version(expect)

        async def attempt(_: int) -> PlannedEdit | None:
            summary = await self._context.engine.summary(agent_id)
            demanded = await self._demanded(agent_id, expect, summary, fence)
            head = head_of(summary, kind)
            known = self._memory.get(agent_id, kind)
            if known is not None and known.version != head.version:
                known = None
            edit = await plan(head, known)
            if edit is None or not await self._commit_edit(agent_id, kind, edit, known, fence, demanded):
                return None
            return edit

        async with self.in_turn(agent_id):
            return (await until_written(attempt)).result

    async def _commit_edit(
        self,
        agent_id: str,
        kind: ListKind,
        edit: PlannedEdit,
        known: Remembered | None,
        fence: Fence | None,
        demanded: dict[str, Any],
    ) -> bool:
        """Try once; False if another writer changed the list, or the agent is no longer as *demanded*."""
        context, write = self._context, edit.write
        if write is None:
            await self.check_held(agent_id, fence)
            return True
        outcome = None
        try:
            outcome = await context.commit(context.batch(agent_id, fence=fence, **demanded, **{kind.value: write}))
        finally:
            head = _head_after(outcome, kind)
            if known is not None and edit.note is not None and head.version:
                edit.note(known)
                known.version = head.version
            else:
                known = None
            self._memory.put(agent_id, kind, known)
        return isinstance(outcome, Applied)

    async def _attempt(
        self, agent_id: str, turn: TurnWrites, rest: Rest, fence: Fence | None, conflicts: int
    ) -> Sequence[int] | None:
        """Try once, after so many conflicts; None if another writer was faster."""
        demanded, whole = dict[str, Any](), conflicts >= _CONFLICTS_BEFORE_WHOLE
        if turn.expect is not None:
            summary = await self._context.engine.summary(agent_id)
            demanded = await self._demanded(agent_id, turn.expect, summary, fence)
        changes = {kind: await self._change(agent_id, kind, edit, whole=whole) for kind, edit in turn.lists.items()}
        batch = self._context.batch(
            agent_id,
            fence=fence,
            **demanded,
            info=rest.info,
            docs=rest.docs,
            events=rest.events,
            **{kind.value: change.write for kind, change in changes.items()},
        )
        outcome = None
        try:
            outcome = await self._context.commit(batch)
        finally:
            for kind, change in changes.items():
                head = _head_after(outcome, kind)
                self._memory.put(agent_id, kind, change.remember(head) if head.version else None)
        if isinstance(outcome, Refused) and outcome.by == "docs":
            conflict = await document_conflict(self._context.engine, agent_id, rest.docs)
            if conflict is not None:
                raise conflict
            if conflicts >= _DOC_CONFLICTS:  # they change all the time, or the engine reads others than it compares
                raise StoreBusyError(f"agent {agent_id!r}: its documents kept changing; nothing was written")
        return offsets_of(batch, outcome) if isinstance(outcome, Applied) else None

    async def append(
        self, agent_id: str, records: Sequence[Any], docs: tuple[DocWrite, ...], fence: Fence | None
    ) -> Applied | Refused:
        """Append messages, and write documents, in one commit; tries once. A caller is in turn (:meth:`in_turn`)."""
        context, kind = self._context, ListKind.MESSAGES
        change = await Append.of(LISTS[kind], self._memory.get(agent_id, kind), records, context.now())
        batch = context.batch(agent_id, fence=fence, docs=docs, messages=change.write)
        outcome = None
        try:
            outcome = await context.commit(batch)
        finally:
            head = _head_after(outcome, kind)
            if not isinstance(outcome, Refused):  # a refused append changed nothing
                self._memory.put(agent_id, kind, change.remember(head) if head.version else None)
        return outcome

    async def check_held(self, agent_id: str, fence: Fence | None) -> None:
        """Raise LockLostError for a lease that has ended; it refuses also a call without effect (LOCK-5)."""
        if fence is not None:
            await self._context.commit(self._context.batch(agent_id, fence=fence))

    async def _demanded(
        self, agent_id: str, expect: str | None, summary: AgentSummary | None, fence: Fence | None
    ) -> dict[str, Any]:
        """See :func:`demanded_by`. That the lease is lost is the reason that counts if both are refused."""
        try:
            return demanded_by(agent_id, expect, summary)
        except ConflictError:
            await self.check_held(agent_id, fence)
            raise

    async def _change(self, agent_id: str, kind: ListKind, edit: ListEdit, *, whole: bool) -> Change:
        engine, now = self._context.engine, self._context.now()
        codec, known = LISTS[kind], self._memory.get(agent_id, kind)
        if edit.how is Append:
            return await Append.of(codec, known, edit.records, now)
        if edit.how is Upsert:
            return await Upsert.of(codec, known, edit.records, now, lambda keys: engine.outline(agent_id, kind, keys))
        if known is None:
            known = Remembered.of_outline(await engine.outline(agent_id, kind))
        change = Replace.whole if whole else Replace.of
        return await change(codec, known, edit.records, now)


def _head_after(outcome: object, kind: ListKind) -> ListHead:
    """The head of a list after a commit; version 0 if it is not known to be written."""
    return getattr(outcome, kind.value) if isinstance(outcome, Applied) else ListHead()
