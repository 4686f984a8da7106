"""A store of a million messages, made through the store itself, and the searches that are made on it."""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from kode_core import (
    AgentEvent,
    AgentInfo,
    Bookmark,
    ExtendedStore,
    ImageBlock,
    Message,
    TextBlock,
    Timeline,
    ToolCallApproval,
    ToolCallRecord,
    ToolUseBlock,
)
from kode_core.store.dated import dated

__all__ = ["AGENTS", "Search", "at_last", "combined", "fill", "named"]

AGENTS: Final = 10_000
MESSAGES: Final = 100
CALLS: Final = 10
_EVENTS_OF_ONE: Final = 20
"""How many events one agent has for each agent that there is."""
_BEGIN: Final = 1_750_000_000_000
_STEP: Final = 60_000
_TEXT: Final = "lorem ipsum dolor sit amet consectetur " * 4
_SIDE_BY_SIDE: Final = 16
_SOME: Final = 400
_LOG: Final = "log"
"""The agent with most of the events."""


def _name(i: int) -> str:
    return f"agt-{i:06d}"


def _began(i: int) -> int:
    return _BEGIN + i * _STEP


def _messages(i: int) -> list[Message]:
    """Every thousandth agent has a role that is rare, and another one a block that is."""
    made = [
        Message("assistant", [TextBlock(_TEXT), ToolUseBlock(f"call-{k}", f"tool_{k}", {"q": k})])
        if k % 2
        else Message("user", [TextBlock(f"{i} {k} {_TEXT}")])
        for k in range(MESSAGES)
    ]
    if i % 1000 == 5:
        made[0] = Message("system", [TextBlock(_TEXT)])
    if i % 1000 == 7:
        made[2] = Message("user", [ImageBlock(url="https://example.com/x.png")])
    return made


def _call(i: int, k: int) -> ToolCallRecord:
    """Of a hundred calls two failed; of two thousand one waits to be approved."""
    number = i * CALLS + k
    state = "PENDING" if number % 2000 == 11 else "FAILED" if number % 50 == 7 else "COMPLETED"
    began = _began(i) + k * 1000
    return ToolCallRecord(
        id=f"call-{k}",
        name=f"tool_{number % 20}",
        state=state,
        is_error=state == "FAILED",
        approval=ToolCallApproval(required=state == "PENDING"),
        created_at=began,
        updated_at=began,
    )


def _info(i: int) -> AgentInfo:
    metadata: dict[str, Any] = {"userId": f"u-{i % 2000}", "plan": "gold" if i % 3 else "free"}
    if i % 1000 == 3:
        metadata["campaign"] = "first"
    return AgentInfo(agent_id=_name(i), template_id=f"template-{i % 5}", created_at=_began(i), metadata=metadata)


def _event(seq: int) -> Timeline:
    return Timeline(seq, Bookmark(seq, _BEGIN), AgentEvent("progress", "text_chunk", {"delta": "x" * 40}))


async def _agent(store: ExtendedStore, i: int, agents: int) -> None:
    """The first half was used last, so that the orders by both times have nothing in common."""
    used = _began((i + agents // 2) % agents) + agents * _STEP
    times = [*(_began(i) + k * 100 for k in range(MESSAGES)), used]  # the last one is of the turn, and of no message
    with dated(times):
        await store.save_turn(
            _name(i),
            messages=_messages(i)[: MESSAGES - i % 7],
            tool_calls=[_call(i, k) for k in range(CALLS)],
            events=[_event(k) for k in range(4)],
            info=_info(i),
        )


async def fill(store: ExtendedStore, agents: int, what: str) -> None:
    """Make agents, some side by side, and tell how far it is."""
    start, numbers = time.monotonic(), iter(range(agents))

    async def work() -> None:
        for i in numbers:
            await _agent(store, i, agents)
            if i % _SOME == 0:
                _tell(f"{what}: {i:,} of {agents:,} agents, {time.monotonic() - start:.0f} s")

    await asyncio.gather(*(work() for _ in range(_SIDE_BY_SIDE)))
    for at in range(0, agents * _EVENTS_OF_ONE, 1000):
        await store.append_events(_LOG, [_event(seq) for seq in range(at, at + 1000)])
    _tell(f"{what}: made in {time.monotonic() - start:.0f} s", ended=True)


def _tell(text: str, *, ended: bool = False) -> None:
    sys.stderr.write(f"\r{text:78}" + ("\n" if ended else ""))
    sys.stderr.flush()


# --- what is asked ----------------------------------------------------------------------------------------------------


class Search(NamedTuple):
    """A call.

    Attributes:
        ask: makes it.
        once: it takes long, or changes what is stored, and is made once.
    """

    name: str
    ask: Callable[[ExtendedStore], Awaitable[object]]
    once: bool = False


async def _events(store: ExtendedStore, most: int, **how: Any) -> int:
    """Read some events, not one page only."""
    read = 0
    async for _ in store.read_events(_LOG, **how):
        read += 1
        if read == most:
            break
    return read


def _shown(filters: Mapping[str, Any]) -> str:
    given = [f"{name}={value}" for name, value in filters.items() if name != "metadata"]
    given += [f"{key}={value}" for key, value in filters.get("metadata", {}).items()]
    return ", ".join(given) or "no filter"


def _search(kind: str, **filters: Any) -> Search:
    return Search(f"{kind}: {_shown(filters)}", lambda s: getattr(s, f"query_{kind}")(**filters))


async def named(store: ExtendedStore, agents: int) -> list[Search]:
    """Each way in which agents, operators and dashboards look, the suspicious ones among them."""
    middle = _began(agents // 2)
    half = agents * MESSAGES // 2
    sessions = (await store.query_sessions(offset=agents // 2, limit=100)).next_cursor
    messages = (await store.query_messages(offset=half, limit=100)).next_cursor
    return [
        Search("load_messages of one agent", lambda s: s.load_messages(_name(77))),
        Search("load_info", lambda s: s.load_info(_name(77))),
        Search("aggregate_stats", lambda s: s.aggregate_stats(_name(77))),
        Search("list(prefix) of a hundred", lambda s: s.list("agt-0000")),
        _search("sessions"),
        _search("sessions", template_id="template-3"),
        _search("sessions", user_id="u-7"),
        _search("sessions", sort_by="updated_at"),
        _search("sessions", sort_by="message_count"),
        _search("sessions", metadata={"plan": "gold"}),
        _search("sessions", metadata={"plan": "gold"}, user_id="u-7"),
        _search("sessions", metadata={"campaign": "first"}),
        Search(
            "sessions: updated_before the middle", lambda s: s.query_sessions(updated_before=middle + agents * _STEP)
        ),
        Search("sessions: a cursor in the middle", lambda s: s.query_sessions(cursor=sessions)),
        Search("sessions: offset in the middle", lambda s: s.query_sessions(offset=agents // 2)),
        _search("messages"),
        _search("messages", role="user"),
        _search("messages", role="system"),
        _search("messages", content_type="text"),
        _search("messages", content_type="image"),
        _search("messages", agent_id=_name(77)),
        Search("messages: a cursor in the middle", lambda s: s.query_messages(cursor=messages)),
        Search("messages: offset in the middle", lambda s: s.query_messages(offset=half)),
        _search("tool_calls"),
        _search("tool_calls", tool_name="tool_3"),
        _search("tool_calls", state="FAILED"),
        _search("tool_calls", state="PENDING"),
        _search("tool_calls", has_approval=True),
        _search("tool_calls", is_error=True),
        Search("5,000 events by seq", lambda s: _events(s, 5000)),
        Search("5,000 events by offset", lambda s: _events(s, 5000, after_offset=0)),
        Search(
            "100 events by seq from the middle",
            lambda s: _events(s, 100, since=Bookmark(agents * _EVENTS_OF_ONE // 2, 0)),
        ),
        Search("last_bookmark", lambda s: s.last_bookmark(_LOG)),
        Search("check_consistency of one agent", lambda s: s.check_consistency(_name(77))),
        Search("get_metrics", lambda s: s.get_metrics()),
    ]


def at_last() -> list[Search]:
    """Calls that go through everything, and one that changes it."""
    return [
        Search("check_consistency of all", lambda s: s.check_consistency(), once=True),
        Search("delete_many of a fifth of the agents", lambda s: s.delete_many(template_id="template-4"), once=True),
    ]


_FILTERS: Final[Mapping[str, Sequence[dict[str, Any]]]] = {
    "sessions": (
        {"template_id": "template-3"},
        {"user_id": "u-7"},
        {"metadata": {"plan": "gold"}},
        {"metadata": {"campaign": "first"}},
        {"created_after": "middle"},
        {"created_before": "middle"},
        {"updated_after": "late"},
        {"updated_before": "late"},
    ),
    "messages": (
        {"role": "user"},
        {"role": "system"},
        {"content_type": "text"},
        {"content_type": "image"},
        {"agent_id": _name(77)},
        {"created_after": "middle"},
        {"created_before": "middle"},
    ),
    "tool_calls": (
        {"tool_name": "tool_3"},
        {"state": "COMPLETED"},
        {"state": "FAILED"},
        {"state": "PENDING"},
        {"is_error": True},
        {"has_approval": True},
        {"agent_id": _name(77)},
        {"created_after": "middle"},
        {"created_before": "middle"},
    ),
}
_ORDERS: Final[Mapping[str, Sequence[dict[str, str]]]] = {
    "sessions": [
        {"sort_by": by, "order": order}
        for by in ("created_at", "updated_at", "message_count")
        for order in ("desc", "asc")
    ],
    "messages": [{"order": "desc"}, {"order": "asc"}],
    "tool_calls": [{"order": "desc"}, {"order": "asc"}],
}


def combined(agents: int) -> Iterator[tuple[str, Search]]:
    """(kind and order, search) for no filter, each filter, and each two of different names, in each order."""
    times = {"middle": _began(agents // 2), "late": _began(agents // 2) + agents * _STEP}
    for kind, filters in _FILTERS.items():
        some = [{}, *filters, *({**a, **b} for a, b in itertools.combinations(filters, 2) if not set(a) & set(b))]
        for order in _ORDERS[kind]:
            for each in some:
                asked = {name: times.get(value, value) if type(value) is str else value for name, value in each.items()}
                arguments = {**asked, **order}
                yield (
                    f"{kind}, by {' '.join(order.values())}",
                    Search(_shown(each), lambda s, kind=kind, a=arguments: getattr(s, f"query_{kind}")(**a)),
                )
