"""Messages that are appended once, in memory, in JSON files, in SQLite, and in the engine of records."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from kode_conformance.builtin import JsonHarness, MemoryHarness
from kode_sqlite.testing.harness import HybridHarness, SqliteHarness

from kode_core import CorruptRecordError, InvalidArgumentError, InvalidValueError, Message, create_extended_store
from kode_core.batch import Batch, Doc, DocKind, DocWrite, ListWrite, placed_docs
from kode_core.codec import Body
from kode_core.engines.record.engine import RecordEngine
from kode_core.store import EngineStore
from tests.keyed_appends import KeyedAppends, keyed
from tests.memory_records import Contents, MemoryRecords
from tests.test_record_engine import OPTIONS


class TestMemory(KeyedAppends):
    harness = MemoryHarness()


class TestJson(KeyedAppends):
    harness = JsonHarness()


class TestSqlite(KeyedAppends):
    harness = SqliteHarness()


class TestHybrid(KeyedAppends):
    harness = HybridHarness()


# --- positions --------------------------------------------------------------------------------------------------------


def test_documents_get_their_places() -> None:
    """Only those that ask for one, and none twice."""
    doc = Doc("~messages/k", 7, Body("{}", b"1"))
    writes = (DocWrite(DocKind.DOCUMENTS, doc.key, doc), DocWrite(DocKind.DOCUMENTS, doc.key, doc, at=2))
    first, second = placed_docs(writes, 40)
    assert (first, second.doc and second.doc.time, second.at) == (writes[0], 42, None)
    assert placed_docs((first, second), 99) == (first, second)
    removal = DocWrite(DocKind.DOCUMENTS, doc.key, None, at=2)
    assert placed_docs([removal], 40) == (removal,)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
async def test_batches_of_one_swap_of_records_follow_each_other(options: dict[str, Any]) -> None:
    """In a group of batches, each counts the messages that the ones before it append or cut."""
    contents = Contents()

    async def opened() -> RecordEngine:
        return RecordEngine(MemoryRecords(contents, **options))

    async with EngineStore(opened) as store:
        engine = store._context.engine
        await store.append_messages("a", [Message.user("x")] * 3)
        rows = (await _batch_of(store, 2)).messages
        assert rows is not None

        def batch(n: int, write: ListWrite) -> Batch:
            doc = Doc(f"~messages/{n}", 0, Body("{}", b"1" * 16))
            docs = (DocWrite(DocKind.DOCUMENTS, doc.key, doc, at=1),)
            return Batch(agent_id="a", op_id=f"{n}", now=1, messages=write, docs=docs)

        append = rows.append
        await engine.commit(
            [
                batch(1, ListWrite(append=append)),
                batch(2, ListWrite(append=append)),
                batch(3, ListWrite(length=1, append=append)),
                batch(4, ListWrite(append=append)),
            ]
        )
        found = {doc.key: doc.time for doc in await engine.docs("a", DocKind.DOCUMENTS)}
        assert found == {"~messages/1": 4, "~messages/2": 6, "~messages/3": 2, "~messages/4": 4}


async def _batch_of(store: EngineStore, count: int) -> Batch:
    """The batch of an append of so many messages."""
    seen: list[Batch] = []
    engine = store._context.engine
    commit = engine.commit

    async def noted(batches: Sequence[Batch]) -> Any:
        seen.extend(batches)
        return await commit(batches)

    engine.commit = noted  # type: ignore[method-assign]
    await store.append_messages("other", [Message.user("y")] * count)
    engine.commit = commit  # type: ignore[method-assign]
    return seen[0]


# --- arguments and damage ---------------------------------------------------------------------------------------------


class Key(str):
    """A str that is none to a store."""


async def test_wrong_messages_are_named() -> None:
    async with create_extended_store("memory:") as store:
        for given, told in (
            ({Key("k"): Message.user("x")}, "message key must be a str, got Key"),
            ({"": Message.user("x")}, "message key must not be empty"),
            ({"k" * 401: Message.user("x")}, "at most 400 bytes"),
            ({"k\0": Message.user("x")}, r"must not contain U\+0000"),
            ({"k": "x"}, r"messages\['k'\] must be of type Message, got str"),
            ({"k": {"role": "user"}}, r"from_dict\(Message, …\)"),
            ([Message.user("x")], "must be a mapping of keys to messages, got list"),
        ):
            messages: Any = {"sound": Message.user("x"), **given} if isinstance(given, dict) else given
            with pytest.raises(InvalidArgumentError, match=told):
                await store.append_messages_once("a", messages)
        await store.append_messages_once("a", {"k": Message.user("x")})
        broken = Message.user("x").replace(metadata={"n": float("nan")})
        for key in ("k", "new"):  # the verdict does not depend on what is known
            with pytest.raises(InvalidValueError, match="metadata"):
                await store.append_messages_once("a", {key: broken})
        assert len(await store.load_messages("a")) == 1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("UPDATE kode_docs SET body = '{\"value\":7}' WHERE key = '~messages/k1'", "message key 'k1' of agent 'a'"),
        ("UPDATE kode_docs SET time = -1 WHERE key = '~messages/k1'", "no position of a message"),
        ("UPDATE kode_docs SET time = 'x' WHERE key = '~messages/k1'", "k1"),
    ],
    ids=["body", "negative", "text"],
)
async def test_a_damaged_key_is_named(change: str, told: str, tmp_path: Path) -> None:
    async with create_extended_store("sqlite:///damaged.db") as store:
        await store.append_messages_once("a", keyed(["k0", "k1"]))
        with closing(sqlite3.connect("damaged.db")) as db, db:
            assert db.execute(change).rowcount == 1
        with pytest.raises(CorruptRecordError, match=told):
            await store.append_messages_once("a", keyed(["k1", "new"]))
        (issue,) = (await store.check_consistency("a")).issues
        assert issue.code == "corrupt_record" and "k1" in issue.message
        places = await store.append_messages_once("a", keyed(["k0", "k2"]))
        assert [(place.position, place.is_new) for place in places] == [(0, False), (2, True)]


async def test_keys_that_the_core_does_not_have_are_found(tmp_path: Path) -> None:
    async with create_extended_store("sqlite:///strange.db") as store:
        await store.append_messages_once("a", keyed(["k0", "k1"]))
        with closing(sqlite3.connect("strange.db")) as db, db:
            db.execute("UPDATE kode_docs SET key = '~other/k1' WHERE key = '~messages/k1'")
            db.execute("UPDATE kode_docs SET key = '~messages/' WHERE key = '~messages/k0'")
        issues = (await store.check_consistency("a")).issues
        assert sorted(issue.code for issue in issues) == ["corrupt_record", "corrupt_record"]


async def test_a_backup_has_the_keys(tmp_path: Path) -> None:
    for backend, copy in (("sqlite:///whole.db", "sqlite:///copy.db"), ("json:///whole", "json:///copy")):
        async with create_extended_store(backend) as store:
            await store.append_messages_once("a", keyed(["k0", "k1"]))
            await store.backup(copy.rpartition("/")[2])
        async with create_extended_store(copy) as store:
            assert not any(place.is_new for place in await store.append_messages_once("a", keyed(["k1", "k0"])))
