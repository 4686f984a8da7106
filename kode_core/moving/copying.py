"""A store copied into another one, agent by agent; and kept equal to it while the source is used."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import aclosing, suppress
from typing import Any, Final, NamedTuple, TypeAlias, Unpack

from kode_core.engine import Progress, unwatched
from kode_core.errors import InvalidArgumentError
from kode_core.moving.lines import fingerprint
from kode_core.moving.outcomes import CopyReport, Existing, MovedAgent, OnAgent, Sum, checked_existing
from kode_core.moving.placing import load, place
from kode_core.moving.selecting import AT_ONCE, AgentFilter, Selection, checked_at_once, in_order
from kode_core.moving.states import Seen, is_still, seen_of
from kode_core.moving.verifying import compared
from kode_core.protocols import ExtendedStore

__all__ = ["OnPass", "PassReport", "copy_store", "selected"]

_LAST_PASSES: Final = 10
_BROUGHT: Final = ("copied", "replaced", "known")


class PassReport(NamedTuple):
    """One pass through the source: its number, how many agents it has, and how many had changed or were in trouble."""

    number: int
    agents: int
    changed: int
    troubles: int

    @property
    def is_equal(self) -> bool:
        """True if everything that was selected was in the target when the pass began, as far as this pass found."""
        return not (self.changed or self.troubles)


OnPass: TypeAlias = Callable[[PassReport], object]


def selected(filters: Mapping[str, Any], *, delete: bool) -> Selection:
    """The agents of a copy; raises InvalidArgumentError for filters that are wrong, or do not go with *delete*."""
    selection = Selection(filters)
    if delete and not selection.is_by_id:
        raise InvalidArgumentError("delete goes with the filters agent_id and prefix only: others may cease to match")
    return selection


async def copy_store(
    source: ExtendedStore,
    target: ExtendedStore,
    *,
    existing: Existing = "refuse",
    delete: bool = False,
    verify: bool = False,
    until: asyncio.Event | None = None,
    interval_s: float = 1.0,
    at_once: int = AT_ONCE,
    on_agent: OnAgent | None = None,
    on_pass: OnPass | None = None,
    progress: Progress = unwatched,
    **filters: Unpack[AgentFilter],
) -> CopyReport:
    """Copy agents from *source* to *target*, each of one instant and in one piece.

    A copy has everything of an agent: its times, positions, lineage, seqs, documents and their tags. Offsets of events
    and versions are new. An agent that *target* has already, with equal records, is known and left alone: a copy that
    was interrupted is started again.

    With *until* the copy is live: it goes on while others write to *source*, copies changed agents, deletes agents that
    are gone, and ends when the event is set and a pass has found nothing more to do.

    Args:
        source: the store to read; nothing in it is changed.
        target: the store to write, in which no other program writes these agents.
        existing: ``refuse`` reports an agent of whose id other records are stored, ``skip`` leaves it as it is, and
            ``replace`` writes the agent in its place, in one write. An agent that this call has copied is always
            replaced.
        delete: delete agents of *target* that *source* does not have. It goes with the filters ``agent_id`` and
            ``prefix`` and no others.
        verify: compare both stores at the end, all records of them.
        until: copy live until it is set.
        interval_s: the pause between two passes of a live copy, in seconds.
        at_once: the number of agents that are held in memory at the same time.
        on_agent: called with the outcome of each agent.
        on_pass: called after each pass through the source.
        progress: called with the number of agents that are done in this pass, and of all.
        filters: which agents; all without them.

    Returns:
        The report. ``is_whole`` is True if nothing is missing in the target.

    Raises:
        InvalidArgumentError: an argument is wrong.
        KodeError: a store cannot be read or written at all. Agents that were copied stay; start the copy again.
    """
    selection = selected(filters, delete=delete)
    if source is target:
        raise InvalidArgumentError("source and target are the same store")
    if until is not None and not isinstance(until, asyncio.Event):
        raise InvalidArgumentError(f"until must be an asyncio.Event, got {type(until).__name__}")
    if type(interval_s) not in (int, float) or not 0 <= interval_s < 1e9:
        raise InvalidArgumentError("interval_s must be a number of seconds, 0 or more")
    added = Sum(on_agent)
    how = _How(selection, checked_existing(existing), bool(delete), checked_at_once(at_once), until is not None)
    copy = _Copy(source, target, how, added, progress)
    is_quiet = await _passes(copy, until, interval_s, on_pass)
    is_equal = None if until is None else is_quiet and not added.troubles and not added.left_out
    if not verify:
        return added.report(passes=copy.passes, is_equal=is_equal)
    found = await compared(source, target, selection, at_once, progress)
    return added.report(
        passes=copy.passes,
        verified=found.equal,
        differences=found.differences,
        is_equal=is_equal is not False and not found.differences,
    )


async def _passes(copy: _Copy, until: asyncio.Event | None, interval_s: float, on_pass: OnPass | None) -> bool:
    """Go through the source: once, or until a pass after the event finds nothing to do. False if none did."""
    last = 0
    while True:
        was_set = until is None or until.is_set()
        changed = await copy.one_pass()
        if on_pass is not None:
            on_pass(PassReport(copy.passes, copy.agents, changed, len(copy.added.troubles)))
        if until is None:
            return True
        if was_set:
            last += 1
            if not changed or last == _LAST_PASSES:
                return not changed
        with suppress(TimeoutError):
            await asyncio.wait_for(until.wait(), interval_s)


class _How(NamedTuple):
    selection: Selection
    existing: Existing
    delete: bool
    at_once: int
    is_live: bool


class _Copy:
    """Passes through the source, with a memory of the agents that were copied."""

    def __init__(self, source: ExtendedStore, target: ExtendedStore, how: _How, added: Sum, progress: Progress) -> None:
        self._source = source
        self._target = target
        self._how = how
        self._progress = progress
        self._seen: dict[str, Seen] = {}
        self._skipped = set[str]()
        self.added = added
        self.passes = 0
        self.agents = 0

    async def one_pass(self) -> int:
        """Copy the agents that have changed since the last pass; returns their number."""
        chosen = await self._how.selection.ids(self._source)
        self.added.left_out = chosen.left_out
        self.agents = len(chosen.found)
        self.passes += 1
        done = changed = 0
        there = set(chosen.found)
        async with aclosing(in_order(chosen.found, self._move, self._how.at_once)) as outcomes:
            async for outcome in outcomes:
                done += 1
                self._progress(done, len(chosen.found))
                if outcome is not None and outcome.outcome == "gone":
                    there.discard(outcome.agent_id)
                    if self.passes > 1:
                        continue
                if outcome is not None:
                    changed += not outcome.is_trouble
                    self.added.add(outcome)
        return changed + await self._delete(there)

    async def _move(self, agent_id: str) -> MovedAgent | None:
        """Copy an agent; None if it is as it was copied before."""
        if agent_id in self._skipped:
            return None
        seen = self._seen.get(agent_id)
        if seen is not None and await is_still(self._source, agent_id, seen):
            return None
        version = await self._source.load_version(agent_id) if self._how.is_live else ""
        records = await load(self._source, agent_id)
        if isinstance(records, MovedAgent):
            return records
        taken = await fingerprint(records)
        state = seen_of(version, records, taken.apart) if self._how.is_live else None
        outcome = await place(self._target, records, taken, self._how.existing if seen is None else "replace")
        if state is not None and outcome.outcome in _BROUGHT:
            self._seen[agent_id] = state
        if outcome.outcome == "skipped":
            self._skipped.add(agent_id)
        return outcome

    async def _delete(self, there: set[str]) -> int:
        """Delete agents that the source does not have any more, or never had; returns their number."""
        gone = sorted(self._seen.keys() - there)
        if self._how.delete:
            gone = sorted({*gone, *(await self._how.selection.ids(self._target)).found} - there)
        deleted = 0
        for agent_id in gone:
            if await self._is_there(self._source, agent_id):
                continue  # it does not match the filters any more, or came back, or is damaged
            self._seen.pop(agent_id, None)
            if not await self._is_there(self._target, agent_id):
                continue
            await self._target.delete(agent_id)
            self.added.add(MovedAgent(agent_id=agent_id, outcome="deleted"))
            deleted += 1
        return deleted

    async def _is_there(self, store: ExtendedStore, agent_id: str) -> bool:
        found = await load(store, agent_id)
        return not (isinstance(found, MovedAgent) and found.outcome == "gone")
