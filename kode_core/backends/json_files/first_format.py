"""The first format of the JSON files engine, and its migration to the present one (OPS-8). Everything here blocks.

In that format a frame did not contain its place, the first line had no marks, and the number of a stripe had no
checksum.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final, NamedTuple
from zlib import crc32

import msgspec

from kode_core.authoring.files import open_file
from kode_core.backends.json_files.files import journal_names, locked, read_at, replace_file
from kode_core.backends.json_files.frames import first_line, parsed_line, prefix_of, read_line
from kode_core.backends.json_files.marks import SYNCED, Mark, pair_bytes
from kode_core.backends.json_files.stripes import STRIPES, Stripe, stripe_name

__all__ = ["migrate_folder"]

_log = logging.getLogger("kode_core.json")

_PREFIX: Final = re.compile(rb"#([0-9a-f]{8}) (\d{1,18}) (\d{1,18})\n")
_PIECE: Final = 1 << 20


class _LineFields(msgspec.Struct, frozen=True):
    kode: str
    format: int
    agent: str
    next_offset: int = 1


_line_fields_from = msgspec.json.Decoder(_LineFields).decode


class _Frame(NamedTuple):
    header_at: int
    header_size: int
    bodies_size: int

    @property
    def end(self) -> int:
        return self.header_at + self.header_size + 1 + self.bodies_size


def migrate_stripe(stripe: Stripe) -> None:
    """Write the number of a stripe in the present form; a stripe that was never used has no number."""
    raw = read_at(stripe.fd, 30, 0)
    if not raw or re.fullmatch(rb"\d{20}", raw):
        stripe.begin_from(int(raw or b"0"))


def migrate_journal(path: Path, *, durable: bool) -> None:
    """Rewrite a journal of the first format in the present one.

    A damaged file, or one that is not a journal, stays unchanged.
    """
    fd = open_file(path, os.O_RDONLY)
    try:
        line = read_line(fd)
        try:
            fields = _line_fields_from(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return
        if (fields.kode, fields.format) != ("journal", 1):
            return
        size = os.fstat(fd).st_size
        frames = list(_frames(fd, len(line), size))
        end = frames[-1].end if frames else len(line)
        rest = read_at(fd, size - end, end)
        if b"\n" in rest.rstrip(b"\0") and b"\0" not in rest:
            _log.error("%s is damaged at byte %d, and was not changed to the present format", path, end)
            return
        _rewrite(path, fd, fields, frames, durable=durable)
    finally:
        os.close(fd)


def _frames(fd: int, start: int, size: int) -> Iterator[_Frame]:
    while (match := _PREFIX.match(read_at(fd, 64, start))) is not None:
        frame = _Frame(start + match.end(), int(match[2]), int(match[3]))
        header = read_at(fd, frame.header_size + 1, frame.header_at) if frame.end <= size else b""
        if b"%08x" % crc32(header, crc32(b"%d %d" % frame[1:])) != match[1]:
            return
        yield frame
        start = frame.end


def _rewrite(path: Path, fd: int, fields: _LineFields, frames: list[_Frame], *, durable: bool) -> None:
    line = first_line(fields.agent, fields.next_offset)
    parsed = parsed_line(line)
    end = len(line)

    def chunks() -> Iterator[bytes]:
        nonlocal end
        yield line
        for frame in frames:
            header = read_at(fd, frame.header_size + 1, frame.header_at)
            prefix = prefix_of(header, end, frame.bodies_size, parsed.seed)
            yield prefix + header
            bodies_at = frame.header_at + len(header)
            for at in range(bodies_at, frame.end, _PIECE):
                yield read_at(fd, min(_PIECE, frame.end - at), at)
            end += len(prefix) + len(header) + frame.bodies_size

    def marks() -> tuple[int, bytes]:
        return parsed.marks_at, pair_bytes((Mark(end, SYNCED), Mark(0)), parsed.seed)

    replace_file(path, chunks(), durable=durable, ending=marks)


def migrate_folder(
    base: Path, locks: Path, format_file: Path, layout: int, wait_ms: int, mode: int, *, durable: bool
) -> None:
    """Change a folder of the first format to the present *layout* under all locks, and write that to *format_file*."""
    with ExitStack() as held:
        stripes = []
        for i in range(STRIPES):
            path = locks / stripe_name(i)
            fd = held.enter_context(locked(path, wait_ms, mode))
            stripes.append(Stripe(path, fd, durable=durable))
        if format_file.read_bytes().strip() != b"1":  # another process was faster
            return
        for name in journal_names(base):
            if (base / name).is_file():
                migrate_journal(base / name, durable=durable)
        for stripe in stripes:
            migrate_stripe(stripe)
        replace_file(format_file, iter([b"%d\n" % layout]), durable=True)
