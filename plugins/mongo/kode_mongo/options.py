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
        database: the name of the database; by default the name in the URI, or ``kode``.
        password: a text, or a function, async or not, that is called for one when the store is opened.
        auth_source: the database that knows the user; by default the database in the URI, or ``admin``.
        replica_set: the name of the replica set whose primary is used.
        tls: whether to use TLS; ``tls_ca_file`` names the trusted certificates, by default the system's.
        driver: ``motor``, or ``pymongo`` for its ``AsyncMongoClient``.
        max: the greatest number of connections.
        idle_timeout_millis: the time after which an idle connection is closed.
        connection_timeout_millis: how long to look for a primary; an election takes some 10 seconds.
        command_timeout_millis: how long to wait for the answer to one command before the connection counts as broken.
        collection_prefix: the prefix of the collections' names.
        create: make missing collections and indexes; without it, ``kode schema`` prints the commands for an
            administrator.
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
        """Refuse options that could be shown with a password in them, or lead to an unintended server.

        Raises:
            ConfigurationError: the URI is malformed, or the host is a URI. The error quotes neither.
        """
        see_host(self.host)
        see_password(self.password)
        if self.uri is not None:
            split_uri(self.uri)

    @property
    def database_name(self) -> str:
        """The name of the database, from the options or the URI."""
        return self.database or (split_uri(self.uri).database if self.uri else "") or DEFAULT_DATABASE

    @property
    def address(self) -> str:
        """The address of the database, for messages."""
        if self.client is not None:
            return f"mongo by the given client, database {self.database_name}"
        where = f"{self.host or 'localhost'}{f':{self.port}' if self.port else ''}"
        return f"mongo at {where if self.uri is None else shown_hosts(self.uri)}/{self.database_name}"

    def check(self) -> None:
        """Check that the URI does not weaken the store's promises and that the database's name is valid.

        Raises:
            ConfigurationError: a parameter or the name is refused; the message says why.
        """
        name = self.database_name
        if not re.match(_NAME, name) or len(name.encode(errors="replace")) > _NAME_BYTES:
            raise ConfigurationError(
                f'the database cannot be named so: its name may have {_NAME_BYTES} bytes, and no / \\ . " $ * < > : | ?'
                " and no space"
            )
        if self.uri is not None:
            see_parameters(split_uri(self.uri), self.address)
