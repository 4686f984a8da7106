"""The services of the guide to frameworks, as they run: real servers and workers, several processes, one database."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from kode_conformance.servers import free_port

from kode_core.sync import open_store

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
URL = "sqlite:///chats.db"


def environment() -> dict[str, str]:
    """What each program gets; gunicorn puts a socket into the home folder."""
    return {**os.environ, "PYTHONPATH": str(ROOT / "docs" / "examples"), "KODE_STORE_URL": URL, "HOME": str(Path.cwd())}


@contextmanager
def running(*command: str, **more: str) -> Iterator[Path]:
    """A server or worker, which ends by itself when it is asked to."""
    log = Path("log.txt")
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-W", "default", "-m", *command],
            env={**environment(), **more},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        yield log
        assert process.poll() is None, log.read_text()
        process.terminate()
        process.wait(60)
    finally:
        process.kill()
        process.wait()
        print(log.read_text())
    told = log.read_text()
    assert "Traceback" not in told
    assert "was not closed" not in told


@contextmanager
def site(*command: str) -> Iterator[Any]:
    httpx = pytest.importorskip("httpx")
    port = free_port()
    with (
        running(*[word.replace("PORT", str(port)) for word in command]),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as http,
    ):
        for _ in range(600):
            try:
                http.get("/chats/none/messages").raise_for_status()
                break
            except httpx.TransportError:
                time.sleep(0.1)
        yield http


def add_many(http: Any) -> None:
    """Every message that was acknowledged is there, once, and each answer counted it."""

    def add(k: int) -> int:
        answer = http.post("/chats/c/messages", json={"text": f"message {k}"})
        assert answer.status_code == 200, answer.text
        return int(answer.json()["count"])

    with ThreadPoolExecutor(8) as pool:
        counts = list(pool.map(add, range(24)))
    assert sorted(counts) == list(range(1, 25))
    found = [message["content"][0]["text"] for message in http.get("/chats/c/messages").json()]
    assert sorted(found) == sorted(f"message {k}" for k in range(24))


def gunicorn(*more: str) -> tuple[str, ...]:
    pytest.importorskip("gunicorn")
    return ("gunicorn", "--bind", "127.0.0.1:PORT", "--workers", "2", "--threads", "4", *more)


def test_flask() -> None:
    """Two worker processes that were forked from one that had imported the module, and a follower in one of them."""
    pytest.importorskip("flask")
    with site(*gunicorn("--preload", "frameworks.flask_app:app")) as http:
        got: list[str] = []
        began = threading.Event()

        def follow() -> None:
            with http.stream("GET", "/chats/c/events") as answer:
                began.set()
                for line in answer.iter_lines():
                    got.append(line)
                    if sum(line.startswith("data:") for line in got) == 24:
                        return

        thread = threading.Thread(target=follow)
        thread.start()
        add_many(http)
        thread.join(60)
        assert sum(line.startswith("data:") for line in got) == 24


def test_django() -> None:
    pytest.importorskip("django")
    with site(*gunicorn("--preload", "frameworks.django_app:application")) as http:
        add_many(http)


def test_fastapi() -> None:
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    with site("uvicorn", "frameworks.fastapi_app:app", "--port", "PORT", "--workers", "2") as http:
        add_many(http)


def test_celery(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two worker processes, which take turns in each chat."""
    pytest.importorskip("celery")
    from celery import Celery

    for folder in ("queue", "control"):
        Path(folder).mkdir()
    transport = {"data_folder_in": "queue", "data_folder_out": "queue", "control_folder": "control"}
    sender = Celery("sender", broker="filesystem://", broker_transport_options=transport)
    for k in range(12):
        sender.send_task("frameworks.celery_app.answer", (f"chat-{k % 3}", f"question {k}"))
    command = ("celery", "-A", "worker_of_the_test", "worker", "--pool", "prefork", "--concurrency", "2")
    Path("worker_of_the_test.py").write_text(
        f"from frameworks.celery_app import app\napp.conf.broker_transport_options = {transport!r}\n"
    )
    path = f"{ROOT / 'docs' / 'examples'}{os.pathsep}{Path.cwd()}"
    with running(*command, CELERY_BROKER_URL="filesystem://", PYTHONPATH=path), open_store(URL) as store:
        for _ in range(600):
            if sum(1 for _ in store.iter_messages()) == 24:
                break
            time.sleep(0.1)
        for chat in range(3):
            texts = [message.content[0].text for message in store.load_messages(f"chat-{chat}")]  # type: ignore[union-attr]
            assert sorted(texts[::2]) == sorted(f"question {k}" for k in range(12) if k % 3 == chat)
            assert texts[1::2] == [text.upper() for text in texts[::2]]


def test_a_script_with_threads() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "frameworks.script", URL],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("done: [0, 1, 2, 3]\nmessages: 40\n", "")
