"""Findings: in which order they come, what is said of the cause, and how both sides are shown."""

from __future__ import annotations

from typing import Any

import pytest
from kode_conformance.context import difference
from kode_conformance.histories.findings import GOES_WRONG, NOT_ALWAYS
from kode_conformance.histories.programs import RULER
from kode_conformance.reports import causes
from kode_conformance.reports.causes import Cause, likely
from kode_conformance.reports.explain import finding_lines, grouped
from kode_conformance.results import Result, Status


def result(check: str, status: Status, **fields: Any) -> Result:
    return Result(check=check, clauses=(check.partition(".")[0],), claim="It holds.", status=status, **fields)


def test_plain_findings_come_before_those_of_searches() -> None:
    """Whatever the order of the contract is."""
    random = result("VAL-1.a", Status.FAIL, message="x", stochastic=True)
    history = result("VAL-1.b", Status.FAIL, message=f"{GOES_WRONG} step 1: y")
    plain = result("DUR-1.a", Status.FAIL, message="z")
    assert grouped([random, history, plain]) == [[plain], [random], [history]]


CHECK = "QRY-2.queries_after_each_change_of_a_list"


def labels(message: str, check: str = CHECK) -> list[str]:
    """What is said of a finding."""
    found = result(check, Status.FAIL, message=message, replay=f"{check}@seed=7")
    return [label for label, _ in finding_lines(found, "kode conformance x")]


def test_causes_are_of_what_was_found() -> None:
    """Those that share words with the finding are first; none names another method, filter or kind of record."""
    first = likely(CHECK, "query_messages(agent_id='a', role='user') has 0 items, expected 1")[0]
    assert "index entry of a role" in first.wrong
    calls = [cause.wrong for cause in likely(CHECK, "query_tool_calls(state='x'): it has 0 items")]
    assert not [wrong for wrong in calls if "message" in wrong]
    name = "LIFE-5.delete_many_by_each_filter"
    other = Cause(1, "LIFE-5", "delete_many takes created_before for created_after.")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(causes, "_known", lambda: {name: (other,)})
        assert likely(name, "delete_many(created_before=1): it has 0 items") == [other]
        assert likely(name, "delete_many(user_id='x'): it has 0 items") == []
        assert likely(name, "save_turn(created_before=1): it has 0 items") == []


def test_where_to_look_is_said_where_no_cause_is_known() -> None:
    """And not next to one."""
    assert "look first at" not in labels("query_messages(role='user'): it has 0 items")
    assert "seen before" in labels("query_messages(role='user'): it has 0 items")
    assert "look first at" in labels("it has 0 items", "MSG-4.of_a_check_that_found_nothing_yet")
    assert labels("NotImplementedError: x", "MSG-4.x") == ["contract", "checked", "found", "run it again"]


def test_a_history_that_always_fails_needs_no_repetition() -> None:
    """The replay of one that failed in each run does so again; one that did not says so."""
    check = "MSG-8.random_histories_follow_the_model"
    program = f"As a program:\n\n{RULER}\nx\n{RULER}"
    assert "timing" not in labels(f"{GOES_WRONG} step 1: it is 1\n  1. x\n\n{program}", check)
    assert "timing" in labels(f"{GOES_WRONG} step 1: it is 1 {NOT_ALWAYS}\n  1. x\n\n{program}", check)
    assert "timing" in labels("it is 1, expected 2", check)


def test_types_are_told_where_they_differ() -> None:
    """Numbers and texts can be told apart without."""
    assert difference(1102, 1) == "it is 1102, expected 1"
    assert difference("1", 1) == "it is '1' (str), expected 1 (int)"
    assert difference(1.0, 1) == "it is 1.0 (float), expected 1 (int)"
    assert difference(None, "x") == "it is None, expected 'x' (str)"
