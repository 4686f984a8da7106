"""The SDK and its bundled command line run against the scripted server, and resume from the store."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import claude_agent_sdk
import pytest
from claude_agent_sdk import ClaudeAgentOptions, ResultMessage, get_session_messages_from_store, query
from kode_agent.testing import Call, Reply, Request, ScriptedServer
from kode_claude_agent import KodeSessionStore

CLI = Path(claude_agent_sdk.__file__).parent / "_bundled/claude"
README = Path(__file__).parents[1] / "README.md"
pytestmark = pytest.mark.skipif(not CLI.exists(), reason="this wheel of the SDK has no command line")


def answer(request: Request) -> Reply:
    said = json.dumps(request.body.get("messages"))
    if request.results:
        return Reply("That failed.")
    if "What did I ask?" in said:
        return Reply("You asked to read a file." if "Read the file." in said else "Nothing.")
    if "Read the file." in said:
        return Reply("", [Call("Bash", {"command": "cat /no/such/file", "description": "read"})])
    return Reply("Hello.")


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The variables by which the command line finds the server, and reaches nothing else."""
    with ScriptedServer(answer) as server:
        yield {
            "ANTHROPIC_BASE_URL": server.url,
            "ANTHROPIC_API_KEY": "none",
            "CLAUDE_CONFIG_DIR": str(tmp_path / "config"),
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "HTTP_PROXY": "http://127.0.0.1:9",
            "HTTPS_PROXY": "http://127.0.0.1:9",
            "NO_PROXY": "127.0.0.1,localhost",
        }


async def test_a_conversation_goes_on_in_another_place(url: str, environment: dict[str, str], tmp_path: Path) -> None:
    def options(sessions: KodeSessionStore, **more: Any) -> ClaudeAgentOptions:
        return ClaudeAgentOptions(
            session_store=sessions, cwd=tmp_path, allowed_tools=["Bash"], max_turns=3, setting_sources=[], **more
        )

    with KodeSessionStore(url) as sessions:
        async for message in query(prompt="Read the file.", options=options(sessions, env=environment)):
            last = message
        assert isinstance(last, ResultMessage)
        assert last.result == "That failed."
        session_id = last.session_id
    elsewhere = {**environment, "CLAUDE_CONFIG_DIR": str(tmp_path / "other machine")}
    with KodeSessionStore(url) as sessions:
        async for message in query(
            prompt="What did I ask?", options=options(sessions, env=elsewhere, resume=session_id)
        ):
            last = message
        assert isinstance(last, ResultMessage)
        assert (last.result, last.session_id) == ("You asked to read a file.", session_id)
        said = await get_session_messages_from_store(sessions, session_id, directory=str(tmp_path))
        assert [one.type for one in said] == ["user", "assistant", "user", "assistant", "user", "assistant"]
    command = [sys.executable, "-m", "kode_core.cli", "tool-calls", "--errors", "--json", "--store", url]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    (call,) = json.loads(shown.stdout)["toolCalls"]
    assert (call["name"], call["isError"], call["input"]["command"]) == ("Bash", True, "cat /no/such/file")


def test_the_example_of_the_readme(environment: dict[str, str], tmp_path: Path, monkeypatch: Any) -> None:
    (block,) = re.findall(r"```python.*\n((?s:.*?))```", README.read_text())
    (tmp_path / "hello.py").write_text(block)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for turn in range(2):
        command = [sys.executable, "hello.py"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        assert "Hello." in done.stdout
        shown = subprocess.run(
            [sys.executable, "-m", "kode_core.cli", "sessions", "--json", "--store", "sqlite:///data/agents.db"],
            cwd=tmp_path, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert len(json.loads(shown.stdout)["sessions"]) == 1, turn  # the second run goes on with the first one's
