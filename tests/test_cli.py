"""The ``kode`` command as its users run it: in a process of its own, on a real database."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import pty
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from kode_conformance.values.payloads import PAYLOADS
from rich.cells import cell_len

from kode_core import (
    AgentEvent,
    AgentInfo,
    Bookmark,
    Message,
    PutDocument,
    RepairResult,
    Snapshot,
    Timeline,
    TodoSnapshot,
    ToolCallApproval,
    ToolCallRecord,
    ToolResultBlock,
    ToolUseBlock,
    create_extended_store,
)
from kode_core.cli import main
from kode_core.cli.doctor import _done

KODE = (sys.executable, "-m", "kode_core.cli")
HOSTILE = (
    "[bold]b[/bold]",
    "new\nline",
    "\x1b[31mred\x1b[0m",
    "rtl \u202e abc",
    ":smile: 🙂",
    "x" * 200,
    "a/../b",
    "-n",
)
DAY_MS = 86_400_000


def kode(*arguments: str, code: int = 0, env: dict[str, str] | None = None, stdin: str = "") -> tuple[str, str]:
    """Run the command, and return what it wrote to stdout and stderr."""
    done = subprocess.run(
        (*KODE, *arguments),
        input=stdin,
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, **(env or {})},
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout, done.stderr


def kode_json(*arguments: str) -> Any:
    out, err = kode(*arguments, "--json")
    assert err == ""
    return json.loads(out)


def found_by(*arguments: str) -> Any:
    """The same without a process of its own, ten times as fast: for the many filters."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), pytest.raises(SystemExit) as info:
        patch.setattr(sys, "argv", ["kode", *arguments, "--json"])
        main()
    assert info.value.code == 0
    assert isinstance(out.buffer, io.BytesIO)
    return json.loads(out.buffer.getvalue())


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a database with four agents and one hostile one of every kind. Tests only read it."""
    folder = tmp_path_factory.mktemp("cli")
    url = f"sqlite:///{folder}/agents.db"
    asyncio.run(fill(url))
    before = asyncio.run(contents(url))
    yield url
    assert asyncio.run(contents(url)) == before, "a test changed the database that all tests of this module read"


async def contents(url: str) -> list[Any]:
    """What the store holds of each agent."""
    async with create_extended_store(url) as store:
        return [await store.load_session(agent_id) for agent_id in await store.list()]


async def fill(url: str) -> None:
    async with create_extended_store(url) as store:
        for i in range(4):
            agent_id = f"agt-{i}"
            await store.save_turn(
                agent_id,
                messages=conversation(i),
                tool_calls=tool_calls(i),
                info=AgentInfo(
                    agent_id=agent_id,
                    template_id="even" if i % 2 == 0 else "odd",
                    created_at=1_700_000_000_000 + i * DAY_MS,
                    metadata={"userId": f"user-{i}", "trial": i, "label": "yes"},
                ),
                events=[event(seq) for seq in range(3)],
            )
        await store.save_snapshot("agt-0", Snapshot(id="s", messages=conversation(0)))


def conversation(i: int) -> list[Message]:
    answered = ToolResultBlock("c1", "sunny", None)
    return [
        Message.system("Be kind. " * 300),
        Message.user(f"How is the weather? ({i})"),
        Message.assistant("Let me look.", ToolUseBlock("c1", "weather", {"city": "Rome", "days": 3})),
        Message("user", (answered,)),
        Message.assistant("It is sunny."),
    ]


def tool_calls(i: int) -> list[ToolCallRecord]:
    done = ToolCallRecord(id="c1", name="weather", input={"city": "Rome"}, state="COMPLETED", result="sunny")
    gate = ToolCallApproval(required=True)
    failed = ToolCallRecord(id="c2", name="book", state="FAILED", error="Error: full", is_error=True, approval=gate)
    time_ms = 1_700_000_000_000 + i
    return [record.replace(created_at=time_ms, updated_at=time_ms) for record in (done, failed)]


def event(seq: int, text: str = "hello") -> Timeline:
    if seq == 1:
        what = AgentEvent("monitor", "step_complete", {"text": text})
    else:
        what = AgentEvent("progress", "text_chunk_end", {"text": text})
    return Timeline(seq, Bookmark(seq, 1_700_000_000_000 + seq), what)


def copy(store: str) -> str:
    """The URL of a copy in the test's own folder, to change."""
    kode("backup", "copy.db", "--store", store)
    return "sqlite:///copy.db"


# --- What is around the commands --------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [("version",), ("--version",)])
def test_version_is_that_of_the_distribution(arguments: tuple[str, ...]) -> None:
    """As a command and as an option."""
    from importlib.metadata import version

    assert kode(*arguments)[0] == f"kode-core {version('kode-core')}\n"


COMMANDS = ("sessions", "messages", "tool-calls", "stats", "events", "import", "delete", "backup", "doctor", "plugins")
COMMANDS += ("schema", "documents", "prune")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(command: str) -> None:
    """Each command says what it does and shows how to call it."""
    out, _ = kode(command, "--help", env={"COLUMNS": "200"})

    assert f"Usage: kode {command}" in out.replace("python -m kode_core.cli", "kode").replace("__main__.py", "kode")
    assert "Examples" in out
    assert f"kode {command}" in out.split("Examples")[1]


def test_installed_script_is_the_command() -> None:
    """``kode`` is what the distribution puts on the path."""
    script = Path(sys.executable).with_name("kode")

    done = subprocess.run([script, "version"], capture_output=True, text=True, timeout=60, check=True)

    assert done.stdout.startswith("kode-core ")


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_extra_it_says_what_to_install(missing: str) -> None:
    """One line, and exit code 2."""
    code = f"import sys; sys.modules[{missing!r}] = None; from kode_core.cli import main; main()"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "the kode command needs: pip install 'kode-core[cli]'\n"


def test_library_errors_are_one_line(store: str) -> None:
    """Exit code 2, and the traceback only for those who ask for it."""
    out, err = kode("messages", "no\nbody", "--store", store, code=2)
    assert out == ""
    assert err == "error: no agent 'no\\nbody' in this store: save_info was never called for it, or it was deleted\n"

    debug = subprocess.run(
        (*KODE, "messages", "nobody", "--store", store),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "KODE_DEBUG": "1"},
    )
    assert debug.returncode != 0
    assert "AgentNotFoundError" in debug.stderr and "Traceback" in debug.stderr


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("sessions", "--store", "production"), "error: the text given is neither a URL"),
        (
            ("sessions", "--store", "sqllite:///a.db"),
            "error: the URL does not begin with a backend's name; did you mean 'sqlite'? (installed: ",
        ),
        (("sessions", "--store", "hunter2:x"), "error: the URL does not begin with a backend's name (installed: "),
        (
            ("sessions", "--store", "redis://:hunter2@host/0"),
            "error: the URL: no backend is named 'redis' (installed: ",
        ),
        (("sessions", "--store", ""), "error: --store is empty; name a store, or leave --store out"),
        (("delete", "agt-0", "--yes", "--store="), "error: --store is empty"),
        (("sessions", "--metadata", "trial"), "error: --metadata 'trial' has no '='"),
        (("sessions", "--limit", "-1"), "error: limit must not be negative"),
        (("sessions", "--all", "--limit", "5"), "error: an iterator gives everything that matches"),
        (("sessions", "--prefix", "a", "--limit", "-1"), "error: limit must not be negative"),
        (("sessions", "--order", "up"), "error: order must be one of desc, asc"),
        (("sessions", "--sort-by", "name"), "error: sort_by must be one of created_at, updated_at, message_count"),
        (("messages", "\ud800"), "error: agent_id must not contain lone surrogates"),
        (("stats", "nobody"), "error: no agent 'nobody' in this store"),
        (("show", "agt"), "error: no agent 'agt' in this store; did you mean 'agt-"),
        *(
            ((*command, "agt-22", "--yes")[: None if command[0] in ("delete", "prune") else -1], near)
            for near in ("error: no agent 'agt-22' in this store; did you mean 'agt-2'?",)
            for command in (
                ("stats",),
                ("messages",),
                ("tool-calls",),
                ("snapshots",),
                ("events",),
                ("diff", "agt-0"),
                ("messages", "--role", "user"),
                ("delete",),
                ("prune", "--keep-snapshots", "1"),
                ("messages", "--count"),
                ("messages", "--by", "role"),
                ("tool-calls", "--count"),
                ("tool-calls", "--by", "state"),
                ("tool-calls", "--by", "template_id"),
                ("sessions", "--agent"),
                ("sessions", "--agent", "agt-0", "--agent"),
                ("sessions", "--count", "--agent"),
                ("sessions", "--prefix", "agt", "--count", "--agent"),
                ("sessions", "--by", "day", "--agent"),
                ("doctor", "--agent"),
                ("doctor", "--repair", "--agent"),
                ("export", "agents.jsonl", "--agent", "agt-0", "--agent"),
                ("export", "tables", "--format", "parquet", "--agent"),
            )
        ),
        (
            ("documents", "agt-22", "notes", "--tag", "a=b"),
            "error: no agent 'agt-22' in this store; did you mean 'agt-2'?",
        ),
        (("documents", "agt-22", "notes"), "error: no agent 'agt-22' in this store; did you mean 'agt-2'?"),
        (("show", "atg-2"), "error: no agent 'atg-2' in this store; did you mean 'agt-2'?"),
        (("events", "nobody"), "error: no agent 'nobody' in this store"),
        (("events", "agt-0", "--channel", "x"), "error: channel must be one of progress, control, monitor"),
        (("import", "missing.json"), "error: missing.json cannot be read: No such file or directory"),
        (("import", "x.json", "--format", "csv"), "error: format 'csv' is not known; known are openai-chat"),
        (("delete", "nobody", "--yes"), "error: no agent 'nobody' in this store"),
        (("delete", "--yes"), "error: name the agents to delete, or give filters"),
        (("delete", "agt-0", "--template", "x", "--yes"), "error: name the agents to delete, or give filters"),
        (("backup", "x.db", "--store", "memory:"), "error: "),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(store: str, arguments: tuple[str, ...], problem: str) -> None:
    """Nothing on stdout, one line on stderr, exit code 2."""
    named = () if any(argument.startswith("--store") for argument in arguments) else ("--store", store)
    raw = [os.fsencode(argument) if argument.isprintable() else b"\xed\xa0\x80" for argument in arguments]
    done = subprocess.run([*KODE, *raw, *named], capture_output=True, stdin=subprocess.DEVNULL, timeout=60, check=False)

    err = done.stderr.decode()
    assert (done.returncode, done.stdout) == (2, b""), err
    assert err.startswith(problem), err
    assert err.count("\n") == 1


def test_time_that_cannot_be_read_is_a_usage_error(store: str) -> None:
    """It says how a time is written."""
    _, err = kode("sessions", "--created-after", "lately", "--store", store, code=2)

    assert "'lately' is no time" in err and "7d" in err
    _, err = kode("sessions", "--created-after", "9" * 5000, "--store", store, code=2)
    assert "is no time" in err and "sys." not in err and len(err) < 2000


def test_looking_makes_no_store() -> None:
    """A reading command in the wrong folder leaves nothing behind."""
    for command in (("sessions",), ("doctor",), ("delete", "a", "--yes")):
        _, err = kode(*command, code=2)
        assert err.startswith("error: there is no sqlite store at ./data/agents.db (from the default); name another")

    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize("where", ["before", "after", "variable", "kode.toml"])
def test_store_is_named_in_four_ways(store: str, where: str) -> None:
    """Before the command, behind it, in the environment, or in kode.toml."""
    Path("kode.toml").write_text(f'[stores.mine]\nurl = "{store}"\n')
    arguments: tuple[str, ...] = ("stats", "agt-0", "--json")
    env = {}
    if where == "before":
        arguments = ("--store", store, *arguments)
    elif where == "after":
        arguments = (*arguments, "--store", store)
    elif where == "variable":
        env["KODE_STORE_URL"] = store
    else:
        arguments = (*arguments, "--store", "mine")

    assert json.loads(kode(*arguments, env=env)[0])["totalMessages"] == 5


# --- plugins and doctor -----------------------------------------------------------------------------------------------


def test_plugins_lists_backends_and_imports_no_driver() -> None:
    """What is installed with its protocols, and what could be."""
    command = [sys.executable, "-X", "importtime", "-m", "kode_core.cli", "plugins", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)

    assert "aiosqlite" not in done.stderr and "sqlite3" not in done.stderr
    found = json.loads(done.stdout)
    backends = {backend["name"]: backend for backend in found["backends"]}
    assert {"json", "memory", "sqlite"} <= backends.keys()
    assert backends["sqlite"]["distribution"] == "kode-sqlite"
    assert backends["sqlite"]["entryPoint"] == "kode_sqlite.plugin"
    assert backends["sqlite"]["protocols"] == ["Store", "QueryableStore", "ExtendedStore"]
    for missing in found["available"]:
        assert missing["name"] not in backends
        assert missing["install"] == f"pip install kode-{missing['name']}"


def test_plugins_tells_what_is_disabled_or_does_not_load() -> None:
    """The reason stands in the list, and the others are still shown."""
    metadata = Path("site/broken-1.0.dist-info")
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    entry_points = "[kode.stores]\nacme = no_such_module\n[kode.plugins]\naudit = broken.audit\ncache = broken.cache\n"
    (metadata / "entry_points.txt").write_text(entry_points)
    out, err = kode("plugins", code=1, env={"PYTHONPATH": "site", "KODE_DISABLE_PLUGINS": "json,cache"})
    assert "plugin 'audit' (broken 1.0) is installed but cannot be used" in err

    lines = {line.split()[0]: line for line in out.splitlines() if line}
    assert "does not import: No module named 'no_such_module'" in lines["acme"]
    assert "disabled by KODE_DISABLE_PLUGINS" in lines["json"]
    assert "Store, QueryableStore, ExtendedStore" in lines["sqlite"]
    assert lines["audit"].split() == ["audit", "broken", "1.0", "broken.audit"]
    assert "disabled by KODE_DISABLE_PLUGINS" in lines["cache"]


def test_doctor_finds_a_sound_store(store: str) -> None:
    """Exit code 0, and where the configuration came from."""
    report = kode_json("doctor", "--store", store)

    assert report["health"]["healthy"] and report["consistency"]["consistent"]
    assert report["store"]["backend"] == "sqlite"
    assert report["store"]["source"] == f"the URL {store}"
    assert report["size"]["totalAgents"] == 4
    out, _ = kode("doctor", "--store", store)
    assert "ok, 4 agents checked" in out


def test_doctor_counts_agents_without_info(store: str) -> None:
    """Agents that no list shows are told apart from those that the store is said to hold."""
    url = copy(store)

    async def begin() -> None:
        async with create_extended_store(url) as opened:
            await opened.append_messages("agt-new", [Message.user("Hello")])

    asyncio.run(begin())
    assert "ok, 5 agents checked, 1 of them without info, as is normal" in kode("doctor", "--store", url)[0]


def test_doctor_finds_what_does_not_fit(store: str) -> None:
    """Exit code 1 and a line for each problem; one agent can be asked for."""
    url = copy(store)

    async def spoil() -> None:
        async with create_extended_store(url) as opened:
            await opened.append_messages("agt-1", [Message("user", (ToolResultBlock("zzz", "?"),))])

    asyncio.run(spoil())
    out, _ = kode("doctor", "--store", url, code=1)
    assert "1 problem, 4 agents checked" in out
    assert "result_without_use" in out and "agt-1" in out
    assert "1 agent checked" in kode("doctor", "--store", url, "--agent", "agt-0")[0]
    issues = json.loads(kode("doctor", "--store", url, "--json", code=1)[0])["consistency"]["issues"]
    assert [issue["agentId"] for issue in issues] == ["agt-1"]


def test_doctor_repairs_nothing_where_nothing_is_left(store: str) -> None:
    """It says so, and the check follows, with its exit code."""
    url = copy(store)
    out, _ = kode("doctor", "--repair", "--store", url)
    assert "nothing was left behind" in out
    assert "ok, 4 agents checked" in out
    assert kode_json("doctor", "--repair", "--agent", "agt-1", "--store", url)["repair"] == {
        "finished": 0, "removed": 0, "left": 0
    }  # fmt: skip
    assert "repair" not in kode("doctor", "--store", url)[0]


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (RepairResult(), "nothing was left behind"),
        (RepairResult(finished=1), "1 unfinished call completed"),
        (
            RepairResult(finished=2, removed=1_000, left=1),
            "2 unfinished calls completed, leftovers removed at 1,000 places; "
            "1 attempt failed: another process is at work there, or the records are damaged",
        ),
    ],
)
def test_doctor_says_what_it_repaired(result: RepairResult, text: str) -> None:
    """In one line."""
    assert _done(result).plain == text


def test_doctor_cannot_open_what_is_no_database() -> None:
    """Exit code 2."""
    Path("text.db").write_text("this is no database, although it is long enough to be taken for one" * 20)

    _, err = kode("doctor", "--store", "sqlite:///text.db", code=2)

    assert err.startswith("error: ") and err.count("\n") == 1


# --- Reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ((), ["agt-3", "agt-2", "agt-1", "agt-0"]),
        (("--order", "asc"), ["agt-0", "agt-1", "agt-2", "agt-3"]),
        (("--agent", "agt-2"), ["agt-2"]),
        (("--template", "odd"), ["agt-3", "agt-1"]),
        (("--user", "user-2"), ["agt-2"]),
        (("--metadata", "trial=2"), ["agt-2"]),
        (("--metadata", "trial=2", "--metadata", "label=yes"), ["agt-2"]),
        (("--metadata", 'trial="2"'), []),
        (("--metadata", "userId=user-1"), ["agt-1"]),
        (("--created-after", "2023-11-16T00:00Z"), ["agt-3", "agt-2"]),
        (("--created-after", "2023-11-16", "--created-before", "2023-11-17"), ["agt-2"]),
        (("--created-before", "1700086400000"), ["agt-0"]),
        (("--created-after", "1d"), []),
        (("--updated-after", "1h", "--limit", "1"), ["agt-3"]),
        (("--updated-before", "1h"), []),
        (("--limit", "2", "--offset", "1"), ["agt-2", "agt-1"]),
        (("--sort-by", "message_count", "--order", "asc", "-n", "1"), ["agt-0"]),
        (("--all",), ["agt-3", "agt-2", "agt-1", "agt-0"]),
    ],
)
def test_sessions_filters(store: str, options: tuple[str, ...], found: list[str]) -> None:
    """Every filter of the query is an option."""
    sessions = found_by("sessions", "--store", store, *options)["sessions"]

    assert [session["agentId"] for session in sessions] == found


@pytest.mark.parametrize("url", ["sqlite:///ids.db", "json:///ids"])
def test_sessions_are_found_by_the_beginning_of_their_ids(url: str) -> None:
    """With other filters, an order, groups and pages, whose cursors lead to the rest; a sign of a pattern is a
    character.
    """
    ids = [f"{'ab'[i % 2]}_{i}" for i in range(9)]

    async def fill_ids() -> None:
        async with create_extended_store(url) as store:
            for i, agent_id in enumerate(ids):
                info = AgentInfo(agent_id=agent_id, template_id="t" if i < 7 else "u", created_at=i)
                await store.save_turn(agent_id, messages=[Message.user("x")], info=info)

    asyncio.run(fill_ids())

    def found(*options: str) -> tuple[list[str], str | None]:
        page = found_by("sessions", "--store", url, *options)
        return [one["agentId"] for one in page["sessions"]], page["nextCursor"]

    assert found("--prefix", "a_") == (["a_8", "a_6", "a_4", "a_2", "a_0"], None)
    assert found("--prefix", "a%") == ([], None)
    assert found("--prefix", "b_", "--template", "t", "--order", "asc", "--all") == (["b_1", "b_3", "b_5"], None)
    assert found("--prefix", "a_", "--offset", "3") == (["a_2", "a_0"], None)
    walked, cursor = found("--prefix", "a_", "--limit", "2", "--offset", "1")
    assert walked == ["a_6", "a_4"] and cursor is not None
    assert found("--prefix", "a_", "--limit", "2", "--cursor", cursor) == (["a_2", "a_0"], None)
    assert found("--prefix", "a_", "--agent", "a_0", "--agent", "b_1") == (["a_0"], None)
    assert found("--prefix", "\U0010ffff") == ([], None)
    groups = found_by("sessions", "--store", url, "--prefix", "b_", "--by", "template_id")["groups"]
    assert [(one["values"]["template_id"], one["count"]) for one in groups] == [("t", 3), ("u", 1)]
    assert found_by("sessions", "--store", url, "--prefix", "a_", "--count") == {"count": 5}


def test_a_tenant_finds_sessions_by_the_beginning_of_their_ids() -> None:
    """Of its own ids, and of no other's."""

    async def fill_ids() -> None:
        async with create_extended_store("sqlite:///ids.db") as store:
            for scope in (store.scoped("one"), store.scoped("two")):
                for agent_id in ("a-1", "a-2", "b-1"):
                    await scope.save_info(agent_id, AgentInfo(agent_id=agent_id, template_id="t", created_at=1))

    asyncio.run(fill_ids())
    asked = ("--tenant", "one", "sessions", "--store", "sqlite:///ids.db", "--prefix")
    assert [one["agentId"] for one in found_by(*asked, "a")["sessions"]] == ["a-2", "a-1"]
    assert found_by(*asked, "one/")["sessions"] == []
    assert found_by(*asked, "b", "--count") == {"count": 1}


def test_sessions_shows_a_line_for_each(store: str) -> None:
    """Into a pipe nothing is cut short; notes go to stderr."""
    out, err = kode("sessions", "--store", store, "--limit", "3")

    header, *lines = out.splitlines()
    assert header.split()[:3] == ["AGENT", "TEMPLATE", "MESSAGES"]
    assert lines[0].split()[:4] == ["agt-3", "odd", "5", "2023-11-17"]
    assert "userId=user-3, trial=3, label=yes" in lines[0]
    assert len(lines) == 3
    assert err == "3 sessions; there are more: --all, --limit or --offset\n"


def test_metadata_that_nests_too_deeply_is_text(store: str) -> None:
    """The value is a text if it cannot be read as JSON; no agent of this store has it."""
    out, err = kode("sessions", "--metadata", f"k={'[' * 50_000}", "--store", store)
    assert (out, err) == ("", "0 sessions\n")


def test_cursor_goes_on_where_the_page_ended(store: str) -> None:
    """``nextCursor`` of the JSON is what ``--cursor`` takes."""
    first = kode_json("sessions", "--store", store, "--limit", "3")
    rest = kode_json("sessions", "--store", store, "--limit", "3", "--cursor", first["nextCursor"])

    assert [session["agentId"] for session in rest["sessions"]] == ["agt-0"]
    assert rest["nextCursor"] is None


def test_messages_shows_a_conversation(store: str) -> None:
    """In order, with calls and results; a terminal gets long texts cut unless --full is given, a pipe never."""
    out, _ = kode("messages", "agt-0", "--store", store)

    places = [out.index(text) for text in ("#0 system", "#1 user", "#2 assistant", "#3 user", "#4 assistant")]
    assert places == sorted(places)
    assert '-> weather(city="Rome", days=3)' in out
    assert "<- sunny" in out
    assert out == kode("messages", "agt-0", "--full", "--store", store)[0]
    assert out.count("Be kind.") == 300
    assert "more characters (--full)" in in_terminal(("messages", "agt-0", "--store", store), 100, "")


def test_messages_of_a_conversation_have_their_times(store: str) -> None:
    """The time at which each was stored, in the text and in the JSON, is the one that queries know."""
    listed = kode_json("messages", "agt-1", "--order", "asc", "--store", store)["messages"]
    times = [message["createdAt"] for message in listed]

    shown = kode_json("messages", "agt-1", "--store", store)["messages"]
    out, _ = kode("messages", "agt-1", "--store", store)

    assert [message["createdAt"] for message in shown] == times
    assert [message["position"] for message in shown] == [0, 1, 2, 3, 4]
    assert f"#1 user  {datetime.fromtimestamp(times[1] // 1000, UTC):%Y-%m-%d %H:%M:%S} UTC\n" in out


def test_messages_are_queried_with_filters(store: str) -> None:
    """Over all agents, or in one."""
    shown = kode_json("messages", "agt-1", "--store", store)
    assert shown["agentId"] == "agt-1"
    assert [message["role"] for message in shown["messages"]] == ["system", "user", "assistant", "user", "assistant"]

    def query(*options: str) -> list[tuple[str, int]]:
        found = found_by("messages", *options, "--store", store)["messages"]
        return [(message["agentId"], message["position"]) for message in found]

    assert query("agt-1", "--role", "user") == [("agt-1", 3), ("agt-1", 1)]
    assert len(query("--content-type", "tool_use")) == 4
    assert len(query("--role", "assistant", "--created-after", "1h", "--all")) == 8
    assert query("--created-before", "1h") == []
    assert len(query("--limit", "7")) == 7
    out, _ = kode("messages", "agt-1", "--role", "user", "--store", store)
    assert "<- sunny" in out and "How is the weather? (1)" in out


def test_tool_calls_are_queried(store: str) -> None:
    """Every filter of the query is an option."""

    def query(*options: str) -> list[tuple[str, str]]:
        found = found_by("tool-calls", *options, "--store", store)["toolCalls"]
        return [(call["agentId"], call["name"]) for call in found]

    assert query("agt-1") == [("agt-1", "book"), ("agt-1", "weather")]
    assert query("--tool", "book", "--limit", "1") == [("agt-3", "book")]
    assert len(query("--state", "COMPLETED")) == 4
    assert {name for _, name in query("--errors")} == {"book"}
    assert {name for _, name in query("--no-errors")} == {"weather"}
    assert {name for _, name in query("--approval")} == {"book"}
    assert {name for _, name in query("--no-approval", "--all")} == {"weather"}
    assert query("--created-before", "2020-01-01") == []
    assert query("--tool", "book", "--tool", "weather", "--tool", "none") == query()
    assert query("--state", "none", "--state", "COMPLETED") == query("--state", "COMPLETED")
    assert found_by("tool-calls", "--count", "--tool", "book", "--store", store) == {
        "count": len(query("--tool", "book"))
    }
    assert kode("tool-calls", "--count", "--store", store)[0] == f"{len(query('--all'))}\n"
    assert found_by("sessions", "--count", "--agent", "agt-1", "--agent", "agt-3", "--store", store) == {"count": 2}
    out, _ = kode("tool-calls", "--errors", "--store", store)
    assert out.count("Error: full") == 4


def test_a_state_in_other_letters_is_noticed(store: str) -> None:
    """Any text may be a state, so that nothing is refused; a note says which one was probably meant."""
    out, err = kode("tool-calls", "--state", "completed", "--count", "--store", store)
    assert out == "0\n"
    assert err == "the state 'completed' is not 'COMPLETED': capitals count; write --state COMPLETED\n"
    assert kode("tool-calls", "--state", "COMPLETED", "--state", "mine", "--count", "--store", store) == ("4\n", "")


@pytest.fixture(scope="module")
def long_ids(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store of two agents whose ids differ at their end, with nested metadata."""
    url = f"sqlite:///{tmp_path_factory.mktemp('long')}/agents.db"

    async def fill_long() -> None:
        async with create_extended_store(url) as store:
            for last in "ab":
                failed = ToolCallRecord(
                    id="c", name="mcp__orders__find_order", state="FAILED", error="there is no order", is_error=True
                )
                await store.save_turn(
                    LONG_ID + last,
                    append=[Message.user("Hello")],
                    tool_calls=[failed],
                    info=AgentInfo(
                        agent_id=LONG_ID + last,
                        template_id="claude-agent",
                        metadata={
                            "summary": {"first": "x" * 600},
                            "items": ["y" * 600],
                            "text": "z" * 600,
                            "small": {"a": 1},
                        },
                    ),
                )

    asyncio.run(fill_long())
    return url


LONG_ID = "claude:-work-a-folder-with-a-long-name:7790ecf4-0000-4000-8000-0123456789"


@pytest.mark.parametrize("columns", [60, 80, 100])
def test_a_narrow_terminal_shortens_ids_and_keeps_states(long_ids: str, columns: int) -> None:
    """The beginning and the end of an id stay; --full and pipes have whole ids, and so does JSON."""
    out = in_terminal(("tool-calls", "--store", long_ids), columns, "")
    lines = out.splitlines()
    assert "STATE" in lines[0] and ("CREATED (UTC)" in lines[0]) == (columns == 100)
    assert [line.split()[0][-4:] for line in lines[1:3]] == ["789b", "789a"]
    assert all(line.startswith("claude:-") and "…" in line and "FAILED" in line for line in lines[1:3])
    assert all(cell_len(line) <= columns for line in lines)
    sessions = in_terminal(("sessions", "--store", long_ids), columns, "").splitlines()
    assert all("claude-agent" in line for line in sessions[1:3]) or columns == 60
    assert all(cell_len(line) <= columns for line in sessions)
    messages = in_terminal(("messages", "--store", long_ids), columns, "").splitlines()
    assert all("Hello" in line and "user" in line for line in messages[1:3])
    full = in_terminal(("tool-calls", "--full", "--store", long_ids), columns, "")
    assert "…" not in full or columns < 100
    assert kode("tool-calls", "--store", long_ids)[0].count(LONG_ID) == 2


def test_metadata_of_a_table_is_short(long_ids: str) -> None:
    """In a terminal long objects, lists and texts are shortened; --full, --json and a pipe have all."""
    shown = in_terminal(("sessions", "--store", long_ids), 400, "").splitlines()[1]
    assert shown.rstrip().endswith(f'summary={{…}}, items=[…], text={"z" * 59}…, small={{"a": 1}}')
    for options in ((), ("--full",)):
        out, _ = kode("sessions", *options, "--store", long_ids)
        assert out.count("x" * 600) == out.count("y" * 600) == out.count("z" * 600) == 2


LONG = "a word and " * 99 + "the end"


@pytest.fixture(scope="module")
def long_texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store in which every text is long."""
    url = f"sqlite:///{tmp_path_factory.mktemp('texts')}/agents.db"

    async def fill_texts() -> None:
        async with create_extended_store(url) as store:
            calls = [
                ToolCallRecord(id="c", name="book", input={"x": LONG}, state="FAILED", error=LONG, is_error=True),
                ToolCallRecord(id="d", name=LONG, input={"x": LONG}),
            ]
            content = [ToolUseBlock(id="c", name="book", input={"x": LONG})]
            said = [Message("system", LONG), Message.user(LONG), Message("assistant", content)]
            said.append(Message("user", [ToolResultBlock("c", LONG, is_error=True)]))
            info = AgentInfo(agent_id="agt", template_id="t", metadata={"text": LONG})
            documents = [PutDocument("notes", "k", {"x": LONG}, tags={"run": "1"})]
            await store.save_turn("agt", messages=said, tool_calls=calls, info=info, documents=documents)
            await store.save_snapshot("agt", Snapshot(id="s", messages=said, metadata={"x": LONG}))
            await store.emit("agt", "done", {"x": LONG})
            other = info.replace(agent_id="other" * 10, metadata={"text": f"{LONG}!"})
            await store.save_turn(other.agent_id, messages=[Message.user(f"{LONG}!")], info=other)
            await store.emit(other.agent_id, "done", {"x": LONG})

    asyncio.run(fill_texts())
    return url


@pytest.mark.parametrize(
    ("arguments", "times"),
    [
        (("sessions",), 2),
        (("show", "agt"), 4),
        (("messages", "agt"), 4),
        (("messages",), 5),
        (("tool-calls",), 3),
        (("documents", "agt", "notes"), 1),
        (("documents", "notes", "--tag", "run=1"), 1),
        (("snapshots", "agt"), 1),
        (("stats",), 1),
        (("events", "agt"), 1),
        (("diff", "agt", "other" * 10), 7),
        (("delete", "--template", "t", "--dry-run"), 2),
    ],
)
def test_a_pipe_gets_whole_texts(long_texts: str, arguments: tuple[str, ...], times: int) -> None:
    """Away from a terminal no command cuts a text, whether it prints a table or a conversation; a terminal cuts it."""
    out, err = kode(*arguments, "--store", long_texts)
    assert out.count("the end") == times
    assert "…" not in out and "--full" not in out + err
    assert in_terminal((*arguments, "--store", long_texts), 120, "").count("the end") < times


def test_groups_are_sorted_by_their_size(store: str) -> None:
    """The largest first, equal ones by their values; --limit takes the first ones. JSON has the mean of durations."""
    url = copy(store)

    async def more() -> None:
        calls = [
            ToolCallRecord(id=f"m{i}", name="zeta", state="COMPLETED", duration_ms=i, created_at=1, updated_at=1)
            for i in range(7)
        ]
        async with create_extended_store(url) as opened:
            await opened.upsert_tool_call_records("agt-0", calls)

    asyncio.run(more())
    asked = ("tool-calls", "--by", "tool_name", "--sort", "count")
    groups = kode_json(*asked, "--durations", "--store", url)["groups"]
    assert [(one["values"]["tool_name"], one["count"]) for one in groups] == [("zeta", 7), ("book", 4), ("weather", 4)]
    assert groups[0]["durations"] == {"count": 7, "totalMs": 21, "maxMs": 6, "meanMs": 3.0}
    out, err = kode(*asked, "--limit", "1", "--store", url)
    assert (out.split(), err) == (["TOOL", "NAME", "COUNT", "zeta", "7"], "1 of 3 groups\n")
    largest = ("--sort", "count", "--limit", "1", "--store", url)
    assert [one["count"] for one in kode_json("messages", "--by", "role", *largest)["groups"]] == [8]
    assert [one["count"] for one in kode_json("sessions", "--by", "template_id", *largest)["groups"]] == [2]


def test_groups_are_counted(store: str) -> None:
    """--by prints a row for each group, with the durations if they are asked for; wrong names say which there are."""
    calls = kode_json("tool-calls", "--all", "--store", store)["toolCalls"]
    by_tool = Counter((call["name"], call["state"]) for call in calls)
    wanted = [{"values": {"tool_name": name, "state": s}, "count": by_tool[name, s]} for name, s in sorted(by_tool)]
    assert kode_json("tool-calls", "--by", "tool_name", "--by", "state", "--store", store) == {"groups": wanted}
    out, err = kode("tool-calls", "--by", "tool_name", "--by", "state", "--durations", "--store", store)
    lines = [re.split(r"  +", line.strip()) for line in out.splitlines()]
    assert lines[0] == ["TOOL NAME", "STATE", "COUNT", "TOTAL (MS)", "MEAN (MS)", "MAX (MS)"]
    assert [line[:3] for line in lines[1:]] == [[name, s, str(by_tool[name, s])] for name, s in sorted(by_tool)]
    assert err == f"{len(by_tool)} group{'' if len(by_tool) == 1 else 's'}\n"
    errors = kode_json("tool-calls", "--errors", "--by", "is_error", "--store", store)["groups"]
    assert errors == [{"values": {"is_error": True}, "count": len([c for c in calls if c.get("isError")])}]
    sessions = kode_json("sessions", "--by", "day", "--utc-offset", "60", "--store", store)["groups"]
    assert sum(one["count"] for one in sessions) == len(kode_json("sessions", "--all", "--store", store)["sessions"])
    roles = kode_json("messages", "agt-1", "--by", "role", "--store", store)["groups"]
    assert sum(one["count"] for one in roles) == len(kode_json("messages", "agt-1", "--store", store)["messages"])
    wrong: tuple[tuple[tuple[str, ...], str], ...] = (
        (("tool-calls", "--by", "tool"), "tool_calls cannot be grouped by 'tool'; did you mean 'tool_name'?"),
        (("sessions", "--utc-offset", "60"), "by names nothing"),
        (("messages", "--by", "day", "--limit", "3"), "takes no limit"),
        (("messages", "--sort", "count"), "by names nothing"),
        (("messages", "--by", "day", "--sort", "size"), "--sort must be count, got 'size'"),
        (("messages", "--by", "day", "--sort", "count", "-n", "-1"), "--limit must not be negative, got -1"),
        (
            ("tool-calls", "--by", "tool_name, is_error"),
            "--by takes one name, and is repeated for more: --by tool_name --by is_error",
        ),
    )
    for command, message in wrong:
        assert message in kode(*command, "--store", store, code=2)[1]


def test_stats_counts_one_agent(store: str) -> None:
    """By tool and by state, states as stored."""
    assert kode_json("stats", "agt-0", "--store", store) == {
        "agentId": "agt-0",
        "totalMessages": 5,
        "totalToolCalls": 2,
        "totalSnapshots": 1,
        "totalDocuments": 0,
        "toolCallsByName": {"book": 1, "weather": 1},
        "toolCallsByState": {"COMPLETED": 1, "FAILED": 1},
    }
    out, _ = kode("stats", "agt-0", "--store", store)
    assert out.startswith("agt-0: 5 messages, 2 tool calls, 1 snapshot, 0 documents\n")


def test_stats_without_an_agent_count_the_store(store: str) -> None:
    """All agents together, and the size of the database."""
    size = kode_json("stats", "--store", store)
    assert size.pop("dbSizeBytes") > 4096
    no_index = {"textsHidden": False, "textsOfDeleted": False}
    assert size == {"totalAgents": 4, "totalMessages": 20, "totalToolCalls": 8, **no_index}
    out, _ = kode("stats", "--store", store)
    assert out.startswith("4 agents, 20 messages, 8 tool calls, 0.")


# --- Documents --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store with documents in two collections, and hostile ones in a third. Tests only read it."""
    url = f"json:///{tmp_path_factory.mktemp('documents')}/store"

    async def fill() -> None:
        async with create_extended_store(url) as store:
            await store.put_document("agt-0", "notes", "none", None)
            puts = [PutDocument("notes", f"2025-{day:03}", {"day": day, "text": "long " * 100}) for day in range(250)]
            await store.write_documents("agt-0", [*puts, PutDocument("other", "2025-000", [1.0, "é"])])
            hostile = [PutDocument("hostile", key, {key: "\x1b]0;title\x07[/red]\ud83d\u202e"}) for key in HOSTILE]
            await store.write_documents("agt-0", hostile)

    asyncio.run(fill())
    return url


def test_documents_are_listed_in_the_order_of_their_keys(documents: str) -> None:
    """By prefix, in ranges, in reverse, in pages, all of them, and with null as a value."""

    def query(*options: str) -> Any:
        return found_by("documents", "agt-0", "notes", *options, "--store", documents)

    def keys(*options: str) -> list[str]:
        return [document["key"] for document in query(*options)["documents"]]

    (found,) = query("--prefix", "n")["documents"]
    assert (found["collection"], found["key"], found["value"]) == ("notes", "none", None)
    assert len(found["version"]) == 32 and found["updatedAt"] > 1_700_000_000_000
    assert keys("--start", "2025-007", "--stop", "2025-010") == ["2025-007", "2025-008", "2025-009"]
    assert keys("--reverse", "--limit", "2") == ["none", "2025-249"]
    first = query()
    assert len(first["documents"]) == 100
    second = query("--cursor", first["nextCursor"])
    assert second["documents"][0]["key"] == "2025-100"
    assert len(keys("--all")) == 251
    assert query("--prefix", "zzz") == {"documents": [], "nextCursor": None}


def test_documents_are_found_by_tag(tmp_path: Path) -> None:
    """Documents of all agents, or of one, with all of the tags and any of the values of one; wrong ones are refused."""
    url = f"json:///{tmp_path}/store"

    async def fill() -> None:
        async with create_extended_store(url) as store:
            for i, agent_id in enumerate(("a", "b", "c")):
                await store.put_document(agent_id, "notes", "k", i, tags={"run": f"r{i}", "state": "done"})

    asyncio.run(fill())

    def query(*options: str) -> Any:
        return found_by("documents", *options, "--store", url)

    (found,) = query("notes", "--tag", "run=r1")["documents"]
    assert (found["agentId"], found["value"], found["tags"]) == ("b", 1, {"run": "r1", "state": "done"})
    several = query("notes", "--tag", "run=r0", "--tag", "run=r2", "--tag", "state=done", "--reverse")["documents"]
    assert [one["agentId"] for one in several] == ["c", "a"]
    assert query("b", "notes", "--tag", "run=r0")["documents"] == []
    first = query("notes", "--tag", "state=done", "--limit", "2")
    second = query("notes", "--tag", "state=done", "--limit", "2", "--cursor", first["nextCursor"])
    assert [one["agentId"] for one in (*first["documents"], *second["documents"])] == ["a", "b", "c"]
    out, err = kode("documents", "notes", "--tag", "state=done", "--store", url)
    assert "run=r2, state=done" in out and err == "3 documents\n"
    for wrong in (("--tag", "run"), ("--tag", "run=r1", "--prefix", "k"), ("--tag", "=x")):
        assert kode("documents", "notes", *wrong, "--store", url, code=2)


def test_documents_are_shown_as_a_table(documents: str) -> None:
    """A line for each, its value whole away from a terminal; the last line says how to see the others."""
    out, err = kode("documents", "agt-0", "notes", "-n", "3", "--prefix", "2025-1", "--store", documents)

    head, *lines = out.splitlines()
    assert head.split("  ")[0] == "KEY"
    assert [line.split()[0] for line in lines] == ["2025-100", "2025-101", "2025-102"]
    assert lines[0].rstrip().endswith('{"day": 100, "text": "' + "long " * 100 + '"}')
    assert err == "3 documents; there are more: --all, --limit or --cursor\n"
    assert kode("documents", "agt-0", "empty", "--store", documents) == ("", "0 documents\n")
    out, _ = kode("stats", "agt-0", "--store", documents)
    assert out == f"agt-0: 0 messages, 0 tool calls, 0 snapshots, {252 + len(HOSTILE)} documents\n"


def test_hostile_documents_are_shown_escaped_and_exact_in_json(documents: str) -> None:
    """Keys and values alike."""
    out, _ = kode("documents", "agt-0", "hostile", "--store", documents)

    assert not [c for c in out if c != "\n" and (ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or 0x202A <= ord(c) <= 0x202E)]
    assert sum(line.startswith("new\\nline") for line in out.splitlines()) == 1
    found = kode_json("documents", "agt-0", "hostile", "--store", documents)["documents"]
    assert {document["key"] for document in found} == set(HOSTILE)
    assert all(document["value"] == {document["key"]: "\x1b]0;title\x07[/red]\ud83d\u202e"} for document in found)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("agt-0",), "error: give a collection, as in: kode documents AGENT COLLECTION"),
        (("agt-0", "a/b"), "error: collection must be 1 to 64 of the characters"),
        (("agt-0", "notes", "--all", "--limit", "5"), "error: --all lists every document"),
        (("agt-0", "notes", "--limit", "10001"), "error: limit is from 0 to 10000"),
        (("agt-0", "notes", "--cursor", "x"), "error: this is no cursor that a store gave"),
        (("agt-0", "notes", "--prefix", "x" * 401), "error: prefix must be at most 400 bytes"),
        (("nobody", "notes"), "error: no agent 'nobody' in this store"),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else "",
)
def test_mistakes_with_documents_are_one_line(documents: str, arguments: tuple[str, ...], problem: str) -> None:
    """One line that says what to give, and exit code 2."""
    out, err = kode("documents", *arguments, "--store", documents, code=2)

    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(problem)


def test_a_damaged_document_is_named(tmp_path: Path) -> None:
    """The others are listed."""
    url = f"json:///{tmp_path}/store"

    async def fill() -> None:
        async with create_extended_store(url) as store:
            await store.write_documents("agt-0", [PutDocument("c", key, f"value-{key}") for key in "abc"])

    asyncio.run(fill())
    (file,) = [path for path in (tmp_path / "store").rglob("*") if path.is_file() and b"value-b" in path.read_bytes()]
    file.write_bytes(file.read_bytes().replace(b"value-b", b"value-\xff"))

    out, err = kode("documents", "agt-0", "c", "--store", url)

    assert "value-a" in out and "value-c" in out
    assert "document 'c/b' of agent 'agt-0' cannot be read" in err


# --- Events -----------------------------------------------------------------------------------------------------------


def test_events_are_filtered(store: str) -> None:
    """By seq, by offset and by channel."""

    def seqs(*options: str) -> list[int]:
        found = found_by("events", "agt-0", *options, "--store", store)
        assert found["agentId"] == "agt-0"
        return [entry["bookmark"]["seq"] for entry in found["events"]]

    assert seqs() == [0, 1, 2]
    assert seqs("--since", "0") == [1, 2]
    assert seqs("--channel", "monitor") == [1]
    offsets = [entry["offset"] for entry in kode_json("events", "agt-0", "--store", store)["events"]]
    assert seqs("--after-offset", str(offsets[1])) == [2]
    assert seqs("--since", "99") == []
    out, err = kode("events", "agt-0", "--store", store)
    assert len(out.splitlines()) == 3
    assert 'text="hello"' in out
    assert err == "3 events\n"


@pytest.mark.parametrize(("columns", "times"), [(60, 0), (120, 3)])
def test_events_of_a_narrow_terminal_show_their_data(store: str, columns: int, times: int) -> None:
    """The data is worth more than the time, which a narrow terminal leaves out."""
    out = in_terminal(("events", "agt-0", "--store", store), columns, "")

    assert out.count('text="hello"') == 3
    assert out.count("2023-11-14 22:13:20") == times


def test_the_processes_of_tests_heed_ctrl_c() -> None:
    """Also in the background of a script, whose jobs ignore it: else they would stay when a test interrupts them."""
    shown = "import conftest, signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    ignoring = (
        f"import signal, os; signal.signal(2, signal.SIG_IGN); os.execl({sys.executable!r}, 'x', '-c', {shown!r})"
    )
    root = str(Path(__file__).parents[1])
    done = subprocess.run((sys.executable, "-c", ignoring), cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_follow_says_that_it_waits_for_an_agent(store: str) -> None:
    """An agent of which nothing is stored may be a typing mistake, or may come yet."""
    command = (*KODE, "events", "nope", "--follow", "--json", "--store", store)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as follower:
        try:
            assert follower.stderr is not None
            notice = follower.stderr.readline()
            follower.send_signal(signal.SIGINT)
            out, _ = follower.communicate(timeout=30)
        finally:
            follower.kill()

    assert notice == "nothing is stored of agent 'nope' yet; waiting for its first event, until Ctrl-C\n"
    assert out == ""


def test_follow_ends_when_the_agent_is_deleted(store: str) -> None:
    """A note says so, on stderr, and the exit code is 0; another process deleted it."""
    url = copy(store)
    command = (*KODE, "events", "agt-0", "--follow", "--json", "--store", url)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as follower:
        try:
            assert follower.stdout is not None
            assert json.loads(follower.stdout.readline())["offset"]
            kode("delete", "agt-0", "--yes", "--store", url)
            _, err = follower.communicate(timeout=30)
        finally:
            follower.kill()
    assert (follower.returncode, err) == (0, "agent 'agt-0' was deleted\n")


def test_follow_gets_what_another_process_appends(store: str) -> None:
    """As JSON Lines, at once; Ctrl-C ends it without a word."""
    url = copy(store)
    follower = subprocess.Popen(
        (*KODE, "events", "agt-0", "--follow", "--json", "--store", url, "--since", "1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert follower.stdout is not None
        assert json.loads(follower.stdout.readline())["bookmark"]["seq"] == 2

        async def append() -> None:
            async with create_extended_store(url) as opened:
                await opened.append_event("agt-0", event(7, "from elsewhere"))

        asyncio.run(append())
        received = json.loads(follower.stdout.readline())
        assert received["event"]["text"] == "from elsewhere"
        follower.send_signal(signal.SIGINT)
        out, err = follower.communicate(timeout=30)
    finally:
        follower.kill()
        follower.wait()
    assert (follower.returncode, out, err) == (130, b"", b"")


# --- Output that stays safe -------------------------------------------------------------------------------------------


async def fill_hostile(url: str) -> None:
    """Every id and every value that the conformance suite knows to be nasty, except for the large ones."""
    async with create_extended_store(url) as store:
        for agent_id in HOSTILE:
            await store.save_turn(
                agent_id,
                messages=[Message("ro\x1ble", (*Message.user(f"\x1b[2J[red]{agent_id}").content,))],
                tool_calls=[ToolCallRecord(id="c\x07", name="t\r\n[x]", state="\x1b[1m", error="[/]\ud800")],
                info=AgentInfo(agent_id=agent_id, template_id="\x1b]0;title\x07[i]", metadata={"k\n": "[/red]\ud83d"}),
                events=[Timeline(0, Bookmark(0, 10**18), AgentEvent("progress", "ty\npe[u]", {"x": "\ud800"}))],
            )
        for payload in PAYLOADS:
            value = payload.value
            if payload.is_json and len(json.dumps(value)) < 100_000:
                await store.append_messages("payloads", [Message.assistant("", ToolUseBlock("c", "t", value))])
                record = ToolCallRecord(
                    id=payload.name, name="t", input=value, result=value, created_at=1, updated_at=1
                )
                await store.upsert_tool_call_records("payloads", [record])
        await store.save_info("payloads", AgentInfo(agent_id="payloads", template_id="t"))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = f"sqlite:///{tmp_path_factory.mktemp('hostile')}/agents.db"
    asyncio.run(fill_hostile(url))
    return url


READING = (
    ("sessions",),
    ("messages", "--all"),
    ("messages", "payloads", "--full"),
    ("messages", "new\nline"),
    ("tool-calls", "--all"),
    ("stats", "new\nline"),
    ("events", "new\nline"),
    ("doctor",),
)


@pytest.mark.parametrize("arguments", READING, ids=lambda arguments: arguments[0])
def test_hostile_values_are_shown_escaped(hostile: str, arguments: tuple[str, ...]) -> None:
    """No control character, no markup, no crash; into a pipe every id is whole, on a line of its own."""
    code = 1 if arguments == ("doctor",) else 0
    out, _ = kode(*arguments, "--store", hostile, code=code)

    assert not [
        c for c in out if c not in "\n\t" and (ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or 0x202A <= ord(c) <= 0x202E)
    ]
    if arguments in {("sessions",), ("tool-calls", "--all")}:
        for shown in ("[bold]b[/bold]", "new\\nline", "\\x1b[31mred\\x1b[0m", "rtl \\u202e abc", "x" * 200):
            assert sum(line.startswith(shown) for line in out.splitlines()) == 1


def test_terminal_without_unicode_shows_escapes(hostile: str) -> None:
    """What it cannot show is escaped."""
    out, _ = kode("sessions", "--store", hostile, env={"PYTHONIOENCODING": "ascii"})

    assert out.isascii()
    assert ":smile: \\U0001f642" in out


@pytest.mark.parametrize("arguments", READING, ids=lambda arguments: arguments[0])
def test_hostile_values_are_exact_in_json(hostile: str, arguments: tuple[str, ...]) -> None:
    """JSON says what is stored."""
    code = 1 if arguments == ("doctor",) else 0
    out, _ = kode(*arguments, "--json", "--store", hostile, code=code)

    found = json.loads(out)
    if arguments == ("sessions",):
        assert {session["agentId"] for session in found["sessions"]} == {*HOSTILE, "payloads"}
        assert {session["metadata"].get("k\n") for session in found["sessions"]} == {"[/red]\ud83d", None}


@pytest.mark.parametrize("columns", [40, 80, 140])
def test_terminal_of_any_width_shows_whole_ids(hostile: str, columns: int) -> None:
    """With --full, a narrow one folds them; nothing else gets longer than the terminal."""
    out = in_terminal(("sessions", "--full", "--store", hostile), columns, "").replace("\r\n", "\n")

    assert all(cell_len(line) <= columns for line in out.splitlines())
    parts = [line.split("  ")[0].strip() for line in out.splitlines()]
    assert sum(len(part) for part in parts if set(part) == {"x"}) == 200
    assert "\\x1b[31mred\\x1b[0m" in "".join(parts)


def in_terminal(arguments: tuple[str, ...], columns: int, typed: str, code: int = 0) -> str:
    """What the command writes to a terminal of that width, without colours, when a person types *typed*."""
    controller, terminal = pty.openpty()
    env = {**os.environ, "COLUMNS": str(columns), "NO_COLOR": "1", "TERM": "dumb"}
    process = subprocess.Popen((*KODE, *arguments), stdin=terminal, stdout=terminal, stderr=terminal, env=env)
    os.close(terminal)
    os.write(controller, typed.encode())
    written = b""
    while True:
        try:
            chunk = os.read(controller, 65536)
        except OSError:  # Linux says EIO when the other side is closed
            break
        if not chunk:
            break
        written += chunk
    os.close(controller)
    assert process.wait(timeout=30) == code, written
    return written.decode()


def test_closed_pipe_is_no_error(store: str) -> None:
    """As with ``| head -1``: whoever reads may stop."""
    url = copy(store)

    async def add() -> None:
        async with create_extended_store(url) as opened:
            await opened.append_events("agt-0", [event(seq, "x" * 500) for seq in range(10, 1000)])

    asyncio.run(add())
    for arguments in (("events", "agt-0"), ("events", "agt-0", "--json"), ("messages", "agt-0", "--full")):
        process = subprocess.Popen(
            (*KODE, *arguments, "--store", url), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        err = process.stderr.read()
        process.stderr.close()
        process.wait(timeout=30)
        assert "Traceback" not in err and "BrokenPipe" not in err, err


def test_all_documents_but_the_damaged_ones() -> None:
    """--all lists every document of a large collection, and names on stderr those that cannot be read."""

    async def put() -> None:
        async with create_extended_store("sqlite:///many.db", durability="fast") as store:
            for start in range(0, 12_000, 4_000):
                puts = [PutDocument("c", f"{i:05}", i) for i in range(start, start + 4_000)]
                await store.write_documents("a", puts)

    asyncio.run(put())
    with closing(sqlite3.connect("many.db")) as db:
        db.execute("UPDATE kode_docs SET body = '7' WHERE key IN ('c/00003', 'c/11000')")
        db.commit()
    out, err = kode("documents", "a", "c", "--all", "--json", "--store", "sqlite:///many.db")
    assert [found["value"] for found in json.loads(out)["documents"]] == [
        i for i in range(12_000) if i not in (3, 11_000)
    ]
    assert [line.partition(" of ")[0] for line in err.splitlines()] == ["document 'c/00003'", "document 'c/11000'"]
    assert json.loads(out)["leftOut"] == ["document 'c/00003' of agent 'a'", "document 'c/11000' of agent 'a'"]


def test_damaged_messages_are_named() -> None:
    """A list of messages of many agents names those that it leaves out (QRY-9), as text and as JSON."""

    async def save() -> None:
        async with create_extended_store("sqlite:///damaged.db", durability="fast") as store:
            await store.save_messages("a", [Message.user("one"), Message.user("two")])

    asyncio.run(save())
    with closing(sqlite3.connect("damaged.db")) as db:
        db.execute("UPDATE kode_messages SET body = '7' WHERE position = 1")
        db.commit()
    out, err = kode("messages", "--role", "user", "--json", "--store", "sqlite:///damaged.db")
    found = json.loads(out)
    assert [message["position"] for message in found["messages"]] == [0]
    assert found["leftOut"] == ["message 1 of agent 'a'"]
    assert "message 1 of agent 'a' cannot be read; kode doctor says more" in err
    out, err = kode("messages", "--role", "user", "--store", "sqlite:///damaged.db")
    assert "one" in out and "message 1 of agent 'a' cannot be read" in err


# --- Changing ---------------------------------------------------------------------------------------------------------

CHATS = """{"id": "one", "messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]}
{"id": "two", "messages": [{"role": "robot", "content": "Hello"}]}
{"id": "three", "reward": 1.0, "messages": [{"role": "user", "content": "Bye"}]}
"""


def test_an_import_prints_some_of_many_bad_conversations() -> None:
    """A file of another kind has a million of them."""
    Path("chats.jsonl").write_text(CHATS + '{"messages": [{"role": "robot", "content": "Hello"}]}\n' * 1_000)
    out, err = kode("import", "chats.jsonl", "--dry-run", code=1)
    assert out.splitlines()[1] == "left out 1,001 conversations, of which the first 20 are above"
    assert err.count("error: chats.jsonl: conversation ") == err.count("\n") == 20


def test_import_goes_on_behind_a_bad_conversation() -> None:
    """It is reported, the others are stored, and the exit code is 1; a second time nothing is written."""
    Path("chats.jsonl").write_text(CHATS)
    store = ("--store", "sqlite:///new/chats.db")
    out, err = kode("import", "chats.jsonl", "--dry-run", *store, code=1)
    assert out.splitlines() == [
        "would import 2 agents, 3 messages, 0 tool calls (0 failed), 4 events",
        "left out 1 conversation, see above",
    ]
    assert "conversation 2: message 0" in err and not Path("new").exists()
    for told in (
        "imported 2 agents, 3 messages, 0 tool calls (0 failed), 4 events",
        "imported 0 agents, 0 messages, 0 tool calls (0 failed), 0 events; 2 agents were there already",
    ):
        out, err = kode("import", "chats.jsonl", "--template", "support", "--store", "sqlite:///new/chats.db", code=1)

        assert out.splitlines() == [told, "left out 1 conversation, see above"]
        assert err.startswith("error: chats.jsonl: conversation 2: message 0: role 'robot' is none of")
        assert err.count("\n") == 1
    sessions = kode_json("sessions", "--store", "sqlite:///new/chats.db")["sessions"]
    assert {(session["agentId"], session["templateId"]) for session in sessions} == {
        ("one", "support"),
        ("three", "support"),
    }
    assert len(kode_json("events", "one", "--store", "sqlite:///new/chats.db")["events"]) == 3


def test_import_does_not_overwrite_what_changed() -> None:
    """An agent that is there and differs is left alone, unless it is to be replaced."""
    Path("chat.jsonl").write_text('{"id": "one", "messages": [{"role": "user", "content": "Hello"}]}')
    kode("import", "chat.jsonl", "--store", "sqlite:///a.db")

    async def go_on() -> None:
        async with create_extended_store("sqlite:///a.db") as store:
            await store.append_messages("one", [Message.user("and then")])

    asyncio.run(go_on())
    _, err = kode("import", "chat.jsonl", "--store", "sqlite:///a.db", code=1)
    assert "agent 'one' is there already and differs; overwrite it with replace" in err
    assert len(kode_json("messages", "one", "--store", "sqlite:///a.db")["messages"]) == 2
    kode("import", "chat.jsonl", "--store", "sqlite:///a.db", "--replace")
    assert len(kode_json("messages", "one", "--store", "sqlite:///a.db")["messages"]) == 1


def test_looking_at_what_is_no_store_changes_nothing() -> None:
    """A database of somebody else's, an empty file and a folder stay as they are."""
    with closing(sqlite3.connect("theirs.db")) as db:
        db.execute("CREATE TABLE t (x)")
    Path("empty.db").touch()
    Path("folder").mkdir()
    before = Path("theirs.db").read_bytes()
    for url in ("sqlite:///theirs.db", "sqlite:///empty.db", "json:///folder"):
        _, err = kode("sessions", "--store", url, code=2)
        assert "store of kode, and this command does not create one" in err
    assert Path("theirs.db").read_bytes() == before
    assert Path("empty.db").stat().st_size == 0
    assert list(Path("folder").iterdir()) == []


def test_import_of_the_recorded_runs() -> None:
    """What the command says is what the file holds."""
    runs = Path(__file__).parent.parent / "docs" / "examples" / "tau-airline" / "gpt-4o-airline.json.gz"

    out, err = kode("import", str(runs), "--prefix", "tau", "--store", "sqlite:///runs.db", "--format", "openai-chat")

    assert out == "imported 200 agents, 5,308 messages, 1,164 tool calls (73 failed), 6,362 events\n"
    assert err == ""
    assert len(kode_json("tool-calls", "--errors", "--store", "sqlite:///runs.db")["toolCalls"]) == 73


def test_import_of_what_cannot_be_read_makes_no_store() -> None:
    """The file is looked at first."""
    Path("empty.json").write_text("[]")
    _, err = kode("import", "empty.json", "--store", "sqlite:///new.db", code=2)

    assert err == "error: there is no conversation in empty.json\n"
    assert not Path("new.db").exists()


def agents(url: str) -> set[str]:
    return {session["agentId"] for session in kode_json("sessions", "--store", url)["sessions"]}


def test_delete_shows_and_deletes(store: str) -> None:
    """Named agents, or those that match; --dry-run deletes nothing."""
    url = copy(store)
    out, err = kode("delete", "agt-0", "--dry-run", "--store", url)
    assert "agt-0" in out and err == "1 agent would be deleted\n"
    assert len(agents(url)) == 4

    assert kode("delete", "agt-0", "agt-1", "--yes", "--store", url)[1] == "2 agents deleted\n"
    assert agents(url) == {"agt-2", "agt-3"}
    assert kode("delete", "--older-than", "90d", "--yes", "--store", url)[1] == "nothing to delete\n"
    time.sleep(1.1)  # so that they are older than a second
    out, err = kode("delete", "--older-than", "1s", "--template", "odd", "--yes", "--store", url)
    assert "agt-3" in out and err == "1 agent deleted\n"
    assert agents(url) == {"agt-2"}
    kode("delete", "--metadata", "trial=2", "--user", "user-2", "-y", "--store", url)
    assert agents(url) == set()


async def with_history(url: str) -> list[int]:
    """Give an agent 50 events, of which the last by seq is the fourth, and five snapshots; returns the offsets."""
    async with create_extended_store(url) as opened:
        for i in range(5):
            await opened.save_snapshot("agt-0", Snapshot(id=f"s{i}", created_at=i))
        entries = [Timeline(i, Bookmark(900 if i == 3 else i, 10 * i), AgentEvent("monitor", "x")) for i in range(50)]
        return list(await opened.append_events("no-info", entries))


def test_prune_counts_and_removes(store: str) -> None:
    """--dry-run counts what a prune removes then, the kept event left out; several agents, as text and as JSON."""
    url = copy(store)
    offsets = asyncio.run(with_history(url))
    events = ("no-info", "--events-before-offset", str(offsets[20]), "--store", url)
    out, err = kode("prune", *events, "--dry-run")
    assert (out, err) == ("no-info: 19 events\n", "19 records would be removed\n")
    both = (
        "agt-0",
        "no-info",
        "--events-before",
        "1970-01-01T00:00:00.100+00:00",
        "--keep-snapshots",
        "2",
        "--store",
        url,
    )
    counted = kode_json("prune", *both, "--dry-run")["agents"]
    assert [(one["agentId"], one["events"], one["snapshots"]) for one in counted][1] == ("no-info", 9, 0)
    assert kode_json("prune", *both, "--yes")["agents"] == counted
    assert kode("prune", *both, "--yes")[1] == "0 records removed\n"
    assert kode("prune", *events, "--yes") == ("no-info: 10 events\n", "10 records removed\n")
    snapshots = ("agt-0", "--keep-snapshots", "0", "--store", url)
    assert kode("prune", *snapshots, "--yes")[1] == "2 records removed\n"


def test_prune_goes_on_behind_a_damaged_agent(tmp_path: Path) -> None:
    """The damaged agent is named, the others are pruned and counted, and the command fails."""
    url = f"json:///{tmp_path}/j"

    async def fill() -> None:
        async with create_extended_store(url) as opened:
            for agent_id in "abc":
                for i in range(3):
                    await opened.save_snapshot(agent_id, Snapshot(id=f"s{i}", created_at=i))

    asyncio.run(fill())
    (file,) = (tmp_path / "j").glob("b*.jsonl")
    file.write_bytes(b"x" * 40 + file.read_bytes()[40:])
    arguments = ("prune", "a", "b", "c", "--keep-snapshots", "1", "--store", url)
    out, err = kode(*arguments, "--dry-run", code=1)
    assert out == "a: 2 snapshots\nc: 2 snapshots\n"
    assert err.startswith("4 records would be removed\nerror: b: ") and "'b'" in err
    out, err = kode(*arguments, "--yes", "--json", code=1)
    found = json.loads(out)
    assert [(one["agentId"], one["snapshots"]) for one in found["agents"]] == [("a", 2), ("c", 2)]
    assert [one["agentId"] for one in found["failed"]] == ["b"]
    assert err.startswith("error: b: ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("agt-0",), "error: say what to remove"),
        (("nobody", "--keep-snapshots", "1", "--yes"), "error: no agent 'nobody'"),
        (("agt-0", "--keep-snapshots", "1"), "error: stdin is not a terminal"),
    ],
)
def test_prune_refuses(store: str, arguments: tuple[str, ...], said: str) -> None:
    """A prune of nothing or of nobody, and one that cannot ask."""
    done = subprocess.run(
        [sys.executable, "-m", "kode_core.cli", "prune", *arguments, "--store", store],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode > 0 and done.stderr.startswith(said)


def test_delete_asks_a_person(store: str) -> None:
    """And takes nothing but yes for an answer."""
    url = copy(store)
    _, err = kode("delete", "agt-0", "--store", url, code=2, stdin="y\n")
    said = "stdin is not a terminal, so the command cannot ask: give --yes to delete, or --dry-run to look"
    assert err == f"error: {said}\n"

    assert "Aborted" in in_terminal(("delete", "agt-0", "--store", url), 80, "n\n", code=1)
    assert len(agents(url)) == 4
    asked = in_terminal(("delete", "agt-0", "--store", url), 80, "y\n")
    assert "Delete 1 agent with everything that belongs to them?" in asked
    assert agents(url) == {"agt-1", "agt-2", "agt-3"}


def test_delete_takes_records_without_info() -> None:
    """An agent whose info was never saved can go, too."""

    async def save() -> None:
        async with create_extended_store("sqlite:///half.db") as opened:
            await opened.save_messages("half", [Message.user("x")])

    asyncio.run(save())
    out, _ = kode("delete", "half", "--yes", "--store", "sqlite:///half.db")

    assert out == "half (has records, but no info)\n"
    assert "no agent 'half'" in kode("delete", "half", "--yes", "--store", "sqlite:///half.db", code=2)[1]


def test_records_without_info_are_known() -> None:
    """An agent of which only todos are stored is no unknown one; it has nothing of the kind that is asked for."""
    url = "sqlite:///half.db"

    async def save() -> None:
        async with create_extended_store(url) as opened:
            await opened.save_todos("half", TodoSnapshot(todos=[], version=1, updated_at=0))

    asyncio.run(save())
    for command in ("messages", "tool-calls", "events", "snapshots"):
        assert kode(command, "half", "--json", "--store", url)[0].startswith("{")
    assert kode_json("messages", "half", "--count", "--store", url) == {"count": 0}
    assert kode_json("sessions", "--agent", "half", "--store", url)["sessions"] == []
    assert "1 agent checked" in kode("doctor", "--agent", "half", "--store", url)[0]
    assert kode("export", "half.jsonl", "--agent", "half", "--store", url)[0].startswith("exported 1 agent")
    kode("prune", "half", "--keep-snapshots", "1", "--yes", "--store", url)
    assert kode("delete", "half", "--yes", "--store", url)[0] == "half (has records, but no info)\n"


def test_backup_is_a_store(store: str) -> None:
    """It names what it made; a target that is there is refused."""
    out, _ = kode("backup", "saved.db", "--store", store)

    assert [Path(line).name for line in out.splitlines()] == ["saved.db"]
    assert agents("sqlite:///saved.db") == {"agt-0", "agt-1", "agt-2", "agt-3"}
    assert kode("backup", "saved.db", "--store", store, code=2)[1].startswith("error: ")


def test_a_place_below_a_file(store: str) -> None:
    """The error of a backup and of an export says what is wrong with the path."""
    Path("plain").touch()
    for command in ("backup", "export"):
        _, err = kode(command, "plain/x", "--store", store, code=2)
        assert "a part of the path is a file, and not a folder" in err


def test_an_interrupted_backup_leaves_nothing() -> None:
    """Ctrl-C ends it without a word, and no part of the copy stays."""
    asyncio.run(fill("sqlite:///large.db"))
    with closing(sqlite3.connect("large.db")) as db:
        db.execute("CREATE TABLE ballast AS SELECT randomblob(200000000) AS b")
        db.commit()
    before = sorted(os.listdir())
    command = (*KODE, "backup", "--store", "sqlite:///large.db", "copies/copy.db")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        deadline = time.monotonic() + 30
        while not list(Path("copies").glob(".*.part")) and time.monotonic() < deadline:
            time.sleep(0.005)
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=60)
    assert (running.returncode, err) == (130, b"")
    assert sorted(os.listdir()) == before


# --- Streams that are closed or full ----------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
@pytest.mark.parametrize("arguments", [("sessions",), ("sessions", "--json"), ("stats",), ("--version",), ("--help",)])
@pytest.mark.parametrize(("streams", "code"), [(">/dev/full", 2), (">&-", 0), ("2>&-", 0), (">&- 2>&-", 0)])
def test_output_that_cannot_be_written(store: str, arguments: tuple[str, ...], streams: str, code: int) -> None:
    """A device that is full, is an error in one line, and a stream that is closed is none; no traceback ever."""
    command = f"exec {shlex.join((*KODE, *arguments))} {streams}"
    done = subprocess.run(
        ("/bin/sh", "-c", command),
        capture_output=True,
        text=True,
        env={**os.environ, "KODE_STORE_URL": store},
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert ("error: the output cannot be written" in done.stderr) == (bool(code) and "2>&-" not in streams)


def test_seconds_are_no_milliseconds(store: str) -> None:
    """A number that can only be meant as seconds deletes nothing."""
    _, err = kode("delete", "--older-than", "1735689600", "--store", store, "--yes", code=2)
    assert "looks like seconds" in err
    assert "1735689600000" in err
    kode("delete", "--older-than", "1735689600000", "--store", store, "--dry-run")


@pytest.mark.parametrize(("command", "owner"), [("conformance", "kode-conformance"), ("chat", "kode-agent")])
def test_a_command_of_others_names_its_distribution(command: str, owner: str) -> None:
    """Where kode-conformance or kode-agent is not installed, its commands say what to install."""
    script = "import kode_core.cli.app as a; a.entry_points = lambda **_: (); a.run()"
    done = subprocess.run((sys.executable, "-c", script, command), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    wanted = f"kode {command} comes with {owner}, which is not installed here: pip install {owner}"
    assert wanted in done.stderr
    assert "No such command" not in done.stderr
