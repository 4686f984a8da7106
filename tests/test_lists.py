"""Lists over many saves: what is remembered of them, the times of messages, and changes in place by anybody."""

from __future__ import annotations

import asyncio
import gc
import random
import tracemalloc
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import pytest
from kode_conformance.context import difference

from kode_core import (
    AgentEvent,
    AgentInfo,
    Bookmark,
    CompressionRecord,
    ConfigurationError,
    ExtendedStore,
    HistoryWindow,
    InvalidArgumentError,
    InvalidValueError,
    KodeError,
    MediaCacheRecord,
    Message,
    Record,
    RecoveredFile,
    Snapshot,
    TextBlock,
    Timeline,
    TodoSnapshot,
    ToolCallRecord,
    ToolResultBlock,
    ToolUseBlock,
    create_extended_store,
    to_dict,
)
from kode_core.backends.memory.engine import MemoryEngine, MemorySpace
from kode_core.batch import ListKind, Outline
from kode_core.engine import Engine
from kode_core.store import EngineStore, remembered, writer
from kode_core.store.list_memory import ListMemory, size_of
from kode_core.store.lists import Replace
from kode_core.store.remembered import Remembered
from kode_core.store.rows import LISTS
from tests.test_writes import spied, written

RUNS, STEPS = 20, 120


def store_over(space: MemorySpace, **settings: Any) -> EngineStore:
    async def opener() -> Engine:
        return MemoryEngine(space)

    return EngineStore(opener, **settings)


def memory_of(store: EngineStore) -> ListMemory:
    return store._writer._memory


# --- A model of two stores on one database ----------------------------------------------------------------------------


class Run:
    """Random calls to two stores on one database, and what must be stored after them."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        space = MemorySpace()
        limit = self.random.choice([0, 4_000, 64 * 2**20])
        self.stores = [store_over(space), store_over(space, memory_limit_bytes=limit)]
        self.talks: list[list[Message]] = [[], []]
        """What each of two writers has in its hands; they share records."""
        self.stored: list[Message] = []
        self.calls: list[ToolCallRecord] = []
        self.n = 0

    def value(self) -> Any:
        self.n += 1
        choices: list[Any] = [self.n, {"n": self.n, "deep": {"x": [1, 1.0, True]}}, [self.n, {}], "text", {}]
        return self.random.choice(choices)

    def message(self) -> Message:
        blocks: list[Any] = [
            TextBlock(f"t{self.random.randrange(3)}"),
            ToolUseBlock("c", "t", self.value()),
            ToolResultBlock("c", self.value(), extra=self.random.choice([None, {}, {"e": 1}])),
        ]
        content = self.random.sample(blocks, self.random.randrange(1, 4))
        return Message("user", content, metadata=self.random.choice([None, {}, {"m": self.value()}]))

    def meddle(self, talk: list[Message]) -> None:
        """Change something in place, deep inside a record that is perhaps remembered."""
        if not talk:
            return
        message = self.random.choice(talk)
        insides = [getattr(block, "input", None) for block in message.content]
        insides += [getattr(block, "content", None) for block in message.content]
        insides += [block.extra for block in message.content if not hasattr(block, "data")] + [message.metadata]
        inside = self.random.choice([x for x in insides if isinstance(x, dict | list)] or [None])
        new = self.random.choice([1, 1.0, True, "1", None, {"k": [self.n]}, [0]])
        if isinstance(inside, dict):
            change = self.random.randrange(4)
            if change == 0:
                inside["deep"] = new
            elif change == 1 and inside:
                first = next(iter(inside))
                inside[first] = inside.pop(first)  # the order
            elif change == 2:
                inside.clear()
            else:
                inside.setdefault("deep", {})
        elif isinstance(inside, list):
            inside[len(inside) // 2 :] = [new]

    def edit(self, talk: list[Message]) -> None:
        """Change the list itself."""
        change = self.random.randrange(7)
        if change <= 2:
            talk.extend(self.message() for _ in range(self.random.randrange(1, 4)))
        elif change == 3 and talk:
            talk[self.random.randrange(len(talk))] = self.message()
        elif change == 4:
            del talk[: self.random.randrange(3)]
        elif change == 5:
            del talk[self.random.randrange(len(talk) + 1) :]
        elif talk:
            talk.insert(0, talk[-1])

    async def step(self) -> None:
        who = self.random.randrange(2)
        store, talk = self.stores[who], self.talks[who]
        action = self.random.randrange(10)
        if action <= 3:
            self.edit(talk)
            self.meddle(talk)
            await store.save_messages("a", talk)
            self.stored = deepcopy(talk)
        elif action == 4:
            new = [self.message()]
            await store.append_messages("a", new)
            self.stored += deepcopy(new)
            if self.random.random() < 0.7:
                talk += new
        elif action == 5:
            self.talks[who] = await store.load_messages("a")
            assert difference(wires(self.talks[who]), wires(self.stored)) is None
        elif action == 6:
            self.meddle(talk)
            await self.refused(store, talk)
        elif action == 7:
            self.talks[who] = list(self.talks[1 - who])
        elif action == 8:
            await self.upsert(store)
        elif self.random.random() < 0.3:
            await store.delete("a")
            self.stored, self.calls = [], []

    async def refused(self, store: ExtendedStore, talk: list[Message]) -> None:
        """A save that is refused, because of what was put into a record, changes nothing."""
        inputs = [getattr(block, "input", None) for message in talk for block in message.content]
        inside = next((value for value in inputs if isinstance(value, dict)), None)
        if inside is None:
            return
        key, bad = self.random.choice([("bad", float("nan")), (5, 1), ("bad", {1}), ("bad", (1, 2))])
        inside[key] = bad
        with pytest.raises(InvalidValueError):
            await store.save_messages("a", talk)
        del inside[key]

    async def upsert(self, store: ExtendedStore) -> None:
        records = [
            ToolCallRecord(id=f"c{self.random.randrange(4)}", name="t", input=self.value(), created_at=1, updated_at=1)
            for _ in range(2)
        ]
        await store.upsert_tool_call_records("a", records)
        for record in deepcopy(records):
            place = max((i for i, call in enumerate(self.calls) if call.id == record.id), default=None)
            if place is None:
                self.calls.append(record)
            else:
                self.calls[place] = record

    async def check(self) -> None:
        for store in self.stores:
            assert difference(wires(await store.load_messages("a")), wires(self.stored)) is None
            assert difference(wires(await store.load_tool_call_records("a")), wires(self.calls)) is None
            await store.close()


def wires(records: Sequence[Record]) -> list[Any]:
    return [to_dict(record) for record in records]


@pytest.mark.parametrize("seed", range(RUNS))
async def test_two_stores_and_changes_in_place(seed: int) -> None:
    """Whatever two stores do to one agent, and whatever is changed inside records, what was saved last is stored."""
    run = Run(seed)
    for _ in range(STEPS):
        await run.step()
    await run.check()


# --- What is remembered -----------------------------------------------------------------------------------------------


async def test_what_is_remembered_is_bounded() -> None:
    """Large records are not kept; the bytes counted stay under the limit and are no less than what is really held."""
    limit = 300_000
    store = store_over(MemorySpace(), memory_limit_bytes=limit)
    memory = memory_of(store)
    kept: list[Any] = []
    gc.collect()
    tracemalloc.start()
    try:
        for i in range(60):
            talk = [Message("user", [ToolUseBlock(f"c{j}", "t", {"n": [j]})]) for j in range(40)]
            await store.save_messages(f"agent-{i}", talk)
            kept.append(talk)
            assert memory.size <= limit
        counted = memory.size
        assert counted > limit / 2
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        for i in range(60):
            memory.forget(f"agent-{i}")
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert memory.size == 0
    assert before - after <= counted
    await store.close()


async def test_records_are_not_kept_by_the_store() -> None:
    """The store keeps no record in memory that nobody else has: neither after a save nor after a load."""

    async with store_over(MemorySpace()) as store:
        gc.collect()
        tracemalloc.start()
        try:
            for i in range(30):
                big = {"rows": [{"i": i, "text": "x" * 100} for _ in range(2_000)]}
                await store.append_messages("a", [Message("user", [ToolResultBlock("c", big)])])
                await store.load_messages("a")
                await store.delete("a")
                del big
            gc.collect()
            held, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert held < 1_000_000
    assert most < 30_000_000


async def test_the_least_used_goes_first_and_a_delete_forgets() -> None:
    """A list that is used stays remembered while others go; after a delete nothing is remembered of the agent."""
    talk = [Message.user(str(i)) for i in range(50)]
    async with store_over(MemorySpace(), memory_limit_bytes=100_000) as store:
        memory = memory_of(store)
        for i in range(30):
            await store.save_messages("favourite", talk)
            await store.save_info(f"a{i}", AgentInfo(agent_id=f"a{i}", template_id="t"))
            await store.save_messages(f"a{i}", talk)
        assert memory.get("favourite", ListKind.MESSAGES) is not None
        assert memory.get("a29", ListKind.MESSAGES) is not None
        assert memory.get("a0", ListKind.MESSAGES) is None
        await store.delete("favourite")
        assert memory.get("favourite", ListKind.MESSAGES) is None
        await store.delete_many(template_id="t")
        assert memory.size == 0


async def test_a_limit_of_nothing_remembers_nothing() -> None:
    """With a limit of 0 saves still write only what changed: they look at the list each time."""
    async with spied(memory_limit_bytes=0) as (store, spy):
        talk = [Message.user(str(i)) for i in range(20)]
        await store.save_messages("a", talk)
        await store.save_messages("a", [*talk, Message.user("more")])
        assert written(spy.last) == ([], 1)
        assert spy.calls == ["outline", "commit", "outline", "commit"]
        assert memory_of(store).size == 0


async def test_the_second_save_costs_what_changed() -> None:
    """After the first save, and after a change in place, only what is new or changed is encoded again; the first save
    after a load encodes what has dicts or lists, and no other.
    """
    talk = [Message("user", [ToolUseBlock(f"c{i}", "t", {"n": [i]})]) for i in range(1_000)]
    encoded: list[int] = []

    def counting(codec: Any) -> Any:
        async def row(position: int, record: Any, now: int, pace: Any) -> Any:
            encoded.append(position)
            return await codec.row(position, record, now, pace)

        return codec._replace(row=row)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "LISTS", {kind: counting(codec) for kind, codec in writer.LISTS.items()})
        async with spied() as (store, spy):
            await store.save_messages("a", talk)
            encoded.clear()
            for changed in ([], [700], [], [0, 999], []):
                for i in changed:
                    talk[i].content[0].input["n"].append("changed")  # type: ignore[union-attr]
                talk.append(Message.user("more"))
                await store.save_messages("a", talk)
                assert encoded == [*changed, len(talk) - 1]
                assert written(spy.last) == (changed, 1)
                encoded.clear()
            await store.load_messages("a")
            await store.save_messages("a", talk)
            assert encoded == []
            del talk
            loaded = await store.load_messages("a")
            loaded[3].content[0].input["n"].append("changed")  # type: ignore[union-attr]
            loaded.append(Message.user("more"))
            await store.save_messages("a", loaded)
            assert encoded == [*range(1_000), len(loaded) - 1]
            assert written(spy.last) == ([3], 1)
            encoded.clear()
            loaded[4].content[0].input["n"].append("changed")  # type: ignore[union-attr]
            await store.save_messages("a", loaded)
            assert encoded == [4]


async def test_a_run_that_grows_is_looked_at_where_it_grew() -> None:
    """A record that was found unchanged is not looked at alone again when others were appended behind it."""
    talk = [Message("user", [ToolUseBlock(f"c{i}", "t", {"n": [i]})]) for i in range(300)]
    async with spied() as (store, spy):
        await store.save_messages("a", talk)
        for n in range(5):
            talk.append(Message("user", [ToolUseBlock(f"d{n}", "t", {"n": [n]})]))
            with pytest.MonkeyPatch.context() as patch:
                seen: list[Any] = []
                patch.setattr(remembered, "_holds", lambda parts, proof, seen=seen: seen.append(parts) or True)
                await store.save_messages("a", talk)
            assert written(spy.last) == ([], 1)
            assert len(seen) == (300 if n == 0 else 1)
        talk[299].content[0].input["n"].append("changed")  # type: ignore[union-attr]
        talk[3].content[0].input["n"].append("changed")  # type: ignore[union-attr]
        await store.save_messages("a", talk[:301])
        assert written(spy.last) == ([3, 299], 0)


async def test_a_save_that_is_refused_leaves_what_was_read_as_it_is() -> None:
    """A record in the place of one with dicts, in a save that is refused, hides no change of that one."""
    async with spied() as (store, spy):
        await store.save_messages("a", [Message("user", [ToolUseBlock("c", "t", {"n": [1]})]), Message.user("x")])
        loaded = await store.load_messages("a")
        with pytest.raises(InvalidValueError):
            await store.save_messages("a", [Message.user("plain"), Message("user", [ToolUseBlock("c", "t", {1: 2})])])
        loaded[0].content[0].input["n"].append("changed")  # type: ignore[union-attr]
        await store.save_messages("a", loaded)
        assert written(spy.last) == ([0], 0)


async def test_sizes_count_all_that_is_held() -> None:
    """Records with dicts, without, and tool calls, written or read, count for at least what remembering them takes."""
    kinds: dict[str, list[Any]] = {
        "plain": [Message.user("x") for _ in range(2_000)],
        "loose": [Message("user", [ToolUseBlock("c", "t", {"n": [i]})]) for i in range(2_000)],
        "calls": [ToolCallRecord(id=f"call-{i}" * 4, name="t", input={"n": i}) for i in range(2_000)],
    }
    for name, records in kinds.items():
        async with store_over(MemorySpace()) as store:
            kind = ListKind.TOOL_CALLS if name == "calls" else ListKind.MESSAGES
            if name == "calls":
                await store.save_tool_call_records("a", records)
            else:
                await store.save_messages("a", records)
            _see_size(name, memory_of(store).get("a", kind))
            load = store.load_tool_call_records if name == "calls" else store.load_messages
            records.clear()
            records.extend(await load("a"))
            _see_size(f"{name}, loaded", memory_of(store).get("a", kind))


def _see_size(name: str, known: Remembered | None) -> None:
    """See that a list counts for what remembering it takes, and not for much more."""
    assert known is not None
    gc.collect()
    tracemalloc.start()
    try:
        copy = known.copy(len(known))
        copy.last_places(["x"])
        copy.held = [type(held)(held()) for held in copy.held]
        copy.digests = [bytes(bytearray(digest)) for digest in copy.digests]
        copy.proofs = [proof and bytes(bytearray(proof)) for proof in copy.proofs]
        copy.created = [time + 0 for time in copy.created]
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held <= size_of(known) <= held * 2.5, (name, held, size_of(known))


# --- The times of messages (MSG-4) ------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 1_000

    def __call__(self) -> int:
        return self.now


async def times(store: ExtendedStore) -> list[int]:
    found = await store.query_messages(agent_id="a", order="asc", limit=1_000)
    return [m.created_at for m in sorted(found, key=lambda m: m.position)]


@pytest.mark.parametrize("limit", [0, 64 * 2**20])
async def test_times_follow_positions(limit: int) -> None:
    """A message replaced at its position keeps the position's time, one that moved keeps its own (MSG-4)."""
    clock = Clock()
    async with store_over(MemorySpace(), memory_limit_bytes=limit, clock=clock) as store:
        talk: list[Message] = []
        for i in range(4):
            talk.append(Message.user(f"message {i}"))
            await store.save_messages("a", talk)
            clock.now += 100
        assert await times(store) == [1_000, 1_100, 1_200, 1_300]
        talk[1] = talk[1].replace(metadata={"thumb": "up"})
        await store.save_messages("a", talk)
        assert await times(store) == [1_000, 1_100, 1_200, 1_300]
        await store.save_messages("a", [talk[0], Message.user("edited"), *talk[2:], Message.user("new")])
        assert await times(store) == [1_000, 1_100, 1_200, 1_300, 1_400]
        await store.save_messages("a", [Message.user("summary"), *talk[2:]])
        assert await times(store) == [1_000, 1_200, 1_300]
        await store.save_messages("a", [Message.user("first"), Message.user("summary"), *talk[2:]])
        assert await times(store) == [1_000, 1_000, 1_200, 1_300]


@pytest.mark.parametrize("limit", [0, 64 * 2**20])
async def test_what_is_added_is_never_older(limit: int) -> None:
    """A message that is added is not older than those before it when the clock steps back (MSG-4)."""
    clock = Clock()
    async with store_over(MemorySpace(), memory_limit_bytes=limit, clock=clock) as store:
        talk = [Message.user("a")]
        await store.save_messages("a", talk)
        clock.now = 10
        await store.save_messages("a", [*talk, Message.user("b")])
        assert await times(store) == [1_000, 1_000]
        clock.now = 2_000
        await store.save_messages("a", [*talk, Message.user("b"), Message.user("c")])
        clock.now = 1_500
        if limit:
            await store.append_messages("a", [Message.user("d"), Message.user("e")])
            assert await times(store) == [1_000, 1_000, 2_000, 2_000, 2_000]
        calls = [ToolCallRecord(id="c", name="t", created_at=5)]
        await store.save_tool_call_records("a", calls)
        assert [call.created_at for call in await store.load_tool_call_records("a")] == [5]


async def test_times_of_a_save_that_is_written_whole() -> None:
    """A save that loses against others again and again gives the same times (MSG-4)."""
    codec = LISTS[ListKind.MESSAGES]
    old = [Message.user(name) for name in "abcd"]
    change = await Replace.of(codec, Remembered.of_nothing(), old, 7)
    rows = [(i, row.body.digest, 100 * i, None) for i, row in enumerate(change.write.append)]
    known = Remembered.of_outline(Outline(3, 4, rows))
    new = [old[1], Message.user("x"), old[3], Message.user("y"), Message.user("z")]
    whole = await Replace.whole(codec, known, new, 50)
    assert [row.created_at for row in whole.write.append] == [100, 100, 300, 300, 300]


# --- Errors -----------------------------------------------------------------------------------------------------------


class MyMessage(Message, frozen=True):
    score: int = 0


class MyCall(ToolCallRecord, frozen=True, kw_only=True):
    score: int = 0


class MyInfo(AgentInfo, frozen=True, kw_only=True):
    score: int = 0


class MyEvent(Timeline, frozen=True):
    score: int = 0


class MyTodos(TodoSnapshot, frozen=True, kw_only=True):
    score: int = 0


class MySnapshot(Snapshot, frozen=True, kw_only=True):
    score: int = 0


async def test_what_a_subclass_adds_is_not_dropped() -> None:
    """A record of a class of one's own is refused by every call, with the name of the class (VAL-2)."""
    event = MyEvent(1, Bookmark(1, 1), AgentEvent("monitor", "x"))
    async with store_over(MemorySpace()) as store:
        for name, call in {
            "MyMessage": store.append_messages("a", [MyMessage("user", [TextBlock("x")])]),
            "MyCall": store.upsert_tool_call_records("a", [MyCall(id="c", name="t")]),
            "MyInfo": store.save_info("a", MyInfo(agent_id="a", template_id="t")),
            "MyEvent": store.append_event("a", event),
            "MyTodos": store.save_todos("a", MyTodos()),
            "MySnapshot": store.save_snapshot("a", MySnapshot(id="s")),
        }.items():
            with pytest.raises(InvalidArgumentError, match=f"{name}, a subclass"):
                await call
        assert await store.load_messages("a") == []


@pytest.mark.parametrize("wrong", [5, None, ["x"], {}, b"x", 1.5, object()])
async def test_fields_of_wrong_types_are_refused_by_every_call(wrong: Any) -> None:
    """A record with a field of the wrong type raises an error of this library, whichever field the store uses first."""
    event = AgentEvent("monitor", "x")
    async with store_over(MemorySpace()) as store:
        calls = [
            store.upsert_tool_call_records("a", [ToolCallRecord(id=wrong, name="x")]),
            store.upsert_tool_call_records("a", [ToolCallRecord(id="x", name=wrong)]),
            store.upsert_tool_call_records("a", [ToolCallRecord(id="x", name="x", state=wrong)]),
            store.upsert_tool_call_records("a", [ToolCallRecord(id="x", name="x", approval=wrong)]),
            store.save_tool_call_records("a", [ToolCallRecord(id=wrong, name="x")]),
            store.append_messages("a", [Message(wrong, [TextBlock("x")])]),
            store.append_messages("a", [Message("user", wrong)]),
            store.append_messages("a", [Message("user", [wrong])]),
            store.save_info("a", AgentInfo(agent_id=wrong, template_id="t")),
            store.save_info("a", AgentInfo(agent_id="a", template_id=wrong)),
            store.save_snapshot("a", Snapshot(id=wrong)),
            store.save_history_window("a", HistoryWindow(id=wrong)),
            store.save_compression_record("a", CompressionRecord(id=wrong, window_id="w")),
            store.save_recovered_file("a", RecoveredFile(path=wrong, content="x")),
            store.save_media_cache("a", [MediaCacheRecord(key=wrong, provider="p", mime_type="m", size_bytes=1)]),
            store.append_event("a", Timeline(1, wrong, event)),
            store.append_event("a", Timeline(1, Bookmark(wrong if wrong != 5 else "5", 1), event)),
            store.append_event("a", Timeline(1, Bookmark(1, 1), wrong)),
            store.append_event("a", Timeline(1, Bookmark(1, 1), AgentEvent(wrong, "x"))),
            store.save_todos("a", wrong),
            store.save_snapshot("a", wrong),
            store.save_info("a", wrong),
            store.append_event("a", wrong),
        ]
        for call in calls:
            with pytest.raises(KodeError):
                await call
        assert await asyncio.gather(store.load_messages("a"), store.load_tool_call_records("a")) == [[], []]


async def test_the_limit_is_an_option_of_every_store() -> None:
    """The limit is 64 MiB unless configured, in bytes and not negative."""
    async with create_extended_store("memory:") as store:
        assert isinstance(store, EngineStore)
        assert memory_of(store)._limit == 64 * 2**20
    async with create_extended_store("memory:?memory_limit_bytes=1000") as store:
        assert isinstance(store, EngineStore)
        assert memory_of(store)._limit == 1000
    with pytest.raises(ConfigurationError, match="memory_limit_bytes"):
        await create_extended_store("memory:", memory_limit_bytes=-1)


async def test_a_save_that_is_cancelled_while_it_is_encoded_writes_nothing() -> None:
    """A save of a large value whose caller gives up early leaves what was stored, and the next save is right."""
    rows = {"rows": [{"i": i, "text": "x" * 50} for i in range(50_000)]}
    talk = [Message.user("a")]
    async with store_over(MemorySpace()) as store:
        await store.save_messages("a", talk)
        more = [*talk, Message("user", [ToolResultBlock("c", rows)])]
        save = asyncio.ensure_future(store.save_messages("a", more))
        for _ in range(3):
            await asyncio.sleep(0)
        save.cancel()
        with pytest.raises(asyncio.CancelledError):
            await save
        assert await store.load_messages("a") == talk
        await store.save_messages("a", more)
        assert await store.load_messages("a") == more
