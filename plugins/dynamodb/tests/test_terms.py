"""The entries of documents with tags: they follow their document, whatever call of its write is the last one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import pytest
from kode_dynamodb.connection import Connection, connect
from kode_dynamodb.options import DynamoDBOptions
from kode_dynamodb.records import DynamoRecords, open_records
from kode_dynamodb.terms import Terms, entries_of
from kode_dynamodb.values import items_pk

from kode_core.codec import Body
from kode_core.engines.record.doc_keys import own_key
from kode_core.engines.record.store import Change, Cut, DocIndex, Item, ItemsPlace
from kode_core.engines.record.terms import DocSearch

PLACE: Final = ItemsPlace("a", "0" * 16)
KEY: Final = own_key("c/k")


def a_doc(rev: int, *names: str) -> Item:
    index = DocIndex("documents", "c/k", tuple(f"{name:0>32}" for name in names))
    return Item(key=KEY, rev=rev, body=Body("1", b"d"), index=index, time=7)


CUT: Final = Cut(first=KEY, last=KEY, rev=3)
HISTORIES: Final[Sequence[Sequence[Sequence[Change]]]] = (
    ([a_doc(1, "a", "b", "c")], [a_doc(2, "b")]),
    ([a_doc(1, "a")], [a_doc(2, "a", "b", "c")]),
    ([a_doc(1, "a", "b", "c")], [a_doc(2)]),
    ([a_doc(1, "a", "b", "c")], [CUT]),
    ([a_doc(1, "a", "b", "c")], [CUT], [a_doc(4, "c")]),
    ([a_doc(1)], [a_doc(2, "a", "b"), a_doc(3, "c")]),
    ([a_doc(1, "a", "b", "c"), a_doc(2, "b")],),
)
"""Applies of one after the other: of several changes in one apply, a swap took the first ones over."""


class StopsError(Exception):
    """The process was killed."""


class Stops(Connection):
    """Stops before its n-th write, as a process does that was killed there."""

    left = 1_000

    def _step(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise StopsError

    async def put(self, **arguments: Any) -> Any:
        self._step()
        return await super().put(**arguments)

    async def repeat(self, name: str, **arguments: Any) -> bool:
        self._step()
        return await super().repeat(name, **arguments)


async def entries(connection: Connection) -> dict[str, Any]:
    """The entries that indexes show, by their key."""
    found = await connection.query(
        KeyConditionExpression="pk = :pk AND begins_with(sk, :g)",
        ExpressionAttributeValues={":pk": items_pk(PLACE), ":g": {"S": "g/"}},
        ConsistentRead=True,
    )
    return {one["sk"]["S"]: one for one in found if "gone" not in one}


@pytest.mark.parametrize("history", HISTORIES, ids=range(len(HISTORIES)))
async def test_entries_follow_their_document(moto: DynamoDBOptions, history: Sequence[Sequence[Change]]) -> None:
    """A killed process leaves a pending head, whose changes are applied again, and late calls arrive behind them: then
    the entries are those of the document.
    """
    await (await open_records(moto)).close()
    plain = await connect(moto)
    last = max(history[-1], key=lambda change: change.rev)
    wanted = {one["sk"]["S"]: one for one in entries_of(PLACE, last)} if isinstance(last, Item) else {}
    try:
        for left in range(8):
            records = DynamoRecords(plain)
            await records.drop(PLACE)
            for changes in history[:-1]:
                await records.apply(PLACE, changes)
            stopping = Stops(plain._client, moto, plain._release)
            stopping.left = left
            is_done = True
            try:
                await Terms(stopping).apply(PLACE, history[-1])
            except StopsError:
                is_done = False
            await records.apply(PLACE, history[-1])
            for changes in (*history, *history[::-1]):
                await records.apply(PLACE, changes)
            assert await entries(plain) == wanted, left
            if is_done:
                return
        raise AssertionError("an apply takes more calls than were tried")
    finally:
        await plain.close()


async def test_a_document_without_tags_costs_no_more(moto: DynamoDBOptions) -> None:
    """A put and a removal are one write each, and read nothing; a refused one reads the entries."""
    await (await open_records(moto)).close()
    connection = await connect(moto)
    calls = list[str]()
    made = connection._run

    async def run(name: str, *args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        return await made(name, *args, **kwargs)

    connection._run = run  # type: ignore[method-assign]
    try:
        records = DynamoRecords(connection)
        await records.apply(PLACE, [a_doc(1)])
        await records.apply(PLACE, [a_doc(2)])
        await records.apply(PLACE, [CUT])
        assert calls == ["put_item"] * 3
        await records.apply(PLACE, [CUT])
        assert calls[3:] == ["put_item", "query"]
        await records.apply(PLACE, [a_doc(4, "a")])
        calls.clear()
        search = DocSearch(terms=(f"{'a':0>32}",), limit=10)
        assert [one.item.rev for one in await records.find_docs(search)] == [4]
        assert sorted(calls) == ["batch_get_item", *["query"] * 4]
    finally:
        await connection.close()
