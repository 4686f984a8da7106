"""The random checks find each of these faults whatever the seed, and nothing in stores that are right."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Sequence
from typing import Any, ClassVar, cast

import pytest
from kode_conformance import StoreHarness, load_checks, settings
from kode_conformance.builtin import JsonHarness, MemoryHarness
from kode_conformance.checks import properties
from kode_conformance.histories import experiments as machines
from kode_conformance.results import Status
from kode_conformance.running.runner import judge
from kode_conformance.settings import Effort, Settings, Tier
from kode_sqlite.testing.harness import SqliteHarness
from msgspec.structs import replace

from conformance.tests.zoo.base import MemoryLayer, OnJson, OnMemory
from kode_core.batch import Batch, DocKind, Outcome, with_bodies
from kode_core.codec import Body, digest
from kode_core.layers import Layer
from kode_core.store import EngineStore

# A check that fails leaves calls and stores behind that nobody waits for or closes any more.
pytestmark = [
    pytest.mark.selftest,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"),
]

SEEDS = 10
ENOUGH = 9


class IgnoresTheThirdSave(EngineStore):
    """Does not save the third todo list of an agent, nor the sixth."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.saved: dict[str, int] = {}

    async def save_todos(self, agent_id: str, snapshot: Any, *, fence: Any = None) -> None:
        self.saved[agent_id] = self.saved.get(agent_id, 0) + 1
        if self.saved[agent_id] % 3:
            await super().save_todos(agent_id, snapshot, fence=fence)


class BringsMediaBack(MemoryLayer):
    """A deleted agent has its media again once messages are saved."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        for batch in batches:
            state, attic = self.space.state(batch.agent_id), self.space.__dict__.setdefault("attic", {})
            if batch.delete:
                attic[batch.agent_id] = {k: d for k, d in state.docs.items() if k[0] is DocKind.MEDIA}
            elif batch.messages is not None:
                state.docs.update(attic.pop(batch.agent_id, {}))
        return await super().commit(batches)


class CachesTheInfo(EngineStore):
    """Remembers the info it saved, and does not look whether another instance saved one since."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.infos: dict[str, Any] = {}

    async def save_info(self, agent_id: str, info: Any, *, fence: Any = None) -> None:
        await super().save_info(agent_id, info, fence=fence)
        self.infos[agent_id] = info

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        await super().delete(agent_id, fence=fence)
        self.infos.pop(agent_id, None)

    async def load_info(self, agent_id: str) -> Any:
        found = await super().load_info(agent_id)
        known = self.infos.get(agent_id)
        return found if found is None or known is None else known.replace(message_count=found.message_count)


class UpsertsTheFirst(EngineStore):
    """Replaces the first tool call of an id, not the last."""

    async def upsert_tool_call_records(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        calls = await self.load_tool_call_records(agent_id)
        for record in records:
            at = next((i for i, call in enumerate(calls) if call.id == record.id), len(calls))
            calls[at : at + 1] = [record]
        await self.save_tool_call_records(agent_id, calls, fence=fence)


class ForgetsTheForksTodos(MemoryLayer):
    """A parent's second fork has no todos."""

    async def fork(self, agent_id: str, children: Any, expect: Body, now: int) -> bool:
        made = await super().fork(agent_id, children, expect, now)
        forked = self.space.__dict__.setdefault("forked", set())
        if agent_id in forked:
            for child in children:
                self.space.states[child.agent_id].docs.pop((DocKind.TODOS, ""), None)
        forked.add(agent_id)
        return made


class CountsTurnsOnly(EngineStore):
    """Statistics leave out the tool calls that have no result."""

    async def aggregate_stats(self, agent_id: str) -> Any:
        stats = await super().aggregate_stats(agent_id)
        calls = await self.load_tool_call_records(agent_id)
        return replace(stats, total_tool_calls=sum(call.result is not None for call in calls))


class CutsKeys(Layer):
    """Cuts "$" off the keys of dicts that are in a list."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        return await super().commit([with_bodies(batch, self._cut) for batch in batches])

    def _cut(self, body: Body) -> Body:
        text = body.text.replace('[{"$set":', '[{"set":')
        return Body(text, digest(text.encode()))


class DropsEmptyLists(Layer):
    """Drops a list that is empty from the end of a list."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        return await super().commit([with_bodies(batch, self._drop) for batch in batches])

    def _drop(self, body: Body) -> Body:
        text = body.text.replace(",[]]", "]")
        json.loads(text)
        return Body(text, digest(text.encode()))


class AppendsByLoadAndSave(EngineStore):
    """Loads the messages, and saves them with more at the end."""

    async def append_messages(self, agent_id: str, messages: Any, *, fence: Any = None) -> None:
        await self.save_messages(agent_id, [*await self.load_messages(agent_id), *messages], fence=fence)


class SavesInTwoSteps(EngineStore):
    """Replaces the messages by emptying the list and filling it again."""

    async def save_messages(self, agent_id: str, messages: Any, *, fence: Any = None) -> None:
        await super().save_messages(agent_id, [], fence=fence)
        await super().save_messages(agent_id, messages, fence=fence)


class AnswersBeforeItWrites(EngineStore):
    """Returns from saving todos at once, and saves them a moment later."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.writes: set[asyncio.Future[None]] = set()

    async def save_todos(self, agent_id: str, snapshot: Any, *, fence: Any = None) -> None:
        self.writes.add(asyncio.ensure_future(super().save_todos(agent_id, snapshot, fence=fence)))

    async def close(self) -> None:
        await asyncio.gather(*self.writes)
        await super().close()


class JoinsReads(EngineStore):
    """Gives a load of tool calls the result of one that is under way, though it began before the last save."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.loads: dict[str, asyncio.Task[Any]] = {}

    async def load_tool_call_records(self, agent_id: str) -> Any:
        if agent_id not in self.loads:
            self.loads[agent_id] = asyncio.ensure_future(self._load(agent_id))
        return await asyncio.shield(self.loads[agent_id])

    async def _load(self, agent_id: str) -> Any:
        found = await super().load_tool_call_records(agent_id)
        await asyncio.sleep(0)
        del self.loads[agent_id]
        return found


class ShowsEventsOutOfOrder(EngineStore):
    """Shows an event only when its append returns, while later ones can be seen already."""

    hidden: ClassVar[set[int]] = set()

    async def append_event(self, agent_id: str, timeline: Any, *, fence: Any = None) -> int:
        offset = await super().append_event(agent_id, timeline, fence=fence)
        self.hidden.add(offset)
        await asyncio.sleep(0)
        self.hidden.discard(offset)
        return offset

    async def _shown(self, events: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for event in events:
            if event.offset not in self.hidden:
                yield event

    def read_events(self, agent_id: str, **how: Any) -> Any:
        return self._shown(super().read_events(agent_id, **how))


class AppendsInFiles(OnJson):
    """The same over JSON files, which other processes write as well."""

    name = "appends in files"
    part = AppendsByLoadAndSave


FAULTS: list[tuple[type, str]] = [
    (IgnoresTheThirdSave, "random_histories_follow_the_model"),
    (BringsMediaBack, "random_histories_follow_the_model"),
    (CachesTheInfo, "random_histories_follow_the_model"),
    (UpsertsTheFirst, "random_histories_follow_the_model"),
    (ForgetsTheForksTodos, "random_histories_with_forks"),
    (CountsTurnsOnly, "random_histories_and_queries"),
    (CutsKeys, "random_values_in_every_field"),
    (DropsEmptyLists, "random_values_in_every_field"),
    (AppendsByLoadAndSave, "concurrent_appends_make_one_log"),
    (ShowsEventsOutOfOrder, "concurrent_appends_make_one_log"),
    (SavesInTwoSteps, "concurrent_saves_have_one_order"),
    (AnswersBeforeItWrites, "concurrent_saves_have_one_order"),
    (JoinsReads, "concurrent_saves_have_one_order"),
]
CHECKS = {check.name: check for check in load_checks()}
RANDOM = [
    *dict.fromkeys(name for _, name in FAULTS),
    "random_histories_survive_restarts",
    "processes_agree_on_one_order",
]


def harness_with(part: type) -> StoreHarness:
    """A memory store with the fault in it."""
    return cast(StoreHarness, type("Harness", (OnMemory,), {"part": part, "name": part.__name__})())


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "name"), FAULTS, ids=[fault.__name__ for fault, _ in FAULTS])
def test_faults_are_found_whatever_the_seed(fault: type, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the effort of the standard tier at least nine seeds of ten find the fault."""
    monkeypatch.setattr(machines, "_SHORTEN_SECONDS", 0.0)
    monkeypatch.setattr(properties, "_SHORTEN_SECONDS", 0.0)
    found = [judge(CHECKS[name], harness_with(fault), Settings(Tier.STANDARD, seed)) for seed in range(SEEDS)]
    assert sum(result.status is Status.FAIL for result in found) >= ENOUGH


def test_faults_between_processes_are_found() -> None:
    """The check finds appends of one process that undo appends of another, and names the lost messages.

    Whether the processes meet depends on the machine: on a busy one they may run one after the other.
    """
    check = CHECKS["processes_agree_on_one_order"]
    results = (judge(check, AppendsInFiles(), Settings(Tier.STANDARD, seed)) for seed in range(6))
    result = next((one for one in results if one.status is not Status.PASS), None)
    assert result is not None
    assert result.status is Status.FAIL
    assert "appended messages, 3 processes: lost" in result.message


@pytest.mark.slow
@pytest.mark.parametrize("harness", [MemoryHarness(), JsonHarness(), SqliteHarness()], ids=lambda h: h.name)
@pytest.mark.parametrize("name", RANDOM)
def test_nothing_is_found_in_stores_that_are_right(
    harness: StoreHarness, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty seeds of each check, with a little of each, find nothing in the built-in stores."""
    little = Effort(examples=6, steps=20, schedules=2, kills=1)
    monkeypatch.setattr(settings, "_EFFORTS", dict.fromkeys(Tier, little))
    seeds = 1 if name == "processes_agree_on_one_order" else 20
    results = [judge(CHECKS[name], harness, Settings(Tier.STANDARD, seed)) for seed in range(seeds)]
    assert [result for result in results if result.status not in (Status.PASS, Status.NOT_APPLICABLE)] == []


def test_a_finding_is_a_short_history() -> None:
    """A fault that needs three calls of one kind is told in three steps, with the values they name."""
    result = judge(
        CHECKS["random_histories_follow_the_model"], harness_with(IgnoresTheThirdSave), Settings(Tier.STANDARD)
    )
    assert result.status is Status.FAIL
    steps = re.findall(r"^  \d+\. .*$", result.message, re.MULTILINE)
    assert len(steps) == 3
    assert all(re.search(r"save_todos\(.+, t", step) for step in steps)
    assert "load_todos(" in result.message


def test_a_finding_is_a_simple_value() -> None:
    """A value that goes wrong is told without the rest of what it was found in."""
    result = judge(CHECKS["random_values_in_every_field"], harness_with(DropsEmptyLists), Settings(Tier.STANDARD))
    assert result.status is Status.FAIL
    assert "the value [[], []] in" in result.message or ", []]" in result.message[:80]


def test_a_finding_is_a_timeline() -> None:
    """Calls that no order explains are told as bars."""
    result = judge(CHECKS["concurrent_saves_have_one_order"], harness_with(SavesInTwoSteps), Settings(Tier.STANDARD))
    assert result.status is Status.FAIL
    assert "messages, 4 clients of" in result.message
    assert "[=" in result.message


def test_one_seed_is_one_finding() -> None:
    """A run can be repeated: the same seed finds the same history."""
    check = CHECKS["random_histories_follow_the_model"]
    first, second = (judge(check, harness_with(UpsertsTheFirst), Settings(Tier.STANDARD, 5)) for _ in range(2))
    assert first.status is Status.FAIL
    assert first.message == second.message
