"""Faults of edits, versions and documents that show after certain calls in a row, or between calls of others."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from kode_conformance.context import Context
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import mutant
from conformance.tests.zoo.changes import Shares
from kode_core.errors import ConflictError
from kode_core.model import ABSENT, PutDocument
from kode_core.store import EngineStore

_EDITS = "MSG-11.random_histories_of_edits"
_DOCUMENTS = "DOC-2.random_histories_of_documents"
_RACES = "MSG-11.concurrent_edits_have_one_order"


async def a_save_after_a_pop(ctx: Context) -> object:
    """Saves the list of before a pop again."""
    await ctx.store.save_messages("a", samples.messages(3))
    await ctx.store.pop_messages("a")
    await ctx.store.save_messages("a", samples.messages(3))
    return len(await ctx.store.load_messages("a"))


@mutant("MSG-11", killed_by=_EDITS, witness=a_save_after_a_pop)
class PopsBehindTheListMemory(EngineStore):
    """Does not tell its memory of the list of a pop: the next save of the instance leaves out what equals the messages
    that were popped.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.popped: dict[str, tuple[int, list[Any]]] = {}

    async def pop_messages(self, agent_id: str, count: int = 1, *, fence: Any = None) -> list[Any]:
        popped = await super().pop_messages(agent_id, count, fence=fence)
        self.popped[agent_id] = len(await super().load_messages(agent_id)), popped
        return popped

    async def append_messages(self, agent_id: str, messages: Sequence[Any], *, fence: Any = None) -> None:
        self.popped.pop(agent_id, None)
        await super().append_messages(agent_id, messages, fence=fence)

    async def save_messages(
        self, agent_id: str, messages: Sequence[Any], *, expect: str | None = None, fence: Any = None
    ) -> None:
        start, popped = self.popped.pop(agent_id, (0, []))
        stale = list(messages[start : start + len(popped)]) == popped
        kept = [*messages[:start], *messages[start + len(popped) :]] if popped and stale else messages
        await super().save_messages(agent_id, kept, expect=expect, fence=fence)


async def a_version_after_an_append_and_a_pop(ctx: Context) -> object:
    """Appends a message and pops it, and compares the versions of before and after."""
    await ctx.store.save_messages("a", samples.messages(1))
    before = await ctx.store.load_version("a")
    await ctx.store.append_messages("a", samples.messages(1))
    await ctx.store.pop_messages("a")
    return await ctx.store.load_version("a") == before


class _Aliases(Shares):
    """Gives another version than the stored one after some calls, and takes it as that one."""

    def alias(self, stored: str, shown: str) -> None:
        self.shared("shown")[stored] = shown

    async def load_version(self, agent_id: str) -> str:
        version = await super().load_version(agent_id)
        return str(self.shared("shown").get(version, version))

    async def load_session(self, agent_id: str) -> Any:
        session = await super().load_session(agent_id)
        return session and replace(session, version=self.shared("shown").get(session.version, session.version))


@mutant("VER-1", killed_by=_EDITS, witness=a_version_after_an_append_and_a_pop)
class PopsBackToTheVersion(_Aliases):
    """Gives the version of before an append again when a pop of one message undoes it."""

    async def append_messages(self, agent_id: str, messages: Sequence[Any], *, fence: Any = None) -> None:
        before = await self.load_version(agent_id)
        await super().append_messages(agent_id, messages, fence=fence)
        if len(messages) == 1:
            self.shared("undone")[await super().load_version(agent_id)] = before

    async def pop_messages(self, agent_id: str, count: int = 1, *, fence: Any = None) -> list[Any]:
        undone = self.shared("undone").get(await super().load_version(agent_id))
        popped = await super().pop_messages(agent_id, count, fence=fence)
        if len(popped) == 1 and undone is not None:
            self.alias(await super().load_version(agent_id), undone)
        return popped


async def a_version_after_a_truncate_to_nothing(ctx: Context) -> object:
    """Cuts a list to nothing, and compares the versions of before and after."""
    await ctx.store.save_messages("a", samples.messages(2))
    before = await ctx.store.load_version("a")
    await ctx.store.truncate_messages("a", 0)
    return await ctx.store.load_version("a") == before


@mutant("VER-1", killed_by=_EDITS, witness=a_version_after_a_truncate_to_nothing)
class KeepsTheVersionOfAnEmptiedList(_Aliases):
    """Keeps the version when a truncate empties the list."""

    async def truncate_messages(
        self, agent_id: str, length: int, *, expect: str | None = None, fence: Any = None
    ) -> int:
        before = await self.load_version(agent_id)
        removed = await super().truncate_messages(agent_id, length, expect=expect, fence=fence)
        if removed and not length:
            self.alias(await super().load_version(agent_id), before)
        return removed


async def a_key_that_was_saved_between(ctx: Context) -> object:
    """Updates a key after another instance saved another info."""
    other = await ctx.another()
    await ctx.store.save_info("a", samples.info("a", metadata={"k": 0}))
    await ctx.store.update_info("a", {"k": 1})
    await other.save_info("a", samples.info("a", metadata={"k": 2, "l": 3}))
    return (await ctx.store.update_info("a", {"k": 4})).metadata


@mutant("INFO-5", killed_by=_EDITS, witness=a_key_that_was_saved_between)
class UpdatesTheInfoItUpdatedLast(EngineStore):
    """Updates the metadata that it wrote at its last update of the agent, whatever was saved meanwhile."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.known: dict[str, Any] = {}

    async def update_info(self, agent_id: str, metadata: Any, *, remove: Any = (), fence: Any = None) -> Any:
        known = self.known.get(agent_id, {})
        stored = await super().load_info(agent_id)
        gone = {key for key in (stored.metadata if stored else {}) if known and key not in (*known, *metadata)}
        merged = {**{key: value for key, value in known.items() if key not in remove}, **metadata}
        info = await super().update_info(agent_id, merged, remove=[*{*remove, *gone} - {*merged}], fence=fence)
        self.known[agent_id] = info.metadata
        return info

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        await super().delete(agent_id, fence=fence)
        self.known.pop(agent_id, None)


async def a_creation_after_a_delete_elsewhere(ctx: Context) -> object:
    """Creates an agent again that another instance deleted."""
    other = await ctx.another()
    await ctx.store.create_agent("a", samples.info("a"))
    await other.delete("a")
    try:
        await ctx.store.create_agent("a", samples.info("a"))
    except ConflictError:
        return "refused"
    return "created"


@mutant("INFO-4", killed_by=_EDITS, witness=a_creation_after_a_delete_elsewhere, tier=Tier.STANDARD)
class RemembersItsCreations(EngineStore):
    """Refuses to create an agent that it created before, unless it deleted that one itself."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.created: set[str] = set()

    async def create_agent(self, agent_id: str, info: Any, *, fence: Any = None) -> None:
        if agent_id in self.created:
            raise ConflictError(agent_id, await self.load_version(agent_id), "it has an info already")
        await super().create_agent(agent_id, info, fence=fence)
        self.created.add(agent_id)

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        await super().delete(agent_id, fence=fence)
        self.created.discard(agent_id)


async def an_append_after_a_fork_at_a_length(ctx: Context) -> object:
    """Appends to the parent after a fork of its first message."""
    await ctx.store.save_info("a", samples.info("a"))
    await ctx.store.save_messages("a", samples.messages(3))
    await ctx.store.fork("a", "b", length=1)
    await ctx.store.append_messages("a", samples.messages(1))
    return len(await ctx.store.load_messages("a"))


@mutant("FORK-4", killed_by=_EDITS, witness=an_append_after_a_fork_at_a_length)
class CutsTheMemoryOfTheParent(EngineStore):
    """Cuts its memory of the parent's list with the fork's: the next append of the instance follows there."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.cut: dict[str, int] = {}

    async def fork(self, agent_id: str, new_id: str | None = None, *, length: int | None = None, **how: Any) -> str:
        fork_id = await super().fork(agent_id, new_id, length=length, **how)
        if length is not None:
            self.cut[agent_id] = length
        return fork_id

    async def append_messages(self, agent_id: str, messages: Sequence[Any], *, fence: Any = None) -> None:
        length = self.cut.pop(agent_id, None)
        if length is not None and messages:
            await super().truncate_messages(agent_id, length, fence=fence)
        await super().append_messages(agent_id, messages, fence=fence)

    async def save_messages(self, agent_id: str, messages: Sequence[Any], **how: Any) -> None:
        self.cut.pop(agent_id, None)
        await super().save_messages(agent_id, messages, **how)


async def an_emit_that_equals_the_last(ctx: Context) -> object:
    """Emits the same twice in one list, after another event."""
    await ctx.store.append_event("a", samples.event(0))
    events = [samples.event(1).event] * 2
    return len(await ctx.store.emit_many("a", events))


@mutant("EVT-8", killed_by=_EDITS, witness=an_emit_that_equals_the_last)
class EmitsNoRepetition(EngineStore):
    """Takes an emitted event for a repetition if it equals the one before it in the call."""

    async def emit_many(self, agent_id: str, events: Sequence[Any], *, fence: Any = None) -> Sequence[Any]:
        kept = [event for i, event in enumerate(events) if not i or event != events[i - 1]]
        return await super().emit_many(agent_id, kept, fence=fence)


async def an_emit_under_the_lock(ctx: Context) -> object:
    """Emits, appends an event of a higher seq by another instance, and emits again under the lock."""
    await ctx.store.emit("a", "text_chunk", {})
    await (await ctx.another()).append_event("a", samples.event(9))
    async with ctx.store.acquire_agent_lock("a"):
        return (await ctx.store.emit("a", "text_chunk", {})).bookmark.seq


@mutant("EVT-8", killed_by="random_histories_of_emitted_events", witness=an_emit_under_the_lock)
class EmitsFromItsCount(EngineStore):
    """Goes on from its own count when it emits, also under a lease that was taken since it read the stored events."""

    async def emit(self, agent_id: str, type: str, data: Any = None, **how: Any) -> Any:  # noqa: A002
        self._hold(agent_id)
        return await super().emit(agent_id, type, data, **how)

    async def emit_many(self, agent_id: str, events: Sequence[Any], *, fence: Any = None) -> Sequence[Any]:
        self._hold(agent_id)
        return await super().emit_many(agent_id, events, fence=fence)

    def _hold(self, agent_id: str) -> None:
        number = self._appender.numbers._numbers.get(agent_id)
        if number is not None:
            number.fence = _Any()


class _Any:
    """Equals every fence."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = object.__hash__


# --- documents --------------------------------------------------------------------------------------------------------


async def a_put_after_a_delete(ctx: Context) -> object:
    """Puts a document, deletes it in a list of writes, and puts the same again."""
    before = await ctx.store.put_document("a", "c", "k", 1)
    await ctx.store.delete_document("a", "c", "k")
    return await ctx.store.put_document("a", "c", "k", 1) == before


@mutant("DOC-2", killed_by=_DOCUMENTS, witness=a_put_after_a_delete)
class RevivesTheVersion(Shares):
    """Gives a document that is put again with the value that it had when it was deleted the version of then."""

    async def delete_document(self, agent_id: str, collection: str, key: str, **how: Any) -> None:
        found = await self.load_document(agent_id, collection, key)
        await super().delete_document(agent_id, collection, key, **how)
        if found is not None:
            self.shared("deleted")[f"{agent_id}/{collection}/{key}"] = repr(found.value), found.version

    async def put_document(self, agent_id: str, collection: str, key: str, value: Any, **how: Any) -> str:
        version = await super().put_document(agent_id, collection, key, value, **how)
        was, before = self.shared("deleted").pop(f"{agent_id}/{collection}/{key}", ("", ""))
        if was == repr(value):
            self.shared("shown")[version] = before
        return str(self.shared("shown").get(version, version))

    async def load_document(self, agent_id: str, collection: str, key: str) -> Any:
        found = await super().load_document(agent_id, collection, key)
        return found and replace(found, version=self.shared("shown").get(found.version, found.version))


async def a_refused_turn(ctx: Context) -> object:
    """Saves a turn whose document exists already, and reads the messages."""
    await ctx.store.put_document("a", "c", "k", 1)
    turn = {"append": samples.messages(1), "documents": [PutDocument("c", "k", 2, ABSENT)]}
    try:
        await ctx.store.save_turn("a", **turn)
    except ConflictError:
        return len(await ctx.store.load_messages("a"))
    return "saved"


@mutant("DOC-3", killed_by=_DOCUMENTS, witness=a_refused_turn)
class WritesTheTurnFirst(EngineStore):
    """Writes the rest of a turn, and then its documents."""

    async def save_turn(self, agent_id: str, *, documents: Sequence[Any] = (), **parts: Any) -> Sequence[int]:
        offsets = await super().save_turn(agent_id, **parts)
        if documents:
            await super().write_documents(agent_id, documents)
        return offsets


async def keys_after_a_turn(ctx: Context) -> object:
    """Lists the keys before and after a turn that puts another document."""
    await ctx.store.put_document("a", "c", "k", 1)
    await ctx.store.list_documents("a", "c")
    await ctx.store.save_turn("a", documents=[PutDocument("c", "l", 2)])
    return len(await ctx.store.list_documents("a", "c"))


@mutant("DOC-4", killed_by=_DOCUMENTS, witness=keys_after_a_turn)
class RemembersTheKeys(EngineStore):
    """Remembers the keys of a collection that it listed whole, until it is told to write a document by itself."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.keys: defaultdict[str, dict[str, set[str]]] = defaultdict(dict)

    async def _fenced(self, method: Any, agent_id: str, *args: Any) -> Any:
        self.keys.pop(agent_id, None)
        return await super()._fenced(method, agent_id, *args)

    async def list_documents(self, agent_id: str, collection: str, **how: Any) -> Any:
        found = await super().list_documents(agent_id, collection, **how)
        if not how:
            known = self.keys[agent_id].setdefault(collection, {document.key for document in found})
            found[:] = [document for document in found if document.key in known]
        return found


# --- races ------------------------------------------------------------------------------------------------------------


async def two_pops_at_once(ctx: Context) -> object:
    """Pops the last of two messages twice at once."""
    await ctx.store.save_messages("a", samples.messages(2))
    popped = await asyncio.gather(*(ctx.store.pop_messages("a") for _ in range(2)))
    return sorted(messages[0].text for messages in popped if messages)


@mutant("MSG-11", killed_by=_RACES, witness=two_pops_at_once)
class ReadsAndCuts(EngineStore):
    """Reads the messages to pop, and then cuts the list there."""

    async def pop_messages(self, agent_id: str, count: int = 1, *, fence: Any = None) -> list[Any]:
        messages = await super().load_messages(agent_id)
        start = max(0, len(messages) - count)
        await asyncio.sleep(0)
        await super().truncate_messages(agent_id, start, fence=fence)
        return messages[start:]


async def a_pop_between_a_turn_and_its_document(ctx: Context) -> object:
    """Saves a turn with a document, and reads the document as soon as the message can be read."""
    turn = asyncio.ensure_future(
        ctx.store.save_turn("a", append=samples.messages(1), documents=[PutDocument("c", "k", 1)])
    )
    while not await ctx.store.load_messages("a"):
        await asyncio.sleep(0)
    found = await ctx.store.load_document("a", "c", "k")
    await turn
    return found and found.value


@mutant("DOC-3", killed_by=_RACES, witness=a_pop_between_a_turn_and_its_document)
class TurnsInTwoCommits(EngineStore):
    """Commits the documents of a turn after the rest, once it has seen that their versions are as demanded."""

    async def save_turn(self, agent_id: str, *, documents: Sequence[Any] = (), **parts: Any) -> Sequence[int]:
        if not documents:
            return await super().save_turn(agent_id, **parts)
        for write in documents:
            found = await super().load_document(agent_id, write.collection, write.key)
            present = found.version if found else ABSENT
            if write.expect not in (None, present):
                raise ConflictError(agent_id, present, "another version", collection=write.collection, key=write.key)
        offsets = await super().save_turn(agent_id, **parts)
        for _ in range(3):
            await asyncio.sleep(0)
        await super().write_documents(agent_id, documents)
        return offsets


async def a_fork_while_the_list_is_saved(ctx: Context) -> object:
    """Forks at the length of a list while it is replaced by another, and reads whether the fork mixes them."""
    mixed = 0
    for round_ in range(10):
        parent = f"a{round_}"
        await ctx.store.save_info(parent, samples.info(parent))
        await ctx.store.save_messages(parent, samples.messages(4))
        save = ctx.store.save_messages(parent, samples.messages(4, 50))
        fork_id, _ = await asyncio.gather(ctx.store.fork(parent, length=4), save)
        numbers = [message.text for message in await ctx.store.load_messages(fork_id)]
        mixed += numbers not in ([m.text for m in samples.messages(4, start)] for start in (0, 50))
    return bool(mixed)


@mutant("FORK-4", killed_by=_RACES, witness=a_fork_while_the_list_is_saved)
class ForksInTwoReads(EngineStore):
    """Reads the messages of a fork at a length in two halves."""

    async def fork(self, agent_id: str, new_id: str | None = None, *, length: int | None = None, **how: Any) -> str:
        if length is None or length < 2:
            return await super().fork(agent_id, new_id, length=length, **how)
        first = await super().load_messages(agent_id, before=length // 2)
        for _ in range(3):
            await asyncio.sleep(0)
        fork_id = await super().fork(agent_id, new_id, length=length, **how)
        rest = (await super().load_messages(fork_id))[length // 2 :]
        await super().save_messages(fork_id, [*first, *rest])
        return fork_id
