"""DOC-7: tags of documents, and what becomes of them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from kode_conformance.checks.backups import need_restored
from kode_conformance.checks.document_ranges import put_all
from kode_conformance.checks.lifecycle import fill
from kode_conformance.context import Context, Violation
from kode_conformance.dimensions import LOOKALIKES, Dimension, twins
from kode_conformance.instruments.pace import in_time
from kode_conformance.registry import Capability, check
from kode_conformance.values import samples
from kode_core.codec import from_dict, to_dict
from kode_core.errors import ConflictError, InvalidArgumentError
from kode_core.model import AgentRecords, DeleteDocument, PutDocument
from kode_core.protocols import ExtendedStore
from kode_core.query import Page

_N = Capability.EXTENDED | Capability.DOCUMENTS | Capability.TAGS
_D = Dimension
_PAGES: Final = 3000


async def found_by(store: ExtendedStore, tags: Mapping[str, Any], **given: Any) -> list[tuple[str, str]]:
    """The agents and keys of all documents of the collection ``c`` with the tags, page after page."""
    given = {"collection": "c", "limit": 100, "values": False, **given}
    found, cursor = list[tuple[str, str]](), None
    for _ in range(_PAGES):
        page = await store.query_documents(tags=tags, cursor=cursor, **given)
        found += [(one.agent_id, one.key) for one in page]
        cursor = page.next_cursor
        if cursor is None:
            return found
    raise AssertionError("the pages do not end")


def is_tag(text: str) -> bool:
    """True if a tag may have this value."""
    try:
        return len(text.encode()) <= 256 and "\0" not in text
    except UnicodeEncodeError:
        return False


@check("DOC-7", "DOC-8", needs=_N, under=(_D.LOOKALIKES, _D.TWINS, _D.LENGTHS, _D.INSTANCES))
async def any_tags_come_back_and_are_found(ctx: Context) -> None:
    """Names and values of any characters, at their greatest lengths and up to four of them, come back with loads, lists
    and streams, and find their document and no other.
    """
    other = await ctx.another()
    texts = [text for text in dict.fromkeys(("", *LOOKALIKES, *twins("a"), *twins("run"))) if is_tag(text)]
    texts += ["x" * 256, "é" * 128, "\U0001f600" * 64, "x" * 255 + "y"]
    names = [text for text in texts if text and len(text.encode()) <= 64] + ["n" * 64, "é" * 32, "n" * 63 + "m"]
    tags = [{"name": text} for text in texts] + [{name: "of a strange name"} for name in names]
    tags += [{"a": "b", "c": ""}, {"a": "", "b": "c"}, {"a": "b", "b": "c"}, {"a": "c", "b": "b"}, {"ab": "c"}]
    tags += [{f"{name}{'n' * 63}": "\U0001f600" * 64 for name in "abcd"}, {"d": "1", "c": "2", "b": "3", "a": "4"}]
    puts = [PutDocument("c", f"k{i:04}", i, tags=some) for i, some in enumerate(tags)]
    for start in range(0, len(puts), 50):
        await ctx.store.write_documents("a", puts[start : start + 50])
    listed = {one.key: one.tags async for one in other.iter_documents("a", "c")}
    ctx.equal([listed[put.key] for put in puts], tags, "the tags of a stream")
    for put, some in in_time(ctx, zip(puts, tags, strict=True)):
        loaded = await other.load_document("a", "c", put.key)
        ctx.equal(loaded and (loaded.value, loaded.tags), (put.value, some), f"a document with the tags {some!r:.200}")
        wanted = [("a", one.key) for one, its in zip(puts, tags, strict=True) if some.items() <= its.items()]
        ctx.equal(await found_by(other, some), wanted, f"the documents with the tags {some!r:.200}")


def _changes() -> Mapping[str, Callable[[ExtendedStore], Any]]:
    """Writes of the document k, which has the tag run=r1, after which it does not have it."""

    def turn(store: ExtendedStore, *writes: Any) -> Any:
        return store.save_turn("a", append=samples.messages(1), documents=writes)

    also = PutDocument("c", "l", 1, tags={"by": "another"})
    ways: Mapping[str, Callable[..., Any]] = {
        "a put": lambda s, value, **given: s.put_document("a", "c", "k", value, **given),
        "a write of several": lambda s, value, **given: s.write_documents(
            "a", [PutDocument("c", "k", value, **given), also]
        ),
        "a turn": lambda s, value, **given: turn(s, also, PutDocument("c", "k", value, **given)),
        "an import": lambda s, value, **given: _imported(s, PutDocument("c", "k", value, **given)),
    }
    given: Mapping[str, tuple[int, dict[str, Any]]] = {
        "of the same value without tags": (1, {}),
        "with empty tags": (1, {"tags": {}}),
        "with another value": (2, {"tags": {"run": "r2"}}),
        "with another name": (1, {"tags": {"ran": "r1"}}),
    }
    return {
        **{
            f"{way} {what}": functools.partial(put, value=value, **tags)
            for what, (value, tags) in given.items()
            for way, put in ways.items()
        },
        "a delete": lambda s: s.delete_document("a", "c", "k"),
        "a delete among several": lambda s: s.write_documents(
            "a", [DeleteDocument("c", "k"), PutDocument("c", "l", 1)]
        ),
        "a delete in a turn": lambda s: turn(s, DeleteDocument("c", "k")),
        "a delete of the agent": lambda s: s.delete("a"),
        "a delete of many": lambda s: s.delete_many(template_id="t"),
    }


async def _imported(store: ExtendedStore, put: PutDocument) -> None:
    """Put the document in place of the agent's, by an import of the agent that has it after the agent was deleted."""
    records = await store.load_agent("a")
    if records is None:
        raise Violation("load_agent must give the agent")
    whole = to_dict(records)
    kept = [one for one in whole["documents"] if one["key"] == put.key]
    whole["documents"] = [one | {"value": put.value, "tags": put.tags or {}} for one in kept]
    await store.delete("a")
    await store.import_agent("a", from_dict(AgentRecords, whole))


@check("DOC-7", "LIFE-3", "LIFE-4", needs=_N, under=(_D.CHANGES, _D.INSTANCES, _D.EQUALS))
async def a_write_replaces_the_tags(ctx: Context) -> None:
    """Every write that replaces or removes a document replaces or removes its tags, in every instance; a refused write
    changes none; a put of the same tags keeps them.
    """
    other = await ctx.another()
    for name, change in in_time(ctx, _changes().items()):
        await ctx.store.save_info("a", samples.info("a", template_id="t"))
        version = await ctx.store.put_document("a", "c", "k", 1, tags={"run": "r1", "step": "1"})
        await other.put_document("b", "c", "k", 1, tags={"run": "r1"})
        version = await other.put_document("a", "c", "k", 1, tags={"step": "1", "run": "r1"}, expect=version)
        refused = ctx.store.put_document("a", "c", "k", 3, tags={"run": "r9"}, expect="0" * 32)
        await ctx.raises(ConflictError, refused, "a put that demands another version")
        for tags in ({"run": "r1"}, {"step": "1"}, {"run": "r1", "step": "1"}):
            wanted = [("a", "k")] if "step" in tags else [("a", "k"), ("b", "k")]
            ctx.equal(await found_by(other, tags), wanted, f"the documents with {tags} before {name}")
        ctx.equal(await found_by(other, {"run": "r9"}), [], "the documents of a refused put")
        await change(ctx.store)
        for store in (ctx.store, other):
            ctx.equal(await found_by(store, {"run": "r1"}), [("b", "k")], f"the documents with run=r1 after {name}")
            ctx.equal(await found_by(store, {"run": "r1", "step": "1"}), [], f"with both tags after {name}")
            ctx.equal(await found_by(store, {"step": "1"}), [], f"with the other tag after {name}")
        loaded = await other.load_document("a", "c", "k")
        for tag in loaded.tags.items() if loaded else ():
            ctx.equal(await found_by(other, dict([tag])), [("a", "k")], f"the documents with the tag of {name}")
        await ctx.store.append_messages("a", samples.messages(1))
        ctx.equal(await found_by(other, {"run": "r1"}), [("b", "k")], f"the documents when the id is used after {name}")
    ctx.equal((await other.check_consistency()).issues, (), "the issues in the end")


@check("DOC-7", "FORK-2", "LIFE-7", "LIFE-8", needs=_N, under=(_D.CHANGES, _D.INSTANCES, _D.ITEMS))
async def tags_go_along_with_copies(ctx: Context) -> None:
    """Forks that take documents, and imports of an agent that was loaded whole, are found by the same tags, by one to
    four of them and in both directions; other forks are not. Copies are independent of one another.
    """
    other = await ctx.another()
    await fill(ctx.store, "p")
    puts = [PutDocument("c", f"k{i:03}", i, tags={"run": f"r{i % 3}", "n": str(i)}) for i in range(120)]
    four = {"team": "x", "state": "open", "kind": "bug", "of": "four"}
    some = [dict(few) for size in range(1, 5) for few in itertools.combinations(four.items(), size)]
    puts += [PutDocument("c", f"l{i:02}", i, tags=few) for i, few in enumerate(some)]
    for start in range(0, len(puts), 100):
        await ctx.store.write_documents("p", puts[start : start + 100])
    await ctx.store.write_documents("p", [PutDocument("c", "plain", 1), PutDocument("d", "k", 1, tags={"n": "1"})])
    await ctx.store.fork("p", "with", documents=True)
    await other.fork("p", "short", length=1, documents=True)
    await other.fork("p", "without")
    (batch,) = await ctx.store.batch_fork("p", 1)
    records = await other.load_agent("p")
    ctx.true(records is not None, "load_agent must give the agent")
    if records is not None:
        await ctx.store.import_agent("imported", from_dict(AgentRecords, to_dict(records)))
    copies = ["imported", "p", "short", "with"]
    mine = [f"k{i:03}" for i in range(1, 120, 3)]
    ctx.equal(
        await found_by(other, {"run": "r1"}), [(one, key) for one in copies for key in mine], "the documents of copies"
    )
    for tags in in_time(ctx, some[::-1]):
        wanted = [(one, f"l{i:02}") for one in copies for i, few in enumerate(some) if few.items() >= tags.items()]
        ctx.equal(await found_by(other, tags), wanted, f"the documents of copies with {tags}")
        backwards = await found_by(ctx.store, tags, reverse=True, limit=25)
        ctx.equal(backwards, wanted[::-1], f"the documents of copies with {tags}, in reverse")
    for one in ("without", batch):
        ctx.equal(await found_by(other, {"run": "r1"}, agent_id=one), [], f"the documents of {one}")
    await ctx.store.put_document("with", "c", "k001", "changed", tags={"run": "r9"})
    await other.delete("p")
    await other.delete_document("short", "c", "k001")
    wanted = [("imported", "k001")]
    ctx.equal(
        await found_by(ctx.store, {"run": "r1", "n": "1"}), wanted, "the copies of a document that were not changed"
    )
    ctx.equal(await found_by(ctx.store, {"run": "r9"}), [("with", "k001")], "the changed copy")
    ctx.equal((await other.check_consistency()).issues, (), "the issues of copies")


class _Odd(str):
    __slots__ = ()


def _wrong_tags() -> Iterator[Any]:
    yield from ({str(i): "x" for i in range(5)}, {"": "x"}, {"n" * 65: "x"}, {"é" * 33: "x"}, {"a\0": "x"})
    yield from ({"a": "x" * 257}, {"a": "é" * 129}, {"a": "b\0"}, {"a": "\ud800"}, {"\ud800": "a"}, {"a": None})
    yield from ({"a": 1}, {"a": True}, {"a": b"x"}, {"a": ["x"]}, {1: "x"}, {None: "x"}, {_Odd("a"): "x"})
    yield from ({"a": _Odd("x")}, "run=r1", [("run", "r1")], 5, {"a"}, True)


@check("DOC-7", "OPS-17", needs=_N, under=(_D.NUMBERS, _D.LENGTHS, _D.LOOKALIKES))
async def wrong_tags_are_refused(ctx: Context) -> None:
    """Tags that are none, too many, too long, of other types or with characters that no index holds are refused by
    every write, and nothing is written.
    """
    await ctx.store.put_document("a", "c", "k", "kept", tags={"run": "r1"})
    for tags in _wrong_tags():
        put = PutDocument("c", "k", 1, tags=tags)
        told = f"{tags!r:.80}"
        await ctx.raises(InvalidArgumentError, ctx.store.put_document("a", "c", "k", 1, tags=tags), f"tags {told}")
        writes = ctx.store.write_documents("a", [PutDocument("c", "l", 1), put])
        await ctx.raises(InvalidArgumentError, writes, f"one of several with tags {told}")
        turn = ctx.store.save_turn("a", append=samples.messages(1), documents=[put])
        await ctx.raises(InvalidArgumentError, turn, f"a turn with tags {told}")
    ctx.equal(await found_by(ctx.store, {"run": "r1"}), [("a", "k")], "the document after refused writes")
    kept = await ctx.store.load_document("a", "c", "k")
    ctx.equal(kept and (kept.value, kept.tags), ("kept", {"run": "r1"}), "the document that stays")
    ctx.equal(await ctx.store.load_document("a", "c", "l"), None, "the document next to a refused one")
    ctx.equal(await ctx.store.load_messages("a"), [], "the messages of refused turns")


@check("DOC-7", "OPS-16", needs=_N | Capability.PERSISTENT, under=(_D.CHANGES, _D.INSTANCES, _D.COMPANY))
async def a_backup_has_the_tags(ctx: Context) -> None:
    """A backup finds its documents by their tags, and goes on apart from the original."""
    need_restored(ctx)
    await put_all(ctx.store, "a", "c", [f"k{i:03}" for i in range(50)])
    await ctx.store.write_documents("a", [PutDocument("c", f"t{i}", i, tags={"run": f"r{i % 2}"}) for i in range(8)])
    await ctx.store.delete_document("a", "c", "t1")
    copy = await ctx.restored(await ctx.store.backup(ctx.folder / "copy"))
    await ctx.store.delete("a")
    wanted = [("a", "t3"), ("a", "t5"), ("a", "t7")]
    ctx.equal(await found_by(copy, {"run": "r1"}), wanted, "the documents of the copy")
    await copy.put_document("a", "c", "t3", 1)
    ctx.equal(await found_by(copy, {"run": "r1"}), wanted[1:], "the documents of the copy after a put")
    ctx.equal(await found_by(ctx.store, {"run": "r1"}), [], "the documents of the original after a delete")
    ctx.equal((await copy.check_consistency()).issues, (), "the issues of the copy")


@check("DOC-7", "DOC-8", needs=_N, absence_ok=True, under=(_D.NUMBERS,))
async def a_query_gives_pages(ctx: Context) -> None:
    """Nothing stored gives an empty page that is the last one, whatever the tags."""
    wanted: list[dict[str, Any]] = [{"run": "r1"}, {"run": ["r1", "r2"], "n": "1"}, {"run": []}]
    for tags in wanted:
        page = await ctx.store.query_documents("c", tags)
        ctx.true(isinstance(page, Page), f"a query must give a Page, got {type(page).__name__}")
        ctx.equal((list(page), page.next_cursor, page.left_out), ([], None, ()), f"a page of nothing with {tags}")
