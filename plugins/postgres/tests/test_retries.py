"""Answers that are lost: what was written is known again, and what others wrote since stays (OPS-10)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
from kode_conformance.context import difference
from kode_conformance.kills.writes import FORK, WRITES, Write, overwrite, portrait, seed
from kode_conformance.servers.faults import FaultProxy, Mode
from kode_conformance.values import samples
from kode_postgres.engine import PostgresEngine
from kode_postgres.schema import KEPT_OPS
from kode_postgres.testing.servers import LocalServer, Server

from kode_core import (
    ExtendedStore,
    LockUnavailableError,
    OutcomeUnknownError,
    StorageError,
    StoreBusyError,
    create_extended_store,
)
from kode_core.model import TodoSnapshot

Open = Callable[..., Awaitable[ExtendedStore]]


class Two:
    """A store behind a proxy that cuts, and another one that nothing happens to."""

    def __init__(self, proxy: FaultProxy, here: ExtendedStore, there: ExtendedStore) -> None:
        self.proxy, self.here, self.there = proxy, here, there

    async def cut(self, call: Awaitable[Any], meanwhile: Callable[[], Awaitable[Any]], *, skip: int) -> bool:
        """Make a call of *here*, whose reply number *skip* is lost, and do *meanwhile* before it can ask again.

        The same call was made before, so that its statements are prepared. False when there were fewer replies.
        """
        cuts = self.proxy.counts.cut_at
        self.proxy.cut_at(reply=b"", skip=skip, then=Mode.REFUSE)
        task = asyncio.ensure_future(call)
        while not task.done() and self.proxy.counts.cut_at == cuts:
            await asyncio.sleep(0.005)
        if self.proxy.counts.cut_at == cuts:
            self.proxy.cut_at()
            await task
            return False
        await meanwhile()
        self.proxy.mode = Mode.FORWARD
        await task
        return True


@pytest.fixture
async def stores(server: Server, schema: str, proxied: Callable[..., FaultProxy]) -> AsyncIterator[Open]:
    """Opens a store by way of a proxy and one without."""
    opened: list[ExtendedStore] = []
    proxy = proxied(server)

    async def open_two(**options: Any) -> Two:
        parts = urlsplit(server.dsn)
        by_proxy = parts._replace(netloc=f"{parts.netloc.rpartition('@')[0]}@127.0.0.1:{proxy.port}").geturl()
        for dsn, more in ((by_proxy, options), (server.dsn, {})):
            opened.append(await create_extended_store(type="postgres", dsn=dsn, schema=schema, max=2, **more))
        return Two(proxy, *opened)

    yield open_two  # type: ignore[misc]
    proxy.cut_at()
    proxy.mode = Mode.FORWARD
    for store in opened:
        await store.close()


async def _delete(store: ExtendedStore, agent_id: str) -> None:
    await store.delete(agent_id)


async def _make_again(store: ExtendedStore, agent_id: str) -> None:
    await store.delete(agent_id)
    await overwrite(store, agent_id)


MEANWHILE = {"overwritten": overwrite, "deleted": _delete, "deleted and made again": _make_again}


@pytest.mark.parametrize(
    ("is_new", "meanwhile"),
    [*((False, what) for what in MEANWHILE), (True, "deleted")],
    ids=[*MEANWHILE, "new and deleted"],
)
@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.name)
async def test_a_retry_overwrites_nothing(stores: Any, write: Write, meanwhile: str, is_new: bool) -> None:
    """Each reply of each kind of write is lost in turn, and another store writes before the retry: what was applied
    already is not applied again, and so what the other one wrote stays as it wrote it.
    """
    two: Two = await stores()
    act, applied = MEANWHILE[meanwhile], 0
    for skip in range(40):
        agent_id = f"agent-{skip}"
        for warm in (f"warm-{skip}", f"warmer-{skip}"):
            if not is_new:
                await seed(two.here, warm)
            await write.act(two.here, warm)
        if not is_new:
            await seed(two.there, agent_id)
        before = await portrait(two.there, agent_id)
        found: dict[str, Any] = {}

        async def others(agent_id: str = agent_id, found: dict[str, Any] = found) -> None:
            found["after the write"] = await portrait(two.there, agent_id)
            await act(two.there, agent_id)
            found["after the other"] = await portrait(two.there, agent_id)

        if not await two.cut(write.act(two.here, agent_id), others, skip=skip):
            break
        if difference(before, found["after the write"]) is not None:
            applied += 1
            assert difference(await portrait(two.there, agent_id), found["after the other"]) is None
            assert difference(await portrait(two.here, agent_id), found["after the other"]) is None
    assert skip > 0
    assert applied > 0 or (write.name == "delete" and is_new)


async def test_a_delete_of_nothing_takes_nothing_away_later(stores: Any) -> None:
    """There was nothing to delete, the answer was lost, and another store made the agent: it stays."""
    two: Two = await stores()
    for skip in range(40):
        agent_id = f"agent-{skip}"
        found: dict[str, Any] = {}
        await two.here.delete("warm")

        async def others(agent_id: str = agent_id, found: dict[str, Any] = found) -> None:
            await overwrite(two.there, agent_id)
            found["it"] = await portrait(two.there, agent_id)

        if not await two.cut(two.here.delete(agent_id), others, skip=skip):
            break
    left = [n for n in range(skip) if await two.there.exists(f"agent-{n}")]
    assert left == list(range(left[0], skip))  # of what was lost before it had looked nobody can tell


async def test_forks_are_made_once(stores: Any) -> None:
    """The answer to a fork is lost, and another store deletes what it made: it is not made again."""
    two: Two = await stores()
    await seed(two.there, "parent")
    made = 0
    for skip in range(20):
        for child in await two.here.batch_fork("parent", 3):
            await two.here.delete(child)

        async def others() -> None:
            nonlocal made
            children = [session.agent_id async for session in two.there.iter_sessions() if session.lineage]
            made += len(children)
            for child in children:
                await two.there.delete(child)

        is_cut = await two.cut(FORK.act(two.here, "parent"), others, skip=skip)
        children = [session.agent_id async for session in two.there.iter_sessions() if session.lineage]
        assert len(children) in ((0, 3) if is_cut else (3,))
        for child in children:
            await two.there.delete(child)
        if not is_cut:
            break
    assert made == 3


async def test_a_lease_that_was_given_is_given_again(stores: Any) -> None:
    """Whichever answer is lost, whoever asked has the lease afterwards, and nobody else."""
    two: Two = await stores()
    taken = 0
    for skip in range(20):
        agent_id, holder = f"agent-{skip}", []
        await two.here.acquire_agent_lock(f"warm-{skip}")

        async def others(agent_id: str = agent_id) -> None:
            nonlocal taken
            try:
                await (await two.there.acquire_agent_lock(agent_id)).release()
            except LockUnavailableError:
                taken += 1

        async def acquire(agent_id: str = agent_id, holder: list[Any] = holder) -> None:
            holder.append(await two.here.acquire_agent_lock(agent_id, ttl_ms=60_000))

        if not await two.cut(acquire(), others, skip=skip):
            break
        with pytest.raises(LockUnavailableError):
            await two.there.acquire_agent_lock(agent_id)
        await two.here.append_messages(agent_id, samples.messages(1), fence=holder[0])
    assert taken > 0


async def test_a_release_that_is_repeated_frees_nobody_else(stores: Any) -> None:
    """The answer to a release is lost, and another store takes the lease: it keeps it (LOCK-4)."""
    two: Two = await stores()
    freed = 0
    for skip in range(20):
        await (await two.here.acquire_agent_lock("warm")).release()
        lease = await two.here.acquire_agent_lock(f"agent-{skip}", ttl_ms=60_000)
        next_ones: list[Any] = []

        async def others(agent_id: str = lease.agent_id, next_ones: list[Any] = next_ones) -> None:
            with suppress(LockUnavailableError):  # it has not been released yet
                next_ones.append(await two.there.acquire_agent_lock(agent_id, ttl_ms=60_000))

        if not await two.cut(lease.release(), others, skip=skip):
            break
        for held in next_ones:
            freed += 1
            await held.renew()
    assert freed > 0


async def test_an_append_that_others_wrote_over_many_times_is_told_in_doubt(stores: Any) -> None:
    """When more was written meanwhile than the head remembers, nobody can tell: neither success nor failure is told,
    and nothing is written twice.
    """
    two: Two = await stores()
    in_doubt = 0
    for skip in range(10):
        agent_id = f"agent-{skip}"
        await two.here.append_messages("warm", samples.messages(1))
        await two.there.append_messages(agent_id, samples.messages(1))

        async def others(agent_id: str = agent_id) -> None:
            for n in range(KEPT_OPS + 1):
                await two.there.append_messages(agent_id, samples.messages(1, 100 + n))

        new = samples.message(7)
        try:
            if not await two.cut(two.here.append_messages(agent_id, [new]), others, skip=skip):
                break
        except OutcomeUnknownError:
            in_doubt += 1
        assert (await two.here.load_messages(agent_id)).count(new) <= 1
    assert in_doubt > 0


async def test_a_save_after_a_retry_stores_all_it_was_given(stores: Any) -> None:
    """The answer to a save is lost, and another store appends before the retry: the next save of the first one still
    stores the list that it was given.
    """
    two: Two = await stores()
    for skip in range(10):
        agent_id = f"agent-{skip}"
        await two.here.save_messages("warm", samples.messages(2 + skip))
        await two.here.save_messages(agent_id, samples.messages(2))

        async def others(agent_id: str = agent_id) -> None:
            await two.there.append_messages(agent_id, [samples.message(77)])

        if not await two.cut(two.here.save_messages(agent_id, samples.messages(3)), others, skip=skip):
            break
        await two.here.save_messages(agent_id, samples.messages(4))
        assert await two.there.load_messages(agent_id) == samples.messages(4)
    assert skip > 0


# --- Requests that arrive late ----------------------------------------------------------------------------------------

IMPATIENT = {"command_timeout_millis": 400, "connection_timeout_millis": 400}


def todos(text: str) -> TodoSnapshot:
    return samples.todos(text)


async def test_a_write_that_is_delivered_late_does_nothing(stores: Any) -> None:
    """A request stood somewhere in the network until long after it was given up: it does not overwrite what others
    wrote since, and takes no lease.
    """
    two: Two = await stores(**IMPATIENT)
    await two.here.save_todos("a", todos("old"))
    await (await two.here.acquire_agent_lock("a")).release()
    await asyncio.gather(*(two.here.load_todos("a") for _ in range(2)))
    two.proxy.mode = Mode.STALL
    calls = (two.here.save_todos("a", todos("A")), two.here.acquire_agent_lock("a", ttl_ms=60_000))
    ends = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(end, StorageError) for end in ends), ends
    await two.there.save_todos("a", todos("B"))
    await asyncio.sleep(1.5)  # what is allowed for what was sent last
    two.proxy.mode = Mode.FORWARD
    await asyncio.sleep(0.5)
    assert await two.there.load_todos("a") == todos("B")
    await (await two.there.acquire_agent_lock("a")).release()


async def test_who_looks_after_a_write_in_doubt_sees_how_it_ended(stores: Any) -> None:
    """A write that was given up may arrive at the very moment when its store looks whether it is there: what is told
    then stays true, so that whoever repeats what is missing doubles nothing.
    """
    two: Two = await stores(**IMPATIENT)
    for n in range(8):
        agent_id = f"agent-{n}"
        await two.there.append_messages(agent_id, [samples.message(0)])
        with suppress(StorageError):  # a busy machine
            await two.here.append_messages("warm", [samples.message(0)])
            await two.here.load_messages(agent_id)
        two.proxy.mode = Mode.STALL
        with pytest.raises(StorageError):
            await two.here.append_messages(agent_id, [samples.message(1)])
        two.proxy.mode = Mode.FORWARD
        while True:
            with suppress(StorageError):
                if len(await two.here.load_messages(agent_id)) == 2:
                    break
                await two.here.append_messages(agent_id, [samples.message(1)])
        await asyncio.sleep(0.3)
        assert await two.there.load_messages(agent_id) == samples.messages(2)


# --- Events that are there already ------------------------------------------------------------------------------------


async def test_an_identical_event_while_others_delete(server: Server, schema: str) -> None:
    """Appending what is there already, while another store deletes the agent, always gives an offset."""
    options = {"type": "postgres", "dsn": server.dsn, "schema": schema}
    async with await create_extended_store(**options) as one, await create_extended_store(**options) as two:
        offsets: list[int] = []

        async def append() -> None:
            for _ in range(200):
                offsets.append(await one.append_event("a", samples.event(1)))
            same = [one.append_event("a", event) for event in (samples.event(1), samples.event(2), samples.event(1))]
            offsets.extend(await asyncio.gather(*same))

        async def delete() -> None:
            while len(offsets) < 200:
                await two.delete("a")
                await asyncio.sleep(0.002)

        await asyncio.gather(append(), delete(), delete())
        assert offsets[:-1] == sorted(offsets[:-1])
        assert offsets[-1] == offsets[-3]
        assert len(set(offsets)) > 2


async def test_the_offsets_of_events_that_were_there_before(server: Server, schema: str) -> None:
    """Of several events some are new, some are there, and some come by two calls at once: each has its own offset."""
    options = {"type": "postgres", "dsn": server.dsn, "schema": schema}
    async with await create_extended_store(**options) as store:
        assert list(await store.append_events("a", samples.events(2))) == [1, 2]
        wanted = [samples.event(1), samples.event(7), samples.event(0)]
        both = (store.append_events("a", wanted), store.append_event("a", samples.event(7)))
        (first, new, zero), again = await asyncio.gather(*both)
        assert (first, zero) == (2, 1)
        assert new == again > 2
        assert [e.offset async for e in store.read_events("a", after_offset=0)] == [1, 2, new]


# --- Leases -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("durability", ["full", "fast"])
async def test_a_lease_outlives_the_server(durability: str) -> None:
    """The server is killed at once after it gave a lease, by a role that does not wait for the disk: with
    ``durability="full"`` it is held still, and what was renewed is. The control is ``fast``, where it is gone.
    """
    settings = {"synchronous_commit": "off", "wal_writer_delay": "10s"}
    with LocalServer(settings=settings) as server:
        async with await create_extended_store(type="postgres", dsn=server.dsn, durability=durability) as store:
            await (await store.acquire_agent_lock("warm")).release()
            await server.execute("CHECKPOINT")
            lease = await store.acquire_agent_lock("a", ttl_ms=60_000)
            await lease.renew()
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            if durability == "full":
                with pytest.raises(LockUnavailableError):
                    await store.acquire_agent_lock("a")
            else:
                assert (await store.acquire_agent_lock("a")).token == lease.token


async def test_an_acquire_that_waits_in_vain_leaves_no_lease(server: Server, schema: str) -> None:
    """The row of the lease is locked by a session of somebody's own for too long: nobody holds the lease afterwards."""
    options = {"type": "postgres", "dsn": server.dsn, "schema": schema, "command_timeout_millis": 1000}
    con = await asyncpg.connect(server.dsn)
    async with await create_extended_store(**options) as store:
        await (await store.acquire_agent_lock("a")).release()
        engine = store._context.engine  # type: ignore[attr-defined]
        assert isinstance(engine, PostgresEngine)
        async with con.transaction():
            await con.execute(f"SELECT 1 FROM {engine.tables.leases} FOR UPDATE")
            with pytest.raises(StoreBusyError, match="kept the agent locked"):
                await store.acquire_agent_lock("a", ttl_ms=60_000)
        await con.close()
        await asyncio.sleep(0.3)
        await (await store.acquire_agent_lock("a")).release()
