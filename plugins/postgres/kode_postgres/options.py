"""The options of the PostgreSQL backend."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

import msgspec

from kode_core.authoring.options import (
    Millis,
    Password,
    Port,
    Prefix,
    Secret,
    ServerOptions,
    see_host,
    see_password,
    shown,
)
from kode_postgres.dsn import read_dsn
from kode_postgres.parameters import see_settings

__all__ = ["PostgresOptions"]

_Name = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*\Z",
        max_length=63,
        extra={"form": "letters of ASCII, digits and '_', and begin with no digit"},
    ),
]

_Setting = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)?\Z",
        max_length=63,
        extra={"form": "a mapping of settings, by their names"},
    ),
]
_Text = Annotated[str, msgspec.Meta(pattern=r"^[^\x00]*\Z", max_length=1000, extra={"form": "a text without NUL"})]


class PostgresOptions(ServerOptions, frozen=True, kw_only=True):
    """Options of the PostgreSQL backend.

    Options that are not given come from the same sources as in libpq: the variables ``PGHOST``, ``PGUSER``, …, a
    password file, the socket of this machine.

    Attributes:
        dsn: ``postgres://user:password@host:port/database``, with libpq's parameters such as ``sslmode``.
        connection: these options as a mapping, or the ``dsn``.
        host: a name, an address, or the folder of a socket; of several, separated by commas, the first that answers.
        password: a text, or a function that returns one, async or not, which is called for each new connection.
        ssl: ``True`` or a mode of libpq such as ``require`` or ``verify-full``; the path of a file with the
            certificates to trust, which means ``verify-full``; or an ``ssl.SSLContext``.
        max: the maximum number of connections.
        idle_timeout_millis: how long a connection may be idle before it is closed.
        connection_timeout_millis: how long to try to connect to a server that does not answer or is starting.
        command_timeout_millis: how long to wait for the answer to a statement, which is then ended on the server, too.
            The server's own limit, ``statement_timeout``, is 2 s more.
        lock_wait_millis: how long to wait for an agent that another session keeps locked. The default is 8 s, and less
            if ``command_timeout_millis`` is below 10 s.
        application_name: the name that the server shows for the connections; ``kode`` by default.
        server_settings: settings of the sessions, as in ``{"work_mem": "8MB"}``, except for the ones that the store
            sets.
        durability: with ``full``, a commit waits until it is on the server's disk, whatever the server's settings. With
            ``fast``, a crash of the server may lose the last commits, each as a whole.
        schema: the schema of the tables; created if it does not exist. By default the server's search path decides.
        table_prefix: the prefix of the tables' names.
        create: create missing tables and bring older ones to this version; without it, ``kode schema`` prints the SQL
            that an administrator has to run.
        statement_cache_size: the number of prepared statements that each connection keeps. The default depends on the
            server's end: none behind PgBouncer in transaction mode.
        text_index: make an index of the texts of messages when the database has none, so that ``contains`` does not
            read every message; see ``kode text-index``. A database that has one keeps it without this option.
        pool: an ``asyncpg.Pool`` of your own, which is used and never closed.
    """

    dsn: Secret | None = None
    host: str | None = None
    port: Port | None = None
    database: str | None = None
    user: str | None = None
    password: Password = None
    ssl: Any = None
    max: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 10
    idle_timeout_millis: Millis = 30_000
    connection_timeout_millis: Millis = 5_000
    command_timeout_millis: Millis = 10_000
    lock_wait_millis: Millis | None = None
    application_name: _Text | None = None
    server_settings: dict[_Setting, _Text] | None = None
    durability: Literal["full", "fast"] = "full"
    schema: _Name | None = None
    table_prefix: Prefix = "kode_"
    create: bool = True
    statement_cache_size: Annotated[int, msgspec.Meta(ge=0, le=100_000)] | None = None
    text_index: bool = False
    pool: Any = None

    url_option: ClassVar[str] = "dsn"
    hidden: ClassVar[frozenset[str]] = frozenset({"dsn", "password", "ssl", "server_settings"})
    objects: ClassVar[frozenset[str]] = frozenset({"pool"})

    def __post_init__(self) -> None:
        """Refuse at once any option that could be shown with a password in it.

        Raises:
            ConfigurationError: the dsn is malformed, the host is a URL, the password is neither text nor function, or a
                setting is one that the store sets; no value is quoted.
        """
        see_host(self.host)
        see_password(self.password)
        see_settings(self.server_settings or (), "server_settings")
        if self.dsn is not None:
            read_dsn(self.dsn)

    def resolved(self) -> Self:
        """The options with the contents of ``connection`` and the dsn's own parameters filled in."""
        options = super().resolved()
        millis = None if options.dsn is None else read_dsn(options.dsn).connect_timeout_millis
        if millis is None or options.has_connection_timeout:
            return options
        return msgspec.structs.replace(options, connection_timeout_millis=millis)

    @property
    def has_connection_timeout(self) -> bool:
        """True if the time to connect was given."""
        return "connection_timeout_millis" in self._given()

    @property
    def address(self) -> str:
        """The place of the database, for messages."""
        if self.pool is not None:
            return "postgres by the given pool"
        where = f"{self.host}{f':{self.port}' if self.port else ''}" if self.host else ""
        database = self.database
        if self.dsn is not None:
            dsn = read_dsn(self.dsn)
            where, database = where or dsn.hosts, database or dsn.database
        return f"postgres at {shown(where) or 'the default host'}{f'/{shown(database)}' if database else ''}"
