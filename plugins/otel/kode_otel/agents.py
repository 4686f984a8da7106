"""Spans of agents, with the names of OpenTelemetry's conventions for generative AI. kode-agent is not imported."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final

from opentelemetry import context as contexts
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context

__all__ = ["AgentSpan"]

_OPERATIONS: Final = {"turn": "invoke_agent", "model": "chat", "tool": "execute_tool"}
_LONGEST: Final = 200


class AgentSpan:
    """The span around one :class:`kode_agent.AgentStep`; it has no text of a message, an argument or a result."""

    __slots__ = ("_shown", "_span", "_step", "_token", "_tracer")

    def __init__(self, tracer: Tracer, step: Any, shown: Callable[[str], str | None]) -> None:
        self._tracer = tracer
        self._step = step
        self._shown = shown
        self._span: Span | None = None
        self._token: Any = None

    def __enter__(self) -> None:
        step, operation = self._step, _OPERATIONS[self._step.kind]
        given: dict[str, str | None] = {
            "gen_ai.operation.name": operation,
            "gen_ai.conversation.id": self._shown(step.agent_id),
            "gen_ai.agent.name": _clean(step.template_id),
            "gen_ai.provider.name": _clean(step.provider),
            "gen_ai.request.model": _clean(step.model),
            "gen_ai.tool.name": _clean(step.tool),
            "gen_ai.tool.call.id": _clean(step.call_id),
            "gen_ai.tool.type": "function" if step.kind == "tool" else None,
        }
        target = {"turn": step.template_id, "model": step.model or step.provider, "tool": step.tool}[step.kind]
        self._span = self._tracer.start_span(
            f"{operation} {_clean(target) or ''}".rstrip(),
            kind=SpanKind.CLIENT if step.kind == "model" else SpanKind.INTERNAL,
            attributes={name: value for name, value in given.items() if value is not None},
            start_time=time.time_ns(),
            record_exception=False,
        )
        self._token = contexts.attach(set_span_in_context(self._span))

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, _: TracebackType | None) -> None:
        if self._token is not None:
            contexts.detach(self._token)
        span, step = self._span, self._step
        if span is None:
            return
        if span.is_recording():
            found: dict[str, Any] = {
                "gen_ai.usage.input_tokens": step.input_tokens,
                "gen_ai.usage.output_tokens": step.output_tokens,
                "gen_ai.response.finish_reasons": [_clean(step.stop) or ""] if step.stop else None,
                "error.type": _clean(step.error),
            }
            span.set_attributes({name: value for name, value in found.items() if value is not None})
            if step.error is not None:
                span.set_status(Status(StatusCode.ERROR))
        span.end()


def _clean(text: Any) -> str | None:
    """A text that every exporter can encode; None if there is none."""
    return text.encode("utf-8", "replace").decode()[:_LONGEST] if type(text) is str and text else None
