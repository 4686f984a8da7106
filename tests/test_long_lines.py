"""A line of a file that another program wrote has a bound: it is refused by its number, and fills no memory."""

from __future__ import annotations

import gzip
import io
import json
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import kode_core.formats.documents
import kode_core.formats.kode_sdk.files
import kode_core.moving.importing
from kode_core import ArchiveError, InvalidArgumentError, create_extended_store, export_archive, import_archive
from kode_core.authoring.lines import BoundedLines, Line, LongTextError, read_bounded
from kode_core.formats.kode_sdk import import_agents, open_source
from kode_core.formats.openai_chat import ChatConverter, read_conversations
from kode_core.layers.compression import import_zstd
from tests.moving_agents import fill, full
from tests.sdk_stores import agent_files, event, write

MOST = 100_000
LONG = 200 * MOST


@contextmanager
def flat_memory(most: int = 80 * MOST) -> Iterator[None]:
    """Fail if more than *most* bytes are held at any moment."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < most, peak


def plain(lines: BoundedLines) -> list[tuple[int, bytes, bool]]:
    return [(line.number, line.text, line.problem is not None) for line in lines]


def test_a_long_line_is_passed_over() -> None:
    """The next one begins behind its end, wherever the bound was, and the first may have a bound of its own."""
    assert plain(BoundedLines(io.BytesIO(b"abc\nabcd\nab\nabcdefgh"), 4)) == [
        (1, b"abc\n", False),
        (2, b"", True),
        (3, b"ab\n", False),
        (4, b"", True),
    ]
    assert plain(BoundedLines(io.BytesIO(b"abc\nabcde\n"), 6, first=2)) == [(1, b"", True), (2, b"abcde\n", False)]
    assert plain(BoundedLines(io.BytesIO(b"abcd"), 4)) == [(1, b"abcd", False)]
    assert str(next(BoundedLines(io.BytesIO(b"x" * 5000), 4000)).problem) == "longer than 4,000 bytes"


def test_batches_are_of_a_megabyte() -> None:
    """However long the lines are."""
    lines = BoundedLines(io.BytesIO((b"x" * 400_000 + b"\n") * 7))
    sizes = []
    while batch := lines.batch():
        sizes.append(len(batch))
    assert sizes == [3, 3, 1]


def test_a_file_that_is_one_text_has_the_same_bound(tmp_path: Path) -> None:
    """It is read up to there, and no further."""
    (tmp_path / "text").write_bytes(b"x" * 10)
    assert read_bounded(tmp_path / "text", 10) == b"x" * 10
    with pytest.raises(LongTextError, match="longer than 9 bytes"):
        read_bounded(tmp_path / "text", 9)


def chat(text: str) -> str:
    return json.dumps({"messages": [{"role": "user", "content": text}]})


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_long_conversation_does_not_spoil_the_others(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that unpacks to hundreds of times its bound is refused, with its number, in flat memory."""
    monkeypatch.setattr(kode_core.formats.documents, "MAX_TEXT", MOST)
    texts = [chat("a"), chat("b")]
    texts.insert(at, chat("x" * LONG))
    path = Path("chats.jsonl.gz")
    path.write_bytes(gzip.compress("\n\n".join(texts).encode()))
    converter, found, problems = ChatConverter(), [], []
    with flat_memory():
        for raw in read_conversations(path):
            try:
                found.append(converter.convert(raw).messages[0].text)
            except InvalidArgumentError as exc:
                problems.append(str(exc))
    assert found == ["a", "b"]
    assert problems == [
        f"chats.jsonl.gz: conversation {at + 1}: line {2 * at + 1} is longer than {MOST:,} bytes",
    ]


@pytest.mark.parametrize(
    "content",
    [chat("x" * LONG), "[" + chat("x" * LONG) + "]", "[\n" + f"{chat('x' * 1000)},\n" * 200 + "{}]", "x" * LONG],
    ids=["object", "list", "list over lines", "no JSON"],
)
def test_a_long_text_is_refused_by_name(content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of one JSON text is held whole, so it has the bound of a line."""
    monkeypatch.setattr(kode_core.formats.documents, "MAX_TEXT", MOST)
    path = Path("chats.json.gz")
    path.write_bytes(gzip.compress(content.encode()))
    with flat_memory(), pytest.raises(InvalidArgumentError) as info:
        list(read_conversations(path))
    assert str(info.value).startswith(
        "chats.json.gz: line 1: it begins no JSON Lines, and as one JSON text the file is "
    )
    assert f"longer than {MOST:,} bytes" in str(info.value)


def test_lines_after_a_broken_first_one_are_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the file is one text is settled within the bound."""
    monkeypatch.setattr(kode_core.formats.documents, "MAX_TEXT", MOST)
    Path("chats.jsonl.gz").write_bytes(gzip.compress(("{\n" + f"{chat('x' * 1000)}\n" * 15_000).encode()))
    with flat_memory():
        assert sum(1 for _ in read_conversations("chats.jsonl.gz")) == 15_001


async def test_an_archive_goes_on_behind_a_long_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """With skip_damaged its agent is reported; the rest of the line is never taken for the begin of another agent."""
    monkeypatch.setattr(kode_core.moving.importing, "MAX_LINE", MOST)
    async with create_extended_store("memory:") as store:
        await fill(store, full("a"), full("b"), full("c"))
        file = io.BytesIO()
        await export_archive(store, file)
    lines = file.getvalue().splitlines(keepends=True)
    number = next(i for i, line in enumerate(lines) if b'"agentId":"b"' in line) + 2
    lie = b'{"kind":"agent","agentId":"bb"}'
    lines[number - 1] = b"x" * MOST + b"y" + lie + b"z" * LONG + b"\n"
    packed = import_zstd().compress(b"".join(lines))
    for skip in (False, True):
        async with create_extended_store("memory:") as target:
            with flat_memory():
                if not skip:
                    with pytest.raises(ArchiveError) as info:
                        await import_archive(target, io.BytesIO(packed))
                    assert (info.value.line, info.value.brought) == (number, 1)
                    assert str(info.value).startswith(f"line {number} of the archive: it is longer than {MOST:,} bytes")
                    continue
                report = await import_archive(target, io.BytesIO(packed), skip_damaged=True)
            assert report.outcomes == {"copied": 2, "damaged": 1}
            (trouble,) = report.troubles
            assert trouble.agent_id == "b" and f"longer than {MOST:,} bytes" in trouble.reason
            assert await target.list() == ["a", "c"]


@pytest.mark.parametrize(
    ("name", "place"),
    [("events/progress.log", "events/progress.log:2"), ("runtime/messages.json", "runtime/messages.json")],
)
async def test_a_long_text_of_the_sdk_is_damage(
    name: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a log only the line is; another file is one text."""
    monkeypatch.setattr(kode_core.formats.kode_sdk.files, "MAX_TEXT", MOST)
    write(tmp_path / "store" / "a", agent_files("a"))
    first = event(1, "text_chunk", delta="first")
    last = event(2, "text_chunk", delta="last")
    with (tmp_path / "store" / "a" / name).open("wb") as file:
        file.write(json.dumps(first).encode() + b"\n" + b"x" * LONG + b"\n" + json.dumps(last).encode() + b"\n")
    async with open_source(str(tmp_path / "store")) as source, create_extended_store("memory:") as store:
        with flat_memory():
            (found,) = [one async for one in import_agents(source, store, skip_damaged=True)]
        assert found.outcome == "imported"
        assert found.damaged == {f"{place}: longer than {MOST:,} bytes": 1}
        if name.startswith("events"):
            events = [one.event async for one in store.read_events("a")]
            assert [one.type for one in events].count("text_chunk") == 2


def test_lines_say_what_they_are() -> None:
    """A line that was read has no problem."""
    assert next(BoundedLines(io.BytesIO(b"a"))) == Line(1, b"a", None)
