"""OPS-12, OPS-4: contents of records, which a store reveals to no one but the caller."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import kode_core
from kode_conformance.calls.fenced import FencedWrite, fenced_writes
from kode_conformance.calls.methods import calls_of, drive
from kode_conformance.checks.damage import damage_each_part
from kode_conformance.checks.lifecycle import fill
from kode_conformance.context import Context, Unverified
from kode_conformance.dimensions import Dimension
from kode_conformance.harness import keeps_documents
from kode_conformance.instruments.pace import in_time
from kode_conformance.registry import Capability, check
from kode_conformance.values import samples
from kode_conformance.values.canaries import CANARY, marked, overheard, spoiled, told_by
from kode_core.engine import Engine
from kode_core.layers import Layer
from kode_core.model import ABSENT, DeleteDocument, PutDocument
from kode_core.protocols import ExtendedStore

_E: Final = Capability.EXTENDED
CORE: Final = f"{Path(kode_core.__file__).parent}{os.sep}"


class Ears:
    """The texts that were told, and by whom; none may have the canary."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, str]] = []

    def hear(self, by: str, *texts: object) -> None:
        """Note texts that were told."""
        self.heard += [(by, str(text)) for text in texts]

    async def error_of(self, by: str, call: Callable[[], Awaitable[object]]) -> Exception | None:
        """The error of a call, which was heard."""
        try:
            await call()
        except Exception as exc:  # noqa: BLE001 - any error is searched
            self.hear(f"{by}: {type(exc).__name__}", told_by(exc))
            return exc
        return None

    def judge(self, ctx: Context) -> None:
        """See that no text has the canary."""
        for by, text in self.heard:
            at = text.find(CANARY)
            ctx.true(at < 0, f"{by} tells the contents of a record: …{text[max(0, at - 100) : at + 60]}…")


def marked_writes(agent_id: str = "a") -> list[FencedWrite]:
    """Each way to write, whose records hold the canary wherever they can."""
    return [w._replace(arguments=_marked_arguments(w)) for w in fenced_writes(agent_id) if w.method != "delete"]


def _marked_arguments(write: FencedWrite) -> dict[str, Any]:
    """The arguments with their contents marked; the channel of an event is one of three words, and names stay."""
    return {name: value if name in _UNMARKED else marked(value) for name, value in write.arguments.items()}


_UNMARKED: Final = ("channel", "collection", "key")


@check("OPS-12", "OPS-4", needs=_E, under=(Dimension.DAMAGE, Dimension.INTERRUPTIONS, Dimension.CHANGES))
async def contents_are_told_to_nobody(ctx: Context) -> None:
    """No content of a record, of any kind and field, stored or refused, is in an error, a log, a repr, a report of
    health or metrics, or an issue: not when values are refused, leases are lost, versions have changed, an agent exists
    or is missing, records are damaged or the store is closed.
    """
    ears = Ears()
    with overheard([CORE, *ctx.harness.code_of(ctx.store)]) as logged:
        store = await ctx.another()
        for write in marked_writes():
            await write.act(store, "a")
        await _asked(ears, store)
        await _refused(ctx, ears, store)
        await _denied(ctx, ears, store)
        await store.close()
        for name, (method, given) in calls_of(store, "a", target=str(ctx.folder / "copy")).items():
            await ears.error_of(f"{name} of a closed store", partial(drive, method, marked_in(given)))
        ears.hear("repr of a closed store", repr(store), await store.health_check())
    ears.hear("a log", *logged)
    ears.judge(ctx)


def marked_in(given: dict[str, Any]) -> dict[str, Any]:
    """Arguments with their records marked; ids and places stay."""
    return {name: value if isinstance(value, str) else marked(value) for name, value in given.items()}


async def _asked(ears: Ears, store: ExtendedStore) -> None:
    """Collect the reports of a healthy store about itself."""
    ears.hear("health_check", await store.health_check())
    ears.hear("get_metrics", await store.get_metrics())
    ears.hear("check_consistency", await store.check_consistency(), await store.check_consistency("a"))
    ears.hear("iter_consistency", [issue async for issue in store.iter_consistency()])
    ears.hear("repr", repr(store), str(store), repr(store.acquire_agent_lock("a")), repr(store.list))


async def _refused(ctx: Context, ears: Ears, store: ExtendedStore) -> None:
    """Collect the messages about writes that are refused for their values or for their lease."""
    lease = await store.acquire_agent_lock("a")
    ears.hear("repr of a lease", repr(lease))
    await lease.release()
    for write in marked_writes():
        await ears.error_of(f"{write.name} under an ended lease", partial(write.act, store, "a", fence=lease))
    values = [
        (write, name, one)
        for write in marked_writes()
        for name, given in write.arguments.items()
        for one in spoiled(given)
    ]
    for write, name, value in in_time(ctx, values):
        bad = write._replace(arguments={**write.arguments, name: value})
        await ears.error_of(f"{write.name}, refused", partial(bad.act, store, "refused"))


async def _denied(ctx: Context, ears: Ears, store: ExtendedStore) -> None:
    """Collect the errors of sound writes that the state of the store refuses."""
    writes = marked_writes()
    stale = await store.load_version("a")
    await store.append_messages("a", marked(samples.messages(1)))
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        f"{write.name} with an older version": partial(write.act, store, "a", expect=stale)
        for write in writes
        if write.takes_version
    }
    info, message, event = (marked(one) for one in (samples.info("a"), samples.message(), samples.event(7)))
    records = await store.load_agent("a")
    assert records is not None
    calls |= {
        "create_agent of one that exists": partial(store.create_agent, "a", info),
        "fork to one that exists": partial(store.fork, "a", "a"),
        "import_agent over one that exists": partial(store.import_agent, "a", records),
        "update_info of an agent without info": partial(store.update_info, "nobody", marked({"k": "v"})),
        "save_info of another agent": partial(store.save_info, "b", info),
        "replace_message behind the end": partial(store.replace_message, "a", 10**6, message),
        "append_events of one entry twice": partial(store.append_events, "a", [event, event]),
        "an emit after the highest seq": partial(_emit_last, store),
    }
    if keeps_documents():
        calls |= await _conflicts(store)
    for name, call in calls.items():
        ctx.true(await ears.error_of(name, call) is not None, f"{name} must be refused")


async def _emit_last(store: ExtendedStore) -> None:
    await store.append_event("last", marked(samples.event(2**63 - 1)))
    await store.emit("last", "type", marked({"k": "v"}))


async def _conflicts(store: ExtendedStore) -> dict[str, Callable[[], Awaitable[object]]]:
    """Writes of documents whose demands for a version fail."""
    old = await store.put_document("a", "c", "told", marked({"first": ["x"]}))
    await store.put_document("a", "c", "told", marked({"second": "y"}))
    calls: dict[str, Callable[[], Awaitable[object]]] = {}
    for key, expect in (("told", old), ("told", ABSENT), ("none", old)):
        what = f"of {key!r} with the version {expect!r:.8}…"
        put, delete = PutDocument("c", key, marked("z"), expect=expect), DeleteDocument("c", key, expect=expect)
        calls |= {
            f"put_document {what}": partial(store.put_document, "a", "c", key, marked("z"), expect=expect),
            f"delete_document {what}": partial(store.delete_document, "a", "c", key, expect=expect),
            f"write_documents {what}": partial(store.write_documents, "a", [put]),
            f"write_documents, a delete {what}": partial(store.write_documents, "a", [delete]),
            f"save_turn {what}": partial(store.save_turn, "a", documents=[put]),
        }
        if expect == ABSENT:  # a delete takes no such demand
            del calls[f"delete_document {what}"], calls[f"write_documents, a delete {what}"]
    return calls


class _AllHeld(Layer):
    """Holds every engine call up until it is let go."""

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner)
        self.let_go = asyncio.Event()
        self.let_go.set()

    async def around(self, verb: str, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        await self.let_go.wait()
        return await call(*args, **kwargs)


_SLOW_S: Final = 1.1
"""A call that takes so long is slow for logs of slow calls, which begin at 100 ms, 500 ms or a second."""


@check("OPS-12", needs=_E, under=(Dimension.INTERRUPTIONS, Dimension.COMPANY))
async def slow_calls_tell_nothing(ctx: Context) -> None:
    """Calls that take longer than a second tell no content of a record to a log, of whatever kind it is and by whatever
    method it is written or looked for; nor do calls that are cancelled while they take long.
    """
    ears, layers = Ears(), list[_AllHeld]()

    def put(engine: Engine) -> Engine:
        layers.append(_AllHeld(engine))
        return layers[-1]

    with overheard([CORE, *ctx.harness.code_of(ctx.store)]) as logged:
        store = await ctx.another(put)
        await fill(store, "a")
        for ends in ("are cancelled", "end"):
            layers[-1].let_go.clear()
            calls = {
                write.name: marked_writes(agent := f"{write.name} {ends}")[number].act(store, agent)
                for number, write in enumerate(marked_writes())
            }
            for name, (method, given) in calls_of(store).items():
                if name.startswith(_READING):
                    calls[name] = drive(method, _searching(name, given))
            tasks = {name: asyncio.ensure_future(call) for name, call in calls.items()}
            try:
                await asyncio.sleep(_SLOW_S)
                for task in tasks.values() if ends == "are cancelled" else ():
                    task.cancel()
            finally:
                layers[-1].let_go.set()
            ctx.true(await ctx.ended(tasks.values()), "calls that were slow must end once the engine answers")
            for name, task in tasks.items():
                error = None if task.cancelled() else task.exception()
                ctx.true(ends != "end" or error is None, f"{name}, which was slow, raised {error!r}")
                if error is not None:
                    ears.hear(f"{name}, cancelled: {type(error).__name__}", told_by(error))
        messages = [CANARY in one.text for one in await store.load_messages("append_messages end")]
        ctx.true(any(messages), "what a slow call wrote must be there")
        await store.close()
    ears.hear("a log", *logged)
    ears.judge(ctx)


def _searching(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a read, which looks for contents where it can."""
    if "messages" in name and name.startswith(("query", "iter")):
        return {**given, "contains": CANARY}
    return {**given, "metadata": {"k": CANARY}} if "sessions" in name and "filters" not in given else given


@check("OPS-4", "OPS-12", needs=_E, under=(Dimension.DAMAGE,))
async def damaged_records_are_not_quoted(ctx: Context) -> None:
    """The error about a damaged record of any kind, the issue that a check finds, and the log messages about it name
    the record and quote nothing of it.
    """
    ears = Ears()
    for write in marked_writes():
        await write.act(ctx.store, "a")
    first = samples.message(0).replace(metadata={"whole": CANARY})
    await ctx.store.save_turn("b", messages=[first, samples.message(text=CANARY)], info=samples.info("b"))
    until = time.monotonic() + ctx.settings.pace
    with overheard([CORE, *ctx.harness.code_of(ctx.store)]) as logged:
        async for what, store, agent_id in _damaged(ctx):
            if time.monotonic() > until:
                break
            count = len(ears.heard)
            for name, (method, given) in calls_of(store, agent_id).items():
                if name.startswith(_READING):
                    await ears.error_of(f"{name}, of damaged {what}", partial(drive, method, given))
            ctx.true(len(ears.heard) > count, f"reading damaged {what} must raise an error")
            ears.hear(f"check_consistency, of damaged {what}", await store.check_consistency())
            ears.hear(f"a page of messages, with damaged {what}", (await store.query_messages()).left_out)
    ears.hear("a log", *logged)
    ears.judge(ctx)


_READING: Final = ("load_", "list_", "read_", "last_", "query_", "iter_", "aggregate_", "check_")


async def _damaged(ctx: Context) -> AsyncIterator[tuple[str, ExtendedStore, str]]:
    """The damaged part, a store that shows the damage, and the agent: damaged on the device, then by a layer around the
    engine.
    """
    if ctx.harness.has("corrupt"):
        await ctx.reopen()
        await ctx.harness.corrupt(ctx.handle, "b")
        yield "messages on the device", await ctx.another(), "b"
    try:
        async for what, store in damage_each_part(ctx):
            yield what, store, "a"
    except Unverified:
        if not ctx.harness.has("corrupt"):
            raise
