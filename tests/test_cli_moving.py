"""``kode export``, ``kode import`` of an archive and ``kode copy`` as their users run them, killed and under load."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from kode_core import copy_store, create_extended_store, export_archive, import_archive
from tests.moving_agents import agents, digests, fill, full
from tests.test_cli import KODE, kode

PROCESS = str(Path(__file__).with_name("moving_process.py"))
ROOT = Path(__file__).parents[1]


async def filled(url: str, number: int) -> dict[str, str]:
    async with create_extended_store(url) as store:
        await fill(store, *agents(number))
        return await digests(store)


async def of(url: str) -> dict[str, str]:
    async with create_extended_store(url) as store:
        return await digests(store)


@pytest.mark.parametrize("name", ["agents.jsonl", "agents.jsonl.zst", "agents.jsonl.gz"])
async def test_export_and_import(name: str, tmp_path: Path) -> None:
    whole = await filled("sqlite:///old.db", 12)
    out, err = kode("export", name, "--store", "sqlite:///old.db", "--report", "out.jsonl")
    assert out.startswith("exported 12 agents, ") and err == ""
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 12
    _, err = kode("export", name, "--store", "sqlite:///old.db", code=2)
    assert "exists already; an export does not overwrite" in err
    dry, err = kode("import", name, "--store", "json:///new", "--dry-run", "--report", "dry.jsonl")
    assert (dry, err) == (out.replace("exported", "would import"), "") and not (tmp_path / "new").exists()
    lines = [json.loads(line) for line in (tmp_path / "dry.jsonl").read_text().splitlines()]
    assert [(line["outcome"], line["digest"]) for line in lines] == [("importable", whole[i]) for i in sorted(whole)]
    out, err = kode("import", name, "--store", "json:///new")
    assert out.startswith("imported 12 agents, ") and err == ""
    out, _ = kode("import", name, "--store", "json:///new")
    assert out == "imported 0 agents; 12 agents were there already\n"
    assert await of("json:///new") == whole
    async with create_extended_store("json:///new") as store:
        await store.update_info("agt-0003", {"x": 1})
    out, err = kode("import", name, "--store", "json:///new", code=1)
    assert "refused agt-0003: the target has an agent of that id with other records" in err
    assert kode("import", name, "--store", "json:///new", "--existing", "skip")[0].endswith("; 1 agent was skipped\n")
    assert kode("import", name, "--store", "json:///new", "--replace")[0].startswith("imported 1 agent, ")
    assert await of("json:///new") == whole


async def test_pipes_and_filters() -> None:
    whole = await filled("sqlite:///old.db", 12)
    command = [*KODE, "export", "-", "--store", "sqlite:///old.db", "--prefix", "agt-000"]
    exported = subprocess.run(command, capture_output=True, check=True)
    assert (
        b"exported 10 agents" in exported.stderr and json.loads(exported.stdout.splitlines()[0])["backend"] == "sqlite"
    )
    assert json.loads(exported.stdout.splitlines()[0])["filters"] == {"prefix": "agt-000"}
    command = [*KODE, "import", "-", "--store", "sqlite:///new.db"]
    done = subprocess.run(command, input=exported.stdout, capture_output=True, check=True)
    assert done.stdout.startswith(b"imported 10 agents, ")
    there = await of("sqlite:///new.db")
    assert len(there) == 10 and there.items() < whole.items()
    cut = subprocess.run(command, input=exported.stdout[:-20_000], capture_output=True, check=False)
    assert cut.returncode == 2 and b"the archive is cut short" in cut.stderr and b"until then" in cut.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("import", "a.jsonl", "--prefix", "x"), "--prefix is not an option of --from archive"),
        (("import", "a.jsonl", "--from", "openai-chat", "--existing", "skip"), "--existing is not an option of --from"),
        (("import", "a.jsonl", "--existing", "merge"), "existing must be one of refuse, skip, replace"),
        (("import", "a.jsonl", "--existing", ""), "existing must be one of refuse, skip, replace"),
        (("import", "a.jsonl", "--existing", "skip", "--replace"), "--existing says what --replace says"),
        (("import", "future.jsonl"), "the archive has format 7"),
        (("import", "--from", "archive", "b.jsonl"), "no header of an archive"),
        (("import", "--from", "archive", "none.jsonl"), "cannot be read"),
        (("export", "b.jsonl", "--format", "xml"), "known are jsonl and parquet"),
        (("copy", "sqlite:///old.db", "sqlite:///./old.db"), "the same store"),
        (("copy", "sqlite:///none.db", "sqlite:///new.db"), "there is no sqlite store"),
        (("copy", "sqlite:///old.db", "sqlite:///new.db", "--delete", "--user", "u"), "delete goes with the filters"),
        (
            ("copy", "sqlite:///old.db", "sqlite:///new.db", "--existing", "merge", "--report", "out.jsonl"),
            "existing must be one of refuse, skip, replace",
        ),
        (("copy", "sqlite:///old.db", "sqlite:///new.db", "--at-once", "0"), "greater than or equal to 1"),
    ],
)
async def test_wrong_options(arguments: tuple[str, ...], says: str, tmp_path: Path) -> None:
    await filled("sqlite:///old.db", 1)
    (tmp_path / "b.jsonl").write_text("{}\n")
    (tmp_path / "a.jsonl").write_text('{"kode":"archive","format":1}\n')
    (tmp_path / "future.jsonl").write_text('{"kode":"archive","format":7}\n')
    _, err = kode(*arguments, code=2)
    assert says in " ".join(err.replace("│", " ").split())
    assert not (tmp_path / "data").exists()
    assert not (tmp_path / "new.db").exists()
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.skipif(os.name == "nt", reason="pipes have no names there")
@pytest.mark.parametrize("form", [(), ("--from", "archive")])
def test_a_source_that_is_a_pipe(form: tuple[str, ...], tmp_path: Path) -> None:
    """It would be looked at, and then read without what was seen; nobody waits for its other end."""
    os.mkfifo(tmp_path / "pipe")
    _, err = kode("import", "pipe", *form, "--store", "sqlite:///new.db", code=2)
    assert err.startswith("error: pipe is a pipe or a device, and would be read twice: write it into a file, or give -")
    assert not (tmp_path / "new.db").exists()


async def test_a_copy_of_an_agent_that_is_not_there(tmp_path: Path) -> None:
    """It is refused before the target is made; --delete may be for its sake, and says so."""
    await filled("sqlite:///old.db", 3)
    two = ("--agent", "agt-0001", "--agent", "agt-001")
    out, err = kode("copy", "sqlite:///old.db", "json:///new", *two, code=2)
    assert out == "" and err.startswith("error: no agent 'agt-001' in this store; did you mean 'agt-000")
    assert not (tmp_path / "new").exists()
    kode("copy", "sqlite:///old.db", "json:///new")
    kode("delete", "agt-0002", "--yes", "--store", "sqlite:///old.db")
    out, err = kode("copy", "sqlite:///old.db", "json:///new", "--agent", "agt-0002", "--delete")
    assert out.startswith("copied 0 agents") and "1 agent was deleted" in out
    assert err.startswith("no agent 'agt-0002' in this store")
    assert (await of("json:///new")).keys() == {"agt-0000", "agt-0001"}


async def test_copy_and_its_exit_codes(tmp_path: Path) -> None:
    whole = await filled("sqlite:///old.db", 6)
    out, err = kode("copy", "sqlite:///old.db", "json:///new", "--verify")
    assert out.splitlines()[1:] == ["compared both stores: 6 agents equal", "both stores are equal"] and err == ""
    assert await of("json:///new") == whole
    with closing(sqlite3.connect(tmp_path / "old.db")) as con, con:
        assert con.execute("UPDATE kode_messages SET body = 'x' || body WHERE agent_id = 'agt-0002'").rowcount
    out, err = kode("copy", "sqlite:///old.db", "sqlite:///other.db", "--report", "r.jsonl", "--verify", code=1)
    assert out.startswith("copied 5 agents, ") and out.endswith("the stores are not equal\n")
    assert "damaged agt-0002: " in err and "1 agent left out, see above" in err
    outcomes = [json.loads(line)["outcome"] for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert sorted(outcomes) == ["copied"] * 5 + ["damaged"]
    async with create_extended_store("json:///new") as store:
        await fill(store, full("alone"))
    out, _ = kode("copy", "sqlite:///old.db", "json:///new", "--delete", code=1)
    assert out == "copied 0 agents; 5 agents were there already; 1 agent was deleted\n"


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize("by", ["copy", "import"])
async def test_kill_at_every_commit_loses_and_doubles_nothing(by: str, tmp_path: Path) -> None:
    """After each kill every agent is whole or absent, a replaced one never absent, and the next run brings the rest."""
    whole = await filled("sqlite:///old.db", 3)
    async with create_extended_store("sqlite:///old.db") as store:
        await export_archive(store, tmp_path / "old.jsonl")
    source = "old.jsonl" if by == "import" else "sqlite:///old.db"
    for number, after in ((1, "before"), (2, "before"), (2, "after"), (3, "before"), (3, "after"), (99, "before")):
        target = f"sqlite:///{by}-{after}-{number}.db"
        async with create_extended_store(target) as store:  # one to replace, and one to delete by a copy
            await fill(store, full("agt-0001", todos=None), full("extra"))
            before = await digests(store)
        command = (sys.executable, PROCESS, "killed", source, target, str(number), after)
        done = subprocess.run(command, env=environment(), capture_output=True, check=False)
        assert done.returncode == (0 if number == 99 else -signal.SIGKILL), done.stderr
        there = (await of(target)).items()
        assert there <= whole.items() | before.items() and "agt-0001" in dict(there)
        async with create_extended_store(target) as new:
            if by == "import":
                report = await import_archive(new, source, existing="replace")
            else:
                async with create_extended_store(source) as old:
                    report = await copy_store(old, new, existing="replace", delete=True)
            assert report.is_whole and report.outcomes.get("known", 0) == len(there & whole.items())
            assert await digests(new) == whole | ({"extra": before["extra"]} if by == "import" else {})


async def lines_until(process: asyncio.subprocess.Process, text: str) -> list[str]:
    assert process.stdout is not None
    found = list[str]()
    while not (found and text in found[-1]):
        line = await asyncio.wait_for(process.stdout.readline(), 300)
        assert line, found
        found.append(line.decode())
    return found


async def begun(*command: str) -> asyncio.subprocess.Process:
    pipe: Any = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, env=environment())


async def test_a_live_copy_of_agents_that_another_process_writes() -> None:
    """A service moves: it writes twenty agents all the time, stops, and the copy is equal; kill -9 on the way."""
    await filled("sqlite:///old.db", 5)
    writer = await begun(sys.executable, PROCESS, "writer", "sqlite:///old.db")
    copy = (*KODE, "copy", "sqlite:///old.db", "json:///new", "--live", "--existing", "replace", "--delete", "--verify")
    try:
        await lines_until(writer, "begun")
        first = await begun(*copy)
        await lines_until(first, "changed")
        first.kill()
        await first.wait()
        second = await begun(*copy, "--interval", "0.1")
        for _ in range(2):
            await lines_until(second, "changed")
        assert writer.stdin is not None
        writer.stdin.write(b"\n")
        await writer.wait()
        second.send_signal(signal.SIGINT)
        assert second.stdout is not None
        out = (await asyncio.wait_for(second.stdout.read(), 300)).decode()
        assert await second.wait() == 0, out
        assert out.endswith("both stores are equal\n")
        old = await of("sqlite:///old.db")
        assert await of("json:///new") == old and len(old) >= 20
    finally:
        for process in (writer,):
            if process.returncode is None:
                process.kill()
                await process.wait()


async def test_a_signal_ends_the_pause_of_a_live_copy() -> None:
    await filled("sqlite:///old.db", 2)
    process = await begun(*KODE, "copy", "sqlite:///old.db", "sqlite:///new.db", "--live", "--interval", "60")
    await lines_until(process, "changed")
    process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(process.wait(), 120) == 0
    assert await of("sqlite:///new.db") == await of("sqlite:///old.db")


_LIMITED = """
import resource, sys
from kode_core.cli import main

resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
sys.argv = ["kode", "import", "many.json.gz", "--dry-run"]
main()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps this limit")
def test_a_file_that_takes_more_memory_than_there_is() -> None:
    """A small file may unfold to millions of conversations: the command ends with one line and without a traceback."""
    with gzip.open("many.json.gz", "wb", compresslevel=1) as file:
        file.write(b"[" + b"0," * 20_000_000 + b"0]")
    done = subprocess.run([sys.executable, "-c", _LIMITED], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: there is not enough memory") and done.stderr.count("\n") == 1
