"""What the model covers, and the programs that findings are told as."""

from __future__ import annotations

import ast
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Final, cast

import msgspec
import pytest
from kode_conformance import StoreHarness, load_checks
from kode_conformance.builtin import MemoryHarness
from kode_conformance.context import prepared
from kode_conformance.histories.answers import _FOUND, _OF_AGENT
from kode_conformance.histories.changes import CHANGES, chains, full_state
from kode_conformance.histories.findings import How
from kode_conformance.histories.looks import KINDS, looks
from kode_conformance.histories.machine import Machine
from kode_conformance.histories.making import DOCUMENTS, EDITS, history
from kode_conformance.histories.model import WRITES
from kode_conformance.histories.programs import RULER
from kode_conformance.histories.stamps import times_problem
from kode_conformance.histories.steps import Step
from kode_conformance.histories.variants import KEYS, ORIGINALS, VARIANTS, names_of
from kode_conformance.results import Status
from kode_conformance.running.runner import judge
from kode_conformance.settings import Settings

from conformance.tests.zoo import changes, edited, told
from conformance.tests.zoo.base import PlainMemory
from kode_core.model import Message
from kode_core.protocols import AgentStore, DocumentStore, ExtendedStore, QueryableStore, Store
from kode_core.query import MessageFilter, SessionFilter, ToolCallFilter

CHECKS = {check.id: check for check in load_checks()}

# --- what is covered --------------------------------------------------------------------------------------------------

WITH_THE_MACHINE: Final = {
    *("batch_fork", "delete", "delete_many", "acquire_agent_lock", "get_metrics", "follow_events"),
    *("fork", "emit", "emit_many", "put_document", "delete_document", "load_version", "load_session"),
}
"""What the machine does in a way of its own."""
NOT_OF_THE_MODEL: Final = {
    "health_check": "tells of the medium, not of what is stored",
    "check_consistency": "a sound store has nothing to tell; what it finds in others is checked by damaging them",
    "iter_consistency": "the same, as a stream",
    "backup": "its copy is another store",
    "append_messages_once": "MSG-12 has races of its own",
    **dict.fromkeys(("load_agent", "import_agent"), "LIFE-7 and LIFE-8 compare agents as wholes"),
    **dict.fromkeys(("count_sessions", "count_messages", "count_tool_calls"), "QRY-10 compares them with queries"),
    **dict.fromkeys(("group_sessions", "group_messages", "group_tool_calls"), "QRY-11 compares them with queries"),
    "prune": "LIFE-6 prunes each kind",
    "query_documents": "looks at documents make it, with the tags that their puts have",
    "close": "a history closes a store to open it again",
    "__aenter__": "as close",
    "__aexit__": "as close",
    "__init__": "no method of the protocol",
}


def methods() -> set[str]:
    """Of all protocols of stores."""
    found = {
        name
        for p in (Store, QueryableStore, DocumentStore, AgentStore, ExtendedStore)
        for name, v in vars(p).items()
        if callable(v)
    }
    return {name for name in found if not name.startswith("_") or name in NOT_OF_THE_MODEL}


def test_the_model_covers_the_interface() -> None:
    """A new method of a protocol must be put into the model, or be left out here with the reason."""
    queries = {f"{verb}_{kind}" for verb in ("query", "iter") for kind in _FOUND}
    covered = {*WRITES, *EDITS, *DOCUMENTS, *_OF_AGENT, *queries, *WITH_THE_MACHINE, "list"}
    assert covered <= methods()
    assert methods() - covered <= set(NOT_OF_THE_MODEL)


async def test_every_read_is_made_with_every_filter() -> None:
    """The looks of a full state know each read, each filter, pairs of filters, both orders, and each sort key."""
    seen: set[tuple[str, str]] = set()
    pairs, orders = set[frozenset[str]](), set[Any]()
    async with prepared(MemoryHarness()) as ctx:
        machine = Machine(ctx, "", [ctx.store], How(queries=True))
        for step in full_state("a"):
            await machine._call(step)
        await machine._learn(0, "a", "")
        await machine._learn_all(0, "a")
        machine._known["a"].note(machine.model.agents["a"])
        for turn in range(60):
            for kind in KINDS:
                for look in looks(kind, "a", machine._known["a"], machine.model, turn):
                    seen |= {(look.method, name) for name in look.filters}
                    pairs.add(frozenset(look.filters) - {"limit", "order", "sort_by", "agent_id"})
                    orders |= {look.filters.get("order"), look.filters.get("sort_by")}
    filters = {"sessions": SessionFilter, "messages": MessageFilter, "tool_calls": ToolCallFilter}
    paging = {"cursor", "limit", "offset"}
    wanted = {(f"query_{kind}", name) for kind, f in filters.items() for name in f.__annotations__}
    wanted |= {(f"iter_{kind}", name) for kind, f in filters.items() for name in set(f.__annotations__) - paging}
    wanted |= {("read_events", name) for name in ("since", "after_offset", "channel")}
    assert {(method, name) for method, name in wanted - seen if name not in paging} == LEFT_OUT
    assert {("query_messages", "limit"), ("query_messages", "offset")} <= seen
    assert {
        frozenset(pair) for pair in (("role", "content_type"), ("tool_name", "state"), ("user_id", "metadata"))
    } <= pairs
    assert orders >= {"asc", "desc", "created_at", "updated_at", "message_count", None}


LEFT_OUT: Final = {("iter_sessions", "sort_by"), ("iter_sessions", "agent_id")}
"""Filters of iterators that are those of the query, which is looked at with them."""


def test_every_field_of_every_kind_is_changed() -> None:
    """A new field of a record must have a variant, unless it is what a record is found by."""
    for letter, record in ORIGINALS.items():
        fields = set(type(record).__struct_fields__) - {*KEYS[letter], "extra"}
        changed = {
            field
            for name in names_of(letter)
            for field in fields
            if getattr(VARIANTS[name], field) != getattr(record, field)
            or repr(getattr(VARIANTS[name], field)) != repr(getattr(record, field))
        }
        assert changed == fields, letter
        for name in names_of(letter):
            assert msgspec.json.encode(VARIANTS[name]) != msgspec.json.encode(record), name


def test_changes_know_every_write() -> None:
    """Each write of the interface makes some of the changes; each change is there under one name."""
    names = [change.name for group in CHANGES.values() for change in group]
    assert len(set(names)) == len(names) > 150
    made = {step.op for group in CHANGES.values() for change in group for step in change.steps}
    assert made >= {*WRITES, "delete", "delete_many", "batch_fork", "reopen"}


async def test_the_machine_makes_every_change() -> None:
    """On a store that is right nothing is found after any of them."""
    async with prepared(MemoryHarness()) as ctx:
        stores: list[Any] = [ctx.store, await ctx.another()]
        for group in CHANGES.values():
            for i, steps in enumerate(chains(group, 20, restore=False)):
                await Machine(ctx, f"{i}-", stores, How(queries=True, end=False)).run(steps)


# --- times ------------------------------------------------------------------------------------------------------------

A, B, C, X = (Message.user(text) for text in "ABCX")


@pytest.mark.parametrize(
    ("old", "times", "new", "given", "found"),
    [
        ([A, B], [1, 2], [A, B], [1, 2], ""),
        ([A, B], [1, 2], [A, B], [1, 3], "message 1 stayed"),
        ([A, B], [1, 2], [A, B, C], [1, 2, 2], ""),
        ([A, B], [1, 2], [A, B, C], [1, 2, 1], "was appended"),
        ([A, B, C], [1, 2, 3], [B, C], [2, 3], ""),
        ([A, B, C], [1, 2, 3], [B, C], [1, 2], "stayed or moved"),
        ([A, B, C], [1, 2, 3], [A, X, C], [1, 2, 3], ""),
        ([A, B, C], [1, 2, 3], [A, X, C], [1, 9, 3], "was replaced at its position"),
        ([A, B, C], [1, 2, 3], [C, A, B], [3, 1, 2], ""),
        ([A, B, C], [1, 2, 3], [C, A, B], [1, 2, 3], "stayed or moved"),
        ([A, C], [1, 5], [A, B, C], [1, 3, 5], ""),
        ([A, C], [1, 5], [A, B, C], [1, 9, 5], "out of order"),
        ([A, A, B], [1, 2, 3], [A, B], [1, 3], ""),
        ([A, A, B], [1, 2, 3], [A, B], [2, 3], ""),
        ([A, A, B], [1, 2, 3], [A, B], [9, 3], "stayed or moved"),
        ([A, B], [1, 2], [B, A, A], [2, 9, 9], ""),
        ([A, B], [1, 2], [B, A, A], [1, 9, 9], "stayed or moved"),
        ([A, B], [1, 2], [A, A], [1, 2], ""),
        ([A, B], [1, 2], [A, A], [1, 1], "was replaced at its position"),
        ([], [], [A, B], [2, 1], "was appended"),
    ],
)
def test_times_are_judged(
    old: list[Message], times: list[int], new: list[Message], given: list[int], found: str
) -> None:
    """What stays, moves, is replaced and appended; of equal messages either may be the one that stayed."""
    problem = times_problem(old, times, new, given)
    assert found in problem
    assert bool(found) is bool(problem)


# --- programs ---------------------------------------------------------------------------------------------------------


def run_program(text: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Run it as a stranger does who pasted it into a file."""
    path = tmp_path / "program.py"
    path.write_text(text)
    paths = [str(Path(place).absolute()) for place in (".", *sys.path) if place]
    env = {"PYTHONPATH": ":".join(paths), "PATH": ""}
    return subprocess.run([sys.executable, str(path)], capture_output=True, text=True, env=env, timeout=60, check=False)


def unused(program: str) -> set[str]:
    """The names that a program imports, or defines at its beginning, and does not use."""
    module = ast.parse(program)
    nodes = list(ast.walk(module))
    had = {alias.name for node in nodes if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names}
    had |= {ast.unparse(target) for node in module.body if isinstance(node, ast.Assign) for target in node.targets}
    return had - {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


_EDITS: Final = "MSG-11.random_histories_of_edits"
FAULTY: Final = {
    "a stale index": (changes.IndexesContentsAnew, "QRY-2.queries_after_each_change_of_a_list", "has"),
    "another type": (changes.ComparesMetadata, "QRY-2.queries_after_each_change_of_an_info", "has"),
    "an offset": (changes.KnowsTwoBounds, "EVT-5.parts_of_a_log_after_each_append", "has"),
    "a document": (changes.SavesAWindowWithNews, "MSG-8.loads_after_each_change_of_a_document", "stats"),
    "seen before": (told.RemembersTodos, "MSG-8.random_histories_follow_the_model", ""),
    "times": (told.StampsAnew, "QRY-2.queries_after_each_change_of_a_list", ""),
    "an error": (told.FailsOnEqualCalls, "QRY-2.queries_after_each_change_of_a_list", "KeyError"),
    "not refused": (told.TakesAnyEvent, "MSG-8.random_histories_follow_the_model", "must raise"),
    "a fork": (told.ForgetsTheForksMedia, "LIFE-4.queries_after_each_end_and_fork", ""),
    "a follower": (told.FollowsEachSeqOnce, "EVT-7.random_histories_are_followed", "did not yield"),
    "a lease": (told.FencesNoDocuments, "LOCK-5.random_histories_under_leases", "lease that has ended"),
    "a pop": (edited.PopsBehindTheListMemory, _EDITS, ""),
    "a version": (edited.KeepsTheVersionOfAnEmptiedList, _EDITS, "the version of"),
    "a document's version": (edited.RevivesTheVersion, "DOC-2.random_histories_of_documents", "was there before"),
    "a turn": (edited.WritesTheTurnFirst, "DOC-2.random_histories_of_documents", ""),
    "a counter": (told.CountsUpsertsTwice, "OPS-3.each_call_moves_its_counter", "counters"),
}


@pytest.mark.selftest
@pytest.mark.parametrize("name", FAULTY)
def test_a_finding_is_a_program_that_fails(name: str, tmp_path: Path) -> None:
    """The program that a finding prints fails on the faulty store, with what is wrong, and passes on a sound one."""
    part, check, wrong = FAULTY[name]
    harness = cast(StoreHarness, cast(Any, part).Harness())
    results = (judge(CHECKS[check], harness, Settings(seed=seed)) for seed in range(5))
    result = next((one for one in results if one.status is Status.FAIL), None)
    assert result is not None
    assert result.status is Status.FAIL
    history, _, program = result.message.partition("As a program:\n\n")
    assert "Step(" in program or "await store." in program
    assert program.startswith(f"{RULER}\nimport asyncio\n")
    assert program.endswith(f"\n{RULER}")
    if "steps = [" not in program:
        assert not re.search(r"^  \S+ = ", history, re.MULTILINE)
    assert "want: " in program or "got = " not in program
    assert unused(program) == set()
    failing = run_program(program, tmp_path)
    assert failing.returncode == 1
    assert wrong in failing.stderr
    sound = run_program(program.replace(harness.spec, PlainMemory().spec), tmp_path)
    assert (sound.returncode, sound.stderr) == (0, "")


def test_long_histories_have_long_lists() -> None:
    """Now and then one that crosses the usual limits, told in a word."""
    made = [history(random.Random(seed), 20, {}, large=True) for seed in range(20)]
    runs = [str(step) for steps in made for step in steps if "#" in str(step)]
    assert len(runs) == 20
    assert any(":1001]" in text for text in runs)
    assert isinstance(made[0][0], Step)
