"""Moves, prunes and rekeys that are killed at any moment: started again, they end as if nothing had happened.

``KODE_TEST_KILLS`` is the number of kills for each; the moments are drawn from ``KODE_TEST_SEED``.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from kode_conformance import Space

from kode_core import (
    AgentInfo,
    ExtendedStore,
    Message,
    copy_store,
    create_extended_store,
    export_archive,
    import_archive,
    now_ms,
    verify_copy,
)
from kode_core.layers.encryption import encrypted
from kode_core.model import AgentEvent, Bookmark, Timeline
from kode_core.rekeying import rekey
from kode_core.retention import RetentionPolicy, apply_retention

pytestmark = pytest.mark.skipif(os.name != "posix", reason="SIGKILL")

KILLS: Final = int(os.environ.get("KODE_TEST_KILLS", "3"))
SEED: Final = os.environ.get("KODE_TEST_SEED", "1")
AGENTS: Final = 60
OLD, NEW = {"old": b"\1" * 32}, {"new": b"\2" * 32, "old": b"\1" * 32}
T0: Final = 1_735_689_600_000

_PROCESS = """
import ast, asyncio, sys
from tests.test_moving_killed import work
print("begun", flush=True)
asyncio.run(work(sys.argv[1], *map(ast.literal_eval, sys.argv[2:])))
"""


def at(given: Any, **more: Any) -> Any:
    return create_extended_store(dict(given), **more)


async def work(name: str, source: Any, target: Any, archive: str) -> None:
    """The work of the process that is killed, and of the one that goes on."""
    if name == "copy":
        async with at(source) as old, at(target) as new:
            await copy_store(old, new, existing="replace", delete=True)
    elif name == "live":
        async with at(source) as old, at(target) as new:
            await copy_store(old, new, existing="replace", delete=True, until=asyncio.Event(), interval_s=0.01)
    elif name == "export":
        Path(archive).unlink(missing_ok=True)
        async with at(source) as old:
            await export_archive(old, archive)
    elif name == "import":
        async with at(target) as new:
            await import_archive(new, archive)
    elif name == "prune":
        async with at(target) as store:
            policies = [
                RetentionPolicy(name="gone", prefix="agt-00", delete_after="1d"),
                RetentionPolicy(name="events", keep_events="1d"),
            ]
            await apply_retention(store, policies, now=now_ms() + 3 * 86_400_000)
    else:
        async with at(target, layers=[encrypted(NEW)]) as store:
            await rekey(store)


async def fill(store: ExtendedStore) -> None:
    for i in range(AGENTS):
        agent_id = f"agt-{i:03}"
        info = AgentInfo(agent_id=agent_id, template_id="t", created_at=T0)
        messages = [Message.user(f"{agent_id} {n} " + "x" * 200) for n in range(20)]
        events = [Timeline(n, Bookmark(n, T0 + n), AgentEvent("progress", "x", {"n": n})) for n in range(20)]
        await store.save_turn(agent_id, append=messages, info=info, events=events)
        await store.put_document(agent_id, "c", "k", i)


def killed_after(seconds: float, name: str, *arguments: Any) -> None:
    """Run the work in a process, and kill it that long after it has begun; a work that was faster has ended well."""
    command = [sys.executable, "-c", _PROCESS, name, *map(repr, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        _, err = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), err.decode()


@asynccontextmanager
async def stores(backend: str, tmp_path: Path) -> AsyncIterator[tuple[Any, Any]]:
    """What opens two empty stores, as mappings of literals."""
    if backend == "sqlite":
        yield ({"type": "sqlite", "db_path": f"{tmp_path}/{name}.db"} for name in ("a", "b"))  # type: ignore[misc]
        return
    from kode_postgres.testing.harness import PostgresHarness

    harness, handles = PostgresHarness(), []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        handles.append(await harness.provision(Space(f"killed_{name}", tmp_path / name)))
    try:
        yield tuple({"type": "postgres", **handle} for handle in handles)  # type: ignore[misc]
    finally:
        for handle in handles:
            await harness.destroy(handle)


@pytest.mark.parametrize("name", ["copy", "live", "export", "import", "prune", "rekey"])
@pytest.mark.parametrize("backend", ["sqlite", "postgres"])
async def test_a_killed_work_is_begun_again(backend: str, name: str, tmp_path: Path) -> None:
    """The work that goes on after three kills leaves nothing behind and misses nothing; a live copy ends as a copy."""
    rng, archive = random.Random(f"{SEED} {backend} {name}"), tmp_path / "a.jsonl"
    layers = [encrypted(OLD)] if name == "rekey" else []
    async with stores(backend, tmp_path) as (source, target):
        async with at(source) as old:
            await fill(old)
            if name == "import":
                await export_archive(old, archive)
            if name in ("prune", "rekey"):
                async with at(target, layers=layers) as new:
                    await copy_store(old, new)
        for _ in range(KILLS):
            killed_after(rng.uniform(0.05, 1.2), name, source, target, str(archive))
        for _ in range(40):  # the locks of a killed prune end after a while
            await work("copy" if name == "live" else name, source, target, str(archive))
            if name != "prune":
                break
            async with at(target) as new:
                left = await new.list("agt-00")
            if not left:
                break
            time.sleep(1)
        async with at(source) as old, at(target, layers=[encrypted(NEW)] if name == "rekey" else []) as new:
            await judge(name, old, new, archive, tmp_path)


async def judge(name: str, old: ExtendedStore, new: ExtendedStore, archive: Path, tmp_path: Path) -> None:
    """The end is that of a work that nothing interrupted."""
    if name in ("copy", "live", "import"):
        report = await verify_copy(old, new)
        assert (report.verified, report.differences) == (AGENTS, ())
    elif name == "export":
        assert not list(tmp_path.glob(".*.part"))
        report = await import_archive(new, archive)
        assert report.outcomes == {"copied": AGENTS}
    elif name == "prune":
        there = await new.list()
        assert there == [f"agt-{i:03}" for i in range(10, AGENTS)]
        for agent_id in there:
            assert len(await new.load_messages(agent_id)) == 20
            assert [event.bookmark.seq async for event in new.read_events(agent_id)] == [19]
    else:
        assert (await rekey(new, dry_run=True)).left == {}
        for agent_id in await new.list():
            messages = [one.text.split()[1] for one in await new.load_messages(agent_id)]
            assert messages == [str(n) for n in range(20)]
            assert len([event async for event in new.read_events(agent_id)]) == 20
    if name != "export":
        assert (await new.check_consistency()).issues == ()
