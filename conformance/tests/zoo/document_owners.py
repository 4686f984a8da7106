"""Stores with faults in documents of forks, and of agents that are deleted, counted or copied (DOC-5, DOC-6)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kode_conformance.checks.damage import damaging
from kode_conformance.context import Context
from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import OnJson, mutant
from conformance.tests.zoo.document_ranges import put_keys
from conformance.tests.zoo.own_documents import value_of
from conformance.tests.zoo.witnesses import seen
from kode_core import create_extended_store
from kode_core.model import Document, PutDocument
from kode_core.query import AgentStats, Page
from kode_core.report import ConsistencyCheckResult
from kode_core.store import EngineStore


async def _fork_of_a_version(ctx: Context) -> object:
    await ctx.store.save_info("a", samples.info("a"))
    version = await ctx.store.put_document("a", "c", "k", 1)
    found = await ctx.store.load_document(await ctx.store.fork("a", documents=True), "c", "k")
    return found is not None and found.version == version


@mutant(
    "DOC-5",
    killed_by="forks_take_documents_along_when_asked",
    source="a fork that loads each document, and puts it",
    witness=_fork_of_a_version,
)
class ForksPutDocumentsAnew(EngineStore):
    """Gives the documents of a fork new versions."""

    async def fork(self, agent_id: str, new_id: str | None = None, **how: Any) -> str:
        child = await super().fork(agent_id, new_id, **how)
        if how.get("documents"):
            for one in [one async for one in self.iter_documents(child, "c")]:
                await self.put_document(child, "c", one.key, one.value)
        return child


async def _fork_without(ctx: Context) -> object:
    await ctx.store.save_info("a", samples.info("a"))
    await ctx.store.put_document("a", "c", "k", 1)
    return await value_of(ctx.store, agent_id=await ctx.store.fork("a"))


@mutant(
    "DOC-5",
    killed_by="forks_take_documents_along_when_asked",
    source="INSERT … SELECT of all tables of the parent",
    witness=_fork_without,
)
class ForksAlwaysTakeDocuments(EngineStore):
    """Takes documents along in every fork of one agent."""

    async def fork(self, agent_id: str, new_id: str | None = None, **how: Any) -> str:
        return await super().fork(agent_id, new_id, **{**how, "documents": True})


# --- the agent --------------------------------------------------------------------------------------------------------


@mutant(
    "DOC-6",
    killed_by="documents_go_with_their_agent",
    source="a table of documents without ON DELETE CASCADE",
    witness=seen(lambda s: put_keys(s, "k"), lambda s: s.delete("a"), lambda s: value_of(s)),
)
class DeletesForgetDocuments(EngineStore):
    """Leaves the documents where they are when their agent is deleted."""

    async def delete(self, agent_id: str, **how: Any) -> None:
        kept = [one async for one in self.iter_documents(agent_id, "c")] if isinstance(agent_id, str) else []
        await super().delete(agent_id, **how)
        if kept:
            await self.write_documents(agent_id, [PutDocument("c", one.key, one.value) for one in kept])


async def _total(store: Any) -> int:
    return int((await store.aggregate_stats("a")).total_documents)


@mutant(
    "DOC-6",
    killed_by="stats_count_documents",
    source="count(*) of one table for documents of all kinds",
    witness=seen(lambda s: s.save_snapshot("a", samples.snapshot()), lambda s: _total(s)),
)
class CountsSnapshotsAsDocuments(EngineStore):
    """Counts snapshots among the documents."""

    async def aggregate_stats(self, agent_id: str) -> AgentStats:
        found = await super().aggregate_stats(agent_id)
        return replace(found, total_documents=found.total_documents + found.total_snapshots)


@mutant(
    "DOC-6",
    killed_by="a_damaged_document_is_named",
    source="a check that knows the kinds of the SDK alone",
    witness=lambda ctx: _issues(ctx),
)
class ChecksNoDocuments(EngineStore):
    """Finds no damage of documents in a check of consistency."""

    async def check_consistency(self, agent_id: str | None = None, **how: Any) -> ConsistencyCheckResult:
        found = await super().check_consistency(agent_id, **how)
        issues = tuple(issue for issue in found.issues if "document" not in issue.message)
        return replace(found, issues=issues, consistent=not issues)


async def _issues(ctx: Context) -> object:
    await put_keys(ctx.store, "k")
    store, layer = await damaging(ctx)
    layer.verbs, layer.kind = frozenset({"docs", "docs_in"}), "documents"
    return len((await store.check_consistency()).issues)


async def _left_out(ctx: Context) -> object:
    await put_keys(ctx.store, "k")
    store, layer = await damaging(ctx)
    layer.verbs, layer.kind = frozenset({"docs", "docs_in"}), "documents"
    return len((await store.list_documents("a", "c")).left_out)


@mutant(
    "DOC-6",
    killed_by="a_damaged_document_is_named",
    source="except ValueError: continue",
    witness=_left_out,
)
class LeavesOutDamagedDocumentsSilently(EngineStore):
    """Leaves damaged documents out of a page without naming them."""

    async def list_documents(self, agent_id: str, collection: str, **given: Any) -> Page[Document]:
        page = await super().list_documents(agent_id, collection, **given)
        page.left_out = ()
        return page


async def _copied(ctx: Context) -> object:
    await put_keys(ctx.store, "k")
    copy = await ctx.restored(await ctx.store.backup(ctx.folder / "copy"))
    return await value_of(copy)


@mutant(
    "DOC-6",
    killed_by="a_backup_has_the_documents",
    source="a backup of a list of tables that was written before there were documents",
    on=OnJson,
    witness=_copied,
)
class BackupsForgetDocuments(EngineStore):
    """Leaves documents out of a backup."""

    async def backup(self, target: Any, **how: Any) -> Sequence[Path]:
        made = await super().backup(target, **how)
        async with create_extended_store(type="json", base_dir=str(made[0])) as copy:
            for agent_id in ("a", "no info"):
                for key in list(await copy.list_document_keys(agent_id, "c", limit=1000)):
                    await copy.delete_document(agent_id, "c", key)
        return made
