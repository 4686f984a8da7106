"""The MongoDB backend passes the shared suite: with both drivers, and without a replica set."""

from __future__ import annotations

import pytest
from kode_conformance.testclass import StoreConformance
from kode_mongo.testing import MongoHarness, PymongoHarness, StandaloneHarness

pytestmark = pytest.mark.usefixtures("server")


ALL_BUT_THE_DRIVERS_OWN = r"(?!DUR|LOCK|OPS|EVT-4)"
"""What the store does is the same with either driver and either kind of server: at first, one of them is enough."""


class TestMotor(StoreConformance):
    harness = MongoHarness()


class TestPymongo(StoreConformance):
    harness = PymongoHarness()
    later = ALL_BUT_THE_DRIVERS_OWN


class TestStandalone(StoreConformance):
    harness = StandaloneHarness()
    later = ALL_BUT_THE_DRIVERS_OWN
