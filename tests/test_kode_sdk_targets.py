"""Stores of the KODE SDK come over to servers as they do to files, and large ones without much memory."""

from __future__ import annotations

import asyncio
import gc
import json
import pathlib
import secrets
import tarfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from kode_conformance import Space
from kode_conformance.harness import find_harness
from kode_conformance.servers import had

from kode_core import create_extended_store
from kode_core.formats.kode_sdk import import_agents, open_source
from tests.sdk_stores import CALL, MESSAGES, info, write
from tests.test_kode_sdk import DATA, KINDS, MANIFEST

SERVERS: Final = ("mongo", "dynamodb", "postgres")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The stores that the SDK itself wrote."""
    folder = tmp_path_factory.mktemp("sdk")
    for name in ("json-store", "sqlite-store"):
        with tarfile.open(DATA / f"{name}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
    yield folder


async def contents(store: Any, agent_id: str) -> dict[str, Any]:
    """An agent whole, without what each store numbers itself."""
    whole = await store.load_agent(agent_id)
    assert whole is not None
    fields = {name: getattr(whole, name) for name in whole.__struct_fields__}
    fields.pop("event_offsets")
    fields.pop("updated_at")
    return fields


@pytest.mark.parametrize("place", ["json", "sqlite/agents.db"])
@pytest.mark.parametrize("target", SERVERS)
async def test_a_server_gets_what_the_manifest_says(recorded: Path, tmp_path: Path, place: str, target: str) -> None:
    """Counts are those of the manifest, every agent is equal to the one that memory gets, and a second import does
    nothing.
    """
    files = recorded / "sqlite/store" if place != "json" else None
    harness = had(lambda: find_harness(target))
    handle = await harness.provision(Space(f"sdk_{secrets.token_hex(6)}", tmp_path))
    try:
        async with create_extended_store("memory:") as memory:
            store: Any = await harness.open(handle)
            try:
                for outcome in ("imported", "known"):
                    for one in (store, memory):
                        async with open_source(str(recorded / place), files) as source:
                            found = {each.agent_id: each async for each in import_agents(source, one)}
                        assert {each.outcome for each in found.values()} == {outcome}
                assert sorted(found) == sorted(MANIFEST)
                for agent_id, counted in MANIFEST.items():
                    counts = found[agent_id].counts
                    names = ("messages", "toolCalls", "events")
                    assert [counts[name] for name in names] == [counted[name] for name in names]
                    assert [counts[kind] for kind in KINDS] == [1] * len(KINDS)
                    assert await contents(store, agent_id) == await contents(memory, agent_id)
            finally:
                await store.close()
    finally:
        await harness.destroy(handle)


def _folder(base: Path, number: int) -> None:
    for i in range(number):
        agent_id = f"agt-{i:06d}"
        files = {"meta.json": info(agent_id), "runtime/messages.json": MESSAGES, "runtime/tool-calls.json": [CALL]}
        write(base / agent_id, files)


async def test_memory_does_not_grow_with_the_number_of_agents(tmp_path: Path) -> None:
    """Three thousand agents take no more memory than one thousand, and other tasks go on meanwhile."""
    base = tmp_path / "sdk"
    await asyncio.to_thread(_folder, base, 3_000)
    turns, count, sizes = 0, 0, list[int]()
    # The interpreter's table of names grows at once by megabytes in a process that has many names; it is no agent's.
    names = tracemalloc.Filter(False, pathlib.__file__)

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    other = asyncio.create_task(others())
    async with create_extended_store(f"sqlite:///{tmp_path / 'agents.db'}", durability="fast") as store:
        async with open_source(str(base), None) as source:
            tracemalloc.start()
            try:
                async for one in import_agents(source, store):
                    assert one.outcome == "imported", json.dumps(one.reason)
                    count += 1
                    assert turns > count
                    if count % 500 == 0:
                        gc.collect()
                        found = tracemalloc.take_snapshot().filter_traces([names]).traces
                        sizes.append(sum(trace.size for trace in found))
            finally:
                tracemalloc.stop()
                other.cancel()
        assert await store.count_sessions() == count == 3_000
    assert max(sizes[4:]) < max(sizes[:2]) + 1_000_000, sizes
