"""How many requests a query makes, and what is sent for them, where what is looked for is rare."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from typing import Any, Final

import aioboto3
import pytest
from kode_conformance.servers import had
from kode_conformance.suite.record_tests import PLACE, a_head
from kode_conformance.values import samples
from kode_dynamodb import DynamoDBOptions, DynamoDBStore
from kode_dynamodb.records import DynamoRecords, open_records
from kode_dynamodb.testing.servers import KEY, SECRET, LocalServer, MotoServer, shared_server
from kode_dynamodb.values import buckets
from msgspec.structs import replace

from kode_core.batch import ListKind, MessageIndex, ToolCallIndex
from kode_core.codec import Body
from kode_core.engines.record.state import event_key, event_keys, row_key, seq_key, seq_keys
from kode_core.engines.record.store import EventIndex, Item, ItemIndex
from kode_core.query import MessageFilter, RowQuery, ToolCallFilter, message_query, tool_call_query

FIRST: Final = 100
LATER: Final = 1_000
"""How many items the first page has, and the others."""
OTHERS: Final = len(buckets("m")) - 1
"""The partitions of a global index in which nothing is."""
ODD: Final = ('a "quoted" one', "back\\slash", "ключ", "x" * 1_000, '","is_error":true')


def an_item(key: str, index: ItemIndex, time: int, alt: str | None = None) -> Item:
    return Item(key=key, rev=1, body=Body('{"text": "…"}', b"d"), index=index, time=time, alt=alt)


def rows(count: int) -> list[Item]:
    """Messages, tool calls and events; a few of the first ones are rare, and so is one of the last events."""
    made = []
    for n in range(count):
        odd = ODD[n] if n < len(ODD) else None
        types = ("text", "image") if n == 7 else ("text", odd or "tool_use")
        call = ToolCallIndex(f"c{n}", odd or "bash", "FAILED" if n == 7 else "COMPLETED", n == 7, n == 7)
        made.append(an_item(row_key(ListKind.MESSAGES, n), MessageIndex(odd or "user", types), n))
        made.append(an_item(row_key(ListKind.TOOL_CALLS, n), call, n))
        channel = "control" if n in (7, count - 8) else "progress"
        made.append(an_item(event_key(n), EventIndex(n, channel), n, seq_key(n, n)))
    return made


class Counted:
    """The queries of a client, and how many items came back."""

    def __init__(self, client: Any) -> None:
        self.queries = self.items = 0
        client.meta.events.register("after-call.dynamodb.Query", self._answered)

    def _answered(self, parsed: dict[str, Any], **_: Any) -> None:
        self.queries += 1
        self.items += len(parsed["Items"])

    def taken(self) -> tuple[int, int]:
        """What came since the last look."""
        taken, self.queries, self.items = (self.queries, self.items), 0, 0
        return taken


@pytest.fixture(scope="module", params=[MotoServer, LocalServer], ids=["moto", "local"])
def large(request: pytest.FixtureRequest) -> tuple[DynamoDBOptions, int]:
    """A table that has so many rows of each kind, of one agent; few on moto, which looks at each item for each page."""
    kind, size = request.param, 150 if request.param is MotoServer else 1_200
    server = had(lambda: shared_server(kind), optional=kind is LocalServer)
    keys = {"access_key_id": KEY, "secret_access_key": SECRET}
    options = DynamoDBOptions(
        table=f"kode-{secrets.token_hex(6)}", endpoint_url=server.endpoint_url, region="us-east-1", **keys
    )

    async def fill() -> None:
        records = await open_records(options)
        await records.swap(None, a_head(1), None, [])
        await records.apply(PLACE, rows(size), fresh=True)
        await records.close()

    asyncio.run(fill())
    return options, size


@pytest.fixture
def size(large: tuple[DynamoDBOptions, int]) -> int:
    return large[1]


@pytest.fixture
def pages(size: int) -> int:
    """In how many pages all rows of a kind are read."""
    return 1 + -(-(size - FIRST) // LATER)


@pytest.fixture
async def client(large: tuple[DynamoDBOptions, int]) -> AsyncIterator[Any]:
    session = aioboto3.Session(aws_access_key_id=KEY, aws_secret_access_key=SECRET, region_name="us-east-1")
    async with session.client("dynamodb", endpoint_url=large[0].endpoint_url) as opened:
        yield opened


@pytest.fixture
async def records(large: tuple[DynamoDBOptions, int], client: Any) -> AsyncIterator[DynamoRecords]:
    opened = await open_records(DynamoDBOptions(table=large[0].table, client=client))
    yield opened
    await opened.close()


MESSAGES: Final[tuple[MessageFilter, ...]] = (
    {"role": "system"},
    {"content_type": "image"},
    {"content_type": "hologram"},
    {"content_type": "image", "role": "user"},
    *({"role": text} for text in ODD),
    {"content_type": ODD[0]},
)
CALLS: Final[tuple[ToolCallFilter, ...]] = (
    {"state": "FAILED"},
    {"is_error": True},
    {"has_approval": True},
    {"is_error": True, "state": "COMPLETED"},
    *({"tool_name": text} for text in ODD),
)


async def test_a_query_for_what_is_rare(records: DynamoRecords, client: Any, size: int, pages: int) -> None:
    """It takes pages of a fixed size, whatever the limit and the order; the server sends what may match only."""
    counted = Counted(client)
    every = {item.key: item for item in rows(size)}
    for query in (*map(message_query, MESSAGES), *map(tool_call_query, CALLS)):
        expected = [key for key, item in every.items() if matches(item, query)]
        for agent_id, requests, limit in ((PLACE.agent_id, pages, 500), (None, pages + OTHERS, 2)):
            counted.taken()
            asked = replace(query, agent_id=agent_id, limit=limit, descending=limit == 2)
            found = [one.item.key for one in await records.find_items(asked)]
            assert found == expected, query.where
            queries, items = counted.taken()
            assert queries <= requests
            assert items <= len(expected) + len(ODD)  # what is compressed is seen here only


def matches(item: Item, query: RowQuery) -> bool:
    index = item.index
    if isinstance(index, EventIndex) or (query.kind == "messages") != isinstance(index, MessageIndex):
        return False
    return all(
        value in index.content_types
        if isinstance(index, MessageIndex) and name == "content_type"
        else getattr(index, name) == value
        for name, value in query.where
    )


async def test_a_query_for_what_is_usual(records: DynamoRecords, client: Any) -> None:
    """Its page is small, and enough."""
    counted = Counted(client)
    for query in (message_query({"role": "user"}), tool_call_query({"is_error": False})):
        found = await records.find_items(replace(query, limit=20, agent_id=PLACE.agent_id))
        assert len(found) == 20
        assert counted.taken() == (1, FIRST)


async def test_events_of_a_rare_channel(records: DynamoRecords, client: Any, size: int, pages: int) -> None:
    """As for rows, from both ends and by both orders, however few are wanted."""
    counted = Counted(client)
    for keys in (event_keys(), seq_keys()):
        for limit, descending in ((1, False), (1, True), (2, False), (None, True)):
            asked = replace(keys, channel="control", limit=limit, descending=descending)
            counted.taken()
            found = [item.time for item in await records.items(PLACE, asked)]
            both = [size - 8, 7] if descending else [7, size - 8]
            assert found == both[:limit]
            queries, items = counted.taken()
            assert queries <= (1 if limit == 1 else pages)
            assert items <= 2


async def test_sessions_with_a_rare_value(client: Any) -> None:
    """By template, metadata and the time that is not the order: one page of each partition for so few."""
    counted = Counted(client)
    async with DynamoDBStore(f"kode-{secrets.token_hex(6)}", client=client) as store:
        infos = [
            samples.info(f"a{n}", template_id="rare" if n == 3 else "usual", metadata={"plan": n}) for n in range(40)
        ]
        await asyncio.gather(*(store.save_info(info.agent_id, info) for info in infos))
        (third,) = [found for found in await store.query_sessions() if found.agent_id == "a3"]
        for filters in (
            {"template_id": "rare"},
            {"metadata": {"plan": 3}},
            {"updated_after": third.updated_at, "updated_before": third.updated_at + 1},
        ):
            counted.taken()
            found = await store.query_sessions(**filters, limit=1)  # type: ignore[arg-type]
            assert [one.agent_id for one in found][:1] == ["a3"] or "updated_after" in filters
            queries, _ = counted.taken()
            assert queries <= 2 * len(buckets("h"))  # once more for what a writer left that died
