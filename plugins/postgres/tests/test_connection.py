"""Connections: how they are made, by whom they are closed, and what is told when they cannot be."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
import traceback
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
from kode_conformance.values import samples
from kode_postgres import PostgresStore
from kode_postgres.engine import PostgresEngine
from kode_postgres.testing.servers import LocalServer, Server

from kode_core import (
    ConfigurationError,
    StoreReadOnlyError,
    StoreUnavailableError,
    create_extended_store,
)
from plugins.postgres.tests.bouncer import Bouncer


def engine_of(store: Any) -> PostgresEngine:
    engine = store._context.engine
    assert isinstance(engine, PostgresEngine)
    return engine


def parts(server: Server) -> dict[str, Any]:
    split = urlsplit(server.dsn)
    return {
        "host": split.hostname,
        "port": split.port,
        "user": split.username,
        "password": split.password,
        "database": split.path[1:],
    }


# --- Ways to say where ------------------------------------------------------------------------------------------------


async def test_every_way_to_say_where(server: Server, schema: str) -> None:
    """A URL, options, a nested connection and the class itself open the same store."""
    url = f"{server.dsn}?schema={schema}"
    async with create_extended_store(url) as store:
        await store.save_messages("a", samples.messages(1))
    for opening in (
        create_extended_store(type="postgres", schema=schema, **parts(server)),
        create_extended_store(type="postgres", schema=schema, connection=parts(server)),
        PostgresStore(parts(server), schema=schema),
        PostgresStore(server.dsn, schema=schema),
        PostgresStore(schema=schema, **parts(server)),
    ):
        async with opening as store:
            assert await store.load_messages("a") == samples.messages(1)


async def test_a_pool_of_the_callers_stays_the_callers(server: Server, schema: str) -> None:
    """A pool that was passed in is used, even with codecs of its own, and is neither closed nor changed."""

    async def init(con: Any) -> None:
        import json

        for kind in ("json", "jsonb"):
            await con.set_type_codec(kind, schema="pg_catalog", encoder=json.dumps, decoder=json.loads)
        await con.execute("SET work_mem = '5MB'; SET synchronous_commit = off")

    async with asyncpg.create_pool(server.dsn, min_size=1, max_size=2, init=init, reset=None) as pool:
        async with PostgresStore(pool=pool, schema=schema) as store:
            await store.save_turn("a", messages=samples.messages(3), info=samples.info("a"), events=samples.events(2))
            assert await store.load_messages("a") == samples.messages(3)
            assert (await store.load_info("a")) is not None
        async with pool.acquire() as con:
            assert await con.fetchval("SELECT 1") == 1
    await store.close()


# --- What is told -----------------------------------------------------------------------------------------------------


async def test_what_is_told_when_it_cannot_be_opened(server: Server) -> None:
    """Each way an open can fail says what to do, and tells no password."""
    secret = parts(server)["password"] or "no-password"

    async def told(kind: type[Exception], **how: Any) -> str:
        given = {**parts(server), "connection_timeout_millis": 300, **how}
        with pytest.raises(kind) as caught:
            await PostgresStore(given).open()
        assert secret not in "".join(traceback.format_exception(caught.value))
        return str(caught.value)

    assert "is it running, and is the address right?" in await told(StoreUnavailableError, port=1)
    assert "there is no such database; make it with createdb" in await told(StoreUnavailableError, database="nowhere")
    wrong = await told(StoreUnavailableError, password="wrong")
    assert "the server refused the user or the password" in wrong
    assert "cannot be reached" in await told(StoreUnavailableError, host="nowhere.invalid")
    with pytest.raises(ConfigurationError, match="the option ssl is true, false, one of disable"):
        await PostgresStore({**parts(server), "ssl": "/no/such/file"}).open()


async def test_a_database_of_another_encoding(server: Server) -> None:
    """A database that cannot hold every text is refused at once."""
    async with server.database("ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0") as name:
        with pytest.raises(ConfigurationError, match="the database's encoding is LATIN1, which cannot hold every text"):
            await PostgresStore(server.url(name)).open()


async def test_a_server_that_is_read_only(own_server: LocalServer) -> None:
    """On a standby, reads work and writes say that it is one."""
    async with PostgresStore(own_server.dsn) as store:
        await store.save_messages("a", samples.messages(1))
    await own_server.execute("ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")
    await asyncio.sleep(0.3)
    async with PostgresStore(own_server.dsn) as store:
        assert len(await store.load_messages("a")) == 1
        with pytest.raises(StoreReadOnlyError, match="the server is read-only, perhaps a standby"):
            await store.append_messages("a", samples.messages(1))
        assert not (await store.health_check()).healthy


async def test_a_commit_waits_for_the_disk_whatever_the_settings(server: Server, schema: str) -> None:
    """A session whose synchronous_commit is off commits durably here, and keeps its setting (F4, F19)."""
    seen: list[str] = []

    async def setup(con: Any) -> None:
        await con.execute("SET synchronous_commit = off")

    look = (
        'CREATE TABLE "{0}".seen (s text); CREATE FUNCTION "{0}".look() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN'
        " INSERT INTO \"{0}\".seen VALUES (current_setting('synchronous_commit')); RETURN NULL; END $$;"
        ' CREATE CONSTRAINT TRIGGER look AFTER INSERT ON "{0}".kode_docs DEFERRABLE INITIALLY DEFERRED'
        ' FOR EACH ROW EXECUTE FUNCTION "{0}".look()'
    )
    async with (
        asyncpg.create_pool(server.dsn, min_size=1, max_size=1, setup=setup) as pool,
        PostgresStore(pool=pool, schema=schema) as store,
    ):
        async with pool.acquire() as con:
            await con.execute(look.format(schema))
        await store.save_todos("a", samples.todos("x"))
        async with pool.acquire() as con:
            seen += [row[0] for row in await con.fetch(f'SELECT s FROM "{schema}".seen')]
            seen.append(await con.fetchval("SHOW synchronous_commit"))
    assert seen == ["on", "off"]


# --- PgBouncer --------------------------------------------------------------------------------------------------------


async def test_behind_pgbouncer(bouncer: Bouncer) -> None:
    """Everything works in transaction mode, many clients at once on few servers, and nothing stays in a session."""
    stores = [PostgresStore(bouncer.dsn, max=8, follow_poll_ms=20) for _ in range(3)]
    await asyncio.gather(*(store.open() for store in stores))
    assert {engine_of(store).connections.pooled for store in stores} == {True}

    async def work(n: int) -> None:
        store = stores[n % 3]
        for i in range(10):
            await store.save_turn(
                f"a{n}", append=samples.messages(1, i), info=samples.info(f"a{n}"), events=[samples.event(i)]
            )
            async with store.acquire_agent_lock(f"a{n}"):
                await store.append_event("shared", samples.event(1000 * n + i))
        assert len(await store.load_messages(f"a{n}")) == 10

    await asyncio.gather(*(work(n) for n in range(30)))
    assert len(await stores[0].batch_fork("a0", 3)) == 3
    assert [e.offset async for e in stores[1].read_events("shared", after_offset=0)] == list(range(1, 301))

    async def follow() -> int:
        async for event in stores[2].follow_events("shared", after_offset=300):
            return event.bookmark.seq
        return -1

    follower = asyncio.ensure_future(follow())
    await asyncio.sleep(0.1)
    await stores[0].append_event("shared", samples.event(77))
    assert await asyncio.wait_for(follower, 30) == 77
    await stores[0].delete("a0")
    assert (await stores[0].check_consistency()).consistent
    await asyncio.gather(*(store.close() for store in stores))


# --- The end ----------------------------------------------------------------------------------------------------------

LEFT_OPEN = """
import asyncio, sys
from kode_conformance.values import samples
from kode_postgres import PostgresStore
async def main():
    store = PostgresStore(sys.argv[1], schema=sys.argv[2])
    await store.append_messages("a", samples.messages(1))
    await store.append_events("a", samples.events(3))
    async for event in store.follow_events("a"):
        if event.bookmark.seq == 2:
            break
asyncio.run(main())
"""


def test_a_process_ends_though_nobody_closed_the_store(server: Server) -> None:
    """The interpreter exits at once (OPS-11)."""
    started = time.monotonic()
    run = [sys.executable, "-W", "ignore", "-c", LEFT_OPEN, server.dsn, "left_open"]
    done = subprocess.run(run, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - started < 10


# --- Passwords that change --------------------------------------------------------------------------------------------


async def test_a_password_from_a_function(server: Server, schema: str) -> None:
    """A function, async or not, is asked for each new connection, so that a token may change meanwhile."""
    given = parts(server)
    asked: list[str] = []

    async def later() -> str:
        await asyncio.sleep(0)
        asked.append("later")
        return str(given["password"])

    def at_once() -> str:
        asked.append("at once")
        return str(given["password"])

    for function, name in ((later, "later"), (at_once, "at once")):
        asked.clear()
        options = {**given, "password": function}
        async with create_extended_store(type="postgres", schema=schema, **options) as store:
            await store.save_messages("a", samples.messages(1))
            opened = len(asked)
            await asyncio.gather(*(store.load_messages("a") for _ in range(20)))
        assert opened >= 2
        assert len(asked) > opened
        assert set(asked) == {name}
        assert "function" not in repr(store)


@pytest.mark.parametrize(
    ("give", "says"),
    [
        (lambda: 1 / 0, "raised ZeroDivisionError"),
        (lambda: 5, "must return a str, not int"),
        (lambda: None, "NoneType"),
    ],
)
async def test_a_password_function_that_fails(server: Server, give: Any, says: str) -> None:
    """Its error is told by its name, and its words are not."""
    with pytest.raises(ConfigurationError, match=says) as caught:
        await create_extended_store(type="postgres", **{**parts(server), "password": give})
    assert caught.value.__cause__ is not caught.value


async def test_the_urls_own_parameters(server: Server, schema: str) -> None:
    """The application's name reaches the server; connect_timeout is the time to connect, in seconds."""
    url = f"{server.dsn}?schema={schema}&application_name=my%20bot&connect_timeout=7&options=-c%20work_mem%3D1234kB"
    async with create_extended_store(url) as store:
        found = await engine_of(store).connections.pool.fetchrow(
            "SELECT current_setting('application_name'), current_setting('work_mem')"
        )
        assert tuple(found) == ("my bot", "1234kB")
        assert engine_of(store).connections.connect_s == 7
