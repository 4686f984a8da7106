"""The built-in stores pass every check."""

from __future__ import annotations

import pytest
from kode_conformance.builtin import JsonHarness, MemoryHarness
from kode_conformance.testclass import StoreConformance

from kode_core.engines.folder import Folder, Stripe
from kode_core.engines.journal import Journal


class TestMemory(StoreConformance):
    harness = MemoryHarness()


class TestJson(StoreConformance):
    harness = JsonHarness()


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
