"""Spans of iterators: one from the first step to the last, with the spans of the pages below it."""

from __future__ import annotations

import asyncio
import gc
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.trace import StatusCode, get_current_span

from kode_core import (
    AgentDeletedError,
    AgentEvent,
    AgentInfo,
    ExtendedStore,
    InvalidArgumentError,
    Message,
    StoreClosedError,
    ToolCallRecord,
    create_extended_store,
)
from kode_core.sync import open_store


async def filled(store: ExtendedStore) -> None:
    await store.save_turn(
        "agt",
        append=[Message.user(str(i)) for i in range(300)],
        tool_calls=[ToolCallRecord(id=str(i), name="t", state="COMPLETED") for i in range(3)],
        info=AgentInfo(agent_id="agt", template_id="t"),
    )
    await store.emit_many("agt", [AgentEvent("progress", "t", {"i": i}) for i in range(200)])
    for i in range(3):
        await store.put_document("agt", "notes", str(i), i)


def iterators(recorded: Any) -> dict[str, Any]:
    return {
        str(span.attributes["db.operation.name"]): span for span in recorded.spans() if span.name.startswith("iterate ")
    }


async def test_an_iterator_is_one_span(recorded: Any, tmp_path: Path) -> None:
    """It says how many records the reader got, is the child of the caller's span, and its pages are its children."""
    async with create_extended_store(f"sqlite:///{tmp_path}/a.db", observers=[recorded.observer()]) as store:
        await filled(store)
        with recorded.tracer.start_as_current_span("request") as request:
            counts = {
                "iter_messages": len([m async for m in store.iter_messages(agent_id="agt")]),
                "iter_sessions": len([s async for s in store.iter_sessions()]),
                "iter_tool_calls": len([c async for c in store.iter_tool_calls()]),
                "read_messages": len([m async for m in store.read_messages("agt", after=9)]),
                "read_events": len([e async for e in store.read_events("agt")]),
                "iter_documents": len([d async for d in store.iter_documents("agt", "notes")]),
            }
            assert get_current_span() is request
    found = iterators(recorded)
    assert counts == {
        "iter_messages": 300,
        "iter_sessions": 1,
        "iter_tool_calls": 3,
        "read_messages": 290,
        "read_events": 200,
        "iter_documents": 3,
    }
    assert {name: span.attributes["kode.rows"] for name, span in found.items()} == counts
    for name, span in found.items():
        assert span.name == f"iterate {name} a.db"
        assert span.parent.span_id == request.get_span_context().span_id
        assert (span.attributes["kode.complete"], span.status.status_code) == (True, StatusCode.UNSET)
        assert span.attributes["db.system.name"] == "sqlite"
        pages = [one for one in recorded.spans() if one.parent and one.parent.span_id == span.context.span_id]
        assert pages and all(span.start_time <= page.start_time and page.end_time <= span.end_time for page in pages)
    assert found["iter_messages"].attributes["gen_ai.conversation.id"] == "agt"
    assert "gen_ai.conversation.id" not in found["iter_sessions"].attributes


async def test_the_code_between_two_steps_is_outside(recorded: Any) -> None:
    """A span that the reader opens for a record is no child of the iterator."""
    async with create_extended_store("memory:", observers=[recorded.observer()]) as store:
        await filled(store)
        with recorded.tracer.start_as_current_span("request") as request:
            async for _ in store.iter_messages(agent_id="agt"):
                with recorded.tracer.start_as_current_span("work"):
                    assert get_current_span() is not request
                break
    (work,) = [span for span in recorded.spans() if span.name == "work"]
    assert work.parent.span_id == request.get_span_context().span_id


async def test_an_iterator_that_is_left(recorded: Any) -> None:
    """Closed, dropped or never used: the span ends, says so, and counts what was given; an unused one has no span."""
    async with create_extended_store("memory:", observers=[recorded.observer()]) as store:
        await filled(store)
        async with aclosing(store.read_events("agt")) as events:  # type: ignore[type-var]
            await anext(events)
            await anext(events)
        messages = store.iter_messages(agent_id="agt")
        await anext(messages)
        del messages
        gc.collect()
        unused = store.iter_sessions()
        del unused
        found = iterators(recorded)
        assert {name: (s.attributes["kode.rows"], s.attributes["kode.complete"]) for name, s in found.items()} == {
            "read_events": (2, False),
            "iter_messages": (1, False),
        }


async def test_an_iterator_that_fails(recorded: Any) -> None:
    """The class of the error ends the span, which has no message of it."""
    async with create_extended_store("memory:", observers=[recorded.observer()]) as store:
        with pytest.raises(InvalidArgumentError):
            [one async for one in store.iter_messages(limit=3)]  # type: ignore[call-arg]
        await store.append_messages("agt", [Message.user("hi")])
        broken = store.iter_messages()
    with pytest.raises(StoreClosedError):
        await anext(broken)
    errors = [s.attributes.get("error.type") for s in recorded.spans() if s.name.startswith("iterate iter_messages")]
    assert errors == ["InvalidArgumentError", "StoreClosedError"]
    assert all(span.events == () for span in recorded.spans())


async def test_a_follower_goes_on_after_an_error(recorded: Any) -> None:
    """A cancelled step, a second reader and heartbeats end no span and are no records; a delete ends it."""
    async with create_extended_store("memory:", observers=[recorded.observer()]) as store:
        await store.emit("agt", "t", {})
        stream = store.follow_events("agt", heartbeat_ms=5)
        await anext(stream)
        await anext(stream)  # a heartbeat
        waiting = asyncio.ensure_future(store.follow_events("agt", after_offset=10**6).__anext__())
        quiet = store.follow_events("agt")
        await anext(quiet)
        step = asyncio.ensure_future(anext(quiet))
        await asyncio.sleep(0.02)
        with pytest.raises(InvalidArgumentError, match="another anext"):
            await anext(quiet)
        step.cancel()
        waiting.cancel()
        await asyncio.gather(step, waiting, return_exceptions=True)
        await store.emit("agt", "t", {})
        await anext(quiet)
        assert not [s for s in iterators(recorded).values() if s.attributes["kode.rows"] == 2]
        await store.delete("agt")
        with pytest.raises(AgentDeletedError):
            while True:
                await anext(quiet)
        (ended,) = [s for s in recorded.spans() if s.name.startswith("iterate") and s.attributes["kode.rows"] == 2]
        assert ended.attributes["error.type"] == "AgentDeletedError"
        await stream.aclose()
        assert [s.attributes["kode.rows"] for s in recorded.spans() if s.name.startswith("iterate")].count(1) == 1


def test_iterators_of_the_synchronous_store(recorded: Any) -> None:
    """They have their span, too, as a child of the caller's."""
    with open_store("memory:", observers=[recorded.observer()]) as store:
        store.append_messages("agt", [Message.user(str(i)) for i in range(70)])
        with recorded.tracer.start_as_current_span("request") as request:
            assert len(list(store.iter_messages(agent_id="agt"))) == 70
    (span,) = iterators(recorded).values()
    assert span.attributes["kode.rows"] == 70
    assert span.parent.span_id == request.get_span_context().span_id


async def test_a_faulty_observer_takes_nothing_from_an_iterator(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever it raises or returns, the reader gets all records, and the log has the first fault only."""

    class Faulty:
        def __init__(self, at: str) -> None:
            self.at = at

        def __call__(self, operation: Any) -> None:
            pass

        def iterating(self, operation: Any) -> Any:
            if self.at == "iterating":
                raise LookupError(self.at)
            return self

        def __enter__(self) -> None:
            if self.at == "enter":
                raise LookupError(self.at)

        def __exit__(self, *_: object) -> None:
            if self.at == "exit":
                raise SystemExit(self.at)

        def ended(self, *, is_complete: bool) -> None:
            if self.at == "ended":
                raise asyncio.CancelledError(self.at)

    class Nothing:
        def __call__(self, operation: Any) -> None:
            pass

        def iterating(self, operation: Any) -> object:
            return object()

    faulty = [*map(Faulty, ("iterating", "enter", "exit", "ended")), Nothing()]
    async with create_extended_store("memory:", observers=faulty) as store:
        await store.append_messages("agt", [Message.user(str(i)) for i in range(70)])
        assert len([m async for m in store.iter_messages(agent_id="agt")]) == 70
    assert len([record for record in caplog.records if "further failures" in record.message]) == len(faulty)


async def test_without_such_an_observer_iterators_are_the_bare_ones() -> None:
    """A store that is not observed, or by a function alone, pays nothing."""
    for observers in ([], [lambda operation: None]):
        async with create_extended_store("memory:", observers=observers) as store:
            assert type(store.iter_messages()).__name__ == "async_generator"
