"""Applying policies of retention to a store: one pass over its agents, each left or removed by itself."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

import msgspec

from kode_core.engine import Progress, unwatched
from kode_core.errors import (
    CorruptRecordError,
    InvalidArgumentError,
    LockLostError,
    LockUnavailableError,
    StoreBusyError,
    StoreReadOnlyError,
)
from kode_core.model import now_ms
from kode_core.protocols import ExtendedStore
from kode_core.query import Page, SessionInfo, Time, time_ms
from kode_core.report import PruneResult
from kode_core.retention.policies import RetentionPolicy, Selector, checked_policies
from kode_core.retention.reports import PolicyReport, Retained, RetentionReport

__all__ = ["apply_retention"]

_FOUND_AT_ONCE: Final = 200
_AT_ONCE: Final = 5
"""The number of agents that are at work at once: few, so that others can write in between."""
_SHOWN: Final = 100
_NOTHING: Final = PruneResult()


async def apply_retention(
    store: ExtendedStore,
    policies: Sequence[RetentionPolicy],
    *,
    dry_run: bool = False,
    now: Time | None = None,
    progress: Progress | None = None,
    on_agent: Callable[[Retained], None] | None = None,
) -> RetentionReport:
    """Delete the agents, and remove the parts of agents, that the policies no longer keep.

    Every agent with an info is looked at once, in pages, and the first policy that matches it counts. An agent is
    deleted only if it is, in the atomic step of the delete, exactly as it was when it was found; one that changed
    meanwhile stays, whatever the clocks of its writers say. The lock of an agent is held while it is deleted or pruned,
    and for a moment in a dry run: an agent whose lock a worker holds stays. Agents that cannot be read stay, too. A run
    that ended early is started again; several runs at once do no harm.

    Args:
        store: an open store.
        policies: at least one.
        dry_run: remove nothing, and return the report of a run at this moment.
        now: the time from which ages are counted; the present time of this machine's clock, read once, by default.
        progress: called with the number of agents that were looked at so far.
        on_agent: called with the outcome of each agent that does not stay as it is.

    Raises:
        InvalidArgumentError: a policy never counts, two have one name, or there is none.
        KodeError: the store failed; a note says how much was removed before.
    """
    if type(dry_run) is not bool:
        raise InvalidArgumentError(f"dry_run must be a bool, got {type(dry_run).__name__}")
    for name, call in (("progress", progress), ("on_agent", on_agent)):
        if call is not None and not callable(call):
            raise InvalidArgumentError(f"{name} must be a function, got {type(call).__name__}")
    checked = checked_policies(policies)
    run = _Run(store, checked, now_ms() if now is None else time_ms("now", now), on_agent, dry_run=dry_run)
    try:
        await run.all_agents(unwatched if progress is None else progress)
    except BaseException as exc:
        if run.has_removed and not dry_run:
            exc.add_note(run.so_far())
        raise
    return run.report()


class _Run:
    """One pass over the agents, and its numbers."""

    def __init__(
        self,
        store: ExtendedStore,
        policies: Sequence[tuple[str, RetentionPolicy, Selector]],
        now: int,
        on_agent: Callable[[Retained], None] | None,
        *,
        dry_run: bool,
    ) -> None:
        self._store = store
        self._policies = [(name, policy, filters, policy.prunes(now)) for name, policy, filters in policies]
        self._now = now
        self._on_agent = on_agent
        self._dry_run = dry_run
        self._outcomes = {name: Counter[str]() for name, _, _ in policies}
        self._removed = {name: Counter[str]() for name, _, _ in policies}
        self._unmatched = self._damaged = 0
        self._problems: list[str] = []

    # --- The pass -----------------------------------------------------------------------------------------------------

    async def all_agents(self, progress: Progress) -> None:
        """Look at each agent once. Pages go by the time of creation, which a change of an agent does not move."""
        cursor, done = None, 0
        while True:
            page: Page[SessionInfo] = await self._store.query_sessions(
                sort_by="created_at", order="asc", limit=_FOUND_AT_ONCE, cursor=cursor
            )
            for name in page.left_out:
                self._add_problem(f"{name} cannot be read")
            for i in range(0, len(page), _AT_ONCE):
                await self._group(page[i : i + _AT_ONCE])
                done += len(page[i : i + _AT_ONCE])
                progress(done, None)
            cursor = page.next_cursor
            if cursor is None:
                return

    async def _group(self, sessions: Sequence[SessionInfo]) -> None:
        """Treat some agents side by side, and note the outcomes in their order."""
        calls = [asyncio.ensure_future(self._agent(session)) for session in sessions]
        try:
            await asyncio.wait(calls)
        except asyncio.CancelledError:
            for call in calls:
                call.cancel()
            await asyncio.wait(calls)
            raise
        finally:
            ended = [call for call in calls if not call.cancelled()]
            for call in ended:
                if call.exception() is None:
                    self._add(call.result())
        for error in [call.exception() for call in ended]:
            if error is not None:
                raise error

    async def _agent(self, session: SessionInfo) -> Retained | None:
        """The outcome of an agent; None if no policy counts for it."""
        found = next((one for one in self._policies if one[2].matches(session)), None)
        if found is None:
            return None
        name, policy, _, prunes = found
        agent_id, removed, reason = session.agent_id, _NOTHING, ""
        outcome: Any = "kept"
        try:
            if policy.keep_all:
                pass
            elif await self._is_idle(session, policy):
                outcome = await self._delete(session, policy)
            elif prunes:
                removed = await self._prune(agent_id, prunes)
                outcome = "pruned" if removed != _NOTHING else "kept"
        except (LockUnavailableError, LockLostError):
            outcome = "locked"
        except StoreBusyError:
            outcome = "changed"
        except CorruptRecordError as exc:
            outcome, reason = "damaged", str(exc)
        return Retained(agent_id=agent_id, policy=name, outcome=outcome, removed=removed, reason=reason)

    async def _is_idle(self, session: SessionInfo, policy: RetentionPolicy) -> bool:
        since = policy.idle_since(self._now)
        if since is None or session.updated_at >= since:
            return False
        last = await self._store.last_bookmark(session.agent_id)
        return last is None or last.timestamp < since

    async def _delete(self, session: SessionInfo, policy: RetentionPolicy) -> str:
        """Delete the agent if it is exactly as it was found: any change moves ``updated_at`` (INFO-2)."""
        agent_id, created, updated = session.agent_id, session.created_at, session.updated_at
        as_found: dict[str, Any] = {
            "agent_id": agent_id,
            "created_after": created,
            "created_before": created + 1,
            "updated_after": updated,
            "updated_before": updated + 1,
        }
        async with self._lock(agent_id):
            if not await self._is_idle(session, policy):  # a worker that held the lock may have appended events
                return "changed"
            if self._dry_run:
                return "deleted" if await self._store.count_sessions(**as_found) else "changed"
            return "deleted" if await self._store.delete_many(**as_found) else "changed"

    async def _prune(self, agent_id: str, wanted: dict[str, Any]) -> PruneResult:
        """Remove parts, if there are any: the lock of an agent that stays as it is is not taken."""
        found = await self._store.prune(agent_id, **wanted, dry_run=True)
        if found == _NOTHING:
            return found
        async with self._lock(agent_id):
            return found if self._dry_run else await self._store.prune(agent_id, **wanted)

    @asynccontextmanager
    async def _lock(self, agent_id: str) -> AsyncIterator[None]:
        """Hold the agent's lock; a dry run of a store that cannot be written to goes on without."""
        async with AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(self._store.acquire_agent_lock(agent_id))
            except StoreReadOnlyError:
                if not self._dry_run:
                    raise
            yield

    # --- The report ---------------------------------------------------------------------------------------------------

    def _add(self, one: Retained | None) -> None:
        if one is None:
            self._unmatched += 1
            return
        self._outcomes[one.policy][one.outcome] += 1
        self._removed[one.policy].update(msgspec.structs.asdict(one.removed))
        if one.outcome == "damaged":
            self._add_problem(f"{one.agent_id}: {one.reason}")
        if self._on_agent is not None and one.outcome != "kept":
            self._on_agent(one)

    def _add_problem(self, problem: str) -> None:
        self._damaged += 1
        if len(self._problems) < _SHOWN:
            self._problems.append(problem)

    @property
    def has_removed(self) -> bool:
        """Whether anything was removed so far."""
        return any(found["deleted"] or found["pruned"] for found in self._outcomes.values())

    def so_far(self) -> str:
        """The number of removed agents and records, in words."""
        deleted = sum(found["deleted"] for found in self._outcomes.values())
        removed = sum(sum(found.values()) for found in self._removed.values())
        return f"{deleted} agents, and {removed} records of others, were removed before"

    def report(self) -> RetentionReport:
        """The numbers of each policy, and of all."""
        return RetentionReport(
            policies=tuple(map(self._report_of, self._outcomes)),
            unmatched=self._unmatched,
            damaged=self._damaged,
            problems=tuple(self._problems),
            now=self._now,
            dry_run=self._dry_run,
        )

    def _report_of(self, name: str) -> PolicyReport:
        found = self._outcomes[name]
        return PolicyReport(
            name=name,
            agents=sum(found.values()),
            removed=PruneResult(**self._removed[name]),
            **{outcome: found[outcome] for outcome in ("deleted", "pruned", "locked", "changed", "damaged")},
        )
