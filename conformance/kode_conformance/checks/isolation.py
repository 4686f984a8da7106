"""OPS-13: a call that is slow, refused, failing or too large does not hinder other calls."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from kode_conformance.context import Context, Violation, difference
from kode_conformance.dimensions import Dimension
from kode_conformance.instruments.layering import Trouble
from kode_conformance.instruments.patience import SOON_S
from kode_conformance.kills.writes import FORK, WRITES, Expected, expected, portrait, seed
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_core.engine import Engine
from kode_core.errors import InvalidArgumentError, LockLostError, PayloadTooLargeError, StoreUnavailableError
from kode_core.protocols import ExtendedStore

_E = Capability.EXTENDED


class _Handles:
    """The layers that were put around the engine, one for each instance."""

    def __init__(self) -> None:
        self.all: list[Trouble] = []

    def __call__(self, engine: Engine) -> Engine:
        self.all.append(Trouble(engine))
        return self.all[-1]

    @property
    def last(self) -> Trouble:
        """The layer of the store that was opened last."""
        return self.all[-1]


async def troubled(ctx: Context) -> tuple[ExtendedStore, Trouble]:
    layers = _Handles()
    store = await ctx.another(layers)
    return store, layers.last


def _acts(store: ExtendedStore) -> dict[str, Callable[[str], Awaitable[Any]]]:
    """The actions on an agent, by name: every write, a fork, and a lock."""

    async def lock(agent_id: str) -> None:
        lease = await store.acquire_agent_lock(agent_id)
        await lease.renew()
        await lease.release()

    acts: dict[str, Callable[[str], Awaitable[Any]]] = {
        write.name: lambda agent_id, write=write: write.act(store, agent_id)  # type: ignore[misc]
        for write in (*WRITES, FORK)
    }
    acts["acquire_agent_lock"] = lock
    acts["load_messages"] = store.load_messages
    return acts


async def _see_the_others(
    ctx: Context,
    store: ExtendedStore,
    wanted: dict[str, Expected],
    rounds: str,
    acts: dict[str, Callable[[str], Awaitable[Any]]],
) -> None:
    """Check that writes to healthy agents, reads and searches all end, and do their work."""
    try:
        async with ctx.within():
            for name, act in acts.items():
                await act(f"sound-{name}-{rounds}")
            await asyncio.gather(
                store.list(),
                store.query_sessions(),
                store.query_messages(),
                store.query_tool_calls(),
                store.get_metrics(),
            )
            for name, expectation in wanted.items():
                found = await portrait(store, f"sound-{name}-{rounds}")
                problem = expectation.problem(found, done=True)
                if problem is not None:
                    raise Violation(f"{name} of another agent meanwhile: {problem}")
    except TimeoutError:
        raise Violation(f"while calls for one agent {rounds}, those for others did not end in {SOON_S:g} s") from None


async def _prepare(ctx: Context, store: ExtendedStore, rounds: str) -> dict[str, Expected]:
    """Make the agents: those to be in trouble, and one of others for each write."""
    wanted = {write.name: await expected(ctx.store, write) for write in WRITES}
    for name in _acts(store):
        await seed(ctx.store, f"bad-{name}")
        await seed(ctx.store, f"sound-{name}-{rounds}")
        await store.exists(f"sound-{name}-{rounds}")
    return wanted


@check("OPS-13", needs=_E, tier=Tier.STANDARD, under=(Dimension.COMPANY, Dimension.INTERRUPTIONS))
async def what_hangs_holds_up_no_other_agent(ctx: Context) -> None:
    """While calls of every kind hang in the engine for some agents, every kind of call for others ends; let go, the
    ones that hung end, too.
    """
    store, trouble = await troubled(ctx)
    wanted = await _prepare(ctx, store, "hang")
    acts = _acts(store)
    for name, act in acts.items():
        trouble.hanging = {f"bad-{name}"}
        hung = asyncio.ensure_future(act(f"bad-{name}"))
        await ctx.eventually(lambda: _is_under_way(trouble), f"{name} must reach the engine")
        others = acts if name in ("append_event", "save_turn") else {}
        try:
            await _see_the_others(ctx, store, {n: wanted[n] for n in others if n in wanted}, "hang", others)
            await _see_that_one_write_ends(ctx, store, name)
        finally:
            trouble.hanging = set()
            trouble.let_go.set()
        ctx.true(await ctx.ended([hung]), f"{name} that hung did not end after it was let go")
        ctx.true(hung.exception() is None, f"{name} that hung raised {hung.exception()!r} after it was let go")
        trouble.let_go.clear()
        for other in others:
            await ctx.store.delete(f"sound-{other}-hang")
            await seed(ctx.store, f"sound-{other}-hang")


async def _is_under_way(trouble: Trouble) -> bool:
    return trouble.under_way > 0


async def _see_that_one_write_ends(ctx: Context, store: ExtendedStore, name: str) -> None:
    try:
        async with ctx.within():
            await store.append_event(f"other-{name}", samples.event(1))
            await store.append_messages(f"other-{name}", samples.messages(1))
            await store.load_messages(f"other-{name}")
    except TimeoutError:
        raise Violation(f"while {name} of one agent hangs, an append to another did not end in {SOON_S:g} s") from None


@check("OPS-13", needs=_E, tier=Tier.STANDARD, under=(Dimension.COMPANY, Dimension.DAMAGE))
async def what_fails_fails_no_other_agent(ctx: Context) -> None:
    """While calls of every kind fail in the engine for some agents, also together with others at once, every kind of
    call for others succeeds, and the ones that failed succeed afterwards.
    """
    store, trouble = await troubled(ctx)
    wanted = await _prepare(ctx, store, "fail")
    acts = _acts(store)
    trouble.failing = {f"bad-{name}": StoreUnavailableError("refused by the suite") for name in acts}
    failing = [asyncio.ensure_future(act(f"bad-{name}")) for name, act in acts.items() for _ in range(3)]
    sound = [asyncio.ensure_future(store.append_event(f"many-{i}", samples.event(i))) for i in range(20)]
    await _see_the_others(ctx, store, wanted, "fail", acts)
    for result in await asyncio.gather(*failing, return_exceptions=True):
        ctx.true(isinstance(result, StoreUnavailableError), f"a call for an agent that fails gave {result!r}")
    for result in await asyncio.gather(*sound, return_exceptions=True):
        ctx.true(not isinstance(result, BaseException), f"an append to another agent raised {result!r}")
    trouble.failing = {}
    for name, expectation in wanted.items():
        await acts[name](f"bad-{name}")
        problem = expectation.problem(await portrait(store, f"bad-{name}"), done=True)
        ctx.true(problem is None, f"{name} after it had failed: {problem}")


@check("OPS-13", "EVT-1", needs=_E, under=(Dimension.COMPANY, Dimension.LENGTHS))
async def one_append_too_large_fails_alone(ctx: Context) -> None:
    """When appends to one agent are made at once, one that the engine finds too large is refused, and the others are
    stored, in whatever order they come.
    """
    store, trouble = await troubled(ctx)
    trouble.too_large = PayloadTooLargeError("larger than the suite's limit")
    large = samples.event(0, text="x" * (trouble.limit + 1))
    for place in range(4):
        agent_id = f"a{place}"
        entries = [large if i == place else samples.event(i + 1) for i in range(4)]
        first = asyncio.ensure_future(store.append_event(agent_id, samples.event(99)))  # the others gather behind it
        await asyncio.sleep(0)
        calls = [store.append_event(agent_id, entry) for entry in entries]
        calls.append(store.append_event(f"other-{place}", samples.event(7)))
        results = await asyncio.gather(*calls, first, return_exceptions=True)
        refused = [i for i, result in enumerate(results) if isinstance(result, BaseException)]
        ctx.equal(refused, [place], f"which of four appends and two others failed, of {results}")
        ctx.true(
            isinstance(results[place], PayloadTooLargeError), f"the one that is too large raised {results[place]!r}"
        )
        stored = [event.bookmark.seq async for event in store.read_events(agent_id)]
        ctx.equal(sorted(stored), sorted({1, 2, 3, 4, 99} - {place + 1}), "the events that are stored")


@check("OPS-13", "LOCK-5", needs=_E, under=(Dimension.COMPANY,))
async def what_is_refused_takes_nothing_along(ctx: Context) -> None:
    """When some of many calls at once are refused, for an ended lease, an invalid value, or a record that is too large,
    all others, for the same agent and for another, succeed.
    """
    lost = await ctx.store.acquire_agent_lock("a")
    await lost.release()
    limit = ctx.harness.limits.max_payload_bytes
    too_large = samples.event(0, text="x" * (limit + 1)) if limit is not None and limit <= 2**24 else None
    for round_number in range(8):
        start = round_number * 100
        good: list[Awaitable[Any]] = [
            ctx.store.append_event(agent, samples.event(start + i)) for i in range(4) for agent in ("a", "b")
        ]
        good += [ctx.store.append_messages(agent, samples.messages(1, start)) for agent in ("a", "b")]
        bad: list[Awaitable[Any]] = [
            ctx.store.append_event("a", samples.event(start + 50), fence=lost),
            ctx.store.append_event("a", samples.event(start + 51, text=float("nan"))),
            ctx.store.save_messages("a", samples.messages(7), fence=lost),
            ctx.store.save_todos("a", samples.todos("x"), fence=lost),
        ]
        if too_large is not None:
            bad.append(ctx.store.append_event("a", too_large))
        calls = [*good, *bad]
        ctx.rng.shuffle(calls)
        results = await asyncio.gather(*map(_outcome, calls))
        for call, result in zip(calls, results, strict=True):
            if any(call is one for one in bad):
                ctx.true(
                    isinstance(result, (LockLostError, InvalidArgumentError)),
                    f"a call that must be refused gave {result!r}",
                )
            else:
                ctx.true(not isinstance(result, BaseException), f"a sound call beside refused ones raised {result!r}")
    for agent in ("a", "b"):
        seqs = sorted([event.bookmark.seq async for event in ctx.store.read_events(agent)])
        ctx.equal(seqs, [start + i for start in range(0, 800, 100) for i in range(4)], f"the events of {agent}")
        found = {message.text for message in await ctx.store.load_messages(agent)}
        problem = difference(sorted(found), sorted(samples.message(start).text for start in range(0, 800, 100)))
        ctx.true(problem is None, f"the messages of {agent}: {problem}")


async def _outcome(call: Awaitable[Any]) -> Any:
    try:
        return await call
    except Exception as exc:  # noqa: BLE001 - the caller judges it, who knows the call
        return exc


@check("OPS-13", "OPS-15", needs=_E, tier=Tier.STANDARD, under=(Dimension.COMPANY, Dimension.LENGTHS))
async def a_large_write_holds_up_no_other_agent(ctx: Context) -> None:
    """While one agent's large list is saved, reads for another agent begin and end."""
    await seed(ctx.store, "small")
    await ctx.store.load_messages("small")
    count, ended = 20_000, 0
    for _ in range(3):  # until the save takes longer than a read: on a busy machine a thread waits for its turn
        save = asyncio.ensure_future(ctx.store.save_messages("large", samples.messages(count)))
        await asyncio.sleep(0)
        while not save.done() and ended < 10:
            await asyncio.sleep(0)  # a store need not give way
            await ctx.store.load_messages("small")
            ended += not save.done()
        await save
        ctx.equal(len(await ctx.store.load_messages("large")), count, "the messages of the large save")
        if ended > 0:
            return
        await ctx.store.delete("large")
        count *= 2
    ctx.true(ended > 0, f"while {count // 2:,} messages of one agent were saved, no read for another ended")
