"""Ways to find the rows for a query, each through one index, and the choice between them.

SQLite chooses by rules of thumb if a database was never analysed, and by old counts if it was. So a statement names its
index. If several could serve, and the stored data decides which of them reads least, each is tried on a few rows, then
on more, until one of them would have found the page.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, LiteralString, NamedTuple, TypeVar

from kode_core.query import Wanted, Within, values_of

__all__ = ["Condition", "Merged", "Way", "chosen", "equals", "fewest", "is_one_of", "merged", "others"]

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

    def find(
        self, columns: LiteralString, limit: int, offset: int = 0, more: LiteralString = ""
    ) -> tuple[LiteralString, list[Any]]:
        """The statement that finds the rows, and its arguments. *more* are joins that only *columns* use."""
        conditions = [*self.looked_up, *self.rest]
        statement: LiteralString = (
            f"SELECT {columns} FROM {self.table}{self.joins}{more} WHERE {_all(conditions)} ORDER BY {self._order}"
            " LIMIT ? OFFSET ?"
        )
        return statement, [*_args(conditions), limit, offset]

    def counted(self) -> tuple[LiteralString, list[Any]]:
        """The statement that counts the rows, and its arguments."""
        conditions = [*self.looked_up, *self.rest]
        return f"SELECT count(*) FROM {self.table}{self.joins} WHERE {_all(conditions)}", _args(conditions)

    def grouped(self, values: Sequence[LiteralString], limit: int) -> tuple[LiteralString, list[Any]]:
        """The statement that counts the rows with the same *values*, v1, v2, …, as n, and its arguments."""
        conditions = [*self.looked_up, *self.rest]
        statement: LiteralString = (
            f"SELECT {_named(values)}, count(*) AS n FROM {self.table}{self.joins} WHERE {_all(conditions)}"
            f" GROUP BY {', '.join(values)} LIMIT ?"
        )
        return statement, [*_args(conditions), limit]

    def is_within(self, db: sqlite3.Connection, most: int) -> bool:
        """True if the index has less than *most* rows to look at."""
        looked_up = _all(self.looked_up)
        first: LiteralString = f"SELECT count(*) FROM (SELECT 1 FROM {self.table} WHERE {looked_up} LIMIT ?)"
        (there,) = db.execute(first, (*_args(self.looked_up), most)).fetchone()
        return bool(there < most)

    @property
    def _order(self) -> LiteralString:
        direction: LiteralString = " DESC" if self.descending else ""
        ordered: LiteralString = ", ".join([f"{column}{direction}" for column in self.order])
        return ordered

    def is_enough(self, db: sqlite3.Connection, most: int, wanted: int) -> bool:
        """True if *wanted* rows, or all of them, are found within the first *most* rows of the index."""
        if self.is_within(db, most):
            return True
        if not self.is_in_order:
            return False
        looked_up, args = _all(self.looked_up), _args(self.looked_up)
        columns: LiteralString = ", ".join(self.columns)
        name: LiteralString = self.table.split()[1]
        some: LiteralString = f"SELECT {columns} FROM {self.table} WHERE {looked_up} ORDER BY {self._order} LIMIT ?"
        matching: LiteralString = (
            f"SELECT count(*) FROM (SELECT 1 FROM ({some}) {name}{self.joins} WHERE {_all(self.rest)} LIMIT ?)"
        )
        (found,) = db.execute(matching, (*args, most, *_args(self.rest), wanted)).fetchone()
        return bool(found == wanted)


_MOST_ARGS: Final = 30_000
_MOST_SQL: Final = 900_000
"""Arguments and characters of a statement that SQLite takes, with some of its own to spare."""


class Merged(NamedTuple):
    """Several ways, whose rows are merged: look-ups of each value of a list.

    Each way is asked for a whole page, so that a page costs as much as one of each of them.

    Attributes:
        ways: of the same order and columns.
    """

    ways: Sequence[Way]

    @property
    def order(self) -> tuple[LiteralString, ...]:
        """The columns of the order."""
        return self.ways[0].order

    @property
    def rest(self) -> Sequence[Condition]:
        """The conditions that every way checks."""
        return [condition for condition in self.ways[0].rest if all(condition in way.rest for way in self.ways[1:])]

    def find(self, columns: LiteralString, limit: int, offset: int = 0) -> tuple[LiteralString, list[Any]]:
        """As :meth:`Way.find`. A row that several ways find is found once."""
        first = self.ways[0]
        keys: tuple[LiteralString, ...] = ("key_1", "key_2", "key_3")[: len(first.order)]
        named: LiteralString = "".join([f", {column} AS {key}" for column, key in zip(first.order, keys, strict=True)])
        found = [way.find(f"{columns}{named}", min(limit + offset, 2**63 - 1)) for way in self.ways]
        every: LiteralString = " UNION ".join([f"SELECT * FROM ({statement})" for statement, _ in found])
        direction: LiteralString = " DESC" if first.descending else ""
        order: LiteralString = ", ".join([f"{key}{direction}" for key in keys])
        args = [value for _, some in found for value in some]
        return f"SELECT * FROM ({every}) ORDER BY {order} LIMIT ? OFFSET ?", [*args, limit, offset]

    def counted(self) -> tuple[LiteralString, list[Any]]:
        """As :meth:`Way.counted`. The keys of rows that several ways may find are kept in a temporary table."""
        keys: LiteralString = ", ".join(self.order)
        found = [
            (f"SELECT {keys} FROM {way.table}{way.joins} WHERE {_all(conditions)}", _args(conditions))
            for way in self.ways
            for conditions in [[*way.looked_up, *way.rest]]
        ]
        every: LiteralString = " UNION ".join([statement for statement, _ in found])
        return f"SELECT count(*) FROM ({every})", [value for _, some in found for value in some]

    def grouped(self, values: Sequence[LiteralString], limit: int) -> tuple[LiteralString, list[Any]]:
        """As :meth:`Way.grouped`. Keys and values are kept in a temporary table, as for counts."""
        keys: LiteralString = ", ".join(self.order)
        found = [
            (f"SELECT {keys}, {_named(values)} FROM {way.table}{way.joins} WHERE {_all(conditions)}", _args(conditions))
            for way in self.ways
            for conditions in [[*way.looked_up, *way.rest]]
        ]
        every: LiteralString = " UNION ".join([statement for statement, _ in found])
        numbers: LiteralString = ", ".join([name for name, _ in zip(_NAMES, values, strict=False)])
        statement: LiteralString = f"SELECT {numbers}, count(*) AS n FROM ({every}) GROUP BY {numbers} LIMIT ?"
        return statement, [*[value for _, some in found for value in some], limit]

    def is_within(self, db: sqlite3.Connection, most: int) -> bool:
        """As :meth:`Way.is_within`, of each way."""
        return all(way.is_within(db, most) for way in self.ways)

    def is_enough(self, db: sqlite3.Connection, most: int, wanted: int) -> bool:
        """As :meth:`Way.is_enough`, of each way."""
        return all(way.is_enough(db, most, wanted) for way in self.ways)

    @property
    def is_short(self) -> bool:
        """True if SQLite takes the statement."""
        conditions = [[*way.looked_up, *way.rest] for way in self.ways]
        args = sum(len(condition.args) for some in conditions for condition in some)
        return args <= _MOST_ARGS and sum(len(one.sql) for some in conditions for one in some) <= _MOST_SQL


def merged(ways: Sequence[Way]) -> list[Way | Merged]:
    """A single way as it is, several as one; none if the statement would be too long."""
    if len(ways) == 1:
        return [ways[0]]
    together = Merged(ways)
    return [together] if together.is_short else []


def _all(conditions: Sequence[Condition]) -> LiteralString:
    together: LiteralString = " AND ".join([condition.sql for condition in conditions]) if conditions else "TRUE"
    return together


_NAMES: Final[tuple[LiteralString, ...]] = ("v1", "v2", "v3", "v4", "v5", "v6")


def _named(values: Sequence[LiteralString]) -> LiteralString:
    named: LiteralString = ", ".join([f"{value} AS {name}" for value, name in zip(values, _NAMES, strict=False)])
    return named


def _args(conditions: Sequence[Condition]) -> list[Any]:
    return [value for condition in conditions for value in condition.args]


W = TypeVar("W", Way, Way | Merged)


def chosen(db: sqlite3.Connection, ways: Sequence[W], wanted: int) -> W:
    """The way that finds *wanted* rows by reading few: at most a few times as many as the best way."""
    most = max(_FIRST_ROWS, wanted)
    while len(ways) > 1:
        for way in ways:
            if way.is_enough(db, most, wanted):
                return way
        most *= _MORE
    return ways[0]


def fewest(db: sqlite3.Connection, ways: Sequence[W]) -> W:
    """The way that reads all its rows with the fewest of them to look at: at most a few times as many as the best."""
    most = _FIRST_ROWS
    while len(ways) > 1:
        for way in ways:
            if way.is_within(db, most):
                return way
        most *= _MORE
    return ways[0]


def others(conditions: Mapping[Any, Condition], looked_up: Collection[Any]) -> list[Condition]:
    """The conditions whose names are not among *looked_up*."""
    return [condition for name, condition in conditions.items() if name not in looked_up]


def is_one_of(column: LiteralString, values: Sequence[str]) -> LiteralString:
    """The condition that *column* has one of *values*, which are its arguments."""
    marks: LiteralString = ", ".join(["?"] * len(values))
    return f"{column} = ?" if len(values) == 1 else f"{column} IN ({marks})"


def equals(column: LiteralString, wanted: Wanted | Within | None) -> Condition | None:
    """The condition that *column* is as wanted; None if nothing is."""
    if wanted is None:
        return None
    if isinstance(wanted, Within):
        return Condition(f"{column} >= ? AND {column} < ?", (wanted.prefix, wanted.end))
    values = values_of(wanted)
    return Condition(is_one_of(column, values), values)
