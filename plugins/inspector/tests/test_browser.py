"""The pages in a real browser: what is drawn, moved to, streamed, and what must not run."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kode_core import AgentInfo, ExtendedStore, Message, ToolCallRecord
from plugins.inspector.tests.conftest import fill
from plugins.inspector.tests.filling import HOSTILE_IDS, MARKUP, conversation, hostile
from plugins.inspector.tests.serving import Served, served

PAGES = (
    "/",
    "/calls",
    "/dashboard",
    "/health",
    "/compare?a=agt-1&b=agt-1-fork",
    "/agent?id=agt-1",
    "/agent/events?id=agt-1",
    "/agent/family?id=agt-1",
    "/agent/raw?id=agt-1&at=1",
    "/agent?id=nobody",
    "/?after=soon",
)

CONTRAST = """() => {
  const parse = (text) => {
    const found = text.match(/[\\d.]+/g).map(Number);
    return found.length < 4 ? [...found, 1] : found;
  };
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour[3] > 0.99) return colour;
    }
    return [255, 255, 255, 1];
  };
  const bad = [];
  for (const element of document.querySelectorAll("body *")) {
    if (element.closest("svg, dialog, .hidden, .skip")) continue;
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.getClientRects().length) continue;
    const style = getComputedStyle(element);
    if (style.opacity === "0" || style.visibility === "hidden") continue;
    const [a, b] = [light(parse(style.color)), light(ground(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const text = element.textContent.trim().slice(0, 30);
    if (ratio < 4.5) bad.push(`${element.tagName}.${element.className} ${ratio.toFixed(2)} ${text}`);
  }
  return [...new Set(bad)];
}"""
NAMELESS = """() => [
  ...document.querySelectorAll("input, select, button, a, summary, progress, img, table")
].filter((element) => {
  if (element.tagName === "IMG") return !element.alt;
  if (element.tagName === "TABLE") return !element.caption;
  if (element.labels && element.labels.length) return false;
  return !(element.getAttribute("aria-label") || element.textContent.trim());
}).map((element) => element.outerHTML.slice(0, 200))"""
WIDER = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"

Look = Callable[..., Any]


def shown(watched: Any, inspector: Served, path: str) -> Any:
    """Go to a page and wait for the parts that come later."""
    page = watched.page
    page.goto(f"{inspector.base}{path}")
    if path.startswith("/dashboard"):
        page.wait_for_selector(".tiles")
    if "/family" in path:
        page.wait_for_selector(".forks")
    if "/events" in path:
        page.wait_for_selector("#live.ok")
    return page


def test_every_page_is_sound_in_every_size_and_colour(ordinary: Served, look: Look) -> None:
    """No page is wider than the window, has text of low contrast, or a control without a name; each has a heading."""
    for width in (1280, 360):
        for scheme in ("light", "dark"):
            watched = look(ordinary, width=width, color_scheme=scheme)
            for path in PAGES:
                page = shown(watched, ordinary, path)
                page.evaluate("document.querySelectorAll('details').forEach((box) => { box.open = true; })")
                where = f"{path} at {width} in {scheme}"
                assert page.evaluate(WIDER) <= 0, where
                assert page.evaluate(CONTRAST) == [], where
                assert page.evaluate(NAMELESS) == [], where
                assert page.locator("h1").count() == 1, where
                assert page.locator("main, header, nav").count() >= 3, where
                assert page.evaluate("document.documentElement.lang") == "en"
            complaints = [text for text in watched.complaints if "status of 40" not in text]
            assert complaints == []
            assert {re.sub(r"^(https?://[^/]+).*", r"\1", url) for url in watched.asked} == {ordinary.base}


def test_the_address_loses_its_token(ordinary: Served, look: Look) -> None:
    """After the first page neither the address nor the page has the token, and scripts cannot read the cookie."""
    page = look(ordinary).page
    assert page.url == f"{ordinary.base}/"
    assert page.evaluate("document.cookie") == ""
    assert "a-token-of-the-tests" not in page.content()


def test_filters_are_kept_and_shown(ordinary: Served, look: Look) -> None:
    """A form sends its filters, the page shows them again, and a wrong one is marked."""
    page = look(ordinary).page
    page.fill("#f-id", "agt-1")
    page.press("#f-id", "Enter")
    page.wait_for_url("**id=agt-1*")
    assert page.locator("tr[data-row]").count() == 2
    assert page.input_value("#f-id") == "agt-1"
    page.fill("#f-updated", "soon")
    page.click("text=Apply")
    page.wait_for_selector("#e-updated")
    assert page.get_attribute("#f-updated", "aria-invalid") == "true"
    page.click("text=Clear")
    page.wait_for_url(f"{ordinary.base}/")
    assert page.locator("tr[data-row]").count() == 4


def test_the_keyboard_is_enough(ordinary: Served, look: Look) -> None:
    """Rows, errors, folds, pages, filters, colours and the help are reached by keys."""
    page = look(ordinary).page
    page.keyboard.press("j")
    first = page.evaluate("document.activeElement.textContent")
    page.keyboard.press("j")
    assert page.evaluate("document.activeElement.textContent") != first
    page.keyboard.press("k")
    assert page.evaluate("document.activeElement.textContent") == first
    page.keyboard.press("Enter")
    page.wait_for_url("**/agent?id=*")
    page.goto(f"{ordinary.base}/agent?id=agt-1")
    page.keyboard.press("e")
    assert page.evaluate("document.activeElement.id") == "m2"
    assert page.evaluate("document.querySelector('#m2 details.call').open")
    page.keyboard.press("o")
    page.keyboard.press("x")
    assert page.evaluate("[...document.querySelectorAll('details.call')].every((call) => call.open)")
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.keyboard.press("t")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before
    page.reload()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("#help").is_visible()
    page.keyboard.press("g")
    page.keyboard.press("c")
    page.wait_for_url("**/calls")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "f-tool"
    page.goto(f"{ordinary.base}/")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"


def test_a_deep_link_leads_to_its_message(url: str, look: Look) -> None:
    """A link to a message of a long conversation opens its part, there, and no page has all messages."""

    async def long(store: ExtendedStore) -> None:
        messages = [Message.user(f"message number {i}") for i in range(1_234)]
        await store.save_turn("a", append=messages, info=AgentInfo(agent_id="a", template_id="t"))

    fill(url, long)
    with served(url) as inspector:
        page = look(inspector).page
        page.goto(f"{inspector.base}/agent?id=a&at=555")
        assert page.locator("#m555").inner_text().endswith("message number 555")
        assert page.evaluate("document.activeElement.id") == "m555"
        top = page.evaluate("document.querySelector('#m555').getBoundingClientRect().top")
        assert 0 <= top < 900
        assert page.locator("article.message").count() == 100
        page.keyboard.press("n")
        page.wait_for_url("**at=600")
        page.click("text=End >> nth=0")
        page.wait_for_selector("#m1233")


def test_hostile_texts_neither_run_nor_break_the_page(url: str, look: Look) -> None:
    """Markup is text, hidden characters are seen, and no page gets wider than its window."""

    async def work(store: ExtendedStore) -> None:
        for agent_id in HOSTILE_IDS[:4]:
            await hostile(store, agent_id)

    fill(url, work)
    with served(url, allow_delete=True) as inspector:
        for width in (1280, 360):
            watched = look(inspector, width=width)
            page = watched.page
            for path in ("/", "/calls", "/dashboard", "/health"):
                shown(watched, inspector, path)
                assert page.evaluate("window.hacked") is None
                assert page.evaluate(WIDER) <= 0, (path, width)
            for number in range(4):
                page.goto(f"{inspector.base}/?id=")
                links = page.eval_on_selector_all("td.id a", "found => found.map(a => a.getAttribute('href'))")
                wanted = page.evaluate("text => encodeURIComponent(text)", HOSTILE_IDS[number][:3])
                link = next(found for found in links if found.lower().startswith(f"/agent?id={wanted}".lower()[:14]))
                for view in ("/agent", "/agent/events", "/agent/family", "/agent/delete"):
                    shown(watched, inspector, link.replace("/agent", view, 1))
                    page.evaluate("document.querySelectorAll('details').forEach((box) => { box.open = true; })")
                    assert page.evaluate("window.hacked") is None
                    assert page.evaluate(WIDER) <= 0, (view, number, width)
                    assert page.locator("main script, main iframe, main object").count() == 0
            assert [text for text in watched.complaints if "Failed to load" not in text] == []
        page.goto(f"{inspector.base}/")
        assert MARKUP[:40] in page.inner_text("body")


EMITTER = """
import asyncio, sys
from kode_core import create_extended_store

async def main():
    async with create_extended_store(sys.argv[1]) as store:
        for i in range(int(sys.argv[2]), int(sys.argv[3])):
            await store.emit("agt-1", "step", {"number": i})

asyncio.run(main())
"""


def emit(url: str, first: int, last: int) -> None:
    subprocess.run([sys.executable, "-c", EMITTER, url, str(first), str(last)], check=True, timeout=120)


def numbers(page: Any) -> list[int]:
    texts = page.eval_on_selector_all("#events .args", "found => found.map(one => one.textContent)")
    return [int(match[1]) for text in texts if (match := re.fullmatch(r"number: (\d+)", text))]


def until(page: Any, count: int) -> None:
    page.wait_for_function(
        "count => [...document.querySelectorAll('#events .args')]"
        ".filter((one) => one.textContent.startsWith('number')).length >= count",
        arg=count,
    )


def test_events_of_another_process_come_live(url: str, look: Look) -> None:
    """Each event is there once and in order, also after the page was loaded again."""
    fill(url, lambda store: conversation(store, "agt-1"))
    with served(url) as inspector:
        page = shown(look(inspector), inspector, "/agent/events?id=agt-1")
        emit(url, 0, 5)
        until(page, 5)
        assert numbers(page) == [0, 1, 2, 3, 4]
        page.reload()
        page.wait_for_selector("#live.ok")
        emit(url, 5, 9)
        until(page, 9)
        assert numbers(page) == list(range(9))


def test_a_stream_that_broke_loses_and_repeats_nothing(url: str, look: Look) -> None:
    """The browser connects again with the last offset it has, and gets what was stored meanwhile."""
    fill(url, lambda store: conversation(store, "agt-1"))
    with served(url) as inspector:
        watched = look(inspector)
        page = shown(watched, inspector, "/agent/events?id=agt-1")
        emit(url, 0, 3)
        until(page, 3)
        again: list[Any] = []
        page.on("request", lambda request: again.append(request) if "/agent/stream" in request.url else None)
        inspector.run(cut_streams(inspector))
        emit(url, 3, 8)
        until(page, 8)
        assert numbers(page) == list(range(8))
        assert len(again) == 1, "the browser connected again"
        assert page.locator("#live.ok").count() == 1


async def cut_streams(inspector: Served) -> None:
    """End every answer that still streams, as a proxy does."""
    for task in asyncio.all_tasks():
        if "run_asgi" in repr(task.get_coro()):
            task.cancel()


def test_deleting_asks_first(url: str, look: Look) -> None:
    """The page says what is lost; the button deletes and leads to the list."""
    fill(url, lambda store: conversation(store, "agt-1"))
    with served(url, allow_delete=True) as inspector:
        page = look(inspector).page
        page.goto(f"{inspector.base}/agent?id=agt-1")
        page.click("text=Delete")
        page.wait_for_selector("h1:has-text('Delete this agent?')")
        page.click("button.danger")
        page.wait_for_selector("text=This store is empty")


def test_the_check_shows_its_progress_and_end(ordinary: Served, look: Look) -> None:
    """The button begins the check, and the result takes its place."""
    page = look(ordinary).page
    page.goto(f"{ordinary.base}/health")
    page.click("#check button")
    page.wait_for_selector("#check .state")
    assert "4 agents checked" in page.inner_text("#check")


def test_an_exported_file_stands_alone(ordinary: Served, browser: Any, tmp_path: Path) -> None:
    """The file opens without the server, asks for nothing, and its folds work without a script."""
    file = tmp_path / "agt-1.html"
    file.write_text(ordinary.get("/agent/export.html", id="agt-1").text, encoding="utf-8")
    context = browser.new_context()
    page = context.new_page()
    complaints: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    assert asked == [file.as_uri()] and complaints == []
    page.click("details.call summary >> nth=0")
    assert page.locator("details.call[open]").count() == 1
    assert page.evaluate("getComputedStyle(document.querySelector('.message')).display") == "grid"
    context.close()


@pytest.mark.parametrize("tool", ["search"])
def test_charts_have_titles_and_values(url: str, look: Look, tool: str) -> None:
    """A chart is named for a reader of the screen, and its bars say their values."""

    async def work(store: ExtendedStore) -> None:
        for i in range(12):
            calls = [
                ToolCallRecord(
                    id="c",
                    name=tool,
                    state="FAILED" if i % 3 == 0 else "COMPLETED",
                    is_error=i % 3 == 0,
                    duration_ms=100 * i,
                )
            ]
            info = AgentInfo(agent_id=f"a{i}", template_id="t", created_at=1_760_000_000_000 + i * 86_400_000)
            await store.save_turn(f"a{i}", tool_calls=calls, info=info)

    fill(url, work)
    with served(url) as inspector:
        page = shown(look(inspector), inspector, "/dashboard")
        charts = page.locator("svg.chart")
        assert charts.count() == 5
        names = page.eval_on_selector_all("svg.chart", "all => all.map(one => one.querySelector('title').textContent)")
        assert all(names) and len(set(names)) == 5
        assert page.locator("svg.chart g title").count() >= 12
        assert "33%" in page.inner_text(".charts") and "1.1 s" in page.inner_text(".charts")
