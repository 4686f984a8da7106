"""Random histories of calls, compared with a model after every step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

import msgspec

from kode_conformance.context import Context, difference
from kode_conformance.experiments import follow_the_model
from kode_conformance.machine import Machine
from kode_conformance.model import AgentModel
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_core.model import AgentInfo, Message, TextBlock, ToolResultBlock, ToolUseBlock
from kode_core.protocols import QueryableStore, Store
from kode_core.query import AgentStats, Page, SessionInfo

_LISTS = ("MSG-1", "MSG-2", "MSG-3", "MSG-6", "MSG-7", "TC-1", "TC-2", "TC-3", "TURN-1")
_LOG = ("EVT-2", "EVT-3", "EVT-4", "EVT-5", "EVT-6")
_DOCUMENTS = ("TODO-1", "HIS-1", "HIS-2", "MED-1", "SNAP-1", "INFO-1", "LIFE-1", "LIFE-3", "LIFE-4")


@check("MSG-8", *_LISTS, *_LOG, *_DOCUMENTS, "VAL-2", "VAL-3", "ID-2", "ID-3", stochastic=True)
async def random_histories_follow_the_model(ctx: Context) -> None:
    """After any sequence of calls through two instances, the store holds what the contract makes of them."""
    await follow_the_model(ctx, histories=ctx.effort.examples // 2)


@check("LIFE-3", "DUR-1", "EVT-2", "EVT-4", "MSG-1", needs=Capability.PERSISTENT, tier=Tier.STANDARD, stochastic=True)
async def random_histories_survive_restarts(ctx: Context) -> None:
    """After any sequence of calls and restarts, the store holds what the contract makes of them."""
    await follow_the_model(ctx, histories=max(1, ctx.effort.examples // 4), more={"reopen": 6}, restart=True)


@check("FORK-2", "FORK-1", needs=Capability.EXTENDED, tier=Tier.STANDARD, stochastic=True)
async def random_histories_with_forks(ctx: Context) -> None:
    """After any sequence of calls and forks, parents and forks hold what the contract makes of them."""
    await follow_the_model(ctx, histories=max(1, ctx.effort.examples // 4), more={"batch_fork": 8})


@check(
    "QRY-2",
    "QRY-3",
    "QRY-5",
    "QRY-6",
    "QRY-7",
    "MSG-6",
    "INFO-2",
    "LIFE-5",
    needs=Capability.QUERYABLE,
    tier=Tier.STANDARD,
    stochastic=True,
)
async def random_histories_and_queries(ctx: Context) -> None:
    """After any sequence of calls, queries and statistics find what the agent holds, and nothing else."""
    queries = _Queries(ctx)
    await follow_the_model(ctx, histories=max(1, ctx.effort.examples // 4), more={"delete_many": 2}, seen=queries.seen)


_BLOCKS: Final = {"text": TextBlock, "tool_use": ToolUseBlock, "tool_result": ToolResultBlock}


class _Queries:
    """What queries must find of an agent of the model, and what they found of it before."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._updated: dict[str, tuple[AgentModel, int]] = {}
        self._stamps: dict[str, tuple[AgentModel, list[Message], list[int]]] = {}

    async def seen(self, machine: Machine, store: Store, agent_id: str) -> None:
        """One look."""
        agent, queryable = machine.model.agents[agent_id], cast(QueryableStore, store)
        await self._session(queryable, agent_id, agent)
        await self._messages(queryable, agent_id, agent)
        await self._tool_calls(queryable, agent_id, agent)
        await self._stats(queryable, agent_id, agent)

    async def _session(self, store: QueryableStore, agent_id: str, agent: AgentModel) -> None:
        found = await store.query_sessions(agent_id=agent_id)
        if agent.info is None:
            return self._ctx.equal(list(found), [], "query_sessions of an agent without info")
        self._ctx.equal(len(found), 1, "how many sessions there are of one agent")
        updated_at = found[0].updated_at
        self._ctx.equal(found[0], _session(agent.info, len(agent.messages), updated_at), "query_sessions")
        known, before = self._updated.get(agent_id, (agent, 0))
        is_same = known is agent  # and not a new one after a delete
        self._ctx.true(not is_same or updated_at >= before, "updated_at of a session must not go back")
        self._updated[agent_id] = (agent, updated_at)
        for filters in ({"k": 0}, {"k": False}, {"userId": ""}):
            matches = await store.query_sessions(template_id=agent.info.template_id, metadata=filters)
            wanted = all(difference(agent.info.metadata.get(key), value) is None for key, value in filters.items())
            self._ctx.equal(agent_id in [s.agent_id for s in matches], wanted, f"whether {filters} finds the session")
        return None

    async def _messages(self, store: QueryableStore, agent_id: str, agent: AgentModel) -> None:
        found = [message async for message in store.iter_messages(agent_id=agent_id, order="asc")]
        keys = [(message.created_at, message.position) for message in found]
        self._ctx.equal(keys, sorted(keys), "iter_messages by time, then position")
        pages = await _pages(store.query_messages, agent_id=agent_id)
        self._ctx.equal(pages, found[::-1], "query_messages in pages of two, newest first")
        found.sort(key=lambda message: message.position)
        positions = [message.position for message in found]
        self._ctx.equal(positions, list(range(len(agent.messages))), "the positions of iter_messages")
        self._ctx.equal(found, agent.messages, "iter_messages")
        self._stamped(agent_id, agent, [message.created_at for message in found])
        for name, block in _BLOCKS.items():
            wanted = [i for i, m in enumerate(agent.messages) if any(isinstance(b, block) for b in m.content)]
            page = await store.query_messages(agent_id=agent_id, content_type=name)
            self._ctx.equal(sorted(message.position for message in page), wanted, f"messages with a block {name}")

    def _stamped(self, agent_id: str, agent: AgentModel, stamps: list[int]) -> None:
        """A list that only grew has the times that it had (MSG-4)."""
        known, messages, before = self._stamps.get(agent_id, (agent, [], []))
        grew = difference(agent.messages[: len(messages)], messages) is None
        if known is agent and grew:
            lost = Counter(before) - Counter(stamps)
            self._ctx.true(not lost, f"times of messages that stay: {before} became {stamps}")
        self._stamps[agent_id] = (agent, list(agent.messages), stamps)

    async def _tool_calls(self, store: QueryableStore, agent_id: str, agent: AgentModel) -> None:
        order = sorted(enumerate(agent.tool_calls), key=lambda place: (place[1].created_at, place[0]))
        wanted = [call for _, call in order]
        found = [call async for call in store.iter_tool_calls(agent_id=agent_id, order="asc")]
        self._ctx.equal(found, wanted, "iter_tool_calls")
        self._ctx.equal([call.position for call in found], [i for i, _ in order], "the positions of iter_tool_calls")
        self._ctx.equal(await _pages(store.query_tool_calls, agent_id=agent_id), found[::-1], "pages of tool calls")
        failed = await store.query_tool_calls(agent_id=agent_id, state="FAILED", order="asc")
        self._ctx.equal(failed, [call for call in wanted if call.state == "FAILED"], "tool calls that failed")
        approved = await store.query_tool_calls(agent_id=agent_id, has_approval=True, order="asc")
        self._ctx.equal(approved, [call for call in wanted if call.approval.required], "tool calls with approval")

    async def _stats(self, store: QueryableStore, agent_id: str, agent: AgentModel) -> None:
        wanted = AgentStats(
            total_messages=len(agent.messages),
            total_tool_calls=len(agent.tool_calls),
            total_snapshots=len(agent.snapshots),
        )
        found = await store.aggregate_stats(agent_id)
        self._ctx.equal(msgspec.structs.replace(found, tool_calls_by_name={}, tool_calls_by_state={}), wanted, "totals")
        for attribute, counts in (("name", found.tool_calls_by_name), ("state", found.tool_calls_by_state)):
            counted = Counter(getattr(call, attribute) for call in agent.tool_calls)
            self._ctx.equal(sorted(counts.items()), sorted(counted.items()), f"tool calls by {attribute}")


async def _pages(query: Callable[..., Awaitable[Page[Any]]], **filters: Any) -> list[Any]:
    page = await query(**filters, limit=2)
    found = list(page)
    while page.next_cursor is not None:
        page = await query(**filters, limit=2, cursor=page.next_cursor)
        found += page
    return found


def _session(info: AgentInfo, message_count: int, updated_at: int) -> SessionInfo:
    return SessionInfo(
        agent_id=info.agent_id,
        template_id=info.template_id,
        created_at=info.created_at,
        updated_at=updated_at,
        message_count=message_count,
        lineage=tuple(info.lineage),
        last_sfp_index=info.last_sfp_index,
        last_bookmark=info.last_bookmark,
        breakpoint=info.breakpoint,
        metadata=info.metadata,
    )
