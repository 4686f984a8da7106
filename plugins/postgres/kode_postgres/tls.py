"""TLS: what the option ``ssl`` and the parameters of a URL ask for holds together, or is refused.

The driver looks at certificates to trust, and at those that were revoked, only with a mode that verifies the server;
libpq looks at them with any. Where the driver would not look, nothing is connected to.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from kode_core.errors import ConfigurationError
from kode_postgres.dsn import variable_of

__all__ = ["driver_ssl", "see_tls"]

_MODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_VERIFIES: Final = ("verify-ca", "verify-full")
_FILES: Final = ("sslrootcert", "sslcrl", "sslcert", "sslkey")
_VARIABLES: Final = {name: variable_of(name) for name in _FILES}
_OF_A_CONTEXT: Final = (*_FILES, "sslpassword", "ssl_min_protocol_version", "ssl_max_protocol_version")
"""Parameters that make a context of TLS, and mean nothing where there is one."""


def driver_ssl(wanted: Any) -> Any:
    """The option ``ssl`` as asyncpg takes it."""
    if wanted is None or isinstance(wanted, (bool, ssl.SSLContext)):
        return wanted
    if isinstance(wanted, str) and wanted.lower() in ("true", "false", "1", "0"):
        return wanted.lower() in ("true", "1")
    if isinstance(wanted, str) and wanted in _MODES:
        return wanted
    if isinstance(wanted, str) and Path(wanted).expanduser().is_file():
        try:
            return ssl.create_default_context(cafile=str(Path(wanted).expanduser()))
        except ssl.SSLError as exc:
            raise ConfigurationError(f"the file of the option ssl holds no certificates: {exc.reason}") from exc
    raise ConfigurationError(
        f"the option ssl is true, false, one of {', '.join(_MODES)}, a file of certificates or an ssl.SSLContext"
    )


def see_tls(given: Any, parameters: Mapping[str, str], variables: Mapping[str, str]) -> None:
    """See that the driver does all that is asked for.

    *given* is what :func:`driver_ssl` made of the option; *parameters* are the URL's; *variables* are libpq's, and
    empty where the server is on this machine's socket.

    Raises:
        ConfigurationError: it would not; the parameter is named, and not quoted.
    """
    if isinstance(given, (bool, ssl.SSLContext)):
        for name in _OF_A_CONTEXT:
            if name in parameters:
                raise ConfigurationError(f"the dsn has {name}, which means nothing next to the option ssl; give one")
        return
    for name in _FILES:
        if name in parameters and not Path(parameters[name]).is_file():
            raise ConfigurationError(f"the dsn has a {name} that is no file that can be read")
    mode = given or parameters.get("sslmode") or variables.get("PGSSLMODE") or "prefer"
    for name, variable in _VARIABLES.items():
        is_read = mode != "disable" and name not in parameters and variables.get(variable)
        if is_read and not Path(variables[variable]).is_file():
            raise ConfigurationError(f"the variable {variable} names no file that can be read")
    asked = {name: f"the dsn has {name}" for name in ("sslrootcert", "sslcrl") if name in parameters}
    if given is None:
        asked = {
            name: f"the variable {_VARIABLES[name]} is set"
            for name in ("sslrootcert", "sslcrl")
            if variables.get(_VARIABLES[name])
        } | asked
    if "sslrootcert" in asked and mode not in (*_VERIFIES, "require"):
        raise ConfigurationError(f"{asked['sslrootcert']}, which the driver ignores at sslmode {mode}; {_REMEDY}")
    if "sslcrl" in asked and mode not in _VERIFIES and not (mode == "require" and "sslrootcert" in asked):
        raise ConfigurationError(f"{asked['sslcrl']}, which the driver ignores at sslmode {mode}; {_REMEDY}")


_REMEDY: Final = "add sslmode=verify-full"
