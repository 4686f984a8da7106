"""Heads, items and parts of a record store, as the record engine reads and writes them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Final

import msgspec
from msgspec.structs import replace

from kode_core.authoring.parallel import each
from kode_core.authoring.reading import unless_damaged
from kode_core.authoring.waiting import waited_for
from kode_core.batch import Fence, Info
from kode_core.codec import Body
from kode_core.engines.recent import Recent
from kode_core.engines.record.plan import new_head, nonce
from kode_core.engines.record.state import (
    AgentHead,
    Freed,
    Overlay,
    Stash,
    State,
    Step,
    info_key,
    new_epoch,
    stash_key,
)
from kode_core.engines.record.store import Change, Cut, HeadRecord, Item, Note, Place, RecordStore
from kode_core.errors import CorruptRecordError, OutcomeUnknownError, StorageError

__all__ = ["LEFT_SECONDS", "MissingError", "MovedError", "RecordIO", "wall_clock"]


_FROZEN_SECONDS: Final = 1.0
"""How long writers wait for a reader that gives no sign."""
LEFT_SECONDS: Final = 600.0
"""How old a note is before what is left at its place is removed. What is begun under it is begun in half that time."""
_KNOWN: Final = 512

_encode_changes = msgspec.msgpack.Encoder().encode
_decode_changes = msgspec.msgpack.Decoder(tuple[Step, ...]).decode


class MovedError(Exception):
    """The read is not of one instant: another writer came between."""


class MissingError(MovedError):
    """A part of the read is not there: another writer removed it, or it is lost when the head is still the same."""


def wall_clock() -> int:
    """The time that is compared with the time of other processes, in milliseconds since the epoch."""
    return int(time.time() * 1000)


class RecordIO:
    """A record store, with what is too large for a record in parts, and what is pending settled."""

    def __init__(self, store: RecordStore) -> None:
        self.store = store
        self._noted = Recent[Place, float](_KNOWN)

    # --- heads

    async def head(self, agent_id: str) -> AgentHead | None:
        """The agent's head; None where there is none."""
        found = await self.store.heads([agent_id])
        return AgentHead(found[0]) if found else None

    async def head_now(self, agent_id: str) -> AgentHead | None:
        """The agent's head, by a read that is never late: by this alone something is known to be lost."""
        found = await self.store.head_now(agent_id)
        return None if found is None else AgentHead(found)

    async def sound(self, agent_ids: Sequence[str]) -> tuple[list[AgentHead], list[str]]:
        """The heads of these agents that can be read, and the names of those that cannot: they fail their own alone."""
        if not agent_ids:
            return [], []
        damaged = list[str]()
        try:
            found = await self.store.heads(agent_ids)
        except CorruptRecordError as exc:
            if len(agent_ids) == 1:
                return [], [exc.record]
            middle = len(agent_ids) // 2
            (some, damaged), (others, more) = await each(self.sound, (agent_ids[:middle], agent_ids[middle:]))
            return [*some, *others], [*damaged, *more]
        heads = [unless_damaged(damaged, AgentHead, record) for record in found]
        return [head for head in heads if head is not None], damaged

    async def supplant(self, agent_id: str, fence: Fence | None) -> None:
        """Put the head of an agent that was deleted in place of one that cannot be read, and remove what was there.

        Nobody knows which offsets were given. There was less than one event in each millisecond since 1970, so that the
        time is a greater one, also when this happens to an agent more than once (EVT-2).
        """
        remains = await self.store.remains(agent_id)
        if remains is None:
            return
        state = State(next_offset=time.time_ns() // 1_000_000, doomed=tuple(remains.epochs))
        head = AgentHead.sealed(new_head(agent_id), state)
        if await self.store.supplant(remains, head.record, fence):
            await self.settle(head)

    async def swap(self, old: AgentHead | None, new: AgentHead) -> bool:
        """Swap a head; when the answer is lost the head is read, to see whether it is the new one. False if it is not.

        Raises:
            OutcomeUnknownError: the answer is lost, and the head cannot be read.
        """
        try:
            return await self.store.swap(None if old is None else old.record, new.record, None, ())
        except OutcomeUnknownError as doubt:
            try:
                found = await self.store.heads([new.record.agent_id])
            except StorageError as exc:
                raise doubt from exc
            return list(found) == [new.record]

    async def info(self, head: AgentHead) -> Info | None:
        """The info of a head, its body whole."""
        info = head.record.info
        if info is None or head.state.info is None:
            return info
        name, rev, count = head.state.info
        text = await self._text(head.record.place, info_key(name), rev, count)
        return replace(info, body=Body(text, info.body.digest))

    async def overlay(self, head: AgentHead) -> Overlay:
        """What is pending."""
        return Overlay(await self.pending(head))

    async def pending(self, head: AgentHead) -> Sequence[Step]:
        """What is pending, wherever it is kept."""
        stash = head.state.stash
        if stash is None:
            return head.state.pending
        parts = await self.store.parts(head.record.place, stash.key, head.record.rev)
        if len(parts) < stash.parts:
            raise MissingError
        try:
            return _decode_changes(b"".join(parts))
        except msgspec.MsgspecError:
            raise CorruptRecordError(f"agent {head.record.agent_id!r}", "its pending changes are damaged") from None

    # --- parts

    def is_large(self, text: str) -> bool:
        """Whether a text does not fit into an item."""
        most = self.store.part_bytes
        return len(text) > most or (len(text) > most // 4 and len(text.encode()) > most)

    async def _put_text(self, place: Place, key: str, rev: int, text: bytes) -> int:
        """Keep a text in parts, and return how many."""
        size = self.store.part_bytes
        parts = [text[i : i + size] for i in range(0, len(text), size)]
        await self.store.put_parts(place, key, rev, parts)
        return len(parts)

    async def _text(self, place: Place, key: str, rev: int, count: int) -> str:
        parts = await self.store.parts(place, key, rev)
        if len(parts) < count:
            raise MissingError
        return b"".join(parts).decode(errors="replace")  # what is damaged has another digest

    async def whole(self, place: Place, items: Iterable[Item]) -> list[Item]:
        """The items with their texts, those that are in parts too."""

        async def one(item: Item) -> Item:
            if not item.parts:
                return item
            text = await self._text(place, item.key, item.rev, item.parts)
            return replace(item, body=Body(text, item.body.digest), parts=0)

        items = list(items)
        return await each(one, items) if any(item.parts for item in items) else items

    async def stash(self, place: Place, rev: int, changes: Sequence[Step]) -> Stash:
        """Keep pending changes beside the head."""
        await self.note(place)
        key = stash_key(nonce())
        return Stash(key, await self._put_text(place, key, rev, _encode_changes(changes)))

    async def with_info_beside(self, head: AgentHead) -> AgentHead:
        """The head, with the body of its info beside it when that is large."""
        record, info = head.record, head.record.info
        if info is None or len(info.body.text) <= self.store.inline_bytes // 4:
            return head
        name = nonce()
        await self.note(record.place)
        count = await self._put_text(record.place, info_key(name), record.rev, info.body.text.encode())
        record = replace(record, info=replace(info, body=Body("", info.body.digest)))
        return AgentHead.sealed(record, replace(head.state, info=(name, record.rev, count)))

    # --- items

    async def apply(self, place: Place, steps: Sequence[Step], *, has_parts: bool, fresh: bool = False) -> None:
        """Change items, and forget the parts of those that are no more. See ``RecordStore.apply``."""

        async def split(change: Change) -> Change:
            if isinstance(change, Cut) or not self.is_large(change.body.text):
                return change
            count = await self._put_text(place, change.key, change.rev, change.body.text.encode())
            return replace(change, body=Body("", change.body.digest), parts=count)

        changes = [step for step in steps if not isinstance(step, Freed)]
        if has_parts:
            changes = [await split(change) for change in changes]
        await self.store.apply(place, changes, fresh=fresh)
        if has_parts:
            gone = [step for step in steps if not isinstance(step, Item)]
            await each(lambda step: self.store.drop_parts(place, step.first, step.last, step.rev), gone)

    # --- settling

    async def settle(self, head: AgentHead) -> AgentHead:
        """The head with all that was pending done; whoever comes first does it."""
        record, state = head.record, head.state
        if state.is_settled:
            return head
        if state.reserved:
            return await self._give_up(head)
        changes = await self.pending(head)
        if changes:
            await self.apply(record.place, changes, has_parts=state.has_parts)
        return await self.settled(head)

    async def settled(self, head: AgentHead) -> AgentHead:
        """The head once its changes are applied, with what nobody needs any more removed.

        A stash is needed until the mark that the head is settled is as durable as the head: if the mark were lost, the
        head would ask for it again. Doomed epochs are needed by no head, and may be removed before the mark.
        """
        record, state = head.record, head.state
        await each(lambda epoch: self.remove(Place(record.agent_id, epoch)), state.doomed)
        done = head.with_state(replace(state, pending=(), stash=None, doomed=()))
        await self.tell(done.record, lasting=state.stash is not None)
        if state.stash is not None:
            await self.store.drop_parts(record.place, stash_key(""), stash_key("~"), record.rev + 1)
        return done

    async def tell(self, record: HeadRecord, *, lasting: bool = False) -> None:
        """Write that a head is settled. What was applied to an agent that was deleted meanwhile is removed again."""
        if not await self.store.settle(record, lasting=lasting):
            await self.leave(record)

    async def leave(self, record: HeadRecord) -> None:
        """Remove what was put at the place of a head, if the agent was deleted since.

        A head of a newer revision at another epoch says so. An older one says nothing: it may be read late.
        """
        now = await self.store.heads([record.agent_id])
        if any(head.rev > record.rev and head.epoch != record.epoch for head in now):
            await self.remove(record.place)

    async def remove(self, place: Place) -> None:
        """Remove all that is at a place that no head names any more; what others put there late is removed later."""
        await self.note(place)
        await self.store.drop(place)

    async def note(self, place: Place) -> None:
        """Have a look taken at a place later; before anything is put there, or given up, that no head refers to."""
        now = time.monotonic()
        noted = self._noted.get(place)
        if noted is not None and now - noted < LEFT_SECONDS / 2:
            return
        await self.store.note(Note(place, wall_clock()))
        self._noted[place] = now

    @staticmethod
    def overdue(times: int = 1) -> int:
        """The time of notes that are just so old that what is left at their places is removed, or several times so."""
        return wall_clock() - int(times * LEFT_SECONDS * 1000)

    async def _give_up(self, head: AgentHead) -> AgentHead:
        """End a fork that nobody goes on with; who does after all finds another head, and begins anew."""
        record, state = head.record, head.state
        given_up = replace(state, reserved=False, doomed=(*state.doomed, record.epoch))
        after = head.next(given_up, epoch=new_epoch(), updated_at=0)
        if not await self.swap(head, after):
            raise MovedError
        return await self.settled(after)

    # --- readers that others are too fast for

    @asynccontextmanager
    async def frozen(self, head: AgentHead) -> AsyncGenerator[AgentHead]:
        """Ask writers to wait while this head is read, and show them again and again that it is: see :meth:`thawed`.

        Raises:
            MovedError: another writer was faster, or there was no answer.
        """
        frozen, has_ended = await self.freeze(head), asyncio.Event()
        renewing = asyncio.get_running_loop().create_task(self._renew(frozen, has_ended))
        try:
            yield frozen
        finally:
            has_ended.set()
            await asyncio.wait([renewing])  # what it wrote last must not come after the end
            await self._mark(frozen, None)

    async def _renew(self, head: AgentHead, has_ended: asyncio.Event) -> None:
        while not await waited_for(has_ended, _FROZEN_SECONDS / 4):
            if not await self._mark(head, nonce()):
                return

    async def _mark(self, head: AgentHead, sign: str | None) -> bool:
        """Change the sign of a reader, or take it back; False when others wrote meanwhile."""
        try:
            return await self.store.settle(head.with_state(replace(head.state, frozen=sign)).record)
        except StorageError:
            return True  # without a sign writers go on by themselves

    async def thawed(self, agent_id: str, until: float) -> AgentHead | None:
        """The agent's head for a writer, once no reader asks to wait.

        One that gives no new sign for a second is not waited for, as it may be dead, and none is *until* then: a slow
        reader of a long list gets its turn, and a writer ends within its deadline whatever readers there are.
        """
        sign, silent_at, pause = None, 0.0, 0.002
        while True:
            head = await self.head(agent_id)
            if head is None or head.state.frozen is None:
                return head
            now = time.monotonic()
            if head.state.frozen != sign:
                sign, silent_at = head.state.frozen, now + _FROZEN_SECONDS
            if now >= min(silent_at, until):
                return head
            await asyncio.sleep(pause)
            pause = min(2 * pause, _FROZEN_SECONDS / 20)

    async def freeze(self, head: AgentHead) -> AgentHead:
        head = await self.settle(head)
        frozen = head.next(replace(head.state, frozen=nonce()))
        try:
            is_frozen = await self.swap(head, frozen)
        except OutcomeUnknownError as exc:
            raise MovedError from exc
        if not is_frozen:
            raise MovedError
        return frozen
