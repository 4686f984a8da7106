"""PostgreSQL's URL, parsed as libpq does it.

The driver's messages about a malformed URL quote parts of it, and it ignores values that are given both in the
authority and in the query.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import unquote_to_bytes, urlsplit

from kode_core.errors import ConfigurationError
from kode_postgres.parameters import PARAMETERS, Given, millis_of, paired, see_parameter

__all__ = ["Dsn", "read_dsn"]

_HOST: Final = r"(\[[0-9A-Fa-f:.]+(%25[\w.]+)?\]|([^\[\]:,\s/?#@%]|%[0-9A-Fa-f]{2})*)(:[0-9]{0,9})?"
_HOSTS: Final = re.compile(rf"{_HOST}(,{_HOST})*")
_MALFORMED: Final = "the dsn is malformed: "
_ENCODE: Final = "in a user or password, write / as %2F, ? as %3F, # as %23, @ as %40, : as %3A and % as %25"


class Dsn(NamedTuple):
    """The parameters of a URL: from its query, and from its authority and path if the query does not have the same one.

    Attributes:
        parameters: the values by libpq's names.
    """

    parameters: Mapping[str, Given]

    @property
    def hosts(self) -> str:
        """The hosts with their ports, for messages."""
        host, port = (self.parameters.get(name, Given("", "")).text for name in ("host", "port"))
        named = [f"[{one}]" if ":" in one and not one.startswith("/") else one for one in host.split(",")]
        pairs = paired(",".join(named), port) or [(one, "") for one in named]
        return ",".join(f"{one}:{number}" if one and number else one for one, number in pairs)

    @property
    def database(self) -> str:
        """The database, for messages; empty if there is none."""
        given = self.parameters.get("dbname")
        return given.text if given else ""

    @property
    def connect_timeout_millis(self) -> int | None:
        """How long to try to connect; None if the URL does not say."""
        given = self.parameters.get("connect_timeout")
        return millis_of(given) if given else None


def read_dsn(dsn: str) -> Dsn:
    """Take a URL apart.

    Raises:
        ConfigurationError: the URL is malformed, or has a parameter that would have no effect; no value is quoted.
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
    texts = {**_authority(split), **_query(split.query)}
    parameters = {name: Given(text, "the dsn") for name, text in texts.items()}
    for name in sorted(parameters):
        see_parameter(name, parameters[name])
    return Dsn(parameters)


def _split(dsn: str) -> Any:
    try:
        return urlsplit(dsn)
    except ValueError:  # its message may quote a password
        return None


def _authority(split: Any) -> dict[str, str]:
    """The parameters before the query; an empty one counts as missing, and so do the ports if no host has one."""
    auth, _, hosts = split.netloc.rpartition("@")
    user, _, password = auth.partition(":")
    names, ports = [], []
    for one in hosts.split(","):
        name, _, port = one[1:].partition("]") if one.startswith("[") else one.partition(":")
        names.append(name)
        ports.append(port.removeprefix(":"))
    found = {
        "user": user,
        "password": password,
        "host": ",".join(names),
        "port": ",".join(ports),
        "dbname": split.path.removeprefix("/"),
    }
    return {name: _decoded(text, name) for name, text in found.items() if text}


def _query(query: str) -> dict[str, str]:
    """The parameters of the query; if one is repeated, the last value counts."""
    found = dict[str, str]()
    for part in filter(None, query.split("&")):
        key, equals, value = part.partition("=")
        if not equals:
            raise ConfigurationError(f"{_MALFORMED}a parameter has no value; {_ENCODE}")
        name = _decoded(key, "parameter without a name that can be read")
        if name not in PARAMETERS:
            raise ConfigurationError(
                f"{_MALFORMED}it has a parameter that is none of {', '.join(sorted(PARAMETERS))}; {_ENCODE}"
            )
        if "=" in value:
            raise ConfigurationError(f"{_says(name)} with a second = in it; write it as %3D")
        found["dbname" if name == "database" else name] = _decoded(value, name)
    return found


def _decoded(text: str, name: str) -> str:
    """The decoded text; a + stays a +."""
    if re.search("%(?![0-9A-Fa-f]{2})", text):
        raise ConfigurationError(f"{_says(name)} with a % that no two digits follow; {_ENCODE}")
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeError:  # its message quotes the text
        raise ConfigurationError(f"{_says(name)} that is not UTF-8") from None


def _says(name: str) -> str:
    return Given("", "the dsn").says(name)
