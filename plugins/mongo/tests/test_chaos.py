"""A set of three members whose members fail under load, and whose primary gives way in the middle of a write.

What is run depends on ``--kode-tier``, and what is drawn by lot on ``--kode-seed``; ``make chaos`` has the long form.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any, TypeVar

import pytest
from kode_conformance.kills.writes import FORK, WRITES, Write, expected, portrait, seed, write_on
from kode_conformance.servers import had
from kode_conformance.values import samples
from kode_mongo.records import MongoRecords
from kode_mongo.testing.members import LocalSet

from kode_core import ExtendedStore, create_extended_store
from kode_core.authoring.calls import call_driver
from plugins.mongo.tests.chaos import Load, done_or_not, left

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

T = TypeVar("T")
DRIVERS = ("motor", "pymongo")
ROUNDS = {"quick": 1, "standard": 3, "thorough": 20}
CALLS = {"quick": 2, "standard": 4, "thorough": 1000}
"""At how many of a write's calls there is an election."""


@pytest.fixture(scope="module")
def members() -> Iterator[LocalSet]:
    with had(LocalSet) as members:
        yield members


@pytest.fixture
def database(members: LocalSet, monkeypatch: pytest.MonkeyPatch) -> str:
    """A database of its own, of which what is large is small: it lies beside the head, in parts."""
    monkeypatch.setattr(MongoRecords, "inline_bytes", 20_000)
    monkeypatch.setattr(MongoRecords, "part_bytes", 30_000)
    members.heal()
    return f"chaos_{secrets.token_hex(4)}"


@pytest.fixture
def lot(request: pytest.FixtureRequest) -> random.Random:
    """Draws what is left to chance."""
    number = request.config.getoption("kode_seed")
    print(f"--kode-seed {number}")
    return random.Random(f"{number}{request.node.name}")


async def opened(members: LocalSet, database: str, driver: str = "motor") -> ExtendedStore:
    options: dict[str, Any] = {"command_timeout_millis": 4_000, "connection_timeout_millis": 12_000}
    return await create_extended_store(type="mongo", uri=members.uri, database=database, driver=driver, **options)


def tier(request: pytest.FixtureRequest) -> str:
    return str(request.config.getoption("kode_tier"))


# --- Under load -------------------------------------------------------------------------------------------------------


class Faults:
    """What happens to the members, each until all go on without it."""

    def __init__(self, members: LocalSet, load: Load, lot: random.Random) -> None:
        self._members, self._load, self._lot = members, load, lot

    async def primary_killed(self) -> None:
        number = await asyncio.to_thread(self._members.primary)
        await asyncio.to_thread(self._members.kill, number)
        await self._load.more(10)

    async def primary_killed_with_what_it_alone_has(self) -> None:
        number = await asyncio.to_thread(self._members.primary)
        await asyncio.to_thread(self._members.hold_replication, number, held=True)
        await asyncio.sleep(self._lot.uniform(0.1, 1))
        await asyncio.to_thread(self._members.kill, number)
        await asyncio.to_thread(self._members.hold_replication, number, held=False)
        await self._load.more(10)

    async def primary_stopped(self) -> None:
        number = await asyncio.to_thread(self._members.primary)
        await asyncio.to_thread(self._members.pause, number)
        await asyncio.to_thread(self._members.primary, other_than=number)
        await asyncio.sleep(self._lot.uniform(0, 2))
        await asyncio.to_thread(self._members.resume, number)
        await self._load.more(10)

    async def member_stopped(self) -> None:
        number = await self._other()
        await asyncio.to_thread(self._members.pause, number)
        await self._load.more(20)

    async def member_killed(self) -> None:
        await asyncio.to_thread(self._members.kill, await self._other())
        await self._load.more(20)

    async def election(self) -> None:
        await asyncio.to_thread(self._members.step_down)
        await self._load.more(10)

    async def _other(self) -> int:
        primary = await asyncio.to_thread(self._members.primary)
        return (primary + self._lot.choice((1, 2))) % 3

    def all(self) -> list[Callable[[], Awaitable[None]]]:
        found = [
            self.primary_killed,
            self.primary_killed_with_what_it_alone_has,
            self.primary_stopped,
            self.member_stopped,
            self.member_killed,
            self.election,
        ]
        return self._lot.sample(found, len(found))


async def test_whatever_happens_to_members_under_load_nothing_is_lost_doubled_or_torn(
    members: LocalSet,
    database: str,
    lot: random.Random,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nor is anything resurrected; and what nobody refers to is swept. Both drivers write to the same agents."""
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(await opened(members, database, d)) for d in DRIVERS * 2]
        load = Load(stores, lot.randrange(2**32))
        async with load.running():
            await load.more(10)
            for _ in range(ROUNDS[tier(request)]):
                for fault in Faults(members, load, lot).all():
                    print(f"{time.monotonic():.2f} {fault.__name__} {dict(load.counts)}")
                    await fault()
                    await asyncio.to_thread(members.heal)
                    await load.more(10)
    async with await opened(members, database) as store:
        problems = await load.problems(store)
        assert not problems, "\n".join(problems)
        assert (await store.check_consistency()).issues == ()
    monkeypatch.setattr("kode_core.engines.record.io.LEFT_SECONDS", 0)
    assert await left(members.uri, database) == []
    async with await opened(members, database) as store:
        problems = await load.problems(store)
        assert not problems, "\n".join(problems)
        assert (await store.check_consistency()).issues == ()


# --- In the middle of a write -----------------------------------------------------------------------------------------


async def _large_turn(store: ExtendedStore, agent_id: str) -> None:
    await store.save_turn(
        agent_id,
        append=[samples.message(n, "y" * 40_000) for n in range(3)],
        upsert_tool_calls=[samples.tool_call(0, state="SEALED"), samples.tool_call(9, result="z" * 40_000)],
        info=samples.info(agent_id, metadata={"notes": "n" * 20_000}),
        events=samples.events(2, 50),
    )


DELETE = next(write for write in WRITES if write.name == "delete")
INTERRUPTED = [Write("large turn", _large_turn), DELETE, FORK]


class Strikes:
    """Lets something happen to the members at the n-th call to the server, as that call is made or just before."""

    def __init__(self, at: int, strike: Callable[[], object], lot: random.Random) -> None:
        self.count = 0
        self.ended: asyncio.Future[object] | None = None
        self._at, self._strike, self._lot = at, strike, lot

    async def __call__(self, call: Callable[[], Awaitable[T]]) -> T:
        self.count += 1
        if self.count == self._at:
            self.ended = asyncio.ensure_future(asyncio.to_thread(self._strike))
            await asyncio.sleep(self._lot.choice((0, 0.005, 0.05, 0.5)))
        return await call_driver(call)


@pytest.mark.parametrize("write", INTERRUPTED, ids=lambda write: write.name)
async def test_a_write_during_which_the_primary_goes_is_there_whole_or_not_at_all(
    write: Write,
    members: LocalSet,
    database: str,
    lot: random.Random,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It gives way, or is killed, at whichever call of the write; the write is there when it was acknowledged."""

    def kill() -> None:
        members.kill(members.primary())

    strikes = list(itertools.product(DRIVERS, (members.step_down, kill)))
    async with await opened(members, database) as store:
        allowed = await expected(store, write)
        await seed(store, "counted")
        counted = Strikes(0, kill, lot)
        monkeypatch.setattr("kode_mongo.connection.call_driver", counted)
        await write.act(store, "counted")
    count = CALLS[tier(request)]
    rounds = [(n, *strike) for n in range(1, counted.count + 1) for strike in strikes]
    drawn = lot.sample(rounds, min(count, len(rounds)))
    landed = 0
    for number, (at, driver, strike) in enumerate(drawn):
        agent_id = f"agent-{number}"
        monkeypatch.setattr("kode_mongo.connection.call_driver", call_driver)
        async with await opened(members, database, driver) as store:
            await seed(store, agent_id)
            struck = Strikes(at, strike, lot)
            monkeypatch.setattr("kode_mongo.connection.call_driver", struck)
            done = await done_or_not(write.act(store, agent_id))
        monkeypatch.setattr("kode_mongo.connection.call_driver", call_driver)
        if struck.ended is not None:
            landed += 1
            await struck.ended
        else:  # A write that had to try again was counted: this one needed fewer calls than the strike waited for.
            assert done is True
        await asyncio.to_thread(members.heal)
        async with await opened(members, database, driver) as store:
            found = await portrait(store, agent_id)
            problem = allowed.problem(found, done=bool(done))
            assert problem is None, f"call {at} of {driver}, {strike.__name__}, {done}: {problem}"
            if done is False:
                assert allowed.problem(found, done=True), f"call {at} of {driver}, {strike.__name__}: it is there"
            await write_on(store, agent_id, 1000)
    assert landed
    async with await opened(members, database) as store:
        await store.query_sessions()
        assert (await store.check_consistency()).issues == ()
    monkeypatch.setattr("kode_core.engines.record.io.LEFT_SECONDS", 0)
    assert await left(members.uri, database) == []
