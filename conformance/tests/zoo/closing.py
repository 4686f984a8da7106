"""Stores that start, close and share badly (OPS-5 to OPS-11)."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any

from kode_conformance.context import Context
from kode_conformance.values import samples
from kode_sqlite.engine import SqliteEngine
from kode_sqlite.migrations import sql, version_of
from kode_sqlite.upkeep import Tell

from conformance.tests.zoo.base import OnJson, OnSqlite, Wrapper, mutant
from conformance.tests.zoo.witnesses import happened, seen, talk
from kode_core.batch import Applied, Batch, Outcome
from kode_core.engine import Engine
from kode_core.errors import KodeError, StorageError, StoreUnavailableError
from kode_core.layers import Layer
from kode_core.store import EngineStore

# --- closing ----------------------------------------------------------------------------------------------------------


async def _exists_after_close(ctx: Context) -> object:
    store = await ctx.another()
    await store.close()
    try:
        return await store.exists("a")
    except Exception as exc:
        return type(exc).__name__


@mutant(
    "OPS-5",
    killed_by="every_call_after_close_raises",
    source="KODE SDK SqliteStore: later calls raise an error of the driver",
    witness=_exists_after_close,
)
class TellsTheDriversError(EngineStore):
    """Raises the driver's own error after it was closed."""

    async def exists(self, agent_id: str) -> bool:
        if self._context.is_closed:
            raise TypeError("The database connection is not open")
        return await super().exists(agent_id)


@mutant(
    "OPS-5",
    killed_by="every_call_after_close_raises",
    source="clients that connect again by themselves",
    witness=_exists_after_close,
)
class WorksAfterClose(EngineStore):
    """Answers after it was closed."""

    async def exists(self, agent_id: str) -> bool:
        return False if self._context.is_closed else await super().exists(agent_id)


async def _close_amid_appends(ctx: Context) -> object:
    store = await ctx.another()
    appends = [asyncio.ensure_future(store.append_event("a", samples.event(i))) for i in range(20)]
    await asyncio.sleep(0)
    await store.close()
    results = await asyncio.gather(*appends, return_exceptions=True)
    acknowledged = sum(not isinstance(result, Exception) for result in results)
    return acknowledged <= len([event async for event in ctx.store.read_events("a")])


class _Buffers(Layer):
    """Acknowledges events before they are written."""

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner)
        self._buffer: list[Batch] = []

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        events = [batch for batch in batches if batch.events and not batch.messages and not batch.info]
        if len(events) < len(batches):
            return await super().commit(batches)
        self._buffer += batches
        return [Applied(offsets=tuple(range(1, len(batch.events) + 1))) for batch in batches]


@mutant(
    "OPS-5",
    killed_by="close_waits_for_what_was_accepted",
    source="buffers that close does not flush",
    witness=_close_amid_appends,
    also=("OPS-5.close_with_every_write_in_flight",),
)
class CloseDropsTheBuffer(_Buffers):
    """Loses the events that were not written yet when it is closed."""


async def _leave_with_an_error(ctx: Context) -> object:
    store = await ctx.another()
    try:
        async with store:
            raise KeyError
    except KeyError:
        pass
    try:
        return await store.load_messages("a")
    except KodeError:
        return "closed"


@mutant("OPS-5", killed_by="async_with_closes", source="close() behind the block", witness=_leave_with_an_error)
class StaysOpenOnErrors(EngineStore):
    """Is not closed when the block of its `async with` fails."""

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            await super().__aexit__(kind, exc, trace)


async def _has_statistics(ctx: Context) -> object:
    return hasattr(ctx.store, "aggregate_stats")


@mutant(
    "OPS-5",
    killed_by="the_protocols_are_what_they_say",
    source="KODE SDK database guide: a HybridStore implements ExtendedStore without some 25 of its methods",
    witness=_has_statistics,
)
class LacksMethods(Wrapper):
    """Has not all methods of the protocol."""

    def __getattr__(self, name: str) -> Any:
        if name == "aggregate_stats":
            raise AttributeError(name)
        return super().__getattr__(name)


# --- processes and connections ----------------------------------------------------------------------------------------


async def _first_starts(ctx: Context) -> object:
    place = ctx.folder / "fresh.db"
    found = await asyncio.gather(*(ctx.harness.open({"db_path": str(place)}) for _ in range(4)), return_exceptions=True)
    for store in found:
        if not isinstance(store, BaseException):
            await store.close()  # type: ignore[attr-defined]
    return [isinstance(store, BaseException) for store in found]


@mutant(
    "OPS-7",
    killed_by="many_first_starts_at_once",
    on=OnSqlite,
    source="KODE SDK PostgresStore: of 80 stores that started on an empty schema 70 failed for good",
    witness=_first_starts,
    raises="already exists",
)
class MakesTablesUnguarded(SqliteEngine):
    """Looks whether there are tables, and makes them a moment later."""

    def _migrate(self, db: sqlite3.Connection, tell: Tell) -> None:
        if version_of(db) == 0:
            time.sleep(0.2)
            for statement in sql():
                db.execute(statement)


@mutant(
    "OPS-9",
    killed_by="many_calls_at_once",
    source="KODE SDK PostgresStore: a pool of connections with a time-out and no queue",
    witness=lambda ctx: _saves_at_once(ctx),
    raises="pool",
)
class SmallPool(Layer):
    """Fails when more than ten calls are under way."""

    _under_way = 0

    async def around(self, verb: str, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        if self._under_way >= 10:
            raise StoreUnavailableError("the pool has no connection left")
        self._under_way += 1
        try:
            return await call(*args, **kwargs)
        finally:
            self._under_way -= 1


async def _saves_at_once(ctx: Context) -> object:
    saves = (ctx.store.save_messages(f"a{i}", talk("1")) for i in range(20))
    return [isinstance(result, StorageError) for result in await asyncio.gather(*saves, return_exceptions=True)]


async def _threads_left(ctx: Context) -> object:
    return any(not t.daemon for t in threading.enumerate() if t.name == "zoo-timer")


@mutant(
    "OPS-11",
    killed_by="a_process_may_end_without_close",
    on=OnJson,
    source="KODE SDK: a timer of the lock keeps the process alive",
    witness=_threads_left,
    slow=True,
)
class KeepsTheProcessAlive(Layer):
    """Has a thread that only close ends."""

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._end.wait, args=(23,), name="zoo-timer", daemon=False)
        self._thread.start()

    async def close(self) -> None:
        self._end.set()
        await asyncio.to_thread(self._thread.join)
        await super().close()


@mutant(
    "OPS-11",
    killed_by="a_process_may_end_without_close",
    on=OnJson,
    source="KODE SDK JSONStore: what is written 50 ms later is lost when the process ends before",
    witness=seen(lambda s, t: s.append_events("a", happened(0)), lambda s, t: t.read_events("a")),
)
class WritesWhenItCloses(_Buffers):
    """Writes events when it is closed, and not before."""

    async def close(self) -> None:
        if self._buffer:
            await self.inner.commit(self._buffer)
        await super().close()


async def _an_older_one_closes(ctx: Context) -> object:
    older = await ctx.another()
    await older.save_info("a", samples.info("a", template_id="old"))
    await ctx.store.save_info("a", samples.info("a", template_id="new"))
    await ctx.close(older)
    info = await ctx.store.load_info("a")
    return info and info.template_id


@mutant(
    "OPS-10",
    killed_by="an_instance_that_closes_writes_nothing_again",
    source="a cache that is flushed when it is closed, with what was written through it already",
    witness=_an_older_one_closes,
)
class FlushesWhenItCloses(EngineStore):
    """Saves the infos that it saved last once more when it is closed, over what other instances did since."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._infos: dict[str, Any] = {}

    async def save_info(self, agent_id: str, info: Any, **given: Any) -> None:
        await super().save_info(agent_id, info, **given)
        self._infos[agent_id] = info

    async def delete(self, agent_id: str, **given: Any) -> None:
        await super().delete(agent_id, **given)
        self._infos.pop(agent_id, None)

    async def close(self) -> None:
        while self._infos:
            agent_id, info = self._infos.popitem()
            with suppress(KodeError):
                await super().save_info(agent_id, info)
        await super().close()


class _Slow(Layer):
    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        await asyncio.sleep(0.1)
        return await super().commit(batches)


async def _closes_again(ctx: Context) -> object:
    store = await ctx.another(_Slow)
    writing = asyncio.ensure_future(store.save_todos("a", samples.todos("x")))
    await asyncio.sleep(0.02)
    first = asyncio.ensure_future(store.close())
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await store.close()
    was_done = writing.done()
    await asyncio.gather(writing, return_exceptions=True)
    return was_done


@mutant(
    "OPS-5",
    killed_by="each_close_waits",
    source="a flag that is set before the wait, and is not taken back when that is cancelled",
    witness=_closes_again,
)
class WaitsInItsFirstClose(EngineStore):
    """Returns from each close but the first at once."""

    _is_begun = False

    async def close(self) -> None:
        if not self._is_begun:
            self._is_begun = True
            await super().close()
