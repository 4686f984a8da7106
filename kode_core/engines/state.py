"""One agent's contents in memory, as the built-in engines keep them.

A state never reads the text of a body. Bodies of the memory engine contain their text; bodies of the JSON files engine
have its place in the file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import cast

from msgspec.structs import replace

from kode_core.batch import (
    CORE_KEYS,
    AgentSummary,
    Applied,
    Batch,
    Doc,
    DocKind,
    DocQuery,
    DocSpan,
    DocWrite,
    Index,
    Info,
    ListHead,
    ListKind,
    ListRows,
    ListWrite,
    Outline,
    Refused,
    Row,
    ToolCallIndex,
    placed_docs,
)
from kode_core.codec import Body
from kode_core.engines.event_log import Bodies, EventLog
from kode_core.engines.own_docs import OwnDocs
from kode_core.query import AgentStats

__all__ = ["AgentState", "ListState", "accepted"]


class ListState:
    """A list of rows and its version, which is 0 until something is written."""

    __slots__ = ("_latest", "rows", "version")

    def __init__(self) -> None:
        self.version = 0
        self.rows: list[Row] = []
        self._latest: int | None = None
        """The greatest created_at, if it is known."""

    @property
    def head(self) -> ListHead:
        return ListHead(self.version, len(self.rows))

    def in_order(self, write: ListWrite) -> ListWrite:
        """The write, with no message older than the messages that stay before it (MSG-4)."""
        kept = len(self.rows) if write.length is None else min(write.length, len(self.rows))
        if not write.is_blind or not kept:
            return write
        if kept < len(self.rows):
            return write.not_before(max(row.created_at for row in self.rows[:kept]))
        if self._latest is None:
            self._latest = max(row.created_at for row in self.rows)
        return write.not_before(self._latest)

    def apply(self, write: ListWrite, head: ListHead) -> None:
        if write.length is not None and write.length < len(self.rows):
            del self.rows[write.length :]
            self._latest = None
        for position, row in write.put:
            if position < len(self.rows):
                if row.created_at < self.rows[position].created_at:
                    self._latest = None  # it may have been the greatest
                self.rows[position] = row
            else:
                self.rows.append(row)
        self.rows.extend(write.append)
        if self._latest is not None:
            self._latest = max((self._latest, *write.times()))
        self.version = head.version


class AgentState:
    """Everything that is stored for one agent."""

    __slots__ = ("_own", "agent_id", "docs", "info", "last_op", "last_outcome", "lists", "log", "since", "updated_at")

    def __init__(self, agent_id: str, next_offset: int = 1, bodies: Bodies | None = None, *, since: int = 0) -> None:
        self.agent_id = agent_id
        self.since = since
        """The time of the last change of an agent of this id that was deleted, if it may not have passed yet."""
        self.info: Info | None = None
        self.updated_at = 0
        self.lists = {kind: ListState() for kind in ListKind}
        self.docs: dict[tuple[DocKind, str], Doc] = {}
        self._own = OwnDocs()
        self.log = EventLog(next_offset, bodies)
        self.last_op = ""
        self.last_outcome = Applied()

    @property
    def has_contents(self) -> bool:
        """True if anything is stored, apart from the documents of layers."""
        lists = any(rows.version for rows in self.lists.values())
        return bool(self.info or self.log or lists or any(kind != DocKind.LAYER for kind, _ in self.docs))

    @property
    def _has_more(self) -> bool:
        """True if documents, but for layers' and the core's, or events are stored."""
        others = (DocKind.LAYER, DocKind.DOCUMENTS)
        is_own = self._own.count_below(CORE_KEYS) > 0
        return bool(self.log) or is_own or any(kind not in others for kind, _ in self.docs)

    @property
    def is_empty(self) -> bool:
        lists = any(rows.version for rows in self.lists.values())
        return not (self.info or self.docs or self.log or lists)

    # --- writes

    def refusal(self, batch: Batch) -> Refused | None:
        """The reason why *batch* must not be applied, apart from the fence."""
        found = [(name, self.docs.get(name)) for name in batch.demanded_docs]
        digests = {name: doc.body.digest for name, doc in found if doc is not None}
        heads = (self.lists[ListKind.MESSAGES].head, self.lists[ListKind.TOOL_CALLS].head)
        info, has_more = self.info.body.digest if self.info else b"", batch.expect_nothing and self._has_more
        refusal = batch.refusal(self.updated_at, *heads, digests, info=info, has_more=has_more)
        if refusal is None and batch.drop_events is not None and not self.log.has(batch.drop_events.keep):
            return Refused("events")
        return refusal

    def outcome(self, batch: Batch) -> Applied:
        """The outcome of applying *batch*; changes nothing."""
        return Applied(
            self.lists[ListKind.MESSAGES].head.after(batch.messages),
            self.lists[ListKind.TOOL_CALLS].head.after(batch.tool_calls),
            self.log.offsets_for(batch.events),
        )

    def stamped(self, batch: Batch) -> Batch:
        """*batch* with a time after the last change, whatever the clock says (INFO-2), and its messages too (MSG-4)."""
        if batch.messages is not None:
            kept = self.lists[ListKind.MESSAGES].head.kept(batch.messages)
            batch = replace(batch, docs=placed_docs(batch.docs, kept))
        batch = accepted(batch)
        last = self.updated_at if batch.lists else max(self.updated_at, self.since)  # a new list has a new version
        if batch.is_touching and batch.now <= last:
            batch = replace(batch, now=last + 1)
        if batch.messages is not None and batch.messages.is_blind:
            batch = replace(batch, messages=self.lists[ListKind.MESSAGES].in_order(batch.messages))
        return batch

    def apply(self, batch: Batch, outcome: Applied) -> None:
        """Apply *batch*, except its ``delete``."""
        if batch.info is not None:
            self.info = batch.info
        for kind, write in batch.lists.items():
            self.lists[kind].apply(write, getattr(outcome, kind.value))
        for change in batch.docs:
            self._apply_doc(change)
        if batch.drop_events is not None:
            self.log.drop(batch.drop_events)
        if batch.events:  # a rewritten file repeats the last outcome without its events
            self.log.apply(batch.events, outcome.offsets)
        if batch.is_touching:
            self.updated_at = max(self.updated_at, batch.now)
        self.last_op, self.last_outcome = batch.op_id, outcome

    def _apply_doc(self, change: DocWrite) -> None:
        name, is_own = (change.kind, change.key), change.kind is DocKind.DOCUMENTS
        old = self.docs.pop(name, None) if change.doc is None else self.docs.get(name)
        if is_own:
            self._own.note(change.key, old, change.doc)
        if change.doc is not None:
            self.docs[name] = change.doc

    # --- reads

    @property
    def message_count(self) -> int:
        """The number of messages."""
        return len(self.lists[ListKind.MESSAGES].rows)

    @property
    def call_count(self) -> int:
        """The number of records of tool calls."""
        return len(self.lists[ListKind.TOOL_CALLS].rows)

    def indexed(self, kind: ListKind) -> Iterator[tuple[int, Index]]:
        """The time and the columns of each row of a list."""
        return ((row.created_at, row.index) for row in self.lists[kind].rows)

    def body_at(self, kind: ListKind, position: int) -> Body:
        """The body of a row."""
        return self.lists[kind].rows[position].body

    def summary(self) -> AgentSummary | None:
        if self.info is None and not any(x.version for x in self.lists.values()):
            return None
        return AgentSummary(
            agent_id=self.agent_id,
            info=self.info,
            updated_at=self.updated_at,
            messages=self.lists[ListKind.MESSAGES].head,
            tool_calls=self.lists[ListKind.TOOL_CALLS].head,
        )

    def rows(self, kind: ListKind) -> ListRows:
        state = self.lists[kind]
        return ListRows(state.version, [(row.body, row.created_at) for row in state.rows])

    def rows_at(self, kind: ListKind, start: int, limit: int) -> ListRows:
        state = self.lists[kind]
        return ListRows(state.version, [(row.body, row.created_at) for row in state.rows[start : start + limit]])

    def outline(self, kind: ListKind, keys: Sequence[str] | None) -> Outline:
        state = self.lists[kind]
        places = range(len(state.rows)) if keys is None else sorted(self._last_places(state, set(keys)))
        rows = [(i, row.body.digest, row.created_at, _key(row)) for i, row in ((i, state.rows[i]) for i in places)]
        return Outline(state.version, len(state.rows), rows)

    def _last_places(self, state: ListState, keys: set[str]) -> Iterator[int]:
        for i in range(len(state.rows) - 1, -1, -1):
            key = _key(state.rows[i])
            if key in keys:
                keys.discard(key)
                yield i
            if not keys:
                return

    def docs_of(self, kind: DocKind, key: str | None) -> list[Doc]:
        if key is not None:
            doc = self.docs.get((kind, key))
            return [] if doc is None else [doc]
        return [doc for (k, _), doc in self.docs.items() if k == kind]

    def docs_in(self, span: DocSpan) -> list[Doc]:
        return [self.docs[DocKind.DOCUMENTS, key] for key in self._own.within(span)]

    def found_docs(self, query: DocQuery) -> list[Doc]:
        """The agent's part of the results of a query."""
        return [self.docs[DocKind.DOCUMENTS, key] for key in self._own.found(self.agent_id, query)]

    def stats(self) -> AgentStats:
        calls = [cast(ToolCallIndex, row.index) for row in self.lists[ListKind.TOOL_CALLS].rows]
        return AgentStats(
            total_messages=len(self.lists[ListKind.MESSAGES].rows),
            total_tool_calls=len(calls),
            total_snapshots=sum(kind == DocKind.SNAPSHOTS for kind, _ in self.docs),
            total_documents=self._own.count_below(CORE_KEYS),
            tool_calls_by_name=dict(Counter(call.tool_name for call in calls)),
            tool_calls_by_state=dict(Counter(call.state for call in calls)),
        )


def accepted(batch: Batch) -> Batch:
    """*batch* without its demands on documents, info and contents: a file that repeats it would find its own."""
    if batch.demanded_docs:
        batch = replace(batch, docs=tuple(replace(write, expect=None) for write in batch.docs))
    if batch.expect_nothing or batch.expect_info is not None:
        batch = replace(batch, expect_nothing=False, expect_info=None)
    return batch


def _key(row: Row) -> str | None:
    return row.index.call_id if isinstance(row.index, ToolCallIndex) else None
