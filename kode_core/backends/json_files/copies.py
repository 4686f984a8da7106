"""A backup of a folder of JSON files. Everything here blocks.

Journals only grow, so a copy of one instant needs only each file's length and first line at that instant. Hard links
keep the files while they are copied, so that writers may rewrite and remove them meanwhile.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from kode_core.authoring.files import make_file, open_file
from kode_core.authoring.modes import PRIVATE, create_folders
from kode_core.backends.json_files.files import read_at, replace_file, sync_file, sync_folder, translated, write_all
from kode_core.backends.json_files.folder import Folder
from kode_core.backends.json_files.frames import read_line
from kode_core.backends.json_files.journal import Journal
from kode_core.backends.json_files.stripes import Stripe, stripe_bytes
from kode_core.errors import InvalidArgumentError, KodeError

__all__ = ["FolderCopy"]

_log = logging.getLogger("kode_core.json")

_PIECE: Final = 1 << 20
_STEP: Final = 8 << 20
_FILES_IN_STEP: Final = 50


class _Source(NamedTuple):
    name: str
    held: Path
    line: bytes
    size: int


def _link_or_copy(path: Path, held: Path) -> None:
    try:
        os.link(path.resolve(), held)
    except OSError:  # a file system without hard links, or a file of another user
        with os.fdopen(make_file(held, os.O_WRONLY, PRIVATE), "wb") as copied, path.open("rb") as file:
            shutil.copyfileobj(file, copied)


class FolderCopy:
    """A copy in progress: call ``fix`` while all stripes are held, ``copied`` to its end, ``finish``, ``clear``."""

    def __init__(self, folder: Folder, target: Path) -> None:
        self.target = target
        self._folder = folder
        self._word = secrets.token_hex(8)
        self._held = folder.own / "copies" / self._word
        self._made = target.with_name(f"{target.name}.{self._word}.part")
        self._sources: list[_Source] = []
        self._numbers: dict[str, int] = {}
        self._is_named = False

    @property
    def total(self) -> int:
        """The number of bytes to copy."""
        return sum(source.size for source in self._sources)

    def begin(self) -> None:
        """Create the folder in which the copy grows."""
        if os.path.lexists(self.target):
            raise InvalidArgumentError(f"{self.target} exists already; a backup does not overwrite")
        with translated(self.target):
            create_folders(self._made / ".kode" / "locks", self._folder.mode)
        with translated(self._folder.base):
            create_folders(self._held, self._folder.mode, like=self._folder.base)

    def fix(self, stripes: list[Stripe]) -> None:
        """Note the files to copy and the numbers of all stripes."""
        with translated(self._folder.base):
            for stripe in stripes:
                self._numbers[stripe.path.name] = stripe.number
            for name in self._folder.names():
                self._hold(name)

    def _hold(self, name: str) -> None:
        path, held = self._folder.base / name, self._held / name
        if not path.is_file():
            _log.error("%s is no regular file; the backup leaves it out", path)
            return
        try:
            _link_or_copy(path, held)
            fd = open_file(held, os.O_RDONLY)
        except PermissionError as exc:
            _log.error("%s cannot be read (%s); the backup leaves it out", path, exc.strerror)
            return
        try:
            self._sources.append(_Source(name, held, read_line(fd), os.fstat(fd).st_size))
        finally:
            os.close(fd)

    def copied(self) -> Iterator[int]:
        """Copy everything; yields the number of bytes done now and then."""
        done = in_step = 0
        for files, source in enumerate(self._sources, 1):
            for count in self._copy(source):
                done, in_step = done + count, in_step + count
                if in_step >= _STEP:
                    yield done
                    in_step = 0
            if not files % _FILES_IN_STEP:
                yield done

    def _copy(self, source: _Source) -> Iterator[int]:
        path = self._made / source.name
        with translated(self.target):
            reader = open_file(source.held, os.O_RDONLY)
            try:
                writer = make_file(path, os.O_WRONLY, self._folder.mode)
                try:
                    write_all(writer, source.line, 0)
                    for at in range(len(source.line), source.size, _PIECE):
                        data = read_at(reader, min(_PIECE, source.size - at), at)
                        write_all(writer, data, at)
                        yield len(data)
                    sync_file(writer)
                finally:
                    os.close(writer)
            finally:
                os.close(reader)
            source.held.unlink()
        self._look_at(path)
        yield len(source.line)

    def _look_at(self, path: Path) -> None:
        try:
            Journal(path).refresh()
        except KodeError:  # its path is the path of the unfinished copy
            _log.error("%s is damaged, and was copied as it is; kode doctor says where the damage is", path.name)

    def finish(self) -> None:
        """Give the copy its name."""
        with translated(self.target):
            own, mode = self._made / ".kode", self._folder.mode
            for name, number in self._numbers.items():
                replace_file(own / "locks" / name, iter([stripe_bytes(name, number)]), durable=False, mode=mode)
            for name in ("format", "id"):
                if (self._folder.own / name).exists():
                    replace_file(own / name, iter([(self._folder.own / name).read_bytes()]), durable=True, mode=mode)
            for folder in (own / "locks", own, self._made):
                sync_folder(folder)
            self._publish()
            self._is_named = True
            sync_folder(self.target.parent)

    def _publish(self) -> None:
        """Rename, unless another process created the target meanwhile: a folder with contents stays in place."""
        try:
            if not os.path.lexists(self.target):
                self._made.rename(self.target)
                return
        except OSError:
            if not os.path.lexists(self.target):
                raise
        raise InvalidArgumentError(f"{self.target} exists already; a backup does not overwrite")

    def clear(self, *, is_kept: bool) -> None:
        """Remove everything except a finished copy that is to be kept."""
        gone = [self.target] if self._is_named and not is_kept else []
        for path in (self._held, self._made, *gone):
            shutil.rmtree(path, ignore_errors=True)
