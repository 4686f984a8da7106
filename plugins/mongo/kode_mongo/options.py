"""The options of the MongoDB backend."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final, Literal
from urllib.parse import parse_qsl, urlsplit

import msgspec

from kode_core.errors import ConfigurationError
from kode_core.server_options import Millis, Port, Prefix, Secret, ServerOptions

__all__ = ["MongoOptions"]

_Database = Annotated[str, msgspec.Meta(pattern=r'^[^/\\. "$*<>:|?\x00]+\Z', max_length=63)]

_DEFAULT_DATABASE: Final = "kode"
_KEPT: Final = {
    "w": ("majority",),
    "journal": ("true",),
    "j": ("true",),
    "readpreference": ("primary",),
    "readconcernlevel": ("majority", "linearizable"),
}
"""Parameters of a URI that this backend's promises rest on, and what they may be."""
_WEAKENED: Final = (
    "kode-mongo always writes with w=majority and j=true and reads from the primary what a majority has, because with"
    " less a crash loses what was acknowledged; leave the parameter out"
)


class MongoOptions(ServerOptions, frozen=True, kw_only=True):
    """Options of the MongoDB backend.

    Attributes:
        uri: ``mongodb://user:password@host:port/database`` or ``mongodb+srv://…``, with MongoDB's parameters.
        connection: these options as a mapping, or the ``uri``.
        database: the database's name; that of the URI, or ``kode``, unless given.
        auth_source: the database that knows the user; ``admin`` unless given.
        replica_set: the name of the set whose primary to look for.
        tls: whether to speak TLS; ``tls_ca_file`` names the certificates to trust, the system's unless given.
        driver: ``motor``, or ``pymongo`` for its ``AsyncMongoClient``.
        max: how many connections at most.
        idle_timeout_millis: after how long an idle connection is closed.
        connection_timeout_millis: how long to look for a primary that can be reached.
        command_timeout_millis: how long to wait for the answer to one command before the connection counts as broken.
        collection_prefix: how the collections' names begin.
        create: make collections and indexes that are missing; without it, ``kode schema`` prints what somebody else
            has to run.
        client: an ``AsyncIOMotorClient`` or ``AsyncMongoClient`` of your own, which is used and never closed.
    """

    uri: Secret | None = None
    host: str | None = None
    port: Port | None = None
    database: _Database | None = None
    user: str | None = None
    password: Secret | None = None
    auth_source: str | None = None
    replica_set: str | None = None
    tls: bool | None = None
    tls_ca_file: str | None = None
    driver: Literal["motor", "pymongo"] = "motor"
    max: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 100
    idle_timeout_millis: Millis = 30_000
    connection_timeout_millis: Millis = 5_000
    command_timeout_millis: Millis = 10_000
    collection_prefix: Prefix = "kode_"
    create: bool = True
    client: Any = None

    url_option: ClassVar[str] = "uri"
    hidden: ClassVar[frozenset[str]] = frozenset({"uri", "password"})
    objects: ClassVar[frozenset[str]] = frozenset({"client"})

    @property
    def database_name(self) -> str:
        """The database, wherever it was named."""
        named = None if self.uri is None else urlsplit(self.uri).path.removeprefix("/")
        return self.database or named or _DEFAULT_DATABASE

    @property
    def place(self) -> str:
        """Where the database is, for messages."""
        if self.client is not None:
            return f"mongo by the given client, database {self.database_name}"
        where = f"{self.host or 'localhost'}{f':{self.port}' if self.port else ''}"
        if self.uri is not None and self.host is None:
            where = urlsplit(self.uri).netloc.rpartition("@")[2] or where
        return f"mongo at {where}/{self.database_name}"

    def check(self) -> None:
        """See that the URI takes nothing back of what the store promises.

        Raises:
            ConfigurationError: it does; says what and why.
        """
        if self.uri is None:
            return
        for name, value in parse_qsl(urlsplit(self.uri).query, keep_blank_values=True):
            kept = _KEPT.get(name.lower())
            if kept is not None and value.lower() not in kept:
                raise ConfigurationError(f"{self.place}: the URI has {name}={value}; {_WEAKENED}")
