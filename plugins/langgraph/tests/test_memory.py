"""The long-term memory, next to LangGraph's own InMemoryStore."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
from typing import Any

import pytest
from kode_langgraph import KodeSaver, KodeStore
from langchain_core.messages import AIMessage
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.runtime import Runtime
from langgraph.store.base import GetOp, InvalidNamespaceError, ListNamespacesOp, MatchCondition, PutOp, SearchOp
from langgraph.store.memory import InMemoryStore

from kode_core import InvalidArgumentError, InvalidValueError, create_extended_store
from kode_core.sync import open_store
from plugins.langgraph.tests.graphs import configured, question

SPACES = [("a",), ("a", "b"), ("a", "b", "c"), ("a", "c"), ("b",), ("b", "a"), ("x" * 300, "y" * 300), ("é/|:", "*")]
FILTERS: list[Any] = [
    None,
    {"n": 3},
    {"n": {"$gte": 2, "$lt": 7}},
    {"n": {"$ne": 3}},
    {"tag": "even"},
    {"deep": {"er": 1}},
    {"list": [1, 2]},
    {"tag": {"$eq": "odd"}, "n": {"$gt": 4}},
    {"missing": None},
]


def test_it_does_what_the_reference_does(options: dict[str, Any]) -> None:
    """Puts, removals, gets, searches and listings, in batches, in an order of chance."""
    chance = random.Random(7)
    theirs = InMemoryStore()
    with KodeStore.from_url(**options) as ours:
        for _ in range({"memory": 25, "sqlite": 25, "dynamodb": 2}.get(options["type"], 6)):
            ops: list[Any] = []
            for _ in range(8):
                namespace, key = chance.choice(SPACES), chance.choice(["k", "é/", "K" * 600, "1", "2", "3"])
                n = chance.randrange(9)
                value = {"n": n, "tag": "odd" if n % 2 else "even", "deep": {"er": n % 2}, "list": [1, n]}
                ops.append(PutOp(namespace, key, value if chance.random() < 0.7 else None))
            ops.append(GetOp(chance.choice(SPACES), "k"))
            assert_same(ours.batch(ops), theirs.batch(ops))
            for prefix in ((), *SPACES):
                op = SearchOp(prefix, chance.choice(FILTERS), limit=100)
                assert_same(ours.batch([op]), theirs.batch([op]))
            for conditions in (
                None,
                [("prefix", ("a",))],
                [("suffix", ("c",))],
                [("prefix", ("a", "*"))],
                [("suffix", ("*", "a"))],
            ):
                given = None if conditions is None else tuple(MatchCondition(*each) for each in conditions)  # type: ignore[arg-type]
                for depth in (None, 1, 2):
                    wanted = ListNamespacesOp(given, depth)
                    assert ours.batch([wanted])[0] == nonempty(theirs, wanted)


def nonempty(store: InMemoryStore, op: ListNamespacesOp) -> Any:
    """The reference also lists namespaces that became empty."""
    full = InMemoryStore()
    for item in store.search((), limit=10_000):
        full.put(item.namespace, item.key, item.value)
    return full.batch([op])[0]


def assert_same(ours: list[Any], theirs: list[Any]) -> None:
    def told(result: Any) -> Any:
        if isinstance(result, list):
            return sorted((told(each) for each in result), key=json.dumps)
        return None if result is None else [list(result.namespace), result.key, result.value]

    assert [told(each) for each in ours] == [told(each) for each in theirs]


def test_pages_are_of_one_order(sqlite: dict[str, Any]) -> None:
    """All items, each once, whatever the page is."""
    with KodeStore.from_url(**sqlite) as memory:
        for space in SPACES:
            memory.batch([PutOp(space, f"k{n:02}", {"n": n}) for n in range(13)])
        pages = [memory.search((), limit=7, offset=at) for at in range(0, 13 * len(SPACES), 7)]
        found = [(item.namespace, item.key) for page in pages for item in page]
        assert len(found) == len(set(found)) == 13 * len(SPACES)
        assert len(memory.search((), filter={"n": 5}, limit=3, offset=4)) == 3
        assert memory.search((), limit=0) == []
        assert len(memory.list_namespaces(limit=3, offset=6)) == 2


def test_times_and_values_are_kept(sqlite: dict[str, Any]) -> None:
    """Of an update, the time of creation; values are exactly JSON."""
    with KodeStore.from_url(**sqlite) as memory:
        memory.put(("u",), "k", {"f": 1.0, "s": "\ud800\x00", "big": 2**80, "none": None})
        first = memory.get(("u",), "k")
        time.sleep(0.01)
        memory.put(("u",), "k", {"f": 2})
        again = memory.get(("u",), "k")
        assert first and again
        assert first.value == {"f": 1.0, "s": "\ud800\x00", "big": 2**80, "none": None}
        assert type(first.value["f"]) is float
        assert again.created_at == first.created_at and again.updated_at > first.updated_at
        assert first.created_at.tzinfo is not None


def test_wrong_input_is_refused_and_nothing_is_written(sqlite: dict[str, Any]) -> None:
    with KodeStore.from_url(**sqlite) as memory:
        for wrong in ({"x": object()}, {"x": float("nan")}, {1: 2}):
            with pytest.raises(InvalidValueError):
                memory.put(("u",), "k", wrong)  # type: ignore[arg-type]
        with pytest.raises(InvalidArgumentError):
            memory.put(("u",), "k", [1])  # type: ignore[arg-type]
        with pytest.raises(InvalidArgumentError, match=r"\$in"):
            memory.search(("u",), filter={"x": {"$in": [1]}})
        with pytest.raises(InvalidArgumentError, match="negative"):
            memory.search(("u",), limit=-1)
        for space in ((), ("a.b",), ("",)):
            with pytest.raises(InvalidNamespaceError):
                memory.put(space, "k", {})
        with pytest.raises(InvalidArgumentError, match="namespace"):
            memory.batch([PutOp((), "k", {})])
        with pytest.raises(InvalidArgumentError, match="operation"):
            memory.batch([7])  # type: ignore[list-item]
        assert memory.search(()) == [] and memory.list_namespaces() == []


def test_items_expire_and_reads_refresh_them(sqlite: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """An item that is read lives on; an expired one is not found, listed or counted, and a sweep removes it."""
    now = [1_000_000]
    for module in ("namespaces", "memory"):
        monkeypatch.setattr(f"kode_langgraph.{module}.now_ms", lambda: now[0])
    with KodeStore.from_url(**sqlite, ttl={"default_ttl": 10}) as memory:
        memory.put(("u",), "read", {"n": 1})
        memory.put(("u",), "left", {"n": 2})
        memory.put(("v",), "short", {"n": 3}, ttl=1)
        memory.put(("w",), "always", {"n": 4}, ttl=None)
        now[0] += 9 * 60_000
        assert memory.get(("u",), "read")
        assert memory.get(("u",), "left", refresh_ttl=False)
        now[0] += 2 * 60_000
        assert [item.key for item in memory.search((), refresh_ttl=False)] == ["read", "always"]
        assert memory.get(("u",), "left") is None
        assert memory.list_namespaces() == [("u",), ("w",)]
        assert memory.sweep_ttl() == 2 and memory.sweep_ttl() == 0
        assert [item.key for item in memory.search(())] == ["read", "always"]
        now[0] += 9 * 60_000
        assert memory.get(("u",), "read")
        memory.put(("u",), "read", {"n": 1}, ttl=None)
        now[0] += 900 * 60_000
        assert memory.sweep_ttl() == 0 and memory.get(("u",), "read")
    with open_store(**sqlite) as store:
        assert store.list_document_keys("langgraph-store:u", "expiring") == []


def test_a_sweeper_sweeps(sqlite: dict[str, Any]) -> None:
    with KodeStore.from_url(**sqlite) as memory:
        memory.put(("u",), "k", {}, ttl=0.001)
        future = memory.start_ttl_sweeper(0.002)
        assert memory.start_ttl_sweeper() is future
        deadline = time.monotonic() + 30
        while memory.home.call_sync(count_items) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert memory.home.call_sync(count_items) == 0
        assert memory.stop_ttl_sweeper(10) and future.done()


async def count_items(store: Any) -> int:
    return len(await store.list_document_keys("langgraph-store:u", "items"))


async def test_it_shares_the_store_of_a_saver(sqlite: dict[str, Any]) -> None:
    """A node uses it from a coroutine and from synchronous code."""

    def remember(state: Any, runtime: Runtime) -> Any:
        assert runtime.store is not None
        runtime.store.put(("memories", "ada"), "color", {"is": "blue"})
        return {"messages": [AIMessage("I will remember.")]}

    async def recall(state: Any, runtime: Runtime) -> Any:
        assert runtime.store is not None
        found = await runtime.store.asearch(("memories",), filter={"is": "blue"})
        return {"messages": [AIMessage(found[0].key)]}

    graph = StateGraph(MessagesState)
    graph.add_node("remember", remember)
    graph.add_node("recall", recall)
    graph.add_edge(START, "remember")
    graph.add_edge("remember", "recall")
    async with KodeSaver.from_url(**sqlite) as saver:
        memory = KodeStore(saver)
        app = graph.compile(checkpointer=saver, store=memory)
        result = await app.ainvoke(question(), configured("t"))
        assert result["messages"][-1].content == "color"
        memory.close()
        assert await memory.aget(("memories", "ada"), "color")
    async with create_extended_store(**sqlite) as store:
        open_memory = KodeStore(store)
        assert await open_memory.alist_namespaces(prefix=("memories",)) == [("memories", "ada")]
        await open_memory.adelete(("memories", "ada"), "color")
        assert await open_memory.alist_namespaces() == []


WRITER = """
import json, sys
from kode_langgraph import KodeStore
with KodeStore.from_url(**json.loads(sys.argv[1])) as memory:
    print("ready", flush=True); sys.stdin.readline()
    for n in range(60):
        memory.put(("shared",), f"{n % 10}", {"by": sys.argv[2], "n": n}, ttl=100)
"""


def test_two_processes_put_the_same_items(shared: dict[str, Any]) -> None:
    """The last put of each key stays, with one time of expiry."""
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, json.dumps(shared), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in "ab"
    ]
    for worker in workers:
        assert worker.stdout and worker.stdout.readline() == "ready\n"
    for worker in workers:
        worker.communicate("go\n", timeout=120)
        assert worker.returncode == 0
    with KodeStore.from_url(**shared) as memory:
        items = memory.search(("shared",), limit=100)
        assert [item.value["n"] for item in items] == list(range(50, 60))
    with open_store(**shared) as store:
        assert len(store.list_document_keys("langgraph-store:shared", "expiring")) == 10


async def test_many_items_are_found_in_bounded_time(sqlite: dict[str, Any]) -> None:
    """A page of 20,000 items costs what the page has."""
    async with KodeStore.from_url(**sqlite) as memory:
        for first in range(0, 20_000, 500):
            await memory.abatch([PutOp(("many",), f"{n:06}", {"n": n}) for n in range(first, first + 500)])
        begun = time.perf_counter()
        assert len(await memory.asearch(("many",), limit=10)) == 10
        page = time.perf_counter() - begun
        begun = time.perf_counter()
        assert len(await memory.asearch(("many",), filter={"n": 19_999})) == 1
        scan = time.perf_counter() - begun
        assert page < scan / 5, (page, scan)


def test_two_loops_at_once(sqlite: dict[str, Any]) -> None:
    with KodeStore.from_url(**sqlite) as memory:

        async def put(n: int) -> None:
            await memory.aput(("u",), f"{n}", {"n": n})
            assert memory.get(("u",), f"{n}")

        for n in range(3):
            asyncio.run(put(n))
        assert len(memory.search(("u",))) == 3
