"""How the record engine reads and writes the heads, items and parts of a record store."""

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
    Freed,
    OpenedHead,
    Overlay,
    Stash,
    State,
    Step,
    info_key,
    new_epoch,
    stash_key,
)
from kode_core.engines.record.store import Change, Cut, HeadRecord, Item, ItemsPlace, Note, RecordStore
from kode_core.errors import CorruptRecordError, OutcomeUnknownError, StorageError

__all__ = ["LEFT_SECONDS", "MissingError", "MovedError", "RecordIO", "wall_clock"]


_FROZEN_SECONDS: Final = 1.0
"""How long writers wait for a reader that gives no new sign."""
LEFT_SECONDS: Final = 600.0
"""The age at which a note is due and its place is swept. Work under a note begins within half that time."""
_KNOWN: Final = 512

_encode_changes = msgspec.msgpack.Encoder().encode
_decode_changes = msgspec.msgpack.Decoder(tuple[Step, ...]).decode


class MovedError(Exception):
    """Another writer changed the agent during a read or before a swap; the caller starts over."""


class MissingError(MovedError):
    """A record was not found: another writer removed it, or it is lost if the head has not changed since."""


def wall_clock() -> int:
    """Milliseconds since the Unix epoch, for comparison with times of other processes."""
    return int(time.time() * 1000)


class RecordIO:
    """Access to a record store: splits large texts into parts, and applies pending changes."""

    def __init__(self, store: RecordStore) -> None:
        self.store = store
        self._noted = Recent[ItemsPlace, float](_KNOWN)

    # --- heads

    async def head(self, agent_id: str) -> OpenedHead | None:
        """The agent's head, or None without one."""
        found = await self.store.heads([agent_id])
        return OpenedHead(found[0]) if found else None

    async def head_now(self, agent_id: str) -> OpenedHead | None:
        """The agent's head, by a read that is never late. Only such a read can prove that a record is lost."""
        found = await self.store.head_now(agent_id)
        return None if found is None else OpenedHead(found)

    async def readable_heads(self, agent_ids: Sequence[str]) -> tuple[list[OpenedHead], list[str]]:
        """The readable heads of these agents, and the names of the damaged ones, which fail only their own agents."""
        if not agent_ids:
            return [], []
        damaged = list[str]()
        try:
            found = await self.store.heads(agent_ids)
        except CorruptRecordError as exc:
            if len(agent_ids) == 1:
                return [], [exc.record]
            middle = len(agent_ids) // 2
            (some, damaged), (others, more) = await each(self.readable_heads, (agent_ids[:middle], agent_ids[middle:]))
            return [*some, *others], [*damaged, *more]
        heads = [unless_damaged(damaged, OpenedHead, record) for record in found]
        return [head for head in heads if head is not None], damaged

    async def supplant(self, agent_id: str, fence: Fence | None) -> None:
        """Replace a head that cannot be read by the head of a deleted agent, and remove the agent's records.

        A damaged head no longer says which offsets were given. The next one is therefore the time in milliseconds: it
        exceeds every offset as long as the agent had less than one event per millisecond since 1970, also when this
        happens more than once (EVT-2).
        """
        remains = await self.store.remains(agent_id)
        if remains is None:
            return
        state = State(next_offset=time.time_ns() // 1_000_000, doomed=tuple(remains.epochs))
        head = OpenedHead.sealed(new_head(agent_id), state)
        if await self.store.supplant(remains, head.record, fence):
            await self.redo(head)

    async def swap(self, old: OpenedHead | None, new: OpenedHead) -> bool:
        """Swap a head. After a lost answer the head is read to see which one it is. False if it is not the new one.

        Raises:
            OutcomeUnknownError: the answer was lost, and the head cannot be read.
        """
        try:
            return await self.store.swap(None if old is None else old.record, new.record, None, ())
        except OutcomeUnknownError as doubt:
            try:
                found = await self.store.heads([new.record.agent_id])
            except StorageError as exc:
                raise doubt from exc
            return list(found) == [new.record]

    async def info(self, head: OpenedHead) -> Info | None:
        """The info of a head, with its whole body."""
        info = head.record.info
        if info is None or head.state.info is None:
            return info
        name, rev, count = head.state.info
        text = await self._text(head.record.place, info_key(name), rev, count)
        return replace(info, body=Body(text, info.body.digest))

    async def overlay(self, head: OpenedHead) -> Overlay:
        """The head's pending changes, to be laid over stored items."""
        return Overlay(await self.pending(head))

    async def pending(self, head: OpenedHead) -> Sequence[Step]:
        """The head's pending changes, from the head itself or from its stash."""
        stash = head.state.stash
        if stash is None:
            return head.state.pending
        parts = await self.store.parts(head.record.place, stash.key, head.record.rev)
        if len(parts) < stash.parts:
            raise MissingError
        try:
            return _decode_changes(b"".join(parts))
        except (msgspec.MsgspecError, RecursionError):
            raise CorruptRecordError(f"agent {head.record.agent_id!r}", "its pending changes are damaged") from None

    # --- parts

    def is_large(self, text: str) -> bool:
        """Whether a text does not fit into an item."""
        most = self.store.part_bytes
        return len(text) > most or (len(text) > most // 4 and len(text.encode()) > most)

    async def _put_text(self, place: ItemsPlace, key: str, rev: int, text: bytes) -> int:
        """Put a text in parts, and return their number."""
        size = self.store.part_bytes
        parts = [text[i : i + size] for i in range(0, len(text), size)]
        await self.store.put_parts(place, key, rev, parts)
        return len(parts)

    async def _text(self, place: ItemsPlace, key: str, rev: int, count: int) -> str:
        parts = await self.store.parts(place, key, rev)
        if len(parts) < count:
            raise MissingError
        return b"".join(parts).decode(errors="replace")  # damaged text is found by its digest

    async def whole(self, place: ItemsPlace, items: Iterable[Item]) -> list[Item]:
        """The items with their texts, read from parts where necessary."""

        async def one(item: Item) -> Item:
            if not item.parts:
                return item
            text = await self._text(place, item.key, item.rev, item.parts)
            return replace(item, body=Body(text, item.body.digest), parts=0)

        items = list(items)
        return await each(one, items) if any(item.parts for item in items) else items

    async def stash(self, place: ItemsPlace, rev: int, changes: Sequence[Step]) -> Stash:
        """Put pending changes that do not fit into the head into parts next to it."""
        await self.note_place(place)
        key = stash_key(nonce())
        return Stash(key, await self._put_text(place, key, rev, _encode_changes(changes)))

    async def with_info_beside(self, head: OpenedHead) -> OpenedHead:
        """The head, with a large info body moved into parts next to it."""
        record, info = head.record, head.record.info
        if info is None or len(info.body.text) <= self.store.inline_bytes // 4:
            return head
        name = nonce()
        await self.note_place(record.place)
        count = await self._put_text(record.place, info_key(name), record.rev, info.body.text.encode())
        record = replace(record, info=replace(info, body=Body("", info.body.digest)))
        return OpenedHead.sealed(record, replace(head.state, info=(name, record.rev, count)))

    # --- items

    async def apply(self, place: ItemsPlace, steps: Sequence[Step], *, has_parts: bool, fresh: bool = False) -> None:
        """Change items, and drop the parts of removed or replaced ones. See ``RecordStore.apply``."""

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

    # --- redo

    async def redo(self, head: OpenedHead) -> OpenedHead:
        """Apply the head's pending changes and settle it. Any process may do this, and several at once."""
        record, state = head.record, head.state
        if state.is_settled:
            return head
        if state.reserved:
            return await self._give_up(head)
        changes = await self.pending(head)
        if changes:
            await self.apply(record.place, changes, has_parts=state.has_parts)
        return await self.finish_redo(head)

    async def finish_redo(self, head: OpenedHead) -> OpenedHead:
        """Settle a head after its changes were applied, and remove its stash and its doomed epochs.

        The stash is removed last: until the settle is as durable as the head, a crash could undo it, and the head
        would need the stash again. No head needs a doomed epoch, so those go before the settle.
        """
        record, state = head.record, head.state
        await each(lambda epoch: self.remove(ItemsPlace(record.agent_id, epoch)), state.doomed)
        done = head.with_state(replace(state, pending=(), stash=None, doomed=()))
        await self.settle(done.record, lasting=state.stash is not None)
        if state.stash is not None:
            await self.store.drop_parts(record.place, stash_key(""), stash_key("~"), record.rev + 1)
        return done

    async def settle(self, record: HeadRecord, *, lasting: bool = False) -> None:
        """Write that a head is settled. If the agent was deleted meanwhile, remove the applied items again."""
        if not await self.store.settle(record, lasting=lasting):
            await self.remove_if_deleted(record)

    async def remove_if_deleted(self, record: HeadRecord) -> None:
        """Remove the items at the place of a head, if the agent was deleted since.

        A newer head at another epoch proves the delete. An older head proves nothing, as the read may be late.
        """
        now = await self.store.heads([record.agent_id])
        if any(head.rev > record.rev and head.epoch != record.epoch for head in now):
            await self.remove(record.place)

    async def remove(self, place: ItemsPlace) -> None:
        """Remove everything at a place that no head names any more. The note lets a sweep remove late arrivals."""
        await self.note_place(place)
        await self.store.drop(place)

    async def note_place(self, place: ItemsPlace) -> None:
        """Note a place for a later sweep, before a record without a head can come to be there."""
        now = time.monotonic()
        noted = self._noted.get(place)
        if noted is not None and now - noted < LEFT_SECONDS / 2:
            return
        await self.store.note(Note(place, wall_clock()))
        self._noted[place] = now

    @staticmethod
    def overdue(times: int = 1) -> int:
        """The time of notes that are due just now, or of those *times* as old."""
        return wall_clock() - int(times * LEFT_SECONDS * 1000)

    async def _give_up(self, head: OpenedHead) -> OpenedHead:
        """Abandon a fork whose writer has stopped. A writer that is alive after all sees a new head and starts over."""
        record, state = head.record, head.state
        given_up = replace(state, reserved=False, doomed=(*state.doomed, record.epoch))
        after = head.next(given_up, epoch=new_epoch(), updated_at=0)
        if not await self.swap(head, after):
            raise MovedError
        return await self.finish_redo(after)

    # --- readers that writers have to wait for

    @asynccontextmanager
    async def frozen(self, head: OpenedHead) -> AsyncGenerator[OpenedHead]:
        """Ask writers to wait while this head is read, and renew the request until then: see :meth:`thawed`.

        Raises:
            MovedError: another writer was faster, or the answer was lost.
        """
        frozen, has_ended = await self.freeze(head), asyncio.Event()
        renewing = asyncio.get_running_loop().create_task(self._renew(frozen, has_ended))
        try:
            yield frozen
        finally:
            has_ended.set()
            await asyncio.wait([renewing])  # its last sign must not arrive after the one below
            await self._sign(frozen, None)

    async def _renew(self, head: OpenedHead, has_ended: asyncio.Event) -> None:
        while not await waited_for(has_ended, _FROZEN_SECONDS / 4):
            if not await self._sign(head, nonce()):
                return

    async def _sign(self, head: OpenedHead, sign: str | None) -> bool:
        """Change a reader's sign, or take it back with None. False if another writer swapped the head."""
        try:
            return await self.store.settle(head.with_state(replace(head.state, frozen=sign)).record)
        except StorageError:
            return True  # writers go on by themselves when they see no new sign

    async def thawed(self, agent_id: str, until: float) -> OpenedHead | None:
        """The agent's head for a writer, once no reader asks writers to wait.

        The writer stops waiting at *until*, and for a reader that has given no new sign for a second, as it may be
        dead. So a slow reader of a long list gets its turn, and a writer still ends within its deadline.
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

    async def freeze(self, head: OpenedHead) -> OpenedHead:
        head = await self.redo(head)
        frozen = head.next(replace(head.state, frozen=nonce()))
        try:
            is_frozen = await self.swap(head, frozen)
        except OutcomeUnknownError as exc:
            raise MovedError from exc
        if not is_frozen:
            raise MovedError
        return frozen
