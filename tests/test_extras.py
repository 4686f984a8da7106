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
from typing import Any

import pytest
from kode_conformance import load_checks, run_check
from kode_conformance.settings import Tier
from kode_conformance.testclass import StoreConformance
from kode_extras.encryption import Encryption, EncryptionPlugin, Keys, encrypted, keys_of
from kode_extras.latencies import Latencies
from kode_extras.testing import EncryptedMemory, EncryptedSqlite
from kode_extras.tracing import Tracing, TracingPlugin
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from kode_core import (
    AgentEvent,
    AgentInfo,
    AgentNotFoundError,
    Bookmark,
    ConfigurationError,
    CorruptRecordError,
    InvalidArgumentError,
    Message,
    Snapshot,
    Timeline,
    TodoItem,
    TodoSnapshot,
    ToolCallRecord,
    create_extended_store,
)
from kode_core.codec import encode
from kode_core.engine import Engine
from kode_core.layers import Layer
from kode_core.plugins import registry

EXTRAS = Path(__file__).parents[1] / "docs" / "examples" / "kode-extras"
KEYS = {"new": b"n" * 32, "old": b"o" * 32}
KEY = Keys(b"d" * 32, KEYS)
WITHOUT_BODIES = {
    "acquire_lease", "agent_ids", "around", "backup", "close", "connection_use", "inspect", "probes", "release_lease",
    "renew_lease", "repair", "count", "stats", "stored_ids", "totals", "watch",
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
    other = Keys(b"d" * 32, {"new": KEYS["new"], "old": b"x" * 32})
    async with create_extended_store(url, layers=[encrypted(other)]) as store:
        with pytest.raises(CorruptRecordError, match="message 0 of agent 'agt-old'"):
            await store.load_messages("agt-old")
        assert [m.text for m in await store.load_messages("agt-new")] == ["hello"]


async def test_one_store_is_encrypted(tmp_path: Path) -> None:
    """The layer of one store leaves other stores of the process alone, and its digests tell nothing of short texts."""
    urls = [f"sqlite:///{tmp_path}/{name}.db" for name in ("plain", "sealed")]
    async with (
        create_extended_store(urls[0]) as plain,
        create_extended_store(urls[1], layers=[encrypted(KEY)]) as sealed,
    ):
        for store in (plain, sealed):
            await store.save_messages("a", [Message.user("yes"), Message.user("canary")])
            assert [m.text for m in await store.load_messages("a")] == ["yes", "canary"]
    stored = [b"".join(path.read_bytes() for path in tmp_path.glob(f"{name}.db*")) for name in ("plain", "sealed")]
    hint = encode(Message, Message.user("yes"), "").digest
    assert [(b"canary" in raw, hint in raw) for raw in stored] == [(True, True), (False, False)]


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


# --- tracing ----------------------------------------------------------------------------------------------------------


class Traces:
    """Finished spans, and a layer that opens some where the instrumentation of a driver does."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self._provider = TracerProvider()
        self._provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self._provider.get_tracer("tests")

    def driver(self, engine: Engine) -> Engine:
        class Driver(Layer):
            async def around(layer, verb: str, call: Any, /, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
                with self.tracer.start_as_current_span(f"driver {verb}"):
                    return await call(*args, **kwargs)

        return Driver(engine)

    def taken(self) -> dict[str, ReadableSpan]:
        """The spans since the last time, by name."""
        spans = {span.name: span for span in self.exporter.get_finished_spans()}
        self.exporter.clear()
        return spans


async def test_calls_are_traced(tmp_path: Path) -> None:
    """Every call is a span that is the parent of the driver's, with attributes by the conventions and no contents."""
    traces = Traces()
    url = f"sqlite:///{tmp_path}/agents.db"
    async with create_extended_store(url, layers=[traces.driver], observers=[Tracing(traces.tracer)]) as store:
        with traces.tracer.start_as_current_span("request") as request:
            await store.append_messages("agt-1", [Message.user("canary"), Message.user("héllo")])
        spans = traces.taken()
        call = spans["append_messages kode"]
        assert call.parent is not None
        assert call.parent.span_id == request.get_span_context().span_id
        children = [span for span in spans.values() if span.parent and span.parent.span_id == call.context.span_id]
        assert [span.name for span in children] == ["driver commit"]
        assert "canary" not in call.to_json()
        attributes = dict(call.attributes or {})
        assert attributes.pop("kode.bytes") > 100  # type: ignore[operator]
        assert attributes == {
            "db.system.name": "sqlite",
            "db.operation.name": "append_messages",
            "gen_ai.conversation.id": "agt-1",
            "kode.rows": 2,
        }
        await store.append_event("agt-1", Timeline(0, Bookmark(0, 1), AgentEvent("progress", "chunk", {})))
        spans = traces.taken()
        group, call = spans["driver commit"], spans["append_event kode"]
        assert group.parent is not None
        assert group.parent.span_id == call.context.span_id
        with pytest.raises(AgentNotFoundError):
            await store.batch_fork("nobody", 1)
        call = traces.taken()["batch_fork kode"]
        assert (call.attributes or {})["error.type"] == "AgentNotFoundError"
        assert (call.status.status_code, call.status.description, call.events) == (StatusCode.ERROR, None, ())


async def test_ids_of_agents_can_be_left_out_of_traces() -> None:
    """Ids may be personal; an id that is no text of Unicode is still traced."""
    for agents in (True, False):
        traces = Traces()
        async with create_extended_store("memory:", observers=[Tracing(traces.tracer, agents=agents)]) as store:
            with pytest.raises(InvalidArgumentError):
                await store.load_messages("a\ud800")
        found = (traces.taken()["load_messages kode"].attributes or {}).get("gen_ai.conversation.id")
        assert found == ("a?" if agents else None)


async def test_a_plugin_traces_every_store(caplog: pytest.LogCaptureFixture) -> None:
    """Without a provider OpenTelemetry's spans are empty, and nothing fails."""
    with added(TracingPlugin()):
        async with create_extended_store("memory:") as store:
            await store.append_messages("a", [Message.user("x")])
    assert not caplog.records


# --- the suite --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clause", ["EVT-4", "FORK", "INFO", "MSG-4", "OPS-4", "SNAP", "TC-3"])
def test_the_suite_finds_nothing(clause: str) -> None:
    """A store with the layer keeps what the layer could break: digests, times, repetitions, forks, damage."""
    checks = [check for check in load_checks() if check.id.startswith(clause) and check.tier is Tier.QUICK]
    assert checks
    for check in checks:
        run_check(check, EncryptedSqlite())


@pytest.mark.slow
class TestEncryptedMemory(StoreConformance):
    harness = EncryptedMemory()


@pytest.mark.slow
class TestEncryptedSqlite(StoreConformance):
    harness = EncryptedSqlite()
