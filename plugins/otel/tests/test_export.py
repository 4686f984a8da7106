"""Exporters, as a program sets them up: OTLP to a server that decodes it, and Prometheus by a scrape."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import kode_otel
import pytest
from kode_otel import OpenTelemetry
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.exporter.prometheus import PrometheusMetricReader, start_http_server
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from kode_core import AgentNotFoundError, Message, create_extended_store

DASHBOARD = Path(kode_otel.__file__).parent / "dashboards" / "kode.json"


class Collector(ThreadingHTTPServer):
    """A server that takes OTLP over HTTP. It decodes every message; *status* is its answer."""

    def __init__(self, status: int = 200) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status = status
        self.traces: list[ExportTraceServiceRequest] = []
        self.metrics: list[ExportMetricsServiceRequest] = []
        self.requests = 0
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server: Any = self.server
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            raw = gzip.decompress(raw)
        server.requests += 1
        if self.path == "/v1/traces":
            server.traces.append(ExportTraceServiceRequest.FromString(raw))
        else:
            assert self.path == "/v1/metrics"
            server.metrics.append(ExportMetricsServiceRequest.FromString(raw))
        self.send_response(server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    server = Collector()
    yield server
    server.shutdown()
    server.server_close()


def providers(url: str, **more: Any) -> tuple[TracerProvider, MeterProvider]:
    """The providers of a program that exports over HTTP."""
    tracers = TracerProvider(shutdown_on_exit=False)
    tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{url}/v1/traces", timeout=1)))
    reader = PeriodicExportingMetricReader(OTLPMetricExporter(f"{url}/v1/metrics", timeout=1), **more)
    return tracers, MeterProvider([reader], shutdown_on_exit=False)


async def test_otlp(collector: Collector, tmp_path: Path) -> None:
    """A collector gets the spans, with their parents, and the metrics, with units and buckets."""
    tracers, meters = providers(collector.url)
    observer = OpenTelemetry(tracer_provider=tracers, meter_provider=meters)
    async with create_extended_store(f"sqlite:///{tmp_path}/a.db", observers=[observer]) as store:
        with tracers.get_tracer("program").start_as_current_span("request"):
            await store.append_messages("agt-1", [Message.user("hi"), Message.user("ho")])
            with pytest.raises(AgentNotFoundError):
                await store.batch_fork("nobody", 1)
        await asyncio.to_thread(meters.force_flush)
    await asyncio.to_thread(tracers.shutdown)
    await asyncio.to_thread(meters.shutdown)
    scopes = [scope for request in collector.traces for one in request.resource_spans for scope in one.scope_spans]
    spans = {span.name.split()[0]: span for scope in scopes for span in scope.spans}
    assert {"kode_otel", "program"} == {scope.scope.name for scope in scopes}
    assert spans["append_messages"].parent_span_id == spans["request"].span_id
    assert spans["batch_fork"].status.code == 2
    attributes = {one.key: one.value for one in spans["append_messages"].attributes}
    assert attributes["db.system.name"].string_value == "sqlite"
    assert attributes["db.operation.batch.size"].int_value == 2
    metrics = {
        metric.name: metric
        for request in collector.metrics
        for one in request.resource_metrics
        for scope in one.scope_metrics
        for metric in scope.metrics
    }
    duration = metrics["db.client.operation.duration"]
    assert duration.unit == "s"
    assert list(duration.histogram.data_points[0].explicit_bounds)[:3] == [0.001, 0.005, 0.01]
    assert "kode.store.calls" in metrics


@pytest.mark.parametrize("status", [500, 0])
async def test_a_collector_that_fails(status: int, tmp_path: Path) -> None:
    """One that answers with an error, or that is not there, changes nothing for the calls."""
    server = Collector(status or 200)
    url = server.url
    if not status:
        server.shutdown()
        server.server_close()
    tracers, meters = providers(url, export_interval_millis=20)
    observer = OpenTelemetry(tracer_provider=tracers, meter_provider=meters)
    async with create_extended_store(f"sqlite:///{tmp_path}/a.db", observers=[observer]) as store:
        for i in range(20):
            await store.append_messages("agt", [Message.user(str(i))])
            await asyncio.sleep(0.01)
        assert len(await store.load_messages("agt")) == 20
    if status:
        await asyncio.to_thread(tracers.force_flush, 1_000)
        assert server.requests
        server.shutdown()
        server.server_close()
    threading.Thread(target=lambda: (tracers.shutdown(), meters.shutdown()), daemon=True).start()


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The text that Prometheus's exporter gives after some calls; one registry is for the whole process."""
    folder = tmp_path_factory.mktemp("scraped")
    reader = PrometheusMetricReader()
    meters = MeterProvider([reader], shutdown_on_exit=False)
    server, thread = start_http_server(port=0, addr="127.0.0.1")
    url = f"http://127.0.0.1:{server.server_port}/metrics"

    async def work() -> str:
        observer = OpenTelemetry(meter_provider=meters)
        async with create_extended_store(f"sqlite:///{folder}/a.db", observers=[observer]) as store:
            await store.append_messages("agt", [Message.user("hi")])
            with pytest.raises(AgentNotFoundError):
                await store.batch_fork("nobody", 1)
            await asyncio.gather(*(_replace(store, i) for i in range(10)))
            observer._instruments.conflicts.add(1, {"db.system.name": "memory"})
            return await asyncio.to_thread(_get, url)

    yield asyncio.run(work())
    server.shutdown()
    thread.join()
    meters.shutdown()


async def _replace(store: Any, number: int) -> None:
    await store.save_messages("agt", [Message.user(str(number))])


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return str(answer.read().decode())


def test_a_scrape(scraped: str) -> None:
    """The names and labels that Prometheus sees."""
    assert re.search(r"db_client_operation_duration_seconds_bucket{.*db_operation_name=\"append_messages\"", scraped)
    assert 'error_type="AgentNotFoundError"' in scraped
    for name in ("kode_operation_rows_total", "kode_operation_bytes_total", "kode_store_calls", "kode_store_followers"):
        assert re.search(rf"^{name}{{.*}} [0-9.]+$", scraped, re.MULTILINE), name
    assert "agt" not in scraped


def test_the_dashboard_asks_for_metrics_that_exist(scraped: str) -> None:
    """Every name and label in the queries of the dashboard is in the scrape; those of pools need a server."""
    dashboard = json.loads(DASHBOARD.read_text())
    queries = [
        target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ()) if panel["type"] != "row"
    ]
    queries += [one["query"]["query"] for one in dashboard["templating"]["list"] if one["type"] == "query"]
    assert len(queries) >= 8
    names = {name for query in queries for name in re.findall(r"\b((?:db_client|kode)_[a-z_]+)(?:{|, db_)", query)}
    assert len(names) >= 8
    pools = {"db_client_connection_count", "db_client_connection_max", "db_client_connection_pending_requests"}
    known = set(re.findall(r"^((?:db_client|kode)_[a-z_]+){", scraped, re.MULTILINE))
    assert names - pools - {"kode_store_retries_total"} <= known
    assert names & pools
    labels = set(re.findall(r"[{,]([a-z_]+)=", scraped)) | {"db_client_connection_state"}
    asked = {label for query in queries for label in re.findall(r"[{,]\s*([a-z_]+)\s*(?:=~|!=|=)", query)}
    groups = [group for query in queries for group in re.findall(r"by ?\(([^)]*)\)", query)]
    asked |= {label for group in groups for label in re.split(r", ?", group)}
    assert asked <= labels | {"le", "job", "instance"}, asked - labels
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
