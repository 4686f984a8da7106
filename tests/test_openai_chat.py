"""Conversations in the OpenAI chat format become records, and importing them twice stores nothing twice."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from kode_core import (
    AudioBlock,
    ExtendedStore,
    FileBlock,
    ImageBlock,
    InvalidArgumentError,
    Message,
    ReasoningBlock,
    TextBlock,
    ToolResultBlock,
    ToolUseBlock,
    create_extended_store,
    now_ms,
)
from kode_core.formats.openai_chat import (
    BASE_MS,
    ChatConverter,
    ImportedConversation,
    import_conversation,
    read_conversations,
)

RUNS = Path(__file__).parent.parent / "docs" / "examples" / "tau-airline" / "gpt-4o-airline.json.gz"
HELLO = {"role": "user", "content": "Hello"}


def write(name: str, content: str | bytes) -> Path:
    path = Path(name)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def convert(*conversations: Any, template: str = "t", prefix: str | None = None) -> list[ImportedConversation]:
    path = write("chat.jsonl", "\n".join(json.dumps(conversation) for conversation in conversations))
    converter = ChatConverter(template, prefix)
    return [converter.convert(raw) for raw in read_conversations(path)]


def call(call_id: str, name: str = "look", arguments: str = "{}") -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def user(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": text, **more}


def asks(*calls: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": list(calls)}


def answers(call_id: str, content: Any) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def blocks(*messages: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [tuple(message.content) for message in convert(list(messages))[0].messages]


# --- Files ------------------------------------------------------------------------------------------------------------

TWO = [{"messages": [HELLO]}, {"messages": [{"role": "user", "content": "Bye"}]}]

FILES = {
    "list": json.dumps(TWO),
    "indented list": json.dumps(TWO, indent=2),
    "lines": "\n".join(map(json.dumps, TWO)) + "\n",
    "lines with blank ones": "\n\n".join(map(json.dumps, TWO)) + "\r\n\r\n",
    "byte order mark": "\ufeff" + json.dumps(TWO),
    "byte order mark and lines": "\ufeff" + "\n".join(map(json.dumps, TWO)),
    "list of bare lists": json.dumps([entry["messages"] for entry in TWO]),
    "lines of bare lists": "\n".join(json.dumps(entry["messages"]) for entry in TWO),
    "under traj": json.dumps([{"traj": entry["messages"]} for entry in TWO]),
}


@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("content", FILES.values(), ids=FILES.keys())
def test_every_kind_of_file_is_read(content: str, zipped: bool) -> None:
    """The kind of file is seen from its content; its name says nothing."""
    path = write("two", gzip.compress(content.encode()) if zipped else content)
    converter = ChatConverter()

    found = [converter.convert(raw) for raw in read_conversations(path)]

    assert [conversation.messages[0].text for conversation in found] == ["Hello", "Bye"]


@pytest.mark.parametrize("content", [json.dumps([HELLO]), json.dumps({"messages": [HELLO]}, indent=1)])
def test_single_conversation_is_read(content: str) -> None:
    """A list of messages is one conversation, and so is an object."""
    (raw,) = read_conversations(write("one.json", content))

    assert [message.text for message in ChatConverter().convert(raw).messages] == ["Hello"]
    assert raw.document.total == 1


@pytest.mark.parametrize("content", ["", "\n \n", "[]"])
def test_file_without_conversation_gives_none(content: str) -> None:
    """Nothing in the file is no error."""
    assert list(read_conversations(write("none.json", content))) == []


def test_lines_are_read_as_they_are_wanted() -> None:
    """JSON Lines are not read as a whole: what comes before the damage is there."""
    line = json.dumps([{"role": "user", "content": "x" * 1000}]) + "\n"
    packed = gzip.compress((line * 2000).encode(), compresslevel=0)
    conversations = read_conversations(write("cut.jsonl.gz", packed[: len(packed) // 2]))

    assert next(conversations).document.number == 1
    with pytest.raises(InvalidArgumentError, match=r"cut\.jsonl\.gz cannot be read: Compressed file ended"):
        list(conversations)


def test_lone_surrogate_is_kept() -> None:
    """Agents produce them, and other programs escape them; in a list and in lines."""
    text = '[{"messages": [{"role": "user", "content": "\\ud83d!"}]}]'

    for content in (text, f"{text[1:-1]}\n{text[1:-1]}"):
        raw = next(read_conversations(write("surrogate.json", content)))
        assert ChatConverter().convert(raw).messages[0].text == "\ud83d!"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "file.json cannot be read: No such file or directory"),
        (b'[{"messages": []}', "file.json is neither JSON nor JSON Lines: "),
        (b"\x1f\x8bnonsense", "file.json cannot be read: "),
        (b'["\xff"]', "file.json: conversation 1: this is not JSON: "),
        (b"once upon a time", "file.json: conversation 1: this is not JSON: "),
        (b"[" * 100_000, "file.json is neither JSON nor JSON Lines: "),
        (b"[" * 100_000 + b"]" * 100_000, "file.json is neither JSON nor JSON Lines: "),
    ],
    ids=["missing", "cut", "bad gzip", "not UTF-8", "prose", "open and deep", "deep"],
)
def test_unreadable_file_is_named(content: bytes | None, problem: str) -> None:
    """The error names the file and what is wrong with it."""
    path = Path("file.json") if content is None else write("file.json", content)

    with pytest.raises(InvalidArgumentError) as info:
        [ChatConverter().convert(raw) for raw in read_conversations(path)]

    assert str(info.value).startswith(problem)


def test_broken_line_does_not_spoil_the_others() -> None:
    """Each line stands for itself, also when the first is the broken one."""
    path = write("some.jsonl", f"{{\n{json.dumps(TWO[0])}\n[1\n{json.dumps(TWO[1])}\n")
    converter = ChatConverter()
    texts, problems = [], []
    for raw in read_conversations(path):
        try:
            texts.append(converter.convert(raw).messages[0].text)
        except InvalidArgumentError as exc:
            problems.append(str(exc).split(": this")[0])

    assert texts == ["Hello", "Bye"]
    assert problems == ["some.jsonl: conversation 1", "some.jsonl: conversation 3"]


# --- Messages ---------------------------------------------------------------------------------------------------------


def test_roles_become_those_of_kode() -> None:
    """A tool speaks as the user, as in the KODE SDK; a developer as the system."""
    (conversation,) = convert(
        [
            {"role": "system", "content": "a"},
            {"role": "developer", "content": "b"},
            HELLO,
            asks(call("1")),
            answers("1", "c"),
        ]
    )

    assert [message.role for message in conversation.messages] == ["system", "system", "user", "assistant", "user"]


def test_content_becomes_blocks() -> None:
    """Every kind of part has its block; null is no block, and an empty text is one."""
    url = {"type": "image_url", "image_url": {"url": "https://a/b.png", "detail": "low"}}
    inline = {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}}
    sound = {"type": "input_audio", "input_audio": {"data": "QUJD", "format": "mp3"}}
    document = {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,QUJD"}}
    stored = {"type": "file", "file": {"file_id": "file-1"}}

    found = blocks(
        {"role": "user", "content": [{"type": "text", "text": "look"}, url, inline, sound, document, stored]},
        {"role": "assistant", "content": None},
        {"role": "assistant", "content": ""},
        {"role": "assistant", "content": "so", "reasoning_content": "hm", "refusal": "no"},
    )

    assert found == [
        (
            TextBlock("look"),
            ImageBlock(url="https://a/b.png", meta={"detail": "low"}),
            ImageBlock(base64="QUJD", mime_type="image/png"),
            AudioBlock(base64="QUJD", mime_type="audio/mpeg"),
            FileBlock(base64="QUJD", mime_type="application/pdf", filename="a.pdf"),
            FileBlock(file_id="file-1"),
        ),
        (),
        (TextBlock(""),),
        (ReasoningBlock("hm"), TextBlock("so"), TextBlock("no", meta={"refusal": True})),
    ]


@pytest.mark.parametrize(
    ("arguments", "parsed"),
    [
        ('{"a": [1, 2.0, null]}', {"a": [1, 2.0, None]}),
        ('"text"', "text"),
        ("", ""),
        ('{"a": ', '{"a": '),
        ("NaN", "NaN"),
        ("1e999", "1e999"),
        ("[" * 200 + "]" * 200, "[" * 200 + "]" * 200),
        ("[" * 100_000, "[" * 100_000),
    ],
    ids=["object", "string", "nothing", "cut", "NaN", "infinite", "deep", "very deep"],
)
async def test_arguments_are_parsed_or_kept(arguments: str, parsed: Any) -> None:
    """What is not JSON that a store can keep exactly stays the text that it was."""
    (conversation,) = convert([asks(call("1", arguments=arguments))])

    assert conversation.messages[0].content == (ToolUseBlock("1", "look", parsed),)
    async with create_extended_store("memory:") as store:
        await import_conversation(store, conversation)
        assert (await store.load_tool_call_records(conversation.agent_id))[0].input == parsed


def test_other_fields_of_a_message_are_its_metadata() -> None:
    """What the format does not name is kept, unless it is null or large."""
    (conversation,) = convert([{**HELLO, "name": "Ann", "cost_usd": 0.5, "audio": None, "logprobs": [0] * 500}])

    assert conversation.messages[0].metadata == {"name": "Ann", "costUsd": 0.5}


def test_legacy_functions_are_tool_calls() -> None:
    """They have no ids: the name ties the answer to the call."""
    (conversation,) = convert(
        [
            {"role": "assistant", "content": None, "function_call": {"name": "look", "arguments": '{"at": 1}'}},
            {"role": "function", "name": "look", "content": "a"},
            {"role": "assistant", "content": None, "function_call": {"name": "look", "arguments": '{"at": 2}'}},
            {"role": "function", "name": "look", "content": "Error: b"},
        ]
    )

    assert [tuple(message.content) for message in conversation.messages] == [
        (ToolUseBlock("function-0", "look", {"at": 1}),),
        (ToolResultBlock("function-0", "a", False),),
        (ToolUseBlock("function-2", "look", {"at": 2}),),
        (ToolResultBlock("function-2", "Error: b", True),),
    ]
    assert [(record.id, record.state) for record in conversation.tool_calls] == [
        ("function-0", "COMPLETED"),
        ("function-2", "FAILED"),
    ]


# --- Tool calls -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "results"),
    [
        ([asks(call("x")), answers("x", "1"), asks(call("x")), answers("x", "2")], ["1", "2"]),
        ([asks(call("x")), asks(call("x")), answers("x", "1"), answers("x", "2")], ["1", "2"]),
        ([asks(call("x"), call("x")), answers("x", "1"), answers("x", "2")], ["1", "2"]),
        ([asks(call("x")), HELLO, asks(call("x")), answers("x", "1")], [None, "1"]),
        ([asks(call("x")), answers("x", "1"), asks(call("x"))], ["1", None]),
        ([asks(call("x"), call("y")), answers("y", "1"), answers("x", "2")], ["2", "1"]),
        ([asks(call("x"), call("y")), answers("y", "1")], [None, "1"]),
    ],
    ids=["in turn", "both first", "at once", "first open", "second open", "crossed", "one of two"],
)
def test_results_find_their_calls_by_order(messages: list[dict[str, Any]], results: list[str | None]) -> None:
    """Ids repeat, so that order decides; a call without a result is PENDING."""
    (conversation,) = convert(messages)

    assert [record.result for record in conversation.tool_calls] == results
    states = ["PENDING" if result is None else "COMPLETED" for result in results]
    assert [record.state for record in conversation.tool_calls] == states


def test_tool_call_record_has_the_whole_life_of_a_call() -> None:
    """Times are those of the messages; the trail has every state."""
    done, failed, waiting = convert(
        [
            HELLO,
            asks(call("1"), call("2"), call("3")),
            answers("1", [{"type": "text", "text": "ok"}]),
            answers("2", "Error: no"),
        ]
    )[0].tool_calls

    asked = BASE_MS + 1000
    assert (done.state, done.result, done.error, done.is_error) == (
        "COMPLETED",
        [{"type": "text", "text": "ok"}],
        None,
        False,
    )
    assert (done.created_at, done.started_at, done.completed_at, done.duration_ms) == (asked, asked, asked + 1000, 1000)
    assert (failed.state, failed.result, failed.error, failed.is_error) == ("FAILED", None, "Error: no", True)
    assert [(entry.state, entry.timestamp) for entry in failed.audit_trail] == [
        ("PENDING", asked),
        ("EXECUTING", asked),
        ("FAILED", asked + 2000),
    ]
    assert (waiting.state, waiting.started_at, waiting.updated_at) == ("PENDING", None, asked)
    assert not done.approval.required


def test_events_tell_the_run() -> None:
    """In the order of the conversation, with seq from 0, on the channels of the KODE SDK."""
    (conversation,) = convert(
        [
            HELLO,
            {**asks(call("1"), call("2"), call("3")), "content": "wait"},
            answers("2", "Error: no"),
            answers("1", "yes"),
            {"role": "assistant", "content": "done"},
        ]
    )

    events = conversation.events
    assert [(entry.event.channel, entry.event.type) for entry in events] == [
        ("progress", "text_chunk_end"),
        ("progress", "tool:start"),
        ("progress", "tool:start"),
        ("monitor", "step_complete"),
        ("progress", "tool:error"),
        ("progress", "tool:end"),
        ("progress", "text_chunk_end"),
        ("monitor", "step_complete"),
        ("progress", "done"),
    ]
    assert [entry.bookmark.seq for entry in events] == [entry.cursor for entry in events] == list(range(9))
    assert events[4].event.data["error"] == "Error: no"
    assert events[4].event.data["call"]["id"] == "2"
    assert events[-1].event.data["reason"] == "interrupted"  # call 3 still waits


def test_snapshot_and_info_stand_at_the_end() -> None:
    """The conversation can be forked where it ends."""
    (conversation,) = convert([HELLO, {"role": "assistant", "content": "Hi"}], template="support")

    snapshot, info = conversation.snapshot, conversation.info
    assert (snapshot.id, snapshot.last_sfp_index, snapshot.created_at) == ("sfp-1", 1, BASE_MS + 1000)
    assert list(snapshot.messages) == list(conversation.messages)
    assert snapshot.last_bookmark == info.last_bookmark == conversation.events[-1].bookmark
    assert (info.template_id, info.breakpoint, info.last_sfp_index, info.created_at) == ("support", "READY", 1, BASE_MS)


# --- Ids, metadata, times ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "agent_id"),
    [
        ({"id": "a/b"}, "a/b"),
        ({"id": 17}, "17"),
        ({"conversation_id": "c", "session_id": "s"}, "c"),
        ({"id": None, "session_id": "s", "task_id": 1, "trial": 2}, "s"),
        ({"task_id": 7, "trial": 2}, "run-007-2"),
        ({"task_id": "seven", "trial": 2}, "run-ba751a1072dcd51f"),
        ({}, "run-ba751a1072dcd51f"),
    ],
)
def test_agent_id(fields: dict[str, Any], agent_id: str) -> None:
    """The conversation's own id, else that of tau-bench, else the hash of the messages."""
    (conversation,) = convert({**fields, "messages": [HELLO]}, prefix="run")

    assert conversation.agent_id == agent_id


def test_prefix_is_the_name_of_the_file() -> None:
    """So that two files with the same tasks do not become the same agents."""
    (conversation,) = convert({"task_id": 7, "trial": 2, "messages": [HELLO]})

    assert conversation.agent_id == "chat-007-2"


def test_same_conversation_twice_is_two_agents() -> None:
    """Without an id of their own they are told apart by their order."""
    first, second = convert([HELLO], [HELLO], prefix="run")

    assert (first.agent_id, second.agent_id) == ("run-ba751a1072dcd51f", "run-ba751a1072dcd51f-2")


def test_metadata_is_what_the_object_says_besides() -> None:
    """camelCase names, without nulls and large things; the file is the source."""
    fields = {"task_id": 1, "reward": 1.0, "model": "m", "ok": False, "tags": ["a"], "note": None, "info": ["x" * 500]}
    (conversation,) = convert({**fields, "id": "a", "messages": [HELLO]})

    assert conversation.info.metadata == {
        "taskId": 1,
        "reward": 1.0,
        "model": "m",
        "ok": False,
        "tags": ["a"],
        "source": "chat.jsonl",
    }


@pytest.mark.parametrize(
    ("fields", "created_at"),
    [
        ({"created": 1_700_000_000}, 1_700_000_000_000),
        ({"created_at": 1_700_000_000.25}, 1_700_000_000_250),
        ({"created_at": 1_700_000_000_123}, 1_700_000_000_123),
        ({"created_at": "2025-01-31T12:00:00Z"}, 1_738_324_800_000),
        ({"created_at": "2025-01-31T13:00:00+01:00"}, 1_738_324_800_000),
        ({"created_at": "2025-01-31 12:00"}, 1_738_324_800_000),
        ({"created_at": None}, BASE_MS),
    ],
)
def test_times_begin_where_the_object_says(fields: dict[str, Any], created_at: int) -> None:
    """Seconds, milliseconds or ISO 8601, in UTC unless it says otherwise."""
    (conversation,) = convert({**fields, "messages": [HELLO, {"role": "assistant", "content": "Hi"}]})

    assert conversation.info.created_at == created_at
    assert conversation.events[0].bookmark.timestamp == created_at + 1000


# --- What is malformed ------------------------------------------------------------------------------------------------

MALFORMED = {
    "number": (5, "messages must be a list of messages, got a number"),
    "no messages": ({"task_id": 1}, "it has no list of messages, neither under 'messages' nor under 'traj'"),
    "empty": ({"messages": []}, "messages is empty"),
    "null": ({"traj": None}, "traj must be a list of messages, got null"),
    "message": ([HELLO, "x"], "message 1: expected an object, got a string"),
    "no role": ([{"content": "x"}], "message 0: role is missing"),
    "role": ([HELLO, {"role": "x"}], "message 1: role 'x' is none of assistant, developer, function,"),
    "role type": ([{"role": 5}], "message 0: role must be a string, got a number"),
    "content": ([{"role": "user", "content": 5}], "message 0: content must be a string, a list of parts or null,"),
    "part": ([{"role": "user", "content": ["x"]}], "message 0: part 0 of the content: expected an object, got a str"),
    "part type": (
        [{"role": "user", "content": [{"type": "video"}]}],
        "message 0: part 0 of the content: type 'video' is none of file, image_url, input_audio, refusal, text",
    ),
    "image": (
        [{"role": "user", "content": [{"type": "image_url"}]}],
        "message 0: part 0 of the content: image_url: expected an object, got null",
    ),
    "file": (
        [{"role": "user", "content": [{"type": "file", "file": {}}]}],
        "message 0: part 0 of the content: file has neither file_data nor file_id",
    ),
    "calls": ([{"role": "assistant", "tool_calls": {}}], "message 0: tool_calls must be a list, got an object"),
    "call": ([asks(call("1"), {"id": "2"})], "message 0: tool call 1: function: expected an object, got null"),
    "call id": ([asks(call(""))], "message 0: tool call 0: id must not be empty"),
    "call name": ([asks({"id": "1", "function": {}})], "message 0: tool call 0: name is missing"),
    "call type": ([asks({"id": "1", "type": "custom"})], "message 0: tool call 0: type 'custom' is not known"),
    "tool without id": ([{"role": "tool", "content": "x"}], "message 0: tool_call_id is missing"),
    "result without call": ([HELLO, answers("q", "x")], "message 1: a result for id 'q', and no call before it"),
    "two results": ([asks(call("q")), answers("q", "x"), answers("q", "y")], "message 2: a result for id 'q', and no"),
    "result before call": ([answers("q", "x"), asks(call("q"))], "message 0: a result for id 'q', and no call before"),
    "id": ({"id": "", "messages": [HELLO]}, "id: agent_id must not be empty"),
    "id type": ({"id": {}, "messages": [HELLO]}, "id: agent_id must be a str, got dict"),
    "long id": ({"id": "x" * 257, "messages": [HELLO]}, "id: agent_id must be at most 256 bytes"),
    "time": ({"created": "soon", "messages": [HELLO]}, "created: 'soon' is no time; write seconds since the epoch"),
}


@pytest.mark.parametrize(("conversation", "problem"), MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_conversation_is_refused_with_its_place(conversation: Any, problem: str) -> None:
    """The error names the file, the conversation from 1, and the message from 0."""
    with pytest.raises(InvalidArgumentError) as info:
        convert([HELLO], conversation)

    assert str(info.value).startswith(f"chat.jsonl: conversation 2: {problem}")


def test_two_conversations_with_one_id_are_refused() -> None:
    """The second would replace the first."""
    with pytest.raises(
        InvalidArgumentError, match=r"conversation 2: its agent 'a' is chat\.jsonl: conversation 1 already"
    ):
        convert({"id": "a", "messages": [HELLO]}, {"id": "a", "messages": [HELLO, HELLO]})


async def test_value_that_cannot_be_stored_names_the_conversation() -> None:
    """The store refuses it whole, and the error says which one it was."""
    deep: Any = "x"
    for _ in range(101):
        deep = [deep]
    (conversation,) = convert(
        {"id": "a", "messages": [asks({"id": "1", "function": {"name": "f", "arguments": deep}})]}
    )
    async with create_extended_store("memory:") as store:
        with pytest.raises(InvalidArgumentError, match=r"chat\.jsonl: conversation 1: .*nested deeper than 100"):
            await import_conversation(store, conversation)

        assert await store.list() == []
        assert await store.load_messages("a") == []


# --- The 200 recorded runs --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def raw_runs() -> list[dict[str, Any]]:
    with gzip.open(RUNS) as file:
        runs: list[dict[str, Any]] = json.load(file)
    return runs


@pytest.fixture(scope="module")
def imported_runs() -> list[ImportedConversation]:
    converter = ChatConverter(template="tau-airline", prefix="tau")
    return [converter.convert(raw) for raw in read_conversations(RUNS)]


def test_recorded_runs_are_whole(raw_runs: list[dict[str, Any]], imported_runs: list[ImportedConversation]) -> None:
    """Counted in the file without this package: nothing is missing, nothing is added."""
    messages = [message for run in raw_runs for message in run["traj"]]
    results = [message for message in messages if message["role"] == "tool"]
    failed = [result for result in results if result["content"].startswith("Error")]
    assert (len(raw_runs), len(messages), len(results), len(failed)) == (200, 5308, 1164, 73)

    assert len({run.agent_id for run in imported_runs}) == 200
    assert sum(len(run.messages) for run in imported_runs) == 5308
    records = [record for run in imported_runs for record in run.tool_calls]
    assert Counter(record.state for record in records) == {"COMPLETED": 1164 - 73, "FAILED": 73}
    assert sum(run.failed for run in imported_runs) == 73


def test_recorded_runs_are_unchanged(raw_runs: list[dict[str, Any]], imported_runs: list[ImportedConversation]) -> None:
    """Every message of every run, compared with the file."""
    for raw, run in zip(raw_runs, imported_runs, strict=True):
        assert run.agent_id == f"tau-{raw['task_id']:03d}-{raw['trial']}"
        assert run.info.metadata["reward"] == raw["reward"]
        for expected, message in zip(raw["traj"], run.messages, strict=True):
            assert_same(expected, message)


def assert_same(expected: dict[str, Any], message: Message) -> None:
    if expected["role"] == "tool":
        failed = expected["content"].startswith("Error")
        assert message.role == "user"
        assert message.content == (ToolResultBlock(expected["tool_call_id"], expected["content"], failed),)
        return
    assert message.role == expected["role"]
    assert message.text == (expected["content"] or "")
    uses = [block for block in message.content if isinstance(block, ToolUseBlock)]
    calls = expected.get("tool_calls") or []
    assert [(use.id, use.name, use.input) for use in uses] == [
        (c["id"], c["function"]["name"], json.loads(c["function"]["arguments"])) for c in calls
    ]


def test_repeated_ids_are_matched_in_order(
    raw_runs: list[dict[str, Any]], imported_runs: list[ImportedConversation]
) -> None:
    """In these runs a tool answers at once, so that the answer to a call is the message behind it."""
    repeating = 0
    for raw, run in zip(raw_runs, imported_runs, strict=True):
        traj = raw["traj"]
        expected = [
            (c["id"], traj[i + 1]["content"]) for i, message in enumerate(traj) for c in message.get("tool_calls") or []
        ]
        repeating += len({call_id for call_id, _ in expected}) < len(expected)
        assert [(record.id, record.error or record.result) for record in run.tool_calls] == expected

    assert repeating == 49


async def everything(store: ExtendedStore, runs: Sequence[ImportedConversation]) -> list[Any]:
    """All that the runs wrote, with the offsets of the events."""
    found: list[Any] = []
    for run in runs:
        events = [(event.offset, event) async for event in store.read_events(run.agent_id)]
        found.append(
            (
                await store.load_messages(run.agent_id),
                await store.load_tool_call_records(run.agent_id),
                events,
                await store.list_snapshots(run.agent_id),
                await store.load_info(run.agent_id),
            )
        )
    return found


async def test_importing_twice_changes_nothing(imported_runs: list[ImportedConversation]) -> None:
    """The second import writes the identical records: no count and no offset changes."""
    async with create_extended_store("sqlite:///runs.db", durability="fast") as store:
        for run in imported_runs:
            await import_conversation(store, run)
        first, totals = await everything(store, imported_runs), (await store.get_metrics()).storage
        again = ChatConverter(template="tau-airline", prefix="tau")
        for raw in read_conversations(RUNS):
            await import_conversation(store, again.convert(raw))

        assert await everything(store, imported_runs) == first
        after = (await store.get_metrics()).storage
        assert (after.total_agents, after.total_messages, after.total_tool_calls) == (200, 5308, 1164)
        assert after.total_messages == totals.total_messages
        assert len(await store.query_tool_calls(is_error=True)) == 73
        assert (await store.check_consistency()).consistent


async def test_an_interrupted_import_goes_on() -> None:
    """Of a conversation whose snapshot is missing, the snapshot is written; one that differs is refused as before."""
    conversation = convert([HELLO])[0]
    async with create_extended_store("memory:") as store:
        await import_conversation(store, conversation)
        whole = await everything(store, [conversation])
        await store.prune(conversation.agent_id, keep_snapshots=0)
        assert await store.list_snapshots(conversation.agent_id) == []
        assert await import_conversation(store, conversation)
        assert await everything(store, [conversation]) == whole
        assert not await import_conversation(store, conversation)
        await store.save_snapshot(conversation.agent_id, conversation.snapshot.replace(created_at=1))
        with pytest.raises(InvalidArgumentError, match="is there already and differs"):
            await import_conversation(store, conversation)


TIMES: Final = (
    (
        {"created": 1_700_000_000, "messages": [user("a"), user("b")]},
        [1_700_000_000_000, 1_700_000_001_000],
    ),
    (
        {
            "messages": [
                user("a", timestamp="2024-05-01T00:00:00Z"),
                user("b"),
                user("c", created_at=1),
                user("d", created=0),
            ]
        },
        [1_714_521_600_000, 1_714_521_601_000, 1_714_521_601_000, 1_714_521_601_000],
    ),
    (
        {"created_at": 1_600_000_000_000, "messages": [user("a"), user("b", createdAt="2024-05-01"), user("c")]},
        [1_600_000_000_000, 1_714_521_600_000, 1_714_521_601_000],
    ),
    (
        {"messages": [user("a", timestamp="noon"), user("b", timestamp=1e300), user("c", timestamp=1_700_000_000)]},
        [1_700_000_000_000, 1_700_000_001_000, 1_700_000_001_000],
    ),
)


@pytest.mark.parametrize("url", ["memory:", "sqlite:///times.db", "json:///times"])
@pytest.mark.parametrize(("conversation", "times"), TIMES)
async def test_times_come_along(url: str, conversation: dict[str, Any], times: list[int]) -> None:
    """Messages and session keep the times that the source tells, in their order, and what is saved later is of now."""
    (imported,) = convert(conversation)
    async with create_extended_store(url) as store:
        before = now_ms()
        assert await import_conversation(store, imported)
        assert [message.created_at for message in await store.query_messages(order="asc")] == times
        (session,) = await store.query_sessions()
        assert (session.created_at, session.updated_at) == (times[0], times[-1])
        await store.append_messages(imported.agent_id, [Message.user("and now")])
        (latest, *_) = await store.query_messages(limit=1)
        (session,) = await store.query_sessions()
        assert (latest.created_at >= before, session.updated_at >= before) == (True, True)


@pytest.mark.parametrize("url", ["memory:", "sqlite:///times.db", "json:///times"])
async def test_without_times_all_records_have_the_same_clock(url: str) -> None:
    """Messages, calls and events begin with the session; it was changed now, so that no clean-up takes it at once."""
    (imported,) = convert([user("a"), asks(call("c1")), answers("c1", "r"), user("b")])
    async with create_extended_store(url) as store:
        before = now_ms()
        await import_conversation(store, imported)
        times = [message.created_at async for message in store.iter_messages(order="asc")]
        assert times == [BASE_MS, BASE_MS + 1000, BASE_MS + 2000, BASE_MS + 3000]
        (made,), (session,) = await store.query_tool_calls(), await store.query_sessions()
        assert (made.created_at, made.completed_at) == (times[1], times[2])
        assert (session.created_at, session.updated_at >= before) == (BASE_MS, True)
        assert {one.bookmark.timestamp async for one in store.read_events(imported.agent_id)} <= set(times)
        await store.append_messages(imported.agent_id, [Message.user("and now")])
        (latest,) = await store.query_messages(limit=1)
        assert latest.created_at >= before
