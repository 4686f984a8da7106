"""Running a history on a store and on the model side by side, and comparing all they hold after each step."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

from kode_conformance.context import Context, Violation, difference
from kode_conformance.histories import REFUSED, VALUES, Step, history, shortest, told
from kode_conformance.model import Logged, StoreModel, look
from kode_conformance.pace import in_time
from kode_core.errors import AgentNotFoundError
from kode_core.model import AgentInfo, Bookmark, StoredEvent
from kode_core.protocols import ExtendedStore, Store

__all__ = ["Machine", "Seen", "follow_the_model"]

_SHORTEN_SECONDS: Final = 10.0

Seen = Callable[["Machine", Store, str], Awaitable[None]]
"""One more look at an agent of a machine through a store; raises Violation."""


class Machine:
    """A model beside two open stores of one place. Its agents are its own: their ids begin with the run's number.

    Attributes:
        prefix: of the ids of agents and templates.
        model: what the store must hold.
    """

    def __init__(self, ctx: Context, prefix: str, stores: list[ExtendedStore], seen: Seen | None) -> None:
        self.model = StoreModel()
        self.prefix = prefix
        self._ctx = ctx
        self._stores = stores
        self._seen = seen
        self._forks: dict[str, str] = {}
        self._highest: dict[str, int] = {}

    async def run(self, steps: list[Step], *, restart: bool) -> None:
        """Make the steps, then look at everything through both stores, after a restart as well, and delete it."""
        for i, step in enumerate(steps, 1):
            try:
                await self._step(step)
            except Violation as exc:
                raise Violation(f"step {i}: {exc}") from None
            except Exception as exc:
                raise Violation(f"step {i}: it raised {type(exc).__name__}: {exc}") from exc
        await self._look_at_all("at the end")
        if restart:
            for via in range(2):
                await self._reopen(via)
            await self._look_at_all("after a restart")
        for agent_id in list(self.model.agents):
            self.model.delete(agent_id)
            await self._stores[0].delete(agent_id)
            await self._look(1, agent_id, "after everything was deleted")
        self._ctx.equal(await self._listed(1), [], "list() after everything was deleted")

    async def _step(self, step: Step) -> None:
        if step.op == "reopen":
            await self._reopen(step.via)
        else:
            await self._call(step)
        await self._look(step.seen_by, self._id(step.agent), f"seen through store {step.seen_by + 1}")

    async def _call(self, step: Step) -> None:
        store, agent_id = self._stores[step.via], self._id(step.agent)
        if step.op == "batch_fork":
            return await self._fork(store, agent_id)
        if step.op == "delete_many":
            template = self.prefix + step.args[0]
            got, want = await store.delete_many(template_id=template), self.model.delete_many(template)
            return self._ctx.equal(got, want, "how many delete_many deleted")
        args = [self._value(arg, agent_id) for arg in step.args]
        named = {name: self._value(arg, agent_id) for name, arg in step.named}
        refused = next((REFUSED[name] for name in step.names() if name in REFUSED), None)
        if refused is not None:
            await self._ctx.raises(refused, getattr(store, step.op)(agent_id, *args, **named), step.op)
            return None
        got = await getattr(store, step.op)(agent_id, *args, **named)
        want = getattr(self.model, step.op)(agent_id, *args, **named)
        if step.op.startswith("append_event"):
            offsets, entries = ([got], [want]) if step.op == "append_event" else (list(got), want)
            self._note(agent_id, offsets, entries)
        return None

    async def _fork(self, store: ExtendedStore, agent_id: str) -> None:
        if self.model.agents[agent_id].info is None:
            await self._ctx.raises(AgentNotFoundError, store.batch_fork(agent_id, 1), "forking an agent without info")
            return
        (fork_id,) = await store.batch_fork(agent_id, 1)
        self._ctx.true(fork_id not in self.model.agents, f"the fork has an id that is taken: {fork_id}")
        info = await store.load_info(fork_id)
        self._ctx.true(info is not None, "the fork has no info")
        self.model.fork(agent_id, fork_id, cast(AgentInfo, info).created_at)
        self._forks[f"f{len(self._forks) + 1}"] = fork_id
        await self._look(0, fork_id, "the fork")

    async def _reopen(self, via: int) -> None:
        await self._ctx.close(self._stores[via])
        self._stores[via] = await self._ctx.another()

    def _id(self, agent: str) -> str:
        return self._forks.get(agent, self.prefix + agent)

    def _value(self, arg: Any, agent_id: str) -> Any:
        if isinstance(arg, tuple):
            return [self._value(name, agent_id) for name in arg]
        value = VALUES[arg]
        if isinstance(value, AgentInfo):
            return value.replace(agent_id=value.agent_id or agent_id, template_id=self.prefix + value.template_id)
        return value

    # --- looking

    async def _look_at_all(self, when: str) -> None:
        for via in range(2):
            for agent_id in list(self.model.agents):
                await self._look(via, agent_id, f"{when}, store {via + 1}")
            listed = await self._listed(via)
            self._ctx.equal(listed, self.model.listed(), f"{when}, list() of store {via + 1}")

    async def _listed(self, via: int) -> list[str]:
        """Of all agents, those of this machine."""
        mine = {*self._forks.values()}
        return [a for a in await self._stores[via].list() if a.startswith(self.prefix) or a in mine]

    async def _look(self, via: int, agent_id: str, when: str) -> None:
        store, agent = self._stores[via], self.model.agents[agent_id]
        got = await look(store, agent_id)
        for name, want in agent.view().items():
            found = difference(got[name], want)
            if found is not None:
                raise Violation(f"{name} of {self._name(agent_id)}, {when}: {found}")
        by_seq = sorted(agent.events, key=lambda logged: logged.timeline.bookmark.seq)
        events = cast("list[StoredEvent]", got["read_events"])
        self._note(agent_id, [event.offset for event in events], by_seq)
        offsets = [cast(int, logged.offset) for logged in agent.events]
        self._ctx.equal(offsets, sorted(set(offsets)), f"offsets in the order of commit, {when}")
        await self._look_at_ranges(store, agent_id, agent.events, when)
        if self._seen is not None:
            await self._seen(self, store, agent_id)

    async def _look_at_ranges(self, store: Store, agent_id: str, log: list[Logged], when: str) -> None:
        """The log from an offset and from a bookmark, in turns."""
        if not log:
            return
        if len(log) % 2:
            got = [event async for event in store.read_events(agent_id, after_offset=log[0].offset)]
            want = [logged.timeline for logged in log[1:]]
        else:
            by_seq = sorted(log, key=lambda logged: logged.timeline.bookmark.seq)
            since = Bookmark(by_seq[0].timeline.bookmark.seq, 0)
            got = [event async for event in store.read_events(agent_id, since=since, channel="progress")]
            chosen = (logged.timeline for logged in by_seq if logged.timeline.bookmark.seq > since.seq)
            want = [timeline for timeline in chosen if timeline.event.channel == "progress"]
        self._ctx.equal(got, want, f"a part of the events of {self._name(agent_id)}, {when}")

    def _note(self, agent_id: str, offsets: list[int], entries: list[Logged]) -> None:
        """The offsets of entries: as told before, or above all that the agent ever had."""
        self._ctx.equal(len(offsets), len(entries), "how many offsets there are")
        highest = self._highest.get(agent_id, -1)
        for offset, logged in zip(offsets, entries, strict=True):
            if logged.offset is None:
                logged.offset = offset
                self._ctx.true(offset > highest, f"the offset {offset} was there before: the highest was {highest}")
            self._ctx.equal(offset, logged.offset, "the offset of an event")
        self._highest[agent_id] = max([highest, *offsets])

    def _name(self, agent_id: str) -> str:
        return next((name for name, fork in self._forks.items() if fork == agent_id), agent_id[len(self.prefix) :])


async def follow_the_model(
    ctx: Context, *, histories: int, more: dict[str, int] | None = None, restart: bool = False, seen: Seen | None = None
) -> None:
    """Run random histories; the first that goes wrong is shortened and told.

    Args:
        ctx: the check's context.
        histories: how many.
        more: weights of calls beyond those of every store, as in ``{"reopen": 3}``.
        restart: close and open both stores at the end of each.
        seen: one more look at an agent after each step.

    Raises:
        Violation: with the shortest history that was found.
    """
    numbers = itertools.count()
    stores = [ctx.store, await ctx.another()]

    async def problem(steps: list[Step]) -> str:
        try:
            await Machine(ctx, f"{next(numbers)}-", stores, seen).run(steps, restart=restart)
        except Violation as exc:
            return str(exc)
        return ""

    async def fails(steps: list[Step]) -> bool:
        return bool(await problem(steps))

    for _ in in_time(ctx, range(histories)):
        steps = history(ctx.rng, ctx.effort.steps, more or {})
        found = await problem(steps)
        if found:
            short = await shortest(steps, fails, _SHORTEN_SECONDS)
            again = await problem(short)
            if not again:
                short, again = steps, f"{found} (not every time)"
            raise Violation(f"this history goes wrong at {again}\n{told(short)}")
