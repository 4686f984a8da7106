"""Histories of calls, random and systematic, compared with a model after every step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from kode_conformance.context import Context
from kode_conformance.dimensions import Dimension
from kode_conformance.histories.changes import CHANGES, chains
from kode_conformance.histories.experiments import follow, follow_the_model, newer_calls
from kode_conformance.histories.findings import How
from kode_conformance.histories.making import DOCUMENTS, EDITS, history
from kode_conformance.histories.steps import Step
from kode_conformance.processes.remote import another_process
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier

_Q = Capability.QUERYABLE
_LISTS = ("MSG-1", "MSG-2", "MSG-3", "MSG-6", "MSG-7", "TC-1", "TC-2", "TC-3", "TURN-1")
_LOG = ("EVT-2", "EVT-3", "EVT-4", "EVT-5", "EVT-6")
_DOCUMENTS = ("TODO-1", "HIS-1", "HIS-2", "MED-1", "SNAP-1", "INFO-1", "LIFE-1", "LIFE-3", "LIFE-4")
_QUERIES = ("QRY-3", "QRY-4", "QRY-5", "QRY-6", "QRY-7", "MSG-6", "INFO-2", "LIFE-2", "LIFE-5")
_UNDER: Final = (Dimension.CHANGES, Dimension.ORDERS, Dimension.EQUALS, Dimension.INSTANCES)

# --- each change, and the queries after it ----------------------------------------------------------------------------


async def _each(ctx: Context, group: str, length: int) -> None:
    stores = [ctx.store, await ctx.another()]
    await follow(ctx, stores, chains(CHANGES[group], length), How(queries=True, end=False))


@check("QRY-2", "MSG-4", "QRY-3", "QRY-5", "QRY-7", "MSG-6", "TC-3", "INFO-2", needs=_Q, under=_UNDER)
async def queries_after_each_change_of_a_list(ctx: Context) -> None:
    """After each way to edit messages and tool calls, by each method, and each of their fields, every query finds the
    current records, and no earlier ones.
    """
    await _each(ctx, "lists", 8)


@check("QRY-2", "INFO-1", "QRY-3", "INFO-2", "LIFE-2", needs=_Q, under=_UNDER)
async def queries_after_each_change_of_an_info(ctx: Context) -> None:
    """After each change of each field of an info, and of each type of value in its metadata, every query finds the
    session by its current values, and not by earlier ones.
    """
    await _each(ctx, "infos", 8)


@check("MSG-8", "TODO-1", "HIS-1", "HIS-2", "MED-1", "SNAP-1", "QRY-7", needs=_Q, under=_UNDER)
async def loads_after_each_change_of_a_document(ctx: Context) -> None:
    """After each change of each field of a document, all loads give the records saved last, in their order."""
    await _each(ctx, "documents", 8)


@check("EVT-5", "EVT-3", "EVT-4", "EVT-6", under=_UNDER)
async def parts_of_a_log_after_each_append(ctx: Context) -> None:
    """After each kind of append, a log is read by seq, by offset and by channel, and by all of them together."""
    await _each(ctx, "events", 8)


@check("LIFE-4", "LIFE-3", "LIFE-5", "FORK-1", "FORK-2", "QRY-2", "EVT-2", needs=Capability.EXTENDED, under=_UNDER)
async def queries_after_each_end_and_fork(ctx: Context) -> None:
    """After an agent was deleted, made anew with some of each kind, forked or refused a write, loads and queries find
    the current records of the agent, its forks and its neighbours.
    """
    await _each(ctx, "lives", 1)


@check("QRY-2", "MSG-4", *_QUERIES, needs=Capability.EXTENDED, tier=Tier.STANDARD, stochastic=True, under=_UNDER)
async def queries_after_pairs_of_changes(ctx: Context) -> None:
    """After any two changes in a row, loads and queries find the current records."""
    every = [change for group in CHANGES.values() for change in group]
    stores = [ctx.store, await ctx.another()]

    def made() -> Iterator[list[Step]]:
        for _ in range(max(1, ctx.effort.examples // 3)):
            yield from chains(ctx.rng.sample(every, 12), 12, restore=False)

    await follow(ctx, stores, made(), How(queries=True, end=False))


def _number(ctx: Context, few: int, share: float) -> int:
    """How many histories to follow: a *few* at quick, and a *share* of the examples of later tiers."""
    return few if ctx.settings.tier is Tier.QUICK else round(share * ctx.effort.examples)


# --- random histories -------------------------------------------------------------------------------------------------


@check("MSG-8", *_LISTS, *_LOG, *_DOCUMENTS, "VAL-2", "VAL-3", "ID-2", "ID-3", stochastic=True, under=_UNDER)
async def random_histories_follow_the_model(ctx: Context) -> None:
    """After any sequence of calls through two instances, the store holds what the contract makes of them."""
    await follow_the_model(ctx, histories=ctx.effort.examples // (2 if ctx.settings.tier else 3))


@check(
    "LIFE-3",
    "DUR-1",
    "EVT-2",
    "EVT-4",
    "MSG-1",
    needs=Capability.PERSISTENT,
    tier=Tier.STANDARD,
    stochastic=True,
    under=_UNDER,
)
async def random_histories_survive_restarts(ctx: Context) -> None:
    """After any sequence of calls and restarts, the store holds what the contract makes of them."""
    count, newer = max(1, ctx.effort.examples // 4), newer_calls(ctx)
    more, how = {"reopen": 6}, How(restart=True)
    await follow_the_model(ctx, histories=count, more=more, newer=newer, newer_ones=count // 2, how=how)


@check("FORK-2", "FORK-1", needs=Capability.EXTENDED, tier=Tier.STANDARD, stochastic=True, under=_UNDER)
async def random_histories_with_forks(ctx: Context) -> None:
    """After any sequence of calls and forks, parents and forks hold what the contract makes of them."""
    count, newer = max(1, ctx.effort.examples // 8), newer_calls(ctx)
    more, how = {"batch_fork": 8}, How(queries=True)
    await follow_the_model(ctx, histories=count, more=more, newer=newer, newer_ones=count // 2, full=True, how=how)


@check("QRY-2", *_QUERIES, "MSG-4", needs=_Q, tier=Tier.STANDARD, stochastic=True, under=_UNDER)
async def random_histories_and_queries(ctx: Context) -> None:
    """After any sequence of calls, queries and statistics find what the agents hold, and nothing else."""
    await follow_the_model(
        ctx, histories=ctx.effort.examples // 8, more={"delete_many": 2, "pause": 3}, how=How(queries=True, rounds=2)
    )


@check(
    "VAL-1",
    "QRY-2",
    *_QUERIES,
    "EVT-5",
    needs=_Q,
    tier=Tier.STANDARD,
    stochastic=True,
    under=(*_UNDER, Dimension.ITEMS),
)
async def random_histories_of_long_lists(ctx: Context) -> None:
    """Lists and logs with hundreds and thousands of records follow the contract as short ones do."""
    await follow_the_model(ctx, histories=max(1, ctx.effort.examples // 12), how=How(queries=True), large=True)


@check(
    "LOCK-5",
    "LOCK-1",
    "LOCK-2",
    "LOCK-3",
    "LOCK-4",
    needs=Capability.EXTENDED,
    tier=Tier.STANDARD,
    stochastic=True,
    under=_UNDER,
)
async def random_histories_under_leases(ctx: Context) -> None:
    """After any sequence of calls and leases a lock has one holder, and writes under an ended lease change nothing."""
    more = {"acquire": 9, "release": 6, "release_old": 3, "lapse": 2 if ctx.settings.tier else 0}
    count = max(1, ctx.effort.examples // 4)
    await follow_the_model(ctx, histories=count, more=more, newer=newer_calls(ctx), newer_ones=count // 2)


@check("EVT-7", "EVT-2", tier=Tier.STANDARD, stochastic=True, under=_UNDER)
async def random_histories_are_followed(ctx: Context) -> None:
    """Whatever is appended in any sequence of calls, to logs that were deleted and begun anew as well, all followers
    see it once and in the order of offsets.
    """
    more = {"append_event": 20, "append_events": 10}
    count, how = max(1, ctx.effort.examples // 12), How(follow=10.0)
    emits = {op: 20 for op in newer_calls(ctx) if op.startswith("emit")}
    await follow_the_model(ctx, histories=count, more=more, newer=emits, newer_ones=max(1, count // 2), how=how)


@check("OPS-3", needs=Capability.EXTENDED, stochastic=True, under=_UNDER)
async def each_call_moves_its_counter(ctx: Context) -> None:
    """Each call of any sequence moves the counter of its kind by one, a refused call moves the counter of errors, and
    no other counter moves.
    """
    await follow_the_model(
        ctx, histories=max(1, ctx.effort.examples // 4), how=How(each=False, end=False, metrics=True)
    )


@check(
    *("MSG-11", "VER-1", "VER-2", "INFO-4", "INFO-5", "SNAP-2", "EVT-8", "FORK-4", "MSG-4", "INFO-2"),
    needs=Capability.EXTENDED,
    stochastic=True,
    under=_UNDER,
)
async def random_histories_of_edits(ctx: Context) -> None:
    """After any sequence of calls with edits in place, writes that demand a version, emitted events, created and
    updated agents and forks from any point, the store holds the contents that the contract demands; each call returns
    its own result; versions and times are as the contract says.
    """
    await follow_the_model(ctx, histories=_number(ctx, 12, 2.0), newer=EDITS)


@check("EVT-8", "EVT-2", needs=Capability.EXTENDED, tier=Tier.STANDARD, stochastic=True, under=_UNDER)
async def random_histories_of_emitted_events(ctx: Context) -> None:
    """After any sequence of emits, appends, deletes and leases each emitted event has the numbers that it must have: in
    order, in one piece, and under a lease above all that were stored when the lock was taken.
    """
    newer = {op: 3 * weight for op, weight in EDITS.items() if op.startswith("emit")}
    await follow_the_model(ctx, histories=_number(ctx, 6, 1.0), more={"acquire": 8, "release": 6}, newer=newer)


@check(
    *("DOC-2", "DOC-1", "DOC-3", "DOC-4", "DOC-5", "DOC-7", "DOC-8", "VER-1"),
    needs=Capability.EXTENDED | Capability.DOCUMENTS,
    stochastic=True,
    under=_UNDER,
)
async def random_histories_of_documents(ctx: Context) -> None:
    """After any sequence of calls and writes of documents, alone, together and in turns, of which some demand
    versions, all documents are read as they were put, by key, in ranges and in pages.
    """
    await follow_the_model(ctx, histories=_number(ctx, 8, 1.0), newer={**DOCUMENTS, "fork": 3})


@check(
    "QRY-8",
    "MSG-3",
    "EVT-2",
    "QRY-2",
    needs=Capability.EXTENDED | Capability.CROSS_PROCESS,
    tier=Tier.STANDARD,
    stochastic=True,
    under=(*_UNDER, Dimension.PROCESSES),
)
async def random_histories_of_two_processes(ctx: Context) -> None:
    """After any sequence of calls of two processes, each of them sees what both have written."""
    remote = await another_process(ctx.harness, ctx.handle)
    stores: list[Any] = [ctx.store, remote]
    more = {"batch_fork": 1, "delete_many": 1}
    steps = ctx.effort.steps
    newer = newer_calls(ctx)
    how = How(queries=True, versions=True, documents="put_document" in newer)
    count = max(1, ctx.effort.examples // 8)
    made = (history(ctx.rng, steps, more, newer=newer if i % 2 else None) for i in range(count))
    try:
        await follow(ctx, stores, made, how)
    finally:
        await remote.close()
