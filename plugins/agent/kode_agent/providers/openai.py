"""OpenAI's chat completions, and every server that speaks them, over the official client."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from kode_agent.errors import ProviderError, ProviderUnavailableError
from kode_agent.provider import Answer, Delta, Usage, sound
from kode_agent.providers.clients import translated
from kode_agent.tools import ToolSchema
from kode_core import Json, KodeError, Message

if TYPE_CHECKING:
    from openai import AsyncOpenAI

__all__ = ["OpenAIProvider"]


class OpenAIProvider:
    """A model of OpenAI, or of a server with the same protocol.

    Args:
        model: the model's name.
        base_url: another server, such as ``http://127.0.0.1:11434/v1``; it may need no key.
        api_key: ``OPENAI_API_KEY`` unless given.
        client: a client of your own, with its retries and its proxies; you close it.
        options: go into each request, such as ``temperature=0``.

    Raises:
        ProviderError: the client is not installed, or there is no key.
    """

    name = "openai"

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        client: AsyncOpenAI | None = None,
        **options: Any,
    ) -> None:
        try:
            import openai
        except ImportError as exc:
            raise ProviderError("the client of OpenAI is not installed; pip install 'kode-agent[openai]'") from exc
        if client is None:
            with _translated(self.name, api_key):
                key = api_key if api_key is not None or base_url is None else _key_or_none()
                client = openai.AsyncOpenAI(base_url=base_url, api_key=key)
        self.model = model
        self._client = client
        self._options = options

    def __repr__(self) -> str:
        return f"OpenAIProvider({self.model!r})"

    async def stream(
        self, system: str, messages: Sequence[Message], tools: Sequence[ToolSchema]
    ) -> AsyncIterator[Delta | Answer]:
        """Ask for a streamed chat completion."""
        wire: list[Any] = [{"role": "system", "content": system}] if system else []
        for message in messages:
            wire += message.to_openai(lossy=True)
        asked: dict[str, Any] = {"model": self.model, "messages": wire, "stream": True, **self._options}
        asked.setdefault("stream_options", {"include_usage": True})
        if tools:
            asked["tools"] = [{"type": "function", "function": _function(each)} for each in tools]
        heard = _Heard()
        with _translated(self.name, self._client.api_key):
            async with await self._client.chat.completions.create(**asked) as chunks:
                async for chunk in chunks:
                    for delta in heard.take(chunk):
                        yield delta
        yield heard.answer(self.name)

    async def aclose(self) -> None:
        """Close the client's connections."""
        await self._client.close()


def _key_or_none() -> str:
    import os

    return os.environ.get("OPENAI_API_KEY") or "none"


def _function(schema: ToolSchema) -> dict[str, Json]:
    return {"name": schema.name, "description": schema.description, "parameters": dict(schema.parameters)}


class _Heard:
    """The pieces of an answer."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._reasons: list[str] = []
        self._refusals: list[str] = []
        self._calls: dict[int, dict[str, str]] = {}
        self._usage = Usage()
        self._stop = ""

    def take(self, chunk: Any) -> Iterator[Delta]:
        if getattr(chunk, "usage", None):
            self._usage = Usage(chunk.usage.prompt_tokens or 0, chunk.usage.completion_tokens or 0)
        for choice in chunk.choices or ():
            self._stop = choice.finish_reason or self._stop
            delta = choice.delta
            reason = getattr(delta, "reasoning_content", None)
            if isinstance(reason, str) and reason:
                self._reasons.append(reason)
                yield Delta(reason, is_reasoning=True)
            if delta.content:
                self._texts.append(delta.content)
                yield Delta(delta.content)
            if getattr(delta, "refusal", None):
                self._refusals.append(delta.refusal)
                yield Delta(delta.refusal)
            for piece in delta.tool_calls or ():
                self._take_call(piece)

    def _take_call(self, piece: Any) -> None:
        index = piece.index if isinstance(piece.index, int) else max(self._calls, default=0)
        call = self._calls.setdefault(index, {"id": "", "name": "", "arguments": ""})
        call["id"] = piece.id or call["id"]
        if piece.function is not None:
            call["name"] += piece.function.name or ""
            call["arguments"] += piece.function.arguments or ""

    def answer(self, name: str) -> Answer:
        if not self._stop:
            raise ProviderUnavailableError(f"{name} ended the stream in the middle of an answer; try again")
        message: dict[str, Json] = {"role": "assistant", "content": sound("".join(self._texts)) or None}
        if self._reasons:
            message["reasoning_content"] = sound("".join(self._reasons))
        if self._refusals:
            message["refusal"] = sound("".join(self._refusals))
        if self._calls:
            message["tool_calls"] = [_whole(call) for _, call in sorted(self._calls.items())]
        try:
            return Answer(Message.from_openai(message), self._usage, self._stop)
        except KodeError as exc:
            raise ProviderError(f"{name} sent an answer that cannot be kept: {exc}") from None


def _whole(call: dict[str, str]) -> Json:
    function = {"name": call["name"], "arguments": sound(call["arguments"]) or "{}"}
    return {"id": call["id"] or f"call_{secrets.token_hex(12)}", "type": "function", "function": function}


def _translated(name: str, key: str | None) -> AbstractContextManager[None]:
    import openai

    return translated(openai, openai.OpenAIError, name, key)
