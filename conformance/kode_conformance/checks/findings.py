"""OPS-2: every inconsistency is found, wherever it is, once, and in the same way by every call that looks for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from kode_conformance.calls.ways import at_once
from kode_conformance.context import Context
from kode_conformance.dimensions import Dimension, twins
from kode_conformance.instruments.pace import sizes_in_time
from kode_conformance.kills.writes import portrait
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_core.model import Message, TextBlock, ToolResultBlock, ToolUseBlock
from kode_core.protocols import ExtendedStore

_E: Final = Capability.EXTENDED
_USE: Final = "use_without_result"
_RESULT: Final = "result_without_use"


def _use(call_id: str, *before: Any) -> Message:
    return Message("assistant", [*before, ToolUseBlock(call_id, "search", {})])


def _result(call_id: str, content: Any = "found", *before: Any) -> Message:
    return Message("user", [*before, ToolResultBlock(call_id, content)])


async def _see_issues(
    ctx: Context, wanted: dict[str, list[str]], checked: int, when: str, *, each_alone: bool = True
) -> None:
    """Every way to look gives these issues, each once."""
    codes = Counter((agent, code) for agent, found in wanted.items() for code in found)
    whole = await ctx.store.check_consistency()
    ctx.equal(sorted(_codes(whole.issues).items()), sorted(codes.items()), f"(agent, code) and how often, {when}")
    ctx.equal((whole.consistent, whole.agents_checked), (not codes, checked), f"consistent and agents_checked, {when}")
    ctx.true(all(issue.message for issue in whole.issues), f"each issue must have a sentence: {whole.issues}")
    if not each_alone:
        return
    each = [issue async for issue in ctx.store.iter_consistency()]
    ctx.equal(
        sorted(map(str, each)), sorted(map(str, whole.issues)), f"the issues one by one, and all together, {when}"
    )
    for agent_id, found in wanted.items():
        alone = (await ctx.store.check_consistency(agent_id)).issues
        mine = [issue for issue in whole.issues if issue.agent_id == agent_id]
        ctx.equal(sorted(map(str, alone)), sorted(map(str, mine)), f"the issues of {agent_id!r} by itself, {when}")
        ctx.equal(len(alone), len(found), f"how many issues {agent_id!r} has, {when}")


def _codes(issues: Sequence[Any]) -> Counter[tuple[str, str]]:
    return Counter((issue.agent_id, issue.code) for issue in issues)


@check("OPS-2", needs=_E, under=(Dimension.ITEMS, Dimension.ORDERS, Dimension.CHANGES))
async def what_dangles_is_found_at_every_place(ctx: Context) -> None:
    """Tool uses without results and the reverse are found in the first, the 1,000th and the 1,001st message, in any
    block of it, by whatever call it was written, with info and without; each once, and no agent that is sound is named.
    """
    store = ctx.store
    filler = samples.messages(1001)
    filler[0], filler[999], filler[1000] = _use("first"), _result("none"), _use("last", TextBlock("x"))
    filler[500:502] = [_use("pair"), _result("pair")]
    await store.save_messages("long", filler)
    await store.save_turn("turn", append=[_use("t", TextBlock("a"))], info=samples.info("turn"))
    await store.save_messages("apart 1", [_use("over two agents")])
    await store.save_turn("apart 2", append=[_result("over two agents")], info=samples.info("apart 2"))
    falsy: list[Any] = ["", None, 0, False, [], {}, "x"]
    pairs = [m for i, value in enumerate(falsy) for m in (_use(f"c{i}"), _result(f"c{i}", value))]
    await store.save_turn("falsy", messages=pairs, info=samples.info("falsy"))
    await store.append_messages("mended", [_use("m")])
    await store.save_turn("cut", messages=[_use("c"), _result("c")], info=samples.info("cut"))
    before = {name: await portrait(store, name) for name in ("turn", "falsy", "cut")}
    wanted = {"long": [_USE, _RESULT, _USE], "turn": [_USE], "apart 1": [_USE], "apart 2": [_RESULT], "mended": [_USE]}
    await _see_issues(ctx, {**wanted, "falsy": [], "cut": []}, 7, "at first")
    await store.append_messages("mended", [_result("m")])
    await store.save_messages("cut", [_use("c")])
    await store.save_messages("long", [samples.message(0), *filler[1:999]])
    wanted |= {"long": [], "mended": [], "cut": [_USE], "falsy": []}
    when = "after one was mended, one was cut, and a long list lost its ends"
    await _see_issues(ctx, wanted, 7, when, each_alone=False)
    (fork,) = await store.batch_fork("turn", 1)
    await store.delete("apart 1")
    del wanted["apart 1"]
    await _see_issues(ctx, {**wanted, fork: [_USE]}, 7, "after one was forked and another deleted")
    after = {name: await portrait(store, name) for name in ("turn", "falsy")}
    ctx.equal(after, {name: before[name] for name in after}, "agents that were only checked")


@check("OPS-2", "TC-2", needs=_E, under=(Dimension.TWINS, Dimension.EQUALS))
async def pairs_are_told_apart_by_their_whole_id(ctx: Context) -> None:
    """A tool use and a result belong together only when their ids are the same to the letter: of ids that differ in
    anything none answers for another, and of equal ids each use needs a result of its own.
    """
    ids = list(twins("call"))
    uses, results = [_use(one) for one in ids], [_result(one) for one in ids]
    await ctx.store.save_messages("all", [*uses, *results])
    await _see_issues(ctx, {"all": []}, 1, "where each of many ids that are alike has its result")
    for number in range(3):
        missing = ctx.rng.randrange(len(ids))
        await ctx.store.save_messages("all", [*uses, *results[:missing], *results[missing + 1 :]])
        (issue,) = await _only(ctx, ctx.store, ids[missing])
        ctx.equal((issue.agent_id, issue.code), ("all", _USE), f"agent and code of the issue, round {number}")
    for start in (0, 1):
        await ctx.store.save_messages("all", [*uses[start::2], *results[1 - start :: 2]])
        codes = [_USE] * len(uses[start::2]) + [_RESULT] * len(results[1 - start :: 2])
        await _see_issues(ctx, {"all": codes}, 1, "where ids were used, and others that are like them were answered")
    again = [_use("c"), _result("c")] * 40
    await ctx.store.save_messages("all", [*again[:-1], *again])
    (issue,) = await _only(ctx, ctx.store, "c")
    ctx.equal(issue.code, _USE, "the code of an id that is used 80 times and answered 79 times")
    await ctx.store.save_messages("all", again)
    await _see_issues(ctx, {"all": []}, 1, "where one id is used 40 times, each with a result")


async def _only(ctx: Context, store: ExtendedStore, call_id: str) -> Sequence[Any]:
    found = (await store.check_consistency("all")).issues
    ctx.equal(len(found), 1, f"how many issues there are where one result, of {call_id!r}, is missing: {found}")
    return found


_LONG: Final = 1101


@check("OPS-2", needs=_E, under=(Dimension.ITEMS, Dimension.COMPANY))
async def every_agent_of_many_is_checked(ctx: Context) -> None:
    """Each of many agents is checked, with info and without: an issue of each is reported once."""
    wanted: dict[str, list[str]] = {}
    for count in sizes_in_time(ctx, (105,) if ctx.settings.tier is Tier.QUICK else (105, _LONG)):
        agents = [f"agent-{i:04d}" for i in range(len(wanted), count)]
        await at_once(
            ctx.store.save_turn(agent, messages=[_use("o")], info=samples.info(agent) if i % 2 else None)
            for i, agent in enumerate(agents)
        )
        wanted |= {agent: [_USE] for agent in agents}
        await _see_issues(ctx, wanted, count, f"where each of {count:,} has a use without its result", each_alone=False)


@check("OPS-2", needs=_E, under=(Dimension.ITEMS, Dimension.ORDERS))
async def long_agents_are_checked_to_the_end(ctx: Context) -> None:
    """No issue is reported of an agent whose uses of tools all have results, wherever a page of messages or of tool
    calls begins, and however far a result stands behind its use; a thousand missing ones are reported each.
    """
    for agent, shift in (("even", 0), ("odd", 1)):
        pairs = (_LONG - shift) // 2
        messages = [*samples.messages(shift), *(one for i in range(pairs) for one in (_use(f"{i}"), _result(f"{i}")))]
        calls = [samples.tool_call(i, id=f"{i}", audit_trail=[]) for i in range(pairs)]
        await ctx.store.save_turn(agent, messages=messages, tool_calls=calls, info=samples.info(agent))
    far = [_use(f"{i}") for i in range(_LONG)] + [_result(f"{i}") for i in range(_LONG)]
    await ctx.store.save_messages("far", far)
    await _see_issues(ctx, {"even": [], "odd": [], "far": []}, 3, "of three agents that are long and sound")
    await ctx.store.save_messages("far", far[:_LONG])
    await ctx.store.save_messages("odd", [_use("o"), samples.message(), *far[_LONG:]])
    wanted = {"even": [], "odd": [_USE, *[_RESULT] * _LONG], "far": [_USE] * _LONG}
    await _see_issues(ctx, wanted, 3, "where more than a thousand uses have no result, and as many the reverse")
