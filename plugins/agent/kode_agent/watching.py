"""The steps of an agent, as the observers of its store see them: turns, requests to the model, calls of tools."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal

from kode_agent.provider import Answer, Provider, name_of
from kode_core.operation import observers_of

__all__ = ["AgentStep", "watched"]

_log: Final = logging.getLogger("kode_agent")
_reported: Final[set[type]] = set()


@dataclass(slots=True)
class AgentStep:
    """A step of an agent. It has no contents of messages, arguments or results.

    An observer of the store that has a method ``around_agent`` gets it at the start, and returns a context manager or
    None. The fields from ``input_tokens`` on are filled in before it is left.

    Attributes:
        kind: ``turn`` for a ``send`` or ``go_on``, ``model`` for a request to the provider, ``tool`` for a call that
            runs: one that was denied, or fits no tool, does not.
        provider: the provider's name.
        model: its model, if it has one.
        tool: the name of the tool, as the template has it.
        stop: why the answer ended, in the server's word.
        error: the class of the error that ended the step, or ``tool_error`` for a tool that failed.
    """

    kind: Literal["turn", "model", "tool"]
    agent_id: str
    template_id: str
    provider: str | None = None
    model: str | None = None
    tool: str | None = None
    call_id: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    stop: str | None = None
    error: str | None = None

    def asks(self, provider: Provider) -> None:
        """Note the provider and its model."""
        model = getattr(provider, "model", None)
        self.provider, self.model = name_of(provider), model if type(model) is str else None

    def answered(self, answer: Answer) -> None:
        """Note the tokens of an answer, and why it ended."""
        usage = answer.usage
        if usage.total_tokens:  # some servers do not count
            self.input_tokens, self.output_tokens = usage.input_tokens, usage.output_tokens
        self.stop = answer.stop or None


@contextmanager
def watched(store: object, step: AgentStep) -> Iterator[AgentStep]:
    """Surround a step with the observers of *store*. A fault of an observer is logged, once for its class."""
    entered: list[tuple[object, Any]] = []
    for observer in observers_of(store):
        around: Any = getattr(observer, "around_agent", None)
        if callable(around) and (manager := _tried(observer, _entered, around, step)) is not None:
            entered.append((observer, manager))
    error: BaseException | None = None
    try:
        yield step
    except BaseException as exc:
        error = exc
        if step.error is None:
            step.error = type(exc).__name__
        raise
    finally:
        given = (None, None, None) if error is None else (type(error), error, error.__traceback__)
        while entered:
            owner, manager = entered.pop()
            _tried(owner, manager.__exit__, *given)


def _entered(around: Callable[[AgentStep], Any], step: AgentStep) -> Any:
    manager = around(step)
    if manager is not None:
        manager.__enter__()
    return manager


def _tried(observer: object, call: Callable[..., Any], *args: Any) -> Any:
    try:
        return call(*args)
    except (Exception, SystemExit, asyncio.CancelledError):  # noqa: BLE001 - an observer's code
        if type(observer) not in _reported:
            _reported.add(type(observer))
            _log.exception("the observer %s failed at a step of an agent", type(observer).__qualname__)
        return None
