"""Calls that write hundreds of records, and looks that report in a word which records are stored.

A writer makes the calls one after the other. Each look must give its result after one of the calls, and never the
result of an earlier call once it gave the result of a later one: a call is visible whole, in every kind, or not at all.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Final, NamedTuple

from kode_conformance.context import Violation
from kode_conformance.harness import StoreHarness
from kode_conformance.values import samples
from kode_core.model import Message, Timeline, ToolCallRecord
from kode_core.protocols import ExtendedStore

__all__ = ["MANY", "STEPS", "Company", "looks_of", "states"]

MANY: Final = 201
"""More than the batches that servers and drivers have: 25, 100, 128, 200."""

Look = Callable[[ExtendedStore, str], Awaitable[object]]
"""A read that returns one value, or a mapping of several values, which need not be of one instant."""


# --- calls ------------------------------------------------------------------------------------------------------------


def _messages(tag: str, count: int = MANY) -> list[Message]:
    return [samples.message(text=f"{tag} {i}") for i in range(count)]


def _calls(tag: str, start: int = 0, count: int = MANY) -> list[ToolCallRecord]:
    return [samples.tool_call(i, result=tag, audit_trail=[]) for i in range(start, start + count)]


def _events(tag: str, start: int) -> list[Timeline]:
    return [samples.event(seq, tag=tag) for seq in range(start, start + MANY)]


def _media(tag: str) -> list[Any]:
    return [samples.media(f"{tag} {i}") for i in range(MANY)]


async def _turn(store: ExtendedStore, agent: str) -> None:
    await store.save_turn(
        agent,
        append=_messages("turn"),
        upsert_tool_calls=_calls("turn", MANY + MANY // 3),
        todos=samples.todos(*(f"turn {i}" for i in range(MANY))),
        info=samples.info(agent, metadata={"tag": "turn"}),
        events=_events("turn", 2000),
    )


async def _whole_turn(store: ExtendedStore, agent: str) -> None:
    await store.save_turn(
        agent,
        messages=_messages("whole"),
        tool_calls=_calls("whole"),
        todos=samples.todos("whole"),
        info=samples.info(agent, metadata={"tag": "whole"}),
        events=_events("whole", 5000),
    )


STEPS: Final[Mapping[str, Callable[[ExtendedStore, str], Awaitable[object]]]] = {
    "save_info": lambda s, a: s.save_info(a, samples.info(a, metadata={"tag": "first"})),
    "save_messages": lambda s, a: s.save_messages(a, _messages("first")),
    "save_messages over as many": lambda s, a: s.save_messages(a, _messages("second")),
    "append_messages": lambda s, a: s.append_messages(a, _messages("third")),
    "save_tool_call_records": lambda s, a: s.save_tool_call_records(a, _calls("first")),
    "save_tool_call_records over as many": lambda s, a: s.save_tool_call_records(a, _calls("second")),
    "upsert_tool_call_records": lambda s, a: s.upsert_tool_call_records(a, _calls("third", MANY // 2)),
    "append_events": lambda s, a: s.append_events(a, _events("first", 0)),
    "save_media_cache": lambda s, a: s.save_media_cache(a, _media("first")),
    "save_media_cache over as many": lambda s, a: s.save_media_cache(a, _media("second")),
    "save_snapshot": lambda s, a: s.save_snapshot(a, samples.snapshot("s", count=MANY)),
    "save_turn that adds": _turn,
    "save_turn that replaces": _whole_turn,
    "save_messages of one": lambda s, a: s.save_messages(a, _messages("last", 1)),
    "delete": lambda s, a: s.delete(a),
}
"""The calls that a writer makes on an agent, in this order."""


# --- looks ------------------------------------------------------------------------------------------------------------


def _joined(tags: Iterable[Any]) -> str:
    """As in ``300 first, 150 third``."""
    return ", ".join(f"{count} {tag}" for tag, count in sorted(Counter(tags).items())) or "none"


async def _load_messages(store: ExtendedStore, agent: str) -> object:
    return _joined(message.text.split()[0] for message in await store.load_messages(agent))


async def _load_calls(store: ExtendedStore, agent: str) -> object:
    return _joined(call.result for call in await store.load_tool_call_records(agent))


async def _load_todos(store: ExtendedStore, agent: str) -> object:
    found = await store.load_todos(agent)
    return _joined(todo.title.split()[0] for todo in found.todos) if found else "none"


async def _load_media(store: ExtendedStore, agent: str) -> object:
    return _joined(record.key.split()[0] for record in await store.load_media_cache(agent))


async def _list_snapshots(store: ExtendedStore, agent: str) -> object:
    return _joined(f"of {len(snapshot.messages)}" for snapshot in await store.list_snapshots(agent))


async def _load_info(store: ExtendedStore, agent: str) -> object:
    found = await store.load_info(agent)
    return {
        "load_info": found.metadata["tag"] if found else "none",
        "message_count of load_info": found.message_count if found else "none",
    }


async def _exists(store: ExtendedStore, agent: str) -> object:
    return f"{await store.exists(agent)}"


async def _listed(store: ExtendedStore, agent: str) -> object:
    return f"{agent in await store.list(agent)}"


async def _bookmark(store: ExtendedStore, agent: str) -> object:
    found = await store.last_bookmark(agent)
    return f"seq {found.seq}" if found else "none"


async def _first_event(store: ExtendedStore, agent: str) -> object:
    async with aclosing(store.read_events(agent)) as events:  # type: ignore[type-var]
        return _joined([event.event.data["tag"] async for event in _head(events)])


async def _head(events: Any) -> Any:
    async for event in events:
        yield event
        return


async def _session(store: ExtendedStore, agent: str) -> object:
    found = await store.query_sessions(agent_id=agent)
    return {
        "query_sessions": _joined(one.metadata["tag"] for one in found),
        "message_count of query_sessions": _joined(f"of {one.message_count}" for one in found),
    }


async def _stats(store: ExtendedStore, agent: str) -> object:
    found = await store.aggregate_stats(agent)
    return {
        "total_messages of aggregate_stats": found.total_messages,
        "total_tool_calls of aggregate_stats": found.total_tool_calls,
        "total_snapshots of aggregate_stats": found.total_snapshots,
    }


_LOOKS: Final[Mapping[str, Look]] = {
    "load_messages": _load_messages,
    "load_tool_call_records": _load_calls,
    "load_todos": _load_todos,
    "load_media_cache": _load_media,
    "list_snapshots": _list_snapshots,
    "load_info": _load_info,
    "exists": _exists,
    "list": _listed,
    "last_bookmark": _bookmark,
    "the first event": _first_event,
}
_QUERIES: Final[Mapping[str, Look]] = {
    "query_sessions": _session,
    "aggregate_stats": _stats,
}


def looks_of(harness: StoreHarness) -> Mapping[str, Look]:
    """All looks that a store offers and that are current: queries are not, if the store declares a lag (QRY-8).

    Pages of rows are left out: the contract promises one instant for loaded lists only.
    """
    return (
        _LOOKS if "QUERYABLE" in harness.lacks or harness.has("wait_until_queries_see_all") else {**_LOOKS, **_QUERIES}
    )


async def states(store: ExtendedStore, agent: str, looks: Mapping[str, Look]) -> list[Mapping[str, object]]:
    """The result of each look before the first of STEPS and after each of them, without other readers or writers.

    Raises:
        Violation: a call changed nothing.
    """
    found = [await _state(store, agent, looks)]
    for name, step in STEPS.items():
        await step(store, agent)
        found.append(await _state(store, agent, looks))
        if found[-1] == found[-2]:
            raise Violation(f"{name} returned, and no read sees that it changed anything")
    return found


async def _state(store: ExtendedStore, agent: str, looks: Mapping[str, Look]) -> Mapping[str, object]:
    state: dict[str, object] = {}
    for name, look in looks.items():
        state |= _parts(name, await look(store, agent))
    return state


def _parts(name: str, found: object) -> Mapping[str, object]:
    return found if isinstance(found, dict) else {name: found}


# --- company ----------------------------------------------------------------------------------------------------------


class _Seen(NamedTuple):
    """The latest place in the order of calls that a look has proved, and which look it was."""

    place: int = 0
    by: str = ""


class Company:
    """Looks at an agent again and again while another task makes the calls of STEPS.

    Attributes:
        looked: how many looks there were.
    """

    def __init__(self, wanted: Sequence[Mapping[str, object]], looks: Mapping[str, Look]) -> None:
        self._wanted = wanted
        self._looks = looks
        self._seen = _Seen()
        self.looked = 0

    async def keep_looking(self, store: ExtendedStore, agent: str, ended: asyncio.Event, *, first: int = 0) -> None:
        """Make all looks in turn, beginning with number *first*, until the writer has ended, and once more.

        Raises:
            Violation: a look gave a result of no call, or of an earlier call than a look before it.
        """
        names = [*self._looks][first:] + [*self._looks][:first]
        while True:
            is_last = ended.is_set()
            for name in names:
                before = self._seen
                found = await self._looks[name](store, agent)
                self.looked += 1
                for part, value in _parts(name, found).items():
                    self._judge(part, value, before)
                await asyncio.sleep(0)
            if is_last:
                return

    def _judge(self, name: str, found: object, before: _Seen) -> None:
        steps = ["nothing", *STEPS]
        places = [i for i, state in enumerate(self._wanted) if state[name] == found]
        later = [i for i in places if i >= before.place]
        if not places:
            known = " / ".join(dict.fromkeys(str(state[name]) for state in self._wanted))
            raise Violation(f"{name} gave {found!s:.200} while others wrote, and never may: it may give {known:.400}")
        if not later:
            raise Violation(
                f"{name} gave {found!s:.200}, as after {steps[places[-1]]}, when {before.by} had already "
                f"given what is there after {steps[before.place]}"
            )
        if later[0] > self._seen.place:
            self._seen = _Seen(later[0], name)
