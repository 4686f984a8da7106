"""``rekey``: puts the records of an encrypted store under the first key of its ring, agent after agent.

Each record is looked at as it is stored, and written again if it is under another key, or plain. A page that others
change meanwhile is read again. So a rekey that was interrupted is simply begun again, and passes over the records that
are done.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from functools import partial
from hashlib import blake2b
from typing import Final, NamedTuple

from msgspec.structs import replace

from kode_core.batch import Applied, Batch, Doc, DocKind, DocWrite, EventRange, ListKind, ListWrite, Row
from kode_core.codec import Body, Unreadable
from kode_core.engine import Engine, Progress, checks_demands, docs_in, keeps_documents
from kode_core.errors import (
    ConfigurationError,
    CorruptRecordError,
    InvalidArgumentError,
    KodeError,
    StoreBusyError,
    UnsupportedError,
)
from kode_core.large import decode_in_slices
from kode_core.layers.encryption import Encryption
from kode_core.model import AgentInfo
from kode_core.pace import Pace
from kode_core.protocols import ExtendedStore
from kode_core.report import RekeyResult
from kode_core.rewriting import EventBody, rewrite_events, rewrites_events
from kode_core.store.documents import WITH_CORE_KEYS, DocPages, name_of
from kode_core.store.facade import EngineStore
from kode_core.store.layered import layers_of
from kode_core.store.prune_mark import PRUNE_MARK
from kode_core.store.rows import LISTS, info_of
from kode_core.store.steps import checked_flag, checked_progress
from kode_core.store.tags import tagged
from kode_core.store.versions import unchanged

__all__ = ["rekey"]

log = logging.getLogger("kode_core")

_PAGE: Final = 100
_AGENTS: Final = 200
_ATTEMPTS: Final = 50
_PASSES: Final = 10
_NAMED: Final = 100
_OWN_NOTE: Final = "encryption"


async def rekey(store: ExtendedStore, *, dry_run: bool = False, progress: Progress | None = None) -> RekeyResult:
    """Put everything that an encrypted store has under the first key of its ring, while others read and write.

    Records that are stored as plain text are encrypted if the store is open with ``plaintext="read"``. It can be
    interrupted at any moment and begun again. Each write moves ``updated_at`` of its agent by a millisecond and changes
    the agent's version, as any write does. All programs must have the new key before it begins. If the store has an
    index of texts, a warning is logged first: the index may keep parts of messages from before they were encrypted.

    Args:
        store: an open store with the layer of encryption.
        dry_run: only count the records that are under other keys, or plain.
        progress: called after each agent with the number of agents so far in this pass, and None.

    Raises:
        ConfigurationError: the store is not encrypted.
        UnsupportedError: the store is the view of a tenant.
        StoreBusyError: others kept changing an agent, or writing under other keys; the records that are done stay so.
    """
    checked_flag(dry_run, "dry_run")
    told = checked_progress(progress)
    if not isinstance(store, EngineStore):
        raise InvalidArgumentError(f"rekey takes an open store over an engine, got {type(store).__name__}")
    if store._context.tenant is not None:
        raise UnsupportedError("rekey changes the records of all tenants: open the store without a tenant")
    layers = await layers_of(store)
    engine, layer = layers[0], next((one for one in layers if isinstance(one, Encryption)), None)
    if layer is None:
        raise ConfigurationError("this store is not encrypted: open it with its keys to put it under another one")
    await _warn_of_texts(engine)
    if not dry_run:
        await layer.rewrap()
    work = _Rekey(engine, layer, is_dry=dry_run)
    for _ in range(_PASSES):
        if not await work.one_pass(told) or dry_run:
            return work.result()
    raise StoreBusyError(
        f"others kept writing records under other keys, in {_PASSES} passes: give all programs the first key, in front"
        " of the others, and begin again"
    )


async def _warn_of_texts(engine: Engine) -> None:
    """Say that an index of texts is not what this is for: it has parts of plain messages, and none of others."""
    totals = await engine.totals()
    if totals.texts_waiting is not None or totals.texts_hidden:
        log.warning(
            "the store has an index of texts, which may keep readable parts of messages from before they were"
            " encrypted, and finds none that are; kode text-index drop removes it"
        )


class _Range(NamedTuple):
    """Agents whose ids follow each other: the last id, the number, and what is left of them by its key."""

    end: str
    agents: int
    left: Counter[str]


class _Rekey:
    """Passes over the agents, and their counts.

    A fork takes the rows of its parent along as they are stored, and its id may be one that was passed already. So each
    pass goes over the ids again, and visits the agents of those ranges of ids that were not there in the pass before.
    An agent that was visited needs no second look: all programs write under the first key.

    *engine* is the outermost one, which reads and writes records as the store does.
    """

    def __init__(self, engine: Engine, layer: Encryption, *, is_dry: bool) -> None:
        self._engine = engine
        self._layer = layer
        self._raw = layer.inner
        self._is_dry = is_dry
        self._is_first = True
        self._ranges: dict[bytes, _Range] = {}
        self._records = self._plain = 0
        self._left: Counter[str] = Counter()
        self._unreadable: dict[str, None] = {}

    def result(self) -> RekeyResult:
        """The counts of all passes."""
        left: Counter[str] = Counter()
        for one in self._ranges.values():
            left.update(one.left)
        return RekeyResult(
            agents=sum(one.agents for one in self._ranges.values()),
            records=self._records,
            plain=self._plain,
            left=dict(sorted(left.items())),
            unreadable=tuple(self._unreadable),
        )

    async def one_pass(self, told: Progress) -> int:
        """Put all agents that were not there in the last pass under the key; returns the number of records."""
        known, self._ranges = self._ranges, {}
        before, visited = self._records, 0
        async for ids in self._pages([one.end for one in known.values()]):
            key = blake2b("\0".join(ids).encode(), digest_size=16).digest()
            found = known.get(key)
            if found is None:
                self._left = Counter()
                for agent_id in ids:
                    await self._agent(agent_id)
                    visited += 1
                    told(visited, None)
                found = _Range(ids[-1], len(ids), self._left)
            self._ranges[key] = found
        self._is_first = False
        return self._records - before

    async def _pages(self, ends: Sequence[str]) -> AsyncIterator[Sequence[str]]:
        """Pages of all ids, none of which goes beyond one of the *ends*."""
        after: str | None = None
        for end in (*ends, None):
            while found := await self._engine.stored_ids(after, _AGENTS):
                ids = [one for one in found if end is None or one <= end]
                if ids:
                    yield ids
                    after = ids[-1]
                if len(ids) < len(found) or after == end:
                    break
            after = after if end is None else end

    async def _agent(self, agent_id: str) -> None:
        before = self._records
        await self._info(agent_id)
        for kind in ListKind:
            await self._list(agent_id, kind)
        for doc_kind in DocKind:
            if doc_kind is not DocKind.DOCUMENTS:
                await self._docs(agent_id, doc_kind)
        if keeps_documents(self._raw):
            async for doc in self._documents(agent_id):
                await self._doc(agent_id, DocKind.DOCUMENTS, doc)
        await self._events(agent_id)
        may_have_old = self._is_first or self._records > before
        if may_have_old and not self._is_dry and rewrites_events(self._engine):
            await rewrite_events(self._engine, agent_id, ())  # replaced texts are removed, also after a crash

    def _note(self, key_id: str, number: int = 1) -> None:
        self._records += number
        self._plain += 0 if key_id else number
        if self._is_dry:
            self._left[key_id or "plain"] += number

    def _skip(self, name: str, key_id: str) -> None:
        self._left[key_id or "plain"] += 1
        if len(self._unreadable) < _NAMED:
            self._unreadable[name] = None

    async def _commit(self, batch: Batch) -> bool:
        (outcome,) = await self._engine.commit([batch])
        if isinstance(outcome, KodeError):
            raise outcome
        return isinstance(outcome, Applied)

    def _batch(self, agent_id: str) -> Batch:
        return Batch(agent_id=agent_id, op_id=f"rekey-{secrets.token_hex(16)}", now=0)

    # --- info

    async def _info(self, agent_id: str) -> None:
        async for _ in _attempts(agent_id):
            stored = await self._raw.summary(agent_id)
            key_id = None if stored is None or stored.info is None else await self._layer.key_of(stored.info.body)
            if key_id is None:
                return
            if self._is_dry:
                return self._note(key_id)
            summary = await self._engine.summary(agent_id)
            if summary is None or summary.info is None:
                return
            body, name = summary.info.body, f"info of agent {agent_id!r}"
            try:
                made = await info_of(agent_id, await decode_in_slices(AgentInfo, body, name, Pace()))
            except (CorruptRecordError, InvalidArgumentError):
                return self._skip(name, key_id)
            if await self._commit(replace(self._batch(agent_id), info=replace(made, body=body), **unchanged(summary))):
                return self._note(key_id)
        return

    # --- lists

    async def _list(self, agent_id: str, kind: ListKind) -> None:
        start = 0
        while True:
            count = 0
            async for _ in _attempts(agent_id):
                stored = await self._raw.rows_at(agent_id, kind, start, _PAGE)
                count = len(stored.rows)
                keys = [await self._layer.key_of(body) for body, _ in stored.rows]
                due = {i: key_id for i, key_id in enumerate(keys) if key_id is not None}
                if not due or self._is_dry:
                    for key_id in due.values():
                        self._note(key_id)
                    break
                if await self._put(agent_id, kind, start, count, stored.version, due):
                    break
            if count < _PAGE:
                return
            start += count

    async def _put(
        self, agent_id: str, kind: ListKind, start: int, count: int, version: int, due: dict[int, str]
    ) -> bool:
        """Write the rows that are due; False if others changed the list."""
        found, codec, pace = await self._engine.rows_at(agent_id, kind, start, count), LISTS[kind], Pace()
        if found.version != version or len(found.rows) != count:
            return False
        put: list[tuple[int, Row]] = []
        skipped: dict[int, str] = {}
        for i in due:
            body, created_at = found.rows[i]
            name = f"{'message' if kind is ListKind.MESSAGES else 'tool call record'} {start + i} of agent {agent_id!r}"
            try:
                record = await decode_in_slices(codec.cls, body, name, pace)
                index = (await codec.row(start + i, record, created_at, pace)).row.index
            except (CorruptRecordError, InvalidArgumentError):
                skipped[i] = name
                continue
            put.append((start + i, Row(body, created_at, index)))
        if put:
            write = ListWrite(expect=version, put=tuple(put))
            if not await self._commit(replace(self._batch(agent_id), **{kind.value: write})):
                return False
        for i, key_id in due.items():
            if i in skipped:
                self._skip(skipped[i], key_id)
            else:
                self._note(key_id)
        return True

    # --- documents

    async def _docs(self, agent_id: str, kind: DocKind) -> None:
        for doc in await self._raw.docs(agent_id, kind):
            is_layers = kind is DocKind.LAYER
            if is_layers and doc.key not in (_OWN_NOTE, PRUNE_MARK):
                continue  # of a layer below the encryption
            if is_layers and doc.key == _OWN_NOTE:
                await self._own_note(agent_id, doc)
            else:
                await self._doc(agent_id, kind, doc)

    async def _own_note(self, agent_id: str, doc: Doc) -> None:
        key_id = await self._layer.key_of(doc.body)
        if key_id:
            if not self._is_dry:
                await self._layer.reseal_note(agent_id)
            self._note(key_id)

    async def _documents(self, agent_id: str) -> AsyncIterator[Doc]:
        pages = DocPages(partial(docs_in, self._raw, agent_id), WITH_CORE_KEYS)
        while found := await pages.next():
            for doc in found:
                yield doc

    async def _doc(self, agent_id: str, kind: DocKind, stored: Doc) -> None:
        async for attempt in _attempts(agent_id):
            if attempt:
                again = await self._raw.docs(agent_id, kind, stored.key)
                if not again:
                    return
                stored = again[0]
            key_id = await self._layer.key_of(stored.body)
            if key_id is None:
                return
            if self._is_dry:
                return self._note(key_id)
            name = name_of(agent_id, stored.key) if kind is DocKind.DOCUMENTS else f"{kind.value} of agent {agent_id!r}"
            found = await self._engine.docs(agent_id, kind, stored.key)
            if not found:
                return
            try:
                if isinstance(found[0].body, Unreadable):
                    return self._skip(name, key_id)
                doc = await tagged(name, found[0], Pace()) if kind is DocKind.DOCUMENTS else found[0]
            except CorruptRecordError:
                return self._skip(name, key_id)
            expect = Body("", doc.body.digest) if checks_demands(self._engine) else None
            write = DocWrite(kind, doc.key, doc, expect)
            if await self._commit(replace(self._batch(agent_id), docs=(write,))):
                return self._note(key_id)
        return

    # --- events

    async def _events(self, agent_id: str) -> None:
        after = 0
        while True:
            span = EventRange(order="offset", after=(0, after), limit=_PAGE)
            stored = await self._raw.events(agent_id, span)
            if not stored:
                return
            after = stored[-1].offset
            keys = [(row, await self._layer.key_of(row.body)) for row in stored]
            due = {row.offset: (row, key_id) for row, key_id in keys if key_id is not None}
            if self._is_dry or (due and not rewrites_events(self._engine)):
                for _, key_id in due.values():
                    if self._is_dry:
                        self._note(key_id)
                    else:
                        self._left[key_id or "plain"] += 1
            elif due:
                changes: list[EventBody] = []
                for row in await self._engine.events(agent_id, span):
                    if row.offset not in due:
                        continue
                    old, key_id = due[row.offset]
                    if isinstance(row.body, Unreadable):
                        self._skip(f"event at offset {row.offset} of agent {agent_id!r}", key_id)
                        continue
                    changes.append(EventBody(row.offset, row.seq, old.body.digest, row.body))
                    self._note(key_id)
                if changes:
                    await rewrite_events(self._engine, agent_id, changes)


async def _attempts(agent_id: str) -> AsyncIterator[int]:
    """The numbers of attempts, with a pause between two; the caller leaves the loop when one succeeded."""
    for attempt in range(_ATTEMPTS):
        yield attempt
        await asyncio.sleep(random.uniform(0, 0.02 * (attempt + 1)))  # noqa: S311
    raise StoreBusyError(f"agent {agent_id!r} kept changing while it was put under another key; begin again")
