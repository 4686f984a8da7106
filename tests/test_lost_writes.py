"""Writes that the storage takes back: what a store remembers of them does not pass for what came in their place."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from kode_conformance.values import samples

from kode_core import ExtendedStore, create_extended_store


async def opened(kind: str, path: Path) -> ExtendedStore:
    where: dict[str, Any] = {"sqlite": {"db_path": path}, "json": {"base_dir": path}}[kind]
    return await create_extended_store(type=kind, durability="fast", **where)


@pytest.mark.parametrize("kind", ["sqlite", "json"])
async def test_two_writes_after_one_state_lead_to_two_versions(kind: str, tmp_path: Path) -> None:
    """A store and its copy go on from one state by a write each, as a store does that lost a write: the versions of
    the lists differ, also after more writes.
    """
    async with await opened(kind, tmp_path / "store") as store:
        await store.save_turn("a", messages=samples.messages(2), tool_calls=[samples.tool_call(0)])
        await store.backup(tmp_path / "copy")
        async with await opened(kind, tmp_path / "copy") as copy:
            seen: list[int] = []
            for _ in range(3):
                for one in (store, copy):
                    await one.append_messages("a", samples.messages(1))
                    await one.upsert_tool_call_records("a", [samples.tool_call(1)])
                    summary = await one._context.engine.summary("a")  # type: ignore[attr-defined]
                    seen += [summary.messages.version, summary.tool_calls.version]
            assert len(set(seen)) == len(seen)


async def test_a_save_after_the_file_went_back_stores_all_it_was_given(tmp_path: Path) -> None:
    """A database goes back to an earlier state under an open store, and another one writes as much since: the first
    one saves its lists, and they are stored as they are.
    """
    path, messages = tmp_path / "a.db", samples.messages(5)
    calls = [samples.tool_call(i) for i in range(5)]
    async with await opened("sqlite", path) as one, await opened("sqlite", path) as two:
        await one.save_turn("a", messages=messages[:1], tool_calls=calls[:1])
        await one.backup(tmp_path / "old.db")
        await one.append_messages("a", messages[1:2])
        await one.upsert_tool_call_records("a", calls[1:2])
        old, new = sqlite3.connect(tmp_path / "old.db"), sqlite3.connect(path)
        old.backup(new)
        old.close()
        new.close()
        await two.append_messages("a", messages[3:4])
        await two.upsert_tool_call_records("a", calls[3:4])
        await one.save_messages("a", messages[:3])
        await one.save_tool_call_records("a", calls[:3])
        for store in (one, two):
            assert await store.load_messages("a") == messages[:3]
            assert await store.load_tool_call_records("a") == calls[:3]
