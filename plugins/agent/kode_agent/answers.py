"""Checks of what a provider sends: everything else than deltas and an answer that can be stored is a ProviderError."""

from __future__ import annotations

from kode_agent.errors import ProviderError
from kode_agent.provider import Answer, Delta, Usage, hidden
from kode_agent.results import text_of_error
from kode_core import Message, ToolResultBlock, from_dict, to_dict

__all__ = ["checked", "error_of"]


def checked(part: object, name: str) -> Delta | Answer:
    """A part of the stream of the provider called *name*; an answer's message is a copy, as the store reads it.

    Raises:
        ProviderError: it is neither a delta nor an answer, or one that cannot be kept; the message says where.
    """
    try:
        if isinstance(part, Delta):
            return _delta(part)
        if isinstance(part, Answer):
            return Answer(_message(part.message), _usage(part.usage), _stop(part.stop))
        raise ProviderError(f"expected a Delta or an Answer, got {type(part).__name__:.80}")
    except ProviderError as exc:
        raise ProviderError(f"the provider {name!r:.80} sent no valid answer: {exc}") from None
    except Exception as exc:
        problem = hidden(text_of_error(exc))
        raise ProviderError(f"the provider {name!r:.80} sent what cannot be kept: {problem}") from exc


def error_of(exc: BaseException, name: str) -> ProviderError:
    """The error for whatever the provider called *name* raised."""
    if isinstance(exc, ProviderError):
        return exc
    error = ProviderError(f"the provider {name!r:.80} raised {hidden(text_of_error(exc))}")
    error.__cause__ = exc
    return error


def _delta(delta: Delta) -> Delta:
    if not isinstance(delta.text, str) or type(delta.is_reasoning) is not bool:
        raise ProviderError("a Delta has a str as text and a bool as is_reasoning")
    return Delta(str.__str__(delta.text), delta.is_reasoning)


def _message(message: object) -> Message:
    if not isinstance(message, Message):
        raise ProviderError(f"Answer.message is a Message, got {type(message).__name__:.80}")
    kept = from_dict(Message, to_dict(message))
    if kept.role != "assistant":
        raise ProviderError(f"the message is of {kept.role!r:.40}, not of the assistant")
    if any(isinstance(block, ToolResultBlock) for block in kept.content):
        raise ProviderError("the message has a ToolResultBlock; results come from tools, in messages of the user")
    return kept


def _usage(usage: object) -> Usage:
    if not isinstance(usage, Usage):
        raise ProviderError(f"Answer.usage is a Usage, got {type(usage).__name__:.80}")
    for count in (usage.input_tokens, usage.output_tokens):
        if type(count) is not int or count < 0:
            raise ProviderError("the numbers of tokens in Answer.usage are ints of 0 or more")
    return usage


def _stop(stop: object) -> str:
    if not isinstance(stop, str):
        raise ProviderError(f"Answer.stop is a str, got {type(stop).__name__:.80}")
    return str.__str__(stop)
