"""Documents of the caller's own: arguments, versions, ranges, pages and streams (DOC clauses)."""

from __future__ import annotations

import asyncio
import itertools
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final

import pytest
from msgspec.structs import replace

from kode_core import (
    ABSENT,
    AgentInfo,
    ConflictError,
    CorruptRecordError,
    DeleteDocument,
    ExtendedStore,
    InvalidArgumentError,
    InvalidValueError,
    LockLostError,
    Message,
    PutDocument,
    StoreBusyError,
    UnsupportedError,
    create_extended_store,
    lazy_store,
)
from kode_core.backends.memory.engine import MemoryEngine
from kode_core.batch import Batch, Doc, DocKind, DocSpan, Outcome, Refused
from kode_core.codec import Body
from kode_core.engine import Engine
from kode_core.layers import Layer
from kode_core.store.facade import EngineStore

URLS: Final = ("memory:", "json:///store", "sqlite:///agents.db")
KEYS: Final = (
    *(" ", "!", "%", "*", "A", "_", "a", "a ", "a/b", "aa", "b", "|", "}", "~", "\x7f"),
    *("e\u0301", "é", "\uffff", "😀"),
)


@pytest.fixture(params=URLS)
async def store(request: pytest.FixtureRequest) -> AsyncIterator[ExtendedStore]:
    async with create_extended_store(request.param) as opened:
        yield opened


async def test_keys_are_in_the_order_of_code_points(store: ExtendedStore) -> None:
    """In both directions, in pages of any size, and for every prefix and bound."""
    await store.write_documents("a", [PutDocument("c", key, key) for key in reversed(KEYS)])
    await store.write_documents("a", [PutDocument(near, "x", 1) for near in ("b", "c0", "c-", "c.", "d", "C")])
    ordered = sorted(KEYS)

    assert [document.key async for document in store.iter_documents("a", "c")] == ordered
    assert [document.value async for document in store.iter_documents("a", "c", reverse=True)] == ordered[::-1]
    for prefix in ("", *KEYS, "a/", "\U0010ffff"):
        found = await store.list_document_keys("a", "c", prefix=prefix)
        assert found == [key for key in ordered if key.startswith(prefix)]
    for start, stop, reverse in itertools.product((None, *KEYS), (None, *KEYS), (False, True)):
        found = await store.list_document_keys("a", "c", start=start, stop=stop, reverse=reverse)
        wanted = [key for key in ordered if (start is None or key >= start) and (stop is None or key < stop)]
        assert found == (wanted[::-1] if reverse else wanted), (start, stop)
    for limit, reverse in itertools.product((1, 2, 7, len(KEYS), 100), (False, True)):
        assert await all_pages(store, limit, reverse) == (ordered[::-1] if reverse else ordered)


async def all_pages(store: ExtendedStore, limit: int, reverse: bool) -> list[str]:
    keys: list[str] = []
    cursor = None
    while True:
        page = await store.list_document_keys("a", "c", limit=limit, reverse=reverse, cursor=cursor)
        keys += page
        cursor = page.next_cursor
        if cursor is None:
            return keys
        assert len(page) == limit


async def test_a_page_goes_on_whatever_is_written_meanwhile(store: ExtendedStore) -> None:
    """The document that a cursor leads to may be deleted, and others may come before and behind it."""
    await store.write_documents("a", [PutDocument("c", f"k{i}", i) for i in range(6)])
    for reverse, first, rest in ((False, ["k0", "k1"], ["k3", "k4", "k5"]), (True, ["k5", "k4"], ["k2", "k1", "k0"])):
        page = await store.list_document_keys("a", "c", limit=2, reverse=reverse)
        gone = "k3" if reverse else "k2"
        await store.delete_document("a", "c", gone)
        assert page == first
        assert await store.list_document_keys("a", "c", reverse=reverse, cursor=page.next_cursor) == rest
        await store.put_document("a", "c", gone, 1)


async def test_exactly_one_of_many_writers_wins(store: ExtendedStore) -> None:
    """Of puts that demand the absence, or one version; and a counter by compare-and-set loses nothing."""
    for i in range(20):
        puts = [store.put_document("a", "c", f"one-{i}", n, expect=ABSENT) for n in range(10)]
        outcomes = await asyncio.gather(*puts, return_exceptions=True)
        versions = [outcome for outcome in outcomes if isinstance(outcome, str)]
        conflicts = [outcome for outcome in outcomes if isinstance(outcome, ConflictError)]
        assert (len(versions), len(conflicts)) == (1, 9)
        assert {conflict.version for conflict in conflicts} == set(versions)

    async def count() -> None:
        for _ in range(10):
            while True:
                found = await store.load_document("a", "c", "counter")
                number, version = (0, ABSENT) if found is None else (int(str(found.value)), found.version)
                try:
                    await store.put_document("a", "c", "counter", number + 1, expect=version)
                    break
                except ConflictError:
                    continue

    await asyncio.gather(*(count() for _ in range(5)))
    found = await store.load_document("a", "c", "counter")
    assert found is not None and found.value == 50


async def test_versions_never_return(store: ExtendedStore) -> None:
    """Not for an equal value, not after a delete, and not for another agent's or key's document."""
    versions = [await store.put_document(agent, "c", key, 1) for agent in "ab" for key in "kk"]
    await store.delete_document("a", "c", "k", expect=versions[1])
    versions.append(await store.put_document("a", "c", "k", 1, expect=ABSENT))
    await store.delete("a")
    versions.append(await store.put_document("a", "c", "k", 1, expect=ABSENT))
    assert len(set(versions)) == len(versions)
    with pytest.raises(ConflictError) as caught:
        await store.delete_document("a", "c", "k", expect=versions[0])
    assert caught.value.version == versions[-1]
    with pytest.raises(ConflictError, match="does not exist") as caught:
        await store.put_document("a", "c", "other", 1, expect=versions[0])
    assert caught.value.version == ABSENT


async def test_several_and_a_turn_are_one_commit(store: ExtendedStore) -> None:
    """A demand that fails refuses everything, and a lease that ended, too."""
    version = await store.put_document("a", "c", "k", 1)
    writes = [PutDocument("c", "new", 1), PutDocument("c", "k", 2, expect=ABSENT)]
    with pytest.raises(ConflictError):
        await store.save_turn("a", append=[Message.user("x")], documents=writes)
    lease = await store.acquire_agent_lock("a", ttl_ms=1000)
    await lease.release()
    with pytest.raises(LockLostError):
        await store.write_documents("a", [PutDocument("c", "new", 1)], fence=lease)
    with pytest.raises(LockLostError):
        await store.write_documents("a", [], fence=lease)
    assert await store.load_messages("a") == []
    assert await store.list_document_keys("a", "c") == ["k"]

    writes = [PutDocument("c", "new", None), DeleteDocument("c", "k", version), DeleteDocument("c", "never")]
    await store.save_turn("a", append=[Message.user("x")], documents=writes)
    assert await store.list_document_keys("a", "c") == ["new"]
    found = await store.load_document("a", "c", "new")
    assert found is not None and found.value is None
    assert len(await store.load_messages("a")) == 1
    assert await store.write_documents("a", []) == []


WRONG: Final[tuple[tuple[str, tuple[Any, ...], dict[str, Any]], ...]] = (
    ("put_document", ("", "k", 1), {}),
    ("put_document", ("c/d", "k", 1), {}),
    ("put_document", ("é", "k", 1), {}),
    ("put_document", ("c" * 65, "k", 1), {}),
    ("put_document", ("c\n", "k", 1), {}),
    ("put_document", (b"c", "k", 1), {}),
    ("put_document", ("c", "", 1), {}),
    ("put_document", ("c", "k" * 401, 1), {}),
    ("put_document", ("c", "é" * 201, 1), {}),
    ("put_document", ("c", "\0", 1), {}),
    ("put_document", ("c", "\ud800", 1), {}),
    ("put_document", ("c", None, 1), {}),
    ("put_document", ("c", "k", 1), {"expect": ""}),
    ("put_document", ("c", "k", 1), {"expect": 0}),
    ("put_document", ("c", "k", 1), {"expect": "00"}),
    ("put_document", ("c", "k", 1), {"expect": "A" * 32}),
    ("write_documents", (PutDocument("c", "k", 1),), {}),
    ("write_documents", ([("c", "k", 1)],), {}),
    ("write_documents", ([PutDocument("c", "k", 1), DeleteDocument("c", "k")],), {}),
    ("list_documents", ("c",), {"limit": -1}),
    ("list_documents", ("c",), {"limit": 10_001}),
    ("list_documents", ("c",), {"limit": None}),
    ("list_documents", ("c",), {"limit": True}),
    ("list_documents", ("c",), {"reverse": 1}),
    ("list_documents", ("c",), {"start": ""}),
    ("list_documents", ("c",), {"stop": 5}),
    ("list_documents", ("c",), {"prefix": None}),
    ("list_documents", ("c",), {"prefix": "\0"}),
    ("list_documents", ("c",), {"cursor": "x"}),
    ("list_documents", ("c",), {"cursor": b"x"}),
    ("list_documents", ("c",), {"cursor": "\ud800"}),
)


@pytest.mark.parametrize(("method", "args", "options"), WRONG, ids=range(len(WRONG)))
async def test_wrong_arguments_are_refused(method: str, args: tuple[Any, ...], options: dict[str, Any]) -> None:
    """With a sentence, and nothing is written."""
    async with create_extended_store("memory:") as store:
        with pytest.raises(InvalidArgumentError):
            await getattr(store, method)("a", *args, **options)
        assert (await store.aggregate_stats("a")).total_documents == 0


NO_JSON: Final = (float("nan"), 2 + 1j, {1: 2}, {"a": object()}, b"x", ..., [set()])


@pytest.mark.parametrize("value", NO_JSON, ids=range(len(NO_JSON)))
async def test_values_that_are_no_json_are_refused(value: Any) -> None:
    """The error names the document and the place in it."""
    async with create_extended_store("memory:") as store:
        with pytest.raises(InvalidValueError, match=r"document 'c/k'.*value"):
            await store.put_document("a", "c", "k", value)


async def test_a_cursor_belongs_to_its_range(store: ExtendedStore) -> None:
    """A cursor of another collection, range or direction is refused, and so is a forged one."""
    await store.write_documents("a", [PutDocument(c, f"k{i}", i) for c in "cd" for i in range(4)])
    page = await store.list_documents("a", "c", limit=2)
    for collection, options in (("d", {}), ("c", {"reverse": True}), ("c", {"prefix": "k"}), ("c", {"stop": "k3"})):
        with pytest.raises(InvalidArgumentError, match="other filters"):
            await store.list_documents("a", collection, cursor=page.next_cursor, **options)  # type: ignore[arg-type]
    assert page.next_cursor is not None
    with pytest.raises(InvalidArgumentError, match="one of another agent"):
        await store.list_documents("b", "c", cursor=page.next_cursor)
    with pytest.raises(InvalidArgumentError, match="no cursor"):
        await store.list_documents("a", "c", cursor=page.next_cursor[:-2])
    assert (await store.list_documents("a", "c", limit=0)).next_cursor is None


async def test_many_documents_stream_in_bounded_memory() -> None:
    """20,000 documents of 2 KB are read page by page, and a page costs what is in it."""
    async with create_extended_store("sqlite:///many.db", durability="fast") as store:
        text = "x" * 2000
        for i in range(0, 20_000, 1000):
            await store.write_documents("a", [PutDocument("c", f"{n:06}", text) for n in range(i, i + 1000)])
        tracemalloc.start()
        count = 0
        async for _ in store.iter_documents("a", "c", reverse=True):
            count += 1
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert count == 20_000
        assert peak < 15_000_000, f"{peak:,} bytes for 40,000,000 bytes of documents"
        assert (await store.aggregate_stats("a")).total_documents == 20_000


async def test_forks_take_documents_along(store: ExtendedStore) -> None:
    """Only when they are asked to; both are independent then."""
    await store.save_info("a", AgentInfo(agent_id="a", template_id="t"))
    version = await store.put_document("a", "c", "k", [1])
    await store.write_documents("a", [PutDocument("many", f"{i:04}", i) for i in range(200)])
    plain, whole = await store.fork("a"), await store.fork("a", "b", documents=True)
    assert await store.load_document(plain, "c", "k") is None
    found = await store.load_document(whole, "c", "k")
    assert found is not None and (found.value, found.version) == ([1], version)
    assert len(await store.list_document_keys(whole, "many", limit=1000)) == 200
    await store.delete("a")
    assert await store.load_document(whole, "c", "k") == found
    with pytest.raises(ConflictError, match="documents"):
        await store.put_document("taken", "c", "k", 1)
        await store.fork(whole, "taken")


class WithoutDocuments(Layer):
    """A third-party engine of before: it knows nothing of documents, and would ignore what a write demands."""

    keeps_documents = False  # type: ignore[assignment]


async def test_an_engine_without_documents_serves_the_rest() -> None:
    """All methods for documents are refused, nothing is written, and everything else works."""

    async def opened() -> Engine:
        return WithoutDocuments(MemoryEngine())

    async with EngineStore(opened) as store:
        for call in (
            store.put_document("a", "c", "k", 1),
            store.load_document("a", "c", "k"),
            store.delete_document("a", "c", "k"),
            store.write_documents("a", [PutDocument("c", "k", 1)]),
            store.list_documents("a", "c"),
            store.list_documents("a", "c", limit=0),
            store.list_document_keys("a", "c"),
            store.save_turn("a", append=[Message.user("x")], documents=[PutDocument("c", "k", 1)]),
            store.append_messages_once("a", {"k": Message.user("x")}),
            store.append_messages_once("a", {}),
        ):
            with pytest.raises(UnsupportedError, match="keeps no documents"):
                await call
        with pytest.raises(UnsupportedError):
            await anext(store.iter_documents("a", "c"))
        await store.save_turn("a", append=[Message.user("x")], info=AgentInfo(agent_id="a", template_id="t"))
        assert (await store.check_consistency()).consistent
        assert await store.load_info(await store.fork("a", "b", length=1))


async def test_a_damaged_document_is_named(tmp_path: Path) -> None:
    """A page leaves it out and names it; a load, a stream and the check of consistency report it."""
    import sqlite3

    async with create_extended_store("sqlite:///damaged.db") as store:
        await store.write_documents("a", [PutDocument("c", f"k{i}", i) for i in range(3)])
        with sqlite3.connect("damaged.db") as db:
            db.execute("UPDATE kode_docs SET body = '{\"value\":7}' WHERE key = 'c/k1'")
        db.close()
        page = await store.list_documents("a", "c")
        assert [document.key for document in page] == ["k0", "k2"]
        assert page.left_out == ("document 'c/k1' of agent 'a'",)
        with pytest.raises(CorruptRecordError, match="c/k1"):
            await store.load_document("a", "c", "k1")
        with pytest.raises(CorruptRecordError, match="c/k1"):
            _ = [document async for document in store.iter_documents("a", "c")]
        (issue,) = (await store.check_consistency("a")).issues
        assert issue.code == "corrupt_record" and "c/k1" in issue.message
        await store.put_document("a", "c", "k1", 1)
        assert (await store.check_consistency("a")).consistent


class Meanwhile(Layer):
    """Calls a function once, in the middle of the first read of a range."""

    def __init__(self, inner: Engine, call: Callable[[], Awaitable[object]]) -> None:
        super().__init__(inner)
        self._call: Callable[[], Awaitable[object]] | None = call

    async def docs_in(self, agent_id: str, span: DocSpan) -> Sequence[Doc]:
        found = await super().docs_in(agent_id, span)
        if found and self._call is not None:
            call, self._call = self._call, None
            await call()
        return found


async def test_a_fork_has_the_documents_of_one_instant(tmp_path: Path) -> None:
    """A document that moves to another key while the fork reads is in the fork, once."""
    url = f"sqlite:///{tmp_path}/a.db"
    async with create_extended_store(url) as store:
        await store.save_info("a", AgentInfo(agent_id="a", template_id="t"))
        await store.write_documents("a", [PutDocument("c", f"k{i:03}", i) for i in range(200)])
        await store.put_document("a", "c", "z", "moves")

        async def move() -> None:
            await store.write_documents("a", [PutDocument("c", "a", "moves"), DeleteDocument("c", "z")])

        async with create_extended_store(url, layers=[lambda engine: Meanwhile(engine, move)]) as other:
            await other.fork("a", "b", documents=True)
        assert [one.key async for one in store.iter_documents("b", "c") if one.value == "moves"] == ["a"]


async def test_a_fork_replaces_no_document(tmp_path: Path) -> None:
    """One that another store puts under the fork's id meanwhile is kept, and the fork refused."""
    url = f"sqlite:///{tmp_path}/a.db"
    async with create_extended_store(url) as store:
        await store.save_info("a", AgentInfo(agent_id="a", template_id="t"))
        await store.put_document("a", "c", "k", "the parent's")

        def meanwhile(engine: Engine) -> Engine:
            return Before(engine, lambda: store.put_document("b", "c", "k", "mine", expect=ABSENT))

        async with create_extended_store(url, layers=[meanwhile]) as other:
            with pytest.raises(ConflictError):
                await other.fork("a", "b", documents=True)
        found = await store.load_document("b", "c", "k")
        assert found is not None and found.value == "mine"
        assert not await store.exists("b")


class Before(Layer):
    """Calls a function before the first commit."""

    def __init__(self, inner: Engine, call: Callable[[], Awaitable[object]]) -> None:
        super().__init__(inner)
        self._call: Callable[[], Awaitable[object]] | None = call

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        if self._call is not None:
            call, self._call = self._call, None
            await call()
        return await super().commit(batches)


class Elsewhere(Layer):
    """Reads another digest than the engine compares, as a layer does whose key was lost."""

    async def docs(self, agent_id: str, kind: DocKind, key: str | None = None) -> Sequence[Doc]:
        found = await super().docs(agent_id, kind, key)
        return [replace(doc, body=Body(doc.body.text, bytes(16))) for doc in found]


async def test_a_demand_that_cannot_be_met_ends() -> None:
    """A write that the engine refuses though the document seems to have its version is given up soon."""
    async with create_extended_store("memory:", layers=[Elsewhere]) as store:
        await store.put_document("a", "c", "k", 1)
        with pytest.raises(StoreBusyError, match="nothing was written"):
            await store.put_document("a", "c", "k", 2, expect="0" * 32)


async def test_the_callers_list_may_change() -> None:
    """The documents of a turn are those of the moment of the call, also of a call that waits for others."""
    async with create_extended_store("memory:") as store:
        given = [PutDocument("c", "k", 1)]
        turns = [asyncio.ensure_future(store.save_turn("a", append=[Message.user("x")])) for _ in range(3)]
        turns.append(asyncio.ensure_future(store.save_turn("a", append=[Message.user("y")], documents=given)))
        await asyncio.sleep(0)
        given.append(PutDocument("c", "late", 1))
        await asyncio.gather(*turns)
        assert await store.list_document_keys("a", "c") == ["k"]


async def test_damaged_columns_cost_one_document() -> None:
    """A page, the keys, the command and the check step around a row whose columns have other types or another key."""
    import sqlite3

    async with create_extended_store("sqlite:///damaged.db") as store:
        await store.write_documents("a", [PutDocument("c", f"k{i}", i) for i in range(5)])
        with sqlite3.connect("damaged.db") as db:
            db.execute("UPDATE kode_docs SET body = x'00' WHERE key = 'c/k1'")
            db.execute("UPDATE kode_docs SET time = 'x' WHERE key = 'c/k2'")
            db.execute("UPDATE kode_docs SET digest = 5 WHERE key = 'c/k3'")
            db.execute("UPDATE kode_docs SET key = 'ck' WHERE key = 'c/k4'")
        db.close()
        page = await store.list_documents("a", "c")
        assert [document.key for document in page] == ["k0"]
        assert page.left_out == tuple(f"document 'c/k{i}' of agent 'a'" for i in (1, 2, 3))
        assert await store.list_document_keys("a", "c") == ["k0", "k1", "k2", "k3"]
        first = await store.list_documents("a", "c", limit=1)
        assert [document.key for document in first] == ["k0"] and first.next_cursor is not None
        found = [issue.message for issue in (await store.check_consistency("a")).issues]
        assert len(found) == 4 and sum("'ck'" in text for text in found) == 1


async def test_a_stream_opens_the_store() -> None:
    """A stream of documents may be the first call of a store."""
    async with create_extended_store("sqlite:///a.db") as store:
        await store.put_document("a", "c", "k", 1)
    lazy = lazy_store("sqlite:///a.db")
    assert [document.key async for document in lazy.iter_documents("a", "c")] == ["k"]
    await lazy.close()


class RefusesOnce(Layer):
    """Says once of a write of a new list that another writer was faster."""

    refused = False

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        if not self.refused and any(batch.messages is not None for batch in batches):
            self.refused = True
            return [Refused("messages") for _ in batches]  # type: ignore[arg-type]
        return await super().commit(batches)


async def test_a_fork_that_is_refused_for_now_is_made() -> None:
    """An id under which nothing exists is no conflict, though the engine refused the first attempt."""
    async with create_extended_store("memory://", layers=[RefusesOnce]) as store:
        await store.save_info("a", AgentInfo(agent_id="a", template_id="t"))
        assert await store.fork("a", "b", length=0) == "b"
        assert await store.exists("b")
