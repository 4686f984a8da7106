"""What is DynamoDB's own in the store: the table, clients, throttling, pages, units, sizes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import aioboto3
import pytest
from aiobotocore.config import AioConfig
from botocore import exceptions
from botocore.exceptions import BotoCoreError, ClientError
from kode_conformance.suite.record_tests import PLACE, OpenRecords, RecordStoreTests, a_message
from kode_conformance.values import samples
from kode_dynamodb import DynamoDBOptions, DynamoDBStore
from kode_dynamodb.connection import Connection, connect
from kode_dynamodb.errors import to_kode_error
from kode_dynamodb.records import DynamoRecords, open_records
from kode_dynamodb.schema import cloud_formation
from msgspec.structs import asdict, replace

from kode_core.codec import Body
from kode_core.engines.record.store import EventIndex, Item, KeyRange
from kode_core.errors import (
    ConfigurationError,
    KodeError,
    OutcomeUnknownError,
    PayloadTooLargeError,
    SchemaVersionError,
    StoreBusyError,
    StoreReadOnlyError,
    StoreUnavailableError,
    UnsupportedError,
)

ALL = KeyRange(first="!", last="~")


def store_of(options: DynamoDBOptions, **how: Any) -> DynamoDBStore:
    return DynamoDBStore(**{**{name: value for name, value in asdict(options).items() if value is not None}, **how})


@pytest.fixture
async def records(options: DynamoDBOptions) -> AsyncIterator[DynamoRecords]:
    opened = await open_records(options)
    yield opened
    await opened.close()


@pytest.fixture
async def store(options: DynamoDBOptions) -> AsyncIterator[DynamoDBStore]:
    async with store_of(options) as opened:
        yield opened


class TestPieces(RecordStoreTests):
    many_documents = 400  # the emulators take milliseconds for each put

    @pytest.fixture
    def another(self, options: DynamoDBOptions) -> OpenRecords:
        return lambda: open_records(options)


# --- The table, clients, versions -------------------------------------------------------------------------------------


async def test_a_session_and_a_client_of_the_callers(moto: DynamoDBOptions) -> None:
    """They are used, and open afterwards."""
    session = aioboto3.Session(aws_access_key_id="k", aws_secret_access_key="s", region_name="us-east-1")
    bare = DynamoDBOptions(table=moto.table, endpoint_url=moto.endpoint_url)
    async with store_of(bare, session=session) as store:
        await store.append_messages("a", samples.messages(2))
    async with session.client("dynamodb", endpoint_url=moto.endpoint_url) as client:
        async with DynamoDBStore(moto.table, client=client) as store:
            assert "given client" in repr(store)
            assert len(await store.load_messages("a")) == 2
        assert moto.table in (await client.list_tables())["TableNames"]


async def test_stores_of_a_process_share_a_client(moto: DynamoDBOptions) -> None:
    """It is closed with the last of them; other settings make another one."""
    first, second = await connect(moto), await connect(moto)
    other = await connect(replace(moto, max=3))
    assert first._client is second._client
    assert first._client is not other._client
    await first.close()
    await second._client.list_tables()
    await second.close()
    third = await connect(moto)
    assert third._client is not first._client
    for connection in (other, third):
        await connection.close()


async def test_a_client_repeats_nothing_by_itself(moto: DynamoDBOptions) -> None:
    """botocore would send a write again whose answer was lost, and nobody would know (F29)."""
    connection = await connect(moto)
    sent = 0

    async def lose(**_: Any) -> None:
        nonlocal sent
        sent += 1
        raise exceptions.ConnectionClosedError(endpoint_url="x")

    connection._client.meta.events.register("before-send.dynamodb.UpdateItem", lose)
    with pytest.raises(OutcomeUnknownError):
        await connection.write("update_item", Key={"pk": {"S": "x"}, "sk": {"S": "x"}})
    assert sent == 1
    await connection.close()


async def test_twenty_first_starts_at_once(options: DynamoDBOptions) -> None:
    """All of them succeed, with one table."""
    stores = [store_of(options, max=20 + n) for n in range(20)]  # each has a client of its own
    await asyncio.gather(*(store.open() for store in stores))
    await asyncio.gather(*(store.save_info(f"a{n}", samples.info(f"a{n}")) for n, store in enumerate(stores)))
    assert sorted(await stores[0].list()) == sorted(f"a{n}" for n in range(20))
    for store in stores:
        await store.close()


async def test_a_newer_schema_is_refused(moto: DynamoDBOptions) -> None:
    """And says what to install."""
    async with store_of(moto):
        pass
    connection = await connect(moto)
    await connection.repeat("put_item", Item={"pk": {"S": "meta"}, "sk": {"S": "schema"}, "version": {"N": "99"}})
    await connection.close()
    with pytest.raises(SchemaVersionError, match="pip install --upgrade kode-dynamodb"):
        await store_of(moto).open()


async def test_a_table_says_the_layout_of_its_records(moto: DynamoDBOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    """A newer release raises it when it opens the store, and an older one refuses the store from then on."""
    marker = {"pk": {"S": "meta"}, "sk": {"S": "schema"}}
    async with store_of(moto) as store:
        await store.append_messages("a", samples.messages(2))
    connection = await connect(moto)
    try:
        assert await connection.get(marker) == {**marker, "version": {"N": "1"}, "layout": {"N": "2"}}
        await connection.repeat("put_item", Item={**marker, "version": {"N": "1"}})  # as an earlier release wrote it
        async with store_of(moto) as store:
            assert len(await store.load_messages("a")) == 2
        assert await connection.get(marker) == {**marker, "version": {"N": "1"}, "layout": {"N": "2"}}
        with monkeypatch.context() as patch:
            patch.setattr("kode_core.engines.record.layout.LAYOUT_VERSION", 3)
            async with store_of(moto, create=False) as store:
                assert len(await store.load_messages("a")) == 2
        assert await connection.get(marker) == {**marker, "version": {"N": "1"}, "layout": {"N": "3"}}
        with pytest.raises(SchemaVersionError, match="of layout 3, and .* up to 2: .*--upgrade kode-core"):
            await store_of(moto).open()
        await connection.repeat("delete_item", Key=marker)  # as a template makes a table
        async with store_of(moto, create=False) as store:
            assert len(await store.load_messages("a")) == 2
        assert await connection.get(marker) == {**marker, "version": {"N": "1"}, "layout": {"N": "2"}}
    finally:
        await connection.close()


async def test_without_the_right_to_make_a_table(options: DynamoDBOptions) -> None:
    """With ``create`` off nothing is made, and the error says what to run; with that, the store opens."""
    with pytest.raises(StoreUnavailableError, match="kode schema dynamodb --print"):
        await store_of(options, create=False).open()
    connection = await connect(options)
    printed = json.loads(cloud_formation(options.table))["Resources"]["KodeTable"]["Properties"]
    del printed["TimeToLiveSpecification"], printed["PointInTimeRecoverySpecification"]
    await connection.ask("create_table", **printed)
    await connection.close()
    async with store_of(options, create=False) as store:
        await store.append_messages("a", samples.messages(2))
        assert len(await store.load_messages("a")) == 2


async def test_what_is_told_when_it_cannot_be_opened() -> None:
    """Nobody listens, there is no such profile, no region: each in words."""
    base = {"access_key_id": "k", "secret_access_key": "s3cret", "connection_timeout_millis": 300}
    with pytest.raises(StoreUnavailableError, match="cannot be reached; are the region and the endpoint right"):
        await DynamoDBStore("kode", endpoint_url="http://127.0.0.1:1", region="eu-west-1", **base).open()
    with pytest.raises(ConfigurationError, match="profile.*see the options region, profile"):
        await DynamoDBStore("kode", profile="nobody", region="eu-west-1").open()
    with pytest.raises(ConfigurationError, match="endpoint_url .*it must be a URL such as http://localhost:8000"):
        await DynamoDBStore("kode", endpoint_url="no url", region="eu-west-1", **base).open()


# --- Pages, throttling, what was left undone --------------------------------------------------------------------------


async def test_every_page_is_read(records: DynamoRecords) -> None:
    """A query ends after a megabyte, a batch of gets after sixteen: the rest is asked for."""
    items = [a_message(n, 1, f"{n:04d}" + "\0".join(map(str, range(n * 997, n * 997 + 12_000)))) for n in range(60)]
    for start in range(0, 60, 10):
        await records.apply(PLACE, items[start : start + 10])
    assert await records.items(PLACE, ALL) == items
    await records.drop(PLACE)
    assert await records.items(PLACE, ALL) == []


async def test_bodies_that_nobody_asked_for_stay_where_they_are(records: DynamoRecords) -> None:
    """Those of events, which are read in the order of their seq, too."""
    event = Item(key="e/1", rev=1, body=Body("text", b"digest"), index=EventIndex(7, "progress"), alt="e/7")
    await records.apply(PLACE, [event])
    wanted = KeyRange(first="e/", last="e/~", by_alt=True)
    assert await records.items(PLACE, wanted) == [event]
    assert await records.items(PLACE, replace(wanted, bodies=False)) == [replace(event, body=Body("", b"digest"))]


class Interfering:
    """Does something to the calls of a client, between the driver and the service."""

    def __init__(self, connection: Connection) -> None:
        self._events = connection._client.meta.events
        self.calls = 0

    def on(self, event: str, handler: Callable[..., Any]) -> None:
        def handle(**how: Any) -> Any:
            self.calls += 1
            return handler(**how)

        self._events.register(event, handle)


@pytest.fixture
async def connection(moto: DynamoDBOptions) -> AsyncIterator[Connection]:
    opened = await connect(replace(moto, connection_timeout_millis=1000))
    yield opened
    await opened.close()


@pytest.fixture
async def throttled(moto: DynamoDBOptions) -> AsyncIterator[DynamoRecords]:
    opened = await open_records(replace(moto, connection_timeout_millis=1000, command_timeout_millis=3000, max=49))
    yield opened
    await opened.close()


def refuse(code: str, times: int) -> Callable[..., Any]:
    """Has the driver think that the service refused the call."""
    left = times

    def handler(http_response: Any, parsed: dict[str, Any], **_: Any) -> None:
        nonlocal left
        if left:
            left -= 1
            parsed.clear()
            parsed.update(
                {"Error": {"Code": code, "Message": "slow down"}, "ResponseMetadata": {"HTTPStatusCode": 400}}
            )
            http_response.status_code = 400

    return handler


@pytest.mark.parametrize(
    "code", ["ThrottlingException", "ProvisionedThroughputExceededException", "RequestLimitExceeded"]
)
async def test_what_is_throttled_is_done_later(throttled: DynamoRecords, code: str) -> None:
    """Reads and writes wait and try again; when it does not end, they say that nothing was done."""
    interfering = Interfering(throttled.connection)
    interfering.on("after-call.dynamodb.GetItem", refuse(code, 5))
    assert await throttled.heads(["a"]) == []
    assert interfering.calls == 6
    interfering.on("after-call.dynamodb.Query", refuse(code, 10**6))
    with pytest.raises(StoreBusyError, match=f"kept throttling.*{code}"):
        await throttled.items(PLACE, ALL)


async def test_what_a_batch_left_undone_is_asked_for_again(throttled: DynamoRecords) -> None:
    """Of every batch the service takes five: of puts, deletes and gets alike."""
    events = throttled.connection._client.meta.events
    left: dict[str, Any] = {}
    calls: list[str] = []

    def take_five(params: dict[str, Any], model: Any, **_: Any) -> None:
        wanted = params["RequestItems"][throttled.connection.table]
        is_get = isinstance(wanted, dict)
        every = wanted["Keys"] if is_get else wanted
        calls.append(model.name)
        left.clear()
        if len(every) > 5:
            rest = {**wanted, "Keys": every[5:]} if is_get else every[5:]
            left.update({throttled.connection.table: rest})
            taken = {**wanted, "Keys": every[:5]} if is_get else every[:5]
            params["RequestItems"] = {throttled.connection.table: taken}

    def say_so(parsed: dict[str, Any], model: Any, **_: Any) -> None:
        parsed["UnprocessedItems" if model.name == "BatchWriteItem" else "UnprocessedKeys"] = dict(left)

    for name in ("BatchWriteItem", "BatchGetItem"):
        events.register(f"provide-client-params.dynamodb.{name}", take_five)
        events.register(f"after-call.dynamodb.{name}", say_so)
    items = [a_message(n, 1) for n in range(12)]
    await throttled.apply(PLACE, items, fresh=True)
    assert await throttled.items(PLACE, ALL) == items
    keys = [{"pk": {"S": "meta"}, "sk": {"S": "schema"}}, *({"pk": {"S": "x"}, "sk": {"S": str(n)}} for n in range(8))]
    assert len(await throttled.connection.get_all(keys)) == 1
    await throttled.drop(PLACE)
    assert await throttled.items(PLACE, ALL) == []
    assert calls == ["BatchWriteItem"] * 3 + ["BatchGetItem"] * 2 + ["BatchWriteItem"] * 3


async def test_a_fork_whose_copies_are_in_doubt_is_made_again(moto: DynamoDBOptions) -> None:
    """Where they may still arrive nobody ever looks."""
    async with aioboto3.Session(aws_access_key_id="k", aws_secret_access_key="s", region_name="us-east-1").client(
        "dynamodb", endpoint_url=moto.endpoint_url, config=AioConfig(retries={"total_max_attempts": 1})
    ) as client:
        lost = 0

        def lose(**_: Any) -> None:
            nonlocal lost
            lost += 1
            if lost == 2:
                raise exceptions.ReadTimeoutError(endpoint_url="x")

        client.meta.events.register("after-call.dynamodb.BatchWriteItem", lose)
        async with DynamoDBStore(moto.table, client=client) as store:
            await store.save_turn("a", messages=samples.messages(60), info=samples.info("a"))
            (child,) = await store.batch_fork("a", 1)
            assert await store.load_messages(child) == samples.messages(60)
        assert lost > 3


# --- Tombstones, units ------------------------------------------------------------------------------------------------


async def test_tombstones_have_a_time_to_live(options: DynamoDBOptions) -> None:
    """What is left of a deleted agent, or of a lock without an agent, is forgotten by the table itself.

    Where events had offsets it is kept: they must not come again.
    """
    async with store_of(options) as store:
        await store.append_messages("a", samples.messages(2))
        await store.append_messages("b", samples.messages(2))
        await store.append_event("d", samples.event(0))
        await store.delete("a")
        await store.delete("d")
        async with store.acquire_agent_lock("c"):
            pass
        connection = await connect(options)
        heads = {name: await connection.get({"pk": {"S": f"a#{name}"}, "sk": {"S": "head"}}) or {} for name in "abcd"}
        assert [name for name, head in heads.items() if "ttl" in head] == ["a", "c"]
        await store.append_messages("a", samples.messages(1))
        assert "ttl" not in (await connection.get({"pk": {"S": "a#a"}, "sk": {"S": "head"}}) or {})
        description = await connection.ask("describe_time_to_live")
        assert description["TimeToLiveDescription"]["AttributeName"] == "ttl"
        await connection.close()


async def test_units_are_counted_where_that_is_asked_for(moto: DynamoDBOptions) -> None:
    records = await open_records(replace(moto, count_units=True, max=48))
    await records.apply(PLACE, [a_message(n, 1) for n in range(3)])
    await records.items(PLACE, ALL)
    assert records.connection.units["write"] >= 3
    assert records.connection.units["read"] > 0
    await records.close()


async def test_a_backup_is_awss(store: DynamoDBStore, tmp_path: Any) -> None:
    """The error says with what to make it."""
    with pytest.raises(UnsupportedError, match="point-in-time recovery"):
        await store.backup(tmp_path / "x")


def test_every_error_of_the_driver_has_a_translation() -> None:
    """All classes of the driver's errors and what the service answers, without a word of what they quote."""
    kinds = [kind for kind in vars(exceptions).values() if isinstance(kind, type) and issubclass(kind, BotoCoreError)]
    assert len(kinds) > 40
    made = [kind.__new__(kind) for kind in kinds]
    codes = ["ThrottlingException", "InternalServerError", "AccessDeniedException", "ValidationException", "New", ""]
    answers = [ClientError({"Error": {"Code": code, "Message": "secret"}}, "PutItem") for code in codes]
    silence = exceptions.ReadTimeoutError(endpoint_url="secret")
    for exc in (*made, *answers, silence, OSError("secret"), TimeoutError()):
        for writes in (False, True):
            translated = to_kode_error(exc, "here", writes=writes)
            assert isinstance(translated, KodeError), exc
            assert "secret" not in str(translated)
    kind_of: Callable[[ClientError], type] = lambda exc: type(to_kode_error(exc, "here", writes=True))  # noqa: E731
    assert list(map(kind_of, answers[:3])) == [StoreBusyError, OutcomeUnknownError, StoreReadOnlyError]


# --- Sizes ------------------------------------------------------------------------------------------------------------


async def test_a_list_and_a_message_of_twenty_megabytes(store: DynamoDBStore) -> None:
    """More than an item, and more than a call, can hold, in one save each."""
    large = [samples.message(text=f"{n} " + "ä" * 100_000) for n in range(100)]
    await store.save_messages("a", large)
    assert await store.load_messages("a") == large
    huge = [samples.message(text="€" * 7_000_000)]
    await store.save_messages("a", huge)
    assert await store.load_messages("a") == huge
    await store.delete("a")
    assert await store.load_messages("a") == []


async def test_an_info_that_no_item_can_hold(store: DynamoDBStore) -> None:
    """By its size it may be anything; what it is found by must fit beside it."""
    await store.save_info("a", samples.info("a", metadata={"long": "x" * 1_000_000}))
    before = await store.load_info("a")
    assert before is not None
    with pytest.raises(PayloadTooLargeError, match="more keys than fit into an item"):
        many = {f"key-{n:x}-{n * 7919 % 104729:x}": str(n * 31337) for n in range(30_000)}
        await store.save_info("a", samples.info("a", metadata=many))
    assert await store.load_info("a") == before


@pytest.mark.slow
async def test_many_messages(options: DynamoDBOptions, request: pytest.FixtureRequest) -> None:
    """Saved at once; an append afterwards, and a page, cost what they cost on a short list."""
    patience = {"timeout_ms": 1_800_000, "command_timeout_millis": 300_000}  # moto looks through all for each query
    store = store_of(options, **patience)
    count = {"quick": 1_000, "standard": 10_000, "thorough": 100_000}[request.config.getoption("kode_tier")]
    async with store:
        await store.save_messages("a", [samples.message(text=f"message {n}") for n in range(count)])
        await store.append_messages("a", [samples.message(text="last")])
        found = await store.query_messages(agent_id="a", limit=3)
        assert found[0].text == "last"
        assert len(await store.load_messages("a")) == count + 1
