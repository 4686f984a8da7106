"""Damaged documents, other serializers, and encryption."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from typing import Any

import pytest
from kode_langgraph import KodeSaver
from langgraph.checkpoint.serde.base import CipherProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer

from kode_core import CorruptRecordError
from kode_core.sync import open_store
from plugins.langgraph.tests.graphs import chat, configured, question

AGENT = "langgraph:t"


class Cipher(CipherProtocol):
    """Encrypts nothing well, but with another text each time."""

    def __init__(self, key: int = 77) -> None:
        self.key = key
        self.count = 0

    def encrypt(self, plaintext: bytes) -> tuple[str, bytes]:
        self.count = (self.count + 1) % 251
        return "xor", bytes([self.count]) + bytes(byte ^ self.key ^ self.count for byte in plaintext)

    def decrypt(self, ciphername: str, ciphertext: bytes) -> bytes:
        return bytes(byte ^ self.key ^ ciphertext[0] for byte in ciphertext[1:])


def damage(options: dict[str, Any], collection: str, *, newest: bool = True) -> None:
    """Change a byte of a document behind the store's back."""
    with open_store(**options) as store:
        (key,) = store.list_document_keys(AGENT, collection, reverse=newest, limit=1)
    with closing(sqlite3.connect(options["db_path"])) as db:
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        changed = 0
        for table in tables:
            columns = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
            if "body" in columns and "key" in columns:
                changed += db.execute(
                    f"UPDATE {table} SET body = replace(body, 'msgpack', 'msgpakk') WHERE agent_id = ? AND key LIKE ?",
                    (AGENT, f"%{key}"),
                ).rowcount
        db.commit()
    assert changed, (collection, tables)


@pytest.mark.parametrize("collection", ["checkpoints", "items"])
def test_a_damaged_document_is_named(sqlite: dict[str, Any], collection: str) -> None:
    """The checkpoints that do not need it can still be read."""
    with KodeSaver.from_url(**sqlite) as saver:
        app = chat().compile(checkpointer=saver)
        for n in range(2):
            app.invoke(question(n), configured("t"))
        history = list(saver.list(configured("t")))
    damage(sqlite, collection)
    with KodeSaver.from_url(**sqlite) as saver:
        with pytest.raises(CorruptRecordError, match=f"(?s){collection}.*{AGENT}|{AGENT}.*{collection}"):
            saver.get_tuple(configured("t"))
        older = saver.get_tuple(history[4].config)
        assert older and older.checkpoint == history[4].checkpoint
        saver.delete_thread("t")
        assert saver.get_tuple(configured("t")) is None


@pytest.mark.parametrize(
    "value", [None, 7, {}, {"values": 7}, {"values": [["messages", ["q"]]], "checkpoint": ["v", "msgpack", "!"]}]
)
def test_a_document_of_another_program_is_named(sqlite: dict[str, Any], value: Any) -> None:
    """Whatever is stored there: no error of a library comes out."""
    with KodeSaver.from_url(**sqlite) as saver:
        chat().compile(checkpointer=saver).invoke(question(), configured("t"))
    with open_store(**sqlite) as store:
        store.put_document(AGENT, "checkpoints", "/zzzz", value)
    with KodeSaver.from_url(**sqlite) as saver:
        with pytest.raises(CorruptRecordError, match="zzzz"):
            saver.get_tuple(configured("t"))
        with pytest.raises(CorruptRecordError, match="zzzz"):
            list(saver.list(configured("t")))
        with pytest.raises(CorruptRecordError, match="zzzz"):
            saver.get_delta_channel_history(config=configured("t"), channels=["messages"])


def test_an_item_that_is_missing_is_named(sqlite: dict[str, Any]) -> None:
    with KodeSaver.from_url(**sqlite) as saver:
        chat().compile(checkpointer=saver).invoke(question(), configured("t"))
    with open_store(**sqlite) as store:
        for key in store.list_document_keys(AGENT, "items"):
            store.delete_document(AGENT, "items", key)
    with KodeSaver.from_url(**sqlite) as saver, pytest.raises(CorruptRecordError, match="item"):
        saver.get_tuple(configured("t"))


def test_encrypted_values_cost_no_more_and_no_message_is_plain(sqlite: dict[str, Any]) -> None:
    """Equal values are found before they are encrypted; nothing of a message is in the file."""
    serde = EncryptedSerializer(Cipher())
    for n in range(3):
        with KodeSaver.from_url(**sqlite, serde=serde) as saver:
            result = chat().compile(checkpointer=saver).invoke(question(n), configured("t"))
    assert len(result["messages"]) == 12
    with open_store(**sqlite) as store:
        assert store.load_messages(AGENT) == []
        chunks = [each.value["items"] for each in store.iter_documents(AGENT, "items")]
        assert 12 <= sum(map(len, chunks)) <= 15  # the messages, and the questions as they were asked
    with closing(sqlite3.connect(sqlite["db_path"])) as db:
        assert "xxxxxxxx" not in "\n".join(db.iterdump())
    with KodeSaver.from_url(**sqlite) as saver, pytest.raises(CorruptRecordError, match="no key"):
        saver.get_tuple(configured("t"))


async def test_a_cancelled_put_is_whole_or_absent(sqlite: dict[str, Any]) -> None:
    """And the thread goes on, with what the store has."""
    async with KodeSaver.from_url(**sqlite) as saver:
        app = chat().compile(checkpointer=saver)
        for n in range(12):
            running = asyncio.create_task(app.ainvoke(question(n), configured("t")))
            await asyncio.sleep(0.004 * n)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        state = await app.aget_state(configured("t"))
        result = await app.ainvoke(None if state.tasks else question(), configured("t"))
        assert result["messages"][: len(state.values["messages"])] == state.values["messages"]
        found = [each async for each in saver.alist(configured("t"))]
        consistency = await saver.home.call(lambda store: store.check_consistency())
        assert {issue.code for issue in consistency.issues} <= {"use_without_result"}  # of a turn that was cancelled
        assert all(each.checkpoint["id"] for each in found)
