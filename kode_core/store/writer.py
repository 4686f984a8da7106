"""Write records: every save of a store is one batch, built here and committed once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any, Final, NamedTuple, TypeAlias
from weakref import WeakValueDictionary

from kode_core.batch import Applied, DocWrite, EventWrite, Fence, Info, ListHead, ListKind
from kode_core.store.context import Context
from kode_core.store.events import EventAppender, offsets_of
from kode_core.store.list_memory import ListMemory
from kode_core.store.lists import Append, Replace, Upsert
from kode_core.store.remembered import Remembered
from kode_core.store.rows import LISTS

__all__ = ["ListEdit", "ListHow", "Rest", "TurnWrites", "Writer"]

_CONFLICTS_BEFORE_WHOLE: Final = 4

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


async def _nothing() -> Rest:
    return Rest()


class TurnWrites(NamedTuple):
    """The writes of one call; *encode_rest* encodes everything but the lists."""

    lists: dict[ListKind, ListEdit] = {}  # noqa: RUF012 - never changed
    encode_rest: Callable[[], Awaitable[Rest]] = _nothing


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
        async with AsyncExitStack() as stack:
            if turn.lists:
                lock = self._locks.setdefault(agent_id, asyncio.Lock())
                await stack.enter_async_context(lock)
                await self._context.underway.wait_for_left(agent_id)  # the call before may have been cancelled
            rest = await turn.encode_rest()
            conflicts = 0
            while True:
                whole = conflicts >= _CONFLICTS_BEFORE_WHOLE
                offsets = await self._attempt(agent_id, turn, rest, fence, whole=whole)
                if offsets is not None:
                    break
                conflicts += 1
                await asyncio.sleep(random.uniform(0, min(conflicts, 20)) / 1000)  # noqa: S311
        self._appender.stored(agent_id, rest.events)
        return offsets

    async def _attempt(
        self, agent_id: str, turn: TurnWrites, rest: Rest, fence: Fence | None, *, whole: bool
    ) -> Sequence[int] | None:
        """Try once; None if another writer changed a list since it was remembered."""
        changes = {kind: await self._change(agent_id, kind, edit, whole=whole) for kind, edit in turn.lists.items()}
        batch = self._context.batch(
            agent_id,
            fence=fence,
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
                head = getattr(outcome, kind.value) if isinstance(outcome, Applied) else ListHead()
                self._memory.put(agent_id, kind, change.remember(head) if head.version else None)
        return offsets_of(batch, outcome) if isinstance(outcome, Applied) else None

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
