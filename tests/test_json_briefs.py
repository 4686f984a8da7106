"""Searches of the JSON files engine: files that did not change are not opened again, and every change is seen."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from kode_conformance.values import samples

from kode_core import ExtendedStore, Message, ToolCallRecord, create_extended_store
from kode_core.backends.json_files import briefs, signatures
from kode_core.backends.json_files.folder import Folder
from kode_core.backends.json_files.journal import Journal

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no briefs: its times of files are late")

_SETTLED_MS = 20  # longer than a tick of the kernel, in which two writes have one time


def opened(base: Path | str = "store", **options: Any) -> Any:
    return create_extended_store(type="json", base_dir=str(base), durability="fast", **options)


def folder_of(store: Any) -> Folder:
    folder: Folder = store._context.engine.folder
    return folder


@pytest.fixture(autouse=True)
def soon_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signatures, "_SETTLED_NS", _SETTLED_MS * 1_000_000)


async def settled() -> None:
    await asyncio.sleep(2.5 * _SETTLED_MS / 1000)


async def one(store: ExtendedStore, agent: str, *, template: str = "t", tool: str = "search") -> None:
    await store.save_turn(
        agent,
        append=[Message.user("hello"), Message.assistant("hi")],
        upsert_tool_calls=[ToolCallRecord(id=f"c-{agent}", name=tool, state="COMPLETED", is_error=tool == "pay")],
        info=samples.info(agent).replace(template_id=template),
    )


async def found(store: ExtendedStore) -> list[Any]:
    """The answers of all searches."""
    sessions = await store.query_sessions(limit=1000, sort_by="updated_at")
    return [
        [(s.agent_id, s.template_id, s.message_count, s.metadata) for s in sessions],
        [s.agent_id for s in await store.query_sessions(sort_by="message_count", template_id=["t", "u"], limit=3)],
        [(m.agent_id, m.position, m.text) for m in await store.query_messages(limit=1000)],
        [(c.agent_id, c.name, c.state) for c in await store.query_tool_calls(limit=1000, order="asc")],
        [c.agent_id for c in await store.query_tool_calls(limit=1000, agent_id=["a1", "a2", "a3"], is_error=True)],
        await store.list(),
        await store.list("a1"),
        await store.count_messages(role="user"),
        await store.count_sessions(template_id="u"),
        sorted((str(g.values), g.count) for g in await store.group_tool_calls(["tool_name", "is_error"])),
        sorted((str(g.values), g.count) for g in await store.group_sessions("template_id")),
        (await store.get_metrics()).storage.total_messages,
        (await store.get_metrics()).storage.total_tool_calls,
    ]


@contextmanager
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of the files that are read frame by frame inside."""
    names: list[str] = []
    reading = Journal.reading

    def counted(self: Journal) -> Any:
        names.append(self.path.name)
        return reading(self)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "reading", counted)
        yield names


async def test_a_file_that_did_not_change_is_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second search reads none of the files, and one after a write reads that agent's alone."""
    async with opened() as writer, opened() as store:
        for i in range(20):
            await one(writer, f"a{i}", tool=("search", "pay")[i % 2])
        await settled()
        first = await found(store)
        with reads(monkeypatch) as names:
            assert await found(store) == first
        assert names == []
        await one(writer, "a7", template="u")
        await settled()
        with reads(monkeypatch) as names:
            changed = await found(store)
        assert set(names) == {"a7.jsonl"}
        assert changed != first
        async with opened() as fresh:
            assert changed == await found(fresh)


async def test_a_file_that_has_just_changed_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """While another change might get the same time, the times are not relied on."""
    monkeypatch.setattr(signatures, "_SETTLED_NS", 3_600 * 1_000_000_000)
    async with opened() as store:
        await one(store, "a1")
        await found(store)
        with reads(monkeypatch) as names:
            await found(store)
        assert "a1.jsonl" in names
        assert len(folder_of(store).briefs) == 0


async def test_searches_see_what_other_stores_do() -> None:
    """After each of many random changes by another store, searches answer as those of a store that was just opened."""
    rng = random.Random(7)
    long_id = "L" * 250  # the name of its file does not tell the id
    agents = ["a1", "a2", "a3", "a12", "Ä/b", long_id]
    async with opened() as writer, opened() as store:
        for agent in agents:
            await one(writer, agent)
        for _ in range(25):
            for _ in range(rng.randrange(1, 3)):
                agent = rng.choice(agents)
                match rng.randrange(6):
                    case 0:
                        await writer.delete(agent)
                    case 1:
                        await writer.append_messages(agent, samples.messages(rng.randrange(1, 4)))
                    case 2:
                        await writer.save_messages(agent, samples.messages(1))
                    case 3:
                        await writer.append_event(agent, samples.event(1))
                    case _:
                        await one(writer, agent, template=rng.choice("tuv"), tool=rng.choice(("pay", "book")))
            await settled()
            async with opened() as fresh:
                assert await found(store) == await found(fresh)


async def test_a_file_that_another_program_replaced_is_read_again(tmp_path: Path) -> None:
    """A file from a backup counts, though it has the size and the time of the file before."""
    async with opened() as store:
        await one(store, "a1", template="t")
        path = Path("store") / "a1.jsonl"
        await settled()
        shutil.copy2(path, tmp_path / "kept")
        async with opened() as writer:
            await one(writer, "a1", template="u")
        await settled()
        assert await store.count_sessions(template_id="u") == 1
        shutil.copy2(tmp_path / "kept", tmp_path / "back")
        os.replace(tmp_path / "back", path)
        await settled()
        assert await store.count_sessions(template_id="u") == 0
        assert [s.template_id for s in await store.query_sessions()] == ["t"]


async def test_damage_is_found_by_the_next_search() -> None:
    """A file that is damaged after a search is left out of the next one, and is in it again when it was repaired."""
    async with opened() as store:
        for agent in ("a1", "a2"):
            await one(store, agent)
        await settled()
        assert len(await store.query_sessions()) == 2
        path = Path("store") / "a1.jsonl"
        sound = path.read_bytes()
        path.write_bytes(sound[: len(sound) // 2])
        await settled()
        page = await store.query_sessions()
        assert ([s.agent_id for s in page], page.left_out) == (["a2"], ("agent 'a1'",))
        path.write_bytes(sound)
        await settled()
        assert len(await store.query_sessions()) == 2


async def test_the_memory_of_briefs_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more files than fit, some are remembered and the others are read; a delete drops the agent's."""
    monkeypatch.setattr(briefs, "_MEMORY_BYTES", 12_000)
    async with opened() as store:
        for i in range(30):
            await one(store, f"a{i}")
        await settled()
        known = folder_of(store).briefs
        for _ in range(2):
            assert len(await store.query_tool_calls(limit=1000)) == 30
            assert 3 < len(known) < 12
            assert known._weight == sum(brief.weight for brief in known._by_name.values()) <= 12_000
        kept = next(iter(known._by_name)).removesuffix(".jsonl")
        await store.delete(kept)
        assert known.known(f"{kept}.jsonl") is None
        async with opened() as other:
            for i in range(30):
                await other.delete(f"a{i}")
        assert await store.query_sessions() == []
        assert (len(known), known._weight) == (0, 0)
