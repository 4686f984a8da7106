"""The plugins of the guide on layers and observers: they run, are found, and the suite judges a store with them."""

from __future__ import annotations

import base64
import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from kode_conformance import load_checks, run_check
from kode_conformance.settings import Tier
from kode_extras.encryption import Encryption, EncryptionPlugin, Keys, keys_of
from kode_extras.latencies import Latencies
from kode_sqlite.testing.harness import SqliteHarness

from kode_core import (
    AgentEvent,
    AgentInfo,
    Bookmark,
    ConfigurationError,
    CorruptRecordError,
    Message,
    Snapshot,
    Timeline,
    TodoItem,
    TodoSnapshot,
    ToolCallRecord,
    create_extended_store,
)
from kode_core.layers import Layer
from kode_core.plugins import registry

EXTRAS = Path(__file__).parents[1] / "docs" / "examples" / "kode-extras"
KEYS = {"new": b"n" * 32, "old": b"o" * 32}
WITHOUT_BODIES = {
    "acquire_lease", "agent_ids", "around", "backup", "close", "connection_use", "inspect", "probes", "release_lease",
    "renew_lease", "repair", "stats", "stored_ids", "totals", "watch",
}  # fmt: skip


@contextmanager
def added(plugin: object) -> Iterator[None]:
    registry.add(plugin)
    try:
        yield
    finally:
        registry.remove(plugin)


def test_every_verb_with_bodies_is_overridden() -> None:
    """A verb that is new in the engine's protocol fails here until it was decided whether it has bodies."""
    verbs = {name for name, value in vars(Layer).items() if callable(value) and not name.startswith("_")}
    assert verbs - WITHOUT_BODIES <= vars(Encryption).keys()


@pytest.mark.parametrize("clause", ["EVT-4", "FORK", "INFO", "MSG-4", "SNAP", "TC-3"])
def test_the_suite_finds_nothing(clause: str) -> None:
    """With the layer a store on SQLite keeps what the layer could break: digests, times, repetitions, forks."""
    checks = [check for check in load_checks() if check.id.startswith(clause) and check.tier is Tier.QUICK]
    assert checks
    with added(EncryptionPlugin(Keys(b"d" * 32, KEYS))):
        for check in checks:
            run_check(check, SqliteHarness())


async def test_nothing_of_a_body_is_on_the_disk(tmp_path: Path) -> None:
    """The word is in no file, and everything that was saved comes back."""
    url = f"sqlite:///{tmp_path}/agents.db"
    with added(EncryptionPlugin(Keys(b"d" * 32, KEYS))):
        async with create_extended_store(url) as store:
            await store.save_turn(
                "agt-1",
                append=[Message.user("canary in a message")],
                upsert_tool_calls=[ToolCallRecord(id="c", name="bash", input={"x": "canary in a call"})],
                todos=TodoSnapshot(todos=[TodoItem(id="t", title="canary in a todo")]),
                info=AgentInfo(agent_id="agt-1", template_id="t", metadata={"userId": "u-7", "deep": ["seen"]}),
                events=[Timeline(0, Bookmark(0, 1), AgentEvent("progress", "chunk", {"delta": "canary in an event"}))],
            )
            await store.save_snapshot("agt-1", Snapshot(id="s", messages=[Message.user("canary in a snapshot")]))
            (fork,) = await store.batch_fork("agt-1", 1)
            for agent in ("agt-1", fork):
                assert [m.text for m in await store.load_messages(agent)] == ["canary in a message"]
                assert [m.text for m in await store.query_messages(agent_id=agent)] == ["canary in a message"]
                assert len(await store.query_tool_calls(agent_id=agent, tool_name="bash")) == 1
                assert (await store.load_todos(agent) or TodoSnapshot()).todos[0].title == "canary in a todo"
            assert [e.event.data async for e in store.read_events("agt-1")] == [{"delta": "canary in an event"}]
            assert len(await store.query_sessions(user_id="u-7")) == 2
            assert (await store.check_consistency()).issues == ()
            stored = b"".join(path.read_bytes() for path in tmp_path.iterdir() if path.is_file())
    assert b"canary" not in stored
    assert b"bash" in stored  # columns that queries need


async def test_keys_are_changed_and_lost(tmp_path: Path) -> None:
    """A new first key reads what the old one wrote; without the key a record is refused by name, and others are not."""
    url = f"sqlite:///{tmp_path}/agents.db"
    for keys in ({"old": KEYS["old"]}, KEYS):
        with added(EncryptionPlugin(Keys(b"d" * 32, keys))):
            async with create_extended_store(url) as store:
                await store.append_messages(f"agt-{next(iter(keys))}", [Message.user("hello")])
                assert len(await store.query_messages()) == len(keys)
    with added(EncryptionPlugin(Keys(b"d" * 32, {"new": KEYS["new"]}))):
        async with create_extended_store(url) as store:
            with pytest.raises(CorruptRecordError, match="message 0 of agent 'agt-old'"):
                await store.load_messages("agt-old")
            page = await store.query_messages()
            assert [message.agent_id for message in page] == ["agt-new"]
            assert len(page.left_out) == 1


async def test_json_files_are_refused(tmp_path: Path) -> None:
    """Their engine compares digests with stored texts, also next to a database: nothing is written."""
    with added(EncryptionPlugin(Keys(b"d" * 32, KEYS))):
        for url in (f"json:///{tmp_path}/a", f"sqlite:///{tmp_path}/b.db?file_store_base_dir={tmp_path}/files"):
            with pytest.raises(ConfigurationError, match="JSON files"):
                await create_extended_store(url)


def test_keys_from_the_environment() -> None:
    """The JSON of the variable; anything else is refused, and not quoted."""
    given = {"digests": base64.b64encode(b"d" * 32).decode(), "keys": {"k": base64.b64encode(b"k" * 32).decode()}}
    assert isinstance(keys_of(json.dumps(given)), Keys)
    for wrong in ("c2VjcmV0", "{}", '{"digests": "c2VjcmV0", "keys": {}}'):
        with pytest.raises(ConfigurationError, match="AGENT_KEYS") as caught:
            keys_of(wrong)
        assert "c2VjcmV0" not in str(caught.value)
    with pytest.raises(ConfigurationError, match="AGENT_KEYS"):
        keys_of("[" * 100_000)


@pytest.mark.parametrize("key_id", ["", "a:b", 'a"', "a\\", "a\n", "\ud800", "é", "a" * 65])
def test_an_id_that_would_be_read_otherwise_is_refused(key_id: str) -> None:
    """A record that was written under such an id could not be read again."""
    with pytest.raises(ConfigurationError, match="ids of letters, digits"):
        Keys(b"d" * 32, {key_id: b"k" * 32})


@pytest.mark.parametrize(("digests", "key"), [(16, 32), (32, 16), (32, 5), (0, 32)])
def test_shorter_keys_are_refused(digests: int, key: int) -> None:
    """All keys have the 256 bits that the guide names."""
    with pytest.raises(ConfigurationError, match="has 32 bytes"):
        Keys(b"d" * digests, {"k": b"k" * key})


async def test_a_digest_of_another_length_is_damage(tmp_path: Path) -> None:
    """It is told by the record's name, and not as an error of the cipher."""
    url = f"sqlite:///{tmp_path}/agents.db"
    with added(EncryptionPlugin(Keys(b"d" * 32, KEYS))):
        async with create_extended_store(url) as store:
            await store.append_messages("agt-1", [Message.user("hello")])
        with closing(sqlite3.connect(tmp_path / "agents.db")) as db, db:
            db.execute("UPDATE kode_messages SET digest = ?", (b"x" * 15,))
        async with create_extended_store(url) as store:
            with pytest.raises(CorruptRecordError, match="message 0 of agent 'agt-1'"):
                await store.load_messages("agt-1")
            assert [issue.code for issue in (await store.check_consistency()).issues] == ["corrupt_record"]


async def test_calls_are_measured() -> None:
    """Each call is in its bucket, with its error."""
    observer = Latencies()
    with added(observer):
        async with create_extended_store("memory:") as store:
            await store.load_messages("a")
            await store.load_messages("a")
            with pytest.raises(Exception, match="agent"):
                await store.batch_fork("nobody", 1)
    text = observer.text()
    assert 'kode_operation_ms_count{backend="memory",operation="load_messages",error="none"} 2' in text
    assert 'kode_operation_ms_bucket{backend="memory",operation="load_messages",error="none",le="+Inf"} 2' in text
    assert 'operation="batch_fork",error="AgentNotFoundError"' in text


def test_installed_plugins_are_found(tmp_path: Path) -> None:
    """After pip install every store of a process has both, without a line in the program."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(tmp_path / "site"), str(EXTRAS)], check=True, timeout=120)
    keys = {"digests": base64.b64encode(b"d" * 32).decode(), "keys": {"k": base64.b64encode(b"k" * 32).decode()}}
    program = """
import asyncio, sys
sys.path.insert(0, "site")
from kode_core import Message, create_extended_store
async def main():
    async with create_extended_store("sqlite:///agents.db") as store:
        await store.append_messages("a", [Message.user("canary")])
        print(store)
        from kode_extras.latencies import of_this_process
        print(of_this_process.text())
asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"AGENT_KEYS": json.dumps(keys), "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Encryption" in done.stdout
    assert 'operation="append_messages",error="none"} 1' in done.stdout
    assert not any(b"canary" in path.read_bytes() for path in tmp_path.iterdir() if path.is_file())
