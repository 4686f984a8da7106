"""Read a list in pages of about the same memory, skipping the rows that cannot be read."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Final, NamedTuple

from kode_core.batch import ListKind
from kode_core.codec import Body
from kode_core.engine import Engine
from kode_core.errors import CorruptRecordError
from kode_core.ids import row_name
from kode_core.store.steps import Steps
from kode_core.store.versions import head_of

__all__ = ["ListPage", "PageSize", "pages_of"]

_FIRST_PAGE: Final = 50
_LARGEST_PAGE: Final = 2_000
_PAGE_CHARACTERS: Final = 1 << 20


class ListPage(NamedTuple):
    """A page of a list at one instant, or the error that reading it raised."""

    start: int
    version: int
    rows: Sequence[tuple[Body, int]]
    error: CorruptRecordError | None = None


class PageSize:
    """The number of records to read at once."""

    def __init__(self) -> None:
        self.limit = _FIRST_PAGE

    def saw(self, bodies: Sequence[Body]) -> None:
        """Fit the next page to the size of the records."""
        if bodies:
            mean = max(1, sum(len(body.text) for body in bodies) // len(bodies))
            self.limit = min(max(1, _PAGE_CHARACTERS // mean), _LARGEST_PAGE, 4 * self.limit)


async def pages_of(engine: Engine, steps: Steps, agent_id: str, kind: ListKind) -> AsyncIterator[ListPage]:
    """All pages of a list; only the rows that cannot be read are missing."""
    size, start, end, was_lost = PageSize(), 0, 0, False
    while True:
        limit = end - start if end > start else size.limit
        try:
            rows = await steps(engine.rows_at, agent_id, kind, start, limit)
        except CorruptRecordError as exc:
            names = (row_name(kind, i, agent_id) for i in range(start, start + limit))
            end = next((i for i, name in enumerate(names, start) if name == exc.record), -1)
            if end > start:
                continue
            yield ListPage(start, 0, (), exc)
            is_lost = end < start  # the error does not name the row
            if is_lost and was_lost:
                return  # nothing more can be found
            start, was_lost = (start + limit if is_lost else start + 1), is_lost
            if start >= await _count(engine, steps, agent_id, kind):
                return
            continue
        yield ListPage(start, rows.version, rows.rows)
        if len(rows.rows) < limit:
            return
        start, was_lost = start + limit, False
        size.saw([body for body, _ in rows.rows])


async def _count(engine: Engine, steps: Steps, agent_id: str, kind: ListKind) -> int:
    """The number of rows according to the head."""
    return head_of(await steps(engine.summary, agent_id), kind).count
