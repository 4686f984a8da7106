"""Tags of documents in PostgreSQL: the cost of a page, tables of version 3, and terms that an older store leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, Final

import asyncpg
import pytest
from kode_postgres import PostgresStore, schema
from kode_postgres.options import PostgresOptions
from kode_postgres.reads import Reads
from kode_postgres.schema import Tables, statements
from kode_postgres.testing.servers import Server

from kode_core.batch import DocQuery
from plugins.postgres.tests.plans import executing, explained, filled, nodes, touched

TABLES: Final = Tables(PostgresOptions())
MANY: Final = 200_000
PAGE: Final = 100
A_PAGE: Final = 12 * PAGE
"""Pages that are touched for a page: an entry, and the look-up of its document in an index and in the table."""
FILL: Final = f"""
    INSERT INTO kode_docs SELECT 'a' || lpad((n / 500)::text, 4, '0'), 'documents', decode(md5(n::text), 'hex'),
        'c/' || lpad((n % 500)::text, 6, '0'), n, decode(md5('digest' || n), 'hex'), '{{"value": 1}}'
    FROM generate_series(0, {MANY - 1}) n;
    INSERT INTO kode_doc_terms SELECT d.agent_id, d.key, t.term, d.key_hash, d.digest FROM kode_docs d
    CROSS JOIN LATERAL (VALUES ('all'), ('run' || d.time % 1000), (CASE d.time % 5000 WHEN 0 THEN 'rare' END)) t (term)
    WHERE t.term IS NOT NULL"""
_QUERIES: Final[dict[str, dict[str, Any]]] = {
    "a term that all have": {"terms": ("all",)},
    "from the middle": {"terms": ("all",), "after": ("a0200", "c/000250")},
    "of one agent": {"terms": ("all",), "agent_id": "a0200", "after": ("a0200", "c/000250")},
    "a rare term": {"terms": ("rare",)},
    "a term of 200": {"terms": ("run7",), "after": ("a0100", "c/000000")},
    "two terms": {"terms": ("run7", "run8")},
}


@pytest.fixture(scope="module")
def large(server: Server) -> Iterator[str]:
    """The address of a database with 200,000 documents of 400 agents; all have one term, and some of them another."""
    with filled(server, executing(*statements(TABLES), FILL, "VACUUM ANALYZE")) as address:
        yield address


@pytest.mark.parametrize("bodies", [True, False])
@pytest.mark.parametrize("descending", [True, False])
@pytest.mark.parametrize("name", _QUERIES)
async def test_a_page_costs_what_it_holds(con: Any, name: str, descending: bool, bodies: bool) -> None:
    """A page among 200,000 documents touches its entries and documents, also by a plan that the server kept."""
    query = DocQuery(limit=PAGE, descending=descending, bodies=bodies, **_QUERIES[name])
    statement, args = Reads(TABLES).docs_query_statement(query)
    plan = await explained(con, statement, args)
    assert 0 < plan["Actual Rows"] <= PAGE
    assert touched(plan) <= A_PAGE * len(query.terms)
    assert "Seq Scan" not in nodes(plan)
    await con.execute("DEALLOCATE asked")


async def test_tables_of_version_3_become_those_of_version_4(database: str) -> None:
    """A store of version 3 takes tags; a store that is still of version 3 leaves no wrong ones when it writes."""
    con = await asyncpg.connect(database)
    try:
        for migration in schema.MIGRATIONS[:3]:
            for step in migration(TABLES, 0):
                for statement in step.statements:
                    await con.execute(statement)
        await con.execute("INSERT INTO kode_meta VALUES ('schema_version', 3)")
        async with PostgresStore(database) as store:
            for key in ("k0", "k1", "k2"):
                await store.put_document("a", "c", key, 1, tags={"run": "r1"})
            assert len(await store.query_documents("c", {"run": "r1"})) == 3
            await con.execute("UPDATE kode_docs SET digest = decode('00', 'hex') WHERE key = 'c/k0'")
            await con.execute("DELETE FROM kode_docs WHERE key = 'c/k1'")
            page = await store.query_documents("c", {"run": "r1"}, limit=1)
            assert ([one.key for one in page], page.next_cursor, page.left_out) == (["k2"], None, ())
            for key in ("k0", "k1"):
                await store.put_document("a", "c", key, 1)
            assert await con.fetchval("SELECT count(*) FROM kode_doc_terms") == 1
            await store.delete("a")
            assert await con.fetchval("SELECT count(*) FROM kode_doc_terms") == 0
    finally:
        await con.close()


async def test_blind_puts_of_one_document_at_once_leave_its_tags(database: str) -> None:
    """However writers of one document come in between one another, it is found by the tags that it has in the end."""
    async with PostgresStore(database) as one, PostgresStore(database) as two:
        for turn in range(20):
            puts = [
                store.put_document("a", "c", "k", n, tags={"run": f"{turn}-{n}"})
                for n in range(4)
                for store in (one, two)
            ]
            await asyncio.gather(*puts)
            kept = await one.load_document("a", "c", "k")
            assert kept is not None
            found = [n for n in range(4) if await two.query_documents("c", {"run": f"{turn}-{n}"})]
            assert found == [kept.value]
        assert (await one.check_consistency()).issues == ()
