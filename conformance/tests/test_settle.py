"""Stores whose queries lag behind (QRY-8): right when the harness waits for them, wrong when it does not."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest
from kode_conformance import Capability, Handle, Space, StoreHarness, Violation, load_checks, run_check
from kode_conformance.context import Unverified
from kode_conformance.dimensions import Dimension
from kode_conformance.settings import Tier

from kode_core import Store
from kode_core.backends.memory.engine import MemoryEngine, MemorySpace
from kode_core.batch import Totals
from kode_core.engine import Engine
from kode_core.layers import Layer
from kode_core.query import AgentStats, RowQuery, SessionQuery
from kode_core.store import EngineStore


class Place:
    """A database and its replica."""

    def __init__(self) -> None:
        self.space = MemorySpace()
        self.catch_up()

    def catch_up(self) -> None:
        space, copied = self.space, MemorySpace()
        copied.states, copied.leases, copied.counter = copy.deepcopy((space.states, space.leases, space.counter))
        self.replica = MemoryEngine(copied)


class Lagging(Layer):
    """Asks the replica where the contract lets a backend lag."""

    def __init__(self, place: Place) -> None:
        super().__init__(MemoryEngine(place.space))
        self._place = place

    async def agent_ids(self, prefix: str, after: str | None, limit: int) -> Sequence[str]:
        return await self._place.replica.agent_ids(prefix, after, limit)

    async def find_sessions(self, query: SessionQuery) -> Any:
        return await self._place.replica.find_sessions(query)

    async def find_rows(self, query: RowQuery) -> Any:
        return await self._place.replica.find_rows(query)

    async def stats(self, agent_id: str) -> AgentStats:
        return await self._place.replica.stats(agent_id)

    async def totals(self) -> Totals:
        return await self._place.replica.totals()


class ImpatientHarness(StoreHarness):
    """Does not say that the store lags."""

    name = "lagging"
    lacks = frozenset({"CROSS_PROCESS", "PERSISTENT"})

    def __init__(self) -> None:
        self.places: dict[str, Place] = {}

    async def provision(self, space: Space) -> Handle:
        self.places[space.name] = Place()
        return {"name": space.name}

    async def open(self, handle: Handle) -> Store:
        async def engine() -> Engine:
            return Lagging(self.places[handle["name"]])

        return await EngineStore(engine).open()


class PatientHarness(ImpatientHarness):
    """Says how to wait."""

    async def wait_until_queries_see_all(self, handle: Handle) -> None:
        self.places[handle["name"]].catch_up()


OUT_OF_REACH = Capability.PERSISTENT | Capability.CROSS_PROCESS
CHECKS = {
    check.id: check
    for check in load_checks()
    if check.clauses[0].startswith(("QRY", "LIFE", "MSG-6", "OPS-3"))
    and check.tier is Tier.QUICK
    and not check.needs & OUT_OF_REACH
    and Dimension.COSTS not in check.under  # the replica is a copy in this process, and counts as memory of the store
}


@pytest.mark.parametrize("check_id", CHECKS)
def test_a_lag_that_is_declared_is_waited_for(check_id: str) -> None:
    """With the hook the store passes what is checked of queries and lifecycle."""
    with suppress(Unverified):
        run_check(CHECKS[check_id], PatientHarness())


def test_a_lag_that_is_not_declared_is_found() -> None:
    """Without the hook it does not."""
    with pytest.raises(Violation, match="QRY-2"):
        run_check(CHECKS["QRY-2.session_filters_select"], ImpatientHarness())
