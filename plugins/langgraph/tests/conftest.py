"""Places for stores of every backend, on servers that the harnesses start."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from kode_conformance import Space
from kode_conformance.servers import had
from kode_langgraph import KodeSaver


def place(kind: str, folder: Path) -> tuple[dict[str, Any], Any]:
    """The options of an empty store of a kind, and a function that removes it."""
    if kind == "memory":
        return {"type": "memory", "name": secrets.token_hex(8)}, lambda: None
    if kind == "json":
        return {"type": "json", "base_dir": str(folder / "json")}, lambda: None
    if kind == "sqlite":
        return {"type": "sqlite", "db_path": str(folder / "agents.db")}, lambda: None
    (point,) = entry_points(group="kode.conformance", name=kind)
    harness = point.load()()
    space = Space(f"lg_{secrets.token_hex(6)}", folder)
    handle = had(lambda: asyncio.run(harness.provision(space)), optional=False)
    return {"type": kind, **handle}, lambda: asyncio.run(harness.destroy(handle))


@pytest.fixture(params=["memory", "json", "sqlite", "postgres", "mongo", "dynamodb"])
def options(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """The options of an empty store, of each backend in turn."""
    given, remove = place(request.param, tmp_path)
    yield given
    remove()


@pytest.fixture(params=["sqlite", "postgres"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """The options of an empty store that several processes may use."""
    given, remove = place(request.param, tmp_path)
    yield given
    remove()


@pytest.fixture
def sqlite(tmp_path: Path) -> dict[str, Any]:
    """The options of an empty SQLite store."""
    return place("sqlite", tmp_path)[0]


@pytest.fixture
def saver(sqlite: dict[str, Any]) -> Iterator[KodeSaver]:
    """A saver on SQLite."""
    with KodeSaver.from_url(**sqlite) as opened:
        yield opened
