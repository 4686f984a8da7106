"""Costs of statements on SQLite: the steps of its machine."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

__all__ = ["counted", "plan"]

_AT_ONCE: Final = 10


@contextmanager
def counted(db: sqlite3.Connection) -> Iterator[list[int]]:
    """A list whose one number is how many steps were done inside."""
    steps = [0]

    def count() -> int:
        steps[0] += _AT_ONCE
        return 0

    db.set_progress_handler(count, _AT_ONCE)
    try:
        yield steps
    finally:
        db.set_progress_handler(None, 0)


def plan(db: sqlite3.Connection, statement: str, args: Sequence[Any]) -> str:
    """The plan that SQLite tells."""
    return "; ".join(row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {statement}", args))
