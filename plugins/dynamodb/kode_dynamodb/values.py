"""Heads, items and parts as items of the table, and their keys.

Texts of up to 1 KB are strings. Longer texts, and texts with U+0000, are compressed, which saves write units. Keys of
indexes are ASCII: they hold agent ids as hexadecimal digits, which sort like the ids' bytes.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import wraps
from hashlib import blake2b
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from kode_core.batch import Info, MessageIndex, ToolCallIndex
from kode_core.codec import Body
from kode_core.engines.record.store import EventIndex, HeadRecord, Item, ItemIndex, ItemsPlace, removed
from kode_core.errors import CorruptRecordError, PayloadTooLargeError
from kode_core.query import Wanted, Within
from kode_dynamodb.connection import Record
from kode_dynamodb.schema import BUCKETS, DAY_S, TTL

__all__ = [
    "HEAD",
    "HEAD_FIELDS",
    "INDEX_PREFIX",
    "NO_FILTER",
    "Filter",
    "agent_of",
    "bucket_of",
    "buckets",
    "epochs_of",
    "filed_counts",
    "filed_row",
    "found_head",
    "found_item",
    "found_meta",
    "head_key",
    "head_values",
    "hexed",
    "index_filter",
    "intact",
    "item_key",
    "item_values",
    "moment",
    "parts_key",
    "place_of",
    "position_key",
    "row_key",
    "settled_values",
    "text_of",
    "within_filter",
]

HEAD: Final = "head"
HEAD_FIELDS: Final = frozenset(("hd", "rev", "ep"))
"""A lease alone has none of these. A head that has lost one of them is damaged, not absent."""
INDEX_PREFIX: Final = {"messages": "m", "tool_calls": "t"}
_TAGS: Final = {"messages": "message", "tool_calls": "tool_call", "events": "event"}

_PLAIN_BYTES: Final = 1024
_META_BYTES: Final = 100_000
_AGENT, _ITEMS, _PARTS = "a#", "i#", "p#"

_T = TypeVar("_T")
_Meta = tuple[str, int, tuple[tuple[str, str], ...]]
_encode = msgspec.json.Encoder().encode
_index = msgspec.json.Decoder(ItemIndex).decode
_meta = msgspec.json.Decoder(_Meta).decode
_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(HeadRecord).decode


# --- texts ------------------------------------------------------------------------------------------------------------


def _written(text: str) -> Record | None:
    """A text as an attribute; None for an empty text, which is left out."""
    if not text:
        return None
    raw = text.encode()
    if len(raw) <= _PLAIN_BYTES and "\0" not in text:
        return {"S": text}
    return {"B": zlib.compress(raw, 1)}


def text_of(value: Record | None) -> str:
    """The text of an attribute. A damaged attribute gives a different text, which the digest reveals."""
    if value is None:
        return ""
    if "S" in value:
        return str(value["S"])
    try:
        return zlib.decompress(value["B"]).decode(errors="replace")
    except zlib.error:
        return ""


def _number(value: int) -> Record:
    return {"N": str(value)}


# --- keys -------------------------------------------------------------------------------------------------------------


def hexed(agent_id: str) -> str:
    """An agent's id in ASCII, which sorts like its bytes."""
    return agent_id.encode().hex()


def moment(milliseconds: int) -> str:
    """A time as a text that sorts like times."""
    return f"{milliseconds + 2**63:020d}"


def position_key(milliseconds: int, agent_id: str, position: int | None = None) -> str:
    """The key of a session or a row in an index. ``!`` sorts before all hexadecimal digits."""
    prefix = f"{moment(milliseconds)}/{hexed(agent_id)}!"
    return prefix if position is None else f"{prefix}{position:012d}"


def row_key(milliseconds: int, position: int) -> str:
    """The key of a row among the rows of one agent."""
    return f"{moment(milliseconds)}/{position:012d}"


def buckets(kind: str) -> list[str]:
    """The partitions of a global index, for one kind of item."""
    return [f"{kind}{n}" for n in range(BUCKETS)]


def bucket_of(kind: str, agent_id: str) -> Record:
    """The partition of an agent, for one kind of item."""
    digest = blake2b(agent_id.encode(), digest_size=2).digest()
    return {"S": f"{kind}{int.from_bytes(digest, 'big') % BUCKETS}"}


def head_key(agent_id: str) -> Record:
    """The key of an agent's head."""
    return {"pk": {"S": _AGENT + agent_id}, "sk": {"S": HEAD}}


def agent_of(found: Record) -> str:
    """The agent of a head's key."""
    return str(found["pk"]["S"][len(_AGENT) :])


def items_pk(place: ItemsPlace) -> Record:
    """The partition of a place's items."""
    return {"S": f"{_ITEMS}{place.epoch}#{place.agent_id}"}


def parts_pk(place: ItemsPlace) -> Record:
    """The partition of a place's parts."""
    return {"S": f"{_PARTS}{place.epoch}#{place.agent_id}"}


def place_of(found: Record) -> ItemsPlace:
    """The place of an item's key."""
    epoch, _, agent_id = found["pk"]["S"][len(_ITEMS) :].partition("#")
    return ItemsPlace(agent_id, epoch)


def item_key(place: ItemsPlace, key: str) -> Record:
    """The key of an item."""
    return {"pk": items_pk(place), "sk": {"S": key}}


def parts_key(place: ItemsPlace, key: str, rev: int, number: int) -> Record:
    """The key of a part."""
    return {"pk": parts_pk(place), "sk": {"S": f"{key}/{rev:019d}/{number:06d}"}}


def _owner_of(found: Record) -> str:
    """The agent of a key of any kind."""
    return agent_of(found) if found["pk"]["S"].startswith(_AGENT) else place_of(found).agent_id


# --- damage -----------------------------------------------------------------------------------------------------------


def intact(what: str) -> Callable[[Callable[[Record], _T]], Callable[[Record], _T]]:
    """Make a function that reads an item raise CorruptRecordError with the agent's name for any damage."""

    def decorated(read: Callable[[Record], _T]) -> Callable[[Record], _T]:
        @wraps(read)
        def reading(found: Record) -> _T:
            try:
                return read(found)
            except (LookupError, TypeError, ValueError, zlib.error, msgspec.MsgspecError):
                raise CorruptRecordError(f"agent {_owner_of(found)!r}", f"{what} is damaged") from None

        return reading

    return decorated


# --- heads ------------------------------------------------------------------------------------------------------------


def head_values(head: HeadRecord) -> dict[str, Record | None]:
    """The attributes of a head without its lease; None for absent ones."""
    return {
        **_filed_values(head),
        "meta": None if head.info is None else {"B": _meta_of(head.info)},
        **settled_values(head),
    }


def _filed_values(head: HeadRecord) -> dict[str, Record | None]:
    """The further attributes of a head that conditions and indexes need."""
    info, known = head.info, bucket_of("h", head.agent_id)
    stamp = position_key(head.updated_at, head.agent_id)
    return {
        "hx": {"S": hexed(head.agent_id)},
        "ep": {"S": head.epoch},
        "rev": _number(head.rev),
        "u": _number(head.updated_at),
        "mc": _number(head.messages.count),
        "tc": _number(head.tool_calls.count),
        "hb": known if head.is_used else None,
        "up": {"S": stamp} if head.is_used else None,
        "nb": None if info is None else known,
        "cr": None if info is None else {"S": position_key(info.created_at, head.agent_id)},
    }


def settled_values(head: HeadRecord) -> dict[str, Record | None]:
    """The attributes of a head that change when it is settled. A tombstone gets a time to live.

    The whole head is one attribute, because moto changes attributes one after the other, and readers see that.
    """
    return {
        "hd": {"B": zlib.compress(_pack(head), 1)},
        "pd": _settled_bucket(head),
        TTL: _number(int(time.time()) + DAY_S) if head.is_tombstone else None,
    }


def _settled_bucket(head: HeadRecord) -> Record | None:
    """The partition that lists an unsettled head."""
    return None if head.is_settled else bucket_of("h", head.agent_id)


def _meta_of(info: Info) -> bytes:
    """The columns that session queries use, as one value: each changed value would be a write of the index."""
    packed = zlib.compress(_encode((info.template_id, info.created_at, info.metadata)), 1)
    if len(packed) > _META_BYTES:
        raise PayloadTooLargeError("the info's metadata has more keys than fit into an item of DynamoDB")
    return packed


class FiledCounts(NamedTuple):
    """The further attributes of a session in the index of updates."""

    updated_at: int
    messages: int
    tool_calls: int


@intact("what its info is found by")
def filed_counts(found: Record) -> FiledCounts | None:
    """The counts of an entry; None if it belongs to another index."""
    if "up" not in found:
        return None
    return FiledCounts(int(found["u"]["N"]), int(found["mc"]["N"]), int(found["tc"]["N"]))


@intact("what its info is found by")
def found_meta(found: Record) -> Info | None:
    """The info of a head or an entry of an index, without its body; None without an info."""
    if "meta" not in found:
        return None
    template_id, created_at, pairs = _meta(zlib.decompress(found["meta"]["B"]))
    return Info(Body("", b""), template_id, created_at, pairs)


@intact("its head")
def found_head(found: Record) -> HeadRecord | None:
    """The head of an item; None if the item has only a lease.

    The attributes for conditions and indexes must agree with the head: otherwise writes would be refused, and queries
    would be wrong.
    """
    if not HEAD_FIELDS & found.keys():
        return None
    head = _unpack(zlib.decompress(found["hd"]["B"]))
    filed = {**_filed_values(head), "pd": _settled_bucket(head)}
    if "ep" not in found:  # earlier versions did not write it
        del filed["ep"]
    if agent_of(found) != head.agent_id or any(found.get(name) != value for name, value in filed.items()):
        raise ValueError
    return head


def epochs_of(found: Record) -> list[str]:
    """The epochs that a head names, as far as they can be read."""
    epochs = set[str]()
    with suppress(LookupError, TypeError, ValueError, zlib.error, msgspec.MsgspecError):
        epochs.add(_unpack(zlib.decompress(found["hd"]["B"])).epoch)
    with suppress(LookupError, TypeError):
        epochs.add(str(found["ep"]["S"]))
    return sorted(epochs)


# --- items ------------------------------------------------------------------------------------------------------------


def item_values(place: ItemsPlace, item: Item) -> Record:
    """The attributes of an item."""
    if item.is_removed:
        return {**item_key(place, item.key), "rev": _number(item.rev), "gone": {"BOOL": True}}
    values: dict[str, Record | None] = {
        **item_key(place, item.key),
        "rev": _number(item.rev),
        "t": _number(item.time),
        "h": {"B": item.body.digest},
        "ix": _written(_encode(item.index).decode()),
        "ev" if isinstance(item.index, EventIndex) else "b": _written(item.body.text),
        "p": _number(item.parts) if item.parts else None,
        "alt": None if item.alt is None else {"S": item.alt},
    }
    if isinstance(item.index, (MessageIndex, ToolCallIndex)):
        position = int(item.key[2:])
        values["ts"] = {"S": f"{item.key[0]}/{row_key(item.time, position)}"}
        values["rb"] = bucket_of(item.key[0], place.agent_id)
        values["row"] = {"S": position_key(item.time, place.agent_id, position)}
    return {name: value for name, value in values.items() if value is not None}


class Filter(NamedTuple):
    """A filter for the items that a query sends. Reading costs the same without it."""

    expression: str = ""
    values: Record = {}  # noqa: RUF012 - never changed

    def added_to(self, arguments: Record) -> Record:
        """The arguments of a query, with this filter."""
        if not self.expression:
            return arguments
        values = {**arguments["ExpressionAttributeValues"], **self.values}
        return {**arguments, "FilterExpression": self.expression, "ExpressionAttributeValues": values}


NO_FILTER: Final = Filter()


_MOST_LISTED: Final = 100
"""The most values of lists that a filter names: an expression has at most 4 KB and 300 operators."""


def index_filter(kind: str, where: Sequence[tuple[str, Wanted | bool]]) -> Filter:
    """A filter that leaves out items whose index surely has other values. The caller checks the remaining ones.

    An index is a text that contains each value as it was written. A compressed or damaged index passes.
    """
    values: Record = {":tag": {"S": f'{{"type":"{_TAGS[kind]}"'}}
    every, listed = list[list[str]](), 0
    for name, wanted in where:
        several = wanted if isinstance(wanted, tuple) else (wanted,)
        listed += len(several) if isinstance(wanted, tuple) else 0
        if isinstance(wanted, tuple) and listed > _MOST_LISTED:
            continue
        some = list[str]()
        for value in several:
            written, mark = _encode(value).decode(), f":w{len(values)}"
            values[mark] = {"S": written if name == "content_type" else f'"{name}":{written}'}
            some.append(f"contains(ix, {mark})")
        every.append(some)
    if not every:
        return NO_FILTER
    # DynamoDB refuses redundant parentheses.
    ored = [" OR ".join(some) if len(some) == 1 or len(every) == 1 else f"({' OR '.join(some)})" for some in every]
    return Filter(f"(NOT begins_with(ix, :tag)) OR ({' AND '.join(ored)})", values)


def within_filter(within: Within, other: Filter) -> Filter:
    """*other*, for items that may belong to a range of agents. The caller checks the agents."""
    also = f" AND ({other.expression})" if other.expression else ""
    return Filter(f"contains(pk, :within){also}", {**other.values, ":within": {"S": f"#{within.prefix}"}})


@intact("what a row is found by")
def filed_row(found: Record) -> tuple[int, ItemIndex, int]:
    """The time, the index and the revision of a row's entry in an index."""
    return _filed(found)


def _filed(found: Record) -> tuple[int, ItemIndex, int]:
    return int(found["t"]["N"]), _index(text_of(found["ix"])), int(found["rev"]["N"])


@intact("one of its items")
def found_item(found: Record) -> Item:
    """The item. Its text is empty if the query left it out."""
    if "gone" in found:
        return removed(found["sk"]["S"], int(found["rev"]["N"]))
    value: Any = found.get("b") or found.get("ev")
    milliseconds, index, rev = _filed(found)
    return Item(
        key=found["sk"]["S"],
        rev=rev,
        body=Body(text_of(value), bytes(found["h"]["B"])),
        index=index,
        time=milliseconds,
        alt=found["alt"]["S"] if "alt" in found else None,
        parts=int(found["p"]["N"]) if "p" in found else 0,
    )
