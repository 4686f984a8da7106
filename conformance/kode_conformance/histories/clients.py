"""Clients that write and read at once, and note their results: tasks of one loop, or other processes."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from kode_conformance.context import Violation
from kode_conformance.histories.linearize import Call
from kode_conformance.histories.schedules import pause
from kode_conformance.values import samples
from kode_core.protocols import Store

__all__ = ["LOGS", "REGISTERS", "Client", "Log", "Register", "append_and_read", "write_and_read"]


class Register(NamedTuple):
    """One value of an agent that is written whole: a number, or None when it is absent."""

    write: Callable[[Store, str, int], Awaitable[object]]
    read: Callable[[Store, str], Awaitable[Any]]


class Log(NamedTuple):
    """A list of numbers that grows at its end.

    Attributes:
        append: adds numbers, and returns their offsets if the log has any.
        read: the numbers, and their offsets.
        contiguous: True if the numbers of one append stand side by side.
        once: True if repeated numbers are not added again.
    """

    append: Callable[[Store, str, list[int]], Awaitable[Sequence[int] | None]]
    read: Callable[[Store, str], Awaitable[tuple[list[int], list[int]]]]
    contiguous: bool
    once: bool


def _copies(number: int) -> int:
    """How many records stand for a number: lists of several lengths, so that a mixture shows."""
    return 1 + number % 4


def _same(numbers: Sequence[Any]) -> Any:
    """The number that all records of a list stand for."""
    if not numbers:
        return None
    torn = set(numbers) != {numbers[0]} or len(numbers) != _copies(numbers[0])
    return f"a mixture, {list(numbers)}" if torn else numbers[0]


async def _messages(store: Store, agent_id: str) -> Any:
    return _same([int(message.text) for message in await store.load_messages(agent_id)])


async def _calls(store: Store, agent_id: str) -> Any:
    return _same([call.result for call in await store.load_tool_call_records(agent_id)])


async def _media(store: Store, agent_id: str) -> Any:
    return _same([record.size_bytes for record in await store.load_media_cache(agent_id)])


async def _todos(store: Store, agent_id: str) -> Any:
    found = await store.load_todos(agent_id)
    return found and found.version


async def _info(store: Store, agent_id: str) -> Any:
    found = await store.load_info(agent_id)
    return found and found.metadata["n"]


async def _snapshot(store: Store, agent_id: str) -> Any:
    found = await store.load_snapshot(agent_id, "s")
    return found and found.last_sfp_index


REGISTERS: Final[Mapping[str, Register]] = {
    "messages": Register(
        lambda s, a, n: s.save_messages(a, [samples.message(text=str(n))] * _copies(n)),
        _messages,
    ),
    "tool calls": Register(
        lambda s, a, n: s.save_tool_call_records(a, [samples.tool_call(i, result=n) for i in range(_copies(n))]),
        _calls,
    ),
    "info": Register(lambda s, a, n: s.save_info(a, samples.info(a, metadata={"n": n})), _info),
    "todos": Register(lambda s, a, n: s.save_todos(a, samples.todos("x").replace(version=n)), _todos),
    "media cache": Register(
        lambda s, a, n: s.save_media_cache(a, [samples.media().replace(size_bytes=n)] * _copies(n)),
        _media,
    ),
    "snapshot": Register(
        lambda s, a, n: s.save_snapshot(a, samples.snapshot("s").replace(last_sfp_index=n)), _snapshot
    ),
}
"""Values that are written whole."""


async def _append_events(store: Store, agent_id: str, seqs: list[int]) -> Sequence[int]:
    if len(seqs) == 1:
        return [await store.append_event(agent_id, samples.event(seqs[0]))]
    return await store.append_events(agent_id, [samples.event(seq) for seq in seqs])


async def _read_events(store: Store, agent_id: str) -> tuple[list[int], list[int]]:
    events = [event async for event in store.read_events(agent_id, after_offset=0)]
    return [event.bookmark.seq for event in events], [event.offset for event in events]


async def _append_messages(store: Store, agent_id: str, numbers: list[int]) -> None:
    await store.append_messages(agent_id, [samples.message(text=str(number)) for number in numbers])


async def _read_messages(store: Store, agent_id: str) -> tuple[list[int], list[int]]:
    numbers = [int(message.text) for message in await store.load_messages(agent_id)]
    return numbers, list(range(len(numbers)))


LOGS: Final[Mapping[str, Log]] = {
    "events": Log(_append_events, _read_events, contiguous=False, once=True),
    "appended messages": Log(_append_messages, _read_messages, contiguous=True, once=False),
}
"""Lists that grow at their end."""


# --- Clients ----------------------------------------------------------------------------------------------------------


class Client:
    """Notes when its calls were made and returned, and cancels some."""

    def __init__(self, number: int, rng: random.Random) -> None:
        self.calls: list[Call] = []
        self._number = number
        self._rng = rng

    async def write(self, op: str, value: Any, call: Awaitable[Any], *, cancelled: bool) -> Any:
        """Await a write, or cancel it after some steps of the loop; return its result."""
        start, task = time.monotonic_ns(), asyncio.ensure_future(call)
        if cancelled:
            for _ in range(self._rng.randint(0, 10)):
                await asyncio.sleep(0)
            task.cancel()
        try:
            await asyncio.wait([task])
        finally:
            task.cancel()
        if task.cancelled() and not cancelled:
            raise Violation(f"the {op} of {value} ended as if it had been cancelled, and nobody had cancelled it")
        end = None if task.cancelled() else time.monotonic_ns()
        result = None if task.cancelled() else task.result()
        self.calls.append(Call(self._number, op, value, start, end))
        return result

    async def call(self, op: str, arg: Any, call: Awaitable[Any], *, cancelled: bool) -> Any:
        """Await a call of an object, or cancel it; note its argument and its answer, and return that."""
        answer = await self.write(op, arg, call, cancelled=cancelled)
        self.calls[-1] = self.calls[-1]._replace(value=[arg, answer])
        return answer

    async def read(self, call: Awaitable[Any]) -> Any:
        """Await a read; return its result. The caller notes it with :meth:`saw`."""
        self._started = time.monotonic_ns()
        return await call

    def saw(self, value: Any) -> None:
        """Note the result of the last read."""
        self.calls.append(Call(self._number, "read", value, self._started, time.monotonic_ns()))


async def write_and_read(
    store: Store,
    agent_id: str,
    register: Register,
    number: int,
    rng: random.Random,
    calls: int,
    *,
    cancel: bool,
    until: float = math.inf,
) -> list[Call]:
    """A client of a register: writes, reads, and now and then deletes the agent. Its values are its own.

    It ends after so many calls, or when *until* has come, on the monotonic clock.
    """
    client = Client(number, rng)
    for i in range(calls):
        if time.monotonic() > until:
            break
        await pause(rng)
        kind = rng.random()
        if kind < 0.5:
            client.saw(await client.read(register.read(store, agent_id)))
        elif kind < 0.56:
            await client.write("write", None, store.delete(agent_id), cancelled=False)
        else:
            value = 1000 * (number + 1) + i
            cancelled = cancel and rng.random() < 0.15
            await client.write("write", value, register.write(store, agent_id, value), cancelled=cancelled)
    return client.calls


async def append_and_read(
    store: Store,
    agent_id: str,
    log: Log,
    number: int,
    rng: random.Random,
    calls: int,
    *,
    cancel: bool,
    until: float = math.inf,
) -> tuple[list[Call], list[tuple[int, int]]]:
    """A client of a log: appends one or some entries, reads all, and now and then appends the same again.

    Returns its calls, and (entry, offset) as it was told them.
    """
    client, answered = Client(number, rng), list[tuple[int, int]]()
    for i in range(calls):
        if time.monotonic() > until:
            break
        await pause(rng)
        if rng.random() < 0.3:
            seen, offsets = await client.read(log.read(store, agent_id))
            client.saw(seen)
            answered += zip(seen, offsets, strict=True)
            continue
        entries = [10_000 * (number + 1) + 10 * i + j for j in range(rng.choice((1, 1, 2, 3)))]
        attempts = [cancel and rng.random() < 0.15]
        if log.once and rng.random() < 0.3:
            attempts.append(False)
        for cancelled in attempts:
            got = await client.write("append", entries, log.append(store, agent_id, entries), cancelled=cancelled)
            answered += zip(entries, got or (), strict=False)
    return client.calls, answered
