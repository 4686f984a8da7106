"""Stores through ``kode_core.sync`` carry the whole contract: the suite judges them like any other store."""

from __future__ import annotations

import pytest
from kode_conformance.testclass import StoreConformance, beyond

from tests.sync_harness import SyncMemoryHarness, SyncSqliteHarness

pytestmark = pytest.mark.slow


class TestSyncMemory(StoreConformance):
    harness = SyncMemoryHarness()


class TestSyncSqlite(StoreConformance):
    harness = SyncSqliteHarness()
    later = beyond(1)
