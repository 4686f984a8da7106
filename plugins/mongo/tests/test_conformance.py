"""The MongoDB backend passes the shared suite: with both drivers, and without a replica set."""

from __future__ import annotations

import pytest
from kode_conformance.testclass import StoreConformance, beyond
from kode_mongo.testing.harness import MongoHarness, PymongoHarness, StandaloneHarness

pytestmark = pytest.mark.usefixtures("server")


SAME_WITH_ALL = beyond(1)
"""The store does the same with either driver and either kind of server: one check of each clause shows that it runs."""


class TestMotor(StoreConformance):
    harness = MongoHarness()


class TestPymongo(StoreConformance):
    harness = PymongoHarness()
    later = SAME_WITH_ALL


class TestStandalone(StoreConformance):
    harness = StandaloneHarness()
    later = SAME_WITH_ALL
