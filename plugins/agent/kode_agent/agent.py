"""The agent: created once, resumed by any process, and run by one at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final, Literal, Self

from kode_agent import control
from kode_agent.control import Decision, Inbox
from kode_agent.errors import AgentBusyError, AgentInterruptedError, NothingToDoError, TemplateError
from kode_agent.finding import checked_store, unknown_agent
from kode_agent.journal import Journal, event
from kode_agent.loop import Run
from kode_agent.provider import Provider, Usage
from kode_agent.resume import open_uses, seal, waits_for_answer
from kode_agent.template import Template
from kode_agent.watching import AgentStep, watched
from kode_core import (
    AgentChannel,
    AgentInfo,
    AgentNotFoundError,
    ConflictError,
    ContentBlock,
    EventStream,
    ExtendedStore,
    InvalidArgumentError,
    Json,
    LockUnavailableError,
    Message,
    Snapshot,
    StoredEvent,
    ToolCallRecord,
    new_agent_id,
)

__all__ = ["Agent", "AgentStatus"]

_LEASE_MS: Final = 10_000
_OPEN: Final = ("PRE_MODEL", "STREAMING_MODEL", "TOOL_EXECUTING", "AWAITING_APPROVAL")


@dataclass(frozen=True, slots=True)
class AgentStatus:
    """An agent as it is stored.

    Attributes:
        state: ``WORKING`` while a worker runs it, and after that worker was killed until the next one resumes it;
            ``PAUSED`` while it waits for decisions; otherwise ``READY``.
        questions: the calls that wait for a decision.
        waits_for_answer: the last message is the user's: ``go_on`` has it answered.
        usage: the tokens of all requests; a fork counts on from its parent.
    """

    agent_id: str
    template_id: str
    state: Literal["READY", "WORKING", "PAUSED"]
    breakpoint: str | None
    message_count: int
    steps: int
    usage: Usage
    questions: tuple[ToolCallRecord, ...]
    waits_for_answer: bool


class Agent:
    """An agent in a store. Make one by :meth:`create`, :meth:`resume` or :meth:`resume_or_create`.

    Attributes:
        id: the agent's id in the store.
    """

    def __init__(
        self, agent_id: str, provider: Provider, store: ExtendedStore, template: Template, lease_ms: int
    ) -> None:
        if not isinstance(provider, Provider):
            raise InvalidArgumentError(f"provider has a name and a method stream; {type(provider).__name__} has not")
        if not isinstance(template, Template):
            raise InvalidArgumentError(f"template is a kode_agent.Template, got {type(template).__name__}")
        if type(lease_ms) is not int or lease_ms < 100:
            raise InvalidArgumentError("lease_ms is a number of milliseconds, 100 at least")
        self.id = agent_id
        self.provider = provider
        self.store = checked_store(store)
        self.template = template
        self._lease_ms = lease_ms
        self._offset = 0

    def __repr__(self) -> str:
        return f"Agent({self.id!r}, template={self.template.id!r})"

    # --- making one

    @classmethod
    async def create(
        cls,
        *,
        provider: Provider,
        store: ExtendedStore,
        template: Template,
        agent_id: str | None = None,
        metadata: Mapping[str, Json] | None = None,
        lease_ms: int = _LEASE_MS,
    ) -> Self:
        """A new agent, under a new id unless given.

        *metadata* is stored in the agent's info; its key ``agent`` is the runtime's. *lease_ms* is how long others wait
        for the agent after the process of a run was killed.

        Raises:
            ConflictError: an agent of that id exists; :meth:`resume` goes on with it.
        """
        agent_id = new_agent_id() if agent_id is None else agent_id
        self = cls(agent_id, provider, store, template, lease_ms)
        info = AgentInfo(
            agent_id=agent_id,
            template_id=template.id,
            config_version=template.version,
            breakpoint="READY",
            metadata={} if metadata is None else dict(metadata) if isinstance(metadata, Mapping) else metadata,
        )
        try:
            await store.create_agent(agent_id, info)
        except ConflictError as exc:
            problem = "it exists; Agent.resume goes on with it, and Agent.resume_or_create with it or a new one"
            raise ConflictError(agent_id, exc.version, problem) from exc
        return self

    @classmethod
    async def resume(
        cls,
        agent_id: str,
        *,
        provider: Provider,
        store: ExtendedStore,
        template: Template,
        lease_ms: int = _LEASE_MS,
        wait_ms: int | None = None,
    ) -> Self:
        """The agent of that id, with its open calls sealed.

        Calls that were running when their process was killed get a result that tells the model so; none is run again.
        A message that waits for its answer keeps waiting: :meth:`go_on` has it answered.

        *wait_ms* is how long to wait while another worker runs the agent. Unless given it is 16 s, or more with a
        greater *lease_ms*: the lease of a process that was killed ends in that time. 0 does not wait.

        Raises:
            AgentNotFoundError: no agent has that id; the message names a near one.
            TemplateError: the agent is of another template.
            AgentBusyError: another worker runs it.
        """
        self = cls(agent_id, provider, store, template, lease_ms)
        async with self._leased(wait_ms) as journal:
            sealed = await self._sealed(journal)
            resumed = event("monitor", "agent_resumed", strategy="crash", sealed=sealed)
            await journal.commit(resumed, breakpoint="READY" if journal.info.breakpoint in _OPEN else None)
        return self

    @classmethod
    async def resume_or_create(
        cls,
        agent_id: str,
        *,
        provider: Provider,
        store: ExtendedStore,
        template: Template,
        metadata: Mapping[str, Json] | None = None,
        lease_ms: int = _LEASE_MS,
        wait_ms: int | None = None,
    ) -> Self:
        """The agent of that id, created if there is none. If several callers come at once, exactly one creates it.

        *wait_ms* is as for :meth:`resume`.
        """
        try:
            return await cls.create(
                provider=provider,
                store=store,
                template=template,
                agent_id=agent_id,
                metadata=metadata,
                lease_ms=lease_ms,
            )
        except ConflictError:
            return await cls.resume(
                agent_id, provider=provider, store=store, template=template, lease_ms=lease_ms, wait_ms=wait_ms
            )

    # --- running it

    async def send(self, content: str | Sequence[ContentBlock], *, wait_ms: int | None = None) -> str:
        """Send the user's message, run the tools that the model calls, and return its answer.

        The agent's lease is held meanwhile. A cancelled or failed send leaves a sound conversation: the message stays,
        and the next send, or :meth:`go_on`, goes on behind it.

        *wait_ms* is how long to wait while another send runs, in any process; a little longer than the lease unless
        given.

        Raises:
            AgentBusyError: another worker, or another send, still runs the agent.
            AgentInterruptedError: :meth:`interrupt` stopped it.
            ProviderError: the model did not answer.
            StepsExceededError: the model called tools in every step.
        """
        if isinstance(content, str | list | tuple) and not content:
            raise InvalidArgumentError("send a message that is not empty: servers of models refuse empty ones")
        return await self._turn([Message("user", content)], wait_ms)

    async def go_on(self, *, wait_ms: int | None = None) -> str:
        """Have the last message answered, after a send that failed or whose process was killed; as :meth:`send`.

        Raises:
            NothingToDoError: the last message is an answer.
        """
        return await self._turn([], wait_ms)

    async def interrupt(self, *, note: str | None = None) -> None:
        """Stop the run of this agent, in whatever process it is; without a run nothing happens."""
        await control.interrupt(self.store, self.id, note=note)

    async def decide(self, call_id: str, decision: Decision, *, by: str | None = None, note: str | None = None) -> None:
        """Answer the question whether a call may run; see :func:`kode_agent.decide`."""
        await control.decide(self.store, self.id, call_id, decision, by=by, note=note)

    # --- looking at it

    def events(
        self, channel: AgentChannel | None = None, *, after_offset: int | None = None
    ) -> EventStream[StoredEvent]:
        """Follow the agent's events: from its last send in this object on, or behind *after_offset* (0: all)."""
        after = self._offset if after_offset is None else after_offset
        return self.store.follow_events(self.id, after_offset=after, channel=channel)

    async def status(self) -> AgentStatus:
        """The agent as it is stored now, whichever process runs it.

        Raises:
            AgentNotFoundError: it was deleted.
        """
        info = await self.store.load_info(self.id)
        if info is None:
            raise AgentNotFoundError(self.id)
        last = await self.store.load_messages(self.id, last=1)
        questions = await control.open_questions(self.store, self.id)
        kept = info.metadata.get("agent")
        numbers = kept if type(kept) is dict else {}
        working = info.breakpoint in _OPEN
        return AgentStatus(
            agent_id=self.id,
            template_id=info.template_id,
            state="READY" if not working else "PAUSED" if questions else "WORKING",
            breakpoint=info.breakpoint,
            message_count=info.message_count,
            steps=numbers.get("steps", 0),
            usage=Usage(numbers.get("inputTokens", 0), numbers.get("outputTokens", 0)),
            questions=tuple(questions),
            waits_for_answer=waits_for_answer(last),
        )

    async def messages(self) -> list[Message]:
        """The conversation."""
        return await self.store.load_messages(self.id)

    # --- points to come back to

    async def snapshot(self, snapshot_id: str | None = None, *, metadata: dict[str, Json] | None = None) -> str:
        """Keep the conversation up to here under an id, and return the id; an existing one is replaced.

        While the agent runs, the snapshot ends before the first call that has no result yet.
        """
        messages = await self.store.load_messages(self.id)
        safe = messages[: min(open_uses(messages), default=len(messages))]
        snapshot = Snapshot(
            id=f"sfp-{len(safe) - 1}" if snapshot_id is None else snapshot_id,
            messages=safe,
            last_sfp_index=len(safe) - 1,
            last_bookmark=await self.store.last_bookmark(self.id),
            metadata=metadata,
        )
        await self.store.save_snapshot(self.id, snapshot)
        return snapshot.id

    async def fork(self, new_id: str | None = None, *, snapshot_id: str | None = None) -> Self:
        """A new agent that has this one's conversation as it is now, or as the snapshot has it.

        A fork that is made while the agent runs has the calls that run as sealed ones.

        Raises:
            ConflictError: something exists under *new_id*.
            InvalidArgumentError: there is no such snapshot.
        """
        child = await self.store.fork(self.id, new_id, snapshot_id=snapshot_id)
        return await type(self).resume(
            child, provider=self.provider, store=self.store, template=self.template, lease_ms=self._lease_ms
        )

    # --- inside

    @asynccontextmanager
    async def _leased(self, wait_ms: int | None) -> AsyncIterator[Journal]:
        """The agent's journal, under its lease."""
        wait = self._lease_ms + self._lease_ms // 2 + 1_000 if wait_ms is None else wait_ms
        async with AsyncExitStack() as stack:
            try:
                lock = self.store.acquire_agent_lock(self.id, ttl_ms=self._lease_ms, wait_ms=wait)
                lease = await stack.enter_async_context(lock)
            except LockUnavailableError as exc:
                raise AgentBusyError(
                    f"agent {self.id!r} is run by another worker or another send; wait for it, or interrupt it"
                ) from exc
            try:
                journal = await Journal.load(self.store, self.id, lease)
            except AgentNotFoundError:
                raise (await unknown_agent(self.store, self.id)) from None
            if journal.info.template_id != self.template.id:
                raise TemplateError(
                    f"agent {self.id!r} is of the template {journal.info.template_id!r:.80}, not "
                    f"{self.template.id!r:.80}; resume it with that one"
                )
            try:
                yield journal
            finally:
                self._offset = max(self._offset, journal.offset)

    async def _sealed(self, journal: Journal) -> list[str]:
        return await seal(journal, "the run ended", limit=self.template.max_result_chars)

    async def _turn(self, new: Sequence[Message], wait_ms: int | None) -> str:
        step = AgentStep("turn", self.id, self.template.id)
        step.asks(self.provider)
        with watched(self.store, step):
            async with self._leased(wait_ms) as journal:
                return await self._run(journal, new)

    async def _run(self, journal: Journal, new: Sequence[Message]) -> str:
        await self._sealed(journal)
        if not new and not waits_for_answer(journal.messages):
            raise NothingToDoError(f"agent {self.id!r} has answered its last message; send it another")
        await journal.commit(event("monitor", "state_changed", state="WORKING"), append=new, breakpoint="PRE_MODEL")
        inbox = Inbox(journal)
        inbox.open()
        run = Run(journal, self.template, self.provider, inbox)
        work = asyncio.create_task(run.until_answer())
        try:
            await asyncio.wait({work, inbox.interrupted}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            note = inbox.interrupted.result()
        finally:
            run.stop()
            work.cancel()
            await asyncio.wait({work})
            await inbox.close()
            failed = not work.cancelled() and work.exception()
        if not work.cancelled() and not failed:
            return work.result()  # it ended at the same moment
        await self._interrupted(journal, run, note)
        raise AgentInterruptedError(f"agent {self.id!r} was interrupted{f': {note}' if note else ''}")

    async def _interrupted(self, journal: Journal, run: Run, note: str) -> None:
        """Leave a sound conversation behind an interruption."""
        await journal.reload()  # the run may have been stopped in the middle of a commit
        if waits_for_answer(journal.messages) and (unfinished := run.unfinished()):
            await journal.commit(append=unfinished)
        because = f"the run was interrupted{f' ({note})' if note else ''}"
        await seal(journal, because, limit=self.template.max_result_chars)
        await journal.commit(
            event("progress", "done", step=journal.numbers.get("steps", 0), reason="interrupted"),
            event("monitor", "state_changed", state="READY"),
            breakpoint="READY",
        )
