"""Removing parts of an agent: killed processes, the size of files, marks, and other processes (LIFE-6)."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest
from kode_conformance.values import samples

from kode_core import AgentDeletedError, CorruptRecordError, ExtendedStore, Snapshot, create_extended_store
from kode_core.backends.memory.engine import MemoryEngine, MemorySpace
from kode_core.batch import Batch, Doc, DocKind, DocWrite, EventDrop, Refused
from kode_core.codec import Body
from kode_core.layers import Layer
from kode_core.store import EngineStore

_PRUNE = """
import asyncio, sys
from kode_core import create_extended_store

async def main():
    async with create_extended_store(sys.argv[1]) as store:
        print("begins", flush=True)
        await store.prune("a", events_before_offset=2**62)

asyncio.run(main())
"""


async def offsets(store: ExtendedStore) -> list[int]:
    return [event.offset async for event in store.read_events("a", after_offset=0)]


async def appended(store: ExtendedStore, number: int, highest: int = -1) -> list[int]:
    found: list[int] = []
    for start in range(0, number, 1000):
        many = range(start, min(start + 1000, number))
        entries = [samples.event(10**7 if i == highest else i, text="x" * 300) for i in many]
        found += await store.append_events("a", entries)
    return found


@pytest.mark.parametrize("url", ["json:///store", "sqlite:///agents.db"])
async def test_a_killed_prune_leaves_a_log_that_can_be_read(url: str, tmp_path: Path) -> None:
    """Whenever the process dies, a prefix of the log is gone but for the last bookmark, and another prune ends it."""
    url = url.replace("///", f"///{tmp_path}/")
    for delay in (0.0, 0.05, 0.1, 0.2, 0.4):
        async with create_extended_store(url) as store:
            await store.delete("a")
            given = await appended(store, 5000, highest=50)
        process = subprocess.Popen([sys.executable, "-c", _PRUNE, url], stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline() == b"begins\n"
        time.sleep(delay)
        process.kill()
        process.communicate()
        async with create_extended_store(url) as store:
            left = await offsets(store)
            if len(left) < len(given):
                assert left == [given[50], *given[len(given) - len(left) + 1 :]]
            assert (await store.last_bookmark("a")).seq == 10**7  # type: ignore[union-attr]
            assert (await store.check_consistency()).issues == ()
            assert (await store.prune("a", events_before_offset=2**62)).events == len(left) - 1


async def test_json_files_shrink(tmp_path: Path) -> None:
    """A file is rewritten when most of its events were removed, and is sound then, for other processes, too."""
    async with create_extended_store(f"json:///{tmp_path}") as store:
        given = await appended(store, 20_000)
        (file,) = tmp_path.glob("*.jsonl")
        before = file.stat().st_size
        async with create_extended_store(f"json:///{tmp_path}") as other:
            assert await offsets(other) == given
            await store.prune("a", events_before_offset=given[19_900])
            assert file.stat().st_size < before / 4
            assert await offsets(other) == given[19_900:]
            (new,) = await other.append_events("a", [samples.event(20_001)])
        assert new > given[-1]
        assert await offsets(store) == [*given[19_900:], new]


async def test_an_engine_refuses_a_drop_without_the_event_that_stays() -> None:
    """The precondition of a drop: the event to keep is stored, and of this agent."""
    engine = MemoryEngine()
    async with EngineStore(lambda: _ready(engine)) as store:
        given = await appended(store, 10)
        await store.append_events("b", samples.events(20))
        for keep in (given[-1] + 1, 0, -1):
            batch = Batch(agent_id="a", op_id=f"{keep}", now=1, drop_events=EventDrop(given[5], keep))
            assert await engine.commit([batch]) == [Refused("events")]
        assert await offsets(store) == given


async def _ready(engine: MemoryEngine) -> MemoryEngine:
    return engine


class _Deletes(Layer):
    """Deletes the agent, and lets it begin anew, between what a prune reads and what it drops."""

    is_armed = True

    async def commit(self, batches: object) -> object:  # type: ignore[override]
        (batch,) = batches  # type: ignore[misc]
        if batch.drop_events is not None and self.is_armed:
            self.is_armed = False
            space: MemorySpace = self.inner._space  # type: ignore[attr-defined]
            async with EngineStore(lambda: _ready(MemoryEngine(space))) as other:
                await other.delete("a")
                await other.append_events("a", samples.events(3, 50))
        return await super().commit(batches)  # type: ignore[arg-type]


async def test_an_agent_that_begins_anew_in_the_middle() -> None:
    """The next agent of the id is no part of the prune's, and followers of the first one end."""
    space = MemorySpace()
    layer = _Deletes(MemoryEngine(space))
    async with EngineStore(lambda: _ready(layer)) as store:  # type: ignore[arg-type]
        given = await appended(store, 10)
        follower = store.follow_events("a")
        await anext(follower)
        await store.prune("a", events_before_offset=given[5])
        assert len(await offsets(store)) == 3
        with pytest.raises(AgentDeletedError):
            for _ in range(12):
                await asyncio.wait_for(anext(follower), 20)
        await follower.aclose()


async def test_a_damaged_mark_is_named() -> None:
    """A follower cannot tell a prune from a delete by a damaged mark, and says so."""
    engine = MemoryEngine()
    async with EngineStore(lambda: _ready(engine)) as store:
        given = await appended(store, 300)
        follower = store.follow_events("a")
        await anext(follower)
        await store.prune("a", events_before_offset=given[250])
        doc = Doc("pruned", 0, Body("1 x", b"0" * 16))
        await engine.commit([Batch(agent_id="a", op_id="x", now=1, docs=(DocWrite(DocKind.LAYER, "pruned", doc),))])
        with pytest.raises(CorruptRecordError, match="the mark of the pruned events"):
            for _ in range(300):
                await asyncio.wait_for(anext(follower), 20)
        await follower.aclose()
        issues = (await store.check_consistency()).issues
        assert [(issue.code, issue.agent_id) for issue in issues] == [("corrupt_record", "a")]
        assert "the mark of the pruned events" in issues[0].message
        assert (await store.prune("a", events_before_offset=given[270])).events == 20  # and writes another mark
        assert (await store.check_consistency()).issues == ()


class _PrunesBetween(Layer):
    """Another store appends and prunes once, after the mark of the prune before was read."""

    is_armed = False

    async def docs(self, agent_id: str, kind: DocKind, key: str | None = None) -> Sequence[Doc]:
        found = await super().docs(agent_id, kind, key)
        if kind is DocKind.LAYER and self.is_armed:
            self.is_armed = False
            space: MemorySpace = self.inner._space  # type: ignore[attr-defined]
            async with EngineStore(lambda: _ready(MemoryEngine(space))) as other:
                await other.append_events(agent_id, samples.events(3, 500))
                await other.prune(agent_id, events_before_offset=2**62)
        return found


async def test_a_follower_outlives_a_prune_between_two_of_its_reads() -> None:
    """The mark that it read is replaced, and the event of the mark is gone, when it looks for that event."""
    layer = _PrunesBetween(MemoryEngine(MemorySpace()))
    async with EngineStore(lambda: _ready(layer)) as store:  # type: ignore[arg-type]
        await appended(store, 10)
        follower = store.follow_events("a")
        await anext(follower)
        await store.append_events("a", samples.events(1, 400))
        await store.prune("a", events_before_offset=2**62)
        layer.is_armed = True
        seqs = [(await asyncio.wait_for(anext(follower), 20)).bookmark.seq for _ in range(10)]
        while seqs[-1] != 502:
            seqs.append((await asyncio.wait_for(anext(follower), 20)).bookmark.seq)
        assert not layer.is_armed
        await follower.aclose()


class _SavesBetween(Layer):
    """A snapshot is saved again under its id after a prune listed the snapshots."""

    is_armed = True

    async def docs(self, agent_id: str, kind: DocKind, key: str | None = None) -> Sequence[Doc]:
        found = await super().docs(agent_id, kind, key)
        if kind is DocKind.SNAPSHOTS and key is None and self.is_armed:
            self.is_armed = False
            space: MemorySpace = self.inner._space  # type: ignore[attr-defined]
            async with EngineStore(lambda: _ready(MemoryEngine(space))) as other:
                await other.save_snapshot(agent_id, Snapshot(id="s0", created_at=10**15))
        return found


async def test_a_snapshot_that_is_saved_again_meanwhile_stays() -> None:
    """It is the newest one by now, although the prune found it as the oldest."""
    async with EngineStore(lambda: _ready(_SavesBetween(MemoryEngine()))) as store:  # type: ignore[arg-type]
        for i in range(5):
            await store.save_snapshot("a", Snapshot(id=f"s{i}", created_at=i + 1))
        assert (await store.prune("a", keep_snapshots=2)).snapshots == 2
        assert [found.id for found in await store.list_snapshots("a")] == ["s0", "s4", "s3"]


async def test_sound_events_before_a_damaged_one_are_pruned_by_age() -> None:
    """The call raises behind them, and says how many records it removed."""
    async with create_extended_store("sqlite:///agents.db", durability="fast") as store:
        given = await appended(store, 30)
    with closing(sqlite3.connect("agents.db")) as db:
        db.execute("UPDATE kode_events SET body = '7' WHERE \"offset\" = ?", (given[10],))
        db.commit()
    async with create_extended_store("sqlite:///agents.db") as store:
        with pytest.raises(CorruptRecordError) as caught:
            await store.prune("a", events_before=2**62)
        assert caught.value.__notes__ == ["10 records were removed before"]
        assert (await store.prune("a", events_before_offset=given[20])).events == 10
