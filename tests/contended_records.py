"""Writers of one agent over a record store that is some time away: time is simulated, and calls are counted."""

from __future__ import annotations

import asyncio
import inspect
import random
import selectors
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from kode_conformance.values import samples

from kode_core import KodeError
from kode_core.engines.record.engine import RecordEngine
from kode_core.store import EngineStore
from tests.memory_records import Contents, MemoryRecords

__all__ = ["Contest", "contest"]

ROUND_TRIP = 0.002
_ROOM: dict[str, Any] = {"inline_bytes": 100_000, "part_bytes": 350_000}


class _Selector(selectors.SelectSelector):
    """Nobody waits for a clock: when all wait, it is later."""

    clock = 1e6

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.clock += timeout or 0
        return super().select(0)


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.selector = _Selector()
        super().__init__(self.selector)

    def time(self) -> float:
        return self.selector.clock


class _Far(MemoryRecords):
    """What is called takes effect in the middle of a round trip, whose length is drawn by lot."""

    def __init__(
        self, contents: Contents, rng: random.Random, calls: Counter[str], round_trip: float, **options: Any
    ) -> None:
        super().__init__(contents, **options)
        self._rng = rng
        self._round_trip = round_trip
        self._calls = calls

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name.startswith("_") or name == "step" or not inspect.iscoroutinefunction(found):
            return found
        return super().__getattribute__("_travelling")(name, found)

    def _travelling(self, name: str, call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def travel(*args: Any, **kwargs: Any) -> Any:
            self._calls[name] += 1
            length = self._round_trip * self._rng.uniform(0.7, 1.3)
            await asyncio.sleep(length / 2)
            found = await call(*args, **kwargs)
            await asyncio.sleep(length / 2)
            return found

        return travel


class Contest:
    """How a contest went.

    Attributes:
        wrote: how many writes of each writer were acknowledged while all wrote.
        calls: of the record stores, until then.
        longest: the longest time between two acknowledged writes of one writer.
        rate: acknowledged writes in a second of the simulation.
    """

    def __init__(self, writers: int) -> None:
        self.wrote = [0] * writers
        self.calls = Counter[str]()
        self.errors = Counter[str]()
        self.longest = 0.0
        self.rate = 0.0

    @property
    def calls_per_write(self) -> float:
        return self.calls.total() / max(sum(self.wrote), 1)

    @property
    def least_share(self) -> float:
        """The part of a fair share that the slowest writer had."""
        return min(self.wrote) * len(self.wrote) / max(sum(self.wrote), 1)


async def _contend(
    found: Contest, seconds: float, seed: int, pauses: dict[int, float], round_trip: float, options: dict[str, Any]
) -> None:
    contents, rng, loop = Contents(), random.Random(seed), asyncio.get_running_loop()
    is_over = False

    async def store() -> EngineStore:
        engine = RecordEngine(_Far(contents, rng, found.calls, round_trip, **{**_ROOM, **options}))

        async def opened() -> RecordEngine:
            return engine

        return await EngineStore(opened).open()

    async def write(n: int, one: EngineStore) -> None:
        last = loop.time()
        seq = 0
        while not is_over:
            seq += 1
            try:
                await one.append_messages("a", [samples.message(0, f"{n}/{seq}")])
            except KodeError as exc:
                found.errors[type(exc).__name__] += 1
                continue
            if not is_over:
                found.wrote[n] += 1
            found.longest = max(found.longest, loop.time() - last)
            await asyncio.sleep(pauses.get(n, 0))
            last = loop.time()

    stores = [await store() for _ in found.wrote]
    await stores[0].append_messages("a", [samples.message(0, "first")])
    found.calls.clear()
    writing = [asyncio.ensure_future(write(n, one)) for n, one in enumerate(stores)]
    await asyncio.sleep(seconds)
    is_over, calls = True, found.calls.copy()
    await asyncio.gather(*writing)
    found.calls, found.rate = calls, sum(found.wrote) / seconds
    stored = [message.text for message in await stores[0].load_messages("a")]
    assert len(set(stored)) == len(stored) >= sum(found.wrote), "a write was lost, or done twice"
    for one in stores:
        await one.close()


def contest(
    writers: int,
    monkeypatch: pytest.MonkeyPatch,
    *,
    seconds: float = 10.0,
    seed: int = 0,
    pauses: dict[int, float] | None = None,
    round_trip: float = ROUND_TRIP,
    **options: Any,
) -> Contest:
    """Have so many stores append to one agent, each one message after the other; some with a pause after each."""
    loop, found = _Loop(), Contest(writers)
    random.seed(seed)
    with monkeypatch.context() as patch:
        patch.setattr(time, "monotonic", loop.time)
        try:
            loop.run_until_complete(_contend(found, seconds, seed, pauses or {}, round_trip, options))
        finally:
            loop.close()
    return found
