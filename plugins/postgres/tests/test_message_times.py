"""MSG-4 with clocks that differ, on PostgreSQL."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest
from kode_postgres import PostgresStore
from kode_postgres.testing.harness import PostgresHarness
from kode_postgres.testing.servers import Server

from tests.message_times import MessageTimes, append, set_clock, times

pytestmark = pytest.mark.usefixtures("server")


class TestPostgres(MessageTimes):
    harness = PostgresHarness()


async def test_who_waited_for_the_lock_sees_what_came_first(server: Server, schema: str) -> None:
    """An append whose statement was begun before another one was committed is not older than that one's messages."""
    dsn = server.dsn
    ahead, behind = PostgresStore(dsn, schema=schema), PostgresStore(dsn, schema=schema)
    con = await asyncpg.connect(dsn)
    async with set_clock(ahead, 9000), set_clock(behind, 1000):
        await append(behind, "first")
        for n in range(3):
            async with con.transaction():
                await con.execute(f'SELECT FROM "{schema}".kode_agents WHERE agent_id = $1 FOR UPDATE', "a")
                tasks = []
                for waiting, store in enumerate((ahead, behind), 1):
                    tasks.append(asyncio.ensure_future(append(store, f"{n}")))
                    while await con.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted") < waiting:
                        await asyncio.sleep(0.005)
            await asyncio.gather(*tasks)
        found = await times(ahead)
        assert found[0] == 1000
        assert found[1] in (1000, 9000)  # whoever of the two came first
        assert found[2:] == [9000] * 5
    await con.close()
