"""Stores that list and delete wrongly (LIFE clauses)."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from typing import Any

from kode_conformance.context import Context
from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import MemoryLayer, mutant
from conformance.tests.zoo.witnesses import happened, seen, talk, the
from kode_core.batch import Applied, Batch, ListWrite, Outcome
from kode_core.errors import AgentNotFoundError
from kode_core.layers import Layer
from kode_core.store import EngineStore

# --- existing and listing ---------------------------------------------------------------------------------------------


@mutant(
    "LIFE-1",
    killed_by="exists_follows_the_info",
    source="KODE SDK JSONStore: whatever has a folder is an agent",
    witness=seen(lambda s: s.save_messages("a", talk("1")), lambda s: s.exists("a")),
)
class AnythingExists(EngineStore):
    """Says that an agent exists when it has messages."""

    async def exists(self, agent_id: str) -> bool:
        return await super().exists(agent_id) or bool(await self.load_messages(agent_id))


@mutant(
    "LIFE-1",
    killed_by="a_bare_info_exists",
    source="KODE SDK JSONStore: exists wants metadata that is truthy",
    witness=seen(lambda s: s.save_info("a", samples.info("a", metadata={})), lambda s: s.exists("a")),
)
class ExistsByMetadata(EngineStore):
    """Says that an agent without metadata does not exist."""

    async def exists(self, agent_id: str) -> bool:
        info = await self.load_info(agent_id)
        return bool(info and info.metadata)


@mutant(
    "LIFE-2",
    killed_by="agents_without_info_are_listed_when_asked_for",
    source="SELECT DISTINCT agent_id FROM messages",
    witness=seen(
        lambda s: s.append_event("a", samples.event(0)),
        lambda s: s.save_messages("b", talk("1")),
        lambda s: s.list(include_without_info=True),
    ),
)
class ListsThoseWithMessages(EngineStore):
    """Lists agents without info only if they have messages."""

    async def list(self, prefix: str = "", *, include_without_info: bool = False) -> list[str]:
        found = await super().list(prefix, include_without_info=include_without_info)
        named = await super().list(prefix) if include_without_info else found
        return [one for one in found if one in named or await self.load_messages(one)]


async def _listed_without_documents(ctx: Context) -> object:
    await ctx.store.put_document("a", "c", "k", 1)
    await ctx.store.delete_document("a", "c", "k")
    return await ctx.store.list(include_without_info=True)


@mutant(
    "LIFE-2",
    killed_by="agents_whose_documents_are_gone_are_not_listed",
    source="a mark that an agent is used, which stays when its last document goes",
    witness=_listed_without_documents,
)
class ListsThoseThatHadDocuments(EngineStore):
    """Lists agents without info as long as they were not deleted, also if all of their documents were."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._had: set[str] = set()

    async def write_documents(self, agent_id: str, writes: Any, **given: Any) -> Any:
        found = await super().write_documents(agent_id, writes, **given)
        self._had.add(agent_id)
        return found

    async def put_document(self, agent_id: str, *args: Any, **given: Any) -> str:
        version = await super().put_document(agent_id, *args, **given)
        self._had.add(agent_id)
        return version

    async def delete(self, agent_id: str, **given: Any) -> None:
        self._had.discard(agent_id)
        await super().delete(agent_id, **given)

    async def list(self, prefix: str = "", *, include_without_info: bool = False) -> list[str]:
        found = await super().list(prefix, include_without_info=include_without_info)
        if not include_without_info:
            return found
        return sorted({*found, *(one for one in self._had if one.startswith(prefix))})


class _Matches(Layer):
    """Lists the agents that fit a prefix in another way."""

    def fits(self, agent_id: str, prefix: str) -> bool:
        raise NotImplementedError

    async def agent_ids(self, prefix: str, after: str | None, limit: int) -> Sequence[str]:
        return [a for a in await super().agent_ids("", after, limit) if self.fits(a, prefix)]


def _listed(prefix: str, *agents: str) -> Any:
    return seen(lambda s: _saved(s, agents), lambda s: s.list(prefix))


async def _saved(store: Any, agents: Sequence[str]) -> None:
    for agent in agents:
        await store.save_info(agent, samples.info(agent))


@mutant(
    "LIFE-2",
    killed_by="the_prefix_is_literal",
    source="KODE SDK SqliteStore and PostgresStore: `_` and `%` of a LIKE are not escaped",
    witness=_listed("ab_", "ab_1", "abX1"),
)
class WildcardPrefix(_Matches):
    """Takes "_" in a prefix for any character."""

    def fits(self, agent_id: str, prefix: str) -> bool:
        pairs = itertools.zip_longest(prefix, agent_id[: len(prefix)])
        return all(p in ("_", c) and c is not None for p, c in pairs)


@mutant(
    "LIFE-2",
    killed_by="the_prefix_is_literal",
    source="KODE SDK SqliteStore: LIKE does not tell upper from lower case",
    witness=_listed("ab", "AB_2"),
)
class PrefixWithoutCase(_Matches):
    """Does not tell upper from lower case in a prefix."""

    def fits(self, agent_id: str, prefix: str) -> bool:
        return agent_id.lower().startswith(prefix.lower())


@mutant(
    "LIFE-2",
    killed_by="the_prefix_is_literal",
    source="KODE SDK JSONStore: list shows every entry of the folder",
    witness=seen(lambda s: s.save_messages("a", talk("1")), lambda s: s.list()),
)
class ListsEverything(MemoryLayer):
    """Lists agents that have no info."""

    async def agent_ids(self, prefix: str, after: str | None, limit: int) -> Sequence[str]:
        found = sorted(a for a in self.space.states if a.startswith(prefix) and (after is None or a > after))
        return found[:limit]


@mutant(
    "LIFE-2",
    killed_by="the_prefix_is_literal",
    source="KODE SDK SqliteStore: list is ordered by created_at",
    witness=seen(
        lambda s: _saved(s, ["b", "a"]),
        lambda s: s.list(),
    ),
)
class ListsByAge(EngineStore):
    """Lists agents in the order in which they were made."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._made: list[str] = []

    async def save_info(self, agent_id: str, info: Any, *, fence: Any = None) -> None:
        await super().save_info(agent_id, info, fence=fence)
        self._made.append(agent_id)

    async def list(self, prefix: str = "") -> Any:
        known = {agent: place for place, agent in enumerate(self._made)}
        return sorted(await super().list(prefix), key=lambda agent: known.get(agent, 0))


@mutant(
    "LIFE-2",
    killed_by="thousands_are_listed",
    source="DynamoDB: a scan ends after 1 MB, and goes on only if one asks",
    witness=seen(lambda s: _saved(s, [f"a{i}" for i in range(120)]), lambda s: s.list()),
    also=("LIFE-2.ten_thousand_agents",),
)
class ListsOnePage(Layer):
    """Lists the first hundred agents."""

    async def agent_ids(self, prefix: str, after: str | None, limit: int) -> Sequence[str]:
        return (await super().agent_ids(prefix, after, limit))[:100]


# --- deleting ---------------------------------------------------------------------------------------------------------


@mutant(
    "LIFE-3",
    killed_by="delete_removes_everything",
    source="KODE SDK SqliteStore and PostgresStore: the row goes first and the files later, and a crash leaves them",
    witness=seen(
        lambda s: s.save_todos("a", samples.todos("x")),
        lambda s: s.delete("a"),
        lambda s: s.load_todos("a"),
    ),
    also=("LIFE-3.random_histories_survive_restarts",),
)
class LeavesFilesBehind(MemoryLayer):
    """Leaves todos, history and media of a deleted agent behind."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        kept = {b.agent_id: dict(self.space.state(b.agent_id).docs) for b in batches if b.delete}
        outcomes = await super().commit(batches)
        for agent_id, docs in kept.items():
            if docs:
                state = self.space.state(agent_id)
                state.docs.update(docs)
                self.space.states[agent_id] = state
        return outcomes


@mutant(
    "LIFE-3",
    killed_by="delete_removes_everything",
    source="DELETE with a check of the row count",
    witness=seen(lambda s: s.delete("a")),
    raises="AgentNotFoundError",
)
class DeletingNobodyFails(EngineStore):
    """Raises when the agent that is to be deleted is not there."""

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        if not await self.exists(agent_id):
            raise AgentNotFoundError(agent_id)
        await super().delete(agent_id, fence=fence)


async def _deleted_and_waited(ctx: Context) -> object:
    await ctx.store.append_events("a", happened(0))
    await ctx.store.delete("a")
    await asyncio.sleep(0.1)
    return [event async for event in ctx.store.read_events("a")]


@mutant(
    "LIFE-3",
    killed_by="deleted_stays_deleted",
    source="KODE SDK JSONStore: the flush timer writes the events of a deleted agent again",
    witness=_deleted_and_waited,
)
class FlushesAfterDelete(Layer):
    """Writes the last events once more, some time after they were written."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self._timers: set[asyncio.Task[None]] = set()

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        for batch in batches:
            if batch.events:
                timer = asyncio.ensure_future(self._flush(replace(batch, op_id=f"{batch.op_id}t")))
                self._timers.add(timer)
                timer.add_done_callback(self._timers.discard)
        return await super().commit(batches)

    async def _flush(self, batch: Batch) -> None:
        await asyncio.sleep(0.05)
        await super().commit([batch])

    async def close(self) -> None:
        await asyncio.gather(*self._timers)
        await super().close()


async def _delete_amid_appends(ctx: Context) -> object:
    appends = [asyncio.ensure_future(ctx.store.append_event("a", samples.event(i))) for i in range(50)]
    await asyncio.sleep(0)
    await ctx.store.delete("a")
    await asyncio.gather(*appends)
    return [event async for event in ctx.store.read_events("a")]


@mutant(
    "LIFE-3",
    killed_by="delete_takes_accepted_appends_along",
    source="KODE SDK JSONStore: delete does not know of the events that wait to be written",
    witness=_delete_amid_appends,
)
class DeletesBeforeAppends(EngineStore):
    """Deletes at once, and lets appends that were accepted before come later."""

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        await self._context.commit(self._context.batch(agent_id, delete=True))
        await self._appender.drain(agent_id)


async def _save_amid_delete(ctx: Context) -> object:
    halves = []
    for i in range(5):
        agent = f"a{i}"
        await ctx.store.save_info(agent, samples.info(agent))
        turn = ctx.store.save_turn(agent, messages=talk("1"), info=samples.info(agent))
        await asyncio.gather(ctx.store.delete(agent), turn)
        halves.append((len(await ctx.store.load_messages(agent)), await ctx.store.exists(agent)))
    return any(half in ((1, False), (0, True)) for half in halves)


@mutant(
    "LIFE-3",
    killed_by="delete_against_save",
    source="KODE SDK SqliteStore: delete is two steps, the database and the files",
    witness=_save_amid_delete,
)
class DeletesInSteps(MemoryLayer):
    """Deletes the lists first, and the info a moment later."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        outcomes = []
        for batch in batches:
            if batch.delete:
                none = ListWrite(length=0)
                await super().commit([replace(batch, delete=False, messages=none, tool_calls=none)])
                await asyncio.sleep(0.005)
                self.space.state(batch.agent_id).info = None
                outcomes.append(Applied())
            else:
                outcomes += await super().commit([batch])
        return outcomes


@mutant(
    "LIFE-4",
    killed_by="a_deleted_id_starts_empty",
    source="KODE SDK SqliteStore: an agent that is made again inherits the files that a crash in delete left",
    witness=seen(
        lambda s: s.save_messages("a", talk("1")),
        lambda s: s.delete("a"),
        lambda s: s.append_messages("a", talk("2")),
        lambda s: s.load_messages("a"),
    ),
)
class DeletesSoftly(MemoryLayer):
    """Hides what is deleted, and finds it again when the id is used again."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self._hidden: dict[str, Any] = {}

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        for batch in batches:
            old = self.space.states.get(batch.agent_id)
            if batch.delete and old is not None:
                self._hidden[batch.agent_id] = old
            elif batch.messages is not None and old is None and batch.agent_id in self._hidden:
                found = self.space.states[batch.agent_id] = self._hidden.pop(batch.agent_id)
                found.info = None
        return await super().commit(batches)


# --- deleting many ----------------------------------------------------------------------------------------------------


@mutant(
    "LIFE-5",
    killed_by="delete_many_deletes_what_matches",
    source="KODE SDK database guide: query a page, delete its agents",
    witness=seen(
        lambda s: _saved(s, [f"a{i}" for i in range(120)]),
        lambda s: s.delete_many(template_id="assistant"),
    ),
)
class DeletesOnePage(EngineStore):
    """Deletes the first hundred sessions that match."""

    async def delete_many(self, **filters: Any) -> int:
        if not filters or "limit" in filters:
            return await super().delete_many(**filters)
        found = await the("agent_id", self.query_sessions(**filters))
        for agent_id in found:
            await self.delete(agent_id)
        return len(found)


@mutant(
    "LIFE-5",
    killed_by="delete_many_refuses_to_delete_all",
    source="KODE SDK database guide: a filter that the store ignores, and the loop deletes every agent",
    witness=seen(
        lambda s: _saved(s, ["a"]),
        lambda s: s.delete_many(template_id=None),
        lambda s: s.list(),
    ),
)
class DeletesEverything(EngineStore):
    """Takes a filter of None for no filter, and deletes everything."""

    async def delete_many(self, **filters: Any) -> int:
        filters = {name: value for name, value in filters.items() if value is not None}
        if filters:
            return await super().delete_many(**filters)
        return await _delete_all(self)


async def _delete_all(store: EngineStore) -> int:
    everyone = await store.list()
    for agent_id in everyone:
        await store.delete(agent_id)
    return len(everyone)


@mutant(
    "LIFE-5",
    killed_by="delete_many_refuses_to_delete_all",
    source="a filter of another document database: {} matches everything",
    witness=seen(
        lambda s: _saved(s, ["a"]),
        lambda s: s.delete_many(metadata={}),
        lambda s: s.list(),
    ),
)
class DeletesAllOfNoMetadata(EngineStore):
    """Takes metadata={} for a filter, which every agent matches."""

    async def delete_many(self, **filters: Any) -> int:
        return await (_delete_all(self) if filters == {"metadata": {}} else super().delete_many(**filters))
