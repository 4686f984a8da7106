"""Events: appended in groups, read in pages, followed as they come."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from kode_core.batch import Applied, Batch, EventRange, EventRow, EventWrite, Fence, Outcome
from kode_core.codec import Body, decode
from kode_core.engine import Watch, watch
from kode_core.errors import InvalidArgumentError, KodeError, OutcomeUnknownError, StorageError
from kode_core.ids import check_agent_id, quoted
from kode_core.model import CHANNELS, AgentChannel, Bookmark, StoredEvent, Timeline
from kode_core.store.book import Op
from kode_core.store.context import Context, settled
from kode_core.store.ops import OPS
from kode_core.store.rows import INT64

__all__ = ["EventAppender", "EventReader"]

_PAGE = 500
_LOOK_ANYWAY_S = 2.0  # where the engine tells of appends
_MAX_GROUP = 1000  # small enough that one group is encoded while another is committed


class _Append:
    __slots__ = ("agent_id", "done", "events", "fence")

    def __init__(
        self, agent_id: str, events: Sequence[EventWrite], fence: Fence | None, done: asyncio.Future[Sequence[int]]
    ) -> None:
        self.agent_id = agent_id
        self.events = events
        self.fence = fence
        self.done = done


class EventAppender:
    """Group commit: while one write is under way, the next group gathers. There is no timer.

    A call returns when its events are durable; all agents' events of a group are one engine call.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._waiting: list[_Append] = []
        self._writing: list[_Append] = []
        self._writer: asyncio.Task[None] | None = None
        self._followers: defaultdict[str, set[asyncio.Event]] = defaultdict(set)

    async def append(self, op: Op, agent_id: str, events: Sequence[EventWrite], fence: Fence | None) -> Sequence[int]:
        """Append, and return the offsets."""
        context = self._context
        context.check_open()
        start = time.perf_counter()
        loop = asyncio.get_running_loop()
        item = _Append(agent_id, events, fence, loop.create_future())
        self._waiting.append(item)
        if self._writer is None:
            self._writer = loop.create_task(self._write())
        error: BaseException | None = None
        try:
            return await item.done
        except BaseException as exc:
            error = exc
            raise
        finally:
            context.book.enter(op, time.perf_counter() - start, error)

    async def _write(self) -> None:
        try:
            while self._waiting:
                group, self._waiting = self._waiting[:_MAX_GROUP], self._waiting[_MAX_GROUP:]
                self._writing = group
                await self._write_group(group)
        finally:
            self._writer = None
            self._writing = []
            if self._waiting:  # only after a cancellation: nobody is left waiting for nothing
                self._fail(self._waiting, OutcomeUnknownError("the event loop is shutting down"))
                self._waiting = []

    async def _write_group(self, group: list[_Append]) -> None:
        together: defaultdict[tuple[str, Fence | None], list[_Append]] = defaultdict(list)
        for item in group:
            together[item.agent_id, item.fence].append(item)
        batches = [
            self._context.batch(agent_id, fence=fence, events=tuple(e for item in items for e in item.events))
            for (agent_id, fence), items in together.items()
        ]
        try:
            async with asyncio.timeout(self._context.timeout):
                await self._context.open()
                outcomes = await self._context.commit_all(batches)
        except TimeoutError:
            self._fail(group, OutcomeUnknownError(f"events were not written after {self._context.timeout:g} s"))
        except BaseException as exc:
            self._fail(group, exc if isinstance(exc, Exception) else OutcomeUnknownError("the write was cancelled"))
            if not isinstance(exc, Exception):
                raise
        else:
            for batch, items, outcome in zip(batches, together.values(), outcomes, strict=True):
                self._settle(batch, items, outcome)

    def _settle(self, batch: Batch, items: list[_Append], outcome: Outcome) -> None:
        try:
            applied = settled(batch, outcome)
        except KodeError as exc:
            self._fail(items, exc)
            return
        assert isinstance(applied, Applied)
        offsets = applied.offsets
        if len(offsets) != len(batch.events):
            told = f"the engine gave {len(offsets)} offsets for {len(batch.events)} events"
            self._fail(items, StorageError(f"{told}: Applied.offsets has one for each, repeated ones too"))
            return
        place = 0
        for item in items:
            if not item.done.done():
                item.done.set_result(offsets[place : place + len(item.events)])
            place += len(item.events)
        self.wake(batch.agent_id)

    def _fail(self, items: Sequence[_Append], error: Exception) -> None:
        for item in items:
            if not item.done.done():
                item.done.set_exception(error)

    async def drain(self, agent_id: str | None = None) -> None:
        """Wait until no append is under way, for one agent or for all."""
        under_way = [item.done for item in (*self._writing, *self._waiting) if agent_id in (None, item.agent_id)]
        if under_way:
            await asyncio.wait(under_way)

    # --- followers

    def wake(self, agent_id: str) -> None:
        """Tell the followers in this process that there are new events."""
        for event in self._followers.get(agent_id, ()):
            event.set()

    @contextmanager
    def watching(self, agent_id: str) -> Iterator[asyncio.Event]:
        """An event that is set when this store appends for the agent."""
        event = asyncio.Event()
        self._followers[agent_id].add(event)
        try:
            yield event
        finally:
            self._followers[agent_id].discard(event)
            if not self._followers[agent_id]:
                del self._followers[agent_id]


class EventReader:
    """Streams events: never more than a page in memory, no cursor held while the caller works."""

    def __init__(self, context: Context, appender: EventAppender, poll_ms: int) -> None:
        self._context = context
        self._appender = appender
        self._poll = poll_ms / 1000

    async def _page(self, op: Op, agent_id: str, span: EventRange) -> Sequence[EventRow]:
        return await self._context.run(op, lambda: self._context.engine.events(agent_id, span))

    def read(
        self, agent_id: str, since: Bookmark | None, after_offset: int | None, channel: AgentChannel | None
    ) -> AsyncIterator[StoredEvent]:
        """What is stored now or is appended while it is read."""
        return self._read(agent_id, _checked(agent_id, since, after_offset, channel), after_offset, channel)

    async def _read(
        self, agent_id: str, since_seq: int | None, after_offset: int | None, channel: AgentChannel | None
    ) -> AsyncIterator[StoredEvent]:
        by_offset = after_offset is not None
        after = None if after_offset is None else (0, after_offset)
        while True:
            span = EventRange(
                order="offset" if by_offset else "seq", after=after, since_seq=since_seq, channel=channel, limit=_PAGE
            )
            rows = await self._page(OPS["read_events"], agent_id, span)
            for row in rows:
                yield stored_event(agent_id, row)
            if len(rows) < _PAGE:
                return
            after = (rows[-1].seq, rows[-1].offset)

    def follow(
        self, agent_id: str, since: Bookmark | None, after_offset: int, channel: AgentChannel | None
    ) -> AsyncIterator[StoredEvent]:
        """What is stored, then what comes, by offset, until the caller stops."""
        if after_offset is None:
            raise InvalidArgumentError("after_offset must be an int; follow_events goes by offset")
        return self._follow(agent_id, _checked(agent_id, since, after_offset, channel), after_offset, channel)

    async def _follow(
        self, agent_id: str, since_seq: int | None, after_offset: int, channel: AgentChannel | None
    ) -> AsyncIterator[StoredEvent]:
        with self._appender.watching(agent_id) as appended, ExitStack() as stack:
            told: Watch | None = None
            while True:
                appended.clear()
                span = EventRange(
                    order="offset", after=(0, after_offset), since_seq=since_seq, channel=channel, limit=_PAGE
                )
                rows = await self._page(OPS["follow_events"], agent_id, span)
                for row in rows:
                    after_offset = row.offset
                    yield stored_event(agent_id, row)
                if told is None and len(rows) < _PAGE:
                    told = watch(self._context.engine, agent_id, appended.set)
                    if told is not None:
                        stack.callback(told.close)
                if len(rows) < _PAGE:
                    await self._wait(appended, told)

    async def _wait(self, appended: asyncio.Event, told: Watch | None) -> None:
        """Until this store appends, or another may have."""
        seconds = max(self._poll, _LOOK_ANYWAY_S) if told is not None and told.is_live else self._poll
        try:
            async with asyncio.timeout(seconds):
                await appended.wait()
        except TimeoutError:
            pass


def _checked(agent_id: str, since: object, after_offset: object, channel: object) -> int | None:
    """The seq to start after; raises before the first page is asked for."""
    check_agent_id(agent_id)
    if since is not None and (not isinstance(since, Bookmark) or type(since.seq) is not int):
        raise InvalidArgumentError(f"since must be a Bookmark, got {type(since).__name__}")
    if after_offset is not None and type(after_offset) is not int:
        raise InvalidArgumentError(f"after_offset must be an int, got {type(after_offset).__name__}")
    if channel is not None and (type(channel) is not str or channel not in CHANNELS):
        raise InvalidArgumentError(f"channel must be one of {', '.join(CHANNELS)}, got {quoted(channel)}")
    if after_offset is not None and after_offset not in INT64:
        raise InvalidArgumentError(f"after_offset must be one that a store gave, got {quoted(after_offset)}")
    return None if since is None else max(INT64.start, min(since.seq, INT64.stop - 1))


def stored_event(agent_id: str, row: EventRow) -> StoredEvent:
    """The event with its offset."""
    event = decode(Timeline, Body(row.body.text, row.body.digest), f"event {row.offset} of agent {agent_id!r}")
    return StoredEvent(event.cursor, event.bookmark, event.event, extra=event.extra, offset=row.offset)
