"""One flipped bit of an index in a database file, found by searching the pages of the index for an entry."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, NamedTuple

__all__ = ["Index", "flip", "indexes", "put_in_place"]

Kind = Literal["another's row", "an own row", "the key"]


class Index(NamedTuple):
    """An index of a table with rows, and its columns."""

    table: str
    name: str
    columns: tuple[str, ...]


def indexes(db: sqlite3.Connection) -> list[Index]:
    """The indexes whose entries lead to a row by its number."""
    found = db.execute(
        "SELECT m.name, l.name FROM sqlite_master m JOIN pragma_index_list(m.name) l WHERE m.type = 'table'"
        " AND m.sql NOT LIKE '%WITHOUT ROWID' AND EXISTS (SELECT 1 FROM pragma_table_info(m.name) c"
        " WHERE c.name = 'agent_id') ORDER BY 1, 2"
    ).fetchall()
    made = []
    for table, name in found:
        columns = db.execute(f"SELECT name FROM pragma_index_info('{name}') ORDER BY seqno").fetchall()
        made.append(Index(table, name, tuple(column for (column,) in columns)))
    return made


def flip(path: Path, index: Index, kind: Kind) -> bool:
    """Flip a bit of an entry of agent ``a``, so that it leads to another row, or is under another key.

    False where there are no two rows whose numbers are one bit apart.
    """
    with closing(sqlite3.connect(path)) as db:
        (size,) = db.execute("PRAGMA page_size").fetchone()
        (root,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (index.name,)).fetchone()
        columns = ", ".join(index.columns)
        rows = db.execute(f"SELECT agent_id, rowid, {columns} FROM {index.table}").fetchall()
    raw = bytearray(path.read_bytes())
    page = raw[(root - 1) * size : root * size]
    assert page[0] == 10, "the index has more than one page"
    for at, row_number, agent_at in _entries(page, rows):
        if kind == "the key":
            page[agent_at] ^= 1  # "a" becomes "`", which is still before all others
        else:
            wanted = "c" if kind == "another's row" else "a"
            others = {n for agent_id, n, *_ in rows if agent_id == wanted and (n ^ row_number).bit_count() == 1}
            if not others & set(range(2, 128)):
                continue
            page[at] = min(others & set(range(2, 128)))
        raw[(root - 1) * size : root * size] = page
        path.write_bytes(raw)
        return True
    return False


def put_in_place(path: Path, index: str, old: bytes, new: bytes) -> None:
    """Put *new*, which is a bit apart from *old*, in its place in the first entry of the index that has it."""
    assert (int.from_bytes(old, "big") ^ int.from_bytes(new, "big")).bit_count() == 1
    with closing(sqlite3.connect(path)) as db:
        (size,) = db.execute("PRAGMA page_size").fetchone()
        (root,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (index,)).fetchone()
    raw = path.read_bytes()
    page = raw[(root - 1) * size : root * size]
    at = page.rindex(old)
    path.write_bytes(raw[: (root - 1) * size + at] + new + raw[(root - 1) * size + at + len(old) :])


def _entries(page: bytearray, rows: list[Any]) -> Iterator[tuple[int, int, int]]:
    """Where the row's number of each entry of agent ``a`` is, that number, and where the agent's name is."""
    for agent_id, number, *key in rows:
        if agent_id != "a" or not 1 < number < 128:
            continue
        stored = b"".join(_stored(value) for value in key) + bytes([number])
        at = page.find(stored)
        if at > 0:
            before = b"".join(_stored(value) for value in key[: key.index("a")])
            yield at + len(stored) - 1, number, at + len(before)


def _stored(value: Any) -> bytes:
    """A value as a record of SQLite has it: an integer in as few bytes as do, and 0 and 1 in none."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode()
    if value in (0, 1):
        return b""
    return next(value.to_bytes(n, "big") for n in (1, 2, 3, 4, 6, 8) if value < 1 << (8 * n - 1))
