"""Every page over HTTP: what it shows, how it bounds it, and what it says when something is wrong."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from kode_conformance.harness import Space, find_harness
from kode_conformance.servers import NoServerError
from kode_inspector import create_app
from kode_inspector.forms import session_form
from kode_inspector.pages.lists import _found
from starlette.datastructures import QueryParams

from kode_core import (
    AgentInfo,
    ExtendedStore,
    Message,
    StoreUnavailableError,
    ToolCallRecord,
    ToolResultBlock,
    ToolUseBlock,
)
from kode_core.backends.memory.engine import MemoryEngine
from kode_core.engine import Engine
from kode_core.layers import Layer
from kode_core.query import MessageFilter
from kode_core.store.facade import EngineStore
from plugins.inspector.tests.conftest import fill
from plugins.inspector.tests.filling import HOSTILE_IDS, MARKUP, PNG, conversation, hostile
from plugins.inspector.tests.serving import Served, served

OF_AN_AGENT = (
    "/agent",
    "/agent/events",
    "/agent/family",
    "/agent/forks",
    "/agent/export.html",
    "/agent/export.json",
)


def test_the_sessions(ordinary: Served) -> None:
    """The page lists the sessions with failures, approvals and metadata; filters and orders apply on the server."""
    text = ordinary.get("/").text
    assert text.count("<tr data-row>") == 4
    assert "1 failed" in text and "1 waiting" in text and "fork" in text and "u-7" in text

    def found(**filters: str) -> list[str]:
        return re.findall(r'<td class="id"><a [^>]*>([^<]*)</a>', ordinary.get("/", **filters).text)

    assert found(template="support") == ["other"]
    assert found(id="agt-1") == ["agt-1", "agt-1-fork"] or set(found(id="agt-1")) == {"agt-1", "agt-1-fork"}
    assert found(id="agt-1", template="support") == []
    assert len(found(metadata="reward=1.0; userId=u-7")) == 4
    assert found(metadata="reward=2") == []
    assert found(user="u-7", before="2020-01-01") == []
    assert len(found(updated="1h")) == 4
    assert found(sort="message_count", order="asc")[0] == "agt-1-fork"


def test_sessions_come_in_pages(url: str) -> None:
    """Following the links shows each agent once, for all and for those of a prefix."""

    async def many(store: ExtendedStore) -> None:
        for i in range(130):
            await store.save_info(f"a-{i:03}", AgentInfo(agent_id=f"a-{i:03}", template_id="t"))
        await store.save_info("b", AgentInfo(agent_id="b", template_id="t"))

    fill(url, many)
    with served(url) as inspector, inspector.client() as client:
        for first, number in (("/", 131), ("/?id=a-", 130)):
            seen: list[str] = []
            path: str | None = first
            while path is not None:
                text = client.get(path).text
                seen += re.findall(r'<td class="id"><a [^>]*>([^<]*)</a>', text)
                assert text.count("<tr data-row>") <= 50
                following = re.search(r'rel="next" href="([^"]+)"', text)
                path = following[1].replace("&amp;", "&") if following else None
            assert len(seen) == len(set(seen)) == number


class NoRanges(Layer):
    """Finds no ranges of agents, as an engine of a third party may."""

    finds_within = False


async def test_pages_of_a_prefix_without_ranges() -> None:
    """A store whose engine finds no ranges of agents has the same pages."""

    async def opened() -> Engine:
        return NoRanges(MemoryEngine())

    async with EngineStore(opened) as store:
        for i in range(25):
            await store.save_info(f"a-{i:03}", AgentInfo(agent_id=f"a-{i:03}", template_id="t"))
        seen, following = list[str](), "/?id=a-"
        while following:
            page, link = await _found(store, session_form(QueryParams(following.partition("?")[2])), 10)
            seen += [session.agent_id for session in page]
            following = link or ""
        assert sorted(seen) == [f"a-{i:03}" for i in range(25)]


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/?after=soon", "after"),
        ("/?updated=1735689600", "updated"),
        ("/?metadata=x", "metadata"),
        ("/?sort=name", "sort"),
        ("/?id=x&from=-1", "from"),
        ("/?cursor=garbage", "form"),
        ("/calls?state=DONE", "state"),
        ("/calls?error=maybe", "error"),
        (f"/calls?agent={'x' * 400}", "agent"),
        ("/calls?cursor=%00", "form"),
    ],
)
def test_a_wrong_filter_is_explained_at_its_field(ordinary: Served, path: str, field: str) -> None:
    """The answer is 400, keeps what was entered, and has the reason next to the field."""
    answer = ordinary.get(path)
    assert answer.status_code == 400
    if field in ("form", "from"):
        assert "This list cannot be shown" in answer.text
    else:
        assert f'aria-describedby="e-{field}"' in answer.text and f'id="e-{field}"' in answer.text


def test_a_conversation(ordinary: Served) -> None:
    """Each call and its result are one row, by order where an id occurs twice, and errors are marked."""
    text = ordinary.get("/agent", id="agt-1").text
    assert text.count('<article class="message') == 5  # the two results are in the rows of their calls
    calls = re.findall(r'<details class="call (\w+)">', text)
    assert calls == ["failed", "ok"]
    assert "no seats" in text and "340 ms" in text
    assert "System prompt, 17 characters" in text
    assert "book the seat" in text
    assert text.count("data-error") == 1


def test_results_of_calls_are_found_across_parts(url: str) -> None:
    """A call at the end of a part has its result, which stands in the next part; the next part says so too."""
    messages = [Message.user(str(i)) for i in range(99)]
    messages.append(Message("assistant", [ToolUseBlock(id="late", name="search", input={})]))
    messages.append(Message("user", [ToolResultBlock(tool_use_id="late", content="found it")]))
    messages += [Message.user(str(i)) for i in range(250)]

    async def long(store: ExtendedStore) -> None:
        calls = [ToolCallRecord(id="late", name="search", input={}, state="COMPLETED", duration_ms=7)]
        await store.save_turn("a", append=messages, tool_calls=calls, info=AgentInfo(agent_id="a", template_id="t"))

    fill(url, long)
    with served(url) as inspector:
        first, second = inspector.get("/agent", id="a", at=99).text, inspector.get("/agent", id="a", at=100).text
        assert "found it" in first and "7 ms" in first
        assert "which is not on this page" in second and "found it" in second
        last = inspector.get("/agent", id="a").text
        assert "messages 300 to 350 of 351" in last and last.count('<article class="message') == 51
        assert inspector.get("/agent", id="a", at=351).status_code == 400


@pytest.mark.parametrize("path", [*OF_AN_AGENT, "/agent/raw", "/compare"])
def test_an_unknown_agent(ordinary: Served, path: str) -> None:
    """The page says that there is none, with the status of it."""
    answer = ordinary.get(path, id="nobody", kind="info", a="nobody", b="agt-1")
    assert answer.status_code == (400 if path == "/compare" else 404)
    assert ("nobody" in answer.text and "AgentNotFoundError" in answer.text) or path == "/compare"


def test_tool_calls(ordinary: Served) -> None:
    """Calls of all agents, with their errors and durations; the page links to the agent and the record."""
    text = ordinary.get("/calls", error="yes").text
    assert "card refused" in text and "1.2 s" in text and "approval" in text
    assert ordinary.get("/calls", tool="book", approval="yes").text.count("<tr data-row") == 3
    assert "No tool call matches" in ordinary.get("/calls", tool="none").text
    record = ordinary.get("/agent/raw", id="agt-1", kind="call", at=2)
    assert "card refused" in record.text


def test_raw_records(ordinary: Served) -> None:
    """A record is shown as JSON; the whole one is plain text."""
    whole = ordinary.get("/agent/raw", id="agt-1", kind="message", at=1, whole=1)
    assert whole.headers["content-type"].startswith("text/plain")
    assert json.loads(whole.text)["content"][0]["text"] == "I need a seat to Oslo"
    for wrong in (
        {"kind": "x"},
        {"kind": "message"},
        {"kind": "message", "at": "1e5"},
        {"kind": "message", "at": "-1"},
    ):
        assert ordinary.get("/agent/raw", id="agt-1", **wrong).status_code == 400
    assert ordinary.get("/agent/raw", id="agt-1", kind="message", at=99).status_code == 404


def test_snapshots_forks_and_two_sides(ordinary: Served) -> None:
    """The tree has the fork under its parent, and a comparison folds what is equal."""
    tree = ordinary.get("/agent/forks", id="agt-1-fork").text
    assert tree.index(">agt-1</a>") < tree.index(">agt-1-fork</a>")
    assert "first" in ordinary.get("/agent/family", id="agt-1").text
    text = ordinary.get("/compare", a="agt-1", b="agt-1-fork").text
    assert "3 equal messages" in text and "There are three to Bergen." in text
    text = ordinary.get("/compare", a="agt-1", at_a="first", b="agt-1").text
    assert "2 equal messages" in text
    assert "Both are the same" in ordinary.get("/compare", a="agt-1", b="agt-2").text
    wrong = ordinary.get("/compare", a="agt-1", at_a="none", b="agt-1")
    assert wrong.status_code == 400 and "no snapshot" in wrong.text


def test_the_dashboard(ordinary: Served) -> None:
    """The figures have the failures and durations by tool, and each chart a title and its values as text."""
    text = ordinary.get("/dashboard/figures", range="all").text
    assert "33.3%" in text or "failed" in text
    assert "340 ms" in text and "1.2 s" in text and "pay" in text
    charts = re.findall(r'<svg class="chart"[^>]*aria-labelledby="([^"]+)"><title id="([^"]+)">([^<]+)</title>', text)
    assert len(charts) == 5
    assert all(label == name and title for label, name, title in charts)


def test_the_health_and_the_check(ordinary: Served) -> None:
    """The check runs beside the pages, and ends with its result."""
    assert "healthy" in ordinary.get("/health").text
    from kode_inspector.security import post_token

    from plugins.inspector.tests.serving import TOKEN

    with ordinary.client(headers={"x-kode-post": post_token(TOKEN)}) as client:
        text = client.post("/health/check").text
        while "hx-trigger" in text:
            text = client.get("/health/check").text
        assert "4 agents checked" in text
        assert client.post("/health/stop").status_code == 200


def test_exports(ordinary: Served) -> None:
    """The HTML file needs nothing else and runs nothing; the JSON has all records."""
    page = ordinary.get("/agent/export.html", id="agt-1")
    assert 'filename="agt-1.html"' in page.headers["content-disposition"]
    assert "<script" not in page.text and "src=" not in page.text and "<link" not in page.text
    assert page.text.count('<article class="message') == 5 and page.text.rstrip().endswith("</html>")
    found = json.loads(ordinary.get("/agent/export.json", id="agt-1").text)
    assert [len(found[name]) for name in ("messages", "toolCalls", "events")] == [7, 3, 2]
    assert found["info"]["metadata"]["userId"] == "u-7"


def test_an_empty_store_says_what_to_do(url: str) -> None:
    """Every page works without a record."""
    with served(url) as inspector:
        text = inspector.get("/").text
        assert "This store is empty" in text and "kode import" in text
        assert "No tool call matches" in inspector.get("/calls").text
        assert "Nothing to count yet" in inspector.get("/dashboard/figures").text
        assert inspector.get("/health").status_code == 200


def test_hostile_agents(url: str) -> None:
    """Every page of hostile agents answers, and none of their markup is markup on the page."""

    async def work(store: ExtendedStore) -> None:
        for agent_id in HOSTILE_IDS:
            await hostile(store, agent_id)

    fill(url, work)
    with served(url) as inspector:
        for path in ("/", "/calls", "/dashboard/figures", "/templates", "/health"):
            answer = inspector.get(path)
            assert answer.status_code == 200, path
            assert "<script>window" not in answer.text and "<img src=x" not in answer.text
        for agent_id in HOSTILE_IDS:
            for path in OF_AN_AGENT:
                answer = inspector.get(path, id=agent_id)
                assert answer.status_code == 200, (path, agent_id)
                if not path.endswith("json"):
                    assert "<script>window" not in answer.text and "<img src=x" not in answer.text
                    assert "\u202e" not in answer.text and "\x1b" not in answer.text and "\ud800" not in answer.text
            for kind, at in (("message", 2), ("message", 5), ("call", 0), ("info", None)):
                given = {} if at is None else {"at": at}
                assert inspector.get("/agent/raw", id=agent_id, kind=kind, **given).status_code == 200
                assert inspector.get("/agent/raw", id=agent_id, kind=kind, whole=1, **given).status_code == 200
            text = inspector.get("/agent", id=agent_id).text
            assert len(text) < 400_000
            assert 'href="javascript' not in text and "evil.example/" in text and 'href="http' not in text
            export = inspector.get("/agent/export.html", id=agent_id).text
            assert f"data:image/png;base64,{PNG}" in export and "data:image/svg" not in export
            assert json.loads(inspector.get("/agent/export.json", id=agent_id).text)["agentId"] == agent_id
            compared = inspector.get("/compare", a=agent_id, at_a=MARKUP, b=agent_id)
            assert compared.status_code == 200 and "<script>window" not in compared.text


def test_images_are_of_kinds_that_run_nothing(url: str) -> None:
    """An inline PNG is served as such; an SVG, a wrong place and other blocks are not."""
    fill(url, lambda store: hostile(store, "a"))
    with served(url) as inspector:
        png = inspector.get("/agent/media", id="a", at=2, block=2)
        assert png.status_code == 200 and png.headers["content-type"] == "image/png"
        assert (
            png.headers["content-security-policy"] == "sandbox" and png.headers["x-content-type-options"] == "nosniff"
        )
        for at, block in ((2, 4), (2, 3), (2, 0), (2, 99), (99, 0)):
            assert inspector.get("/agent/media", id="a", at=at, block=block).status_code == 404


def test_a_damaged_agent_is_shown_around_the_damage(tmp_path: Path) -> None:
    """The message that cannot be read has an error in its place, the others are there, and the lists work."""
    url = f"sqlite:///{tmp_path}/agents.db"
    fill(url, lambda store: conversation(store, "a"))
    fill(url, lambda store: conversation(store, "b"))
    with sqlite3.connect(tmp_path / "agents.db") as database:
        damage(database)
    database.close()
    with served(url) as inspector:
        answer = inspector.get("/agent", id="a")
        assert answer.status_code == 200
        assert "message 1 cannot be read: CorruptRecordError" in answer.text
        assert "There are three to Bergen." in answer.text and 'id="m2"' in answer.text
        assert inspector.get("/").status_code == 200
        assert inspector.get("/calls").status_code == 200
        assert "Todos: CorruptRecordError" in answer.text
        for page in ("/agent/events", "/agent/family"):
            part = inspector.get(page, id="a")
            assert part.status_code == 200 and "<strong>CorruptRecordError</strong>" in part.text, page
        assert inspector.get("/agent/raw", id="a", kind="message", at=1).status_code == 500
        assert "CorruptRecordError" in inspector.get("/agent/raw", id="a", kind="message", at=1).text
        assert "message 1" in inspector.get("/agent/export.html", id="a").text
        problems = json.loads(inspector.get("/agent/export.json", id="a").text)["problems"]
        assert [problem.partition(" ")[0] for problem in problems] == ["messages:", "events:"]


def damage(database: sqlite3.Connection) -> None:
    """Make the second message of agent a unreadable."""
    changed = database.execute(
        "UPDATE kode_messages SET body = CAST('{\"role\": \"us' AS BLOB) WHERE agent_id = 'a' AND position = 1"
    )
    assert changed.rowcount == 1
    for table in ("kode_events", "kode_docs"):
        changed = database.execute(f"UPDATE {table} SET body = 'zzz' WHERE agent_id = 'a'")
        assert changed.rowcount >= 1


def test_a_store_that_goes_away_and_comes_back(ordinary: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages say so with 503, and work again without a restart; a part of a page gets a part."""

    async def away(*_: object, **__: object) -> object:
        raise StoreUnavailableError("nothing answers at 127.0.0.1:1")

    with monkeypatch.context() as patched:
        patched.setattr(type(ordinary.store), "query_sessions", away)
        answer = ordinary.get("/")
        assert answer.status_code == 503
        assert "StoreUnavailableError" in answer.text and "when the store is back" in answer.text
        with ordinary.client(headers={"hx-request": "true"}) as client:
            part = client.get("/dashboard/figures?range=7d")
            assert part.status_code == 503 and "<html" not in part.text and "StoreUnavailableError" in part.text
    assert ordinary.get("/").status_code == 200


def test_an_unexpected_error_shows_nothing_of_itself(ordinary: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of the pages is a page too, without the text of the exception."""

    async def broken(*_: object, **__: object) -> object:
        raise RuntimeError("a secret")

    monkeypatch.setattr(type(ordinary.store), "query_tool_calls", broken)
    answer = ordinary.get("/calls")
    assert answer.status_code == 500
    assert "RuntimeError" in answer.text and "a secret" not in answer.text


@pytest.mark.parametrize(
    "kind", ["memory:", "json:///{}", "sqlite:///{}/a.db", "sqlite:///{}/a.db?file_store_base_dir={}/f"]
)
def test_backends_without_a_server(tmp_path: Path, kind: str) -> None:
    """The pages work over every one of them."""
    every_page(kind.replace("{}", str(tmp_path)))


def every_page(url: str) -> None:
    with served(url) as inspector:
        inspector.run(conversation(inspector.store, "agt-1"))
        inspector.run(hostile(inspector.store, HOSTILE_IDS[1]))
        for path in ("/", "/now", "/templates", "/calls", "/dashboard/figures", "/health"):
            assert inspector.get(path).status_code == 200, path
        for path in OF_AN_AGENT:
            assert inspector.get(path, id="agt-1").status_code == 200, path
        assert "Bergen" in inspector.get("/agent", id="agt-1").text
        assert "travel" in inspector.get("/", id="agt", template="travel").text


def test_a_stream_goes_on_behind_the_last_event(ordinary: Served) -> None:
    """Last-Event-ID names an offset; the stream gives the events behind it, each with its offset as its id."""

    async def offsets() -> list[int]:
        return [event.offset async for event in ordinary.store.read_events("agt-2", after_offset=0)]

    one, two = ordinary.run(offsets())
    with ordinary.client() as client:
        for headers, params, first in (
            ({}, {}, one),
            ({"last-event-id": str(one)}, {"after": "0"}, two),
            ({}, {"after": str(one)}, two),
        ):
            with client.stream("GET", "/agent/stream", params={"id": "agt-2"} | params, headers=headers) as answer:
                assert answer.headers["content-type"].startswith("text/event-stream")
                ids = (line for line in answer.iter_lines() if line.startswith("id: "))
                assert next(ids) == f"id: {first}"
        assert client.get("/agent/stream", params={"id": "agt-2", "after": "x"}).status_code == 400
        assert client.get("/agent/stream", params={"id": ""}).status_code == 400


@pytest.mark.skipif("contains" not in MessageFilter.__annotations__, reason="this kode-core does not search texts")
def test_messages_are_found_by_their_text(ordinary: Served) -> None:
    """The page has the messages with the text, each with the place of it and a link."""
    answer = ordinary.get("/search", q="BERGEN")
    assert answer.status_code == 200
    assert answer.text.count("<li data-row>") == 3 and "/agent?id=agt-1&amp;at=6" in answer.text
    assert "No message has this text" in ordinary.get("/search", q="Bergamo").text
    assert ordinary.get("/search", q="x", role="user", after="soon").status_code == 400
    assert "Search what was said" in ordinary.get("/search").text


@pytest.mark.skipif("contains" in MessageFilter.__annotations__, reason="this kode-core searches texts")
def test_no_search_without_a_store_that_has_it(ordinary: Served) -> None:
    """Pages do not lead to a search that the store cannot make, and a link to it says why."""
    assert "/search" not in ordinary.get("/").text
    assert "cannot search" in ordinary.get("/search", q="x").text


def test_a_slow_answer_of_the_store_holds_up_no_other_page(ordinary: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one call of the store waits, other pages answer."""
    begun, on = threading.Event(), asyncio.Event()
    query = type(ordinary.store).query_tool_calls

    async def slow(*given: Any, **filters: Any) -> Any:
        begun.set()
        await on.wait()
        return await query(*given, **filters)

    with monkeypatch.context() as patched, ThreadPoolExecutor(1) as thread:
        patched.setattr(type(ordinary.store), "query_tool_calls", slow)
        waiting = thread.submit(ordinary.get, "/calls")
        assert begun.wait(60)
        for _ in range(3):
            assert ordinary.get("/").status_code == 200
            assert ordinary.get("/agent", id="agt-1").status_code == 200
        assert not waiting.done()
        ordinary.loop.call_soon_threadsafe(on.set)
        assert waiting.result(60).status_code == 200


@pytest.mark.parametrize("backend", ["postgres", "mongo", "dynamodb"])
def test_backends_with_a_server(backend: str, tmp_path: Path) -> None:
    """The pages work over every one of them."""
    harness = find_harness(backend)

    async def run() -> None:
        try:
            handle = await harness.provision(Space(f"inspector_{secrets.token_hex(6)}", tmp_path))
        except NoServerError as exc:
            pytest.skip(str(exc))
        try:
            store: Any = await harness.open(handle)
            try:
                await conversation(store, "agt-1")
                await hostile(store, HOSTILE_IDS[1])
                app = create_app(store, token="t")
                headers = {"authorization": "Bearer t"}
                transport = httpx.ASGITransport(app)
                base = "http://127.0.0.1"
                async with httpx.AsyncClient(transport=transport, base_url=base, headers=headers) as client:
                    for path in ("/", "/now", "/templates", "/calls", "/dashboard/figures", "/health"):
                        assert (await client.get(path)).status_code == 200, path
                    for agent_id in ("agt-1", HOSTILE_IDS[1]):
                        for path in OF_AN_AGENT:
                            assert (await client.get(path, params={"id": agent_id})).status_code == 200, path
                    assert "Bergen" in (await client.get("/agent?id=agt-1")).text
                    assert "travel" in (await client.get("/?id=agt&template=travel")).text
            finally:
                await store.close()
        finally:
            await harness.destroy(handle)

    asyncio.run(run())
