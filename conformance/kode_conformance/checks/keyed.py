"""MSG-12: messages that are appended once, under keys of the caller's."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from kode_conformance.checks.costs import LONG, SHORT, Change, Talk, see_costs
from kode_conformance.checks.damage import damaging
from kode_conformance.checks.own_documents import is_key
from kode_conformance.context import Context
from kode_conformance.dimensions import LOOKALIKES, Dimension, counts, lengths, text_of, twins
from kode_conformance.instruments.pace import in_time, sizes_in_time
from kode_conformance.instruments.yielding import turns_pass
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_core.codec import from_dict, to_dict
from kode_core.errors import CorruptRecordError, InvalidArgumentError
from kode_core.model import AgentRecords, AppendedMessage, Message
from kode_core.protocols import ExtendedStore

_N = Capability.EXTENDED | Capability.DOCUMENTS
_D = Dimension
_RIVALS: Final = 6
_EACH: Final = {Tier.QUICK: 6, Tier.STANDARD: 25, Tier.THOROUGH: 80}


def _under(keys: Iterable[str], text: str = "of") -> dict[str, Message]:
    """Messages that name their keys."""
    return {key: samples.message(text=f"{text} {key}") for key in keys}


async def _append(store: ExtendedStore, messages: Mapping[str, Message], agent_id: str = "a") -> dict[str, Any]:
    """Append once; the answer by key."""
    places = await store.append_messages_once(agent_id, messages)
    return dict(zip(messages, places, strict=True))


def _at(keys: Sequence[str], start: int, *, is_new: bool) -> dict[str, AppendedMessage]:
    return {key: AppendedMessage(i, is_new) for i, key in enumerate(keys, start)}


@check("MSG-12", "INFO-2", "INFO-3", "VER-1", needs=_N, under=(_D.ITEMS, _D.ORDERS, _D.EQUALS, _D.INSTANCES))
async def known_keys_append_nothing(ctx: Context) -> None:
    """A call appends the messages with new keys, in its order, and returns the positions of all. Known keys store
    nothing, whatever their messages are, wherever they stand among new ones, one of them or hundreds, and however many
    keys came since; a call of known keys alone, or of none, does not change the version. Equal messages under several
    keys are several messages.
    """
    stores = [ctx.store, await ctx.another()]
    ctx.equal(await ctx.store.append_messages_once("a", {}), [], "the positions of no messages")
    ctx.equal(await ctx.store.list("", include_without_info=True), [], "the agents after a call without messages")
    await ctx.store.append_messages("a", samples.messages(2))
    wanted: list[Message] = [*samples.messages(2)]
    seen = dict[str, AppendedMessage]()
    for number, count in enumerate(sizes_in_time(ctx, counts(ctx.settings.tier, most=1025)[1:])):
        one, two = stores[number % 2], stores[1 - number % 2]
        keys = [f"{count} {(7919 * i) % count:05} {i}" for i in range(count)]  # in no order of theirs
        first, every = keys[::2] if number % 2 else keys[:1], [*keys[::-1], f"last of {count}"]
        places = _at(first, len(wanted), is_new=True)
        ctx.equal(await _append(one, _under(first)), places, f"the positions of {len(first)} messages")
        wanted += _under(first).values()
        version = await two.load_version("a")
        known = _at(first, len(wanted) - len(first), is_new=False)
        ctx.equal(await _append(two, _under(first, "another")), known, f"the positions of {len(first)} known keys")
        ctx.equal(await two.append_messages_once("a", {}), [], "the positions of no messages")
        ctx.equal(await one.load_version("a"), version, f"the version after a call of {len(first)} known keys")
        new = [key for key in every if key not in places]
        places = known | _at(new, len(wanted), is_new=True)
        found = await _append(two, _under(every, "then"))
        ctx.equal(found, {key: places[key] for key in every}, f"the positions of {len(every)} keys, old and new")
        seen |= {key: AppendedMessage(place.position, False) for key, place in places.items()}
        wanted += _under(new, "then").values()
        ctx.true(await one.load_version("a") != version, "new messages must change the version")
        ctx.equal(await one.load_messages("a"), wanted, f"the messages after {len(every)} keys")
        equal = {f"{count} equal {i}": samples.message(text="the same") for i in range(3)}
        places = _at(list(equal), len(wanted), is_new=True)
        ctx.equal(await _append(one, equal), places, "the positions of equal messages")
        wanted += equal.values()
        await one.save_messages("a", [*wanted, samples.message(text=f"saved after {count}")])
        wanted = await two.load_messages("a")
    for store in (*stores, await ctx.another()):
        found = await _append(store, _under([*seen][:30], "late"))
        ctx.equal(found, dict([*seen.items()][:30]), f"the positions of the first of {len(seen)} keys")
    ctx.equal(await _append(stores[1], _under(["k"]), "b"), _at(["k"], 0, is_new=True), "a key of another agent")
    ctx.equal((await ctx.store.check_consistency()).issues, (), "the issues of sound keys")


@check("MSG-12", "LIFE-4", needs=_N, under=(_D.CHANGES, _D.INSTANCES))
async def keys_outlive_their_messages(ctx: Context) -> None:
    """After its message was popped, cut off, replaced, or left out of a saved list, a key is still known, with the
    position at which its message was appended. A deleted agent has no keys.
    """
    other, keys = await ctx.another(), ["k0", "k1", "k2"]

    async def save(store: ExtendedStore) -> None:
        await store.save_messages("a", samples.messages(1, 40))

    async def save_nothing(store: ExtendedStore) -> None:
        await store.save_messages("a", [])

    changes: dict[str, Callable[[ExtendedStore], Awaitable[object]]] = {
        "a replacement": lambda store: store.replace_message("a", 1, samples.message(text="replaced")),
        "a pop": lambda store: store.pop_messages("a", 2),
        "a cut": lambda store: store.truncate_messages("a", 1),
        "a saved list": save,
        "an empty list": save_nothing,
        "more messages": lambda store: store.append_messages("a", samples.messages(5, 50)),
    }
    for round_ in range(2):
        ctx.equal(await _append(ctx.store, _under(keys)), _at(keys, 0, is_new=True), f"the positions in round {round_}")
        for number, (name, change) in enumerate(changes.items()):
            await (ctx.store, other)[number % 2].save_info("a", samples.info("a"))
            await change((other, ctx.store)[number % 2])
            before, version = await other.load_messages("a"), await other.load_version("a")
            for store in (ctx.store, other):
                ctx.equal(await _append(store, _under(keys)), _at(keys, 0, is_new=False), f"the positions after {name}")
            ctx.equal(await ctx.store.load_messages("a"), before, f"the messages after {name} and a late retry")
            ctx.equal(await ctx.store.load_version("a"), version, f"the version after {name} and a late retry")
        fresh = await ctx.another()
        ctx.equal(await _append(fresh, _under(keys)), _at(keys, 0, is_new=False), "the positions in a new instance")
        await ctx.close(fresh)
        stats = await other.aggregate_stats("a")
        ctx.equal(stats.total_documents, 0, "total_documents of an agent that has keys alone")
        await (ctx.store, other)[round_].delete("a")
        ctx.equal(await other.load_messages("a"), [], "the messages after the delete")


@check("LIFE-8", "LIFE-7", "MSG-12", needs=_N, under=(_D.INSTANCES, _D.ITEMS, _D.ORDERS))
async def keys_go_along_with_imports(ctx: Context) -> None:
    """An imported agent knows the keys of the agent that was loaded, with their positions, and no others; an import of
    wrong ones is refused.
    """
    other, keys = await ctx.another(), [f"k{i:03}" for i in range(300)]
    await _append(ctx.store, _under(keys))
    await ctx.store.pop_messages("a", 40)
    records = await other.load_agent("a")
    assert records is not None
    ctx.equal(records.message_keys, {key: i for i, key in enumerate(keys)}, "the keys of an agent loaded whole")
    ctx.equal(from_dict(AgentRecords, to_dict(records)), records, "the agent as JSON and back")
    for what, wrong in _wrong_keys():
        given = records.replace(message_keys=wrong)
        await ctx.raises(InvalidArgumentError, other.import_agent("b", given), f"an import with {what}")
        ctx.equal(await ctx.store.load_agent("b"), None, f"the agent after an import with {what}")
    await other.import_agent("b", records)
    found = await _append(ctx.store, _under([*keys[::7], "new"]), "b")
    wanted = {key: AppendedMessage(7 * i, False) for i, key in enumerate(keys[::7])}
    ctx.equal(found, {**wanted, "new": AppendedMessage(len(keys) - 40, True)}, "keys after an import")
    ctx.equal(len(await other.load_messages("b")), len(keys) - 39, "the messages after keys that are known")
    await other.delete("b")
    await ctx.store.import_agent("b", records.replace(message_keys={}))
    found = await _append(other, _under(keys[:2]), "b")
    ctx.equal(found, _at(keys[:2], len(keys) - 40, is_new=True), "keys after an import without keys")


def _wrong_keys() -> list[tuple[str, Any]]:
    return [
        ("keys that are a list", ["k"]),
        ("an empty key", {"": 0}),
        ("a long key", {"k" * 401: 0}),
        ("a key that is no text", {1: 0}),
        ("a position below 0", {"k": -1}),
        ("a position that is a bool", {"k": True}),
        ("a position that is text", {"k": "0"}),
        ("a position of 63 bits", {"k": 2**62}),
    ]


@check("MSG-12", "FORK-1", "FORK-4", "DOC-5", needs=_N, under=(_D.CHANGES, _D.INSTANCES, _D.ITEMS))
async def forks_have_no_keys(ctx: Context) -> None:
    """No kind of fork knows the keys of its parent, which knows none of theirs."""
    other, keys = await ctx.another(), [f"k{i:02}" for i in range(30)]
    await ctx.store.save_info("a", samples.info("a"))
    await _append(ctx.store, _under(keys))
    await ctx.store.save_snapshot("a", samples.snapshot("s", count=1))
    await ctx.store.put_document("a", "messages", keys[0], "of the caller")
    forks = {
        "a fork": await ctx.store.fork("a"),
        "a fork with documents": await other.fork("a", documents=True),
        "a fork to an id": await other.fork("a", "child", documents=True),
        "a part": await ctx.store.fork("a", length=len(keys) - 1),
        "a fork from a snapshot": await other.fork("a", snapshot_id="s", documents=True),
        "one of several": (await ctx.store.batch_fork("a", 2))[1],
    }
    for name, fork in forks.items():
        count = len(await other.load_messages(fork))
        found = await _append(other, _under(keys[-1:]), fork)
        ctx.equal(found, _at(keys[-1:], count, is_new=True), f"a key of the parent, in {name}")
        documents = [(one.collection, one.key) async for one in ctx.store.iter_documents(fork, "messages")]
        with_documents = [("messages", keys[0])] * ("documents" in name or "id" in name or "snapshot" in name)
        ctx.equal(documents, with_documents, f"the documents of {name}")
        stats = await ctx.store.aggregate_stats(fork)
        ctx.equal(stats.total_documents, len(with_documents), f"total_documents of {name}")
        await _append(ctx.store, _under([f"of {fork}"]), fork)
        await other.delete(fork)
    ctx.equal(await _append(other, _under(keys)), _at(keys, 0, is_new=False), "the parent's keys after all that")
    new = [f"of {fork}" for fork in forks.values()]
    ctx.equal(await _append(other, _under(new)), _at(new, len(keys), is_new=True), "keys of forks, in the parent")


@check("MSG-12", needs=_N, under=(_D.TWINS, _D.LOOKALIKES, _D.LENGTHS))
async def keys_are_told_apart(ctx: Context) -> None:
    """Any two different keys are two keys. Texts that are no keys, and values that are no messages, are refused, and
    nothing of the call is written.
    """
    names = [name for name in (*twins(), *LOOKALIKES, *(text_of(n) for n in lengths(up_to=401))) if is_key(name)]
    names = list(dict.fromkeys(names))
    for number, name in enumerate(in_time(ctx, names)):
        ctx.equal(await _append(ctx.store, _under([name])), _at([name], number, is_new=True), f"the new key {name!r}")
    count = len(await ctx.store.load_messages("a"))
    found = await _append(ctx.store, _under(names[:count]))
    ctx.equal(found, _at(names[:count], 0, is_new=False), "the positions of all keys")
    version = await ctx.store.load_version("a")
    wrong: list[Any] = [{key: samples.message()} for key in ("", "a\0b", "\ud800", "é" * 201, 5, None, b"k")]
    wrong += [{"new": "text"}, {"new": None}, [samples.message()], None, "new", [("new", samples.message())]]
    for given in wrong:
        if isinstance(given, dict):
            given = {"before": samples.message(), **given, "after": samples.message()}
        call = ctx.store.append_messages_once("a", given)
        await ctx.raises(InvalidArgumentError, call, f"messages={given!a:.60}")
    ctx.equal(await ctx.store.load_version("a"), version, "the version after refused calls")
    new = ["before", "after", "new"]
    ctx.equal(await _append(ctx.store, _under(new)), _at(new, count, is_new=True), "the keys of refused calls")


# --- several at once --------------------------------------------------------------------------------------------------


async def _see_once(ctx: Context, keys: Sequence[str], new: Sequence[str], places: Mapping[str, int]) -> None:
    """See that each key was new once, and that its one message is where each call said."""
    ctx.equal(sorted(new), sorted(keys), "the keys that were new, over all calls")
    found = await _append(ctx.store, _under(keys, "late"))
    messages = await ctx.store.load_messages("a")
    ctx.equal([found[key].is_new for key in keys], [False] * len(keys), "whether late retries are new")
    for key in keys:
        at = [i for i, message in enumerate(messages) if message.text.startswith(f"{key} by ")]
        ctx.equal(at, [found[key].position], f"the positions of messages of {key}, and the one that is returned")
        ctx.equal(places.get(key, at[0]), at[0], f"the position of {key} that calls returned")


@check("MSG-12", "MSG-3", needs=_N, under=(_D.COMPANY, _D.INSTANCES, _D.ORDERS))
async def one_of_several_with_a_key_appends(ctx: Context) -> None:
    """If several instances append under the same keys at once, in several orders and next to other appends, each key
    is new for exactly one of them, and all return the position that its one message has.
    """
    stores, each = [ctx.store, await ctx.another(), await ctx.another()], _EACH[ctx.settings.tier]
    new, places = list[str](), dict[str, int]()

    async def rival(number: int) -> None:
        for i in range(each):
            keys = [f"k{n:03}" for n in (i, i + 1, i + 2)]
            pair = {key: samples.message(text=f"{key} by {number}") for key in (keys[::-1] if number % 2 else keys)}
            found = await _append(stores[number % 3], pair)
            new.extend(key for key, place in found.items() if place.is_new)
            for key, place in found.items():
                ctx.equal(places.setdefault(key, place.position), place.position, f"the position of {key}")

    async def others(number: int) -> None:
        for i in range(each):
            await stores[number % 3].append_messages("a", [samples.message(text=f"other {number} {i}")])
            await stores[number % 3].save_info("a", samples.info("a"))

    await asyncio.gather(*map(rival, range(_RIVALS)), others(0), others(1))
    await _see_once(ctx, [f"k{n:03}" for n in range(each + 2)], new, places)


@check(
    *("MSG-12", "DUR-1", "DUR-3"),
    needs=_N | Capability.CROSS_PROCESS,
    tier=Tier.STANDARD,
    under=(_D.PROCESSES, _D.COMPANY, _D.CRASHES),
)
async def processes_append_once(ctx: Context) -> None:
    """Processes that append under the same keys, one of which is killed, append each message once, where they say."""
    each, gate = 5 * _EACH[ctx.settings.tier], ctx.folder / "gate"
    processes = [await ctx.process("append_once", "a", f"{n}", each, str(gate)) for n in range(3)]
    for process in processes:
        await process.line()
    gate.touch()
    reports = [await processes[0].line() for _ in range(_EACH[ctx.settings.tier])]
    processes[0].kill()
    reports += await processes[0].gone()
    for process in processes[1:]:
        reports += await process.lines()
    told = [key for line in reports for key in line.get("new", ())]
    places = {key: place for line in reports for key, place in line.get("places", {}).items()}
    keys = [f"k{n}" for n in range(each + 1)]
    ctx.equal(len(told), len(set(told)), "how many keys were new, and how many different ones these are")
    missing = sorted(set(keys) - set(told))
    ctx.true(len(missing) <= 2, f"the killed process left out its last call at most, and {missing} are left out")
    await _see_once(ctx, keys, [*told, *missing], places)


@check("MSG-12", "OPS-9", needs=_N, under=(_D.INTERRUPTIONS, _D.INSTANCES))
async def a_cancelled_append_can_be_repeated(ctx: Context) -> None:
    """A call that was cancelled at any moment can be repeated by any instance: all messages are stored, each once."""
    stores, count = [ctx.store, await ctx.another()], 0
    for number, steps in enumerate(in_time(ctx, (0, 1, 2, 3, 4, 5, 7, 10, 15, 25, 40, 80, 200, 1000))):
        keys = [f"{steps}-{i}" for i in range(3)]
        task = asyncio.ensure_future(stores[number % 2].append_messages_once("a", _under(keys)))
        await turns_pass(steps)
        task.cancel()
        await asyncio.wait([task])
        await stores[number % 2].load_messages("a")  # waits for a write that goes on
        found = await _append(stores[(number // 2) % 2], _under(keys))
        ctx.equal([place.position for place in found.values()], [count, count + 1, count + 2], f"after {steps} steps")
        count += 3
        ctx.equal(len(await stores[1].load_messages("a")), count, f"the number of messages after {steps} steps")


@check("MSG-12", "OPS-2", "OPS-4", needs=_N, under=(_D.DAMAGE,))
async def a_damaged_key_is_named(ctx: Context) -> None:
    """A key whose record is damaged is named by the call that has it, which writes nothing, and by the check of
    consistency; calls with other keys work.
    """
    await _append(ctx.store, _under(["k1"]))
    await _append(ctx.store, _under(["k1"]), "b")
    store, layer = await damaging(ctx)
    layer.verbs, layer.kind = frozenset({"docs", "docs_in"}), "documents"
    version = await ctx.store.load_version("a")
    call = store.append_messages_once("a", _under(["k0", "k1", "k2"]))
    error = await ctx.raises(CorruptRecordError, call, "a call with a damaged key")
    ctx.true("k1" in error.record, f"the error must name the key, got {error.record!r}")
    ctx.equal(await store.load_version("a"), version, "the version after it")
    issues = [(issue.code, issue.agent_id) for issue in (await store.check_consistency("a")).issues]
    ctx.equal(issues, [("corrupt_record", "a")], "the issues with a damaged key")
    ctx.equal(await _append(store, _under(["k2"])), _at(["k2"], 1, is_new=True), "another key")
    ctx.equal(await _append(ctx.store, _under(["k1"])), _at(["k1"], 0, is_new=False), "the key without the damage")


def _appended(*, known: bool) -> Change:
    """Appends a message of a new key, and gives it together with a known one."""

    def change(talk: Talk) -> Callable[[ExtendedStore], Awaitable[object]]:
        new = talk.message()
        messages = {talk.messages[-1].text[:80]: talk.message()} if known else {}
        talk.messages.append(new)
        return lambda store: store.append_messages_once(talk.agent_id, {**messages, new.text[:80]: new})

    return change


_CALLS: Final[Mapping[str, Change]] = {
    "append_messages_once of a new key": _appended(known=False),
    "append_messages_once of a known key and a new one": _appended(known=True),
}


@check("MSG-12", "MSG-5", needs=_N, under=(_D.COSTS, _D.ITEMS, _D.INSTANCES))
async def an_append_under_keys_costs_what_it_contains(ctx: Context) -> None:
    """A call costs the same however long the list is, with new keys and with known ones."""
    await see_costs(ctx, (LONG[ctx.settings.tier], 500), (SHORT, 500), _CALLS)
