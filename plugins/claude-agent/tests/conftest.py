"""Stores of all backends for the tests of session stores."""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from kode_conformance.harness import Space, find_harness

from tests.adapter_tests import place

__all__ = ["place"]

BACKENDS = ["memory", "json", "sqlite", "postgres", "mongo", "dynamodb"]
_numbers = itertools.count()


@pytest.fixture(params=BACKENDS)
async def stores(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Any]:
    """Opens empty stores of each backend, on a server that the harness starts."""
    harness, opened = find_harness(request.param), list[Any]()

    async def open_store() -> Any:
        number = next(_numbers)
        folder = tmp_path / str(number)
        folder.mkdir()
        handle = await harness.provision(Space(f"claude{os.getpid()}_{number}", folder))
        opened.append((await harness.open(handle), handle))
        return opened[-1][0]

    yield open_store
    for store, handle in opened:
        await store.close()
        await harness.destroy(handle)


@pytest.fixture
async def store(stores: Any) -> Any:
    """An open store of each backend."""
    return await stores()


@pytest.fixture
def url(tmp_path: Path) -> str:
    """The address of an SQLite store."""
    return f"sqlite:///{tmp_path}/agents.db"
