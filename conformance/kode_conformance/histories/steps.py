"""Random sequences of calls over very few agents and values, so that they meet: to write and to print.

A step names its values (``m0``), so that a history is short to read and the same for every store; what the names stand
for is in :mod:`kode_conformance.histories.vocabulary`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, cast

from kode_conformance.histories.model import has_repeats
from kode_conformance.histories.vocabulary import FAMILIES, REFUSED, run, values_of
from kode_core.errors import InvalidArgumentError
from kode_core.model import Timeline

__all__ = ["Step", "history", "listed", "refusal_of"]


class Step(NamedTuple):
    """One call.

    Attributes:
        op: the method, or ``reopen``; ``look`` at all agents, or ``prime`` what stores remember of them; ``pause``; or
            an action on a lock: ``acquire``, ``release``, ``release_old``, ``lapse``.
        agent: ``a``, ``A``, ``ab``, or ``f1`` for the first fork.
        args: names of values, or lists of them; the number of forks.
        named: the same, for ``save_turn``; filters of ``delete_many``.
        via: which of the open stores makes the call.
        seen_by: which of them is looked at afterwards; none if it is negative.
        fence: ``held`` or ``ended``: the lease that the write is made under.
    """

    op: str
    agent: str
    args: tuple[Any, ...] = ()
    named: tuple[tuple[str, Any], ...] = ()
    via: int = 0
    seen_by: int = 0
    fence: str = ""

    def __str__(self) -> str:
        given = [_shown(arg) for arg in self.args] + [f"{name}={_shown(arg)}" for name, arg in self.named]
        if self.op == "reopen":
            return f"close store {self.via + 1} and open it again"
        if self.op == "pause":
            return "wait for two milliseconds"
        if self.op in ("look", "prime"):
            return "look at everything"
        under = f" under a lease that is {self.fence}" if self.fence else ""
        given = given if self.op == "delete_many" else [self.agent, *given]
        return f"store {self.via + 1}: {self.op}({', '.join(given)}){under}"

    def names(self) -> Iterator[str]:
        """The values it names."""
        if self.op == "delete_many":
            return
        for arg in (*self.args, *(arg for _, arg in self.named)):
            if isinstance(arg, str):
                yield arg
            elif isinstance(arg, tuple):
                yield from arg


def refusal_of(step: Step) -> type[Exception] | None:
    """The error that a store must raise for a value that no store may take, or for an event that occurs twice; None for
    neither.
    """
    for name in step.names():
        if name in REFUSED:
            return REFUSED[name]
    events = step.args[0] if step.op == "append_events" else dict(step.named).get("events", ())
    if has_repeats([cast(Timeline, value) for name in events for value in values_of(name)]):
        return InvalidArgumentError
    return None


def _shown(arg: Any) -> str:
    return f"[{', '.join(arg)}]" if isinstance(arg, tuple) else str(arg)


def listed(steps: Sequence[Step], *, values: bool = True) -> str:
    """A history for a person: numbered calls, then the *values* they name."""
    lines = [f"  {i}. {step}" for i, step in enumerate(steps, 1)]
    if not values:
        return "\n".join(lines)
    names = dict.fromkeys(name for step in steps for name in step.names())
    single = {name: values_of(name)[0] for name in names if "#" not in name}
    return "\n".join([*lines, *(f"  {name} = {value!r:.400}" for name, value in single.items())])


# --- Making histories -------------------------------------------------------------------------------------------------

_POOLS: Final = {
    "m": ("m0", "m1", "m2", "m3", "m4"),
    "c": ("c0", "c0b", "c1", "c1b", "c1c"),
    "t": ("t0", "t1", "t2"),
    "e": ("e0", "e0b", "e0c", "e1", "e1b", "e2"),
    "w": ("w0", "w0b", "w1"),
    "p": ("p0", "p0b", "p1"),
    "r": ("r0", "r0b", "r0c", "r1"),
    "d": ("d0", "d0b"),
    "s": ("s0", "s0b", "s1"),
    "i": ("i0", "i1", "i2"),
}
_SINGLE: Final = {
    "save_todos": "t",
    "append_event": "e",
    "save_history_window": "w",
    "save_compression_record": "p",
    "save_recovered_file": "r",
    "save_snapshot": "s",
    "save_info": "i",
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
    "save_media_cache": 3,
    "save_snapshot": 3,
    "save_info": 5,
    "delete": 3,
    "refused": 3,
}
_NAMES: Final = (
    ("a", "A", "ab"),
    ("a", "A", "ab"),
    ("a/b", "a_b", "a%b"),
    ("x", "x/fork-1", "x "),
    ("AaAa", "BBBB", "AaBB"),
    ("é", "e\u0301", "e"),
    ("😀", "😁", "\U0001f601x"),
    ("a*", "a?", "a[0]"),
    ("1", "01", "1.0"),
)
"""Agents of one history: few, and easily confused."""
_SIZES: Final = (101, 501, 1001)


def history(
    rng: random.Random, steps: int, more: Mapping[str, int], *, stores: int = 2, large: bool = False
) -> list[Step]:
    """A random history; *more* has the weights of additional calls.

    Most histories have only a few kinds of calls, each made often: faults that need the same call time and again, or
    two kinds in turns, are rare where everything is called.

    Args:
        rng: where everything random comes from.
        steps: how many.
        more: calls by name, and how often they are made next to the others.
        stores: how many make the calls.
        large: now and then a list or a burst is longer than the usual limits.
    """
    weights = {**_WEIGHTS, **more}
    if rng.random() < 0.8:
        own = rng.sample(list(more), min(rng.choice((1, 2)), len(more)))
        kinds = {"delete", *own, *rng.sample(list(_WEIGHTS), rng.randint(2, 4))}
        weights = {op: weight for op, weight in weights.items() if op in kinds}
    return _Generator(rng, weights, stores, large).make(steps)


class _Generator:
    """Makes steps. It knows what the lists hold, so that most saves are what a program makes of a list."""

    def __init__(self, rng: random.Random, weights: Mapping[str, int], stores: int, large: bool) -> None:
        self._rng = rng
        self._weights = weights
        self._lists: dict[tuple[str, str], tuple[str, ...]] = {}
        self._agents = list(rng.choice(_NAMES))[: rng.choice((1, 2, 3, 3))]
        self._stores = rng.choice((1, stores, stores))
        self._forks = 0
        self._large = large
        self._pools = {kind: self._pool(kind) for kind in _POOLS}

    def _pool(self, kind: str) -> tuple[str, ...]:
        """The values of the history: in every third one two of a family that are neighbours in its table, too."""
        rng, base = self._rng, _POOLS[kind]
        families = [family for family in FAMILIES if family[0] == kind]
        if not families or rng.random() < 0.67:
            return base
        at, family = rng.randrange(200), rng.choice(families)
        return (*base, f"{family}{at}", f"{family}{at + 1}")

    def make(self, steps: int) -> list[Step]:
        rng, stores = self._rng, self._stores
        ops = rng.choices(list(self._weights), list(self._weights.values()), k=steps)
        made = [self._step(op)._replace(via=rng.randrange(stores), seen_by=rng.randrange(stores)) for op in ops]
        if self._large:
            made.insert(rng.randrange(len(made) // 2 + 1), self._burst()._replace(via=rng.randrange(stores)))
        return made

    def _step(self, op: str) -> Step:
        agent = self._rng.choices(self._agents, [6, 2, 1, 1, 1, 1, 1, 1][: len(self._agents)])[0]
        if op in _SINGLE:
            return Step(op, agent, (self._rng.choice(self._pools[_SINGLE[op]]),), fence=self._fence())
        make = getattr(self, f"_{op}", None)
        made: Step = Step(op, agent) if make is None else make(agent)
        return made._replace(fence=self._fence()) if op.startswith(("save_", "append_", "upsert_")) else made

    def _fence(self) -> str:
        return self._rng.choice(("", "held", "ended")) if "acquire" in self._weights else ""

    def _burst(self) -> Step:
        """A list or a burst that crosses a limit."""
        count = self._rng.choice(_SIZES)
        method = self._rng.choice(("save_messages", "append_messages", "save_tool_call_records", "append_events"))
        kind = {"save_messages": "m", "append_messages": "m", "append_events": "e"}.get(method, "c")
        return Step(method, self._agents[0], ((run(kind, 0, count),),))

    def _some(self, kind: str, most: int = 3) -> tuple[str, ...]:
        return tuple(self._rng.choices(self._pools[kind], k=self._rng.randint(0, most)))

    def _distinct(self, kind: str, most: int = 3) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self._some(kind, most)))

    def _edited(self, agent: str, kind: str) -> tuple[str, ...]:
        """The list with more at the end, some gone, one changed, moved or put in between; or any list."""
        old = list(self._lists.get((agent, kind), ()))
        fresh, at = self._some(kind), self._rng.randint(0, len(old))
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
        return Step("save_messages", agent, (self._edited(agent, "m"),))

    def _append_messages(self, agent: str) -> Step:
        fresh = self._some("m", 2)
        self._lists[agent, "m"] = (*self._lists.get((agent, "m"), ()), *fresh)
        return Step("append_messages", agent, (fresh,))

    def _save_tool_call_records(self, agent: str) -> Step:
        return Step("save_tool_call_records", agent, (self._edited(agent, "c"),))

    def _upsert_tool_call_records(self, agent: str) -> Step:
        return Step("upsert_tool_call_records", agent, (self._some("c"),))

    def _append_events(self, agent: str) -> Step:
        return Step("append_events", agent, (self._distinct("e"),))

    def _save_media_cache(self, agent: str) -> Step:
        return Step("save_media_cache", agent, (self._some("d"),))

    def _save_turn(self, agent: str) -> Step:
        rng = self._rng
        messages = ("messages", self._edited(agent, "m")), ("append", self._some("m"))
        calls = ("tool_calls", self._edited(agent, "c")), ("upsert_tool_calls", self._some("c"))
        parts = (
            rng.choice(messages),
            rng.choice(calls),
            ("todos", rng.choice(self._pools["t"])),
            ("info", rng.choice(self._pools["i"])),
            ("events", self._distinct("e")),
        )
        return Step("save_turn", agent, named=tuple(part for part in parts if rng.random() < 0.5))

    def _delete(self, agent: str) -> Step:
        for kind in _POOLS:
            self._lists.pop((agent, kind), None)
        return Step("delete", agent)

    def _delete_many(self, agent: str) -> Step:
        """Delete by the template, which belongs to this history alone, and one more filter; or by the agent."""
        template = ("template_id", self._rng.choice(("t0", "t1")))
        filters = (
            (("agent_id", agent),),
            (template,),
            (template, ("user_id", "")),
            (template, ("metadata", (("k", 0),))),
            (template, ("metadata", (("k", False),))),
            (template, ("created_after", 5)),
            (template, ("created_before", 5)),
        )
        return Step("delete_many", agent, named=self._rng.choice(filters))

    def _batch_fork(self, agent: str) -> Step:
        count = self._rng.choice((1, 1, 2, 3))
        for _ in range(count):
            self._forks += 1
            if len(self._agents) < 8:
                self._agents.append(f"f{self._forks}")
        return Step("batch_fork", agent, (count,))

    def _refused(self, agent: str) -> Step:
        return self._rng.choice(
            (
                Step("save_messages", agent, (("m0", "m!"),)),
                Step("append_messages", agent, (("m0", "m!"),)),
                Step("upsert_tool_call_records", agent, (("c0", "c!"),)),
                Step("append_events", agent, (("e2", "e!"),)),
                self._rng.choice(
                    (
                        Step("append_events", agent, (("e2", "e0b", "e1b", "e0b"),)),
                        Step("save_turn", agent, named=(("append", ("m0",)), ("events", ("e1", "e1")))),
                    )
                ),
                Step("save_info", agent, (self._rng.choice(("i!", "i?")),)),
                Step("save_turn", agent, named=(("append", ("m0",)), ("info", "i?"))),
                Step("save_turn", agent, named=(("append", ("m0",)), ("todos", "t0"), ("events", ("e!",)))),
            )
        )
