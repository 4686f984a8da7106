"""Forks of the record engine in company: none is made over what others wrote, and none is given up while it goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest
from kode_conformance.suite.record_tests import Held
from kode_conformance.values import samples

from kode_core import OutcomeUnknownError, StoreBusyError, StoreUnavailableError
from kode_core.batch import Fence
from kode_core.engines.record.state import OpenedHead
from kode_core.engines.record.store import HeadRecord, Item
from kode_core.query import AgentStats
from kode_core.store import EngineStore
from tests.memory_records import Contents, MemoryRecords
from tests.test_record_engine import OPTIONS, opened

ROOMY = OPTIONS["roomy"]


class LosesTheEnd(MemoryRecords):
    """Loses the answer to the swap that makes a child live, and lets others do something before the head is read."""

    meanwhile: Callable[[str], Awaitable[object]] | None = None
    is_unread = False

    async def swap(self, old: HeadRecord | None, new: HeadRecord, fence: Fence | None, items: Sequence[Item]) -> bool:
        swapped = await super().swap(old, new, fence, items)
        if self.meanwhile is None or old is None or not OpenedHead(old).state.reserved:
            return swapped
        meanwhile, self.meanwhile = self.meanwhile, None
        await meanwhile(new.agent_id)
        raise OutcomeUnknownError("the connection broke")

    async def heads(self, agent_ids: Sequence[str]) -> list[HeadRecord]:
        if self.is_unread and self.meanwhile is None:
            raise StoreUnavailableError("the connection broke")
        return await super().heads(agent_ids)


async def parent_of(store: EngineStore) -> None:
    """Store an agent ``a`` that has something of all that a fork takes along."""
    await store.save_turn("a", messages=samples.messages(5), info=samples.info("a"))
    await store.save_todos("a", samples.todos("first"))


@pytest.mark.parametrize("name", ["a message", "a settle", "a delete", "a delete and a message"])
async def test_a_fork_whose_last_answer_is_lost_is_not_made_over_what_others_wrote(name: str) -> None:
    """Its head names it, whatever became of the child since."""
    contents = Contents()
    records = LosesTheEnd(contents, **ROOMY)
    async with await opened(records) as store, await opened(MemoryRecords(contents, **ROOMY)) as other:
        await parent_of(store)

        async def meanwhile(child: str) -> None:
            if name == "a settle":
                await other.query_sessions()
            if "delete" in name:
                await other.delete(child)
            if "message" in name:
                await other.append_messages(child, [samples.message(5)])

        records.meanwhile = meanwhile
        (child,) = await store.batch_fork("a", 1)
        wanted = {
            "a message": samples.messages(6),
            "a settle": samples.messages(5),
            "a delete": [],
            "a delete and a message": [samples.message(5)],
        }
        assert records.meanwhile is None
        assert await other.load_messages(child) == wanted[name]
        assert len(contents.heads) == 2


@pytest.mark.parametrize("how", ["its head cannot be read", "others wrote too much"])
async def test_a_fork_of_which_nobody_can_tell_is_in_doubt(how: str) -> None:
    """That is no plain failure, and no write of others is touched."""
    contents = Contents()
    records = LosesTheEnd(contents, **ROOMY)
    async with await opened(records) as store, await opened(MemoryRecords(contents, **ROOMY)) as other:
        await parent_of(store)
        children: list[str] = []

        async def meanwhile(child: str) -> None:
            children.append(child)
            for n in range(5, 5 + 9):
                await other.append_messages(child, [samples.message(n)])

        records.meanwhile, records.is_unread = meanwhile, how == "its head cannot be read"
        with pytest.raises(OutcomeUnknownError, match="may or may not have been made"):
            await store.batch_fork("a", 1)
        records.is_unread = False
        assert await other.load_messages(children[0]) == samples.messages(14)


@pytest.mark.parametrize("how", ["a write", "a delete"])
async def test_a_fork_that_was_given_up_leaves_nothing(how: str) -> None:
    """It is made again, unless somebody has written under its id by then: that stays."""
    contents = Contents()
    slow = Held(MemoryRecords(contents, **ROOMY), "apply")
    async with await opened(MemoryRecords(contents, **ROOMY)) as other, await opened(slow) as store:
        await parent_of(other)
        forking = asyncio.ensure_future(store.batch_fork("a", 1))
        await slow.reached.wait()
        (reserved,) = [head for agent_id, head in contents.heads.items() if agent_id != "a"]
        if how == "a write":
            await other.append_messages(reserved.agent_id, samples.messages(1))
        else:
            await other.delete(reserved.agent_id)
        slow.let_go.set()
        if how == "a write":
            with pytest.raises(StoreBusyError, match="writes under its id"):
                await forking
        else:
            assert await forking == [reserved.agent_id]
        assert not contents.items.get(reserved.place)
        assert len(await other.load_messages(reserved.agent_id)) == (1 if how == "a write" else 5)


async def test_readers_see_no_agent_where_a_fork_is_made_and_leave_it_alone() -> None:
    """However often they look, whatever they ask for, and although its items are there already."""
    contents = Contents()
    records = MemoryRecords(contents, **ROOMY)
    async with await opened(records) as other:
        await parent_of(other)
        slow = HoldsTheEnd(contents, **ROOMY)
        async with await opened(slow) as store:
            forking = asyncio.ensure_future(store.batch_fork("a", 1))
            await slow.reached.wait()
            (reserved,) = [head for agent_id, head in contents.heads.items() if agent_id != "a"]
            child = reserved.agent_id
            assert contents.items[reserved.place]
            for _ in range(3):
                assert await other.load_todos(child) is None
                assert await other.load_messages(child) == []
                assert await other.list_snapshots(child) == []
                assert await other.query_messages(agent_id=child) == []
                assert await other.aggregate_stats(child) == AgentStats()
                assert not await other.exists(child)
                assert [issue.code for issue in (await other.check_consistency(child)).issues] == ["unknown_agent"]
            assert contents.heads[child] == reserved
            slow.let_go.set()
            assert await forking == [child]
        assert contents.heads[child].place == reserved.place
        assert await other.load_todos(child) is not None
        assert await other.load_messages(child) == samples.messages(5)


class HoldsTheEnd(MemoryRecords):
    """Holds the swap that makes a child live until it is let go."""

    def __init__(self, contents: Contents, **options: int) -> None:
        super().__init__(contents, **options)
        self.reached, self.let_go = asyncio.Event(), asyncio.Event()

    async def swap(self, old: HeadRecord | None, new: HeadRecord, fence: Fence | None, items: Sequence[Item]) -> bool:
        if old is not None and OpenedHead(old).state.reserved and not OpenedHead(new).state.reserved:
            self.reached.set()
            await self.let_go.wait()
        return await super().swap(old, new, fence, items)
