"""The file of an archive: made for its owner and complete or absent, plain or compressed with Zstandard or gzip."""

from __future__ import annotations

import asyncio
import gzip
import io
import os
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Any, Final

from kode_core.authoring.drafts import draft_of
from kode_core.authoring.encodings import gunzipped, unmarked
from kode_core.authoring.files import make_file, system_error
from kode_core.authoring.lines import BoundedLines, Line
from kode_core.errors import ArchiveError, BackendImportError, InvalidArgumentError, KodeError

__all__ = ["LINE_COST", "MAX_AGENT", "MAX_LINE", "Lines", "Sink", "may_be_archive", "opened_to_read", "opened_to_write"]

MAX_LINE: Final = 2**29
"""The longest line, in bytes. A record with more is left out of exports, and ends an import."""
MAX_AGENT: Final = 2**31
"""The most bytes of an agent, which an import holds in memory. An agent with more is left out of exports."""
LINE_COST: Final = 512
"""The bytes that each line counts for besides its own: a record takes memory, however short it is."""
MAX_HEADER: Final = 2**20
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_CHUNK: Final = 2**20
_BEGIN: Final = 64
_LEVEL: Final = 6
"""Of gzip: its highest, which Python takes by default, makes files that are hardly smaller in twice the time."""


def _packing(name: str, raw: IO[bytes]) -> Any:
    """A file that writes to *raw*, compressed as the suffix of the name says."""
    if name.endswith(".zst"):
        return _zstd().open(raw, "wb")
    if name.endswith(".gz"):
        return gzip.GzipFile("", "wb", _LEVEL, raw, mtime=0)
    return raw


def _unpacking(raw: Any) -> Any:
    """A file that reads *raw*, which is compressed or not."""
    return _zstd().open(raw, "rb") if raw.peek(len(_ZSTD)).startswith(_ZSTD) else gunzipped(raw)


def may_be_archive(source: Path, begin: bytes) -> bool:
    """Whether a file begins so, unpacked, or is compressed with Zstandard, as no other source of an import is.

    Raises:
        OSError: it cannot be read, or is compressed with gzip and damaged.
        OtherEncodingError: it is UTF-16.
    """
    with source.open("rb") as file:
        if file.peek(len(_ZSTD)).startswith(_ZSTD):
            return True
        try:
            return unmarked(gunzipped(file).read(_BEGIN)).startswith(begin)
        except (EOFError, zlib.error) as exc:
            raise OSError(str(exc)) from None


def _zstd() -> Any:
    try:
        from kode_core.layers.compression import import_zstd  # few archives are compressed

        return import_zstd()
    except ImportError:
        raise BackendImportError(
            "an archive that is compressed with Zstandard needs: pip install 'kode-core[zstd]'"
        ) from None


# --- Writing ----------------------------------------------------------------------------------------------------------


class Sink:
    """Takes lines, and writes them in large pieces in a thread."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._lines: list[bytes] = []
        self._held = 0

    async def write(self, line: bytes) -> None:
        """Take one line."""
        self._lines.append(line)
        self._held += len(line)
        if self._held >= _CHUNK:
            await self.flush()

    async def flush(self) -> None:
        """Write the held lines."""
        held, self._lines, self._held = b"".join(self._lines), [], 0
        await asyncio.to_thread(self._file.write, held)


@asynccontextmanager
async def opened_to_write(target: str | Path | IO[bytes]) -> AsyncIterator[Sink]:
    """A sink to *target*: a new file, which appears once it is complete, or an open one, which stays open.

    Raises:
        InvalidArgumentError: the file exists already, or its folder does not.
        StoreFullError: there is no room for the file; nothing is left of it.
        StorageError: the file cannot be written.
    """
    if not isinstance(target, str | Path):
        try:
            sink = Sink(target)
            yield sink
            await sink.flush()
            await asyncio.to_thread(target.flush)
        except OSError as exc:
            if isinstance(exc, KodeError | BrokenPipeError):  # of the store; a reader that has enough
                raise
            raise system_error(exc, "the archive cannot be written") from None
        return
    path = Path(target)
    try:
        if os.path.lexists(path):
            raise InvalidArgumentError(f"{path} exists already; an export does not overwrite")
        if path.suffix == ".zst":
            _zstd()  # before a file is made
        with draft_of(path, _make) as draft:
            raw = draft.open("wb")
            with raw, _packing(path.name, raw) as file:
                sink = Sink(file)
                yield sink
                await sink.flush()
                if file is not raw:
                    file.close()
                raw.flush()
                await asyncio.to_thread(os.fsync, raw.fileno())
            if os.path.lexists(path):
                raise InvalidArgumentError(f"{path} exists by now; an export does not overwrite")
            draft.rename(path)
    except OSError as exc:
        if isinstance(exc, KodeError):  # of the store, not of the file
            raise
        raise system_error(exc, f"the archive {path} cannot be written") from None


def _make(draft: Path) -> None:
    os.close(make_file(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))


# --- Reading ----------------------------------------------------------------------------------------------------------


class Lines:
    """The lines of an archive, with their numbers, read ahead in a thread up to a megabyte."""

    def __init__(self, file: IO[bytes], max_line: int) -> None:
        self._lines = BoundedLines(file, max_line, first=min(max_line, MAX_HEADER))
        self._taken: Iterator[Line] = iter(())
        self.number = 0

    async def next(self, *, past_long: bool = False) -> bytes | None:
        """The next line, with its line feed; None at the end.

        Args:
            past_long: pass over lines that are too long, instead of raising.

        Raises:
            ArchiveError: the line is too long or cut short, or the compressed data is damaged.
        """
        line = await self._next()
        while past_long and line is not None and line.problem is not None:
            line = await self._next()
        if line is None:
            return None
        if line.problem is not None and line.number == 1:
            raise ArchiveError(1, "it is no header of an archive that kode export writes")
        if line.problem is not None:
            raise ArchiveError(line.number, f"it is {line.problem}")
        if not line.text.endswith(b"\n"):
            raise ArchiveError(line.number, "the archive is cut short in the middle of it")
        return line.text

    async def _next(self) -> Line | None:
        line = next(self._taken, None)
        if line is None:
            self._taken = iter(await asyncio.to_thread(self._take))
            line = next(self._taken, None)
        if line is not None:
            self.number = line.number
        return line

    def _take(self) -> list[Line]:
        """Some lines, none at the end."""
        try:
            return self._lines.batch()
        except Exception as exc:  # noqa: BLE001 - of a decompressor, too
            problem = str(exc) or type(exc).__name__
            raise ArchiveError(self.number + 1, f"the archive cannot be read on: {problem:.200}") from None


@asynccontextmanager
async def opened_to_read(source: str | Path | IO[bytes], max_line: int = MAX_LINE) -> AsyncIterator[Lines]:
    """The lines of *source*: of a file, or of an open one, which stays open.

    Raises:
        InvalidArgumentError: the file cannot be opened.
    """
    if isinstance(source, str | Path):
        try:
            raw: IO[bytes] = await asyncio.to_thread(Path(source).open, "rb")
        except OSError as exc:
            raise InvalidArgumentError(f"the archive {source} cannot be read: {exc.strerror}") from None
        with raw:
            async with opened_to_read(raw, max_line) as lines:
                yield lines
        return
    buffered: Any = source if hasattr(source, "peek") else io.BufferedReader(source)
    try:
        yield Lines(await asyncio.to_thread(_unpacking, buffered), max_line)
    finally:
        if buffered is not source:
            buffered.detach()
