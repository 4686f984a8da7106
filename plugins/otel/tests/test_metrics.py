"""Metrics: the durations of calls, and what stores do at the moment."""

from __future__ import annotations

import asyncio
import gc
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kode_core import AgentNotFoundError, AgentStats, Message, create_extended_store
from kode_core.layers import Layer
from kode_core.operation import Load, OpenStore, Operation
from kode_core.sync import open_store


async def test_durations(recorded: Any, tmp_path: Path) -> None:
    """A histogram in seconds with the recommended buckets, by operation and error, and no ids; rows and bytes."""
    async with create_extended_store(f"sqlite:///{tmp_path}/a.db", observers=[recorded.observer()]) as store:
        for i in range(3):
            await store.append_messages(f"agt-{i}", [Message.user("hi"), Message.user("ho")])
        with pytest.raises(AgentNotFoundError):
            await store.batch_fork("nobody", 1)
    points = {
        (point.attributes["db.operation.name"], point.attributes.get("error.type")): point
        for point in recorded.points("db.client.operation.duration")
    }
    assert {("append_messages", None), ("batch_fork", "AgentNotFoundError")} == points.keys()
    appends = points["append_messages", None]
    assert appends.count == 3
    assert 0 < appends.sum < 60
    assert appends.explicit_bounds == (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10)
    assert dict(appends.attributes) == {
        "db.system.name": "sqlite", "db.namespace": "a.db", "db.operation.name": "append_messages",
    }  # fmt: skip
    assert max(point.value for point in recorded.points("kode.operation.rows")) == 6
    assert recorded.points("kode.operation.bytes")[0].value > 60
    assert "agt-" not in str(recorded.points("db.client.operation.duration"))


async def test_conflicts_are_counted(recorded: Any, tmp_path: Path) -> None:
    """Writes that the engine refuses because another store was first, although the calls succeed."""
    url = f"sqlite:///{tmp_path}/a.db"
    conflicts: list[int] = []

    def note(operation: Operation) -> None:
        conflicts.append(operation.conflicts)

    async with (
        create_extended_store(url, observers=[recorded.observer(), note]) as store,
        create_extended_store(url) as other,
    ):
        await store.save_messages("agt", [Message.user("1")])
        await other.append_messages("agt", [Message.user("2")])
        await store.save_messages("agt", [Message.user("3")])
        assert [message.text for message in await other.load_messages("agt")] == ["3"]
    assert conflicts == [0, 1]
    assert [point.value for point in recorded.points("kode.operation.conflicts")] == [1]
    assert recorded.spans()[-1].attributes["kode.conflicts"] == 1


class Gate(Layer):
    """Holds commits up until it is opened."""

    def __init__(self, inner: Any, gate: asyncio.Event) -> None:
        super().__init__(inner)
        self._gate = gate

    async def commit(self, batches: Any) -> Any:
        await self._gate.wait()
        return await super().commit(batches)


async def test_what_a_store_does_now(recorded: Any) -> None:
    """Running calls, writes, appends that wait for a group, and followers: read in another thread, loop or no loop."""
    gate = asyncio.Event()
    read: dict[str, list[int]] = {}

    def collect() -> None:
        for name in ("calls", "writes", "appends", "followers"):
            read[name] = [point.value for point in recorded.points(f"kode.store.{name}")]

    observer = recorded.observer()
    async with create_extended_store("memory:", layers=[lambda e: Gate(e, gate)], observers=[observer]) as store:
        follower = asyncio.create_task(anext(store.follow_events("agt")))
        writing = [asyncio.create_task(store.emit("agt", "tick", {})) for _ in range(10)]
        for _ in range(200):
            await asyncio.sleep(0.01)
            thread = threading.Thread(target=collect)
            thread.start()
            thread.join()  # the loop stands still meanwhile: no figure is asked from it
            if read["followers"] == [1] and read["appends"][0] >= 1:
                break
        assert read["calls"][0] >= 10
        assert read["writes"][0] >= 1
        gate.set()
        await asyncio.gather(follower, *writing)
    collect()
    assert read == {"calls": [], "writes": [], "appends": [], "followers": []}


async def test_stores_with_the_same_place_are_added_up(recorded: Any) -> None:
    """Two stores of one database are one series, and a closed one is left out."""
    async with create_extended_store("memory:twice", observers=[recorded.observer()]) as first:
        await first.exists("a")
        follower = first.follow_events("a")
        waiting = asyncio.create_task(anext(follower))
        async with create_extended_store("memory:twice", observers=[recorded.observer()]) as second:
            await second.exists("a")
            assert len(recorded.points("kode.store.calls")) == 1
            for _ in range(200):
                if [point.value for point in recorded.points("kode.store.followers")] == [1]:
                    break
                await asyncio.sleep(0.01)
        assert [point.value for point in recorded.points("kode.store.followers")] == [1]
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


async def test_a_forgotten_store_is_not_kept_alive() -> None:
    """An observer that has the load of a store does not keep the store; a closed one has no load."""
    opened: list[OpenStore] = []

    class Sees:
        @contextmanager
        def around(self, operation: Operation) -> Iterator[None]:
            yield

        def opened(self, store: OpenStore) -> None:
            opened.append(store)

    async def use() -> None:
        store = await create_extended_store("memory:", observers=[Sees()])
        assert await store.aggregate_stats("a") == AgentStats()
        load = opened[0].load()
        assert isinstance(load, Load)
        assert (load.calls, load.connections, opened[0].backend) == (0, None, "memory")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        await asyncio.create_task(use())  # a task's context keeps the store of its last call
        for _ in range(5):
            await asyncio.sleep(0)
            gc.collect()
    assert opened[0].load() is None

    class Fails(Sees):
        def opened(self, store: OpenStore) -> None:
            raise RuntimeError("no")

    async with create_extended_store("memory:", observers=[Fails()]) as kept:
        assert not await kept.exists("a")


def test_many_stores_of_a_synchronous_program(recorded: Any) -> None:
    """Closed stores are forgotten at the next opening, though no reader ever collects."""
    observer = recorded.observer()
    for i in range(20):
        with open_store(f"memory:{i}", observers=[observer]) as store:
            store.exists("a")
    assert len(observer._instruments._stores) == 1
