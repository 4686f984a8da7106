"""Tables for analysts: the agents of a store as Parquet files, which DuckDB, pandas and polars read."""

from kode_core.formats.parquet.exporting import export_parquet
from kode_core.formats.parquet.tables import TABLES, Column

__all__ = ["TABLES", "Column", "export_parquet"]
