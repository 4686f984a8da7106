"""``kode import --from kode-sdk`` as its users run it."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kode_core import create_extended_store
from tests.sdk_stores import MESSAGES, agent_files, info, make_tables, snapshot, write
from tests.test_cli import KODE, kode
from tests.test_foreign import everything

IMPORT = ("import", "--from", "kode-sdk")


def test_a_folder(tmp_path: Path) -> None:
    for n in range(3):
        write(tmp_path / f"old/agt-{n}", agent_files(f"agt-{n}"))
    write(tmp_path / "old/agt-2", {"runtime/todos.json": b"{"})
    before = everything(tmp_path / "old")
    report = tmp_path / "report.jsonl"
    dry, _ = kode(*IMPORT, "old", "--dry-run", code=1)
    assert dry.startswith("would import 2 agents, 4 messages, 2 tool calls, 8 events, 2 snapshots\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old"]
    out, err = kode(*IMPORT, "old", "--store", "sqlite:///new.db", "--report", str(report), code=1)
    assert out.splitlines() == [
        "imported 2 agents, 4 messages, 2 tool calls, 8 events, 2 snapshots",
        "changed, 3 times: messages: the SDK kept no times; they got the times of their tool calls",
        "refused 1 agent, see above",
    ]
    assert "refused agt-2: some of its records cannot be read, and --skip-damaged was not given" in err
    assert "runtime/todos.json: no JSON" in err
    assert [json.loads(line)["outcome"] for line in report.read_text().splitlines()] == ["imported"] * 2 + ["refused"]
    _, err = kode(*IMPORT, "old", "--store", "sqlite:///new.db", "--report", "old/agt-0/meta.json", code=2)
    assert "old/agt-0/meta.json exists already; name a new file for the report" in err
    out, _ = kode(*IMPORT, "old", "--store", "sqlite:///new.db", "--skip-damaged")
    assert out.startswith(
        "imported 1 agent, 2 messages, 1 tool call, 4 events, 1 snapshot; 2 agents were there already\n"
    )
    assert kode("sessions", "--store", "sqlite:///new.db", "--count")[0].strip() == "3"
    assert everything(tmp_path / "old") == before


def test_lost_messages_are_offered(tmp_path: Path) -> None:
    make_tables(tmp_path / "old.db", {"agt-1": {"agents": [info("agt-1")], "snapshots": [snapshot("sfp-1")]}})
    _, err = kode(*IMPORT, "old.db", "--dry-run", code=2)
    assert "name it with --files DIR, or import the tables alone with --no-files" in err
    out, err = kode(*IMPORT, "old.db", "--no-files", "--dry-run")
    assert "agt-1: the SDK has lost records\n  the info counts 2 messages, and 0 are stored" in err
    assert "--recover-from-snapshots takes the newest snapshot" in out
    out, _ = kode(*IMPORT, "old.db", "--no-files", "--recover-from-snapshots", "--store", "sqlite:///new.db")
    assert f"imported 1 agent, {len(MESSAGES)} messages" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("import", "x.json", "--no-files"), "--no-files is not an option of --from openai-chat"),
        (("import", "--from", "kode-sdk", "x", "--prefix", "y"), "--prefix is not an option of --from kode-sdk"),
        (("import", "--from", "kode-sdk", "nowhere"), "there is no folder"),
        (("import", "--from", "sdk", "x"), "format 'sdk' is not known"),
    ],
)
def test_wrong_options(arguments: tuple[str, ...], says: str) -> None:
    out, err = kode(*arguments, code=2)
    assert says in out + err


async def test_an_import_that_is_killed_goes_on(tmp_path: Path) -> None:
    """Whenever it is killed, every agent is there whole or not at all, and a second run brings the rest."""
    for n in range(60):
        write(tmp_path / f"old/agt-{n:02}", agent_files(f"agt-{n:02}"))
    rng, counts = random.Random(7), []
    for _ in range(4):
        process = subprocess.Popen([*KODE, *IMPORT, "old", "--store", "sqlite:///new.db"], stdout=-3, stderr=-3)
        while not (tmp_path / "new.db").exists() and process.poll() is None:
            await asyncio.sleep(0.01)
        await asyncio.sleep(rng.uniform(0.0, 0.4))
        process.kill()
        process.wait()
        counts.append(len(await whole_agents(tmp_path)))
    assert counts == sorted(counts)
    kode(*IMPORT, "old", "--store", "sqlite:///new.db")
    assert len(await whole_agents(tmp_path)) == 60


async def whole_agents(folder: Path) -> list[Any]:
    async with create_extended_store(f"sqlite:///{folder}/new.db") as store:
        found = [await store.load_agent(agent_id) for agent_id in await store.list()]
        for one in found:
            assert one is not None
            assert (len(one.messages), len(one.events), len(one.snapshots), len(one.media_cache)) == (2, 4, 1, 1)
        return found
