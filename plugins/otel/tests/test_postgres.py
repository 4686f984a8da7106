"""On PostgreSQL: the server and the pool, and the spans of asyncpg's instrumentation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from kode_conformance.servers import had
from kode_postgres.testing.servers import shared_server
from opentelemetry.instrumentation.asyncpg import AsyncPGInstrumentor
from opentelemetry.trace import SpanKind

from kode_core import Message, create_extended_store


@pytest.fixture
async def url() -> AsyncIterator[str]:
    """The address of an empty database."""
    server = had(shared_server)
    async with server.database() as name:
        yield server.url(name)


async def test_the_spans_of_the_driver_are_children(url: str, recorded: Any) -> None:
    """Statements of group commits are children of a call that was waiting for them, however long the load goes on."""
    instrumentor = AsyncPGInstrumentor()
    instrumentor.instrument(tracer_provider=recorded.tracers)
    try:
        async with create_extended_store(url, observers=[recorded.observer()]) as store:

            async def work(number: int) -> None:
                for _ in range(5):
                    await store.append_messages(f"agt-{number}", [Message.user("hi")])

            await asyncio.gather(*(work(number) for number in range(8)))
    finally:
        instrumentor.uninstrument()
    spans = {span.context.span_id: span for span in recorded.spans()}
    ours = [span for span in spans.values() if span.instrumentation_scope.name == "kode_otel"]
    assert {span.kind for span in ours[1:]} == {SpanKind.CLIENT}
    assert {span.attributes["db.system.name"] for span in ours} == {"postgresql"}
    assert all(span.attributes["server.address"] and span.attributes["db.namespace"] in url for span in ours)
    first, last = min(span.start_time for span in ours), max(span.end_time for span in ours)
    children = 0
    for span in spans.values():
        is_drivers = span.instrumentation_scope.name != "kode_otel" and span.parent is not None
        if is_drivers and first < span.start_time < last:
            parent = spans[span.parent.span_id]
            if parent.name.startswith("append_messages"):
                children += 1
                assert parent.start_time <= span.start_time <= parent.end_time
    assert children >= 5


async def test_the_pool_is_measured(url: str, recorded: Any) -> None:
    """Connections by state, the most of them, waiting calls and retries; the address in the attributes."""
    async with create_extended_store(url, observers=[recorded.observer()]) as store:
        await asyncio.gather(*(store.load_messages(f"agt-{number}") for number in range(30)))
        states = {point.attributes["db.client.connection.state"]: point.value for point in _points(recorded, "count")}
        assert states["used"] == 0
        assert states["idle"] > 0
        (most,) = _points(recorded, "max")
        assert most.value >= states["idle"]
        assert most.attributes["server.address"]
        assert [point.value for point in _points(recorded, "pending_requests")] == [0]
        assert [point.value for point in recorded.points("kode.store.retries")] == [0]
    assert _points(recorded, "count") == []
    assert [point.value for point in recorded.points("kode.store.retries")] == [0]


def _points(recorded: Any, name: str) -> list[Any]:
    found: list[Any] = recorded.points(f"db.client.connection.{name}")
    return found
