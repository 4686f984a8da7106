"""The examples of adapters for other frameworks, on the stores that a reader would use them with."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from adapters.openai_session import KodeSession

from kode_core import ConflictError, ExtendedStore, create_extended_store

ROOT = Path(__file__).parents[1]


@pytest.fixture(params=["memory:", "json:///data/store", "sqlite:///data/agents.db"], ids=lambda url: url.split(":")[0])
def url(request: pytest.FixtureRequest, alone: None) -> str:
    return str(request.param)


@pytest.fixture
async def store(url: str) -> AsyncIterator[ExtendedStore]:
    async with create_extended_store(url) as store:
        yield store


# --- A session of the OpenAI Agents SDK -------------------------------------------------------------------------------

ITEMS: list[dict[str, Any]] = [
    {"role": "user", "content": "Hello"},
    {
        "role": "user",
        "content": [{"type": "input_text", "text": "a\u0000\U0001f600"}, {"type": "input_image", "x": 1.0}],
    },
    {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "…"},
    {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a": 1}', "id": "fc_1", "status": None},
    {"type": "function_call", "call_id": "c2", "name": "f", "arguments": "[NaN"},
    {"type": "function_call", "call_id": "c3", "name": "f", "arguments": "[NaN]"},
    {"type": "function_call", "call_id": "c4", "name": "f", "arguments": '{"x": 1e999}'},
    {"type": "function_call", "call_id": "c5", "name": "f", "arguments": "[" * 150 + "]" * 150},
    {"type": "function_call_output", "call_id": "c1", "output": "1"},
    {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "?"}]},
    {"role": "assistant", "content": "", "phase": "final"},
    {"role": "developer", "content": "Be kind."},
    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hi", "annotations": []}]},
    {"content": None},
    {},
]


async def test_items_come_back_as_they_were(store: ExtendedStore) -> None:
    """All of them, the latest, and those that a limit of the settings leaves."""

    class Settings:
        limit = 2

    session = KodeSession("s", store)
    await session.add_items(ITEMS)
    await session.add_items([])

    assert await session.get_items() == ITEMS
    assert await session.get_items(3) == ITEMS[-3:]
    assert await session.get_items(0) == []
    assert await session.get_items(1_000) == ITEMS
    assert await KodeSession("s", store, Settings()).get_items() == ITEMS[-2:]
    assert await KodeSession("other", store).get_items() == []
    calls = await store.query_messages(agent_id="s", content_type="tool_use")
    assert [block.input for message in calls for block in message.content] == [
        "[" * 150 + "]" * 150,
        '{"x": 1e999}',
        "[NaN]",
        "[NaN",
        {"a": 1},
    ]


async def test_items_are_popped_from_the_end(store: ExtendedStore) -> None:
    """Until none is left; a cleared session begins anew, and keeps what else the agent has."""
    session = KodeSession("s", store)
    await session.add_items(ITEMS)
    await store.put_document("s", "notes", "k", 1)

    assert [await session.pop_item() for _ in ITEMS] == ITEMS[::-1]
    assert await session.pop_item() is None
    await session.add_items(ITEMS[:2])
    await session.clear_session()
    assert await session.get_items() == []
    assert await store.load_document("s", "notes", "k") is not None


async def test_no_item_is_lost_between_pops_and_appends(url: str, store: ExtendedStore) -> None:
    """Of two sessions of one conversation: each item is popped once, or is there at the end."""
    async with create_extended_store(url) as other:
        one, two = KodeSession("s", store), KodeSession("s", store if url == "memory:" else other)
        added = [[{"role": "user", "content": f"{i} {j}"} for j in range(3)] for i in range(30)]

        popped = await asyncio.gather(*(two.pop_item() for _ in range(30)), *(one.add_items(items) for items in added))

        seen = [item["content"] for item in [*popped, *await one.get_items()] if item is not None]
        assert sorted(seen) == sorted(item["content"] for items in added for item in items)


# --- A checkpoint saver of LangGraph ----------------------------------------------------------------------------------


def saver_of(store: ExtendedStore) -> Any:
    """The example, where LangGraph is installed."""
    pytest.importorskip("langgraph.checkpoint.base", reason="langgraph-checkpoint is not installed")
    from adapters.langgraph_saver import DocumentSaver

    return DocumentSaver(store)


async def test_the_saver_has_every_capability(store: ExtendedStore) -> None:
    """LangGraph's own conformance suite passes, all eight capabilities."""
    suite = pytest.importorskip(
        "langgraph.checkpoint.conformance", reason="langgraph-checkpoint-conformance is not installed"
    )
    saver = saver_of(store)

    @suite.checkpointer_test(name="kode_core")  # type: ignore[untyped-decorator]
    async def savers() -> AsyncIterator[Any]:
        yield saver

    report = await suite.validate(savers)

    counts = {name: (result.tests_passed, result.tests_failed) for name, result in report.results.items()}
    print(counts)
    assert [failure for result in report.results.values() for failure in result.failures or ()] == []
    assert report.passed_all(), counts
    assert len(counts) == 8 and sum(passed for passed, _ in counts.values()) >= 75
    assert (await store.check_consistency()).consistent


def configured(thread: str, **more: str) -> Any:
    return {"configurable": {"thread_id": thread, "checkpoint_ns": "", **more}}


async def put(saver: Any, config: Any, checkpoint_id: str, number: int, **metadata: Any) -> Any:
    """Store a checkpoint whose channel ``n`` is *number*; the channel ``same`` has not changed since the first one."""
    versions = {"n": f"{number:032}.1", "same": f"{1:032}.1"}
    new = versions if number == 1 else {"n": versions["n"]}
    values = {"n": number, "same": "x" * 1000}
    checkpoint = {"v": 4, "id": checkpoint_id, "ts": "", "channel_values": values, "channel_versions": versions}
    return await saver.aput(config, {**checkpoint, "versions_seen": {}}, metadata, new)


async def test_a_pruned_thread_keeps_what_is_shared(store: ExtendedStore) -> None:
    """The value that the latest checkpoint shares with the first one stays; the others leave nothing behind."""
    saver = saver_of(store)
    config = configured("thread \u00e9/\u0000" + "x" * 500)
    for number in range(1, 6):
        config = await put(saver, config, f"0000-{number}", number, run_id=f"r{number}")
        await saver.aput_writes(config, [("n", number)], "task" * 50)

    await saver.aprune([config["configurable"]["thread_id"]])

    (found,) = [item async for item in saver.alist(configured(config["configurable"]["thread_id"]))]
    assert found.checkpoint["channel_values"] == {"n": 5, "same": "x" * 1000}
    assert [write[1:] for write in found.pending_writes] == [("n", 5)]
    (agent_id,) = await store.list()
    counts = [
        len(await store.list_document_keys(agent_id, name)) for name in ("checkpoints", "values", "writes", "runs")
    ]
    assert counts == [1, 2, 1, 1]


async def test_a_thread_that_needs_its_history_is_not_pruned(store: ExtendedStore) -> None:
    """That of a graph with a DeltaChannel."""
    saver, config = saver_of(store), configured("t")
    for number in (1, 2):
        config = await put(saver, config, f"0000-{number}", number, counters_since_delta_snapshot={"n": (1, 1)})

    await saver.aprune(["t"])

    assert len([item async for item in saver.alist(configured("t"))]) == 2


async def test_writes_of_one_task_are_stored_once(store: ExtendedStore) -> None:
    """The first ones win, whatever order many callers come in; of interrupts the last one."""
    saver = saver_of(store)
    config = await put(saver, configured("t"), "0000-1", 1)

    await asyncio.gather(*(saver.aput_writes(config, [("a", n), ("b", n)], "task") for n in range(10)))
    for n in range(2):
        await saver.aput_writes(config, [("__interrupt__", n)], "task")

    writes = (await saver.aget_tuple(config)).pending_writes
    assert sorted(channel for _, channel, _ in writes) == ["__interrupt__", "a", "b"]
    by_channel = {channel: value for _, channel, value in writes}
    assert by_channel["a"] == by_channel["b"] and by_channel["__interrupt__"] == 1


async def test_a_copy_that_was_interrupted_is_finished(store: ExtendedStore) -> None:
    """Until then no listing shows it; a thread that exists is not overwritten."""
    from kode_core import agent_key

    saver = saver_of(store)
    await put(saver, configured("t"), "0000-1", 1)
    await put(saver, configured("taken"), "0000-1", 1)
    await store.fork(agent_key("langgraph", "t"), agent_key("langgraph", "copy"), documents=True)
    assert len([item async for item in saver.alist(None)]) == 2

    await saver.acopy_thread("t", "copy")

    assert len([item async for item in saver.alist(None)]) == 3
    with pytest.raises(ConflictError):
        await saver.acopy_thread("t", "taken")


def test_the_session_needs_no_framework() -> None:
    """Its module imports neither LangGraph nor the SDK."""
    code = "import sys, adapters.openai_session; assert not {'langgraph', 'agents', 'openai'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT / "docs" / "examples", check=True, timeout=60)
