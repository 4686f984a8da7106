"""Demands of batches: what another writer does between the look of a call and its write, at exactly that moment."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from kode_conformance.instruments.clock import clock_still
from kode_conformance.values import samples

from kode_core import AgentInfo, AgentRecords, ConflictError, ExtendedStore, create_extended_store
from kode_core.backends.memory.engine import MemoryEngine
from kode_core.batch import ABSENT_DOC, Batch, Doc, DocKind, DocWrite, Outcome, Refused, with_bodies
from kode_core.codec import Body, digest
from kode_core.engine import Engine, checks_demands
from kode_core.engines.record.engine import RecordEngine
from kode_core.errors import StoreBusyError
from kode_core.layers import Layer
from kode_core.store import EngineStore
from tests.memory_records import Contents, MemoryRecords
from tests.test_record_engine import OPTIONS

Write = Callable[[ExtendedStore, str], Awaitable[Any]]


class Before(Layer):
    """Calls a function before the next commit, once."""

    call: Callable[[], Awaitable[Any]] | None = None

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        call, self.call = self.call, None
        if call is not None:
            await call()
        return await super().commit(batches)


class Two:
    """Two stores over one place; *meanwhile* is called before the next commit of the first one."""

    def __init__(self, store: ExtendedStore, other: ExtendedStore, layer: Before) -> None:
        self.store, self.other, self._layer = store, other, layer

    def meanwhile(self, call: Callable[[], Awaitable[Any]]) -> None:
        self._layer.call = call


@asynccontextmanager
async def _opened(backend: str, folder: Path) -> AsyncIterator[Two]:
    if backend.startswith("record"):
        contents, options = Contents(), OPTIONS[backend.removeprefix("record-")]

        async def engine() -> Engine:
            return RecordEngine(MemoryRecords(contents, **options))

        async def layered() -> Engine:
            return Before(await engine())

        async with EngineStore(layered) as store, EngineStore(engine) as second:
            yield Two(store, second, store._context.engine)  # type: ignore[arg-type]
        return
    made: list[Before] = []

    def layer(inner: Engine) -> Before:
        made.append(Before(inner))
        return made[-1]

    url: Any = {"memory": "memory:?name=demands", "json": f"json:///{folder}/j"}.get(
        backend, f"sqlite:///{folder}/a.db"
    )
    more: Any = {"file_store_base_dir": str(folder / "files")} if backend == "hybrid" else {}
    async with create_extended_store(url, layers=[layer], **more) as one, create_extended_store(url, **more) as other:
        yield Two(one, other, made[0])


@pytest.fixture(params=["memory", "json", "sqlite", "hybrid", *(f"record-{name}" for name in OPTIONS)])
async def two(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Two]:
    async with _opened(request.param, tmp_path) as opened:
        for agent_id in await opened.store.list(include_without_info=True):  # of the memory that tests share
            await opened.store.delete(agent_id)
        yield opened


WRITES: dict[str, Write] = {
    "todos": lambda s, a: s.save_todos(a, samples.todos("own")),
    "media": lambda s, a: s.save_media_cache(a, [samples.media("own")]),
    "snapshot": lambda s, a: s.save_snapshot(a, samples.snapshot("own")),
    "window": lambda s, a: s.save_history_window(a, samples.window("own")),
    "compression": lambda s, a: s.save_compression_record(a, samples.compression("own")),
    "file": lambda s, a: s.save_recovered_file(a, samples.recovered("own")),
    "document": lambda s, a: s.put_document(a, "c", "own", 1),
    "event": lambda s, a: s.append_event(a, samples.event(9)),
    "messages": lambda s, a: s.save_messages(a, samples.messages(1)),
    "tool calls": lambda s, a: s.save_tool_call_records(a, [samples.tool_call()]),
    "info": lambda s, a: s.save_info(a, samples.info(a)),
}
RECORDS = AgentRecords(
    agent_id="p",
    info=samples.info("p"),
    messages=samples.messages(2),
    message_times=[1, 2],
    todos=samples.todos("imported"),
    snapshots=[samples.snapshot()],
    history_windows=[samples.window()],
    events=samples.events(2),
    updated_at=7,
)


@pytest.mark.parametrize("kind", WRITES)
async def test_an_id_that_is_taken_meanwhile(two: Two, kind: str) -> None:
    """Whatever another writer stores under an id after an import or a fork has looked, is all that is stored then."""
    await two.store.import_agent("p", RECORDS)
    calls: dict[str, Callable[[], Awaitable[Any]]] = {
        "imported": lambda: two.store.import_agent("imported", RECORDS),
        "forked": lambda: two.store.fork("p", "forked"),
    }
    for agent_id, call in calls.items():
        alone = f"{agent_id} alone"
        await WRITES[kind](two.other, alone)
        two.meanwhile(lambda a=agent_id: WRITES[kind](two.other, a))  # type: ignore[misc]
        with pytest.raises(ConflictError, match=repr(agent_id)):
            await call()
        found, wanted = await two.other.load_agent(agent_id), await two.other.load_agent(alone)
        assert found is not None and wanted is not None
        for name in ("messages", "tool_calls", "todos", "snapshots", "history_windows", "media_cache", "events"):
            assert getattr(found, name) == getattr(wanted, name), name


async def test_an_agent_that_is_emptied_meanwhile(two: Two) -> None:
    """An agent that is emptied after the look is tried again, and is begun anew."""
    await two.store.save_messages("a", samples.messages(3))
    await two.store.truncate_messages("a", 0)
    two.meanwhile(lambda: two.other.save_messages("a", []))
    await two.store.import_agent("a", RECORDS)
    found = await two.other.load_agent("a")
    assert found is not None and (found.updated_at, found.message_times) == (7, (1, 2))


async def test_a_record_that_is_saved_again_meanwhile(two: Two) -> None:
    """A prune leaves the records that were saved again after it has read them, and removes the others of its step."""
    for i in range(4):
        await two.store.save_snapshot("a", samples.snapshot(f"s{i}", samples.T0 + i))
        await two.store.save_history_window("a", samples.window(f"w{i}", samples.T0 + i))
    two.meanwhile(lambda: two.other.save_snapshot("a", samples.snapshot("s1", samples.T0 + 50)))
    assert (await two.store.prune("a", keep_snapshots=1)).snapshots == 2
    assert [one.id for one in await two.other.list_snapshots("a")] == ["s1", "s3"]
    two.meanwhile(lambda: two.other.save_history_window("a", samples.window("w0", samples.T0 + 50)))
    assert (await two.store.prune("a", keep_history_windows=0)).history_windows == 3
    assert [one.id for one in await two.other.load_history_windows("a")] == ["w0"]


async def test_a_record_of_the_same_time(two: Two) -> None:
    """The only record is written again before it is removed: it stays, although its time is the same."""
    await two.store.save_snapshot("a", samples.snapshot("s", samples.T0))
    two.meanwhile(lambda: two.other.save_snapshot("a", samples.snapshot("s", samples.T0, 5)))
    assert (await two.store.prune("a", keep_snapshots=0)).snapshots == 0
    (left,) = await two.other.list_snapshots("a")
    assert len(left.messages) == 5


def _info(n: int) -> AgentInfo:
    return samples.info("a", metadata={"n": n})


async def test_the_next_agent_of_an_id(two: Two) -> None:
    """An agent that was deleted and created again at one time of the clock is another one."""

    async def meanwhile() -> None:
        await two.other.delete("a")
        await two.other.create_agent("a", _info(2))

    with clock_still():
        await two.store.create_agent("a", _info(1))
        two.meanwhile(meanwhile)
        assert (await two.store.update_info("a", {"k": 1})).metadata == {"n": 2, "k": 1}
        await two.store.delete("a")
        await two.store.create_agent("a", _info(1))
        version = await two.store.load_version("a")
        two.meanwhile(meanwhile)
        with pytest.raises(ConflictError):
            await two.store.save_info("a", _info(3), expect=version)
        assert (await two.store.load_info("a")) == _info(2)
        await two.store.update_info("a", {"n": 1})
        two.meanwhile(meanwhile)
        assert await two.store.delete_many(metadata={"n": 1}) == 0
        assert await two.other.exists("a")


# --- engines ----------------------------------------------------------------------------------------------------------


class Unaware(Layer):
    """An engine of an earlier version: it checks demands on documents of the caller's own alone."""

    checks_demands = False

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        for batch in batches:
            assert not batch.expect_nothing
            assert all(kind is DocKind.DOCUMENTS for kind, _ in batch.demanded_docs)
        return await super().commit(batches)


async def test_an_engine_that_checks_no_demands() -> None:
    """It is asked for none; imports, forks and prunes work, and refuse what they see."""

    async def opened() -> Engine:
        return Unaware(MemoryEngine())

    assert not checks_demands(await opened()) and checks_demands(Layer(MemoryEngine()))
    async with EngineStore(opened) as store:
        await store.import_agent("p", RECORDS)
        await store.fork("p", "q")
        with pytest.raises(ConflictError):
            await store.import_agent("q", RECORDS)
        assert (await store.prune("p", keep_snapshots=0)).snapshots == 1


class Shown(Layer):
    """Shows documents with other digests than the engine compares, as an encrypting layer does with damaged ones."""

    async def docs(self, agent_id: str, kind: DocKind, key: str | None = None) -> Sequence[Doc]:
        found = await super().docs(agent_id, kind, key)
        return [Doc(doc.key, doc.time, Body(doc.body.text, bytes(16))) for doc in found]


async def test_a_damaged_snapshot_is_pruned() -> None:
    """Its digest is demanded once, and not again."""

    async def opened() -> Engine:
        return Shown(MemoryEngine())

    async with EngineStore(opened) as store:
        await store.save_snapshot("a", samples.snapshot())
        assert (await store.prune("a", keep_snapshots=0)).snapshots == 1


def test_bodies_of_demands() -> None:
    """A layer that changes bodies changes the demanded ones; an absent one stays absent."""
    own = Body("", digest(b"own"))
    write = DocWrite(DocKind.SNAPSHOTS, "s", None, own)
    batch = Batch(agent_id="a", op_id="x", now=1, expect_updated_at=1, expect_info=own, docs=(write,))
    changed = with_bodies(batch, lambda body: Body("", body.digest[::-1]))
    assert changed.expect_info == changed.docs[0].expect == Body("", own.digest[::-1])
    absent = Batch(agent_id="a", op_id="x", now=1, expect_updated_at=0, expect_info=ABSENT_DOC)
    assert with_bodies(absent, lambda body: Body("", b"x")).expect_info == ABSENT_DOC


async def test_batches_of_one_swap_see_what_came_before() -> None:
    """A batch that demands nothing is refused after one that stores something, and not after a delete."""
    for options in OPTIONS.values():
        engine = RecordEngine(MemoryRecords(Contents(), **options))
        text = Body("{}", digest(b"{}"))
        batches = [
            Batch(agent_id="a", op_id="1", now=1, expect_nothing=True, docs=(_write("s", text),)),
            Batch(agent_id="a", op_id="2", now=1, expect_nothing=True, docs=(_write("t", text),)),
            Batch(agent_id="a", op_id="3", now=1, docs=(DocWrite(DocKind.SNAPSHOTS, "s", None, ABSENT_DOC),)),
            Batch(agent_id="a", op_id="4", now=1, delete=True),
            Batch(agent_id="a", op_id="5", now=1, expect_nothing=True, docs=(_write("u", text),)),
        ]
        outcomes = await engine.commit(batches)
        refused = [outcome.by if isinstance(outcome, Refused) else "" for outcome in outcomes]
        assert refused == ["", "contents", "docs", "", ""]
        assert [doc.key for doc in await engine.docs("a", DocKind.SNAPSHOTS)] == ["u"]
        gone = Batch(agent_id="a", op_id="6", now=1, docs=(DocWrite(DocKind.SNAPSHOTS, "u", None),))
        await engine.commit([gone])
        (outcome,) = await engine.commit([Batch(agent_id="a", op_id="7", now=1, expect_nothing=True)])
        assert not isinstance(outcome, (Refused, StoreBusyError))
        await engine.close()


def _write(key: str, body: Body) -> DocWrite:
    return DocWrite(DocKind.SNAPSHOTS, key, Doc(key, 1, body))
