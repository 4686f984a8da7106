"""The plugin of the JSON files backend."""

from __future__ import annotations

import asyncio
import os
from itertools import islice
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from kode_core.authoring.modes import FileMode, mode_bits
from kode_core.authoring.paths import local_path
from kode_core.authoring.values import path_from_url
from kode_core.backends.json_files.engine import JsonFilesEngine
from kode_core.backends.json_files.folder import Folder
from kode_core.errors import ForeignStoreError
from kode_core.plugins import Backend, hookimpl

__all__ = ["JsonOptions", "open_json", "refuse_foreign"]

_LOOKED_AT: Final = 1000
_SDK_FILES: Final = (
    *("runtime/messages.json", "runtime/messages.wal", "runtime/tool-calls.json", "runtime/tool-calls.wal"),
    *("runtime/todos.json", "runtime/media-cache.json", "history/windows", "history/recovered"),
    *(f"events/{channel}.{kind}" for channel in ("progress", "control", "monitor") for kind in ("log", "wal")),
)


class JsonOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of the JSON files backend.

    Attributes:
        base_dir: the folder; created if it does not exist.
        durability: ``full`` syncs every write to the device (DUR-2); ``fast`` leaves that to the system: a crash of the
            process loses nothing, a loss of power may lose recent writes.
        lock_wait_ms: how long a write waits while another process writes the same agent.
        file_mode: the mode of new files; users who may read the files may also enter the folders.
    """

    base_dir: Annotated[str, msgspec.Meta(min_length=1, extra={"path": True})] = "./data/store"
    durability: Literal["full", "fast"] = "full"
    lock_wait_ms: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)] = 10_000
    file_mode: FileMode = "0600"


async def open_json(options: JsonOptions) -> JsonFilesEngine:
    """An engine over the folder that *options* name.

    Raises:
        ConfigurationError: the path cannot be used.
        ForeignStoreError: the KODE SDK wrote the folder.
    """
    base = await asyncio.to_thread(refuse_foreign, options.base_dir)
    folder = Folder(
        base, durable=options.durability == "full", wait_ms=options.lock_wait_ms, mode=mode_bits(options.file_mode)
    )
    engine = JsonFilesEngine(folder)
    try:
        await engine.run(folder.open)
    except BaseException:
        await engine.close()
        raise
    return engine


def refuse_foreign(base_dir: str) -> Path:
    """Return the folder, unless the KODE SDK for TypeScript wrote it.

    Raises:
        ForeignStoreError: the KODE SDK wrote the folder; nothing in it was touched.
    """
    base = local_path(base_dir, "the folder")
    try:
        if (base / ".kode").exists():
            return base
        with os.scandir(base) as entries:
            found = next((entry.name for entry in islice(entries, _LOOKED_AT) if _is_of_sdk(base / entry.name)), None)
    except OSError:  # missing or unreadable: the engine reports it
        return base
    if found is not None:
        raise ForeignStoreError(str(base), "json")
    return base


def _is_of_sdk(agent: Path) -> bool:
    """True if the folder is an agent's as the SDK lays it out; after a crash it may be incomplete."""
    return any((agent / name).exists() for name in _SDK_FILES)


def _is_there(options: JsonOptions) -> bool:
    return os.path.exists(refuse_foreign(options.base_dir) / ".kode" / "format")  # noqa: PTH110 - raises nothing


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
