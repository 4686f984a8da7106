"""Stores that guess the outcome of a write (OPS-10)."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from kode_conformance.checks.doubt import doubtful
from kode_conformance.context import Context
from kode_conformance.values import samples

from conformance.tests.zoo.base import mutant
from conformance.tests.zoo.witnesses import talk
from kode_core.errors import OutcomeUnknownError, StorageError, StoreUnavailableError
from kode_core.model import AgentEvent
from kode_core.store import EngineStore


async def _appended(ctx: Context, *, writes: bool) -> object:
    store, doubt = await doubtful(ctx)
    doubt.loses, doubt.writes = True, writes
    call = asyncio.ensure_future(store.append_messages("a", talk("1")))
    await asyncio.sleep(0.01)
    doubt.loses = False
    (result,) = await asyncio.gather(call, return_exceptions=True)
    return type(result).__name__, len(await store.load_messages("a"))


@mutant(
    "OPS-10",
    killed_by="what_is_in_doubt_is_read_and_repeated",
    witness=lambda ctx: _appended(ctx, writes=True),
    source="a retry after every error of the connection",
)
class TriesAgainInDoubt(EngineStore):
    """Appends again, a moment later, when the answer was lost, whatever became of the first."""

    async def append_messages(self, agent_id: str, messages: Any, *, fence: Any = None) -> None:
        try:
            await super().append_messages(agent_id, messages, fence=fence)
        except OutcomeUnknownError:
            asyncio.get_running_loop().call_later(
                0.003, lambda: asyncio.ensure_future(self._later(agent_id, messages, fence))
            )
            await asyncio.sleep(0.015)
            raise

    async def _later(self, agent_id: str, messages: Any, fence: Any) -> None:
        engine: Any = self._context.engine
        engine.loses = False
        with suppress(StorageError):
            await super().append_messages(agent_id, messages, fence=fence)


@mutant(
    "OPS-10",
    killed_by="what_is_in_doubt_is_read_and_repeated",
    witness=lambda ctx: _appended(ctx, writes=False),
    source="`except ConnectionError: pass`",
)
class TakesDoubtForSuccess(EngineStore):
    """Says that a message was appended when the answer was lost."""

    async def append_messages(self, agent_id: str, messages: Any, *, fence: Any = None) -> None:
        with suppress(OutcomeUnknownError):
            await super().append_messages(agent_id, messages, fence=fence)


async def _todos_of_another(ctx: Context) -> object:
    store, doubt = await doubtful(ctx)
    doubt.loses = doubt.writes = True
    await asyncio.gather(store.save_todos("a", samples.todos("1")), return_exceptions=True)
    doubt.loses = False
    await ctx.store.save_todos("a", samples.todos("1", "2"))
    await asyncio.sleep(0.01)
    found = await store.load_todos("a")
    return found and len(found.todos)


@mutant(
    "OPS-10",
    killed_by="what_is_in_doubt_overwrites_nobody",
    witness=_todos_of_another,
    source="a queue of writes that failed, to be made when the connection is back",
)
class WritesAgainBehindTheScenes(EngineStore):
    """Saves todos whose answer was lost once more before it next reads, over what others wrote."""

    _queue: Any = None

    async def save_todos(self, agent_id: str, snapshot: Any, *, fence: Any = None) -> None:
        try:
            await super().save_todos(agent_id, snapshot, fence=fence)
        except OutcomeUnknownError:
            self._queue = (agent_id, snapshot)
            raise

    async def load_todos(self, agent_id: str) -> Any:
        if self._queue is not None and self._queue[0] == agent_id:
            (agent, snapshot), self._queue = self._queue, None
            await super().save_todos(agent, snapshot)
        return await super().load_todos(agent_id)


async def _told(ctx: Context) -> object:
    store, doubt = await doubtful(ctx)
    doubt.loses = True
    (result,) = await asyncio.gather(store.save_todos("a", samples.todos("1")), return_exceptions=True)
    return str(result)


@mutant(
    "OPS-10",
    killed_by="an_engine_that_breaks_off_is_told_as_such",
    witness=_told,
    source="one error for all that goes wrong",
)
class HidesWhatTheEngineSaid(EngineStore):
    """Says only that something went wrong when many are to be deleted, or todos saved."""

    async def save_todos(self, agent_id: str, snapshot: Any, *, fence: Any = None) -> None:
        try:
            await super().save_todos(agent_id, snapshot, fence=fence)
        except OutcomeUnknownError as exc:
            raise OutcomeUnknownError("something went wrong") from exc

    async def delete_many(self, **filters: Any) -> int:
        try:
            return await super().delete_many(**filters)
        except OutcomeUnknownError as exc:
            raise StoreUnavailableError("something went wrong") from exc


async def _updated(ctx: Context) -> object:
    store, doubt = await doubtful(ctx)
    await ctx.store.save_info("a", samples.info("a"))

    async def meanwhile() -> None:
        await doubt.begins.wait()
        await ctx.store.save_info("a", samples.info("a", metadata={}))

    doubt.loses = doubt.writes = True
    doubt.meanwhile = asyncio.create_task(meanwhile())
    await asyncio.gather(store.update_info("a", {"x": 1}), doubt.meanwhile, return_exceptions=True)
    info = await ctx.store.load_info("a")
    return info and info.metadata


@mutant(
    "OPS-10",
    killed_by="what_came_behind_a_lost_answer_stays",
    witness=_updated,
    source="a retry of what is idempotent: to set keys twice is to set them once",
)
class UpdatesAgainInDoubt(EngineStore):
    """Updates an info again when the answer was lost, over what others have saved since."""

    async def update_info(self, agent_id: str, metadata: Any, **given: Any) -> Any:
        try:
            return await super().update_info(agent_id, metadata, **given)
        except OutcomeUnknownError:
            return await super().update_info(agent_id, metadata, **given)


async def _emitted(ctx: Context) -> object:
    store, doubt = await doubtful(ctx)
    doubt.loses = doubt.writes = True
    events = [AgentEvent("progress", "tick", {"n": n}) for n in range(2)]
    (result,) = await asyncio.gather(store.emit_many("a", events), return_exceptions=True)
    doubt.loses = False
    return len(getattr(result, "timelines", ())), [event.bookmark.seq async for event in store.read_events("a")]


@mutant(
    "EVT-8",
    killed_by="an_emit_in_doubt_is_stored_once",
    witness=_emitted,
    source="a loop of three attempts around a method that numbers",
)
class EmitsListsAgainInDoubt(EngineStore):
    """Emits several events once more, under new numbers, before it says that the outcome is unknown."""

    async def emit_many(self, agent_id: str, events: Any, **given: Any) -> Any:
        try:
            return await super().emit_many(agent_id, events, **given)
        except OutcomeUnknownError:
            return await super().emit_many(agent_id, events, **given)
