"""Templates: what agents of one kind have in common."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from kode_agent.errors import TemplateError
from kode_agent.tools import Tool, as_tool

__all__ = ["Compression", "Template"]

_SUMMARISE: Final = (
    "Summarise the conversation for the one who will go on with it: the user's wishes, decisions, results of tools "
    "with their names and numbers, and what is still to do. Write the summary only."
)


@dataclass(frozen=True, slots=True)
class Compression:
    """When and how the older messages are replaced by a summary, which the provider writes.

    Attributes:
        threshold_tokens: compress before a request when the last one had more tokens than this.
        keep_messages: so many of the newest messages stay, and more if they begin in the middle of a tool call.
        prompt: the instruction for the summary.
    """

    threshold_tokens: int = 100_000
    keep_messages: int = 10
    prompt: str = _SUMMARISE


@dataclass(frozen=True, slots=True)
class Template:
    """The common part of agents of one kind; it is code, so a store keeps only its id and a digest of it.

    Attributes:
        id: stored as the agent's ``template_id``: an agent is resumed with a template of the same id.
        tools: functions, or :class:`Tool` for more than a function says.
        max_steps: how many answers of the model one ``send`` may take.
        provider_timeout_ms: how long the provider may send nothing.
        tool_timeout_ms: how long a tool may run, unless it says so itself.
        approval_timeout_ms: how long a call waits for a decision before it counts as denied; None waits for ever.
        max_result_chars: of a longer result the model sees the beginning and the end.
        compression: None never compresses.
    """

    id: str
    system_prompt: str = ""
    tools: Sequence[Tool | Callable[..., Any]] = ()
    max_steps: int = 50
    provider_timeout_ms: int = 120_000
    tool_timeout_ms: int = 600_000
    approval_timeout_ms: int | None = None
    max_result_chars: int = 50_000
    compression: Compression | None = None
    by_name: Mapping[str, Tool] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not self.id:
            raise TemplateError("Template.id is a text that names the kind of agent, such as 'assistant'")
        if not isinstance(self.system_prompt, str):
            raise TemplateError(f"Template.system_prompt is a text, got {type(self.system_prompt).__name__}")
        for name in ("max_steps", "provider_timeout_ms", "tool_timeout_ms", "approval_timeout_ms", "max_result_chars"):
            value = getattr(self, name)
            if (type(value) is not int or value < 1) and not (value is None and name == "approval_timeout_ms"):
                raise TemplateError(f"Template.{name} is an int above 0, got {value!r:.40}")
        if self.max_result_chars < 100:
            raise TemplateError("Template.max_result_chars is 100 at least: a cut result says how much is missing")
        tools = [as_tool(each) for each in self.tools]
        names: dict[str, Tool] = {}
        for each in tools:
            if each.name in names:
                raise TemplateError(f"two tools are named {each.name!r}: give one of them another name=")
            names[each.name] = each
        object.__setattr__(self, "tools", tuple(tools))
        object.__setattr__(self, "by_name", names)

    @property
    def version(self) -> str:
        """A digest of the prompt and the tools, stored as the agent's ``config_version``."""
        told = [
            self.system_prompt,
            *([t.schema.name, t.schema.description, t.schema.parameters] for t in self.by_name.values()),
        ]
        text = json.dumps(told, sort_keys=True)
        return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
