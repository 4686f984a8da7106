"""The views of ``kode`` for a glance: show, diff, stats, events of all agents, times, and completion."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.cells import cell_len

from kode_core import (
    AgentEvent,
    AgentInfo,
    Message,
    ReasoningBlock,
    Snapshot,
    TextBlock,
    ToolCallRecord,
    ToolResultBlock,
    ToolUseBlock,
    create_extended_store,
)
from kode_core.cli.app import app
from kode_core.cli.overview import bar, sparkline
from kode_core.cli.times import read_time, set_local
from kode_core.model import now_ms
from tests.test_cli import DAY_MS, HOSTILE, KODE, in_terminal, kode, kode_json

HOSTILE_TEXT = "\x1b]0;title\x07\x1b[31mred\x9b2J\u202eabc\r\nnext\u2028"
FORBIDDEN = ("\x1b]", "\x1b[31m", "\x07", "\x9b", "\u202e", "\u2028")


def conversation() -> list[Message]:
    long = "a long text. " * 200
    return [
        Message("system", [TextBlock("rule one\nrule two\n" * 20)]),
        Message.user("What is the weather?"),
        Message("assistant", [
            ReasoningBlock("think\n" * 10), TextBlock("Let me look."),
            ToolUseBlock(id="c1", name="weather", input={"city": "Rome"}),
            ToolUseBlock(id="c2", name="book", input={"note": long}),
        ]),
        Message("user", [
            ToolResultBlock(tool_use_id="c1", content="21 C"),
            ToolResultBlock(tool_use_id="c2", content="no seat", is_error=True),
        ]),
        Message("assistant", [ToolUseBlock(id=i, name=name, input={}) for i, name in (("c3", "pay"), ("c4", "drop"))]),
        Message("assistant", [TextBlock(long)]),
        Message("user", [ToolResultBlock(tool_use_id="elsewhere", content="orphan")]),
    ]  # fmt: skip


def calls() -> list[ToolCallRecord]:
    return [
        ToolCallRecord(id="c1", name="weather", state="COMPLETED", result="21 C", duration_ms=12),
        ToolCallRecord(id="c2", name="book", state="FAILED", is_error=True, error="no seat", duration_ms=30),
        ToolCallRecord(id="c3", name="pay", state="APPROVAL_REQUIRED"),
        ToolCallRecord(id="c4", name="drop", state="DENIED"),
    ]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store with a conversation, its fork, a snapshot, and a hostile agent. Tests only read it."""
    folder = tmp_path_factory.mktemp("views")
    found = f"sqlite:///{folder}/agents.db"
    asyncio.run(fill(found))
    return found


async def fill(url: str) -> None:
    async with create_extended_store(url) as store:
        info = AgentInfo(agent_id="agt-1", template_id="desk", metadata={"tier": "gold"})
        await store.save_turn("agt-1", append=conversation(), upsert_tool_calls=calls(), info=info)
        await store.save_snapshot("agt-1", Snapshot(id="early", messages=conversation()[:2]))
        await store.fork("agt-1", new_id="agt-2")
        await store.append_messages("agt-2", [Message.user("only in the fork")])
        for i in range(3):
            await store.emit("agt-1", "tick", {"i": i})
            await store.emit("agt-2", "tock", {"i": i}, channel="monitor")
        hostile = [Message.user(text) for text in (*HOSTILE, HOSTILE_TEXT)]
        hostile.append(
            Message("assistant", [ToolUseBlock(id="h", name=HOSTILE_TEXT, input={HOSTILE_TEXT: HOSTILE_TEXT})])
        )
        hostile.append(Message("user", [ToolResultBlock(tool_use_id="h", content=HOSTILE_TEXT, is_error=True)]))
        hostile_info = AgentInfo(
            agent_id="evil\x1b[2J", template_id=HOSTILE_TEXT, metadata={HOSTILE_TEXT: HOSTILE_TEXT}
        )
        await store.save_turn("evil\x1b[2J", append=hostile, info=hostile_info, upsert_tool_calls=[
            ToolCallRecord(id="h", name=HOSTILE_TEXT, state=HOSTILE_TEXT, error=HOSTILE_TEXT),
        ])  # fmt: skip
        await store.emit("evil\x1b[2J", HOSTILE_TEXT, {HOSTILE_TEXT: HOSTILE_TEXT})


# --- show -------------------------------------------------------------------------------------------------------------


def test_show_folds_calls_and_results(url: str) -> None:
    """One row for a call and its result; errors, denied calls and approvals are marked in words."""
    out, err = kode("show", "agt-1", "-s", url)
    assert out.startswith("agt-1  desk, created ")
    assert '  ok  weather(city="Rome") -> 21 C  12 ms\n' in out
    assert "  FAILED  book(" in out and "-> no seat  30 ms" in out
    assert "  APPROVAL?  pay()" in out and "  DENIED  drop()" in out
    assert "  result  orphan" in out
    assert "#3" not in out  # it has nothing but results, which are in their calls' rows
    assert "a long text. " * 199 in out and "(--full)" not in out
    assert err == "7 messages\n"
    shown = in_terminal(("show", "agt-1", "-s", url), 100, "")
    assert "more characters (--full)" in shown and "7 messages; --full shows long ones in full" in shown
    full = in_terminal(("show", "agt-1", "-s", url, "--full"), 100, "")
    assert "a long text." in full and "(--full)" not in full


def test_show_has_pages(url: str) -> None:
    """The last messages, and the way to the ones before; a result that is not in the page is in the record."""
    out, err = kode("show", "agt-1", "-s", url, "--last", "2", "--before", "4")
    assert "#2 assistant" in out and "#1" not in out
    assert err.startswith("2 messages; 2 before: --before 2, or a larger --last")
    out, _ = kode("show", "agt-1", "-s", url, "--before", "3", "-n", "1")
    assert "weather" in out and "-> 21 C" in out
    for wrong in ("0", "10001"):
        assert "--last must be from 1 to 10,000" in kode("show", "agt-1", "-s", url, "--last", wrong, code=2)[1]
    assert "no agent 'nobody'" in kode("show", "nobody", "-s", url, code=2)[1]


def test_show_as_json(url: str) -> None:
    """The messages as stored, and the calls with what the rows say."""
    found = kode_json("show", "agt-1", "-s", url)
    assert len(found["messages"]) == 7
    assert [(call["position"], call["name"], call["mark"]) for call in found["calls"]] == [
        (2, "weather", "ok"), (2, "book", "FAILED"), (4, "pay", "APPROVAL?"), (4, "drop", "DENIED"),
    ]  # fmt: skip
    assert found["calls"][0]["durationMs"] == 12


def test_ids_that_occur_twice_are_told_apart(tmp_path: Path) -> None:
    """Each request has the first result after it, although several have one id."""
    url = f"sqlite:///{tmp_path}/a.db"

    async def prepare() -> None:
        async with create_extended_store(url) as store:
            for i in range(3):
                await store.append_messages("agt", [
                    Message("assistant", [ToolUseBlock(id="same", name="t", input=i)]),
                    Message("user", [ToolResultBlock(tool_use_id="same", content=f"result {i}")]),
                ])  # fmt: skip
            await store.save_info("agt", AgentInfo(agent_id="agt", template_id="t"))

    asyncio.run(prepare())
    out, _ = kode("show", "agt", "-s", url)
    assert [line.strip() for line in out.splitlines() if "->" in line] == [
        f"ok  t({i}) -> result {i}" for i in range(3)
    ]


@pytest.mark.parametrize("columns", [40, 50, 80, 160])
@pytest.mark.parametrize(
    "arguments",
    [("show", "agt-1"), ("stats", "--days", "200"), ("diff", "agt-2"), ("events", "--all"), ("tool-calls",)],
)
def test_no_line_is_wider_than_the_terminal(url: str, arguments: tuple[str, ...], columns: int) -> None:
    """In terminals of 40 to 160 columns, and what the columns are about is there."""
    out = in_terminal((*arguments, "-s", url), columns, "")
    for line in out.splitlines():
        assert cell_len(line.rstrip()) <= columns, line
    assert "agt-" in out or arguments[0] == "stats"
    if arguments[0] == "show":
        assert all(mark in out for mark in ("FAILED", "APPROVAL?", "DENIED", "-> 21 C"))


@pytest.mark.parametrize(
    "arguments",
    [("show", "evil\x1b[2J"), ("show", "evil\x1b[2J", "--full"), ("stats",), ("diff", "evil\x1b[2J", "agt-1"),
     ("diff", "agt-1", "evil\x1b[2J", "--full"), ("events", "--all"), ("sessions", "--full")],
)  # fmt: skip
def test_stored_text_cannot_reach_the_terminal(url: str, arguments: tuple[str, ...]) -> None:
    """Escape sequences, controls and marks of direction are shown as escapes, in a terminal and in a pipe."""
    for out in (in_terminal((*arguments, "-s", url), 80, ""), "".join(kode(*arguments, "-s", url))):
        for bad in FORBIDDEN:
            assert bad not in out.replace("\r\n", "\n")
        assert "\\x1b" in out
    found = json.loads(kode(*arguments, "-s", url, "--json")[0])
    assert found


# --- diff -------------------------------------------------------------------------------------------------------------


def test_a_fork_and_its_parent(url: str) -> None:
    """Without B, the parent is the first one."""
    out, err = kode("diff", "agt-2", "-s", url)
    assert out.splitlines() == ["--- agt-1", "+++ agt-2", "  … 7 equal messages …", "+ #7 user: only in the fork"]
    assert err == "7 equal messages, 0 only in the first, 1 only in the second\n"
    kode("diff", "agt-2", "-s", url, "--exit-code", code=1)
    kode("diff", "agt-1", "agt-1", "-s", url, "--exit-code")


def test_a_snapshot_and_now(url: str) -> None:
    """A snapshot is named behind the agent; missing ones are errors that say so."""
    out, _ = kode("diff", "agt-1@early", "-s", url)
    assert out.splitlines()[:3] == ["--- agt-1@early", "+++ agt-1", "- metadata tier" if False else out.splitlines()[2]]
    assert "+ #2 assistant: " in out and "  … 2 equal messages …" in out
    assert "has no snapshot 'late'" in kode("diff", "agt-1@late", "-s", url, code=2)[1]
    assert "was not forked" in kode("diff", "agt-1", "-s", url, code=2)[1]
    assert "no agent 'nobody'" in kode("diff", "agt-1", "nobody", "-s", url, code=2)[1]


def test_changes_in_the_middle(tmp_path: Path) -> None:
    """Messages that were changed, put in and left out are aligned; long conversations without any in common end."""
    url = f"sqlite:///{tmp_path}/a.db"

    async def prepare() -> None:
        async with create_extended_store(url) as store:
            texts = {"a": "0 1 2 3 4 5 6", "b": "0 1 x 3 4 6 7", "m": "", "n": ""}
            for agent_id, text in texts.items():
                messages = [Message.user(word) for word in text.split()]
                if not messages:
                    messages = [Message.user(f"{agent_id}{i}") for i in range(3_000)]
                info = AgentInfo(agent_id=agent_id, template_id="t", metadata={"name": agent_id, "same": 1})
                await store.save_turn(agent_id, append=messages, info=info)

    asyncio.run(prepare())
    out, _ = kode("diff", "a", "b", "-s", url)
    assert out.splitlines()[2:] == [
        '- metadata name="a"', '+ metadata name="b"', "  … 2 equal messages …", "- #2 user: 2", "+ #2 user: x",
        "  … 2 equal messages …", "- #5 user: 5", "  … 1 equal message …", "+ #6 user: 7",
    ]  # fmt: skip
    found = kode_json("diff", "a", "b", "-s", url)
    assert [part["equal"] for part in found["messages"]] == [True, False, True, False, True, False]
    assert found["metadata"] == {"name": {"a": "a", "b": "b"}}
    assert "5,800 more messages that differ (--full)" in in_terminal(("diff", "m", "n", "-s", url), 80, "")
    out, err = kode("diff", "m", "n", "-s", url)
    assert len(out.splitlines()) == 6_004
    assert err == "0 equal messages, 3,000 only in the first, 3,000 only in the second\n"


# --- stats ------------------------------------------------------------------------------------------------------------


def test_stats_have_tables_and_curves(url: str) -> None:
    """By tool, by template and by day; the same as JSON."""
    out, _ = kode("stats", "-s", url, "--durations")
    lines = out.splitlines()
    assert "TOOL" in out and "MEAN (MS)" in out and "TEMPLATE" in out
    assert any(line.split()[:3] == ["book", "2", "2"] for line in lines), out
    assert any(line.startswith("messages") and line.rstrip().endswith("█") for line in lines)
    found = kode_json("stats", "-s", url, "--days", "7")
    assert len(found["days"]) == 7
    assert found["days"][-1]["messages"] + found["days"][-2]["messages"] == found["totalMessages"]
    assert {"tool": "book", "calls": 2, "failed": 2} in found["tools"]
    assert {"template": "desk", "agents": 2} in found["templates"]
    assert "--days must be from 1 to 366" in kode("stats", "-s", url, "--days", "0", code=2)[1]


def test_curves() -> None:
    """Nothing is a space, anything is at least the lowest bar, and the most is the highest one."""
    assert sparkline([0, 1, 4, 8]) == " ▁▄█"
    assert sparkline([]) == "" and sparkline([0, 0]) == "  "
    assert bar(1, 1_000) == "█" and bar(10, 10) == "█" * 10 and bar(0, 0) == ""


def test_an_output_without_blocks(url: str) -> None:
    """Where the encoding has no blocks, curves are drawn with other characters."""
    done = subprocess.run(
        (*KODE, "stats", "-s", url), capture_output=True, check=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}
    )
    assert b"#" in done.stdout and b"\\u2588" not in done.stdout


# --- events of all agents ---------------------------------------------------------------------------------------------


def test_events_of_all_agents(url: str) -> None:
    """With their agents, filtered by channel and time."""
    out, err = kode("events", "--all", "-s", url)
    assert err == "7 events\n"
    assert sum("agt-1" in line for line in out.splitlines()) == 3
    found = kode_json("events", "--all", "-s", url, "--channel", "monitor")["events"]
    assert {event["agentId"] for event in found} == {"agt-2"} and len(found) == 3
    assert kode("events", "--all", "-s", url, "--since", "1h")[1] == "7 events\n"
    assert kode("events", "--all", "-s", url, "--until", "yesterday")[1] == "0 events\n"
    assert kode("events", "agt-1", "-s", url, "--until", "1h")[1] == "0 events\n"
    for wrong, told in (
        ((), "name an agent, or give --all"),
        (("agt-1", "--all"), "name an agent, or give --all"),
        (("--all", "--since", "3"), "a seq and an offset are of one agent"),
        (("--all", "-f", "--agents", "0"), "--agents must be from 1 to 1,000"),
    ):
        assert told in kode("events", *wrong, "-s", url, code=2)[1]


@contextmanager
def follow(url: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A follower of all agents, which Ctrl-C ends."""
    command = (*KODE, "events", "--all", "--follow", "--json", "-s", url, *arguments)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            yield process
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert b"Traceback" not in err


def next_event(process: subprocess.Popen[bytes]) -> tuple[str, int]:
    assert process.stdout is not None
    event = json.loads(process.stdout.readline())
    return event["agentId"], event["event"]["n"]


@pytest.fixture
def followed(tmp_path: Path) -> Iterator[str]:
    yield f"sqlite:///{tmp_path}/a.db"


def test_all_agents_are_followed(followed: str) -> None:
    """Events from now on, of old agents and of ones that appear meanwhile, each once; deletes end nothing."""

    async def appear() -> None:
        async with create_extended_store(followed) as store:
            for agent_id in ("old-1", "old-2"):
                await store.save_info(agent_id, AgentInfo(agent_id=agent_id, template_id="t"))
                await store.emit(agent_id, "tick", {"n": -1})
            with follow(followed) as process:
                assert await asyncio.to_thread(_is_following, process)
                seen = []
                numbers = iter(range(1_000_000))
                waiting = asyncio.create_task(asyncio.to_thread(next_event, process))
                while not waiting.done():  # until the followers are there
                    await store.emit("old-1", "tick", {"n": next(numbers)})
                    await asyncio.sleep(0.1)
                seen.append(waiting.result())
                sent = next(numbers)
                await store.save_info("new", AgentInfo(agent_id="new", template_id="t"))
                await store.emit("new", "tick", {"n": 1})
                await store.delete("old-2")
                await store.emit("new", "tick", {"n": 2})
                await store.emit("old-1", "tick", {"n": sent})
                while {("new", 1), ("new", 2), ("old-1", sent)} - set(seen):
                    seen.append(await asyncio.to_thread(next_event, process))
                assert len(seen) == len(set(seen))
                assert ("old-1", -1) not in seen
                own = [n for agent_id, n in seen if agent_id == "old-1"]
                assert own == list(range(own[0], sent + 1))

    asyncio.run(appear())


def _is_following(process: subprocess.Popen[bytes]) -> bool:
    time.sleep(0.1)
    return process.poll() is None


def test_more_agents_than_are_followed(followed: str) -> None:
    """With room for one agent, the one that changed last is followed, and all its events from --since on are there."""

    async def appear() -> None:
        async with create_extended_store(followed) as store:
            await _begun(store)
            with follow(followed, "--agents", "1", "--since", "1h") as process:
                assert await asyncio.to_thread(next_event, process) == ("a", 1)
                await store.save_info("b", AgentInfo(agent_id="b", template_id="t"))
                await store.emit("b", "tick", {"n": 1})
                assert await asyncio.to_thread(next_event, process) == ("b", 1)
                await store.emit("a", "tick", {"n": 2})
                await store.append_messages("a", [Message.user("changed")])
                assert await asyncio.to_thread(next_event, process) == ("a", 2)

    asyncio.run(appear())


async def _begun(store: Any) -> None:
    await store.save_info("a", AgentInfo(agent_id="a", template_id="t"))
    await store.emit_many("a", [AgentEvent("progress", "tick", {"n": 1})])


# --- times ------------------------------------------------------------------------------------------------------------


def test_words_and_ages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Days in UTC, or with --local in the zone of the computer, which has days of its own."""
    try:
        for zone, is_local in (("Pacific/Kiritimati", True), ("Pacific/Kiritimati", False), ("America/New_York", True)):
            monkeypatch.setenv("TZ", zone)
            time.tzset()
            set_local(is_local)
            now = datetime.now() if is_local else datetime.now(UTC)
            begin = now.replace(hour=0, minute=0, second=0, microsecond=0)
            assert read_time("today") == int(begin.timestamp() * 1000)
            day = (begin - timedelta(days=1)).date()
            midnight = datetime(day.year, day.month, day.day, tzinfo=None if is_local else UTC)
            assert read_time("yesterday") == read_time(day.isoformat()) == int(midnight.timestamp() * 1000)
            assert abs(read_time("now") - now_ms()) < 60_000
            assert abs(read_time("1d") - now_ms() + DAY_MS) < 60_000
            assert read_time("2025-01-31T12:00Z") == 1738324800000
    finally:
        set_local(False)
        monkeypatch.undo()
        time.tzset()


def test_times_are_shown_in_the_zone_that_is_asked_for(url: str) -> None:
    """By --local of the command, or of kode itself; heads of columns say which it is."""
    env = {"TZ": "Asia/Kathmandu", "COLUMNS": "200"}
    out, _ = kode("sessions", "-s", url, env=env)
    local, _ = kode("sessions", "-s", url, "--local", env=env)
    assert "CREATED (UTC)" in out and "CREATED (LOCAL)" in local
    assert kode("--local", "sessions", "-s", url, env=env)[0] == local
    of = [line.split()[3:5] for text in (out, local) for line in text.splitlines() if line.startswith("agt-1")]
    first, second = (datetime.fromisoformat(" ".join(parts)) for parts in of)
    assert second - first == timedelta(hours=5, minutes=45)
    for command in (("messages", "agt-1"), ("tool-calls",), ("events", "agt-1"), ("show", "agt-1")):
        there, here = (kode(*command, "-s", url, *more, env=env)[0] for more in ((), ("--local",)))
        assert there != here


def test_since_and_until(tmp_path: Path) -> None:
    """On every list, and not together with the filter that they stand for."""
    url = f"sqlite:///{tmp_path}/a.db"

    async def prepare() -> None:
        async with create_extended_store(url) as store:
            for agent_id, age in (("old", 40), ("new", 0)):
                at = now_ms() - age * DAY_MS
                await store.save_turn(
                    agent_id, append=[Message.user(agent_id)],
                    upsert_tool_calls=[ToolCallRecord(id=agent_id, name="t", created_at=at)],
                    info=AgentInfo(agent_id=agent_id, template_id="t", created_at=at),
                )  # fmt: skip

    asyncio.run(prepare())
    assert [one["agentId"] for one in kode_json("sessions", "--until", "yesterday", "-s", url)["sessions"]] == ["old"]
    assert len(kode_json("sessions", "--since", "1h", "-s", url)["sessions"]) == 2  # both were changed just now
    assert [one["id"] for one in kode_json("tool-calls", "--since", "1d", "-s", url)["toolCalls"]] == ["new"]
    assert kode_json("messages", "--since", "now", "--count", "-s", url)["count"] == 0
    for arguments in (
        ("sessions", "--since", "1d", "--updated-after", "2d"),
        ("messages", "--until", "1d", "--created-before", "2d"),
    ):
        assert "not both" in kode(*arguments, "-s", url, code=2)[1]
    assert "is no time; write 2025-01-31" in kode("sessions", "--since", "tomorow", "-s", url, code=2)[1].replace(
        "\n", " "
    )


# --- completion -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts(shell: str) -> None:
    """A script for each shell, which asks the command itself."""
    out, err = kode("completion", shell)
    assert "_KODE_COMPLETE" in out and err == ""
    assert "bash, zsh, fish" in kode("completion", "csh", code=2)[1]


def test_bash_completes(url: str, tmp_path: Path) -> None:
    """In a real bash: commands, options, and the ids of agents, without those that a terminal would interpret."""
    script = kode("completion", "bash")[0]
    folder = str(Path(KODE[0]).parent)

    def completed(*words: str) -> set[str]:
        asked = f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _kode_completion kode"
        text = f'{script}\n{asked}; printf "%s\\n" "${{COMPREPLY[@]}}"'
        env = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "KODE_STORE_URL": url}
        done = subprocess.run(("bash", "-c", text), capture_output=True, text=True, timeout=60, check=True, env=env)
        return set(done.stdout.split())

    assert {"sessions", "show", "stats"} <= completed("kode", "s")
    assert "--last" in completed("kode", "show", "--la")
    assert completed("kode", "show", "agt") == {"agt-1", "agt-2"}
    assert completed("kode", "show", "evil") == set()
    assert completed("kode", "sessions", "--agent", "agt") == {"agt-1", "agt-2"}
    (tmp_path / "kode.toml").write_text("[stores.sample]\ntype = 'memory'\n[stores.other]\ntype = 'memory'\n")
    assert completed("kode", "sessions", "--store", "s") == {"sample", "sqlite://"}
    assert completed("kode", "copy", "sample", "o") == {"other"}


def test_every_agent_and_store_is_completed() -> None:
    """Whichever command takes an id of an agent, or a store."""
    group: Any = typer.main.get_command(app)
    context = typer.Context(group)
    taken = {"AGENT": set[str](), "STORE": set[str]()}
    for name in group.list_commands(context):
        for parameter in group.get_command(context, name).params:
            is_agent = parameter.name in ("agent", "agents") or parameter.metavar in ("A", "B", "AGENT", "AGENT...")
            is_store = "--store" in parameter.opts or parameter.metavar in ("FROM", "TO")
            if (is_agent and "--agents" not in parameter.opts) or is_store:  # a number of agents
                taken["AGENT" if is_agent else "STORE"].add(name)
                assert parameter._custom_shell_complete is not None, (name, parameter.name)
    assert {"show", "delete", "approve", "chat", "messages", "doctor", "sessions"} <= taken["AGENT"]
    assert {"copy", "web", "chat", "stats"} <= taken["STORE"]


def test_ids_of_one_tenant_are_completed(tmp_path: Path) -> None:
    """The tenant that the command line names has its own ids."""
    url = f"sqlite:///{tmp_path}/a.db"

    async def prepare() -> None:
        async with create_extended_store(url) as store:
            for tenant in ("acme", "globex"):
                agent_id = f"of-{tenant}"
                await store.scoped(tenant).save_info(agent_id, AgentInfo(agent_id=agent_id, template_id="t"))

    asyncio.run(prepare())
    env = {
        **os.environ, "KODE_STORE_URL": url, "_KODE_COMPLETE": "complete_bash",
        "COMP_WORDS": "kode --tenant acme show ", "COMP_CWORD": "4",
    }  # fmt: skip
    kode_command = str(Path(KODE[0]).with_name("kode"))
    done = subprocess.run((kode_command,), capture_output=True, text=True, timeout=60, check=False, env=env)
    assert (done.stdout.split(), done.stderr) == (["of-acme"], "")


def test_completion_of_a_store_that_is_not_there(tmp_path: Path) -> None:
    """No ids, no error, and no store is created."""
    env = {
        **os.environ, "KODE_STORE_URL": f"sqlite:///{tmp_path}/none.db", "_KODE_COMPLETE": "complete_bash",
        "COMP_WORDS": "kode show agt", "COMP_CWORD": "2",
    }  # fmt: skip
    done = subprocess.run(
        (str(Path(KODE[0]).with_name("kode")),), capture_output=True, text=True, timeout=60, check=False, env=env
    )
    assert (done.stdout.strip(), done.stderr) == ("", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["show", "diff", "completion"])
def test_help_has_examples(command: str) -> None:
    """Each command shows how to call it."""
    out, _ = kode(command, "--help", env={"COLUMNS": "200"})
    assert f"kode {command}" in out.split("Examples")[1]
