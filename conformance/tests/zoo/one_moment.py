"""Stores that make one of several calls of one moment, and fail or cancel all of them together (OPS-13)."""

from __future__ import annotations

import asyncio
from typing import Any

from kode_conformance.context import Context
from kode_conformance.values import samples

from conformance.tests.zoo.base import mutant
from kode_core.layers import Layer
from kode_core.store import EngineStore


async def _appended_at_once(ctx: Context) -> object:
    bad = samples.message().replace(metadata={"n": float("nan")})
    calls = [ctx.store.append_messages("a", [message]) for message in (samples.message(1), bad, samples.message(2))]
    results = await asyncio.gather(*calls, return_exceptions=True)
    return [type(result).__name__ for result in results]


@mutant(
    "OPS-13",
    killed_by="a_bad_one_of_one_moment_fails_alone",
    source="a data loader: the calls of one turn of the event loop become one, and all get its error",
    witness=_appended_at_once,
)
class JoinsAppendsOfOneMoment(EngineStore):
    """Refuses the messages of all calls of one moment when one call is refused."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._joined: dict[str, tuple[list[Any], asyncio.Task[None]]] = {}

    async def append_messages(self, agent_id: str, messages: Any, **given: Any) -> None:
        if type(agent_id) is not str or type(messages) is not list or any(given.values()):
            return await super().append_messages(agent_id, messages, **given)
        if agent_id not in self._joined:
            self._joined[agent_id] = [], asyncio.create_task(self._append(agent_id))
        joined, task = self._joined[agent_id]
        joined += messages
        return await asyncio.shield(task)

    async def _append(self, agent_id: str) -> None:
        await asyncio.sleep(0)
        messages, _ = self._joined.pop(agent_id)
        await super().append_messages(agent_id, messages)


class _Slow(Layer):
    async def around(self, verb: str, call: Any, /, *args: Any, **kwargs: Any) -> Any:
        await asyncio.sleep(0.05)
        return await call(*args, **kwargs)


async def _loaded_at_once(ctx: Context) -> object:
    store = await ctx.another(_Slow)
    loads = [asyncio.ensure_future(store.load_todos("a")) for _ in range(2)]
    await asyncio.sleep(0.01)
    loads[0].cancel()
    results = await asyncio.gather(*loads, return_exceptions=True)
    return [type(result).__name__ for result in results]


@mutant(
    "OPS-13",
    killed_by="a_read_that_is_cancelled_takes_no_other_along",
    source="a cache of tasks, without asyncio.shield: who gives up cancels the task of all",
    witness=_loaded_at_once,
)
class SharesItsLoads(EngineStore):
    """Cancels the loads of todos that are under way for an agent when one of them is cancelled."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._loads: dict[str, asyncio.Task[Any]] = {}

    async def load_todos(self, agent_id: str) -> Any:
        if type(agent_id) is not str:
            return await super().load_todos(agent_id)
        task = self._loads.get(agent_id)
        if task is None:
            task = self._loads[agent_id] = asyncio.create_task(super().load_todos(agent_id))
            task.add_done_callback(lambda _: self._loads.pop(agent_id, None))
        return await task
