"""LIFE-6, LIFE-8, FORK-4 and VER-2: calls that look first and write then, while another instance writes in between."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

from kode_conformance.context import Context
from kode_conformance.dimensions import Dimension
from kode_conformance.harness import keeps_documents, prunes_events
from kode_conformance.instruments.clock import clock_still
from kode_conformance.instruments.pace import in_time
from kode_conformance.kills.writes import portrait
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_core.errors import AgentNotFoundError, ConflictError, InvalidArgumentError
from kode_core.model import ABSENT, AgentRecords, AppendedMessage, Document, RecoveredFile
from kode_core.protocols import ExtendedStore
from kode_core.report import PruneResult

_E: Final = Capability.EXTENDED
_D = Dimension
T = TypeVar("T")
_ROUNDS: Final = 3
_LATER: Final = samples.T0 + 10**9
_FORKED: Final = frozenset({"todos", "media_cache", "snapshots"})


class _Meant(NamedTuple):
    """A record that another instance writes meanwhile, and the records of its kind as they are read."""

    name: str
    write: Callable[[ExtendedStore, str], Awaitable[Any]]
    read: Callable[[ExtendedStore, str], Awaitable[Any]]
    wanted: Any
    imported: dict[str, Any]
    """The record of the same key that an import, or a fork of an imported agent, has."""


async def _snapshot(store: ExtendedStore, agent_id: str) -> Any:
    return await store.load_snapshot(agent_id, "s")


async def _document(store: ExtendedStore, agent_id: str) -> Any:
    found = await store.load_document(agent_id, "c", "k")
    return found and found.value


def _meant() -> list[_Meant]:
    """A record of each kind that replaces another one of its key."""
    file = RecoveredFile(path="p", content="its own", timestamp=samples.T0)
    kinds = [
        _Meant(
            "todos",
            lambda s, a: s.save_todos(a, samples.todos("its own")),
            lambda s, a: s.load_todos(a),
            samples.todos("its own"),
            {"todos": samples.todos("the import's")},
        ),
        _Meant(
            "media cache",
            lambda s, a: s.save_media_cache(a, [samples.media("own")]),
            lambda s, a: s.load_media_cache(a),
            [samples.media("own")],
            {"media_cache": [samples.media("other")]},
        ),
        _Meant(
            "snapshot",
            lambda s, a: s.save_snapshot(a, samples.snapshot("s", _LATER)),
            _snapshot,
            samples.snapshot("s", _LATER),
            {"snapshots": [samples.snapshot("s")]},
        ),
        _Meant(
            "history window",
            lambda s, a: s.save_history_window(a, samples.window("w", _LATER)),
            lambda s, a: s.load_history_windows(a),
            [samples.window("w", _LATER)],
            {"history_windows": [samples.window("w")]},
        ),
        _Meant(
            "recovered file",
            lambda s, a: s.save_recovered_file(a, file),
            lambda s, a: s.load_recovered_files(a),
            [file],
            {"recovered_files": [samples.recovered("p", samples.T0)]},
        ),
    ]
    if keeps_documents():
        document = Document(collection="c", key="k", value="the import's", version="", updated_at=samples.T0)
        kinds.append(
            _Meant(
                "document",
                lambda s, a: s.put_document(a, "c", "k", "its own"),
                _document,
                "its own",
                {"documents": [document]},
            )
        )
    return kinds


def _records(meant: _Meant) -> AgentRecords:
    return AgentRecords(
        agent_id="p", info=samples.info("p"), messages=samples.messages(3), message_times=[1, 2, 3], **meant.imported
    )


def _rounds(ctx: Context, kinds: Sequence[T]) -> Iterator[tuple[int, T]]:
    """Every kind in every round, until the time for them is used up; a slow store meets some of the kinds."""
    rounds = range(_ROUNDS * ctx.effort.schedules)
    return in_time(ctx, ((i, kind) for i in rounds for kind in ctx.rng.sample(kinds, len(kinds))))


async def _later(seconds: float, call: Callable[[], Awaitable[Any]]) -> Any:
    await asyncio.sleep(seconds)
    return await call()


async def _met(taking: Awaitable[Any], write: Awaitable[Any]) -> ConflictError | None:
    """Run both calls at once; returns the conflict that the first one raised."""

    async def conflict() -> ConflictError | None:
        try:
            await taking
        except ConflictError as exc:
            return exc
        return None

    met = asyncio.ensure_future(conflict())
    try:
        await write
    finally:
        await asyncio.wait([met])
    return met.result()


@check(
    *("LIFE-8", "FORK-4"),
    needs=_E,
    tier=Tier.STANDARD,
    stochastic=True,
    under=(_D.COMPANY, _D.INSTANCES),
)
async def a_record_stored_meanwhile_is_not_replaced(ctx: Context) -> None:
    """Whatever record another instance stores under an id while an import or a fork takes it, at any moment, it stays:
    either the call raises ConflictError and writes nothing, or it came first, and has written the rest.
    """
    other, kinds = await ctx.another(), _meant()
    takes = 0.0
    for i, meant in _rounds(ctx, kinds):
        if not i:
            begun = time.monotonic()
            await ctx.store.import_agent(meant.name, _records(meant))
            takes = time.monotonic() - begun
        pause, agent = ctx.rng.uniform(0, 1.2 * takes), f"{meant.name} {i}"
        write = _later(pause, partial(meant.write, other, agent))
        is_fork = i % 2 == 0 and bool(meant.imported.keys() & _FORKED)
        if is_fork:
            taken = await _met(ctx.store.fork(meant.name, agent), write)
        else:
            taken = await _met(ctx.store.import_agent(agent, _records(meant)), write)
        call = f"{'fork' if is_fork else 'import'} to {agent!r}, which {'was refused' if taken else 'succeeded'}"
        ctx.equal(await meant.read(other, agent), meant.wanted, f"the {meant.name} stored during a {call}")
        wanted = [] if taken else samples.messages(3)
        ctx.equal(await other.load_messages(agent), wanted, f"the messages after a {call}")


@check("LIFE-8", needs=_E, stochastic=True, under=(_D.COMPANY, _D.INSTANCES))
async def an_import_takes_in_no_events_of_others(ctx: Context) -> None:
    """Events that another instance appends under the id of an import are alone in the log, or come after the imported
    ones.
    """
    other, records = await ctx.another(), AgentRecords(agent_id="p", events=samples.events(3))
    begun = time.monotonic()
    await ctx.store.import_agent("p", records)
    takes = time.monotonic() - begun
    for i in in_time(ctx, range(_ROUNDS * ctx.effort.schedules)):
        agent, own = f"a{i}", samples.events(2, 100)
        append = _later(ctx.rng.uniform(0, 1.2 * takes), partial(other.append_events, agent, own))
        taken = await _met(ctx.store.import_agent(agent, records), append)
        found = [event.bookmark.seq async for event in other.read_events(agent, after_offset=0)]
        how = "was refused" if taken else "succeeded"
        ctx.equal(found, [*([] if taken else [0, 1, 2]), 100, 101], f"the seqs, by offset, after an import that {how}")


@check("LIFE-6", needs=_E, tier=Tier.STANDARD, stochastic=True, under=(_D.COMPANY, _D.INSTANCES))
async def a_record_saved_again_meanwhile_is_not_pruned(ctx: Context) -> None:
    """A record that another instance saves again as the newest one, at any moment of a prune, stays as it was saved."""
    other = await ctx.another()
    kinds: tuple[tuple[str, Any, str], ...] = (
        ("snapshot", samples.snapshot, "list_snapshots"),
        ("history_window", samples.window, "load_history_windows"),
        ("compression_record", samples.compression, "load_compression_records"),
    )
    takes = 0.0
    for i, (name, make, load) in _rounds(ctx, kinds):
        agent, newest = f"{name} {i}", make("k0", _LATER)
        for k in range(4):
            await getattr(ctx.store, f"save_{name}")(agent, make(f"k{k}", samples.T0 + k))
        save = _later(ctx.rng.uniform(0, takes), partial(getattr(other, f"save_{name}"), agent, newest))
        arguments: dict[str, Any] = {f"keep_{name}s": 1}
        begun = time.monotonic()
        await asyncio.gather(ctx.store.prune(agent, **arguments), save)
        takes = takes or time.monotonic() - begun
        found = [one for one in await getattr(other, load)(agent) if one.id == "k0"]
        ctx.equal(found, [newest], f"the {name} that was saved again while others were pruned")


@check("LIFE-6", needs=_E, under=(_D.ITEMS, _D.ORDERS, _D.INSTANCES))
async def a_dry_run_counts_what_a_prune_removes(ctx: Context) -> None:
    """prune(dry_run=True) gives the numbers that the same prune then gives, and changes nothing; no other value than a
    bool is taken for one.
    """
    other: Any = await ctx.another()
    for i in range(9):
        await ctx.store.save_snapshot("a", samples.snapshot(f"s{(i * 7) % 9}", samples.T0 + i // 2))
        await ctx.store.save_history_window("a", samples.window(f"w{i}", samples.T0 + i))
    await ctx.store.save_recovered_file("a", samples.recovered())
    for wrong in (1, 0, None, "yes"):
        refused = other.prune("a", keep_snapshots=0, dry_run=wrong)
        await ctx.raises(InvalidArgumentError, refused, f"prune(dry_run={wrong!r})")
    prunes: list[dict[str, Any]] = [
        {"keep_snapshots": 4, "keep_history_windows": 7, "keep_recovered_files": 1},
        {"keep_snapshots": 0, "keep_compression_records": 3},
    ]
    if prunes_events():
        many = [samples.event(500 if i == 30 else i, cursor=i) for i in range(60)]
        offsets = await ctx.store.append_events("a", many)
        prunes = [{"events_before_offset": offsets[20]}, {"events_before_offset": offsets[50] + 1}, *prunes]
    for wanted in prunes:
        before = await portrait(other, "a")
        counted = await other.prune("a", **wanted, dry_run=True)
        ctx.equal(await portrait(ctx.store, "a"), before, f"everything after a dry run of {wanted}")
        ctx.equal(await ctx.store.prune("a", **wanted), counted, f"what a prune of {wanted} removed after a dry run")
        ctx.true(counted != PruneResult(), f"a dry run of {wanted} counts nothing, although there is something")


@check("LIFE-7", "LIFE-8", "FORK-4", needs=_E, under=(_D.CHANGES, _D.INSTANCES))
async def an_emptied_agent_is_none(ctx: Context) -> None:
    """An agent from which all records were removed is None for load_agent, and an import or a fork can take its id:
    with the given times and a new version, and with no key of its earlier messages.
    """
    other = await ctx.another()
    await ctx.store.append_messages("parent", samples.messages(2))
    await ctx.store.save_info("parent", samples.info("parent"))
    records = await ctx.store.load_agent("parent")
    assert records is not None
    for agent in ("imported", "forked"):
        if keeps_documents():
            await ctx.store.append_messages_once(agent, {"key": samples.message()})
        else:
            await ctx.store.append_messages(agent, samples.messages(1))
        await ctx.store.upsert_tool_call_records(agent, [samples.tool_call()])
        await ctx.store.save_snapshot(agent, samples.snapshot("s"))
        await ctx.store.truncate_messages(agent, 0)
        await ctx.store.save_tool_call_records(agent, [])
        await ctx.store.delete_snapshot(agent, "s")
        ctx.equal(await other.load_agent(agent), None, "load_agent of an agent that was emptied")
        version = await other.load_version(agent)
        if agent == "imported":
            await other.import_agent(agent, records)
            loaded = await ctx.store.load_agent(agent)
            ctx.equal(loaded and loaded.updated_at, records.updated_at, "updated_at of the import")
            ctx.equal(loaded and loaded.message_times, records.message_times, "the times of the imported messages")
        else:
            await other.fork("parent", agent)
        ctx.true(await ctx.store.load_version(agent) not in (version, ABSENT), "the version must be a new one")
        ctx.equal(await ctx.store.load_messages(agent), samples.messages(2), f"the messages of the {agent} agent")
        if keeps_documents():
            again = await ctx.store.append_messages_once(agent, {"key": samples.message(9)})
            ctx.equal(list(again), [AppendedMessage(2, True)], f"an append under an old key to the {agent} agent")


@check(
    "VER-2",
    "INFO-5",
    "LIFE-4",
    needs=_E,
    tier=Tier.STANDARD,
    stochastic=True,
    under=(_D.COMPANY, _D.INSTANCES, _D.CLOCKS),
)
async def the_next_agent_is_another_one(ctx: Context) -> None:
    """While an agent is deleted and created again by another instance, all of it at one time of the clock, an update of
    its info and a save that demands its version change it, or the next one, or nothing: they never bring it back.
    """
    other = await ctx.another()
    with clock_still():
        takes = 0.0
        for i in in_time(ctx, range(4 * _ROUNDS * ctx.effort.schedules)):
            agent = f"a{i}"
            await ctx.store.create_agent(agent, samples.info(agent, metadata={"n": 1}))
            version = await ctx.store.load_version(agent)

            async def again(agent: str = agent) -> None:
                await other.delete(agent)
                await other.create_agent(agent, samples.info(agent, metadata={"n": 2}))

            begun = time.monotonic()
            if i % 2:
                saved = samples.info(agent, metadata={"n": 3})
                call: Awaitable[Any] = ctx.store.save_info(agent, saved, expect=version)
            else:
                call = ctx.store.update_info(agent, {"k": 1})
            await asyncio.gather(_unless_gone(call), _later(ctx.rng.uniform(0, takes), again))
            takes = takes or time.monotonic() - begun
            found, write = await other.load_info(agent), "save_info" if i % 2 else "update_info"
            metadata = found and found.metadata
            ctx.true(
                metadata in ({"n": 2}, {"n": 2, "k": 1}), f"{write} to the agent before made the next one {metadata}"
            )


async def _unless_gone(call: Awaitable[Any]) -> None:
    with suppress(ConflictError, AgentNotFoundError):
        await call
