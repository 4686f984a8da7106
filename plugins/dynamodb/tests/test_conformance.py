"""The DynamoDB backend passes the shared suite on both emulators."""

from __future__ import annotations

import pytest
from kode_conformance.testclass import StoreConformance, beyond
from kode_dynamodb.testing.harness import LocalHarness, MotoHarness
from kode_dynamodb.testing.servers import LocalServer, NoServerError, shared_server

MANY_RECORDS = (
    r"VAL-4|OPS-9|LIFE-2\.thousands|OPS-10|OPS-17|MSG-5|EVT-5|LOCK-6|FORK-3|HIS-1\.a_document_moves|QRY-1|DUR-3"
)
"""An emulator writes some two hundred items a second: these take ten seconds and more each."""


class TestMoto(StoreConformance):
    harness = MotoHarness()
    later = f"{MANY_RECORDS}|{beyond(2)}"


@pytest.fixture(scope="class")
def local() -> None:
    try:
        shared_server(LocalServer)
    except NoServerError as exc:
        pytest.skip(str(exc))


@pytest.mark.usefixtures("local")
class TestLocal(StoreConformance):
    """On this emulator a turn is written in a transaction; it does all else as the other one does."""

    harness = LocalHarness()
    later = rf"{MANY_RECORDS}|MSG-1\.|(?!TURN-1\.a_turn_writes_all){beyond(1)}"
