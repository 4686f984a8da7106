"""Messages that are appended once, in PostgreSQL."""

from __future__ import annotations

import pytest
from kode_postgres.testing.harness import PostgresHarness, PostgresHybridHarness

from tests.keyed_appends import KeyedAppends

pytestmark = pytest.mark.usefixtures("server")


class TestPostgres(KeyedAppends):
    harness = PostgresHarness()


class TestHybrid(KeyedAppends):
    harness = PostgresHybridHarness()
    each = 3
