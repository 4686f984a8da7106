"""Opens a store of the SDK for reading."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import Final

from kode_core.authoring.paths import local_path
from kode_core.authoring.sdk_tables import SdkTables
from kode_core.authoring.values import path_options
from kode_core.config import Configured, configure
from kode_core.errors import ConfigurationError
from kode_core.formats.documents import SQLITE
from kode_core.formats.kode_sdk.files import FolderSource
from kode_core.formats.kode_sdk.raw import Source
from kode_core.formats.kode_sdk.tables import TableSource
from kode_core.plugins import registry

__all__ = ["has_agents", "open_source"]


_LOOKED_AT: Final = 1000
_PARTS: Final = ("meta.json", "runtime", "events", "history", "snapshots")


@asynccontextmanager
async def open_source(place: str, files: Path | None = None, *, without_files: bool = False) -> AsyncIterator[Source]:
    """The store of the SDK at *place*, which is not changed.

    Args:
        place: the folder of a ``JSONStore``; the file of a ``SqliteStore``; or a URL, such as the one of a
            ``PostgresStore``'s database.
        files: the folder with the files of a database store. Without it those next to the file of a ``SqliteStore``
            are taken, which is the SDK's own default. One of the first agents must have files there.
        without_files: read the tables of a database store alone.

    Raises:
        ConfigurationError: there is no store of the SDK at that place, or the files of a database store are missing.
        StorageError: it cannot be read.
    """
    configured = configure(place if "://" in place else Path(place), {}, registry.backend, os.environ)
    if not place:
        raise ConfigurationError("the source is empty; name a folder, a file or a URL")
    if files is not None and without_files:
        raise ConfigurationError("give --files or --no-files, and not both")
    if files is not None and not await asyncio.to_thread(local_path(files, "--files").is_dir):
        raise ConfigurationError(f"there is no folder {files} of files")
    if configured.backend.name == "json":
        if files is not None or without_files:
            raise ConfigurationError("a folder of the SDK's JSONStore has its files inside; leave --files out")
        yield await asyncio.to_thread(_folder, _path(configured, "base_dir"))
        return
    if configured.backend.sdk_tables is None:
        raise ConfigurationError(f"the KODE SDK has no store for {configured.backend.name}")
    is_whole = files is not None
    default = None
    if "db_path" in path_options(configured.backend.options):
        path = _path(configured, "db_path")
        default = path.parent
        if not await asyncio.to_thread(path.exists):
            raise ConfigurationError(f"there is no file {path}")
    async with configured.backend.sdk_tables(configured.options) as tables:
        if not without_files:
            ids = await _first_ids(tables)
            files = await asyncio.to_thread(_folder_of_files, files, default, ids)
        yield TableSource(tables, files, is_whole=is_whole)


async def _first_ids(tables: SdkTables) -> list[str]:
    ids: list[str] = []
    async for agent_id in tables.agent_ids():
        ids.append(agent_id)
        if len(ids) == _LOOKED_AT:
            break
    return ids


def _folder_of_files(given: Path | None, default: Path | None, ids: Sequence[str]) -> Path:
    """The folder with the files of the agents: *given*, or *default*, which is the folder of the database.

    Raises:
        ConfigurationError: it has no files of the first agents.
    """
    folder = default if given is None else given
    if folder is not None and (not ids or _has_files(folder, ids)):
        return folder
    if given is not None and has_agents(given):  # the SDK removes the row before the files
        return given
    where = f"{folder} has none of these agents" if folder is not None else "a server's database does not say where"
    near = [path for path in (_some(default) if default is not None else ()) if _has_files(path, ids)]
    raise ConfigurationError(
        "the SDK keeps events, todos, history and media of a database store in a folder of files, and "
        f"{where}: name it with --files {near[0] if near else 'DIR'}, or import the tables alone with --no-files"
    )


def _has_files(folder: Path, ids: Sequence[str]) -> bool:
    return any((folder / agent_id).is_dir() for agent_id in ids)


def _path(configured: Configured, option: str) -> Path:
    return local_path(getattr(configured.options, option), option)


def _folder(base: Path) -> FolderSource:
    if not base.is_dir():
        raise ConfigurationError(f"there is no folder {base}")
    if (base / ".kode").exists():
        raise ConfigurationError(f"{base} is a store of kode_core and not of the SDK")
    if _is_agent(base):
        raise ConfigurationError(f"{base} is the folder of one agent; name the folder that it is in")
    if not has_agents(base):
        databases = [path for path in _some(base) if path.is_file() and _begins(path) == SQLITE]
        raise ConfigurationError(
            f"{base} has no agents of the SDK"
            + (f"; if {databases[0].name} is the database of its SqliteStore, name that" if databases else "")
        )
    return FolderSource(base)


def has_agents(folder: Path) -> bool:
    """Whether *folder* has folders of agents, as the SDK's ``JSONStore`` keeps them."""
    return any(_is_agent(path) or _is_agent_of_agents(path) for path in _some(folder))


def _some(folder: Path) -> list[Path]:
    """The first entries of a folder; none if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return [Path(entry.path) for entry in islice(entries, _LOOKED_AT)]
    except OSError:
        return []


def _is_agent(folder: Path) -> bool:
    return (folder / "meta.json").is_file() or any((folder / part).is_dir() for part in _PARTS[1:])


def _is_agent_of_agents(folder: Path) -> bool:
    """Whether a fork lies in a folder whose own agent is gone."""
    return folder.is_dir() and any(_is_agent(path) for path in _some(folder))


def _begins(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(len(SQLITE))
    except OSError:
        return b""
