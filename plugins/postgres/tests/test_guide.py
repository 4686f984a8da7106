"""What the guide for PostgreSQL tells to do outside of Python: backups by ``pg_dump``, queries that watch a server."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
from pathlib import Path

import asyncpg
import pytest
from kode_conformance.values import samples
from kode_postgres.testing.servers import LocalServer

from kode_core import ExtendedStore, create_extended_store
from tests.test_cli import kode

GUIDE = Path(__file__).parents[3] / "docs" / "guides" / "postgres.md"


async def filled(store: ExtendedStore) -> None:
    await store.save_turn(
        "a",
        messages=samples.messages(20),
        info=samples.info("a"),
        events=samples.events(30),
        todos=samples.todos("one"),
    )
    await store.save_tool_call_records("a", [samples.tool_call(i) for i in range(5)])


async def portrait(store: ExtendedStore) -> list[object]:
    return [
        await store.load_messages("a"),
        await store.load_tool_call_records("a"),
        await store.load_info("a"),
        await store.load_todos("a"),
        [event async for event in store.read_events("a")],
        list(await store.query_messages(agent_id="a")),
    ]


def statements_of_the_guide() -> list[str]:
    return re.findall(r"^```sql\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)


def run(server: LocalServer, program: str, *arguments: str) -> None:
    address = {"PGHOST": "127.0.0.1", "PGPORT": str(server.port), "PGUSER": "postgres", "PGPASSWORD": server.password}
    done = subprocess.run(
        [server.programs / program, *arguments], env={**os.environ, **address}, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()


async def test_a_dump_is_a_backup(own_server: LocalServer, tmp_path: Path) -> None:
    """What ``pg_dump`` copies while a store is used is all there after ``pg_restore``; offsets and tokens go on."""
    file = str(tmp_path / "kode.dump")
    await own_server.execute("CREATE DATABASE kode_agents", "CREATE DATABASE kode_restored")
    async with create_extended_store(own_server.url("kode_agents")) as store:
        await filled(store)
        lease = await store.acquire_agent_lock("a")
        await lease.release()
        run(own_server, "pg_dump", "--format=custom", f"--file={file}", "kode_agents")
        was = await portrait(store)
    run(own_server, "pg_restore", "--dbname=kode_restored", file)
    async with create_extended_store(own_server.url("kode_restored"), create=False) as copy:
        assert await portrait(copy) == was
        assert (await copy.check_consistency()).consistent
        assert await copy.append_event("a", samples.event(100)) > max(e.offset for e in was[4])  # type: ignore[attr-defined]
        assert (await copy.acquire_agent_lock("a")).token > lease.token


async def test_the_queries_of_the_guide(own_server: LocalServer) -> None:
    """They run as they stand, and show what they are there for."""
    await own_server.execute("CREATE DATABASE kode_agents")
    url = own_server.url("kode_agents")
    async with create_extended_store(url) as store:
        await filled(store)
        async with store.acquire_agent_lock("a"):
            _, size, active, locked, _ = statements_of_the_guide()
            tables = {row["relname"] for row in await own_server.execute(size, database="kode_agents")}
            connections = await own_server.execute(active, database="kode_agents")
            leases = await own_server.execute(locked, database="kode_agents")
    assert {"kode_agents", "kode_messages", "kode_events"} <= tables
    assert connections
    assert [row["agent_id"] for row in leases] == ["a"]


async def test_what_stays_of_deleted_agents_is_removed(own_server: LocalServer) -> None:
    """A day after they were deleted, and nothing of others: neither of those that are younger, nor of those that have
    events or documents alone.
    """
    await own_server.execute("CREATE DATABASE kode_agents")
    remove = statements_of_the_guide()[4]

    async def left() -> list[list[str]]:
        tables = ("kode_agents", "kode_leases")
        found = [
            await own_server.execute(f"SELECT agent_id FROM {t} ORDER BY 1", database="kode_agents") for t in tables
        ]
        return [[row[0] for row in rows] for rows in found]

    async with create_extended_store(own_server.url("kode_agents")) as store:
        await filled(store)
        await store.append_event("events", samples.event(1))
        await store.save_todos("todos", samples.todos("one"))
        for agent_id in ("gone", "young"):
            await store.save_turn(agent_id, append=samples.messages(3), info=samples.info(agent_id))
        for agent_id in ("a", "gone", "young", "events"):
            await (await store.acquire_agent_lock(agent_id)).release()
        await store.delete("gone")
        await store.delete("young")
        day = 86_400_000
        await own_server.execute(
            f"UPDATE kode_agents SET op_times = (SELECT array_agg(t - {day}) FROM unnest(op_times) t)"
            " WHERE agent_id <> 'young'",
            "UPDATE kode_leases SET expires = expires - interval '25 hours' WHERE agent_id <> 'young'",
            database="kode_agents",
        )
        was = await portrait(store)
        await own_server.execute(remove, database="kode_agents")
        assert await left() == [["a", "events", "todos", "young"], ["a", "events", "young"]]
        assert await portrait(store) == was
        assert (await store.check_consistency()).consistent
        await store.save_turn("gone", append=samples.messages(2), info=samples.info("gone"))
        assert len(await store.load_messages("gone")) == 2


async def test_the_role_that_may_do_little(own_server: LocalServer) -> None:
    """It is made as the guide says, does all that a store does, and may neither make nor read anything else."""
    await own_server.execute("CREATE DATABASE kode_agents")
    printed = await asyncio.to_thread(kode, "schema", "postgres", "--schema", "kode", "--print")
    admin = await asyncpg.connect(own_server.url("kode_agents"))
    await admin.execute(printed[0])
    await admin.execute(statements_of_the_guide()[0])
    await admin.execute("CREATE TABLE kode.others (x int); CREATE TABLE public.others (x int)")
    await admin.execute("REVOKE ALL ON kode.others FROM kode_app")
    await admin.close()
    credentials = f"postgres:{own_server.password}"
    url = own_server.url("kode_agents").replace(credentials, "kode_app:change-me")

    async with create_extended_store(url, schema="kode", create=False) as store:
        following = asyncio.ensure_future(anext(aiter(store.follow_events("a"))))
        await filled(store)
        assert (await following).offset == 1
        async with store.acquire_agent_lock("a") as lease:
            await lease.renew()
            await store.append_messages("a", samples.messages(1, 20), fence=lease)
        children = await store.batch_fork("a", 2)
        await store.upsert_tool_call_records("a", [samples.tool_call(1)])
        await store.save_messages("a", samples.messages(5))
        assert [session.agent_id for session in await store.query_sessions(limit=10)] != []
        assert await store.delete_many(agent_id=children[0]) == 1
        await store.delete("a")
        assert await store.list() == [children[1]]
        assert (await store.health_check()).healthy
        assert (await store.check_consistency()).consistent
        assert (await store.get_metrics()).storage.total_agents == 1
    con = await asyncpg.connect(url)
    for statement in (
        "CREATE TABLE kode.mine (x int)",
        "CREATE SCHEMA mine",
        "SELECT * FROM kode.others",
        "SELECT * FROM public.others",
        "DROP TABLE kode.kode_events",
        "TRUNCATE kode.kode_events",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await con.execute(statement)
    await con.close()
