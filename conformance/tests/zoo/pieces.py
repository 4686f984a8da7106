"""Stores that do large writes in pieces, so that a crash leaves some of these (DUR-3, LIFE-3, LIFE-5)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from kode_conformance.context import Context
from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import OnSqlite, mutant
from kode_core.batch import Applied, Batch, ListWrite, Outcome
from kode_core.layers import Layer
from kode_core.protocols import ExtendedStore

_PIECE = 100


async def _lengths_during(ctx: Context, write: Callable[[ExtendedStore], Awaitable[object]]) -> set[int]:
    """The numbers of messages that another instance sees during a write to an agent that has 150."""
    other = await ctx.another()
    await ctx.store.save_info("a", samples.info("a"))
    await ctx.store.save_messages("a", samples.messages(150))
    writing = asyncio.ensure_future(write(ctx.store))
    lengths = set()
    while not writing.done():
        lengths.add(len(await other.load_messages("a")))
    await writing
    return lengths


async def _while_appending(ctx: Context) -> object:
    return bool({250, 350} & await _lengths_during(ctx, lambda s: s.append_messages("a", samples.messages(300))))


@mutant(
    "DUR-3",
    killed_by="an_append_of_many_killed_midway",
    on=OnSqlite,
    source="executemany in batches, each with a commit of its own",
    witness=_while_appending,
    also=("DUR-3.one_crash_after_another",),
)
class AppendsInPieces(Layer):
    """Appends a hundred records at a time, each hundred in a write of its own."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        return [await self._one(batch) for batch in batches]

    async def _one(self, batch: Batch) -> Outcome:
        messages = batch.messages
        if len(batch.events) > _PIECE:
            pieces = [batch.events[i : i + _PIECE] for i in range(0, len(batch.events), _PIECE)]
            return await self._together([replace(batch, events=piece) for piece in pieces])
        if messages is not None and messages.is_blind and len(messages.append) > _PIECE:
            rows = [messages.append[i : i + _PIECE] for i in range(0, len(messages.append), _PIECE)]
            return await self._together([replace(batch, messages=ListWrite(append=piece)) for piece in rows])
        (outcome,) = await self.inner.commit([batch])
        return outcome

    async def _together(self, pieces: Sequence[Batch]) -> Outcome:
        offsets: list[int] = []
        for number, piece in enumerate(pieces):
            (outcome,) = await self.inner.commit([replace(piece, op_id=f"{piece.op_id}{number}")])
            if not isinstance(outcome, Applied):
                return outcome
            offsets += outcome.offsets
            await asyncio.sleep(0.002)
        return replace(outcome, offsets=tuple(offsets))


class _DeletesTwice(Layer):
    """Empties the list of messages, and then deletes the rest."""

    def is_mine(self, batch: Batch) -> bool:
        return batch.delete

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        outcomes: list[Outcome] = []
        for batch in batches:
            summary = await self.inner.summary(batch.agent_id) if self.is_mine(batch) else None
            if summary is not None and summary.messages.count:
                emptied = replace(batch, op_id=f"{batch.op_id}1", delete=False, messages=ListWrite(length=0))
                (outcome,) = await self.inner.commit([emptied])
                if not isinstance(outcome, Applied):
                    outcomes.append(outcome)
                    continue
                await asyncio.sleep(0.01)
                batch = replace(batch, expect_updated_at=None)
            outcomes += await self.inner.commit([batch])
        return outcomes


async def _exists_while(ctx: Context, delete: Callable[[ExtendedStore], Awaitable[object]]) -> object:
    """True if the agent exists without its messages for a moment."""
    other = await ctx.another()
    await ctx.store.save_turn("a", info=samples.info("a"), messages=samples.messages(150))
    deleting = asyncio.ensure_future(delete(ctx.store))
    seen = set()
    while not deleting.done():
        seen.add((len(await other.load_messages("a")), await other.exists("a")))
    return (0, True) in seen


@mutant(
    "LIFE-3",
    killed_by="DUR-3.every_big_write_killed_midway",
    on=OnSqlite,
    source="DELETE … LIMIT, again and again, so that no transaction is long",
    witness=lambda ctx: _exists_while(ctx, lambda store: store.delete("a")),
    slow=True,
)
class DeletesMuchInPieces(_DeletesTwice):
    """Deletes an agent that has many messages in two writes, and shows what is left in between."""


@mutant(
    "LIFE-5",
    killed_by="FORK-3.forks_and_deletions_of_many_killed_midway",
    on=OnSqlite,
    source="a DELETE for each table, over all that match",
    witness=lambda ctx: _exists_while(ctx, lambda store: store.delete_many(agent_id="a")),
    slow=True,
)
class DeletesManyInPieces(_DeletesTwice):
    """Deletes the messages of a session that a filter finds, and then the session."""

    def is_mine(self, batch: Batch) -> bool:
        return batch.delete and batch.expect_updated_at is not None
