"""The observer: a span around every call of a store, and the measurements of the call."""

from __future__ import annotations

import hashlib
import hmac
import time
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Final

from opentelemetry import context as contexts
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import (
    Span,
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    TracerProvider,
    get_tracer,
    set_span_in_context,
)

from kode_core.errors import ConfigurationError
from kode_core.operation import OpenStore, Operation
from kode_core.store.methods import METHODS
from kode_otel.agents import AgentSpan
from kode_otel.instruments import NAME, VERSION, Instruments, instruments_of
from kode_otel.places import Place, place_of
from kode_otel.settings import Agents, see_agents

__all__ = ["OpenTelemetry"]

_BATCHES: Final = frozenset(name for name, method in METHODS.items() if method.group == "saves")


class OpenTelemetry:
    """Observes a store: ``create_extended_store(url, observers=[OpenTelemetry()])``.

    Spans and measurements have the names of OpenTelemetry's conventions for databases, and never a part of a record:
    no body, no key, no message of an error. Without an SDK in the process, nothing is recorded.

    Args:
        agents: the form of the ids of agents in spans, as ``gen_ai.conversation.id``: ``plain``, ``hashed`` with
            *agent_key*, or ``none``. Measurements never have ids.
        agent_key: the key of hashed ids, of 16 bytes or more. Programs with the same key give an id the same hash.
        tracer_provider: the provider of the tracer; the process's own if it is None.
        meter_provider: the provider of the meter, likewise.

    Raises:
        ConfigurationError: an argument is wrong.
    """

    def __init__(
        self,
        *,
        agents: Agents = "plain",
        agent_key: bytes | None = None,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
    ) -> None:
        see_agents(agents, agent_key)
        for name, provider, method in (
            ("tracer_provider", tracer_provider, "get_tracer"),
            ("meter_provider", meter_provider, "get_meter"),
        ):
            if provider is not None and not callable(getattr(provider, method, None)):
                raise ConfigurationError(f"{name} must have a method {method}, got {type(provider).__name__}")
        self._agents = agents
        self._key = agent_key
        self._tracer: Tracer = (
            get_tracer(NAME, VERSION) if tracer_provider is None else tracer_provider.get_tracer(NAME, VERSION)
        )
        self._instruments = instruments_of(meter_provider)
        self._place: tuple[str, str, Place] = ("", "", place_of("", ""))

    def opened(self, store: OpenStore) -> None:
        """Read the load of *store* at each collection of the metrics."""
        self._instruments.watch(store)

    def around(self, operation: Operation) -> _Call:
        """The span of a call, and its measurements."""
        return _Call(self, operation)

    def iterating(self, operation: Operation) -> _Steps:
        """The span of an iterator, from its first step to its last; the spans of its pages are children."""
        return _Steps(self, operation)

    def around_agent(self, step: Any) -> AbstractContextManager[object]:
        """The span of a step of an agent of kode-agent: a turn, a request to a model, or a call of a tool."""
        return AgentSpan(self._tracer, step, self.shown)

    def begin(self, operation: Operation) -> Span:
        """Start the span of a call."""
        attributes: dict[str, str | int] = {"db.operation.name": operation.name}
        place = self.place(operation) if operation.backend else None
        if place is not None:
            attributes |= place.attributes
        agent_id = operation.agent_id
        if agent_id is not None and (shown := self.shown(agent_id)) is not None:
            attributes["gen_ai.conversation.id"] = shown
        started = time.time_ns() - int(operation.duration_ms * 1_000_000)
        kind = SpanKind.CLIENT if place is None or place.has_server else SpanKind.INTERNAL
        return self._tracer.start_span(
            _name(operation, place), kind=kind, attributes=attributes, start_time=started, record_exception=False
        )

    def shown(self, agent_id: str) -> str | None:
        """The id of an agent in the form that is set; None if it is left out."""
        if self._agents == "none":
            return None
        raw = agent_id.encode("utf-8", "replace")
        if self._agents == "plain":
            return raw.decode()
        return hmac.new(self._key or b"", raw, hashlib.sha256).hexdigest()[:32]

    def place(self, operation: Operation) -> Place:
        """The place of the operation's store."""
        backend, store, place = self._place
        if (backend, store) != (operation.backend, operation.store):
            place = place_of(operation.backend, operation.store)
            self._place = operation.backend, operation.store, place
        return place

    def end(self, span: Span, operation: Operation, *, was_open: bool) -> None:
        """Fill in the outcome of a call, and end its span."""
        if span.is_recording():
            if not was_open:
                place = self.place(operation)
                span.set_attributes(place.attributes)
                span.update_name(_name(operation, place))
            if operation.rows is not None and operation.bytes is not None:
                span.set_attributes({"kode.rows": operation.rows, "kode.bytes": operation.bytes})
                if operation.rows > 1 and operation.name in _BATCHES:
                    span.set_attribute("db.operation.batch.size", operation.rows)
            if operation.conflicts:
                span.set_attribute("kode.conflicts", operation.conflicts)
            if operation.error is not None:
                span.set_attribute("error.type", operation.error)
                span.set_status(Status(StatusCode.ERROR))
        span.end()

    def measure(self, operation: Operation) -> None:
        """Note the measurements of a call."""
        attributes: dict[str, Any] = {**self.place(operation).attributes, "db.operation.name": operation.name}
        instruments: Instruments = self._instruments
        if operation.rows is not None and operation.bytes is not None:
            instruments.rows.add(operation.rows, attributes)
            instruments.bytes.add(operation.bytes, attributes)
        if operation.conflicts:
            instruments.conflicts.add(operation.conflicts, attributes)
        if operation.error is not None:
            attributes["error.type"] = operation.error
        instruments.duration.record(operation.duration_ms / 1000, attributes)


class _Call:
    """The context manager around one call. A tracer that fails takes nothing from the measurements, nor a meter."""

    __slots__ = ("_observer", "_operation", "_span", "_token", "_was_open")

    def __init__(self, observer: OpenTelemetry, operation: Operation) -> None:
        self._observer = observer
        self._operation = operation
        self._span: Span | None = None
        self._token: Any = None
        self._was_open = bool(operation.backend)

    def __enter__(self) -> None:
        try:
            self._span = self._observer.begin(self._operation)
            self._token = contexts.attach(set_span_in_context(self._span))
        except Exception:  # noqa: BLE001 - a tracer's code; the call is still measured, and the fault shows at its end
            self._token = None

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, _: TracebackType | None) -> None:
        try:
            if self._token is not None:
                contexts.detach(self._token)
        finally:
            try:
                if self._span is not None:
                    self._observer.end(self._span, self._operation, was_open=self._was_open)
            finally:
                self._observer.measure(self._operation)


class _Steps:
    """The span of an iterator: the current one in each step, and not in the code of the reader between two steps."""

    __slots__ = ("_observer", "_operation", "_span", "_token", "_was_open")

    def __init__(self, observer: OpenTelemetry, operation: Operation) -> None:
        self._observer = observer
        self._operation = operation
        self._was_open = bool(operation.backend)
        self._span = observer.begin(operation)
        place = observer.place(operation) if self._was_open else None
        self._span.update_name(f"iterate {_name(operation, place)}")
        self._token: Any = None

    def __enter__(self) -> None:
        self._token = contexts.attach(set_span_in_context(self._span))

    def __exit__(self, *_: object) -> None:
        token, self._token = self._token, None
        if token is not None:
            contexts.detach(token)

    def ended(self, *, is_complete: bool) -> None:
        """End the span."""
        operation, span = self._operation, self._span
        if span.is_recording():
            place = self._observer.place(operation)
            span.set_attributes({**place.attributes, "kode.rows": operation.rows or 0, "kode.complete": is_complete})
            span.update_name(f"iterate {_name(operation, place)}")
            if operation.error is not None:
                span.set_attribute("error.type", operation.error)
                span.set_status(Status(StatusCode.ERROR))
        span.end()


def _name(operation: Operation, place: Place | None) -> str:
    """The name of a span: the operation and its target, both of which have few values."""
    return f"{operation.name} {place.target}" if place is not None and place.target else operation.name
