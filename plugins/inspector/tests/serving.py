"""Serve a store in a thread of its own, and look at it with a browser."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import uvicorn
from kode_inspector import create_app

from kode_core import ExtendedStore, create_extended_store

TOKEN = "a-token-of-the-tests"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = ("--no-sandbox", "--disable-quic", "--disable-background-networking")


@dataclass
class Served:
    """A running inspector; *run* runs a coroutine function with its store, in its event loop."""

    base: str
    store: ExtendedStore
    loop: asyncio.AbstractEventLoop
    state: dict[str, Any]

    @property
    def address(self) -> str:
        return f"{self.base}/?token={TOKEN}"

    def run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def client(self, **more: Any) -> httpx.Client:
        headers = {"authorization": f"Bearer {TOKEN}"} | more.pop("headers", {})
        return httpx.Client(base_url=self.base, headers=headers, timeout=60, **more)

    def get(self, path: str, **params: Any) -> httpx.Response:
        with self.client() as client:
            return client.get(path, params=params or None)


@contextmanager
def served(url: str, patience_s: float = 60, port: int = 0, **options: Any) -> Iterator[Served]:
    """Serve the store at *url* until the block ends."""
    listener = socket.create_server(("127.0.0.1", port))
    begun = threading.Event()
    found: dict[str, Any] = {}

    async def serve() -> None:
        async with create_extended_store(url) as store:
            app = create_app(store, where="a store", token=TOKEN, **options)
            app.state.inspector.patience_s = patience_s
            config = uvicorn.Config(app, log_level="critical", lifespan="off", timeout_graceful_shutdown=1)
            server = uvicorn.Server(config)
            found.update(state=app.state.inspector.state, store=store, server=server, loop=asyncio.get_running_loop())
            task = asyncio.create_task(server.serve(sockets=[listener]))
            while not server.started and not task.done():
                await asyncio.sleep(0.01)
            begun.set()
            await task

    def work() -> None:
        try:
            asyncio.run(serve())
        except BaseException as exc:
            found["problem"] = exc
            raise
        finally:
            begun.set()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert begun.wait(60)
        assert "problem" not in found, found["problem"]
        yield Served(f"http://127.0.0.1:{listener.getsockname()[1]}", found["store"], found["loop"], found["state"])
    finally:
        if "server" in found:
            found["server"].should_exit = True
        thread.join(60)
        listener.close()
    assert not thread.is_alive()


def browser_or_skip() -> str:
    """The path of a browser; without one the test is skipped, or fails where KODE_NEEDS_BROWSER says so."""
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    try:
        import playwright  # noqa: F401
    except ImportError:
        path = None
    if path is None:
        missing = f"none of {', '.join(BROWSERS)} is installed, or playwright is missing"
        if os.environ.get("KODE_NEEDS_BROWSER") == "1":
            pytest.fail(f"KODE_NEEDS_BROWSER=1, but {missing}")
        pytest.skip(missing)
    return path
