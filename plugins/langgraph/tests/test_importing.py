"""Threads that LangGraph's own savers have written: a graph goes on with them, once, and read only."""

from __future__ import annotations

import hashlib
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pytest
from kode_langgraph import KodeSaver
from kode_langgraph.importing import open_threads
from kode_postgres.testing.servers import Server
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langgraph.channels.delta import DeltaChannel
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import TASKS
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.graph.message import _messages_delta_reducer
from langgraph.types import Command, Send

from kode_core import create_extended_store, now_ms
from kode_core.formats import langgraph as core
from kode_core.formats.importing import Imported, import_foreign
from plugins.langgraph.tests.graphs import approval, chat, configured, question
from plugins.langgraph.tests.test_readme import printed
from tests.adapter_tests import server

__all__ = ["server"]


async def imported(source: str, store: Any, opener: Any = open_threads, **how: Any) -> list[Imported]:
    async with opener(source) as agents:
        return [one async for one in import_foreign(agents, store, **how)]


@asynccontextmanager
async def opened(source: str) -> AsyncIterator[Any]:
    """LangGraph's own saver of a source."""
    if source.startswith("postgres"):
        async with AsyncPostgresSaver.from_conn_string(source) as saver:
            await saver.setup()
            yield saver
    else:
        async with AsyncSqliteSaver.from_conn_string(source) as saver:
            yield saver


@pytest.fixture(params=["sqlite", "postgres"])
async def source(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """An empty database for LangGraph's saver."""
    if request.param == "sqlite":
        yield str(tmp_path / "source.db")
        return
    postgres: Server = request.getfixturevalue("server")
    async with postgres.database() as name:
        yield postgres.url(name).replace("postgres://", "postgresql://")


def same(mine: list[Any], theirs: list[Any]) -> bool:
    """Whether savers list equal checkpoints, with equal parents, metadata and writes."""
    return [_parts(one) for one in mine] == [_parts(one) for one in theirs] != []


def _parts(one: Any) -> Any:
    writes = sorted(map(repr, one.pending_writes or ()))
    checkpoint = {key: value for key, value in one.checkpoint.items() if key != "pending_sends"}
    return checkpoint, one.metadata, one.config, one.parent_config, writes


async def test_a_graph_goes_on(source: str) -> None:
    """Its checkpoints are those of the savers, and so are the times; a second import writes nothing."""
    before = now_ms()
    async with opened(source) as theirs:
        app = chat().compile(checkpointer=theirs)
        for thread in ("a", "b"):
            for n in range(3):
                await app.ainvoke(question(n), configured(thread))
        listed = [one async for one in theirs.alist(configured("a"))]
    after = now_ms()
    async with create_extended_store("memory:") as store:
        first = await imported(source, store)
        assert [(one.agent_id, one.outcome) for one in first] == [
            ("langgraph:a", "imported"),
            ("langgraph:b", "imported"),
        ]
        assert {one.outcome for one in await imported(source, store)} == {"known"}
        saver = KodeSaver(store)
        assert same([one async for one in saver.alist(configured("a"))], listed)
        times = [one.created_at async for one in store.read_messages("langgraph:a")]
        assert len(times) == 12 and before <= times[0] and times[-1] <= after and times == sorted(times)
        calls = await store.load_tool_call_records("langgraph:a")
        assert [(call.name, call.state) for call in calls] == [
            ("bash", "COMPLETED"),
            ("bash", "FAILED"),
            ("bash", "COMPLETED"),
        ]
        assert all(before <= call.created_at <= (call.completed_at or 0) <= after for call in calls)
        result = await chat().compile(checkpointer=saver).ainvoke(question(9), configured("a"))
        assert len(result["messages"]) == 16
        texts = [message.text for message in await store.load_messages("langgraph:a")]
        assert len(texts) == 16  # none is said again
        assert [one.outcome for one in await imported(source, store)] == ["refused", "known"]


async def test_the_core_reads_the_same_messages(source: str) -> None:
    """Without LangGraph the newest state is brought, with equal messages, calls and times."""
    async with opened(source) as theirs:
        app = chat().compile(checkpointer=theirs)
        for n in range(2):
            await app.ainvoke(question(n), configured("a"))
    async with create_extended_store("memory:") as one, create_extended_store("memory:") as other:
        (brought,) = await imported(source, one, core.open_threads)
        await imported(source, other)
        mine, theirs_whole = await one.load_agent("langgraph:a"), await other.load_agent("langgraph:a")
        assert mine is not None and theirs_whole is not None
        assert brought.left_out["checkpoints: the newest state is brought; kode-langgraph brings all of them"] == 10
        assert (mine.messages, mine.message_times) == (theirs_whole.messages, theirs_whole.message_times)
        assert (mine.tool_calls, mine.info) == (theirs_whole.tool_calls, theirs_whole.info)
        assert mine.updated_at == theirs_whole.updated_at and len(mine.messages) == 8


async def test_a_graph_that_waits_for_a_person_goes_on(source: str) -> None:
    """Its writes are brought, so that the question is not asked again."""
    async with opened(source) as theirs:
        await approval().compile(checkpointer=theirs).ainvoke({"answers": []}, configured("t"))
        listed = [one async for one in theirs.alist(configured("t"))]
    async with create_extended_store("memory:") as store:
        (one,) = await imported(source, store)
        assert one.outcome == "imported"
        saver = KodeSaver(store)
        assert same([each async for each in saver.alist(configured("t"))], listed)
        app = approval().compile(checkpointer=saver)
        result = await app.ainvoke(Command(resume="yes"), configured("t"))
        assert result["answers"] == ["yes", "acted on yes"]


class Changes(TypedDict):
    messages: Annotated[list[Any], DeltaChannel(_messages_delta_reducer, snapshot_frequency=4)]


async def test_subgraphs_and_changes(source: str) -> None:
    """Namespaces are kept apart; the messages of a DeltaChannel are said in the order of their writes."""

    def answer(state: Any) -> Any:
        n = len(state["messages"])
        return {"messages": [AIMessage(f"answer {n}", id=f"a{n}")]}

    inner = StateGraph(MessagesState)
    inner.add_node("answer", answer)
    inner.add_edge(START, "answer")
    outer = StateGraph(MessagesState)
    outer.add_node("inner", inner.compile(checkpointer=True))
    outer.add_edge(START, "inner")
    delta = StateGraph(Changes)
    delta.add_node("answer", answer)
    delta.add_edge(START, "answer")
    threads = (("delta", delta), ("outer", outer))
    async with opened(source) as theirs:
        for name, graph in threads:
            app = graph.compile(checkpointer=theirs)
            for n in range(6):
                await app.ainvoke({"messages": [HumanMessage(f"q {n}", id=f"q{n}")]}, configured(name))
        listed = {name: [one async for one in theirs.alist(configured(name))] for name, _ in threads}
    async with create_extended_store("memory:") as store:
        assert {one.outcome for one in await imported(source, store)} == {"imported"}
        saver = KodeSaver(store)
        for name, graph in threads:
            mine = [one async for one in saver.alist(configured(name))]
            by_id = {(one.config["configurable"]["checkpoint_ns"], one.checkpoint["id"]): one for one in mine}
            assert len(mine) == len(listed[name]) == len(by_id)
            for one in listed[name]:
                named = one.config["configurable"]
                found = by_id[named["checkpoint_ns"], named["checkpoint_id"]]
                assert sorted(map(repr, found.pending_writes)) == sorted(map(repr, one.pending_writes))
                assert repr(found.checkpoint["channel_values"]) == repr(one.checkpoint["channel_values"])
            result = await graph.compile(checkpointer=saver).ainvoke(
                {"messages": [HumanMessage("last", id="last")]}, configured(name)
            )
            assert len(result["messages"]) == 14
            said = [message.text for message in await store.load_messages(f"langgraph:{name}")]
            assert said[:3] == ["q 0", "answer 1", "q 1"] and len(said) == 14


MODULE = """
from dataclasses import dataclass
from pathlib import Path
Path({marker!r}).write_text("imported")
@dataclass
class Order:
    number: int
"""


class Holding(TypedDict):
    order: Any
    messages: list[Any]


async def test_objects_are_carried_and_not_made(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No module is imported for them; the graph that knows their class gets them back."""
    marker = tmp_path / "marker"
    (tmp_path / "carried_orders.py").write_text(MODULE.format(marker=str(marker)))
    monkeypatch.syspath_prepend(str(tmp_path))
    import carried_orders  # type: ignore[import-not-found]

    said = ToolMessage("done", tool_call_id="c", artifact=carried_orders.Order(2), id="m")
    graph = StateGraph(Holding)
    graph.add_node("hold", lambda _: {"order": carried_orders.Order(1), "messages": [said]})
    graph.add_edge(START, "hold")
    async with opened(source) as theirs:
        await graph.compile(checkpointer=theirs).ainvoke({"order": None, "messages": []}, configured("t"))
        listed = [one async for one in theirs.alist(configured("t"))]
    marker.unlink()
    del sys.modules["carried_orders"]
    async with create_extended_store("memory:") as store:
        assert {one.outcome for one in await imported(source, None, core.open_threads)} == {"importable"}
        assert {one.outcome for one in await imported(source, store)} == {"imported"}
        assert "carried_orders" not in sys.modules and not marker.exists()
        monkeypatch.setitem(sys.modules, "carried_orders", carried_orders)
        assert same([one async for one in KodeSaver(store).alist(configured("t"))], listed)


async def test_checkpoints_before_langgraph_05(source: str) -> None:
    """What was sent to nodes is in the writes to the checkpoint before, and becomes a channel."""
    checkpoints: list[Any] = [
        {
            "v": 3,
            "ts": f"2025-01-01T00:00:0{i}+00:00",
            "id": f"1f1ec820-000{i}-6000-8000-000000000000",
            "channel_values": {"x": [i]},
            "channel_versions": {"x": f"{i}.1"},
            "versions_seen": {},
        }
        for i in (1, 2)
    ]
    async with opened(source) as theirs:
        config = configured("old", checkpoint_ns="")
        for one in checkpoints:
            config = await theirs.aput(config, one, {"source": "loop", "step": 0}, one["channel_versions"])
            await theirs.aput_writes(config, [(TASKS, Send("node", {"a": 1})), ("x", [5])], "task")
        listed = [one async for one in theirs.alist(configured("old"))]
    async with create_extended_store("memory:") as store:
        assert [one.outcome for one in await imported(source, store)] == ["imported"]
        mine = [one async for one in KodeSaver(store).alist(configured("old"))]
        assert mine[0].checkpoint["channel_values"][TASKS] == [Send("node", {"a": 1})]
        if source.startswith("postgres"):
            assert same(mine, listed)


async def test_pickles_are_refused(source: str, tmp_path: Path) -> None:
    """By name, with either importer; nothing of them is run, and the other threads come over."""

    class Trap:
        def __reduce__(self) -> Any:
            return (open, (str(tmp_path / "sprung"), "w"))

    async with opened(source) as theirs:
        app = approval().compile(checkpointer=theirs)
        await app.ainvoke({"answers": []}, configured("good"))
        theirs.serde = JsonPlusSerializer(pickle_fallback=True)
        config = configured("bad", checkpoint_ns="")
        checkpoint: Any = {
            "v": 4,
            "ts": "2025-01-01T00:00:00+00:00",
            "id": "1f1ec820-0000-6000-8000-000000000000",
            "channel_values": {"x": [Trap()]},
            "channel_versions": {"x": "1.1"},
            "versions_seen": {},
            "updated_channels": None,
        }
        await theirs.aput(config, checkpoint, {"source": "input", "step": 0}, {"x": "1.1"})
    for opener in (open_threads, core.open_threads):
        bad, good = await imported(source, None, opener)
        assert (bad.outcome, good.outcome) == ("refused", "importable")
        assert any("it is a pickle" in remark for remark in bad.damaged), bad.damaged
    async with create_extended_store("memory:") as store:
        bad, good = await imported(source, store, skip_damaged=True)
        assert good.outcome == "imported" and not (tmp_path / "sprung").exists()


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


async def test_the_source_stays_byte_for_byte(tmp_path: Path) -> None:
    """With the write-ahead log of a saver that still runs, whose rows are read."""
    folder = tmp_path / "source"
    folder.mkdir()
    async with opened(str(tmp_path / "live.db")) as theirs:
        await chat().compile(checkpointer=theirs).ainvoke(question(), configured("a"))
        for name in ("live.db", "live.db-wal"):
            (folder / name).write_bytes((tmp_path / name).read_bytes())
    before = digests(folder)
    assert (folder / "live.db-wal").stat().st_size > 0
    async with create_extended_store("memory:") as store:
        (one,) = await imported(str(folder / "live.db"), store)
    assert one.counts["messages"] == 4 and digests(folder) == before


async def test_a_damaged_checkpoint_is_named_and_left_out(tmp_path: Path) -> None:
    """The thread is refused; with skip_damaged the others of its checkpoints are brought."""
    path = tmp_path / "source.db"
    async with opened(str(path)) as theirs:
        for thread in ("a", "b"):
            await chat().compile(checkpointer=theirs).ainvoke(question(), configured(thread))
    with closing(sqlite3.connect(path)) as db:
        (newest,) = db.execute("SELECT max(checkpoint_id) FROM checkpoints WHERE thread_id = 'a'").fetchone()
        db.execute("UPDATE checkpoints SET checkpoint = x'c1ff' WHERE checkpoint_id = ?", (newest,))
        db.execute("UPDATE checkpoints SET metadata = x'7b' WHERE rowid = (SELECT min(rowid) FROM checkpoints)")
        db.commit()
    async with create_extended_store("memory:") as store:
        first = await imported(str(path), store)
        assert [one.outcome for one in first] == ["refused", "imported"]
        assert len(first[0].damaged) == 2 and any(newest in remark for remark in first[0].damaged)
        again = await imported(str(path), store, skip_damaged=True)
        assert [one.outcome for one in again] == ["imported", "known"]
        left = [one async for one in KodeSaver(store).alist(configured("a"))]
        assert len(left) == 3 and newest not in {one.checkpoint["id"] for one in left}


async def test_the_example_of_the_guide(tmp_path: Path) -> None:
    """It brings a thread, and goes on with it."""
    async with opened(str(tmp_path / "checkpoints.db")) as theirs:
        graph = StateGraph(MessagesState)
        graph.add_node("answer", lambda _: {"messages": [("ai", "Hello")]})
        graph.add_edge(START, "answer")
        await graph.compile(checkpointer=theirs).ainvoke({"messages": [("human", "Hi")]}, configured("chat-1"))
    assert printed("move", tmp_path).splitlines() == [
        "langgraph:chat-1 imported {}",
        "['Hi', 'Hello', 'And now?', 'answer 3']",
    ]
