"""Stores for synchronous code: threads, streams, locks that fence, forks, interruptions, the end of a program."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import importlib.util
import inspect
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from kode_core import (
    AgentEvent,
    AgentInfo,
    AgentNotFoundError,
    Bookmark,
    ConfigurationError,
    ExtendedStore,
    InvalidArgumentError,
    InvalidValueError,
    KodeError,
    LockLostError,
    LockUnavailableError,
    MemoryStore,
    Message,
    RepairResult,
    SqliteStore,
    StorageError,
    StoreClosedError,
    StoreTimeoutError,
    Timeline,
    UnknownBackendError,
    lazy_store,
)
from kode_core.backends.memory.engine import MemoryEngine, forget_memory
from kode_core.engine import Engine
from kode_core.store.facade import EngineStore
from kode_core.sync import SyncAgentLock, SyncIterator, SyncLease, SyncStore, open_store

ROOT = Path(__file__).parents[1]


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest) -> Iterator[SyncStore]:
    url = "memory:" if request.param == "memory" else "sqlite:///agents.db"
    with open_store(url) as opened:
        yield opened


@pytest.fixture
def two() -> Iterator[tuple[SyncStore, SyncStore]]:
    """Two stores with the same contents."""
    with open_store("memory:two") as one, open_store("memory:two") as other:
        yield one, other
    forget_memory("two")


def event(k: int) -> Timeline:
    return Timeline(k, Bookmark(k, k), AgentEvent("monitor", "x", {"k": k}))


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "kode-store"]


def test_it_has_every_method_with_the_same_signature() -> None:
    """Names, parameters, kinds and defaults are those of ExtendedStore, and the types are their counterparts."""
    counterparts = {"Lease | None": "SyncLease | None", "AgentLock": "SyncAgentLock"}
    for name, promised in inspect.getmembers(ExtendedStore, inspect.isfunction):
        if name.startswith("_"):
            continue
        ours = getattr(SyncStore, name)
        assert not inspect.iscoroutinefunction(ours), name
        there, here = inspect.signature(promised), inspect.signature(ours)
        assert list(there.parameters) == list(here.parameters), name
        for one, other in zip(there.parameters.values(), here.parameters.values(), strict=True):
            assert (one.kind, one.default) == (other.kind, other.default), f"{name}({one.name})"
            assert counterparts.get(one.annotation, one.annotation) == other.annotation, f"{name}({one.name})"
        result = counterparts.get(there.return_annotation, there.return_annotation)
        assert re.sub(r"^(AsyncIterator|EventStream)\[", "SyncIterator[", result) == here.return_annotation, name
        assert name in ("acquire_agent_lock", "close") or ours.__doc__ == promised.__doc__, name
        get_type_hints(ours)


def test_the_methods_are_of_today() -> None:
    """``python scripts/sync_methods.py`` would write the same methods."""
    spec = importlib.util.spec_from_file_location("sync_methods", ROOT / "scripts" / "sync_methods.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert {p: p.read_text() for p in script.FOLDER.glob("*.py")} == script.modules(), "run scripts/sync_methods.py"


# --- configuration and opening


@pytest.mark.parametrize("make", [open_store, lazy_store])
def test_a_wrong_configuration_is_an_error_at_once(make: Callable[..., object]) -> None:
    with pytest.raises(ConfigurationError, match="no option 'durabilty'"):
        make(type="sqlite", db_path="x.db", durabilty="fast")
    with pytest.raises(UnknownBackendError):
        make("nothing://x")
    with pytest.raises(ConfigurationError, match="not as int"):
        make(7)
    with pytest.raises(ConfigurationError, match="timeout_ms"):
        make("memory:", timeout_ms=-1)
    assert threads() == []


@pytest.mark.parametrize("make", [open_store, lazy_store])
def test_nothing_is_opened_before_the_first_use(make: Callable[..., object]) -> None:
    made = make("sqlite:///later.db")
    assert "not open yet" in repr(made)
    assert not Path("later.db").exists()
    assert threads() == []


def test_a_store_reads_the_same_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KODE_STORE_URL", "sqlite:///from-env.db")
    with open_store() as store:
        assert "from-env.db" in repr(store)
    Path("kode.toml").write_text("[stores.chat]\ntype = 'json'\nbase_dir = 'chats'\n")
    with open_store("chat", durability="fast") as store:
        store.append_messages("a", [Message.user("hi")])
    assert Path("chats", "a.jsonl").exists()


async def test_a_lazy_store_opens_at_its_first_use() -> None:
    store = lazy_store("sqlite:///agents.db")
    await asyncio.gather(*[store.append_messages("a", [Message.user(str(k))]) for k in range(5)])
    assert len(await store.load_messages("a")) == 5
    await store.close()
    async with lazy_store("sqlite:///agents.db") as again:
        assert len(await again.load_messages("a")) == 5


def test_a_lazy_store_that_cannot_be_opened_tries_again() -> None:
    Path("folder").write_text("in the way")
    store = lazy_store("json:///folder")

    async def work() -> None:
        with pytest.raises(StorageError):
            await store.load_messages("a")
        Path("folder").unlink()
        assert await store.load_messages("a") == []
        await store.close()

    asyncio.run(work())


def test_another_loop_and_thread_are_told_what_to_do() -> None:
    store = lazy_store("memory:")

    async def use() -> None:
        await store.exists("a")

    with asyncio.Runner() as one, asyncio.Runner() as other:
        one.run(use())
        with pytest.raises(
            KodeError, match=r"in another event loop: open one store in each loop, or .*kode_core\.sync"
        ):
            other.run(use())
        with ThreadPoolExecutor() as pool, pytest.raises(KodeError, match="another event loop"):
            pool.submit(lambda: asyncio.run(use())).result()
        one.run(store.close())


def test_a_backend_that_gives_a_whole_store() -> None:
    """It cannot be lazy, and can be used synchronously."""
    from kode_core.backends.memory import plugin
    from kode_core.plugins import Backend, hookimpl, registry

    async def opener(options: Any) -> ExtendedStore:
        return await MemoryStore().open()

    class Whole:
        @hookimpl
        def kode_store_backend(self) -> Backend:
            return Backend(name="whole", options=plugin.MemoryOptions, open=opener, gives="store")

    whole = Whole()
    registry.add(whole)
    try:
        with pytest.raises(ConfigurationError, match=r"create_store, or with kode_core\.sync"):
            lazy_store("whole:")
        with open_store("whole:") as store:
            store.append_messages("a", [Message.user("hi")])
            assert len(store.load_messages("a")) == 1
    finally:
        registry.remove(whole)


async def test_the_configuration_of_an_async_store() -> None:
    """Another store with the same configuration; the async one goes on in its own loop."""
    async with SqliteStore("agents.db") as here:
        await here.append_messages("a", [Message.user("hi")])

        def work() -> int:
            with open_store(here) as store:
                return len(store.load_messages("a"))

        assert await asyncio.to_thread(work) == 1
        assert len(await here.load_messages("a")) == 1
    with pytest.raises(ConfigurationError, match="takes no timeout_ms"):
        open_store(here, timeout_ms=5)

    async def opener() -> Engine:
        return MemoryEngine(None)

    with pytest.raises(ConfigurationError, match="give SyncStore a function"):
        open_store(EngineStore(opener))
    with SyncStore(lambda: _given(EngineStore(opener))) as store:
        store.append_messages("a", [Message.user("hi")])
        assert len(store.load_messages("a")) == 1


async def _given(store: ExtendedStore) -> ExtendedStore:
    return store


# --- calls


def test_calls_answer_as_async_ones(store: SyncStore) -> None:
    store.save_turn("a", append=[Message.user("hi")], info=AgentInfo(agent_id="a", template_id="t"), events=[event(1)])
    assert [message.role for message in store.load_messages("a")] == ["user"]
    assert [session.agent_id for session in store.query_sessions(template_id="t")] == ["a"]
    assert [message.position for message in store.iter_messages(agent_id="a")] == [0]
    (fork,) = store.batch_fork("a", 1)
    assert store.list() == sorted(["a", fork])
    assert store.aggregate_stats("a").total_messages == 1
    assert [*store.check_consistency().issues] == []
    assert [*store.iter_consistency()] == []
    assert isinstance(store.repair(), RepairResult)
    assert store.get_metrics().storage.total_agents == 2
    assert store.health_check().healthy
    assert store.delete_many(template_id="t") == 2


def test_errors_keep_their_type_and_say_where(store: SyncStore) -> None:
    with pytest.raises(InvalidValueError, match="nan") as caught:
        store.append_messages("a", [Message("user", [], metadata={"x": float("nan")})])
    told = "".join(traceback.format_exception(caught.value))
    assert "test_errors_keep_their_type_and_say_where" in told
    assert f"kode_core{os.sep}store{os.sep}" in told
    with pytest.raises(AgentNotFoundError):
        store.batch_fork("nobody", 1)
    with pytest.raises(InvalidArgumentError, match="agent_id"):
        store.load_messages(7)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="after_offset"):
        store.read_events("a", after_offset="x")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="U\\+0000"):
        store.exists("a\0")
    with pytest.raises(InvalidArgumentError, match="fence must be a Lease"):
        store.append_messages("a", [Message.user("x")], fence="lease")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        store.load_messages()  # type: ignore[call-arg]


def test_many_threads_at_once(store: SyncStore) -> None:
    def work(k: int) -> Sequence[int]:
        for n in range(20):
            store.append_messages("shared", [Message.user(f"{k}-{n}")])
        return store.append_events("shared", [event(1000 * k + n) for n in range(20)])

    with ThreadPoolExecutor(20) as pool:
        offsets = [offset for given in pool.map(work, range(20)) for offset in given]
    assert len(set(offsets)) == 400
    texts = [message.content[0].text for message in store.load_messages("shared")]  # type: ignore[union-attr]
    assert sorted(texts) == sorted(f"{k}-{n}" for k in range(20) for n in range(20))
    for k in range(20):
        assert [text for text in texts if text.startswith(f"{k}-")] == [f"{k}-{n}" for n in range(20)]


async def test_inside_a_running_loop(store: SyncStore) -> None:
    """As in a notebook: the call blocks this loop, and works."""
    store.append_messages("a", [Message.user("hi")])
    with store.acquire_agent_lock("a"):
        assert len(store.load_messages("a")) == 1


def test_a_deadline_holds() -> None:
    class Slow(MemoryEngine):
        async def summary(self, agent_id: str) -> Any:
            await asyncio.sleep(60)

    async def opener() -> Engine:
        return Slow(None)

    with SyncStore(lambda: _given(EngineStore(opener, timeout_ms=200))) as store:
        start = time.monotonic()
        with pytest.raises(StoreTimeoutError, match=r"load_info was not done after 0\.2 s"):
            store.load_info("a")
        assert time.monotonic() - start < 20
        store.append_messages("a", [Message.user("still there")])


def test_the_context_of_the_caller_is_there() -> None:
    """An observer sees the variables of the thread that calls, as a tracer needs it."""
    variable = contextvars.ContextVar("variable", default="")
    seen: list[tuple[str, str]] = []

    async def opener() -> Engine:
        return MemoryEngine(None)

    observers = [lambda operation: seen.append((operation.name, variable.get()))]
    with SyncStore(lambda: _given(EngineStore(opener, observers=observers))) as store:
        variable.set("mine")
        store.exists("a")
    assert ("exists", "mine") in seen


def test_a_progress_function_cannot_call_the_store(store: SyncStore) -> None:
    """It runs in the thread of the store: the call is refused, instead of waiting for itself for ever."""
    store.save_info("a", AgentInfo(agent_id="a", template_id="t"))
    with pytest.raises(KodeError, match="in the thread of the store"):
        store.delete_many(template_id="t", progress=lambda done, total: store.exists("a"))
    with pytest.raises(KodeError, match="in the thread of the store"):
        store.check_consistency(progress=lambda done, total: store.close())
    assert not store.exists("b")


# --- streams


def test_streams_are_iterators(store: SyncStore) -> None:
    store.append_events("a", [event(k) for k in range(1500)])
    stream = store.read_events("a")
    assert isinstance(stream, SyncIterator)
    assert [stored.bookmark.seq for stored in stream] == list(range(1500))
    assert next(stream, None) is None
    with store.read_events("a") as stream:
        assert next(stream).bookmark.seq == 0
    assert next(stream, None) is None
    stream.close()


def test_a_stream_that_is_dropped_releases_what_it_holds() -> None:
    closed = threading.Event()

    class Streaming(MemoryStore):
        async def iter_messages(self, **filters: Any) -> Any:
            try:
                while True:
                    yield 1
                    await asyncio.sleep(0)
            finally:
                closed.set()

    with SyncStore(lambda: _given(Streaming())) as store:
        for _ in store.iter_messages():
            break
        gc.collect()
        assert closed.wait(10)
        closed.clear()
        stream = store.iter_messages()
        next(stream)
        stream.close()
        assert closed.is_set()


def test_a_stream_reads_a_bounded_part_ahead_and_gives_all_before_an_error() -> None:
    made: list[int] = []

    class Streaming(MemoryStore):
        async def iter_messages(self, **filters: Any) -> Any:
            for k in range(100_000):
                made.append(k)
                yield k
            raise OSError("at the end")

    with SyncStore(lambda: _given(Streaming())) as store:
        got = 0
        with pytest.raises(OSError, match="at the end"):
            for k in store.iter_messages():
                assert k == got  # type: ignore[comparison-overlap]
                got += 1
                assert len(made) - got <= 300
        assert got == 100_000


def test_following_with_a_timeout_and_an_end(store: SyncStore) -> None:
    store.append_event("a", event(1))
    with store.follow_events("a") as events:
        assert next(events).bookmark.seq == 1
        for _ in range(2):
            with pytest.raises(TimeoutError):
                events.next(timeout=0.05)
        store.append_event("a", event(2))
        assert events.next(timeout=20).bookmark.seq == 2
        threading.Timer(0.1, store.append_event, ("a", event(3))).start()
        assert events.next(timeout=20).bookmark.seq == 3
        threading.Timer(0.2, events.close).start()
        assert list(events) == []


def test_following_ends_when_the_store_is_closed() -> None:
    store = open_store("memory:")
    events = store.follow_events("a")
    threading.Timer(0.2, store.close).start()
    with pytest.raises(StoreClosedError):
        next(events)
    events.close()


def test_several_threads_share_a_stream(store: SyncStore) -> None:
    store.append_events("a", [event(k) for k in range(1000)])
    stream = store.read_events("a")
    with ThreadPoolExecutor(8) as pool:
        found = [seq for part in pool.map(lambda _: [e.bookmark.seq for e in stream], range(8)) for seq in part]
    assert sorted(found) == list(range(1000))


# --- locks


def _is_held_on(one: SyncStore, other: SyncStore, ttl_ms: int) -> bool:
    """True if a block holds the lock for three times its time."""
    with one.acquire_agent_lock("a", ttl_ms=ttl_ms):
        time.sleep(3 * ttl_ms / 1000)
        try:
            lease = other.acquire_agent_lock("a").acquire()
        except LockUnavailableError:
            return True
        lease.release()
        return False


def test_a_lock_is_renewed_and_released(two: tuple[SyncStore, SyncStore]) -> None:
    """A process that stands still renews a short lease too late, and a longer one in time."""
    one, other = two
    assert any(_is_held_on(one, other, ttl_ms) for ttl_ms in (300, 3_000, 10_000))
    with one.acquire_agent_lock("a") as lease:
        assert isinstance(lease, SyncLease)
        assert (lease.agent_id, lease.is_lost) == ("a", False)
        with pytest.raises(LockUnavailableError):
            other.acquire_agent_lock("a").acquire()
        with pytest.raises(LockUnavailableError, match="inside the block"):
            one.acquire_agent_lock("a", wait_ms=60_000).acquire()
        one.append_messages("a", [Message.user("fenced")])
    lease = other.acquire_agent_lock("a").acquire()
    lease.renew()
    other.append_messages("a", [Message.user("mine")], fence=lease)
    lease.release()
    lease.release()
    with pytest.raises(LockLostError):
        other.append_messages("a", [Message.user("late")], fence=lease)
    with pytest.raises(LockLostError):
        lease.renew()
    with pytest.raises(InvalidArgumentError, match="ttl_ms"):
        one.acquire_agent_lock("a", ttl_ms=-1)


WRITES: list[Callable[[SyncStore], object]] = [
    lambda store: store.append_messages("a", [Message.user("stale")]),
    lambda store: store.save_messages("a", [Message.user("stale")]),
    lambda store: store.save_turn("a", append=[Message.user("stale")]),
    lambda store: store.append_event("a", event(1)),
    lambda store: store.append_events("a", [event(1)]),
    lambda store: store.save_info("a", AgentInfo(agent_id="a", template_id="stale")),
    lambda store: store.delete("a"),
    lambda store: store.delete_many(agent_id="a"),
]


@pytest.mark.parametrize("write", WRITES)
def test_a_write_after_the_lease_was_lost_is_refused(
    two: tuple[SyncStore, SyncStore], write: Callable[[SyncStore], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease ends inside its block, another takes the lock, and the stale write is refused, without ``fence=``."""
    one, other = two
    other.save_info("a", AgentInfo(agent_id="a", template_id="t"))

    async def unreachable(*_: object) -> bool:
        raise OSError("no way to the server")

    with one.acquire_agent_lock("a", ttl_ms=100) as lease:
        monkeypatch.setattr(MemoryEngine, "renew_lease", unreachable)
        with other.acquire_agent_lock("a", wait_ms=20_000) as new:
            assert new.token > lease.token
            with pytest.raises(LockLostError):
                write(one)
            one.append_messages("b", [Message.user("of another agent")])
            other.append_messages("a", [Message.user("mine")])
            for _ in range(200):
                if lease.is_lost:
                    break
                time.sleep(0.05)
            assert lease.is_lost
    assert len(other.load_messages("a")) == 1
    info = other.load_info("a")
    assert info is not None
    assert info.template_id == "t"


def test_threads_inside_and_outside_of_a_block(store: SyncStore) -> None:
    """A copy of the context is fenced for its whole life, until it takes the lock itself; another thread is not."""
    context = contextvars.copy_context()
    with store.acquire_agent_lock("a"):
        inside = contextvars.copy_context()
        inside.run(store.append_messages, "a", [Message.user("in time")])
        context.run(store.append_messages, "a", [Message.user("of a context that is not inside")])
    store.append_messages("a", [Message.user("after it")])

    def late() -> None:
        with pytest.raises(LockLostError):
            store.append_messages("a", [Message.user("late")])
        with store.acquire_agent_lock("a"):
            store.append_messages("a", [Message.user("with a lock of its own")])
        store.append_messages("a", [Message.user("after that")])

    thread = threading.Thread(target=inside.run, args=(late,))
    thread.start()
    thread.join()
    assert len(store.load_messages("a")) == 5


def test_a_lock_excludes_threads(store: SyncStore) -> None:
    def work(k: int) -> None:
        with store.acquire_agent_lock("a", wait_ms=30_000):
            messages = store.load_messages("a")
            store.save_messages("a", [*messages, Message.user(str(k))])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(24)))
    assert len(store.load_messages("a")) == 24


def test_an_error_of_the_block_comes_out(store: SyncStore) -> None:
    with pytest.raises(ZeroDivisionError), store.acquire_agent_lock("a"):
        _ = 1 / 0
    lock = store.acquire_agent_lock("a")
    assert isinstance(lock, SyncAgentLock)
    with lock, pytest.raises(InvalidArgumentError, match="entered already"):
        lock.__enter__()


def test_a_store_is_closed_inside_a_block() -> None:
    store = open_store("memory:")
    with store.acquire_agent_lock("a") as lease:
        store.close()
        assert lease.is_lost
        with pytest.raises(StoreClosedError):
            store.append_messages("a", [])
        lease.release()


# --- interruptions


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, also if the shell that started the tests in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.skipif(sys.platform == "win32", reason="signals of another thread")
def test_ctrl_c_cancels_the_call_it_interrupts(two: tuple[SyncStore, SyncStore]) -> None:
    one, other = two
    main = threading.get_ident()
    with other.acquire_agent_lock("a"):
        context = contextvars.Context()
        start = time.monotonic()
        timer = threading.Timer(0.3, signal.pthread_kill, (main, signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            context.run(one.acquire_agent_lock("a", wait_ms=60_000).acquire)
        assert time.monotonic() - start < 30
    time.sleep(0.1)
    other.acquire_agent_lock("a").acquire().release()  # the cancelled one did not take it
    threading.Timer(0.3, signal.pthread_kill, (main, signal.SIGINT)).start()
    events = one.follow_events("b")
    with pytest.raises(KeyboardInterrupt):
        next(events)
    one.append_event("b", event(1))
    assert next(events).bookmark.seq == 1


# --- the end


def test_a_closed_store_says_so(store: SyncStore) -> None:
    stream = store.read_events("a")
    store.close()
    store.close()
    for call in (
        store.list,
        lambda: store.exists("a"),
        lambda: next(stream),
        store.open,
        lambda: store.follow_events("a"),
    ):
        with pytest.raises(StoreClosedError):
            call()
    assert "StoreClosedError" in str(store.health_check().problem)
    assert repr(store) == "<SyncStore closed>"
    assert threads() == []


def test_threads_that_call_while_the_store_is_closed() -> None:
    """Each call ends, with its result or StoreClosedError, and every close returns."""
    for _ in range(20):
        store = open_store("memory:")
        store.open()

        def work(store: SyncStore) -> int:
            for n in range(10_000):
                try:
                    store.append_messages("a", [Message.user(str(n))])
                except StoreClosedError:
                    return n
            return -1

        with ThreadPoolExecutor(6) as pool:
            calls = [pool.submit(work, store) for _ in range(4)]
            time.sleep(0.01)
            closes = [pool.submit(store.close) for _ in range(2)]
            assert all(call.result(60) >= 0 for call in calls)
            for close in closes:
                close.result(60)
    assert threads() == []


def test_a_store_that_is_dropped_warns_and_ends_its_thread() -> None:
    store = open_store("memory:")
    store.exists("a")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del store
        gc.collect()
    assert [w.category for w in caught] == [ResourceWarning]
    assert "was not closed" in str(caught[0].message)
    for _ in range(200):
        if not threads():
            break
        time.sleep(0.02)
    assert threads() == []


def test_a_store_that_cannot_be_opened_leaves_no_thread() -> None:
    Path("file").write_text("")
    with pytest.raises(KodeError), open_store("json:///file"):
        pass
    assert threads() == []
    store = open_store("json:///file")
    with pytest.raises(KodeError):
        store.exists("a")
    assert not store.health_check().healthy
    Path("file").unlink()
    assert not store.exists("a")
    store.close()


def script(code: str, *flags: str, expect: int = 0) -> str:
    """Run a program; it must end by itself."""
    done = subprocess.run(
        [sys.executable, *flags, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("url", ["memory:", "json:///folder", "sqlite:///agents.db"])
@pytest.mark.parametrize(
    "rest", ["pass", "stream = iter(store.follow_events('a'))\nnext(stream)", "import sys\nsys.exit()"]
)
def test_a_program_ends_without_a_close(url: str, rest: str) -> None:
    """It does not hang, and warns; what was written is there."""
    told = script(
        f"""
from kode_core import *
from kode_core.sync import open_store
store = open_store({url!r})
store.append_event("a", Timeline(0, Bookmark(0, 0), AgentEvent("monitor", "x", {{}})))
lock = store.acquire_agent_lock("a").__enter__()
{rest}
""",
        "-W",
        "always",
    )
    assert "ResourceWarning: a store of kode_core.sync was not closed" in told
    assert "Traceback" not in told
    assert "never" not in told
    assert "destroyed" not in told
    if url != "memory:":
        with open_store(url) as store:
            assert len(list(store.read_events("a"))) == 1


def test_a_program_may_close_its_store_at_exit() -> None:
    told = script(
        """
        import atexit
        from kode_core import *
        from kode_core.sync import open_store
        store = open_store("sqlite:///agents.db")
        atexit.register(store.close)
        store.append_messages("a", [Message.user("hi")])
        """,
        "-W",
        "error",
    )
    assert told == ""
    assert not Path("agents.db-wal").exists()


# --- other processes

FORKED = """
import multiprocessing, os, sys, warnings
from kode_core import *
from kode_core.sync import open_store
warnings.simplefilter("ignore")
store = open_store("json:///agents")

def in_child(work):
    pid = os.fork()
    if not pid:
        try:
            work()
            sys.stdout.flush()
            os._exit(0)
        except BaseException as exc:
            print(type(exc).__name__, exc)
            sys.stdout.flush()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def add():
    for k in range(20):
        store.append_messages("a", [Message.user(f"{os.getpid()}-{k}")])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_processes_open_the_store_anew() -> None:
    told = script(
        FORKED
        + """
assert in_child(add) == 0            # never opened before
add()
assert in_child(add) == 0            # opened in the parent
import threading
busy = [threading.Thread(target=add) for _ in range(4)]
for one in busy: one.start()
assert [in_child(add) for _ in range(5)] == [0] * 5   # while other threads are inside of calls
for one in busy: one.join()
with multiprocessing.get_context("fork").Pool(3) as pool:
    pool.starmap(add, [()] * 6)
print(len(store.load_messages("a")), store.check_consistency().issues)
store.close()
assert in_child(add) == 1            # closed before
"""
    )
    assert told.splitlines() == [
        f"{20 * (1 + 1 + 1 + 4 + 5 + 6)} ()",
        "StoreClosedError this store is closed; open a new one",
    ]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_sqlite_is_forked_before_its_first_use() -> None:
    """A forked process gets an error and not a store that loses writes, which SQLite's locks would make of it."""
    told = script(
        FORKED
        + """
store = open_store("sqlite:///agents.db")
assert in_child(add) == 0            # never opened before
add()
assert in_child(add) == 1
async def other():
    async with create_extended_store("sqlite:///agents.db") as mine: await mine.append_messages("a", [])
import asyncio
assert in_child(lambda: asyncio.run(other())) == 1
add()
store.close()
with open_store("sqlite:///agents.db") as again: print(len(again.load_messages("a")))
store = open_store("sqlite:///agents.db")
assert in_child(add) == 0            # closed before
with store: print(len(store.load_messages("a")))
"""
    )
    refused, again, three, four = told.splitlines()
    assert refused == again
    assert "was open in the process from which this one was forked, and SQLite would lose writes" in refused
    assert (three, four) == ("60", "80")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_forked_inside_a_block_is_told() -> None:
    """It does not hold the lock: its writes do not pass for fenced ones."""
    told = script(
        FORKED
        + """
lock = store.acquire_agent_lock("a")
with lock as lease:
    assert in_child(add) == 1
    store.append_messages("a", [Message.user("the parent")])
    import contextvars
    assert in_child(lambda: contextvars.Context().run(store.load_messages, "a")) == 0
    assert in_child(lease.renew) == 1
    assert in_child(lambda: [lease.release()]) == 0
    stream = store.read_events("a")
    assert in_child(lambda: next(stream)) == 1
    assert in_child(lambda: stream.close()) == 0
    def leave():
        import contextlib
        with contextlib.ExitStack() as stack:
            stack.push(lock)
    assert in_child(leave) == 0
    store.append_messages("a", [Message.user("the parent still has the lock")])
print(len(store.load_messages("a")))
assert in_child(add) == 0
store.close()
"""
    )
    refused, renewal, step, count = told.splitlines()
    assert "forked inside the block of a lock" in refused
    assert renewal == step
    assert renewal.startswith("StoreClosedError this was begun in another process")
    assert count == "2"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_an_async_store_and_a_fork() -> None:
    """One that was not opened can be used in each process, and one that was opened says what to do."""
    told = script(
        FORKED
        + """
import asyncio
lazy = lazy_store("sqlite:///agents.db")
def use(n=20):
    async def work():
        try:
            for k in range(n):
                await lazy.append_messages("a", [Message.user(str(k))])
        finally:
            if n: await lazy.close()
    asyncio.run(work())
assert in_child(use) == 0
assert in_child(use) == 0
async def opened():
    async with lazy_store("sqlite:///agents.db") as store:
        print(len(await store.load_messages("a")), flush=True)
        def work():
            async def load(): await store.load_messages("a")
            try: load().send(None)
            except KodeError as exc: print(exc)
        in_child(work)
asyncio.run(opened())
"""
    )
    count, refused = told.splitlines()
    assert count == "40"
    assert refused.startswith("this store was opened in another process, from which this one was forked: open one")
    assert "kode_core.sync" in refused


@pytest.mark.parametrize("timeout", ["1", -1, float("nan"), float("inf"), True, b""])
def test_a_timeout_of_another_type_is_refused(timeout: Any) -> None:
    """Before the stream is looked at."""
    with (
        open_store("memory:") as store,
        store.follow_events("a") as stream,
        pytest.raises(InvalidArgumentError, match="timeout"),
    ):
        stream.next(timeout)
