"""The usual calls cost a fixed number of requests on MongoDB and DynamoDB, however long a list is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import kode_mongo.items
import pytest
from kode_conformance.servers import had

from kode_core.backends.memory.engine import MemoryEngine
from kode_core.batch import Batch, Child, Outcome
from kode_core.codec import Body
from kode_core.engine import CALLER, Caller, Engine
from kode_core.errors import OutcomeUnknownError
from kode_core.layers.base import Layer
from kode_core.store.facade import EngineStore
from tests.benchmarks.costs import Row, an_event, an_info, fill, measured, messages, rows_of
from tests.benchmarks.meters import METERS, Meter

LENGTHS: Final = (100, 1_000)
"""Of the lists of two agents."""


@pytest.fixture(params=["mongo", "dynamodb"])
async def meter(request: pytest.FixtureRequest) -> AsyncIterator[Meter]:
    """A meter of each backend, with two agents."""
    async with had(METERS[request.param]) as meter:
        async with await meter.store() as store:
            for length in LENGTHS:
                await fill(store, f"agent-{length}", length)
        yield meter


async def test_the_usual_calls_cost_the_same_whatever_is_stored(meter: Meter) -> None:
    """An event, an append, and a save of a list that the store knows: requests, documents and units."""
    rows: dict[str, list[dict[str, float]]] = {}
    for row in rows_of(LENGTHS):
        if row.name.startswith(("`append_", "`load_", "`save_")):
            costs = await measured(meter, row)
            for length in LENGTHS:
                if f"a list of {length:,}" in row.name or f"a list of {length:,}," in row.name:
                    rows.setdefault(row.name.replace(f"{length:,}", "N"), []).append(costs)
            if row.name == "`append_event`":
                assert round(costs["reads"]) == 0
                assert costs["writes"] <= 2.25, "but for the last one, which has one more"
    same = [name for name in rows if "append_messages" in name or "known" in name]
    assert len(same) == 2
    for name in same:
        short, long = rows[name]
        for column in set(meter.columns) - {"bytes sent", "bytes received"}:
            assert round(short[column]) == round(long[column]), (name, column)
    for name, (short, long) in rows.items():
        assert long["reads"] + long["writes"] <= short["reads"] + short["writes"] + 2, name


async def test_events_in_a_row_cost_two_writes_each(meter: Meter) -> None:
    """The next event says of the one before that it is stored."""
    n = iter(range(10_000, 20_000))

    async def ten(store: Any) -> None:
        for _ in range(10):
            await store.append_event("agent-1000", an_event(next(n)))

    costs = await measured(meter, Row("ten events", ten, ten))
    assert costs["writes"] <= 2 * 10 + 1


async def test_an_idle_follower_on_dynamodb_looks_less_and_less_often() -> None:
    """A look is one read, pauses grow to two seconds, and events of the same store come at once."""
    async with had(METERS["dynamodb"]) as meter:
        async with await meter.store() as store:
            await store.append_event("a", an_event(1))
        async with await meter.store() as store:
            following = store.follow_events("a", after_offset=0)
            assert (await anext(following)).cursor == 1
            waiting = asyncio.ensure_future(anext(following))
            await asyncio.sleep(3.2)  # pauses of 0.1 s, 0.2 s and so on have reached the longest one
            meter.clear()
            await asyncio.sleep(3.5)  # a store's rounds for what the dead left begin after 7.5 s
            assert 1 <= meter.counted()["reads"] <= 3
            assert meter.counted()["read units"] <= 3.5
            await store.append_event("a", an_event(2))
            async with asyncio.timeout(30):
                assert (await waiting).cursor == 2
            await following.aclose()


async def test_a_follower_in_the_same_store_does_not_wait_for_its_next_look() -> None:
    """However long the pauses of an idle follower are, what its own store appends wakes it."""

    class Paid(Layer):
        idle_poll_ms = 3_600_000

    async def opener() -> Engine:
        return Paid(MemoryEngine())

    async with EngineStore(opener, follow_poll_ms=3_600_000) as store:
        following = store.follow_events("a", after_offset=0)
        for n in range(1, 4):
            waiting = asyncio.ensure_future(anext(following))
            await asyncio.sleep(0.05)
            await store.append_event("a", an_event(n))
            assert (await waiting).cursor == n
        await following.aclose()


# --- deletes and forks of large agents --------------------------------------------------------------------------------


async def test_a_large_agent_is_forked_and_deleted_in_steps(meter: Meter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both tell of each step; and nobody finds the agent any more while it is being removed."""
    monkeypatch.setattr(kode_mongo.items, "_DROPPED_AT_ONCE", 100)
    async with await meter.store() as store:
        engine: Any = store._context.engine  # type: ignore[attr-defined]
        parent = await engine.summary(f"agent-{LENGTHS[1]}")
        seen: list[bool] = []

        async def look() -> None:
            seen.append(await store.exists("child"))

        looks: list[asyncio.Task[None]] = []
        CALLER.set(Caller(goes_on=lambda: looks.append(asyncio.ensure_future(look()))))
        assert await engine.fork(parent.agent_id, [Child("child", parent.info)], parent.info.body, 1)
        await asyncio.gather(*looks)
        assert len(looks) >= LENGTHS[1] // 500
        assert len(await store.load_messages("child")) == LENGTHS[1]
        looks.clear()
        seen.clear()
        await engine.commit([Batch(agent_id="child", op_id="x", now=1, delete=True)])
        await asyncio.gather(*looks)
        assert len(looks) >= (1 if store_is_paged(meter) else LENGTHS[1] // 100)
        assert seen == [False] * len(looks)
        assert not await store.load_messages("child")


def store_is_paged(meter: Meter) -> bool:
    """Whether the service says itself how long a step is: DynamoDB's is a megabyte."""
    return isinstance(meter, METERS["dynamodb"])


class _InSteps(Layer):
    """Deletes and forks in steps that take longer together than a call may."""

    def __init__(self, inner: Engine, *, tells: bool) -> None:
        super().__init__(inner)
        self._tells = tells

    async def _work(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0.1)
            if self._tells:
                CALLER.get().goes_on()

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        if any(batch.delete for batch in batches):
            await self._work()
        return await super().commit(batches)

    async def fork(self, agent_id: str, children: Sequence[Child], expect: Body, now: int) -> bool:
        await self._work()
        return await super().fork(agent_id, children, expect, now)


@pytest.mark.parametrize("tells", [True, False], ids=["steps", "none"])
async def test_the_deadline_of_a_delete_and_a_fork_is_for_each_step(tells: bool) -> None:
    """A call that goes on does not end; one that says nothing ends at its deadline (OPS-9)."""

    async def opener() -> Engine:
        return _InSteps(MemoryEngine(), tells=tells)

    async with EngineStore(opener, timeout_ms=1_000) as store:
        await store.save_info("a", an_info("a"))
        await store.append_messages("a", messages(0, 2))
        if not tells:
            with pytest.raises(OutcomeUnknownError):
                await store.delete("a")
            return
        (child,) = await store.batch_fork("a", 1)
        await store.delete("a")
        assert await store.list() == [child]
