"""Stores that make files which other users than their owner can read (OPS-18)."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from kode_conformance.context import Context
from kode_conformance.values import samples
from kode_sqlite.engine import SqliteEngine
from kode_sqlite.options import SqliteOptions

from conformance.tests.zoo.base import OnJson, OnSqlite, mutant
from kode_core.backends.json_files.folder import Folder
from kode_core.store import EngineStore


def _modes(folder: Path) -> list[str]:
    return sorted({f"{stat.S_IMODE(path.stat().st_mode):04o}" for path in folder.rglob("*") if path.is_file()})


async def _made(ctx: Context) -> object:
    await ctx.store.save_messages("a", samples.messages(2))
    await ctx.store.delete("gone")
    return _modes(ctx.folder)


async def _made_again(ctx: Context) -> object:
    await ctx.store.save_messages("a", samples.messages(2))
    await ctx.close(ctx.store)
    for path in ctx.folder.rglob("*.db"):
        path.chmod(0o660)
    await (await ctx.another()).save_messages("a", samples.messages(3))
    return [_modes_of(path) for path in ctx.folder.rglob("*.db")]


def _modes_of(path: Path) -> str:
    return f"{stat.S_IMODE(path.stat().st_mode):04o}"


async def _copied(ctx: Context) -> object:
    await ctx.store.save_messages("a", samples.messages(2))
    folder = ctx.folder / "copies"
    folder.mkdir()
    seen: set[str] = set()
    copying = asyncio.ensure_future(ctx.store.backup(folder / "copy"))
    while not copying.done():
        seen.update(_modes(folder))
        await asyncio.sleep(0.001)
    await copying
    return sorted({*seen, *_modes(folder)})


@mutant(
    "OPS-18",
    killed_by="what_is_made_is_for_its_owner_alone",
    on=OnSqlite,
    witness=_made,
    source="sqlite3.connect, which makes the file by the umask",
)
class LeavesTheModeToTheUmask(SqliteEngine):
    """Makes the database so that all can read it."""

    @classmethod
    async def open(cls, options: SqliteOptions) -> SqliteEngine:
        return await super().open(msgspec.structs.replace(options, file_mode="0644"))


@mutant(
    "OPS-18",
    killed_by="what_is_made_is_for_its_owner_alone",
    on=OnSqlite,
    witness=_made,
    source="a file that was made well, and a log next to it that the driver makes",
)
class LogsForEverybody(EngineStore):
    """Writes a log next to the database that all can read."""

    async def append_messages(self, agent_id: str, messages: Sequence[Any], *, fence: Any = None) -> None:
        await super().append_messages(agent_id, messages, fence=fence)
        self._open_up()

    async def save_messages(self, agent_id: str, messages: Sequence[Any], *, fence: Any = None) -> None:
        await super().save_messages(agent_id, messages, fence=fence)
        self._open_up()

    def _open_up(self) -> None:
        path = Path(f"{self._context.engine._options.db_path}-wal")  # type: ignore[attr-defined]
        if path.exists():
            path.chmod(0o644)


@mutant(
    "OPS-18",
    killed_by="what_is_made_is_for_its_owner_alone",
    on=OnJson,
    witness=_made,
    source="open(path, 'wb') in folders that were made by mkdir",
)
class FilesForTheGroup(Folder):
    """Makes files and folders that the group can read."""

    def __init__(self, base: Path, **how: Any) -> None:
        super().__init__(base, **{**how, "mode": 0o640})


@mutant(
    "OPS-18",
    killed_by="a_backup_is_for_its_owner_alone",
    on=OnSqlite,
    witness=_copied,
    source="shutil.copyfile, which makes the copy by the umask",
)
class BackupsForEverybody(EngineStore):
    """Makes backups that all can read."""

    async def backup(self, target: str | Path, **how: Any) -> Any:
        made = await super().backup(target, **how)
        for path in made:
            path.chmod(0o644)
        return made


@mutant(
    "OPS-18",
    killed_by="a_backup_is_for_its_owner_alone",
    on=OnSqlite,
    witness=_copied,
    source="a copy under another name by the umask, then chmod, then rename",
)
class ClosesTheCopyAtTheEnd(EngineStore):
    """Lets all read a copy until it is whole."""

    async def backup(self, target: str | Path, **how: Any) -> Any:
        part = Path(target).with_name("part")
        part.parent.mkdir(0o700, parents=True, exist_ok=True)
        (path,) = await super().backup(part, **how)
        path.chmod(0o644)
        await asyncio.sleep(0.05)
        path.chmod(0o600)
        return [path.rename(target)]


@mutant(
    "OPS-18",
    killed_by="what_is_there_keeps_its_mode",
    on=OnSqlite,
    witness=_made_again,
    source="os.chmod(path, 0o600) at each opening",
)
class TakesTheFileForItself(SqliteEngine):
    """Takes the database away from the group that somebody gave it to."""

    @classmethod
    async def open(cls, options: SqliteOptions) -> SqliteEngine:
        engine = await super().open(options)
        os.chmod(options.db_path, 0o600)
        return engine
