"""An observer that traces: an OpenTelemetry span around every call, of which the driver's spans become children."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer, get_tracer

from kode_core.plugins import Observer, Operation, hookimpl

SYSTEMS = {"postgres": "postgresql", "mongo": "mongodb", "dynamodb": "aws.dynamodb"}
QUIET = {"record_exception": False, "set_status_on_exception": False}  # their messages may name agents


class Tracing:
    """Spans with the names of OpenTelemetry's conventions for databases; never a part of a record.

    With ``agents`` a span has the agent's id as ``gen_ai.conversation.id``: leave it out where ids are personal.
    """

    def __init__(self, tracer: Tracer | None = None, *, agents: bool = True) -> None:
        self._tracer = get_tracer("kode_extras") if tracer is None else tracer
        self._agents = agents

    @contextmanager
    def around(self, operation: Operation) -> Iterator[None]:
        attributes: dict[str, str | int] = {"db.operation.name": operation.name}
        if self._agents and operation.agent_id is not None:
            attributes["gen_ai.conversation.id"] = operation.agent_id.encode("utf-8", "replace").decode()
        with self._tracer.start_as_current_span(
            f"{operation.name} kode", kind=SpanKind.INTERNAL, attributes=attributes, **QUIET
        ) as span:
            try:
                yield
            finally:
                span.set_attribute("db.system.name", SYSTEMS.get(operation.backend, operation.backend))
                if operation.error is not None:
                    span.set_attribute("error.type", operation.error)
                    span.set_status(Status(StatusCode.ERROR))
                if operation.rows is not None and operation.bytes is not None:
                    span.set_attributes({"kode.rows": operation.rows, "kode.bytes": operation.bytes})


class TracingPlugin:
    """Traces every store of the process."""

    @hookimpl
    def kode_store_observer(self, options: msgspec.Struct) -> Observer | None:
        return Tracing()
