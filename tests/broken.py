"""Writers that are broken on purpose: a test of crashes that does not catch them proves nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from kode_conformance import Handle, Space, StoreHarness
from kode_sqlite.engine import SqliteEngine
from kode_sqlite.options import SqliteOptions
from msgspec.structs import replace

from kode_core import Store
from kode_core.backends.json_files.plugin import JsonOptions, open_json
from kode_core.backends.memory.engine import MemoryEngine
from kode_core.batch import Applied, Batch, Outcome
from kode_core.engine import Engine
from kode_core.layers import Layer
from kode_core.store import EngineStore


class AcknowledgesFirst(Layer):
    """Says that a write is done, and does it later."""

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner)
        self._promised = MemoryEngine()
        self._later: list[Batch] = []
        self._writer: asyncio.Task[None] | None = None

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        self._later.extend(_unconditional(batch) for batch in batches)
        if self._writer is None or self._writer.done():
            self._writer = asyncio.ensure_future(self._write())
        return await self._promised.commit(batches)

    async def _write(self) -> None:
        while self._later:
            await asyncio.sleep(0.005)
            batches, self._later = self._later, []
            await self.inner.commit(batches)

    async def close(self) -> None:
        if self._writer is not None:
            await self._writer
        await self.inner.close()


def _unconditional(batch: Batch) -> Batch:
    lists = {
        name: replace(write, expect=None)
        for name in ("messages", "tool_calls")
        if (write := getattr(batch, name)) is not None
    }
    return replace(batch, **lists)


class WritesInTwoSteps(Layer):
    """Writes a turn's lists first and the rest of it after that."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        outcomes: list[Outcome] = []
        for batch in batches:
            (first,) = await self.inner.commit([replace(batch, events=(), docs=(), info=None)])
            await asyncio.sleep(0.001)
            rest = replace(batch, op_id=f"{batch.op_id}-2", messages=None, tool_calls=None)
            (second,) = await self.inner.commit([rest])
            both = isinstance(first, Applied) and isinstance(second, Applied)
            outcomes.append(replace(first, offsets=second.offsets) if both else first)  # type: ignore[union-attr, type-var]
        return outcomes


class BrokenHarness(StoreHarness):
    """A store with a broken writer; the class says which."""

    fault: type[Layer]
    json = False

    async def provision(self, space: Space) -> Handle:
        return {"path": str(space.folder / ("files" if self.json else "a.db"))}

    async def open(self, handle: Handle) -> Store:
        async def engine() -> Engine:
            if self.json:
                return self.fault(await open_json(JsonOptions(base_dir=handle["path"])))
            return self.fault(await SqliteEngine.open(SqliteOptions(db_path=handle["path"])))

        return await EngineStore(engine).open()


class EagerSqlite(BrokenHarness):
    fault = AcknowledgesFirst


class EagerJson(BrokenHarness):
    fault = AcknowledgesFirst
    json = True


class TornSqlite(BrokenHarness):
    fault = WritesInTwoSteps


class TornJson(BrokenHarness):
    fault = WritesInTwoSteps
    json = True
