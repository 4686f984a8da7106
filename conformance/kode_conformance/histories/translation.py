"""Looks of one run of a history as another run makes them: at its own agents, times and offsets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from kode_conformance.histories.looks import Look
from kode_conformance.histories.model import AgentModel, StoreModel

__all__ = ["made_up", "translated"]


class Run(Protocol):
    """A machine's knowledge of its run."""

    prefix: str
    model: StoreModel
    forks: dict[str, str]


def made_up(look: Look, run: Run) -> dict[str, str] | None:
    """The filters of a look with values that the store generated, as Python that asks for them; None when a value is no
    longer current.
    """
    found = {}
    for name, given in look.filters.items():
        values, ask = _values_of(look, name)
        if values is not None and given != 0:
            code = next((ask(*place) for place in _places(given, run, values)), None)
            if code is None:
                return None
            found[name] = code
    return found


def _places(value: int, run: Run, values: Callable[[AgentModel], Sequence[int]]) -> Iterator[tuple[str, int, int]]:
    for agent_id, agent in run.model.agents.items():
        for i, known in enumerate(values(agent)):
            if value - known in (0, 1):
                yield agent_id, i, value - known


def _values_of(
    look: Look, name: str
) -> tuple[Callable[[AgentModel], Sequence[int]] | None, Callable[[str, int, int], str]]:
    """The values that a filter of that name is compared with, if the store generates them, and the Python that asks for
    one.
    """
    if name == "after_offset":
        return (
            lambda agent: [logged.offset or 0 for logged in agent.events],
            lambda agent, i, more: f"(await offsets(store, {agent!r}))[{i}]{_plus(more)}",
        )
    if name.startswith("created_") and look.method.endswith("_messages"):
        return (
            lambda agent: agent.learned.times,
            lambda agent, i, more: f"(await stamped(store, {agent!r}))[1][{i}]{_plus(more)}",
        )
    if name.startswith("updated_"):
        return (
            lambda agent: [] if agent.learned.updated_at is None else [agent.learned.updated_at],
            lambda agent, _, more: f"(await store.query_sessions(agent_id={agent!r}))[0].updated_at{_plus(more)}",
        )
    return None, lambda *_: ""


def _plus(more: int) -> str:
    return f" + {more}" if more else ""


def translated(look: Look, old: Run, new: Run) -> Look:
    """A look of the *old* run at the same agents and times of the *new* one."""

    def value(name: str, given: Any) -> Any:
        if isinstance(given, str):
            return _renamed(given, old, new)
        values, _ = _values_of(look, name)
        return given if values is None else _same_place(given, old, new, values)

    args = tuple(value("", arg) for arg in look.args)
    return look._replace(args=args, filters={name: value(name, given) for name, given in look.filters.items()})


def _renamed(text: str, old: Run, new: Run) -> str:
    for name, fork_id in old.forks.items():
        if fork_id.startswith(text) and name in new.forks and len(text) > len("agt-"):
            return new.forks[name][: len(text)]
    return new.prefix + text[len(old.prefix) :] if text.startswith(old.prefix) else text


def _same_place(value: int, old: Run, new: Run, values_of_agent: Callable[[AgentModel], Sequence[int]]) -> int:
    """A time or an offset that the store gave, as it gave it to the same record in another run."""
    for one, same in zip(old.model.agents.values(), new.model.agents.values(), strict=False):
        for before, now in zip(values_of_agent(one), values_of_agent(same), strict=False):
            if value - before in (0, 1):
                return now + value - before
    return value
