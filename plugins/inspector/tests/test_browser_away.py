"""Live events in a real browser while the server goes away and comes back."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from plugins.inspector.tests.conftest import fill
from plugins.inspector.tests.filling import conversation
from plugins.inspector.tests.serving import served
from plugins.inspector.tests.test_browser import emit, numbers, shown, until

Look = Callable[..., Any]


def test_a_server_that_goes_away_loses_and_repeats_nothing(url: str, look: Look) -> None:
    """The page says that it reconnects, and shows each event of the time between once, whatever was live before."""
    fill(url, lambda store: conversation(store, "agt-1"))
    with served(url) as inspector:
        page = shown(look(inspector), inspector, "/agent/events?id=agt-1")
        port = int(inspector.base.rpartition(":")[2])
        page.wait_for_selector("#live.ok")
    for first in (0, 40):  # the first time it goes away before the browser got an event
        page.wait_for_selector("#live.waiting")
        emit(url, first, first + 30)
        with served(url, port=port):
            until(page, first + 30)
            page.wait_for_selector("#live.ok")
            emit(url, first + 30, first + 40)
            until(page, first + 40)
            assert numbers(page) == list(range(first + 40))


@contextmanager
def answering(port: int, answer: bytes) -> Iterator[threading.Event]:
    """A server that gives every request this answer, as a proxy does whose server is away; the event: it did."""
    asked, ends = threading.Event(), threading.Event()
    listener = socket.create_server(("127.0.0.1", port))
    listener.settimeout(0.1)

    def work() -> None:
        while not ends.is_set():
            try:
                one, _ = listener.accept()
            except TimeoutError:
                continue
            with one:
                one.settimeout(10)
                if b"/agent/stream" in one.recv(65_536):
                    asked.set()
                one.sendall(answer)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield asked
    finally:
        ends.set()
        thread.join(30)
        listener.close()


def test_a_proxy_that_answers_for_a_server_that_is_away(url: str, look: Look) -> None:
    """A browser gives up a stream that gets a 502; the page begins another behind its last event."""
    fill(url, lambda store: conversation(store, "agt-1"))
    with served(url) as inspector:
        page = shown(look(inspector), inspector, "/agent/events?id=agt-1")
        port = int(inspector.base.rpartition(":")[2])
        emit(url, 0, 3)
        until(page, 3)
    bad_gateway = b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    with answering(port, bad_gateway) as asked:
        assert asked.wait(60)
        emit(url, 3, 8)
    with served(url, port=port):
        until(page, 8)
        page.wait_for_selector("#live.ok")
        assert numbers(page) == list(range(8))
