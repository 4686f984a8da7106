"""The errors of the agent runtime; errors of the store pass through as they are.

::

    KodeError
    └── AgentError
        ├── AgentBusyError           another worker runs the agent, or this one already does
        ├── AgentInterruptedError    it was asked to stop
        ├── ApprovalError            no question of that call is open
        ├── NothingToDoError         go_on() found no message that waits for an answer
        ├── StepsExceededError       the model called tools again and again
        ├── TemplateError            another template, or one that cannot be used
        ├── ToolDefinitionError      a function that cannot be a tool
        └── ProviderError            the model's server refused, or sent something else than an answer
            ├── ProviderTimeoutError       it did not answer in time
            └── ProviderUnavailableError   it cannot be reached, is overloaded, or cut the stream

After any of them the agent's conversation is sound: :meth:`~kode_agent.Agent.go_on` answers a message that still waits.
"""

from __future__ import annotations

from kode_core import KodeError, Retry

__all__ = [
    "AgentBusyError",
    "AgentError",
    "AgentInterruptedError",
    "ApprovalError",
    "NothingToDoError",
    "ProviderError",
    "ProviderTimeoutError",
    "ProviderUnavailableError",
    "StepsExceededError",
    "TemplateError",
    "ToolDefinitionError",
]


class AgentError(KodeError):
    """Base of the errors of the agent runtime."""


class AgentBusyError(AgentError):
    """The lease of the agent was not free in time: another worker, or another ``send``, runs it."""

    retry = Retry.LATER


class AgentInterruptedError(AgentError):
    """The run was stopped by ``interrupt``; finished results are stored, and open calls are sealed."""


class ApprovalError(AgentError):
    """A decision that decides nothing: no call of that id waits for one, or another decision was first."""


class NothingToDoError(AgentError):
    """The last message is an answer: ``send`` a message instead of ``go_on``."""


class StepsExceededError(AgentError):
    """The model asked for tools in every one of the ``max_steps`` of the template."""


class TemplateError(AgentError):
    """The template cannot be used, or the agent was made from another one."""


class ToolDefinitionError(TemplateError):
    """A function cannot be a tool; the message names the parameter and says what to change."""


class ProviderError(AgentError):
    """The provider refused the request, or its answer cannot be read; no message contains a key."""


class ProviderTimeoutError(ProviderError):
    """The provider sent nothing for as long as the template allows."""

    retry = Retry.LATER


class ProviderUnavailableError(ProviderError):
    """The provider cannot be reached, is overloaded, or ended the stream early; the same call may succeed later."""

    retry = Retry.LATER
