"""Output of the commands: text that is safe to show, tables, and JSON."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any, Final, TextIO

import msgspec
from rich.console import Console, RenderableType
from rich.text import Text

from kode_core.codec import to_dict
from kode_core.engine import Progress, unwatched
from kode_core.errors import InvalidArgumentError
from kode_core.jsonable import camel
from kode_core.model import Json, Record
from kode_core.report import StorageSize

__all__ = [
    "console",
    "count",
    "fail",
    "give_up_output",
    "holdings",
    "is_whole",
    "new_report",
    "one_line",
    "prepare_streams",
    "print_json",
    "print_json_line",
    "print_json_rows",
    "print_note",
    "printed",
    "show",
    "show_line",
    "state_text",
    "utc",
    "visible",
    "watched",
    "wire",
    "write_text",
]

_PIPED_WIDTH: Final = 1_000_000
_HIDDEN: Final = re.compile(
    "[\0-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e0fff]"
)
_STATE_STYLES: Final = {"COMPLETED": "green", "FAILED": "red", "DENIED": "red"}


# --- Streams ----------------------------------------------------------------------------------------------------------


def prepare_streams() -> None:
    """Let no character stop the output, whatever the encoding of the terminal, and no closed stream either.

    Output to a closed stream goes nowhere. The stream still has to be a file: otherwise the database would be opened
    under its number, and output meant for the stream would be written into the database.
    """
    for name, flags in (("stdin", os.O_RDONLY), ("stdout", os.O_WRONLY), ("stderr", os.O_WRONLY)):
        if getattr(sys, name) is None:
            number = os.open(os.devnull, flags)  # the lowest free number, which is the stream's
            setattr(sys, name, os.fdopen(number, "r" if name == "stdin" else "w", encoding="utf-8"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def console(stream: TextIO) -> Console:
    """A console on *stream* that takes text as it is: no markup, no emoji names, no highlighting."""
    size: tuple[int | None, int | None] = (None, None) if stream.isatty() else (_PIPED_WIDTH, None)
    if stream.isatty() and sys.stdout.isatty():  # of a dumb terminal rich says 80 columns, however wide it is
        size = shutil.get_terminal_size()
    return Console(file=stream, width=size[0], height=size[1], highlight=False, markup=False, emoji=False)


def show(*parts: RenderableType) -> None:
    """Print *parts* below each other: as wide as the terminal, or as wide as necessary into a pipe."""
    if not is_whole():
        console(sys.stdout).print(*parts, sep="\n")
        return
    for part in parts:
        text = part.plain if isinstance(part, Text) else part
        sys.stdout.write(f"{text}\n" if isinstance(text, str) else _without_padding(text))


def _without_padding(part: RenderableType) -> str:
    out = console(sys.stdout)
    with out.capture() as captured:
        out.print(part)
    return "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def show_line(line: Text) -> None:
    """Print one line to stdout at once, cut at the edge of a terminal."""
    if sys.stdout.isatty():
        console(sys.stdout).print(line, no_wrap=True, overflow="ellipsis", crop=True)
    else:
        sys.stdout.write(f"{line.plain}\n")
    sys.stdout.flush()


def print_note(text: str) -> None:
    """Print a note that is not part of the result to stderr."""
    console(sys.stderr).print(Text(visible(text), style="dim"))


def fail(problem: str) -> None:
    """Print an error as one line to stderr."""
    sys.stderr.write(f"error: {visible(problem)}\n")


def give_up_output() -> None:
    """Discard the rest of stdout, its buffer included, without an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


@contextmanager
def watched(what: str) -> Iterator[Progress]:
    """Show the progress of a long call on a terminal while it lasts."""
    if not sys.stderr.isatty():
        yield unwatched
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bar(*columns, console=console(sys.stderr), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


# --- Text -------------------------------------------------------------------------------------------------------------


def visible(text: str, *, lines: bool = False) -> str:
    """*text* with the characters escaped that a terminal would interpret or hide; *lines* keeps newlines and tabs."""
    if lines:
        text = text.replace("\r\n", "\n")
    return _HIDDEN.sub(lambda m: m[0] if lines and m[0] in "\n\t" else repr(m[0])[1:-1], text)


def is_whole(full: bool = False) -> bool:
    """Whether texts are shown whole: with --full, and away from a terminal, where nothing is cut."""
    return full or not sys.stdout.isatty()


def one_line(text: str, length: int = 200) -> str:
    """*text* in one line: runs of white space are one space. In a terminal it is cut to *length* characters."""
    if is_whole():
        return visible(" ".join(text.split()))
    flat = " ".join(text[: length * 4].split())
    return visible(flat if len(flat) <= length else f"{flat[: length - 1]}…")


def printed(value: Json) -> str:
    """A JSON value as text; a string is returned unchanged."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def count(number: int, noun: str) -> str:
    """A number with its noun, as in ``1 agent`` and ``5,308 messages``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def holdings(size: StorageSize) -> str:
    """The contents of a store in one line."""
    held = [
        count(size.total_agents, "agent"),
        count(size.total_messages, "message"),
        count(size.total_tool_calls, "tool call"),
    ]
    if size.db_size_bytes is not None:
        held.append(f"{size.db_size_bytes / 1e6:,.1f} MB")
    return ", ".join(held)


def utc(time_ms: int | None) -> str:
    """A time to the second, in UTC; the number itself if it is outside the calendar."""
    if time_ms is None:
        return ""
    try:
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=time_ms)
    except OverflowError:
        return str(time_ms)
    return f"{moment:%Y-%m-%d %H:%M:%S}"


def state_text(state: str) -> Text:
    """The state of a tool call, in its colour."""
    return Text(visible(state), style=_STATE_STYLES.get(state, "yellow"))


# --- JSON -------------------------------------------------------------------------------------------------------------


def wire(value: object) -> Json:
    """*value* as plain JSON with the names of the wire: records as they are stored, other structs in camelCase."""
    if isinstance(value, Record):
        return to_dict(value)
    if isinstance(value, msgspec.Struct):
        fields = msgspec.structs.asdict(value)
        return {camel(name): wire(item) for name, item in fields.items() if item is not None}
    if isinstance(value, list | tuple):
        return [wire(item) for item in value]
    return value


def print_json(value: Mapping[str, Any]) -> None:
    """Print one JSON document to stdout, in UTF-8."""
    _write(_json_bytes({name: wire(item) for name, item in value.items()}, indent=2) + b"\n")


def print_json_line(value: object) -> None:
    """Print one line of JSON Lines to stdout, at once."""
    _write(_json_bytes(wire(value)) + b"\n")


async def print_json_rows(fields: Mapping[str, Any], name: str, rows: AsyncIterator[object]) -> None:
    """Print one JSON document that has *rows* under *name* after *fields*, while they come."""
    _write(_json_bytes(dict(fields))[:-1] + b"," + _json_bytes(name) + b":[")
    separator = b"\n"
    async for row in rows:
        _write(separator + _json_bytes(wire(row)))
        separator = b",\n"
    _write(b"\n]}\n")


def write_text(text: str) -> None:
    """Print text unchanged, for another program such as psql."""
    _write(text.encode())


def _write(raw: bytes) -> None:
    sys.stdout.buffer.write(raw)
    sys.stdout.buffer.flush()


def _json_bytes(plain: Json, indent: int | None = None) -> bytes:
    try:
        raw = msgspec.json.encode(plain)
        return msgspec.json.format(raw, indent=indent) if indent else raw
    except (ValueError, OverflowError, msgspec.MsgspecError):  # lone surrogates, integers of more than 64 bits
        return json.dumps(plain, indent=indent).encode()


def new_report(report: Path) -> IO[bytes]:
    """A new file for the report. An existing file is not overwritten, since it may belong to the source."""
    try:
        return report.open("xb")
    except FileExistsError:
        raise InvalidArgumentError(f"{report} exists already; name a new file for the report") from None
    except OSError as exc:
        raise InvalidArgumentError(f"the report {report} cannot be written: {exc.strerror}") from None
