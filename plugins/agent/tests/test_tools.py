"""Tools are typed functions: their schema, their arguments, and what cannot be a tool."""

from __future__ import annotations

import asyncio
import contextvars
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypedDict

import msgspec
import pytest
from kode_agent import (
    Agent,
    ScriptedProvider,
    Template,
    TemplateError,
    Tool,
    ToolContext,
    ToolDefinitionError,
    call,
    tool,
)

from kode_core import ExtendedStore, create_extended_store


@dataclass
class Place:
    city: str
    country: str = "IT"


class Options(TypedDict, total=False):
    seats: int


def book(
    to: Place,
    kind: Literal["bus", "train"],
    count: Annotated[int, msgspec.Meta(ge=1, description="How many.")] = 1,
    tags: list[str] | None = None,
    options: Options = {},  # noqa: B006 - a default as people write it
    *,
    context: ToolContext,
) -> str:
    """Book a seat.

    With a second paragraph.
    """
    return f"{count} {kind} to {to.city} {to.country} {tags} {options} for {context.agent_id}"


@pytest.fixture
async def store() -> AsyncIterator[ExtendedStore]:
    async with create_extended_store("memory:") as opened:
        yield opened


def test_the_schema_is_that_of_the_signature() -> None:
    """Names, types, defaults and descriptions are in the JSON schema, and the context is not."""
    schema = Tool(book).schema
    assert (schema.name, schema.description) == ("book", "Book a seat.\n\nWith a second paragraph.")
    properties = schema.parameters["properties"]
    assert list(properties) == ["to", "kind", "count", "tags", "options"]
    assert properties["kind"] == {"enum": ["bus", "train"]}
    assert properties["count"] == {"type": "integer", "minimum": 1, "description": "How many.", "default": 1}
    assert schema.parameters["required"] == ["to", "kind"]
    assert schema.parameters["additionalProperties"] is False
    assert schema.parameters["$defs"]["Place"]["required"] == ["city"]
    assert properties["to"] == {"$ref": "#/$defs/Place"}
    assert Tool(lambda: 1, "named").schema.parameters == {
        "type": "object",
        "properties": {},
        "required": [],
        "additionalProperties": False,
    }


async def test_arguments_are_values_of_their_types(store: ExtendedStore) -> None:
    """A dataclass arrives as one, defaults are filled in, and the context comes from the runtime."""
    context = ToolContext("a", "c", store)
    bound = Tool(book).bind({"to": {"city": "Rome"}, "kind": "bus"}, context)
    assert bound["to"] == Place("Rome")
    assert book(**bound) == "1 bus to Rome IT None {} for a"
    for given in ({"kind": "bus"}, {"to": {"city": 1}, "kind": "bus"}, {"to": {"city": "R"}, "kind": "car"}, [], None):
        with pytest.raises(ValueError):
            Tool(book).bind(given, context)


def test_what_cannot_be_a_tool_is_refused() -> None:
    """A signature that a model cannot be told of is refused, with the parameter's name and what to do."""

    def untyped(order) -> None: ...  # type: ignore[no-untyped-def]

    def several(*orders: str) -> None: ...

    def positional(order: str, /) -> None: ...

    def odd(order: asyncio.Queue[int]) -> None: ...

    def unknown(order: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    for function, text in (
        (untyped, "annotate the parameter 'order', as in order: str"),
        (several, "'orders' is variadic positional; a tool is called by name"),
        (positional, "'order' is positional-only"),
        (odd, "has no JSON schema"),
        (unknown, "its signature cannot be read"),
        (lambda: 1, "a tool's name has 1 to 64 of A-Z"),
        (3, "a tool is a function, got int"),
    ):
        with pytest.raises(ToolDefinitionError, match=text):
            Template("a", tools=[function])  # type: ignore[list-item]
    with pytest.raises(TemplateError, match="two tools are named 'book'"):
        Template("a", tools=[book, book])
    with pytest.raises(TemplateError, match="max_steps"):
        Template("a", max_steps=0)
    with pytest.raises(TemplateError, match=r"Template\.id"):
        Template("")


def test_methods_and_objects_are_tools() -> None:
    """Bound methods and callable objects have a schema without self."""

    class Desk:
        def look(self, order: str) -> str:
            """Look."""
            return order

        async def __call__(self, order: str) -> str:
            return order

    assert list(Tool(Desk().look).schema.parameters["properties"]) == ["order"]
    assert list(Tool(Desk(), "desk").schema.parameters["properties"]) == ["order"]

    @tool(name="other", needs_approval=True)
    def decorated(order: str) -> None: ...

    assert (decorated.name, decorated.needs_approval) == ("other", True)


async def test_synchronous_tools_do_not_hold_up_the_loop(store: ExtendedStore) -> None:
    """They run at once, in threads of their own, with the context variables of the send."""
    barrier = threading.Barrier(3)
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    seen: list[Any] = []

    def meet(number: int) -> int:
        barrier.wait(60)
        seen.append((variable.get(), threading.current_thread() is threading.main_thread()))
        return number

    async def also(number: int) -> int:
        await asyncio.to_thread(barrier.wait, 60)
        return number

    calls = [call("meet", number=1), call("meet", number=2), call("also", number=3)]
    provider = ScriptedProvider([calls, "ok"])
    agent = await Agent.create(provider=provider, store=store, template=Template("a", tools=[meet, also]))
    variable.set("mine")
    assert await agent.send("Go.") == "ok"
    assert seen == [("mine", False)] * 2
    assert [r.result for r in await store.load_tool_call_records(agent.id)] == [1, 2, 3]


HANGS = """
import asyncio, time
from kode_agent import Agent, ScriptedProvider, Template, Tool, call
from kode_core import create_extended_store

async def main():
    async with create_extended_store("memory:") as store:
        def hang() -> None:
            time.sleep(1000)
        template = Template("a", tools=[Tool(hang, timeout_ms=50)])
        agent = await Agent.create(provider=ScriptedProvider([call("hang"), "ok"]), store=store, template=template)
        print(await agent.send("Go."))

asyncio.run(main())
"""


def test_a_hanging_tool_does_not_keep_the_process() -> None:
    """A process ends although a thread of a tool still runs."""
    done = subprocess.run((sys.executable, "-c", HANGS), capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")


def test_two_processes_run_one_agent_in_turns(tmp_path: Any) -> None:
    """Sends of several processes at once are answered one after the other, and none of their runs overlap."""
    script = f"""
import asyncio, os, sys
from kode_agent import Agent, ScriptedProvider, Template, call
from kode_core import create_extended_store, ToolResultBlock

def say(messages):
    results = any(isinstance(b, ToolResultBlock) for b in messages[-1].content)
    return "done" if results else call("critical")

async def critical() -> str:
    fd = os.open({str(tmp_path / "inside")!r}, os.O_CREAT | os.O_EXCL)  # fails if somebody is inside
    await asyncio.sleep(0.02)
    os.close(fd)
    os.unlink({str(tmp_path / "inside")!r})
    return "ok"

async def main():
    async with create_extended_store({f"sqlite:///{tmp_path}/a.db"!r}) as store:
        provider, template = ScriptedProvider(say), Template("a", tools=[critical])
        agent = await Agent.resume_or_create("shared", provider=provider, store=store, template=template)
        for _ in range(5):
            await agent.send(str(os.getpid()), wait_ms=60_000)

asyncio.run(main())
"""
    running = [subprocess.Popen((sys.executable, "-c", script), stderr=subprocess.PIPE, text=True) for _ in range(3)]
    errors = [process.communicate(timeout=120)[1] for process in running]
    assert errors == ["", "", ""]

    async def look() -> None:
        async with create_extended_store(f"sqlite:///{tmp_path}/a.db") as store:
            messages = await store.load_messages("shared")
            assert [m.role for m in messages] == ["user", "assistant", "user", "assistant"] * 15
            assert await store.count_tool_calls(agent_id="shared", state="COMPLETED") == 15
            assert not (await store.check_consistency()).issues

    asyncio.run(look())
    assert not os.path.exists(tmp_path / "inside")


def test_importing_the_agent_imports_no_client() -> None:
    """The clients of providers and the command line are imported on first use, and are not needed otherwise."""
    script = (
        "import sys, kode_agent\n"
        "print([name for name in ('openai', 'anthropic', 'typer', 'rich', 'starlette') if name in sys.modules])\n"
        "sys.modules['openai'] = sys.modules['anthropic'] = None\n"
        "for kind in (kode_agent.OpenAIProvider, kode_agent.AnthropicProvider):\n"
        "    try:\n"
        "        kind('m')\n"
        "    except kode_agent.ProviderError as error:\n"
        "        print(error)\n"
    )
    done = subprocess.run((sys.executable, "-c", script), capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "[]",
        "the client of OpenAI is not installed; pip install 'kode-agent[openai]'",
        "the client of Anthropic is not installed; pip install 'kode-agent[anthropic]'",
    ]


async def test_models_of_pydantic(store: ExtendedStore) -> None:
    """Their schema is in the tool's, with one place for definitions; they check their arguments and make them."""
    pydantic = pytest.importorskip("pydantic")

    class Seat(pydantic.BaseModel):  # type: ignore[misc,name-defined]
        row: int

    class Trip(pydantic.BaseModel):  # type: ignore[misc,name-defined]
        to: str = pydantic.Field(min_length=2)
        seats: list[Seat] = pydantic.Field(default_factory=list)

        @pydantic.field_validator("to")  # type: ignore[untyped-decorator]
        @classmethod
        def known(cls, to: str) -> str:
            if to == "Nowhere":
                raise LookupError(to)
            return to

    def plan(trip: Trip, other: Trip | None = None, more: list[Seat] = []) -> Trip:  # noqa: B006
        return trip

    plan.__annotations__ = {"trip": Trip, "other": Trip | None, "more": list[Seat]}
    made = Tool(plan)
    parameters = made.schema.parameters
    assert parameters["required"] == ["trip"]
    assert parameters["properties"]["trip"]["properties"]["seats"]["items"] == {"$ref": "#/$defs/Seat"}
    assert parameters["$defs"]["Seat"]["required"] == ["row"]
    wrong: list[dict[str, Any]] = [
        {"to": "R"},
        {"to": "Nowhere"},
        {"to": "Rome", "seats": [{"row": "x"}]},
        {"to": "\ud800"},
    ]
    for trip in wrong:
        with pytest.raises(ValueError, match=r"\$\.trip"):
            made.bind({"trip": trip}, ToolContext("a", "c", store))
    script = [call("plan", trip={"to": "Rome", "seats": [{"row": 3}]}), "Planned."]
    agent = await Agent.create(provider=ScriptedProvider(script), store=store, template=Template("t", "", [made]))
    assert await agent.send("Rome.") == "Planned."
    (record,) = await store.load_tool_call_records(agent.id)
    assert record.result == {"to": "Rome", "seats": [{"row": 3}]}


def test_types_without_a_schema_are_named() -> None:
    """The parameter and its type are in the error, and no text of a library."""

    class Other:
        pass

    def use(count: int, others: list[Other]) -> None: ...

    use.__annotations__ = {"count": int, "others": list[Other]}
    with pytest.raises(ToolDefinitionError, match=r"tool use: the parameter 'others' has the type list\[") as e:
        Tool(use)
    assert "msgspec.json" not in str(e.value) and "hook" not in str(e.value)

    pydantic = pytest.importorskip("pydantic")
    first = pydantic.create_model("Same", a=(pydantic.create_model("Inner", x=(int, ...)), ...))
    second = pydantic.create_model("Same2", a=(pydantic.create_model("Inner", y=(int, ...)), ...))

    def clash(one: Any, two: Any) -> None: ...

    clash.__annotations__ = {"one": first, "two": second}
    with pytest.raises(ToolDefinitionError, match="two types of its parameters are named Inner"):
        Tool(clash)
