"""Importers of other distributions: found by their entry point, and reported as those of the core."""

from __future__ import annotations

import gzip
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from kode_core import AgentInfo, create_extended_store
from tests.sdk_stores import agent_files, info, make_tables, write

KODE = (sys.executable, "-m", "kode_core.cli")
IMPORTER = '''
from contextlib import asynccontextmanager
from pathlib import Path
from kode_core import AgentInfo, AgentRecords, ConfigurationError, Message
from kode_core.formats.importing import ForeignAgent, Found

@asynccontextmanager
async def open_notes(source):
    """One agent for each line of a file."""
    if not Path(source).is_file():
        raise ConfigurationError(f"there is no file {source}")
    yield agents(Path(source).read_text().splitlines())

async def agents(lines):
    for number, line in enumerate(lines):
        found = Found()
        if line.startswith("!"):
            found.damaged[f"line {number}: it begins with !"] += 1
        info = AgentInfo(agent_id=f"note-{number}", template_id="notes", created_at=1)
        held = {"messages": [Message.user(line)], "message_times": [1], "updated_at": 1}
        yield ForeignAgent(AgentRecords(agent_id=info.agent_id, info=info, **held), found)
'''

REFUSING = """
import os
from kode_core import errors
from kode_core.layers import Layer
from kode_core.plugins import hookimpl

class Refusing(Layer):
    async def commit(self, batches):
        kind = os.environ.get("REFUSED_BY")
        if kind and any(batch.agent_id in ("note-1", "chat-1") for batch in batches):
            raise getattr(errors, kind)("it is too much for this store")
        return await super().commit(batches)

class Plugin:
    @hookimpl
    def kode_engine_layers(self, options):
        return Refusing

plugin = Plugin()
"""
"""A plugin whose layer refuses each commit for one agent, with the error that a variable names."""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution with an importer named notes, and one named broken that cannot be imported."""
    place = tmp_path / "site"
    described = place / "notes-1.0.dist-info"
    described.mkdir(parents=True)
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: notes\nVersion: 1.0\n")
    (described / "entry_points.txt").write_text(
        "[kode.importers]\nnotes = notes_importer:open_notes\nbroken = no_module:x\n"
        "[kode.plugins]\nrefusing = refusing:plugin\n"
    )
    (place / "notes_importer.py").write_text(IMPORTER)
    (place / "refusing.py").write_text(REFUSING)
    monkeypatch.setenv("PYTHONPATH", f"{place}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")


def kode(*arguments: str, code: int = 0) -> tuple[str, str]:
    done = subprocess.run((*KODE, *arguments), capture_output=True, encoding="utf-8", check=False, timeout=300)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout, done.stderr


async def test_an_importer_of_another_distribution(installed: None) -> None:
    """Dry run, import, a second import, a source that has changed, damage, and the report."""
    Path("notes.txt").write_text("one\ntwo\n!three\n")
    target = ("--store", "sqlite:///new.db")
    out, _ = kode("import", "--from", "notes", "notes.txt", "--dry-run", code=1)
    assert out.startswith("would import 2 agents, 2 messages\n") and not Path("new.db").exists()
    out, err = kode("import", "--from", "notes", "notes.txt", *target, "--report", "report.jsonl", code=1)
    assert out.startswith("imported 2 agents, 2 messages\n") and out.endswith("refused 1 agent, see above\n")
    assert "refused note-2: some of its records cannot be read" in err
    outcomes = [json.loads(line) for line in Path("report.jsonl").read_text().splitlines()]
    assert [one["outcome"] for one in outcomes] == ["imported", "imported", "refused"]
    assert outcomes[2]["damaged"] == {"line 2: it begins with !": 1}
    out, _ = kode("import", "--from", "notes", "notes.txt", *target, "--skip-damaged")
    assert out == "imported 1 agent, 1 message; 2 agents were there already\n"
    Path("notes.txt").write_text("one\nother\n")
    _, err = kode("import", "--from", "notes", "notes.txt", *target, code=1)
    assert "refused note-1: the store has an agent of that id with other records" in err
    kode("import", "--from", "notes", "notes.txt", *target, "--replace")
    async with create_extended_store("sqlite:///new.db") as store:
        assert [message.text for message in await store.load_messages("note-1")] == ["other"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("notes", "none.txt"), "there is no file none.txt"),
        (("note", "notes.txt"), "format 'note' is not known; did you mean 'notes'?"),
        (("broken", "x"), "the importer broken (no_module:x) cannot be imported: ModuleNotFoundError"),
        (("openai-agents", "x"), "comes with kode-openai-agents; pip install kode-openai-agents"),
        (("notes", "notes.txt", "--prefix", "x"), "--prefix is not an option of --from notes"),
        (("notes", "notes.txt", "--files", "x"), "--files is not an option of --from notes"),
    ],
)
def test_mistakes(installed: None, arguments: tuple[str, ...], said: str) -> None:
    """One sentence each, and no store is created."""
    assert said in kode("import", "--from", *arguments, "--store", "sqlite:///new.db", code=2)[1]
    assert not Path("new.db").exists()


# --- Sources of known programs without --from -------------------------------------------------------------------------

ENTRIES = [
    {"type": "file-history-snapshot", "messageId": "m", "snapshot": {}},
    {"type": "user", "uuid": "u", "sessionId": "s", "message": {"role": "user", "content": "Hello"}},
]
CHECKPOINTS = Path(__file__).parent / "data/langgraph/checkpoints.sql"


def lines_of(*values: object) -> bytes:
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


def tables(path: Path, script: str) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.executescript(script)


def claudes(path: Path) -> None:
    path.write_bytes(lines_of(*ENTRIES))


def claudes_folder(path: Path) -> None:
    (path / "projects" / "-home-u").mkdir(parents=True)
    (path / "projects" / "-home-u" / "s.jsonl").write_bytes(lines_of({"type": "summary", "leafUuid": "u"}))


SOURCES: dict[str, tuple[Callable[[Path], object], str]] = {
    "transcript": (claudes, "holds transcripts of Claude: give --from claude"),
    "packed": (
        lambda path: path.write_bytes(gzip.compress(lines_of(*ENTRIES))),
        "holds transcripts of Claude: give --from claude",
    ),
    "claude": (claudes_folder, "holds transcripts of Claude: give --from claude"),
    "checkpoints": (
        lambda path: tables(path, CHECKPOINTS.read_text()),
        "holds LangGraph's checkpoints: give --from langgraph",
    ),
    "openai": (
        lambda path: tables(path, "CREATE TABLE agent_messages (id, session_id, message_data, created_at)"),
        "holds sessions of OpenAI Agents: give --from openai-agents",
    ),
    "adk": (
        lambda path: tables(path, "CREATE TABLE app_states (app_name, state, update_time)"),
        "holds sessions of Google ADK: give --from adk",
    ),
    "sdk.db": (
        lambda path: make_tables(path, {"a": {"agents": [info("a")]}}),
        "holds agents of the KODE SDK: give --from kode-sdk",
    ),
    "sdk": (
        lambda path: write(path / "agt-0", agent_files("agt-0")),
        "holds agents of the KODE SDK: give --from kode-sdk",
    ),
    "other.db": (
        lambda path: tables(path, "CREATE TABLE notes (x)"),
        "is an SQLite database: say with --from which program wrote it",
    ),
    "folder": (lambda path: path.mkdir(), "is a folder: say with --from which program wrote it"),
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_known_source_is_named(name: str, tmp_path: Path) -> None:
    """Without --from one sentence says what the source is and how to import it; nothing is written."""
    make, said = SOURCES[name]
    make(tmp_path / name)
    before = sorted(tmp_path.rglob("*"))
    out, err = kode("import", name, "--store", "sqlite:///new.db", code=2)
    assert (out, err) == ("", f"error: {name} {said}\n")
    assert sorted(tmp_path.rglob("*")) == before


async def test_a_store_of_kode_is_copied() -> None:
    """A store is no source of an import, and a URL's password is not quoted."""
    for url, name in (("sqlite:///mine.db", "mine.db"), ("json:///mine", "mine")):
        async with create_extended_store(url) as store:
            await store.save_info("a", AgentInfo(agent_id="a", template_id="t"))
        assert kode("import", name, code=2)[1] == f"error: {name} is a store of kode: copy it with kode copy {url} TO\n"
    _, err = kode("import", "postgres://me:hunter2@host/db", code=2)
    assert err == "error: the source is a database or a store: say with --from which program wrote it\n"


@pytest.mark.parametrize(
    "value",
    [
        {"sessionId": "s", "type": "chat", "messages": [{"role": "user", "content": "Hello"}]},
        {"messages": [{"role": "user", "content": '{"type": "user", "sessionId": "s"}'}]},
    ],
)
def test_chats_are_not_taken_for_something_else(value: object, tmp_path: Path) -> None:
    """Whatever fields they have besides."""
    (tmp_path / "chat.jsonl").write_bytes(lines_of(value, value))
    assert kode("import", "chat.jsonl", "--store", "sqlite:///new.db")[0].startswith("imported 2 agents, 2 messages")


CHATS = "".join(
    json.dumps({"id": f"chat-{i}", "messages": [{"role": "user", "content": "a"}]}) + "\n" for i in range(3)
)


@pytest.mark.parametrize("kind", ["UnsupportedError", "StoreTimeoutError"])
@pytest.mark.parametrize("form", ["notes", "openai-chat"])
def test_an_error_of_one_agent_ends_no_import(
    installed: None, form: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is reported for its agent, the others are imported, and the exit code is 1."""
    Path("notes").write_text("one\ntwo\nthree\n")
    Path("openai-chat").write_text(CHATS)
    target = ("--store", "sqlite:///new.db")
    monkeypatch.setenv("REFUSED_BY", kind)
    out, err = kode("import", "--from", form, form, *target, code=1)
    assert out.startswith("imported 2 agents, 2 messages")
    assert "it is too much for this store" in err and err.count("too much") == 1
    assert ("refused note-1: " if form == "notes" else "openai-chat: conversation 2: ") in err
    monkeypatch.delenv("REFUSED_BY")
    out, _ = kode("import", "--from", form, form, *target)
    assert out.startswith("imported 1 agent, 1 message") and "2 agents were there already" in out


@pytest.mark.parametrize("kind", ["StoreUnavailableError", "StoreFullError"])
@pytest.mark.parametrize("form", ["notes", "openai-chat"])
def test_an_error_of_the_store_ends_the_import(
    installed: None, form: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No other agent is tried; the import goes on once the store can be written."""
    Path("notes").write_text("one\ntwo\nthree\n")
    Path("openai-chat").write_text(CHATS)
    monkeypatch.setenv("REFUSED_BY", kind)
    done = subprocess.run(
        (*KODE, "import", "--from", form, form, "--store", "sqlite:///new.db"),
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=300,
    )
    assert done.returncode not in (0, 1) and "it is too much for this store" in done.stderr
    assert "imported" not in done.stdout and "Traceback" not in done.stderr
    monkeypatch.delenv("REFUSED_BY")
    out, _ = kode("import", "--from", form, form, "--store", "sqlite:///new.db")
    assert out.startswith("imported 2 agents, 2 messages") and "1 agent was there already" in out
