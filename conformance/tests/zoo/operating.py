"""Stores that count, check, copy, delete, log and end a little wrong (OPS clauses, LIFE-5)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

from kode_conformance.checks.damage import damaging
from kode_conformance.context import Context
from kode_conformance.values import samples
from kode_conformance.values.canaries import CANARY, overheard
from msgspec.structs import replace

from conformance.tests.zoo.base import MemoryLayer, OnJson, OnSqlite, Wrapper, mutant
from conformance.tests.zoo.locks import _take
from conformance.tests.zoo.witnesses import seen, talk
from kode_core.backends.json_files.engine import JsonFilesEngine
from kode_core.backends.json_files.folder import Folder
from kode_core.batch import Batch, DocKind, Fence, Totals
from kode_core.engine import Progress, unwatched
from kode_core.errors import CorruptRecordError, LockLostError
from kode_core.layers import Layer
from kode_core.model import Message, ToolResultBlock, ToolUseBlock
from kode_core.report import ConsistencyCheckResult, ConsistencyIssue
from kode_core.store import EngineStore
from kode_core.store.methods import METHODS
from kode_core.store.pairing import Pairing

# --- counting ---------------------------------------------------------------------------------------------------------


async def _saves_of_three_events(ctx: Context) -> object:
    await ctx.store.append_events("a", samples.events(3))
    return (await ctx.store.get_metrics()).operations.saves


@mutant(
    "OPS-3",
    killed_by="each_method_is_counted_once_where_it_was_called",
    source="a counter where records are written, below the call",
    witness=_saves_of_three_events,
)
class CountsRecords(EngineStore):
    """Counts each event of one call as a save."""

    async def append_events(self, agent_id: str, timelines: Any, *, fence: Any = None) -> Sequence[int]:
        offsets = await super().append_events(agent_id, timelines, fence=fence)
        for _ in offsets[1:]:
            self._context.call_metrics.enter(METHODS["append_events"], 0.0)
        return offsets


async def _errors_of_a_lost_lease(ctx: Context) -> object:
    lease = await ctx.store.acquire_agent_lock("a")
    await lease.release()
    with contextlib.suppress(LockLostError):
        await ctx.store.save_todos("a", samples.todos("x"), fence=lease)
    return (await ctx.store.get_metrics()).operations.errors


@mutant(
    "OPS-3",
    killed_by="each_failure_is_counted_once_and_as_nothing_else",
    source="errors are counted where the driver raises them",
    witness=_errors_of_a_lost_lease,
)
class CountsNoLostLease(EngineStore):
    """Does not count a write as an error whose lease had ended."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        book = self._context.call_metrics
        enter = book.enter

        def noted(op: Any, seconds: float, error: BaseException | None, observed: Any) -> None:
            if not isinstance(error, LockLostError):
                enter(op, seconds, error, observed)

        book.enter = noted  # type: ignore[method-assign]


async def _size_with_a_fork(ctx: Context) -> object:
    await ctx.store.save_turn("a", info=samples.info("a"), append=talk("1"))
    await ctx.store.batch_fork("a", 1)
    return (await ctx.store.get_metrics()).storage.total_messages


@mutant(
    "OPS-3",
    killed_by="sizes_follow_every_change",
    source="counters that saves add to, and copies do not",
    witness=_size_with_a_fork,
)
class ForksHaveNoSize(MemoryLayer):
    """Leaves the messages of forks out of the size of the store."""

    async def totals(self) -> Totals:
        totals = await super().totals()
        forks = [agent_id for agent_id in self.space.states if agent_id.startswith("agt-")]
        messages = [(await self.inner.stats(agent_id)).total_messages for agent_id in forks]
        return replace(totals, messages=totals.messages - sum(messages))


# --- checking ---------------------------------------------------------------------------------------------------------


async def _two_that_dangle(ctx: Context) -> object:
    use = [Message("assistant", [ToolUseBlock("c", "x", {})])]
    await ctx.store.save_messages("a", use)
    await ctx.store.save_messages("b", use)
    return len((await ctx.store.check_consistency()).issues)


@mutant(
    "OPS-2",
    killed_by="what_dangles_is_found_at_every_place",
    source="a set of messages, so that none is printed twice",
    witness=_two_that_dangle,
)
class TellsEachSentenceOnce(Wrapper):
    """Leaves out an issue of one agent whose sentence was said of another."""

    async def check_consistency(self, agent_id: str | None = None, **how: Any) -> ConsistencyCheckResult:
        result: ConsistencyCheckResult = await self.inner.check_consistency(agent_id, **how)
        return replace(result, issues=tuple({issue.message: issue for issue in result.issues}.values()))

    async def iter_consistency(self, agent_id: str | None = None, **how: Any) -> AsyncIterator[ConsistencyIssue]:
        for issue in (await self.check_consistency(agent_id, **how)).issues:
            yield issue


class _AnyCase(Pairing):
    def add(self, position: int, message: Message) -> None:
        blocks: list[Any] = []
        for block in message.content:
            if isinstance(block, ToolUseBlock):
                block = block.replace(id=block.id.casefold())
            elif isinstance(block, ToolResultBlock):
                block = block.replace(tool_use_id=block.tool_use_id.casefold())
            blocks.append(block)
        super().add(position, message.replace(content=blocks))


async def _answered_in_another_case(ctx: Context) -> object:
    talk = [Message("assistant", [ToolUseBlock("C", "x", {})]), Message("user", [ToolResultBlock("c", "y")])]
    await ctx.store.save_messages("a", talk)
    return (await ctx.store.check_consistency("a")).consistent


@mutant(
    "OPS-2",
    killed_by="pairs_are_told_apart_by_their_whole_id",
    source="a join of uses and results by the collation of the database",
    witness=_answered_in_another_case,
)
class PairsInAnyCase(EngineStore):
    """Takes a result for that of a tool use whose id differs in case."""

    async def check_consistency(self, agent_id: str | None = None, **how: Any) -> ConsistencyCheckResult:
        with mock.patch("kode_core.store.consistency.Pairing", _AnyCase):
            return await super().check_consistency(agent_id, **how)


# --- copying and deleting ---------------------------------------------------------------------------------------------


async def _copied_without_info(ctx: Context) -> object:
    await ctx.store.save_messages("a", talk("1"))
    copy = await ctx.restored(await ctx.store.backup(ctx.folder / "copy"))
    return len(await copy.load_messages("a"))


@mutant(
    "OPS-16",
    killed_by="a_backup_has_everything",
    on=OnJson,
    source="a dump that walks over list()",
    witness=_copied_without_info,
)
class CopiesWhatIsListed(Layer):
    """Copies the agents that have info."""

    async def backup(self, target: Path, progress: Progress = unwatched) -> Sequence[Path]:
        made = await super().backup(target, progress)
        folder = Folder(made[0], durable=False, wait_ms=10_000)
        engine = JsonFilesEngine(folder)
        await engine.run(folder.open)
        for agent_id in await engine.stored_ids(None, 10_000):
            summary = await engine.summary(agent_id)
            if summary is None or summary.info is None:
                await engine.commit([Batch(agent_id=agent_id, op_id=f"gone {agent_id}", now=0, delete=True)])
        await engine.close()
        return made


@mutant(
    "LIFE-5",
    killed_by="delete_many_deletes_by_every_filter",
    source="created_at <= ? in the statement that deletes, < in the one that finds",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a", created_at=samples.T0)),
        lambda s: s.delete_many(created_before=samples.T0),
    ),
)
class DeletesOneMore(EngineStore):
    """Deletes what was created at the very time before which it is told to delete."""

    async def delete_many(self, **filters: Any) -> int:  # type: ignore[override]
        before = filters.get("created_before")
        if before is not None:
            step = 1 if isinstance(before, int) else timedelta(milliseconds=1)
            filters["created_before"] = before + step
        return await super().delete_many(**filters)


# --- other processes --------------------------------------------------------------------------------------------------


async def _left_with_a_follower(ctx: Context) -> object:
    process = await ctx.process("leave_all_open", "left", [])
    await process.line()
    await process.line()
    try:
        async with asyncio.timeout(3):
            return await process.gone()
    except TimeoutError:
        return "it does not end"


@mutant(
    "OPS-11",
    killed_by="whatever_a_process_leaves_open_it_ends",
    on=OnSqlite,
    source="a thread that listens for changes, and is no daemon",
    witness=_left_with_a_follower,
    slow=True,
)
class FollowersKeepTheProcessAlive(EngineStore):
    """Keeps a process alive in which somebody follows events."""

    def follow_events(self, agent_id: str, **how: Any) -> AsyncIterator[Any]:
        if getattr(sys.modules["__main__"].__spec__, "name", "") == "kode_conformance.processes.scripts":
            threading.Thread(target=threading.Event().wait).start()
        return super().follow_events(agent_id, **how)


async def _released_elsewhere(ctx: Context) -> object:
    gate = ctx.folder / "gate"
    gate.touch()
    process = await ctx.process("live_with_locks", "held", ["released"], str(gate))
    await process.lines()
    return await _take(ctx.store, "kept")


@mutant(
    "LOCK-3",
    killed_by="leases_end_for_other_processes_too",
    on=OnSqlite,
    source="a release that is a note in memory, and a row that ends by itself",
    witness=_released_elsewhere,
)
class ReleasesInThisProcess(Layer):
    """Gives a lock that was released to others of the same process, and to those of another when its time is over."""

    async def release_lease(self, agent_id: str, fence: Fence) -> None:
        if await self.inner.renew_lease(agent_id, fence, 600_000):
            self._held()[agent_id] = fence

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        fence = self._held().pop(agent_id, None)
        if fence is not None:
            await self.inner.release_lease(agent_id, fence)
        return await super().acquire_lease(agent_id, owner, ttl_ms)

    def _held(self) -> dict[str, Fence]:
        return _notes.setdefault(repr(self.inner), {})


_notes: dict[str, dict[str, Fence]] = {}


# --- telling ----------------------------------------------------------------------------------------------------------


async def _logged(ctx: Context) -> object:
    with overheard(ctx.harness.code_of(ctx.store)) as told:
        await ctx.store.save_todos("a", samples.todos(CANARY))
    return any(CANARY in text for text in told)


@mutant(
    "OPS-12",
    killed_by="contents_are_told_to_nobody",
    source="log.debug('saving %r', record)",
    witness=_logged,
)
class LogsTodos(EngineStore):
    """Logs the todos that it saves."""

    async def save_todos(self, agent_id: str, snapshot: Any, *, fence: Any = None) -> None:
        logging.getLogger("zoo").debug("agent %s: saving %r", agent_id, snapshot)
        await super().save_todos(agent_id, snapshot, fence=fence)


async def _damaged_todos(ctx: Context) -> object:
    await ctx.store.save_todos("a", samples.todos("secret plan"))
    store, layer = await damaging(ctx)
    layer.verbs = frozenset({"docs"})
    try:
        await store.load_todos("a")
    except CorruptRecordError as exc:
        return "secret" in str(exc)
    return "it was read"


@mutant(
    "OPS-4",
    killed_by="damaged_records_are_not_quoted",
    source="the message of the JSON parser, which shows the text around the fault",
    witness=_damaged_todos,
)
class QuotesDamagedTodos(EngineStore):
    """Tells what is in a record that is damaged."""

    async def load_todos(self, agent_id: str) -> Any:
        try:
            return await super().load_todos(agent_id)
        except CorruptRecordError as exc:
            (doc, *_) = await self._context.engine.docs(agent_id, DocKind.TODOS)
            raise CorruptRecordError(exc.record, f"expected ',' or '}}' in {doc.body.text[:200]}") from None
