"""The writes that kills, cancellations and outages interrupt, and what an agent looks like before and after each."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from kode_conformance.context import Violation, difference
from kode_conformance.harness import keeps_documents, keeps_tags
from kode_conformance.values import samples
from kode_core.model import (
    ABSENT,
    AgentEvent,
    AgentInfo,
    AgentRecords,
    DeleteDocument,
    Document,
    DocumentWrite,
    Message,
    PutDocument,
)
from kode_core.protocols import ExtendedStore

__all__ = [
    "DOCUMENT_WRITES",
    "EXTENDED_WRITES",
    "FORK",
    "FORKS",
    "IMPORT",
    "LOOKS",
    "WRITES",
    "Expected",
    "Portrait",
    "Write",
    "add_writes",
    "expected",
    "forked",
    "missing_kinds",
    "overwrite",
    "portrait",
    "records_to_import",
    "seed",
    "write_named",
    "write_on",
]

FORKS: Final = 3
"""How many copies the write ``batch_fork`` makes."""

Portrait = dict[str, Any]
"""Everything of an agent by kind, without values that differ from agent to agent."""


async def seed(store: ExtendedStore, agent_id: str) -> None:
    """Make an agent that has something of most kinds."""
    await store.save_turn(
        agent_id,
        messages=samples.messages(3),
        tool_calls=[samples.tool_call(0), samples.tool_call(1)],
        todos=samples.todos("first"),
        info=samples.info(agent_id),
        events=samples.events(2),
    )
    await store.save_snapshot(agent_id, samples.snapshot())
    if keeps_documents():
        await store.put_document(agent_id, "c", "seeded", {"n": 1}, **_tagged("seeded"))


_RUNS: Final = ("seeded", "changed")


def _tagged(run: str) -> dict[str, Any]:
    """The tag of a document, for a store that keeps tags."""
    return {"tags": {"run": run}} if keeps_tags() else {}


def _changed_tags() -> list[DocumentWrite]:
    tagged = _tagged("changed")
    return [PutDocument("c", "seeded", 2, **tagged), PutDocument("c", "new", 2, **tagged)]


class Write(NamedTuple):
    """A write to an agent that ``prepare`` has made."""

    name: str
    act: Callable[[ExtendedStore, str], Awaitable[Any]]
    prepare: Callable[[ExtendedStore, str], Awaitable[None]] = seed


async def overwrite(store: ExtendedStore, agent_id: str) -> None:
    """Save every kind anew, so that nothing of an earlier write is visible."""
    await store.save_turn(
        agent_id,
        messages=samples.messages(2, 70),
        tool_calls=[samples.tool_call(70)],
        todos=samples.todos("last"),
        info=samples.info(agent_id, template_id="last", metadata={"userId": "last"}),
        events=samples.events(1, 70),
    )
    await store.save_snapshot(agent_id, samples.snapshot(count=7))
    await store.save_history_window(agent_id, samples.window(timestamp=1))
    await store.save_compression_record(agent_id, samples.compression(timestamp=1))
    await store.save_recovered_file(agent_id, samples.recovered(content="last"))
    await store.save_media_cache(agent_id, [samples.media("last")])
    if keeps_documents():
        await store.write_documents(agent_id, [PutDocument("c", "seeded", "last"), DeleteDocument("c", "new")])


async def _save_messages(store: ExtendedStore, agent_id: str) -> None:
    await store.save_messages(agent_id, [*samples.messages(2), *samples.messages(4, 20)])


async def _append_messages(store: ExtendedStore, agent_id: str) -> None:
    await store.append_messages(agent_id, samples.messages(2, 30))


async def _save_tool_calls(store: ExtendedStore, agent_id: str) -> None:
    await store.save_tool_call_records(agent_id, [samples.tool_call(1), samples.tool_call(5), samples.tool_call(6)])


async def _upsert_tool_calls(store: ExtendedStore, agent_id: str) -> None:
    changed = samples.tool_call(0, state="FAILED", is_error=True)
    await store.upsert_tool_call_records(agent_id, [changed, samples.tool_call(7)])


async def _save_info(store: ExtendedStore, agent_id: str) -> None:
    await store.save_info(agent_id, samples.info(agent_id, template_id="other", metadata={"userId": "u-2"}))


async def _save_turn(store: ExtendedStore, agent_id: str) -> None:
    more: Any = {"documents": _CHANGED} if keeps_documents() else {}
    await store.save_turn(
        agent_id,
        append=samples.messages(2, 40),
        upsert_tool_calls=[samples.tool_call(0, state="SEALED"), samples.tool_call(9)],
        todos=samples.todos("second", "third"),
        info=samples.info(agent_id, breakpoint="PRE_MODEL"),
        events=samples.events(2, 50),
        **more,
    )


_CHANGED: Final[Sequence[DocumentWrite]] = (DeleteDocument("c", "seeded"), PutDocument("c", "new", [1, 2]))


WRITES: Final[tuple[Write, ...]] = (
    Write("save_messages", _save_messages),
    Write("append_messages", _append_messages),
    Write("save_tool_call_records", _save_tool_calls),
    Write("upsert_tool_call_records", _upsert_tool_calls),
    Write("save_turn", _save_turn),
    Write("save_info", _save_info),
    Write("save_snapshot", lambda store, agent_id: store.save_snapshot(agent_id, samples.snapshot(count=4))),
    Write("append_event", lambda store, agent_id: store.append_event(agent_id, samples.event(60))),
    Write("append_events", lambda store, agent_id: store.append_events(agent_id, samples.events(3, 60))),
    Write("save_todos", lambda store, agent_id: store.save_todos(agent_id, samples.todos("a", "b"))),
    Write("save_history_window", lambda store, agent_id: store.save_history_window(agent_id, samples.window())),
    Write(
        "save_compression_record",
        lambda store, agent_id: store.save_compression_record(agent_id, samples.compression()),
    ),
    Write("save_recovered_file", lambda store, agent_id: store.save_recovered_file(agent_id, samples.recovered())),
    Write("save_media_cache", lambda store, agent_id: store.save_media_cache(agent_id, [samples.media()])),
    Write("delete", lambda store, agent_id: store.delete(agent_id)),
)
"""Every kind of write to one agent that every store has."""


async def _append_once(store: ExtendedStore, agent_id: str) -> None:
    await store.append_messages_once(agent_id, {f"key {i}": samples.message(i) for i in (80, 81)})


DOCUMENT_WRITES: Final[tuple[Write, ...]] = (
    Write("append_messages_once", _append_once),
    Write("put_document", lambda store, agent_id: store.put_document(agent_id, "c", "new", "put")),
    Write("delete_document", lambda store, agent_id: store.delete_document(agent_id, "c", "seeded")),
    Write("write_documents", lambda store, agent_id: store.write_documents(agent_id, _CHANGED)),
    Write("write_documents with tags", lambda store, agent_id: store.write_documents(agent_id, _changed_tags())),
)
"""The writes of stores that keep documents."""


def records_to_import(count: int = 3) -> AgentRecords:
    """An agent with something of every kind, and *count* messages, tool calls and events."""
    return AgentRecords(
        agent_id="elsewhere",
        info=samples.info("elsewhere", metadata={"userId": "u-9"}),
        updated_at=samples.T0 + 9,
        messages=samples.messages(count),
        message_times=[samples.T0 + i // 2 for i in range(count)],
        tool_calls=[samples.tool_call(i) for i in range(count)],
        todos=samples.todos("imported"),
        history_windows=[samples.window(f"win-{i}") for i in range(2)],
        compression_records=[samples.compression(f"cmp-{i}") for i in range(2)],
        recovered_files=[samples.recovered(f"file-{i}") for i in range(2)],
        media_cache=[samples.media(f"sha256:{i}") for i in range(2)],
        snapshots=[samples.snapshot(f"sfp-{i}", samples.T0 - i) for i in range(2)],
        documents=_DOCUMENTS if keeps_documents() else (),
        events=samples.events(count, 5),
    )


_DOCUMENTS: Final = tuple(
    Document(collection=collection, key="k", value=[collection], version=ABSENT, updated_at=samples.T0 + i)
    for i, collection in enumerate(("c", "d"))
)

IMPORT: Final = Write("import_agent", lambda store, agent_id: store.import_agent(agent_id, records_to_import()))
"""The write of an agent that does not exist."""


async def _not_there(_store: ExtendedStore, _agent_id: str) -> None:
    """The write needs an agent that does not exist."""


EXTENDED_WRITES: Final[tuple[Write, ...]] = (
    Write("emit", lambda store, agent_id: store.emit(agent_id, "tick", {"n": 1})),
    Write(
        "emit_many",
        lambda store, agent_id: store.emit_many(agent_id, [AgentEvent("progress", "tick", {"n": n}) for n in range(3)]),
    ),
    Write("update_info", lambda store, agent_id: store.update_info(agent_id, {"updated": 1}, remove=["userId"])),
    Write("replace_message", lambda store, agent_id: store.replace_message(agent_id, 1, samples.message(90))),
    Write("truncate_messages", lambda store, agent_id: store.truncate_messages(agent_id, 1)),
    Write("delete_snapshot", lambda store, agent_id: store.delete_snapshot(agent_id, "sfp-1")),
    Write("create_agent", lambda store, agent_id: store.create_agent(agent_id, samples.info(agent_id)), _not_there),
    IMPORT._replace(prepare=_not_there),
)
"""The writes to one agent that extended stores have besides."""

FORK: Final = Write("batch_fork", lambda store, agent_id: store.batch_fork(agent_id, FORKS))
"""The write that makes other agents."""


_more: dict[str, Write] = {}


def add_writes(writes: Iterable[Write]) -> None:
    """Let :func:`write_named` know these as well."""
    _more.update({write.name: write for write in writes})


def write_named(name: str) -> Write:
    """The write of that name."""
    return _more.get(name) or next(write for write in (*WRITES, *DOCUMENT_WRITES, FORK, IMPORT) if write.name == name)


# --- What an agent looks like -----------------------------------------------------------------------------------------


async def _info(store: ExtendedStore, agent_id: str) -> AgentInfo | None:
    return _nameless(await store.load_info(agent_id), agent_id)


async def _listed(store: ExtendedStore, agent_id: str) -> bool:
    return agent_id in await store.list(agent_id)


async def _events(store: ExtendedStore, agent_id: str) -> list[object]:
    return [(event.bookmark, event.cursor, event.event) async for event in store.read_events(agent_id)]


async def _documents(store: ExtendedStore, agent_id: str) -> list[object]:
    if not keeps_documents():
        return []
    found: list[object] = [(one.key, one.value) async for one in store.iter_documents(agent_id, "c")]
    for run in _RUNS if keeps_tags() else ():
        page = await store.query_documents("c", {"run": run}, agent_id=agent_id)
        found += [(run, one.key, one.value) for one in page]
    return found


LOOKS: Final[Mapping[str, Callable[[ExtendedStore, str], Awaitable[Any]]]] = {
    "exists": lambda store, agent_id: store.exists(agent_id),
    "listed": _listed,
    "messages": lambda store, agent_id: store.load_messages(agent_id),
    "tool calls": lambda store, agent_id: store.load_tool_call_records(agent_id),
    "todos": lambda store, agent_id: store.load_todos(agent_id),
    "info": _info,
    "snapshots": lambda store, agent_id: store.list_snapshots(agent_id),
    "windows": lambda store, agent_id: store.load_history_windows(agent_id),
    "compressions": lambda store, agent_id: store.load_compression_records(agent_id),
    "recovered files": lambda store, agent_id: store.load_recovered_files(agent_id),
    "media": lambda store, agent_id: store.load_media_cache(agent_id),
    "events": _events,
    "documents": _documents,
}
"""How each kind is read."""


async def portrait(store: ExtendedStore, agent_id: str) -> Portrait:
    """Everything of an agent, read with the methods of Store alone, and its documents where there are any."""
    return {kind: await look(store, agent_id) for kind, look in LOOKS.items()}


def missing_kinds(found: Portrait) -> list[str]:
    """The kinds without records, among the kinds that the store keeps."""
    return [kind for kind, records in found.items() if not records and (kind != "documents" or keeps_documents())]


def _nameless(info: AgentInfo | None, agent_id: str) -> AgentInfo | None:
    if info is None:
        return None
    if info.agent_id != agent_id:
        raise Violation(f"the info of agent {agent_id!r} is that of {info.agent_id!r}")
    return info.replace(agent_id="it")


def forked(found: Portrait) -> Portrait:
    """The parts that all forks of one agent have in common."""
    info = found["info"]
    return {**found, "info": info and info.replace(created_at=0)}


class Expected(NamedTuple):
    """The allowed states of an agent when a write was interrupted."""

    before: Portrait
    after: Portrait

    def problem(self, found: Portrait, *, done: bool) -> str | None:
        """The fault of *found*, which must have the write whole or, unless it is *done*, not at all."""
        missed = difference(found, self.after)
        if missed is None or (not done and difference(found, self.before) is None):
            return None
        if done:
            return f"it was acknowledged, and is not there: {missed}"
        kinds = [kind for kind in found if difference(found[kind], self.before[kind]) is not None]
        return f"it is neither as before nor as after it, in {', '.join(kinds)}: {missed}"


async def expected(store: ExtendedStore, write: Write, *, with_seed: bool = True) -> Expected:
    """See what *write* does when nothing interrupts it; without the seed it is the first of its agent."""
    agent_id = f"{write.name}-{uuid.uuid4().hex}"
    if with_seed:
        await write.prepare(store, agent_id)
    before = await portrait(store, agent_id)
    await write.act(store, agent_id)
    after = await portrait(store, agent_id)
    if write is not FORK and difference(before, after) is None:
        raise Violation(f"{write.name} returned, and changed nothing")
    return Expected(before, after)


async def write_on(store: ExtendedStore, agent_id: str, mark: int) -> None:
    """See that the agent can be written as if nothing had been.

    Raises:
        Violation: a new message or event is not at its place.
    """
    before = [event.offset async for event in store.read_events(agent_id)]
    message: Message = samples.message(mark)
    await store.append_messages(agent_id, [message])
    offset = await store.append_event(agent_id, samples.event(mark))
    if (await store.load_messages(agent_id))[-1:] != [message]:
        raise Violation("a message that was appended later is not the last one")
    after: Sequence[int] = [event.offset async for event in store.read_events(agent_id)]
    if any(old >= offset for old in before):
        raise Violation(f"an event that was appended later got the offset {offset}, with {before} before it")
    if sorted(after) != sorted([*before, offset]):
        raise Violation(f"an event was appended at {offset}, after {before}; then the log had the offsets {after}")
