"""The protocol of the record engine is searched, with all that protects an agent and without each of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pytest

from tests.record_disk import Calls, Commit, Disk, Head, Put, Rules
from tests.record_model import Write, collect, fork, read, write
from tests.record_search import Actor, Found, explore

_EMPTY = Head(0, "first")
_ONE = Head(0, "first", length=1)
EMPTY = Disk(_EMPTY, frozenset(), (Commit(_EMPTY, ()),))
ONE_ROW = Disk(_ONE, frozenset({("first", Put(0, 0, "s"))}), (Commit(_ONE, ((0, "s"),)),))


def writer(*writes: Write, attempts: int = 2) -> Actor:
    return lambda rules: write(rules, *writes, attempts=attempts)


def reader(attempts: int = 2) -> Actor:
    return lambda rules: read(rules, how="list", attempts=attempts)


def reader_of_documents(rules: Rules) -> Calls:
    return read(rules, how="documents")


def forker(rules: Rules) -> Calls:
    return fork(rules, ((0, "x"),))


APPEND = Write("a", append=1)
LARGE = Write("a", append=1, is_large=True)
DELETE = Write("d", is_delete=True)


class Scene(NamedTuple):
    """Who takes part, what may go wrong and how often, and how many states there are at least."""

    disk: Disk
    actors: Sequence[Actor]
    trouble: Sequence[str]
    least: int
    times: int = 1

    def search(self, rules: Rules) -> Found:
        return explore(self.disk, self.actors, rules, trouble=self.trouble, times=self.times)


SCENES = {
    "everybody": Scene(
        EMPTY,
        [
            writer(APPEND, attempts=1),
            writer(Write("b", append=1), attempts=1),
            reader(attempts=1),
            writer(DELETE, attempts=1),
            collect,
        ],
        [],
        1_000_000,
    ),
    "large writes": Scene(
        ONE_ROW,
        [writer(LARGE), writer(Write("b", append=1, is_large=True)), reader()],
        ["rollback", "lost", "late"],
        40_000,
        times=2,
    ),
    "a list is shortened": Scene(
        ONE_ROW, [writer(APPEND), writer(Write("b", save=2), Write("c", save=1)), reader()], ["late"], 50_000
    ),
    "documents are removed": Scene(
        ONE_ROW, [writer(APPEND), writer(Write("b", save=0)), reader_of_documents], ["late", "lost"], 20_000
    ),
    "documents are put if absent": Scene(
        EMPTY,
        [writer(Write("a", append=1, absent=0)), writer(Write("b", append=1, absent=0)), writer(Write("c", save=0))],
        ["late", "lost"],
        20_000,
    ),
    "a delete": Scene(ONE_ROW, [writer(APPEND), writer(DELETE), collect], ["late", "stale"], 20_000),
    "a delete, and a new beginning": Scene(
        ONE_ROW, [writer(DELETE, Write("b", append=1)), writer(APPEND), reader()], ["late", "stale"], 20_000
    ),
    "a delete of a large write": Scene(ONE_ROW, [writer(LARGE), writer(DELETE), collect], ["late", "rollback"], 20_000),
    "a large new beginning": Scene(
        ONE_ROW, [writer(DELETE, LARGE), collect], ["stale", "late", "lost"], 10_000, times=2
    ),
    "a fork": Scene(EMPTY, [forker, writer(APPEND, attempts=1), collect], ["late", "lost"], 100_000),
}

NEEDED = {
    "swaps_by_rev": ("large writes", "torn"),
    "commits_on_settled": ("a list is shortened", "unreadable"),
    "settles_by_rev": ("a list is shortened", "torn"),
    "settles_durably": ("large writes", "unreadable"),
    "overlays": ("a list is shortened", "unreadable"),
    "refuses_newer": ("a list is shortened", "torn"),
    "puts_by_rev": ("a list is shortened", "torn"),
    "leaves_tombstones": ("a list is shortened", "torn"),
    "remembers_ops": ("large writes", "doubled"),
    "names_stashes": ("large writes", "torn"),
    "dooms": ("a delete", "left"),
    "needs_newer_head": ("a delete, and a new beginning", "unreadable"),
    "notes": ("a delete", "left"),
    "barriers": ("a large new beginning", "unreadable"),
    "reserves": ("a fork", "unreadable"),
    "demands_at_head": ("documents are put if absent", "unmet"),
}
"""The scene in which a fault is found without the rule, and of which kind it is."""


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENES)
def test_nothing_goes_wrong(name: str) -> None:
    """Whoever is stopped, delayed or killed at whatever call: readers see what was committed, and nothing is left."""
    scene = SCENES[name]
    found = scene.search(Rules())
    assert found.fault is None, f"after {found.states:,} states, {found.fault}"
    assert found.states >= scene.least, f"only {found.states:,} states were searched"


@pytest.mark.parametrize("rule", NEEDED)
def test_each_rule_is_needed(rule: str) -> None:
    """Without it the same search finds a fault."""
    scene, kind = NEEDED[rule]
    found = SCENES[scene].search(Rules()._replace(**{rule: False}))
    assert found.fault is not None, f"nothing was found in {found.states:,} states"
    assert found.fault.kind == kind, f"after {found.states:,} states, {found.fault}"


SAVING = {
    "cleans_up": Rules(cleans_up=False),
    "drops_stashes": Rules(drops_stashes=False, settles_durably=False),
    "takes_over": Rules(takes_over=False),
}


@pytest.mark.parametrize("rules", SAVING.values(), ids=SAVING)
@pytest.mark.parametrize(
    "scene", ["a delete", "a delete, and a new beginning", "a delete of a large write", "a large new beginning"]
)
def test_some_rules_only_save(scene: str, rules: Rules) -> None:
    """Without them the collector has more to do, and nothing goes wrong."""
    found = SCENES[scene].search(rules)
    assert found.fault is None, f"after {found.states:,} states, {found.fault}"
    assert found.states >= SCENES[scene].least // 2


def test_every_rule_is_tried() -> None:
    assert {*NEEDED, *SAVING} == set(Rules._fields)
