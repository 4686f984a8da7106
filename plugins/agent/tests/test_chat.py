"""``kode chat`` in a process of its own."""

from __future__ import annotations

import os
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from kode_agent import Agent, ScriptedProvider, decide, open_questions
from kode_agent.offline import TEMPLATE

from kode_core import create_extended_store

pytest.importorskip("typer")

KODE = (sys.executable, "-m", "kode_core.cli")


def chat(folder: Path, *arguments: str, said: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        (*KODE, "chat", "--store", f"sqlite:///{folder}/a.db", *arguments),
        input=said,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=folder,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done


def test_a_conversation(tmp_path: Path) -> None:
    """Answers, tools, approvals, a snapshot and a fork, all from a pipe; the agent goes on in the next process."""
    said = (
        "hello\nwhat time is it?\nnote milk\ny\nnote beer\n\n/snapshot s\n/status\n/fork s\nhi\n/nothing\n /hi\n/quit\n"
    )
    done = chat(tmp_path, "--agent", "c1", said=said)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0] == "agent c1, 0 messages; /help lists the commands"
    assert lines[1] == "You said: hello"
    assert "[clock {}]" in lines and '[note {"text":"milk"}]' in lines
    assert "The tool says: noted" in lines
    assert "The tool says: the call was denied by kode chat" in lines
    assert "snapshot s" in lines
    assert any(line.startswith("c1: READY, 14 messages, 7 steps") for line in lines)
    assert any(line.startswith("no command /nothing: ") for line in lines)
    assert "You said: /hi" in lines
    assert "the scripted provider answers" in done.stderr
    again = chat(tmp_path, "--agent", "c1", said="")
    assert again.stdout == "agent c1, 14 messages; /help lists the commands\n"
    assert f"kode chat --agent c1 --store sqlite:///{tmp_path}/a.db goes on" in again.stderr
    assert "[note denied by kode chat]" in lines and not any("failed" in line for line in lines)


def test_errors_are_lines(tmp_path: Path) -> None:
    """Wrong options end the command, and wrong commands do not end the chat."""
    assert "needs --model" in chat(tmp_path, "--provider", "openai", said="").stderr
    assert "scripted, openai or anthropic" in chat(tmp_path, "--provider", "other", said="").stderr
    assert "ModuleNotFoundError" in chat(tmp_path, "--template", "no_such:T", said="").stderr
    assert "MODULE:NAME" in chat(tmp_path, "--template", "no_such", said="").stderr
    done = chat(tmp_path, said="/resume\n/resume nobody\n/go\nhi\n/fork nothing\n")
    assert done.returncode == 0
    assert "/resume needs the id of an agent: /resume AGENT" in done.stdout
    assert "error: no agent 'nobody' in this store; Agent.create" in done.stdout
    assert "has answered its last message" in done.stdout
    assert "You said: hi" in done.stdout


def test_a_template_of_ones_own(tmp_path: Path) -> None:
    """--template imports one, and an agent of it is not run with another."""
    (tmp_path / "mine.py").write_text(
        "from kode_agent import Template\ndef clock() -> str:\n    return 'noon'\nT = Template('mine', '', [clock])\n"
    )
    done = chat(tmp_path, "--template", "mine:T", "--agent", "m", said="what time is it?\n")
    assert "The tool says: noon" in done.stdout
    printed = next(line for line in done.stderr.splitlines() if line.endswith(" goes on"))
    words = shlex.split(printed.removesuffix(" goes on"))
    again = subprocess.run(
        (*KODE, *words[1:]), input="", capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False
    )
    assert (again.returncode, again.stdout) == (0, "agent m, 4 messages; /help lists the commands\n")
    done = chat(tmp_path, "--agent", "m", said="")
    assert (done.returncode, "is of the template 'mine', not 'chat'" in done.stderr) == (2, True)


@pytest.mark.skipif(os.name == "nt", reason="a process cannot be sent SIGINT there")
def test_ctrl_c_interrupts_the_answer(tmp_path: Path) -> None:
    """Ctrl-C during an answer ends the answer, and the chat goes on."""
    process = subprocess.Popen(
        (*KODE, "chat", "--store", f"sqlite:///{tmp_path}/a.db"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("one two three four five six seven eight nine ten " * 50 + "\n")
    process.stdin.flush()
    process.stdout.readline()
    while process.stdout.read(9) != "You said:":
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate("hi\n", timeout=60)
    assert "was interrupted: Ctrl-C" in out
    assert "You said: hi" in out
    assert "Traceback" not in err and process.returncode == 0


def test_the_command_that_goes_on_has_all_options(tmp_path: Path) -> None:
    """Whatever chose the model, the template and the store is in the printed command, without a password."""
    from kode_agent.chat import _again

    words = _again("postgresql://ann:pa@ss@db/kode?sslmode=require", provider="openai", model="m", template=None)
    assert words == [
        *("--store", "postgresql://ann:PASSWORD@db/kode?sslmode=require"),
        *("--provider", "openai", "--model", "m"),
    ]
    done = chat(tmp_path, "--system", "Be \n brief.", "--agent", "a b", said="hi\n")
    assert "kode chat --agent 'a b' --store" in done.stderr and "--system 'Be" in done.stderr


class Seen:
    """What a process wrote to a terminal or a pipe."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.text = ""

    def until(self, *texts: str) -> None:
        """Read on until each of the texts was written, in their order."""
        for text in texts:
            while text not in self.text:
                ready, _, _ = select.select([self._descriptor], [], [], 40)
                assert ready, f"{text!r} does not come: {self.text!r}"
                try:
                    read = os.read(self._descriptor, 10_000)
                except OSError:  # the end of a terminal
                    read = b""
                assert read, f"{text!r} never came: {self.text!r}"
                self.text += read.decode()
            self.text = self.text.partition(text)[2]


async def decided(url: str, decision: str, **options: str) -> None:
    async with create_extended_store(url) as store:
        (question,) = await open_questions(store, "c")
        await decide(store, "c", question.id, decision, **options)  # type: ignore[arg-type]


@pytest.fixture
def in_terminal(tmp_path: Path) -> object:
    """Starts ``kode chat`` in a terminal; returns the process, the terminal, and what it shows."""
    pty = pytest.importorskip("pty")
    started: list[tuple[subprocess.Popen[bytes], int]] = []

    def start() -> tuple[int, Seen, subprocess.Popen[bytes]]:
        ours, theirs = pty.openpty()
        command = (*KODE, "chat", "--agent", "c", "--store", f"sqlite:///{tmp_path}/a.db")
        process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=tmp_path)
        os.close(theirs)
        started.append((process, ours))
        return ours, Seen(ours), process

    yield start
    for process, ours in started:
        process.kill()
        process.wait()
        os.close(ours)


Start = Callable[[], "tuple[int, Seen, subprocess.Popen[bytes]]"]


async def test_a_decision_of_another_process_withdraws_the_question(tmp_path: Path, in_terminal: Start) -> None:
    """The run goes on at once, and what was typed for the question does not answer the next one."""
    typing, seen, process = in_terminal()
    seen.until("> ")
    os.write(typing, b"note milk\n")
    seen.until("run note", "[y/N] ")
    os.write(typing, b"y")
    await decided(f"sqlite:///{tmp_path}/a.db", "allow", by="ann")
    seen.until("allowed by ann", "The tool says: noted", "> ")
    os.write(typing, b"note beer\n")
    seen.until("run note", "[y/N] ")
    await decided(f"sqlite:///{tmp_path}/a.db", "deny", by="bob", note="no beer")
    seen.until("denied by bob: no beer", "The tool says: the call was denied by bob: no beer", "> ")
    os.write(typing, b"note tea\n")
    seen.until("run note", "[y/N] ")
    os.write(typing, b"y\n")
    seen.until("The tool says: noted", "> ")
    os.write(typing, b"/quit\n")
    seen.until("goes on")
    assert process.wait(30) == 0


async def test_the_end_of_input_denies_and_the_answer_is_shown(in_terminal: Start) -> None:
    """Ctrl-D at a question is a no; the answer comes, and the chat goes on."""
    typing, seen, process = in_terminal()
    seen.until("> ")
    os.write(typing, b"note milk\n")
    seen.until("[y/N] ")
    os.write(typing, b"\x04")
    seen.until("[note denied by kode chat]", "The tool says: the call was denied", "> ")
    os.write(typing, b"\x04")
    seen.until("goes on")
    assert process.wait(30) == 0


async def test_ctrl_c_at_a_question(in_terminal: Start) -> None:
    """Ctrl-C while a question is open ends the run at once, and withdraws the question."""
    typing, seen, process = in_terminal()
    seen.until("> ")
    os.write(typing, b"note milk\n")
    seen.until("[y/N] ")
    process.send_signal(signal.SIGINT)
    seen.until("was interrupted: Ctrl-C", "> ")
    os.write(typing, b"hi\n")
    seen.until("You said: hi")


async def test_chat_says_that_it_waits(tmp_path: Path, in_terminal: Start) -> None:
    """An agent that another process runs is waited for, and the user knows it."""
    async with create_extended_store(f"sqlite:///{tmp_path}/a.db") as store:
        await Agent.create(provider=ScriptedProvider([]), store=store, template=TEMPLATE, agent_id="c")
        async with store.acquire_agent_lock("c", ttl_ms=60_000):
            _, seen, _ = in_terminal()
            seen.until("another process runs agent c")
        seen.until("agent c, 0 messages")
