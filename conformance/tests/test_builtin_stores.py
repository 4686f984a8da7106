"""The built-in stores pass every check."""

from __future__ import annotations

from kode_conformance.builtin import JsonHarness, MemoryHarness
from kode_conformance.testclass import StoreConformance


class TestMemory(StoreConformance):
    harness = MemoryHarness()


class TestJson(StoreConformance):
    harness = JsonHarness()
