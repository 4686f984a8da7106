"""Whether what is stored fits together, read in pages while others go on writing (OPS-2, OPS-16).

What one page shows is of one instant, and is told at once. What only several pages show together may come from a
write between them: it is told when it was there in one reading without such a write, or in several readings.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

from kode_core.batch import (
    Doc,
    DocKind,
    DocWrite,
    EngineIssue,
    EventRange,
    Head,
    Info,
    ListHead,
    ListKind,
)
from kode_core.codec import Body
from kode_core.engine import Engine, Progress
from kode_core.errors import CorruptRecordError, InvalidArgumentError, KodeError, SchemaVersionError
from kode_core.ids import row_name
from kode_core.large import decode_in_slices, decode_list_in_slices
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
)
from kode_core.pace import Pace
from kode_core.report import ConsistencyCheckResult, ConsistencyIssue
from kode_core.store.context import Context
from kode_core.store.ops import OPS
from kode_core.store.pairing import Pairing, Problem
from kode_core.store.reader import left_out_of
from kode_core.store.rows import (
    compression_doc,
    info_of,
    recovered_doc,
    snapshot_doc,
    todos_doc,
    window_doc,
)
from kode_core.store.steps import Steps

__all__ = ["check", "issues"]

R = TypeVar("R", bound=Record)

_IDS_AT_ONCE: Final = 5_000
_FIRST_PAGE: Final = 50
_LARGEST_PAGE: Final = 2_000
_PAGE_CHARACTERS: Final = 1 << 20
_READINGS: Final = 3
"""How often a list is read that changes while it is read."""
_LOOK_AGAIN_S: Final = (0.05, 0.5)
"""After how long the engine is asked again for what it found, which may be half of a write."""

_DOCS: Final[dict[DocKind, tuple[type[Record], Callable[[Any], Awaitable[DocWrite]]]]] = {
    DocKind.TODOS: (TodoSnapshot, todos_doc),
    DocKind.WINDOWS: (HistoryWindow, window_doc),
    DocKind.COMPRESSIONS: (CompressionRecord, compression_doc),
    DocKind.RECOVERED: (RecoveredFile, recovered_doc),
    DocKind.SNAPSHOTS: (Snapshot, snapshot_doc),
}
_MISFILED: Final = "what it is found by is not what it says"


async def check(context: Context, agent_id: str | None, progress: Progress) -> ConsistencyCheckResult:
    """All issues of one agent, or of all and of what belongs to none."""
    walk = _Walk(context, agent_id, progress)
    found = [issue async for issue in walk.issues()]
    return ConsistencyCheckResult(
        consistent=not found, issues=tuple(found), agents_checked=walk.checked, checked_at=context.now()
    )


async def issues(context: Context, agent_id: str | None, progress: Progress) -> AsyncIterator[ConsistencyIssue]:
    """The same, each as it is found. The book has the whole as one call, without the time that the caller took."""
    walk = _Walk(context, agent_id, progress)
    error: BaseException | None = None
    try:
        await walk.steps(context.begin, agent_id)
        async for issue in walk.issues():
            yield issue
    except GeneratorExit:
        raise
    except BaseException as exc:
        error = exc
        raise
    finally:
        context.book.enter(OPS["check_consistency"], walk.steps.seconds, error)


class _Walk:
    """The check of one agent, or of everything that is stored.

    Attributes:
        checked: how many agents were checked so far.
    """

    def __init__(self, context: Context, agent_id: str | None, progress: Progress) -> None:
        self.steps = Steps(context, OPS["check_consistency"])
        self.checked = 0
        self._context = context
        self._agent_id = agent_id
        self._progress = progress

    async def issues(self) -> AsyncIterator[ConsistencyIssue]:
        engine = self._context.engine
        if self._agent_id is not None:
            self._progress(0, 1)
            agent = _Agent(engine, self.steps, self._agent_id)
            async for issue in agent.issues():
                yield issue
            if not agent.is_there:
                yield ConsistencyIssue("unknown_agent", self._agent_id, "nothing is stored under this id")
            self.checked = 1
            self._progress(1, 1)
            return
        total = (await self.steps(engine.totals)).agents
        self._progress(0, total)
        async for agent_id in self._ids(engine):
            if isinstance(agent_id, ConsistencyIssue):
                yield agent_id
                continue
            agent = _Agent(engine, self.steps, agent_id)
            async for issue in agent.issues():
                yield issue
            self.checked += agent.is_there  # it may have been deleted meanwhile
            self._progress(self.checked, max(self.checked, total))
        for found in await looked_at_twice(engine, self.steps, None):
            yield ConsistencyIssue(found.code, found.agent_id, found.message)

    async def _ids(self, engine: Engine) -> AsyncIterator[str | ConsistencyIssue]:
        after: str | None = None
        while True:
            page = await self.steps(engine.stored_ids, after, _IDS_AT_ONCE)
            for name in left_out_of(page):
                yield ConsistencyIssue("corrupt_record", "", f"{name} cannot be read")
            if not page:
                return
            for after in page:
                yield after


async def looked_at_twice(engine: Engine, steps: Steps, agent_id: str | None) -> Sequence[EngineIssue]:
    """What the engine finds each time that it looks: what was half of a write is gone when it looks again."""
    found = await steps.watched(partial(_inspect, engine, agent_id), lambda done, total: None)
    for pause in _LOOK_AGAIN_S if found else ():
        await asyncio.sleep(pause)
        known = {(issue.code, issue.agent_id) for issue in found}
        again = await steps.watched(partial(_inspect, engine, agent_id), lambda done, total: None)
        found = [issue for issue in again if (issue.code, issue.agent_id) in known]
        if not found:
            break
    return found


async def _inspect(engine: Engine, agent_id: str | None, tell: Progress) -> Sequence[EngineIssue]:
    return await engine.inspect(agent_id, tell)


class _Page(NamedTuple):
    """A page of a list, or the error that reading it ended with."""

    start: int
    version: int
    rows: Sequence[tuple[Body, int]]
    error: CorruptRecordError | None = None


async def _is_kept(doc: Doc, write: Callable[[Any], Awaitable[DocWrite]], record: Any) -> bool:
    """Whether a document stands under the key and the time that it has."""
    written = await write(record)
    return written.doc is not None and (doc.key, doc.time) == (written.key, written.doc.time)


async def _has_time(created_at: int, call: ToolCallRecord) -> bool:
    return call.created_at == created_at


async def _has_seq(seq: int, event: Timeline) -> bool:
    return event.bookmark.seq == seq


async def _fits(record: Any) -> bool:
    return True


class _PageSize:
    """How many records to read at once, so that pages take about the same memory."""

    def __init__(self) -> None:
        self.limit = _FIRST_PAGE

    def saw(self, bodies: Sequence[Body]) -> None:
        if bodies:
            mean = max(1, sum(len(body.text) for body in bodies) // len(bodies))
            self.limit = min(max(1, _PAGE_CHARACTERS // mean), _LARGEST_PAGE, 4 * self.limit)


class _Agent:
    """The check of one agent.

    Attributes:
        is_there: whether anything was found under its id.
    """

    def __init__(self, engine: Engine, steps: Steps, agent_id: str) -> None:
        self.is_there = False
        self._engine = engine
        self._steps = steps
        self._agent_id = agent_id
        self._pace = Pace()
        self._told: set[str] = set()
        self._head: Head | None = None

    async def issues(self) -> AsyncIterator[ConsistencyIssue]:
        """What is wrong with the agent; a part that cannot be read keeps no other from being checked."""
        for part in (self._info, self._messages, self._tool_calls, self._docs, self._media, self._events, self._own):
            try:
                async for issue in part():
                    self.is_there = True
                    if issue.message not in self._told:
                        self._told.add(issue.message)
                        yield issue
            except (CorruptRecordError, SchemaVersionError) as exc:
                self.is_there = True
                if str(exc) not in self._told:
                    self._told.add(str(exc))
                    yield self._corrupt(exc)

    def _issue(self, code: str, message: str) -> ConsistencyIssue:
        return ConsistencyIssue(code, self._agent_id, message)

    def _corrupt(self, exc: KodeError) -> ConsistencyIssue:
        return self._issue("corrupt_record", str(exc))

    async def _unsound(
        self,
        read: Callable[[type[R], Body, str, Pace], Awaitable[Any]],
        cls: type[R],
        body: Body,
        what: str,
        fits: Callable[[Any], Awaitable[bool]] = _fits,
    ) -> str:
        """What is wrong with a record; empty when it is sound, and is found by what *fits* it."""
        self.is_there = True
        try:
            record = await read(cls, body, what, self._pace)
            return "" if await fits(record) else f"{what}: {_MISFILED}"
        except InvalidArgumentError:
            return f"{what}: {_MISFILED}"
        except CorruptRecordError as exc:
            return str(exc)

    # --- info and lists

    async def _info(self) -> AsyncIterator[ConsistencyIssue]:
        head = self._head = await self._steps(self._engine.head, self._agent_id)
        if head is None:
            return
        self.is_there = True
        if head.info is not None:
            info, what = head.info, f"the info of agent {self._agent_id!r}"
            problem = await self._unsound(decode_in_slices, AgentInfo, info.body, what, partial(self._is_filed, info))
            if problem:
                yield self._issue("corrupt_record", problem)

    async def _is_filed(self, info: Info, record: AgentInfo) -> bool:
        told = await info_of(self._agent_id, record)
        return (told.template_id, told.created_at) == (info.template_id, info.created_at)

    async def _messages(self) -> AsyncIterator[ConsistencyIssue]:
        common: dict[str, Problem] | None = None
        for _ in range(_READINGS):
            pairing, versions, is_whole = Pairing(), set[int](), True
            async for page in self._pages(ListKind.MESSAGES):
                if page.error is not None:
                    is_whole = False
                    yield self._corrupt(page.error)
                    continue
                versions.add(page.version)
                for i, (body, _) in enumerate(page.rows, page.start):
                    try:
                        what = row_name(ListKind.MESSAGES, i, self._agent_id)
                        pairing.add(i, await decode_in_slices(Message, body, what, self._pace))
                    except CorruptRecordError as exc:
                        is_whole = False
                        yield self._corrupt(exc)
                await asyncio.sleep(0)
            if not is_whole:
                return  # the other half of a pair may be in what cannot be read
            async for issue in self._miscounts(ListKind.MESSAGES, versions, pairing.messages):
                yield issue
            found = pairing.problems()
            common = found if common is None else {key: found[key] for key in common if key in found}
            if len(versions) <= 1 or not common:
                break
        for problem in (common or {}).values():
            yield self._issue(problem.code, problem.message)

    async def _tool_calls(self) -> AsyncIterator[ConsistencyIssue]:
        kind, versions, count, is_whole = ListKind.TOOL_CALLS, set[int](), 0, True
        async for page in self._pages(kind):
            if page.error is not None:
                is_whole = False
                yield self._corrupt(page.error)
                continue
            versions.add(page.version)
            count += len(page.rows)
            for i, (body, created_at) in enumerate(page.rows, page.start):
                what = row_name(kind, i, self._agent_id)
                problem = await self._unsound(
                    decode_in_slices, ToolCallRecord, body, what, partial(_has_time, created_at)
                )
                if problem:
                    yield self._issue("corrupt_record", problem)
            await asyncio.sleep(0)
        if is_whole:
            async for issue in self._miscounts(kind, versions, count):
                yield issue

    async def _miscounts(self, kind: ListKind, versions: set[int], count: int) -> AsyncIterator[ConsistencyIssue]:
        """Whether as many rows were read as the head of the same version counts."""
        head = ListHead() if self._head is None else getattr(self._head, kind.value)
        if versions == {head.version} and count != head.count:
            what = kind.value.replace("_", " ")
            yield self._issue("count_disagrees", f"{head.count} {what} are counted, {count} are stored")

    async def _pages(self, kind: ListKind) -> AsyncIterator[_Page]:
        """A list in pages; around a row that cannot be read the others are."""
        size, start, end, was_lost = _PageSize(), 0, 0, False
        while True:
            limit = end - start if end > start else size.limit
            try:
                rows = await self._steps(self._engine.rows_at, self._agent_id, kind, start, limit)
            except CorruptRecordError as exc:
                end = self._place_of(exc, kind, start, limit)
                if end > start:
                    continue
                yield _Page(start, 0, (), exc)
                is_lost = end < start
                if is_lost and was_lost:
                    return  # nothing can be found any more
                start, was_lost = (start + limit if is_lost else start + 1), is_lost
                if start >= await self._count(kind):
                    return
                continue
            bodies = [body for body, _ in rows.rows]
            self.is_there = self.is_there or bool(bodies)
            yield _Page(start, rows.version, rows.rows)
            if len(bodies) < limit:
                return
            start, was_lost = start + limit, False
            size.saw(bodies)

    def _place_of(self, exc: CorruptRecordError, kind: ListKind, start: int, limit: int) -> int:
        """Which row of the page it is that cannot be read; -1 when the error does not say."""
        places = range(start, start + limit)
        return next((i for i in places if row_name(kind, i, self._agent_id) == exc.record), -1)

    async def _count(self, kind: ListKind) -> int:
        """How many rows the head counts."""
        head = await self._steps(self._engine.head, self._agent_id)
        return 0 if head is None else getattr(head, kind.value).count

    # --- documents and events

    async def _docs(self) -> AsyncIterator[ConsistencyIssue]:
        for kind, (cls, write) in _DOCS.items():
            try:
                docs = await self._steps(self._engine.docs, self._agent_id, kind)
            except CorruptRecordError as exc:
                yield self._corrupt(exc)
                continue
            for doc in docs:
                what = f"{kind.value} {doc.key!r:.80} of agent {self._agent_id!r}"
                problem = await self._unsound(decode_in_slices, cls, doc.body, what, partial(_is_kept, doc, write))
                if problem:
                    yield self._issue("corrupt_record", problem)
                await asyncio.sleep(0)

    async def _media(self) -> AsyncIterator[ConsistencyIssue]:
        for doc in await self._steps(self._engine.docs, self._agent_id, DocKind.MEDIA):
            what = f"the media cache of agent {self._agent_id!r}"
            problem = await self._unsound(decode_list_in_slices, MediaCacheRecord, doc.body, what)
            if problem:
                yield self._issue("corrupt_record", problem)

    async def _events(self) -> AsyncIterator[ConsistencyIssue]:
        after, size = 0, _PageSize()
        while True:
            span = EventRange(order="offset", after=(0, after), limit=size.limit)
            rows = await self._steps(self._engine.events, self._agent_id, span)
            for row in rows:
                what = f"event {row.offset} of agent {self._agent_id!r}"
                problem = await self._unsound(decode_in_slices, Timeline, row.body, what, partial(_has_seq, row.seq))
                if problem:
                    yield self._issue("corrupt_record", problem)
                if row.offset <= after:
                    yield self._issue("repeated_offset", f"offset {row.offset} comes after offset {after}")
                after = max(after, row.offset)
            if len(rows) < span.limit:
                return
            size.saw([row.body for row in rows])
            await asyncio.sleep(0)

    # --- the engine's own

    async def _own(self) -> AsyncIterator[ConsistencyIssue]:
        for issue in await looked_at_twice(self._engine, self._steps, self._agent_id):
            yield self._issue(issue.code, issue.message)
