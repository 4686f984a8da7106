"""Archives: exact both ways, and every damage is found where it is, before anything of its agent is written."""

from __future__ import annotations

import gzip
import io
import json
import random
import tracemalloc
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

import kode_core.moving.exporting
import kode_core.moving.importing
from kode_core import (
    AgentRecords,
    ArchiveError,
    CopyReport,
    InvalidArgumentError,
    Message,
    MovedAgent,
    StoreUnavailableError,
    create_extended_store,
    export_archive,
    import_archive,
)
from kode_core.cli.importing_archive import is_archive
from kode_core.layers import Layer
from kode_core.moving.files import opened_to_read
from kode_core.moving.reading import Archive
from tests.moving_agents import HOSTILE_IDS, agents, digests, fill, full, hostile

BEGIN = b'{"kind":"agent"'


async def archive_of(*records: AgentRecords) -> bytes:
    async with create_extended_store("memory:") as store:
        await fill(store, *records)
        file = io.BytesIO()
        await export_archive(store, file)
        return file.getvalue()


async def imported(raw: bytes, **how: Any) -> tuple[CopyReport | ArchiveError, dict[str, str]]:
    """The report or the error of an import, and the agents that are there then."""
    async with create_extended_store("memory:") as store:
        try:
            found: CopyReport | ArchiveError = await import_archive(store, io.BytesIO(raw), **how)
        except ArchiveError as exc:
            found = exc
        return found, await digests(store)


@pytest.mark.parametrize("name", ["agents.jsonl", "agents.jsonl.zst", "agents.jsonl.gz"])
async def test_an_archive_brings_every_kind_exactly(name: str, tmp_path: Path) -> None:
    given = [full("whole"), hostile("hostile"), *(full(one) for one in HOSTILE_IDS)]
    async with create_extended_store("json:///source") as source, create_extended_store("sqlite:///new.db") as target:
        await fill(source, *given)
        report = await export_archive(source, tmp_path / name, backend="json")
        assert report.outcomes == {"copied": len(given)} and (tmp_path / name).stat().st_mode & 0o777 == 0o600
        assert [path.name for path in tmp_path.iterdir() if ".part" in path.name] == []
        report = await import_archive(target, tmp_path / name)
        assert report.outcomes == {"copied": len(given)} and report.is_whole
        assert await digests(target) == await digests(source)
        assert (await import_archive(target, tmp_path / name)).outcomes == {"known": len(given)}
        again = io.BytesIO()
        await export_archive(target, again, backend="json")
        if name.endswith("jsonl"):  # the same agents make the same lines, whatever store they come from
            assert again.getvalue().splitlines()[1:-1] == (tmp_path / name).read_bytes().splitlines()[1:-1]


async def test_the_digests_are_those_of_the_lines() -> None:
    """A reader needs no kode_core: each digest is SHA-256 of whole lines."""
    lines = (await archive_of(*agents(3))).splitlines(keepends=True)
    whole, one = sha256(lines[0]), sha256()
    header = json.loads(lines[0])
    assert header["kode"] == "archive" and header["format"] == 1 and header["contract"] == "1.0"
    for line in lines[1:-1]:
        record = json.loads(line)
        if record["kind"] != "end":
            one.update(line)
            continue
        assert record["digest"] == one.hexdigest()
        whole.update(line)
        one = sha256()
    trailer = json.loads(lines[-1])
    assert trailer["digest"] == whole.hexdigest() and trailer["agents"] == 3


async def test_every_damage_is_found_where_it_is() -> None:
    """A line that is missing, twice, in another place or cut, and any byte that is another one."""
    raw = await archive_of(*agents(3))
    lines, rng = raw.splitlines(keepends=True), random.Random(5)
    _, whole = await imported(raw)
    ends = [number for number, line in enumerate(lines) if line.startswith(b'{"kind":"end"')]
    damaged: list[tuple[int, bytes]] = []
    for i, line in enumerate(lines):
        if i <= ends[0] or ends[1] < i < len(lines) - 2:
            continue  # the lines of the agent in the middle are enough, and those around it
        damaged.append((i, b"".join(lines[:i] + lines[i + 1 :])))
        damaged.append((i, b"".join(lines[: i + 1] + lines[i:])))
        damaged.append((i, b"".join(lines[:i] + lines[i + 1 : i + 2] + lines[i : i + 1] + lines[i + 2 :])))
        damaged.append((i, b"".join(lines[:i]) + line[: rng.randrange(len(line))]))
        damaged.append((i, b"".join([*lines[:i], b"\xff\xfe\n", *lines[i:]])))
        for _ in range(2):
            at = rng.randrange(len(line))
            other = line[:at] + bytes([line[at] ^ 1 << rng.randrange(7)]) + line[at + 1 :]
            damaged.append((i, b"".join([*lines[:i], other, *lines[i + 1 :]])))
    for i, text in damaged:
        found, there = await imported(text)
        if text == raw or (isinstance(found, CopyReport) and i == 0):
            continue  # the header has a time, and the order of two equal lines is one order
        assert isinstance(found, ArchiveError), (i, text[:200])
        done = sum(end < i for end in ends)
        assert done <= found.brought <= len(ends) and len(there) == found.brought, (i, str(found))
        assert there.items() <= whole.items()
        assert i - 1 <= found.line <= len(lines) + 2, (i, str(found))
        assert f"line {found.line:,} of the archive" in str(found)


async def test_bytes_that_are_no_text() -> None:
    """Anywhere in an archive they are damage of their line, and of their agent alone where that is asked for."""
    raw = await archive_of(*agents(3))
    lines = raw.splitlines(keepends=True)
    ends = [number for number, line in enumerate(lines) if line.startswith(b'{"kind":"end"')]
    _, whole = await imported(raw)
    for at in range(3, len(raw), 101):
        number = raw.count(b"\n", 0, at)
        text = raw[:at] + b"\xf5" + raw[at + (raw[at : at + 1] != b"\n") :]
        found, there = await imported(text)
        assert isinstance(found, ArchiveError) and found.line in (number + 1, number + 2), (at, found)
        assert len(there) == found.brought
        if ends[0] < number <= ends[1]:
            found, there = await imported(text, skip_damaged=True)
            assert isinstance(found, CopyReport) and not found.is_whole, at
            assert there.items() < whole.items() and len(there) == 2


async def test_damage_of_one_agent_is_passed_over_when_asked() -> None:
    lines = (await archive_of(*agents(4))).splitlines(keepends=True)
    begins = [i for i, line in enumerate(lines) if line.startswith(BEGIN)]
    _, whole = await imported(b"".join(lines))
    for i in range(begins[1], begins[2]):
        for text in (b"".join(lines[:i] + lines[i + 1 :]), b"".join([*lines[:i], b"{}\n", *lines[i + 1 :]])):
            told: list[MovedAgent] = []
            found, there = await imported(text, skip_damaged=True, on_agent=told.append)
            assert isinstance(found, CopyReport) and not found.is_whole, i
            assert found.outcomes["copied"] == 3 and found.outcomes["damaged"] >= 1, (i, found)
            assert there.items() < whole.items() and "agt-0001" not in there


def test_a_damaged_beginning(tmp_path: Path) -> None:
    """A file that begins as Zstandard does is an archive, whatever follows, and its error says what is wrong."""
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(b"\x28\xb5\x2f\xfdgarbage")
    assert is_archive(str(path))
    path.write_bytes(gzip.compress(b'{"kode":"archive"}')[:12])
    assert not is_archive(str(path))


@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.jsonl.gz"])
async def test_a_compressed_archive_that_is_damaged(name: str, tmp_path: Path) -> None:
    async with create_extended_store("memory:") as store:
        await fill(store, *agents(30))
        await export_archive(store, tmp_path / name)
        whole = await digests(store)
    raw, rng = (tmp_path / name).read_bytes(), random.Random(3)
    assert len(raw) < 100_000
    for _ in range(15):
        at = rng.randrange(4, len(raw))
        for text in (raw[:at], raw[:at] + bytes([raw[at] ^ 8]) + raw[at + 1 :]):
            found, there = await imported(text)
            assert there.items() <= whole.items()
            assert isinstance(found, ArchiveError) or there == whole  # a bit may be of no importance


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "the file is empty"),
        (b"[]\n", "no header of an archive"),
        (b'{"role": "user"}\n', "no header of an archive"),
        (b'{"kode":"archive","format":"1"}\n', "no header of an archive"),
        (b'{"kode":"archive","format":2,"version":"9.9.9","new":1}\n', "format 2, written by kode-core 9.9.9.*upgrade"),
        (b'{"kode":"archive","format":1}', "cut short in the middle of it"),
        (b'{"kode":"archive","format":1}\n', "it has no trailer"),
        (
            b'{"kode":"archive","format":1}\n{"kind":"event","agentId":"a","position":0,"body":{}}\n',
            "outside of an agent",
        ),
        (b'{"kode":"archive","format":1}\n{"kind":"agent","agentId":"a","new":1}\n', "it is no line of an archive"),
        (b'{"kode":"archive","format":1}\n{"kind":"agent","agentId":3}\n', "it is no line of an archive"),
    ],
)
async def test_files_that_are_no_archives(raw: bytes, says: str) -> None:
    found, there = await imported(raw)
    assert isinstance(found, ArchiveError) and there == {}
    with pytest.raises(ArchiveError, match=says):
        raise found


def sealed(*lines: dict[str, Any]) -> bytes:
    """An archive of one agent with these lines, with right counts and digests."""
    head = b'{"kode":"archive","format":1}\n'
    raw = [json.dumps(line, separators=(",", ":")).encode() + b"\n" for line in lines]
    counts: dict[str, int] = {}
    for line in lines[1:]:
        counts[line["kind"]] = counts.get(line["kind"], 0) + 1
    end = {"kind": "end", "agentId": "a", "counts": counts, "digest": sha256(b"".join(raw)).hexdigest()}
    last = json.dumps(end).encode() + b"\n"
    trailer = {"kind": "trailer", "agents": 1, "counts": counts, "digest": sha256(head + last).hexdigest()}
    return b"".join([head, *raw, last, json.dumps(trailer).encode() + b"\n"])


A = {"kind": "agent", "agentId": "a", "updatedAt": 1}
INFO = {"kind": "info", "agentId": "a", "position": 0, "body": {"agentId": "a", "templateId": "t", "createdAt": 1}}
REST = {"kind": "rest", "agentId": "a", "position": 0, "body": {"messageKeys": {"key": 0}}}
MESSAGE = {"kind": "message", "agentId": "a", "position": 0, "createdAt": 1, "body": {"role": "user", "content": []}}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ({**MESSAGE, "body": {"role": 3}}, "message 0"),
        ({**MESSAGE, "createdAt": None}, "no createdAt"),
        ({**MESSAGE, "position": 1}, "position 1 of a message is not the next one"),
        ({**MESSAGE, "kind": "novel"}, "the kind 'novel' is not known"),
        ({**MESSAGE, "agentId": "b"}, "does not belong to the agent 'a'"),
        ({"kind": "message", "agentId": "a", "position": 0, "createdAt": 1}, "has no body"),
        ({"kind": "document", "agentId": "a", "position": 0, "body": 1}, "lacks its collection"),
        ({"kind": "rest", "agentId": "a", "position": 0, "body": [1]}, "no JSON object"),
        (
            {"kind": "rest", "agentId": "a", "position": 0, "body": {"novel": 1}},
            "novel, which this version does not know",
        ),
        ({"kind": "rest", "agentId": "a", "position": 0, "body": [["messageKeys", {}]]}, "no JSON object"),
        (
            {"kind": "rest", "agentId": "a", "position": 0, "body": {"agentId": "b", "toolCalls": []}},
            "the rest has agentId, toolCalls, which the agent's other lines have",
        ),
    ],
)
async def test_lines_that_are_wrong_in_themselves(line: dict[str, Any], says: str) -> None:
    """Also if somebody wrote right digests for them."""
    found, there = await imported(sealed(A, line))
    assert isinstance(found, ArchiveError) and says in str(found), found
    assert found.line in (3, 4) and there == {}


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ((REST, {**MESSAGE, "position": 0}), "a message comes after a rest, and not in its place"),
        ((MESSAGE, INFO), "a info comes after a message, and not in its place"),
        ((INFO, {**INFO, "position": 1}), "the second info of the agent"),
        ((REST, {**REST, "position": 1}), "the second rest of the agent"),
    ],
)
async def test_lines_in_a_wrong_place(lines: tuple[dict[str, Any], ...], says: str) -> None:
    """Each is an error that names the line, also if somebody wrote right digests for them."""
    found, there = await imported(sealed(A, *lines))
    assert isinstance(found, ArchiveError) and says in str(found), found
    assert found.line == 4 and there == {}


async def test_values_that_a_store_refuses_are_refused() -> None:
    found, there = await imported(sealed(A, MESSAGE))
    assert isinstance(found, CopyReport) and found.is_whole and list(there) == ["a"]
    for line in ({**MESSAGE, "createdAt": 2**63}, {**MESSAGE, "body": {"role": "user", "content": [], "x": 10**5000}}):
        if line["createdAt"] == 1:
            continue
        found, there = await imported(sealed(A, line))
        assert there == {} and not (isinstance(found, CopyReport) and found.is_whole)


async def test_a_line_that_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = await archive_of(full("a"), full("b", messages=[Message("user", "x" * 200_000)], message_times=[1]))
    monkeypatch.setattr(kode_core.moving.importing, "MAX_LINE", 100_000)
    found, there = await imported(raw)
    assert isinstance(found, ArchiveError) and "longer than 100,000 bytes" in str(found)
    assert found.brought == 1 and list(there) == ["a"]
    monkeypatch.setattr(kode_core.moving.exporting, "MAX_LINE", 100_000)
    async with create_extended_store("memory:") as store:
        await fill(store, full("a"), full("b", messages=[Message("user", "x" * 200_000)], message_times=[1]))
        file = io.BytesIO()
        report = await export_archive(store, file)
        assert report.outcomes == {"copied": 1, "refused": 1} and "more than 100,000 bytes" in report.troubles[0].reason
    found, there = await imported(file.getvalue())
    assert isinstance(found, CopyReport) and list(there) == ["a"]


async def test_an_export_overwrites_nothing_and_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "there.jsonl").write_text("mine")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "nowhere")

    class Gone(Layer):
        async def rows(self, *given: Any) -> Any:
            raise StoreUnavailableError("gone")

    async with create_extended_store("memory:") as store:
        await fill(store, full("a"))
        for name in ("there.jsonl", "link.jsonl"):
            with pytest.raises(InvalidArgumentError, match="exists already"):
                await export_archive(store, tmp_path / name)
        with pytest.raises(StoreUnavailableError, match="cannot be written"):
            await export_archive(store, tmp_path / "no folder" / "a.jsonl")
        with pytest.raises(ZeroDivisionError):
            await export_archive(store, tmp_path / "new.jsonl", progress=lambda *_: 1 / 0)
    with pytest.raises(InvalidArgumentError, match="cannot be read"):
        async with create_extended_store("memory:") as store:
            await import_archive(store, tmp_path / "none.jsonl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.jsonl", "there.jsonl"]


class _Nowhere(io.RawIOBase):
    size = 0

    def write(self, raw: Any) -> int:
        self.size += len(raw)
        return len(raw)


async def test_memory_does_not_grow_with_the_number_of_agents() -> None:
    async with create_extended_store("sqlite:///many.db", memory_limit_bytes=2**20) as store:
        long = [Message("user", "x" * 40_000)]
        await fill(store, *(one.replace(messages=long, message_times=[1]) for one in agents(250)))
        peaks, file = list[int](), io.BytesIO()
        for prefix in ("agt-00", "agt-0"):
            nowhere: Any = _Nowhere()
            tracemalloc.start()
            await export_archive(store, nowhere, prefix=prefix)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        await export_archive(store, file)
    assert nowhere.size > 10_000_000 and peaks[1] < peaks[0] + 1_500_000, (peaks, nowhere.size)
    file.seek(0)
    tracemalloc.start()
    async with opened_to_read(file) as lines:
        found = [type(one) async for one in Archive(lines).agents()]
    assert len(found) == 250 and tracemalloc.get_traced_memory()[1] < 4_000_000
    tracemalloc.stop()
