"""What the suite does with stores that cheat or hang; which faults it finds is in test_zoo.py."""

from __future__ import annotations

import time

import pytest
from kode_conformance import Violation, load_checks, run_check
from kode_conformance.testclass import StoreConformance

from conformance.tests.zoo.base import OnMemory
from kode_core.batch import ListKind, ListRows
from kode_core.layers import Layer


def test_checks_cannot_be_overridden() -> None:
    """A subclass that replaces a check is refused when the class is made."""
    with pytest.raises(TypeError, match="test_MSG_1_save_replaces_the_whole_list"):
        type("Cheat", (StoreConformance,), {"test_MSG_1_save_replaces_the_whole_list": None})


class Blocks(Layer):
    """Blocks the event loop."""

    async def rows(self, agent_id: str, kind: ListKind) -> ListRows:
        time.sleep(1.5)
        return await super().rows(agent_id, kind)


class BlocksHarness(OnMemory):
    name = "blocks"
    part = Blocks


def test_a_hanging_store_is_told_with_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that blocks the event loop is reported with the line that blocks."""
    monkeypatch.setattr("kode_conformance.running.runner.SCALE", 0.5 / 60)
    check = next(check for check in load_checks() if check.id == "MSG-1.save_replaces_the_whole_list")
    with pytest.raises(Violation, match=r"time\.sleep\(1\.5\)"):
        run_check(check, BlocksHarness())
    patient = BlocksHarness()
    patient.patience = 60.0
    run_check(check, patient)
