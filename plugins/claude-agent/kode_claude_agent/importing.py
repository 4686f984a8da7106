"""Reads the transcripts that Claude Code and the SDK keep as files, for ``kode import``."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn

from kode_claude_agent.entries import key_of, message_of
from kode_claude_agent.records import records_of, time_of
from kode_claude_agent.store import ENTRIES, TEMPLATE, Place, folded
from kode_core import AgentInfo, AgentRecords, ConfigurationError, Document
from kode_core.authoring.lines import MAX_TEXT, BoundedLines, LongTextError, read_bounded
from kode_core.formats.importing import ForeignAgent, Found
from kode_core.formats.recognising import is_transcript

__all__ = ["open_transcripts"]

_SUFFIX: Final = ".jsonl"


class _Transcript(NamedTuple):
    """A file, and the key under which the SDK would keep its entries."""

    path: Path
    key: dict[str, str]


@asynccontextmanager
async def open_transcripts(source: str) -> AsyncIterator[AsyncIterator[ForeignAgent]]:
    """The transcripts in a folder, ``~/.claude``, its ``projects``, or one project; or one transcript. None is changed.

    A session is the file ``PROJECT/SESSION.jsonl``; the files below ``PROJECT/SESSION`` are its subagents, which come
    with it. They get the keys that ``import_session_to_store`` gives them, and ``KodeSessionStore`` goes on with them.

    Raises:
        ConfigurationError: there is no such folder or file, or it has no transcript.
    """
    place = Path(source).expanduser()
    is_file = await asyncio.to_thread(place.is_file)
    if source and is_file:
        if not await asyncio.to_thread(is_transcript, place):
            raise ConfigurationError(f"{source} has no entries of a transcript among its first lines")
        yield _agents([_of_file(place)])
        return
    if not source or not await asyncio.to_thread(place.is_dir):
        raise ConfigurationError(
            f"there is no folder or file {source!r:.300}; name ~/.claude/projects, one project in it, or a transcript"
        )
    projects = await asyncio.to_thread(_projects, place)
    if not any(True for project in projects for _ in _transcripts(project)):
        raise ConfigurationError(f"{source} has no transcripts, PROJECT/SESSION{_SUFFIX}")
    yield _agents(map(_transcripts, projects))


def _projects(folder: Path) -> list[Path]:
    """The folders of projects in *folder*, or itself if it is one."""
    inside = folder / "projects"
    if inside.is_dir():
        folder = inside
    if any(path.suffix == _SUFFIX for path in folder.iterdir() if path.is_file()):
        return [folder]
    return sorted(path for path in folder.iterdir() if path.is_dir())


def _transcripts(project: Path) -> Iterator[_Transcript]:
    for path in sorted(project.glob(f"*{_SUFFIX}")):
        if path.is_file():
            yield _session(path)
    for session in sorted(path for path in project.iterdir() if path.is_dir()):
        yield from _subagents(session)


def _session(path: Path) -> _Transcript:
    return _Transcript(path, {"project_key": path.resolve().parent.name, "session_id": path.stem})


def _subagents(session: Path) -> Iterator[_Transcript]:
    for path in sorted(session.rglob(f"*{_SUFFIX}")):
        yield _subagent(path, session)


def _subagent(path: Path, session: Path) -> _Transcript:
    name = session.resolve().parent.name
    subpath = path.relative_to(session).as_posix().removesuffix(_SUFFIX)
    return _Transcript(path, {"project_key": name, "session_id": session.name, "subpath": subpath})


def _of_file(path: Path) -> Iterator[_Transcript]:
    """A session with its subagents, or one subagent, which lies below the folder of a session."""
    path = path.absolute()
    for folder in path.parents:
        if folder.name and folder.with_name(f"{folder.name}{_SUFFIX}").is_file():
            yield _subagent(path, folder)
            return
    yield _session(path)
    yield from _subagents(path.with_suffix(""))


async def _agents(projects: Iterable[Iterable[_Transcript]]) -> AsyncIterator[ForeignAgent]:
    for project in projects:
        for transcript in project:
            yield await _agent(transcript)


async def _agent(transcript: _Transcript) -> ForeignAgent:
    place, found = Place.of_key(transcript.key), Found()
    entries: list[dict[str, Any]] = []
    times: list[int] = []
    keys: dict[str, int] = {}
    messages = []
    async for where, entry in _entries(transcript.path, found):
        key = key_of(entry)
        if key is not None and key in keys:
            found.left_out[f"{where}: its uuid was there already"] += 1
            continue
        given = time_of(entry)
        time = max([given if given is not None else 0, *times[-1:]])
        if key is not None:
            keys[key] = time
        entries.append(entry)
        times.append(time)
        messages.append(message_of(entry))
    info = AgentInfo(
        agent_id=place.agent_id,
        template_id=place.template_id,
        created_at=next((time for time in times if time), 0),
        metadata=place.metadata,
    )
    if place.template_id == TEMPLATE:
        info = folded(info, transcript.key, entries)  # type: ignore[arg-type]
    records = AgentRecords(
        agent_id=place.agent_id,
        info=info,
        updated_at=max([info.created_at, *times[-1:]]),
        messages=messages,
        message_times=times,
        tool_calls=records_of(entries, {}, times),
        documents=[
            Document(collection=ENTRIES, key=key, value=None, version="", updated_at=at) for key, at in keys.items()
        ],
    )
    return ForeignAgent(records, found)


async def _entries(path: Path, found: Found) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """The entries of a file, each with its line, and the one of the sidecar that a subagent has."""
    try:
        file = await asyncio.to_thread(path.open, "rb")
    except OSError as exc:
        found.damaged[f"{path.name}: {exc.strerror}"] += 1
        return
    with file:
        lines = BoundedLines(file, MAX_TEXT)
        while batch := await asyncio.to_thread(lines.batch):
            for line in batch:
                where = f"{path.name}:{line.number}"
                if line.problem is not None:
                    found.damaged[f"{where}: {line.problem}"] += 1
                elif line.text.strip() and (entry := _parsed(line.text, where, found)) is not None:
                    yield where, entry
    sidecar = path.with_name(f"{path.name.removesuffix(_SUFFIX)}.meta.json")
    if await asyncio.to_thread(sidecar.is_file):
        try:
            text = await asyncio.to_thread(read_bounded, sidecar, MAX_TEXT)
        except (LongTextError, OSError) as exc:
            found.damaged[f"{sidecar.name}: {getattr(exc, 'strerror', None) or exc}"] += 1
            return
        entry = _parsed(text, sidecar.name, found)
        if entry is not None:
            yield sidecar.name, {**entry, "type": "agent_metadata"}


def _parsed(line: bytes, where: str, found: Found) -> dict[str, Any] | None:
    try:
        entry = json.loads(line, parse_constant=_refused)
        if type(entry) is not dict:
            raise ValueError(f"no object but {type(entry).__name__}")
    except (ValueError, RecursionError) as exc:
        found.damaged[f"{where}: {exc}"[:300]] += 1
        return None
    return entry


def _refused(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")
