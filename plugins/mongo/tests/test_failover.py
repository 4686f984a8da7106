"""Sets of several members: the primary dies with what it alone has."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from kode_conformance.servers import had
from kode_conformance.values import samples
from kode_mongo.records import MongoRecords
from kode_mongo.testing.members import LocalSet

from kode_core import ExtendedStore, create_extended_store
from kode_core.engines.record.store import HeadRecord


@pytest.fixture
def members() -> Iterator[LocalSet]:
    with had(LocalSet) as members:
        yield members


@pytest.mark.slow
async def test_a_large_turn_outlives_the_member_that_marked_it(
    members: LocalSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its changes lie beside the head. No other member knows that they are applied when the primary dies."""
    settle = MongoRecords.settle
    killed: list[int] = []

    async def last_words(self: MongoRecords, head: HeadRecord, *, lasting: bool = False) -> bool:
        if killed or not await self.part_keys(head.place, "p/", "p/~"):
            return await settle(self, head, lasting=lasting)
        killed.append(await asyncio.to_thread(members.primary))
        await asyncio.to_thread(members.hold_replication, killed[0], held=True)
        marking = asyncio.ensure_future(settle(self, head, lasting=lasting))
        await asyncio.wait([marking], timeout=2)
        await asyncio.to_thread(members.kill, killed[0])
        await asyncio.to_thread(members.hold_replication, killed[0], held=False)
        return await marking

    large = [samples.message(n, "y" * 600_000) for n in range(9)]
    async with await _opened(members) as store:
        await store.append_messages("a", samples.messages(1))
        monkeypatch.setattr(MongoRecords, "settle", last_words)
        await store.append_messages("a", large)
    assert killed
    await asyncio.to_thread(members.start_member, killed[0])
    async with await _opened(members) as store:
        assert await store.load_messages("a") == [*samples.messages(1), *large]
        await store.append_messages("a", [samples.message(10)])
        assert len(await store.load_messages("a")) == 11
        assert (await store.check_consistency("a")).issues == ()


async def _opened(members: LocalSet) -> ExtendedStore:
    options: dict[str, Any] = {"database": "kode_failover", "connection_timeout_millis": 30_000}
    return await create_extended_store(type="mongo", uri=members.uri, **options)
