"""The check of stored data, read in pages while others go on writing (OPS-2, OPS-16).

A page shows one instant, and the issues of a single page are reported at once. An issue that only several pages
together show may come from a write between them. It is reported if it also shows in a reading without such a write, or
in several readings.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from kode_core.batch import (
    CORE_KEYS,
    AgentSummary,
    Doc,
    DocSpan,
    EngineIssue,
    EventRange,
    Info,
    ListHead,
    ListKind,
)
from kode_core.codec import Body
from kode_core.engine import Engine, Progress, docs_in, keeps_documents
from kode_core.errors import CorruptRecordError, InvalidArgumentError, KodeError, SchemaVersionError
from kode_core.ids import row_name
from kode_core.large import decode_in_slices, decode_list_in_slices
from kode_core.model import (
    AgentInfo,
    Message,
    Record,
    Timeline,
    ToolCallRecord,
)
from kode_core.model.documents import StoredDocument
from kode_core.pace import Pace
from kode_core.report import ConsistencyCheckResult, ConsistencyIssue
from kode_core.store.context import Context
from kode_core.store.documents import WITH_CORE_KEYS, DocPages, is_engine_key, name_of
from kode_core.store.keyed import check_key_document, key_name
from kode_core.store.kinds import KINDS, Kind
from kode_core.store.list_pages import PageSize, pages_of
from kode_core.store.methods import METHODS
from kode_core.store.pairing import Pairing, Problem
from kode_core.store.prune_mark import PruneMark
from kode_core.store.reader import left_out_of
from kode_core.store.rows import info_of
from kode_core.store.steps import Steps
from kode_core.store.tag_search import is_found

__all__ = ["check", "issues"]

R = TypeVar("R", bound=Record)

_IDS_AT_ONCE: Final = 5_000
_READINGS: Final = 3
"""How often a list that changes while it is read is read again."""
_LOOK_AGAIN_S: Final = (0.05, 0.5)
"""The pauses before the engine looks again, since it may have seen a half-finished write."""

_MISFILED: Final = "what it is found by is not what it says"


async def check(context: Context, agent_id: str | None, progress: Progress) -> ConsistencyCheckResult:
    """All issues of one agent; or the issues of all agents, and of records that belong to none."""
    walk = _Walk(context, agent_id, progress)
    found = [issue async for issue in walk.issues()]
    return ConsistencyCheckResult(
        consistent=not found, issues=tuple(found), agents_checked=walk.checked, checked_at=context.now()
    )


async def issues(context: Context, agent_id: str | None, progress: Progress) -> AsyncIterator[ConsistencyIssue]:
    """Yield the same issues as they are found. The metrics count one call, without the time that the caller spent."""
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
        method, metrics = METHODS["check_consistency"], context.call_metrics
        seconds = walk.steps.seconds
        metrics.enter(method, seconds, error, metrics.begin(method, agent_id, seconds))


class _Walk:
    """The check of one agent, or of the whole store.

    Attributes:
        checked: the number of agents that were checked so far.
    """

    def __init__(self, context: Context, agent_id: str | None, progress: Progress) -> None:
        self.steps = Steps(context, METHODS["check_consistency"])
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
        reported: set[str] = set()
        while True:
            page = await self.steps(engine.stored_ids, after, _IDS_AT_ONCE)
            for name in sorted(set(left_out_of(page)) - reported):
                reported.add(name)
                yield ConsistencyIssue("corrupt_record", "", f"{name} cannot be read")
            if not page:
                return
            for after in page:
                yield after


async def looked_at_twice(engine: Engine, steps: Steps, agent_id: str | None) -> Sequence[EngineIssue]:
    """The issues that the engine finds each time it looks: a half-finished write is complete when it looks again."""
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


async def _is_kept(doc: Doc, kind: Kind[Any], record: Any) -> bool:
    """True if a document is stored under its own key and time."""
    written = await kind.write(record)
    return written.doc is not None and (doc.key, doc.time) == (written.key, written.doc.time)


async def _has_time(created_at: int, call: ToolCallRecord) -> bool:
    return call.created_at == created_at


async def _has_seq(seq: int, event: Timeline) -> bool:
    return event.bookmark.seq == seq


async def _fits(record: Any) -> bool:
    return True


class _Agent:
    """The check of one agent.

    Attributes:
        is_there: True if anything was found under its id.
    """

    def __init__(self, engine: Engine, steps: Steps, agent_id: str) -> None:
        self.is_there = False
        self._engine = engine
        self._steps = steps
        self._agent_id = agent_id
        self._pace = Pace()
        self._reported: set[str] = set()
        self._summary: AgentSummary | None = None

    async def issues(self) -> AsyncIterator[ConsistencyIssue]:
        """The issues of the agent; if one part cannot be read, the others are checked anyway."""
        for part in (
            self._info,
            self._messages,
            self._tool_calls,
            self._docs,
            self._documents,
            self._events,
            self._mark,
            self._own,
        ):
            try:
                async for issue in part():
                    self.is_there = True
                    if issue.message not in self._reported:
                        self._reported.add(issue.message)
                        yield issue
            except (CorruptRecordError, SchemaVersionError) as exc:
                self.is_there = True
                if str(exc) not in self._reported:
                    self._reported.add(str(exc))
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
        """The problem of a record; empty if it is sound and *fits* its index columns."""
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
        summary = self._summary = await self._steps(self._engine.summary, self._agent_id)
        if summary is None:
            return
        self.is_there = True
        if summary.info is not None:
            info, what = summary.info, f"the info of agent {self._agent_id!r}"
            problem = await self._unsound(decode_in_slices, AgentInfo, info.body, what, partial(self._is_filed, info))
            if problem:
                yield self._issue("corrupt_record", problem)

    async def _is_filed(self, info: Info, record: AgentInfo) -> bool:
        expected = await info_of(self._agent_id, record)
        return (expected.template_id, expected.created_at) == (info.template_id, info.created_at)

    async def _messages(self) -> AsyncIterator[ConsistencyIssue]:
        common: dict[str, Problem] | None = None
        for _ in range(_READINGS):
            pairing, versions, is_whole = Pairing(), set[int](), True
            async for page in pages_of(self._engine, self._steps, self._agent_id, ListKind.MESSAGES):
                self.is_there = self.is_there or bool(page.rows)
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
                return  # the other half of a pair may be in the part that cannot be read
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
        async for page in pages_of(self._engine, self._steps, self._agent_id, kind):
            self.is_there = self.is_there or bool(page.rows)
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
        """Yield an issue unless the number of rows matches the head of the same version."""
        head = ListHead() if self._summary is None else getattr(self._summary, kind.value)
        if versions == {head.version} and count != head.count:
            what = kind.value.replace("_", " ")
            yield self._issue("count_disagrees", f"{head.count} {what} are counted, {count} are stored")

    # --- documents and events

    async def _docs(self) -> AsyncIterator[ConsistencyIssue]:
        for kind in KINDS:
            try:
                docs = await self._steps(self._engine.docs, self._agent_id, kind.kind)
            except CorruptRecordError as exc:
                yield self._corrupt(exc)
                continue
            for doc in docs:
                if kind.is_list:
                    what = f"the {kind.noun} of agent {self._agent_id!r}"
                    problem = await self._unsound(decode_list_in_slices, kind.cls, doc.body, what)
                else:
                    what = f"{kind.kind.value} {doc.key!r:.80} of agent {self._agent_id!r}"
                    fits = partial(_is_kept, doc, kind)
                    problem = await self._unsound(decode_in_slices, kind.cls, doc.body, what, fits)
                if problem:
                    yield self._issue("corrupt_record", problem)
                await asyncio.sleep(0)

    async def _documents(self) -> AsyncIterator[ConsistencyIssue]:
        async def read(span: DocSpan) -> Sequence[Doc]:
            return await self._steps(docs_in, self._engine, self._agent_id, span)

        pages = DocPages(read, WITH_CORE_KEYS)
        while keeps_documents(self._engine):
            try:
                docs = await pages.next()
            except CorruptRecordError as exc:
                yield self._corrupt(exc)
                return
            if not docs:
                return
            for doc in docs:
                name = key_name if doc.key.startswith(CORE_KEYS) else name_of
                what, fits = name(self._agent_id, doc.key), partial(self._is_document, doc)
                problem = await self._unsound(decode_in_slices, StoredDocument, doc.body, what, fits)
                if problem:
                    yield self._issue("corrupt_record", problem)
                await asyncio.sleep(0)

    async def _is_document(self, doc: Doc, stored: StoredDocument) -> bool:
        if doc.key.startswith(CORE_KEYS):
            check_key_document(self._agent_id, doc)
            return True
        return is_engine_key(doc.key) and await self._steps(is_found, self._engine, self._agent_id, doc, stored.tags)

    async def _events(self) -> AsyncIterator[ConsistencyIssue]:
        after, size = 0, PageSize()
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

    async def _mark(self) -> AsyncIterator[ConsistencyIssue]:
        try:
            await self._steps(PruneMark.of, self._engine, self._agent_id)
        except CorruptRecordError as exc:
            yield self._corrupt(exc)

    async def _own(self) -> AsyncIterator[ConsistencyIssue]:
        for issue in await looked_at_twice(self._engine, self._steps, self._agent_id):
            yield self._issue(issue.code, issue.message)
