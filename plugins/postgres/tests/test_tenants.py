"""Tenants in PostgreSQL: row level security, as the guide has it, and the plans of a small tenant's queries."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import msgspec
import pytest
from kode_conformance.values import samples
from kode_postgres import PostgresStore
from kode_postgres.options import PostgresOptions
from kode_postgres.reads import Reads
from kode_postgres.schema import Tables
from kode_postgres.testing.servers import Server

from kode_core import StorageError
from kode_core.query import Within, message_query, session_query, tool_call_query
from plugins.postgres.tests.bouncer import Bouncer
from plugins.postgres.tests.large import fill
from plugins.postgres.tests.plans import explained, filled, touched

GUIDE = (Path(__file__).parents[3] / "docs/guides/tenants.md").read_text()
SQL = re.findall(r"```sql\n(.*?)```", GUIDE, re.DOTALL)


def as_role(address: str, role: str, **options: Any) -> PostgresStore:
    parts = urlsplit(address)
    return PostgresStore(
        parts._replace(netloc=f"{role}:secret@{parts.hostname}:{parts.port}").geturl(), create=False, max=3, **options
    )


@pytest.fixture
async def secured(database: str) -> AsyncIterator[str]:
    """A database with the statements of the guide, in which the tenants and the store itself have an agent."""
    async with PostgresStore(database) as store:
        for one in (store, store.scoped("acme"), store.scoped("globex")):
            await one.save_info("a", samples.info("a"))
            await one.save_messages("a", samples.messages(3))
            await one.append_events("a", samples.events(3))
            await one.put_document("a", "c", "k", 1, tags={"run": "r1"})
    con = await asyncpg.connect(database)
    try:
        for statements in SQL:
            await con.execute(statements)
        yield database
    finally:
        await con.close()
        async with asyncio_connection(database) as again:
            for role in ("acme", "globex", "kode_tenant", "kode_app"):
                await again.execute(f"DROP OWNED BY {role}")
                await again.execute(f"DROP ROLE {role}")


class asyncio_connection:  # noqa: N801
    def __init__(self, address: str) -> None:
        self._address = address

    async def __aenter__(self) -> Any:
        self._con = await asyncpg.connect(self._address)
        return self._con

    async def __aexit__(self, *_: object) -> None:
        await self._con.close()


async def test_a_role_sees_the_rows_of_its_tenant_alone(secured: str) -> None:
    """Every method of a view works for a tenant's role, and whatever it asks for, the server gives it no other rows."""
    async with as_role(secured, "acme") as store:
        view = store.scoped("acme")
        assert await view.list() == ["a"]
        assert await store.list() == ["@acme/a"]
        assert [s.agent_id for s in await store.query_sessions()] == ["@acme/a"]
        assert await store.count_messages() == 3
        assert [d.agent_id for d in await store.query_documents("c", tags={"run": "r1"})] == ["@acme/a"]
        assert await store.load_messages("@globex/a") == []
        assert await store.load_messages("a") == []
        await view.save_messages("a", samples.messages(5))
        await view.append_events("a", samples.events(2, 10))
        async with view.acquire_agent_lock("a"):
            child = await view.fork("a")
        await view.delete(child)
        await view.put_document("b", "c", "k", 2)
        for agent_id in ("@globex/b", "b"):
            with pytest.raises(StorageError):
                await store.append_messages(agent_id, samples.messages(1))
        with pytest.raises(StorageError):
            await store.append_messages("@globex/a", samples.messages(1))
    async with PostgresStore(secured) as whole:
        assert await whole.scoped("globex").load_messages("a") == samples.messages(3)
        assert await whole.scoped("acme").load_messages("a") == samples.messages(5)


async def test_one_role_may_serve_the_tenant_that_a_setting_names(secured: str) -> None:
    """The setting names the tenant of a connection; without it, the role sees nothing and writes nothing."""
    async with as_role(secured, "kode_app", server_settings={"app.tenant": "globex"}) as store:
        assert await store.list() == ["@globex/a"]
        assert await store.scoped("globex").load_messages("a") == samples.messages(3)
        with pytest.raises(StorageError):
            await store.append_messages("@acme/a", samples.messages(1))
    async with as_role(secured, "kode_app") as store:
        assert await store.list(include_without_info=True) == []
        with pytest.raises(StorageError):
            await store.append_messages("@acme/b", samples.messages(1))


async def test_the_setting_is_no_wall_and_the_role_is(secured: str) -> None:
    """Someone who may send SQL can set the setting to another tenant, and cannot become another role."""
    count = "SELECT count(*) FROM kode_agents"
    parts = urlsplit(secured)
    for role, found in (("kode_app", 1), ("acme", 0)):
        address = parts._replace(netloc=f"{role}:secret@{parts.hostname}:{parts.port}").geturl()
        async with asyncio_connection(address) as con:
            await con.execute("SET app.tenant = 'globex'")
            assert await con.fetchval(f"{count} WHERE agent_id LIKE '@globex/%'") == found
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await con.execute("SET ROLE globex")


async def test_a_pooler_gives_the_setting_to_others(bouncer: Bouncer) -> None:
    """Behind a pooler in transaction mode a setting that one client has set stays for the next one."""
    first = await asyncpg.connect(bouncer.url("postgres"), statement_cache_size=0)
    second = await asyncpg.connect(bouncer.url("postgres"), statement_cache_size=0)
    try:
        await first.execute("SET app.tenant = 'acme'")
        assert await second.fetchval("SELECT current_setting('app.tenant', true)") == "acme"
    finally:
        await first.close()
        await second.close()


async def test_every_table_with_agents_has_a_policy(secured: str) -> None:
    """A table that the store gains must be named in the guide."""
    async with asyncio_connection(secured) as con:
        rows = await con.fetch(
            "SELECT c.relname, c.relrowsecurity FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid"
            " WHERE c.relkind IN ('r', 'p') AND a.attname = 'agent_id' AND c.relname LIKE 'kode\\_%'"
        )
    assert len(rows) >= 9
    assert [name for name, has_policy in rows if not has_policy] == []


# --- plans ------------------------------------------------------------------------------------------------------------

TABLES = Tables(PostgresOptions())
READS = Reads(TABLES)
SMALL = 300
"""Rows of the small tenant, of each kind."""


async def _fill(con: Any) -> None:
    await fill(con, TABLES)
    for table in ("agents", "infos", "messages", "tool_calls"):
        name = getattr(TABLES, table)
        columns = [
            row[0]
            for row in await con.fetch(
                "SELECT attname FROM pg_attribute WHERE attrelid = $1::regclass AND attnum > 0 AND NOT attisdropped",
                name.strip('"'),
            )
        ]
        others = ", ".join(f'"{column}"' for column in columns if column != "agent_id")
        await con.execute(
            f"INSERT INTO {name} (agent_id, {others}) SELECT '@small/' || agent_id, {others} FROM {name}"
            f" ORDER BY agent_id LIMIT {SMALL}"
        )
        await con.execute(f"ANALYZE {name}")


@pytest.fixture(scope="module")
def large(server: Server) -> Iterator[str]:
    """The address of a database in which others have 200,000 rows, and the tenant ``small`` has 300."""
    with filled(server, _fill) as address:
        yield address


async def test_agents_by_the_beginning_of_their_ids(con: Any) -> None:
    """Any text may be the beginning, not only a tenant: the query touches the agents that begin so."""
    for prefix in ("@smal", "@small/agt-000"):
        query = session_query({"agent_id": Within(prefix), "limit": 50})  # type: ignore[typeddict-item]
        for made in (READS.sessions_statement(query), READS.count_statement(query)):
            plan = await explained(con, *made)
            await con.execute("DEALLOCATE ALL")
            assert touched(plan) < 6 * SMALL, plan


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize(
    ("make", "filters"),
    [
        (session_query, {}),
        (session_query, {"sort_by": "updated_at"}),
        (session_query, {"sort_by": "message_count"}),
        (message_query, {}),
        (message_query, {"role": "user"}),
        (tool_call_query, {}),
        (tool_call_query, {"is_error": True}),
    ],
)
async def test_a_query_of_a_small_tenant_touches_its_own_rows(con: Any, make: Any, filters: Any, order: str) -> None:
    query = msgspec.structs.replace(make({"order": order, "limit": 50, **filters}), agent_id=Within("@small/"))
    is_of_sessions = make is session_query
    statement = READS.sessions_statement if is_of_sessions else READS.rows_statement
    for made in (statement(query), READS.count_statement(query)):
        plan = await explained(con, *made)
        await con.execute("DEALLOCATE ALL")
        assert touched(plan) < 6 * SMALL, plan
