"""Functions that the two front ends for pytest share."""

from __future__ import annotations

import re

import pytest

from kode_conformance.harness import StoreHarness
from kode_conformance.registry import Check
from kode_conformance.reports.explain import finding_lines
from kode_conformance.results import Status
from kode_conformance.running.runner import judge
from kode_conformance.settings import Settings, Tier

__all__ = ["conclude", "settings_of"]


def settings_of(config: pytest.Config) -> Settings:
    """The settings of ``--kode-tier`` and ``--kode-seed``; a run is the same every time unless a seed is given."""
    return Settings(Tier[config.getoption("kode_tier", "standard").upper()], config.getoption("kode_seed", 0))


def conclude(check: Check, harness: StoreHarness, request: pytest.FixtureRequest, *, later: str = "") -> None:
    """Run a check and turn its outcome into a result of pytest; at the first tier *later* leaves some checks out."""
    settings = settings_of(request.config)
    tier = max(check.tier, Tier.STANDARD) if later and re.match(later, check.id) else check.tier
    if tier > settings.tier:
        pytest.skip(f"runs at --kode-tier {tier.name.lower()}")
    result = judge(check, harness, settings)
    request.node.user_properties += [("kode.check", check.id), ("kode.status", result.status.value)]
    if result.status in (Status.NOT_APPLICABLE, Status.UNVERIFIED):
        pytest.skip(f"{result.status}: {result.message}")
    if result.status is Status.DEVIATION:
        pytest.xfail(result.message)
    if result.status is not Status.PASS:
        lines = finding_lines(result, f"kode conformance '{harness.spec}'")
        title = f"{', '.join(check.clauses)} VIOLATED by {harness.name}"
        pytest.fail("\n".join([title, *(f"{label}: {text}" for label, text in lines)]), pytrace=False)
