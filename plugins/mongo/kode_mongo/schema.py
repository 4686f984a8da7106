"""The collections, their indexes, and the schema's version."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode

from kode_core.engines.record import layout as record_layout
from kode_core.errors import SchemaVersionError, StoreUnavailableError
from kode_mongo.options import DEFAULT_DATABASE, DEFAULT_PREFIX, MongoOptions

__all__ = [
    "BY_KEY",
    "COLLECTIONS",
    "HEADS",
    "INDEXES",
    "ITEMS",
    "META",
    "PARTS",
    "SCHEMA_VERSION",
    "Index",
    "in_ranges",
    "is_common_channel",
    "reached",
    "remedy",
    "script",
    "see_version",
]

SCHEMA_VERSION: Final = 3

HEADS: Final = "heads"
ITEMS: Final = "items"
PARTS: Final = "parts"
META: Final = "meta"
COLLECTIONS: Final = (HEADS, ITEMS, PARTS, META)


class Index(NamedTuple):
    """An index of a collection: the fields in their order, and the options of ``createIndex``."""

    collection: str
    fields: Sequence[str]
    options: Mapping[str, Any] = {}

    @property
    def keys(self) -> list[tuple[str, int]]:
        """The fields as the driver takes them."""
        return [(field, 1) for field in self.fields]


def _where(condition: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"partialFilterExpression": condition}


def _outside(field: str, *spans: tuple[str, str]) -> list[dict[str, Any]]:
    """Alternative conditions for a text outside of all spans, as partial indexes do not accept ``$ne``.

    They are ranges, because the server can tell that the value of a query lies within a range.
    """
    ends: list[str | None] = [None, *(end for span in spans for end in span), None]
    pairs = zip(ends[::2], ends[1::2], strict=True)
    bounds = ({"$gt": low, "$lt": high} for low, high in pairs)
    return [{field: {name: end for name, end in bound.items() if end is not None}} for bound in bounds]


_LISTED: Final = _where({"listed": True})
_ROWS: Final = _where({"list": {"$exists": True}})
_COMMON_CHANNEL: Final = "progress"

# A query for a common value finds rows soon by reading all rows in the order of time. An index of the rare values is
# small, and a row without one costs its writer only the check of the condition.
_COMMON: Final[Mapping[str, Sequence[tuple[str, str]]]] = {
    "index.role": (("assistant", "assistant"), ("user", "user")),
    "index.content_types": (("text", "tool_use"),),  # and "tool_result", between the two
    "index.state": (("COMPLETED", "COMPLETED"),),
}
_RARE_ROLE: Final = _outside("index.role", *_COMMON["index.role"])
_RARE_TYPE: Final = _outside("index.content_types", *_COMMON["index.content_types"])
_RARE_STATE: Final = _outside("index.state", *_COMMON["index.state"])
_RARE_CHANNEL: Final = _outside("index.channel", (_COMMON_CHANNEL, _COMMON_CHANNEL))
_ERROR: Final = {"index.is_error": True}
_APPROVAL: Final = {"index.has_approval": True}

_BY_TIME: Final = ("time", "agent_id", "key")
_OF_ONE: Final = ("agent_id", "time", "key")
BY_KEY: Final = ("agent_id", "key", "epoch")
"""The order in which documents with tags are found."""

INDEXES: Final = (
    Index(HEADS, ["created_at", "_id"], _LISTED),
    Index(HEADS, ["updated_at", "_id"], _LISTED),
    Index(HEADS, ["messages.count", "_id"], _LISTED),
    Index(HEADS, ["template_id", "created_at", "_id"], _LISTED),
    Index(HEADS, ["metadata"], _LISTED),
    Index(HEADS, ["pending"], _where({"pending": True})),
    Index(HEADS, ["gone"], {"expireAfterSeconds": 86_400}),
    Index(ITEMS, ["alt"], {"sparse": True}),
    Index(ITEMS, ["agent_id", "list", *_BY_TIME[::2]], _ROWS),
    Index(ITEMS, ["list", *_BY_TIME], _ROWS),
    Index(ITEMS, ["index.tool_name", *_BY_TIME], _where({"list": "tool_calls"})),
    Index(ITEMS, ["agent_id", "epoch"]),
    Index(PARTS, ["agent_id", "epoch"]),
    # Version 2. Rare rows of all agents, in the order of a query: a page costs as much as it returns. A rare row has an
    # entry for each of its rare values; a message with a rare type has one for each of its types.
    Index(ITEMS, ["index.role", *_BY_TIME], _where({"$or": _RARE_ROLE})),
    Index(ITEMS, ["index.content_types", *_BY_TIME], _where({"$or": _RARE_TYPE})),
    Index(ITEMS, ["index.state", *_BY_TIME], _where({"$or": _RARE_STATE})),
    Index(ITEMS, ["index.is_error", *_BY_TIME], _where(_ERROR)),
    Index(ITEMS, ["index.has_approval", *_BY_TIME], _where(_APPROVAL)),
    # The same for one agent, which may be large among many: one index for each list. The values follow the row's place,
    # so that a page passes over entries of the agent's other rare rows and reads only documents that match. A rare row
    # has one more entry here, a message one for each of its types.
    Index(ITEMS, [*_OF_ONE, "index.role", "index.content_types"], _where({"$or": [*_RARE_ROLE, *_RARE_TYPE]})),
    Index(
        ITEMS,
        [*_OF_ONE, "index.state", "index.is_error", "index.has_approval"],
        _where({"$or": [*_RARE_STATE, _ERROR, _APPROVAL]}),
    ),
    # Events of rare channels, by offset and by seq; ids and alts begin with a hash of the agent id. Each such event has
    # two entries; a progress event, the common kind, has none.
    Index(ITEMS, ["index.channel", "_id"], _where({"$or": _RARE_CHANNEL})),
    Index(ITEMS, ["index.channel", "alt"], _where({"$or": _RARE_CHANNEL})),
    # Version 3. Documents with tags, in the order of a search: each has up to 15 entries, one for each combination of
    # its tags.
    Index(ITEMS, ["terms", *BY_KEY], _where({"terms": {"$exists": True}})),
)
"""All indexes except the one of ``_id``, which begins with a hash of the agent id and keeps an agent's items together.

The indexes of version 2 use fields that version 1 wrote already: documents stay as they are, and programs of version 1
that still run write them correctly. ``$or`` in a condition needs MongoDB 6.0. The index of version 3 is of a field that
earlier versions did not write: it is empty at first.
"""


def in_ranges(field: str, values: Sequence[str]) -> list[list[str]]:
    """The values in groups, each within one range of the index of rare values, as the server recognises them.

    If some values are common, all are one group: rows with these are found soon in the order of time.
    """
    spans = _COMMON.get(field, ())
    if any(low <= value <= high for value in values for low, high in spans):
        return [list(values)]
    groups: dict[int, list[str]] = {}
    for value in values:
        groups.setdefault(sum(value > high for _, high in spans), []).append(value)
    return list(groups.values())


def is_common_channel(channel: str) -> bool:
    """Whether the indexes of channels leave out the events of a channel."""
    return channel == _COMMON_CHANNEL


def script(options: MongoOptions) -> str:
    """The indexes as mongosh commands, for administrators who do not let a program make them."""
    prefix = options.collection_prefix

    def command(collection: str, call: str, *arguments: object) -> str:
        return f'db.getCollection("{prefix}{collection}").{call}({", ".join(map(json.dumps, arguments))});\n'

    commands = [command(index.collection, "createIndex", dict(index.keys), index.options) for index in INDEXES]
    version = command(META, "updateOne", {"_id": "schema"}, reached(), {"upsert": True})
    return f"db = db.getSiblingDB({json.dumps(options.database_name)});\n{''.join(commands)}{version}"


def reached() -> dict[str, dict[str, int]]:
    """The update that records this release's versions in a database, unless it has newer ones."""
    return {"$max": {"version": SCHEMA_VERSION, "layout": record_layout.LAYOUT_VERSION}}


def remedy(options: MongoOptions) -> str:
    """Instructions for making the indexes."""
    given = {"database": options.database_name, "collection_prefix": options.collection_prefix}
    usual = {"database": DEFAULT_DATABASE, "collection_prefix": DEFAULT_PREFIX}
    named = urlencode([(name, value) for name, value in given.items() if value != usual[name]])
    where = f"'mongo:?{named}'" if named else "mongo"
    return f"run what kode schema {where} --print prints, in mongosh, as a user who may make indexes"


def see_version(found: Mapping[str, Any] | None, options: MongoOptions) -> int:
    """The version of the indexes; 0 without any. A version below this release's needs ``create``.

    Raises:
        SchemaVersionError: the indexes have a newer version.
        StoreUnavailableError: indexes are missing, and ``create`` is off.
    """
    version = 0 if found is None else int(found["version"])
    if version > SCHEMA_VERSION:
        raise SchemaVersionError(
            f"{options.address} has schema {version}, and this kode-mongo knows up to {SCHEMA_VERSION}: "
            "run: pip install --upgrade kode-mongo"
        )
    if version < SCHEMA_VERSION and not options.create:
        what = f"the indexes are of version {version}" if version else "there are no collections of kode"
        raise StoreUnavailableError(f"{options.address}: {what} and create is off; {remedy(options)}")
    return version
