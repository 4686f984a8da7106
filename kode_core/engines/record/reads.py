"""Reads of the record engine: each shows one instant, although it reads head and items one after the other."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, NamedTuple, TypeVar, cast

from kode_core.authoring.parallel import each
from kode_core.batch import (
    AgentSummary,
    Doc,
    DocKind,
    DocSpan,
    EventRange,
    EventRow,
    ListKind,
    ListRows,
    Outline,
    ToolCallIndex,
)
from kode_core.engines.record.doc_keys import doc_keys
from kode_core.engines.record.docs import OwnDocs, doc_of
from kode_core.engines.record.io import MissingError, MovedError, RecordIO
from kode_core.engines.record.log import OwnEvents, event_row
from kode_core.engines.record.state import (
    OpenedHead,
    Overlay,
    call_keys,
    list_head,
    position_of,
    row_keys,
)
from kode_core.engines.record.store import Item, ItemsPlace, KeyRange
from kode_core.errors import CorruptRecordError, StoreBusyError
from kode_core.query import AgentStats

__all__ = ["Instant", "RecordReads"]

T = TypeVar("T")

_ATTEMPTS: Final = 200
_OPTIMISTIC: Final = 5
_OPTIMISTIC_SECONDS: Final = 0.5
"""After this many attempts, or this many seconds, a reader asks writers to wait."""
_SINGLE_CALLS: Final = 32


class Instant(NamedTuple):
    """A head and its pending changes."""

    head: OpenedHead
    overlay: Overlay

    @property
    def place(self) -> ItemsPlace:
        return self.head.record.place


class RecordReads:
    """Reads of one agent."""

    def __init__(self, io: RecordIO) -> None:
        self._io = io

    async def at_once(self, agent_id: str, read: Callable[[Instant], Awaitable[T]], nothing: T) -> T:
        """The result of *read* at one instant, or *nothing* if the agent has no head or is a fork in the making.

        *read* raises MovedError if another writer came between, and MissingError if a record is not found. One
        MissingError proves nothing: after a failover, rows may be read as they were before the head. A record counts as
        lost if it is missing twice under the same head, the second time by ``head_now``, which is never late. A
        MovedError in between starts that count again, as the write that settles a head may be acknowledged some time
        before a read shows it.

        Raises:
            CorruptRecordError: a record of the agent is lost.
            StoreBusyError: other writers change the agent faster than it can be read.
        """
        missed: OpenedHead | None = None
        began = time.monotonic()
        for attempt in range(_ATTEMPTS):
            head = await (self._io.head(agent_id) if missed is None else self._io.head_now(agent_id))
            if head is None or head.state.reserved:
                return nothing
            is_same = missed is not None and missed.is_still(head)
            missed = None
            try:
                if attempt < _OPTIMISTIC and not (attempt and time.monotonic() - began > _OPTIMISTIC_SECONDS):
                    return await read(Instant(head, await self._io.overlay(head)))
                async with self._io.frozen(head) as frozen:
                    head = frozen
                    return await read(Instant(frozen, await self._io.overlay(frozen)))
            except MissingError:
                if is_same:
                    said = "a record of it is missing, and no other process removed it"
                    raise CorruptRecordError(f"agent {agent_id!r}", said) from None
                missed = head
            except MovedError:
                pass
            await asyncio.sleep(random.uniform(0, min(attempt + 1, 20)) / 1000)  # noqa: S311
        raise StoreBusyError(f"agent {agent_id!r}: other writers change it faster than it can be read; try again")

    async def items(self, instant: Instant, keys: KeyRange) -> list[Item]:
        """The items of a key range at the instant. Texts in parts are not read yet."""
        stored = await self._io.store.items(instant.place, keys)
        if any(item.rev > instant.head.record.rev for item in stored):
            raise MovedError
        return instant.overlay.over(stored, keys)

    async def still(self, instant: Instant) -> None:
        """Raise MovedError if the agent was deleted since the instant: for reads whose size the head does not know.

        So does a prune, whose events may be erased in part.
        """
        now = await self._io.head(instant.place.agent_id)
        if now is None or now.record.epoch != instant.place.epoch:
            raise MovedError
        if now.state.events_from != instant.head.state.events_from:
            raise MovedError

    # --- one agent

    async def summary(self, agent_id: str) -> AgentSummary | None:
        async def read(instant: Instant) -> AgentSummary | None:
            record = instant.head.record
            if record.info is None and not (record.messages.version or record.tool_calls.version):
                return None
            return AgentSummary(
                agent_id=agent_id,
                info=await self._io.info(instant.head),
                updated_at=record.updated_at,
                messages=record.messages,
                tool_calls=record.tool_calls,
            )

        return await self.at_once(agent_id, read, None)

    async def list_items(self, instant: Instant, kind: ListKind, *, bodies: bool = True) -> list[Item]:
        """All rows of a list. Texts in parts are not read yet."""
        count = list_head(instant.head.record, kind).count
        if not count:
            return []
        items = await self.items(instant, row_keys(kind, 0, count - 1, bodies=bodies))
        if len(items) != count:
            raise MissingError
        return items

    async def rows(self, agent_id: str, kind: ListKind) -> ListRows:
        async def read(instant: Instant) -> ListRows:
            items = await self._io.whole(instant.place, await self.list_items(instant, kind))
            version = list_head(instant.head.record, kind).version
            return ListRows(version, [(item.body, item.time) for item in items])

        return await self.at_once(agent_id, read, ListRows(0, []))

    async def rows_at(self, agent_id: str, kind: ListKind, start: int, limit: int) -> ListRows:
        async def read(instant: Instant) -> ListRows:
            head = list_head(instant.head.record, kind)
            end = min(head.count, start + limit)
            if start >= end:
                return ListRows(head.version, [])
            items = await self.items(instant, row_keys(kind, start, end - 1))
            if len(items) != end - start:
                raise MissingError
            whole = await self._io.whole(instant.place, items)
            return ListRows(head.version, [(item.body, item.time) for item in whole])

        return await self.at_once(agent_id, read, ListRows(0, []))

    async def outline(self, agent_id: str, kind: ListKind, keys: Sequence[str] | None = None) -> Outline:
        async def read(instant: Instant) -> Outline:
            head = list_head(instant.head.record, kind)
            if keys is None or len(keys) > _SINGLE_CALLS:
                items = await self.list_items(instant, kind, bodies=False)
            else:
                items = await self._calls(instant, keys, head.count)
            if keys is not None:
                items = _last_of(items, set(keys))
            return Outline(head.version, head.count, [_outlined(item) for item in items])

        return await self.at_once(agent_id, read, Outline(0, 0, []))

    async def _calls(self, instant: Instant, keys: Sequence[str], count: int) -> list[Item]:
        found = await each(lambda key: self.items(instant, call_keys(key)), dict.fromkeys(keys))
        items = [item for some in found for item in some if position_of(item.key) < count]
        return sorted(items, key=lambda item: item.key)

    async def docs(self, agent_id: str, kind: DocKind, key: str | None = None) -> Sequence[Doc]:
        async def read(instant: Instant) -> list[Doc]:
            items = await self._io.whole(instant.place, await self.items(instant, doc_keys(kind, key)))
            if key is None:
                await self.still(instant)
            return [doc_of(item) for item in items]

        return await self.at_once(agent_id, read, [])

    async def docs_in(self, agent_id: str, span: DocSpan) -> Sequence[Doc]:
        """See :meth:`kode_core.engine.RangesDocs.docs_in`."""

        async def read(instant: Instant) -> list[Doc]:
            items = await OwnDocs(self._io.store, *instant).within(span)
            if span.bodies:
                items = await self._io.whole(instant.place, items)
            await self.still(instant)
            return [doc_of(item) for item in items]

        return await self.at_once(agent_id, read, [])

    async def stats(self, agent_id: str) -> AgentStats:
        async def read(instant: Instant) -> AgentStats:
            items = await self.list_items(instant, ListKind.TOOL_CALLS, bodies=False)
            snapshots = await self.items(instant, doc_keys(DocKind.SNAPSHOTS, bodies=False))
            documents = await OwnDocs(self._io.store, *instant).count()
            await self.still(instant)
            calls = [cast(ToolCallIndex, item.index) for item in items]
            return AgentStats(
                total_messages=instant.head.record.messages.count,
                total_tool_calls=len(calls),
                total_snapshots=len(snapshots),
                total_documents=documents,
                tool_calls_by_name=dict(Counter(call.tool_name for call in calls)),
                tool_calls_by_state=dict(Counter(call.state for call in calls)),
            )

        return await self.at_once(agent_id, read, AgentStats())

    # --- events

    async def events(self, agent_id: str, span: EventRange) -> Sequence[EventRow]:
        async def read(instant: Instant) -> list[EventRow]:
            items = await self._io.whole(instant.place, await OwnEvents(self._io.store, *instant).page(span))
            if items:
                await self.still(instant)
            return [event_row(item) for item in items]

        return await self.at_once(agent_id, read, [])

    async def last_event(self, agent_id: str) -> EventRow | None:
        async def read(instant: Instant) -> EventRow | None:
            last = await OwnEvents(self._io.store, *instant).last()
            if last is None:
                return None
            await self.still(instant)
            return event_row((await self._io.whole(instant.place, [last]))[0])

        return await self.at_once(agent_id, read, None)


def _last_of(items: Iterable[Item], keys: set[str]) -> list[Item]:
    """The last row of each of these call ids, in order of position."""
    last = {cast(ToolCallIndex, item.index).call_id: item for item in items}
    return sorted((item for call_id, item in last.items() if call_id in keys), key=lambda item: item.key)


def _outlined(item: Item) -> tuple[int, bytes, int, str | None]:
    key = item.index.call_id if isinstance(item.index, ToolCallIndex) else None
    return position_of(item.key), item.body.digest, item.time, key
