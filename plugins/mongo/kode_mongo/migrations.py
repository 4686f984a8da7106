"""Brings the indexes to this version when a store is opened. Several processes may do so at once.

Building an index of a large collection takes longer than a call may. The server continues when the client leaves, so
the time limit of a call only limits the wait for the answer. After that, this module asks the server now and then
whether it still builds the index. When the server does not, the index is requested again: the server has it by then, or
begins anew if something stopped it. An answer alone is no proof, as the server may give it while it builds the index
for another client. Other clients read and write meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Final

from pymongo import IndexModel
from pymongo.read_concern import ReadConcern

from kode_core.authoring.opening import without_deadline
from kode_core.engines.record.layout import see_layout
from kode_core.errors import OutcomeUnknownError, StoreReadOnlyError, StoreUnavailableError
from kode_mongo.connection import Connection, Document, is_replicated
from kode_mongo.options import MongoOptions
from kode_mongo.schema import HEADS, INDEXES, ITEMS, META, PARTS, SCHEMA_VERSION, reached, remedy, see_version

__all__ = ["migrate"]

log = logging.getLogger("kode_core")

_OLDEST: Final = 17
"""The protocol version of MongoDB 6.0. Older servers do not accept ``$or`` in the condition of an index."""
_FIRST_LOOK_S: Final = 0.1
_LATER_LOOKS_S: Final = 5.0


async def migrate(connection: Connection, options: MongoOptions, hello: Document) -> None:
    """Make missing indexes. Several processes may do so at once (OPS-7, OPS-8).

    *hello* is the server's description of itself.

    Raises:
        SchemaVersionError: the indexes or the records have a newer version; nothing is changed.
        StoreReadOnlyError: the user may not make indexes.
        StoreUnavailableError: indexes are missing, and the options forbid making them or the server is too old.
    """
    meta = connection.collection(META)
    found = await connection.read(lambda: meta.find_one({"_id": "schema"}))
    version = see_version(found, options)
    is_current = see_layout(None if found is None else found.get("layout"), options.address)

    async def reach() -> None:
        await connection.repeat(lambda: meta.update_one({"_id": "schema"}, reached(), upsert=True))

    if version == SCHEMA_VERSION:
        if not is_current:
            await reach()
        return
    if hello.get("maxWireVersion", 0) < _OLDEST:
        raise StoreUnavailableError(f"{options.address}: kode-mongo needs MongoDB 6.0 or later to make its indexes")
    if version:
        log.info("%s: indexes of version %d become version %d", options.address, version, SCHEMA_VERSION)
    try:
        with without_deadline() if version else nullcontext():
            for name in (HEADS, ITEMS, PARTS):
                await _make(connection, name, is_voted=is_replicated(hello))
            await reach()
    except StoreReadOnlyError as exc:
        if not version:
            raise
        raise StoreReadOnlyError(
            f"{options.address}: the indexes are of version {version}, and the user lacks the right to make those of"
            f" version {SCHEMA_VERSION}; {remedy(options)}"
        ) from exc


async def _make(connection: Connection, name: str, *, is_voted: bool) -> None:
    """Make the indexes of a collection in one pass over it, however long that takes.

    A majority has to commit them, as with all writes. By default, the server waits for every member, even one that is
    down.
    """
    collection = connection.collection(name)
    models = [IndexModel(index.keys, **index.options) for index in INDEXES if index.collection == name]
    quorum = {"commitQuorum": "majority"} if is_voted else {}
    pause = _FIRST_LOOK_S
    while True:
        is_answered = True
        try:
            await connection.write(lambda: collection.create_indexes(models, **quorum))
        except OutcomeUnknownError:
            is_answered = False
        is_busy = await _are_made(connection, collection, models)
        if is_answered and not is_busy:
            return
        log.info("%s: the server still makes indexes of %s", connection.address, name)
        while is_busy:
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LATER_LOOKS_S)
            is_busy = await _are_made(connection, collection, models)


async def _are_made(connection: Connection, collection: Any, models: Sequence[IndexModel]) -> bool:
    """Whether the server is building any of the indexes at this moment."""
    local = collection.with_options(read_concern=ReadConcern("local"))  # $collStats does not accept "majority"
    found = await connection.aggregate(local, [{"$collStats": {"storageStats": {}}}])
    building = {name for shard in found for name in shard["storageStats"].get("indexBuilds", ())}
    return not building.isdisjoint(model.document["name"] for model in models)
