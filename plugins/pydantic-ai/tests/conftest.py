"""The stores that the tests run on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from kode_pydantic_ai import KodeConversationStore

from tests.adapter_tests import alone, server, shared_url, url

__all__ = ["alone", "server", "shared_url", "url"]


@pytest.fixture
async def store(url: Any) -> AsyncIterator[KodeConversationStore]:
    async with KodeConversationStore(url) as store:
        yield store
