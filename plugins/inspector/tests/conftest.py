from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from kode_core import ExtendedStore, create_extended_store
from plugins.inspector.tests.filling import conversation
from plugins.inspector.tests.serving import ARGUMENTS, Served, browser_or_skip, served


def fill(url: str, work: Callable[[ExtendedStore], Awaitable[Any]]) -> None:
    async def filling() -> None:
        async with create_extended_store(url) as store:
            await work(store)

    with ThreadPoolExecutor(1) as thread:  # playwright leaves an event loop running in this one
        thread.submit(asyncio.run, filling()).result()


@pytest.fixture(scope="module")
def ordinary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """An inspector of a store with three conversations, which may be read only."""
    url = f"sqlite:///{tmp_path_factory.mktemp('ordinary')}/agents.db"

    async def work(store: ExtendedStore) -> None:
        for name in ("agt-1", "agt-2", "other"):
            await conversation(store, name, template="travel" if name != "other" else "support")
        await store.fork("agt-1", "agt-1-fork", length=3)

    fill(url, work)
    with served(url) as inspector:
        yield inspector


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/agents.db"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = browser_or_skip()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield found
        found.close()


class Watched:
    """A page of a browser, and what it complained about."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.asked: list[str] = []
        page.on("console", lambda message: self.complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("dialog", lambda dialog: (self.complaints.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: self.asked.append(request.url))


@pytest.fixture
def look(browser: Any) -> Iterator[Callable[..., Watched]]:
    """Open a context of its own and sign in: ``look(inspector, width=390, color_scheme="dark")``."""
    contexts: list[Any] = []

    def open_(inspector: Served, *, width: int = 1280, height: int = 900, **more: Any) -> Watched:
        context = browser.new_context(viewport={"width": width, "height": height}, **more)
        contexts.append(context)
        watched = Watched(context.new_page())
        watched.page.set_default_timeout(60_000)
        watched.page.goto(inspector.address)
        return watched

    yield open_
    for context in contexts:
        context.close()
