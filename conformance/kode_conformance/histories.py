"""Random sequences of calls over very few agents and values, so that they meet: to write, to print and to shorten.

A step names its values (``m0``), so that a history is short to read and the same for every store; :data:`VALUES` says
what the names stand for.
"""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from kode_conformance import samples
from kode_core.errors import InvalidArgumentError, InvalidValueError
from kode_core.model import (
    AgentInfo,
    Bookmark,
    Message,
    Record,
    TextBlock,
    TodoSnapshot,
    ToolResultBlock,
    ToolUseBlock,
)

__all__ = ["REFUSED", "VALUES", "Step", "history", "shortest", "told"]

_NAN: Final = {"rows": [float("nan")]}

VALUES: Final[Mapping[str, Record]] = {
    "m0": Message.user(""),
    "m1": Message("user", [TextBlock("0")], metadata={}),
    "m2": Message("assistant", [ToolUseBlock("c0", "t", {})]),
    "m3": Message("user", [ToolResultBlock("c0", 0)], metadata={"b": None, "a": False}),
    "m4": Message("user", [ToolResultBlock("c0", False, is_error=False)], metadata={"a": False, "b": None}),
    "c0": samples.tool_call(0, result=0, error=""),
    "c0b": samples.tool_call(0, result=False, state="FAILED", is_error=None, created_at=samples.T0 + 9),
    "c1": samples.tool_call(1, result=None, audit_trail=[], created_at=samples.T0),
    "c1b": samples.approved_call(1),
    "t0": TodoSnapshot(todos=[], version=0, updated_at=0),
    "t1": samples.todos("", ""),
    "t2": samples.todos("x"),
    "e0": samples.event(0, value=0),
    "e0b": samples.event(0, value=False),
    "e0c": samples.event(0, "control", value=0),
    "e1": samples.event(1, cursor=0, value=0),
    "e1b": samples.event(1, cursor=1, value=0),
    "e2": samples.event(2, "monitor", value={}),
    "w0": samples.window("w0", 0),
    "w0b": samples.window("w0", 2).replace(messages=[], events=[]),
    "w1": samples.window("w1", 0),
    "p0": samples.compression("p0", 1).replace(ratio=0),
    "p0b": samples.compression("p0", 0).replace(ratio=-0.0, summary="", recovered_files=[]),
    "p1": samples.compression("p1", 1).replace(ratio=1 / 3),
    "r0": samples.recovered("a/b", 0, content=""),
    "r0b": samples.recovered("a/b", 1).replace(mtime=0),
    "r0c": samples.recovered("a/b", 0).replace(mtime=-0.0),
    "r1": samples.recovered("a_b", 0),
    "d0": samples.media("k"),
    "d0b": samples.media("k").replace(size_bytes=0, file_id="", created_at=0),
    "s0": samples.snapshot("s0", 0),
    "s0b": samples.snapshot("s0", 1, count=0).replace(metadata={}, last_bookmark=None),
    "s1": samples.snapshot("s1", 1).replace(metadata=None),
    "i0": AgentInfo(agent_id="", template_id="t0", created_at=0, message_count=99, metadata={"userId": "", "k": 0}),
    "i1": AgentInfo(agent_id="", template_id="t1", created_at=5, last_bookmark=Bookmark(0, 0), metadata={"k": False}),
    "i2": AgentInfo(agent_id="", template_id="t0", created_at=0, lineage=["z", "z"], breakpoint="", metadata={}),
    "m!": Message("assistant", [ToolUseBlock("c0", "t", _NAN)]),
    "c!": samples.tool_call(0, result=_NAN),
    "e!": samples.event(3, value=_NAN),
    "i!": AgentInfo(agent_id="", template_id="t0", created_at=0, metadata=_NAN),
    "i?": AgentInfo(agent_id="somebody else", template_id="t0", created_at=0),
}
"""What a name in a history stands for. The ids of agents and templates are put in when the step is made."""

REFUSED: Final = {
    "m!": InvalidValueError,
    "c!": InvalidValueError,
    "e!": InvalidValueError,
    "i!": InvalidValueError,
    "i?": InvalidArgumentError,
}
"""Values that no store may take, and what it raises."""


class Step(NamedTuple):
    """One call.

    Attributes:
        op: the method, or ``reopen``.
        agent: ``a``, ``A``, ``ab``, or ``f1`` for the first fork.
        args: names of values, or lists of them.
        named: the same, for ``save_turn``.
        via: which of the two open stores makes the call.
        seen_by: which of them is looked at afterwards.
    """

    op: str
    agent: str
    args: tuple[Any, ...] = ()
    named: tuple[tuple[str, Any], ...] = ()
    via: int = 0
    seen_by: int = 0

    def __str__(self) -> str:
        given = [_shown(arg) for arg in self.args] + [f"{name}={_shown(arg)}" for name, arg in self.named]
        if self.op == "reopen":
            return f"close store {self.via + 1} and open it again"
        return f"store {self.via + 1}: {self.op}({', '.join([self.agent, *given])})"

    def names(self) -> Iterator[str]:
        """The values it names."""
        for arg in (*self.args, *(arg for _, arg in self.named)):
            if isinstance(arg, str):
                yield arg
            elif isinstance(arg, tuple):
                yield from arg


def _shown(arg: Any) -> str:
    return f"[{', '.join(arg)}]" if isinstance(arg, tuple) else str(arg)


def told(steps: Sequence[Step]) -> str:
    """A history for a person: numbered calls, then the values they name."""
    lines = [f"  {i}. {step}" for i, step in enumerate(steps, 1)]
    names = dict.fromkeys(name for step in steps for name in step.names() if name in VALUES)
    return "\n".join([*lines, *(f"  {name} = {VALUES[name]!r:.400}" for name in names)])


# --- Making histories -------------------------------------------------------------------------------------------------

_LISTS: Final = {"messages": ("m0", "m1", "m2", "m3", "m4"), "tool_calls": ("c0", "c0b", "c1", "c1b")}
_EVENTS: Final = ("e0", "e0b", "e0c", "e1", "e1b", "e2")
_SINGLE: Final = {
    "save_todos": ("t0", "t1", "t2"),
    "append_event": _EVENTS,
    "save_history_window": ("w0", "w0b", "w1"),
    "save_compression_record": ("p0", "p0b", "p1"),
    "save_recovered_file": ("r0", "r0b", "r0c", "r1"),
    "save_snapshot": ("s0", "s0b", "s1"),
    "save_info": ("i0", "i1", "i2"),
}
_WEIGHTS: Final = {
    "save_messages": 9,
    "append_messages": 5,
    "save_tool_call_records": 5,
    "upsert_tool_call_records": 5,
    "save_turn": 6,
    "save_todos": 2,
    "append_event": 5,
    "append_events": 3,
    "save_history_window": 2,
    "save_compression_record": 2,
    "save_recovered_file": 3,
    "save_media_cache": 2,
    "save_snapshot": 3,
    "save_info": 5,
    "delete": 2,
    "refused": 3,
}


def history(rng: random.Random, steps: int, more: Mapping[str, int]) -> list[Step]:
    """A random history; *more* has the weights of calls beyond those of every store.

    Most histories are of a few kinds of calls only, each made often: faults that need the same call time and again, or
    two kinds in turns, are rare where everything is called.
    """
    weights = {**_WEIGHTS, **more}
    if rng.random() < 0.8:
        kinds = {"delete", *rng.sample(list(weights), rng.randint(2, 5)), *rng.sample(list(more), min(1, len(more)))}
        weights = {op: weight for op, weight in weights.items() if op in kinds}
    return _Generator(rng, weights).make(steps)


class _Generator:
    """Makes steps. It knows what the lists hold, so that most saves are what a program makes of a list."""

    def __init__(self, rng: random.Random, weights: Mapping[str, int]) -> None:
        self._rng = rng
        self._weights = weights
        self._lists: dict[tuple[str, str], tuple[str, ...]] = {}
        self._agents = ["a", "A", "ab"][: rng.choice((1, 2, 3, 3))]
        self._stores = rng.choice((1, 2, 2))
        self._forks = 0

    def make(self, steps: int) -> list[Step]:
        rng, stores = self._rng, self._stores
        ops = rng.choices(list(self._weights), list(self._weights.values()), k=steps)
        return [self._step(op)._replace(via=rng.randrange(stores), seen_by=rng.randrange(2)) for op in ops]

    def _step(self, op: str) -> Step:
        agent = self._rng.choices(self._agents, [6, 2, 1, 1, 1, 1][: len(self._agents)])[0]
        if op in _SINGLE:
            return Step(op, agent, (self._rng.choice(_SINGLE[op]),))
        made: Step = getattr(self, f"_{op}")(agent)
        return made

    def _some(self, names: Sequence[str], most: int = 3) -> tuple[str, ...]:
        return tuple(self._rng.choices(names, k=self._rng.randint(0, most)))

    def _edited(self, agent: str, kind: str) -> tuple[str, ...]:
        """The list with more at the end, some gone, one changed, moved or put in between; or any list."""
        old = list(self._lists.get((agent, kind), ()))
        fresh, at = self._some(_LISTS[kind]), self._rng.randint(0, len(old))
        choices = [
            (*old, *fresh),
            (*old[:at], *fresh[:1], *old[at + 1 :]),
            (*old[:at], *fresh, *old[at:]),
            (*old[at:], *fresh),
            tuple(old[:at]),
            (*old[at:], *old[:at]),
            fresh,
        ]
        new = self._rng.choices(choices, [4, 2, 1, 2, 1, 1, 1])[0][:6]
        self._lists[agent, kind] = new
        return new

    def _save_messages(self, agent: str) -> Step:
        return Step("save_messages", agent, (self._edited(agent, "messages"),))

    def _append_messages(self, agent: str) -> Step:
        fresh = self._some(_LISTS["messages"], 2)
        self._lists[agent, "messages"] = (*self._lists.get((agent, "messages"), ()), *fresh)
        return Step("append_messages", agent, (fresh,))

    def _save_tool_call_records(self, agent: str) -> Step:
        return Step("save_tool_call_records", agent, (self._edited(agent, "tool_calls"),))

    def _upsert_tool_call_records(self, agent: str) -> Step:
        return Step("upsert_tool_call_records", agent, (self._some(_LISTS["tool_calls"]),))

    def _append_events(self, agent: str) -> Step:
        return Step("append_events", agent, (self._some(_EVENTS),))

    def _save_media_cache(self, agent: str) -> Step:
        return Step("save_media_cache", agent, (self._some(("d0", "d0b")),))

    def _save_turn(self, agent: str) -> Step:
        rng = self._rng
        messages = ("messages", self._edited(agent, "messages")), ("append", self._some(_LISTS["messages"]))
        calls = (
            ("tool_calls", self._edited(agent, "tool_calls")),
            ("upsert_tool_calls", self._some(("c0", "c0b", "c1"))),
        )
        parts = (
            rng.choice(messages),
            rng.choice(calls),
            ("todos", rng.choice(_SINGLE["save_todos"])),
            ("info", rng.choice(_SINGLE["save_info"])),
            ("events", self._some(_EVENTS)),
        )
        return Step("save_turn", agent, named=tuple(part for part in parts if rng.random() < 0.5))

    def _delete(self, agent: str) -> Step:
        for kind in _LISTS:
            self._lists.pop((agent, kind), None)
        return Step("delete", agent)

    def _delete_many(self, agent: str) -> Step:
        return Step("delete_many", agent, (self._rng.choice(("t0", "t1")),))

    def _batch_fork(self, agent: str) -> Step:
        if len(self._agents) < 6:
            self._forks += 1
            self._agents.append(f"f{self._forks}")
        return Step("batch_fork", agent)

    def _reopen(self, agent: str) -> Step:
        return Step("reopen", agent)

    def _refused(self, agent: str) -> Step:
        return self._rng.choice(
            (
                Step("save_messages", agent, (("m0", "m!"),)),
                Step("append_messages", agent, (("m0", "m!"),)),
                Step("upsert_tool_call_records", agent, (("c0", "c!"),)),
                Step("append_events", agent, (("e2", "e!"),)),
                Step("save_info", agent, (self._rng.choice(("i!", "i?")),)),
                Step("save_turn", agent, named=(("append", ("m0",)), ("todos", "t0"), ("events", ("e!",)))),
            )
        )


# --- Shortening -------------------------------------------------------------------------------------------------------

Fails = Callable[[list[Step]], Awaitable[bool]]


async def shortest(steps: list[Step], fails: Fails, seconds: float) -> list[Step]:
    """A shorter history that still *fails*, as short as *seconds* allow."""
    until = time.monotonic() + seconds
    again = True
    while again:
        again = False
        for candidate in _shorter(steps):
            if time.monotonic() > until:
                return steps
            if await fails(candidate):
                steps, again = candidate, True
                break
    return steps


def _shorter(steps: list[Step]) -> Iterator[list[Step]]:
    """Simpler histories, the boldest first."""
    size = len(steps) // 2
    while size:
        for start in range(len(steps) - size, -1, -size):
            yield steps[:start] + steps[start + size :]
        size //= 2
    for i, step in enumerate(steps):
        for simpler in _simpler(step):
            yield [*steps[:i], simpler, *steps[i + 1 :]]


def _simpler(step: Step) -> Iterator[Step]:
    if step.via:
        yield step._replace(via=0)
    if step.seen_by:
        yield step._replace(seen_by=0)
    for i in range(len(step.named)):
        yield step._replace(named=(*step.named[:i], *step.named[i + 1 :]))
    for i, arg in enumerate(step.args):
        for shorter in _without_one(arg):
            yield step._replace(args=(*step.args[:i], shorter, *step.args[i + 1 :]))
    for i, (name, arg) in enumerate(step.named):
        for shorter in _without_one(arg):
            yield step._replace(named=(*step.named[:i], (name, shorter), *step.named[i + 1 :]))


def _without_one(arg: Any) -> Iterator[tuple[str, ...]]:
    if isinstance(arg, tuple):
        for i in range(len(arg)):
            yield arg[:i] + arg[i + 1 :]
