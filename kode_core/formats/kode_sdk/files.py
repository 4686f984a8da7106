"""Folders of the SDK: a ``JSONStore``, or the files that a database store keeps next to its tables.

An agent's folder is ``BASE/AGENT_ID``. A fork's id begins with its parent's and a slash, so that its folder lies in its
parent's; the same goes for snapshots. After a crash, ``messages.wal`` and ``tool-calls.wal`` are newer than the JSON
files, and ``events/*.wal`` has entries that may or may not stand in the logs already.
"""

from __future__ import annotations

import asyncio
import heapq
import os
import re
import stat
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import IO, Any, Final

from kode_core.authoring.lines import MAX_TEXT, BoundedLines, LongTextError, read_bounded
from kode_core.formats.kode_sdk.raw import Damage, Found, RawAgent, bookmark_of, joined, parsed

__all__ = ["FolderSource", "agent_folders", "read_files"]

_PARTS: Final = frozenset({"runtime", "events", "history", "snapshots"})
_CHANNELS: Final = ("progress", "control", "monitor")
_MANY: Final = 1000
"""Ids that are looked up by one step in a thread."""
_RECOVERED: Final = re.compile(
    rb"# Recovered: (?P<path>.*?)\n# Timestamp: (?P<timestamp>[^\n]*)\n# Mtime: (?P<mtime>[^\n]*)\n\n(?P<content>.*)",
    re.DOTALL,
)
_KNOWN: Final = {
    "": {"meta.json"},
    "runtime": {
        *(f"{name}.{end}" for name in ("messages", "tool-calls") for end in ("json", "wal", "json.tmp")),
        *("todos.json", "media-cache.json"),
    },
    "events": {f"{channel}.{end}" for channel in _CHANNELS for end in ("log", "wal")},
}
"""The files of each folder of an agent. Others are not the SDK's, or were put aside by it."""


class FolderSource:
    """A folder of the SDK's ``JSONStore``."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self.remarks: Counter[str] = Counter()

    async def agent_ids(self) -> AsyncIterator[str]:
        """Every folder with files of an agent, forks after their parents."""
        folders = agent_folders(self._base, self.remarks)
        while found := await asyncio.to_thread(_some, folders):
            for agent_id in found:
                yield agent_id

    async def read(self, agent_id: str) -> RawAgent:
        """The files of one agent."""
        return await asyncio.to_thread(self._read, agent_id)

    def _read(self, agent_id: str) -> RawAgent:
        agent = RawAgent(agent_id)
        folder = self._base / agent_id
        agent.info = _whole(folder / "meta.json", folder, agent.found)
        for name in ("messages", "tool-calls"):
            records = _with_log(folder, name, agent.found)
            if name == "messages":
                agent.messages = records
            else:
                agent.tool_calls = records
        agent.saved_at = int(folder.stat().st_mtime * 1000)
        agent.snapshots = _documents(folder / "snapshots", folder, agent.found)
        read_files(folder, agent)
        return agent


def _some(ids: Iterator[str]) -> list[str]:
    return [agent_id for _, agent_id in zip(range(_MANY), ids, strict=False)]


def agent_folders(base: Path, remarks: Counter[str]) -> Iterator[str]:
    """The ids of all agents with files below *base*, in the order of the names; files of others are remarked on."""
    open_folders = [""]
    while open_folders:
        name = open_folders.pop()
        folder = base / name
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        names = {entry.name for entry in found if entry.is_dir(follow_symlinks=False)}
        files = {entry.name for entry in found} - names
        is_agent = bool(name) and ("meta.json" in files or _has_files(folder, names & _PARTS))
        others = sorted(files - _KNOWN[""]) if is_agent or not name else []
        if others:
            place = repr(name) if name else "the folder"
            remarks[f"files in {place} that are not the SDK's, such as {others[0]!r}"] += len(others)
        if is_agent:
            yield name
            names -= _PARTS
        elif names & _PARTS:
            names -= _PARTS
        elif name and not names:
            remarks["folders without files of an agent"] += 1
        open_folders += [f"{name}/{child}" if name else child for child in sorted(names, reverse=True)]


def _has_files(folder: Path, parts: set[str]) -> bool:
    """Whether the folders of an agent have files; the SDK makes empty ones for an agent that it only looks for."""
    return any(files for part in parts for _, _, files in os.walk(folder / part))


def read_files(folder: Path, agent: RawAgent) -> None:
    """Read the kinds that all of the SDK's stores keep in files."""
    found = agent.found
    agent.todos = _whole(folder / "runtime/todos.json", folder, found)
    media = _whole(folder / "runtime/media-cache.json", folder, found)
    agent.media = _listed(media, found) if media else []
    agent.windows = _documents(folder / "history/windows", folder, found)
    agent.compressions = _documents(folder / "history/compressions", folder, found)
    agent.recovered = list(_recovered(folder / "history/recovered", folder, found))
    agent.events = _events(folder / "events", found)
    for part in ("runtime", "events"):
        for path in _below(folder / part, folder, found):
            if path.name not in _KNOWN[part] or path.parent.name != part:
                found.left_out[f"{_at(path, folder)}: not a file that the SDK reads"] += 1


def _at(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _bytes(path: Path) -> bytes:
    """The contents of a file.

    Raises:
        Damage: as for :func:`_checked`, or it is too long.
    """
    try:
        return read_bounded(_checked(path), MAX_TEXT)
    except LongTextError as exc:
        raise Damage(str(exc)) from None


def _checked(path: Path) -> Path:
    """The path of a file.

    Raises:
        Damage: it is a link or a device; the SDK makes files and folders only, and others may lead anywhere.
    """
    mode = path.lstat().st_mode
    if not stat.S_ISREG(mode):
        raise Damage("a symbolic link" if stat.S_ISLNK(mode) else "not a file")
    return path


def _below(base: Path, folder: Path, found: Found) -> list[Path]:
    """All files in a folder and in the folders in it, by name; a folder that cannot be read is damage."""
    if base.is_symlink() or (base.exists() and not base.is_dir()):
        found.damaged[f"{_at(base, folder)}: not a folder"] += 1
        return []

    def failed(exc: OSError) -> None:
        if not isinstance(exc, FileNotFoundError):
            found.damaged[f"{_at(Path(exc.filename), folder)}: {_why(exc)}"] += 1

    return sorted(Path(at) / name for at, _, names in os.walk(base, onerror=failed) for name in names)


def _whole(path: Path, folder: Path, found: Found) -> tuple[str, Any] | None:
    """The JSON value of a file, and its name; None without the file, and for a damaged one."""
    try:
        return _at(path, folder), parsed(_bytes(path))
    except FileNotFoundError:
        return None
    except (Damage, OSError) as exc:
        found.damaged[f"{_at(path, folder)}: {_why(exc)}"] += 1
        return None


def _why(exc: Exception) -> str:
    return exc.strerror or type(exc).__name__ if isinstance(exc, OSError) else str(exc)


def _listed(value: tuple[str, Any], found: Found) -> list[tuple[str, Any]]:
    where, records = value
    if not isinstance(records, list):
        found.damaged[f"{where}: not a list"] += 1
        return []
    return [(f"{where}[{i}]", record) for i, record in enumerate(records)]


def _with_log(folder: Path, name: str, found: Found) -> list[tuple[str, Any]]:
    """A list that a crash may have left in its write-ahead file, which is then the newer one."""
    path = folder / "runtime" / f"{name}.wal"
    try:
        log = parsed(_bytes(path))
        if isinstance(log, dict) and isinstance(log.get("data"), list):
            found.changed[f"runtime/{name}.wal: taken, as a crash left it, in place of {name}.json"] += 1
            return _listed((_at(path, folder), log["data"]), found)
        found.left_out[f"runtime/{name}.wal: has no list of records; {name}.json was taken"] += 1
    except FileNotFoundError:
        pass
    except (Damage, OSError) as exc:
        found.left_out[f"runtime/{name}.wal: {_why(exc)}; {name}.json was taken, as the SDK does"] += 1
    value = _whole(folder / "runtime" / f"{name}.json", folder, found)
    return _listed(value, found) if value else []


def _documents(base: Path, folder: Path, found: Found) -> list[tuple[str, Any]]:
    """The documents in a folder and in the folders below it, in the order of their names."""
    read = []
    for path in _below(base, folder, found):
        if path.suffix == ".json":
            value = _whole(path, folder, found)
            read += [value] if value else []
        else:
            found.left_out[f"{_at(path, folder)}: not a file that the SDK reads"] += 1
    return read


def _recovered(base: Path, folder: Path, found: Found) -> Iterator[tuple[str, Any]]:
    for path in _below(base, folder, found):
        where = _at(path, folder)
        try:
            match = _RECOVERED.fullmatch(_bytes(path))
        except (Damage, OSError) as exc:
            found.damaged[f"{where}: {_why(exc)}"] += 1
            continue
        if match is None:
            found.damaged[f"{where}: has no header of a recovered file"] += 1
            continue
        text = {name: joined(raw.decode("utf-8", "surrogatepass")) for name, raw in _decodable(match, where, found)}
        if len(text) == len(match.groupdict()):
            yield where, text


def _decodable(match: re.Match[bytes], where: str, found: Found) -> Iterator[tuple[str, bytes]]:
    for name, raw in match.groupdict().items():
        try:
            raw.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            found.damaged[f"{where}: its {name} is not UTF-8"] += 1
        else:
            yield name, raw


def _events(folder: Path, found: Found) -> list[tuple[str, Any]]:
    """The entries of all channels, the oldest first; each channel keeps its own order, whatever its times say."""
    return list(heapq.merge(*(_channel(folder, channel, found) for channel in _CHANNELS), key=_when))


def _channel(folder: Path, channel: str, found: Found) -> list[tuple[str, Any]]:
    """The entries of a log, and then entries that only its write-ahead file has."""
    seen, entries = set[bytes](), list[tuple[str, Any]]()
    for end in ("log", "wal"):
        where = f"events/{channel}.{end}"
        try:
            with _checked(folder / f"{channel}.{end}").open("rb") as file:
                _read_entries(where, file, seen, entries, found)
        except FileNotFoundError:
            continue
        except (Damage, OSError) as exc:
            found.damaged[f"{where}: {_why(exc)}"] += 1
    return entries


def _read_entries(where: str, file: IO[bytes], seen: set[bytes], entries: list[tuple[str, Any]], found: Found) -> None:
    for line in BoundedLines(file, MAX_TEXT):  # U+2028 and the like are parts of a line
        text, place = line.text.removesuffix(b"\n"), f"{where}:{line.number}"
        if line.problem is not None:
            found.damaged[f"{place}: {line.problem}"] += 1
        elif text in seen:
            found.changed["events: entries that were stored twice"] += 1
        elif text.strip():
            seen.add(text)
            try:
                entries.append((place, parsed(text)))
            except Damage as exc:
                if text == line.text:
                    found.left_out[f"{place}: a line that a crash cut off"] += 1
                else:
                    found.damaged[f"{place}: {exc}"] += 1


def _when(entry: tuple[str, Any]) -> tuple[float, float]:
    mark = bookmark_of(entry[1])
    return _number(mark.get("timestamp")), _number(mark.get("seq"))


def _number(value: object) -> float:
    return value if isinstance(value, int | float) else 0
