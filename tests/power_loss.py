"""A file system that forgets what was not synced, made from a recording of what the engine did to a real one.

Contents are durable after fsync of the file, names after fsync of the folder. Of what was not synced, any part may
survive: of names any prefix, of contents any prefix or any subset, each write whole or torn.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

__all__ = ["Recording", "recorded"]


class Recording:
    """What happened to the files below a folder, in order: (operation, arguments)."""

    def __init__(self, base: Path) -> None:
        self.base = str(base)
        self.log: list[tuple[Any, ...]] = []
        self._paths: dict[int, str] = {}
        self._inodes: dict[str, int] = {}
        self._next = 0

    def _inode(self, path: str) -> int:
        if path not in self._inodes:
            self._next += 1
            self._inodes[path] = self._next
            self.log.append(("link", path, self._next))
        return self._inodes[path]

    def opened(self, fd: int, path: Any, flags: int) -> None:
        path = str(path)
        if path.startswith(self.base):
            self._paths[fd] = path
            if flags & os.O_CREAT:
                self._inode(path)

    def closed(self, fd: int) -> None:
        self._paths.pop(fd, None)

    def on(self, operation: str, fd: int, *arguments: Any) -> None:
        path = self._paths.get(fd)
        if path is not None and (path in self._inodes or operation == "sync"):
            self.log.append((operation, self._inodes.get(path, path), *arguments))

    def renamed(self, old: Path, new: Path) -> None:
        self._inodes[str(new)] = self._inodes.pop(str(old))
        self.log.append(("rename", str(old), str(new)))

    def removed(self, path: Path) -> None:
        if self._inodes.pop(str(path), None) is not None:
            self.log.append(("unlink", str(path)))

    def note(self, *what: Any) -> None:
        """Something that the test did or saw."""
        self.log.append(("note", *what))

    def after(self, cut: int, rng: random.Random) -> dict[str, bytes]:
        """The files as they may be after a loss of power before operation *cut*."""
        files = _Files()
        for operation, *arguments in self.log[:cut]:
            if operation != "note":
                getattr(files, operation)(*arguments)
        return files.survivors(rng)


class _Files:
    def __init__(self) -> None:
        self.durable: dict[int, bytes] = {}
        self.content: dict[int, bytearray] = {}
        self.pending: dict[int, list[tuple[Any, ...]]] = {}
        self.durable_names: dict[str, int] = {}
        self.names: dict[str, int] = {}
        self.pending_names: list[Callable[[dict[str, int]], None]] = []

    def _name(self, change: Callable[[dict[str, int]], Any]) -> None:
        change(self.names)
        self.pending_names.append(change)

    def link(self, path: str, inode: int) -> None:
        self.content[inode], self.durable[inode], self.pending[inode] = bytearray(), b"", []
        self._name(lambda names: names.__setitem__(path, inode))

    def rename(self, old: str, new: str) -> None:
        def change(names: dict[str, int]) -> None:
            if old in names:
                names[new] = names.pop(old)

        self._name(change)

    def unlink(self, path: str) -> None:
        self._name(lambda names: names.pop(path, None))

    def write(self, inode: int, offset: int, data: bytes) -> None:
        _put(self.content[inode], offset, data)
        self.pending[inode].append((offset, data))

    def truncate(self, inode: int, size: int) -> None:
        del self.content[inode][size:]
        self.pending[inode].append((size,))

    def sync(self, what: int | str) -> None:
        if isinstance(what, int):
            self.durable[what] = bytes(self.content[what])
            self.pending[what] = []
        else:
            self.durable_names = dict(self.names)
            self.pending_names = []

    def survivors(self, rng: random.Random) -> dict[str, bytes]:
        names = dict(self.durable_names)
        for change in self.pending_names[: rng.randint(0, len(self.pending_names))]:
            change(names)
        return {path: self._survivor(inode, rng) for path, inode in names.items()}

    def _survivor(self, inode: int, rng: random.Random) -> bytes:
        content = bytearray(self.durable[inode])
        pending = self.pending[inode]
        if rng.random() < 0.5:
            pending = pending[: rng.randint(0, len(pending))]
        else:
            pending = [change for change in pending if rng.random() < 0.6]
        for change in pending:
            if len(change) == 1:
                del content[change[0] :]
            else:
                offset, data = change
                torn = data[: rng.randint(0, len(data))] if rng.random() < 0.4 else data
                _put(content, offset, torn)
        return bytes(content)


def _put(content: bytearray, offset: int, data: bytes) -> None:
    content.extend(bytes(max(0, offset - len(content))))
    content[offset : offset + len(data)] = data


@contextmanager
def recorded(base: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recording]:
    """Record what the JSON files engine does below *base*."""
    recording = Recording(base)

    def open_(path: Any, flags: int, *rest: Any) -> int:
        fd = os.open(path, flags, *rest)
        recording.opened(fd, path, flags)
        return fd

    def write(fd: int, data: Any) -> int:
        offset = os.lseek(fd, 0, os.SEEK_CUR)
        written = os.write(fd, data)
        recording.on("write", fd, offset, bytes(data[:written]))
        return written

    def close(fd: int) -> None:
        recording.closed(fd)
        os.close(fd)

    def ftruncate(fd: int, size: int) -> None:
        os.ftruncate(fd, size)
        recording.on("truncate", fd, size)

    def sync(fd: int) -> None:
        recording.on("sync", fd)

    shim = SimpleNamespace(**{name: getattr(os, name) for name in dir(os) if not name.startswith("__")})
    shim.open, shim.write, shim.close, shim.ftruncate, shim.fsync, shim.fdatasync = (
        open_,
        write,
        close,
        ftruncate,
        sync,
        sync,
    )
    replace, unlink = Path.replace, Path.unlink

    def replaced(self: Path, target: Any) -> Path:
        result = replace(self, target)
        recording.renamed(self, Path(target))
        return result

    def unlinked(self: Path, missing_ok: bool = False) -> None:
        unlink(self, missing_ok=missing_ok)
        recording.removed(self)

    with monkeypatch.context() as patch:
        for module in (
            "authoring.files",
            "authoring.modes",
            *(f"backends.json_files.{name}" for name in ("files", "journal", "folder")),
        ):
            patch.setattr(f"kode_core.{module}.os", shim)
        patch.setattr(Path, "replace", replaced)
        patch.setattr(Path, "unlink", unlinked)
        yield recording
