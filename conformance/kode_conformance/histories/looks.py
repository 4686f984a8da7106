"""Looks at a store: every read and query with every filter, made from what the agents hold and once held."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, cast

from msgspec.structs import replace

from kode_conformance.context import Violation, difference
from kode_conformance.harness import finds_any_of, keeps_tags
from kode_conformance.histories.answers import answer, content_types, texts_in
from kode_conformance.histories.model import AgentModel, StoreModel
from kode_core.model import CHANNELS, Bookmark

__all__ = ["KINDS", "Known", "Look", "all_pages", "ask", "document_looks", "kinds_of", "loads", "looks", "problem_of"]

KINDS: Final = ("messages", "tool_calls", "sessions", "counts", "events", "documents")
"""The subjects of looks; ``counts`` are the values of sessions that change with lists."""

MOST: Final = 10_000
"""The largest limit of a query."""

_TOUCHED: Final[Mapping[str, Sequence[str]]] = {
    "save_messages": ("messages", "counts"),
    "append_messages": ("messages", "counts"),
    "save_tool_call_records": ("tool_calls", "counts"),
    "upsert_tool_call_records": ("tool_calls", "counts"),
    "append_event": ("events",),
    "append_events": ("events",),
    **dict.fromkeys(("pop_messages", "truncate_messages", "replace_message"), ("messages", "counts")),
    **dict.fromkeys(("emit", "emit_many"), ("events",)),
    **dict.fromkeys(("save_info", "create_agent", "update_info"), ("sessions", "counts")),
    "save_turn": KINDS,
    "delete": KINDS,
    "delete_many": KINDS,
    "batch_fork": KINDS,
    "fork": KINDS,
    "reopen": KINDS,
    "look": KINDS,
    "prime": (),
    "pause": (),
}


def kinds_of(op: str) -> Sequence[str]:
    """The kinds that a call of that name may change."""
    return _TOUCHED.get(op, ("documents",))


class Look(NamedTuple):
    """One read.

    Attributes:
        method: of the store.
        args: of the method; the agent's id for reads by agent.
        filters: named arguments.
        whole: follow the cursors to the end.
    """

    method: str
    args: tuple[Any, ...] = ()
    filters: Mapping[str, Any] = {}
    whole: bool = False

    def code(self, store: str) -> str:
        """The read as Python."""
        given = ", ".join([*map(repr, self.args), *(f"{name}={value!r}" for name, value in self.filters.items())])
        if self.whole:
            return f"await all_pages({store}.{self.method}, {given})"
        if _streams(self.method):
            return f"[record async for record in {store}.{self.method}({given})]"
        return f"await {store}.{self.method}({given})"

    def __str__(self) -> str:
        return self.code("store").removeprefix("await ").replace("store.", "")


def _streams(method: str) -> bool:
    return method.startswith(("iter_", "read_"))


async def all_pages(query: Callable[..., Any], *args: Any, **filters: Any) -> list[Any]:
    """The records of all pages of a query."""
    page = await query(*args, **filters)
    found, seen = list(page), set[str]()
    while page.next_cursor is not None:
        if len(page) < filters.get("limit", len(page)):
            raise Violation(
                f"a page of {len(page)} of at most {filters['limit']} records has a cursor, and is not the last"
            )
        if page.next_cursor in seen:
            raise Violation(f"the cursors of {query.__name__}({filters!a:.200}) never end")
        seen.add(page.next_cursor)
        page = await query(*args, **filters, cursor=page.next_cursor)
        if len(page) > filters.get("limit", MOST):
            raise Violation(f"a page has {len(page)} records, and the limit is {filters['limit']}")
        found += page
    return found


async def ask(store: Any, look: Look) -> object:
    """The answer of a store."""
    call = getattr(store, look.method)
    if look.whole:
        return await all_pages(call, *look.args, **look.filters)
    if _streams(look.method):
        return [record async for record in call(*look.args, **look.filters)]
    return await call(*look.args, **look.filters)


def problem_of(got: Any, model: StoreModel, look: Look, mine: Callable[[str], bool]) -> tuple[str, object]:
    """The fault of an answer, and the correct answer; records of agents that are not *mine* do not count."""
    want: Any = answer(model, look.method, look.args, look.filters, whole=look.whole)
    if look.method == "aggregate_stats":
        for name in ("tool_calls_by_name", "tool_calls_by_state"):
            found = difference(sorted(getattr(got, name).items()), sorted(getattr(want, name).items()))
            if found is not None:
                return f"{name}: {found}", want
        return difference(*(replace(r, tool_calls_by_name={}, tool_calls_by_state={}) for r in (got, want))) or "", want
    if not look.args and "agent_id" not in look.filters:
        got = [one for one in got if mine(one if isinstance(one, str) else one.agent_id)]
    elif look.method == "list":
        got = [one for one in got if mine(one)]
    return _shown_pair(got, want), want


def _shown_pair(got: Any, want: Any) -> str:
    """The difference; of lists of records, which one is missing or too many is said first."""
    found = difference(got, want)
    if found is None or not isinstance(want, list) or not want or not hasattr(want[0], "agent_id"):
        return found or ""
    places = [[(r.agent_id, getattr(r, "position", 0)) for r in records] for records in (got, want)]
    missing, too_many = (set(places[1]) - set(places[0])), (set(places[0]) - set(places[1]))
    if not missing and not too_many:
        return found
    said = [f"{what} {sorted(some)[:3]}" for what, some in (("missing", missing), ("too many", too_many)) if some]
    return f"{found}; {', '.join(said)}"


# --- what to look for -------------------------------------------------------------------------------------------------


class Known:
    """Values that records of an agent have or once had, by the filter that finds them; the latest are last."""

    def __init__(self) -> None:
        self._values: defaultdict[tuple[str, str], dict[str, Any]] = defaultdict(dict)
        self.keys: dict[str, None] = {}
        self.seqs: dict[int, None] = {}
        self.offsets: dict[int, None] = {}
        self.documents: dict[tuple[str, str], None] = {}

    def note(self, agent: AgentModel) -> None:
        """Remember the current values of the agent."""
        for message in agent.messages[:3] + agent.messages[-3:]:
            self._note("messages", "role", message.role)
            for kind in sorted(content_types(message)):
                self._note("messages", "content_type", kind)
            for text in texts_in(message)[:2]:
                part = text[len(text) // 3 : len(text) // 3 + 40]
                if part:
                    self._note("messages", "contains", part.swapcase())
            for key, value in [*(message.metadata or {}).items()][:2]:
                self._note("messages", "metadata", {key: value})
        for time in {*agent.learned.times[:1], *agent.learned.times[-1:]}:
            self._note("messages", "time", time)
        for call in agent.tool_calls[:3] + agent.tool_calls[-3:]:
            self._note("tool_calls", "tool_name", call.name)
            self._note("tool_calls", "state", call.state)
            self._note("tool_calls", "time", call.created_at)
        self.keys.update(dict.fromkeys(agent.snapshots))
        self.documents.update(dict.fromkeys(agent.documents))
        for logged in agent.events[:2] + agent.events[-3:]:
            self.seqs[logged.timeline.bookmark.seq] = None
            if logged.offset is not None:
                self.offsets[logged.offset] = None
        self._note_info(agent)

    def _note_info(self, agent: AgentModel) -> None:
        info = agent.info
        if info is None:
            return
        self._note("sessions", "template_id", info.template_id)
        self._note("sessions", "time", info.created_at)
        if agent.learned.updated_at is not None:
            self._note("sessions", "updated", agent.learned.updated_at)
        for key, value in info.metadata.items():
            self._note("sessions", "metadata", {key: value})
            if key == "userId" and isinstance(value, str):
                self._note("sessions", "user_id", value)

    def _note(self, kind: str, name: str, value: Any) -> None:
        values = self._values[kind, name]
        text = repr(value)
        values.pop(text, None)
        values[text] = value

    def values(self, kind: str, name: str, turn: int, most: int) -> list[Any]:
        """Some of the values, others each turn, the latest always."""
        values = list(self._values[kind, name].values())
        if len(values) <= most:
            return values
        at = turn % (len(values) - 1)
        return [*(values[:-1] * 2)[at : at + most - 1], values[-1]]


_FILTERS: Final[Mapping[str, Sequence[str]]] = {
    "messages": ("role", "content_type", "contains", "metadata", "created"),
    "tool_calls": ("tool_name", "state", "is_error", "has_approval", "created"),
    "sessions": ("template_id", "user_id", "metadata", "created"),
}
_SORTS: Final = ("created_at", "updated_at", "message_count")
_NOBODY: Final[Mapping[str, Any]] = {
    "role": "nobody",
    "content_type": "nothing",
    "contains": "nothing that a message says",
    "tool_name": "nothing",
    "state": "NONE",
    "template_id": "nothing",
    "user_id": "nobody",
    "metadata": {"nothing": None},
}


def _singles(kind: str, known: Known, turn: int) -> list[dict[str, Any]]:
    """Filters with one condition."""
    found: list[dict[str, Any]] = []
    for name in _FILTERS[kind]:
        if name == "created":
            for i, time in enumerate(sorted(known.values(kind, "time", turn, 3)), turn):
                found.append({f"created_{('after', 'before')[i % 2]}": time + i // 2 % 2})
        elif name in ("is_error", "has_approval"):
            found += [{name: True}, {name: False}]
        else:
            values = known.values(kind, name, turn, 5) or [_NOBODY[name]]
            found += [{name: value} for value in values]
            if finds_any_of() and name not in ("metadata", "contains"):
                found.append({name: [*values[turn % 2 :], _NOBODY[name], *values[:1]]})
    return found


def _pairs(singles: Sequence[dict[str, Any]], turn: int, most: int) -> list[dict[str, Any]]:
    """Some filters with two conditions, others each turn."""
    pairs = [{**one, **two} for one, two in itertools.combinations(singles, 2) if one.keys() != two.keys()]
    step = 7 * turn
    return [pairs[(step + i * 5) % len(pairs)] for i in range(min(most, len(pairs)))]


def looks(kind: str, agent_id: str, known: Known, model: StoreModel, turn: int) -> Iterator[Look]:
    """Reads that could show what a change of that kind left behind."""
    if kind == "events":
        yield from _event_looks(agent_id, known, turn)
    own = {"agent_id": agent_id}
    if kind == "counts":
        yield from _session_orders(own, known, model, turn)
    if kind not in _FILTERS:
        return
    yield Look("aggregate_stats", (agent_id,))
    singles = _singles(kind, known, turn)
    for i, filters in enumerate([*singles, *_pairs(singles, turn, 3)]):
        variant = (turn + i) % 4
        method = f"{('query', 'iter')[variant % 2]}_{kind}"
        scope = own if variant < 2 and kind != "sessions" else {}
        limit = {"limit": MOST} if variant % 2 == 0 else {}
        yield Look(method, (), {**scope, **filters, **limit, "order": ("asc", "desc")[(turn + i // 2) % 2]})
    if kind != "sessions":
        yield from _parts(kind, own, model, turn)


def _session_orders(own: Mapping[str, Any], known: Known, model: StoreModel, turn: int) -> Iterator[Look]:
    """The session itself, its times, and its place among the others."""
    agent_id, agent = own["agent_id"], model.agents[own["agent_id"]]
    yield Look("query_sessions", (), own)
    yield Look("list", (agent_id[: len(agent_id) - turn % 2],))
    for time in known.values("sessions", "updated", turn, 2):
        yield Look("query_sessions", (), {f"updated_{('after', 'before')[turn % 2]}": time, "limit": MOST})
        yield Look("iter_sessions", (), {f"updated_{('before', 'after')[turn % 2]}": time + turn // 2 % 2})
    for sort_by in _SORTS:
        order = ("asc", "desc")[turn % 2]
        yield Look("query_sessions", (), {"sort_by": sort_by, "order": order, "limit": MOST})
    if agent.info is not None:
        yield from _parts("sessions", {"template_id": agent.info.template_id, "sort_by": _SORTS[turn % 3]}, model, turn)


def _parts(kind: str, scope: Mapping[str, Any], model: StoreModel, turn: int) -> Iterator[Look]:
    """Pages about as large as all there is, or small; and parts by limit and offset."""
    whole = answer(model, f"query_{kind}", (), {**scope, "limit": MOST}, whole=True)
    size = len(cast(Sequence[Any], whole))
    limit = max(1, (size - 1, size, size + 1, (size + 1) // 2, 1 if size < 8 else size // 3)[turn % 5])
    order = {} if turn % 2 else {"order": "asc"}
    yield Look(f"query_{kind}", (), {**scope, **order, "limit": limit}, whole=True)
    window = ({"limit": 1}, {"offset": 1}, {"offset": 1, "limit": 1}, {"limit": 0}, {"offset": size})[turn % 5]
    yield Look(f"query_{kind}", (), {**scope, **order, **window})


def _event_looks(agent_id: str, known: Known, turn: int) -> Iterator[Look]:
    """Parts of the log: each bound, each channel, and each of them together."""
    sinces = [Bookmark(seq, 0) for seq in list(known.seqs)[-4:]] or [Bookmark(-1, 0)]
    offsets = [0, *list(known.offsets)[-4:]]
    since, other = (sinces[(turn + i) % len(sinces)] for i in range(2))
    after, later = (offsets[(turn + i) % len(offsets)] for i in range(2))
    channel, second, third = (CHANNELS[(turn + i) % 3] for i in range(3))
    for filters in (
        {"since": since},
        {"since": other},
        {"after_offset": after},
        {"after_offset": later},
        {"channel": channel},
        {"channel": second, "since": since},
        {"channel": third, "after_offset": after},
        {"since": since, "after_offset": after},
        {"since": other, "after_offset": later, "channel": channel},
    ):
        yield Look("read_events", (agent_id,), filters)


_LOADS: Final[Mapping[str, Sequence[str]]] = {
    "messages": ("load_messages",),
    "tool_calls": ("load_tool_call_records",),
    "sessions": ("exists",),
    "counts": ("load_info",),
    "events": ("read_events", "last_bookmark"),
    "documents": (
        *("load_todos", "load_history_windows", "load_compression_records", "load_recovered_files"),
        *("load_media_cache", "list_snapshots"),
    ),
}


def loads(agent_id: str, known: Known, turn: int, kinds: Collection[str] = KINDS) -> Iterator[Look]:
    """The loads of an agent by its id."""
    for kind, methods in _LOADS.items():
        for method in methods if kind in kinds else ():
            yield Look(method, (agent_id,))
    if "documents" in kinds:
        keys = list(known.keys)[-2:] or ["none"]
        yield Look("load_snapshot", (agent_id, keys[turn % len(keys)]))


def document_looks(agent_id: str, known: Known, turn: int) -> Iterator[Look]:
    """Ranges, in each direction and in pages, and single ones of the documents that the agent has or had."""
    places = list(known.documents) or [("c", "k")]
    for i, collection in enumerate(dict.fromkeys(collection for collection, _ in places)):
        keys = [key for place, key in places if place == collection]
        one, two = sorted((keys[turn % len(keys)], keys[-1]))
        bounds: list[dict[str, Any]] = [{}, {"prefix": one}, {"start": one}, {"stop": two}, {"start": one, "stop": two}]
        given = {**bounds[(turn + i) % len(bounds)], **({"reverse": True} if (turn + i) % 2 else {})}
        yield Look("list_documents", (agent_id, collection))
        method = ("iter_documents", "list_document_keys", "list_documents")[turn % 3]
        yield Look(method, (agent_id, collection), given)
        yield Look("list_documents", (agent_id, collection), {"limit": 1 + turn % 3}, whole=True)
    for n in range(2) if keeps_tags() else ():
        collection, wanted = places[(turn + n) % len(places)][0], (str(turn % 3), ["0", "2"])[n]
        given = {"collection": collection, "tags": {"n": wanted}, "reverse": bool(turn % 2), "limit": 1 + turn % 3}
        yield Look("query_documents", filters=given, whole=True)
    yield Look("load_document", (agent_id, *places[turn % len(places)]))
    yield Look("load_document", (agent_id, "nothing", places[-1][1]))
