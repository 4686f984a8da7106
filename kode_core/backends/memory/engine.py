"""An engine that keeps everything in this process: for tests, and for agents that may be forgotten.

Stores of one space may be used in several threads, each with an event loop of its own. So each call holds the lock of
the space from its first read to its last change, and does not wait in between.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from kode_core.batch import (
    FORKED_DOCS,
    AgentSummary,
    Applied,
    Batch,
    Child,
    Doc,
    DocKind,
    DocQuery,
    DocSpan,
    EngineIssue,
    EventRange,
    EventRow,
    Fence,
    FoundDoc,
    FoundRow,
    ListKind,
    ListRows,
    Outcome,
    Outline,
    Refused,
    SessionRow,
    Totals,
    first_version,
)
from kode_core.codec import Body
from kode_core.engine import Medium, Progress, unwatched
from kode_core.engines import scan
from kode_core.engines.state import AgentState
from kode_core.errors import UnsupportedError
from kode_core.query import AgentStats, Grouping, GroupRows, RowQuery, SessionQuery
from kode_core.rewriting import EventBody

__all__ = ["MemoryEngine", "MemorySpace"]


class MemorySpace:
    """The contents that one or more memory engines share."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.states: dict[str, AgentState] = {}
        self.leases: dict[str, tuple[Fence, float]] = {}
        self.counter = 0
        """At least as great as every token given out and every offset of a deleted agent."""
        self.ended: dict[str, int] = {}
        """When a deleted agent changed last, if the clock had not passed that time: no version comes back (VER-1)."""

    def __getstate__(self) -> dict[str, Any]:
        """Leave the lock out: a copy gets a lock of its own."""
        return {name: value for name, value in vars(self).items() if name != "lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, lock=threading.Lock())

    def state(self, agent_id: str) -> AgentState:
        """The agent's state; if there is none, an empty one that is not kept."""
        state = self.states.get(agent_id)
        return state or AgentState(agent_id, self.counter + 1, since=self.ended.get(agent_id, 0))

    def note_end(self, agent_id: str, last: int, now: int) -> None:
        """An agent that had changed last at *last* is deleted at *now*."""
        if last >= now:
            self.ended[agent_id] = last
        else:
            self.ended.pop(agent_id, None)

    def holds(self, agent_id: str, fence: Fence) -> bool:
        lease = self.leases.get(agent_id)
        return lease is not None and lease[0] == fence and lease[1] > time.monotonic()


class MemoryEngine:
    """See :class:`kode_core.engine.Engine`. Engines of one space see each other's writes."""

    name = "memory"
    keeps_documents = True
    checks_demands = True
    drops_events = rewrites_events = True
    finds_any_of = True
    finds_within = True
    finds_docs = True
    can_count = can_group = True

    def __init__(self, space: MemorySpace | None = None) -> None:
        self._space = space or MemorySpace()

    def __repr__(self) -> str:
        return self.name

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        await asyncio.sleep(0)  # let other tasks run, as every other engine does
        with self._space.lock:
            return [self._commit(batch) for batch in batches]

    def _commit(self, batch: Batch) -> Applied | Refused:
        space, agent_id = self._space, batch.agent_id
        state = space.state(agent_id)
        if batch.op_id == state.last_op:
            return state.last_outcome
        if batch.fence is not None and not space.holds(agent_id, batch.fence):
            return Refused("fence")
        refusal = state.refusal(batch)
        if refusal is not None:
            return refusal
        if batch.delete:
            space.counter = max(space.counter, state.log.next_offset)
            space.states.pop(agent_id, None)
            space.note_end(agent_id, max(state.updated_at, state.since), batch.now)
            state = space.state(agent_id)
        outcome = state.outcome(batch)
        state.apply(state.stamped(batch), outcome)
        if not state.is_empty:
            space.states[agent_id] = state
        return outcome

    async def summary(self, agent_id: str) -> AgentSummary | None:
        with self._space.lock:
            return self._space.state(agent_id).summary()

    async def rows(self, agent_id: str, kind: ListKind) -> ListRows:
        with self._space.lock:
            return self._space.state(agent_id).rows(kind)

    async def rows_at(self, agent_id: str, kind: ListKind, start: int, limit: int) -> ListRows:
        with self._space.lock:
            return self._space.state(agent_id).rows_at(kind, start, limit)

    async def outline(self, agent_id: str, kind: ListKind, keys: Sequence[str] | None = None) -> Outline:
        with self._space.lock:
            return self._space.state(agent_id).outline(kind, keys)

    async def docs(self, agent_id: str, kind: DocKind, key: str | None = None) -> Sequence[Doc]:
        with self._space.lock:
            return self._space.state(agent_id).docs_of(kind, key)

    async def docs_in(self, agent_id: str, span: DocSpan) -> Sequence[Doc]:
        with self._space.lock:
            return self._space.state(agent_id).docs_in(span)

    async def events(self, agent_id: str, span: EventRange) -> Sequence[EventRow]:
        with self._space.lock:
            return self._space.state(agent_id).log.read(span)

    async def rewrite_events(self, agent_id: str, changes: Sequence[EventBody]) -> None:
        await asyncio.sleep(0)
        with self._space.lock:
            log = self._space.state(agent_id).log
            for one in changes:
                log.rewrite(one.offset, one.expect, one.body)

    async def last_event(self, agent_id: str) -> EventRow | None:
        with self._space.lock:
            return self._space.state(agent_id).log.last()

    async def agent_ids(self, prefix: str, after: str | None, limit: int) -> Sequence[str]:
        with self._space.lock:
            return scan.agent_ids(self._space.states.values(), prefix, after, limit)

    async def stored_ids(self, after: str | None, limit: int) -> Sequence[str]:
        with self._space.lock:
            return scan.stored_ids(self._space.states.values(), after, limit)

    async def find_sessions(self, query: SessionQuery) -> Sequence[SessionRow]:
        with self._space.lock:
            return scan.find_sessions(self._space.states.values(), query)

    async def find_rows(self, query: RowQuery) -> Sequence[FoundRow]:
        with self._space.lock:
            return scan.find_rows(self._space.states.values(), query)

    async def find_docs(self, query: DocQuery) -> Sequence[FoundDoc]:
        with self._space.lock:
            return scan.find_docs(self._space.states.values(), query)

    async def count(self, query: SessionQuery | RowQuery) -> int:
        with self._space.lock:
            return scan.count(self._space.states.values(), query)

    async def group(self, query: SessionQuery | RowQuery, grouping: Grouping) -> GroupRows:
        with self._space.lock:
            return scan.group(self._space.states.values(), query, grouping)

    async def stats(self, agent_id: str) -> AgentStats:
        with self._space.lock:
            return self._space.state(agent_id).stats()

    async def totals(self) -> Totals:
        with self._space.lock:
            states = [state for state in self._space.states.values() if state.info is not None]
            everyone = self._space.states.values()
            return Totals(
                agents=len(states),
                messages=sum(len(s.lists[ListKind.MESSAGES].rows) for s in everyone),
                tool_calls=sum(len(s.lists[ListKind.TOOL_CALLS].rows) for s in everyone),
                is_used=any(state.has_contents for state in everyone),
            )

    async def fork(self, agent_id: str, children: Sequence[Child], expect: Body, now: int) -> bool:
        with self._space.lock:
            parent = self._space.state(agent_id)
            if parent.info is None or parent.info.body != expect:
                return False
            for child in children:
                self._space.states[child.agent_id] = forked(parent, child, now, self._space.counter + 1)
            return True

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        with self._space.lock:
            space, now = self._space, time.monotonic()
            held = space.leases.get(agent_id)
            if held is not None and held[1] > now:
                return None
            space.counter += 1
            space.leases[agent_id] = (Fence(owner, space.counter), now + ttl_ms / 1000)
            return space.counter

    async def renew_lease(self, agent_id: str, fence: Fence, ttl_ms: int) -> bool:
        with self._space.lock:
            if not self._space.holds(agent_id, fence):
                return False
            self._space.leases[agent_id] = (fence, time.monotonic() + ttl_ms / 1000)
            return True

    async def release_lease(self, agent_id: str, fence: Fence) -> None:
        with self._space.lock:
            held = self._space.leases.get(agent_id)
            if held is not None and held[0] == fence:
                del self._space.leases[agent_id]

    def probes(self) -> Sequence[tuple[Medium, Callable[[], Awaitable[None]]]]:
        return []

    async def inspect(self, agent_id: str | None, progress: Progress = unwatched) -> Sequence[EngineIssue]:
        return []

    async def backup(self, target: Path, progress: Progress = unwatched) -> Sequence[Path]:
        raise UnsupportedError("a memory store has no backup; use a JSON or SQLite store for what must be kept")

    async def close(self) -> None:
        return


def forked(parent: AgentState, child: Child, now: int, next_offset: int) -> AgentState:
    """A new state with the parts that a fork copies (FORK-1)."""
    state = AgentState(child.agent_id, next_offset)
    state.info = child.info
    state.updated_at = now
    for kind, rows in parent.lists.items():
        if rows.version:
            state.lists[kind].rows = list(rows.rows)
            state.lists[kind].version = first_version()
    state.docs = {key: doc for key, doc in parent.docs.items() if key[0] in FORKED_DOCS}
    return state


class MemoryOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of the memory backend.

    Attributes:
        name: stores of one name share their contents within the process; a store without a name is alone.
    """

    name: str | None = None


_spaces: dict[str, MemorySpace] = {}


async def open_memory(options: MemoryOptions) -> MemoryEngine:
    """An engine over the space that *options* name."""
    if options.name is None:
        return MemoryEngine()
    return MemoryEngine(_spaces.setdefault(options.name, MemorySpace()))


def forget_memory(name: str) -> None:
    """Drop the space of that name; open stores keep it until they are closed."""
    _spaces.pop(name, None)
