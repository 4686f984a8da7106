"""The stores that the tests run on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from kode_adk import KodeSessionService

from tests.adapter_tests import alone, server, shared_url, url

__all__ = ["alone", "server", "shared_url", "url"]


@pytest.fixture
async def service(url: Any) -> AsyncIterator[KodeSessionService]:
    async with KodeSessionService(url) as service:
        yield service
