"""The index of texts of PostgreSQL: what it finds, who keeps it, and how it is made and mended (QRY-12)."""

from __future__ import annotations

import asyncio
import json
import random
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import urlsplit

import asyncpg
import pytest
from kode_conformance.registry import load_checks
from kode_conformance.running.runner import judge
from kode_conformance.settings import Settings, Tier
from kode_postgres import indexing
from kode_postgres.options import PostgresOptions
from kode_postgres.reads import Reads
from kode_postgres.schema import Tables, statements
from kode_postgres.testing.harness import PostgresHarness
from kode_postgres.testing.servers import Server
from kode_postgres.text_tables import make_statements
from kode_postgres.texts import hashes

from kode_core import AgentInfo, StoreUnavailableError, create_extended_store
from kode_core.authoring.texts import MOST_INDEXED, grams_of
from kode_core.layers.encryption import KeyRing, encrypted, new_key
from kode_core.model import Message, TextBlock
from kode_core.query import message_query
from plugins.postgres.tests.plans import explained, filled, touched

WORDS: Final = "the quick brown fox jumps over a lazy dog while flight seats are booked".split()  # noqa: SIM905


class IndexedHarness(PostgresHarness):
    """A store whose database has the index of texts."""

    async def open_with(self, handle: Any, **options: Any) -> Any:
        return await super().open_with(handle, text_index=True, **options)


@pytest.mark.parametrize(
    "check", [check for check in load_checks() if {"QRY-12", "QRY-13"} & {*check.clauses}], ids=lambda check: check.id
)
def test_checks_pass_with_the_index(check: Any) -> None:
    """Every check of searches for texts passes by the index, too."""
    result = judge(check, IndexedHarness(), Settings(Tier.QUICK, 1))
    assert result.status.value == "pass", result.message


def opened(server: Server, schema: str, **options: Any) -> Any:
    return create_extended_store(type="postgres", dsn=server.dsn, schema=schema, max=4, **options)


@asynccontextmanager
async def connected(server: Server) -> Any:
    con = await asyncpg.connect(server.dsn)
    try:
        yield con
    finally:
        await con.close()


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run kode with these arguments."""
    command = [sys.executable, "-m", "kode_core.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


async def waiting(store: Any) -> int | None:
    found: int | None = (await store.get_metrics()).storage.texts_waiting
    return found


async def indexed(store: Any) -> None:
    """Wait until the index has all messages."""
    while await waiting(store):
        await asyncio.sleep(0.02)


async def positions(store: Any, text: str, **more: Any) -> list[int]:
    return [m.position for m in await store.query_messages(contains=text, order="asc", limit=10_000, **more)]


async def by_index(store: Any, text: str) -> bool:
    """Whether a search for the text is done by the index."""
    engine = store._context.engine
    grams = hashes(grams_of(text))
    statement, args = engine.reads.texts_statement(message_query({"contains": text, "limit": 10}), grams)
    rows = await engine.connections.read(lambda session: session.fetch(statement, *args))
    return not rows[0][0]


def kode(server: Server, schema: str, *args: str) -> str:
    at = ("--store", f"{server.dsn}{'&' if '?' in server.dsn else '?'}schema={schema}")
    done = subprocess.run(
        [sys.executable, "-m", "kode_core.cli", *args, *at], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_an_index_is_added_to_what_is_there(server: Server, schema: str) -> None:
    """Messages of before are found at once and after they were indexed; a store that is closed meanwhile loses none,
    and the next one goes on. Without the option the index stays.
    """
    async with opened(server, schema) as store:
        await store.append_messages("a", [Message.user(f"Message №{i}.") for i in range(3_000)])
        assert await waiting(store) is None
    async with opened(server, schema, text_index=True) as store:
        assert await positions(store, "№77.") == [77]
        assert await waiting(store)
    async with opened(server, schema) as store:
        await store.append_messages("a", [Message.user("one more №")])
        assert await positions(store, "№2999.") == [2999]
        assert await positions(store, "ONE MORE") == [3000]
        await indexed(store)
        assert await by_index(store, "№1.")
        assert await positions(store, "№ 2999.") == []
        assert await positions(store, "№1.") == [1]
        assert (await store.check_consistency()).consistent


async def test_every_change_of_messages_is_noted(server: Server, schema: str) -> None:
    """Saves, replacements, removed ends, forks, prunes, deletes and imports leave the index with the messages."""
    async with opened(server, schema, text_index=True) as store:
        first = [Message.user(f"first {i}") for i in range(10)]
        await store.save_turn("a", append=first, info=AgentInfo(agent_id="a", template_id="t"))
        await indexed(store)
        await store.save_messages("a", [Message.user("another one"), *first[2:5]])
        await store.scoped("t").append_messages("b", first)
        await store.append_messages("c", first)
        await store.delete("c")
        await store.fork("a", "copy")
        await store.import_agent("new", await store.load_agent("a"))
        for _ in range(2):  # before it is indexed, and after
            assert await positions(store, "FIRST 3", agent_id="a") == [2]
            assert await positions(store, "first 1") == [1]
            assert await positions(store, "ANOTHER") == [0, 0, 0]
            assert await positions(store.scoped("t"), "first") == [*range(10)]
            assert await positions(store.scoped("u"), "first") == []
            await indexed(store)
        assert await by_index(store, "first 1")
        assert (await store.check_consistency()).consistent
        async with connected(server) as con:
            assert await con.fetchval(f"SELECT count(*) FROM {schema}.kode_texts") == await con.fetchval(
                f"SELECT count(*) FROM {schema}.kode_messages"
            )
            await con.execute(f"TRUNCATE {schema}.kode_messages")
            assert await con.fetchval(f"SELECT count(*) FROM {schema}.kode_texts") == 0


async def test_the_index_knows_what_others_write(server: Server, schema: str) -> None:
    """Rows of a program, or a version, that knows nothing of the index leave no wrong result."""
    async with opened(server, schema, text_index=True) as store:
        await store.append_messages("a", [Message.user(f"first {i}") for i in range(20)])
        await store.append_messages("b", [Message.user(f"second {i}") for i in range(20)])
        await indexed(store)
        async with connected(server) as con:
            await con.execute(
                f"SET search_path = {schema};"
                " DELETE FROM kode_messages WHERE agent_id = 'a' AND position > 9;"
                " UPDATE kode_messages SET agent_id = 'c' WHERE agent_id = 'b' AND position = 3;"
                " SET session_replication_role = replica;"  # as a subscriber of logical replication applies changes
                " UPDATE kode_messages m SET body = o.body, digest = o.digest FROM kode_messages o"
                " WHERE m.agent_id = 'a' AND m.position = 2 AND o.agent_id = 'a' AND o.position = 1"
            )
        assert await waiting(store) == 2
        for _ in range(2):
            assert await positions(store, "first 1") == [1, 2]
            assert await positions(store, "first 2") == []
            assert [(m.agent_id, m.position) for m in await store.query_messages(contains="second 3")] == [("c", 3)]
            await store.append_messages("d", [Message.user("a write, after which what was noted is indexed")])
            await indexed(store)


async def test_a_user_who_may_not_use_the_index(server: Server, schema: str) -> None:
    """Such a store writes and searches as before; what it wrote is noted, and found by others."""
    role = f"kode_{secrets.token_hex(6)}"
    tables = "agents infos messages tool_calls docs doc_terms events leases followers meta".split()  # noqa: SIM905
    granted = ", ".join(f"{schema}.kode_{name}" for name in tables)
    async with opened(server, schema, text_index=True) as store, connected(server) as con:
        await store.append_messages("a", [Message.user("early")])
        await indexed(store)
        await con.execute(
            f"CREATE ROLE {role} LOGIN PASSWORD 'some'; GRANT USAGE ON SCHEMA {schema} TO {role};"
            f" GRANT SELECT, INSERT, UPDATE, DELETE ON {granted} TO {role}"
        )
        try:
            async with opened(server, schema, user=role, password="some", create=False) as other:
                await other.append_messages("a", [Message.user("this was written by another")])
                assert await positions(other, "BY ANOTHER") == [1]
                assert await positions(store, "BY ANOTHER") == [1]
                assert (await other.check_consistency()).consistent
                storage = (await other.get_metrics()).storage
                assert (storage.texts_hidden, storage.texts_waiting) == (True, None)
                split = urlsplit(server.dsn)
                host = split._replace(netloc=f"{role}:some@{split.netloc.split('@')[-1]}").geturl()
                at = ("--store", f"{host}?schema={schema}&create=false")
                doctor = await asyncio.to_thread(run, "doctor", *at)
                assert "an index that this user has no right to read" in doctor.stdout, doctor.stderr
                status = await asyncio.to_thread(run, "text-index", "status", *at)
                assert (status.returncode, status.stdout) == (2, "")
                assert "permission denied for table kode_text" in status.stderr
                assert "there is an index of texts, whose state takes the right to SELECT" in status.stderr
                await other.save_messages("a", [Message.user("early, and changed")])
                await other.append_messages("a", [Message.user("late")])
            assert await positions(store, "BY ANOTHER") == []
            assert await positions(store, "and changed") == [0]
        finally:
            await con.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_what_no_index_holds_is_found(server: Server, schema: str) -> None:
    """Quotes, NUL, lone surrogates, long messages, and texts of one and two characters are found by the index, too."""
    said = [
        'say "or" {NOT} (x) *%_',
        "nul\0here",
        "lone \ud83d end",
        "x" * MOST_INDEXED + "far end",
        "ab",
        "ß",
        "🙂🙃 ok",
    ]
    async with opened(server, schema, text_index=True) as store:
        for text in said:
            await store.append_messages("a", [Message("user", [TextBlock(text)])])
        await indexed(store)
        assert await by_index(store, "say")
        for text, wanted in (
            *(('"OR"', [0]), ("{not} (X)", [0]), ("*%_", [0]), ("nul\0h", [1]), ("nul\ufffdh", []), ("\ud83d e", [2])),
            *(
                ("FAR end", [3]),
                ("a", [0, 3, 4]),
                ("ab", [4]),
                ("ss", [5]),
                ("🙂🙃 O", [6]),
                ("🙃🙂", []),
                ("xfar", [3]),
            ),
        ):
            assert await positions(store, text) == wanted, text
        assert (await store.check_consistency()).consistent


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM kode_texts WHERE position = 3",
        "UPDATE kode_texts SET grams = '{1,2}' WHERE position = 3",
        "UPDATE kode_texts SET grams = NULL WHERE position = 3",
        "INSERT INTO kode_texts (agent_id, position, is_noted) VALUES ('a', 99, false)",
        "ALTER TABLE kode_messages DISABLE TRIGGER kode_texts_write",
        "DROP FUNCTION kode_texts_note CASCADE",
    ],
)
async def test_an_index_that_disagrees_is_noticed(server: Server, schema: str, damage: str) -> None:
    """The check of a store finds entries that are missing, other or stray, and lost triggers; a rebuild mends it."""
    async with opened(server, schema, text_index=True) as store:
        await store.append_messages("a", [Message.user(f"message {i}") for i in range(10)])
        await indexed(store)
        assert (await store.check_consistency()).consistent
        async with connected(server) as con:
            await con.execute(f"SET search_path = {schema}; {damage}")
        codes = [issue.code for issue in (await store.check_consistency()).issues]
        assert codes == ["index_disagrees"]
        if "TRIGGER" in damage or "CASCADE" in damage:
            await store.append_messages("a", [Message.user("not noted")])
            assert await positions(store, "NOT NOTED") == [10]
        done = await asyncio.to_thread(kode, server, schema, "text-index", "rebuild", "--json")
        assert json.loads(done) == {"index": True, "waiting": 0}
        assert (await store.check_consistency()).consistent
        assert await by_index(store, "message 3")
        assert await positions(store, "message 3") == [3]


async def test_the_index_is_added_and_dropped_by_the_command(server: Server, schema: str) -> None:
    """``kode text-index`` tells whether there is an index, makes it, and removes it; open stores notice both."""
    async with opened(server, schema) as store:
        await store.append_messages("a", [Message.user(f"message {i}") for i in range(700)])

        def command(*args: str) -> Any:
            return asyncio.to_thread(kode, server, schema, *args)

        assert "no index of texts" in await command("text-index")
        assert await command("text-index", "add") == "an index of texts; 0 messages not in it yet\n"
        assert json.loads(await command("text-index", "status", "--json")) == {"index": True, "waiting": 0}
        assert "text search  index\n" in await command("doctor")
        assert await positions(store, "message 69") == [69, *range(690, 700)]
        assert store._context.engine.reads.seen.has
        await store.append_messages("a", [Message.user("after a search, this store indexes, too")])
        await indexed(store)
        assert (await command("text-index", "drop")).startswith("no index of texts")
        assert await positions(store, "THIS store") == [700]
        await store.append_messages("a", [Message.user("and no longer")])
    async with connected(server) as con:
        names = "SELECT relname FROM pg_class WHERE relnamespace = $1::regnamespace AND relname LIKE 'kode_text%'"
        assert await con.fetch(names, schema) == []
        functions = "SELECT proname FROM pg_proc WHERE pronamespace = $1::regnamespace"
        assert await con.fetch(functions, schema) == []


_WRITER: Final = """
import asyncio, sys
from kode_core import create_extended_store
from kode_core.model import Message

async def main(dsn, schema, name):
    async with create_extended_store(type="postgres", dsn=dsn, schema=schema, max=4) as store:
        said = []
        for i in range(60):
            said = [*said[-20:], Message.user(f"{name} says {i} needle-{name}-{i}.")]
            await store.save_messages(f"{name}{i % 3}", said)
            await store.append_messages("shared", [Message.user(f"shared by {name}: pin-{i}.")])
            if i % 10 == 9:
                await store.delete(f"{name}{i % 3}")
        await store.save_messages(name, [Message.user(f"the end of {name}")])

asyncio.run(main(*sys.argv[1:]))
"""


async def test_it_is_built_while_others_write_and_are_killed(server: Server, schema: str) -> None:
    """Two processes write while commands that build the index are killed; in the end all is in it, and nothing else."""
    async with opened(server, schema) as store:
        for name in ("x0", "old", "y2"):
            await store.append_messages(name, [Message.user(f"old message {i} of {name}") for i in range(1_500)])
        args = (server.dsn, schema)
        writers = [
            await asyncio.create_subprocess_exec(sys.executable, "-c", _WRITER, *args, name) for name in ("x", "y")
        ]
        at = f"{server.dsn}{'&' if '?' in server.dsn else '?'}schema={schema}"
        add = (sys.executable, "-m", "kode_core.cli", "text-index", "add", "--store", at)
        killed = 0
        while any(writer.returncode is None for writer in writers) and killed < 6:
            command = await asyncio.create_subprocess_exec(*add)
            await asyncio.sleep(random.Random(killed).uniform(0.4, 1.5))
            if command.returncode is None:
                command.kill()
            await command.wait()
            killed += 1
            assert await positions(store, "old message 77 of OLD") == [77]
        assert [await writer.wait() for writer in writers] == [0, 0]
        done = await asyncio.to_thread(kode, server, schema, "text-index", "add", "--json")
        assert json.loads(done) == {"index": True, "waiting": 0}
        assert await by_index(store, "needle-x-58.")
        assert (await store.check_consistency()).issues == ()
        every = [m async for m in store.iter_messages()]
        for text in ("pin-7.", "needle-y-57.", "says 58", "old message 1499 of y2"):
            wanted = sorted((m.agent_id, m.position) for m in every if text in str(m.content).lower())
            found = sorted((m.agent_id, m.position) for m in await store.query_messages(contains=text, limit=1000))
            assert found == wanted
        assert len(await store.query_messages(contains="pin-7.")) == 2
        assert await positions(store, "the end of X") == [0]


async def test_an_overtaken_indexer_changes_nothing(
    server: Server, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message that is replaced after the indexer has read it, and before it writes, stays noted."""
    async with opened(server, schema, text_index=True) as store:
        await store.append_messages("a", [Message.user("early text")])
        await indexed(store)
        real, began, may_go = indexing._all_grams, asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()

        def slow(rows: Any) -> Any:
            found = real(rows)
            loop.call_soon_threadsafe(began.set)
            asyncio.run_coroutine_threadsafe(may_go.wait(), loop).result()
            return found

        monkeypatch.setattr(indexing, "_all_grams", slow)
        await store.save_messages("a", [Message.user("second text")])
        await began.wait()
        await store.save_messages("a", [Message.user("third words")])
        monkeypatch.setattr(indexing, "_all_grams", real)
        may_go.set()
        assert await positions(store, "THIRD") == [0]
        await indexed(store)
        assert await by_index(store, "third")
        assert await positions(store, "THIRD") == [0]
        assert await positions(store, "second") == []


async def test_an_encrypted_store_leaves_no_parts_of_texts(server: Server, schema: str) -> None:
    """The index cannot read what is encrypted, holds nothing of it, and the store finds it without."""
    ring = KeyRing.from_text(f"now:{new_key()}")
    async with opened(server, schema, text_index=True, layers=[encrypted(ring)]) as store:
        await store.append_messages("a", [Message.user("the safe opens at noon")])
        await indexed(store)
        assert await positions(store, "SAFE opens") == [0]
        async with connected(server) as con:
            rows = await con.fetch(f"SELECT is_noted, grams FROM {schema}.kode_texts")
        assert [tuple(row) for row in rows] == [(False, None)]
        assert (await store.check_consistency()).consistent


async def test_the_printed_index_is_the_one_that_is_made(server: Server, schema: str) -> None:
    """An administrator may run the SQL; a store without the right to make tables then fills the index."""
    async with opened(server, schema) as store:
        await store.append_messages("a", [Message.user("early")])
    with pytest.raises(StoreUnavailableError, match="there is no index of texts, and create is off"):
        await opened(server, schema, text_index=True, create=False)
    place = ("postgres:?text_index=true", "--schema", schema, "--from", str(5), "--print")
    printed = subprocess.run(
        [sys.executable, "-m", "kode_core.cli", "schema", *place], capture_output=True, text=True, check=True
    ).stdout
    async with connected(server) as con:
        await con.execute(printed)
    async with opened(server, schema, text_index=True, create=False) as store:
        await store.append_messages("a", [Message.user("late")])
        await indexed(store)
        assert await by_index(store, "early")
        assert await positions(store, "EARLY") == [0]


async def test_partitions_and_other_names(server: Server, schema: str) -> None:
    """Tables in partitions, in a schema of the search path, and with another prefix, have an index of their own."""
    tables = Tables(PostgresOptions(schema=schema, table_prefix="bot_"))
    async with connected(server) as con:
        for statement in statements(tables, partitions=3):
            await con.execute(statement)
    options = {"server_settings": {"search_path": schema}}
    for more in ({"table_prefix": "bot_"}, {}):
        async with create_extended_store(
            type="postgres",
            dsn=server.dsn,
            text_index=True,
            **more,
            **({} if more else options),
            **({"schema": schema} if more else {}),
        ) as store:
            for i in range(20):
                await store.append_messages(f"a{i}", [Message.user(f"number {i}.")])
            await indexed(store)
            assert await by_index(store, "number 7.")
            assert [m.agent_id for m in await store.query_messages(contains="NUMBER 7.")] == ["a7"]
            await store.delete("a7")
            assert (await store.check_consistency()).consistent
            assert await store.query_messages(contains="NUMBER 7.") == []


# --- costs

TABLES: Final = Tables(PostgresOptions())
MESSAGES: Final = 200_000


async def _fill(con: Any) -> None:
    for statement in statements(TABLES):
        await con.execute(statement)
    draw = random.Random(1)
    texts = [" ".join(draw.choices(WORDS, k=6)) + (f" rare-{i}" if i % 20_000 == 0 else "") for i in range(MESSAGES)]
    rows = [
        (f"a{i % 100}", i // 100, i, "user", "\ntext\n", b"12345678", json.dumps({"content": text}))
        for i, text in enumerate(texts)
    ]
    await con.copy_records_to_table("kode_messages", records=rows)
    for statement in make_statements(TABLES):
        await con.execute(statement)
    columns = ["agent_id", "position", "is_noted", "grams"]
    grams = [(row[0], row[1], False, hashes(grams_of(text))) for row, text in zip(rows, texts, strict=True)]
    await con.copy_records_to_table("kode_texts", columns=columns, records=grams)
    await con.execute("UPDATE kode_text_index SET is_filled = true")
    await con.execute("ANALYZE")


@pytest.fixture(scope="module")
def large(server: Server) -> Iterator[str]:
    """The address of a database with 200,000 messages and their index."""
    with filled(server, _fill) as address:
        yield address


async def test_a_rare_text_touches_few_pages_among_200_000_messages(con: Any) -> None:
    """A page of messages with a rare text costs pages for these alone, whatever plan the server keeps."""
    reads = Reads(TABLES)
    for filters, rows in (
        ({"contains": "RARE-20000"}, 1),
        ({"contains": "rare-", "agent_id": "a0", "order": "asc"}, 10),
        ({"contains": "rare-", "agent_id": ["a0", "a1"]}, 10),
        ({"contains": "rare-120000", "created_after": 60_000, "role": "user"}, 1),
        ({"contains": "not-a-word"}, 0),
    ):
        query = message_query({"limit": 100, **filters})
        grams = hashes(grams_of(filters["contains"].casefold()))
        plan = await explained(con, *reads.texts_statement(query, grams))
        assert plan["Actual Rows"] == max(rows, 1), filters
        assert touched(plan) < 250, filters
        await con.execute("DEALLOCATE asked")


async def test_pages_of_notes_cost_little(con: Any) -> None:
    """A text that too many messages have is not joined with all of them: the store reads in the order of time."""
    reads = Reads(TABLES)
    query = message_query({"limit": 100, "contains": "quick"})
    plan = await explained(con, *reads.texts_statement(query, hashes(grams_of("quick"))))
    assert plan["Actual Rows"] == 1
    assert touched(plan) < 6_000


def test_hashes_of_ascii_are_different() -> None:
    """Parts of ASCII never share a hash, and all fit the column."""
    letters = [chr(i) for i in range(32, 127)]
    found = hashes(a + b + c for a in letters[::2] for b in letters[::3] for c in letters)
    assert len({*found}) == len(found)
    assert -(2**31) <= min(found) <= max(found) < 2**31
