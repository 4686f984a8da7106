"""Stores with faults that show late, next to others, among many, or when the database is out of reach."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from kode_conformance.context import Context
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import Wrapper, mutant
from conformance.tests.zoo.witnesses import seen, talk, the
from kode_core.errors import LockLostError, OutcomeUnknownError, StoreUnavailableError
from kode_core.layers import Layer
from kode_core.model import Message, TextBlock, ToolUseBlock
from kode_core.store import EngineStore

_MONTH_MS = 30 * 24 * 3600 * 1000


class _Told(Layer):
    """Does what a witness tells it: it is out of reach, loses the answer to one write, or waits."""

    is_away = loses_one = False
    seconds = 0.0

    async def around(self, verb: str, call: Any, /, *given: Any, **named: Any) -> Any:
        await asyncio.sleep(self.seconds)
        if self.is_away:
            raise StoreUnavailableError("out of reach")
        found = await call(*given, **named)
        if verb == "commit" and self.loses_one:
            self.loses_one = False
            return [OutcomeUnknownError("the answer was lost") for _ in found]
        return found


async def _with(ctx: Context) -> tuple[Any, _Told]:
    made: list[_Told] = []

    def put(engine: Any) -> Any:
        made.append(_Told(engine))
        return made[-1]

    return await ctx.another(layer=put), made[-1]


# --- out of reach, lost answers ---------------------------------------------------------------------------------------


async def _todos_out_of_reach(ctx: Context) -> object:
    store, layer = await _with(ctx)
    await store.save_todos("a", samples.todos("old"))
    await store.load_todos("a")
    await ctx.store.save_todos("a", samples.todos("new"))
    layer.is_away = True
    try:
        return (await store.load_todos("a")).todos[0].title
    except StoreUnavailableError:
        return "out of reach"
    finally:
        layer.is_away = False


@mutant(
    "QRY-8",
    killed_by="what_was_read_is_no_answer_for_what_is_out_of_reach",
    source="a circuit breaker with a fallback: while it is open, the last known value",
    witness=_todos_out_of_reach,
)
class FallsBackToWhatItKnew(Wrapper):
    """Loads the todos that it loaded last while it cannot reach the database."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.known: dict[str, Any] = {}

    async def load_todos(self, agent_id: str) -> Any:
        try:
            self.known[agent_id] = await self.inner.load_todos(agent_id)
        except StoreUnavailableError:
            if agent_id not in self.known:
                raise
        return self.known[agent_id]


async def _lost_answer(ctx: Context) -> object:
    store, layer = await _with(ctx)
    layer.loses_one = True
    saving = asyncio.ensure_future(store.save_todos("a", samples.todos("first")))
    while layer.loses_one:
        await asyncio.sleep(0)
    await ctx.store.save_todos("a", samples.todos("later"))
    with suppress(OutcomeUnknownError):
        await saving
    return await ctx.store.load_todos("a")


@mutant(
    "OPS-10",
    killed_by="what_came_behind_a_lost_answer_stays",
    source="a decorator that retries what may be repeated: todos replace, so that saving them twice does no harm",
    witness=_lost_answer,
)
class SavesTodosOnceMore(Wrapper):
    """Saves todos again when the answer was lost, over those that others have saved since."""

    __slots__ = ()

    async def save_todos(self, agent_id: str, snapshot: Any, **fence: Any) -> None:
        try:
            await self.inner.save_todos(agent_id, snapshot, **fence)
        except OutcomeUnknownError:
            await asyncio.sleep(0.001)
            await self.inner.save_todos(agent_id, snapshot, **fence)


# --- reads at once ----------------------------------------------------------------------------------------------------


async def _snapshots_at_once(ctx: Context) -> object:
    await ctx.store.save_snapshot("a", samples.snapshot("s"))
    loads = [ctx.store.load_snapshot(agent_id, "s") for agent_id in ("a", "x" * 300)]
    return [type(found).__name__ for found in await asyncio.gather(*loads, return_exceptions=True)]


@mutant(
    "OPS-13",
    killed_by="a_read_that_fails_fails_alone",
    source="asyncio.gather without return_exceptions over the loads that a batcher has gathered",
    witness=_snapshots_at_once,
)
class FailsTheWholeBatch(Wrapper):
    """Fails all loads of snapshots that are made at once with the error of one of them."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.batch: list[Any] = []
        self.loading: asyncio.Future[Any] | None = None

    async def load_snapshot(self, agent_id: str, snapshot_id: str) -> Any:
        self.batch.append((agent_id, snapshot_id))
        place, loading = len(self.batch) - 1, self.loading
        if loading is None or place == 0:
            loading = self.loading = asyncio.ensure_future(self.load())
        return (await asyncio.shield(loading))[place]

    async def load(self) -> Sequence[Any]:
        await asyncio.sleep(0)
        batch, self.batch = self.batch, []
        return await asyncio.gather(*(self.inner.load_snapshot(*one) for one in batch))


async def _puts_at_once(ctx: Context) -> object:
    puts = [ctx.store.put_document(agent_id, "c", "k", value) for agent_id, value in (("a", 1), ("b", float("nan")))]
    return [type(found).__name__ for found in await asyncio.gather(*puts, return_exceptions=True)]


@mutant(
    "OPS-13",
    killed_by="a_refused_write_fails_alone",
    source="a batch writer that encodes all that waits before it sends the first, in one try",
    witness=_puts_at_once,
)
class PutsWhatWaitsTogether(Wrapper):
    """Fails all puts of documents that are made at once with the error of one of them."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.waiting = 0
        self.error: Exception | None = None

    async def put_document(self, *given: Any, **named: Any) -> Any:
        self.waiting += 1
        try:
            found = await self.inner.put_document(*given, **named)
        except Exception as exc:
            self.error = exc
            raise
        finally:
            for _ in range(20 if self.waiting > 1 else 0):
                await asyncio.sleep(0)
            self.waiting -= 1
            error, self.error = self.error, self.error if self.waiting else None
        if error is not None:
            raise error
        return found


async def _two_tenants(ctx: Context) -> object:
    store, layer = await _with(ctx)
    views = [store.scoped(tenant) for tenant in ("acme", "globex")]
    for number, view in enumerate(views):
        await view.save_media_cache("a", [samples.media(f"{number}")])
    layer.seconds = 0.02
    return [[one.key for one in found] for found in await asyncio.gather(*(v.load_media_cache("a") for v in views))]


@mutant(
    "SCOPE-1",
    killed_by="tenants_that_read_at_the_same_time",
    source="asyncio tasks in a dict by id, so that two callers wait for one load; the views of tenants have one dict",
    witness=_two_tenants,
)
class SharesLoadsOfMedia(Wrapper):
    """Gives a load of media the result of the one that is under way for the same id in another tenant."""

    def __init__(self, inner: Any, loads: dict[str, Any] | None = None) -> None:
        super().__init__(inner)
        self.loads = {} if loads is None else loads

    def scoped(self, tenant: str) -> Any:
        return type(self)(self.inner.scoped(tenant), self.loads)

    async def load_media_cache(self, agent_id: str) -> Any:
        if type(agent_id) is not str:
            return await self.inner.load_media_cache(agent_id)
        if agent_id not in self.loads:
            self.loads[agent_id] = asyncio.ensure_future(self.inner.load_media_cache(agent_id))
            self.loads[agent_id].add_done_callback(lambda _: self.loads.pop(agent_id))
        return list(await asyncio.shield(self.loads[agent_id]))


# --- slow, large, late ------------------------------------------------------------------------------------------------


async def _logged(ctx: Context) -> object:
    store, layer = await _with(ctx)
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    layer.seconds = 0.6
    try:
        await store.save_turn("a", append=talk("my password is 1234"))
    finally:
        layer.seconds = 0.0
        logging.getLogger().removeHandler(handler)
    return any("1234" in line for line in lines)


@mutant(
    "OPS-12",
    killed_by="slow_calls_tell_nothing",
    source="log_min_duration_statement of PostgreSQL with log_parameter_max_length, rebuilt in the client",
    witness=_logged,
)
class LogsWhatIsSlow(Wrapper):
    """Writes the parts of a turn into the log when it took more than half a second."""

    __slots__ = ()

    async def save_turn(self, agent_id: str, **parts: Any) -> Any:
        began = time.monotonic()
        try:
            return await self.inner.save_turn(agent_id, **parts)
        finally:
            if time.monotonic() - began > 0.5:
                logging.getLogger("slow").warning("slow turn of %s: %r", agent_id, parts)


@mutant(
    "QRY-8",
    killed_by="VAL-4.a_megabyte_in_any_field",
    source="a multipart upload that the next call completes",
    witness=seen(
        lambda s: s.save_recovered_file("a", samples.recovered(content="x" * 600_000)),
        lambda _, other: other.load_recovered_files("a"),
    ),
)
class WritesLargeFilesBehind(Wrapper):
    """Holds a recovered file of more than half a megabyte back until the next call of the same instance."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.held: list[Any] = []

    async def save_recovered_file(self, agent_id: str, file: Any, **fence: Any) -> None:
        if type(getattr(file, "content", None)) is str and len(file.content) > 500_000:
            self.held.append(self.inner.save_recovered_file(agent_id, file, **fence))
        else:
            await self.inner.save_recovered_file(agent_id, file, **fence)

    async def write(self) -> None:
        while self.held:
            await self.held.pop()

    async def load_recovered_files(self, agent_id: str) -> Any:
        await self.write()
        return await self.inner.load_recovered_files(agent_id)

    async def close(self) -> None:
        await self.write()
        await self.inner.close()


async def _later(ctx: Context) -> object:
    await ctx.store.save_history_window("a", samples.window())
    later: Any = await ctx.another(clock=lambda: int(time.time() * 1000) + 2 * _MONTH_MS)
    return [len(await store.load_history_windows("a")) for store in (ctx.store, later)]


@mutant(
    "HIS-1",
    killed_by="MSG-4.no_write_is_lost_under_any_clock",
    source="a TTL index of MongoDB on the windows, which are only a history",
    witness=_later,
)
class ExpiresWindows(EngineStore):
    """Loads no history windows of an agent for which none was saved for thirty days."""

    saved: dict[str, int] = {}  # noqa: RUF012 - of all instances

    async def save_history_window(self, agent_id: str, window: Any, **fence: Any) -> None:
        await super().save_history_window(agent_id, window, **fence)
        self.saved[agent_id] = self._context.now()

    async def load_history_windows(self, agent_id: str) -> Any:
        found = await super().load_history_windows(agent_id)
        now = self._context.now()
        return [] if now - self.saved.get(agent_id, now) > _MONTH_MS else found


# --- turns, many ------------------------------------------------------------------------------------------------------


async def _turn_under_an_ended_lease(ctx: Context) -> object:
    lease = await ctx.store.acquire_agent_lock("a")
    await lease.release()
    with suppress(LockLostError):
        await ctx.store.save_turn("a", append=talk("x"), todos=samples.todos("x"), fence=lease)
    return await ctx.store.load_todos("a"), await ctx.store.load_messages("a")


@mutant(
    "TURN-1",
    killed_by="a_whole_turn_is_refused_whole",
    source="todos in a store of their own, a key-value cache, which no transaction spans",
    witness=_turn_under_an_ended_lease,
)
class KeepsTheTodosOfARefusedTurn(Wrapper):
    """Saves the todos of a turn that has other parts too and is refused because its lease has ended."""

    __slots__ = ()

    async def save_turn(self, agent_id: str, **parts: Any) -> Any:
        try:
            return await self.inner.save_turn(agent_id, **parts)
        except LockLostError:
            if parts.get("todos") is not None and len(parts) > 2:
                await self.inner.save_todos(agent_id, parts["todos"])
            raise


async def _many_sessions(store: Any) -> None:
    for i in range(70):
        await store.save_info(f"a{i:02}", samples.info(f"a{i:02}", created_at=samples.T0 - i))


@mutant(
    "QRY-3",
    killed_by="long_lists_keep_the_order_of_all",
    source="IN lists of 50 values, whose results are put one after the other",
    witness=seen(
        _many_sessions,
        lambda s: the("agent_id", s.query_sessions(agent_id=[f"a{i:02}" for i in range(70)], order="asc")),
    ),
)
class AsksForFiftyAtATime(Layer):
    """Gives the sessions of the first fifty of listed ids, in their order, and then those of the next fifty."""

    async def find_sessions(self, query: Any) -> Any:
        ids = query.agent_id
        if type(ids) is not tuple or len(ids) <= 50:
            return await super().find_sessions(query)
        most, found = query.offset + query.limit, []
        for part in (ids[i : i + 50] for i in range(0, len(ids), 50)):
            one = part if len(part) > 1 else part[0]
            found += await super().find_sessions(replace(query, agent_id=one, offset=0, limit=most))
        return found[query.offset : most]


async def _messages_left(store: Any) -> int:
    for agent_id in ("a", "b"):
        await store.save_turn(agent_id, info=samples.info(agent_id), append=talk("x"))
    await store.delete_many(agent_id="a")
    return await store.count_messages()  # type: ignore[no-any-return]


@mutant(
    "QRY-10",
    killed_by="counts_are_of_what_is_found",
    source="a counter of messages that a trigger keeps, which a DELETE with a join does not fire",
    witness=seen(_messages_left),
)
class CountsMessagesOfDeletedSessions(EngineStore):
    """Still counts the messages of sessions that `delete_many` deleted, when all messages are counted."""

    async def delete_many(self, *, progress: Any = None, **filters: Any) -> int:
        before = await super().count_messages()
        deleted = await super().delete_many(progress=progress, **filters)
        gone = vars(self._context.engine)
        gone["gone"] = gone.get("gone", 0) + before - await super().count_messages()
        return deleted

    async def count_messages(self, **filters: Any) -> int:
        count = await super().count_messages(**filters)
        return count if filters else count + vars(self._context.engine).get("gone", 0)


async def _issues_of_many(ctx: Context) -> object:
    for i in range(1_025):
        await ctx.store.save_todos(f"a{i:04}", samples.todos("x"))
    await ctx.store.append_messages("a1024", [Message("assistant", [TextBlock("x"), ToolUseBlock("c", "search", {})])])
    return [issue.agent_id for issue in (await ctx.store.check_consistency()).issues]


@mutant(
    "OPS-2",
    killed_by="more_than_a_thousand_are_checked",
    source="a scan whose pages have 1,024 entries, of which the first one is checked",
    witness=_issues_of_many,
    tier=Tier.STANDARD,
)
class ChecksThe1024First(Wrapper):
    """Finds nothing in a check of the whole store behind its first 1,024 agents."""

    __slots__ = ()

    async def check_consistency(self, agent_id: Any = None, **progress: Any) -> Any:
        result = await self.inner.check_consistency(agent_id, **progress)
        if agent_id is not None:
            return result
        first = set((await self.inner.list(include_without_info=True))[:1_024])
        issues = tuple(issue for issue in result.issues if issue.agent_id in first)
        return replace(result, consistent=not issues, issues=issues)
