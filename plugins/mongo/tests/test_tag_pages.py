"""Pages of documents by tags cost what they hold: what the server examined for them, among many documents."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from typing import Any, Final

import pytest
from kode_mongo import MongoOptions
from kode_mongo.documents import item_document
from kode_mongo.queries import docs_wanted
from kode_mongo.records import open_records
from kode_mongo.schema import ITEMS
from kode_mongo.testing.servers import Server

from kode_core.codec import Body
from kode_core.engines.record.doc_keys import own_key
from kode_core.engines.record.store import DocIndex, Item, ItemsPlace
from kode_core.engines.record.terms import DocSearch

LARGE: Final = ItemsPlace("large", "1" * 16)
DOCUMENTS: Final = 20_000
RARE: Final = 50
"""Every so manieth document has a rare tag."""


def a_document(place: ItemsPlace, n: int) -> dict[str, Any]:
    key = f"c/k{n:06}"
    index = DocIndex("documents", key, ("all", f"r{n % RARE:02}"))
    return item_document(place, Item(key=own_key(key), rev=1, body=Body("text", b"d"), index=index, time=1))


@pytest.fixture(scope="module")
def items(server: Server) -> Iterator[Any]:
    """The collection of a store that has one large agent among others, all with one tag in common."""
    database = f"kode_{secrets.token_hex(6)}"

    async def open_once() -> None:
        await (await open_records(MongoOptions(uri=server.uri, database=database))).close()

    asyncio.run(open_once())
    with server.client() as client:
        found = client[database][f"kode_{ITEMS}"]
        found.insert_many([a_document(LARGE, n) for n in range(DOCUMENTS)])
        found.insert_many([a_document(ItemsPlace(f"a{n:02}", "2" * 16), 7) for n in range(50)])
        yield found
        client.drop_database(database)


PLACE: Final = ("large", own_key(f"c/k{DOCUMENTS // 2:06}"), "1" * 16)
RARE_TERMS: Final = tuple(f"r{n:02}" for n in range(RARE))


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("terms", [("all",), ("r17",), RARE_TERMS], ids=["common", "rare", "many"])
@pytest.mark.parametrize(
    "given", [{}, {"after": PLACE}, {"agent_id": "large"}, {"agent_id": "large", "after": PLACE}], ids=str
)
def test_a_page_by_tags_examines_its_documents(
    items: Any, terms: tuple[str, ...], given: dict[str, Any], descending: bool
) -> None:
    """However many documents have the tags, wherever the page begins, for one value or many."""
    search = DocSearch(terms=terms, limit=100, descending=descending, **given)
    wanted, sort = docs_wanted(search)
    hint = {"terms": 1, **{field: 1 for field, _ in sort}}
    find = {"find": items.name, "filter": wanted, "sort": dict(sort), "limit": search.limit, "hint": hint}
    explained = items.database.command("explain", find, verbosity="executionStats")
    assert "'SORT'" not in str(explained["queryPlanner"]["winningPlan"])
    stats = explained["executionStats"]
    assert stats["nReturned"] == 100
    assert stats["totalDocsExamined"] == 100
    assert stats["totalKeysExamined"] <= 100 + 4 * len(terms)
