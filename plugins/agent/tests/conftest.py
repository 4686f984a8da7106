"""Stores for the tests of the agent."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kode_core import ExtendedStore, create_extended_store


@pytest.fixture(params=["memory", "sqlite", "json"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ExtendedStore]:
    urls = {"memory": "memory:", "sqlite": f"sqlite:///{tmp_path}/a.db", "json": f"json:///{tmp_path}/a"}
    async with create_extended_store(urls[request.param]) as opened:
        yield opened
