"""Faulty stores by authors who did not know the checks: all can be seen, and what found them finds them today."""

from __future__ import annotations

from collections import Counter

import pytest
from kode_conformance import load_checks
from kode_conformance.settings import Tier

from conformance.tests.test_zoo import leave_nothing_behind, look_for_the_fault, see_the_fault
from conformance.tests.zoo.rounds import Fault, load_faults, records

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


def test_the_last_round_was_found() -> None:
    """There are more than 150 faulty stores, of several rounds; of the last nine in ten were found when it was new."""
    sizes = Counter(fault.round for fault in FAULTS)
    last = max(sizes, key=lambda name: int(name[1:]))
    new = [STORIES[fault.name].then for fault in FAULTS if fault.round == last]
    assert len(FAULTS) >= 150
    assert len(sizes) >= 3
    assert sum(bool(record.own) for record in new) >= 0.9 * len(new) >= 0.9 * 60
