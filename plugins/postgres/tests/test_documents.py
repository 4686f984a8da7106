"""Documents of the caller's own in PostgreSQL: writers at once, lost answers, plans, and stores of older versions."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Iterator
from typing import Any, Final

import asyncpg
import msgspec
import pytest
from kode_conformance.servers.faults import Mode
from kode_conformance.values import samples
from kode_postgres import PostgresStore
from kode_postgres.arguments import Statements, key_hash
from kode_postgres.commits import Committer
from kode_postgres.migrations import version_of
from kode_postgres.options import PostgresOptions
from kode_postgres.reads import Reads
from kode_postgres.schema import MIGRATIONS, SCHEMA_VERSION, Tables, statements
from kode_postgres.testing.harness import PostgresHarness, PostgresHybridHarness
from kode_postgres.testing.servers import LocalServer, Server
from msgspec.structs import replace

from kode_core import ABSENT, ConflictError, CorruptRecordError, OutcomeUnknownError, PutDocument
from kode_core.batch import ABSENT_DOC, Applied, Batch, DocKind, DocWrite, ListWrite, Refused
from kode_core.codec import Body, digest
from kode_core.docs import Doc, DocSpan
from plugins.postgres.tests.bouncer import Bouncer
from plugins.postgres.tests.plans import executing, explained, explained_again, filled, nodes, touched
from plugins.postgres.tests.test_retries import Two, stores
from tests.own_documents import OwnDocuments, count_up

__all__ = ["stores"]

pytestmark = pytest.mark.usefixtures("server")
TABLES: Final = Tables(PostgresOptions())


class TestPostgres(OwnDocuments):
    harness = PostgresHarness()
    backend = "postgres"


class TestHybrid(OwnDocuments):
    harness = PostgresHybridHarness()
    backend = "postgres"
    rounds = 10


# --- writers at once --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_new", [False, True], ids=["existing", "new"])
async def test_who_waited_for_the_lock_sees_what_came_first(server: Server, schema: str, is_new: bool) -> None:
    """Two writes that demand the absence of a document wait for the same agent: the second does not believe what it
    saw before it waited.
    """
    dsn = server.dsn
    con = await asyncpg.connect(dsn)
    head = (
        f'INSERT INTO "{schema}".kode_agents (agent_id, message_version, message_count, tool_call_version,'
        " tool_call_count, updated_at, last_offset, ops, op_times) VALUES ($1, 0, 0, 0, 0, 0, 0, '{}', '{}')"
    )
    lock = f'SELECT FROM "{schema}".kode_agents WHERE agent_id = $1 FOR UPDATE'
    async with PostgresStore(dsn, schema=schema) as one, PostgresStore(dsn, schema=schema) as two:
        for n in range(8):
            agent_id = f"a{n}"
            if not is_new:
                await one.append_messages(agent_id, samples.messages(1))
            async with con.transaction():
                await con.execute(head if is_new else lock, agent_id)
                calls = [
                    asyncio.ensure_future(store.put_document(agent_id, "c", "k", i, expect=ABSENT))
                    for i, store in enumerate((one, two))
                ]
                while await con.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted") < 2:
                    await asyncio.sleep(0.002)
            ends = await asyncio.gather(*calls, return_exceptions=True)
            assert sorted(type(end).__name__ for end in ends) == ["ConflictError", "str"], ends
    await con.close()


def put(agent_id: str, n: int, expect: Body | None = None) -> Batch:
    text = f'{{"value":{n},"nonce":"{secrets.token_hex(8)}"}}'
    doc = Doc("c/k", 1, Body(text, digest(text.encode())))
    write = DocWrite(DocKind.DOCUMENTS, "c/k", doc, expect)
    return Batch(agent_id=agent_id, op_id=secrets.token_hex(8), now=1, docs=(write,))


async def test_groups_of_many_agents(server: Server, schema: str) -> None:
    """Batches of many agents go in one statement: each demand counts for itself, and a batch without one is written."""
    async with PostgresStore(server.dsn, schema=schema) as one, PostgresStore(server.dsn, schema=schema) as two:
        engines = [store._context.engine for store in (one, two)]
        for turn in range(5):
            agents = [f"a{turn}-{n}" for n in range(60)]
            first = [put(agent, n, ABSENT_DOC if n % 3 else None) for n, agent in enumerate(agents)]
            second = [put(agent, -n, ABSENT_DOC) for n, agent in enumerate(agents)]
            ends = await asyncio.gather(engines[0].commit(first), engines[1].commit(second))
            for n, (mine, others) in enumerate(zip(*ends, strict=True)):
                assert all(end == Refused("docs") or isinstance(end, Applied) for end in (mine, others))
                (stored,) = await engines[1].docs(agents[n], DocKind.DOCUMENTS, "c/k")
                if n % 3:
                    assert [mine, others].count(Refused("docs")) == 1
                    assert (stored == first[n].docs[0].doc) == isinstance(mine, Applied)
                else:  # the one without a demand comes first or last, and stays in both cases
                    assert isinstance(mine, Applied)
                    assert stored == first[n].docs[0].doc


async def test_an_agent_that_is_made_while_nothing_is_locked(
    server: Server, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new agent has no head to lock: another store makes it between the look and the write, which is refused then."""
    async with PostgresStore(server.dsn, schema=schema) as one, PostgresStore(server.dsn, schema=schema) as two:
        theirs, original = put("a", 2), Committer._write_locked

        async def write_locked(self: Committer, *args: Any) -> Any:
            monkeypatch.setattr(Committer, "_write_locked", original)
            assert isinstance((await two._context.engine.commit([theirs]))[0], Applied)
            return await original(self, *args)

        monkeypatch.setattr(Committer, "_write_locked", write_locked)
        mine = msgspec.structs.replace(put("a", 1, ABSENT_DOC), messages=ListWrite(length=0))
        assert await one._context.engine.commit([mine]) == [Refused("docs")]
        assert await one._context.engine.docs("a", DocKind.DOCUMENTS) == [theirs.docs[0].doc]


async def test_a_refused_group_changes_nothing(server: Server, schema: str) -> None:
    """What is refused for a document changes neither the agent nor its version, and the outcome is told by its name."""
    async with PostgresStore(server.dsn, schema=schema) as store:
        engine = store._context.engine
        await store.save_turn("a", info=samples.info("a"), append=samples.messages(2))
        before = await store.load_version("a")
        wrong = Body("", b"\1" * 16)
        batches = [put("a", 1, wrong), put("new", 1, wrong), put("b", 1, ABSENT_DOC)]
        a, new, b = await engine.commit(batches)
        assert (a, new, type(b)) == (Refused("docs"), Refused("docs"), Applied)
        assert await store.load_version("a") == before
        con = await asyncpg.connect(server.dsn)
        ids = await con.fetch(f'SELECT agent_id FROM "{schema}".kode_agents ORDER BY 1')
        await con.close()
        assert [row[0] for row in ids] == ["a", "b"]


async def test_a_delete_that_demands_a_document(server: Server, schema: str) -> None:
    """A demand refers to what is stored before the batch deletes it."""
    async with PostgresStore(server.dsn, schema=schema) as store:
        engine = store._context.engine
        first = put("a", 1)
        await engine.commit([first])
        assert first.docs[0].doc is not None
        again = put("a", 2, first.docs[0].doc.body)
        wrong = Batch(agent_id="a", op_id="x", now=1, delete=True, docs=put("a", 3, ABSENT_DOC).docs)
        right = Batch(agent_id="a", op_id="y", now=1, delete=True, docs=again.docs)
        assert await engine.commit([wrong]) == [Refused("docs")]
        (outcome,) = await engine.commit([right])
        assert isinstance(outcome, Applied)
        assert await engine.docs("a", DocKind.DOCUMENTS) == [again.docs[0].doc]


async def test_behind_pgbouncer(own_server: LocalServer, bouncer: Bouncer) -> None:
    """Transactions may come to any session: no increment is lost, and one of many creators wins."""
    async with PostgresStore(bouncer.dsn, max=6) as one, PostgresStore(bouncer.dsn, max=6) as two:
        await one.put_document("a", "c", "count", 0)
        await asyncio.gather(*(count_up(store, 5) for store in (one, two) * 3))
        found = await two.load_document("a", "c", "count")
        assert found is not None
        assert found.value == 30
        calls = (store.put_document("b", "c", "k", 0, expect=ABSENT) for store in (one, two) * 10)
        ends = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(end) for end in ends].count(str) == 1
        assert list(await two.list_document_keys("b", "c", prefix="k")) == ["k"]


# --- answers that are lost --------------------------------------------------------------------------------------------


async def value_of(two: Two, agent_id: str) -> Any:
    found = await two.there.load_document(agent_id, "c", "k")  # type: ignore[attr-defined]
    return None if found is None else found.value


@pytest.mark.parametrize("meanwhile", ["nothing", "overwritten", "deleted"])
@pytest.mark.parametrize(
    ("does", "demand"),
    [("put", "none"), ("put", "absent"), ("put", "version"), ("delete", "none"), ("delete", "version")],
)
async def test_a_lost_answer(stores: Any, does: str, demand: str, meanwhile: str) -> None:
    """Each answer to a write of a document alone is lost in turn: what was applied is not applied again, is told as
    written, and what others wrote since stays; what was not applied finds its demand as it is by then.
    """
    two: Two = await stores()
    here: Any = two.here
    there: Any = two.there
    applied = 0

    async def write(agent_id: str, version: str | None) -> Any:
        expect = {"none": None, "absent": ABSENT, "version": version}[demand]
        if does == "put":
            return await here.put_document(agent_id, "c", "k", "mine", expect=expect)
        return await here.delete_document(agent_id, "c", "k", expect=expect)

    async def prepare(agent_id: str) -> str | None:
        await there.append_messages(agent_id, samples.messages(1))
        return None if demand == "absent" else await there.put_document(agent_id, "c", "k", "old")

    for skip in range(40):
        agent_id = f"agent-{skip}"
        for warm in (f"warm-{skip}", f"warmer-{skip}"):
            await write(warm, await prepare(warm))
        version = await prepare(agent_id)
        end: list[Any] = []
        seen: list[Any] = []

        async def call(agent_id: str = agent_id, version: str | None = version, end: list[Any] = end) -> None:
            try:
                end.append(await write(agent_id, version))
            except (ConflictError, OutcomeUnknownError) as exc:
                end.append(exc)

        async def others(agent_id: str = agent_id, seen: list[Any] = seen) -> None:
            seen.append(await value_of(two, agent_id))
            if meanwhile == "overwritten":
                await there.put_document(agent_id, "c", "k", "theirs")
            elif meanwhile == "deleted":
                await there.delete_document(agent_id, "c", "k")
            seen.append(await value_of(two, agent_id))

        if not await two.cut(call(), others, skip=skip):
            break
        before, after = seen
        mine = "mine" if does == "put" else None
        final = await value_of(two, agent_id)
        if before == mine:
            applied += 1
            assert not isinstance(end[0], Exception), (skip, end)
            assert final == after
        elif demand == "none" or (demand == "absent" and after is None) or (demand == "version" and after == "old"):
            assert not isinstance(end[0], Exception), (skip, end)
            assert final == mine
        else:
            kinds = (ConflictError, OutcomeUnknownError) if demand == "absent" else (ConflictError,)
            assert isinstance(end[0], kinds), (skip, end)
            assert final == after
    assert skip > 0
    assert applied > 0


@pytest.mark.parametrize("demand", ["absent", "version"])
async def test_a_lost_request(stores: Any, demand: str) -> None:
    """Nobody knows whether the server will get a request that was lost. A document of its version comes never again;
    but it may be absent again when the request arrives: that is told as in doubt, and settled before the next call.
    """
    two: Two = await stores()
    here: Any = two.here
    there: Any = two.there
    for agent_id in ("warm", "warmer", "a"):
        version = await there.put_document(agent_id, "c", "k", "old")
        if demand == "absent":
            await there.delete_document(agent_id, "c", "k")
        expect = ABSENT if demand == "absent" else version
        if agent_id != "a":
            await here.put_document(agent_id, "c", "k", "mine", expect=expect)
    await asyncio.gather(*(here.load_document("warm", "c", "k") for _ in range(4)))
    two.proxy.cut_at(request=b"", then=Mode.REFUSE)
    call = asyncio.ensure_future(here.put_document("a", "c", "k", "mine", expect=expect))
    while two.proxy.mode is not Mode.REFUSE:
        await asyncio.sleep(0.005)
    theirs = await there.put_document("a", "c", "k", "theirs")
    two.proxy.mode = Mode.FORWARD
    with pytest.raises(OutcomeUnknownError if demand == "absent" else ConflictError):
        await call
    found = await here.load_document("a", "c", "k")
    assert (found.value, found.version) == ("theirs", theirs)
    await there.delete_document("a", "c", "k")
    await here.put_document("a", "c", "k", "again", expect=ABSENT)
    assert await value_of(two, "a") == "again"


# --- plans ------------------------------------------------------------------------------------------------------------

MANY: Final = 100_000
PAGE: Final = 100
AROUND: Final = 30
"""Pages that a look-up may touch besides its rows: levels of indexes."""

FILL: Final = f"""
    INSERT INTO kode_docs SELECT agent, kind, decode(md5(collection || n), 'hex'), collection || lpad(n::text, 6, '0'),
        n, decode(md5(n::text), 'hex'), json_build_object('value', repeat('word ', 20))
    FROM (VALUES ('a', 'documents', 'c/', {MANY}), ('a', 'documents', 'd/', 1000), ('a', 'snapshots', 'c/', 1000),
        ('b', 'documents', 'c/', {MANY})) given (agent, kind, collection, count),
        generate_series(0, count - 1) n"""


@pytest.fixture(scope="module")
def large(server: Server) -> Iterator[str]:
    """The address of a database with a collection of 100,000 documents, and other agents and kinds around it."""
    with filled(server, executing(*statements(TABLES), FILL, "VACUUM ANALYZE")) as address:
        yield address


@pytest.mark.parametrize("bodies", [True, False])
@pytest.mark.parametrize("descending", [True, False])
@pytest.mark.parametrize(
    ("start", "stop"), [("c/", "c0"), ("c/05", "c/06"), ("c/0999", "c0"), ("c/", "c/0500"), ("c/1", "c/2"), ("", "~")]
)
async def test_a_page_costs_what_it_holds(con: Any, start: str, stop: str, descending: bool, bodies: bool) -> None:
    """A page of a range of 100,000 documents touches its rows, wherever it begins; nothing is sorted."""
    span = DocSpan(start=start, stop=stop, descending=descending, limit=PAGE + 1, bodies=bodies)
    before = DocSpan(start="c/0", stop="c/00001", limit=5)  # a plan may have been kept from a small page
    statement, args = Reads(TABLES).docs_statement("a", span)
    _, others = Reads(TABLES).docs_statement("b", before)
    for earlier in (args, others):
        plan = await explained(con, statement, args, earlier)
        assert touched(plan) <= AROUND + PAGE
        assert not {name for name in nodes(plan) if "Sort" in name or name == "Seq Scan"}
        await con.execute("DEALLOCATE asked")


async def test_a_demand_is_looked_up(con: Any) -> None:
    """A write that demands documents finds them by their keys, however many others there are."""
    for count in (1, 50):
        keys = [f"c/{n:06}" for n in range(count)]
        docs = tuple(
            DocWrite(DocKind.DOCUMENTS, key, Doc(key, 1, Body("{}", digest(key.encode()))), Body("", b"\1" * 16))
            for key in keys
        )
        batch = Batch(agent_id="a", op_id="x", now=1, docs=docs)
        statement, args = Statements(TABLES, durable=True).write([batch], 0, 2**62)
        plan = await explained(con, statement, args)
        assert touched(plan) <= AROUND + 20 * count
        await con.execute("DEALLOCATE asked")
    made, names = Statements(TABLES, durable=True), (["documents"], [key_hash("c/x")], ["c/x"])
    assert [tuple(row) for row in await con.fetch(made.digests, [1], ["a"], *names)] == [(1, "documents", "c/x", None)]


async def test_contents_are_looked_up(con: Any) -> None:
    """A write that demands that an agent has nothing, or an info, looks at few rows, however many there are."""
    made = Statements(TABLES, durable=True)
    for agent_id, more in (("a", True), ("nobody", False)):
        plan = await explained(con, made.contents, [[1], [agent_id]])
        assert touched(plan) <= AROUND
        await con.execute("DEALLOCATE asked")
        assert [tuple(row) for row in await con.fetch(made.contents, [1], [agent_id])] == [(1, b"", more)]
        batch = Batch(agent_id=agent_id, op_id="x", now=1, expect_updated_at=0, expect_info=ABSENT_DOC)
        statement, args = made.write([replace(batch, expect_nothing=True, messages=ListWrite(expect=0))], 0, 2**62)
        assert touched(await explained(con, statement, args)) <= 2 * AROUND
        await con.execute("DEALLOCATE asked")


async def test_plans_that_were_made_while_the_store_was_small(database: str) -> None:
    """Plans that a session keeps from a store without documents lead to a document, and to a page, of 100,000."""
    async with PostgresStore(database):
        pass
    made = Statements(TABLES, durable=True)
    asked = {
        "page": Reads(TABLES).docs_statement("a", DocSpan(start="c/", stop="c0", limit=PAGE)),
        "back": Reads(TABLES).docs_statement("a", DocSpan(start="c/", stop="c0", limit=PAGE, descending=True)),
        "write": made.write([put("a", 1, Body("", b"\1" * 16))], 0, 2**62),
        "digests": (made.digests, [[1], ["a"], ["documents"], [key_hash("c/k")], ["c/k"]]),
    }
    sessions = {name: await asyncpg.connect(database) for name in asked}
    for name, (statement, args) in asked.items():
        await explained(sessions[name], statement, args)
    await sessions["page"].execute(FILL)
    for name, (_, args) in asked.items():
        plan = await explained_again(sessions[name], args)
        assert touched(plan) <= AROUND + PAGE, name
        await sessions[name].close()


# --- stores of older versions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("partitions", [0, 3])
async def test_a_store_of_version_2(database: str, partitions: int) -> None:
    """It gets the index when it is opened, also where tables are in partitions; documents are then kept and listed."""
    con = await asyncpg.connect(database)
    for migration in MIGRATIONS[:2]:
        for step in migration(TABLES, partitions):
            for statement in step.statements:
                await con.execute(statement)
    await con.execute("INSERT INTO kode_meta VALUES ('schema_version', 2)")
    async with PostgresStore(database) as store:
        assert await version_of(con, TABLES) == SCHEMA_VERSION
        keys = [f"{n:03}" for n in range(300)]
        await store.write_documents("a", [PutDocument("c", key, key) for key in keys])
        for n in range(20):
            calls = (store.put_document(f"a{n}", "c", "k", i, expect=ABSENT) for i in range(3))
            ends = await asyncio.gather(*calls, return_exceptions=True)
            assert [type(end) for end in ends].count(str) == 1
        found = [doc.key async for doc in store.iter_documents("a", "c", reverse=True)]
        assert found == keys[::-1]
        assert (await store.check_consistency()).consistent
    valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = 'kode_docs_keys'::regclass"
    assert await con.fetchval(valid) is True
    await con.close()


async def test_the_longest_keys(database: str) -> None:
    """The longest agent ids, collections and keys fit into the index, where nothing of them can be compressed."""
    rng = random.Random(2)
    agent, *keys = ["".join(chr(rng.randrange(0x4E00, 0x9000)) for _ in range(n)) for n in (85, 133, 133)]
    async with PostgresStore(database) as store:
        await store.write_documents(agent, [PutDocument("c" * 64, key, 1) for key in keys])
        assert list(await store.list_document_keys(agent, "c" * 64)) == sorted(keys)


@pytest.mark.parametrize("damage", ["body = '{}'", "digest = ''", "digest = decode('00', 'hex')", "body = '5'"])
async def test_a_damaged_row(database: str, damage: str) -> None:
    """A load of the document fails by its name, and a page leaves it out and names it; a put mends it."""
    con = await asyncpg.connect(database)
    async with PostgresStore(database) as store:
        await store.write_documents("a", [PutDocument("c", key, key) for key in "xyz"])
        await con.execute(f"UPDATE kode_docs SET {damage} WHERE key = 'c/y'")
        with pytest.raises(CorruptRecordError, match="document 'c/y' of agent 'a'"):
            await store.load_document("a", "c", "y")
        page = await store.list_documents("a", "c")
        assert [doc.key for doc in page] == ["x", "z"]
        assert page.left_out == ("document 'c/y' of agent 'a'",)
        assert not (await store.check_consistency()).consistent
        await store.put_document("a", "c", "y", 1)
        assert [doc.value for doc in await store.list_documents("a", "c")] == ["x", 1, "z"]
    await con.close()
