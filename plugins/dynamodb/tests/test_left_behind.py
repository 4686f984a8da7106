"""What killed processes leave in a table, and its removal."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlencode

import pytest
from kode_conformance.suite.left_behind import KINDS, check_beside_writers, check_repair
from kode_dynamodb import DynamoDBOptions, DynamoDBStore
from kode_dynamodb.testing.servers import KEY, SECRET


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_killed_process_left_is_named_and_removed(
    kind: str, moto: DynamoDBOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By ``kode doctor`` and its ``--repair``."""
    given = {"endpoint_url": moto.endpoint_url, "access_key_id": KEY, "secret_access_key": SECRET}
    config = {"type": "dynamodb", "region": "us-east-1", "table": moto.table, **given}
    check_repair(kind, config, f"dynamodb://us-east-1/{moto.table}?{urlencode(given)}", monkeypatch)


async def test_a_repair_harms_no_writer(
    moto_store: Callable[..., DynamoDBStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it does meanwhile."""
    await check_beside_writers(moto_store, monkeypatch)
