"""The collections and their indexes, and their version."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from kode_core.errors import SchemaVersionError, StoreUnavailableError
from kode_mongo.options import MongoOptions

__all__ = [
    "COLLECTIONS",
    "HEADS",
    "INDEXES",
    "ITEMS",
    "META",
    "PARTS",
    "SCHEMA_VERSION",
    "Index",
    "script",
    "see_version",
]

SCHEMA_VERSION: Final = 1

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


_LISTED: Final = {"partialFilterExpression": {"listed": True}}
_ROWS: Final = {"partialFilterExpression": {"list": {"$exists": True}}}

INDEXES: Final = (
    Index(HEADS, ["created_at", "_id"], _LISTED),
    Index(HEADS, ["updated_at", "_id"], _LISTED),
    Index(HEADS, ["messages.count", "_id"], _LISTED),
    Index(HEADS, ["template_id", "created_at", "_id"], _LISTED),
    Index(HEADS, ["metadata"], _LISTED),
    Index(HEADS, ["pending"], {"partialFilterExpression": {"pending": True}}),
    Index(HEADS, ["gone"], {"expireAfterSeconds": 86_400}),
    Index(ITEMS, ["alt"], {"sparse": True}),
    Index(ITEMS, ["agent_id", "list", "time", "key"], _ROWS),
    Index(ITEMS, ["list", "time", "agent_id", "key"], _ROWS),
    Index(ITEMS, ["index.tool_name", "time", "agent_id", "key"], {"partialFilterExpression": {"list": "tool_calls"}}),
    Index(ITEMS, ["agent_id", "epoch"]),
    Index(PARTS, ["agent_id", "epoch"]),
)
"""Beside those of ``_id``, which begins with what stands for the agent, so that an agent's items lie together."""


def script(options: MongoOptions) -> str:
    """The indexes as commands of mongosh, for those who may not let a program make them."""
    prefix = options.collection_prefix

    def command(collection: str, call: str, *arguments: object) -> str:
        return f'db.getCollection("{prefix}{collection}").{call}({", ".join(map(json.dumps, arguments))});\n'

    made = [command(index.collection, "createIndex", dict(index.keys), index.options) for index in INDEXES]
    version = command(META, "updateOne", {"_id": "schema"}, {"$max": {"version": SCHEMA_VERSION}}, {"upsert": True})
    return f"db = db.getSiblingDB({json.dumps(options.database_name)});\n{''.join(made)}{version}"


def see_version(found: Mapping[str, Any] | None, place: str, *, create: bool) -> bool:
    """Whether the indexes are those of this version; False when they are to be made.

    Raises:
        SchemaVersionError: they are of a newer version.
        StoreUnavailableError: they are to be made, and *create* forbids it.
    """
    version = 0 if found is None else int(found["version"])
    if version > SCHEMA_VERSION:
        raise SchemaVersionError(
            f"{place} has schema {version}, and this kode-mongo knows up to {SCHEMA_VERSION}: "
            "run: pip install --upgrade kode-mongo"
        )
    if version < SCHEMA_VERSION and not create:
        raise StoreUnavailableError(
            f"{place}: there are no collections of kode and create is off; "
            "run what 'kode schema mongo --print' prints, in mongosh"
        )
    return version == SCHEMA_VERSION
