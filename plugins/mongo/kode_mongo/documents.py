"""Heads, items and parts as documents.

A caller's text never becomes a field's name: metadata is an array of ``{k, v}``. Bodies are stored as exact strings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any, Final, TypeVar

from bson import Binary
from bson.int64 import Int64

from kode_core.authoring.reading import unless_damaged
from kode_core.batch import Found, Info, ListHead, MessageIndex, SessionRow, ToolCallIndex
from kode_core.codec import Body
from kode_core.engines.record.store import (
    DocIndex,
    EventIndex,
    FoundItem,
    HeadRecord,
    Item,
    ItemIndex,
    ItemsPlace,
    removed,
)
from kode_core.errors import CorruptRecordError
from kode_mongo.connection import Document

__all__ = [
    "NO_BODIES",
    "NO_HEAD",
    "after_place",
    "as_found",
    "found_anywhere",
    "found_head",
    "found_item",
    "found_session",
    "head_fields",
    "id_of",
    "is_lease_alone",
    "item_document",
    "metadata_pairs",
    "part_id",
    "readable",
    "removal",
    "settled_fields",
]

NO_BODIES: Final = {"text": 0}
NO_HEAD: Final[Document] = {"rev": {"$exists": False}, "epoch": {"$exists": False}}
"""The filter for a document without a head. A head that has lost one of the two fields is damaged, not absent."""


T = TypeVar("T")


# --- ids --------------------------------------------------------------------------------------------------------------


def _prefix(place: ItemsPlace) -> str:
    """The prefix of every id at a place; its length is the same for all agents."""
    return f"{blake2b(place.agent_id.encode(), digest_size=16).hexdigest()}/{place.epoch}/"


def id_of(place: ItemsPlace, key: str) -> str:
    """The id of an item. Ids at a place sort like keys."""
    return _prefix(place) + key


def after_place(place: ItemsPlace) -> str:
    """The least text that sorts after all ids at a place."""
    return f"{_prefix(place)[:-1]}0"  # "0" follows "/"


def part_id(place: ItemsPlace, key: str, rev: int, number: int | None = None) -> str:
    """The id of a part; without *number*, the prefix of all parts of a key and revision."""
    return f"{_prefix(place)}{key}/{rev:019d}/" + ("" if number is None else f"{number:06d}")


# --- heads ------------------------------------------------------------------------------------------------------------


def metadata_pairs(pairs: Sequence[tuple[str, str]]) -> list[Document]:
    """Metadata as an array of ``{k, v}``, so that one index finds every key."""
    return [{"k": key, "v": value} for key, value in pairs]


def head_fields(head: HeadRecord) -> Document:
    """The fields of a head without its lease. A field without a value is null."""
    info = head.info
    return {
        "epoch": head.epoch,
        "rev": Int64(head.rev),
        "updated_at": Int64(head.updated_at),
        "messages": _list(head.messages),
        "tool_calls": _list(head.tool_calls),
        "used": head.is_used,
        "numbered": head.is_numbered,
        "listed": info is not None,
        "info": None if info is None else info.body.text,
        "digest": None if info is None else Binary(info.body.digest),
        "template_id": None if info is None else info.template_id,
        "created_at": None if info is None else Int64(info.created_at),
        "metadata": [] if info is None else metadata_pairs(info.metadata),
        **settled_fields(head),
    }


def settled_fields(head: HeadRecord) -> Document:
    """The fields of a head that change when it is settled."""
    return {"pending": not head.is_settled, "state": Binary(head.state)}


def _list(head: ListHead) -> Document:
    return {"version": Int64(head.version), "count": Int64(head.count)}


def is_lease_alone(found: Mapping[str, Any]) -> bool:
    """Whether a document, read without its lease, has no head; see :data:`NO_HEAD`."""
    return not any(field in found for field in NO_HEAD)


def as_found(found: Mapping[str, Any], wanted: Document) -> Document:
    """The filter for a head that has not changed since it was found and also matches *wanted*."""
    fields = ("epoch", "rev", "updated_at", "messages", "tool_calls", "pending", "state")
    same = {name: {"$eq": found[name]} if name in found else {"$exists": False} for name in fields}
    return {"_id": found["_id"], **same, **wanted}


def readable(read: Callable[[Mapping[str, Any]], T], found: Sequence[Mapping[str, Any]]) -> Found[T]:
    """The records of documents; damaged ones are left out and named (QRY-9)."""
    left_out = list[str]()
    done = [unless_damaged(left_out, read, document) for document in found]
    return Found([one for one in done if one is not None], left_out)


def found_head(found: Mapping[str, Any]) -> HeadRecord:
    """The head of a document.

    Raises:
        CorruptRecordError: a field is missing or has a wrong type.
    """
    with _damaged(f"agent {found['_id']!r}", "its head is damaged"):
        return HeadRecord(
            agent_id=found["_id"],
            epoch=_text(found["epoch"]),
            rev=_whole(found["rev"]),
            info=_info(found) if _flag(found["listed"]) else None,
            updated_at=_whole(found["updated_at"]),
            messages=_list_head(found["messages"]),
            tool_calls=_list_head(found["tool_calls"]),
            is_used=_flag(found["used"]),
            is_numbered=_flag(found["numbered"]),
            is_settled=not _flag(found["pending"]),
            state=_bytes(found["state"]),
        )


def found_session(found: Mapping[str, Any]) -> SessionRow:
    """The session of a head's document.

    Raises:
        CorruptRecordError: a field is missing or has a wrong type.
    """
    with _damaged(f"agent {found['_id']!r}", "its head is damaged"):
        return SessionRow(
            found["_id"],
            Body(_text(found["info"]), _bytes(found["digest"])),
            _whole(found["created_at"]),
            _whole(found["updated_at"]),
            _whole(found["messages"]["count"]),
        )


def _list_head(found: Mapping[str, Any]) -> ListHead:
    return ListHead(_whole(found["version"]), _whole(found["count"]))


def _info(found: Mapping[str, Any]) -> Info:
    pairs = tuple((_text(pair["k"]), _text(pair["v"])) for pair in found["metadata"])
    body = Body(_text(found["info"]), _bytes(found["digest"]))
    return Info(body, _text(found["template_id"]), _whole(found["created_at"]), pairs)


# --- items ------------------------------------------------------------------------------------------------------------


def item_document(place: ItemsPlace, item: Item) -> Document:
    """The document of an item."""
    index = item.index
    document: Document = {
        "_id": id_of(place, item.key),
        "agent_id": place.agent_id,
        "epoch": place.epoch,
        "key": item.key,
        "rev": Int64(item.rev),
        "time": Int64(item.time),
        "text": item.body.text,
        "digest": Binary(item.body.digest),
        "parts": item.parts,
        "index": {name: getattr(index, name) for name in index.__struct_fields__},
    }
    if item.alt is not None:
        document["alt"] = id_of(place, item.alt)
    if isinstance(index, DocIndex):
        del document["index"]["terms"]
        if index.terms:
            document["terms"] = list(index.terms)
    elif isinstance(index, MessageIndex):
        document["list"] = "messages"
    elif isinstance(index, ToolCallIndex):
        document["list"] = "tool_calls"
    elif isinstance(index, EventIndex):
        document["index"]["seq"] = Int64(index.seq)
    return document


def removal(rev: int) -> Document:
    """The update that turns an item into the tombstone of its removal."""
    fields = ("time", "text", "digest", "parts", "index", "list", "alt", "terms")
    return {"$set": {"rev": Int64(rev), "gone": True}, "$unset": dict.fromkeys(fields, "")}


def _index(key: str, fields: Mapping[str, Any], terms: Sequence[Any]) -> ItemIndex:
    match key[0]:
        case "m":
            return MessageIndex(_text(fields["role"]), tuple(map(_text, fields["content_types"])))
        case "t":
            return ToolCallIndex(**fields)
        case "e":
            return EventIndex(int(fields["seq"]), _text(fields["channel"]))
        case _:
            return DocIndex(**fields, terms=tuple(map(_text, terms)))


def found_item(found: Mapping[str, Any]) -> Item:
    """The item of a document.

    Raises:
        CorruptRecordError: a field is missing or has a wrong type.
    """
    with _damaged(*_named(found)):
        key, alt = _text(found["key"]), found.get("alt")
        if found.get("gone") is True:
            return removed(key, int(found["rev"]))
        return Item(
            key=key,
            rev=int(found["rev"]),
            body=Body(_text(found.get("text", "")), _bytes(found["digest"])),
            index=_index(key, found["index"], found.get("terms", ())),
            time=int(found["time"]),
            alt=None if alt is None else alt[len(found["_id"]) - len(key) :],
            parts=int(found["parts"]),
        )


def found_anywhere(found: Mapping[str, Any]) -> FoundItem:
    """The item of a document with its place; see :func:`found_item`."""
    with _damaged(*_named(found)):
        place = ItemsPlace(_text(found["agent_id"]), _text(found["epoch"]))
    return FoundItem(place, found_item(found))


def _named(found: Mapping[str, Any]) -> tuple[str, str]:
    key = str(found["_id"]).split("/", 2)[-1]
    return f"agent {found.get('agent_id')!r}", f"its item {key!r} is damaged"


# --- documents that others changed ------------------------------------------------------------------------------------


@contextmanager
def _damaged(record: str, problem: str) -> Iterator[None]:
    """Report a record that cannot be decoded. The error does not quote its contents."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError):
        raise CorruptRecordError(record, problem) from None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _whole(value: Any) -> int:
    """A whole number, whatever its type: the server's filters compare numbers of all types."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or int(value) != value:
        raise TypeError
    return int(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _bytes(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError
    return bytes(value)
