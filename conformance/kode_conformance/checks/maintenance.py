"""OPS-16, LIFE-5: maintenance of many agents takes the time it needs, and holds up no other call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, Final

from kode_conformance.context import Context, Violation
from kode_conformance.dimensions import Dimension
from kode_conformance.instruments.layering import Trouble
from kode_conformance.instruments.pace import Suspected, judged
from kode_conformance.registry import Capability, check
from kode_conformance.values import samples
from kode_core.engine import Engine
from kode_core.errors import OutcomeUnknownError, StoreUnavailableError
from kode_core.layers import Layer
from kode_core.model import Message, ToolUseBlock
from kode_core.protocols import ExtendedStore

_E = Capability.EXTENDED
_TIMEOUT_MS: Final = 1_000
_STEP_S: Final = 0.07
_AGENTS: Final = 8
_FEW_AGENTS: Final = 3
"""So many steps take longer than the deadline together, and none does by itself."""


class Steps(Layer):
    """Delays each call, and notes it."""

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner)
        self.seconds = 0.0
        self.before: Callable[[str, tuple[Any, ...]], Awaitable[None]] | None = None
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    async def around(self, verb: str, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        self.calls.append((verb, args))
        if self.before is not None:
            await self.before(verb, args)
        if verb == "backup":
            await self._slow_steps(*args)
        else:
            await asyncio.sleep(self.seconds)
        return await call(*args, **kwargs)

    async def _slow_steps(self, *args: Any) -> None:
        """Take the steps of a copy, each within the deadline, and report each to the progress function, if there is
        one.
        """
        for number in range(20 if self.seconds else 0):
            await asyncio.sleep(self.seconds)
            for progress in filter(callable, args):
                progress(number, None)


async def stepping(ctx: Context, **options: Any) -> tuple[ExtendedStore, Steps]:
    """A store whose engine calls can be slowed and are noted."""
    layers: list[Steps] = []

    def put(engine: Engine) -> Engine:
        layers.append(Steps(engine))
        return layers[-1]

    store = await ctx.another(put, **options)
    return store, layers[-1]


async def _fill(store: ExtendedStore, count: int = _AGENTS, template_id: str = "old") -> list[str]:
    ids = [f"agt-{i:03d}" for i in range(count)]
    for agent_id in ids:
        await store.save_turn(
            agent_id,
            append=samples.messages(2),
            tool_calls=[samples.tool_call()],
            info=samples.info(agent_id, template_id=template_id),
            events=samples.events(2),
        )
    return ids


@check("OPS-16", "OPS-9", needs=_E, under=(Dimension.INTERRUPTIONS,))
async def maintenance_has_no_total_deadline(ctx: Context) -> None:
    """A check, a backup, a deletion of many and metrics end well though all their steps together take longer than the
    deadline of a call.
    """
    await judged(partial(_see_no_deadline, ctx))


async def _see_no_deadline(ctx: Context, longer: int) -> None:
    scale = longer * min(ctx.harness.patience, 4.0)
    timeout_ms, step = int(scale * _TIMEOUT_MS), scale * _STEP_S
    for agent_id in await ctx.store.list():  # of an attempt before
        await ctx.store.delete(agent_id)
    ids = await _fill(ctx.store, _FEW_AGENTS)
    store, steps = await _unhurried("opening", stepping(ctx, timeout_ms=timeout_ms))
    await _unhurried("exists", store.exists("nobody"))
    steps.seconds = step
    result = await _unhurried("check_consistency", store.check_consistency())
    ctx.equal((result.consistent, result.agents_checked), (True, _FEW_AGENTS), "the result of the check")
    ctx.true(len(steps.calls) * step * 1000 > timeout_ms, "the check must look at each agent")
    if has_backup(ctx):
        made = await _unhurried("backup", store.backup(ctx.folder / f"copy-{longer}"))
        ctx.true(all(path.exists() for path in made), "what backup made must be there")
    steps.seconds = 0.6 * timeout_ms / 1000
    metrics = await _unhurried("get_metrics", store.get_metrics())
    ctx.equal(metrics.storage.total_agents, _FEW_AGENTS, "how many agents the metrics count")
    steps.seconds = 0.4 * timeout_ms / 1000  # a step may call the engine twice
    deleted = await _unhurried("delete_many", store.delete_many(template_id="old"))
    ctx.equal(deleted, len(ids), "how many were deleted")
    ctx.equal(await ctx.store.list(), [], "the agents that are left")


async def _unhurried(name: str, call: Awaitable[Any]) -> Any:
    try:
        return await call
    except (TimeoutError, OutcomeUnknownError) as exc:  # it may be a single step that took too long
        raise Suspected(f"{name} has a deadline for all its steps together: {exc}") from exc


def has_backup(ctx: Context) -> bool:
    """True if the harness can open a backup."""
    return ctx.harness.has("restored")


@check("OPS-2", "OPS-16", needs=_E, under=(Dimension.ORDERS, Dimension.DAMAGE))
async def issues_come_as_they_are_found(ctx: Context) -> None:
    """iter_consistency gives the same issues as check_consistency, the first ones before the last agents were looked
    at; a reader that has seen enough can stop, and one agent can be checked as well.
    """
    use = ToolUseBlock("c", "x", {})
    await _fill(ctx.store)
    for agent_id in ("agt-000", "agt-001", f"agt-{_AGENTS - 1:03d}"):
        await ctx.store.append_messages(agent_id, [Message("assistant", [use])])
    store, steps = await stepping(ctx)
    found = [issue async for issue in _issues(store)]
    ctx.equal(
        [issue.agent_id for issue in found], ["agt-000", "agt-001", f"agt-{_AGENTS - 1:03d}"], "agents with issues"
    )
    ctx.equal(found, list((await store.check_consistency()).issues), "the issues one by one, and all together")
    everything = len(steps.calls) // 2
    steps.calls.clear()
    issues = _issues(store)
    async for issue in issues:
        ctx.equal(issue.agent_id, "agt-000", "the agent of the first issue")
        break
    ctx.true(
        len(steps.calls) < everything / 2,
        f"the first issue of {_AGENTS} agents came after {len(steps.calls)} of {everything} calls of the engine",
    )
    close = getattr(issues, "aclose", None)
    if close is not None:
        await close()
    one = [issue.agent_id async for issue in store.iter_consistency("agt-001")]
    ctx.equal(one, ["agt-001"], "the agents of the issues of one agent")
    ctx.equal([issue async for issue in store.iter_consistency("agt-002")], [], "the issues of one that is sound")


def _issues(store: ExtendedStore) -> AsyncIterator[Any]:
    return store.iter_consistency()


@check("LIFE-5", needs=_E, under=(Dimension.DAMAGE,))
async def an_error_says_how_many_were_deleted(ctx: Context) -> None:
    """When a deletion of many ends early the error says how many are gone, and that is so; called again it goes on."""
    layers: list[Trouble] = []

    def put(engine: Engine) -> Engine:
        layers.append(Trouble(engine))
        return layers[-1]

    store = await ctx.another(put)
    ids = await _fill(ctx.store, 120)
    layers[-1].failing = {ids[7]: StoreUnavailableError("refused by the suite")}
    error = await ctx.raises(
        StoreUnavailableError, store.delete_many(template_id="old"), "delete_many of one that fails"
    )
    left = await ctx.store.list()
    text = " ".join([str(error), *getattr(error, "__notes__", ())])
    ctx.true(ids[7] in left, "the agent that could not be deleted must be there")
    ctx.true(str(120 - len(left)) in text, f"{120 - len(left)} agents are gone; the error must say so: {text}")
    layers[-1].failing = {}
    ctx.equal(await store.delete_many(template_id="old"), len(left), "how many were deleted when it was called again")
    ctx.equal(await ctx.store.list(), [], "the agents that are left")


@check("LIFE-5", needs=_E, under=(Dimension.COMPANY,))
async def a_session_that_changes_is_looked_at_again(ctx: Context) -> None:
    """A session that stops matching, or is written, after it was found is not deleted unless it still matches."""
    ids = await _fill(ctx.store, 12)
    store, steps = await stepping(ctx)

    async def change(verb: str, args: tuple[Any, ...]) -> None:
        if verb == "commit" and any(batch.delete for batch in args[0]):
            steps.before = None
            await ctx.store.save_info(ids[3], samples.info(ids[3], template_id="new"))
            await ctx.store.append_messages(ids[5], samples.messages(1))
            await ctx.store.save_info("agt-late", samples.info("agt-late", template_id="other"))

    steps.before = change
    deleted = await store.delete_many(template_id="old")
    ctx.true(steps.before is None, "delete_many must delete by way of the engine")
    ctx.equal(await ctx.store.list(), [ids[3], "agt-late"], "the agents that are left")
    ctx.equal(deleted, 11, "how many were deleted")
    ctx.equal(
        await ctx.store.load_messages(ids[3]), samples.messages(2), "the messages of the one that stopped matching"
    )


@check("OPS-16", "OPS-13", needs=_E, under=(Dimension.COMPANY,))
async def maintenance_holds_up_no_writer(ctx: Context) -> None:
    """While a check of everything, or a deletion of many, waits for one agent, writes to others end."""
    ids = await _fill(ctx.store, 6)
    for what in ("check_consistency", "delete_many"):
        layers: list[Trouble] = []

        def put(engine: Engine, layers: list[Trouble] = layers) -> Engine:
            layers.append(Trouble(engine))
            return layers[-1]

        store = await ctx.another(put)
        await store.append_messages("other", samples.messages(1))
        layers[-1].hanging = {ids[3]}
        call: Any = store.check_consistency() if what == "check_consistency" else store.delete_many(template_id="old")
        under_way = asyncio.ensure_future(call)
        try:
            async with ctx.within():
                while not layers[-1].under_way:
                    await asyncio.sleep(0.001)
                await store.append_messages("other", samples.messages(1))
                await store.append_event("other", samples.event(len(what)))
                await store.save_info("other", samples.info("other", template_id="kept"))
                await store.load_messages("other")
        except TimeoutError:
            raise Violation(f"while {what} waits for one agent, writes to another did not end") from None
        finally:
            layers[-1].let_go.set()
        await under_way
    ctx.equal(await ctx.store.list(), ["other"], "the agents that are left")
