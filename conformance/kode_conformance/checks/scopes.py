"""SCOPE-1 to SCOPE-5: a view of one tenant is a store by itself, and meets nobody else."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Mapping
from typing import Any, Final

from kode_conformance.calls.methods import calls_of, directions, drive_pages
from kode_conformance.context import Context, Violation
from kode_conformance.dimensions import Dimension
from kode_conformance.harness import keeps_documents, keeps_tags, prunes_events
from kode_conformance.instruments.patience import within
from kode_conformance.instruments.yielding import giving_way
from kode_conformance.registry import Capability, check
from kode_conformance.values import samples
from kode_core.errors import InvalidArgumentError, KodeError, LockUnavailableError, StoreClosedError
from kode_core.model import AgentInfo, Message, ToolUseBlock
from kode_core.protocols import ExtendedStore, Heartbeat, ScopedStore
from kode_core.query import Page

__all__ = ["scopes_of", "settled", "shown"]

_D = Dimension
_N = Capability.EXTENDED | Capability.SCOPES
_TENANTS: Final = ("acme", "acme/eu")
_OTHERS: Final = "of others"
_FIRST_READ: Final = (
    "load",
    "exists",
    "last",
    "read",
    "follow",
    "list",
    "query",
    "iter",
    "count",
    "group",
    "aggregate",
)
_LAST: Final = ("delete", "delete_many")
_VARIED: Final[tuple[tuple[str, Mapping[str, Any]], ...]] = (
    ("list", {"include_without_info": True}),
    ("list", {"prefix": "b"}),
    ("query_sessions", {"limit": 1, "order": "asc"}),
    ("query_sessions", {"agent_id": "a"}),
    ("query_sessions", {"user_id": "u-1", "sort_by": "message_count"}),
    ("query_messages", {"role": "user", "limit": 2}),
    ("query_messages", {"content_type": "tool_use"}),
    ("query_tool_calls", {"tool_name": "grep", "order": "asc"}),
    ("count_sessions", {"template_id": "research-v1"}),
    ("group_messages", {"by": ["agent_id", "role"]}),
    ("group_tool_calls", {"by": ["agent_id", "tool_name"], "durations": True}),
    ("group_sessions", {"by": "template_id"}),
    ("prune", {"events_before_offset": 2**62}),
    ("delete_many", {"template_id": "research-v1"}),
)
"""Calls of methods with other arguments than the harmless ones."""


def scopes_of(ctx: Context) -> ScopedStore:
    """The store of the check, as one with views."""
    store: object = ctx.store
    if not isinstance(store, ScopedStore):
        raise Violation("the store must have the method scoped, or its harness says that it lacks SCOPES")
    return store


async def settled(ctx: Context) -> None:
    """Wait until queries of views see everything, where the backend declares a lag."""
    if ctx.harness.has("wait_until_queries_see_all"):
        await ctx.harness.wait_until_queries_see_all(ctx.handle)


async def _fill(store: ExtendedStore, mark: str, *agents: str) -> None:
    """Save records of many kinds, the same in each tenant but for *mark*, a text in each of them."""
    for i, agent in enumerate(agents):
        said = [Message("user", [samples.message(text=f"{mark} {i}").content[0]])] * (i + 1)
        await store.save_messages(agent, [*said, Message("assistant", [ToolUseBlock("c", mark, {})])])
        await store.save_tool_call_records(agent, [samples.tool_call(i, name="grep", result=mark)])
        await store.append_events(agent, samples.events(2))
        await store.emit(agent, mark)
        await store.save_snapshot(agent, samples.snapshot(f"s {mark}"))
        info = samples.info(agent, lineage=["root", agents[0]])
        await store.save_info(agent, info.replace(metadata={"userId": "u-1", "mark": mark}, template_id="research-v1"))
        await store.save_todos(agent, samples.todos(mark))
        await store.save_history_window(agent, samples.window().replace(messages=said))
        await store.save_compression_record(agent, samples.compression().replace(summary=mark))
        await store.save_recovered_file(agent, samples.recovered(content=mark))
        await store.save_media_cache(agent, [samples.media(mark)])
        if keeps_documents():
            tags: Any = {"tags": {"run": "r1"}} if keeps_tags() else {}
            await store.put_document(agent, "c", "k", mark, **tags)
            await store.put_document(agent, "c", "l", mark, **tags)
    await store.save_todos(f"{agents[-1]} without info", samples.todos(mark))


def shown(name: str, result: object) -> str:
    """A result as a text without what differs between two equal stores: times, offsets, versions, new ids."""
    text = repr(result)
    for pattern, sign in _DIFFERING:
        text = pattern.sub(sign, text)
    if name.startswith(("append_event", "save_turn")):
        text = re.sub(r"\d+", "N", text)
    return text


_DIFFERING: Final = (
    (re.compile(r"\d+\.\d+(e-?\d+)?"), "LATENCY"),
    (re.compile(r"agt-[0-9a-z]{26}"), "ID"),
    (re.compile(r"\b(?=[0-9a-z]*\d)[0-9a-z:.-]{20,}\b"), "VERSION"),
    (re.compile(r"\d{9,}"), "TIME"),
    (re.compile(r"offsets?=\(?\[?\d+(, \d+)*\)?\]?"), "OFFSETS"),
    (re.compile(r"'day': '[0-9-]+'"), "DAY"),
    (re.compile(r"loads=\d+"), "LOADS"),  # a follower looks as often as it takes
)


async def _result(view: ExtendedStore, name: str, given: Mapping[str, Any]) -> str:
    """The result of a call, or the error that it ends in."""
    method = getattr(view, name)
    try:
        if name == "acquire_agent_lock":
            async with method(**given) as lease:
                return shown(name, lease.agent_id)
        if name == "follow_events":
            return shown(name, await _followed(view, method(**given, heartbeat_ms=100)))
        return shown(name, await drive_pages(method, given))
    except KodeError as exc:
        return shown(name, f"{type(exc).__name__}: {exc} {vars(exc)}")


async def _followed(view: ExtendedStore, stream: Any) -> list[Any]:
    """The events that a follower gets, until it is quiet after as many as the agent has."""
    number = len([event async for event in view.read_events("a")])
    found: list[Any] = []
    try:
        async with within(60.0):
            async for item in stream:
                if not isinstance(item, Heartbeat):
                    found.append(item)
                elif len(found) >= number:
                    break
    except TimeoutError:
        pass
    finally:
        await stream.aclose()
    return found


def _calls(view: ExtendedStore, target: str) -> list[tuple[str, str, Mapping[str, Any]]]:
    """(what, method, arguments) of a call of every method: reads first, deletes last."""

    def place(name: str) -> int:
        return 0 if name.startswith(_FIRST_READ) or name in ("check_consistency", "get_metrics") else 1

    calls: list[tuple[str, str, Mapping[str, Any]]] = []
    harmless = calls_of(view, "a", target)
    for name, call in sorted(harmless.items(), key=lambda pair: (pair[0] in _LAST, place(pair[0]))):
        varied = [more for other, more in _VARIED if other == name and (name != "prune" or prunes_events())]
        ways = directions(name)
        calls += [(f"{name} of {more}", name, {**call.arguments, **more}) for more in (*varied, *ways)]
        if "agent_id" in call.arguments and _is_optional(name):
            of_all = {k: v for k, v in call.arguments.items() if k != "agent_id"}
            calls += [(f"{name} of all, {more}", name, {**of_all, **more}) for more in ({}, *ways)]
        calls.append((name, name, call.arguments))
    calls.append(("delete_many of all", "delete_many", {}))
    return calls


def _is_optional(name: str) -> bool:
    parameter = inspect.signature(getattr(ExtendedStore, name)).parameters["agent_id"]
    return parameter.default is not parameter.empty


async def _leases(stores: list[Any]) -> list[Any]:
    try:
        return [await store.acquire_agent_lock("a", ttl_ms=600_000) for store in stores]
    except LockUnavailableError as exc:
        raise Violation(f"the lock of an agent must be free though another tenant holds its own: {exc}") from exc


async def _contents(ctx: Context, store: ExtendedStore, agents: list[str]) -> list[str]:
    """Everything that a store has of some agents, and the ids of all."""
    await settled(ctx)
    whole = [repr(await store.load_agent(agent)) for agent in agents]
    return [*whole, *[one for one in await store.list(include_without_info=True) if not one.startswith("@")]]


@check("SCOPE-1", "SCOPE-3", needs=_N, under=(_D.COMPANY, _D.ORDERS, _D.CHANGES))
async def every_method_is_of_its_tenant(ctx: Context) -> None:
    """A call of every method, in both directions and in pages, gives the same in a tenant that is alone in the store
    and in one that has others before and behind it, with the same ids; nothing that it gives or raises has a record or
    a full id of anybody; and what the others have stays as it was.
    """
    whole = scopes_of(ctx)
    alone, among = whole.scoped("alone"), whole.scoped(_TENANTS[0])
    await _fill(alone, "mine", "a", "b")
    await settled(ctx)
    ctx.equal(await alone.list(), ["a", "b"], "the agents of a tenant")
    wanted = {}
    for what, name, given in _calls(alone, str(ctx.folder / "alone")):
        wanted[what] = await _result(alone, name, given)
        await settled(ctx)
    others = [whole.scoped(_TENANTS[1]), whole.scoped("z"), ctx.store]
    for other in others:
        await _fill(other, _OTHERS, "a", "b", "c")
    await _fill(among, "mine", "a", "b")
    await settled(ctx)
    ctx.equal(await among.list(), ["a", "b"], "the agents of a tenant next to others")
    ids = ["a", "b", "c", "c without info"]
    before = [await _contents(ctx, other, ids) for other in others]
    leases = await _leases(others)
    for what, name, given in _calls(among, str(ctx.folder / "among")):
        found = await _result(among, name, given)
        ctx.true(_OTHERS not in found, f"{what} gave a record of another tenant: {found:.300}")
        ctx.true("@acme" not in found, f"{what} gave an id with the tenant in it: {found:.300}")
        ctx.equal(found.replace("among", "alone"), wanted[what], f"{what}, next to other tenants")
        await settled(ctx)
    for lease in leases:
        await lease.renew()
        await lease.release()
    after = [await _contents(ctx, other, ids) for other in others]
    ctx.equal(after, before, "what the others have after a call of every method")
    left = [shown("list", await view.list(include_without_info=True)) for view in (among, alone)]
    ctx.equal(left[0], left[1], "the agents that are left")


@check("SCOPE-1", needs=_N, under=(_D.COMPANY, _D.ORDERS, _D.TWINS))
async def tenants_that_read_at_the_same_time(ctx: Context) -> None:
    """Two tenants and the whole store make the same call at the same time, with the same ids, of every method that
    reads; each gets the same as alone, also when all of the calls are under way before the engine answers one.
    """
    ctx.store = await giving_way(ctx)
    whole = scopes_of(ctx)
    stores: list[ExtendedStore] = [whole.scoped(_TENANTS[0]), ctx.store, whole.scoped(_TENANTS[1])]
    for number, store in enumerate(stores):
        await _fill(store, f"mark {number}", "a", "b")
    await settled(ctx)
    ctx.equal(await stores[0].list(), ["a", "b"], "the agents of a tenant")
    for name, call in calls_of(stores[0], "a", str(ctx.folder / "t")).items():
        if not name.startswith(_FIRST_READ) or name == "follow_events":
            continue
        alone = [await _result(store, name, call.arguments) for store in stores]
        calls = (_result(store, name, call.arguments) for store in (*stores, *stores[::-1]))
        ctx.equal(await asyncio.gather(*calls), [*alone, *alone[::-1]], f"{name}, by three at the same time")


@check("SCOPE-4", needs=_N, absence_ok=True, under=(_D.INSTANCES,))
async def cursors_are_of_one_tenant(ctx: Context) -> None:
    """A cursor of a page, of whatever method, goes on in another view of the same tenant, and is refused in another
    tenant and in the whole store; so is the store's in a view.
    """
    whole = scopes_of(ctx)
    one, two = whole.scoped(_TENANTS[0]), whole.scoped(_TENANTS[1])
    for store in (one, two, ctx.store):
        await _fill(store, "mine", "a", "b")
    await settled(ctx)
    stores = {"a view": one, "the whole store": ctx.store}
    for where, store in stores.items():
        for name, call in calls_of(store, "a").items():
            if not name.startswith(("query_", "list_document")):
                continue
            page = await getattr(store, name)(**call.arguments, limit=1)
            if not isinstance(page, Page) or page.next_cursor is None:
                continue
            again = scopes_of(ctx).scoped(_TENANTS[0]) if store is one else store
            following = await getattr(again, name)(**call.arguments, limit=1, cursor=page.next_cursor)
            ctx.true(following != page, f"{name} with its cursor, of {where}")
            for other in (two, ctx.store if store is one else one):
                given = {**call.arguments, "limit": 1, "cursor": page.next_cursor}
                refused = getattr(other, name)(**given)
                await ctx.raises(InvalidArgumentError, refused, f"{name} with a cursor of {where}, in another scope")


_NAMES: Final = (
    *("acme", "Acme", "ACME", "acme/", "acme/eu", "acme%2Feu", "acme eu", "acme ", "..", "../..", ".", "/", "%", "@"),
    *("@acme", "*", "_", "[a]", "a'b", 'a"b', "a\\b", "a\nb", "\x7f", "é", "e\u0301", "ﬁ", "fi", "ß", "SS"),
    *("İ", "i̇", "😀", "\ufeff", "\uffff", "0", "00", "-1", "None", "x" * 127, "x" * 128, "y" * 128, "é" * 21),
)
_NO_NAMES: Final[tuple[Any, ...]] = (
    *("", "a\0b", "\ud800", "a\udfffb", "x" * 129, "é" * 22, "/" * 43, "x" * 10**6),
    *(None, 5, b"acme", ["acme"], True, type("Text", (str,), {})("acme")),
)


@check("SCOPE-2", "ID-2", needs=_N, under=(_D.TWINS, _D.LOOKALIKES, _D.LENGTHS))
async def tenants_are_told_apart(ctx: Context) -> None:
    """Tenants with names that differ in anything, case, normalisation and separators included, share nothing; names
    that are not allowed are refused.
    """
    whole = scopes_of(ctx)
    names = list(dict.fromkeys(_NAMES))
    for i, name in enumerate(names):
        view = whole.scoped(name)
        await view.append_messages("a", samples.messages(1, i))
        await view.save_info("a", samples.info("a", template_id=f"t{i}"))
    await ctx.store.append_messages("a", samples.messages(2, 1_000))
    await settled(ctx)
    for i, name in enumerate(names):
        view = whole.scoped(name)
        ctx.equal(await view.load_messages("a"), samples.messages(1, i), f"the messages of the tenant {name!r}")
        sessions = [(s.agent_id, s.template_id) for s in await view.query_sessions()]
        ctx.equal(sessions, [("a", f"t{i}")], f"the sessions of the tenant {name!r}")
        ctx.equal(await view.count_messages(), 1, f"how many messages the tenant {name!r} has")
        ctx.equal(await view.list(), ["a"], f"the agents of the tenant {name!r}")
    ctx.equal(len(await ctx.store.list()), len(names), "how many agents with info the whole store has")
    for name in _NO_NAMES:
        try:
            whole.scoped(name)
        except InvalidArgumentError:
            continue
        raise Violation(f"a tenant named {name!r:.60} must be refused")


@check("SCOPE-3", "FORK-1", "LIFE-7", "LIFE-8", needs=_N, under=(_D.INSTANCES, _D.LENGTHS, _D.CHANGES))
async def the_whole_store_has_full_ids(ctx: Context) -> None:
    """The store has a tenant's agents under full ids, and no others begin with its prefix; each reads what the other
    wrote, or imported, with ids, lineages included, as it knows them. An id in a tenant may be as long as others.
    """
    view = scopes_of(ctx).scoped("acme/eu")
    long = "x" * 256
    await view.save_info("a", samples.info("a"))
    child = await view.fork("a", "child")
    await view.append_messages(long, samples.messages(1))
    full = {name: f"@acme%2Feu/{name}" for name in ("a", child, long)}
    ctx.equal(await ctx.store.list("@acme%2Feu/"), sorted((full["a"], full[child])), "the tenant's full ids")
    ctx.equal(await ctx.store.load_messages(full[long]), samples.messages(1), "the messages of a long full id")
    found = await ctx.store.load_info(full[child])
    wanted: AgentInfo | None = await view.load_info(child)
    if found is None or wanted is None:
        raise Violation("the fork must have an info")
    ctx.equal((wanted.agent_id, [*wanted.lineage]), ("child", ["a"]), "the ids in an info of a view")
    ctx.equal((found.agent_id, [*found.lineage]), (full[child], [full["a"]]), "the ids in the same info of the store")
    await ctx.store.update_info(full[child], metadata={"by": "the store"})
    seen = await (await ctx.another()).load_info(full[child])
    again = await view.load_info(child)
    for info, ids in ((seen, (full[child], [full["a"]])), (again, ("child", ["a"]))):
        ctx.true(info is not None and info.metadata.get("by") == "the store", "what the store wrote must be there")
        if info is not None:
            ctx.equal((info.agent_id, [*info.lineage]), ids, "the ids in an info that the store wrote")
    await settled(ctx)
    ctx.equal([s.agent_id for s in await view.query_sessions(order="asc")], ["a", "child"], "sessions of the view")
    records = await view.load_agent(child)
    assert records is not None
    await view.import_agent("copy", records)
    for one in (child, "copy"):
        there = (await view.load_agent(one), await ctx.store.load_agent(f"@acme%2Feu/{one}"))
        shown_ids = [(agent.agent_id, [*agent.info.lineage]) for agent in there if agent and agent.info]
        wanted_ids = [(one, ["a"]), (f"@acme%2Feu/{one}", [full["a"]])]
        ctx.equal(shown_ids, wanted_ids, f"the ids of {one} that is loaded whole, by the view and by the store")
    much = "x" * 257
    await ctx.raises(InvalidArgumentError, view.load_messages(much), "an id that is too long, in a view")
    longest = scopes_of(ctx).scoped("t" * 128)
    await longest.append_messages("x" * 170, samples.messages(1))
    ctx.equal(await longest.list(include_without_info=True), ["x" * 170], "the longest id of the longest tenant")
    error = await ctx.raises(InvalidArgumentError, longest.exists("x" * 171), "an id that is too long with its tenant")
    ctx.true("170" in str(error), f"the error must say how long an id may be in the tenant: {error}")


@check("SCOPE-5", "OPS-5", needs=_N, under=(_D.ORDERS, _D.INTERRUPTIONS))
async def views_and_their_store_are_closed(ctx: Context) -> None:
    """A view that is closed refuses calls, and its store and other views go on; a store that is closed closes its views
    after their accepted writes. A view has no views of its own.
    """
    whole = await ctx.another()
    assert isinstance(whole, ScopedStore)
    one, other, third = (whole.scoped(name) for name in ("one", "one", "third"))
    await one.append_messages("a", samples.messages(1))
    for view in (one, third):
        scoped = getattr(view, "scoped", None)
        if scoped is not None:
            try:
                scoped("inner")
            except KodeError:
                continue
            raise Violation("a view of a view must be refused")
    await _closed(one)
    await _refused(ctx, one, "a call of a view that was closed")
    await _closed(one)
    ctx.equal(await other.load_messages("a"), samples.messages(1), "messages, in another view of the same tenant")
    ctx.equal(await whole.list("@third/"), [], "agents of the store, after a view was closed")
    written = other.append_messages("b", samples.messages(1, 1))
    task = _started(written)
    await ctx.close(whole)
    await _refused(ctx, other, "a call of a view whose store was closed")
    await _refused(ctx, third, "a first call of a view whose store was closed")
    await _closed(third)
    try:
        await task
    except KodeError:
        return
    there = await scopes_of(ctx).scoped("one").load_messages("b")
    ctx.equal(there, samples.messages(1, 1), "what a view's write that was acknowledged left behind")


def _started(call: Any) -> Any:
    return asyncio.ensure_future(call)


async def _closed(view: Any) -> None:
    await view.close()


async def _refused(ctx: Context, view: ExtendedStore, what: str) -> None:
    await ctx.raises(StoreClosedError, view.load_messages("a"), what)
