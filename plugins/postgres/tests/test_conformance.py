"""The PostgreSQL store passes every check, in both layouts."""

from __future__ import annotations

import pytest
from kode_conformance.testclass import StoreConformance, beyond
from kode_postgres.testing.harness import PostgresHarness, PostgresHybridHarness

pytestmark = pytest.mark.usefixtures("server")


class TestPostgres(StoreConformance):
    harness = PostgresHarness()


class TestHybrid(StoreConformance):
    harness = PostgresHybridHarness()
    later = beyond(2)
