"""Stores that are right for one process, and wrong between two (ID-2, FORK-1, LIFE-5, OPS-11, OPS-16)."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast
from zlib import crc32

from kode_conformance.checks.other_processes import what_another_process_changes_is_not_deleted
from kode_conformance.context import Context, Violation
from kode_conformance.processes.remote import another_process
from kode_conformance.values import samples

from conformance.tests.zoo.base import OnJson, OnSqlite, mutant
from conformance.tests.zoo.witnesses import talk
from kode_core.backends.json_files.engine import JsonFilesEngine
from kode_core.batch import Batch, Outcome
from kode_core.errors import LockUnavailableError
from kode_core.layers import Layer
from kode_core.store import EngineStore


async def _locked_elsewhere(ctx: Context) -> object:
    process = await ctx.process("hold_locks", ["Ab"], 60_000)
    await process.line()
    try:
        await ctx.store.acquire_agent_lock("aB")
    except LockUnavailableError:
        return "refused"
    return "taken"


_files: set[tuple[str, str]] = set()


@mutant(
    "ID-2",
    killed_by="twins_are_apart_for_other_processes",
    on=OnSqlite,
    witness=_locked_elsewhere,
    source="fcntl locks on files that are named by a hash: within a process they never collide",
    raises="the lock of",
)
class LockFilesAreNamedByAHash(Layer):
    """Locks all agents whose names are equal without regard to case, for other processes."""

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        name = f"lock-{crc32(agent_id.casefold().encode('utf-8', 'replace')):08x}"
        if (str(self.inner), name) not in _files:
            if await self.inner.acquire_lease(name, owner, ttl_ms) is None:
                return None
            _files.add((str(self.inner), name))
        return await self.inner.acquire_lease(agent_id, owner, ttl_ms)


async def _forked_by_two(ctx: Context) -> object:
    await ctx.store.save_info("a", samples.info("a"))
    remote = await another_process(ctx.harness, ctx.handle)
    try:
        ids = [*await ctx.store.batch_fork("a", 3), *await remote.batch_fork("a", 3)]
    finally:
        await remote.close()
    return len(set(ids))


_numbers = itertools.count(1)


@mutant(
    "FORK-1",
    killed_by="processes_fork_one_parent",
    on=OnSqlite,
    witness=_forked_by_two,
    source="ids of a second and a counter that begins at one in each process",
)
class CountsForksInTheProcess(EngineStore):
    """Gives forks ids that another process gives, too."""

    async def batch_fork(self, agent_id: str, count: int) -> list[str]:
        made = await super().batch_fork(agent_id, count)
        ids = [f"agt-{int(time.time() / 600):012d}{next(_numbers):04d}" for _ in made]
        for fork, name in zip(made, ids, strict=True):
            await self._copied(fork, name)
            await self.delete(fork)
        return ids

    async def _copied(self, fork: str, name: str) -> None:
        info = await self.load_info(fork)
        assert info is not None
        await self.save_turn(
            name,
            messages=await self.load_messages(fork),
            tool_calls=await self.load_tool_call_records(fork),
            todos=await self.load_todos(fork),
            info=info.replace(agent_id=name),
        )
        await self.save_media_cache(name, await self.load_media_cache(fork))
        for snapshot in await self.list_snapshots(fork):
            await self.save_snapshot(name, snapshot)


_changed: dict[str, int] = {}


async def _changed_by(ctx: Context) -> object:
    """Whether the session is kept when the steps of the check are taken."""
    try:
        await what_another_process_changes_is_not_deleted(ctx)
    except Violation:
        return "deleted"
    return "kept"


@mutant(
    "LIFE-5",
    killed_by="what_another_process_changes_is_not_deleted",
    on=OnSqlite,
    witness=_changed_by,
    source="a set of the ids that were written since, kept in memory",
)
class LooksAgainAtItsOwnChanges(EngineStore):
    """Looks again only at sessions that this process has changed since it found them."""

    async def save_info(self, agent_id: str, info: Any, *, fence: Any = None) -> None:
        _changed[agent_id] = _changed.get(agent_id, 0) + 1
        await super().save_info(agent_id, info, fence=fence)

    async def delete_many(self, *, progress: Any = None, **filters: Any) -> int:
        if not filters:
            return await super().delete_many(**filters)
        before = dict(_changed)
        ids = [session.agent_id async for session in self.iter_sessions(**filters)]
        deleted = 0
        for agent_id in ids:
            if _changed.get(agent_id) != before.get(agent_id):
                deleted += await super().delete_many(**{**filters, "agent_id": agent_id})
            else:
                await self.delete(agent_id)
                deleted += 1
        return deleted


class _Counted(Layer):
    """Counts the commits of this process."""

    commits = 0

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        self.commits += 1
        return await super().commit(batches)


async def _copied_while_written(ctx: Context) -> object:
    remote = await another_process(ctx.harness, ctx.handle)
    for i in range(30):
        await ctx.store.save_messages(f"m{i}", talk("x"))
    for agent_id in "az":
        await remote.append_messages(agent_id, talk("1"))
    stop = False

    async def write() -> None:
        while not stop:
            for agent_id in "az":
                await remote.append_messages(agent_id, talk("1"))

    writer = asyncio.ensure_future(write())
    await asyncio.sleep(0.05)
    paths = await ctx.store.backup(ctx.folder / "copy")
    stop = True
    await writer
    await remote.close()
    copy = await ctx.restored(paths)
    counts = [len(await copy.load_messages(agent_id)) for agent_id in "az"]
    return counts[0] - counts[1] in (0, 1)


@mutant(
    "OPS-16",
    killed_by="a_backup_is_of_one_instant_for_other_processes_too",
    on=OnJson,
    witness=_copied_while_written,
    source="a copy that is made again when the process wrote meanwhile",
)
class CopiesUntilItWroteNothing(_Counted):
    """Copies file by file, and again if this process wrote meanwhile, whatever others wrote."""

    async def backup(self, target: Path, *how: Any) -> Sequence[Path]:
        base = cast(JsonFilesEngine, self.inner).folder.base
        for _ in range(3):
            before = self.commits
            shutil.rmtree(target, ignore_errors=True)
            for path in sorted(path for path in base.rglob("*") if path.is_file()):
                copied = target / path.relative_to(base)
                copied.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, copied)
                await asyncio.sleep(0.002)
            if self.commits == before:
                return [target]
        shutil.rmtree(target, ignore_errors=True)
        return await self.inner.backup(target, *how)


async def _several_left(ctx: Context) -> object:
    await ctx.close(ctx.store)
    process = await ctx.process("leave_several_open", ctx.harness.spec, ctx.handle, 2)
    try:
        return await process.lines(seconds=4)
    except Violation:
        return "it did not end"


_latest: list[threading.Event] = []


def _end_the_latest() -> None:
    for event in _latest[-1:]:
        event.set()


@mutant(
    "OPS-11",
    killed_by="a_process_may_leave_several_open",
    on=OnSqlite,
    witness=_several_left,
    source="one thread for each instance, and one hook of the interpreter's end for the module",
    slow=True,
)
class OnlyTheLatestEnds(EngineStore):
    """Keeps a thread for each instance, of which the end of the process ends the latest."""

    async def open(self) -> Any:
        opened = await super().open()
        self._event = threading.Event()
        if not _latest:
            threading._register_atexit(_end_the_latest)  # type: ignore[attr-defined]
        _latest.append(self._event)
        threading.Thread(target=self._event.wait).start()
        return opened

    async def close(self) -> None:
        self._event.set()
        await super().close()
