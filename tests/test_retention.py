"""Policies of retention: their mistakes, the agents they count for, races with workers, and ends of runs."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from kode_core import (
    AgentEvent,
    AgentInfo,
    Bookmark,
    ConfigurationError,
    ExtendedStore,
    InvalidArgumentError,
    Message,
    Retained,
    RetentionPolicy,
    Snapshot,
    StoreReadOnlyError,
    StoreUnavailableError,
    Timeline,
    apply_retention,
    create_extended_store,
    retention_policies,
)
from kode_core.batch import Batch, Outcome
from kode_core.layers import Layer
from kode_core.model import now_ms
from tests.adapter_tests import server, url

__all__ = ["server", "url"]

DAY = 86_400_000
KODE = (sys.executable, "-m", "kode_core.cli")


class Text(str):
    pass


async def filled(store: ExtendedStore, agents: Sequence[str], **more: Any) -> None:
    for agent_id in agents:
        await store.save_turn(
            agent_id,
            append=[Message.user("hi")],
            info=AgentInfo(agent_id=agent_id, **{"template_id": "t", **more}),
        )


def events(number: int, at: int) -> list[Timeline]:
    return [Timeline(i, Bookmark(i, at + i), AgentEvent("monitor", "x")) for i in range(number)]


# --- Policies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "a policy says nothing"),
        ({"keep_all": True, "delete_after": "90d"}, "keep_all and delete_after, which contradict"),
        ({"delete_after": "90"}, "delete_after must be a span such as 90d"),
        ({"delete_after": "0d"}, "longer than nothing"),
        ({"delete_after": timedelta(days=-1)}, "longer than nothing"),
        ({"delete_after": Text("90d")}, "must be a span"),
        ({"keep_events": 90}, "keep_events must be a span"),
        ({"keep_snapshots": -1}, "keep_snapshots must be a number"),
        ({"keep_snapshots": True}, "keep_snapshots must be a number"),
        ({"delete_after": "1d", "prefix": ""}, "prefix of a policy must be a text"),
        ({"delete_after": "1d", "template_id": []}, "template_id of a policy is an empty list"),
        ({"delete_after": "1d", "user_id": 5}, "user_id must be a"),
        ({"delete_after": "1d", "metadata": [1]}, "metadata of a policy must be a mapping"),
        ({"delete_after": "1d", "metadata": {"a": float("nan")}}, "metadata"),
        ({"keep_all": 1}, "keep_all must be true or false"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(given: dict[str, Any], said: str) -> None:
    """With a sentence that names the field."""
    with pytest.raises(InvalidArgumentError, match=said):
        RetentionPolicy(**given)


@pytest.mark.parametrize(
    ("policies", "said"),
    [
        ([], "there is no policy"),
        (["90d"], "must be a list of RetentionPolicy"),
        ("90d", "policies must be a list"),
        ([RetentionPolicy(name="a", keep_all=True), RetentionPolicy(name="b", delete_after="1d")], "'b' never counts"),
        (
            [
                RetentionPolicy(template_id=["t", "u"], delete_after="1d"),
                RetentionPolicy(template_id="u", prefix="a-", delete_after="2d"),
            ],
            "'policy 2' never counts: 'policy 1'",
        ),
        (
            [
                RetentionPolicy(name="a", prefix="a", delete_after="1d"),
                RetentionPolicy(name="a", prefix="b", delete_after="2d"),
            ],
            "two policies have the name 'a'",
        ),
    ],
)
async def test_policies_that_contradict_each_other(policies: Any, said: str) -> None:
    """Before the store is looked at."""
    with pytest.raises(InvalidArgumentError, match=said):
        await apply_retention(None, policies)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ("delte_after = '90d'", "policy 1 of retention has no key 'delte_after'; did you mean 'delete_after'?"),
        ("delete_after = 90", "delete_after must be a span such as 90d"),
        ("keep_snapshots = 'ten'\nkeep_events = '1d'", "keep_snapshots: Expected int"),
        ("keep_all = true\nkeep_events = '1d'", "contradict each other"),
        ("name = 'x'", "a policy says nothing"),
        ("metadata = {at = 2025-01-01}\nkeep_all = true", "metadata"),
        ("keep_all = true\n[[stores.default.retention]]\ndelete_after = '1d'", "'policy 2' never counts"),
    ],
)
async def test_a_mistake_in_the_file(toml: str, said: str) -> None:
    """The store is not opened, and the error names the file, the store and the policy."""
    Path("kode.toml").write_text(f"[stores.default]\nurl = 'memory:'\n[[stores.default.retention]]\n{toml}\n")
    with pytest.raises(ConfigurationError, match="store 'default' of .*kode.toml") as caught:
        retention_policies()
    assert said in str(caught.value)
    with pytest.raises(ConfigurationError):
        await create_extended_store("default")


def test_policies_of_the_file() -> None:
    """Each store has its own; a store that no file names has none."""
    Path("kode.toml").write_text(
        "[stores.default]\nurl = 'memory:'\n[stores.other]\nurl = 'memory:'\n"
        "[[stores.default.retention]]\nname = 'held'\nmetadata = {hold = true}\nkeep_all = true\n"
        "[[stores.default.retention]]\ndelete_after = '90d'\nkeep_events = '30d'\nkeep_snapshots = 10\n"
    )
    held, rest = retention_policies()
    assert held == RetentionPolicy(name="held", metadata={"hold": True}, keep_all=True)
    assert rest == RetentionPolicy(delete_after="90d", keep_events="30d", keep_snapshots=10)
    assert retention_policies("other") == retention_policies("memory:") == ()
    Path("kode.toml").write_text("[stores.default]\nurl = 'memory:'\nretention = 5\n")
    with pytest.raises(ConfigurationError, match=r"\[\[stores.NAME.retention\]\]"):
        retention_policies()


# --- Runs -------------------------------------------------------------------------------------------------------------


async def test_the_first_policy_that_matches_counts(url: Any) -> None:
    """By template, user, prefix and metadata; a dry run says what the run then does, and the rest stays."""
    async with create_extended_store(url) as store:
        await filled(store, ["a-held"], metadata={"hold": True, "userId": "u1"})
        await filled(store, ["a-1", "a-2"], metadata={"hold": False, "userId": "u1"})
        await filled(store, ["b-1"], template_id="chat", metadata={"userId": "u2", "plan": {"x": 1.0}})
        await filled(store, ["b-2"], template_id="chat", metadata={"userId": "u2", "plan": {"x": 2}})
        await filled(store, ["c-1", "c-2", "c-3"])
        start = now_ms()
        await store.append_events("c-1", events(30, start))
        await store.append_events("c-2", events(30, start + 100 * DAY))  # it is not idle
        for agent_id in ("a-held", "c-2"):
            for i in range(5):
                await store.save_snapshot(agent_id, Snapshot(id=f"s{i}", created_at=i))
        policies = [
            RetentionPolicy(name="held", metadata={"hold": True}, keep_all=True),
            RetentionPolicy(name="first", prefix="a-", user_id=["u1", "u3"], delete_after="1d"),
            RetentionPolicy(name="plan", template_id=["chat"], metadata={"plan": {"x": 1}}, delete_after="90d"),
            RetentionPolicy(name="rest", prefix="c", delete_after="90d", keep_events="20d", keep_snapshots=2),
        ]
        there = await store.list()
        now = start + 101 * DAY
        outcomes: list[Retained] = []
        dry = await apply_retention(store, policies, now=now, dry_run=True, on_agent=outcomes.append)
        assert await store.list() == there
        assert [(one.name, one.agents, one.deleted, one.pruned) for one in dry.policies] == [
            ("held", 1, 0, 0),
            ("first", 2, 2, 0),
            ("plan", 1, 1, 0),
            ("rest", 3, 2, 1),
        ]
        assert (dry.policies[3].removed.snapshots, dry.policies[3].removed.events) == (3, 0)
        assert (dry.unmatched, dry.damaged, dry.dry_run) == (1, 0, True)
        again: list[Retained] = []
        done = await apply_retention(store, policies, now=now, on_agent=again.append)
        assert done.policies == dry.policies and done.unmatched == 1
        assert again == outcomes
        assert await store.list() == ["a-held", "b-2", "c-2"]
        assert len(await store.list_snapshots("a-held")) == 5 and len(await store.list_snapshots("c-2")) == 2
        end = await apply_retention(store, policies, now=now)
        assert sum(one.deleted + one.pruned for one in end.policies) == 0


async def test_events_that_are_old_go(url: Any) -> None:
    """The last event stays, and the agent changes in no other way."""
    async with create_extended_store(url) as store:
        await filled(store, ["a"])
        await store.append_events("a", events(30, now_ms()))
        before = await store.load_session("a")
        report = await apply_retention(store, [RetentionPolicy(keep_events=timedelta(days=1))], now=now_ms() + 3 * DAY)
        assert report.policies[0].removed.events == 29
        assert [event.bookmark.seq async for event in store.read_events("a", after_offset=0)] == [29]
        assert await store.load_session("a") == before


class Wakes(Layer):
    """Wakes the agent once, right before the write that deletes it."""

    wake: Callable[[], Any] | None = None

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        if any(batch.delete and batch.agent_id == "a" for batch in batches) and Wakes.wake is not None:
            wake, Wakes.wake = Wakes.wake, None
            await wake()
        return await super().commit(batches)


class Looked:
    """The store, with a call between what a run has found and its delete."""

    def __init__(self, store: ExtendedStore, call: Callable[[], Any]) -> None:
        self._store = store
        self._call = call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def delete_many(self, **filters: Any) -> int:
        await self._call()
        return await self._store.delete_many(**filters)


async def test_an_agent_that_came_back_to_life_is_not_deleted(url: Any) -> None:
    """Whether it is written to after it was found, or right before the delete; its clock may stand at any time."""
    async with (
        create_extended_store(url, layers=[Wakes]) as store,
        create_extended_store(url) as other,
    ):
        worker = store if url == "memory:" else other
        policy = RetentionPolicy(delete_after="90d")
        await filled(store, ["a", "b"])
        # The writer's clock is 101 days behind: what it writes is as old as what was there.
        now = now_ms() + 101 * DAY

        async def write() -> None:
            await worker.append_messages("a", [Message.user("back again")])

        outcomes: list[Retained] = []
        Wakes.wake = write
        report = await apply_retention(store, [policy], now=now, on_agent=outcomes.append)
        assert {one.agent_id: one.outcome for one in outcomes} == {"a": "changed", "b": "deleted"}
        assert (report.policies[0].deleted, report.policies[0].changed) == (1, 1)
        assert [message.text for message in await store.load_messages("a")] == ["hi", "back again"]

        async def rename() -> None:
            await worker.update_info("a", {"hold": True})

        report = await apply_retention(Looked(store, rename), [policy], now=now)  # type: ignore[arg-type]
        assert (report.policies[0].deleted, report.policies[0].changed) == (0, 1)

        async def append() -> None:
            await worker.append_events("a", events(1, now))

        # An agent that appends events alone is at work, too.
        await append()
        report = await apply_retention(store, [policy], now=now)
        assert (report.policies[0].deleted, report.policies[0].changed) == (0, 0)
        assert await store.exists("a")


async def test_an_agent_that_is_begun_anew_stays(url: Any) -> None:
    """An agent that others delete and create again after it was found is another one."""
    async with create_extended_store(url) as store:
        await filled(store, ["a"])

        async def begin_anew() -> None:
            await store.delete("a")
            await filled(store, ["a"])

        report = await apply_retention(
            Looked(store, begin_anew),  # type: ignore[arg-type]
            [RetentionPolicy(delete_after="1d")],
            now=now_ms() + 5 * DAY,
        )
        assert report.policies[0].changed == 1 and await store.exists("a")


async def test_an_agent_that_a_worker_holds_is_left(url: Any) -> None:
    """And counted, in the dry run, too; when the lock is free, it goes."""
    async with create_extended_store(url) as store:
        await filled(store, ["a", "b", "c"])
        for i in range(3):
            await store.save_snapshot("b", Snapshot(id=f"s{i}", created_at=i))
        policies = [RetentionPolicy(prefix="b", keep_snapshots=1), RetentionPolicy(delete_after="1d")]
        now = now_ms() + 2 * DAY
        leases = [await store.acquire_agent_lock(agent_id, ttl_ms=600_000) for agent_id in "ab"]
        for dry_run in (True, False):
            report = await apply_retention(store, policies, now=now, dry_run=dry_run)
            found = [(one.agents, one.deleted, one.pruned, one.locked) for one in report.policies]
            assert found == [(1, 0, 0, 1), (2, 1, 0, 1)]
        for lease in leases:
            await lease.release()
        report = await apply_retention(store, policies, now=now)
        assert [(one.deleted, one.pruned, one.locked) for one in report.policies] == [(0, 1, 0), (1, 0, 0)]
        assert await store.list() == ["b"]


async def test_two_runs_at_once(url: Any) -> None:
    """Every agent is deleted by one of them, and counted once; none of the others is touched."""
    async with create_extended_store(url) as one, create_extended_store(url) as other:
        stores = [one, one] if url == "memory:" else [one, other]
        await filled(one, [f"a-{i:02}" for i in range(30)])
        await filled(one, ["b"])
        policies = [RetentionPolicy(prefix="a-", delete_after="1d")]
        runs = [apply_retention(store, policies, now=now_ms() + 5 * DAY) for store in stores]
        reports = await asyncio.gather(*runs)
        left = await one.list()
        assert sum(report.policies[0].deleted for report in reports) == 31 - len(left)
        await apply_retention(one, policies, now=now_ms() + 5 * DAY)
        assert await one.list() == ["b"]


class Fails(Layer):
    """The database is gone after some commits."""

    commits = 0

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        if any(batch.delete for batch in batches):
            Fails.commits += 1
            if Fails.commits > 7:
                raise StoreUnavailableError("the server is gone")
        return await super().commit(batches)


async def test_an_error_says_how_much_was_removed() -> None:
    """A store that fails ends the run, and the next run takes the rest."""
    url = "memory://fails"
    async with create_extended_store(url, layers=[Fails]) as store, create_extended_store(url) as other:
        await filled(other, [f"a-{i}" for i in range(20)])
        policies, now = [RetentionPolicy(delete_after="1d")], now_ms() + 5 * DAY
        with pytest.raises(StoreUnavailableError) as caught:
            await apply_retention(store, policies, now=now)
        left = await other.list()
        assert 10 <= len(left) <= 13
        assert caught.value.__notes__ == [f"{20 - len(left)} agents, and 0 records of others, were removed before"]
        report = await apply_retention(other, policies, now=now)
        assert report.policies[0].deleted + report.policies[0].locked == len(left)


class ReadOnly(Layer):
    """A store that cannot be written to."""

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        raise StoreReadOnlyError("it can only be read")


async def test_a_dry_run_of_a_store_that_can_only_be_read() -> None:
    """It counts; a run ends with an error."""
    url = "memory://read-only"
    async with create_extended_store(url, layers=[ReadOnly]) as store, create_extended_store(url) as other:
        await filled(other, ["a", "b"])
        policies, now = [RetentionPolicy(delete_after="1d")], now_ms() + 5 * DAY
        assert (await apply_retention(store, policies, now=now, dry_run=True)).policies[0].deleted == 2
        with pytest.raises(StoreReadOnlyError):
            await apply_retention(store, policies, now=now)
        assert await other.list() == ["a", "b"]


async def test_damaged_agents_are_reported_and_passed_over(tmp_path: Path) -> None:
    """One of which the file is damaged, and one with a damaged snapshot; the others go."""
    url = f"json:///{tmp_path}/j"
    async with create_extended_store(url) as store:
        await filled(store, ["a", "b", "c"])
    (file,) = (tmp_path / "j").glob("b*.jsonl")
    file.write_bytes(b"x" * 40 + file.read_bytes()[40:])
    async with create_extended_store(url) as store:
        for dry_run in (True, False):
            report = await apply_retention(
                store, [RetentionPolicy(delete_after="1d")], now=now_ms() + 5 * DAY, dry_run=dry_run
            )
            assert report.policies[0].deleted == 2
            assert report.damaged == 1 and "'b'" in report.problems[0]
        assert len(list((tmp_path / "j").glob("*.jsonl"))) == 1


_RUN = """
import asyncio, sys
from kode_core import RetentionPolicy, apply_retention, create_extended_store

async def main():
    async with create_extended_store(sys.argv[1]) as store:
        policies = [RetentionPolicy(prefix="x", keep_snapshots=1), RetentionPolicy(delete_after="1d")]
        print("begins", flush=True)
        now = int(sys.argv[2])
        await apply_retention(store, policies, now=now, on_agent=lambda one: print(one.outcome, flush=True))

asyncio.run(main())
"""


@pytest.mark.parametrize("kind", ["json", "sqlite"])
def test_a_killed_run_leaves_whole_agents(kind: str, tmp_path: Path) -> None:
    """After kill -9 at any moment each agent is whole or gone, and another run ends it once the leases have ended."""
    url = {"json": f"json:///{tmp_path}/j", "sqlite": f"sqlite:///{tmp_path}/a.db"}[kind]
    now = now_ms() + 5 * DAY

    async def fill() -> None:
        async with create_extended_store(url) as store:
            for agent_id in await store.list():
                await store.delete(agent_id)
            await filled(store, [f"a-{i:02}" for i in range(40)])
            await filled(store, ["x"])
            for i in range(5):
                await store.save_snapshot("x", Snapshot(id=f"s{i}", created_at=i))

    async def check() -> int:
        async with create_extended_store(url) as store:
            left = await store.list()
            for agent_id in left:
                assert len(await store.load_messages(agent_id)) == 1
            assert await store.list(include_without_info=True) == left
            assert (await store.check_consistency()).issues == ()
            return len(left)

    for lines in (1, 2, 10, 25):
        asyncio.run(fill())
        process = subprocess.Popen([sys.executable, "-c", _RUN, url, str(now)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for _ in range(lines):
            process.stdout.readline()
        process.kill()
        process.communicate()
        assert asyncio.run(check()) >= 1

    async def end() -> None:
        policies = [RetentionPolicy(prefix="x", keep_snapshots=1), RetentionPolicy(delete_after="1d")]
        async with create_extended_store(url) as store:
            while True:
                report = await apply_retention(store, policies, now=now)
                if not any(one.locked for one in report.policies):
                    break
                await asyncio.sleep(1)  # the leases of a killed process end by themselves
            assert await store.list() == ["x"] and len(await store.list_snapshots("x")) == 1

    asyncio.run(end())


async def test_memory_is_bounded(tmp_path: Path) -> None:
    """Ten thousand agents take no more memory than two thousand."""
    peaks = []
    async with create_extended_store(f"sqlite:///{tmp_path}/a.db", durability="fast") as store:
        for start, end in ((0, 2_000), (2_000, 10_000)):
            for i in range(start, end, 50):
                await asyncio.gather(
                    *(
                        store.save_info(f"a-{j}", AgentInfo(agent_id=f"a-{j}", template_id="t" * 200))
                        for j in range(i, min(i + 50, end))
                    )
                )
            tracemalloc.start()
            report = await apply_retention(store, [RetentionPolicy(delete_after="1d")], now=now_ms())
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
            assert report.policies[0].agents == end
    assert peaks[1] < peaks[0] * 2


async def test_memory_of_deletes_is_bounded(tmp_path: Path) -> None:
    """A thousand deleted agents take no more memory than two hundred, and leave no row; progress counts them."""
    peaks, path = [], tmp_path / "a.db"
    async with create_extended_store(f"sqlite:///{path}", durability="fast") as store:
        for number in (200, 1_000):
            for i in range(0, number, 50):
                await filled(store, [f"a-{j}" for j in range(i, i + 50)])
            seen: list[int] = []
            tracemalloc.start()
            report = await apply_retention(
                store,
                [RetentionPolicy(delete_after="1d")],
                now=now_ms() + 2 * DAY,
                progress=lambda done, _, seen=seen: seen.append(done),  # type: ignore[misc]
            )
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
            assert report.policies[0].deleted == number
            assert seen == sorted(seen) and seen[-1] == number and len(seen) >= number / 10
        assert await store.list(include_without_info=True) == []
    assert peaks[1] < peaks[0] * 2
    with closing(sqlite3.connect(path)) as db:
        for table in ("messages", "agents", "leases", "events"):
            assert db.execute(f"SELECT count(*) FROM kode_{table}").fetchone() == (0,), table


# --- The command ------------------------------------------------------------------------------------------------------


def kode(*arguments: str, code: int = 0) -> tuple[str, str]:
    done = subprocess.run(
        (*KODE, *arguments), capture_output=True, encoding="utf-8", check=False, stdin=subprocess.DEVNULL, timeout=300
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout, done.stderr


def test_the_command_applies_the_policies_of_the_file(tmp_path: Path) -> None:
    """``--dry-run`` prints exactly what the run then prints; without policies, or a terminal, it is refused."""
    Path("kode.toml").write_text(
        f"[stores.default]\nurl = 'json:///{tmp_path}/j'\n[stores.bare]\nurl = 'json:///{tmp_path}/j'\n"
        "[[stores.default.retention]]\nname = 'short'\nprefix = 'a-'\ndelete_after = '1s'\n"
        "[[stores.default.retention]]\nname = 'rest'\nkeep_snapshots = 2\nkeep_events = '30d'\n"
    )

    async def fill() -> None:
        async with create_extended_store("default") as store:
            await filled(store, [f"a-{i:02}" for i in range(25)])
            await filled(store, ["b"])
            await store.append_events("b", events(50, now_ms() - 40 * DAY))
            for i in range(5):
                await store.save_snapshot("b", Snapshot(id=f"s{i}", created_at=i))

    asyncio.run(fill())
    time.sleep(1.1)
    dry, note = kode("prune", "--dry-run")
    assert note == "25 agents would be deleted, and 52 records of others removed\n"
    assert dry.count(": deleted by short\n") == 20 and "… and 5 agents more\n" in dry
    assert dry.splitlines()[-3:] == [
        "POLICY  AGENTS  DELETED  PRUNED  EVENTS  SNAPSHOTS  LOCKED  CHANGED  DAMAGED",
        "short       25       25       0       0          0       0        0        0",
        "rest         1        0       1      49          3       0        0        0",
    ]
    counted = json.loads(kode("prune", "--dry-run", "--json")[0])
    assert "stdin is not a terminal" in kode("prune", code=2)[1]
    assert "has no policies of retention" in kode("prune", "--store", "bare", "--yes", code=2)[1]
    assert "name the agents to prune" in kode("prune", "--keep-snapshots", "1", "--yes", code=2)[1]
    assert counted["policies"][0]["deleted"] == 25
    out, note = kode("prune", "--yes")
    assert (out, note) == (dry, "25 agents were deleted, and 52 records of others removed\n")
    (file,) = (tmp_path / "j").glob("b*.jsonl")
    file.write_bytes(b"x" * 40 + file.read_bytes()[40:])
    assert "error: " in kode("prune", "--yes", code=1)[1]
