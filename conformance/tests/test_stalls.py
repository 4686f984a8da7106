"""Checks in a process that stands still for seconds, anywhere: they find nothing wrong with a right store."""

from __future__ import annotations

import asyncio
import inspect
import random
import re
import sys
import time
from asyncio import base_events, events
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from kode_conformance import load_checks
from kode_conformance.builtin import MemoryHarness
from kode_conformance.context import Unverified, Violation
from kode_conformance.harness import Handle
from kode_conformance.instruments.layering import beneath, layers_put
from kode_conformance.instruments.pace import Suspected, TooSlow, judged
from kode_conformance.instruments.patience import after_steps, ended, within
from kode_conformance.registry import Check
from kode_conformance.results import Status
from kode_conformance.running.runner import judge
from kode_conformance.settings import Settings, Tier

from kode_core.layers import Layer
from kode_core.protocols import Store

_STALL_S = 3.0
_RUNS = 8
_LONG_S = 0.5
_RUNS_OF_LONG = 2


class _GivesWay(Layer):
    """Lets others have a turn before and after each call of the engine, as an engine does that waits for its files."""

    async def around(self, verb: str, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        await asyncio.sleep(0)
        found = await call(*args, **kwargs)
        await asyncio.sleep(0)
        return found


class _Harness(MemoryHarness):
    async def open(self, handle: Handle) -> Store:
        return await self.open_with(handle)

    async def open_with(self, handle: Handle, **options: Any) -> Store:
        with beneath(_GivesWay) as is_beneath:
            if is_beneath:
                return await super().open_with(handle, **options)
        with layers_put(_GivesWay):
            return await super().open_with(handle, **options)


class _Clock:
    """The clocks of this process, which step ahead before some of the calls of an event loop, as if it had stood still
    then, and whenever there is nothing to do but wait, so that waiting takes no time. They go on by themselves while a
    thread works.
    """

    def __init__(self, stalls: Collection[int]) -> None:
        self.calls = self.working = 0
        self.ahead = 0.0
        self._stalls = stalls

    def call(self) -> None:
        """Another call of the event loop begins."""
        self.calls += 1
        if self.calls in self._stalls:
            self.ahead += _STALL_S


@contextmanager
def _stalling(stalls: Collection[int] = ()) -> Iterator[_Clock]:
    clock = _Clock(stalls)
    run, once = events.Handle._run, base_events.BaseEventLoop._run_once  # type: ignore[attr-defined]
    in_executor = base_events.BaseEventLoop.run_in_executor
    monotonic, counter, now, now_ns = time.monotonic, time.perf_counter, time.time, time.time_ns

    def run_counted(self: Any) -> None:
        clock.call()
        run(self)

    def run_in_executor(self: Any, *call: Any) -> Any:
        def done(_: object) -> None:
            clock.working -= 1

        clock.working += 1
        future = in_executor(self, *call)
        future.add_done_callback(done)
        return future

    def run_once(self: Any) -> None:
        if not self._ready and self._scheduled and not clock.working:
            wait = self._scheduled[0]._when - self.time()
            self._process_events(self._selector.select(0.0005))
            if not self._ready:
                clock.ahead += max(wait, 0.0)
        once(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(events.Handle, "_run", run_counted)
        patch.setattr(base_events.BaseEventLoop, "_run_once", run_once)
        patch.setattr(base_events.BaseEventLoop, "run_in_executor", run_in_executor)
        patch.setattr(time, "monotonic", lambda: monotonic() + clock.ahead)
        patch.setattr(time, "perf_counter", lambda: counter() + clock.ahead)
        patch.setattr(time, "time", lambda: now() + clock.ahead)
        patch.setattr(time, "time_ns", lambda: now_ns() + int(clock.ahead * 10**9))
        yield clock


def _heeding_time() -> list[Check]:
    """The quick checks of modules that wait, or take leases for a time."""
    sources = {check: inspect.getsource(sys.modules[check.run.__module__]) for check in load_checks()}
    pattern = re.compile(r"ttl_ms|wait_ms|timeout|asyncio\.sleep\(0?\.?[1-9_a-z]|within\(|ended\(|eventually\(")
    return [check for check, source in sources.items() if check.tier is Tier.QUICK and pattern.search(source)]


@pytest.mark.selftest
@pytest.mark.parametrize("check", _heeding_time(), ids=lambda check: check.id)
def test_a_process_that_stands_still_makes_no_fault(check: Check) -> None:
    rng, begun = random.Random(check.id), time.process_time()
    with _stalling() as clock:
        result = judge(check, _Harness(), Settings())
    takes = time.process_time() - begun
    if result.status is not Status.PASS:
        pytest.skip(f"it is {result.status.name}, without a stall: {result.message}")
    for number in range(_RUNS if takes < _LONG_S else _RUNS_OF_LONG):
        stalls = rng.sample(range(1, clock.calls + 1), min(1 + number % 2, clock.calls))
        with _stalling(stalls):
            result = judge(check, _Harness(), Settings())
        assert result.status in (Status.PASS, Status.UNVERIFIED), f"stalls at {stalls}: {result.message}"


# --- the means --------------------------------------------------------------------------------------------------------


def test_a_stall_uses_up_no_limit() -> None:
    async def stall() -> bool:
        async with within(0.2):
            time.sleep(0.5)
            await asyncio.sleep(0.01)
            return True

    assert asyncio.run(stall())


def test_a_limit_ends_what_goes_on() -> None:
    async def wait() -> None:
        async with within(0.2):
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        asyncio.run(wait())


def test_tasks_that_do_not_end_are_left_alone() -> None:
    async def wait() -> tuple[bool, bool, bool]:
        never, soon = asyncio.ensure_future(asyncio.Event().wait()), asyncio.ensure_future(asyncio.sleep(0))
        found = await ended([soon], 20.0), await ended([never, soon], 0.1), never.done()
        never.cancel()
        return found

    assert asyncio.run(wait()) == (True, False, False)


def test_a_task_takes_its_steps() -> None:
    async def step() -> tuple[bool, int]:
        steps = 0

        async def count() -> None:
            nonlocal steps
            while True:
                steps += 1
                await asyncio.sleep(0)

        task = asyncio.ensure_future(count())
        found = await after_steps(task, 5)
        task.cancel()
        return found, steps

    assert asyncio.run(step()) == (True, 5)


@pytest.mark.parametrize(
    ("ends", "made", "wanted"),
    [
        ([None], [1], None),
        ([TooSlow("slow"), None], [1, 3], None),
        ([TooSlow("slow"), Violation("wrong")], [1, 3], Violation),
        ([Suspected("wrong"), TooSlow("slow"), Suspected("wrong")], [1, 3, 9], Violation),
        ([Suspected("wrong"), TooSlow("slow"), TooSlow("slow")], [1, 3, 9], Unverified),
    ],
)
def test_an_attempt_is_made_again_when_it_was_too_slow(
    ends: list[Exception | None], made: list[int], wanted: type[Exception] | None
) -> None:
    tried: list[int] = []

    async def attempt(longer: int) -> None:
        tried.append(longer)
        end = ends[len(tried) - 1]
        if end is not None:
            raise end

    if wanted is None:
        asyncio.run(judged(attempt))
    else:
        with pytest.raises(wanted):
            asyncio.run(judged(attempt))
    assert tried == made
