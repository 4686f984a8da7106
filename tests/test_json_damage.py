"""Damage to any file of the JSON files engine ends in a typed error that names the agent, or in the right data."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from kode_conformance.values import samples

from kode_core import (
    CorruptRecordError,
    ExtendedStore,
    LockLostError,
    LockUnavailableError,
    SchemaVersionError,
    create_extended_store,
)
from kode_core.backends.json_files.files import file_name

BASE = Path("store")
AGENTS = ("a", "B/2", "long" * 60)
Facts = dict[str, Any]


def opened(durability: str = "fast") -> Any:
    return create_extended_store(type="json", base_dir=str(BASE), durability=durability)


async def fill(durability: str) -> None:
    """Three agents with something of every kind, in several writes, and one that was deleted."""
    async with opened(durability) as store:
        for agent in AGENTS:
            await store.append_messages(agent, samples.messages(2))
            await store.save_info(agent, samples.info(agent))
            await store.append_events(agent, samples.events(3))
            await store.save_turn(
                agent, append=samples.messages(1), events=samples.events(2, start=50), todos=samples.todos("x")
            )
            await store.save_snapshot(agent, samples.snapshot())
            await store.upsert_tool_call_records(agent, [samples.tool_call()])
        await store.append_events("gone", samples.events(5))
        await store.delete("gone")


READS: dict[str, Callable[[ExtendedStore, str], Awaitable[Any]]] = {
    "messages": lambda store, agent: store.load_messages(agent),
    "tool calls": lambda store, agent: store.load_tool_call_records(agent),
    "todos": lambda store, agent: store.load_todos(agent),
    "snapshots": lambda store, agent: store.list_snapshots(agent),
    "info": lambda store, agent: _info(store, agent),
    "events": lambda store, agent: _events(store, agent),
    "bookmark": lambda store, agent: store.last_bookmark(agent),
}


async def _info(store: ExtendedStore, agent: str) -> Any:
    info = await store.load_info(agent)
    return None if info is None else info.replace(message_count=0)


async def _events(store: ExtendedStore, agent: str) -> Any:
    return [(event.offset, event.bookmark.seq) async for event in store.read_events(agent)]


async def facts_of(store: ExtendedStore, agent: str) -> Facts:
    """What can be read of an agent."""
    facts: Facts = {}
    for name, read in READS.items():
        try:
            facts[name] = await read(store, agent)
        except (CorruptRecordError, SchemaVersionError) as exc:
            assert repr(agent) in str(exc), f"the error names another agent: {exc}"
    return facts


def hurt(rng: random.Random, raw: bytes, other: bytes) -> bytes:
    """*raw* with damage of a random kind at a random place; *other* is a sound file of another agent."""
    start = rng.randrange(len(raw)) if raw else 0
    if rng.random() < 0.3:
        start = max(0, len(raw) - rng.randint(1, 300))
    end = min(len(raw), start + rng.choice((1, 1, 3, 40, 200, 512, len(raw))))
    lines = [0, *(i + 1 for i, byte in enumerate(raw) if byte == 10)]
    if rng.random() < 0.3:  # whole lines
        start, end = sorted((rng.choice(lines), rng.choice(lines)))
    part = raw[start:end]
    noise = bytes(rng.choice((0, 10, 35, 48, 255, rng.randrange(256))) for _ in range(rng.choice((1, 2, 30, 600))))
    kinds = [
        raw[:start] + bytes(len(part)) + raw[end:],
        raw[:start] + bytes(byte ^ (1 << rng.randrange(8)) for byte in part) + raw[end:],
        raw[:start] + raw[end:],
        raw[:start],
        raw[start:],
        raw[:end] + part + raw[end:],
        raw + part,
        raw + noise,
        raw[:start] + noise + raw[start:],
        raw[:start] + noise[: len(part)] + raw[start + len(noise[: len(part)]) :],
        raw[:start] + other[start:end] + raw[end:],
        other,
        raw + other[start:],
        b"",
    ]
    return rng.choice(kinds)


async def check_damaged(agent: str, damaged: bytes, path: Path, truth: dict[str, Facts], durability: str) -> str:
    """Hold a store whose file of one agent is damaged to what must be true; returns what became of a write."""
    async with opened(durability) as store:
        facts = {each: await facts_of(store, each) for each in AGENTS}
        for each in AGENTS:
            assert facts[each] == {name: truth[each][name] for name in facts[each]}, f"{each} reads wrong data"
            assert each == agent or facts[each].keys() == READS.keys(), f"{each} cannot be read"
        found = {session.agent_id for session in await store.query_sessions()}
        assert {*AGENTS} - {agent} <= found <= {*AGENTS}
        messages = {(message.agent_id, message.position) for message in await store.query_messages()}
        assert messages >= {(each, i) for each in AGENTS for i in range(3) if each != agent}
        if facts[agent].keys() != READS.keys():
            reads = facts[agent].keys()
            issues = await store._context.engine.inspect(agent)  # type: ignore[attr-defined]
            reported = any(issue.code == "corrupt_record" for issue in issues)
            assert reported or reads, "the damage is not reported"
            assert "delete" not in "".join(issue.message for issue in issues)
        try:
            await store.append_messages(agent, [samples.message(7)])
        except CorruptRecordError as exc:
            assert repr(agent) in str(exc)
            assert path.read_bytes() == damaged, "a write that was refused changed the file"
            return "refused"
        except SchemaVersionError:
            return "refused"
    async with opened(durability) as store:
        after = await facts_of(store, agent)
        assert facts[agent].keys() <= after.keys(), "a write lost what could be read"
        for name, value in facts[agent].items():
            assert after[name] == ([*value, samples.message(7)] if name == "messages" else value)
    return "written"


@pytest.mark.slow
@pytest.mark.parametrize("durability", ["full", "fast"])
async def test_damage_of_journals(durability: str) -> None:
    """Bytes of an agent's file that are zeroed, flipped, removed, doubled, inserted or another file's are never taken
    for another list without an error; a write is refused, or keeps all that could be read.
    """
    await fill(durability)
    async with opened() as store:
        truth = {agent: await facts_of(store, agent) for agent in AGENTS}
    assert all(facts.keys() == READS.keys() for facts in truth.values())
    sound = {path: path.read_bytes() for path in BASE.glob("*.jsonl")}
    paths = {agent: BASE / f"{file_name(agent)}.jsonl" for agent in AGENTS}
    rng = random.Random(f"journals {durability}")
    became = {"refused": 0, "written": 0, "same": 0}
    for _ in range(1000):
        agent = rng.choice(AGENTS)
        path = paths[agent]
        damaged = hurt(rng, sound[path], sound[paths[rng.choice([each for each in AGENTS if each != agent])]])
        if damaged == sound[path]:
            became["same"] += 1
            continue
        path.write_bytes(damaged)
        became[await check_damaged(agent, damaged, path, truth, durability)] += 1
        for cut in BASE.glob("*.cut-*"):
            cut.unlink()
        path.write_bytes(sound[path])
    assert became["refused"] > 500
    assert became["written"] > 50


@pytest.mark.slow
async def test_damage_of_the_folders_own_files() -> None:
    """Damage to lock files, leases, the layout's version and the folder's identity loses nothing: offsets and tokens
    go on, a lease is held or has ended, and what cannot be told is an error of this library.
    """
    await fill("full")
    async with opened() as store:
        truth = {agent: await facts_of(store, agent) for agent in AGENTS}
    own = BASE / ".kode"
    rng = random.Random("own files")
    offset = 5
    token = 0
    for _ in range(300):
        async with opened() as store, opened() as other:
            try:
                lease = await store.acquire_agent_lock("a", ttl_ms=60_000)
            except LockUnavailableError:
                next((own / "leases").iterdir()).unlink()
                continue
            assert lease.token > token
            token = lease.token
            files = [path for path in (*own.rglob("*"),) if path.is_file()]
            sound = {path: path.read_bytes() for path in files}
            victims = rng.sample(files, rng.randint(1, 3))
            for path in victims:
                path.write_bytes(hurt(rng, sound[path], sound[rng.choice(files)]))
            try:
                await store.save_todos("a", samples.todos("x"), fence=lease)
            except LockLostError:
                async with other.acquire_agent_lock("a") as again:
                    assert again.token > token
                    token = again.token
            else:
                with pytest.raises(LockUnavailableError):
                    await other.acquire_agent_lock("a")
                await lease.release()
            (own / "format").write_bytes(sound[own / "format"]) if (own / "format") not in victims else None
        try:
            async with opened() as store:
                for agent in AGENTS:
                    assert (await facts_of(store, agent)).keys() == READS.keys()
                    assert (await facts_of(store, agent))["messages"] == truth[agent]["messages"]
                new = await store.append_event("gone", samples.event(1))
                assert new > offset
                offset = new
                await store.delete("gone")
        except (CorruptRecordError, SchemaVersionError) as exc:
            assert own / "format" in victims, exc
            (own / "format").write_bytes(sound[own / "format"])


async def test_a_damaged_record_is_neither_copied_nor_lost() -> None:
    """A compaction leaves a damaged record as it is, byte for byte, and the others readable; a fork is refused."""
    async with opened() as store:
        await store.save_turn("a", append=[samples.message(text="first")], info=samples.info("a"))
        await store.save_todos("a", samples.todos("precious"))
        path = BASE / "a.jsonl"
        path.write_bytes(path.read_bytes().replace(b"precious", b"prec\xff\x00us"))
        found = store._context.engine.folder.journal("a")  # type: ignore[attr-defined]
        with found.turn:
            found.compact(durable=True)
        assert b"prec\xff\x00us" in path.read_bytes()
        for _ in range(2):
            assert [message.text for message in await store.load_messages("a")] == ["first"]
            with pytest.raises(CorruptRecordError, match="agent 'a'"):
                await store.load_todos("a")
            with pytest.raises(CorruptRecordError, match="a record of agent 'a'"):
                await store.batch_fork("a", 2)
            await store.append_messages("b", samples.messages(1))
        assert len(list(BASE.glob("*.jsonl"))) == 2


@pytest.mark.slow
async def test_damage_under_an_open_store() -> None:
    """Damage to a file that a store has read already is never taken for other data, neither by that store nor, after
    it has written, by the next one.
    """
    await fill("fast")
    path = BASE / "a.jsonl"
    sound = path.read_bytes()
    other = (BASE / f"{file_name('B/2')}.jsonl").read_bytes()
    async with opened() as store:
        truth = await facts_of(store, "a")
    rng = random.Random("open")
    for _ in range(300):
        path.write_bytes(sound)
        messages = [truth["messages"], [*truth["messages"], samples.message(7)]]
        async with opened() as store:
            assert await facts_of(store, "a") == truth
            path.write_bytes(hurt(rng, sound, other))
            facts = await facts_of(store, "a")
            assert facts == {name: truth[name] for name in facts}
            try:
                await store.append_messages("a", [samples.message(7)])
            except (CorruptRecordError, SchemaVersionError):
                del messages[1]
        async with opened() as store:
            facts = await facts_of(store, "a")
            assert facts.pop("messages", messages[-1]) == messages[-1]
            assert facts == {name: truth[name] for name in facts}
        for cut in BASE.glob("*.cut-*"):
            cut.unlink()


async def test_what_was_not_synced_may_be_lost_with_the_power_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """With durability fast, an end that is missing is damage while the host runs; after it was started again it is
    what a loss of power took: the rest is read, and what is cut off is kept and reported.
    """
    async with opened("fast") as store:
        for i in range(5):
            await store.append_messages("a", [samples.message(i)])
    path = BASE / "a.jsonl"
    whole = path.read_bytes()
    starts = [i + 1 for i in range(len(whole)) if whole[i : i + 2] == b"\n#"]
    for end in (starts[3], starts[3] + 100):
        path.write_bytes(whole[:end])
        async with opened("fast") as store:
            with pytest.raises(CorruptRecordError, match="agent 'a'"):
                await store.load_messages("a")
        with monkeypatch.context() as patch:
            patch.setattr("kode_core.backends.json_files.marks.this_boot", lambda: "00000000")
            async with opened("fast") as store:
                assert await store.load_messages("a") == samples.messages(3)
    monkeypatch.setattr("kode_core.backends.json_files.marks.this_boot", lambda: "00000000")
    async with opened("fast") as store:
        await store.append_messages("a", [samples.message(9)])
        assert await store.load_messages("a") == [*samples.messages(3), samples.message(9)]
        assert [issue.code for issue in (await store.check_consistency()).issues] == ["cut_short"]
    assert (BASE / "a.jsonl.cut-1").read_bytes() == whole[starts[3] : starts[3] + 100]
