"""Searches all that can happen to those who take part in :mod:`tests.record_model`, breadth first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from tests.record_disk import (
    LOST,
    Apply,
    Call,
    Calls,
    Choose,
    Disk,
    Drop,
    DropParts,
    Heads,
    PutParts,
    Rules,
    Settle,
    Swap,
    Value,
    perform,
)
from tests.record_model import CORRUPT, Refused, Saw, Write, Wrote, collect, read, write

__all__ = ["Fault", "Found", "explore"]

Actor: TypeAlias = Callable[[Rules], Calls]


class Fault(NamedTuple):
    """What went wrong, and after which calls."""

    kind: str
    text: str
    trace: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n".join([f"{self.kind}: {self.text}", *self.trace])


class Found(NamedTuple):
    """How much was searched, and what was found first."""

    states: int
    fault: Fault | None


class _Node(NamedTuple):
    """Where an actor is: the answers that it had; its next call, or its result."""

    actor: int
    answers: tuple[Any, ...]
    call: Call | None
    result: Any


class _Actors:
    """All that actors may be doing, by number. One is begun anew, and given the answers, to see what it does next."""

    def __init__(self, actors: Sequence[Actor], rules: Rules) -> None:
        self._actors, self._rules = actors, rules
        self.nodes: list[_Node] = []
        self._numbers: dict[tuple[int, Any], int] = {}
        self._next: dict[tuple[int, Any], int] = {}
        self.first = tuple(self._of(n, ()) for n in range(len(actors)))

    def _of(self, actor: int, answers: tuple[Any, ...]) -> int:
        calls = self._actors[actor](self._rules)
        call, result = None, None
        try:
            call = next(calls)
            for answer in answers:
                call = calls.send(answer)
        except StopIteration as end:
            call, result = None, end.value
        key = (actor, _frames(calls) if call is not None else ("ended", result))
        if key not in self._numbers:
            self._numbers[key] = len(self.nodes)
            self.nodes.append(_Node(actor, answers, call, result))
        return self._numbers[key]

    def after(self, number: int, answer: Any) -> int:
        key = (number, answer)
        if key not in self._next:
            node = self.nodes[number]
            self._next[key] = self._of(node.actor, (*node.answers, answer))
        return self._next[key]


def _frames(calls: Any) -> tuple[Any, ...]:
    """Where a generator is, and what it knows: one that is there with the same values goes on in the same way.

    An iterator is not among the values: a loop's variable has to tell how far the loop is.
    """
    frames: list[Any] = []
    while calls is not None:
        frame = calls.gi_frame
        values = ((name, tuple(v.items()) if isinstance(v, dict) else v) for name, v in frame.f_locals.items())
        frames += [frame.f_lasti, tuple(sorted((n, v) for n, v in values if not isinstance(v, Rules)))]
        calls = calls.gi_yieldfrom
    return tuple(frames)


_State: TypeAlias = tuple[int, tuple[int, ...], int]
"""The number of what is stored, those of what the actors do, and how much trouble there may still be."""
_NOBODY: Final = -1


class _Search:
    def __init__(self, disk: Disk, actors: Sequence[Actor], rules: Rules, trouble: frozenset[str]) -> None:
        self.rules, self.trouble = rules, trouble
        self.actors = _Actors(actors, rules)
        self.disks: list[Disk] = []
        self._numbers: dict[Disk, int] = {}
        self._outcomes: dict[tuple[int, int], list[tuple[Any, int, int]]] = {}
        self.first = self.number(disk)

    def number(self, disk: Disk) -> int:
        found = self._numbers.get(disk)
        if found is None:
            found = self._numbers[disk] = len(self.disks)
            self.disks.append(disk)
        return found

    def outcomes(self, disk: int, node: int) -> list[tuple[int, int, int]]:
        """What may become of an actor's next call: its next node, what is stored, and how much trouble that was."""
        key = (disk, node)
        if key not in self._outcomes:
            call = self.actors.nodes[node].call
            assert call is not None
            self._outcomes[key] = [
                (self.actors.after(node, answer), self.number(now), cost)
                for answer, now, cost in self._possible(self.disks[disk], call)
            ]
        return self._outcomes[key]

    def _possible(self, disk: Disk, call: Call) -> Iterator[tuple[Any, Disk, int]]:
        if isinstance(call, Choose):
            yield from ((choice, disk, 0) for choice in call.of)
            return
        answer, now = perform(disk, call, self.rules)
        yield answer, now, 0
        if isinstance(call, Heads):
            if disk.weak is not None:  # one member has acknowledged the settle, a majority has not
                yield disk.weak, disk, 0
            if "stale" in self.trouble and not call.is_current:
                yield from ((commit.head, disk, 1) for commit in disk.log[:-1])
        if isinstance(call, Swap) and "lost" in self.trouble:
            yield from ((LOST, after, 1) for after in {now, disk})
            if disk.late is None:
                yield LOST, disk._replace(late=call), 1
        if (
            isinstance(call, Apply | PutParts | Settle | Drop | DropParts)
            and "late" in self.trouble
            and disk.late is None
        ):
            yield answer, now._replace(late=call), 1

    def next(self, nodes: tuple[int, ...]) -> list[tuple[int, int]]:
        """Those that may go on. A choice is no call: when it is made is all the same to others."""
        going = [(place, node) for place, node in enumerate(nodes) if self.actors.nodes[node].call is not None]
        return [one for one in going if isinstance(self.actors.nodes[one[1]].call, Choose)][:1] or going

    def by_itself(self, number: int) -> Iterator[tuple[str, int, int]]:
        """What happens while nobody calls."""
        disk = self.disks[number]
        if disk.late is not None:
            now = perform(disk._replace(late=None), disk.late, self.rules)[1]
            yield f"late: {disk.late}", self.number(now), 0
        if disk.weak is not None and "rollback" in self.trouble:
            yield f"rolled back: {disk.weak}", self.number(disk._replace(head=disk.weak, weak=None)), 1


def explore(disk: Disk, actors: Sequence[Actor], rules: Rules, *, trouble: Sequence[str] = (), times: int = 1) -> Found:
    """Search all states that can be reached, until a fault is found.

    Args:
        trouble: ``lost`` answers, ``late`` calls, ``stale`` reads of heads, ``rollback`` of a settle.
        times: how much of that may happen in one run.
    """
    search = _Search(disk, actors, rules, frozenset(trouble))
    first: _State = (search.first, search.actors.first, times)
    before: dict[_State, tuple[_State, int] | None] = {first: None}
    judged = set[int]()
    level = [first]
    while level:
        found: list[_State] = []
        for state in level:
            number, nodes, left = state
            if number not in judged:
                judged.add(number)
                fault = afterwards(search.disks[number], rules)
                if fault is not None:
                    return Found(len(before), fault._replace(trace=_trace(search, before, state)))
            for place, node in search.next(nodes):
                for after, now, cost in search.outcomes(number, node):
                    if cost > left:
                        continue
                    next_state = (now, (*nodes[:place], after, *nodes[place + 1 :]), left - cost)
                    if next_state not in before:
                        before[next_state] = (state, place)
                        found.append(next_state)
                        ended = search.actors.nodes[after]
                        if ended.call is None:
                            fault = judge(ended.result, search.disks[now])
                            if fault is not None:
                                return Found(len(before), fault._replace(trace=_trace(search, before, next_state)))
            for _, now, cost in search.by_itself(number):
                next_state = (now, nodes, left - cost)
                if cost <= left and next_state not in before:
                    before[next_state] = (state, _NOBODY)
                    found.append(next_state)
        level = found
    return Found(len(before), None)


def _trace(search: _Search, before: dict[_State, Any], state: _State) -> tuple[str, ...]:
    steps: list[str] = []
    while (step := before[state]) is not None:
        earlier, place = step
        if place == _NOBODY:
            steps += [what for what, now, _ in search.by_itself(earlier[0]) if now == state[0]]
        else:
            call = search.actors.nodes[earlier[1][place]].call
            node = search.actors.nodes[state[1][place]]
            steps.append(f"{place}: {call} -> {node.answers[-1] if node.call else node.result}")
        state = earlier
    return tuple(reversed(steps))


# --- The judge --------------------------------------------------------------------------------------------------------


def judge(result: Any, disk: Disk) -> Fault | None:
    """Whether an actor may end so."""
    if result == CORRUPT:
        return Fault("unreadable", "a reader took the agent for damaged")
    if isinstance(result, Saw):
        values = [commit.value for commit in disk.log if commit.head.rev >= result.began]
        if result.value not in values:
            return Fault("torn", f"a reader saw {result.value}; from when it began the agent was {values}")
    if isinstance(result, Wrote) and not {commit.op for commit in disk.log}.issuperset(result.ops):
        return Fault("lost", f"a writer was told that {result.ops} is done")
    if isinstance(result, Refused):
        then = next(dict(commit.value) for commit in disk.log if commit.head.rev == result.rev)
        if result.key not in then or result.op in {commit.op for commit in disk.log}:
            return Fault("refused", f"a writer was told {result}; the agent was {then}")
    return None


def alone(actor: Calls, disk: Disk, rules: Rules) -> tuple[Any, Disk]:
    """What somebody does whom nobody disturbs."""
    answer: Any = None
    while True:
        try:
            call = actor.send(answer)
        except StopIteration as end:
            return end.value, disk
        if isinstance(call, Choose):
            answer = call.of[0]
        else:
            answer, disk = perform(disk, call, rules)


def afterwards(disk: Disk, rules: Rules) -> Fault | None:
    """Everybody died just now: whether readers see what was committed, nothing else is left, and a delete works."""
    ops = [commit.op for commit in disk.log if commit.op is not None]
    if len(ops) > len(set(ops)):
        return Fault("doubled", f"{ops} were committed")
    for before, commit in pairwise(disk.log):
        if commit.absent in dict(before.value):
            return Fault("unmet", f"{commit.op} demands that there is no {commit.absent}, and the agent was {before}")
    fault = _seen(disk, disk.log[-1].value, rules)
    if fault is not None:
        return fault
    disk = alone(collect(rules), disk, rules)[1]
    fault = _seen(disk, disk.log[-1].value, rules) or _left(disk, disk.log[-1].value)
    if fault is not None:
        return fault
    disk = alone(write(rules, Write("last", is_delete=True)), disk, rules)[1]
    return _seen(disk, (), rules) or _left(disk, ())


def _seen(disk: Disk, value: Value, rules: Rules) -> Fault | None:
    ways: tuple[Literal["list", "documents"], ...] = ("list", "documents")
    for how in ways:
        saw = alone(read(rules, how=how), disk, rules)[0]
        if not isinstance(saw, Saw):
            return Fault("unreadable", f"the agent is {saw} for all who come, and is {value}")
        if saw.value != value:
            return Fault("torn", f"all who come see {saw.value}, and the agent is {value}")
    return None


def _left(disk: Disk, value: Value) -> Fault | None:
    head = disk.head
    if not head.is_settled:
        return Fault("unsettled", f"nobody can settle {head}")
    tombstones = {(at, row) for at, row in disk.rows if at == head.epoch and row.value is None}
    rows = [(at, row) for at, row in disk.rows - tombstones if at != head.epoch or (row.key, row.value) not in value]
    return Fault("left", f"nobody removes {[*rows, *disk.parts]}") if rows or disk.parts else None
