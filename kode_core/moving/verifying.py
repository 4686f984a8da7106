"""Two stores compared, agent by agent: digests first, and record by record where they differ."""

from __future__ import annotations

from contextlib import aclosing
from itertools import zip_longest
from typing import Final, NamedTuple, Unpack

from kode_core.engine import Progress, unwatched
from kode_core.model import AgentRecords
from kode_core.moving.lines import PARTS, agent_lines, fingerprint
from kode_core.moving.outcomes import CopyReport, MovedAgent
from kode_core.moving.placing import load
from kode_core.moving.selecting import AT_ONCE, AgentFilter, Selection, checked_at_once, in_order
from kode_core.protocols import ExtendedStore

__all__ = ["Comparison", "compared", "verify_copy"]

_MOST: Final = 1_000
_KINDS: Final = ("agent", *(part.kind for part in PARTS))


class Comparison(NamedTuple):
    """The outcome of a comparison: how many agents are equal, and the first differences as sentences."""

    equal: int
    differences: tuple[str, ...]


async def verify_copy(
    source: ExtendedStore,
    target: ExtendedStore,
    *,
    at_once: int = AT_ONCE,
    progress: Progress = unwatched,
    **filters: Unpack[AgentFilter],
) -> CopyReport:
    """Compare all records of the agents of *source* with the records in *target*; nothing is written.

    Offsets of events and versions are not compared, since each store has its own. Agents that *target* alone has are no
    difference.

    Args:
        source: the store that was copied.
        target: the copy.
        at_once: the number of agents that are compared at the same time.
        progress: called with the number of agents that are done and of all.
        filters: which agents; all without them.

    Returns:
        A report with ``verified``, ``differences`` and ``is_equal``.
    """
    found = await compared(source, target, Selection(filters), checked_at_once(at_once), progress)
    is_equal = not found.differences
    return CopyReport(
        outcomes={}, counts={}, size=0, verified=found.equal, differences=found.differences, is_equal=is_equal
    )


async def compared(
    source: ExtendedStore, target: ExtendedStore, selection: Selection, at_once: int, progress: Progress
) -> Comparison:
    """Compare the selected agents."""

    async def compare(agent_id: str) -> str | None:
        return await _difference(source, target, agent_id)

    chosen = await selection.ids(source)
    equal, differences = 0, [f"{name} of the source cannot be read" for name in chosen.left_out][:_MOST]
    done = 0
    async with aclosing(in_order(chosen.found, compare, at_once)) as outcomes:
        async for difference in outcomes:
            if difference is None:
                equal += 1
            elif difference and len(differences) < _MOST:
                differences.append(difference)
            done += 1
            progress(done, len(chosen.found))
    return Comparison(equal, tuple(differences))


async def _difference(source: ExtendedStore, target: ExtendedStore, agent_id: str) -> str | None:
    """The first difference of an agent; an empty text if neither store has it."""
    ours, theirs = await _digest(source, agent_id), await _digest(target, agent_id)  # one of them in memory at a time
    for name, found in (("source", ours), ("target", theirs)):
        if isinstance(found, MovedAgent) and found.outcome != "gone":
            return f"agent {agent_id!r} of the {name}: {found.reason}"
    if isinstance(ours, MovedAgent) or isinstance(theirs, MovedAgent):
        if isinstance(ours, MovedAgent):
            return "" if isinstance(theirs, MovedAgent) else f"agent {agent_id!r} is in the target alone"
        return f"agent {agent_id!r} is in the source alone"
    if ours == theirs:
        return None
    one, other = await load(source, agent_id), await load(target, agent_id)
    if isinstance(one, MovedAgent) or isinstance(other, MovedAgent):
        return f"agent {agent_id!r} changed while it was compared"
    return f"agent {agent_id!r}: {await _first_difference(one, other)}"


async def _digest(store: ExtendedStore, agent_id: str) -> str | MovedAgent:
    """The digest of an agent, or the outcome of one that cannot be read."""
    records = await load(store, agent_id)
    return records if isinstance(records, MovedAgent) else (await fingerprint(records)).digest


async def _first_difference(one: AgentRecords, other: AgentRecords) -> str:
    ours = [(kind, line) async for kind, line in agent_lines(one)]
    theirs = [(kind, line) async for kind, line in agent_lines(other)]
    positions: dict[str, int] = {}
    for left, right in zip_longest(ours, theirs):
        if left == right:
            positions[left[0]] = positions.get(left[0], 0) + 1
            continue
        if left is None or right is None or left[0] != right[0]:
            kind = min((pair[0] for pair in (left, right) if pair is not None), key=_place)
            where = "target" if left is None or (right is not None and _place(right[0]) < _place(left[0])) else "source"
            return f"{kind} {positions.get(kind, 0)} is in the {where} alone"
        name = left[0]
        return "the times of its last change differ" if name == "agent" else f"{name} {positions.get(name, 0)} differs"
    return "its lines differ"


def _place(kind: str) -> int:
    return _KINDS.index(kind) if kind in _KINDS else len(_KINDS)
