"""Stores whose views of tenants leak, each in one method (SCOPE-1 to SCOPE-5)."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

from kode_conformance.checks.scopes import shown
from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import mutant
from conformance.tests.zoo.witnesses import seen
from kode_core.errors import KodeError
from kode_core.store import EngineStore
from kode_core.store.context import Context
from kode_core.store.scope import ScopedEngine
from kode_core.tenants import prefix_of


class _Whole(EngineStore):
    """A store with views of its own class."""

    view: type[EngineStore] = EngineStore

    def scoped(self, tenant: str) -> EngineStore:
        super().scoped(tenant)  # checks
        return self.view(self._context.open_for_view, tenant=tenant, parent=self, **self._settings)


class _View(EngineStore):
    """A view that can ask its store."""

    @property
    def whole(self) -> Any:
        return self._parent


def _then(call: Any, tenant: str = "acme") -> Any:
    """A witness of a call of a view, next to another tenant and the store with the same agent."""

    async def told(store: Any) -> Any:
        for one in (store, store.scoped("other"), store.scoped("acme")):
            await one.save_info("a", samples.info("a"))
            await one.save_messages("a", samples.messages(2))
            await one.append_events("a", samples.events(2))
            await one.put_document("a", "c", "k", 1)
        try:
            return shown("", await call(store.scoped(tenant)))
        except KodeError as exc:
            return f"{type(exc).__name__}: {exc}"

    return seen(told)


_CHECK = "every_method_is_of_its_tenant"


def _leaking(name: str) -> type[EngineStore]:
    """A class of views whose method *name* asks the whole store."""

    def method(self: _View, *args: Any, **given: Any) -> Any:
        return getattr(self.whole, name)(*args, **given)

    return type("View", (_View,), {name: method})


# --- a method that asks the whole store -------------------------------------------------------------------------------


@mutant("SCOPE-1", killed_by=_CHECK, source="a counter without a tenant", witness=_then(lambda v: v.count_messages()))
class CountsTheMessagesOfAll(_Whole):
    """Counts the messages of all tenants."""

    view = _leaking("count_messages")


@mutant("SCOPE-1", killed_by=_CHECK, source="a report of use", witness=_then(lambda v: v.group_messages("agent_id")))
class GroupsTheMessagesOfAll(_Whole):
    """Groups the messages of all tenants."""

    view = _leaking("group_messages")


@mutant("SCOPE-1", killed_by=_CHECK, source="statistics of the server", witness=_then(lambda v: v.get_metrics()))
class MeasuresTheWholeStore(_Whole):
    """Gives the totals of the whole store as a tenant's."""

    class view(_View):  # noqa: N801
        async def get_metrics(self) -> Any:
            mine = await super().get_metrics()
            return replace(mine, storage=(await self.whole.get_metrics()).storage)


@mutant("SCOPE-1", killed_by=_CHECK, source="a check before the scope", witness=_then(lambda v: v.check_consistency()))
class ChecksTheWholeStore(_Whole):
    """Checks the agents of all tenants."""

    view = _leaking("check_consistency")


@mutant("SCOPE-1", killed_by=_CHECK, source="a list by prefix", witness=_then(lambda v: v.list()))
class ListsTheWholeStore(_Whole):
    """Lists the agents of all tenants."""

    view = _leaking("list")


@mutant(
    "SCOPE-1",
    killed_by=_CHECK,
    source="an iterator next to a query",
    witness=_then(lambda v: _all(v.iter_sessions())),
)
class IteratesOverAllSessions(_Whole):
    """Yields the sessions of all tenants."""

    view = _leaking("iter_sessions")


async def _all(source: Any) -> list[Any]:
    return [item async for item in source]


@mutant("SCOPE-1", killed_by=_CHECK, source="an agent's own log", witness=_then(lambda v: _followed(v)))
class FollowsTheAgentOfTheStore(_Whole):
    """Follows the events of the agent of the same id without a tenant."""

    view = _leaking("follow_events")


async def _followed(view: Any) -> Any:
    await view.append_events("mine", samples.events(1))
    return await _first(view.follow_events("mine", heartbeat_ms=50))


async def _first(stream: Any) -> Any:
    item = await anext(stream)
    await stream.aclose()
    return type(item).__name__


@mutant(
    "SCOPE-1",
    killed_by=_CHECK,
    source="locks in a table of their own, by agent id",
    witness=_then(lambda v: _while_locked(v)),
)
class LocksTheAgentOfAll(_Whole):
    """Locks the agent of this id for all tenants."""

    view = _leaking("acquire_agent_lock")


async def _while_locked(view: Any) -> Any:
    outer = view.whole.acquire_agent_lock("a") if hasattr(view, "whole") else view.acquire_agent_lock("b")
    async with outer, view.acquire_agent_lock("a"):
        return "locked"


@mutant("SCOPE-1", killed_by=_CHECK, source="a fork that is made in the database", witness=_then(lambda v: _forked(v)))
class ForksTheAgentOfTheStore(_Whole):
    """Forks the agent of the same id that has no tenant."""

    view = _leaking("fork")


async def _forked(view: Any) -> Any:
    return await view.exists(await view.fork("a"))


@mutant("SCOPE-1", killed_by=_CHECK, source="a clean-up by age", witness=_then(lambda v: _pruned(v)))
class PrunesTheAgentOfTheStore(_Whole):
    """Prunes the agent of the same id that has no tenant."""

    view = _leaking("prune")


async def _pruned(view: Any) -> Any:
    result = await view.prune("a", events_before_offset=2**62)
    return result, len([event async for event in view.read_events("a")])


@mutant("SCOPE-1", killed_by=_CHECK, source="DELETE without a tenant", witness=_then(lambda v: _deleted(v)))
class DeletesTheMatchesOfAll(_Whole):
    """Deletes the matching agents of all tenants."""

    view = _leaking("delete_many")


async def _deleted(view: Any) -> Any:
    return await view.delete_many(template_id="assistant")


@mutant("SCOPE-1", killed_by=_CHECK, source="a document store of its own", witness=_then(lambda v: _documents(v)))
class ListsTheDocumentsOfTheStore(_Whole):
    """Lists the documents of the agent of the same id that has no tenant."""

    view = _leaking("list_documents")


async def _documents(view: Any) -> Any:
    await view.put_document("a", "c", "mine", 2)
    return [document.key for document in await view.list_documents("a", "c")]


@mutant("SCOPE-1", killed_by=_CHECK, source="a restore of a dump", witness=_then(lambda v: _imported(v)))
class ImportsIntoTheStore(_Whole):
    """Imports an agent so that it has no tenant."""

    view = _leaking("import_agent")


async def _imported(view: Any) -> Any:
    records = await view.load_agent("a")
    await view.import_agent("imported", records)
    return await view.exists("imported")


# --- ids --------------------------------------------------------------------------------------------------------------


class _OtherEngine(_Whole):
    """A store whose views have another engine."""

    engine: type[ScopedEngine] = ScopedEngine

    class view(EngineStore):  # noqa: N801
        def __init__(self, opener: Any, *, tenant: str, parent: Any, **settings: Any) -> None:
            async def scoped() -> Any:
                return parent.engine(await opener(), tenant, is_owner=False)

            super().__init__(scoped, **settings)
            self._context.parent = parent._context
            parent._context._views.add(self._context)
            self._tenant = tenant
            self._parent = parent


@mutant(
    "SCOPE-3",
    killed_by="SCOPE-1." + _CHECK,
    source="`ForeignKeyError: agent acme/a`",
    witness=_then(lambda v: _conflicting(v)),
)
class TellsFullIdsInErrors(_Whole):
    """Errors have the id as the whole store knows it."""

    class view(_View):  # noqa: N801
        async def create_agent(self, *args: Any, **given: Any) -> Any:
            try:
                return await super().create_agent(*args, **given)
            except KodeError as exc:
                exc.args = tuple(str(arg).replace("'a'", f"'{prefix_of(str(self._tenant))}a'") for arg in exc.args)
                raise


async def _conflicting(view: Any) -> Any:
    return await view.create_agent("a", samples.info("a"))


@mutant("SCOPE-1", killed_by=_CHECK, source="a GROUP BY of stored ids", witness=_then(lambda v: _groups(v)))
class GroupsByFullIds(_OtherEngine):
    """Groups by ids as the whole store knows them."""

    class engine(ScopedEngine):  # noqa: N801
        async def group(self, query: Any, grouping: Any) -> Any:
            found = await super().group(query, grouping)
            at = grouping.by.index("agent_id") if "agent_id" in grouping.by else None
            return [
                (tuple(self._full(str(v)) if i == at else v for i, v in enumerate(values)), n) for values, n in found
            ]


async def _groups(view: Any) -> Any:
    return await view.group_messages("agent_id")


@mutant(
    "SCOPE-3",
    killed_by="the_whole_store_has_full_ids",
    source="a prefix that the driver adds",
    witness=seen(lambda s: s.scoped("t").save_info("a", samples.info("a")), lambda s: _id_of(s)),
)
class LeavesIdsInInfos(EngineStore):
    """Gives an info that a view wrote with the id of the view."""

    async def load_info(self, agent_id: str) -> Any:
        info = await super().load_info(agent_id)
        return info if info is None else info.replace(agent_id=info.agent_id.rpartition("/")[2])


async def _id_of(store: Any) -> Any:
    info = await store.load_info("@t/a")
    return info.agent_id


# --- cursors ----------------------------------------------------------------------------------------------------------


@mutant(
    "SCOPE-4",
    killed_by="cursors_are_of_one_tenant",
    source="a cursor that is the last key",
    witness=seen(lambda s: _with_another_cursor(s)),
)
class TakesCursorsOfOthers(_Whole):
    """Takes a cursor of another tenant, and begins behind a place of its."""

    class view(_View):  # noqa: N801
        async def query_messages(self, **filters: Any) -> Any:
            tenant, self._context.tenant = self._context.tenant, "any"
            try:
                return await super().query_messages(**filters)
            finally:
                self._context.tenant = tenant


async def _with_another_cursor(store: Any) -> Any:
    for tenant in ("one", "two"):
        await store.scoped(tenant).save_messages("a", samples.messages(3))
    page = await store.scoped("one").query_messages(limit=1)
    return len(await store.scoped("two").query_messages(limit=1, cursor=page.next_cursor))


# --- names ------------------------------------------------------------------------------------------------------------


async def _twins(store: Any, *names: str) -> Sequence[int]:
    for name in names:
        await store.scoped(name).append_messages("a", samples.messages(1))
    return [await store.scoped(name).count_messages() for name in names]


@mutant(
    "SCOPE-2",
    killed_by="tenants_are_told_apart",
    source="a subdomain as the tenant",
    witness=seen(lambda s: _twins(s, "acme", "Acme")),
)
class FoldsTheCaseOfTenants(EngineStore):
    """Takes two tenants for one if their names differ in case alone."""

    def scoped(self, tenant: str) -> EngineStore:
        return super().scoped(tenant.lower() if type(tenant) is str else tenant)


@mutant(
    "SCOPE-2",
    killed_by="tenants_are_told_apart",
    source="a collation that normalises",
    witness=seen(lambda s: _twins(s, "é", "e\u0301")),
)
class NormalisesTenants(EngineStore):
    """Takes two tenants for one if their names have one normalised form."""

    def scoped(self, tenant: str) -> EngineStore:
        return super().scoped(unicodedata.normalize("NFC", tenant) if type(tenant) is str else tenant)


@mutant(
    "SCOPE-2",
    killed_by="tenants_are_told_apart",
    source='f"{tenant}/{agent_id}"',
    witness=seen(lambda s: _twins(s, "a", "a ")),
)
class StripsTenants(EngineStore):
    """Drops blanks at the ends of the names of tenants."""

    def scoped(self, tenant: str) -> EngineStore:
        return super().scoped(tenant.strip() if type(tenant) is str else tenant)


# --- the end ----------------------------------------------------------------------------------------------------------


async def _after_view(store: Any) -> Any:
    view = store.scoped("one")
    await view.append_messages("a", samples.messages(1))
    await view.close()
    return await store.exists("a")


@mutant(
    "SCOPE-5",
    killed_by="views_and_their_store_are_closed",
    source="a wrapper that closes what it wraps",
    witness=seen(_after_view),
    raises="closed",
)
class ClosesTheStoreWithTheView(_Whole):
    """Closes the store when a view is closed."""

    class view(_View):  # noqa: N801
        async def close(self) -> None:
            await super().close()
            await self.whole.close()


async def _after_store(store: Any) -> Any:
    view = store.scoped("one")
    await view.append_messages("a", samples.messages(1))
    await store.close()
    return await view.exists("a")


@mutant(
    "SCOPE-5",
    killed_by="views_and_their_store_are_closed",
    source="a view with the engine alone",
    witness=seen(_after_store),
)
class LeavesViewsOpen(_Whole):
    """Lets views go on after the store was closed."""

    class view(_View):  # noqa: N801
        def __init__(self, *args: Any, **given: Any) -> None:
            super().__init__(*args, **given)
            parent = self._context.parent
            assert isinstance(parent, Context)
            parent._views.discard(self._context)
            self._context.parent = _Open()  # type: ignore[assignment]


class _Open:
    """Stands for a store that is never closed."""

    is_closed = False

    def check_open(self) -> None:
        pass


@mutant(
    "SCOPE-5",
    killed_by="views_and_their_store_are_closed",
    source="a view that is a store",
    witness=seen(lambda s: _inner(s)),
)
class GivesViewsOfViews(_Whole):
    """Gives a view of a view, which is one of the store."""

    class view(_View):  # noqa: N801
        def scoped(self, tenant: str) -> Any:
            return self.whole.scoped(tenant)


async def _inner(store: Any) -> Any:
    await store.scoped("inner").append_messages("a", samples.messages(1))
    return await store.scoped("one").scoped("inner").count_messages()
