"""Agents into an archive: JSON Lines, one agent after the other, with a digest of each and of all."""

from __future__ import annotations

from collections import Counter
from contextlib import aclosing
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, Final, NamedTuple, Unpack

import msgspec

from kode_core.engine import Progress, unwatched
from kode_core.errors import InvalidArgumentError
from kode_core.model import Json, now_ms
from kode_core.moving.files import LINE_COST, MAX_AGENT, MAX_LINE, Sink, opened_to_write
from kode_core.moving.lines import Tally, agent_lines
from kode_core.moving.outcomes import CopyReport, MovedAgent, OnAgent, Sum
from kode_core.moving.placing import load
from kode_core.moving.selecting import AgentFilter, Selection, checked_at_once, in_order
from kode_core.protocols import ExtendedStore

__all__ = ["CONTRACT", "FORMAT", "export_archive"]

FORMAT: Final = 1
CONTRACT: Final = "1.0"
"""The version of the contract that the records follow."""


class _Packed(NamedTuple):
    """An agent, and its lines."""

    outcome: MovedAgent
    lines: list[bytes]


async def export_archive(
    store: ExtendedStore,
    target: str | Path | IO[bytes],
    *,
    backend: str = "",
    at_once: int = 2,
    on_agent: OnAgent | None = None,
    progress: Progress = unwatched,
    **filters: Unpack[AgentFilter],
) -> CopyReport:
    """Write agents to an archive, which ``import_archive`` brings into any store.

    Each agent is of one instant, and the next one is read later. An agent that cannot be read is reported and left out.

    Args:
        store: the store to read.
        target: a new file, which appears once it is complete, or a binary file that is open. With the suffix ``.zst``
            the file is compressed with Zstandard, which needs the extra ``zstd``, and with ``.gz`` with gzip.
        backend: the name of the backend, for the header of the archive.
        at_once: the number of agents that are held in memory at the same time.
        on_agent: called with the outcome of each agent.
        progress: called with the number of agents that are done and of all.
        filters: which agents; all without them.

    Raises:
        InvalidArgumentError: a filter is wrong, or the file exists.
        StoreFullError: there is no room for the file, and nothing is left of it.
        StorageError: it cannot be written.
    """
    selection, added = Selection(filters), Sum(on_agent)
    checked_at_once(at_once)
    async with opened_to_write(target) as sink:
        chosen = await selection.ids(store)
        added.left_out = chosen.left_out
        writer = _Writer(sink)
        await writer.begin(backend, selection.plain())

        async def pack(agent_id: str) -> _Packed:
            return await _packed(store, agent_id)

        done = 0
        async with aclosing(in_order(chosen.found, pack, at_once)) as outcomes:
            async for packed in outcomes:
                if packed.lines:
                    await writer.agent(packed)
                added.add(packed.outcome)
                done += 1
                progress(done, len(chosen.found))
        await writer.end()
    return added.report()


async def _packed(store: ExtendedStore, agent_id: str) -> _Packed:
    records = await load(store, agent_id)
    if isinstance(records, MovedAgent):
        return _Packed(records, [])
    tally, lines, size = Tally(), list[bytes](), 0
    try:
        async for kind, line in agent_lines(records):
            if len(line) > MAX_LINE:
                raise InvalidArgumentError(f"a {kind} has more than {MAX_LINE:,} bytes, which no archive takes")
            size += len(line) + LINE_COST
            if size > MAX_AGENT:
                raise InvalidArgumentError(f"it has more than {MAX_AGENT:,} bytes, which no archive takes")
            tally.add(kind, line)
            lines.append(line)
    except InvalidArgumentError as exc:
        return _Packed(MovedAgent(agent_id=agent_id, outcome="refused", reason=str(exc)), [])
    taken = tally.fingerprint()
    outcome = MovedAgent(agent_id=agent_id, outcome="copied", counts=taken.counts, digest=taken.digest, size=taken.size)
    return _Packed(outcome, lines)


class _Writer:
    """Writes the lines around the agents."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._digest = sha256()
        self._agents = 0
        self._counts = Counter[str]()

    async def begin(self, backend: str, filters: dict[str, Json]) -> None:
        header: dict[str, Any] = {"kode": "archive", "format": FORMAT, "contract": CONTRACT}
        header |= {"version": version("kode-core"), "createdAt": now_ms()}
        header |= {"backend": backend} if backend else {}
        await self._write({**header, "filters": filters})

    async def agent(self, packed: _Packed) -> None:
        for line in packed.lines:
            await self._sink.write(line)
        packed.lines.clear()
        one = packed.outcome
        await self._write({"kind": "end", "agentId": one.agent_id, "counts": one.counts, "digest": one.digest})
        self._agents += 1
        self._counts.update(one.counts)

    async def end(self) -> None:
        trailer = {"kind": "trailer", "agents": self._agents, "counts": dict(self._counts)}
        await self._write({**trailer, "digest": self._digest.hexdigest()})

    async def _write(self, value: dict[str, Any]) -> None:
        line = msgspec.json.encode(value) + b"\n"
        self._digest.update(line)
        await self._sink.write(line)
