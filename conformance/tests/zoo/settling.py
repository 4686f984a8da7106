"""Stores whose writes go on after their callers were cancelled, and that do not wait for them (OPS-9, LIFE-3)."""

from __future__ import annotations

import asyncio
import inspect
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any, ClassVar, Final

from kode_conformance.context import Context
from kode_conformance.values import samples

from conformance.tests.zoo.base import Wrapper, mutant
from conformance.tests.zoo.witnesses import talk
from kode_core.protocols import ExtendedStore

_WRITES: Final = ("save_", "append_", "upsert_", "delete", "batch_fork")
_ALL: Final = frozenset(name for name in dir(ExtendedStore) if not name.startswith("_"))


class _GoesOn(Wrapper):
    """Writes in a task of its own, a moment later, which a cancellation does not reach. Calls whose names are in
    ``waits`` wait for the writes of their agent before they begin.
    """

    waits: ClassVar[frozenset[str]] = _ALL
    delay = 0.004

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self._under_way: defaultdict[str, set[asyncio.Task[Any]]] = defaultdict(set)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.inner, name)
        if name == "close":
            return self._closed
        if inspect.isasyncgenfunction(method) or name in ("read_events", "follow_events"):
            return lambda agent_id, **how: self._read(name, method, agent_id, how)
        if not inspect.iscoroutinefunction(method):
            return method

        async def called(*args: Any, **kwargs: Any) -> Any:
            agent_id = args[0] if args else kwargs.get("agent_id", "")
            if name.startswith(_WRITES) and name != "delete_many":
                return await self._write(name, method, agent_id, args, kwargs)
            await self._wait(name, agent_id)
            return await method(*args, **kwargs)

        return called

    async def _wait(self, name: str, agent_id: str) -> None:
        tasks = [*self._under_way[agent_id]] if isinstance(agent_id, str) else []
        if name in self.waits and tasks:
            await asyncio.wait(tasks)

    async def _write(self, name: str, method: Any, agent_id: Any, args: Any, kwargs: Any) -> Any:
        await self._wait(name, agent_id)

        async def write() -> Any:
            await asyncio.sleep(self.delay if name != "delete" else 0)
            return await method(*args, **kwargs)

        task = asyncio.ensure_future(write())
        if isinstance(agent_id, str):
            self._under_way[agent_id].add(task)
            task.add_done_callback(self._under_way[agent_id].discard)
        return await asyncio.shield(task)

    async def _read(self, name: str, method: Any, agent_id: str, how: Any) -> AsyncIterator[Any]:
        await self._wait(name, agent_id)
        async for event in method(agent_id, **how):
            yield event

    async def _closed(self) -> None:
        tasks = [task for tasks in self._under_way.values() for task in tasks]
        if "close" in self.waits and tasks:
            await asyncio.wait(tasks)
        elif tasks:
            asyncio.get_running_loop().call_later(0.06, lambda: asyncio.ensure_future(self.inner.close()))
            return
        await self.inner.close()


async def _looked(ctx: Context) -> object:
    await _cancel(ctx.store.append_messages("a", talk("1")))
    first = await ctx.store.load_messages("a")
    await asyncio.sleep(0.02)
    return first == await ctx.store.load_messages("a")


async def _cancel(call: Any) -> None:
    task = asyncio.ensure_future(call)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])


@mutant(
    "OPS-9",
    killed_by="looking_and_saving_again_never_doubles",
    witness=_looked,
    source="a driver with a thread: the statement that was cancelled is run all the same",
    also=("OPS-9.what_is_read_after_a_cancellation_stays",),
)
class CancelledWriteAppearsLater(_GoesOn):
    """Goes on with a write whose caller was cancelled, and says meanwhile that it is not there."""

    waits = frozenset({"close", "delete"})


async def _snapshots_looked(ctx: Context) -> object:
    await _cancel(ctx.store.save_snapshot("a", samples.snapshot()))
    first = await ctx.store.list_snapshots("a")
    await asyncio.sleep(0.02)
    return first == await ctx.store.list_snapshots("a")


@mutant(
    "OPS-9",
    killed_by="what_is_read_after_a_cancellation_stays",
    witness=_snapshots_looked,
    source="a read that was added later and does not go by way of the others",
)
class OneReadDoesNotWait(_GoesOn):
    """Waits for writes under way in all reads but that of snapshots."""

    waits = _ALL - {"list_snapshots"}


async def _todos_last(ctx: Context) -> object:
    await _cancel(ctx.store.save_todos("a", samples.todos("first")))
    await ctx.store.save_todos("a", samples.todos("last", "one"))
    await asyncio.sleep(0.02)
    found = await ctx.store.load_todos("a")
    return found and len(found.todos)


@mutant(
    "OPS-9",
    killed_by="what_is_written_after_a_cancellation_is_last",
    witness=_todos_last,
    source="a pool: the statement that was cancelled is still under way on another connection",
)
class WritesOvertakeEachOther(_GoesOn):
    """Lets a write begin while one that was cancelled is under way, which may then come last."""

    waits = frozenset(name for name in _ALL if not name.startswith(("save_", "append_", "upsert_")))

    async def _write(self, name: str, method: Any, agent_id: Any, args: Any, kwargs: Any) -> Any:
        quick = bool(self._under_way[agent_id]) if isinstance(agent_id, str) else False
        if quick and name != "delete":
            return await method(*args, **kwargs)
        return await super()._write(name, method, agent_id, args, kwargs)


async def _deleted(ctx: Context) -> object:
    await _cancel(ctx.store.append_event("a", samples.event(1)))
    await ctx.store.delete("a")
    await asyncio.sleep(0.02)
    return [event async for event in ctx.store.read_events("a")]


@mutant(
    "LIFE-3",
    killed_by="what_was_cancelled_does_not_outlive_a_delete",
    witness=_deleted,
    source="a group of appends of which the members that were cancelled are written, and not waited for",
)
class DeletedAgentsComeBack(_GoesOn):
    """Deletes an agent while a write that was cancelled is under way."""

    waits = _ALL - {"delete"}


async def _closed_over(ctx: Context) -> object:
    store = await ctx.another()
    await _cancel(store.append_messages("a", talk("1")))
    await ctx.close(store)
    first = await ctx.store.load_messages("a")
    await asyncio.sleep(0.1)
    return first == await ctx.store.load_messages("a")


@mutant(
    "OPS-5",
    killed_by="close_waits_for_what_was_cancelled",
    witness=_closed_over,
    source="a thread of writing that close does not join",
)
class CloseDoesNotWait(_GoesOn):
    """Returns from close while a write that was cancelled is under way."""

    waits = _ALL - {"close"}
