"""The options of the PostgreSQL backend."""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

import msgspec

from kode_core.errors import ConfigurationError

__all__ = ["PostgresOptions", "resolved"]

_Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]*\Z", max_length=63)]
_Prefix = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]*\Z", max_length=30)]
_Secret = Annotated[str, msgspec.Meta(extra={"secret": True})]
_Millis = Annotated[int, msgspec.Meta(gt=0)]


class PostgresOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, repr_omit_defaults=True):
    """Options of the PostgreSQL backend.

    What is not given is taken from where libpq takes it: the variables ``PGHOST``, ``PGUSER``, …, a password file, the
    socket of this machine.

    Attributes:
        dsn: ``postgres://user:password@host:port/database``, with libpq's parameters such as ``sslmode``.
        connection: these options as a mapping, or the ``dsn``.
        host: a name, an address, or the folder of a socket.
        ssl: ``True`` or a mode of libpq's such as ``require`` or ``verify-full``; the path of a file with the
            certificates to trust, which means ``verify-full``; or an ``ssl.SSLContext``.
        max: how many connections at most.
        idle_timeout_millis: after how long an idle connection is closed.
        connection_timeout_millis: how long to try to get a connection to a server that does not answer or is starting.
        command_timeout_millis: how long to wait for the answer to one statement before the connection counts as broken.
        durability: ``full`` waits until a commit is on the server's disk, whatever the server's settings. With
            ``fast`` a crash of the server may lose the last commits, all of what each wrote.
        schema: the schema to keep the tables in; made when it is not there. The server's search path unless given.
        table_prefix: how the tables' names begin.
        create: make tables that are missing and bring older ones to this version; without it, ``kode schema`` prints
            what somebody else has to run.
        statement_cache_size: how many prepared statements each connection keeps. Chosen by what is found at the other
            end: none behind PgBouncer in transaction mode.
        pool: an ``asyncpg.Pool`` of your own, which is used and never closed.
    """

    dsn: _Secret | None = None
    connection: Any = None
    host: str | None = None
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] | None = None
    database: str | None = None
    user: str | None = None
    password: _Secret | None = None
    ssl: Any = None
    max: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 10
    idle_timeout_millis: _Millis = 30_000
    connection_timeout_millis: _Millis = 5_000
    command_timeout_millis: _Millis = 10_000
    durability: Literal["full", "fast"] = "full"
    schema: _Name | None = None
    table_prefix: _Prefix = "kode_"
    create: bool = True
    statement_cache_size: Annotated[int, msgspec.Meta(ge=0)] | None = None
    pool: Any = None

    def __repr__(self) -> str:
        """The options without what is secret."""
        hidden = {"dsn", "connection", "password", "ssl", "pool"}
        shown = ((f.name, getattr(self, f.name), f.default) for f in msgspec.structs.fields(self))
        given = (f"{n}={'***' if n in hidden else repr(v)}" for n, v, default in shown if v != default)
        return f"PostgresOptions({', '.join(given)})"

    @property
    def place(self) -> str:
        """Where the database is, for messages."""
        if self.pool is not None:
            return "postgres by the given pool"
        host, port, database = self.host, self.port, self.database
        if self.dsn is not None:
            split = urlsplit(self.dsn)
            host, database = host or split.hostname, database or split.path.removeprefix("/")
            port = port or _port_of(self.dsn)
        where = f"{host or 'the default host'}{f':{port}' if port else ''}"
        return f"postgres at {where}{f'/{database}' if database else ''}"


def _port_of(dsn: str) -> int | None:
    try:
        return urlsplit(dsn).port
    except ValueError:
        return None


_FIELDS: Final = {field.name: field for field in msgspec.structs.fields(PostgresOptions)}


def resolved(options: PostgresOptions) -> PostgresOptions:
    """The options with those of ``connection`` in their places; what is given beside it wins.

    Raises:
        ConfigurationError: ``connection`` is no mapping of options.
    """
    given = options.connection
    if given is None:
        return options
    if isinstance(given, str):
        given = {"dsn": given}
    if not isinstance(given, dict):
        raise ConfigurationError(f"connection must be a mapping of options or a URL, got {type(given).__name__}")
    values = {name: _checked(name, value) for name, value in given.items() if value is not None}
    beside = {n: getattr(options, n) for n, f in _FIELDS.items() if getattr(options, n) != f.default}
    return PostgresOptions(**{**values, **beside, "connection": None})


def _checked(name: str, value: Any) -> Any:
    field = _FIELDS.get(name)
    if field is None or name in ("connection", "pool"):
        near = difflib.get_close_matches(str(name), _FIELDS, 1)
        raise ConfigurationError(f"connection has no option {name!r}{f'; did you mean {near[0]!r}?' if near else ''}")
    try:
        return msgspec.convert(value, field.type)
    except msgspec.ValidationError as exc:
        raise ConfigurationError(f"connection: option {name}: {str(exc).replace('`', '')}") from None
