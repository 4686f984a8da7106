"""Environment variables: the variables that choose a store, the variables of options, and variables of other programs.

A variable can also be given as the path of a file that contains the value, as Docker and Kubernetes provide secrets:
with ``_FILE`` at the end of its name.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from kode_core.authoring.encodings import OtherEncodingError, decoded
from kode_core.authoring.values import near
from kode_core.errors import ConfigurationError, PluginError
from kode_core.ids import nearest
from kode_core.plugins import registry
from kode_core.sources.wanted import BackendFinder, Wanted

__all__ = ["CHOOSING", "Variables"]

_log = logging.getLogger("kode_core.config")

CHOOSING: Final = frozenset({"KODE_STORE_URL", "KODE_STORE_TYPE", "KODE_STORE_PATH", "KODE_CONFIG"})
"""The variables that choose the store."""
_OTHERS: Final = frozenset({"KODE_DISABLE_PLUGINS", "KODE_TRACE_PLUGINS", "KODE_DEBUG", "KODE_KILL_MATRIX"})
_OTHER_PREFIXES: Final = ("KODE_TEST_", "KODE_CONFORMANCE_")
_CLOSE: Final = 0.8
_MAX_FILE: Final = 65_536

_INJECTED: Final = re.compile(r".*(_SERVICE_HOST|_SERVICE_PORT(_\w+)?|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")
_ADDRESS: Final = re.compile(r"(tcp|udp|sctp)://")


class Variables:
    """The variables of a process, without the ones that Kubernetes and Docker inject for services.

    A service named ``kode-postgres`` gives every container of its namespace ``KODE_POSTGRES_PORT=tcp://10.0.0.7:5432``,
    ``KODE_POSTGRES_SERVICE_HOST`` and more, which do not configure a store.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        linked = {name for name, value in environ.items() if name.endswith("_PORT") and _ADDRESS.match(value)}
        of_links = tuple(f"{name.removesuffix('PORT')}ENV_" for name in linked)
        links = linked | {f"{name.removesuffix('PORT')}NAME" for name in linked}
        self._given = {
            name: value
            for name, value in environ.items()
            if not (name in links or _INJECTED.fullmatch(name) or (of_links and name.startswith(of_links)))
        }

    def get(self, name: str) -> str | None:
        """The value of a variable, or of the file that its ``_FILE`` variant names; None if neither is set.

        Raises:
            ConfigurationError: both are given, or the file cannot be read.
        """
        value, file = self._given.get(name) or None, self._given.get(f"{name}_FILE") or None
        if file is None:
            return value
        if value is not None:
            raise ConfigurationError(f"{name} and {name}_FILE are both set; give one of them")
        return _content(f"{name}_FILE", file)

    def source(self, name: str) -> str:
        """The variable in which the value of *name* was found."""
        return name if self._given.get(name) else f"{name}_FILE"

    def empty(self) -> str | None:
        """A variable that should choose the store but is empty, for example expanded from an unset one."""
        names = ("KODE_STORE_URL", "KODE_STORE_TYPE")
        return next((twin for name in names for twin in (name, f"{name}_FILE") if self._given.get(twin) == ""), None)

    def of_backend(self, kind: str, find: BackendFinder, common: Iterable[str], source: str) -> Wanted:
        """The options of a backend that are set by variables.

        Raises:
            ConfigurationError: a variable of the backend matches no option; the message names the nearest one.
        """
        backend = find(kind)
        own = {field.name for field in msgspec.structs.fields(backend.options)}
        prefix = _prefix(backend.name)
        known = {"KODE_STORE_PATH": "file_store_base_dir", **backend.variables}
        known.update({f"{prefix}{name.upper()}": name for name in sorted({*own, *common})})
        for variable in self._given:
            if variable.startswith(prefix) and not {variable, variable.removesuffix("_FILE")} & known.keys():
                raise ConfigurationError(
                    f"the variable {variable} is for no option of backend {backend.name!r}{near(variable, known)}"
                )
        given, sources = {}, {}
        for variable, option in known.items():
            value = self.get(variable)
            if value is not None:
                given[option], sources[option] = value, self.source(variable)
        return Wanted(backend.name, given, source, frozenset(given), sources)

    def see_names(self) -> None:
        """Check that no variable is a misspelled one of ours: another store than the intended one would be opened.

        Raises:
            ConfigurationError: a variable is misspelled.
        """
        known = {*CHOOSING, *_OTHERS, *(f"{name}_FILE" for name in CHOOSING - {"KODE_CONFIG"})}
        others = [name for name in self._given if name.startswith("KODE_") and name not in known]
        plugins = [*registry.names(), *(one.name for one in registry.extensions())] if others else ()
        prefixes = (*_OTHER_PREFIXES, *map(_prefix, plugins))
        for name in others:
            if name.startswith(prefixes):
                continue
            found = nearest(name, sorted(known), _CLOSE)
            if found or name.startswith("KODE_STORE_"):
                hint = f"did you mean {found}?" if found else f"known are {', '.join(sorted(CHOOSING))}"
                raise ConfigurationError(f"the variable {name} means nothing here; {hint}")
            _log.warning("the variable %s means nothing to kode_core, and no installed backend is named so", name)

    def of_another(self, chosen: str, find: BackendFinder) -> str | None:
        """A variable for an option of a backend other than the *chosen* one, perhaps misspelled; None without one."""
        if not any(name.startswith("KODE_") for name in self._given):
            return None
        for backend in registry.names():
            prefix = _prefix(backend)
            given = [name for name, value in self._given.items() if value and name.startswith(prefix)]
            if backend == chosen or not given:
                continue
            try:
                fields = msgspec.structs.fields(find(backend).options)
            except PluginError:
                return given[0]
            options = [field.name.upper() for field in fields]
            for name in given:
                option = name.removeprefix(prefix).removesuffix("_FILE")
                if nearest(option, options, _CLOSE):
                    return name
        return None


def _prefix(backend: str) -> str:
    return f"KODE_{re.sub('[^A-Z0-9]', '_', backend.upper())}_"


def _content(variable: str, file: str) -> str:
    """The contents of the file, without its last line break; errors do not show the path, which may be the secret."""
    problem = ""
    try:
        with Path(file).open("rb") as opened:
            content = opened.read(_MAX_FILE + 1)
        text = decoded(content).removesuffix("\n").removesuffix("\r")
    except OSError as exc:
        problem = exc.strerror or "it cannot be read"
    except OtherEncodingError as exc:
        problem = str(exc)
    except ValueError:  # it may quote the value, which may be a secret
        problem = "its name is no path"
    if problem:
        raise ConfigurationError(f"{variable} has to be the path of a file with the value: {problem}")
    if len(content) > _MAX_FILE:
        raise ConfigurationError(f"{variable} names a file of more than {_MAX_FILE} bytes")
    if not text:
        raise ConfigurationError(f"{variable} names a file that is empty")
    return text
