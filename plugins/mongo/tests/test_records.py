"""What is MongoDB's own in the store: indexes, clients, guards, versions, followers, sizes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from statistics import median
from typing import Any

import pymongo
import pytest
from bson.errors import BSONError
from bson.int64 import Int64
from bson.raw_bson import RawBSONDocument
from kode_conformance.suite.damage_tests import Damage, check_damaged_heads
from kode_conformance.suite.record_tests import MESSAGES, PLACE, OpenRecords, RecordStoreTests, a_head, a_message
from kode_conformance.values import samples
from kode_mongo import MongoStore
from kode_mongo.connection import awaited, connect
from kode_mongo.errors import to_kode_error
from kode_mongo.options import MongoOptions
from kode_mongo.queries import rows_wanted, sessions_wanted
from kode_mongo.records import open_records
from kode_mongo.schema import COLLECTIONS, HEADS, INDEXES, ITEMS, META, SCHEMA_VERSION, script
from kode_mongo.testing.servers import LocalServer, Server
from kode_mongo.watch import HeadWatcher
from motor.motor_asyncio import AsyncIOMotorClient
from msgspec.structs import replace
from pymongo import errors

from kode_core.batch import Found, Info
from kode_core.codec import Body
from kode_core.engines.record.layout import LAYOUT_VERSION
from kode_core.engines.record.store import Cut, KeyRange
from kode_core.errors import (
    ConfigurationError,
    CorruptRecordError,
    KodeError,
    OutcomeUnknownError,
    PayloadTooLargeError,
    SchemaVersionError,
    StorageError,
    StoreBusyError,
    StoreFullError,
    StoreReadOnlyError,
    StoreUnavailableError,
    UnsupportedError,
)
from kode_core.query import RowQuery, SessionQuery
from plugins.mongo.tests.mongosh import run_in_mongosh


@pytest.fixture(params=["motor", "pymongo"])
def options(request: pytest.FixtureRequest, server: Server, database: str) -> MongoOptions:
    return MongoOptions(uri=server.uri, database=database, driver=request.param)


@pytest.fixture
async def store(server: Server, database: str) -> AsyncIterator[MongoStore]:
    async with MongoStore(server.uri, database=database) as opened:
        yield opened


class TestPieces(RecordStoreTests):
    @pytest.fixture
    def another(self, options: MongoOptions) -> OpenRecords:
        return lambda: open_records(options)


# --- Calls that end in time -------------------------------------------------------------------------------------------


class Sent(pymongo.monitoring.CommandListener):
    """How many documents each command has, and each answer."""

    def __init__(self) -> None:
        self.sizes: list[tuple[str, int]] = []

    def started(self, event: Any) -> None:
        for name in ("documents", "updates", "deletes"):
            if name in event.command:
                self.sizes.append((event.command_name, len(event.command[name])))

    def succeeded(self, event: Any) -> None:
        cursor = event.reply.get("cursor", {})
        for name in ("firstBatch", "nextBatch"):
            if name in cursor:
                self.sizes.append(("find", len(cursor[name])))

    def failed(self, event: Any) -> None:
        pass

    def taken(self) -> list[tuple[str, int]]:
        """What was sent since the last look."""
        taken, self.sizes = self.sizes, []
        return taken


async def test_a_long_change_is_made_in_slices(options: MongoOptions) -> None:
    """The time of one call is never for all of it: not when it is put, nor put again, nor replaced, nor read."""
    sent = Sent()
    client = pymongo.AsyncMongoClient(options.uri, event_listeners=[sent])
    records = await open_records(MongoOptions(client=client, database=options.database))
    sent.taken()
    items = [a_message(n, 5) for n in range(2_500)]
    await records.apply(PLACE, items)
    assert sent.taken() == [("insert", 1000), ("insert", 1000), ("insert", 500)]
    await records.apply(PLACE, items)
    assert sent.taken() == [("insert", 1000), ("find", 1000), ("find", 1000), ("find", 500)]
    newer = [a_message(n, 6) for n in range(2_500)]
    await records.apply(PLACE, [Cut(first="m/000000002000", last="m/~", rev=6), *newer])
    assert await records.items(PLACE, MESSAGES) == newer
    assert all(count <= 2_300 for _, count in sent.taken())
    found = await records.items(PLACE, KeyRange(first="m/", last="m/~", descending=True, limit=1_500))
    assert found == newer[:-1_501:-1]
    assert sent.taken() == [("find", 200), ("find", 1_300)]
    await records.put_parts(PLACE, "m/1", 1, [bytes([n]) * 3_000_000 for n in range(6)])
    assert sent.taken() == [("update", 1)] * 6
    assert [part[0] for part in await records.parts(PLACE, "m/1", 1)] == list(range(6))
    assert [count for _, count in sent.taken() if count > 4] == []
    heads = [replace(a_head(1), agent_id=f"a{n:03d}") for n in range(450)]
    await asyncio.gather(*(records.swap(None, head, None, []) for head in heads))
    sent.taken()
    assert await records.heads([head.agent_id for head in reversed(heads)]) == heads
    assert sent.taken() == [("find", 200), ("find", 250)]
    await client.close()


async def test_what_is_removed_between_two_looks_is_put_again(options: MongoOptions) -> None:
    """Writers with newer items, with older ones and with cuts at once: every newest item is there afterwards."""
    records = await open_records(options)
    for rev in range(10, 40, 10):
        old = [a_message(n, rev - 1) for n in range(40)]
        new = [a_message(n, rev) for n in range(40)]
        cuts = [[Cut(first=one.key, last=one.key, rev=rev)] for one in new]
        await records.apply(PLACE, old)
        await asyncio.gather(
            *(records.apply(PLACE, cut) for cut in cuts), *(records.apply(PLACE, some) for some in (new, old, new))
        )
        assert await records.items(PLACE, MESSAGES) == new
    await records.close()


# --- Clients, servers, versions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [AsyncIOMotorClient, pymongo.AsyncMongoClient])
async def test_a_client_of_the_callers_stays_the_callers(server: Server, database: str, kind: Any) -> None:
    """Either driver's; it is used, and open afterwards."""
    client = kind(server.uri)
    async with MongoStore(client=client, database=database) as store:
        await store.append_messages("a", samples.messages(2))
        assert "given client" in repr(store)
    assert (await client.admin.command("ping"))["ok"] == 1
    assert await client[database][f"kode_{HEADS}"].count_documents({}) == 1
    closing = client.close()
    if closing is not None:
        await closing


async def test_what_is_written_lasts(options: MongoOptions) -> None:
    """Whatever the client's own settings, collections are written with a majority and the journal."""
    weak = pymongo.AsyncMongoClient(options.uri, w=1, journal=False)
    connection = connect(MongoOptions(client=weak, database="x"))
    concern = connection.collection(HEADS).write_concern.document
    assert concern == {"w": "majority", "j": True}
    assert connection.collection(HEADS).read_concern.level == "majority"
    await weak.close()


async def test_the_clients_codecs_do_not_change_what_is_read(server: Server, database: str) -> None:
    """A client may read documents in a class of its own; the store does not."""
    client = pymongo.AsyncMongoClient(server.uri, document_class=RawBSONDocument)
    async with MongoStore(client=client, database=database) as store:
        await store.append_messages("a", samples.messages(2))
        assert await store.load_messages("a") == samples.messages(2)
    await client.close()


@pytest.mark.parametrize("kind", [AsyncIOMotorClient, pymongo.AsyncMongoClient])
def test_a_client_of_another_event_loop_is_refused(server: Server, kind: Any) -> None:
    """And the error says where to make it."""

    async def used() -> Any:
        client = kind(server.uri)
        await client.admin.command("ping")
        return client

    async def opened(client: Any) -> None:
        with pytest.raises(ConfigurationError, match="belongs to another event loop"):
            await MongoStore(client=client, database="x").open()

    with asyncio.Runner() as one, asyncio.Runner() as other:
        client = one.run(used())
        other.run(opened(client))
        one.run(awaited(client.close()))


async def test_one_member_of_a_set_alone_is_refused(own_server: LocalServer) -> None:
    """What it has may be old, and nothing would tell."""
    direct = f"{own_server.url('d').replace('replicaSet=rs0', '')}directConnection=true"
    async with MongoStore(direct) as store:  # a set of one has no other
        await store.append_messages("a", samples.messages(1))
    with own_server.client(directConnection=True) as client:
        found = client.admin.command("replSetGetConfig")["config"]
        found["members"].append({"_id": 1, "host": "127.0.0.1:1"})
        client.admin.command("replSetReconfig", {**found, "version": found["version"] + 1}, force=True)
        for _ in range(600):
            if not client.admin.command("hello")["isWritablePrimary"]:
                break
            await asyncio.sleep(0.1)
    for how in ({"connection": direct}, {"client": pymongo.AsyncMongoClient(direct), "database": "d"}):
        with pytest.raises(ConfigurationError, match="may be old; write replicaSet=rs0 in its place"):
            await MongoStore(**how).open()
    await how["client"].close()


async def test_a_server_that_hangs_holds_up_no_close(own_server: LocalServer, options: MongoOptions) -> None:
    """It ends soon, and the event loop goes on meanwhile."""
    connection = connect(MongoOptions(uri=own_server.uri, driver=options.driver, command_timeout_millis=60_000))
    await connection.hello()
    await asyncio.to_thread(own_server.pause)
    beats = 0

    async def beat() -> None:
        nonlocal beats
        while True:
            await asyncio.sleep(0.05)
            beats += 1

    beating = asyncio.ensure_future(beat())
    async with asyncio.timeout(30):
        await connection.close()
    beating.cancel()
    await asyncio.to_thread(own_server.resume)
    assert beats > 5


async def test_twenty_first_starts_at_once(server: Server, database: str) -> None:
    """All of them succeed, and make each index once."""
    stores = await asyncio.gather(*(MongoStore(server.uri, database=database).open() for _ in range(20)))
    await asyncio.gather(*(store.append_messages(f"a{n}", samples.messages(2)) for n, store in enumerate(stores)))
    for store in stores:
        await store.close()
    with server.client() as client:
        made = sum(len(client[database][f"kode_{name}"].index_information()) for name in COLLECTIONS)
    assert made == len(INDEXES) + len(COLLECTIONS)


async def test_a_newer_schema_is_refused(server: Server, database: str) -> None:
    """And says what to install."""
    with server.client() as client:
        client[database][f"kode_{META}"].insert_one({"_id": "schema", "version": 99})
    with pytest.raises(SchemaVersionError, match="pip install --upgrade kode-mongo"):
        await MongoStore(server.uri, database=database).open()


async def test_a_database_says_the_layout_of_its_records(
    server: Server, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A newer release raises it when it opens the store, and an older one refuses the store from then on."""
    with server.client() as client:
        meta = client[database][f"kode_{META}"]

        def marker() -> Any:
            return meta.find_one({"_id": "schema"}, {"_id": 0})

        async with MongoStore(server.uri, database=database) as store:
            await store.append_messages("a", samples.messages(2))
        assert marker() == {"version": SCHEMA_VERSION, "layout": LAYOUT_VERSION}
        meta.update_one({"_id": "schema"}, {"$unset": {"layout": 1}})  # as an earlier release wrote it
        async with MongoStore(server.uri, database=database) as store:
            assert len(await store.load_messages("a")) == 2
        assert marker() == {"version": SCHEMA_VERSION, "layout": LAYOUT_VERSION}
        with monkeypatch.context() as patch:
            patch.setattr("kode_core.engines.record.layout.LAYOUT_VERSION", LAYOUT_VERSION + 1)
            async with MongoStore(server.uri, database=database, create=False) as store:
                assert len(await store.load_messages("a")) == 2
        assert marker() == {"version": SCHEMA_VERSION, "layout": LAYOUT_VERSION + 1}
        with pytest.raises(SchemaVersionError, match="of layout 3, and .* up to 2: .*--upgrade kode-core"):
            await MongoStore(server.uri, database=database).open()


async def test_what_is_lost_is_named_to_a_user_who_may_only_read(server: Server, database: str) -> None:
    """The read that is never late needs no right to write; queries over many agents go on."""
    async with MongoStore(server.uri, database=database) as store:
        for agent_id in ("a", "b"):
            await store.append_messages(agent_id, samples.messages(3))
    with server.client() as client:
        client[database][f"kode_{ITEMS}"].delete_one({"agent_id": "a", "key": "m/000000000001"})
        client[database].command("createUser", "reader", pwd="pw", roles=["read"])
        mine = server.uri.replace(server.uri.split("//")[1].split("@")[0], "reader:pw")
        async with MongoStore(mine.replace("=admin", f"={database}"), database=database) as reader:
            with pytest.raises(CorruptRecordError, match="'a'.*no other process removed it"):
                await reader.load_messages("a")
            assert len(await reader.load_messages("b")) == 3
            assert len(await reader.query_messages()) == 5
        client[database].command("dropUser", "reader")


async def test_without_the_right_to_make_indexes(server: Server, database: str) -> None:
    """With ``create`` off nothing is made, and the error says what to run; afterwards the store opens."""
    with pytest.raises(StoreUnavailableError, match=rf"kode schema 'mongo:\?database={database}' --print"):
        await MongoStore(server.uri, database=database, create=False).open()
    with server.client() as client:
        assert client[database].list_collection_names() == []
        run_in_mongosh(client[database], script(MongoOptions(database=database)))
    async with MongoStore(server.uri, database=database, create=False) as store:
        await store.append_messages("a", samples.messages(2))
        assert len(await store.load_messages("a")) == 2


async def test_what_is_told_when_it_cannot_be_opened(server: Server) -> None:
    """Nobody listens, the password is wrong, the URI is malformed: each in words, and without the password."""
    soon = {"connection_timeout_millis": 300}
    with pytest.raises(StoreUnavailableError, match="cannot be reached; is it running"):
        await MongoStore("mongodb://127.0.0.1:1/x", **soon).open()
    wrong = server.uri.replace(server.password, "wr0ng-pa55")
    with pytest.raises(StoreUnavailableError, match="refused the user or the password") as caught:
        await MongoStore(wrong).open()
    assert "wr0ng-pa55" not in str(caught.value)
    for driver in ("motor", "pymongo"):
        with pytest.raises(ConfigurationError, match="URI is malformed") as caught_too:
            await MongoStore("mongodb://u:p@ss%@h/x", driver=driver).open()
        assert "p@ss" not in str(caught_too.value)


async def test_a_server_without_a_replica_set(standalone_server: LocalServer) -> None:
    """All is kept as elsewhere; followers look by themselves, as nobody tells them."""
    async with MongoStore(standalone_server.uri) as store:
        await store.save_turn("a", append=samples.messages(3), events=samples.events(2))
        heard = [event.offset async for event in first(store.follow_events("a"), 2)]
        assert heard == [1, 2]
        await asyncio.to_thread(standalone_server.kill)
        await asyncio.to_thread(standalone_server.start)
        assert len(await store.load_messages("a")) == 3


async def first(events: Any, count: int) -> AsyncIterator[Any]:
    async for event in events:
        yield event
        count -= 1
        if not count:
            return


# --- Indexes ----------------------------------------------------------------------------------------------------------


async def _explained(server: Server, database: str, collection: str, wanted: Any, sort: Any) -> str:
    with server.client() as client:
        plan = client[database][collection].find(wanted).sort(sort).limit(10).explain()
    return str(plan["queryPlanner"]["winningPlan"])


@pytest.mark.parametrize(
    ("query", "index"),
    [
        (SessionQuery(), "created_at_1__id_1"),
        (SessionQuery(sort_by="updated_at"), "updated_at_1__id_1"),
        (SessionQuery(sort_by="message_count", descending=False), "messages.count_1__id_1"),
        (SessionQuery(template_id="t1"), "template_id_1_created_at_1__id_1"),
        (SessionQuery(after=(5, "a")), "created_at_1__id_1"),
    ],
)
async def test_sessions_are_found_by_index(
    server: Server, database: str, store: MongoStore, query: SessionQuery, index: str
) -> None:
    """No query sorts, or reads all there is."""
    for n in range(30):
        await store.save_info(f"a{n}", samples.info(f"a{n}", template_id=f"t{n % 3}"))
    plan = await _explained(server, database, f"kode_{HEADS}", *sessions_wanted(query))
    assert index in plan
    assert "COLLSCAN" not in plan
    assert "'SORT'" not in plan


@pytest.mark.parametrize(
    ("query", "index"),
    [
        (RowQuery(kind="messages"), "list_1_time_1_agent_id_1_key_1"),
        (RowQuery(kind="messages", agent_id="a1"), "agent_id_1_list_1_time_1_key_1"),
        (RowQuery(kind="tool_calls", where=(("tool_name", "fs_read"),)), "index.tool_name_1_time_1_agent_id_1_key_1"),
    ],
)
async def test_rows_are_found_by_index(
    server: Server, database: str, store: MongoStore, query: RowQuery, index: str
) -> None:
    """No query sorts, or reads all there is."""
    for n in range(3):
        calls = [samples.tool_call(i, name="fs_read" if i == 5 else "bash") for i in range(20)]
        await store.save_turn(f"a{n}", append=samples.messages(20), tool_calls=calls)
    plan = await _explained(server, database, f"kode_{ITEMS}", *rows_wanted(query))
    assert index in plan
    assert "'SORT'" not in plan


# --- Operations -------------------------------------------------------------------------------------------------------


async def test_followers_of_another_store_are_woken(server: Server, database: str, store: MongoStore) -> None:
    """By the change stream, long before they would have looked."""
    async with MongoStore(server.uri, database=database, driver="pymongo", follow_poll_ms=60_000) as other:
        heard: list[float] = []

        async def follow() -> None:
            async for _ in first(other.follow_events("a"), 30):
                heard.append(time.monotonic())

        following = asyncio.ensure_future(follow())
        await asyncio.sleep(1.5)
        sent = []
        for n in range(30):
            sent.append(time.monotonic())
            await store.append_event("a", samples.event(n))
            await asyncio.sleep(0.01)
        async with asyncio.timeout(20):
            await following
    assert median(h - s for h, s in zip(heard, sent, strict=True)) < 1.0


async def test_who_begins_to_follow_is_told_while_others_are_busy(options: MongoOptions, server: Server) -> None:
    """Another stream tells of the new one, too; who was told of before misses nothing, and is not woken for it."""
    connection = connect(options)
    heads = connection.collection(HEADS)
    watcher = HeadWatcher(heads)
    woken, is_busy = 0, True

    async def keep_busy() -> None:
        while is_busy:
            await heads.update_one({"_id": "busy"}, {"$inc": {"rev": 1}}, upsert=True)

    def wake() -> None:
        nonlocal woken
        woken += 1

    watches = [watcher.watch("busy", wake)]
    async with asyncio.timeout(30):
        while not watches[0].is_live:
            await asyncio.sleep(0.01)
        working = asyncio.ensure_future(keep_busy())
        for n in range(5):
            began = asyncio.Event()
            watches.append(watcher.watch(f"new {n}", began.set))
            while not watches[-1].is_live:
                await asyncio.sleep(0.01)
            assert began.is_set()
            began.clear()
            await heads.update_one({"_id": f"new {n}"}, {"$inc": {"rev": 1}}, upsert=True)
            await began.wait()
        is_busy = False
        await working
        with server.client() as client:
            swaps = client[options.database or ""][f"kode_{HEADS}"].find_one({"_id": "busy"})["rev"]  # type: ignore[index]
        while woken < swaps + 1:
            await asyncio.sleep(0.01)
    assert woken == swaps + 1
    await watcher.close()
    await connection.close()


async def test_tombstones_are_removed_in_time(server: Server, database: str, store: MongoStore) -> None:
    """What is left of a deleted agent, or of a lock without an agent, has a time from which it is forgotten.

    Where events had offsets it is kept: they must not come again.
    """
    await store.append_messages("a", samples.messages(2))
    await store.append_messages("b", samples.messages(2))
    await store.append_event("d", samples.event(0))
    await store.delete("a")
    await store.delete("d")
    async with store.acquire_agent_lock("c"):
        pass
    with server.client() as client:
        heads = {found["_id"]: found for found in client[database][f"kode_{HEADS}"].find({})}
        ttl = client[database][f"kode_{HEADS}"].index_information()["gone_1"]["expireAfterSeconds"]
    assert heads["a"]["gone"] is not None
    assert heads["b"]["gone"] is None
    assert heads["c"]["gone"] is not None
    assert heads["d"]["gone"] is None
    assert ttl == 86_400
    await store.append_messages("a", samples.messages(1))
    with server.client() as client:
        assert client[database][f"kode_{HEADS}"].find_one({"_id": "a"})["gone"] is None  # type: ignore[index]


async def test_a_backup_is_mongodumps(store: MongoStore, tmp_path: Any) -> None:
    """The error says with what to make it."""
    with pytest.raises(UnsupportedError, match="mongodump"):
        await store.backup(tmp_path / "x")


def test_every_error_of_the_driver_has_a_translation() -> None:
    """All classes of the driver's errors, without a word of what they quote."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    kinds.remove(errors.EncryptedCollectionError)  # of client-side encryption, which no store uses
    assert len(kinds) > 20
    for kind in (*kinds, BSONError, OSError, TimeoutError):
        arguments = {"BulkWriteError": ({},), "ClientBulkWriteException": ({}, True)}.get(kind.__name__, ("secret",))
        exc = kind(*arguments)
        for writes in (False, True):
            assert isinstance(to_kode_error(exc, "here", writes=writes), KodeError), kind
    assert isinstance(to_kode_error(errors.AutoReconnect("x"), "here", writes=True), OutcomeUnknownError)
    assert isinstance(to_kode_error(errors.AutoReconnect("x"), "here", writes=False), StoreUnavailableError)


async def test_a_write_that_a_standalone_server_refused_for_its_number_is_made_again(options: MongoOptions) -> None:
    """The driver numbers a write whose connection broke before it knew the server; nothing was applied."""
    connection = connect(options)
    for made in (connection.write, connection.repeat):
        failures = [errors.OperationFailure("Transaction numbers are only allowed", 20)]

        async def call(failures: list[errors.OperationFailure] = failures) -> str:
            if failures:
                raise failures.pop()
            return "done"

        assert await made(call) == "done"
    await connection.close()


@pytest.mark.parametrize(
    ("code", "reading", "writing"),
    [
        *((code, StoreUnavailableError, OutcomeUnknownError) for code in (6, 7, 89, 262, 9001)),
        *((code, StoreUnavailableError, StorageError) for code in (43, 134, 175, 11601)),
        (13, StorageError, StoreReadOnlyError),
        (17419, PayloadTooLargeError, PayloadTooLargeError),
        (14031, StoreFullError, StoreFullError),
    ],
)
def test_errors_by_their_code(code: int, reading: type[KodeError], writing: type[KodeError]) -> None:
    """Of a read and of a write; of a bulk of writes, what stopped it counts, and not what was there already."""
    failed = errors.OperationFailure("secret", code, {"codeName": "Name"})
    assert type(to_kode_error(failed, "here", writes=False)) is reading
    assert type(to_kode_error(failed, "here", writes=True)) is writing
    bulk = errors.BulkWriteError({"writeErrors": [{"code": 11000, "index": 0}, {"code": code, "index": 1}]})
    assert type(to_kode_error(bulk, "here", writes=True)) is writing


def test_a_write_that_found_no_free_connection_is_in_doubt() -> None:
    """It may be the driver's second attempt; a read is sure to have had none."""
    failed = errors.WaitQueueTimeoutError("x")
    assert isinstance(to_kode_error(failed, "here", writes=True), OutcomeUnknownError)
    assert isinstance(to_kode_error(failed, "here", writes=False), StoreBusyError)


async def test_what_somebody_damaged_is_said_to_be_damaged(server: Server, database: str) -> None:
    """A head or an item with a field that is missing, or of another type; nothing of it is quoted."""
    records = await open_records(MongoOptions(uri=server.uri, database=database))
    info = Info(Body("{}", b"d"), "t", 3, (("k", "v"),))
    await records.swap(None, a_head(1, info=info), None, [])
    await records.apply(PLACE, [a_message(0, 1)])
    reads = {
        HEADS: [lambda: records.heads(["a"]), lambda: records.find_sessions(SessionQuery())],
        ITEMS: [lambda: records.items(PLACE, MESSAGES), lambda: records.find_items(RowQuery(kind="messages"))],
    }
    kept = {"_id", "agent_id", "list", "listed", "used", "pending", "gone", "updated_at"}
    damaged = 0
    with server.client() as client:
        for name, calls in reads.items():
            collection = client[database][f"kode_{name}"]
            (whole,) = collection.find({"rev": {"$exists": True}})
            for field in whole.keys() - kept:
                for change in ({"$unset": {field: 1}}, {"$set": {field: ["s3cret"]}}):
                    collection.update_one({"_id": whole["_id"]}, change)
                    for call in calls:
                        damaged += await is_damaged(call)
                    collection.replace_one({"_id": whole["_id"]}, whole)
    assert damaged > 30
    await records.close()


async def is_damaged(read: Any) -> bool:
    """Whether a read says so, or a query names it; otherwise it needs nothing of what was damaged."""
    try:
        found = await read()
        return isinstance(found, Found) and any("'a'" in name for name in found.left_out)
    except CorruptRecordError as exc:
        assert "'a'" in str(exc)
        assert "s3cret" not in str(exc)
        return True


def damages(server: Server, database: str) -> list[Damage]:
    """Every field of a head: missing, of another type, empty, or another one that may be there."""

    def change(update: dict[str, Any]) -> Callable[[str], Awaitable[object]]:
        async def damage(agent_id: str) -> None:
            with server.client() as client:
                done = client[database]["kode_heads"].update_one({"_id": agent_id}, update)
                assert done.matched_count

        return damage

    others: dict[str, Any] = {
        "epoch": "f" * 16, "rev": Int64(5), "updated_at": Int64(7), "messages": {"version": 9, "count": 3},
        "messages.count": Int64(1), "tool_calls.count": Int64(2), "used": False, "numbered": False, "listed": False,
        "pending": True, "digest": b"0123456789abcdef", "template_id": "other", "created_at": Int64(9),
        "state": b"\x80", "info": "{}", "metadata": [],
    }  # fmt: skip
    junk = ["junk", None]
    made = [(f"{field} missing", change({"$unset": {field: 1}})) for field in others]
    made += [(f"{field} is {one!r}", change({"$set": {field: one}})) for field in others for one in junk]
    return made + [(f"{field} is another", change({"$set": {field: one}})) for field, one in others.items()]


async def test_a_damaged_head_fails_its_own_agent_alone(server: Server, database: str) -> None:
    """Whatever of it is damaged, and a delete ends it."""
    unread = await check_damaged_heads(lambda: MongoStore(server.uri, database=database), damages(server, database))
    needed = (
        "epoch",
        "rev",
        "updated_at",
        "messages",
        "tool_calls.count",
        "used",
        "pending",
        "state",
        "messages.count",
    )
    for field in needed:
        ways = {"missing", "is 'junk'", "is None", "is another"}
        assert {f"{field} {way}" for way in ways} <= set(unread)


# --- Sizes ------------------------------------------------------------------------------------------------------------


async def test_a_list_and_a_message_of_twenty_megabytes(store: MongoStore) -> None:
    """More than a document holds, in one save each; what was replaced is gone from the server."""
    large = [samples.message(text=f"{n} " + "ä" * 10_000) for n in range(1000)]
    await store.save_messages("a", large)
    assert await store.load_messages("a") == large
    huge = [samples.message(text="€" * 7_000_000)]
    await store.save_messages("a", huge)
    assert await store.load_messages("a") == huge
    await store.delete("a")
    assert await store.load_messages("a") == []


@pytest.mark.slow
async def test_a_hundred_thousand_messages(server: Server, database: str) -> None:
    """Saved at once; an append afterwards, and a page, cost what they cost on a short list."""
    async with MongoStore(server.uri, database=database, timeout_ms=600_000) as store:  # the machine may be busy
        await store.save_messages("a", [samples.message(text=f"message {n}") for n in range(100_000)])
        await store.append_messages("a", [samples.message(text="last")])
        found = await store.query_messages(agent_id="a", limit=3)
        assert found[0].text == "last"
        assert len(await store.load_messages("a")) == 100_001
