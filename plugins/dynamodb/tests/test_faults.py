"""Networks fail: nothing acknowledged is lost, nothing is written twice, and every call ends in time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from kode_conformance.servers.faults import FaultProxy, Mode
from kode_conformance.servers.load import give_up
from kode_conformance.suite.network_tests import NEW, Link, NetworkTests
from kode_conformance.values import samples
from kode_dynamodb.testing.servers import KEY, SECRET, MotoServer

from kode_core import ExtendedStore, create_extended_store
from kode_core.errors import OutcomeUnknownError, Retry, StorageError


def opener(port: int, *, transactions: bool) -> Callable[..., Awaitable[ExtendedStore]]:
    settings = {"region": "us-east-1", "access_key_id": KEY, "secret_access_key": SECRET, "transactions": transactions}
    url = f"http://127.0.0.1:{port}"
    return lambda **how: create_extended_store(
        type="dynamodb", table="kode", endpoint_url=url, **{"max": 8, **settings, **how}
    )


@pytest.fixture(params=[True, False], ids=["transactions", "one by one"])
def transactions(request: pytest.FixtureRequest) -> bool:
    if not request.param and request.config.getoption("kode_tier") == "quick":
        pytest.skip("runs at --kode-tier standard")
    return bool(request.param)


class TestNetwork(NetworkTests):
    appends = 80

    @pytest.fixture
    async def link(self, own_moto: MotoServer, transactions: bool) -> AsyncIterator[Link]:
        with FaultProxy("127.0.0.1", own_moto.port, seed=5) as proxy:
            link = Link(
                proxy,
                opener(own_moto.port, transactions=transactions),
                opener(proxy.port, transactions=transactions),
            )
            await (await link.directly()).exists("a")  # the table is made before anything fails
            yield link
            await link.close()

    async def test_an_answer_that_is_lost_with_the_service_is_no_refusal(self, link: Link) -> None:
        """Any reply to a write is lost, and nobody can be asked: what says that nothing was written is right (F29)."""
        store, direct = await self.impatient_store(link, max=2), await link.directly()
        errors = []
        for attempt in range(40):  # on a busy machine a reply of another call may be the one that is lost
            skip, agent_id = attempt % 20, f"agent-{attempt}"
            await direct.append_messages(agent_id, [samples.message(text="old")])
            await store.exists(agent_id)
            link.proxy.cut_at(reply=b"", skip=skip, then=Mode.REFUSE)
            try:
                await store.append_messages(agent_id, [NEW])
            except StorageError as exc:
                errors.append(type(exc))
                if exc.retry is Retry.LATER:
                    assert len(await direct.load_messages(agent_id)) == 1, f"reply {skip} was lost: {exc}"
            link.proxy.cut_at()
            link.proxy.mode = Mode.FORWARD
            if link.proxy.counts.cut_at == skip and OutcomeUnknownError in errors:
                break
        assert OutcomeUnknownError in errors


async def test_calls_that_are_given_up_leave_nothing_behind(own_moto: MotoServer) -> None:
    """Cancelled at random: no connection and no lock is held, and others go on at once."""
    rng = random.Random(4)
    async with await opener(own_moto.port, transactions=True)() as store:
        await give_up(store, rng, 60)
        async with asyncio.timeout(20):
            await store.append_messages("a", [NEW])
            await store.append_messages("new", [NEW])
