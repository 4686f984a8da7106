"""The deadlines of calls, which share one timer of the event loop."""

from __future__ import annotations

import asyncio

import pytest

from kode_core.store.deadlines import Deadline, Deadlines


async def test_a_call_that_takes_too_long_is_ended() -> None:
    """The call is cancelled, the error says so by its cause, and the task can go on."""
    with pytest.raises(TimeoutError) as caught, Deadline(Deadlines(), 0.01):
        await asyncio.Event().wait()
    assert isinstance(caught.value.__cause__, asyncio.CancelledError)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_thousand_deadlines_have_one_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls that begin one after the other, or at once, make one timer; the first that is overdue ends first."""
    loop, deadlines, timers = asyncio.get_running_loop(), Deadlines(), 0
    call_at = loop.call_at

    def counting(*args: object, **kwargs: object) -> asyncio.TimerHandle:
        nonlocal timers
        timers += 1
        return call_at(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "call_at", counting)
    ended: list[int] = []

    async def call(i: int) -> None:
        try:
            with Deadline(deadlines, 60):
                await asyncio.Event().wait()
        finally:
            ended.append(i)

    for _ in range(1000):
        with Deadline(deadlines, 60):
            pass
    calls = [asyncio.create_task(call(i)) for i in range(1000)]
    await asyncio.sleep(0)
    assert timers == 1
    for task in calls:
        task.cancel()
    await asyncio.wait(calls)
    assert all(task.cancelled() for task in calls)
    assert ended == list(range(1000))


async def test_a_shorter_deadline_behind_a_longer_one_passes_first() -> None:
    """Deadlines of other lengths are looked at in time, and those that are left after them, too."""
    deadlines, ended = Deadlines(), list[float]()

    async def call(seconds: float) -> None:
        try:
            with Deadline(deadlines, seconds):
                await asyncio.Event().wait()
        except TimeoutError:
            ended.append(seconds)

    longest, *calls = [asyncio.create_task(call(seconds)) for seconds in (600.0, 0.2, 0.1, 0.001)]
    await asyncio.wait(calls)
    assert sorted(ended) == [0.001, 0.1, 0.2]
    assert not longest.done()
    longest.cancel()


@pytest.mark.parametrize("is_late", [False, True])
async def test_a_cancellation_by_others_is_passed_on(is_late: bool) -> None:
    """A task that others cancel is cancelled, also when its deadline passes at that moment."""
    deadline = Deadline(Deadlines(), 60)

    async def call() -> None:
        with deadline:
            await asyncio.Event().wait()

    task = asyncio.create_task(call())
    await asyncio.sleep(0)
    if is_late:
        deadline.expire()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def test_a_deadline_that_rests_does_not_pass() -> None:
    """At rest a deadline has no end; it begins anew with its whole time."""
    with Deadline(Deadlines(), 0.001) as deadline:
        deadline.rest()
        await asyncio.sleep(0.05)
    with pytest.raises(TimeoutError), Deadline(Deadlines(), 0.001) as deadline:
        deadline.rest()
        await asyncio.sleep(0.05)
        deadline.begin_anew()
        await asyncio.Event().wait()
