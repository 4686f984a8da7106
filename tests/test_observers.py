"""Observers and layers of one store: their order, their context, what they see, and that they break nothing."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from kode_sqlite import SqliteStore

from kode_core import (
    AgentEvent,
    Bookmark,
    ConfigurationError,
    IncompatibleBackendError,
    InvalidArgumentError,
    MemoryStore,
    Message,
    StoreClosedError,
    Timeline,
    create_extended_store,
    create_store,
)
from kode_core.codec import Body
from kode_core.direct import JsonStore
from kode_core.layers import Layer
from kode_core.operation import Operation
from kode_core.plugins import Backend, Plugins, hookimpl, registry
from kode_core.store.observing import Tally

INSIDE: ContextVar[str] = ContextVar("INSIDE", default="")


class Tag(Layer):
    """Shows its name in the store's."""

    def __init__(self, inner: Any, tag: str) -> None:
        super().__init__(inner)
        self.tag = tag

    def __repr__(self) -> str:
        return f"{self.tag}({self.inner!r})"


class Around:
    """Notes when it is entered and left."""

    def __init__(self, name: str, notes: list[Any]) -> None:
        self.name = name
        self.notes = notes

    @contextmanager
    def around(self, operation: Operation) -> Iterator[None]:
        self.notes.append(f"+{self.name}")
        token = INSIDE.set(INSIDE.get() + self.name)
        try:
            yield
        finally:
            INSIDE.reset(token)
            self.notes.append(f"-{self.name}")


def tagged(tag: str) -> Any:
    return lambda engine: Tag(engine, tag)


class Both:
    """A plugin with a layer and an observer."""

    def __init__(self, notes: list[Any]) -> None:
        self.notes = notes

    @hookimpl
    def kode_engine_layers(self, options: msgspec.Struct) -> Any:
        return tagged("plugin")

    @hookimpl
    def kode_store_observer(self, options: msgspec.Struct) -> Any:
        return Around("p", self.notes)


async def test_the_order(tmp_path: Path) -> None:
    """Layers: the first is the innermost, around those of plugins and the hybrid layout. Observers: nested."""
    notes: list[Any] = []
    plugin = Both(notes)
    registry.add(plugin)
    try:
        url = f"sqlite:///{tmp_path}/a.db?file_store_base_dir={tmp_path}/files"
        given = [Around("a", notes), lambda operation: notes.append(operation.name), Around("b", notes)]
        async with create_extended_store(url, layers=[tagged("one"), tagged("two")], observers=given) as store:
            assert repr(store).startswith("<EngineStore two(one(plugin(sqlite at ")
            assert "with json at" in repr(store)
            await store.exists("a")
    finally:
        registry.remove(plugin)
    assert notes == ["+p", "+a", "+b", "-b", "exists", "-a", "-p"]
    assert INSIDE.get() == ""


async def test_stores_for_direct_use(tmp_path: Path) -> None:
    """They take both, and open at the first call: what it belongs to is known at its end."""
    places: list[tuple[str, str, str]] = []

    class Places:
        @contextmanager
        def around(self, operation: Operation) -> Iterator[None]:
            before = operation.backend
            yield
            places.append((before, operation.backend, operation.store))

    stores = (
        SqliteStore(tmp_path / "a.db", layers=[tagged("mine")], observers=[Places()]),
        MemoryStore(layers=[tagged("mine")], observers=[Places()]),
        JsonStore(tmp_path / "json", layers=[tagged("mine")], observers=[Places()]),
    )
    for store, name in zip(stores, ("sqlite", "memory", "json"), strict=True):
        await store.exists("a")
        await store.exists("a")
        (first, second) = places
        places.clear()
        assert (first[0], second[0]) == ("", name)
        assert first[1:] == second[1:]
        assert second[1] == name
        assert second[2].startswith(f"mine({name}")
        await store.close()


def generated(operation: Operation) -> Iterator[None]:
    yield


async def later(operation: Operation) -> None: ...


class Later:
    @asynccontextmanager
    async def around(self, operation: Operation) -> AsyncIterator[None]:
        yield

    async def __call__(self, operation: Operation) -> None: ...


class Generates:
    def around(self, operation: Operation) -> Iterator[None]:
        yield


class CalledLater:
    async def __call__(self, operation: Operation) -> None: ...


class NoMethod:
    around = 5


class Nameless:
    name = "nameless"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"observers": None}, "must be a list, got NoneType"),
        ({"observers": print}, "must be a list"),
        ({"observers": {print}}, "must be a list, got set"),
        ({"observers": "print"}, "must be a list, got str"),
        ({"observers": [7]}, "int is neither a function nor has it a method around"),
        ({"observers": [None]}, "NoneType is neither"),
        ({"observers": [Generates]}, "Generates is a class"),
        ({"observers": [later]}, "must not be async"),
        ({"observers": [partial(later)]}, "must not be async"),
        ({"observers": [CalledLater()]}, "must not be async"),
        ({"observers": [Later()]}, "around of Later .* must not be async"),
        ({"observers": [generated]}, "contextlib.contextmanager"),
        ({"observers": [Generates()]}, "contextlib.contextmanager"),
        ({"observers": [NoMethod()]}, "around of NoMethod is no method"),
        ({"layers": None}, "must be a list, got NoneType"),
        ({"layers": Layer}, "must be a list"),
        ({"layers": ["x"]}, "str is not a function that takes an engine"),
        ({"layers": [Layer(Nameless())]}, "Layer is not a function that takes an engine; give a function"),  # type: ignore[arg-type]
        ({"layers": [later]}, "must not be async"),
    ],
)
async def test_wrong_ones_are_refused(given: dict[str, Any], told: str, tmp_path: Path) -> None:
    """At once, and before anything is made."""
    with pytest.raises(ConfigurationError, match=told):
        create_extended_store(f"sqlite:///{tmp_path}/a.db", **given)
    with pytest.raises(ConfigurationError, match=told):
        create_store(f"sqlite:///{tmp_path}/a.db", **given)
    if None not in given.values():
        with pytest.raises(ConfigurationError, match=told):
            SqliteStore(tmp_path / "a.db", **given)
    assert list(tmp_path.iterdir()) == []


async def test_a_layer_that_is_no_engine_is_refused() -> None:
    """Once the engine is there, which is then closed."""
    with pytest.raises(IncompatibleBackendError, match="gives a int"):
        await create_extended_store("memory:", layers=[lambda engine: 5])  # type: ignore[list-item, return-value]
    with pytest.raises(IncompatibleBackendError, match="cannot be put around memory"):
        await create_extended_store("memory:", layers=[lambda: None])  # type: ignore[list-item]


async def test_a_backend_of_stores_takes_neither() -> None:
    """What opens a store itself has no engine to put a layer around, and calls no observer."""

    class Options(msgspec.Struct, frozen=True): ...

    async def never(options: object) -> Any:
        raise AssertionError("it was opened")

    class Own:
        @hookimpl
        def kode_store_backend(self) -> Backend:
            return Backend(name="own-store", options=Options, open=never, gives="store")

    plugin = Own()
    registry.add(plugin)
    try:
        for given in ({"layers": [Layer]}, {"observers": [print]}):
            with pytest.raises(ConfigurationError, match="takes no layers and observers"):
                await create_store(type="own-store", **given)  # type: ignore[arg-type]
    finally:
        registry.remove(plugin)


def test_a_plugins_wrong_observer_is_refused() -> None:
    """With the name of the plugin."""

    class Wrong:
        @hookimpl
        def kode_store_observer(self) -> Any:
            return 5

    plugins = Plugins(())
    plugins.add(Wrong(), "wrong")
    with pytest.raises(IncompatibleBackendError, match="kode_store_observer of plugin 'wrong': .* neither a function"):
        plugins.observers(msgspec.Struct())


class Stop(BaseException):
    """As KeyboardInterrupt, which asyncio would not let a test catch."""


@pytest.mark.parametrize("moment", ["before", "after", "function"])
async def test_what_is_no_exception_is_raised_through(moment: str) -> None:
    """What is no Exception ends the call, as Ctrl-C does; observers that were entered are left."""
    notes: list[Any] = []

    class Stops:
        @contextmanager
        def around(self, operation: Operation) -> Iterator[None]:
            if moment == "before":
                raise Stop
            yield
            if moment == "after":
                raise Stop

    def stops(operation: Operation) -> None:
        if moment == "function":
            raise Stop

    async with create_extended_store("memory:", observers=[Around("a", notes), stops, Stops()]) as store:
        with pytest.raises(Stop):
            await store.exists("a")
        assert notes == ["+a", "-a"]
        assert INSIDE.get() == ""


async def test_sys_exit_is_a_fault(caplog: pytest.LogCaptureFixture) -> None:
    """SystemExit of an observer is logged as any other failure, once for each observer."""

    def leaves(operation: Operation) -> None:
        raise SystemExit(3)

    async with create_extended_store("memory:", observers=[leaves, leaves]) as store:
        await store.exists("a")
        await store.exists("a")
    assert [record.getMessage().split(";")[0] for record in caplog.records] == [
        f"the observer {leaves.__qualname__} failed"
    ] * 2


async def test_the_calls_error_stays() -> None:
    """An observer that lets it through, replaces it or swallows it changes neither the error nor its traceback."""

    class Replaces:
        @contextmanager
        def around(self, operation: Operation) -> Iterator[None]:
            try:
                yield
            except InvalidArgumentError:
                raise KeyError("another") from None

    class Raises:
        def around(self, operation: Operation) -> Any:
            return self

        def __enter__(self) -> None: ...

        def __exit__(self, kind: object, exc: BaseException | None, trace: object) -> bool:
            if exc is not None:
                raise exc
            return True

    async with create_extended_store("memory:", observers=[Replaces(), Raises(), Around("a", [])]) as store:
        with pytest.raises(InvalidArgumentError, match="must not be empty") as caught:
            await store.load_messages("")
        assert caught.traceback[-1].path.name == "ids.py"
        assert caught.value.__context__ is None


def event(i: int) -> Timeline:
    return Timeline(i, Bookmark(i, 1), AgentEvent("progress", "chunk", {"delta": "x"}))


class Where(Layer):
    """Notes the context of each commit."""

    seen: list[str]

    async def commit(self, batches: Any) -> Any:
        self.seen.append(INSIDE.get())
        return await super().commit(batches)


async def test_a_group_is_written_in_the_context_of_one_of_its_calls() -> None:
    """A lone event in its own call's; without observers in whatever context there is."""
    seen: list[str] = []
    layer = type("Seen", (Where,), {"seen": seen})

    class Named:
        @contextmanager
        def around(self, operation: Operation) -> Iterator[None]:
            token = INSIDE.set(f"{operation.agent_id}")
            try:
                yield
            finally:
                INSIDE.reset(token)

    async with create_extended_store("memory:", layers=[layer], observers=[Named()]) as store:
        for agent in "ab":
            await store.append_event(agent, event(1))
        assert seen == ["a", "b"]
        seen.clear()
        await asyncio.gather(*(store.append_event(agent, event(i)) for agent in "abc" for i in range(2, 12)))
        assert set(seen) == set("abc")
        assert len(seen) < 30


async def test_pages_are_calls() -> None:
    """A generator surrounds nothing between its pages: what its reader does is not inside the observer."""
    notes: list[Any] = []
    async with create_extended_store(
        "memory:", observers=[Around("a", notes), lambda o: notes.append(o.rows)]
    ) as store:
        await store.append_events("a", [event(i) for i in range(1_200)])
        notes.clear()
        async for _ in store.read_events("a"):
            assert INSIDE.get() == ""
        assert len(notes) == 3 * notes.count("+a") > 3
        assert sum(note for note in notes if type(note) is int) == 1_200
        notes.clear()
        async for _ in store.follow_events("a"):
            assert notes == ["+a", notes[1], "-a"]
            break


async def test_calls_that_do_not_begin_are_not_seen() -> None:
    """A closed store refuses the call before it begins."""
    notes: list[Any] = []
    store = await create_extended_store("memory:", observers=[Around("a", notes)])
    await store.close()
    with pytest.raises(StoreClosedError):
        await store.exists("a")
    assert notes == []


async def test_what_is_counted() -> None:
    """Records and bytes of each kind of call; None where no record passes."""
    seen: list[Operation] = []
    async with create_extended_store("memory:", observers=[seen.append]) as store:
        await store.save_turn("a", append=[Message.user("x")] * 3, events=[event(1), event(2)])
        await store.load_messages("nobody")
        await store.append_messages("a", [Message.user("é\U0001f600")])
        await store.query_messages(limit=2)
        await store.list()
        await store.aggregate_stats("a")
        await store.get_metrics()
        await store.check_consistency()
        await store.delete_many(template_id="t")
        await store.delete("a")
    found = {one.name: (one.rows, one.bytes) for one in seen}
    assert found["save_turn"][0] == 5
    assert found["load_messages"] == (0, 0)
    assert found["query_messages"][0] == 3  # one more than the page, which shows that there is another
    assert found["list"] == (0, 0)
    for name in ("aggregate_stats", "get_metrics", "check_consistency", "delete"):
        assert found[name] == (None, None), name
    assert found["append_messages"][0] == 1


@pytest.mark.parametrize(("count", "text"), [(100_000, "x"), (1, "é" * 20_000_000)])
async def test_counting_goes_in_slices(count: int, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many records, and a large text that is not ASCII, are counted next to other tasks, and exactly."""
    monkeypatch.setattr("kode_core.pace._SLICE_S", 0.0)  # a fast machine counts them in less than a slice
    turns, is_done = 0, False

    async def others() -> None:
        nonlocal turns
        while not is_done:
            await asyncio.sleep(0)
            turns += 1

    task = asyncio.create_task(others())
    tally = Tally()
    await tally.add(itertools.repeat(Body(text, b""), count))
    is_done = True
    await task
    assert (tally.rows, tally.bytes) == (count, count * len(text.encode()))
    assert turns > 3


async def test_an_operation_tells_nothing_of_records() -> None:
    """Neither contents nor what was given in place of an id."""
    seen: list[Operation] = []
    async with create_extended_store("memory:", observers=[seen.append]) as store:
        await store.append_messages("a", [Message.user("canary")])
        with pytest.raises(InvalidArgumentError):
            await store.load_messages({"canary": 1})  # type: ignore[arg-type]
        with pytest.raises(InvalidArgumentError):
            await store.load_messages("a\0" * 10_000_000)
    assert "canary" not in repr(seen)
    assert [one.agent_id for one in seen[:2]] == ["a", None]
