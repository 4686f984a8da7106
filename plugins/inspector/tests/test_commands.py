"""``kode web`` and ``kode demo``, as processes."""

from __future__ import annotations

import filecmp
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from kode_inspector.demo import RUNS

from plugins.inspector.tests.conftest import fill
from plugins.inspector.tests.filling import conversation

KODE = Path(sys.executable).with_name("kode")
RECORDED = Path(__file__).parents[3] / "docs" / "examples" / "tau-airline"


@contextmanager
def running(*arguments: str, cwd: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A command that serves, and the address that it printed."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("KODE_")}
    pipe = subprocess.PIPE
    process = subprocess.Popen([KODE, *arguments], cwd=cwd, env=env, stdout=pipe, stderr=pipe, text=True)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        if not address:
            raise AssertionError(process.communicate(timeout=60)[1])
        yield process, address
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=60)


def test_web_serves_until_it_is_ended(tmp_path: Path, url: str) -> None:
    """The address has a token of its own each time; Ctrl-C and SIGTERM end the server in order."""
    fill(url, lambda store: conversation(store, "agt-1"))
    tokens = set()
    for number in (signal.SIGINT, signal.SIGTERM):
        with running("web", "--store", url, "--port", "0", cwd=tmp_path) as (process, address):
            found = re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=([\w-]{32})", address)
            assert found
            tokens.add(found[1])
            assert "agt-1" in httpx.get(address, follow_redirects=True, timeout=60).text
            process.send_signal(number)
            assert process.wait(60) == 0
            assert process.stderr is not None
            assert "Traceback" not in process.stderr.read()
    assert len(tokens) == 2


def test_web_ends_while_a_page_is_live(tmp_path: Path, url: str) -> None:
    """An open stream of events does not keep the server from ending."""
    fill(url, lambda store: conversation(store, "agt-1"))
    with (
        running("web", "--store", url, "--port", "0", cwd=tmp_path) as (process, address),
        httpx.Client(base_url=address.partition("/?")[0], timeout=60) as client,
    ):
        client.get(address)
        with client.stream("GET", "/agent/stream?id=agt-1") as answer:
            assert next(answer.iter_lines())
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--store", "sqlite:///none.db"), "there is no sqlite store at none.db"),
        (("--host", "no such host"), "is no address of this machine"),
        (("--port", "TAKEN"), "choose another with --port"),
        (("--port", "70000"), "65535"),
    ],
)
def test_web_explains(tmp_path: Path, url: str, arguments: tuple[str, ...], problem: str) -> None:
    """A mistake is one sentence, and no store is left behind."""
    fill(url, lambda store: conversation(store, "agt-1"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        given = [word.replace("TAKEN", str(taken.getsockname()[1])) for word in arguments]
        store = [] if "--store" in given else ["--store", url]
        done = subprocess.run(
            [KODE, "web", *given, *store], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
        )
    assert done.returncode == 2
    assert problem in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "none.db").exists()


def test_no_secret_of_the_store_is_shown(tmp_path: Path) -> None:
    """Pages show where the store is, without its password."""
    from kode_core.cli.opening import address, configured_store

    configured = configured_store("postgres://kode:hunter2@db.example/agents")
    assert "hunter2" not in str(address(configured))


def test_demo_imports_once_and_serves(tmp_path: Path) -> None:
    """The command ends with an address, whose pages have the recorded conversations; a second call adds nothing."""
    for _ in range(2):
        with running("demo", "--port", "0", cwd=tmp_path) as (process, address):
            with httpx.Client(timeout=60, follow_redirects=True) as client:
                assert "tau-000-0" in client.get(f"{address}&id=tau-000").text
                figures = client.get(f"{address.partition('/?')[0]}/dashboard/figures?range=all").text
            assert "5,308" in figures and "1,164" in figures
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
    assert (tmp_path / "kode-demo.db").is_file()


def test_the_recorded_runs_are_those_of_the_examples() -> None:
    """The package has the same file as docs/examples, with its licence and source."""
    for name in ("gpt-4o-airline.json.gz", "LICENSE", "README.md"):
        assert filecmp.cmp(RUNS.parent / name, RECORDED / name, shallow=False), name
