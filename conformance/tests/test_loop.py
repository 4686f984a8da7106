"""The suite's event loop: a check that hangs is ended, and a busy machine is no hang."""

from __future__ import annotations

import asyncio
import os

import pytest
from kode_conformance.running import loop
from kode_conformance.running.loop import Hung, LoopThread


async def test_load_stretches_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the tasks that want each core, within bounds."""
    cores = os.cpu_count() or 1
    for load, wanted in ((0.0, 1.0), (0.5 * cores, 1.0), (3.0 * cores, 3.0), (1000.0 * cores, 10.0)):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, 0.0, 0.0))
        assert loop.slowdown() == wanted


def test_a_call_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a quiet machine after its limit, on a busy one a little later; the error says where the loop is."""
    for slowdown in (1.0, 3.0):
        monkeypatch.setattr(loop, "slowdown", lambda slowdown=slowdown: slowdown)
        with LoopThread() as call, pytest.raises(Hung, match=rf"not done after {0.1 * slowdown:.3g} s"):
            call(asyncio.sleep(60), 0.1)


def test_a_slow_call_has_longer_on_a_busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its result is returned though the limit of a quiet machine has passed."""
    monkeypatch.setattr(loop, "slowdown", lambda: 10.0)
    with LoopThread() as call:
        assert call(asyncio.sleep(0.3, "done"), 0.1) == "done"


def test_a_timeout_of_the_call_itself_is_raised() -> None:
    """It is no hang."""

    async def fails() -> None:
        raise TimeoutError("its own")

    with LoopThread() as call, pytest.raises(TimeoutError, match="its own"):
        call(fails(), 5)
