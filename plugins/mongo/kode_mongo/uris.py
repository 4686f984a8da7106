"""Parses MongoDB's URI, because the driver's messages about a malformed one quote passwords."""

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
"""Parameters on which this backend's promises rest, each with the only value that it may have."""
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
"""Parameters that an option of this backend replaces."""
_WEAKENED: Final = (
    "kode-mongo always writes with w=majority, j=true and retryWrites, and reads from the primary what a majority has,"
    " because with less a crash loses what was acknowledged; leave the parameter out"
)


class Uri(NamedTuple):
    """The parts of a URI, without user and password."""

    hosts: str
    database: str
    parameters: list[tuple[str, str]]


def split_uri(uri: str) -> Uri:
    """Split a URI into its parts.

    Raises:
        ConfigurationError: the URI is malformed. The error does not quote it.
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
    location, _, query = rest.partition("?")
    hosts, _, path = location.partition("/")
    if "#" in rest or not _HOSTS.fullmatch(hosts):
        raise ConfigurationError("the URI is malformed: between user and database it has to have host:port,host:port")
    return Uri(hosts, unquote_plus(path), parse_qsl(query.replace(";", "&"), keep_blank_values=True))


def shown_hosts(uri: str) -> str:
    """The hosts of a URI, for messages, even if it is malformed."""
    try:
        return split_uri(uri).hosts
    except ConfigurationError:
        return "a malformed URI"


def see_parameters(uri: Uri, place: str) -> None:
    """Check that no parameter weakens the store's promises or would be ignored.

    Raises:
        ConfigurationError: a parameter is refused; the message says which and why.
    """
    for name, value in uri.parameters:
        kept, own = _KEPT.get(name.lower()), _OWN.get(name.lower())
        if kept is not None and value.lower() != kept:
            raise ConfigurationError(f"{place}: the URI has {name} with another value than {kept}; {_WEAKENED}")
        if own is not None:
            raise ConfigurationError(f"{place}: the URI has {name}; give the store's option {own} in its place")
