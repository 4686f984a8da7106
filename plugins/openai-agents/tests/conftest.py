"""Stores of all backends, and the scripted model server, for the tests of sessions."""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from kode_agent.testing import ScriptedServer
from kode_conformance.harness import Space, find_harness

from tests.adapter_tests import place

__all__ = ["place"]

BACKENDS = ["memory", "json", "sqlite", "postgres", "mongo", "dynamodb"]
_numbers = itertools.count()


@pytest.fixture(params=BACKENDS)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Any]:
    """An open store of each backend, on a server that the harness starts."""
    harness = find_harness(request.param)
    handle = await harness.provision(Space(f"openai{os.getpid()}_{next(_numbers)}", tmp_path))
    opened: Any = await harness.open(handle)
    yield opened
    await opened.close()
    await harness.destroy(handle)


@pytest.fixture
def url(tmp_path: Path) -> str:
    """The address of an SQLite store."""
    return f"sqlite:///{tmp_path}/agents.db"


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Starts a scripted server, which the SDK finds by its environment."""
    started: list[ScriptedServer] = []

    def serve(script: Any) -> ScriptedServer:
        server = ScriptedServer(script)
        server.__enter__()
        started.append(server)
        monkeypatch.setenv("OPENAI_BASE_URL", server.openai_url)
        monkeypatch.setenv("OPENAI_API_KEY", "none")
        monkeypatch.setenv("OPENAI_AGENTS_DISABLE_TRACING", "1")
        return server

    yield serve
    for server in started:
        server.__exit__(None, None, None)
