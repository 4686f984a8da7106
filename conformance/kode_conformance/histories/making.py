"""Making random sequences of calls over very few agents and values, so that they meet."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, Final

from kode_conformance.histories.steps import Step
from kode_conformance.histories.vocabulary import FAMILIES, run, values_of

__all__ = ["DOCUMENTS", "EDITS", "history"]

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
    "x": ("x0", "x0b", "x0-", "x1", "x1-", "x2", "x2-", "x3"),
}
_SINGLE: Final = {
    "save_todos": "t",
    "append_event": "e",
    "save_history_window": "w",
    "save_compression_record": "p",
    "save_recovered_file": "r",
    "save_snapshot": "s",
    "save_info": "i",
    "create_agent": "i",
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
EDITS: Final = {
    "pop_messages": 5,
    "truncate_messages": 4,
    "replace_message": 5,
    "create_agent": 4,
    "update_info": 5,
    "delete_snapshot": 3,
    "emit": 4,
    "emit_many": 3,
    "fork": 4,
}
"""Further calls of an extended store, and how often they are made next to the others."""
DOCUMENTS: Final = {"put_document": 7, "delete_document": 4, "write_documents": 5}
"""Calls of a store that keeps documents."""
_COMPANY: Final = {
    **dict.fromkeys(("pop_messages", "truncate_messages", "replace_message"), ("save_messages", "append_messages")),
    "fork": ("save_info", "append_messages"),
    "create_agent": (),
    "update_info": ("save_info",),
    **dict.fromkeys(("emit", "emit_many"), ("append_events",)),
    "delete_snapshot": ("save_snapshot",),
    **dict.fromkeys(DOCUMENTS, ("save_turn", "delete_document")),
}
"""Calls without which another one finds nothing to do."""
_FENCED: Final = frozenset({*EDITS, *DOCUMENTS} - {"create_agent", "update_info", "replace_message", "fork"})
"""Calls that may be made under a lease that has ended: if they are refused, it is for no other reason."""
_DEMANDING: Final = frozenset(
    {"save_messages", "save_tool_call_records", "save_turn", "save_info", "truncate_messages", "replace_message"}
)
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
    rng: random.Random,
    steps: int,
    more: Mapping[str, int],
    *,
    newer: Mapping[str, int] | None = None,
    stores: int = 2,
    large: bool = False,
) -> list[Step]:
    """A random history; *more* has the weights of additional calls.

    Most histories have only a few kinds of calls, each made often: faults that need the same call time and again, or
    two kinds in turns, are rare where everything is called.

    Args:
        rng: where everything random comes from.
        steps: how many.
        more: calls by name, and how often they are made next to the others.
        newer: some or all of :data:`EDITS` and :data:`DOCUMENTS`, of which a history has a few; with them some writes
            demand a version.
        stores: how many make the calls.
        large: now and then a list or a burst is longer than the usual limits.
    """
    newer = newer or {}
    weights = {**_WEIGHTS, **more, **newer}
    if rng.random() < 0.8:
        own = rng.sample(list(more), min(rng.choice((1, 2)), len(more)))
        few = rng.sample(list(newer), min(rng.choice((1, 2, 3)), len(newer))) if newer else []
        kinds = {"delete", *own, *rng.sample(list(_WEIGHTS), rng.randint(0, 2) if few else rng.randint(2, 4))}
        kinds |= {*few, *(company for op in few for company in _COMPANY[op])}
        weights = {op: weight for op, weight in weights.items() if op in kinds}
    return _Generator(rng, weights, stores, large).make(steps)


class _Generator:
    """Makes steps. It knows what the lists hold, so that most saves are what a program makes of a list."""

    def __init__(self, rng: random.Random, weights: Mapping[str, int], stores: int, large: bool) -> None:
        self._rng = rng
        self._weights = weights
        self._lists: dict[tuple[str, str], tuple[str, ...]] = {}
        self._is_newer = not weights.keys().isdisjoint((*EDITS, *DOCUMENTS))
        self._agents = list(rng.choice(_NAMES))[: rng.choice((1, 1, 1, 2, 3) if self._is_newer else (1, 2, 3, 3))]
        self._earlier: dict[tuple[str, str], tuple[str, ...]] = {}
        self._stores = rng.choice((1, stores, stores))
        self._forks = 0
        self._large = large
        self._has_documents = not weights.keys().isdisjoint(DOCUMENTS)
        self._pools = {kind: self._pool(kind) for kind in _POOLS if kind != "x" or self._has_documents}

    def _pool(self, kind: str) -> tuple[str, ...]:
        """The values of the history: in every third one two of a family that are neighbours in its table, too."""
        rng, base = self._rng, _POOLS[kind]
        if self._is_newer and rng.random() < 0.6:
            return tuple(rng.sample(base, min(3, len(base))))
        families = [family for family in FAMILIES if family[0] == kind]
        if not families or rng.random() < 0.67:
            return base
        if kind == "e" and not self._weights.keys().isdisjoint(("emit", "emit_many")):
            return base  # the seqs of the family leave no numbers for the store to give
        at, family = rng.randrange(200), rng.choice(families)
        return (*base, f"{family}{at}", f"{family}{at + 1}")

    def make(self, steps: int) -> list[Step]:
        rng, stores = self._rng, self._stores
        ops = rng.choices(list(self._weights), list(self._weights.values()), k=steps)
        made = [self._begun()] if self._is_newer and rng.random() < 0.7 else []
        made += [self._step(op)._replace(via=rng.randrange(stores), seen_by=rng.randrange(stores)) for op in ops]
        if self._large:
            made.insert(rng.randrange(len(made) // 2 + 1), self._burst()._replace(via=rng.randrange(stores)))
        return made

    def _begun(self) -> Step:
        """Some messages and an info, so that there is something to edit."""
        agent = self._agents[0]
        messages = self._lists[agent, "m"] = tuple(self._rng.choices(self._pools["m"], k=self._rng.randint(2, 5)))
        info = self._rng.choice(self._pools["i"])
        return Step("save_turn", agent, named=(("messages", messages), ("info", info)))

    def _step(self, op: str) -> Step:
        agent = self._rng.choices(self._agents, [6, 2, 1, 1, 1, 1, 1, 1][: len(self._agents)])[0]
        if op in _SINGLE:
            one = Step(op, agent, (self._rng.choice(self._pools[_SINGLE[op]]),))
            return self._demanding(one if op == "create_agent" else one._replace(fence=self._fence()))
        make = getattr(self, f"_{op}", None)
        made: Step = Step(op, agent) if make is None else make(agent)
        if op in _FENCED or op.startswith(("save_", "append_", "upsert_")):
            fence = self._fence()
            is_refused_anyhow = made.expect or "documents" in dict(made.named) or op == "write_documents"
            made = made._replace(fence="" if fence == "ended" and is_refused_anyhow else fence)
        return self._demanding(made)

    def _demanding(self, step: Step) -> Step:
        """The step, or one that demands a version."""
        is_one = self._is_newer and step.op in _DEMANDING and step.fence != "ended"
        return step._replace(expect=self._demand()) if is_one else step

    def _demand(self) -> str:
        """The version that a write demands; most demand none."""
        return self._rng.choices(("", "present", "old", "absent"), (12, 4, 2, 1))[0]

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
        """The list with more at the end, some gone, one changed, moved or put in between; or another one."""
        old = list(self._lists.get((agent, kind), ()))
        if self._is_newer and (agent, kind) in self._earlier and self._rng.random() < 0.3:
            self._lists[agent, kind] = self._earlier[agent, kind]
            return self._earlier[agent, kind]
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
            *((("documents", self._documents()),) if self._has_documents else ()),
        )
        return Step("save_turn", agent, named=tuple(part for part in parts if rng.random() < 0.5))

    def _pop_messages(self, agent: str) -> Step:
        count, old = self._rng.choice((0, 1, 1, 2, 3, 99)), self._lists.get((agent, "m"), ())
        self._earlier[agent, "m"], self._lists[agent, "m"] = old, old[: max(0, len(old) - count)]
        return Step("pop_messages", agent, (count,))

    def _truncate_messages(self, agent: str) -> Step:
        old = self._lists.get((agent, "m"), ())
        length = self._rng.randint(0, len(old) + 1)
        self._earlier[agent, "m"], self._lists[agent, "m"] = old, old[:length]
        return Step("truncate_messages", agent, (length,))

    def _replace_message(self, agent: str) -> Step:
        old, new = list(self._lists.get((agent, "m"), ())), self._rng.choice(self._pools["m"])
        place = self._rng.randint(0, len(old)) if self._rng.random() < 0.2 else self._rng.randrange(len(old) or 1)
        if place < len(old):
            old[place] = new
        self._lists[agent, "m"] = tuple(old)
        return Step("replace_message", agent, (place, new))

    def _update_info(self, agent: str) -> Step:
        info = self._rng.choice(self._pools["i"])
        keys = [key for key in ("userId", "k", "n") if key not in values_of(info)[0].metadata]
        remove = tuple(f"={key}" for key in keys if self._rng.random() < 0.4)
        return Step("update_info", agent, (f"{info}:metadata",), named=(("remove", remove),) if remove else ())

    def _delete_snapshot(self, agent: str) -> Step:
        return Step("delete_snapshot", agent, (f"{self._rng.choice(self._pools['s'])}:id",))

    def _emit(self, agent: str) -> Step:
        event = f"{self._rng.choice(self._pools['e'])}:event"
        channel = (("channel", f"{event}.channel"),)
        return Step("emit", agent, (f"{event}.type", f"{event}.data"), named=channel)

    def _emit_many(self, agent: str) -> Step:
        return Step("emit_many", agent, (tuple(f"{name}:event" for name in self._some("e")),))

    def _fork(self, agent: str) -> Step:
        """A fork of everything, of the first messages or of a snapshot, to an id that is new or that an agent has."""
        rng, length = self._rng, len(self._lists.get((agent, "m"), ()))
        points: Sequence[tuple[Any, ...]] = ((), (("length", rng.randint(0, length)),), (("length", length + 1),))
        (point,) = rng.choices(points, (3, 7, 1))
        if rng.random() < 0.2:
            point = (("snapshot_id", f"{rng.choice(self._pools['s'])}:id"),)
        new_id = rng.choice([name for name in (*self._agents, "new", "") if name != agent])
        if not new_id:
            self._forks += 1
        name = new_id or f"f{self._forks}"
        if name not in self._agents and len(self._agents) < 8:
            self._agents.append(name)
        documents = (("documents", True),) if self._has_documents and rng.random() < 0.7 else ()
        return Step("fork", agent, named=(*((("new_id", new_id),) if new_id else ()), *point, *documents))

    def _documents(self) -> tuple[str, ...]:
        """Writes of documents, of which some demand versions, and now and then two are of one."""
        names = self._rng.sample(self._pools["x"], self._rng.randint(0, min(3, len(self._pools["x"]))))
        if self._rng.random() < 0.9:
            places = {(values_of(name)[0].collection, values_of(name)[0].key): name for name in names}
            names = list(places.values())
        return tuple(f"{name}@{which}" if which else name for name in names for which in (self._demand(),))

    def _write_documents(self, agent: str) -> Step:
        return Step("write_documents", agent, (self._documents(),))

    def _put_document(self, agent: str) -> Step:
        name = self._rng.choice([name for name in self._pools["x"] if not name.endswith("-")] or ["x0"])
        parts = (f"{name}:collection", f"{name}:key", f"{name}:value")
        return Step("put_document", agent, parts, expect=self._demand())

    def _delete_document(self, agent: str) -> Step:
        name = self._rng.choice(self._pools["x"])
        return Step("delete_document", agent, (f"{name}:collection", f"{name}:key"), expect=self._demand())

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
        if self._is_newer and self._rng.random() < 0.5:
            return self._rng.choice(self._newly_refused(agent))
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

    def _newly_refused(self, agent: str) -> list[Step]:
        found = [
            Step("replace_message", agent, (0, "m!")),
            Step("create_agent", agent, (self._rng.choice(("i!", "i?")),)),
            Step("emit", agent, ("e!:event.type", "e!:event.data")),
            Step("emit_many", agent, (("e0:event", "e!:event"),)),
        ]
        if self._has_documents:
            odd = self._rng.choice(("x!", "x?"))
            found += [
                Step("put_document", agent, (f"{odd}:collection", f"{odd}:key", f"{odd}:value")),
                Step("write_documents", agent, (("x1", odd),)),
                Step("save_turn", agent, named=(("append", ("m0",)), ("documents", ("x1", odd)))),
            ]
        return found
