"""Every kind of change that each method can make to a small, full state, as steps of histories."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from kode_conformance.histories.steps import Step
from kode_conformance.histories.variants import names_of

__all__ = ["CHANGES", "Change", "chains", "full_state"]

_UNSEEN: Final = -1
_LEARNED: Final = -2
"""Looks at nothing, and only learns the times that the store gave."""


class Change(NamedTuple):
    """A change, and the calls that restore its initial state.

    Attributes:
        name: a description for people.
        restore: calls to make before; nothing where the whole state is made anew.
        steps: the change.
    """

    name: str
    restore: Sequence[Step]
    steps: Sequence[Step]


_M: Final = ("m0", "m2", "m.", "m3", "m0", "m1")
"""Messages that the state begins with, one of them twice."""
_C: Final = ("c0", "c.", "c0b", "c1c")
"""The tool calls of the state: an id twice, two with one time."""
_DOCUMENTS: Final[Mapping[str, tuple[str, ...]]] = {
    "save_history_window": ("w0", "w.", "w1"),
    "save_compression_record": ("p0", "p.", "p1"),
    "save_recovered_file": ("r0", "r.", "r1"),
    "save_snapshot": ("s0", "s.", "s1"),
}


_PAUSE: Final = Step("pause", "a", seen_by=_UNSEEN)
_AGES: Final = (
    Step("save_messages", "a", ((),), seen_by=_UNSEEN),
    Step("save_messages", "a", (_M[:2],), seen_by=_UNSEEN),
    _PAUSE,
    Step("append_messages", "a", (_M[2:4],), seen_by=_UNSEEN),
    _PAUSE,
    Step("append_messages", "a", (_M[4:],), seen_by=_LEARNED),
    _PAUSE,
)
"""The messages of the state, of three different times."""


def full_state(agent: str) -> list[Step]:
    """Calls that give an agent some of everything."""
    turn = (("messages", _M), ("tool_calls", _C), ("todos", "t."), ("info", "i."), ("events", ("e0", "e1", "e2")))
    return [
        Step("save_turn", agent, named=turn, seen_by=_UNSEEN),
        *(Step(op, agent, (name,), seen_by=_UNSEEN) for op, names in _DOCUMENTS.items() for name in names),
        Step("save_media_cache", agent, (("d0", "d."),), seen_by=_UNSEEN),
    ]


def _of_lists() -> Iterator[Change]:
    """Of messages and tool calls: each way to edit a list, each field, by each method."""
    for op, part, base, letter in (
        ("save_messages", "messages", _M, "m"),
        ("save_tool_call_records", "tool_calls", _C, "c"),
    ):
        restore = list(_AGES) if letter == "m" else [Step(op, "a", (base,), seen_by=_UNSEEN)]
        at = base.index(f"{letter}.")
        edits: dict[str, tuple[str, ...]] = {
            "first removed": base[1:],
            "first two removed": base[2:],
            "one in the middle removed": (*base[:2], *base[3:]),
            "last removed": base[:-1],
            "last two removed": base[:-2],
            "all removed": (),
            "all but the last removed": base[-1:],
            "first moved to the end": (*base[1:], base[0]),
            "two exchanged": (base[0], base[2], base[1], *base[3:]),
            "reversed": base[::-1],
            "one put in front": (f"{letter}1b" if letter == "c" else "m4", *base),
            "one put in the middle": (*base[:2], "c1b" if letter == "c" else "m4", *base[2:]),
            "one more": (*base, "c1b" if letter == "c" else "m4"),
            "one doubled": (*base, base[1]),
            "saved again": base,
            "all replaced": ("c1b",) if letter == "c" else ("m4",),
        }
        for name in names_of(letter):
            edits[f"{name} in place of {letter}."] = (*base[:at], name, *base[at + 1 :])
        for name, new in edits.items():
            yield Change(f"{part}: {name}", restore, [Step(op, "a", (new,))])
        for name in ("first removed", "two exchanged", "all removed"):
            yield Change(
                f"{part}: {name}, by save_turn", restore, [Step("save_turn", "a", named=((part, edits[name]),))]
            )
    yield from _of_additions()


def _of_additions() -> Iterator[Change]:
    messages = list(_AGES)
    appended: list[tuple[str, ...]] = [("m4",), ("m0", "m0"), ("m.role", "m.content1")]
    for new in appended:
        yield Change(f"append_messages {new}", messages, [Step("append_messages", "a", (new,))])
        yield Change(f"save_turn appends {new}", messages, [Step("save_turn", "a", named=(("append", new),))])
    calls = [Step("save_tool_call_records", "a", (_C,), seen_by=_UNSEEN)]
    upserts: list[tuple[str, ...]] = [(name,) for name in names_of("c")]
    upserts += [("c0",), ("c1b",), ("c.state1", "c.name1"), ("c0b", "c.", "c1b")]
    for new in upserts:
        yield Change(f"upsert {new}", calls, [Step("upsert_tool_call_records", "a", (new,))])
    for new in upserts[:1] + upserts[-2:]:
        yield Change(f"save_turn upserts {new}", calls, [Step("save_turn", "a", named=(("upsert_tool_calls", new),))])


def _of_infos() -> Iterator[Change]:
    restore = [Step("save_info", "a", ("i.",), seen_by=_UNSEEN)]
    for name in names_of("i"):
        yield Change(f"info: {name}", restore, [Step("save_info", "a", (name,))])
    yield Change("info: saved again", restore, [Step("save_info", "a", ("i.",))])
    yield Change("info: by save_turn", restore, [Step("save_turn", "a", named=(("info", "i0"),))])


def _of_documents() -> Iterator[Change]:
    for op, names in _DOCUMENTS.items():
        letter = names[0][0]
        restore = [Step(op, "a", (f"{letter}.",), seen_by=_UNSEEN)]
        for name in (
            *names_of(letter),
            *(n for n in (f"{letter}0b", f"{letter}0c") if n in ("w0b", "p0b", "r0b", "r0c", "s0b")),
        ):
            yield Change(f"{op} {name}", restore, [Step(op, "a", (name,))])
    for name in (*names_of("t"), "t0"):
        yield Change(f"save_todos {name}", [], [Step("save_todos", "a", (name,))])
    media = [Step("save_media_cache", "a", (("d0", "d."),), seen_by=_UNSEEN)]
    for new in (("d0",), ("d.",), ("d.", "d0"), ("d0", "d0"), (), *(("d0", name) for name in names_of("d"))):
        yield Change(f"save_media_cache {new}", media, [Step("save_media_cache", "a", (new,))])


def _of_logs() -> Iterator[Change]:
    for name in ("e0", "e0b", "e0c", "e1b", "e2"):
        yield Change(f"append_event {name}", [], [Step("append_event", "a", (name,))])
    for new in (("e1",), ("e2", "e0", "eN7"), ("eN8", "eN6"), ("eN6", "eN8"), ()):
        yield Change(f"append_events {new}", [], [Step("append_events", "a", (new,))])
    yield Change("events of a turn", [], [Step("save_turn", "a", named=(("events", ("eN9", "e0")),))])


def _of_lives() -> Iterator[Change]:
    """Deleted, made anew, forked: the whole state is made for each."""
    gone = Step("delete", "a")
    anew: dict[str, list[Step]] = {
        "nothing": [],
        "an info": [Step("save_info", "a", ("i.template_id1",))],
        "messages": [Step("save_messages", "a", (("m4",),)), Step("save_info", "a", ("i.",))],
        "a tool call": [Step("upsert_tool_call_records", "a", (("c0",),)), Step("save_info", "a", ("i0",))],
        "an event": [Step("append_event", "a", ("e1",)), Step("append_event", "a", ("e0",))],
        "a turn": [Step("save_turn", "a", named=(("append", ("m1",)), ("info", "i.metadata1"), ("events", ("e1",))))],
        "a snapshot": [Step("save_snapshot", "a", ("s1",))],
        "everything": full_state("a"),
    }
    for name, steps in anew.items():
        yield Change(f"deleted, then {name}", [], [gone, *steps])
    for filters in (
        (("template_id", "t0"),),
        (("agent_id", "a"),),
        (("template_id", "t0"), ("user_id", "u"), ("metadata", (("n", 0.0),))),
        (("template_id", "t0"), ("metadata", (("n", False),))),
        (("template_id", "t1"),),
    ):
        yield Change(f"delete_many {filters}", [], [Step("delete_many", "a", named=filters), *anew["messages"]])
    fork = Step("batch_fork", "a", (2,))
    after: dict[str, list[Step]] = {
        "nothing": [],
        "the parent changed": [Step("save_messages", "a", (_M[2:],)), Step("save_info", "a", ("i0",))],
        "a fork changed": [
            Step("save_messages", "f1", (_M[::-1],)),
            Step("upsert_tool_call_records", "f1", (("c.state1",),)),
        ],
        "the parent deleted": [gone, Step("append_messages", "f2", (("m4",),))],
        "a fork deleted": [Step("delete", "f1"), Step("append_event", "f2", ("e1",))],
        "a fork of a fork": [
            Step("save_info", "f1", ("i.breakpoint",)),
            Step("batch_fork", "f1"),
            Step("delete", "f1"),
        ],
        "forked again": [Step("save_media_cache", "a", ((),)), Step("batch_fork", "a")],
    }
    for name, steps in after.items():
        yield Change(f"forked, then {name}", [], [fork, *steps])


def _of_refusals() -> Iterator[Change]:
    refused: tuple[tuple[str, Any], ...] = (("append", ("m0",)), ("todos", "t0"), ("events", ("e!",)))
    for step in (
        Step("save_messages", "a", (("m0", "m!"),)),
        Step("upsert_tool_call_records", "a", (("c.state1", "c!"),)),
        Step("append_events", "a", (("eN9", "e!"),)),
        Step("append_events", "a", (("eN9", "e2", "eN9"),)),
        Step("save_turn", "a", named=(("append", ("m0",)), ("events", ("eN7", "eN7")))),
        Step("save_info", "a", ("i!",)),
        Step("save_turn", "a", named=refused),
    ):
        yield Change(f"refused: {step}", [], [step])
    yield Change(
        "opened again", [], [Step("reopen", "a"), Step("reopen", "a", via=1), Step("append_event", "a", ("e2",))]
    )


CHANGES: Final[Mapping[str, Sequence[Change]]] = {
    "lists": list(_of_lists()),
    "infos": list(_of_infos()),
    "documents": list(_of_documents()),
    "events": [*_of_logs(), *_of_refusals()],
    "lives": list(_of_lives()),
}
"""Every change, by the kind that it concerns."""


def chains(changes: Sequence[Change], length: int, *, restore: bool = True) -> Iterator[list[Step]]:
    """Histories of so many changes each, from a full state of an agent with a neighbour that looks the same.

    Two stores make the changes in turns, and the store that did not make one looks at the result; a change of several
    calls is looked at when all of them are done.
    """
    state = [*full_state("a"), *full_state("A"), Step("prime", "a")]
    for start in range(0, len(changes), length):
        steps = list(state)
        for i, change in enumerate(changes[start : start + length]):
            via = (start + i) % 2
            steps += [step._replace(via=1 - via) for step in change.restore] if restore else []
            if len(change.steps) == 1:
                steps.append(_by(change.steps[0], via, seen_by=1 - via))
            else:
                steps += [
                    *(_by(step, via, seen_by=_UNSEEN) for step in change.steps),
                    Step("look", "a", seen_by=1 - via),
                ]
        yield steps


def _by(step: Step, via: int, seen_by: int) -> Step:
    return step._replace(via=step.via if step.op == "reopen" else via, seen_by=seen_by)
