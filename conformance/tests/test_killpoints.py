"""Kills at every call find each of these faults, every time; and nothing in stores that are right."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from kode_conformance import Handle, Space, StoreHarness, Violation, load_checks, run_check
from kode_conformance.builtin import JsonHarness
from kode_conformance.context import prepared
from kode_conformance.kills.child import CAN_FORK
from kode_conformance.kills.points import kill_at_points, killer
from kode_conformance.kills.series import kill_forks
from kode_conformance.kills.storecode import code_of
from kode_conformance.kills.writes import write_named
from kode_conformance.settings import Settings, Tier
from kode_sqlite.engine import SqliteEngine
from kode_sqlite.options import SqliteOptions
from kode_sqlite.testing.harness import HybridHarness, SqliteHarness
from msgspec.structs import replace

from kode_core import Store
from kode_core.backends.memory.engine import MemoryEngine, MemorySpace
from kode_core.batch import Applied, Batch, Child, Outcome
from kode_core.codec import Body
from kode_core.engine import Engine
from kode_core.layers import Layer
from kode_core.store import EngineStore

pytestmark = pytest.mark.skipif(not CAN_FORK, reason="a process for each point takes too long")


class OneFile(MemoryEngine):
    """Keeps everything in one file, which is written anew for each commit: a new one takes its place."""

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__(pickle.loads(path.read_bytes()) if path.exists() else MemorySpace())

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        outcomes = await super().commit(batches)
        await self.keep(pickle.dumps(self._space))
        return outcomes

    async def fork(self, agent_id: str, children: Sequence[Child], expect: Body, now: int) -> bool:
        made = await super().fork(agent_id, children, expect, now)
        await self.keep(pickle.dumps(self._space))
        return made

    async def keep(self, data: bytes) -> None:
        new = self.path.with_suffix(".new")
        new.write_bytes(data)
        new.replace(self.path)


class InPlace(OneFile):
    """Writes over the file."""

    async def keep(self, data: bytes) -> None:
        with self.path.open("wb") as file:
            file.write(data)


class InPlaceByPath(OneFile):
    """The same in one call of the standard library."""

    async def keep(self, data: bytes) -> None:
        self.path.write_bytes(data)


class RemovesFirst(OneFile):
    """Removes the old file before the new one takes its place."""

    async def keep(self, data: bytes) -> None:
        new = self.path.with_suffix(".new")
        new.write_bytes(data)
        if self.path.exists():
            os.remove(self.path)
        os.rename(new, self.path)


class Buffers(OneFile):
    """Acknowledges, and writes a moment later."""

    _later: asyncio.Task[None] | None = None

    async def keep(self, data: bytes) -> None:
        await self.close()
        self._later = asyncio.ensure_future(self._write(data))

    async def _write(self, data: bytes) -> None:
        await asyncio.sleep(0.02)
        await super().keep(data)

    async def close(self) -> None:
        if self._later is not None:
            await self._later


class TwoTransactions(Layer):
    """Writes a turn's lists in one transaction, and the rest of it in another."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        outcomes: list[Outcome] = []
        for batch in batches:
            (first,) = await self.inner.commit([replace(batch, events=(), docs=(), info=None)])
            rest = replace(batch, op_id=f"{batch.op_id}-2", messages=None, tool_calls=None, delete=False)
            (second,) = await self.inner.commit([rest])
            both = isinstance(first, Applied) and isinstance(second, Applied)
            outcomes.append(replace(first, offsets=second.offsets) if both else first)  # type: ignore[union-attr, type-var]
        return outcomes


class ForksOneByOne(OneFile):
    """Writes a fork's messages after the fork."""

    async def fork(self, agent_id: str, children: Sequence[Child], expect: Body, now: int) -> bool:
        for child in children:
            before = dict(self._space.states)
            made = await MemoryEngine.fork(self, agent_id, [child], expect, now)
            whole = self._space.states[child.agent_id]
            part = pickle.loads(pickle.dumps(whole))
            for kept in part.lists.values():
                kept.rows.clear()
            self._space.states = {**before, child.agent_id: part}
            await self.keep(pickle.dumps(self._space))
            self._space.states[child.agent_id] = whole
        await self.keep(pickle.dumps(self._space))
        return made


class InsertsInSteps(OneFile):
    """Makes a new agent with its info alone, and completes it."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        for batch in batches:
            if batch.info is not None and self._space.state(batch.agent_id).info is None:
                bare = {"op_id": f"{batch.op_id}-new", "messages": None, "tool_calls": None, "docs": (), "events": ()}
                await super().commit([replace(batch, **bare)])
        return await super().commit(batches)


class IndexApart(OneFile):
    """Lists agents from an index that is written after them."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        outcomes = await super().commit(batches)
        ids = sorted(agent_id for agent_id, state in self._space.states.items() if state.info is not None)
        new = self.path.with_suffix(".index.new")
        new.write_text(json.dumps(ids))
        new.replace(self.path.with_suffix(".index"))
        return outcomes

    async def agent_ids(self, prefix: str, after: str | None, limit: int) -> Sequence[str]:
        index = self.path.with_suffix(".index")
        ids = json.loads(index.read_text()) if index.exists() else []
        return [found for found in ids if found.startswith(prefix) and (after is None or found > after)][:limit]


class StaleJournal(OneFile):
    """Leaves the journal of a commit that was cut short behind, and plays it again at every opening."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        for journal in path.parent.glob("*.journal"):
            self._space.states.update(pickle.loads(journal.read_bytes()))

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        outcomes = await MemoryEngine.commit(self, batches)
        new = self.path.with_name(f"{batches[0].op_id}.new")
        new.write_bytes(pickle.dumps({batch.agent_id: self._space.state(batch.agent_id) for batch in batches}))
        journal = new.replace(new.with_suffix(".journal"))
        await self.keep(pickle.dumps(self._space))
        journal.unlink()
        return outcomes


class FileHarness(StoreHarness):
    """A store in one file; the class says how it is written."""

    lacks = frozenset({"CROSS_PROCESS"})
    engine: type[OneFile] = OneFile

    async def provision(self, space: Space) -> Handle:
        return {"path": str(space.folder / "all")}

    async def open(self, handle: Handle) -> Store:
        async def engine() -> Engine:
            return self.engine(Path(handle["path"]))

        return await EngineStore(engine).open()


class InPlaceHarness(FileHarness):
    engine = InPlace


class InPlaceByPathHarness(FileHarness):
    engine = InPlaceByPath


class RemovesFirstHarness(FileHarness):
    engine = RemovesFirst


class BuffersHarness(FileHarness):
    engine = Buffers


class ForksOneByOneHarness(FileHarness):
    engine = ForksOneByOne


class InsertsInStepsHarness(FileHarness):
    engine = InsertsInSteps


class IndexApartHarness(FileHarness):
    engine = IndexApart


class StaleJournalHarness(FileHarness):
    engine = StaleJournal


class TwoTransactionsHarness(StoreHarness):
    """SQLite below a layer that writes twice."""

    async def provision(self, space: Space) -> Handle:
        return {"path": str(space.folder / "a.db")}

    async def open(self, handle: Handle) -> Store:
        async def engine() -> Engine:
            return TwoTransactions(await SqliteEngine.open(SqliteOptions(db_path=handle["path"])))

        return await EngineStore(engine).open()


FIRST = "the first "

FAULTS: list[tuple[StoreHarness, str, str]] = [
    (InPlaceHarness(), "save_messages", r"save_messages, killed at .*InPlace\.keep.*raised EOFError"),
    (InPlaceByPathHarness(), "save_info", r"save_info, killed at (pathlib|_abc|_local|__init__)\.py:.*raised EOFError"),
    (RemovesFirstHarness(), "append_events", r"killed at .*RemovesFirst\.keep.*neither as before nor as after"),
    (BuffersHarness(), "save_todos", r"killed right after it was acknowledged: it was acknowledged, and is not there"),
    (TwoTransactionsHarness(), "save_turn", r"save_turn, killed at .*neither as before nor as after it, in messages"),
    (IndexApartHarness(), "delete", r"delete, killed at .*neither as before nor as after it, in exists, messages"),
    (StaleJournalHarness(), "save_info", r"save_info, killed at .*: what was saved later is not there after the next"),
    (
        InsertsInStepsHarness(),
        FIRST + "save_turn",
        r"as the first write of its agent: .*neither as before nor as after",
    ),
]


async def sweep(harness: StoreHarness, write: str, tier: Tier = Tier.STANDARD) -> int:
    async with prepared(harness, Settings(tier=tier)) as context, killer(context) as kills:
        if write == "batch_fork":
            return await kill_forks(context, kills, others=0)
        name = write.removeprefix(FIRST)
        return await kill_at_points(context, kills, write_named(name), others=0, with_seed=name == write)


@pytest.mark.parametrize(("harness", "write", "message"), FAULTS, ids=[type(fault[0]).__name__ for fault in FAULTS])
@pytest.mark.parametrize("tier", [Tier.STANDARD, pytest.param(Tier.THOROUGH, marks=pytest.mark.slow)])
async def test_a_fault_is_found_where_it_is(harness: StoreHarness, write: str, message: str, tier: Tier) -> None:
    """Each fault is found without chance, at the points that can matter as at all of them; the finding says where."""
    with pytest.raises(Violation, match=f"(?s){message}"):
        await sweep(harness, write, tier)


async def test_a_fork_in_part_is_found() -> None:
    """A fork that is written in two steps is found."""
    with pytest.raises(Violation, match="a fork is there in part: .*messages"):
        await sweep(ForksOneByOneHarness(), "batch_fork")


@pytest.mark.parametrize(
    "harness", [FileHarness(), SqliteHarness(), JsonHarness(), HybridHarness()], ids=lambda h: h.name
)
@pytest.mark.parametrize("write", ["save_turn", FIRST + "save_turn", "delete", "batch_fork"])
async def test_a_right_store_is_not_blamed(harness: StoreHarness, write: str) -> None:
    """Stores that are right are killed at more than one point, and nothing is found."""
    assert await sweep(harness, write) >= 3


@pytest.mark.parametrize("harness", [BuffersHarness(), JsonHarness()], ids=lambda harness: type(harness).__name__)
async def test_without_fork_there_are_fewer_points(harness: StoreHarness) -> None:
    """Where processes cannot be copied a new one is started for each of a few points; right after the last is one."""
    async with prepared(harness) as context, killer(context, forks=False) as kills:
        sweep = kill_at_points(context, kills, write_named("save_info"), others=0)
        if isinstance(harness, BuffersHarness):
            with pytest.raises(Violation, match="killed right after it was acknowledged"):
                await sweep
        else:
            assert 2 <= await sweep <= 5


async def test_the_check_says_which_clause() -> None:
    """Run as a check, the finding names the clause."""
    check = next(check for check in load_checks() if check.id == "DUR-3.a_turn_killed_at_its_calls")
    with pytest.raises(Violation, match=r"DUR-3, .*VIOLATED.*killed at"):
        await asyncio.to_thread(run_check, check, InPlaceHarness())


async def test_the_points_are_in_the_store_s_own_code() -> None:
    """The code of a store is where its class and its engines are from, and no more of the core than that."""
    async with prepared(HybridHarness()) as context:
        code = code_of(context.store)
    names = {Path(place).name for place in code}
    assert names == {"kode_sqlite", "json_files", "hybrid", "layers", "authoring"}
    async with prepared(FileHarness()) as context:
        places: Sequence[Any] = code_of(context.store)
    assert {Path(place).name for place in places} == {"memory", "authoring", "test_killpoints.py"}
