"""Stores that take a write for another one that was equal, once it was in doubt (OPS-10)."""

from __future__ import annotations

import asyncio
from typing import Any

from kode_conformance.checks.doubt import doubtful
from kode_conformance.context import Context

from conformance.tests.zoo.base import mutant
from conformance.tests.zoo.witnesses import talk
from kode_core.errors import OutcomeUnknownError
from kode_core.store import EngineStore


async def _repeated_in_doubt(ctx: Context) -> object:
    store, doubt = await doubtful(ctx)
    await store.append_messages("a", talk("go on"))
    doubt.loses = True
    await asyncio.gather(store.append_messages("a", talk("go on")), return_exceptions=True)
    doubt.loses = False
    await store.append_messages("a", talk("go on"))
    return len(await store.load_messages("a"))


@mutant(
    "OPS-10",
    killed_by="a_doubtful_write_is_told_from_those_before_it",
    witness=_repeated_in_doubt,
    source="a key of idempotency that is a digest of what is written",
)
class TakesAnEarlierForTheDoubtful(EngineStore):
    """Leaves out a repeated append where the answer was lost and the list ends with the same, from an earlier call."""

    _open: tuple[str, Any] | None = None

    async def append_messages(self, agent_id: str, messages: Any, *, fence: Any = None) -> None:
        opened, self._open = self._open, None
        if opened == (agent_id, messages) and (await self.load_messages(agent_id))[-len(messages) :] == messages:
            return
        try:
            await super().append_messages(agent_id, messages, fence=fence)
        except OutcomeUnknownError:
            self._open = agent_id, messages
            raise
