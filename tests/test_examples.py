"""The examples of the documentation are right: a store written on the protocol passes the suite."""

from __future__ import annotations

from dict_store import DictHarness
from kode_conformance.testclass import StoreConformance


class TestDictStore(StoreConformance):
    harness = DictHarness()
