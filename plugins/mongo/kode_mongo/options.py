"""The options of the MongoDB backend."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Final, Literal

import msgspec

from kode_core.authoring.options import Millis, Password, Port, Prefix, Secret, ServerOptions, see_host, see_password
from kode_core.errors import ConfigurationError
from kode_mongo.uris import see_parameters, shown_hosts, split_uri

__all__ = ["DEFAULT_DATABASE", "DEFAULT_PREFIX", "MongoOptions"]

_NAME: Final = r'^[^/\\. "$*<>:|?\x00]+\Z'
_NAME_BYTES: Final = 63
_Database = Annotated[
    str,
    msgspec.Meta(pattern=_NAME, max_length=_NAME_BYTES, extra={"form": "a name that MongoDB takes for a database"}),
]

DEFAULT_DATABASE: Final = "kode"
DEFAULT_PREFIX: Final = "kode_"


class MongoOptions(ServerOptions, frozen=True, kw_only=True):
    """Options of the MongoDB backend.

    Attributes:
        uri: ``mongodb://user:password@host:port/database`` or ``mongodb+srv://…``, with MongoDB's parameters.
        connection: these options as a mapping, or the ``uri``.
        database: the database's name; that of the URI, or ``kode``, unless given.
        password: a text, or a function that returns one, async or not, and is asked when the store is opened.
        auth_source: the database that knows the user; unless given, the one that the URI names, or else ``admin``.
        replica_set: the name of the set whose primary to look for.
        tls: whether to speak TLS; ``tls_ca_file`` names the certificates to trust, the system's unless given.
        driver: ``motor``, or ``pymongo`` for its ``AsyncMongoClient``.
        max: how many connections at most.
        idle_timeout_millis: after how long an idle connection is closed.
        connection_timeout_millis: how long to look for a primary; to elect one takes some 10 seconds.
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
    password: Password = None
    auth_source: str | None = None
    replica_set: str | None = None
    tls: bool | None = None
    tls_ca_file: str | None = None
    driver: Literal["motor", "pymongo"] = "motor"
    max: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 100
    idle_timeout_millis: Millis = 30_000
    connection_timeout_millis: Millis = 15_000
    command_timeout_millis: Millis = 10_000
    collection_prefix: Prefix = DEFAULT_PREFIX
    create: bool = True
    client: Any = None

    url_option: ClassVar[str] = "uri"
    hidden: ClassVar[frozenset[str]] = frozenset({"uri", "password"})
    objects: ClassVar[frozenset[str]] = frozenset({"client"})

    def __post_init__(self) -> None:
        """Refuse at once what could be shown with a password in it, or lead to a place that nobody meant.

        Raises:
            ConfigurationError: the URI is malformed, or the host is one; nothing of either is quoted.
        """
        see_host(self.host)
        see_password(self.password)
        if self.uri is not None:
            split_uri(self.uri)

    @property
    def database_name(self) -> str:
        """The database, wherever it was named."""
        return self.database or (split_uri(self.uri).database if self.uri else "") or DEFAULT_DATABASE

    @property
    def place(self) -> str:
        """Where the database is, for messages."""
        if self.client is not None:
            return f"mongo by the given client, database {self.database_name}"
        where = f"{self.host or 'localhost'}{f':{self.port}' if self.port else ''}"
        return f"mongo at {where if self.uri is None else shown_hosts(self.uri)}/{self.database_name}"

    def check(self) -> None:
        """See that the URI takes nothing back of what the store promises, and that the database can have its name.

        Raises:
            ConfigurationError: it does, or cannot; says what and why.
        """
        name = self.database_name
        if not re.match(_NAME, name) or len(name.encode(errors="replace")) > _NAME_BYTES:
            raise ConfigurationError(
                f'the database cannot be named so: its name may have {_NAME_BYTES} bytes, and no / \\ . " $ * < > : | ?'
                " and no space"
            )
        if self.uri is not None:
            see_parameters(split_uri(self.uri), self.place)
