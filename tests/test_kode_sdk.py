"""Stores that the KODE SDK for TypeScript wrote come over whole, and stay as they are."""

from __future__ import annotations

import json
import os
import sqlite3
import tarfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import pytest

from kode_core import (
    AgentInfo,
    ConfigurationError,
    InvalidValueError,
    Snapshot,
    create_extended_store,
    from_dict,
)
from kode_core.formats.kode_sdk import Imported, import_agents, open_source
from tests.killed_writers import digests, leave_half_written
from tests.sdk_stores import (
    CALL,
    CREATED,
    ISO,
    MESSAGES,
    agent_files,
    event,
    info,
    lines,
    make_tables,
    of_an_agent,
    snapshot,
    write,
)
from tests.test_foreign import everything

DATA: Final = Path(__file__).parent / "data/kode-sdk-2.7.0"
MANIFEST: Final = json.loads((DATA / "manifest.json").read_text())
KINDS: Final = ("historyWindows", "compressionRecords", "recoveredFiles", "mediaCache", "snapshots", "todos")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The stores that the SDK itself wrote."""
    folder = tmp_path_factory.mktemp("sdk")
    for name in ("json-store", "sqlite-store"):
        with tarfile.open(DATA / f"{name}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
    yield folder


async def imported(place: Path | str, store: Any, files: Path | None = None, **options: Any) -> dict[str, Imported]:
    """The outcome of each agent, by its id; the remarks on no agent are under the empty id."""
    found = {}
    alone = str(place).endswith(".db") and files is None
    async with open_source(str(place), files, without_files=alone) as source:
        async for one in import_agents(source, store, **options):
            found[one.agent_id] = one
        found[""] = Imported(agent_id="", outcome="left out", left_out=dict(source.remarks))
    return found


@pytest.mark.parametrize("place", ["json", "sqlite/agents.db"])
@pytest.mark.parametrize("target", ["memory:", "json:///target", "sqlite:///target.db"])
async def test_what_the_sdk_wrote_comes_over_whole(recorded: Path, place: str, target: str) -> None:
    before = everything(recorded)
    files = recorded / "sqlite/store" if place != "json" else None
    async with create_extended_store(target) as store:
        found = await imported(recorded / place, store, files)
        assert {one.outcome for one in found.values() if one.agent_id} == {"imported"}
        assert not any(one.damaged or one.left_out for one in found.values())
        for agent_id, counted in MANIFEST.items():
            one = found[agent_id].counts
            assert [one["messages"], one["toolCalls"], one["events"]] == [
                counted[name] for name in ("messages", "toolCalls", "events")
            ]
            assert [one[kind] for kind in KINDS] == [1] * len(KINDS)
            whole = await store.load_agent(agent_id)
            assert whole is not None and whole.info is not None
            assert sum(call.is_error for call in whole.tool_calls) == counted["failed"]
            assert max(entry.bookmark.seq for entry in whole.events) == counted["lastSeq"]
            assert whole.info.created_time.isoformat(timespec="milliseconds") == counted["createdAt"].replace(
                "Z", "+00:00"
            )
            assert whole.info.metadata["reward"] == counted["reward"]
            assert [entry.bookmark.seq for entry in whole.events] == sorted(e.bookmark.seq for e in whole.events)
        again = await imported(recorded / place, store, files)
        assert {one.outcome for one in again.values() if one.agent_id} == {"known"}
    assert everything(recorded) == before


async def test_both_stores_of_the_sdk_have_equal_agents(recorded: Path) -> None:
    async with create_extended_store("memory:") as one, create_extended_store("memory:") as other:
        await imported(recorded / "json", one)
        found = await imported(recorded / "sqlite/agents.db", other, recorded / "sqlite/store")
        lost = 0
        for agent_id in MANIFEST:
            left, right = await one.load_agent(agent_id), await other.load_agent(agent_id)
            assert left is not None and right is not None
            calls = [call if call.result else call.replace(result=None) for call in left.tool_calls]
            assert bool(found[agent_id].lost) == (calls != [*left.tool_calls])  # databases of the SDK keep no empty one
            lost += bool(found[agent_id].lost)
            same = left.replace(tool_calls=calls, updated_at=right.updated_at, message_times=right.message_times)
            assert same == right
        assert lost


async def test_each_kind_of_a_folder(tmp_path: Path) -> None:
    write(tmp_path / "old/agt-1", agent_files("agt-1"))
    async with create_extended_store("memory:") as store:
        found = await imported(tmp_path / "old", store)
        assert found["agt-1"].outcome == "imported"
        whole = await store.load_agent("agt-1")
    assert whole is not None and whole.info is not None and whole.todos is not None
    assert (whole.info.created_at, whole.info.message_count) == (CREATED, 2)
    assert whole.messages[0].text == "Where is my bag?\u2028\U0001f600 \ud800"
    assert whole.message_times == (CREATED, CREATED + 3_000)
    assert (whole.tool_calls[0].error, whole.tool_calls[0].duration_ms) == ("no bag", 1000)
    assert [(entry.bookmark.seq, entry.event.type) for entry in whole.events] == [
        (0, "text_chunk"), (1, "state_changed"), (2, "token_usage"), (3, "done"),
    ]  # fmt: skip
    assert whole.events[0].event.data["text"] == "a\u2028b\x85c"
    file = whole.recovered_files[0]
    assert (file.path, file.content, file.mtime) == ("a/b.md", "line\n\nline", 1767258000000.25)
    assert whole.snapshots[0].created_at == CREATED
    assert (whole.todos.version, whole.history_windows[0].stats.token_count) == (2, 9)
    assert whole.compression_records[0].ratio == 0.25
    assert whole.updated_at == CREATED + 9_000


async def test_forks_lie_in_the_folders_of_their_parents(tmp_path: Path) -> None:
    ids = ["a", "a/fork-1", "a/fork-1/fork-2"]
    for i, agent_id in enumerate(ids):
        files = agent_files(agent_id, lineage=ids[:i])
        files["snapshots/x/y.json"] = snapshot("x/y")
        write(tmp_path / "old" / agent_id, files)
    (tmp_path / "old/b/runtime").mkdir(parents=True)  # the SDK makes empty folders for agents that it looks for
    (tmp_path / "old/.health-check").write_text("ok")
    async with create_extended_store("memory:") as store:
        found = await imported(tmp_path / "old", store)
        assert [one.agent_id for one in found.values() if one.outcome == "imported"] == ids
        last = await store.load_agent(ids[2])
        assert last is not None and last.info is not None
        assert last.info.lineage == ("a", "a/fork-1")
        assert sorted(one.id for one in last.snapshots) == ["sfp-1", "x/y"]
    assert found[""].left_out == {"files in the folder that are not the SDK's, such as '.health-check'": 1}


async def test_a_crash_left_the_newest_records_in_write_ahead_files(tmp_path: Path) -> None:
    files = agent_files("agt-1")
    newer = [*MESSAGES, {"role": "user", "content": [{"type": "text", "text": "newest"}]}]
    files["runtime/messages.wal"] = {"data": newer, "timestamp": CREATED}
    files["runtime/tool-calls.wal"] = b'{"data": [{'
    files["events/progress.wal"] = lines(event(3, "done"), event(4, "newest"))
    files["events/control.wal"] = lines(event(2, "permission_required", "control"))
    files["events/monitor.log"] += b'{"cursor": 7, "bookm'
    write(tmp_path / "old/agt-1", files)
    async with create_extended_store("memory:") as store:
        found = (await imported(tmp_path / "old", store))["agt-1"]
        whole = await store.load_agent("agt-1")
    assert found.outcome == "imported" and whole is not None
    assert [message.text for message in whole.messages][-1] == "newest"
    assert [call.id for call in whole.tool_calls] == ["c-1"]
    assert [entry.event.type for entry in whole.events] == [
        "text_chunk", "state_changed", "permission_required", "token_usage", "done", "newest",
    ]  # fmt: skip
    assert found.changed["events: entries that were stored twice"] == 1
    assert len(found.left_out) == 2


async def test_repeated_seqs_keep_the_order_of_their_log(tmp_path: Path) -> None:
    """After a restart the SDK counts from the last bookmark again, or from 0."""
    again = [event(0, "text_chunk"), event(1, "text_chunk"), event(0, "after a restart"), event(1, "done")]
    for i, entry in enumerate(again[2:]):
        entry["bookmark"]["timestamp"] = CREATED + 60_000 + i
    write(tmp_path / "old/agt-1", {**agent_files("agt-1"), "events/progress.log": lines(*again)})
    async with create_extended_store("memory:") as store:
        await imported(tmp_path / "old", store)
        whole = await store.load_agent("agt-1")
    assert whole is not None
    assert [e.event.type for e in whole.events if e.event.channel == "progress"] == [
        "text_chunk", "text_chunk", "after a restart", "done",
    ]  # fmt: skip


async def test_the_callers_metadata_is_found_by_queries(tmp_path: Path) -> None:
    files = {**agent_files("agt-1"), "meta.json": of_an_agent("agt-1", {"userId": "u-7", "kodeSdk": 1})}
    write(tmp_path / "old/agt-1", files)
    async with create_extended_store("memory:") as store:
        await imported(tmp_path / "old", store)
        (session,) = await store.query_sessions(user_id="u-7")
        found = await store.load_info("agt-1")
    assert session.agent_id == "agt-1" and found is not None
    assert (found.breakpoint, found.metadata["kodeSdk"]) == ("READY", 1)
    own: Any = found.metadata["kodeSdk_"]
    assert own["tools"] == [{"name": "look"}] and "metadata" not in own
    assert session.updated_at == CREATED + 3_600_000


async def test_lost_messages_are_told_and_taken_from_the_newest_snapshot(tmp_path: Path) -> None:
    older = snapshot("sfp-0", MESSAGES[:1])
    newer = snapshot("sfp-1", MESSAGES, "2026-01-02T09:00:00.000Z")
    tables = {"agents": [info("agt-1", messageCount=4)], "snapshots": [older, newer]}
    make_tables(tmp_path / "agents.db", {"agt-1": tables})
    async with create_extended_store("memory:") as store:
        found = (await imported(tmp_path / "agents.db", store))["agt-1"]
        assert list(found.lost) == ["the info counts 4 messages, and 0 are stored"]
        assert await store.load_messages("agt-1") == []
        await store.delete("agt-1")
        found = (await imported(tmp_path / "agents.db", store, recover_from_snapshots=True))["agt-1"]
        assert "messages: the 2 of snapshot 'sfp-1' replace the lost ones" in found.changed
        assert len(await store.load_messages("agt-1")) == 2


DAMAGE: Final[dict[str, bytes | Any]] = {
    "meta.json": b'{"agentId": "agt-1", "templ',
    "runtime/messages.json": [MESSAGES[0], {"role": "user"}],
    "runtime/tool-calls.json": {"not": "a list"},
    "runtime/todos.json": b"",
    "runtime/media-cache.json": b"[{}]",
    "events/progress.log": b"{broken}\n" + lines(event(3, "done")),
    "history/windows/1.json": b"\xff\xfe\x00",
    "history/recovered/x_1.txt": b"no header",
    "snapshots/sfp-1.json": {"id": "sfp-1", "messages": [], "createdAt": "yesterday"},
}


@pytest.mark.parametrize("name", DAMAGE)
async def test_damage_is_refused_or_skipped_by_choice(tmp_path: Path, name: str) -> None:
    write(tmp_path / "old/agt-1", {**agent_files("agt-1"), name: DAMAGE[name]})
    write(tmp_path / "old/agt-2", agent_files("agt-2"))
    before = everything(tmp_path)
    async with create_extended_store("memory:") as store:
        found = await imported(tmp_path / "old", store)
        assert (found["agt-1"].outcome, found["agt-2"].outcome) == ("refused", "imported")
        (remark,) = found["agt-1"].damaged
        assert remark.startswith(name.partition(".")[0])
        assert await store.load_agent("agt-1") is None
        again = await imported(tmp_path / "old", store, skip_damaged=True)
        assert (again["agt-1"].outcome, again["agt-2"].outcome) == ("imported", "known")
        assert await store.load_agent("agt-1") is not None
    assert everything(tmp_path) == before


async def test_infos_with_missing_fields(tmp_path: Path) -> None:
    write(tmp_path / "old/__pool_meta__", {"meta.json": {"agentId": "__pool_meta__", "runningAgents": ["agt-1"]}})
    bare = {"templateId": "t"}
    write(tmp_path / "old/agt-1", {**agent_files("agt-1"), "meta.json": bare})
    async with create_extended_store("memory:") as store:
        found = await imported(tmp_path / "old", store)
        assert [found[name].outcome for name in ("__pool_meta__", "agt-1")] == ["left out", "imported"]
        there = await store.load_info("agt-1")
        assert there is not None and (there.created_at, there.metadata) == (CREATED, {})
        assert await store.list() == ["agt-1"]
    assert len(found["agt-1"].changed) == 6


@pytest.mark.parametrize("target", ["memory:", "json:///target", "sqlite:///target.db"])
async def test_a_second_import_knows_agents_whatever_their_order_and_gaps(tmp_path: Path, target: str) -> None:
    files = agent_files("agt-1")
    for name in ("sfp-2", "sfp-10", "sfp-1-b"):
        files[f"snapshots/{name}.json"] = snapshot(name)
    for n, name in enumerate("zyx"):
        files[f"history/recovered/{name}_{CREATED}.txt"] = (
            f"# Recovered: {name}\n\n{n}\n# Timestamp: {CREATED}\n# Mtime: {n}\n\ntext".encode()
        )
    for name in ("runtime/tool-calls.json", "snapshots/sfp-1.json", "runtime/todos.json", "runtime/media-cache.json"):
        for record in files[name] if isinstance(files[name], list) else [files[name]]:
            for field in ("createdAt", "updatedAt"):
                record.pop(field, None)
    files["history/windows/0.json"] = {"id": "w-0"}
    write(tmp_path / "old/agt-1", files)
    async with create_extended_store(target) as store:
        first = (await imported(tmp_path / "old", store))["agt-1"]
        assert first.outcome == "imported" and len(first.changed) >= 5
        assert (await imported(tmp_path / "old", store))["agt-1"].outcome == "known"


async def test_links_and_devices_are_damage(tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text("[]")
    links: dict[str, Path] = {
        "agt-1/runtime/messages.json": secret,
        "agt-2/snapshots": tmp_path,
        "agt-3/history/recovered": tmp_path,
        "agt-4/events/progress.log": secret,
    }
    for place, leads_to in links.items():
        agent_id, name = place.split("/", 1)
        files = {key: value for key, value in agent_files(agent_id).items() if not key.startswith(name)}
        write(tmp_path / "old" / agent_id, files)
        (tmp_path / "old" / place).symlink_to(leads_to)
    write(tmp_path / "old/agt-5", {k: v for k, v in agent_files("agt-5").items() if k != "runtime/todos.json"})
    os.mkfifo(tmp_path / "old/agt-5/runtime/todos.json")
    write(tmp_path / "old/agt-6", {k: v for k, v in agent_files("agt-6").items() if not k.startswith("snapshots")})
    (tmp_path / "old/agt-6/snapshots").write_text("not a folder")
    found = await imported(tmp_path / "old", None)
    assert [found[f"agt-{n}"].outcome for n in range(1, 7)] == ["refused"] * 6
    assert all(one.damaged for one in found.values() if one.agent_id)


async def test_one_spoiled_agent_ends_no_import(tmp_path: Path) -> None:
    """Older tables, other types, ids that are no text and lead elsewhere: each agent stands for itself."""
    write(tmp_path / "outside/secret", agent_files("secret"))
    (tmp_path / "files").mkdir()
    ids = ["../outside/secret", "a" * 300, "not text", "number", "huge", "state", "good"]
    make_tables(
        tmp_path / "old.db",
        {one: {"agents": [info(one)], "messages": MESSAGES, "tool_calls": [CALL]} for one in ids},
    )
    with closing(sqlite3.connect(tmp_path / "old.db")) as db:
        db.execute("UPDATE agents SET agent_id = CAST(x'ff41' AS TEXT) WHERE agent_id = 'not text'")
        db.execute("UPDATE agents SET metadata = 7 WHERE agent_id = 'number'")
        db.execute(f"UPDATE agents SET created_at = '{'9' * 400}' WHERE agent_id = 'huge'")
        db.execute("UPDATE messages SET created_at = 9e999 WHERE agent_id = 'good'")
        db.execute("UPDATE tool_calls SET id = CAST(x'ff' AS TEXT) WHERE agent_id = 'state'")
        db.execute("ALTER TABLE tool_calls DROP COLUMN result")
        db.execute("ALTER TABLE messages DROP COLUMN metadata")
        db.commit()
    async with create_extended_store("memory:") as store:
        found = await imported(tmp_path / "old.db", store, tmp_path / "files")
        assert found["good"].outcome == "imported"
        assert found["good"].changed["a database without the column metadata"] == 2
        others = {one.agent_id: one.outcome for one in found.values() if one.agent_id not in ("good", "")}
        assert len(others) == 6 and set(others.values()) == {"refused"}, others
        assert await store.list() == ["good"]


async def test_another_agent_of_that_id_is_not_touched(tmp_path: Path) -> None:
    write(tmp_path / "old/agt-1", agent_files("agt-1"))
    async with create_extended_store("memory:") as store:
        await store.save_info("agt-1", AgentInfo(agent_id="agt-1", template_id="mine"))
        found = (await imported(tmp_path / "old", store))["agt-1"]
        assert found.outcome == "refused"
        assert "the store has an agent of that id with other records, and --replace was not given" in found.reason
        there = await store.load_info("agt-1")
        assert there is not None and there.template_id == "mine"
        assert (await imported(tmp_path / "old", store, replace=True))["agt-1"].outcome == "replaced"
        assert (await imported(tmp_path / "old", store, replace=True))["agt-1"].outcome == "known"


async def test_the_folder_above_the_store_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "above/old/agt-1", agent_files("agt-1"))
    async with create_extended_store("memory:") as store:
        found = (await imported(tmp_path / "above", store))["old/agt-1"]
        assert (found.outcome, await store.list()) == ("refused", [])
        assert "its info is of the agent 'agt-1'" in found.reason


async def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    write(tmp_path / "old/agt-1", agent_files("agt-1"))
    found = (await imported(tmp_path / "old", None))["agt-1"]
    assert (found.outcome, found.counts["messages"]) == ("importable", 2)


async def test_a_database_with_a_log_is_left_as_a_crash_left_it(tmp_path: Path) -> None:
    path = tmp_path / "agents.db"
    agent = {"agents": [info("agt-1")], "messages": MESSAGES, "tool_calls": [CALL], "snapshots": [snapshot("sfp-1")]}
    make_tables(path, {"agt-1": agent})
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("UPDATE messages SET content = CAST(x'5b7b2274797065223a2274657874222c2274657874223a22eda08022"
                   "7d5d' AS TEXT) WHERE seq = 0")  # fmt: skip
        db.commit()
        kept = {name: Path(f"{path}{name}").read_bytes() for name in ("", "-wal")}
    for name, content in kept.items():
        Path(f"{path}{name}").write_bytes(content)
    before = everything(tmp_path)
    async with create_extended_store("memory:") as store:
        found = (await imported(path, store))["agt-1"]
        assert found.outcome == "imported"
        whole = await store.load_agent("agt-1")
    assert whole is not None
    assert whole.messages[0].text == "\ud800"  # raw bytes that no decoder of UTF-8 takes
    assert whole.message_times == (CREATED + 8_000,) * 2
    assert (whole.tool_calls[0].is_error, whole.snapshots[0].created_at) == (True, CREATED)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("mode", ["wal", "delete"])
async def test_a_killed_writer_of_a_database(tmp_path: Path, mode: str) -> None:
    """A transaction behind its commit is read from the log, and one that was half written is rolled back in a copy."""
    path = tmp_path / "source" / "agents.db"
    path.parent.mkdir()
    make_tables(path, {"agt-1": {"agents": [info("agt-1")], "messages": MESSAGES, "tool_calls": [CALL]}})
    before = leave_half_written(path, mode, "DELETE FROM messages", "UPDATE agents SET template_id = 'half'")
    async with create_extended_store("memory:") as store, open_source(str(path), without_files=True) as source:
        (found,) = [one async for one in import_agents(source, store)]
        assert found.outcome == "imported"
        there = await store.load_agent("agt-1")
    assert there is not None and there.info is not None
    assert (len(there.messages), there.info.template_id == "half") == ((0, True) if mode == "wal" else (2, False))
    assert digests(path.parent) == before


async def test_files_without_a_row_are_brought_from_their_folder(tmp_path: Path) -> None:
    make_tables(tmp_path / "agents.db", {"agt-1": {"agents": [info("agt-1", messageCount=0)]}})
    write(tmp_path / "files/agt-2", {"events/progress.log": lines(event(0, "done"))})
    async with create_extended_store("memory:") as store:
        found = await imported(tmp_path / "agents.db", store, tmp_path / "files")
        assert (found["agt-1"].outcome, found["agt-2"].counts) == ("imported", {"events": 1})
    (tmp_path / "files/agt-2").rename(tmp_path / "agt-2")
    write(tmp_path / "agt-1", {"events/progress.log": lines(event(0, "done"))})
    async with open_source(str(tmp_path / "agents.db")) as source:  # the default is next to the database
        assert [one.agent_id async for one in import_agents(source, None)] == ["agt-1"]


async def test_many_agents_in_flat_memory(tmp_path: Path) -> None:
    """The ids are a stream, and so are the outcomes."""
    agents = {f"agt-{n:05}": {"agents": [info(f"agt-{n:05}", messageCount=0)]} for n in range(3_000)}
    make_tables(tmp_path / "agents.db", agents)
    async with open_source(str(tmp_path / "agents.db"), without_files=True) as source:
        found = [one.agent_id async for one in import_agents(source, None)]
    assert found == list(agents)


@pytest.mark.parametrize(
    ("place", "files", "says"),
    [
        ("nothing", None, "there is no folder"),
        ("ours", None, "is a store of kode_core and not of the SDK"),
        ("other.db", "old", "has not the tables of the KODE SDK"),
        ("old", "old", "leave --files out"),
        ("memory:", None, "the KODE SDK has no store for memory"),
        ("agents.db", "nowhere", "there is no folder nowhere of files"),
        ("databases/agents.db", None, "databases has none of these agents: name it with --files DIR, or import the"),
        ("databases/agents.db", "empty", "empty has none of these agents: name it with --files DIR"),
        ("near/near.db", None, "near has none of these agents: name it with --files .*near/files, or import the"),
        ("missing.db", None, "there is no file"),
        ("", None, "the source is empty"),
        ("old/agt-1", None, "is the folder of one agent; name the folder that it is in"),
        ("databases", None, "has no agents of the SDK; if agents.db is the database of its SqliteStore, name that"),
        ("empty", None, "has no agents of the SDK"),
    ],
)
async def test_other_places_are_refused(tmp_path: Path, place: str, files: str | None, says: str) -> None:
    write(tmp_path / "old/agt-1", agent_files("agt-1"))
    for folder in ("empty", "databases"):
        (tmp_path / folder).mkdir()
    write(tmp_path / "near/files/agt-5", agent_files("agt-5"))
    (tmp_path / "near/src/events").mkdir(parents=True)  # a folder of somebody else
    for path, agent_id in (("agents.db", "agt-1"), ("databases/agents.db", "agt-2"), ("near/near.db", "agt-5")):
        make_tables(tmp_path / path, {agent_id: {"agents": [info(agent_id)]}})
    async with create_extended_store("json:///ours") as store:
        await store.save_info("agt-1", AgentInfo(agent_id="agt-1", template_id="t"))
    with closing(sqlite3.connect(tmp_path / "other.db")) as db:
        db.execute("CREATE TABLE agents (id)")
    with pytest.raises(ConfigurationError, match=says):
        async with open_source("memory://" if place == "memory:" else place, Path(files) if files else None):
            pass


def test_infos_and_snapshots_of_the_sdk_are_read_as_they_are() -> None:
    assert from_dict(AgentInfo, info("agt-1")).created_at == CREATED
    assert from_dict(Snapshot, snapshot("sfp-1")).created_at == CREATED
    assert from_dict(Snapshot, snapshot("sfp-1", created="2026-01-01T10:00:00+01:00")).created_at == CREATED
    assert from_dict(Snapshot, snapshot("sfp-1", created=ISO[:-1])).created_at == CREATED
    with pytest.raises(InvalidValueError, match=r"\$\.createdAt: a time is milliseconds"):
        from_dict(AgentInfo, info("agt-1", createdAt="yesterday"))
