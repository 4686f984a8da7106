"""A copy from backend to backend, around all of them, ends as it began."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from kode_conformance import Space
from kode_conformance.values import samples

from kode_core import AgentRecords, Message, copy_store, create_extended_store
from kode_core.formats.openai_chat import ChatConverter, import_conversation, read_conversations
from tests.moving_agents import HOSTILE_IDS, digests, fill, full, hostile

RUNS = Path(__file__).parents[1] / "docs/examples/tau-airline/gpt-4o-airline.json.gz"


@asynccontextmanager
async def store_of(backend: str, name: str, folder: Path) -> AsyncIterator[Any]:
    """An empty store of that backend; its server is started, or shared."""
    if backend == "json":
        target: Any = f"json:///{folder}/{name}"
    elif backend.startswith("sqlite"):
        hybrid = f"?file_store_base_dir={folder}/{name}-files" if backend == "sqlite-hybrid" else ""
        target = f"sqlite:///{folder}/{name}.db{hybrid}"
    else:
        (point,) = entry_points(group="kode.conformance", name=backend)
        harness = point.load()()
        (folder / name).mkdir()
        handle = await harness.provision(Space(f"ring_{name}", folder / name))
        try:
            given = {"type": backend.removesuffix("-local"), **handle} if isinstance(handle, dict) else handle
            async with create_extended_store(given) as store:
                yield store
        finally:
            await harness.destroy(handle)
        return
    async with create_extended_store(target) as store:
        yield store


async def around(first: Any, folder: Path, ring: Sequence[str]) -> None:
    """Copy from each store of the ring into the next one; all have equal digests."""
    whole = await digests(first)
    async with AsyncExitStack() as stack:
        source = first
        for number, backend in enumerate(ring):
            target = await stack.enter_async_context(store_of(backend, f"r{number}", folder))
            report = await copy_store(source, target, verify=True)
            assert report.outcomes == {"copied": len(whole)}, (backend, report.troubles)
            assert report.verified == len(whole) and report.differences == (), (backend, report.differences)
            source = target
        assert await digests(source) == whole


async def recorded(store: Any, number: int) -> None:
    converter = ChatConverter("tau-airline", "tau")
    for raw in itertools.islice(read_conversations(RUNS), number):
        await import_conversation(store, converter.convert(raw))
    assert len(await store.list()) == number


async def test_hostile_values_go_around(tmp_path: Path) -> None:
    async with store_of("sqlite", "first", tmp_path) as first:
        await fill(first, hostile("hostile"), *(full(one) for one in HOSTILE_IDS))
        await fill(first, AgentRecords(agent_id="b", messages=[Message("user", "")], message_times=[1], updated_at=1))
        await around(first, tmp_path, ("postgres", "mongo", "json", "sqlite-hybrid", "sqlite"))


async def test_agents_are_replaced_in_all_backends(tmp_path: Path) -> None:
    """In one write, whatever was there before: records of every kind, or documents and events alone."""
    async with store_of("sqlite", "first", tmp_path) as first:
        await fill(first, full("a", events=[samples.event(1)], documents=[]), full("b"), full("c", todos=None))
        for backend in ("postgres", "mongo", "dynamodb", "sqlite-hybrid", "json"):
            async with store_of(backend, f"new_{backend[:6]}", tmp_path) as target:
                await fill(target, full("a"), full("c"))
                await target.append_events("b", [samples.event(7)])
                await target.put_document("b", "notes", "old", 1)
                report = await copy_store(first, target, existing="replace", verify=True)
                assert report.outcomes == {"replaced": 3} and report.differences == (), (backend, report.troubles)
                assert await digests(target) == await digests(first), backend
                await target.append_messages("a", [Message.user("last")])
                assert (await target.emit("a", "text_chunk", {"delta": "x"})).bookmark.seq == 2, backend
                assert (await target.check_consistency()).consistent, backend


async def test_recorded_runs_go_around_all_backends(tmp_path: Path) -> None:
    """A few: the emulator of DynamoDB takes a second for an agent."""
    async with store_of("sqlite", "first", tmp_path) as first:
        await recorded(first, 6)
        await fill(first, *(full(one) for one in HOSTILE_IDS[:3]))
        await around(first, tmp_path, ("postgres", "mongo", "dynamodb", "json", "sqlite"))


async def test_two_hundred_runs_go_around(tmp_path: Path) -> None:
    async with store_of("sqlite", "first", tmp_path) as first:
        await recorded(first, 200)
        await around(first, tmp_path, ("postgres", "mongo", "json", "sqlite"))
