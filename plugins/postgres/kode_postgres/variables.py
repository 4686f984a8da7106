"""libpq's variables: each stands for a parameter, is a setting of the sessions, or has no effect here.

An empty variable counts as unset.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from kode_core.errors import ConfigurationError
from kode_postgres.parameters import HELD, Given

__all__ = ["VARIABLES", "parameters_of", "settings_of"]

_NAMED: Final = {
    "PGAPPNAME": "application_name",
    "PGCONNECT_TIMEOUT": "connect_timeout",
    "PGDATABASE": "dbname",
    **{
        f"PG{name.replace('_', '').upper()}": name
        for name in (
            *("host", "port", "user", "password", "passfile", "options", "sslmode", "sslnegotiation", "sslrootcert"),
            *("sslcert", "sslkey", "sslcrl", "ssl_min_protocol_version", "ssl_max_protocol_version"),
            *("target_session_attrs", "krbsrvname", "gsslib"),
            *(name for name in HELD if name not in ("client_encoding", "replication")),
        )
    },
}
"""The parameters that variables stand for."""
_HELD: Final[Mapping[str, tuple[str, ...]]] = {
    "PGMINPROTOCOLVERSION": ("3.0",),
    "PGMAXPROTOCOLVERSION": ("3.0", "3.2", "latest"),
    "PGREQUIREAUTH": (),
    "PGREQUIREPEER": (),
    "PGREQUIRESSL": ("0",),
    "PGSSLCRLDIR": (),
    "PGHOSTADDR": (),
}
"""Variables of parameters that are always refused, and the values that are correct anyway."""
_NOTHING: Final = frozenset({"PGCLIENTENCODING", "PGLOCALEDIR"})
"""Variables without effect here: texts are Unicode, and messages are English."""
_SETTINGS: Final = {"PGTZ": "timezone", "PGDATESTYLE": "datestyle", "PGGEQO": "geqo"}
"""Settings of a session, which libpq sends as well."""
_SERVICES: Final = frozenset({"PGSERVICE", "PGSERVICEFILE", "PGSYSCONFDIR"})
VARIABLES: Final = _NAMED.keys() | _HELD.keys() | _NOTHING | _SETTINGS.keys() | _SERVICES
"""All variables of libpq that are known here."""


def parameters_of(variables: Mapping[str, str]) -> dict[str, Given]:
    """The parameters that variables give.

    Raises:
        ConfigurationError: a variable requests something that the driver does not support; its value is not quoted.
    """
    for name, values in _HELD.items():
        if variables.get(name) and variables[name].lower() not in values:
            held = f"only {' or '.join(values)} holds" if values else "no value holds"
            raise ConfigurationError(f"the variable {name} is set, and the driver, asyncpg, does not know it: {held}")
    return {
        parameter: Given(variables[name], f"the variable {name}")
        for name, parameter in _NAMED.items()
        if variables.get(name)
    }


def settings_of(variables: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
    """The session settings from variables, except for the *given* ones, whose names may have any case."""
    names = {name.lower() for name in given}
    return {
        setting: variables[name] for name, setting in _SETTINGS.items() if variables.get(name) and setting not in names
    }
