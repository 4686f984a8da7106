"""DOC-5 and DOC-6: documents in forks, and with the agent that they belong to."""

from __future__ import annotations

from typing import Any

from kode_conformance.checks.backups import need_restored
from kode_conformance.checks.damage import damaging
from kode_conformance.checks.document_ranges import put_all
from kode_conformance.checks.lifecycle import fill
from kode_conformance.checks.own_documents import documents_of
from kode_conformance.context import Context
from kode_conformance.dimensions import Dimension
from kode_conformance.registry import Capability, check
from kode_conformance.values import samples
from kode_core.errors import AgentNotFoundError, ConflictError, CorruptRecordError
from kode_core.model import ABSENT, DeleteDocument, PutDocument
from kode_core.protocols import ExtendedStore

_N = Capability.EXTENDED | Capability.DOCUMENTS
_D = Dimension


@check("DOC-5", "FORK-1", "FORK-2", "FORK-4", needs=_N, under=(_D.CHANGES, _D.INSTANCES, _D.ITEMS, _D.TWINS))
async def forks_take_documents_along_when_asked(ctx: Context) -> None:
    """A fork with documents=True has the documents of all collections with their values and versions. Other forks have
    none. Parent and forks are independent.
    """
    other, collections = await ctx.another(), ("c", "C", "c.c", "todos", "-")
    await fill(ctx.store, "p")
    for number, collection in enumerate(collections):
        await put_all(ctx.store, "p", collection, [f"k{i:03}/é" for i in range(1 + 120 * (number % 2))])
    mine = await documents_of(other, "p", *collections)
    versions = {name: (one.value, one.version) for name, one in mine.items()}
    with_them = [
        await ctx.store.fork("p", documents=True),
        await other.fork("p", "named", documents=True),
        await ctx.store.fork("p", "short", length=1, documents=True),
        await other.fork("named", documents=True),
    ]
    without = [
        await ctx.store.fork("p"),
        await other.fork("p", "plain", documents=False),
        await ctx.store.fork("p", "q"),
    ]
    without += [*await ctx.store.batch_fork("p", 2), await other.fork("p", length=1)]
    for child in with_them:
        found = await documents_of(other, child, *collections)
        ctx.equal({name: (one.value, one.version) for name, one in found.items()}, versions, f"documents of {child}")
    for child in without:
        ctx.equal(await documents_of(other, child, *collections), {}, f"documents of {child}, a fork without them")
    one, two, *rest = with_them
    version = mine["c", "k"].version
    await ctx.store.put_document(one, "c", "k", "changed", expect=version)
    await other.delete_document(two, "C", "k000/é", expect=mine["C", "k000/é"].version)
    await other.put_document("plain", "c", "k", "new", expect=ABSENT)
    ctx.equal(await documents_of(ctx.store, "p", *collections), mine, "the parent after its forks changed")
    await ctx.store.put_document("p", "c", "k", "of the parent", expect=version)
    await ctx.store.delete("p")
    for child in rest:
        found = await documents_of(ctx.store, child, *collections)
        ctx.equal({name: (d.value, d.version) for name, d in found.items()}, versions, "a fork after its parent's end")
    changed = await ctx.store.load_document(one, "c", "k")
    ctx.equal(changed and changed.value, "changed", "the changed document of a fork")
    gone = await ctx.store.load_document(two, "C", "k000/é")
    ctx.equal(gone, None, "the document that a fork deleted")
    await ctx.store.put_document("taken", "c", "k", "kept")
    await ctx.raises(ConflictError, ctx.store.fork(one, "taken", documents=True), "a fork to an id with documents")
    await ctx.raises(ConflictError, ctx.store.fork(one, "taken"), "a fork without documents to an id with some")
    kept = await other.load_document("taken", "c", "k")
    ctx.equal(kept and kept.value, "kept", "the document whose agent's id was asked for")
    await ctx.raises(AgentNotFoundError, ctx.store.fork("taken", documents=True), "a fork of an agent without info")


@check("DOC-6", "LIFE-3", "LIFE-4", "LIFE-5", needs=_N, under=(_D.CHANGES, _D.INSTANCES, _D.TWINS, _D.ITEMS))
async def documents_go_with_their_agent(ctx: Context) -> None:
    """delete and delete_many remove all documents of their agents, also without info, and of no others; an id used
    again starts without; an old version holds no more.
    """
    other, agents = await ctx.another(), ("a", "A", "a/c", "aa", "no info")
    for agent_id in agents:
        await put_all(ctx.store, agent_id, "c", [f"k{i:03}" for i in range(130)])
        await put_all(ctx.store, agent_id, "d", ["k"])
        if agent_id != "no info":
            await ctx.store.save_info(agent_id, samples.info(agent_id, template_id=f"template of {agent_id}"))
    before = {agent_id: await documents_of(other, agent_id, "c", "d") for agent_id in agents}
    old = before["a"]["d", "k"].version
    await ctx.store.delete("a")
    await other.delete("no info")
    ctx.equal(await other.delete_many(template_id="template of aa"), 1, "how many were deleted")
    for agent_id in agents:
        wanted = before[agent_id] if agent_id in ("A", "a/c") else {}
        for store in (ctx.store, other):
            ctx.equal(await documents_of(store, agent_id, "c", "d"), wanted, f"the documents of {agent_id!r}")
    ctx.equal(await other.load_document("a", "d", "k"), None, "a document of a deleted agent")
    error = await ctx.raises(ConflictError, ctx.store.put_document("a", "d", "k", 1, expect=old), "an old version")
    ctx.equal(error.version, ABSENT, "the version in the error")
    await other.put_document("a", "c", "k001", "new", expect=ABSENT)
    found = await documents_of(ctx.store, "a", "c", "d")
    ctx.equal(
        {name: one.value for name, one in found.items()}, {("c", "k001"): "new"}, "the documents of the next agent"
    )
    await ctx.store.append_messages("no info", samples.messages(1))
    ctx.equal(await documents_of(ctx.store, "no info", "c", "d"), {}, "the documents of an id used again")


@check("DOC-6", "QRY-7", "OPS-2", needs=_N, under=(_D.ITEMS, _D.CHANGES, _D.INSTANCES))
async def stats_count_documents(ctx: Context) -> None:
    """aggregate_stats counts the documents of all collections of an agent after puts, replacements, deletes, turns,
    forks and deletions, and no record of another kind; check_consistency finds nothing wrong.
    """
    other = await ctx.another()

    async def see(agent_id: str, count: int, what: str) -> None:
        for store in (ctx.store, other):
            stats = await store.aggregate_stats(agent_id)
            ctx.equal(stats.total_documents, count, f"total_documents of {agent_id!r} {what}")

    await see("a", 0, "before any write")
    await ctx.store.save_snapshot("a", samples.snapshot())
    await ctx.store.save_todos("a", samples.todos("x"))
    await ctx.store.save_info("a", samples.info("a"))
    await see("a", 0, "with other kinds alone")
    await put_all(ctx.store, "a", "c", [f"k{i:03}" for i in range(120)])
    await put_all(other, "a", "d", ["k000", "k"])
    await see("a", 122, "after puts")
    ctx.equal((await other.aggregate_stats("a")).total_snapshots, 1, "total_snapshots next to documents")
    await put_all(other, "a", "c", [f"k{i:03}" for i in range(60)])
    await ctx.store.delete_document("a", "d", "never")
    await see("a", 122, "after replacements")
    await ctx.store.save_turn(
        "a", documents=[DeleteDocument("d", "k"), PutDocument("e", "k", 1), PutDocument("e", "l", 1)]
    )
    await ctx.store.delete_document("a", "c", "k000")
    await see("a", 122, "after a turn and a delete")
    child = await ctx.store.fork("a", documents=True)
    await see(child, 122, "that is a fork")
    await see(await other.fork("a"), 0, "that is a fork without documents")
    await put_all(ctx.store, "no info", "c", ["k"])
    await see("no info", 1, "without info")
    ctx.equal((await other.check_consistency()).issues, (), "the issues of sound documents")
    await other.delete("a")
    await see("a", 0, "after its deletion")
    await see(child, 122, "after the deletion of its parent")


@check("DOC-6", "OPS-2", "OPS-4", "DOC-4", needs=_N, under=(_D.DAMAGE, _D.ITEMS))
async def a_damaged_document_is_named(ctx: Context) -> None:
    """A damaged document raises CorruptRecordError in a load and a stream, a page leaves it out and names it, the check
    of consistency finds it, and all others can be read and written.
    """
    await fill(ctx.store, "b")
    await put_all(ctx.store, "a", "c", [f"k{i}" for i in range(1, 5)], {"text": "sound"})
    store, layer = await damaging(ctx)
    layer.verbs, layer.kind = frozenset({"docs", "docs_in"}), "documents"  # it damages the first of each answer
    error = await ctx.raises(CorruptRecordError, store.load_document("a", "c", "k1"), "a load of a damaged document")
    ctx.true("k1" in error.record, f"the error must name the document, got {error.record!r}")
    page = await store.list_documents("a", "c")
    ctx.equal([one.key for one in page], ["k2", "k3", "k4"], "a page with a damaged document")
    ctx.true(len(page.left_out) == 1 and "k1" in page.left_out[0], f"what the page left out: {page.left_out}")
    ctx.equal(list(await store.list_document_keys("a", "c")), ["k1", "k2", "k3", "k4"], "the keys with a damaged one")
    streamed = [one async for one in store.iter_documents("b", "c")]
    ctx.equal([one.key for one in streamed], ["k"], "the documents of another agent")
    await ctx.raises(CorruptRecordError, _listed(store, "a"), "a stream with a damaged document")
    issues = {(issue.code, issue.agent_id) for issue in (await store.check_consistency()).issues}
    ctx.equal(issues, {("corrupt_record", "a")}, "the issues with a damaged document")
    await store.put_document("a", "c", "k1", "whole again")
    await store.delete_document("a", "c", "k4")
    found = await documents_of(ctx.store, "a", "c")
    ctx.equal(sorted(key for _, key in found), ["k1", "k2", "k3"], "the keys after writes next to the damage")
    ctx.equal(found["c", "k1"].value, "whole again", "the document that replaced the damaged one")


async def _listed(store: ExtendedStore, agent_id: str) -> list[Any]:
    return [one async for one in store.iter_documents(agent_id, "c")]


@check("DOC-6", "OPS-16", needs=_N | Capability.PERSISTENT, under=(_D.CHANGES, _D.INSTANCES, _D.COMPANY))
async def a_backup_has_the_documents(ctx: Context) -> None:
    """A backup that is made next to writes has the documents of its instant, with their versions and times, and none
    that was deleted; writes of the copy and of the original stay apart.
    """
    need_restored(ctx)
    await put_all(ctx.store, "a", "c", [f"k{i:03}" for i in range(150)])
    await ctx.store.put_document("no info", "c", "k", {"kept": True})
    await ctx.store.delete_document("a", "c", "k000")
    before = await documents_of(ctx.store, "a", "c")
    copy = await ctx.restored(await ctx.store.backup(ctx.folder / "copy"))
    ctx.equal(await documents_of(copy, "a", "c"), before, "the documents of the copy")
    ctx.equal((await copy.aggregate_stats("a")).total_documents, 149, "the number in the copy")
    kept = await copy.load_document("no info", "c", "k")
    ctx.equal(kept and kept.value, {"kept": True}, "the document of an agent without info")
    version = before["c", "k001"].version
    await copy.put_document("a", "c", "k001", "of the copy", expect=version)
    await ctx.store.put_document("a", "c", "k001", "of the original", expect=version)
    found = await copy.load_document("a", "c", "k001"), await ctx.store.load_document("a", "c", "k001")
    ctx.equal([one and one.value for one in found], ["of the copy", "of the original"], "one document of both")
    ctx.equal((await copy.check_consistency()).issues, (), "the issues of the copy")
