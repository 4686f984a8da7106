"""MSG-12, EVT-4 and DUR-1: no record expires, nor what a store knows for repeats and for the next agent of an id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from kode_conformance.calls.methods import drive
from kode_conformance.calls.ways import held
from kode_conformance.context import Context
from kode_conformance.dimensions import WORDS, Dimension
from kode_conformance.harness import keeps_documents
from kode_conformance.histories.model import StoreModel
from kode_conformance.instruments.clock import clock_off
from kode_conformance.instruments.pace import in_time
from kode_conformance.registry import Capability, check
from kode_conformance.values import samples
from kode_conformance.values.fields import Field, Holds, Values, of_agent, rows
from kode_conformance.values.kinds import Gives, Kind, kinds
from kode_core.errors import ConflictError
from kode_core.model import ABSENT, AppendedMessage, Message, Timeline, now_ms
from kode_core.protocols import ExtendedStore

_D: Final = Dimension
_DAY_S: Final = 86_400
_LATER: Final = (
    *(130, 310, 660, 3_700, _DAY_S + 60, 4 * _DAY_S + 60, 8 * _DAY_S, 15 * _DAY_S),
    *(40 * _DAY_S, 100 * _DAY_S, 400 * _DAY_S, 11 * 365 * _DAY_S),
)
"""How many seconds later a call is repeated: windows of deduplication, and times to live of keys, rows and tombstones,
are minutes, an hour, a day, a week, a month, a year and more."""
_KEYS: Final = ("k0", "k1", "k2")


def _under(*keys: str, text: str = "of") -> Mapping[str, Message]:
    return {key: samples.message(text=f"{text} {key}") for key in keys}


async def _only(call: Any) -> int:
    (offset,) = await call
    return int(offset)


async def _append(store: ExtendedStore, agent_id: str, entry: Timeline, way: int) -> int:
    """Append an event by one of the ways to do so."""
    if way % 3 == 0:
        return await store.append_event(agent_id, entry)
    if way % 3 == 1:
        return await _only(store.append_events(agent_id, [entry]))
    return await _only(store.save_turn(agent_id, events=[entry]))


async def _log(store: ExtendedStore, agent_id: str) -> list[int]:
    return [event.offset async for event in store.read_events(agent_id, after_offset=0)]


@check(
    *("MSG-12", "EVT-4", "DUR-1", "TURN-2", "VER-2", "DOC-2", "MSG-4"),
    needs=Capability.EXTENDED,
    under=(_D.CLOCKS, _D.EQUALS, _D.INSTANCES),
)
async def repeats_are_known_however_late(ctx: Context) -> None:
    """Minutes, days and years after a key, an entry of the log or a version was stored, it is known: the repeat of an
    append under the key, or of the entry, by each method and instance, also by one that was opened since, stores
    nothing and gives the place of the first, and a write that demands a version is refused or not, as before. Messages
    that are saved again then keep their times.
    """
    other = await ctx.another()
    for number, later in enumerate(in_time(ctx, _LATER)):
        agent_id = f"a{later}"
        entries = [samples.event(i) for i in range(4)]
        offsets = [await _append(ctx.store, agent_id, entry, i + number) for i, entry in enumerate(entries)]
        emitted = await other.emit(agent_id, "text_chunk")
        entries.append(Timeline(emitted.cursor, emitted.bookmark, emitted.event))
        offsets.append(emitted.offset)
        if keeps_documents():
            await ctx.store.append_messages_once(agent_id, _under(*_KEYS))
            await ctx.store.put_document(agent_id, "c", "k", 1)
        else:
            await ctx.store.append_messages(agent_id, list(_under(*_KEYS).values()))
        times = await _times(ctx.store, agent_id)
        old = await ctx.store.load_version(agent_id)
        await ctx.store.save_info(agent_id, samples.info(agent_id))
        now = await ctx.store.load_version(agent_id)
        with clock_off(later):
            fresh = await ctx.another()
            for turn, store in enumerate((fresh, (ctx.store, other)[number % 2])):
                when = f"{later:,} s later, in {'an instance that was opened then' if store is fresh else 'an old one'}"
                await _repeat(ctx, store, agent_id, entries, offsets, number + turn, when)
                ctx.equal(await store.load_version(agent_id), now, f"the version {when}")
                stale = store.save_info(agent_id, samples.info(agent_id), expect=old)
                await ctx.raises(ConflictError, stale, f"a save that demands an old version, {when}")
            await ctx.close(fresh)
            if keeps_documents():
                await _put_again(ctx, other, agent_id, f"{later:,} s later")
            await other.save_messages(agent_id, list(_under(*_KEYS).values()), expect=now)
            ctx.equal(await _times(ctx.store, agent_id), times, f"the times of messages saved again {later:,} s later")
        await _repeat(ctx, ctx.store, agent_id, entries, offsets, number, f"after repeats {later:,} s later")


async def _times(store: ExtendedStore, agent_id: str) -> list[int]:
    return [message.created_at async for message in store.read_messages(agent_id)]


async def _put_again(ctx: Context, store: ExtendedStore, agent_id: str, when: str) -> None:
    """Puts of a document are refused that demand its absence or its earlier version; that of its version is not."""
    await ctx.raises(ConflictError, store.put_document(agent_id, "c", "k", 2, expect=ABSENT), f"ABSENT {when}")
    found = await store.load_document(agent_id, "c", "k")
    ctx.equal(found and found.value, 1, f"the document {when}")
    assert found is not None
    await store.put_document(agent_id, "c", "k", 2, expect=found.version)
    stale = store.put_document(agent_id, "c", "k", 3, expect=found.version)
    await ctx.raises(ConflictError, stale, f"a put that demands an old version {when}")


async def _repeat(
    ctx: Context,
    store: ExtendedStore,
    agent_id: str,
    entries: Sequence[Timeline],
    offsets: list[int],
    way: int,
    when: str,
) -> None:
    """Append stored entries and known keys again, each by one of the ways."""
    again = [await _append(store, agent_id, entry, i + way) for i, entry in enumerate(entries)]
    ctx.equal(again, offsets, f"the offsets of entries that were appended again {when}")
    ctx.equal(await _log(store, agent_id), offsets, f"the log after entries were appended again {when}")
    if keeps_documents():
        found = list(await store.append_messages_once(agent_id, _under(*_KEYS[way % 2 :], text="again, of")))
        wanted = [AppendedMessage(i, False) for i in range(way % 2, len(_KEYS))]
        ctx.equal(found, wanted, f"the positions of known keys {when}")
    texts = [message.text for message in await store.load_messages(agent_id)]
    ctx.equal(texts, [f"of {key}" for key in _KEYS], f"the messages after known keys were appended again {when}")


@check(
    *("LIFE-3", "EVT-2", "LOCK-5", "VER-1", "DUR-1"),
    needs=Capability.EXTENDED,
    under=(_D.CLOCKS, _D.CHANGES, _D.INSTANCES),
)
async def the_next_agent_goes_on_however_late(ctx: Context) -> None:
    """Minutes, days and years after an agent was deleted, or its lease was released, the next agent of its id has
    offsets and tokens above the earlier ones, and no version of the earlier agent, in every instance.
    """
    other = await ctx.another()
    for number, later in enumerate(in_time(ctx, _LATER)):
        agent_id = f"a{later}"
        lease = await ctx.store.acquire_agent_lock(agent_id)
        await lease.release()
        offsets = list(await ctx.store.append_events(agent_id, samples.events(3)))
        versions = [await _written(ctx.store, agent_id, i) for i in range(3)]
        await (ctx.store, other)[number % 2].delete(agent_id)
        with clock_off(later):
            fresh = await ctx.another()
            store = (fresh, other, ctx.store)[number % 3]
            when = f"{later:,} s after an agent was deleted"
            ctx.true(await store.load_version(agent_id) not in versions, f"the version of no agent, {when}")
            offset = await _append(store, agent_id, samples.event(0), number)
            ctx.true(offset > offsets[-1], f"the first offset {when} must be above {offsets}, and is {offset}")
            new = [await _written(store, agent_id, i) for i in range(3)]
            ctx.equal({*new} & {*versions, ABSENT}, set(), f"versions that came back {when}")
            late = store.save_info(agent_id, samples.info(agent_id), expect=versions[-1])
            await ctx.raises(ConflictError, late, f"a save that demands a version of before, {when}")
            next_lease = await store.acquire_agent_lock(agent_id)
            told = f"the token {when} must be above {lease.token}, and is {next_lease.token}"
            ctx.true(next_lease.token > lease.token, told)
            await next_lease.release()
            await ctx.close(fresh)


async def _written(store: ExtendedStore, agent_id: str, number: int) -> str:
    await store.save_info(agent_id, samples.info(agent_id, metadata={"n": number}))
    return await store.load_version(agent_id)


# --- records ----------------------------------------------------------------------------------------------------------


def _at(time: int) -> Values:
    """Every word that programs know for each field, at that time."""

    def values(field: Field) -> Sequence[Any]:
        if field.holds is Holds.TIME:
            return (time,)
        if field.holds is Holds.CHOICE:
            return field.options
        return WORDS.get(str(field.place[1]), ()) if field.holds is Holds.TEXT else ()

    return values


async def _save_words(store: ExtendedStore, model: StoreModel, kind: Kind, name: str, time: int) -> list[str]:
    """Save records of the kind with every word; the agents that have them."""
    writer = next((w for w in kind.writers if w.many), kind.writers[0])
    records = rows(kind.record, _at(time))
    calls = [(name, records)] if writer.many else [(name, record) for record in records]
    if kind.is_single:
        calls = [(f"{name} {i}", of_agent(record, f"{name} {i}")) for i, record in enumerate(records)]
    for agent_id, given in calls:
        getattr(model, writer.method)(agent_id, **{writer.parameter: given})
        await getattr(store, writer.method)(agent_id, **{writer.parameter: given})
    return list(dict.fromkeys(agent_id for agent_id, _ in calls))


@check("DUR-1", "VAL-1", "VAL-6", "MED-1", "QRY-6", under=(_D.CLOCKS, _D.LOOKALIKES, _D.INSTANCES))
async def records_stay_whatever_they_say(ctx: Context) -> None:
    """Whatever state, status, role, type or provider a record names, all that programs know and some that they do not,
    it is loaded as it was, of every kind: at once, and days and years later, also if its times are old by then already.
    """
    model, now, every = StoreModel(), now_ms(), list[tuple[Kind, str]]()
    for kind in kinds().values():
        for age, time in (("new", now), ("old", now - 11 * 365 * _DAY_S * 1000)):
            name = f"{age} {kind.record.__name__}"
            every += [(kind, agent_id) for agent_id in await _save_words(ctx.store, model, kind, name, time)]
    await _see_words(ctx, await ctx.another(), model, every, "at once")
    for later in in_time(ctx, _LATER[::-1]):
        with clock_off(later):
            fresh = await ctx.another()
            await _see_words(ctx, fresh, model, every, f"{later:,} s later")
            await ctx.close(fresh)


async def _see_words(
    ctx: Context, store: ExtendedStore, model: StoreModel, every: Sequence[tuple[Kind, str]], when: str
) -> None:
    for kind, agent_id in every:
        wanted = held(model, kind.whole.method, agent_id)
        found = await drive(getattr(store, kind.whole.method), {"agent_id": agent_id})
        ctx.equal(found, wanted, f"{kind.whole.method} of {agent_id!r} {when}")
        for reader in kind.readers if "QUERYABLE" not in ctx.harness.lacks else ():
            if reader.gives is Gives.FOUND:
                count = len(await drive(getattr(store, reader.method), {"agent_id": agent_id}))
                ctx.equal(count, len(wanted), f"how many {reader.method} gives of {agent_id!r} {when}")
