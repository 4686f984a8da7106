"""Which program wrote a source of ``kode import``: by the first lines of a file, its tables, or a folder's files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

from kode_core.config import configure
from kode_core.errors import BackendImportError, ConfigurationError, ForeignStoreError, StorageError
from kode_core.formats.documents import SQLITE, first_lines
from kode_core.formats.kode_sdk.opening import has_agents
from kode_core.formats.tables import open_tables
from kode_core.plugins import registry

__all__ = ["Recognised", "is_transcript", "recognise"]

_LINES: Final = 50
_ENTRIES: Final = 1_000
_TABLES: Final = {
    "langgraph": ("checkpoints", frozenset({"thread_id", "checkpoint_ns", "checkpoint_id"})),
    "openai-agents": ("agent_messages", frozenset({"session_id", "message_data"})),
    "adk": ("app_states", frozenset({"app_name", "state"})),
}
"""A table of each program, with columns that no other program's table of that name has."""
_OWNERS: Final = {
    "langgraph": "LangGraph's checkpoints",
    "openai-agents": "sessions of OpenAI Agents",
    "adk": "sessions of Google ADK",
    "kode-sdk": "agents of the KODE SDK",
    "claude": "transcripts of Claude",
}
_ASK: Final = "say with --from which program wrote it"


class Recognised(NamedTuple):
    """A source that an importer or another command reads.

    Attributes:
        described: the predicate of a sentence, such as ``holds LangGraph's checkpoints``.
        advice: the way to read it, such as ``give --from langgraph``.
    """

    described: str
    advice: str


async def recognise(source: str) -> Recognised | None:
    """The program that wrote a file or a folder, as far as it is known; None for a file of chats, and for no file.

    Nothing is written, and of a file with lines only the first ones are read.
    """
    path = Path(source).expanduser()
    if "://" in source:
        return Recognised("is a database or a store", _ASK)
    if path.is_dir():
        return _folder(path)
    lines = first_lines(path, _LINES)
    if lines and lines[0].startswith(SQLITE):
        return await _database(str(path))
    return _found("claude") if _are_entries(lines) else None


def is_transcript(path: Path) -> bool:
    """True for a file whose first lines are entries of a conversation with Claude Code or the Claude Agent SDK."""
    return _are_entries(first_lines(path, _LINES))


def _found(form: str) -> Recognised:
    return Recognised(f"holds {_OWNERS[form]}", f"give --from {form}")


def _are_entries(lines: list[bytes]) -> bool:
    return any(_is_entry(line) for line in lines)


def _is_entry(line: bytes) -> bool:
    """Entries have a type and the session's id, but for a summary, which has a leaf. A chat's object has messages."""
    try:
        value: Any = json.loads(line)
    except (ValueError, RecursionError):
        return False
    if type(value) is not dict or type(value.get("type")) is not str or "messages" in value or "role" in value:
        return False
    return type(value.get("sessionId")) is str or "leafUuid" in value


async def _database(path: str) -> Recognised:
    anything = Recognised("is an SQLite database", _ASK)
    try:
        configured = configure({"type": "sqlite", "db_path": path}, {}, registry.backend, os.environ)
        if configured.backend.is_there is not None and configured.backend.is_there(configured.options):
            return Recognised("is a store of kode", f"copy it with kode copy sqlite:///{path} TO")
        async with open_tables(path) as tables:
            for form, (table, columns) in _TABLES.items():
                if columns <= await tables.columns(table):
                    return _found(form)
    except ForeignStoreError:
        return _found("kode-sdk")
    except (ConfigurationError, BackendImportError, StorageError):  # the importer says more
        pass
    return anything


def _folder(path: Path) -> Recognised:
    if (path / ".kode").exists():
        return Recognised("is a store of kode", f"copy it with kode copy json:///{path} TO")
    if has_agents(path):
        return _found("kode-sdk")
    if any(is_transcript(file) for file in islice(_transcripts(path), 1)):
        return _found("claude")
    return Recognised("is a folder", _ASK)


def _transcripts(folder: Path) -> Iterator[Path]:
    """Files that may be transcripts, in *folder* or in a project's folder in it."""
    for pattern in ("*.jsonl", "*/*.jsonl", "projects/*/*.jsonl"):
        yield from (path for path in islice(folder.glob(pattern), _ENTRIES) if path.is_file())
