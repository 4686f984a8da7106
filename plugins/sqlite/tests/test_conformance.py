"""The SQLite store passes every check, in both layouts."""

from __future__ import annotations

import sys
from pathlib import Path

from kode_conformance.testclass import StoreConformance

sys.path.insert(0, str(Path(__file__).parent))
from harness import HybridHarness, SqliteHarness  # noqa: E402


class TestSqlite(StoreConformance):
    harness = SqliteHarness()


class TestHybrid(StoreConformance):
    harness = HybridHarness()
