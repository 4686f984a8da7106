"""Stores that do not write a turn as one (TURN, FORK-1 and DUR clauses)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from kode_conformance.context import Context
from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import OnJson, mutant
from conformance.tests.zoo.witnesses import seen, talk
from kode_core.batch import Applied, Batch, Outcome
from kode_core.layers import Layer
from kode_core.model import AgentInfo
from kode_core.store import EngineStore


@mutant(
    "TURN-1",
    killed_by="a_turn_writes_all_it_is_given",
    source="`if tool_calls:`",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call()]),
        lambda s: s.save_turn("a", tool_calls=[]),
        lambda s: s.load_tool_call_records("a"),
    ),
)
class EmptyPartsAreNotGiven(EngineStore):
    """Takes an empty list in a turn for none."""

    async def save_turn(self, agent_id: str, **parts: Any) -> None:
        await super().save_turn(agent_id, **{name: part for name, part in parts.items() if part})


@mutant(
    "TURN-1",
    killed_by="a_turn_that_is_refused_writes_nothing",
    source="KODE SDK: a turn is a save of each kind, one after the other",
    witness=seen(
        lambda s: s.save_turn("a", append=talk("1"), upsert_tool_calls=[samples.tool_call(result={1})]),
        lambda s: s.load_messages("a"),
    ),
)
class TurnsInSteps(EngineStore):
    """Saves the parts of a turn one after the other."""

    async def save_turn(self, agent_id: str, **parts: Any) -> None:
        fence = parts.pop("fence", None)
        for name, part in parts.items():
            await super().save_turn(agent_id, fence=fence, **{name: part})


class _InTwoCommits(Layer):
    """Commits lists and info, and then documents and events."""

    pause = 0.0

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        return [await self._in_two(batch) for batch in batches]

    async def _in_two(self, batch: Batch) -> Outcome:
        if not (batch.docs or batch.events) or not (batch.info or batch.messages or batch.tool_calls):
            (only,) = await super().commit([batch])
            return only
        (first,) = await super().commit([replace(batch, events=(), docs=())])
        await asyncio.sleep(self.pause)
        rest = replace(batch, op_id=f"{batch.op_id}b", info=None, messages=None, tool_calls=None, delete=False)
        (second,) = await super().commit([rest])
        both = isinstance(first, Applied) and isinstance(second, Applied)
        return replace(first, offsets=second.offsets) if both else first


async def _look_between(ctx: Context) -> object:
    other = await ctx.another()
    parts = []
    turn = asyncio.ensure_future(ctx.store.save_turn("a", append=talk("1"), todos=samples.todos("x")))
    while not turn.done():
        parts.append((len(await other.load_messages("a")), await other.load_todos("a") is not None))
        await asyncio.sleep(0)
    return (1, False) in parts


@mutant(
    "FORK-1",
    killed_by="a_fork_is_of_one_instant",
    source="KODE SDK: a turn is a save of each kind, one after the other",
    witness=_look_between,
)
class TornTurn(_InTwoCommits):
    """Writes messages and tool calls of a turn before its todos."""


@mutant(
    "DUR-3",
    killed_by="DUR-1.turns_survive_a_kill_whole",
    on=OnJson,
    source="KODE SDK: a kill between two saves leaves a tool use without its result",
    witness=_look_between,
    also=("DUR-3.a_turn_killed_at_its_calls", "DUR-3.recovery_killed_too"),
)
class TornTurnInFiles(_InTwoCommits):
    """Writes a turn to the disk in two steps."""

    pause = 0.01


async def _cancel_between(ctx: Context) -> object:
    halves = 0
    for steps in range(12):
        agent = f"a{steps}"
        turn = asyncio.ensure_future(ctx.store.save_turn(agent, append=talk("1"), info=samples.info(agent)))
        for _ in range(steps):
            await asyncio.sleep(0)
        turn.cancel()
        await asyncio.gather(turn, return_exceptions=True)
        await asyncio.sleep(0.005)
        halves += (len(await ctx.store.load_messages(agent)) == 1) != await ctx.store.exists(agent)
    return halves > 0


@mutant(
    "OPS-9",
    killed_by="a_cancelled_save_is_whole_or_absent",
    source="an await between two statements, and no transaction",
    witness=_cancel_between,
    also=("OPS-9.a_write_cancelled_at_any_step",),
)
class CancellationTears(EngineStore):
    """Leaves a turn without its info when it is cancelled at the wrong moment."""

    async def save_turn(self, agent_id: str, *, info: AgentInfo | None = None, **parts: Any) -> None:
        await super().save_turn(agent_id, **parts)
        if info is not None:
            await asyncio.sleep(0)
            await self.save_info(agent_id, info, fence=parts.get("fence"))
