"""Records to text and back: exact, or refused with the path."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kode_conformance.context import difference
from kode_conformance.values.payloads import PAYLOADS, Payload

from kode_core import (
    AgentEvent,
    AgentInfo,
    Bookmark,
    CorruptRecordError,
    HistoryWindow,
    InvalidArgumentError,
    InvalidValueError,
    MediaCacheRecord,
    Message,
    Record,
    Snapshot,
    StoredEvent,
    StoredMessage,
    StoredToolCall,
    TextBlock,
    Timeline,
    ToolCallRecord,
    ToolUseBlock,
    UnknownBlock,
    from_dict,
    now_ms,
    to_dict,
)
from kode_core.codec import Body, decode, decode_list, digest, encode, encode_list
from kode_core.jsonvalue import MAX_DEPTH, MAX_INT_DIGITS, decode_json, encode_json


@pytest.mark.parametrize("payload", PAYLOADS, ids=lambda p: p.name)
def test_hostile_values(payload: Payload) -> None:
    """Each of the 84 hostile values comes back exactly, or is refused with the record and the path."""
    call = ToolCallRecord(id="c", name="t", result=payload.value, created_at=1, updated_at=1)
    if payload.is_json:
        body = encode(ToolCallRecord, call, "the call")
        json.loads(body.text)
        assert difference(decode(ToolCallRecord, body, "x").result, payload.value) is None
    else:
        with pytest.raises(InvalidValueError) as caught:
            encode(ToolCallRecord, call, "the call")
        assert caught.value.record == "the call"
        assert caught.value.path.startswith("$.result")
        assert len(str(caught.value)) < 500


def test_there_are_84_hostile_values() -> None:
    """The corpus is whole."""
    assert len({payload.name for payload in PAYLOADS}) == 84


_hostile_text = st.text(alphabet=st.sampled_from('ab\0"\\\n\ud800\udc00é😀\u2028'), max_size=6)
_leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([0, -0.0, 1.0, "", 2**63, 5e-324, 1e22])
    | _hostile_text
)
any_json = st.recursive(
    _leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_hostile_text, inner, max_size=4)
)


@given(any_json)
def test_any_json_is_exact_or_refused(value: Any) -> None:
    """Whatever the value, what comes back is the same, type by type; only split surrogate pairs are refused."""
    try:
        text = encode_json(value, "value")
    except InvalidValueError as exc:
        assert "surrogates" in str(exc)
        assert "\ud800\udc00" in json.loads(json.dumps(str(value))) or "\\ud800\\udc00" in ascii(value)
    else:
        assert difference(decode_json(text), value) is None


@given(any_json, st.sampled_from([float("nan"), {1}, b"x", (1,), 1j, object()]))
def test_one_bad_value_anywhere_is_found(value: Any, bad: Any) -> None:
    """A value that is no JSON is refused however it is wrapped, and the path leads to it."""
    with pytest.raises(InvalidValueError) as caught:
        encode_json({"deep": [value, {"er": [bad]}]}, "value")
    assert "surrogates" in str(caught.value) or caught.value.path == "$.deep[1].er[0]"


def test_what_a_subclass_adds_is_not_dropped() -> None:
    """A record whose class adds a field is refused with its name, also inside another record."""

    class MyMessage(Message, frozen=True):
        score: int = 0

    class MyText(TextBlock, frozen=True):
        lang: str = "en"

    class MyBookmark(Bookmark, frozen=True):
        node: str = "n1"

    with pytest.raises(InvalidValueError, match="MyMessage, a subclass"):
        encode(Message, MyMessage("user", "x", score=5), "m")  # type: ignore[arg-type]
    with pytest.raises(InvalidValueError, match=r"\$\.content\[0\].*MyText"):
        encode(Message, Message("user", [MyText("x")]), "m")
    with pytest.raises(InvalidValueError, match=r"\$\.bookmark.*MyBookmark, a subclass"):
        encode(Timeline, Timeline(1, MyBookmark(1, 1), AgentEvent("monitor", "x")), "e")
    stored = StoredMessage("user", [TextBlock("x")], agent_id="a", position=0, created_at=1)
    assert encode(Message, stored, "m") == encode(Message, Message.user("x"), "m")


def test_stored_records_equal_what_was_saved() -> None:
    """And ``!=`` is the opposite of ``==``, on both sides."""
    message, call = Message.user("x"), ToolCallRecord(id="c", name="n", created_at=1)
    event = Timeline(1, Bookmark(1, 1), AgentEvent("monitor", "x"))
    stored: list[tuple[Record, Record, Record]] = [
        (message, *(StoredMessage("user", "x", agent_id="a", position=n, created_at=1) for n in range(2))),
        (call, *(StoredToolCall(id="c", name="n", created_at=1, agent_id="a", position=n) for n in range(2))),
        (event, *(StoredEvent(1, event.bookmark, event.event, offset=n) for n in range(2))),
    ]
    for saved, one, other in stored:
        again = copy.copy(one)
        assert all([one == saved, saved == one, one == again])
        assert not any([one != saved, saved != one, one != again])
        assert all([one != other, other != one, one != 1])
        assert not any([one == other, one == 1])


def test_limits_are_exact() -> None:
    """The deepest nesting and the longest integer that are allowed are stored; one more is refused."""

    def nested(depth: int) -> Any:
        value: Any = 1
        for _ in range(depth):
            value = [value]
        return value

    assert decode_json(encode_json(nested(MAX_DEPTH), "v")) == nested(MAX_DEPTH)
    with pytest.raises(InvalidValueError, match="deeper than 100"):
        encode_json(nested(MAX_DEPTH + 1), "v")
    largest = 10**MAX_INT_DIGITS - 1
    assert decode_json(encode_json([largest, -largest], "v")) == [largest, -largest]
    with pytest.raises(InvalidValueError, match="4300 digits"):
        encode_json(largest + 1, "v")


@pytest.mark.parametrize("width", [1, 2, 60])
def test_depth_of_wide_values(width: int) -> None:
    """The limit of depth holds for values of many brackets, too, wherever the deepest place is."""

    def nested(depth: int) -> Any:
        value: Any = {}
        for i in range(depth - 1):
            value = {"a": [], "b": value, "c": {}} if i % 2 else [[] for _ in range(width)] + [value, 1]
        return value

    assert decode_json(encode_json(nested(MAX_DEPTH), "v")) == nested(MAX_DEPTH)
    with pytest.raises(InvalidValueError, match="deeper than 100"):
        encode_json(nested(MAX_DEPTH + 1), "v")


def test_a_value_that_contains_itself_is_refused() -> None:
    """A list inside itself is too deep, not an endless loop."""
    value: list[Any] = []
    value.append(value)
    with pytest.raises(InvalidValueError, match="deeper"):
        encode_json(value, "v")


def test_depth_is_of_the_value_also_with_surrogates() -> None:
    """A value of the allowed depth is stored wherever it stands, with a lone surrogate inside too."""
    value: Any = "\ud800"
    for _ in range(MAX_DEPTH - 1):
        value = [value]
    message = Message("assistant", [ToolUseBlock("c", "t", {"v": value})])
    assert decode(Message, encode(Message, message, "m"), "m") == message


@pytest.mark.parametrize(
    ("record", "path"),
    [
        (Message(5, [TextBlock("x")]), "$.role"),  # type: ignore[arg-type]
        (Message("user", [TextBlock(b"x")]), "$.content[0].text"),  # type: ignore[arg-type]
        (Message("user", [TextBlock("x"), "y"]), "$.content[1]"),  # type: ignore[list-item]
        (Message("user", {"type": "text"}), "$.content"),  # type: ignore[arg-type]
        (Message("user", [TextBlock("x", extra={"text": 1})]), "$.content[0]"),
        (Message("user", [UnknownBlock({"no": "type"})]), "$.content[0]"),
        (Message("user", [TextBlock("x")], metadata=[1]), "$.metadata"),  # type: ignore[arg-type]
        (ToolCallRecord(id="a", name="b", started_at=True), "$.startedAt"),
        (ToolCallRecord(id="a", name="b", started_at=1.5), "$.startedAt"),  # type: ignore[arg-type]
        (ToolCallRecord(id="a", name="b", duration_ms=float("inf")), "$.durationMs"),
        (ToolCallRecord(id="a", name="b", audit_trail=[1]), "$.auditTrail[0]"),  # type: ignore[list-item]
        (ToolCallRecord(id="a", name="b", approval=None), "$.approval"),  # type: ignore[arg-type]
        (Timeline(0, Bookmark(0, 0), AgentEvent("sideways", "x")), "$.event.channel"),  # type: ignore[arg-type]
        (Timeline(0, Bookmark("0", 0), AgentEvent("monitor", "x")), "$.bookmark.seq"),  # type: ignore[arg-type]
        (Timeline(0, Bookmark(0, 0), AgentEvent("monitor", "x", {"type": "y"})), "$.event"),
        (Timeline(10**5000, Bookmark(0, 0), AgentEvent("monitor", "x")), "$.cursor"),
        (AgentInfo(agent_id="a", template_id="t", lineage=["a", 5]), "$.lineage[1]"),  # type: ignore[list-item]
    ],
)
def test_wrong_types_are_named(record: Record, path: str) -> None:
    """A field of the wrong type is refused with the path to it."""
    with pytest.raises(InvalidValueError) as caught:
        encode(type(record), record, "the record")
    assert caught.value.path == path


def test_the_wire_is_the_sdks() -> None:
    """Stored JSON has the field names and the shape of the KODE SDK."""
    message = Message("assistant", [TextBlock("a"), ToolUseBlock("c", "bash", {"x": None})])
    assert encode(Message, message, "m").text == (
        '{"role":"assistant","content":[{"type":"text","text":"a"},'
        '{"type":"tool_use","id":"c","name":"bash","input":{"x":null}}]}'
    )
    event = Timeline(3, Bookmark(3, 9), AgentEvent("progress", "text_chunk", {"step": 0, "delta": "hi"}))
    assert encode(Timeline, event, "e").text == (
        '{"cursor":3,"bookmark":{"seq":3,"timestamp":9},'
        '"event":{"channel":"progress","type":"text_chunk","step":0,"delta":"hi"}}'
    )
    info = AgentInfo(agent_id="a", template_id="t", created_at=1)
    assert to_dict(info) == {
        "agentId": "a",
        "templateId": "t",
        "createdAt": 1,
        "lineage": [],
        "configVersion": "",
        "messageCount": 0,
        "lastSfpIndex": -1,
        "metadata": {},
    }


def test_dicts_of_the_sdk_become_records() -> None:
    """from_dict reads the SDK's shape, keeps what it does not know, and says what does not fit."""
    wire = {"role": "user", "content": [{"type": "text", "text": "x", "new": 1}, {"type": "later", "y": 2}], "z": [0]}
    message = from_dict(Message, wire, "m")
    assert message.extra == {"z": [0]}
    assert message.content[1] == UnknownBlock({"type": "later", "y": 2})
    assert to_dict(message) == wire
    with pytest.raises(InvalidValueError, match=r"m: \$: the field 'role' is missing"):
        from_dict(Message, {"content": []}, "m")
    with pytest.raises(InvalidValueError, match=r"\$\.content\[0\]\.text"):
        from_dict(Message, {"role": "user", "content": [{"type": "text", "text": 5}]}, "m")


def test_changed_text_is_corrupt() -> None:
    """Text that is not what was written raises CorruptRecordError with the record's name, and does not quote it."""
    body = encode(Message, Message.user("secret"), "m")
    for text in (body.text.replace("secret", "public"), body.text[:-1], ""):
        with pytest.raises(CorruptRecordError, match="message 3 of agent 'a'") as caught:
            decode(Message, Body(text, body.digest), "message 3 of agent 'a'")
        assert "secret" not in str(caught.value)
    for text in ("{", '{"role":"user"}', "[]", '{"role":"user","content":NaN}'):
        with pytest.raises(CorruptRecordError):
            decode(Message, Body(text, digest(text.encode())), "m")


def test_lists_are_one_body() -> None:
    """A list of records is stored as one body, and an error names the record in it."""
    media = [MediaCacheRecord(key=k, provider="p", mime_type="m", size_bytes=1, created_at=1) for k in "ab"]
    assert decode_list(MediaCacheRecord, encode_list(MediaCacheRecord, media, "media"), "media") == media
    with pytest.raises(InvalidValueError, match=r"\$\[1\]\.sizeBytes"):
        encode_list(MediaCacheRecord, [media[0], media[1].replace(size_bytes="1")], "media")


def test_records_in_records_keep_what_is_unknown() -> None:
    """Unknown fields and blocks survive inside windows and snapshots, too."""
    odd = Message("user", [UnknownBlock({"type": "later"}), TextBlock("x", extra={"a": 1})], extra={"b": None})
    window = HistoryWindow(id="w", messages=[odd], timestamp=1, extra={"c": {"d": 1}})
    assert decode(HistoryWindow, encode(HistoryWindow, window, "w"), "w") == window
    snapshot = Snapshot(id="s", messages=[odd], created_at=1)
    assert decode(Snapshot, encode(Snapshot, snapshot, "s"), "s") == snapshot


def test_records_are_immutable_and_short_to_show() -> None:
    """Records cannot be changed in place; lists given become tuples; repr shows only what is set."""
    message = Message("user", "hi")  # type: ignore[arg-type]
    assert message == Message.user("hi")
    with pytest.raises(AttributeError):
        message.role = "x"  # type: ignore[misc]
    assert isinstance(Message("user", [TextBlock("a")]).content, tuple)
    assert repr(Message.user("hi")) == "Message(role='user', content=(TextBlock(text='hi'),))"
    assert message.replace(role="system").role == "system"
    assert Message("user", [TextBlock("a"), ToolUseBlock("c", "t", 1), TextBlock("b")]).text == "a\nb"


@pytest.mark.parametrize("make", [Message.user, Message.assistant, Message.system])
@pytest.mark.parametrize("wrong", [ToolUseBlock("c", "t", {}), TextBlock("x"), None, 5, b"x", ["x"], {}, object()])
def test_constructors_look_at_what_they_get(make: Any, wrong: Any) -> None:
    """A message is checked when it is made, and the error says how it is written."""
    with pytest.raises(InvalidArgumentError, match=r"takes the text first, as a str, got .*Message\('"):
        make(wrong)


@pytest.mark.parametrize("wrong", ["text", None, 5, {"type": "text"}, [TextBlock("x")]])
def test_blocks_of_an_answer_are_blocks(wrong: Any) -> None:
    """What stands among the blocks of an answer has to be one."""
    with pytest.raises(InvalidArgumentError, match="content blocks such as ToolUseBlock, got"):
        Message.assistant("hi", TextBlock("a"), wrong)
    assert len(Message.assistant("", TextBlock("a"), UnknownBlock({"type": "new"})).content) == 3


def test_an_entry_follows_a_bookmark() -> None:
    """Timeline.after counts the seq up, from 0, and takes the present time; cursor and seq are one number."""
    event = AgentEvent("monitor", "step_complete", {"step": 1})
    before = now_ms()

    first = Timeline.after(None, event)
    second = Timeline.after(first.bookmark, event)
    resumed = Timeline.after(Bookmark(41, 5), event)

    assert [(entry.cursor, entry.bookmark.seq) for entry in (first, second, resumed)] == [(0, 0), (1, 1), (42, 42)]
    assert before <= resumed.bookmark.timestamp <= now_ms()
    assert first.event is event
    with pytest.raises(InvalidArgumentError, match="takes a Bookmark or None, got int"):
        Timeline.after(41, event)  # type: ignore[arg-type]


@pytest.mark.parametrize("seq", ["41", 41.0, float("nan"), True, None, [], {}])
def test_no_entry_follows_a_seq_that_is_no_int(seq: Any) -> None:
    """The error says so, and where a right one comes from: nothing is added to it, and nothing rounded."""
    event = AgentEvent("monitor", "step_complete", {})
    with pytest.raises(InvalidArgumentError, match=rf"whose seq is an int, got {type(seq).__name__}; .*last_bookmark"):
        Timeline.after(Bookmark(seq, 5), event)


def test_entries_follow_within_64_bits() -> None:
    """A seq that no store takes is refused where it is made; negative ones are as good as others."""
    event = AgentEvent("monitor", "step_complete", {})
    assert Timeline.after(Bookmark(-(2**63), 5), event).cursor == -(2**63) + 1
    assert Timeline.after(Bookmark(2**63 - 2, 5), event).cursor == 2**63 - 1
    for seq, named in (
        (2**63 - 1, "9223372036854775807"),
        (-(2**63) - 1, "-9223372036854775809"),
        (10**5000, "a larger integer"),
    ):
        with pytest.raises(InvalidArgumentError, match=f"no seq after {named}, as a seq is an integer of 64 bits"):
            Timeline.after(Bookmark(seq, 5), event)


@pytest.mark.parametrize("event", [None, "step", {"channel": "monitor", "type": "step"}, AgentEvent])
def test_an_entry_has_an_event(event: Any) -> None:
    """Anything else is refused where it is given, and not when the entry is stored."""
    with pytest.raises(InvalidArgumentError, match=rf"as an AgentEvent, got {type(event).__name__}; from_dict"):
        Timeline.after(None, event)
