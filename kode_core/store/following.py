"""Followers: the stored events of an agent, then new ones as they arrive, until the agent is deleted."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Final, NamedTuple, TypeVar

from kode_core.authoring.waiting import waited_for
from kode_core.batch import EventRange, EventRow
from kode_core.engine import Watch, idle_poll_ms, watch
from kode_core.errors import AgentDeletedError, CorruptRecordError, InvalidArgumentError
from kode_core.ids import quoted
from kode_core.model import AgentChannel, Bookmark, StoredEvent
from kode_core.pace import Pace
from kode_core.protocols import Heartbeat
from kode_core.store.context import Context
from kode_core.store.events import EventAppender, checked, limit_after, stored_event
from kode_core.store.methods import METHODS
from kode_core.store.pages import FIRST_PAGE
from kode_core.store.prune_mark import is_pruned

__all__ = ["Follower", "Wanted", "follow"]

T = TypeVar("T")

_LOOK_ANYWAY_S: Final = 2.0  # for engines that report appends
_LOOKS_A_CHECK: Final = 10
"""An idle follower looks for its anchor in one of so many looks: engines that keep bodies apart read more for it."""
_CHECK_AGAIN_S: Final = 2.0
_CHECK_ANYWAY_S: Final = 60.0
_REREAD_PER_S: Final = 2_048
"""A large anchor is read less often: so many characters a second, but once a minute whatever its size."""
_LONGEST_HEARTBEAT_MS: Final = 86_400_000


def follow(
    context: Context,
    appender: EventAppender,
    poll_s: float,
    agent_id: str,
    since: Bookmark | None,
    after_offset: int,
    channel: AgentChannel | None,
    heartbeat_ms: int | None,
) -> Follower:
    """The stream of ``follow_events``; its arguments are checked."""
    if after_offset is None:
        raise InvalidArgumentError("after_offset must be an int; follow_events goes by offset")
    wanted = Wanted(checked(agent_id, since, after_offset, channel), channel)
    if heartbeat_ms is not None and type(heartbeat_ms) is not int:
        raise InvalidArgumentError(f"heartbeat_ms must be an int, got {type(heartbeat_ms).__name__}")
    if heartbeat_ms is not None and not 1 <= heartbeat_ms <= _LONGEST_HEARTBEAT_MS:
        raise InvalidArgumentError(
            f"heartbeat_ms must be from 1 to {_LONGEST_HEARTBEAT_MS} milliseconds, got {quoted(heartbeat_ms)}"
        )
    heartbeat_s = None if heartbeat_ms is None else heartbeat_ms / 1000
    return Follower(context, appender, agent_id, wanted, after_offset, poll_s=poll_s, heartbeat_s=heartbeat_s)


class Wanted(NamedTuple):
    """The events that a follower wants."""

    since_seq: int | None
    channel: AgentChannel | None

    @property
    def is_everything(self) -> bool:
        """True if no event is left out."""
        return self.since_seq is None and self.channel is None


class Follower:
    """Follows the events of one agent; see :class:`kode_core.protocols.EventStream`.

    A look reads the next page. It runs in a task of its own, so that a cancelled ``anext`` neither loses a page nor
    begins the look anew: the next ``anext`` waits for the same look.

    A look that expects events begins with the last event that was read, its *anchor*. No offset is ever given twice
    (EVT-2), so a page without the anchor means that its event was pruned (LIFE-6), or that the agent was deleted
    (EVT-10). Looks of an idle follower expect nothing and read new events only, except for one every few seconds. A
    follower that has no anchor yet asks whether the agent is still there instead, if it was there when the follower
    began.
    """

    def __init__(
        self,
        context: Context,
        appender: EventAppender,
        agent_id: str,
        wanted: Wanted,
        after_offset: int,
        *,
        poll_s: float,
        heartbeat_s: float | None,
    ) -> None:
        self._context = context
        self._appender = appender
        self._agent_id = agent_id
        self._wanted = wanted
        self._poll_s = poll_s
        self._heartbeat_s = heartbeat_s
        self._rows: deque[EventRow] = deque()
        self._after = after_offset  # a look reads what comes after it
        self._anchor: int | None = None  # the size of the event at that offset, if it was read
        self._is_there = False  # the agent was there, before any of its events was read
        self._reads_all = wanted.is_everything  # otherwise looks leave out the events that are not wanted
        self._has_begun = False
        self._checked_at = 0.0
        self._limit = FIRST_PAGE
        self._pause = poll_s
        self._is_behind = True  # the last look found events, or was the first
        self._look_at: float | None = 0.0
        self._quiet_since: float | None = None
        self._looking: asyncio.Task[None] | None = None
        self._is_busy = self._is_closed = self._is_deleted = False
        self._stack = ExitStack()
        self._appended: asyncio.Event | None = None
        self._watch: Watch | None = None
        self._pace = Pace()

    def __aiter__(self) -> Follower:
        return self

    async def __anext__(self) -> StoredEvent | Heartbeat:
        with self._only_reader():
            if self._is_deleted and not self._is_closed:
                raise AgentDeletedError(self._agent_id)
            if self._quiet_since is None:
                self._quiet_since = asyncio.get_running_loop().time()
            while not self._is_closed:
                item: StoredEvent | Heartbeat | None = await self._buffered()
                if item is None and not await self._more():
                    item = Heartbeat(self._context.now(), self._after)
                if item is not None:
                    self._quiet_since = None
                    return item
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """See :class:`kode_core.protocols.EventStream`."""
        self._is_closed = True
        self._rows.clear()
        if self._appended is not None:
            self._appended.set()
        if self._looking is not None:
            self._looking.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.wait([self._looking])
        self._stack.close()

    def __del__(self) -> None:
        self._stack.close()

    @contextmanager
    def _only_reader(self) -> Iterator[None]:
        if self._is_busy:
            raise InvalidArgumentError(
                f"another anext is waiting on this stream of events of agent {self._agent_id!r}, which has one reader "
                "at a time: call follow_events once for each reader"
            )
        self._is_busy = True
        try:
            yield
        finally:
            self._is_busy = False

    # --- items

    async def _buffered(self) -> StoredEvent | None:
        """The next wanted event in the buffer; an event is released as soon as the caller is done with it."""
        since_seq, channel = self._wanted
        while self._rows:
            row = self._rows[0]
            event = None
            if since_seq is None or row.seq > since_seq:
                event = await stored_event(self._agent_id, row, self._pace)  # here it may be cancelled, or closed
            if self._rows:
                self._rows.popleft()
                if event is not None and channel in (None, event.event.channel):
                    return event
        return None

    async def _more(self) -> bool:
        """Wait until a look has ended; False if it is time for a heartbeat."""
        loop = asyncio.get_running_loop()
        assert self._quiet_since is not None
        beat_at = None if self._heartbeat_s is None else self._quiet_since + self._heartbeat_s
        if self._looking is None:
            if not await self._is_time_to_look(beat_at):
                return self._is_closed
            self._looking = loop.create_task(self._look())
            self._looking.add_done_callback(_seen)
        looking = self._looking
        await asyncio.wait([looking], timeout=None if beat_at is None else max(0.0, beat_at - loop.time()))
        if self._is_closed:
            return True
        if not looking.done():
            return False
        self._looking = None
        try:
            looking.result()
        except AgentDeletedError:
            self._is_deleted = True
            self._stack.close()
            raise
        except Exception:
            self._look_at = 0.0  # the next anext looks at once
            raise
        return True

    async def _is_time_to_look(self, beat_at: float | None) -> bool:
        """Wait until this store appends, or another store may have appended; False if a heartbeat comes first."""
        loop = asyncio.get_running_loop()
        if self._appended is None:
            self._appended = self._stack.enter_context(self._appender.followers.watching(self._agent_id))
        if self._look_at is None:
            self._look_at = loop.time() + self._wait_s()
        if loop.time() < self._look_at and not self._appended.is_set():
            beats_first = beat_at is not None and beat_at < self._look_at
            until = beat_at if beat_at is not None and beats_first else self._look_at
            if not await waited_for(self._appended, max(0.0, until - loop.time())) and beats_first:
                return False
        return not self._is_closed

    # --- looks

    async def _look(self) -> None:
        """Read the next page; the place to read on from changes only when everything was read."""
        assert self._appended is not None
        now = asyncio.get_running_loop().time()
        is_woken = self._appended.is_set()
        self._appended.clear()
        last = None if self._has_begun or self._reads_all else await self._some_event()
        is_suspicious = is_woken or self._is_behind or now - self._checked_at >= self._longest_trust()
        rows = await self._next_rows(is_suspicious=is_suspicious)
        if self._anchor is None and not self._has_begun:
            self._is_there = not rows and last is None and await self._agent_is_there()
        elif self._anchor is None and self._is_there and (rows or is_suspicious) and not await self._agent_is_there():
            raise AgentDeletedError(self._agent_id)
        if is_suspicious:
            self._checked_at = now
        self._has_begun = True
        self._take(rows, last)

    def _take(self, rows: Sequence[EventRow], last: EventRow | None) -> None:
        """Note a page, and when to look again."""
        is_last = len(rows) < self._limit
        self._limit = limit_after(rows, self._limit)
        self._pause = self._poll_s if rows else min(2 * self._pause, self._longest_pause())
        self._is_behind = bool(rows)
        self._rows.extend(rows)
        newest = rows[-1] if rows else None
        if is_last and not self._reads_all:
            # From here on every event is read once, so that no look skips the same ones again.
            self._reads_all = True
            if last is not None and last.offset >= (newest.offset if newest else self._after):
                newest = last
        if newest is not None:
            self._after, self._anchor = newest.offset, len(newest.body.text)
        self._look_at = None if is_last else 0.0
        if is_last and self._watch is None:
            assert self._appended is not None
            self._watch = watch(self._context.engine, self._agent_id, self._appended.set)
            if self._watch is not None:
                self._stack.callback(self._watch.close)

    async def _next_rows(self, *, is_suspicious: bool) -> Sequence[EventRow]:
        """The rows after the last one; raises AgentDeletedError if that one is gone."""
        if self._anchor is not None and not is_suspicious:
            rows = await self._page(self._after)
            if rows and not await self._anchor_is_there():  # asked later: then it was there before, too
                await self._check_pruned()
            return rows
        if self._anchor is None and (self._has_begun or self._after <= 0):
            return await self._page(self._after)
        try:
            rows = await self._page(self._after - 1)
        except CorruptRecordError:  # the event that was read, or a later one
            return await self._page(self._after)
        if rows and rows[0].offset == self._after:
            if self._anchor is None:
                self._anchor = len(rows[0].body.text)
            return rows[1:]
        if self._anchor is not None:
            await self._check_pruned()
        return rows[: self._limit]

    async def _anchor_is_there(self) -> bool:
        try:
            rows = await self._page(self._after - 1, 1)
        except CorruptRecordError:
            return True
        return bool(rows) and rows[0].offset == self._after

    async def _check_pruned(self) -> None:
        """Raise AgentDeletedError, unless the last event that was read was pruned. Asked after a page was read."""
        if not await self._call(lambda: is_pruned(self._context.engine, self._agent_id, self._after)):
            raise AgentDeletedError(self._agent_id)

    async def _page(self, after: int, limit: int = 0) -> Sequence[EventRow]:
        """A page of rows after an offset, and one more if that is before the last one."""
        limit = limit or self._limit + (self._after - after)
        since_seq, channel = (None, None) if self._reads_all else self._wanted
        span = EventRange(order="offset", after=(0, after), since_seq=since_seq, channel=channel, limit=limit)
        return await self._call(lambda: self._context.engine.events(self._agent_id, span))

    async def _call(self, read: Callable[[], Awaitable[T]]) -> T:
        return await self._context.run(METHODS["follow_events"], self._agent_id, read)

    async def _some_event(self) -> EventRow | None:
        """An event that is stored now: a later look can skip all offsets up to it (EVT-2)."""
        try:
            return await self._call(lambda: self._context.engine.last_event(self._agent_id))
        except CorruptRecordError:  # the look at all events meets the damage behind the readable ones
            return None

    async def _agent_is_there(self) -> bool:
        """True if the agent's info, messages or tool calls are stored."""
        try:
            summary = await self._call(lambda: self._context.engine.summary(self._agent_id))
        except CorruptRecordError:
            return self._is_there
        return summary is not None and bool(
            summary.info is not None or summary.messages.version or summary.tool_calls.version
        )

    def _wait_s(self) -> float:
        """How long to wait until the next look."""
        is_live = self._watch is not None and self._watch.is_live
        return max(self._pause, _LOOK_ANYWAY_S) if is_live else self._pause

    def _longest_trust(self) -> float:
        """How long the agent counts as the same since it was last checked."""
        size = self._anchor or 0
        return max(_CHECK_AGAIN_S, _LOOKS_A_CHECK * self._wait_s(), min(size / _REREAD_PER_S, _CHECK_ANYWAY_S))

    def _longest_pause(self) -> float:
        """The longest pause, in seconds, between two looks that find nothing."""
        return max(self._poll_s, (idle_poll_ms(self._context.engine) or 0) / 1000)


def _seen(looking: asyncio.Task[None]) -> None:
    """Retrieve the error of a look, which no one may wait for any more."""
    if not looking.cancelled():
        looking.exception()
