"""Tests of MSG-4 with clocks that differ and step back, for every engine: subclass and name the harness."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import cast

import pytest
from kode_conformance import Space, StoreHarness
from kode_conformance.values import samples

from kode_core.model import Message
from kode_core.store import EngineStore

OpenAt = Callable[[int], Awaitable[EngineStore]]
"""Opens one more store of the same place, whose clock stands at a time in milliseconds."""


def message(text: str) -> Message:
    return Message.user(text)


def set_clock(store: EngineStore, time: int) -> EngineStore:
    """Let the store's clock stand at *time*."""
    store._context.now = lambda: time
    return store


async def append(store: EngineStore, *texts: str) -> None:
    await store.append_messages("a", [message(text) for text in texts])


async def times(store: EngineStore, agent_id: str = "a") -> list[int]:
    """When the messages were first seen, by position; a query by time gives them in just that order."""
    found = await store.query_messages(agent_id=agent_id, order="asc", limit=1000)
    assert [stored.position for stored in found] == list(range(len(found)))
    page = await store.query_messages(agent_id=agent_id, order="asc", limit=2)
    paged = list(page)
    while page.next_cursor is not None:
        page = await store.query_messages(agent_id=agent_id, order="asc", limit=2, cursor=page.next_cursor)
        paged += page
    assert paged == list(found)
    return [stored.created_at for stored in found]


class MessageTimes:
    """``harness`` is of the engine that is tested."""

    harness: StoreHarness

    @pytest.fixture
    async def open_at(self, tmp_path: Path) -> AsyncIterator[OpenAt]:
        handle = await self.harness.provision(Space(f"t{secrets.token_hex(6)}", tmp_path))
        stores = []

        async def open_at(time: int) -> EngineStore:
            store = set_clock(cast(EngineStore, await self.harness.open(handle)), time)
            stores.append(store)
            return store

        yield open_at
        for store in stores:
            await store.close()
        await self.harness.destroy(handle)

    async def test_a_clock_that_steps_back(self, open_at: OpenAt) -> None:
        """What is appended after the clock stepped back is as late as the newest message, until the clock is later."""
        store = await open_at(5000)
        await append(store, "one", "two")
        set_clock(store, 1000)
        await append(store, "three")
        await store.save_turn("a", append=[message("four")], events=samples.events(1))
        set_clock(store, 6000)
        await append(store, "five")
        assert await times(store) == [5000, 5000, 5000, 5000, 6000]
        await append(await open_at(2000), "six")
        assert await times(store) == [5000, 5000, 5000, 5000, 6000, 6000]

    async def test_clocks_that_differ(self, open_at: OpenAt) -> None:
        """Stores that take turns, one with a clock behind the other's, append in the order of times."""
        ahead, behind = await open_at(9000), await open_at(3000)
        for text in "abc":
            await append(behind, f"behind {text}")
            await append(ahead, f"ahead {text}")
        assert await times(behind) == [3000, 9000, 9000, 9000, 9000, 9000]

    async def test_appends_at_once(self, open_at: OpenAt) -> None:
        """Appends that stores with different clocks make at once stand in the order of times."""
        stores = [await open_at(1000 * i) for i in (4, 1, 3, 2)]
        await append(stores[1], "first")
        texts = [f"{i} {n}" for n in range(6) for i in range(4)]
        await asyncio.gather(*(append(stores[int(text[0])], text) for text in texts))
        found = await times(stores[0])
        assert found == sorted(found)
        assert (found[0], found[-1], len(found)) == (1000, 4000, 25)

    async def test_messages_that_are_gone_count_no_more(self, open_at: OpenAt) -> None:
        """What is appended unseen is as late as the newest message that is left, not as one that was cut off."""
        store = await open_at(1000)
        talk = [message(text) for text in "abcd"]
        for i in range(4):
            await store.save_messages("a", talk[: i + 1])
            set_clock(store, 2000 + 1000 * i)
        await store.save_messages("a", talk[:2])
        await append(await open_at(500), "e")
        assert await times(store) == [1000, 2000, 2000]
        await append(await open_at(700), "f", "g")
        assert await times(store) == [1000, 2000, 2000, 2000, 2000]
        await store.save_messages("a", [])
        await append(await open_at(600), "h")
        assert await times(store) == [600]
        await store.delete("a")
        await append(await open_at(400), "i")
        assert await times(store) == [400]

    async def test_forks_go_on_from_their_parent(self, open_at: OpenAt) -> None:
        """What is appended to a fork is never older than what it has of its parent."""
        store = await open_at(8000)
        await store.save_turn("a", info=samples.info("a"), append=[message("parent")])
        (fork,) = await store.batch_fork("a", 1)
        behind = await open_at(2000)
        await behind.append_messages(fork, [message("fork")])
        assert await times(store, fork) == [8000, 8000]
        assert await times(store) == [8000]

    async def test_tool_calls_have_their_own_times(self, open_at: OpenAt) -> None:
        """Tool calls keep the time that they were given, whatever came before."""
        store = await open_at(8000)
        await store.upsert_tool_call_records("a", [samples.tool_call(0, created_at=9000)])
        await store.save_turn(
            "a", append=[message("x")], upsert_tool_calls=[samples.tool_call(1, created_at=10)], info=samples.info("a")
        )
        found = await store.query_tool_calls(agent_id="a", order="asc")
        assert [(call.id, call.created_at) for call in found] == [
            (samples.tool_call(1).id, 10),
            (samples.tool_call(0).id, 9000),
        ]

    async def test_times_are_stored(self, open_at: OpenAt) -> None:
        """The time that a message got when it was written is the one that another store, opened later, finds."""
        store = await open_at(5000)
        await append(store, "one")
        set_clock(store, 1000)
        await append(store, "two")
        assert await times(await open_at(1)) == [5000, 5000]
