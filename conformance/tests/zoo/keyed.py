"""Stores with faults in messages that are appended once (MSG-12)."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, ClassVar

from kode_conformance.checks.damage import damaging
from kode_conformance.context import Context
from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import OnJson, mutant
from conformance.tests.zoo.witnesses import seen
from kode_core.batch import ABSENT_DOC, CORE_KEYS, Doc, DocKind, DocSpan, DocWrite, ListKind
from kode_core.codec import Body, digest
from kode_core.engine import docs_in
from kode_core.model import AppendedMessage, Message
from kode_core.report import ConsistencyCheckResult
from kode_core.store import EngineStore


def _two(text: str = "text", *keys: str) -> dict[str, Message]:
    return {key: samples.message(text=f"{text} {key}") for key in keys or ("k1", "k2")}


_ALL = DocSpan(start=CORE_KEYS, stop="\x7f", limit=10_000)


@mutant(
    "MSG-12",
    killed_by="known_keys_append_nothing",
    source="ON CONFLICT (key) DO UPDATE",
    witness=seen(
        lambda s: s.append_messages_once("a", _two("old")),
        lambda s: s.append_messages_once("a", _two("new")),
        lambda s: s.load_messages("a"),
    ),
)
class AKnownKeyReplacesItsMessage(EngineStore):
    """Replaces the message of a known key."""

    async def append_messages_once(
        self, agent_id: str, messages: Mapping[str, Message], **how: Any
    ) -> list[AppendedMessage]:
        found = await super().append_messages_once(agent_id, messages, **how)
        for message, place in zip(messages.values(), found, strict=True):
            if not place.is_new:
                await self.replace_message(agent_id, place.position, message)
        return found


async def _version_after_a_retry(ctx: Context) -> object:
    await ctx.store.append_messages_once("a", _two())
    version = await ctx.store.load_version("a")
    await ctx.store.append_messages_once("a", _two())
    return await ctx.store.load_version("a") == version


@mutant(
    "MSG-12",
    killed_by="known_keys_append_nothing",
    source="UPDATE agents SET updated_at = now() next to INSERT … ON CONFLICT DO NOTHING",
    witness=_version_after_a_retry,
)
class KnownKeysTouchTheAgent(EngineStore):
    """Moves updated_at and the version with a call that stores nothing."""

    async def append_messages_once(
        self, agent_id: str, messages: Mapping[str, Message], **how: Any
    ) -> list[AppendedMessage]:
        found = await super().append_messages_once(agent_id, messages, **how)
        if found and not any(place.is_new for place in found):
            await self.append_messages(agent_id, [])
        return found


@mutant(
    "MSG-12",
    killed_by="keys_outlive_their_messages",
    source="a key as a column of the messages, with a UNIQUE index",
    witness=seen(
        lambda s: s.append_messages_once("a", _two()),
        lambda s: s.pop_messages("a"),
        lambda s: s.append_messages_once("a", _two()),
    ),
)
class KeysGoWithTheirMessages(EngineStore):
    """Forgets the keys of messages that were removed."""

    async def append_messages_once(
        self, agent_id: str, messages: Mapping[str, Message], **how: Any
    ) -> list[AppendedMessage]:
        if isinstance(messages, dict) and isinstance(agent_id, str):
            count, engine = len(await self.load_messages(agent_id)), self._context.engine
            gone = [doc for doc in await docs_in(engine, agent_id, _ALL) if doc.time >= count]
            removals = tuple(DocWrite(DocKind.DOCUMENTS, doc.key, None) for doc in gone)
            if removals:
                await self._context.commit(self._context.batch(agent_id, docs=removals))
        return await super().append_messages_once(agent_id, messages, **how)


async def _retry_in_a_fork(ctx: Context) -> object:
    await ctx.store.save_info("a", samples.info("a"))
    await ctx.store.append_messages_once("a", _two())
    child = await ctx.store.fork("a", documents=True)
    return await ctx.store.append_messages_once(child, _two())


@mutant(
    "MSG-12",
    killed_by="forks_have_no_keys",
    source="INSERT … SELECT of all documents of the parent",
    witness=_retry_in_a_fork,
)
class ForksTakeKeysAlong(EngineStore):
    """Copies the keys to a fork with documents."""

    async def fork(self, agent_id: str, new_id: str | None = None, **how: Any) -> str:
        child = await super().fork(agent_id, new_id, **how)
        if how.get("documents"):
            keys = await docs_in(self._context.engine, agent_id, _ALL)
            docs = tuple(DocWrite(DocKind.DOCUMENTS, doc.key, doc, ABSENT_DOC) for doc in keys)
            await self._context.commit(self._context.batch(child, docs=docs))
        return child


@mutant(
    "MSG-12",
    killed_by="keys_are_told_apart",
    source="a column of keys with a collation that ignores case",
    witness=seen(lambda s: s.append_messages_once("a", _two("text", "k", "K"))),
)
class KeysIgnoreCase(EngineStore):
    """Takes two keys that differ in case for one."""

    async def append_messages_once(
        self, agent_id: str, messages: Mapping[str, Message], **how: Any
    ) -> list[AppendedMessage]:
        if not isinstance(messages, dict) or not all(isinstance(key, str) for key in messages):
            return await super().append_messages_once(agent_id, messages, **how)
        folded = {key.lower(): message for key, message in messages.items()}
        found = await super().append_messages_once(agent_id, folded, **how)
        places = dict(zip(folded, found, strict=True))
        return [places[key.lower()] for key in messages]


class _LooksFirst(EngineStore):
    """Reads which keys are known, and then appends the other messages, and puts their keys."""

    async def append_messages_once(
        self, agent_id: str, messages: Mapping[str, Message], **how: Any
    ) -> list[AppendedMessage]:
        if not isinstance(messages, dict) or not all(isinstance(key, str) for key in messages):
            return await super().append_messages_once(agent_id, messages, **how)
        known = [await self._context.engine.docs(agent_id, DocKind.DOCUMENTS, f"~messages/{key}") for key in messages]
        new = {key: message for (key, message), docs in zip(messages.items(), known, strict=True) if not docs}
        await asyncio.sleep(0.001)
        found = await super().append_messages_once(agent_id, messages, **how)
        late = {key for (key, _), place in zip(messages.items(), found, strict=True) if not place.is_new and key in new}
        if late:
            await self.append_messages(agent_id, [messages[key] for key in messages if key in late])
        return [replace(place, is_new=place.is_new or key in late) for key, place in zip(messages, found, strict=True)]


async def _two_at_once(ctx: Context) -> object:
    other = await ctx.another()
    calls = (store.append_messages_once("a", _two()) for store in (ctx.store, other))
    await asyncio.gather(*calls)
    return len(await ctx.store.load_messages("a"))


@mutant(
    "MSG-12",
    killed_by="one_of_several_with_a_key_appends",
    source="SELECT, and then INSERT",
    witness=_two_at_once,
)
class LooksBeforeItAppends(_LooksFirst):
    """Looks for the keys before the write, and not in it."""


async def _from_two_processes(ctx: Context) -> object:
    gate = ctx.folder / "gate"
    processes = [await ctx.process("append_once", "a", f"{n}", 60, str(gate)) for n in range(2)]
    for process in processes:
        await process.line()
    gate.touch()
    for process in processes:
        await process.lines()
    return len(await ctx.store.load_messages("a"))


@mutant(
    "MSG-12",
    killed_by="processes_append_once",
    source="a cache of seen keys under an asyncio.Lock",
    on=OnJson,
    slow=True,
    witness=_from_two_processes,
)
class LooksUnderALockOfTheProcess(_LooksFirst):
    """Looks for the keys before the write, under a lock that other processes do not know."""

    _lock: ClassVar[dict[Any, asyncio.Lock]] = defaultdict(asyncio.Lock)

    async def append_messages_once(
        self, agent_id: str, messages: Mapping[str, Message], **how: Any
    ) -> list[AppendedMessage]:
        async with self._lock[asyncio.get_running_loop()]:
            return await super().append_messages_once(agent_id, messages, **how)


async def _cancelled(ctx: Context) -> object:
    for steps in range(12):
        call = asyncio.ensure_future(ctx.store.append_messages_once("a", _two("text", f"{steps}")))
        for _ in range(steps):
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait([call])
        await ctx.store.load_messages("a")
        await ctx.store.append_messages_once("a", _two("text", f"{steps}"))
    return len(await ctx.store.load_messages("a"))


@mutant(
    "MSG-12",
    killed_by="a_cancelled_append_can_be_repeated",
    source="the message and its key in two commits",
    witness=_cancelled,
)
class PutsKeysInACommitOfTheirOwn(EngineStore):
    """Remembers keys before their messages are appended, so that a call that is cancelled between loses messages."""

    async def append_messages_once(
        self, agent_id: str, messages: Mapping[str, Message], **how: Any
    ) -> list[AppendedMessage]:
        found = await super().append_messages_once(agent_id, messages, **how)
        new = sum(place.is_new for place in found)
        if new:
            await self.pop_messages(agent_id, new)
            for _ in range(2):
                await asyncio.sleep(0)
            await self.append_messages(
                agent_id, [m for m, place in zip(messages.values(), found, strict=True) if place.is_new]
            )
        return found


async def _issues(ctx: Context) -> object:
    await ctx.store.append_messages_once("a", _two())
    store, layer = await damaging(ctx)
    layer.verbs, layer.kind = frozenset({"docs", "docs_in"}), "documents"
    return len((await store.check_consistency()).issues)


@mutant(
    "MSG-12",
    killed_by="a_damaged_key_is_named",
    source="a check of the collections that callers can name",
    witness=_issues,
)
class ChecksNoKeys(EngineStore):
    """Finds no damage of keys in a check of consistency."""

    async def check_consistency(self, agent_id: str | None = None, **how: Any) -> ConsistencyCheckResult:
        found = await super().check_consistency(agent_id, **how)
        issues = tuple(issue for issue in found.issues if "message key" not in issue.message)
        return replace(found, issues=issues, consistent=not issues)


async def _files_after(ctx: Context) -> object:
    await ctx.store.save_messages("a", [samples.message(text=f"{i}" + "x" * 2000) for i in range(300)])
    before = len(await ctx.harness.raw_dump(ctx.handle))
    await (await ctx.another()).append_messages_once("a", _two())
    return len(await ctx.harness.raw_dump(ctx.handle)) > before + 150_000


@mutant(
    "MSG-12",
    killed_by="an_append_under_keys_costs_what_it_contains",
    source="load, compare ids, save",
    on=OnJson,
    witness=_files_after,
)
class KeyedAppendsSaveTheList(EngineStore):
    """Writes the whole list again after an append under keys."""

    async def append_messages_once(
        self, agent_id: str, messages: Mapping[str, Message], **how: Any
    ) -> list[AppendedMessage]:
        found = await super().append_messages_once(agent_id, messages, **how)
        if any(place.is_new for place in found):
            rows = await self._context.engine.rows(agent_id, ListKind.MESSAGES)
            text = json.dumps([body.text for body, _ in rows.rows])
            doc = Doc("copy", 0, Body(text, digest(text.encode())))
            docs = (DocWrite(DocKind.LAYER, "copy", doc),)
            await self._context.commit(self._context.batch(agent_id, docs=docs))
        return found
