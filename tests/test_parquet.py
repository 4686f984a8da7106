"""Tables for analysts: exact values, three readers, bounded memory, and exports that are complete or absent."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import duckdb
import pandas
import polars
import pyarrow.parquet as parquet
import pytest

from kode_core import (
    AgentEvent,
    AgentInfo,
    BackendImportError,
    Bookmark,
    InvalidArgumentError,
    Message,
    StoreUnavailableError,
    TextBlock,
    Timeline,
    ToolCallApproval,
    ToolCallRecord,
    ToolUseBlock,
    create_extended_store,
)
from kode_core.formats.parquet import TABLES, export_parquet, exporting
from tests.adapter_tests import server, url

__all__ = ["server", "url"]

KODE = (sys.executable, "-m", "kode_core.cli")
T0 = 1_700_000_000_123
SURROGATE = "a\ud800b"


def call(i: int, **more: Any) -> ToolCallRecord:
    given = {"id": f"c{i}", "name": "f", "created_at": T0 + i, "updated_at": T0 + i, **more}
    return ToolCallRecord(**given)


async def filled(store: Any) -> None:
    info = AgentInfo(
        agent_id="a",
        template_id="t",
        created_at=T0,
        lineage=["z"],
        metadata={"userId": "u", "n": 1.5, "s": SURROGATE, "big": 10**30},
        last_bookmark=Bookmark(7, T0),
    )
    calls = [
        call(0, state="COMPLETED", input={"x": [1]}, result="ok", duration_ms=1.5, started_at=T0, completed_at=T0 + 1),
        call(
            1,
            state="FAILED",
            is_error=True,
            error="no \0 way",
            duration_ms=10,
            approval=ToolCallApproval(required=True),
        ),
        call(2, duration_ms=10**400, started_at=2**62, input=None),
    ]
    await store.save_turn(
        "a",
        append=[
            Message.user(f"Hi {SURROGATE} 🙂"),
            Message(
                "assistant", (TextBlock("one"), ToolUseBlock("c0", "f", {"x": [1]}), TextBlock("two")), {"k": None}
            ),
        ],
        upsert_tool_calls=calls,
        info=info,
    )
    await store.append_events(
        "a", [Timeline(5, Bookmark(i, T0 + i), AgentEvent("monitor", "e", {"i": i})) for i in range(3)]
    )
    await store.append_messages("no-info", [Message.user("alone")])
    await store.save_info("b", AgentInfo(agent_id="b", template_id="other", created_at=-5))


def rows(folder: Path, table: str) -> list[dict[str, Any]]:
    return parquet.read_table(folder / f"{table}.parquet").to_pylist()


async def test_every_record_is_a_row(url: Any, tmp_path: Path) -> None:
    """Texts, times, JSON and numbers, also those that a Parquet file or its readers cannot have as they are."""
    folder = tmp_path / "tables"
    async with create_extended_store(url) as store:
        await filled(store)
        report = await export_parquet(store, folder)
        offsets = [event.offset async for event in store.read_events("a", after_offset=0)]
        (created, _) = [one.created_at async for one in store.read_messages("a")]
    assert report.is_whole and report.outcomes == {"copied": 3}
    assert report.counts == {"message": 3, "toolCall": 3, "event": 3}
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{name}.parquet" for name in TABLES)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    one, other = rows(folder, "sessions")
    assert one["created_at"].timestamp() == T0 / 1000 and one["lineage"] == ["z"] and one["user_id"] == "u"
    assert (one["message_count"], one["tool_call_count"], one["last_seq"]) == (2, 3, 7)
    assert json.loads(one["metadata"]) == {"userId": "u", "n": 1.5, "s": SURROGATE, "big": 10**30}
    assert (other["agent_id"], other["user_id"], other["created_at"].year) == ("b", None, 1969)
    first, second, alone = rows(folder, "messages")
    assert first["text"] == "Hi a\ufffdb 🙂" and json.loads(first["content"])[0]["text"] == f"Hi {SURROGATE} 🙂"
    assert first["created_at"].timestamp() == created / 1000
    assert (second["text"], second["block_types"]) == ("one\ntwo", ["text", "tool_use", "text"])
    assert json.loads(second["metadata"]) == {"k": None} and first["metadata"] is None
    assert (alone["agent_id"], alone["position"], alone["role"]) == ("no-info", 0, "user")
    ok, failed, odd = rows(folder, "tool_calls")
    assert (json.loads(ok["input"]), json.loads(ok["result"]), ok["duration_ms"]) == ({"x": [1]}, "ok", 1.5)
    assert (failed["is_error"], failed["error"], failed["approval_required"]) == (True, "no \0 way", True)
    assert (odd["duration_ms"], odd["started_at"], odd["input"]) == (None, None, None)
    found = rows(folder, "events")
    assert [(event["event_offset"], event["seq"], json.loads(event["data"])) for event in found] == [
        (offset, i, {"i": i}) for i, offset in enumerate(offsets)
    ]


async def test_three_readers(tmp_path: Path) -> None:
    """DuckDB, pandas and polars read all tables at once, and times are times in UTC."""
    folder = tmp_path / "tables"
    async with create_extended_store("memory:") as store:
        await filled(store)
        await export_parquet(store, folder)
    with duckdb.connect() as db:
        for name, columns in TABLES.items():
            described = db.sql(f"DESCRIBE SELECT * FROM '{folder}/{name}.parquet'").fetchall()
            kinds = {column: kind for column, kind, *_ in described}
            assert list(kinds) == [column.name for column in columns]
            assert {kinds[c.name] for c in columns if c.kind == "time"} == {"TIMESTAMP WITH TIME ZONE"}
            frame, table = (
                pandas.read_parquet(folder / f"{name}.parquet"),
                polars.read_parquet(folder / f"{name}.parquet"),
            )
            assert db.sql(f"SELECT count(*) FROM '{folder}/{name}.parquet'").fetchall() == [(len(frame),)]
            assert len(frame) == len(table)
            for column in columns:
                if column.kind == "time":
                    assert str(frame[column.name].dtype) == "datetime64[ms, UTC]"
                    assert table[column.name].dtype == polars.Datetime("ms", "UTC")
        said = db.sql(
            f"""SELECT epoch_ms(created_at), input->>'$.x[0]', duration_ms, error FROM '{folder}/tool_calls.parquet'
            ORDER BY position"""
        ).fetchall()
    assert said == [(T0, "1", 1.5, None), (T0 + 1, None, 10.0, "no \0 way"), (T0 + 2, None, None, None)]


async def test_filters_choose_agents(tmp_path: Path) -> None:
    """As those of kode sessions, and the beginning of the id."""
    async with create_extended_store("memory:") as store:
        await filled(store)
        for i, (filters, agents) in enumerate(
            [
                ({"template_id": "t"}, ["a"]),
                ({"prefix": "n"}, []),
                ({"metadata": {"n": 1.5}}, ["a"]),
                ({"prefix": "c"}, []),
            ]
        ):
            await export_parquet(store, tmp_path / str(i), **filters)
            assert [row["agent_id"] for row in rows(tmp_path / str(i), "sessions")] == agents
        assert len(rows(tmp_path / "1", "messages")) == 1
        with pytest.raises(InvalidArgumentError, match="templat"):
            await export_parquet(store, tmp_path / "x", templat_id="t")  # type: ignore[call-arg]
        with pytest.raises(InvalidArgumentError, match="exists already"):
            await export_parquet(store, tmp_path / "0")
        with pytest.raises(InvalidArgumentError, match="directory must be"):
            await export_parquet(store, 5)  # type: ignore[arg-type]
        with pytest.raises(StoreUnavailableError, match="cannot be written"):
            await export_parquet(store, tmp_path / "no" / "folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2", "3"]


async def test_a_damaged_agent_is_reported(tmp_path: Path) -> None:
    """The others are exported whole, and the command ends with exit code 1."""
    url = f"json:///{tmp_path}/j"
    async with create_extended_store(url) as store:
        for agent_id in "abc":
            await store.append_messages(agent_id, [Message.user(agent_id)])
    (file,) = (tmp_path / "j").glob("b*.jsonl")
    file.write_bytes(b"x" * 40 + file.read_bytes()[40:])
    async with create_extended_store(url) as store:
        report = await export_parquet(store, tmp_path / "tables")
    assert report.outcomes == {"copied": 2, "damaged": 1} and report.troubles[0].agent_id == "b"
    assert [row["text"] for row in rows(tmp_path / "tables", "messages")] == ["a", "c"]
    done = subprocess.run(
        (*KODE, "export", "--format", "parquet", "out", "--store", url), capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and "damaged b: " in done.stderr, done.stderr
    assert done.stdout == "exported 2 agents, 2 messages\n"


async def test_without_pyarrow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The error says what to install, and nothing is left."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    async with create_extended_store("memory:") as store:
        with pytest.raises(BackendImportError, match=r"pip install 'kode-core\[parquet\]'"):
            await export_parquet(store, tmp_path / "tables")
    assert list(tmp_path.iterdir()) == []


_EXPORT = """
import asyncio, sys
from kode_core import create_extended_store
from kode_core.formats.parquet import export_parquet

async def main():
    async with create_extended_store(sys.argv[1]) as store:
        await export_parquet(store, sys.argv[2], progress=lambda done, total: print(done, flush=True))

asyncio.run(main())
"""


async def test_a_killed_or_cancelled_export_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    """No folder of that name appears, and the next export makes it."""
    url, folder = f"sqlite:///{tmp_path}/a.db", tmp_path / "tables"
    async with create_extended_store(url, durability="fast") as store:
        for i in range(30):
            await store.append_messages(f"a-{i:02}", [Message.user("x" * 10_000)] * 10)
        process = subprocess.Popen([sys.executable, "-c", _EXPORT, url, folder], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for _ in range(15):
            process.stdout.readline()
        process.kill()
        process.communicate()
        assert not folder.exists()

        def stop(done: int, total: int | None) -> None:
            if done == 25:
                task.cancel()

        task = asyncio.ensure_future(export_parquet(store, tmp_path / "other", progress=stop))
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not (tmp_path / "other").exists() and not list(tmp_path.glob(".other*"))
        await export_parquet(store, folder)
    assert len(rows(folder, "messages")) == 300
    assert os.stat(folder / "messages.parquet").st_mode & 0o777 == 0o600


async def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Four times the rows take no more memory, whether one agent has them or many; row groups are of bounded size."""
    monkeypatch.setattr(exporting, "_ROWS", 1_000)
    peaks = []
    for i, number in enumerate((8_000, 32_000)):
        async with create_extended_store(f"sqlite:///{tmp_path}/{i}.db", durability="fast") as store:
            for start in range(0, number, 2_000):
                agent_id = "one" if start < number / 2 else f"a-{start}"
                await store.append_messages(agent_id, [Message.user("x" * 50) for _ in range(2_000)])
            tracemalloc.start()
            report = await export_parquet(store, tmp_path / f"t{i}")
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
            assert report.counts["message"] == number
        file = parquet.ParquetFile(tmp_path / f"t{i}" / "messages.parquet")
        assert file.metadata.num_rows == number and file.metadata.num_row_groups == number // 1_000
    assert peaks[1] < peaks[0] * 1.5
