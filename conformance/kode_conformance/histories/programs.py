"""A failing history as a program: the lines to paste into a file and run, with their imports and definitions."""

from __future__ import annotations

import ast
import re
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from kode_conformance.histories.looks import Known, Look, all_pages, ask, loads
from kode_conformance.histories.steps import Step
from kode_conformance.histories.vocabulary import code_of, runs_of, values_of
from kode_core import model, query
from kode_core.model import (
    AgentInfo,
    Document,
    Message,
    StoredEvent,
    StoredMessage,
    StoredToolCall,
    Timeline,
    ToolCallRecord,
)
from kode_core.query import SessionInfo

__all__ = ["RULER", "Made", "Program", "offsets", "plain", "refused", "see", "stamped"]


class Made(NamedTuple):
    """A step that was made.

    Attributes:
        step: the step.
        forks: the names of the forks that it made.
        refused: the name of the error that it had to end with; empty when it had to succeed.
    """

    step: Step
    forks: Sequence[str] = ()
    refused: str = ""


RULER: Final = f"# {'-' * 78}"
"""The line before and after a printed program."""
_STORES: Final = ("store", "other")
_MAIN: Final = """

async def main(folder):
    harness = load_harness({spec!r})
    handle = await harness.provision(Space("kode_program", Path(folder)))
{opened}
    try:
{body}
    finally:
{closed}
        await harness.destroy(handle)


with tempfile.TemporaryDirectory() as folder:
    asyncio.run(main(folder))
"""


_IMPORTS: Final[Mapping[str, Sequence[str]]] = {
    "kode_conformance.values": ("samples",),
    "kode_conformance.context": ("difference",),
    "kode_conformance.harness": ("Space", "load_harness"),
    "kode_conformance.histories.looks": ("all_pages",),
    "kode_conformance.histories.programs": ("offsets", "plain", "refused", "see", "stamped"),
    "kode_conformance.histories.stamps": ("times_problem",),
    "kode_core.model": model.__all__,
    "kode_core.query": query.__all__,
}
"""The modules of the names that a program may use."""
_NUMBERS: Final = {"nan": 'nan = float("nan")', "inf": 'inf = float("inf")'}
"""Names in the repr of a number."""


class Program:
    """Lines of a program, from steps that were made under a prefix."""

    def __init__(self, spec: str, prefix: str, forks: dict[str, str], *, seeing: bool) -> None:
        self._spec = spec
        self._prefix = prefix
        self._forks = forks
        self._seeing = seeing
        self._names: dict[str, None] = {}
        self._lines: list[str] = []
        self._count = 0

    def make(self, made: Sequence[Made]) -> Program:
        """Add the calls of the steps."""
        for one in made:
            if one.step.op not in ("look", "prime"):
                self._count += 1
                self._lines += [f"{line}  # {self._count}" for line in self._call(one)]
                if self._seeing:
                    agents = dict.fromkeys([self.agent(one.step.agent), *one.forks])
                    self._lines += [f"await see({each}, {agent})" for agent in agents for each in _STORES]
        return self

    def _call(self, made: Made) -> list[str]:
        step = made.step
        store = _STORES[step.via]
        if step.op == "reopen":
            return [f"await {store}.close()", f"{store} = await harness.open(handle)"]
        if step.op == "pause":
            return ["await asyncio.sleep(0.002)"]
        agent = self.agent(step.agent)
        if step.op == "fork":
            given = [agent, *(f"{name}={self._point(name, value)}" for name, value in step.named)]
            call = f"{store}.fork({', '.join(given)})"
            if made.forks and not made.refused:
                return [f"{made.forks[0]} = await {call}"]
        elif step.op == "batch_fork":
            call = f"{store}.batch_fork({agent}, {step.args[0] if step.args else 1})"
            if not made.refused:
                return [f"{', '.join(made.forks)}{',' if len(made.forks) == 1 else ''} = await {call}"]
        elif step.op == "delete_many":
            call = f"{store}.delete_many({', '.join(self._filter(*pair) for pair in step.named)})"
        else:
            given = [self._value(arg, agent) for arg in step.args]
            given += [f"{name}={self._value(arg, agent)}" for name, arg in step.named]
            call = f"{store}.{step.op}({', '.join([agent, *given])})"
        return [f"await refused({made.refused!r}, {call})" if made.refused else f"await {call}"]

    def agent(self, name: str) -> str:
        """The id of an agent: a variable where the store made it."""
        return name if name in self._forks else repr(name)

    def _point(self, name: str, value: Any) -> str:
        if name == "new_id":
            return self.agent(value)
        return repr(values_of(value)[0] if isinstance(value, str) else value)

    def _filter(self, name: str, value: Any) -> str:
        if name == "agent_id":
            return f"agent_id={self.agent(value)}"
        return f"{name}={dict(value) if name == 'metadata' else value!r}"

    def _value(self, arg: Any, agent: str) -> str:
        if isinstance(arg, tuple):
            return f"[{', '.join(self._named(name, agent) for name in arg)}]"
        return self._named(arg, agent)

    def _named(self, name: Any, agent: str) -> str:
        if not isinstance(name, str) or name[0] == "=":
            return repr(name[1:] if isinstance(name, str) else name)
        if runs_of(name):
            return code_of(name)
        name, _, path = name.partition(":")
        self._names[name] = None
        value, variable = values_of(name)[0], _variable(name)
        if path:
            return f"{variable}.{path}"
        if isinstance(value, AgentInfo) and not value.agent_id:
            return f"{variable}.replace(agent_id={agent})"
        return variable

    def look(self, look: Look, want: object, via: int, made_up: Mapping[str, str]) -> Program:
        """Add a look, and its correct result; *made_up* are filters that the store is asked for."""
        self._lines += [f"{name} = {self._local(code)}" for name, code in made_up.items()]
        look = look._replace(filters={**look.filters, **{name: _Code(name) for name in made_up}})
        self._lines += [
            f"got = {self._local(look.code(_STORES[via]))}",
            f"want = {self._local(code_of(plain(want)))}",
            "found = difference(plain(got), want)",
            'assert found is None, f"{found}\\ngot:  {plain(got)}\\nwant: {want}"',
        ]
        return self

    def around_the_last(self, before: Sequence[str], after: Sequence[str]) -> Program:
        """Put lines around the last call."""
        last = next(i for i in reversed(range(len(self._lines))) if self._lines[i].endswith(f"# {self._count}"))
        self._lines[last : last + 1] = [*before, self._lines[last], *after]
        return self

    def _local(self, code: str) -> str:
        for name, fork_id in self._forks.items():
            code = code.replace(repr(fork_id), name)
        return code.replace(f"'{self._prefix}", "'") if self._prefix else code

    def __str__(self) -> str:
        """The program; only names in use are imported, opened and defined."""
        body = "\n".join(f"        {line}" for line in self._lines)
        values = [f"{_variable(name)} = {code_of(values_of(name)[0])}" for name in self._names]
        used = _names_in("\n".join([*values, f"async def main():\n{body}"]))
        stores = [store for store in _STORES if store == _STORES[0] or store in used]
        main = _MAIN.format(
            spec=self._spec,
            opened="\n".join(f"    {store} = await harness.open(handle)" for store in stores),
            body=body,
            closed="\n".join(f"        await {store}.close()" for store in stores),
        )
        used |= _names_in(main)
        numbers = [line for name, line in _NUMBERS.items() if name in used]
        return "\n".join([*_imports(used), *([""] if numbers or values else []), *numbers, *values, main])


def _names_in(code: str) -> set[str]:
    return {node.id for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)}


def _imports(used: set[str]) -> list[str]:
    """The lines that import the used names and the modules that every program needs."""
    found = ["import asyncio", "import tempfile", "from pathlib import Path", ""]
    for module, names in _IMPORTS.items():
        needed = [name for name in names if name in used]
        found += [f"from {module} import {', '.join(needed)}"] if needed else []
    return found


class _Code(str):
    """Python, which is its own repr."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _variable(name: str) -> str:
    return re.sub(r"\W", "_", name.replace("!", "_refused").replace("?", "_odd").replace("-", "_gone"))


# --- what programs use ------------------------------------------------------------------------------------------------


async def refused(error: str, call: Awaitable[object]) -> None:
    """The call must end with that error."""
    try:
        await call
    except Exception as exc:
        if error not in {kind.__name__ for kind in type(exc).__mro__}:
            raise
        return
    raise AssertionError(f"it must raise {error}")


async def see(store: Any, agent_id: str) -> None:
    """Read everything of an agent, as a program does that caches its reads."""
    for look in loads(agent_id, Known(), 0):
        await ask(store, look)
    if hasattr(store, "query_sessions"):
        for name in ("query_messages", "query_tool_calls", "query_sessions"):
            await getattr(store, name)(agent_id=agent_id)
        await store.aggregate_stats(agent_id)


async def offsets(store: Any, agent_id: str) -> list[int]:
    """The offsets of all events of an agent."""
    return sorted([event.offset async for event in store.read_events(agent_id)])


async def stamped(store: Any, agent_id: str) -> tuple[list[Message], list[int]]:
    """The messages of an agent and their times, by position."""
    found = await all_pages(store.query_messages, agent_id=agent_id, limit=10_000)
    found.sort(key=lambda message: message.position)
    return await store.load_messages(agent_id), [message.created_at for message in found]


def plain(answer: Any) -> Any:
    """An answer without the values that a store generates: times, offsets, and when a fork was made."""
    if isinstance(answer, (list, tuple)):
        return [plain(one) for one in answer]
    if isinstance(answer, StoredEvent):
        return _only(Timeline, answer)
    if isinstance(answer, StoredMessage):
        return [answer.agent_id, answer.position, _only(Message, answer)]
    if isinstance(answer, StoredToolCall):
        return [answer.agent_id, answer.position, _only(ToolCallRecord, answer)]
    if isinstance(answer, Document):
        return [answer.collection, answer.key, answer.value]
    if isinstance(answer, (SessionInfo, AgentInfo)):
        changes: dict[str, Any] = {"created_at": 0} if answer.agent_id.startswith("agt-") else {}
        changes |= {"updated_at": 0} if isinstance(answer, SessionInfo) else {}
        return _only(type(answer), answer, **changes)
    return answer


def _only(kind: Any, record: Any, **changes: Any) -> Any:
    fields = {name: getattr(record, name) for name in kind.__struct_fields__}
    return kind(**{**fields, **changes})
