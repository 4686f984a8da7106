"""The options of the DuckDB backend."""

from __future__ import annotations

from typing import Annotated

import msgspec

__all__ = ["DuckdbOptions"]


class DuckdbOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of the DuckDB backend.

    Attributes:
        db_path: the database file, made with its folders when it is not there.
    """

    db_path: Annotated[str, msgspec.Meta(min_length=1, extra={"path": True})] = "./data/agents.duckdb"
