"""Load on a store while something happens to its server, and the judgement afterwards."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, Protocol

from kode_conformance.instruments.patience import within
from kode_conformance.values import samples
from kode_core.errors import Retry, StorageError
from kode_core.model import Message
from kode_core.protocols import ExtendedStore

__all__ = ["Append", "AppendLog", "Appends", "Read", "give_up"]


class Appends(Protocol):
    """The target of the load: a store, or the control that takes its place."""

    async def append_messages(self, agent_id: str, messages: Sequence[Message]) -> None: ...
    async def load_messages(self, agent_id: str) -> list[Message]: ...


class Append(NamedTuple):
    """A call that appended; ``returned`` is infinity if the outcome is unknown."""

    text: str
    called: float
    returned: float


class Read(NamedTuple):
    """A call that read, and its result."""

    called: float
    returned: float
    texts: list[str]


class AppendLog:
    """Writers that each append texts of their own to one agent, readers that load all, and the outcome of each call."""

    def __init__(self, store: Appends, agent_id: str = "log") -> None:
        self.store, self.agent_id = store, agent_id
        self.done: list[Append] = []
        self.in_doubt: list[Append] = []
        self.refused: list[str] = []
        self.reads: list[Read] = []
        self.errors: list[StorageError] = []

    async def append(self, text: str) -> None:
        called = time.monotonic()
        try:
            await self.store.append_messages(self.agent_id, [samples.message(text=text)])
        except StorageError as exc:
            self.errors.append(exc)
            if exc.retry is Retry.CHECK:
                self.in_doubt.append(Append(text, called, math.inf))
            else:
                self.refused.append(text)
        else:
            self.done.append(Append(text, called, time.monotonic()))

    async def write(self, writer: int, count: int) -> None:
        for number in range(count):
            await self.append(f"{writer}:{number}")

    async def read(self) -> None:
        called = time.monotonic()
        try:
            messages = await self.store.load_messages(self.agent_id)
        except StorageError as exc:
            self.errors.append(exc)
        else:
            self.reads.append(Read(called, time.monotonic(), [message.text for message in messages]))

    @asynccontextmanager
    async def load(self, writers: int = 4, readers: int = 1) -> AsyncIterator[None]:
        """Write and read until the block ends. When it begins, calls have been made, and when it ends, some more."""
        stop = asyncio.Event()

        async def write(writer: int) -> None:
            number = 0
            while not stop.is_set():
                await self.append(f"{writer}:{number}")
                number += 1
                await asyncio.sleep(0.001)

        async def read() -> None:
            while not stop.is_set():
                await self.read()
                await asyncio.sleep(0.01)

        tasks = [asyncio.ensure_future(write(n)) for n in range(writers)]
        tasks += [asyncio.ensure_future(read()) for _ in range(readers)]
        try:
            await self.more(20)
            yield
            await self.more(20)
        finally:
            stop.set()
            await asyncio.gather(*tasks)

    async def more(self, count: int, seconds: float = 60) -> None:
        """Wait until that many more appends were acknowledged."""
        goal = len(self.done) + count
        async with within(seconds):
            while len(self.done) < goal:
                await asyncio.sleep(0.005)

    async def problems(self, store: Appends) -> list[str]:
        """The faults that *store* shows at the end; empty if there are none."""
        stored = [message.text for message in await store.load_messages(self.agent_id)]
        counts, places = Counter(stored), {text: place for place, text in enumerate(stored)}
        known = {append.text for append in self.done + self.in_doubt} | set(self.refused)
        found = [
            *(f"acknowledged and lost: {append.text}" for append in self.done if append.text not in counts),
            *(f"refused and there: {text}" for text in self.refused if text in counts),
            *(f"there {count} times: {text}" for text, count in counts.items() if count > 1),
            *(f"written by nobody: {text}" for text in counts if text not in known),
        ]
        latest = -1.0
        for append in sorted(self.done, key=lambda append: places.get(append.text, -1)):
            if append.returned < latest:
                found.append(f"before one that was acknowledged before it was called: {append.text}")
            latest = max(latest, append.called)
        for read in self.reads:
            if read.texts != stored[: len(read.texts)]:
                found.append(f"a read of {len(read.texts)} that is no beginning of what is there")
            missed = {a.text for a in self.done if a.returned < read.called} - set(read.texts)
            found += [f"acknowledged before a read that lacks it: {text}" for text in sorted(missed)]
        return found


async def give_up(store: ExtendedStore, rng: random.Random, count: int) -> None:
    """Make so many calls of all kinds, ten at a time, and cancel each after at most 10 ms. The agent is ``a``."""
    new = [samples.message(text="new")]
    await store.save_turn("a", messages=new, info=samples.info("a"))

    async def one(number: int) -> None:
        calls: list[Callable[[], Awaitable[Any]]] = [
            lambda: store.append_messages(f"a{number % 7}", new),
            lambda: store.save_messages(f"a{number % 7}", new),
            lambda: store.load_messages("a"),
            lambda: store.append_event("a", samples.event(number)),
            lambda: store.delete(f"a{number % 7}"),
            lambda: store.batch_fork("a", 2),
        ]
        task = asyncio.ensure_future(rng.choice(calls)())
        await asyncio.sleep(rng.uniform(0, 0.01))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    for start in range(0, count, 10):
        await asyncio.gather(*(one(number) for number in range(start, start + 10)))
