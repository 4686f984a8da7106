"""Stores that do right by each method, value and number, and wrong where two of them meet."""

from __future__ import annotations

from kode_conformance import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import mutant
from conformance.tests.zoo.witnesses import seen
from kode_core.query import AgentStats
from kode_core.store import EngineStore


@mutant(
    "QRY-7",
    killed_by="statistics_tell_names_apart",
    source="counts that are grouped by an index column, which has no long texts",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(name="x" * 1025)]),
        lambda s: s.aggregate_stats("a"),
    ),
)
class CutsNamesInStatistics(EngineStore):
    """Counts tool calls by the first 1,024 characters of a name."""

    async def aggregate_stats(self, agent_id: str) -> AgentStats:
        stats = await super().aggregate_stats(agent_id)
        by_name: dict[str, int] = {}
        for name, count in stats.tool_calls_by_name.items():
            by_name[name[:1024]] = by_name.get(name[:1024], 0) + count
        return replace(stats, tool_calls_by_name=by_name)
