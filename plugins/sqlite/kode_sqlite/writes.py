"""The work inside a write transaction. Everything here runs in the writer's thread."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, LiteralString, NamedTuple

from kode_core.authoring.reading import MOST, check_head_numbers
from kode_core.batch import (
    CORE_KEYS,
    FORKED_DOCS,
    Applied,
    Batch,
    Child,
    Doc,
    DocKind,
    DocWrite,
    EventDrop,
    EventWrite,
    Info,
    ListHead,
    ListKind,
    ListWrite,
    Outcome,
    Refused,
    first_version,
    placed_docs,
)
from kode_core.codec import Body
from kode_core.errors import CorruptRecordError, KodeError
from kode_core.rewriting import EventBody
from kode_sqlite.entries import DOCS, EVENTS_BY_OFFSET, EVENTS_BY_SEQ, INFOS, misled
from kode_sqlite.errors import DRIVER_ERRORS, to_kode_error
from kode_sqlite.leases import Leases
from kode_sqlite.sound import RAW, TEXT, see, text_of
from kode_sqlite.statements import DOC_ROWS, EVENTS, KEYED_BY_AGENT, LISTS, OF_AN_AGENT, TERM_ROWS, row_values

__all__ = ["Transaction"]

_KEYS_AT_ONCE: Final = 500


class _ListsState(NamedTuple):
    """The lists, the age and the last operation of an agent."""

    messages: ListHead = ListHead()
    tool_calls: ListHead = ListHead()
    updated_at: int = 0
    last_op: str = ""


class Transaction:
    """A transaction that has begun; parts of it may fail without the others."""

    def __init__(self, db: sqlite3.Connection, path: str) -> None:
        self.leases = Leases(db)
        self._db = db
        self._path = path
        self._next_offset: int | None = None

    @property
    def db(self) -> sqlite3.Connection:
        """The connection of the transaction."""
        return self._db

    def part(self, call: Callable[[Transaction], Any]) -> Any:
        """Call with this transaction; if it raises, all its changes are undone."""
        self._db.execute("SAVEPOINT part")
        try:
            result = call(self)
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK TO part")
                self._db.execute("RELEASE part")
            raise
        self._db.execute("RELEASE part")
        return result

    def rewrite_events(self, agent_id: str, changes: Sequence[EventBody]) -> None:
        """Give events other bodies; one that has another digest than it is said to have stays as it is."""
        self._db.executemany(
            'UPDATE kode_events SET body = ?, digest = ? WHERE agent_id = ? AND "offset" = ? AND digest = ?',
            [(one.body.text, one.body.digest, agent_id, one.offset, one.expect) for one in changes],
        )

    # --- batches

    def commit(self, batches: Sequence[Batch], *, alone: bool = False) -> list[Outcome]:
        """Apply batches, each completely or not at all; *alone* means that nothing else is in the transaction."""
        if len(batches) == 1 and alone:
            return [self._apply(batches[0])]
        outcomes: list[Outcome] = []
        for only_events, group in itertools.groupby(batches, _is_events_only):
            some = list(group)
            outcomes.extend(self._append_all(some) if only_events else map(self._apply_apart, some))
        return outcomes

    def _apply_apart(self, batch: Batch) -> Outcome:
        """Apply; a batch that fails does not affect the others."""
        try:
            outcome: Outcome = self.part(lambda _: self._apply(batch))
        except (*DRIVER_ERRORS, KodeError) as exc:
            if not self._db.in_transaction:  # SQLite rolled the whole transaction back
                raise
            return exc if isinstance(exc, KodeError) else to_kode_error(exc, self._path)
        return outcome

    def _apply(self, batch: Batch) -> Applied | Refused:
        head = self._head_to_delete(batch) if batch.delete else self._head(batch.agent_id)
        if head.last_op == batch.op_id:
            return Applied(head.messages, head.tool_calls, self._append(batch.agent_id, batch.events))
        refusal = self._refusal(batch, head)
        if refusal is not None:
            return refusal
        if batch.delete:
            self._delete(batch.agent_id)
            head = _ListsState()
        after = head._replace(
            messages=self._write_list(batch.agent_id, ListKind.MESSAGES, batch.messages, head.messages),
            tool_calls=self._write_list(batch.agent_id, ListKind.TOOL_CALLS, batch.tool_calls, head.tool_calls),
            updated_at=max(head.updated_at + 1, batch.now),
            last_op=batch.op_id,
        )
        if batch.is_touching:
            self._write_head(batch.agent_id, after)
        if batch.info is not None:
            self._write_info(batch.agent_id, batch.info)
        docs = batch.docs if batch.messages is None else placed_docs(batch.docs, head.messages.kept(batch.messages))
        self._write_docs(batch.agent_id, docs)
        if batch.drop_events is not None:
            self._drop_events(batch.agent_id, batch.drop_events)
        offsets = self._append(batch.agent_id, batch.events)
        return Applied(after.messages, after.tool_calls, offsets)

    def _refusal(self, batch: Batch, head: _ListsState) -> Refused | None:
        if batch.fence is not None and not self.leases.holds(batch.agent_id, batch.fence):
            return Refused("fence")
        if batch.drop_events is not None and not self._has_event(batch.agent_id, batch.drop_events.keep):
            return Refused("events")
        digests, info = self._digests(batch), None
        if batch.expect_info is not None or batch.expect_nothing:
            row = self._db.execute("SELECT digest FROM kode_infos WHERE agent_id = ?", (batch.agent_id,)).fetchone()
            info = b"" if row is None else row[0]
        has_more = batch.expect_nothing and self._has_more(batch.agent_id)
        heads = (head.updated_at, head.messages, head.tool_calls)
        return batch.refusal(*heads, digests, info=info, has_more=has_more)

    def _has_more(self, agent_id: str) -> bool:
        """Whether the agent has documents, but for layers' and the core's, or events."""
        others = [kind.value for kind in DocKind if kind not in (DocKind.LAYER, DocKind.DOCUMENTS)]
        marks: LiteralString = ", ".join(["?"] * len(others))
        (found,) = self._db.execute(
            f"SELECT EXISTS (SELECT 1 FROM kode_docs WHERE agent_id = ? AND kind IN ({marks}))"
            " OR EXISTS (SELECT 1 FROM kode_docs WHERE agent_id = ? AND kind = ? AND key < ?)"
            " OR EXISTS (SELECT 1 FROM kode_events WHERE agent_id = ?)",
            (agent_id, *others, agent_id, DocKind.DOCUMENTS.value, CORE_KEYS, agent_id),
        ).fetchone()
        return bool(found)

    def _delete(self, agent_id: str) -> None:
        for table in KEYED_BY_AGENT:
            self._db.execute(f"DELETE FROM {table} WHERE agent_id = ?", (agent_id,))
        for entries in OF_AN_AGENT:
            entries.remove(self._db, "i.agent_id = ?", (agent_id,), f"agent {agent_id!r}")

    # --- head and info

    def _head(self, agent_id: str) -> _ListsState:
        row = self._db.execute(
            "SELECT message_version, message_count, tool_call_version, tool_call_count, updated_at,"
            " CAST(last_op AS BLOB)"
            " FROM kode_agents WHERE agent_id = ?",
            (agent_id,),
        ).fetchone()
        if row is None:
            return _ListsState()
        check_head_numbers(row[:5], agent_id)
        return _ListsState(ListHead(row[0], row[1]), ListHead(row[2], row[3]), row[4], text_of(row[5]) or "")

    def _head_to_delete(self, batch: Batch) -> _ListsState:
        """The head; an unreadable head can be deleted, unless the delete depends on its contents."""
        try:
            return self._head(batch.agent_id)
        except CorruptRecordError:
            if batch.expect_updated_at is not None:
                raise
            return _ListsState()

    def _write_head(self, agent_id: str, head: _ListsState) -> None:
        self._db.execute(
            "INSERT INTO kode_agents (agent_id, message_version, message_count, tool_call_version, tool_call_count,"
            " updated_at, last_op) VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (agent_id) DO UPDATE SET"
            " message_version = excluded.message_version, message_count = excluded.message_count,"
            " tool_call_version = excluded.tool_call_version, tool_call_count = excluded.tool_call_count,"
            " updated_at = excluded.updated_at, last_op = excluded.last_op",
            (
                agent_id,
                head.messages.version,
                head.messages.count,
                head.tool_calls.version,
                head.tool_calls.count,
                head.updated_at,
                head.last_op,
            ),
        )

    def _write_info(self, agent_id: str, info: Info) -> None:
        self._db.execute(
            "UPDATE kode_agents SET template_id = ?, created_at = ? WHERE agent_id = ?"
            " AND (template_id IS NOT ? OR created_at IS NOT ?)",
            (info.template_id, info.created_at, agent_id, info.template_id, info.created_at),
        )
        written = self._db.execute(
            "INSERT INTO kode_infos (agent_id, body, digest) VALUES (?, ?, ?)"
            f" ON CONFLICT (agent_id) DO UPDATE SET body = excluded.body, digest = excluded.digest {INFOS.kept}",
            (agent_id, *info.body),
        )
        if not written.rowcount:
            raise misled(f"the info of agent {agent_id!r}")
        stored = "SELECT CAST(key AS BLOB), CAST(value AS BLOB) FROM kode_metadata WHERE agent_id = ?"
        old = {text_of(key): text_of(value) for key, value in self._db.execute(stored, (agent_id,))}
        new = dict(info.metadata)
        if None in old:  # the metadata is damaged: the info's replaces it
            self._db.execute("DELETE FROM kode_metadata WHERE agent_id = ?", (agent_id,))
            old = {}
        if old == new:
            return
        for key in old.keys() - new.keys():
            self._db.execute("DELETE FROM kode_metadata WHERE agent_id = ? AND key = ?", (agent_id, key))
        for key, value in new.items():
            if old.get(key) != value:
                self._db.execute(
                    "INSERT INTO kode_metadata (agent_id, key, value) VALUES (?, ?, ?)"
                    " ON CONFLICT (agent_id, key) DO UPDATE SET value = excluded.value",
                    (agent_id, key, value),
                )

    # --- lists and documents

    def _write_list(self, agent_id: str, kind: ListKind, write: ListWrite | None, head: ListHead) -> ListHead:
        if write is None:
            return head
        statements, name = LISTS[kind], f"the {kind.value.replace('_', ' ')} of agent {agent_id!r}"
        if write.length is not None and write.length < head.count:
            beyond = (agent_id, write.length)
            statements.entries.remove(self._db, "i.agent_id = ? AND i.position >= ?", beyond, name)
        if kind is ListKind.MESSAGES and write.is_blind:
            write = self._in_order(agent_id, write)
        put = statements.put.run(self._db, [row_values(agent_id, position, row) for position, row in write.put])
        if put < len(write.put):
            raise misled(name)
        appended = enumerate(write.append, head.kept(write))
        try:
            statements.append.run(self._db, [row_values(agent_id, position, row) for position, row in appended])
        except sqlite3.IntegrityError as exc:
            raise CorruptRecordError(
                name,
                f"the head counts {head.count}, and there are more; nothing was written",
            ) from exc
        return head.after(write)

    def _in_order(self, agent_id: str, write: ListWrite) -> ListWrite:
        """The write, with no message older than the messages that stay before it (MSG-4)."""
        (latest,) = self._db.execute(  # a damaged time, which may not be a number, is ignored
            "SELECT CAST(max(created_at) AS INTEGER) FROM kode_messages WHERE agent_id = ? AND created_at < ?",
            (agent_id, MOST),
        ).fetchone()
        return write if latest is None else write.not_before(latest)

    def _digests(self, batch: Batch) -> dict[tuple[DocKind, str], bytes]:
        """The digests of the documents that the batch demands; a missing document has none."""
        found: dict[tuple[DocKind, str], bytes] = {}
        for kind, names in itertools.groupby(sorted(batch.demanded_docs), lambda name: name[0]):
            for where, args in _docs_with(batch.agent_id, kind, [key for _, key in names]):
                rows = self._db.execute(f"SELECT i.key, {DOCS.own('digest')} FROM {DOCS.source} WHERE {where}", args)
                for row in rows.fetchall():
                    see(row, (TEXT, RAW), f"{kind.value} {row[0]!r:.80} of agent {batch.agent_id!r}")
                    found[kind, row[0]] = row[1]
        return found

    def _write_docs(self, agent_id: str, writes: Sequence[DocWrite]) -> None:
        """Write the last of the writes of each document."""
        kinds: dict[DocKind, dict[str, Doc | None]] = {}
        for write in writes:
            kinds.setdefault(write.kind, {})[write.key] = write.doc
        for kind, of_kind in kinds.items():
            for where, args in _docs_with(agent_id, kind, [key for key, doc in of_kind.items() if doc is None]):
                DOCS.remove(self._db, where, args, _docs_name(agent_id, kind, args[2:]))
            put = {key: doc for key, doc in of_kind.items() if doc is not None}
            rows = [(agent_id, kind.value, key, doc.time, *doc.body) for key, doc in put.items()]
            if DOC_ROWS.run(self._db, rows) < len(rows):
                raise misled(_docs_name(agent_id, kind, list(put)))
            TERM_ROWS.run(self._db, [(agent_id, key, term) for key, doc in put.items() for term in doc.terms])

    # --- events

    def _append(self, agent_id: str, events: Sequence[EventWrite]) -> tuple[int, ...]:
        return self._insert([(agent_id, event) for event in events]) if events else ()

    def _append_all(self, batches: Sequence[Batch]) -> list[Outcome]:
        """Append the events of all batches at once; if that fails, append the events of each batch separately."""
        events = [(batch.agent_id, event) for batch in batches for event in batch.events]
        try:
            offsets = iter(self.part(lambda _: self._insert(events)))
        except (*DRIVER_ERRORS, KodeError):
            if not self._db.in_transaction:
                raise
            return [self._apply_apart(batch) for batch in batches]
        return [Applied(offsets=tuple(itertools.islice(offsets, len(batch.events)))) for batch in batches]

    def _insert(self, events: Sequence[tuple[str, EventWrite]]) -> tuple[int, ...]:
        """Insert the events that are not stored yet, and return the offsets of all events."""
        if self._next_offset is None:
            last = self._db.execute(
                "SELECT seq FROM sqlite_sequence WHERE name = 'kode_events' UNION ALL"
                ' SELECT max("offset") FROM kode_events WHERE "offset" < ?',  # in case the sequence was damaged
                (MOST,),
            ).fetchall()
            self._next_offset = 1 + max((n for (n,) in last if type(n) is int and 0 < n < MOST), default=0)
        first = self._next_offset
        self._next_offset += len(events)
        rows = [(offset, a, e.seq, e.channel, *e.body) for offset, (a, e) in enumerate(events, first)]
        inserted = EVENTS.run(self._db, rows)
        if inserted == len(events):
            return tuple(range(first, self._next_offset))
        return tuple(self._offset_of(agent_id, event) for agent_id, event in events)

    def _offset_of(self, agent_id: str, event: EventWrite) -> int:
        row = self._db.execute(
            f"SELECT {EVENTS_BY_SEQ.own('rowid')} FROM {EVENTS_BY_SEQ.source}"
            " WHERE i.agent_id = ? AND i.seq = ? AND i.digest = ? AND r.digest = i.digest",
            (agent_id, event.seq, event.body.digest),
        ).fetchone()
        if row is None or row[0] is None:
            raise CorruptRecordError(f"the events of agent {agent_id!r}", "another row stands where one was to be put")
        return int(row[0])

    def _has_event(self, agent_id: str, offset: int) -> bool:
        row = self._db.execute('SELECT agent_id FROM kode_events WHERE "offset" = ?', (offset,)).fetchone()
        return row is not None and row[0] == agent_id

    def _drop_events(self, agent_id: str, drop: EventDrop) -> None:
        old = (agent_id, drop.before, drop.keep)
        EVENTS_BY_OFFSET.remove(
            self._db, "i.agent_id = ? AND i.rowid < ? AND i.rowid <> ?", old, f"the events of agent {agent_id!r}"
        )

    # --- forks

    def fork(self, agent_id: str, children: Sequence[Child], expect: Body, now: int) -> bool:
        """Copy the agent to each child, all or none."""
        row = self._db.execute("SELECT digest FROM kode_infos WHERE agent_id = ?", (agent_id,)).fetchone()
        if row is None or row[0] != expect.digest:
            return False
        head = self._head(agent_id)
        for child in children:
            lists = [ListHead(h.version and first_version(), h.count) for h in (head.messages, head.tool_calls)]
            self._write_head(child.agent_id, _ListsState(lists[0], lists[1], now, ""))
            self._write_info(child.agent_id, child.info)
            try:
                self._copy(agent_id, child.agent_id)
            except sqlite3.IntegrityError as exc:
                if exc.sqlite_errorcode != sqlite3.SQLITE_CONSTRAINT_NOTNULL:
                    raise
                raise misled(f"agent {agent_id!r}") from exc
        return True

    def _copy(self, agent_id: str, child_id: str) -> None:
        """Copy lists and documents; if an index leads to another record's row, the NULL body ends the copy."""
        for statements in LISTS.values():
            self._db.execute(statements.copy, (child_id, agent_id))
        for kind in FORKED_DOCS:
            self._db.execute(
                "INSERT INTO kode_docs (agent_id, kind, key, time, body, digest)"
                f" SELECT ?, r.kind, r.key, r.time, {DOCS.own('body')}, r.digest FROM {DOCS.source}"
                " WHERE i.agent_id = ? AND i.kind = ?",
                (child_id, agent_id, kind.value),
            )


def _docs_with(agent_id: str, kind: DocKind, keys: Sequence[str]) -> Iterator[tuple[LiteralString, tuple[str, ...]]]:
    """Conditions for the entries of documents, and their arguments: the agent, the kind and some of the keys."""
    for i in range(0, len(keys), _KEYS_AT_ONCE):
        some = keys[i : i + _KEYS_AT_ONCE]
        marks: LiteralString = ", ".join(["?"] * len(some))
        yield f"i.agent_id = ? AND i.kind = ? AND i.key IN ({marks})", (agent_id, kind.value, *some)


def _docs_name(agent_id: str, kind: DocKind, keys: Sequence[str]) -> str:
    one = f"{kind.value} {keys[0]!r:.80}" if len(keys) == 1 else f"the {kind.value}"
    return f"{one} of agent {agent_id!r}"


def _is_events_only(batch: Batch) -> bool:
    conditions = batch.fence is not None or batch.expect_updated_at is not None or batch.expect_nothing
    return bool(batch.events) and not (conditions or batch.delete or batch.is_touching or batch.docs)
