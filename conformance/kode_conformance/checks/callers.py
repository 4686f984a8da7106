"""VAL-1: records given to a store, and records that it returned, belong to the caller, who may change them."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from kode_conformance.calls.methods import PROTOCOL_METHODS, calls_of, drive
from kode_conformance.calls.ways import first, held, spoilt_come_back
from kode_conformance.checks.lifecycle import fill
from kode_conformance.context import Context
from kode_conformance.dimensions import Dimension
from kode_conformance.harness import keeps_documents, keeps_tags
from kode_conformance.histories.model import StoreModel
from kode_conformance.instruments.pace import in_time
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_conformance.values.fields import Holds, fields_of, full, of_agent, put
from kode_conformance.values.kinds import Gives, Kind, ReadMethod, WriteMethod, kinds
from kode_conformance.values.spoiling import spoil, whole_copy
from kode_core.model import AgentInfo, Message, Record, Snapshot, Timeline, ToolUseBlock
from kode_core.protocols import ExtendedStore

_D = Dimension
_E: Final = Capability.EXTENDED


def _rows(*numbers: int) -> Mapping[type[Record], Sequence[Any]]:
    return {record: [full(record, number) for number in numbers] for record in kinds()}


@check("VAL-1", "MSG-1", "TC-1", "EVT-5", under=(_D.CHANGES, _D.EQUALS, _D.INSTANCES))
async def what_was_saved_or_loaded_is_the_callers(ctx: Context) -> None:
    """A caller may change the lists and dicts, at any depth, of the records that it saved or got by any method: the
    stored records, the answers to others and the next answer of the same method stay as they were, also after the next
    save, of the same records and of others.
    """
    await spoilt_come_back(ctx, [_rows(0, 1), _rows(0, 1), _rows(0, 2)])


@check("VAL-1", "MSG-1", "TC-1", "TC-3", "INFO-1", under=(_D.CHANGES, _D.EQUALS, _D.INSTANCES))
async def records_changed_in_place_are_saved(ctx: Context) -> None:
    """A record whose lists and dicts the caller changed after it was saved or loaded is saved as it is now, when the
    very same object is given again, by every method.
    """
    model, other = StoreModel(), await ctx.another()
    for kind in kinds().values():
        for number, writer in enumerate(kind.writers):
            agent_id = f"{kind.record.__name__}-{number}"
            record = full(kind.record, number)
            record = of_agent(record, agent_id)
            await _give(ctx, model, writer, agent_id, record)
            if not spoil(record):
                continue
            await _give(ctx, model, writer, agent_id, record)
            case = f"saved again by {writer.method}({writer.parameter}=) after it was changed in place"
            await _see(ctx, model, kind, agent_id, other, f"a record that was {case}")
            loaded = await _loaded(ctx.store, kind, agent_id)
            if kind.is_single and spoil(loaded):
                await _give(ctx, model, writer, agent_id, loaded)
                await _see(ctx, model, kind, agent_id, other, f"a record that was loaded, and {case}")


async def _give(ctx: Context, model: StoreModel, writer: WriteMethod, agent_id: str, record: Any) -> None:
    copied = whole_copy(record)
    getattr(model, writer.method)(agent_id, **writer.given(copied))
    await getattr(ctx.store, writer.method)(agent_id, **writer.given(record))


async def _loaded(store: ExtendedStore, kind: Kind, agent_id: str) -> Any:
    return await drive(getattr(store, kind.whole.method), {"agent_id": agent_id})


async def _see(ctx: Context, model: StoreModel, kind: Kind, agent_id: str, other: ExtendedStore, what: str) -> None:
    found, method = await _loaded(other, kind, agent_id), kind.whole.method
    ctx.equal(found, held(model, method, agent_id), f"{method} in another instance, of {what}")


# --- answers that are no records --------------------------------------------------------------------------------------

_OTHER_WAYS: Final = ("acquire_agent_lock", "backup", "batch_fork", "fork", "delete", "delete_many", "follow_events")
"""Methods that change something, do not end, or return no data."""
_OF_THE_CALL: Final = frozenset(
    ("checked_at", "collected_at", "operations", "performance", "db_size_bytes", "connections")
)
"""Fields that depend on the call or on the moment."""


def _reads() -> list[str]:
    """The methods that read something."""
    return [
        name
        for name in PROTOCOL_METHODS
        if name not in _OTHER_WAYS and "fence" not in inspect.signature(getattr(ExtendedStore, name)).parameters
    ]


def _lasting(value: Any) -> Any:
    """An answer as lists, dicts and values, without the fields that belong to this call alone."""
    if isinstance(value, msgspec.Struct):
        names = (name for name in value.__struct_fields__ if name not in _OF_THE_CALL)
        return {name: _lasting(getattr(value, name)) for name in names}
    return [_lasting(item) for item in value] if isinstance(value, (list, tuple)) else value


@check("VAL-1", "QRY-5", "OPS-2", "OPS-3", needs=Capability.EXTENDED, under=(_D.CHANGES, _D.INSTANCES))
async def every_answer_is_the_callers(ctx: Context) -> None:
    """Whatever a caller does to the lists, pages and dicts that any reading method of the protocols gave, the same call
    gives the same again, in every instance.
    """
    for agent_id in ("a", "b"):
        await fill(ctx.store, agent_id)
        await ctx.store.save_snapshot(agent_id, samples.snapshot("s"))
        await ctx.store.append_messages(agent_id, [Message("assistant", [ToolUseBlock("lonely", "t", {"q": [1]})])])
    ctx.equal(len(await ctx.store.load_messages("a")), 4, "how many messages are loaded")
    forks = await ctx.store.batch_fork("a", 2)
    offsets = await ctx.store.append_events("a", samples.events(2, 50))
    kept = whole_copy([forks, list(offsets)])
    spoil(forks, offsets)
    await _see_every_answer(ctx)
    ctx.equal(list(await ctx.store.append_events("a", samples.events(2, 50))), kept[1], "the offsets of a repeat")
    ctx.equal(
        sorted(await ctx.store.list("agt-")), kept[0], "the forks, after the caller changed the list of their ids"
    )


async def _see_every_answer(ctx: Context, what: str = "") -> None:
    """Change the answer of each reading method about the agent "a", and call the method again, in both instances."""
    stores = {"": ctx.store, " in another instance": await ctx.another()}
    calls = calls_of(ctx.store)
    for name in in_time(ctx, [name for name in _reads() if name in calls]):
        arguments = calls[name].arguments
        wanted: Any = None
        for where, store in (*stores.items(), *stores.items()):
            found = await drive(getattr(store, name), dict(arguments))
            lasting = _lasting(whole_copy(found))
            wanted = lasting if wanted is None else wanted
            ctx.equal(lasting, wanted, f"{name}{where}{what}, after the caller changed what it gave before")
            spoil(found)
        one, two = await asyncio.gather(*(drive(getattr(ctx.store, name), dict(arguments)) for _ in range(2)))
        lasting = _lasting(whole_copy(two))
        spoil(one)
        told = f"what {name} gave{what}, after the caller changed what it gave to a call at once"
        ctx.equal(_lasting(two), lasting, told)


_SIZES: Final = {Tier.QUICK: (70_001,), Tier.STANDARD: (70_001, 400_001), Tier.THOROUGH: (70_001, 2**20 + 1, 2**23)}
"""Sizes of values that caches, compressed parts and blobs begin at."""
_HEADROOM: Final = 4096


@check(
    *("VAL-1", "VAL-4", "DOC-1", "SNAP-1", "QRY-5"),
    needs=Capability.EXTENDED,
    under=(_D.LENGTHS, _D.CHANGES, _D.INSTANCES),
)
async def every_large_answer_is_the_callers(ctx: Context) -> None:
    """Each reading method gives a large record of each kind, and a large document, as it was stored, in every instance
    and at every call, though the caller changed the record that it saved and the answers of earlier calls.
    """
    most = (ctx.harness.limits.max_payload_bytes or 2**40) - _HEADROOM
    for size in in_time(ctx, sorted({min(size, most) for size in _SIZES[ctx.settings.tier]})):
        text = "x" * size
        for kind in kinds().values():
            writer = min((w for w in kind.writers if w.method != "save_turn"), key=lambda w: not w.many)
            record = of_agent(_large(kind, text), "a")
            wanted = whole_copy(record)
            await getattr(ctx.store, writer.method)("a", **writer.given(record))
            spoil(record)
            for _ in range(2 if kind.record is not Timeline else 0):
                found = await _loaded(ctx.store, kind, "a")
                got = [*found] if isinstance(found, list) else [found]
                got = [one.replace(message_count=0) if kind.record is AgentInfo else one for one in got]
                ctx.equal(got[-1:], [wanted], f"{kind.whole.method} of {size:,} characters")
                spoil(found)
        if keeps_documents():
            tags: dict[str, Any] = {"tags": {"run": "r1"}} if keeps_tags() else {}
            value = {"deep": [{"text": text, "of": [1]}]}
            await ctx.store.put_document("a", "c", "k", value, **tags)
            spoil(value)
            for _ in range(2):
                document = await ctx.store.load_document("a", "c", "k")
                kept = {"deep": [{"text": text, "of": [1]}]}
                ctx.equal(document and document.value, kept, f"a document of {size:,} characters")
                spoil(document)
        await _see_every_answer(ctx, f" of records of {size:,} characters")


def _large(kind: Kind, text: str) -> Any:
    """A record with the text in a list or dict of its own, if it has one, and the names that the calls ask for."""
    fields = fields_of(kind.record)
    room = next((f for holds in (Holds.JSON, Holds.DICT, Holds.TEXT) for f in fields if f.holds is holds), fields[0])
    value: Any = text if room.holds is Holds.TEXT else {"deep": [{"text": text, "of": [1]}]}
    record = put(full(kind.record), room, value)
    return record.replace(id="s") if kind.record is Snapshot else record


def _twice(kind: Kind) -> list[Any]:
    """Two records of one kind that are equal in all but what makes them two."""
    record = full(kind.record)
    if kind.record is Timeline:
        return [record, record.replace(bookmark=record.bookmark.replace(seq=record.bookmark.seq + 1))]
    keys = [field for field in fields_of(kind.record) if field.holds is Holds.KEY and len(field.path) == 1]
    return [record, put(record, keys[0], "another") if keys else record]


@check("VAL-1", "MSG-1", "TC-1", "HIS-1", "HIS-2", "MED-1", "SNAP-1", "EVT-5", needs=_E, under=(_D.EQUALS, _D.CHANGES))
async def equal_records_of_an_answer_are_not_one(ctx: Context) -> None:
    """A caller who changes the lists and dicts of one record changes no other of the same answer, though the records
    are equal, whichever method gave them.
    """
    for kind in kinds().values():
        writer = min((w for w in kind.writers if w.method != "save_turn"), key=lambda w: not w.many)
        agents = ["x", "y"] if kind.is_single else ["x"]
        for agent in agents:
            given = [
                of_agent(record, agent) for record in (_twice(kind) if not kind.is_single else [full(kind.record)])
            ]
            for call in [given] if writer.many else given:
                await getattr(ctx.store, writer.method)(agent, **{writer.parameter: call})
        for reader in kind.readers:
            found = await _several(ctx, reader, kind)
            if len(found) < 2:
                continue
            kept = whole_copy(found[1])
            spoil(found[0])
            ctx.equal(found[1], kept, f"one of two equal records of {reader.method}, after the other was changed")
    await ctx.store.save_info("y", samples.info("y", metadata={"tags": ["x"], "of": {"a": [1]}}))
    await ctx.store.save_info("x", samples.info("x", metadata={"tags": ["x"], "of": {"a": [1]}}))
    for what, sessions in (
        ("query_sessions", list(await ctx.store.query_sessions())),
        ("iter_sessions", [session async for session in ctx.store.iter_sessions()]),
    ):
        kept = whole_copy(sessions[1])
        spoil(sessions[0])
        ctx.equal(sessions[1], kept, f"one of two equal sessions of {what}, after the other was changed")


async def _several(ctx: Context, reader: ReadMethod, kind: Kind) -> list[Any]:
    """The records of one answer; none of methods that give one record."""
    method = getattr(ctx.store, reader.method)
    if reader.gives is Gives.LIST:
        return list(await method("x"))
    if reader.gives is Gives.STREAM:
        return await first(ctx, method("x"), 2, reader.method)
    if reader.gives is Gives.PAGE and not kind.is_single:
        return list(await method(agent_id="x"))
    if reader.gives is Gives.FOUND and not kind.is_single:
        return [record async for record in method(agent_id="x")]
    return []
