"""Pages over what is hard to show, and requests that no browser sends."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any

import httpx
import pytest
from kode_inspector import create_app
from kode_inspector.text import ident

from kode_core import AgentInfo, ExtendedStore, create_extended_store
from plugins.inspector.tests.conftest import fill
from plugins.inspector.tests.serving import TOKEN, served

VISIT = {"authorization": f"Bearer {TOKEN}", "sec-fetch-dest": "document"}
FRAME = {"authorization": f"Bearer {TOKEN}", "hx-request": "true", "hx-target": "main"}


@pytest.mark.parametrize(
    ("agent_id", "shown"),
    [
        ("agt 1", "agt 1"),
        (" ", "\\x20"),
        ("a  b", "a\\x20\\x20b"),
        (" a\n", "\\x20a\\x0a"),
        ("a\u3000b\xa0c", "a\\u3000b\\xa0c"),
        ("x" * 301, "x" * 299 + "…"),
    ],
)
def test_spaces_of_ids_are_seen(agent_id: str, shown: str) -> None:
    """Two ids that differ in spaces look different, and one of spaces alone can be clicked."""
    assert ident(agent_id) == shown


def test_long_fields_do_not_fill_the_page(url: str) -> None:
    """A template and a breakpoint of any length are cut in the head of an agent's pages."""

    async def work(store: ExtendedStore) -> None:
        for agent_id in ("big", " "):
            await store.save_info(
                agent_id, AgentInfo(agent_id=agent_id, template_id="t" * 9_000, breakpoint="B" * 9_000)
            )

    fill(url, work)
    with served(url) as inspector:
        for agent_id in ("big", " "):
            text = re.sub(r'href="[^"]*"', "", inspector.get("/agent", id=agent_id).text)
            assert "t" * 100 not in text and "B" * 100 not in text
        assert ">\\x20</a>" in inspector.get("/").text


async def streams_of(client: httpx.AsyncClient, number: int) -> list[httpx.Response]:
    request = client.build_request("GET", "/agent/stream?id=agt-1")
    return list(await asyncio.gather(*(client.send(request, stream=True) for _ in range(number))))


async def until(state: dict[str, Any], number: int) -> None:
    deadline = time.monotonic() + 60
    while state.get("streams", 0) != number:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


def test_streams_that_begin_at_once_keep_to_the_limit(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many browsers that connect in one moment as many are served as may be, and the places are free at the end."""
    monkeypatch.setattr("kode_inspector.pages.events._MOST_STREAMS", 5)
    fill(url, lambda store: store.save_info("agt-1", AgentInfo(agent_id="agt-1", template_id="t")))

    async def work() -> None:
        limits = httpx.Limits(max_connections=100)
        headers = {"authorization": f"Bearer {TOKEN}"}
        async with httpx.AsyncClient(base_url=inspector.base, headers=headers, limits=limits, timeout=60) as client:
            for _ in range(2):
                answers = await streams_of(client, 30)
                assert sorted(answer.status_code for answer in answers) == [200] * 5 + [503] * 25
                for answer in answers:
                    await answer.aclose()
                await until(state, 0)
            head = await client.head("/agent/stream?id=agt-1")
            assert (head.status_code, head.content) == (200, b"")
            await until(state, 0)

    with served(url) as inspector:
        found = httpx.get(f"{inspector.base}/", headers={"authorization": f"Bearer {TOKEN}"})
        assert found.status_code == 200
        state = inspector.state
        asyncio.run(work())


async def test_a_slow_list_comes_in_a_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """A browser gets a page that waits; the page's request gets the list whose making went on, once."""
    async with create_extended_store("memory:") as store:
        await store.save_info("agt-1", AgentInfo(agent_id="agt-1", template_id="t"))
        app = create_app(store, token=TOKEN)
        app.state.inspector.patience_s = 0
        asked = 0
        query, ready = store.query_sessions, asyncio.Event()

        async def slow(**filters: Any) -> Any:
            nonlocal asked
            asked += 1
            await ready.wait()
            return await query(**filters)

        monkeypatch.setattr(store, "query_sessions", slow)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=60) as client:
            first = await client.get("/?template=t&sort=created_at", headers=VISIT)
            assert (first.status_code, "Reading the store" in first.text) == (200, True)
            assert 'hx-get="/?template=t&amp;sort=created_at"' in first.text
            again = await client.get("/?template=t&sort=created_at", headers=VISIT)
            assert "Reading the store" in again.text
            frame = asyncio.create_task(client.get("/?template=t&sort=created_at", headers=FRAME))
            await asyncio.sleep(0)
            ready.set()
            answer = await frame
            assert (answer.status_code, asked) == (200, 1)
            assert "<tr data-row>" in answer.text and 'id="main"' in answer.text
            wrong = await client.get("/?after=soon", headers=FRAME)
            assert wrong.status_code == 400 and 'id="main"' in wrong.text

            fails_now = asyncio.Event()

            async def fails(**filters: Any) -> Any:
                await fails_now.wait()
                raise RuntimeError("of the store")

            monkeypatch.setattr(store, "query_sessions", fails)
            assert "Reading the store" in (await client.get("/", headers=VISIT)).text
            fails_now.set()
            with pytest.raises(RuntimeError):  # a server answers with the page of the error, which has a main part
                await client.get("/", headers=FRAME)
