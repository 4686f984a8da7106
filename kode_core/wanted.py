"""Checked queries, as engines get them from :mod:`kode_core.query`, which has the names for authors of stores."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final, Literal, TypeAlias

import msgspec

from kode_core.ids import MAX_FULL_ID_BYTES, prefix_end

__all__ = [
    "DAY_MS",
    "DEFAULT_LIMIT",
    "MAX_GROUPS",
    "GroupRows",
    "Grouping",
    "MessageQuery",
    "Range",
    "RowQuery",
    "SessionQuery",
    "SortBy",
    "Wanted",
    "Within",
    "finds_nothing",
    "lists_values",
    "values_of",
]

DEFAULT_LIMIT: Final = 100
MAX_GROUPS: Final = 10_000
"""The most groups that one call gives; more are refused."""
DAY_MS: Final = 86_400_000
SortBy = Literal["created_at", "updated_at", "message_count"]


class Range(msgspec.Struct, frozen=True):
    """A span of time in milliseconds: from ``start``, inclusive, to ``end``, exclusive; None is open."""

    start: int | None = None
    end: int | None = None

    def __contains__(self, time: int) -> bool:
        return (self.start is None or time >= self.start) and (self.end is None or time < self.end)


Wanted: TypeAlias = str | tuple[str, ...]
"""The value that a record must have, or two and more, sorted, of which it must have one.

Only an engine that says ``finds_any_of`` gets several. No engine gets an empty tuple, which nothing matches.
"""


class Within(msgspec.Struct, frozen=True):
    """Stands for all agents whose ids begin with a prefix: the agents of a tenant, or of ``kode sessions --prefix``.

    Only an engine that says ``finds_within`` gets it. The prefix is not empty.
    """

    prefix: str

    @property
    def end(self) -> str:
        """A text above all these ids, the least one if there is one."""
        return prefix_end(self.prefix) or chr(sys.maxunicode) * (MAX_FULL_ID_BYTES // 4 + 1)

    def __contains__(self, agent_id: str) -> bool:
        return agent_id.startswith(self.prefix)


def values_of(wanted: Wanted) -> tuple[str, ...]:
    """The values of which a record must have one."""
    return (wanted,) if isinstance(wanted, str) else wanted


class SessionQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Sessions to find. The order is total: (sort value, agent_id), both descending or both ascending.

    Attributes:
        agent_id: the agent, the agents, or the range of agents; None is all.
        metadata: (key, value) as :func:`~kode_core.metadata.metadata_index` makes them; the session must have every
            key, with the value or with one of the values.
        after: (sort value, agent_id) of the last session on the page before.
        limit: the maximum number; one more than the caller asked for, to see whether there is a next page.
    """

    agent_id: Wanted | Within | None = None
    template_id: Wanted | None = None
    metadata: tuple[tuple[str, Wanted], ...] = ()
    created: Range = Range()
    updated: Range = Range()
    sort_by: SortBy = "created_at"
    descending: bool = True
    limit: int = DEFAULT_LIMIT
    offset: int = 0
    after: tuple[int, str] | None = None


class RowQuery(msgspec.Struct, frozen=True, kw_only=True):
    """List rows to find, of all agents or some. The order is (created_at, agent_id, position), as for sessions.

    Attributes:
        kind: ``messages`` or ``tool_calls``.
        agent_id: as for :class:`SessionQuery`.
        where: (column, value) pairs: the column must have the value, or one of the values. Columns are the fields of
            ``MessageIndex`` and ``ToolCallIndex``, and ``content_type`` for a value among ``content_types``.
        after: (created_at, agent_id, position) of the last row on the page before.
    """

    kind: Literal["messages", "tool_calls"]
    agent_id: Wanted | Within | None = None
    where: tuple[tuple[str, Wanted | bool], ...] = ()
    created: Range = Range()
    descending: bool = True
    limit: int = DEFAULT_LIMIT
    offset: int = 0
    after: tuple[int, str, int] | None = None


class MessageQuery(RowQuery, frozen=True, kw_only=True):
    """Messages to find by their contents, too, which the store checks: see :mod:`kode_core.searched`.

    Attributes:
        contains: a text of the message must contain this one, which is folded; see :mod:`kode_core.texts`.
        metadata: (key, value) as for sessions; the message must have every key with the value.
    """

    contains: str | None = None
    metadata: tuple[tuple[str, str], ...] = ()


class Grouping(msgspec.Struct, frozen=True, kw_only=True):
    """The values by which records are grouped.

    Attributes:
        by: columns, each named once: ``template_id`` of sessions, ``agent_id`` of rows, the fields of ``MessageIndex``
            and ``ToolCallIndex`` that have one value, and ``day``, which is :meth:`day` of ``created_at``.
        offset_ms: the offset from UTC at which days begin; less than a day.
        limit: as many groups as the store has use for; of more, any so many will do.
    """

    by: tuple[str, ...]
    offset_ms: int = 0
    limit: int = MAX_GROUPS + 1

    def day(self, time: int) -> int:
        """The number of the day of a time, counted from 1970-01-01."""
        return (time + self.offset_ms) // DAY_MS


GroupRows: TypeAlias = Sequence[tuple[tuple[str | bool | int, ...], int]]
"""The values of each group, in the order of ``Grouping.by``, and the number of its records; a day is its number."""


def _all_wanted(query: SessionQuery | RowQuery) -> list[Wanted | Within | bool | None]:
    if isinstance(query, RowQuery):
        return [query.agent_id, *(value for _, value in query.where)]
    return [query.agent_id, query.template_id, *(value for _, value in query.metadata)]


def finds_nothing(query: SessionQuery | RowQuery) -> bool:
    """True if a filter of the query lists no value."""
    return () in _all_wanted(query)


def lists_values(query: SessionQuery | RowQuery) -> bool:
    """True if a filter of the query lists several values."""
    return any(isinstance(wanted, tuple) and wanted for wanted in _all_wanted(query))
