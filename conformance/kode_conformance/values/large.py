"""Calls of many records, by every parameter of every method that takes a list, and a short description of the records
that are stored.

The calls are found in the hints of the protocols. Each record has a name of a tag and a number, and a list of records
is told as its runs, as in ``old 0-2, new 0-1000``, which shows a record that is missing, doubled, moved or from another
call.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from kode_conformance.calls.ways import held
from kode_conformance.histories.model import StoreModel
from kode_conformance.values import samples
from kode_conformance.values.kinds import Gives, ReadMethod, kinds
from kode_core.errors import InvalidArgumentError, InvalidValueError, KodeError
from kode_core.model import (
    AgentEvent,
    AgentInfo,
    MediaCacheRecord,
    Message,
    Record,
    Timeline,
    TodoSnapshot,
    ToolCallRecord,
)
from kode_core.protocols import ExtendedStore

__all__ = ["LARGE", "Large", "Look", "looks_at", "runs", "state_of"]

Look = Callable[[ExtendedStore, str], Awaitable[str]]

# --- records ----------------------------------------------------------------------------------------------------------


class _Make(NamedTuple):
    """How records of a type are made by tag and number, named again, and spoilt, and the error for a spoilt one."""

    one: Callable[[str, int], Any]
    name: Callable[[Any], str]
    spoilt: Callable[[Any], Any]
    error: type[KodeError] = InvalidValueError


_NAN: Final = float("nan")

_MAKE: Final[Mapping[type[Record], _Make]] = {
    Message: _Make(
        lambda tag, i: samples.message(text=f"{tag} {i}"),
        lambda message: message.text,
        lambda message: message.replace(metadata={"deep": [_NAN]}),
    ),
    ToolCallRecord: _Make(
        lambda tag, i: samples.tool_call(i, result=f"{tag} {i}", audit_trail=[]),
        lambda call: call.result,
        lambda call: call.replace(result={"deep": [_NAN]}),
    ),
    Timeline: _Make(
        lambda tag, i: samples.event(i, name=f"{tag} {i}"),
        lambda entry: entry.event.data["name"],
        lambda entry: entry.replace(event=AgentEvent("control", "spoilt", {"deep": [_NAN]})),
    ),
    MediaCacheRecord: _Make(
        lambda tag, i: samples.media(f"{tag} {i}"),
        lambda record: record.key,
        lambda record: record.replace(key="x" * 4097),
        InvalidArgumentError,
    ),
}
"""How to make the records of each type that lists contain."""


@functools.lru_cache(maxsize=32)
def _made(record: type[Record], tag: str, start: int, end: int) -> Sequence[Any]:
    return tuple(_MAKE[record].one(tag, i) for i in range(start, end))


def runs(names: Iterable[str]) -> str:
    """Names of a tag and a number; consecutive ones are joined into a run."""
    found: list[tuple[str, int, int]] = []
    for name in names:
        tag, _, number = name.rpartition(" ")
        i = int(number)
        if found and found[-1][0] == tag and found[-1][2] == i - 1:
            found[-1] = (tag, found[-1][1], i)
        else:
            found.append((tag, i, i))
    return ", ".join(f"{tag} {start}-{end}" for tag, start, end in found) or "none"


# --- calls ------------------------------------------------------------------------------------------------------------


class Large(NamedTuple):
    """A call that takes lists.

    Attributes:
        lists: the parameters that take lists, and the type of the items.
        whole: True for a turn that has todos and an info as well.
    """

    name: str
    method: str
    lists: Mapping[str, type[Record]]
    whole: bool = False

    def arguments(self, agent_id: str, count: int, tag: str = "new", start: int = 2) -> dict[str, Any]:
        """So many records in each list, with the numbers from *start* on."""
        given: dict[str, Any] = {
            name: list(_made(record, tag, start, start + count)) for name, record in self.lists.items()
        }
        if self.whole:
            given["todos"] = samples.todos(*(f"{tag} {i}" for i in range(count)))
            given["info"] = samples.info(agent_id, metadata={"tag": f"{tag} {count}"})
        return given

    def spoilt(self, given: Mapping[str, Any], parameter: str) -> tuple[dict[str, Any], type[KodeError]]:
        """The same arguments with a last record in one list that no store may take, and the error for it."""
        (*sound, last), make = given[parameter], _MAKE[self.lists[parameter]]
        return {**given, parameter: [*sound, make.spoilt(last)]}, make.error

    async def act(self, store: ExtendedStore, agent_id: str, given: Mapping[str, Any], **fence: Any) -> object:
        return await getattr(store, self.method)(agent_id, **given, **fence)

    def note(self, model: StoreModel, agent_id: str, given: Mapping[str, Any]) -> None:
        """Make the call in a model."""
        getattr(model, self.method)(agent_id, **given)


def _large() -> Iterator[Large]:
    turns: dict[str, dict[type[Record], list[str]]] = {}
    for kind in kinds().values():
        for writer in kind.writers:
            if not writer.many:
                continue
            of_turn = len([w for k in kinds().values() for w in k.writers if w.method == writer.method]) > 1
            name = f"{writer.method}({writer.parameter}=)" if of_turn else writer.method
            yield Large(name, writer.method, {writer.parameter: kind.record})
            if of_turn:
                turns.setdefault(writer.method, {}).setdefault(kind.record, []).append(writer.parameter)
    for method, parts in turns.items():  # of each kind one parameter at a time
        for i in range(max(map(len, parts.values()))):
            lists = {names[i % len(names)]: record for record, names in parts.items()}
            yield Large(f"{method}({', '.join(lists)}, …)", method, lists, whole=True)


LARGE: Final[Sequence[Large]] = tuple(_large())
"""A call for each list that a method takes, and turns of everything."""


# --- looks ------------------------------------------------------------------------------------------------------------


def _names(found: Any) -> Iterable[str]:
    if isinstance(found, TodoSnapshot):
        return (todo.title for todo in found.todos)
    if isinstance(found, AgentInfo):
        return [found.metadata["tag"]]
    return (next(make.name for kind, make in _MAKE.items() if isinstance(one, kind))(one) for one in found or ())


async def _given(store: ExtendedStore, agent_id: str, reader: ReadMethod) -> str:
    method = getattr(store, reader.method)
    if reader.gives is Gives.STREAM:
        return runs(_names([event async for event in method(agent_id, after_offset=0)]))
    if reader.gives is Gives.PAGE:
        found = await method(agent_id=agent_id, limit=10_000)
        return runs(_names(sorted(found, key=lambda one: one.position)))
    return runs(_names(await method(agent_id)))


def _look(reader: ReadMethod) -> Look:
    return lambda store, agent_id: _given(store, agent_id, reader)


def _readers(call: Large, lacks: Iterable[str], count: int) -> Iterator[tuple[type[Record], ReadMethod]]:
    """The methods that give the records of the call back in one piece."""
    whole = (TodoSnapshot, AgentInfo) if call.whole else ()
    for record in (*call.lists.values(), *whole):
        for reader in kinds()[record].readers:
            is_page = reader.gives is Gives.PAGE and count < 10_000 and "QUERYABLE" not in lacks and record in _MAKE
            if reader.gives in (Gives.LIST, Gives.ONE) or reader.method == "read_events" or is_page:
                yield record, reader


async def _counted(store: ExtendedStore, agent_id: str) -> str:
    info = await store.load_info(agent_id)
    return f"{info.message_count}" if info else "none"


async def _counted_by_stats(store: ExtendedStore, agent_id: str) -> str:
    stats = await store.aggregate_stats(agent_id)
    return f"{stats.total_messages}, {stats.total_tool_calls}"


async def _counted_by_sessions(store: ExtendedStore, agent_id: str) -> str:
    return ", ".join(f"{session.message_count}" for session in await store.query_sessions(agent_id=agent_id)) or "none"


async def _listed(store: ExtendedStore, agent_id: str) -> str:
    return f"{agent_id in await store.list(agent_id)}"


_COUNTS: Final[Mapping[str, Look]] = {"message_count of load_info": _counted, "list": _listed}
_COUNTS_OF_QUERIES: Final[Mapping[str, Look]] = {
    "the totals of aggregate_stats": _counted_by_stats,
    "message_count of query_sessions": _counted_by_sessions,
}


def looks_at(call: Large, lacks: Iterable[str], count: int, *, streams: bool = True) -> Mapping[str, Look]:
    """The reads that show the records of a call."""
    readers = [reader for _, reader in _readers(call, lacks, count)]
    found = {one.method: _look(one) for one in readers if streams or one.gives is not Gives.STREAM}
    counts = {**_COUNTS, **({} if "QUERYABLE" in lacks else _COUNTS_OF_QUERIES)}
    return {**found, **counts}


def state_of(model: StoreModel, call: Large, agent_id: str, looks: Mapping[str, Look]) -> dict[str, str]:
    """The correct results of these looks at an agent."""
    agent = model.agents[agent_id]
    messages = f"{len(agent.messages)}"
    state = {
        "message_count of load_info": messages if agent.info else "none",
        "message_count of query_sessions": messages if agent.info else "none",
        "the totals of aggregate_stats": f"{messages}, {len(agent.tool_calls)}",
        "list": f"{agent.info is not None}",
    }
    for record, reader in _readers(call, (), 0):
        wanted = next(r for r in kinds()[record].readers if r.gives in (Gives.LIST, Gives.ONE, Gives.STREAM))
        name = "follow_events" if wanted.gives is Gives.STREAM else wanted.method  # by offset
        state[reader.method] = runs(_names(held(model, name, agent_id)))
    return {name: state[name] for name in looks}
