"""The SQLite store passes every check, in both layouts."""

from __future__ import annotations

from kode_conformance.testclass import StoreConformance
from kode_sqlite.testing.harness import HybridHarness, SqliteHarness


class TestSqlite(StoreConformance):
    harness = SqliteHarness()


class TestHybrid(StoreConformance):
    harness = HybridHarness()
