"""Tests of messages that are appended once, for every engine: subclass, and name the harness."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from kode_conformance import Space, StoreHarness
from kode_conformance.values import samples

from kode_core import AppendedMessage, LockLostError, Message, PutDocument
from kode_core.batch import CORE_KEYS, Applied, Doc, DocKind, DocSpan, Outcome
from kode_core.engine import Engine, docs_in
from kode_core.errors import OutcomeUnknownError
from kode_core.layers import Layer
from kode_core.store import EngineStore

Open = Callable[..., Awaitable[EngineStore]]
"""Opens one more store of the same place, with layers."""


def keyed(keys: Iterable[str], text: str = "of") -> dict[str, Message]:
    return {key: samples.message(text=f"{text} {key}") for key in keys}


def texts(messages: Sequence[Message]) -> list[str]:
    return [message.text for message in messages]


class ForgetsHeads(Layer):
    """Answers as an engine whose earlier attempt wrote the batch, and that cannot tell what became of the lists."""

    async def commit(self, batches: Any) -> Sequence[Outcome]:
        return [Applied() if isinstance(one, Applied) else one for one in await super().commit(batches)]


class CallsAfterReading(Layer):
    """Calls a function once, after a document was read."""

    call: Callable[[], Awaitable[object]] | None = None

    async def docs(self, agent_id: str, kind: DocKind, key: str | None = None) -> Sequence[Doc]:
        found = await super().docs(agent_id, kind, key)
        if found and self.call is not None:
            call, self.call = self.call, None
            await call()
        return found


class KeyedAppends:
    """``harness`` is of the engine that is tested."""

    harness: StoreHarness
    each = 10
    many = 10_000

    @pytest.fixture
    async def opened(self, tmp_path: Path) -> AsyncIterator[Open]:
        handle = await self.harness.provision(Space(f"t{secrets.token_hex(6)}", tmp_path))
        stores: list[EngineStore] = []

        async def opened(*layers: Callable[[Engine], Engine]) -> EngineStore:
            stores.append(cast(EngineStore, await self.harness.open_with(handle, layers=layers)))
            return stores[-1]

        yield opened
        for store in stores:
            await store.close()
        await self.harness.destroy(handle)

    async def test_twenty_writers_next_to_others(self, opened: Open) -> None:
        """Twenty writers over four stores, with keys of their own and a common one in each call, next to four that
        append without keys: every call ends in time, and says where its messages are.
        """
        stores = [await opened() for _ in range(4)]
        places: dict[str, int] = {}
        new: list[str] = []
        ended = False

        async def write(number: int) -> None:
            for i in range(self.each):
                given = keyed([f"{number}-{i}", f"all-{i}"])
                found = await stores[number % 4].append_messages_once("a", given)
                for key, place in zip(given, found, strict=True):
                    assert places.setdefault(key, place.position) == place.position, key
                    new.extend([key] * place.is_new)

        async def others(number: int) -> None:
            while not ended:
                await stores[number].append_messages("a", [samples.message(text="other")])

        noise = [asyncio.ensure_future(others(number)) for number in range(4)]
        await asyncio.gather(*map(write, range(20)))
        ended = True
        await asyncio.gather(*noise)
        assert sorted(new) == sorted(places)
        messages = await stores[0].load_messages("a")
        assert all(messages[place].text == f"of {key}" for key, place in places.items())
        assert sum(text != "other" for text in texts(messages)) == 21 * self.each
        times = [one.created_at async for one in stores[1].read_messages("a")]
        assert times == sorted(times)

    async def test_many_keys_in_one_call(self, opened: Open) -> None:
        one, two = await opened(), await opened()
        keys = [f"{(7919 * i) % self.many:06}" for i in range(self.many)]
        places = await one.append_messages_once("a", keyed(keys))
        assert places == [AppendedMessage(i, True) for i in range(self.many)]
        again = await two.append_messages_once("a", keyed([*keys[::100], "new"]))
        assert [place.position for place in again] == [*range(0, self.many, 100), self.many]
        assert [place.is_new for place in again] == [False] * (len(again) - 1) + [True]
        assert len(await one.load_messages("a")) == self.many + 1
        assert (await two.aggregate_stats("a")).total_documents == 0

    async def test_the_list_in_memory_follows(self, opened: Open) -> None:
        """Saves, loads and edits of the same store are right after appends under keys, refused ones among them."""
        store, other = await opened(), await opened()
        messages = samples.messages(3)
        await store.save_messages("a", messages)
        for round_ in range(4):
            given = keyed([f"k{round_}", f"l{round_}"])
            if round_ == 2:
                await other.append_messages_once("a", keyed([f"k{round_}"]))
            await store.append_messages_once("a", given)
            await store.append_messages_once("a", given)
            messages = [*messages, *given.values()]
            assert await store.load_messages("a") == messages
            times = [one.created_at async for one in store.read_messages("a")]
            messages = [*messages, samples.message(round_)]
            await store.save_messages("a", messages)
            assert await other.load_messages("a") == messages
            assert [one.created_at async for one in other.read_messages("a")][:-1] == times
            assert await store.pop_messages("a") == messages[-1:]
            messages = messages[:-1]
        assert (await other.check_consistency()).consistent

    async def test_keys_are_no_documents_of_the_caller(self, opened: Open) -> None:
        """Documents are listed, counted, replaced and forked as if there were no keys, with names like theirs, too."""
        store = await opened()
        await store.save_turn("a", info=samples.info("a"), documents=[PutDocument("messages", "k1", 1)])
        await store.append_messages_once("a", keyed(["k1", "messages/k1", "~", "/"]))
        assert (await store.aggregate_stats("a")).total_documents == 1
        assert list(await store.list_document_keys("a", "messages")) == ["k1"]
        child = await store.fork("a", documents=True)
        assert [one.value async for one in store.iter_documents(child, "messages")] == [1]
        every = DocSpan(start="", stop="\x7f", limit=100)
        keys = [doc.key for doc in await docs_in(store._context.engine, "a", every)]
        core = sorted(f"{CORE_KEYS}messages/{key}" for key in ("k1", "messages/k1", "~", "/"))
        assert keys == ["messages/k1", *core]
        assert [doc.key for doc in await docs_in(store._context.engine, child, every)] == ["messages/k1"]
        await store.delete_document("a", "messages", "k1")
        assert not (await store.append_messages_once("a", keyed(["k1"])))[0].is_new
        await store.delete("a")
        assert not await docs_in(store._context.engine, "a", every)
        assert await store.fork(child, "a", documents=True) == "a"

    async def test_a_write_whose_heads_are_unknown_reads_the_positions(self, opened: Open) -> None:
        sound, store = await opened(), await opened(ForgetsHeads)
        await sound.append_messages("a", samples.messages(5))
        assert await store.append_messages_once("a", keyed(["k", "l"])) == [
            AppendedMessage(5, True),
            AppendedMessage(6, True),
        ]
        deleting = await opened(DeletesAfterwards)
        with pytest.raises(OutcomeUnknownError, match="deleted since"):
            await deleting.append_messages_once("a", keyed(["m"]))

    async def test_a_delete_after_the_keys_were_read_is_seen(self, opened: Open) -> None:
        """A call that knew some keys when the agent was deleted appends all its messages to the next agent."""
        layers: list[CallsAfterReading] = []

        def layer(engine: Engine) -> Engine:
            layers.append(CallsAfterReading(engine))
            return layers[-1]

        store, other = await opened(layer), await opened()
        await other.append_messages_once("a", keyed(["k", "l"]))
        layers[0].call = lambda: other.delete("a")
        places = await store.append_messages_once("a", keyed(["l", "new", "k"]))
        assert places == [AppendedMessage(i, True) for i in range(3)]
        assert texts(await other.load_messages("a")) == ["of l", "of new", "of k"]

    async def test_a_lost_lease_refuses_known_keys_too(self, opened: Open) -> None:
        store = await opened()
        async with store.acquire_agent_lock("a") as lease:
            await store.append_messages_once("a", keyed(["k"]))
        for given in (keyed(["k"]), keyed(["k", "new"]), {}):
            with pytest.raises(LockLostError):
                await store.append_messages_once("a", given, fence=lease)
        assert texts(await store.load_messages("a")) == ["of k"]


class DeletesAfterwards(ForgetsHeads):
    """Deletes the agent after a commit, and forgets the heads."""

    async def commit(self, batches: Any) -> Sequence[Outcome]:
        outcomes = await super().commit(batches)
        if batches[0].messages is not None:
            batch = batches[0]
            await self.inner.commit([type(batch)(agent_id="a", op_id="delete", now=batch.now, delete=True)])
        return outcomes
