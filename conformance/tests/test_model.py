"""What the random checks are made of: histories, hostile values, judges of concurrent histories, schedules."""

from __future__ import annotations

import asyncio
import itertools
import random
import re
import sys
import threading
import time
from collections import Counter
from typing import Any

import pytest
from kode_conformance.builtin import MemoryHarness
from kode_conformance.context import prepared
from kode_conformance.histories import schedules
from kode_conformance.histories.findings import How
from kode_conformance.histories.linearize import Call, log_problem, offsets_problem, register_problem
from kode_conformance.histories.machine import Machine
from kode_conformance.histories.making import DOCUMENTS, EDITS, history
from kode_conformance.histories.schedules import Schedule, interleaved
from kode_conformance.histories.shrinking import shortest
from kode_conformance.histories.steps import Step, listed
from kode_conformance.histories.vocabulary import FAMILIES, REFUSED, VALUES, base_of, demand_of
from kode_conformance.instruments.pace import in_time
from kode_conformance.settings import Settings
from kode_conformance.values.free_form_fields import FIELD_USES
from kode_conformance.values.payloads import PAYLOADS
from kode_conformance.values.strategies import hostile_text, hostile_value, is_exact_json, parts, simpler

from kode_core.errors import InvalidValueError
from kode_core.jsonvalue import encode_json


def stored(value: object) -> bool:
    """Whether the core takes a value."""
    try:
        encode_json(value, "a value")
    except InvalidValueError:
        return False
    return True


# --- Histories --------------------------------------------------------------------------------------------------------


def histories(seed: int, count: int) -> list[list[Step]]:
    """With every kind of call."""
    rng = random.Random(seed)
    more, newer = {"reopen": 3, "batch_fork": 3, "delete_many": 3}, {**EDITS, **DOCUMENTS}
    return [history(rng, 30, more, newer=newer if i % 2 else None) for i in range(count)]


def test_a_seed_makes_one_sequence_of_histories() -> None:
    """The same random numbers make the same histories, others other ones; together they hold all there is."""
    assert histories(7, 40) == histories(7, 40) != histories(8, 40)
    steps = [step for steps in histories(7, 200) for step in steps]
    named = {base_of(name) for step in steps for name in step.names()}
    assert named >= set(VALUES) - {"t0", "t1"}
    assert {step.op for step in steps} > {"save_turn", "append_events", "delete", "reopen", "batch_fork", "delete_many"}
    assert {step.op for step in steps} > {*EDITS, *DOCUMENTS}
    assert {step.expect for step in steps} == {"", "present", "old", "absent"}
    assert {demand_of(name) for step in steps for name in step.names()} == {"", "present", "old", "absent"}
    assert {step.agent for step in steps} >= {"a", "A", "ab", "a/b", "a_b", "f1", "f2"}
    assert {name[:2] for step in steps for name in step.names()} >= set(FAMILIES)


def test_most_histories_are_of_few_kinds_of_calls() -> None:
    """So that each is made often."""
    kinds = [len({step.op for step in steps}) for steps in histories(7, 100)]
    assert sum(kind <= 9 for kind in kinds) > 60
    assert max(kinds) > 10


async def test_a_history_is_shortened_to_what_matters() -> None:
    """What is left of a history is what makes it fail, each step as simple as can be."""
    steps = history(random.Random(1), 60, {})
    steps[20:20] = [Step("save_messages", "a", (("m0", "m3", "m1"),), via=1, seen_by=1)]
    steps[50:50] = [Step("append_events", "A", (("e0", "e1"),), via=1, seen_by=1)]

    async def fails(candidate: list[Step]) -> bool:
        saved = [i for i, s in enumerate(candidate) if s.op == "save_messages" and "m3" in s.args[0]]
        return any(s.op == "append_events" and saved and i > saved[0] for i, s in enumerate(candidate))

    short = await shortest(steps, fails, seconds=20)
    assert short == [Step("save_messages", "a", (("m3",),)), Step(short[1].op, short[1].agent, ((),))]
    assert listed(short).splitlines()[:2] == [
        "  1. store 1: save_messages(a, [m3])",
        f"  2. store 1: {short[1].op}({short[1].agent}, [])",
    ]


async def test_shortening_ends_in_time() -> None:
    """However slow a failing history is to run, shortening it ends."""
    steps, runs = history(random.Random(1), 60, {}), 0

    async def fails(_: list[Step]) -> bool:
        nonlocal runs
        runs += 1
        await asyncio.sleep(0.05)
        return True

    assert len(await shortest(steps, fails, seconds=0.2)) < len(steps)
    assert runs <= 6


async def test_the_machine_takes_every_kind_of_step() -> None:
    """Every call with every value, one after the other, on a store that is right."""
    steps = history(random.Random(3), 600, {"batch_fork": 5, "delete_many": 5})
    assert {name for step in steps for name in step.names()} > {name for name in REFUSED if name[0] != "x"}
    async with prepared(MemoryHarness()) as ctx:
        await Machine(ctx, "x-", [ctx.store, await ctx.another()], How(queries=True)).run(steps)


async def test_the_machine_takes_every_newer_step() -> None:
    """Every call of an extended store, some of which demand versions, next to all others."""
    rng = random.Random(3)
    async with prepared(MemoryHarness()) as ctx:
        stores: list[Any] = [ctx.store, await ctx.another()]
        for i in range(30):
            steps = history(rng, 60, {"batch_fork": 2, "acquire": 4, "release": 3}, newer={**EDITS, **DOCUMENTS})
            await Machine(ctx, f"{i}-", stores, How(queries=True, versions=True, documents=True)).run(steps)


async def test_a_shortened_step_demands_nothing_that_is_not_needed() -> None:
    """A version that is demanded in vain is left out, of an agent and of a document."""
    steps = [
        Step("save_messages", "a", (("m0",),), expect="old"),
        Step("write_documents", "a", (("x0@old", "x1@present"),), via=1),
        Step("put_document", "a", ("x0:collection", "x0:key", "x0:value"), expect="absent"),
    ]

    async def fails(candidate: list[Step]) -> bool:
        return any("x0@old" in step.args[0] for step in candidate if step.op == "write_documents")

    (step,) = await shortest(steps, fails, seconds=5)
    assert step == Step("write_documents", "a", (("x0@old",),))
    assert listed([step]).splitlines()[0] == "  1. store 1: write_documents(a, [x0@old])"


# --- Hostile values ---------------------------------------------------------------------------------------------------


def test_what_json_can_carry_is_judged_as_the_core_does() -> None:
    """The suite's own judgement and the core's agree on the corpus, and on random values put together."""
    rng = random.Random(0)
    values = [payload.value for payload in PAYLOADS] + [hostile_value(rng) for _ in range(2000)]
    assert [v for v in values if is_exact_json(v) != stored(v)] == []
    refused = sum(not is_exact_json(value) for value in values)
    assert 0.05 < refused / len(values) < 0.4


def test_random_values_are_hostile() -> None:
    """Three hundred values have each of the things in them that stores get wrong."""
    rng = random.Random(0)
    values = [part for _ in range(300) for part in parts(hostile_value(rng))]
    texts = [value for value in values if type(value) is str]
    assert sum("\0" in text for text in texts) > 30
    assert sum(re.search("[\ud800-\udfff]", text) is not None for text in texts) > 30
    assert sum(repr(value) == "-0.0" for value in values) > 3
    assert sum(type(value) is int and abs(value) > 2**53 for value in values) > 20
    assert max(map(len, (hostile_text(rng) for _ in range(100)))) >= 300


def test_simpler_values_end() -> None:
    """Taking simpler values again and again ends with nothing left to simplify."""
    rng = random.Random(5)
    for value in (hostile_value(rng) for _ in range(50)):
        for _ in range(10_000):
            options = list(itertools.islice(simpler(value), 50))
            if not options:
                break
            value = rng.choice(options)
        assert list(simpler(value)) == []


def test_places_have_names_of_their_own() -> None:
    """Every free-form field is there once, and each builds a record that holds the value."""
    assert len({place.name for place in FIELD_USES}) == len(FIELD_USES)
    mark = "the mark"
    for place in FIELD_USES:
        value = next(v for v in (mark, {"x": mark}) if place.holds.fits(v))
        assert mark in repr(place.record(value)), place.name


# --- Registers --------------------------------------------------------------------------------------------------------


def write(value: int | None, start: int, end: int | None) -> Call:
    return Call(0, "write", value, start, end)


def read(value: int | None, start: int, end: int) -> Call:
    return Call(1, "read", value, start, end)


RIGHT = {
    "nothing": [],
    "empty at first": [read(None, 0, 1), write(1, 2, 3)],
    "old or new meanwhile": [write(1, 0, 1), write(2, 2, 9), read(2, 3, 4), read(2, 5, 6)],
    "writes overlap": [write(1, 0, 9), write(2, 0, 9), read(1, 10, 11), read(1, 12, 13)],
    "a cancelled write happened": [write(1, 0, None), read(None, 1, 2), read(1, 3, 4)],
    "a cancelled write did not": [write(1, 0, None), read(None, 100, 200)],
    "deleted": [write(1, 0, 1), write(None, 2, 3), read(None, 4, 5)],
}
WRONG = {
    "never written": [write(1, 0, 1), read(2, 2, 3)],
    "lost": [write(1, 0, 1), write(2, 2, 3), read(1, 4, 5)],
    "back in time": [write(1, 0, 1), write(2, 2, 9), read(2, 3, 4), read(1, 5, 6)],
    "from the future": [read(1, 0, 1), write(1, 2, 3)],
    "two readers disagree": [write(1, 0, 9), write(2, 0, 9), read(1, 10, 11), read(2, 12, 13)],
    "comes back": [write(1, 0, 1), write(None, 2, 3), read(None, 4, 5), read(1, 6, 7)],
    "cancelled twice": [write(1, 0, None), write(2, 1, 2), read(1, 3, 4), read(2, 5, 6)],
}


@pytest.mark.parametrize("name", RIGHT)
def test_histories_that_have_an_order(name: str) -> None:
    """Nothing is said against them."""
    assert register_problem(RIGHT[name]) == ""


@pytest.mark.parametrize("name", WRONG)
def test_histories_that_have_none(name: str) -> None:
    """They are told as a timeline whose bars tell starts and ends apart."""
    problem = register_problem(WRONG[name])
    assert 1 <= problem.count("client") <= len(WRONG[name])
    assert "[=" in problem


def test_the_end_of_a_history_is_not_blamed_on_what_came_after() -> None:
    """Only the calls up to the first that cannot be explained are shown."""
    later = [read(1, 100 + i, 101 + i) for i in range(0, 40, 2)]
    assert "100" not in register_problem([*WRONG["lost"], *later])
    assert register_problem([*WRONG["lost"], *later]).count("client") == 3


def explained(calls: list[Call]) -> bool:
    """By trying every order of every choice of the writes that were cancelled."""
    sure = [call for call in calls if call.end is not None]
    open_ones = [call for call in calls if call.end is None]
    chosen = (c for n in range(len(open_ones) + 1) for c in itertools.combinations(open_ones, n))
    return any(fits(order) for some in chosen for order in itertools.permutations([*sure, *some]))


def fits(order: tuple[Call, ...]) -> bool:
    value = None
    for i, call in enumerate(order):
        if any(later.end is not None and later.end < call.start for later in order[i + 1 :]):
            return False
        if call.op == "read" and call.value != value:
            return False
        value = call.value
    return True


def test_registers_are_judged_as_by_trying_every_order() -> None:
    """On five hundred small random histories the search and brute force agree; both verdicts occur often."""
    rng, verdicts = random.Random(2), Counter[bool]()
    for _ in range(500):
        calls = []
        for client in range(3):
            now = rng.randint(0, 3)
            for _ in range(2):
                end = now + rng.randint(1, 5)
                op = rng.choice(("write", "read"))
                gone = op == "write" and rng.random() < 0.2
                calls.append(Call(client, op, rng.choice((None, 1, 2)), now, None if gone else end))
                now = end + rng.randint(1, 2)
        verdict = explained(calls)
        verdicts[verdict] += 1
        assert (register_problem(calls) == "") is verdict, calls
    assert min(verdicts[True], verdicts[False]) > 100


# --- Logs -------------------------------------------------------------------------------------------------------------


def append(entries: list[int], start: int, end: int | None) -> Call:
    return Call(0, "append", entries, start, end)


def saw(entries: list[int], start: int, end: int) -> Call:
    return Call(1, "read", entries, start, end)


@pytest.mark.parametrize(
    ("calls", "final", "found"),
    [
        ([append([1], 0, 1), append([2], 2, 3), saw([1], 1, 2)], [1, 2], ""),
        ([append([1], 0, 9), append([2], 0, 9)], [2, 1], ""),
        ([append([1], 0, None), append([2], 1, 2)], [2], ""),
        ([append([1], 0, None), append([2], 1, 2)], [2, 1], ""),
        ([append([1], 0, 1), append([2], 2, 3), append([1], 4, 5)], [1, 2], ""),
        ([append([1], 0, 1)], [1, 1], "more than once"),
        ([append([1], 0, 1)], [1, 2], "nobody appended"),
        ([append([1], 0, 1)], [], "lost"),
        ([append([1, 2], 0, None)], [1], "lost"),
        ([append([1, 2], 0, 9), append([3], 0, 9)], [1, 3, 2], "not in one piece"),
        ([append([1, 2], 0, 9)], [2, 1], "not in one piece"),
        ([append([1], 0, 1), append([2], 2, 3)], [2, 1], "stands before"),
        ([append([1], 0, 9), append([2], 0, 9), saw([2], 1, 2)], [1, 2], "no beginning"),
        ([append([1], 0, 1), saw([], 2, 3)], [1], "did not see"),
        ([append([1, 2], 0, 9), saw([1], 2, 3)], [1, 2], "a part of"),
        ([append([1], 0, 9), saw([1], 1, 2), saw([], 3, 4)], [1], "less than one before"),
    ],
)
def test_logs_are_judged(calls: list[Call], final: list[int], found: str) -> None:
    """Losses, repeats, torn groups, disorder, and readers that see something else."""
    problem = log_problem(calls, final, contiguous=True)
    assert found in problem
    assert bool(found) is bool(problem)


def test_offsets_are_judged() -> None:
    """They grow, and everybody is told the same."""
    assert offsets_problem([(7, 1), (8, 3)], [(7, 1), (8, 3)]) == ""
    assert "do not grow" in offsets_problem([], [(7, 3), (8, 1)])
    assert "was told to be at 2" in offsets_problem([(7, 2)], [(7, 1)])


# --- Schedules --------------------------------------------------------------------------------------------------------


async def lost_updates(schedule: Schedule, seeds: int) -> int:
    """In how many of the seeds a counter that is read, and written two steps later, loses an update."""
    lost = 0
    for seed in range(seeds):
        counter = 0

        async def client(steps: int) -> None:
            nonlocal counter
            for _ in range(steps):
                await asyncio.sleep(0)
            before = counter
            await asyncio.sleep(0)
            counter = before + 1

        await interleaved(schedule, random.Random(seed), [lambda: client(0), lambda: client(3)])
        lost += counter != 2
    return lost


async def test_shuffling_finds_what_starting_together_does_not() -> None:
    """Two updates that never meet when their tasks start together meet in some shuffled orders, and not in all."""
    assert await lost_updates(Schedule.TOGETHER, 40) == 0
    assert 5 < await lost_updates(Schedule.SHUFFLED, 40) < 40


async def test_shuffled_tasks_use_threads_and_timers() -> None:
    """Under the shuffled schedule everything else of the loop works on: threads, timers, callbacks in their order."""
    order: list[int] = []
    loop = asyncio.get_running_loop()

    async def client(number: int) -> None:
        for i in range(20):
            assert await asyncio.to_thread(pow, number, i) == number**i
            await asyncio.sleep(0.0001)
            loop.call_soon(order.append, number * 100 + i)

    for seed in range(3):
        order.clear()
        await interleaved(Schedule.SHUFFLED, random.Random(seed), [lambda n=n: client(n) for n in range(5)])
        await asyncio.sleep(0)
        assert len(order) == 100
        for number in range(5):
            assert [n for n in order if n // 100 == number] == list(range(number * 100, number * 100 + 20))


async def test_threads_may_call_in_all_the_while() -> None:
    """Drivers that work in threads put callbacks into the loop while it takes steps out, and none is lost."""
    loop, stop, sent, heard = asyncio.get_running_loop(), threading.Event(), list[int](), list[int]()

    def call_in() -> None:
        while not stop.is_set():
            time.sleep(0.00005)
            sent.append(1)
            loop.call_soon_threadsafe(heard.append, 1)

    async def client() -> None:
        for _ in range(100):
            await asyncio.to_thread(pow, 2, 3)

    thread, interval = threading.Thread(target=call_in), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread.start()
    try:
        for seed in range(3):
            await interleaved(Schedule.SHUFFLED, random.Random(seed), [client] * 6)
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(interval)
    await asyncio.sleep(0.01)
    assert len(heard) == len(sent) > 0


async def test_an_unknown_loop_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a Python that was never tried, shuffled clients start staggered instead."""
    monkeypatch.setattr(schedules, "_TRIED_UP_TO", (3, 0))
    assert not schedules.shuffling_works()
    assert await lost_updates(Schedule.SHUFFLED, 5) <= 5


async def test_the_first_error_ends_all_clients() -> None:
    """When a client fails the others are ended, and the error comes out."""
    ended = asyncio.Event()

    async def waits() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    async def fails() -> None:
        await asyncio.sleep(0.01)
        raise KeyError("from a client")

    with pytest.raises(KeyError):
        await interleaved(Schedule.STAGGERED, random.Random(0), [waits, fails])
    assert ended.is_set()


@pytest.mark.parametrize(("seconds", "rounds"), [(60.0, 5), (0.0, 1)])
async def test_slow_stores_get_fewer_rounds(seconds: float, rounds: int) -> None:
    """When the time for them is used up a check ends, after one round at least."""
    async with prepared(MemoryHarness(), Settings(seconds=seconds)) as ctx:
        assert len(list(in_time(ctx, range(5)))) == rounds
