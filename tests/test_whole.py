"""One agent whole: loaded at one instant, and imported in one piece (LIFE-7, LIFE-8)."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import pytest

from kode_core import (
    ABSENT,
    AgentInfo,
    AgentRecords,
    ConflictError,
    Document,
    ExtendedStore,
    InvalidArgumentError,
    KodeError,
    Message,
    PutDocument,
    StoreBusyError,
    TodoItem,
    TodoSnapshot,
    ToolCallRecord,
    UnsupportedError,
    create_extended_store,
    from_dict,
    to_dict,
)
from kode_core.backends.memory.engine import MemoryEngine
from kode_core.engine import Engine
from kode_core.layers import Layer
from kode_core.model import AgentEvent, Bookmark, Timeline
from kode_core.store import EngineStore
from kode_core.store.kinds import KINDS
from kode_core.store.whole import _FIELDS

URLS: Final = ("memory:", "json:///store", "sqlite:///agents.db")
MANY: Final = 20_000


def event(seq: int) -> Timeline:
    return Timeline(seq, Bookmark(seq, seq), AgentEvent("progress", "text_chunk", {"delta": f"{seq}"}))


def todos(title: str) -> TodoSnapshot:
    return TodoSnapshot(todos=[TodoItem(id="1", title=title, created_at=1, updated_at=1)], updated_at=1)


def records(**changes: Any) -> AgentRecords:
    given: dict[str, Any] = {
        "agent_id": "a",
        "info": AgentInfo(agent_id="a", template_id="t", created_at=3, lineage=["p"], last_bookmark=Bookmark(5, 1)),
        "updated_at": 9,
        "messages": [Message.user("hi"), Message("user", "x", extra={"createdAt": 5, "position": "own"})],
        "message_times": [7, 4],
        "events": [event(3), event(1)],
    }
    return AgentRecords(**{**given, **changes})


@pytest.fixture(params=URLS)
async def store(request: pytest.FixtureRequest) -> AsyncIterator[ExtendedStore]:
    async with create_extended_store(request.param) as opened:
        yield opened


def test_every_kind_has_a_field() -> None:
    """A kind of document that is added must get a field of AgentRecords."""
    assert set(_FIELDS) == {kind.kind for kind in KINDS}
    assert set(_FIELDS.values()) <= set(AgentRecords.__struct_fields__)


async def test_records_are_plain_json(store: ExtendedStore) -> None:
    """Fields of messages that no version knows do not get into the way of times and offsets."""
    wanted = records()
    await store.import_agent("b", from_dict(AgentRecords, to_dict(wanted)))
    found = await store.load_agent("b")
    assert found is not None
    assert found.messages == wanted.messages
    assert (found.message_times, found.events) == (wanted.message_times, wanted.events)
    assert found.info == wanted.info.replace(agent_id="b", message_count=2)  # type: ignore[union-attr]
    assert from_dict(AgentRecords, to_dict(found)) == found


async def test_many_records_come_back(store: ExtendedStore) -> None:
    """As many as one call takes, while the loop goes on."""
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counter = asyncio.ensure_future(count())
    wanted = records(
        messages=[Message.user(f"message {i}") for i in range(MANY)],
        message_times=list(range(MANY, 0, -1)),
        tool_calls=[ToolCallRecord(id=f"c{i}", name="n", created_at=i) for i in range(MANY)],
        events=[event(i) for i in range(MANY)],
    )
    await store.import_agent("a", wanted)
    found = await store.load_agent("a")
    counter.cancel()
    assert found is not None
    assert found.messages == wanted.messages
    assert found.message_times == wanted.message_times
    assert found.tool_calls == wanted.tool_calls
    assert found.events == wanted.events
    assert turns > 100


class WithoutDocuments(Layer):
    """A third-party engine that knows nothing of documents."""

    keeps_documents = False  # type: ignore[assignment]


async def test_an_engine_without_documents() -> None:
    """Agents without documents are loaded and imported; others are refused, and nothing is written."""

    async def opened() -> Engine:
        return WithoutDocuments(MemoryEngine())

    async with EngineStore(opened) as store:
        document = Document(collection="c", key="k", value=1, version=ABSENT, updated_at=1)
        with pytest.raises(UnsupportedError, match="keeps no documents"):
            await store.import_agent("a", records(documents=[document]))
        assert await store.load_agent("a") is None
        await store.import_agent("a", records())
        found = await store.load_agent("a")
        assert found is not None
        assert found.documents == ()


class Meanwhile(Layer):
    """Makes a call of another store before the calls of a verb."""

    def __init__(self, inner: Engine, verb: str, act: Callable[[int], Awaitable[object]], most: int) -> None:
        super().__init__(inner)
        self._verb, self._act, self._most = verb, act, most
        self.count = 0

    async def around(self, verb: str, call: Callable[..., Awaitable[Any]], /, *args: Any, **kwargs: Any) -> Any:
        if verb == self._verb and self.count < self._most:
            self.count += 1
            await self._act(self.count)
        return await call(*args, **kwargs)

    async def close(self) -> None:
        """The other store closes the engine."""


async def loaded(
    other: ExtendedStore, agent_id: str, verb: str, act: Callable[[int], Awaitable[object]]
) -> AgentRecords | None:
    """Load the agent by a store on the engine of *other*, whose calls come between the reads."""

    async def opened() -> Engine:
        return Meanwhile(other._context.engine, verb, act, 10_000)  # type: ignore[attr-defined]

    async with EngineStore(opened) as store:
        return await store.load_agent(agent_id)


@pytest.mark.parametrize("kind", ["messages", "documents", "todos"])
@pytest.mark.parametrize("verb", ["summary", "rows", "docs", "docs_in", "events"])
async def test_whatever_is_written_between_two_reads(verb: str, kind: str) -> None:
    """A turn at any place between the reads is in what is loaded whole, or not at all."""
    async with create_extended_store("sqlite:///x.db") as other:
        for number in range(12):
            agent_id, said = f"a{number}", 0
            await other.save_turn(agent_id, todos=todos("0"), info=AgentInfo(agent_id=agent_id, template_id="t"))

            async def turn(count: int, number: int = number, agent_id: str = agent_id) -> None:
                nonlocal said
                if count == number + 1:
                    said += 1
                    more: Any = {
                        "messages": {"append": [Message.user("x")]},
                        "documents": {"documents": [PutDocument("c", "k", said)]},
                    }.get(kind, {})
                    await other.save_turn(agent_id, todos=todos(f"{said}"), events=[event(said)], **more)

            found = await loaded(other, agent_id, verb, turn)
            assert found is not None
            assert found.todos is not None
            turn_seen = int(found.todos.todos[0].title)
            assert len(found.messages) == (turn_seen if kind == "messages" else 0)
            assert len(found.documents) == (turn_seen if kind == "documents" else 0)
            assert len(found.events) == turn_seen


async def test_events_of_the_next_agent_are_not_mixed_in() -> None:
    """An agent of events alone, which is deleted and made anew in the middle of the log, is the one or the other."""
    async with create_extended_store("memory:") as other:
        await other.append_events("a", [event(i) for i in range(200)])

        async def anew(count: int) -> None:
            if count == 3:
                await other.delete("a")
                await other.append_events("a", [event(i) for i in range(1000, 1002)])

        found = await loaded(other, "a", "events", anew)
        assert found is not None
        assert [one.bookmark.seq for one in found.events] == [1000, 1001]


async def test_an_agent_that_always_changes() -> None:
    """The load ends, and says what to do."""
    async with create_extended_store("memory:") as other:
        await other.append_messages("a", [Message.user("x")])

        async def append(_: int) -> None:
            await other.append_messages("a", [Message.user("x")])

        with pytest.raises(StoreBusyError, match="hold its lock"):
            await loaded(other, "a", "summary", append)


_IMPORT: Final = """
import asyncio, sys
from kode_core import AgentRecords, ConflictError, Message, create_extended_store

async def main():
    async with create_extended_store("sqlite:///agents.db") as store:
        for i in range(20):
            records = AgentRecords(agent_id="a", todos=None, messages=[Message.user(sys.argv[1])] * 50,
                                   message_times=[1] * 50, updated_at=5)
            try:
                await store.import_agent(f"a{i}", records)
                print(i)
            except ConflictError:
                pass
asyncio.run(main())
"""


async def test_processes_that_import_one_agent() -> None:
    """Exactly one of them succeeds for each id, and the agent is its own."""
    async with create_extended_store("sqlite:///agents.db") as store:
        processes = [
            await asyncio.create_subprocess_exec(
                sys.executable, "-c", _IMPORT, f"process {n}", stdout=asyncio.subprocess.PIPE
            )
            for n in range(3)
        ]
        done = [(await process.communicate())[0].decode().split() for process in processes]
        assert sorted(int(i) for some in done for i in some) == list(range(20))
        for n, some in enumerate(done):
            for i in some:
                found = await store.load_agent(f"a{i}")
                assert found is not None
                assert [message.text for message in found.messages] == [f"process {n}"] * 50


class Hostile:
    """Its comparisons, truth and length raise."""

    def __eq__(self, other: object) -> bool:
        raise RuntimeError

    def __bool__(self) -> bool:
        raise RuntimeError

    def __len__(self) -> int:
        raise RuntimeError

    __hash__ = object.__hash__


class Text(str):
    __slots__ = ()


class Number(int):
    pass


@pytest.mark.parametrize("name", [name for name in AgentRecords.__struct_fields__ if name != "event_offsets"])
async def test_hostile_fields_are_refused(store: ExtendedStore, name: str) -> None:
    """Each with an error of the library, and nothing is written."""
    for value in (
        Hostile(),
        [Hostile()],
        Text("a"),
        [Text("a")],
        Number(3),
        [Number(3)],
        float("nan"),
        "\ud800",
        {1: 2},
    ):
        with pytest.raises(KodeError):
            await store.import_agent("a", records(**{name: value}))
    assert await store.list(include_without_info=True) == []


async def test_what_is_not_used(store: ExtendedStore) -> None:
    """Offsets and versions of another store say nothing in this one."""
    document = Document(collection="c", key="k", value=1, version="nonsense", updated_at=-5)
    await store.import_agent("a", records(event_offsets=[1] * 7, documents=[document]))
    found = await store.load_agent("a")
    assert found is not None
    assert len(found.event_offsets) == 2
    assert (found.documents[0].value, found.documents[0].updated_at) == (1, -5)
    await store.put_document("a", "c", "k", 2, expect=found.documents[0].version)


async def test_an_import_is_told_apart_from_a_save(store: ExtendedStore) -> None:
    """The agent's own id, a call without records, and an id in use have sentences of their own."""
    with pytest.raises(InvalidArgumentError, match="must be the same"):
        await store.import_agent("a", records(agent_id="b"))
    with pytest.raises(InvalidArgumentError, match="nothing to import"):
        await store.import_agent("a", AgentRecords(agent_id="a", updated_at=4))
    with pytest.raises(InvalidArgumentError, match="2 messages and 1 message_times"):
        await store.import_agent("a", records(message_times=[1]))
    await store.import_agent("a", records())
    with pytest.raises(ConflictError, match="no import can take its id"):
        await store.import_agent("a", records())
