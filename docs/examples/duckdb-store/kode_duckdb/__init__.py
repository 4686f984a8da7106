"""The DuckDB backend of kode-core: an example of a backend outside the project."""

from __future__ import annotations

from kode_duckdb.options import DuckdbOptions

__all__ = ["DuckdbOptions"]
