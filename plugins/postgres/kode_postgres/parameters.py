"""libpq's parameters: each is passed on, handled by this backend, or refused; none is ignored silently.

The same rules apply to a parameter in a URL, a service, a variable or an option.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from kode_core.errors import ConfigurationError

__all__ = [
    "HELD",
    "PARAMETERS",
    "Given",
    "millis_of",
    "paired",
    "see_parameter",
    "see_settings",
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
"""Parameters that the driver does not know, and the values that are correct anyway."""
_TLS_VERSIONS: Final = ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3")
_CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "sslnegotiation": ("postgres", "direct"),
    "ssl_min_protocol_version": _TLS_VERSIONS,
    "ssl_max_protocol_version": _TLS_VERSIONS,
    "target_session_attrs": ("any", "read-write", "read-only", "primary", "standby", "prefer-standby"),
    "gsslib": ("gssapi", "sspi"),
}
"""The permitted values of these parameters: the driver's message would quote any other value."""
_REFUSED: Final = frozenset(
    {
        *("hostaddr", "require_auth", "requirepeer", "requiressl", "sslcrldir", "sslkeylogfile", "tcp_user_timeout"),
        *("keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "scram_client_key"),
        *("scram_server_key", "min_protocol_version", "max_protocol_version", "oauth_issuer", "oauth_client_id"),
        *("oauth_client_secret", "oauth_scope"),
    }
)
"""Parameters of libpq that are not supported here, whatever their value."""
PARAMETERS: Final = _PASSED | _OURS | HELD.keys() | _REFUSED
"""The libpq parameters of a URL that are not options of this backend."""

_MADE: Final[Mapping[str, str]] = {
    "application_name": "it is an option",
    "statement_timeout": "it follows from command_timeout_millis",
    "idle_in_transaction_session_timeout": "it follows from command_timeout_millis",
    "lock_timeout": "see lock_wait_millis",
    "default_transaction_isolation": "the store chooses it",
    "client_connection_check_interval": "the store chooses it",
    "client_encoding": "it is UTF-8",
}
"""Settings of a session that the store sets itself."""
_SETTING: Final = re.compile(r"(?:-c\s*|--)([A-Za-z_.-]+)\s*=")
_HOST: Final = re.compile(r"|/.*|[\w.-]+|[0-9A-Fa-f]*:[0-9A-Fa-f:.]*(%[\w.-]+)?", re.DOTALL)
"""Empty for the default host, or the folder of a socket, a name or an address."""


class Given(NamedTuple):
    """The value of a parameter.

    Attributes:
        origin: the source of the value, as in ``the dsn`` or ``the variable PGHOST``.
    """

    text: str
    origin: str

    def says(self, name: str) -> str:
        """The start of a message about the value of this parameter."""
        article = "an" if self.is_listed and name[0] in "aeio" else "a"
        return f"{self.origin} has {article} {name if self.is_listed else 'value'}"

    @property
    def is_listed(self) -> bool:
        """True if its source contains several parameters, so that messages have to name it."""
        return not self.origin.startswith(("the variable", "the option"))

    @property
    def is_variable(self) -> bool:
        """True if the value comes from a variable."""
        return self.origin.startswith("the variable")


def see_settings(names: Iterable[str], where: str) -> None:
    """Check that none of these settings of a session is one that the store sets itself.

    Raises:
        ConfigurationError: the store sets one of them itself.
    """
    for name in names:
        setting = name.lower().replace("-", "_")
        if setting in _MADE:
            raise ConfigurationError(f"{where} has {setting}, which cannot be set there: {_MADE[setting]}")


def see_parameter(name: str, given: Given) -> None:
    """Check that a parameter takes effect.

    Raises:
        ConfigurationError: libpq would refuse its value, or it would have no effect; the value is not quoted.
    """
    text = given.text
    if "\0" in text:
        raise ConfigurationError(f"{given.says(name)} with a NUL in it, which ends a text of the server's protocol")
    if name in _REFUSED:
        raise ConfigurationError(f"{given.origin} has {name}, which the driver, asyncpg, does not know; leave it out")
    if text.lower() not in HELD.get(name, (text.lower(),)):
        holds = f"only {' or '.join(HELD[name])} holds"
        if not given.is_listed:
            raise ConfigurationError(f"{given.origin} is set, and the driver, asyncpg, does not know it: {holds}")
        raise ConfigurationError(
            f"{given.origin} has {name}, which the driver, asyncpg, does not know: {holds}; leave it out, or give "
            "another"
        )
    if text not in _CHOICES.get(name, (text,)):
        raise ConfigurationError(f"{given.says(name)} that is none of {', '.join(_CHOICES[name])}")
    if name == "options":
        see_settings(_SETTING.findall(text), f"{given.origin}, in options," if given.is_listed else given.origin)
    if name == "connect_timeout":
        millis_of(given)
    if name == "port" and not all(_is_port(one) for one in text.split(",")):
        raise ConfigurationError(
            f"{given.says(name)} that is no number of a port from 1 to 65535, nor several with commas between them"
        )
    if name == "host" and not all(_is_host(one) for one in text.split(",")):
        raise ConfigurationError(
            f"{given.says(name)} that is no name, address or folder of a socket, nor several with commas between them; "
            "the number of the port is given as port"
        )
    if name == "user" and not text:
        raise ConfigurationError(f"{given.says(name)} that is empty")


def _is_port(text: str) -> bool:
    return not text or bool(re.fullmatch(r"[0-9]{1,9}", text.strip()) and 0 < int(text) < 2**16)


def _is_host(text: str) -> bool:
    if not _HOST.fullmatch(text):
        return False
    try:
        return text.startswith("/") or bool(text.encode("idna")) or not text
    except UnicodeError:  # a part of it is longer than a name can be, or missing
        return False


def millis_of(given: Given) -> int:
    """libpq's ``connect_timeout`` in milliseconds: whole seconds; libpq's 0, for no limit, is not supported.

    Raises:
        ConfigurationError: it is not such a number.
    """
    if not re.fullmatch(r"[1-9][0-9]{0,5}", given.text):
        raise ConfigurationError(f"{given.says('connect_timeout')} that is no number of seconds from 1 to 999999")
    return int(given.text) * 1000


def paired(host: str, port: str) -> list[tuple[str, str]] | None:
    """Each host with its port; a single port applies to all hosts; None if the numbers differ."""
    hosts, ports = host.split(","), port.split(",")
    if len(ports) == 1:
        ports *= len(hosts)
    return list(zip(hosts, ports, strict=True)) if len(hosts) == len(ports) else None
