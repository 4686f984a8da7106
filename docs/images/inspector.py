"""Take the pictures of the inspector that the README and the guides show.

    python docs/images/inspector.py [FOLDER]

It makes the store of ``kode demo`` in a temporary folder, serves it,
and writes the pages as a browser draws them into ``docs/images/``, or into FOLDER. It needs Chromium and playwright.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from kode_inspector import create_app
from kode_inspector.demo import RUNS
from playwright.sync_api import Browser, sync_playwright

from kode_core import create_extended_store
from kode_core.formats.openai_chat import ChatConverter, import_conversation, read_conversations

HERE = Path(__file__).parent
PAGES = (
    ("sessions", "/?sort=message_count", "light", 1200, 760),
    ("conversation", "/agent?id=tau-000-0", "light", 1200, 760),
    ("dashboard", "/dashboard", "dark", 1200, 760),
    ("phone", "/agent?id=tau-000-0", "dark", 390, 760),
)


def main(target: Path) -> None:
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        sys.exit("Chromium is needed: apt-get install chromium")
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(f"sqlite:///{folder}/demo.db") as address,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-quic"])
        for name, page, scheme, width, height in PAGES:
            file = target / f"inspector-{name}.png"
            take(browser, address, page, file, scheme, width, height)
            print(f"{file}: {file.stat().st_size / 1000:.0f} kB")
        browser.close()


def take(browser: Browser, address: str, path: str, file: Path, scheme: Any, width: int, height: int) -> None:
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    page.goto(address)
    page.goto(f"{address.partition('/?')[0]}{path}")
    if path.startswith("/dashboard"):
        page.wait_for_selector(".tiles")
    if path.startswith("/agent"):
        page.eval_on_selector(
            "details.call.failed", "call => { call.open = true; call.scrollIntoView(); scrollBy(0, -240); }"
        )
    page.wait_for_load_state("networkidle")
    page.screenshot(path=file)
    context.close()


@contextmanager
def serving(url: str) -> Iterator[str]:
    """The address of a server in a thread."""
    found: dict[str, Any] = {}

    async def serve() -> None:
        async with create_extended_store(url) as store:
            converter = ChatConverter(template="tau-airline", prefix="tau")
            for raw in read_conversations(RUNS):
                await import_conversation(store, converter.convert(raw))
            app = create_app(store, where="sqlite, kode-demo.db", token="token")
            server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", lifespan="off"))
            found["server"] = server
            await server.serve()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        while thread.is_alive() and not getattr(found.get("server"), "started", False):
            time.sleep(0.1)
        port = found["server"].servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}/?token=token"
    finally:
        if server := found.get("server"):
            server.should_exit = True
        thread.join()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
