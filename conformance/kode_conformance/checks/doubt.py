"""OPS-10: writes whose outcome the engine cannot tell."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from kode_conformance.context import Context, difference
from kode_conformance.dimensions import Dimension
from kode_conformance.harness import keeps_documents
from kode_conformance.instruments.pace import in_time
from kode_conformance.kills.writes import (
    DOCUMENT_WRITES,
    EXTENDED_WRITES,
    FORK,
    FORKS,
    WRITES,
    Expected,
    Write,
    expected,
    overwrite,
    portrait,
    seed,
)
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_core.batch import Batch, Outcome
from kode_core.engine import Engine
from kode_core.errors import OutcomeUnknownError, StorageError
from kode_core.layers import Layer
from kode_core.model import AgentEvent
from kode_core.protocols import ExtendedStore

_E = Capability.EXTENDED


_MEANWHILE_S: Final = 5.0


class Doubtful(Layer):
    """Loses the answers to writes, as a connection that breaks off does.

    Attributes:
        loses: True while answers are lost.
        writes: True if the write is done before its answer is lost.
        raises: True if a commit raises as a whole, in place of an outcome for each batch.
        meanwhile: begins once the next write is done, whose answer alone is lost. A store in which it cannot end before
            the write has ended gets the error first.
    """

    meanwhile: asyncio.Task[None] | None = None

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner)
        self.loses = self.writes = self.raises = False
        self.begins = asyncio.Event()

    async def around(self, verb: str, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        if not self.loses or verb not in ("commit", "fork"):
            return await call(*args, **kwargs)
        if self.writes:
            await call(*args, **kwargs)
        if self.meanwhile is not None:
            self.loses = False
            self.begins.set()
            await asyncio.wait({self.meanwhile}, timeout=_MEANWHILE_S)
        error = OutcomeUnknownError("the connection broke off before the answer came; read first")
        if verb == "commit" and not self.raises:
            batches: Sequence[Batch] = args[0]
            outcomes: list[Outcome] = [error for _ in batches]
            return outcomes
        raise error


async def doubtful(ctx: Context) -> tuple[ExtendedStore, Doubtful]:
    """A store whose engine's answers may be lost."""
    layers: list[Doubtful] = []

    def put(engine: Engine) -> Engine:
        layers.append(Doubtful(engine))
        return layers[-1]

    store = await ctx.another(put)
    return store, layers[-1]


@check("OPS-10", needs=_E, tier=Tier.STANDARD, under=(Dimension.INTERRUPTIONS,))
async def what_is_in_doubt_is_read_and_repeated(ctx: Context) -> None:
    """When the answer to a write of any kind is lost, the call says that the outcome is unknown, whether the write was
    done or not; a caller that then reads, and repeats the missing records in the same store, has stored them once.
    """
    store, doubt = await doubtful(ctx)
    for number, write in enumerate(WRITES):
        wanted = await expected(ctx.store, write)
        raises = bool(number % 2)
        for writes in (True, False):
            agent_id = f"{write.name}-{writes}"
            await seed(store, agent_id)
            doubt.loses, doubt.writes, doubt.raises = True, writes, raises
            try:
                await ctx.raises(OutcomeUnknownError, write.act(store, agent_id), f"{write.name} without an answer")
            finally:
                doubt.loses = False
            await _repeat(ctx, store, agent_id, write, wanted)


async def _repeat(ctx: Context, store: ExtendedStore, agent_id: str, write: Write, wanted: Expected) -> None:
    found = await portrait(store, agent_id)
    problem = wanted.problem(found, done=False)
    ctx.true(problem is None, f"{write.name}, whose answer was lost: {problem}")
    if difference(found, wanted.before) is None:
        await write.act(store, agent_id)
    again = wanted.problem(await portrait(store, agent_id), done=True)
    ctx.true(
        again is None, f"{write.name}, whose answer was lost, after it was read and repeated where missing: {again}"
    )
    other = difference(await portrait(ctx.store, agent_id), await portrait(store, agent_id))
    ctx.true(other is None, f"{write.name}, whose answer was lost, as another instance sees it: {other}")


@check("OPS-10", "MSG-1", needs=_E, tier=Tier.STANDARD, under=(Dimension.INTERRUPTIONS, Dimension.INSTANCES))
async def what_is_in_doubt_overwrites_nobody(ctx: Context) -> None:
    """After the answer to a write was lost, another instance writes, or deletes the agent; nothing of the first write
    comes back, and the next save of the first instance stores exactly its records.
    """
    store, doubt = await doubtful(ctx)
    await overwrite(ctx.store, "plain")
    plain = await portrait(ctx.store, "plain")
    nothing = await portrait(ctx.store, "nobody")
    for number, write in enumerate((*WRITES, FORK)):
        for deletes in (False, True) if ctx.settings.tier > Tier.QUICK else (bool(number % 2),):
            agent_id = f"{write.name}-{deletes}"
            await seed(store, agent_id)
            doubt.loses = doubt.writes = True
            try:
                await asyncio.gather(write.act(store, agent_id), return_exceptions=True)
            finally:
                doubt.loses = False
            await ctx.store.delete(agent_id)
            if not deletes:
                await overwrite(ctx.store, agent_id)
            await asyncio.sleep(0.002)
            problem = difference(await portrait(store, agent_id), nothing if deletes else plain)
            ctx.true(problem is None, f"{write.name} in doubt, then another wrote: {problem}")
            await store.save_messages(agent_id, samples.messages(2))
            ctx.equal(
                await ctx.store.load_messages(agent_id), samples.messages(2), f"a save after {write.name} in doubt"
            )


@check("OPS-10", needs=_E, under=(Dimension.INTERRUPTIONS, Dimension.INSTANCES, Dimension.COMPANY))
async def what_came_behind_a_lost_answer_stays(ctx: Context) -> None:
    """When the answer to one write, by any method, is lost, and another instance has deleted the agent and written it
    anew before the first one learns of that, all of the later writes stay, and nothing of the first one comes back: a
    store that tries again, now that answers come, must see that it comes too late.
    """
    store, doubt = await doubtful(ctx)
    await overwrite(ctx.store, "plain")
    plain = await portrait(ctx.store, "plain")
    writes = (*WRITES, *EXTENDED_WRITES, *(DOCUMENT_WRITES if keeps_documents() else ()), FORK)
    for number, write in enumerate(in_time(ctx, writes)):
        agent_id = f"{write.name} in doubt"
        await write.prepare(store, agent_id)
        others = {agent_id, *await ctx.store.list(include_without_info=True)}

        async def meanwhile(agent_id: str = agent_id) -> None:
            await doubt.begins.wait()
            await ctx.store.delete(agent_id)
            await overwrite(ctx.store, agent_id)

        doubt.begins.clear()
        doubt.loses = doubt.writes = True
        doubt.meanwhile = asyncio.create_task(meanwhile())
        try:
            outcomes = await asyncio.gather(write.act(store, agent_id), return_exceptions=True)
        finally:
            doubt.begins.set()
            await doubt.meanwhile
            doubt.loses, doubt.meanwhile = False, None
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                ctx.true(isinstance(outcome, StorageError), f"{write.name}, whose answer was lost, raised {outcome!r}")
        problem = difference(await portrait((store, ctx.store)[number % 2], agent_id), plain)
        ctx.true(problem is None, f"what was written after the lost answer to {write.name}: {problem}")
        made = set(await ctx.store.list(include_without_info=True)) - others
        ctx.true(len(made) <= (FORKS if write is FORK else 0), f"{write.name} made {len(made)} agents")


@check("EVT-8", "OPS-10", "EVT-4", needs=_E, under=(Dimension.INTERRUPTIONS, Dimension.INSTANCES, Dimension.ITEMS))
async def an_emit_in_doubt_is_stored_once(ctx: Context) -> None:
    """When the answer to an emit of one or several events is lost, whether they were stored or not, the call raises
    OutcomeUnknownError with the entries; they are then in the log once or not at all, and once after they are appended
    again, by either instance. The next emit has a number of its own.
    """
    store, doubt = await doubtful(ctx)
    for number, (count, writes, raises) in enumerate(itertools.product((0, 1, 30), (True, False), (True, False))):
        agent_id = f"a{number}"
        await store.append_event(agent_id, samples.event(5))
        data = {"same": "again"}
        emit: Awaitable[object]
        if count:
            emit = store.emit_many(agent_id, [AgentEvent("progress", "tick", data)] * count)
        else:
            emit = store.emit(agent_id, "tick", data)
        what = f"an emit {f'of {count} events' if count else 'of one event'} that was {'' if writes else 'not '}stored"
        doubt.loses, doubt.writes, doubt.raises = True, writes, raises
        try:
            error = await ctx.raises(OutcomeUnknownError, emit, f"{what}, without an answer")
        finally:
            doubt.loses = False
        given = list(getattr(error, "timelines", ()))
        ctx.equal(len(given), count or 1, f"how many entries the error of {what} has")
        stored = [one async for one in ctx.store.read_events(agent_id)]
        ctx.equal(len(stored) - 1, len(given) if writes else 0, f"how many events there are after {what}")
        for again in (store, ctx.store):
            await again.append_events(agent_id, given)
            seqs = [one.bookmark.seq async for one in again.read_events(agent_id)]
            ctx.equal(seqs, [5, *(one.bookmark.seq for one in given)], f"the seqs after {what}, and appended again")
        emitted = await store.emit(agent_id, "tick", data)
        ctx.true(emitted.bookmark.seq > max(seqs), f"the emit after {what} has the seq {emitted.bookmark.seq}")


@check("OPS-10", "OPS-17", needs=_E, under=(Dimension.DAMAGE,))
async def an_engine_that_breaks_off_is_told_as_such(ctx: Context) -> None:
    """Reads and writes whose engine call fails raise the engine's own error, with all that it says; nothing of it stays
    behind in the store.
    """
    store, doubt = await doubtful(ctx)
    await seed(store, "a")
    doubt.loses = doubt.raises = True
    results = await asyncio.gather(
        store.append_event("a", samples.event(9)),
        store.save_todos("a", samples.todos("x")),
        store.delete("a"),
        store.batch_fork("a", 1),
        store.delete_many(template_id="assistant"),
        return_exceptions=True,
    )
    doubt.loses = False
    for result in results:
        ctx.true(isinstance(result, StorageError), f"a call whose engine broke off gave {result!r}")
        ctx.true("broke off" in str(result), f"the error must say what the engine said: {result}")
    ctx.equal(len(await store.load_messages("a")), 3, "the messages afterwards")
    ctx.equal(await store.list(), ["a"], "the agents afterwards")
