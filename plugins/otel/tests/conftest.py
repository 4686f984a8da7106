"""The fixtures of the tests: providers that keep what they get."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from kode_otel import OpenTelemetry
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


class Recorded:
    """Providers of a program, and what they were given."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self._reader = InMemoryMetricReader()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.meters = MeterProvider([self._reader])
        self.tracer = self.tracers.get_tracer("the program")

    def observer(self, **more: Any) -> OpenTelemetry:
        return OpenTelemetry(tracer_provider=self.tracers, meter_provider=self.meters, **more)

    def spans(self) -> list[ReadableSpan]:
        """The spans that ended."""
        return list(self._exporter.get_finished_spans())

    def spans_by_name(self) -> dict[str, ReadableSpan]:
        return {span.name.split()[0]: span for span in self.spans()}

    def points(self, name: str) -> list[Any]:
        """The present points of a metric."""
        data = self._reader.get_metrics_data()
        return [
            point
            for resource in (data.resource_metrics if data is not None else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]

    def everything(self) -> str:
        """All text of spans and of metrics."""
        data = self._reader.get_metrics_data()
        return "\n".join([span.to_json() for span in self.spans()]) + (data.to_json() if data is not None else "")

    def close(self) -> None:
        self.tracers.shutdown()
        self.meters.shutdown()


@pytest.fixture
def recorded() -> Iterator[Recorded]:
    found = Recorded()
    yield found
    found.close()
