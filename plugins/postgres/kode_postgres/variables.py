"""libpq's variables: each is read by the driver, kept by this backend itself, or refused by its name.

Refused are those that ask for what the driver does not do, so that none is dropped without a word.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from kode_core.errors import ConfigurationError
from kode_postgres.dsn import CHOICES, HELD, Dsn, millis_of, see_settings, settings_in, variable_of

__all__ = ["VARIABLES", "connect_millis", "see_variables", "settings_of"]

_READ: Final = frozenset(
    {
        *("PGHOST", "PGPORT", "PGDATABASE", "PGUSER", "PGPASSWORD", "PGPASSFILE", "PGSSLMODE"),
        *("PGSSLNEGOTIATION", "PGSSLROOTCERT", "PGSSLCERT", "PGSSLKEY", "PGSSLCRL", "PGSSLMINPROTOCOLVERSION"),
        *("PGSSLMAXPROTOCOLVERSION", "PGTARGETSESSIONATTRS", "PGKRBSRVNAME", "PGGSSLIB"),
    }
)
"""Variables that the driver reads."""
_NOTHING: Final = frozenset({"PGCLIENTENCODING", "PGLOCALEDIR"})
"""Variables that change nothing here: texts are Unicode, and messages are English."""
_HELD: Final[Mapping[str, tuple[str, ...]]] = {
    **{variable_of(name): values for name, values in HELD.items() if name not in ("client_encoding", "replication")},
    "PGMINPROTOCOLVERSION": ("3.0",),
    "PGMAXPROTOCOLVERSION": ("3.0", "3.2", "latest"),
    "PGREQUIREAUTH": (),
    "PGREQUIREPEER": (),
    "PGREQUIRESSL": ("0",),
    "PGSSLCRLDIR": (),
    "PGHOSTADDR": (),
}
"""Variables that the driver does not read, and the values that hold all the same, as of the parameters of a URL."""
_CHOICES: Final = {name: variable_of(name) for name in CHOICES}
"""The variables of parameters that have certain values; the driver does not say of which one it speaks."""
_SETTINGS: Final = {"PGTZ": "timezone", "PGDATESTYLE": "datestyle", "PGGEQO": "geqo"}
"""Settings of a session, which libpq sends, too."""
_OURS: Final = frozenset({"PGAPPNAME", "PGCONNECT_TIMEOUT", "PGOPTIONS", "PGSERVICE", "PGSERVICEFILE", "PGSYSCONFDIR"})
VARIABLES: Final = _READ | _NOTHING | _OURS | _HELD.keys() | _SETTINGS.keys()
"""All that there are."""
_PORTS: Final = re.compile(r"\d{1,5}(,\d{1,5})*")


def see_variables(variables: Mapping[str, str], dsn: Dsn | None, *, has_port: bool, has_ssl: bool) -> None:
    """See that no variable asks for what the driver does not do, or is malformed where it is read.

    Raises:
        ConfigurationError: one is; no value is quoted.
    """
    for name, values in _HELD.items():
        if variables.get(name) and variables[name].lower() not in values:
            held = f"only {' or '.join(values)} holds" if values else "no value holds"
            raise ConfigurationError(f"the variable {name} is set, and the driver, asyncpg, does not know it: {held}")
    given = dsn.names if dsn else frozenset()
    for parameter, name in _CHOICES.items():
        is_read = parameter not in given and not (has_ssl and parameter == "sslmode")
        if is_read and variables.get(name) and variables[name] not in CHOICES[parameter]:
            raise ConfigurationError(f"the variable {name} is none of {', '.join(CHOICES[parameter])}")
    ports = "" if has_port else variables.get("PGPORT", "")  # the driver reads it also where the URL has one
    if ports and not (_PORTS.fullmatch(ports) and all(0 < int(port) < 2**16 for port in ports.split(","))):
        raise ConfigurationError("the variable PGPORT is no number of a port, nor several with commas between them")
    see_settings(settings_in(variables.get("PGOPTIONS", "")), "the variable PGOPTIONS")


def connect_millis(variables: Mapping[str, str]) -> int | None:
    """``PGCONNECT_TIMEOUT``, which the driver does not read; None where it is not set.

    Raises:
        ConfigurationError: it is no number of seconds.
    """
    return millis_of(variables.get("PGCONNECT_TIMEOUT") or None, "the variable PGCONNECT_TIMEOUT has a value")


def settings_of(variables: Mapping[str, str], given: Mapping[str, str], dsn: Dsn | None) -> dict[str, str]:
    """The settings of a session that variables ask for, without those that are *given*, whose names are in any case."""
    names = {name.lower() for name in given}
    found = {
        setting: variables[name] for name, setting in _SETTINGS.items() if variables.get(name) and setting not in names
    }
    if variables.get("PGOPTIONS") and not (dsn and "options" in dsn.names):
        found["options"] = variables["PGOPTIONS"]
    return found
