"""Events: appended in groups, read in pages, followed as they arrive."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextvars import copy_context
from typing import Final

from kode_core.batch import Applied, Batch, EventRange, EventRow, EventWrite, Fence, Refused
from kode_core.engine import CALLER, Caller
from kode_core.errors import (
    InvalidArgumentError,
    KodeError,
    OutcomeUnknownError,
    Retry,
    StorageError,
    StoreFullError,
)
from kode_core.ids import check_agent_id, quoted
from kode_core.large import decode_in_slices
from kode_core.model import CHANNELS, AgentChannel, Bookmark, StoredEvent, Timeline
from kode_core.pace import Pace
from kode_core.store.context import Context
from kode_core.store.followers import Followers
from kode_core.store.methods import METHODS
from kode_core.store.metrics import Method
from kode_core.store.numbers import Numbers
from kode_core.store.observing import TALLY
from kode_core.store.pages import FIRST_PAGE, next_limit
from kode_core.store.rows import INT64
from kode_core.store.underway import applied_or_raise

__all__ = ["EventAppender", "EventReader", "checked", "limit_after", "offsets_of", "stored_event"]

_PATIENCE_S: Final = 0.02
_MOST_EVENTS: Final = 1000
_MOST_CHARACTERS: Final = 4 << 20


class _Append:
    """A call that appends: it waits, is written in a group, and ends."""

    __slots__ = ("_ended", "context", "done", "events", "fence", "has_ended", "size", "tally")

    def __init__(self, events: Sequence[EventWrite], fence: Fence | None) -> None:
        self.events = events
        self.fence = fence
        self.size = sum([len(event.body.text) for event in events])
        self.done: asyncio.Future[Sequence[int]] = asyncio.get_running_loop().create_future()
        """The caller waits for this future; it is also done when the caller gives up."""
        self.has_ended = False
        self.tally = TALLY.get()
        self.context = None if self.tally is None else copy_context()
        self._ended: asyncio.Future[None] | None = None

    def end(self, result: Sequence[int] | Exception | None = None) -> None:
        """Record that the append was written, failed, or was withdrawn."""
        if not self.done.done():
            if isinstance(result, Exception):
                self.done.set_exception(result)
                self.done.exception()  # the caller may be cancelled before it sees it
            elif result is not None:
                self.done.set_result(result)
        self.has_ended = True
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    def ended(self) -> asyncio.Future[None]:
        """A future that is done when the append has ended, with or without its caller."""
        if self._ended is None:
            self._ended = asyncio.get_running_loop().create_future()
            if self.has_ended:
                self._ended.set_result(None)
        return self._ended


class _Queue:
    """The appends for one agent: the waiting ones, the ones being written, and the task that writes them."""

    __slots__ = ("waiting", "writer", "written")

    def __init__(self) -> None:
        self.waiting: deque[_Append] = deque()
        self.written: list[_Append] = []
        self.writer: asyncio.Task[None] | None = None


class EventAppender:
    """Group commit: while one wave of writes is running, the next one gathers.

    A call returns when its events are durable. A wave is one write for each agent, all at once, so that an engine can
    commit them together. None of them waits for another agent's, and the next wave waits only a moment for a slow one
    (OPS-13)::

        agent A   a1 ─> [ write a1 ]  a2, a3 gather  [ write a2+a3 ]
        agent B   b1 ─> [ write b1              ]    b2 gathers      [ write b2 ]
                        wave 1                       wave 2          wave 3

    Agent A's second write does not wait for agent B's first. An agent never has two writes at once, which keeps its
    events in order.
    """

    def __init__(self, context: Context, followers: Followers) -> None:
        self._context = context
        self._queues: dict[str, _Queue] = {}
        self._ready: dict[str, _Queue] = {}
        self._waves: asyncio.Task[None] | None = None
        self.followers = followers
        self.numbers = Numbers()
        context.on_closing.append(followers.wake_all)
        context.event_load = self._load

    def _load(self) -> tuple[int, int]:
        """The number of waiting appends and of followers; any thread may ask."""
        waiting = sum([len(queue.waiting) for queue in list(self._queues.values())])
        return waiting, len(self.followers)

    async def append(self, agent_id: str, events: Sequence[EventWrite], fence: Fence | None) -> Sequence[int]:
        """Append, and return the offsets.

        If a caller gives up while its events wait, they are withdrawn: nothing is written. Once the write has begun it
        runs to its end (OPS-9); a caller that gives up when it has just been written is in doubt, too.
        """
        item = _Append(events, fence)
        queue = self._queues.get(agent_id)
        if queue is None:
            queue = self._queues[agent_id] = _Queue()
        queue.waiting.append(item)
        self._prepare(agent_id, queue)
        try:
            return await item.done
        except asyncio.CancelledError as exc:
            if item in queue.waiting:  # no write has it yet
                queue.waiting.remove(item)
                item.end()
            else:
                self._context.underway.leave((agent_id,), item.ended(), exc)
            raise

    def _prepare(self, agent_id: str, queue: _Queue) -> None:
        """Let the next wave write the agent's waiting appends."""
        if queue.writer is None and queue.waiting:
            self._ready[agent_id] = queue
            if self._waves is None:
                self._waves = self._context.underway.begin(self._write_waves())

    async def _write_waves(self) -> None:
        try:
            while self._ready:
                ready, self._ready = self._ready, {}
                writers = [self._start(agent_id, queue) for agent_id, queue in ready.items()]
                # Fast engines gather a whole wave for their next commit; a slow agent holds the others up this long.
                await asyncio.wait(writers, timeout=_PATIENCE_S)
        finally:
            self._waves = None

    def _start(self, agent_id: str, queue: _Queue) -> asyncio.Task[None]:
        first = queue.waiting[0].context if queue.waiting else None  # observers see a group in its first call's context
        queue.writer = self._context.underway.begin(self._write(agent_id, queue), first)
        return queue.writer

    async def _write(self, agent_id: str, queue: _Queue) -> None:
        """Write the next group of the agent's appends."""
        try:
            queue.written = _next_group(queue.waiting)
            if queue.written:
                await self._write_group(agent_id, queue.written)
        finally:
            for item in queue.written:  # an append has not ended here only after a cancellation
                item.end(OutcomeUnknownError("the event loop was shut down while this was written"))
            queue.writer, queue.written = None, []
            self._prepare(agent_id, queue)
            if not queue.waiting:
                self._queues.pop(agent_id, None)

    async def _write_group(self, agent_id: str, group: list[_Append]) -> None:
        events = tuple([event for item in group for event in item.events])
        batch = self._context.batch(agent_id, fence=group[0].fence, events=events)
        CALLER.set(Caller(lambda: not all(item.done.done() for item in group), self._context.timeout))
        TALLY.set(None)  # each call of the group counts its own events
        try:
            (outcome,) = await self._context.engine.commit([batch])
            offsets = offsets_of(batch, applied_or_raise(batch, outcome))
        except Exception as exc:  # noqa: BLE001 - whatever it is, the waiting callers get it
            if len(group) > 1 and _is_for_one(exc):  # write them one by one, so that only the bad call fails
                for item in group:
                    await self._write_group(agent_id, [item])
                return
            for item in group:
                item.end(exc)
            return
        start = 0
        for item in group:
            if item.tally is not None:
                await item.tally.add(event.body for event in item.events)
            item.end(offsets[start : start + len(item.events)])
            start += len(item.events)
        self.stored(agent_id, events)

    async def drain(self, agent_id: str | None = None, *, seconds: float | None = None) -> None:
        """Wait for the appends that were accepted until now, for one agent or for all, for *seconds* at most."""
        queues = list(self._queues.values()) if agent_id is None else [self._queues.get(agent_id) or _Queue()]
        accepted = [item.ended() for queue in queues for item in (*queue.written, *queue.waiting)]
        if accepted:
            await asyncio.wait(accepted, timeout=seconds)

    # --- followers and the numbers of events

    def stored(self, agent_id: str, events: Sequence[EventWrite]) -> None:
        """Note that events were stored."""
        if events:
            self.numbers.note(agent_id, max([event.seq for event in events]))
            self.followers.wake(agent_id)

    def deleted(self, agent_id: str) -> None:
        """Note that the agent was deleted, or perhaps was: its followers look at once."""
        self.numbers.forget(agent_id)
        self.followers.wake(agent_id)


def _next_group(queue: deque[_Append]) -> list[_Append]:
    """The next calls that fit into one batch: with the same fence, up to a number of events and characters."""
    if not queue:  # withdrawn
        return []
    group = [queue.popleft()]
    count, size = len(group[0].events), group[0].size
    while queue and queue[0].fence == group[0].fence:
        count, size = count + len(queue[0].events), size + queue[0].size
        if count > _MOST_EVENTS or size > _MOST_CHARACTERS:
            break
        group.append(queue.popleft())
    return group


def _is_for_one(exc: Exception) -> bool:
    """True if nothing was written, and possibly only one call of the group is the reason."""
    return isinstance(exc, StoreFullError) or (isinstance(exc, KodeError) and exc.retry is Retry.NEVER)


def offsets_of(batch: Batch, outcome: Applied | Refused) -> Sequence[int]:
    """The offsets of the batch's events; raises the error of a failed batch."""
    assert isinstance(outcome, Applied)
    if len(outcome.offsets) != len(batch.events):
        problem = f"the engine gave {len(outcome.offsets)} offsets for {len(batch.events)} events"
        raise StorageError(f"{problem}: Applied.offsets has one for each, repeated ones too")
    return outcome.offsets


class EventReader:
    """Streams events: never more than a page in memory, and no cursor stays open while the caller works."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def _page(self, method: Method, agent_id: str, span: EventRange) -> Sequence[EventRow]:
        return await self._context.run(method, agent_id, lambda: self._context.engine.events(agent_id, span))

    def read(
        self, agent_id: str, since: Bookmark | None, after_offset: int | None, channel: AgentChannel | None
    ) -> AsyncIterator[StoredEvent]:
        """The events that are stored now, and those appended while they are read."""
        return self._read(agent_id, checked(agent_id, since, after_offset, channel), after_offset, channel)

    async def _read(
        self, agent_id: str, since_seq: int | None, after_offset: int | None, channel: AgentChannel | None
    ) -> AsyncIterator[StoredEvent]:
        by_offset = after_offset is not None
        after = None if after_offset is None else (0, after_offset)
        limit, pace = FIRST_PAGE, Pace()
        while True:
            span = EventRange(
                order="offset" if by_offset else "seq", after=after, since_seq=since_seq, channel=channel, limit=limit
            )
            rows = deque(await self._page(METHODS["read_events"], agent_id, span))
            is_last = len(rows) < limit
            limit = limit_after(rows, limit)
            while rows:  # an event is released as soon as the caller is done with it
                row = rows.popleft()
                after = (row.seq, row.offset)
                yield await stored_event(agent_id, row, pace)
            if is_last:
                return


def checked(agent_id: str, since: object, after_offset: object, channel: object) -> int | None:
    """The seq to start after; raises before the first page is read."""
    check_agent_id(agent_id)
    if since is not None and not isinstance(since, Bookmark):
        raise InvalidArgumentError(f"since must be a Bookmark, got {type(since).__name__}")
    if since is not None and type(since.seq) is not int:
        raise InvalidArgumentError(f"since must be a Bookmark whose seq is an int, got {type(since.seq).__name__}")
    if after_offset is not None and type(after_offset) is not int:
        raise InvalidArgumentError(f"after_offset must be an int, got {type(after_offset).__name__}")
    if channel is not None and (type(channel) is not str or channel not in CHANNELS):
        raise InvalidArgumentError(f"channel must be one of {', '.join(CHANNELS)}, got {quoted(channel)}")
    if after_offset is not None and after_offset not in INT64:
        raise InvalidArgumentError(f"after_offset must be one that a store gave, got {quoted(after_offset)}")
    return None if since is None else max(INT64.start, min(since.seq, INT64.stop - 1))


def limit_after(rows: Sequence[EventRow], limit: int) -> int:
    """The limit of the page after this one."""
    return next_limit(len(rows), sum(len(row.body.text) for row in rows)) if rows else limit


async def stored_event(agent_id: str, row: EventRow, pace: Pace) -> StoredEvent:
    """The event with its offset."""
    event = await decode_in_slices(Timeline, row.body, f"event {row.offset} of agent {agent_id!r}", pace)
    return StoredEvent(event.cursor, event.bookmark, event.event, extra=event.extra, offset=row.offset)
