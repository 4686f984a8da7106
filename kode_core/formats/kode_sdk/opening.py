"""Opens a store of the SDK for reading."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import Final

from kode_core.authoring.paths import local_path
from kode_core.authoring.values import path_options
from kode_core.config import Configured, configure
from kode_core.errors import ConfigurationError
from kode_core.formats.kode_sdk.files import FolderSource
from kode_core.formats.kode_sdk.raw import Source
from kode_core.formats.kode_sdk.tables import TableSource
from kode_core.plugins import registry

__all__ = ["has_agents", "open_source"]


_LOOKED_AT: Final = 1000
_DATABASE: Final = b"SQLite format 3\0"
_PARTS: Final = ("meta.json", "runtime", "events", "history", "snapshots")


@asynccontextmanager
async def open_source(place: str, files: Path | None = None, *, without_files: bool = False) -> AsyncIterator[Source]:
    """The store of the SDK at *place*, which is not changed.

    Args:
        place: the folder of a ``JSONStore``; the file of a ``SqliteStore``; or a URL, such as the one of a
            ``PostgresStore``'s database.
        files: the folder with the files of a database store. Without it those next to the file of a ``SqliteStore``
            are taken, which is the SDK's own default.
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
    if files is None and not without_files:
        files = await asyncio.to_thread(_default, configured)
    async with configured.backend.sdk_tables(configured.options) as tables:
        yield TableSource(tables, files, is_whole=is_whole)


def _default(configured: Configured) -> Path:
    """The folder of a database's file, where the SDK keeps the files unless it is told another.

    Raises:
        ConfigurationError: no agent has files there.
    """
    if "db_path" in path_options(configured.backend.options):
        path = _path(configured, "db_path")
        if not path.exists():
            raise ConfigurationError(f"there is no file {path}")
        if any(_is_agent(Path(entry)) for entry in _some(path.parent)):
            return path.parent
    raise ConfigurationError(
        "the SDK keeps events, todos, history and media of a database store in a folder of files: name it with "
        "--files DIR, or import the tables alone with --no-files"
    )


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
        databases = [path for path in _some(base) if path.is_file() and _begins(path) == _DATABASE]
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
            return file.read(len(_DATABASE))
    except OSError:
        return b""
