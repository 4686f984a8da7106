"""Writes. Each function runs inside a transaction of the engine, which has only one writer at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kode_core.authoring.clock import host_clock
from kode_core.batch import (
    FORKED_DOCS,
    Applied,
    Batch,
    Child,
    DocKind,
    DocWrite,
    EventWrite,
    Fence,
    Info,
    ListHead,
    ListKind,
    ListWrite,
    MessageIndex,
    Refused,
    Row,
    first_version,
)
from kode_core.codec import Body
from kode_duckdb import reads
from kode_duckdb.reads import Agent
from kode_duckdb.schema import OF_AN_AGENT, TABLES, Connection, insert, next_number


def apply(db: Connection, batch: Batch) -> Applied | Refused:
    """Apply a batch, or refuse it before anything is written."""
    agent = reads.agent(db, batch.agent_id)
    messages, tool_calls = (agent.list_head(kind) for kind in ListKind)
    if agent.last_op == batch.op_id:  # done already, by a call whose answer was lost (OPS-10)
        return Applied(messages, tool_calls, _append(db, batch.agent_id, batch.events))
    if batch.fence is not None and not holds(db, batch.agent_id, batch.fence):
        return Refused("fence")
    digests = {name: digest for name in batch.demanded_docs if (digest := _digest(db, batch.agent_id, *name))}
    has_more = batch.expect_nothing and _has_more(db, batch.agent_id)
    heads = (agent.updated_at, messages, tool_calls)
    refused = batch.refusal(*heads, digests, info=agent.digest or b"", has_more=has_more)
    if refused is not None:
        return refused
    if batch.delete:
        for table in OF_AN_AGENT:
            db.execute(f"DELETE FROM {table} WHERE agent_id = ?", [batch.agent_id])
        agent, messages, tool_calls = Agent(batch.agent_id), ListHead(), ListHead()
    messages = _write_list(db, batch.agent_id, ListKind.MESSAGES, batch.messages, messages)
    tool_calls = _write_list(db, batch.agent_id, ListKind.TOOL_CALLS, batch.tool_calls, tool_calls)
    if batch.is_touching:
        _save(db, _after(agent, batch, messages, tool_calls))
    for doc in batch.docs:
        _write_doc(db, batch.agent_id, doc)
    return Applied(messages, tool_calls, _append(db, batch.agent_id, batch.events))


def _digest(db: Connection, agent_id: str, kind: DocKind, key: str) -> bytes | None:
    """The digest of a document; None without one."""
    where = "agent_id = ? AND kind = ? AND key = ?"
    row = db.execute(f"SELECT digest FROM kode_docs WHERE {where}", [agent_id, kind.value, key]).fetchone()
    return None if row is None else row[0]


def _has_more(db: Connection, agent_id: str) -> bool:
    """Whether the agent has documents, but for layers', or events."""
    docs = db.execute(
        "SELECT 1 FROM kode_docs WHERE agent_id = ? AND kind <> ? LIMIT 1", [agent_id, DocKind.LAYER.value]
    )
    if docs.fetchone():
        return True
    return db.execute("SELECT 1 FROM kode_events WHERE agent_id = ? LIMIT 1", [agent_id]).fetchone() is not None


# --- head and info ----------------------------------------------------------------------------------------------------


def _after(agent: Agent, batch: Batch, messages: ListHead, tool_calls: ListHead) -> Agent:
    """The agent's row once the batch was applied."""
    agent = agent if batch.info is None else _with_info(agent, batch.info)
    return agent._replace(
        updated_at=max(agent.updated_at + 1, batch.now),  # it moves forward, whatever the clock says (INFO-2)
        last_op=batch.op_id,
        message_version=messages.version,
        message_count=messages.count,
        tool_call_version=tool_calls.version,
        tool_call_count=tool_calls.count,
    )


def _with_info(agent: Agent, info: Info) -> Agent:
    return agent._replace(
        info=info.body.text,
        digest=info.body.digest,
        template_id=info.template_id,
        created_at=info.created_at,
        metadata=["\n".join(pair) for pair in info.metadata],
    )


def _save(db: Connection, agent: Agent) -> None:
    db.execute("DELETE FROM kode_agents WHERE agent_id = ?", [agent.agent_id])
    insert(db, "kode_agents", [agent])


# --- lists, documents, events -----------------------------------------------------------------------------------------


def _write_list(db: Connection, agent_id: str, kind: ListKind, write: ListWrite | None, head: ListHead) -> ListHead:
    if write is None:
        return head
    rows = "DELETE FROM kode_rows WHERE agent_id = ? AND kind = ? AND position"
    if write.length is not None and write.length < head.count:
        db.execute(f"{rows} >= ?", [agent_id, kind.value, write.length])
    if kind is ListKind.MESSAGES and write.is_blind:
        write = _in_order(db, agent_id, write)
    if write.put:
        positions = [position for position, _ in write.put]
        db.execute(f"{rows} IN (SELECT unnest(?::BIGINT[]))", [agent_id, kind.value, positions])
    new = (*write.put, *enumerate(write.append, head.kept(write)))
    insert(db, "kode_rows", [_row(agent_id, kind, position, row) for position, row in new])
    return head.after(write)


def _in_order(db: Connection, agent_id: str, write: ListWrite) -> ListWrite:
    """The write, with no message older than the kept messages before it (MSG-4)."""
    where = "agent_id = ? AND kind = ?"
    found = db.execute(
        f"SELECT max(created_at) FROM kode_rows WHERE {where}", [agent_id, ListKind.MESSAGES.value]
    ).fetchone()
    return write if found is None or found[0] is None else write.not_before(found[0])


def _row(agent_id: str, kind: ListKind, position: int, row: Row) -> tuple[Any, ...]:
    """The columns of a row, in the order of the table."""
    index = row.index
    common = (agent_id, kind.value, position, *row.body, row.created_at)
    if isinstance(index, MessageIndex):
        return (*common, index.role, list(index.content_types), *[None] * 5)
    return (*common, None, None, index.call_id, index.tool_name, index.state, index.is_error, index.has_approval)


def _write_doc(db: Connection, agent_id: str, write: DocWrite) -> None:
    key = (agent_id, write.kind.value, write.key)
    db.execute("DELETE FROM kode_docs WHERE agent_id = ? AND kind = ? AND key = ?", key)
    if write.doc is not None:
        insert(db, "kode_docs", [(*key, write.doc.time, *write.doc.body)])


def _append(db: Connection, agent_id: str, events: Sequence[EventWrite]) -> tuple[int, ...]:
    """Append the events that are not there yet, and return the offsets of all (EVT-4)."""
    if not events:
        return ()
    stored = db.execute(
        "SELECT seq, digest, place FROM kode_events WHERE agent_id = ? AND seq IN (SELECT unnest(?::BIGINT[]))",
        [agent_id, [event.seq for event in events]],
    ).fetchall()
    offsets = {(seq, digest): offset for seq, digest, offset in stored}
    fresh = {(e.seq, e.body.digest): e for e in events if (e.seq, e.body.digest) not in offsets}
    if fresh:
        offsets |= {key: offset for offset, key in enumerate(fresh, next_number(db, len(fresh)))}
        rows = [(agent_id, offsets[key], e.seq, e.channel, *e.body) for key, e in fresh.items()]
        insert(db, "kode_events", rows)
    return tuple(offsets[event.seq, event.body.digest] for event in events)


# --- forks ------------------------------------------------------------------------------------------------------------


def fork(db: Connection, agent_id: str, children: Sequence[Child], expect: Body, now: int) -> bool:
    parent = reads.agent(db, agent_id)
    if parent.info is None or parent.digest != expect.digest:
        return False
    for child in children:
        copy = parent._replace(
            agent_id=child.agent_id,
            updated_at=now,
            last_op=f"fork of {agent_id}",
            message_version=parent.message_version and first_version(),
            tool_call_version=parent.tool_call_version and first_version(),
        )
        _save(db, _with_info(copy, child.info))
        _copy(db, "kode_rows", agent_id, child.agent_id, [kind.value for kind in ListKind])
        _copy(db, "kode_docs", agent_id, child.agent_id, [kind.value for kind in FORKED_DOCS])
    return True


def _copy(db: Connection, table: str, parent: str, child: str, kinds: Sequence[str]) -> None:
    columns = ", ".join(list(TABLES[table])[1:])
    db.execute(
        f"INSERT INTO {table} SELECT ?, {columns} FROM {table}"
        " WHERE agent_id = ? AND kind IN (SELECT unnest(?::VARCHAR[]))",
        [child, parent, kinds],
    )


# --- leases -----------------------------------------------------------------------------------------------------------


def holds(db: Connection, agent_id: str, fence: Fence) -> bool:
    """True if the lease is held. The time counts from the start of this host, so it never goes back (LOCK-3)."""
    boot, now = host_clock()
    where = "agent_id = ? AND owner = ? AND token = ? AND boot = ? AND expires > ?"
    args = [agent_id, fence.owner, fence.token, boot, now]
    return db.execute(f"SELECT 1 FROM kode_leases WHERE {where}", args).fetchone() is not None


def acquire_lease(db: Connection, agent_id: str, owner: str, ttl_ms: int) -> int | None:
    boot, now = host_clock()
    held = "SELECT 1 FROM kode_leases WHERE agent_id = ? AND boot = ? AND expires > ?"
    if db.execute(held, [agent_id, boot, now]).fetchone() is not None:
        return None
    token = next_number(db)
    db.execute("DELETE FROM kode_leases WHERE agent_id = ?", [agent_id])
    insert(db, "kode_leases", [(agent_id, owner, token, boot, now + ttl_ms)])
    return token


def renew_lease(db: Connection, agent_id: str, fence: Fence, ttl_ms: int) -> bool:
    if not holds(db, agent_id, fence):
        return False
    _, now = host_clock()
    db.execute("UPDATE kode_leases SET expires = ? WHERE agent_id = ?", [now + ttl_ms, agent_id])
    return True


def release_lease(db: Connection, agent_id: str, fence: Fence) -> None:
    ended = "DELETE FROM kode_leases WHERE agent_id = ? AND owner = ? AND token = ?"
    db.execute(ended, [agent_id, fence.owner, fence.token])
