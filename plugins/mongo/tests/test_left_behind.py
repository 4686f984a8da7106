"""What killed processes leave in a database, and its removal."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest
from kode_conformance.suite.left_behind import KINDS, check_beside_writers, check_repair
from kode_mongo import MongoStore
from kode_mongo.testing.servers import Server


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_killed_process_left_is_named_and_removed(
    kind: str, server: Server, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By ``kode doctor`` and its ``--repair``."""
    config = {"type": "mongo", "uri": server.uri, "database": database}
    parts = urlsplit(server.uri)
    check_repair(kind, config, parts._replace(path=f"/{database}").geturl(), monkeypatch)


async def test_a_repair_harms_no_writer(server: Server, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it does meanwhile."""
    await check_beside_writers(lambda: MongoStore(server.uri, database=database), monkeypatch)
