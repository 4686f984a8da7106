"""The plugin of the JSON files backend."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from kode_core.config import path_from_url
from kode_core.engines.folder import Folder
from kode_core.engines.json_files import JsonFilesEngine
from kode_core.errors import ConfigurationError, StoreUnavailableError
from kode_core.plugins import Backend, hookimpl

__all__ = ["JsonOptions", "open_json"]


class JsonOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of the JSON files backend.

    Attributes:
        base_dir: the folder; made when it is not there.
        durability: ``full`` syncs every write to the device (DUR-2); ``fast`` leaves that to the system, so that a
            crash of the process loses nothing but a loss of power may.
        lock_wait_ms: how long a write waits for another process that writes the same agent.
    """

    base_dir: Annotated[str, msgspec.Meta(extra={"path": True})] = "./data/store"
    durability: Literal["full", "fast"] = "full"
    lock_wait_ms: int = 10_000


async def open_json(options: JsonOptions) -> JsonFilesEngine:
    """An engine over the folder that *options* name."""
    folder = Folder(_folder_of(options.base_dir), durable=options.durability == "full", wait_ms=options.lock_wait_ms)
    engine = JsonFilesEngine(folder)
    try:
        await engine.run(folder.open)
    except BaseException:
        await engine.close()
        raise
    return engine


def _folder_of(base_dir: str) -> Path:
    try:
        base_dir.encode()
        path = Path(base_dir).expanduser()
    except (RuntimeError, UnicodeError) as exc:
        raise ConfigurationError(f"base_dir {base_dir!a}: {exc}") from None
    if "\0" in base_dir:
        raise ConfigurationError(f"base_dir {base_dir!a} has a NUL character, which no path can have")
    try:
        return path.absolute()
    except OSError as exc:
        raise StoreUnavailableError(f"base_dir {base_dir!r} is relative, and the working directory is gone") from exc


def _is_there(options: JsonOptions) -> bool:
    return (_folder_of(options.base_dir) / ".kode" / "format").exists()


@hookimpl
def kode_store_backend() -> Backend:
    return Backend(
        name="json",
        options=JsonOptions,
        open=open_json,
        from_url=path_from_url("base_dir"),
        variables={"KODE_STORE_PATH": "base_dir"},
        is_there=_is_there,
        summary="a folder of JSON files; nothing to install",
    )
