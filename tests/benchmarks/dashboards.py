"""Documents by their tags and rows in groups, next to the same questions to bare tables with the same indexes.

The floors are a table of documents and one of tags, and tables of sessions, messages and tool calls with the columns
that are grouped; their bodies are as long as the store's.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from kode_core import AgentInfo, ExtendedStore, Message, PutDocument, ToolCallRecord, create_extended_store
from tests.benchmarks.backends import Backend, Options
from tests.benchmarks.bare import Bare, bare_at
from tests.benchmarks.measure import Report, Row, interleaved

_ROUNDS: Final = 7
_CALLS: Final = 20
_SIZES: Final = (1_000, 100_000)
_AGENTS: Final = 100
_PAGE: Final = 20
_FLAT: Final = 1.5
_ROWS: Final = 50_000
_SESSIONS: Final = 2_000
_BODY: Final = "x" * 400
_OWNERS: Final = 50
"""A fiftieth of the documents has an owner, and a third of these a state."""

Call = Callable[[int], Awaitable[object]]


async def run(report: Report, backend: Backend) -> None:
    """Milliseconds of a page and of a count, as ratios to the floor and to the small store."""
    await _tags(report, backend)
    await _groups(report, backend)


# --- Tags -------------------------------------------------------------------------------------------------------------

_TAG_TABLES: Final = (
    "CREATE TABLE docs (agent {0}, key {0}, body {0}, PRIMARY KEY (agent, key))",
    "CREATE TABLE tags (tag {0}, value {0}, agent {0}, key {0}, PRIMARY KEY (tag, value, agent, key))",
)
_BY_TAG: Final = (
    "SELECT agent, key, body FROM tags JOIN docs USING (agent, key) WHERE tag = 'owner' AND value = $1"
    " ORDER BY agent, key LIMIT $2"
)
_BY_TWO: Final = (
    "SELECT agent, key, body FROM tags t JOIN docs USING (agent, key) WHERE tag = 'owner' AND value = $1 AND EXISTS"
    " (SELECT 1 FROM tags u WHERE u.tag = 'state' AND u.value = $2 AND u.agent = t.agent AND u.key = t.key LIMIT 1)"
    " ORDER BY agent, key LIMIT $3"
)


def _text_type(options: Options) -> str:
    return 'text COLLATE "C"' if options["type"] == "postgres" else "text"


def _owner(number: int) -> str:
    return f"owner-{number % _OWNERS}"


def _state(number: int) -> str:
    return ("open", "done", "late")[number // _OWNERS % 3]


async def _tags(report: Report, backend: Backend) -> None:
    report.title("Documents by tags")
    contestants = dict[str, Call]()
    async with (
        backend.space() as small,
        backend.space() as large,
        backend.space() as small_floor,
        backend.space() as large_floor,
        create_extended_store(dict(small)) as small_store,
        create_extended_store(dict(large)) as large_store,
        bare_at(small_floor) as bare_small,
        bare_at(large_floor) as bare_large,
    ):
        for size, store, bare, places in (
            (_SIZES[0], small_store, bare_small, (small, small_floor)),
            (_SIZES[1], large_store, bare_large, (large, large_floor)),
        ):
            await _fill_documents(store, bare, size, _text_type(places[0]))
            for place in places:
                await backend.settle(place)
            contestants |= _pages(size, store, bare)
        found = await interleaved(_ROUNDS, **contestants)
    for what in ("one tag", "two tags"):
        for size in _SIZES:
            taken, name = found[f"{what} {size}"], f"a page by {what}, of {size:,} documents"
            if bare_small is not None:
                ratio = taken / found[f"bare {what} {size}"]
                report.add(Row(name, taken / _CALLS * 1e3, "ms", ratio, bare_small.driver))
            if size != _SIZES[0]:
                ratio = taken / found[f"{what} {_SIZES[0]}"]
                target = None if bare_small is None else _FLAT
                report.add(Row(name, taken / _CALLS * 1e3, "ms", ratio, f"of {_SIZES[0]:,}", target))


async def _fill_documents(store: ExtendedStore, bare: Bare | None, size: int, text: str) -> None:
    if bare is not None:
        await bare.make(*(table.format(text) for table in _TAG_TABLES))
    each = size // _AGENTS
    for agent in range(_AGENTS):
        numbers = range(agent * each, (agent + 1) * each)
        agent_id, value = f"agt-{agent:03}", {"text": _BODY}
        await store.write_documents(
            agent_id,
            [PutDocument("c", f"{n:07}", value, tags={"owner": _owner(n), "state": _state(n)}) for n in numbers],
        )
        if bare is not None:
            await bare.write(
                ("INSERT INTO docs VALUES ($1, $2, $3)", [(agent_id, f"{n:07}", json.dumps(value)) for n in numbers]),
                (
                    "INSERT INTO tags VALUES ($1, $2, $3, $4)",
                    [
                        (tag, value, agent_id, f"{n:07}")
                        for n in numbers
                        for tag, value in (("owner", _owner(n)), ("state", _state(n)))
                    ],
                ),
            )


def _pages(size: int, store: ExtendedStore, bare: Bare | None) -> dict[str, Call]:
    """A page of documents, many times; each has as many documents in the small store as in the large one."""
    most = min(_PAGE, _SIZES[0] // _OWNERS // 3)

    async def by_one(i: int) -> Sequence[Any]:
        return await store.query_documents("c", {"owner": _owner(i)}, limit=most)

    async def by_two(i: int) -> Sequence[Any]:
        return await store.query_documents("c", {"owner": _owner(i), "state": "open"}, limit=most)

    def bare_page(statement: str, *state: str) -> Callable[[int], Awaitable[Sequence[Any]]]:
        async def page(i: int) -> Sequence[Any]:
            assert bare is not None
            rows = await bare.read(statement, _owner(i), *state, most)
            return [(agent, key, json.loads(body)) for agent, key, body in rows]

        return page

    def many(page: Callable[[int], Awaitable[Sequence[Any]]]) -> Call:
        async def pages(i: int) -> None:
            for call in range(_CALLS):
                assert len(await page(i * 7 + call)) == most

        return pages

    found = {f"one tag {size}": many(by_one), f"two tags {size}": many(by_two)}
    if bare is not None:
        found[f"bare one tag {size}"] = many(bare_page(_BY_TAG))
        found[f"bare two tags {size}"] = many(bare_page(_BY_TWO, "open"))
    return found


# --- Groups -----------------------------------------------------------------------------------------------------------

_GROUP_TABLES: Final = (
    "CREATE TABLE sessions (agent {0}, template {0}, created bigint, body {0}, PRIMARY KEY (agent))",
    "CREATE INDEX sessions_template ON sessions (template, created, agent)",
    "CREATE TABLE calls (agent {0}, position bigint, created bigint, tool {0}, state {0}, body {0},"
    " PRIMARY KEY (agent, position))",
    "CREATE INDEX calls_agent ON calls (agent, created, position, tool, state)",
    "CREATE TABLE messages (agent {0}, position bigint, created bigint, role {0}, body {0},"
    " PRIMARY KEY (agent, position))",
    "CREATE INDEX messages_created ON messages (created, agent, position)",
)


async def _groups(report: Report, backend: Backend) -> None:
    report.title(f"Groups of {_SESSIONS:,} sessions, {_ROWS:,} messages and {_ROWS:,} tool calls")
    async with (
        backend.space() as options,
        backend.space() as place,
        create_extended_store(dict(options)) as store,
        bare_at(place) as bare,
    ):
        await _fill_rows(store, bare, _text_type(options))
        for one in (options, place):
            await backend.settle(one)
        asked: dict[str, tuple[Callable[[], Awaitable[Sequence[Any]]], str]] = {
            "sessions by template": (
                lambda: store.group_sessions("template_id"),
                "SELECT template, count(*) FROM sessions GROUP BY template",
            ),
            "tool calls by tool and state": (
                lambda: store.group_tool_calls(["tool_name", "state"]),
                "SELECT tool, state, count(*) FROM calls GROUP BY tool, state",
            ),
            "messages by role": (
                lambda: store.group_messages("role"),
                "SELECT role, count(*) FROM messages GROUP BY role",
            ),
            "messages by day": (
                lambda: store.group_messages("day"),
                "SELECT created / 86400000, count(*) FROM messages GROUP BY created / 86400000",
            ),
        }
        for name, (ours, statement) in asked.items():
            await _group(report, name, ours, bare, statement)


async def _group(
    report: Report, name: str, ours: Callable[[], Awaitable[Sequence[Any]]], bare: Bare | None, statement: str
) -> None:
    contestants: dict[str, Call] = {"ours": lambda _: ours()}
    if bare is not None:
        assert len(await ours()) == len(await bare.read(statement))
        contestants["bare"] = lambda _: bare.read(statement)
    found = await interleaved(_ROUNDS, **contestants)
    ratio, driver = (None, "") if bare is None else (found["ours"] / found["bare"], bare.driver)
    report.add(Row(name, found["ours"] * 1e3, "ms", ratio, driver))


async def _fill_rows(store: ExtendedStore, bare: Bare | None, text: str) -> None:
    if bare is not None:
        await bare.make(*(table.format(text) for table in _GROUP_TABLES))
    for start in range(0, _SESSIONS, 500):
        infos = [
            AgentInfo(agent_id=f"agt-{i:05}", template_id=f"t{i % 10}", created_at=i) for i in range(start, start + 500)
        ]
        await asyncio.gather(*(store.save_info(info.agent_id, info) for info in infos))
        if bare is not None:
            rows = [(info.agent_id, info.template_id, info.created_at, _BODY) for info in infos]
            await bare.write(("INSERT INTO sessions VALUES ($1, $2, $3, $4)", rows))
    each = _ROWS // _AGENTS
    for agent in range(_AGENTS):
        agent_id = f"agt-{agent:05}"
        calls = [_call(agent * each + i) for i in range(each)]
        await store.append_messages(agent_id, [_message(i) for i in range(each)])
        await store.upsert_tool_call_records(agent_id, calls)
        if bare is not None:
            times = [one.created_at for one in await store.query_messages(agent_id=agent_id, order="asc", limit=each)]
            await bare.write(
                (
                    "INSERT INTO calls VALUES ($1, $2, $3, $4, $5, $6)",
                    [(agent_id, i, one.created_at, one.name, one.state, _BODY) for i, one in enumerate(calls)],
                ),
                (
                    "INSERT INTO messages VALUES ($1, $2, $3, $4, $5)",
                    [(agent_id, i, time, _message(i).role, _BODY) for i, time in enumerate(times)],
                ),
            )


def _message(i: int) -> Message:
    return Message.user(_BODY) if i % 2 else Message.assistant(_BODY)


def _call(i: int) -> ToolCallRecord:
    state = "COMPLETED" if i % 7 else "FAILED"
    return ToolCallRecord(
        id=f"c{i}", name=f"tool_{i % 20}", state=state, result=_BODY, created_at=i * 1_000, updated_at=i * 1_000
    )
