"""kode_agent: an agent whose every step is stored before its tools run, so that any process can go on.

::

    from kode_agent import Agent, ScriptedProvider, Template
    from kode_core import create_extended_store

    async with create_extended_store("sqlite:///agents.db") as store:
        agent = await Agent.create(provider=ScriptedProvider(["Hello!"]), store=store, template=Template("assistant"))
        print(await agent.send("Hi."))

``kode_agent.providers`` has the models of OpenAI and Anthropic, ``kode_agent.testing`` a server for tests.
"""

from kode_agent.agent import Agent, AgentStatus
from kode_agent.control import Decision, decide, interrupt, open_questions
from kode_agent.errors import (
    AgentBusyError,
    AgentError,
    AgentInterruptedError,
    ApprovalError,
    NothingToDoError,
    ProviderError,
    ProviderTimeoutError,
    ProviderUnavailableError,
    StepsExceededError,
    TemplateError,
    ToolDefinitionError,
)
from kode_agent.provider import Answer, Delta, Provider, Usage
from kode_agent.providers.anthropic import AnthropicProvider
from kode_agent.providers.openai import OpenAIProvider
from kode_agent.providers.scripted import ScriptedProvider, call
from kode_agent.template import Compression, Template
from kode_agent.tools import Tool, ToolContext, ToolSchema, tool
from kode_agent.watching import AgentStep

__all__ = [
    "Agent",
    "AgentBusyError",
    "AgentError",
    "AgentInterruptedError",
    "AgentStatus",
    "AgentStep",
    "Answer",
    "AnthropicProvider",
    "ApprovalError",
    "Compression",
    "Decision",
    "Delta",
    "NothingToDoError",
    "OpenAIProvider",
    "Provider",
    "ProviderError",
    "ProviderTimeoutError",
    "ProviderUnavailableError",
    "ScriptedProvider",
    "StepsExceededError",
    "Template",
    "TemplateError",
    "Tool",
    "ToolContext",
    "ToolDefinitionError",
    "ToolSchema",
    "Usage",
    "call",
    "decide",
    "interrupt",
    "open_questions",
    "tool",
]
