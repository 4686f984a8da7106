"""Entries of indexes, with the rows that they lead to.

SQLite takes the columns of an index from the index, and the others from the row that the entry leads to. After one
flipped bit in the row's number it would show the body of another record, or put a new body in its place, without any
error. Here the row is looked up by its number as if it were in another table, so that its own columns can be compared
with the entry's. That costs no second look-up, because only the entry is then read from the index.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any, Final, LiteralString, NamedTuple

from kode_core.errors import CorruptRecordError

__all__ = [
    "CALLS_BY_ID",
    "DOCS",
    "EVENTS_BY_CHANNEL",
    "EVENTS_BY_OFFSET",
    "EVENTS_BY_SEQ",
    "INFOS",
    "LISTED",
    "Entries",
    "misled",
]


class Entries(NamedTuple):
    """Entries of an index, as ``i``, each with its row, as ``r``.

    Attributes:
        table: the table that the index belongs to.
        name: the name of the index.
        key: the columns that must be equal in the row and the entry.
    """

    table: LiteralString
    name: LiteralString
    key: tuple[LiteralString, ...]

    @property
    def entry(self) -> LiteralString:
        """The entries alone."""
        return f"{self.table} i INDEXED BY {self.name}"

    @property
    def source(self) -> LiteralString:
        """The source to select from; it includes entries that lead nowhere."""
        return f"{self.entry}{self.row}"

    @property
    def row(self) -> LiteralString:
        """The join that adds the row to its entry."""
        return f" LEFT JOIN {self.table} r ON r.rowid = i.rowid"

    def own(self, column: LiteralString) -> LiteralString:
        """A column of the row; NULL if the entry leads to the row of another record."""
        return f"CASE WHEN {self._is_own} THEN r.{column} END"

    @property
    def kept(self) -> LiteralString:
        """The condition of an upsert that must not change the row of another record."""
        together: LiteralString = " AND ".join([f"{self.table}.{column} = excluded.{column}" for column in self.key])
        return f"WHERE {together}"

    @property
    def _is_own(self) -> LiteralString:
        together: LiteralString = " AND ".join([f"r.{column} = i.{column}" for column in self.key])
        return together

    def remove(self, db: sqlite3.Connection, where: LiteralString, args: Sequence[Any], what: str) -> None:
        """Delete the rows of *what* whose entries match the condition.

        Raises:
            CorruptRecordError: an entry leads to another row, which stays.
        """
        own: LiteralString = f"SELECT r.rowid FROM {self.source} WHERE {where} AND {self._is_own}"
        db.execute(f"DELETE FROM {self.table} WHERE rowid IN ({own})", args)
        left: LiteralString = f"SELECT 1 FROM {self.entry} WHERE {where} LIMIT 1"
        if db.execute(left, args).fetchone():
            raise misled(what)


def misled(what: str) -> CorruptRecordError:
    """The error of a write that an index would have led to the row of another record."""
    return CorruptRecordError(
        what, "an index leads to the row of something else, and nothing was written; REINDEX mends indexes"
    )


LISTED: Final[dict[str, Entries]] = {
    "messages": Entries("kode_messages", "kode_messages_position", ("agent_id", "position")),
    "tool_calls": Entries("kode_tool_calls", "kode_tool_calls_position", ("agent_id", "position")),
}
CALLS_BY_ID: Final = Entries("kode_tool_calls", "kode_tool_calls_call", ("agent_id", "call_id", "position"))
DOCS: Final = Entries("kode_docs", "kode_docs_key", ("agent_id", "kind", "key"))
INFOS: Final = Entries("kode_infos", "sqlite_autoindex_kode_infos_1", ("agent_id",))
EVENTS_BY_SEQ: Final = Entries("kode_events", "kode_events_seq", ("agent_id", "seq"))
EVENTS_BY_OFFSET: Final = Entries("kode_events", "kode_events_agent", ("agent_id",))
EVENTS_BY_CHANNEL: Final = Entries("kode_events", "kode_events_channel", ("agent_id", "channel"))
