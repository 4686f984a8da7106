"""Every check against the store of ``--kode-store``."""

from __future__ import annotations

import pytest

from kode_conformance.harness import StoreHarness
from kode_conformance.registry import Check
from kode_conformance.suite.pytest_front import conclude


def test_clause(kode_check: Check, kode_harness: StoreHarness, request: pytest.FixtureRequest) -> None:
    """The store does what the clause says."""
    conclude(kode_check, kode_harness, request)
