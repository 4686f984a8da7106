"""The suite is held to the zoo: what is faulty it finds, what is only odd it lets pass, and no check sees nothing."""

from __future__ import annotations

import asyncio
import gc
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from kode_conformance import StoreHarness, Violation, load_checks, run_check
from kode_conformance.context import Unverified, prepared
from kode_conformance.registry import Check
from kode_conformance.reports.files import as_json
from kode_conformance.running.runner import capabilities_of, run_suite
from kode_conformance.settings import Settings, Tier

from conformance.tests.zoo import worth
from conformance.tests.zoo.angels import ANGELS
from conformance.tests.zoo.base import (
    Mutant,
    PlainJson,
    PlainMemory,
    PlainSqlite,
    Witness,
    ZooHarness,
    load_mutants,
    needs_processes,
)
from conformance.tests.zoo.blank import ERRORS, ForgetfulHarness, NullHarness, raising
from conformance.tests.zoo.matrix import LOOKS, Row, as_markdown, kept
from conformance.tests.zoo.rounds import Fault, load_angels, records

load_angels()
CHECKS = {check.id: check for check in load_checks()}
MUTANTS = load_mutants()

IDLE = {
    "DUR-1.acknowledged_writes_survive_a_crash_of_the_server",
    "OPS-18.what_other_processes_make_is_for_its_owner_alone",
}
"""Checks that no mutant can fail here: one needs a server that can be killed, one a faulty store in other processes."""

HEAVY = {
    "MSG-6.counts_go_past_16_bits",
    "MSG-6.ten_thousand_in_one_turn",
    "VAL-4.large_values_come_back",
    "VAL-4.a_list_of_twenty_megabytes",
    "VAL-1.hostile_values_in_every_field",
    "OPS-9.a_write_beyond_its_deadline_is_told_truly",
    "OPS-9.every_call_ends_though_the_engine_hangs",
    "OPS-16.maintenance_has_no_total_deadline",
    "OPS-17.wrong_arguments_raise_errors_of_this_library",
    "OPS-17.wrong_fields_raise_errors_of_this_library",
}
"""Checks that angels are spared: they take seconds, and are about sizes, values and waits that no angel touches."""


def areas(checks: Iterable[Check]) -> dict[str, list[Check]]:
    """The checks by the area of their first clause."""
    by_area = itertools.groupby(
        sorted(checks, key=lambda c: c.clauses[0]), key=lambda c: c.clauses[0].partition("-")[0]
    )
    return {area: list(found) for area, found in by_area}


def in_this_process(tier: Tier = Tier.QUICK) -> list[Check]:
    """Checks that start no other process."""
    return [check for check in CHECKS.values() if check.tier <= tier and not needs_processes(check)]


# A check that fails leaves calls behind that nobody awaits any more.
pytestmark = [
    pytest.mark.selftest,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::RuntimeWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def leave_nothing_behind() -> Iterator[None]:
    """What failing checks left is collected here, and not while other tests run."""
    yield
    gc.collect()


# --- mutants ----------------------------------------------------------------------------------------------------------


def observed(harness: StoreHarness, witness: Witness) -> str:
    """What the witness sees, as text."""

    async def run() -> str:
        async with prepared(harness) as context:
            return ascii(await witness(context))

    return asyncio.run(run())


def see_the_fault(fault: Mutant | Fault) -> None:
    """Fail unless the witness sees the same on a sound store every time, and something else on the faulty one: at one
    look of several, since a witness that reads during a write may come too late on a busy machine.
    """
    sound = observed(fault.plain(), fault.witness)
    assert any(observed(fault.harness(), fault.witness) != sound for _ in range(LOOKS))
    assert observed(fault.plain(), fault.witness) == sound


def look_for_the_fault(check: Check, make: Callable[[], StoreHarness], tier: Tier = Tier.QUICK, seed: int = 0) -> None:
    """Run the check until it finds something; only one that depends on timing may look again, with other seeds.

    It has a minute for its rounds, so that it gets as far on a busy machine as on a quiet one.
    """
    for again in range(LOOKS if check.depends_on_timing else 1):
        run_check(check, make(), Settings(tier, seed + again, seconds=60.0))


def marked(mutants: Iterable[Mutant]) -> list[Any]:
    marks = [pytest.mark.slow]
    return [pytest.param(m, id=m.name, marks=marks if m.slow else []) for m in mutants]


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
def test_the_fault_can_be_seen(mutant: Mutant) -> None:
    """A witness sees the same on a sound store every time, and something else on the mutant."""
    see_the_fault(mutant)


@pytest.mark.parametrize("mutant", marked(MUTANTS))
def test_the_mutant_is_killed(mutant: Mutant, record_property: Callable[[str, object], None]) -> None:
    """The named check finds the fault, and names the clause; or the store's own error, where the fault is one."""
    check = CHECKS[mutant.killed_by]
    fault = {"wrong": mutant.wrong, "source": mutant.source, "clause": mutant.clause, "killed_by": mutant.killed_by}
    record_property("mutant", {"mutant": mutant.name, **fault})
    assert mutant.clause in check.clauses
    with pytest.raises(Exception) as caught:
        look_for_the_fault(check, mutant.harness, mutant.tier)
    if mutant.raises:
        assert mutant.raises in f"{caught.typename}: {caught.value}"
    else:
        assert caught.type is Violation
        assert mutant.clause in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mutant", "check_id"),
    [pytest.param(m, check_id, id=f"{m.name}-{check_id}") for m in MUTANTS for check_id in m.also],
)
def test_the_mutant_is_killed_elsewhere(mutant: Mutant, check_id: str) -> None:
    """Further checks that a mutant names find it, too."""
    with pytest.raises(Exception):  # noqa: B017
        look_for_the_fault(CHECKS[check_id], mutant.harness)


def test_there_are_enough() -> None:
    """The zoo has more than eighty mutants and more than twelve angels, and the faults of the KODE SDK are in it."""
    assert len(MUTANTS) >= 80
    assert sum(mutant.is_of_the_sdk for mutant in MUTANTS) >= 50
    assert len(ANGELS) >= 20


def test_every_check_kills_a_mutant() -> None:
    """Each check is the one that must find some mutant, or found one of the rounds: none is there for nothing."""
    useful = {check_id for mutant in MUTANTS for check_id in (mutant.killed_by, *mutant.also)}
    useful |= {story.now.own for story in records().values() if story.now.own}
    assert set(CHECKS) - useful == IDLE
    assert useful <= set(CHECKS)


def test_the_kill_matrix_names_later_tiers(tmp_path: Path) -> None:
    """A row has the tier of a fault that the first tier does not find, and is read again with it."""
    late = next(mutant for mutant in MUTANTS if mutant.tier is Tier.STANDARD)
    crash = next(mutant for mutant in MUTANTS if CHECKS[mutant.killed_by].tier is Tier.STANDARD)
    early = next(mutant for mutant in MUTANTS if max(mutant.tier, CHECKS[mutant.killed_by].tier) is Tier.QUICK)
    rows = [
        Row(m.name, m.wrong, m.source, "memory", m.clause, m.killed_by, True, (), 1, 0.0) for m in (late, crash, early)
    ]
    page = tmp_path / "page.md"
    page.write_text(as_markdown(rows, everything=False))
    assert f"`{late.killed_by}` (standard) |" in page.read_text()
    assert f"`{crash.killed_by}` (standard) |" in page.read_text()
    assert f"`{early.killed_by}` |" in page.read_text()
    assert set(kept(page)) == {late.name, crash.name, early.name}


def test_a_run_that_is_too_dear_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The budget counts the CPU of all checks; the dearest checks are printed, with what they are worth."""
    dear = MUTANTS[0].killed_by
    report = run_suite(PlainMemory(), Settings(), [dear])
    results = [msgspec.structs.replace(one, cpu=61.0 if one.check == dear else 0.0) for one in report.results]
    page = tmp_path / "plain.json"
    page.write_bytes(as_json(msgspec.structs.replace(report, results=tuple(results))))
    for most, code in (("60", 1), ("61", 0)):
        monkeypatch.setattr("sys.argv", ["worth", f"{page}", "--dearest", "1", "--most", most])
        assert worth.main() == code
    told = capsys.readouterr()
    assert told.out.count(dear) == 2
    assert told.err == "the run took 61.0 s of CPU, and may take 60 s\n"
    assert gc.get_freeze_count() == 0


# --- stores that do nothing -------------------------------------------------------------------------------------------


def passes(check: Check, harness: StoreHarness) -> bool:
    """Whether the store passes; a check that has no end passes nothing, nor one that cannot tell."""
    with suppress(Exception):
        run_check(check, harness)
        return True
    return False


def passed(checks: Sequence[Check], harness: StoreHarness, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The checks that pass, in their own time, which is cut short: who does nothing needs none."""
    monkeypatch.setattr("kode_conformance.running.runner.SCALE", 8 / 60)
    return {check.id for check in checks if passes(check, harness)}


@pytest.mark.parametrize("error", ERRORS)
def test_a_store_that_raises_passes_nothing(error: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No check is content with errors, whatever they are."""
    assert passed(in_this_process(Tier.STANDARD), raising(error), monkeypatch) == set()


@pytest.mark.slow
@pytest.mark.parametrize("area", areas(set(CHECKS.values()) - set(in_this_process(Tier.STANDARD))))
def test_a_store_that_raises_in_other_processes_passes_nothing(area: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor are the checks that start processes, of the first tier."""
    checks = [check for check in areas(set(CHECKS.values()) - set(in_this_process()))[area] if check.tier is Tier.QUICK]
    assert passed(checks, raising("RuntimeError"), monkeypatch) == set()


@pytest.mark.slow
@pytest.mark.parametrize("area", areas(in_this_process(Tier.STANDARD)))
@pytest.mark.parametrize("harness", [NullHarness(), ForgetfulHarness()], ids=lambda harness: harness.name)
def test_a_store_that_keeps_nothing_passes_nothing(
    harness: StoreHarness, area: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that keeps nothing passes only what is tagged ``absence_ok``, with and without checking its arguments."""
    checks = areas(in_this_process(Tier.STANDARD))[area]
    before = busy_loops()
    assert passed(checks, harness, monkeypatch) <= {check.id for check in checks if check.absence_ok}
    assert busy_loops() == before  # no check goes round for ever over a store that never gives way


def busy_loops() -> int:
    """How many checks hold the event loop of their thread still."""
    return sum(thread.name == "kode-conformance" for thread in threading.enumerate())


def test_absence_is_ok_where_it_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that is tagged ``absence_ok`` is passed by a store that keeps nothing, or cannot be verified."""
    for check in in_this_process():
        if check.absence_ok:
            with suppress(Unverified):
                run_check(check, ForgetfulHarness())


# --- what does nothing wrong ------------------------------------------------------------------------------------------


def checks_for(harness: type[Any]) -> list[Check]:
    """What an angel must pass: the first tier without other processes and without the heaviest."""
    capabilities = capabilities_of(harness())
    return [
        check
        for check in in_this_process()
        if not check.needs & ~capabilities
        and check.id not in HEAVY
        and not any(part in check.id for part in getattr(harness, "without", ()))
    ]


def verified(check: Check, harness: StoreHarness) -> None:
    with suppress(Unverified):
        run_check(check, harness)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("angel", "area"), [(name, area) for name, angel in ANGELS.items() for area in areas(checks_for(angel))]
)
def test_the_angel_passes(angel: str, area: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that is only odd passes the checks of the first tier."""
    harness: Any = ANGELS[angel]
    for target, value in harness.patches.items():
        monkeypatch.setattr(target, value)
    for check in areas(checks_for(harness))[area]:
        verified(check, harness())


@pytest.mark.parametrize("plain", [PlainMemory, PlainJson, PlainSqlite])
def test_what_mutants_are_made_of_is_sound(plain: type[ZooHarness]) -> None:
    """The bases of the zoo pass checks of every area."""
    for checks in areas(checks_for(plain)).values():
        verified(checks[0], plain())
