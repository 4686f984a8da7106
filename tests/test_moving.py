"""Stores copied into other stores: whole, exactly, again and again, and while they are used."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pytest
from kode_conformance.values import samples

from kode_core import (
    AgentDeletedError,
    AgentRecords,
    CorruptRecordError,
    ExtendedStore,
    InvalidArgumentError,
    Message,
    MovedAgent,
    PassReport,
    PutDocument,
    StoreUnavailableError,
    copy_store,
    create_extended_store,
    verify_copy,
)
from kode_core.batch import Batch
from kode_core.layers import Layer
from kode_core.layers.encryption import encrypted
from kode_core.moving.selecting import in_order
from kode_core.rekeying import rekey
from tests.moving_agents import HOSTILE_IDS, T0, agents, digests, fill, full, hostile, text_of

URLS: Final = ("memory:", "json:///folder", "sqlite:///agents.db", "sqlite:///hybrid.db?file_store_base_dir=hybrid")


def stores(*urls: str) -> list[Any]:
    return [create_extended_store(url) for url in urls]


@pytest.mark.parametrize("pair", list(pairwise((*URLS, URLS[0]))), ids=lambda pair: f"{pair[0][:9]} to {pair[1][:9]}")
async def test_every_kind_is_copied_exactly(pair: tuple[str, str]) -> None:
    async with create_extended_store(pair[0]) as source, create_extended_store(pair[1]) as target:
        given = [full("whole"), hostile("hostile"), *(full(one) for one in HOSTILE_IDS)]
        given += [AgentRecords(agent_id="events alone", events=samples.events(3))]
        given += [AgentRecords(agent_id="empty texts", messages=[Message("user", "")], message_times=[1], updated_at=1)]
        await fill(source, *given)
        before = await digests(source)
        assert len(before) == len(given)
        report = await copy_store(source, target, verify=True)
        assert report.outcomes == {"copied": len(given)}, report.troubles
        assert report.is_whole and report.is_equal and report.verified == len(given) and report.differences == ()
        assert await digests(target) == before == await digests(source)
        for one in given:
            there = await target.load_agent(one.agent_id)
            assert there is not None
            assert await text_of(there) == await text_of(await _counted(source, one.agent_id))
        again = await copy_store(source, target)
        assert again.outcomes == {"known": len(given)} and again.counts == {} and again.size == 0


async def _counted(store: ExtendedStore, agent_id: str) -> AgentRecords:
    found = await store.load_agent(agent_id)
    assert found is not None
    return found


async def test_times_seqs_tags_and_lineage_are_kept() -> None:
    async with create_extended_store("memory:") as source, create_extended_store("json:///new") as target:
        await fill(source, full("a"))
        await copy_store(source, target)
        session, (found,) = await target.load_session("a"), await target.query_documents("notes", {"run": "r1"})
        assert session is not None and session.updated_at == T0 + 99 and session.lineage == ("p", "q")
        assert found.updated_at == T0 + 1 and found.tags == {"run": "r1", "a": "é"}
        assert [one.created_at async for one in target.read_messages("a")][:2] == [T0, T0 + 1]
        assert [one.bookmark.seq async for one in target.read_events("a", after_offset=0)] == [5, 3, 5]


async def test_other_records_are_refused_skipped_or_replaced() -> None:
    async with create_extended_store("memory:") as source, create_extended_store("sqlite:///new.db") as target:
        await fill(source, full("a"), full("b"))
        await fill(target, full("b", todos=None))
        told: list[MovedAgent] = []
        report = await copy_store(source, target, on_agent=told.append)
        assert [one.outcome for one in told] == ["copied", "refused"]
        assert "other records" in report.troubles[0].reason and not report.is_whole
        report = await copy_store(source, target, existing="skip")
        assert report.outcomes == {"known": 1, "skipped": 1} and report.is_whole
        assert (await verify_copy(source, target)).differences == ("agent 'b': todos 0 is in the source alone",)
        report = await copy_store(source, target, existing="replace", verify=True)
        assert report.outcomes == {"known": 1, "replaced": 1} and report.is_whole
        assert await digests(source) == await digests(target)


class Watched(Layer):
    """Counts the commits, and sees after each whether there are events of the agent ``b``."""

    commits = absent = 0

    async def commit(self, batches: Sequence[Batch]) -> Any:
        found = await self.inner.commit(batches)
        Watched.commits += 1
        Watched.absent += await self.inner.last_event("b") is None
        return found


@pytest.mark.parametrize("url", URLS)
async def test_an_agent_is_replaced_in_one_write(url: str) -> None:
    """Everything of it is replaced, its followers end, and the new one goes on as any other."""
    async with create_extended_store("memory:") as source, create_extended_store(url, layers=[Watched]) as target:
        await fill(source, full("b", todos=None, tool_calls=[], documents=[], events=[samples.event(1)]))
        await fill(target, full("b"))
        following = target.follow_events("b", after_offset=0)
        assert [(await anext(following)).bookmark.seq for _ in range(3)] == [5, 3, 5]
        waiting = asyncio.ensure_future(anext(following))
        Watched.commits = Watched.absent = 0
        report = await copy_store(source, target, existing="replace", verify=True)
        assert report.outcomes == {"replaced": 1} and report.differences == ()
        assert (Watched.commits, Watched.absent) == (1, 0)
        with pytest.raises(AgentDeletedError):
            await waiting
        assert (await target.emit("b", "text_chunk", {"delta": "x"})).bookmark.seq == 2
        assert [one.bookmark.seq async for one in target.read_events("b", after_offset=0)] == [1, 2]
        await target.append_messages("b", [Message.user("last")])
        assert (await target.load_messages("b"))[-1].text == "last"


async def test_an_agent_of_events_alone_is_replaced_in_one_write() -> None:
    """It has no head that the write could demand."""
    for url in URLS:
        async with create_extended_store("memory:") as source, create_extended_store(url, layers=[Watched]) as target:
            await fill(source, full("b"))
            await target.append_events("b", [samples.event(7)])
            await target.put_document("b", "notes", "old", 1)
            Watched.commits = Watched.absent = 0
            report = await copy_store(source, target, existing="replace", verify=True)
            assert report.outcomes == {"replaced": 1} and report.differences == (), url
            assert (Watched.commits, Watched.absent) == (1, 0), url


async def test_a_replaced_agent_of_plain_text_is_encrypted() -> None:
    """Also its events that were stored before, as plain text: the write removes those."""
    async with create_extended_store("memory:") as source, create_extended_store("json:///mixed") as plain:
        await fill(source, full("b"))
        await fill(plain, full("b", todos=None))
        await plain.close()
        mixed = encrypted({"k": b"\1" * 32}, plaintext="read")
        async with create_extended_store("json:///mixed", layers=[mixed]) as target:
            report = await copy_store(source, target, existing="replace", verify=True)
            assert report.outcomes == {"replaced": 1} and report.differences == ()
            assert (await rekey(target, dry_run=True)).left == {}


async def test_an_agent_that_is_emptied_gives_way() -> None:
    """All messages of the target's agent were removed: it has a version, but nothing is stored."""
    async with create_extended_store("memory:") as source, create_extended_store("memory:") as target:
        await fill(source, full("a"))
        await target.save_messages("a", [Message.user("x")])
        await target.save_messages("a", [])
        assert (await copy_store(source, target)).outcomes == {"copied": 1}
        assert await digests(source) == await digests(target)


async def test_filters_choose_agents() -> None:
    async with create_extended_store("memory:") as source:
        for i in range(10):
            info = samples.info(
                f"agt-{i}", template_id=f"t{i % 2}", created_at=T0 + i, metadata={"userId": f"u{i % 5}"}
            )
            await fill(source, AgentRecords(agent_id=f"agt-{i}", info=info, updated_at=T0 + i))
        await fill(source, AgentRecords(agent_id="bare", events=samples.events(1)))
        for filters, expected in (
            ({}, 11),
            ({"prefix": "agt-"}, 10),
            ({"agent_id": ["agt-1", "agt-2", "nobody"]}, 2),
            ({"agent_id": "bare"}, 1),
            ({"template_id": "t1"}, 5),
            ({"template_id": "t1", "prefix": "agt-3"}, 1),
            ({"user_id": {"u1", "u2"}, "template_id": "t0"}, 2),
            ({"metadata": {"userId": "u1"}}, 2),
            ({"updated_after": T0 + 8}, 2),
            ({"created_before": T0 + 3}, 3),
        ):
            async with create_extended_store("memory:") as target:
                given: dict[str, Any] = filters
                report = await copy_store(source, target, verify=True, **given)
                assert report.outcomes.get("copied", 0) == expected, filters
                assert len(await target.list(include_without_info=True)) == report.verified == expected


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"existing": "overwrite"}, "existing must be one of refuse, skip, replace"),
        ({"existing": None}, "existing must be one of"),
        ({"prefix": 3}, "prefix must be a str"),
        ({"agent_id": ""}, "agent_id"),
        ({"created_aftr": 3}, "created_aftr"),
        ({"limit": 3}, "limit"),
        ({"at_once": 0}, "at_once must be"),
        ({"at_once": True}, "at_once must be"),
        ({"interval_s": float("nan")}, "interval_s"),
        ({"until": "now"}, "until must be an asyncio.Event"),
        ({"delete": True, "template_id": "t"}, "delete goes with"),
    ],
)
async def test_wrong_arguments_are_refused(given: dict[str, Any], says: str) -> None:
    async with create_extended_store("memory:") as source, create_extended_store("memory:") as target:
        await fill(source, full("a"))
        with pytest.raises(InvalidArgumentError, match=says):
            await copy_store(source, target, **given)
        with pytest.raises(InvalidArgumentError, match="the same store"):
            await copy_store(source, source)
        assert await target.list() == []


async def test_a_damaged_agent_is_reported_and_others_go_on(tmp_path: Path) -> None:
    async with create_extended_store("sqlite:///agents.db") as source:
        await fill(source, *agents(6))
    with closing(sqlite3.connect(tmp_path / "agents.db")) as con, con:
        names = [row[0] for row in con.execute("SELECT name FROM sqlite_master WHERE name LIKE 'kode%messages%'")]
        changed = sum(
            con.execute(f"UPDATE {name} SET body = 'x' || body WHERE agent_id = 'agt-0003'").rowcount
            for name in names
            if "body" in [column[1] for column in con.execute(f"PRAGMA table_info({name})")]
        )
        assert changed
    async with create_extended_store("sqlite:///agents.db") as source, create_extended_store("memory:") as target:
        report = await copy_store(source, target, verify=True)
        assert report.outcomes == {"copied": 5, "damaged": 1} and not report.is_whole and report.verified == 5
        (one,) = report.troubles
        assert one.agent_id == "agt-0003" and "does not match its checksum" in one.reason
        assert len(await target.list()) == 5 and len(report.differences) == 1
        with pytest.raises(CorruptRecordError):
            await source.load_agent("agt-0003")


async def test_a_damaged_agent_of_the_target_is_replaced_when_asked(tmp_path: Path) -> None:
    async with create_extended_store("memory:") as source:
        await fill(source, full("a"))
        async with create_extended_store("sqlite:///new.db") as target:
            await copy_store(source, target)
        with closing(sqlite3.connect(tmp_path / "new.db")) as con, con:
            assert con.execute("UPDATE kode_messages SET body = 'x' || body").rowcount
        async with create_extended_store("sqlite:///new.db") as target:
            report = await copy_store(source, target)
            assert report.outcomes == {"refused": 1} and "cannot be read" in report.troubles[0].reason
            assert (await copy_store(source, target, existing="replace")).outcomes == {"replaced": 1}
            assert await digests(target) == await digests(source)


class Failing(Layer):
    """Lets so many commits through, and then none."""

    left = 3

    async def commit(self, batches: Sequence[Batch]) -> Any:
        if self.left <= 0:
            raise StoreUnavailableError("the server is gone")
        self.left -= 1
        return await self.inner.commit(batches)


async def test_a_target_that_fails_ends_the_copy_which_is_started_again() -> None:
    async with create_extended_store("memory:") as source:
        await fill(source, *agents(9))
        told: list[MovedAgent] = []
        async with create_extended_store("sqlite:///new.db", layers=[Failing]) as target:
            with pytest.raises(StoreUnavailableError, match="the server is gone"):
                await copy_store(source, target, on_agent=told.append)
        async with create_extended_store("sqlite:///new.db") as target:
            there = len(await target.list())
            assert 3 <= there < 9 and len(told) <= there
            report = await copy_store(source, target, verify=True)
            assert report.outcomes == {"known": there, "copied": 9 - there} and report.is_equal


async def test_a_copy_that_is_cancelled_leaves_whole_agents() -> None:
    async with create_extended_store("memory:") as source, create_extended_store("json:///new") as target:
        await fill(source, *agents(40))
        begun = asyncio.Event()
        task = asyncio.create_task(
            copy_store(source, target, progress=lambda done, _: begun.set() if done == 5 else None)
        )
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        whole = await digests(source)
        assert (await digests(target)).items() <= whole.items()
        assert (await copy_store(source, target, verify=True)).is_equal


async def test_work_in_order_fails_and_ends_cleanly() -> None:
    ended = list[int]()

    async def work(n: int) -> int:
        try:
            await asyncio.sleep(0 if n < 3 else 60)
        finally:
            ended.append(n)
        if n == 2:
            raise ValueError(n)
        return n

    found = list[int]()
    with pytest.raises(ValueError, match="2"):
        async for n in in_order(range(100), work, 4):
            found.append(n)
    assert found == [0, 1] and sorted(ended) == sorted({0, 1, 2, *ended}) and max(ended) <= 6
    assert len(asyncio.all_tasks()) == 1


# --- a live copy ------------------------------------------------------------------------------------------------------

Change = Callable[[ExtendedStore], Awaitable[Any]]
CHANGES: Final[dict[str, Change]] = {
    "message": lambda s: s.append_messages("a", [Message.user("more")]),
    "edit": lambda s: s.replace_message("a", 0, Message.user("other")),
    "pop": lambda s: s.pop_messages("a", 1),
    "tool call": lambda s: s.upsert_tool_call_records("a", [samples.tool_call(1, name="other")]),
    "info": lambda s: s.update_info("a", {"x": 1}),
    "todos": lambda s: s.save_todos("a", samples.todos("other")),
    "window": lambda s: s.save_history_window("a", samples.window("w1", T0 + 7)),
    "compression": lambda s: s.save_compression_record("a", samples.compression("c3")),
    "recovered file": lambda s: s.save_recovered_file("a", samples.recovered("a.md", content="other")),
    "media": lambda s: s.save_media_cache("a", [samples.media("m1")]),
    "snapshot": lambda s: s.save_snapshot("a", samples.snapshot("s1", count=1)),
    "deleted snapshot": lambda s: s.delete_snapshot("a", "s1"),
    "event": lambda s: s.append_event("a", samples.event(77)),
    "pruned events": lambda s: s.prune("a", events_before_offset=2),
    "put": lambda s: s.put_document("a", "notes", "a", ["a", None]),
    "new collection": lambda s: s.put_document("a", "new", "k", 1),
    "moved document": lambda s: s.write_documents("a", [_gone(), PutDocument("other", "a", 1)]),
    "deleted document": lambda s: s.delete_document("a", "b", "k"),
    "delete": lambda s: s.delete("a"),
}


def _gone() -> Any:
    from kode_core import DeleteDocument

    return DeleteDocument("b", "k")


@pytest.mark.parametrize("url", URLS[:3])
async def test_each_change_is_caught_up_with(url: str) -> None:
    """Of an agent that was copied, a live copy sees every change of every kind, and nothing else."""
    async with create_extended_store(url) as source, create_extended_store("memory:") as target:
        await fill(source, full("other"))
        until, passes = asyncio.Event(), asyncio.Queue[PassReport]()
        copy = asyncio.create_task(
            copy_store(source, target, until=until, interval_s=0, on_pass=passes.put_nowait, verify=True)
        )

        async def equal() -> int:
            """Wait for a pass that began from now on and found nothing; the number of changed agents until then."""
            while not passes.empty():
                passes.get_nowait()
            changed = (await passes.get()).changed
            while not (one := await passes.get()).is_equal:
                changed += one.changed
            return changed

        for name, change in CHANGES.items():
            await fill(source, full("a"))
            await equal()
            await change(source)
            await equal()
            assert await digests(source) == await digests(target), name
            await source.delete("a")
            await equal()
            assert list(await digests(target)) == ["other"], name
        until.set()
        report = await copy
        assert report.is_equal and report.is_whole and report.verified == 1


async def test_nothing_is_copied_again_that_has_not_changed() -> None:
    async with create_extended_store("memory:") as source, create_extended_store("memory:") as target:
        await fill(source, *agents(5))
        until, told, passes = asyncio.Event(), list[MovedAgent](), list[PassReport]()

        def look(one: PassReport) -> None:
            passes.append(one)
            if one.number == 4:
                until.set()

        report = await copy_store(
            source, target, until=until, interval_s=0, on_agent=told.append, on_pass=look, existing="skip"
        )
        assert [one.changed for one in passes] == [5, 0, 0, 0, 0] and len(told) == 5
        assert report.is_equal and report.passes == 5


async def test_agents_of_the_target_alone_are_deleted_when_asked() -> None:
    async with create_extended_store("memory:") as source, create_extended_store("memory:") as target:
        await fill(source, full("a"), full("b"))
        await fill(target, full("b"), full("c"), full("x"))
        report = await copy_store(source, target, delete=True, agent_id=["a", "b", "c"])
        assert report.outcomes == {"copied": 1, "known": 1, "gone": 1, "deleted": 1}
        assert await target.list() == ["a", "b", "x"]
        assert (await copy_store(source, target, delete=True)).outcomes == {"known": 2, "deleted": 1}


async def test_a_live_copy_says_that_it_is_not_equal() -> None:
    """A trouble is told once, and ends with its cause."""
    async with create_extended_store("memory:") as source, create_extended_store("memory:") as target:
        await fill(source, full("a"), full("b"))
        await fill(target, full("b", todos=None))
        until, told, passes = asyncio.Event(), list[MovedAgent](), asyncio.Queue[PassReport]()
        copy = asyncio.create_task(
            copy_store(source, target, until=until, interval_s=0, on_agent=told.append, on_pass=passes.put_nowait)
        )
        for _ in range(4):
            assert not (await passes.get()).is_equal
        assert [one.outcome for one in told] == ["copied", "refused"]
        await target.delete("b")
        while not (await passes.get()).is_equal:
            pass
        until.set()
        report = await copy
        assert report.is_equal and report.is_whole and report.outcomes == {"copied": 2}


async def test_skipped_agents_are_left_alone_by_a_live_copy() -> None:
    async with create_extended_store("memory:") as source, create_extended_store("memory:") as target:
        await fill(source, full("a"), full("b"))
        await fill(target, full("b", todos=None))
        until, passes = asyncio.Event(), list[PassReport]()

        def look(one: PassReport) -> None:
            passes.append(one)
            if len(passes) == 3:
                until.set()

        report = await copy_store(source, target, existing="skip", until=until, interval_s=0, on_pass=look, verify=True)
        assert [one.changed for one in passes] == [2, 0, 0, 0]
        assert report.outcomes == {"copied": 1, "skipped": 1} and report.verified == 1 and not report.is_equal


async def test_an_agent_comes_back_whose_replacement_is_refused() -> None:
    """The target refuses a value that the source has; its own agent of that id is there afterwards."""

    class Refusing(Layer):
        async def commit(self, batches: Sequence[Batch]) -> Any:
            if any(len(one.events) == 4 for one in batches):
                raise InvalidArgumentError("four events are too many")
            return await self.inner.commit(batches)

    async with (
        create_extended_store("memory:") as source,
        create_extended_store("sqlite:///new.db", layers=[Refusing]) as target,
    ):
        await fill(source, full("a", events=samples.events(4)))
        await fill(target, full("a", todos=None))
        before = await digests(target)
        report = await copy_store(source, target, existing="replace")
        assert report.outcomes == {"refused": 1} and "four events" in report.troubles[0].reason
        assert await digests(target) == before
