"""Importing agents that other programs recorded: each is written in one piece, or reported.

An *importer* reads the store of another program. A distribution brings one by an entry point in the group
``kode.importers``; ``kode import --from NAME`` finds it by its name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final, Literal, TypeAlias

import msgspec
from msgspec.structs import replace as changed

from kode_core.errors import InvalidArgumentError
from kode_core.ids import nearest
from kode_core.model import AgentRecords
from kode_core.moving.lines import fingerprint
from kode_core.moving.placing import write_agent
from kode_core.protocols import ExtendedStore

__all__ = [
    "GROUP",
    "ForeignAgent",
    "Found",
    "Imported",
    "Importer",
    "Outcome",
    "counts_of",
    "find_importer",
    "import_foreign",
    "outcome_of",
    "place",
]

GROUP: Final = "kode.importers"
"""The entry point group of importers, each an :data:`Importer` under the name of its format."""
_OF_OTHERS: Final = {"adk": "kode-adk", "claude": "kode-claude-agent", "openai-agents": "kode-openai-agents"}
"""Importers of distributions that not every user has installed."""
_OWN: Final = {"langgraph": "kode_core.formats.langgraph.threads:open_threads"}
"""Importers of the core; a distribution that has one of the same name replaces it."""

_FIRST_MS: Final = 1
"""The earliest time of a last change that stores keep."""

Outcome: TypeAlias = Literal["imported", "replaced", "importable", "known", "refused", "left out"]

_COUNTED: Final = {
    "messages": "messages",
    "tool_calls": "toolCalls",
    "events": "events",
    "todos": "todos",
    "history_windows": "historyWindows",
    "compression_records": "compressionRecords",
    "recovered_files": "recoveredFiles",
    "media_cache": "mediaCache",
    "snapshots": "snapshots",
    "documents": "documents",
}


class Found(msgspec.Struct):
    """Remarks on one agent, each with the number of times that it was made.

    Attributes:
        changed: values that were brought in another form.
        left_out: things that are no records of the agent, such as files of others, and were not brought.
        damaged: records that cannot be read, and are missing in the import.
        lost: records that the other program itself has lost.
    """

    changed: Counter[str] = msgspec.field(default_factory=Counter)
    left_out: Counter[str] = msgspec.field(default_factory=Counter)
    damaged: Counter[str] = msgspec.field(default_factory=Counter)
    lost: Counter[str] = msgspec.field(default_factory=Counter)


class ForeignAgent(msgspec.Struct, frozen=True):
    """One agent that an importer has read.

    The records must be the same each time that the same source is read, times included: an agent whose id is taken is
    compared with them, so that an import that was interrupted can be started again.
    """

    records: AgentRecords
    found: Found = msgspec.field(default_factory=Found)


Importer: TypeAlias = Callable[[str], AbstractAsyncContextManager[AsyncIterator[ForeignAgent]]]
"""Opens a source, a path or a URL, for reading only; a source that is none raises ConfigurationError."""


class Imported(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """The outcome of one agent of the source.

    Attributes:
        outcome: ``imported``; ``replaced`` if other records were there; ``importable`` without a store to write to;
            ``known`` if it was there already, with the same records; ``refused``, which ``reason`` explains; or
            ``left out``, since it is no agent.
        counts: the number of records of each kind that the source has, as far as they can be read.
        changed: values that were brought in another form, each with how often.
        left_out: things next to the agent that are no records of it.
        damaged: records that cannot be read.
        lost: records that the other program itself has lost.
    """

    agent_id: str
    outcome: Outcome
    reason: str = ""
    counts: dict[str, int] = {}
    changed: dict[str, int] = {}
    left_out: dict[str, int] = {}
    damaged: dict[str, int] = {}
    lost: dict[str, int] = {}


def find_importer(name: str, known: Sequence[str] = ()) -> Importer:
    """The importer of a format; *known* are formats that the caller reads itself, for the error.

    Raises:
        InvalidArgumentError: no distribution that is installed has one, or it cannot be loaded.
    """
    entries = tuple(entry_points(group=GROUP, name=name))
    if not entries and name in _OWN:
        entries = (EntryPoint(name, _OWN[name], GROUP),)
    if not entries:
        owner = _OF_OTHERS.get(name)
        if owner is not None:
            raise InvalidArgumentError(f"the importer of {name} comes with {owner}; pip install {owner}")
        others = {entry.name for entry in entry_points(group=GROUP)} | _OF_OTHERS.keys() | _OWN.keys()
        names = [*known, *sorted(others)]
        near = f"; did you mean {found!r}?" if (found := nearest(name, names)) else f"; known are {', '.join(names)}"
        raise InvalidArgumentError(f"format {name!r:.40} is not known{near}")
    try:
        importer: Importer = entries[0].load()
    except Exception as exc:
        raise InvalidArgumentError(
            f"the importer {name} ({entries[0].value}) cannot be imported: {type(exc).__name__}: {exc}"
        ) from exc
    return importer


async def import_foreign(
    agents: AsyncIterator[ForeignAgent],
    store: ExtendedStore | None,
    *,
    skip_damaged: bool = False,
    replace: bool = False,
) -> AsyncIterator[Imported]:
    """Import the agents that an importer has read; yields the outcome of each.

    Args:
        agents: the agents.
        store: the store to write to; None only reads and reports.
        skip_damaged: import the rest of an agent of which some records cannot be read. Without it such an agent is
            refused.
        replace: write the agent in the place of one of the same id that has other records. Without it it is refused.

    An error of one agent, such as one that is too large for the store, is its outcome, and the others are imported.

    Raises:
        KodeError: the source cannot be read, or the store cannot be written.
    """
    async for agent in agents:
        yield await place(agent, store, skip_damaged=skip_damaged, replace=replace)


async def place(agent: ForeignAgent, store: ExtendedStore | None, *, skip_damaged: bool, replace: bool) -> Imported:
    """Write one agent, or say why it is not written.

    Raises:
        KodeError: an error that is not of this agent alone.
    """
    records, found = agent.records, agent.found
    if type(records.updated_at) is int and records.updated_at < _FIRST_MS:
        found.changed["an agent without a time has the first one that stores keep, at the begin of 1970"] += 1
        records = changed(records, updated_at=_FIRST_MS)
    counts = counts_of(records)

    def outcome(name: Outcome, reason: str = "") -> Imported:
        return outcome_of(records.agent_id, found, name, reason, counts)

    if found.damaged and not skip_damaged:
        return outcome("refused", "some of its records cannot be read, and --skip-damaged was not given")
    if store is None:
        return outcome("importable")

    async def is_same(there: AgentRecords) -> bool:
        return (await fingerprint(_comparable(there))).digest == (await fingerprint(_comparable(records))).digest

    written, reason = await write_agent(store, records, "replace" if replace else "skip", is_same)
    return outcome(*_OUTCOMES[written]) if written in _OUTCOMES else outcome("refused", reason)


_OUTCOMES: Final[Mapping[str, tuple[Outcome, str]]] = {
    "copied": ("imported", ""),
    "replaced": ("replaced", ""),
    "known": ("known", ""),
    "skipped": ("refused", "the store has an agent of that id with other records, and --replace was not given"),
}
"""Outcomes by those of :func:`kode_core.moving.placing.write_agent`."""


def counts_of(records: AgentRecords) -> dict[str, int]:
    """The number of records of each kind that there is."""
    counts = {name: len(_as_list(getattr(records, field))) for field, name in _COUNTED.items()}
    return {name: count for name, count in counts.items() if count}


def outcome_of(
    agent_id: str, found: Found, outcome: Outcome, reason: str, counts: dict[str, int] | None = None
) -> Imported:
    """The outcome of an agent, with the remarks on it."""
    return Imported(
        agent_id=agent_id,
        outcome=outcome,
        reason=reason,
        counts=counts or {},
        changed=dict(found.changed),
        left_out=dict(found.left_out),
        damaged=dict(found.damaged),
        lost=dict(found.lost),
    )


def _as_list(value: Any) -> Any:
    return value if isinstance(value, tuple) else () if value is None else (value,)


def _comparable(records: AgentRecords) -> AgentRecords:
    """The records without the store's own parts: the count in the info (MSG-6), and the times of documents."""
    info = None if records.info is None else changed(records.info, message_count=0)
    documents = tuple(changed(one, version="", updated_at=0) for one in records.documents)
    return changed(records, info=info, documents=documents)
