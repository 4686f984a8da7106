"""Ways to find the rows of a query, each through one index, and the choice between them.

SQLite chooses by rules of thumb where a database was never analysed, and by old counts where it was. So a statement
names its index. Where several could serve, and it depends on what is stored which of them reads least, each is tried on
a few rows, then on more, until one of them would have found the page.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, LiteralString, NamedTuple

__all__ = ["Condition", "Way", "chosen", "others"]

_FIRST_ROWS: Final = 256
_MORE: Final = 4


class Condition(NamedTuple):
    """A part of WHERE, and the values of its parameters."""

    sql: LiteralString
    args: Sequence[Any] = ()


class Way(NamedTuple):
    """Rows of one index, of which some match.

    Attributes:
        table: the table whose index leads, with a name of one letter and the index.
        order: the columns by which the rows are wanted, all in one direction.
        looked_up: the conditions that the index looks up.
        rest: the conditions that are seen row by row.
        is_in_order: whether the index gives the rows in the order that is wanted; otherwise all of them are sorted.
        joins: tables that are looked into for each row.
        columns: those of *table* that *rest*, *order* and *joins* use.
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
        """Whether *wanted* rows, or all there are, are found by looking at *most* rows of the index."""
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
    """The way that finds *wanted* rows by reading few: at most some times what the best one reads."""
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
