"""Faults of each kind that a history can end in, for the programs that show them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, ClassVar

from kode_conformance.context import Context
from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import MemoryLayer, OnJson, mutant
from kode_core.batch import Batch, Outcome
from kode_core.errors import InvalidArgumentError, InvalidValueError, LockLostError
from kode_core.store import EngineStore


async def todos_of_a_turn(ctx: Context) -> object:
    """Reads todos, saves others by a turn, and reads them again."""
    await ctx.store.save_todos("a", samples.todos("one"))
    await ctx.store.load_todos("a")
    await ctx.store.save_turn("a", todos=samples.todos("two"))
    return await ctx.store.load_todos("a")


@mutant("MSG-8", killed_by="random_histories_follow_the_model", witness=todos_of_a_turn)
class RemembersTodos(EngineStore):
    """Remembers the todos that it read, and does not forget them when a turn saves others."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.known: dict[str, Any] = {}

    async def save_todos(self, agent_id: str, snapshot: Any, *, fence: Any = None) -> None:
        await super().save_todos(agent_id, snapshot, fence=fence)
        self.known.pop(agent_id, None)

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        await super().delete(agent_id, fence=fence)
        self.known.pop(agent_id, None)

    async def load_todos(self, agent_id: str) -> Any:
        if self.known.get(agent_id) is None:
            self.known[agent_id] = await super().load_todos(agent_id)
        return self.known[agent_id]


async def times_of_a_message_that_was_replaced(ctx: Context) -> object:
    """Replaces the first of two messages, and reads whether it has the time of its position."""
    await ctx.store.save_messages("a", samples.messages(2))
    before = await ctx.store.query_messages(agent_id="a", order="asc")
    await ctx.store.save_messages("a", samples.messages(2, 1))
    after = await ctx.store.query_messages(agent_id="a", order="asc")
    return max(m.created_at for m in after) - max(m.created_at for m in before) > 500


@mutant("QRY-2", killed_by="queries_after_each_change_of_a_list", witness=times_of_a_message_that_was_replaced)
class StampsAnew(MemoryLayer):
    """Gives a message that is saved at a position for the second time the time of now, and a second more."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        return await super().commit([self._stamped(batch) for batch in batches])

    def _stamped(self, batch: Batch) -> Batch:
        if batch.messages is None or not batch.messages.put:
            return batch
        put = tuple((i, replace(row, created_at=row.created_at + 1000)) for i, row in batch.messages.put)
        return replace(batch, messages=replace(batch.messages, put=put))


async def equal_calls(ctx: Context) -> object:
    """Saves a tool call twice in one list."""
    try:
        await ctx.store.save_tool_call_records("a", [samples.tool_call()] * 2)
    except KeyError:
        return "refused"
    return "saved"


@mutant("QRY-2", killed_by="queries_after_each_change_of_a_list", witness=equal_calls, raises="KeyError")
class FailsOnEqualCalls(EngineStore):
    """Raises a KeyError when a list has the same tool call twice."""

    async def save_tool_call_records(self, agent_id: str, records: Sequence[Any], *, fence: Any = None) -> None:
        if any(one == other for i, one in enumerate(records) for other in records[:i]):
            raise KeyError(records[0].id)
        await super().save_tool_call_records(agent_id, records, fence=fence)


async def a_batch_with_a_bad_event(ctx: Context) -> object:
    """Appends a batch with an event that JSON cannot carry."""
    try:
        await ctx.store.append_events("a", [samples.event(0), samples.event(1, x=float("nan"))])
    except InvalidValueError:
        return "refused"
    return "taken"


@mutant("MSG-8", killed_by="random_histories_follow_the_model", witness=a_batch_with_a_bad_event)
class TakesAnyEvent(EngineStore):
    """Leaves events out of a batch that cannot be stored, and says nothing."""

    async def append_events(self, agent_id: str, timelines: Sequence[Any], *, fence: Any = None) -> Sequence[int]:
        try:
            return await super().append_events(agent_id, timelines, fence=fence)
        except InvalidValueError:
            return [await super().append_event(agent_id, timelines[0], fence=fence)] * len(timelines)


async def media_of_a_second_fork(ctx: Context) -> object:
    """Forks twice in one call, and reads the media of both."""
    await ctx.store.save_info("a", samples.info("a"))
    await ctx.store.save_media_cache("a", [samples.media()])
    return [len(await ctx.store.load_media_cache(fork)) for fork in await ctx.store.batch_fork("a", 2)]


@mutant("LIFE-4", killed_by="queries_after_each_end_and_fork", witness=media_of_a_second_fork)
class ForgetsTheForksMedia(EngineStore):
    """Gives the media of the parent to the first of several forks only."""

    async def batch_fork(self, agent_id: str, count: int) -> list[str]:
        ids = await super().batch_fork(agent_id, count)
        for fork_id in ids[1:]:
            await super().save_media_cache(fork_id, [])
        return ids


async def counters_of_an_upsert(ctx: Context) -> object:
    """Upserts once, and reads the counter."""
    await ctx.store.upsert_tool_call_records("a", [samples.tool_call()])
    return (await ctx.store.get_metrics()).operations.saves


@mutant("OPS-3", killed_by="each_call_moves_its_counter", witness=counters_of_an_upsert)
class CountsUpsertsTwice(EngineStore):
    """Counts an upsert as two saves."""

    async def upsert_tool_call_records(self, agent_id: str, records: Sequence[Any], *, fence: Any = None) -> None:
        await super().upsert_tool_call_records(agent_id, records, fence=fence)
        await super().upsert_tool_call_records(agent_id, [], fence=fence)


async def repeated_seqs_of_a_channel(ctx: Context) -> object:
    """Follows one channel, in which two events have one seq."""
    await ctx.store.append_events("a", [samples.event(0, n=0), samples.event(0, n=1), samples.event(1)])
    seen: list[int] = []
    async for event in ctx.store.follow_events("a", channel="progress"):
        seen.append(event.bookmark.seq)
        if event.bookmark.seq == 1:
            break
    return seen


@mutant("EVT-7", killed_by="random_histories_are_followed", witness=repeated_seqs_of_a_channel)
class FollowsEachSeqOnce(EngineStore):
    """Leaves out of a channel that is followed what has the seq of the event before."""

    async def _once(self, events: AsyncIterator[Any]) -> AsyncIterator[Any]:
        last = None
        async for event in events:
            if event.bookmark.seq != last:
                last = event.bookmark.seq
                yield event

    def follow_events(self, agent_id: str, *, channel: Any = None, **bounds: Any) -> AsyncIterator[Any]:
        events = super().follow_events(agent_id, channel=channel, **bounds)
        return events if channel is None else self._once(events)


async def a_document_under_an_ended_lease(ctx: Context) -> object:
    """Saves a snapshot under a lease that has ended."""
    lease = await ctx.store.acquire_agent_lock("a")
    await lease.release()
    try:
        await ctx.store.save_snapshot("a", samples.snapshot(), fence=lease)
    except LockLostError:
        return "refused"
    return "saved"


@mutant("LOCK-5", killed_by="random_histories_under_leases", witness=a_document_under_an_ended_lease)
class FencesNoDocuments(EngineStore):
    """Takes the lease of a write of a document, and does not look at it."""

    async def save_todos(self, agent_id: str, snapshot: Any, *, fence: Any = None) -> None:
        await super().save_todos(agent_id, snapshot)

    async def save_history_window(self, agent_id: str, window: Any, *, fence: Any = None) -> None:
        await super().save_history_window(agent_id, window)

    async def save_recovered_file(self, agent_id: str, file: Any, *, fence: Any = None) -> None:
        await super().save_recovered_file(agent_id, file)

    async def save_snapshot(self, agent_id: str, snapshot: Any, *, fence: Any = None) -> None:
        await super().save_snapshot(agent_id, snapshot)


async def roles_of_many_messages(ctx: Context) -> object:
    """Counts the messages of one role in a long list."""
    await ctx.store.save_messages("a", samples.messages(450))
    return len(await ctx.store.query_messages(agent_id="a", role="user", limit=1000))


@mutant("VAL-1", killed_by="random_histories_of_long_lists", witness=roles_of_many_messages)
class IndexesTheBeginning(EngineStore):
    """Indexes the first four hundred records of a list."""

    async def query_messages(self, **filters: Any) -> Any:
        found = await super().query_messages(**filters)
        if "role" in filters or "content_type" in filters:
            found[:] = [message for message in found if message.position < 400]
        return found

    async def query_tool_calls(self, **filters: Any) -> Any:
        found = await super().query_tool_calls(**filters)
        if "tool_name" in filters or "state" in filters:
            found[:] = [call for call in found if call.position < 400]
        return found


async def stats_after_a_write_elsewhere(ctx: Context) -> object:
    """Reads the statistics of an agent before and after another instance writes."""
    other = await ctx.another()
    counts = []
    for _ in range(2):
        await other.append_messages("a", samples.messages(1))
        counts.append((await ctx.store.aggregate_stats("a")).total_messages)
    return counts


@mutant("QRY-8", killed_by="random_histories_of_two_processes", witness=stats_after_a_write_elsewhere, on=OnJson)
class RemembersStats(EngineStore):
    """Remembers the statistics of an agent, and that nobody of this process wrote since."""

    known: ClassVar[dict[str, Any]] = {}

    async def save_messages(self, agent_id: str, messages: Sequence[Any], *, fence: Any = None) -> None:
        await super().save_messages(agent_id, messages, fence=fence)
        self.known.clear()

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        await super().delete(agent_id, fence=fence)
        self.known.clear()

    async def aggregate_stats(self, agent_id: str) -> Any:
        if agent_id not in self.known:
            self.known[agent_id] = await super().aggregate_stats(agent_id)
        return self.known[agent_id]


async def an_upsert_of_a_turn(ctx: Context) -> object:
    """Upserts a call by a turn, and reads the calls."""
    await ctx.store.save_tool_call_records("a", [samples.tool_call(name=name) for name in ("one", "two")])
    await ctx.store.save_turn("a", upsert_tool_calls=[samples.tool_call(name="three")])
    return [call.name for call in await ctx.store.load_tool_call_records("a")]


@mutant("TC-3", killed_by="MSG-8.random_histories_give_what_memory_gives", witness=an_upsert_of_a_turn)
class AppendsTheCallsOfATurn(EngineStore):
    """Adds the calls that a turn upserts at the end, also where one has the id."""

    async def save_turn(self, agent_id: str, *, upsert_tool_calls: Sequence[Any] = (), **parts: Any) -> None:
        if not upsert_tool_calls or parts.get("tool_calls") is not None:
            await super().save_turn(agent_id, upsert_tool_calls=upsert_tool_calls, **parts)
            return
        calls = [*await self.load_tool_call_records(agent_id), *upsert_tool_calls]
        await super().save_turn(agent_id, tool_calls=calls, **parts)


async def a_channel_in_capitals(ctx: Context) -> object:
    """Reads a channel whose name is written with a capital."""
    await ctx.store.append_event("a", samples.event(0, "control"))
    try:
        return [event.bookmark.seq async for event in ctx.store.read_events("a", channel="Control")]  # type: ignore[arg-type]
    except InvalidArgumentError:
        return "refused"


@mutant("QRY-1", killed_by="unusual_calls_end_as_in_memory", witness=a_channel_in_capitals)
class FoldsChannels(EngineStore):
    """Knows a channel by its name in small letters."""

    def read_events(self, agent_id: str, *, channel: Any = None, **bounds: Any) -> AsyncIterator[Any]:
        return super().read_events(agent_id, channel=channel.lower() if isinstance(channel, str) else channel, **bounds)
