"""TLS: the combination of the option ``ssl`` and a URL's parameters is applied in full, or refused.

The driver uses trusted and revoked certificates only in a mode that verifies the server; libpq uses them in any mode.
If the driver would not use them, no connection is made.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from kode_core.errors import ConfigurationError
from kode_postgres.parameters import Given

__all__ = ["driver_ssl", "encryption"]

_MODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_WEAK: Final = ("disable", "allow", "prefer")
_VERIFIES: Final = ("verify-ca", "verify-full")
_FILES: Final = ("sslrootcert", "sslcrl", "sslcert", "sslkey")
_OF_A_CONTEXT: Final[tuple[str, ...]] = (*_FILES, "sslpassword", "ssl_min_protocol_version", "ssl_max_protocol_version")
"""Parameters of a TLS context, which have no effect if a context is given."""


def driver_ssl(wanted: Any) -> Any:
    """The option ``ssl`` in the form that asyncpg takes."""
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


def encryption(wanted: Any, given: Mapping[str, Given], *, over_tcp: bool) -> dict[str, Any]:
    """The driver's arguments for encrypted connections.

    *wanted* is the option ``ssl``; *given* are the parameters, whose variables have no effect if all servers are on
    sockets of this machine.

    Raises:
        ConfigurationError: the driver would not do everything that is requested; the parameter is named, and not
            quoted.
    """
    ssl_ = driver_ssl(wanted)
    given = {name: one for name, one in given.items() if over_tcp or not one.is_variable}
    _see(ssl_, given)
    is_direct = "sslnegotiation" in given and given["sslnegotiation"].text == "direct"
    if isinstance(ssl_, (bool, ssl.SSLContext)):
        return {"ssl": ssl_, "direct_tls": is_direct and ssl_ is not False}
    mode = _mode(ssl_, given)
    if is_direct and mode in _WEAK:
        raise ConfigurationError(
            f"{given['sslnegotiation'].says('sslnegotiation')} that asks for TLS at once, and sslmode {mode} does not "
            "ask for TLS; add sslmode=require"
        )
    context = [(name, given[name].text) for name in _OF_A_CONTEXT if name in given and given[name].text]
    # the driver has no arguments for these
    return {"dsn": f"postgresql://?{urlencode(context)}", "ssl": mode, "direct_tls": is_direct}


def _mode(ssl_: str | None, given: Mapping[str, Given]) -> str:
    return ssl_ or (given["sslmode"].text if "sslmode" in given else "prefer")


def _see(ssl_: Any, given: Mapping[str, Given]) -> None:
    if isinstance(ssl_, (bool, ssl.SSLContext)):
        for name in _OF_A_CONTEXT:
            if name in given and not given[name].is_variable:
                raise ConfigurationError(
                    f"{given[name].origin} has {name}, which means nothing next to the option ssl; give one"
                )
        return
    mode = _mode(ssl_, given)
    for name in _FILES:
        if name not in given or Path(given[name].text).is_file():
            continue
        if not given[name].is_variable:
            raise ConfigurationError(f"{given[name].says(name)} that is no file that can be read")
        if mode != "disable":
            raise ConfigurationError(f"{given[name].origin} names no file that can be read")
    asked = {
        name: f"{given[name].origin} is set" if given[name].is_variable else f"{given[name].origin} has {name}"
        for name in ("sslrootcert", "sslcrl")
        if name in given and (ssl_ is None or not given[name].is_variable)
    }
    if "sslrootcert" in asked and mode not in (*_VERIFIES, "require"):
        raise ConfigurationError(f"{asked['sslrootcert']}, which the driver ignores at sslmode {mode}; {_REMEDY}")
    if "sslcrl" in asked and mode not in _VERIFIES and not (mode == "require" and "sslrootcert" in asked):
        raise ConfigurationError(f"{asked['sslcrl']}, which the driver ignores at sslmode {mode}; {_REMEDY}")


_REMEDY: Final = "add sslmode=verify-full"
