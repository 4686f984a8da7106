"""Stores whose maintenance blocks other calls, ends too early, or is left half done (OPS-16, LIFE-5)."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, cast

from kode_conformance.checks.isolation import troubled
from kode_conformance.checks.maintenance import stepping
from kode_conformance.context import Context
from kode_conformance.values import samples

from conformance.tests.zoo.base import OnJson, OnSqlite, mutant
from conformance.tests.zoo.witnesses import happened, talk
from kode_core.backends.json_files.engine import JsonFilesEngine
from kode_core.errors import InvalidArgumentError, StorageError, StoreTimeoutError, StoreUnavailableError
from kode_core.layers import Layer
from kode_core.report import ConsistencyIssue
from kode_core.store import EngineStore

# --- all together, or one by one --------------------------------------------------------------------------------------


async def _many(store: Any, count: int) -> None:
    for i in range(count):
        await store.save_turn(f"a{i}", append=talk("1"), info=samples.info(f"a{i}"))


async def _slow_check(ctx: Context) -> object:
    await _many(ctx.store, 6)
    store, steps = await stepping(ctx, timeout_ms=200)
    await store.exists("a0")
    steps.seconds = 0.03
    (result,) = await asyncio.gather(store.check_consistency(), return_exceptions=True)
    return type(result).__name__


@mutant(
    "OPS-16",
    killed_by="maintenance_has_no_total_deadline",
    witness=_slow_check,
    source="one deadline around every public method",
)
class OneDeadlineForTheWholeCheck(EngineStore):
    """Gives up a check of everything after the deadline of a call."""

    async def check_consistency(self, agent_id: str | None = None, **how: Any) -> Any:
        try:
            async with asyncio.timeout(self._context.timeout):
                return await super().check_consistency(agent_id, **how)
        except TimeoutError as exc:
            raise StoreTimeoutError("check_consistency was not done in time") from exc


async def _slow_backup(ctx: Context) -> object:
    await _many(ctx.store, 2)
    store, steps = await stepping(ctx, timeout_ms=200)
    await store.exists("a0")
    steps.seconds = 0.03
    (result,) = await asyncio.gather(store.backup(ctx.folder / "copy"), return_exceptions=True)
    return isinstance(result, BaseException)


@mutant(
    "OPS-16",
    killed_by="maintenance_has_no_total_deadline",
    on=OnSqlite,
    witness=_slow_backup,
    source="one deadline around every public method",
)
class OneDeadlineForTheWholeBackup(EngineStore):
    """Gives up a backup after the deadline of a call."""

    async def backup(self, target: str | Path, **how: Any) -> Any:
        try:
            async with asyncio.timeout(self._context.timeout):
                return await super().backup(target, **how)
        except TimeoutError as exc:
            raise StoreTimeoutError("backup was not done in time") from exc


async def _first_issue(ctx: Context) -> object:
    await _many(ctx.store, 6)
    await ctx.store.save_messages("a0", samples.rich_messages()[:5])
    store, steps = await stepping(ctx)
    async for _ in store.iter_consistency():
        break
    return len(steps.calls) > 30


@mutant(
    "OPS-2",
    killed_by="issues_come_as_they_are_found",
    witness=_first_issue,
    source="an iterator over a list that is made first",
)
class IssuesComeAtTheEnd(EngineStore):
    """Looks at everything before it gives the first issue."""

    async def iter_consistency(  # type: ignore[override]
        self, agent_id: str | None = None, **how: Any
    ) -> AsyncIterator[ConsistencyIssue]:
        for issue in [issue async for issue in super().iter_consistency(agent_id, **how)]:
            yield issue


async def _told_how_many(ctx: Context) -> object:
    await _many(ctx.store, 20)
    store, trouble = await troubled(ctx)
    trouble.failing = {"a7": StoreUnavailableError("refused")}
    (error,) = await asyncio.gather(store.delete_many(template_id="assistant"), return_exceptions=True)
    return str(20 - len(await ctx.store.list())) in f"{error} {getattr(error, '__notes__', '')}"


@mutant(
    "LIFE-5",
    killed_by="an_error_says_how_many_were_deleted",
    witness=_told_how_many,
    source="a counter that is lost with the exception",
)
class DoesNotSayHowManyAreGone(EngineStore):
    """Raises the error of the one that could not be deleted, without a word of the others."""

    async def delete_many(self, **filters: Any) -> int:
        try:
            return await super().delete_many(**filters)
        except StorageError as exc:
            raise StoreUnavailableError("some could not be deleted") from exc


async def _changed_meanwhile(ctx: Context) -> object:
    await _many(ctx.store, 3)
    store, steps = await stepping(ctx)

    async def change(verb: str, args: tuple[Any, ...]) -> None:
        if verb == "commit" and args[0][0].delete:
            steps.before = None
            await ctx.store.save_info("a2", samples.info("a2", template_id="new"))

    steps.before = change
    await store.delete_many(template_id="assistant")
    return await ctx.store.list()


@mutant(
    "LIFE-5",
    killed_by="a_session_that_changes_is_looked_at_again",
    witness=_changed_meanwhile,
    source="a query for ids, and a delete for each",
)
class DeletesWhatItFound(EngineStore):
    """Deletes every session that matched when it looked, whatever became of it since."""

    async def delete_many(self, **filters: Any) -> int:
        if not filters:
            return await super().delete_many(**filters)
        ids = [session.agent_id async for session in self.iter_sessions(**filters)]
        for agent_id in ids:
            await self.delete(agent_id)
        return len(ids)


# --- in the way -------------------------------------------------------------------------------------------------------


async def _writes_during_a_check(ctx: Context) -> object:
    await _many(ctx.store, 3)
    store, trouble = await troubled(ctx)
    trouble.hanging = {"a1"}
    check = asyncio.ensure_future(store.check_consistency())
    await asyncio.sleep(0.05)
    write = asyncio.ensure_future(store.append_messages("b", talk("1")))
    await asyncio.wait([write], timeout=0.3)
    ended = write.done()
    trouble.let_go.set()
    await asyncio.gather(check, write)
    return ended


@mutant(
    "OPS-16",
    killed_by="maintenance_holds_up_no_writer",
    witness=_writes_during_a_check,
    source="a check in a transaction that locks",
)
class ChecksUnderALock(EngineStore):
    """Lets nobody append while it checks."""

    _checking: asyncio.Lock | None = None

    def _lock(self) -> asyncio.Lock:
        self._checking = self._checking or asyncio.Lock()
        return self._checking

    async def check_consistency(self, agent_id: str | None = None, **how: Any) -> Any:
        async with self._lock():
            return await super().check_consistency(agent_id, **how)

    async def append_messages(self, agent_id: str, messages: Sequence[Any], *, fence: Any = None) -> None:
        async with self._lock():
            await super().append_messages(agent_id, messages, fence=fence)


async def _writes_during_a_backup(ctx: Context) -> object:
    for i in range(40):
        await ctx.store.save_messages(f"a{i}", talk("x" * 100_000))
    backup = asyncio.ensure_future(ctx.store.backup(ctx.folder / "copy"))
    await asyncio.sleep(0)
    ended = 0
    while not backup.done():
        await ctx.store.append_messages("b", talk("1"))
        ended += not backup.done()
    await backup
    return ended > 0


@mutant(
    "OPS-16",
    killed_by="a_backup_holds_up_no_writer",
    on=OnSqlite,
    witness=_writes_during_a_backup,
    source="VACUUM INTO on the connection that writes",
)
class BackupHoldsUpWriters(EngineStore):
    """Lets nobody write while it is copied."""

    _copying: asyncio.Lock | None = None

    def _lock(self) -> asyncio.Lock:
        self._copying = self._copying or asyncio.Lock()
        return self._copying

    async def backup(self, target: str | Path, **how: Any) -> Any:
        async with self._lock():
            return await super().backup(target, **how)

    async def append_messages(self, agent_id: str, messages: Sequence[Any], *, fence: Any = None) -> None:
        async with self._lock():
            await super().append_messages(agent_id, messages, fence=fence)


# --- half of it -------------------------------------------------------------------------------------------------------


@mutant(
    "OPS-16",
    killed_by="a_backup_is_of_one_instant",
    on=OnJson,
    witness=lambda ctx: _copied_slowly(ctx),
    source="cp -r of a folder that is being written",
)
class BackupOfManyInstants(Layer):
    """Copies one file after the other while they are written."""

    async def backup(self, target: Path, *how: Any) -> Sequence[Path]:
        if target.exists():
            raise InvalidArgumentError(f"{target} exists already")
        base = cast(JsonFilesEngine, self.inner).folder.base
        for path in sorted(base.rglob("*")):
            copied = target / path.relative_to(base)
            copied.parent.mkdir(parents=True, exist_ok=True)
            if path.is_file():
                shutil.copy(path, copied)
                await asyncio.sleep(0.003)
        return [target]


async def _copied_slowly(ctx: Context) -> object:
    await asyncio.gather(*(ctx.store.save_messages(f"a{i}", talk("1")) for i in range(30)))
    backup = asyncio.ensure_future(ctx.store.backup(ctx.folder / "copy"))
    number = 1
    while not backup.done():
        number += 1
        for i in range(30):
            await ctx.store.append_messages(f"a{i}", talk(str(number)))
    copy = await ctx.restored(backup.result())
    counts = [len(await copy.load_messages(f"a{i}")) for i in range(30)]
    return counts == sorted(counts, reverse=True) and counts[0] - counts[-1] <= 1


async def _token_after_restoring(ctx: Context) -> object:
    for _ in range(3):
        lease = await ctx.store.acquire_agent_lock("a")
        await lease.release()
    copy = await ctx.restored(await ctx.store.backup(ctx.folder / "copy"))
    return (await copy.acquire_agent_lock("a")).token > lease.token


@mutant(
    "OPS-16",
    killed_by="a_backup_goes_on_where_the_store_was",
    on=OnSqlite,
    witness=_token_after_restoring,
    source="a dump that leaves out what is only of the moment, leases among it",
)
class BackupWithoutLeases(Layer):
    """Leaves the leases out of the copy, and their tokens with them."""

    async def backup(self, target: Path, *how: Any) -> Sequence[Path]:
        made = await self.inner.backup(target, *how)
        with closing(sqlite3.connect(made[0])) as db:
            db.execute("DELETE FROM kode_leases")
            db.execute("DELETE FROM kode_meta WHERE key = 'last_token'")
            db.commit()
        return made


async def _offset_after_restoring(ctx: Context) -> object:
    offset = max(await ctx.store.append_events("a", happened(0, 1, 2)))
    await ctx.store.delete("a")
    copy = await ctx.restored(await ctx.store.backup(ctx.folder / "copy"))
    return (await copy.append_events("a", happened(3)))[0] > offset


@mutant(
    "OPS-16",
    killed_by="a_backup_goes_on_where_the_store_was",
    on=OnSqlite,
    witness=_offset_after_restoring,
    source="pg_dump of the tables without their sequences",
)
class BackupWithoutSequences(Layer):
    """Begins the offsets of events anew in the copy."""

    async def backup(self, target: Path, *how: Any) -> Sequence[Path]:
        made = await self.inner.backup(target, *how)
        with closing(sqlite3.connect(made[0])) as db:
            db.execute("DELETE FROM sqlite_sequence")
            db.commit()
        return made


async def _cancelled_copy(ctx: Context) -> object:
    await ctx.store.save_messages("a", talk("1"))
    left = set()
    for steps in range(1, 40):
        backup = asyncio.ensure_future(ctx.store.backup(ctx.folder / "copy"))
        for _ in range(steps):
            await asyncio.sleep(0)
        backup.cancel()
        await asyncio.wait([backup])
        await asyncio.sleep(0.02)
        if not backup.cancelled():
            break
        left |= {path.name for path in ctx.folder.iterdir() if path.name.startswith("copy")}
    return left


@mutant(
    "OPS-16",
    killed_by="a_backup_that_is_cancelled_leaves_nothing",
    on=OnSqlite,
    witness=_cancelled_copy,
    source="a copy under another name that is renamed in the end",
)
class BackupLeavesItsParts(Layer):
    """Leaves the beginning of a copy behind when it is cancelled."""

    async def backup(self, target: Path, *how: Any) -> Sequence[Path]:
        begun = target.with_name(f"{target.name}.begun")
        begun.write_text("x")
        await asyncio.sleep(0.002)
        made = await self.inner.backup(target, *how)
        begun.unlink()
        return made


async def _onto_a_file(ctx: Context) -> object:
    (ctx.folder / "file").write_text("precious")
    await asyncio.gather(ctx.store.backup(ctx.folder / "file"), return_exceptions=True)
    return (ctx.folder / "file").read_bytes()[:8]


@mutant(
    "OPS-16",
    killed_by="a_backup_that_cannot_be_made_leaves_nothing",
    on=OnSqlite,
    witness=_onto_a_file,
    source="cp, which overwrites",
)
class BackupOverwrites(EngineStore):
    """Replaces what is where the copy is to be."""

    async def backup(self, target: str | Path, **how: Any) -> Any:
        if Path(target).is_file():
            Path(target).unlink()
        return await super().backup(target, **how)
