"""MongoDB's URI, taken apart here: the driver's words about one that is malformed quote passwords."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple
from urllib.parse import parse_qsl, unquote_plus

from kode_core.errors import ConfigurationError

__all__ = ["Uri", "see_parameters", "shown_hosts", "split_uri"]

_SCHEMES: Final = ("mongodb", "mongodb+srv")
_HOST: Final = r"(\[[0-9A-Fa-f:.]+(%25\w+)?\]|[^\[\]:,\s]+)(:\d{1,5})?"
_HOSTS: Final = re.compile(rf"{_HOST}(,{_HOST})*")
_KEPT: Final[Mapping[str, str]] = {
    "w": "majority",
    "journal": "true",
    "j": "true",
    "retrywrites": "true",
    "readpreference": "primary",
    "readconcernlevel": "majority",
}
"""Parameters that this backend's promises rest on, and the only value that they may have."""
_OWN: Final[Mapping[str, str]] = {
    "maxpoolsize": "max",
    "maxidletimems": "idle_timeout_millis",
    "serverselectiontimeoutms": "connection_timeout_millis",
    "connecttimeoutms": "connection_timeout_millis",
    "sockettimeoutms": "command_timeout_millis",
    "waitqueuetimeoutms": "command_timeout_millis",
    "wtimeoutms": "command_timeout_millis",
    "timeoutms": "command_timeout_millis",
}
"""Parameters in whose place an option of this backend stands."""
_WEAKENED: Final = (
    "kode-mongo always writes with w=majority, j=true and retryWrites, and reads from the primary what a majority has,"
    " because with less a crash loses what was acknowledged; leave the parameter out"
)


class Uri(NamedTuple):
    """What a URI says, the user and the password excepted."""

    hosts: str
    database: str
    parameters: list[tuple[str, str]]


def split_uri(uri: str) -> Uri:
    """Take a URI apart.

    Raises:
        ConfigurationError: it is malformed; nothing of it is quoted.
    """
    scheme, _, rest = uri.partition("://")
    if scheme not in _SCHEMES:
        raise ConfigurationError("the URI is malformed: it has to begin with mongodb:// or mongodb+srv://")
    user_info, _, rest = rest.rpartition("@")
    if set(user_info) & set("/?#@"):
        raise ConfigurationError(
            "the URI is malformed: in the user, the password and behind the host, the characters / ? # @ have to be"
            " written as %2F %3F %23 %40"
        )
    place, _, query = rest.partition("?")
    hosts, _, path = place.partition("/")
    if "#" in rest or not _HOSTS.fullmatch(hosts):
        raise ConfigurationError("the URI is malformed: between user and database it has to have host:port,host:port")
    return Uri(hosts, unquote_plus(path), parse_qsl(query.replace(";", "&"), keep_blank_values=True))


def shown_hosts(uri: str) -> str:
    """The hosts, for messages about any URI."""
    try:
        return split_uri(uri).hosts
    except ConfigurationError:
        return "a malformed URI"


def see_parameters(uri: Uri, place: str) -> None:
    """See that no parameter takes back what the store promises, and that none is given in vain.

    Raises:
        ConfigurationError: one does or is; says what and why.
    """
    for name, value in uri.parameters:
        kept, own = _KEPT.get(name.lower()), _OWN.get(name.lower())
        if kept is not None and value.lower() != kept:
            raise ConfigurationError(f"{place}: the URI has {name} with another value than {kept}; {_WEAKENED}")
        if own is not None:
            raise ConfigurationError(f"{place}: the URI has {name}; give the store's option {own} in its place")
