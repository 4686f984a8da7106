"""Parts of a list: the last records, the records between two positions, one record after the other.

A part is read by positions, so that its cost depends on the part and not on the list. Other writers may cut the list
meanwhile, so the length from which the positions were computed and the rows have to be of one version of the list.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Final, NamedTuple

from kode_core.batch import FoundRow, ListKind
from kode_core.codec import Body
from kode_core.errors import CorruptRecordError, InvalidArgumentError, StoreBusyError
from kode_core.ids import quoted, row_name
from kode_core.large import decode_in_slices
from kode_core.model import StoredMessage
from kode_core.pace import Pace
from kode_core.query import Page
from kode_core.store.context import Context
from kode_core.store.methods import METHODS
from kode_core.store.pages import FIRST_PAGE, next_limit
from kode_core.store.reader import Reader, stored_message
from kode_core.store.rows import LISTS
from kode_core.store.versions import head_of

__all__ = ["Parts", "Span", "checked_number", "checked_position"]

_ATTEMPTS: Final = 5
_LARGEST: Final = 2**62


def checked_number(value: Any, name: str, hint: str = "") -> int | None:
    """The number of records that a caller gave, or None; one that no list reaches is cut to what engines can compare.

    Raises:
        InvalidArgumentError: it is not an int, or negative; *hint* ends the message of the latter.
    """
    if value is None:
        return None
    if type(value) is not int:
        raise InvalidArgumentError(f"{name} must be an int, got {type(value).__name__}")
    if value < 0:
        raise InvalidArgumentError(f"{name} must be 0 or more, got {quoted(value)}{hint}")
    return min(value, _LARGEST)


def checked_position(value: Any, name: str) -> int | None:
    """The position that a caller gave, or None; raises as :func:`checked_number` does."""
    return checked_number(value, name, "; positions count from 0")


class Span(NamedTuple):
    """The part that a call asks for: the *last* records between two positions, which are both exclusive."""

    after: int | None
    before: int | None
    last: int | None = None

    @classmethod
    def of(cls, after: Any, before: Any, last: Any = None) -> Span:
        """The checked arguments of a call."""
        return cls(checked_position(after, "after"), checked_position(before, "before"), checked_number(last, "last"))

    @property
    def is_whole(self) -> bool:
        """True if it is the whole list, however long that is."""
        return self.after is None and self.before is None and self.last is None

    def within(self, count: int) -> range:
        """The positions in a list of *count* records."""
        start = 0 if self.after is None else self.after + 1
        stop = count if self.before is None else min(self.before, count)
        if self.last is not None:
            start = max(start, stop - self.last)
        return range(min(start, stop), stop)


class Parts:
    """Reads parts of lists."""

    def __init__(self, context: Context, reader: Reader) -> None:
        self._context = context
        self._reader = reader

    async def load(self, agent_id: str, kind: ListKind, span: Span) -> list[Any]:
        """The records of a part, as they were at one instant."""
        start, rows = await self._rows(agent_id, kind, span)
        return await self._reader.decoded(agent_id, kind, rows, start)

    async def _rows(self, agent_id: str, kind: ListKind, span: Span) -> tuple[int, Sequence[tuple[Body, int]]]:
        """The position of the first row, and the rows."""
        engine = self._context.engine
        for _ in range(_ATTEMPTS):
            head = head_of(await engine.summary(agent_id), kind)
            places = span.within(head.count)
            if not places:
                return 0, ()
            found = await engine.rows_at(agent_id, kind, places.start, len(places))
            if found.version == head.version:
                return places.start, found.rows
        whole = await engine.rows(agent_id, kind)  # other writers keep changing it: one read sees one instant
        places = span.within(len(whole.rows))
        return places.start, whole.rows[places.start : places.stop]

    async def load_readable(self, agent_id: str, kind: ListKind, span: Span) -> Page[Any]:
        """The records of a part that can be read, and the names of the others (OPS-21).

        Raises:
            StoreBusyError: other writers keep changing the list.
        """
        engine, pace = self._context.engine, Pace()
        for _ in range(_ATTEMPTS):
            head = head_of(await engine.summary(agent_id), kind)
            found, left_out = Page[Any](), list[str]()
            pending = [span.within(head.count)]
            is_still = True
            while pending and is_still:
                places = pending.pop()
                if not places:
                    continue
                try:
                    rows = await engine.rows_at(agent_id, kind, places.start, len(places))
                except CorruptRecordError:
                    if len(places) == 1:
                        left_out.append(row_name(kind, places.start, agent_id))
                    else:
                        half = len(places) // 2
                        pending += [places[half:], places[:half]]
                    continue
                is_still = rows.version == head.version
                for position, (body, _) in enumerate(rows.rows, places.start):
                    name = row_name(kind, position, agent_id)
                    try:
                        found.append(await decode_in_slices(LISTS[kind].cls, body, name, pace))
                    except CorruptRecordError as exc:
                        left_out.append(exc.record)
            if is_still:
                found.left_out = tuple(left_out)
                return found
            await asyncio.sleep(random.uniform(0, 0.02))  # noqa: S311
        raise StoreBusyError(f"agent {agent_id!r}: other writers keep changing the list; try again")

    async def stream(
        self, run: Callable[..., Awaitable[Any]], agent_id: str, span: Span, *, reverse: bool
    ) -> AsyncIterator[StoredMessage]:
        """The messages of a part, one after the other; *run* makes the call that reads a page."""
        pace, limit = Pace(), FIRST_PAGE
        while True:
            start, rows = await run(METHODS["read_messages"], agent_id, self._page, agent_id, span, limit, reverse)
            if not rows:
                return
            found = [FoundRow(agent_id, place, at, body) for place, (body, at) in enumerate(rows, start)]
            is_last = len(rows) < limit
            span = span._replace(before=start) if reverse else span._replace(after=found[-1].position)
            limit = next_limit(len(rows), sum(len(body.text) for body, _ in rows))
            if not reverse:
                found.reverse()
            del rows
            while found:  # a message is released as soon as the caller is done with it
                yield await stored_message(found.pop(), pace)
            if is_last:
                return

    async def _page(
        self, agent_id: str, span: Span, limit: int, reverse: bool
    ) -> tuple[int, Sequence[tuple[Body, int]]]:
        if reverse:
            return await self._rows(agent_id, ListKind.MESSAGES, span._replace(last=limit))
        start = 0 if span.after is None else span.after + 1
        limit = limit if span.before is None else min(limit, span.before - start)
        if limit <= 0:
            return start, ()
        return start, (await self._context.engine.rows_at(agent_id, ListKind.MESSAGES, start, limit)).rows
