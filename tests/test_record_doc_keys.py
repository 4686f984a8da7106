"""Documents of the caller's own in the record engine: the keys of their items, and ranges of them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kode_conformance.suite.record_doc_tests import TRICKY_KEYS
from kode_conformance.suite.record_tests import Held

from kode_core import DeleteDocument, PutDocument
from kode_core.batch import DocSpan
from kode_core.engines.record.doc_keys import escaped, own_key, own_keys, rest_of
from kode_core.engines.record.engine import RecordEngine
from kode_core.engines.record.store import Item, ItemsPlace, KeyRange
from kode_core.store import EngineStore
from tests.memory_records import Contents, MemoryRecords
from tests.test_record_engine import OPTIONS, abandon, opened

# --- Keys -------------------------------------------------------------------------------------------------------------

COLLECTIONS = st.text("azAZ09._-", min_size=1, max_size=64) | st.sampled_from(["c", "c-", "c.", "c" * 64, "~messages"])
KEYS = st.sampled_from(TRICKY_KEYS) | st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=100)
OWN_KEYS = st.builds("{}/{}".format, COLLECTIONS, KEYS)
ANY_TEXT = st.text("c/~m{|}! -é\0😀\ud800\udfff\x7f", max_size=600) | st.text(max_size=80)
LONGER = (st.builds("{}{}".format, stem, ANY_TEXT) for stem in (OWN_KEYS, COLLECTIONS))
BOUNDS = st.one_of(OWN_KEYS, ANY_TEXT, *LONGER)


def test_an_escape_keeps_the_order_of_all_bytes() -> None:
    escapes = [escaped(bytes([byte])) for byte in range(256)]
    assert escapes == sorted(set(escapes))
    assert {len(escape) for escape in escapes} == {1, 2}
    assert all("!" <= char < "~" and char != "/" for escape in escapes for char in escape)
    assert not any(one != other and other.startswith(one) for one in escapes for other in escapes)


@given(st.binary(max_size=8), st.binary(max_size=8))
def test_escapes_stand_in_the_order_of_bytes(one: bytes, other: bytes) -> None:
    assert (escaped(one) < escaped(other)) == (one < other)
    assert escaped(other).startswith(escaped(one)) == other.startswith(one)


@given(OWN_KEYS, BOUNDS, BOUNDS)
def test_bounds_may_be_any_texts(key: str, start: str, stop: str) -> None:
    """A range has exactly the keys from its start, inclusive, to its stop, exclusive."""
    keys, item_key = own_keys(start, stop), own_key(key)
    assert (keys.first <= item_key) == (start <= key)
    assert (item_key <= keys.last) == (key < stop)
    assert keys.first <= item_key <= own_keys(start, key + "\0").last or key < start
    assert max(map(len, (item_key, keys.first, keys.last))) <= 900
    assert item_key.isascii()


@given(st.lists(OWN_KEYS, min_size=2, max_size=2, unique=True), st.booleans())
def test_the_rest_of_a_range_begins_after_the_last_key(pair: list[str], descending: bool) -> None:
    one, other = sorted(pair, reverse=descending)
    first, last = rest_of(own_keys(stop="\x7f", descending=descending), own_key(one))
    assert first <= own_key(other) <= last
    assert not first <= own_key(one) <= last


# --- Ranges -----------------------------------------------------------------------------------------------------------


class Counting(MemoryRecords):
    """Counts the calls that read items, and the items that they read with texts."""

    reads = texts = looks = 0

    async def items(self, place: ItemsPlace, keys: KeyRange) -> list[Item]:
        found = await super().items(place, keys)
        self.reads += 1
        self.texts += sum(not item.is_removed for item in found) if keys.bodies else 0
        self.looks += len(found)
        return found


@pytest.mark.parametrize("descending", [False, True])
async def test_a_long_run_of_removed_documents_costs_no_texts(descending: bool) -> None:
    """A page behind 20,000 removed documents takes few calls, and reads no more texts than it needs."""
    records = Counting(Contents(), inline_bytes=10**8, part_bytes=10**8)
    engine = RecordEngine(records)
    store = await EngineStore(lambda: _ready(engine)).open()
    async with store:
        keys = [f"{n:05}" for n in range(20_200)]
        left = {*keys[:100], *keys[-100:]}
        await store.write_documents("a", [PutDocument("c", key, 1) for key in keys])
        await store.write_documents("a", [DeleteDocument("c", key) for key in keys if key not in left])
        records.reads = records.texts = records.looks = 0
        start, stop = ("c/00200", "c/~") if not descending else ("c/", "c/20000")
        found = await engine.docs_in("a", DocSpan(start=start, stop=stop, limit=10, descending=descending))
        wanted = keys[:100][-10:][::-1] if descending else keys[-100:][:10]
        assert [doc.key for doc in found] == [f"c/{key}" for key in wanted]
        assert records.reads < 35
        assert records.texts < 40
        records.reads = 0
        assert (await engine.stats("a")).total_documents == 200
        assert records.reads < 30


async def _ready(engine: RecordEngine) -> RecordEngine:
    return engine


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("descending", [False, True])
async def test_ranges_have_pending_changes(descending: bool, options: dict[str, Any]) -> None:
    """A writer that died after its swap: readers see its puts and deletes, on whatever page they are."""
    contents = Contents()
    async with await opened(MemoryRecords(contents, **options)) as store:
        await store.write_documents("a", [PutDocument("c", f"{n:02}", n) for n in range(0, 40, 2)])
    records = MemoryRecords(contents, **{**options, "swap_items": 0})
    dying = await opened(Held(records, "apply"))
    writes = [PutDocument("c", f"{n:02}", n) for n in range(1, 40, 4)]
    writing = asyncio.ensure_future(
        dying.write_documents("a", [*writes, *(DeleteDocument("c", f"{n:02}") for n in range(0, 40, 8))])
    )
    reader = await opened(MemoryRecords(contents, **options))
    wanted = sorted({*range(0, 40, 2), *range(1, 40, 4)} - {*range(0, 40, 8)}, reverse=descending)
    while len(await reader.list_document_keys("a", "c", limit=100)) != len(wanted):
        await asyncio.sleep(0)
    for limit in (1, 2, 3, 7, 24, 25, 26):
        seen, cursor = list[int](), None
        while True:
            page = await reader.list_document_keys("a", "c", limit=limit, reverse=descending, cursor=cursor)
            seen, cursor = [*seen, *map(int, page)], page.next_cursor
            if cursor is None:
                break
        assert seen == wanted
    assert not writing.done()
    await reader.close()
    await abandon()
    dying._context.closing.set()
