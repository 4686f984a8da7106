"""OPS-16: backups are of one instant, whole or absent, and open as a store that goes on from the original."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from kode_conformance.context import Context, Unverified
from kode_conformance.dimensions import Dimension
from kode_conformance.kills.writes import portrait, seed
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_core.errors import KodeError
from kode_core.protocols import ExtendedStore

_NEEDS: Final = Capability.EXTENDED | Capability.PERSISTENT
_TEXT: Final = "x" * 20_000


def need_restored(ctx: Context) -> None:
    if not ctx.harness.has("restored"):
        raise Unverified("the harness has no hook restored, so that backups are not opened")


async def fill_much(ctx: Context, count: int = 40) -> None:
    """Save enough agents that a copy takes more than a moment."""
    saves = (ctx.store.save_messages(f"much-{i}", [samples.message(text=_TEXT)]) for i in range(count))
    await asyncio.gather(*saves)


async def _turn(store: ExtendedStore, agent_id: str, number: int) -> None:
    """A turn that says its number in every kind."""
    await store.save_turn(
        agent_id,
        append=[samples.message(number)],
        upsert_tool_calls=[samples.tool_call(number)],
        todos=samples.todos(str(number)),
        info=samples.info(agent_id, metadata={"turn": number}),
        events=[samples.event(number)],
    )


async def _turns(store: ExtendedStore, agent_id: str) -> list[int]:
    """The number of turns that each kind of an agent shows."""
    info, todos = await store.load_info(agent_id), await store.load_todos(agent_id)
    return [
        len(await store.load_messages(agent_id)),
        len(await store.load_tool_call_records(agent_id)),
        len([event async for event in store.read_events(agent_id)]),
        0 if info is None else int(str(info.metadata["turn"])),
        0 if todos is None else int(todos.todos[0].title),
    ]


class _Writer:
    """Writes turns to two agents by turns, and deletes a third and makes it anew, until told to stop."""

    def __init__(self, store: ExtendedStore) -> None:
        self._store = store
        self._stop = False
        self.number = 0

    async def run(self) -> None:
        while not self._stop:
            await asyncio.sleep(0)  # a store need not give way
            self.number += 1
            await _turn(self._store, "first", self.number)
            await _turn(self._store, "second", self.number)
            await self._store.delete("third")
            await self._store.save_turn(
                "third",
                append=[samples.message(self.number)],
                todos=samples.todos(str(self.number)),
                info=samples.info("third", metadata={"turn": self.number}),
                events=[samples.event(self.number)],
            )
            await asyncio.sleep(0)

    def stop(self) -> None:
        self._stop = True


@check("OPS-16", "TURN-1", needs=_NEEDS, tier=Tier.STANDARD, under=(Dimension.COMPANY,))
async def a_backup_is_of_one_instant(ctx: Context) -> None:
    """A backup that is made while turns are written, and agents deleted and made anew, opens as a consistent store:
    turns are whole, and no later write is in it without the earlier ones.
    """
    need_restored(ctx)
    await fill_much(ctx)
    for number, store in enumerate((ctx.store, await ctx.another(), ctx.store)):
        writer = _Writer(store)
        await ctx.store.delete("first")
        await ctx.store.delete("second")
        writing = asyncio.ensure_future(writer.run())
        while writer.number < 2:
            await asyncio.sleep(0.001)
        made = await ctx.store.backup(ctx.folder / f"copy-{number}")
        writer.stop()
        await writing
        copy = await ctx.restored(made)
        await _see_one_instant(ctx, copy)
        await ctx.close(copy)


async def _see_one_instant(ctx: Context, copy: ExtendedStore) -> None:
    first, second = await _turns(copy, "first"), await _turns(copy, "second")
    for name, turns in (("first", first), ("second", second)):
        ctx.equal(turns, [turns[0]] * 5, f"how many turns of the {name} agent each kind tells of, in the copy")
    ctx.true(
        first[0] - second[0] in (0, 1), f"in the copy there are {first[0]} first turns, and {second[0]} second ones"
    )
    ctx.true(first[0] > 0, "what was acknowledged before the backup must be in it")
    messages, _, events, info, todos = await _turns(copy, "third")
    ctx.true(
        (messages, events) == (1, 1) or (messages, events, info, todos) == (0, 0, 0, 0),
        f"an agent that is deleted and made anew is there in part: {messages} messages, {events} events, info {info}",
    )
    if messages:
        ctx.equal([await _third(copy)] * 3, [info, info, todos], "which one of the agents that were deleted it is")
        ctx.true(info in (first[0], first[0] - 1), f"the third agent is of turn {info}, the first one of {first[0]}")
    result = await copy.check_consistency()
    ctx.equal(result.issues, (), "the issues of the copy")
    ctx.equal(len(await copy.load_messages("much-0")), 1, "the messages of an agent that nobody wrote to")


async def _third(copy: ExtendedStore) -> int:
    (message,) = await copy.load_messages("third")
    return int(message.text.removeprefix("message "))


@check("OPS-16", "EVT-2", "LOCK-5", needs=_NEEDS, under=(Dimension.CHANGES, Dimension.INSTANCES))
async def a_backup_goes_on_where_the_store_was(ctx: Context) -> None:
    """In the copy the offsets of events and the tokens of leases are greater than any before, also for an agent that
    was deleted; later writes to the copy and to the original stay apart.
    """
    need_restored(ctx)
    offsets, tokens = {}, {}
    for agent_id in ("kept", "gone", "only-locked"):
        if agent_id != "only-locked":
            offsets[agent_id] = max(await ctx.store.append_events(agent_id, samples.events(5)))
        for _ in range(3):
            lease = await ctx.store.acquire_agent_lock(agent_id)
            tokens[agent_id] = lease.token
            await lease.release()
    await seed(ctx.store, "kept")
    before = await portrait(ctx.store, "kept")
    await ctx.store.delete("gone")
    made = await ctx.store.backup(ctx.folder / "copy")
    copy = await ctx.restored(made)
    ctx.equal(await portrait(copy, "kept"), before, "an agent in the copy")
    for agent_id, offset in offsets.items():
        (new,) = await copy.append_events(agent_id, samples.events(1, 50))
        ctx.true(
            new > offset, f"an event of agent {agent_id!r} got the offset {new} in the copy, after {offset} before"
        )
    for agent_id, token in tokens.items():
        lease = await copy.acquire_agent_lock(agent_id)
        ctx.true(lease.token > token, f"a lease of {agent_id!r} got the token {lease.token} in the copy, after {token}")
        await lease.release()
    ctx.equal(await portrait(ctx.store, "kept"), before, "the agent after the copy was written to")
    await ctx.close(copy)
    copy = await ctx.restored(made)
    ctx.equal(len([event async for event in copy.read_events("kept")]), 6, "the events of the copy, opened again")


def _there(folder: Path) -> list[str]:
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if not path.name.endswith(("-shm", "-wal"))
    )


@check("OPS-16", "OPS-9", needs=_NEEDS, under=(Dimension.INTERRUPTIONS,))
async def a_backup_that_is_cancelled_leaves_nothing(ctx: Context) -> None:
    """A backup that is cancelled, at whatever step, leaves nothing where the copy was to be, and one to the same place
    works afterwards and is whole.
    """
    need_restored(ctx)
    await fill_much(ctx, 60)
    await seed(ctx.store, "a")
    wanted, targets = await portrait(ctx.store, "a"), ctx.folder / "copies"
    targets.mkdir()
    steps, cancelled = 0, 0
    while True:
        backup = asyncio.ensure_future(ctx.store.backup(targets / "copy"))
        for _ in range(steps):
            if backup.done():
                break
            await asyncio.sleep(0 if steps < 40 else 0.0005)
        backup.cancel()
        await asyncio.wait([backup])
        if not backup.cancelled():
            break
        cancelled += 1
        await _see_nothing_left(ctx, targets, steps)
        steps += 1 if steps < 4 else steps // 2
    made = backup.result()
    copy = await ctx.restored(made)
    ctx.equal(await portrait(copy, "a"), wanted, f"an agent in a copy, after {cancelled} were cancelled")
    ctx.equal(len(await copy.load_messages("much-59")), 1, "the messages of the last of many agents in the copy")


async def _see_nothing_left(ctx: Context, targets: Path, steps: int) -> None:
    """Check that nothing is left, at once and a moment later: a backup that goes on would be in the way of the next
    one.
    """
    await asyncio.sleep(0.005)
    for seconds in (0.02, 0.1, 0.5):
        if not _there(targets):
            return
        await asyncio.sleep(seconds)
    ctx.equal(_there(targets), [], f"what is left of a backup that was cancelled after {steps} steps")


@check("OPS-16", "OPS-13", needs=_NEEDS, tier=Tier.STANDARD, under=(Dimension.COMPANY,))
async def a_backup_holds_up_no_writer(ctx: Context) -> None:
    """While a backup is made writes begin and end, in its store and in another."""
    need_restored(ctx)
    other = await ctx.another()
    count, ended = 100, [0, 0]
    for attempt in range(3):  # until the copy takes longer than a write
        await fill_much(ctx, count)
        backup = asyncio.ensure_future(ctx.store.backup(ctx.folder / f"copy-{attempt}"))
        await asyncio.sleep(0)
        ended = [0, 0]

        async def write(which: int, store: ExtendedStore, backup: asyncio.Future[Any] = backup) -> None:
            while not backup.done():
                await store.append_messages(f"writer-{which}", samples.messages(1))
                ended[which] += not backup.done()  # noqa: B023 - it is awaited in this round
                await asyncio.sleep(0)  # a store need not give way

        await asyncio.gather(write(0, ctx.store), write(1, other), backup)
        if min(ended) > 0:
            break
        count *= 2
    ctx.true(
        min(ended) > 0,
        f"while {count // 2} agents were copied {ended[0]} writes of the same store ended, {ended[1]} of another",
    )


@check("OPS-16", "OPS-17", needs=_NEEDS, under=(Dimension.DAMAGE,))
async def a_backup_that_cannot_be_made_leaves_nothing(ctx: Context) -> None:
    """A backup to a path below a file, or to a path that exists, fails with an error of this library, and the files
    that exist stay.
    """
    need_restored(ctx)
    await seed(ctx.store, "a")
    (ctx.folder / "file").write_text("precious")
    (ctx.folder / "full").mkdir()
    (ctx.folder / "full" / "file").write_text("precious")
    (ctx.folder / "dangling").symlink_to(ctx.folder / "nowhere")
    before = _contents(ctx.folder)
    for target in ("file", "file/below", "full", "file/below/deeper"):
        await ctx.raises(KodeError, ctx.store.backup(ctx.folder / target), f"a backup to {target}")
        ctx.equal(_contents(ctx.folder), before, f"the folder after a backup to {target} was refused")
    made = await ctx.store.backup(ctx.folder / "made" / "as" / "needed")
    ctx.equal(len(await (await ctx.restored(made)).load_messages("a")), 3, "the messages in a copy in new folders")


def _contents(folder: Path) -> Sequence[tuple[str, str]]:
    """Files of the check itself, not of the store."""
    names = ("file", "full/file")
    others = sorted(path.name for path in folder.iterdir() if path.name in ("file", "full", "dangling", "nowhere"))
    return [*((name, (folder / name).read_text()) for name in names), *((name, "") for name in others)]
