"""Stores that get the other kinds wrong (TODO, HIS, MED, SNAP and INFO clauses)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from kode_conformance.context import Context
from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import MemoryLayer, mutant
from conformance.tests.zoo.bodies import body
from conformance.tests.zoo.witnesses import seen, talk, the
from kode_core.batch import Batch, DocKind, DocWrite, Info, ListKind, ListRows, Outcome
from kode_core.errors import StorageError
from kode_core.layers import Layer
from kode_core.model import (
    AgentInfo,
    CompressionRecord,
    MediaCacheRecord,
    RecoveredFile,
    Snapshot,
    TodoSnapshot,
)
from kode_core.store import EngineStore

# --- todos ------------------------------------------------------------------------------------------------------------


@mutant(
    "TODO-1",
    killed_by="todos_are_replaced",
    source="dicts by title",
    witness=seen(lambda s: s.save_todos("a", samples.todos("x", "x")), lambda s: s.load_todos("a")),
)
class OneTodoOfATitle(EngineStore):
    """Keeps one todo of each title."""

    async def save_todos(self, agent_id: str, snapshot: TodoSnapshot, *, fence: Any = None) -> None:
        once = {todo.title: todo for todo in snapshot.todos}
        await super().save_todos(agent_id, snapshot.replace(todos=list(once.values())), fence=fence)


@mutant(
    "TODO-1",
    killed_by="todos_are_replaced",
    source="`return snapshot or None`",
    witness=seen(lambda s: s.save_todos("a", TodoSnapshot(updated_at=1)), lambda s: s.load_todos("a")),
)
class NoTodosAreNone(EngineStore):
    """Takes an empty todo list for none."""

    async def load_todos(self, agent_id: str) -> TodoSnapshot | None:
        found = await super().load_todos(agent_id)
        return found if found and found.todos else None


# --- history ----------------------------------------------------------------------------------------------------------


class _ByTime(Layer):
    """Keeps documents of a kind under their time."""

    kind: DocKind

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        def keyed(write: DocWrite) -> DocWrite:
            if write.kind is not self.kind or write.doc is None:
                return write
            return replace(write, key=str(write.doc.time), doc=replace(write.doc, key=str(write.doc.time)))

        return await super().commit([replace(batch, docs=tuple(map(keyed, batch.docs))) for batch in batches])


@mutant(
    "HIS-1",
    killed_by="windows_are_keyed_by_id",
    source="KODE SDK JSONStore: a window is kept in the file {timestamp}.json",
    witness=seen(
        lambda s: s.save_history_window("a", samples.window("1", 20)),
        lambda s: s.save_history_window("a", samples.window("2", 20)),
        lambda s: the("id", s.load_history_windows("a")),
    ),
)
class WindowsByTime(_ByTime):
    """Keeps one history window of each timestamp."""

    kind = DocKind.WINDOWS


@mutant(
    "HIS-1",
    killed_by="compressions_are_keyed_by_id",
    source="KODE SDK JSONStore: a compression is kept in the file {timestamp}.json",
    witness=seen(
        lambda s: s.save_compression_record("a", samples.compression("1", 20)),
        lambda s: s.save_compression_record("a", samples.compression("2", 20)),
        lambda s: the("id", s.load_compression_records("a")),
    ),
)
class CompressionsByTime(_ByTime):
    """Keeps one compression record of each timestamp."""

    kind = DocKind.COMPRESSIONS


@mutant(
    "HIS-1",
    killed_by="compressions_are_keyed_by_id",
    source="NUMERIC(10, 2)",
    witness=seen(
        lambda s: s.save_compression_record("a", samples.compression().replace(ratio=1 / 3)),
        lambda s: the("ratio", s.load_compression_records("a")),
    ),
)
class RoundsRatios(EngineStore):
    """Keeps two digits of a ratio."""

    async def save_compression_record(self, agent_id: str, record: CompressionRecord, *, fence: Any = None) -> None:
        await super().save_compression_record(agent_id, record.replace(ratio=round(record.ratio, 2)), fence=fence)


@mutant(
    "HIS-2",
    killed_by="recovered_files_are_keyed_by_path_and_time",
    source="KODE SDK JSONStore: a fractional mtime is cut",
    witness=seen(
        lambda s: s.save_recovered_file("a", samples.recovered()),
        lambda s: the("mtime", s.load_recovered_files("a")),
    ),
)
class WholeModificationTimes(EngineStore):
    """Cuts the fraction of a recovered file's mtime."""

    async def load_recovered_files(self, agent_id: str) -> list[RecoveredFile]:
        return [file.replace(mtime=int(file.mtime)) for file in await super().load_recovered_files(agent_id)]


@mutant(
    "HIS-2",
    killed_by="recovered_files_are_keyed_by_path_and_time",
    source="KODE SDK JSONStore: a record with a negative mtime is dropped, and a newline in the path breaks its header",
    witness=seen(
        lambda s: s.save_recovered_file("a", samples.recovered("x\ny")),
        lambda s: s.load_recovered_files("a"),
    ),
)
class TextHeaders(EngineStore):
    """Loses recovered files whose header lines it cannot parse."""

    async def load_recovered_files(self, agent_id: str) -> list[RecoveredFile]:
        files = await super().load_recovered_files(agent_id)
        return [file for file in files if file.mtime >= 0 and "\n" not in file.path]


@mutant(
    "HIS-2",
    killed_by="recovered_files_are_keyed_by_path_and_time",
    source="files named by their path alone",
    witness=seen(
        lambda s: s.save_recovered_file("a", samples.recovered("p", 1)),
        lambda s: s.save_recovered_file("a", samples.recovered("p", 2)),
        lambda s: the("timestamp", s.load_recovered_files("a")),
    ),
)
class OneFileOfAPath(EngineStore):
    """Keeps the newest recovered file of each path."""

    async def load_recovered_files(self, agent_id: str) -> list[RecoveredFile]:
        files = await super().load_recovered_files(agent_id)
        return list({file.path: file for file in files}.values())


# --- media and snapshots ----------------------------------------------------------------------------------------------


@mutant(
    "MED-1",
    killed_by="the_media_cache_is_replaced",
    source="INTEGER columns of 32 bits",
    witness=seen(
        lambda s: s.save_media_cache("a", [samples.media()]),
        lambda s: the("size_bytes", s.load_media_cache("a")),
    ),
)
class SizesOf32Bits(EngineStore):
    """Cuts the size of a medium to 31 bits."""

    async def load_media_cache(self, agent_id: str) -> list[MediaCacheRecord]:
        found = await super().load_media_cache(agent_id)
        return [record.replace(size_bytes=record.size_bytes & 0x7FFFFFFF) for record in found]


@mutant(
    "MED-1",
    killed_by="the_media_cache_is_replaced",
    source="caches under the key of the medium alone",
    witness=seen(lambda s: s.save_media_cache("a", [samples.media()]), lambda s: s.load_media_cache("b")),
)
class SharesMedia(EngineStore):
    """Shows an agent the media of all."""

    _last = ""

    async def save_media_cache(self, agent_id: str, records: Sequence[MediaCacheRecord], *, fence: Any = None) -> None:
        await super().save_media_cache(agent_id, records, fence=fence)
        self._last = agent_id

    async def load_media_cache(self, agent_id: str) -> list[MediaCacheRecord]:
        return await super().load_media_cache(agent_id) or await super().load_media_cache(self._last or agent_id)


_SNAPSHOTS = (
    lambda s: s.save_snapshot("a", samples.snapshot("1", 10)),
    lambda s: s.save_snapshot("a", samples.snapshot("2", 20)),
)


@mutant(
    "SNAP-1",
    killed_by="snapshots_are_keyed_by_id",
    source="KODE SDK JSONStore: snapshots in the order of the folder",
    witness=seen(*_SNAPSHOTS, lambda s: the("id", s.list_snapshots("a"))),
)
class SnapshotsByName(EngineStore):
    """Lists snapshots by their ids."""

    async def list_snapshots(self, agent_id: str) -> list[Snapshot]:
        return sorted(await super().list_snapshots(agent_id), key=lambda snapshot: snapshot.id)


@mutant(
    "SNAP-1",
    killed_by="snapshots_are_keyed_by_id",
    source="KODE SDK SqliteStore: ORDER BY created_at DESC without a tie-break",
    witness=seen(
        lambda s: s.save_snapshot("a", samples.snapshot("a", 10)),
        lambda s: s.save_snapshot("a", samples.snapshot("b", 10)),
        lambda s: the("id", s.list_snapshots("a")),
    ),
)
class SnapshotsOfOneTimeAnyhow(EngineStore):
    """Lists snapshots of one time in any order."""

    async def list_snapshots(self, agent_id: str) -> list[Snapshot]:
        found = await super().list_snapshots(agent_id)
        found.reverse()
        return sorted(found, key=lambda snapshot: -snapshot.created_at)


@mutant(
    "SNAP-1",
    killed_by="a_snapshot_stays_as_it_was",
    source="snapshots that refer to the list of messages",
    witness=seen(
        lambda s: s.save_snapshot("a", samples.snapshot(count=1)),
        lambda s: s.save_messages("a", talk("other")),
        lambda s: s.load_snapshot("a", "sfp-1"),
    ),
)
class SnapshotsShareMessages(EngineStore):
    """Takes the messages of a snapshot from the agent's list."""

    async def load_snapshot(self, agent_id: str, snapshot_id: str) -> Snapshot | None:
        found = await super().load_snapshot(agent_id, snapshot_id)
        now = (await self.load_messages(agent_id))[: found.last_sfp_index + 1] if found else []
        return found and found.replace(messages=now)


# --- info -------------------------------------------------------------------------------------------------------------


@mutant(
    "INFO-1",
    killed_by="info_is_inserted_or_replaced",
    source="UPDATE … SET breakpoint = COALESCE(?, breakpoint)",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: s.save_info("a", samples.info("a", breakpoint=None)),
        lambda s: s.load_info("a"),
    ),
)
class KeepsTheBreakpoint(EngineStore):
    """Keeps the old breakpoint when the new info has none."""

    async def save_info(self, agent_id: str, info: AgentInfo, *, fence: Any = None) -> None:
        old = await self.load_info(info.agent_id)
        if info.breakpoint is None and old is not None:
            info = info.replace(breakpoint=old.breakpoint)
        await super().save_info(agent_id, info, fence=fence)


@mutant(
    "INFO-1",
    killed_by="info_is_inserted_or_replaced",
    source="KODE SDK SqliteStore and PostgresStore: an info without metadata fails on NOT NULL, as the pool's does",
    witness=seen(lambda s: s.save_info("a", samples.info("a", metadata={})), lambda s: s.load_info("a")),
    raises="NOT NULL constraint failed",
)
class WantsMetadata(EngineStore):
    """Fails on an info without metadata."""

    async def save_info(self, agent_id: str, info: AgentInfo, *, fence: Any = None) -> None:
        if not info.metadata:
            raise StorageError("NOT NULL constraint failed: agents.metadata")
        await super().save_info(agent_id, info, fence=fence)


async def _updated_by_an_append(ctx: Context) -> object:
    await ctx.store.save_info("a", samples.info("a"))
    (before,) = await the("updated_at", ctx.store.query_sessions())
    await asyncio.sleep(0.005)
    await ctx.store.append_messages("a", talk("1"))
    return (await the("updated_at", ctx.store.query_sessions())) > [before]


@mutant(
    "INFO-2",
    killed_by="updated_at_moves_forward",
    source="KODE SDK: there is no updated_at but the one in the metadata that saveInfo is given",
    witness=_updated_by_an_append,
)
class UpdatedByInfoOnly(MemoryLayer):
    """Moves updated_at only when an info is saved."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        before = {b.agent_id: self.space.state(b.agent_id).updated_at for b in batches if not b.info and not b.delete}
        outcomes = await super().commit(batches)
        for agent_id, updated_at in before.items():
            self.space.state(agent_id).updated_at = updated_at
        return outcomes


@mutant(
    "INFO-1",
    killed_by="reads_make_no_agent",
    source="KODE SDK JSONStore: loadMessages of an agent that is not there makes its folder, and list shows it",
    witness=seen(lambda s: s.load_messages("a"), lambda s: s.list()),
)
class ReadsMakeAgents(MemoryLayer):
    """Makes an agent of every id that is asked for."""

    async def rows(self, agent_id: str, kind: ListKind) -> ListRows:
        state = self.space.state(agent_id)
        if state.is_empty:
            state.info = Info(body('{"agentId":"a","templateId":""}'), "", 0)
            self.space.states[agent_id] = state
        return await super().rows(agent_id, kind)


@mutant(
    "INFO-1",
    killed_by="loads_of_nothing_leave_no_trace",
    source="KeyError",
    witness=seen(lambda s: s.load_info("a"), lambda s: s.load_snapshot("a", "x")),
    raises="KeyError",
)
class MissingIsAnError(EngineStore):
    """Raises for a snapshot that is not there."""

    async def load_snapshot(self, agent_id: str, snapshot_id: str) -> Snapshot | None:
        found = await super().load_snapshot(agent_id, snapshot_id)
        if found is None:
            raise KeyError(snapshot_id)
        return found
