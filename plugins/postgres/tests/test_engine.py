"""What only the PostgreSQL engine can get wrong."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from kode_conformance.values import samples
from kode_postgres import PostgresStore, commits
from kode_postgres.engine import PostgresEngine
from kode_postgres.errors import to_kode_error
from kode_postgres.testing.servers import Server
from kode_postgres.watch import channel_of, payload_of

from kode_core import KodeError, StorageError, UnsupportedError
from kode_core.batch import Applied, Batch, ListKind, ListWrite, MessageIndex, Refused, Row
from kode_core.codec import Body, digest
from kode_core.query import message_query, session_query, tool_call_query


@pytest.fixture
async def store(server: Server, schema: str) -> AsyncIterator[PostgresStore]:
    async with PostgresStore(server.dsn, schema=schema) as opened:
        yield opened


def engine_of(store: PostgresStore) -> PostgresEngine:
    engine = store._context.engine
    assert isinstance(engine, PostgresEngine)
    return engine


async def sql(store: PostgresStore, statement: str, *args: Any) -> list[Any]:
    async def fetch(session: Any) -> Any:
        return await session.con.fetch(statement, *args)

    return list(await engine_of(store).connections.read(fetch))


def row(text: str) -> Row:
    body = f'{{"role":"user","content":[{{"type":"text","text":"{text}"}}]}}'
    return Row(Body(body, digest(body.encode())), 1, MessageIndex("user", ("text",)))


def append(agent: str, op: str, text: str, **more: Any) -> Batch:
    return Batch(agent_id=agent, op_id=op, now=1, messages=ListWrite(append=(row(text),)), **more)


# --- group commit -----------------------------------------------------------------------------------------------------


async def test_writes_share_statements(store: PostgresStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of writes at once take a few statements."""
    await store.save_messages("warm", [])
    sizes: list[int] = []
    write = commits.Committer._write

    async def counted(self: Any, group: Any) -> None:
        sizes.append(len(group))
        await write(self, group)

    monkeypatch.setattr(commits.Committer, "_write", counted)
    await asyncio.gather(*(store.append_messages(f"a{i}", samples.messages(1)) for i in range(300)))
    await asyncio.gather(*(store.append_event(f"a{i}", samples.event(i)) for i in range(300)))
    assert sum(sizes) == 600
    assert len(sizes) <= 12


async def test_a_write_that_comes_as_the_last_lane_ends_is_written(server: Server, schema: str) -> None:
    """Whatever the turn of the event loop in which a batch comes, it is written, though no other comes after it."""
    async with PostgresStore(server.dsn, schema=schema, max=2) as store:
        engine = engine_of(await store.open())
        committer = engine._committer
        for i in range(5):
            first = asyncio.ensure_future(engine.commit([append("a", f"first-{i}", "one")]))
            while not committer._queues._behind:
                await asyncio.sleep(0)
            while committer._queues._behind:
                await asyncio.sleep(0)
            async with asyncio.timeout(20):  # in this very turn; wait_for would begin it in the next one
                (outcome,) = await engine.commit([append("b", f"second-{i}", "two")])
            assert isinstance(outcome, Applied)
            await first


async def test_one_write_that_fails_takes_no_other_with_it(store: PostgresStore) -> None:
    """Of writes in one statement, one that the server refuses fails alone."""
    engine = engine_of(store)
    broken = Batch(agent_id="b", op_id="x", now=1, messages=ListWrite(append=(Row(Body("{", b""), 1, row("").index),)))
    outcomes = await engine.commit([append("a", "1", "one"), broken, append("c", "2", "two")])
    assert [type(outcome) for outcome in outcomes] == [Applied, StorageError, Applied]
    assert [len((await engine.rows(agent, ListKind.MESSAGES)).rows) for agent in ("a", "b", "c")] == [1, 0, 1]


async def test_batches_of_one_agent_keep_their_order(store: PostgresStore) -> None:
    """Many batches for one agent in one call are applied in their order, refusals among them."""
    engine = engine_of(store)
    batches = [append("a", str(i), str(i)) for i in range(20)]
    batches.insert(7, Batch(agent_id="a", op_id="no", now=1, messages=ListWrite(expect=5, append=(row("no"),))))
    outcomes = await engine.commit(batches)
    assert [i for i, outcome in enumerate(outcomes) if isinstance(outcome, Refused)] == [7]
    texts = [body.text for body, _ in (await engine.rows("a", ListKind.MESSAGES)).rows]
    assert [text.split('"')[-2] for text in texts] == [str(i) for i in range(20)]


async def test_an_operation_is_known_again(store: PostgresStore) -> None:
    """A batch that comes again is not applied again, also after others came in between (OPS-10)."""
    engine = engine_of(store)
    first = append("a", "first", "one")
    await engine.commit([first])
    await engine.commit([append("a", str(i), "more") for i in range(10)])
    (outcome,) = await engine.commit([first])
    assert isinstance(outcome, Applied)
    assert outcome.messages.count == 11
    assert len((await engine.rows("a", ListKind.MESSAGES)).rows) == 11


async def test_numbers_never_come_again(store: PostgresStore) -> None:
    """After a delete, offsets go on, versions are other ones, and tokens grow."""
    engine = engine_of(store)
    offsets, versions, tokens = [], [], []
    for _ in range(3):
        offsets += await store.append_events("a", samples.events(3))
        await store.save_messages("a", samples.messages(2))
        versions.append((await engine.rows("a", ListKind.MESSAGES)).version)
        async with store.acquire_agent_lock("a") as lease:
            tokens.append(lease.token)
        await store.delete("a")
        assert await engine.summary("a") is None
    assert offsets == list(range(1, 10))
    assert tokens == [1, 2, 3]
    assert len(set(versions)) == 3


async def test_nothing_is_left_of_what_was_never_there(store: PostgresStore) -> None:
    """Loads and deletes of an unknown agent leave no row."""
    await store.load_messages("a")
    await store.delete("a")
    assert await sql(store, f"SELECT * FROM {engine_of(store).tables.agents}") == []


async def test_many_stores_write_the_same_agents(server: Server, schema: str) -> None:
    """Groups over the same agents in different stores do not deadlock, and lose nothing."""
    stores = [PostgresStore(server.dsn, schema=schema, max=3) for _ in range(4)]
    await asyncio.gather(*(store.open() for store in stores))

    async def work(store: PostgresStore, n: int) -> None:
        for i in range(15):
            await asyncio.gather(
                *(store.append_messages(f"a{k}", samples.messages(1)) for k in range(8)),
                *(store.append_event(f"a{k}", samples.event(1000 * n + i)) for k in range(8)),
            )

    await asyncio.gather(*(work(store, n) for n, store in enumerate(stores)))
    for k in range(8):
        assert len(await stores[0].load_messages(f"a{k}")) == 60
        offsets = [event.offset async for event in stores[0].read_events(f"a{k}", after_offset=0)]
        assert offsets == list(range(1, 61))
    await asyncio.gather(*(store.close() for store in stores))


async def test_sessions_that_make_the_same_head_at_once(server: Server, schema: str) -> None:
    """Whole lists are replaced of agents that nobody knows yet: who comes second finds the head and goes on."""
    stores = [PostgresStore(server.dsn, schema=schema, max=3) for _ in range(4)]
    await asyncio.gather(*(store.open() for store in stores))

    def replaced(agent: str, op: str) -> Batch:
        return Batch(agent_id=agent, op_id=op, now=1, messages=ListWrite(length=0, append=(row(op),)))

    for n in range(60):
        calls = (engine_of(store).commit([replaced(f"a{n}", f"{i}-{n}")]) for i, store in enumerate(stores))
        outcomes = [outcome for [outcome] in await asyncio.gather(*calls)]
        assert [type(outcome) for outcome in outcomes] == [Applied] * 4, outcomes
        assert (await engine_of(stores[0]).rows(f"a{n}", ListKind.MESSAGES)).version > 0
    await asyncio.gather(*(store.close() for store in stores))


async def test_an_agent_that_somebody_keeps_locked(server: Server, store: PostgresStore) -> None:
    """Who holds an agent's row in a session of their own holds up that agent alone, and only for a while."""
    for agent in "abcdef":
        await store.append_event(agent, samples.event(0))
    engine = engine_of(store)
    con = await asyncpg.connect(server.dsn)
    try:
        await con.execute("BEGIN")
        await con.execute(f"SELECT 1 FROM {engine.tables.agents} WHERE agent_id = 'c' FOR UPDATE")
        started = time.monotonic()
        held = asyncio.ensure_future(engine.commit([append(agent, "op", "text") for agent in "abcdef"]))
        await asyncio.sleep(1.8)
        counts = [len((await engine.rows(agent, ListKind.MESSAGES)).rows) for agent in "abcdef"]
        await engine.commit([append(agent, "next", "text") for agent in "abdef"])
        took = time.monotonic() - started
    finally:
        await con.close()
    assert counts == [1, 1, 0, 1, 1, 1]
    assert took < 4
    assert [type(outcome) for outcome in await held] == [Applied] * 6


async def test_a_thousand_leases_over_four_connections(server: Server, schema: str) -> None:
    """Leases cost no connections (LOCK-6)."""
    async with PostgresStore(server.dsn, schema=schema, max=4) as store:
        leases = await asyncio.gather(*(store.acquire_agent_lock(f"a{i}") for i in range(1000)))
        assert {lease.token for lease in leases} == {1}
        rows = await sql(
            store, "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'kode' AND state <> 'idle'"
        )
        assert rows[0][0] == 1
        await asyncio.gather(*(lease.release() for lease in leases))


# --- what is stored ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [2**31, 2**62, 2**63 - 1])
async def test_an_offset_beyond_all_rows_finds_none(store: PostgresStore, offset: int) -> None:
    """However large it is, and whatever the statement adds to it."""
    await store.save_turn("a", info=samples.info("a"), messages=[samples.message()])
    assert await store.query_messages(offset=offset) == []
    assert await store.query_messages(content_type="image", offset=offset) == []
    assert await store.query_sessions(offset=offset) == []
    assert await store.query_sessions(updated_before=2**40, offset=offset) == []
    assert await store.query_sessions(updated_before=2**52, offset=offset) == []


async def test_bodies_can_be_read_in_sql(store: PostgresStore) -> None:
    """Bodies are JSON to SQL, and metadata an indexed projection."""
    await store.save_turn("a", messages=samples.messages(2), info=samples.info("a", metadata={"plan": "gold"}))
    t = engine_of(store).tables
    found = await sql(store, f"SELECT body #>> '{{content,0,text}}' FROM {t.messages} ORDER BY position")
    assert [row[0] for row in found] == ["message 0", "message 1"]
    found = await sql(store, f"SELECT body::jsonb -> 'metadata' ->> 'plan' FROM {t.infos}")
    assert found[0][0] == "gold"


async def plan(store: PostgresStore, statement: str, args: Any) -> str:
    async def explain(session: Any) -> Any:
        async with session.con.transaction():
            await session.con.execute("SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off")
            await session.con.execute("SET LOCAL enable_bitmapscan = on")
            return await session.con.fetch(f"EXPLAIN {statement}", *args)

    return "\n".join(row[0] for row in await engine_of(store).connections.read(explain))


@pytest.mark.parametrize(
    ("query", "index"),
    [
        (message_query({}), "kode_messages_created"),
        (message_query({"agent_id": "a"}), "kode_messages_agent_created"),
        (tool_call_query({}), "kode_tool_calls_created"),
        (tool_call_query({"tool_name": "bash"}), "kode_tool_calls_name"),
        (tool_call_query({"is_error": True}), "kode_tool_calls_errors"),
        (tool_call_query({"state": "FAILED"}), "kode_tool_calls_states"),
        (tool_call_query({"has_approval": True}), "kode_tool_calls_approvals"),
        (message_query({"role": "system"}), "kode_messages_roles"),
        (tool_call_query({"agent_id": "a", "state": "COMPLETED"}), "kode_tool_calls_agent_created"),
    ],
)
async def test_rows_are_found_by_index(store: PostgresStore, query: Any, index: str) -> None:
    """A page of messages or tool calls is read from an index in its order, also after a cursor."""
    for after in (None, (5, "a", 3)):
        fields = {name: getattr(query, name) for name in query.__struct_fields__}
        found = await plan(store, *engine_of(store).reads.rows_statement(type(query)(**{**fields, "after": after})))
        assert index in found
        assert "Sort" not in found


@pytest.mark.parametrize(
    ("filters", "index"),
    [
        ({}, "kode_agents_created"),
        ({"sort_by": "updated_at"}, "kode_agents_updated"),
        ({"template_id": "t"}, "kode_agents_template"),
        ({"sort_by": "message_count"}, "kode_agents_counts"),
        ({"updated_before": 5}, "kode_agents_early"),
    ],
)
async def test_sessions_are_found_by_index(store: PostgresStore, filters: Any, index: str) -> None:
    """A page of sessions is read from an index in its order."""
    assert index in await plan(store, *engine_of(store).reads.sessions_statement(session_query(filters)))


async def test_metadata_is_found_by_index(store: PostgresStore) -> None:
    """Sessions of a user are found by the index of the metadata."""
    t = engine_of(store).tables
    found = await plan(store, f"SELECT agent_id FROM {t.infos} WHERE metadata @> $1::text::jsonb", ['{"a": "b"}'])
    assert "kode_infos_metadata" in found


# --- followers --------------------------------------------------------------------------------------------------------


async def test_followers_of_another_store_are_woken(server: Server, schema: str) -> None:
    """Events come within milliseconds, without gaps or repeats, also when the listening connection is cut."""
    options: dict[str, Any] = {"schema": schema, "follow_poll_ms": 1000}
    async with PostgresStore(server.dsn, **options) as one, PostgresStore(server.dsn, **options) as two:
        sent: dict[int, float] = {}
        delays: list[float] = []
        seen: list[int] = []

        async def follow() -> None:
            async for event in two.follow_events("a"):
                seen.append(event.bookmark.seq)
                delays.append(time.perf_counter() - sent[event.bookmark.seq])
                if len(seen) == 60:
                    return

        follower = asyncio.ensure_future(follow())
        await asyncio.sleep(0.5)
        for seq in range(60):
            if seq == 40:
                await server.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE pid <> pg_backend_pid() AND query LIKE '%followers%'"
                )
            sent[seq] = time.perf_counter()
            await one.append_event("a", samples.event(seq))
            await asyncio.sleep(0.01)
        async with asyncio.timeout(20):
            await follower
        assert seen == list(range(60))
        assert statistics.median(delays[:40]) < 0.05


async def test_nobody_is_told_where_nobody_follows(server: Server, store: PostgresStore) -> None:
    """Without followers no commit notifies; with one, each commit of events for that agent does."""
    con = await asyncpg.connect(server.dsn)
    heard: list[object] = []
    try:
        await con.add_listener(channel_of(engine_of(store).tables), lambda *args: heard.append(args[3]))
        await store.append_events("a", samples.events(3))
        await con.execute("SELECT 1")
        assert heard == []
        following = store.follow_events("a")
        assert [(await anext(following)).offset for _ in range(3)] == [1, 2, 3]
        more = asyncio.ensure_future(anext(following))
        await asyncio.sleep(0.5)
        await store.append_events("b", samples.events(3))
        await store.append_events("a", samples.events(1, start=10))
        await more
        await con.execute("SELECT 1")
        assert heard == [payload_of("a")]
    finally:
        await con.close()


# --- errors -----------------------------------------------------------------------------------------------------------


def test_every_error_of_the_driver_has_a_translation() -> None:
    """Every exception class of asyncpg becomes an error of this library, with the place, and without details."""
    classes = [
        c for c in vars(asyncpg.exceptions).values() if isinstance(c, type) and issubclass(c, asyncpg.PostgresError)
    ]
    assert len(classes) > 200
    for kind in [*classes, OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.InternalClientError, EOFError]:
        exc = kind("what the driver says")
        exc.detail = "Key (body)=(SECRET) already exists."  # type: ignore[union-attr]
        error = to_kode_error(exc, "postgres at h/d")
        assert isinstance(error, KodeError)
        assert "postgres at h/d" in str(error)
        assert "SECRET" not in str(error)


async def test_a_backup_is_somebody_elses(store: PostgresStore, tmp_path: Any) -> None:
    """A backup names the tool to use."""
    with pytest.raises(UnsupportedError, match="pg_dump --format=custom --file="):
        await store.backup(tmp_path / "copy")


async def test_retention_holds_nobody_up(store: PostgresStore) -> None:
    """While delete_many removes many long agents, others go on writing, one call after the other."""
    for n in range(200):
        info = samples.info(f"old-{n:03d}", template_id="old")
        await store.save_turn(info.agent_id, messages=samples.messages(200), info=info)
    deleting = asyncio.ensure_future(store.delete_many(template_id="old"))
    written = 0
    while not deleting.done():
        await store.append_messages("new", samples.messages(1, written))
        written += 1
    assert await deleting == 200
    assert written > 3
    assert await store.load_messages("new") == samples.messages(written)
    assert list(await store.list()) == []
