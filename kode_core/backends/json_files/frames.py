"""The bytes of a journal: its first line, and its frames.

::

    {"kode":"journal","format":2,"generation":"…","agent":"…",…,"marks":"…"}    the first line
    #<crc32> <start> <header bytes> <body bytes>                                a frame: its prefix,
    {"batch":{…},"outcome":{…}}                                                 its header (all but the bodies),
    {"role":"user","content":[…]}                                               and its bodies, one a line

The checksum of a frame covers the first line (without its marks), the place of the frame in the file, and the header;
every body has a digest in the header. So a frame that was moved, doubled or taken from another file is not a valid
frame.

The marks are the only bytes that are overwritten. They give the position up to which the file was acknowledged.

A reader finds one of these ends after the last frame that it can read, and a mark M::

    | frame | frame | frame |M          whole: the file ends at the mark
    | frame | frame |M frame |          a write before its mark, or a process that died there: the frame counts
    | frame | frame |M fra              a write that a crash cut short: the next write moves the bytes away
    | frame | fr??e | frame |M          damage before the mark: reported, and nothing is written any more
    | frame |M ????? | frame |          damage behind it, if the frame was put there after a sync of the hole before it
    | frame |          M                acknowledged bytes are missing: damage

The fifth case is told from the third by ``Frame.unsynced``, the number of bytes before a frame that may never have
reached the device. If that reaches back to the end, a loss of power explains the hole; otherwise it is damage.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator
from typing import Final, Literal, NamedTuple
from zlib import crc32

import msgspec

from kode_core.backends.json_files.files import read_at
from kode_core.backends.json_files.marks import BLANK, PAIR_SIZE, Mark, pair_bytes, pair_from
from kode_core.batch import Applied, Batch, with_bodies
from kode_core.codec import Body, is_intact

__all__ = [
    "FORMAT",
    "PROOF",
    "FirstLine",
    "FoundFrame",
    "Frame",
    "Located",
    "NoJournalError",
    "OtherFormatError",
    "first_line",
    "frame_at",
    "frame_bytes",
    "frames_behind",
    "parsed_line",
    "prefix_of",
    "read_line",
]

FORMAT: Final = 2

_PREFIX: Final = re.compile(rb"#([0-9a-f]{8}) (\d{1,15}) (\d{1,15}) (\d{1,15})\n")
_LONGEST_PREFIX: Final = 64
PROOF: Final = _LONGEST_PREFIX
"""Bytes at the begin of a frame with a batch that no other frame has: its checksum covers the operation's id."""
_LONGEST_LINE: Final = 4096
_PIECE: Final = 1 << 20


class Located(Body, frozen=True, gc=False):
    """A body without its text, which is in the file: *size* bytes from *start* on."""

    start: int
    size: int


class Frame(msgspec.Struct, frozen=True, omit_defaults=True):
    """One entry of the journal.

    Attributes:
        phase: ``apply`` records a write that happened. ``prepare`` records a write that will happen if another store
            commits its part; the ``commit`` or ``abort`` that follows decides.
        unsynced: how many bytes before the frame were not certain to be on the device when it was written: a loss of
            power may have removed them and left this frame.
    """

    phase: Literal["apply", "prepare", "commit", "abort"] = "apply"
    batch: Batch | None = None
    outcome: Applied | None = None
    unsynced: int = 0


class NoJournalError(Exception):
    """The first line is damaged."""


class OtherFormatError(Exception):
    """The journal has another format version, given by ``args[0]``."""


class _Kind(msgspec.Struct, frozen=True):
    kode: str
    format: int


class _LineFields(msgspec.Struct, frozen=True):
    kode: str
    format: int
    generation: str
    agent: str
    next_offset: int
    marks: str


_kind_from = msgspec.json.Decoder(_Kind).decode
_line_fields_from = msgspec.json.Decoder(_LineFields).decode
_frame_from = msgspec.json.Decoder(Frame).decode


class FirstLine(NamedTuple):
    """The contents of the first line.

    Attributes:
        seed: the checksum of the line without its marks, from which the checksums of the frames continue.
        size: the number of bytes, including the newline.
    """

    generation: str
    agent: str
    next_offset: int
    marks: list[Mark | None]
    seed: int
    size: int

    @property
    def marks_at(self) -> int:
        """The position of the marks in the file."""
        return self.size - PAIR_SIZE - len(_END)


_END: Final = b'"}\n'


def first_line(agent: str, next_offset: int) -> bytes:
    """The first line of a new file, with nothing acknowledged."""
    fields = _LineFields("journal", FORMAT, secrets.token_hex(8), agent, next_offset, "")
    line = msgspec.json.encode(fields)[: -len(_END) + 1]
    return line + pair_bytes((BLANK, BLANK), crc32(line)) + _END


def read_line(fd: int) -> bytes:
    """The bytes of the first line; empty when there is no line."""
    start = read_at(fd, _LONGEST_LINE, 0)
    return start[: start.find(b"\n") + 1]


def parsed_line(line: bytes) -> FirstLine:
    """The contents of the line.

    Raises:
        NoJournalError: it is not the first line of a journal, or it was changed.
        OtherFormatError: it has another format version.
    """
    try:
        kind = _kind_from(line)
        if kind.kode == "journal" and kind.format != FORMAT:
            raise OtherFormatError(kind.format)
        fields = _line_fields_from(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise NoJournalError("the first line is not a journal's") from None
    fixed = line[: -PAIR_SIZE - len(_END)]
    if msgspec.json.encode(fields) + b"\n" != line or len(fields.marks) != PAIR_SIZE:
        raise NoJournalError("the first line is not as it was written")
    seed = crc32(fixed)
    marks = pair_from(line[len(fixed) : -len(_END)], seed)
    if marks == [None, None]:
        raise NoJournalError("the marks of the first line do not match their checksums")
    return FirstLine(fields.generation, fields.agent, fields.next_offset, marks, seed, len(line))


# --- frames -----------------------------------------------------------------------------------------------------------


class FoundFrame(NamedTuple):
    """A frame in a file; the text of each body is its size, as in the header."""

    frame: Frame
    start: int
    bodies_at: int
    end: int

    @property
    def placed(self) -> Batch | None:
        """The batch, with located bodies."""
        return _placed(self.frame.batch, self.bodies_at)

    def is_sound(self, fd: int) -> bool:
        """True if all bodies match their digests."""
        if self.frame.batch is None:
            return True
        sound = True

        def look(body: Body) -> Body:
            nonlocal sound
            located = place(body)
            sound = sound and is_intact(read_at(fd, located.size, located.start), body.digest)
            return body

        place = _places(self.bodies_at)
        with_bodies(self.frame.batch, look)
        return sound


def _placed(batch: Batch | None, place: int) -> Batch | None:
    """A batch whose bodies give their sizes, with located ones instead; the first begins at *place*."""
    return None if batch is None else with_bodies(batch, _places(place))


def _places(start: int) -> Callable[[Body], Located]:
    """Locates bodies that give their sizes, called with each in the order of the file; the first begins at *start*."""

    def located(body: Body) -> Located:
        nonlocal start
        first, size = start, int(body.text)
        start += size + 1
        return Located("", body.digest, first, size)

    return located


def _checksum(seed: int, start: int, header_size: int, bodies_size: int, header: bytes) -> bytes:
    return b"%08x" % crc32(header, crc32(b"%d %d %d" % (start, header_size, bodies_size), seed))


def prefix_of(header: bytes, start: int, bodies_size: int, seed: int) -> bytes:
    """The prefix of a frame at *start*; *header* includes its newline."""
    sizes = (start, len(header) - 1, bodies_size)
    return b"#%b %d %d %d\n" % (_checksum(seed, *sizes, header), *sizes)


def frame_bytes(frame: Frame, start: int, seed: int) -> tuple[Batch | None, bytes]:
    """The frame's batch with the bodies located for a frame at *start*, and the frame's bytes."""
    texts: list[bytes] = []

    def sized(body: Body) -> Body:
        texts.append(body.text.encode(errors="surrogateescape"))  # a damaged text stays unchanged
        return Body(str(len(texts[-1])), body.digest)

    batch = None if frame.batch is None else with_bodies(frame.batch, sized)
    header = msgspec.json.encode(msgspec.structs.replace(frame, batch=batch)) + b"\n"
    bodies = b"".join(text + b"\n" for text in texts)
    prefix = prefix_of(header, start, len(bodies), seed)
    return _placed(batch, start + len(prefix) + len(header)), prefix + header + bodies


def frame_at(fd: int, start: int, size: int, seed: int) -> FoundFrame | None:
    """The frame that begins at *start*, in a file of *size* bytes; None if no complete frame does."""
    found = _stated(fd, start, read_at(fd, _LONGEST_PREFIX, start), size, seed)
    return found if found is not None and found.start == start and found.end <= size else None


def _stated(fd: int, at: int, raw: bytes, size: int, seed: int) -> FoundFrame | None:
    """The frame that the bytes *raw*, read at *at*, describe, wherever they say that it begins."""
    match = _PREFIX.match(raw)
    if match is None:
        return None
    start, length, bodies_size = int(match[2]), int(match[3]), int(match[4])
    header_at = at + match.end()
    if header_at + length >= size:
        return None
    header = read_at(fd, length + 1, header_at)
    if _checksum(seed, start, length, bodies_size, header) != match[1]:
        return None
    try:
        frame = _frame_from(header)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    bodies_at = start + match.end() + length + 1
    return FoundFrame(frame, start, bodies_at, bodies_at + bodies_size)


def frames_behind(fd: int, place: int, size: int, seed: int) -> Iterator[FoundFrame]:
    """Frames with sound headers anywhere behind *place*, including frames that damage has moved."""
    at = place + 1
    while at < size:
        piece = read_at(fd, min(_PIECE, size - at), at)
        for match in re.finditer(rb"#[0-9a-f]{8} ", piece):
            here = at + match.start()
            found = _stated(fd, here, read_at(fd, _LONGEST_PREFIX, here), size, seed)
            if found is not None:
                yield found
        if at + len(piece) >= size:
            return
        at += len(piece) - _LONGEST_PREFIX
