"""Health, consistency and size of a store (OPS-1 to OPS-3)."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from kode_core.batch import DocKind, EventRange, ListKind
from kode_core.codec import Body, decode, decode_list
from kode_core.engine import Medium
from kode_core.errors import CorruptRecordError, KodeError, SchemaVersionError
from kode_core.model import (
    AgentInfo,
    CompressionRecord,
    HistoryWindow,
    MediaCacheRecord,
    Message,
    Record,
    RecoveredFile,
    Snapshot,
    Timeline,
    TodoSnapshot,
    ToolCallRecord,
    ToolResultBlock,
    ToolUseBlock,
)
from kode_core.report import ConsistencyCheckResult, ConsistencyIssue, MediumHealth, StoreHealthStatus
from kode_core.store.context import Context

__all__ = ["check", "health"]

R = TypeVar("R", bound=Record)
T = TypeVar("T")

_HEALTH_SECONDS = 5.0
_DOCS: dict[DocKind, type[Record]] = {
    DocKind.TODOS: TodoSnapshot,
    DocKind.WINDOWS: HistoryWindow,
    DocKind.COMPRESSIONS: CompressionRecord,
    DocKind.RECOVERED: RecoveredFile,
    DocKind.SNAPSHOTS: Snapshot,
}


async def health(context: Context) -> StoreHealthStatus:
    """Ask every medium."""
    try:
        async with asyncio.timeout(_HEALTH_SECONDS):
            engine = await context.open()
            context.check_open()
    except Exception as exc:  # noqa: BLE001 - a health check reports, whatever it is
        return StoreHealthStatus(healthy=False, problem=_problem(exc), checked_at=context.now())
    found: dict[Medium, MediumHealth] = {}
    for medium, probe in engine.probes():
        found[medium] = await _probe(probe)
    return StoreHealthStatus(
        healthy=all(medium.ok for medium in found.values()),
        database=found.get("database"),
        file_system=found.get("file_system"),
        checked_at=context.now(),
    )


async def _probe(probe: Callable[[], Awaitable[None]]) -> MediumHealth:
    start = time.perf_counter()
    try:
        async with asyncio.timeout(_HEALTH_SECONDS):
            await probe()
    except Exception as exc:  # noqa: BLE001 - as above
        return MediumHealth(ok=False, problem=_problem(exc))
    return MediumHealth(ok=True, latency_ms=(time.perf_counter() - start) * 1000)


def _problem(exc: Exception) -> str:
    if isinstance(exc, TimeoutError) and not isinstance(exc, KodeError):
        return f"no answer within {_HEALTH_SECONDS:g} s"
    return f"{type(exc).__name__}: {exc}"


# --- Consistency ------------------------------------------------------------------------------------------------------


async def check(context: Context, agent_id: str | None) -> ConsistencyCheckResult:
    """Check one agent, or all of them and what belongs to none. Reads everything, changes nothing."""
    issues: list[ConsistencyIssue] = []
    checked = 0
    async for one in _agents(context, agent_id):
        checked += 1
        issues.extend(await _Check(context, one).run())
    if agent_id is None:
        rest = await context.engine.inspect(None)
        issues.extend(ConsistencyIssue(issue.code, issue.agent_id, issue.message) for issue in rest)
    return ConsistencyCheckResult(
        consistent=not issues, issues=tuple(issues), agents_checked=checked, checked_at=context.now()
    )


async def _agents(context: Context, agent_id: str | None) -> AsyncIterator[str]:
    if agent_id is not None:
        yield agent_id
        return
    after: str | None = None
    while page := await context.engine.agent_ids("", after, 500):
        for after in page:
            yield after


class _Check:
    """The check of one agent."""

    def __init__(self, context: Context, agent_id: str) -> None:
        self._engine = context.engine
        self._agent_id = agent_id
        self._issues: list[ConsistencyIssue] = []
        self._found = False

    def _report(self, code: str, message: str) -> None:
        self._issues.append(ConsistencyIssue(code, self._agent_id, message))

    def _sound(self, read: Callable[[type[R], Body, str], T], cls: type[R], body: Body, what: str) -> T | None:
        """The record, or None when it is corrupt, which is reported."""
        self._found = True
        try:
            return read(cls, body, f"{what} of agent {self._agent_id!r}")
        except CorruptRecordError as exc:
            self._report("corrupt_record", str(exc))
            return None

    async def run(self) -> list[ConsistencyIssue]:
        for part in (self._head, self._messages, self._tool_calls, self._docs, self._events):
            try:
                await part()
            except (CorruptRecordError, SchemaVersionError) as exc:  # the engine cannot even find the records
                self._found = True
                self._report("corrupt_record", str(exc))
                break
        else:
            for issue in await self._engine.inspect(self._agent_id):
                self._found = True
                self._report(issue.code, issue.message)
        if not self._found:
            self._report("unknown_agent", "nothing is stored under this id")
        return self._issues

    async def _head(self) -> None:
        head = await self._engine.head(self._agent_id)
        if head is None:
            return
        self._found = True
        if head.info is not None:
            self._sound(decode, AgentInfo, head.info.body, "the info")
        for kind, counted in ((ListKind.MESSAGES, head.messages), (ListKind.TOOL_CALLS, head.tool_calls)):
            rows = await self._engine.rows(self._agent_id, kind)
            if rows.version == counted.version and len(rows.rows) != counted.count:
                what = kind.value.replace("_", " ")
                self._report("count_disagrees", f"{counted.count} {what} are counted, {len(rows.rows)} are stored")

    async def _messages(self) -> None:
        open_calls: Counter[str] = Counter()
        rows = await self._engine.rows(self._agent_id, ListKind.MESSAGES)
        for i, (body, _) in enumerate(rows.rows):
            message = self._sound(decode, Message, body, f"message {i}")
            for block in () if message is None else message.content:
                if isinstance(block, ToolUseBlock):
                    open_calls[block.id] += 1
                elif isinstance(block, ToolResultBlock):
                    if open_calls[block.tool_use_id]:
                        open_calls[block.tool_use_id] -= 1
                    else:
                        text = f"message {i} has a result of the call {block.tool_use_id!r}, which was not asked for"
                        self._report("result_without_use", text)
        for call_id in sorted(call_id for call_id, count in open_calls.items() if count > 0):
            self._report("use_without_result", f"the tool call {call_id!r} has no result")

    async def _tool_calls(self) -> None:
        rows = await self._engine.rows(self._agent_id, ListKind.TOOL_CALLS)
        for i, (body, _) in enumerate(rows.rows):
            self._sound(decode, ToolCallRecord, body, f"tool call record {i}")

    async def _docs(self) -> None:
        for kind, cls in _DOCS.items():
            for doc in await self._engine.docs(self._agent_id, kind):
                self._sound(decode, cls, doc.body, f"{kind.value} {doc.key!r:.80}")
        for doc in await self._engine.docs(self._agent_id, DocKind.MEDIA):
            self._sound(decode_list, MediaCacheRecord, doc.body, "the media cache")

    async def _events(self) -> None:
        after = 0
        while True:
            span = EventRange(order="offset", after=(0, after))
            rows = await self._engine.events(self._agent_id, span)
            for row in rows:
                self._sound(decode, Timeline, row.body, f"event {row.offset}")
                if row.offset <= after:
                    self._report("repeated_offset", f"offset {row.offset} comes after offset {after}")
                after = max(after, row.offset)
            if len(rows) < span.limit:
                return
