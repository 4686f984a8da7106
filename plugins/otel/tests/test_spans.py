"""Spans: their names and attributes, their parents, and that they end."""

from __future__ import annotations

import asyncio
import gc
import inspect
import sqlite3
import threading
from contextlib import suppress
from contextvars import Context
from pathlib import Path
from typing import Any

import pytest
from kode_conformance.calls.methods import calls_of, drive
from kode_conformance.values.canaries import CANARY, marked
from kode_otel import OpenTelemetry
from kode_otel.places import place_of
from opentelemetry.trace import SpanKind, StatusCode, get_current_span

from kode_core import (
    AgentDeletedError,
    AgentEvent,
    AgentInfo,
    AgentNotFoundError,
    ConfigurationError,
    KodeError,
    Message,
    Snapshot,
    create_extended_store,
)
from kode_core.protocols import ExtendedStore
from kode_core.sync import open_store


@pytest.fixture
def driver_spans(recorded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A span for each statement of SQLite's driver, opened in the thread in which it runs."""
    tracer = recorded.tracers.get_tracer("the driver")

    class Traced(sqlite3.Connection):
        def execute(self, statement: str, *args: Any) -> sqlite3.Cursor:
            with tracer.start_as_current_span(statement.split()[0]):
                return super().execute(statement, *args)

    monkeypatch.setattr(sqlite3, "Connection", Traced)


async def test_attributes(recorded: Any, tmp_path: Path) -> None:
    """A span says the operation, the place, the agent, the records and the error, and is the child of the caller's."""
    async with create_extended_store(f"sqlite:///{tmp_path}/agents.db", observers=[recorded.observer()]) as store:
        with recorded.tracer.start_as_current_span("request") as request:
            await store.append_messages("agt-1", [Message.user("hi"), Message.user("ho")])
            assert get_current_span() is request
            with pytest.raises(AgentNotFoundError):
                await store.batch_fork("nobody", 1)
    spans = recorded.spans_by_name()
    span = spans["append_messages"]
    assert span.name == "append_messages agents.db"
    assert span.kind is SpanKind.INTERNAL
    assert span.parent.span_id == request.get_span_context().span_id
    assert dict(span.attributes) == {
        "db.system.name": "sqlite",
        "db.namespace": "agents.db",
        "db.operation.name": "append_messages",
        "db.operation.batch.size": 2,
        "gen_ai.conversation.id": "agt-1",
        "kode.rows": 2,
        "kode.bytes": span.attributes["kode.bytes"],
    }
    assert span.attributes["kode.bytes"] > 10
    assert span.status.status_code is StatusCode.UNSET
    failed = spans["batch_fork"]
    assert failed.attributes["error.type"] == "AgentNotFoundError"
    assert (failed.status.status_code, failed.status.description, failed.events) == (StatusCode.ERROR, None, ())


async def test_the_first_call_opens_the_store(recorded: Any, tmp_path: Path) -> None:
    """The place is known at its end, and its span has it."""
    store = create_extended_store(f"sqlite:///{tmp_path}/agents.db", observers=[recorded.observer()])
    try:
        opened = await store
        assert not await opened.exists("a")
    finally:
        await opened.close()
    (span,) = recorded.spans()
    assert (span.name, span.attributes["db.namespace"]) == ("exists agents.db", "agents.db")


@pytest.mark.parametrize("url", ["memory:otel-canaries", "sqlite:///{}/a.db", "json:///{}/folder"])
async def test_nothing_of_a_record_is_recorded(url: str, recorded: Any, tmp_path: Path) -> None:
    """Every method, called well and badly with arguments whose every text is marked: no span and no metric has one."""
    agent_id = f"{CANARY}-agent"
    async with create_extended_store(url.format(tmp_path), observers=[recorded.observer(agents="none")]) as store:
        info = AgentInfo(agent_id=agent_id, template_id=CANARY, metadata={"userId": CANARY})
        await store.save_turn(agent_id, append=[Message.user(CANARY)], info=info)
        await store.save_snapshot(agent_id, Snapshot(id=CANARY, messages=[Message.user(CANARY)]))
        called = set()
        for name, (method, given) in calls_of(store, agent_id, str(tmp_path / f"{CANARY}-copy")).items():
            if name == "follow_events":
                continue
            texts = ("key", "collection", "snapshot_id", "type", "tags", "metadata")
            for changes in (
                {},
                {one: marked(given[one]) for one in given if one not in ("agent_id", "by", "target", "info")},
                {one: CANARY if one in texts else [CANARY] for one in given if one != "agent_id"},
                {"agent_id": f"{CANARY}\0"} if "agent_id" in given else {"nothing": CANARY},
            ):
                with suppress(KodeError, ValueError, TypeError):
                    await drive(method, {**given, **changes})
            called.add(name)
        assert called > {"save_turn", "put_document", "query_messages", "acquire_agent_lock"}
    spans = recorded.spans()
    assert len(spans) > 100
    assert {"db.operation.name"} <= set.intersection(*(set(span.attributes) for span in spans))
    told = recorded.everything()
    assert "save_turn" in told
    assert CANARY not in told


async def test_agents_are_shown_hashed_or_not_at_all(recorded: Any) -> None:
    """A hash is the same wherever the key is, another one with another key, and never the id; ids may be any text."""
    shown = []
    for more in (
        {"agents": "plain"},
        {"agents": "hashed", "agent_key": b"k" * 16},
        {"agents": "hashed", "agent_key": b"k" * 16},
        {"agents": "hashed", "agent_key": b"K" * 16},
        {"agents": "none"},
    ):
        async with create_extended_store("memory:", observers=[recorded.observer(**more)]) as store:
            await store.exists("agt-ü")
            with pytest.raises(KodeError):
                await store.exists("a\ud800")
        shown.append(recorded.spans()[-2].attributes.get("gen_ai.conversation.id"))
    assert shown[0] == "agt-ü"
    assert shown[1] == shown[2] != shown[3]
    assert len(shown[1]) == 32
    assert shown[4] is None
    assert "agt-" not in str(shown[1:])
    for wrong in ({"agents": "hashed"}, {"agents": "some"}, {"agents": "hashed", "agent_key": b"short"}, {"agents": 1}):
        with pytest.raises(ConfigurationError):
            OpenTelemetry(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="tracer_provider"):
        OpenTelemetry(tracer_provider="x")  # type: ignore[arg-type]


# --- parents ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("driver_spans")
async def test_driver_spans_are_children(recorded: Any, tmp_path: Path) -> None:
    """The spans of SQLite's driver, which works in threads, are children of the call that they are for.

    The calls go on at once and for longer than the task that writes for all of them: no span is the child of a call
    that had ended before it began.
    """
    async with create_extended_store(f"sqlite:///{tmp_path}/a.db", observers=[recorded.observer()]) as store:

        async def work(number: int) -> None:
            for _ in range(5):
                with recorded.tracer.start_as_current_span(f"request {number}"):
                    await store.append_messages(f"agt-{number}", [Message.user("hi")])
                    await store.load_messages(f"agt-{number}")

        await asyncio.gather(*(work(number) for number in range(8)))
    spans = {span.context.span_id: span for span in recorded.spans()}
    ours = [span for span in spans.values() if "db.operation.name" in span.attributes]
    assert all(spans[span.parent.span_id].name.startswith("request") for span in ours)
    drivers = [span for span in spans.values() if span.instrumentation_scope.name == "the driver"]
    during = [span for span in drivers if span.start_time >= min(one.start_time for one in ours)]
    assert len(during) > 40
    closing = max(one.end_time for one in ours)
    for span in during:
        if span.start_time < closing:
            parent = spans[span.parent.span_id]
            assert parent.name.startswith(("append_messages", "load_messages"))
            assert parent.start_time <= span.start_time <= parent.end_time


async def test_grouped_events_have_each_their_span(recorded: Any) -> None:
    """Appends of one group are spans of their own, each the child of its caller's."""
    async with create_extended_store("memory:", observers=[recorded.observer()]) as store:

        async def emit(number: int) -> None:
            with recorded.tracer.start_as_current_span(f"request-{number}"):
                await store.emit("agt", "tick", {"n": number})

        await asyncio.gather(*(emit(number) for number in range(20)))
    spans = {span.context.span_id: span for span in recorded.spans()}
    emitted = [span for span in spans.values() if span.name.startswith("emit")]
    assert len({span.parent.span_id for span in emitted}) == 20
    assert {span.attributes["kode.rows"] for span in emitted} == {1}


def test_the_synchronous_store(recorded: Any, tmp_path: Path) -> None:
    """Calls from several threads are children of their thread's span, also those of iterators and locks."""
    with open_store(f"sqlite:///{tmp_path}/a.db", observers=[recorded.observer()]) as store:

        def work(number: int) -> None:
            with recorded.tracer.start_as_current_span(f"thread-{number}"):
                with store.acquire_agent_lock(f"agt-{number}"):
                    store.append_messages(f"agt-{number}", [Message.user("hi")] * 3)
                assert len(list(store.iter_messages(agent_id=f"agt-{number}"))) == 3

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    spans = {span.context.span_id: span for span in recorded.spans()}
    ours = [span for span in spans.values() if not span.name.startswith("thread")]
    names = {span.name.split()[0] for span in ours}
    assert names == {"acquire_agent_lock", "append_messages", "iterate", "query_messages", "release_agent_lock"}
    for span in ours:
        parent = spans[span.parent.span_id]
        if span.name.startswith("query_messages"):
            assert parent.name.startswith("iterate iter_messages")
            parent = spans[parent.parent.span_id]
        agent = str(span.attributes.get("gen_ai.conversation.id", ""))
        assert parent.name == agent.replace("agt", "thread")


async def test_iterators_leave_no_span_open(recorded: Any) -> None:
    """Each page is a span. An iterator that is abandoned, broken off or cancelled leaves none open, nor the context."""
    started = 0

    class Counting(OpenTelemetry):
        def begin(self, operation: Any) -> Any:
            nonlocal started
            started += 1
            return super().begin(operation)

    observer = Counting(tracer_provider=recorded.tracers, meter_provider=recorded.meters)
    async with create_extended_store("memory:", observers=[observer]) as store:
        await store.append_messages("agt", [Message.user(str(i)) for i in range(300)])
        await store.emit_many("agt", [AgentEvent("progress", "t", {"i": i}) for i in range(600)])
        with recorded.tracer.start_as_current_span("request") as request:
            async for _ in store.read_events("agt"):
                break
            messages = store.iter_messages(agent_id="agt")
            await anext(messages)
            del messages
            issues = store.iter_consistency()
            async for _ in issues:
                break
            follower = store.follow_events("agt")
            await anext(follower)
            waiting = asyncio.create_task(_drain(store.follow_events("agt", after_offset=10**6)))
            await asyncio.sleep(0.05)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            await follower.aclose()
            deleted = asyncio.create_task(_drain(store.follow_events("agt")))
            await asyncio.sleep(0.05)
            await store.delete("agt")
            with pytest.raises(AgentDeletedError):
                await deleted
            assert get_current_span() is request
            del waiting
            gc.collect()  # the follower that was neither closed nor ended
    assert started == len([span for span in recorded.spans() if span.name != "request"]) > 8
    names = {span.name.split()[0] for span in recorded.spans()}
    assert {"read_events", "follow_events", "query_messages", "check_consistency"} <= names


async def _drain(stream: Any) -> None:
    async for _ in stream:
        pass


async def test_a_check_that_is_seen_at_its_end_has_its_duration(recorded: Any, tmp_path: Path) -> None:
    """``iter_consistency`` is one call, told at its end: its span begins as long before."""
    async with create_extended_store(f"sqlite:///{tmp_path}/a.db", observers=[recorded.observer()]) as store:
        for i in range(20):
            await store.append_messages(f"agt-{i}", [Message.user("hi")])
        async for _ in store.iter_consistency():
            pass
    span = recorded.spans_by_name()["check_consistency"]
    assert span.end_time - span.start_time > 1_000_000


async def test_a_cancelled_call_ends_its_span(recorded: Any) -> None:
    """The span has the cancellation as its error."""
    store = await create_extended_store("memory:", observers=[recorded.observer()])
    async with store, store.acquire_agent_lock("agt"):
        waiting = asyncio.create_task(_locked(store), context=Context())  # not a task of the holder
        await asyncio.sleep(0.05)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    spans = [span for span in recorded.spans() if span.attributes.get("error.type") == "CancelledError"]
    assert [span.name.split()[0] for span in spans] == ["acquire_agent_lock"]


async def _locked(store: ExtendedStore) -> None:
    async with store.acquire_agent_lock("agt", wait_ms=60_000):
        pass


# --- places -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "store", "attributes"),
    [
        ("postgres", "postgres at db.example:5433/agents", ("postgresql", "agents", "db.example", 5433)),
        ("postgres", "postgres at a:1,b:2/agents", ("postgresql", "agents", "a", 1)),
        ("postgres", "postgres at [::1]:5432/agents", ("postgresql", "agents", "::1", 5432)),
        ("postgres", "postgres by the given pool", ("postgresql", None, None, None)),
        ("postgres", "postgres at the default host/agents", ("postgresql", "agents", None, None)),
        ("mongo", "mongo at localhost:27017/kode", ("mongodb", "kode", "localhost", 27017)),
        ("sqlite", "sqlite at /home/anna/data/agents.db", ("sqlite", "agents.db", None, None)),
        ("sqlite", "Encryption(sqlite at /tmp/agents.db)", ("sqlite", "agents.db", None, None)),
        ("sqlite", "sqlite at :memory:", ("sqlite", ":memory:", None, None)),
        ("sqlite", "sqlite at /x/caf\udce9.db", ("sqlite", "caf?.db", None, None)),
        ("memory", "memory", ("memory", None, None, None)),
        ("json", "json at /srv/agents", ("json", "agents", None, None)),
        ("dynamodb", "dynamodb at eu-west-1, table agents", ("aws.dynamodb", "eu-west-1", None, None)),
        ("dynamodb", "dynamodb at http://127.0.0.1:8000, table agents", ("aws.dynamodb", None, "127.0.0.1", 8000)),
        ("acme", "\0 anything", ("acme", None, None, None)),
    ],
)
def test_places(backend: str, store: str, attributes: tuple[Any, ...]) -> None:
    """The place that an engine tells, in the words of the conventions."""
    found = place_of(backend, store).attributes
    names = ("db.system.name", "db.namespace", "server.address", "server.port")
    assert tuple(map(found.get, names)) == attributes
    assert found.get("db.collection.name") == ("agents" if backend == "dynamodb" else None)


# --- faults -----------------------------------------------------------------------------------------------------------


class Hostile:
    """A provider, tracer, span, meter and instrument in one, that fails in the method of that name."""

    def __init__(self, bad: str, error: BaseException) -> None:
        self._bad = bad
        self._error = error

    def __getattr__(self, name: str) -> Any:
        if name == self._bad:
            raise self._error

        def call(*_: Any, **__: Any) -> Any:
            return self

        return call


@pytest.mark.parametrize("error", [RuntimeError("exporter"), SystemExit(3), asyncio.CancelledError("not yours")])
@pytest.mark.parametrize("bad", ["start_span", "is_recording", "set_attributes", "set_status", "end", "record", "add"])
async def test_a_hostile_provider_changes_nothing(bad: str, error: BaseException, tmp_path: Path) -> None:
    """Whatever a tracer, a span or an instrument raises, calls do what they do, and errors stay their own."""
    provider: Any = Hostile(bad, error)
    observer = OpenTelemetry(tracer_provider=provider, meter_provider=provider)
    before = get_current_span()
    async with create_extended_store(f"sqlite:///{tmp_path}/a.db", observers=[observer]) as store:
        for i in range(3):
            await store.append_messages("agt", [Message.user(str(i))])
            await store.emit("agt", "tick", {"i": i})
        with pytest.raises(AgentNotFoundError):
            await store.batch_fork("nobody", 1)
        assert [message.text for message in await store.load_messages("agt")] == ["0", "1", "2"]
        assert len([event async for event in store.read_events("agt")]) == 3
        assert get_current_span() is before


def test_every_parameter_is_documented() -> None:
    """The docstring says what each argument does."""
    for name in inspect.signature(OpenTelemetry).parameters:
        assert f"{name}:" in (OpenTelemetry.__doc__ or "")
