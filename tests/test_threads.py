"""The threads of engines whose calls block."""

from __future__ import annotations

import threading

import pytest

from kode_core.engines.threads import Threads
from kode_core.errors import StoreUnavailableError


async def test_a_system_without_threads_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that no thread can take raises; the next one is made when there are threads again."""
    threads = Threads("test")

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(StoreUnavailableError, match="no more threads"):
            await threads.run(int, "1")
    assert await threads.run(int, "2") == 2
    with monkeypatch.context() as patch:  # the thread that is there takes the call
        patch.setattr(threading.Thread, "start", refuse)
        assert await threads.run(int, "3") == 3
    threads.close()
