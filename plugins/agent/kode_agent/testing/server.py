"""The scripted server itself: Starlette on uvicorn, in a thread, on a free port of loopback."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Final, Self

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from kode_agent.testing import asked, wires
from kode_agent.testing.script import Fault, Reply, Request, Script

_WIRES: Final[Mapping[str, tuple[Callable[..., dict[str, Any]], Callable[..., Iterator[wires.Event]]]]] = {
    "chat": (wires.chat_whole, wires.chat_stream),
    "responses": (wires.responses_whole, wires.responses_stream),
    "anthropic": (wires.anthropic_whole, wires.anthropic_stream),
    "gemini": (wires.gemini_whole, wires.gemini_stream),
}


class ScriptedServer:
    """A context manager: the server runs inside it.

    Args:
        script: :class:`Reply` and :class:`Fault` in their order, of which the last one is given again and again; or a
            function that gets the :class:`Request` and returns one of them.

    Attributes:
        requests: every request so far, as :class:`Request`.
    """

    def __init__(self, script: Script) -> None:
        self._script = script
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._server: uvicorn.Server | None = None
        self.requests: list[Request] = []

    @property
    def url(self) -> str:
        """The ``base_url`` of clients of the Anthropic and Gemini APIs: ``http://127.0.0.1:PORT``."""
        if self._socket is None:
            raise RuntimeError("the server does not run: use it as a context manager")
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    @property
    def openai_url(self) -> str:
        """The ``base_url`` of clients of the OpenAI API, for chat completions and Responses."""
        return f"{self.url}/v1"

    def __enter__(self) -> Self:
        self._socket = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(self._app(), log_level="critical", lifespan="off", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, name="scripted-server", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._server is not None and self._thread is not None and self._socket is not None:
            self._server.should_exit = True
            self._thread.join()
            self._socket.close()
            self._socket = None

    def _run(self) -> None:
        assert self._server is not None and self._socket is not None
        asyncio.run(self._server.serve(sockets=[self._socket]))

    def _app(self) -> Starlette:
        async def chat(request: HttpRequest) -> Response:
            return await self._answer("chat", request)

        async def responses(request: HttpRequest) -> Response:
            return await self._answer("responses", request)

        async def messages(request: HttpRequest) -> Response:
            return await self._answer("anthropic", request)

        async def count_tokens(request: HttpRequest) -> Response:
            return JSONResponse({"input_tokens": len(await request.body()) // 4})

        async def gemini(request: HttpRequest) -> Response:
            return await self._answer("gemini", request)

        async def models(request: HttpRequest) -> Response:
            return JSONResponse({"object": "list", "data": [{"id": "scripted", "object": "model"}]})

        post = ["POST"]
        return Starlette(
            routes=[
                Route("/v1/chat/completions", chat, methods=post),
                Route("/v1/responses", responses, methods=post),
                Route("/v1/messages", messages, methods=post),
                Route("/v1/messages/count_tokens", count_tokens, methods=post),
                Route("/v1/models", models),
                Route("/v1beta/models/{call}", gemini, methods=post),
            ]
        )

    def _chosen(self, api: str, body: Mapping[str, Any]) -> tuple[Request, Reply | Fault]:
        with self._lock:
            request = asked.request(api, len(self.requests), body)
            self.requests.append(request)
        if callable(self._script):
            return request, self._script(request)
        return request, self._script[min(request.number, len(self._script) - 1)]

    async def _answer(self, api: str, http: HttpRequest) -> Response:
        body = await http.json()
        if api == "gemini":
            model, _, method = http.path_params["call"].partition(":")
            body = {**body, "model": model, "stream": method == "streamGenerateContent"}
        request, answer = self._chosen(api, body)
        if isinstance(answer, Fault):
            again = {} if answer.retry_after is None else {"retry-after": str(answer.retry_after)}
            error = {"type": "scripted_error", "code": answer.status, "message": answer.message}
            return JSONResponse({"type": "error", "error": error}, status_code=answer.status, headers=again)
        whole, stream = _WIRES[api]
        if request.streams:
            return StreamingResponse(_sent(answer, stream(answer, request)), media_type="text/event-stream")
        await asyncio.sleep(answer.delay)
        return JSONResponse(whole(answer, request))


async def _sent(reply: Reply, events: Iterator[wires.Event]) -> AsyncIterator[str]:
    for number, (kind, data) in enumerate(events):
        if number == reply.cut:
            raise ConnectionResetError("the script cuts the stream here")
        if reply.delay:
            await asyncio.sleep(reply.delay)
        name = f"event: {kind}\n" if kind else ""
        yield f"{name}data: {data if isinstance(data, str) else json.dumps(data)}\n\n"
