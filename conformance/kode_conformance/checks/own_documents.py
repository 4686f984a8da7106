"""DOC-1: documents of the caller's own, their values and their names."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from kode_conformance.checks.lifecycle import fill
from kode_conformance.checks.messages import dump
from kode_conformance.context import Context
from kode_conformance.dimensions import (
    FRACTIONS,
    INTEGERS,
    LOOKALIKES,
    SEPARATORS,
    Dimension,
    dense,
    lengths,
    text_of,
    twins,
)
from kode_conformance.instruments.clock import clocks_of, is_of_a_clock
from kode_conformance.instruments.pace import in_time
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_core.errors import ConflictError, InvalidArgumentError, InvalidValueError
from kode_core.model import DeleteDocument, Document, Json, PutDocument
from kode_core.protocols import ExtendedStore

_N = Capability.EXTENDED | Capability.DOCUMENTS
_D = Dimension
_KEY_BYTES: Final = 400
_COLLECTION_LENGTH: Final = 64
_STRANGE_KEYS: Final = (
    "k",
    "k/v",
    "k\\v",
    "k'v",
    'k"v',
    "k\nv",
    "k\r\nv",
    "k\tv",
    "k\x1fv",
    "k\U0001f600v",
    "\U0010ffff",
)


def is_key(text: str) -> bool:
    """True if a document may have this key."""
    try:
        return 0 < len(text.encode()) <= _KEY_BYTES and "\0" not in text
    except UnicodeEncodeError:
        return False


async def documents_of(store: ExtendedStore, agent_id: str, *collections: str) -> dict[tuple[str, str], Document]:
    """All documents of some collections of an agent, each as a load gives it."""
    found = {}
    for collection in collections:
        async for one in store.iter_documents(agent_id, collection):
            found[collection, one.key] = one
    return found


# --- values and keys --------------------------------------------------------------------------------------------------


def _deep(levels: int) -> Json:
    value: Json = "deep"
    for level in range(levels):
        value = [value] if level % 2 else {"in": value}
    return value


def _values(tier: Tier) -> Iterator[Json]:
    yield from (None, True, False, "", [], {}, [None], {"": None}, [[], {}, [[]]], -0.0, 1, 1.0, [1, 1.0, True])
    yield from INTEGERS
    yield from FRACTIONS
    yield from (2**64, -(2**64) - 1, 10**300 + 1, 10**4299 + 7)
    yield from LOOKALIKES
    yield dict.fromkeys(("b", "a", "$set", "a.b", "_id", "__proto__", "", "\0", "é", "e\u0301", "\ud83d", "10", "9"), 0)
    yield {"value": {"nonce": "n", "value": 1}, "nonce": "of the caller", "version": "0", "key": "other"}
    yield from (_deep(99), [*range(2000)], {f"k{i}": [i, str(i), None] for i in range(500)})
    for length in (*lengths(up_to=1025), *_LONG) if tier is Tier.QUICK else lengths(up_to=409_601):
        yield from (text_of(length), [f"\udc80{text_of(length)}\ud83d"], f"{text_of(length)[:-4]}é😀\0")
    yield {"text": text_of(2**20), "\ud83d": "\udc80", "after": 1}


_LONG: Final = (4_097, 70_001, 409_601)
"""Longer than pages, than what stands in a row, and than an item."""


@check(
    "DOC-1",
    "VAL-1",
    "VAL-4",
    needs=_N,
    under=(_D.NUMBERS, _D.LENGTHS, _D.LOOKALIKES, _D.ITEMS, _D.INSTANCES, _D.CHANGES),
)
async def documents_keep_any_value(ctx: Context) -> None:
    """Every JSON value is loaded exactly as it was put, by every method that puts, in every instance, with the version
    of the put.
    """
    stores = [ctx.store, await ctx.another()]
    for number, value in enumerate(in_time(ctx, _values(ctx.settings.tier))):
        one, two = stores[number % 2], stores[1 - number % 2]
        for way, key in enumerate(("same", f"own {number}"), number):
            method, version = await _put(one, key, value, way)
            found = await two.load_document("a", "c", key)
            assert found is not None, f"value {number}, put by {method} under {key!r}, is not found"
            told = f"value {number}, put by {method} under {key!r}"
            ctx.equal(found.value, value, told)
            names = (found.collection, found.key, found.version)
            ctx.equal(names, ("c", key, version or found.version), f"the names of {told}")
    for number, value in enumerate(in_time(ctx, _values(ctx.settings.tier))):
        found = await stores[number % 2].load_document("a", "c", f"own {number}")
        if found is not None:
            ctx.equal(found.value, value, f"value {number} in the end")


async def _put(store: ExtendedStore, key: str, value: Json, way: int) -> tuple[str, str | None]:
    """Put a document by one of the methods; the method, and the version if it tells one."""
    if way % 3 == 0:
        return "put_document", await store.put_document("a", "c", key, value)
    if way % 3 == 1:
        return "write_documents", (await store.write_documents("a", [PutDocument("c", key, value)]))[0]
    await store.save_turn("a", documents=[PutDocument("c", key, value)])
    return "save_turn", None


@check("DOC-1", "VAL-2", needs=_N, under=(_D.NUMBERS, _D.LOOKALIKES, _D.CHANGES))
async def documents_refuse_what_is_no_json(ctx: Context) -> None:
    """A value that is not exactly JSON is refused by each method that puts one, with the document's key in the error,
    and nothing of the call is written.
    """
    await ctx.store.put_document("a", "c", "k", {"sound": 1})
    cyclic: list[Any] = []
    cyclic.append(cyclic)
    wrong: Sequence[Any] = (
        *(float("nan"), float("inf"), b"x", (1,), {1}, {1: 2}, {"a": {None: 1}}, object(), [1, {"b": float("-inf")}]),
        *("\ud83d" + "\ude00", 10**4300, _deep(101), cyclic, samples.message(), PutDocument("c", "k", 1)),
    )
    before = await documents_of(ctx.store, "a", "c")
    ctx.equal(len(before), 1, "how many documents there are before")
    for value in wrong:
        puts = [PutDocument("c", "first", 1), PutDocument("c", "a key", value)]
        calls: Mapping[str, Awaitable[object]] = {
            "put_document": ctx.store.put_document("a", "c", "a key", value),
            "write_documents": ctx.store.write_documents("a", puts),
            "save_turn": ctx.store.save_turn("a", append=samples.messages(1), documents=puts),
        }
        for name, call in calls.items():
            error = await ctx.raises(InvalidValueError, call, f"{name} of {type(value).__name__}")
            ctx.true("a key" in str(error), f"the error of {name} must name the document: {error}")
    ctx.equal(await documents_of(ctx.store, "a", "c"), before, "the documents after values were refused")
    ctx.equal(await ctx.store.load_messages("a"), [], "the messages of refused turns")


def _names() -> list[tuple[str, str, str]]:
    """Agents, collections and keys that something takes for each other."""
    longest = [text * (_KEY_BYTES // len(text.encode())) for text in ("k", "é", "😀")]
    longest += [f"{longest[0][:-1]}l", f"l{longest[0][1:]}", longest[0][:-1], dense(_KEY_BYTES)]
    keys = dict.fromkeys(key for key in (*twins("Ab"), *LOOKALIKES, *longest, *_STRANGE_KEYS) if is_key(key))
    short = (*_STRANGE_KEYS, "K", "k ", "K/V", "é", "e\u0301")
    collections = ("c", "C", "cc", "c.", "c-", "c_", ".", "..", "-", "c.c", "0", "c" * _COLLECTION_LENGTH, "snapshots")
    names = [("a", "c", key) for key in keys]
    names += [("a", collection, key) for collection in collections for key in short]
    names += [(agent, "c", key) for agent in ("A", "a/c", "a/c/k", "a ", "aa", "a%") for key in short]
    for dash in (*SEPARATORS, "::", "%2F", "\n", "\x01", "\uffff"):  # all three joined by it are one name
        names += [(f"x{dash}y{dash}z", "c", "k"), (f"x{dash}y", "z", f"c{dash}k"), ("x", "y", f"z{dash}c{dash}k")]
        names += [("x", f"y{dash}z", f"c{dash}k"), (f"x{dash}y", f"z{dash}c", "k")] if dash in ".-_" else []
    return list(dict.fromkeys(names))


@check("DOC-1", "ID-2", needs=_N, under=(_D.TWINS, _D.LENGTHS, _D.LOOKALIKES, _D.ITEMS, _D.INSTANCES, _D.CHANGES))
async def names_of_documents_are_apart(ctx: Context) -> None:
    """Documents whose keys, collections or agents something takes for each other are different documents: each is
    loaded, listed, replaced and removed alone.
    """
    other, names = await ctx.another(), _names()
    for agent in dict.fromkeys(agent for agent, *_ in names):
        puts = [PutDocument(c, k, [agent, c, k]) for a, c, k in names if a == agent]
        for start in range(0, len(puts), 50):
            await ctx.store.write_documents(agent, puts[start : start + 50])
    every = dict.fromkeys((agent, collection) for agent, collection, _ in names)
    for agent, collection in every:
        wanted = {(collection, k): [agent, collection, k] for a, c, k in names if (a, c) == (agent, collection)}
        found = await documents_of(other, agent, collection)
        ctx.equal(sorted(key for _, key in found), sorted(key for _, key in wanted), f"keys of {agent!r}/{collection}")
        ctx.equal({name: found[name].value for name in wanted}, wanted, f"the documents of {agent!r} in {collection}")
    gone = names[::3]
    for agent, collection, key in in_time(ctx, gone):
        await other.delete_document(agent, collection, key)
        found_now = await ctx.store.load_document(agent, collection, key)
        ctx.equal(found_now, None, f"the deleted document {key!r} in {collection} of {agent!r}")
    for agent, collection, key in (name for name in names if name not in gone):
        kept = await ctx.store.load_document(agent, collection, key)
        ctx.equal(kept and kept.value, [agent, collection, key], f"{key!r} in {collection} of {agent!r}")


@check("DOC-1", "OPS-17", needs=_N, under=(_D.LENGTHS, _D.LOOKALIKES))
async def wrong_names_of_documents_are_refused(ctx: Context) -> None:
    """A collection or a key that no document may have is refused by every method that takes one, and one of the
    greatest length is taken.
    """
    store = ctx.store
    keys: Sequence[Any] = ("", "x" * 401, "é" * 200 + "x", "😀" * 100 + "x", "a\0", "\ud800", None, 5, b"k")
    collections: Sequence[Any] = ("", "a/b", "x" * 65, "é", "a b", "a\n", "\0", "a~", "a:b", "*", None, 5, b"c")
    wrong = [("c", key) for key in keys] + [(collection, "k") for collection in collections]
    for collection, key in wrong:
        calls: Sequence[Awaitable[object]] = (
            store.put_document("a", collection, key, 1),
            store.load_document("a", collection, key),
            store.delete_document("a", collection, key),
            store.write_documents("a", [PutDocument("c", "first", 1), PutDocument(collection, key, 1)]),
            store.write_documents("a", [PutDocument("c", "first", 1), DeleteDocument(collection, key)]),
            store.save_turn("a", append=samples.messages(1), documents=[PutDocument(collection, key, 1)]),
        )
        for number, call in enumerate(calls):
            await ctx.raises(InvalidArgumentError, call, f"call {number} with {collection!r:.70} and {key!r:.70}")
    for collection in collections:
        for listing in (store.list_documents, store.list_document_keys):
            await ctx.raises(InvalidArgumentError, listing("a", collection), f"a list of {collection!r:.70}")
    ctx.equal(list(await store.list_document_keys("a", "c")), [], "the keys after refused writes")
    ctx.equal(await store.load_messages("a"), [], "the messages of refused turns")
    longest = "x" * _COLLECTION_LENGTH
    await store.put_document("a", longest, "é" * 200, "longest")
    found = await store.load_document("a", longest, "é" * 200)
    ctx.equal(found and found.value, "longest", "the document with the longest names")


@check("DOC-1", "MSG-8", "VER-1", "INFO-2", "INFO-3", needs=_N, under=(_D.CHANGES, _D.INSTANCES, _D.TWINS, _D.ORDERS))
async def documents_are_apart_from_all_other_kinds(ctx: Context) -> None:
    """No write of a document changes a record of another kind, the version, updated_at or whether the agent exists;
    no write of another kind changes a document, whatever the collection is called; a load leaves no trace.
    """
    other = await ctx.another()
    for agent_id in ("a", "no info"):
        if agent_id == "a":
            await fill(ctx.store, agent_id)
            await ctx.store.delete_document(agent_id, "c", "k")
        version, session = await other.load_version(agent_id), await other.load_session(agent_id)
        kinds = ("snapshots", "todos", "media", "messages", "events", "info", "documents", "layer", "windows")
        before = await dump(ctx, agent_id)
        for number, kind in enumerate(kinds):
            key = ("sfp-1", "", "k")[number % 3] or kind
            await ctx.store.put_document(agent_id, kind, key, kind)
            await ctx.store.write_documents(agent_id, [PutDocument(kind, "x", 1), DeleteDocument(kind, "never")])
            await ctx.store.save_turn(agent_id, documents=[PutDocument(kind, "y", 1), DeleteDocument(kind, "x")])
            await other.delete_document(agent_id, kind, "y")
        told = f"after writes of documents of {agent_id!r}"
        ctx.equal(await dump(ctx, agent_id), before, f"the other kinds {told}")
        ctx.equal(await other.load_version(agent_id), version, f"the version {told}")
        ctx.equal(await other.load_session(agent_id), session, f"the session {told}")
        ctx.equal(await other.exists(agent_id), agent_id == "a", f"whether {agent_id!r} exists {told}")
    documents = await documents_of(other, "a", *kinds)
    ctx.equal(len(documents), len(kinds), "how many documents there are")
    await ctx.store.save_snapshot("a", samples.snapshot("x"))
    await ctx.store.delete_snapshot("a", "sfp-1")
    await ctx.store.save_todos("a", samples.todos())
    await ctx.store.save_turn("a", messages=[], tool_calls=[], todos=samples.todos("z"))
    await ctx.store.save_media_cache("a", [])
    ctx.equal(await documents_of(other, "a", *kinds), documents, "the documents after writes of the other kinds")
    ctx.equal(await ctx.store.load_document("nobody", "c", "k"), None, "a document of nobody")
    await ctx.store.delete_document("nobody", "c", "k")
    ctx.equal(list(await ctx.store.list_documents("nobody", "c")), [], "the documents of nobody")
    checked = (await ctx.store.check_consistency()).agents_checked
    ctx.equal(checked, 2, "how many agents are stored after reads and deletes of nobody's documents")


@check("DOC-1", "VAL-5", needs=_N, under=(_D.CLOCKS, _D.CHANGES, _D.INSTANCES))
async def a_document_has_the_time_of_its_put(ctx: Context) -> None:
    """updated_at is the time of the last put, in milliseconds by this machine's clock or the store's, and the same in
    loads and lists of every instance.
    """
    other, times = await ctx.another(), list[int]()
    puts: Sequence[Callable[[], Awaitable[object]]] = (
        lambda: ctx.store.put_document("a", "c", "k", 1),
        lambda: other.put_document("a", "c", "k", 1),
        lambda: ctx.store.write_documents("a", [PutDocument("c", "k", 2), PutDocument("c", "l", 2)]),
        lambda: other.save_turn("a", documents=[PutDocument("c", "k", 3)]),
    )
    for put in puts:
        begun = await clocks_of(ctx.store)
        await put()
        ended = await clocks_of(ctx.store)
        found = await other.load_document("a", "c", "k")
        (listed,) = await ctx.store.list_documents("a", "c", stop="l")
        assert found is not None, "the document is not found"
        ctx.equal(listed, found, "the document in a list")
        told = f"updated_at is {found.updated_at}, of a put from {begun} to {ended}"
        ctx.true(is_of_a_clock(found.updated_at, begun, ended, slack=2), told)
        times.append(found.updated_at)
        await asyncio.sleep(0.01)
    ctx.true(times == sorted(set(times)), f"the times of puts one after the other: {times}")
    await other.delete_document("a", "c", "l")
    unchanged = await ctx.store.load_document("a", "c", "k")
    ctx.equal(unchanged and unchanged.updated_at, times[-1], "updated_at after another document was deleted")


@check("DOC-1", "DUR-1", "DOC-2", needs=_N | Capability.PERSISTENT, under=(_D.INSTANCES, _D.CHANGES, _D.EQUALS))
async def documents_survive_a_restart(ctx: Context) -> None:
    """Documents are as they were, versions and times too, after the store was closed and opened again; a deleted one
    does not come back; versions still hold.
    """
    for i in range(30):
        await ctx.store.put_document("a", "cd"[i % 2], f"k{i}", [i, "é\0😀", 1.0])
    await ctx.store.put_document("a", "c", "k0", "replaced")
    await ctx.store.delete_document("a", "c", "k2")
    await ctx.store.write_documents("a", [DeleteDocument("d", "k3"), PutDocument("c", "k4", None)])
    before = await documents_of(ctx.store, "a", "c", "d")
    ctx.equal(len(before), 28, "how many documents there are")
    for _ in range(2):
        await ctx.reopen()
        ctx.equal(await documents_of(ctx.store, "a", "c", "d"), before, "the documents after a restart")
        ctx.equal(await ctx.store.load_document("a", "c", "k2"), None, "the deleted document after a restart")
    version = before["c", "k0"].version
    stale = await ctx.store.put_document("a", "c", "k0", "replaced", expect=version)
    await ctx.reopen()
    await ctx.raises(
        ConflictError, ctx.store.put_document("a", "c", "k0", 1, expect=version), "a put over an old version"
    )
    await ctx.store.delete_document("a", "c", "k0", expect=stale)
    ctx.equal(await ctx.store.load_document("a", "c", "k0"), None, "the document that was deleted in its version")
