"""Values that stores generate: times, offsets and versions, learned from their answers and held to their rules."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Protocol

from msgspec.structs import asdict

from kode_conformance.context import Context, difference
from kode_conformance.histories.answers import session_of, stored_event
from kode_conformance.histories.findings import Finding
from kode_conformance.histories.looks import Look, all_pages
from kode_conformance.histories.model import AgentModel, Kept, Logged, StoreModel
from kode_conformance.histories.stamps import times_problem
from kode_core.model import ABSENT, Document, FoundDocument, StoredEvent
from kode_core.query import Session

__all__ = ["Learner"]


class Run(Protocol):
    """A machine's knowledge of its run."""

    model: StoreModel

    def shown(self, text: str) -> str:
        """A text, with the names of the history."""
        ...

    def name_of(self, agent_id: str) -> str:
        """The name of an agent in the history."""
        ...


class Learner:
    """Notes the values of one history. It asks for times only if ``times``, and for versions only if ``versions``."""

    def __init__(self, ctx: Context, run: Run, *, times: bool, versions: bool) -> None:
        self._ctx = ctx
        self._run = run
        self._times = times
        self._versions = versions
        self._highest: dict[str, int] = {}
        self._lives: dict[str, tuple[AgentModel, int]] = {}
        self._seen: defaultdict[tuple[str, ...], dict[str, None]] = defaultdict(dict)

    async def learn(self, store: Any, via: int, agent_id: str, when: str) -> None:
        """The times and the version that the store gave, held to their rules."""
        if self._times:
            await self._learn_times(store, via, agent_id, when)
            await self._learn_updated(store, agent_id, when)
        if self._versions:
            await self.version(store, agent_id, when)

    # --- times

    async def _learn_times(self, store: Any, via: int, agent_id: str, when: str) -> None:
        agent = self._run.model.agents[agent_id]
        found = await all_pages(store.query_messages, agent_id=agent_id, order="asc", limit=10_000)
        found.sort(key=lambda message: message.position)
        look = Look("query_messages", (), {"agent_id": agent_id, "order": "asc", "limit": 10_000})
        problem = difference(found, agent.messages)
        problem = problem or difference([m.position for m in found], list(range(len(found))), "position")
        if problem:
            raise Finding(self._run.shown(f"{look} by position, {when}: {problem}"), look, None, via, is_plain=False)
        times, learned = [message.created_at for message in found], agent.learned
        if learned.edits < 2:
            wrong = times_problem(learned.messages, learned.times, agent.messages, times)
            if wrong:
                text = f"created_at of messages of {self._run.name_of(agent_id)}, {when}: {wrong}"
                raise Finding(text, is_of_times=True)
        learned.messages, learned.times, learned.edits = list(agent.messages), times, 0

    async def _learn_updated(self, store: Any, agent_id: str, when: str) -> None:
        agent, name = self._run.model.agents[agent_id], self._run.name_of(agent_id)
        sessions, learned = await store.query_sessions(agent_id=agent_id), agent.learned
        self._ctx.equal(len(sessions), int(agent.info is not None), f"how many sessions {name} has, {when}")
        if not sessions:
            return
        before, now = learned.updated_at, sessions[0].updated_at
        if before is not None:
            said = f"updated_at of {name} was {before} and is {now} {when}"
            self._ctx.true(now >= before, f"{said}: it must not go back")
            self._ctx.true(learned.moves is not True or now > before, f"{said}: it must move with each save")
            self._ctx.true(learned.moves is not False or now == before, f"{said}: nothing that moves it was saved")
        learned.updated_at, learned.moves = now, False

    # --- offsets

    def had_events(self, agent_id: str) -> bool:
        """True if an event was ever stored under the id."""
        return agent_id in self._highest

    def note_read(self, look: Look, got: Sequence[StoredEvent]) -> None:
        """Learn the offsets of events that a turn wrote from a read of all events."""
        agent_id = look.args[0]
        by_seq = sorted(self._run.model.agents[agent_id].events, key=lambda logged: logged.timeline.bookmark.seq)
        if not look.filters and len(got) == len(by_seq):
            pairs = zip(got, by_seq, strict=True)
            if all(difference(event, stored_event(logged, event.offset)) is None for event, logged in pairs):
                self.note(agent_id, [event.offset for event in got], by_seq)

    def note(self, agent_id: str, offsets: list[int], entries: Sequence[Logged]) -> None:
        """The offsets of entries: as told before, or above all that the agent had before it was deleted, in order."""
        self._ctx.equal(len(offsets), len(entries), "how many offsets there are")
        agent, highest = self._run.model.agents[agent_id], self._highest.get(agent_id, -1)
        if agent_id not in self._lives or self._lives[agent_id][0] is not agent:
            self._lives[agent_id] = agent, highest
        _, before = self._lives[agent_id]
        for offset, logged in zip(offsets, entries, strict=True):
            if logged.offset is None:
                logged.offset = offset
                self._ctx.true(offset > before, f"the offset {offset} was there before the delete, up to {before}")
            self._ctx.equal(offset, logged.offset, "the offset of an event")
        known = [logged.offset for logged in agent.events if logged.offset is not None]
        self._ctx.equal(known, sorted(set(known)), "offsets in the order of commit")
        if offsets:
            self._highest[agent_id] = max([highest, *offsets])

    # --- versions

    async def version(self, store: Any, agent_id: str, when: str) -> str:
        """The present version, which is the one before, or one that the agent never had (VER-1)."""
        agent, name = self._run.model.agents[agent_id], self._run.name_of(agent_id)
        learned, seen = agent.learned, self._seen[agent_id,]
        version: str = await store.load_version(agent_id)
        said = f"the version of {name}, {when}"
        if learned.changes is False:
            self._ctx.equal(version, learned.version, f"{said}, as nothing that changes it was saved")
        elif learned.changes or version != learned.version:
            self._ctx.true(version not in (ABSENT, *seen), f"{said}, was there before: {version}")
        seen[version] = None
        learned.version, learned.changes = version, False
        session, want = await store.load_session(agent_id), None
        if agent.info is not None:
            fields = asdict(session_of(agent))
            fields["updated_at"] = learned.updated_at if self._times else session and session.updated_at
            want = Session(**fields, tool_call_count=len(agent.tool_calls), version=version)
        self._ctx.equal(session, want, f"the session of {name}, {when}")
        return version

    def older(self, which: str, present: str, *place: str) -> str:
        """The version that a write demands of an agent, or of one of its documents: ``present``, ``old`` or ``absent``;
        if there is no older one, that it does not exist.
        """
        older = [version for version in self._seen[place] if version != present]
        return present if which == "present" else older[-1] if which == "old" and older else ABSENT

    async def demanded_document(self, which: str, store: Any, agent_id: str, collection: str, key: str) -> str:
        """The version that a write of a document demands."""
        found = await store.load_document(agent_id, collection, key)
        self.note_documents(Look("load_document", (agent_id, collection, key)), found)
        return self.older(which, found.version if found else ABSENT, agent_id, collection, key)

    def note_documents(self, look: Look, got: Any) -> None:
        """Learn the versions and the times of documents that were read."""
        for document in got if isinstance(got, list) else [got]:
            if isinstance(document, (Document, FoundDocument)):
                agent_id = look.args[0] if isinstance(document, Document) else document.agent_id
                agent = self._run.model.agents.get(agent_id)
                kept = agent and agent.documents.get((document.collection, document.key))
                if kept:
                    self.note_put(agent_id, document.collection, document.key, kept, document.version)
                    kept.updated_at = document.updated_at if kept.updated_at is None else kept.updated_at

    def note_put(self, agent_id: str, collection: str, key: str, kept: Kept, version: str) -> None:
        """The version of a document: as told before, or one that the document never had (DOC-2)."""
        seen = self._seen[agent_id, collection, key]
        if kept.version is None:
            kept.version = version
            self._ctx.true(version not in (ABSENT, *seen), f"the version of {collection}/{key} was there before")
        seen[kept.version] = None
