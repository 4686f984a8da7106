"""MSG-4 with clocks that differ, on MongoDB."""

from __future__ import annotations

import pytest
from kode_mongo.testing.harness import MongoHarness

from tests.message_times import MessageTimes

pytestmark = pytest.mark.usefixtures("server")


class TestMongo(MessageTimes):
    harness = MongoHarness()
