"""LIFE-8: imports that are refused, and imports to one id at once."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any, Final

from kode_conformance.checks.whole import changed, unplaced
from kode_conformance.context import Context
from kode_conformance.dimensions import Dimension
from kode_conformance.harness import keeps_documents, keeps_tags
from kode_conformance.instruments.pace import in_time
from kode_conformance.kills.writes import DOCUMENT_WRITES, WRITES, portrait, records_to_import, seed
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_core.errors import ConflictError, InvalidArgumentError, InvalidValueError, LockLostError, UnsupportedError
from kode_core.model import ABSENT, AgentRecords, Document
from kode_core.protocols import ExtendedStore

_E = Capability.EXTENDED
_D = Dimension


@check("LIFE-8", needs=_E, under=(_D.COMPANY, _D.INSTANCES, _D.CHANGES))
async def one_of_several_imports_succeeds(ctx: Context) -> None:
    """Several imports to one id at once, by several instances, of agents with all kinds or a few: exactly one succeeds,
    the others raise ConflictError and leave nothing.
    """
    stores = (ctx.store, await ctx.another(), await ctx.another())
    kinds: list[Callable[[int], dict[str, Any]]] = [
        lambda n: {
            "info": samples.info("a", breakpoint=f"{n}"),
            "messages": samples.messages(n),
            "message_times": [n] * n,
        },
        lambda n: {"events": samples.events(2, 10 * n)},
        lambda n: {"snapshots": [samples.snapshot(f"s{n}")]},
        lambda n: {"tool_calls": [samples.tool_call(n)], "todos": samples.todos(str(n))},
    ]
    if keeps_documents():
        kinds.append(
            lambda n: {"documents": [Document(collection="c", key=f"{n}", value=n, version=ABSENT, updated_at=n)]}
        )
    for number, kind in enumerate(kinds):
        for turn in range(3):
            agent_id = f"a{number}.{turn}"
            given = [AgentRecords(agent_id="a", updated_at=100 + n, **kind(n)) for n in range(1, 7)]
            calls = [stores[n % 3].import_agent(agent_id, records) for n, records in enumerate(given)]
            ends = await asyncio.gather(*calls, return_exceptions=True)
            done = [records for records, end in zip(given, ends, strict=True) if end is None]
            ctx.equal(len(done), 1, f"how many of six imports of {sorted(kind(1))} succeed")
            ctx.true(all(end is None or isinstance(end, ConflictError) for end in ends), f"the ends of imports: {ends}")
            found = await stores[turn].load_agent(agent_id)
            assert found is not None
            wanted = done[0] if done[0].info is None else done[0].replace(info=found.info)
            if not (wanted.info or wanted.messages or wanted.tool_calls):
                wanted = wanted.replace(updated_at=None)
            ctx.equal(unplaced(found), unplaced(wanted), f"the agent of the import that succeeded, {sorted(kind(1))}")


@check("LIFE-8", needs=_E, under=(_D.CHANGES, _D.INSTANCES, _D.ORDERS))
async def an_import_replaces_nothing(ctx: Context) -> None:
    """An import to an id under which any write has stored something is refused, and changes nothing there."""
    other, records = await ctx.another(), records_to_import()
    await seed(other, "full")
    agents = ["full"]
    for write in (*WRITES, *(DOCUMENT_WRITES if keeps_documents() else ())):
        if not write.name.startswith("delete"):
            await write.act(other, write.name)
            agents.append(write.name)
    for agent_id in agents:
        before, version = await portrait(other, agent_id), await other.load_version(agent_id)
        await ctx.raises(ConflictError, ctx.store.import_agent(agent_id, records), f"an import over {agent_id}")
        ctx.equal(await portrait(other, agent_id), before, f"the agent of {agent_id} after a refused import")
        ctx.equal(await other.load_version(agent_id), version, f"the version of the agent of {agent_id}")


def _wrong() -> dict[str, tuple[type[Exception], Any]]:
    """Imports that are refused: the error and the records."""
    good = records_to_import()
    call, event, snapshot = good.tool_calls[0], good.events[0], good.snapshots[0]
    bad: Any = InvalidArgumentError
    wrong: dict[str, tuple[type[Exception], Any]] = {
        "no records": (bad, None),
        "a dict": (bad, {"agentId": "a"}),
        "nothing": (bad, AgentRecords(agent_id="a")),
        "an id that is none": (bad, good.replace(agent_id="")),
        "an info of another agent": (bad, good.replace(info=samples.info("b"))),
        "an info that is none": (bad, good.replace(info="x")),
        "a field of a newer version": (bad, good.replace(extra={"newer": 1})),
        "a time for each but one": (bad, good.replace(message_times=good.message_times[1:])),
        "a time that is text": (bad, good.replace(message_times=["x", 1, 2])),
        "a fractional time": (bad, good.replace(message_times=[1.0, 1, 2])),
        "a time that is a bool": (bad, good.replace(message_times=[True, 1, 2])),
        "a time of 65 bits": (bad, good.replace(message_times=[2**63, 1, 2])),
        "an updated_at that is text": (bad, good.replace(updated_at="1")),
        "updated_at 0": (bad, good.replace(updated_at=0)),
        "updated_at of 63 bits": (bad, good.replace(updated_at=2**62)),
        "a NaN": (InvalidValueError, good.replace(tool_calls=[call, call.replace(result=[float("nan")])])),
        "a call's time of 65 bits": (InvalidValueError, good.replace(tool_calls=[call.replace(created_at=2**63)])),
        "a created_at of 65 bits": (
            InvalidValueError,
            good.replace(info=good.info and good.info.replace(created_at=2**63)),
        ),
        "one event twice": (bad, good.replace(events=[event, samples.event(1), event])),
        "one snapshot id twice": (bad, good.replace(snapshots=[snapshot, snapshot.replace(created_at=1)])),
        "a message among calls": (bad, good.replace(tool_calls=[*good.messages])),
        "text for messages": (bad, good.replace(messages="abc")),
        "todos that are a list": (bad, good.replace(todos=[good.todos])),
    }
    for name in AgentRecords.__struct_fields__:
        if name not in ("extra", "agent_id", "info", "updated_at", "todos", "event_offsets"):
            wrong[f"{name} that are 5"] = (bad, good.replace(**{name: 5}))
            wrong[f"{name} that hold an object"] = (bad, good.replace(**{name: [object()] * len(good.messages)}))
    document = Document(collection="c", key="k", value=1, version=ABSENT, updated_at=1)
    if keeps_documents():
        wrong |= {
            "one document twice": (bad, good.replace(documents=[document, document])),
            "a collection that is none": (bad, good.replace(documents=[changed(document, collection="a/b")])),
            "a document's time of 65 bits": (bad, good.replace(documents=[changed(document, updated_at=2**63)])),
            "a document that is no JSON": (InvalidValueError, good.replace(documents=[changed(document, value={1})])),
        }
    else:
        wrong["documents where none are kept"] = (UnsupportedError, good.replace(documents=[document]))
    return wrong


@check("LIFE-8", "VAL-2", needs=_E, under=(_D.NUMBERS, _D.EQUALS, _D.INSTANCES))
async def a_wrong_import_writes_nothing(ctx: Context) -> None:
    """Records of any kind that other writes refuse are refused with the same error, and nothing of the agent is stored;
    the same holds for an import under a lease that has ended.
    """
    other = await ctx.another()
    for what, (error, records) in _wrong().items():
        await ctx.raises(error, ctx.store.import_agent("a", records), f"an import of {what}")
        ctx.equal(await other.load_agent("a"), None, f"the agent after an import of {what}")
    lost = await ctx.store.acquire_agent_lock("a")
    await lost.release()
    await ctx.raises(LockLostError, ctx.store.import_agent("a", records_to_import(), fence=lost), "an ended lease")
    ctx.equal(await other.list(include_without_info=True), [], "the ids that are left")
    async with ctx.store.acquire_agent_lock("a") as lease:
        await ctx.store.import_agent("a", records_to_import(), fence=lease)
    ctx.true(await other.load_agent("a") is not None, "an import under a lease must be there")


@check("LIFE-8", "DOC-2", "VER-1", "EVT-2", needs=_E, under=(_D.EQUALS, _D.INSTANCES, _D.CHANGES))
async def an_import_has_versions_of_its_own(ctx: Context) -> None:
    """Documents of an import, tagged or not, have new versions, whichever instance loaded the agent and whichever
    imports it, under another id or again under its own, and a demand for a version that was loaded is refused. Under
    its own id the version of the agent and the offsets are new, too.
    """
    stores = (ctx.store, await ctx.another())
    cases = list(itertools.product(stores, stores, (False, True)))
    if ctx.settings.tier is Tier.QUICK:
        cases = [cases[i] for i in (0, 3, 5, 6)]  # each two of loader, importer and id
    for number, (loader, importer, again) in enumerate(in_time(ctx, cases)):
        agent_id = f"a{number}"
        target = agent_id if again else f"b{number}"
        info, events = samples.info(agent_id), samples.events(2)
        await loader.save_turn(agent_id, info=info, append=samples.messages(2), events=events)
        for i, key in enumerate(_KEYS if keeps_documents() else ()):
            tags = {"k": key} if i > 2 and keeps_tags() else None
            await stores[i % 2].put_document(agent_id, "c", key, {"n": 1}, tags=tags)
        known = set[object]()
        for turn in range(3):
            records = await loader.load_agent(agent_id)
            assert records is not None
            known |= await _named(importer, records, whole=again)
            await importer.delete(target)
            await importer.import_agent(target, records)
            what = f"an import {'again' if again else 'to another id'} of an agent that was loaded, number {turn}"
            found = await stores[turn % 2].load_agent(target)
            assert found is not None
            ctx.equal(len(found.documents), len(records.documents), f"how many documents there are after {what}")
            old = known & await _named(stores[turn % 2], found, whole=again)
            ctx.equal(old, set(), f"versions and offsets after {what} that are not new")
            for one in records.documents[turn:][:1]:
                put = importer.put_document(target, "c", one.key, 2, expect=one.version)
                await ctx.raises(ConflictError, put, f"a put that demands the version from before {what}")


async def _named(store: ExtendedStore, records: AgentRecords, *, whole: bool) -> set[object]:
    """The versions of documents; of the *whole* agent its own version and the offsets, too."""
    versions: set[object] = {(one.key, one.version) for one in records.documents}
    return versions | ({await store.load_version(records.agent_id), *records.event_offsets} if whole else set())


_KEYS: Final = ("k", "l", "m", "tagged")
