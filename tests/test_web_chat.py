"""The web chat of the documentation, as it runs: uvicorn, several workers, clients that connect again, kill -9."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
httpx = pytest.importorskip("httpx")
pytest.importorskip("uvicorn")

from kode_conformance.servers import free_port  # noqa: E402
from kode_postgres.testing.servers import NoServerError, shared_server  # noqa: E402
from web_chat.client import listen  # noqa: E402

from kode_core import create_extended_store  # noqa: E402

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


class Site:
    """A uvicorn server, with one process or several."""

    def __init__(self, url: str, folder: Path, *, workers: int = 1, pause_s: float = 0.05) -> None:
        self.port = free_port()
        self.log = folder / f"site-{self.port}.log"
        env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT / "docs" / "examples"), os.environ.get("PYTHONPATH", "")]),
            "KODE_STORE_URL": url,
            "CHAT_HEARTBEAT_S": "0.3",
            "CHAT_LOCK_TTL_MS": "2000",
            "CHAT_PAUSE_S": str(pause_s),
        }
        command = ["uvicorn", "web_chat.app:app", "--port", str(self.port), "--workers", str(workers)]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *command],
                env=env,
                cwd=folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def client(self) -> Any:
        return httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", timeout=30)

    async def ready(self) -> Site:
        async with self.client() as http:
            for _ in range(300):
                try:
                    if (await http.get("/health")).status_code == 200:
                        return self
                except httpx.HTTPError:
                    pass
                assert self.process.poll() is None, self.log.read_text()
                await asyncio.sleep(0.1)
        raise AssertionError(self.log.read_text())

    def stop(self) -> float:
        """Ask the server to end; return how many seconds it took."""
        start = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)
        return time.monotonic() - start


@pytest.fixture(params=["sqlite", "postgres"])
async def url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/chat.db"
        return
    try:
        server = shared_server()
    except NoServerError as exc:
        pytest.skip(str(exc))
    name = f"kode_{secrets.token_hex(6)}"
    await server.execute(f"CREATE DATABASE {name}")
    yield server.url(name)
    await server.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def site(url: str, tmp_path: Path) -> Iterator[Callable[..., Site]]:
    sites: list[Site] = []

    def start(**options: Any) -> Site:
        sites.append(Site(url, tmp_path, **options))
        return sites[-1]

    yield start
    for one in sites:
        if one.process.poll() is None:  # a test failed
            os.killpg(one.process.pid, signal.SIGKILL)
            one.process.wait()


async def begin(http: Any) -> str:
    return str((await http.post("/chats")).json()["chat"])


async def ask(http: Any, chat: str, number: int) -> None:
    answer = await http.post(
        f"/chats/{chat}/messages", json={"id": f"m-{number}", "text": f"question {number} of mine"}
    )
    assert answer.status_code == 202, answer.text


async def until(http: Any, chat: str, done: int, last: str = "0") -> list[tuple[str, str, dict[str, Any]]]:
    """What a client sees until so many answers are done."""
    seen = []
    async with asyncio.timeout(60), aclosing(listen(http, chat, last)) as events:
        async for event in events:
            seen.append(event)
            done -= event[1] == "done"
            if not done:
                break
    return seen


async def test_each_event_comes_once_whenever_a_client_connects(site: Callable[..., Site]) -> None:
    """A client that connects again behind any event gets the rest; another server of the same store gives the same."""
    one, other = await site().ready(), await site().ready()
    async with one.client() as http, other.client() as elsewhere:
        chat = await begin(http)
        await ask(http, chat, 1)
        await ask(elsewhere, chat, 2)
        seen, same = await asyncio.gather(until(http, chat, 2), until(elsewhere, chat, 2))
        assert seen == same
        assert [kind for _, kind, _ in seen if kind != "delta"].count("done") == 2
        offsets = [int(offset) for offset, _, _ in seen]
        assert offsets == sorted(set(offsets))
        for place in range(0, len(seen) - 1, 5):
            done = sum(kind == "done" for _, kind, _ in seen[place + 1 :])
            assert await until(elsewhere, chat, done, seen[place][0]) == seen[place + 1 :]
        texts = {data["answers"]: data["text"] for _, kind, data in seen if kind == "done"}
        for question, text in texts.items():
            words = [d["text"] for _, kind, d in seen if kind == "delta" and d["answers"] == question]
            assert "".join(words).rstrip() == text
        shown = (await http.get(f"/chats/{chat}/messages")).json()
        assert [message.get("answers") for message in shown["messages"] if message["role"] == "assistant"] == [
            "m-1",
            "m-2",
        ]
        await ask(http, chat, 3)
        later = await until(http, chat, 1, str(shown["after"]))
        assert [data["id"] for _, kind, data in later if kind == "message"] == ["m-3"]


async def test_a_message_that_is_sent_again_is_answered_once(site: Callable[..., Site]) -> None:
    """The browser that got no answer to its POST sends the message with the same id."""
    server = await site().ready()
    async with server.client() as http:
        chat = await begin(http)
        for _ in range(3):
            await ask(http, chat, 1)
        await until(http, chat, 1)
        shown = (await http.get(f"/chats/{chat}/messages")).json()["messages"]
        assert [message["role"] for message in shown] == ["user", "assistant"]


async def test_what_no_browser_sends_is_refused(site: Callable[..., Site]) -> None:
    """Offsets that no store gives, half a character and NaN get 422, and the server's log has no traceback."""
    server = await site().ready()
    async with server.client() as http:
        chat = await begin(http)
        for offset in ("-1", "1.5", "x", str(2**63), "9" * 5000):
            for query, headers in (({"after": offset}, {}), ({}, {"Last-Event-ID": offset})):
                answer = await http.get(f"/chats/{chat}/events", params=query, headers=headers)
                assert answer.status_code == 422, answer.text
        for body in (r'{"id": "m", "text": "\ud800"}', r'{"id": "\ud800", "text": "x"}', '{"id": "m", "text": NaN}'):
            answer = await http.post(
                f"/chats/{chat}/messages", content=body, headers={"Content-Type": "application/json"}
            )
            assert answer.status_code == 422, answer.text
        assert (await http.get(f"/chats/{chat}/messages")).json()["messages"] == []
    assert "Traceback" not in server.log.read_text()


async def test_a_killed_worker_is_replaced_and_nothing_is_lost(site: Callable[..., Site], url: str) -> None:
    """kill -9 of the worker that answers: another takes the lock over, and clients see one answer, each event once."""
    server = await site(workers=2, pause_s=0.2).ready()
    killed = 0
    async with server.client() as http:
        chat = await begin(http)
        await ask(http, chat, 1)
        seen: list[tuple[str, str, dict[str, Any]]] = []
        async with asyncio.timeout(60), aclosing(listen(http, chat)) as events:
            async for event in events:
                seen.append(event)
                if len(seen) == 5 and not killed:
                    killed = next(data["worker"] for _, kind, data in seen if kind == "start")
                    os.kill(killed, signal.SIGKILL)
                if event[1] == "done":
                    break
        starts = [data["worker"] for _, kind, data in seen if kind == "start"]
        assert starts[0] == killed
        assert len(starts) == 2
        assert starts[1] != killed
        offsets = [int(offset) for offset, _, _ in seen]
        assert offsets == sorted(set(offsets))
    async with create_extended_store(url) as store:
        assert [stored.offset async for stored in store.read_events(chat, after_offset=0)] == offsets
        assert [message.role for message in await store.load_messages(chat)] == ["user", "assistant"]
        assert (await store.check_consistency()).issues == ()


async def test_a_server_ends_while_clients_are_connected(site: Callable[..., Site]) -> None:
    """SIGTERM ends the streams, and the server with them; an answer that was begun is finished or taken up later."""
    server = await site(workers=2, pause_s=0.1).ready()
    async with server.client() as http:
        chat = await begin(http)
        await ask(http, chat, 1)
        async with http.stream("GET", f"/chats/{chat}/events") as response:
            lines = response.aiter_lines()
            while "start" not in await anext(lines):
                pass
            seconds = await asyncio.to_thread(server.stop)
            rest = [line async for line in lines]  # ends as a response does that is complete
        assert seconds < 9, server.log.read_text()
        assert not any("gone" in line for line in rest)
        assert "Traceback" not in server.log.read_text()
    again = await site().ready()
    async with again.client() as http:
        seen = await until(http, chat, 1)
        assert [kind for _, kind, _ in seen].count("done") == 1


async def test_followers_of_a_deleted_chat_are_told(site: Callable[..., Site], url: str) -> None:
    """Deleted while it is answered: followers hear it at both servers, and nothing of the chat comes back."""
    one, other = await site(pause_s=0.1).ready(), await site(pause_s=0.1).ready()
    async with one.client() as http, other.client() as elsewhere:
        chat = await begin(http)
        await ask(http, chat, 1)

        async def last_word(client: Any) -> str:
            async with asyncio.timeout(30), aclosing(listen(client, chat)) as events:
                return [kind async for _, kind, _ in events][-1]

        words = asyncio.gather(last_word(http), last_word(elsewhere))
        await asyncio.sleep(0.5)
        assert (await http.delete(f"/chats/{chat}")).status_code == 204
        assert list(await words) == ["gone", "gone"]
        assert (await elsewhere.get(f"/chats/{chat}/events")).status_code == 404
        await asyncio.sleep(0.5)
    async with create_extended_store(url) as store:
        assert await store.load_messages(chat) == []
        assert [event async for event in store.read_events(chat)] == []


async def test_a_client_that_went_away_is_noticed(site: Callable[..., Site]) -> None:
    """A silent stream has heartbeats, and one whose client left does not hold the server up."""
    server = await site().ready()
    async with server.client() as http:
        chat = await begin(http)
        async with http.stream("GET", f"/chats/{chat}/events") as response:
            lines = response.aiter_lines()
            assert [await anext(lines) for _ in range(6)].count(": heartbeat") >= 2
    assert await asyncio.to_thread(server.stop) < 5
