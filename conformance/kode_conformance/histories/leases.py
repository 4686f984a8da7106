"""The actions of histories on the locks of agents, and their required results (LOCK-1 to LOCK-5)."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable
from typing import Any, ClassVar, Final

from kode_conformance.context import Context
from kode_conformance.histories.model import AgentModel
from kode_conformance.histories.steps import Step
from kode_core.errors import LockLostError, LockUnavailableError
from kode_core.protocols import Lease

__all__ = ["Held", "Leases"]

_LONG_MS: Final = 120_000
_SHORT_MS: Final = 40


class Held:
    """A lease, and the store that gave it; the agent when the lock was taken, and its highest seq then."""

    def __init__(self, lease: Lease, via: int) -> None:
        self.lease = lease
        self.via = via
        self.has_ended = False
        self.agent: AgentModel | None = None
        self.highest = -1


class Leases:
    """All leases of a history, by agent; of each at most one has not ended."""

    OPS: ClassVar = frozenset({"acquire", "release", "release_old", "lapse"})

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._all: defaultdict[str, list[Held]] = defaultdict(list)
        self._tokens: dict[str, int] = {}

    async def do(self, step: Step, agent_id: str, stores: list[Any]) -> None:
        """Take the action of a step."""
        if step.op == "acquire":
            await self._acquire(agent_id, step.via, stores)
        elif step.op == "lapse":
            await self._lapse(agent_id, step.via, stores)
        else:
            wanted = [one for one in self._all[agent_id] if one.has_ended == (step.op == "release_old")]
            if wanted:
                await wanted[-1].lease.release()
                wanted[-1].has_ended = True

    async def _acquire(self, agent_id: str, via: int, stores: list[Any]) -> None:
        if self._holder(agent_id) is not None:
            call = stores[via].acquire_agent_lock(agent_id, ttl_ms=_LONG_MS)
            await self._ctx.raises(LockUnavailableError, call, "acquiring a lock that is held")
            return
        self._got(agent_id, via, await stores[via].acquire_agent_lock(agent_id, ttl_ms=_LONG_MS))

    async def _lapse(self, agent_id: str, via: int, stores: list[Any]) -> None:
        """Take a lease and let its time pass; then the other store takes the lock."""
        if self._holder(agent_id) is not None:
            return
        self._got(agent_id, via, await stores[via].acquire_agent_lock(agent_id, ttl_ms=_SHORT_MS))
        await asyncio.sleep(_SHORT_MS * 1.5 / 1000)
        self._all[agent_id][-1].has_ended = True
        other = len(stores) - 1 - via
        self._got(agent_id, other, await stores[other].acquire_agent_lock(agent_id, ttl_ms=_LONG_MS, wait_ms=20_000))

    def _got(self, agent_id: str, via: int, lease: Lease) -> None:
        before = self._tokens.get(agent_id)
        self._ctx.true(
            before is None or lease.token > before, f"the token of a lease is {lease.token}, and the last was {before}"
        )
        self._ctx.equal(lease.agent_id, agent_id, "the agent of the lease")
        self._tokens[agent_id] = lease.token
        self._all[agent_id].append(Held(lease, via))

    def _holder(self, agent_id: str) -> Held | None:
        return next((one for one in self._all[agent_id] if not one.has_ended), None)

    def fence(self, which: str, agent_id: str) -> Held | None:
        """The last lease that is ``held`` or has ``ended``."""
        wanted = [one for one in self._all[agent_id] if one.has_ended == (which == "ended")] if which else []
        return wanted[-1] if wanted else None

    async def refused(self, call: Awaitable[object], op: str) -> None:
        """A write under a lease that has ended."""
        await self._ctx.raises(LockLostError, call, f"{op} under a lease that has ended")

    async def release_all(self, via: int | None = None) -> None:
        """Release all leases, or the leases from one store."""
        for held in self._all.values():
            for one in held:
                if via in (None, one.via) and not one.has_ended:
                    await one.lease.release()
            held[:] = [one for one in held if via not in (None, one.via)]
