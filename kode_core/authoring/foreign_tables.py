"""The tables of a database that another program wrote, as a backend's plugin gives them to importers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

__all__ = ["ForeignTables"]


class ForeignTables(Protocol):
    """Reads tables as they were at one instant, and changes nothing.

    Texts are ``str``, with surrogates for bytes that are not UTF-8; binary columns are ``bytes``. A server gives a
    column with JSON, and a time, as its text.
    """

    async def columns(self, table: str) -> frozenset[str]:
        """The columns of a table; none if there is no such table."""
        ...

    async def fetch(self, statement: str, *args: Any) -> Sequence[Sequence[Any]]:
        """The rows of a query, with the arguments ``$1``, ``$2`` and so on.

        Raises:
            StorageError: the database cannot be read.
        """
        ...
