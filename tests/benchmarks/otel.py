"""The cost of kode-otel for a cheap call and for a write: off, without an SDK, and with one that exports."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, Final

from kode_otel import OpenTelemetry
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import NoOpTracerProvider

from kode_core import ExtendedStore, Message, create_extended_store
from tests.benchmarks.backends import Backend
from tests.benchmarks.measure import Report, Row, interleaved

_ROUNDS: Final = 15
_CALLS: Final = 100


class _Drops(SpanExporter):
    def export(self, spans: Any) -> SpanExportResult:
        return SpanExportResult.SUCCESS


async def run(report: Report, backend: Backend) -> None:
    """Microseconds of a call, and the ratio to a store that the plugin does not observe."""
    report.title("OpenTelemetry")
    tracers = TracerProvider(shutdown_on_exit=False)
    tracers.add_span_processor(BatchSpanProcessor(_Drops()))
    meters = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)
    observers: dict[str, list[Any]] = {
        "off": [],
        "no_sdk": [OpenTelemetry(tracer_provider=NoOpTracerProvider(), meter_provider=NoOpMeterProvider())],
        "on": [OpenTelemetry(tracer_provider=tracers, meter_provider=meters)],
    }
    async with backend.space() as options, AsyncExitStack() as stack:
        stores = {
            name: await stack.enter_async_context(create_extended_store(dict(options), observers=some))
            for name, some in observers.items()
        }
        for what, calls in (("exists", _reads), ("append_messages", _writes)):
            found = await interleaved(_ROUNDS, **{name: calls(store, name) for name, store in stores.items()})
            for name, seconds in found.items():
                ratio = None if name == "off" else seconds / found["off"]
                report.add(Row(f"{what}, kode-otel: {name}", seconds / _CALLS * 1e6, "us", ratio, "off"))
    tracers.shutdown()
    meters.shutdown()


def _reads(store: ExtendedStore, name: str) -> Callable[[int], Awaitable[None]]:
    async def many(_: int) -> None:
        for _ in range(_CALLS):
            await store.exists(name)

    return many


def _writes(store: ExtendedStore, name: str) -> Callable[[int], Awaitable[None]]:
    async def many(_: int) -> None:
        for _ in range(_CALLS):
            await store.append_messages(name, [Message.user("hi")])

    return many
