"""Behind PgBouncer in transaction mode: each transaction may come to another session, and sessions are shared."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import asyncpg
import pytest
from kode_conformance import Handle, Space, load_checks, run_check
from kode_conformance.servers import had
from kode_conformance.servers.load import AppendLog
from kode_conformance.settings import Settings, Tier
from kode_conformance.values import samples
from kode_postgres.testing.harness import PostgresHarness
from kode_postgres.testing.servers import LocalServer, Server

from kode_core import ExtendedStore, create_extended_store
from plugins.postgres.tests.bouncer import Bouncer

CHECKS = [
    "EVT-1.appends_of_several_processes",
    "EVT-4.the_identical_entry_again_is_stored_once",
    "EVT-7.following_another_process",
    "FORK-1.a_fork_is_of_one_instant",
    "HIS-1.windows_are_keyed_by_id",
    "LIFE-3.delete_against_save",
    "LIFE-3.delete_removes_everything",
    "LOCK-1.one_holder_over_processes",
    "LOCK-3.a_killed_holder_is_followed",
    "LOCK-5.writes_inside_async_with_are_fenced",
    "MSG-3.saves_and_appends_follow_each_other",
    "OPS-7.many_first_starts_at_once",
    "OPS-9.cancelled_appends_do_no_harm",
    "QRY-2.message_filters_select",
    "QRY-5.cursors_while_others_write",
    "TC-3.concurrent_upserts_are_all_kept",
    "TURN-1.a_turn_writes_all_it_is_given",
]
"""What sessions that are not one's own could break."""

SESSION = """
SELECT pg_backend_pid(), current_setting('synchronous_commit'), current_setting('search_path'),
    current_setting('transaction_isolation'), current_setting('lock_timeout'), current_setting('statement_timeout'),
    (SELECT count(*) FROM pg_prepared_statements), (SELECT count(*) FROM pg_cursors WHERE name <> ''),
    (SELECT count(*) FROM pg_listening_channels())
"""
UNCHANGED = ("on", '"$user", public', "read committed", "0", "0", 0, 0, 0)


class BouncedHarness(PostgresHarness):
    """The store behind the bouncer; other processes need nothing but the handle."""

    name = "postgres behind pgbouncer"
    spec = "kode_postgres.testing.harness:PostgresHarness"

    def __init__(self, server: Server, bouncer: Bouncer) -> None:
        self._server, self._bouncer = server, bouncer

    async def provision(self, space: Space) -> Handle:
        await self._server.execute(f'CREATE SCHEMA "{space.name}"')
        return {"dsn": self._bouncer.dsn, "schema": space.name}

    async def destroy(self, handle: Handle) -> None:
        await self._server.execute(f'DROP SCHEMA IF EXISTS "{handle["schema"]}" CASCADE')


@pytest.fixture(scope="module")
def behind() -> Iterator[LocalServer]:
    """The server that all tests here share; it forgets what it acknowledged unless it is told not to."""
    with had(lambda: LocalServer(settings={"wal_writer_delay": "10s"})) as server:
        yield server


@pytest.fixture(scope="module")
def pooled(behind: LocalServer) -> Iterator[Bouncer]:
    with had(lambda: Bouncer(behind), optional=True) as bouncer:
        yield bouncer


@pytest.fixture
async def store(behind: LocalServer, pooled: Bouncer) -> AsyncIterator[ExtendedStore]:
    async with behind.schema() as schema:
        yield (found := await create_extended_store(type="postgres", dsn=pooled.dsn, schema=schema, max=8))
        await found.close()


async def sessions(bouncer: Bouncer) -> dict[int, tuple[Any, ...]]:
    """What the sessions are like that clients of the bouncer share, by their process."""

    async def look() -> tuple[Any, ...]:
        connection = await asyncpg.connect(bouncer.dsn, statement_cache_size=0)
        try:
            async with connection.transaction():
                row = tuple((await connection.fetch(SESSION))[0])
                await asyncio.sleep(0.05)  # so that the others get other sessions
            return row
        finally:
            await connection.close()

    return {pid: rest for pid, *rest in await asyncio.gather(*(look() for _ in range(8)))}


@pytest.mark.parametrize("check", CHECKS)
def test_the_contract_holds_and_sessions_are_left_as_they_were(
    check: str, behind: LocalServer, pooled: Bouncer
) -> None:
    """Checks of the contract; afterwards no session has a setting, a lock, a statement or a transaction of ours."""
    [wanted] = [known for known in load_checks() if known.id == check]

    run_check(wanted, BouncedHarness(behind, pooled), Settings(Tier.QUICK))

    found = asyncio.run(sessions(pooled))
    assert {tuple(rest) for rest in found.values()} == {UNCHANGED}
    assert 0 < len(found) <= 4
    assert asyncio.run(behind.execute("SELECT * FROM pg_locks WHERE locktype = 'advisory'")) == []
    assert asyncio.run(behind.execute("SELECT 1 FROM pg_stat_activity WHERE state LIKE 'idle in trans%'")) == []


async def test_what_others_left_in_a_session_does_no_harm(
    behind: LocalServer, pooled: Bouncer, store: ExtendedStore
) -> None:
    """Another client switched durability off, and the isolation, and the search path: acknowledged is acknowledged."""

    async def spoil() -> None:
        connection = await asyncpg.connect(pooled.dsn, statement_cache_size=0)
        async with connection.transaction():
            await connection.execute(
                "SET synchronous_commit = off; SET search_path = pg_catalog;"
                " SET default_transaction_isolation = 'repeatable read'; SET jit = off"
            )
            await asyncio.sleep(0.05)
        await connection.close()

    log = AppendLog(store)
    await log.write(9, 3)
    await asyncio.gather(*(spoil() for _ in range(8)))
    assert "off" in {rest[0] for rest in (await sessions(pooled)).values()}
    await asyncio.gather(*(log.write(writer, 10) for writer in range(4)))
    await asyncio.to_thread(behind.kill)
    await asyncio.to_thread(behind.start)

    assert log.errors == []
    assert await log.problems(store) == []


async def test_nobody_sees_that_the_bouncer_was_restarted(pooled: Bouncer, store: ExtendedStore) -> None:
    """Every connection ends, and new ones are taken at once."""
    log = AppendLog(store)
    async with log.load():
        await asyncio.to_thread(pooled.restart)
        await log.more(10)
    assert log.errors == []
    assert await log.problems(store) == []


async def test_leases_are_held_over_four_sessions(pooled: Bouncer, store: ExtendedStore) -> None:
    """And every one is its holder's alone."""
    leases = await asyncio.gather(*(store.acquire_agent_lock(f"a{n}", ttl_ms=60_000) for n in range(200)))
    await asyncio.gather(
        *(store.append_messages(lease.agent_id, [samples.message()], fence=lease) for lease in leases[::20])
    )
    assert len(await sessions(pooled)) <= 4
    await asyncio.gather(*(lease.release() for lease in leases))
