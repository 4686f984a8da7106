"""The saver, judged by LangGraph's own suite on every backend, and by real graphs."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
from kode_langgraph import KodeSaver
from langchain_core.messages import AIMessage, HumanMessage, RemoveMessage, ToolMessage
from langgraph.checkpoint.conformance import checkpointer_test, validate
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.graph.message import REMOVE_ALL_MESSAGES

from kode_core import (
    ConfigurationError,
    ConflictError,
    InvalidArgumentError,
    InvalidValueError,
    KodeError,
    StoreClosedError,
    create_extended_store,
)
from kode_core.sync import SyncStore, open_store
from plugins.langgraph.tests.graphs import chat, configured, question, steps

AGENT = "langgraph:t"


def test_the_saver_has_every_capability(options: dict[str, Any]) -> None:
    """LangGraph's conformance suite passes, all eight capabilities, and leaves a sound store."""

    async def judge() -> Any:
        async with KodeSaver.from_url(**options) as saver:

            @checkpointer_test(name="kode")
            async def savers() -> AsyncIterator[Any]:
                yield saver

            report = await validate(savers)
            consistency = await saver.home.call(lambda store: store.check_consistency())
            return report, consistency

    report, consistency = asyncio.run(judge())
    counts = {name: (result.tests_passed, result.tests_failed) for name, result in report.results.items()}
    assert [failure for result in report.results.values() for failure in result.failures or ()] == []
    assert report.passed_all(), counts
    assert len(counts) == 8 and sum(passed for passed, _ in counts.values()) >= 81
    assert consistency.consistent


async def test_an_open_store_serves_its_loop_and_other_threads(sqlite: dict[str, Any]) -> None:
    """A synchronous call in the loop itself is refused, as it would wait for itself."""
    async with create_extended_store(**sqlite) as store:
        app = chat().compile(checkpointer=KodeSaver(store))
        await app.ainvoke(question(), configured("t"))
        result = await asyncio.to_thread(app.invoke, question(), configured("t"))
        assert len(result["messages"]) == 8
        with pytest.raises(KodeError, match="from_url"):
            app.invoke(question(), configured("t"))
        assert len(await store.load_messages(AGENT)) == 8


def test_one_saver_serves_any_loop_and_any_thread(options: dict[str, Any]) -> None:
    """Coroutines of three loops and synchronous calls of three threads, at once, also inside a running loop."""
    with KodeSaver.from_url(**options) as saver:
        app = chat().compile(checkpointer=saver)

        async def in_a_loop(n: int) -> None:
            await app.ainvoke(question(n), configured(f"a{n}"))
            app.invoke(question(n), configured(f"a{n}"))

        threads = [threading.Thread(target=lambda n=n: asyncio.run(in_a_loop(n))) for n in range(3)]
        threads += [threading.Thread(target=app.invoke, args=(question(n), configured(f"s{n}"))) for n in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert [len(app.get_state(configured(f"a{n}")).values["messages"]) for n in range(3)] == [8] * 3
        assert [len(app.get_state(configured(f"s{n}")).values["messages"]) for n in range(3)] == [4] * 3


def test_messages_and_tool_calls_are_stored_once(sqlite: dict[str, Any]) -> None:
    """In their order, from several savers one after the other; a failed call is found as failed."""
    for n in range(4):
        with KodeSaver.from_url(**sqlite) as saver:
            result = chat().compile(checkpointer=saver).invoke(question(n), configured("t"))

    with open_store(**sqlite) as store:
        messages = store.load_messages(AGENT)
        ids = [message.metadata["langgraph"]["id"] for message in messages if message.metadata]
        assert ids == [message.id for message in result["messages"]]
        assert [message.role for message in messages] == ["user", "assistant", "user", "assistant"] * 4
        calls = store.load_tool_call_records(AGENT)
        assert [(call.name, call.state, call.input["n"]) for call in calls] == [
            ("bash", "COMPLETED", 1),
            ("bash", "FAILED", 5),
            ("bash", "COMPLETED", 9),
            ("bash", "FAILED", 13),
        ]
        assert calls[1].error and calls[1].error.startswith("result 5")
        info = store.load_info(AGENT)
        assert info and info.template_id == "langgraph" and info.metadata == {"threadId": "t"}


def bytes_of(store: SyncStore, agent_id: str) -> int:
    """The size of all that an agent has, without what it was written over."""
    names = ("checkpoints", "items", "writes", "thread", "runs")
    documents = [each.value for name in names for each in store.iter_documents(agent_id, name)]
    return len(json.dumps(documents)) + sum(len(repr(each)) for each in store.load_messages(agent_id))


def test_a_long_thread_costs_what_a_short_one_costs(sqlite: dict[str, Any]) -> None:
    """A turn at 8,000 messages adds at most 1.2 times as many bytes as one at 100, also after a new start."""
    costs = {}
    for length in (100, 8_000):
        thread = f"long {length}"
        with KodeSaver.from_url(**sqlite) as saver:
            app = chat().compile(checkpointer=saver)
            said = [HumanMessage(f"{n} " + "x" * 600, id=f"m{n}") for n in range(length)]
            app.update_state(configured(thread), {"messages": said})
        with open_store(**sqlite) as store:
            before = bytes_of(store, f"langgraph:{thread}")
        for n in range(3):
            with KodeSaver.from_url(**sqlite) as saver:
                result = chat().compile(checkpointer=saver).invoke(question(n), configured(thread))
        assert len(result["messages"]) == length + 12
        assert result["messages"][:length] == said
        with open_store(**sqlite) as store:
            costs[length] = bytes_of(store, f"langgraph:{thread}") - before
            assert store.aggregate_stats(f"langgraph:{thread}").total_messages == length + 12
    assert costs[8_000] <= 1.2 * costs[100], costs


def test_nodes_that_return_the_whole_list_cost_no_more(sqlite: dict[str, Any]) -> None:
    """What a node writes refers to the messages that the thread has."""
    graph = StateGraph(MessagesState)
    graph.add_node("echo", lambda state: {"messages": [*state["messages"], AIMessage("a" * 600)]})
    graph.add_edge(START, "echo")
    with KodeSaver.from_url(**sqlite) as saver:
        app = graph.compile(checkpointer=saver)
        sizes = []
        for n in range(40):
            app.invoke(question(n), configured("t"), durability="sync")
            sizes.append(saver.home.call_sync(lambda store: written(store)))
        first, last = sizes[12] - sizes[2], sizes[-1] - sizes[-11]  # of ten turns: a write may arrive after its turn
        assert last <= 1.2 * first, (first, last)


async def written(store: Any) -> int:
    return sum([len(json.dumps(each.value)) async for each in store.iter_documents(AGENT, "writes")])


def test_edits_of_the_list_come_back_exactly(saver: KodeSaver) -> None:
    """Replaced, removed, repeated and trimmed messages; in the history each state is as it was."""
    app = chat().compile(checkpointer=saver)
    config = configured("t")
    said = [HumanMessage(f"{n} " + "x" * 100, id=f"m{n}") for n in range(50)]
    states = []
    for update in (
        said,
        [HumanMessage("changed", id="m7"), RemoveMessage("m20")],
        [AIMessage("x" * 100, id="same"), ToolMessage("r", tool_call_id="c", artifact={"a": [1.5, None]}, id="art")],
        [RemoveMessage(REMOVE_ALL_MESSAGES), *said[30:], HumanMessage("new", id="m5")],
        [HumanMessage("\u00e9 \x00", id="odd"), HumanMessage([{"type": "text", "text": "t"}], id="parts")],
    ):
        app.update_state(config, {"messages": update})
        states.append(app.get_state(config).values["messages"])
    assert [len(state) for state in states] == [50, 49, 51, 21, 23]
    history = [found.values["messages"] for found in app.get_state_history(config)]
    assert history[: len(states)] == states[::-1]
    assert states[1][7].content == "changed"


def test_values_of_every_form_come_back(saver: KodeSaver) -> None:
    """Small and large lists, dicts, nested ones, bytes, tuples, and equal elements."""
    big = "b" * 2_000
    values: dict[str, Any] = {
        "same": [big] * 100,
        "numbers": list(range(5_000)),
        "texts": [f"text {n}" for n in range(500)],
        "dict": {"z": [big, {"k": big}], "a": {"deep": {"deeper": {"deepest": [big, [big]]}}}, "": None},
        "keys": {1: big, "1": big},
        "bytes": b"\x00\xff" * 1_000,
        "tuple": (big, [1]),
        "empty": [],
        "none": None,
        "mixed": [None, big, b"x" * 600, 1.0, 1, True, {"a": 1}, [big]],
        "name \u00e9/\x00": big,
    }
    config = configured("t", checkpoint_ns="")
    config = put(saver, config, "1", values)
    first = saver.get_tuple(config)
    assert first is not None
    got: Any = first.checkpoint["channel_values"]
    assert got["tuple"] in ((big, [1]), [big, [1]])  # as LangGraph's serializer gives it
    assert {**got, "tuple": None} == {**values, "tuple": None}
    assert list(got) == list(values) and list(got["dict"]) == ["z", "a", ""]
    assert [type(each) for each in got["mixed"]] == [type(each) for each in values["mixed"]]
    config = put(saver, config, "2", {**values, "texts": values["texts"][:-1]})
    assert len(saver.get_tuple(config).checkpoint["channel_values"]["texts"]) == 499  # type: ignore[union-attr]


def put(saver: KodeSaver, config: Any, checkpoint_id: str, values: dict[str, Any], **metadata: Any) -> Any:
    """Store a checkpoint, with LangGraph's interface."""
    versions: Any = dict.fromkeys(values, f"{1:032}.{checkpoint_id}")
    checkpoint: Any = {
        "v": 4,
        "id": checkpoint_id,
        "ts": "2025-01-01T00:00:00+00:00",
        "channel_values": values,
        "channel_versions": versions,
        "versions_seen": {},
    }
    about: Any = {"source": "loop", "step": 1, **metadata}
    return saver.put(config, checkpoint, about, versions)


@pytest.mark.parametrize("thread", ["a/b:c#%", "é\U0001f600", "x" * 5_000, " ", "\ud800", "\x00", "../..", "*", 7])
def test_hostile_threads_are_kept_apart(saver: KodeSaver, thread: Any) -> None:
    """Each is a thread of its own, and is found again by its name."""
    put(saver, configured("other", checkpoint_ns=""), "1", {"v": "other"})
    put(saver, configured(thread, checkpoint_ns="ns/|:é" * 30), "1", {"v": "inner"})
    put(saver, configured(thread, checkpoint_ns=""), "id/" * 40, {"v": "x"}, run_id="r/\u00e9")
    found = saver.get_tuple(configured(thread, checkpoint_ns=""))
    assert found and found.checkpoint["channel_values"] == {"v": "x"}
    assert found.config["configurable"]["thread_id"] == str(thread)
    assert len(list(saver.list(configured(thread)))) == 2
    assert len(list(saver.list(None))) == 3
    saver.delete_for_runs(["r/\u00e9"])
    assert len(list(saver.list(configured(thread)))) == 1
    saver.delete_thread(thread)
    assert len(list(saver.list(None))) == 1


def test_wrong_input_is_refused(saver: KodeSaver) -> None:
    with pytest.raises(InvalidArgumentError, match="thread"):
        saver.get_tuple({"configurable": {}})
    with pytest.raises(InvalidArgumentError, match="keep_latest"):
        saver.prune(["t"], strategy="all")
    with pytest.raises(ConfigurationError):
        KodeSaver.from_url("nosuch://x")
    with pytest.raises(InvalidValueError, match="serializer"):
        put(saver, configured("t", checkpoint_ns=""), "1", {"v": object()})
    assert saver.get_tuple(configured("t")) is None
    put(saver, configured("t", checkpoint_ns=""), "1", {"v": 1})
    put(saver, configured("u", checkpoint_ns=""), "1", {"v": 1})
    with pytest.raises(ConflictError):
        saver.copy_thread("t", "u")
    saver.close()
    with pytest.raises(StoreClosedError):
        saver.get_tuple(configured("t"))


def test_time_travel_and_forks(saver: KodeSaver) -> None:
    """A run from an older checkpoint is a branch; both branches stay in the history."""
    app = chat().compile(checkpointer=saver)
    config = configured("t")
    for n in range(3):
        app.invoke(question(n), config)
    history = list(app.get_state_history(config))
    older = next(each for each in history if len(each.values["messages"]) == 4 and not each.next)
    branch = app.update_state(older.config, {"messages": [HumanMessage("another way", id="branch")]}, as_node=START)
    result = app.invoke(None, branch)
    assert [message.content for message in result["messages"][:5]] == [
        *(message.content for message in older.values["messages"]),
        "another way",
    ]
    assert len(app.get_state(history[0].config).values["messages"]) == 12
    assert app.get_state(history[0].config).values == history[0].values
    replayed = app.invoke(None, older.config)
    assert replayed["messages"] == older.values["messages"]


def test_subgraphs_have_namespaces_and_share_messages(sqlite: dict[str, Any]) -> None:
    """The messages of the inner graph are the thread's, each stored once; its state is found from the outer one."""
    inner = chat().compile(checkpointer=True)
    outer = StateGraph(MessagesState)
    outer.add_node("inner", inner)
    outer.add_node("last", lambda _: {"messages": [AIMessage("last " + "l" * 600)]})
    outer.add_edge(START, "inner")
    outer.add_edge("inner", "last")
    with KodeSaver.from_url(**sqlite) as saver:
        app = outer.compile(checkpointer=saver)
        for n in range(3):
            result = app.invoke(question(n), configured("t"))
        spaces = {each.config["configurable"]["checkpoint_ns"] for each in saver.list(configured("t"))}
        assert spaces == {"", "inner"}
        saver.prune(["t"])
        assert len(list(saver.list(configured("t")))) == 2
        assert app.get_state(configured("t")).values["messages"] == result["messages"]
        inside = saver.get_tuple(configured("t", checkpoint_ns="inner"))
        assert inside and len(inside.checkpoint["channel_values"]["messages"]) >= 4
    with open_store(**sqlite) as store:
        ids = [message.metadata["langgraph"]["id"] for message in store.load_messages(AGENT) if message.metadata]
        assert len(ids) == len(set(ids)) == len(result["messages"])


def test_a_run_that_was_stopped_goes_on_where_it_stopped(saver: KodeSaver) -> None:
    app = steps().compile(checkpointer=saver, interrupt_before=["step4"])
    app.invoke({"done": []}, configured("t"))
    assert app.invoke(None, configured("t"))["done"] == [f"step {n}" for n in range(10)]


def test_a_pruned_thread_keeps_what_its_latest_checkpoint_has(sqlite: dict[str, Any]) -> None:
    """Items that no checkpoint refers to are gone, and the thread goes on, in savers that knew the old items too."""
    with KodeSaver.from_url(**sqlite) as saver, KodeSaver.from_url(**sqlite) as other:
        apps = [chat().compile(checkpointer=each) for each in (saver, other)]
        for n in range(4):
            apps[n % 2].invoke(question(n), configured("t"))
        apps[0].update_state(configured("t"), {"messages": [RemoveMessage(REMOVE_ALL_MESSAGES), HumanMessage("anew")]})
        other.prune(["t"])
        left = apps[0].get_state(configured("t")).values["messages"]
        assert [message.content for message in left] == ["anew"]
        assert saver.home.call_sync(chunks_of) == 1
        for n in range(4):
            result = apps[n % 2].invoke(question(n), configured("t"))
        assert len(result["messages"]) == 17
        assert len(list(apps[1].get_state_history(configured("t")))) == 21


async def chunks_of(store: Any) -> int:
    return len(await store.list_document_keys(AGENT, "items"))
