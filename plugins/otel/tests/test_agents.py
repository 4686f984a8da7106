"""Spans of agents of kode-agent: turns, requests to the model and calls of tools."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from kode_agent import (
    Agent,
    AgentInterruptedError,
    Answer,
    ProviderError,
    ScriptedProvider,
    Template,
    Usage,
    call,
    tool,
)
from opentelemetry.trace import SpanKind, StatusCode, get_current_span

from kode_core import create_extended_store

SECRET = "the-canary-of-a-body"


class Model:
    """A provider with a name and a model, which answers from a script."""

    name = "openai"
    model = "gpt-9"

    def __init__(self, script: Sequence[Any]) -> None:
        self._scripted = ScriptedProvider(script)

    async def stream(self, system: str, messages: Any, tools: Any) -> AsyncIterator[Any]:
        async for part in self._scripted.stream(system, messages, tools):
            yield Answer(part.message, Usage(7, 3), "stop") if isinstance(part, Answer) else part


def named(recorded: Any, name: str) -> list[Any]:
    return [span for span in recorded.spans() if span.name.split()[0] == name]


async def test_a_turn_with_tools(recorded: Any) -> None:
    """The turn is the parent of the requests and of the tools, whose own spans are below; nothing has a body."""

    @tool
    async def look(where: str) -> str:
        """Look somewhere."""
        with recorded.tracer.start_as_current_span("inside"):
            return f"{SECRET} in {where}"

    @tool
    def fail(where: str) -> str:
        """Fail, in a thread."""
        with recorded.tracer.start_as_current_span("in a thread"):
            raise ValueError(SECRET)

    script = [[call("look", where=SECRET), call("fail", where=SECRET)], f"{SECRET}!"]
    async with create_extended_store("memory:", observers=[recorded.observer()]) as store:
        agent = await Agent.create(
            provider=Model(script), store=store, template=Template("desk", SECRET, [look, fail]), agent_id="agt-1"
        )
        with recorded.tracer.start_as_current_span("request") as request:
            await agent.send(SECRET)
            assert get_current_span() is request
    (turn,) = named(recorded, "invoke_agent")
    chats, tools = named(recorded, "chat"), named(recorded, "execute_tool")
    assert turn.name == "invoke_agent desk"
    assert turn.kind is SpanKind.INTERNAL
    assert turn.parent.span_id == request.get_span_context().span_id
    assert dict(turn.attributes) == {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.conversation.id": "agt-1",
        "gen_ai.agent.name": "desk",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-9",
    }
    assert [chat.name for chat in chats] == ["chat gpt-9"] * 2
    for chat in chats:
        assert (chat.kind, chat.parent.span_id) == (SpanKind.CLIENT, turn.context.span_id)
        assert dict(chat.attributes) == dict(turn.attributes) | {
            "gen_ai.operation.name": "chat",
            "gen_ai.usage.input_tokens": 7,
            "gen_ai.usage.output_tokens": 3,
            "gen_ai.response.finish_reasons": ("stop",),
        }
    by_name = {span.name: span for span in tools}
    assert set(by_name) == {"execute_tool look", "execute_tool fail"}
    good, bad = by_name["execute_tool look"], by_name["execute_tool fail"]
    assert (good.kind, good.parent.span_id) == (SpanKind.INTERNAL, turn.context.span_id)
    assert (good.attributes["gen_ai.tool.name"], good.attributes["gen_ai.tool.type"]) == ("look", "function")
    assert good.attributes["gen_ai.tool.call.id"]
    assert (good.status.status_code, bad.status.status_code) == (StatusCode.UNSET, StatusCode.ERROR)
    assert bad.attributes["error.type"] == "tool_error"
    for inner, outer in (("inside", good), ("in", bad)):
        (span,) = named(recorded, inner)
        assert span.parent.span_id == outer.context.span_id
    ours = [span for span in recorded.spans() if span.name != "in a thread"]  # the program's own has its exception
    assert SECRET not in "\n".join(span.to_json() for span in ours)
    stored = [span for span in recorded.spans() if span.name.startswith("save_turn")]
    assert stored and {span.parent.span_id for span in stored} <= {
        turn.context.span_id,
        *(span.context.span_id for span in tools),
    }


async def test_a_turn_that_fails_or_is_interrupted(recorded: Any) -> None:
    """The class of the error is in the spans of the request and of the turn."""

    class Away(Model):
        async def stream(self, system: str, messages: Any, tools: Any) -> AsyncIterator[Any]:
            raise ProviderError(SECRET)
            yield

    class Slow(Model):
        async def stream(self, system: str, messages: Any, tools: Any) -> AsyncIterator[Any]:
            asks.set()
            await asyncio.sleep(600)
            yield

    asks = asyncio.Event()
    template = Template("desk", "Be brief.")
    async with create_extended_store("memory:", observers=[recorded.observer(agents="none")]) as store:
        agent = await Agent.create(provider=Away([]), store=store, template=template)
        with pytest.raises(ProviderError):
            await agent.send("hi")
        slow = await Agent.create(provider=Slow([]), store=store, template=template)
        sending = asyncio.create_task(slow.send("hi"))
        await asks.wait()
        await slow.interrupt()
        with pytest.raises(AgentInterruptedError):
            await sending
    assert [span.attributes["error.type"] for span in named(recorded, "invoke_agent")] == [
        "ProviderError",
        "AgentInterruptedError",
    ]
    assert [span.attributes["error.type"] for span in named(recorded, "chat")] == ["ProviderError", "CancelledError"]
    assert all("gen_ai.conversation.id" not in span.attributes for span in recorded.spans())
    assert SECRET not in recorded.everything()


async def test_calls_that_do_not_run_have_no_span(recorded: Any) -> None:
    """A tool that does not exist, and arguments that do not fit: their names come from the model."""

    @tool
    def look(where: str) -> str:
        """Look somewhere."""
        return where

    script = [[call(SECRET), call("look", what=SECRET)], "done"]
    async with create_extended_store("memory:", observers=[recorded.observer()]) as store:
        agent = await Agent.create(provider=ScriptedProvider(script), store=store, template=Template("d", "", [look]))
        assert await agent.send("hi") == "done"
    assert named(recorded, "execute_tool") == []
    assert len(named(recorded, "chat")) == 2
    assert SECRET not in recorded.everything()


async def test_a_faulty_observer_takes_nothing_from_a_turn() -> None:
    """Whatever it raises, the turn goes on and its error is the turn's own."""

    class Faulty:
        def __init__(self, at: str) -> None:
            self.at = at

        def __call__(self, operation: Any) -> None:
            pass

        def around_agent(self, step: Any) -> Any:
            if self.at == "around":
                raise LookupError
            return self

        def __enter__(self) -> None:
            if self.at == "enter":
                raise SystemExit

        def __exit__(self, *_: object) -> bool:
            if self.at == "exit":
                raise LookupError
            return True

    observers = [Faulty(at) for at in ("around", "enter", "exit", "swallow")]
    async with create_extended_store("memory:", observers=observers) as store:
        agent = await Agent.create(provider=ScriptedProvider(["hello"]), store=store, template=Template("d", ""))
        assert await agent.send("hi") == "hello"
        with pytest.raises(ProviderError):
            await agent.send("hi")  # the script is at its end
        assert [message.text for message in await store.load_messages(agent.id)] == ["hi", "hello", "hi"]
