"""Anthropic's messages, over the official client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from kode_agent.errors import ProviderError, ProviderUnavailableError
from kode_agent.provider import Answer, Delta, Usage
from kode_agent.providers.clients import translated
from kode_agent.tools import ToolSchema
from kode_core import Json, KodeError, Message

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic

__all__ = ["AnthropicProvider"]


class AnthropicProvider:
    """A model of Anthropic, or of a server with the same protocol.

    Args:
        model: the model's name.
        base_url: another server.
        api_key: ``ANTHROPIC_API_KEY`` unless given.
        max_tokens: of one answer.
        client: a client of your own; you close it.
        options: go into each request, such as ``stop_sequences=[…]``, or ``extra_body``.

    Raises:
        ProviderError: the client is not installed, or refuses its configuration.
    """

    name = "anthropic"

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        max_tokens: int = 8_192,
        client: AsyncAnthropic | None = None,
        **options: Any,
    ) -> None:
        try:
            import anthropic
        except ImportError as exc:
            raise ProviderError(
                "the client of Anthropic is not installed; pip install 'kode-agent[anthropic]'"
            ) from exc
        if client is None:
            with _translated(self.name, api_key):
                client = anthropic.AsyncAnthropic(base_url=base_url, api_key=api_key)
        self.model = model
        self._client = client
        self._options = {"max_tokens": max_tokens, **options}

    def __repr__(self) -> str:
        return f"AnthropicProvider({self.model!r})"

    async def stream(
        self, system: str, messages: Sequence[Message], tools: Sequence[ToolSchema]
    ) -> AsyncIterator[Delta | Answer]:
        """Ask for a streamed message."""
        wire = [_written(message) for message in messages if message.content and message.role != "system"]
        systems = [system, *(message.text for message in messages if message.role == "system")]
        asked: dict[str, Any] = {"model": self.model, "messages": wire, **self._options}
        if any(systems):
            asked["system"] = "\n\n".join(filter(None, systems))
        if tools:
            asked["tools"] = [
                {"name": each.name, "description": each.description, "input_schema": dict(each.parameters)}
                for each in tools
            ]
        with _translated(self.name, self._client.api_key):
            async with self._client.messages.stream(**asked) as events:
                async for event in events:
                    if event.type == "text":
                        yield Delta(event.text)
                    elif event.type == "thinking":
                        yield Delta(event.thinking, is_reasoning=True)
                final = await events.get_final_message()
        yield _answer(self.name, final)

    async def aclose(self) -> None:
        """Close the client's connections."""
        await self._client.close()


def _written(message: Message) -> Any:
    wire = message.to_anthropic(lossy=True)
    if type(wire["content"]) is list:
        wire["content"] = [_object_input(block) for block in wire["content"]]
    return wire


def _object_input(block: Json) -> Json:
    """The API takes an object only, and models write other arguments, too."""
    if block["type"] == "tool_use" and type(block["input"]) is not dict:
        return {**block, "input": {"arguments": block["input"]}}
    return block


def _answer(name: str, final: Any) -> Answer:
    if final.stop_reason is None:
        raise ProviderUnavailableError(f"{name} ended the stream in the middle of an answer; try again")
    content: Json = [block.model_dump(mode="json", exclude_none=True, include=_known(block)) for block in final.content]
    if len(content) == 1 and content[0]["type"] == "text":
        content = content[0]["text"]
    try:
        message = Message.from_anthropic({"role": "assistant", "content": content})
    except KodeError as exc:
        raise ProviderError(f"{name} sent an answer that cannot be kept: {exc}") from None
    return Answer(message, Usage(final.usage.input_tokens, final.usage.output_tokens), str(final.stop_reason))


def _known(block: Any) -> set[str] | None:
    """The fields of a block that the API takes back; None for all. The client adds some of its own."""
    fields = {"text": {"type", "text"}, "tool_use": {"type", "id", "name", "input"}}
    return fields.get(block.type)


def _translated(name: str, key: str | None) -> AbstractContextManager[None]:
    import anthropic

    return translated(anthropic, anthropic.AnthropicError, name, key)
