"""The threads of engines whose calls block, and stores in several threads."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from kode_core import AgentEvent, AgentInfo, Bookmark, LockUnavailableError, Message, Timeline
from kode_core.backends.json_files.threads import Threads
from kode_core.backends.memory.engine import forget_memory
from kode_core.direct import MemoryStore
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


@pytest.fixture
def switches() -> Iterator[None]:
    """Threads change places all the time."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)
    forget_memory("shared")


@pytest.mark.usefixtures("switches")
async def test_memory_stores_of_one_name_in_several_threads_lose_nothing() -> None:
    """Each thread has an event loop of its own; all that was acknowledged is there, once, and queries see no halves."""
    threads, each = range(4), range(60)
    offsets: list[int] = []
    failures: list[BaseException] = []
    locked: list[int] = []

    async def work(k: int) -> None:
        async with MemoryStore("shared") as store:
            await store.save_info(f"own{k}", AgentInfo(agent_id=f"own{k}", template_id="t"))
            for n in each:
                event = Timeline(n, Bookmark(n, k), AgentEvent("monitor", "x", {"k": k}))
                offsets.append(await store.append_event("a", event))
                await store.append_messages("a", [Message.user(f"{k}.{n}")])
                await store.save_info(f"{k}.{n}", AgentInfo(agent_id=f"{k}.{n}", template_id="t"))
                await store.query_sessions(template_id="t", limit=0 if n % 7 else 1_000)
                await store.query_messages(agent_id="a", limit=10)
                await store.batch_fork(f"own{k}", 1)
                await store.delete(f"{k}.{n}")
            try:
                async with store.acquire_agent_lock("a", wait_ms=0):
                    locked.append(k)
            except LockUnavailableError:
                pass

    def run(k: int) -> None:
        try:
            asyncio.run(work(k))
        except BaseException as exc:
            failures.append(exc)

    async with MemoryStore("shared") as store:
        running = [threading.Thread(target=run, args=(k,)) for k in threads]
        for thread in running:
            thread.start()
        for thread in running:
            await asyncio.to_thread(thread.join)
        assert not failures
        assert locked
        events = [event async for event in store.read_events("a", after_offset=0)]
        assert [event.offset for event in events] == sorted(offsets)
        assert len(set(offsets)) == len(threads) * len(each)
        texts = {message.content[0].text async for message in store.iter_messages(agent_id="a")}  # type: ignore[union-attr]
        assert texts == {f"{k}.{n}" for k in threads for n in each}
        assert len(await store.list()) == len(threads) * (len(each) + 1)


def test_threads_that_read_for_the_first_time_at_once() -> None:
    """In a new process several threads read records of one class at the same moment, and each gets the record."""
    code = """
import sys, threading
from kode_core import Message, TextBlock
from kode_core.codec import decode, decode_run, encode
sys.setswitchinterval(1e-6)
wanted = Message("user", [TextBlock("x")])
body = encode(Message, wanted, "m")
gate, right = threading.Barrier(8), []
def read(k):
    gate.wait()
    right.append((decode(Message, body, "m") if k % 2 else decode_run(Message, [body, body])[1]) == wanted)
threads = [threading.Thread(target=read, args=(k,)) for k in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert right == [True] * 8, right
"""
    for _ in range(5):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
