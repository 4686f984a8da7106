"""ID, LIFE-2, QRY-2: names that some systems take for the same, and names at the edges of their allowed length.

Records are written under all names next to each other. Each name must have its own, and keep it when the record of
another name is replaced or deleted.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Final

from kode_conformance.calls.methods import calls_of, drive
from kode_conformance.calls.ways import at_once, brief, held
from kode_conformance.checks.own_documents import is_key
from kode_conformance.context import Context, Violation
from kode_conformance.dimensions import Dimension, dense, twins
from kode_conformance.harness import keeps_documents
from kode_conformance.histories.model import StoreModel
from kode_conformance.instruments.pace import in_time
from kode_conformance.registry import Capability, check
from kode_conformance.values import samples
from kode_conformance.values.fields import Field, Holds, fields_of, full, of_agent, put
from kode_conformance.values.kinds import Gives, Kind, WriteMethod, kinds
from kode_core.errors import InvalidArgumentError, LockUnavailableError

_D = Dimension
_AGENT_BYTES: Final = 256
_KEY_BYTES: Final = 4096
_AT_ONCE: Final = 16


def _ends(limit: int) -> list[str]:
    """Names of each length up to *limit* bytes, two of each that differ at their ends only, the second of them in a
    character of several bytes; compressed they are hardly shorter.
    """
    known = [length for length in (64, 128, 192, 255, 256, 257, 768, 1024, 2705, 3073, 4095, 4096) if length <= limit]
    return [f"{dense(n - len(end.encode()))}{end}" for n in known for end in ("xx", "xy", "x😀", "x😁")]


def _key_of(kind: Kind) -> Field | None:
    return next((field for field in fields_of(kind.record) if field.holds is Holds.KEY), None)


# --- keys of records --------------------------------------------------------------------------------------------------


@check("ID-4", "HIS-1", "HIS-2", "SNAP-1", "TC-3", "MED-1", under=(_D.TWINS, _D.LENGTHS, _D.INSTANCES))
async def twin_keys_are_different_keys(ctx: Context) -> None:
    """Records whose keys differ in what comparisons overlook, or only after thousands of equal characters, are
    different records, in the order of their code points where their times are equal; replacing one leaves the others.
    """
    names = [*twins(), *_ends(_KEY_BYTES)]
    other = await ctx.another()
    cases = [(kind, writer) for kind in kinds().values() if _key_of(kind) is not None for writer in kind.writers]
    ctx.rng.shuffle(cases)
    for kind, writer in in_time(ctx, cases):
        model, agent_id = StoreModel(), f"{writer.method}-{writer.parameter}"
        for again in range(2):
            records = [_named(kind, name, i if again else 0) for i, name in enumerate(names) if i % 3 == 0 or not again]
            save = getattr(ctx.store, writer.method)
            calls: Sequence[Any] = [records] if writer.many else records
            # Each twin is upserted by its own call: a store looks for a stored call by its id.
            if "upsert" in writer.method + writer.parameter:
                calls = [records[::2], records[1::2]]
            for given in calls:
                getattr(model, writer.method)(agent_id, **{writer.parameter: given})
            most = 1 if writer.many else _AT_ONCE
            await at_once((save(agent_id, **{writer.parameter: given}) for given in calls), most)
        for reader in kind.readers:
            if reader.gives is Gives.LIST:
                what = f"{reader.method} of what {writer.method} wrote, each third one twice"
                ctx.equal(await getattr(other, reader.method)(agent_id), held(model, reader.method, agent_id), what)
            elif reader.gives is Gives.KEYED:
                for i, name in enumerate(names):
                    found = await getattr(other, reader.method)(agent_id, name)
                    ctx.equal(found, _named(kind, name, 0 if i % 3 else i), f"{reader.method}({brief(name)})")


def _named(kind: Kind, name: str, number: int) -> Any:
    """A record of that name; its time does not depend on the number."""
    key = _key_of(kind)
    assert key is not None
    record = put(full(kind.record), key, name)
    texts = [field for field in fields_of(kind.record) if field.holds is Holds.SPREAD and len(field.path) == 1]
    return put(record, texts[0], {"number": number})


@check("SNAP-2", "DOC-1", "ID-4", needs=Capability.EXTENDED, under=(_D.TWINS, _D.LENGTHS, _D.CHANGES, _D.INSTANCES))
async def a_delete_leaves_twin_keys(ctx: Context) -> None:
    """Deleting a snapshot, or a document of the caller's own, leaves all others of the agent whose keys begin with its
    key, or differ from it in what comparisons overlook.
    """
    stores, names = (ctx.store, await ctx.another()), [*twins(), *_ends(_KEY_BYTES)]
    if ctx.harness.patience > 1:
        names = [names[0], *names[1::4]]
    await at_once(ctx.store.save_snapshot("a", samples.snapshot(name, count=1)) for name in names)
    keys = [name for name in names if is_key(name)] if keeps_documents() else []
    await at_once(ctx.store.put_document("a", "c", key, {"of": key}) for key in keys)
    left = set(names)
    for number, gone in enumerate((names[:1], names[1::3])):
        await at_once(stores[number].delete_snapshot("a", name) for name in gone)
        await at_once(stores[number].delete_document("a", "c", name) for name in gone if name in keys)
        left -= {*gone}
        for store in stores:
            what = f"after {brief(gone[0])}{' and others' * number} were deleted"
            found = {one.id for one in await store.list_snapshots("a")}
            ctx.equal((left - found, found - left), (set(), set()), f"snapshots that are lost, or still there, {what}")
            values = {one.key: one.value async for one in store.iter_documents("a", "c")} if keys else {}
            ctx.equal(values, {key: {"of": key} for key in sorted(keys) if key in left}, f"the documents {what}")
    for name in names:
        wanted = samples.snapshot(name, count=1) if name in left else None
        ctx.equal(await stores[0].load_snapshot("a", name), wanted, f"load_snapshot({brief(name)}) after the deletes")


@check("HIS-2", "ID-4", under=(_D.TWINS,))
async def a_path_and_a_time_do_not_mix(ctx: Context) -> None:
    """Recovered files whose paths and times would make one text when they are put together are different files."""
    pairs = [("p", 12), ("p1", 2), ("2p", 1), ("p", 1), ("1p", 2), ("p-", 1), ("p", -1), ("p-1", 0), ("p", 0)]
    for separator in (":", "_", "/", "-", ".", "|", "#", "@", "\n", "\t", " ", ",", ";", "~", "=", "\x1f"):
        pairs += [
            (f"p{separator}1", 1),
            (f"p{separator}1{separator}1", 1),
            (f"p{separator}", 11),
            (f"1{separator}p", 1),
        ]
    files = [samples.recovered(path, time, content=f"{i}") for i, (path, time) in enumerate(pairs)]
    for file in files:
        await ctx.store.save_recovered_file("a", file)
    wanted = sorted(files, key=lambda file: (file.timestamp, file.path))
    ctx.equal(await ctx.store.load_recovered_files("a"), wanted, "the recovered files")


@check("ID-1", "ID-4", absence_ok=True, under=(_D.LENGTHS,))
async def names_over_the_limit_are_refused(ctx: Context) -> None:
    """A name of one byte more than it may have, also where the last character has several, is refused by every method
    that takes one, and nothing is written.
    """
    for bad in ("x" * (_AGENT_BYTES + 1), "é" * (_AGENT_BYTES // 2) + "x", "x" * (_AGENT_BYTES - 1) + "é"):
        for name, call in calls_of(ctx.store, bad, str(ctx.folder / "copy")).items():
            if "agent_id" in call.arguments:
                given = {**call.arguments, **({"info": samples.info("a")} if "info" in call.arguments else {})}
                what = f"{name} of an agent id of {len(bad.encode())} bytes"
                await ctx.raises(InvalidArgumentError, _driven(call.method, given), what)
    for bad in ("x" * (_KEY_BYTES + 1), "x" * (_KEY_BYTES - 1) + "é", "😀" * (_KEY_BYTES // 4) + "x"):
        what = f"a key of {len(bad.encode())} bytes"
        for kind, key, writer in _keyed_writers():
            record = put(full(kind.record), key, bad)
            call = getattr(ctx.store, writer.method)("a", **writer.given(record))
            await ctx.raises(InvalidArgumentError, call, f"{writer.method}({writer.parameter}=) of {what}")
            for reader in kind.readers:
                if reader.gives is Gives.KEYED:
                    await ctx.raises(InvalidArgumentError, getattr(ctx.store, reader.method)("a", bad), reader.method)
    for kind in kinds().values():
        for reader in kind.readers:
            if reader.gives is Gives.LIST:
                ctx.equal(list(await getattr(ctx.store, reader.method)("a")), [], f"{reader.method} afterwards")


async def _driven(method: Callable[..., Any], given: dict[str, Any]) -> Any:
    return await drive(method, given)


def _keyed_writers() -> Iterator[tuple[Kind, Field, WriteMethod]]:
    for kind in kinds().values():
        key = _key_of(kind)
        if key is not None:
            yield from ((kind, key, writer) for writer in kind.writers)


# --- agents -----------------------------------------------------------------------------------------------------------


def _of_turn(kind: Kind) -> WriteMethod | None:
    return next((writer for writer in kind.writers if writer.method == "save_turn"), None)


def _given(writer: WriteMethod, record: Any) -> Any:
    return [record] if writer.many else record


@check("ID-2", "ID-1", "LIFE-2", "LIFE-3", under=(_D.TWINS, _D.LENGTHS, _D.INSTANCES))
async def twin_agents_share_nothing(ctx: Context) -> None:
    """Agents whose ids differ in what comparisons and file systems overlook have records of every kind of their own;
    they are listed by code point and by literal prefixes; deleting each second one leaves the others whole.
    """
    ids = list(dict.fromkeys([*twins(), *_ends(_AGENT_BYTES)]))
    ctx.rng.shuffle(ids)
    ids.insert(0, ids.pop(ids.index(twins()[0])))  # most others begin with it, and it is among the deleted ones
    model, other = StoreModel(), await ctx.another()
    written: list[str] = []
    of_turns = [kind for kind in kinds().values() if _of_turn(kind)]
    others = [[kind] for kind in kinds().values() if not _of_turn(kind)]
    for together in in_time(ctx, [of_turns, *others]):
        writers = {kind: _of_turn(kind) or kind.writers[0] for kind in together}
        method = writers[together[0]].method
        every = [
            {w.parameter: _given(w, of_agent(full(kind.record, i), agent_id)) for kind, w in writers.items()}
            for i, agent_id in enumerate(ids)
        ]
        for agent_id, given in zip(ids, every, strict=True):
            getattr(model, method)(agent_id, **given)
        save = getattr(ctx.store, method)
        await at_once(save(agent_id, **given) for agent_id, given in zip(ids, every, strict=True))
        methods = [kind.whole.method for kind in together]
        written += methods
        await at_once(_compared(ctx, other, model, *what, "") for what in itertools.product(ids[::2], methods))
    await _listed(ctx, model)
    for agent_id in ids[::2]:
        model.delete(agent_id)
    await at_once(ctx.store.delete(agent_id) for agent_id in ids[::2])
    left = itertools.product(ids[1::2], written)
    await at_once(_compared(ctx, other, model, *what, ", after others were deleted") for what in left)
    ctx.equal(list(await ctx.store.list()), model.listed(), "list(), after each second agent was deleted")


async def _compared(ctx: Context, store: Any, model: StoreModel, agent_id: str, method: str, when: str) -> None:
    found = await drive(getattr(store, method), {"agent_id": agent_id})
    ctx.equal(found, held(model, method, agent_id), f"{method}({brief(agent_id)}){when}")


async def _listed(ctx: Context, model: StoreModel) -> None:
    prefixes = ["", *(agent_id[: (2, 3, len(agent_id))[i % 3]] for i, agent_id in enumerate(twins()[::2]))]
    for prefix in dict.fromkeys(prefixes):
        wanted = [agent_id for agent_id in model.listed() if agent_id.startswith(prefix)]
        ctx.equal(list(await ctx.store.list(prefix)), wanted, f"list({prefix!a})")


@check("ID-2", "LOCK-1", needs=Capability.EXTENDED, under=(_D.TWINS, _D.LENGTHS))
async def twin_agents_have_locks_of_their_own(ctx: Context) -> None:
    """The locks of agents whose ids differ in what comparisons overlook can all be held at a time, each once."""
    leases: dict[str, Any] = {}
    for agent_id in (*twins(), *_ends(_AGENT_BYTES)):
        try:
            leases[agent_id] = await ctx.store.acquire_agent_lock(agent_id)
        except LockUnavailableError as exc:
            raise Violation(f"the lock of {brief(agent_id)}, which nobody holds: {exc}") from exc
    for agent_id, lease in leases.items():
        lock: Awaitable[Any] = ctx.store.acquire_agent_lock(agent_id)
        await ctx.raises(LockUnavailableError, lock, f"the lock of {brief(agent_id)}, which is held")
        await lease.release()


@check("QRY-5", "QRY-3", "QRY-6", "ID-2", "ID-3", needs=Capability.QUERYABLE, under=(_D.TWINS, _D.EQUALS, _D.ITEMS))
async def twin_agents_are_all_on_some_page(ctx: Context) -> None:
    """Sessions, messages and tool calls of agents whose ids comparisons take for the same, and whose times are equal,
    are each on exactly one page, in one order, which is the same backwards: of the code points of the ids, where a
    store gives no times of its own.
    """
    ids = ctx.rng.sample([*twins(), *_ends(_AGENT_BYTES)], len([*twins(), *_ends(_AGENT_BYTES)]))
    calls = [samples.tool_call(0, created_at=samples.T0)]
    await at_once(
        ctx.store.save_turn(one, info=samples.info(one), messages=samples.messages(1), tool_calls=calls) for one in ids
    )
    sorts: Sequence[dict[str, Any]] = ({}, {"sort_by": "message_count"})
    for kind, how in (*(("sessions", sort) for sort in sorts), ("messages", {}), ("tool_calls", {})):
        every = [one.agent_id async for one in getattr(ctx.store, f"iter_{kind}")(**how, order="asc")]
        in_order = sorted(every) if kind == "messages" else every
        ctx.equal(in_order, sorted(ids), f"the agents of iter_{kind}({how or ''})")
        for order, wanted in in_time(ctx, [("asc", every), ("desc", every[::-1])]):
            found: list[str] = []
            cursor = None
            for _ in range(0, len(ids), 7):
                page = await getattr(ctx.store, f"query_{kind}")(**how, order=order, limit=7, cursor=cursor)
                found += [one.agent_id for one in page]
                cursor = page.next_cursor
            lost, twice = set(ids) - set(found), {one for one in found if found.count(one) > 1}
            what = f"query_{kind} in pages of 7, {order}"
            ctx.true(not lost, f"{what}: on no page is {', '.join(map(brief, sorted(lost)))}")
            ctx.true(not twice, f"{what}: on several pages is {', '.join(map(brief, sorted(twice)))}")
            ctx.equal(found, wanted, f"{what}, next to iter_{kind}, ascending, for the ids")
