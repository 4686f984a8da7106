"""OPS-18: who may read the files that a store makes."""

from __future__ import annotations

import asyncio
import os
import stat
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Final

from kode_conformance.context import Context, Unverified
from kode_conformance.dimensions import Dimension
from kode_conformance.harness import Space
from kode_conformance.kills.writes import overwrite, seed
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_core.errors import UnsupportedError

_UMASKS: Final = (0o000, 0o022)
"""A umask that removes no permission from a new file, and the usual one."""


_NOTHING: Final = (
    "the store makes no files in the space's folder; if it makes them elsewhere, the harness says where with made_at"
)


@contextmanager
def _umask(mask: int) -> Iterator[None]:
    old = os.umask(mask)
    try:
        yield
    finally:
        os.umask(old)


@asynccontextmanager
async def _new(ctx: Context, mask: int) -> AsyncIterator[tuple[Context, _Kept]]:
    """A store at a place of its own, opened first and used while *mask* is all that keeps others out."""
    if os.name == "nt":
        raise Unverified("this system has no modes of files")
    with tempfile.TemporaryDirectory(prefix="kode-conf-", ignore_cleanup_errors=True) as folder:
        space = Space(f"conf_{uuid.uuid4().hex[:16]}", Path(folder))
        handle = await ctx.harness.provision(space)
        try:
            places = [space.folder, *(await ctx.harness.made_at(handle) if ctx.harness.has("made_at") else ())]
            fresh, kept = Context(ctx.harness, handle, space.folder, ctx.settings), _Kept(places)
            with _umask(mask):
                try:
                    await fresh.start()
                    made = kept.judge(fresh, f"with the umask {mask:03o}, when it was opened")
                    if not made and not ctx.harness.has("made_at"):
                        raise Unverified(_NOTHING)
                    yield fresh, kept
                finally:
                    await fresh.finish()
        finally:
            await ctx.harness.destroy(handle)


class _Kept:
    """The files and folders at some places, without the ones that existed before."""

    def __init__(self, places: Sequence[Path]) -> None:
        self._places = places
        self._before = set(_below(places))

    def judge(self, ctx: Context, when: str) -> int:
        """See that each is its owner's alone, and say how many there are."""
        made = self.made()
        _judge(ctx, made, when)
        return len(made)

    def made(self) -> list[Path]:
        """Every new file and folder, those above first."""
        return [path for path in _below(self._places) if path not in self._before]


def _below(places: Iterable[Path]) -> Iterator[Path]:
    for place in places:
        yield place
        with suppress(NotADirectoryError, FileNotFoundError):
            yield from _below(sorted(place.iterdir()))


def _judge(ctx: Context, made: Iterable[Path], when: str) -> None:
    wrong, inside = [], set[Path]()
    for path in made:
        with suppress(FileNotFoundError):  # it was there for a moment
            mode = path.lstat().st_mode
            if path.parent in inside or (stat.S_ISDIR(mode) and not mode & 0o077):
                inside.add(path)  # no one else gets this far
            elif not stat.S_ISLNK(mode) and mode & 0o077:
                wrong.append(f"{path.name} has the mode {stat.S_IMODE(mode):04o}")
    ctx.true(not wrong, f"others than the owner may use what the store made, {when}: {'; '.join(wrong[:5])}")


@check("OPS-18", needs=Capability.PERSISTENT, under=(Dimension.INSTANCES, Dimension.CHANGES, Dimension.ORDERS))
async def what_is_made_is_for_its_owner_alone(ctx: Context) -> None:
    """Whatever the umask allows, what a store makes can be used by its owner only: after it was opened, while it is
    written, deleted, and written again, through several instances, after they were closed and opened again.
    """
    for mask in _UMASKS:
        async with _new(ctx, mask) as (fresh, kept):
            under = f"with the umask {mask:03o}"
            for number, agent in enumerate(("a", "b/c", "a") if mask == _UMASKS[0] else ("a",)):
                store = fresh.store if number != 1 else await fresh.another()
                await seed(store, agent)
                kept.judge(fresh, f"{under}, after the first writes for {agent!r}")
                await overwrite(store, agent)
                await store.save_messages(agent, [samples.message(text="x" * 300_000), *samples.messages(120)])
                await store.append_events(agent, samples.events(120, 100))
                kept.judge(fresh, f"{under}, after every kind was saved for {agent!r}")
                if number == 0:
                    await store.delete(agent)
                    kept.judge(fresh, f"{under}, after a delete")
            await fresh.reopen()
            kept.judge(fresh, f"{under}, when it was opened again")
            await fresh.store.append_messages("a", samples.messages(2))
            kept.judge(fresh, f"{under}, after a write of a store that was opened again")
            await fresh.close(fresh.store)
            kept.judge(fresh, f"{under}, when it was closed")


@check("OPS-18", needs=Capability.PERSISTENT, under=(Dimension.CHANGES,))
async def what_is_there_keeps_its_mode(ctx: Context) -> None:
    """Files that were opened to a group stay so when the store is opened again and writes."""
    async with _new(ctx, 0o022) as (fresh, kept):
        await seed(fresh.store, "a")
        await fresh.close(fresh.store)
        files = [path for path in kept.made() if path.is_file()]
        for path in files:
            path.chmod(0o660)
        await fresh.reopen()
        for _ in range(2):
            await overwrite(fresh.store, "a")
            await fresh.store.append_messages("a", samples.messages(3))
        await fresh.close(fresh.store)
        changed = [f"{p.name} has the mode {stat.S_IMODE(p.stat().st_mode):04o}" for p in files if p.exists()]
        wrong = [each for each in changed if not each.endswith("0660")]
        ctx.true(not wrong, f"files that were there with the mode 0660 before the store was opened: {'; '.join(wrong)}")


@check(
    "OPS-18",
    needs=Capability.CROSS_PROCESS | Capability.PERSISTENT,
    tier=Tier.STANDARD,
    under=(Dimension.PROCESSES,),
)
async def what_other_processes_make_is_for_its_owner_alone(ctx: Context) -> None:
    """Files that another process makes, and leaves when it is killed, can be used by their owner only."""
    async with _new(ctx, 0o000) as (fresh, kept):
        await fresh.close(fresh.store)
        process = await fresh.process("append_events", "other", 0, 100_000, 20)
        await process.line()
        kept.judge(fresh, "while another process writes")
        process.kill()
        await process.gone()
        kept.judge(fresh, "after another process was killed")
        await fresh.reopen()
        await seed(fresh.store, "other")
        kept.judge(fresh, "after a process that was killed, and a reopening")


@check(
    "OPS-18",
    "OPS-16",
    needs=Capability.EXTENDED | Capability.PERSISTENT,
    under=(Dimension.ITEMS, Dimension.COMPANY),
)
async def a_backup_is_for_its_owner_alone(ctx: Context) -> None:
    """A backup, and every file that is made on the way, can be used by its owner only, also where a folder is made for
    it and while others write.
    """
    for mask in _UMASKS:
        async with _new(ctx, mask) as (fresh, _):
            await seed(fresh.store, "a")
            saves = (fresh.store.save_messages(f"m{i}", [samples.message(text="x" * 20_000)] * 5) for i in range(20))
            await asyncio.gather(*saves)
            for target in (Path("copy"), Path("new folder", "another", "copy")):
                with tempfile.TemporaryDirectory(prefix="kode-conf-") as folder:
                    await _back_up(fresh, Path(folder), target, f"by a backup to {target} with the umask {mask:03o}")


async def _back_up(ctx: Context, folder: Path, target: Path, what: str) -> None:
    kept = _Kept([folder])
    writing = asyncio.ensure_future(overwrite(ctx.store, "a"))
    copying = asyncio.ensure_future(ctx.store.backup(folder / target))
    try:
        while not copying.done():
            kept.judge(ctx, f"{what}, under way")
            await asyncio.sleep(0.001)
    finally:
        await asyncio.wait([writing, copying])
    try:
        await asyncio.gather(writing, copying)
    except UnsupportedError:
        raise Unverified("the store makes no backups") from None
    ctx.true(kept.judge(ctx, what), f"nothing was made {what}")
