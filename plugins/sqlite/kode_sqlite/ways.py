"""Ways to find the rows for a query, each through one index, and the choice between them.

SQLite chooses by rules of thumb if a database was never analysed, and by old counts if it was. So a statement names its
index. If several could serve, and the stored data decides which of them reads least, each is tried on a few rows, then
on more, until one of them would have found the page.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, LiteralString, NamedTuple

__all__ = ["Condition", "Way", "chosen", "others"]

_FIRST_ROWS: Final = 256
_MORE: Final = 4


class Condition(NamedTuple):
    """A part of WHERE, and the values for its parameters."""

    sql: LiteralString
    args: Sequence[Any] = ()


class Way(NamedTuple):
    """A look-up in one index, some of whose rows match.

    Attributes:
        table: the table that the index belongs to, with a name of one letter and the index.
        order: the columns of the requested order, all in one direction.
        looked_up: the conditions that the index looks up.
        rest: the conditions that are checked row by row.
        is_in_order: True if the index returns the rows in the requested order; otherwise all of them are sorted.
        joins: tables that are joined to each row.
        columns: the columns of *table* that *rest*, *order* and *joins* use.
    """

    table: LiteralString
    columns: tuple[LiteralString, ...]
    order: tuple[LiteralString, ...]
    descending: bool
    looked_up: Sequence[Condition]
    rest: Sequence[Condition] = ()
    joins: LiteralString = ""
    is_in_order: bool = True

    def find(self, columns: LiteralString, more: LiteralString = "") -> tuple[LiteralString, list[Any]]:
        """The statement that finds the rows, which ends with ``LIMIT ? OFFSET ?``, and the arguments before those.

        *more* are joins that only *columns* use.
        """
        conditions = [*self.looked_up, *self.rest]
        statement: LiteralString = (
            f"SELECT {columns} FROM {self.table}{self.joins}{more} WHERE {_all(conditions)} ORDER BY {self._order}"
            " LIMIT ? OFFSET ?"
        )
        return statement, _args(conditions)

    @property
    def _order(self) -> LiteralString:
        direction: LiteralString = " DESC" if self.descending else ""
        ordered: LiteralString = ", ".join([f"{column}{direction}" for column in self.order])
        return ordered

    def is_enough(self, db: sqlite3.Connection, most: int, wanted: int) -> bool:
        """True if *wanted* rows, or all of them, are found within the first *most* rows of the index."""
        looked_up = _all(self.looked_up)
        first: LiteralString = f"SELECT count(*) FROM (SELECT 1 FROM {self.table} WHERE {looked_up} LIMIT ?)"
        args = _args(self.looked_up)
        (there,) = db.execute(first, (*args, most)).fetchone()
        if there < most:
            return True
        if not self.is_in_order:
            return False
        columns: LiteralString = ", ".join(self.columns)
        name: LiteralString = self.table.split()[1]
        some: LiteralString = f"SELECT {columns} FROM {self.table} WHERE {looked_up} ORDER BY {self._order} LIMIT ?"
        matching: LiteralString = (
            f"SELECT count(*) FROM (SELECT 1 FROM ({some}) {name}{self.joins} WHERE {_all(self.rest)} LIMIT ?)"
        )
        (found,) = db.execute(matching, (*args, most, *_args(self.rest), wanted)).fetchone()
        return bool(found == wanted)


def _all(conditions: Sequence[Condition]) -> LiteralString:
    together: LiteralString = " AND ".join([condition.sql for condition in conditions]) if conditions else "TRUE"
    return together


def _args(conditions: Sequence[Condition]) -> list[Any]:
    return [value for condition in conditions for value in condition.args]


def chosen(db: sqlite3.Connection, ways: Sequence[Way], wanted: int) -> Way:
    """The way that finds *wanted* rows by reading few: at most a few times as many as the best way."""
    most = max(_FIRST_ROWS, wanted)
    while len(ways) > 1:
        for way in ways:
            if way.is_enough(db, most, wanted):
                return way
        most *= _MORE
    return ways[0]


def others(conditions: Mapping[Any, Condition], looked_up: Collection[Any]) -> list[Condition]:
    """The conditions whose names are not among *looked_up*."""
    return [condition for name, condition in conditions.items() if name not in looked_up]
