"""Convert batches to the arguments of a write statement, and its answer to outcomes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from msgspec.structs import replace

from kode_core.batch import (
    Applied,
    Batch,
    DocKind,
    ListHead,
    ListKind,
    ListWrite,
    MessageIndex,
    Refused,
    Row,
    first_version,
)
from kode_postgres.parts import LISTS, PUTS, Part
from kode_postgres.schema import KEPT_OPS, OF_AN_AGENT, Tables
from kode_postgres.statements import LOCK_WAIT, NOW, WriteStatement, digest_of, has_more, info_of, sync

__all__ = [
    "HeadAfterRefusal",
    "Statements",
    "Stored",
    "applied",
    "doc_text",
    "has_demands",
    "is_unseen",
    "key_hash",
    "needs_lock",
    "offsets_of",
    "op_number",
    "unconditional",
]

_NO_PARTS: Final = Part(0)


def op_number(op_id: str) -> int:
    """An operation's id as the 64-bit number that a head keeps."""
    return int.from_bytes(blake2b(op_id.encode(), digest_size=8).digest(), "big", signed=True)


def key_hash(key: str) -> bytes:
    """The hash of a document's key for the index, which cannot hold long values."""
    return blake2b(key.encode(), digest_size=16).digest()


def doc_text(kind: DocKind, text: str) -> str:
    """A document's body as JSON; the text of a layer's document is plain."""
    return json.dumps(text) if kind == DocKind.LAYER else text


def needs_lock(batch: Batch) -> bool:
    """True if rows have to be removed that a statement might not see if it began before it got the lock."""
    return (
        batch.delete
        or batch.drop_events is not None
        or any(w.expect is None and w.length is not None for w in batch.lists.values())
    )


def is_unseen(batch: Batch) -> bool:
    """True if messages are appended to others whose times have to be looked up (MSG-4)."""
    return batch.messages is not None and batch.messages.is_blind


def has_demands(batch: Batch) -> bool:
    """True if the batch demands something of rows that the head does not show."""
    return bool(batch.demanded_docs) or batch.expect_info is not None or batch.expect_nothing


def unconditional(batch: Batch) -> Batch:
    """The batch without the preconditions checked under the lock.

    Unless it deletes, versions, age, documents and contents are demanded still: an agent that had no head to lock may
    have one by now.
    """
    if not batch.delete:
        return replace(batch, fence=None)

    def free(write: ListWrite | None) -> ListWrite | None:
        return None if write is None else replace(write, expect=None)

    return replace(
        batch,
        fence=None,
        expect_updated_at=None,
        expect_lists=None,
        expect_info=None,
        expect_nothing=False,
        delete=False,
        messages=free(batch.messages),
        tool_calls=free(batch.tool_calls),
        docs=tuple(replace(write, expect=None) for write in batch.docs),
    )


def parts_of(batches: Sequence[Batch]) -> Part:
    """The parts that the batches need."""
    parts = Part.SEVERAL if len(batches) > 1 else _NO_PARTS
    for batch in batches:
        for part, has in (
            (Part.FENCE, batch.fence is not None),
            (Part.AGE, batch.expect_updated_at is not None),
            (Part.TOUCH, batch.is_touching),
            (Part.INFO, batch.info is not None),
            (Part.DOCS, bool(batch.docs)),
            (Part.TERMS, any(write.kind is DocKind.DOCUMENTS for write in batch.docs)),
            (Part.EVENTS, bool(batch.events)),
            (Part.UNSEEN, is_unseen(batch)),
            (Part.DEMANDS, has_demands(batch)),
        ):
            if has:
                parts |= part
        for kind, write in batch.lists.items():
            parts |= LISTS[kind]
            if write.put or write.length is not None:
                parts |= PUTS[LISTS[kind]]
    return parts


class Statements:
    """The write statements of one store's tables, created on first use."""

    def __init__(self, tables: Tables, *, durable: bool) -> None:
        self._tables = tables
        self._durable = durable
        self._made: dict[Part, WriteStatement] = {}
        lists = "message_version, message_count, tool_call_version, tool_call_count"
        self.heads = (
            f"SELECT agent_id, {lists}, updated_at, ops, op_times[cardinality(op_times)], {NOW}"
            f" FROM {tables.agents} WHERE agent_id = ANY ($1::text[])"
        )
        self.lock_heads = f"{self.heads} ORDER BY agent_id FOR UPDATE SKIP LOCKED"
        self.lock_head = f"{self.heads} FOR UPDATE"
        held = "l.owner = i.owner AND l.token = i.token AND l.expires > clock_timestamp()"
        self.leases = (
            "SELECT i.agent_id, i.owner, i.token FROM unnest($1::text[], $2::text[], $3::bigint[]) i (agent_id, owner,"
            f" token) JOIN {tables.leases} l ON l.agent_id = i.agent_id AND {held}"
        )
        self.lock_leases = f"{self.leases} ORDER BY l.agent_id FOR SHARE OF l"
        self.offsets = (
            f'SELECT e.seq, e.digest, e."offset" FROM {tables.events} e JOIN unnest($2::bigint[], $3::bytea[])'
            " i (seq, digest) ON (e.seq, e.digest) = (i.seq, i.digest) WHERE e.agent_id = $1"
        )
        named = "unnest($1::text[], $2::bigint[])"
        self.kept = (
            f"SELECT e.agent_id FROM {named} i (agent_id, keep) JOIN {tables.events} e"
            ' ON e.agent_id = i.agent_id AND e."offset" = i.keep'
        )
        self.drop = (
            f"DELETE FROM {tables.events} e USING unnest($1::text[], $2::bigint[], $3::bigint[]) i"
            ' (agent_id, keep, before) WHERE e.agent_id = i.agent_id AND e."offset" < i.before'
            ' AND e."offset" <> i.keep'
        )
        self.digests = (
            f"SELECT i.n, i.kind, i.key, {digest_of(tables, 'i.agent_id', 'i')}"
            " FROM unnest($1::bigint[], $2::text[], $3::text[], $4::bytea[], $5::text[])"
            " i (n, agent_id, kind, key_hash, key)"
        )
        self.contents = (
            f"SELECT i.n, {info_of(tables, 'i.agent_id')}, {has_more(tables, 'i.agent_id')}"
            " FROM unnest($1::bigint[], $2::text[]) i (n, agent_id)"
        )
        self.empty = [f"DELETE FROM {getattr(tables, name)} WHERE agent_id = ANY ($1::text[])" for name in OF_AN_AGENT]
        self.bury = (
            f"UPDATE {tables.agents} a SET message_version = 0, message_count = 0, tool_call_version = 0,"
            " tool_call_count = 0, updated_at = 0, template_id = NULL, created_at = NULL,"
            f" ops = CASE WHEN i.op IS NULL THEN a.ops ELSE (array_prepend(i.op, a.ops))[1:{KEPT_OPS}] END,"
            " op_times = CASE WHEN i.op IS NULL THEN a.op_times"
            f" ELSE (array_prepend({NOW}, a.op_times))[1:{KEPT_OPS}] END"
            " FROM unnest($1::text[], $2::bigint[]) i (agent_id, op) WHERE a.agent_id = i.agent_id"
        )
        self.begin = f"SELECT {sync(durable)}, set_config('lock_timeout', '{LOCK_WAIT}', true), {NOW}"
        # It writes, so that its commit waits for the disks that the earlier commits may not have waited for.
        self.confirm = (
            f"UPDATE {tables.agents} SET last_offset = last_offset + $2::bigint WHERE agent_id = $1"
            f" RETURNING last_offset, {sync(durable)}"
        )
        is_known = "CASE WHEN $2::bigint = ANY (a.ops) THEN"
        # Make an operation that may have been sent count as applied: if it was not applied, it never will be. It writes
        # in any case, for the same reason.
        self.never = (
            f"INSERT INTO {tables.agents} AS a (agent_id, message_version, message_count, tool_call_version,"
            " tool_call_count, updated_at, last_offset, ops, op_times)"
            f" VALUES ($1, 0, 0, 0, 0, 0, 0, ARRAY[$2::bigint], ARRAY[{NOW}])"
            " ON CONFLICT (agent_id) DO UPDATE SET"
            f" ops = {is_known} a.ops ELSE (array_prepend($2::bigint, a.ops))[1:{KEPT_OPS}] END,"
            f" op_times = {is_known} a.op_times ELSE (array_prepend({NOW}, a.op_times))[1:{KEPT_OPS}] END"
            f" RETURNING {sync(durable)}"
        )

    def write(self, batches: Sequence[Batch], since: int, until: int) -> tuple[str, list[Any]]:
        """The statement that applies the batches, each for a different agent, and its arguments.

        *since* and *until* are as in ``Session``.
        """
        parts = parts_of(batches)
        statement = self._made.get(parts)
        if statement is None:
            statement = self._made[parts] = WriteStatement(self._tables, parts, durable=self._durable)
        inputs = zip(*(_input(batch, parts, since) for batch in batches), strict=True)
        arguments: list[Any] = [list(column) for column in inputs]
        for part, columns in statement.rows.items():
            rows = [row for n, batch in enumerate(batches, 1) for row in _ROWS[part](n, batch)]
            arguments += map(list, zip(*rows, strict=True)) if rows else [[] for _ in columns]
        return statement.text, [*arguments, until]


def _input(batch: Batch, parts: Part, since: int) -> tuple[Any, ...]:
    """The batch's values for the columns of ``statements.INPUT``."""
    values: list[Any] = [batch.agent_id, op_number(batch.op_id), since]
    if Part.FENCE in parts:
        values += (None, None) if batch.fence is None else (batch.fence.owner, batch.fence.token)
    if Part.AGE in parts:
        values += (batch.expect_updated_at, *(batch.expect_lists or (None, None)))
    if Part.TOUCH in parts:
        values.append(batch.now if batch.is_touching else None)
    for kind, part in LISTS.items():
        if part in parts:
            values += _list_input(batch.lists.get(kind))
    if Part.INFO in parts:
        info = batch.info
        values += (False, None, None) if info is None else (True, info.template_id, info.created_at)
    if Part.EVENTS in parts:
        values.append(len(batch.events))
    if Part.UNSEEN in parts:
        values.append(min(batch.messages.times()) if batch.messages is not None and is_unseen(batch) else None)
    if Part.DEMANDS in parts:
        digest = None if batch.expect_info is None else batch.expect_info.digest
        values += (has_demands(batch), digest, batch.expect_nothing)
    return tuple(values)


def _list_input(write: ListWrite | None) -> tuple[Any, ...]:
    if write is None:
        return (None, None, None, None, None, None)
    least = write.put[-1][0] + 1 if write.put else 0
    return (first_version(), write.step, write.expect, write.length, least, len(write.append))


# --- Rows -------------------------------------------------------------------------------------------------------------


def _list_rows(kind: ListKind, n: int, batch: Batch) -> Iterator[tuple[Any, ...]]:
    write = batch.lists.get(kind)
    if write is None:
        return
    for position, row in write.put:
        yield (n, position, *_row_values(row))
    for i, row in enumerate(write.append):
        yield (n, -1 - i, *_row_values(row))


def _row_values(row: Row) -> tuple[Any, ...]:
    index, body = row.index, row.body
    if isinstance(index, MessageIndex):
        types = "\n".join(("", *index.content_types, ""))
        return (row.created_at, index.role, types, body.digest, body.text)
    own = (index.call_id, index.tool_name, index.state, index.is_error, index.has_approval)
    return (row.created_at, *own, body.digest, body.text)


def _info_rows(n: int, batch: Batch) -> Iterator[tuple[Any, ...]]:
    if batch.info is not None:
        yield (n, json.dumps(dict(batch.info.metadata)), batch.info.body.digest, batch.info.body.text)


def _doc_rows(n: int, batch: Batch) -> Iterator[tuple[Any, ...]]:
    last = {(write.kind, write.key): write for write in batch.docs}
    for (kind, key), write in last.items():
        place = -1 if write.at is None else write.at
        name, doc = (n, place, kind.value, key_hash(key), key), write.doc
        if doc is None:
            yield (*name, 0, b"", None)
        else:
            yield (*name, doc.time, doc.body.digest, doc_text(kind, doc.body.text))


def _term_rows(n: int, batch: Batch) -> Iterator[tuple[Any, ...]]:
    last = {write.key: write.doc for write in batch.docs if write.kind is DocKind.DOCUMENTS}
    for key, doc in last.items():
        if doc is not None:
            yield from ((n, key, term, key_hash(key), doc.body.digest) for term in doc.terms)


def _event_rows(n: int, batch: Batch) -> Iterator[tuple[Any, ...]]:
    """Each event once, at its first position: one statement writes a row once."""
    first: dict[tuple[int, bytes], int] = {}
    for k, event in enumerate(batch.events, 1):
        if first.setdefault((event.seq, event.body.digest), k) == k:
            yield (n, k, event.seq, event.channel, event.body.digest, event.body.text)


def _demand_rows(n: int, batch: Batch) -> Iterator[tuple[Any, ...]]:
    for (kind, key), digest in batch.demanded_docs.items():
        yield (n, kind.value, key_hash(key), key, digest)


_ROWS: Final[dict[Part, Any]] = {
    Part.MESSAGES: lambda n, batch: _list_rows(ListKind.MESSAGES, n, batch),
    Part.TOOL_CALLS: lambda n, batch: _list_rows(ListKind.TOOL_CALLS, n, batch),
    Part.INFO: _info_rows,
    Part.DOCS: _doc_rows,
    Part.TERMS: _term_rows,
    Part.EVENTS: _event_rows,
    Part.DEMANDS: _demand_rows,
}


# --- Answers ----------------------------------------------------------------------------------------------------------


class Stored(NamedTuple):
    """The rows of an agent that a batch demands something of, as they were found after the batch was not applied.

    Attributes:
        digests: of those demanded documents that are stored, by kind and key.
        info: the digest of the info, empty without one; None if it is not demanded.
        has_more: whether documents, but for layers' and the core's, or events are stored.
    """

    digests: dict[tuple[DocKind, str], bytes]
    info: bytes | None = None
    has_more: bool = False


class HeadAfterRefusal:
    """A head as it was found after a batch was not applied."""

    def __init__(self, row: Sequence[Any] | None) -> None:
        self.is_there = row is not None
        found = row or ("", 0, 0, 0, 0, 0, (), None, 0)
        self.messages = ListHead(found[1], found[2])
        self.tool_calls = ListHead(found[3], found[4])
        self.updated_at: int = found[5]
        self.ops: Sequence[int] = found[6]
        self._oldest: int | None = found[7]
        self._now: int = found[8]

    def knows(self, op: int) -> bool:
        """True if the operation is among the last ones that were applied."""
        return op in self.ops

    def is_last(self, op: int) -> bool:
        """True if nothing was applied after the operation: otherwise the lists' versions may come from other writes."""
        return bool(self.ops) and self.ops[0] == op

    def may_have_forgotten(self, since: int) -> bool:
        """True if an operation from that time may have been applied and pushed out by later ones."""
        return len(self.ops) >= KEPT_OPS and self._oldest is not None and since <= self._oldest <= self._now

    def refusal(self, batch: Batch, stored: Stored, *, is_held: bool) -> Refused | None:
        """The precondition that fails, or None."""
        if batch.fence is not None and not is_held:
            return Refused("fence")
        heads = (self.updated_at, self.messages, self.tool_calls)
        return batch.refusal(*heads, stored.digests, info=stored.info, has_more=stored.has_more)


def applied(batch: Batch, row: Sequence[Any]) -> Applied:
    """The outcome of a batch, from its row of the answer."""
    lists, last = (ListHead(row[2], row[3]), ListHead(row[4], row[5])), row[6]
    if not batch.events:
        return Applied(*lists)
    old = {} if row[8] is None else dict(zip(zip(*row[8:11], strict=True), row[11], strict=True))
    return Applied(*lists, offsets_of(batch, last - len(batch.events) + 1, old))


def offsets_of(batch: Batch, first: int, old: Mapping[tuple[str, int, bytes], int]) -> tuple[int, ...]:
    """The offsets of the batch's events: the *old* offset of a repeated event, otherwise counted from *first*."""
    found: dict[tuple[str, int, bytes], int] = {}
    for offset, event in enumerate(batch.events, first):
        key = (batch.agent_id, event.seq, event.body.digest)
        found.setdefault(key, old.get(key, offset))
    return tuple(found[batch.agent_id, event.seq, event.body.digest] for event in batch.events)
