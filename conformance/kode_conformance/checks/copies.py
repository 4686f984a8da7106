"""OPS-16, LIFE-5, OPS-11: all of a store: copied, deleted by every filter, and left by a process that just ends."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, get_type_hints

from kode_conformance.checks.lifecycle import fill
from kode_conformance.context import Context, Unverified, Violation
from kode_conformance.dimensions import Dimension, twins
from kode_conformance.kills.bigwrites import seed_big
from kode_conformance.kills.writes import WRITES, Portrait, portrait, seed, write_named
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_core.protocols import ExtendedStore
from kode_core.query import SessionFilter

_E: Final = Capability.EXTENDED
_P: Final = Capability.PERSISTENT


# --- backups ----------------------------------------------------------------------------------------------------------


@check(
    "OPS-16",
    "MSG-4",
    "INFO-2",
    needs=_E | _P,
    tier=Tier.STANDARD,
    under=(Dimension.ITEMS, Dimension.TWINS, Dimension.CHANGES),
)
async def a_backup_has_everything(ctx: Context) -> None:
    """A store that a backup made has every agent, whatever its name, with and without info, deleted ones aside, with
    all records of every kind, however many, and the times that the store gave them.
    """
    if not ctx.harness.has("restored"):
        raise Unverified("the harness has no hook restored, so that backups are not opened")
    store = ctx.store
    await seed_big(store, "big")
    await fill(store, "all kinds")
    for i in range(3):
        await store.save_history_window("big", samples.window(f"win-{i}", timestamp=samples.T0 + i % 2))
        await store.save_compression_record("big", samples.compression(f"cmp-{i}", timestamp=samples.T0 - i))
        await store.save_recovered_file("big", samples.recovered(f"path {i}"))
    await store.save_media_cache("big", [samples.media(f"sha256:{i}") for i in range(130)])
    await store.save_messages("no info", samples.messages(2))
    await store.append_events("events only", samples.events(3))
    names = list(twins())
    await asyncio.gather(
        *(store.save_turn(one, append=samples.messages(1, i), info=samples.info(one)) for i, one in enumerate(names))
    )
    await fill(store, "deleted")
    await store.delete("deleted")
    (fork,) = await store.batch_fork("big", 1)
    agents = ["big", "all kinds", "no info", "events only", "deleted", fork, *names[:3]]
    before = await _looked(store, agents)
    copy = await ctx.restored(await store.backup(ctx.folder / "copy"))
    for what, wanted in before.items():
        ctx.equal((await _looked(copy, agents, only=what))[what], wanted, f"{what}, in the copy")
    ctx.equal(await copy.list(), await store.list(), "the agents of the copy")
    ctx.equal((await copy.check_consistency()).issues, (), "the issues of the copy")


async def _looked(store: ExtendedStore, agents: Sequence[str], only: str | None = None) -> dict[str, Any]:
    """Agents by kind, and all sessions, messages and tool calls as queries find them, with their times."""
    found: dict[str, Any] = {}
    for agent_id in agents:
        if only in (None, f"agent {agent_id!r}"):
            found[f"agent {agent_id!r}"] = await portrait(store, agent_id)
    if only in (None, "all sessions"):
        found["all sessions"] = [session async for session in store.iter_sessions()]
    if only in (None, "all messages"):
        found["all messages"] = [message async for message in store.iter_messages()]
    if only in (None, "all tool calls"):
        found["all tool calls"] = [call async for call in store.iter_tool_calls()]
    return found


# --- deletions --------------------------------------------------------------------------------------------------------

_AGENTS: Final = 130
_PAGING: Final = ("limit", "offset", "cursor", "order", "sort_by")


def _made(i: int) -> dict[str, Any]:
    """The info of agent *i*: what a filter finds has a step of its own."""
    metadata = {"userId": f"u-{i % 5}", "tier": (1, 1.0, True, "1", None)[i // 5 % 5], "plan": {"a": i % 2}}
    return {"template_id": f"t-{i % 4}", "created_at": samples.T0 + 1000 * i, "metadata": metadata}


_FILTERS: Final[Mapping[str, tuple[Any, Any]]] = {
    "agent_id": ("agt-007", lambda i: i == 7),
    "created_after": (samples.T0 + 1000 * 120, lambda i: i >= 120),
    "created_before": (datetime.fromtimestamp((samples.T0 + 1000 * 10) / 1000, UTC), lambda i: i < 10),
    "user_id": ("u-4", lambda i: i % 5 == 4),
    "template_id": ("t-3", lambda i: i % 4 == 3),
    "metadata": ({"tier": 1}, lambda i: i // 5 % 5 in (0, 1)),
    "updated_before": (0, lambda i: False),
    "updated_after": (0, lambda i: True),
}
"""For each filter a value, and the agents that it finds; each except the last finds fewer than all."""


@check("LIFE-5", "QRY-2", "LIFE-3", needs=_E, under=(Dimension.ITEMS, Dimension.NUMBERS, Dimension.INSTANCES))
async def delete_many_deletes_by_every_filter(ctx: Context) -> None:
    """delete_many by each filter that sessions have, and by two together, deletes all that match and nothing else, and
    says how many; agents without info stay.
    """
    unknown = set(get_type_hints(SessionFilter)) - set(_PAGING) - set(_FILTERS)
    ctx.equal(sorted(unknown), [], "filters of sessions that this check has no value for")
    store, other = ctx.store, await ctx.another()
    ids = {f"agt-{i:03d}": i for i in range(_AGENTS)}
    await asyncio.gather(*(store.save_info(one, samples.info(one, **_made(i))) for one, i in ids.items()))
    await store.save_messages("no info", samples.messages(1))
    await store.append_messages("agt-007", samples.messages(2))

    async def delete(filters: dict[str, Any], is_found: Any) -> None:
        gone = [one for one, i in ids.items() if is_found(i)]
        shown = ", ".join(f"{name}={value!r}" for name, value in filters.items())
        ctx.equal(await other.delete_many(**filters), len(gone), f"how many were deleted by {shown}")
        for one in gone:
            del ids[one]
        ctx.equal(await store.list(), sorted(ids), f"who is left after delete_many({shown})")

    both = {"template_id": "t-2", "metadata": {"plan": {"a": 0}, "userId": "u-2"}}
    await delete(both, lambda i: i % 4 == 2 and i % 2 == 0 and i % 5 == 2)
    for name, (value, is_found) in _FILTERS.items():
        await delete({name: value}, is_found)
    ctx.equal(await other.load_messages("agt-007"), [], "the messages of one that was deleted by its id")
    ctx.equal(await store.load_messages("no info"), samples.messages(1), "the messages of an agent without info")


# --- processes that just end ------------------------------------------------------------------------------------------


@check(
    "OPS-11",
    "DUR-1",
    needs=_E | Capability.CROSS_PROCESS | _P,
    tier=Tier.STANDARD,
    under=(Dimension.PROCESSES, Dimension.ORDERS),
)
async def whatever_a_process_leaves_open_it_ends(ctx: Context) -> None:
    """A process that ends without close, while it follows, iterates, holds locks and waits for one, ends by itself. All
    its writes, of every kind and in any order, are stored; its locks are free when their time is over, or before.
    """
    names = [write.name for write in WRITES if write.name != "delete"]
    ctx.rng.shuffle(names)
    await seed(ctx.store, "model")
    for name in names:
        await write_named(name).act(ctx.store, "model")
    wanted = await portrait(ctx.store, "model")
    held = await ctx.store.acquire_agent_lock("held", ttl_ms=600_000)
    process = await ctx.process("leave_all_open", "left", names)
    reports = await process.lines()
    ctx.equal(reports[-1], {"written": names}, "what the process told last")
    other = await ctx.another()
    found: Portrait = await portrait(other, "left")
    for kind, value in wanted.items():
        ctx.equal(found[kind], value, f"{kind} that a process wrote which ended without close, last {names[-1]}")
    for agent_id, when in (("released", 0), ("left", 20_000), ("awaited", 20_000)):
        lease = await other.acquire_agent_lock(agent_id, wait_ms=when)
        ctx.true(
            lease.token > reports[0]["tokens"][agent_id], f"the token of {agent_id!r} must be above that of the dead"
        )
        await lease.release()
    await held.renew()
    await held.release()
    if (await other.check_consistency("left")).issues:
        raise Violation(f"what the process left is not consistent: {(await other.check_consistency('left')).issues}")
