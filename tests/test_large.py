"""Large values and long lists: the same text as in one piece, and other tasks get their turn meanwhile."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable
from typing import Any

import pytest
from hypothesis import given, settings
from kode_conformance.context import difference
from kode_conformance.values import samples
from kode_conformance.values.payloads import PAYLOADS, Payload

from kode_core import (
    AgentEvent,
    AgentInfo,
    Bookmark,
    CorruptRecordError,
    InvalidValueError,
    Message,
    Record,
    Snapshot,
    TextBlock,
    Timeline,
    TodoItem,
    TodoSnapshot,
    ToolCallApproval,
    ToolCallRecord,
    ToolResultBlock,
    ToolUseBlock,
    UnknownBlock,
    create_extended_store,
    jsonslices,
    jsonvalue,
    large,
    metadata,
    pace,
    shapes,
    sink,
)
from kode_core.codec import Body, decode, digest, encode
from kode_core.fingerprint import still_has
from kode_core.jsonvalue import MAX_DEPTH
from kode_core.large import decode_in_slices, decode_list_in_slices, decode_run_in_slices, is_unchanged, write
from kode_core.metadata import index_of_metadata, metadata_index
from kode_core.pace import Pace
from tests.test_codec import any_json

ROWS = {"rows": [{"i": i, "text": "x" * 50} for i in range(20_000)]}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything but the smallest is large."""
    make_tiny(monkeypatch)


def make_tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (jsonvalue, jsonslices, metadata, sink):
        monkeypatch.setattr(module, "NODES", 2)
    monkeypatch.setattr(shapes, "MANY", 2)
    monkeypatch.setattr(jsonvalue, "LONG", 3)
    monkeypatch.setattr(shapes, "LONG", 3)
    monkeypatch.setattr(jsonvalue, "_FEW", 0)
    monkeypatch.setattr(jsonvalue, "_CHARS_A_NODE", 2)
    monkeypatch.setattr(jsonslices, "_CHARS", 3)
    monkeypatch.setattr(jsonslices, "_BATCH", 8)
    monkeypatch.setattr(large, "LARGE_TEXT", 8)
    monkeypatch.setattr(large, "_LONG_TEXT", 16)


def records_with(value: Any) -> list[Record]:
    """Records that hold *value* in one place each."""
    message = Message("user", [TextBlock("some text"), ToolResultBlock("c", value)])
    records: list[Record] = [
        message,
        Message("user", [UnknownBlock({"type": "later", "x": value})]),
        Message("user", [TextBlock("a")] * 4, metadata={"m": value, "n": 1}),
        Message("user", [ToolUseBlock("c", "t", 1, extra={"x": value})], extra={"y": [1, 2, 3]}),
        ToolCallRecord(id="c", name="t", input=value, result={"a": "long enough"}, created_at=1, updated_at=1),
        Timeline(1, Bookmark(1, 1), AgentEvent("monitor", "x", {"v": value, "w": 1})),
        AgentInfo(agent_id="a", template_id="t", created_at=1, lineage=["a", "b", "c"], metadata={"v": value}),
        Snapshot(id="s", messages=[*samples.messages(3), message], created_at=1),
    ]
    if isinstance(value, str):
        todos = [TodoItem(id=str(i), title=value, created_at=1, updated_at=1) for i in range(5)]
        records += [Message("user", [TextBlock(value)]), TodoSnapshot(todos=todos, updated_at=1)]
    return records


async def there_and_back(record: Record) -> None:
    """A record in slices is what it is in one piece, or is refused in the same words."""
    cls = type(record)
    try:
        whole: Body | str = encode(cls, record, "r")
    except InvalidValueError as exc:
        whole = str(exc)
    try:
        written = await write(cls, record, "r", Pace())
    except InvalidValueError as exc:
        assert str(exc) == whole
        return
    assert isinstance(whole, Body)
    assert written.body == whole or "\\ud" in whole.text
    assert difference(await decode_in_slices(cls, written.body, "r", Pace()), record) is None
    assert difference(decode(cls, written.body, "r"), record) is None
    if written.proof is not None and written.proof.digest is not None:
        parts = written.proof.parts
        assert parts is None or still_has(parts, written.proof.digest)
        assert parts is not None or await is_unchanged(cls, record, written.proof.digest, Pace())


@settings(max_examples=40)
@given(any_json)
def test_slices_make_the_same_text(value: Any) -> None:
    """Whatever the value and wherever it stands, its text in slices is that in one piece, and is read alike."""
    with pytest.MonkeyPatch.context() as patch:
        make_tiny(patch)
        for record in records_with(value):
            asyncio.run(there_and_back(record))


@pytest.mark.parametrize("payload", PAYLOADS, ids=lambda p: p.name)
def test_hostile_values_in_slices(payload: Payload, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the hostile values is stored in slices as in one piece, or is refused in the same words."""
    if jsonvalue.weight(payload.value) > jsonvalue.NODES:  # it is cut anyway
        asyncio.run(there_and_back(ToolCallRecord(id="c", name="t", input=payload.value, created_at=1, updated_at=1)))
        return
    make_tiny(monkeypatch)
    for value in (payload.value, [1, 2, {"deep": [0, payload.value]}, 3]):
        for record in records_with(value):
            asyncio.run(there_and_back(record))


@settings(max_examples=40)
@given(any_json)
def test_metadata_is_found_alike(value: Any) -> None:
    """The index of metadata is the same in slices."""
    try:
        text = encode(AgentInfo, AgentInfo(agent_id="a", template_id="t", metadata={"k": value}), "i").text
    except InvalidValueError:
        return
    whole = metadata_index({"k": value})
    with pytest.MonkeyPatch.context() as patch:
        make_tiny(patch)
        assert asyncio.run(index_of_metadata({"k": value}, "i", Pace())) == whole or "\\ud" in text


async def test_what_is_deep_or_endless_is_refused_in_slices(tiny: None) -> None:
    """The limit of depth is the same in slices; a value that holds itself is refused."""
    for depth in (MAX_DEPTH, MAX_DEPTH + 1):
        value: Any = ["end"]
        for _ in range(depth - 1):
            value = [value, 1, 2]
        await there_and_back(ToolCallRecord(id="c", name="t", input=value, created_at=1, updated_at=1))
    endless: dict[str, Any] = {"a": 1, "b": 2, "c": 3}
    endless["d"] = endless
    with pytest.raises(InvalidValueError, match="deeper than 100"):
        await write(ToolCallRecord, ToolCallRecord(id="c", name="t", input=endless), "r", Pace())


async def test_damage_to_large_text_is_found(tiny: None) -> None:
    """Large text that is not what was written raises CorruptRecordError; so does text that is no such record."""
    record = Message("user", [ToolResultBlock("c", ["some", "thing", "long"])])
    body = (await write(Message, record, "m", Pace())).body
    for text in (body.text.replace("long", "lung"), body.text[:-1], body.text + "}"):
        with pytest.raises(CorruptRecordError, match="the message"):
            await decode_in_slices(Message, Body(text, body.digest), "the message", Pace())
    for text in ('{"role":"user","content":[{"type":"text"}]}', '["something else"]', '{"role":"user","content":[1,2,'):
        with pytest.raises(CorruptRecordError, match="the message"):
            await decode_in_slices(Message, Body(text, digest(text.encode())), "the message", Pace())


async def test_a_run_gives_what_its_records_give_alone() -> None:
    """Records decoded in one go are those decoded one after the other, also such as this version does not know."""
    records = [Message.user(f"m{i}") for i in range(5)]
    records[2] = Message("user", [UnknownBlock({"type": "hologram", "x": [1]})])
    records[4] = Message("user", "x", extra={"later": True})
    for some in (records, records[:2], records[:1]):
        bodies = [encode(Message, record, "m") for record in some]
        read = await decode_run_in_slices(Message, bodies, str, Pace())
        assert difference(read, some) is None
        assert difference(read, [decode(Message, body, "m") for body in bodies]) is None


@pytest.mark.parametrize(
    "text", ['{"role":"a","content":[]},{"role":"b","content":[]}', '{"role":"a","content":[]', "[]"]
)
async def test_damage_in_a_run_is_told_of_its_record(text: str) -> None:
    """A body that is no record, or two, or has another digest, fails with its own name, whatever stands around it."""
    sound = encode(Message, Message.user("x"), "m")
    for body in (Body(text, digest(text.encode())), Body(sound.text, bytes(16))):
        with pytest.raises(CorruptRecordError, match="^message 1 "):
            await decode_run_in_slices(Message, [sound, body, sound], "message {} ".format, Pace())


@pytest.mark.parametrize("sliced", [False, True])
@pytest.mark.parametrize("cls", [Message, AgentInfo, Timeline, TodoSnapshot])
@pytest.mark.parametrize("text", ["[" * 50_000, '{"metadata":' + '{"a":' * 50_000, "[" * 5_000 + "]" * 5_000])
async def test_text_without_end_is_damage(
    text: str, cls: type[Record], sliced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text that nests too deeply for the stack, as another program may write it, is damage by the record's name."""
    if sliced:
        make_tiny(monkeypatch)
    body = Body(text, digest(text.encode()))
    with pytest.raises(CorruptRecordError, match=r"^message 1: .* deeply"):
        await decode_in_slices(cls, body, "message 1", Pace())
    with pytest.raises(CorruptRecordError, match=r"^message 1: .* deeply"):
        await decode_list_in_slices(cls, body, "message 1", Pace())
    with pytest.raises(CorruptRecordError, match=r"^message 0: .* deeply"):
        await decode_run_in_slices(cls, [body, body], "message {}".format, Pace())


def test_a_stack_at_its_end_is_no_damage() -> None:
    """A decoder without enough stack raises RecursionError, and does not call the data damaged."""
    value: Any = "end"
    for _ in range(90):
        value = [value]
    body = encode(Message, Message("user", "[[[[x", metadata={"deep": value}), "m")

    def call(depth: int) -> None:
        if depth:
            return call(depth - 1)
        decode(Message, body, "m")
        return None

    call(0)
    met = set()
    for depth in range(sys.getrecursionlimit() - 250, sys.getrecursionlimit()):
        try:
            call(depth)
        except RecursionError:
            met.add("stack")
    assert met == {"stack"}


@pytest.mark.parametrize("change", ["item", "key", "type", "order", "nan", "deep"])
async def test_changes_inside_large_values_are_found(change: str, tiny: None) -> None:
    """A change in place, anywhere in a large value, is found, and what was changed back is found unchanged."""
    value: dict[str, Any] = {"rows": [{"i": i, "t": "text"} for i in range(6)], "z": 1}
    record = Message("user", [ToolResultBlock("c", value)], metadata={"m": {"n": [1.0]}})
    proof = (await write(Message, record, "m", Pace())).proof
    assert proof is not None and proof.digest is not None and proof.parts is None
    rows: list[Any] = value["rows"]
    before = [dict(row) for row in rows]
    if change == "item":
        rows[4]["t"] = "taxt"
    elif change == "key":
        rows[4] = {"i": 4, 5: "text"}
    elif change == "type":
        rows[1]["i"] = True
    elif change == "order":
        rows[0] = {"t": "text", "i": 0}
    elif change == "nan":
        rows[3]["i"] = float("nan")
    else:
        record.metadata["m"]["n"][0] = 1  # type: ignore[index]
    assert not await is_unchanged(Message, record, proof.digest, Pace())
    rows[:] = before
    record.metadata["m"]["n"][0] = 1.0  # type: ignore[index]
    assert await is_unchanged(Message, record, proof.digest, Pace())


async def test_a_value_that_changes_while_it_is_written_is_found_changed() -> None:
    """What changes between two slices is stored as it was or as it is, and the next save writes what it became."""
    rows = [{"i": i, "text": "x" * 50} for i in range(20_000)]
    talk = [Message("user", [ToolResultBlock("c", {"rows": rows})])]
    async with create_extended_store("memory:") as store:
        save = asyncio.ensure_future(store.save_messages("a", talk))
        while not save.done():
            await asyncio.sleep(0)
            for row in rows[:: len(rows) // 7]:
                row["i"] = -1 - abs(int(str(row["i"])))
        await save
        await store.save_messages("a", talk)
        assert await store.load_messages("a") == talk


# --- The event loop ---------------------------------------------------------------------------------------------------


async def turns_during(call: Awaitable[object]) -> int:
    """How many turns another task had while *call* was under way."""
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counter = asyncio.ensure_future(count())
    await asyncio.sleep(0)
    turns = 0
    await call
    counter.cancel()
    return turns


async def test_other_tasks_get_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others get many turns while one call writes or reads a long list or a large value, of whatever kind."""
    monkeypatch.setattr(pace, "_SLICE_S", 0.0)  # after every step, so that the count is of steps and not of time
    talk = [Message("assistant", [ToolUseBlock(f"c{i}", "t", {"n": i, "x": "y" * 50})]) for i in range(5_000)]
    calls = [ToolCallRecord(id=f"c{i}", name="t", input={"n": i}) for i in range(5_000)]
    big = {"v": ROWS}
    event = Timeline(1, Bookmark(1, 1), AgentEvent("monitor", "x", big))

    async with create_extended_store("memory:") as store:

        async def read() -> None:
            assert [event async for event in store.read_events("e")] == [event]

        await store.save_info("p", AgentInfo(agent_id="p", template_id="t"))
        slow: list[tuple[str, Awaitable[object]]] = [
            ("save", store.save_messages("a", talk)),
            ("edit", store.save_messages("a", [*talk[1:], talk[0]])),
            ("append", store.append_messages("a", talk)),
            ("load", store.load_messages("a")),
            ("upsert", store.upsert_tool_call_records("a", calls)),
            ("load calls", store.load_tool_call_records("a")),
            ("snapshot", store.save_snapshot("a", Snapshot(id="s", messages=talk))),
            ("list snapshots", store.list_snapshots("a")),
            ("query", store.query_messages(limit=10_000)),
            ("message", store.append_messages("b", [Message("user", [ToolResultBlock("c", ROWS)])])),
            ("load message", store.load_messages("b")),
            ("call", store.upsert_tool_call_records("b", [ToolCallRecord(id="c", name="t", result=ROWS)])),
            ("metadata", store.append_messages("d", [Message("user", "x", metadata=big)])),  # type: ignore[arg-type]
            ("event", store.append_event("e", event)),
            ("read events", read()),
            ("todos", store.save_todos("b", TodoSnapshot(todos=[TodoItem(id="i", title="t", extra=big)]))),
            ("load todos", store.load_todos("b")),
            ("info", store.save_info("b", AgentInfo(agent_id="b", template_id="t", metadata=big))),
            ("load info", store.load_info("b")),
            ("fork", store.batch_fork("p", 500)),
        ]
        found = {name: await turns_during(call) for name, call in slow}
    assert min(found.values()) >= 10, found


async def test_small_calls_do_not_wait_for_others() -> None:
    """A small save is written at once: it is not put off by turns of other tasks."""
    sent: list[str] = []
    async with create_extended_store("memory:") as store:
        await store.exists("a")

        async def save(name: str) -> None:
            await store.append_messages("a", [Message.user(name)])
            sent.append(name)

        await asyncio.gather(*(save(str(i)) for i in range(20)))
        assert [message.text for message in await store.load_messages("a")] == [str(i) for i in range(20)]


async def test_long_numbers_in_several_fields_are_written_in_one_piece() -> None:
    """A number cannot be cut, also where the fields before it have used up what one piece may hold."""
    number = 10**4299
    call = samples.tool_call(
        input=number, result=-number, approval=ToolCallApproval(meta={"n": number}), extra={"n": 1}
    )
    blocks = [ToolUseBlock(f"c{i}", "t", number) for i in range(5)]
    for record in (call, Message("assistant", blocks)):
        written = await write(type(record), record, "a record", Pace())
        assert decode(type(record), written.body, "a record") == record
