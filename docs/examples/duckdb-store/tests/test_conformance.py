"""The store keeps the contract."""

from __future__ import annotations

from kode_conformance.testclass import StoreConformance
from kode_duckdb.testing.harness import DuckdbHarness


class TestDuckdb(StoreConformance):
    harness = DuckdbHarness()
