"""The removal of what processes that died left behind."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from kode_core import engine
from kode_core.engine import Progress
from kode_core.ids import check_agent_id
from kode_core.report import RepairResult
from kode_core.store.context import Context
from kode_core.store.methods import METHODS
from kode_core.store.steps import Steps

__all__ = ["Repairable", "repair"]


@runtime_checkable
class Repairable(Protocol):
    """A store that can remove what processes that died left behind. ``EngineStore`` is one, over whatever engine."""

    async def repair(self, agent_id: str | None = None, *, progress: Progress | None = None) -> RepairResult:
        """End and remove at once what was left of one agent, or of all, which goes by itself some minutes later.

        Changes nothing that can be read, and mends no damage. Safe at any time, next to readers and writers of other
        processes. The deadline holds for each step, not for the whole (OPS-16); *progress* is called with how many
        agents were looked at, of about how many.
        """
        ...


async def repair(context: Context, agent_id: str | None, progress: Progress) -> RepairResult:
    """Repair the records of one agent, or of all, as far as the engine can and has to."""
    checked = None if agent_id is None else check_agent_id(agent_id)
    steps = Steps(context, METHODS["repair"])
    return await steps.watched(lambda tell: engine.repair(context.engine, checked, tell), progress)
