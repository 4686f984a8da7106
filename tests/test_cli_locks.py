"""``kode locks``: it says which agents a worker holds, and leaves their locks as they were."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from kode_core import AgentInfo, create_extended_store
from tests.test_cli import KODE


async def kode(*arguments: str) -> tuple[int, str, str]:
    """Run the command while this process holds locks."""
    process = await asyncio.create_subprocess_exec(
        *KODE, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=dict(os.environ)
    )
    async with asyncio.timeout(120):
        out, err = await process.communicate()
    assert b"Traceback" not in err
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@pytest.mark.parametrize("kind", ["sqlite", "json"])
async def test_held_and_free_locks(tmp_path: Path, kind: str) -> None:
    """A held one is told by the status; a free one is free afterwards; its token is above all before."""
    url = {"sqlite": f"sqlite:///{tmp_path}/a.db", "json": f"json:///{tmp_path}/store"}[kind]
    async with create_extended_store(url) as store:
        for agent in ("held", "free"):
            await store.save_info(agent, AgentInfo(agent_id=agent, template_id="t"))
        async with store.acquire_agent_lock("free") as before:
            pass
        async with store.acquire_agent_lock("held", ttl_ms=120_000) as lease:
            code, out, err = await kode("locks", "held", "free", "nobody\x1b[31m", "--store", url)
            assert (code, err) == (1, "1 lock held\n")
            lines = [line.split() for line in out.splitlines()]
            assert lines[1:][0] == ["held", "held", "stored"]
            assert lines[2][:2] == ["free", "free"] and int(lines[2][2]) > before.token
            assert lines[3][0] == "nobody\\x1b[31m" and lines[3][-1] == "unknown"
            code, out, _ = await kode("locks", "free", "held", "free", "--json", "--store", url)
            found = json.loads(out)["locks"]
            assert code == 1
            assert [(one["agentId"], one["held"], one["exists"]) for one in found] == [
                ("free", False, True),
                ("held", True, True),
            ]
            assert found[1]["token"] is None
            await lease.renew()
        async with store.acquire_agent_lock("free") as after:
            assert after.token > found[0]["token"] > before.token


async def test_waiting_for_a_lock(tmp_path: Path) -> None:
    """With --wait the command ends when the worker releases the lock."""
    url = f"sqlite:///{tmp_path}/a.db"
    async with create_extended_store(url) as store:
        await store.save_info("a", AgentInfo(agent_id="a", template_id="t"))
        async with store.acquire_agent_lock("a", ttl_ms=120_000):
            waiting: Any = asyncio.create_task(kode("locks", "a", "--wait", "100", "--store", url))
            await asyncio.sleep(0.5)
            assert not waiting.done()
        code, out, _ = await waiting
        assert code == 0 and "free" in out


async def test_mistakes(tmp_path: Path) -> None:
    """Ids that no agent can have, and a store that does not exist, are told; nothing is created."""
    url = f"sqlite:///{tmp_path}/none.db"
    for arguments, problem in (
        (("locks", "", "--store", url), "agent_id"),
        (("locks", "x" * 300, "--store", url), "256 bytes"),
        (("locks", "a", "--store", url), "none.db"),
        (("locks", "--store", url), "Missing argument"),
    ):
        code, out, err = await kode(*arguments)
        assert code in (1, 2) and problem in err and out == ""
    assert list(tmp_path.iterdir()) == []
