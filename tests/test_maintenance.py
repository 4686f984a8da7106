"""Maintenance: checks, deletions and backups of whole stores, in steps, while others use them."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from kode_conformance.values import samples

from kode_core import (
    AgentInfo,
    InvalidArgumentError,
    KodeError,
    Message,
    StoreClosedError,
    StoreReadOnlyError,
    StoreTimeoutError,
    StoreUnavailableError,
    TextBlock,
    TodoSnapshot,
    ToolResultBlock,
    ToolUseBlock,
    create_extended_store,
)
from kode_core.backends.json_files.copies import FolderCopy
from kode_core.backends.memory.engine import MemoryEngine
from kode_core.batch import Batch, EngineIssue, ListKind, ListRows, Outcome
from kode_core.engine import Engine, Progress, unwatched
from kode_core.layers import Layer
from kode_core.store import EngineStore

STORES = ["memory:", "json:///agents", "sqlite:///agents.db"]


def over(engine: Engine, **options: Any) -> EngineStore:
    async def opener() -> Engine:
        return engine

    return EngineStore(opener, **options)


def use(call_id: str) -> Message:
    return Message("assistant", [ToolUseBlock(call_id, "x", {})])


def result(call_id: str) -> Message:
    return Message("user", [ToolResultBlock(call_id, "r")])


class Slow(Layer):
    """Takes its time for each call."""

    seconds = 0.0
    calls = 0

    async def around(self, verb: str, call: Callable[..., Awaitable[Any]], /, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        await asyncio.sleep(self.seconds)
        return await call(*args, **kwargs)


# --- checks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", STORES)
async def test_agents_without_info_are_checked(url: str) -> None:
    """What is stored of an agent is checked, whatever it is and whether or not its info was saved."""
    async with create_extended_store(url) as store:
        await store.append_messages("messages", [result("c")])
        await store.append_event("event", samples.event(0))
        await store.save_todos("todos", samples.todos())
        await store.save_tool_call_records("calls", [samples.tool_call()])
        found = await store.check_consistency()
        assert [(issue.code, issue.agent_id) for issue in found.issues] == [("result_without_use", "messages")]
        assert found.agents_checked == 4
        await store.delete("messages")
        assert (await store.check_consistency()).agents_checked == 3


@pytest.mark.parametrize("url", STORES)
async def test_issues_one_by_one_are_the_same(url: str) -> None:
    """iter_consistency gives what check_consistency collects, in the same order."""
    async with create_extended_store(url) as store:
        for i in range(20):
            await store.append_messages(f"a{i:02d}", [use("c")] * (i % 3))
        together = (await store.check_consistency()).issues
        assert [issue.agent_id for issue in together] == [f"a{i:02d}" for i in range(20) if i % 3]
        assert tuple([issue async for issue in store.iter_consistency()]) == together
        assert [issue.code async for issue in store.iter_consistency("a01")] == ["use_without_result"]
        assert [issue.code async for issue in store.iter_consistency("nobody")] == ["unknown_agent"]


async def test_a_call_that_was_answered_twice() -> None:
    """It is told as what it is, and not as a call that nobody made."""
    async with create_extended_store("memory:") as store:
        await store.save_messages("a", [use("c"), result("c"), result("c")])
        (issue,) = (await store.check_consistency("a")).issues
        assert issue.message == "the tool call 'c' was answered twice, the second time in message 2"


async def test_a_check_has_no_total_deadline() -> None:
    """Only a step that takes longer than the deadline ends it, and says that it was a step."""
    slow = Slow(MemoryEngine())
    async with over(slow) as store:
        for i in range(10):
            await store.save_info(f"a{i}", samples.info(f"a{i}"))
    for longer in (1, 10, 100):  # a process that stands still may be late for the end of a single step
        async with over(slow, timeout_ms=300 * longer) as store:
            slow.seconds, slow.calls = 0.02 * longer, 0
            with suppress(StoreTimeoutError):
                assert (await store.check_consistency()).agents_checked == 10
                assert slow.calls * slow.seconds > 0.3 * longer
                break
    else:
        pytest.fail("the check has a deadline for all its steps together")
    async with over(slow, timeout_ms=300) as store:
        slow.seconds = 10
        with pytest.raises(StoreTimeoutError, match=r"a step of check_consistency was not done after 0\.3 s$"):
            await store.check_consistency()


class Shifting(Layer):
    """Takes the first pair of messages away and adds one at the end after each page that is read."""

    number = 1000

    async def rows_at(self, agent_id: str, kind: ListKind, start: int, limit: int) -> ListRows:
        found = await super().rows_at(agent_id, kind, start, limit)
        if kind == ListKind.MESSAGES and found.rows:
            type(self).number += 1
            await self.shift(f"c{self.number}")
        return found

    shift: Callable[[str], Awaitable[None]]


async def test_writes_between_two_pages_are_no_issues() -> None:
    """A list that is cut at its start while it is checked has no results whose uses were in a page before."""
    engine = MemoryEngine()
    layer = Shifting(engine)
    async with over(engine) as writer, over(layer) as store:
        messages = [message for i in range(700) for message in (use(f"c{i}"), result(f"c{i}"))]
        await writer.save_messages("a", messages)

        async def shift(call_id: str) -> None:
            del messages[:3]
            messages.extend([use(call_id), result(call_id)])
            await writer.save_messages("a", messages)

        layer.shift = shift
        found = await store.check_consistency("a")
        assert [issue.message for issue in found.issues] == []
        assert layer.number > 1003


async def test_what_is_wrong_in_a_list_that_grows_is_found() -> None:
    """A tool use without a result is told although the list never stands still."""
    engine = MemoryEngine()
    layer = Shifting(engine)
    async with over(engine) as writer, over(layer) as store:
        await writer.save_messages("a", [use("lost"), *[Message.user(str(i)) for i in range(1500)]])

        async def grow(call_id: str) -> None:
            await writer.append_messages("a", [Message.user(call_id)])

        layer.shift = grow
        found = await store.check_consistency("a")
        assert [issue.message for issue in found.issues] == ["the tool call 'lost' has no result"]


class Inspecting(Layer):
    """Finds something, as often as it is told."""

    times = 0

    async def inspect(self, agent_id: str | None, progress: Progress = unwatched) -> Sequence[EngineIssue]:
        self.times -= 1
        return [EngineIssue("half_done_delete", agent_id or "", "a part is there")] if self.times >= 0 else []


@pytest.mark.parametrize(("times", "codes"), [(1, []), (2, []), (10, ["half_done_delete"])])
async def test_an_engine_is_asked_again(times: int, codes: list[str]) -> None:
    """What the engine finds once may be half of somebody's write; what it finds each time is told."""
    layer = Inspecting(MemoryEngine())
    async with over(layer) as store:
        await store.save_info("a", samples.info("a"))
        layer.times = times
        assert [issue.code for issue in (await store.check_consistency("a")).issues] == codes


async def test_an_agent_that_is_deleted_meanwhile_is_no_issue() -> None:
    """Between its id and its records an agent may go."""
    engine = MemoryEngine()

    class Deleting(Layer):
        async def summary(self, agent_id: str) -> Any:
            async with over(engine) as other:
                await other.delete("b")
            return await super().summary(agent_id)

    async with over(engine) as writer, over(Deleting(engine)) as store:
        for agent_id in "abc":
            await writer.save_info(agent_id, samples.info(agent_id))
        found = await store.check_consistency()
        assert (found.issues, found.agents_checked) == ((), 2)


async def test_a_long_list_and_a_long_log_are_read_in_pages() -> None:
    """No page of a check is larger than a few thousand records or a few megabytes."""
    sizes: list[int] = []

    class Measuring(Layer):
        async def around(self, verb: str, call: Callable[..., Awaitable[Any]], /, *args: Any, **kwargs: Any) -> Any:
            found = await call(*args, **kwargs)
            if verb == "rows_at":
                sizes.append(sum(len(body.text) for body, _ in found.rows))
            if verb == "events":
                sizes.append(sum(len(row.body.text) for row in found))
            assert verb != "rows"
            return found

    engine = MemoryEngine()
    async with over(engine) as writer:
        await writer.save_messages("small", [Message.user(str(i)) for i in range(20_000)])
        await writer.save_messages("large", [Message.user("x" * 100_000) for _ in range(200)])
        await writer.append_events("small", samples.events(20_000))
    async with over(Measuring(engine)) as store:
        assert (await store.check_consistency()).consistent
    assert max(sizes) < 6_000_000
    assert len(sizes) < 120


async def test_closing_ends_a_check() -> None:
    """A check that takes long does not hold up close: its next step says that the store is closed."""
    slow = Slow(MemoryEngine())
    store = over(slow)
    for i in range(50):
        await store.save_info(f"a{i}", samples.info(f"a{i}"))
    slow.seconds = 0.01
    checking = asyncio.ensure_future(store.check_consistency())
    await asyncio.sleep(0.05)
    await store.close()
    with pytest.raises(StoreClosedError):
        await checking
    assert slow.calls < 200


async def test_progress_is_told_and_may_end_the_call() -> None:
    """How far a call is, of how much; what the callback raises is raised by the call."""
    async with create_extended_store("memory:") as store:
        for i in range(5):
            await store.save_info(f"a{i}", samples.info(f"a{i}"))
        told: list[tuple[int, int | None]] = []
        await store.check_consistency(progress=lambda done, total: told.append((done, total)))
        assert told == [(i, 5) for i in range(6)]

        def enough(done: int, total: int | None) -> None:
            raise KeyError(done)

        with pytest.raises(KeyError):
            await store.check_consistency(progress=enough)
        with pytest.raises(KeyError):
            [issue async for issue in store.iter_consistency(progress=enough)]


# --- deletions --------------------------------------------------------------------------------------------------------


class Failing(Layer):
    """Cannot delete one agent."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        outcomes = await super().commit([batch for batch in batches if batch.agent_id != "a3"])
        found = dict(zip([batch.agent_id for batch in batches if batch.agent_id != "a3"], outcomes, strict=True))
        return [found.get(batch.agent_id, StoreUnavailableError("not now")) for batch in batches]


async def test_an_error_says_how_many_were_deleted() -> None:
    """It keeps its type, and its ``deleted`` is how many are gone, those of the same write included."""
    engine = MemoryEngine()
    async with over(engine) as writer:
        for i in range(30):
            await writer.save_info(f"a{i}", samples.info(f"a{i}", template_id="t", created_at=1000 + i))
    async with over(Failing(engine)) as store:
        with pytest.raises(StoreUnavailableError, match=r"not now; 29 sessions were deleted before") as info:
            await store.delete_many(template_id="t")
        assert info.value.deleted == 30 - len(await store.list())
        metrics = (await store.get_metrics()).operations
        assert (metrics.deletes, metrics.queries, metrics.errors) == (0, 1, 1)


async def test_a_deletion_counts_as_one() -> None:
    """However many pages it takes, it is one delete, and no query."""
    told: list[int] = []
    async with create_extended_store("memory:") as store:
        for i in range(450):
            await store.save_info(f"a{i}", samples.info(f"a{i}", template_id="t"))
        assert await store.delete_many(template_id="t", progress=lambda done, _: told.append(done)) == 450
        metrics = (await store.get_metrics()).operations
        assert (metrics.deletes, metrics.queries, metrics.errors) == (1, 0, 0)
    assert told == sorted(told)
    assert told[-1] == 450


# --- backups ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", STORES[1:])
async def test_odd_targets(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no copy can be made the error is this library's, and nothing is left or changed."""
    monkeypatch.setenv("HOME", str(tmp_path))
    file = Path("a file")
    file.write_text("mine")
    Path("empty").mkdir()
    Path("dangling").symlink_to("nowhere")
    async with create_extended_store(url) as store:
        await store.save_messages("a", samples.messages(3))
        before = sorted(os.listdir())
        for target in (
            "",
            5,
            b"bytes",
            "\0",
            "\ud800",
            "~nosuchuser/x",
            file,
            file / "x",
            "empty",
            "dangling",
            "x" * 300,
            url.rpartition("/")[2],
        ):
            with pytest.raises(InvalidArgumentError):
                await store.backup(target)  # type: ignore[arg-type]
        assert sorted(os.listdir()) == before
        assert file.read_text() == "mine"
        (made,) = await store.backup("~/deep/er/copy")
        assert made == tmp_path / "deep" / "er" / "copy"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("url", STORES[1:])
async def test_a_folder_that_cannot_be_written(url: str) -> None:
    """It is told, and nothing is left."""
    Path("closed").mkdir(mode=0o500)
    async with create_extended_store(url) as store:
        with pytest.raises(StoreReadOnlyError):
            await store.backup("closed/copy")
        with pytest.raises(StoreReadOnlyError):
            await store.backup("closed/deeper/copy")
    assert os.listdir("closed") == []


@pytest.mark.parametrize("url", STORES[1:])
async def test_of_two_backups_to_one_target_one_wins(url: str) -> None:
    """The other is refused, also when another store of the process makes it, and the copy is whole."""
    async with create_extended_store(url) as store, create_extended_store(url) as other:
        for i in range(50):
            await store.save_messages(f"a{i}", samples.messages(5))
        backups = (store.backup("copy"), other.backup("copy"), store.backup("./copy"))
        outcomes = await asyncio.gather(*backups, return_exceptions=True)
        refused = [outcome for outcome in outcomes if isinstance(outcome, KodeError)]
        assert [type(outcome) for outcome in refused] == [InvalidArgumentError] * 2
        assert "another backup to" in str(refused[0])
    async with create_extended_store(url.replace("agents.db", "copy").replace("agents", "copy")) as copy:
        assert (await copy.check_consistency()).agents_checked == 50


@pytest.mark.parametrize("url", STORES[1:])
async def test_a_backup_can_be_interrupted(url: str) -> None:
    """Cancelled at any moment, or ended by its progress or by close, it leaves nothing, and the next one works."""
    async with create_extended_store(url) as store:
        for i in range(120):
            await store.save_messages(f"a{i}", [Message("user", [TextBlock("x" * 50_000)])])
        await _interrupted(store)
    async with create_extended_store(url.replace("agents.db", "new/copy").replace("agents", "new/copy")) as copy:
        assert (await copy.check_consistency()).agents_checked == 120


@pytest.mark.parametrize("is_hybrid", [False, True], ids=["alone", "hybrid"])
@pytest.mark.parametrize("url", STORES[1:])
async def test_closing_ends_a_backup(url: str, is_hybrid: bool) -> None:
    """A store that is closed during a backup leaves nothing of it and holds no lock; the next backup works."""
    options = {"file_store_base_dir": "files"} if is_hybrid else {}
    if is_hybrid and url.startswith("json"):
        pytest.skip("JSON files are one half of the layout")
    async with create_extended_store(url, **options) as store:
        for i in range(120):
            await store.save_turn(f"a{i}", append=[Message("user", [TextBlock("x" * 50_000)])], todos=TodoSnapshot())
    before, closed = sorted(os.listdir()), 0
    for seconds in (0.0, 0.002, 0.01, 0.05):
        store = await create_extended_store(url, **options)
        copying = asyncio.ensure_future(store.backup("copy"))
        await asyncio.sleep(seconds)
        await store.close()
        (outcome,) = await asyncio.gather(copying, return_exceptions=True)
        if not isinstance(outcome, BaseException):
            break
        assert isinstance(outcome, StoreClosedError)
        assert (sorted(os.listdir()), list(Path().rglob("copies/*"))) == (before, [])
        closed += 1
    assert closed
    async with create_extended_store(url, timeout_ms=5_000, **options) as store:
        await store.save_todos("a1", TodoSnapshot())
        if not Path("copy").exists():
            await store.backup("copy")


async def _interrupted(store: Any) -> None:
    before = sorted(os.listdir())
    for seconds in (0.0, 0.001, 0.01, 0.03, 0.1, 0.2):
        copying = asyncio.ensure_future(store.backup("new/copy"))
        await asyncio.sleep(seconds)
        if copying.done():
            break
        copying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await copying
        assert sorted(os.listdir()) == before

    def enough(done: int, total: int | None) -> None:
        raise KeyError(done)

    with pytest.raises(KeyError):
        await store.backup("other/copy", progress=enough)
    assert not Path("other").exists()
    if not Path("new").exists():
        await store.backup("new/copy")


class Stuck(Layer):
    """Tells of two steps, and then of nothing any more."""

    removed = False

    async def backup(self, target: Path, progress: Progress = unwatched) -> Sequence[Path]:
        for i in range(2):
            await asyncio.sleep(0.15)
            progress(i, None)
        try:
            await asyncio.sleep(60)
        finally:
            self.removed = True
        return [target]


async def test_a_step_of_a_backup_has_the_deadline() -> None:
    """Each progress begins the next step; one that is not done in time ends the backup, which is cleaned up first."""
    stuck = Stuck(MemoryEngine())
    async with over(stuck, timeout_ms=200) as store:
        with pytest.raises(
            StoreTimeoutError, match=r"a step of backup was not done after 0\.2 s; what was made of the"
        ):
            await store.backup("x/copy")
    assert stuck.removed
    assert not Path("x").exists()


class Deaf(Layer):
    """Makes its copy long after it was cancelled, or fails then."""

    fails = False

    async def backup(self, target: Path, progress: Progress = unwatched) -> Sequence[Path]:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        await asyncio.sleep(0.3)
        if self.fails:
            raise StoreUnavailableError("gone")
        target.write_text("a copy")
        return [target]


@pytest.mark.parametrize("fails", [False, True])
async def test_a_backup_that_ends_long_after_its_deadline(fails: bool) -> None:
    """The copy is removed when it is made at last, and an error of then disturbs nobody."""
    deaf = Deaf(MemoryEngine())
    deaf.fails = fails
    lost: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: lost.append(context))
    async with over(deaf, timeout_ms=100) as store:
        with pytest.raises(StoreTimeoutError):
            await store.backup("copy")
        await asyncio.sleep(0.4)
        gc.collect()
        assert not Path("copy").exists()
    assert lost == []


async def test_a_backup_of_files_that_is_cancelled_as_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller that is cancelled when the copy has its name already finds no copy."""
    clear, loop = FolderCopy.clear, asyncio.get_running_loop()

    def late(self: FolderCopy, *, is_kept: bool) -> None:
        if is_kept:
            loop.call_soon_threadsafe(copying.cancel)
            time.sleep(0.05)
        clear(self, is_kept=is_kept)

    async with create_extended_store("json:///agents") as store:
        await store.save_messages("a", [use("c")])
        monkeypatch.setattr(FolderCopy, "clear", late)
        copying = asyncio.ensure_future(store.backup("copy"))
        with pytest.raises(asyncio.CancelledError):
            await copying
        assert not Path("copy").exists()


FULL = """
import asyncio, resource, signal, sys
from kode_core import KodeError, create_extended_store
async def main():
    async with create_extended_store(sys.argv[1]) as store:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        try:
            await store.backup("full/copy")
        except KodeError as exc:
            print(type(exc).__name__)
asyncio.run(main())
"""


@pytest.mark.parametrize("url", STORES[1:])
async def test_a_copy_that_has_no_room(url: str) -> None:
    """It is told with an error of this library, and nothing is left."""
    async with create_extended_store(url) as store:
        await store.save_messages("a", [Message.user("x" * 10_000) for _ in range(300)])
        await store.save_info("a", AgentInfo(agent_id="a", template_id="t", created_at=0))
    done = subprocess.run([sys.executable, "-c", FULL, url], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() in ("StoreFullError", "StoreUnavailableError"), done.stderr
    assert not Path("full").exists()
