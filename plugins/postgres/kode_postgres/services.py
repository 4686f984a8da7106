"""libpq's services: named groups of connection parameters in a file.

They are read here, because the driver treats a missing service as an empty one, and ignores parameters that it does not
know.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from kode_core.errors import ConfigurationError
from kode_postgres.parameters import PARAMETERS, Given, see_parameter

__all__ = ["service_of"]

_PERSONAL: Final = ".pg_service.conf"
_COMMON: Final = "pg_service.conf"
_NESTED: Final = ("service", "servicefile")


def service_of(given: Mapping[str, Given], variables: Mapping[str, str]) -> dict[str, Given]:
    """The parameters of the service named in *given* or by ``PGSERVICE``; empty if no service is named.

    Raises:
        ConfigurationError: the service does not exist, or has a parameter that would have no effect; no value is
            quoted.
    """
    named, file = (given[name].text if name in given else "" for name in _NESTED)
    name = named or variables.get("PGSERVICE")
    if not name:
        return {}
    found = _service(name, file or variables.get("PGSERVICEFILE"), variables.get("PGSYSCONFDIR"))
    parameters = {key: Given(value, "the service") for key, value in found.items()}
    for key, value in parameters.items():
        see_parameter(key, value)
    return parameters


def _service(name: str, file: str | None, folder: str | None) -> dict[str, str]:
    files = [Path(file) if file else Path("~", _PERSONAL).expanduser(), *([Path(folder, _COMMON)] if folder else [])]
    for one in files:
        try:
            text = one.read_text(encoding="utf-8-sig")
        except (OSError, ValueError):
            continue
        found = _section(text, name, one)
        if found is not None:
            return found
    where = " and in ".join(map(str, files))
    raise ConfigurationError(f"the dsn or the variable PGSERVICE has a service that is not defined in {where}")


def _section(text: str, name: str, file: Path) -> dict[str, str] | None:
    """The parameters of a service in a file, the first value of each; None if the file does not have the service."""
    found: dict[str, str] | None = None
    for number, line in enumerate(map(str.strip, text.split("\n")), start=1):
        if not line or line.startswith("#"):
            continue
        if line.startswith("["):
            if found is not None:
                break
            found = {} if line[1:].startswith(f"{name}]") else None  # a comment may follow
        elif found is not None:
            key, equals, value = line.partition("=")
            if key in _NESTED:
                raise ConfigurationError(f"the service has {key}, which no service can have ({file}, line {number})")
            if not equals or key not in PARAMETERS:
                raise ConfigurationError(
                    f"the service has a line that is no parameter of libpq's with = and a value, and no blank before "
                    f"the = ({file}, line {number})"
                )
            found.setdefault("dbname" if key == "database" else key, value)
    return found
