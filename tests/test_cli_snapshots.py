"""``kode snapshots``, and the groups of ``kode tool-calls`` by the template of the agents."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from kode_conformance.values import samples

from kode_core import create_extended_store


def kode(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kode_core.cli", "--store", f"sqlite:///{folder / 'agents.db'}", *args]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture
async def folder(tmp_path: Path) -> Path:
    async with create_extended_store(f"sqlite:///{tmp_path / 'agents.db'}") as store:
        for i in range(130):
            template = ("support", "research")[i % 2]
            if i != 7:
                await store.save_info(f"a{i}", samples.info(f"a{i}", template_id=template))
            calls = [samples.tool_call(i, name="grep", is_error=i % 3 == 0, duration_ms=i)]
            await store.save_tool_call_records(f"a{i}", calls)
        await store.save_snapshot("a1", samples.snapshot("first", 1_000, 2))
        await store.save_snapshot("a1", samples.snapshot("[bold]\x1b[31m", 2_000, 3))
    return tmp_path


def test_snapshots_are_listed(folder: Path) -> None:
    found = json.loads(kode(folder, "snapshots", "a1", "--json").stdout)
    listed = [(one["id"], one["createdAt"], one["messageCount"]) for one in found["snapshots"]]
    assert listed == [("[bold]\x1b[31m", 2_000, 3), ("first", 1_000, 2)]
    shown = kode(folder, "snapshots", "a1")
    assert "first" in shown.stdout
    assert "\x1b[31m" not in shown.stdout
    assert "2 snapshots" in shown.stderr
    assert "0 snapshots" in kode(folder, "snapshots", "a2").stderr
    unknown = kode(folder, "snapshots", "nobody")
    assert (unknown.returncode, "nobody" in unknown.stderr) == (2, True)


def test_calls_are_grouped_by_template(folder: Path) -> None:
    """Groups by agent, of more agents than a filter takes, are put together; calls without info have no template."""
    done = kode(folder, "tool-calls", "--by", "template_id", "--durations", "--json")
    groups = json.loads(done.stdout)["groups"]
    found = {one["values"]["template_id"]: (one["count"], one["durations"]["totalMs"]) for one in groups}
    odd = sum(range(1, 130, 2)) - 7
    assert found == {"": (1, 7), "research": (64, odd), "support": (65, sum(range(0, 130, 2)))}
    both = json.loads(kode(folder, "tool-calls", "--by", "is_error", "--by", "template_id", "--json").stdout)["groups"]
    assert [list(one["values"]) for one in both] == [["is_error", "template_id"]] * len(both)
    assert sum(one["count"] for one in both) == 130
    top = kode(folder, "tool-calls", "--by", "template_id", "--sort", "count", "--limit", "1", "--json")
    assert [one["count"] for one in json.loads(top.stdout)["groups"]] == [65]
