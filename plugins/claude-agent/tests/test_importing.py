"""Transcripts of files in a store of kode_core: as the SDK's own import has them, once, and read only."""

from __future__ import annotations

import hashlib
import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from claude_agent_sdk import import_session_to_store
from kode_claude_agent import KodeSessionStore, importing
from kode_claude_agent.importing import open_transcripts

from kode_core import ConfigurationError, create_extended_store
from kode_core.formats.importing import Imported, import_foreign

SESSIONS = [str(uuid.UUID(int=i)) for i in (1, 2)]
T0 = 1_735_689_600_000


def entry(session: str, i: int, role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {
        "type": role,
        "uuid": str(uuid.uuid5(uuid.UUID(session), str(i))),
        "parentUuid": None,
        "sessionId": session,
        "cwd": "/home/u/p",
        "timestamp": f"2025-01-01T00:00:{i:02}.000Z",
        "message": {"role": role, "content": content},
        **more,
    }


def conversation(session: str) -> list[dict[str, Any]]:
    use = {"type": "tool_use", "id": "t1", "name": "Bash", "input": {"command": "ls"}}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": "a b"}
    return [
        {"type": "queue-operation", "operation": "dequeue"},
        entry(session, 1, "user", "List the files 🙂 \ud800"),
        entry(session, 2, "assistant", [{"type": "thinking", "thinking": "ls"}, use]),
        entry(session, 5, "user", [result]),
        entry(session, 4, "assistant", [{"type": "text", "text": "a and b"}]),
    ]


def write(path: Path, entries: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(one)}\n" for one in entries))


@pytest.fixture
def projects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as Claude Code keeps it: two sessions, one of them with subagents and their sidecar."""
    monkeypatch.setenv("CLAUDE_CONFIG_DIR", str(tmp_path / "claude"))
    project = tmp_path / "claude" / "projects" / "-home-u-p"
    for session in SESSIONS:
        write(project / f"{session}.jsonl", conversation(session))
    below = project / SESSIONS[0] / "subagents"
    write(below / "agent-x.jsonl", [entry(SESSIONS[0], 10 + i, "user", f"sub {i}", isSidechain=True) for i in range(3)])
    (below / "agent-x.meta.json").write_text('{"agentType": "explorer"}')
    write(below / "workflows" / "run-1" / "agent-y.jsonl", [entry(SESSIONS[0], 20, "user", "deep")])
    return project.parent


async def imported(source: Path | str, store: Any, **how: Any) -> list[Imported]:
    async with open_transcripts(str(source)) as agents:
        return [one async for one in import_foreign(agents, store, **how)]


def digests(folder: Path) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("url", ["memory:", "json:///{}/store", "sqlite:///{}/agents.db"])
async def test_transcripts_are_as_the_sdk_imports_them(url: str, projects: Path, tmp_path: Path) -> None:
    """Entries, subagents and summaries are equal; the store goes on with them, and a second import writes nothing."""
    before, url = digests(projects), url.format(tmp_path)
    async with create_extended_store(url) as store, create_extended_store("memory:") as other:
        first = await imported(projects.parent, store)
        assert [one.outcome for one in first] == ["imported"] * 4, first
        assert {one.outcome for one in await imported(projects / "-home-u-p", store)} == {"known"}
        assert digests(projects) == before
        mine, sdks = KodeSessionStore(store=store), KodeSessionStore(store=other)
        for session in SESSIONS:
            await import_session_to_store(session, sdks)
        listed: Any = {"project_key": "-home-u-p", "session_id": SESSIONS[0]}
        assert sorted(await mine.list_subkeys(listed)) == sorted(await sdks.list_subkeys(listed)) != []
        keys: list[Any] = [{"project_key": "-home-u-p", "session_id": session} for session in SESSIONS]
        keys += [{**listed, "subpath": subpath} for subpath in await sdks.list_subkeys(listed)]
        for key in keys:
            assert await mine.load(key) == await sdks.load(key) is not None
        summaries = [
            sorted((one["session_id"], json.dumps(one["data"])) for one in await s.list_session_summaries("-home-u-p"))
            for s in (mine, sdks)
        ]
        assert summaries[0] == summaries[1] and len(summaries[0]) == 2
        agent_id = mine.agent_id(keys[0])
        (call,) = await store.load_tool_call_records(agent_id)
        assert (call.name, call.state, call.result, call.duration_ms) == ("Bash", "COMPLETED", "a b", 3000)
        times = [one.created_at - T0 async for one in store.read_messages(agent_id)]
        assert times == [-T0, 1000, 2000, 5000, 5000]
        more: list[Any] = [*conversation(SESSIONS[0])[1:], entry(SESSIONS[0], 6, "user", "more")]
        await mine.append(keys[0], more)
        assert len(await mine.load(keys[0]) or ()) == 6  # the entries it had are not doubled


async def test_damaged_lines_are_reported_and_passed_over(projects: Path) -> None:
    """The transcript is refused; with skip_damaged the rest of it is imported."""
    file = projects / "-home-u-p" / f"{SESSIONS[1]}.jsonl"
    whole = file.read_bytes()
    before = b'{"type": "user"\n[1]\n\n\xff\xfe\n'
    after = b'{"a": NaN}\n' + b"[" * 100_000 + b"\n" + whole[:50]
    file.write_bytes(before + whole + after)
    async with create_extended_store("memory:") as store:
        found = {one.outcome: one for one in await imported(projects, store)}
        assert sum(found["refused"].damaged.values()) == 6, found["refused"].damaged
        again = await imported(projects, store, skip_damaged=True)
        assert sorted(one.outcome for one in again) == ["imported", "known", "known", "known"]
        key: Any = {"project_key": "-home-u-p", "session_id": SESSIONS[1]}
        assert await KodeSessionStore(store=store).load(key) == conversation(SESSIONS[1])


async def test_one_transcript_alone(projects: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file brings its session with the subagents, or one subagent; the folder then finds them as they are."""
    project = projects / "-home-u-p"
    async with create_extended_store("memory:") as store, create_extended_store("memory:") as other:
        whole = {one.agent_id for one in await imported(projects, other)}
        monkeypatch.chdir(project)
        (second,) = await imported(f"{SESSIONS[1]}.jsonl", store)
        assert second.outcome == "imported" and second.counts["messages"] == 5
        (deep,) = await imported(project / SESSIONS[0] / "subagents/workflows/run-1/agent-y.jsonl", store)
        assert {second.agent_id, deep.agent_id} < whole
        first = await imported(project / f"{SESSIONS[0]}.jsonl", store)
        assert sorted(one.outcome for one in first) == ["imported", "imported", "known"]
        assert {one.outcome for one in await imported(projects, store)} == {"known"}
    (project / "chat.jsonl").write_text('{"role": "user", "content": "Hello"}\n')
    with pytest.raises(ConfigurationError, match=r"chat\.jsonl has no entries of a transcript"):
        await imported(project / "chat.jsonl", None)


async def test_a_long_line_is_damage(projects: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named by its file and number and passed over, as a long sidecar is; the rest is imported."""
    monkeypatch.setattr(importing, "MAX_TEXT", 10_000)
    folder = projects / "-home-u-p"
    file = folder / f"{SESSIONS[1]}.jsonl"
    first, rest = file.read_bytes().split(b"\n", 1)
    file.write_bytes(first + b"\n" + json.dumps({"a": "x" * 3_000_000}).encode() + b"\n" + rest)
    sidecar = folder / SESSIONS[0] / "subagents" / "agent-x.meta.json"
    sidecar.write_text(json.dumps({"agentType": "x" * 10_000}))
    async with create_extended_store("memory:") as store:
        found = await imported(projects, store, skip_damaged=True)
        assert [one.outcome for one in found] == ["imported"] * 4
        assert sorted(remark for one in found for remark in one.damaged) == [
            f"{file.name}:2: longer than 10,000 bytes",
            f"{sidecar.name}: longer than 10,000 bytes",
        ]
        key: Any = {"project_key": "-home-u-p", "session_id": SESSIONS[1]}
        assert await KodeSessionStore(store=store).load(key) == conversation(SESSIONS[1])


async def test_what_is_no_source(tmp_path: Path) -> None:
    """A folder that is none, or has no transcripts."""
    none = "there is no folder or file"
    for source, said in ((str(tmp_path / "none"), none), ("", none), (str(tmp_path), "has no transcripts")):
        with pytest.raises(ConfigurationError, match=said):
            await imported(source, None)
