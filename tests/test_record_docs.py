"""Documents of the caller's own in the record engine: writes that demand a version."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from kode_conformance.suite.record_tests import Held
from kode_conformance.values import samples

from kode_core import ABSENT, ConflictError, DeleteDocument, KodeError, PutDocument
from kode_core.batch import ABSENT_DOC, Applied, Batch, Doc, DocKind, DocSpan, DocWrite, Fence, Refused
from kode_core.codec import Body
from kode_core.engines.record.engine import RecordEngine
from kode_core.engines.record.store import HeadRecord, Item
from kode_core.errors import OutcomeUnknownError
from kode_core.model.documents import StoredDocument
from kode_core.store import EngineStore
from tests.memory_records import Contents, MemoryRecords, StopsAt
from tests.test_record_engine import OPTIONS, abandon, opened
from tests.test_record_schedules import OPTIONS as SCHEDULED
from tests.test_record_schedules import Run, drawn


def _body(text: str) -> Body:
    return Body(text, text.encode().ljust(16, b"."))


def _put(key: str, text: str, expect: Body | None) -> DocWrite:
    return DocWrite(DocKind.DOCUMENTS, key, Doc(key, 1, _body(text)), expect)


def _batch(op_id: str, *docs: DocWrite, **how: Any) -> Batch:
    return Batch(agent_id="a", op_id=op_id, now=1, docs=docs, **how)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
async def test_batches_of_one_swap_see_each_other(options: dict[str, Any]) -> None:
    """Also what a delete among them removed. Demands refer to the state before their batch."""
    engine = RecordEngine(MemoryRecords(Contents(), **options))
    first, second = _body("1"), _body("2")
    gone = DocWrite(DocKind.DOCUMENTS, "c/k", None, second)
    outcomes = await engine.commit(
        [
            _batch("1", _put("c/k", "1", ABSENT_DOC)),
            _batch("2", _put("c/k", "2", ABSENT_DOC)),
            _batch("3", _put("c/k", "2", first), _put("c/other", "1", ABSENT_DOC)),
            _batch("4", gone),
            _batch("5", _put("c/k", "3", ABSENT_DOC)),
            _batch("6", delete=True),
            _batch("7", _put("c/other", "4", ABSENT_DOC)),
            _batch("8", _put("c/k", "4", _body("3"))),
        ]
    )
    refused = [i for i, outcome in enumerate(outcomes, 1) if outcome == Refused("docs")]
    assert refused == [2, 8]
    assert all(isinstance(outcome, Applied) for i, outcome in enumerate(outcomes, 1) if i not in refused)
    found = await engine.docs_in("a", DocSpan(start="", stop="~", limit=10))
    assert [(doc.key, doc.body) for doc in found] == [("c/other", _body("4"))]
    await engine.close()


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
async def test_an_outdated_head_refuses_nothing(options: dict[str, Any]) -> None:
    """A store that wrote last keeps the head. Another one changed the document since, so that the demand holds."""
    contents = Contents()
    one, other = (RecordEngine(MemoryRecords(contents, **options)) for _ in range(2))
    gone = DocWrite(DocKind.DOCUMENTS, "c/k", None)
    for n in range(5):
        assert isinstance((await one.commit([_batch(f"a{n}", _put("c/k", f"{n}", ABSENT_DOC))]))[0], Applied)
        assert isinstance((await other.commit([_batch(f"b{n}", gone)]))[0], Applied)
        assert isinstance((await one.commit([_batch(f"c{n}", _put("c/k", "x", ABSENT_DOC))]))[0], Applied)
        assert isinstance((await other.commit([_batch(f"d{n}", _put("c/k", "y", None))]))[0], Applied)
        assert isinstance((await one.commit([_batch(f"e{n}", _put("c/k", "z", _body("y")))]))[0], Applied)
        assert isinstance((await other.commit([_batch(f"f{n}", gone)]))[0], Applied)
        absent = DocWrite(DocKind.DOCUMENTS, "c/k", None, ABSENT_DOC)  # demands, and changes nothing
        assert isinstance((await one.commit([_batch(f"g{n}", absent)]))[0], Applied)
        assert isinstance((await other.commit([_batch(f"h{n}", _put("c/k", "i", None))]))[0], Applied)
        assert (await one.commit([_batch(f"i{n}", absent)]))[0] == Refused("docs")
        assert isinstance((await other.commit([_batch(f"j{n}", gone)]))[0], Applied)
    for engine in (one, other):
        await engine.close()


async def test_an_outdated_head_refuses_nothing_before_the_items_show_it() -> None:
    """The other store has swapped the head, and not removed the item yet."""
    contents = Contents()
    one, slow = RecordEngine(MemoryRecords(contents)), Held(MemoryRecords(contents), "apply")
    other = RecordEngine(slow)
    assert isinstance((await one.commit([_batch("1", _put("c/k", "1", None))]))[0], Applied)
    while not contents.heads["a"].is_settled:  # or the other one would settle it first
        await asyncio.sleep(0.01)
    removing = asyncio.ensure_future(other.commit([_batch("2", DocWrite(DocKind.DOCUMENTS, "c/k", None))]))
    await slow.reached.wait()
    assert isinstance((await one.commit([_batch("3", _put("c/k", "3", ABSENT_DOC))]))[0], Applied)
    slow.let_go.set()
    assert isinstance((await removing)[0], Applied)
    assert [doc.body for doc in await one.docs("a", DocKind.DOCUMENTS, "c/k")] == [_body("3")]
    await one.close()
    await other.close()


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
async def test_pending_changes_count_for_a_demand(options: dict[str, Any]) -> None:
    """Also where the next writer takes them over, before they were applied to an item."""
    contents = Contents()
    dying = await opened(Held(MemoryRecords(contents, **{**options, "swap_items": 0}), "apply"))
    writing = asyncio.ensure_future(dying.put_document("a", "c", "k", 1))
    async with await opened(MemoryRecords(contents, **options)) as store:
        while (document := await store.load_document("a", "c", "k")) is None:
            await asyncio.sleep(0)
        assert not any(items for items in contents.items.values())
        with pytest.raises(ConflictError) as caught:
            await store.put_document("a", "c", "k", 2, expect=ABSENT)
        assert caught.value.version == document.version
        await store.put_document("a", "c", "k", 3, expect=document.version)
    assert not writing.done()
    await abandon()
    dying._context.closing.set()


class HeldAt(MemoryRecords):
    """Waits at its n-th call until it is let go, and loses the answer to its first swap."""

    def __init__(self, contents: Contents, n: int, lost: str, **options: Any) -> None:
        super().__init__(contents, **options)
        self.left, self.lost = n, lost
        self.reached, self.let_go = asyncio.Event(), asyncio.Event()

    async def step(self) -> None:
        self.left -= 1
        if self.left == -1:
            self.reached.set()
            await self.let_go.wait()
        await super().step()

    async def swap(self, old: HeadRecord | None, new: HeadRecord, fence: Fence | None, items: Sequence[Item]) -> bool:
        lost, self.lost = self.lost, ""
        if lost == "before":
            await self.step()
            raise OutcomeUnknownError("the connection broke")
        swapped = await super().swap(old, new, fence, items)
        if lost == "after":
            raise OutcomeUnknownError("the connection broke")
        return swapped


async def _nothing(contents: Contents, options: dict[str, Any]) -> None:
    return


async def _removed(contents: Contents, options: dict[str, Any]) -> None:
    async with await opened(MemoryRecords(contents, **options)) as store:
        await store.put_document("a", "c", "k", "old" * 200)
        await store.delete_document("a", "c", "k")


async def _deleted(contents: Contents, options: dict[str, Any]) -> None:
    async with await opened(MemoryRecords(contents, **options)) as store:
        await store.put_document("a", "c", "k", "old")
        await store.append_messages("a", [samples.message(0)])
        await store.delete("a")


BEGINNINGS = {"nothing": _nothing, "a removed one": _removed, "a deleted agent": _deleted}
Begin = Callable[[Contents, dict[str, Any]], Awaitable[None]]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("begin", BEGINNINGS.values(), ids=BEGINNINGS)
@pytest.mark.parametrize("lost", ["", "before", "after"])
async def test_one_of_two_puts_if_absent_wins(lost: str, begin: Begin, options: dict[str, Any]) -> None:
    """However late any call of one of them is, and whether or not the answer to its swap arrives."""
    winners = set[int]()
    for n in range(1000):
        contents = Contents()
        await begin(contents, options)
        records = HeldAt(contents, n, lost, **options)
        async with await opened(records) as slow, await opened(MemoryRecords(contents, **options)) as fast:
            first = asyncio.ensure_future(slow.put_document("a", "c", "k", "slow" * 100, expect=ABSENT))
            held = asyncio.ensure_future(records.reached.wait())
            await asyncio.wait([first, held], return_when=asyncio.FIRST_COMPLETED)
            held.cancel()
            is_over = first.done()
            second = asyncio.ensure_future(fast.put_document("a", "c", "k", "fast", expect=ABSENT))
            await asyncio.wait([second])
            records.let_go.set()
            results = await asyncio.gather(first, second, return_exceptions=True)
            (version,) = [result for result in results if isinstance(result, str)]
            (conflict,) = [result for result in results if isinstance(result, ConflictError)]
            assert conflict.version == version
            document = await fast.load_document("a", "c", "k")
            assert document is not None
            assert document.version == version
            winner = results.index(version)
            assert document.value == ["slow" * 100, "fast"][winner]
            assert (await fast.check_consistency()).issues == ()
            winners.add(winner)
        if is_over:
            break
    assert winners == {0, 1}


@pytest.mark.filterwarnings("ignore:.*was not closed:ResourceWarning")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
async def test_a_writer_that_died_put_its_document_or_not(options: dict[str, Any]) -> None:
    """Killed at any of its calls: the next put if absent wins exactly where the killed one does not."""
    winners = set[str]()
    for n in range(1000):
        contents = Contents()
        records = StopsAt(contents, n, **options)
        dying = await opened(records)
        first = asyncio.ensure_future(dying.put_document("a", "c", "k", "dead" * 100, expect=ABSENT))
        stopped = asyncio.ensure_future(records.stopped.wait())
        await asyncio.wait([first, stopped], return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        is_over = first.done()
        async with await opened(MemoryRecords(contents, **options)) as store:
            try:
                version = await store.put_document("a", "c", "k", "alive", expect=ABSENT)
            except ConflictError as exc:
                version = exc.version
            document = await store.load_document("a", "c", "k")
            assert document is not None
            assert document.version == version
            winners.add(document.value)
            await store.put_document("a", "c", "k", "next", expect=version)
            assert (await store.check_consistency()).issues == ()
        await abandon()
        dying._context.closing.set()
        if is_over:
            break
    assert winners == {"dead" * 100, "alive"}


class Counters(Run):
    """Three processes that count in one document and its twin and remove them now and then, a reader, a sweeper."""

    async def counts(self, store: EngineStore, engine: RecordEngine) -> None:
        for _ in range(6):
            try:
                found = await store.load_document("a", "c", "n")
                value, version = (0, ABSENT) if found is None else (int(found.value.rstrip(".")), found.version)
                if value > 3 and self.world.chance(0.5):
                    await store.write_documents("a", [DeleteDocument("c", "n", version), DeleteDocument("c", "twin")])
                else:
                    text = f"{value + 1}".ljust(self.world.rng.choice([3, 200]), ".")
                    puts = [PutDocument("c", "n", text, version), PutDocument("c", "twin", text)]
                    await store.write_documents("a", puts)
            except KodeError as exc:
                if not exc.retry:
                    raise

    async def lists(self, store: EngineStore, engine: RecordEngine) -> None:
        for _ in range(8):
            began = len(self.world.log) - 1
            try:
                seen = [doc.value async for doc in store.iter_documents("a", "c")]
            except KodeError:
                continue
            if seen not in self.counted()[began:]:
                self.problems.append(f"torn: {seen} is none of {self.counted()[began:]}")

    def counted(self) -> list[list[Any]]:
        """The documents of every revision."""
        texts = [[text for key, text in value.items() if key.startswith("o/")] for value in self.world.log]
        return [[msgspec.json.decode(text, type=StoredDocument).value for text in some] for some in texts]

    async def all(self) -> None:
        acts = [self.counts, self.counts, self.counts, self.lists, self.sweeps]
        lives = [self.world.rng.choice([0.1, 0.3, 1.0, 60.0]) for _ in acts]
        await asyncio.gather(*(self.process(act, life) for act, life in zip(acts, lives, strict=True)))
        await asyncio.gather(*self.world.jobs, *(call() for call in self.world.late))
        self.world.lose_member()
        values = [int(some[0].rstrip(".")) if some else 0 for some in self.counted()]
        steps = {(one, other) for one, other in pairwise(values) if one != other}
        self.problems += [f"lost: {one} became {other}" for one, other in steps if other not in (0, one + 1)]
        store, _ = await self.store(MemoryRecords(self.world.contents, **self.options))
        async with store:
            seen = [doc.value async for doc in store.iter_documents("a", "c")]
        if seen != self.counted()[-1]:
            self.problems.append(f"lost: {seen} is seen, and the agent has {self.counted()[-1]}")
        self.most = max(values)

    most = 0


@pytest.mark.parametrize("options", SCHEDULED.values(), ids=SCHEDULED)
def test_counters_in_schedules_drawn_by_lot(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls are late, done twice, or die with their process; answers are lost: each step follows the one it demands."""
    reached = 0
    for seed in range(40):
        run = Counters(seed, options)
        assert drawn(run, monkeypatch) == [], f"seed {seed}, after {run.world.calls} calls"
        reached = max(reached, run.most)
    assert reached >= 4
