"""Processes that are killed while they write, and processes that write at once."""

from __future__ import annotations

import asyncio

import pytest
from kode_conformance import StoreHarness, Violation
from kode_conformance.builtin import JsonHarness
from kode_conformance.context import prepared
from kode_conformance.kills.random_kills import kill_mixed, kill_turns
from kode_sqlite.testing.harness import HybridHarness, SqliteHarness

from tests.broken import EagerJson, EagerSqlite, TornJson, TornSqlite

ROUNDS = 50
STORES = [JsonHarness(), SqliteHarness(), HybridHarness()]


@pytest.mark.slow
@pytest.mark.parametrize("harness", STORES, ids=lambda h: h.name)
async def test_turns_survive_kills(harness: StoreHarness) -> None:
    """A writer of whole turns is killed 50 times: no acknowledged turn is lost, and none is there in part."""
    async with prepared(harness) as context:
        assert await kill_turns(context, ROUNDS, seed=101) >= ROUNDS


@pytest.mark.slow
@pytest.mark.parametrize("harness", STORES[:2], ids=lambda h: h.name)
async def test_single_saves_survive_kills(harness: StoreHarness) -> None:
    """A writer of single saves of many kinds is killed 50 times: nothing acknowledged is lost, nothing torn."""
    async with prepared(harness) as context:
        assert await kill_mixed(context, ROUNDS, seed=202) >= ROUNDS


@pytest.mark.slow
@pytest.mark.parametrize(
    "harness", [EagerJson(), EagerSqlite(), TornJson(), TornSqlite()], ids=lambda h: type(h).__name__
)
async def test_broken_writers_are_caught(harness: StoreHarness) -> None:
    """The same test catches a writer that acknowledges before it writes, and one that writes a turn in two steps."""
    async with prepared(harness) as context:
        with pytest.raises(Violation, match="acknowledged|in part"):
            await kill_turns(context, ROUNDS, seed=303)


@pytest.mark.parametrize("count", [2, 4])
async def test_processes_write_one_database(count: int) -> None:
    """Two and four processes write one SQLite file at once, the same agents and others: all is there, none fails."""
    async with prepared(SqliteHarness()) as context:
        scripts = []
        for i in range(count):
            scripts.append(await context.process("append_messages", "shared", f"p{i}", 40))
            scripts.append(await context.process("append_events", "shared", 1000 * i, 80, 8))
            scripts.append(await context.process("write_turns", f"own-{i}", 0, 25))
        told = await asyncio.gather(*(script.lines() for script in scripts))
        store = context.store
        texts = [message.text.split() for message in await store.load_messages("shared")]
        assert len(texts) == 80 * count
        for i in range(count):
            assert [int(n) for tag, n, half in texts if (tag, half) == (f"p{i}", "second")] == list(range(40))
            assert len(await store.load_messages(f"own-{i}")) == 50
        events = {event.bookmark.seq: event.offset async for event in store.read_events("shared")}
        acknowledged = {line["seq"]: line["offset"] for lines in told for line in lines if "offset" in line}
        assert events == acknowledged
        assert (await store.check_consistency()).consistent
