"""The hybrid layout: queried records in a database, appended records in files (``file_store_base_dir``).

Events, todos, history and the media cache go to a folder of JSON files; info, messages, tool calls and snapshots to the
database. A write that touches both is still one write (TURN-1), in two phases that the database decides::

    files        prepare ──┐                           ┌── commit: apply      a crash here: the next call asks,
                 (durable) │                           │   or abort: discard  and goes on as the database says
    database               └── commit, with a mark: ───┘
                               the write's id
                               = THE COMMIT

After a crash between the phases, the next call for the agent asks the database whether its mark has that id.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from kode_core.authoring.closing import close_all
from kode_core.authoring.paths import remove_all
from kode_core.backends.json_files.engine import JsonFilesEngine
from kode_core.batch import (
    Applied,
    Batch,
    Child,
    Doc,
    DocKind,
    DocWrite,
    EngineIssue,
    EventRange,
    EventRow,
    Found,
    ListWrite,
    Outcome,
    Refused,
)
from kode_core.codec import Body, digest
from kode_core.engine import (
    Engine,
    Medium,
    Progress,
    Watch,
    checks_demands,
    drops_events,
    idle_poll_ms,
    unwatched,
    watch,
)
from kode_core.errors import ConfigurationError, KodeError, OutcomeUnknownError, StorageError
from kode_core.hybrid.companion import companion, note_companion, noted
from kode_core.layers.base import Layer
from kode_core.rewriting import EventBody, rewrites_events
from kode_core.searched import finds_text
from kode_core.store.kinds import KINDS

__all__ = ["HybridEngine"]

_IN_FILES: Final = frozenset(kind.kind for kind in KINDS if kind.in_files)
_MARK: Final = "hybrid"


class HybridEngine(Layer):
    """A database engine with a folder of files next to it."""

    def __init__(self, database: Engine, files: JsonFilesEngine) -> None:
        super().__init__(database)
        self.files = files
        files.resolver = self._was_committed

    def __repr__(self) -> str:
        return f"{self.inner!r} with {self.files!r}"

    async def bind(self) -> None:
        """Check that database and folder belong together; note it in both if they are new.

        Raises:
            ConfigurationError: one of them belongs to another store, or was used without the other.
        """
        folder = self.files.folder
        identity = await self.files.run(folder.identity)
        if await companion(self.inner) is None:
            problem = await self._used_apart()
            if await companion(self.inner) is None:  # otherwise another process was faster
                if problem:
                    raise ConfigurationError(problem)
                await note_companion(self.inner, identity, str(folder.base))
        known = await companion(self.inner)
        if known is None or known[0] != identity:
            raise ConfigurationError(
                f"file_store_base_dir {folder.base} is not the folder of {self.inner!r}"
                f"{f', which was at {known[1]}' if known else ''}"
            )

    async def _used_apart(self) -> str:
        """The reason against joining a database and a folder that do not know each other; empty if there is none."""
        if (await self.inner.totals()).is_used:
            return f"{self.inner!r} has agents with all they have in it: open it without file_store_base_dir"
        if await self.files.run(self.files.folder.names):
            return f"file_store_base_dir {self.files.folder.base} has agents of another store: give a new folder"
        return ""

    @property
    def finds_text(self) -> bool:
        """Whether the database has an index of texts: messages are in the database."""
        return finds_text(self.inner)

    # --- writes

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        in_database, in_files, in_both = [], [], []
        for i, batch in enumerate(batches):
            has_files = bool(batch.events or batch.drop_events) or any(write.kind in _IN_FILES for write in batch.docs)
            if not (has_files or batch.delete or batch.expect_nothing):
                in_database.append(i)
            elif not batch.fence and _is_only_files(batch):
                in_files.append(i)
            else:
                in_both.append(i)
        outcomes: dict[int, Outcome] = {}

        async def commit_group(engine: Engine | JsonFilesEngine, places: list[int]) -> None:
            if not places:
                return
            try:
                results: Sequence[Outcome] = await engine.commit([batches[i] for i in places])
            except KodeError as exc:  # the other groups have their own outcomes
                results = [exc] * len(places)
            outcomes.update(zip(places, results, strict=True))

        async def commit_both(i: int) -> None:
            outcomes[i] = await self.files.finish(self._commit_both(batches[i]))

        await asyncio.gather(
            commit_group(self.inner, in_database), commit_group(self.files, in_files), *map(commit_both, in_both)
        )
        return [outcomes[i] for i in range(len(batches))]

    async def _commit_both(self, batch: Batch) -> Outcome:
        """Write to files and database: prepare, commit in the database, then apply the files' part.

        Only a definite answer of the database decides the prepared write. In doubt it is left as it is, and the next
        call for the agent asks for the mark (:meth:`_was_committed`).
        """
        try:
            prepared = await self.files.prepare(_files_part(batch))
        except KodeError as exc:  # nothing is prepared, and the database was not asked
            return exc
        if isinstance(prepared, Refused):
            return prepared
        try:
            (outcome,) = await self.inner.commit([_database_part(batch)])
        except KodeError as exc:
            await prepared.leave()
            return exc
        except BaseException:
            await prepared.leave()
            raise
        if isinstance(outcome, OutcomeUnknownError):
            await prepared.leave()
            return outcome
        if not isinstance(outcome, Applied):
            await prepared.abort()
            return outcome

        # A delete removes the agent's records, and its mark with them; this write set one again. It goes only after the
        # files applied the delete, and before another writer comes: until then a crash would make the next call ask.
        async def unmark() -> None:
            await self.inner.commit(
                [Batch(agent_id=batch.agent_id, op_id=f"{batch.op_id}-end", now=0, docs=(_UNMARK,))]
            )

        try:
            applied = await prepared.commit(unmark if batch.delete else None)
        except StorageError as exc:
            return OutcomeUnknownError(f"the database has this write, and the files will follow: {exc}")
        return replace(outcome, offsets=applied.offsets)

    async def _was_committed(self, batch: Batch) -> bool:
        """True if the database has its part. If not, it never will: from here on, a write of that id counts as done.

        A commit that is still on its way may arrive after the first look at the mark. So an empty write uses up its id:
        the engine applies only the first write of an id, and the second look shows which one that was.
        """
        if await self._is_marked(batch):
            return True
        (outcome,) = await self.inner.commit(
            [Batch(agent_id=batch.agent_id, op_id=batch.op_id, now=batch.now, messages=ListWrite())]
        )
        if isinstance(outcome, KodeError):
            raise outcome
        return await self._is_marked(batch)

    async def _is_marked(self, batch: Batch) -> bool:
        docs = await self.inner.docs(batch.agent_id, DocKind.LAYER, _MARK)
        return any(noted(doc, f"the mark of agent {batch.agent_id!r}") == batch.op_id for doc in docs)

    async def fork(self, agent_id: str, children: Sequence[Child], expect: Body, now: int) -> bool:
        async def commit() -> bool:
            return await self.inner.fork(agent_id, children, expect, now)

        ids = [child.agent_id for child in children]
        return await self.files.finish(self.files.fork_beside(agent_id, ids, commit))

    # --- reads

    async def docs(self, agent_id: str, kind: DocKind, key: str | None = None) -> Sequence[Doc]:
        engine = self.files if kind in _IN_FILES else self.inner
        return await engine.docs(agent_id, kind, key)

    @property
    def checks_demands(self) -> bool:
        """Whether both engines check demands on documents of every kind, and that an agent has nothing.

        The files check theirs when they prepare a write, and nobody else writes them until the database has decided.
        """
        return checks_demands(self.inner) and checks_demands(self.files)

    @property
    def drops_events(self) -> bool:
        """Whether the engine that has the events removes a part of them: the files do."""
        return drops_events(self.files)

    @property
    def rewrites_events(self) -> bool:
        """Whether the engine that has the events replaces their bodies: the files do."""
        return rewrites_events(self.files)

    async def rewrite_events(self, agent_id: str, changes: Sequence[EventBody]) -> None:
        await self.files.rewrite_events(agent_id, changes)

    async def events(self, agent_id: str, span: EventRange) -> Sequence[EventRow]:
        return await self.files.events(agent_id, span)

    def watch(self, agent_id: str, wake: Callable[[], None]) -> Watch | None:
        return watch(self.files, agent_id, wake)

    @property
    def idle_poll_ms(self) -> int | None:
        """The longest pause of idle followers of the engine that has the events."""
        return idle_poll_ms(self.files)

    async def last_event(self, agent_id: str) -> EventRow | None:
        return await self.files.last_event(agent_id)

    # --- operations

    def probes(self) -> Sequence[tuple[Medium, Callable[[], Awaitable[None]]]]:
        return [*self.inner.probes(), *self.files.probes()]

    async def stored_ids(self, after: str | None, limit: int) -> Sequence[str]:
        """The ids of both, up to the end of the page that ends first: behind it the other page may have gaps."""
        parts = await self.inner.stored_ids(after, limit), await self.files.stored_ids(after, limit)
        left_out = [name for part in parts if isinstance(part, Found) for name in part.left_out]
        end = min((part[-1] for part in parts if part), default="")
        return Found(sorted(agent_id for agent_id in {*parts[0], *parts[1]} if agent_id <= end)[:limit], left_out)

    async def inspect(self, agent_id: str | None, progress: Progress = unwatched) -> Sequence[EngineIssue]:
        return [*await self.inner.inspect(agent_id, progress), *await self.files.inspect(agent_id, progress)]

    async def backup(self, target: Path, progress: Progress = unwatched) -> Sequence[Path]:
        """Copy the database to *target*, and the files to a folder next to it, with the same name and ``.files``.

        Both copies show the same instant. No write to the files happens from the instant of their copy until the
        database's copy has its own instant, which is fixed when it first reports its progress.
        """
        files = target.with_name(f"{target.name}.files")
        fixed = asyncio.Event()

        def told(done: int, total: int | None) -> None:
            fixed.set()
            progress(done, total)

        database: asyncio.Future[Sequence[Path]] | None = None
        try:
            async with self.files.copying(files) as copy:
                async with self.files.holder.frozen() as stripes:
                    await self.files.fix(copy, stripes)
                    database = asyncio.ensure_future(self.inner.backup(target, told))
                    moment = asyncio.ensure_future(fixed.wait())
                    await asyncio.wait((database, moment), return_when=asyncio.FIRST_COMPLETED)
                    moment.cancel()
                created = await database
                await self.files.copy(copy, progress)
        except BaseException:  # also if the copy of the files fails
            if database is not None:
                await self.files.run(remove_all, await _made(database))
            raise
        return [*created, files]

    async def close(self) -> None:
        await close_all(self.files.close, self.inner.close)


async def _made(backup: asyncio.Future[Sequence[Path]]) -> Sequence[Path]:
    """End a backup, and return the paths it created."""
    backup.cancel()
    await asyncio.wait([backup])
    return () if backup.cancelled() or backup.exception() is not None else backup.result()


_UNMARK: Final = DocWrite(DocKind.LAYER, _MARK, None)


def _is_only_files(batch: Batch) -> bool:
    database = batch.delete or batch.info or batch.messages or batch.tool_calls or batch.expect_updated_at is not None
    return not (database or batch.expect_nothing) and all(write.kind in _IN_FILES for write in batch.docs)


def _files_part(batch: Batch) -> Batch:
    docs = tuple(write for write in batch.docs if write.kind in _IN_FILES)
    kept = replace(batch, fence=None, expect_updated_at=None, expect_lists=None, expect_info=None)
    return replace(kept, info=None, messages=None, tool_calls=None, docs=docs)


def _database_part(batch: Batch) -> Batch:
    mark = Body(batch.op_id, digest(batch.op_id.encode()))
    docs = tuple(write for write in batch.docs if write.kind not in _IN_FILES)
    return replace(
        batch, events=(), drop_events=None, docs=(*docs, DocWrite(DocKind.LAYER, _MARK, Doc(_MARK, 0, mark)))
    )
