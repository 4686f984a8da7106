"""Other projects that keep conversations, beside kode_core: a turn appended to a conversation, and all of it read.

``make bench ARGS="peers"``. They are no part of this project: ``requirements-peers.txt`` says what to install.

What is compared
    One turn is four messages: a question, a tool use, its result, the answer. Three of them have about 600 bytes, the
    tool use less. Each project gets them as its own kind of message. Measured is from the call until all four are
    durable, by the asynchronous calls of each, from one task, on the same server or in files of the same folder, at
    the default durability, which is the same for all: PostgreSQL's ``synchronous_commit=on``, SQLite's write-ahead log
    with ``synchronous=FULL``.

    - OpenAI Agents' ``SQLAlchemySession.add_items``, over asyncpg or aiosqlite: four rows in one transaction, beside
      one ``append_messages`` of four messages. Both keep the same and give the same back, there as dictionaries.
    - LangGraph's ``AsyncPostgresSaver`` and ``AsyncSqliteSaver``: the calls that langgraph makes for a graph of a model
      and a tool with the channel ``messages`` (see ``peers_langgraph.py``), beside four ``append_messages`` of a
      message each: both can go on after each of them. With ``durability="exit"`` it keeps the turn's end only: one
      checkpoint, beside one ``append_messages``.

What is not
    - A checkpoint is more than messages: from any of them, a graph goes on in the middle. That is why it has the whole
      conversation in it; it is what one pays for, not a mistake. Nor do our other writes of a turn (info, tool calls,
      events) belong here.
    - The model's time. LangGraph writes while the model works on the next step, unless ``durability="sync"``.
    - Many agents at once, where group commit and pools matter.
    - ``DeltaChannel`` of langgraph, which is in beta, keeps what is new in each step, and all of it with each 100th
      update. Here it is measured between two of these, and not how it is read.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from typing import Any

from kode_core import ExtendedStore
from tests.benchmarks.backends import Backend, Options, opened
from tests.benchmarks.measure import Report, Row, interleaved
from tests.benchmarks.workload import LENGTHS, four_messages

__all__ = ["Conversation", "OpenAISession", "has_modules", "run", "session_engine"]

ROUNDS = 12
INSTALL = ".venv/bin/pip install -c constraints.txt -r tests/benchmarks/requirements-peers.txt"
PACKAGES = ("langgraph-checkpoint", "langgraph-checkpoint-postgres", "langgraph-checkpoint-sqlite", "openai-agents")
_MODULES = ("langgraph.checkpoint.postgres", "langgraph.checkpoint.sqlite", "psycopg", "sqlalchemy", "agents")

OURS_AT_ONCE = "kode_core, four at once"
OURS_IN_STEPS = "kode_core, message by message"


class Conversation(ABC):
    """A conversation that somebody keeps."""

    @abstractmethod
    async def start(self, length: int) -> None:
        """Store what was said before."""

    @abstractmethod
    async def turn(self, i: int) -> None:
        """Append four messages; they are durable when this returns."""

    @abstractmethod
    async def load(self, i: int) -> None:
        """Read all messages, as objects."""


def has_modules(modules: Sequence[str]) -> bool:
    """Whether all of these can be imported."""
    return all(map(_is_there, modules))


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


async def run(report: Report, backend: Backend) -> None:
    """Measure milliseconds of a turn and of reading all, and how often as long as kode_core's in the same rounds."""
    missing = [module for module in _MODULES if not _is_there(module)]
    if missing:
        print(f"\n{backend.name}: peers are left out, there is no {missing[0]}; run: {INSTALL}")
        return
    report.versions |= {name: version(name) for name in PACKAGES}
    report.title("A turn of four messages appended to a conversation, beside other projects")
    for length in LENGTHS:
        async with AsyncExitStack() as stack:
            kept = await _conversations(stack, backend)
            for conversation in kept.values():
                await conversation.start(length)
            turns = await interleaved(ROUNDS, **{name: conversation.turn for name, conversation in kept.items()})
            loads = await interleaved(ROUNDS, **{name: conversation.load for name, conversation in kept.items()})
        _tell(report, turns, f"turn at {length:,}", _TURNS)
        _tell(report, loads, f"load of {length:,}", _LOADS)


_AT_ONCE = ("OpenAI Agents, add_items", 'LangGraph, durability="exit"')
_IN_STEPS = ("LangGraph, a checkpoint a step", "LangGraph, DeltaChannel (beta)")
_TURNS = {OURS_AT_ONCE: _AT_ONCE, OURS_IN_STEPS: _IN_STEPS}
_LOADS = {OURS_AT_ONCE: (_AT_ONCE[0], _AT_ONCE[1])}


def _tell(report: Report, times: Mapping[str, float], what: str, groups: Mapping[str, Sequence[str]]) -> None:
    for ours, theirs in groups.items():
        report.add(Row(f"{what}: {ours}", times[ours] * 1000, "ms"))
        for name in theirs:
            report.add(Row(f"  {name}", times[name] * 1000, "ms", times[name] / times[ours], "kode_core"))


async def _conversations(stack: AsyncExitStack, backend: Backend) -> dict[str, Conversation]:
    """All contestants by name; each project in a place of its own."""
    from tests.benchmarks.peers_langgraph import Graph, saver_at

    places = [await stack.enter_async_context(backend.space()) for _ in range(3)]
    store = await stack.enter_async_context(opened(places[0]))
    engine = await stack.enter_async_context(session_engine(places[1]))
    saver = await stack.enter_async_context(saver_at(places[2]))
    return {
        OURS_AT_ONCE: Ours(store, "agt-once", at_once=True),
        OURS_IN_STEPS: Ours(store, "agt-steps", at_once=False),
        _AT_ONCE[0]: OpenAISession(engine, "session"),
        _AT_ONCE[1]: Graph(saver, "exit", way="exit"),
        _IN_STEPS[0]: Graph(saver, "steps", way="steps"),
        _IN_STEPS[1]: Graph(saver, "delta", way="delta"),
    }


class Ours(Conversation):
    """kode_core: ``append_messages``, in one call or in four."""

    def __init__(self, store: ExtendedStore, agent_id: str, *, at_once: bool) -> None:
        self._store = store
        self._id = agent_id
        self._at_once = at_once

    async def start(self, length: int) -> None:
        await self._store.append_messages(self._id, [m for n in range(length // 4) for m in four_messages(n)])

    async def turn(self, i: int) -> None:
        messages = four_messages(i)
        for some in [messages] if self._at_once else [[message] for message in messages]:
            await self._store.append_messages(self._id, some)

    async def load(self, i: int) -> None:
        await self._store.load_messages(self._id)


# --- OpenAI Agents ----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def session_engine(options: Options) -> AsyncIterator[Any]:
    """SQLAlchemy's engine with its own defaults, one for all sessions, as its manual has it."""
    from sqlalchemy.ext.asyncio import create_async_engine

    if options["type"] == "sqlite":
        engine = create_async_engine(f"sqlite+aiosqlite:///{options['db_path']}")
    else:
        where = options["dsn"].replace("postgresql://", "postgresql+asyncpg://")
        path = {"server_settings": {"search_path": options["schema"]}}
        engine = create_async_engine(where, connect_args=path)
    try:
        yield engine
    finally:
        await engine.dispose()


class OpenAISession(Conversation):
    """``SQLAlchemySession`` of OpenAI Agents."""

    def __init__(self, engine: Any, session_id: str) -> None:
        from agents.extensions.memory import SQLAlchemySession

        self._session = SQLAlchemySession(session_id, engine=engine, create_tables=True)

    async def start(self, length: int) -> None:
        await self._session.add_items([item for n in range(length // 4) for item in _items(n)])

    async def turn(self, i: int) -> None:
        await self._session.add_items(_items(i))

    async def load(self, i: int) -> None:
        await self._session.get_items()


def _items(n: int) -> list[Any]:
    """The four messages as items of the Responses API."""
    arguments = '{"command": "ls -l", "n": 1, "env": {"A": "1"}}'
    answer = {"type": "output_text", "text": f"answer {n} " + "z" * 600, "annotations": []}
    return [
        {"role": "user", "content": f"question {n} " + "x" * 600},
        {"type": "function_call", "call_id": f"call-{n}", "name": "bash", "arguments": arguments},
        {"type": "function_call_output", "call_id": f"call-{n}", "output": f"result {n} " + "y" * 600},
        {"type": "message", "role": "assistant", "status": "completed", "id": f"msg-{n}", "content": [answer]},
    ]
