"""Messages that are appended once, in MongoDB."""

from __future__ import annotations

import pytest
from kode_mongo.testing.harness import MongoHarness

from tests.keyed_appends import KeyedAppends

pytestmark = pytest.mark.usefixtures("server")


class TestMongo(KeyedAppends):
    harness = MongoHarness()
    each = 2
    many = 2000
