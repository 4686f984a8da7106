"""Several writers of one agent: stores in one process, and processes with one store each, as fast as they can.

What all of them write in a second is compared with what one writes in the same run. More writers have more time, so
that each has several turns.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import NamedTuple, TypeVar

import kode_dynamodb.connection
import kode_mongo.connection
from kode_conformance.servers import NoServerError

from kode_core import ExtendedStore, KodeError, Message, create_extended_store
from tests.benchmarks.backends import Options
from tests.benchmarks.children import Child, answer, heard, job
from tests.benchmarks.matrix import PLACES
from tests.benchmarks.measure import Report, Row

__all__ = ["run"]

T = TypeVar("T")

SHARED = ("sqlite", "postgres", "mongo", "dynamodb", "dynamodb-local")
"""The backends that several processes can use."""
STORES = (1, 5, 20, 50)
PROCESSES = (1, 5, 20)
SECONDS = 10.0
SECONDS_FOR_EACH = 1.5
"""For each writer, so that all have several turns: a shorter contest measures by whom the first turns were taken."""
SLOWER = 2
"""How many times longer a contest is on an emulator, which makes some ten writes a second."""
_COUNTED = (kode_mongo.connection, kode_dynamodb.connection)


class Outcome(NamedTuple):
    """What writers did in the time.

    Attributes:
        wrote: acknowledged writes of each.
        calls: of drivers, where they are counted.
        errors: by their types.
    """

    wrote: list[int]
    calls: int
    errors: dict[str, int]
    seconds: float

    @property
    def rate(self) -> float:
        return sum(self.wrote) / self.seconds

    @property
    def least(self) -> float:
        """The slowest writer's part of a fair share."""
        return min(self.wrote) * len(self.wrote) / max(sum(self.wrote), 1)


_calls = 0


def _count_calls() -> None:
    """Count the calls of drivers that this process makes from now on."""

    def counting(made: Callable[[Callable[[], Awaitable[T]]], Awaitable[T]]) -> Callable[..., Awaitable[T]]:
        async def counted(call: Callable[[], Awaitable[T]]) -> T:
            global _calls
            _calls += 1
            return await made(call)

        return counted

    for module in _COUNTED:
        vars(module)["call_driver"] = counting(vars(module)["call_driver"])


async def _contend(stores: Sequence[ExtendedStore], agent_id: str, who: str, seconds: float) -> Outcome:
    """Have every store append messages to the agent, one after the other, until the time is over."""
    wrote, errors = [0] * len(stores), Counter[str]()
    start, before = time.perf_counter(), _calls

    def is_over() -> bool:
        return time.perf_counter() - start >= seconds

    async def write(n: int, store: ExtendedStore) -> None:
        number = 0
        while not is_over():
            number += 1
            try:
                await store.append_messages(agent_id, [Message.user(f"{who}, {n}: {number}")])
            except KodeError as exc:
                errors[type(exc).__name__] += 1
                continue
            wrote[n] += not is_over()

    async def counted() -> int:
        await asyncio.sleep(seconds)
        return _calls - before

    calls, *_ = await asyncio.gather(counted(), *(write(n, store) for n, store in enumerate(stores)))
    return Outcome(wrote, calls, dict(errors), seconds)


async def _by_stores(options: Options, count: int, seconds: float) -> Outcome:
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(create_extended_store(options)) for _ in range(count)]
        agent_id = f"agt-stores-{count}"
        await stores[0].append_messages(agent_id, [Message.user("first")])
        return await _contend(stores, agent_id, "store", seconds)


async def _by_processes(options: Options, count: int, seconds: float) -> Outcome:
    async with AsyncExitStack() as stack:
        team = [
            await stack.enter_async_context(
                Child.of(__spec__.name, {"options": options, "agent_id": f"agt-processes-{count}", "seconds": seconds})
            )
            for _ in range(count)
        ]
        found = [Outcome(*one) for one in await asyncio.gather(*(child.ask("go") for child in team))]
    errors = Counter[str]()
    for one in found:
        errors.update(one.errors)
    return Outcome([one.wrote[0] for one in found], sum(one.calls for one in found), dict(errors), seconds)


async def run(report: Report, names: list[str]) -> None:
    """Measure these backends, or all that several processes can use."""
    _count_calls()
    for name in [name for name in SHARED if name in names or not names]:
        place, report.backend = PLACES[name], name
        slower = 1 if place.scale == 1 else SLOWER
        try:
            async with place.options() as options:
                report.title(f"{place.title}: writers of one agent")
                for what, by, counts in (("stores", _by_stores, STORES), ("processes", _by_processes, PROCESSES)):
                    one: Outcome | None = None
                    for count in counts:
                        seconds = slower * max(SECONDS, SECONDS_FOR_EACH * count)
                        found = await by(options, count, seconds)
                        one = one or found
                        _tell(report, f"{count} {what}, {seconds:g} s", found, one)
        except NoServerError as exc:
            print(f"{place.title} is left out: {exc}")


def _tell(report: Report, name: str, found: Outcome, one: Outcome) -> None:
    is_alone = found is one
    ratio = None if is_alone else found.rate / max(one.rate, 0.001)
    least = None if is_alone else 0.5
    report.add(Row(f"{name}: acknowledged writes", found.rate, "w/s", ratio, "one", least, at_least=True))
    if found.calls:
        most = 4.0 if name.startswith("20 ") else None
        report.add(Row("  calls for each", found.calls / max(sum(found.wrote), 1), "calls", target=most))
    if not is_alone:
        report.add(Row("  the slowest writer's part of a fair share", found.least, "", target=0.2, at_least=True))
    for error, count in sorted(found.errors.items()):
        most = 0.0 if error == "OutcomeUnknownError" else None
        report.add(Row(f"  {error}", count, "errors", target=most))


async def _child() -> None:
    """One of the processes."""
    task = job()
    _count_calls()
    async with create_extended_store(task["options"]) as store:
        await store.append_messages(task["agent_id"], [Message.user("first")])
        answer("ready")
        async for _ in heard():
            answer(await _contend([store], task["agent_id"], "process", task["seconds"]))


if __name__ == "__main__":
    asyncio.run(_child())
