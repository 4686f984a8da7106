"""Views of tenants pass every check that stores pass, next to other tenants in the same store (SCOPE-1)."""

from __future__ import annotations

from typing import Any

import pytest
from kode_conformance import scoped
from kode_conformance.testclass import StoreConformance


@pytest.mark.slow
class TestMemoryView(StoreConformance):
    harness: Any = scoped.of_memory()


@pytest.mark.slow
class TestJsonView(StoreConformance):
    harness: Any = scoped.of_json()


@pytest.mark.slow
class TestSqliteView(StoreConformance):
    harness: Any = scoped.of_sqlite()


@pytest.mark.slow
class TestSqliteHybridView(StoreConformance):
    harness: Any = scoped.of_sqlite_hybrid()


@pytest.mark.suites
class TestPostgresView(StoreConformance):
    harness: Any = scoped.of_postgres()


@pytest.mark.suites
class TestMongoView(StoreConformance):
    harness: Any = scoped.of_mongo()


@pytest.mark.suites
class TestDynamoDBView(StoreConformance):
    harness: Any = scoped.of_dynamodb()
