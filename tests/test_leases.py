"""Leases and their blocks: whatever way they are left, a write is fenced by the block it is in and by no other."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from kode_conformance.values import samples

from kode_core import (
    InvalidArgumentError,
    LockLostError,
    LockUnavailableError,
    Message,
    StoreClosedError,
    StoreUnavailableError,
    create_extended_store,
)
from kode_core.backends.memory.engine import MemoryEngine, MemorySpace
from kode_core.batch import Batch, Fence, Outcome
from kode_core.engine import Engine
from kode_core.layers import Layer
from kode_core.protocols import ExtendedStore, Lease
from kode_core.store import EngineStore
from kode_core.store.locks import ENTERED

TARGETS = ("memory:?name=leases", "sqlite:///a.db", "json:///a")


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A store that two may open."""
    target: str = request.param
    if target.startswith("memory"):
        return f"memory:?name={tmp_path.name}"
    return target.replace("///", f"///{tmp_path}/")


@pytest.fixture
async def store(target: str) -> AsyncIterator[ExtendedStore]:
    async with create_extended_store(target) as store:
        yield store


async def write(store: ExtendedStore, agent_id: str = "a") -> None:
    await store.append_messages(agent_id, [Message.user("x")])


async def is_fenced(store: ExtendedStore, target: str, agent_id: str = "a") -> bool:
    """Whether a write of this task has a fence: a lease of another holder is held meanwhile, so that it must fail."""
    async with create_extended_store(target) as other:
        lease = await other.acquire_agent_lock(agent_id, wait_ms=5000)
        try:
            await write(store, agent_id)
        except LockLostError:
            return True
        finally:
            await lease.release()
        return False


def in_a_task(call: Callable[[], Coroutine[Any, Any, Any]]) -> Awaitable[Any]:
    return asyncio.get_running_loop().create_task(call())


@pytest.mark.parametrize("order", ["abc", "acb", "bac", "bca", "cab", "cba"])
async def test_blocks_may_be_left_in_any_order(store: ExtendedStore, target: str, order: str) -> None:
    """Of three blocks that are left in any order, each fences its agent until it is left, and not after that."""
    locks = {agent_id: store.acquire_agent_lock(agent_id) for agent_id in "abc"}
    leases = {agent_id: await lock.__aenter__() for agent_id, lock in locks.items()}
    for place, left in enumerate(order):
        await locks[left].__aexit__(None, None, None)
        for agent_id in order[: place + 1]:
            assert not await is_fenced(store, target, agent_id)
        for agent_id in order[place + 1 :]:
            await write(store, agent_id)
    assert not any(lease.is_lost for lease in leases.values())


async def test_a_block_that_others_outlive_still_fences(store: ExtendedStore, target: str) -> None:
    """The block entered second is fenced by its own lease after the first one was left."""
    first, second = store.acquire_agent_lock("a"), store.acquire_agent_lock("b")
    await first.__aenter__()
    lease = await second.__aenter__()
    await first.__aexit__(None, None, None)
    await lease.release()
    assert await is_fenced(store, target, "b")
    await second.__aexit__(None, None, None)
    assert not await is_fenced(store, target, "b")


async def turns(store: ExtendedStore) -> AsyncIterator[int]:
    async with store.acquire_agent_lock("a", wait_ms=20_000):
        for i in range(3):
            await write(store)
            yield i


async def test_a_generator_that_is_dropped_leaves_no_fence(store: ExtendedStore, target: str) -> None:
    """Who breaks out of an async generator in its block can write, at once and later, itself and in new tasks."""
    for _ in range(10):
        async for _ in turns(store):
            break
        await write(store)
        async for _ in turns(store):
            break
    await write(store)
    gc.collect()
    await asyncio.sleep(0.05)
    assert not await asyncio.wait_for(is_fenced(store, target), 30)
    assert not await is_fenced(store, target)


async def test_a_generator_is_closed_by_another_task(store: ExtendedStore, target: str) -> None:
    """A block that another task closes is no block any more for the one that entered it, and those it starts then."""
    turn = turns(store)
    await anext(turn)
    await in_a_task(turn.aclose)  # type: ignore[attr-defined]
    assert not await in_a_task(lambda: is_fenced(store, target))
    assert not await is_fenced(store, target)


async def test_generators_overlap(store: ExtendedStore, target: str) -> None:
    """Two generators, each in a block, may be closed in the order in which they were begun."""

    async def held(agent_id: str) -> AsyncIterator[Lease]:
        async with store.acquire_agent_lock(agent_id) as lease:
            yield lease

    one, two = held("a"), held("b")
    await anext(one)
    lease = await anext(two)
    await one.aclose()  # type: ignore[attr-defined]
    assert not await is_fenced(store, target, "a")
    await lease.release()
    assert await is_fenced(store, target, "b")
    await two.aclose()  # type: ignore[attr-defined]
    assert not await is_fenced(store, target, "b")


async def test_a_block_is_left_in_another_task(store: ExtendedStore, target: str) -> None:
    """Neither the task that entered a block nor the one that left it is in it after that."""
    lock = store.acquire_agent_lock("a")
    await lock.__aenter__()

    async def leave() -> bool:
        await write(store)
        await lock.__aexit__(None, None, None)
        return await is_fenced(store, target)

    assert not await in_a_task(leave)
    assert not await is_fenced(store, target)
    assert not await in_a_task(lambda: is_fenced(store, target))


async def test_a_block_is_entered_in_a_task_that_ends(store: ExtendedStore, target: str) -> None:
    """A block that was entered in another task does not fence this one, which may leave it."""
    lock = store.acquire_agent_lock("a")
    await in_a_task(lock.__aenter__)
    await write(store)
    await lock.__aexit__(None, None, None)
    assert not await is_fenced(store, target)


async def test_tasks_that_outlive_the_block_come_too_late(store: ExtendedStore, target: str) -> None:
    """What was started inside writes while the block lasts, and is refused afterwards, as are the tasks it starts."""
    left = asyncio.Event()

    async def child() -> tuple[bool, bool]:
        await write(store)
        await left.wait()
        with pytest.raises(LockLostError):
            await write(store)
        with pytest.raises(LockLostError):
            await asyncio.wait_for(write(store), 30)
        await write(store, "b")
        return await is_fenced(store, target), await in_a_task(lambda: is_fenced(store, target))

    async with store.acquire_agent_lock("a"):
        task = in_a_task(child)
        await asyncio.wait_for(write(store), 30)
    left.set()
    assert await task == (True, True)
    assert not await is_fenced(store, target)


async def test_who_takes_the_lock_itself_is_free_of_the_old_block(store: ExtendedStore, target: str) -> None:
    """A task that outlived the block it was started in takes the lock, writes, gives it back, and writes on."""
    left = asyncio.Event()

    async def child() -> bool:
        await left.wait()
        async with store.acquire_agent_lock("a", wait_ms=5000):
            await write(store)
        return await is_fenced(store, target)

    async with store.acquire_agent_lock("a"):
        task = in_a_task(child)
    left.set()
    assert not await task


async def test_a_row_of_tasks_keeps_no_old_leases(store: ExtendedStore) -> None:
    """Turns that each start the next one inside their block do not gather the leases of all that went before."""
    sizes = []

    async def turn(before: asyncio.Task[Any] | None, left: int) -> None:
        if before is not None:
            await asyncio.wait([before])
        async with store.acquire_agent_lock("a"):
            sizes.append(len(ENTERED.get()))
            await write(store)
            if left:
                tasks.append(asyncio.ensure_future(turn(asyncio.current_task(), left - 1)))

    tasks = [asyncio.ensure_future(turn(None, 5))]
    while len(sizes) < 6:
        await asyncio.gather(*tasks)
    assert sizes == [1] * 6


async def test_a_lost_outer_block_fences_again(store: ExtendedStore, target: str) -> None:
    """A task whose lease was lost may take the lock anew inside; back in the first block its writes are refused."""
    async with store.acquire_agent_lock("a") as lease:
        await lease.release()
        async with store.acquire_agent_lock("a"):
            await write(store)
        assert await is_fenced(store, target)
    assert not await is_fenced(store, target)


async def test_exit_stacks_and_wrapped_blocks(store: ExtendedStore, target: str) -> None:
    """Blocks of an AsyncExitStack, handed on with pop_all, or inside an asynccontextmanager, fence until they end."""

    @asynccontextmanager
    async def wrapped(agent_id: str) -> AsyncIterator[Lease]:
        async with store.acquire_agent_lock(agent_id) as lease:
            yield lease

    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(wrapped("a"))
        second = await stack.enter_async_context(store.acquire_agent_lock("b"))
        kept = stack.pop_all()
    await first.release()
    await second.release()
    assert await is_fenced(store, target, "a")
    assert await is_fenced(store, target, "b")
    await kept.aclose()
    assert not await is_fenced(store, target, "a")
    assert not await is_fenced(store, target, "b")


async def test_task_groups_and_copied_contexts(store: ExtendedStore, target: str) -> None:
    """Tasks of a group are in the block; one with a context of its own from before is not."""
    before = contextvars.copy_context()
    async with store.acquire_agent_lock("a") as lease:
        async with asyncio.TaskGroup() as group:
            group.create_task(write(store))
        await lease.release()
        async with asyncio.TaskGroup() as group:
            inside = group.create_task(is_fenced(store, target))
        loop = asyncio.get_running_loop()
        assert not await loop.create_task(is_fenced(store, target), context=before)
    assert inside.result()


async def test_tasks_of_one_context_share_the_block(store: ExtendedStore, target: str) -> None:
    """A task that runs in the very context of another enters and leaves for both."""
    context, loop = contextvars.copy_context(), asyncio.get_running_loop()
    lock = store.acquire_agent_lock("a")
    lease = await loop.create_task(lock.__aenter__(), context=context)
    await lease.release()
    assert await loop.create_task(is_fenced(store, target), context=context)
    await loop.create_task(lock.__aexit__(None, None, None), context=context)
    assert not await loop.create_task(is_fenced(store, target), context=context)


async def test_two_stores_in_one_task(target: str) -> None:
    """The lease of one store is no fence of another, also when one is gone and the next has its place in memory."""
    async with create_extended_store("memory:") as other, create_extended_store(target) as store:
        async with store.acquire_agent_lock("a") as lease:
            await lease.release()
            await write(other)
            async with other.acquire_agent_lock("a") as theirs:
                await write(other)
                await theirs.release()
                with pytest.raises(LockLostError):
                    await write(other)
        await write(store)
    for _ in range(10):
        forgotten = await create_extended_store("memory:")
        await forgotten.acquire_agent_lock("a").__aenter__()
        await forgotten.close()
        del forgotten
        gc.collect()
        async with create_extended_store("memory:") as fresh:
            await write(fresh)


@pytest.mark.parametrize("wait_ms", [0, 60_000])
async def test_who_holds_the_lock_is_told_so(store: ExtendedStore, wait_ms: int) -> None:
    """A task in the block, or started there, that asks for the lock again is told so and does not wait for itself."""

    async def ask() -> None:
        with pytest.raises(LockUnavailableError, match="this task is inside the block of its lease"):
            await store.acquire_agent_lock("a", wait_ms=wait_ms)
        with pytest.raises(LockUnavailableError, match="this task is inside the block of its lease"):
            async with store.acquire_agent_lock("a", wait_ms=wait_ms):
                pass

    async with asyncio.timeout(30):
        async with store.acquire_agent_lock("a") as lease:
            await ask()
            await in_a_task(ask)
            await write(store)
            assert not lease.is_lost
        async with store.acquire_agent_lock("a"):
            await write(store)


async def test_a_lease_that_was_lost_is_not_held(store: ExtendedStore, target: str) -> None:
    """A task whose lease another holder has taken over unnoticed waits for that one, and is not told of its own."""
    async with create_extended_store(target) as other, store.acquire_agent_lock("a", ttl_ms=60_000) as lease:
        await other._locks.release(lease)  # type: ignore[attr-defined]
        theirs = await other.acquire_agent_lock("a")
        with pytest.raises(LockUnavailableError, match="another holder"):
            await store.acquire_agent_lock("a")
        assert lease.is_lost
        await theirs.release()


async def test_a_lock_is_entered_once_at_a_time(store: ExtendedStore) -> None:
    """One lock object cannot be entered twice at once; after it was left, or not got, it can be entered again."""
    lock = store.acquire_agent_lock("a")
    other = store.acquire_agent_lock("a")
    async with lock:
        with pytest.raises(InvalidArgumentError, match="entered already"):
            await in_a_task(lock.__aenter__)
        with pytest.raises(LockUnavailableError):
            await other.__aenter__()
    async with lock:
        await write(store)
    async with other:
        await write(store)


# --- the end of a store -----------------------------------------------------------------------------------------------


async def test_a_store_that_is_closed_inside(target: str, caplog: pytest.LogCaptureFixture) -> None:
    """When the store is closed inside the block the lease is lost at once, leaving is quiet, and nothing is logged."""
    caplog.set_level(logging.WARNING)
    store = await create_extended_store(target)
    async with store.acquire_agent_lock("a", ttl_ms=60) as lease:
        await store.close()
        assert lease.is_lost
        await asyncio.sleep(0.1)
        with pytest.raises(StoreClosedError):
            await write(store)
        with pytest.raises(StoreClosedError):
            await lease.renew()
        await lease.release()
    gc.collect()
    await asyncio.sleep(0)
    assert caplog.records == []
    async with create_extended_store(target) as again:
        async with again.acquire_agent_lock("a", wait_ms=5000):
            await write(again)
        assert not await is_fenced(again, target)


async def test_a_lease_that_was_released_is_not_lost_by_the_close(target: str) -> None:
    """A lease that was given back before the store was closed was not lost."""
    store = await create_extended_store(target)
    async with store.acquire_agent_lock("a") as lease:
        await write(store)
    await store.close()
    assert not lease.is_lost


async def test_waiters_hear_of_the_close(target: str) -> None:
    """Who waits for a lock when the store is closed gets StoreClosedError, and the close does not wait for the lock."""
    async with create_extended_store(target) as holder:
        held = await holder.acquire_agent_lock("a", ttl_ms=600_000)
        store = await create_extended_store(target)
        waiters = [in_a_task(store.acquire_agent_lock("a", wait_ms=600_000).__aenter__) for _ in range(3)]
        await asyncio.sleep(0.1)
        async with asyncio.timeout(30):
            await store.close()
            found = await asyncio.gather(*waiters, return_exceptions=True)
        assert [type(error) for error in found] == [StoreClosedError] * 3
        await held.release()


# --- faults -----------------------------------------------------------------------------------------------------------


class Faulty(Layer):
    """Raises what it is told to, and can make a caller wait."""

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner)
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.renewals = 0
        self.writable = asyncio.Event()
        self.writable.set()

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        await self.writable.wait()
        return await super().commit(batches)

    async def renew_lease(self, agent_id: str, fence: Fence, ttl_ms: int) -> bool:
        self.renewals += 1
        await self._trouble()
        return await super().renew_lease(agent_id, fence, ttl_ms)

    async def release_lease(self, agent_id: str, fence: Fence) -> None:
        await self._trouble()
        await super().release_lease(agent_id, fence)

    async def _trouble(self) -> None:
        await self.gate.wait()
        if self.error is not None:
            raise self.error


@pytest.fixture
async def faulty() -> AsyncIterator[tuple[EngineStore, Faulty]]:
    layer = Faulty(MemoryEngine(MemorySpace()))

    async def opener() -> Engine:
        return layer

    async with EngineStore(opener) as store:
        yield store, layer
        layer.error = None
        layer.gate.set()


@pytest.mark.parametrize("error", [StoreUnavailableError("gone"), RuntimeError("of the driver")])
async def test_renewals_that_fail_lose_the_lease(
    faulty: tuple[EngineStore, Faulty], error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """A lease whose renewals fail, however, is lost when its time is over; the renewer dies of nothing."""
    store, layer = faulty
    for ttl_ms in (60, 600, 6_000):  # a process that stands still is late for the second renewal
        layer.renewals = 0
        async with store.acquire_agent_lock("a", ttl_ms=ttl_ms) as lease:
            layer.error = error
            async with asyncio.timeout(30):
                while not lease.is_lost:
                    await asyncio.sleep(0.01)
            layer.error = None
        if layer.renewals >= 2:
            break
    gc.collect()
    assert layer.renewals >= 2
    assert caplog.records == []


async def test_a_renewal_that_hangs_loses_the_lease(faulty: tuple[EngineStore, Faulty]) -> None:
    """A lease whose renewal has no answer is lost when its time is over, and not when the deadline of the call is."""
    store, layer = faulty
    async with store.acquire_agent_lock("a", ttl_ms=60) as lease:
        layer.gate.clear()
        async with asyncio.timeout(20):
            while not lease.is_lost:
                await asyncio.sleep(0.01)
        layer.gate.set()


async def test_the_error_of_the_block_counts(faulty: tuple[EngineStore, Faulty]) -> None:
    """When block and release both fail, the error of the block is raised; a release that fails alone says so."""
    store, layer = faulty
    with pytest.raises(ValueError, match="mine"):
        async with store.acquire_agent_lock("a"):
            layer.error = StoreUnavailableError("gone")
            raise ValueError("mine")
    layer.error = None
    with pytest.raises(StoreUnavailableError):
        async with store.acquire_agent_lock("b"):
            layer.error = StoreUnavailableError("gone")


async def test_a_release_goes_on_when_its_caller_is_cancelled(faulty: tuple[EngineStore, Faulty]) -> None:
    """A task that is cancelled while it leaves the block gives the lock back all the same, and is in no block."""
    store, layer = faulty
    layer.gate.clear()

    async def leave() -> None:
        async with store.acquire_agent_lock("a"):
            pass

    task = asyncio.get_running_loop().create_task(leave())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    layer.gate.set()
    async with store.acquire_agent_lock("a", wait_ms=5000):
        await write(store)


async def test_who_leaves_waits_for_writes_that_were_begun(faulty: tuple[EngineStore, Faulty]) -> None:
    """A write that was begun inside is done before the lock is given back; a later one is not waited for."""
    store, layer = faulty
    lock = store.acquire_agent_lock("a")
    await lock.__aenter__()
    layer.writable.clear()
    writes = [in_a_task(lambda: write(store)), in_a_task(lambda: store.append_event("a", samples.event(0)))]
    await asyncio.sleep(0.01)

    async def leave() -> None:
        await lock.__aexit__(None, None, None)

    async def write_later() -> None:
        while not lock_is_left.is_set():
            await asyncio.sleep(0.005)
        while True:
            await write(store)

    lock_is_left = asyncio.Event()
    late = in_a_task(write_later)
    leaving = asyncio.ensure_future(leave())
    await asyncio.sleep(0.01)
    lock_is_left.set()
    assert not leaving.done()
    layer.writable.set()
    async with asyncio.timeout(30):
        await asyncio.gather(*writes)
        await leaving
        with pytest.raises(LockLostError):
            await late


async def test_who_leaves_waits_for_a_deletion_that_was_begun(faulty: tuple[EngineStore, Faulty]) -> None:
    """A delete_many that a task began inside the block deletes under the lease, and is not refused as too late."""
    store, layer = faulty
    await store.save_info("a", samples.info("a"))
    async with store.acquire_agent_lock("a"):
        layer.writable.clear()
        deletion = in_a_task(lambda: store.delete_many(agent_id="a"))
        await asyncio.sleep(0.01)
        asyncio.get_running_loop().call_later(0.02, layer.writable.set)
    assert deletion.done()
    assert await deletion == 1


async def test_a_cancelled_entry_leaves_nothing(store: ExtendedStore, target: str) -> None:
    """However early or late an entry is cancelled, no lease stays behind and no block is entered."""
    for steps in range(12):

        async def enter() -> None:
            async with store.acquire_agent_lock("a", wait_ms=5000):
                await write(store)

        task = asyncio.get_running_loop().create_task(enter())
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await (await store.acquire_agent_lock("a", wait_ms=5000)).release()
    assert not await is_fenced(store, target)
