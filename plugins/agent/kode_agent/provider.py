"""Providers: the interface to a model, and what they have in common."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias, runtime_checkable

from kode_agent.errors import ProviderError, ProviderUnavailableError
from kode_agent.results import safe_text
from kode_agent.tools import ToolSchema
from kode_core import Message

__all__ = ["Answer", "Delta", "Provider", "Usage", "error_of_status", "hidden", "name_of", "sound"]

_KEYS: Final = re.compile(r"\b(?:sk|pk|rk|key|api)-[\w*-]{6,}|Bearer\s+\S+", re.IGNORECASE)
_SHOWN: Final = 300


@dataclass(frozen=True, slots=True)
class Usage:
    """The tokens of one request."""

    input_tokens: int = 0
    output_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Both together."""
        return self.input_tokens + self.output_tokens


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of the answer while it streams; ``is_reasoning`` for a piece of the reasoning before it."""

    text: str
    is_reasoning: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """The whole answer, after its deltas: an assistant's message, and why it ended."""

    message: Message
    usage: Usage = Usage()
    stop: str = ""


Part: TypeAlias = Delta | Answer


@runtime_checkable
class Provider(Protocol):
    """A model. ``stream`` yields deltas and, last, one :class:`Answer`; it raises :class:`ProviderError` on failure.

    It is closed (``aclose``) when the run is interrupted. Whatever else it raises becomes a ProviderError.
    """

    @property
    def name(self) -> str:
        """A word for logs and errors."""
        ...

    def stream(
        self, system: str, messages: Sequence[Message], tools: Sequence[ToolSchema]
    ) -> AsyncIterator[Delta | Answer]:
        """Ask the model for the message that follows *messages*."""
        ...


def name_of(provider: Provider) -> str:
    """The name of a provider, or of its class if it has none."""
    name: object = getattr(provider, "name", None)
    return name if type(name) is str else type(provider).__name__


def sound(text: str) -> str:
    """*text* with surrogate pairs joined, which two pieces of a stream may have parted."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


def hidden(text: object, *secrets: str | None) -> str:
    """*text* without the secrets and without anything that looks like a key, of at most 300 characters."""
    shown = safe_text(text)
    for secret in secrets:
        if secret and len(secret) > 3:
            shown = shown.replace(secret, "…")
    return _KEYS.sub("…", " ".join(shown.split()))[:_SHOWN]


_HINTS: Final = {
    400: "the request does not fit the model: look at its message, at tools and at the length of the conversation",
    401: "the API key is missing or wrong",
    403: "the API key may not use this model",
    404: "there is no such model, or base_url leads elsewhere",
    413: "the conversation is too long: set Template.compression",
    429: "the limit of requests or the quota is used up; try again later",
}


def error_of_status(name: str, status: int, text: str) -> ProviderError:
    """The error of an HTTP status, with a hint what to do; *text* has no secrets."""
    kind = ProviderUnavailableError if status in (408, 409, 429) or status >= 500 else ProviderError
    hint = _HINTS.get(status, "try again later" if status >= 500 else "see its message")
    return kind(f"{name} answered with status {status}: {text}; {hint}")
