"""Forks in a folder of JSON files. Everything here blocks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from kode_core.backends.json_files.files import file_name, translated
from kode_core.backends.json_files.folder import Folder
from kode_core.backends.json_files.journal import BodyReader
from kode_core.backends.json_files.states import write_state
from kode_core.backends.memory.engine import forked
from kode_core.batch import FORKED_DOCS, Child, Doc, DocKind
from kode_core.codec import Body
from kode_core.engines.state import AgentState

__all__ = ["copy_docs", "fork", "remove"]


def fork(folder: Folder, agent_id: str, children: Sequence[Child], expect: Body, now: int) -> bool:
    """Copy the agent. Each copy appears as a whole; if one of them fails, none stays."""
    with folder.reading(agent_id) as (journal, reader):
        parent = journal.state
        if parent.info is None or reader.text(parent.info.body) != expect:
            return False
        _make(folder, ((child.agent_id, forked(parent, child, now, 1)) for child in children), reader)
    return True


def copy_docs(folder: Folder, agent_id: str, child_ids: Sequence[str]) -> list[Path]:
    """Make files for the children with the documents that a fork copies; none if the agent has no such documents."""
    with folder.reading(agent_id) as (journal, reader):
        docs = {key: doc for key, doc in journal.state.docs.items() if key[0] in FORKED_DOCS}
        return _make(folder, ((child_id, _with_docs(child_id, docs)) for child_id in child_ids if docs), reader)


def _make(folder: Folder, states: Iterable[tuple[str, AgentState]], reader: BodyReader) -> list[Path]:
    files: list[Path] = []
    try:
        for agent_id, state in states:
            path = folder.base / f"{file_name(agent_id)}.jsonl"
            with translated(path):
                files.append(path)
                write_state(path, state, reader.checked, durable=folder.durable, mode=folder.mode)
    except BaseException:
        remove(files)
        raise
    return files


def remove(paths: Iterable[Path]) -> None:
    """Remove files that are not needed after all."""
    for path in paths:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _with_docs(agent_id: str, docs: dict[tuple[DocKind, str], Doc]) -> AgentState:
    state = AgentState(agent_id)
    state.docs = dict(docs)
    return state
