"""Removing the parts of an agent that are no longer needed, in steps (LIFE-6, OPS-16)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from kode_core.authoring.parallel import each
from kode_core.batch import Applied, Doc, DocKind, DocWrite, EventDrop, EventRange, EventRow, Fence
from kode_core.codec import Body, digest
from kode_core.engine import Progress, check_drops, checks_demands
from kode_core.errors import CorruptRecordError, InvalidArgumentError, StoreBusyError
from kode_core.pace import Pace
from kode_core.query import time_ms
from kode_core.report import PruneResult
from kode_core.store.context import Context
from kode_core.store.events import EventAppender, limit_after, stored_event
from kode_core.store.kinds import COMPRESSIONS, RECOVERED, SNAPSHOTS, WINDOWS, Kind
from kode_core.store.methods import METHODS
from kode_core.store.pages import FIRST_PAGE
from kode_core.store.parts import checked_number
from kode_core.store.prune_mark import PruneMark, has_event
from kode_core.store.steps import Steps, checked_flag
from kode_core.store.writer import Writer

__all__ = ["PruneArguments", "Pruning"]

_EVENTS_AT_ONCE: Final = 1000
_DOCS_AT_ONCE: Final = 200
_ATTEMPTS: Final = 20

_State = tuple[int, bytes]


def _state(doc: Doc) -> _State:
    return doc.time, doc.body.digest


def _is_damaged(doc: Doc) -> bool:
    return digest(doc.body.text.encode(errors="replace")) != doc.body.digest


_KINDS: Final[dict[str, Kind[Any]]] = {
    "snapshots": SNAPSHOTS,
    "history_windows": WINDOWS,
    "compression_records": COMPRESSIONS,
    "recovered_files": RECOVERED,
}
"""The kinds of which a prune keeps the newest ones, by their names in ``PruneResult``."""


class PruneArguments(msgspec.Struct, frozen=True):
    """The records that a call removes, or counts.

    Attributes:
        dry_run: count them, and remove nothing.
        before_offset: only events with a lesser offset.
        before_time: only events before the first one that is not earlier, in milliseconds.
        keep: how many of a kind stay, by its name in ``PruneResult``.
    """

    before_offset: int | None
    before_time: int | None
    keep: dict[str, int]
    dry_run: bool = False

    @classmethod
    def of(cls, before_offset: Any, before: Any, dry_run: Any, **keep: Any) -> PruneArguments:
        """The checked arguments of a call."""
        kept = {name: checked_number(number, f"keep_{name}") for name, number in keep.items()}
        wanted = cls(
            checked_number(before_offset, "events_before_offset"),
            None if before is None else time_ms("events_before", before),
            {name: number for name, number in kept.items() if number is not None},
            checked_flag(dry_run, "dry_run"),
        )
        if not (wanted.has_events or wanted.keep):
            raise InvalidArgumentError(
                "prune needs at least one argument that says what to remove, such as keep_snapshots=10"
            )
        return wanted

    @property
    def has_events(self) -> bool:
        """Whether events are to be removed."""
        return self.before_offset is not None or self.before_time is not None


class Pruning:
    """Prunes one agent at a time."""

    def __init__(self, context: Context, appender: EventAppender, writer: Writer) -> None:
        self._context = context
        self._appender = appender
        self._writer = writer

    async def prune(
        self, agent_id: str, fence: Fence | None, wanted: PruneArguments, progress: Progress
    ) -> PruneResult:
        """Remove what is wanted, or count it; an error has a note about what was removed before."""
        run = _Run(self._context, agent_id, fence, progress, dry_run=wanted.dry_run)
        try:
            await run.steps(self._appender.drain, agent_id)
            if wanted.has_events:
                await _Events(run, wanted).remove()
            for name, number in wanted.keep.items():
                await run.keep_last(name, number)
            if wanted.dry_run or not run.total:
                await run.steps(self._writer.check_held, agent_id, fence)
        except BaseException as exc:
            if run.total and not wanted.dry_run:
                exc.add_note(f"{run.total} records were removed before")
            raise
        return PruneResult(**run.removed)


class _Run:
    """One prune: what it has removed so far, or counted, and its steps."""

    def __init__(
        self, context: Context, agent_id: str, fence: Fence | None, progress: Progress, *, dry_run: bool
    ) -> None:
        self.context = context
        self.engine = context.engine
        self.agent_id = agent_id
        self.steps = Steps(context, METHODS["prune"])
        self.removed: dict[str, int] = {}
        self._fence = fence
        self._progress = progress
        self._dry_run = dry_run

    @property
    def total(self) -> int:
        """The number of records that were removed or counted so far."""
        return sum(self.removed.values())

    async def commit(self, **contents: Any) -> bool:
        """Commit a step, unless it is only counted; False if it was refused."""
        if self._dry_run:
            return True
        batch = self.context.batch(self.agent_id, fence=self._fence, **contents)
        return isinstance(await self.context.commit(batch), Applied)

    def count(self, name: str, number: int) -> None:
        """Add to what was removed of a kind."""
        self.removed[name] = self.removed.get(name, 0) + number
        self._progress(self.total, None)

    async def keep_last(self, name: str, number: int) -> None:
        """Remove all documents of a kind but the last *number*, the oldest first."""
        kind = _KINDS[name]
        docs = await self.steps(self.engine.docs, self.agent_id, kind.kind)
        found = [(doc.key, _state(doc)) for doc in sorted(docs, key=kind.order, reverse=kind.is_newest_first)]
        del docs
        old = found[: max(len(found) - number, 0)]
        for i in range(0, len(old), _DOCS_AT_ONCE):
            states = dict(old[i : i + _DOCS_AT_ONCE])
            self.count(name, len(states) if self._dry_run else await self.steps(self._remove, kind.kind, states))

    async def _remove(self, kind: DocKind, states: dict[str, _State]) -> int:
        """Remove the documents that are still as they were, and return their number.

        A document that was written again since is a new one, whatever its id. An engine that checks demands compares
        the documents again in the atomic step of the write.
        """

        async def read(key: str) -> Sequence[Doc]:
            return await self.engine.docs(self.agent_id, kind, key)

        demands = checks_demands(self.engine)
        for attempt in range(_ATTEMPTS):
            docs = [doc for found in await each(read, states) for doc in found]
            same = [doc for doc in docs if states.get(doc.key) == _state(doc)]
            # a layer may show a damaged document with another digest than the engine compares
            demanded = [doc.key for doc in same if demands and not (attempt and _is_damaged(doc))]
            writes = [
                DocWrite(kind, doc.key, None, Body("", doc.body.digest) if doc.key in demanded else None)
                for doc in same
            ]
            if not same or await self.commit(docs=tuple(writes)):
                return len(same)
        raise StoreBusyError(f"agent {self.agent_id!r}: other calls kept replacing its {kind.value}")


class _Events:
    """Removes a prefix of the log, in steps: pages are read until there is enough to drop, and then dropped."""

    def __init__(self, run: _Run, wanted: PruneArguments) -> None:
        self._run = run
        self._wanted = wanted
        self._pace = Pace()
        self._after = -1
        self._first: int | None = None
        self._kept: int | None = None
        """The offset of the event that the previous step kept."""
        self._limit = FIRST_PAGE
        self._is_end = False

    async def remove(self) -> None:
        """Remove the events that are wanted."""
        attempts = 0
        await self._run.steps(self._check)
        while not self._is_end:
            if await self._run.steps(self._step):
                attempts = 0
            elif (attempts := attempts + 1) == _ATTEMPTS:
                raise StoreBusyError(f"agent {self._run.agent_id!r}: other calls kept removing its events")
            else:  # others pruned or deleted the agent meanwhile: look at its log again
                self._after, self._first, self._kept, self._is_end = -1, None, None, False

    async def _check(self) -> None:
        check_drops(self._run.engine)

    async def _step(self) -> bool:
        """Drop the next events; False if others removed the log meanwhile."""
        run, (offsets, after) = self._run, await self._next()
        if not offsets:
            return True
        if self._first is None:
            # Read after the first event: another prune that removed earlier ones had written it by then.
            mark = await _readable_mark(run)
            self._first = offsets[0] if mark is None else min(mark.first, offsets[0])
        last = await run.engine.last_event(run.agent_id)  # read after the events: it is no earlier one than they are
        if last is None or not await has_event(run.engine, run.agent_id, offsets[-1]):
            return False
        drop = EventDrop(before=offsets[-1] + 1, keep=last.offset)
        gone = [offset for offset in offsets if offset != last.offset]
        if self._kept not in (None, last.offset):
            gone.append(-1)  # the event that an earlier step kept
        if gone:
            if not await run.commit(drop_events=drop, docs=(PruneMark(self._first, last.offset).write,)):
                return False
            run.count("events", len(gone))
        self._kept = last.offset if last.offset in offsets or self._kept == last.offset else None
        self._after = after
        return True

    async def _next(self) -> tuple[list[int], int]:
        """The offsets of the next events to drop, in their order, and the last of them."""
        offsets: list[int] = []
        after = self._after
        while len(offsets) < _EVENTS_AT_ONCE and not self._is_end:
            span = EventRange(order="offset", after=(0, after) if after >= 0 else None, limit=self._limit)
            rows = await self._run.engine.events(self._run.agent_id, span)
            self._is_end = len(rows) < self._limit
            self._limit = limit_after(rows, self._limit)
            for row in rows:
                try:
                    goes = await self._goes(row)
                except CorruptRecordError:
                    if offsets:  # they go first, and the next step raises
                        self._is_end = False
                        return offsets, after
                    raise
                if not goes:
                    self._is_end = True
                    break
                offsets.append(row.offset)
                after = row.offset
        return offsets, after

    async def _goes(self, row: EventRow) -> bool:
        offset, time = self._wanted.before_offset, self._wanted.before_time
        if offset is not None and row.offset >= offset:
            return False
        if time is None:
            return True
        event = await stored_event(self._run.agent_id, row, self._pace)
        return event.bookmark.timestamp < time


async def _readable_mark(run: _Run) -> PruneMark | None:
    """The mark of earlier prunes; a damaged one is replaced by this prune."""
    try:
        return await PruneMark.of(run.engine, run.agent_id)
    except CorruptRecordError:
        return None
