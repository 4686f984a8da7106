"""The built-in stores pass every check."""

from __future__ import annotations

import re
from collections import Counter
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
from kode_conformance import load_checks
from kode_conformance.builtin import JsonHarness, MemoryHarness
from kode_conformance.settings import Tier
from kode_conformance.suite.pytest_front import conclude
from kode_conformance.testclass import StoreConformance, beyond

from kode_core.backends.json_files.folder import Folder, Stripe
from kode_core.backends.json_files.journal import Journal


class TestMemory(StoreConformance):
    harness = MemoryHarness()


class TestJson(StoreConformance):
    harness = JsonHarness()


@pytest.mark.parametrize("tier", ["quick", "standard"])
def test_checks_may_wait_for_the_second_tier(tier: str) -> None:
    """At the first one they are skipped, with the tier at which they run."""
    check = next(check for check in load_checks() if check.tier is Tier.QUICK)
    options = {"kode_tier": tier, "kode_seed": 0}
    config = SimpleNamespace(getoption=lambda name, default=None: options.get(name, default))
    request: Any = SimpleNamespace(config=config, node=SimpleNamespace(user_properties=[]))
    waits = (
        pytest.raises(pytest.skip.Exception, match="runs at --kode-tier standard") if tier == "quick" else nullcontext()
    )
    with waits:
        conclude(check, MemoryHarness(), request, later=re.escape(check.id))
    conclude(check, MemoryHarness(), request, later="another")


class TestJsonCompactedAlways(StoreConformance):
    """Every write to a small file is followed by a compaction: a rewritten file says all that the written one said."""

    harness = JsonHarness()

    @pytest.fixture(autouse=True)
    def compact_after_every_write(self, monkeypatch: pytest.MonkeyPatch) -> None:
        tidy = Folder.tidy

        def tidied(folder: Folder, stripe: Stripe, journal: Journal) -> None:
            tidy(folder, stripe, journal)
            if 0 < journal.live_bytes < 50_000:
                journal.compact(durable=False)

        monkeypatch.setattr(Folder, "tidy", tidied)


def test_a_second_layout_keeps_one_check_of_each_clause() -> None:
    """``beyond`` leaves to the second tier all but so many checks of each clause, and never a whole clause."""
    checks = [check for check in load_checks() if check.tier is Tier.QUICK]
    areas = {check.clauses[0] for check in checks}
    for count in (1, 2):
        kept = Counter(check.clauses[0] for check in checks if not re.match(beyond(count), check.id))
        assert set(kept) == areas
        assert max(kept.values()) == count
