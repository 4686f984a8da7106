"""Providers that send no valid answer, and tools whose values and errors raise when they are read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from kode_agent import (
    Agent,
    Answer,
    Compression,
    Delta,
    ProviderError,
    ScriptedProvider,
    StepsExceededError,
    Template,
    Usage,
    call,
)

from kode_core import (
    AgentNotFoundError,
    ConflictError,
    ExtendedStore,
    KodeError,
    Message,
    TextBlock,
    ToolResultBlock,
    ToolUseBlock,
    UnknownBlock,
)

HELLO = Message.assistant("Hello.")


class Garbage:
    """Sends its parts; an exception among them is raised."""

    name = "garbage"

    def __init__(self, *parts: Any) -> None:
        self.parts = parts

    async def stream(self, *_: Any) -> AsyncIterator[Any]:
        for part in self.parts:
            if isinstance(part, BaseException):
                raise part
            yield part


class Own(BaseException):
    pass


class Unreadable(Exception):
    def __str__(self) -> str:
        raise SystemExit("of __str__")


def answer(*blocks: Any) -> Answer:
    return Answer(Message("assistant", blocks))


def use(call_id: Any = "call_0123456789abcdef", tool: Any = "look", given: Any = None) -> Answer:
    return answer(ToolUseBlock(call_id, tool, {} if given is None else given))


RESULT: dict[str, Any] = {"type": "tool_result", "tool_use_id": "a", "content": "b"}
SENT: dict[str, tuple[tuple[Any, ...], str]] = {
    "a str": (("hello",), "expected a Delta or an Answer, got str"),
    "an int": ((5,), "got int"),
    "a dict": (({"a": 1},), "got dict"),
    "None": ((None, Answer(HELLO)), "got NoneType"),
    "an error as a part": (([ValueError("x")],), "got list"),
    "a delta of an int": ((Delta(5), Answer(HELLO)), "a Delta has a str"),  # type: ignore[arg-type]
    "a delta of None": ((Delta(None), Answer(HELLO)), "a Delta has a str"),  # type: ignore[arg-type]
    "a delta of two kinds": ((Delta("x", 2), Answer(HELLO)), "a bool as is_reasoning"),  # type: ignore[arg-type]
    "an answer of None": ((Answer(None),), "is a Message, got NoneType"),  # type: ignore[arg-type]
    "an answer of a str": ((Answer("x"),), "is a Message, got str"),  # type: ignore[arg-type]
    "an answer of the user": ((Answer(Message.user("x")),), "is of 'user', not of the assistant"),
    "an answer after the answer": ((Answer(HELLO), Answer(HELLO)), "went on after its answer"),
    "usage None": ((Answer(HELLO, None),), "is a Usage, got NoneType"),  # type: ignore[arg-type]
    "usage of str": ((Answer(HELLO, Usage("a", "b")),), "ints of 0 or more"),  # type: ignore[arg-type]
    "usage NaN": ((Answer(HELLO, Usage(1, float("nan"))),), "ints of 0 or more"),  # type: ignore[arg-type]
    "usage below 0": ((Answer(HELLO, Usage(-5)),), "ints of 0 or more"),
    "stop None": ((Answer(HELLO, Usage(), None),), "Answer.stop is a str"),  # type: ignore[arg-type]
    "a block that is none": ((answer(5),), r"\$\.content\[0\]: expected a content block"),
    "a text that is none": ((answer(TextBlock(5)),), r"\$\.content\[0\]\.text"),  # type: ignore[arg-type]
    "an id that is an int": ((use(5),), r"\$\.content\[0\]\.id"),
    "a name that is None": ((use(tool=None),), r"\$\.content\[0\]\.name"),
    "input NaN": ((use(given={"a": float("nan")}),), r"\$\.content\[0\]\.input\.a"),
    "input of objects": ((use(given=object()),), r"\$\.content\[0\]\.input"),
    "a result": ((answer(ToolResultBlock("a", "b")),), "has a ToolResultBlock"),
    "a disguised result": ((answer(TextBlock("x"), UnknownBlock(RESULT)),), "has a ToolResultBlock"),
}
RAISED: dict[str, tuple[BaseException, str]] = {
    "cancelled": (asyncio.CancelledError(), "raised CancelledError$"),
    "GeneratorExit": (GeneratorExit(), "raised GeneratorExit$"),
    "one of its own": (Own("x"), "raised Own: x"),
    "StopIteration": (StopIteration(), "raised RuntimeError"),
    "unreadable": (Unreadable(), "raised Unreadable$"),
    "half a character": (ValueError("\ud83d\ude00"), "raised ValueError"),
    "an unreadable ProviderError": (type("Bad", (ProviderError,), {"__str__": lambda _: 1 / 0})(), "^$"),
    "a KodeError": (KodeError("x"), "raised KodeError: x"),
    "no agent": (AgentNotFoundError("zz"), "raised AgentNotFoundError"),
    "a conflict": (ConflictError("a", "b", "c"), "raised ConflictError"),
}


async def refused(store: ExtendedStore, provider: Any) -> str:
    """The error of a send, after which the agent is ready, sound, and goes on with another provider."""
    template = Template("assistant", provider_timeout_ms=20_000)
    agent = await Agent.create(provider=provider, store=store, template=template)
    with pytest.raises(ProviderError) as caught:
        await asyncio.wait_for(agent.send("Hello?"), 30)
    status = await agent.status()
    assert (status.state, status.breakpoint, status.waits_for_answer) == ("READY", "READY", True)
    kinds = [each.event.type async for each in store.read_events(agent.id, after_offset=0, channel="monitor")]
    assert kinds.count("error") == 1
    other = await Agent.resume(agent.id, provider=ScriptedProvider(["Here."]), store=store, template=template)
    assert await other.go_on() == "Here."
    assert [message.role for message in await other.messages()] == ["user", "assistant"]
    assert not (await store.check_consistency()).issues
    try:
        return str(caught.value)
    except ZeroDivisionError:
        return ""


@pytest.mark.parametrize("case", SENT)
async def test_what_is_no_answer_is_refused(store: ExtendedStore, case: str) -> None:
    """Whatever a provider sends but deltas and one answer is a ProviderError that says what is wrong."""
    parts, problem = SENT[case]
    error = await refused(store, Garbage(*parts))
    assert "provider 'garbage'" in error
    with pytest.raises(ProviderError, match=problem):
        raise ProviderError(error)


@pytest.mark.parametrize("case", RAISED)
async def test_whatever_a_provider_raises_is_its_error(store: ExtendedStore, case: str) -> None:
    """It is told at once, and the error of a store that a provider raises is not taken for one of the agent's store."""
    exc, problem = RAISED[case]
    with pytest.raises(ProviderError, match=problem):
        raise ProviderError(await refused(store, Garbage(Delta("Well, "), exc)))


async def test_a_provider_that_cancels_itself_or_does_not_stream(store: ExtendedStore) -> None:
    """The task of the stream is not the task of the run."""

    class Cancels(Garbage):
        async def stream(self, *_: Any) -> AsyncIterator[Any]:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(0)
            yield

    class Returns(Garbage):
        async def stream(self, *_: Any) -> Any:  # type: ignore[override]
            return 5

    class Unnamed(Garbage):
        name = 5  # type: ignore[assignment]

    assert "raised CancelledError" in await refused(store, Cancels())
    assert "raised TypeError" in await refused(store, Returns())
    assert "provider 'Unnamed'" in await refused(store, Unnamed("x"))


async def test_arguments_as_deep_as_a_store_keeps_them(store: ExtendedStore) -> None:
    """Arguments that fit into a message, but not into the event of its call, are refused with the answer."""
    problems = []
    for depth in range(92, 102):
        given: Any = 1
        for _ in range(depth):
            given = {"a": given}
        template = Template("assistant", max_steps=1)
        agent = await Agent.create(provider=Garbage(use(given=given)), store=store, template=template)
        with pytest.raises((ProviderError, StepsExceededError)) as caught:
            await agent.send("Hello?")
        problems.append(caught.type)
        assert (await agent.status()).state == "READY"
    assert problems == sorted(problems, key=lambda each: each is ProviderError)
    assert set(problems) == {ProviderError, StepsExceededError}
    assert not (await store.check_consistency()).issues


async def test_garbage_for_a_summary_changes_nothing(store: ExtendedStore) -> None:
    """A compression whose request fails in any way leaves the conversation whole."""

    class Sloppy(ScriptedProvider):
        async def stream(self, *args: Any) -> AsyncIterator[Any]:
            if args[1][-1].text == "Sum up.":
                yield "a summary"
                return
            async for part in super().stream(*args):
                yield part

    template = Template("assistant", compression=Compression(1, 1, prompt="Sum up."))
    agent = await Agent.create(provider=Sloppy(["1", "2"]), store=store, template=template)
    assert [await agent.send("a"), await agent.send("b")] == ["1", "2"]
    assert [message.text for message in await agent.messages()] == ["a", "1", "b", "2"]


class Items(dict[str, int]):
    def items(self) -> Any:
        raise SystemExit(9)


class Disguised:
    @property
    def __class__(self) -> Any:
        raise KeyboardInterrupt


def raises(exc: type[BaseException]) -> Callable[[], str]:
    def raiser() -> str:
        raise exc

    return raiser


class Interrupted(BaseException):
    def __str__(self) -> str:
        raise KeyboardInterrupt


@dataclass
class Order:
    number: int

    def __post_init__(self) -> None:
        raise SystemExit if self.number else RuntimeError("no order 0")


def look(order: Order) -> str:
    return "found"


async def test_arguments_whose_class_raises_are_results(store: ExtendedStore) -> None:
    """Whatever the class of a parameter raises, the tool is not run, and the model is told."""
    calls = [call("look", order={"number": number}) for number in (0, 1)]
    template = Template("assistant", tools=[look])
    agent = await Agent.create(provider=ScriptedProvider([calls, "I see."]), store=store, template=template)
    assert await agent.send("Look.") == "I see."
    errors = [record.error for record in await store.load_tool_call_records(agent.id)]
    text = "the tool was not run, since its arguments cannot be made: "
    assert errors == [f"{text}RuntimeError: no order 0", f"{text}SystemExit"]


async def test_values_and_errors_that_end_the_program_are_results(store: ExtendedStore) -> None:
    """Whatever reading a tool's result or its error raises, the model is told, and the program goes on."""

    def items() -> Any:
        return Items(a=1)

    def disguised() -> Any:
        return Disguised()

    async def later() -> Any:
        return [Disguised()]

    tools: dict[str, Any] = {"exit": raises(Unreadable), "interrupt": raises(Interrupted)}
    tools |= {"items": items, "disguised": disguised, "later": later}
    for name, run in tools.items():
        run.__name__ = name
    script = [[call(name) for name in tools], "I see."]
    agent = await Agent.create(
        provider=ScriptedProvider(script), store=store, template=Template("assistant", tools=list(tools.values()))
    )
    assert await agent.send("Do it all.") == "I see."
    blocks = (block for message in await agent.messages() for block in message.content)
    told = [block.content for block in blocks if isinstance(block, ToolResultBlock)]
    assert told == [
        "Unreadable",
        "Interrupted",
        "the tool ran, but it returned what is no JSON: its conversion raised SystemExit: 9",
        "_ToolExit: KeyboardInterrupt",
        "the tool ran, but it returned what is no JSON: its conversion raised KeyboardInterrupt",
    ]
    assert not (await store.check_consistency()).issues
