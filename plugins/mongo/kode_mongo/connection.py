"""The client: how it is made, and how every call is limited, tried again, and its errors are translated.

Motor and PyMongo's own asyncio client have the same collections. They differ in the methods that have to be awaited;
only this module knows which.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, TypeAlias, TypeVar

import pymongo
from bson.codec_options import CodecOptions
from pymongo.errors import InvalidURI, PyMongoError
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from kode_core.authoring.calls import call_driver
from kode_core.errors import ConfigurationError, KodeError
from kode_mongo.errors import DRIVER_ERRORS, is_lost, is_refused, to_kode_error
from kode_mongo.options import MongoOptions
from kode_mongo.schema import META
from kode_mongo.uris import split_uri

__all__ = ["Connection", "Document", "awaited", "connect", "has_collections", "is_replicated", "weight"]

T = TypeVar("T")
Document: TypeAlias = dict[str, Any]

_LASTING: Final = WriteConcern(w="majority", j=True)
_FLEETING: Final = WriteConcern(w=1)
_CURRENT: Final = ReadConcern("majority")
_NEVER_LATE: Final = ReadConcern("linearizable")
_FIRST_PAGE: Final = 200
_LONG_PAGE: Final = 5_000
_PAGE_BYTES: Final = 8_000_000
_LEAST: Final = 300
_CLOSE_S: Final = 2.0


class Connection:
    """A client and the rules for its use.

    Attributes:
        place: the address of the database, for messages.
    """

    def __init__(self, client: Any, options: MongoOptions) -> None:
        self.address = options.address
        self._client = client
        self._owned = options.client is None
        self._prefix = options.collection_prefix
        self._database = client.get_database(
            options.database_name,
            codec_options=CodecOptions(),
            read_concern=_CURRENT,
            write_concern=_LASTING,
            read_preference=pymongo.ReadPreference.PRIMARY,
        )
        self._connect_s = options.connection_timeout_millis / 1000
        self._seconds = (options.connection_timeout_millis + options.command_timeout_millis) / 1000
        self._gate = asyncio.Semaphore(options.max)  # first come, first served, unlike the driver's pool

    def collection(self, name: str, *, lasting: bool = True) -> Any:
        """A collection. Writes are durable when they return; without *lasting* they need not be."""
        return self._database.get_collection(self._prefix + name, write_concern=_LASTING if lasting else _FLEETING)

    @staticmethod
    def never_late(collection: Any) -> Any:
        """A collection of a replica set for linearizable reads of single documents.

        The server first asks the majority whether it is still the primary. Other reads may be answered by a server that
        was deposed and does not know it yet, with old data.
        """
        return collection.with_options(read_concern=_NEVER_LATE)

    # --- calls

    async def read(self, call: Callable[[], Awaitable[T]]) -> T:
        """Make a call that only reads."""
        return await self._run(call, again=True, writes=False)

    async def repeat(self, call: Callable[[], Awaitable[T]]) -> T:
        """Make a call that writes and is safe to repeat, even if it was applied."""
        return await self._run(call, again=True, writes=True)

    async def write(self, call: Callable[[], Awaitable[T]]) -> T:
        """Make a call that writes, once. The driver numbers it, so its own retry is applied at most once.

        Raises:
            OutcomeUnknownError: the write may or may not have been applied.
        """
        return await self._run(call, again=False, writes=True)

    async def _run(self, call: Callable[[], Awaitable[T]], *, again: bool, writes: bool) -> T:
        try:
            async with self._gate, asyncio.timeout(self._seconds):
                return await (self._persistent(call) if again else self._once(call))
        except KodeError:  # some are OSErrors, too
            raise
        except DRIVER_ERRORS as exc:
            raise to_kode_error(exc, self.address, writes=writes) from exc

    async def _once(self, call: Callable[[], Awaitable[T]]) -> T:
        """Make a call that is applied at most once. A call that was refused for its number was not applied."""
        try:
            return await call_driver(call)
        except DRIVER_ERRORS as exc:
            if not is_refused(exc):
                raise
        return await call_driver(call)

    async def _persistent(self, call: Callable[[], Awaitable[T]]) -> T:
        """Make a call, again while connections break: one broken connection closes others, even new ones."""
        until: float | None = None
        while True:
            try:
                return await call_driver(call)
            except DRIVER_ERRORS as exc:
                until = time.monotonic() + self._connect_s if until is None else until
                if not is_lost(exc) or time.monotonic() > until:
                    raise
            await asyncio.sleep(random.uniform(0.005, 0.02))  # noqa: S311

    async def find(self, collection: Any, wanted: Document, **how: Any) -> list[Document]:
        """All documents of a query. No cursor outlives the call."""
        return await self.read(lambda: collection.find(wanted, **how).to_list(None))

    async def pages(
        self,
        collection: Any,
        wanted: Document,
        by: str,
        bounds: Document,
        *,
        descending: bool = False,
        limit: int | None = None,
        projection: Document | None = None,
        first_page: int = _FIRST_PAGE,
        index: str | None = None,
    ) -> list[Document]:
        """The documents whose unique key *by* is within the bounds, in key order.

        Each page is a call of its own, so that a long result does not exceed the time of one call. The query uses the
        index of the key, or the index of *index* and the key if *wanted* has a value of that field.
        """
        found: list[Document] = []
        size, sort = first_page, [(by, -1 if descending else 1)]
        hint = [(by, 1)] if index is None else [(index, 1), (by, 1)]
        while True:
            count = size if limit is None else min(size, limit - len(found))
            how = {"projection": projection, "sort": sort, "hint": hint, "limit": count, "batch_size": count + 1}
            page = await self.find(collection, {**wanted, by: bounds}, **how)
            found += page
            if len(page) < count or len(found) == limit:
                return found
            bounds = {**bounds, "$lt" if descending else "$gt": page[-1][by]}
            size = max(1, min(_LONG_PAGE, _PAGE_BYTES * len(page) // sum(map(weight, page))))

    async def aggregate(self, collection: Any, stages: Sequence[Document]) -> list[Document]:
        """The documents that a pipeline returns."""

        async def call() -> list[Document]:
            found: list[Document] = await (await awaited(collection.aggregate(stages))).to_list(None)
            return found

        return await self.read(call)

    async def command(self, *command: Any, **how: Any) -> Document:
        """The answer to a command that only reads."""
        return await self.read(lambda: self._client.admin.command(*command, **how))

    async def hello(self) -> Document:
        """The server's description of itself. This is the first call.

        Raises:
            ConfigurationError: the client belongs to another event loop, or sees only one member of a set.
        """
        try:
            hello = await self.command("hello")
        except RuntimeError as exc:
            raise ConfigurationError(
                f"{self.address}: the client belongs to another event loop; "
                "make it in the one in which the store is used"
            ) from exc
        is_certain = hello.get("isWritablePrimary") and len(hello.get("hosts", ())) <= 1
        if "setName" in hello and self._client.options.direct_connection and not is_certain:
            raise ConfigurationError(
                f"{self.address}: with directConnection=true, one member of the set is read whatever becomes of it, and"
                f" what it has may be old; write replicaSet={hello['setName']} in its place"
            )
        return hello

    async def close(self) -> None:
        """Close the client, unless it is the caller's. A server that does not answer is not waited for."""
        if not self._owned:
            return
        with pymongo.timeout(_CLOSE_S):
            if inspect.iscoroutinefunction(self._client.close):
                await self._client.close()
            else:  # motor's close blocks; a task of to_thread could be cancelled before it begins
                close = partial(contextvars.copy_context().run, self._client.close)
                await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, close))


def weight(document: Document) -> int:
    """The approximate size of a document in bytes."""
    return _LEAST + sum(len(document.get(name) or "") for name in ("text", "bytes", "info", "state"))


def is_replicated(hello: Document) -> bool:
    """Whether a server with this description belongs to a replica set or routes to some."""
    return "setName" in hello or hello.get("msg") == "isdbgrid"


async def awaited(value: Any) -> Any:
    """The value that a method returned, awaited if this driver returns an awaitable."""
    return await value if inspect.isawaitable(value) else value


# --- Opening ----------------------------------------------------------------------------------------------------------


def connect(options: MongoOptions) -> Connection:
    """A connection. It contacts the server with its first call.

    Raises:
        ConfigurationError: the options do not fit together.
    """
    options.check()
    client = options.client
    if client is None:
        client = _made(_asyncio_class(options.driver), options)
    try:
        return Connection(client, options)
    except (PyMongoError, TypeError, AttributeError) as exc:
        raise ConfigurationError(f"{options.address}: the client cannot be used: {type(exc).__name__}") from exc


def _asyncio_class(driver: str) -> Any:
    if driver == "pymongo":
        return pymongo.AsyncMongoClient
    from motor.motor_asyncio import AsyncIOMotorClient

    return AsyncIOMotorClient


def _made(kind: Any, options: MongoOptions) -> Any:
    try:
        return kind(options.uri or options.host, options.port, **_arguments(options))
    except (InvalidURI, PyMongoError, ValueError, TypeError, OSError) as exc:
        said = str(exc) if isinstance(exc, pymongo.errors.ConfigurationError) and options.uri is None else _plain(exc)
    raise ConfigurationError(f"{options.address}: the connection's options cannot be used: {said}")


def _plain(exc: Exception) -> str:
    """The reason why a URI was refused, without the driver's message, which may quote a password."""
    if isinstance(exc, InvalidURI):
        return "the URI is malformed; special characters of user and password have to be written as %40 and so on"
    return f"{type(exc).__name__}, see its parameters"


def _arguments(options: MongoOptions) -> Document:
    given = {
        "username": options.user,
        "password": options.password,
        "authSource": options.auth_source,
        "replicaSet": options.replica_set,
        "tls": True if options.tls_ca_file else options.tls,
        "tlsCAFile": options.tls_ca_file,
    }
    named = options.uri is not None and "appname" in (name.lower() for name, _ in split_uri(options.uri).parameters)
    return {
        **{name: value for name, value in given.items() if value is not None},
        **({} if named else {"appname": "kode"}),
        "maxPoolSize": options.max,
        "maxIdleTimeMS": options.idle_timeout_millis,
        "serverSelectionTimeoutMS": options.connection_timeout_millis,
        "connectTimeoutMS": options.connection_timeout_millis,
        "waitQueueTimeoutMS": options.command_timeout_millis,
        "socketTimeoutMS": options.command_timeout_millis,
        "retryWrites": True,
        "tz_aware": False,
    }


def has_collections(options: MongoOptions) -> bool:
    """True if kode's collections exist, or if that cannot be determined. Blocks."""
    try:
        options.check()
        with _made(pymongo.MongoClient, options) as client:
            return bool(client[options.database_name][options.collection_prefix + META].find_one({}))
    except Exception:  # noqa: BLE001 - opening the store explains it better
        return True
