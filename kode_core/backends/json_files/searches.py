"""Searches over many files: the columns of the records first, and then the texts of what was found."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import TypeAlias, TypeVar

from kode_core.authoring.files import open_file
from kode_core.authoring.matching import is_wanted
from kode_core.backends.json_files.briefs import Brief
from kode_core.backends.json_files.files import agent_of, is_long_name, translated
from kode_core.backends.json_files.folder import Folder
from kode_core.backends.json_files.frames import NoJournalError, OtherFormatError, parsed_line, read_line
from kode_core.backends.json_files.journal import BodyReader, Journal
from kode_core.backends.json_files.signatures import signature_of
from kode_core.batch import Found
from kode_core.codec import Body
from kode_core.engines.scan import Searched
from kode_core.engines.state import AgentState
from kode_core.errors import CorruptRecordError, SchemaVersionError
from kode_core.query import RowQuery, SessionQuery, Wanted, Within

__all__ = ["MovedError", "Seen", "searched", "searched_whole", "sound_briefs", "sound_journals", "with_texts"]

T = TypeVar("T")
S = TypeVar("S")
Seen: TypeAlias = Mapping[str, tuple[str, str]]
"""The name of the file of each agent that was searched, and the file's generation at that time."""

_Wants: TypeAlias = Callable[[str], bool]


class MovedError(Exception):
    """A file was rewritten between two reads."""


def _any(_: str) -> bool:
    return True


def _wants(wanted: Wanted | Within | None) -> _Wants:
    if isinstance(wanted, tuple):
        return frozenset(wanted).__contains__
    return lambda agent_id: is_wanted(agent_id, wanted)


def sound_journals(folder: Folder, left_out: list[str], wanted: _Wants = _any) -> Iterator[tuple[Journal, BodyReader]]:
    """All readable journals, one after the other; the labels of the others go to *left_out*.

    A journal whose name encodes an agent id that is not *wanted* is not read.
    """
    for name in folder.names():
        agent_id = agent_of(name.removesuffix(".jsonl"))
        if agent_id is None or wanted(agent_id):
            yield from _sound(folder, name, agent_id, left_out)


def _sound(
    folder: Folder, name: str, agent_id: str | None, left_out: list[str]
) -> Iterator[tuple[Journal, BodyReader]]:
    """The journal of a file, unless it is damaged or empty."""
    journal = folder.journal_named(name)
    try:
        with folder.scanning(journal) as reader:
            if journal.damage is not None:
                raise journal.damage
            if agent_id is not None:
                journal.check_owner(agent_id)
            if not folder.is_stray(journal):
                if journal.end:
                    yield journal, reader
            elif is_long_name(name.removesuffix(".jsonl")):  # a copy would have another name
                left_out.append(f"file {name!r}")
    except (CorruptRecordError, SchemaVersionError):
        left_out.append(journal.label)


def sound_briefs(
    folder: Folder, left_out: list[str], wanted: _Wants = _any
) -> Iterator[tuple[str, str, Brief | AgentState]]:
    """The name, the generation and the contents of all readable files, as :func:`sound_journals`.

    A file that did not change since an earlier search is not opened.
    """
    names, briefs, base = folder.names(), folder.briefs, f"{folder.base}{os.sep}"
    briefs.keep_only(names)
    for name in names:
        brief = briefs.known(name)
        agent_id = agent_of(name.removesuffix(".jsonl")) if brief is None else brief.agent_id
        if agent_id is not None and not wanted(agent_id):
            continue
        signature = signature_of(base + name)
        if brief is not None and brief.signature == signature:
            yield name, brief.generation, brief
            continue
        if brief is not None:
            agent_id = agent_of(name.removesuffix(".jsonl"))
        for journal, _ in _sound(folder, name, agent_id, left_out):
            if signature is not None and journal.prepared is None:
                briefs.made(name, journal.state, journal.generation, signature)
            yield name, journal.generation, journal.state


def searched(
    folder: Folder, query: SessionQuery | RowQuery, search: Callable[[Iterator[Searched]], T]
) -> tuple[T, list[str], Seen]:
    """The result of *search* over the contents of the agents of a query; what was left out; and the files searched."""

    def found(seen: dict[str, tuple[str, str]], left_out: list[str]) -> Generator[Searched, None, None]:
        for name, generation, contents in sound_briefs(folder, left_out, _wants(query.agent_id)):
            seen[contents.agent_id] = name, generation
            yield contents

    return _searched(folder, query.agent_id, search, found)


def searched_whole(
    folder: Folder, wanted: Wanted | Within | None, search: Callable[[Iterator[AgentState]], T]
) -> tuple[T, list[str], Seen]:
    """The same over the whole states of the wanted agents: for what briefs do not have."""

    def found(seen: dict[str, tuple[str, str]], left_out: list[str]) -> Generator[AgentState, None, None]:
        for journal, _ in sound_journals(folder, left_out, _wants(wanted)):
            seen[journal.state.agent_id] = journal.path.name, journal.generation
            yield journal.state

    return _searched(folder, wanted, search, found)


def _searched(
    folder: Folder,
    wanted: Wanted | Within | None,
    search: Callable[[Iterator[S]], T],
    found: Callable[[dict[str, tuple[str, str]], list[str]], Generator[S, None, None]],
) -> tuple[T, list[str], Seen]:
    seen: dict[str, tuple[str, str]] = {}
    left_out: list[str] = []

    def one(agent_id: str) -> Generator[AgentState, None, None]:
        with folder.reading(agent_id) as (journal, _):
            if journal.end:
                seen[agent_id] = journal.path.name, journal.generation
                yield journal.state

    states = one(wanted) if isinstance(wanted, str) else found(seen, left_out)
    with closing(states) as open_ones:  # a search that fails leaves no file locked
        return search(open_ones), left_out, seen  # type: ignore[arg-type]


def with_texts(
    folder: Folder, search: Callable[[], tuple[list[tuple[str, Body, T]], list[str], Seen]]
) -> Found[tuple[T, Body]]:
    """The results of *search* with the texts of their agents' bodies.

    Raises:
        MovedError: a file was rewritten since it was searched.
    """
    rows, left_out, seen = search()
    texts = _texts_of(folder, seen, [(agent_id, body) for agent_id, body, _ in rows])
    return Found(((row, text) for (_, _, row), text in zip(rows, texts, strict=True)), left_out)


def _texts_of(folder: Folder, seen: Seen, wanted: Sequence[tuple[str, Body]]) -> list[Body]:
    """The bodies of agents with their texts, in order; each file is opened once."""
    found: dict[int, Body] = {}
    by_agent: dict[str, list[int]] = {}
    for i, (agent_id, _) in enumerate(wanted):
        by_agent.setdefault(agent_id, []).append(i)
    for agent_id, places in by_agent.items():
        with _opened(folder, *seen[agent_id]) as reader:
            found.update((i, reader.text(wanted[i][1])) for i in places)
    return [found[i] for i in range(len(wanted))]


@contextmanager
def _opened(folder: Folder, name: str, generation: str) -> Iterator[BodyReader]:
    """The file of that generation, in which a body has one place for ever; its frames are not read.

    Raises:
        MovedError: it was rewritten, removed, or made unreadable; another search says which.
    """
    path = folder.base / name
    try:
        fd = open_file(path, os.O_RDONLY)
    except OSError as exc:
        raise MovedError from exc
    try:
        with translated(path):
            if parsed_line(read_line(fd)).generation != generation:
                raise MovedError
            yield BodyReader(fd)
    except (NoJournalError, OtherFormatError) as exc:
        raise MovedError from exc
    finally:
        os.close(fd)
