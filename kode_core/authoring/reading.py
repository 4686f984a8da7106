"""The reads of engines that have one function for each verb, and the checks of their results."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Final, ParamSpec, TypeVar

from kode_core.batch import (
    Doc,
    DocKind,
    EngineIssue,
    EventRange,
    EventRow,
    FoundRow,
    Head,
    ListKind,
    ListRows,
    Outline,
    SessionRow,
    Totals,
)
from kode_core.codec import Body
from kode_core.engine import Progress, unwatched
from kode_core.errors import CorruptRecordError
from kode_core.ids import row_name
from kode_core.query import AgentStats, RowQuery, SessionQuery

__all__ = ["MOST", "EngineReads", "check_head", "list_rows", "unless_damaged"]

P = ParamSpec("P")
T = TypeVar("T")

MOST: Final = 2**62
"""More than any version, count or time of a head, and more than any offset."""


class EngineReads(ABC):
    """The reads of :class:`kode_core.engine.Engine`, each passed on to :meth:`read` by its name."""

    @abstractmethod
    async def read(self, verb: str, agent_id: str | None, *args: Any) -> Any:
        """Do the read called *verb* with these arguments for *agent_id*, which is None for a read over many agents."""

    async def head(self, agent_id: str) -> Head | None:
        found: Head | None = await self.read("head", agent_id, agent_id)
        return found

    async def rows(self, agent_id: str, kind: ListKind) -> ListRows:
        found: ListRows = await self.read("rows", agent_id, agent_id, kind)
        return found

    async def rows_at(self, agent_id: str, kind: ListKind, start: int, limit: int) -> ListRows:
        found: ListRows = await self.read("rows_at", agent_id, agent_id, kind, start, limit)
        return found

    async def outline(self, agent_id: str, kind: ListKind, keys: Sequence[str] | None = None) -> Outline:
        found: Outline = await self.read("outline", agent_id, agent_id, kind, keys)
        return found

    async def docs(self, agent_id: str, kind: DocKind, key: str | None = None) -> Sequence[Doc]:
        found: Sequence[Doc] = await self.read("docs", agent_id, agent_id, kind, key)
        return found

    async def events(self, agent_id: str, span: EventRange) -> Sequence[EventRow]:
        found: Sequence[EventRow] = await self.read("events", agent_id, agent_id, span)
        return found

    async def last_event(self, agent_id: str) -> EventRow | None:
        found: EventRow | None = await self.read("last_event", agent_id, agent_id)
        return found

    async def agent_ids(self, prefix: str, after: str | None, limit: int) -> Sequence[str]:
        found: Sequence[str] = await self.read("agent_ids", None, prefix, after, limit)
        return found

    async def stored_ids(self, after: str | None, limit: int) -> Sequence[str]:
        found: Sequence[str] = await self.read("stored_ids", None, after, limit)
        return found

    async def find_sessions(self, query: SessionQuery) -> Sequence[SessionRow]:
        found: Sequence[SessionRow] = await self.read("find_sessions", query.agent_id, query)
        return found

    async def find_rows(self, query: RowQuery) -> Sequence[FoundRow]:
        found: Sequence[FoundRow] = await self.read("find_rows", query.agent_id, query)
        return found

    async def stats(self, agent_id: str) -> AgentStats:
        found: AgentStats = await self.read("stats", agent_id, agent_id)
        return found

    async def totals(self) -> Totals:
        found: Totals = await self.read("totals", None)
        return found

    async def inspect(self, agent_id: str | None, progress: Progress = unwatched) -> Sequence[EngineIssue]:
        found: Sequence[EngineIssue] = await self.read("inspect", agent_id, agent_id)
        return found


def unless_damaged(left_out: list[str], read: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
    """The result of *read*; None if it finds damage, whose name goes to *left_out* (QRY-9)."""
    try:
        return read(*args, **kwargs)
    except CorruptRecordError as exc:
        left_out.append(exc.record)
        return None


def check_head(values: Sequence[Any], agent_id: str) -> None:
    """Raise CorruptRecordError unless the versions, counts and times of a head are possible ones (OPS-4)."""
    if not all(type(value) is int and 0 <= value < MOST for value in values):
        raise CorruptRecordError(f"the head of agent {agent_id!r}", "its row holds what was never written")


def list_rows(
    agent_id: str,
    kind: ListKind,
    head: tuple[int, int],
    found: Sequence[tuple[Any, Any, Any, Any]],
    start: int = 0,
    limit: int | None = None,
) -> ListRows:
    """The rows of a list from position *start* on, at most *limit*, from the result of a query at one instant.

    *head* is the list's version and count, (0, 0) if the agent has no head; *found* has (position, body, digest,
    created_at) in order of position, of any type.

    Raises:
        CorruptRecordError: rows are missing or too many, or contain values that were never written (OPS-4).
    """
    check_head(head, agent_id)
    version, count = head
    expected = max(0, count - start) if limit is None else min(max(0, count - start), limit)
    rows = []
    for place, (position, text, digest, created_at) in enumerate(found, start):
        if position != place:
            raise _misplaced(agent_id, kind, count, place, position)
        if not (type(text) is str and type(digest) is bytes and type(created_at) is int):
            raise CorruptRecordError(row_name(kind, place, agent_id), "its row holds what was never written")
        rows.append((Body(text, digest), created_at))
    if len(rows) != expected:
        stored = f"there are none from {start + len(rows)} on" if len(rows) < expected else "there are more"
        raise CorruptRecordError(_list_name(agent_id, kind), f"{count} are counted, and {stored}")
    return ListRows(version, rows)


def _misplaced(agent_id: str, kind: ListKind, count: int, place: int, position: Any) -> CorruptRecordError:
    if type(position) is int and place < position and place < count:
        return CorruptRecordError(row_name(kind, place, agent_id), "it is missing")
    return CorruptRecordError(_list_name(agent_id, kind), "a row stands where none was written")


def _list_name(agent_id: str, kind: ListKind) -> str:
    return f"the {kind.value.replace('_', ' ')} of agent {agent_id!r}"
