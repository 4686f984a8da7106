"""moto's DynamoDB as a process: ``python -m kode_dynamodb.testing.moto_server PORT``. For tests."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

from moto.moto_server.werkzeug_app import create_backend_app
from werkzeug.serving import WSGIRequestHandler, run_simple

from kode_dynamodb.testing.faster import make_queries_faster

__all__ = ["serve"]


class _Handler(WSGIRequestHandler):
    """Keeps connections open, as the service does."""

    protocol_version = "HTTP/1.1"

    def log_request(self, *_: object) -> None:
        """Log no successful requests."""


def serve(port: int) -> None:
    """Serve on the loopback until killed: many connections, but one call after the other."""
    make_queries_faster()
    emulator, turn = create_backend_app("dynamodb"), threading.Lock()

    def one_at_a_time(environ: Any, start_response: Callable[..., Any]) -> Iterable[bytes]:
        with turn:
            found: Iterable[bytes] = emulator(environ, start_response)
            return found

    run_simple("127.0.0.1", port, one_at_a_time, threaded=True, request_handler=_Handler)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
