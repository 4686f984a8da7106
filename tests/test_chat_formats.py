"""Messages of OpenAI and Anthropic become records and come back the same, or are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kode_core import (
    AudioBlock,
    FileBlock,
    ImageBlock,
    InvalidArgumentError,
    InvalidValueError,
    Message,
    ReasoningBlock,
    StoredMessage,
    TextBlock,
    ToolResultBlock,
    ToolUseBlock,
    UnknownBlock,
    VideoBlock,
    create_extended_store,
    from_dict,
    to_dict,
)
from kode_core.formats.anthropic_messages import messages_from_anthropic, messages_to_anthropic
from kode_core.formats.openai_messages import messages_from_openai, messages_to_openai

CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}


# --- Every message that the formats have ------------------------------------------------------------------------------

TEXT = st.text(max_size=8)
NAME = st.text("abc", min_size=1, max_size=3)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAME, inner, max_size=3),
    max_leaves=6,
)


def fields(required: dict[str, Any], optional: dict[str, Any] | None = None) -> Any:
    """Dicts with these fields, some of which may be absent or null, and with fields that nobody knows."""
    maybe = {name: value | st.none() for name, value in (optional or {}).items()}
    known = st.fixed_dictionaries(required, optional=maybe)
    return st.tuples(st.dictionaries(st.sampled_from(["x_new", "cache_control", "z"]), VALUE, max_size=2), known).map(
        lambda both: {**both[0], **both[1]}
    )


ARGUMENTS = VALUE.map(json.dumps) | VALUE.map(lambda value: json.dumps(value, separators=(",", ":"))) | TEXT
URL = st.just("https://a/b.png") | TEXT.map(lambda data: f"data:image/png;base64,{data}") | st.just("data:,a")
PART = st.one_of(
    fields({"type": st.just("text"), "text": TEXT}),
    st.fixed_dictionaries({"type": st.just("text"), "text": TEXT}),
    fields({"type": st.just("refusal"), "refusal": TEXT}),
    fields({"type": st.just("image_url"), "image_url": fields({"url": URL}, {"detail": TEXT})}),
    fields({"type": st.just("image_url"), "image_url": URL}),
    fields({"type": st.just("input_audio"), "input_audio": fields({"data": TEXT, "format": st.just("mp3")})}),
    fields({"type": st.just("file"), "file": fields({"file_data": URL}, {"filename": TEXT, "file_id": TEXT})}),
    fields({"type": st.just("video_url"), "video_url": VALUE}),
)
CONTENT = TEXT | st.lists(PART, max_size=3)
OPENAI_CALL = st.one_of(
    fields({"id": TEXT, "type": st.just("function"), "function": fields({"name": NAME, "arguments": ARGUMENTS})}),
    fields({"id": TEXT, "function": fields({"name": NAME}, {"arguments": VALUE})}),
    fields({"id": TEXT, "type": st.just("custom"), "custom": fields({"name": NAME, "input": TEXT})}),
)
OPENAI = st.one_of(
    fields(
        {"role": st.sampled_from(["user", "system", "developer"]), "content": CONTENT},
        {"name": TEXT, "tool_calls": VALUE, "function_call": VALUE, "refusal": VALUE, "reasoning_content": VALUE},
    ),
    fields(
        {"role": st.just("assistant")},
        {
            "content": CONTENT,
            "reasoning_content": TEXT,
            "refusal": TEXT,
            "name": TEXT,
            "tool_calls": st.lists(OPENAI_CALL, max_size=3),
            "function_call": fields({"name": NAME, "arguments": ARGUMENTS}),
            "annotations": VALUE,
        },
    ),
    fields({"role": st.just("tool"), "tool_call_id": TEXT}, {"content": TEXT | st.lists(PART), "name": TEXT}),
    fields({"role": st.just("function"), "name": TEXT}, {"content": TEXT}),
)

SOURCE = st.one_of(
    fields({"type": st.just("base64"), "media_type": TEXT, "data": TEXT}),
    st.fixed_dictionaries({"type": st.just("base64"), "media_type": TEXT, "data": TEXT}),
    st.fixed_dictionaries({"type": st.just("url"), "url": TEXT}),
    st.fixed_dictionaries({"type": st.just("file"), "file_id": TEXT}),
    fields({"type": st.just("text"), "media_type": TEXT, "data": TEXT}),
)
ANTHROPIC_BLOCK = st.one_of(
    fields({"type": st.just("text"), "text": TEXT}, {"citations": VALUE}),
    st.fixed_dictionaries({"type": st.just("text"), "text": TEXT}),
    fields({"type": st.just("image"), "source": SOURCE}),
    fields({"type": st.just("document"), "source": SOURCE}, {"title": TEXT, "context": TEXT}),
    fields({"type": st.sampled_from(["redacted_thinking", "server_tool_use", "search_result"]), "data": VALUE}),
)
RESULT = fields(
    {"type": st.just("tool_result"), "tool_use_id": TEXT},
    {"content": TEXT | st.lists(ANTHROPIC_BLOCK, max_size=2), "is_error": st.booleans()},
)
ANTHROPIC = st.one_of(
    fields({"role": st.just("user"), "content": TEXT | st.lists(ANTHROPIC_BLOCK | RESULT, max_size=3)}),
    fields(
        {
            "role": st.just("assistant"),
            "content": TEXT
            | st.lists(
                ANTHROPIC_BLOCK
                | fields({"type": st.just("thinking"), "thinking": TEXT}, {"signature": TEXT})
                | fields({"type": st.just("tool_use"), "id": TEXT, "name": NAME, "input": VALUE}),
                max_size=3,
            ),
        },
        {"id": TEXT, "stop_reason": TEXT, "usage": VALUE},
    ),
)


def bare(value: Any) -> Any:
    """*value* without the null fields of the objects in it, at every depth."""
    if isinstance(value, dict):
        return {name: bare(item) for name, item in value.items() if item is not None}
    return [bare(item) for item in value] if isinstance(value, list) else value


def same(one: Any, other: Any) -> bool:
    return json.dumps(bare(one), sort_keys=True) == json.dumps(bare(other), sort_keys=True)


@given(OPENAI)
def test_a_message_of_openai_comes_back(raw: dict[str, Any]) -> None:
    """Read and written, also through the stored form, it has the same fields; null is as absent."""
    before = json.dumps(raw)
    message = Message.from_openai(raw)
    assert from_dict(Message, json.loads(json.dumps(to_dict(message)))) == message
    (back,) = message.to_openai()
    assert same(back, raw)
    assert json.dumps(raw) == before


@given(ANTHROPIC)
def test_a_message_of_anthropic_comes_back(raw: dict[str, Any]) -> None:
    """Read and written, also through the stored form, it has the same fields; null is as absent."""
    message = Message.from_anthropic(raw)
    assert from_dict(Message, json.loads(json.dumps(to_dict(message)))) == message
    assert same(message.to_anthropic(), raw)


# --- Every message that a store has -----------------------------------------------------------------------------------

META = st.none() | st.dictionaries(NAME | st.sampled_from(["openai", "anthropic"]), VALUE, max_size=2)
PLACE: Any = {name: st.none() | TEXT for name in ("url", "file_id", "base64", "mime_type")}
BLOCK = st.one_of(
    st.builds(TextBlock, TEXT, meta=META | st.just({"refusal": True})),
    st.builds(ReasoningBlock, TEXT, meta=META),
    st.builds(ImageBlock, meta=META, **PLACE),
    st.builds(ImageBlock, base64=TEXT, mime_type=st.just("image/png")),
    st.builds(AudioBlock, base64=TEXT, mime_type=st.sampled_from(["audio/mpeg", "audio/wav", "audio/mp3"])),
    st.builds(VideoBlock, **PLACE),
    st.builds(FileBlock, filename=st.none() | TEXT, **PLACE),
    st.builds(ToolUseBlock, TEXT, NAME, VALUE, meta=META),
    st.builds(ToolResultBlock, TEXT, VALUE, st.none() | st.booleans(), meta=META),
    st.builds(UnknownBlock, st.just({"type": "new", "x": 1})),
)
MESSAGE = st.builds(
    Message,
    st.sampled_from(["user", "assistant", "system", "tool"]),
    st.lists(BLOCK, max_size=3),
    st.none() | META,
)


def content(messages: list[Message], note: str) -> list[Any]:
    """The blocks of *messages* without the notes of a format."""
    out = []
    for block in (block for message in messages for block in message.content):
        wire = {**to_dict(block)} if not isinstance(block, UnknownBlock) else block.data
        meta = {name: value for name, value in (wire.pop("meta", None) or {}).items() if name != note}
        if wire.get("is_error") is False:
            del wire["is_error"]
        out.append({**wire, **({"meta": meta} if meta else {})})
    return out


@given(MESSAGE)
def test_a_record_comes_back_from_openai_or_is_refused(message: Message) -> None:
    """Without losses, the written messages have all blocks; nothing is lost without a word, and nothing crashes."""
    try:
        written = message.to_openai()
    except InvalidValueError as error:
        assert error.path.startswith("$")
        message.to_openai(lossy=True) if message.role == "assistant" and not _misplaced(message) else None
        return
    back = messages_from_openai(written)
    assert json.dumps(content(back, "openai")) == json.dumps(content([message], "openai"))
    assert {one.role for one in back} == {message.role}


@given(MESSAGE)
def test_a_record_comes_back_from_anthropic_or_is_refused(message: Message) -> None:
    """Without losses, the written message has all blocks; nothing is lost without a word, and nothing crashes."""
    try:
        written = message.to_anthropic()
    except InvalidValueError as error:
        assert error.path.startswith("$")
        message.to_anthropic(lossy=True) if message.role == "assistant" and not _misplaced(message) else None
        return
    back = Message.from_anthropic(written)
    assert json.dumps(content([back], "anthropic")) == json.dumps(content([message], "anthropic"))


def _misplaced(message: Message) -> bool:
    """True if a message has a result in the answer of a model, or a note that no conversion wrote."""
    metas = [message.metadata, *(getattr(block, "meta", None) for block in message.content)]
    return any(isinstance(block, ToolResultBlock) for block in message.content) or any(
        name in (meta or {}) for meta in metas for name in ("openai", "anthropic")
    )


# --- Forms that are written out ---------------------------------------------------------------------------------------

IMAGE = ImageBlock(base64="AA", mime_type="image/png")
PAIRS: dict[str, tuple[dict[str, Any], Message]] = {
    "text": ({"role": "user", "content": "hi"}, Message.user("hi")),
    "a list of one text": (
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        Message("user", "hi", {"openai": {"list": True}}),
    ),
    "developer and name": (
        {"role": "developer", "content": "be nice", "name": "ops"},
        Message("system", "be nice", {"openai": {"role": "developer", "fields": {"name": "ops"}}}),
    ),
    "media": (
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA", "detail": "low"}},
                {"type": "image_url", "image_url": {"url": "https://a/b"}},
                {"type": "input_audio", "input_audio": {"data": "BB", "format": "mp3"}},
                {"type": "file", "file": {"file_data": "data:application/pdf;base64,CC", "filename": "a.pdf"}},
            ],
        },
        Message(
            "user",
            [
                IMAGE.replace(meta={"detail": "low"}),
                ImageBlock(url="https://a/b"),
                AudioBlock(base64="BB", mime_type="audio/mpeg"),
                FileBlock(base64="CC", mime_type="application/pdf", filename="a.pdf"),
            ],
        ),
    ),
    "a whole answer": (
        {
            "role": "assistant",
            "content": "Looking.",
            "reasoning_content": "Hm.",
            "tool_calls": [CALL, {**CALL, "function": {"name": "look", "arguments": "{}"}}],
        },
        Message(
            "assistant",
            [
                ReasoningBlock("Hm."),
                TextBlock("Looking."),
                ToolUseBlock("c1", "look", {"at": 1}, meta={"openai": {"arguments": '{"at": 1}'}}),
                ToolUseBlock("c1", "look", {}),
            ],
        ),
    ),
    "a refusal": (
        {"role": "assistant", "content": None, "refusal": "No."},
        Message("assistant", [TextBlock("No.", meta={"refusal": True})]),
    ),
    "arguments that a stream left incomplete": (
        {"role": "assistant", "content": None, "tool_calls": [{**CALL, "function": {"name": "f", "arguments": '{"a'}}]},
        Message("assistant", [ToolUseBlock("c1", "f", '{"a', meta={"openai": {"arguments": '{"a'}})]),
    ),
    "a result": (
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
        Message("user", [ToolResultBlock("c1", "sunny")]),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_forms_of_openai(name: str) -> None:
    """A message of OpenAI is this record, and the record this message."""
    raw, message = PAIRS[name]
    assert Message.from_openai(raw) == message
    assert message.to_openai() == [raw]


SIGNED = {"type": "thinking", "thinking": "Hm.", "signature": "s1"}
ANTHROPIC_PAIRS: dict[str, tuple[dict[str, Any], Message]] = {
    "text": ({"role": "user", "content": "hi"}, Message.user("hi")),
    "cache_control": (
        {"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]},
        Message(
            "user",
            [TextBlock("hi", meta={"anthropic": {"fields": {"cache_control": {"type": "ephemeral"}}}})],
        ),
    ),
    "thinking": (
        {
            "role": "assistant",
            "content": [SIGNED, {"type": "tool_use", "id": "c", "name": "look", "input": {"at": 1}}],
        },
        Message(
            "assistant",
            [
                ReasoningBlock("Hm.", meta={"anthropic": {"thinking": True, "fields": {"signature": "s1"}}}),
                ToolUseBlock("c", "look", {"at": 1}),
            ],
        ),
    ),
    "blocks of another kind": (
        {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}]},
        Message(
            "assistant", [UnknownBlock({"type": "redacted_thinking", "data": "x"})], {"anthropic": {"unknown": True}}
        ),
    ),
    "media": (
        {
            "role": "user",
            "content": [
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA"}},
                {"type": "image", "source": {"type": "url", "url": "https://a/b"}},
                {"type": "document", "source": {"type": "file", "file_id": "f1"}, "title": "a.pdf"},
            ],
        },
        Message("user", [IMAGE, ImageBlock(url="https://a/b"), FileBlock(file_id="f1", filename="a.pdf")]),
    ),
    "results": (
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "c", "content": [SIGNED], "is_error": True},
                {"type": "tool_result", "tool_use_id": "d"},
                {"type": "text", "text": "go on"},
            ],
        },
        Message("user", [ToolResultBlock("c", [SIGNED], True), ToolResultBlock("d", None), TextBlock("go on")]),
    ),
    "an answer's fields": (
        {"role": "assistant", "content": "hi", "id": "m1", "stop_reason": "end_turn", "usage": {"output_tokens": 3}},
        Message(
            "assistant",
            "hi",
            {"anthropic": {"fields": {"id": "m1", "stop_reason": "end_turn", "usage": {"output_tokens": 3}}}},
        ),
    ),
}


@pytest.mark.parametrize("name", ANTHROPIC_PAIRS)
def test_forms_of_anthropic(name: str) -> None:
    """A message of Anthropic is this record, and the record this message."""
    raw, message = ANTHROPIC_PAIRS[name]
    assert Message.from_anthropic(raw) == message
    assert message.to_anthropic() == raw


CYCLE: list[Any] = []
CYCLE.append(CYCLE)
BAD_OPENAI: dict[str, tuple[Any, str, str]] = {
    "no object": (3, "$", "expected an object, got int"),
    "no role": ({"content": "x"}, "$", "'role' is missing"),
    "a response": ({"choices": [{"message": {"role": "assistant"}}]}, "$", r"give its message, response\.choices"),
    "a role": ({"role": "x" * 500}, "$.role", "is none of assistant, developer"),
    "content": ({"role": "user", "content": 3}, "$.content", "expected a string, a list of parts or null"),
    "part": ({"role": "user", "content": ["x"]}, "$.content[0]", "expected an object, got str"),
    "part without text": ({"role": "user", "content": [{"type": "text"}]}, "$.content[0]", "'text' is missing"),
    "block": ({"role": "user", "content": [{"type": "tool_use"}]}, "$.content[0].type", "no part of OpenAI's format"),
    "piece": (
        {"role": "assistant", "tool_calls": [{"index": 0, "function": {"arguments": "{"}}]},
        "$.tool_calls[0]",
        "a piece of a stream, join the pieces",
    ),
    "calls": ({"role": "assistant", "tool_calls": {"id": 1}}, "$.tool_calls", "expected a list"),
    "kind of call": ({"role": "assistant", "tool_calls": [{"id": "c", "type": "x"}]}, "$.tool_calls[0].type", "custom"),
    "no id": ({"role": "tool", "content": "x"}, "$", "'tool_call_id' is missing"),
    "result": (
        {"role": "tool", "tool_call_id": "c", "content": {"a": 1}},
        "$.content[0].content",
        "a text or as parts",
    ),
    "an object": ({"role": "user", "content": object()}, "$.content", "object has no JSON form"),
    "a cycle": ({"role": "user", "content": CYCLE}, "$.content[0]", "list contains itself"),
}


@pytest.mark.parametrize("name", BAD_OPENAI)
def test_other_things_are_no_messages_of_openai(name: str) -> None:
    """The error has the place and says what was expected."""
    raw, path, problem = BAD_OPENAI[name]
    with pytest.raises(InvalidValueError, match=problem) as caught:
        Message.from_openai(raw)
    assert caught.value.path.startswith(path)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("raw", "path", "problem"),
    [
        ([], "$", "expected an object"),
        ({"role": "tool", "content": "x"}, "$.role", "neither user nor assistant"),
        ({"role": "user"}, "$.content", "expected a string or a list"),
        ({"role": "user", "content": [{"type": "file"}]}, "$.content[0].type", "none of Anthropic's format"),
        ({"role": "user", "content": [{"type": "image"}]}, "$.content[0].source", "expected an object"),
        ({"role": "user", "content": [{"type": "tool_use", "id": "c", "name": "n"}]}, "$.content[0]", "role assistant"),
        ({"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "is_error": 1}]}, "$", "true or"),
        ({"role": "user", "content": [{"type": "text", "text": 3}]}, "$.content[0].text", "expected a string"),
    ],
)
def test_other_things_are_no_messages_of_anthropic(raw: Any, path: str, problem: str) -> None:
    """The error has the place and says what was expected."""
    with pytest.raises(InvalidValueError, match=problem) as caught:
        Message.from_anthropic(raw)
    assert caught.value.path.startswith(path)


RESULT_OF_JSON = Message("user", [ToolResultBlock("c", {"a": [1]}, True)])
LOSSES: dict[str, tuple[Message, dict[str, Any]]] = {
    "order": (
        Message("assistant", [ToolUseBlock("c", "f", 1), TextBlock("x")]),
        {
            "role": "assistant",
            "content": "x",
            "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "1"}}],
        },
    ),
    "metadata": (Message("user", "x", {"mine": 1}), {"role": "user", "content": "x"}),
    "reasoning": (
        Message("assistant", [ReasoningBlock("a"), ReasoningBlock("b"), TextBlock("x")]),
        {"role": "assistant", "content": "x", "reasoning_content": "a"},
    ),
    "blocks": (Message("user", [VideoBlock(url="u"), TextBlock("x")]), {"role": "user", "content": "x"}),
    "json": (
        Message("user", [ToolResultBlock("c", {"a": [1]})]),
        {"role": "tool", "tool_call_id": "c", "content": '{"a":[1]}'},
    ),
    "is_error": (
        Message("user", [ToolResultBlock("c", "no", True)]),
        {"role": "tool", "tool_call_id": "c", "content": "no"},
    ),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_is_accepted_by_name(loss: str) -> None:
    """The error names the loss, another loss does not help, and that one does."""
    message, raw = LOSSES[loss]
    with pytest.raises(InvalidValueError, match=rf"accept the loss: lossy=\['{loss}'\]"):
        message.to_openai()
    with pytest.raises(InvalidValueError, match=loss):
        message.to_openai(lossy=set(LOSSES) - {loss})
    assert message.to_openai(lossy=[loss]) == message.to_openai(lossy=True) == [raw]


@pytest.mark.parametrize("lossy", ["order", ["all"], 1, None, [3]])
@pytest.mark.parametrize("name", ["to_openai", "to_anthropic"])
def test_wrong_losses_are_refused(lossy: Any, name: str) -> None:
    """A loss that does not exist is an error, also where nothing would be lost."""
    with pytest.raises(InvalidArgumentError, match="lossy"):
        getattr(Message.user("x"), name)(lossy=lossy)


def test_an_edited_call_has_its_new_arguments() -> None:
    """The text of the arguments is kept only as long as the input is the same."""
    message = Message.from_openai({"role": "assistant", "tool_calls": [CALL]})
    (block,) = message.content
    assert isinstance(block, ToolUseBlock)
    (written,) = message.replace(content=[block.replace(input={"at": 2})]).to_openai()
    assert written["tool_calls"][0]["function"]["arguments"] == '{"at":2}'


CHAT = [
    {"role": "system", "content": "Be nice."},
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL, {**CALL, "id": "c2"}]},
    {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "rain"}]},
    {"role": "assistant", "content": "Both."},
]


async def test_whole_lists() -> None:
    """A chat of OpenAI comes back from a store, and goes to Anthropic with results as blocks of a user's message."""
    async with create_extended_store("memory:") as store:
        await store.save_messages("a", messages_from_openai(CHAT))
        loaded = await store.load_messages("a")
    assert messages_to_openai(loaded) == CHAT
    with pytest.raises(InvalidValueError, match=r"message 2: \$\.content\[0\]\.meta.*lossy=\['metadata'\]"):
        messages_to_anthropic(loaded)
    request = messages_to_anthropic(loaded, lossy=["metadata"])
    assert request["system"] == "Be nice."
    assert request["messages"][2:4] == [
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "sunny"}]},
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": "c2", "content": [{"type": "text", "text": "rain"}]}],
        },
    ]
    again = messages_from_anthropic(request["messages"], system=request["system"])
    assert messages_to_anthropic(again) == request
    assert [message.role for message in again] == [message.role for message in loaded]


def test_several_results_are_several_messages_of_openai() -> None:
    """A message with two results and a text is three messages, in this order, and is read as three."""
    message = Message("user", [ToolResultBlock("a", "1"), ToolResultBlock("b", "2"), TextBlock("go on")])
    written = message.to_openai()
    assert [raw["role"] for raw in written] == ["tool", "tool", "user"]
    assert [block for one in messages_from_openai(written) for block in one.content] == list(message.content)


@pytest.mark.parametrize("read", [messages_from_openai, messages_from_anthropic])
def test_lists_name_the_message(read: Callable[[Any], Any]) -> None:
    """An error in a list says which message; a thing that is no list is refused."""
    with pytest.raises(InvalidValueError, match=r"^message 1: \$.role"):
        read([{"role": "user", "content": "x"}, {"role": "x"}])
    for wrong in ("text", {"role": "user"}, None, 3):
        with pytest.raises(InvalidArgumentError, match="must be a list of messages"):
            read(wrong)


def test_a_system_message_in_the_middle_is_refused() -> None:
    """Anthropic's format has one in front; the error names the place of the other one."""
    with pytest.raises(InvalidValueError, match=r"message 1: \$.role: .*in front"):
        messages_to_anthropic([Message.user("x"), Message.system("y")])
    with pytest.raises(InvalidArgumentError, match="message 0 must be a Message, got dict"):
        messages_to_anthropic([{"role": "user"}])  # type: ignore[list-item]


def test_objects_of_a_library_are_read() -> None:
    """A pydantic object, as the providers' libraries return, is read like its dict."""
    pydantic = pytest.importorskip("pydantic")

    class Answer(pydantic.BaseModel):
        role: str
        content: str | None
        refusal: str | None = None

    answer = Answer(role="assistant", content="hi")
    assert Message.from_openai(answer) == Message.assistant("hi")
    assert messages_from_openai([answer]) == [Message.assistant("hi")]
    assert Message.from_anthropic(answer) == Message.assistant("hi")


@pytest.mark.parametrize("note", [3, {"fields": 3}, {"nested": []}])
def test_a_note_that_no_conversion_wrote_is_refused(note: Any) -> None:
    """Metadata under the name of a format that has another form is an error, never a crash."""
    for message in (Message("user", "x", {"openai": note}), Message("user", [TextBlock("x", meta={"openai": note})])):
        with pytest.raises(InvalidValueError, match="not what the conversion wrote"):
            message.to_openai()


def test_a_long_list() -> None:
    """Ten thousand messages are converted in both directions."""
    raw = [{"role": "user", "content": f"{i}"} for i in range(10_000)]
    assert messages_to_openai(messages_from_openai(raw)) == raw


@pytest.mark.parametrize("name", ["to_openai", "to_anthropic"])
@pytest.mark.parametrize("lossy", [False, True])
@pytest.mark.parametrize(
    ("message", "path"),
    [
        (Message("user", [{"type": "text", "text": "x"}]), "$.content[0]"),  # type: ignore[list-item]
        (Message("user", 3), "$.content"),  # type: ignore[arg-type]
        (Message(3, "x"), "$.role"),  # type: ignore[arg-type]
        (Message("user", "x", ["m"]), "$.metadata"),  # type: ignore[arg-type]
        (Message("assistant", [ToolUseBlock("c", "f", {"at": {1}})]), "$.content[0].input.at"),
        (Message("assistant", [ToolUseBlock("c", "f", CYCLE)]), "$.content[0].input"),
        (Message("user", [ToolResultBlock("c", float("nan"))]), "$.content[0].content"),
    ],
)
def test_a_message_that_no_store_keeps_is_refused(message: Message, path: str, lossy: bool, name: str) -> None:
    """Values that a store would refuse are refused with the same path, also where losses are allowed."""
    with pytest.raises(InvalidValueError) as caught:
        getattr(message, name)(lossy=lossy)
    assert caught.value.path.startswith(path)


def test_a_message_of_a_query_is_written_like_a_message() -> None:
    """Its place in the store is no part of a provider's format."""
    stored = StoredMessage("user", "x", agent_id="a", position=1, created_at=5)
    assert stored.to_openai() == [{"role": "user", "content": "x"}]
    assert stored.to_anthropic() == {"role": "user", "content": "x"}
