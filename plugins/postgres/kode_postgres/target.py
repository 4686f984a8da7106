"""The place and the user of a connection: options, URL, service and variables are merged in libpq's order.

The driver gets every value, so that it looks up nothing itself in another order.
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Mapping
from functools import partial
from typing import Any, Final, NamedTuple
from urllib.parse import quote, urlencode

import msgspec

from kode_core.authoring.options import password_of
from kode_core.errors import ConfigurationError
from kode_postgres.dsn import read_dsn
from kode_postgres.options import PostgresOptions
from kode_postgres.parameters import Given, millis_of, paired, see_parameter
from kode_postgres.passfile import password_in
from kode_postgres.services import service_of
from kode_postgres.tls import encryption
from kode_postgres.variables import parameters_of, settings_of

__all__ = ["Host", "Target", "target_of"]

_APPLICATION: Final = "kode"
_PORT: Final = 5432
_FOLDERS: Final = ("/run/postgresql", "/var/run/postgresql", "/tmp", "/private/tmp")  # noqa: S108 - sockets of servers
"""The folders of server sockets on different systems."""
_SOCKETS: Final = (*_FOLDERS, "localhost") if os.name == "posix" else ("localhost",)
"""The hosts to try if none is given."""


class Host(NamedTuple):
    """One possible place of a server: a name, an address, or the folder of a socket."""

    name: str
    port: int


class Target(NamedTuple):
    """Everything that is needed to connect.

    Attributes:
        hosts: the places, in the order of attempts.
        wanted: libpq's ``target_session_attrs``.
        options: the options with their place and connection timeout filled in.
    """

    hosts: tuple[Host, ...]
    wanted: str
    settings: Mapping[str, str]
    options: PostgresOptions
    common: Mapping[str, Any]
    encrypted: Mapping[str, Any]
    password: Any
    passfile: str

    def arguments(self, host: Host) -> dict[str, Any]:
        """The driver's arguments for a host, complete, so that it looks up none itself."""
        database, user = self.common["database"], self.common["user"]
        known = "localhost" if host.name in _FOLDERS else host.name
        return {
            **self.common,
            "host": [host.name],
            "port": [host.port],
            "password": self.password or partial(password_in, self.passfile, known, host.port, database, user),
            **({"ssl": False, "direct_tls": False} if host.name.startswith("/") else self.encrypted),
        }


def target_of(options: PostgresOptions, variables: Mapping[str, str]) -> Target:
    """The target of the options together with libpq's variables.

    Raises:
        ConfigurationError: libpq would refuse a given value, or it would have no effect; it is named, and not quoted.
    """
    given = _merged(options, variables)
    hosts = _hosts(given)
    user = _text(given, "user") or _system_user()
    own = options.server_settings or {}
    application = _text(given, "application_name") or _text(given, "fallback_application_name") or _APPLICATION
    settings = {**settings_of(variables, own), **own, "application_name": application}
    if _text(given, "options"):
        settings = {"options": _text(given, "options"), **settings}
    password = options.password if callable(options.password) else None
    return Target(
        hosts,
        _text(given, "target_session_attrs") or "any",
        settings,
        _placed(options, given),
        {
            "user": user,
            "database": _text(given, "dbname") or user,
            "krbsrvname": _text(given, "krbsrvname") or "postgres",
            "gsslib": _text(given, "gsslib") or ("sspi" if os.name == "nt" else "gssapi"),
        },
        encryption(options.ssl, given, over_tcp=any(not host.name.startswith("/") for host in hosts)),
        partial(password_of, password) if password else _text(given, "password"),
        _text(given, "passfile"),
    )


def _merged(options: PostgresOptions, variables: Mapping[str, str]) -> dict[str, Given]:
    """The parameters: an option wins over the URL, the URL over the service, the service over a variable."""
    url = {} if options.dsn is None else read_dsn(options.dsn).parameters
    service = service_of(url, variables)
    merged = {**parameters_of(variables), **service, **url, **_own(options)}
    for name, given in merged.items():
        see_parameter(name, given)
    return merged


def _own(options: PostgresOptions) -> dict[str, Given]:
    """The options that are also parameters of libpq."""
    texts = {
        "host": options.host and ",".join(one.removeprefix("[").removesuffix("]") for one in options.host.split(",")),
        "port": None if options.port is None else str(options.port),
        "dbname": options.database,
        "user": options.user,
        "password": None if callable(options.password) else options.password,
        "application_name": options.application_name,
    }
    called = {"dbname": "database"}
    return {
        name: Given(text, f"the option {called.get(name, name)}") for name, text in texts.items() if text is not None
    }


def _text(given: Mapping[str, Given], name: str) -> str:
    return given[name].text if name in given else ""


def _hosts(given: Mapping[str, Given]) -> tuple[Host, ...]:
    pairs = paired(_text(given, "host"), _text(given, "port"))
    if pairs is None:
        raise ConfigurationError(
            f"{given['port'].says('port')} with another count of numbers than there are hosts; give one number, or one "
            "for each host"
        )
    return tuple(
        Host(name, int(port.strip() or _PORT)) for host, port in pairs for name in ((host,) if host else _SOCKETS)
    )


def _system_user() -> str:
    """The name of this process's user, which libpq uses, too."""
    try:
        if os.name == "posix":
            import pwd

            return pwd.getpwuid(os.geteuid()).pw_name
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        raise ConfigurationError("no user is given, and the system has no name for that of this process") from None


def _placed(options: PostgresOptions, given: Mapping[str, Given]) -> PostgresOptions:
    """The options with the resolved place, for messages, and the connection timeout."""
    where = {name: _text(given, name) for name in ("host", "port", "dbname") if _text(given, name)}
    dsn = f"postgresql://?{urlencode(where, quote_via=quote)}"
    options = msgspec.structs.replace(options, dsn=dsn, host=None, port=None, database=None)
    if options.has_connection_timeout or "connect_timeout" not in given:
        return options
    return msgspec.structs.replace(options, connection_timeout_millis=millis_of(given["connect_timeout"]))
