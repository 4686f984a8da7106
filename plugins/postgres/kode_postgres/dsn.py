"""PostgreSQL's URL, taken apart here: the driver's words about one that is malformed quote parts of it.

Each of libpq's parameters is passed on, or kept by this backend itself, or refused: none is dropped without a word.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from kode_core.errors import ConfigurationError

__all__ = [
    "CHOICES",
    "HELD",
    "PARAMETERS",
    "Dsn",
    "millis_of",
    "read_dsn",
    "see_settings",
    "settings_in",
    "variable_of",
]

_PASSED: Final = frozenset(
    {
        *("host", "port", "user", "password", "dbname", "database", "passfile", "options"),
        *("sslmode", "sslrootcert", "sslcert", "sslkey", "sslcrl", "sslpassword", "sslnegotiation"),
        *("ssl_min_protocol_version", "ssl_max_protocol_version", "target_session_attrs", "krbsrvname", "gsslib"),
    }
)
"""Parameters that the driver understands; ``options`` reaches the server."""
_OURS: Final = frozenset({"application_name", "fallback_application_name", "connect_timeout", "service", "servicefile"})
"""Parameters that this backend handles itself."""
HELD: Final[Mapping[str, tuple[str, ...]]] = {
    "channel_binding": ("prefer", "disable"),
    "gssencmode": ("prefer", "disable"),
    "sslcompression": ("0",),
    "sslsni": ("1",),
    "client_encoding": ("utf8", "utf-8", "auto"),
    "load_balance_hosts": ("disable",),
    "gssdelegation": ("0",),
    "sslcertmode": ("allow",),
    "replication": ("false", "off", "no", "0"),
}
"""What the driver does not know, and the values that hold all the same."""
_TLS_VERSIONS: Final = ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3")
CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "sslnegotiation": ("postgres", "direct"),
    "ssl_min_protocol_version": _TLS_VERSIONS,
    "ssl_max_protocol_version": _TLS_VERSIONS,
    "target_session_attrs": ("any", "read-write", "read-only", "primary", "standby", "prefer-standby"),
    "gsslib": ("gssapi", "sspi"),
}
"""What these parameters may be: the driver would quote what else they are."""
_REFUSED: Final = frozenset(
    {
        *("hostaddr", "require_auth", "requirepeer", "requiressl", "sslcrldir", "sslkeylogfile", "tcp_user_timeout"),
        *("keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "scram_client_key"),
        *("scram_server_key", "min_protocol_version", "max_protocol_version", "oauth_issuer", "oauth_client_id"),
        *("oauth_client_secret", "oauth_scope"),
    }
)
"""Parameters of libpq that mean nothing here, whatever their value."""
PARAMETERS: Final = _PASSED | _OURS | HELD.keys() | _REFUSED
"""Parameters of a URL that are libpq's and no options of this backend."""

_MADE: Final[Mapping[str, str]] = {
    "application_name": "it is an option",
    "statement_timeout": "it follows from command_timeout_millis",
    "idle_in_transaction_session_timeout": "it follows from command_timeout_millis",
    "lock_timeout": "see lock_wait_millis",
    "default_transaction_isolation": "the store chooses it",
    "client_connection_check_interval": "the store chooses it",
    "client_encoding": "it is UTF-8",
}
"""Settings of a session that the store makes itself."""
_HOST: Final = r"(\[[0-9A-Fa-f:.]+(%25[\w.]+)?\]|[^\[\]:,\s/?#@%]*|(%2[Ff][\w.%-]*))(:\d{1,5})?"
_SETTING: Final = re.compile(r"(?:-c\s*|--)([A-Za-z_.-]+)\s*=")
_HOSTS: Final = re.compile(rf"{_HOST}(,{_HOST})*")
_MALFORMED: Final = "the dsn is malformed: "
_ENCODE: Final = "in a user or password, write / as %2F, ? as %3F, # as %23, @ as %40, : as %3A and % as %25"


class Dsn(NamedTuple):
    """A URL in two parts: one for the driver, and the parameters that this backend handles.

    Attributes:
        names: the names of all its parameters.
    """

    for_driver: str
    hosts: str
    database: str
    application_name: str | None = None
    connect_timeout_millis: int | None = None
    tls: Mapping[str, str] = {}
    names: frozenset[str] = frozenset()


def see_settings(names: Iterable[str], where: str) -> None:
    """See that none of these settings of a session is one that the store makes itself.

    Raises:
        ConfigurationError: one is.
    """
    for name in names:
        setting = name.lower().replace("-", "_")
        if setting in _MADE:
            raise ConfigurationError(f"{where} has {setting}, which cannot be set there: {_MADE[setting]}")


def variable_of(parameter: str) -> str:
    """The variable of libpq that stands for a parameter which the URL does not have."""
    return f"PG{parameter.replace('_', '').upper()}"


def settings_in(options: str) -> list[str]:
    """The names of the settings in libpq's ``options``."""
    return _SETTING.findall(options)


def read_dsn(dsn: str) -> Dsn:
    """Take a URL apart.

    Raises:
        ConfigurationError: it is malformed, or has a parameter that would be given in vain; no value is quoted.
    """
    split = _split(dsn)
    if dsn != dsn.strip() or any(char < " " for char in dsn):
        raise ConfigurationError(f"{_MALFORMED}there is white space around it, or a line break inside")
    if split is None or split.scheme not in ("postgresql", "postgres") or "://" not in dsn[:14]:
        raise ConfigurationError(f"{_MALFORMED}it has to be a URL that begins with postgres://")
    hosts = split.netloc.rpartition("@")[2]
    if "#" in dsn or "@" in split.path + split.query or split.netloc.count("@") > 1 or not _HOSTS.fullmatch(hosts):
        raise ConfigurationError(f"{_MALFORMED}it has to be postgres://user:password@host:port/database; {_ENCODE}")
    if not split.netloc and ":" in split.path:
        raise ConfigurationError(f"{_MALFORMED}the host stands behind two slashes")
    return _with_parameters(split, hosts)


def _split(dsn: str) -> Any:
    try:
        return urlsplit(dsn)
    except ValueError:  # whose message may quote a password
        return None


def _with_parameters(split: Any, hosts: str) -> Dsn:
    pairs = parse_qsl(split.query, keep_blank_values=True)
    if any("=" not in part for part in split.query.split("&") if part):
        raise ConfigurationError(f"{_MALFORMED}a parameter has no value; {_ENCODE}")
    given = dict(pairs)
    if not given.keys() <= PARAMETERS:
        raise ConfigurationError(
            f"{_MALFORMED}it has a parameter that is none of {', '.join(sorted(PARAMETERS))}; {_ENCODE}"
        )
    for name in sorted(_REFUSED & given.keys()):
        raise ConfigurationError(f"the dsn has {name}, which the driver, asyncpg, does not know; leave it out")
    see_settings(settings_in(given.get("options", "")), "the dsn, in options,")
    for name, values in HELD.items():
        if name in given and given[name].lower() not in values:
            raise ConfigurationError(
                f"the dsn has {name}, which the driver, asyncpg, does not know: only "
                f"{' or '.join(values)} holds; leave it out, or give another"
            )
    for name, values in CHOICES.items():
        if name in given and given[name] not in values:
            raise ConfigurationError(f"the dsn has a {name} that is none of {', '.join(values)}")
    if not re.fullmatch(r"(\d{1,5}(,\d{1,5})*)?", given.get("port", "")):
        raise ConfigurationError(f"{_MALFORMED}port has to be a number")
    kept = urlencode([(name, value) for name, value in pairs if name in _PASSED])
    return Dsn(
        urlunsplit(("postgresql", split.netloc, split.path, kept, "")),
        hosts or given.get("host", ""),
        split.path.removeprefix("/") or given.get("dbname", ""),
        given.get("application_name") or given.get("fallback_application_name"),
        millis_of(given.get("connect_timeout"), "the dsn has a connect_timeout"),
        {name: value for name, value in given.items() if name.startswith("ssl")},
        frozenset(given),
    )


def millis_of(seconds: str | None, what: str) -> int | None:
    """libpq's ``connect_timeout``: whole seconds, of which 0 is none, which is what this backend does not have.

    Raises:
        ConfigurationError: it is none; *what* it is called stands at the beginning.
    """
    if seconds is None:
        return None
    if not re.fullmatch(r"[1-9]\d{0,5}", seconds):
        raise ConfigurationError(f"{what} that is no number of seconds from 1 to 999999")
    return int(seconds) * 1000
