"""Stores that take damage for something else, or let one damaged agent block all others (OPS-4, QRY-9)."""

from __future__ import annotations

import asyncio
from typing import Any

from kode_conformance.checks.damage import damaging
from kode_conformance.context import Context
from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import OnJson, OnSqlite, mutant
from conformance.tests.zoo.witnesses import talk
from kode_core.backends.json_files.folder import Folder
from kode_core.backends.json_files.journal import Journal
from kode_core.errors import CorruptRecordError, StorageError
from kode_core.model import MediaCacheRecord
from kode_core.query import Page
from kode_core.report import ConsistencyCheckResult
from kode_core.store import EngineStore

# --- searches ---------------------------------------------------------------------------------------------------------


async def _searched(ctx: Context) -> object:
    for agent_id in ("a", "b"):
        await ctx.store.save_messages(agent_id, samples.messages(2))
    await ctx.harness.corrupt(ctx.handle, "a")
    store = await ctx.another()
    (page,) = await asyncio.gather(store.query_messages(), return_exceptions=True)
    return type(page).__name__, getattr(page, "left_out", None)


@mutant(
    "QRY-9",
    killed_by="queries_leave_out_what_is_damaged_and_name_it",
    on=OnSqlite,
    witness=_searched,
    source="a list comprehension that decodes rows",
    raises="CorruptRecordError",
)
class QueryFailsOnOneDamagedAgent(EngineStore):
    """Raises for a whole page when one record on it is damaged."""

    async def query_messages(self, **filters: Any) -> Any:
        page = await super().query_messages(**filters)
        if page.left_out:
            raise CorruptRecordError(page.left_out[0], "it is damaged")
        return page


@mutant(
    "QRY-9",
    killed_by="queries_leave_out_what_is_damaged_and_name_it",
    on=OnJson,
    witness=_searched,
    source="`except ValueError: continue`",
)
class LeavesOutSilently(EngineStore):
    """Leaves out of a page what is damaged, and does not say so."""

    async def query_messages(self, **filters: Any) -> Any:
        page = await super().query_messages(**filters)
        return Page(page, page.next_cursor)


# --- checks and loads -------------------------------------------------------------------------------------------------


async def _checked_without_info(ctx: Context) -> object:
    await ctx.store.save_messages("a", samples.rich_messages()[:5])
    return (await ctx.store.check_consistency()).consistent


@mutant(
    "OPS-2",
    killed_by="agents_without_info_are_checked",
    witness=_checked_without_info,
    source="a check that walks the table of sessions",
)
class ChecksAgentsWithInfoOnly(EngineStore):
    """Looks only at agents that are listed when it checks all."""

    async def check_consistency(self, agent_id: str | None = None, **how: Any) -> ConsistencyCheckResult:
        found = await super().check_consistency(agent_id, **how)
        if agent_id is not None:
            return found
        known = await self.list()
        issues = tuple(issue for issue in found.issues if issue.agent_id in known)
        return replace(found, issues=issues, consistent=not issues, agents_checked=len(known))


async def _media_damaged(ctx: Context) -> object:
    await ctx.store.save_media_cache("a", [samples.media()])
    store, damage = await damaging(ctx)
    damage.verbs, damage.kind = frozenset({"docs"}), "media"
    try:
        return await store.load_media_cache("a")
    except StorageError:
        return "refused"


@mutant(
    "OPS-4",
    killed_by="damage_of_any_kind_is_named_and_stays_where_it_is",
    witness=_media_damaged,
    source="a cache is only a cache",
)
class DamagedMediaIsNoMedia(EngineStore):
    """Loads an empty media cache where it is damaged."""

    async def load_media_cache(self, agent_id: str) -> list[MediaCacheRecord]:
        try:
            return await super().load_media_cache(agent_id)
        except CorruptRecordError:
            return []


async def _info_damaged(ctx: Context) -> object:
    for agent_id in ("a", "b"):
        await ctx.store.save_info(agent_id, samples.info(agent_id))
    store, damage = await damaging(ctx)
    damage.verbs = frozenset({"find_sessions", "summary"})
    (deleted,) = await asyncio.gather(store.delete_many(template_id="assistant"), return_exceptions=True)
    return isinstance(deleted, BaseException)


@mutant(
    "OPS-4",
    killed_by="damage_of_any_kind_is_named_and_stays_where_it_is",
    witness=_info_damaged,
    source="a loop over all agents without a try",
)
class DeletesNothingBesideDamage(EngineStore):
    """Refuses to delete many when anything at all is damaged."""

    async def delete_many(self, **filters: Any) -> int:
        found = await self.check_consistency()
        for issue in found.issues:
            if issue.code == "corrupt_record":
                raise CorruptRecordError(f"agent {issue.agent_id!r}", "it is damaged")
        return await super().delete_many(**filters)


# --- bytes ------------------------------------------------------------------------------------------------------------


async def _zeroed(ctx: Context) -> object:
    for i in range(10):
        await ctx.store.append_messages("a", talk(str(i)))
    await ctx.close(ctx.store)
    (path,) = await ctx.harness.files_of(ctx.handle, "a")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] = 0
    path.write_bytes(data)
    ctx.store = await ctx.another()
    try:
        return len(await ctx.store.load_messages("a"))
    except CorruptRecordError:
        return "corrupt"


@mutant(
    "OPS-4",
    killed_by="damaged_bytes_are_never_taken_for_right_ones",
    on=OnJson,
    witness=_zeroed,
    source="a file that cannot be read is moved away, so that the program starts",
)
class SetsDamagedFilesAside(Folder):
    """Moves a damaged file out of its way when it is opened, and begins the agent anew."""

    def open(self) -> None:
        for path in self.base.glob("*.jsonl"):
            try:
                Journal(path).refresh()
            except CorruptRecordError:
                path.rename(path.with_suffix(".bad"))
        super().open()


async def _skipping(ctx: Context) -> object:
    await ctx.store.save_messages("a", samples.messages(3))
    await ctx.harness.corrupt(ctx.handle, "a")
    store = await ctx.another()
    found = await store.load_messages("a", on_corrupt="skip")
    return len(found), found.left_out


@mutant(
    "OPS-21",
    killed_by="loads_step_around_what_is_damaged",
    on=OnSqlite,
    witness=_skipping,
    source="`except CorruptRecordError: pass`",
)
class SkipsWithoutNames(EngineStore):
    """Leaves damaged messages out and names none."""

    async def load_messages(self, agent_id: str, **options: Any) -> Any:
        found = await super().load_messages(agent_id, **options)
        return Page(found) if isinstance(found, Page) else found


@mutant(
    "OPS-21",
    killed_by="loads_step_around_what_is_damaged",
    on=OnSqlite,
    witness=_skipping,
    source="a page that is read in one statement",
)
class SkipsWholePages(EngineStore):
    """Leaves out everything that it read together with a damaged message."""

    async def load_messages(self, agent_id: str, **options: Any) -> Any:
        found = await super().load_messages(agent_id, **options)
        return Page((), None, found.left_out) if isinstance(found, Page) and found.left_out else found
