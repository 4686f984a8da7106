"""Running a history on a store and on the model side by side, and comparing all they hold after each step."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final, cast

from kode_conformance.context import Context, Violation, difference
from kode_conformance.histories.answers import sessions_found
from kode_conformance.histories.calling import Caller, highest_seq
from kode_conformance.histories.findings import Finding, How
from kode_conformance.histories.following import Followers
from kode_conformance.histories.learning import Learner
from kode_conformance.histories.leases import Leases
from kode_conformance.histories.looks import (
    KINDS,
    Known,
    Look,
    ask,
    document_looks,
    kinds_of,
    loads,
    looks,
    problem_of,
)
from kode_conformance.histories.model import StoreModel
from kode_conformance.histories.programs import Made, plain, see
from kode_conformance.histories.steps import Step, refusal_of
from kode_conformance.histories.translation import translated
from kode_conformance.histories.vocabulary import values_of
from kode_core.errors import AgentNotFoundError
from kode_core.model import AgentInfo

__all__ = ["Machine"]


_SIMPLY: Final = How()
_PAUSE_S: Final = 0.002
"""Longer than the smallest difference of two times."""


class Machine:
    """A model next to open stores of one place. Its agents are its own: their ids begin with the run's number.

    Attributes:
        prefix: of the ids of agents and templates.
        model: what the store must hold.
        forks: the ids of forks by their names in the history.
        made: the steps so far.
    """

    def __init__(self, ctx: Context, prefix: str, stores: list[Any], how: How = _SIMPLY) -> None:
        self.model = StoreModel()
        self.prefix = prefix
        self.forks: dict[str, str] = {}
        self.made: list[Made] = []
        self._ctx = ctx
        self._stores = stores
        self._how = how
        self._is_queryable = all(
            hasattr(store, name) for store in stores[:1] for name in ("query_sessions", "iter_tool_calls")
        )
        self._known: defaultdict[str, Known] = defaultdict(Known)
        times = self._is_queryable and (how.queries or how.versions)
        self._learner = Learner(ctx, self, times=times, versions=how.versions)
        self._caller = Caller(ctx, self, self._learner)
        self._leases = Leases(ctx)
        self._followers: Followers | None = None
        self._turn = 0

    async def run(self, steps: Sequence[Step]) -> None:
        """Make the steps, then look at everything through all stores, after a restart as well, and delete it."""
        if self._how.follow:
            self._followers = Followers(self._stores[-1], self._how.follow * self._ctx.harness.patience)
        try:
            for i, step in enumerate(steps, 1):
                try:
                    await self._step(step)
                except Finding as exc:
                    raise exc.at(i) from None
                except Violation as exc:
                    raise Finding(f"step {i}: {exc}") from None
                except Exception as exc:
                    raise Finding(f"step {i}: it raised {type(exc).__name__}: {exc}", is_of_the_call=True) from exc
            if self._how.end:
                await self._look_at_all("at the end")
            if self._followers is not None:
                await self._followers.finish(self.model, self._stores[0])
            if self._how.restart:
                for via in range(len(self._stores)):
                    await self._reopen(via)
                await self._look_at_all("after a restart")
        finally:
            if self._followers is not None:
                await self._followers.close()
            await self._leases.release_all()
        await self._delete_all()

    async def judge(self, via: int, look: Look, other: Machine) -> Finding | None:
        """Make one look of another machine at the end of the same history; return its fault."""
        for agent_id in list(self.model.agents):
            await self._learn_all(via, agent_id)
        look = translated(look, other, self)
        try:
            await self._ask(via, look, "at the end")
        except Finding as exc:
            return exc
        return None

    async def make(self, steps: Sequence[Step], *, seeing: bool) -> None:
        """Make the steps and look at nothing; or at everything, through all stores, and judge nothing."""
        for step in steps:
            touched = await self._reopen(step.via) if step.op == "reopen" else await self._call(step)
            for agent_id in touched if seeing else ():
                for via in range(len(self._stores)):
                    await see(self._stores[via], agent_id)

    # --- steps

    async def _step(self, step: Step) -> None:
        touched = await self._reopen(step.via) if step.op == "reopen" else await self._metered(step)
        if not self._how.each or step.seen_by < 0:
            if step.seen_by < -1:
                await self._learn(step.via, self._id(step.agent), "before the change")
            return
        kinds, own = kinds_of(step.op), self._id(step.agent)
        for via in range(len(self._stores)) if self._how.both or step.op == "prime" else [step.seen_by]:
            when = f"seen through store {via + 1}"
            mine = dict.fromkeys([own, *touched])
            for agent_id in [*mine, *(a for a, agent in self.model.agents.items() if agent.is_news and a not in mine)]:
                await self._learn(via, agent_id, when)
            for agent_id in mine:
                is_neighbour = step.op == "look" and agent_id != own and agent_id not in self.forks.values()
                await self._look(via, agent_id, ("counts",) if is_neighbour else kinds, when)
            others = [agent_id for agent_id in self.model.agents if agent_id != own and agent_id not in touched]
            if others:
                await self._look(via, others[self._turn % len(others)], (), f"not touched, {when}")
        if self._followers is not None:
            await self._followers.catch_up(self.model)

    async def _metered(self, step: Step) -> Sequence[str]:
        """Make a call, which must move its counter by one and no other."""
        group = _GROUPS.get(step.op)
        if not self._how.metrics or group is None or step.fence:
            return await self._call(step)
        store = self._stores[step.via]
        before = (await store.get_metrics()).operations
        touched = await self._call(step)
        after = (await store.get_metrics()).operations
        moving = group if refusal_of(step) is None else "errors"
        want = {name: int(name == moving) for name in _COUNTERS}
        moved = {name: getattr(after, name) - getattr(before, name) for name in _COUNTERS}
        self._ctx.equal(moved, want, f"how far {step.op} moved the counters of get_metrics")
        return touched

    async def _call(self, step: Step) -> Sequence[str]:
        """Make a call; the agents that it touched."""
        agent_id = self._id(step.agent)
        refused = refusal_of(step)
        self.made.append(Made(step, (), "" if refused is None else refused.__name__))
        if step.op == "pause":
            await asyncio.sleep(_PAUSE_S)
            return []
        if step.op in ("look", "prime"):
            return list(self.model.agents)
        if step.op in Leases.OPS:
            await self._leases.do(step, agent_id, self._stores)
            held = self._leases.fence("held", agent_id)
            if held is not None and held.agent is None:
                held.agent, held.highest = self.model.agents[agent_id], highest_seq(self.model.agents[agent_id])
            return [agent_id]
        store = self._stores[step.via]
        if step.op == "batch_fork":
            return await self._fork(store, agent_id, *step.args)
        if step.op == "delete_many":
            return await self._delete_many(store, dict(step.named))
        if step.op == "fork":
            return await self._fork_at(store, agent_id, dict(step.named))
        args = [self.value(arg, agent_id) for arg in step.args]
        named = {name: self.value(arg, agent_id) for name, arg in step.named}
        if refused is not None:
            try:
                await self._ctx.raises(refused, getattr(store, step.op)(agent_id, *args, **named), step.op)
            except Violation as exc:
                raise Finding(str(exc), is_of_the_call=True) from None
            return [agent_id]
        lease = self._leases.fence(step.fence, agent_id)
        via = step.via if lease is None else lease.via
        if lease is not None and lease.has_ended:
            call = getattr(self._stores[via], step.op)(agent_id, *args, **named, fence=lease.lease)
            await self._leases.refused(call, step.op)
            return [agent_id]
        kind = await self._caller.make(self._stores, via, step, agent_id, args, named, lease)
        self.made[-1] = self.made[-1]._replace(refused=kind)
        return [agent_id]

    async def _fork(self, store: Any, agent_id: str, count: int = 1) -> Sequence[str]:
        parent = self.model.agents[agent_id]
        if parent.info is None:
            self.made[-1] = self.made[-1]._replace(refused=AgentNotFoundError.__name__)
            await self._ctx.raises(AgentNotFoundError, store.batch_fork(agent_id, count), "forking without info")
            return [agent_id]
        ids = list(await store.batch_fork(agent_id, count))
        self._ctx.equal(len(ids), count, "how many forks there are")
        for fork_id in ids:
            self._ctx.true(fork_id not in self.model.agents, f"the fork has an id that is taken: {fork_id}")
            info = await store.load_info(fork_id)
            self._ctx.true(info is not None, "a fork has no info")
            self.model.fork(parent, agent_id, cast(AgentInfo, info))
            self.forks[f"f{len(self.forks) + 1}"] = fork_id
        self.made[-1] = self.made[-1]._replace(forks=list(self.forks)[-count:])
        return [agent_id, *ids]

    async def _fork_at(self, store: Any, agent_id: str, named: dict[str, Any]) -> Sequence[str]:
        given: dict[str, Any] = {}
        given |= {name: self._id(arg) if name == "new_id" else self.value(arg, agent_id) for name, arg in named.items()}
        parent = self.model.agents[agent_id]
        kind, fork_id = await self._caller.fork(store, agent_id, parent, given)
        if kind:
            self.made[-1] = self.made[-1]._replace(refused=kind)
            return [agent_id]
        if "new_id" not in given:
            self.forks[f"f{len(self.forks) + 1}"] = fork_id
            self.made[-1] = self.made[-1]._replace(forks=list(self.forks)[-1:])
        given.pop("new_id", None)
        self.model.fork(parent, agent_id, cast(AgentInfo, await store.load_info(fork_id)), **given)
        return [agent_id, fork_id]

    async def _delete_many(self, store: Any, named: dict[str, Any]) -> Sequence[str]:
        filters = self.filters(named)
        found = [session.agent_id for session in sessions_found(self.model, filters)]
        got, want = await store.delete_many(**filters), self.model.delete_many(found)
        self._ctx.equal(got, want, "how many delete_many deleted")
        return found

    async def _reopen(self, via: int) -> Sequence[str]:
        self.made.append(Made(Step("reopen", "", via=via)))
        await self._leases.release_all(via)
        await self._ctx.close(self._stores[via])
        self._stores[via] = await self._ctx.another()
        self._caller.was_opened(via)
        return []

    def filters(self, named: dict[str, Any]) -> dict[str, Any]:
        """The filters of a step as arguments."""
        given = dict(named)
        if "agent_id" in given:
            given["agent_id"] = self._id(given["agent_id"])
        if "template_id" in given:
            given["template_id"] = self.prefix + given["template_id"]
        if "metadata" in given:
            given["metadata"] = dict(given["metadata"])
        return given

    def _id(self, agent: str) -> str:
        return self.forks.get(agent, self.prefix + agent)

    def _is_mine(self, agent_id: str) -> bool:
        return agent_id.startswith(self.prefix) or agent_id in self.forks.values()

    def value(self, arg: Any, agent_id: str) -> Any:
        """The value that a step's argument names."""
        if not isinstance(arg, (str, tuple)):
            return arg
        if isinstance(arg, tuple):
            return [self._own(value, agent_id) for name in arg for value in values_of(name)]
        return self._own(values_of(arg)[0], agent_id)

    def _own(self, value: Any, agent_id: str) -> Any:
        if isinstance(value, AgentInfo):
            return value.replace(agent_id=value.agent_id or agent_id, template_id=self.prefix + value.template_id)
        return value

    # --- looking

    async def _look_at_all(self, when: str) -> None:
        for via in range(len(self._stores)):
            for agent_id in list(self.model.agents):
                await self._learn(via, agent_id, f"{when}, store {via + 1}")
            for agent_id in list(self.model.agents):
                for _ in range(self._how.rounds):
                    await self._look(via, agent_id, KINDS, f"{when}, store {via + 1}")
            await self._ask(via, Look("list"), f"{when}, store {via + 1}")

    async def _look(self, via: int, agent_id: str, kinds: Sequence[str], when: str) -> None:
        """Everything by id, and what *kinds* of queries find."""
        agent, known = self.model.agents[agent_id], self._known[agent_id]
        self._turn += 1
        everything = self._turn % 3 == 0
        for look in loads(agent_id, known, self._turn, KINDS if everything else {*kinds, "events"}):
            await self._ask(via, look, when)
        offsets = [cast(int, logged.offset) for logged in agent.events]
        self._ctx.equal(offsets, sorted(set(offsets)), f"offsets in the order of commit, {when}")
        known.note(agent)
        kinds = kinds if self._how.queries or "events" not in kinds else ("events",)
        for look in document_looks(agent_id, known, self._turn) if self._how.documents else ():
            await self._ask(via, look, when)
        for kind in kinds:
            if kind == "events" or (self._how.queries and self._is_queryable):
                for look in looks(kind, agent_id, known, self.model, self._turn):
                    await self._ask(via, look, when)

    async def _ask(self, via: int, look: Look, when: str) -> None:
        """One look, compared."""
        got = await ask(self._stores[via], look)
        if look.method == "read_events":
            self._learner.note_read(look, cast(Any, got))
        self._learner.note_documents(look, got)
        problem, want = problem_of(got, self.model, look, self._is_mine)
        if problem:
            is_plain = difference(plain(got), plain(want)) is not None
            raise Finding(self.shown(f"{look}, {when}: {problem}"), look, want, via, is_plain=is_plain)

    async def _learn_all(self, via: int, agent_id: str) -> None:
        await self._ask(via, Look("read_events", (agent_id,)), "at the end")
        await self._learn(via, agent_id, "at the end")

    async def _learn(self, via: int, agent_id: str, when: str) -> None:
        """The values that the store generated, held to their rules."""
        await self._learner.learn(self._stores[via], via, agent_id, when)

    async def _delete_all(self) -> None:
        for agent_id in list(self.model.agents):
            self.model.delete(agent_id)
            await self._stores[0].delete(agent_id)
            if self._how.end:
                await self._look(len(self._stores) - 1, agent_id, KINDS, "after everything was deleted")
        await self._ask(len(self._stores) - 1, Look("list"), "after everything was deleted")

    def shown(self, text: str) -> str:
        """A text, with the names of the history."""
        for name, fork_id in self.forks.items():
            text = text.replace(repr(fork_id), name)
        return text.replace(f"'{self.prefix}", "'") if self.prefix else text

    def name_of(self, agent_id: str) -> str:
        """The name of an agent in the history."""
        return next((name for name, fork in self.forks.items() if fork == agent_id), agent_id[len(self.prefix) :])


_COUNTERS: Final = ("saves", "loads", "queries", "deletes", "errors")
_GROUPS: Final = {
    "delete": "deletes",
    **dict.fromkeys(
        (
            *("save_messages", "append_messages", "save_tool_call_records", "upsert_tool_call_records", "save_turn"),
            *("save_todos", "append_event", "append_events", "save_history_window", "save_compression_record"),
            *("save_recovered_file", "save_media_cache", "save_snapshot", "save_info"),
        ),
        "saves",
    ),
}
