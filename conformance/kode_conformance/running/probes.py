"""A look at the harness before the store is judged, and at the capabilities that the store lacks by its own word."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from kode_conformance.context import Context, Violation, prepared
from kode_conformance.harness import HarnessError, StoreHarness
from kode_conformance.registry import Capability
from kode_conformance.values import samples
from kode_core.errors import UnsupportedError
from kode_core.protocols import ExtendedStore, QueryableStore, ScopedStore, Store

__all__ = ["HarnessError", "absence_problem", "probe"]

AGENT: Final = "agt-probe"


async def probe(harness: StoreHarness) -> None:
    """See that spaces are empty, apart from each other, and can be opened again and removed twice.

    Raises:
        HarnessError: one of these does not hold. Faults of the store itself are left to the checks.
    """
    with suppress(NotImplementedError):  # a store that cannot even be opened yet: the checks report it
        async with prepared(harness) as first, prepared(harness) as second:
            if first.handle == second.handle:
                raise HarnessError(
                    f"provision() gave two spaces one handle, {first.handle!r}: use space.name or folder"
                )
            try:
                await _see_isolation(first, second)
            except HarnessError:
                raise
            except Exception:  # noqa: BLE001, S110 - a fault of the store, or a method that is not written yet
                pass
            again = await first.another()
            if again is first.store:
                raise HarnessError("open() gave one instance twice: each call opens an independent one")
            await harness.destroy(second.handle)
            await harness.destroy(second.handle)


async def _see_isolation(first: Context, second: Context) -> None:
    for context in (first, second):
        if await _has_events(context.store):
            raise HarnessError("provision() gave a space that is not empty: make a new one from space.name")
    await first.store.append_event(AGENT, samples.event(0))
    if await _has_events(second.store):
        raise HarnessError("two spaces share their contents: put space.name or space.folder into the handle")


async def _has_events(store: Store) -> bool:
    async for _ in store.read_events(AGENT):
        return True
    return False


async def absence_problem(harness: StoreHarness, lacked: Capability) -> str:
    """The fault in the claim that the store lacks a capability; empty when the claim is true."""
    try:
        async with prepared(harness) as context:
            if lacked is Capability.QUERYABLE:
                return await _not_offered(context, QueryableStore, lacked)
            if lacked is Capability.EXTENDED:
                return await _not_offered(context, ExtendedStore, lacked)
            if lacked is Capability.DOCUMENTS:
                return await _not_kept(context)
            if lacked is Capability.PRUNING:
                return await _not_pruned(context)
            if lacked is Capability.ANY_OF:
                return await _not_taken(context)
            if lacked is Capability.TAGS:
                return await _not_tagged(context)
            if lacked is Capability.SCOPES:
                return await _not_scoped(context)
            return await _not_shared(context, lacked)
    except NotImplementedError as exc:
        return f"the store is not far enough to see it: {exc}"


async def _not_offered(context: Context, protocol: type, lacked: Capability) -> str:
    if not isinstance(context.store, protocol):
        return ""
    try:
        await context.store.aggregate_stats(AGENT)
    except (UnsupportedError, NotImplementedError):
        return ""
    return (
        f"the store is a {protocol.__name__} and its methods work, but the harness says that it lacks {lacked.name}: "
        "remove it from lacks, so that it is checked"
    )


async def _not_kept(context: Context) -> str:
    """A store without documents refuses them; one that ignored them would lose them."""
    store: object = context.store
    if not isinstance(store, ExtendedStore):
        return ""
    try:
        await store.put_document(AGENT, "c", "k", 1)
    except (UnsupportedError, NotImplementedError):
        return ""
    return "put_document is not refused, but the harness says that the store lacks DOCUMENTS: remove it from lacks"


async def _not_tagged(context: Context) -> str:
    """A store that keeps no tags refuses them; one that ignored them would never find the document."""
    store: object = context.store
    if not isinstance(store, ExtendedStore):
        return ""
    try:
        await store.put_document(AGENT, "c", "k", 1, tags={"run": "r1"})
    except (UnsupportedError, NotImplementedError):
        return ""
    return "tags of a document are not refused, but the harness says that the store lacks TAGS: remove it from lacks"


async def _not_scoped(context: Context) -> str:
    """A store without scopes refuses them."""
    store: object = context.store
    if not isinstance(store, ScopedStore):
        return ""
    try:
        await store.scoped("t").append_event(AGENT, samples.event(0))
    except (UnsupportedError, NotImplementedError):
        return ""
    return "scoped is not refused, but the harness says that the store lacks SCOPES: remove it from lacks"


async def _not_pruned(context: Context) -> str:
    """A store that cannot remove a part of the events refuses to; one that ignored it would keep them for ever."""
    store: object = context.store
    if not isinstance(store, ExtendedStore):
        return ""
    await store.append_events(AGENT, samples.events(2))
    try:
        await store.prune(AGENT, events_before_offset=2**62)
    except (UnsupportedError, NotImplementedError):
        return ""
    return "a prune of events is not refused, but the harness says that the store lacks PRUNING: remove it from lacks"


async def _not_taken(context: Context) -> str:
    """A store whose filters take one value refuses a list; one that ignored it would find too much."""
    store: object = context.store
    if not isinstance(store, QueryableStore):
        return ""
    try:
        await store.query_sessions(template_id=["one", "two"])
    except (UnsupportedError, NotImplementedError):
        return ""
    return "a list of two values is not refused, but the harness says that the store lacks ANY_OF: remove it from lacks"


async def _not_shared(context: Context, lacked: Capability) -> str:
    """Nothing that is lacking: another process sees what this one wrote, also while it has the store open."""
    await context.store.append_event(AGENT, samples.event(0))
    if lacked is Capability.PERSISTENT:
        await context.close(context.store)
    try:
        process = await context.process("tell_events", AGENT)
        (report,) = await process.lines()
    except Violation:
        return ""
    if report["events"] == 0:
        return ""
    return (
        f"another process reads what was written, but the harness says that the store lacks {lacked.name}: "
        "remove it from lacks, so that it is checked"
    )
