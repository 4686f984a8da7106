"""The questions to a scripted server and its answers, whatever the protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a tool: its name, its arguments, and its id (the server numbers calls without one).

    Arguments that are a text are sent as they are, so that a model can break off in the middle of them.
    """

    name: str
    arguments: Mapping[str, Any] | str = field(default_factory=dict)
    id: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer of the model: text, calls of tools, or both.

    ``delay`` is the number of seconds before each part of a stream, and before an answer that is not streamed.
    ``cut`` ends the connection after that many parts of the stream.
    """

    text: str = ""
    calls: Sequence[Call] = ()
    delay: float = 0.0
    cut: int | None = None

    @property
    def words(self) -> list[str]:
        """The text in pieces, each of a word with the space after it."""
        return [word + " " for word in self.text.split(" ")[:-1]] + self.text.split(" ")[-1:] if self.text else []


@dataclass(frozen=True, slots=True)
class Fault:
    """An answer that is an error: an HTTP status, with ``Retry-After`` in seconds if it is given."""

    status: int = 500
    message: str = "the script says so"
    retry_after: float | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """A request: the protocol (``chat``, ``responses``, ``anthropic``, ``gemini``), its number, and its body."""

    api: str
    number: int
    body: Mapping[str, Any]
    text: str
    """The text of the last message of the user."""
    results: Sequence[str] = ()
    """The results of tools that follow the last message of the user and the last answer, as texts."""
    tools: Sequence[str] = ()
    """The names of the tools that the model may call."""

    @property
    def streams(self) -> bool:
        """Whether the answer shall be streamed."""
        return bool(self.body.get("stream"))


Script = Sequence[Reply | Fault] | Callable[[Request], Reply | Fault]
"""Answers in their order (the last one again and again), or a function that chooses one."""
