"""libpq's services: parameters of a connection under a name, in a file.

They are read here, and become parameters of the URL: the driver takes a service that is not there for one that says
nothing, and drops what it does not know of one that is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, urlencode, urlsplit

from kode_core.errors import ConfigurationError
from kode_postgres.dsn import read_dsn

__all__ = ["with_service"]

_PERSONAL: Final = ".pg_service.conf"
_COMMON: Final = "pg_service.conf"


def with_service(dsn: str | None, variables: Mapping[str, str]) -> str | None:
    """The URL with the parameters of its service, or of ``PGSERVICE``, as far as it has not the same itself.

    Raises:
        ConfigurationError: there is no such service, or it has a parameter that would be given in vain; no value is
            quoted.
    """
    split = urlsplit(dsn or "postgresql://")
    given = dict(parse_qsl(split.query, keep_blank_values=True))
    name = given.get("service") or variables.get("PGSERVICE")
    if not name:
        return dsn
    found = _service(name, given.get("servicefile") or variables.get("PGSERVICEFILE"), variables.get("PGSYSCONFDIR"))
    auth, _, hosts = split.netloc.rpartition("@")
    taken = {
        *given,
        *(("user",) if auth.partition(":")[0] else ()),
        *(("password",) if ":" in auth else ()),
        *(("host", "port") if hosts else ()),  # which belong together
        *(("dbname", "database") if split.path.removeprefix("/") else ()),
    }
    kept = {key: value for key, value in given.items() if key not in ("service", "servicefile")}
    kept |= {key: value for key, value in found.items() if key not in taken}
    whole = f"postgresql://{split.netloc}{split.path}?{urlencode(kept)}"
    try:
        read_dsn(whole)
    except ConfigurationError as exc:
        raise ConfigurationError(f"{exc} (where the dsn is that of a service, too)") from None
    return whole


def _service(name: str, file: str | None, folder: str | None) -> dict[str, str]:
    files = [Path(file) if file else Path("~", _PERSONAL).expanduser(), *([Path(folder, _COMMON)] if folder else [])]
    for one in files:
        try:
            text = one.read_text()
        except (OSError, UnicodeDecodeError):
            continue
        for section, parameters in _sections(text):
            if section == name:
                return parameters
    where = " and in ".join(map(str, files))
    raise ConfigurationError(f"the dsn or the variable PGSERVICE has a service that is not defined in {where}")


def _sections(text: str) -> Iterator[tuple[str, dict[str, str]]]:
    """The services of a file, in its order, with their parameters."""
    name, parameters = "", dict[str, str]()
    for line in map(str.strip, text.splitlines()):
        if not line or line.startswith("#"):
            continue
        if line.startswith("[") and line.endswith("]"):
            yield name, parameters
            name, parameters = line[1:-1], {}
        else:
            key, _, value = line.partition("=")
            parameters[key.strip()] = value.strip()
    yield name, parameters
