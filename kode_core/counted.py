"""Optional parts of the interface between core and engine: records that are counted, in all or by values."""

from __future__ import annotations

from typing import Protocol, cast

from kode_core.engine import Engine
from kode_core.query import Grouping, GroupRows, RowQuery, SessionQuery

__all__ = ["Counts", "Groups", "can_count", "can_group", "count", "group"]


class Counts(Protocol):
    """An optional interface of an engine: it counts records without returning them.

    Without it, the store reads page after page, and counts the records.
    """

    can_count: bool
    """True; a layer that changes the results of queries says False, unless it counts what it would find."""

    async def count(self, query: SessionQuery | RowQuery) -> int:
        """The number of records that match, at one instant. The query's order, limit, offset and ``after`` are ignored.

        Only the values that records are found by are read, and as few as an index allows.
        """
        ...


def can_count(engine: Engine) -> bool:
    """Whether *engine* has the interface :class:`Counts`."""
    return bool(getattr(engine, "can_count", False))


async def count(engine: Engine, query: SessionQuery | RowQuery) -> int:
    """The number of records that match, of an engine that :func:`can_count`."""
    return await cast(Counts, engine).count(query)


class Groups(Protocol):
    """An optional interface of an engine, as :class:`Counts`: it counts records by values that they have in common."""

    can_group: bool
    """As :attr:`Counts.can_count`; a layer that changes the values that are grouped says False, too."""

    async def group(self, query: SessionQuery | RowQuery, grouping: Grouping) -> GroupRows:
        """The groups of what :meth:`Counts.count` counts, in any order; texts are as the columns have them.

        Records whose values cannot be read are named in ``left_out``.
        """
        ...


def can_group(engine: Engine) -> bool:
    """Whether *engine* has the interface :class:`Groups`."""
    return bool(getattr(engine, "can_group", False))


async def group(engine: Engine, query: SessionQuery | RowQuery, grouping: Grouping) -> GroupRows:
    """The groups of the records that match, of an engine that :func:`can_group`."""
    return await cast(Groups, engine).group(query, grouping)
