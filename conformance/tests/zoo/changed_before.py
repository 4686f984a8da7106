"""Stores that guess after doubt and outages, by equal records, earlier records, or failed calls (OPS-7, OPS-10)."""

from __future__ import annotations

import asyncio
from typing import Any

from kode_conformance.checks.doubt import doubtful
from kode_conformance.checks.isolation import troubled
from kode_conformance.context import Context
from kode_conformance.values import samples

from conformance.tests.zoo.base import OnJson, mutant
from conformance.tests.zoo.witnesses import talk
from kode_core.backends.json_files.folder import Folder
from kode_core.batch import ListKind
from kode_core.codec import decode
from kode_core.errors import OutcomeUnknownError
from kode_core.layers import Layer
from kode_core.model import Message
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


async def _read_after_giving_up(ctx: Context) -> object:
    store, trouble = await troubled(ctx)
    await store.save_messages("a", talk("1"))
    await store.delete("a")
    trouble.hanging = {"a"}
    call = asyncio.ensure_future(store.append_messages("a", talk("2")))
    await asyncio.sleep(0.02)
    call.cancel()
    await asyncio.wait([call], timeout=0.01)
    read = asyncio.ensure_future(store.load_messages("a"))
    await asyncio.sleep(0.02)
    trouble.hanging = set()
    trouble.let_go.set()
    return len(await read)


@mutant(
    "OPS-9",
    killed_by="a_write_that_goes_on_is_waited_for_whatever_was_before",
    witness=_read_after_giving_up,
    source="a table of what is under way by agent, from which a delete takes the agent",
)
class WaitsForNothingOfTheDeleted(EngineStore):
    """Reads the messages of an agent that it deleted once without waiting for a write that goes on."""

    def __init__(self, opener: Any, **options: Any) -> None:
        super().__init__(opener, **options)
        self._gone: set[str] = set()

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        await super().delete(agent_id, fence=fence)
        self._gone.add(agent_id)

    async def load_messages(self, agent_id: str) -> list[Message]:
        if agent_id not in self._gone:
            return await super().load_messages(agent_id)
        engine: Any = self._context.engine
        while isinstance(engine, Layer):
            engine = engine.inner
        found = await engine.rows(agent_id, ListKind.MESSAGES)
        return [decode(Message, body, "a message") for body, _ in found.rows]


async def _forked_in_doubt(ctx: Context) -> object:
    store, doubt = await doubtful(ctx)
    await store.save_turn("a", messages=talk("1"), info=samples.info("a"))
    (parent,) = await store.batch_fork("a", 1)
    doubt.loses = doubt.writes = True
    await asyncio.gather(store.batch_fork(parent, 1), return_exceptions=True)
    doubt.loses = False
    await store.batch_fork(parent, 1)
    return sorted([len(await store.load_messages(agent_id)) for agent_id in await store.list()])


@mutant(
    "FORK-3",
    killed_by="forks_in_doubt_are_whole_whatever_the_parent_was",
    witness=_forked_in_doubt,
    source="what a call that failed left behind is removed by the next one, found by its lineage",
)
class TidiesUpAfterForksInDoubt(EngineStore):
    """Takes the messages of a fork in doubt away when its parent, which is a fork itself, is forked again."""

    _open: str | None = None

    async def batch_fork(self, agent_id: str, count: int) -> list[str]:
        if self._open == agent_id:
            self._open = None
            for session in await self.query_sessions():
                info = await self.load_info(session.agent_id)
                if info is not None and len(info.lineage) > 1 and info.lineage[-1] == agent_id:
                    await self.save_messages(session.agent_id, [])
        try:
            return await super().batch_fork(agent_id, count)
        except OutcomeUnknownError:
            self._open = agent_id
            raise


async def _opened_after_an_outage(ctx: Context) -> object:
    await ctx.harness.break_backend(ctx.handle)
    await asyncio.gather(ctx.another(), return_exceptions=True)
    await ctx.harness.heal_backend(ctx.handle)
    (end,) = await asyncio.gather(ctx.another(), return_exceptions=True)
    return isinstance(end, BaseException)


_failed: dict[str, Exception] = {}


@mutant(
    "OPS-7",
    killed_by="many_open_a_place_that_comes_back",
    on=OnJson,
    witness=_opened_after_an_outage,
    source="a cache of openings by path, which keeps the future that failed",
)
class RemembersThatItCouldNotOpen(Folder):
    """Raises the error of the first opening again, for as long as the process lasts."""

    def open(self) -> None:
        if str(self.base) in _failed:
            raise _failed[str(self.base)]
        try:
            super().open()
        except Exception as exc:
            _failed[str(self.base)] = exc
            raise
