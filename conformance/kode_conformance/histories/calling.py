"""Making one call of a history on a store and on the model, and comparing how both end."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Sequence
from typing import Any, Final, Protocol

from msgspec.structs import replace

from kode_conformance.context import Context, Violation
from kode_conformance.harness import keeps_tags
from kode_conformance.histories.findings import Finding
from kode_conformance.histories.learning import Learner
from kode_conformance.histories.leases import Held
from kode_conformance.histories.model import AgentModel, StoreModel
from kode_conformance.histories.steps import Step
from kode_conformance.histories.vocabulary import demand_of
from kode_core.errors import AgentNotFoundError, ConflictError, InvalidArgumentError, KodeError
from kode_core.model import ABSENT, AgentInfo, DeleteDocument, PutDocument, StoredEvent

__all__ = ["Caller", "highest_seq"]

_SEEN_S: Final = 1.1
"""The age, in seconds, from which on the seq of an event is below all that are emitted (EVT-8), and some room."""
_OF_ONE: Final = {"put_document": PutDocument, "delete_document": DeleteDocument}


def _tags_of(put: PutDocument) -> dict[str, str]:
    """The tags of a document, which depend on it; some have none."""
    number = len(f"{put.key}{put.value!r:.50}") % 4
    return {} if number == 3 else {"n": str(number), **({"key": put.key[:20]} if number else {})}


class Run(Protocol):
    """A machine's knowledge of its run."""

    model: StoreModel


def highest_seq(agent: AgentModel) -> int:
    """The highest seq that the agent has; -1 without events."""
    return max((logged.timeline.bookmark.seq for logged in agent.events), default=-1)


class Caller:
    """Makes the writes of one history."""

    def __init__(self, ctx: Context, run: Run, learner: Learner) -> None:
        self._ctx = ctx
        self._run = run
        self._learner = learner
        self._emitted: dict[tuple[int, str], tuple[AgentModel, int]] = {}

    def was_opened(self, via: int) -> None:
        """The store of that number is another one now."""
        self._emitted = {place: last for place, last in self._emitted.items() if place[0] != via}

    async def make(
        self,
        stores: Sequence[Any],
        via: int,
        step: Step,
        agent_id: str,
        args: list[Any],
        named: dict[str, Any],
        lease: Held | None,
    ) -> str:
        """Make the call; the name of the error that it had to end with, or nothing."""
        store, fence = stores[via], {} if lease is None else {"fence": lease.lease}
        present = await self._demand(stores[max(step.seen_by, 0)], step, agent_id, args, named)
        call = getattr(store, step.op)(agent_id, *args, **named, **fence)
        if named.get("expect", present) != present and step.op not in _OF_ONE:
            is_doubtful = step.op == "replace_message" or "documents" in named
            await self._refused(KodeError if is_doubtful else ConflictError, call, step.op, present)
            return ConflictError.__name__
        if step.op in ("emit", "emit_many"):
            await self._emit(via, agent_id, call, args, named, lease)
            return ""
        given = {name: value for name, value in named.items() if name != "expect"}
        try:
            want = self._modelled(step, agent_id, args, named if step.op in _OF_ONE else given)
        except KodeError as refusal:
            version = refusal.version if isinstance(refusal, ConflictError) else ""
            await self._refused(type(refusal), call, step.op, version)
            return type(refusal).__name__
        self._answered(step, agent_id, await call, want, args)
        return ""

    def _modelled(self, step: Step, agent_id: str, args: list[Any], named: dict[str, Any]) -> Any:
        if step.op in _OF_ONE:
            return self._run.model.write_documents(agent_id, [_OF_ONE[step.op](*args, **named)])
        return getattr(self._run.model, step.op)(agent_id, *args, **named)

    async def _refused(self, kind: type[KodeError], call: Awaitable[object], op: str, version: str) -> None:
        """The call must end with that error; a conflict has the present version."""
        try:
            error = await self._ctx.raises(kind, call, op)
        except Violation as exc:
            raise Finding(str(exc), is_of_the_call=True) from None
        if isinstance(error, ConflictError) and error.collection is None and version:
            self._ctx.equal(error.version, version, f"the version that the error of {op} has")

    async def _demand(self, store: Any, step: Step, agent_id: str, args: list[Any], named: dict[str, Any]) -> str:
        """Put the versions into the arguments that the step demands; the present version of the agent, if it does."""
        lists = [args[0]] if step.op == "write_documents" else [named.get("documents", [])]
        names = step.args[0] if step.op == "write_documents" else dict(step.named).get("documents", ())
        for i, name in enumerate(names):
            write, which = lists[0][i], demand_of(name)
            if which:
                place = (write.collection, write.key)
                version = await self._learner.demanded_document(which, store, agent_id, *place)
                lists[0][i] = write = replace(write, expect=version)
            if isinstance(write, PutDocument) and keeps_tags():
                lists[0][i] = replace(write, tags=_tags_of(write))
        if step.op == "put_document" and keeps_tags():
            named["tags"] = _tags_of(PutDocument(*args))
        if not step.expect:
            return ""
        if step.op in _OF_ONE:
            named["expect"] = await self._learner.demanded_document(step.expect, store, agent_id, *args[:2])
            return ""
        present = await self._learner.version(store, agent_id, f"before {step.op}")
        named["expect"] = self._learner.older(step.expect, present, agent_id)
        return present

    def _answered(self, step: Step, agent_id: str, got: Any, want: Any, args: list[Any]) -> None:
        """The result of a call, compared with the model's."""
        learner = self._learner
        if step.op.startswith("append_event") or step.op == "save_turn":
            offsets, entries = ([got], [want]) if step.op == "append_event" else (list(got), want)
            learner.note(agent_id, offsets, entries)
        elif step.op in ("pop_messages", "truncate_messages"):
            self._ctx.equal(got, want, f"the result of {step.op}")
        elif step.op == "update_info":
            self._updated(agent_id, got, want)
        elif step.op in ("put_document", "write_documents"):
            writes = args[0] if step.op == "write_documents" else [PutDocument(*args)]
            versions = got if step.op == "write_documents" else [got]
            self._ctx.equal(len(versions), len(writes), "how many versions there are")
            for write, kept, version in zip(writes, want, versions, strict=True):
                if kept is None:
                    self._ctx.equal(version, ABSENT, f"the version of {write.collection}/{write.key}, which is deleted")
                else:
                    learner.note_put(agent_id, write.collection, write.key, kept, version)

    def _updated(self, agent_id: str, got: AgentInfo, want: AgentInfo) -> None:
        """The info that update_info returned; the order of its keys is the store's."""
        said = "the info that update_info returned"
        self._ctx.equal(sorted(got.metadata), sorted(want.metadata), f"{said}, its keys")
        metadata = {key: want.metadata[key] for key in got.metadata}
        self._ctx.equal(got, want.replace(metadata=metadata), said)
        agent = self._run.model.agents[agent_id]
        assert agent.info is not None
        agent.info = agent.info.replace(metadata=metadata)

    async def _emit(
        self, via: int, agent_id: str, call: Any, args: list[Any], named: dict[str, Any], lease: Held | None
    ) -> None:
        """Events that the store numbers: above all that it has to know of (EVT-8)."""
        agent, now = self._run.model.agents[agent_id], time.monotonic()
        floors = [logged.timeline.bookmark.seq for logged in agent.events if logged.at < now - _SEEN_S]
        floors += [lease.highest] if lease is not None and lease.agent is agent else []
        life, last = self._emitted.get((via, agent_id), (agent, -1))
        floors += [last] if life is agent else []
        is_first = not agent.events and not self._learner.had_events(agent_id)
        got = await call
        events: list[StoredEvent] = [got] if isinstance(got, StoredEvent) else list(got)
        if len(args) == 2:
            wanted = [(named.get("channel", "progress"), *args)]
        else:
            wanted = [(event.channel, event.type, event.data) for event in args[0]]
        self._ctx.equal([(e.event.channel, e.event.type, e.event.data) for e in events], wanted, "what was emitted")
        if events:
            seqs = [event.bookmark.seq for event in events]
            floor = max(floors, default=-1)
            self._ctx.true(seqs[0] > floor, f"an emitted event has the seq {seqs[0]}, and an earlier one has {floor}")
            self._ctx.equal(seqs, list(range(seqs[0], seqs[0] + len(seqs))), "the seqs of events in one piece")
            self._ctx.true(seqs[0] == 0 or not is_first, f"the first event of an agent has the seq {seqs[0]}")
            self._emitted[via, agent_id] = agent, seqs[-1]
            entries = self._run.model.emitted(agent_id, events)
            self._learner.note(agent_id, [event.offset for event in events], entries)

    async def fork(self, store: Any, agent_id: str, parent: AgentModel, given: dict[str, Any]) -> tuple[str, str]:
        """Make one fork; the name of the error that the call had to end with, and the id of the fork."""
        child = self._run.model.agents.get(given.get("new_id", ""))
        errors: list[type[KodeError]] = [] if parent.info is not None else [AgentNotFoundError]
        if given.get("length", 0) > len(parent.messages) or given.get("snapshot_id", "") not in ("", *parent.snapshots):
            errors.append(InvalidArgumentError)
        if child is not None and not child.is_empty:
            errors.append(ConflictError)
        call = store.fork(agent_id, **given)
        if errors:
            await self._refused(errors[0] if len(errors) == 1 else KodeError, call, "fork", "")
            return errors[0].__name__, ""
        try:
            return "", await call
        except ConflictError:
            if child is None or (child.learned.version == ABSENT and child.learned.changes is False):
                raise
            return ConflictError.__name__, ""  # lists that were saved empty may count as records, or not
