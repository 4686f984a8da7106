"""The index of the texts of messages, which a database has if it was asked for (QRY-12).

``kode_texts`` has a row for each message. Triggers put it there, also for other programs, and note that the index lacks
the message. The next transactions of a store index some of the noted ones: they put the folded text into the row and
into ``kode_text``, an FTS5 index of its parts of three characters. A search reads the messages that the index names and
the ones that are only noted, and compares each with the text. So it finds all of them at any time.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, LiteralString, Protocol

from kode_core.authoring.dropped import texts_dropped
from kode_core.authoring.texts import MessageQuery, grams_of, indexed_text, needle_grams
from kode_core.batch import EngineIssue
from kode_core.codec import Body
from kode_core.engine import Progress
from kode_core.errors import ConfigurationError, UnsupportedError
from kode_core.query import RowQuery
from kode_sqlite.entries import LISTED
from kode_sqlite.sound import RAW, TEXT, is_sound, text_of
from kode_sqlite.ways import Condition

__all__ = [
    "add",
    "candidates",
    "change_index",
    "drop",
    "has_index",
    "index_some",
    "inspect",
    "keeps_deleted",
    "noted",
    "rebuild",
    "see_format",
    "see_whole",
]

log = logging.getLogger("kode_sqlite")

DB = sqlite3.Connection

_NOTED: Final = 0
_INDEXED: Final = 1
_UNINDEXED: Final = 2
"""The text is too long, or cannot be read: each search reads the message."""
_WAITING: Final[LiteralString] = "state <> 1 AND state = 0"
"""SQLite uses the small index of noted messages only where a condition says its own; else it reads all texts."""

_NOTE: Final = "INSERT INTO kode_texts (agent_id, position, state) VALUES (NEW.agent_id, NEW.position, 0)"
_FORGET: Final = "DELETE FROM kode_texts WHERE agent_id = {0}.agent_id AND position = {0}.position"
_TABLES: Final = (
    """CREATE TABLE kode_texts (
        id INTEGER PRIMARY KEY,
        agent_id TEXT NOT NULL,
        position INTEGER NOT NULL,
        state INTEGER NOT NULL,
        text TEXT
    )""",
    "CREATE UNIQUE INDEX kode_texts_position ON kode_texts (agent_id, position)",
    "CREATE INDEX kode_texts_noted ON kode_texts (state, id) WHERE state <> 1",
    # Rows of the index are small: no positions of words, no sizes, and the texts stand in the table.
    """CREATE VIRTUAL TABLE kode_text USING fts5 (text, content = 'kode_texts', content_rowid = 'id', detail = none,
        columnsize = 0, tokenize = 'trigram case_sensitive 1')""",
    """CREATE TRIGGER kode_texts_delete AFTER DELETE ON kode_texts WHEN OLD.state = 1 BEGIN
        INSERT INTO kode_text (kode_text, rowid, text) VALUES ('delete', OLD.id, OLD.text);
        INSERT OR IGNORE INTO kode_meta VALUES ('texts_deleted', 1);
    END""",
    f"""CREATE TRIGGER kode_texts_message_insert AFTER INSERT ON kode_messages BEGIN
        {_FORGET.format("NEW")};
        {_NOTE};
    END""",
    f"""CREATE TRIGGER kode_texts_message_delete AFTER DELETE ON kode_messages BEGIN
        {_FORGET.format("OLD")};
    END""",
    f"""CREATE TRIGGER kode_texts_message_update AFTER UPDATE OF agent_id, position, digest ON kode_messages BEGIN
        {_FORGET.format("OLD")};
        {_FORGET.format("NEW")};
        {_NOTE};
    END""",
    # The newest messages first: they are indexed first, too.
    "INSERT INTO kode_texts (agent_id, position, state) SELECT agent_id, position, 0 FROM kode_messages ORDER BY rowid",
)
_DELETES_SINCE: Final = (3, 42, 0)
"""The first SQLite whose FTS5 can remove the parts of a deleted message, instead of noting that it was deleted."""
_FORMAT: Final = 4
"""The last format of FTS5 that earlier ones read."""
_SHADOWS: Final = ("kode_text_data", "kode_text_idx", "kode_text_config")
"""The tables that FTS5 makes for ``kode_text``."""
_MENDS: Final = (
    "CREATE TABLE IF NOT EXISTS kode_text_data (id INTEGER PRIMARY KEY, block BLOB)",
    "CREATE TABLE IF NOT EXISTS kode_text_idx (segid, term, pgno, PRIMARY KEY (segid, term)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS kode_text_config (k PRIMARY KEY, v) WITHOUT ROWID",
    "INSERT OR IGNORE INTO kode_text_config VALUES ('version', 4)",
    "INSERT OR IGNORE INTO kode_text_data VALUES (1, x''), (10, x'00000000000000')",
)
_DROPS: Final = (
    "DROP TRIGGER IF EXISTS kode_texts_message_insert",
    "DROP TRIGGER IF EXISTS kode_texts_message_delete",
    "DROP TRIGGER IF EXISTS kode_texts_message_update",
    "DROP TRIGGER IF EXISTS kode_texts_delete",
    "DROP TABLE IF EXISTS kode_text",
    "DROP TABLE IF EXISTS kode_texts",
    *(f"DROP TABLE IF EXISTS {name}" for name in _SHADOWS),
    "DELETE FROM kode_meta WHERE key = 'texts_deleted'",
)


def rebuild(db: DB, path: str) -> None:
    """Remove the index, and create it anew, within a transaction."""
    drop(db, path)
    add(db, path)


def has_index(db: DB) -> bool:
    """Whether the database has the index."""
    return db.execute("SELECT 1 FROM sqlite_master WHERE name = 'kode_texts'").fetchone() is not None


_TRIGGER: Final = (
    "SELECT 1 FROM sqlite_master WHERE type = 'trigger' AND name = 'kode_texts_message_insert'"
    " AND tbl_name = 'kode_messages'"
)


def see_whole(db: DB, path: str) -> None:
    """Look for the tables of the index while it has its triggers: without a table, no message is written.

    Raises:
        StoreUnavailableError: tables are missing.
    """
    if db.execute(_TRIGGER).fetchone() is None:
        return
    tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    missing = sorted({"kode_texts", "kode_text", *_SHADOWS} - tables)
    if missing:
        raise texts_dropped(path, missing, "messages are not written: run")


def add(db: DB, path: str) -> None:
    """Create the index if there is none, within a transaction. All messages are noted.

    Raises:
        UnsupportedError: this SQLite has no FTS5 with parts of three characters.
        StoreUnavailableError: there is one, of which tables are missing.
    """
    see_whole(db, path)
    if has_index(db):
        return
    try:
        for statement in _TABLES:
            db.execute(statement)
        if sqlite3.sqlite_version_info >= _DELETES_SINCE:
            db.execute("INSERT INTO kode_text (kode_text, rank) VALUES ('secure-delete', 1)")
    except sqlite3.OperationalError as exc:
        if exc.sqlite_errorcode & 0xFF != sqlite3.SQLITE_ERROR:
            raise
        raise UnsupportedError(
            f"{path}: SQLite {sqlite3.sqlite_version} of this Python cannot index texts: it is without FTS5, or older"
            " than 3.34; messages are found without an index, too"
        ) from exc


def drop(db: DB, _: str) -> None:
    """Remove the index, also one of which tables are missing, within a transaction, and overwrite its pages."""
    own = "SELECT 1 FROM sqlite_master WHERE name IN ('kode_texts', 'kode_texts_message_insert')"
    if db.execute(own).fetchone() is None:
        return
    (before,) = db.execute("PRAGMA secure_delete").fetchone()
    db.execute("PRAGMA secure_delete = 1")
    try:
        if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'kode_text'").fetchone() is not None:
            for statement in _MENDS:  # FTS5 drops its table only if it finds the others
                db.execute(statement)
        for statement in _DROPS:
            db.execute(statement)
    finally:
        db.execute(f"PRAGMA secure_delete = {int(before):d}")


def keeps_deleted(db: DB) -> bool:
    """Whether the index may have parts of deleted messages: those that this SQLite, or an older one, made keep them.

    Indexes from before deletes were noted count as if there had been some.
    """
    if not has_index(db) or _config(db, "secure-delete") == 1:
        return False
    noted = "SELECT 1 FROM sqlite_master WHERE name = 'kode_texts_delete' AND sql LIKE '%texts_deleted%'"
    deleted = "SELECT 1 FROM kode_meta WHERE key = 'texts_deleted'"
    return db.execute(noted).fetchone() is None or db.execute(deleted).fetchone() is not None


def see_format(db: DB, path: str) -> None:
    """Refuse an index that only a later SQLite can change: each delete of a message would fail.

    Raises:
        ConfigurationError: that is so.
    """
    if sqlite3.sqlite_version_info < _DELETES_SINCE and has_index(db) and (_config(db, "version") or 0) > _FORMAT:
        raise ConfigurationError(
            f"{path}: its index of texts was written by SQLite 3.42 or later, and this Python has"
            f" {sqlite3.sqlite_version}: update it, or run kode text-index drop with the other one"
        )


def _config(db: DB, key: str) -> int | None:
    """A number of the index's configuration; None without it, also when the table was dropped."""
    if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'kode_text_config'").fetchone() is None:
        return None
    found = db.execute("SELECT v FROM kode_text_config WHERE k = ?", (key,)).fetchone()
    return None if found is None else int(found[0])


def noted(db: DB) -> int | None:
    """How many messages are not indexed yet; None without the index."""
    if not has_index(db):
        return None
    (number,) = db.execute(f"SELECT count(*) FROM kode_texts WHERE {_WAITING}").fetchone()
    return int(number)


class ChangesTexts(Protocol):
    """The part of the engine by which the index is changed; it indexes noted messages by itself."""

    async def change_texts(self, change: Callable[[DB, str], None]) -> None: ...

    async def texts_waiting(self) -> int | None: ...


_CHANGES: Final[Mapping[str, Callable[[DB, str], None]]] = {"add": add, "rebuild": rebuild, "drop": drop}
_PAUSE_S: Final = 0.05
_SHARE: Final = 10
"""How much longer than a count of many waiting messages is the pause before the next one."""


async def change_index(engine: ChangesTexts, action: str, progress: Progress) -> int | None:
    """Change the index, and wait until it has all messages; a caller that does not wait loses nothing."""
    if action in _CHANGES:
        await engine.change_texts(_CHANGES[action])
    pause, waiting = _PAUSE_S, await engine.texts_waiting()
    total = waiting
    while waiting and total and action != "status":
        total = max(total, waiting)
        progress(total - waiting, total)
        await asyncio.sleep(pause)
        begun = time.monotonic()
        waiting = await engine.texts_waiting()
        pause = max(_PAUSE_S, _SHARE * (time.monotonic() - begun))
    return waiting


# --- indexing ---------------------------------------------------------------------------------------------------------

_ROWS: Final = 1_000
_CHARACTERS: Final = 2**17
_ENTRIES: Final = LISTED["messages"]
_BODY: Final[LiteralString] = (
    f"SELECT {_ENTRIES.own('body')}, r.digest FROM kode_texts t LEFT JOIN {_ENTRIES.entry}"
    f" ON i.agent_id = t.agent_id AND i.position = t.position{_ENTRIES.row} WHERE t.id = ?"
)


def index_some(db: DB) -> bool:
    """Index some of the noted messages, within a transaction; True if others are left.

    It ends after 1,000 messages, or 131,072 characters, so that no writer waits long.
    """
    waiting = _newest_waiting(db, _ROWS) if has_index(db) else []
    if not waiting:
        return False
    db.execute("PRAGMA cache_spill = OFF")  # see _spilling in the engine: here is a savepoint
    db.execute("SAVEPOINT kode_texts")
    try:
        # In the order of their ids: FTS5 begins a segment of its own at each id that is lower than the one before.
        for id_, text in sorted(_texts_of(db, waiting)):
            state = _UNINDEXED if text is None else _INDEXED
            db.execute("UPDATE kode_texts SET state = ?, text = ? WHERE id = ?", (state, text, id_))
            if text is not None:
                db.execute("INSERT INTO kode_text (rowid, text) VALUES (?, ?)", (id_, text))
        db.execute("SAVEPOINT kode_texts_written")  # FTS5 writes its changes now
    except sqlite3.DatabaseError as exc:  # a damaged index must fail no write of others
        _see_damage(exc)
        db.execute("ROLLBACK TO kode_texts")
        return False
    finally:
        db.execute("RELEASE kode_texts")
    return bool(_newest_waiting(db, 1))


def _newest_waiting(db: DB, limit: int) -> list[int]:
    """The ids of some noted messages, the newest first."""
    rows = db.execute(f"SELECT id FROM kode_texts WHERE {_WAITING} ORDER BY id DESC LIMIT ?", (limit,))
    return [id_ for (id_,) in rows]


def _texts_of(db: DB, ids: list[int]) -> list[tuple[int, str | None]]:
    """The texts of the first of these messages, with so many characters as a transaction may have."""
    found, size = list[tuple[int, str | None]](), 0
    for id_ in ids:
        body, digest = db.execute(_BODY, (id_,)).fetchone()
        text = indexed_text(Body(body, digest)) if is_sound((body, digest), (TEXT, RAW)) else None
        found.append((id_, text))
        size += len(text or "")
        if size > _CHARACTERS:
            break
    return found


_OF_DAMAGE: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_CONSTRAINT)
"""Errors of FTS5 whose pages are damaged; a constraint of its own tables is the second one."""


def _see_damage(exc: sqlite3.DatabaseError) -> None:
    """Raise *exc* again unless it says that the index is damaged, without which messages are found, too."""
    if exc.sqlite_errorcode & 0xFF not in _OF_DAMAGE:
        raise exc
    log.error("the index of texts is damaged, and messages are found without it; kode text-index rebuild mends it")


# --- searching --------------------------------------------------------------------------------------------------------

_MOST: Final = 5_000
"""If more messages may have the text, reading all in their order finds a page as soon."""


def _match(grams: list[str]) -> str:
    return " AND ".join('"' + gram.replace('"', '""') + '"' for gram in grams)


def candidates(db: DB, query: RowQuery) -> Condition | None:
    """The condition that a message, as ``t``, may have the text; None if too many messages may."""
    grams = needle_grams(query.contains) if isinstance(query, MessageQuery) else []
    if not grams or not has_index(db):
        return None
    ids = list[int]()
    statements: tuple[tuple[LiteralString, Any], ...] = (
        ("SELECT id FROM kode_texts WHERE state <> 1 LIMIT ?", ()),
        ("SELECT rowid FROM kode_text WHERE kode_text MATCH ? LIMIT ?", (_match(grams),)),
    )
    try:
        for statement, args in statements:
            ids += [id_ for (id_,) in db.execute(statement, (*args, _MOST + 1))]
            if len(ids) > _MOST:
                return None
    except sqlite3.DatabaseError as exc:
        if exc.sqlite_errorcode != sqlite3.SQLITE_ERROR:  # it has a later format
            _see_damage(exc)
        return None
    return Condition("t.id IN (SELECT value FROM json_each(?))", (json.dumps(ids),))


# --- checking ---------------------------------------------------------------------------------------------------------

_LACKING: Final[LiteralString] = (
    "SELECT (SELECT count(*) FROM kode_messages m WHERE m.agent_id = ?1 AND NOT EXISTS (SELECT 1 FROM kode_texts t"
    " WHERE t.agent_id = m.agent_id AND t.position = m.position)), (SELECT count(*) FROM kode_texts t WHERE"
    " t.agent_id = ?1 AND NOT EXISTS (SELECT 1 FROM kode_messages m WHERE m.agent_id = t.agent_id"
    " AND m.position = t.position))"
)


def inspect(db: DB, agent_id: str, at_once: Callable[[DB, Callable[[DB], Any]], Any]) -> Iterator[EngineIssue]:
    """An issue if the index disagrees with the messages of an agent."""
    if has_index(db):
        wrong = at_once(db, lambda db: _disagreeing(db, agent_id))
        if wrong:
            text = f"the index of texts disagrees with {wrong} messages; kode text-index rebuild makes it anew"
            yield EngineIssue("index_disagrees", agent_id, text)


_SAMPLE: Final = 5_000
_AT_ONCE: Final = 20


def _disagreeing(db: DB, agent_id: str) -> int:
    """How many messages disagree; of an agent with many, some thousand are compared with their texts."""
    lacking, stray = db.execute(_LACKING, (agent_id,)).fetchone()
    wrong, after = lacking + stray, -1
    (count,) = db.execute("SELECT count(*) FROM kode_texts WHERE agent_id = ?", (agent_id,)).fetchone()
    step = count // _SAMPLE + 1
    while True:
        rows = db.execute(
            f"SELECT t.position, t.id, CAST(t.text AS BLOB), {_ENTRIES.own('body')}, r.digest FROM kode_texts t"
            f" LEFT JOIN {_ENTRIES.entry} ON i.agent_id = t.agent_id AND i.position = t.position{_ENTRIES.row}"
            " WHERE t.agent_id = ? AND t.position > ? AND t.position % ? = 0 AND t.state = ?"
            " ORDER BY t.position LIMIT ?",
            (agent_id, after, step, _INDEXED, _AT_ONCE),
        ).fetchall()
        for position, id_, raw, body, digest in rows:
            after = position
            if is_sound((body, digest), (TEXT, RAW)):
                text = indexed_text(Body(body, digest))
                wrong += text is not None and (text_of(raw) != text or not _is_found(db, id_, text))
        if len(rows) < _AT_ONCE:
            return int(wrong)


def _is_found(db: DB, id_: int, text: str) -> bool:
    grams = sorted(grams_of(text))[:4]
    if not grams:
        return True
    found = db.execute("SELECT 1 FROM kode_text WHERE kode_text MATCH ? AND rowid = ?", (_match(grams), id_))
    return found.fetchone() is not None
