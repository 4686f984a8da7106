"""Shared by the tests of the adapters of agent frameworks: stores of all backends, and processes that race or die."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Coroutine
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from kode_conformance import Space
from kode_conformance.harness import find_harness
from kode_conformance.servers import had
from kode_postgres.testing.servers import Server, shared_server

from tests.conftest import alone

__all__ = [
    "alone",
    "begin",
    "killed_in_its_tool",
    "place",
    "race",
    "ran",
    "said",
    "server",
    "shared_url",
    "started",
    "url",
]

# --- stores


@pytest.fixture(scope="session")
def server() -> Server:
    return had(shared_server)


@pytest.fixture(params=["memory", "json", "sqlite", "postgres", "mongo", "dynamodb"])
async def url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Any]:
    """A URL, or options, of an empty store of each kind."""
    kind = str(request.param)
    if kind == "postgres":
        server: Server = request.getfixturevalue("server")
        async with server.database() as name:
            yield server.url(name)
    elif kind in ("mongo", "dynamodb"):
        (point,) = entry_points(group="kode.conformance", name=kind)
        harness = point.load()()
        handle = await harness.provision(Space(f"fw_{secrets.token_hex(6)}", tmp_path))
        yield {"type": kind, **handle}
        await harness.destroy(handle)
    else:
        yield {
            "memory": "memory:",
            "json": f"json:///{tmp_path}/store",
            "sqlite": f"sqlite:///{tmp_path}/agents.db",
        }[kind]


@pytest.fixture
async def shared_url(url: Any) -> str:
    """A URL of a store that several processes can have; one is enough next to PostgreSQL, since processes take long."""
    if not isinstance(url, str) or not url.startswith(("sqlite:", "postgres")):
        pytest.skip("the memory of one process, or as SQLite")
    return url


@pytest.fixture(params=["sqlite", "json", "postgres"])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty store that several processes can have."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/agents.db"
    if request.param == "json":
        return f"json:///{tmp_path}/agents"
    harness = find_harness("postgres")
    handle = await harness.provision(Space(f"processes_{secrets.token_hex(6)}", tmp_path))
    return f"{handle['dsn']}{'&' if '?' in handle['dsn'] else '?'}schema={handle['schema']}"


# --- processes


def ran(*command: str) -> str:
    """What a Python program printed."""
    done = subprocess.run([sys.executable, "-W", "ignore", *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


async def killed_in_its_tool(worker: Path, url: str, question: str) -> None:
    """Start a worker, which says when it is in the tool, and kill it there."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "ignore", str(worker), url, question),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "HANG": "1"},
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"in the tool\n"
    process.kill()
    await process.wait()


async def started(worker: Path, task: str, url: str, *args: object) -> asyncio.subprocess.Process:
    """A process that is ready, and waits."""
    pipe = asyncio.subprocess.PIPE
    command = (sys.executable, "-W", "ignore", str(worker), task, url, *map(str, args))
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    assert process.stdout is not None
    assert await process.stdout.readline() == b"ready\n"
    return process


def begin(process: asyncio.subprocess.Process) -> None:
    assert process.stdin is not None
    process.stdin.write(b"\n")


async def race(*processes: Coroutine[Any, Any, asyncio.subprocess.Process]) -> list[list[dict[str, Any]]]:
    """What processes have acknowledged that began at once."""
    ready = await asyncio.gather(*processes)
    return await asyncio.gather(*(said(process) for process in ready))


async def said(process: asyncio.subprocess.Process) -> list[dict[str, Any]]:
    out, _ = await process.communicate(b"\n")
    assert process.returncode == 0
    return [json.loads(line) for line in out.splitlines()]
