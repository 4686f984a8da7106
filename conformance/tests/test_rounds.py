"""Faulty stores by authors who did not know the checks: all can be seen, and what found them finds them today."""

from __future__ import annotations

import pytest
from kode_conformance import load_checks
from kode_conformance.settings import Tier

from conformance.tests.test_zoo import leave_nothing_behind, look_for_the_fault, see_the_fault
from conformance.tests.zoo.rounds import Fault, load_faults, records
from conformance.tests.zoo.rounds.page import lines

__all__ = ["leave_nothing_behind"]

FAULTS = load_faults()
STORIES = records()
CHECKS = {check.id: check for check in load_checks()}

pytestmark = [
    pytest.mark.selftest,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::RuntimeWarning"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
def test_the_fault_can_be_seen(fault: Fault) -> None:
    """A witness sees one thing on the sound store and another on the faulty one."""
    see_the_fault(fault)


FOUND = [fault for fault in FAULTS if (story := STORIES.get(fault.name)) and (story.now.own or story.now.others)]


@pytest.mark.parametrize("fault", FOUND, ids=[fault.name for fault in FOUND])
def test_the_fault_is_found(fault: Fault) -> None:
    """The check that found the fault when it was judged last finds it again."""
    now = STORIES[fault.name].now
    check = CHECKS[now.own or now.others[0]]
    with pytest.raises(Exception):  # noqa: B017 - a finding, or the store's own error
        look_for_the_fault(check, fault.harness, Tier[now.tier.upper()], seed=1)


def test_every_fault_has_a_story() -> None:
    """Each faulty store was judged when it was new; those that live, or die for another reason, say why."""
    assert {fault.name for fault in FAULTS} == set(STORIES)
    assert [name for name, story in STORIES.items() if not story.now.own and not story.because] == []


def test_no_fault_is_found_before_its_check_runs() -> None:
    """A check of a later tier finds its faults in that tier, and the story of each fault says so."""
    early = [
        name
        for name, story in STORIES.items()
        if story.now.own and CHECKS[story.now.own].tier > Tier[story.now.tier.upper()]
    ]
    assert early == []


def test_the_suite_finds_the_faults_of_all_rounds_for_their_own_reasons() -> None:
    """There are over 1,000 faulty stores, of several rounds; today's suite finds 95 of 100 for their own reason."""
    found = [fault.name for fault in FAULTS if STORIES[fault.name].now.own]
    assert len(FAULTS) >= 1000
    assert len({fault.round for fault in FAULTS}) >= 3
    assert len(found) >= 0.95 * len(FAULTS)


def test_the_page_keeps_the_first_result_of_each_round() -> None:
    """The page tells how many faults of a round the suite of its day found, and which check found each, or that none
    did; what today's suite finds changes nothing of it.
    """
    rows = {row.split(" | ")[0].removeprefix("| "): row for row in lines() if row.startswith("| ")}
    for series in {fault.round for fault in FAULTS}:
        first = [STORIES[fault.name].then for fault in FAULTS if fault.round == series]
        own = sum(bool(record.own) for record in first)
        killed = sum(bool(record.own or record.others) for record in first)
        begin = f"| {series[1:]} | {len(first)} | {own} ({own / len(first):.0%}) | {killed} | "
        assert rows[series[1:]].startswith(begin)
    for fault in FAULTS:
        then = STORIES[fault.name].then
        assert (then.own or (then.others[0] if then.others else "–")) in rows[fault.name].split(" | ")[4]
