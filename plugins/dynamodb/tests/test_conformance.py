"""The DynamoDB backend passes the shared suite on both emulators."""

from __future__ import annotations

import pytest
from kode_conformance.testclass import StoreConformance
from kode_dynamodb.servers import LocalServer, NoServerError, shared_server
from kode_dynamodb.testing import LocalHarness, MotoHarness

MANY_RECORDS = (
    r"LIFE-2.thousands|LIFE-5.delete_many|FORK-1|MSG-5.saving_costs|MSG-8.random|MSG-1.readers_see|EVT-5|EVT-1.conc"
    r"|LOCK-6|VAL-4|QRY-4.a_large|QRY-5.cursors_give|VAL-1.any_json|VAL-1.random|VAL-2.what_json|QRY-2.any_text"
    r"|OPS-9.a_write_beyond"
)
"""An emulator writes some two hundred items a second: these take most of the time."""
ALL_BUT_TRANSACTIONS = r"(?!TURN|LOCK-1|DUR-1|MSG-1|OPS-1)"
"""Both emulators do the same; on this one a turn is written in a transaction."""


class TestMoto(StoreConformance):
    harness = MotoHarness()
    later = MANY_RECORDS


@pytest.fixture(scope="class")
def local() -> None:
    try:
        shared_server(LocalServer)
    except NoServerError as exc:
        pytest.skip(str(exc))


@pytest.mark.usefixtures("local")
class TestLocal(StoreConformance):
    harness = LocalHarness()
    later = ALL_BUT_TRANSACTIONS
