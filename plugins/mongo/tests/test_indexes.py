"""Pages of queries cost what they hold: what the server examined for them, on a store with rare rows."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from typing import Any, Final

import pymongo
import pytest
from kode_mongo import MongoOptions
from kode_mongo.documents import item_document
from kode_mongo.queries import rows_wanted
from kode_mongo.records import open_records
from kode_mongo.schema import ITEMS
from kode_mongo.testing.servers import Server
from msgspec.structs import replace

from kode_core.batch import ListKind, MessageIndex, ToolCallIndex
from kode_core.codec import Body
from kode_core.engines.record.state import event_key, event_keys, row_key, seq_key, seq_keys
from kode_core.engines.record.store import EventIndex, Item, ItemIndex, ItemsPlace
from kode_core.query import MessageFilter, RowQuery, ToolCallFilter, message_query, tool_call_query

LARGE: Final = ItemsPlace("large", "1" * 16)
OTHERS: Final = [ItemsPlace(f"a{n}", "2" * 16) for n in range(20)]
ROWS: Final = 3_000
LIMIT: Final = 8
AROUND: Final = 4
"""Entries of an index that are looked at behind a page, and between its rows."""
MIDDLE: Final = ROWS // 2


def an_item(key: str, index: ItemIndex, time: int, alt: str | None = None) -> Item:
    return Item(key=key, rev=1, body=Body('{"text": "…"}', b"d"), index=index, time=time, alt=alt)


def a_message(n: int) -> Item:
    role = "system" if n % 97 == 5 else ("critic" if n % 301 == 7 else ("user", "assistant")[n % 2])
    types = ("text", "tool_use") if n % 4 == 1 else ("tool_result",) if n % 4 == 2 else ("text",)
    rare = {3: ("image",), 50: ("video",), 61: ("reasoning",)}.get(n % 100, ())
    return an_item(row_key(ListKind.MESSAGES, n), MessageIndex(role, (*types, *rare)), n // 3)


def a_call(n: int) -> Item:
    state = {4: "FAILED", 5: "APPROVAL_REQUIRED", 6: "DENIED"}.get(n % 150, "COMPLETED")
    index = ToolCallIndex(f"c{n}", f"tool{n % 7}", state, n % 150 == 4, n % 150 in (5, 6))
    return an_item(row_key(ListKind.TOOL_CALLS, n), index, n // 3)


def an_event(n: int) -> Item:
    channel = {8: "control", 9: "monitor"}.get(n % 100, "progress")
    return an_item(event_key(n), EventIndex(n // 2, channel), n, seq_key(n // 2, n))


@pytest.fixture(scope="module")
def items(server: Server) -> Iterator[Any]:
    """The collection of a store that has one large agent, among others that have much that is rare."""
    database = f"kode_{secrets.token_hex(6)}"

    async def open_once() -> None:
        await (await open_records(MongoOptions(uri=server.uri, database=database))).close()

    asyncio.run(open_once())
    with server.client() as client:
        found = client[database][f"kode_{ITEMS}"]
        for make in (a_message, a_call, an_event):
            found.insert_many([item_document(LARGE, make(n)) for n in range(ROWS)])
            found.insert_many([item_document(place, make(n)) for place in OTHERS for n in range(120)])
        yield found
        client.drop_database(database)


def examined(items: Any, **find: Any) -> tuple[int, int, int]:
    """How many documents a query found, how many the server examined for them, and how many entries of indexes."""
    explained = items.database.command(
        "explain", {"find": items.name, **find, "sort": dict(find["sort"])}, verbosity="executionStats"
    )
    stats = explained["executionStats"]
    assert "'SORT'" not in str(explained["queryPlanner"]["winningPlan"])
    return stats["nReturned"], stats["totalDocsExamined"], stats["totalKeysExamined"]


def pages_of(query: RowQuery) -> list[RowQuery]:
    """The first page, and one that goes on in the middle; both in both orders."""
    where = LARGE.agent_id if query.agent_id else OTHERS[7].agent_id
    return [
        replace(query, limit=LIMIT, descending=descending, after=after)
        for descending in (True, False)
        for after in (None, (MIDDLE // 3, where, MIDDLE))
    ]


MESSAGES: Final[tuple[MessageFilter, ...]] = (
    {"role": "system"},
    {"role": "critic"},
    {"role": "user"},
    {"role": "nobody"},
    {"content_type": "image"},
    {"content_type": "video"},
    {"content_type": "reasoning"},
    {"content_type": "hologram"},
    {"content_type": "text"},
)
CALLS: Final[tuple[ToolCallFilter, ...]] = (
    {"state": "FAILED"},
    {"state": "APPROVAL_REQUIRED"},
    {"state": "PENDING"},
    {"state": "COMPLETED"},
    {"is_error": True},
    {"is_error": False},
    {"has_approval": True},
    {"has_approval": True, "state": "DENIED"},
)
QUERIES: Final = [*map(message_query, MESSAGES), *map(tool_call_query, CALLS)]
COMMON: Final = 4
"""How many rows are looked at, at most, for each one with a common value."""


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: f"{query.where}")
def test_a_page_of_all_agents(items: Any, query: RowQuery) -> None:
    """Documents and entries that were examined are those of the page."""
    for page in pages_of(query):
        wanted, sort = rows_wanted(page)
        found, documents, entries = examined(items, filter=wanted, sort=sort, limit=LIMIT)
        most = 1 if is_rare(query) else COMMON
        assert documents <= most * LIMIT
        assert entries <= most * LIMIT + AROUND
        assert found == min(LIMIT, count(items, wanted))


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: f"{query.where}")
def test_a_page_of_one_agent(items: Any, query: RowQuery) -> None:
    """Documents that were examined are those of the page; entries of indexes, those of the agent's rare rows."""
    is_in_list = {"agent_id": LARGE.agent_id, "list": query.kind}
    rare = sum(not is_common(document["index"]) for document in items.find(is_in_list))
    assert rare < ROWS / 20
    for page in pages_of(RowQuery(kind=query.kind, agent_id=LARGE.agent_id, where=query.where)):
        wanted, sort = rows_wanted(page)
        found, documents, entries = examined(items, filter=wanted, sort=sort, limit=LIMIT)
        assert documents <= (1 if is_rare(query) else COMMON) * LIMIT
        assert entries <= 3 * rare + AROUND
        assert found == min(LIMIT, count(items, wanted))


NONE: Final = [f"none-{n}" for n in range(98)]
LISTS: Final = [
    *map(
        message_query,
        (
            MessageFilter(role=["system", "critic"]),
            MessageFilter(role=["system", "critic", *NONE]),
            MessageFilter(role=["user", "system"]),
            MessageFilter(content_type=["image", "video"]),
            MessageFilter(content_type=["image", "video", *NONE]),
            MessageFilter(agent_id=["large", "a3", *NONE]),
        ),
    ),
    *map(
        tool_call_query,
        (
            ToolCallFilter(tool_name=["tool3", "tool4", *NONE]),
            ToolCallFilter(state=["FAILED", "DENIED"]),
            ToolCallFilter(state=["FAILED", "DENIED", *NONE]),
            ToolCallFilter(state=["FAILED", "COMPLETED"]),
            ToolCallFilter(agent_id=["large", "a3"]),
        ),
    ),
]


@pytest.mark.parametrize("query", LISTS, ids=lambda query: f"{query.agent_id} {query.where}"[:80])
def test_a_page_of_several_values(items: Any, query: RowQuery) -> None:
    """A page of several values costs as much as one of each."""
    values = sum(len(wanted) for wanted in (query.agent_id, *dict(query.where).values()) if isinstance(wanted, tuple))
    for page in pages_of(query):
        wanted, sort = rows_wanted(page)
        found, documents, entries = examined(items, filter=wanted, sort=sort, limit=LIMIT)
        assert documents <= COMMON * LIMIT + values
        assert entries <= COMMON * LIMIT + AROUND * values
        assert found == min(LIMIT, count(items, wanted))


@pytest.mark.parametrize("agent_id", [None, LARGE.agent_id])
def test_two_filters(items: Any, agent_id: str | None) -> None:
    """No more documents are examined than the rarer one finds."""
    query = RowQuery(kind="tool_calls", agent_id=agent_id, where=(("tool_name", "tool4"), ("is_error", True)))
    rarer, _ = rows_wanted(RowQuery(kind="tool_calls", agent_id=agent_id, where=(("is_error", True),)))
    wanted, sort = rows_wanted(query)
    found, documents, _ = examined(items, filter=wanted, sort=sort, limit=LIMIT)
    assert found == min(LIMIT, count(items, wanted))
    assert documents <= count(items, rarer)


def count(items: Any, wanted: Any) -> int:
    """How many documents match, as a look at each of them says."""
    return int(items.count_documents(wanted, hint=[("$natural", 1)]))


def is_rare(query: RowQuery) -> bool:
    """Whether one of the values is not what most rows have."""
    return any(value not in ("user", "text", "COMPLETED", False) for _, value in query.where)


def is_common(index: Any) -> bool:
    """Whether a row has common values only."""
    if "role" in index:
        return index["role"] in ("user", "assistant") and {*index["content_types"]} <= {
            "text",
            "tool_use",
            "tool_result",
        }
    return index["state"] == "COMPLETED" and not index["is_error"] and not index["has_approval"]


class Asked(pymongo.monitoring.CommandListener):
    """The queries that a client sent."""

    def __init__(self) -> None:
        self.finds: list[Any] = []

    def started(self, event: Any) -> None:
        if event.command_name == "find":
            self.finds.append(event.command)

    def succeeded(self, event: Any) -> None:
        pass

    def failed(self, event: Any) -> None:
        pass


@pytest.mark.parametrize("channel", ["control", "monitor", "progress"])
async def test_a_page_of_events_of_a_channel(server: Server, items: Any, channel: str) -> None:
    """Events by offset and by seq, from the start and from the middle, both ways: the page is what was examined."""
    asked = Asked()
    async with pymongo.AsyncMongoClient(server.uri, event_listeners=[asked]) as client:
        records = await open_records(MongoOptions(client=client, database=items.database.name))
        for keys in (event_keys(), event_keys(MIDDLE), seq_keys(), seq_keys(MIDDLE // 2)):
            for descending in (True, False):
                asked.finds.clear()
                page = replace(keys, channel=channel, limit=LIMIT, descending=descending)
                found = [item.index for item in await records.items(LARGE, page)]
                assert [index.channel for index in found if isinstance(index, EventIndex)] == [channel] * LIMIT
                (find,) = asked.finds
                kept = {name: find[name] for name in ("filter", "sort", "hint", "limit")}
                _, documents, entries = examined(items, **kept)
                assert max(documents, entries) <= LIMIT + AROUND
