"""Writers of one agent make progress together: calls are counted, in simulated time."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contended_records import contest
from tests.memory_records import TogetherHarness

ALONE = 249
"""How many writes in a second one writer makes: two round trips of 2 ms each."""


def test_one_writer_makes_no_call_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    found = contest(1, monkeypatch)
    assert set(found.calls) == {"swap", "apply"}
    assert found.calls_per_write == pytest.approx(2, abs=0.01)
    assert found.rate == pytest.approx(ALONE, rel=0.02)


@pytest.mark.parametrize(("writers", "calls"), [(2, 2.5), (5, 3), (20, 4)])
def test_writers_make_progress_together(writers: int, calls: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Together they write about what one does, at a few calls for each write, and none is left behind."""
    found = contest(writers, monkeypatch)
    assert not found.errors
    assert found.rate > ALONE / 2
    assert found.calls_per_write < calls
    assert found.least_share > 0.4
    assert found.longest < 8


def test_one_writer_far_away_makes_no_call_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its next swap settles the head for free, however long a call takes."""
    found = contest(1, monkeypatch, round_trip=0.05)
    assert found.calls["settle"] <= 1  # of the first write, when the duration is not known yet
    assert found.calls_per_write < 2.1


def test_writers_far_away_settle_no_head_that_others_settle(monkeypatch: pytest.MonkeyPatch) -> None:
    found = contest(20, monkeypatch, seconds=100, round_trip=0.05)
    assert not found.errors
    assert found.rate > 5, "half of what one writer makes"
    assert found.calls["settle"] < 0.15 * sum(found.wrote)
    assert found.least_share > 0.2


@pytest.mark.slow
def test_fifty_writers_make_progress_together(monkeypatch: pytest.MonkeyPatch) -> None:
    found = contest(50, monkeypatch)
    assert not found.errors
    assert found.rate > ALONE / 2
    assert found.calls_per_write < 10
    assert found.least_share > 0.2


@pytest.mark.parametrize(
    "options", [{}, {"swap_items": TogetherHarness.options["swap_items"]}], ids=["alone", "together"]
)
def test_a_writer_that_writes_now_and_then_gets_in(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Next to one that writes all the time, which goes on nearly as fast."""
    found = contest(2, monkeypatch, pauses={1: 0.2}, **options)
    assert not found.errors
    assert found.wrote[1] > 25
    assert found.rate > 0.7 * ALONE


def test_writers_that_pause_do_not_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn is no longer than what its writer used of the last one."""
    found = contest(20, monkeypatch, seconds=5, pauses=dict.fromkeys(range(20), 0.2))
    assert not found.errors
    assert found.rate > 60
    assert found.calls_per_write < 8


def test_a_writer_that_is_left_alone_is_as_fast_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nineteen of twenty write once, and never again."""
    found = contest(20, monkeypatch, seconds=5, pauses=dict.fromkeys(range(1, 20), 1000))
    assert found.wrote[1:] == [1] * 19
    assert found.wrote[0] > 4 * ALONE
